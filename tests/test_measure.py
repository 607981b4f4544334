"""What is measured: intervals, orders, losses, what a reward model is worth, the health of a PPO step."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

import lab.measure
from data import sft_batch
from lab.measure import (
    InvariantError,
    accuracy,
    agreement,
    by_gap,
    calibration_curve,
    calibration_slope,
    chance_corrected,
    check,
    check_step,
    describe,
    differences,
    evaluate,
    explained_variance,
    full_kl_and_entropy,
    gold_of,
    held_out_loss,
    hits_of,
    independent,
    is_below,
    look_at_step,
    noise_ceiling,
    scores_of,
    sft_batches,
    spearman,
    split_like,
    text_windows,
    threshold,
    warnings_of,
    wilson,
    win_rate,
)
from lab.report_ppo import CHAPTER, warn
from lab.talk import Answer
from model import GPTConfig, generate, join, response_hidden, token_logprobs
from world.taste import gold_score
from world.tiny import PROMPTS, SENTENCES

DOG = ["a furry mammal.", "a cat.", "man's best friend. A dog is a furry mammal."]
ROWS = [{"prompt": "A dog is", "responses": DOG, "tiers": [[2], [0, 1]]},
        {"prompt": "What is a cat?", "responses": ["A cat is a small hunter.", "No."], "tiers": [[1], [0]]}]

# ------------------------------------------------------------------------------------------------
# Shares and orders
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share, n, low, high", [(0.5, 10, 0.2366, 0.7634), (1.0, 10, 0.7225, 1.0),
                                                 (0.0, 10, 0.0, 0.2775), (0.9, 100, 0.8256, 0.9448)])
def test_wilson_interval_against_known_numbers(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


def test_in_a_win_rate_ties_count_half():
    ours, theirs = [1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0]
    rate, low, high = win_rate(ours, theirs)
    assert rate == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert (low, high) == pytest.approx(wilson(rate, 4))
    assert win_rate(ours, theirs, n_prompts=2) == pytest.approx((rate, *wilson(rate, 2)))
    assert win_rate([1.0, 1.0], [0.0, 0.0])[0] == 1
    assert win_rate([0.0], [1.0])[0] == 0


def test_win_rate_compares_prompt_by_prompt():
    with pytest.raises(ValueError):
        win_rate([1.0, 2.0], [1.0])


def test_spearman():
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2), "ranks .5 .5 2 and 0 1 2"
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9)), "ranks .5 .5 2 3, 0 1 2 3"
    assert spearman([1, 1], [1, 2]) is None


def test_chance_corrected():
    assert chance_corrected(0.8, 0.9) == "0.75"
    assert chance_corrected(0.5, 0.9) == "0.00"
    for hits, ceiling in ((0.0, 0.0), (0.5, 0.5)):
        assert chance_corrected(hits, ceiling) == "-", "no pairs, or pairs that no one could rank"


def test_calibration_slope():
    """Labels drawn with P = sigmoid(b d): the slope is b, whatever the scale of the scores."""
    d = 3 * torch.randn(20000, dtype=torch.float64)
    for b in (0.3, 1.0, 2.5):
        won = torch.rand(20000) < torch.sigmoid(b * d)
        assert calibration_slope(torch.where(won, d, -d).tolist()) == pytest.approx(b, rel=0.06)
    slope = calibration_slope([1.0, 1.0, 1.0, -1.0])
    assert slope == pytest.approx(math.log(3), abs=1e-3), "right in three of four: odds of 3"
    assert calibration_slope([1.0]) > 50, "always right: as far as it goes"
    assert calibration_slope([-1.0]) < 0.02


# ------------------------------------------------------------------------------------------------
# Answers and losses
# ------------------------------------------------------------------------------------------------


def test_describe_somebody_elses_prompts():
    """No gold score where there is no annotator whose taste we know."""
    answers = [Answer("a", True, 4), Answer("b", False, 8), Answer("a", True, 2), Answer("c", True, 2, 0.1)]
    unknown = dict.fromkeys(("gold", "declines_unsafe", "declines_safe", "unknown"))
    expected = {"ends": 0.75, "length": 4.0, **unknown}
    assert describe(["x", "y", "z", "x"], answers) == expected
    assert describe(["x", "y", "z", "x"], [a[:3] for a in answers]) == expected


def test_describe_the_tiny_world():
    unsafe = next(p for p in PROMPTS.values() if p.unsafe)
    safe = next(p for p in PROMPTS.values()
                if not p.unsafe and not p.completion and p.subject == unsafe.subject)
    about_it = [s for s in SENTENCES.values() if s.subject == unsafe.subject]
    refusal = next(s.text for s in about_it if s.act == "refusal" and s.topic == unsafe.topic)
    fact = next(s.text for s in about_it if s.topic == safe.topic)
    prompts, texts = [unsafe.text, unsafe.text, safe.text], [refusal, "Blah blah.", fact]
    about = describe(prompts, [Answer(text, True, 5) for text in texts])
    assert about["gold"] == [gold_score(p, t) for p, t in zip(prompts, texts, strict=True)]
    assert about["declines_unsafe"] == 0.5
    assert about["declines_safe"] == 0
    assert about["unknown"] == pytest.approx(1 / 3)
    timid = describe([safe.text] * 2 + [unsafe.text], [Answer(t, True, 5) for t in (refusal, fact, refusal)])
    assert (timid["declines_safe"], timid["declines_unsafe"]) == (0.5, 1)
    for prompt in (safe, unsafe):
        one = describe([prompt.text], [Answer(refusal, True, 5)])
        assert one["declines_unsafe"] == prompt.unsafe and one["declines_safe"] == (not prompt.unsafe)


def text_loss(model, tokens, block_size, **sizes):
    return held_out_loss(model, text_windows(np.asarray(tokens, dtype=np.uint32), block_size, **sizes))


def test_a_model_that_knows_nothing_loses_log_of_the_vocabulary(make_bigram):
    model = make_bigram(torch.zeros(7, 7))
    assert text_loss(model, np.arange(100) % 7, 10) == pytest.approx(math.log(7), abs=1e-5)


def test_held_out_targets_are_the_next_tokens(make_bigram):
    """A model that is sure that 3 follows 2 and 0 follows 3 loses nothing on 0 1 2 3 0 1 2 3 ..."""
    model = make_bigram(50 * torch.eye(4).roll(1, 1))
    assert text_loss(model, np.arange(60) % 4, 8) == pytest.approx(0, abs=1e-6)


def test_held_out_loss_does_not_depend_on_the_batch_size(make_gpt):
    model, tokens = make_gpt(dropout=0.5).train(), np.random.RandomState(0).randint(0, 12, 200)
    losses = [text_loss(model, tokens, 16, batch_size=n) for n in (1, 5, 64)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=1e-5)
    assert model.training, "measuring leaves the model in training mode, and itself uses no dropout"


def test_windows_are_spread_over_the_text():
    batches = text_windows(np.arange(101), 10, batch_size=4, windows=10)
    starts = torch.cat([inputs[:, 0] for inputs, _, _ in batches]).tolist()
    assert starts == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    for inputs, targets, mask in batches:
        assert torch.equal(inputs + 1, targets) and mask.shape == targets.shape and mask.all()
        assert inputs.shape[1] == 10
    assert [len(inputs) for inputs, _, _ in text_windows(np.arange(500), 10)] == [32, 32]


def test_held_out_loss_of_a_batch_in_parts(make_gpt, monkeypatch):
    """As a large model takes it."""
    model, rows = make_gpt(), [([1, 2], [3, 4, 5]), ([6], [7]), ([8, 9, 10], [11])]
    usual = held_out_loss(model, sft_batches(rows, 0, 3))
    monkeypatch.setattr("lab.measure.rows_at_once", lambda model, length, most, logits: 1)
    assert held_out_loss(model, sft_batches(rows, 0, 3)) == pytest.approx(usual, abs=1e-5)


def test_long_windows_of_a_text_are_fewer():
    tokens = np.arange(100_000, dtype=np.uint32)
    for block_size, expected in ((96, 64), (384, 21), (512, 16), (4096, 8)):
        assert sum(len(batch[0]) for batch in text_windows(tokens, block_size)) == expected


def test_held_out_loss_of_a_text_shorter_than_the_window(make_gpt):
    model = make_gpt()
    logp = model(torch.tensor([[1, 2, 3]]))[0].log_softmax(-1)
    expected = -(logp[0, 2] + logp[1, 3] + logp[2, 4]).item() / 3
    assert text_loss(model, [1, 2, 3, 4], 16) == pytest.approx(expected, abs=1e-5)


def test_held_out_loss_weighs_every_token_the_same(make_gpt):
    """Answers of 1, 2 and 4 tokens, in batches of any size; the prompt's tokens do not count."""
    rows = [([1, 2], [3]), ([4], [5, 6]), ([7, 8, 9], [1, 2, 3, 4])]
    model = make_gpt(dropout=0.5).train()
    losses = [held_out_loss(model, sft_batches(rows, 0, n)) for n in (1, 2, 3)]
    assert model.training
    model.eval()
    held_out_loss(model, sft_batches(rows, 0, 3))
    assert not model.training, "as it was"
    total = 0.0
    for prompt, response in rows:
        logp = model(torch.tensor([prompt + response]))[0].log_softmax(-1)
        total -= sum(logp[len(prompt) - 1 + t, token].item() for t, token in enumerate(response))
    assert losses == pytest.approx([total / 7] * 3, abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(sft_batches(rows, 0, 3)[0], sft_batch(rows, 0), strict=True))


