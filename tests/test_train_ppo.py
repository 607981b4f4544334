"""The formulas of PPO: numbers computed by hand, references written as plain loops, and what padding must
never change. Then one step, and the loop."""
import dataclasses
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ASKED, some_answers_end, watch

import data
import lab.run
import lab.scorers
import train_ppo
from lab.records import load_model
from model import generate, join, token_logprobs
from train_ppo import (
    Agent,
    Batch,
    adapt_kl_coef,
    gae,
    kl_estimates,
    kl_shaped_rewards,
    make_agent,
    masked_mean,
    ppo_loss,
    ppo_policy_loss,
    rollout,
    update,
    value_loss,
    whiten,
)
from train_pretrain import lm_loss
from world.reward import Scorer, score_texts

EOS, PAD = 10, 11
PROMPTS = ASKED["train"]


def close(got, expected, atol=1e-6):
    got, expected = torch.as_tensor(got), torch.as_tensor(expected, dtype=torch.float32)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert (got - expected).abs().max() <= atol, f"came: {got.tolist()}, expected: {expected.tolist()}"


def ragged(B=5, R=7, seed=0):
    """A mask of rows of different lengths (one full, one of a single token) and a generator."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([R, 1] + torch.randint(1, R + 1, (B - 2,), generator=generator).tolist())
    return (torch.arange(R) < lengths[:, None]).float(), generator


# ------------------------------------------------------------------------------------------------
# KL-shaped rewards
# ------------------------------------------------------------------------------------------------

LOGPROBS, REF = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.2, -1.5, -0.9]])


def test_rewards_of_the_worked_example():
    """-0.05 * (0.2, -0.5, 0.4) and the score 1 on the last. The second token earns something: k1 may be
    negative, and no k2, k3, |k1| or clamped k1 gives this number."""
    got = kl_shaped_rewards(torch.tensor([1.0]), LOGPROBS, REF, torch.ones(1, 3), 0.05)
    close(got, [[-0.010, 0.025, 0.980]])


def test_kl_costs_when_the_policy_is_more_certain_than_the_reference():
    one = torch.ones(1, 1)
    got = kl_shaped_rewards(torch.tensor([0.0]), -0.1 * one, -2.0 * one, one, 0.5)
    close(got, [[-0.95]])


def test_score_lands_on_the_last_real_token_of_each_row():
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    zeros = torch.zeros(3, 4)
    got = kl_shaped_rewards(torch.tensor([1.0, 2.0, -3.0]), zeros, zeros, mask, 0.1)
    close(got, [[0.0, 0, 0, 1], [2, 0, 0, 0], [0, -3, 0, 0]])


def test_rewards_are_zero_on_padding_whatever_the_logprobs_there():
    mask = torch.tensor([[1.0, 1, 0, 0]])
    logprobs, ref = torch.tensor([[-1.0, -2, 7, 9]]), torch.tensor([[-1.5, -1, -300, 3]])
    close(kl_shaped_rewards(torch.tensor([2.0]), logprobs, ref, mask, 0.1), [[-0.05, 2.1, 0, 0]])


def test_rewards_of_a_row_sum_to_score_minus_beta_kl():
    mask, g = ragged()
    logprobs, ref = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g)
    scores = torch.randn(5, generator=g)
    got = kl_shaped_rewards(scores, logprobs, ref, mask, 0.3).sum(1)
    for b in range(5):
        n = int(mask[b].sum())
        log_ratio = sum(logprobs[b, :n] - ref[b, :n])
        assert got[b].item() == pytest.approx((scores[b] - 0.3 * log_ratio).item(), abs=1e-5)


def test_shaping_does_not_change_its_arguments():
    logprobs, scores = LOGPROBS.clone(), torch.tensor([1.0])
    rewards = kl_shaped_rewards(scores, logprobs, REF, torch.ones(1, 3), 0.05)
    close(rewards, [[-0.010, 0.025, 0.980]])
    close(logprobs, LOGPROBS)
    assert scores.item() == 1


# ------------------------------------------------------------------------------------------------
# Generalised advantage estimation
# ------------------------------------------------------------------------------------------------


def naive_gae(rewards, values, n, gamma, lam):
    """One row as the double sum of the paper: A_t = sum_k (gamma lambda)^k delta_{t+k} over its n real
    tokens, V_n = 0."""
    v = [x.item() for x in values[:n]] + [0.0]
    deltas = [rewards[t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def test_gae_of_the_worked_example():
    rewards, values = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.2, 0.4, 0.6]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), 1.0, 0.95)
    close(advantages, [[0.7510, 0.5800, 0.4000]])
    close(returns, [[0.9510, 0.9800, 1.0000]])


def test_with_lambda_1_returns_are_the_rewards_to_go():
    rewards, values = torch.tensor([[1.0, -2, 4]]), torch.tensor([[0.3, -0.7, 2.0]])
    _, returns = gae(rewards, values, torch.ones(1, 3), 1.0, 1.0)
    close(returns, [[3.0, 2, 4]])


def test_with_lambda_0_an_advantage_is_one_step_of_surprise():
    """delta_t = r_t + gamma V_{t+1} - V_t, with the value of the NEXT token."""
    rewards, values = torch.tensor([[1.0, 2, 3]]), torch.tensor([[10.0, 20, 40]])
    advantages, _ = gae(rewards, values, torch.ones(1, 3), 0.5, 0.0)
    close(advantages, [[1 + 10 - 10, 2 + 20 - 20, 3 - 40]])


BOTH = [(1.0, 0.95), (0.9, 0.95), (0.9, 1.0), (1.0, 0.5), (0.7, 0.0), (1.0, 1.0)]


@pytest.mark.parametrize("gamma, lam", BOTH)
def test_gae_is_the_double_sum_of_the_paper(gamma, lam):
    """gamma and lambda both count, rows of different lengths do not disturb each other, and V behind the end
    is 0."""
    mask, g = ragged()
    rewards, values = torch.randn(5, 7, generator=g) * mask, torch.randn(5, 7, generator=g)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b in range(5):
        n = int(mask[b].sum())
        expected = naive_gae(rewards[b], values[b], n, gamma, lam)
        close(advantages[b, :n], expected, 1e-5)
        close(returns[b, :n], [a + v for a, v in zip(expected, values[b, :n].tolist(), strict=True)], 1e-5)
        assert [x[b, n:].tolist() for x in (advantages, returns)] == [[0] * (7 - n)] * 2, "on the padding"


def test_an_answer_of_one_token_is_worth_its_reward():
    one = torch.ones(1, 1)
    advantages, returns = gae(3 * one, 2 * one, one, 0.9, 0.9)
    assert (advantages.item(), returns.item()) == (1, 3)


def test_gae_does_not_bootstrap_past_the_end():
    """The critic's opinion of the padding, and of what would follow a full row, counts nothing."""
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    rewards = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    quiet = gae(rewards, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.5]]), mask, 1.0, 0.95)
    loud = gae(rewards, torch.tensor([[0.5, 0.5, 99.0], [0.5, 0.5, 0.5]]), mask, 1.0, 0.95)
    close(quiet[0], loud[0])
    close(quiet[1], loud[1])
    assert quiet[0][0, 1].item() == pytest.approx(0.5) and quiet[0][1, 2].item() == pytest.approx(0.5)


