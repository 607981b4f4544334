"""The formulas of PPO: numbers computed by hand, references written as plain loops, and what padding must never change."""
import inspect
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import experiment
import train_ppo
from experiment import InvariantError, Stage
from model import score, generate, join, token_logprobs, with_heads
from train_ppo import (adapt_kl_coef, check, check_step, clipped_tokens, columns_of, explained_variance, full_kl_and_entropy, gae, kl_estimates,
                       kl_shaped_rewards, masked_mean, ppo_loss, ppo_policy_loss, response_logits, response_values, sums, token_lines, update, value_loss, whiten)
from train_pretrain import lm_loss

EOS, PAD = 10, 11


def close(got, expected, atol=1e-6):
    got, expected = torch.as_tensor(got), torch.as_tensor(expected, dtype=torch.float32)
    assert got.shape == expected.shape and got.dtype == expected.dtype and (got - expected).abs().max() <= atol, f"{got.tolist()} is not {expected.tolist()}"


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
    """-0.05 * (0.2, -0.5, 0.4) and the score 1 on the last. The second token earns something: k1 may be negative, and
    no k2, k3, |k1| or clamped k1 gives this number."""
    got = kl_shaped_rewards(torch.tensor([1.0]), LOGPROBS, REF, torch.ones(1, 3), 0.05)
    close(got, [[-0.010, 0.025, 0.980]])


def test_kl_costs_when_the_policy_is_more_certain_than_the_reference():
    got = kl_shaped_rewards(torch.tensor([0.0]), torch.tensor([[-0.1]]), torch.tensor([[-2.0]]), torch.ones(1, 1), 0.5)
    close(got, [[-0.95]])


def test_score_lands_on_the_last_real_token_of_each_row():
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    zeros = torch.zeros(3, 4)
    got = kl_shaped_rewards(torch.tensor([1.0, 2.0, -3.0]), zeros, zeros, mask, 0.1)
    close(got, [[0.0, 0, 0, 1], [2, 0, 0, 0], [0, -3, 0, 0]])


def test_rewards_are_zero_on_padding_whatever_the_logprobs_there():
    mask = torch.tensor([[1.0, 1, 0, 0]])
    logprobs, ref = torch.tensor([[-1.0, -2, 7, 9]]), torch.tensor([[-1.5, -1, -80, 3]])
    close(kl_shaped_rewards(torch.tensor([2.0]), logprobs, ref, mask, 0.1), [[-0.05, 2.1, 0, 0]])


def test_rewards_of_a_row_sum_to_score_minus_beta_kl():
    mask, g = ragged()
    logprobs, ref, scores = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g), torch.randn(5, generator=g)
    got = kl_shaped_rewards(scores, logprobs, ref, mask, 0.3).sum(1)
    for b in range(5):
        n = int(mask[b].sum())
        assert got[b].item() == pytest.approx((scores[b] - 0.3 * sum(logprobs[b, :n] - ref[b, :n])).item(), abs=1e-5)


def test_shaping_does_not_change_its_arguments():
    logprobs, scores = LOGPROBS.clone(), torch.tensor([1.0])
    close(kl_shaped_rewards(scores, logprobs, REF, torch.ones(1, 3), 0.05), [[-0.010, 0.025, 0.980]])
    assert torch.equal(logprobs, LOGPROBS) and scores.item() == 1


# ------------------------------------------------------------------------------------------------
# Generalised advantage estimation
# ------------------------------------------------------------------------------------------------


def naive_gae(rewards, values, n, gamma, lam):
    """One row as the double sum of the paper: A_t = sum_k (gamma lambda)^k delta_{t+k} over its n real tokens, V_n = 0."""
    v = [x.item() for x in values[:n]] + [0.0]
    deltas = [rewards[t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def test_gae_of_the_worked_example():
    advantages, returns = gae(torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.2, 0.4, 0.6]]), torch.ones(1, 3), 1.0, 0.95)
    close(advantages, [[0.7510, 0.5800, 0.4000]])
    close(returns, [[0.9510, 0.9800, 1.0000]])


def test_with_lambda_1_returns_are_the_rewards_to_go():
    _, returns = gae(torch.tensor([[1.0, -2, 4]]), torch.tensor([[0.3, -0.7, 2.0]]), torch.ones(1, 3), 1.0, 1.0)
    close(returns, [[3.0, 2, 4]])


def test_with_lambda_0_an_advantage_is_one_step_of_surprise():
    """delta_t = r_t + gamma V_{t+1} - V_t, with the value of the NEXT token."""
    advantages, _ = gae(torch.tensor([[1.0, 2, 3]]), torch.tensor([[10.0, 20, 40]]), torch.ones(1, 3), 0.5, 0.0)
    close(advantages, [[1 + 10 - 10, 2 + 20 - 20, 3 - 40]])


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.95), (0.9, 1.0), (1.0, 0.5), (0.7, 0.0), (1.0, 1.0)])
def test_gae_is_the_double_sum_of_the_paper(gamma, lam):
    """gamma and lambda both count, rows of different lengths do not disturb each other, and V behind the end is 0."""
    mask, g = ragged()
    rewards, values = torch.randn(5, 7, generator=g) * mask, torch.randn(5, 7, generator=g)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b in range(5):
        n = int(mask[b].sum())
        expected = naive_gae(rewards[b], values[b], n, gamma, lam)
        close(advantages[b, :n], expected, 1e-5)
        close(returns[b, :n], [a + v.item() for a, v in zip(expected, values[b])], 1e-5)
        assert not advantages[b, n:].any() and not returns[b, n:].any()


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
    dirty = gae(torch.where(mask.bool(), rewards, -1e3), torch.where(mask.bool(), values, 1e3), mask, 0.9, 0.8)
    longer = [torch.cat([x, torch.full((5, 2), fill)], 1) for x, fill in ((rewards * mask, 0.0), (values, 50.0), (mask, 0.0))]
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
    mean = (x * mask).sum() / mask.sum()
    removed, kept = whiten(x, mask)[mask.bool()], whiten(x, mask, shift_mean=False)[mask.bool()]
    assert removed.mean().item() == pytest.approx(0, abs=1e-5) and removed.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert kept.mean().item() == pytest.approx(mean.item(), abs=1e-5) and kept.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_whitening_sees_only_real_tokens():
    mask, g = ragged()
    x = torch.randn(5, 7, generator=g)
    for shift in (True, False):
        clean, dirty = whiten(x, mask, shift), whiten(torch.where(mask.bool(), x, 1e3), mask, shift)
        close(clean, dirty, 1e-5)
        assert not dirty[mask == 0].any() and dirty[mask.bool()].std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_whitening_equal_advantages_gives_no_infinity():
    equal = torch.full((2, 3), 0.7)
    close(whiten(equal, torch.ones(2, 3)), torch.zeros(2, 3), 1e-2)
    close(whiten(equal, torch.ones(2, 3), shift_mean=False), equal, 1e-2)


