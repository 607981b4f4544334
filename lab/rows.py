"""The parts of a user's row, its fields, prompts, dialogues and answers, which lab/layouts.py puts together,
or the sentence about what is wrong with them.

`where` is "file, line n", with which every message begins. A chat is a list of {"role": system, user or
assistant, "content"}; where it has become a prompt of data.py, system messages have joined the user's.
"""
import ast
import io
import json
import math
import re
import tokenize
import unicodedata
from itertools import pairwise

from data import UserError, messages

SPLITS = ("train", "dev", "test")
SPLIT_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    **dict.fromkeys(("dev", "val", "valid", "valid1", "valid2", "validation", "eval"), "dev"),
}
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}
NOTHING = ("None", "nan", "null", "[]", "<noinput>")  # written where an optional text is missing
ALIASES = {f"{a}_{b}": name for name in ("chosen", "rejected")
           for a, b in ((name, "response"), ("response", name), (name, "answer"), (name, "completion"))}
ALIASES |= {"preferred_output": "chosen", "non_preferred_output": "rejected",  # OpenAI's
            "chosen_messages": "chosen", "rejected_messages": "rejected"}  # ms-swift's
YES, NO = {"true", "yes", "y", "t", "1", "1.0"}, {"false", "no", "n", "f", "0", "0.0"}


class Dropped(Exception):
    """A row that holds nothing to learn; its message goes on from "3 rows"."""


# ------------------------------------------------------------------------------------------------
# A row and its fields
# ------------------------------------------------------------------------------------------------


class Row(dict):
    """A row whose keys have one spelling ("Response A", "responseA" and "response-a" are response_a); it
    knows which of them were asked for."""

    def __init__(self, where, row):
        super().__init__()
        self.asked = set()
        for key, value in row.items():
            name = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", str(key).strip())
            name = re.sub(r"[\s._-]+", "_", name).lower()
            if name in self and not is_absent(value) and not is_absent(self[name]):
                raise UserError(f'{where}: has "{name[:40]}" twice, in two spellings')
            if name not in self or not is_absent(value):
                self[name] = value
        for name, other in ALIASES.items():
            if name in self and other not in self:
                self[other] = self.pop(name)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


def is_absent(value):
    """Whether an optional field says nothing; pandas writes NaN."""
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)


def one_break(value):
    """Text, also inside lists and objects, with \\n at the end of every line."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if isinstance(value, list):
        return [one_break(item) for item in value]
    if isinstance(value, dict):
        return {key: one_break(item) for key, item in value.items()}
    return value


def check_text(where, value):
    """The value with one kind of line break. Half a character ("\\ud83d" alone, which JSON can say) is no
    text: nothing could encode it."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
        return one_break(value)
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half a character (a lone surrogate such as \\ud83d)") from None
    except RecursionError:
        raise UserError(f"{where}: lists or objects lie too deep inside each other") from None


def shown(value, length=40):
    return json.dumps(value, default=str)[:length]


def written_list(cell):
    """A list or an object written as JSON or as Python does, or None."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, AttributeError):
            continue
        return value if isinstance(value, list | dict) else None
    return None


def side_by_side(cell):
    """Whether two texts in a list of Python's follow each other without a comma: it would join them."""
    if not re.search(r"['\"]\s+['\"]", str(cell)):
        return False
    try:
        kinds = [part.type for part in tokenize.generate_tokens(io.StringIO(str(cell).strip()).readline)]
    except (tokenize.TokenError, SyntaxError):
        return False
    kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
    return (tokenize.STRING, tokenize.STRING) in pairwise(kinds)


def keys_of(row):
    """The keys of a row as a sentence names them: at most 12, none of them long."""
    return ", ".join(sorted(str(key)[:40] for key in row)[:12])


def check_object(where, row):
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with keys, found {shown(row)}")


