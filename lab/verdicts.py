"""Rows of preferences, in whatever layout, into ours: {"prompt", "responses", "tiers"[, "margin", "label"]}.

Whoever says which answer is better, that it is a tie, or how clear it is, is heard: a word that is not
understood ends in a sentence. Of two answers the better one comes first. Each reader takes (where, row) and
returns a list of rows, or raises Dropped where there is nothing to compare.
"""
import os
import re

from data import UserError
from lab.rows import (
    QUESTIONS,
    Dropped,
    Row,
    answered,
    chat_of,
    check_text,
    field,
    is_absent,
    is_transcript,
    number,
    optional,
    prompt_of,
    question,
    read_chat,
    same_text,
    shown,
    systems_of,
    with_systems,
    written_list,
    yes_or_no,
)
from world.labelers import is_ranking

SUFFIXES = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"))
STEMS = ("response", "answer", "output", "completion", "reply", "candidate", "option", "summary", "text")
WINNERS = (  # columns of a table that say which of two answers is better
    "preferred", "preference", "winner", "better", "best", "choice", "chosen", "verdict", "vote", "label",
    "preferred_response", "preferred_answer", "better_response", "better_answer",
)
INSIDE = ("label", "winner", "choice", "preferred", "value", "choices", "selected")  # a verdict's object
SCORES = [names for word in ("score", "rating", "reward", "avg_rating")
          for names in ((f"{word}_chosen", f"{word}_rejected"), (f"chosen_{word}", f"rejected_{word}"))]
TIES = {"tie", "ties", "draw", "equal", "same", "both", "neither", "no preference", "bothbad", "tie bothbad",
        "tie both bad", "both bad", "both good", "equally good"}
TALKS = ("conversations", "conversation", "messages", "context", "trajectory")
KEYS_OF_POSTS = ("subreddit", "title", "post", "article")
DECISIVE = {  # columns that may be left unread by no layout
    *(name for name in WINNERS if name != "label"), "tie", "is_tie", "tied", "strength",
    "preference_strength", "overall_preference", "better_response_id", "ranks", "tiers",
}
SINGLE = ("response", "completion", "answer", "output")  # columns of one answer

# ------------------------------------------------------------------------------------------------
# What all of them end in
# ------------------------------------------------------------------------------------------------


def compared(where, chat, texts, winner, margin=None):
    """Two answers to a chat; winner: 0, 1 or None for a tie; margin: 0 to 3, or None."""
    if not all(text.strip() for text in texts):
        raise Dropped("with an empty answer")
    if same_text(texts[0]) == same_text(texts[1]):
        raise Dropped("with the same answer twice")
    row = {"prompt": prompt_of(where, chat), "responses": list(texts[::-1] if winner == 1 else texts),
           "tiers": [[0, 1]] if winner is None else [[0], [1]]}
    return row | ({} if margin is None or winner is None else {"margin": margin})


def ranked(where, chat, texts, values):
    """Any number of answers; values: the larger the better, equal ones tie, None where nobody judged.
    Empty answers, and those that are there already, are left out, which is said."""
    kept = {}
    for text, value in zip(texts, values, strict=True):
        if value is not None and text.strip():
            kept.setdefault(same_text(text), (text, value))
    if len(kept) < 2:
        raise Dropped("with fewer than two answers to compare")
    levels = sorted({value for _, value in kept.values()}, reverse=True)
    tiers = [[i for i, (_, value) in enumerate(kept.values()) if value == level] for level in levels]
    row = {"prompt": prompt_of(where, chat), "responses": [text for text, _ in kept.values()], "tiers": tiers}
    left_out = len(texts) - len(kept)
    return row | ({"notes": ["have answers that are left out: empty, there twice, or not judged"]}
                  if left_out else {})


