"""How far best-of-n goes from the model that answers: what the KL of rejection sampling is estimated from."""
import torch

import data
from model import token_logprobs
from world.reward import rows_at_once


def best_of_n_log_ratio(scores, logprobs, n):
    """log(P_n(y) / p(y)) of sampled answers y: how much likelier an answer is as the best of n than as one
    sample.

    An answer y of probability p, where all worse answers together have the probability F, is the best of n
    with P_n(y) = (F + p)^n - F^n. p is known; F is the sum of p over the worse answers among the K, and of
    what was never sampled as large a share as a sample at that rank can expect, exp(E log share).
    scores, logprobs: (N, K), equal scores are the same answer. Returns (N, K), in nats.
    """
    p, K = logprobs.exp(), scores.shape[1]
    same = scores[:, None, :] == scores[:, :, None]  # (N, K, K)
    earlier = torch.ones(K, K, device=p.device).tril(-1)
    first = ((earlier * same).sum(-1) == 0).to(p.dtype)  # 1 where an answer is sampled for the first time
    worse = (scores[:, None, :] < scores[:, :, None]) * first[:, None, :]
    missing = (1 - (p * first).sum(1, keepdim=True)).clamp(min=0)
    different = first.sum(1, keepdim=True)
    share = torch.exp(torch.digamma(worse.sum(-1) + 1) - torch.digamma(different + 1))
    below = torch.minimum((worse * p[:, None, :]).sum(-1) + missing * share, 1 - p)
    # (F + p)^n - F^n = p (sum of (F + p)^j F^(n - 1 - j)): no difference of nearly equal numbers
    ratio = sum((below + p) ** j * below ** (n - 1 - j) for j in range(n))
    return ratio.clamp(min=1e-30).log()


@torch.no_grad()
def log_probability(model, enc, prompts, responses, temperature, batch_size=256):
    """log p(response | prompt) of texts, EOS included, in nats: lists of prompts and responses -> list of
    floats."""
    device, pad, sums = next(model.parameters()).device, data.special_id(enc, "pad"), []
    rows = data.lay_out(enc, prompts, responses, model.config.block_size)
    longest = max((len(p) + len(r) for p, r in rows), default=1)
    batch_size = rows_at_once(model, longest, batch_size, longest)
    for start in range(0, len(rows), batch_size):
        batch = data.sft_batch(rows[start : start + batch_size], pad)
        inputs, targets, mask = (x.to(device) for x in batch)
        logprobs = token_logprobs(model(inputs), targets, temperature)
        sums += (logprobs * mask).sum(1).tolist()
    return sums
