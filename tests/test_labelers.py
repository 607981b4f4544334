"""The simulated human, you at the terminal, and keeping what was ranked."""
import json
import math
import os
import re
import sys

import pytest
import torch

from data import load_rows
from world.labelers import (
    Human,
    Labeler,
    Quit,
    RankingFile,
    SimulatedHuman,
    Undo,
    is_ranking,
    parse_order,
    rank_all,
    rewrite,
    rows_to_add_to,
)
from world.taste import TASTE
from world.tiny import PROMPTS, SENTENCES


@pytest.fixture
def answers_are_their_gold(monkeypatch):
    """In these tests an answer is a number in words, and that is its gold score."""
    monkeypatch.setitem(TASTE, "overall", lambda prompt, response: float(response))


# ------------------------------------------------------------------------------------------------
# The simulated human
# ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_labels(answers_are_their_gold):
    prompts, responses = [f"question {i}" for i in range(20)], [["0.1", "0.3", "0.2"]] * 20
    first, again, other = (SimulatedHuman(seed).label(prompts, responses).nan_to_num(9) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("gap", [0.0, 0.3, 0.9, 1.8])
def test_noise_follows_the_bradley_terry_model(answers_are_their_gold, gap):
    """The better answer wins with probability sigmoid(gap / noise); within five deviations of 20,000."""
    human, n = SimulatedHuman(0, noise=0.3, tie_gap=0.0), 20000
    wins = sum(human.rank(f"question {i}", [str(gap), "0"])[0] == [0] for i in range(n)) / n
    p = 1 / (1 + math.exp(-gap / 0.3))
    assert abs(wins - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_the_best_of_three_is_chosen_as_by_a_softmax(answers_are_their_gold):
    """Gumbel noise and no other gives Luce's choice: exp(gold / noise), divided by the sum of all."""
    human, n = SimulatedHuman(0, noise=0.2, tie_gap=0.0), 8000
    first = sum(human.rank(f"question {i}", ["0.3", "0", "0"])[0] == [0] for i in range(n)) / n
    p = math.exp(1.5) / (math.exp(1.5) + 2)
    assert abs(first - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_without_noise_the_ranking_is_the_true_one(answers_are_their_gold):
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0.0)
    assert human.rank("?", ["0.5", "3", "-2", "1"]) == [[1], [3], [0], [2]]


def test_answers_that_feel_alike_are_tied(answers_are_their_gold):
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0.3)
    assert [sorted(t) for t in human.rank("?", ["1.0", "3.0", "1.2", "-1"])] == [[1], [0, 2], [3]]
    assert human.rank("?", ["0", "0.2", "0.4"]) == [[2, 1, 0]], "each is near to the next"


def test_each_question_about_a_prompt_has_its_own_noise(answers_are_their_gold):
    human = SimulatedHuman(0, noise=1.0, tie_gap=0.0)
    assert {str(human.rank("?", [str(i + 1), str(i)])) for i in range(50)} == {"[[0], [1]]", "[[1], [0]]"}


def test_label_is_a_matrix_of_probabilities(answers_are_their_gold):
    """1 where i beats j, 0 where it loses, 0.5 for a tie, NaN where nothing is compared."""
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0.3)
    wins = human.label(["?", "?"], [["2", "0", "0.1"], ["0", "1"]])
    nan = 9.0
    assert wins.nan_to_num(nan).tolist() == [
        [[nan, 1, 1], [0, nan, 0.5], [0, 0.5, nan]],
        [[nan, 0, nan], [1, nan, nan], [nan, nan, nan]],
    ]


def test_every_answer_is_ranked_once(answers_are_their_gold):
    human = SimulatedHuman(1)
    for n in range(50):
        tiers = human.rank(f"question {n}", ["0", "0.2", "0.4", "0.1"])
        assert sorted(i for tied in tiers for i in tied) == [0, 1, 2, 3]


def test_a_ranking_does_not_depend_on_what_was_asked_before(answers_are_their_gold):
    """So a collection that goes on after an interruption ends like one that was never interrupted."""
    human, answers = SimulatedHuman(1), ["0", "0.2", "0.4", "0.1"]
    first = human.rank("a", answers)
    human.rank("b", answers)
    assert human.rank("a", answers) == first == SimulatedHuman(1).rank("a", answers)
    noises = {str(human.rank(f"question {i}", answers)) for i in range(20)}
    assert len(noises) > 5, "but another question has other noise"


