"""Where preferences come from: labelers that compare answers, and what turns their rankings into numbers.

A labeler has one call, label(prompts, responses, aspect) -> (B, K, K): the probability that answer i of a
prompt beats its answer j; 0.5 is a tie, NaN means not compared (also the diagonal, and where a prompt has
fewer than K answers). The aspect is what is asked for: overall, helpful or safety.
"""
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import math
import os
import random
import shutil
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request

import torch

import data
from experiment import UserError
from model import generate


class Undo(Exception):
    """Whoever ranks wants the ranking before this one back."""


class Quit(Exception):
    """Whoever ranks has had enough; what is ranked already stays."""


class Labeler:
    """Somebody who ranks: rank(prompt, responses, aspect) gives tiers of indices, the best tier first, or [] for a question that is
    skipped. Example: [[1], [0, 3], [2]]: 0 and 3 tie."""

    done, total = 0, 0  # where rank_all is, for a line of progress
    batch = 1  # questions that it is asked at a time
    failings = ""  # in words, for the "source" of its rankings
    details = ()  # of what it labelled last: for each question a dict that its row in rankings.jsonl gets

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


# ------------------------------------------------------------------------------------------------
# An AI in the annotator's chair (RLAIF, Lee et al. 2023)
# ------------------------------------------------------------------------------------------------
# What it is asked, as plain text: the two answers or the one, the principles, and words behind which the verdict comes as the next token.
# Our own GPT has learned from reviews in the form that data.py gives them; a model behind a server gets whole sentences.
QUESTIONS = {
    "own": {"compare": data.COMPARE, "rate": data.RATE, "reasons": data.REASONS, "both": data.BOTH, "best": data.BEST, "rating": data.RATING},
    "server": {"compare": "Question: {prompt}\n\nAnswer 1: {first}\n\nAnswer 2: {second}\n\nWhich of the two answers is better? ",
               "rate": "Question: {prompt}\n\nAnswer: {response}\n\nHow good is this answer, from 1 (very bad) to 10 (very good)? ",
               "reasons": "What is good about it and what is bad, in a few words:", "both": "\nAbout answer 1: {first}\nAbout answer 2: {second}\n",
               "best": "Number of the better answer (1 or 2):", "rating": "Rating (1 to 10):"},
}
PREAMBLES = {  # what it is told to look for; --preamble FILE takes a text of yours
    ("none", "overall"): "", ("none", "helpful"): "", ("none", "safety"): "",
    ("base", "overall"): data.BASE, ("base", "helpful"): data.BASE, ("base", "safety"): data.BASE,
    ("detailed", "overall"): data.preamble_of(data.DETAILED),
    ("detailed", "helpful"): data.preamble_of([name for name in data.DETAILED if name != "harm"]),
    ("detailed", "safety"): data.preamble_of(data.DETAILED[:2]),
}


