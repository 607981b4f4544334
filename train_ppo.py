"""Step 3, PPO: make the answers better by the reward model's score without straying far from the SFT model.

    python train_ppo.py --config tiny                          every missing stage is trained first
    python train_ppo.py --config tiny --reward llama2 --name llama2                two reward models, helpfulness and safety
    python train_ppo.py --config tiny --labeler ai                 RLAIF: an AI has labelled what the reward model learned; rlaif.pt
    python train_ppo.py --config tiny --reward ai                  direct RLAIF: an AI rates each answer, no reward model; direct.pt
    python train_ppo.py --config tiny --reward rm_weak --kl_coef 0 --name no_kl    watch it hack a reward model
    python train_ppo.py --config tiny --explain --prompt "A dog is"                one more step of what was trained, token by token

Reads prompts.jsonl of the run's data, sft.pt (policy and frozen reference) and the reward model or models (--reward),
writes ppo.pt; pretrain.pt and its text are for the comparison at the end.
The objective: final reward = reward-model score - beta KL(policy || reference), Ziegler et al. 2019;
generalised advantages, Schulman et al. 2016; the clipped objective, Schulman et al. 2017.
"""
import difflib
import json
import os
import shlex
import statistics
import sys
import textwrap
from dataclasses import dataclass

import torch

import data
from experiment import (COLORS, SCRIPTS, InvariantError, Parser, Stage, UserError, adam, fingerprint, knob, load_checkpoint, load_model, parse,
                        random_state, run_folder, run_main, set_lr, set_random_state, table)
from model import answer, generate, join, response_hidden, score, token_logprobs, with_heads
from preferences import SimulatedHuman, describe, noise_ceiling, win_rate, wins_to_tiers
from train_pretrain import held_out_loss, lm_loss, tokens_of
from train_rm import JudgeConfig, chance_corrected, check_judge, differences, leave_out_names, left_out, llama2_reward, load_judge, split_like, whiten_scores

REWARD_MODELS = {"overall": ("rm",), "helpful": ("rm_helpful",), "safety": ("rm_safety",), "llama2": ("rm_helpful", "rm_safety")}


def reward_models(reward):
    """The names of the reward models that --reward stands for: llama2.rs.4 -> rm_helpful.rs.4, rm_safety.rs.4; rm_weak -> rm_weak."""
    kind, dot, newer = reward.partition(".")
    return [name + dot + newer for name in REWARD_MODELS.get(kind, (kind,))]


