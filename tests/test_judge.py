"""The AI in the annotator's chair: labels and ratings by hand, our own GPT, a model behind a server."""

import math
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import completion

from data import UserError, batch_pairs, comparisons, load_rows
from lab import judges
from lab.cli import JudgeKnobs
from lab.judges import load_judge
from world.judge import AI, PREAMBLES, OwnModel, expected_rating, is_preamble, preambles, read_preamble
from world.labelers import RankingFile, rank_all
from world.server import Server

SILENT = {"overall": ""}


class Told:
    """It gives what it is told: next(text) -> {word: probability} or {}; notes(text) -> its notes."""

    name = "told"

    def __init__(self, next, notes=None, form="own"):
        self.next, self.notes, self.asked, self.noted = next, notes, [], []
        self.form = form

    def next_token(self, texts, words):
        self.asked += texts
        return [{w: math.log(p) for w, p in self.next(text).items() if w in words} for text in texts]

    def write(self, texts, max_new_tokens):
        self.noted += texts
        return [self.notes(text) for text in texts]


def answers_in(text):
    """The two answers in a comparison as the judge reads it."""
    return [line.split("? ", 1)[1] for line in text.split("\n") if line[:2] in ("1:", "2:")]


def first_wins(text):
    return {"1": 0.9, "2": 0.1}


def longer_wins(text):
    one, two = answers_in(text)
    return {"1": 0.9, "2": 0.1} if len(one) > len(two) else {"1": 0.1, "2": 0.9}


# ------------------------------------------------------------------------------------------------
# Labels
# ------------------------------------------------------------------------------------------------


def test_a_label_is_the_softmax_over_1_and_2():
    judge = AI(Told(lambda text: {"1": 0.6, "2": 0.2}), SILENT, both_orders=False)
    wins = judge.label(["What?"], [["a", "b"]])
    assert wins[0, 0, 1].item() == pytest.approx(0.75) and wins[0, 1, 0].item() == pytest.approx(0.25)


def test_both_orders_are_averaged():
    """a before b: 0.8 for the first; b before a: 0.7 for the first, so 0.3 for a. Mean 0.55."""
    judge = AI(
        Told(lambda text: {"1": 0.8, "2": 0.2} if answers_in(text) == ["a", "b"] else {"1": 0.7, "2": 0.3}),
        SILENT,
    )
    assert judge.label(["What?"], [["a", "b"]])[0, 0, 1].item() == pytest.approx(0.55)
    assert (judge.pairs, judge.same_position, judge.first_wins) == (1, 1, 1)


def test_a_judge_that_always_says_1_prefers_nothing():
    judge = AI(Told(lambda text: {"1": 0.99, "2": 0.01}), SILENT)
    wins = judge.label(["What?"], [["a", "b", "c"]])[0]
    assert all(wins[i, j].item() == pytest.approx(0.5) for i in range(3) for j in range(3) if i != j)
    assert judge.same_position == judge.pairs == 3
    one_order = AI(Told(lambda text: {"1": 0.99, "2": 0.01}), SILENT, both_orders=False)
    assert one_order.label(["What?"], [["a", "b"]])[0, 0, 1].item() == pytest.approx(0.99)


def test_swapped_answers_swap_the_label():
    judge = AI(
        Told(lambda text: {"1": 0.2 + 0.05 * len(answers_in(text)[0]), "2": 0.03 * len(answers_in(text)[1])}),
        SILENT,
    )
    there, back = judge.label(["What?"] * 2, [["aaaa", "b"], ["b", "aaaa"]])
    assert there[0, 1].item() == pytest.approx(back[1, 0].item(), abs=1e-6)
    assert there[0, 1].item() + there[1, 0].item() == pytest.approx(1)


def test_every_pair_of_every_question_keeps_its_place():
    judge = AI(Told(longer_wins), SILENT)
    wins = judge.label(["What?", "Who?"], [["a", "aaa", "aa"], ["bb", "b"]])
    assert wins.shape == (2, 3, 3)
    assert wins[0, 1, 0] > 0.8 and wins[0, 1, 2] > 0.8 and wins[0, 2, 0] > 0.8 and wins[0, 0, 1] < 0.2
    assert wins[1, 0, 1] > 0.8 and wins[1, :, 2].isnan().all() and wins[1, 2].isnan().all()
    assert judge.same_position == 0
    assert all(text.startswith("1: What? ") for text in judge.model.asked[:3])


