"""A user's files in every format, their faults told with file and line, and the data as they are shown."""
import csv
import gzip
import io
import json
import re

import pytest

import data
import lab.show
from data import UserError, load_preferences, load_prompts, load_sft, load_text
from lab.files import read_rows
from lab.formats import convert, enough
from lab.source import check_unchanged, source_of


def write(folder, name, rows):
    """Rows as .jsonl, .json or .csv; strings as they are; .gz compressed."""
    kind = name.removesuffix(".gz").rsplit(".")[-1]
    if isinstance(rows, str):
        text = rows
    elif kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    raw = text.encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


TEXT = "line\n" * 100  # enough to pretrain on


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, "pretrain.txt", TEXT)
    return folder


def converted(source):
    """The data folder that a source becomes."""
    folder = source.parent / "runs/tiny/data"
    convert(source, folder)
    return folder


def pairs(folder):
    """[(prompt, better answer, worse answer)] of the preferences of a data folder."""
    rows = load_preferences(folder)
    assert all(row["tiers"] == [[0], [1]] for row in rows)
    return [(row["prompt"], *row["responses"]) for row in rows]


def answers(folder):
    return [(row["prompt"], row["response"]) for row in load_sft(folder)]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PAIR = [{"prompt": "Why?", "chosen": "Because, \"so\".", "rejected": "No.\nNo."},
        {"prompt": "Où?", "chosen": "Là 👍", "rejected": "Ici"}]

# ------------------------------------------------------------------------------------------------
# Formats
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz", "json.gz", "csv.gz"])
def test_preferences_in_every_kind_of_file(mine, ending):
    write(mine, f"preferences.{ending}", PAIR)
    assert pairs(converted(mine)) == [tuple(row.values()) for row in PAIR]


DIALOGUE = [user("Hi"), assistant("Hello: you"), user("Why?")]


def said(*turns):
    """A transcript as in HH, the user first."""
    who = ("Human", "Assistant")
    return "".join(f"\n\n{who[i % 2]}: {text}" for i, text in enumerate(turns))


COMPARISONS = {
    "prompt inside the lists": (
        {"chosen": [user("Why?"), assistant("Yes")], "rejected": [user("Why?"), assistant("No")]}, "Why?"),
    "prompt inside and beside the lists": (
        {"prompt": "Why?", "chosen": [user("Why?"), assistant("Yes")],
         "rejected": [user("Why?"), assistant("No")]}, "Why?"),
    "answers alone in the lists": (
        {"prompt": [user("Why?")], "chosen": [assistant("Yes")], "rejected": [assistant("No")]}, "Why?"),
    "dialogue": (
        {"chosen": [*DIALOGUE, assistant("Yes")], "rejected": [*DIALOGUE, assistant("No")]}, DIALOGUE),
    "dialogue beside texts": ({"prompt": DIALOGUE, "chosen": "Yes", "rejected": "No"}, DIALOGUE),
    "first turn beside the whole dialogue": (
        {"prompt": "Hi", "chosen": [*DIALOGUE, assistant("Yes")], "rejected": [*DIALOGUE, assistant("No")]},
        DIALOGUE),
    "last turns beside the dialogue": (
        {"prompt": DIALOGUE, "chosen": [DIALOGUE[2], assistant("Yes")],
         "rejected": [DIALOGUE[2], assistant("No")]}, DIALOGUE),
    "lists that go on behind the prompt": (
        {"prompt": "Hi", "chosen": [*DIALOGUE[1:], assistant("Yes")],
         "rejected": [*DIALOGUE[1:], assistant("No")]}, DIALOGUE),
    "system message in the lists": (
        {"prompt": "Why?", **{name: [{"role": "system", "content": "Be curt."}, user("Why?"), assistant(text)]
                              for name, text in (("chosen", "Yes"), ("rejected", "No"))}},
        "Be curt.\n\nWhy?"),
    "transcripts": ({"chosen": said("Why?", "Yes"), "rejected": said("Why?", "No")}, "Why?"),
    "transcripts of a dialogue": (
        {"chosen": said("Hi", "Hello: you", "Why?", "Yes"),
         "rejected": said("Hi", "Hello: you", "Why?", "No")},
        DIALOGUE),
    "transcripts beside their prompt": (
        {"prompt": said("Why?", ""), "chosen": said("Why?", "Yes"), "rejected": said("Why?", "No")}, "Why?"),
    "transcript as the prompt": (
        {"prompt": said("Hi", "Hello: you", "Why?") + "\n\nAssistant:", "chosen": "Yes", "rejected": "No"},
        DIALOGUE),
}