# ------------------------------------------------------------------------------------------------
# The clipped objective
# ------------------------------------------------------------------------------------------------

TABLE = [  # A, rho, loss, d loss / d rho, for c = 0.2
    (1, 0.5, -0.5, -1), (1, 0.8, -0.8, -1), (1, 1.0, -1.0, -1), (1, 1.2, -1.2, None), (1, 1.5, -1.2, 0),
    (-1, 0.5, 0.8, 0), (-1, 0.8, 0.8, None), (-1, 1.0, 1.0, 1), (-1, 1.2, 1.2, 1), (-1, 1.5, 1.5, 1)]


@pytest.mark.parametrize("A, rho, loss, slope", TABLE)
def test_clipped_objective_of_the_worked_table(A, rho, loss, slope):
    """Clipping takes away the gain of moving further, never the cost; its gradient is exactly 0 there. (At the border of the
    clip the slope is either side's and is not tested.)"""
    old = torch.tensor([[-1.0]])
    logprobs = (old + math.log(rho)).requires_grad_()
    got, _ = ppo_policy_loss(logprobs, old, torch.tensor([[float(A)]]), torch.ones(1, 1), 0.2)
    assert got.item() == pytest.approx(loss, abs=1e-6)
    if slope is not None:
        got.backward()
        assert logprobs.grad.item() == (0 if slope == 0 else pytest.approx(slope * rho, abs=1e-6))


def test_a_good_token_becomes_likelier():
    """The sign: descending the loss raises the log-probability where A > 0 and lowers it where A < 0."""
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    ppo_policy_loss(logprobs, logprobs.detach(), torch.tensor([[2.0, -3.0]]), torch.ones(1, 2), 0.2)[0].backward()
    close(logprobs.grad, [[-1.0, 1.5]])


def test_the_clip_is_as_wide_as_asked():
    logprobs = torch.tensor([[1.3, 0.7]]).log()
    for clip, gain, cost, share in ((0.1, 1.1, 0.9, 1), (0.4, 1.3, 0.7, 0)):
        got, about = ppo_policy_loss(logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), clip)
        assert got.item() == pytest.approx((cost - gain) / 2, abs=1e-6) and about["clip_fraction"].item() == share


def test_clip_0_means_no_clipping():
    logprobs = torch.tensor([[math.log(3.0), math.log(0.1)]])
    got, about = ppo_policy_loss(logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), 0)
    assert got.item() == pytest.approx((-3 + 0.1) / 2, abs=1e-6) and about["clip_fraction"].item() == 0


def test_the_gradient_does_not_flow_through_the_old_policy_or_the_diagnostics():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, about = ppo_policy_loss(logprobs, torch.tensor([[-1.1, -1.9]]), torch.ones(1, 2), torch.ones(1, 2), 0.2)
    assert loss.requires_grad and not any(x.requires_grad for x in about.values())


def random_policy_batch(B=6, R=7, seed=0):
    mask, g = ragged(B, R, seed)
    return [torch.randn(B, R, generator=g) * 0.5 for _ in range(3)] + [mask]


def test_policy_loss_is_a_mean_over_real_tokens_only():
    logprobs, old, A, mask = random_policy_batch()
    total = count = 0
    for b, t in mask.nonzero().tolist():
        rho = math.exp(logprobs[b, t] - old[b, t])
        total += -min(A[b, t].item() * rho, A[b, t].item() * min(max(rho, 0.8), 1.2))
        count += 1
    got, _ = ppo_policy_loss(logprobs, old, A, mask, 0.2)
    assert got.item() == pytest.approx(total / count, abs=1e-6)
    real = mask.bool()
    again, _ = ppo_policy_loss(logprobs.where(real, 1.0), old.where(real, 0.0), A.where(real, 9.0), mask, 0.2)
    assert again.item() == pytest.approx(got.item(), abs=1e-6)


def test_micro_batches_divide_by_the_tokens_of_the_whole():
    """One row with 1 token of loss 1, another with 3 tokens of loss 0: 0.25. The mean of the means would be 0.5."""
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 1]])
    A = torch.tensor([[-1.0, 0, 0], [0, 0, 0]])
    zeros = torch.zeros(2, 3)
    parts = [ppo_policy_loss(zeros[i : i + 1], zeros[i : i + 1], A[i : i + 1], mask[i : i + 1], 0.2, mask.sum())[0] for i in range(2)]
    assert sum(parts).item() == pytest.approx(0.25) == ppo_policy_loss(zeros, zeros, A, mask, 0.2)[0].item()

    args = random_policy_batch(seed=2)
    whole, about = ppo_policy_loss(*args, 0.2)
    pieces = [ppo_policy_loss(*[x[i : i + 2] for x in args], 0.2, args[-1].sum()) for i in (0, 2, 4)]
    assert sum(p[0] for p in pieces).item() == pytest.approx(whole.item(), abs=1e-6)
    for name in about:
        assert sum(p[1][name] for p in pieces).item() == pytest.approx(about[name].item(), abs=1e-6)