def test_gae_ignores_garbage_rewards_and_values_on_padding():
    mask, g = ragged(seed=3)
    rewards, values = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g)
    clean = gae(rewards * mask, values * mask, mask, 0.9, 0.8)
    real = mask.bool()
    dirty = gae(rewards.where(real, -1e3), values.where(real, 1e3), mask, 0.9, 0.8)
    pads = torch.ones(5, 2)
    longer = [torch.cat(x, 1) for x in ((rewards * mask, 0 * pads), (values, 50 * pads), (mask, 0 * pads))]
    padded = gae(*longer, 0.9, 0.8)
    close(clean[1] - clean[0], values * mask)
    for i in range(2):
        close(clean[i], dirty[i])
        close(padded[i][:, :7], clean[i])


# ------------------------------------------------------------------------------------------------
# Whitening
# ------------------------------------------------------------------------------------------------


def test_whitening_by_hand():
    """(1, 2, 3): mean 2, biased variance 2/3. The unbiased variance would give (-1, 0, 1)."""
    root = math.sqrt(1.5)
    close(whiten(torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3)), [[-root, 0, root]])
    close(whiten(torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3), shift_mean=False), [[2 - root, 2, 2 + root]])


def test_whitening_removes_the_mean_and_keeps_it_only_when_asked():
    mask, g = ragged()
    x = 5 + 3 * torch.randn(5, 7, generator=g)
    mean = ((x * mask).sum() / mask.sum()).item()
    for shift_mean, expected in ((True, 0.0), (False, mean)):
        white = whiten(x, mask, shift_mean)[mask.bool()]
        assert white.mean().item() == pytest.approx(expected, abs=1e-5)
        assert white.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_whitening_sees_only_real_tokens():
    mask, g = ragged()
    x = torch.randn(5, 7, generator=g)
    for shift in (True, False):
        clean, dirty = whiten(x, mask, shift), whiten(x.where(mask.bool(), 1e3), mask, shift)
        close(clean, dirty, 1e-5)
        close(dirty * (1 - mask), torch.zeros(5, 7))
        assert dirty[mask.bool()].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_whitening_equal_advantages_gives_no_infinity():
    equal = torch.full((2, 3), 0.7)
    close(whiten(equal, torch.ones(2, 3)), torch.zeros(2, 3), 1e-2)
    close(whiten(equal, torch.ones(2, 3), shift_mean=False), equal, 1e-2)


def test_whitening_adds_its_small_number_to_the_variance():
    """1e-4 times (1, 2, 3): the variance is 2/3 of 1e-8."""
    root = 1 / math.sqrt(2 / 3 + 1)
    close(whiten(torch.tensor([[1e-4, 2e-4, 3e-4]]), torch.ones(1, 3)), [[-root, 0, root]], 1e-4)


# ------------------------------------------------------------------------------------------------
# The clipped objective
# ------------------------------------------------------------------------------------------------

TABLE = [  # A, rho, loss, d loss / d rho, for c = 0.2
    (1, 0.5, -0.5, -1), (1, 0.8, -0.8, -1), (1, 1.0, -1.0, -1), (1, 1.2, -1.2, None), (1, 1.5, -1.2, 0),
    (-1, 0.5, 0.8, 0), (-1, 0.8, 0.8, None), (-1, 1.0, 1.0, 1), (-1, 1.2, 1.2, 1), (-1, 1.5, 1.5, 1)]


@pytest.mark.parametrize("A, rho, loss, slope", TABLE)
def test_clipped_objective_of_the_worked_table(A, rho, loss, slope):
    """Clipping takes away the gain of moving further, never the cost; its gradient is exactly 0 there. (At
    the border of the clip the slope is either side's and is not tested.)"""
    old = torch.tensor([[-1.0]])
    logprobs = (old + math.log(rho)).requires_grad_()
    got, _ = ppo_policy_loss(logprobs, old, torch.tensor([[float(A)]]), torch.ones(1, 1), 0.2)
    assert got.item() == pytest.approx(loss, abs=1e-6)
    if slope is not None:
        got.backward()
        assert logprobs.grad.item() == (0 if slope == 0 else pytest.approx(slope * rho, abs=1e-6))


def test_a_good_token_becomes_likelier():
    """The sign: descending the loss raises the log-probability where A > 0 and lowers it where A < 0. The
    diagnostics keep no graph."""
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    A = torch.tensor([[2.0, -3.0]])
    loss, numbers = ppo_policy_loss(logprobs, logprobs.detach(), A, torch.ones(1, 2), 0.2)
    loss.backward()
    close(logprobs.grad, [[-1.0, 1.5]])
    assert not any(torch.as_tensor(x).requires_grad for x in numbers.values()), "not detached"


def test_the_clip_is_as_wide_as_asked():
    logprobs, old, A = torch.tensor([[1.3, 0.7]]).log(), torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
    for clip, gain, cost, share in ((0.1, 1.1, 0.9, 1), (0.4, 1.3, 0.7, 0)):
        got, numbers = ppo_policy_loss(logprobs, old, A, torch.ones(1, 2), clip)
        assert got.item() == pytest.approx((cost - gain) / 2, abs=1e-6)
        assert numbers["clip_fraction"] == share


def test_clip_0_means_no_clipping():
    logprobs, A = torch.tensor([[3.0, 0.1]]).log(), torch.tensor([[1.0, -1.0]])
    got, numbers = ppo_policy_loss(logprobs, torch.zeros(1, 2), A, torch.ones(1, 2), 0)
    assert got.item() == pytest.approx((-3 + 0.1) / 2, abs=1e-6)
    assert numbers["clip_fraction"] == 0


def random_policy_batch(B=6, R=7, seed=0):
    mask, g = ragged(B, R, seed)
    return [torch.randn(B, R, generator=g) * 0.5 for _ in range(3)] + [mask]