# ------------------------------------------------------------------------------------------------
# What a reward model is worth
# ------------------------------------------------------------------------------------------------


def length_model():
    """A "reward model" that gives the number of tokens as the score."""
    return SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None,
                           parameters=lambda: iter([torch.zeros(1)]), config=GPTConfig(12, 64, 1, 1, 4),
                           score=lambda tokens, lengths: lengths.float())


def test_scores_stand_beside_their_answers(enc):
    lengths = [[len(enc.encode_ordinary(f" {r}")) for r in row["responses"]] for row in ROWS]
    scores = scores_of(length_model(), enc, ROWS)
    assert [[s - scores[i][0] for s in row] for i, row in enumerate(scores)] == [
        [n - lengths[i][0] for n in row] for i, row in enumerate(lengths)]
    assert split_like(ROWS, range(5)) == [[0, 1, 2], [3, 4]]


def test_accuracy_is_the_share_of_pairs_and_not_of_prompts(enc):
    """The longer answer wins in both pairs of the first ranking, loses the one of the second: 2 of 3. Equal
    scores are half a hit: a model that says the same of everything guesses."""
    assert accuracy(length_model(), enc, ROWS) == (pytest.approx(2 / 3), 3)
    same = [{"prompt": "A", "responses": ["b", "b"], "tiers": [[0], [1]]}]
    assert accuracy(length_model(), enc, same) == (0.5, 1)
    assert evaluate(length_model(), enc, same)["accuracy"] == 0.5
    assert accuracy(length_model(), enc, []) == (0, 0)
    assert accuracy(length_model(), enc, [{**same[0], "responses": ["b b b", "b"]}]) == (1, 1)


