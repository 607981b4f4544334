"""Every layout of a user's row that is understood: the right prompt, answers, winner and turns come out, and
the nearest wrong row gets its sentence. The rows are invented."""
import json
from pathlib import Path

import pytest

import data
from data import UserError
from lab.files import KINDS, File
from lab.formats import convert, read_kind
from lab.layouts import LAYOUTS


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def write(path, rows):
    """Rows as JSON Lines, or the text as it is."""
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows),
                    encoding="utf-8", newline="")
    return path


def understood(folder, kind, rows, name="rows.jsonl"):
    """(rows, all remarks as one text) of a file of a kind that is given alone."""
    found, remarks = read_kind([File(write(folder / name, rows))], kind)
    return found, " ".join(remarks)


def verdict(row):
    """(prompt, [[answers of each tier]], the rest that a row says)."""
    tiers = [[row["responses"][i] for i in tier] for tier in row["tiers"]]
    more = {key: row[key] for key in ("aspect", "margin", "split", "label") if row.get(key) is not None}
    return row["prompt"], tiers, more


# ------------------------------------------------------------------------------------------------
# Preferences
# ------------------------------------------------------------------------------------------------
HI = [user("Hi"), assistant("Hello."), user("Why?")]
WIN, TIE = [["Yes"], ["No"]], [["Yes", "No"]]
POST = {"post": "My cat is fat.", "title": "Cat", "subreddit": "pets", "id": "x"}
ARENA = {f"conversation_{x}": [user("Why?"), assistant(text)] for x, text in (("a", "Yes"), ("b", "No"))}
TREE = {"role": "prompter", "text": "Why?", "replies": [
    {"role": "assistant", "text": "Meh", "rank": 2, "replies": []},
    {"role": "assistant", "text": "Yes", "rank": 0, "replies": [
        {"role": "prompter", "text": "So?", "replies": [
            {"role": "assistant", "text": "Thus", "rank": 1},
            {"role": "assistant", "text": "So", "rank": 0}]}]},
    {"role": "assistant", "text": "No", "rank": 1, "replies": []},
    {"role": "assistant", "text": "Spam", "rank": 3, "deleted": True}]}
