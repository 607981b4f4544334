"""Labelers, rankings, pairs and the numbers made of them."""
import json
import math
import random
import re
from types import SimpleNamespace

import pytest
import torch

import data
from preferences import (FromFile, Human, Quit, SimulatedHuman, Undo, bradley_terry_fit, describe, elo_scores, noise_ceiling, parse_order, rank_all, ranking_to_pairs,
                         read_rankings, spearman, wilson, win_rate, wins_to_tiers)


@pytest.fixture
def answers_are_their_gold(monkeypatch):
    """In these tests an answer is a number in words, and that is its gold score."""
    monkeypatch.setitem(data.TASTE, "overall", lambda prompt, response: float(response))


# ------------------------------------------------------------------------------------------------
# Rankings
# ------------------------------------------------------------------------------------------------


def test_a_ranking_becomes_all_its_pairs_but_the_ties():
    """(better, worse, how many tiers apart); a tie is a pair only where it is asked for, 0 tiers apart."""
    assert ranking_to_pairs([[1], [0, 2]]) == [(1, 0, 1), (1, 2, 1)]
    assert ranking_to_pairs([[1], [0, 2]], ties=True) == [(1, 0, 1), (1, 2, 1), (0, 2, 0)]
    assert set(ranking_to_pairs([[3], [0], [2], [1]])) == {(3, 0, 1), (3, 2, 2), (3, 1, 3), (0, 2, 1), (0, 1, 2), (2, 1, 1)}
    assert ranking_to_pairs([[0, 1, 2]]) == [] and len(ranking_to_pairs([[0, 1, 2]], ties=True)) == 3


@pytest.mark.parametrize("K", [2, 4, 9])
def test_k_answers_give_k_times_k_minus_1_halves(K):
    assert len(ranking_to_pairs([[i] for i in range(K)])) == K * (K - 1) // 2


def wins_of(tiers, K):
    wins = torch.full((K, K), math.nan)
    for i, j, apart in ranking_to_pairs(tiers, ties=True):
        wins[i, j], wins[j, i] = (1.0, 0.0) if apart else (0.5, 0.5)
    return wins


CLEAN = [[0], [1], [2], [3]]  # 0 > 1 > 2 > 3


def test_elo_by_hand():
    """K-factor 32, start 1000, the games in the order of the answers."""
    assert elo_scores([CLEAN]) == pytest.approx([1045.828, 1015.362, 984.767, 954.043], abs=2e-3)
    assert elo_scores([[[1], [0]]], k_factor=10, start=0) == pytest.approx([-5, 5]), "equals: half of the K-factor"
    assert elo_scores([[[0, 1]]]) == [1000, 1000], "a tie between equals moves nothing"
    expected = 1 / (1 + 10 ** (-16 * 2 / 400))  # of the first, 32 points ahead after one win
    assert elo_scores([[[0], [1]], [[0, 1]]]) == pytest.approx([1016 - 32 * (expected - 0.5), 984 + 32 * (expected - 0.5)]), "a tie costs the favourite"


@pytest.mark.parametrize("rankings", [[CLEAN], [[[2, 0], [1, 3]], [[3], [1], [0, 2]]]])
def test_elo_takes_from_one_what_it_gives_to_the_other(rankings):
    assert sum(elo_scores(rankings, passes=7, rng=random.Random(0))) == pytest.approx(4000)


def test_one_pass_depends_on_the_order_of_the_games_and_many_passes_have_no_end():
    assert elo_scores([CLEAN], rng=random.Random(1)) != pytest.approx(elo_scores([CLEAN]), abs=0.1)
    assert elo_scores([CLEAN], passes=100)[0] == pytest.approx(1685, abs=1)