@pytest.mark.parametrize("row, prompt", COMPARISONS.values(), ids=COMPARISONS)
def test_a_comparison_in_every_form(mine, row, prompt):
    write(mine, "preferences.jsonl", [row])
    assert pairs(converted(mine)) == [(prompt, "Yes", "No")]


def test_an_answer_of_a_transcript_may_have_paragraphs(mine):
    write(mine, "preferences.jsonl", [{"chosen": said("Why?", "a\n\nb"), "rejected": said("Why?", "c")}])
    assert pairs(converted(mine)) == [("Why?", "a\n\nb", "c")]


def test_preferences_may_name_their_aspect_and_margin(mine):
    """Prompts of safety comparisons are unsafe ones; without an aspect a row is of none."""
    write(mine, "preferences.jsonl", [{**PAIR[0], "aspect": "safety", "margin": 2}, {**PAIR[1], "margin": 0},
                                      {**PAIR[0], "rejected": "Hm."}])
    folder = converted(mine)
    found = [(row["aspect"], row.get("margin")) for row in load_preferences(folder)]
    assert found == [("safety", 2.0), (None, 0.0), (None, None)]
    assert [p["unsafe"] for p in load_prompts(folder)] == [True, False], "also where another row says nothing"


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_thumbs_up_and_down(mine, ending):
    """Thumbs up are demonstrations where there are no others, thumbs down are not."""
    write(mine, f"preferences.{ending}", [{"prompt": "Why?", "response": "So.", "label": True},
                                          {"prompt": "Why?", "response": "No.", "label": False},
                                          {"prompt": "Why?", "response": "No.", "label": False}])
    folder = converted(mine)
    found = [(row["responses"], row["tiers"], row["label"]) for row in load_preferences(folder)]
    assert found == [(["So."], [[0]], True)] + 2 * [(["No."], [[0]], False)]
    assert answers(folder) == [("Why?", "So.")] and len(load_prompts(folder)) == 1


def test_thumbs_and_comparisons_do_not_mix(mine):
    write(mine, "preferences.jsonl", [*PAIR, {"prompt": "Why?", "response": "So.", "label": True}])
    with pytest.raises(UserError, match="put them into two folders"):
        converted(mine)


SFT_FORMS = [
    ({"prompt": "a", "response": "b"}, "a"),
    ({"prompt": "a", "completion": "b"}, "a"),
    ({"instruction": "a", "output": "b"}, "a"),
    ({"instruction": "a", "input": "", "output": "b"}, "a"),
    ({"instruction": "a", "input": "c", "output": "b"}, "a\n\nc"),
    ({"messages": [user("a"), assistant("b")]}, "a"),
    ({"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b")]}, "s\n\na"),
    ({"prompt": [user("a")], "response": "b"}, "a"),
]


@pytest.mark.parametrize("row, prompt", SFT_FORMS)
def test_demonstrations_in_every_form(mine, row, prompt):
    write(mine, "sft.jsonl", [row])
    assert answers(converted(mine)) == [(prompt, "b")]


