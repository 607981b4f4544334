"""Who ranks answers: a simulated human, or you at the terminal (an AI in that chair: world/judge.py).

A labeler has one call, label(prompts, responses, aspect) -> (B, K, K): the probability that answer i of a
prompt beats its answer j. 0.5 is a tie; NaN means not compared (also the diagonal, and where a prompt has
fewer than K answers). The aspect is what is asked for: overall, helpful or safety. """
import contextlib
import json
import math
import os
import random
import shutil
import sys
import textwrap
import time

import torch

from data import is_example, load_rows, prompt_text, ranking_to_pairs, wins_to_tiers
from world.taste import TASTE


class Undo(Exception):
    """Whoever ranks wants the ranking before this one back."""


class Quit(Exception):
    """Whoever ranks has had enough; what is ranked already stays."""


class Labeler:
    """Somebody who ranks: rank(prompt, responses, aspect) gives tiers of indices, the best tier first, or
    [] for a question that is skipped. Example: [[1], [0, 3], [2]]: 0 and 3 tie."""

    name, title = "", ""  # in a row, and in a sentence
    answers = 8  # K answers to a question, where --answers_per_prompt does not say
    batch = 1  # questions that it is asked at a time
    done, total = 0, 0  # where it is among the questions, for a line of progress
    details = ()  # of what it labelled last: for each question a dict that its row gets

    def label(self, prompts, responses, aspect="overall"):
        """prompts: B prompts; responses: B lists of up to K texts. Returns (B, K, K)."""
        K = max(map(len, responses))
        wins = torch.full((len(prompts), K, K), torch.nan)
        for b, (prompt, answers) in enumerate(zip(prompts, responses, strict=True)):
            tiers = self.rank(prompt, answers, aspect) if len(answers) > 1 else []
            for i, j, apart in ranking_to_pairs(tiers, ties=True):
                wins[b, i, j] = 1.0 if apart else 0.5
                wins[b, j, i] = 1 - wins[b, i, j]
        return wins


class SimulatedHuman(Labeler):
    """An annotator with the true taste of world/taste.py and human failings.

    It perceives the true score + Gumbel noise of scale `noise`, so that answer i beats j with probability
    sigmoid((gold_i - gold_j) / noise), the Bradley-Terry model, and it calls a tie where neighbours in its
    ranking are closer than `tie_gap`. Further failings, off by default: `flip_rate`, how often a ranking is
    handed in upside down; `position_habit`, what the answer shown first gains over the last one. seed: int;
    the same seed and question give the same ranking, whatever was asked before. """

    name, title, batch = "simulated", "the simulated human", 128

    def __init__(self, seed, noise=0.6, tie_gap=0.8, flip_rate=0.0, position_habit=0.0):
        self.seed, self.noise, self.tie_gap = seed, noise, tie_gap
        self.flip_rate, self.position_habit = flip_rate, position_habit

    def rank(self, prompt, responses, aspect="overall"):
        rng = random.Random(f"{self.seed} {aspect} {prompt} {responses}")
        felt = []
        for place, response in enumerate(responses):
            gumbel = -math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12)))
            habit = self.position_habit * place / max(1, len(responses) - 1)
            felt.append(TASTE[aspect](prompt, response) + self.noise * gumbel - habit)
        order = sorted(range(len(felt)), key=lambda i: -felt[i])
        tiers = [[order[0]]]
        for above, i in zip(order, order[1:], strict=False):
            if felt[above] - felt[i] > self.tie_gap:
                tiers.append([i])
            else:
                tiers[-1].append(i)
        return tiers[::-1] if rng.random() < self.flip_rate else tiers


# ------------------------------------------------------------------------------------------------
# You at the terminal
# ------------------------------------------------------------------------------------------------


