"""Right solutions in other styles than ours: whole functions that stand in place of those of the same names."""
from typing import NamedTuple


class Right(NamedTuple):
    problem: int
    what: str  # is different, in a few words
    code: str  # of one function of the problem or more, and of helpers


RIGHT = [
    Right(1, "flatten", """
def lm_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""),
    Right(1, "transposed, for cross_entropy wants the classes second", """
def lm_loss(logits, targets):
    return F.cross_entropy(logits.transpose(1, 2), targets)
"""),
    Right(1, "gather", """
def lm_loss(logits, targets):
    logp = torch.log_softmax(logits, dim=-1)
    return -logp.gather(2, targets.unsqueeze(2)).mean()
"""),
    Right(1, "logsumexp", """
def lm_loss(logits, targets):
    B, T, V = logits.shape
    return (logits.logsumexp(-1) - logits.view(B * T, V)[torch.arange(B * T), targets.reshape(-1)].view(B, T)).mean()
"""),
    Right(1, "one-hot and einsum", """
def lm_loss(logits, targets):
    one_hot = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    return -torch.einsum("btv,btv->", logits.log_softmax(-1), one_hot) / targets.numel()
"""),
    Right(1, "row by row", """
def lm_loss(logits, targets):
    total = 0
    for row, wanted in zip(logits, targets):
        total = total + F.cross_entropy(row, wanted, reduction="sum")
    return total / (len(logits) * logits.shape[1])
"""),
    Right(2, "lists of Python, contiguous, a mask of whole numbers", """
def sft_batch(rows, pad):
    T = max(len(p) + len(r) for p, r in rows) - 1
    inputs, targets, masks = [], [], []
    for p, r in rows:
        ids, mask = p + r, [0] * len(p) + [1] * len(r)
        inputs.append((ids + [pad] * (T + 1))[:T])
        targets.append((ids[1:] + [pad] * (T + 1))[:T])
        masks.append((mask[1:] + [0] * (T + 1))[:T])
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(masks)
"""),
    Right(2, "a mask by comparison, of floats", """
def sft_batch(rows, pad):
    tokens, lengths = pad_rows([p + r for p, r in rows], pad)
    begin = torch.tensor([len(p) for p, _ in rows])[:, None]
    places = torch.arange(tokens.shape[1])
    mask = ((places >= begin) & (places < lengths[:, None])).float()
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask[:, 1:].contiguous()
"""),
    Right(2, "a mask of true and false", """
def sft_batch(rows, pad):
    tokens, _ = pad_rows([p + r for p, r in rows], pad)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (p, r) in enumerate(rows):
        mask[i, len(p) : len(p) + len(r)] = True
    return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]
"""),
    Right(2, "the answer's positions alone", """
def sft_loss(logits, targets, response_mask, n_tokens=None):
    real = response_mask.bool()
    total = F.cross_entropy(logits[real], targets[real], reduction="sum")
    return total / (real.sum() if n_tokens is None else n_tokens)
"""),
    Right(2, "gather, reshape, einsum", """
def sft_loss(logits, targets, response_mask, n_tokens=None):
    if n_tokens is None:
        n_tokens = response_mask.sum()
    logp = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -torch.einsum("bt,bt->", logp, response_mask.to(logp.dtype)) / n_tokens
"""),
    Right(2, "ignore_index", """
def sft_loss(logits, targets, response_mask, n_tokens=None):
    wanted = targets.masked_fill(response_mask == 0, -100).reshape(-1)
    total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted, reduction="sum")
    return total / response_mask.sum() if n_tokens is None else total / n_tokens
"""),
    Right(3, "no cache, multinomial", """
@torch.no_grad()
def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    if prompts.shape[1] + max_new_tokens > model.config.block_size:
        raise ValueError("too long")
    mode = model.training
    model.eval()
    B = prompts.shape[0]
    tokens = torch.cat([prompts, torch.full((B, max_new_tokens), pad)], 1)
    rows, done = torch.arange(B), torch.zeros(B, dtype=torch.bool)
    responses, mask, logprobs = [], [], []
    for t in range(max_new_tokens):
        logits = model(tokens)[rows, prompt_lengths + t - 1]
        logp = log_softmax(logits, temperature)
        if temperature == 0:
            token = logp.argmax(-1)
        else:
            token = torch.multinomial(logp.exp(), 1).squeeze(1)
        token = torch.where(done, torch.full_like(token, pad), token)
        tokens[rows, prompt_lengths + t] = token
        responses.append(token)
        mask.append((~done).float())
        logprobs.append(torch.where(done, torch.zeros(B), logp[rows, token]))
        done = done | (token == eos)
        if done.all():
            break
    model.train(mode)
    return torch.stack(responses, 1), torch.stack(mask, 1), torch.stack(logprobs, 1)
"""),
    Right(3, "row by row, token by token", """