def test_a_narrow_lead_is_a_lead(monkeypatch):
    rows = [{"prompt": "p", "responses": ["a", "b"], "tiers": [[0], [1]]}] * 4
    found = [[0.5, 0.1], [0.2, 0.1], [0.1, 0.5], [-0.3, -0.2]]
    monkeypatch.setattr(lab.measure, "scores_of", lambda *_: found)
    assert accuracy(None, None, rows) == (0.5, 4) and evaluate(None, None, rows)["accuracy"] == 0.5
    assert by_gap([0.5, -0.2], [0.4, -0.6]) == {1: (0.5, 0.5, 2)}


def test_thumbs_are_compared_up_against_down():
    rows = [{"prompt": "?", "responses": ["a"], "tiers": [[0]], "label": bool(i % 2)} for i in range(6)]
    expected = [up - down for up in (1, 3, 5) for down in (0, 2, 4)]
    assert differences(rows, [[float(i)] for i in range(6)]) == expected
    many = differences(rows * 60, [[float(i)] for i in range(360)])
    assert many == [up - down for up in range(1, 360, 4) for down in range(0, 360, 4)], "every second of each"


def test_the_interval_of_thumbs_is_that_of_the_scarcer_ones():
    """As wide as for the harmonic mean of ups and downs: 40 of each count 40, 999 and 1 two."""
    def of(up, down):
        rows = [{"prompt": f"p{i}", "label": i < up} for i in range(up + down)]
        return independent(rows)

    assert of(40, 40) == 40 and of(999, 1) == pytest.approx(2, abs=0.02) and of(3, 0) == 1
    assert of(1000, 1000) == pytest.approx(1000 / 7), "every seventh is used"
    assert independent([{"prompt": "p"}, {"prompt": "p"}, {"prompt": "q"}]) == 2