def test_clip_fraction_and_approx_kl_by_hand():
    """Four real tokens: clipped (gain cut off), clipped, outside but not clipped (a cost), inside. A pad beside them."""
    ratio = torch.tensor([[1.5, 0.5, 1.5, 1.1, 3.0]])
    A, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1, 1, 1, 0]])
    _, about = ppo_policy_loss(ratio.log(), torch.zeros(1, 5), A, mask, 0.2)
    assert about["clip_fraction"].item() == pytest.approx(0.5)
    expected = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 1.1)) / 4
    assert about["approx_kl"].item() == pytest.approx(expected, abs=1e-6)


def test_masked_mean_by_hand():
    assert masked_mean(torch.tensor([[1.0, 2, 100]]), torch.tensor([[1.0, 1, 0]])).item() == 1.5
    assert masked_mean(torch.tensor([[1.0, 2, 100]]), torch.tensor([[1.0, 1, 0]]), 6).item() == 0.5


# ------------------------------------------------------------------------------------------------
# The value loss
# ------------------------------------------------------------------------------------------------


def one_value_loss(value, old, target, clip):
    value = torch.tensor([[value]], requires_grad=True)
    loss = value_loss(value, torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1), clip)
    loss.backward()
    return loss.item(), value.grad.item()


def test_value_loss_takes_the_larger_error():
    """v 1.0, old 0, clip 0.2, return 2: errors 1 and (0.2 - 2)^2 = 3.24; half the larger is 1.62, and it stops the gradient.
    With return -1 the plain error, 4, is the larger one: half of it is 2, with gradient v - return = 2."""
    loss, slope = one_value_loss(1.0, 0.0, 2.0, 0.2)
    assert loss == pytest.approx(1.62, abs=1e-6) and slope == 0
    loss, slope = one_value_loss(1.0, 0.0, -1.0, 0.2)
    assert loss == pytest.approx(2.0, abs=1e-6) and slope == pytest.approx(2.0, abs=1e-6)
    assert one_value_loss(1.0, 0.0, 2.0, 0.5) == pytest.approx((1.125, 0), abs=1e-6), "a wider clip: half of (0.5 - 2)^2"


def test_value_loss_inside_the_clip_and_without_it_is_half_the_squared_error():
    loss, slope = one_value_loss(0.1, 0.0, 2.0, 0.2)
    assert loss == pytest.approx(0.5 * 1.9**2, abs=1e-6) and slope == pytest.approx(-1.9, abs=1e-6)
    loss, slope = one_value_loss(1.0, 0.0, 2.0, 0)
    assert loss == pytest.approx(0.5, abs=1e-6) and slope == pytest.approx(-1.0, abs=1e-6)


def test_value_loss_sees_only_real_tokens_and_adds_up_over_micro_batches():
    values, old, returns, mask = random_policy_batch(seed=5)
    total = 0.0
    for b, t in mask.nonzero().tolist():
        v, o, g = (x[b, t].item() for x in (values, old, returns))
        total += 0.5 * max((v - g) ** 2, (min(max(v, o - 0.2), o + 0.2) - g) ** 2)
    got = value_loss(values, old, returns, mask, 0.2)
    assert got.item() == pytest.approx(total / mask.sum().item(), abs=1e-6)
    real = mask.bool()
    assert value_loss(values.where(real, 7.0), old, returns.where(real, -7.0), mask, 0.2).item() == pytest.approx(got.item(), abs=1e-6)
    parts = [value_loss(*[x[i : i + 2] for x in (values, old, returns, mask)], 0.2, mask.sum()) for i in (0, 2, 4)]
    assert sum(parts).item() == pytest.approx(got.item(), abs=1e-6)


# ------------------------------------------------------------------------------------------------
# KL, entropy, explained variance, adaptive beta
# ------------------------------------------------------------------------------------------------


def test_kl_estimates_are_sums_over_an_answer_averaged_over_answers():
    """d = (0.2, -0.5, 0.4) in the first row, 0.3 and a pad in the second. k3 is exp(-d) - 1 + d, not exp(d) - 1 - d."""
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 5.0, 5.0]])
    ref = torch.tensor([[-1.2, -1.5, -0.9], [-1.3, -5.0, 0.0]])
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    k1, k3 = kl_estimates(logprobs, ref, mask)
    assert k1.item() == pytest.approx((0.1 + 0.3) / 2, abs=1e-6)
    assert k3.item() == pytest.approx(sum(math.exp(-d) - 1 + d for d in (0.2, -0.5, 0.4, 0.3)) / 2, abs=1e-6)