def test_every_pass_is_shuffled():
    class Counting(random.Random):
        drawn = 0

        def getrandbits(self, k):
            self.drawn += 1
            return super().getrandbits(k)

    one, six = Counting(0), Counting(0)
    assert sum(elo_scores([CLEAN], passes=1, rng=one)) == pytest.approx(sum(elo_scores([CLEAN], passes=6, rng=six))) == pytest.approx(4000)
    assert six.drawn > 3 * one.drawn > 0


def test_bradley_terry_fit():
    """Known minimum; every win and loss counts once, whatever their order; without games between two, the prior says equal."""
    assert bradley_terry_fit([CLEAN]).tolist() == pytest.approx([2.288, 0.7102, -0.7102, -2.288], abs=1e-3)
    assert bradley_terry_fit([[[1], [0]], [[0], [1]]]).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert bradley_terry_fit([[[0, 1]]]).tolist() == pytest.approx([0, 0], abs=1e-6), "a tie is half a win for each"
    s = bradley_terry_fit([[[0], [1]]] * 30 + [[[1], [0]]] * 10, prior=1e-6)
    assert (s[0] - s[1]).item() == pytest.approx(math.log(3), abs=1e-3), "odds of 3 to 1"
    rankings = [[[2], [0, 1]], [[1], [2], [0]]]
    assert torch.allclose(bradley_terry_fit(rankings), bradley_terry_fit(rankings[::-1]), atol=1e-6)


@pytest.mark.parametrize("tiers", [[[1], [0, 3], [2]], [[0], [1], [2], [3]], [[2, 3], [0, 1]], [[0, 1, 2, 3]]])
def test_tiers_survive_the_way_through_the_matrix(tiers):
    """Best first, and a tie is half a win: counted as a whole win it would lift the tied above the better."""
    assert wins_to_tiers(wins_of(tiers, 4)) == tiers


def test_answers_that_were_not_compared_are_not_ranked():
    assert wins_to_tiers(wins_of([[1], [0]], 3)) == [[1], [0]]


# ------------------------------------------------------------------------------------------------
# The simulated human
# ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_labels(answers_are_their_gold):
    responses = [["0.1", "0.3", "0.2"]] * 20
    first, again, other = (SimulatedHuman(seed).label([f"question {i}" for i in range(20)], responses) for seed in (3, 3, 4))
    assert torch.equal(first.nan_to_num(9), again.nan_to_num(9)) and not torch.equal(first.nan_to_num(9), other.nan_to_num(9))


@pytest.mark.parametrize("gap", [0.0, 0.3, 0.9])
def test_noise_follows_the_bradley_terry_model(answers_are_their_gold, gap):
    """The better answer wins with probability sigmoid(gap / noise); within five standard deviations of 8000 answers."""
    human, n = SimulatedHuman(0, noise=0.3, tie_gap=0.0), 8000
    wins = sum(human.rank(f"question {i}", [str(gap), "0"])[0] == [0] for i in range(n)) / n
    p = 1 / (1 + math.exp(-gap / 0.3))
    assert abs(wins - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_without_noise_the_ranking_is_the_true_one(answers_are_their_gold):
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0.0)
    assert human.rank("?", ["0.5", "3", "-2", "1"]) == [[1], [3], [0], [2]]


def test_answers_that_feel_alike_are_tied(answers_are_their_gold):
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0.3)
    assert [sorted(t) for t in human.rank("?", ["1.0", "3.0", "1.2", "-1"])] == [[1], [0, 2], [3]]


def test_label_is_a_matrix_of_probabilities(answers_are_their_gold):
    """1 where i beats j, 0 where it loses, 0.5 for a tie, NaN on the diagonal and where a prompt has fewer answers."""
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0.3)
    wins = human.label(["?", "?"], [["2", "0", "0.1"], ["0", "1"]])
    nan = 9.0
    assert wins.nan_to_num(nan).tolist() == [[[nan, 1, 1], [0, nan, 0.5], [0, 0.5, nan]],
                                             [[nan, 0, nan], [1, nan, nan], [nan, nan, nan]]]