@torch.no_grad()
def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    if prompts.shape[1] + max_new_tokens > model.config.block_size:
        raise ValueError("prompt and answer are too long for the context")
    mode = model.training
    model.eval()
    answers, lists = [], []
    for row, n in zip(prompts, prompt_lengths):
        ids, logps = row[:n].tolist(), []
        while len(logps) < max_new_tokens and not (logps and ids[-1] == eos):
            logp = log_softmax(model(torch.tensor([ids]))[:, -1], temperature)
            ids.append(draw(logp, temperature).item())
            logps.append(logp[0, ids[-1]].item())
        answers.append(ids[int(n) :])
        lists.append(logps)
    model.train(mode)
    R = max(len(answer) for answer in answers)
    responses = torch.tensor([answer + [pad] * (R - len(answer)) for answer in answers])
    mask = torch.tensor([[1.0] * len(answer) + [0.0] * (R - len(answer)) for answer in answers])
    return responses, mask, torch.tensor([logps + [0.0] * (R - len(logps)) for logps in lists])
"""),
    Right(3, "Gumbel's trick, with a cache, all rows to the end", """
@torch.no_grad()
def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    B, P = prompts.shape
    if P + max_new_tokens > model.config.block_size:
        raise ValueError("too long")
    before = model.training
    model.eval()
    head = model.config.n_head, P + max_new_tokens, model.config.n_embd // model.config.n_head
    caches = [(torch.zeros(B, *head), torch.zeros(B, *head)) for _ in model.h]
    hidden = model.hidden(prompts, caches, torch.arange(P).expand(B, P))
    hidden = hidden[torch.arange(B), prompt_lengths - 1]
    responses = torch.full((B, max_new_tokens), pad)
    mask, logprobs = torch.zeros(B, max_new_tokens), torch.zeros(B, max_new_tokens)
    alive = torch.ones(B, dtype=torch.bool)
    for t in range(max_new_tokens):
        logp = log_softmax(model.lm_head(hidden), temperature)
        noise = -torch.log(-torch.log(torch.rand_like(logp).clamp(1e-10, 1 - 1e-7)))
        token = (logp + noise if temperature else logp).argmax(-1)
        responses[alive, t] = token[alive]
        mask[alive, t] = 1
        logprobs[alive, t] = logp.gather(1, token[:, None])[alive, 0]
        alive = alive & (token != eos)
        if t + 1 < max_new_tokens:
            hidden = model.hidden(token[:, None], caches, (prompt_lengths + t)[:, None])[:, 0]
    model.train(before)
    R = int(mask.sum(1).max())
    return responses[:, :R], mask[:, :R], logprobs[:, :R]
"""),
    Right(3, "Categorical, response_hidden, log-probabilities afterwards", """
@torch.no_grad()
def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    if prompts.shape[1] + max_new_tokens > model.config.block_size:
        raise ValueError("too long")
    was = model.training
    model.eval()
    B = len(prompts)
    responses, mask = torch.full((B, 0), pad), torch.ones(B, 0)
    going = torch.ones(B, dtype=torch.bool)
    while going.any() and responses.shape[1] < max_new_tokens:
        R = responses.shape[1]
        tokens, _ = join(prompts, prompt_lengths, responses, mask, pad)
        tokens = torch.cat([tokens, torch.full((B, 1), pad)], 1)
        logits = model.lm_head(response_hidden(model, tokens, prompt_lengths, R + 1)[:, -1])
        token = logits.argmax(-1)
        if temperature:
            token = torch.distributions.Categorical(logits=logits / temperature).sample()
        responses = torch.cat([responses, torch.where(going, token, pad)[:, None]], 1)
        mask = torch.cat([mask, going.float()[:, None]], 1)
        going = going & (token != eos)
    tokens, _ = join(prompts, prompt_lengths, responses, mask, pad)
    logits = model.lm_head(response_hidden(model, tokens, prompt_lengths, responses.shape[1]))
    model.train(was)
    return responses, mask, token_logprobs(logits, responses, temperature) * mask
"""),
    Right(4, "softplus", """
def bradley_terry_loss(chosen, rejected, margin=None, p_chosen=None):
    d = chosen - rejected
    if margin is not None:
        d = d - margin
    if p_chosen is None:
        return F.softplus(-d).mean()
    return (p_chosen * F.softplus(-d) + (1 - p_chosen) * F.softplus(d)).mean()
"""),
    Right(4, "binary cross-entropy with logits", """
def bradley_terry_loss(chosen, rejected, margin=None, p_chosen=None):
    d = chosen - rejected if margin is None else chosen - rejected - margin
    label = torch.ones_like(d) if p_chosen is None else p_chosen
    return F.binary_cross_entropy_with_logits(d, label)
"""),
    Right(4, "two classes", """
def bradley_terry_loss(chosen, rejected, margin=None, p_chosen=None):
    if margin is not None:
        chosen = chosen - margin
    logp = torch.stack([chosen, rejected], 1).log_softmax(1)
    p = torch.ones(len(chosen)) if p_chosen is None else p_chosen
    return -(p * logp[:, 0] + (1 - p) * logp[:, 1]).sum() / len(chosen)
"""),
    Right(4, "a loop over the pairs, logaddexp", """