def field(where, row, *names, kind=str):
    """The first of the named fields that the row has, checked for its type; it may be empty."""
    for name in names:
        value = row.get(name)
        if value is not None and not isinstance(value, kind):
            wanted = "text" if kind is str else "text or a list of messages"
            wanted = "a list" if kind is list else wanted
            raise UserError(f'{where}: "{name}" must be {wanted}, found {shown(value)}')
        if value is not None:
            return value
    for name in names:
        if name in row:
            raise UserError(f'{where}: "{name}" is null, where text should be')
    raise UserError(f'{where}: expected "{names[0]}", found {keys_of(row)}')


def optional(where, row, name, kind=str):
    """A field that may be missing, null, empty or a word for that: then None."""
    value = row.get(name)
    return None if is_absent(value) or value in NOTHING else field(where, row, name, kind=kind)


def number(where, row, name, low=-math.inf, high=math.inf, meaning=""):
    """A number of a row, also one that a table holds as text."""
    value = row.get(name)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high or math.isinf(found):
        between = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
        raise UserError(f'{where}: "{name}" must be a number{between}{meaning}, found {shown(value)}')
    return found


def yes_or_no(where, row, name, wanted="true or false", words=()):
    """The boolean that a row gives, also in words, or None where it gives none. words: two more, (for yes,
    for no)."""
    if is_absent(row.get(name)):
        return None
    word = str(row[name]).strip().lower()
    if word not in {*YES, *NO, *words}:
        raise UserError(f'{where}: "{name}" must be {wanted}, found {shown(row[name])}')
    return word in {*YES, *words[:1]}


# ------------------------------------------------------------------------------------------------
# What any row may say about itself
# ------------------------------------------------------------------------------------------------


def split_in(where, row):
    """The split that a row names, or None. Raises UserError for a word that is not known."""
    if is_absent(row.get("split")):
        return None
    split = SPLIT_WORDS.get(str(row["split"]).strip().lower())
    if split is None:
        raise UserError(f'{where}: "split" must be train, dev or test, found {shown(row["split"])}')
    return split


def unsafe_in(where, row, has_answer=False):
    """Whether a row calls its prompt unsafe: in "unsafe" (or by a "safe" that is false, which beside an
    answer is about that), or by a label that is one of the words safe and unsafe."""
    for name in ("unsafe", "is_unsafe", "harmful", "is_harmful"):
        found = yes_or_no(where, row, name, words=("harmful" if "harm" in name else "unsafe", "safe"))
        if found is not None:
            return found
    for name in () if has_answer else ("safe", "is_safe"):
        if yes_or_no(where, row, name) is not None:
            return not yes_or_no(where, row, name)
    for name in ("prompt_label", "label"):
        word = str(dict.get(row, name, "")).strip().lower()
        if word in ("safe", "unsafe"):
            row.get(name)
            return word == "unsafe"
    return False


# ------------------------------------------------------------------------------------------------
# Chats and prompts
# ------------------------------------------------------------------------------------------------


UNLEARNED = ("weight", "train", "loss")  # a message with a 0 or false there is read, and not learned
IN_MESSAGES = {"role", "from", "content", "value", "text", "tool_calls", "function_call", *UNLEARNED}


def content_of(where, message):
    """Text of a message, also where it is a list of parts. Raises Dropped for pictures and calls of tools."""
    content = next((message[key] for key in ("content", "value", "text") if key in message), None)
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = {str(part.get("type", "text"))[-4:] for part in content}  # OpenAI's input_text, output_text
        if kinds - {"text"} or any(not isinstance(part.get("text"), str) for part in content):
            raise Dropped("with messages that are no text")
        content = "\n".join(part["text"] for part in content)
    if message.get("tool_calls") or message.get("function_call"):
        raise Dropped("with messages of tools")
    if not isinstance(content, str):
        raise UserError(f'{where}: a message is {{"role": "user" or "assistant", "content": text}}, found '
                        f"{shown(message, 60)}")
    return content