class OwnModel:
    """One of our GPTs as a language model that is asked: text in, the next token's log-probabilities or a line of text out."""

    form = QUESTIONS["own"]

    def __init__(self, model, enc, name="", batch_size=64):
        self.model, self.enc, self.name, self.batch_size, self.tokens = model, enc, name, batch_size, 0

    def batches(self, texts, room):
        """(indices, tokens (B, T), lengths (B,)) of texts of similar length. Raises UserError for one that is too long: cut, it would ask something else."""
        ids = [self.enc.encode_ordinary("\n\n" + text) for text in texts]
        if (longest := max(map(len, ids), default=0)) + room > self.model.config.block_size:
            raise UserError(f"a question to the judge has {longest} tokens and its answer {room}, which does not fit its context of {self.model.config.block_size}: "
                            "shorten the preamble, or train a judge with a larger --block_size")
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        device = next(self.model.parameters()).device
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens, lengths = data.pad_rows([ids[i] for i in rows], data.special_id(self.enc, "pad"))
            self.tokens += int(lengths.sum())
            yield rows, tokens.to(device), lengths.to(device)

    @torch.no_grad()
    def next_token(self, texts, words):
        """{word: log-probability that it is the next token} of each text, for those of the words that are one token."""
        ids = {word: self.enc.encode_ordinary(word) for word in words}
        ids, found = {word: i[0] for word, i in ids.items() if len(i) == 1}, [None] * len(texts)
        for rows, tokens, lengths in self.batches(texts, 0):
            last = self.model.hidden(tokens)[torch.arange(len(rows)), lengths - 1]
            for i, logprobs in zip(rows, self.model.lm_head(last).log_softmax(-1)[:, list(ids.values())].tolist()):
                found[i] = dict(zip(ids, logprobs))
        return found

    def write(self, texts, max_new_tokens):
        """The line with which each text most likely goes on (greedy), without its end."""
        written, end = [None] * len(texts), self.enc.encode_ordinary("\n")[0]
        for rows, tokens, lengths in self.batches(texts, max_new_tokens):
            responses, mask, _ = generate(self.model, tokens, lengths, max_new_tokens, 0, end, data.special_id(self.enc, "pad"))
            self.tokens += int(mask.sum())
            for i, r, m in zip(rows, responses.tolist(), mask.tolist()):
                written[i] = data.decode_response(self.enc, r, m)
        return written


