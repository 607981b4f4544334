"""PPO against the exact answer. Where all answers can be written down, the best policy under "score - beta KL" is known:
pi*(answer) = reference(answer) exp(score(answer) / beta) / Z. Here the sampler, the rewards, the advantages and the losses
of this project, in a PPO loop of 200 iterations, must find it.

Four words and EOS, at most three tokens: 1 + 4 + 4 * 4 * 5 = 85 answers. Policy and critic are tables: one row of logits,
and one value, for each beginning of an answer."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from model import GPT, GPTConfig, generate, join, response_hidden, token_logprobs
from train_ppo import gae, kl_shaped_rewards, ppo_loss, response_values, whiten

WORDS, EOS, PAD, T, PROMPT = 4, 4, 5, 3, 0
BEGINNINGS = [()] + [(i,) for i in range(WORDS)] + [(i, j) for i in range(WORDS) for j in range(WORDS)]
OVER = len(BEGINNINGS)  # the row of the table for everything behind an answer's end
NUMBER = {beginning: i for i, beginning in enumerate(BEGINNINGS)}
NEXT = torch.tensor([[NUMBER.get(b + (w,), OVER) for w in range(WORDS)] + [OVER, OVER] for b in BEGINNINGS] + [[OVER] * 6])
ANSWERS = [b + (EOS,) for b in BEGINNINGS] + [b + (w,) for b in BEGINNINGS if len(b) == T - 1 for w in range(WORDS)]


def table_model(values):
    """A "GPT" whose hidden state is the row of a table for the answer so far. Its prompt is one token; padding is impossible."""
    model = GPT(GPTConfig(6, block_size=8, n_layer=1, n_head=1, n_embd=2))
    for p in model.parameters():
        p.requires_grad_(False)
    model.table = nn.Parameter(values.clone())
    model.lm_head, model.value_head = nn.Identity(), nn.Identity()

    def hidden(tokens, caches=None, positions=None):
        rows = torch.zeros_like(tokens)
        for t in range(tokens.shape[1]):
            if t or positions is not None and positions[0, 0] > 0:  # not the prompt
                before = rows[:, t - 1] if t else caches[0][0][:, 0, 0, 0].long()
                rows[:, t] = NEXT[before, tokens[:, t]]
        if caches:  # the row where an answer is stands in place of its first key
            caches[0][0][:, 0, 0, 0] = rows[:, -1].float()
        return model.table[rows]

    model.hidden = hidden
    return model


def answer_logprobs(table, temperature):
    """log-probability of each of the 85 answers, by multiplying out."""
    logp = torch.log_softmax(table / temperature, -1)
    return torch.stack([sum(logp[NUMBER[answer[:t]], answer[t]] for t in range(len(answer))) for answer in ANSWERS])


def ppo_finds(seed, temperature=0.8, beta=0.75, iterations=200, B=512):
    """Run PPO on a random reference and random scores. Returns KL(pi, pi*), in nats, and KL(reference, pi*)."""
    torch.manual_seed(seed)
    logits = 0.7 * torch.randn(OVER + 1, 6)
    logits[:, PAD] = -1e9
    score_of = dict(zip(ANSWERS, torch.randn(len(ANSWERS)).tolist()))
    reference, policy, critic = table_model(logits), table_model(logits), table_model(torch.randn(OVER + 1, 1))
    cfg = SimpleNamespace(temperature=temperature, clip=0.2, value_clip=0, value_coef=1.0)
    optimizer = torch.optim.Adam([policy.table, critic.table], lr=0.1, eps=1e-5)
    prompts, prompt_lengths = torch.full((B, 1), PROMPT), torch.ones(B, dtype=torch.long)
    for step in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / iterations)
        with torch.no_grad():
            responses, mask, old_logprobs = generate(policy, prompts, prompt_lengths, T, temperature, EOS, PAD)
            tokens, _ = join(prompts, prompt_lengths, responses, mask, PAD)
            R = responses.shape[1]
            scores = torch.tensor([score_of[tuple(r[: int(n)])] for r, n in zip(responses.tolist(), mask.sum(1))])
            ref_logits = reference.lm_head(response_hidden(reference, tokens, prompt_lengths, R))
            ref_logprobs = token_logprobs(ref_logits, responses, temperature)
            rewards = kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, beta)
            old_values = response_values(critic, tokens, prompt_lengths, R)
            advantages, returns = gae(rewards, old_values, mask, 1.0, 0.95)
            batch = dict(tokens=tokens, prompt_lengths=prompt_lengths, responses=responses, mask=mask, old_logprobs=old_logprobs,
                         advantages=whiten(advantages, mask), old_values=old_values, returns=returns)
        for _ in range(2):
            for mb in torch.randperm(B).split(B // 2):
                loss, _ = ppo_loss(policy, critic, {name: x[mb] for name, x in batch.items()}, mask[mb].sum(), cfg)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        found, start = answer_logprobs(policy.table, temperature), answer_logprobs(reference.table, temperature)
    best = torch.log_softmax(start + torch.tensor([score_of[a] for a in ANSWERS]) / beta, 0)
    return [(p.exp() * (p - best)).sum().item() for p in (found, start)]


@pytest.mark.parametrize("seed", range(4))
def test_ppo_finds_the_best_policy_there_is(seed):
    """It starts some 0.2 to 1 nats away and must come within 0.001. A wrong sign or direction of the KL, another estimator in the
    reward, a score on the wrong token, a value behind the end or another temperature in one of the places end elsewhere."""
    found, start = ppo_finds(seed)
    assert start > 0.2
    assert found < 1e-3