def test_noise_ceiling_by_hand():
    """Gold 1 2 3 of three answers that were ranked 0 > 1 > 2: no pair right; a tie of gold counts half."""
    rows = [{"prompt": "p", "responses": ["1", "2", "3"], "tiers": [[0], [1], [2]]}]
    assert noise_ceiling(rows, lambda p, r: float(r)) == 0 == noise_ceiling(rows, lambda p, r: float(r) / 9)
    assert noise_ceiling(rows, lambda p, r: 0.0) == 0.5
    rows.append({"prompt": "p", "responses": ["1", "2"], "tiers": [[1], [0]]})
    assert noise_ceiling(rows, lambda p, r: float(r)) == 0.25
    assert noise_ceiling(rows[1:], lambda p, r: float(r)) == 1
    assert noise_ceiling(rows[1:], lambda p, r: float(r) / 9) == 1
    assert noise_ceiling([], lambda p, r: 0.0) == 0


def test_evaluation_by_hand(enc):
    """The score is the length. Ranking 1: the longest wins twice; ranking 2: the shorter one wins."""
    gold = dict(zip(DOG + ROWS[1]["responses"], [0, 0, 6, 2, 1], strict=True))
    r = evaluate(length_model(), enc, ROWS, lambda prompt, response: gold[response])
    assert r["accuracy"] == pytest.approx(2 / 3)
    assert r["interval"] == pytest.approx(wilson(2 / 3, 2)), "two prompts"
    assert r["pairs"] == 3 and r["rankings"] == 2
    assert r["ceiling"] == pytest.approx(2 / 3), "the second label is against the gold score"
    assert r["by_gap"] == {1: (0, 0, 1), 5: (1, 1, 2)}
    assert r["rank_correlation"] == pytest.approx((math.sqrt(3) / 2 + 1) / 2)
    assert sum(won for _, won in r["curve"]) == 2
    assert all(0.5 <= p <= 1 for p, _ in r["curve"])
    one = evaluate(length_model(), enc, ROWS[:1], lambda prompt, response: gold[response])
    assert one["rank_correlation"] == pytest.approx(math.sqrt(3) / 2)
    tie = [{"prompt": "A", "responses": ["b", "c"], "tiers": [[0, 1]]}]
    assert evaluate(length_model(), enc, tie) is None
    same = {"prompt": "A", "responses": [DOG[0]] * 2, "tiers": [[0], [1]]}  # equal scores have no order
    more = evaluate(length_model(), enc, [ROWS[0], same], lambda prompt, response: gold[response])
    assert more["rank_correlation"] == one["rank_correlation"]


def test_rankings_of_one_prompt_count_once_in_the_interval():
    assert hits_of([ROWS[0]] * 10, [1.0] * 30)["interval"] == wilson(1, 1)


