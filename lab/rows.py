"""One row of a user's file into one of ours, or the sentence about what is wrong with it.

`where` is "file, line n", with which every message begins.
"""
import json
import re

from data import UserError, messages

SPLITS = ("train", "dev", "test")

# ------------------------------------------------------------------------------------------------
# The parts of a row
# ------------------------------------------------------------------------------------------------


def check_text(where, value):
    """Half a character ("\\ud83d" alone, which JSON can say) is no text: nothing could encode it."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half a character (a lone surrogate such as \\ud83d)") from None
    except RecursionError:
        raise UserError(f"{where}: lists or objects lie too deep inside each other") from None
    return value


def shown(value, length=40):
    return json.dumps(value)[:length]


def check_object(where, row, name):
    if not isinstance(row, dict):
        raise UserError(f'{where}: expected an object with "{name}", found {shown(row)}')


def field(where, row, *names, kind=str, empty=False):
    """The first of the named fields that the row has, checked for its type. empty: whether it may be."""
    check_object(where, row, names[0])
    for name in names:
        value = row.get(name)
        if value is not None and not (isinstance(value, kind) and (value or empty)):
            wanted = "text" if kind is str else "text or a list of messages"
            raise UserError(f'{where}: "{name}" must be {wanted} and not empty, found {shown(value)}')
        if value is not None:
            return value
    for name in names:
        if name in row:
            raise UserError(f'{where}: "{name}" is null, where text should be')
    other = f" (or {names[1]})" if names[1:] else ""
    there = sorted(str(name)[:40] for name in row if name is not None)[:10]  # None: cells behind the last
    raise UserError(f'{where}: expected "{names[0]}"{other}, found the fields {there}')


def split_in(where, row):
    """The split that a row names, or None. Raises UserError for another word than ours."""
    split = row.get("split") or None
    if split not in (None, *SPLITS):
        raise UserError(f'{where}: "split" must be train, dev or test, found {shown(split)}')
    return split


def yes_or_no(where, row, name, wanted="true or false"):
    """The boolean that a row gives, also in words, or None where it gives none."""
    if row.get(name) in (None, ""):
        return None
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
        str(row[name]).strip().lower())
    if value is None:
        raise UserError(f'{where}: "{name}" must be {wanted}, found {shown(row[name])}')
    return value


def check_messages(where, chat):
    """A list of messages whose roles are user and assistant, text in each; a system message joins the first
    turn. A string stays one."""
    if isinstance(chat, str):
        return chat
    for m in chat:
        known = isinstance(m, dict) and m.get("role") in ("system", "user", "assistant")
        if not known or not isinstance(m.get("content"), str):
            raise UserError(f'{where}: a message is {{"role": "user" or "assistant", "content": text}}, '
                            f"found {shown(m, 60)}")
    alone = chat[0]["role"] == "system" and len(chat) < 2
    if alone or any(m["role"] == "system" for m in chat[1:]):
        raise UserError(f"{where}: a system message can only come first, and not alone")
    if chat[0]["role"] == "system":
        first = {"role": "user", "content": chat[0]["content"] + "\n\n" + chat[1]["content"]}
        chat = [first, *chat[2:]]
    return [{"role": m["role"], "content": m["content"]} for m in chat]


def is_transcript(text):
    return isinstance(text, str) and text.startswith("\n\nHuman:")


def transcript(where, text):
    """An HH transcript "\\n\\nHuman: ...\\n\\nAssistant: ..." -> messages, the last the assistant's."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if len(parts) < 5 or parts[0].strip() or parts[-2] != "Assistant":
        raise UserError(f'{where}: expected a transcript that begins with "\\n\\nHuman:" and ends with an '
                        '"\\n\\nAssistant:" turn')
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": said.strip()} for who, said in turns]


def simplify(chat):
    """Messages that are a single user turn become a plain string: one prompt has one spelling."""
    single = isinstance(chat, list) and len(chat) == 1 and chat[0]["role"] == "user"
    return chat[0]["content"] if single else chat