class Server:
    """A language model behind an OpenAI-compatible server: POST URL/completions. Each answer of it is kept in a file, and not bought twice.

    url: up to and including /v1; key: for the Authorization header, or ""; path: the file, or None; timeout, wait: seconds for an answer,
    and before the second try (then twice as long each time). Raises UserError with a sentence about what is wrong and could be done."""

    form = QUESTIONS["server"]

    def __init__(self, url, model="", key="", path=None, timeout=60.0, tries=5, wait=1.0, parallel=4):
        self.url, self.key, self.path, self.lock, self.stop = url.rstrip("/"), key, path, threading.Lock(), threading.Event()
        self.timeout, self.tries, self.wait, self.parallel = timeout, tries, wait, parallel
        self.name = model or self.first_model()  # what another model has answered is no answer of this one
        if path:
            drop_half_a_line(path)
        self.bought = {json.dumps(row["asked"]): row["choice"] for row in (read_rankings(path) if path else [])}

    def headers(self):
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def first_model(self):
        """The first model that the server lists, or "" where it has no list."""
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.url}/models", headers=self.headers()), timeout=self.timeout) as reply:
                return str(json.load(reply)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return ""

    def ask(self, asked):
        """The first choice of the server's answer to one request (a dict), from the file if it is there."""
        asked = {"url": self.url, **({"model": self.name} if self.name else {}), "temperature": 0, **asked}
        if json.dumps(asked) in self.bought:
            return self.bought[json.dumps(asked)]
        body = json.dumps({k: v for k, v in asked.items() if k != "url"}).encode()
        for attempt in range(1, self.tries + 1):
            wait = self.wait * 2 ** (attempt - 1)
            try:
                request = urllib.request.Request(f"{self.url}/completions", body, self.headers())
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    raw = reply.read()
                break
            except urllib.error.HTTPError as error:
                said = ""
                with contextlib.suppress(OSError, http.client.HTTPException):
                    said = error.read().decode("utf-8", "replace")[:300]
                if error.code in (401, 403):
                    raise UserError(f"{self.url} refuses the key (HTTP {error.code}): set the environment variable JUDGE_API_KEY")
                if error.code == 404:
                    raise UserError(f"{self.url}/completions is not there (HTTP 404: {said}): --judge_url ends in /v1 and --judge_model names a model of that server")
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise UserError(f"{self.url} does not accept the question (HTTP {error.code}: {said})")
                problem = "asks for fewer questions at a time (HTTP 429)" if error.code == 429 else f"has trouble of its own (HTTP {error.code}: {said})"
                with contextlib.suppress(TypeError, ValueError):
                    wait = max(0.0, min(float(error.headers.get("Retry-After")), 60.0))
            except TimeoutError:
                problem = f"gave no answer within {self.timeout:g} s"
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                late = isinstance(getattr(error, "reason", None), TimeoutError)
                problem = f"gave no answer within {self.timeout:g} s" if late else f"cannot be reached ({getattr(error, 'reason', None) or error!r}): is the server running?"
            except ValueError as error:  # what no request can be made of
                raise UserError(f"{self.url}: {error}; --judge_url is http://HOST:PORT/v1, JUDGE_API_KEY a line of plain characters")
            if attempt == self.tries or self.stop.is_set():
                raise UserError(f"{self.url} {problem}, {self.tries} times; what it has answered is kept, the same command goes on from there")
            self.stop.wait(wait)
        try:
            choice = json.loads(raw)["choices"][0]
            choice = {"text": str(choice["text"]), "logprobs": choice.get("logprobs")}
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self.url} answered something that is no completion: {raw[:200].decode('utf-8', 'replace')!r}")
        with self.lock:
            self.bought[json.dumps(asked)] = choice
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"asked": asked, "choice": choice}) + "\n")
        return choice

    def ask_all(self, asked):
        """Several requests at a time, each once; the answers in their order."""
        new = {json.dumps(a): a for a in asked}
        pool = concurrent.futures.ThreadPoolExecutor(self.parallel)
        try:
            answers = dict(zip(new, pool.map(self.ask, new.values())))
        finally:
            self.stop.set()  # nobody tries again where one has failed, or Ctrl-C was pressed
            pool.shutdown(cancel_futures=True)
            self.stop.clear()
        return [answers[json.dumps(a)] for a in asked]

    def likeliest(self, texts):
        """{token: log-probability} of the likeliest next tokens of each text."""
        found = []
        for choice in self.ask_all([{"prompt": text, "max_tokens": 1, "logprobs": 5} for text in texts]):
            try:
                found.append({str(token): float(logprob) for token, logprob in dict(choice["logprobs"]["top_logprobs"][0]).items()})
            except (TypeError, LookupError, ValueError):
                raise UserError(f"{self.url} gives no log-probabilities with its completions, and a soft label is made of them: choose a server that "
                                "understands \"logprobs\"")
        return found

    def next_token(self, texts, words):
        """{word: log-probability} of each text, for those of the words that the server lists among the likeliest next tokens; where it lists
        none of them but a blank, which some vocabularies have before a number, those behind the blank."""
        listed = self.likeliest(texts)
        blank = [i for i, tokens in enumerate(listed) if " " in tokens and not {token.strip() for token in tokens} & set(words)]
        for i, tokens in zip(blank, self.likeliest([texts[i] + " " for i in blank])):
            listed[i] = tokens
        return [{w: math.log(total) for w in words if (total := sum(math.exp(logprob) for token, logprob in tokens.items() if token.strip() == w))}
                for tokens in listed]

    def write(self, texts, max_new_tokens):
        """How each text goes on: the first line with something in it, for many models begin with an empty one."""
        choices = self.ask_all([{"prompt": text, "max_tokens": max_new_tokens} for text in texts])
        return [" ".join(choice["text"].strip().partition("\n")[0].split()) for choice in choices]


def expected_rating(probabilities):
    """s = sum over i of i P(i), the ratings from 1 to 10, brought to [-1, 1] by 2 (s - 1) / 9 - 1. (RLAIF, section 2.2.2; the paper prints no
    formula for the second part.)

    probabilities: {i: P(i)}, need not add up to 1. Example: {5: .1, 6: .2, 7: .4, 8: .2, 9: .1} -> s = 7.0 -> 0.333."""
    s = sum(i * p for i, p in probabilities.items()) / sum(probabilities.values())
    return 2 * (s - 1) / 9 - 1


