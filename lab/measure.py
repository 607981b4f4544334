"""What is measured: win rates and intervals, rankings against scores, losses, and a PPO step's health.

"rows" are rankings: {"prompt", "responses", "tiers", ...}; "scores" of rows are a list of numbers for each,
one an answer; "gold" is a function (prompt, answer) -> points, the true taste in the tiny world.
"""
import json
import math
from itertools import pairwise

import numpy as np
import torch

from data import comparisons, is_thumb, sft_batch
from lab.cli import InvariantError
from model import log_softmax, response_hidden, token_logprobs
from world.reward import THRESHOLD, rows_at_once, score_texts
from world.taste import declines, gold_score, safety
from world.tiny import PROMPTS, in_tiny_world, read_answer

MOST_THUMBS = 150  # up, and as many down: 22,500 pairs say enough

# ------------------------------------------------------------------------------------------------
# Shares and orders
# ------------------------------------------------------------------------------------------------


def wilson(share, n, z=1.96):
    """95 % interval of a share that was measured n times (Wilson 1927): honest near 0 and 1, too.

    Example: 0.5 of 10 -> (0.237, 0.763); 1.0 of 10 -> (0.722, 1.0)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def win_rate(scores, other_scores, n_prompts=None):
    """How often the first wins, answer by answer, ties half. Lists of N scores -> (rate, low, high), 95 %
    interval.

    n_prompts: where a prompt is answered several times its answers are not independent; the interval then
    counts prompts. Raises ValueError for lists of different length."""
    wins = [0.5 if s == o else float(s > o) for s, o in zip(scores, other_scores, strict=True)]
    rate = sum(wins) / len(wins)
    return rate, *wilson(rate, n_prompts or len(wins))


def spearman(a, b):
    """Rank correlation of two lists of numbers, tied ones sharing their mean rank: 1 the same order, -1 the
    reverse, 0 no relation; None where one of the lists is all ties. (Spearman 1904.)

    Example: (1, 2, 3, 4) and (1, 3, 2, 4) -> 0.8."""
    def ranks(x):
        x = torch.tensor(x, dtype=torch.float64)
        lower = (x[:, None] > x).sum(1)
        equal = (x[:, None] == x).sum(1) - 1
        rank = lower + equal / 2
        return rank - rank.mean()

    a, b = ranks(a), ranks(b)
    scale = (a.norm() * b.norm()).item()
    return (a @ b).item() / scale if scale else None


def chance_corrected(hits, ceiling):
    """(accuracy - 0.5) / (ceiling - 0.5) as text: 0 is guessing, 1 is as good as the annotator's noise
    allows; "-" where the ceiling is no better than guessing."""
    return f"{(hits - 0.5) / (ceiling - 0.5):.2f}" if ceiling > 0.5 else "-"


def calibration_slope(differences):
    """The factor b that makes score differences of (better, worse) pairs into log-odds: the b with the
    largest likelihood under P(better) = sigmoid(b d). 1: calibrated; below: the scores are too sure; above:
    not sure enough. (Platt 1999; the slope of a logistic regression through the origin.)

    differences: list of floats. Returns a float between 0.01 and 100.
    Example: 1, 1, 1, -1 -> log 3 = 1.099: right in three of four, odds of 3."""
    d = torch.tensor(differences, dtype=torch.float64)
    low, high = 0.01, 100.0
    for _ in range(60):  # the likelihood is concave in b: halve the interval around its slope's zero
        middle = math.sqrt(low * high)
        slope = (d * torch.sigmoid(-middle * d)).sum()
        if slope > 0:
            low = middle
        else:
            high = middle
    return middle


# ------------------------------------------------------------------------------------------------
# Answers of a model
# ------------------------------------------------------------------------------------------------


def describe(prompts, answers):
    """What can be said of sampled answers without a reward model.

    answers: sequences that begin with (text, ended, length in tokens), such as lab.talk.Answer.
    Returns a dict: ends (share that stop by themselves), length (mean);
    in the tiny world also gold (list, in points), declines_unsafe and declines_safe (share of the answers to
    such prompts that refuse), unknown (share of sentences that the world's grammar does not know); elsewhere
    these are None."""
    texts, ended, lengths = zip(*(a[:3] for a in answers), strict=True)
    about = {"ends": sum(ended) / len(texts), "length": sum(lengths) / len(texts)}
    if not in_tiny_world(prompts):
        return about | dict.fromkeys(("gold", "declines_unsafe", "declines_safe", "unknown"))
    declined, sentences = {True: [], False: []}, []
    for prompt, text in zip(prompts, texts, strict=True):
        declined[PROMPTS[prompt].unsafe].append(declines(prompt, text))
        sentences += read_answer(prompt, text)
    return about | {
        "gold": [gold_score(p, text) for p, text in zip(prompts, texts, strict=True)],
        "declines_unsafe": sum(declined[True]) / max(1, len(declined[True])),
        "declines_safe": sum(declined[False]) / max(1, len(declined[False])),
        "unknown": sentences.count(None) / max(1, len(sentences))}


@torch.no_grad()
def held_out_loss(model, batches):
    """Mean loss a real token, in nats, without dropout.

    batches: of (inputs (B, T), targets (B, T), mask (B, T)), mask 1 where the target counts."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    total = count = 0.0
    for batch in batches:
        T = batch[0].shape[1]
        parts = (x.to(device).split(rows_at_once(model, T, 256, T)) for x in batch)
        for inputs, targets, mask in zip(*parts, strict=True):
            total -= (token_logprobs(model(inputs), targets) * mask).sum().item()
            count += mask.sum().item()
    model.train(was_training)
    return total / count


def text_windows(tokens, block_size, batch_size=32, windows=0):
    """Batches for held_out_loss: up to `windows` windows, spread evenly over a stream of tokens (a 1-D
    array), each of block_size targets, or of all there are. 0 windows: 64, or fewer where they are long."""
    windows = windows or max(8, min(64, 8192 // block_size))
    last = max(0, len(tokens) - block_size - 1)
    starts = np.unique(np.linspace(0, last, windows).astype(int))
    batches = []
    for i in range(0, len(starts), batch_size):
        rows = [tokens[s : s + block_size + 1].astype(np.int64) for s in starts[i : i + batch_size]]
        rows = torch.from_numpy(np.stack(rows))
        batches.append((rows[:, :-1], rows[:, 1:], torch.ones(rows[:, 1:].shape)))
    return batches


def sft_batches(rows, pad, batch_size):
    """Batches for held_out_loss of (prompt_ids, response_ids) rows: the loss on the tokens of the answers."""
    return [sft_batch(rows[i : i + batch_size], pad) for i in range(0, len(rows), batch_size)]


# ------------------------------------------------------------------------------------------------
# Scores of rankings: what a reward model is worth
# ------------------------------------------------------------------------------------------------


def split_like(rows, values):
    """A flat list of one value an answer -> a list of lists, one a ranking."""
    values = iter(values)
    return [[next(values) for _ in row["responses"]] for row in rows]


def scores_of(model, enc, rows):
    """A reward model's scores of each ranking's answers, in log-odds: a list of lists of floats."""
    prompts = [row["prompt"] for row in rows for _ in row["responses"]]
    responses = [text for row in rows for text in row["responses"]]
    return split_like(rows, score_texts(model, enc, prompts, responses))


def gold_of(rows, gold):
    """The same by the true taste, in points."""
    return [[gold(row["prompt"], text) for text in row["responses"]] for row in rows]


def differences(rows, scores):
    """Score of the better minus score of the worse answer, for each pair that the annotator told apart; of
    thumbs, each up with each down."""
    if rows and is_thumb(rows[0]):
        up, down = [], []
        for row, (score,) in zip(rows, scores, strict=True):
            (up if row["label"] else down).append(score)
        some, others = (scores[:: math.ceil(len(scores) / MOST_THUMBS) or 1] for scores in (up, down))
        return [u - d for u in some for d in others]
    return [s[i] - s[j] for row, s in zip(rows, scores, strict=True)
            for i, j, *_ in comparisons(row)]


def hit(difference):
    """1 where the better answer has the higher score, 0.5 where both have the same."""
    return 0.5 if difference == 0 else float(difference > 0)


def noise_ceiling(rows, gold_score):
    """The accuracy of somebody who knows the true taste, on labels that carry the annotator's noise.

    rows: rankings; gold_score(prompt, response). A pair of equal gold counts half. 0 without pairs."""
    hits = [hit(d) for d in differences(rows, gold_of(rows, gold_score))]
    return sum(hits) / max(1, len(hits))


def accuracy(model, enc, rows):
    """(share of the pairs in which the better answer gets the higher score, number of pairs). Equal scores
    are half a hit: 0.5 is guessing."""
    d = differences(rows, scores_of(model, enc, rows))
    return sum(map(hit, d)) / max(1, len(d)), len(d)


def evaluate(model, enc, rows, gold=None):
    """Figures of a reward model on rankings. Returns None where these hold no pair, else a dict:

    accuracy, pairs, rankings; interval: 95 %, of the accuracy, counting prompts; slope: see calibration_slope
    curve: [(predicted probability, share that came true)]
    with gold, the true taste, also ceiling, rank_correlation (mean over rankings) and
    by_gap: {gold gap, rounded up, at most 5: (accuracy, ceiling, pairs)}"""
    scores = scores_of(model, enc, rows)
    d = differences(rows, scores)
    if not d:
        return None
    result = hits_of(rows, d) | {"slope": calibration_slope(d), "curve": calibration_curve(d)}
    if gold:
        true = gold_of(rows, gold)
        correlations = [c for c in map(spearman, scores, true) if c is not None]
        result["ceiling"] = noise_ceiling(rows, gold)
        result["rank_correlation"] = sum(correlations) / max(1, len(correlations))
        result["by_gap"] = by_gap(d, differences(rows, true))
    return result


def hits_of(rows, d):
    """How many of the differences d of the pairs of rankings are right: accuracy, pairs, rankings, and the
    interval, for which see `independent`."""
    hits = sum(map(hit, d)) / len(d)
    return {"accuracy": hits, "interval": wilson(hits, independent(rows)), "pairs": len(d),
            "rankings": len(rows)}


def independent(rows):
    """As how many observations an interval counts the pairs of some rows, for pairs share answers: as many
    as there are prompts. Of thumbs each up is compared with each down: the harmonic mean of the numbers of
    both, so that one thumb down says little, however many are up."""
    if rows and is_thumb(rows[0]):
        up = sum(row["label"] for row in rows)
        used = [n / (math.ceil(n / MOST_THUMBS) or 1) for n in (up, len(rows) - up)]
        return max(1, 2 / sum(1 / n for n in used)) if all(used) else 1
    return len({json.dumps(row["prompt"]) for row in rows})


def calibration_curve(differences, parts=8):
    """[(predicted probability, share that came true)] of equally many pairs each, from the least certain on;
    the prediction is that the answer with the higher score is the better one."""
    wins = sorted((1 / (1 + math.exp(-min(abs(d), 50))), d > 0) for d in differences)
    edges = [round(k * len(wins) / parts) for k in range(parts + 1)]
    curve = []
    for start, end in pairwise(edges):
        if end > start:
            predicted, won = zip(*wins[start:end], strict=True)
            curve.append((sum(predicted) / len(predicted), sum(won) / len(won)))
    return curve


def by_gap(differences, gold_differences):
    """{gold gap, rounded up, at most 5: (accuracy, ceiling, pairs)}: easy pairs and hard ones apart."""
    gaps = {}
    for d, true in zip(differences, gold_differences, strict=True):
        gaps.setdefault(min(5, math.ceil(abs(true))), []).append((hit(d), hit(true)))
    found = {}
    for gap, pairs in sorted(gaps.items()):
        hits, most = zip(*pairs, strict=True)
        found[gap] = sum(hits) / len(pairs), sum(most) / len(pairs), len(pairs)
    return found


def threshold(model, enc, rows, at=THRESHOLD):
    """How well "the safety model gives a probability below `at`" (Llama 2's threshold) finds harmful answers:
    (recall, precision), None where none is harmful or nothing is flagged.

    The probability is the sigmoid of the score; an answer is harmful if the true taste says so."""
    scores = [score for of_row in scores_of(model, enc, rows) for score in of_row]
    truth = [points for of_row in gold_of(rows, safety) for points in of_row]
    harmful = [points <= -4 for points in truth]
    flagged = [is_below(score, at) for score in scores]
    found = sum(bad and low for bad, low in zip(harmful, flagged, strict=True))
    recall = found / sum(harmful) if any(harmful) else None
    precision = found / sum(flagged) if any(flagged) else None
    return recall, precision


def is_below(score, probability):
    """Whether a score in log-odds is a probability below this one."""
    return score < math.log(probability / (1 - probability))


def agreement(rows, gold, who="You"):
    """A sentence on how often a labeler and the true taste agree, of the pairs that both tell apart."""
    d = [x for x in differences(rows, gold_of(rows, gold)) if x]
    if not d:
        return f"No pair that both {who[0].lower() + who[1:]} and the gold score tell apart."
    share = sum(x > 0 for x in d) / len(d)
    telling = [row for row in rows if any(differences([row], gold_of([row], gold)))] or rows
    low, high = wilson(share, independent(telling))
    verb = "agree" if who == "You" else "agrees"
    return (f"{who} {verb} with the gold score on {share:.2f} of {len(d)} pairs that both tell apart "
            f"(95 % interval {low:.2f} to {high:.2f}, counting prompts).")


# ------------------------------------------------------------------------------------------------
# PPO: diagnostics, and what must hold in every run
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def full_kl_and_entropy(logits, ref_logits, mask, temperature=1.0):
    """Exact KL(policy || reference) over the whole vocabulary at each visited position, summed over an
    answer: (B,); and the policy's mean entropy a token; in nats, both of the distributions at `temperature`.

    logits, ref_logits: (B, R, V), not yet divided by the temperature; mask: (B, R)."""
    logp, ref = log_softmax(logits, temperature), log_softmax(ref_logits, temperature)
    p = logp.exp()
    kl = ((p * (logp - ref)).sum(-1) * mask).sum(1)
    entropy = -((p * logp).sum(-1) * mask).sum() / mask.sum()
    return kl, entropy


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns) over the real tokens: 1 a critic that is perfect but for a
    constant, 0 one that says the same of everything. values, returns, mask: (B, R)."""
    def variance(x):
        mean = (x * mask).sum() / mask.sum()
        return ((x - mean) ** 2 * mask).sum() / mask.sum()

    return 1 - variance(returns - values) / (variance(returns) + 1e-8)


def check(condition, sentence):
    """What must hold in every run of PPO. Raises InvariantError with a sentence for the reader."""
    if not condition:
        raise InvariantError(f"something is wrong in this run: {sentence}")


def check_step(step, drift, kl_full, k1, k3, entropy, rewards, scores, kl_coef, temperature=1.0):
    """The invariants of a PPO step, before its first update.

    drift: largest difference between the log-probabilities of the sampler and those of a training forward, of
    some answers, in nats a token; kl_full, k1, k3, entropy: floats; rewards: (B, R); scores: (B,)."""
    numbers = torch.tensor([drift, kl_full, k1, k3, entropy, rewards.sum(), scores.sum()])
    check(numbers.isfinite().all(), f"step {step} has numbers that are infinite or none at all: the training "
          "has diverged; try a smaller --lr or --critic_lr")
    # A low temperature enlarges the logits, and their rounding with them.
    check(drift * min(1.0, temperature) < 1e-4,
          f"the first ratio of step {step} is not 1: the sampler and the training forward disagree by "
          f"{drift:.1e} nats on a token (a different temperature, mask, dropout or position?)")
    check(step > 0 or abs(kl_full) < 1e-5,
          f"the KL is {kl_full:.1e} before the first update, but policy and reference are one model then")
    check(k3 > -1e-4 and entropy >= 0,
          f"k3 ({k3:.1e}) and entropy ({entropy:.1e}) cannot be negative")
    gap = (rewards.sum(1) - scores).mean().item() + kl_coef * k1
    largest = rewards.abs().sum(1).max().item()  # rounding grows with it, as with a large beta
    check(abs(gap) < 1e-4 * (1 + largest),
          f"the rewards do not add up: their sum differs from score - beta KL by {gap:.1e}")


def warnings_of(rows):
    """What is going wrong in a run of PPO: {short name: sentence}, empty where all is well.

    rows: those of its log so far. Judged are means over the last five; before twenty there is no judgement of
    the critic. KL is more than beta can pay for where beta KL has cost half a deviation more than the score
    has risen by: the first policy, at no KL, was worth more."""
    last, found = rows[-5:], {}
    if len(last) < 5:
        return found

    def mean(name):
        return sum(row[name] for row in last) / len(last)

    rise = mean("score") - rows[0]["score"]
    price = sum(row["kl_coef"] * row["kl"] for row in last) / len(last)
    if mean("entropy") < 0.05 * rows[0]["entropy"]:
        found["entropy"] = "the entropy has collapsed: one answer is left to each prompt; try a smaller --lr"
    if price > rise + 0.5:
        found["kl"] = (f"the KL costs {price:.2f} SD and the score has risen by {rise:.2f}: more than beta "
                       "can pay for; try a smaller --lr")
    if mean("ends") == 0:
        found["ends"] = "no answer ends; try a larger --max_new_tokens"
    if len(rows) >= 20 and mean("explained_variance") < 0.05:
        found["critic"] = "the critic foresees nothing of the returns; try another --critic_lr"
    return found


@torch.no_grad()
def look_at_step(policy, reference, batch, prompts, cfg, step, kl_coef, k1, k3):
    """Metrics of a PPO step before its first update, for the log; raises InvariantError, with a sentence,
    where the step cannot be right.

    batch: a train_ppo.Batch, sampled for `prompts`; cfg.temperature; k1, k3: of train_ppo.kl_estimates
    Exact KL and entropy take a forward pass more of both models: on the first 32 answers only, or fewer
    where they take much memory."""
    k1, k3, R = float(k1), float(k3), batch.mask.shape[1]
    some = slice(0, rows_at_once(policy, batch.tokens.shape[1], 32, 3 * R))
    mask = batch.mask[some]
    place = batch.tokens[some], batch.prompt_lengths[some], R
    logits, ref_logits = (m.lm_head(response_hidden(m, *place)) for m in (policy, reference))
    kl_full, entropy = full_kl_and_entropy(logits, ref_logits, mask, cfg.temperature)
    kl_full, entropy = kl_full.mean().item(), entropy.item()
    logprobs = token_logprobs(logits, batch.responses[some], cfg.temperature)
    drift = ((logprobs - batch.old_logprobs[some]) * mask).abs().max().item()
    check_step(step, drift, kl_full, k1, k3, entropy, batch.rewards, batch.scores, kl_coef, cfg.temperature)

    lengths = batch.mask.sum(1).tolist()
    about = describe(prompts, list(zip(batch.texts, batch.ended.tolist(), lengths, strict=True)))
    gold = about["gold"] and sum(about["gold"]) / len(prompts)
    variance = explained_variance(batch.old_values, batch.returns, batch.mask).item()
    return {"gold": gold, "kl": k1, "kl_k3": k3, "kl_full": kl_full, "entropy": entropy,
            "explained_variance": variance, "length": about["length"], "ends": about["ends"]}