def prompt_of(where, row):
    """The prompt of a row: text, messages, or a transcript that waits for its last answer."""
    prompt = field(where, row, "prompt", kind=(str, list))
    if is_transcript(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        return simplify(transcript(where, prompt + " ?")[:-1])
    return simplify(check_messages(where, prompt))


def is_blank(prompt):
    """Whether there is nothing in the last turn of a prompt."""
    return not messages(prompt)[-1]["content"].strip()


# ------------------------------------------------------------------------------------------------
# A row of each kind, as ours, its "split" None where it names none; None where it holds nothing to learn
# ------------------------------------------------------------------------------------------------


def sft_row(where, row):
    """One demonstration -> {"prompt", "response", "split"}; Alpaca's keys and chat messages are understood.
    None where the prompt or the answer is blank."""
    check_object(where, row, "prompt")
    if "messages" in row:
        chat = check_messages(where, field(where, row, "messages", kind=list))
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise UserError(f'{where}: "messages" must end with the answer of the assistant')
        prompt, response = simplify(chat[:-1]), chat[-1]["content"]
    elif "instruction" in row:
        prompt = field(where, row, "instruction")
        if row.get("input"):
            prompt += "\n\n" + field(where, row, "input")
        response = field(where, row, "output", "response", empty=True)
    else:
        prompt = prompt_of(where, row)
        response = field(where, row, "response", "completion", empty=True)
    found = {"prompt": prompt, "response": response, "split": split_in(where, row)}
    return found if response.strip() and not is_blank(prompt) else None


def prompt_row(where, row):
    """One prompt -> {"prompt", "split", "unsafe"}, or None where it is blank."""
    prompt = prompt_of(where, row)
    unsafe = bool(yes_or_no(where, row, "unsafe"))
    found = {"prompt": prompt, "split": split_in(where, row), "unsafe": unsafe}
    return None if is_blank(prompt) else found


def preference_row(where, row):
    """One row of preferences -> {"prompt", "responses", "tiers", "split", "aspect"[, "margin"][, "label"]},
    the chosen answer first; None where it holds no comparison (the same answer twice, an empty one,
    different prompts)."""
    check_object(where, row, "chosen")
    more = {"split": split_in(where, row), **aspect_and_margin(where, row)}
    found = comparison(where, row) if row.get("label") in (None, "") else thumb(where, row)
    return found | more if found else None


def aspect_and_margin(where, row):
    """{"aspect": helpful, safety or None} and, where a row says how much better it is, "margin", 0 to 3."""
    aspect, margin = (None if row.get(key) == "" else row.get(key) for key in ("aspect", "margin"))
    if aspect not in (None, "helpful", "safety"):
        raise UserError(f'{where}: "aspect" must be helpful or safety, found {shown(aspect)}')
    if margin is None:
        return {"aspect": aspect}
    try:
        margin = float(margin)
    except (TypeError, ValueError, OverflowError):
        margin = -1
    if not 0 <= margin <= 3:
        raise UserError(f'{where}: "margin" must be a number from 0 (hardly better) to 3 (significantly '
                        f'better), found {shown(row["margin"])}')
    return {"aspect": aspect, "margin": margin}


def thumb(where, row):
    """{"prompt", "response", "label"}: thumbs up or down for one answer."""
    label = yes_or_no(where, row, "label", "true (thumbs up) or false (thumbs down)")
    prompt, response = prompt_of(where, row), field(where, row, "response", "completion", empty=True)
    if is_blank(prompt) or not response.strip():
        return None
    return {"prompt": prompt, "responses": [response], "tiers": [[0]], "label": label}


def comparison(where, row):
    """{"prompt", "chosen", "rejected"}. Where chosen and rejected are whole dialogues, as messages or as
    transcripts, all but their last turn is the prompt."""
    names = ("chosen", "rejected")
    chosen, rejected = (field(where, row, name, kind=(str, list), empty=True) for name in names)
    prompt = prompt_of(where, row) if row.get("prompt") else None
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if not chosen or not rejected:
        return None
    if texts and (prompt is None or (is_transcript(chosen) and is_transcript(rejected))):
        return last_turns(where, prompt, transcript(where, chosen), transcript(where, rejected))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return last_turns(where, prompt, check_messages(where, chosen), check_messages(where, rejected))
    if not texts:
        raise UserError(f'{where}: "chosen" and "rejected" must both be text or both be lists of messages')
    return compared(prompt, chosen, rejected)


def last_turns(where, prompt, chosen, rejected):
    """Two dialogues -> the comparison of their last turns. prompt: what the row gives beside, or None."""
    if any(chat[-1]["role"] != "assistant" for chat in (chosen, rejected)):
        raise UserError(f'{where}: "chosen" and "rejected" must end with the answer of the assistant')
    before, given = chosen[:-1], messages(prompt or [])
    if before != rejected[:-1] or not (before or given):
        return None
    if not before or given[-len(before) :] == before:
        whole = given
    elif before[0]["role"] == "assistant":  # the dialogue goes on behind the prompt
        whole = given + before
    else:  # the prompt is a part of the dialogue
        whole = before
    return compared(simplify(whole), chosen[-1]["content"], rejected[-1]["content"])


def compared(prompt, chosen, rejected):
    better, worse = chosen.strip(), rejected.strip()
    if better == worse or not better or not worse or is_blank(prompt):
        return None
    return {"prompt": prompt, "responses": [chosen, rejected], "tiers": [[0], [1]]}