def test_odd_characters_in_a_row_do_not_break_lines(mine):
    """U+2028 is a line separator to Python's splitlines(), but may stand inside a JSON string; blank lines
    and a BOM are no rows."""
    row = json.dumps({"prompt": "a\u2028b", "response": "c\u0085d"}, ensure_ascii=False)
    write(mine, "sft.jsonl", "\ufeff" + row + "\r\n\n")
    assert answers(converted(mine)) == [("a\u2028b", "c\u0085d")]


def test_a_table_may_begin_with_blank_lines(mine):
    write(mine, "sft.csv", "\n  \nprompt,response\nName a tree.,Linden.\n")
    assert answers(converted(mine)) == [("Name a tree.", "Linden.")]


def test_json_lines_that_are_named_json_are_read(mine):
    lines = [json.dumps({"prompt": f"p{i}", "response": "r"}) for i in range(3)]
    write(mine, "sft.json", "\n".join(lines))
    assert answers(converted(mine)) == [(f"p{i}", "r") for i in range(3)]


@pytest.mark.parametrize("value, unsafe", [
    (True, True), ("yes", True), ("True", True), (1, True), (None, False), ("", False), (False, False),
    ("no", False), ("0", False)])
def test_whether_a_prompt_is_unsafe_may_be_said_in_words(mine, value, unsafe):
    write(mine, "prompts.jsonl", [{"prompt": "How?", "unsafe": value}])
    assert [p["unsafe"] for p in load_prompts(converted(mine))] == [unsafe]


@pytest.mark.parametrize("rows, kind", [
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}],
     "preferences"),
    ([{"instruction": f"a{i}", "output": "b"} for i in range(9)], "sft"),
    ([{"text": f"document {i}"} for i in range(9)], "pretrain"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_one_file_is_read_as_what_its_keys_say(tmp_path, rows, kind):
    write(tmp_path, "train-00000.jsonl", rows)
    folder = converted(tmp_path / "train-00000.jsonl")
    found = {"preferences": load_preferences, "sft": load_sft, "pretrain": load_text}
    assert found[kind](folder) and bool(load_preferences(folder)) == (kind == "preferences")
    check_unchanged(tmp_path / "train-00000.jsonl", folder)


def test_one_file_that_says_nothing_is_told(tmp_path):
    write(tmp_path, "mine.jsonl", [{"sentiment": "a", "stars": 5}])
    with pytest.raises(UserError, match=r"line 1: its keys \(sentiment, stars\) are of no layout"):
        converted(tmp_path / "mine.jsonl")
    write(tmp_path, "mine.xlsx", "PK")
    with pytest.raises(UserError, match="save it as one of .jsonl"):
        converted(tmp_path / "mine.xlsx")


# ------------------------------------------------------------------------------------------------
# Rows that hold nothing, votes, splits
# ------------------------------------------------------------------------------------------------


def test_rows_without_a_comparison_are_dropped_counted_and_said(mine, capsys):
    """The same answer twice (also but for spaces), an empty answer, different prompts."""
    rows = [{"prompt": "a", "chosen": "x", "rejected": r} for r in ("y", "x", " x\n", "  ", "")]
    rows += [{"chosen": said("a", "x"), "rejected": said("b", "y")}]
    rows += [{"chosen": said("a", "x"), "rejected": said("a", "")}]
    write(mine, "preferences.jsonl", rows)
    assert pairs(converted(mine)) == [("a", "x", "y")]
    assert "6 of 7 rows dropped" in capsys.readouterr().out


def test_blank_demonstrations_are_dropped_counted_and_said(mine, capsys):
    write(mine, "sft.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "   "},
                              {"prompt": "a", "response": ""}, {"messages": [user("a"), assistant("")]},
                              {"messages": [user(" "), assistant("b")]}])
    assert answers(converted(mine)) == [("a", "b")]
    assert "4 of 5 rows dropped" in capsys.readouterr().out