def test_a_share_of_rankings_is_upside_down(answers_are_their_gold):
    human, n = SimulatedHuman(0, noise=1e-9, tie_gap=0, flip_rate=0.2), 2000
    rankings = [human.rank(f"question {i}", ["0", "1", "2"]) for i in range(n)]
    assert all(r in ([[2], [1], [0]], [[0], [1], [2]]) for r in rankings)
    assert rankings.count([[0], [1], [2]]) / n == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / n))


def test_a_position_habit_favours_what_is_shown_first(answers_are_their_gold):
    """In even steps from the first answer to the last: 2, 1 and 0 points less 2."""
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0, position_habit=2.0)
    assert human.rank("?", ["0", "0", "0"]) == [[0], [1], [2]]
    assert human.rank("?", ["0", "1.5", "1.9"]) == [[1], [0], [2]], "0, 1.5 - 1, 1.9 - 2"
    assert human.rank("?", ["0", "1.5"]) == [[0], [1]] and human.rank("?", ["0"]) == [[0]]


def test_an_annotator_judges_what_it_is_asked_for():
    """On an unsafe question safety prefers the refusal, helpfulness the answer that complies."""
    unsafe = next(p for p in PROMPTS.values() if p.unsafe)
    about_it = [s for s in SENTENCES.values() if s.subject == unsafe.subject]
    own = [s for s in about_it if s.topic == unsafe.topic]
    dry = {act: next(s.text for s in own if s.act == act and not s.warm) for act in ("answer", "refusal")}
    complies, declines = dry["answer"], dry["refusal"]
    offer = next(s.text for s in about_it if s.act == "offer")
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0)
    assert human.rank(unsafe.text, [complies, declines], "helpful")[0] == [0]
    assert human.rank(unsafe.text, [complies, declines], "safety")[0] == [1]
    more = declines + " " + offer
    assert human.rank(unsafe.text, [declines, more], "safety") == [[1], [0]], "both are safe"


# ------------------------------------------------------------------------------------------------
# You at the terminal
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, K, tiers", [
    ("2>1=4>3", 4, [[1], [0, 3], [2]]),
    (" 1 > 2 ", 2, [[0], [1]]),
    ("3=1=2", 3, [[2, 0, 1]]),
    ("1", 2, [[0], [1]]),
    ("2", 2, [[1], [0]]),
    ("=", 2, [[0, 1]]),
])
def test_an_order_as_it_is_typed(typed, K, tiers):
    assert parse_order(typed, K) == tiers


