"""Rows of preferences that hold a single answer: thumbs up or down, or one that has a score or a rank beside
it, and is compared with the others to its prompt. Readers as in lab/verdicts.py."""
import json
import re
from collections import defaultdict

from data import UserError
from lab.rows import (
    NO,
    QUESTIONS,
    YES,
    Dropped,
    Row,
    answered,
    field,
    is_absent,
    number,
    prompt_of,
    question,
    same_text,
    shown,
    split_in,
    unsafe_in,
)
from lab.verdicts import ORDERS, SINGLE

UP_OR_DOWN = (  # columns that may say thumbs up or down of an answer
    "label", "kto_tag", "feedback", "thumbs_up", "thumb", "rating", "is_safe", "safe", "chosen", "is_correct",
    "correct", "accepted", "is_accepted", "winner", "preferred",
)
UP = {*YES, "up", "good", "desirable", "like", "liked", "accepted"}
DOWN = {*NO, "down", "bad", "undesirable", "dislike", "disliked", "rejected"}


def scored_answers(rows):
    """Gathers rows of one answer each that have a score or a rank: [(where, row)] -> the same, a prompt a
    row, the scores of an answer averaged."""
    groups = defaultdict(list)
    for where, row in rows:
        chat = question(where, row)
        key = json.dumps([(m["role"], same_text(m["content"])) for m in chat])
        groups[key, split_in(where, row), str(row.get("aspect"))].append((where, row))
    gathered = []
    for same in groups.values():
        (where, first), texts, given = same[0], {}, defaultdict(list)  # given: scores of several annotators
        for there, row in same:
            text = field(there, row, *SINGLE)
            texts.setdefault(same_text(text), text)
            if "helpfulness" in row:
                score = number(there, row, "helpfulness", 0, 4)
            else:
                column = next(name for name in ORDERS if name in row)
                score = ORDERS[column] * number(there, row, column)
            given[same_text(text)].append(score)
        scores = [sum(given[key]) / len(given[key]) for key in texts]
        answers = {"responses": list(texts.values()), "scores": scores}
        answers["unsafe"] = any([unsafe_in(there, row, has_answer=True) for there, row in same])
        if "helpfulness" in first and len(set(scores)) == len(scores) == 2:
            answers["margin"] = min(3, abs(scores[0] - scores[1]))
        kept = {key: value for key, value in first.items() if key not in (*SINGLE, "helpfulness", *ORDERS)}
        gathered.append((where, Row(where, kept | answers)))
    return gathered


def thumb_column(row):
    """The column that says thumbs up or down, "label" where none does."""
    return next((name for name in UP_OR_DOWN if not is_absent(dict.get(row, name))), "label")


def up_or_down(row, name):
    """True where a column says thumbs up, False for down, None for anything else. A rating is a number."""
    word = re.sub(r"^thumbs?[ _-]?", "", str(dict.get(row, name)).strip().lower())
    if name == "rating" and word in {*YES, *NO}:
        return None
    return True if word in UP else False if word in DOWN else None


def thumb(where, row):
    """One answer with a label: thumbs up or down."""
    column = thumb_column(row)
    if is_absent(row.get(column)):
        raise Dropped("without a label")
    label = up_or_down(row, column)
    if label is None:
        raise UserError(f'{where}: "{column}" must be true (thumbs up) or false (thumbs down), found '
                        f"{shown(row[column])}")
    names = [name for name in SINGLE if name in row]
    if names:
        given = question(where, row, (*QUESTIONS, "conversations", "messages"))
        chat, text = answered(where, given, field(where, row, *names, kind=(str, list)))
    else:
        chat = question(where, row, ("messages", "conversations"))
        chat, text = answered(where, [], chat)
    if not text.strip():
        raise Dropped("with an empty answer")
    return [{"prompt": prompt_of(where, chat), "responses": [text], "tiers": [[0]], "label": label}]
