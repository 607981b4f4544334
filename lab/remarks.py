"""What a reader of their own files should hear of rows that were read: what in them is not used, and what
looks as if it were meant otherwise."""
import re

from data import messages
from lab.rows import IN_MESSAGES, is_absent, keys_of, same_text

# Turns of a dialogue inside a text, and a list that was written as one.
LABELS = re.compile(r"^(human|user|assistant) ?: |<\|(im_start|start_header_id)\|>|<extra_id_1>|\[/INST\]",
                    re.MULTILINE | re.IGNORECASE)
LISTS = re.compile(r"""\s*\[\s*(array\(\[)?['"]""")


def looked_over(rows, given):
    """Remarks on rows of a kind. rows: ours; given: the user's, each of which knows what was asked for."""
    remarks = []
    unread = {key for row in given for key, value in row.items() if key and not is_absent(value)}
    unread -= set().union(*(row.asked for row in given))
    if unread:
        more = f" and {len(unread) - 12} more" if len(unread) > 12 else ""
        remarks.append(f"columns not used: {keys_of(unread)}{more}")
    inside = {key for row in given for value in row.values() if isinstance(value, list)
              for m in value if isinstance(m, dict) and m.keys() & {"role", "from"}
              for key, found in m.items() if not is_absent(found)} - IN_MESSAGES
    if inside:
        remarks.append(f"not used of its messages: {keys_of(inside)}")
    labelled = sum(any(map(LABELS.search, texts_in(row))) for row in rows)
    if labelled >= len(rows) / 10:  # a few are talk about dialogues
        remarks.append(f'in {labelled} of {len(rows)} rows there are marks such as "Human:" or '
                       '"<|im_start|>", learned as text: make messages of them, if they are turns')
    lists = sum(any(map(LISTS.match, texts_in(row))) for row in rows)
    if lists > len(rows) / 2:
        remarks.append(f"in {lists} of {len(rows)} rows a list is written as text, and learned with its "
                       "brackets: write what is in it")
    twice = sum(map(repeats_prompt, rows))
    if twice:
        remarks.append(f"in {twice} of {len(rows)} rows the answers begin with their own prompt, which the "
                       "model then sees twice: take it off, if that is not meant")
    return remarks


def texts_in(row):
    """Prompt and answers of one of our rows."""
    texts = [m["content"] for m in messages(row["prompt"])] if "prompt" in row else []
    return texts + (row.get("responses") or [row.get("response", "")])


def repeats_prompt(row):
    """Whether all answers of a row begin with its prompt."""
    answers = row.get("responses") or [row.get("response", "")]
    prompt = row.get("prompt")
    prompt = same_text(prompt) if isinstance(prompt, str) else None
    return bool(prompt) and all(same_text(answer).startswith(prompt) for answer in answers)