def test_where_no_row_holds_anything_that_is_told(mine):
    write(mine, "preferences.jsonl", [{"prompt": "a", "chosen": "x", "rejected": "x"}])
    with pytest.raises(UserError, match="preferences.jsonl: none of its 1 rows"):
        converted(mine)


def test_answers_that_begin_with_their_prompt_are_said(mine, capsys):
    write(mine, "preferences.jsonl", [{"prompt": "Why? ", "chosen": "Why? So.", "rejected": "Why? No."},
                                      {"prompt": "Why?", "chosen": "Why? So.", "rejected": "No."}])
    converted(mine)
    out = " ".join(capsys.readouterr().out.split())
    assert "in 1 of 2 rows the answers begin with their own prompt" in out


def test_several_rows_about_two_answers_are_votes(mine, capsys):
    """The majority decides, whichever answer stands first; half and half is a tie; another aspect is another
    question; a margin is the mean. An answer that another row found worse is no demonstration."""
    def row(prompt, chosen, rejected, **more):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}

    write(mine, "preferences.jsonl", [
        row("a", "x", "y", margin=1), row("a", "y", "x", margin=3), row("a", "y", "x"),
        row("b", "x", "y"), row("b", "y", "x"),
        row("a", "x", "y", aspect="safety"), row("c", "x", "y", margin=2), row("a", "x", "z")])
    folder = converted(mine)
    found = [(r["prompt"], r["responses"], r["tiers"], r["aspect"], r.get("margin"))
             for r in load_preferences(folder)]
    assert found == [
        ("a", ["x", "y"], [[1], [0]], None, 2.0),
        ("b", ["x", "y"], [[0, 1]], None, None),
        ("a", ["x", "y"], [[0], [1]], "safety", None),
        ("c", ["x", "y"], [[0], [1]], None, 2.0),
        ("a", ["x", "z"], [[0], [1]], None, None),
    ]
    out = " ".join(capsys.readouterr().out.split())
    assert "8 votes make 5 comparisons" in out and "1 of 5 comparisons are a draw" in out
    assert "without 2 that another row found worse" in out and answers(folder) == [("c", "x")]


def test_a_prompt_is_in_one_split_whatever_its_file_and_spelling(mine):
    names = [f"What is thing {i}?" for i in range(60)]
    write(mine, "sft.jsonl", [{"messages": [user(p), assistant("Good.")]} for p in names])
    write(mine, "preferences.jsonl", [{"prompt": [user(p)], "chosen": [assistant("Good.")],
                                       "rejected": [assistant("Bad.")]} for p in names])
    write(mine, "prompts.jsonl", [{"prompt": p, "split": "test"} for p in names[:5]])
    folder, splits = converted(mine), {}
    for row in load_sft(folder) + load_preferences(folder) + load_prompts(folder):
        assert splits.setdefault(row["prompt"], row["split"]) == row["split"]
    expected = {p: data.split_of(p) for p in names}
    assert splits == expected | dict.fromkeys(names[:5], "test"), "said once, it holds for all files"


def test_a_prompt_held_out_by_one_row_is_held_out_whatever_the_others_say(mine):
    splits = ["train", "dev", "test", "train", "dev", None]
    rows = [{"prompt": p, "split": s} for p, turned in (("a", 1), ("b", -1)) for s in splits[::turned]]
    write(mine, "prompts.jsonl", [*rows, {"prompt": "c", "split": "train"}, {"prompt": "d", "split": "dev"}])
    found = [(p["prompt"], p["split"]) for p in load_prompts(converted(mine))]
    assert found == [("a", "test"), ("b", "test"), ("c", "train"), ("d", "dev")]


# ------------------------------------------------------------------------------------------------
# What is missing is derived
# ------------------------------------------------------------------------------------------------