def last_turns(where, chats, winner):
    """Two whole chats: their last answers, where they follow the same prompt."""
    if any(not chat or chat[-1]["role"] != "assistant" for chat in chats):
        raise Dropped("that do not end with an answer of the assistant")
    before = [with_systems(where, chat[:-1]) for chat in chats]
    if before[0] != before[1]:
        raise Dropped("whose answers follow different prompts")
    return compared(where, chats[0][:-1], [chat[-1]["content"] for chat in chats], winner)


# ------------------------------------------------------------------------------------------------
# chosen and rejected
# ------------------------------------------------------------------------------------------------


def chosen_and_rejected(where, row):
    """Texts, messages or transcripts, beside their prompt or with it inside."""
    names, pair = ("chosen", "rejected"), two_names(row)
    values = [field(where, row, name, kind=(str, list, dict)) for name in names]
    if pair and isinstance(values[0], str) and values[0] not in [dict.get(row, name) for name in pair]:
        raise UserError(f'{where}: "chosen" is neither "{pair[0]}" nor "{pair[1]}": where it names the '
                        'better of them, call it "preferred"; otherwise take them out')
    if isinstance(values[0], str) != isinstance(values[1], str):
        raise UserError(f'{where}: "chosen" and "rejected" must both be text or both be lists of messages')
    if not all(values):
        raise Dropped("with an empty answer")
    whole = isinstance(values[0], list) and len(values[0]) > 1  # the prompt is inside
    asked = (*QUESTIONS, "conversations") if whole else (*QUESTIONS, *TALKS)
    asked = [name for name in asked if not is_absent(dict.get(row, name))]
    given = question(where, row, asked) if asked else systems_of(where, row)
    if given and given[-1] == {"role": "assistant", "content": values[0]}:
        given = given[:-1]  # the prompt goes on with the chosen answer
    notes = []
    if not asked and isinstance(values[0], str) and not all(map(is_transcript, values)):
        if any(name in row for name in QUESTIONS):
            raise Dropped("with an empty prompt")
        beginning, values = common_beginning(where, values)
        given = given + beginning
        notes = ["have no prompt: what both answers begin with is taken for it"]
    sides = [answered(where, given, value) for value in values]
    before = [with_systems(where, chat) for chat, _ in sides]
    if before[0] != before[1]:
        raise Dropped("whose answers follow different prompts")
    row = compared(where, sides[0][0], [text for _, text in sides], said_of_pair(where, row))
    return [row | ({"notes": notes} if notes else {})]


def answer_and_rejected(where, row):
    """The answer of a demonstration, and beside it one that is worse."""
    name = next(name for name in (*SINGLE, *TALKS) if name in row)
    rejected = row["rejected"]
    if isinstance(rejected, list) and len(rejected) == 1:
        rejected = row["rejected"] = last_answer(where, rejected)
    if name in SINGLE:
        row["chosen"] = field(where, row, name)
    else:
        talk = field(where, row, name, kind=list)
        answer = last_answer(where, talk)
        row["chosen"] = answer if isinstance(rejected, str) else talk
    return chosen_and_rejected(where, row)


def last_answer(where, talk):
    """The answer that a list of messages ends with."""
    last = read_chat(where, talk)[-1:]
    if not last or last[0]["role"] != "assistant":
        raise Dropped("that do not end with an answer of the assistant")
    return last[0]["content"]


def common_beginning(where, texts):
    """Two whole texts -> (the prompt that both begin with, up to the last blank, [the rest of each])."""
    same = os.path.commonprefix(texts)
    same = same[: len(same) - len(re.search(r"\S*\Z", same)[0])]
    if not same.strip():
        raise UserError(f'{where}: "chosen" and "rejected" have no "prompt" beside them, are no transcripts '
                        "and do not begin alike")
    return chat_of(where, same.strip()), [text[len(same) :] for text in texts]