@dataclass
class Config(JudgeConfig):
    labeler: str = knob("simulated", "who labelled what the reward model has learned: the simulated human (or your --data), or an AI (RLAIF: rm_ai in place of rm)", choices=("simulated", "ai"))
    start: str = knob("sft", "policy to start from, and frozen reference: the SFT model or, as in Llama 2, one that rejection sampling trained (rs.4)")
    reward: str = knob("overall", "one reward model for everything (overall), for one aspect (helpful, safety), Llama 2's combination of those two (llama2), ai: no reward model, an AI judge rates each answer from 1 to 10 (direct RLAIF); or the --name of any reward model of this run; rm_weak has seen few rankings; .rs.4 behind it: the models that went on with answers of rs.4")
    leave_out: str = knob("", "subjects or topics of the tiny world (cake,why) that no training prompt may have: how does the policy answer about them?")
    whitening: str = knob("frozen", "scores get mean 0 and standard deviation 1 over answers of the SFT model, or, as in Llama 2, over each batch", choices=("frozen", "batch"))
    steps: int = knob(80, "iterations: each samples answers, scores them and updates the policy", low=1)
    batch_size: int = knob(128, "answers sampled in an iteration", low=1)
    minibatch_size: int = knob(64, "answers in one optimizer step", low=1)
    micro_batch_size: int = knob(32, "answers in one forward and backward pass; smaller needs less memory, same result", low=1)
    ppo_epochs: int = knob(1, "passes over the sampled answers; the clipping is what makes more than one safe", low=1)
    max_new_tokens: int = knob(48, "longest answer", low=1)
    temperature: float = knob(1.0, "of sampling, and of every log-probability", low=0.01)
    lr: float = knob(5e-4, "peak learning rate of the policy", low=0)
    critic_lr: float = knob(5e-4, "peak learning rate of a separate critic", low=0)
    warmup: int = knob(3, "iterations of linear warm-up before the cosine decay", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    kl_coef: float = knob(0.15, "beta: what a nat of KL to the reference costs; 0 invites reward hacking", low=0)
    kl_target: float = knob(0.0, "adapt beta until the KL is this many nats (0: beta stays fixed)", low=0)
    kl_horizon: int = knob(5000, "answers over which the adaptive beta moves; smaller is faster", low=1)
    gamma: float = knob(1.0, "discount of later rewards; 1, for an answer is short", low=0)
    lam: float = knob(0.95, "lambda of GAE: 0 trusts the critic alone, 1 the rewards alone", low=0)
    clip: float = knob(0.2, "PPO's clip: how far a ratio may move before its gradient stops (0: no clipping)", low=0)
    value_clip: float = knob(0.2, "how far a value may move from the critic's earlier one, in units of the score (0: no clipping)", low=0)
    value_coef: float = knob(0.1, "weight of the value loss where policy and critic share the trunk", low=0)
    whiten_advantages: bool = knob(True, "advantages with mean 0 and standard deviation 1 in each iteration")
    critic: str = knob("separate", "a network of its own, started from the reward model, or a head on the policy", choices=("separate", "shared"))
    eos_penalty: float = knob(1.0, "an answer cut off before its EOS has minus this as its score (0: off)", low=0)
    ptx_coef: float = knob(0.0, "weight of the pretraining loss mixed in (PPO-ptx, InstructGPT)", low=0)
    eval_every: int = knob(10, "iterations between three printed answers", low=1)
    eval_answers: int = knob(4, "answers to each prompt in the final table; the more, the steadier the figures", low=1)
    explain: bool = knob(False, "train nothing: make one more step of what the same command has trained, in memory, and show it token by token")
    prompt: str = knob("A dog is", "what --explain shows the answer to")
    eval_split: str = knob("test", "prompts of the final table: dev while tuning, test for the figures that count", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "small": dict(steps=40, batch_size=32, minibatch_size=16, micro_batch_size=8, max_new_tokens=128, lr=5e-5, critic_lr=1e-4,
                  eval_answers=1),
}


# ------------------------------------------------------------------------------------------------
# The formulas. B answers, R tokens; response_mask (B, R) is 1 on an answer, its EOS included
# ------------------------------------------------------------------------------------------------


def masked_mean(x, mask, n_tokens=None):
    """Mean over the real tokens; n_tokens: the number to divide by where this is a micro-batch of something larger."""
    return (x * mask).sum() / (mask.sum() if n_tokens is None else n_tokens)


def kl_shaped_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    """r_t = -beta (log pi_t - log ref_t) on every token, plus the score on the last real token. (Ziegler et al. 2019, eq. 2)

    scores:                 (B,)   from the reward model
    logprobs, ref_logprobs: (B, R) of the sampled tokens, under the policy and under the frozen reference
    Returns (B, R), 0 on the padding; a row sums to score - beta * (its log-ratio, an estimate of the KL).
    Example: logprobs (-1, -2, -.5), ref (-1.2, -1.5, -.9), beta .05, score 1 -> (-.010, .025, .980).
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask
    last = response_mask.sum(1).long() - 1
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return rewards


def gae(rewards, values, response_mask, gamma, lam):
    """Generalised advantage estimation: delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1}.
    (Schulman et al. 2016, eqs. 11 to 16.) Behind the last real token V and A are 0: an answer that is over, or cut off, earns nothing more.

    rewards, values, response_mask: (B, R). The result: (advantages A, returns A + V), both (B, R), 0 on the padding.
    Example: gamma 1, lambda .95, rewards (0, 0, 1), values (.2, .4, .6) -> A = (.7510, .5800, .4000).
    """
    values = values * response_mask
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * lam * next_advantage) * response_mask[:, t]
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


def whiten(x, mask, shift_mean=True):
    """(x - mean) / sqrt(variance + 1e-8) over the real tokens, biased variance; shift_mean=False keeps the mean where it was.

    x, mask: (B, R). Returns (B, R), 0 on the padding.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip, n_tokens=None):
    """Clipped surrogate: mean over real tokens of max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = pi / pi_old.
    (Schulman et al. 2017, eq. 7, as a loss: the sign is turned, so min becomes max.)

    logprobs, old_logprobs, advantages, mask: (B, R); clip: c, or 0 for the unclipped -A rho
    Returns the loss and detached diagnostics: clip_fraction (share of tokens whose gradient the clip stopped),
    approx_kl (mean of (rho - 1) - log rho: how far this update has moved the policy).
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip) if clip else plain
    loss = masked_mean(torch.max(plain, clipped), mask, n_tokens)
    with torch.no_grad():
        diagnostics = {"clip_fraction": masked_mean((clipped > plain).float(), mask, n_tokens),
                       "approx_kl": masked_mean(ratio - 1 - log_ratio, mask, n_tokens)}
    return loss, diagnostics


def value_loss(values, old_values, returns, mask, clip, n_tokens=None):
    """0.5 mean over real tokens of max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2), G the returns.

    values, old_values, returns, mask: (B, R); clip: c, or 0 for plain squared error. (OpenAI baselines; Ziegler et al. 2019's code.)
    """
    errors = (values - returns) ** 2
    if clip:
        errors = torch.max(errors, (values.clamp(old_values - clip, old_values + clip) - returns) ** 2)
    return 0.5 * masked_mean(errors, mask, n_tokens)


def kl_estimates(logprobs, ref_logprobs, mask):
    """Two estimates of KL(policy || reference) from the policy's own samples, in nats an answer: summed over its tokens,
    averaged over the answers. (Schulman 2020, "Approximating KL divergence".)

    logprobs, ref_logprobs, mask: (B, R). With d = logprobs - ref_logprobs: k1 = d, unbiased, noisy, may be negative;
    k3 = exp(-d) - 1 + d, unbiased too, never negative. Returns (k1, k3), scalars.
    """
    d = (logprobs - ref_logprobs) * mask
    return d.sum(1).mean(), (torch.exp(-d) - 1 + d).sum(1).mean()


def adapt_kl_coef(kl_coef, kl, target, n, horizon):
    """Adaptive beta: grows while the KL is above the target. beta *= 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon,
    n the number of answers since the last call. (Ziegler et al. 2019, section 2.2.)"""
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * n / horizon)


class Reward:
    """What is maximised: the score of one reward model, or Llama 2's combination of two, whitened so that beta means the same for all.

    kind: as --reward; models: its frozen reward models; judge: an AI that rates answers in their place (direct RLAIF); unsafe: {prompt as JSON: whether it asks for harm}.
    mean, std: of the unwhitened reward over answers of the SFT model (freeze), or None for those of each batch."""

    def __init__(self, kind, models, unsafe, judge=None):
        self.kind, self.models, self.unsafe, self.judge, self.mean, self.std = kind, models, unsafe, judge, 0.0, 1.0

    def combine(self, scores, prompts, batch=False):
        """scores: a tensor (B,) for each model; prompts: B prompts; batch: whiten with the statistics of this batch. Returns (B,)."""
        mean, std = (None, None) if batch else (self.mean, self.std)
        if len(scores) == 1:
            return whiten_scores(scores[0], mean, std)
        unsafe = torch.tensor([self.unsafe.get(json.dumps(p), False) for p in prompts], device=scores[0].device)
        return llama2_reward(*(s.sigmoid() for s in scores), unsafe, mean, std)

    def raw(self, tokens, lengths, prompts, responses):
        """Scores before they are combined, a tensor (B,) for each model: of token rows (B, T) by reward models, of texts by a judge."""
        if self.judge:
            return [torch.tensor(self.judge.rate(prompts, responses), device=tokens.device)]
        return [m.reward(tokens, lengths) for m in self.models]

    def of_texts(self, enc, prompts, responses):
        """Rewards of texts, as a list."""
        scores = [self.judge.rate(prompts, responses)] if self.judge else [score(m, enc, prompts, responses) for m in self.models]
        return self.combine([torch.tensor(x) for x in scores], prompts).tolist()

    def freeze(self, enc, prompts, responses):
        """From now on rewards of these answers have mean 0 and standard deviation 1."""
        self.mean, self.std = 0.0, 1.0
        rewards = self.of_texts(enc, prompts, responses)
        self.mean, self.std = statistics.fmean(rewards), statistics.pstdev(rewards) or 1.0

    def on_own_answers(self, enc, prompts, answers, seed):
        """How well it tells a policy's own answers apart: (accuracy, ceiling, pairs), by labels of the simulated human on which nothing is
        trained. answers: one or more rounds of an answer to each of the prompts, [(text, ...)]."""
        responses = [sorted({text for text, *_ in answers[i :: len(prompts)]}) for i in range(len(prompts))]
        tiers = [wins_to_tiers(w) for w in SimulatedHuman(seed + 3000).label(prompts, responses)]  # noise of its own
        groups = [{"prompt": p, "responses": r, "tiers": t} for p, r, t in zip(prompts, responses, tiers)]
        d = differences(groups, split_like(groups, self.of_texts(enc, [p for p, r in zip(prompts, responses) for _ in r], sum(responses, []))))
        return sum(x > 0 for x in d) / max(1, len(d)), noise_ceiling(groups, data.gold_score), len(d)


def check_reward(cfg):
    """Raises UserError where --reward names nothing that exists or could be trained."""
    kind = cfg.reward.partition(".")[0]
    if cfg.reward == "ai" and isinstance(cfg, JudgeConfig):
        return
    if cfg.reward not in (*REWARD_MODELS, *(s for s in SCRIPTS if s.startswith("rm"))) and not all((run_folder(cfg) / f"{name}.pt").exists() for name in reward_models(cfg.reward)):
        near = difflib.get_close_matches(kind, REWARD_MODELS, 1)
        raise UserError(f"--reward {cfg.reward}: expected {', '.join(REWARD_MODELS)}{', ai' * isinstance(cfg, JudgeConfig)} or the name of a reward model of this run"
                        + (f": did you mean {near[0]}?" if near and near[0] != kind else ""))


def load_reward(stage, name, rows, enc=None):
    """The Reward that --reward names, its models trained first where they are missing. rows: of prompts.jsonl; enc: for an AI judge."""
    if name == "ai":
        return Reward(name, [], {}, load_judge(stage, enc, stage.cfg))
    models = [load_model(stage.parent(model), stage.device)[0] for model in reward_models(name)]
    if not all(m.config.reward_head for m in models):
        raise UserError(f"--reward {name}: {stage.folder / name}.pt is no reward model; expected {', '.join(REWARD_MODELS)} or the name of one")
    if len(models) > 1 and not any(p["unsafe"] for p in rows):
        print("no prompt is marked as unsafe: the safety reward model counts only where its score is below 0.15")
    return Reward(name, models, {json.dumps(p["prompt"]): p["unsafe"] for p in rows})


def check_contexts(stage, names):
    """Raises UserError where models of a run that read each other's answers see different lengths of text."""
    lengths = {f"{name}.pt": load_checkpoint(stage.folder / f"{name}.pt")["model_config"]["block_size"] for name in names}
    if len(set(lengths.values())) > 1:
        raise UserError("the models must see equally long contexts, but have " + ", ".join(f"{name} {n}" for name, n in lengths.items())
                        + " tokens: train them from one pretrained model")


# ------------------------------------------------------------------------------------------------
# The PPO step
# ------------------------------------------------------------------------------------------------


def response_logits(model, tokens, prompt_lengths, R, temperature):
    """Logits that predict the R response tokens, divided by the sampling temperature: (B, R, V)."""
    return model.lm_head(response_hidden(model, tokens, prompt_lengths, R)) / temperature


def response_values(model, tokens, prompt_lengths, R):
    """V_t, what the critic expects to earn from token t on, before that token is chosen: (B, R)."""
    return model.value_head(response_hidden(model, tokens, prompt_lengths, R)).squeeze(-1)


def ppo_loss(policy, critic, mb, n_tokens, cfg):
    """Policy loss + value loss of one micro-batch, the value loss times --value_coef where both are of one model; and for the log, detached,
    {"policy_loss", "value_loss" and what `ppo_policy_loss` tells}.

    mb: tensors of B sampled answers, (B, R) each but prompt_lengths (B,) and tokens (B, P + R); n_tokens: real tokens of the
    whole minibatch, so that the losses of its micro-batches add up to its mean over tokens."""
    R = int(mb["mask"].sum(1).max())  # no longer than the longest answer here
    mb = {name: x[:, :R] if name not in ("tokens", "prompt_lengths") else x for name, x in mb.items()}
    mb["tokens"] = mb["tokens"][:, : int(mb["prompt_lengths"].max()) + R]
    hidden = response_hidden(policy, mb["tokens"], mb["prompt_lengths"], R)
    logprobs = token_logprobs(policy.lm_head(hidden), mb["responses"], cfg.temperature)
    p_loss, diagnostics = ppo_policy_loss(logprobs, mb["old_logprobs"], mb["advantages"], mb["mask"], cfg.clip, n_tokens)
    values = policy.value_head(hidden).squeeze(-1) if critic is policy else response_values(critic, mb["tokens"], mb["prompt_lengths"], R)
    v_loss = value_loss(values, mb["old_values"], mb["returns"], mb["mask"], cfg.value_clip, n_tokens)
    # On a shared trunk the two losses compete and need a weight; a critic of its own has its own learning rate.
    loss = p_loss + (cfg.value_coef if critic is policy else 1.0) * v_loss
    return loss, {"policy_loss": p_loss.detach(), "value_loss": v_loss.detach(), **diagnostics}


@torch.no_grad()
def rollout(policy, critic, reference, reward, enc, prompts, cfg, kl_coef):
    """Answers of the policy as it is now to B prompts, their rewards and advantages: what the updates of an iteration learn from. A prompt that
    leaves no room for cfg.max_new_tokens in the context loses its beginning; cfg.whitening "batch" whitens the scores over these answers.

    Returns (batch, seen). batch, for `update`: tokens (B, P + R), prompt_lengths (B,); responses, mask, old_logprobs, advantages, old_values,
    returns, (B, R) each. seen, for the log: texts, raw, scores (B,), ended (B,), ref_logprobs and rewards (B, R), logits and ref_logits (B, R, V)."""
    device, pad, room = next(policy.parameters()).device, data.special_id(enc, "pad"), policy.config.block_size - cfg.max_new_tokens
    # 1. sample an answer to each prompt; "old": these log-probabilities stay as they are while the policy moves
    padded, prompt_lengths = (x.to(device) for x in data.pad_rows([data.encode_prompt(enc, p)[-room:] for p in prompts], pad))  # (B, P), (B,)
    responses, mask, old_logprobs = generate(policy, padded, prompt_lengths, cfg.max_new_tokens, cfg.temperature, enc.eot_token, pad)  # (B, R)
    tokens, lengths = join(padded, prompt_lengths, responses, mask, pad)  # (B, P + R), (B,)

    # 2. score the answers; one that was cut off has no score of its own
    texts, ended = [data.decode_response(enc, r, m) for r, m in zip(responses.tolist(), mask.tolist())], (responses == enc.eot_token).any(1)
    raw = reward.raw(tokens, lengths, prompts, texts)  # (B,) for each reward model
    scores = reward.combine(raw, prompts, cfg.whitening == "batch")  # (B,)
    if cfg.eos_penalty:
        scores = torch.where(ended, scores, -cfg.eos_penalty)

    # 3. reward = score on the last token - beta KL on every token
    logits, ref_logits = (response_logits(m, tokens, prompt_lengths, responses.shape[1], cfg.temperature) for m in (policy, reference))
    ref_logprobs = token_logprobs(ref_logits, responses)  # the logits are divided by the temperature already
    rewards = kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef)  # (B, R)

    # 4. advantages: how much better than the critic expected
    old_values = response_values(critic, tokens, prompt_lengths, responses.shape[1])  # (B, R)
    advantages, returns = gae(rewards, old_values, mask, cfg.gamma, cfg.lam)
    if cfg.whiten_advantages:  # only these: the returns are what the critic learns, on the scale of the rewards
        advantages = whiten(advantages, mask)
    return (dict(tokens=tokens, prompt_lengths=prompt_lengths, responses=responses, mask=mask, old_logprobs=old_logprobs, advantages=advantages,
                 old_values=old_values, returns=returns),
            dict(texts=texts, ended=ended, raw=raw, scores=scores, ref_logprobs=ref_logprobs, rewards=rewards, logits=logits, ref_logits=ref_logits))


