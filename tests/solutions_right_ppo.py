"""Right solutions of the problems of PPO, in other styles than ours."""
from solutions_right import Right

RIGHT = [
    Right(6, "row by row", """
def kl_shaped_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    rewards = torch.zeros_like(logprobs)
    for b in range(len(scores)):
        n = int(response_mask[b].sum())
        for t in range(n):
            rewards[b, t] = -kl_coef * (logprobs[b, t] - ref_logprobs[b, t])
        rewards[b, n - 1] += scores[b]
    return rewards
"""),
    Right(6, "one-hot", """
def kl_shaped_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    last = F_one_hot(response_mask.long().sum(-1) - 1, logprobs.shape[-1])
    return kl_coef * (ref_logprobs - logprobs) * response_mask + scores.unsqueeze(-1) * last


def F_one_hot(places, n):
    return nn.functional.one_hot(places, n).float()
"""),
    Right(6, "scatter_add, where", """
def kl_shaped_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    kl = torch.where(response_mask > 0, logprobs - ref_logprobs, torch.zeros_like(logprobs))
    end = response_mask.sum(1, keepdim=True).long() - 1
    return (-kl_coef * kl).scatter_add(1, end, scores[:, None])
"""),
    Right(6, "the last token by a cumulative sum", """
def kl_shaped_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    n = response_mask.sum(1, keepdim=True)
    is_last = (response_mask.cumsum(1) == n) & (response_mask == 1)
    return is_last * scores[:, None] - kl_coef * (logprobs - ref_logprobs) * response_mask
"""),
    Right(7, "the double sum of the paper", """
def gae(rewards, values, response_mask, gamma, lam):
    B, R = rewards.shape
    A = torch.zeros(B, R)
    for b in range(B):
        n = int(response_mask[b].sum())
        v = torch.cat([values[b, :n], torch.zeros(1)])
        delta = rewards[b, :n] + gamma * v[1:] - v[:-1]
        for t in range(n):
            A[b, t] = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
    return A, (A + values) * response_mask
"""),
    Right(7, "a matrix of weights", """
def gae(rewards, values, response_mask, gamma, lam):
    R = rewards.shape[1]
    r, v = rewards * response_mask, values * response_mask
    delta = r + gamma * torch.cat([v[:, 1:], torch.zeros_like(v[:, :1])], 1) - v
    apart = torch.arange(R)[:, None] - torch.arange(R)
    weights = torch.where(apart >= 0, torch.tensor(float(gamma * lam)).pow(apart.clamp(min=0)), 0.0)
    A = torch.einsum("bk,kt->bt", delta, weights) * response_mask
    return A, A + v
"""),
    Right(7, "a list that is turned round", """
def gae(rewards, values, response_mask, gamma, lam):
    following, last, found = 0.0, 0.0, []
    for t in range(rewards.size(1) - 1, -1, -1):
        m = response_mask[:, t]
        surprise = rewards[:, t] + gamma * following - values[:, t]
        last = (surprise + gamma * lam * last) * m
        following = values[:, t] * m
        found.append(last)
    advantages = torch.stack(found[::-1], dim=1)
    return advantages, (advantages + values).masked_fill(response_mask == 0, 0.0)
"""),
    Right(8, "the real tokens alone", """
def whiten(x, mask, shift_mean=True):
    real = x[mask.bool()]
    var, mean = torch.var_mean(real, correction=0)
    white = (x - mean) / torch.sqrt(var + 1e-8)
    if not shift_mean:
        white = white + mean
    return torch.where(mask.bool(), white, torch.zeros_like(x))
"""),
    Right(8, "the mean of squares minus the squared mean, in double precision", """
def whiten(x, mask, shift_mean=True):
    n = mask.sum()
    d = torch.where(mask.bool(), x, 0.0).double()
    mean = d.sum() / n
    var = ((d - mean) ** 2 * mask).sum() / n
    out = (d - mean) * (var + 1e-8) ** -0.5 + (0 if shift_mean else mean)
    return (out * mask).to(x.dtype)
"""),
    Right(9, "min, turned at the end; floats", """
def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip, n_tokens=None):
    n = mask.sum() if n_tokens is None else n_tokens
    ratio = torch.exp(logprobs - old_logprobs)
    surrogate = ratio * advantages
    if clip > 0:
        bounded = torch.clamp(ratio, 1 - clip, 1 + clip) * advantages
    else:
        bounded = surrogate
    objective = (torch.minimum(surrogate, bounded) * mask).sum() / n
    stopped = ((bounded < surrogate) * mask).sum() / n
    kl = ((ratio - 1 - (logprobs - old_logprobs)) * mask).sum() / n
    return -objective, {"clip_fraction": stopped.item(), "approx_kl": kl.item()}
"""),
    Right(9, "where the sign of the advantage decides", """
def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip, n_tokens=None):
    log_ratio = logprobs - old_logprobs
    ratio, c = log_ratio.exp(), clip or float("inf")
    good = advantages > 0
    too_far = torch.where(good, ratio > 1 + c, (ratio < 1 - c) & (advantages < 0))
    border = torch.where(good, torch.full_like(ratio, 1 + c), torch.full_like(ratio, 1 - c))
    objective = advantages * torch.where(too_far, border.clamp(-1e6, 1e6), ratio)
    numbers = {"approx_kl": masked_mean(ratio - 1 - log_ratio, mask, n_tokens).detach(),
               "clip_fraction": masked_mean(too_far.float(), mask, n_tokens).detach()}
    return -masked_mean(objective, mask, n_tokens), numbers
"""),
    Right(9, "the real tokens alone, einsum", """
def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip, n_tokens=None):
    real = mask.bool()
    new, old, A = logprobs[real], old_logprobs[real], advantages[real]
    n = len(A) if n_tokens is None else n_tokens
    rho = (new - old).exp()
    near = rho if not clip else rho.clip(1 - clip, 1 + clip)
    loss = -torch.einsum("i->", torch.min(A * rho, A * near)) / n
    fraction = (A * near < A * rho).sum() / n
    kl = (rho.detach() - 1 - (new - old).detach()).sum() / n
    return loss, dict(clip_fraction=fraction, approx_kl=kl)
"""),
    Right(10, "the border by where", """
def value_loss(values, old_values, returns, mask, clip, n_tokens=None):
    plain = (returns - values).square()
    if clip:
        move = values - old_values
        near = old_values + torch.where(move > clip, clip, torch.where(move < -clip, -clip, move))
        plain = torch.maximum(plain, (returns - near).square())
    n = mask.sum() if n_tokens is None else n_tokens
    return (plain * mask).sum() / (2 * n)
"""),
    Right(10, "the real tokens alone", """
def value_loss(values, old_values, returns, mask, clip, n_tokens=None):
    v, o, g = (x[mask.bool()] for x in (values, old_values, returns))
    c = clip if clip > 0 else float("inf")
    near = o + (v - o).clamp(-c, c)
    errors = torch.stack([(v - g) ** 2, (near - g) ** 2]).max(0).values
    return errors.sum() / 2 / (len(v) if n_tokens is None else n_tokens)
"""),
    Right(12, "the loss with floats in its dict", """
def ppo_loss(agent, mb, n_tokens, cfg):
    R = mb.mask.shape[1]
    logits, values = agent(mb.tokens, mb.prompt_lengths, R)
    logp = (logits / (cfg.temperature or 1)).log_softmax(-1)
    new = logp.gather(-1, mb.responses.unsqueeze(-1)).squeeze(-1)
    policy, numbers = ppo_policy_loss(new, mb.old_logprobs, mb.advantages, mb.mask, cfg.clip, n_tokens)
    critic = value_loss(values, mb.old_values, mb.returns, mb.mask, cfg.value_clip, n_tokens)
    found = {name: float(x) for name, x in numbers.items()}
    found["policy_loss"] = policy.item()
    found["value_loss"] = critic.item()
    return policy + agent.value_coef * critic, found
"""),
    Right(12, "an update with slices, in no order of length", """
def update(agent, optimizer, batch, cfg, corpus=None):
    B, found = len(batch.texts), []
    for epoch in range(cfg.ppo_epochs):
        order, n = torch.randperm(B), -(-B // cfg.minibatch_size)
        for first in range(n):
            rows = order[first::n]
            n_tokens = batch.mask[rows].sum()
            agent.zero_grad()
            step = {}
            for i in range(0, len(rows), cfg.micro_batch_size):
                part = batch.take(rows[i : i + cfg.micro_batch_size])
                loss, numbers = ppo_loss(agent, part, n_tokens, cfg)
                loss.backward()
                for key in numbers:
                    step[key] = step.get(key, 0) + float(numbers[key])
            if cfg.ptx_coef > 0:
                add_ptx_gradient(agent.policy, corpus, cfg.ptx_coef)
            for net in reversed(agent.networks):
                norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
                if cfg.clip_grad and norm > cfg.clip_grad:
                    for p in net.parameters():
                        if p.grad is not None:
                            p.grad.mul_(cfg.clip_grad / norm)
            step["grad_norm"] = norm.item()
            optimizer.step()
            found.append(step)
    return found
"""),
    Right(12, "an order by sorting random numbers, text first", """
def update(agent, optimizer, batch, cfg, corpus=None):
    steps = []
    for _ in range(cfg.ppo_epochs):
        n = len(batch.mask)
        for rows in torch.rand(n).argsort().tensor_split(-(-n // cfg.minibatch_size)):
            n_tokens = float(batch.mask[rows].sum())
            optimizer.zero_grad(set_to_none=True)
            if cfg.ptx_coef:
                add_ptx_gradient(agent.policy, corpus, cfg.ptx_coef)
            parts = []
            for micro in rows.split(cfg.micro_batch_size):
                loss, numbers = ppo_loss(agent, batch.take(micro), n_tokens, cfg)
                loss.backward()
                parts.append(numbers)
            numbers = {key: float(sum(part[key] for part in parts)) for key in parts[0]}
            for net in agent.networks:
                norm = nn.utils.clip_grad_norm_(net.parameters(), cfg.clip_grad or float("inf"))
                if net is agent.policy:
                    numbers["grad_norm"] = float(norm)
            optimizer.step()
            steps.append(numbers)
    return steps
"""),
    Right(12, "a rollout that forwards the policy again", """
@torch.no_grad()
def rollout(agent, reference, scorer, enc, prompts, ids, cfg, kl_coef):
    pad, eos = data.special_id(enc, "pad"), enc.eot_token
    padded, lengths = data.pad_rows(ids, pad)
    responses, mask, _ = generate(
        agent.policy, padded, lengths, cfg.max_new_tokens, cfg.temperature, eos, pad)
    tokens, ends = join(padded, lengths, responses, mask, pad)
    R = responses.shape[1]
    texts = [data.decode_response(enc, row[: int(n)]) for row, n in zip(responses.tolist(), mask.sum(1))]
    ended = ((responses == eos) & mask.bool()).any(1)
    longer = torch.cat([tokens, torch.full((len(tokens), 1), pad)], 1)
    longer[torch.arange(len(tokens)), ends] = torch.where(ended, pad, eos)
    raw = scorer.raw(longer, ends + (~ended).long(), prompts, texts)
    if cfg.score_scale == "batch":
        scores = whiten_scores(raw)
    else:
        scores = whiten_scores(raw, scorer.mean, scorer.std)
    if cfg.eos_penalty != 0:
        scores = scores.masked_fill(~ended, -float(cfg.eos_penalty))
    logits, values = agent(tokens, lengths, R)
    old = token_logprobs(logits, responses, cfg.temperature) * mask
    logits, _ = Agent(reference, agent.critic)(tokens, lengths, R)
    ref = token_logprobs(logits, responses, cfg.temperature) * mask
    rewards = kl_shaped_rewards(scores, old, ref, mask, kl_coef)
    advantages, returns = gae(rewards, values, mask, cfg.gamma, cfg.lam)
    if cfg.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Batch(texts=texts, tokens=tokens, prompt_lengths=lengths, responses=responses, mask=mask,
                 ended=ended, raw=raw, scores=scores, old_logprobs=old, ref_logprobs=ref, rewards=rewards,
                 old_values=values, advantages=advantages, returns=returns)
"""),
    Right(12, "a rollout with TRL's padding: log-probabilities of 1, values of 0", """
@torch.no_grad()
def rollout(agent, reference, scorer, enc, prompts, ids, cfg, kl_coef):
    pad, eos = data.special_id(enc, "pad"), enc.eot_token
    padded, lengths = data.pad_rows(ids, pad)
    sampled = generate(agent.policy, padded, lengths, cfg.max_new_tokens, cfg.temperature, eos, pad)
    responses, mask, R = *sampled[:2], sampled[0].shape[1]
    tokens, _ = join(padded, lengths, responses, mask, pad)
    texts = [data.decode_response(enc, r, m) for r, m in zip(responses.tolist(), mask.tolist())]
    ended = (responses == eos).any(dim=1)
    longer = torch.cat([responses, torch.full_like(responses[:, :1], eos)], 1)
    longer = join(padded, lengths, longer, torch.cat([mask, 1 - ended[:, None].float()], 1), pad)
    raw = scorer.raw(*longer, prompts, texts)
    own = {} if cfg.score_scale == "batch" else {"mean": scorer.mean, "std": scorer.std}
    scores = whiten_scores(raw, **own)
    if cfg.eos_penalty:
        scores[~ended] = -cfg.eos_penalty
    both = []
    for model in (agent.policy, reference):
        logits = model.lm_head(response_hidden(model, tokens, lengths, R))
        both.append(token_logprobs(logits, responses, cfg.temperature).masked_fill(mask == 0, 1.0))
    values = agent.values(tokens, lengths, R).masked_fill(mask == 0, 0)
    rewards = kl_shaped_rewards(scores, *both, mask, kl_coef)
    advantages, returns = gae(rewards, values, mask, cfg.gamma, cfg.lam)
    if cfg.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Batch(texts, tokens, lengths, responses, mask, ended, raw, scores, *both, rewards, values,
                 advantages, returns)
"""),
]