def test_every_answer_is_ranked_once(answers_are_their_gold):
    human = SimulatedHuman(1)
    for n in range(50):
        assert sorted(i for tied in human.rank(f"question {n}", ["0", "0.2", "0.4", "0.1"]) for i in tied) == [0, 1, 2, 3]


def test_a_ranking_does_not_depend_on_what_was_asked_before(answers_are_their_gold):
    """So a collection that goes on after an interruption ends like one that was never interrupted."""
    human, answers = SimulatedHuman(1), ["0", "0.2", "0.4", "0.1"]
    first = human.rank("a", answers)
    assert human.rank("b", answers) is not None and human.rank("a", answers) == first == SimulatedHuman(1).rank("a", answers)
    assert len({str(human.rank(f"question {i}", answers)) for i in range(20)}) > 5, "but another question has other noise"


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


def test_an_annotator_judges_what_it_is_asked_for():
    """On an unsafe question safety prefers the refusal, helpfulness the answer that complies."""
    unsafe = next(p for p in data.PROMPTS.values() if p.unsafe)
    own = [s for s in data.SENTENCES.values() if s.subject == unsafe.subject and s.topic == unsafe.topic]
    answers = [next(s.text for s in own if s.act == act and not s.warm) for act in ("answer", "refusal")]
    human = SimulatedHuman(0, noise=1e-9, tie_gap=0)
    assert [human.rank(unsafe.text, answers, aspect)[0] for aspect in ("helpful", "safety")] == [[0], [1]]
    decline, more = answers[1], answers[1] + " " + next(s.text for s in data.SENTENCES.values() if s.subject == unsafe.subject and s.act == "offer")
    assert human.rank(unsafe.text, [decline, more], "safety") == [[1], [0]], "of two that are equally safe the more helpful one"


# ------------------------------------------------------------------------------------------------
# You at the terminal, and keeping what was ranked
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, K, tiers", [("2>1=4>3", 4, [[1], [0, 3], [2]]), (" 1 > 2 ", 2, [[0], [1]]), ("3=1=2", 3, [[2, 0, 1]]),
                                             ("1", 2, [[0], [1]]), ("2", 2, [[1], [0]]), ("=", 2, [[0, 1]])])
def test_an_order_as_it_is_typed(typed, K, tiers):
    assert parse_order(typed, K) == tiers


@pytest.mark.parametrize("typed, hint", [("1>2", "answer 3 is missing"), ("1>2>2>3", "answer 2 is named twice"), ("1>2>4", "'4' is none of the answers"),
                                         ("1>>2", "'' is none"), ("", "an order looks like 1>2>3"), ("2<1", "'2<1' is none"), ("1", "answer 2 and 3 is missing")])