def said_of_pair(where, row):
    """0, or None where a column calls it a tie. Raises Dropped where scores contradict the names chosen and
    rejected, UserError where a winner does or is not understood."""
    for a, b in SCORES:
        if not is_absent(dict.get(row, a)) and not is_absent(dict.get(row, b)):
            difference = number(where, row, a) - number(where, row, b)
            if difference < 0:
                raise Dropped("whose scores say that the rejected answer is better")
            if difference == 0:
                return None
    for name in ("tie", "is_tie", "tied"):
        if yes_or_no(where, row, name):
            return None
    for name in ("winner", "preferred", "preference", "preference_label", "better", "label", "status",
                 "outcome", "result"):
        word = str(dict.get(row, name, "")).strip().lower()
        if word in TIES:
            row.get(name)
            return None
        if word in ("chosen", "true", "1", "1.0"):
            row.get(name)
        elif name in ("status", "outcome", "result"):
            continue  # says anything, but of a tie
        elif word in ("rejected", "false", "0", "0.0") or name != "label" and word not in ("", "none", "nan"):
            raise UserError(f'{where}: "{name}" says {shown(word)} beside "chosen" and "rejected": which is '
                            "better?")
    return 0


# ------------------------------------------------------------------------------------------------
# Two answers and a verdict
# ------------------------------------------------------------------------------------------------


def two_names(row):
    """The columns of two answers, ("response_a", "response_b") or alike, or None."""
    pairs = [(f"{stem}_{a}", f"{stem}_{b}") for stem in STEMS for a, b in SUFFIXES] + [("a", "b")]
    pairs += [(f"model_{a}_{stem}", f"model_{b}_{stem}") for stem in STEMS for a, b in SUFFIXES]
    return next(((a, b) for a, b in pairs if a in row and b in row), None)


def is_two_answers(row):
    return bool(two_names(row) and any(name in row for name in WINNERS)
                and any(name in row for name in QUESTIONS))


def two_answers(where, row):
    """Two answers, and a column that names the better one or a tie."""
    names = two_names(row)
    third = names[0][:-1] + {"a": "c", "1": "3", "0": "2"}[names[0][-1]]
    if not is_absent(dict.get(row, third)):
        raise UserError(f'{where}: has a third answer, "{third}": write all of them as a list, "responses", '
                        'and beside it "ranks"')
    column = next((name for name in WINNERS if not is_absent(dict.get(row, name))), None)
    if column is None:
        raise Dropped("that do not say which answer is better")
    texts = [field(where, row, name) for name in names]
    return [compared(where, question(where, row), texts, winner_in(where, row, column, names, texts))]


def winner_in(where, row, column, names, texts):
    """0, 1 or None for a tie, from a word such as "A", "Response 2", "tie", or the better text itself. Raises
    UserError where it is none of them, or two: an answer may read "Both". A sign says which way, but not
    which."""
    value = row[column]
    if isinstance(value, dict):
        value = next((value[key] for key in INSIDE if key in value), value)
    signed = re.match(r"\s*[-\u2212\u2013]\s*\d", str(value))
    word = "" if signed else re.sub(r"[\W_]+", " ", re.sub(r"\.0$", "", str(value).lower())).strip()
    short = re.sub(rf"^({'|'.join(STEMS)}|model|assistant) ", "", word)
    ends = [name.split("_")[-1] for name in names]
    alike = [value == text or not is_absent(dict.get(row, f"model_{end}")) and value == row[f"model_{end}"]
             for text, end in zip(texts, ends, strict=True)]
    half = column == "preference" and names[0] == "output_1" and word in ("0", "1 5")  # AlpacaEval's
    tie = word in TIES or short in TIES or half
    named = {i for i in (0, 1) if short in (ends[i], ("first", "second")[i]) or alike == [i == 0, i == 1]}
    if tie + len(named) == 1:
        return None if tie else named.pop()
    raise UserError(f'{where}: "{column}" must be {ends[0].upper()}, {ends[1].upper()} or tie, found '
                    f"{shown(value)}")


