"""What was misread once in a user's files, by its kind: dialogues beside prompts, splits, columns that say
who won, cells, names of files. The rows are invented."""
import gzip
import json
import sys
import unicodedata
from types import ModuleType, SimpleNamespace

import pytest
from test_layouts import HI, assistant, system, understood, user, verdict, write

import data
import lab.show
from data import UserError, load_preferences, load_prompts, load_sft, load_text
from lab.formats import convert
from lab.rows import key_of


def converted(folder, capsys=None):
    """The data folder that a user's becomes, and what was said, if capsys is given."""
    convert(folder, folder.parent / "run/data")
    return folder.parent / "run/data", " ".join(capsys.readouterr().out.split()) if capsys else ""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


# ------------------------------------------------------------------------------------------------
# Dialogues
# ------------------------------------------------------------------------------------------------


def both(before, prompt=None):
    """A pair of lists that begin alike."""
    row = {"chosen": [*before, assistant("Yes")], "rejected": [*before, assistant("No")]}
    return row if prompt is None else {"prompt": prompt, **row}


WHOLE = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
PROMPTS = {
    "two answers in a row": (both([user("Why?"), assistant("Hm.")]), [user("Why?"), assistant("Hm.")]),
    "the same beside a prompt": (both([assistant("Hm.")], "Why?"), [user("Why?"), assistant("Hm.")]),
    "system in the lists alone": (both([system("Be curt."), *HI], "Why?"),
                                  [user("Be curt.\n\nHi"), *HI[1:]]),
    "system beside the lists alone": (both(HI, [system("Be curt."), *HI]), [user("Be curt.\n\nHi"), *HI[1:]]),
    "system in both": (both([system("s"), *HI], [system("s"), user("Hi")]), [user("s\n\nHi"), *HI[1:]]),
    "a transcript beside lists": (both(HI, WHOLE), HI),
    "a transcript beside answers": (both([], WHOLE), HI),
    "a transcript beside texts": ({"prompt": WHOLE, "chosen": " Yes", "rejected": "No"}, HI),
    "a transcript that was stripped": ({"prompt": WHOLE.strip(), "chosen": "Yes", "rejected": "No"}, HI),
    "a greeting comes first": (both([system("s"), assistant("Welcome."), user("Why?")]),
                               [assistant("Welcome."), user("s\n\nWhy?")]),
    "system beside lists that hold the prompt": ({**both(HI), "system": "s"}, [user("s\n\nHi"), *HI[1:]]),
    "blanks around one of them": (both([user("Why? ")], "Why?"), "Why? "),
    "roles in front of the answers": ({"prompt": "\n\nHuman: Why?", "chosen": "\n\nAssistant: Yes",
                                       "rejected": "\n\nAssistant: No"}, "Why?"),
    "messages beside texts": ({"messages": HI, "chosen": "Yes", "rejected": "No"}, HI),
    "context beside messages": ({"context": [{"role": "human", "text": "Why?"}], "chosen":
                                 {"role": "assistant", "text": "Yes"}, "rejected":
                                 {"role": "assistant", "text": "No"}}, "Why?"),
    "a trajectory beside texts that begin alike": ({"trajectory": [{"from": "user", "value": "Why?"}],
                                                    "chosen": "Yes", "rejected": "No"}, "Why?"),
    "parts of a message": (both([user([{"type": "text", "text": "Why?"}])]), "Why?"),
}


@pytest.mark.parametrize("row, prompt", PROMPTS.values(), ids=PROMPTS)
def test_nothing_of_a_dialogue_is_lost(tmp_path, row, prompt):
    [found], _ = understood(tmp_path, "preferences", [row])
    assert found["prompt"] == prompt and [text.strip() for text in found["responses"]] == ["Yes", "No"]


CHAT = [user("Why, \"sir\"?"), assistant("Yes; no")]
DROPPED = {
    "prompt and lists disagree": (both(HI, "Where?"), "whose prompt is another than that in front of"),
    "the last turn is the user's": ({"chosen": HI, "rejected": [*HI[:-1], user("No")]}, "do not end with"),
    "different prompts": ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
                          "answers follow different prompts"),
    "tools": (both([user("a"), {"role": "tool", "content": "7"}]), "with messages of tools"),
    "calls of tools": (both([user("a"), {"role": "assistant", "content": None, "tool_calls": [1]}]),
                       "with messages of tools"),
    "words and a call of a tool": (both([user("a"), assistant("Let me look.") | {"tool_calls": [1]}]),
                                   "with messages of tools"),
    "pictures": (both([user([{"type": "image_url"}])]), "with messages that are no text"),
    "pictures with an empty text": (both([user([{"type": "image", "text": "", "image": "iVBOR"}])]),
                                    "with messages that are no text"),
    "scores that contradict": ({"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 1,
                                "score_rejected": 2}, "scores say that the rejected answer is better"),
    "contradictory safety": ({"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0,
                              "safer_response_id": 0, "is_response_0_safe": 0, "is_response_1_safe": 1},
                             "whose safer answer is called unsafe"),
    "an id that is missing": ({"prompt": "a", "response_0": "b", "response_1": "c",
                               "better_response_id": None}, "that do not say which answer is better"),
    "arena dialogues that part": ({"conversation_a": [user("Hi"), assistant("a"), *CHAT],
                                   "conversation_b": [user("Hi"), assistant("c"), *CHAT],
                                   "winner": "model_a"}, "answers follow different prompts"),
}


@pytest.mark.parametrize("row, why", DROPPED.values(), ids=DROPPED)
def test_a_row_that_holds_no_comparison_is_dropped_and_counted(tmp_path, row, why):
    good = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    found, said = understood(tmp_path, "preferences", [good, row])
    assert [r["responses"] for r in found] == [["Yes", "No"]]
    assert "1 of 2 rows dropped (1 " in said and why in said