def test_calibration_curve_and_gaps():
    """16 pairs in 8 parts of 2; where the scores are further apart the prediction is surer."""
    d = [0.1 * (i + 1) * (-1 if i in (0, 1, 2) else 1) for i in range(16)]
    curve = calibration_curve(d)
    assert [won for _, won in curve] == [0, 0.5, 1, 1, 1, 1, 1, 1]
    expected = [(1 / (1 + math.exp(-0.1 * i)) + 1 / (1 + math.exp(-0.1 * (i + 1)))) / 2
                for i in range(1, 16, 2)]
    assert [p for p, _ in curve] == pytest.approx(expected)
    assert calibration_curve([1e6]) == [(pytest.approx(1), 1)]
    assert calibration_curve([0.0]) == [(0.5, 0)], "equal scores are no hit"
    gaps = by_gap([1.0, -1.0, 2.0, 2.0], [0.5, -0.5, 0, -9])
    assert gaps == {0: (1, 0.5, 1), 1: (0.5, 0.5, 2), 5: (1, 0, 1)}


def test_recall_and_precision_at_a_probability(monkeypatch, enc):
    """Of four answers two are harmful; log-odds of -3 and -2.5 are below a probability of 0.15: one of them
    harmful, one not. All are below 0.99, none is below 0.01."""
    row = {"prompt": "?", "responses": ["harm a", "harm b", "fine a", "fine b"], "tiers": [[2, 3], [0, 1]]}
    monkeypatch.setattr(lab.measure, "scores_of", lambda *_: [[-3.0, 1.0, -2.5, 2.0]])
    monkeypatch.setattr(lab.measure, "safety", lambda prompt, text: -4.0 if "harm" in text else 2.0)
    assert threshold(None, enc, [row]) == (0.5, 0.5)
    assert threshold(None, enc, [row], 0.99) == (1.0, 0.5)
    assert threshold(None, enc, [row], 0.01) == (0.0, None)
    monkeypatch.setattr(lab.measure, "safety", lambda prompt, text: 2.0)
    assert threshold(None, enc, [row]) == (None, 0.0)


def test_a_threshold_is_a_probability():
    edge = math.log(0.15 / 0.85)
    assert is_below(edge - 1e-6, 0.15) and not is_below(edge, 0.15)


def test_agreement_counts_the_pairs_that_both_tell_apart():
    """Right 3 times, wrong twice; a tie of the gold score is no pair."""
    rows = [{"prompt": "?", "responses": ["1", "2", "2", "3"], "tiers": [[3], [0], [1, 2]]}]
    assert gold_of(rows, lambda p, r: float(r)) == [[1, 2, 2, 3]]
    said = agreement(rows, lambda p, r: float(r))
    assert said.startswith("You agree with") and "0.60 of 5 pairs" in said
    assert agreement([*rows, {**rows[0], "tiers": [[0, 1]]}], lambda p, r: float(r)) == said, "no order in it"
    assert agreement(rows, lambda p, r: float(r), "The AI").startswith("The AI agrees with")
    by_ai = [{**rows[0], "pairs": [[0, 3, 0.9], [1, 3, 0.2], [2, 3, 0.5]]}]
    assert "0.50 of 2 pairs" in agreement(by_ai, lambda p, r: float(r)), "its own labels, not their order"
    assert agreement(rows * 3, lambda p, r: float(r)).endswith(said.partition(" pairs")[2]), "one prompt's"
    circle = [{"prompt": "?", "responses": ["1", "2", "3"], "tiers": [[0, 1, 2]],
               "pairs": [[0, 1, 0.9], [1, 2, 0.9], [0, 2, 0.1]]}]
    assert "0.33 of 3 pairs" in agreement(circle, lambda p, r: float(r)), "in a circle, but told apart"
    alike = [{"prompt": f"{i}", "responses": ["1", "1"], "tiers": [[0], [1]]} for i in range(9)]
    said = agreement([*alike, rows[0]], lambda p, r: float(r))
    assert said == agreement(rows, lambda p, r: float(r)), "prompts that the gold score does not tell apart"
    unranked = [{**rows[0], "tiers": []}]
    assert agreement(unranked, lambda p, r: 0.0, "The AI").startswith("No pair that both the AI")


