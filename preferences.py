"""Where preferences come from: labelers that compare answers, and what turns their rankings into numbers.

A labeler has one call, label(prompts, responses, aspect) -> (B, K, K): the probability that answer i of a
prompt beats its answer j; 0.5 is a tie, NaN means not compared (also the diagonal, and where a prompt has
fewer than K answers). The aspect is what is asked for: overall, helpful or safety.
"""
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import sys
import textwrap
import time

import torch

import data


class Undo(Exception):
    """Whoever ranks wants the ranking before this one back."""


class Quit(Exception):
    """Whoever ranks has had enough; what is ranked already stays."""


class Labeler:
    """Somebody who ranks: rank(prompt, responses, aspect) gives tiers of indices, the best tier first, or [] for a question that is
    skipped. Example: [[1], [0, 3], [2]]: 0 and 3 tie."""

    done, total = 0, 0  # where rank_all is, for a line of progress

    failings = ""  # in words, for the "source" of its rankings

    def label(self, prompts, responses, aspect="overall"):
        """prompts: B prompts; responses: B lists of up to K texts. Returns (B, K, K)."""
        K = max(map(len, responses))
        wins = torch.full((len(prompts), K, K), torch.nan)
        for b, (prompt, answers) in enumerate(zip(prompts, responses)):
            for i, j, apart in ranking_to_pairs(self.rank(prompt, answers, aspect) if len(answers) > 1 else [], ties=True):
                wins[b, i, j], wins[b, j, i] = (1.0, 0.0) if apart else (0.5, 0.5)
        return wins


class SimulatedHuman(Labeler):
    """An annotator with the true taste of data.TASTE and human failings.

    It perceives the true score + Gumbel noise of scale `noise`, so that answer i beats j with probability
    sigmoid((gold_i - gold_j) / noise), the Bradley-Terry model, and it calls a tie where neighbours in its
    ranking are closer than `tie_gap`. Further failings, off by default: `flip_rate`, how often a ranking is handed in upside down;
    `position_habit`, what the answer shown first gains over the last one. seed: int; the same seed and question give the same ranking,
    whatever was asked before.
    """

    name = "simulated"

    def __init__(self, seed, noise=0.6, tie_gap=0.8, flip_rate=0.0, position_habit=0.0):
        self.seed, self.noise, self.tie_gap, self.flip_rate, self.position_habit = seed, noise, tie_gap, flip_rate, position_habit
        self.failings = f"noise {noise}, tie gap {tie_gap}, flip rate {flip_rate}, position habit {position_habit}"

    def rank(self, prompt, responses, aspect="overall"):
        rng = random.Random(f"{self.seed} {aspect} {prompt} {responses}")
        felt = [data.TASTE[aspect](prompt, r) - self.noise * math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12)))
                - self.position_habit * place / max(1, len(responses) - 1) for place, r in enumerate(responses)]
        order = sorted(range(len(felt)), key=lambda i: -felt[i])
        tiers = [[order[0]]]
        for above, i in zip(order, order[1:]):
            if felt[above] - felt[i] > self.tie_gap:
                tiers.append([i])
            else:
                tiers[-1].append(i)
        return tiers[::-1] if rng.random() < self.flip_rate else tiers


class FromFile(Labeler):
    """The annotators of a preferences file: of two answers that it compares, the share of its rows that put the first above the second,
    a tie half; of others it knows nothing. rows: as data.load_preferences gives them."""

    name = "file"

    def __init__(self, rows):
        self.votes = {}
        for row in rows:
            for i, j, apart in ranking_to_pairs(row["tiers"], ties=True):
                for aspect, (a, b, won) in itertools.product({row["aspect"], "overall"}, ((i, j, 1.0), (j, i, 0.0))):
                    key = aspect, json.dumps(row["prompt"]), row["responses"][a], row["responses"][b]
                    self.votes.setdefault(key, []).append(won if apart else 0.5)

    def label(self, prompts, responses, aspect="overall"):
        K = max(map(len, responses))
        wins = torch.full((len(prompts), K, K), torch.nan)
        for b, (prompt, answers) in enumerate(zip(prompts, responses)):
            for i, j in itertools.permutations(range(len(answers)), 2):
                votes = self.votes.get((aspect, json.dumps(prompt), answers[i], answers[j]))
                wins[b, i, j] = sum(votes) / len(votes) if votes else torch.nan
        return wins