def test_each_answer_of_a_dialogue_is_learned_with_its_history(mine, capsys):
    """Also behind a greeting, and between empty answers and those of weight 0, which are said; the dialogue's
    text is pretrained on once, and all of it is in one split."""
    late = [user("More?"), {**assistant("Wrong"), "weight": 0}, user("And?"), assistant("Last"), user("Bye")]
    rows = [{"messages": [assistant("Welcome."), user(f"Hi {i}"), assistant("Hello."), user("Why?"),
                          assistant(" "), *late]} for i in range(60)]
    write(mine / "sft.jsonl", rows)
    folder, said = converted(mine, capsys)
    found = load_sft(folder)
    assert [(row["prompt"], row["response"]) for row in found[:2]] == [
        ([assistant("Welcome."), user("Hi 0")], "Hello."),
        ([{"role": m["role"], "content": m["content"]} for m in rows[0]["messages"][:-2]], "Last")]
    assert all(a["split"] == b["split"] for a, b in zip(found[::2], found[1::2], strict=True))
    assert len({row["split"] for row in found}) == 3
    assert "sft.jsonl: 120 demonstrations, chat messages" in said
    for words in ("60 of 60 rows are dialogues: each answer is a demonstration",
                  "end with a message of the user, which is left out",
                  "have answers that are left out: empty, to an empty message, or of weight 0"):
        assert words in said
    text = "".join(load_text(folder))
    assert text.count("Hello.") == text.count("Last") == 60


def test_a_demonstration_of_weight_0_is_none(tmp_path):
    chat = [user("a"), assistant("b")]
    rows = [{"messages": chat, "weight": weight} for weight in (0, 1)]
    found, said = understood(tmp_path, "sft", rows)
    assert len(found) == 1 and "1 of 2 rows dropped (1 with the weight 0)" in said
    for more in ({"weight": "0.0"}, {"train": False}):
        chat = [user("a"), assistant("b") | more, user("c"), assistant("d")]
        assert [row["response"] for row in understood(tmp_path, "sft", [{"messages": chat}])[0]] == ["d"]


EMPTY = [
    ("preferences", {"prompt": "a", "chosen": "b", "rejected": ""}),
    ("preferences", {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant(" ")]}),
    ("preferences", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"}),
    ("preferences", {"prompt": "a", "response": "\n", "label": True}),
    ("preferences", {"prompt": "a", "response_a": "", "response_b": "b", "winner": "B"}),
    ("preferences", {"prompt": "a", "responses": ["", "b"], "scores": [1, 2]}),
    ("preferences", {"history": "a", "human_ref_A": "", "human_ref_B": "b", "labels": 0}),
    ("sft", {"prompt": "a", "response": ""}), ("sft", {"instruction": "a", "output": " "}),
    ("sft", {"messages": [user("a"), assistant("")]}), ("sft", {"messages": [user(""), assistant("a")]}),
    ("sft", {"question": "", "answer": "b"}), ("prompts", {"prompt": " "}), ("pretrain", {"text": ""}),
]


@pytest.mark.parametrize("kind, row", EMPTY, ids=range(len(EMPTY)))
def test_what_is_empty_is_dropped_and_counted_in_every_layout(tmp_path, kind, row):
    full = {"pretrain": {"text": "a"}, "prompts": {"prompt": "a"}, "sft": {"prompt": "a", "response": "b"},
            "preferences": {"prompt": "a", "chosen": "c", "rejected": "d"}}
    found, said = understood(tmp_path, kind, [full[kind], row])
    assert len(found) == 1 and "1 of 2 rows dropped (1 with" in said


# ------------------------------------------------------------------------------------------------
# Splits
# ------------------------------------------------------------------------------------------------
CAFE = "Où est le café?\nLà?"
SPELLINGS = {
    "a list": [user(CAFE)], "blanks around": f"  {CAFE}\n", "CRLF": CAFE.replace("\n", "\r\n"),
    "NFD": unicodedata.normalize("NFD", CAFE), "a list, NFD": [user(unicodedata.normalize("NFD", CAFE))],
    "a transcript": f"\n\nHuman: {CAFE}\n\nAssistant:",
}