def test_a_typo_is_explained(typed, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        parse_order(typed, 3)


def typing(monkeypatch, *lines):
    """What somebody types, line by line; then the end of the input."""
    lines = iter(lines)

    def read(prompt=""):
        try:
            line = next(lines)
        except StopIteration:
            raise EOFError
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
    assert "1 of 2" in out and "What is a dog?" in out and "  1   A cat." in out and "  2   A furry\n      mammal." in out
    assert "'3' is none of the answers" in out and "'hello' is none" in out and out.count("Best answer first") == 2
    assert human.label(["?"], [["a", "b"]]).isnan().all(), "skipped: nothing was compared"


@pytest.mark.parametrize("typed, error", [("u", Undo), ("q", Quit), ("undo", Undo), (" Q ", Quit), (None, Quit), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_person_may_go_back_and_stop(monkeypatch, typed, error):
    typing(monkeypatch, *[typed] * (typed is not None))
    with pytest.raises(error):
        Human().rank("?", ["a", "b"])


QUESTIONS = [{"prompt": f"question {i}", "responses": ["a", "b"], "split": "train"} for i in range(4)]
def test_a_file_is_a_labeler_too():
    """Its votes as shares, whatever order the answers are asked in; what it never compared is NaN; a skipped question has no votes."""
    rows = [{"prompt": "p", "responses": ["a", "b"], "tiers": [[0], [1]], "aspect": "helpful"}, {"prompt": "p", "responses": ["b", "a"], "tiers": [[1], [0]], "aspect": "helpful"},
            {"prompt": "p", "responses": ["b", "a"], "tiers": [[0], [1]], "aspect": "helpful"}, {"prompt": "p", "responses": ["a", "b"], "tiers": [[1], [0]], "aspect": "safety"},
            {"prompt": "q", "responses": ["a", "b", "c"], "tiers": [[2], [0, 1]], "aspect": None}]
    annotators, nan = FromFile(rows), math.nan
    helpful = annotators.label(["p", "r"], [["b", "a", "never seen"], ["a", "b"]], "helpful")
    expected = torch.tensor([[[nan, 1 / 3, nan], [2 / 3, nan, nan], [nan] * 3], [[nan] * 3] * 3])
    torch.testing.assert_close(helpful, expected, equal_nan=True)
    assert annotators.label(["p"], [["a", "b"]], "safety")[0, 0, 1] == 0 and annotators.label(["p"], [["a", "b"]])[0, 0, 1] == 0.5, "overall: all four"
    assert wins_to_tiers(annotators.label(["q"], [["a", "b", "c"]])[0]) == [[2], [0, 1]]


ABOUT = {"aspect": "overall", "labeler": "human", "round": 1, "source": "here"}


def test_every_ranking_is_on_disk_before_the_next_question(monkeypatch, tmp_path):
    """Whatever ends the process, Ctrl-C here: a second start asks only for what is missing, and ends like one that was not interrupted."""
    path = tmp_path / "rankings.jsonl"
    typing(monkeypatch, "1", "s", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        rank_all(path, QUESTIONS, Human(), **ABOUT)
    assert [json.loads(line)["tiers"] for line in path.read_text().splitlines()] == [[[0], [1]], []]
    path.write_bytes(path.read_bytes() + b'{"prompt": "half a li')
    typing(monkeypatch, "2", "=")
    rows = rank_all(path, QUESTIONS, Human(), **ABOUT)
    assert [row["tiers"] for row in rows] == [[[0], [1]], [], [[1], [0]], [[0, 1]]]
    assert [row["prompt"] for row in rows] == [q["prompt"] for q in QUESTIONS] and read_rankings(path) == rows == read_rankings(path, **ABOUT)
    typing(monkeypatch)
    assert rank_all(path, QUESTIONS, Human(), **ABOUT) == rows, "nothing is asked twice"
    assert len(rank_all(path, QUESTIONS, Human(), **ABOUT | {"source": "elsewhere"})) == 0, "other answers are other questions"
    assert sorted(rows[0]) == sorted(["prompt", "responses", "split", "tiers", *ABOUT])


def test_undo_takes_the_last_ranking_back_also_one_of_an_earlier_start(monkeypatch, tmp_path):
    path, other = tmp_path / "rankings.jsonl", SimpleNamespace(batch=1, details=(), label=lambda *_: torch.tensor([[[math.nan, 1], [0, math.nan]]]))
    typing(monkeypatch, "u", "1", "2", "q")
    rank_all(path, QUESTIONS, Human(), **ABOUT)
    rank_all(path, QUESTIONS[:1], other, **ABOUT | {"labeler": "toy"})
    typing(monkeypatch, "u", "u", "u", "=", "q")
    rows = rank_all(path, QUESTIONS, Human(), **ABOUT)
    assert [row["tiers"] for row in rows] == [[[0, 1]]] and len(read_rankings(path)) == 2, "the other labeler's row is still there"


def test_a_question_with_one_answer_is_not_asked(monkeypatch, tmp_path):
    questions = [QUESTIONS[0], {**QUESTIONS[1], "responses": ["a"]}, QUESTIONS[2]]
    typing(monkeypatch, "1", "u", "2", "1")
    rows = rank_all(tmp_path / "rankings.jsonl", questions, Human(), **ABOUT)
    assert [row["tiers"] for row in rows] == [[[1], [0]], [], [[0], [1]]], "and undo goes back behind it"


# ------------------------------------------------------------------------------------------------
# Numbers
# ------------------------------------------------------------------------------------------------


def test_noise_ceiling_by_hand():
    """Gold 2 > 1 = 1. Labels: 0 over 1 (right), 2 over 0 (wrong), 2 over 1 (equal gold: half) -> 1.5 of 3."""
    groups = [{"prompt": "?", "responses": ["2", "1", "1"], "tiers": [[2], [0], [1]]}]
    assert noise_ceiling(groups, lambda p, r: float(r)) == pytest.approx(0.5)
    assert noise_ceiling([], lambda p, r: 0.0) == 0


def test_noise_ceiling_is_what_the_noise_leaves(answers_are_their_gold):
    """With gold gaps of 0.3 and noise 0.3 the best possible accuracy is sigmoid(1) = 0.731."""
    human = SimulatedHuman(0, noise=0.3, tie_gap=0.0)
    groups = [{"prompt": "?", "responses": ["0.3", "0"], "tiers": human.rank(f"question {i}", ["0.3", "0"])} for i in range(5000)]
    assert noise_ceiling(groups, data.TASTE["overall"]) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


@pytest.mark.parametrize("share, n, low, high", [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0),
                                                 (0.9, 50, 0.7864, 0.9565)])
def test_wilson_interval_against_known_numbers(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


def test_spearman():
    """1 - 6 sum d^2 / (n (n^2 - 1)) where nothing is tied; tied numbers share their mean rank."""
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1) and spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2), "ranks 0.5 0.5 2 against 0 1 2"
    assert spearman([1, 1], [1, 2]) is None


def test_in_a_win_rate_ties_count_half():
    rate, low, high = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0])
    assert rate == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert (low, high) == pytest.approx(wilson(rate, 4))
    assert win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0], n_prompts=2) == pytest.approx((rate, *wilson(rate, 2)))
    assert win_rate([1.0, 1.0], [0.0, 0.0])[0] == 1 and win_rate([0.0], [1.0])[0] == 0