def bradley_terry_loss(chosen, rejected, margin=None, p_chosen=None):
    losses = []
    for i in range(len(chosen)):
        d = chosen[i] - rejected[i] - (margin[i] if margin is not None else 0.0)
        p = 1.0 if p_chosen is None else p_chosen[i]
        losses.append(torch.logaddexp(torch.zeros(()), -d) + (1 - p) * d)
    return torch.stack(losses).mean()
"""),
    Right(5, "a dict of ratings, games as points for both", """
def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    ratings, games = {}, []
    for tiers in rankings:
        for better, worse, apart in ranking_to_pairs(tiers, ties=True):
            games.append((better, worse, 0.5 if apart == 0 else 1.0))
            ratings.setdefault(better, start)
            ratings.setdefault(worse, start)
    if not games:
        return [start]
    for n in range(passes):
        if rng is not None:
            rng.shuffle(games)
        for a, b, result in games:
            e_a = 1.0 / (1.0 + pow(10.0, (ratings[b] - ratings[a]) / 400.0))
            e_b = 1.0 - e_a
            new_a = ratings[a] + k_factor * (result - e_a)
            ratings[b] = ratings[b] + k_factor * ((1.0 - result) - e_b)
            ratings[a] = new_a
    return [ratings.get(i, start) for i in range(max(ratings) + 1)]
"""),
    Right(5, "a shuffled copy, exp for powers of ten", """
def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    import math
    n = 1 + max([i for tiers in rankings for tied in tiers for i in tied], default=0)
    r = [float(start)] * n
    pairs = []
    for tiers in rankings:
        pairs.extend(ranking_to_pairs(tiers, True))
    for _ in range(passes):
        order = list(range(len(pairs)))
        if rng:
            rng.shuffle(order)
        for k in order:
            i, j, d = pairs[k]
            won = 1 - 0.5 * (d == 0)
            gain = k_factor * (won - 1 / (1 + math.exp(math.log(10) * (r[j] - r[i]) / 400)))
            r[i], r[j] = r[i] + gain, r[j] - gain
    return r
"""),
    Right(5, "random.sample", """
def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    games = sum((ranking_to_pairs(tiers, ties=True) for tiers in rankings), [])
    count = max((max(game[:2]) for game in games), default=0) + 1
    scores = [start for _ in range(count)]
    for _ in range(passes):
        for i, j, apart in (rng.sample(games, len(games)) if rng else games):
            points = k_factor * ((1 if apart > 0 else 1 / 2) - 1 / (1 + 10 ** ((scores[j] - scores[i]) / 400)))
            scores[i] += points
            scores[j] -= points
    return scores
"""),
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
    Right(11, "max, factorials, sort", """
def best_of(rewards):
    return rewards.max(dim=1).indices


def subset_weights(K, n):
    from fractions import Fraction
    weights = [Fraction(math.comb(i, n - 1), math.comb(K, n)) for i in range(K)]
    return torch.tensor([float(w) for w in weights], dtype=torch.float64)


def best_of_n(rewards, values, n):
    order = torch.sort(rewards, dim=1, stable=True).indices
    ranked = torch.take_along_dim(values, order, 1)
    return (ranked * subset_weights(rewards.shape[1], n).to(values.dtype)).sum(1)
"""),
    Right(11, "loops", """
def best_of(rewards):
    return torch.tensor([max(range(len(row)), key=row.__getitem__) for row in rewards.tolist()])


def subset_weights(K, n):
    before, found = 0.0, []
    for i in range(K):
        upto = math.comb(i + 1, n) / math.comb(K, n)
        found.append(upto - before)
        before = upto
    return torch.tensor(found)


def best_of_n(rewards, values, n):
    N, K = rewards.shape
    weights, found = subset_weights(K, n).tolist(), []
    for r, v in zip(rewards.tolist(), values.tolist()):
        ranks = sorted(range(K), key=lambda i: r[i])
        found.append(sum(w * v[i] for w, i in zip(weights, ranks)))
    return torch.tensor(found, dtype=values.dtype)
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
        order = torch.randperm(B)
        for start in range(0, B, cfg.minibatch_size):
            rows = order[start : start + cfg.minibatch_size]
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
    Right(12, "random.shuffle, text first", """
def update(agent, optimizer, batch, cfg, corpus=None):
    import random
    steps = []
    for _ in range(cfg.ppo_epochs):
        order = list(range(len(batch.mask)))
        random.shuffle(order)
        while order:
            rows, order = order[: cfg.minibatch_size], order[cfg.minibatch_size :]
            n_tokens = float(batch.mask[rows].sum())
            optimizer.zero_grad(set_to_none=True)
            if cfg.ptx_coef:
                add_ptx_gradient(agent.policy, corpus, cfg.ptx_coef)
            parts = []
            for micro in torch.tensor(rows).split(cfg.micro_batch_size):
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
    return Batch(texts=texts, tokens=tokens, prompt_lengths=lengths, responses=responses, mask=mask,
                 ended=ended, raw=raw, scores=scores, old_logprobs=old, ref_logprobs=ref, rewards=rewards,
                 old_values=values, advantages=whiten(advantages, mask) if cfg.whiten_advantages else advantages,
                 returns=returns)
"""),
]
