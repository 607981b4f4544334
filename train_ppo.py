"""Step 3, PPO: make the answers better by the reward model's score, and stay near the SFT model.

    python train_ppo.py --config tiny                      every missing stage is trained first
    python train_ppo.py --config tiny --reward llama2 --name llama2   two reward models (Llama 2)
    python train_ppo.py --config tiny --reward rm_ai       RLAIF: an AI ranked the answers; rlaif.pt
    python train_ppo.py --config tiny --reward ai --kl_coef 0.07      direct RLAIF: an AI rates them
    python train_ppo.py --config tiny --reward rm_first --kl_coef 0 --name no_kl       watch it hack

One iteration, as in the loop at the end of this file:
    1. sample an answer to each of a batch of prompts      4. advantages: better than expected?
    2. score the answers with the reward model             5. clipped updates of policy and critic
    3. shape the reward: score - beta KL to the reference  6. log
Final reward = score - beta KL(policy || reference). Token by token: python -m lab.explain CKPT
"""
import lab.before_torch
from dataclasses import dataclass, fields

import torch
import torch.nn as nn

import data
from lab.cli import JudgeKnobs, knob, parse, run_main
from lab.data_folder import training_prompts
from lab.judges import judge_rules
from lab.measure import check, look_at_step
from lab.optim import adam, set_lr
from lab.parallel import generate, part, share, summed
from lab.records import fingerprint, load_language_model
from lab.report_ppo import report, show_answers
from lab.run import Stage
from lab.scorers import check_reward, count_from_sft, load_scorer, reward_models
from lab.tokens import encode_prompts
from model import join, response_hidden, token_logprobs, with_heads
from world.reward import whiten_scores


@dataclass
class Config(JudgeKnobs):
    start: str = knob("sft", "policy to start from, and reference; Llama 2: rs.4", heading="The models")
    reward: str = knob("overall", "overall, helpful, safety, llama2, ai, or a reward model's name")
    critic: str = knob("separate", "a network of its own, or a head on the policy",
                       choices=("separate", "shared"))
    leave_out: str = knob("", "subjects or topics (cake,why) that no training prompt has")

    steps: int = knob(80, "iterations", low=1, heading="Sampling")
    batch_size: int = knob(128, "answers in an iteration", low=1, high=10**6)
    max_new_tokens: int = knob(48, "longest answer", low=1)
    temperature: float = knob(1.0, "of sampling, and of every log-probability", low=0.01)

    score_scale: str = knob("sft", "scores in standard deviations of SFT answers, or of each batch",
                            choices=("sft", "batch"), heading="The reward")
    kl_coef: float = knob(0.15, "beta: what a nat of KL costs; 0 invites hacking", low=0)
    kl_target: float = knob(0.0, "adapt beta until the KL is this many nats (0: beta stays)", low=0)
    kl_horizon: int = knob(5000, "answers in which the adaptive beta moves by 20 % at most", low=1)
    eos_penalty: float = knob(1.0, "score of an answer without EOS, negated (0: off)", low=0)

    gamma: float = knob(1.0, "discount of later rewards", low=0, high=1, heading="Advantages")
    lam: float = knob(0.95, "lambda of GAE: 0 trusts the critic, 1 the rewards alone", low=0, high=1)
    whiten_advantages: bool = knob(True, "advantages with mean 0 and deviation 1")

    ppo_epochs: int = knob(1, "passes over the sampled answers", low=1, heading="Updates")
    minibatch_size: int = knob(64, "answers in one optimizer step, at most", low=1)
    micro_batch_size: int = knob(32, "answers in one forward pass; fewer need less memory", low=1)
    clip: float = knob(0.2, "how far a ratio may move before its gradient stops (0: off)", low=0)
    value_clip: float = knob(0.2, "how far a value may move, in SD of the score (0: off)", low=0)
    value_coef: float = knob(0.1, "weight of the value loss on a shared trunk", low=0)
    ptx_coef: float = knob(0.0, "weight of a pretraining loss mixed in (PPO-ptx)", low=0)
    lr: float = knob(5e-4, "peak learning rate of the policy", low=0)
    critic_lr: float = knob(5e-4, "peak learning rate of a separate critic", low=0)
    warmup: int = knob(3, "iterations of warm-up before the cosine decay", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)

    eval_every: int = knob(10, "iterations between printed answers", low=1, heading="Looking at it")
    eval_answers: int = knob(4, "answers to each prompt in the final table", low=1, high=10**4)
    eval_split: str = knob("test", "prompts of that table: dev while tuning", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "smoke": dict(steps=3, batch_size=16, max_new_tokens=12, eval_answers=1),
    "small": dict(steps=40, batch_size=32, minibatch_size=16, micro_batch_size=8, max_new_tokens=128,
                  lr=5e-5, critic_lr=1e-4, eval_answers=1),
    "gpt2": dict(steps=40, batch_size=16, minibatch_size=8, micro_batch_size=4, max_new_tokens=96,
                 lr=1e-5, critic_lr=2e-5, eval_answers=1),
}
RULES = (
    ("--kl_target needs a --kl_coef above 0 to start from and a --kl_horizon of at least --batch_size",
     lambda c: c.kl_target and (not c.kl_coef or c.kl_horizon < c.batch_size)),
    ("--leave_out is about the tiny world, not about --data", lambda c: c.leave_out and c.data),
    *judge_rules(lambda c: c.reward == "ai"),
)


