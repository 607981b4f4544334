"""PPO against the exact answer. Where all answers can be written down, the best policy under "score - beta
KL" is known: pi*(answer) = reference(answer) exp(score(answer) / beta) / Z. Here 200 iterations of this
project's PPO, its `rollout` and its `update`, must find it.

Four words and EOS, at most three tokens: 1 + 4 + 4 * 4 * 5 = 85 answers. Policy and critic are tables: one
row of logits, and one value, for each beginning of an answer."""
import statistics
from types import SimpleNamespace

import torch
import torch.nn as nn

from model import GPT, GPTConfig
from train_ppo import Agent, rollout, update

WORDS, EOS, PAD, T, PROMPT = 4, 4, 5, 3, 0
BEGINNINGS = [(), *((i,) for i in range(WORDS)), *((i, j) for i in range(WORDS) for j in range(WORDS))]
OVER = len(BEGINNINGS)  # the row of the table for everything behind an answer's end
NUMBER = {beginning: i for i, beginning in enumerate(BEGINNINGS)}
NEXT = [[NUMBER.get((*b, w), OVER) for w in range(WORDS)] + [OVER, OVER] for b in BEGINNINGS]
NEXT = torch.tensor([*NEXT, [OVER] * (WORDS + 2)])  # row and token -> row
WHOLE = [b for b in BEGINNINGS if len(b) == T - 1]
ANSWERS = [(*b, EOS) for b in BEGINNINGS] + [(*b, w) for b in WHOLE for w in range(WORDS)]
ENC = SimpleNamespace(n_vocab=WORDS + 4, eot_token=EOS, encode_single_token={"<|pad|>": PAD}.get, decode=str)
CONFIG = SimpleNamespace(
    max_new_tokens=T, temperature=0.8, score_scale="sft", eos_penalty=0, gamma=1.0, lam=0.95,
    whiten_advantages=True, ppo_epochs=2, minibatch_size=256, micro_batch_size=256, clip=0.2, value_clip=0,
    ptx_coef=0, clip_grad=0)
BETA = 0.75


def table_model(values):
    """A "GPT" whose hidden state is the row of a table for the answer so far. Its prompt is one token;
    padding is impossible."""
    model = GPT(GPTConfig(6, block_size=8, n_layer=1, n_head=1, n_embd=2))
    for p in model.parameters():
        p.requires_grad_(False)
    model.table = nn.Parameter(values.clone())
    model.lm_head, model.value_head = nn.Identity(), nn.Identity()

    def hidden(tokens, caches=None, positions=None, read=...):
        rows = torch.zeros_like(tokens)
        later = positions is not None and positions[0, 0] > 0
        goes_on = caches and later  # a token behind what was there; else the prompt is first
        for t in range(0 if goes_on else 1, tokens.shape[1]):
            before = caches[0][0][:, 0, 0, 0].long() if goes_on else rows[:, t - 1]
            rows[:, t] = NEXT[before, tokens[:, t]]
        if caches:  # the row where an answer is stands in place of its first key
            caches[0][0][:, 0, 0, 0] = rows[:, -1].float()
        return model.table[rows][read]

    model.hidden = hidden
    return model


def answer_logprobs(table):
    """log-probability of each of the 85 answers, by multiplying out."""
    logp = torch.log_softmax(table / CONFIG.temperature, -1)
    return torch.stack([sum(logp[NUMBER[a[:t]], a[t]] for t in range(len(a))) for a in ANSWERS])


class Scores:
    """In place of a reward model: a table, one score for each answer."""

    models, mean, std = [], 0.0, 1.0

    def __init__(self, score_of):
        self.score_of = score_of

    def raw(self, tokens, lengths, prompts, texts):
        return torch.tensor([self.score_of[text] for text in texts])


def ppo_finds(instance, iterations=200, B=512):
    """Run PPO on a random reference and random scores, the same ones for the same number. Returns
    KL(pi, pi*), in nats, and KL(reference, pi*)."""
    generator = torch.Generator().manual_seed(instance)
    logits = 0.7 * torch.randn(OVER + 1, 6, generator=generator)
    logits[:, PAD] = -1e9
    scores = torch.randn(len(ANSWERS), generator=generator)
    texts = [ENC.decode([i for i in answer if i != EOS]) for answer in ANSWERS]
    scorer = Scores(dict(zip(texts, scores.tolist(), strict=True)))
    reference, policy = table_model(logits), table_model(logits)
    agent = Agent(policy, table_model(torch.randn(OVER + 1, 1)))
    tables = [policy.table, agent.critic.table]
    optimizer = torch.optim.Adam(tables, lr=0.1, eps=1e-5)
    for step in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / iterations)
        batch = rollout(agent, reference, scorer, ENC, [""] * B, [[PROMPT]] * B, CONFIG, BETA)
        update(agent, optimizer, batch, CONFIG)
    with torch.no_grad():
        found, start = answer_logprobs(policy.table), answer_logprobs(reference.table)
    best = torch.log_softmax(start + scores / BETA, 0)
    return [(p.exp() * (p - best)).sum().item() for p in (found, start)]


def test_ppo_finds_the_best_policy_there_is():
    """It starts some 0.3 to 1 nats away and must come within 0.001 in two of three runs, on instances where a
    right one ends at 0.00003 or so, and 0.0006 at the worst of seventy runs. A wrong sign or direction of
    the KL, another estimator in the reward, a score on the wrong token, a value behind the end or another
    temperature in one of the places end elsewhere."""
    runs = [ppo_finds(instance) for instance in (0, 2)]
    if max(found for found, _ in runs) >= 1e-3:
        runs.append(ppo_finds(6))
    assert min(start for _, start in runs) > 0.2
    found = [found for found, _ in runs]
    assert statistics.median(found) < 1e-3, f"KL to the best policy, run by run: {found}"
