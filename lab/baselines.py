"""Rules that a reward model has to beat: what one gets without reading an answer from its first word to its
last. They learn from the same rankings, in seconds."""
from collections import Counter

import torch
import torch.nn.functional as F

from data import batch_pairs, encode, is_thumb
from lab.measure import differences, hits_of, split_like


def baselines(enc, training, held_out):
    """{rule: accuracy, interval, pairs and rankings} of a bag of words and of "the longer answer wins", or
    the shorter one, whichever is right more often in training; {} where held_out has no pair.

    training, held_out: rankings, or thumbs."""
    weights, (rule, sign) = bag_of_words(enc, training), length_rule(training)
    texts = texts_of(held_out)
    scores = {"bag of words": bag_scores(weights, *word_counts(enc, texts)).tolist(),
              rule: [sign * len(text) for text in texts]}
    found = {name: differences(held_out, split_like(held_out, s)) for name, s in scores.items()}
    return {name: hits_of(held_out, d) for name, d in found.items() if d}


def texts_of(rows):
    """The answers of all rankings, laid end to end."""
    return [text for row in rows for text in row["responses"]]


def length_rule(rows):
    """(name, sign) of the rule that is right more often: sign 1 where the longer answer wins, -1 where the
    shorter one does, in characters."""
    d = differences(rows, [[len(text) for text in row["responses"]] for row in rows])
    longer = sum(x > 0 for x in d) >= sum(x < 0 for x in d)
    return ("longer answer wins", 1) if longer else ("shorter answer wins", -1)


def bag_of_words(enc, rows, steps=200, lr=0.01, decay=0.02):
    """Weights (V,) of the tokens, of which bag_scores makes a score: those of the largest likelihood by
    Bradley and Terry's model, or of thumbs by logistic regression, less decay x the sum of their squares."""
    texts = texts_of(rows)
    counts, (better, worse, *_) = word_counts(enc, texts), batch_pairs(rows)
    up = torch.tensor([1.0 if row.get("label") else -1.0 for row in rows])
    weights, bias = (torch.zeros(n, requires_grad=True) for n in (enc.n_vocab, 1))
    optimizer = torch.optim.Adam([weights, bias], lr)
    for _ in range(steps):
        scores = bag_scores(weights, *counts)
        log_odds = up * (scores + bias) if is_thumb(rows[0]) else scores[better] - scores[worse]
        misfit = -F.logsigmoid(log_odds).sum() / max(1, len(log_odds))
        loss = misfit + decay * weights.pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights.detach()


def word_counts(enc, texts):
    """How often each token is in each text, as (number of texts, places, tokens, counts): the last three are
    1-D tensors, an entry for each text and each token in it; places says which text, and a count c is
    log(1 + c).

    Example: "a b a" and "b" -> 2, (0, 0, 1), (a, b, b), (log 3, log 2, log 2)."""
    found = [Counter(encode(enc, f" {text}".rstrip())) for text in texts]
    places = torch.tensor([i for i, counter in enumerate(found) for _ in counter], dtype=torch.long)
    tokens = torch.tensor([token for counter in found for token in counter], dtype=torch.long)
    counts = torch.tensor([c for counter in found for c in counter.values()], dtype=torch.float)
    return len(texts), places, tokens, counts.log1p()


def bag_scores(weights, n, places, tokens, counts):
    """Scores (n,) of n texts: the sum over a text's tokens of weight x log(1 + count), in any order."""
    return torch.zeros(n).index_add(0, places, weights[tokens] * counts)
