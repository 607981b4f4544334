"""Wrong solutions of the problems of PPO, one mistake each: ours with some text replaced."""
from solutions_wrong import Wrong, in_each

MEAN = "masked_mean(torch.max(plain, clipped), mask, n_tokens)"
VALUE = "return 0.5 * masked_mean(errors, mask, n_tokens)"
LAST = "last = response_mask.sum(1).long() - 1"
SHAPED = "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask"
SCORE = "rewards[torch.arange(len(rewards), device=rewards.device), last] += scores"

WRONG = [
    # --------------------------------------------------------------------------------------------
    # Rewards with the price of the KL
    # --------------------------------------------------------------------------------------------
    *in_each(6, SHAPED, {
        "the sign of the KL": "rewards = kl_coef * (logprobs - ref_logprobs) * response_mask",
        "no KL": "rewards = torch.zeros_like(logprobs)",
        "no mask": "rewards = -kl_coef * (logprobs - ref_logprobs)",
        "k2": "rewards = -kl_coef * 0.5 * (logprobs - ref_logprobs) ** 2 * response_mask",
        "k3": "d = logprobs - ref_logprobs; rewards = -kl_coef * ((-d).exp() - 1 + d) * response_mask",
        "the size of the log-ratio": "rewards = -kl_coef * (logprobs - ref_logprobs).abs() * response_mask",
        "the log-ratio is never below 0":
            "rewards = -kl_coef * (logprobs - ref_logprobs).clamp(min=0) * response_mask",
        "the ratio": "rewards = -kl_coef * (logprobs - ref_logprobs).exp() * response_mask",
        "a difference of probabilities":
            "rewards = -kl_coef * (logprobs.exp() - ref_logprobs.exp()) * response_mask",
        "the mean of a row":
            "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask / response_mask.sum(1, True)",
        "all of the KL on the last token": "d = (logprobs - ref_logprobs) * response_mask; "
            "rewards = -kl_coef * d.sum(1, True) * (response_mask.cumsum(1) == response_mask.sum(1, True)) "
            "* response_mask",
        "the argument is changed": "rewards = logprobs.sub_(ref_logprobs).mul_(-kl_coef * response_mask)",
        "log-ratios are cut off":
            "rewards = -kl_coef * (logprobs - ref_logprobs).clamp(-1, 1) * response_mask",
        "beta twice": "rewards = -kl_coef**2 * (logprobs - ref_logprobs) * response_mask",
        "no KL on the last token": "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask; "
            "rewards[torch.arange(len(rewards)), response_mask.sum(1).long() - 1] = 0",
        "0 times infinity on the padding":
            "rewards = -kl_coef * (logprobs.exp() / ref_logprobs.exp()).log() * response_mask",
    }),
    *in_each(6, SCORE, {
        "a score for every token": "rewards += scores[:, None] * response_mask",
        "the score in place of the KL": "rewards[torch.arange(len(rewards)), last] = scores",
        "the score is spread over the tokens":
            "rewards += (scores / response_mask.sum(1))[:, None] * response_mask",
        "the score on the first token": "rewards[:, 0] += scores",
        "every row has all scores": "rewards[:, last] += scores",
        "the sign of the score": "rewards[torch.arange(len(rewards)), last] -= scores",
        "beta times the score": "rewards[torch.arange(len(rewards)), last] += kl_coef * scores",
        "the mean score for all": "rewards[torch.arange(len(rewards)), last] += scores.mean()",
    }),
    *in_each(6, LAST, {
        "the last column": "last = torch.full_like(response_mask.sum(1).long(), response_mask.shape[1] - 1)",
        "one behind the last token":
            "last = response_mask.sum(1).long().clamp(max=response_mask.shape[1] - 1)",
        "one before the last token": "last = (response_mask.sum(1).long() - 2).clamp(min=0)",
        "the first row's last token": "last = (response_mask.sum(1).long() - 1)[:1].expand(len(scores))",
    }),
    # --------------------------------------------------------------------------------------------
    # Advantages
    # --------------------------------------------------------------------------------------------
    *in_each(7, "delta = rewards[:, t] + gamma * next_value - values[:, t]", {
        "no gamma at the next value": "delta = rewards[:, t] + next_value - values[:, t]",
        "lambda for gamma": "delta = rewards[:, t] + lam * next_value - values[:, t]",
        "no next value": "delta = rewards[:, t] - values[:, t]",
        "no value": "delta = rewards[:, t] + gamma * next_value",
        "the sign of the values": "delta = rewards[:, t] - gamma * next_value + values[:, t]",
        "gamma at this value": "delta = rewards[:, t] + next_value - gamma * values[:, t]",
        "gamma lambda at the next value": "delta = rewards[:, t] + gamma * lam * next_value - values[:, t]",
        "the value of the token before":
            "delta = rewards[:, t] + gamma * next_value - values[:, max(t - 1, 0)]",
        "the next reward": "delta = rewards[:, min(t + 1, rewards.shape[1] - 1)] + gamma * next_value "
                           "- values[:, t]",
        "the last value goes on for ever": "delta = rewards[:, t] + gamma * (next_value if t + 1 < "
                                           "rewards.shape[1] else values[:, t]) - values[:, t]",
    }),
    *in_each(7, "(delta + gamma * lam * next_advantage) * response_mask[:, t]", {
        "no gamma at the next advantage": "(delta + lam * next_advantage) * response_mask[:, t]",
        "no lambda at the next advantage": "(delta + gamma * next_advantage) * response_mask[:, t]",
        "no next advantage": "delta * response_mask[:, t]",
        "no mask": "delta + gamma * lam * next_advantage",
        "1 - lambda": "(delta + gamma * (1 - lam) * next_advantage) * response_mask[:, t]",
        "an exponential mean":
            "((1 - lam) * delta + gamma * lam * next_advantage) * response_mask[:, t]",
        "the sign": "-(delta + gamma * lam * next_advantage) * response_mask[:, t]",
        "masked by the next token": "(delta + gamma * lam * next_advantage) * "
                                    "response_mask[:, min(t + 1, rewards.shape[1] - 1)]",
    }),
    *in_each(7, "values = values * response_mask", {
        "values behind the end count": "pass",
        "the values are whitened": "values = whiten(values, response_mask)",
        "the last real value is lost": "values = values * response_mask * (response_mask.cumsum(1) < "
                                       "response_mask.sum(1, True))",
    }),
    *in_each(7, "return advantages, advantages + values", {
        "returns are the advantages": "return advantages, advantages",
        "returns minus the values": "return advantages, advantages - values",
        "returns are sums of rewards": "return advantages, (rewards * response_mask).flip(1).cumsum(1)"
                                       ".flip(1) * response_mask",
        "swapped": "return advantages + values, advantages",
        "whitened": "return whiten(advantages, response_mask), advantages + values",
        "returns of whitened advantages":
            "return advantages, whiten(advantages, response_mask) + values",
        "returns are rewards and values": "return advantages, (rewards + values) * response_mask",
    }),
    *in_each(7, "for t in reversed(range(rewards.shape[1])):", {
        "from the first to the last": "for t in range(rewards.shape[1]):",
        "the first token is left out": "for t in reversed(range(1, rewards.shape[1])):",
        "the last token is left out": "for t in reversed(range(rewards.shape[1] - 1)):",
        "only as far as the first row": "for t in reversed(range(int(response_mask[0].sum()))):",
    }),
    *in_each(7, "next_value, next_advantage = values[:, t], advantages[:, t]", {
        "the next advantage stays 0": "next_value = values[:, t]",
        "the next value stays 0": "next_advantage = advantages[:, t]",
        "the rewards are changed": "next_value, next_advantage = values[:, t], advantages[:, t]; "
                                   "rewards[:, t] = delta",
    }),
    # --------------------------------------------------------------------------------------------
    # Whitening
    # --------------------------------------------------------------------------------------------
    *in_each(8, "mean = masked_mean(x, mask)", {
        "a mean over everything": "mean = x.mean()",
        "padding counts as 0": "mean = (x * mask).mean()",
        "a mean a row": "mean = (x * mask).sum(1, True) / mask.sum(1, True)",
        "a mean of the rows' means": "mean = ((x * mask).sum(1) / mask.sum(1)).mean()",
        "no mean": "mean = torch.zeros(())",
        "the median": "mean = x[mask.bool()].median()",
    }),
    *in_each(8, "variance = masked_mean((x - mean) ** 2, mask)", {
        "unbiased": "variance = ((x - mean) ** 2 * mask).sum() / (mask.sum() - 1)",
        "a variance over everything": "variance = ((x - mean) ** 2).mean()",
        "padding counts in the variance": "variance = ((x - mean) ** 2 * mask).mean()",
        "the second moment": "variance = masked_mean(x ** 2, mask)",
        "the mean distance": "variance = masked_mean((x - mean).abs(), mask) ** 2",
        "the deviation, of which the root is taken": "variance = masked_mean((x - mean) ** 2, mask).sqrt()",
    }),
    *in_each(8, "white = (x - mean) * torch.rsqrt(variance + 1e-8)", {
        "nothing keeps it finite": "white = (x - mean) * torch.rsqrt(variance)",
        "divided by the variance": "white = (x - mean) / (variance + 1e-8)",
        "not divided": "white = x - mean",
        "multiplied": "white = (x - mean) * torch.sqrt(variance + 1e-8)",
        "cut off": "white = ((x - mean) * torch.rsqrt(variance + 1e-8)).clamp(-1, 1)",
        "the caller's numbers are changed": "white = x.sub_(mean).mul_(torch.rsqrt(variance + 1e-8))",
        "the small number is added to the deviation":
            "white = (x - mean) / (torch.sqrt(variance) + 1e-8)",
        "a large number under the root": "white = (x - mean) * torch.rsqrt(variance + 0.01)",
    }),
    *in_each(8, "(white if shift_mean else white + mean) * mask", {
        "the mean is always removed": "white * mask",
        "the mean is never removed": "(white + mean) * mask",
        "turned round": "(white + mean if shift_mean else white) * mask",
        "no mask": "white if shift_mean else white + mean",
        "the mean is divided, too": "(white if shift_mean else x * torch.rsqrt(variance + 1e-8)) * mask",
    }),
    # --------------------------------------------------------------------------------------------
    # The clipped objective
    # --------------------------------------------------------------------------------------------
    *in_each(9, "log_ratio = logprobs - old_logprobs", {
        "old over new": "log_ratio = old_logprobs - logprobs",
        "no old policy": "log_ratio = logprobs - logprobs.detach()",
        "no gradient": "log_ratio = (logprobs - old_logprobs).detach()",
        "the ratio of a whole row": "log_ratio = ((logprobs - old_logprobs) * mask).sum(1, True)"
                                    ".expand(logprobs.shape)",
        "log-ratios are cut off": "log_ratio = (logprobs - old_logprobs).clamp(-0.3, 0.3)",
    }),
    *in_each(9, "ratio = log_ratio.exp()", {
        "the log-ratio": "ratio = 1 + log_ratio",
        "a ratio of log-probabilities": "ratio = logprobs / old_logprobs",
        "the log-probability": "ratio = logprobs",
    }),
    *in_each(9, "plain = -advantages * ratio", {
        "the sign": "plain = advantages * ratio",
        "advantages are whitened once more":
            "advantages = whiten(advantages, mask); plain = -advantages * ratio",
        "the size of the advantages": "plain = -advantages.abs() * ratio",
    }),
    *in_each(9, "-advantages * ratio.clamp(1 - clip, 1 + clip) if clip else plain", {
        "the sign of the clipped part": "advantages * ratio.clamp(1 - clip, 1 + clip) if clip else plain",
        "clipped to 0.2": "-advantages * ratio.clamp(0.8, 1.2) if clip else plain",
        "clipped above only": "-advantages * ratio.clamp(max=1 + clip) if clip else plain",
        "clipped below only": "-advantages * ratio.clamp(min=1 - clip) if clip else plain",
        "the log-ratio is clipped": "-advantages * log_ratio.clamp(-clip, clip).exp() if clip else plain",
        "clip 0 stops everything": "-advantages * ratio.clamp(1 - clip, 1 + clip)",
        "clipped to the clip": "-advantages * ratio.clamp(-clip, clip) if clip else plain",
        "no clip": "plain",
        "1 / (1 + c) below": "-advantages * ratio.clamp(1 / (1 + clip), 1 + clip) if clip else plain",
        "the product is clipped": "(-advantages * ratio).clamp(-1 - clip, -1 + clip) if clip else plain",
    }),
    *in_each(9, MEAN, {
        "min": "masked_mean(torch.min(plain, clipped), mask, n_tokens)",
        "the clipped part alone": "masked_mean(clipped, mask, n_tokens)",
        "the mean of both": "masked_mean((plain + clipped) / 2, mask, n_tokens)",
        "n_tokens is ignored": "masked_mean(torch.max(plain, clipped), mask)",
        "a mean over everything": "torch.max(plain, clipped).mean()",
        "padding counts as 0": "(torch.max(plain, clipped) * mask).mean()",
        "a mean of the rows' means": "((torch.max(plain, clipped) * mask).sum(1) / mask.sum(1)).mean() "
                                     "if n_tokens is None else "
                                     "masked_mean(torch.max(plain, clipped), mask, n_tokens)",
        "a sum": "masked_mean(torch.max(plain, clipped), mask, n_tokens or 1)",
        "a sum over tokens, a mean over rows":
            "masked_mean(torch.max(plain, clipped), mask, len(mask) if n_tokens is None else n_tokens)",
        "the larger mean":
            "torch.max(masked_mean(plain, mask, n_tokens), masked_mean(clipped, mask, n_tokens))",
    }),
    *in_each(9, '"clip_fraction": masked_mean((clipped > plain).float(), mask, n_tokens)', {
        "a clip fraction of all that is outside": '"clip_fraction": masked_mean('
            '((ratio - 1).abs() > (clip or torch.inf)).float(), mask, n_tokens)',
        "a clip fraction over the padding": '"clip_fraction": (clipped > plain).float().mean()',
        "a clip fraction of what is not clipped":
            '"clip_fraction": masked_mean((clipped <= plain).float(), mask, n_tokens)',
        "a clip fraction without n_tokens":
            '"clip_fraction": masked_mean((clipped > plain).float(), mask)',
        "a clip fraction of the other side":
            '"clip_fraction": masked_mean((clipped < plain).float(), mask, n_tokens)',
    }),
    *in_each(9, '"approx_kl": masked_mean(ratio - 1 - log_ratio, mask, n_tokens)', {
        "approx_kl is k1": '"approx_kl": masked_mean(-log_ratio, mask, n_tokens)',
        "approx_kl is k2": '"approx_kl": masked_mean(0.5 * log_ratio**2, mask, n_tokens)',
        "approx_kl the other way": '"approx_kl": masked_mean(1 / ratio - 1 + log_ratio, mask, n_tokens)',
        "approx_kl over the padding": '"approx_kl": (ratio - 1 - log_ratio).mean()',
        "approx_kl without n_tokens": '"approx_kl": masked_mean(ratio - 1 - log_ratio, mask)',
        "the sign of approx_kl": '"approx_kl": masked_mean(1 - ratio + log_ratio, mask, n_tokens)',
    }),
    Wrong(9, "diagnostics keep their graph", [("with torch.no_grad():", "if True:")]),
    # --------------------------------------------------------------------------------------------
    # The value loss
    # --------------------------------------------------------------------------------------------
    *in_each(10, "errors = (values - returns) ** 2", {
        "not squared": "errors = (values - returns).abs()",
        "the sign": "errors = -(values - returns) ** 2",
        "the distance to the old values": "errors = (values - old_values) ** 2",
        "no gradient": "errors = (values.detach() - returns) ** 2",
        "old values for new ones": "errors = (old_values - returns) ** 2",
    }),
    *in_each(10, "near = values.clamp(old_values - clip, old_values + clip)", {
        "clipped round the returns": "near = values.clamp(returns - clip, returns + clip)",
        "clipped round 0": "near = values.clamp(-clip, clip)",
        "clipped round 1": "near = old_values * (values / old_values).clamp(1 - clip, 1 + clip)",
        "clipped above only": "near = torch.min(values, old_values + clip)",
        "clipped below only": "near = torch.max(values, old_values - clip)",
        "clipped to 0.2": "near = values.clamp(old_values - 0.2, old_values + 0.2)",
        "the whole way back": "near = torch.where((values - old_values).abs() > clip, old_values, values)",
    }),
    *in_each(10, "errors = torch.max(errors, (near - returns) ** 2)", {
        "the smaller error": "errors = torch.min(errors, (near - returns) ** 2)",
        "the clipped error alone": "errors = (near - returns) ** 2",
        "the mean of both": "errors = (errors + (near - returns) ** 2) / 2",
        "the error is clipped": "errors = errors.clamp(max=clip**2)",
        "the plain error alone": "pass",
    }),
    *in_each(10, VALUE, {
        "not half": "return masked_mean(errors, mask, n_tokens)",
        "n_tokens is ignored": "return 0.5 * masked_mean(errors, mask)",
        "a mean over everything": "return 0.5 * errors.mean()",
        "padding counts as 0": "return 0.5 * (errors * mask).mean()",
        "a mean of the rows' means": "return 0.5 * ((errors * mask).sum(1) / mask.sum(1)).mean() "
                                     "if n_tokens is None else 0.5 * masked_mean(errors, mask, n_tokens)",
        "a sum": "return 0.5 * (errors * mask).sum() / (n_tokens or 1)",
        "the root": "return 0.5 * masked_mean(errors, mask, n_tokens) ** 0.5",
        "the larger mean":
            "c = clip or 1e9; near = values.clamp(old_values - c, old_values + c); return 0.5 * torch.max("
            "masked_mean((values - returns) ** 2, mask, n_tokens), "
            "masked_mean((near - returns) ** 2, mask, n_tokens))",
    }),
    Wrong(10, "clip 0 stops everything", [("if clip:", "if True:")]),
]