def test_a_missing_word_has_no_chance_and_without_both_there_is_no_label():
    judge = AI(Told(lambda text: {"1": 0.3}), SILENT, both_orders=False)
    assert judge.label(["What?"], [["a", "b"]])[0, 0, 1].item() > 0.999
    silent = AI(Told(lambda text: {} if "Who" in text else {"1": 0.9, "2": 0.1}), SILENT)
    wins = silent.label(["What?", "Who?"], [["a", "b"], ["a", "b"]])
    assert wins[1].isnan().all() and silent.silent == 1 and "1 pairs without a verdict" in silent.summary()
    with pytest.raises(UserError, match="says neither 1 nor 2 about any of 1 pairs"):
        AI(Told(lambda text: {}), SILENT).label(["What?"], [["a", "b"]])


def test_an_order_in_which_it_was_silent_counts_for_no_position():
    """Silent where a comes first: the label is that of the other order alone."""
    judge = AI(Told(lambda text: {} if answers_in(text) == ["a", "b"] else {"1": 0.1, "2": 0.9}), SILENT)
    assert judge.label(["What?"], [["a", "b"]])[0, 0, 1].item() == pytest.approx(0.9)
    assert (judge.pairs, judge.silent, judge.first_wins, judge.same_position) == (1, 0, 0, 0)
    judge.label(["What?"], [["c", "d"]])
    assert "won in both orders in 1.00 of them" in judge.summary(), "of the pair that it has seen in both"
    judge = AI(Told(lambda text: {} if answers_in(text) == ["b", "a"] else {"1": 0.9, "2": 0.1}), SILENT)
    judge.label(["What?"] * 3, [["a", "b"], ["c", "d"], ["b", "a"]])
    said = judge.summary()
    assert "3 pairs" in said and "won in both orders in 1.00 of them" in said, "of two asked in both"
    assert "the first answer in 1.00 of the first questions" in said, "of those that it has answered"


def test_the_preamble_is_part_of_every_question_and_fits_the_aspect():
    judge = AI(Told(longer_wins), {"overall": "Be fair.", "safety": "Be careful."})
    judge.label(["What?"], [["a", "bb"]])
    assert all(text.startswith("Be fair.\n1: What?") for text in judge.model.asked)
    judge.model.asked.clear()
    judge.label(["What?"], [["a", "bb"]], "safety")
    assert all(text.startswith("Be careful.\n1: What?") for text in judge.model.asked)
    detailed = PREAMBLES["detailed"]
    assert "harm" in detailed["overall"] and "harm" not in detailed["helpful"]


def test_a_preamble_is_a_name_a_file_or_a_text(tmp_path):
    assert preambles("none") == {"overall": "", "helpful": "", "safety": ""}
    assert preambles("detailed") is PREAMBLES["detailed"]
    (tmp_path / "mine.txt").write_text("Please be brief.\n")
    told = {"overall": "Please be brief.", "helpful": "Please be brief.", "safety": "Please be brief."}
    assert read_preamble(str(tmp_path / "mine.txt")) == "Please be brief."
    assert preambles("Please be brief.") == told
    known = ("base", "Please be brief.", "请选择更短的答案。", str(tmp_path / "mine.txt"))
    assert all(map(is_preamble, known)) and not is_preamble("detaild"), "Chinese has no blanks"
    assert read_preamble("base") == "base" and read_preamble("long " * 9999) == "long " * 9999
    for odd, words in ((b"\xff\xfe", "a text file, in UTF-8"), (b"a\x07b", "without control characters")):
        (tmp_path / "odd.txt").write_bytes(odd)
        with pytest.raises(UserError, match=f"odd.txt: expected .*{words}"):
            read_preamble(str(tmp_path / "odd.txt"))


def remarks_and_notes(text):
    """Of "good" it remarks that it is kind, of others that they are odd."""
    if text.endswith("\nRemark:"):
        return "is, is: same; dog, dog: same; kind" if " good\n" in text else "is, ?; odd"
    return "8." if text.endswith("Notes: kind") else "6."


