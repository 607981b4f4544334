"""What people use in PPO's place: DPO, RLOO and GRPO, from the same SFT model.

    python docs/alternatives.py --config tiny                  all, beside PPO, best-of-n and rounds: a table
    python docs/alternatives.py --config tiny --method dpo     one of them, in runs/tiny: dpo.pt
    python docs/alternatives.py --config tiny --method rloo
    python docs/alternatives.py --config tiny --method grpo

DPO learns from the rankings that the reward model learns from, and samples nothing more. RLOO and GRPO are
paid by that reward model for as many answers as PPO samples, several to each prompt: how good the others
are takes the place of a critic. What is missing is trained first.
"""
# ruff: noqa: E402 (the path to the scripts comes before what is imported from there)
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import lab.before_torch

import torch
from beside import beside, report

import data
import train_ppo
import train_rm
from lab import parallel
from lab.cli import Common, knob, parse, run_main
from lab.data_folder import training_prompts
from lab.measure import check, describe
from lab.optim import adam, clip_gradients, set_lr
from lab.rankings import usable
from lab.records import fingerprint, load_language_model
from lab.report import table
from lab.run import Stage
from lab.scorers import count_from_sft, load_scorer
from lab.tokens import encode_prompts
from model import response_hidden, token_logprobs, with_heads
from world.reward import whiten_scores

# ------------------------------------------------------------------------------------------------
# Knobs
# ------------------------------------------------------------------------------------------------


@dataclass
class Config(Common):
    method: str = knob("all", "what takes PPO's place; all: a table and a picture of every one, beside PPO",
                       choices=("all", "dpo", "rloo", "grpo"), heading="The method")
    seeds: int = knob(3, "of all: how many seeds, from 0", low=1, high=10, learned=False)
    out: str = knob(str(HERE / "alternatives.png"), "of all: where the picture goes", learned=False)
    epochs: int = knob(1, "passes over the rankings", low=1, heading="DPO")
    batch_size: int = knob(16, "rankings in a step, with all pairs of each", low=1)
    beta: float = knob(0.3, "what a nat of distance counts, in log-odds of the human's choice", low=0)
    dpo_lr: float = knob(1e-4, "peak learning rate", low=0)

    steps: int = knob(80, "iterations", low=1, heading="RLOO and GRPO")
    prompts: int = knob(32, "prompts in an iteration", low=1)
    answers: int = knob(4, "answers to each of them, K", low=2)
    minibatch_size: int = knob(64, "answers in one optimizer step", low=1)
    kl_coef: float = knob(0.15, "RLOO: what a nat of KL costs, part of the reward as in PPO", low=0)
    rloo_lr: float = knob(5e-4, "RLOO: peak learning rate", low=0)
    k3_coef: float = knob(0.1, "GRPO: what a nat of KL costs, part of the loss", low=0)
    grpo_lr: float = knob(2.5e-4, "GRPO: peak learning rate; at twice that it goes further for less", low=0)

    eval_split: str = knob("test", "prompts of the table: dev while tuning", choices=("dev", "test"),
                           heading="Looking at it")


PRESETS = {
    "tiny": {},
    "smoke": dict(steps=3, prompts=8, answers=2),
}
RULES = (
    ("the table of all methods takes --seeds and --out alone: name a --method to change a knob of it",
     lambda c: c.method == "all" and any(
         getattr(c, f.name) != f.default for f in fields(c) if f.name not in ("seeds", "out"))),
    ("--out: the picture needs a folder that is there", lambda c: not Path(c.out).resolve().parent.is_dir()),
    ("these methods train in one process: start them with python, not with torchrun",
     lambda c: parallel.several()),
)

# ------------------------------------------------------------------------------------------------
# The formulas. N prompts, K answers each; B answers, R tokens
# ------------------------------------------------------------------------------------------------


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, p_chosen=None):
    """Direct preference optimisation: -log sigmoid(beta [log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l)]), mean
    over the pairs. (Rafailov et al. 2023, eq. 7.) The best policy under a reward r and a KL that costs beta
    is ref exp(r / beta), so r = beta log(pi / ref) + something that a pair has in common: Bradley-Terry's
    loss, with the policy as its own reward model.

    chosen, rejected: (P,) log-probabilities of whole answers under the policy; ref_...: under the reference
    p_chosen: (P,) probability that `chosen` is the better one, or None: it is
    Example: policy = reference -> log 2; beta 0.5, one nat more for the better one alone -> 0.474.
    """
    r_chosen, r_rejected = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return train_rm.bradley_terry_loss(r_chosen, r_rejected, p_chosen=p_chosen)


