"""An AI in the annotator's chair: RLAIF (Lee et al. 2023). It labels pairs of answers, or rates single ones.

It is a language model that is asked: one of our own GPTs, which has read reviews (world/reviews.py), or a
model behind a server (world/server.py). Its verdict is not what it writes, but how likely it finds each
verdict as the next token. """
import itertools
import json
import math
import os
import time
from pathlib import Path

import torch

from data import CONTROL, UserError, decode_response, encode, pad_rows, prompt_text, special_id
from model import generate
from world.damage import sentences
from world.labelers import Labeler
from world.reviews import (
    BASE,
    BEST,
    BOTH,
    COMPARE,
    DETAILED,
    RATE,
    RATING,
    REASONS,
    REMARK,
    REMARKS,
    preamble_of,
    said,
)

# What the judge is asked, as plain text: the two answers or the one, the principles, and words behind which
# the verdict comes as the next token. Our own GPT has learned from reviews in that form; a model behind a
# server gets whole sentences.
WHICH = ("Question: {prompt}\n\nAnswer 1: {first}\n\nAnswer 2: {second}\n\n"
         "Which of the two answers is better? ")
FORMS = {
    "own": {
        "compare": COMPARE,
        "compare_notes": BOTH,
        "rate": RATE,
        "remark": REMARK,
        "reasons": REASONS,
        "best": BEST,
        "rating": RATING,
    },
    "server": {
        "compare": WHICH,
        "compare_notes": WHICH + "\nAbout answer 1: {one}\nAbout answer 2: {two}\n",
        "rate": "Question: {prompt}\n\nAnswer: {response}\n\n"
                "How good is this answer, from 1 (very bad) to 10 (very good)? ",
        "reasons": "What is good about it and what is bad, in a few words:",
        "best": "Number of the better answer (1 or 2):",
        "rating": "Rating (1 to 10):",
    },
}
# What it is told to look for, by aspect; --preamble FILE takes a text of yours.
PREAMBLES = {
    "none": {"overall": "", "helpful": "", "safety": ""},
    "base": {"overall": BASE, "helpful": BASE, "safety": BASE},
    "detailed": {
        "overall": preamble_of(DETAILED),
        "helpful": preamble_of([name for name in DETAILED if name != "harm"]),
        "safety": preamble_of(("harm", "stray")),
    },
}
REMARK_LENGTH, NOTES_LENGTH = 32, 48  # tokens of a remark on a sentence, and of notes on an answer
MOST_REMARKS = 12  # that notes begin with
UNLISTED = -20.0  # log-probability of a verdict that the model does not list


def is_preamble(name):
    """Whether --preamble can be that: one of PREAMBLES, a file, or a sentence (Chinese has no blanks)."""
    return name in PREAMBLES or " " in name or not name.isascii() or os.path.isfile(name)


def read_preamble(name):
    """The text of a file of that name; none, base, detailed and a text with principles stay what they are."""
    if name in PREAMBLES or not os.path.isfile(name):  # no file, either: a text that is too long for a name
        return name
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise UserError(f"--preamble {name}: expected a text file, in UTF-8") from None
    if CONTROL.search(text):
        raise UserError(f"--preamble {name}: expected text without control characters")
    return text


def preambles(text):
    """What the judge is told, {aspect: text}. text: none, base, detailed or a text with principles."""
    return PREAMBLES.get(text) or dict.fromkeys(("overall", "helpful", "safety"), text)


def expected_rating(probabilities):
    """s = sum over i of i P(i), the ratings from 1 to 10, brought to [-1, 1] by 2 (s - 1) / 9 - 1. (RLAIF,
    section 2.2.2; the paper prints no formula for the second part.)

    probabilities: {i: P(i)}, need not add up to 1.
    Example: {5: .1, 6: .2, 7: .4, 8: .2, 9: .1} -> s = 7.0 -> 0.333."""
    s = sum(i * p for i, p in probabilities.items()) / sum(probabilities.values())
    return 2 * (s - 1) / 9 - 1


