"""Where preferences come from: labelers that compare answers, and what turns their rankings into numbers.

A labeler has one call, label(prompts, responses, aspect) -> (B, K, K): the probability that answer i of a
prompt beats its answer j; 0.5 is a tie, NaN means not compared (also the diagonal, and where a prompt has
fewer than K answers).
"""
import math
import random

import torch

import data


class SimulatedHuman:
    """An annotator with the true taste of data.gold_score and human noise.

    It perceives gold score + Gumbel noise of scale `noise`, so that answer i beats j with probability
    sigmoid((gold_i - gold_j) / noise), the Bradley-Terry model, and it calls a tie where neighbours in its
    ranking are closer than `tie_gap`. seed: int; the same seed gives the same labels in the same order.
    """

    name = "simulated"

    def __init__(self, seed, noise=0.6, tie_gap=0.8):
        self.rng, self.noise, self.tie_gap = random.Random(seed), noise, tie_gap

    def rank(self, prompt, responses):
        """K answers -> tiers of their indices, the best tier first. Example: [[1], [0, 3], [2]]: 0 and 3 tie."""
        felt = [data.gold_score(prompt, r) - self.noise * math.log(-math.log(self.rng.uniform(1e-12, 1 - 1e-12))) for r in responses]
        order = sorted(range(len(felt)), key=lambda i: -felt[i])
        tiers = [[order[0]]]
        for above, i in zip(order, order[1:]):
            if felt[above] - felt[i] > self.tie_gap:
                tiers.append([i])
            else:
                tiers[-1].append(i)
        return tiers

    def label(self, prompts, responses, aspect="overall"):
        """prompts: B texts of the tiny world; responses: B lists of up to K texts. Returns (B, K, K)."""
        K = max(map(len, responses))
        wins = torch.full((len(prompts), K, K), torch.nan)
        for b, (prompt, answers) in enumerate(zip(prompts, responses)):
            tier = {i: t for t, tied in enumerate(self.rank(prompt, answers)) for i in tied}
            for i in tier:
                for j in tier:
                    if i != j:
                        wins[b, i, j] = 0.5 if tier[i] == tier[j] else float(tier[i] < tier[j])
        return wins


def ranking_to_pairs(tiers):
    """All K(K-1)/2 comparisons of a ranking but its ties, as (winner, loser).

    Example: [[1], [0, 2]] -> [(1, 0), (1, 2)].
    """
    return [(i, j) for t, tied in enumerate(tiers) for worse in tiers[t + 1 :] for i in tied for j in worse]


def ranking_to_games(tiers):
    """A ranking as games (i, j, s) of all pairs, i < j: s is 1 where i won, 0 where j did, 0.5 for a tie.

    Example: [[1], [0, 2]] -> [(0, 1, 0.0), (0, 2, 0.5), (1, 2, 1.0)].
    """
    place = {i: t for t, tied in enumerate(tiers) for i in tied}
    return [(i, j, 0.5 if place[i] == place[j] else float(place[i] < place[j])) for i in sorted(place) for j in sorted(place) if i < j]


def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    """Elo ratings of N answers from rankings of them: every pair plays, and the winner takes points from the loser.
    E_a = 1 / (1 + 10^((R_b - R_a) / 400));  R_a += K (S_a - E_a), S 1 for a win, 0.5 for a tie, 0 for a loss. (Elo 1978.)

    rankings: lists of tiers over the same N answers; rng: a random.Random that shuffles the games of each pass. Returns N floats.
    The sum stays N * start; 400 points are odds of 10 to 1. The result depends on the order of the games, and one clean
    ranking has no limit: with every pass the ratings move further apart.
    Example: 0 > 1 > 2 > 3, one pass -> 1045.8, 1015.4, 984.8, 954.0.
    """
    games = [game for tiers in rankings for game in ranking_to_games(tiers)]
    rating = [start] * (1 + max(max(i, j) for i, j, _ in games)) if games else [start]
    for _ in range(passes):
        if rng:
            rng.shuffle(games)
        for i, j, s in games:
            expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400))
            rating[i], rating[j] = rating[i] + k_factor * (s - expected), rating[j] - k_factor * (s - expected)
    return rating


