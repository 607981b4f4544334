"""The rules that a reward model has to beat: what they count, what they learn, and what is said of them."""
import math

import pytest
import torch

from lab.baselines import bag_of_words, bag_scores, baselines, length_rule, word_counts
from lab.report_rm import worth


def ranking(prompt, *responses, tiers=([0], [1])):
    return {"prompt": prompt, "responses": list(responses), "tiers": list(tiers)}


def thumb(prompt, response, label):
    return {"prompt": prompt, "responses": [response], "tiers": [[0]], "label": label}


def id_of(enc, word):
    (token,) = enc.encode_ordinary(f" {word}")
    return token


def test_words_are_counted_on_a_log_scale_and_their_order_is_nothing(enc):
    dog, cat = id_of(enc, "dog"), id_of(enc, "cat")
    n, places, tokens, counts = word_counts(enc, ["dog cat dog", "", "cat"])
    found = {(i, t): c for i, t, c in zip(places.tolist(), tokens.tolist(), counts.tolist(), strict=True)}
    assert n == 3
    assert found == pytest.approx({(0, dog): math.log(3), (0, cat): math.log(2), (2, cat): math.log(2)})
    weights = torch.zeros(enc.n_vocab)
    weights[dog], weights[cat] = 2.0, -1.0
    scores = bag_scores(weights, *word_counts(enc, ["dog cat dog", "", "cat", "dog dog cat"]))
    assert scores.tolist() == pytest.approx(
        [2 * math.log(3) - math.log(2), 0.0, -math.log(2), 2 * math.log(3) - math.log(2)])


def test_the_word_that_decides_gets_the_weight(enc):
    rows = [ranking(f"q{i}", "dog cat", "cat") for i in range(9)] + [ranking("q9", "cat", "dog cat")]
    weights = bag_of_words(enc, rows, steps=500, lr=0.05, decay=0.0)
    dog = weights[id_of(enc, "dog")].item()
    assert dog * math.log(2) == pytest.approx(math.log(9), abs=0.01), "right in nine of ten: odds of 9"
    assert weights[id_of(enc, "cat")] == 0, "which both have"
    decayed = bag_of_words(enc, rows, steps=500, lr=0.05, decay=0.1)[id_of(enc, "dog")].item()
    p = 1 / (1 + math.exp(-decayed * math.log(2)))
    assert 2 * 0.1 * decayed == pytest.approx((0.9 - p) * math.log(2), abs=1e-3), "where the gradient is 0"


def test_all_pairs_of_a_ranking_count(enc):
    """The weight of a word in the middle answer alone: it wins one pair and loses one."""
    rows = [ranking("q", "dog", "cat", "", tiers=([0], [1], [2]))]
    weights = bag_of_words(enc, rows, steps=500)
    assert weights[id_of(enc, "dog")] > 0.1
    assert weights[id_of(enc, "cat")].abs() < weights[id_of(enc, "dog")] / 2


def test_thumbs_are_learned_with_a_bias(enc):
    """Three of four thumbs are up, whatever the words: no word is to blame, and none to praise."""
    rows = [thumb(f"q{i}", "dog cat", i % 4 > 0) for i in range(8)]
    weights = bag_of_words(enc, rows, steps=1000)
    assert weights.abs().max() < 0.01
    rows = [thumb("a", "dog", True), thumb("b", "dog", True), thumb("c", "cat", False)]
    weights = bag_of_words(enc, rows)
    assert weights[id_of(enc, "dog")] > 0 > weights[id_of(enc, "cat")]


@pytest.mark.parametrize("rows, expected", [
    ([ranking("a", "long one", "short"), ranking("b", "a cat", "a"), ranking("c", "a", "a dog")],
     ("longer answer wins", 1)),
    ([ranking("a", "a", "a cat"), ranking("b", "a", "b")], ("shorter answer wins", -1)),
    ([thumb("a", "a", True), thumb("b", "a cat", False)], ("shorter answer wins", -1)),
    ([thumb("a", "a", True)], ("longer answer wins", 1))])
def test_the_rule_about_length_is_chosen_in_training(rows, expected):
    assert length_rule(rows) == expected


def test_rules_are_learned_from_training_rows_and_measured_on_held_out_ones(enc):
    training = [ranking(f"q{i}", "dog", "a cat") for i in range(4)]
    held_out = [ranking("x", "dog", "cat cat"), ranking("y", "a dog", "cat"), ranking("y", "cat", "dog"),
                ranking("z", "man", "a")]
    found = baselines(enc, training, held_out)
    assert list(found) == ["bag of words", "shorter answer wins"]
    bag, shorter = found.values()
    assert (bag["accuracy"], bag["pairs"], bag["rankings"]) == (0.75, 4, 4), "z: 'a' is of what lost"
    assert shorter["accuracy"] == 0.375, "x; equally long answers are half a hit"
    low, high = bag["interval"]
    assert low == pytest.approx(0.2561, abs=1e-4) and high == pytest.approx(0.9632, abs=1e-4), "3 prompts"
    turned = baselines(enc, training, [ranking("x", "cat", "dog")])
    assert turned["bag of words"]["accuracy"] == 0, "nothing is learned from what is held out"
    thumbs = [thumb("a", "dog", True), thumb("b", "cat cat", False)]
    found = baselines(enc, thumbs, [*thumbs, thumb("c", "", False)])
    assert found["bag of words"]["accuracy"] == 1.0 and found["bag of words"]["pairs"] == 2
    assert found["shorter answer wins"]["accuracy"] == 0.5
    assert baselines(enc, thumbs, thumbs[:1]) == {}, "no thumb down to compare with"


def test_a_training_of_ties_alone_teaches_nothing(enc):
    assert bag_of_words(enc, [ranking("a", "dog", "cat", tiers=([0, 1],))]).abs().max() == 0


def test_whether_a_reward_model_is_worth_its_name_is_said():
    rules = {"bag of words": {"accuracy": 0.6}, "longer answer wins": {"accuracy": 0.55}}
    assert worth({"accuracy": 0.61}, rules) == "" == worth({"accuracy": 0.5}, {})
    assert "does as well here (bag of words)" in worth({"accuracy": 0.6}, rules)
    rules["longer answer wins"] = {"accuracy": 0.7}
    assert "(longer answer wins)" in worth({"accuracy": 0.65}, rules)
