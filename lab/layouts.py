"""Every layout of a row that is understood: one table, and what tells them apart.

A new layout is a row of LAYOUTS: the file that it is for, its name, the keys that tell it, and the function
that makes our rows of it (those of preferences are in lab/verdicts.py and lab/judged.py).
"""
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from data import UserError
from lab.judged import UP_OR_DOWN, scored_answers, thumb, thumb_column, up_or_down
from lab.rows import (
    NO,
    ROLES,
    SPLITS,
    Dropped,
    Row,
    answered,
    check_object,
    field,
    is_absent,
    is_transcript,
    key_of,
    keys_of,
    number,
    prompt_of,
    question,
    read_chat,
    shown,
    split_in,
    unsafe_in,
)
from lab.verdicts import (
    DECISIVE,
    ORDERS,
    SINGLE,
    answer_and_rejected,
    arena,
    arena_table,
    by_id,
    by_strength,
    chosen_and_rejected,
    is_two_answers,
    own_ranking,
    ranked,
    several_answers,
    shp,
    summaries,
    two_answers,
    webgpt,
)

# ------------------------------------------------------------------------------------------------
# Demonstrations, prompts and text
# ------------------------------------------------------------------------------------------------


def demonstration(where, row):
    """A prompt and its answer."""
    value = field(where, row, "response", "completion", "output", "answer", kind=(str, list, dict))
    if not value:
        raise Dropped("with an empty answer")
    names = ("prompt", "question", "instruction", "query", "input", "history")
    if "output" in row and "instruction" in row:  # a "prompt" beside them holds both, and the output too
        names = ("instruction", *names)
    return [learned(where, *answered(where, question(where, row, names), value))]


def learned(where, chat, response):
    if not response.strip():
        raise Dropped("with an empty answer")
    return {"prompt": prompt_of(where, chat), "response": response}


def dialogue(where, row):
    """Each answer of the assistant is a demonstration, and what was said before it its prompt. All but the
    last have "whole", the key of the last one's prompt: they go with it, and it holds their text."""
    name = next(name for name in ("messages", "conversations", "conversation") if name in row)
    if not is_absent(dict.get(row, "weight")) and number(where, row, "weight") == 0:
        raise Dropped("with the weight 0")
    chat = question(where, row, (name,))
    asked = [i for i, m in enumerate(chat) if m["role"] == "user"]
    places = [i for i, m in enumerate(chat) if m["role"] == "assistant" and asked and i > asked[0]]
    learn = [i for i in places if chat[i]["content"].strip() and chat[i - 1]["content"].strip()
             and chat[i].get("learn", True)]
    if not places:
        raise Dropped("without an answer of the assistant")
    if not learn:
        raise Dropped("with an empty prompt or answer, or the weight 0")
    notes = []
    if len(learn) > 1:
        notes.append("are dialogues: each answer is a demonstration, with all before it as its prompt")
    if len(learn) < len(places):
        notes.append("have answers that are left out: empty, to an empty message, or of weight 0")
    if chat[-1]["role"] == "user":
        notes.append("end with a message of the user, which is left out")
    found = [learned(where, chat[:i], chat[i]["content"]) for i in learn]
    whole = key_of(found[-1]["prompt"])
    return [row | {"whole": whole} for row in found[:-1]] + [found[-1] | {"notes": notes}]


def instances(where, row):
    """Self-instruct: an instruction, and inputs with their outputs."""
    found, notes = [], {}
    for instance in field(where, row, "instances", kind=list):
        check_object(where, instance)
        one = Row(where, {"instruction": field(where, row, "instruction"), **instance})
        try:
            found += demonstration(where, one)
        except Dropped as reason:
            notes = {"notes": [f"have instances that are left out: {reason}"]}
    if not found:
        raise Dropped("without an instance that has an output")
    return [found[0] | notes, *found[1:]]


def prompt_alone(where, row):
    """A prompt without an answer; of a dialogue what stands before the last answer."""
    chat = question(where, row, ("prompt", "question", "instruction", "query", "messages", "conversations",
                                 "history", "input"))
    if len(chat) > 1 and chat[-1]["role"] == "assistant":
        notes = {"notes": ["end with an answer, which is left out"]}
        return [{"prompt": prompt_of(where, chat[:-1])} | notes]
    return [{"prompt": prompt_of(where, chat)}]


def document(where, row):
    text = field(where, row, "text")
    if not text.strip():
        raise Dropped("with an empty text")
    return [{"text": text}]


# ------------------------------------------------------------------------------------------------
# Trees of OpenAssistant
# ------------------------------------------------------------------------------------------------