@pytest.mark.parametrize("other", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_prompt_is_held_out_in_every_file_and_spelling(mine, capsys, other, split):
    more = [{"prompt": f"p{i}", "response": "r", "split": "train"} for i in range(9)]
    write(mine / "sft.jsonl", [*more, {"prompt": CAFE, "response": "Là.", "split": "train"}])
    write(mine / "preferences.jsonl", [{"prompt": other, "chosen": "Là.", "rejected": "Ici."}])
    write(mine / "prompts.jsonl", [{"prompt": other, "split": split}, {"prompt": "p1"}])
    folder, said = converted(mine, capsys)
    assert load_sft(folder)[-1]["split"] == load_preferences(folder)[0]["split"] == split
    assert [p["split"] for p in load_prompts(folder)] == [split, "train"]
    assert "1 rows that say train are held out" in said


def test_a_dialogue_that_is_held_out_is_held_out_with_its_answers(mine):
    rows = [{"messages": [user(f"Hi {i}"), *HI[1:], assistant("Yes")]} for i in range(20)]
    write(mine / "sft.jsonl", rows)
    write(mine / "prompts.jsonl", [{"prompt": row["messages"][:-1], "split": "test"} for row in rows[:10]])
    found = load_sft(converted(mine)[0])
    assert all(row["split"] == "test" for row in found[:20])
    assert any(row["split"] == "train" for row in found[20:])


def test_what_follows_a_held_out_question_is_held_out(mine):
    """For it answers it: a dialogue, a tree, another dialogue that begins alike."""
    more = [{"messages": [user(f"a {i}"), assistant("b"), user("c"), assistant("d")]} for i in range(20)]
    write(mine / "sft.jsonl", [*more, {"messages": [user("Who?"), assistant("Ann"), user("And?"),
                                                    assistant("Bob")]}])
    write(mine / "prompts.jsonl", [{"prompt": "Who?", "split": "test"}, {"prompt": "x", "split": "train"}])
    folder, _ = converted(mine)
    assert [row["split"] for row in load_sft(folder)][-2:] == ["test", "test"]
    assert "Ann" not in load_text(folder)[0] and "Ann" in load_text(folder)[1]
    both = {"split": "test"}, {"split": "train"}
    write(mine / "sft.jsonl", [*more, *(
        {"messages": [*HI, assistant(f"so {i}")]} | both[i] for i in range(2))])
    assert {row["split"] for row in load_sft(converted(mine)[0]) if row["prompt"] in ("Hi", HI)} == {"test"}


def test_a_tree_is_in_one_split(mine):
    deeper = [{"role": "prompter", "text": "And?", "replies": [{"role": "assistant", "text": "Yes."}]}]
    write(mine / "sft.jsonl", [{"prompt": {"role": "prompter", "text": f"Why {i}?", "replies": [
        {"role": "assistant", "text": f"So {i}.", "replies": deeper}]}} for i in range(60)])
    rows = load_sft(converted(mine)[0])
    assert len(rows) == 120 and {row["split"] for row in rows} == {"train", "dev", "test"}
    for one, deeper in zip(rows[::2], rows[1::2], strict=True):
        assert deeper["prompt"][0]["content"] == one["prompt"] and deeper["split"] == one["split"]
        assert one["split"] == data.split_of(one["prompt"])


def test_a_greeting_holds_nothing_out(mine):
    """Where all dialogues begin with it, each goes by itself."""
    write(mine / "sft.jsonl", [{"messages": [user("Hello"), assistant("Hi!"), user(f"q {i}"), assistant("a")]}
                               for i in range(60)])
    last = [row["split"] for row in load_sft(converted(mine)[0]) if row["response"] == "a"]
    assert 30 < last.count("train") < 60


def test_a_document_is_in_one_split(mine):
    rows = [{"text": f"document {i}"} for i in range(60)]
    twice = [{"text": "Twice.", "split": split} for split in ("test", "train")]
    write(mine / "pretrain.jsonl", rows + twice)
    learned, held_out = load_text(converted(mine)[0])
    assert "Twice." not in learned and held_out.count("Twice.") == 2


def test_a_list_inside_a_cell_is_spelled_like_any_other_prompt(mine):
    """And holds whole characters."""
    table = ("prompt,response_a,response_b,winner_model_a,winner_model_b\n"
             + "".join(f'"[""Line {i}\\r\\nnext?""]","[""a""]","[""b""]",1,0\n' for i in range(30)))
    (mine / "preferences.csv").write_text(table)
    write(mine / "prompts.jsonl", [{"prompt": f"Line {i}\nnext?", "split": "test"} for i in range(20)])
    write(mine / "sft.jsonl", [{"prompt": f"p{i}", "response": "r"} for i in range(40)])
    found = load_preferences(converted(mine)[0])
    assert all(row["split"] == "test" for row in found[:20]) and found[0]["prompt"] == "Line 0\nnext?"
    (mine / "preferences.csv").write_text(table.replace("Line 3", "\\ud83d"))
    with pytest.raises(UserError, match="row 5: holds half a character"):
        converted(mine)


def test_what_stands_beside_a_scored_answer_counts(tmp_path):
    """Rows of two splits are not put together, nor are those with another system message."""
    rows = [{"prompt": "Why?", "response": text, "helpfulness": score, **more} for text, score, more in (
        ("a", 3, {"split": "train"}), ("b", 1, {"split": "train"}), ("c", 4, {"split": "test"}),
        ("d", 0, {"system": "s"}), ("e", 2, {"system": "s"}))]
    found, said = understood(tmp_path, "preferences", rows)
    assert [verdict(row)[:2] for row in found] == [("Why?", [["a"], ["b"]]), ("s\n\nWhy?", [["e"], ["d"]])]
    assert "with fewer than two answers to compare" in said


def test_scores_of_several_annotators_are_averaged(tmp_path):
    rows = [{"prompt": "Why?", "response": text, "helpfulness": score} for text, score in (
        (" Yes", 1), ("No", 3), ("Yes", 4), ("No", 0), ("Yes ", 4), ("No", 1))]
    rows[3]["unsafe"] = True
    [found], said = understood(tmp_path, "preferences", rows)
    assert verdict(found) == ("Why?", [[" Yes"], ["No"]], {"margin": pytest.approx(3 - 4 / 3)})
    assert found["unsafe"] and "not used" not in said


def test_all_rows_make_prompts_and_text(mine, capsys):
    """Those of the demonstrations, too, where there are preferences; a prompt counts once."""
    write(mine / "preferences.jsonl", [{"prompt": f"q{i}", "chosen": "Yes", "rejected": "No"}
                                       for i in range(40)])
    write(mine / "sft.jsonl", [{"prompt": f"p{i}", "response": "Sure."} for i in range(40)])
    folder, said = converted(mine, capsys)
    prompts = [row["prompt"] for row in load_prompts(folder)]
    assert len(set(prompts)) == len(prompts) == 80
    assert "Sure." in load_text(folder)[0] and "its 80 other rows" in said
    write(mine / "prompts.jsonl", [{"prompt": "p1"}] * 3)
    assert "prompts.jsonl: 1 prompts" in converted(mine, capsys)[1]


def test_other_prompts_are_others():
    """Capital letters, blanks inside and a later turn make another prompt."""
    prompts = ["Why?", "why?", "W hy?", HI, HI[:1], [*HI[:2], user("Where?")], [assistant("Why?")]]
    assert len({key_of(prompt) for prompt in prompts}) == len(prompts)
    assert key_of("Why?") == key_of([user(" Why?")])
    assert data.split_of(json.loads(key_of(HI))) == data.split_of(HI)


def test_files_may_be_called_by_their_split(mine, capsys):
    """A row that says another split keeps it; what stands in both is held out."""
    for name in ("train", "test"):
        write(mine / f"{name}.jsonl", [{"prompt": f"{name} {i}", "response": "r"} for i in range(4)]
              + [{"prompt": "both", "response": "r"},
                 {"prompt": f"{name} dev", "response": "r", "split": "valid"}])
    folder, said = converted(mine, capsys)
    splits = {row["prompt"]: row["split"] for row in load_sft(folder)}
    assert splits == {"both": "test", "train dev": "dev", "test dev": "dev",
                      **{f"{name} {i}": name for name in ("train", "test") for i in range(4)}}
    assert "12 demonstrations" in said and "1 rows that say train are held out" in said
    (mine / "test.jsonl").unlink()
    (mine / "train.jsonl").rename(mine / "sft.train.jsonl")
    write(mine / "prompts.jsonl", [{"prompt": "a"}])
    splits = {row["prompt"]: row["split"] for row in load_sft(converted(mine)[0])}
    assert splits["train 3"] == data.split_of("train 3") == "test", "with nothing held out the hash decides"


# ------------------------------------------------------------------------------------------------
# Who won, and what is unsafe
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"score_chosen": 3, "score_rejected": 3}, {"chosen-rating": 3.5,
                                  "rejected-rating": "3.5"}, {"winner": "tie"}, {"is_tie": True},
                                  {"preference": "no preference"}, {"status": "tie"}], ids=str)