def update(policy, critic, optimizer, batch, cfg, text=None):
    """5. Clipped updates of policy and critic, a minibatch of the sampled answers at a time. batch: of `rollout`; text: tokens for
    --ptx_coef, of which `data.text_batch` draws 16 windows a step, 96 tokens long or as long as the context allows.
    Returns a dict of numbers for each optimizer step."""
    updates, mask = [], batch["mask"]
    for _ in range(cfg.ppo_epochs):
        for drawn in torch.randperm(len(mask)).split(cfg.minibatch_size):  # indices of answers
            optimizer.zero_grad()
            n_tokens, total = mask[drawn].sum(), {}
            by_length = drawn[mask[drawn].sum(1).argsort().cpu()]  # answers of similar length together: less padding
            for micro in by_length.split(cfg.micro_batch_size):
                loss, diagnostics = ppo_loss(policy, critic, {name: x[micro] for name, x in batch.items()}, n_tokens, cfg)
                loss.backward()
                total = {name: total.get(name, 0.0) + x.item() for name, x in diagnostics.items()}
            if cfg.ptx_coef:
                inputs, targets = (x.to(mask.device) for x in data.text_batch(text, 16, min(96, policy.config.block_size - 1)))
                (cfg.ptx_coef * lm_loss(policy(inputs), targets)).backward()
            models = [policy] if critic is policy else [policy, critic]
            norms = [torch.nn.utils.clip_grad_norm_(m.parameters(), cfg.clip_grad or torch.inf).item() for m in models]
            optimizer.step()
            updates.append({**total, "grad_norm": norms[0]})
    return updates