def zero_or_one(where, row, name):
    """The whole number of a column that is either 0 or 1."""
    found = number(where, row, name, 0, 1)
    if found not in (0, 1):
        raise UserError(f'{where}: "{name}" must be 0 or 1, found {shown(row[name])}')
    return int(found)


def by_id(*columns):
    """A reader of response_0 and response_1; columns: (its name, the aspect that it is about)."""
    def read(where, row):
        names = ("response_0", "response_1")
        texts = [field(where, row, name) for name in names]
        chat, found = question(where, row), []
        for column, aspect in columns:
            if not is_absent(row.get(column)):
                winner = zero_or_one(where, row, column)
                found.append(compared(where, chat, texts, winner) | {"aspect": aspect})
        if not found:
            raise Dropped("that do not say which answer is better")
        safe = [yes_or_no(where, row, f"is_{name}_safe") for name in names]
        if any(row["aspect"] == "safety" and safe == ([False, True] if row["responses"][0] == texts[0]
                                                      else [True, False]) for row in found):
            raise Dropped("whose safer answer is called unsafe, and the other safe")
        return found
    return read


def by_strength(where, row):
    """HelpSteer: -3 (the first is much better) to 3 (the second is); 0 is a tie."""
    column = "preference_strength" if "preference_strength" in row else "overall_preference"
    if is_absent(row.get(column)):
        raise Dropped("that do not say which answer is better")
    strength = number(where, row, column, -3, 3)
    texts = [field(where, row, name) for name in ("response_1", "response_2")]
    winner = None if strength == 0 else int(strength > 0)
    return [compared(where, question(where, row, ("prompt", "context")), texts, winner, abs(strength))]


def shp(where, row):
    """Stanford Human Preferences: labels is 1 where answer A is better, 0 where B is."""
    texts = [field(where, row, f"human_ref_{x}") for x in "ab"]
    winner = 1 - zero_or_one(where, row, "labels")
    return [compared(where, question(where, row, ("history",)), texts, winner)]


def webgpt(where, row):
    """Scores from -1 to 1, of which the other answer has the opposite; equal ones are a tie. The margin is
    three times the score."""
    asked = row["question"]
    text = asked.get("full_text") if isinstance(asked, dict) else asked
    chat = question(where, Row(where, {"prompt": text}))
    answers = [row[f"answer_{i}"] for i in (0, 1)]
    answers = [x.get("answer", x.get("text")) if isinstance(x, dict) else x for x in answers]
    texts = [field(where, Row(where, {"answer": x}), "answer") for x in answers]
    scores = [number(where, row, f"score_{i}", -1, 1) for i in (0, 1)]
    winner = None if scores[0] == scores[1] else int(scores[1] > scores[0])
    return [compared(where, chat, texts, winner, 1.5 * abs(scores[0] - scores[1]))]


def summaries(where, row):
    """OpenAI's summaries: a post of Reddit, or an article, and two summaries, of which "choice" is better."""
    info = Row(where, field(where, row, "info", kind=dict))
    parts = [(name.upper(), optional(where, info, name)) for name in KEYS_OF_POSTS]
    text = "\n\n".join(f"{name}: {value}" for name, value in parts if value) + "\n\nTL;DR:"
    if not any(value for _, value in parts[2:]):
        raise Dropped("with an empty prompt")
    both = field(where, row, "summaries", kind=list)
    if len(both) != 2 or not all(isinstance(x, dict) for x in both):
        raise UserError(f'{where}: "summaries" must be two objects with "text", found {shown(both)}')
    texts = [field(where, Row(where, x), "text") for x in both]
    return [compared(where, chat_of(where, text), texts, zero_or_one(where, row, "choice"))]


# ------------------------------------------------------------------------------------------------
# The arena: two dialogues and a winner
# ------------------------------------------------------------------------------------------------