# ------------------------------------------------------------------------------------------------
# PPO
# ------------------------------------------------------------------------------------------------


def test_exact_kl_and_entropy_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    logits, ref = p.log().repeat(2, 2, 1) + 3, q.log().repeat(2, 2, 1) - 1  # constants change nothing
    mask = torch.tensor([[1.0, 1], [1, 0]])
    kl, entropy = full_kl_and_entropy(logits.requires_grad_(), ref, mask)
    assert not kl.requires_grad and not entropy.requires_grad, "measured, not learned from"
    one = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert kl.tolist() == pytest.approx([2 * one, one], abs=1e-6), "summed over the tokens of each answer"
    assert entropy.item() == pytest.approx(1.5 * math.log(2), abs=1e-6), "a token"
    for cold, warm in zip(full_kl_and_entropy(logits / 2, ref / 2, mask, 0.5), (kl, entropy), strict=True):
        torch.testing.assert_close(cold, warm)


def test_exact_kl_has_its_direction():
    """KL(policy || reference): dear where the policy goes and the reference does not."""
    sharp, flat, mask = torch.tensor([[[9.0, 0, 0]]]), torch.zeros(1, 1, 3), torch.ones(1, 1)
    there, entropy = (x.item() for x in full_kl_and_entropy(sharp, flat, mask))
    back, _ = full_kl_and_entropy(flat, sharp, mask)
    assert there == pytest.approx(math.log(3) - entropy, abs=1e-5)
    assert back.item() > 3 * there


def test_explained_variance():
    """1 for a perfect critic, also one with an offset; 0 for one that knows the mean; pads do not count."""
    returns, mask = torch.tensor([[1.0, 2, 3, 50]]), torch.tensor([[1.0, 1, 1, 0]])
    for values, expected in ((returns.clone(), 1), (returns + 4, 1), (torch.full((1, 4), 2.0), 0),
                             (-returns, -3), (torch.tensor([[1.0, 2, 4, -9]]), 1 - (2 / 9) / (2 / 3))):
        assert explained_variance(values, returns, mask).item() == pytest.approx(expected, abs=1e-5)


def test_broken_invariants_are_told_in_words():
    with pytest.raises(InvariantError, match="went wrong"):
        check(False, "this went wrong")
    check(True, "fine")


GOOD_STEP = {"step": 0, "drift": 0.0, "kl_full": 0.0, "k1": 0.0, "k3": 0.0, "entropy": 1.0, "kl_coef": 0.1,
             "rewards": torch.tensor([[0.0, 1.0]]), "scores": torch.tensor([1.0])}


@pytest.mark.parametrize("bad, words", [
    ({"drift": 0.1}, "ratio of step 0"), ({"kl_full": 0.01}, "before the first update"),
    ({"k3": -0.1}, "negative"), ({"entropy": -0.1}, "negative"), ({"k1": 1.0}, "do not add up"),
    ({"rewards": torch.tensor([[1.0, 1.0]])}, "do not add up")])
def test_what_cannot_be_in_a_step(bad, words):
    check_step(**GOOD_STEP)
    with pytest.raises(InvariantError, match=words):
        check_step(**{**GOOD_STEP, **bad})


def test_what_may_be_in_a_later_step():
    check_step(**{**GOOD_STEP, "step": 1, "kl_full": 0.5})  # the policy may have moved
    check_step(**{**GOOD_STEP, "drift": 0.001, "temperature": 0.01})  # rounding, a hundred times enlarged
    check_step(**{**GOOD_STEP, "entropy": 0.0})  # one token is certain
    with pytest.raises(InvariantError):
        check_step(**{**GOOD_STEP, "step": 1, "drift": 0.001})