def rloo_advantages(rewards):
    """REINFORCE with the mean of the other answers to the same prompt as baseline ("leave one out").
    (Kool et al. 2019; Ahmadian et al. 2024, "Back to basics".)

    rewards: (N, K) of whole answers, score - beta KL. Returns (N, K). Example: (1, 2, 6) -> (-3, -1.5, 4.5).
    """
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def rloo_loss(logprobs, advantages, mask):
    """-A log pi(y), mean over the answers, an answer one action. logprobs, mask: (B, R); advantages: (B,)."""
    return -(advantages * (logprobs * mask).sum(1)).mean()


def grpo_advantages(scores):
    """(score - mean) / deviation, within the answers to a prompt. (Shao et al. 2024, section 4.1.2.) The
    division makes prompts whose answers differ little count as much as others. (Dr. GRPO leaves it out: Liu
    et al. 2025.)

    scores: (N, K). Returns (N, K), 0 where all are equal. Example: (1, 2, 6) -> (-.926, -.463, 1.389)."""
    mean = scores.mean(1, keepdim=True)
    return (scores - mean) / (scores.std(1, correction=0, keepdim=True) + 1e-6)


def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip, k3_coef):
    """PPO's clipped objective with one advantage for all tokens of an answer, and the KL as k3 in the loss,
    not in the reward: mean over answers of their tokens' mean of -(min(A rho, A clip(rho)) - k3_coef k3).
    (Shao et al. 2024, eqs. 3 and 4.) The mean over its own tokens makes those of a long answer count less.

    logprobs, old_logprobs, ref_logprobs, mask: (B, R); advantages: (B,); clip 0: off
    """
    ratio, A = (logprobs - old_logprobs).exp(), advantages[:, None]
    clipped = ratio.clamp(1 - clip, 1 + clip) if clip else ratio
    gain = torch.min(A * ratio, A * clipped)
    d = logprobs - ref_logprobs
    k3 = torch.exp(-d) - 1 + d
    return (((k3_coef * k3 - gain) * mask).sum(1) / mask.sum(1)).mean()


# ------------------------------------------------------------------------------------------------
# DPO
# ------------------------------------------------------------------------------------------------


def answer_logprobs(model, enc, prompts, responses):
    """Log-probabilities of B whole answers, EOS included, in nats: (B,)."""
    rows = data.lay_out(enc, prompts, responses, model.config.block_size)
    batch = data.sft_batch(rows, data.special_id(enc, "pad"))
    inputs, targets, mask = (x.to(model.wte.weight.device) for x in batch)
    row, t = mask.nonzero(as_tuple=True)  # logits of other tokens nobody needs
    logprobs = token_logprobs(model.lm_head(model.hidden(inputs, read=(row, t))), targets[row, t])
    return logprobs.new_zeros(len(rows)).index_add(0, row, logprobs)


def train_dpo(stage, cfg, policy, reference, enc):
    """From the rankings of the human to a policy, without a score and without sampling. (Two in five are of
    answers of a pilot, which a first reward model has trained.)"""
    paths = [stage.parent(name) for name in train_rm.USUAL["overall"][-1]]
    rows = usable([row for path in paths for row in data.load_rows(path)], "train")
    steps = cfg.epochs * data.steps_per_epoch(len(rows), cfg.batch_size)
    optimizer = adam((policy, cfg.dpo_lr))
    stage.track(model=policy, optimizer=optimizer)
    for step in stage.steps(steps):
        batch = [rows[i] for i in data.epoch_order(len(rows), step, cfg.batch_size, cfg.seed)]
        prompts = [row["prompt"] for row in batch for _ in row["responses"]]
        responses = [text for row in batch for text in row["responses"]]
        better, worse, p_better, _ = data.batch_pairs(batch)
        logprobs = answer_logprobs(policy, enc, prompts, responses)
        with torch.no_grad():
            ref = answer_logprobs(reference, enc, prompts, responses)
        p_better = torch.tensor(p_better, device=ref.device)
        loss = dpo_loss(logprobs[better], logprobs[worse], ref[better], ref[worse], cfg.beta, p_better)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(policy, 1.0)
        lr = set_lr(optimizer, step, steps, 10)
        optimizer.step()
        implicit = (logprobs - ref).detach()
        right = (implicit[better] > implicit[worse]).float().mean().item()
        stage.log(step, ("loss",), loss=loss.item(), accuracy=right, grad_norm=grad_norm, lr=lr)


# ------------------------------------------------------------------------------------------------
# RLOO and GRPO
# ------------------------------------------------------------------------------------------------


class Policy:
    """A policy without a critic, for PPO's rollout: every value is 0, and nobody uses its advantages."""

    def __init__(self, policy):
        self.policy = policy

    def values(self, tokens, prompt_lengths, R):
        return torch.zeros(len(tokens), R, device=tokens.device)