def parse_order(text, K):
    """An order as it is typed -> tiers, counted from 0. Raises ValueError with a sentence for whoever typed it.

    Example: ("2>1=4>3", 4) -> [[1], [0, 3], [2]]. Blanks do no harm; with two answers "2" means 2>1, and "=" a tie.
    """
    text = "".join(text.split())
    if K == 2 and text in ("1", "2", "="):
        text = {"1": "1>2", "2": "2>1", "=": "1=2"}[text]
    tiers = [tier.split("=") for tier in text.split(">")]
    named = [number for tier in tiers for number in tier]
    valid = [str(i + 1) for i in range(K)]
    if wrong := [number for number in named if number not in valid]:
        raise ValueError(f"{wrong[0]!r} is none of the answers 1 to {K}; an order looks like {'>'.join(valid)}, with = for a tie")
    if missing := [number for number in valid if number not in named]:
        raise ValueError(f"answer {' and '.join(missing)} is missing: an order names each of the {K} once")
    if len(named) > K:
        raise ValueError(f"answer {next(n for n in named if named.count(n) > 1)} is named twice: an order names each of the {K} once")
    return [[int(number) - 1 for number in tier] for tier in tiers]


class Human(Labeler):
    """You, at the terminal. The answers come without their authors; what you type is an order such as 2>1=4>3."""

    name = "human"
    HELP = ("  Best answer first: 2>1=4>3 puts answer 2 first, 1 and 4 equal behind it, 3 last.\n"
            "  s skips this question, u takes your last ranking back, q stops; what you have ranked is saved already.")
    QUESTION = {"overall": "Which answer is better?", "helpful": "Which answer helps more?", "safety": "Which answer is safer?"}
    began = None

    def rank(self, prompt, responses, aspect="overall"):
        if self.began is None:
            self.began, self.first = time.time(), self.done
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history while typing, where the system has it)
            print(self.HELP)
        width = min(100, shutil.get_terminal_size().columns)
        pace = (time.time() - self.began) / (self.done - self.first) if self.done > self.first else None
        left = f", about {math.ceil(pace * (self.total - self.done) / 60)} min left" if pace else ""
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        print(f"\n{'-' * width}\n{self.done + 1} of {self.total}{left}. {self.QUESTION[aspect]}\n")
        print(bold + textwrap.indent(data.prompt_text(prompt), "  ") + plain + "\n")
        for number, text in enumerate(responses, 1):
            lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width - 6) or [""]]
            print(f"  {bold}{number}{plain}   " + "\n      ".join(lines))
        while True:
            try:
                typed = input("\nbetter (1, 2 or =)> " if len(responses) == 2 else "\norder> ").strip().lower()
            except EOFError:
                raise Quit
            if typed in ("q", "quit"):
                raise Quit
            if typed in ("u", "undo"):
                raise Undo
            if typed in ("s", "skip"):
                return []
            try:
                return parse_order(typed, len(responses))
            except ValueError as error:
                print(self.HELP if typed in ("", "?", "h", "help") else f"  {error}")