class AI(Labeler):
    """A language model as the annotator. Of two answers it gives the softmax over the log-probabilities of "1" and "2", averaged over both
    orders, for models like an answer better where it comes first (or second). (RLAIF, section 2.1.)

    model: OwnModel or Server; preamble: what it is told to look for, {aspect: text}; chain_of_thought: it writes notes about each answer first,
    which it reads by itself, and has the notes on both before it when it compares; both_orders: False asks in one order only."""

    name, batch, longest_notes = "ai", 64, 48

    def __init__(self, model, preamble, chain_of_thought=False, both_orders=True):
        self.model, self.preamble, self.chain_of_thought, self.both_orders = model, preamble, chain_of_thought, both_orders
        self.noted, self.rated, self.pairs, self.same_position, self.first_wins, self.silent, self.seconds = {}, {}, 0, 0, 0, 0, 0.0

    def question(self, kind, aspect, prompt, **parts):
        return (self.preamble[aspect] + "\n" if self.preamble[aspect] else "") + self.model.form[kind].format(prompt=data.prompt_text(prompt), **parts)

    def notes(self, prompts, responses, aspect="overall"):
        """The notes on N answers; one that it has read already is not read again."""
        keys = [(json.dumps(p), r, aspect) for p, r in zip(prompts, responses)]
        new = sorted(set(keys) - self.noted.keys())
        questions = [self.question("rate", aspect, json.loads(p), response=r) + self.model.form["reasons"] for p, r, _ in new]
        self.noted |= zip(new, self.model.write(questions, self.longest_notes))
        return [self.noted[key] for key in keys]

    def compare(self, prompts, first, second, aspect="overall"):
        """P(the answer in `first` is better) for N pairs of texts in this order, NaN where the model says neither 1 nor 2."""
        questions = [self.question("compare", aspect, p, first=a, second=b) for p, a, b in zip(prompts, first, second)]
        if self.chain_of_thought:
            notes = zip(self.notes(prompts, first, aspect), self.notes(prompts, second, aspect))
            questions = [q + self.model.form["both"].format(first=one, second=two) for q, (one, two) in zip(questions, notes)]
        found = self.model.next_token([q + self.model.form["best"] for q in questions], "12")
        return [math.nan if not f else 1 / (1 + math.exp(min(f.get("2", -20.0) - f.get("1", -20.0), 500))) for f in found]

    def label(self, prompts, responses, aspect="overall"):
        began, K = time.time(), max(map(len, responses))
        pairs = [(b, i, j) for b, answers in enumerate(responses) for i, j in itertools.combinations(range(len(answers)), 2)]
        asked, one, two = [prompts[b] for b, _, _ in pairs], [responses[b][i] for b, i, _ in pairs], [responses[b][j] for b, _, j in pairs]
        p = self.compare(asked, one, two, aspect)
        turned = self.compare(asked, two, one, aspect) if self.both_orders else [math.nan] * len(pairs)
        if pairs and not self.pairs and all(map(math.isnan, p + turned)):
            raise UserError(f"the judge{' ' * bool(self.model.name)}{self.model.name} says neither 1 nor 2 to any of {len(pairs)} comparisons: it does not understand the question")
        wins, self.details = torch.full((len(prompts), K, K), torch.nan), [{"pairs": []} for _ in prompts]
        for (b, i, j), p_first, p_second in zip(pairs, p, turned):
            given = [x for x in (p_first, 1 - p_second) if not math.isnan(x)]
            self.silent += not given
            if given:
                wins[b, i, j] = sum(given) / len(given)
                wins[b, j, i] = 1 - wins[b, i, j]
                self.details[b]["pairs"].append([i, j, round(wins[b, i, j].item(), 4)])
                self.pairs, self.first_wins = self.pairs + 1, self.first_wins + (given[0] > 0.5)
            self.same_position += len(given) == 2 and (p_first > 0.5) == (p_second > 0.5)
        if self.chain_of_thought:
            self.details = [{**d, "notes": self.notes([p] * len(r), r, aspect)} for d, p, r in zip(self.details, prompts, responses)]
        self.seconds += time.time() - began
        return wins

    def rate(self, prompts, responses, aspect="overall"):
        """Ratings of N answers in [-1, 1]; one that is there already is not asked for again."""
        began, keys = time.time(), [(json.dumps(p), r, aspect) for p, r in zip(prompts, responses)]
        if new := sorted(set(keys) - self.rated.keys()):
            questions = [self.question("rate", aspect, json.loads(p), response=r) + self.model.form["rating"] for p, r, _ in new]
            found = self.model.next_token(questions, [str(i) for i in range(1, 11)])
            # Where "10" is not one token, it is "1" and then "0".
            unsure = [i for i, f in enumerate(found) if "10" not in f and f.get("1", -20.0) > math.log(0.001)]
            for i, f in zip(unsure, self.model.next_token([questions[i] + "1" for i in unsure], ["0"])):
                both, ten = found[i]["1"], min(f.get("0", -20.0), -1e-6)
                found[i] |= {"10": both + ten, "1": both + math.log(-math.expm1(ten))}
            silent = [key for key, f in zip(new, found) if not f]
            if len(silent) == len(new) and not self.rated:
                raise UserError(f"the judge{' ' * bool(self.model.name)}{self.model.name} gives no rating from 1 to 10 for any of {len(new)} answers: it does not understand the question")
            self.silent += len(silent)
            self.rated |= {key: expected_rating({int(w): math.exp(logprob) for w, logprob in f.items()}) if f else 0.0 for key, f in zip(new, found)}
            self.pairs += len(new)
        self.seconds += time.time() - began
        return [self.rated[key] for key in keys]

    def summary(self):
        """What it has done, in a sentence."""
        n = max(1, self.pairs)
        orders = f"the same position won in both orders in {self.same_position / n:.2f} of them" if self.both_orders else "asked in one order"
        return (f"{self.pairs} pairs labelled by the AI in {self.seconds:.0f} s; {orders}, the first answer in {self.first_wins / n:.2f} of the first questions"
                + (f"; {self.silent} pairs without a verdict" if self.silent else ""))


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
    drop_half_a_line(path)
    rows = read_rankings(path, **about)
    annotator.total = len(questions)
    while len(rows) < len(questions):
        some, annotator.done = questions[len(rows) : len(rows) + annotator.batch], len(rows)
        try:
            labels = annotator.label([q["prompt"] for q in some], [q["responses"] for q in some], about["aspect"])
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
        new = [{**q, "tiers": wins_to_tiers(wins), **details, **about} for q, wins, details in zip(some, labels, annotator.details or [{}] * len(some))]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new))
        rows += new
    return rows