def test_missing_files_are_derived_and_the_derivation_is_said(tmp_path, capsys):
    """With preferences alone: demonstrations are the chosen answers, prompts are theirs (each once), text is
    everything."""
    write(tmp_path, "preferences.jsonl", [*PAIR, {"prompt": "Why?", "chosen": "Third", "rejected": "fourth"}])
    folder = converted(tmp_path)
    out = capsys.readouterr().out
    assert all(f"no {kind} file" in out for kind in ("sft", "prompts", "pretrain"))
    assert all(len(line) <= 100 for line in out.splitlines())
    assert answers(folder) == [("Why?", "Because, \"so\"."), ("Où?", "Là 👍"), ("Why?", "Third")]
    assert [p["prompt"] for p in load_prompts(folder)] == ["Why?", "Où?"]
    train, held_out = load_text(folder)
    assert held_out and all(text in train + held_out for row in PAIR for text in row.values())


def test_demonstrations_alone_are_enough_for_prompts_and_text(tmp_path):
    write(tmp_path, "sft.jsonl", [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(30)])
    folder = converted(tmp_path)
    assert [p["prompt"] for p in load_prompts(folder)] == [f"p{i}" for i in range(30)]
    parts = [set(re.findall(r"r\d+", text)) for text in load_text(folder)]
    training = {row["response"] for row in load_sft(folder) if row["split"] == "train"}
    assert parts == [training, {f"r{i}" for i in range(30)} - training] and not (
        folder / "preferences.jsonl").exists()


def test_text_alone_is_enough_to_pretrain(mine, capsys):
    folder = converted(mine)
    assert load_text(folder) == data.hold_out(TEXT) and load_sft(folder) == load_prompts(folder) == []
    assert "no demonstrations" in capsys.readouterr().out


def test_text_rows_are_split_by_document(tmp_path):
    write(tmp_path, "pretrain.jsonl", [{"text": f"document {i}."} for i in range(100)])
    train, held_out = (set(part.split("\n\n")) for part in load_text(converted(tmp_path)))
    assert train == {f"document {i}." for i in range(100) if data.split_of(f"document {i}.") == "train"}
    assert held_out == {f"document {i}." for i in range(100)} - train