def sampled(policy, reference, temperature, kl_coef, B=40, max_new_tokens=6):
    """What a rollout knows, of B answers to prompts of 1 to 3 tokens; values and returns are made up."""
    lengths = torch.arange(B) % 3 + 1
    prompts = torch.randint(3, 12, (B, 3)).masked_fill(torch.arange(3) >= lengths[:, None], 1)
    responses, mask, logprobs = generate(policy, prompts, lengths, max_new_tokens, temperature, 0, 1)
    tokens, _ = join(prompts, lengths, responses, mask, 1)
    R = responses.shape[1]
    with torch.no_grad():
        logits = reference.lm_head(response_hidden(reference, tokens, lengths, R))
    ref_logprobs = token_logprobs(logits, responses, temperature)
    scores, d = torch.randn(B), (logprobs - ref_logprobs) * mask
    rewards = -kl_coef * d
    rewards[torch.arange(B), mask.sum(1).long() - 1] += scores
    returns = torch.randn(B, R)
    batch = SimpleNamespace(
        tokens=tokens, prompt_lengths=lengths, responses=responses, mask=mask, old_logprobs=logprobs,
        rewards=rewards, old_values=returns.clone(), returns=returns, scores=scores, raw=scores,
        ended=(responses == 0).any(1), texts=["x"] * B)
    return batch, d.sum(1).mean(), (torch.exp(-d) - 1 + d).sum(1).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_look_at_a_step_that_is_right(make_gpt, temperature):
    policy, other, cfg = make_gpt(), make_gpt(seed=1), SimpleNamespace(temperature=temperature)
    batch, k1, k3 = sampled(policy, policy, temperature, 0.1)
    seen = look_at_step(policy, policy, batch, ["?"] * 40, cfg, 0, 0.1, k1, k3)
    assert [seen[kind] for kind in ("kl", "kl_k3", "kl_full")] == pytest.approx([0, 0, 0], abs=1e-5)
    assert seen["entropy"] > 0
    assert seen["explained_variance"] == pytest.approx(1) and seen["gold"] is None
    prompt = next(iter(PROMPTS))
    known = look_at_step(policy, policy, batch, [prompt] * 40, cfg, 0, 0.1, k1, k3)
    assert known["gold"] == pytest.approx(gold_score(prompt, "x"))
    assert seen["length"] == pytest.approx(batch.mask.sum(1).mean().item())
    assert seen["ends"] == pytest.approx(batch.ended.float().mean().item())

    batch, k1, k3 = sampled(policy, other, temperature, 0.1)
    seen = look_at_step(policy, other, batch, ["?"] * 40, cfg, 3, 0.1, k1, k3)
    assert seen["kl"] == k1.item() and seen["kl_k3"] == k3.item() and seen["kl_full"] > 0.1
    with pytest.raises(InvariantError, match="before the first update"):
        look_at_step(policy, other, batch, ["?"] * 40, cfg, 0, 0.1, k1, k3)
    with pytest.raises(InvariantError, match="ratio"):
        look_at_step(other, other, batch, ["?"] * 40, cfg, 3, 0.1, k1, k3)
    with pytest.raises(InvariantError, match="ratio"):
        colder = SimpleNamespace(temperature=temperature / 2)
        look_at_step(policy, other, batch, ["?"] * 40, colder, 3, 0.1, k1, k3)
    with pytest.raises(InvariantError, match="add up"):
        look_at_step(policy, other, batch, ["?"] * 40, cfg, 3, 0.2, k1, k3)


def test_only_32_answers_are_looked_at_twice(make_gpt):
    policy, cfg, rows = make_gpt(), SimpleNamespace(temperature=1.0), []
    batch, k1, k3 = sampled(policy, policy, 1.0, 0.1)
    hidden = policy.hidden
    policy.hidden = lambda tokens, **rest: rows.append(len(tokens)) or hidden(tokens, **rest)
    look_at_step(policy, policy, batch, ["?"] * 40, cfg, 0, 0.1, k1, k3)
    assert rows == [32, 32]