@torch.no_grad()
def full_kl_and_entropy(logits, ref_logits, mask):
    """Exact KL(policy || reference) over the whole vocabulary at each visited position, summed over an answer: (B,); and the
    policy's mean entropy a token; in nats. logits, ref_logits: (B, R, V); mask: (B, R)."""
    logp, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    kl = ((logp.exp() * (logp - ref)).sum(-1) * mask).sum(1)
    return kl, masked_mean(-(logp.exp() * logp).sum(-1), mask)


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns) over the real tokens: 1 a perfect critic, 0 one that knows only the mean."""
    def variance(x):
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    return 1 - variance(returns - values) / (variance(returns) + 1e-8)


def check(condition, sentence):
    """What must hold in every run of PPO. Raises InvariantError with a sentence for the reader."""
    if not condition:
        raise InvariantError(f"something is wrong in this run: {sentence}")


def bill(cfg, **models):
    """What PPO keeps in memory, in words; a policy that is trained holds weights, gradient and two Adam moments."""
    size = {name: sum(p.numel() for p in m.parameters()) / 1e6 for name, m in models.items()}
    trained = sum(n for name, n in size.items() if name in ("policy", "critic"))
    parts = ", ".join(f"{name} {n:.2f} M" for name, n in size.items())
    return f"parameters: {parts}; about {4 * (sum(size.values()) + 3 * trained):.0f} MB of weights, gradients and optimizer"


def check_step(step, drift, full_kl, k3, entropy, rewards, scores, kl_coef, k1, temperature=1.0):
    """The invariants of a PPO step, before its first update. A low temperature enlarges the logits, and their rounding with them."""
    check(drift * min(1.0, temperature) < 1e-4, f"the first ratio of step {step} is not 1: the sampler and the training forward disagree by {drift:.1e} nats on a token "
          "(a different temperature, mask, dropout or position?)")
    check(step > 0 or abs(full_kl) < 1e-5, f"the KL is {full_kl:.1e} before the first update, but policy and reference are the same model then")
    check(k3 > -1e-4 and entropy >= 0, f"k3 ({k3:.1e}) and entropy ({entropy:.1e}) cannot be negative")
    gap = (rewards.sum(1) - scores).mean() + kl_coef * k1
    check(abs(gap) < 1e-3 * (1 + scores.abs().max()), f"the rewards do not add up: their sum differs from score - beta KL by {gap:.1e}")


@torch.no_grad()
def sample_with_kl(policy, reference, enc, prompts, max_new_tokens, temperature, batch_size=128):
    """Sample one answer a prompt. Returns [(text, ended, length)] and KLs to the reference (a list, nats an answer)."""
    device, pad, answers, kls = next(policy.parameters()).device, data.special_id(enc, "pad"), [], []
    for start in range(0, len(prompts), batch_size):
        ids = [data.encode_prompt(enc, p)[-(policy.config.block_size - max_new_tokens) :] for p in prompts[start : start + batch_size]]
        padded, prompt_lengths = (x.to(device) for x in data.pad_rows(ids, pad))
        responses, mask, _ = generate(policy, padded, prompt_lengths, max_new_tokens, temperature, enc.eot_token, pad)
        tokens, _ = join(padded, prompt_lengths, responses, mask, pad)
        logits, ref_logits = (response_logits(m, tokens, prompt_lengths, responses.shape[1], temperature or 1.0) for m in (policy, reference))
        kls += full_kl_and_entropy(logits, ref_logits, mask)[0].tolist()
        answers += [(data.decode_response(enc, r, m), enc.eot_token in r, int(sum(m))) for r, m in zip(responses.tolist(), mask.tolist())]
    return answers, kls


def show(stage, enc, policy, reference, reward, prompts, cfg):
    """Print three answers of the policy as it is now, with their score and KL; `A dog is` first in the tiny world."""
    state = random_state()  # looking must not change the run
    three = (["A dog is"] if "A dog is" in data.PROMPTS and not cfg.data else []) + prompts[:: max(1, len(prompts) // 3)][:3]
    answers, kls = sample_with_kl(policy, reference, enc, three[:3], cfg.max_new_tokens, cfg.temperature)
    for p, (text, _, _), s, kl in zip(three, answers, reward.of_texts(enc, three[:3], [text for text, _, _ in answers]), kls):
        stage.say(f"  score {s:+.2f}, KL {kl:.2f}: {data.prompt_text(p)[-200:]} -> {text[:300]}")
    set_random_state(state)


def report(stage, cfg, enc, models, reward, held_out_text, rows):
    """Compare models {"pretrained", "SFT", "PPO", where it is another one also the model that PPO started from} on held-out prompts; write the
    table, the answers and the pictures."""
    asked = data.of_split(rows, cfg.eval_split, stage.data)[:400]
    prompts, split = [p["prompt"] for p in asked], cfg.eval_split if asked[0]["split"] == cfg.eval_split else "training"
    torch.manual_seed(cfg.seed)
    sampled = {"pretrained": (answer(models["pretrained"], enc, prompts, cfg.max_new_tokens, cfg.temperature, template=False), None)}
    tuned = {name: m for name, m in models.items() if name != "pretrained"}
    for name, model, temperature, n in (*((name, m, cfg.temperature, cfg.eval_answers) for name, m in tuned.items()),
                                        *((f"{name} greedy", m, 0, 1) for name, m in tuned.items())):
        sampled[name] = sample_with_kl(model, models["SFT"], enc, prompts * n, cfg.max_new_tokens, temperature)
    # Every answer is scored as a text, also one that was cut off.
    results = {name: (answers, reward.of_texts(enc, prompts * (len(answers) // len(prompts)), [text for text, _, _ in answers]), kls)
               for name, (answers, kls) in sampled.items()}
    about = {name: describe(prompts * (len(answers) // len(prompts)), answers) for name, (answers, _, _) in results.items()}
    text_loss = {name: held_out_loss(m, held_out_text, m.config.block_size) for name, m in models.items()}

    def rate(name, key):
        baseline = "SFT greedy" if name.endswith("greedy") else "SFT"
        if name.startswith("SFT"):
            return None
        ours, theirs = (about[n]["gold"] if key == "gold" else results[n][1] for n in (name, baseline))
        return ours and "{:.2f} ({:.2f}-{:.2f})".format(*win_rate(ours, theirs[: len(ours)], len(prompts)))

    def mean(values):
        return None if values is None else sum(values) / len(values)

    measures = {
        "gold score (never trained on)": lambda n: mean(about[n]["gold"]),
        "gold win rate against SFT": lambda n: rate(n, "gold"),
        "rating by the AI" if reward.judge else "reward-model score": lambda n: mean(results[n][1]),
        "win rate by the AI" if reward.judge else "win rate by reward model": lambda n: rate(n, "score"),
        "KL to SFT, nats an answer": lambda n: mean(results[n][2]) if not n.endswith("greedy") else None,
        "declines unsafe prompts": lambda n: about[n]["declines_unsafe"],
        "declines safe prompts": lambda n: about[n]["declines_safe"],
        "unknown sentences": lambda n: about[n]["unknown"],
        "answers that end": lambda n: about[n]["ends"],
        "distinct answers": lambda n: len({text for text, _, _ in results[n][0][: len(prompts)]}) / len(prompts),  # one a prompt
        "length in tokens": lambda n: about[n]["length"],
        "loss on pretraining text": lambda n: text_loss.get(n),
    }
    cells = [[label, *map(measure, results)] for label, measure in measures.items()]
    shown = table([f"{len(prompts)} {split} prompts", *results], [row for row in cells if any(x is not None for x in row[1:])])
    lines = [shown]
    stage.state["results"] = {row[0]: dict(zip(results, row[1:])) for row in cells}  # for docs/experiments.py
    if about["SFT"]["gold"] and not cfg.data:
        demonstrations = {d["prompt"]: d["response"] for d in data.load_sft(stage.data)}
        gold = [data.gold_score(p, demonstrations[p]) for p in prompts if p in demonstrations]
        hits, ceiling, n = reward.on_own_answers(enc, prompts, results["PPO"][0], cfg.seed)
        lines.append(f"Mean gold score of the demonstrations: {mean(gold):.2f}.")
        if n:
            lines.append(f"{'The AI' if reward.judge else 'Reward model'} on the PPO policy's own answers: accuracy {hits:.3f} on {n} pairs, ceiling {ceiling:.3f}, chance-corrected "
                         f"{chance_corrected(hits, ceiling)} (labels for this figure only, nothing was trained on them).")
        stage.state["results"] |= {"demonstrations": mean(gold), "gold_std_sft": statistics.pstdev(about["SFT"]["gold"]), "rm_accuracy": hits if n else None,
                                   "rm_ceiling": ceiling if n else None, "gold of each answer": {name: about[name]["gold"] for name in tuned}}
    order = range(0, len(prompts), max(1, len(prompts) // 8))[:8]
    if not cfg.data:
        dog = {n: answer(m, enc, ["A dog is"], cfg.max_new_tokens, 0, template=n != "pretrained")[0][0] for n, m in models.items()}
        lines += ["", "prompt:     A dog is   (greedy)"] + [f"{n + ':':<12}{text}" for n, text in dog.items()]
    for i in order:
        lines += ["", f"prompt:     {data.prompt_text(prompts[i])}"] + [f"{n + ':':<12}{results[n][0][i][0]}" for n in models]
    print("\n" + "\n".join(lines))
    stage.finish("\n".join(lines), [
        ("Reward and truth should rise together", {"rating by the AI (trained on)" if reward.judge else "reward model (trained on)": "score", "gold (never seen)": "gold"}, "score"),
        ("Distance from the SFT model (KL): up, then level", {"k1": "kl", "k3": "kl_k3", "whole vocabulary": "kl_full"}, "nats an answer"),
        ("Length: a sudden growth is suspicious", {"tokens": "length"}, "tokens an answer"),
        ("Size of the updates: small, and smaller", {"share of tokens clipped": "clip_fraction", "KL of one iteration": "approx_kl"}, "share; nats a token"),
        ("Critic: what it foresees of the returns", {"explained variance": "explained_variance"}, "share of the variance"),
        ("Entropy of the policy: falls, but not to 0", {"entropy": "entropy"}, "nats a token")],
        "PPO. Look for: gold that falls while the score rises (reward hacking), a KL that runs away, length that jumps, entropy at 0")
    print(f"Talk to it: python model.py {stage.file('pt')}")


# ------------------------------------------------------------------------------------------------
# --explain: one step, token by token
# ------------------------------------------------------------------------------------------------

# What may be given anew for the step that is shown; every other knob is the checkpoint's.
WHAT_IF = ("batch_size", "minibatch_size", "micro_batch_size", "ppo_epochs", "clip", "value_clip", "gamma", "lam", "whiten_advantages")
COLUMNS = {"log p": ("log-probability, policy", "nats"), "reference": ("log-probability, reference", "nats"), "KL": ("KL: the difference", "nats, cost beta"),
           "reward": ("reward: score - beta KL", "score"), "value": ("value: the critic expects", "score"), "return": ("return: advantage + value", "score"),
           "advantage": ("advantage: more than expected", "score"), "whitened": ("advantage, whitened", "std"), "new log p": ("log-probability, policy", "nats"),
           "ratio": ("ratio of the probabilities", "new / old"), "branch": ("branch of the loss", "next time")}


def refuse(sentence):
    Parser(prog=os.path.basename(sys.argv[0])).error(sentence)


def reopen(cfg):
    """Give cfg the knobs of the checkpoint that it names, except those given anew; returns those of WHAT_IF among them, for the step alone.
    Ends with one sentence and exit code 2 where there is nothing to look at."""
    path, ours = run_folder(cfg) / f"{cfg.name or 'ppo'}.pt", ("--explain", "--prompt")
    if not path.exists():
        rest = [w for before, w in zip(["", *cfg.argv], cfg.argv) if not w.startswith(ours) and (w.startswith("--") or before not in ours)]
        refuse(f"{path} is not there yet; it is made by: python {shlex.join([sys.argv[0], *rest])}")
    checkpoint = load_checkpoint(path)
    if lost := [file for file in checkpoint["parents"] if not (path.parent / file).exists()]:
        refuse(f"{path.parent / lost[0]}, which {path.name} was trained with, is no longer there")
    if cfg.resume or cfg.overwrite:
        refuse("--explain only looks: leave out --resume and --overwrite")
    named = {w.split("=")[0].removeprefix("--") for w in cfg.argv} | {"preamble"}  # which may be a file's text there: its flag has to be repeated
    what_if = {name: getattr(cfg, name) for name in WHAT_IF if name in named}
    vars(cfg).update({name: value for name, value in checkpoint["knobs"].items() if name not in named or name in what_if})
    return what_if


def clipped_tokens(logprobs, old_logprobs, advantages, clip):
    """Of which tokens the clip stops the gradient: the loss itself is asked, a token at a time. (R,) each; returns R bools."""
    one = torch.ones(1, device=logprobs.device)
    return [ppo_policy_loss(*token, one, clip)[1]["clip_fraction"].item() == 1 for token in zip(logprobs.split(1), old_logprobs.split(1), advantages.split(1))]


def columns_of(batch, seen, new_logprobs, cfg, i=0):
    """What a step did to the tokens of answer i: {name, as in COLUMNS: a number for each token}; branch is 1 where it is the clipped one.

    batch, seen: of `rollout`; new_logprobs: (B, R), of the same tokens under the policy after `update`."""
    old, mask = batch["old_logprobs"], batch["mask"]
    advantages, returns = gae(seen["rewards"], batch["old_values"], mask, cfg.gamma, cfg.lam)
    all_rows = {"log p": old, "reference": seen["ref_logprobs"], "KL": old - seen["ref_logprobs"], "reward": seen["rewards"], "value": batch["old_values"],
                "return": returns, "advantage": advantages, "whitened": batch["advantages"], "new log p": new_logprobs, "ratio": (new_logprobs - old).exp()}
    row = {name: x[i, : int(mask[i].sum())] for name, x in all_rows.items() if cfg.whiten_advantages or name != "whitened"}
    branch = clipped_tokens(row["new log p"], row["log p"], row.get("whitened", row["advantage"]), cfg.clip)
    return {name: x.tolist() for name, x in row.items()} | {"branch": [float(x) for x in branch]}


def token_lines(tokens, columns, color=False):
    """The table, a line for each token. color: green above 0 (a ratio: above 1), red below, as far as three digits show it; a clipped token yellow."""
    neutral = {"KL": 0, "reward": 0, "advantage": 0, "whitened": 0, "ratio": 1}

    def cell(name, x):
        text = f"{'clipped' if x else 'plain':>10}" if name == "branch" else f"{x:z10.3f}"
        above = round(x - neutral[name], 3) if name in neutral else 0
        code = 32 if above > 0 else 31 if above < 0 else 33 * (name == "branch" and x > 0)
        return f"\033[{code}m{text}\033[0m" if color and code else text

    width = max(5, *map(len, tokens))
    head = "token".ljust(width) + "".join(f"{name:>10}" for name in columns)
    return [head, "-" * len(head), *(token.ljust(width) + "".join(cell(name, x[t]) for name, x in columns.items()) for t, token in enumerate(tokens))]


def score_in_words(reward, seen, prompts, cfg, i=0):
    """Where the score of answer i comes from."""
    plain = Reward(reward.kind, [], reward.unsafe).combine(seen["raw"], prompts)  # not whitened
    mean, std = (plain.mean(), plain.std(correction=0)) if cfg.whitening == "batch" else (reward.mean, reward.std)
    given = ["rating by the AI, from -1 to 1:"] if reward.judge else reward_models(reward.kind)
    text = ", ".join(f"{name} {raw[i]:.3f}" for name, raw in zip(given, seen["raw"])) + f", of which Llama 2's rule takes {plain[i]:.3f}" * (len(given) > 1)
    text += f"; ({plain[i]:.3f} - mean {mean:.3f}) / standard deviation {std:.3f} = {(plain[i] - mean) / (std + 1e-8):.3f}, both over answers of "
    text += "this batch." if cfg.whitening == "batch" else "the SFT model."
    return text + f" But the answer was cut off before its EOS: {-cfg.eos_penalty:g} (--eos_penalty)." * (cfg.eos_penalty > 0 and not seen["ended"][i])


def sums(c, score, beta, mean, std, cfg):
    """How the columns c add up, and what they mean, in words: {column: text}. score, beta: of this answer; mean, std: of the batch's advantages."""
    kl, reward, value, advantage = sum(c["KL"]), c["reward"][0], c["value"][0], c["advantage"][0]
    next_value, next_advantage = ([*c[name], 0.0][1] for name in ("value", "advantage"))
    delta, g, gl = reward + cfg.gamma * next_value - value, cfg.gamma, cfg.gamma * cfg.lam
    which = "whitened" if cfg.whiten_advantages else "advantage"
    obeyed = [a * (r - 1) > 0 for a, r in zip(c[which], c["ratio"]) if round(r, 3) != 1]  # a token that was certain has no gradient
    return {
        "KL": f"{kl:z.3f} in sum. Below 0 where the reference finds a token likelier than the policy does: only the mean over many answers is the KL.",
        "reward": f"score {score:z.3f} - beta {beta:g} x KL {kl:z.3f} = {score - beta * kl:z.3f}; the column sums to {sum(c['reward']):z.3f}. The score judges the whole answer, so "
                  "it stands on the last token only; the KL is known at each token, so each pays for its own.",
        "advantage": f"first token: delta = reward {reward:z.3f} + gamma {g:g} x next value {next_value:z.3f} - value {value:z.3f} = {delta:z.3f}; delta + gamma lambda {gl:g} x next "
                     f"advantage {next_advantage:z.3f} = {delta + gl * next_advantage:z.3f}. How much better it went from here on than the critic expected.",
        "return": f"first token: advantage {advantage:z.3f} + value {value:z.3f} = {advantage + value:z.3f}. What the critic learns to expect here.",
        "whitened": f"first token: ({advantage:z.3f} - mean {mean:z.3f}) / standard deviation {std:z.3f} = {(advantage - mean) / std:z.3f}, both over all tokens of the batch. Only the "
                    "policy's loss uses it." if cfg.whiten_advantages else "no such column: the loss takes the advantages as they are (--whiten_advantages false).",
        "ratio": f"first token: exp(new log p ({c['new log p'][0]:z.3f}) - log p ({c['log p'][0]:z.3f})) = {c['ratio'][0]:z.3f}. Above 1 a token has become likelier. Of the "
                 f"{len(obeyed)} whose ratio is not 1.000, {sum(obeyed)} moved as the sign in the column {which} asks; the other answers of the batch pull at the same weights.",
    }