def test_with_chain_of_thought_it_compares_its_notes():
    """And nothing else: two answers at once are too much for it."""
    model = Told(
        lambda text: (
            {"1": 0.9, "2": 0.1}
            if text == "Be fair.\nNotes: 1 kind 8. 2 odd 6.\nBest="
            else {"1": 0.1, "2": 0.9}
        ),
        remarks_and_notes,
    )
    judge = AI(model, {"overall": "Be fair."}, chain_of_thought=True)
    assert judge.label(["What?"], [["bad", "good"]])[0, 1, 0].item() == pytest.approx(0.9)
    assert (
        judge.details == [{"pairs": [[0, 1, 0.1]], "notes": ["odd 6.", "kind 8."]}]
        and judge.same_position == 0
    )


def test_notes_on_an_answer_are_written_once():
    judge = AI(Told(first_wins, lambda text: "so"), SILENT, chain_of_thought=True)
    judge.label(["What?", "Who?"], [["a", "aaa", "aa"], ["a", "bb"]])
    assert sorted(text for text in judge.model.noted if "Notes:" in text) == sorted(
        f"{text}\nNotes: nothing" for text in ("What? a", "What? aa", "What? aaa", "Who? a", "Who? bb")
    )
    judge.label(["What?", "Why?"], [["aa", "a"], ["alone"]])
    assert len(judge.model.noted) == 5 + 5, "remarks and notes; an answer alone is compared with nothing"


def test_notes_are_those_of_an_aspect():
    model = Told(first_wins, lambda text: text[:8])
    judge = AI(model, {"helpful": "Be kind.", "safety": "Be safe."}, chain_of_thought=True)
    for aspect, preamble in (("helpful", "Be kind."), ("safety", "Be safe.")):
        model.noted.clear()
        judge.notes(["What?"], ["a"], aspect)
        assert len(model.noted) == 2 and all(text.startswith(preamble) for text in model.noted)


def test_a_question_is_asked_once():
    judge = AI(Told(longer_wins), SILENT)
    found = judge.compare(["What?"] * 3, ["a", "aaa", "a"], ["aa", "a", "aa"])
    assert found == pytest.approx([0.1, 0.9, 0.1])
    assert len(judge.model.asked) == 2
    assert judge.compare(["What?"] * 2, ["aa", "a"], ["a", "aa"]) == pytest.approx([0.9, 0.1])
    assert len(judge.model.asked) == 3, "of these the second has been answered; the first has the other order"


def test_notes_begin_with_remarks_on_each_sentence():
    """It is asked about one sentence at a time, and once about each. What is no remark is left out."""
    remarks = {"A cat.": "is, is: same; dog, cat: other; stray", "So.": "so",
               "A friend.": "is, is: same; dog, dog: same; right kind"}

    def notes(text):
        line = text.split("\n")[1]
        if text.endswith("Remark:"):
            return remarks[line.removeprefix("What? ")]
        return f"{len(line)}."

    model = Told(longer_wins, notes)
    judge = AI(model, {"overall": "Be fair."}, chain_of_thought=True)
    assert judge.notes(["What?"] * 3, ["A friend. A cat.", "A friend.", "So."]) == [
        "right kind stray 22.", "right kind 15.", "nothing 9."]
    remarked = [text for text in model.noted if text.endswith("Remark:")]
    assert sorted(remarked) == sorted(f"Be fair.\nWhat? {text}\nRemark:" for text in remarks)
    assert "Be fair.\nWhat? A friend. A cat.\nNotes: right kind stray" in model.noted


def test_notes_begin_with_at_most_twelve_remarks():
    """What a rambling answer gets would not fit the context."""
    model = Told(longer_wins, lambda text: "is; dog; kind" if "Remark:" in text else "9.")
    judge = AI(model, SILENT, chain_of_thought=True)
    assert judge.notes(["What?"], ["A. B. C. D. E. F. G. H. I. J. K. L. M."]) == ["kind " * 12 + "9."]


def test_more_answers_are_compared_where_notes_are_cheap():
    """Notes grow with the answers, a server's comparisons with their pairs."""
    assert [AI(Told(longer_wins, form=form), SILENT).answers for form in ("own", "server")] == [6, 4]


