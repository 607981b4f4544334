"""Right solutions of the problems before PPO, in other styles than ours."""
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
    wanted = logits.view(B * T, V)[torch.arange(B * T), targets.reshape(-1)]
    return (logits.logsumexp(-1) - wanted.view(B, T)).mean()
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
    Right(2, "pad_sequence, a mask of true and false", """
from torch.nn.utils.rnn import pad_sequence


def sft_batch(rows, pad):
    tokens = pad_sequence([torch.tensor(p + r) for p, r in rows], batch_first=True, padding_value=pad)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (p, r) in enumerate(rows):
        mask[i, len(p) : len(p) + len(r)] = True
    return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]
"""),
    Right(2, "the answer's positions alone", """
def sft_loss(logits, targets, response_mask):
    real = response_mask.bool()
    return F.cross_entropy(logits[real], targets[real])
"""),
    Right(2, "gather, einsum", """
import torch


def sft_loss(logits, targets, response_mask):
    logp = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -torch.einsum("bt,bt->", logp, response_mask.to(logp.dtype)) / response_mask.sum()
"""),
    Right(2, "ignore_index", """
def sft_loss(logits, targets, response_mask):
    wanted = targets.masked_fill(response_mask == 0, -100).reshape(-1)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted)
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
            result = 1 if apart > 0 else 1 / 2
            points = k_factor * (result - 1 / (1 + 10 ** ((scores[j] - scores[i]) / 400)))
            scores[i] += points
            scores[j] -= points
    return scores
"""),
    Right(5, "sorted by random numbers", """
def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    games = [game for tiers in rankings for game in ranking_to_pairs(tiers, ties=True)]
    N = max([i for game in games for i in game[:2]] or [0]) + 1
    ratings = dict.fromkeys(range(N), start)
    for _ in range(passes):
        for i, j, apart in sorted(games, key=lambda game: rng.random()) if rng else games:
            gained = (1.0 if apart else 0.5) - 1 / (1 + 10 ** ((ratings[j] - ratings[i]) / 400))
            ratings[i], ratings[j] = ratings[i] + k_factor * gained, ratings[j] - k_factor * gained
    return list(ratings.values())
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
]