def test_prompts_alone_are_not_enough(tmp_path):
    write(tmp_path, "prompts.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match="no demonstrations"):
        converted(tmp_path)


# ------------------------------------------------------------------------------------------------
# What is wrong is told, with file and line, before anything is written
# ------------------------------------------------------------------------------------------------
MALFORMED = [
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen"\n',
     "line 2"),
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b"}\n', "line 1"),
    ("preferences.jsonl", "\n[1, 2]\n", "line 2"),
    ("preferences.jsonl", '{"prompt": "a", "chosen": 3, "rejected": "c"}\n', "line 1"),
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": [{"role": "user", "content": "c"}]}\n',
     "line 1"),
    ("preferences.jsonl", '{"chosen": "no transcript", "rejected": "either"}\n', "line 1"),
    ("preferences.jsonl", '{"prompt": [{"role": "alien", "content": "a"}], "chosen": "b", "rejected": "c"}\n',
     "line 1"),
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "aspect": "kind"}\n', "line 1"),
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 4}\n', "line 1"),
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}\n', "line 1"),
    ("preferences.jsonl", '{"prompt": "a", "response": "b", "label": 3}\n',
     '"label" must be true (thumbs up)'),
    ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": null}\n', '"rejected" is null'),
    ("preferences.jsonl", '{"prompt": "", "chosen": "b", "rejected": "c"}\n', "1 with an empty prompt"),
    ("preferences.csv", "prompt,chosen\na,b\n", "row 2"),
    ("preferences.json", '{"prompt": "a"}', "list of objects"),
    ("preferences.json", '[{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a"}]', "entry 2"),
    ("preferences.json", "[nonsense", "cannot be read as json"),
    ("sft.json", '[{"prompt": "a", "response": "b", "id": ' + "7" * 5000 + "}]", "cannot be read as json"),
    ("sft.jsonl", '{"prompt": "a", "response": "b", "id": ' + "7" * 5000 + "}", "line 1"),
    ("sft.json", "[" * 100000, "cannot be read as json"),
    ("sft.jsonl", '{"prompt": "a", "response": "b"}\n{"question": "a"}\n', "line 2"),
    ("sft.jsonl", '{"prompt": "a", "response": null}\n', "line 1"),
    ("sft.jsonl", '{"prompt": "", "response": "b"}\n', "1 with an empty prompt"),
    ("sft.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "1 without an answer"),
    ("sft.jsonl", '{"messages": []}\n', "1 without an answer"),
    ("sft.jsonl", '"just text"\n', "line 1"),
    ("sft.jsonl", '{"instruction": "a", "input": 3, "output": "b"}\n', "line 1"),
    ("sft.jsonl", '{"prompt": "a", "response": "b", "split": "holdout"}\n', "line 1"),
    ("sft.csv", "prompt,answer\na,b,too much\n", "row 2: has more cells than the header, which has 2"),
    ("sft.csv", 'prompt,response\na,b\nHow wide?,"5" screen"\n', "row 3"),
    ("sft.csv", "prompt,response\n", "no rows"),
    ("prompts.jsonl", '{"prompt": [{"role": "system", "content": "nobody asks"}]}\n', "line 1"),
    ("sft.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, '
     '{"role": "assistant", "content": "b"}]}', "line 1"),
    ("sft.jsonl", '{"prompt": "half a character: \\ud83d", "response": "b"}\n', "half a character"),
    ("prompts.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2"),
    ("prompts.jsonl", '{"prompt": "a"}\n3\n', "line 2"),
    ("prompts.jsonl", '{"prompt": "a", "unsafe": "maybe"}\n', '"unsafe" must be true or false'),
    ("preferences.jsonl", json.dumps({"chosen": [user("a"), assistant("b"), user("bye")],
                                      "rejected": [user("a"), assistant("b"), user("no")]}),
     "1 that do not end with an answer of the assistant"),
    ("pretrain.jsonl", '{"text": "a"}\n{"content": "b"}\n', "line 2"),
    ("pretrain.txt", " \n\n", "empty"),
    ("sft.jsonl", "", "empty"),
]


@pytest.mark.parametrize("name, text, where", MALFORMED)
def test_a_malformed_row_is_told_with_file_and_line(tmp_path, name, text, where):
    (tmp_path / "mine").mkdir()
    if not name.startswith("pretrain"):
        write(tmp_path / "mine", "pretrain.txt", TEXT)
    write(tmp_path / "mine", name, text)
    with pytest.raises(UserError) as error:
        converted(tmp_path / "mine")
    message = str(error.value)
    assert name in message and where in message and "\n" not in message
    assert not (tmp_path / "runs").exists(), "found before anything is written"


ZIPPED = gzip.compress(b"{}" * 99)


@pytest.mark.parametrize("name, raw", [
    ("sft.jsonl", b"\xff\xfe\x00"), ("sft.jsonl.gz", b"not gzip"), ("sft.jsonl.gz", ZIPPED[:-9]),
    ("sft.jsonl.gz", ZIPPED[:10] + b"\xff" * 20)], ids=["not UTF-8", "not gzip", "cut off", "damaged"])
def test_a_file_that_is_no_text_is_told(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / name))