def test_with_chain_of_thought_it_rates_with_its_notes_before_it():
    def next(text):
        return {"9": 1.0} if text == "What? good\nNotes: kind 8.\nRating=" else {"3": 1.0}

    model = Told(next, remarks_and_notes)
    assert AI(model, SILENT, chain_of_thought=True).rate(["What?"], ["good"]) == [pytest.approx(7 / 9)]
    assert AI(model, SILENT).rate(["What?"], ["good"]) == [pytest.approx(-5 / 9)], "at once"


def test_a_model_behind_a_server_writes_its_notes_in_one_go():
    model = Told(longer_wins, lambda text: "fine", form="server")
    judge = AI(model, PREAMBLES["detailed"], chain_of_thought=True)
    assert judge.notes(["What?"], ["One. Two."]) == ["fine"] and len(model.noted) == 1


def test_notes_and_soft_labels_are_saved_with_each_ranking(tmp_path):
    model = Told(
        lambda text: {"1": 0.9, "2": 0.1} if "1 nothing good" in text else {"1": 0.1, "2": 0.9},
        lambda text: "good" if "aaa" in text else "poor",
    )
    questions = [
        {"prompt": "What?", "responses": ["a", "aaa"], "split": "train"},
        {"prompt": "Who?", "responses": ["b"], "split": "train"},
    ]
    rows = rank_all(RankingFile(tmp_path / "r.jsonl"), questions, AI(model, SILENT, chain_of_thought=True))
    assert rows == load_rows(tmp_path / "r.jsonl")
    assert (
        rows[0]["pairs"] == [[0, 1, 0.1]]
        and rows[0]["notes"] == ["nothing poor", "nothing good"]
        and rows[0]["tiers"] == [[1], [0]]
    )
    assert rows[1]["pairs"] == rows[1]["tiers"] == []


def test_soft_labels_reach_the_loss():
    row = {
        "responses": ["a", "b", "c"],
        "tiers": [[1], [0], [2]],
        "pairs": [[0, 1, 0.2], [0, 2, 0.6], [1, 2, 0.5]],
    }
    assert comparisons(row) == [(1, 0, 0.8, 1), (0, 2, 0.6, 1)], "0.5 is a tie"
    assert comparisons(row, ties=True)[2] == (1, 2, 0.5, 0), "and has no strength"
    certain = {"responses": ["x", "y"], "tiers": [[0], [1]]}
    better, worse, p, strength = batch_pairs([certain, row], ties="half")
    assert (better, worse, p) == ([0, 3, 2, 3], [1, 2, 4, 4], [1.0, 0.8, 0.6, 0.5])
    assert strength == [1, 1, 1, 0]


# ------------------------------------------------------------------------------------------------
# Ratings
# ------------------------------------------------------------------------------------------------


def test_expected_rating_by_hand():
    probabilities = {5: 0.1, 6: 0.2, 7: 0.4, 8: 0.2, 9: 0.1}
    assert expected_rating(probabilities) == pytest.approx(2 * (7.0 - 1) / 9 - 1) == pytest.approx(1 / 3)
    assert expected_rating({i: p / 2 for i, p in probabilities.items()}) == pytest.approx(1 / 3)
    assert (expected_rating({1: 1.0}), expected_rating({10: 1.0})) == (-1, 1)


def test_ten_is_one_and_then_zero_where_it_is_no_token_of_its_own():
    """P(1...) = 0.5, and 0.8 of that goes on with 0: P(10) = 0.4, P(1) = 0.1, and P(4) = 0.5."""
    split = AI(
        Told(lambda text: {"0": 0.8, "5": 0.2} if text.endswith("1") else {"1": 0.5, "4": 0.5}), SILENT
    )
    whole = AI(Told(lambda text: {"1": 0.1, "4": 0.5, "10": 0.4}), SILENT)
    wanted = 2 * (0.4 * 10 + 0.1 + 0.5 * 4 - 1) / 9 - 1
    assert split.rate(["What?"], ["a"]) == pytest.approx([wanted]) and whole.rate(
        ["What?"], ["a"]
    ) == pytest.approx([wanted])


def test_an_answer_is_rated_once():
    judge = AI(Told(lambda text: {str(len(text.split("\n")[0]) - 5): 1.0}), SILENT)
    first = judge.rate(["What?", "What?", "What?"], ["aa", "aaaa", "aa"])
    assert first == pytest.approx([expected_rating({3: 1}), expected_rating({5: 1}), expected_rating({3: 1})])
    assert len(judge.model.asked) == 2
    assert judge.rate(["What?", "What?"], ["aaaa", "a"]) == pytest.approx(
        [expected_rating({5: 1}), expected_rating({2: 1})]
    )
    assert len(judge.model.asked) == 3 and len(judge.rated) == 3