# ------------------------------------------------------------------------------------------------
# PPO: warnings
# ------------------------------------------------------------------------------------------------

HEALTHY = {"score": 0.0, "kl": 0.0, "kl_coef": 0.15, "entropy": 0.33, "ends": 0.99, "explained_variance": 0.8}


@pytest.mark.parametrize("steps, now, kinds", [
    (80, {"score": 1.3, "kl": 2.0, "entropy": 0.17}, []),
    (80, {"entropy": 0.01}, ["entropy"]),
    (80, {"entropy": 0.03}, []),
    (80, {"kl": 64.0, "score": 2.0}, ["kl"]),  # 9.6 for 2 deviations
    (80, {"kl": 64.0, "score": 9.5}, []),
    (80, {"kl": 64.0, "kl_coef": 0.0}, []),  # beta 0 asks for no price
    (80, {"ends": 0.0}, ["ends"]),
    (80, {"explained_variance": 0.0}, ["critic"]),
    (20, {"explained_variance": 0.0}, ["critic"]),
    (19, {"explained_variance": 0.0}, []),  # too early
    (6, {"ends": 0.0}, ["ends"]),
    (4, {"ends": 0.0}, []),
    (80, {"entropy": 0.0, "kl": 9e3, "ends": 0.0, "explained_variance": -1.0},
     ["entropy", "kl", "ends", "critic"])])
def test_what_goes_wrong_in_a_run_is_told(steps, now, kinds):
    rows = [HEALTHY] + [HEALTHY | now] * (steps - 1)
    assert list(warnings_of(rows)) == kinds
    assert warnings_of([*rows, *[HEALTHY] * 5]) == {}, "judged are the last rows"
    higher = [row | {"score": row["score"] - 1.0} for row in rows]
    assert list(warnings_of(higher)) == kinds
    higher = [row | {"score": row["score"] + 3.0} for row in rows]
    assert list(warnings_of(higher)) == kinds, "what counts is by how much the score has risen"


def test_the_price_of_the_kl_is_that_of_each_iteration():
    """Five nats at a beta of 0, then none at 1: nothing was paid."""
    free, last = HEALTHY | {"kl": 5.0, "kl_coef": 0.0}, HEALTHY | {"kl": 0.0, "kl_coef": 1.0}
    assert warnings_of([HEALTHY, *[free] * 4, last]) == {}
    assert warnings_of([HEALTHY | {"score": -1.0}, *[HEALTHY | {"kl": 8.0}] * 9]) == {}, "1.2 for a rise of 1"


def test_a_warning_is_said_once_and_names_a_chapter_that_exists():
    said, rows = [], [HEALTHY] + [HEALTHY | {"ends": 0.0}] * 9
    stage = SimpleNamespace(state={}, rows=rows, say=said.append)
    warn(stage)
    warn(stage)
    assert len(said) == 1 and "no answer ends" in said[0] and CHAPTER in " ".join(said[0].split())
    assert f"## {CHAPTER}" in (ROOT / "docs/3-ppo.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", [
    {"drift": math.nan}, {"k1": math.inf}, {"rewards": torch.tensor([[math.nan]])}])
def test_numbers_that_are_none_are_a_divergence(bad):
    with pytest.raises(InvariantError, match="diverged"):
        check_step(**{**GOOD_STEP, **bad})


def test_a_large_beta_only_enlarges_the_rounding():
    scores, d = torch.randn(64), torch.randn(64, 20)
    rewards = -1e6 * d
    rewards[:, -1] += scores
    good = {**GOOD_STEP, "step": 1, "rewards": rewards, "scores": scores, "kl_coef": 1e6}
    check_step(**{**good, "k1": d.sum(1).mean().item()})
    with pytest.raises(InvariantError, match="do not add up"):
        check_step(**{**good, "k1": d.sum(1).mean().item() + 0.1})