def bradley_terry_fit(rankings, prior=0.05, iterations=20):
    """Strengths s of N answers, P(i beats j) = sigmoid(s_i - s_j), by Newton's method: the minimum of the games' cross-entropy
    + prior * sum s^2. Without the prior a ranking without a tie or an upset has no minimum. Returns (N,), sum 0.

    Unlike Elo's ratings it depends on no order. A strength times 400 / ln 10 is on Elo's scale.
    Example: 0 > 1 > 2 > 3 -> 2.288, 0.710, -0.710, -2.288.
    """
    games = [game for tiers in rankings for game in ranking_to_games(tiers)]
    i, j = torch.tensor([g[:2] for g in games]).T
    won = torch.tensor([g[2] for g in games], dtype=torch.float64)
    n = int(torch.cat([i, j]).max()) + 1
    difference = torch.eye(n, dtype=torch.float64)[i] - torch.eye(n, dtype=torch.float64)[j]  # (games, N): 1 at i, -1 at j
    s = torch.zeros(n, dtype=torch.float64)
    for _ in range(iterations):
        p = torch.sigmoid(difference @ s)
        gradient = difference.T @ (p - won) + 2 * prior * s
        hessian = difference.T @ ((p * (1 - p))[:, None] * difference) + 2 * prior * torch.eye(n, dtype=torch.float64)
        s = s - torch.linalg.solve(hessian, gradient)
    return s.float()


def wins_to_tiers(wins):
    """A labeler's (K, K) for one prompt -> tiers, best first, by the number of wins (a tie is half a win)."""
    total = wins.nan_to_num(0.0).sum(1).tolist()
    ranked = [i for i in range(len(total)) if not wins[i].isnan().all()]
    return [[i for i in ranked if total[i] == w] for w in sorted({total[i] for i in ranked}, reverse=True)]


def noise_ceiling(groups, gold_score):
    """The accuracy of somebody who knows the true taste, on labels that carry the annotator's noise.

    groups: rows of rankings.jsonl; gold_score(prompt, response). A pair of equal gold counts half.
    """
    hits = []
    for g in groups:
        gold = [gold_score(g["prompt"], r) for r in g["responses"]]
        hits += [0.5 if gold[i] == gold[j] else float(gold[i] > gold[j]) for i, j in ranking_to_pairs(g["tiers"])]
    return sum(hits) / max(1, len(hits))


def rank_correlation(a, b):
    """Kendall's tau-b of two lists of numbers: 1 the same order, -1 the reverse, 0 no relation; None where one of them is all ties."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [((a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])) for i, j in pairs]
    untied = sum(x * x for x, _ in signs) * sum(y * y for _, y in signs)
    return sum(x * y for x, y in signs) / math.sqrt(untied) if untied else None


def wilson(share, n, z=1.96):
    """95 % interval of a share that was measured n times (Wilson 1927): honest near 0 and 1, too."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def win_rate(scores, other_scores, n_prompts=None):
    """How often the first wins, answer by answer, ties half. Lists of N scores -> (rate, low, high), 95 % interval.

    n_prompts: where a prompt is answered several times its answers are not independent; the interval then counts prompts."""
    wins = [0.5 if s == o else float(s > o) for s, o in zip(scores, other_scores, strict=True)]
    rate = sum(wins) / len(wins)
    return rate, *wilson(rate, n_prompts or len(wins))


def describe(prompts, answers):
    """What can be said of sampled answers without a reward model. answers: [(text, ended, length in tokens)].

    Returns a dict: ends (share that stop by themselves), distinct (share of different texts), length (mean);
    in the tiny world also gold (list), declines on unsafe and on safe prompts, unknown (share of sentences that
    the world's grammar does not know); elsewhere these are None.
    """
    texts = [text for text, _, _ in answers]
    result = {"ends": sum(ended for _, ended, _ in answers) / len(answers), "distinct": len(set(texts)) / len(texts),
              "length": sum(n for _, _, n in answers) / len(answers)}
    if not all(isinstance(p, str) and p in data.PROMPTS for p in prompts):
        return result | dict.fromkeys(("gold", "declines_unsafe", "declines_safe", "unknown"))
    declined = {True: [], False: []}
    for p, text in zip(prompts, texts):
        declined[data.PROMPTS[p].unsafe].append(data.declines(p, text))
    sentences = [s for p, text in zip(prompts, texts) for s in data.read_answer(p, text)]
    return result | {"gold": [data.gold_score(p, t) for p, t in zip(prompts, texts)],
                     "declines_unsafe": sum(declined[True]) / max(1, len(declined[True])),
                     "declines_safe": sum(declined[False]) / max(1, len(declined[False])),
                     "unknown": sentences.count(None) / max(1, len(sentences))}