class OwnModel:
    """One of our GPTs as a language model that is asked: text in, the next token's log-probabilities or a
    line of text out."""

    form, name = "own", ""

    def __init__(self, model, enc, batch_size=64):
        self.model, self.enc, self.batch_size = model, enc, batch_size

    def batches(self, texts, room):
        """(indices, tokens (B, T), lengths (B,)) of texts of similar length. Raises UserError for one that
        is too long: cut, it would ask something else."""
        ids = [encode(self.enc, "\n\n" + text) for text in texts]
        longest, context = max(map(len, ids), default=0), self.model.config.block_size
        if longest + room > context:
            raise UserError(f"a question to the judge has {longest} tokens and its answer {room}, which does "
                            f"not fit its context of {context}: shorten the preamble, or train a judge with "
                            "a larger --block_size")
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        device = next(self.model.parameters()).device
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens, lengths = pad_rows([ids[i] for i in rows], special_id(self.enc, "pad"))
            yield rows, tokens.to(device), lengths.to(device)

    @torch.no_grad()
    def next_token(self, texts, words):
        """{word: log-probability that it is the next token} of each text, for those of the words that are
        one token."""
        ids = {}
        for word in words:
            tokens_of_word = encode(self.enc, word)
            if len(tokens_of_word) == 1:
                ids[word] = tokens_of_word[0]
        found = [None] * len(texts)
        for rows, tokens, lengths in self.batches(texts, 0):
            last = self.model.hidden(tokens, read=(torch.arange(len(rows)), lengths - 1))
            logprobs = self.model.lm_head(last).log_softmax(-1)[:, list(ids.values())]
            for i, of_words in zip(rows, logprobs.tolist(), strict=True):
                found[i] = dict(zip(ids, of_words, strict=True))
        return found

    def write(self, texts, max_new_tokens):
        """The line with which each text most likely goes on (greedy), without its end."""
        end, pad = encode(self.enc, "\n")[0], special_id(self.enc, "pad")
        written = [None] * len(texts)
        for rows, tokens, lengths in self.batches(texts, max_new_tokens):
            responses, mask, _ = generate(self.model, tokens, lengths, max_new_tokens, 0, end, pad)
            for i, r, m in zip(rows, responses.tolist(), mask.tolist(), strict=True):
                written[i] = decode_response(self.enc, r, m)
        return written