# ------------------------------------------------------------------------------------------------
# The formulas, in the order of use. B answers, R tokens; mask (B, R): 1 on an answer, its EOS included
# ------------------------------------------------------------------------------------------------


def masked_mean(x, mask, n_tokens=None):
    """Mean over the real tokens; n_tokens: the number to divide by where this is a part of a larger batch."""
    return (x * mask).sum() / (mask.sum() if n_tokens is None else n_tokens)


def kl_shaped_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    """r_t = -beta (log pi_t - log ref_t) on every token, plus the score on the last real token.
    (Ziegler et al. 2019, eq. 2.)

    scores:                 (B,)   from the reward model
    logprobs, ref_logprobs: (B, R) of the sampled tokens, under the policy and under the reference
    Returns (B, R), 0 on the padding; a row sums to score - beta * (its log-ratio, an estimate of the KL).
    Example: logprobs (-1, -2, -.5), ref (-1.2, -1.5, -.9), beta .05, score 1 -> (-.010, .025, .980)."""
    rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask
    last = response_mask.sum(1).long() - 1
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores
    return rewards


def gae(rewards, values, response_mask, gamma, lam):
    """Generalised advantages: delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1}.
    (Schulman et al. 2016, eqs. 11 to 16.) Behind the last real token V and A are 0: nothing more is earned.

    rewards, values, response_mask: (B, R). Returns (advantages A, returns A + V), (B, R), 0 on the padding.
    Example: gamma 1, lambda .95, rewards (0, 0, 1), values (.2, .4, .6) -> A = (.7510, .5800, .4000)."""
    values = values * response_mask
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * lam * next_advantage) * response_mask[:, t]
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


def whiten(x, mask, shift_mean=True):
    """(x - mean) / sqrt(variance + 1e-8) over real tokens, biased variance; shift_mean=False keeps the mean.
    x, mask: (B, R). Returns (B, R), 0 on the padding."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip, n_tokens=None):
    """Clipped surrogate: mean over real tokens of max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = pi / pi_old.
    (Schulman et al. 2017, eq. 7, as a loss: the sign is turned, so min becomes max.)

    logprobs, old_logprobs, advantages, mask: (B, R); clip: c, or 0 for the unclipped -A rho
    Returns the loss and a dict, detached: clip_fraction (share of tokens whose gradient the clip stopped) and
    approx_kl (mean of (rho - 1) - log rho: nats a token that it has moved). n_tokens divides all three."""
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

    values, old_values, returns, mask: (B, R); clip: c, 0: squared error. (Ziegler et al. 2019's code.)"""
    errors = (values - returns) ** 2
    if clip:
        near = values.clamp(old_values - clip, old_values + clip)
        errors = torch.max(errors, (near - returns) ** 2)
    return 0.5 * masked_mean(errors, mask, n_tokens)