FLAT = [{"message_id": i, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en"}
        for i, parent, role, text, rank in (
            ("2", "1", "assistant", "No", 1.0), ("1", None, "prompter", "Why?", None),
            ("3", "1", "assistant", "Yes", 0.0))]
TWO = {"prompt": "Why?", "response_1": "Yes", "response_2": "No"}

PREFERENCES = [  # (layout, rows, [(prompt, tiers, what else)])
    ("chosen and rejected", [{"prompt": "Why?", "chosen": "Yes", "rejected": "No"}], [("Why?", WIN, {})]),
    ("chosen and rejected", [{"system": "Be curt.", "question": "Why?", "chosen": "Yes", "rejected": "No"}],
     [("Be curt.\n\nWhy?", WIN, {})]),
    ("TRL chat messages", [{"conversations": [{"from": "human", "value": "Why?"}],
                            "chosen": {"from": "gpt", "value": "Yes"},
                            "rejected": {"from": "gpt", "value": "No"}}], [("Why?", WIN, {})]),
    ("Anthropic transcripts", [{"chosen": "\n\nHuman: Why?\n\nAssistant: Yes",
                                "rejected": "\n\nHuman: Why?\n\nAssistant: No"}], [("Why?", WIN, {})]),
    ("TRL chat messages", [{"chosen": [*HI, assistant("Yes")], "rejected": [*HI, assistant("No")]}],
     [(HI, WIN, {})]),
    ("TRL with the prompt inside", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
     [("The sky is", [["blue."], ["green."]], {})]),
    ("PKU-SafeRLHF", [{"prompt": p, "response_0": "No", "response_1": "Yes", "better_response_id": 1,
                       "safer_response_id": i, "is_response_0_safe": True, "is_response_1_safe": i == 1}
                      for p, i in (("Why?", 0), ("Who?", 1))],
     [("Why?", WIN, {"aspect": "helpful"}), ("Why?", WIN[::-1], {"aspect": "safety"}),
      ("Who?", WIN, {"aspect": "helpful"}), ("Who?", WIN, {"aspect": "safety"})]),
    ("HelpSteer preferences", [{**TWO, "preference_strength": s} for s in (-3, 0)],
     [("Why?", WIN, {"margin": 3}), ("Why?", TIE, {})]),
    ("HelpSteer preferences", [{"context": HI, "response1": "No", "response2": "Yes",
                                "overall_preference": 1}],
     [(HI, WIN, {"margin": 1})]),
    ("HelpSteer scores", [{"prompt": p, "response": r, "helpfulness": h, "verbosity": 4}
                          for p, r, h in (("Why?", "No", 1), ("Ow?", "Yes", 2), ("Why?", "Yes", 3),
                                          ("Ow?", "No", 2))],
     [("Why?", WIN, {"margin": 2}), ("Ow?", TIE, {})]),
    ("Stanford Human Preferences", [{"history": "Why?", "human_ref_A": a, "human_ref_B": b, "labels": label}
                                    for a, b, label in (("Yes", "No", 1), ("No", "Yes", 0))],
     2 * [("Why?", WIN, {})]),
    ("WebGPT comparisons", [{"question": {"full_text": "Why?", "id": 3}, "answer_0": "No", "answer_1": "Yes",
                             "score_0": -s, "score_1": s} for s in (1.0, 0.0)],
     [("Why?", WIN, {"margin": 3.0}), ("Why?", [["No", "Yes"]], {})]),
    ("summarize_from_feedback", [{"info": POST, "summaries": [{"text": "No"}, {"text": "Yes"}], "choice": 1,
                                  "split": "valid1"}],
     [("SUBREDDIT: pets\n\nTITLE: Cat\n\nPOST: My cat is fat.\n\nTL;DR:", WIN, {"split": "dev"})]),
    ("LMSYS arena", [ARENA | {"winner": "model_a"}], [("Why?", WIN, {})]),
    ("LMSYS arena", [{"conversation_a": ARENA["conversation_b"], "conversation_b": ARENA["conversation_a"],
                      "winner": w} for w in ("model_b", "model_b", "tie (bothbad)", "tie")],
     [*2 * [("Why?", WIN, {})], *2 * [("Why?", [["No", "Yes"]], {})]]),
    ("LMSYS arena, Kaggle's table", [
        {"prompt": ["Hi", "Why?"], "response_a": ["Hello.", "Yes"], "response_b": ["Hello.", "No"],
         "winner_model_a": a, "winner_model_b": 0, "winner_tie": 1 - a} for a in (1, 0)],
     [(HI, WIN, {}), (HI, TIE, {})]),
    ("OpenAssistant trees", [{"message_tree_id": "x", "prompt": TREE}],
     [("Why?", [["Yes"], ["No"], ["Meh"]], {}),
      ([user("Why?"), assistant("Yes"), user("So?")], [["So"], ["Thus"]], {})]),
    ("OpenAssistant messages", FLAT, [("Why?", WIN, {})]),
    ("Nectar", [{"prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: ",
                 "answers": [{"answer": "Meh", "rank": 3.0}, {"answer": "Yes", "rank": 1.0},
                             {"answer": "No", "rank": 3.0}]}], [(HI, [["Yes"], ["Meh", "No"]], {})]),
    ("UltraFeedback", [{"instruction": "Why?", "completions": [
        {"response": "No", "overall_score": 2.5, "model": "x"}, {"response": "Yes", "overall_score": 8}]}],
     [("Why?", WIN, {})]),
    ("ranked answers", [{"prompt": "Why?", "responses": ["No", "Yes", "Meh"], **more}
                        for more in ({"ranks": [2, 1, 2]}, {"scores": [0.5, 3, 0.5]})],
     2 * [("Why?", [["Yes"], ["No", "Meh"]], {})]),
    ("ranked answers", [{"query": "Why?", "responses": ["No", "Yes"], "rewards": [1, 2]}],
     [("Why?", WIN, {})]),
    ("rankings of this program", [{"prompt": "Why?", "responses": ["No", "Yes", "Meh"],
                                   "tiers": [[1], [0, 2]], "aspect": "overall", "split": "test"}],
     [("Why?", [["Yes"], ["No", "Meh"]], {"split": "test"})]),
    ("LLMBar, AlpacaFarm", [{"input": "Why?", "output_1": "No", "output_2": "Yes", "label": 2}],
     [("Why?", WIN, {})]),
    ("LLMBar, AlpacaFarm", [{"instruction": "Add", "input": "1 1", "output_1": "Yes", "output_2": "No",
                             "preference": p} for p in (1, {"label": 1}, 1.5)],
     [("Add\n\n1 1", WIN, {}), ("Add\n\n1 1", WIN, {}), ("Add\n\n1 1", TIE, {})]),
    ("thumbs up and down", [{"prompt": [user("Why?")], "completion": [assistant("Yes")], "label": True},
                            {"prompt": "Why?", "response": "No", "label": 0.0}],
     [("Why?", [["Yes"]], {"label": True}), ("Why?", [["No"]], {"label": False})]),
    ("thumbs up and down", [{"prompt": "Why?", "response": "Yes", "is_safe": True},
                            {"messages": [user("Why?"), assistant("No")], "kto_tag": "false"},
                            {"query": "Why?", "answer": "No", "thumbs_up": "thumbs_down"},
                            {"query": "Why?", "answer": "No", "rating": "bad"}],
     [("Why?", [["Yes"]], {"label": True}), *3 * [("Why?", [["No"]], {"label": False})]]),
    ("TRL chat messages", [{"input": {"messages": [user("Why?")]}, "preferred_output": [assistant("Yes")],
                            "non_preferred_output": [assistant("No")]}], [("Why?", WIN, {})]),
    ("ranked answers", [{"instruction": "Why?", "generations": ["No", "Yes"], "ratings": [1, 5]},
                        {"prompt": "Why?", "completions": ["No", "Yes"], "scores": [0.1, 0.2]}],
     [("Why?", [["Yes"], ["No"]], {}), ("Why?", [["Yes"], ["No"]], {})]),
    ("Nectar", [{"question": "Why?", "answers": [{"text": "No", "pm_score": 0},
                                                 {"text": "Yes", "pm_score": 4}]}], [("Why?", WIN, {})]),
    ("an answer and a rejected one", [
        {"messages": [user("Why?"), assistant("Yes")], "rejected_response": "No"},
        {"messages": [user("Why?"), assistant("Yes")], "rejected_messages": [user("Why?"), assistant("No")]},
        {"messages": [user("Why?"), assistant("Yes")], "rejected_messages": [assistant("No")]},
        {"query": "Why?", "response": "Yes", "rejected_response": "No"},
        {"instruction": "Why?", "output": "Yes", "rejected": "No"}], 5 * [("Why?", WIN, {})]),
    ("answers with scores", [{"prompt": p, "response": r, "score": s} for p, r, s in (
        ("Why?", "No", -1), ("So?", "No", "2"), ("Why?", "Yes", 0.5), ("So?", "Yes", 3))],
     [("Why?", WIN, {}), ("So?", WIN, {})]),
    ("answers with scores", [{"question": "Why?", "answer": "No", "rank": 2},
                             {"question": "Why?", "answer": "Yes", "rank": 1}], [("Why?", WIN, {})]),
    ("thumbs up and down", [{"question": "Why?", "answer": "Yes", "label": "1"},
                            {"instruction": "Why?", "output": "No", "label": False},
                            {"messages": [user("Why?"), assistant("No")], "label": 0}],
     [("Why?", [["Yes"]], {"label": True}), *2 * [("Why?", [["No"]], {"label": False})]]),
    ("a table of two answers", [{"Prompt": "Why?", "Response A": "No", "Response B": "Yes", "Preferred": w}
                                for w in ("B", "b", "Response B", "response_b", "tie", "Yes")],
     [*4 * [("Why?", WIN, {})], ("Why?", [["No", "Yes"]], {}), ("Why?", WIN, {})]),
    ("a table of two answers", [{"question": "Why?", "answer1": "No", "answer2": "Yes", "winner": w,
                                 "model_1": "x", "model_2": "y"} for w in ("2", "Answer 2", "y", "second")],
     4 * [("Why?", WIN, {})]),
]


def ids(table):
    return [f"{row[0]} {i}" for i, row in enumerate(table)]


@pytest.mark.parametrize("layout, rows, expected", PREFERENCES, ids=ids(PREFERENCES))
def test_preferences(tmp_path, layout, rows, expected):
    found, said = understood(tmp_path, "preferences", rows)
    assert [verdict(row) for row in found] == expected
    assert said.split(" rows.jsonl")[0].split(", which")[0].startswith(layout)


DEMONSTRATIONS = [  # (layout, rows, [(prompt, answer)])
    ("chat messages", [{"messages": [system("Be curt."), *HI, assistant("Yes")]}],
     [("Be curt.\n\nHi", "Hello."), ([user("Be curt.\n\nHi"), *HI[1:]], "Yes")]),
    ("chat messages", [{"messages": [user("Who?"), assistant("Ann")], "context": "Ann came."}],
     [("Ann came.\n\nWho?", "Ann")]),
    ("ShareGPT", [{"system": "s", "conversations": [{"from": "human", "value": "Why?"},
                                                    {"from": "gpt", "value": "Yes"}]}],
     [("s\n\nWhy?", "Yes")]),
    ("self-instruct", [{"instruction": "Add", "instances": [{"input": "1 1", "output": "2"},
                                                            {"input": "", "output": "0"}]}],
     [("Add\n\n1 1", "2"), ("Add", "0")]),
    ("OpenAssistant trees", [{"prompt": TREE}],
     [("Why?", "Yes"), ([user("Why?"), assistant("Yes"), user("So?")], "So")]),
    ("OpenAssistant messages", FLAT, [("Why?", "Yes")]),
    ("Dolly", [{"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "qa"}],
     [("Who?\n\nAnn came.", "Ann")]),
    ("Dolly", [{"instruction": "Who?", "context": context, "response": "Ann"}
               for context in (["Ann came.", "Bo left."], "['Ann came.', 'Bo left.']")],
     2 * [("Who?\n\nAnn came.\n\nBo left.", "Ann")]),
    ("Dolly", [{"instruction": "By this: Ann came.\nWho?", "context": "Ann came.", "response": "Ann"}],
     [("By this: Ann came.\nWho?", "Ann")]),
    ("Alpaca", [{"instruction": "Add", "input": "1 1", "output": "2"}], [("Add\n\n1 1", "2")]),
    ("Alpaca", [{"instruction": "Sort", "input": "['b', 'a']", "output": "a b"}],
     [("Sort\n\n['b', 'a']", "a b")]),
    ("Alpaca", [{"instruction": "Translate word", "input": "word", "output": "Wort"}],
     [("Translate word\n\nword", "Wort")]),
    ("Alpaca", [{"instruction": "Add", "input": "1 1", "output": "2", "prompt": "Add 1 1: 2"}],
     [("Add\n\n1 1", "2")]),
    ("GSM8K", [{"question": "1+1?", "answer": "It is 2.\n#### 2"}], [("1+1?", "It is 2.\n#### 2")]),
    ("prompt and answer", [{"prompt": "Why?", key: "Yes"} for key in ("response", "completion", "answer")],
     3 * [("Why?", "Yes")]),
    ("prompt and answer", [{"prompt": None, "query": "Why?", "answer": "Yes"}], [("Why?", "Yes")]),
    ("prompt and answer", [{"prompt": "Why?", "response": "Yes", "messages": None}], [("Why?", "Yes")]),
    ("prompt and answer", [{"prompt": "\n\nHuman: Why?", "response": "\n\nAssistant: Yes"}],
     [("Why?", "Yes")]),
    ("prompt and answer", [{"prompt": [user("Why?")], "completion": [assistant("Yes")]}], [("Why?", "Yes")]),
    ("prompt and answer", [{"prompt": "Why?", "history": history, "response": "Yes"}
                           for history in ([["Hi", "Hello."]], HI[:2], "\n\nHuman: Hi\n\nAssistant: Hello.")],
     3 * [(HI, "Yes")]),
]


@pytest.mark.parametrize("layout, rows, expected", DEMONSTRATIONS, ids=ids(DEMONSTRATIONS))
def test_demonstrations(tmp_path, layout, rows, expected):
    found, said = understood(tmp_path, "sft", rows)
    assert [(row["prompt"], row["response"]) for row in found] == expected and said.startswith(layout)


def test_the_loss_is_on_each_answer_of_a_dialogue_and_on_nothing_else(tmp_path, enc):
    rows, _ = understood(tmp_path, "sft", [{"messages": [system("Be curt."), *HI, assistant("Yes")]}])
    encoded = [(data.encode_prompt(enc, row["prompt"]), data.encode_response(enc, row["response"]))
               for row in rows]
    _, targets, mask = data.sft_batch(encoded, data.special_id(enc, "pad"))
    learned = [data.decode_response(enc, ids, kept) for ids, kept in zip(targets, mask, strict=True)]
    assert learned == ["Hello.", "Yes"]


def test_every_layout_has_a_row_here():
    tested = {("preferences", name) for name, *_ in PREFERENCES}
    tested |= {("sft", name) for name, *_ in DEMONSTRATIONS}
    assert {(x.kind, x.name) for x in LAYOUTS} - tested == {("pretrain", "documents"), ("prompts", "prompts")}


NAMED = [row for row in PREFERENCES if row[0] != "answers with scores"]


@pytest.mark.parametrize("layout, kind, rows", [
    *((name, "preferences", rows) for name, rows, _ in NAMED),
    *((name, "sft", rows) for name, rows, _ in DEMONSTRATIONS if "OpenAssistant" not in name)],
    ids=ids(NAMED + [row for row in DEMONSTRATIONS if "OpenAssistant" not in row[0]]))
def test_a_file_alone_is_told_by_its_keys(tmp_path, capsys, layout, kind, rows):
    """Whatever it is called; and what was understood is the first thing that is said. (A score beside an
    answer may be anything: only in a file called preferences it compares them.)"""
    many = [{**row, "n": i} for i in range(9) for row in rows]
    convert(write(tmp_path / "mine.jsonl", many), tmp_path / "run/data")
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("mine.jsonl: ") and f", {layout} (train" in said
    assert bool(data.load_preferences(tmp_path / "run/data")) == (kind == "preferences")


# ------------------------------------------------------------------------------------------------
# The nearest wrong row
# ------------------------------------------------------------------------------------------------
PAIR = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
RANKED = {"prompt": "Why?", "responses": ["a", "b"]}
WRONG = [  # (kind, row, what is said)
    ("sft", PAIR, "are those of preferences (chosen and rejected), and these should be demonstrations: "
                  "should the file be called preferences?"),
    ("preferences", {"prompt": "Why?", "response": "Yes"}, "those of demonstrations (prompt and answer)"),
    ("prompts", {"text": "Once."}, "those of texts"),
    ("preferences", {"prompt": "Why?", "chosen": "Yes"},
     'nearly those of chosen and rejected, which needs "rejected", too'),
    ("preferences", {"prompt": "Why?", "response_a": "a", "response_b": "b"},
     'nearly those of a table of two answers, which needs "preferred"'),
    ("preferences", {**TWO}, "nearly those of HelpSteer preferences"),
    ("preferences", {"prompt": "Why?", "chosen": "Yes", "rejectd": "No"}, 'which needs "rejected"'),
    ("sft", {"instruction": "Add", "input": "1 1"}, "those of prompts (prompts), and these should be demons"),
    (None, {"stars": 5, "review": "fine"}, "its keys (review, stars) are of no layout that is known: Anthro"),
    ("preferences", {**PAIR, "winner": "B"}, '"winner" says "b" beside "chosen" and "rejected"'),
    ("preferences", {**PAIR, "label": 0}, '"label" says "0"'),
    ("preferences", {**PAIR, "preference_strength": 2}, '"preference_strength" says something about the'),
    ("preferences", {**TWO, "preference_strength": 4}, "must be a number from -3 to 3, found 4"),
    ("preferences", {**ARENA, "winner": "gpt"}, '"winner" must be A, B or tie, found "gpt"'),
    ("preferences", {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "preferred": 1},
     '"preferred" must be A, B or tie, found 1'),
    ("preferences", {"input": "Why?", "output_1": "a", "output_2": "b", "label": 0}, "must be 1, 2 or tie"),
    ("preferences", {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 2},
     '"labels" must be a number from 0 to 1, found 2'),
    ("preferences", {"prompt": "Why?", "response_0": "a", "response_1": "b", "better_response_id": 2},
     '"better_response_id" must be a number from 0 to 1, found 2'),
    ("preferences", {**RANKED, "ranks": [1]}, '"ranks" a number for each'),
    ("preferences", {**RANKED, "ranks": [1, "best"]}, '"ranks" must be a number, found "best"'),
    ("preferences", {**RANKED, "tiers": [[0], [2]]}, '"tiers" must hold places of "responses"'),
    ("preferences", {**RANKED, "tiers": [[0], [1]], "pairs": [[0, 5, 0.5]]}, '"pairs", where there are some'),
    ("preferences", {"prompt": "Why?", "answers": ["a", "b"]}, "says of no answer how good it is"),
    ("preferences", {"prompt": ["Why?"], "response_a": ["a"], "response_b": ["b"], "winner_model_a": 1,
                     "winner_model_b": 1, "winner_tie": 0}, "must be 1, found"),
    ("preferences", {"info": POST, "summaries": [{"text": "a"}], "choice": 0}, "must be two objects"),
    ("preferences", {"prompt": "Why?", "response": "a", "label": "unsafe"}, "must be true (thumbs up)"),
    ("sft", {"prompt": "Why?", "response": "a", "label": False}, "reads like thumbs up or down: call the"),
    ("sft", {"prompt": "Why?", "response": "a", "chosen": False}, '"chosen" false reads like thumbs up or'),
    ("sft", {"prompt": "Why?", "response": "a", "feedback": "thumbs_down"}, '"feedback" "thumbs_down" reads'),
    ("preferences", {**TWO, "preference": -1}, "must be 1, 2 or tie, found -1"),
    ("preferences", {**TWO, "preference": "-2"}, 'must be 1, 2 or tie, found "-2"'),
    ("preferences", {**TWO, "vote": {"response_2": 1}}, 'must be 1, 2 or tie, found {"response_2": 1}'),
    ("preferences", {**TWO, "preference_strength": 3, "better_response": "1"}, '"better_response" says some'),
    ("preferences", {**PAIR, "best": "rejected"}, '"best" says something about the answers'),
    ("preferences", {"prompt": "Which?", "response_a": "Both", "response_b": "Left", "preferred": "Both"},
     'must be A, B or tie, found "Both"'),
    ("preferences", {"prompt": "Which?", "response_1": "2", "response_2": "1", "preferred": "1"},
     'must be 1, 2 or tie, found "1"'),
    ("preferences", {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "chosen": "B",
                     "rejected": "A"}, '"chosen" is neither "response_a" nor "response_b"'),
    ("preferences", {"prompt": "Why?", "response": "Yes", "helpfulness": 3, "split": ["train"]},
     '"split" must be train, dev or test'),
    ("preferences", {**TWO, "response_3": "c", "preferred": "1"}, 'a third answer, "response_3"'),
    ("preferences", {**TWO, "preference": 0}, "must be 1, 2 or tie, found 0"),
    ("preferences", {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0.5},
     "must be 0 or 1"),
    ("preferences", {"prompt": "Why?", "response_0": "a", "response_1": "b", "better_response_id": 0.5},
     "must be 0 or 1, found 0.5"),
    ("preferences", {"prompt": "Why?", "response_a": "a", "response_b": "b", "winner_model_a": 0.5,
                     "winner_model_b": 0.5}, "must be 0 or 1, found 0.5"),
    ("preferences", {"prompt": "Why?", "pos_resp": "a", "neg_resp": "b"}, "of no layout that is known"),
    ("sft", {"prompt": "Why?", "history": [["a", 3]], "response": "b"}, "pairs of texts"),
    ("sft", {"instruction": "Add", "instances": ["2"]}, "expected an object"),
    ("sft", {"messages": [user("Why?"), {"role": "alien", "content": "b"}]}, "a message is"),
    ("prompts", {"prompt": "Why?", "unsafe": "perhaps"}, '"unsafe" must be true or false'),
]


@pytest.mark.parametrize("kind, row, said", WRONG, ids=range(len(WRONG)))
def test_a_row_that_is_nearly_right_gets_its_sentence(tmp_path, kind, row, said):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError) as error:
        read_kind([File(path)], kind) if kind else convert(path, tmp_path / "data")
    assert "rows.jsonl, line 1: " in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------
# The table of the pages
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["docs/your-own-data.md", "docs/zh/your-own-data.md"])
def test_the_pages_have_the_table_of_the_code(page):
    """Each layout with its file and keys, of several that serve the first, and no other."""
    text = (Path(__file__).parent.parent / page).read_text(encoding="utf-8")
    rows = {line for line in text.split("\n") if line.startswith(tuple(f"| {kind} |" for kind in KINDS))}
    keys = [", ".join(f"`{key.split('|')[0]}`" for key in layout.keys.split()) for layout in LAYOUTS]
    assert rows == {f"| {layout.kind} | {layout.name} | {names} |"
                    for layout, names in zip(LAYOUTS, keys, strict=True)}