def test_a_tie_between_chosen_and_rejected_is_one(tmp_path, more):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", **more}
    [found], _ = understood(tmp_path, "preferences", [row])
    assert found["tiers"] == [[0, 1]]


@pytest.mark.parametrize("more", [{"label": 1}, {"label": "chosen"}, {"winner": "chosen"},
                                  {"score_chosen": 3, "score_rejected": 1}, {"label": "harmless"},
                                  {"status": "unchanged"}, {"aspect": float("nan")}], ids=str)
def test_a_pair_with_a_label_is_a_pair(tmp_path, more):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", **more}
    [found], _ = understood(tmp_path, "preferences", [row])
    assert verdict(found) == ("a", [["b"], ["c"]], {})


def test_rows_that_contradict_each_other_are_said_and_are_no_demonstrations(mine, capsys):
    """A draw, an answer that lost elsewhere, a thumb up and down: none is a demonstration."""
    rows = [("a", "x", "y"), ("a", "y", "x"), ("b", "x", "y"), ("b", "z", "x"), ("c", "x", "y"),
            ("d", "x", "y")]
    write(mine / "preferences.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows])
    folder, said = converted(mine, capsys)
    found = [(row["prompt"], row["response"]) for row in load_sft(folder)]
    assert found == [("b", "z"), ("c", "x"), ("d", "x")]
    assert "1 of 5 comparisons are a draw: train_rm.py leaves them out" in said
    assert "without 1 that another row found worse" in said
    write(mine / "preferences.jsonl", [{"prompt": "a", "response": r, "label": up}
                                       for r, up in (("x", 1), ("x", 0), ("y", 1), ("z", 1))])
    assert [row["response"] for row in load_sft(converted(mine)[0])] == ["y", "z"]
    write(mine / "preferences.jsonl", [{"prompt": "a", "responses": ["", "y"], "tiers": [[0], [1]]},
                                       {"prompt": "b", "responses": ["x", "y"], "tiers": [[0], [1]]}])
    assert [row["response"] for row in load_sft(converted(mine)[0])] == ["x"], "an empty answer is none"


def test_rankings_keep_their_places(mine, capsys, monkeypatch):
    """Empty answers and repeated ones are left out, which is said; an AI's pairs stay; all best answers are
    demonstrations; data.py shows the places."""
    write(mine / "preferences.jsonl", [
        {"prompt": "a", "responses": ["x", "y", "", "x", "z", "w"], "scores": [2, 2, 5, 1, 0, None]},
        {"prompt": "b", "responses": ["x", "y"], "tiers": [[0], [1]], "pairs": [[0, 1, 0.8]],
         "aspect": "safety", "margin": 2.5}])
    monkeypatch.chdir(mine.parent)
    lab.show.main(["--data", "mine"])
    said = " ".join(capsys.readouterr().out.split())
    assert "2 rankings" in said and "1 of 2 rows have answers that are left out" in said
    assert "place 1 x" in said and "place 1 y" in said and "place 2 z" in said
    assert "about safety, margin 2.5 chosen x" in said
    folder, _ = converted(mine)
    assert [(row["responses"], row["tiers"]) for row in load_preferences(folder)] == [
        (["x", "y", "z"], [[0, 1], [2]]), (["x", "y"], [[0], [1]])]
    assert load_preferences(folder)[1]["pairs"] == [[0, 1, 0.8]]
    assert [row["response"] for row in load_sft(folder)] == ["x", "y", "x"]


UNSAFE = [({"unsafe": value}, True) for value in ("yes", 1.0, "1.0", "unsafe", "TRUE", "y")]
UNSAFE += [({"unsafe": value}, False) for value in ("no", 0.0, "safe", None, float("nan"))]
UNSAFE += [({"prompt_label": "Unsafe"}, True),
           ({"label": "safe"}, False), ({"harmful": 1}, True)]


@pytest.mark.parametrize("more, unsafe", UNSAFE, ids=str)
@pytest.mark.parametrize("kind", ["prompts", "preferences", "sft"])
def test_unsafe_is_understood(tmp_path, kind, more, unsafe):
    row = {"prompts": {"prompt": "a"}, "sft": {"prompt": "a", "response": "b"},
           "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"}}[kind]
    [found], _ = understood(tmp_path, kind, [row | more])
    assert found["unsafe"] is unsafe


@pytest.mark.parametrize("more, unsafe", [({"safe": "no"}, True), ({"is_safe": True}, False)])
def test_safe_beside_an_answer_is_about_the_answer(tmp_path, more, unsafe):
    [found], _ = understood(tmp_path, "prompts", [{"prompt": "a"} | more])
    assert found["unsafe"] is unsafe
    with pytest.raises(UserError, match="reads like thumbs up or down: call the file preferences"):
        understood(tmp_path, "sft", [{"prompt": "a", "response": "b"} | more])
    [found], _ = understood(tmp_path, "preferences", [{"prompt": "a", "response": "b"} | more])
    assert found["unsafe"] is False and found["label"] is not unsafe
    two = [{"prompt": "a", "response": r, "helpfulness": i} | more for i, r in enumerate("bc")]
    [found], _ = understood(tmp_path, "preferences", two)
    assert found["unsafe"] is False, "nor where a score compares the answers"