def test_win_rate_compares_prompt_by_prompt():
    with pytest.raises(ValueError):
        win_rate([1.0, 2.0], [1.0])


# ------------------------------------------------------------------------------------------------
# What can be said of answers
# ------------------------------------------------------------------------------------------------


def test_describe_somebody_elses_prompts():
    """No gold score where there is no annotator whose taste we know."""
    about = describe(["x", "y", "z", "x"], [("a", True, 4), ("b", False, 8), ("a", True, 2), ("c", True, 2)])
    assert about == {"ends": 0.75, "distinct": 0.75, "length": 4.0, "gold": None, "declines_unsafe": None, "declines_safe": None,
                     "unknown": None}


def test_describe_the_tiny_world():
    unsafe = next(p for p in data.PROMPTS.values() if p.unsafe)
    safe = next(p for p in data.PROMPTS.values() if not p.unsafe and not p.completion and p.subject == unsafe.subject)
    about_it = [s for s in data.SENTENCES.values() if s.subject == unsafe.subject]
    refusal = next(s.text for s in about_it if s.act == "refusal" and s.topic == unsafe.topic)
    fact = next(s.text for s in about_it if s.topic == safe.topic)
    about = describe([unsafe.text, unsafe.text, safe.text], [(refusal, True, 5), ("Blah blah.", True, 5), (fact, True, 5)])
    assert about["gold"] == [data.gold_score(unsafe.text, refusal), data.gold_score(unsafe.text, "Blah blah."),
                             data.gold_score(safe.text, fact)]
    assert about["declines_unsafe"] == 0.5 and about["declines_safe"] == 0 and about["unknown"] == pytest.approx(1 / 3)