def kl_estimates(logprobs, ref_logprobs, mask):
    """Two estimates of KL(policy || reference) from the policy's own samples, in nats an answer: summed over
    its tokens, averaged over the answers. (Schulman 2020, "Approximating KL divergence".)

    logprobs, ref_logprobs, mask: (B, R). With d = logprobs - ref_logprobs: k1 = d, noisy, may be negative;
    k3 = exp(-d) - 1 + d, never negative; both unbiased. Returns (k1, k3), scalars."""
    d = (logprobs - ref_logprobs) * mask
    return d.sum(1).mean(), (torch.exp(-d) - 1 + d).sum(1).mean()


def adapt_kl_coef(kl_coef, kl, target, n, horizon):
    """Adaptive beta, larger while the KL is above the target, n answers since the last call:
    beta *= 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon. (Ziegler et al. 2019, 2.2, and their code.)"""
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * n / horizon)


# ------------------------------------------------------------------------------------------------
# The PPO step
# ------------------------------------------------------------------------------------------------


class Agent(nn.Module):
    """Policy and critic: two networks, or the same one twice, with both heads on one trunk."""

    def __init__(self, policy, critic, value_coef=1.0):
        super().__init__()
        self.policy, self.critic, self.value_coef = policy, critic, value_coef
        self.networks = [policy] if critic is policy else [policy, critic]

    def forward(self, tokens, prompt_lengths, R):
        """Logits (B, R, V) that predict the R response tokens, and values (B, R)."""
        hidden = response_hidden(self.policy, tokens, prompt_lengths, R)
        if self.critic is self.policy:
            return self.policy.lm_head(hidden), self.policy.value_head(hidden).squeeze(-1)
        return self.policy.lm_head(hidden), self.values(tokens, prompt_lengths, R)

    def values(self, tokens, prompt_lengths, R):
        """V_t, what the critic expects to earn from token t on, before that token is chosen: (B, R)."""
        hidden = response_hidden(self.critic, tokens, prompt_lengths, R)
        return self.critic.value_head(hidden).squeeze(-1)


@dataclass
class Batch:
    """B sampled answers of up to R tokens. "old": under the policy that sampled them, before any update."""

    texts: list
    tokens: torch.Tensor  # (B, P + R) prompt and answer, padded on the right
    prompt_lengths: torch.Tensor  # (B,)
    responses: torch.Tensor  # (B, R)
    mask: torch.Tensor  # (B, R) 1 on the answer, its EOS included
    ended: torch.Tensor  # (B,) bool: whether it has an EOS
    raw: torch.Tensor  # (B,) scores as the scorer gives them
    scores: torch.Tensor  # (B,) in standard deviations: what PPO is paid for
    old_logprobs: torch.Tensor  # (B, R)
    ref_logprobs: torch.Tensor  # (B, R)
    rewards: torch.Tensor  # (B, R)
    old_values: torch.Tensor  # (B, R)
    advantages: torch.Tensor  # (B, R)
    returns: torch.Tensor  # (B, R)

    def take(self, rows):
        """The answers with these indices (a tensor), cut to the longest of them."""
        R = int(self.mask[rows].sum(1).max())
        T = int(self.prompt_lengths[rows].max()) + R
        cut = {"texts": [self.texts[i] for i in rows.tolist()]}
        for field in fields(self)[1:]:
            x = getattr(self, field.name)[rows]
            width = T if field.name == "tokens" else R
            cut[field.name] = x[:, :width] if x.dim() == 2 else x
        return Batch(**cut)


