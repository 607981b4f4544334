"""Labelers, rankings, pairs and the numbers made of them."""
import math
import random

import pytest
import torch

import data
from preferences import SimulatedHuman, bradley_terry_fit, describe, elo_scores, noise_ceiling, rank_correlation, ranking_to_games, ranking_to_pairs, wilson, win_rate, wins_to_tiers


@pytest.fixture
def answers_are_their_gold(monkeypatch):
    """In these tests an answer is a number in words, and that is its gold score."""
    monkeypatch.setattr(data, "gold_score", lambda prompt, response: float(response))


# ------------------------------------------------------------------------------------------------
# Rankings
# ------------------------------------------------------------------------------------------------


def test_a_ranking_becomes_all_its_pairs_but_the_ties():
    assert ranking_to_pairs([[1], [0, 2]]) == [(1, 0), (1, 2)]
    assert set(ranking_to_pairs([[3], [0], [2], [1]])) == {(3, 0), (3, 2), (3, 1), (0, 2), (0, 1), (2, 1)}
    assert ranking_to_pairs([[0, 1, 2]]) == []


@pytest.mark.parametrize("K", [2, 4, 9])
def test_k_answers_give_k_times_k_minus_1_halves(K):
    assert len(ranking_to_pairs([[i] for i in range(K)])) == K * (K - 1) // 2


def wins_of(tiers, K):
    wins = torch.full((K, K), math.nan)
    for i, j in ranking_to_pairs(tiers):
        wins[i, j], wins[j, i] = 1.0, 0.0
    for tied in tiers:
        for i in tied:
            for j in tied:
                if i != j:
                    wins[i, j] = 0.5
    return wins


CLEAN = [[0], [1], [2], [3]]  # 0 > 1 > 2 > 3


def test_a_ranking_as_games():
    assert ranking_to_games([[1], [0, 2]]) == [(0, 1, 0.0), (0, 2, 0.5), (1, 2, 1.0)]


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


def test_bradley_terry_fit():
    """Known minimum; every win and loss counts once, whatever their order; without games between two, the prior says equal."""
    assert bradley_terry_fit([CLEAN]).tolist() == pytest.approx([2.288, 0.7102, -0.7102, -2.288], abs=1e-3)
    assert bradley_terry_fit([[[1], [0]], [[0], [1]]]).tolist() == pytest.approx([0, 0], abs=1e-6)
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
    first, again, other = (SimulatedHuman(seed).label(["?"] * 20, responses) for seed in (3, 3, 4))
    assert torch.equal(first.nan_to_num(9), again.nan_to_num(9)) and not torch.equal(first.nan_to_num(9), other.nan_to_num(9))


@pytest.mark.parametrize("gap", [0.0, 0.3, 0.9])
def test_noise_follows_the_bradley_terry_model(answers_are_their_gold, gap):
    """The better answer wins with probability sigmoid(gap / noise); within five standard deviations of 8000 answers."""
    human, n = SimulatedHuman(0, noise=0.3, tie_gap=0.0), 8000
    wins = sum(human.rank("?", [str(gap), "0"])[0] == [0] for _ in range(n)) / n
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
    for _ in range(50):
        assert sorted(i for tied in human.rank("?", ["0", "0.2", "0.4", "0.1"]) for i in tied) == [0, 1, 2, 3]


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
    groups = [{"prompt": "?", "responses": ["0.3", "0"], "tiers": human.rank("?", ["0.3", "0"])} for _ in range(5000)]
    assert noise_ceiling(groups, data.gold_score) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


@pytest.mark.parametrize("share, n, low, high", [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0),
                                                 (0.9, 50, 0.7864, 0.9565)])
def test_wilson_interval_against_known_numbers(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == 1 and rank_correlation([1, 2, 3], [3, 2, 1]) == -1
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6)), "tau-b: a tie on one side"
    assert rank_correlation([1, 1], [1, 2]) is None


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