def test_a_question_behind_a_system_message_is_the_same_question(mine):
    """One that is held out in one file is not learned in another, whatever is said in front of it."""
    write(mine / "sft.jsonl", [
        {"messages": [system(text), user("Why?"), assistant("So.")]}
        for text in ("Be kind.", "Be curt.\n\nAlways.")] + rows_in(*"abcdefgh"))
    pair = {"prompt": "Why?", "chosen": "Yes", "rejected": "No", "split": "test"}
    write(mine / "preferences.jsonl", [pair])
    found = {json.dumps(row["prompt"]): row["split"] for row in load_sft(converted(mine)[0])}
    asked = [f"{text}\n\nWhy?" for text in ("Be kind.", "Be curt.\n\nAlways.")]
    assert [found[json.dumps(prompt)] for prompt in asked] == ["test", "test"]
    assert "train" in found.values()


def test_questions_in_one_template_are_different_questions(mine):
    write(mine / "sft.jsonl", [{"prompt": f"Answer.\n\n{q}\n\nAnswer:", "response": "b"}
                               for q in "abcdefghijkl"])
    assert len({row["split"] for row in load_sft(converted(mine)[0])}) > 1


Q, A = user("Why?"), assistant("Yes")


@pytest.mark.parametrize("row", [
    {"messages": [Q, A], "chosen": "Yes", "rejected": "No"},
    {"history": [Q], "prompt": "Why?", "chosen": "Yes", "rejected": "No"},
    {"context": [Q], "prompt": "Why?", "chosen": "Yes", "rejected": "No"},
    {"prompt": "Why?", "input": "Why?", "chosen": "Yes", "rejected": "No"},
    {"history": [["user", "Hi"], ["assistant", "Hello."]], "prompt": "Why?", "chosen": "Yes",
     "rejected": "No"},
    {"history": '[["Hi", "Hello."]]', "prompt": "Why?", "chosen": "Yes", "rejected": "No"},
], ids=str)
def test_what_stands_there_twice_is_read_once(tmp_path, row):
    [found], _ = understood(tmp_path, "preferences", [row])
    assert found["prompt"] == (HI if "Hi" in str(row) else "Why?")
    assert found["responses"] == ["Yes", "No"]


def test_a_prompt_may_be_one_message(tmp_path):
    [found], _ = understood(tmp_path, "sft", [{"prompt": Q, "response": "Yes"}])
    assert (found["prompt"], found["response"]) == ("Why?", "Yes")


def test_a_short_input_inside_the_instruction_stays(tmp_path):
    row = {"instruction": "Negate the word", "input": "word", "output": "no"}
    [found], _ = understood(tmp_path, "sft", [row])
    assert found["prompt"] == "Negate the word\n\nword"


def test_a_message_with_loss_false_is_not_learned_and_other_keys_are_named(tmp_path):
    found, said = understood(tmp_path, "sft", [{"messages": [
        Q, A | {"loss": False}, Q, assistant("No") | {"reasoning": "Hm."}]}])
    assert [row["response"] for row in found] == ["No"] and "not used of its messages: reasoning" in said


@pytest.mark.parametrize("text, name", [
    ('{"system_message": "Be kind.", "data": [ROW]}', "system_message"),
    ('{"system": "Be kind.", "train": [ROW], "test": [ROW]}', "system"),
    ('{"context": "Ann came.", "qas": [ROW]}', "context"), ('{"train": [ROW], "test": ["Why?"]}', "test")])
def test_what_stands_beside_a_list_is_not_lost(tmp_path, text, name):
    path = tmp_path / "sft.json"
    path.write_text(text.replace("ROW", '{"prompt": "a", "response": "b"}'))
    with pytest.raises(UserError, match=f'"{name}" stands beside the list'):
        convert(path, tmp_path / "run")


@pytest.mark.parametrize("row, said", [
    ({"prompt": "Why?", "response_a": "Yes", "response_b": "No"}, "nearly those of a table of two answers"),
    ({"instruction": "Why?", "generations": ["Yes"], "model": "m"}, "nearly those of ranked answers"),
    ({"prompt": "Why?", "target_answer": "Yes"}, "call the file prompts, if they are prompts alone")])
def test_answers_that_nobody_reads_do_not_make_a_file_of_prompts(tmp_path, row, said):
    """Unless its name says that it is one."""
    with pytest.raises(UserError, match=said):
        convert(write(tmp_path / "mine.jsonl", [row]), tmp_path / "run")
    assert understood(tmp_path, "prompts", [row])[0][0]["prompt"] == "Why?"


def test_verdicts_that_count_from_0_are_refused(tmp_path):
    rows = [{"instruction": q, "output_1": "Yes", "output_2": "No", "preference": n}
            for q, n in (("a", 0), ("b", 1))]
    with pytest.raises(UserError, match="all verdicts of its file are 0 or 1"):
        understood(tmp_path, "preferences", rows)


@pytest.mark.parametrize("more", [
    {"thumbs_up": False}, {"rating": "bad"}, {"is_correct": "no"}, {"accepted": 0}, {"label": "undesirable"},
    {"rejected_response": "No"}, {"worse_answer": "No"}])
def test_a_verdict_beside_a_demonstration_is_heard(tmp_path, more):
    with pytest.raises(UserError, match="call the file preferences, or take the column out"):
        understood(tmp_path, "sft", [{"prompt": "Why?", "response": "Yes"} | more])


def test_an_empty_column_for_a_verdict_says_nothing(tmp_path, capsys):
    rows = [{"prompt": q, "response": "Yes", "rating": None} for q in "abcdefghij"]
    convert(write(tmp_path / "mine.jsonl", rows), tmp_path / "run")
    assert "10 demonstrations" in capsys.readouterr().out


def test_a_list_written_as_text_is_told(tmp_path):
    rows = [{"prompt": "Why?", "chosen": "['Yes']", "rejected": "['No']"}]
    assert "in 1 of 1 rows a list is written as text" in understood(tmp_path, "preferences", rows)[1]


def test_one_vote_of_several_makes_a_prompt_unsafe(mine):
    write(mine / "preferences.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c", "unsafe": unsafe}
                                       for unsafe in (False, True, False)])
    assert load_prompts(converted(mine)[0])[0]["unsafe"] is True