def arena(where, row):
    """conversation_a, conversation_b, and a winner: model_a, model_b or tie."""
    names = ("conversation_a", "conversation_b")
    chats = [read_chat(where, field(where, row, name, kind=list)) for name in names]
    return [last_turns(where, chats, winner_in(where, row, "winner", names, (None, None)))]


def arena_table(where, row):
    """Kaggle's table of the arena: the turns of the user and of both models, each a JSON list of texts, and
    three columns of which one is 1."""
    columns = [name for name in ("winner_model_a", "winner_model_b", "winner_tie") if name in row]
    marks = [zero_or_one(where, row, name) for name in columns]
    if sum(marks) != 1 and (sum(marks) or "winner_tie" in row):
        raise UserError(f"{where}: one of {', '.join(columns)} must be 1, found {shown(marks)}")
    turns = [listed(where, row, name) for name in ("prompt", "response_a", "response_b")]
    chats = []
    for replies in turns[1:]:
        if len(replies) != len(turns[0]):
            raise Dropped("with more turns than answers")
        chats.append([{"role": role, "content": text or ""} for pair in zip(turns[0], replies, strict=True)
                      for role, text in zip(("user", "assistant"), pair, strict=True)])
    winner = marks.index(1) if sum(marks) else None
    return [last_turns(where, chats, None if winner == 2 else winner)]


def listed(where, row, name):
    """The texts of a cell: a JSON list, or one text."""
    text = field(where, row, name, kind=(str, list))
    value = text if isinstance(text, list) else written_list(text)
    if not isinstance(value, list):
        return [text]
    if not all(text is None or isinstance(text, str) for text in value):
        raise UserError(f'{where}: "{name}" must be a list of texts, found {shown(value)}')
    return check_text(where, value)


# ------------------------------------------------------------------------------------------------
# Rankings of several answers
# ------------------------------------------------------------------------------------------------
ORDERS = {  # what a number beside an answer means: which sign makes the larger one the better
    "rank": -1, "ranks": -1, "ranking": -1, "overall_score": 1, "score": 1, "scores": 1, "rating": 1,
    "ratings": 1, "rewards": 1, "reward": 1, "pm_score": 1,
}


def several_answers(where, row):
    """A prompt, and a list of answers: texts beside a list of ranks or scores, or objects that each have
    theirs inside."""
    name = next(name for name in ("answers", "completions", "responses", "generations") if name in row)
    entries = field(where, row, name, kind=list)
    order = next((key for key in ORDERS if key in row), None)
    if order:
        values = field(where, row, order, kind=list)
        texts = entries
    else:
        entries = [Row(where, x) if isinstance(x, dict) else Row(where, {}) for x in entries]
        order = next((key for key in ORDERS if any(key in x for x in entries)), None)
        if order is None:
            raise UserError(f'{where}: "{name}" says of no answer how good it is: expected "rank" or "score"')
        values = [x.get(order) for x in entries]
        texts = [field(where, x, "answer", "response", "completion", "text", "content") for x in entries]
    if len(values) != len(texts) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'{where}: "{name}" must hold texts, and "{order}" a number for each')
    numbers = [None if is_absent(value) else ORDERS[order] * number(where, {order: value}, order)
               for value in values]
    return [ranked(where, question(where, row), texts, numbers)]


def own_ranking(where, row):
    """A ranking that this program has collected: tiers of places, best first, and an AI's pairs."""
    texts, tiers = (field(where, row, name, kind=list) for name in ("responses", "tiers"))
    found = {"prompt": prompt_of(where, question(where, row)), "responses": texts, "tiers": tiers}
    found |= {"pairs": row["pairs"]} if "pairs" in row else {}
    if not is_ranking(found | {"split": "train"}):
        raise UserError(f'{where}: "tiers" must hold places of "responses", best first, each once, as in '
                        f"[[1], [0, 2]], and \"pairs\", where there are some, two of them and a probability")
    if sum(map(len, tiers)) < 2:
        raise Dropped("with fewer than two answers to compare")
    return [found]