def test_both_kl_estimates_are_unbiased():
    """Weighted by the policy's own probabilities, k1 and k3 of all tokens add up to the exact KL."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum().item()
    per_token = [kl_estimates(p.log()[i].view(1, 1), q.log()[i].view(1, 1), torch.ones(1, 1)) for i in range(3)]
    for k in (0, 1):
        assert sum(p[i].item() * per_token[i][k].item() for i in range(3)) == pytest.approx(exact, abs=1e-6)


def test_exact_kl_and_entropy_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    logits, ref = p.log().repeat(2, 2, 1) + 3, q.log().repeat(2, 2, 1) - 1  # constants change nothing
    mask = torch.tensor([[1.0, 1], [1, 0]])
    kl, entropy = full_kl_and_entropy(logits, ref, mask)
    one = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert kl.tolist() == pytest.approx([2 * one, one], abs=1e-6)  # summed over the tokens of each answer
    assert entropy.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)  # a token


def test_exact_kl_has_its_direction():
    """KL(policy || reference): dear where the policy goes and the reference does not, cheap the other way round."""
    sharp, flat = torch.tensor([[[9.0, 0, 0]]]), torch.tensor([[[0.0, 0, 0]]])
    there, back = (full_kl_and_entropy(a, b, torch.ones(1, 1))[0].item() for a, b in ((sharp, flat), (flat, sharp)))
    assert there == pytest.approx(math.log(3) - full_kl_and_entropy(sharp, flat, torch.ones(1, 1))[1].item(), abs=1e-5)
    assert back > 3 * there


def test_explained_variance():
    """1 for a perfect critic, also a perfect one with an offset; 0 for one that knows the mean; pads do not count."""
    returns, mask = torch.tensor([[1.0, 2, 3, 50]]), torch.tensor([[1.0, 1, 1, 0]])
    assert explained_variance(returns.clone(), returns, mask).item() == pytest.approx(1, abs=1e-6)
    assert explained_variance(returns + 4, returns, mask).item() == pytest.approx(1, abs=1e-6)
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask).item() == pytest.approx(0, abs=1e-6)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3, abs=1e-5)
    assert explained_variance(torch.tensor([[1.0, 2, 4, -9]]), returns, mask).item() == pytest.approx(1 - (2 / 9) / (2 / 3), abs=1e-5)


def test_adaptive_beta_of_the_worked_example():
    beta = 0.15
    for kl, expected in ((12, 0.151536), (12, 0.153088), (3, 0.15152), (6, 0.15152)):
        beta = adapt_kl_coef(beta, kl, 6, 512, 10000)
        assert beta == pytest.approx(expected, abs=1e-6)


def test_adaptive_beta_moves_in_proportion_within_its_limits():
    assert adapt_kl_coef(1.0, 6.6, 6, 100, 1000) == pytest.approx(1.01)  # 10 % too much, n/horizon 0.1
    assert adapt_kl_coef(1.0, -3, 6, 100, 1000) == pytest.approx(0.98)


# ------------------------------------------------------------------------------------------------
# The loss of a minibatch, and the run-time invariants
# ------------------------------------------------------------------------------------------------


def config(**changes):
    return SimpleNamespace(**{"temperature": 0.7, "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "ppo_epochs": 1, "minibatch_size": 8, "micro_batch_size": 3,
                              "clip_grad": 0, "ptx_coef": 0, **changes})


def watch(monkeypatch, name):
    """The arguments of every call of a function of train_ppo.py, in the order of its signature, and its result: a list that grows."""
    formula, calls = getattr(train_ppo, name), []

    def watched(*args, **named):
        calls.append((inspect.signature(formula).bind(*args, **named).args, formula(*args, **named)))
        return calls[-1][1]

    monkeypatch.setattr(train_ppo, name, watched)
    return calls


def sampled_batch(policy, critic, cfg, B=8, seed=0):
    """Answers of a policy to ragged prompts, with made-up advantages and returns, as a dict like the loop's."""
    torch.manual_seed(seed)
    prompt_lengths = torch.tensor([1 + i % 4 for i in range(B)])
    prompts = torch.where(torch.arange(4) < prompt_lengths[:, None], torch.randint(0, 10, (B, 4)), PAD)
    responses, mask, old_logprobs = generate(policy, prompts, prompt_lengths, 8, cfg.temperature, EOS, PAD)
    tokens, _ = join(prompts, prompt_lengths, responses, mask, PAD)
    old_values = response_values(critic, tokens, prompt_lengths, responses.shape[1]).detach()
    assert 0 < mask.sum() < mask.numel(), "these tests need answers of different lengths"
    return dict(tokens=tokens, prompt_lengths=prompt_lengths, responses=responses, mask=mask, old_logprobs=old_logprobs,
                advantages=torch.randn(mask.shape) * mask, old_values=old_values, returns=torch.randn(mask.shape) * mask)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_first_ratio_is_1_at_any_temperature(make_gpt, temperature):
    """Sampling and training must mean the same distribution: the temperature divides the logits in both."""
    cfg = config(temperature=temperature)
    policy = make_gpt(std=0.3, value_head=True)
    batch = sampled_batch(policy, policy, cfg)
    loss, about = ppo_loss(policy, policy, batch, batch["mask"].sum(), cfg)
    assert about["approx_kl"].item() == pytest.approx(0, abs=1e-6) and about["clip_fraction"].item() == 0
    assert about["policy_loss"].item() == pytest.approx(-masked_mean(batch["advantages"], batch["mask"]).item(), abs=1e-5)
    logits = response_logits(policy, batch["tokens"], batch["prompt_lengths"], batch["responses"].shape[1], temperature)
    drift = (token_logprobs(logits, batch["responses"]) - batch["old_logprobs"]) * batch["mask"]
    assert drift.abs().max().item() < 1e-4


def test_the_ratio_compares_with_the_policy_that_sampled(make_gpt):
    """Once the weights have moved, the ratio is no longer 1: the old log-probabilities stay those of the sampler."""
    cfg = config()
    old = make_gpt(std=0.3, value_head=True)
    batch = sampled_batch(old, old, cfg)
    new = make_gpt(seed=0, std=0.32, value_head=True).requires_grad_(False)
    _, about = ppo_loss(new, new, batch, batch["mask"].sum(), cfg)
    total = 0.0
    for b, t in batch["mask"].nonzero().tolist():
        n = batch["prompt_lengths"][b].item()
        logits = new(batch["tokens"][b : b + 1, : n + t])[0, -1] / cfg.temperature
        rho = math.exp(logits.log_softmax(-1)[batch["responses"][b, t]] - batch["old_logprobs"][b, t])
        A = batch["advantages"][b, t].item()
        total -= min(A * rho, A * min(max(rho, 0.8), 1.2))
    assert about["approx_kl"].item() > 1e-3
    assert about["policy_loss"].item() == pytest.approx(total / batch["mask"].sum().item(), abs=1e-4)


def test_values_of_a_shared_trunk_are_weighted_and_a_critic_of_its_own_is_not(make_gpt):
    cfg = config(value_coef=0.3)
    shared, critic = make_gpt(std=0.3, value_head=True), make_gpt(seed=5, std=0.3, value_head=True)
    for c, weight in ((shared, 0.3), (critic, 1.0)):
        batch = sampled_batch(shared, c, cfg)
        batch["old_values"] += 0.05
        loss, about = ppo_loss(shared, c, batch, batch["mask"].sum(), cfg)
        values = response_values(c, batch["tokens"], batch["prompt_lengths"], batch["responses"].shape[1])
        expected = value_loss(values, batch["old_values"], batch["returns"], batch["mask"], 0.2)
        assert about["value_loss"].item() == pytest.approx(expected.item(), abs=1e-5)
        assert loss.item() == pytest.approx((about["policy_loss"] + weight * about["value_loss"]).item(), abs=1e-6)