def test_policy_loss_is_a_mean_over_real_tokens_only():
    logprobs, old, A, mask = random_policy_batch()
    real = mask.bool()
    losses = []
    for new, before, a in zip(logprobs[real].tolist(), old[real].tolist(), A[real].tolist(), strict=True):
        rho = math.exp(new - before)
        losses.append(-min(a * rho, a * min(max(rho, 0.8), 1.2)))
    got, _ = ppo_policy_loss(logprobs, old, A, mask, 0.2)
    assert got.item() == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    garbage = logprobs.where(real, 1.0), old.where(real, 0.0), A.where(real, 9.0)
    again, _ = ppo_policy_loss(*garbage, mask, 0.2)
    assert again.item() == pytest.approx(got.item(), abs=1e-6)


def test_micro_batches_divide_by_the_tokens_of_the_whole():
    """One row with 1 token of loss 1, another with 3 tokens of loss 0: 0.25. The mean of the means would be
    0.5. The numbers add up, too."""
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 1]])
    A, zeros = torch.tensor([[-1.0, 0, 0], [0, 0, 0]]), torch.zeros(2, 3)
    whole, _ = ppo_policy_loss(zeros, zeros, A, mask, 0.2)
    rows = (slice(0, 1), slice(1, 2))
    parts = [ppo_policy_loss(zeros[r], zeros[r], A[r], mask[r], 0.2, mask.sum())[0] for r in rows]
    assert sum(parts).item() == pytest.approx(0.25)
    assert whole.item() == pytest.approx(0.25)
    args = random_policy_batch(seed=2)
    whole, numbers = ppo_policy_loss(*args, 0.2)
    pieces = [ppo_policy_loss(*[x[i : i + 2] for x in args], 0.2, args[-1].sum()) for i in (0, 2, 4)]
    assert sum(loss for loss, _ in pieces).item() == pytest.approx(whole.item(), abs=1e-6)
    added = {name: float(sum(part[name] for _, part in pieces)) for name in numbers}
    assert added == pytest.approx({name: float(x) for name, x in numbers.items()}, abs=1e-6)


def test_clip_fraction_and_approx_kl_by_hand():
    """Four real tokens: clipped (gain cut off), clipped, outside but not clipped (a cost), inside. A pad
    beside them."""
    ratio = torch.tensor([[1.5, 0.5, 1.5, 1.1, 3.0]])
    A, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1, 1, 1, 0]])
    _, numbers = ppo_policy_loss(ratio.log(), torch.zeros(1, 5), A, mask, 0.2)
    assert float(numbers["clip_fraction"]) == pytest.approx(0.5)
    expected = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 1.1)) / 4
    assert float(numbers["approx_kl"]) == pytest.approx(expected, abs=1e-6)


def test_masked_mean_by_hand():
    x, mask = torch.tensor([[1.0, 2, 100]]), torch.tensor([[1.0, 1, 0]])
    assert masked_mean(x, mask).item() == 1.5
    assert masked_mean(x, mask, 6).item() == 0.5


# ------------------------------------------------------------------------------------------------
# The value loss
# ------------------------------------------------------------------------------------------------


def one_value_loss(value, old, target, clip):
    value, one = torch.tensor([[value]], requires_grad=True), torch.ones(1, 1)
    loss = value_loss(value, old * one, target * one, one, clip)
    loss.backward()
    return loss.item(), value.grad.item()


def test_value_loss_takes_the_larger_error():
    """v 1, old 0, clip 0.2, return 2: errors 1 and (0.2 - 2)^2 = 3.24; half the larger is 1.62, and it stops
    the gradient. With return -1 the plain error, 4, is the larger: half of it, with gradient v + 1 = 2."""
    assert one_value_loss(1.0, 0.0, 2.0, 0.2) == pytest.approx((1.62, 0), abs=1e-6)
    assert one_value_loss(1.0, 0.0, -1.0, 0.2) == pytest.approx((2.0, 2.0), abs=1e-6)
    assert one_value_loss(1.0, 0.0, 2.0, 0.5) == pytest.approx((1.125, 0), abs=1e-6), "half of (0.5 - 2)^2"


def test_value_loss_inside_the_clip_and_without_it_is_half_the_squared_error():
    assert one_value_loss(0.1, 0.0, 2.0, 0.2) == pytest.approx((0.5 * 1.9**2, -1.9), abs=1e-6)
    assert one_value_loss(1.0, 0.0, 2.0, 0) == pytest.approx((0.5, -1.0), abs=1e-6)


def test_value_loss_sees_only_real_tokens_and_adds_up_over_micro_batches():
    values, old, returns, mask = random_policy_batch(seed=5)
    real = mask.bool()
    errors = []
    for v, o, g in zip(values[real].tolist(), old[real].tolist(), returns[real].tolist(), strict=True):
        errors.append(max((v - g) ** 2, (min(max(v, o - 0.2), o + 0.2) - g) ** 2))
    expected = pytest.approx(0.5 * sum(errors) / len(errors), abs=1e-6)
    assert value_loss(values, old, returns, mask, 0.2).item() == expected
    garbage = values.where(real, 7.0), old, returns.where(real, -7.0)
    assert value_loss(*garbage, mask, 0.2).item() == expected
    rows = [slice(i, i + 2) for i in (0, 2, 4)]
    parts = [value_loss(values[r], old[r], returns[r], mask[r], 0.2, mask.sum()) for r in rows]
    assert sum(parts).item() == expected


# ------------------------------------------------------------------------------------------------
# KL estimates, adaptive beta
# ------------------------------------------------------------------------------------------------


def test_kl_estimates_are_sums_over_an_answer_averaged_over_answers():
    """d = (0.2, -0.5, 0.4) in the first row, 0.3 and a pad in the second. k3 is exp(-d) - 1 + d, not
    exp(d) - 1 - d."""
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 5.0, 5.0]])
    ref = torch.tensor([[-1.2, -1.5, -0.9], [-1.3, -5.0, 0.0]])
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    k1, k3 = kl_estimates(logprobs, ref, mask)
    assert k1.item() == pytest.approx((0.1 + 0.3) / 2, abs=1e-6)
    expected = sum(math.exp(-d) - 1 + d for d in (0.2, -0.5, 0.4, 0.3)) / 2
    assert k3.item() == pytest.approx(expected, abs=1e-6)