def as_trees(rows):
    """Gathers messages that name their parent: [(where, row)] -> the same, a tree {"prompt": ...} a row, with
    the strictest split of its messages; unsafe, where one of them is. One whose parent is not there is
    "cut_off"."""
    nodes, trees = {}, []
    for where, row in rows:
        node = {key: row.get(key) for key in ("text", "role", "rank", "deleted")}
        node |= {"split": split_in(where, row), "unsafe": unsafe_in(where, row)}
        nodes[str(row.get("message_id"))] = node | {"replies": []}
    for where, row in rows:
        node, parent = nodes[str(row["message_id"])], row.get("parent_id")
        if is_absent(parent) or str(parent) not in nodes:
            trees.append((where, Row(where, {"prompt": node, "cut_off": not is_absent(parent)})))
        else:
            nodes[str(parent)]["replies"].append(node)
    for _, tree in trees:
        all_of = [tree["prompt"]]
        for node in all_of:  # grows as it goes
            all_of += node["replies"]
        splits = [node["split"] for node in all_of if node["split"]]
        tree["split"] = max(splits, key=SPLITS.index, default=None)
        tree["unsafe"] = any(node["unsafe"] for node in all_of)
    return trees


def branches(where, row):
    """Yield (chat, replies of the assistant to it) of each message of a user in a tree, from its root."""
    if row.get("cut_off"):
        raise Dropped("whose earlier messages are not in the file")
    if is_deleted(field(where, row, "prompt", kind=dict)):
        raise Dropped("whose first message was deleted")
    left = [(row["prompt"], [])]
    while left:
        node, before = left.pop(0)
        check_object(where, node)
        chat = before + read_chat(where, {key: node.get(key) for key in ("role", "text")})
        replies = field(where, node, "replies", kind=list) if node.get("replies") is not None else []
        for reply in replies:
            check_object(where, reply)
        replies = [reply for reply in replies if not is_deleted(reply)]
        answers = [reply for reply in replies if ROLES.get(str(reply.get("role")).lower()) == "assistant"]
        if chat[-1]["role"] == "user" and answers:
            yield chat, answers
        left += [(reply, chat) for reply in replies]


def is_deleted(message):
    return str(message.get("deleted") or "").lower() not in ("", "false")


def place(where, reply):
    """The negated rank of a reply, or None: the larger the better."""
    return None if is_absent(reply.get("rank")) else -number(where, reply, "rank")


def ranked_replies(where, row):
    """Wherever two replies or more were ranked: 0 is the best."""
    found, others = [], 0
    for chat, replies in branches(where, row):
        try:
            texts = [field(where, reply, "text") for reply in replies]
            found.append(ranked(where, chat, texts, [place(where, reply) for reply in replies]))
        except Dropped:
            others += 1
    if not found:
        raise Dropped("with fewer than two answers to compare")
    if others:
        found[0]["notes"] = [*found[0].get("notes", []), "have messages without two ranked replies, which "
                             "are left out"]
    return found


def best_replies(where, row):
    """The best reply to each message of a user (the first, where they have no ranks) is a demonstration."""
    found = []
    for chat, replies in branches(where, row):
        best = max(replies, key=lambda reply: (place(where, reply) is not None, place(where, reply) or 0))
        if field(where, best, "text").strip() and chat[-1]["content"].strip():
            found.append(learned(where, chat, best["text"]))
    if not found:
        raise Dropped("without an answer of the assistant")
    found[0]["notes"] = ["are trees: the best reply to each message is a demonstration"]
    return found


# ------------------------------------------------------------------------------------------------
# The table
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """kind: the file that it is for; keys: all that a row must have, with | between alternatives; read:
    (where, row) -> our rows; test: what else tells it; instead: what tells it in place of the keys; gather:
    where several rows make one of ours."""

    kind: str
    name: str
    keys: str
    read: Callable
    test: Callable = lambda row: True
    instead: Callable | None = None
    gather: Callable | None = None

    def has(self, row):
        """[whether each of the keys is there]"""
        return [any(name in row for name in key.split("|")) for key in self.keys.split()]

    def matches(self, row):
        return self.instead(row) if self.instead else all(self.has(row)) and self.test(row)


def holds(name, kind):
    """A test of a field's type, which does not count as reading it."""
    return lambda row: isinstance(dict.get(row, name), kind)


def is_tree(row):
    """Whether the prompt is a message with its replies inside."""
    return holds("prompt", dict)(row) and "replies" in dict.get(row, "prompt")


def has_thumb(row):
    """Whether a column says thumbs up or down; a "label" may also be empty."""
    name = thumb_column(row)
    return "label" in row and is_absent(dict.get(row, name)) or up_or_down(row, name) is not None


def counts_from_0(rows):
    """The same rows. Raises UserError where all verdicts are 0 or 1: who counts answers from 0 means others
    than AlpacaEval, whose 0 is a tie."""
    said = {str(dict.get(row, name)).removesuffix(".0") for _, row in rows for name in ("label", "preference")
            if not is_absent(dict.get(row, name))}
    if said == {"0", "1"}:
        raise UserError(f"{rows[0][0]}: all verdicts of its file are 0 or 1, beside output_1 and output_2: "
                        "write 1 and 2, and 0 for a tie")
    return rows