def test_a_value_belongs_to_the_moment_before_its_token(make_gpt):
    """V_t knows the prompt and the tokens before t, not token t."""
    critic = make_gpt(value_head=True)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, PAD]])
    values = response_values(critic, tokens, torch.tensor([2, 1]), 2)
    head = lambda ids: critic.value_head(critic.hidden(torch.tensor([ids])))[0, -1, 0].item()  # noqa: E731
    close(values, [[head([1, 2]), head([1, 2, 3])], [head([5]), head([5, 6])]], 1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_micro_batches_add_up_to_those_of_the_minibatch(make_gpt, shared):
    """Also where the pieces hold very different numbers of real tokens."""
    cfg = config()
    policy = make_gpt(std=0.3, value_head=True)
    critic = policy if shared else make_gpt(seed=5, std=0.3, value_head=True)
    batch = sampled_batch(policy, critic, cfg)
    batch["old_logprobs"] = batch["old_logprobs"] + 0.1 * torch.randn(batch["mask"].shape)
    gradients, numbers = [], []
    for size in (8, 3, 1):
        policy.zero_grad()
        critic.zero_grad()
        total = {}
        for rows in torch.arange(8).split(size):
            loss, about = ppo_loss(policy, critic, {name: x[rows] for name, x in batch.items()}, batch["mask"].sum(), cfg)
            loss.backward()
            total = {name: total.get(name, 0.0) + x.item() for name, x in about.items()}
        numbers.append(total)
        gradients.append([p.grad.clone() for m in (policy, critic) for p in m.parameters() if p.grad is not None])
    assert any(g.abs().max() > 1e-3 for g in gradients[0])
    for other, total in zip(gradients[1:], numbers[1:]):
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert total == pytest.approx(numbers[0], abs=1e-5)


def test_every_pass_takes_all_answers_in_a_new_order(make_gpt, monkeypatch):
    """Three passes over 8 answers, in minibatches of 5 and 3, in parts of 2."""
    calls, cfg = watch(monkeypatch, "ppo_loss"), config(ppo_epochs=3, minibatch_size=5, micro_batch_size=2)
    policy, critic = make_gpt(std=0.3), make_gpt(seed=5, std=0.3, value_head=True)
    batch = sampled_batch(policy, critic, cfg)
    batch["old_values"][:, 0] = torch.arange(8)  # who is who
    steps = update(policy, critic, torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=0), batch, cfg)
    drawn = [mb["old_values"][:, 0].int().tolist() for (_, _, mb, *_), _ in calls]
    assert len(steps) == 6 and len(drawn) == 15 and max(map(len, drawn)) == 2
    passes = [drawn[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(sum(parts, [])) == list(range(8)) for parts in passes)
    assert len({frozenset(sum(parts[:3], [])) for parts in passes}) > 1, "in the first minibatch not always the same"


def moves(make_gpt, **changes):
    """What one step of plain gradient descent with a learning rate of 1 takes from the weights of policy and critic, their gradients: two long
    vectors; and the dict of the step."""
    cfg, models = config(**changes), [make_gpt(std=0.3), make_gpt(seed=5, std=0.3, value_head=True)]
    batch = sampled_batch(*models, cfg)
    before = [torch.nn.utils.parameters_to_vector(m.parameters()).detach().clone() for m in models]
    (step,) = update(*models, torch.optim.SGD([p for m in models for p in m.parameters()], lr=1), batch, cfg, np.arange(400) % 10)
    return *(b - torch.nn.utils.parameters_to_vector(m.parameters()).detach() for b, m in zip(before, models)), step


def test_gradients_are_clipped_for_each_model_by_itself(make_gpt):
    for free, clipped in zip(moves(make_gpt)[:2], moves(make_gpt, clip_grad=1e-3)[:2]):
        assert free.norm() > 1e-2 and clipped.norm().item() == pytest.approx(1e-3, rel=0.01)
        assert torch.cosine_similarity(free, clipped, 0) > 0.99
    policy, _, step = moves(make_gpt)
    assert step["grad_norm"] == pytest.approx(policy.norm().item(), rel=1e-3)


def test_the_loss_on_pretraining_text_has_its_weight(make_gpt):
    """Its gradient is that of the language-model loss, on the policy alone."""
    (none, critic, _), (once, _, _), (thrice, same, _) = (moves(make_gpt, ptx_coef=c) for c in (0, 1, 3))
    close(thrice - none, 3 * (once - none), 1e-4)
    close(same, critic)
    model = make_gpt(std=0.3)
    lm_loss(model(torch.arange(20)[None] % 10), torch.arange(1, 21)[None] % 10).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.cosine_similarity(once - none, gradient, 0) > 0.8


def test_padding_a_batch_further_changes_nothing(make_gpt):
    cfg = config()
    policy = make_gpt(std=0.3, value_head=True)
    batch = sampled_batch(policy, policy, cfg)
    longer = {name: x if name == "prompt_lengths" else torch.cat([x, torch.full((8, 3), PAD if name in ("tokens", "responses") else 0,
                                                                                dtype=x.dtype)], 1) for name, x in batch.items()}
    one, two = (ppo_loss(policy, policy, b, batch["mask"].sum(), cfg)[0].item() for b in (batch, longer))
    assert one == pytest.approx(two, abs=1e-5)


def test_broken_invariants_are_told_in_words():
    with pytest.raises(InvariantError, match="went wrong"):
        check(False, "this went wrong")
    check(True, "fine")
    good = dict(step=0, drift=0.0, full_kl=0.0, k3=0.0, entropy=1.0, rewards=torch.tensor([[0.0, 1.0]]), scores=torch.tensor([1.0]),
                kl_coef=0.1, k1=torch.tensor(0.0))
    check_step(**good)
    for bad in ({"drift": 0.1}, {"full_kl": 0.01}, {"k3": -0.1}, {"entropy": -0.1}, {"rewards": torch.tensor([[1.0, 1.0]])}):
        with pytest.raises(InvariantError):
            check_step(**{**good, **bad})
    check_step(**{**good, "step": 1, "full_kl": 0.5})  # later on the policy may have moved
    check_step(**{**good, "drift": 0.001, "temperature": 0.01})  # rounding, a hundred times enlarged


def test_score_and_kl_of_the_evaluation_belong_to_the_answers(make_gpt, enc):
    """The same model as policy and reference: KL 0. Another one: more than 0."""
    shape = dict(vocab_size=enc.n_vocab, block_size=48)
    policy, other = make_gpt(1, std=0.3, **shape), make_gpt(2, std=0.3, **shape)
    prompts = ["A dog is", "What is a cat?", "A"]
    answers, kls = train_ppo.sample_with_kl(policy, policy, enc, prompts, 6, 1.0, batch_size=2)
    assert len(answers) == len(kls) == 3 and max(map(abs, kls)) < 1e-5
    _, kls = train_ppo.sample_with_kl(policy, other, enc, prompts, 6, 1.0, batch_size=2)
    assert min(kls) > 1e-3


def test_a_reward_is_frozen_on_given_answers_or_whitened_over_a_batch(make_gpt, enc):
    """Frozen: mean 0 and deviation 1 over those answers, and for others whatever they are worth on that scale; a batch: always 0 and 1."""
    rm = make_gpt(3, reward_head=True, vocab_size=enc.n_vocab, block_size=48)
    reward = train_ppo.Reward("overall", [rm], {})
    prompts, texts = ["A dog is"] * 4, ["a cat.", "a furry mammal.", "No", "a small hunter. A cat."]
    raw = torch.tensor(score(rm, enc, prompts, texts))
    reward.freeze(enc, prompts, texts)
    expected = (raw - raw.mean()) / raw.std(correction=0)
    assert reward.of_texts(enc, prompts, texts) == pytest.approx(expected.tolist(), abs=1e-4)
    assert reward.of_texts(enc, prompts[:2], texts[:2]) == pytest.approx(expected[:2].tolist(), abs=1e-4), "not whitened anew"
    assert reward.combine([raw[:2]], prompts[:2], batch=True).abs().tolist() == pytest.approx([1, 1], abs=1e-4)


def test_llama2s_reward_asks_the_model_that_the_prompt_asks_for(enc):
    """Scores are log-odds: helpfulness on a safe prompt, safety on an unsafe one or where it is below 0.15."""
    reward = train_ppo.Reward("llama2", [None, None], {'"steal"': True, '"wash"': False})
    helpful, safety = torch.tensor([3.0, 3.0, 3.0]), torch.tensor([1.0, 1.0, -2.0])
    assert reward.combine([helpful, safety], ["steal", "wash", "wash"]).tolist() == pytest.approx([1, 3, -2], abs=1e-3)
    reward.mean, reward.std = 1.0, 2.0
    assert reward.combine([helpful, safety], ["steal", "wash", "elsewhere"]).tolist() == pytest.approx([0, 1, -1.5], abs=1e-3)


def test_bill_counts_trained_models_four_times():
    """1 M parameters that are trained and 1 M that are frozen: 4 bytes x (2 + 3) M = 20 MB."""
    million = lambda: torch.nn.Linear(1000, 1000, bias=False)  # noqa: E731
    assert "about 20 MB" in train_ppo.bill(None, policy=million(), reference=million())


def test_with_heads_gives_the_critic_zero_values_at_first(make_gpt):
    critic = with_heads(make_gpt(reward_head=True), value_head=True)
    assert not response_values(critic, torch.tensor([[1, 2, 3]]), torch.tensor([1]), 2).any()


# ------------------------------------------------------------------------------------------------
# --explain
# ------------------------------------------------------------------------------------------------


def test_a_token_is_clipped_where_the_loss_has_no_gradient():
    ratios, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.19, 0.81, 1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, -2.0, 3.0])
    old = torch.full((7,), -3.0)
    new = (old + ratios.log()).requires_grad_()
    assert clipped_tokens(new, old, advantages, 0.2) == [True, False, False, True, False, False, False]
    slopes, = torch.autograd.grad(ppo_policy_loss(new, old, advantages, torch.ones(7), 0.2)[0], new)
    assert (slopes == 0).tolist() == [True, False, False, True, False, False, False]
    assert not any(clipped_tokens(new, old, advantages, 0))