def test_trees_keep_their_split_and_what_is_cut_off_is_dropped(tmp_path):
    flat = [{"message_id": i, "parent_id": parent, "role": role, "text": text, "rank": rank, "split": "test"}
            for i, parent, role, text, rank in (
                ("1", None, "prompter", "Why?", None), ("2", "1", "assistant", "No", 1),
                ("3", "1", "assistant", "Yes", 0), ("9", "8", "prompter", "And?", None))]
    found, said = understood(tmp_path, "preferences", flat)
    assert [verdict(row) for row in found] == [("Why?", [["Yes"], ["No"]], {"split": "test"})]
    assert "1 of 2 rows dropped (1 whose earlier messages are not in the file)" in said
    flat[0] |= {"split": "train", "unsafe": True}
    [found], _ = understood(tmp_path, "preferences", flat)
    assert found["split"] == "test" and found["unsafe"], "the strictest of its messages"
    flat[0]["deleted"] = True
    with pytest.raises(UserError, match="1 whose first message was deleted"):
        understood(tmp_path, "preferences", flat)


def test_a_person_who_answers_a_person_gives_no_answer(tmp_path):
    tree = {"role": "prompter", "text": "Why?", "replies": [
        {"role": "prompter", "text": "I ask.", "rank": 0}, {"role": "assistant", "text": "So.", "rank": 1}]}
    [found], _ = understood(tmp_path, "sft", [{"prompt": tree}])
    assert found["response"] == "So."


def test_the_better_of_three_numbered_answers_is_the_one_that_is_named(tmp_path):
    row = {"prompt": "Why?", **{f"response_{i}": "abc"[i] for i in range(3)}, "better_response_id": 0}
    assert verdict(understood(tmp_path, "preferences", [row])[0][0])[1] == [["a"], ["b"]]


def test_an_object_in_a_cell_is_an_answer(tmp_path):
    row = {"prompt": "As JSON?", "response_a": '{"name": "x"}', "response_b": "no", "winner_model_a": 1,
           "winner_model_b": 0, "winner_tie": 0}
    assert verdict(understood(tmp_path, "preferences", [row])[0][0])[1] == [['{"name": "x"}'], ["no"]]


def test_a_table_without_a_header_is_told(mine):
    (mine / "sft.csv").write_text("sep=;\n")
    with pytest.raises(UserError, match="no rows"):
        converted(mine)


def test_an_answer_that_looks_like_messages_is_one(tmp_path):
    texts = ['[{"role": "user", "content": "Hi"}] is the format.', '[{"role": "assistant", "content": "Hi"}]']
    found, _ = understood(tmp_path, "sft", [{"prompt": "Format?", "response": text} for text in texts])
    assert [row["response"] for row in found] == texts


def test_an_instance_without_an_output_leaves_the_others(tmp_path):
    rows = [{"instruction": "Add", "instances": [{"input": "1 1", "output": out} for out in outputs]}
            for outputs in (["2", ""], [])]
    found, said = understood(tmp_path, "sft", rows)
    assert [row["response"] for row in found] == ["2"]
    assert "1 of 2 rows have instances that are left out" in said and "1 of 2 rows dropped" in said


def test_columns_that_nothing_is_read_from_are_named(tmp_path):
    rows = [{"prompt": "a", "response": "b", "id": 7, "source": "x", "empty": ""},
            {"prompt": "", "response": "b"}]
    assert "columns not used: id, source" in understood(tmp_path, "sft", rows)[1] + "."


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------
TABLES = {
    "semicolons": ("sft.csv", "prompt;response\nWhy, sir?;Yes, no\n", "Why, sir?", "Yes, no"),
    "tabs": ("sft.csv", "prompt\tresponse\nWhy, sir?\tYes; no\n", "Why, sir?", "Yes; no"),
    ".tsv": ("sft.tsv", "prompt\tresponse\nWhy, sir?\t\"Yes\tno\"\n", "Why, sir?", "Yes\tno"),
    "line breaks of Windows": ("sft.csv", "Prompt,Response\r\nWhy;,\"Yes\r\nno\"\r\n", "Why;", "Yes\nno"),
    "Excel's first line": ("sft.csv", "sep=;\nprompt;response\nWhy, sir, so?;Yes\n", "Why, sir, so?", "Yes"),
    "a byte order mark": ("sft.csv", "\ufeffprompt,response\nWhy?,Yes\n", "Why?", "Yes"),
    "empty cells at the end": ("sft.csv", "prompt,response\nWhy?,Yes,,\n", "Why?", "Yes"),
    "a long cell": ("sft.csv", f"prompt,response\nWhy?,{'a' * 200_000}\n", "Why?", "a" * 200_000),
    "messages as JSON": ("sft.csv", 'messages\n"' + json.dumps(CHAT).replace('"', '""') + '"\n',
                         CHAT[0]["content"], CHAT[1]["content"]),
    "messages as Python": ("sft.csv", 'messages\n"' + str(CHAT).replace('"', '""') + '"\n',
                           CHAT[0]["content"], CHAT[1]["content"]),
    "a list that is text": ("sft.csv", 'prompt,response\nList them.,"[""a"", ""b""]"\n', "List them.",
                            '["a", "b"]'),
    "a list of objects that is text": ("sft.csv", 'prompt,response\nRoles?,"[{""role"": ""cook""}]"\n',
                                       "Roles?", '[{"role": "cook"}]'),
    "messages as text in JSON": ("sft.jsonl", json.dumps({"messages": json.dumps(CHAT)}), CHAT[0]["content"],
                                 CHAT[1]["content"]),
    "ShareGPT as text": ("sft.csv", "conversations\n\"" + str([{"from": "human", "value": "Why?"},
                         {"from": "gpt", "value": "Yes"}]) + '"\n', "Why?", "Yes"),
    "an object that is text": ("sft.csv", 'prompt,response\nAs JSON?,"{""a"": 1}"\n', "As JSON?", '{"a": 1}'),
    ".ndjson": ("sft.ndjson", '{"prompt": "Why?", "response": "Yes\\r\\nno"}\n', "Why?", "Yes\nno"),
    "one message in a cell": ("sft.csv", 'prompt,response\n"[{\'from\': \'human\', \'value\': \'Why?\'}]"'
                              ',"{\'from\': \'gpt\', \'value\': \'Yes\'}"\n', "Why?", "Yes"),
    "a blank row": ("sft.csv", "prompt;response\nWhy?;Yes\n;\n", "Why?", "Yes"),
    "the header once more": ("sft.csv", "prompt,response\nprompt,response\nWhy?,Yes\n", "Why?", "Yes"),
    "the numbers of pandas": ("sft.csv", ",prompt,response\n0,Why?,Yes\n", "Why?", "Yes"),
    "words for nothing": ("sft.csv", "instruction,input,system,output\nWhy?,nan,None,Yes\n", "Why?", "Yes"),
    "no input": ("sft.jsonl", '{"instruction": "Why?", "input": "<noinput>", "output": "Yes"}', "Why?",
                 "Yes"),
    "text that begins as messages": ("sft.jsonl", json.dumps({"prompt": '[{"role": "a", "content": 1}] is?',
                                     "response": "So"}), '[{"role": "a", "content": 1}] is?', "So"),
    "a list in an object": ("sft.json", '{"version": 1, "data": [{"prompt": "Why?", "response": "Yes"}]}',
                            "Why?", "Yes"),
}