def answers_too(row):
    """The columns of a row that look as if they held answers or verdicts."""
    return [name for name in row if ANSWERS.search(name) and not is_absent(dict.get(row, name))]


LAYOUTS = [
    Layout("preferences", "Anthropic transcripts", "chosen rejected", chosen_and_rejected,
           lambda row: is_transcript(dict.get(row, "chosen"))),
    Layout("preferences", "TRL chat messages", "chosen rejected", chosen_and_rejected,
           lambda row: isinstance(dict.get(row, "chosen"), list | dict)),
    Layout("preferences", "chosen and rejected", "prompt|question|instruction|query|input|history|"
           "conversations|conversation|messages|context|trajectory chosen rejected", chosen_and_rejected),
    Layout("preferences", "TRL with the prompt inside", "chosen rejected", chosen_and_rejected),
    Layout("preferences", "PKU-SafeRLHF", "prompt response_0 response_1 better_response_id",
           by_id(("better_response_id", "helpful"), ("safer_response_id", "safety"))),
    Layout("preferences", "HelpSteer preferences",
           "prompt|context response_1 response_2 preference_strength|overall_preference", by_strength),
    Layout("preferences", "Stanford Human Preferences", "history human_ref_a human_ref_b labels", shp),
    Layout("preferences", "WebGPT comparisons", "question answer_0 answer_1 score_0 score_1", webgpt),
    Layout("preferences", "summarize_from_feedback", "info summaries choice", summaries),
    Layout("preferences", "LMSYS arena", "conversation_a conversation_b winner", arena),
    Layout("preferences", "LMSYS arena, Kaggle's table",
           "prompt response_a response_b winner_model_a winner_model_b", arena_table),
    Layout("preferences", "OpenAssistant trees", "prompt", ranked_replies, is_tree),
    Layout("preferences", "OpenAssistant messages", "message_id parent_id text role", ranked_replies,
           gather=as_trees),
    Layout("preferences", "UltraFeedback", "instruction completions", several_answers),
    Layout("preferences", "Nectar", "prompt|question answers", several_answers, holds("answers", list)),
    Layout("preferences", "rankings of this program", "prompt responses tiers", own_ranking),
    Layout("preferences", "ranked answers", "prompt|question|instruction|query|input|history "
           "responses|completions|generations ranks|rank|ranking|scores|score|ratings|rating|rewards",
           several_answers),
    Layout("preferences", "LLMBar, AlpacaFarm", "input|instruction output_1 output_2 label|preference",
           two_answers, gather=counts_from_0),
    Layout("preferences", "HelpSteer scores", "prompt response helpfulness", several_answers,
           gather=scored_answers),
    Layout("preferences", "thumbs up and down", "prompt|question|instruction|query|input|history|"
           "conversations|messages response|completion|answer|output " + "|".join(UP_OR_DOWN), thumb,
           lambda row: {"prompt", "label"} <= row.keys() or has_thumb(row)),
    Layout("preferences", "thumbs up and down", "messages|conversations " + "|".join(UP_OR_DOWN), thumb,
           has_thumb),
    Layout("preferences", "an answer and a rejected one", "messages|conversations|" + "|".join(SINGLE)
           + " rejected", answer_and_rejected),
    Layout("preferences", "a table of two answers", "prompt response_a response_b preferred", two_answers,
           instead=is_two_answers),
    Layout("sft", "chat messages", "messages", dialogue),
    Layout("sft", "ShareGPT", "conversations|conversation", dialogue),
    Layout("sft", "self-instruct", "instruction instances", instances),
    Layout("sft", "OpenAssistant trees", "prompt", best_replies, is_tree),
    Layout("sft", "OpenAssistant messages", "message_id parent_id text role", best_replies, gather=as_trees),
    Layout("sft", "Dolly", "instruction context response", demonstration),
    Layout("sft", "Alpaca", "instruction output", demonstration),
    Layout("sft", "GSM8K", "question answer", demonstration),
    Layout("sft", "prompt and answer", "prompt|question|instruction|query|input "
           "response|completion|answer|output", demonstration),
    Layout("pretrain", "documents", "text", document),
    Layout("preferences", "answers with scores", "prompt|question|instruction|query|input "
           "response|completion|answer|output " + "|".join(ORDERS), several_answers, gather=scored_answers),
    Layout("prompts", "prompts", "prompt|question|instruction|query|input|history|messages|conversations",
           prompt_alone),
]
ANSWERS = re.compile(r"^(response|answer|output|completion|chosen|rejected|accepted|generation|target)s?"
                     r"(_|$)|"
                     r"(?<!reference)(?<!correct)(?<!gold)_(response|answer|output|completion)s?(_|$)|winner")