def explained(other=9.0, **changes):
    """Two answers of 3 and 2 tokens, the first that of the worked examples of kl_shaped_rewards and gae; values and a new policy."""
    old, ref, values = (torch.tensor([row, [x, x, 0.0]]) for row, x in (([-1.0, -2.0, -0.5], -4.0), ([-1.2, -1.5, -0.9], -3.0), ([0.2, 0.4, 0.6], other)))
    mask, new = torch.tensor([[1.0, 1, 1], [1, 1, 0]]), torch.tensor([[-0.5, -2.0, -1.0], [-4.0, -5.0, 7.0]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    cfg = SimpleNamespace(**{**vars(config(clip=0.2)), "gamma": 1.0, "lam": 0.95, "whiten_advantages": False, **changes})
    advantages = gae(rewards, values, mask, cfg.gamma, cfg.lam)[0]
    batch = dict(mask=mask, old_logprobs=old, old_values=values, advantages=whiten(advantages, mask) if cfg.whiten_advantages else advantages)
    return columns_of(batch, dict(rewards=rewards, ref_logprobs=ref), new, cfg), columns_of(batch, dict(rewards=rewards, ref_logprobs=ref), new, cfg, 1), cfg


def test_columns_of_the_worked_example():
    first, second, _ = explained()
    expected = {"log p": [-1, -2, -0.5], "reference": [-1.2, -1.5, -0.9], "KL": [0.2, -0.5, 0.4], "reward": [0, 0, 1], "value": [0.2, 0.4, 0.6],
                "return": [0.951, 0.98, 1], "advantage": [0.751, 0.58, 0.4], "new log p": [-0.5, -2, -1], "ratio": [math.exp(0.5), 1, math.exp(-0.5)],
                "branch": [1, 0, 0]}
    assert list(first) == list(expected) and {len(x) for x in second.values()} == {2}, "no padding"
    for name in expected:
        assert first[name] == pytest.approx(expected[name], abs=1e-6), name
    # Behind its second token nothing comes: A = -9, before that -9 + 9 - 0.95 * 9. The second token became less likely, as it should: clipped.
    assert second["advantage"] == pytest.approx([-8.55, -9]) and second["return"] == pytest.approx([0.45, 0]) and second["branch"] == [0, 1]
    whitened = explained(whiten_advantages=True)[0]
    assert list(whitened)[7] == "whitened" and whitened["advantage"] == first["advantage"]
    all_five = [0.751, 0.58, 0.4, -8.55, -9]
    mean = sum(all_five) / 5
    std = math.sqrt(sum((a - mean) ** 2 for a in all_five) / 5)
    assert whitened["whitened"] == pytest.approx([(a - mean) / std for a in all_five[:3]], abs=1e-5)
    turned = explained(-9.0, whiten_advantages=True)[0]  # beside better answers these advantages, though above 0, are below 0 when whitened
    assert min(turned["advantage"]) > 0 > max(turned["whitened"]) and turned["branch"] == [0, 0, 1], "the loss sees the whitened ones"


def test_the_sums_are_those_of_the_columns():
    """By hand: the KL is 0.1, the rewards of this table are score 1 without the price of the KL, which beta 0 says; then a beta that costs 0.05."""
    columns, second, cfg = explained(whiten_advantages=True)
    said = sums(columns, 1.0, 0.0, 0.5, 0.25, cfg)
    assert said["KL"].startswith("0.100 in sum")
    assert said["reward"].startswith("score 1.000 - beta 0 x KL 0.100 = 1.000; the column sums to 1.000.")
    assert "delta = reward 0.000 + gamma 1 x next value 0.400 - value 0.200 = 0.200; delta + gamma lambda 0.95 x next advantage 0.580 = 0.751." in said["advantage"]
    assert "advantage 0.751 + value 0.200 = 0.951." in said["return"] and "(0.751 - mean 0.500) / standard deviation 0.250 = 1.004" in said["whitened"]
    assert "exp(new log p (-0.500) - log p (-1.000)) = 1.649." in said["ratio"] and "Of the 2 whose ratio is not 1.000, 1 moved as the sign in the column whitened" in said["ratio"]
    cfg.whiten_advantages, cfg.gamma = False, 0.9
    said = sums({name: x[-1:] for name, x in second.items()}, -2.0, 0.5, 0.5, 0.25, cfg)
    assert "score -2.000 - beta 0.5 x KL -1.000 = -1.500; the column sums to 0.000." in said["reward"], "a wrong column would be seen"
    assert "gamma 0.9 x next value 0.000 - value 9.000 = -9.000; delta + gamma lambda 0.855 x next advantage 0.000 = -9.000." in said["advantage"], "nothing comes behind the last token"
    assert "--whiten_advantages false" in said["whitened"]
    assert "gamma 0.9 x next value 0.400 - value 0.200 = 0.160; delta + gamma lambda 0.855 x next advantage 0.580 = 0.656." in sums(columns, 1.0, 0.0, 0.5, 0.25, cfg)["advantage"]


def test_colors_change_no_figure():
    columns, _, _ = explained()
    plain, colored = (token_lines([" a", "dog", "EOS"], columns, color) for color in (False, True))
    assert "\033" not in "".join(plain) and [re.sub(r"\033\[\d+m", "", line) for line in colored] == plain
    assert plain[0].split() == "token log p reference KL reward value return advantage new log p ratio branch".split() and {len(line) for line in plain} == {len(plain[0])}
    assert [float(x) for x in plain[2].split()[1:-1]] == pytest.approx([columns[name][0] for name in list(columns)[:-1]], abs=5e-4)
    green, red, yellow = (f"\033[{code}m" for code in (32, 31, 33))
    assert colored[2].count(green) == 3 and colored[2].count(red) == 0 and f"{yellow}   clipped" in colored[2], "KL, advantage and ratio; reward 0 has no color; the branch"
    assert f"{red}     0.607" in colored[4] and f"{red}    -0.500" in colored[3], "a ratio below 1, a KL below 0"


def test_where_a_score_comes_from():
    cfg, seen = SimpleNamespace(whitening="frozen", eos_penalty=1.0), dict(raw=[torch.tensor([3.0, 1.0])], ended=torch.tensor([True, False]))
    reward = train_ppo.Reward("rm_weak", [], {})
    reward.mean, reward.std = 1.0, 4.0
    whole, cut = (train_ppo.score_in_words(reward, seen, ["a", "b"], cfg, i) for i in (0, 1))
    assert whole == "rm_weak 3.000; (3.000 - mean 1.000) / standard deviation 4.000 = 0.500, both over answers of the SFT model."
    assert cut.endswith("= 0.000, both over answers of the SFT model. But the answer was cut off before its EOS: -1 (--eos_penalty).")
    cfg.whitening, cfg.eos_penalty = "batch", 0.0
    assert train_ppo.score_in_words(reward, seen, ["a", "b"], cfg, 1) == "rm_weak 1.000; (1.000 - mean 2.000) / standard deviation 1.000 = -1.000, both over answers of this batch."
    two = train_ppo.Reward("llama2", [], {'"b"': True})
    said = [train_ppo.score_in_words(two, dict(seen, raw=[torch.tensor([3.0, 1.0]), torch.tensor([0.5, 2.0])]), ["a", "b"], cfg, i) for i in (0, 1)]
    assert "rm_helpful 3.000, rm_safety 0.500, of which Llama 2's rule takes 3.000;" in said[0], "a safe prompt"
    assert "rm_helpful 1.000, rm_safety 2.000, of which Llama 2's rule takes 2.000;" in said[1], "an unsafe one"


# ------------------------------------------------------------------------------------------------
# The loop, with models that know nothing
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path, monkeypatch, make_gpt, enc):
    """loop(flags) runs train_ppo.py from random models and 8 prompts. Returns the rows of its metrics, and what its formulas got and gave:
    {name: [(arguments, result)]}."""
    calls = {name: watch(monkeypatch, name) for name in ("generate", "kl_shaped_rewards", "gae", "ppo_loss", "ppo_policy_loss", "value_loss")}

    def run(flags):
        train_ppo.main(f"--data mine --batch_size 8 --minibatch_size 8 --micro_batch_size 8 --max_new_tokens 8 --warmup 0 --device cpu {flags}".split())
        return [json.loads(line) for line in (tmp_path / "runs/tiny-mine/ppo.jsonl").read_text().splitlines()], calls

    monkeypatch.setattr(experiment, "picture", lambda path, *rest: path.write_text("no picture"))  # drawing takes longest
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pretrain.txt").write_text("A dog is a furry mammal. What is a cat? A cat is a small hunter.\n" * 60)
    (tmp_path / "mine/prompts.jsonl").write_text("".join(json.dumps({"prompt": "A dog is" + " a cat" * i, "split": "train"}) + "\n" for i in range(8)))
    for stage, heads in (("pretrain", {}), ("sft", {}), ("rm", {"reward_head": True})):
        model = make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64, **heads)
        with torch.no_grad():  # EOS is likelier than other tokens: some answers end, some are cut off
            model.ln_f.bias += 5 * model.wte.weight[enc.eot_token] / model.wte.weight[enc.eot_token].pow(2).sum()
        parent = Stage(train_ppo.Config(data="mine", device="cpu"), stage)
        parent.track(model=model)
        parent.save(1, True)
    (tmp_path / "runs/tiny-mine/tokenizer.json").write_text(data.dump_encoding(enc))
    return run