def test_a_source_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        converted(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found nothing"):
        converted(tmp_path)
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(UserError, match="found notes.md"):
        converted(tmp_path)


@pytest.mark.parametrize("name, meant", [
    ("preference.jsonl", "did you mean preferences.jsonl"), ("prompt.csv", "did you mean prompts.csv"),
    ("preferences.jsonl.bz2", "unpack it first"), ("sft.zip", "unpack it first"),
    ("sft.xlsx", "save it as one of .jsonl"), ("sfts.json.gz", "did you mean sft.json.gz")])
def test_a_name_that_is_nearly_right_is_told(mine, capsys, name, meant):
    write(mine, name, "anything")
    with pytest.raises(UserError, match=f"{name}: .*{meant}"):
        converted(mine)
    kind = next(kind for kind in ("preferences", "prompts", "sft") if kind[:6] in name)
    write(mine, f"{kind}.jsonl", PAIR if kind == "preferences" else [{"prompt": "a", "response": "b"}])
    assert load_prompts(converted(mine)), "beside the right one it is nobody's"
    assert f"not read: {name}" in capsys.readouterr().out


def test_capital_letters_in_a_name_do_not_matter(mine):
    write(mine, "SFT.JSONL", json.dumps({"prompt": "a", "response": "b"}))
    assert answers(converted(mine)) == [("a", "b")]


def test_two_files_of_a_kind_are_told(mine):
    write(mine, "sft.jsonl", [{"prompt": "old?", "response": "old."}])
    write(mine, "sft.csv", [{"prompt": "new?", "response": "new."}])
    with pytest.raises(UserError, match="sft.csv and sft.jsonl are both here"):
        converted(mine)


# ------------------------------------------------------------------------------------------------
# The source and its copy
# ------------------------------------------------------------------------------------------------


def test_files_that_are_not_read_are_named(mine, capsys):
    write(mine, "preferences.jsonl", PAIR)
    (mine / "notes.md").write_text("no data")
    converted(mine)
    assert "not read" not in capsys.readouterr().out
    write(mine, "my_answers.jsonl", PAIR)
    converted(mine)
    out = " ".join(capsys.readouterr().out.split())
    assert "not read: my_answers.jsonl (did you mean preferences.jsonl?); expected pretrain.txt" in out


def test_text_comes_through_as_it_is(mine):
    text = "a\n\nb <|endoftext|> 👍\n" * 20
    write(mine, "pretrain.txt", text)
    assert "".join(load_text(converted(mine))) == text


def test_what_was_converted_once_is_converted_again(mine):
    """An interrupted conversion leaves nothing that the next one would keep."""
    write(mine, "preferences.jsonl", PAIR)
    folder = converted(mine)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {"pretrain.txt", "pretrain.held_out.txt", "sft.jsonl", "prompts.jsonl",
                             "preferences.jsonl", "source.json"}
    converted(mine)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (mine / "preferences.jsonl").unlink()
    assert load_preferences(converted(mine)) == []


def test_a_path_that_is_no_utf8_is_kept(tmp_path):
    source = tmp_path / "bad\udcff"  # what Python makes of the byte 255 in a name
    source.mkdir()
    write(source, "preferences.jsonl", PAIR)
    convert(source, tmp_path / "data")
    assert source_of(tmp_path / "data")["source"] == str(source.resolve())
    check_unchanged(source, tmp_path / "data")


def test_files_that_changed_since_are_told(mine):
    write(mine, "sft.jsonl", [{"prompt": "a", "response": "b"}])
    folder = converted(mine)
    check_unchanged(mine, folder)
    check_unchanged(f"{mine}/../mine/", folder)
    (mine / "notes.md").write_text("no file of ours")
    check_unchanged(mine, folder)
    write(mine, "prompts.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match="prompts.jsonl is new since .*--run NAME, or delete .*runs/tiny$"):
        check_unchanged(mine, folder)
    (mine / "prompts.jsonl").unlink()
    write(mine, "sft.jsonl", [{"prompt": "a", "response": "c"}])
    with pytest.raises(UserError, match="sft.jsonl has changed since"):
        check_unchanged(mine, folder)
    (mine / "sft.jsonl").unlink()
    with pytest.raises(UserError, match="sft.jsonl is gone since"):
        check_unchanged(mine, folder)


def test_another_source_is_told(mine, tmp_path):
    folder, other = converted(mine), tmp_path / "other"
    other.mkdir()
    write(other, "pretrain.txt", TEXT + "one more")
    with pytest.raises(UserError, match=f"was made from {mine}, and the files of --data {other} are others"):
        check_unchanged(other, folder)


def test_the_same_files_in_another_place_are_the_same(mine, tmp_path):
    """A project that was moved, or a copy: what counts is what is in the files."""
    folder = converted(mine)
    moved = mine.rename(tmp_path / "moved")
    check_unchanged(moved, folder)
    write(moved, "pretrain.txt", TEXT + "one more")
    with pytest.raises(UserError, match="are others"):
        check_unchanged(moved, folder)


def test_too_little_text_to_learn_to_write_from():
    assert enough(1_132_797, 479_328) == "", "the tiny world is enough"
    assert "10,000 tokens for 479,328 parameters" in enough(10_000, 479_328)
    assert "--init" in enough(10_000, 479_328)


# ------------------------------------------------------------------------------------------------
# The data as the model sees them
# ------------------------------------------------------------------------------------------------


def test_tokens_are_shown_with_their_marks(enc, capsys):
    ids = data.encode_prompt(enc, "A dog is")
    lab.show.show_tokens(enc, (ids, "0" * len(ids)), (data.encode_response(enc, "a furry mammal."), "11111"))
    tokens, marks = capsys.readouterr().out.splitlines()
    assert tokens == "  tokens    <|user|>|A| dog| is|<|assistant|>| a| furry| mammal|.|<|endoftext|>"
    assert marks == "            0        0 0    0   0             1  1      1       1 1"


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_what_is_shown_fits_the_terminal(enc, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "What is a cat?\n" * 30 + "日本語" * 20
    lab.show.show_text("prompt", text)
    ids = enc.encode_ordinary(text)
    lab.show.show_tokens(enc, (ids, "1" * len(ids)))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= min(columns, 100) for line in lines)
    assert len(lines[0]) > min(columns, 100) - 3 and " ... " in lines[0]


@pytest.mark.parametrize("rows, labels", [
    (PAIR, ("chosen", "rejected")),
    ([{"prompt": "Why?", "response": "So.", "label": True},
      {"prompt": "Why?", "response": "No.", "label": False}],
     ("thumb up", "thumb down")),
    ([PAIR[0], {**PAIR[0], "chosen": PAIR[0]["rejected"], "rejected": PAIR[0]["chosen"]}], ("a draw",)),
], ids=["comparisons", "thumbs", "draw"])
def test_a_users_data_are_shown(mine, monkeypatch, capsys, rows, labels):
    """Without a run of them there are no files afterwards."""
    monkeypatch.chdir(mine.parent)
    write(mine, "preferences.jsonl", rows)
    write(mine, "sft.jsonl", [{"prompt": "a", "response": "b"}])
    lab.show.main(["--data", "mine"])
    out = capsys.readouterr().out
    words = ("not there yet", "pretrain.txt", "sft.jsonl", *labels, "<|endoftext|>")
    assert all(word in out for word in words)
    assert not (mine.parent / "runs").exists()


def test_the_data_of_a_run_are_shown(mine, monkeypatch, capsys):
    """As they were converted, and with its rankings."""
    monkeypatch.chdir(mine.parent)
    write(mine, "sft.jsonl", [{"prompt": "a", "response": "b"}])
    run = mine.parent / "runs/tiny-mine"
    convert(mine, run / "data")
    (run / "rankings.jsonl").write_text(json.dumps(
        {"prompt": "a", "responses": ["x", "y"], "tiers": [[1], [0]], "split": "train"}) + "\n")
    capsys.readouterr()
    lab.show.main(["--data", "mine"])
    out = capsys.readouterr().out
    assert "not there yet" not in out and "place 1   y" in out and "place 2   x" in out
    write(mine, "pretrain.txt", TEXT + "more\n")
    with pytest.raises(UserError, match="pretrain.txt has changed"):
        lab.show.main(["--data", "mine"])