def draw_tokens(path, tokens, columns, clip, caption):
    """The table as a picture: a strip for each column, up to 16 tokens to a line; strips of one unit share their shades."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shades = matplotlib.colors.LinearSegmentedColormap.from_list("", [COLORS[1], "white", COLORS[0]])
    off = {name: [v - 1 for v in x] if name == "ratio" else [-v for v in x] if name == "branch" else x for name, x in columns.items()}
    width = -(-len(tokens) // -(-len(tokens) // 16))  # lines of equal length
    starts, step = range(0, len(tokens), width), list(columns).index("new log p")
    figure, axes = plt.subplots(len(starts), figsize=(9.6, 3.2 * len(starts) + 0.6), squeeze=False, layout="constrained")
    for axis, start in zip(axes.flat, starts):
        part = slice(start, start + width)
        places = [y + 0.8 * (y >= step) for y in range(len(columns))]
        for y, (name, x) in zip(places, columns.items()):
            most = max([1e-9, clip * (name == "ratio"), *(abs(v) for other in columns if COLUMNS[other][1] == COLUMNS[name][1] for v in off[other])])
            axis.imshow([off[name][part]], cmap=shades, vmin=-1.3 * most, vmax=1.3 * most, extent=(-0.5, len(x[part]) - 0.5, y + 0.46, y - 0.46), aspect="auto")
            for t, v in enumerate(x[part]):
                axis.text(t, y, f"{v:z.2f}" if name != "branch" else "clipped" if v else "plain", fontsize=8, ha="center", va="center")
        axis.text(-0.5, step - 0.1, "after the step", fontsize=9, weight="bold", va="center")
        axis.set(xlim=(-0.5, max(width, 8) - 0.5), ylim=(places[-1] + 0.5, -0.5))
        axis.set_xticks(range(len(tokens[part])), tokens[part], fontsize=9, rotation=30, ha="left", weight="bold", parse_math=False)
        axis.set_yticks(places, ["{} ({})".format(*COLUMNS[name]) for name in columns], fontsize=8)
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
        axis.spines[:].set_visible(False)
    figure.suptitle(caption, fontsize=9, x=0.01, ha="left", parse_math=False)
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)


def explain(stage, cfg, enc, policy, critic, reference, reward, optimizer, prompts, text):
    """One more step in memory, on a batch that begins with --prompt: print and draw what happens to each token of that answer."""
    room, length = policy.config.block_size - cfg.max_new_tokens, len(data.encode_prompt(enc, cfg.prompt))
    if length > room or not cfg.prompt.strip():
        refuse(f"--prompt: expected a text of at most {room} tokens, those of the template included; this one has {length}")
    lr, beta = set_lr(optimizer, cfg.warmup, cfg.steps, cfg.warmup), stage.state["kl_coef"]  # the peak: where the training ended, it is 0
    asked = [cfg.prompt, *(prompts[i] for i in torch.randint(len(prompts), (cfg.batch_size - 1,)).tolist())]
    batch, seen = rollout(policy, critic, reference, reward, enc, asked, cfg, beta)
    updates = update(policy, critic, optimizer, batch, cfg, text)
    with torch.no_grad():
        new = token_logprobs(response_logits(policy, batch["tokens"], batch["prompt_lengths"], batch["mask"].shape[1], cfg.temperature), batch["responses"])
    again = ppo_policy_loss(new, batch["old_logprobs"], batch["advantages"], batch["mask"], cfg.clip)[1]["clip_fraction"]
    c, advantages = columns_of(batch, seen, new, cfg), (batch["returns"] - batch["old_values"])[batch["mask"].bool()]
    words = {"score": score_in_words(reward, seen, asked, cfg),
             **sums(c, seen["scores"][0].item(), beta, advantages.mean().item(), advantages.std(correction=0).item() or 1e-4, cfg),
             "branch": f"in the first optimizer step every ratio is 1, and nothing is clipped; in the mean of all of them ({len(updates)}) the clip stopped "
                       f"{sum(u['clip_fraction'] for u in updates) / len(updates):.1%} of the tokens. The column is what one more pass over the same answers would "
                       f"meet: of these {len(c['KL'])} tokens {sum(c['branch']):.0f} clipped, of the batch's {again:.1%}. Their ratio is above {1 + cfg.clip:g} where the column "
                       f"{'whitened' if cfg.whiten_advantages else 'advantage'} is above 0, or below {1 - cfg.clip:g} where that is below 0: enough has been learned "
                       "from them, their gradient is 0." if cfg.clip else "plain everywhere: --clip 0 turns the clip off."}
    tokens = ["EOS" if i == enc.eot_token else repr(enc.decode_single_token_bytes(i))[2:-1] for i in batch["responses"][0, : len(c["KL"])].tolist()]
    print(f"\n{stage.file('pt')} after step {stage.start}, and one more step in memory: {len(asked)} answers, {len(updates)} optimizer steps at the peak learning rate {lr:g}. "
          f"The checkpoint stays as it is.\n\nprompt: {cfg.prompt}\nanswer: {seen['texts'][0]}\n", *token_lines(tokens, c, sys.stdout.isatty() and not os.environ.get("NO_COLOR")),
          "\nHow it adds up (rounding shows in the last digits):\n", *(textwrap.fill(f"{name:<11}{words[name]}", 118, subsequent_indent=" " * 11) for name in words), sep="\n")
    draw_tokens(stage.file("explain.png"), tokens, c, cfg.clip, f'A PPO step, prompt "{" ".join(cfg.prompt.split())[:80]}": what it did to each token of the answer. Blue: above 0 (a ratio: above 1), '
                "orange: below.\nLook for: the score, on the last token only; the advantage, which shares it out among the tokens; a ratio above 1\n"
                "where the advantage is above 0, below 1 where it is below; clipped tokens, which no longer have a gradient.")
    print(f"\nThe same as a picture: {stage.file('explain.png')}")


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    if cfg.kl_target and (not cfg.kl_coef or cfg.kl_horizon < cfg.batch_size):
        raise UserError("--kl_target moves beta by factors: it needs a --kl_coef above 0 to start from and a --kl_horizon of at least --batch_size")
    if cfg.labeler == "ai":
        if cfg.reward != "overall":
            raise UserError("--labeler ai stands for --reward rm_ai, the reward model that learned from an AI's labels; leave one of the two out")
        if cfg.data and not (run_folder(cfg) / "rm_ai.pt").exists():
            raise UserError("train the reward model first, by a judge behind a server: train_rm.py --labeler ai --judge_url http://HOST:PORT/v1 --data ...")
        cfg.reward, cfg.name = "rm_ai", cfg.name or "rlaif"
    if cfg.reward == "ai":
        cfg.name = cfg.name or "direct"
    if cfg.prompt != Config.prompt and not cfg.explain:
        refuse("--prompt is for --explain; give both")
    what_if = reopen(cfg) if cfg.explain else {}
    check_judge(cfg, cfg.reward == "ai")
    check_reward(cfg)
    names = leave_out_names(cfg.leave_out)
    if names and cfg.data:
        raise UserError("--leave_out names subjects and topics of the tiny world, not of --data")
    stage = Stage(cfg, "ppo", look=cfg.explain)
    vars(cfg).update(what_if)
    pretrained_path, sft_path, start_path = (stage.parent(name) for name in ("pretrain", "sft", cfg.start))
    reference, checkpoint = load_model(start_path, stage.device)
    sft = reference if cfg.start == "sft" else load_model(sft_path, stage.device)[0]
    rows = data.load_prompts(stage.data)
    enc = data.load_encoding(stage.folder / "tokenizer.json")
    reward = load_reward(stage, cfg.reward, rows, enc)
    check_contexts(stage, ["pretrain", "sft", cfg.start, *(reward_models(cfg.reward) if reward.models else [])])
    print(f"shape from {start_path}: {checkpoint['model_config']}")
    room = reference.config.block_size - cfg.max_new_tokens
    if room < 1:
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {reference.config.block_size} tokens")
    prompts = [p["prompt"] for p in data.of_split(rows, "train", stage.data) if not left_out(p["prompt"], names)]
    if not prompts:
        raise UserError("--leave_out leaves no training prompt")
    cut = sum(len(data.encode_prompt(enc, p)) > room for p in prompts)
    if cut:
        print(f"{cut} of {len(prompts)} prompts are longer than the {room} tokens that the answer leaves them: cut from the left")
    text, held_out_text = tokens_of(enc, data.load_text(stage.data))

    policy = with_heads(reference, value_head=cfg.critic == "shared")
    critic = with_heads((reward.models or [reference])[0], value_head=True) if cfg.critic == "separate" else policy
    trained = {"policy": policy} | ({"critic": critic} if critic is not policy else {})
    for model in (policy, critic, reference, *reward.models):
        model.eval()  # dropout off: a ratio must compare two policies, not two dropout masks
    frozen = [fingerprint(m) for m in (reference, *reward.models)]
    if "whitening" not in stage.state:
        some = (prompts[:: max(1, len(prompts) // 300)] * 300)[:300]
        reward.freeze(enc, some, [text for text, _, _ in answer(sft, enc, some, cfg.max_new_tokens, cfg.temperature)])
        stage.state["whitening"] = [reward.mean, reward.std]
    reward.mean, reward.std = stage.state["whitening"]
    optimizer = adam((policy, cfg.lr), *([(critic, cfg.critic_lr)] if critic is not policy else []))
    stage.track(model=policy, optimizer=optimizer, **({"critic": critic} if critic is not policy else {}))
    stage.state.setdefault("kl_coef", cfg.kl_coef)
    if reward.judge:
        reward.judge.rated = stage.state.setdefault("rated", reward.judge.rated)  # what was rated once stays as it was, also when resuming
    if cfg.explain:
        explain(stage, cfg, enc, policy, critic, reference, reward, optimizer, prompts, text)
        return
    print(bill(cfg, **trained, reference=reference, **dict(zip(reward_models(cfg.reward), reward.models)), **({"judge": reward.judge.model.model} if reward.judge and not cfg.judge_url else {})))

    for step in stage.steps(cfg.steps):
        lr = set_lr(optimizer, step, cfg.steps, cfg.warmup)
        kl_coef = stage.state["kl_coef"]  # beta: moves only with --kl_target
        asked = [prompts[i] for i in torch.randint(len(prompts), (cfg.batch_size,)).tolist()]
        batch, seen = rollout(policy, critic, reference, reward, enc, asked, cfg, kl_coef)
        k1, k3 = kl_estimates(batch["old_logprobs"], seen["ref_logprobs"], batch["mask"])
        full_kl, entropy = full_kl_and_entropy(seen["logits"], seen["ref_logits"], batch["mask"])
        drift = ((token_logprobs(seen["logits"], batch["responses"]) - batch["old_logprobs"]) * batch["mask"]).abs().max().item()
        check_step(step, drift, full_kl.mean().item(), k3.item(), entropy.item(), seen["rewards"], seen["scores"], kl_coef, k1, cfg.temperature)
        updates = update(policy, critic, optimizer, batch, cfg, text)

        if cfg.kl_target:
            stage.state["kl_coef"] = adapt_kl_coef(kl_coef, k1.item(), cfg.kl_target, cfg.batch_size, cfg.kl_horizon)
        about = describe(asked, list(zip(seen["texts"], seen["ended"].tolist(), batch["mask"].sum(1).tolist())))
        stage.log(step, ("score", "gold", "kl"), score=reward.combine(seen["raw"], asked).mean().item(), gold=about["gold"] and sum(about["gold"]) / cfg.batch_size,
                  kl=k1.item(), kl_k3=k3.item(), kl_full=full_kl.mean().item(), kl_coef=kl_coef, length=about["length"], ends=about["ends"],
                  **{name: sum(u[name] for u in updates) / len(updates) for name in updates[0]},
                  explained_variance=explained_variance(batch["old_values"], batch["returns"], batch["mask"]).item(), entropy=entropy.item(), lr=lr)
        if step % cfg.eval_every == 0 or step + 1 == cfg.steps:
            show(stage, enc, policy, reference, reward, prompts, cfg)

    if reward.judge:
        print(f"\nThe AI judge rated {reward.judge.pairs} different answers in {reward.judge.seconds:.0f} s of this run" + f", {reward.judge.model.tokens:,} tokens" * (not cfg.judge_url) + ".")
    check([fingerprint(m) for m in (reference, *reward.models)] == frozen, "the reference or a reward model changed; all of them must stay frozen")
    models = {"pretrained": load_model(pretrained_path, stage.device)[0], "SFT": sft} | ({} if reference is sft else {cfg.start: reference}) | {"PPO": policy}
    report(stage, cfg, enc, models, reward, held_out_text, rows)


if __name__ == "__main__":
    run_main(main)