def test_only_the_advantages_are_whitened(loop):
    """The critic learns the returns as GAE gives them, on the scale of the rewards; so does the policy with --whiten_advantages false."""
    _, calls = loop("--steps 1")
    ((_, (advantages, returns)),), (((_, _, mb, *_), _),) = calls["gae"], calls["ppo_loss"]
    white = mb["advantages"][mb["mask"].bool()]
    assert white.mean().item() == pytest.approx(0, abs=1e-5) and white.std(correction=0).item() == pytest.approx(1, abs=1e-4) != advantages[mb["mask"].bool()].std().item()
    close(sorted(mb["returns"].flatten().tolist()), sorted(returns.flatten().tolist()))
    loop("--steps 1 --whiten_advantages false --overwrite")
    (_, (advantages, _)), ((_, _, mb, *_), _) = calls["gae"][-1], calls["ppo_loss"][-1]
    close(sorted(mb["advantages"].flatten().tolist()), sorted(advantages.flatten().tolist()))


def test_the_formulas_get_the_knobs(loop):
    """Each its own, and none a number that was written into the loop."""
    _, calls = loop("--steps 1 --temperature 0.8 --kl_coef 0.3 --gamma 0.9 --lam 0.7 --clip 0.1 --value_clip 0.4")
    got = {name: calls[name][0][0] for name in calls}
    assert (got["generate"][3:5], got["kl_shaped_rewards"][4], got["gae"][3:5]) == ((8, 0.8), 0.3, (0.9, 0.7))
    assert (got["ppo_policy_loss"][4], got["value_loss"][4]) == (0.1, 0.4)