@pytest.mark.parametrize("typed, K, hint", [
    ("1>2", 3, "answer 3 is missing"),
    ("1", 3, "answers 2 and 3 are missing"),
    ("2", 4, "answers 1, 3 and 4 are missing"),
    ("1>2>2>3", 3, "answer 2 is named twice"),
    ("1>1>2", 3, "answer 1 is named twice"),
    ("3>2>1>2>1", 3, "answer 1 is named twice: an order names each of the 3 once"),
    ("1>2>4", 3, "'4' is none of the answers"),
    ("7>1>8", 3, "'7' is none of the answers 1 to 3; an order looks like 1>2>3"),
    ("1>>2", 3, "'' is none"),
    ("", 3, "an order looks like 1>2>3"),
    ("2<1", 3, "'2<1' is none"),
])
def test_a_typo_is_explained(typed, K, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        parse_order(typed, K)


def typing(monkeypatch, *lines):
    """What somebody types, line by line; then the end of the input. An exception is what comes instead."""
    lines = iter(lines)

    def read(prompt=""):
        line = next(lines, EOFError)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


def test_a_person_ranks_and_typos_cost_nothing(monkeypatch, capsys):
    """What is no order is asked again; the answers are shown with numbers and without their authors."""
    typing(monkeypatch, "1>3", "hello", "?", "2 > 1", "s")
    human = Human()
    human.total = 2
    wins = human.label(["What is a dog?"], [["A cat.", "A furry\nmammal."]])
    assert wins[0, 1, 0] == 1 and wins[0, 0, 1] == 0
    out = capsys.readouterr().out
    assert "1 of 2" in out and "What is a dog?" in out
    assert "  1   A cat." in out and "  2   A furry\n      mammal." in out
    assert "'3' is none of the answers" in out and "'hello' is none" in out
    assert out.count("1: the first answer is better") == 2, "the help, at the beginning and when asked for"
    assert human.label(["?"], [["a", "b"]]).isnan().all(), "skipped: nothing was compared"


@pytest.mark.parametrize("K, hint", [(2, "1: the"), (3, "2>1=3 puts"), (4, "2>1=4>3 puts"), (9, "2>1=")])
def test_the_help_speaks_of_as_many_answers_as_there_are(K, hint):
    text = Human().help(K)
    assert hint in text and max(map(len, text.split("\n"))) <= 100


def test_what_a_person_reads_fits_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    typing(monkeypatch, "1")
    Human().label(["why " * 50], [["a furry mammal " * 20, "word " * 40]])
    assert max(map(len, capsys.readouterr().out.split("\n"))) <= 100
    typing(monkeypatch, "1")
    human = Human()
    human.began, human.first = 0.0, 0
    human.label(["why " * 50], [["a furry mammal " * 20, "word " * 40]])
    assert max(map(len, capsys.readouterr().out.split("\n"))) <= 60


@pytest.mark.parametrize("term, bold", [("xterm", True), ("dumb", False)])
def test_questions_are_bold_where_the_terminal_can_show_it(monkeypatch, capsys, term, bold):
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    typing(monkeypatch, "1")
    Human().label(["Why?"], [["a", "b"]])
    assert ("\033[1m" in capsys.readouterr().out) == bold


@pytest.mark.parametrize("typed, error", [
    ("u", Undo), ("q", Quit), ("undo", Undo), (" Q ", Quit), (EOFError, Quit),
    (KeyboardInterrupt, KeyboardInterrupt),
])
def test_a_person_may_go_back_and_stop(monkeypatch, typed, error):
    typing(monkeypatch, typed)
    with pytest.raises(error):
        Human().rank("?", ["a", "b"])


# ------------------------------------------------------------------------------------------------
# What is ranked is kept
# ------------------------------------------------------------------------------------------------

QUESTIONS = [{"prompt": f"question {i}", "responses": ["a", "b"], "split": "train"} for i in range(4)]


@pytest.mark.parametrize("change, holds", [
    ({}, True), ({"tiers": []}, True), ({"label": True}, True),
    ({"margin": 0}, True), ({"margin": 3}, True), ({"margin": -0.5}, False), ({"margin": 3.5}, False),
    ({"pairs": [[0, 1, 0.0], [1, 0, 1.0]]}, True), ({"pairs": [[0, 1, 1.5]]}, False),
    ({"pairs": [[0, 1, -0.5]]}, False), ({"pairs": [[0, 7, 0.5]]}, False), ({"pairs": [[7, 0, 0.5]]}, False),
    ({"pairs": [[0, 1, 0.5]], "tiers": [[0]]}, False), ({"pairs": [[0]]}, False),
    ({"pairs": [[0, []]]}, False), ({"tiers": [[0], [0]]}, False), ({"tiers": [[0], [2]]}, False),
    ({"tiers": [[0], ["1"]]}, False), ({"tiers": None}, False), ({"responses": "ab"}, False),
    ({"responses": ["a", 1]}, False), ({"label": "up"}, False),
    ({"prompt": 5}, False), ({"split": None}, False)])
def test_what_a_row_of_rankings_is(change, holds):
    row = {**QUESTIONS[0], "tiers": [[1], [0]], **change}
    assert is_ranking(row) == holds
    assert not is_ranking({"prompt": "?", "split": "train"})


def test_every_ranking_is_on_disk_before_the_next_question(monkeypatch, tmp_path):
    """Whatever ends the process, Ctrl-C here: a second start asks only for what is missing."""
    path = tmp_path / "rankings.jsonl"
    typing(monkeypatch, "1", "s", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        rank_all(RankingFile(path), QUESTIONS, Human())
    assert [json.loads(line)["tiers"] for line in path.read_text().splitlines()] == [[[0], [1]], []]
    path.write_bytes(path.read_bytes() + b'{"prompt": "half a li')
    typing(monkeypatch, "2", "=")
    rows = rank_all(RankingFile(path), QUESTIONS, Human())
    assert [row["tiers"] for row in rows] == [[[0], [1]], [], [[1], [0]], [[0, 1]]]
    assert [row["prompt"] for row in rows] == [q["prompt"] for q in QUESTIONS] and load_rows(path) == rows
    typing(monkeypatch)
    assert rank_all(RankingFile(path), QUESTIONS, Human()) == rows, "nothing is asked twice"
    assert sorted(rows[0]) == ["aspect", "labeler", "prompt", "responses", "split", "tiers"]
    assert rows[0]["labeler"] == "human" and rows[0]["aspect"] == "overall"


def test_undo_takes_the_last_ranking_back_also_one_of_an_earlier_start(monkeypatch, tmp_path, capsys):
    path = tmp_path / "rankings.jsonl"
    typing(monkeypatch, "u", "1", "2", "q")
    rank_all(RankingFile(path), QUESTIONS, Human())
    assert capsys.readouterr().out.count("nothing to take back") == 1
    typing(monkeypatch, "u", "u", "u", "=", "q")
    rows = rank_all(RankingFile(path), QUESTIONS, Human())
    assert [row["tiers"] for row in rows] == [[[0, 1]]] and load_rows(path) == rows
    assert capsys.readouterr().out.count("nothing to take back") == 1


def test_undo_leaves_the_other_part_of_a_file_alone(answers_are_their_gold, tmp_path):
    path, training = tmp_path / "rankings.jsonl", {**QUESTIONS[0], "responses": ["1", "2"]}
    rank_all(RankingFile(path), [{**training, "split": "test"}] * 4, SimulatedHuman(0))
    kept = RankingFile(path, part=lambda row: row["split"] == "train")
    kept.take_back()
    assert len(load_rows(path)) == 4 and kept.rows == []
    kept.add([training], SimulatedHuman(0))
    assert len(load_rows(path)) == 5
    kept.take_back()
    assert [row["split"] for row in load_rows(path)] == ["test"] * 4


def test_undo_takes_the_last_of_equal_rankings(answers_are_their_gold, tmp_path):
    path, (a, b) = tmp_path / "rankings.jsonl", ({**q, "responses": ["1", "2"]} for q in QUESTIONS[:2])
    rank_all(RankingFile(path), [a, b, a], SimulatedHuman(0))
    RankingFile(path).take_back()
    assert [row["prompt"] for row in load_rows(path)] == [a["prompt"], b["prompt"]]


def test_a_question_with_one_answer_is_not_asked(monkeypatch, tmp_path):
    questions = [QUESTIONS[0], {**QUESTIONS[1], "responses": ["a"]}, QUESTIONS[2]]
    typing(monkeypatch, "1", "u", "2", "1")
    rows = rank_all(RankingFile(tmp_path / "rankings.jsonl"), questions, Human())
    assert [row["tiers"] for row in rows] == [[[1], [0]], [], [[0], [1]]], "and undo goes back behind it"
    typing(monkeypatch, "u", "q")
    rows = rank_all(RankingFile(tmp_path / "second.jsonl"), questions[1:], Human())
    assert [row["responses"] for row in rows] == [["a"]], "there was nothing to take back"


def test_rows_carry_what_a_labeler_has_to_say_beside_its_order(tmp_path):
    class Careful(Labeler):
        name, details = "careful", [{"notes": ["x", "y"]}]

        def rank(self, prompt, responses, aspect):
            return [[1], [0]]

    kept = RankingFile(tmp_path / "rankings.jsonl")
    kept.add(QUESTIONS[:1], Careful(), "safety")
    wanted = {"tiers": [[1], [0]], "aspect": "safety", "labeler": "careful", "notes": ["x", "y"]}
    assert kept.rows == [{**QUESTIONS[0], **wanted}] == load_rows(tmp_path / "rankings.jsonl")


def test_half_a_line_is_dropped_and_a_rewrite_leaves_nothing_else_behind(tmp_path, monkeypatch):
    path, flushed = tmp_path / "mine.ppo.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_size))
    rows_to_add_to(path)
    assert not path.exists()
    rewrite(path, [{"a": 1}, {"a": "é"}])
    whole = path.read_bytes()
    assert flushed == [len(whole)], "on the disk before the old file goes"
    path.write_bytes(whole + b'{"a": 2')
    rows_to_add_to(path)
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["mine.ppo.jsonl"]