@pytest.mark.parametrize("name, text, prompt, response", TABLES.values(), ids=TABLES)
def test_a_table_is_read_as_it_is_meant(mine, name, text, prompt, response):
    write(mine / name, text)
    write(mine / "pretrain.txt", "line\n" * 99)
    assert [(row["prompt"], row["response"]) for row in load_sft(converted(mine)[0])] == [(prompt, response)]


def test_the_arenas_table_is_read_from_its_file(mine):
    cells = [json.dumps(x).replace('"', '""') for x in (["Why?"], ["Yes, sir"], ["No"])]
    write(mine / "preferences.csv", "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,"
          f"winner_model_b,winner_tie\n1,x,y,\"{cells[0]}\",\"{cells[1]}\",\"{cells[2]}\",0,1,0\n")
    [row] = load_preferences(converted(mine)[0])
    assert verdict(row)[:2] == ("Why?", [["No"], ["Yes, sir"]])


@pytest.mark.parametrize("header, said", [
    ("prompt,response,response", "sft.csv: its header has a column twice: prompt, response, response"),
    ('"prompt"x,response', "sft.csv, row 1: cannot be read as csv"),
    ('prompt,response\n"a"b,c', "sft.csv, row 2: cannot be read as csv"),
    ("prompt;response;\nWhy?;Yes; it is;", "row 2: has more cells than the header, which has 2"),
    ("prompt,response\na,\"[{'role': 'x', 'content': 'a'\n 'b'}]\"", "row 2: .* as numpy prints it")])
def test_a_table_that_is_none_is_told(mine, header, said):
    write(mine / "sft.csv", header + "\na,b,c\n")
    with pytest.raises(UserError, match=said):
        converted(mine)


def test_a_quote_mark_takes_in_no_rows(mine):
    write(mine / "sft.tsv", 'prompt\tresponse\nSay a quote\t"\nWho?\tAnn\nAnother\t"\n')
    with pytest.raises(UserError, match="sft.tsv, row 2: a cell that is one quote mark has taken in the"):
        converted(mine)
    cells = 'Say a quote\t""""\nCode?\t"\n\tx = 1\n\ty\tz"\n'
    write(mine / "sft.tsv", "prompt\tresponse\n" + cells + "a\tb\n" * 9)
    assert [row["response"] for row in load_sft(converted(mine)[0])][0] == '"'


def test_an_object_of_lists_is_read_with_their_splits(mine):
    rows = {name: [{"prompt": f"{name} {i}", "response": "r"} for i in range(5)]
            for name in ("train", "test")}
    write(mine / "sft.json", json.dumps(rows))
    assert [row["split"] for row in load_sft(converted(mine)[0])] == ["train"] * 5 + ["test"] * 5
    write(mine / "sft.json", json.dumps({"train": rows["test"]}))
    names = [row["prompt"] for row in load_sft(converted(mine)[0]) if row["split"] == "train"]
    assert names == [f"test {i}" for i in range(5) if data.split_of(f"test {i}") == "train"]
    write(mine / "sft.json", json.dumps({"system": "You are a pirate.", "data": rows["train"]}))
    with pytest.raises(UserError, match='sft.json: "system" stands beside the list "data": write it into'):
        converted(mine)


def test_labels_inside_a_text_are_said(mine, capsys):
    write(mine / "sft.jsonl", [{"prompt": "Human: Hi\nAssistant: Hello.\nHuman: Why?", "response": "Yes"},
                               {"prompt": "What is a Human: a?", "response": "b"}] + rows_in(*"abcdefgh"))
    assert 'in 1 of 10 rows there are marks such as "Human:"' in converted(mine, capsys)[1]


def test_messages_that_nobody_can_read_are_told(mine):
    write(mine / "sft.csv", "messages\n\"[{'role': 'user' 'content': }]\"\n")  # as numpy prints it
    with pytest.raises(UserError, match='row 2: "messages" looks like a list of messages, but is neither'):
        converted(mine)


# ------------------------------------------------------------------------------------------------
# Names of files
# ------------------------------------------------------------------------------------------------


def rows_in(*prompts):
    return [{"prompt": prompt, "response": "r"} for prompt in prompts]


def test_numbered_parts_are_one_set_in_the_order_of_their_numbers(mine, capsys):
    for n in (10, 2, 1):
        write(mine / f"sft-{n}.jsonl", rows_in(f"p{n}"))
    folder, said = converted(mine, capsys)
    assert [row["prompt"] for row in load_sft(folder)] == ["p1", "p2", "p10"]
    assert said.startswith("sft-1.jsonl and 2 more: 3 demonstrations")