def read_chat(where, chat):
    """A list of messages, with "role" and "content" or ShareGPT's "from" and "value" -> a chat; "learn" is
    False where a message has the weight 0 (or train: false, or loss: false)."""
    read = []
    if isinstance(chat, dict):
        chat = chat["messages"] if isinstance(chat.get("messages"), list) else [chat]
    for m in chat:
        said_by = m.get("role", m.get("from")) if isinstance(m, dict) else None
        if said_by in ("tool", "function", "observation", "function_call"):
            raise Dropped("with messages of tools")
        if not isinstance(said_by, str) or said_by.strip().lower() not in ROLES:
            raise UserError(f'{where}: a message is {{"role": "user" or "assistant", "content": text}}, '
                            f"found {shown(m, 60)}")
        turn = {"role": ROLES[said_by.strip().lower()], "content": content_of(where, m)}
        unlearned = any(str(m.get(key, "")).strip().lower() in NO for key in UNLEARNED)
        read.append(turn | ({"learn": False} if unlearned else {}))
    return read


def is_transcript(text):
    """Whether a text is a dialogue as Anthropic writes it, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    if not isinstance(text, str):
        return False
    return text.startswith(("\n\nHuman:", "\n\nAssistant:")) or (
        text.lstrip().startswith("Human:") and "\n\nAssistant:" in text)


def transcript(text):
    """A transcript -> a chat, its last message empty where it waits for the answer."""
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": said.strip()} for who, said in turns]


def chat_of(where, value):
    """A text is one message of the user, a transcript or a list are several."""
    if not isinstance(value, str):
        return read_chat(where, value)
    if not is_transcript(value):
        return [{"role": "user", "content": value}]
    chat = transcript(value)
    waits = chat[-1]["role"] == "assistant" and not chat[-1]["content"]
    return chat[:-1] if waits else chat


def with_systems(where, chat):
    """A chat of user and assistant alone: a system message joins the user's next one."""
    turns, waiting = [], []
    for m in chat:
        content = m["content"]
        if m["role"] == "system":
            waiting += [content] if content.strip() else []
            continue
        if waiting and m["role"] == "user" and content.strip():
            content, waiting = "\n\n".join([*waiting, content]), []
        turns.append({"role": m["role"], "content": content})
    if waiting and (not turns or turns[-1]["content"].strip()):
        raise UserError(f"{where}: a system message must stand in front of one of the user's")
    return turns


def simplify(chat):
    """A prompt of data.py; one that is a single message of the user is a plain string."""
    single = len(chat) == 1 and chat[0]["role"] == "user"
    return chat[0]["content"] if single else chat


def prompt_of(where, chat):
    """A chat that waits for an answer -> a prompt. Raises Dropped where its last message is empty."""
    turns = with_systems(where, chat)
    if not turns or not turns[-1]["content"].strip():
        raise Dropped("with an empty prompt")
    return simplify(turns)


def same_text(text):
    """What two spellings of a text have in common: composed characters, no blanks around; every line ends in
    \\n already."""
    return unicodedata.normalize("NFC", text).strip()


def key_of(prompt):
    """The same for two spellings of a prompt, as text or as a list; capital letters make another one."""
    chat = [{"role": m["role"], "content": same_text(m["content"])} for m in messages(prompt)]
    return json.dumps(simplify(chat), sort_keys=True)


def first_question(prompt):
    """A prompt up to its first message of the user, which all prompts of a dialogue have in common."""
    chat = messages(prompt)
    before = next((i for i, m in enumerate(chat) if m["role"] == "user"), len(chat) - 1)
    return simplify(chat[: before + 1])


QUESTIONS = ("prompt", "question", "instruction", "query", "history", "input")