class AI(Labeler):
    """A language model as the annotator. Of two answers it gives the softmax over the log-probabilities of
    "1" and "2", averaged over both orders, for models like an answer better where it comes first (or
    second). (RLAIF, section 2.1.)

    model: OwnModel or Server; preamble: what it is told to look for, {aspect: text}; chain_of_thought: it
    takes notes on each answer first, by itself, and has them before it when it rates that answer, or those on
    both when it compares; both_orders: False asks in one order only."""

    name, title, batch = "ai", "the AI judge", 64

    def __init__(self, model, preamble, chain_of_thought=False, both_orders=True):
        self.model, self.preamble = model, preamble
        self.chain_of_thought, self.both_orders = chain_of_thought, both_orders
        self.answers = 4 if model.form == "server" else 6  # pairs grow with the square
        self.noted, self.rated = {}, {}  # by (prompt as JSON, response, aspect)
        self.remarked = {}  # by (prompt as JSON, sentence, aspect)
        self.compared = {}  # by question
        self.pairs = self.first_asked = self.both_asked = 0  # with a verdict; in this order; in both
        self.same_position = self.first_wins = self.silent = 0
        self.seconds = 0.0

    def question(self, kind, aspect, prompt, **parts):
        preamble = self.preamble[aspect]
        asked = FORMS[self.model.form][kind].format(prompt=prompt_text(prompt), **parts)
        return f"{preamble}\n{asked}" if preamble else asked

    def does_not_understand(self, what):
        named = f"the judge {self.model.name}" if self.model.name else "the judge"
        return UserError(f"{named} {what}: it does not understand the question")

    def notes(self, prompts, responses, aspect="overall"):
        """The notes on N answers; one that it has read already is not read again. A model that knows remarks
        begins with them, and goes on from there."""
        keys, form = keys_of(prompts, responses, aspect), FORMS[self.model.form]
        new = sorted(set(keys) - self.noted.keys())
        begun = self.remarks(new) if "remark" in form else [""] * len(new)
        asked = [self.question("rate", aspect, json.loads(p), response=r) for p, r, _ in new]
        heads = [f"{text}{form['reasons']} {words}".rstrip()
                 for text, words in zip(asked, begun, strict=True)]
        written = self.model.write(heads, NOTES_LENGTH)
        notes = [f"{words} {more}".strip() for words, more in zip(begun, written, strict=True)]
        self.noted |= zip(new, notes, strict=True)
        return [self.noted[key] for key in keys]

    def remarks(self, keys):
        """What it remarks on the sentences of N answers, asked about one sentence at a time: a small model
        gets lost where a large one can look at everything at once. keys: of keys_of. Returns N texts."""
        questions = [[(prompt, text, aspect) for text in sentences(response)]
                     for prompt, response, aspect in keys]
        new = sorted({q for asked in questions for q in asked} - self.remarked.keys())
        texts = [self.question("rate", aspect, json.loads(prompt), response=text)
                 + FORMS[self.model.form]["remark"] for prompt, text, aspect in new]
        written = self.model.write(texts, REMARK_LENGTH)  # topics; subjects; remarks
        self.remarked |= zip(new, (line.rpartition(";")[2].split() for line in written), strict=True)
        found = [[r for q in asked for r in self.remarked[q] if r in REMARKS] for asked in questions]
        return [said(some[:MOST_REMARKS]) for some in found]

    def compare(self, prompts, first, second, aspect="overall"):
        """P(the answer in `first` is better) for N pairs of texts in this order, NaN where it says neither
        1 nor 2."""
        kind, N = "compare", len(prompts)
        ones = twos = [""] * N
        if self.chain_of_thought:
            kind = "compare_notes"
            ones, twos = self.notes(prompts, first, aspect), self.notes(prompts, second, aspect)
        asked = [self.question(kind, aspect, prompts[i], first=first[i], second=second[i], one=ones[i],
                               two=twos[i]) + FORMS[self.model.form]["best"] for i in range(N)]
        new = [text for text in dict.fromkeys(asked) if text not in self.compared]  # notes are often the same
        self.compared |= zip(new, self.model.next_token(new, "12"), strict=True)
        return [p_first(self.compared[text]) for text in asked]

    def label(self, prompts, responses, aspect="overall"):
        """(B, K, K) as every labeler gives it; here the probabilities lie between 0 and 1."""
        began, K = time.time(), max(map(len, responses))
        pairs = []
        for b, answers in enumerate(responses):
            pairs += [(b, i, j) for i, j in itertools.combinations(range(len(answers)), 2)]
        asked = [prompts[b] for b, _, _ in pairs]
        one = [responses[b][i] for b, i, _ in pairs]
        two = [responses[b][j] for b, _, j in pairs]
        there = self.compare(asked, one, two, aspect)
        back = self.compare(asked, two, one, aspect) if self.both_orders else [math.nan] * len(pairs)
        if pairs and not self.pairs and all(map(math.isnan, there + back)):
            raise self.does_not_understand(f"says neither 1 nor 2 about any of {len(pairs)} pairs")
        wins = torch.full((len(prompts), K, K), torch.nan)
        self.details = [{"pairs": []} for _ in prompts]
        for (b, i, j), p_there, p_back in zip(pairs, there, back, strict=True):
            self.count(p_there, p_back)
            if given := [p for p in (p_there, 1 - p_back) if not math.isnan(p)]:
                wins[b, i, j] = sum(given) / len(given)
                wins[b, j, i] = 1 - wins[b, i, j]
                self.details[b]["pairs"].append([i, j, round(wins[b, i, j].item(), 4)])
        if self.chain_of_thought:
            for details, prompt, answers in zip(self.details, prompts, responses, strict=True):
                if len(answers) > 1:
                    details["notes"] = self.notes([prompt] * len(answers), answers, aspect)
        self.seconds += time.time() - began
        return wins

    def count(self, there, back):
        """there, back: P(what stands first is better) in one order and in the other, NaN where it was
        silent."""
        silent = math.isnan(there) and math.isnan(back)
        self.silent += silent
        self.pairs += not silent
        self.first_asked += not math.isnan(there)
        self.both_asked += not math.isnan(there + back)
        self.first_wins += there > 0.5
        self.same_position += not math.isnan(there + back) and (there > 0.5) == (back > 0.5)

    def rate(self, prompts, responses, aspect="overall"):
        """Ratings of N answers in [-1, 1]; one that is there already is not asked for again."""
        keys = keys_of(prompts, responses, aspect)
        if new := sorted(set(keys) - self.rated.keys()):
            asked = [self.question("rate", aspect, json.loads(p), response=r) for p, r, _ in new]
            form = FORMS[self.model.form]
            if self.chain_of_thought:
                notes = self.notes([json.loads(p) for p, *_ in new], [r for _, r, _ in new], aspect)
                asked = [f"{text}{form['reasons']} {note}\n" for text, note in zip(asked, notes, strict=True)]
            found = self.ratings([text + form["rating"] for text in asked])
            silent = found.count({})
            if silent == len(new) and not self.rated:
                raise self.does_not_understand(f"gives no rating from 1 to 10 for any of {len(new)} answers")
            self.silent += silent
            for key, probabilities in zip(new, found, strict=True):
                self.rated[key] = expected_rating(probabilities) if probabilities else 0.0
        return [self.rated[key] for key in keys]

    def ratings(self, asked):
        """{rating: probability} of each text. Where "10" is not one token, it is "1" and then "0"."""
        found = self.model.next_token(asked, [str(i) for i in range(1, 11)])
        unsure = [i for i, f in enumerate(found) if "10" not in f and f.get("1", UNLISTED) > math.log(0.001)]
        zeros = self.model.next_token([asked[i] + "1" for i in unsure], ["0"])
        for i, zero in zip(unsure, zeros, strict=True):
            one, ten = found[i]["1"], min(zero.get("0", UNLISTED), -1e-6)
            found[i] |= {"10": one + ten, "1": one + math.log(-math.expm1(ten))}
        return [{int(word): math.exp(logprob) for word, logprob in f.items()} for f in found]

    def summary(self):
        """What it has compared, in a sentence."""
        first = self.first_wins / max(1, self.first_asked)
        orders = "asked in one order"
        if self.both_orders:
            same = self.same_position / max(1, self.both_asked)
            orders = f"the same position won in both orders in {same:.2f} of them"
        silent = f"; {self.silent} pairs without a verdict" if self.silent else ""
        return (f"{self.pairs} pairs labelled by the AI since this command began, in {self.seconds:.0f} s; "
                f"{orders}, the first answer in {first:.2f} of the first questions{silent}")


def keys_of(prompts, responses, aspect):
    return [(json.dumps(p), r, aspect) for p, r in zip(prompts, responses, strict=True)]


def p_first(found):
    """Softmax over the log-probabilities of "1" and "2": P("1"); NaN where neither is there."""
    if not found:
        return math.nan
    return 1 / (1 + math.exp(min(found.get("2", UNLISTED) - found.get("1", UNLISTED), 500)))