def advantages_of(batch, cfg):
    """One for each answer of a batch whose prompts have cfg.answers of them, one behind another: (B,)."""
    if cfg.method == "rloo":
        return rloo_advantages(batch.rewards.sum(1).view(-1, cfg.answers)).flatten()
    return grpo_advantages(batch.scores.view(-1, cfg.answers)).flatten()


def policy_loss(policy, mb, advantages, cfg, ppo):
    """The loss of a minibatch `mb`."""
    hidden = response_hidden(policy, mb.tokens, mb.prompt_lengths, mb.mask.shape[1])
    logprobs = token_logprobs(policy.lm_head(hidden), mb.responses, ppo.temperature)
    if cfg.method == "rloo":
        return rloo_loss(logprobs, advantages, mb.mask)
    return grpo_loss(logprobs, mb.old_logprobs, mb.ref_logprobs, advantages, mb.mask, ppo.clip, cfg.k3_coef)


def update(policy, optimizer, batch, advantages, cfg, ppo):
    """One pass over the answers of an iteration in minibatches. Returns the mean loss."""
    losses = []
    for rows in torch.randperm(len(batch.mask)).tensor_split(math.ceil(len(batch.mask) / cfg.minibatch_size)):
        loss = policy_loss(policy, batch.take(rows), advantages[rows], cfg, ppo)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(policy, ppo.clip_grad)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def train_rl(stage, cfg, policy, reference, enc, scorer, prompts):
    """PPO's loop without its critic: sample K answers to each prompt, score, compare them, update."""
    ppo = ppo_config(cfg)
    ids = encode_prompts(enc, prompts, ppo.max_new_tokens, reference)
    optimizer = adam((policy, cfg.rloo_lr if cfg.method == "rloo" else cfg.grpo_lr))
    stage.track(model=policy, optimizer=optimizer)
    for step in stage.steps(cfg.steps):
        lr = set_lr(optimizer, step, cfg.steps, ppo.warmup)
        chosen = torch.randint(len(prompts), (cfg.prompts,)).repeat_interleave(cfg.answers).tolist()
        asked = [prompts[i] for i in chosen]
        batch = train_ppo.rollout(Policy(policy), reference, scorer, enc, asked, [ids[i] for i in chosen],
                                  ppo, cfg.kl_coef)
        loss = update(policy, optimizer, batch, advantages_of(batch, cfg), cfg, ppo)
        k1, _ = train_ppo.kl_estimates(batch.old_logprobs, batch.ref_logprobs, batch.mask)
        answers = list(zip(batch.texts, batch.ended.tolist(), batch.mask.sum(1).tolist(), strict=True))
        about = describe(asked, answers)
        gold = about["gold"] and sum(about["gold"]) / len(asked)
        score = whiten_scores(batch.raw, scorer.mean, scorer.std).mean().item()
        stage.log(step, ("score", "gold", "kl"), score=score, gold=gold, kl=k1.item(),
                  length=about["length"], loss=loss, lr=lr)


def ppo_config(cfg):
    """PPO's knobs for all that is the same: sampling, the scale of scores, the clip."""
    return train_ppo.Config(**{**train_ppo.PRESETS[cfg.config], "whiten_advantages": False})


# ------------------------------------------------------------------------------------------------
# The stage
# ------------------------------------------------------------------------------------------------


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    if cfg.method == "all":
        print(table(*beside(cfg.seeds, cfg.out)) + f"\n{cfg.out}")
        return
    stage = Stage(cfg, cfg.method)
    reference, _ = load_language_model(stage.parent("sft"), stage.device)
    enc, prompts, ppo = stage.encoding(), training_prompts(stage.data, ""), ppo_config(cfg)
    scorer = load_scorer(stage, "overall", enc, cfg)  # DPO does not learn from it: for the table
    count_from_sft(scorer, stage, reference, enc, prompts, ppo)
    policy, before = with_heads(reference).eval(), fingerprint(reference)
    length, logits = policy.config.block_size, ppo.max_new_tokens
    stage.describe(policy, "sft", frozen={reference, *scorer.models}, rows=cfg.minibatch_size, length=length,
                   logits=logits, sampled=0 if cfg.method == "dpo" else cfg.prompts * cfg.answers)
    if cfg.method == "dpo":
        train_dpo(stage, cfg, policy, reference, enc)
    else:
        train_rl(stage, cfg, policy, reference, enc, scorer, prompts)
    check(fingerprint(reference) == before, "the reference changed; it must stay frozen")
    report(stage, cfg, ppo, enc, policy, reference, scorer)


if __name__ == "__main__":
    run_main(main)