def test_one_answer_that_cannot_be_rated_is_in_the_middle_and_a_judge_that_never_rates_is_reported():
    judge = AI(Told(lambda text: {} if "odd" in text else {"9": 1.0}), SILENT)
    judge.rate(["What?"], ["a"])
    assert judge.rate(["What?"], ["odd"]) == [0.0] and judge.silent == 1
    with pytest.raises(UserError, match="no rating from 1 to 10"):
        AI(Told(lambda text: {}), SILENT).rate(["What?"], ["a"])


# ------------------------------------------------------------------------------------------------
# Our own GPT as the language model
# ------------------------------------------------------------------------------------------------


def test_own_model_gives_the_log_probabilities_of_the_next_token(make_gpt, enc):
    gpt = make_gpt(vocab_size=enc.n_vocab, block_size=64)
    texts = [
        "1: What is a cat? A dog.\nBest=",
        "A cat\nBest=",
        "What is a dog? A cat is a small hunter.\nBest=",
    ]
    found = OwnModel(gpt, enc, batch_size=2).next_token(texts, ["1", "2", "10"])
    for text, f in zip(texts, found, strict=True):
        logprobs = gpt(torch.tensor([enc.encode_ordinary("\n\n" + text)]))[0, -1].log_softmax(-1)
        assert f == pytest.approx({w: logprobs[enc.encode_ordinary(w)[0]].item() for w in "12"}, abs=1e-5)


def test_own_model_writes_one_line_greedily(make_bigram, enc):
    V = enc.n_vocab
    path = [enc.encode_ordinary(c)[0] for c in (":", "x", "y", "\n", "z")]
    table = torch.zeros(V, V)
    for a, b in zip(path, path[1:], strict=False):
        table[a, b] = 2.0  # far from certain: only the greedy choice always follows it
    model = OwnModel(make_bigram(table), enc)
    assert model.write(["Notes:", "And notes:"], 10) == ["xy", "xy"]
    assert model.write(["Notes:"], 1) == ["x"]


# ------------------------------------------------------------------------------------------------
# The judge that the flags describe
# ------------------------------------------------------------------------------------------------