def test_both_kl_estimates_are_unbiased():
    """Weighted by the policy's own probabilities, k1 and k3 of all tokens add up to the exact KL."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum().item()
    one = torch.ones(1, 1)
    of_tokens = [kl_estimates(a.log() * one, b.log() * one, one) for a, b in zip(p, q, strict=True)]
    for estimate in zip(*of_tokens, strict=True):
        assert (p * torch.stack(estimate)).sum().item() == pytest.approx(exact, abs=1e-6)


def test_adaptive_beta_of_the_worked_example():
    beta = 0.15
    for kl, expected in ((12, 0.151536), (12, 0.153088), (3, 0.15152), (6, 0.15152)):
        beta = adapt_kl_coef(beta, kl, 6, 512, 10000)
        assert beta == pytest.approx(expected, abs=1e-6)


def test_adaptive_beta_moves_in_proportion_within_its_limits():
    assert adapt_kl_coef(1.0, 6.6, 6, 100, 1000) == pytest.approx(1.01)  # 10 % too much, n/horizon 0.1
    assert adapt_kl_coef(1.0, -3, 6, 100, 1000) == pytest.approx(0.98)


# ------------------------------------------------------------------------------------------------
# The loss of a minibatch
# ------------------------------------------------------------------------------------------------


def config(**changes):
    knobs = dict(max_new_tokens=8, temperature=0.7, score_scale="sft", eos_penalty=0.0, gamma=1.0, lam=0.95,
                 whiten_advantages=True, ppo_epochs=1, minibatch_size=8, micro_batch_size=3, clip=0.2,
                 value_clip=0.2, value_coef=0.1, ptx_coef=0.0, clip_grad=0.0, critic="separate")
    return SimpleNamespace(**{**knobs, **changes})


def two_networks(make_gpt):
    return Agent(make_gpt(std=0.3), make_gpt(seed=5, std=0.3, value_head=True))


def one_network(make_gpt, value_coef=0.1):
    policy = make_gpt(std=0.3, value_head=True)
    return Agent(policy, policy, value_coef)


BUILDERS = pytest.mark.parametrize("build", [one_network, two_networks])


@torch.no_grad()
def sampled_batch(agent, cfg, B=8):
    """Answers of a policy to ragged prompts, with made-up advantages and returns."""
    prompt_lengths = torch.tensor([1 + i % 4 for i in range(B)])
    prompts = torch.where(torch.arange(4) < prompt_lengths[:, None], torch.randint(0, 10, (B, 4)), PAD)
    responses, mask, old_logprobs = generate(
        agent.policy, prompts, prompt_lengths, 8, cfg.temperature, EOS, PAD)
    tokens, _ = join(prompts, prompt_lengths, responses, mask, PAD)
    assert 0 < mask.sum() < mask.numel(), "these tests need answers of different lengths"
    made_up = {name: torch.randn(mask.shape) * mask for name in ("advantages", "returns")}
    return Batch(texts=list("abcdefghij")[:B], tokens=tokens, prompt_lengths=prompt_lengths,
                 responses=responses, mask=mask, ended=(responses == EOS).any(1), raw=torch.zeros(B),
                 scores=torch.zeros(B), old_logprobs=old_logprobs, ref_logprobs=old_logprobs - 0.5,
                 rewards=torch.zeros(mask.shape),
                 old_values=agent.values(tokens, prompt_lengths, mask.shape[1]), **made_up)


def test_a_part_of_a_batch_is_cut_to_its_longest_answer(make_gpt):
    """Rows 2 and 0, in this order, with 3 and 1 real tokens of 4, behind prompts of 1 and 2."""
    mask = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    numbers = torch.arange(12.0).view(3, 4)
    R = {f.name: numbers for f in dataclasses.fields(Batch)[1:]}
    batch = Batch(**R | dict(texts=["a", "b", "c"], mask=mask, prompt_lengths=torch.tensor([2, 5, 1]),
                             tokens=torch.arange(27).view(3, 9), ended=torch.tensor([True, True, False]),
                             raw=torch.zeros(3), scores=torch.tensor([1.0, 2.0, 3.0])))
    part = batch.take(torch.tensor([2, 0]))
    assert part.texts == ["c", "a"] and part.ended.tolist() == [False, True]
    assert part.scores.tolist() == [3, 1] and part.prompt_lengths.tolist() == [1, 2]
    assert part.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert part.returns.tolist() == [[8, 9, 10], [0, 1, 2]], "the longest of them has 3 tokens"
    assert part.tokens.tolist() == [list(range(18, 23)), list(range(5))], "2 of a prompt, 3 of an answer"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_first_ratio_is_1_at_any_temperature(make_gpt, temperature):
    """Sampling and training must mean the same distribution: the temperature divides the logits in both."""
    cfg, agent = config(temperature=temperature), two_networks(make_gpt)
    batch = sampled_batch(agent, cfg)
    _, numbers = ppo_loss(agent, batch, batch.mask.sum(), cfg)
    assert float(numbers["approx_kl"]) == pytest.approx(0, abs=1e-6)
    assert numbers["clip_fraction"] == 0
    expected = -masked_mean(batch.advantages, batch.mask).item()
    assert float(numbers["policy_loss"]) == pytest.approx(expected, abs=1e-5)
    logits, _ = agent(batch.tokens, batch.prompt_lengths, batch.mask.shape[1])
    drift = token_logprobs(logits, batch.responses, temperature) - batch.old_logprobs
    assert (drift * batch.mask).abs().max().item() < 1e-4


def test_the_ratio_compares_with_the_policy_that_sampled(make_gpt):
    """Once the weights have moved, the ratio is no longer 1: the old log-probabilities stay those of the
    sampler."""
    cfg, old = config(), two_networks(make_gpt)
    batch = sampled_batch(old, cfg)
    new = Agent(make_gpt(std=0.32).requires_grad_(False), old.critic)
    _, numbers = ppo_loss(new, batch, batch.mask.sum(), cfg)
    total = 0.0
    for b, t in batch.mask.nonzero().tolist():
        n = batch.prompt_lengths[b].item()
        logits = new.policy(batch.tokens[b : b + 1, : n + t])[0, -1] / cfg.temperature
        logprob = logits.log_softmax(-1)[batch.responses[b, t]]
        rho, A = math.exp(logprob - batch.old_logprobs[b, t]), batch.advantages[b, t].item()
        total -= min(A * rho, A * min(max(rho, 0.8), 1.2))
    assert numbers["approx_kl"] > 1e-3
    expected = total / batch.mask.sum().item()
    assert float(numbers["policy_loss"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("build, weight", [(one_network, 0.1), (two_networks, 1.0)])
def test_the_value_loss_has_the_weight_of_the_agent(make_gpt, build, weight):
    """In the loss and in its gradient."""
    cfg, agent = config(), build(make_gpt)
    batch = sampled_batch(agent, cfg)
    batch.old_values = batch.old_values + 0.5  # further than the clip
    loss, numbers = ppo_loss(agent, batch, batch.mask.sum(), cfg)
    logits, values = agent(batch.tokens, batch.prompt_lengths, batch.mask.shape[1])
    logprobs = token_logprobs(logits, batch.responses, cfg.temperature)
    p_loss, _ = ppo_policy_loss(logprobs, batch.old_logprobs, batch.advantages, batch.mask, 0.2)
    v_loss = value_loss(values, batch.old_values, batch.returns, batch.mask, 0.2)
    assert float(numbers["value_loss"]) == pytest.approx(v_loss.item(), abs=1e-5)
    assert loss.item() == pytest.approx((p_loss + weight * v_loss).item(), abs=1e-5)
    one, other = (torch.autograd.grad(x, agent.parameters()) for x in (loss, p_loss + weight * v_loss))
    for gradient, expected in zip(one, other, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)


@BUILDERS
def test_a_value_belongs_to_the_moment_before_its_token(make_gpt, build):
    """V_t knows the prompt and the tokens before t, not token t; and so do the logits."""
    agent = build(make_gpt)
    tokens, lengths = torch.tensor([[1, 2, 3, 4], [5, 6, 7, PAD]]), torch.tensor([2, 1])
    seen = [[1, 2], [1, 2, 3], [5], [5, 6]]
    logits, values = agent(tokens, lengths, 2)
    last = [agent.critic.hidden(torch.tensor([ids]))[0, -1] for ids in seen]
    close(values.flatten(), [agent.critic.value_head(x).item() for x in last], 1e-5)
    close(agent.values(tokens, lengths, 2), values, 1e-6)
    for got, ids in zip(logits.flatten(0, 1), seen, strict=True):
        close(got, agent.policy(torch.tensor([ids]))[0, -1], 1e-4)


@BUILDERS
def test_gradients_of_micro_batches_add_up_to_those_of_the_minibatch(make_gpt, build):
    """Also where the pieces hold very different numbers of real tokens."""
    cfg, agent = config(), build(make_gpt)
    batch = sampled_batch(agent, cfg)
    batch.old_logprobs = batch.old_logprobs + 0.1 * torch.randn(batch.mask.shape)
    gradients, numbers = [], []
    for size in (8, 3, 1):
        agent.zero_grad()
        total = {}
        for rows in torch.arange(8).split(size):
            loss, about = ppo_loss(agent, batch.take(rows), batch.mask.sum(), cfg)
            loss.backward()
            total = {name: total.get(name, 0.0) + float(x) for name, x in about.items()}
        numbers.append(total)
        gradients.append(torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-3
    for gradient, total in zip(gradients[1:], numbers[1:], strict=True):
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-4)
        assert total == pytest.approx(numbers[0], abs=1e-5)


def test_padding_a_batch_further_changes_nothing(make_gpt):
    cfg, agent = config(), two_networks(make_gpt)
    batch = sampled_batch(agent, cfg)
    longer = {}
    for field in dataclasses.fields(Batch)[1:]:
        x = getattr(batch, field.name)
        fill = PAD if field.name in ("tokens", "responses") else 0
        pads = torch.full((8, 3), fill, dtype=x.dtype)
        longer[field.name] = torch.cat([x, pads], 1) if x.dim() == 2 else x
    one, two = (ppo_loss(agent, b, batch.mask.sum(), cfg)[0].item()
                for b in (batch, Batch(batch.texts, **longer)))
    assert one == pytest.approx(two, abs=1e-5)


# ------------------------------------------------------------------------------------------------
# Update
# ------------------------------------------------------------------------------------------------


def test_every_pass_takes_all_answers_in_a_new_order(make_gpt, monkeypatch):
    """Eight passes over 8 answers, at most 5 a step: 4 and 4, not 5 and 3; in parts of 3. All that is known
    of an answer stays as it was when it was sampled."""
    calls = watch(monkeypatch, "ppo_loss", train_ppo)
    cfg, agent = config(ppo_epochs=8, minibatch_size=5, micro_batch_size=3), two_networks(make_gpt)
    batch = sampled_batch(agent, cfg)
    sampled = dataclasses.replace(batch)
    updates = update(agent, torch.optim.SGD(agent.parameters(), lr=0.1), batch, cfg)
    drawn = ["".join(args[1].texts) for args, _ in calls]
    for args, _ in calls:
        known = sampled.take(torch.tensor(["abcdefgh".index(text) for text in args[1].texts]))
        for name in ("old_logprobs", "old_values", "advantages", "returns", "mask", "responses"):
            got, expected = getattr(args[1], name).tolist(), getattr(known, name).tolist()
            assert got == expected, f"{name} of a part has changed"
    assert len(updates) == 16 and [len(texts) for texts in drawn] == [3, 1, 3, 1] * 8
    passes = [drawn[i : i + 4] for i in range(0, 32, 4)]
    for parts in passes:
        assert sorted("".join(parts)) == list("abcdefgh")
    first = {frozenset("".join(parts[:2])) for parts in passes}
    assert len(first) > 2, "not always the same go first, nor the same ones together"


@pytest.mark.parametrize("most, sizes", [(4, [3, 3, 4]), (5, [5, 5]), (8, [5, 5])])
def test_minibatches_have_the_same_size_or_one_less(make_gpt, monkeypatch, most, sizes):
    """10 answers, at most 4 a step: 4, 3 and 3, not 4, 4 and 2, and not 5 and 5."""
    calls = watch(monkeypatch, "ppo_loss", train_ppo)
    cfg, agent = config(minibatch_size=most, micro_batch_size=10), two_networks(make_gpt)
    batch = sampled_batch(agent, cfg, 10)
    update(agent, torch.optim.SGD(agent.parameters(), lr=0), batch, cfg)
    assert sorted(len(args[1].texts) for args, _ in calls) == sizes


def test_the_order_of_answers_comes_from_the_seed_of_torch(make_gpt, monkeypatch):
    """Then a seed gives the same training again, bit for bit, and another seed another training. The next
    iteration has orders of its own."""
    calls, orders = watch(monkeypatch, "ppo_loss", train_ppo), []
    for seed, other in ((1, 1), (1, 2), (2, 2)):
        cfg, agent, batch = before_an_update(make_gpt, minibatch_size=5, ppo_epochs=3)
        torch.manual_seed(seed)
        random.seed(other)
        np.random.seed(other)
        for _ in range(2):
            calls.clear()
            update(agent, torch.optim.SGD(agent.parameters(), lr=0), batch, cfg)
            orders.append([args[1].texts for args, _ in calls])
    assert orders[0] == orders[2], "random numbers that are not torch's have a part in it"
    assert orders[0] != orders[1], "two iterations have the same orders"
    assert orders[0] != orders[4], "the seed of torch has no part in it"


def test_the_parts_of_a_minibatch_divide_by_its_tokens(make_gpt, monkeypatch):
    """Two minibatches of 4 answers in parts of 3 and 1: all parts of one get the number of its real tokens,
    and their numbers are added up."""
    calls = watch(monkeypatch, "ppo_loss", train_ppo)
    cfg, agent = config(minibatch_size=5, micro_batch_size=3), two_networks(make_gpt)
    updates = update(agent, torch.optim.SGD(agent.parameters(), lr=0), sampled_batch(agent, cfg), cfg)
    for numbers, some in zip(updates, (calls[:2], calls[2:]), strict=True):
        del numbers["grad_norm"]
        expected = {name: sum(float(about[name]) for _, (_, about) in some) for name in calls[0][1][1]}
        assert numbers == pytest.approx(expected, abs=1e-6)
    parts = [(args[1].mask.sum().item(), args[2]) for args, _ in calls]
    for minibatch in (parts[:2], parts[2:]):
        total = sum(tokens for tokens, _ in minibatch)
        assert [n for _, n in minibatch] == [total] * len(minibatch)
    assert len({tokens for tokens, _ in parts}) > 1, "answers of different lengths"


def before_an_update(make_gpt, **changes):
    """Knobs, an agent and a batch, always the same ones."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    cfg, agent = config(**changes), two_networks(make_gpt)
    return cfg, agent, sampled_batch(agent, cfg)