def listed(words):
    """["1", "3", "4"] -> "1, 3 and 4"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def parse_order(text, K):
    """An order as it is typed -> tiers, counted from 0. Raises ValueError with a sentence for whoever typed
    it.

    Example: ("2>1=4>3", 4) -> [[1], [0, 3], [2]]. Blanks do no harm; with two answers "2" means 2>1, and
    "=" a tie. """
    text = "".join(text.split())
    if K == 2:
        text = {"1": "1>2", "2": "2>1", "=": "1=2"}.get(text, text)
    tiers = [tier.split("=") for tier in text.split(">")]
    named = [number for tier in tiers for number in tier]
    valid = [str(i + 1) for i in range(K)]
    if wrong := [number for number in named if number not in valid]:
        example = ">".join(valid)
        raise ValueError(f"{wrong[0]!r} is none of the answers 1 to {K}; "
                         f"an order looks like {example}, with = for a tie")
    rule = f"an order names each of the {K} once"
    if twice := [number for number in valid if named.count(number) > 1]:
        raise ValueError(f"answer {twice[0]} is named twice: {rule}")
    if missing := [number for number in valid if number not in named]:
        which = f"answer {missing[0]} is" if len(missing) == 1 else f"answers {listed(missing)} are"
        raise ValueError(f"{which} missing: {rule}")
    return [[int(number) - 1 for number in tier] for tier in tiers]


def fold(text, indent, width):
    """Text as lines of at most `width` columns, broken between words; its own line ends stay."""
    room = width - len(indent)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, room) or [""]]
    return ("\n" + indent).join(lines)


class Human(Labeler):
    """You, at the terminal. The answers come without their authors; what you type is an order such as
    2>1=4>3."""

    name, title, answers = "human", "you", 4
    KEYS = ("  s skips this question, u takes your last ranking back, q stops.\n"
            "  What you have ranked is saved already.")
    QUESTION = {
        "overall": "Which answer is better?",
        "helpful": "Which answer helps more?",
        "safety": "Which answer is safer?",
    }
    began = None

    def help(self, K):
        if K == 2:
            return "  1: the first answer is better, 2: the second, =: equal.\n" + self.KEYS
        example = {3: "2>1=3 puts answer 2 first, 1 and 3 equal behind it."}
        usual = "2>1=4>3 puts answer 2 first, 1 and 4 equal behind it, 3 after them."
        return f"  Best answer first: {example.get(K, usual)}\n{self.KEYS}"

    def rank(self, prompt, responses, aspect="overall"):
        if self.began is None:
            self.began, self.first = time.time(), self.done
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history while typing, where the system has it)
            print(self.help(len(responses)))
        self.show(prompt, responses, aspect)
        sign = "\nbetter (1, 2 or =)> " if len(responses) == 2 else "\norder> "
        while True:
            try:
                typed = input(sign).strip().lower()
            except EOFError:
                raise Quit from None
            if typed in ("q", "quit"):
                raise Quit
            if typed in ("u", "undo"):
                raise Undo
            if typed in ("s", "skip"):
                return []
            if typed in ("", "?", "h", "help"):
                print(self.help(len(responses)))
                continue
            try:
                return parse_order(typed, len(responses))
            except ValueError as error:
                print(f"  {error}")

    def show(self, prompt, responses, aspect):
        """A question on the terminal: how far you are, the prompt, the answers with their numbers."""
        width = max(40, min(100, shutil.get_terminal_size().columns))
        unwanted = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        styled = sys.stdout.isatty() and not unwanted
        bold, plain = ("\033[1m", "\033[0m") if styled else ("", "")
        left = ""
        if self.done > self.first:
            pace = (time.time() - self.began) / (self.done - self.first)
            left = f", about {math.ceil(pace * (self.total - self.done) / 60)} min left"
        print(f"\n{'-' * width}\n{self.done + 1} of {self.total}{left}. {self.QUESTION[aspect]}\n")
        print(f"  {bold}{fold(prompt_text(prompt), '  ', width)}{plain}\n")
        for number, text in enumerate(responses, 1):
            print(f"  {bold}{number}{plain}   {fold(text, '      ', width)}")


# ------------------------------------------------------------------------------------------------
# What is ranked is kept
# ------------------------------------------------------------------------------------------------


def is_ranking(row):
    """Whether an example has answers, and tiers, pairs or a label that are about them."""
    try:
        answers, places = row["responses"], [i for tier in row["tiers"] for i in tier]
        pairs, known = row.get("pairs", []), list(range(len(answers)))
        named = places + [i for pair in pairs for i in pair[:2]]
        return (is_example(row) and isinstance(answers, list) and all(isinstance(a, str) for a in answers)
                and len(set(places)) == len(places) and all(type(i) is int and i in known for i in named)
                and all(0 <= p <= 1 and i in places and j in places for i, j, p in pairs)
                and 0 <= row.get("margin", 0) <= 3 and isinstance(row.get("label", True), bool))
    except (TypeError, ValueError, LookupError):
        return False


class RankingFile:
    """The rankings of a file, a row each: what is added is on disk before the next question is asked.

    rows: what is there, in the order of the questions; part: a function that says which rows are meant,
    where others share the file."""

    def __init__(self, path, part=lambda row: True):
        self.path, self.rows = path, [row for row in rows_to_add_to(path, is_ranking) if part(row)]

    def add(self, questions, labeler, aspect="overall"):
        """Have questions {"prompt", "responses", "split"} labelled, and keep the rows: each with "tiers"
        ([] where it was skipped), "aspect", "labeler", and what else this labeler has to say. Raises Undo
        and Quit."""
        prompts, responses = ([q[key] for q in questions] for key in ("prompt", "responses"))
        labels = labeler.label(prompts, responses, aspect)
        about = {"aspect": aspect, "labeler": labeler.name}
        details = labeler.details or [{}] * len(questions)
        new = [{**question, "tiers": wins_to_tiers(wins), **about, **more}
               for question, wins, more in zip(questions, labels, details, strict=True)]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new))
            file.flush()
            os.fsync(file.fileno())
        self.rows += new

    def take_back(self):
        """Remove the last row, also one of an earlier start; rows with one answer, which nobody was asked
        about, go with it."""
        if not any(len(row["responses"]) > 1 for row in self.rows):
            print("  nothing to take back")
            return
        everything = load_rows(self.path)[::-1]  # of equal rows the last one goes
        asked = False
        while not asked:
            row = self.rows.pop()
            everything.remove(row)
            asked = len(row["responses"]) > 1
        rewrite(self.path, everything[::-1])


def rank_all(kept, questions, labeler):
    """Have questions {"prompt", "responses", "split"} ranked, but for those that `kept`, a RankingFile, has
    already. Returns the rows of all that were answered."""
    labeler.total = len(questions)
    while len(kept.rows) < len(questions):
        labeler.done = len(kept.rows)
        try:
            kept.add(questions[labeler.done : labeler.done + labeler.batch], labeler)
        except Undo:
            kept.take_back()
        except Quit:
            break
    return kept.rows


def rewrite(path, rows):
    """Write rows under a temporary name, then rename: whatever happens, the old file or the new one is
    there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())  # the rows are on the disk before the name is
    os.replace(temporary, path)


def rows_to_add_to(path, right=None):
    """The rows of a file that gets more of them, as load_rows gives them. What a process wrote last before it
    died may be half a line: it is removed, for the next row must begin a line of its own."""
    rows = load_rows(path, right)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        rewrite(path, rows)
    return rows