@torch.no_grad()
def rollout(agent, reference, scorer, enc, prompts, ids, cfg, kl_coef):
    """Answers of the policy as it is now to B prompts (their token ids: ids), and all that the updates of an
    iteration learn from: a Batch."""
    policy, eos, pad = agent.policy, enc.eot_token, data.special_id(enc, "pad")

    # 1. sample an answer to each prompt; "old": these log-probabilities stay while the policy moves
    device = policy.wte.weight.device
    padded, prompt_lengths = (x.to(device) for x in data.pad_rows(ids, pad))  # (B, P), (B,)
    responses, mask, old_logprobs = generate(  # (B, R) each
        policy, padded, prompt_lengths, cfg.max_new_tokens, cfg.temperature, eos, pad)
    tokens, _ = join(padded, prompt_lengths, responses, mask, pad)  # (B, P + R)
    answers = zip(responses.tolist(), mask.tolist(), strict=True)
    texts = [data.decode_response(enc, r, m) for r, m in answers]

    # 2. score the answers, read at EOS: one that was cut off gets an EOS for this alone
    ended, R = (responses == eos).any(1), responses.shape[1]
    full = nn.functional.pad(responses, (0, 1), value=eos), torch.cat([mask, ~ended[:, None]], 1)
    raw = scorer.raw(*join(padded, prompt_lengths, *full, pad), prompts, texts)
    statistics = (scorer.mean, scorer.std) if cfg.score_scale == "sft" else ()
    scores = whiten_scores(raw, *statistics)
    if cfg.eos_penalty:
        scores = torch.where(ended, scores, -cfg.eos_penalty)

    # 3. shape the reward: the score on the last token, - beta KL on every token
    ref_logits = reference.lm_head(response_hidden(reference, tokens, prompt_lengths, R))  # (B, R, V)
    ref_logprobs = token_logprobs(ref_logits, responses, cfg.temperature)
    rewards = kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef)  # (B, R)

    # 4. advantages: how much better than the critic expected; returns stay on the rewards' scale, for V does
    old_values = agent.values(tokens, prompt_lengths, R)  # (B, R)
    advantages, returns = gae(rewards, old_values, mask, cfg.gamma, cfg.lam)
    if cfg.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Batch(texts, tokens, prompt_lengths, responses, mask, ended, raw, scores, old_logprobs,
                 ref_logprobs, rewards, old_values, advantages, returns)


def ppo_loss(agent, mb, n_tokens, cfg):
    """Policy loss + value loss of a micro-batch `mb`, and the dict of ppo_policy_loss with policy_loss and
    value_loss in it. n_tokens: of the whole minibatch, so that its parts' losses add up to its mean."""
    logits, values = agent(mb.tokens, mb.prompt_lengths, mb.mask.shape[1])
    logprobs = token_logprobs(logits, mb.responses, cfg.temperature)
    p_loss, numbers = ppo_policy_loss(
        logprobs, mb.old_logprobs, mb.advantages, mb.mask, cfg.clip, n_tokens)
    v_loss = value_loss(values, mb.old_values, mb.returns, mb.mask, cfg.value_clip, n_tokens)
    numbers |= {"policy_loss": p_loss.detach(), "value_loss": v_loss.detach()}
    return p_loss + agent.value_coef * v_loss, numbers