def test_the_parts_of_a_minibatch_divide_by_its_tokens(loop):
    """Minibatches of 5 and 3 answers in parts of 2: all parts of one get the number of its real tokens."""
    _, calls = loop("--steps 1 --minibatch_size 5 --micro_batch_size 2")
    parts = [(args[2]["mask"].sum().item(), args[3]) for args, _ in calls["ppo_loss"]]
    for minibatch in (parts[:3], parts[3:]):
        assert [n for _, n in minibatch] == [sum(tokens for tokens, _ in minibatch)] * len(minibatch)
    assert len(parts) == 5 and len({tokens for tokens, _ in parts}) > 1, "answers of different lengths"


def test_an_answer_that_was_cut_off_has_the_penalty_as_its_score(loop, enc):
    _, calls = loop("--steps 1 --eos_penalty 7")
    (_, (responses, _, _)), ((scores, *_), _) = calls["generate"][0], calls["kl_shaped_rewards"][0]
    ended = (responses == enc.eot_token).any(1)
    assert 0 < ended.sum() < len(ended), "this test needs answers of both kinds"
    assert (scores[~ended] == -7).all() and (scores[ended].abs() < 7).all()


def test_every_minibatch_begins_without_gradients(loop):
    """The weights stay where they are: the gradient of three passes is three times the same."""
    still = "--steps 1 --lr 0 --critic_lr 0 --clip_grad 0"
    (once,), (thrice,) = (loop(f"{still} --ppo_epochs {n} --overwrite")[0] for n in (1, 3))
    assert once["grad_norm"] > 1e-3 and thrice["grad_norm"] == pytest.approx(once["grad_norm"], rel=1e-3)


def test_a_step_has_one_temperature(loop):
    """Sampler, policy and reference: before the first update the KL is 0 and every ratio 1, at a temperature other than 1, too."""
    (first,), _ = loop("--steps 1 --temperature 0.7")
    assert max(abs(first[name]) for name in ("kl", "kl_full", "approx_kl", "clip_fraction")) < 1e-5


def test_the_reference_stays_where_it_was(loop):
    """Nothing but the policy moves: the KL grows from 0."""
    (first, second), _ = loop("--steps 2 --lr 0.01")
    assert abs(first["kl_full"]) < 1e-5 and second["kl_full"] > 1e-3