def read_rankings(path, **about):
    """The rows of a rankings.jsonl that have those fields; half a line, of a process that died while it wrote, is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if all(row.get(key) == value for key, value in about.items())]


def rank_all(path, questions, annotator, **about):
    """Have each question {"prompt", "responses", "split"} ranked by a labeler; every ranking is appended to rankings.jsonl at once.

    about: the row's "aspect", "labeler", "round" and "source"; what is there already under these is not asked again.
    Returns rows {"prompt", "responses", "split", "tiers", "labeler", "aspect", "round", "source"}; tiers [] where it was skipped."""
    rows = read_rankings(path, **about)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        rewrite(path, read_rankings(path))
    annotator.total = len(questions)
    while len(rows) < len(questions):
        question, annotator.done = questions[len(rows)], len(rows)
        try:
            wins = annotator.label([question["prompt"]], [question["responses"]], about["aspect"])[0]
        except Undo:
            everything = read_rankings(path)
            while rows:
                everything.remove(rows[-1])
                if len(rows.pop()["responses"]) > 1:  # a question with one answer was never asked
                    break
            rewrite(path, everything)
            continue
        except Quit:
            break
        rows.append({**question, "tiers": wins_to_tiers(wins), **about})
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def rewrite(path, rows):
    """Write rows under a temporary name, then rename: whatever happens, the old file or the new one is there."""
    path.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


def ranking_to_pairs(tiers, ties=False):
    """All K(K-1)/2 comparisons of a ranking, as (better, worse, how many tiers apart); with ties also those, 0 tiers apart.

    Example: [[1], [0, 2]] -> [(1, 0, 1), (1, 2, 1)], with ties also (0, 2, 0).
    """
    places = [(i, t) for t, tied in enumerate(tiers) for i in tied]
    return [(i, j, u - t) for n, (i, t) in enumerate(places) for j, u in places[n + 1 :] if ties or u > t]


def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    """Elo ratings of N answers from rankings of them: every pair plays, and the winner takes points from the loser.
    E_a = 1 / (1 + 10^((R_b - R_a) / 400));  R_a += K (S_a - E_a), S 1 for a win, 0.5 for a tie, 0 for a loss. (Elo 1978.)

    rankings: lists of tiers over the same N answers; rng: a random.Random that shuffles the games of each pass. Returns N floats.
    The sum stays N * start; 400 points are odds of 10 to 1. The result depends on the order of the games, and one clean
    ranking has no limit: with every pass the ratings move further apart.
    Example: 0 > 1 > 2 > 3, one pass -> 1045.8, 1015.4, 984.8, 954.0.
    """
    games = [game for tiers in rankings for game in ranking_to_pairs(tiers, ties=True)]
    rating = [start] * (1 + max(max(i, j) for i, j, _ in games)) if games else [start]
    for _ in range(passes):
        if rng:
            rng.shuffle(games)
        for i, j, apart in games:
            expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400))
            points = k_factor * ((1.0 if apart else 0.5) - expected)
            rating[i], rating[j] = rating[i] + points, rating[j] - points
    return rating


def bradley_terry_fit(rankings, prior=0.05, iterations=20):
    """Strengths s of N answers, P(i beats j) = sigmoid(s_i - s_j), by Newton's method: the minimum of the games' cross-entropy
    + prior * sum s^2. Without the prior a ranking without a tie or an upset has no minimum. Returns (N,), sum 0.

    Unlike Elo's ratings it depends on no order. A strength times 400 / ln 10 is on Elo's scale.
    Example: 0 > 1 > 2 > 3 -> 2.288, 0.710, -0.710, -2.288.
    """
    games = [game for tiers in rankings for game in ranking_to_pairs(tiers, ties=True)]
    i, j = torch.tensor([g[:2] for g in games]).T
    won = torch.tensor([1.0 if apart else 0.5 for *_, apart in games], dtype=torch.float64)
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
        hits += [0.5 if gold[i] == gold[j] else float(gold[i] > gold[j]) for i, j, _ in ranking_to_pairs(g["tiers"])]
    return sum(hits) / max(1, len(hits))


def spearman(a, b):
    """Rank correlation of two lists of numbers, tied ones sharing their mean rank: 1 the same order, -1 the reverse, 0 no relation;
    None where one of the lists is all ties. (Spearman 1904.)"""
    def ranks(x):
        x = torch.tensor(x, dtype=torch.float64)
        return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2

    a, b = (r - r.mean() for r in map(ranks, (a, b)))
    scale = (a.norm() * b.norm()).item()
    return (a @ b).item() / scale if scale else None


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