def gradients_of(agent):
    """A long vector for each network."""
    return [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in agent.networks]


def steps(make_gpt, **changes):
    """An update whose optimizer moves nothing and keeps what it gets. Returns, for each step, the gradients
    of policy and critic, two long vectors, and the dict of the step. Its text for pretraining is one token,
    again and again."""
    cfg, agent, batch = before_an_update(make_gpt, **changes)
    seen = []

    class Still(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(gradients_of(agent))

    numbers = update(agent, Still(agent.parameters(), lr=1), batch, cfg, np.full(400, 3))
    assert len(seen) == len(numbers), f"{len(seen)} optimizer steps, {len(numbers)} dicts of numbers"
    return [(*gradients, about) for gradients, about in zip(seen, numbers, strict=True)]


def test_the_gradient_of_a_step_is_that_of_the_loss(make_gpt):
    ([*found, _],) = steps(make_gpt)
    cfg, agent, batch = before_an_update(make_gpt)
    loss, _ = ppo_loss(agent, batch, batch.mask.sum(), cfg)
    loss.backward()
    for gradient, expected in zip(found, gradients_of(agent), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_every_minibatch_begins_without_gradients(make_gpt, monkeypatch):
    """Two passes over two minibatches of 4 answers, in parts of 3 and 1. The weights stay where they are: the
    gradients of a pass, weighed by their tokens, are together that of the batch."""
    ([*whole, _],) = steps(make_gpt)
    calls = watch(monkeypatch, "ppo_loss", train_ppo)
    found = steps(make_gpt, ppo_epochs=2, minibatch_size=5, micro_batch_size=3)
    tokens = [args[1].mask.sum() for args, _ in calls]
    assert len(found) == 4, "optimizer steps"
    for first, second in (found[:2], found[2:]):
        n, m, tokens = sum(tokens[:2]), sum(tokens[2:4]), tokens[4:]
        for one, other, expected in zip(first[:2], second[:2], whole, strict=True):
            torch.testing.assert_close((n * one + m * other) / (n + m), expected, atol=1e-4, rtol=1e-3)


def test_gradients_are_clipped_for_each_network_by_itself(make_gpt):
    """However many parts a minibatch is cut into. The norm that is kept is the policy's before clipping."""
    ([*free, numbers],) = steps(make_gpt)
    ([*whole, _],) = steps(make_gpt, micro_batch_size=8)
    ([*clipped, again],) = steps(make_gpt, clip_grad=1e-3)
    assert numbers["grad_norm"] == pytest.approx(free[0].norm().item(), rel=1e-3)
    assert again["grad_norm"] == pytest.approx(numbers["grad_norm"], rel=1e-3)
    for a, b, c in zip(free, clipped, whole, strict=True):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-3)
        assert a.norm() > 1e-2 and b.norm().item() == pytest.approx(1e-3, rel=0.01)
        assert torch.cosine_similarity(a, b, 0).item() == pytest.approx(1, abs=1e-3)


def test_the_loss_on_pretraining_text_has_its_weight(make_gpt):
    """Its gradient is that of the language-model loss, on the policy alone, once a step, and is clipped with
    the rest."""
    knobs = {"ppo_epochs": 1, "minibatch_size": 4, "micro_batch_size": 2}
    without = steps(make_gpt, **knobs)
    found = steps(make_gpt, ptx_coef=3.0, **knobs)
    model = make_gpt(std=0.3)
    text = torch.full((1, 24), 3)
    (3 * lm_loss(model(text[:, 1:]), text[:, 1:])).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    for (policy, critic, _), (plain, same, _) in zip(found, without, strict=True):
        torch.testing.assert_close(policy - plain, expected, atol=1e-4, rtol=1e-3)
        close(critic, same)
    ([policy, *_],) = steps(make_gpt, ptx_coef=3.0, clip_grad=1e-3)
    assert policy.norm().item() == pytest.approx(1e-3, rel=0.01), "clipped with the rest"


# ------------------------------------------------------------------------------------------------
# Rollout, with models that know nothing
# ------------------------------------------------------------------------------------------------


class Lengths:
    """In place of a reward model: long answers are good ones."""

    models, mean, std = [], 3.0, 2.0

    def raw(self, tokens, lengths, prompts, texts):
        ids = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        self.asked = ids, prompts, texts
        return lengths.float()


def rolled_out(make_gpt, enc, prompts=PROMPTS, reference=None, kl_coef=0.1, scorer=None, **changes):
    """A batch of a random policy, with its config and its agent."""
    shape = {"std": 0.2, "vocab_size": enc.n_vocab, "block_size": 64}
    cfg, policy = config(**changes), some_answers_end(make_gpt(**shape), enc)
    agent = Agent(policy, make_gpt(seed=5, value_head=True, **shape))
    ids = [data.encode_prompt(enc, prompt) for prompt in prompts]
    for _ in range(20):
        batch = rollout(agent, reference or policy, scorer or Lengths(), enc, prompts, ids, cfg, kl_coef)
        if 0 < batch.ended.sum() < len(prompts):
            return batch, cfg, agent
    raise AssertionError("these tests need answers of both kinds, and twenty batches have none such")


def test_a_batch_holds_what_the_formulas_give(make_gpt, enc):
    """Scores in deviations measured before, rewards from them, advantages and returns from these. The scorer
    gets the prompts, the texts of the answers, and the tokens of both up to an EOS."""
    other, scorer = make_gpt(seed=9, std=0.2, vocab_size=enc.n_vocab, block_size=64), Lengths()
    b, cfg, agent = rolled_out(make_gpt, enc, PROMPTS, other, 0.3, scorer, gamma=0.9, lam=0.7)
    close(b.raw, b.prompt_lengths + b.mask.sum(1) + ~b.ended)
    close(b.scores, (b.raw - 3) / 2, 1e-4)
    answers = [r[m.bool()].tolist() for r, m in zip(b.responses, b.mask, strict=True)]
    seen = [data.encode_prompt(enc, prompt) + ids for prompt, ids in zip(PROMPTS, answers, strict=True)]
    width, pad = int(b.prompt_lengths.max()) + b.mask.shape[1], data.special_id(enc, "pad")
    assert b.tokens.tolist() == [ids + [pad] * (width - len(ids)) for ids in seen]
    assert b.prompt_lengths.tolist() == [len(data.encode_prompt(enc, prompt)) for prompt in PROMPTS]
    assert b.texts == [data.decode_response(enc, ids) for ids in answers]
    to_eos = [ids + [enc.eot_token] * (ids[-1] != enc.eot_token) for ids in seen]
    assert scorer.asked == (to_eos, PROMPTS, b.texts), "what the scorer got"
    assert not any(getattr(b, f.name).requires_grad for f in dataclasses.fields(b)[1:]), "it keeps a graph"
    logits, _ = Agent(other, agent.critic)(b.tokens, b.prompt_lengths, b.mask.shape[1])
    close((b.ref_logprobs * b.mask), token_logprobs(logits, b.responses, 0.7).detach() * b.mask, 1e-5)
    close(b.rewards, kl_shaped_rewards(b.scores, b.old_logprobs, b.ref_logprobs, b.mask, 0.3))
    values = agent.values(b.tokens, b.prompt_lengths, b.mask.shape[1]).detach()
    close(b.old_values * b.mask, values * b.mask)
    advantages, returns = gae(b.rewards, b.old_values, b.mask, 0.9, 0.7)
    close(b.returns, returns)
    close(b.advantages, whiten(advantages, b.mask))


def test_only_the_advantages_are_whitened(make_gpt, enc):
    """The critic learns the returns as GAE gives them, on the scale of the rewards."""
    for asked in (True, False):
        torch.manual_seed(0)
        b, cfg, _ = rolled_out(make_gpt, enc, whiten_advantages=asked)
        advantages, returns = gae(b.rewards, b.old_values, b.mask, cfg.gamma, cfg.lam)
        close(b.returns, returns)
        close(b.advantages, whiten(advantages, b.mask) if asked else advantages)
        assert advantages[b.mask.bool()].std().item() != pytest.approx(1, abs=0.1)


def test_scores_are_in_deviations_of_sft_answers_or_of_the_batch(make_gpt, enc):
    usual, _, _ = rolled_out(make_gpt, enc)
    close(usual.scores, (usual.raw - 3) / 2, 1e-4)
    torch.manual_seed(0)
    batch, _, _ = rolled_out(make_gpt, enc, score_scale="batch")
    close(batch.scores, (batch.raw - batch.raw.mean()) / batch.raw.std(correction=0), 1e-4)


def test_an_answer_that_was_cut_off_has_the_penalty_as_its_score(make_gpt, enc):
    """Not one that ends with the last token there is room for. The penalty is no raw score, and is put in
    place of better scores and, where the mean is 3000, of worse ones."""
    for mean in (3.0, 3000.0):
        scorer, knobs = Lengths(), {"eos_penalty": 700.0, "max_new_tokens": 3}
        scorer.mean = mean
        batch, _, _ = rolled_out(make_gpt, enc, PROMPTS[:4] * 16, scorer=scorer, **knobs)
        ended = (batch.responses == enc.eot_token).any(1)
        assert (batch.responses[:, 2] == enc.eot_token).any(), "this test needs an answer that just ends"
        assert batch.ended.tolist() == ended.tolist()
        close(batch.raw, batch.prompt_lengths + batch.mask.sum(1) + ~ended)
        close(batch.scores, torch.where(ended, (batch.raw - mean) / 2, -700.0), 1e-3)


def test_a_score_is_read_at_an_eos(make_gpt, enc):
    """Also where an answer was cut off, as in tables, which score texts: at another token no reward model has
    learned to say a score. The batch that is learned from does not get that EOS."""
    model = make_gpt(seed=3, reward_head=True, vocab_size=enc.n_vocab, block_size=64)
    batch, _, _ = rolled_out(make_gpt, enc, scorer=Scorer("overall", [model]))
    lengths = (batch.prompt_lengths + batch.mask.sum(1)).long()
    for row, n, score in zip(batch.tokens.tolist(), lengths.tolist(), batch.raw, strict=True):
        ids = row[:n] if row[n - 1] == enc.eot_token else [*row[:n], enc.eot_token]
        close(score, model.score(torch.tensor([ids]), torch.tensor([len(ids)]))[0].detach(), 1e-4)
    cut_off = batch.responses[~batch.ended]
    assert not (cut_off == enc.eot_token).any() and batch.mask[~batch.ended].all()


def test_a_step_has_one_temperature(make_gpt, enc):
    """Sampler and reference, too: where they are the same model, all log-probabilities are the same."""
    batch, _, _ = rolled_out(make_gpt, enc, temperature=1.3)
    close(batch.ref_logprobs * batch.mask, batch.old_logprobs * batch.mask, 1e-4)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_agent_begins_as_the_reference_and_leaves_it_alone(make_gpt, critic):
    """The critic's values are 0, a separate one has the reward model's trunk; dropout is off."""
    reference, rm = make_gpt(1, dropout=0.5), make_gpt(2, reward_head=True, dropout=0.5)
    agent = make_agent(config(critic=critic), reference, SimpleNamespace(models=[rm]))
    tokens, lengths = torch.tensor([[1, 2, 3, 4]]), torch.tensor([2])
    logits, values = agent(tokens, lengths, 2)
    close(logits, reference(tokens)[:, 1:3], 1e-5)
    assert not values.any() and not any(module.training for module in agent.modules())
    assert len(agent.networks) == (1 if critic == "shared" else 2)
    assert agent.value_coef == (0.1 if critic == "shared" else 1.0)
    trunk = rm if critic == "separate" else reference
    close(agent.critic.hidden(tokens), trunk.hidden(tokens), 1e-6)
    before = reference(tokens)
    with torch.no_grad():
        for p in agent.parameters():
            p.zero_()
    close(reference(tokens), before)


# ------------------------------------------------------------------------------------------------
# The loop, with models that know nothing
# ------------------------------------------------------------------------------------------------

FORMULAS = ("generate", "kl_shaped_rewards", "gae", "ppo_loss", "ppo_policy_loss", "value_loss")
FLAGS = ("--data mine --batch_size 8 --minibatch_size 8 --micro_batch_size 8 --max_new_tokens 8 --warmup 0 "
         "--device cpu")


@pytest.fixture
def loop(random_run, monkeypatch):
    """loop(flags) runs train_ppo.py from random models and 8 prompts. Returns the rows of its metrics, and
    what its formulas got and gave: {name: [(arguments, result)]}."""
    calls = {name: watch(monkeypatch, name, train_ppo) for name in FORMULAS}

    def run(flags):
        train_ppo.main(f"{FLAGS} {flags}".split())
        metrics = (random_run / "ppo.jsonl").read_text().splitlines()
        return [json.loads(line) for line in metrics], calls

    return run


def test_the_formulas_get_the_knobs(loop, random_run, enc, monkeypatch):
    """Each its own, and none a number that was written into the loop; the loss on text gets the text to learn
    from, too."""
    knobs = "--temperature 0.8 --kl_coef 0.3 --gamma 0.9 --lam 0.7 --clip 0.1 --value_clip 0.4 --ptx_coef 2"
    on_text = watch(monkeypatch, "add_ptx_gradient", train_ppo)
    _, calls = loop(f"--steps 1 {knobs}")
    got = {name: calls[name][0][0] for name in calls}
    assert got["generate"][3:5] == (8, 0.8)
    assert got["kl_shaped_rewards"][4] == 0.3 and got["gae"][3:5] == (0.9, 0.7)
    assert got["ppo_policy_loss"][4] == 0.1 and got["value_loss"][4] == 0.4
    (_, corpus, coef), _ = on_text[0]
    assert coef == 2 and enc.decode(corpus.tolist()) == (random_run / "data/pretrain.txt").read_text()


def test_every_prompt_goes_with_its_tokens(loop, enc, monkeypatch):
    """The scorer gets the text, the policy the tokens: of the same prompt. Each is asked, the last one, too:
    that one of 8 is missing among 128 happens once in a million times."""
    roll, asked = train_ppo.rollout, []

    def noted(*args):
        asked.extend(zip(args[4], args[5], strict=True))
        return roll(*args)

    monkeypatch.setattr(train_ppo, "rollout", noted)
    loop("--steps 1 --batch_size 128 --minibatch_size 128 --micro_batch_size 128 --ppo_epochs 1")
    assert {prompt for prompt, _ in asked} == set(PROMPTS)
    assert all(ids == data.encode_prompt(enc, prompt) for prompt, ids in asked)


def test_an_iteration_is_sample_score_shape_advantages_update(loop, monkeypatch):
    """In this order, and once each but for the updates: two minibatches, two passes."""
    order = []
    for name in ("generate", "whiten_scores", "kl_shaped_rewards", "gae", "whiten", "ppo_loss"):
        formula = getattr(train_ppo, name)

        def noted(*args, name=name, formula=formula, **named):
            order.append(name)
            return formula(*args, **named)

        monkeypatch.setattr(train_ppo, name, noted)
    loop("--steps 2 --minibatch_size 4 --ppo_epochs 2")
    once = ["generate", "whiten_scores", "kl_shaped_rewards", "gae", "whiten"] + 4 * ["ppo_loss"]
    assert order == 2 * [*once, "whiten_scores"], "the last is the score of the log"


def test_a_run_has_one_temperature(loop):
    """Before the first update the KL is 0 and every ratio 1, at a temperature other than 1, too."""
    (first,), _ = loop("--steps 1 --temperature 0.7")
    names = ("kl", "kl_full", "approx_kl", "clip_fraction")
    assert max(abs(first[name]) for name in names) < 1e-5


def test_the_reference_stays_where_it_was(loop):
    """Nothing but the policy moves: the KL grows from 0."""
    (first, second), _ = loop("--steps 2 --lr 0.01")
    assert abs(first["kl_full"]) < 1e-5 and second["kl_full"] > 1e-3


def test_the_score_of_the_log_is_on_the_sft_scale(loop):
    """Over each batch by itself it would be 0 in all iterations."""
    (first,), _ = loop("--steps 1 --score_scale batch --temperature 2")
    assert abs(first["score"]) > 1e-3


def test_beta_moves_by_the_kl_of_each_iteration(loop):
    """It is far below the target: beta falls by the most, 0.2 x 8 answers / horizon 8, again and again."""
    rows, calls = loop("--steps 3 --kl_coef 0.5 --kl_target 100 --kl_horizon 8")
    assert [row["kl_coef"] for row in rows] == pytest.approx([0.5, 0.4, 0.32])
    assert [args[4] for args, _ in calls["kl_shaped_rewards"]] == pytest.approx([0.5, 0.4, 0.32])


def test_each_network_has_its_learning_rate_and_both_warm_up(loop):
    rows, _ = loop("--steps 8 --lr 0.01 --critic_lr 0.02 --warmup 2")
    rates = [row["lr"] for row in rows]
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    groups = lab.run.load_checkpoint("runs/tiny-mine/ppo.pt")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([rates[-1], 2 * rates[-1]])


def test_scores_count_from_the_answers_of_the_sft_model(loop, enc, monkeypatch):
    """Also where PPO starts from another one: so that scores of several runs can be compared."""
    calls = watch(monkeypatch, "answer", lab.scorers)
    loop("--steps 1 --start pretrain")
    (model, _, prompts, *_), answers = calls[0]
    sft, _ = load_model("runs/tiny-mine/sft.pt")
    assert lab.run.fingerprint(model) == lab.run.fingerprint(sft)
    rm, _ = load_model("runs/tiny-mine/rm.pt")
    scores = torch.tensor(score_texts(rm, enc, prompts, [a.text for a in answers]))
    expected = [scores.mean().item(), scores.std(correction=0).item()]
    state = lab.run.load_checkpoint("runs/tiny-mine/ppo.pt")["state"]
    assert state["sft_scale"] == pytest.approx(expected, abs=1e-4)
