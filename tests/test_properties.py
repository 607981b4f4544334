"""What must hold for all inputs: seeded loops over random shapes and numbers for the pure functions."""
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from model import generate, log_softmax
from train_ppo import gae, kl_estimates, kl_shaped_rewards, ppo_policy_loss, value_loss, whiten
from train_rm import bradley_terry_loss
from world.reward import llama2_reward

SEEDS = range(50)


def ragged(seed):
    """Random (x, y, z, mask), each (B, R): answers of 1 to R tokens, at least one of R."""
    g = torch.Generator().manual_seed(seed)
    B, R = (int(torch.randint(2, 8, (1,), generator=g)) for _ in "BR")
    lengths = torch.randint(1, R + 1, (B,), generator=g)
    lengths[0] = R
    mask = (torch.arange(R) < lengths[:, None]).float()
    return (*torch.randn(3, B, R, generator=g), mask)


def close(a, b):
    """Whether two tensors are equal but for rounding."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def masked_functions(x, y, z, mask):
    """Results for every answer, (B, R) or (B,), and of the batch, scalars."""
    scores = (x * mask).sum(1)
    advantages, returns = gae(x, y, mask, 0.9, 0.8)
    rows = [kl_shaped_rewards(scores, x, y, mask, 0.3) * mask, advantages, returns, whiten(x, mask)]
    policy, numbers = ppo_policy_loss(x, y, z, mask, 0.2)
    batch = [policy, *numbers.values(), value_loss(x, y, z, mask, 0.2), *kl_estimates(x, y, mask)]
    return rows, torch.stack([torch.as_tensor(number).float() for number in batch])


@pytest.mark.parametrize("seed", SEEDS)
def test_padding_and_order_change_nothing(seed):
    x, y, z, mask = ragged(seed)
    rows, batch = masked_functions(x, y, z, mask)
    garbage = [F.pad(t, (0, 3)) + 3 * (1 - F.pad(mask, (0, 3))) for t in (x, y, z)]
    padded, same = masked_functions(*garbage, F.pad(mask, (0, 3)))
    assert close(batch, same)
    for a, b in zip(rows, padded, strict=True):
        assert close(a * mask, b[:, : mask.shape[1]] * mask)
    order = torch.randperm(len(x))
    turned, same = masked_functions(*(t[order] for t in (x, y, z, mask)))
    assert close(batch, same)
    for a, b in zip(rows, turned, strict=True):
        assert close(a[order], b)


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_of_parts_add_up_to_that_of_the_whole(seed):
    x, y, z, mask = ragged(seed)
    n, cut = mask.sum(), 1 + seed % (len(x) - 1)
    parts = [slice(0, cut), slice(cut, None)]
    policy = sum(ppo_policy_loss(x[p], y[p], z[p], mask[p], 0.2, n)[0] for p in parts)
    value = sum(value_loss(x[p], y[p], z[p], mask[p], 0.2, n) for p in parts)
    assert close(policy, ppo_policy_loss(x, y, z, mask, 0.2)[0])
    assert close(value, value_loss(x, y, z, mask, 0.2))


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ends_of_gae(seed):
    """lambda 1, gamma 1: what is still to be earned, minus V; lambda 0: one step's surprise."""
    rewards, values, _, mask = ragged(seed)
    rewards, values = rewards * mask, values * mask
    togo = rewards.flip(1).cumsum(1).flip(1)
    assert close(gae(rewards, values, mask, 1.0, 1.0)[0], (togo - values) * mask)
    following = F.pad(values, (0, 1))[:, 1:]
    delta = (rewards + 0.9 * following - values) * mask
    assert close(gae(rewards, values, mask, 0.9, 0.0)[0], delta)


@pytest.mark.parametrize("seed", SEEDS)
def test_whitened_numbers_have_mean_0_and_deviation_1(seed):
    x, _, _, mask = ragged(seed)
    white = whiten(x, mask)[mask.bool()]
    assert abs(white.mean()) < 1e-5 and abs(white.std(correction=0) - 1) < 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_k1_and_k3_are_unbiased(seed):
    """Their expectation over all 4 * 4 answers of two tokens is the KL itself."""
    p, q = torch.log_softmax(torch.randn(2, 2, 4, dtype=torch.float64), -1)
    answers = list(product(range(4), repeat=2))
    old, ref = (torch.stack([t[range(2), a] for a in answers]) for t in (p, q))
    each = [kl_estimates(o[None], r[None], torch.ones(1, 2)) for o, r in zip(old, ref, strict=True)]
    k1, k3 = (old.sum(1).exp() @ torch.stack(k) for k in zip(*each, strict=True))
    kl = (p.exp() * (p - q)).sum()
    assert torch.allclose(torch.stack([k1, k3]), kl)


@pytest.mark.parametrize("seed", SEEDS)
def test_llama2_chooses_row_by_row(seed):
    helpful, safety = torch.rand(2, 20)
    asked = torch.rand(20) < 0.3
    got = llama2_reward(helpful, safety, asked, 0.0, 1.0)
    for r, h, s, a in zip(got.tolist(), helpful.tolist(), safety.tolist(), asked.tolist(), strict=True):
        p = min(max(s if a or s < 0.15 else h, 1e-4), 1 - 1e-4)
        assert r == pytest.approx(math.log(p / (1 - p)), abs=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_bradley_terry_knows_only_differences(seed):
    better, worse = torch.randn(2, 9)
    margin, p = 3 * torch.rand(9), torch.rand(9)
    shift = 5 * torch.randn(())
    for extra in ({}, {"margin": margin}, {"p_chosen": p}):
        loss = bradley_terry_loss(better, worse, **extra)
        assert close(loss, bradley_terry_loss(better + shift, worse + shift, **extra))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_hidden_state_or_score_sees_padding_or_neighbours(make_gpt, seed):
    torch.manual_seed(seed)
    model, lengths = make_gpt(seed, reward_head=True), torch.randint(1, 9, (5,))
    tokens = torch.randint(2, 12, (5, 8))
    longer = torch.cat([tokens, torch.randint(2, 12, (5, 4))], 1)
    longer[torch.arange(12) >= lengths[:, None]] = 1  # another padding
    order = torch.randperm(5)
    with torch.no_grad():
        a, b = model.hidden(tokens), model.hidden(longer[order])[:, :8]
        scores, turned = model.score(tokens, lengths), model.score(longer[order], lengths[order])
    real = (torch.arange(8) < lengths[:, None])[order]
    assert torch.allclose(a[order][real], b[real], atol=1e-4)
    assert torch.allclose(scores[order], turned, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_the_sampler_knows_what_a_naive_loop_would(make_gpt, seed):
    """The log-probability of every token is that of a whole forward pass on what stands before it."""
    torch.manual_seed(seed)
    model, temperature = make_gpt(seed), (0.5, 1.0, 1.7, 0)[seed % 4]
    lengths = torch.randint(1, 7, (6,))
    prompts = torch.randint(2, 12, (6, 6)).masked_fill(torch.arange(6) >= lengths[:, None], 1)
    responses, mask, logprobs = generate(model, prompts, lengths, 8, temperature, 0, 1)
    for b in range(6):
        ids = prompts[b, : lengths[b]].tolist()
        for t in range(int(mask[b].sum())):
            with torch.no_grad():
                logp = log_softmax(model(torch.tensor([ids]))[0, -1], temperature)
            token = int(responses[b, t])
            assert logprobs[b, t].item() == pytest.approx(logp[token].item(), abs=1e-3)
            assert temperature or token == logp.argmax()
            ids.append(token)
        assert ids[-1] == 0 or mask[b].all(), "it ends with EOS or is cut off"