def test_flags_may_name_a_server(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", " secret\n")
    server.script = [GOOD]
    cfg = JudgeKnobs(judge_url=server.url, judge_model="m", judge_timeout=3.0, preamble="Please be brief.",
                     chain_of_thought=False)
    judge = load_judge(SimpleNamespace(folder=tmp_path), None, cfg, both_orders=False)
    assert judge.model.timeout == 3.0 and not judge.chain_of_thought and not judge.both_orders
    judge.label(["What?"], [["a", "b"]])
    [(_, key, sent)] = server.seen
    assert key == "Bearer secret" and sent["model"] == "m" and sent["prompt"].startswith("Please be brief.\n")
    assert len(load_rows(tmp_path / "judge_calls.jsonl")) == 1


def test_flags_may_name_a_model_that_has_learned_from_reviews(monkeypatch, make_gpt, enc):
    asked = []
    stage = SimpleNamespace(parent=lambda name: asked.append(name) or name, device="cpu")
    known = {name: {"knobs": {"reviews": n}} for name, n in (("judge", 50000), ("sft", 0))}
    monkeypatch.setattr(judges, "load_model", lambda path, device: (make_gpt(), known[path]))
    judge = load_judge(stage, enc, JudgeKnobs(preamble="base"))
    assert isinstance(judge.model, OwnModel) and judge.chain_of_thought and judge.both_orders
    assert asked == ["judge"] and judge.preamble == PREAMBLES["base"]
    with pytest.raises(UserError, match="sft: that model has not learned from reviews; train one with"):
        load_judge(stage, enc, JudgeKnobs(judge="sft"))


# ------------------------------------------------------------------------------------------------
# A judge behind a server
# ------------------------------------------------------------------------------------------------


GOOD = completion({" 1": math.log(0.5), "1": math.log(0.1), " 2": math.log(0.2), " the": math.log(0.2)})


def patient(server, **more):
    return Server(server.url, **{"wait": 0.01, "tries": 3, **more})


def test_a_server_is_asked_for_one_token_with_its_log_probabilities(server):
    server.script = [GOOD]
    found = patient(server, model="small", key="secret").next_token(["Which?"], "12")
    assert found[0] == pytest.approx(
        {"1": math.log(0.6), "2": math.log(0.2)}
    )  # with and without the space in front
    path, key, sent = server.seen[0]
    assert path == "/v1/completions" and key == "Bearer secret"
    assert sent == {"model": "small", "prompt": "Which?", "max_tokens": 1, "logprobs": 5, "temperature": 0}


def test_a_number_may_stand_behind_a_blank_of_its_own(server):
    server.script = [
        (
            200,
            lambda sent: completion(
                {"1": -0.5, "2": -1.5} if sent["prompt"].endswith(" ") else {" ": -0.1, "The": -3.0}
            )[1],
            {},
        )
    ]
    assert patient(server, model="m").next_token(["Which?"], "12") == [pytest.approx({"1": -0.5, "2": -1.5})]
    assert [sent["prompt"] for _, _, sent in server.seen] == ["Which?", "Which? "]


@pytest.mark.parametrize(
    "text, reasons",
    [("  it is  warm \n and more", "it is warm"), ("\n\n it is warm\n", "it is warm"), ("\n \n", "")],
)
def test_a_server_writes_reasons_up_to_the_end_of_the_first_line_that_has_any(server, text, reasons):
    server.script = [completion({}, text)]
    assert patient(server).write(["Why?"], 30) == [reasons]
    assert (
        "stop" not in server.seen[0][2]
        and server.seen[0][2]["max_tokens"] == 30
        and server.seen[0][1] is None
    )


def test_a_whole_label_from_a_server(server):
    """It takes the first answer with 0.75 in either order: averaged, no preference."""
    server.script = [GOOD]
    judge = AI(patient(server), {"overall": "Be fair."})
    assert judge.label(["What?"], [["a", "b"]])[0, 0, 1].item() == pytest.approx(0.5)
    prompts = sorted(sent["prompt"] for _, _, sent in server.seen)
    assert prompts[0].startswith("Be fair.\nQuestion: What?\n\nAnswer 1: a\n\nAnswer 2: b\n\n") and prompts[
        1
    ].startswith("Be fair.\nQuestion: What?\n\nAnswer 1: b")


def test_notes_from_a_server_stand_before_its_comparison(server):
    server.script = [
        (200, lambda sent: GOOD[1] if sent["max_tokens"] == 1 else completion({}, " so ")[1], {})
    ]
    AI(patient(server), SILENT, chain_of_thought=True, both_orders=False).label(["What?"], [["a", "b"]])
    *noted, compared = [sent["prompt"] for _, _, sent in server.seen if sent["max_tokens"] > 1] + [
        sent["prompt"] for _, _, sent in server.seen if sent["max_tokens"] == 1
    ]
    assert sorted(text.split("\n")[:3] for text in noted) == [
        ["Question: What?", "", "Answer: a"],
        ["Question: What?", "", "Answer: b"],
    ]
    assert compared.endswith(
        "\nAbout answer 1: so\nAbout answer 2: so\nNumber of the better answer (1 or 2):"
    )


@pytest.mark.parametrize(
    "trouble, waits",
    [
        ((429, {}, {"Retry-After": "0.2"}), 0.2),
        ((503, b"busy", {}), 0.01),
        ((429, {}, {"Retry-After": "soon"}), 0.01),
        ((429, {}, {"Retry-After": "-1"}), 0),
    ],
)
def test_a_busy_server_is_asked_again_later(server, trouble, waits):
    server.script, began = [trouble, GOOD], time.time()
    assert patient(server).next_token(["Which?"], "12")[0]["1"] == pytest.approx(math.log(0.6))
    assert len(server.seen) == 2 and time.time() - began >= waits


def test_a_question_that_comes_twice_is_asked_once(server):
    server.script = [GOOD]
    found = patient(server).next_token(["a", "b", "a", "a"], "12")
    assert len(server.seen) == 2 and found == [found[0]] * 4


@pytest.mark.parametrize(
    "url, key",
    [("http://127.0.0.1:1/a b", ""), ("http://127.0.0.1:1/v1", "\u20ac"), ("http://127.0.0.1:abc/v1", "")],
)
def test_what_no_request_can_be_made_of(url, key):
    with pytest.raises(UserError, match="--judge_url is http|JUDGE_API_KEY: expected"):
        Server(url, "m", key, wait=0.01, tries=1).next_token(["Which?"], "12")


@pytest.mark.parametrize(
    "reply, tries, sentence",
    [
        (
            (429, {}, {}),
            3,
            "asks for fewer questions at a time .HTTP 429., 3 times; what it has answered is kept",
        ),
        ((503, b"half", {"Content-Length": "100"}), 3, "trouble of its own .HTTP 503"),
        ((500, b"oh dear", {}), 3, "trouble of its own .HTTP 500: oh dear., 3 times"),
        ((401, {}, {}), 1, "refuses the key .* JUDGE_API_KEY"),
        ((401, b"5\r\nhalf", {"Transfer-Encoding": "chunked"}), 1, "refuses the key .HTTP 401"),
        ((400, b" " * (2**22 + 1), {}), 1, "does not accept the question .HTTP 400: without a reason"),
        ((404, b"no such path", {}), 1, "is not there .* ends in /v1"),
        (
            (400, {"error": {"message": "prompt too long"}}, {}),
            1,
            "does not accept the question .*prompt too long",
        ),
        ((200, b"<html>hello</html>", {}), 1, "no completion: '<html>hello"),
        ((200, {"choices": []}, {}), 1, "no completion"),
        ((200, {"choices": [{"text": "1"}]}, {}), 1, "gives no log-probabilities"),
        (
            (200, {"choices": [{"text": "1", "logprobs": {"top_logprobs": []}}]}, {}),
            1,
            "gives no log-probabilities",
        ),
        ((200, 0.5, {}), 2, "gave no answer within 0.1 s, 2 times"),
    ],
)
def test_every_failure_of_a_server_is_one_sentence(server, reply, tries, sentence):
    server.script = [reply]
    with pytest.raises(UserError, match=sentence):
        patient(server, timeout=0.1 if tries == 2 else 5.0, tries=max(2, tries)).next_token(["Which?"], "12")
    assert len(server.seen) == tries


def test_the_status_of_an_error_counts_where_its_text_never_comes():
    """A server that promises a hundred bytes, sends none and waits."""
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        def refuse():
            with waiting.accept()[0] as asked:
                asked.recv(65536)
                asked.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\n")
                asked.recv(65536)  # until the other end has had enough

        threading.Thread(target=refuse, daemon=True).start()
        judge = Server(f"http://127.0.0.1:{waiting.getsockname()[1]}/v1", "m", timeout=0.4, tries=1)
        with pytest.raises(UserError, match="refuses the key"):
            judge.next_token(["Which?"], "12")


def test_where_nothing_listens(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be reached .*is the server running"):
        patient(server).next_token(["Which?"], "12")


def test_what_was_bought_is_kept_and_not_bought_again(server, tmp_path):
    path = tmp_path / "judge_calls.jsonl"
    server.script = [GOOD, GOOD, (400, b"no", {})]
    with pytest.raises(UserError):
        patient(server, path=path, parallel=1).next_token(["a", "b", "c"], "12")
    with path.open("a") as file:
        file.write('{"asked": {"half a li')  # as a process leaves it that died while it wrote
    server.script, before = [GOOD], len(server.seen)
    found = patient(server, path=path).next_token(["a", "b", "c"], "12")
    assert [f["1"] for f in found] == pytest.approx([math.log(0.6)] * 3)
    assert [sent["prompt"] for _, _, sent in server.seen[before:]] == ["c"]
    assert patient(server, path=path).next_token(["c"], "12") == found[2:] and len(server.seen) == before + 1


def test_the_answers_of_a_server_keep_their_order(server):
    def reply(sent):
        time.sleep(0.05 if sent["prompt"] == "0" else 0)
        return {"choices": [{"text": "", "logprobs": {"top_logprobs": [{"1": -float(sent["prompt"])}]}}]}

    server.script = [(200, reply, {})]
    assert [f["1"] for f in patient(server).next_token([str(i) for i in range(8)], "12")] == pytest.approx(
        [-float(i) for i in range(8)]
    )