def update(agent, optimizer, batch, cfg, corpus=None):
    """5. Clipped updates of policy and critic, in equal minibatches that torch draws (in the first every
    ratio is 1). corpus: tokens for --ptx_coef, 16 windows a step, whose gradient is clipped, too. Returns a
    dict a step, of floats: ppo_loss's numbers, summed over parts, and the policy's grad_norm, unclipped."""
    updates, B = [], len(batch.mask)
    for _ in range(cfg.ppo_epochs):
        for rows in torch.randperm(B).tensor_split(-(-B // cfg.minibatch_size)):
            optimizer.zero_grad()
            n_tokens, total = batch.mask[rows].sum(), {}
            rows = share(rows)
            by_length = rows[batch.mask[rows].sum(1).argsort().cpu()]  # similar lengths: less padding
            for micro in by_length.split(cfg.micro_batch_size):
                loss, numbers = ppo_loss(agent, batch.take(micro), n_tokens, cfg)
                loss.backward()
                total = {name: total.get(name, 0.0) + float(x) for name, x in numbers.items()}
            if cfg.ptx_coef:
                add_ptx_gradient(agent.policy, corpus, cfg.ptx_coef)
            total = summed(total, *agent.networks)
            limit = cfg.clip_grad or torch.inf
            norms = [nn.utils.clip_grad_norm_(net.parameters(), limit).item() for net in agent.networks]
            optimizer.step()
            updates.append({**total, "grad_norm": norms[0]})
    return updates


def add_ptx_gradient(policy, corpus, ptx_coef):
    """PPO-ptx: the gradient of ptx_coef x the pretraining loss. (InstructGPT, Ouyang et al. 2022, eq. 2.)"""
    windows = data.text_batch(corpus, 16, min(96, policy.config.block_size - 1))
    inputs, targets = (x.to(policy.wte.weight.device) for x in windows)
    part(-ptx_coef * token_logprobs(policy(inputs), targets).mean(), 1).backward()


def make_agent(cfg, reference, scorer):
    """The policy, a copy of the reference, and its critic, dropout off: a ratio compares two policies, not
    two dropout masks. A separate critic has the first reward model's trunk. A new head says 0 at first."""
    if cfg.critic == "shared":
        policy = with_heads(reference, value_head=True)
        return Agent(policy, policy, cfg.value_coef).eval()
    critic = with_heads((scorer.models or [reference])[0], value_head=True)
    return Agent(with_heads(reference), critic).eval()


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    check_reward(cfg)
    cfg.name = cfg.name or {"rm_ai": "rlaif", "ai": "direct"}.get(cfg.reward, "ppo")
    stage = Stage(cfg, "ppo")
    sft = reference = load_language_model(stage.parent("sft"), stage.device)[0]
    if cfg.start != "sft":
        reference = load_language_model(stage.parent(cfg.start), stage.device)[0]
    enc, prompts = stage.encoding(), training_prompts(stage.data, cfg.leave_out)
    corpus, held_out_tokens = data.tokens_of(enc, data.load_text(stage.data))
    scorer = load_scorer(stage, cfg.reward, enc, cfg)
    stage.check_contexts(["pretrain", "sft", cfg.start, *reward_models(cfg.reward)])
    prompt_ids = encode_prompts(enc, prompts, cfg.max_new_tokens, reference)
    count_from_sft(scorer, stage, sft, enc, prompts, cfg)
    stage.state.setdefault("kl_coef", cfg.kl_coef)

    agent = make_agent(cfg, reference, scorer)
    # With a shared critic there is one network: zip leaves out the second name and learning rate.
    networks = dict(zip(("model", "critic"), agent.networks, strict=False))
    optimizer = adam(*zip(agent.networks, (cfg.lr, cfg.critic_lr), strict=False))
    stage.track(**networks, optimizer=optimizer)
    frozen = [reference, *scorer.models]
    before = [fingerprint(model) for model in frozen]
    stage.describe(agent.policy, cfg.start, networks=agent.networks, frozen={sft, *frozen},
                   length=max(map(len, prompt_ids)) + cfg.max_new_tokens, logits=cfg.max_new_tokens,
                   rows=cfg.micro_batch_size, sampled=cfg.batch_size)
    for step in stage.steps(cfg.steps):
        lr = set_lr(optimizer, step, cfg.steps, cfg.warmup)
        kl_coef = stage.state["kl_coef"]  # beta: moves only with --kl_target
        chosen = torch.randint(len(prompts), (cfg.batch_size,)).tolist()
        asked, ids = [prompts[i] for i in chosen], [prompt_ids[i] for i in chosen]
        batch = rollout(agent, reference, scorer, enc, asked, ids, cfg, kl_coef)  # 1 to 4
        k1, k3 = kl_estimates(batch.old_logprobs, batch.ref_logprobs, batch.mask)
        # for the log: KL, gold score, entropy and so on; stops the run where the step cannot be right
        seen = look_at_step(agent.policy, reference, batch, asked, cfg, step, kl_coef, k1, k3)
        updates = update(agent, optimizer, batch, cfg, corpus)  # 5
        if cfg.kl_target:
            stage.state["kl_coef"] = adapt_kl_coef(
                kl_coef, k1.item(), cfg.kl_target, cfg.batch_size, cfg.kl_horizon)

        # 6. log: the score always in standard deviations of SFT answers, so that iterations compare
        seen["score"] = whiten_scores(batch.raw, scorer.mean, scorer.std).mean().item()
        seen |= {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        stage.log(step, ("score", "gold", "kl"), **seen, kl_coef=kl_coef, lr=lr)
        if step % cfg.eval_every == 0 or step + 1 == cfg.steps:
            show_answers(stage, step, agent.policy, reference, scorer, enc, prompts, cfg)

    check([fingerprint(model) for model in frozen] == before,
          "the reference or a reward model changed; all of them must stay frozen")
    report(stage, cfg, enc, agent.policy, reference, sft, scorer, held_out_tokens)


if __name__ == "__main__":
    run_main(main)