def question(where, row, names=QUESTIONS):
    """The chat of a row's prompt: the first of the named fields, and what stands in others: "system" and
    "history" in front of it, "input" and "context" behind it, or, where it has several messages, in front."""
    there = [name for name in names if name in row]
    name = next((name for name in there if not is_absent(dict.get(row, name))), (*there, *names)[0])
    chat = chat_of(where, field(where, row, name, kind=(str, list, dict)))
    for more in ("input", "context"):
        value = optional(where, row, more, (str, list)) if more != name else None
        value = paragraphs(value) if more == "context" else value
        if isinstance(value, list):
            chat = joined(read_chat(where, value), chat)
        elif value and any(holds(m["content"], value, anywhere=more == "context") for m in chat):
            continue
        elif value and len(chat) == 1:
            parts = [part for part in (chat[0]["content"], value) if part.strip()]
            chat = [chat[0] | {"content": "\n\n".join(parts)}]
        elif value:
            chat = [{"role": "system", "content": value}, *chat]
    if name != "history":
        chat = joined(earlier_turns(where, row), chat)
    return [system for system in systems_of(where, row) if system not in chat] + chat


def paragraphs(value):
    """Several texts, in a list or in one that a table holds as text, as one text; all else as it is."""
    texts = written_list(value) if isinstance(value, str) else value
    if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
        return "\n\n".join(texts)
    return value


def holds(text, part, anywhere):
    """Whether a text holds another, in whole lines or anywhere."""
    edge = "" if anywhere else "\n"
    return edge + same_text(part) + edge in edge + same_text(text) + edge


def joined(before, chat):
    """Two parts of a dialogue, one behind the other; what stands in both stands there once."""
    a, b = ([(m["role"], same_text(m["content"])) for m in part] for part in (before, chat))
    if a == b[: len(a)]:
        return chat
    return before if b == a[len(a) - len(b) :] else before + chat


def systems_of(where, row):
    """The system messages that stand beside a prompt."""
    texts = (optional(where, row, name) for name in ("system", "system_prompt", "system_message"))
    return [{"role": "system", "content": text} for text in texts if text]


def earlier_turns(where, row):
    """The chat of "history": messages, a transcript, or pairs of a question and its answer, or of a role and
    its text."""
    history = optional(where, row, "history", (str, list)) or []
    if isinstance(history, str) and isinstance(written_list(history), list):
        history = written_list(history)
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    if isinstance(history, str) or not pairs:
        return chat_of(where, history)
    said = [text for pair in history for text in pair]
    if not all(isinstance(text, str) for text in said):
        raise UserError(f'{where}: "history" must be messages or pairs of texts, found {shown(history)}')
    if said and all(role.strip().lower() in ROLES for role in said[::2]):
        return [{"role": ROLES[role.strip().lower()], "content": text} for role, text in history]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def answered(where, given, value):
    """A prompt's chat and an answer, as text or as messages, which may begin with (a part of) the prompt ->
    (chat before the answer, answer)."""
    chat = transcript(value) if is_transcript(value) else []
    if isinstance(value, str) and (not chat or [m["role"] for m in chat] == ["user"]):
        return given, value
    chat = chat or read_chat(where, value)
    if not chat or chat[-1]["role"] != "assistant":
        raise Dropped("that do not end with an answer of the assistant")
    return agreed(given, chat[:-1]), chat[-1]["content"]


def agreed(given, before):
    """The chat that a row gives as its prompt, and what stands in front of its answers -> the fuller one, or
    both, where the second goes on behind the first. Raises Dropped where they say different things."""
    systems = [m for m in given if m["role"] == "system"]
    a, b = ([(m["role"], same_text(m["content"])) for m in chat if m["role"] != "system"]
            for chat in (given, before))
    missing = [m for m in systems if m not in before]
    if not given or any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1)):
        return missing + before
    if a[len(a) - len(b) :] == b:
        return [m for m in before if m["role"] == "system" and m not in systems] + given
    if b[0][0] == "assistant":
        return given + before
    raise Dropped("whose prompt is another than that in front of their answers")