def rewrite(path, rows):
    """Write rows under a temporary name, then rename: whatever happens, the old file or the new one is there."""
    path.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


def drop_half_a_line(path):
    """What a process wrote last before it died may be half a line; the next one must begin a new one."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        rewrite(path, read_rankings(path))


def ranking_to_pairs(tiers, ties=False):
    """All K(K-1)/2 comparisons of a ranking, as (better, worse, how many tiers apart); with ties also those, 0 tiers apart.

    Example: [[1], [0, 2]] -> [(1, 0, 1), (1, 2, 1)], with ties also (0, 2, 0).
    """
    places = [(i, t) for t, tied in enumerate(tiers) for i in tied]
    return [(i, j, u - t) for n, (i, t) in enumerate(places) for j, u in places[n + 1 :] if ties or u > t]


def comparisons(row, ties=False):
    """The comparisons of a row of rankings.jsonl as (better, worse, P(better is better), tiers apart): all pairs of a ranking, certain (a tie:
    0.5); where an AI labelled, its own pairs with their soft labels."""
    if "pairs" in row:
        place = {i: t for t, tied in enumerate(row["tiers"]) for i in tied}
        return [(*((i, j, p) if p >= 0.5 else (j, i, 1 - p)), abs(place[i] - place[j])) for i, j, p, *_ in row["pairs"]]
    return [(i, j, 1.0 if apart else 0.5, apart) for i, j, apart in ranking_to_pairs(row["tiers"], ties)]


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