WHAT = {"pretrain": "texts", "sft": "demonstrations", "preferences": "preferences", "prompts": "prompts"}


def layout_of(where, row, kind=None):
    """The first layout (of a kind) that a row has. Raises UserError, which names its keys, what they might
    be and what is known."""
    check_object(where, row)
    found = [layout for layout in LAYOUTS if kind in (None, layout.kind) and layout.matches(row)]
    if kind is None and found and found[0].kind == "prompts" and answers_too(row):
        found = []  # nobody has called it prompts
    if not found:
        raise UserError(f"{where}: {unknown(row, kind)}")
    full = {key: value for key, value in row.items() if not is_absent(value)}  # of a table of several layouts
    filled = [layout for layout in found if layout.kind == found[0].kind and layout.matches(full)]
    return [*filled, *found][0]


def unknown(row, kind):
    """What to say of a row that has no layout of a kind."""
    there = f"its keys ({keys_of(row)})"
    other = next((layout for layout in LAYOUTS if layout.matches(row)), None)
    near = nearest(row, kind)
    may_have = {*LAYOUTS[-1].keys.split("|"), "split", "unsafe", "id"}  # a prompt alone
    if kind and other and (other.kind != "prompts" or not near and row.keys() <= may_have):
        return (f"{there} are those of {WHAT[other.kind]} ({other.name}), and these should be {WHAT[kind]}: "
                f"should the file be called {other.kind}?")
    if near:
        keys = near.keys.split()
        lacks = [key.split("|")[0] for key, has in zip(keys, near.has(row), strict=True) if not has]
        return f"{there} are nearly those of {near.name}, which needs {shown(lacks, 100)[1:-1]}, too"
    names = [layout.name for layout in LAYOUTS if kind in (None, layout.kind)]
    alone = "" if kind or not other else " (call the file prompts, if they are prompts alone)"
    return f"{there}{alone} are of no layout that is known: {'; '.join(dict.fromkeys(names))}"


def nearest(row, kind):
    """The layout of which a row has at least two keys, and lacks fewest; also where one is misspelled."""
    best, least = None, 3
    for layout in LAYOUTS:
        has = layout.has(row)
        near = sum(bool(difflib.get_close_matches(key.split("|")[0], list(row), 1, 0.75))
                   for key, there in zip(layout.keys.split(), has, strict=True) if not there)
        lacks = len(has) - sum(has)
        if kind in (None, layout.kind) and 0 < lacks < least and sum(has) + near >= 2:
            best, least = layout, lacks
    return best


def read_row(where, row, layout):
    """Our rows of a user's: {"prompt", ..., "split", "unsafe"}, those of preferences with "aspect" and
    perhaps "margin"; "split" is None where it names none. Raises Dropped, UserError."""
    if layout.kind == "pretrain":
        return [{"split": split_in(where, row), **found} for found in layout.read(where, row)]
    has_answer = layout.kind == "sft" or layout.read is thumb
    more = {"split": split_in(where, row), "unsafe": unsafe_in(where, row, has_answer)}
    if layout.kind == "preferences":
        more |= aspect_and_margin(where, row)
    rows = [more | found for found in layout.read(where, row)]
    if layout.kind == "preferences":
        for name in sorted(DECISIVE & row.keys() - row.asked):
            unsaid = name in ("tie", "is_tie", "tied") and str(dict.get(row, name)).strip().lower() in NO
            if not is_absent(dict.get(row, name)) and not unsaid:
                raise UserError(f'{where}: "{name}" says something about the answers, and the layout '
                                f"{layout.name} reads other columns; take it out, or write a margin of 0 to "
                                "3")
    for name in row if layout.kind == "sft" else ():
        value, thumbs = dict.get(row, name), name in UP_OR_DOWN and up_or_down(row, name) is not None
        if not is_absent(value) and (thumbs or re.search("reject|worse_", name)):
            what = "thumbs up or down" if thumbs else "a worse answer"
            raise UserError(f'{where}: "{name}" {shown(value)} reads like {what}: call the file preferences, '
                            "or take the column out")
    return rows


def aspect_and_margin(where, row):
    """{"aspect": helpful, safety or None} and, where a row says how much better it is, "margin", 0 to 3."""
    aspect = None if is_absent(row.get("aspect")) or row["aspect"] == "overall" else row["aspect"]
    if aspect not in (None, "helpful", "safety"):
        raise UserError(f'{where}: "aspect" must be helpful or safety, found {shown(aspect)}')
    if is_absent(row.get("margin")):
        return {"aspect": aspect}
    meaning = " (hardly better, significantly better)"
    return {"aspect": aspect, "margin": number(where, row, "margin", 0, 3, meaning)}