def test_parts_of_a_split_are_told_by_their_keys_and_a_missing_one_is_told(mine):
    for n in (0, 1):
        write(mine / f"train-0000{n}-of-00002.jsonl", rows_in(f"p{n}"))
    assert [row["prompt"] for row in load_sft(converted(mine)[0])] == ["p0", "p1"]
    (mine / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(UserError, match="00000-of-00002.jsonl is one of 2 parts, and 1 of them are here"):
        converted(mine)


def test_rows_of_one_answer_are_gathered_over_all_parts(mine):
    for n in (1, 2):
        write(mine / f"part-{n}.jsonl", [{"prompt": "a", "response": f"r{n}", "helpfulness": n}])
    [row] = load_preferences(converted(mine)[0])
    assert verdict(row) == ("a", [["r2"], ["r1"]], {"margin": 1, "split": "train"})


def test_books_are_one_text_and_each_holds_out_its_end(mine, capsys):
    for n in (2, 10):
        write(mine / f"book {n}.txt", f"{n:03}\n" * 100)
    write(mine / "README.txt", "About the books")
    write(mine / "._book 3.txt", "What a system keeps beside a file")
    folder, said = converted(mine, capsys)
    learned, held_out = load_text(folder)
    assert learned.split() == ["002"] * 95 + ["010"] * 95 and held_out.split() == ["002"] * 5 + ["010"] * 5
    assert said.startswith("book 2.txt and 1 more: 762 characters, 42 more held out")
    assert "not read: README.txt" in said


def test_texts_may_be_called_by_their_split(mine):
    for name in ("train", "valid", "test"):
        write(mine / f"{name}.txt", f"{name}\n" * 9)
    learned, held_out = load_text(converted(mine)[0])
    assert set(learned.split()) == {"train"} and set(held_out.split()) == {"valid", "test"}


def test_prompts_may_be_lines_of_a_text(mine):
    write(mine / "sft.jsonl", rows_in("a", "b"))
    write(mine / "prompts.txt", "Why?\n\nWho, sir?\n")
    assert [p["prompt"] for p in load_prompts(converted(mine)[0])] == ["Why?", "Who, sir?"]


ROW = json.dumps(rows_in("a")[0])
REFUSED = {  # files of a folder: what is said
    "one kind twice": ({"sft.jsonl": "", "sft.csv": ""}, "sft.csv and sft.jsonl are both here; which is"),
    "one part twice": ({"sft-1.jsonl": "", "sft-2.jsonl": "", "sft_1.jsonl": ""}, "are both here; which is"),
    "a part and the whole": ({"sft.jsonl": "", "sft-2.jsonl": ""}, "are both here; which is meant"),
    "by name and by keys": ({"sft.jsonl": ROW, "train.jsonl": ROW},
                            "sft.jsonl and train.jsonl both hold demonstrations; which is meant"),
    "another name": ({"mine.jsonl": ROW}, r"found mine.jsonl \(did you mean sft.jsonl\?\); rename it, or "
                     "name the file itself: --data .*/mine.jsonl"),
    "a folder inside": ({"data/sft.jsonl": ""}, "found data/; did you mean --data .*mine/data"),
    "two folders inside": ({"train/sft.jsonl": "", "test/sft.jsonl": ""}, "put their files into one folder"),
    "rows where prompts should be": ({"sft.jsonl": ROW, "prompts.txt": '{"prompt": "Why?"}'},
                                     "prompts.txt, line 1: an object, where a prompt should be: call the"),
    "a saved data set": ({"dataset_info.json": "{}", "data-00000-of-00001.arrow": ""},
                         "a data set that the library datasets has saved, in its own format"),
    "packed, another name": ({"all.zip": ""}, "found all.zip; a packed file of this kind is not read"),
    "packed": ({"sft.jsonl.bz2": ""}, "sft.jsonl.bz2: a packed file of this kind is not read: unpack it"),
    "prompts alone": ({"prompts.txt": "Why?"}, r"holds prompts \(prompts.txt\), which have no answers"),
    "thumbs down alone": ({"preferences.jsonl": '{"prompt": "a", "response": "b", "label": 0}'},
                          r"holds preferences \(preferences.jsonl\), and no answer of them was found better"),
    "a header alone": ({"train.csv": "prompt,response\n"}, "train.csv: no rows"),
    "text with a wrong name": ({"sft.txt": "Why?"}, "those of prompts"),
    "columns of a data frame": ({"sft.json": '{"prompt": {"0": "a"}, "response": {"0": "b"}}'},
                                'expected a list of objects, found dict with \\["prompt", "response"'),
}


@pytest.mark.parametrize("files, said", REFUSED.values(), ids=REFUSED)
def test_what_lies_there_is_named(mine, files, said):
    for name, text in files.items():
        (mine / name).parent.mkdir(exist_ok=True)
        write(mine / name, text)
    with pytest.raises(UserError, match=said):
        converted(mine)


def test_parquet_needs_its_package(mine, monkeypatch):
    """Rows come through where it is there; it is no requirement, so here a stand-in gives the rows."""
    (mine / "sft.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="sft.parquet: reading parquet needs a package: pip install pyarrow"):
        converted(mine)
    batches = [SimpleNamespace(to_pylist=lambda n=n: rows_in(f"p{n}\r\n")) for n in range(3)]
    there = ModuleType("pyarrow.parquet")
    there.ParquetFile = lambda path: SimpleNamespace(iter_batches=lambda: batches)
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", there)
    assert [row["prompt"] for row in load_sft(converted(mine)[0])] == ["p0\n", "p1\n", "p2\n"]


def test_a_zipped_part_is_read_whatever_its_case(mine):
    (mine / "Train.JSONL.GZ").write_bytes(gzip.compress(json.dumps(rows_in("a")[0]).encode() + b"\r\n"
                                                        + json.dumps(rows_in("b")[0]).encode()))
    assert [row["prompt"] for row in load_sft(converted(mine)[0])] == ["a", "b"]


def test_a_folder_of_text_is_shown(mine, monkeypatch, capsys):
    write(mine / "pretrain.txt", "A line.\n" * 99)
    monkeypatch.chdir(mine.parent)
    lab.show.main(["--data", "mine"])
    said = capsys.readouterr().out
    assert "pretrain.txt: 752 characters to learn from" in said and "sft.jsonl" not in said
