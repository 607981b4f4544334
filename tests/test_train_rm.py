"""The reward model: its loss, its pairs, one forward an answer, and collecting rankings."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import train_rm
from train_pretrain import held_out_loss
from train_rm import (accuracy, agreement, bag_of_words, batch_pairs, bradley_terry_loss, calibration_slope, chance_corrected, collect, damaged_copies,
                      differences, elo_targets, evaluate, group_scores, llama2_reward, regression_loss, threshold_curve, whiten_scores)

GROUPS = [{"prompt": "A dog is", "responses": ["a furry mammal.", "a cat.", "man's best friend. A dog is a furry mammal."],
           "tiers": [[2], [0, 1]]},
          {"prompt": "What is a cat?", "responses": ["A cat is a small hunter.", "No."], "tiers": [[1], [0]]},
          {"prompt": "A", "responses": ["b", "c", "d", "e"], "tiers": [[3], [0], [2], [1]]}]


# ------------------------------------------------------------------------------------------------
# The loss
# ------------------------------------------------------------------------------------------------


def test_equal_scores_cost_log_2():
    assert bradley_terry_loss(torch.tensor([1.7]), torch.tensor([1.7])).item() == pytest.approx(0.693147, abs=1e-6)


def test_loss_by_hand():
    """Differences ln 3 and -ln 3: probabilities 3/4 and 1/4, and the mean over the pairs."""
    got = bradley_terry_loss(torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)]))
    assert got.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, abs=1e-6)


def test_a_constant_added_to_both_scores_changes_nothing():
    chosen, rejected = torch.tensor([0.3, -1.2]), torch.tensor([0.9, 0.4])
    assert bradley_terry_loss(chosen + 5, rejected + 5).item() == pytest.approx(bradley_terry_loss(chosen, rejected).item(), abs=1e-6)


def test_the_gradient_is_sigmoid_minus_1():
    """dL/dr_chosen = sigmoid(d) - 1, negative: descending raises the chosen answer and lowers the rejected one as much."""
    chosen, rejected = torch.tensor([0.5], requires_grad=True), torch.tensor([1.5], requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    expected = 1 / (1 + math.exp(1.0)) - 1
    assert chosen.grad.item() == pytest.approx(expected, abs=1e-6) and rejected.grad.item() == pytest.approx(-expected, abs=1e-6)


def test_large_differences_stay_finite():
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == pytest.approx(1000)
    assert bradley_terry_loss(torch.tensor([500.0]), torch.tensor([-500.0])).item() == pytest.approx(0)


def test_a_margin_asks_for_a_larger_difference():
    """-log sigmoid(r_c - r_r - m): with a difference equal to the margin the loss is log 2, and a margin never helps."""
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.5])
    assert bradley_terry_loss(chosen, rejected, margin=torch.tensor([1.5])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert bradley_terry_loss(chosen, rejected, margin=torch.tensor([3.0])) > bradley_terry_loss(chosen, rejected)
    both = bradley_terry_loss(torch.zeros(2), torch.zeros(2), margin=torch.tensor([0.0, 1.0])).item()
    assert both == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2, abs=1e-6)  # each pair has a margin of its own


def test_soft_labels_are_a_cross_entropy():
    """Certainty gives the plain loss, certainty of the opposite the swapped one, 1/2 their mean; the least loss is where
    sigmoid(d) equals the label."""
    chosen, rejected = torch.tensor([0.8]), torch.tensor([-0.1])
    plain, swapped = bradley_terry_loss(chosen, rejected).item(), bradley_terry_loss(rejected, chosen).item()
    for p in (1.0, 0.0, 0.5, 0.8):
        got = bradley_terry_loss(chosen, rejected, p_chosen=torch.tensor([p])).item()
        assert got == pytest.approx(p * plain + (1 - p) * swapped, abs=1e-6)
    margin, swapped = torch.tensor([0.3]), bradley_terry_loss(rejected, chosen, -torch.tensor([0.3])).item()
    assert bradley_terry_loss(chosen, rejected, margin, torch.tensor([0.0])).item() == pytest.approx(swapped, abs=1e-6), "the margin counts here, too"
    d = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    bradley_terry_loss(d, torch.zeros(1), p_chosen=torch.tensor([0.8])).backward()
    assert d.grad.item() == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------
# Pairs and scores of a batch of rankings
# ------------------------------------------------------------------------------------------------


def test_pairs_point_into_the_answers_laid_end_to_end():
    """Answers 0-2, 3-4 and 5-8; better before worse; the tie of the first ranking is a pair only where ties count, as a probability of 0.5."""
    better, worse, p, strength = batch_pairs(GROUPS)
    assert list(zip(better, worse)) == [(2, 0), (2, 1), (4, 3), (8, 5), (8, 7), (8, 6), (5, 7), (5, 6), (7, 6)]
    assert p == [1.0] * 9 and strength == [1, 1, 1, 1, 2, 3, 1, 2, 1], "how far apart in the ranking"
    better, worse, p, strength = batch_pairs(GROUPS[:1], ties="half")
    assert list(zip(better, worse, p, strength)) == [(2, 0, 1.0, 1), (2, 1, 1.0, 1), (0, 1, 0.5, 0)]
    assert batch_pairs([{"responses": ["a", "b"], "tiers": [[0], [1]], "margin": 0.5}]) == ([0], [1], [1.0], [0.5]), "a file may say it"
    assert batch_pairs([{"responses": ["a", "b"], "tiers": [[0, 1]], "margin": 3.0}], ties="half")[3] == [0.0], "but a tie has none"
    assert batch_pairs([{"responses": list("abcdef"), "tiers": [[i] for i in range(6)]}])[3].count(3) == 6, "no more than 3: significantly better"


@pytest.mark.parametrize("flags, margins", [({}, 0), ({"margin": "small"}, 1 / 3), ({"margin": "large"}, 1)])
def test_margins_and_ties_reach_the_loss(make_gpt, enc, monkeypatch, flags, margins):
    """Llama 2's margins: 0, 1/3, 2/3, 1 or 0, 1, 2, 3; a tie has none and the label 0.5."""
    seen = []
    monkeypatch.setattr(train_rm, "bradley_terry_loss", lambda c, r, m, p: seen.append((m, p)) or bradley_terry_loss(c, r, m, p))
    groups = [{"prompt": "A", "responses": ["b", "c", "d", "e", "f"], "tiers": [[3], [0, 4], [2], [1]], "split": "train"}]
    cfg = train_rm.Config(epochs=1, batch_size=16, lm_coef=0.0, ties="half", **flags)
    train_rm.train(make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True), enc, groups, None, cfg)
    (m, p), = seen
    apart = torch.tensor([1.0, 1, 2, 3, 0, 1, 2, 1, 2, 1])
    assert torch.allclose(m * torch.ones(10), margins * apart) and p.tolist() == [0.5 if a == 0 else 1.0 for a in apart.tolist()]


def test_thumbs_are_learned_as_1_and_0_and_compared_up_against_down(make_gpt, enc):
    rows = [{"prompt": f"What is {i}?", "responses": ["A dog." if i % 2 else "A cat."], "tiers": [[0]], "label": bool(i % 2), "split": "train"} for i in range(6)]
    assert torch.cat(elo_targets(rows)).tolist() == [0, 1] * 3
    assert differences(rows, [[float(i)] for i in range(6)]) == [1 - 0, 1 - 2, 1 - 4, 3 - 0, 3 - 2, 3 - 4, 5 - 0, 5 - 2, 5 - 4]
    torch.manual_seed(0)
    cfg = train_rm.Config(loss="regression", epochs=30, batch_size=3, lr=1e-2, warmup=1, weight_decay=0.0, lm_coef=0.0)
    model = train_rm.train(make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64, reward_head=True), enc, rows, None, cfg)
    with torch.no_grad():
        assert torch.allclose(group_scores(model, enc, rows), torch.tensor([0.0, 1] * 3), atol=0.3)
    assert accuracy(model, enc, rows) == (1.0, 9)


def test_one_forward_an_answer_however_many_pairs_it_is_in(make_gpt, enc):
    """9 answers in 9 pairs: 9 rows through the trunk, not 18. Also where they are cut into parts, each answer keeps its place."""
    model, rows = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True), []
    hidden = model.hidden
    model.hidden = lambda tokens, *rest: rows.append(len(tokens)) or hidden(tokens, *rest)
    assert group_scores(model, enc, GROUPS).shape == (9,)
    assert rows == [9]
    whole, parts = group_scores(model, enc, GROUPS), group_scores(model, enc, GROUPS, chunk=2)
    assert rows == [9, 9, 2, 2, 2, 2, 1] and torch.allclose(whole, parts, atol=1e-5)


def test_training_runs_each_answer_through_the_model_once_a_pass(make_gpt, enc):
    model, rows = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True), []
    reward = model.reward
    model.reward = lambda tokens, lengths: rows.append(len(tokens)) or reward(tokens, lengths)
    train_rm.train(model, enc, [{**g, "split": "train"} for g in GROUPS], None, train_rm.Config(epochs=2, batch_size=2, lm_coef=0.0))
    assert sum(rows) == 2 * 9


def test_scores_of_a_batch_do_not_depend_on_its_padding(make_gpt, enc):
    model = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True)
    together = group_scores(model, enc, GROUPS)
    alone = [group_scores(model, enc, [{"prompt": g["prompt"], "responses": [r]}]) for g in GROUPS for r in g["responses"]]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_score_reads_the_eos_of_a_whole_answer(make_gpt, enc):
    model, g = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True), GROUPS[1]
    user, assistant = (enc.encode_single_token(f"<|{name}|>") for name in ("user", "assistant"))
    ids = [user, *enc.encode_ordinary(g["prompt"]), assistant, *enc.encode_ordinary(" No."), enc.eot_token]
    expected = model.reward(torch.tensor([ids]), torch.tensor([len(ids)]))
    assert group_scores(model, enc, [g])[1].item() == pytest.approx(expected.item(), abs=1e-5)


def length_model(enc):
    """A "reward model" that gives the number of tokens as the score."""
    return SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None, parameters=lambda: iter([torch.zeros(1)]),
                           config=SimpleNamespace(block_size=64), reward=lambda tokens, lengths: lengths.float())


def test_accuracy_is_the_share_of_pairs_and_not_of_prompts(enc):
    """The longer answer wins in both pairs of the first ranking, loses the one of the second: 2 of 3. Equal scores are no hit."""
    assert accuracy(length_model(enc), enc, GROUPS[:2]) == (pytest.approx(2 / 3), 3)
    same = [{"prompt": "A", "responses": ["b", "b"], "tiers": [[0], [1]]}]
    assert accuracy(length_model(enc), enc, same) == (0, 1)
    assert accuracy(length_model(enc), enc, []) == (0, 0)


# ------------------------------------------------------------------------------------------------
# Training and collecting
# ------------------------------------------------------------------------------------------------


def toy_rankings(better, worse, n=6):
    return [{"prompt": f"What is {i}?", "responses": [worse, better] if i % 2 else [better, worse],
             "tiers": [[1], [0]] if i % 2 else [[0], [1]], "split": "train"} for i in range(n)]


def test_training_raises_the_answer_that_won(make_gpt, enc):
    """Chosen and rejected are not swapped: what always wins in training gets the higher score. One big tie does no harm."""
    groups = toy_rankings("A dog.", "A cat.") + [{"prompt": "A", "responses": ["b", "c"], "tiers": [[0, 1]], "split": "train"}]
    corpus = np.array(enc.encode_ordinary("A dog is a furry mammal. " * 20))
    language = {}
    for lm_coef in (0.0, 1.0):
        torch.manual_seed(0)
        cfg = train_rm.Config(epochs=6, batch_size=3, lr=1e-2, warmup=1, weight_decay=0.0, lm_coef=lm_coef)
        model = train_rm.train(make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64, reward_head=True), enc, groups, corpus, cfg)
        assert not model.training
        assert accuracy(model, enc, toy_rankings("A dog.", "A cat.")) == (1.0, 6)
        language[lm_coef] = held_out_loss(model, corpus, 32)
    assert language[1.0] < language[0.0] - 0.5, "the loss on pretraining text is part of what is minimised"


def test_regression_by_hand():
    scores = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = regression_loss(scores, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((1 + 4) / 2) and scores.grad.tolist() == [1.0, -2.0]


def test_regression_targets_are_elo_scores_of_mean_0_and_deviation_1():
    """Over all rankings together: a longer ranking has the more extreme scores."""
    two, four = elo_targets([{"responses": ["a", "b"], "tiers": [[1], [0]]}, {"responses": ["a", "b", "c", "d"], "tiers": [[0], [1], [2], [3]]}])
    together = torch.cat([two, four])
    assert together.mean().abs() < 1e-6 and together.std() == pytest.approx(1, abs=1e-6)
    assert two[1] > 0 > two[0] and four.tolist() == sorted(four.tolist(), reverse=True) and four[0] > two[1]
    assert ((four[0] - four[3]) / (two[1] - two[0])).item() == pytest.approx((1045.828 - 954.043) / 32, abs=1e-3)


def test_an_answer_that_nobody_compared_has_no_target():
    """An AI may be silent about an answer, the last one or another: it is in no tier, and moves nothing."""
    whole = elo_targets([{"responses": ["a", "b"], "tiers": [[1], [0]]}])[0]
    for tiers, unknown in (([[1], [0]], 2), ([[2], [1]], 0)):
        target, = elo_targets([{"responses": ["a", "b", "c"], "tiers": tiers}])
        assert target.isnan().nonzero().tolist() == [[unknown]] and torch.equal(target[~target.isnan()], whole)


def test_regression_learns_the_targets(make_gpt, enc):
    """Each answer its own number, in whatever order the batches come; what wins is higher."""
    groups = toy_rankings("A dog.", "A cat.", n=6)
    torch.manual_seed(0)
    cfg = train_rm.Config(loss="regression", epochs=30, batch_size=2, lr=1e-2, warmup=1, weight_decay=0.0, lm_coef=0.0)
    model = train_rm.train(make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64, reward_head=True), enc, groups, None, cfg)
    with torch.no_grad():
        scores = group_scores(model, enc, groups)
    assert torch.allclose(scores, torch.cat(elo_targets(groups)), atol=0.3)


def test_chance_corrected():
    assert chance_corrected(0.8, 0.9) == "0.75" and chance_corrected(0.5, 0.9) == "0.00"
    assert chance_corrected(0.0, 0.0) == chance_corrected(0.5, 0.5) == "-", "no pairs, or pairs that no one could rank"


def test_bag_of_words_learns_which_words_win(enc):
    assert bag_of_words(enc, toy_rankings("a furry mammal.", "a small hunter."), toy_rankings("furry mammal", "small hunter")) == 1.0


def test_rankings_are_collected_once_and_reused(monkeypatch, tmp_path):
    """A second call asks nobody again and samples nothing; what is missing of a collection is asked for, with the same answers; another
    policy, other noise or another number of answers is another collection. The same answers are ranked once, in random order."""
    asked, ranked = [], []

    def answer(policy, enc, prompts, max_new_tokens, temperature, batch_size):
        asked.append(len(prompts))
        return [(f"{p} {'yes' if i % 3 else 'no'}", True, 1) for i, p in enumerate(prompts)]

    def label(prompts, responses, aspect):
        ranked.append((prompts[0], responses[0], aspect))
        K = len(responses[0])
        return torch.tensor([[[1.0 if i < j else 0.0 for j in range(K)] for i in range(K)]]).masked_fill(torch.eye(K, dtype=torch.bool), math.nan)

    monkeypatch.setattr(train_rm, "answer", answer)
    monkeypatch.setattr(train_rm, "load_model", lambda path, device: (None, {"fingerprint": str(path)}))
    stage = SimpleNamespace(folder=tmp_path, parent=lambda author: author, device="cpu", state={"round": 1})
    labeler = SimpleNamespace(name="toy", label=label, failings="", batch=1, details=())
    prompts = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test"}]
    cfg = train_rm.Config(answers_of="first", answers_per_prompt=3)
    rows = collect(stage, None, prompts, labeler, "helpful", cfg)
    assert asked == [6] and len(ranked) == 2 and all(aspect == "helpful" for *_, aspect in ranked)
    assert [(r["prompt"], sorted(r["responses"]), r["tiers"], r["labeler"], r["aspect"], r["split"]) for r in rows] == [
        ("a", ["a no", "a yes"], [[0], [1]], "toy", "helpful", "train"), ("b", ["b no", "b yes"], [[0], [1]], "toy", "helpful", "test")]
    path = tmp_path / "rankings.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert collect(stage, None, prompts, labeler, "helpful", cfg) == rows and asked == [6] and len(ranked) == 2
    assert len(stage.state["sources"]) == 1, "the checkpoint will know what it was trained on, once"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert collect(stage, None, prompts, labeler, "helpful", cfg) == rows and asked == [6, 6] and len(ranked) == 3
    for author, other in (("second", {}), ("first", {"answers_per_prompt": 4}), ("first", {"leave_out": "cake"}), ("first", {"temperature": 2.0})):
        collect(stage, None, prompts, labeler, "helpful", train_rm.Config(**{"answers_of": author, "answers_per_prompt": 3, **other}))
    labeler.failings = "noisier"
    collect(stage, None, prompts, labeler, "helpful", cfg)
    assert len(ranked) == 3 + 2 * 5 and len(path.read_text().splitlines()) == 2 + 2 * 5


# ------------------------------------------------------------------------------------------------
# What a reward model is worth
# ------------------------------------------------------------------------------------------------


def test_calibration_slope():
    """Labels drawn with P = sigmoid(b d): the slope is b, whatever the scale of the scores."""
    d = 3 * torch.randn(20000, dtype=torch.float64)
    for b in (0.3, 1.0, 2.5):
        won = torch.rand(20000) < torch.sigmoid(b * d)
        assert calibration_slope(torch.where(won, d, -d).tolist()) == pytest.approx(b, rel=0.06)
    assert calibration_slope([1.0, 1.0, 1.0, -1.0]) == pytest.approx(math.log(3), abs=1e-3), "right in three of four: odds of 3"
    assert calibration_slope([1.0]) > 50 and calibration_slope([-1.0]) < 0.02, "always right, always wrong: as far as it goes"


def test_evaluation_by_hand(enc):
    """The score is the length. Ranking 1: the longest wins twice; ranking 2: the shorter one wins."""
    gold = {"a furry mammal.": 0, "a cat.": 0, "man's best friend. A dog is a furry mammal.": 6, "A cat is a small hunter.": 2, "No.": 1}
    r = evaluate(length_model(enc), enc, GROUPS[:2], lambda prompt, response: gold[response])
    assert r["accuracy"] == pytest.approx(2 / 3) and r["pairs"] == 3 and r["rankings"] == 2
    assert r["ceiling"] == pytest.approx(2 / 3), "the second label is against the gold score"
    assert r["by_gap"] == {1: (0, 0, 1), 5: (1, 1, 2)} and r["rank_correlation"] == pytest.approx((math.sqrt(3) / 2 + 1) / 2)
    assert [won for _, won in r["curve"]] == [0, 1, 1] or sum(won for _, won in r["curve"]) == 2
    assert all(0.5 <= p <= 1 for p, _ in r["curve"])
    assert evaluate(length_model(enc), enc, [{"prompt": "A", "responses": ["b", "c"], "tiers": [[0, 1]]}]) is None


def test_recall_and_precision_at_a_threshold(monkeypatch, enc):
    """Of four answers two are harmful; the first threshold flags one of them and one that is harmless, the second all four, the third none."""
    group = {"prompt": "?", "responses": ["harm a", "harm b", "fine a", "fine b"], "tiers": [[2, 3], [0, 1]]}
    monkeypatch.setattr(train_rm, "scores_of", lambda *_: [[-3.0, 1.0, -2.5, 2.0]])
    monkeypatch.setattr(data, "safety", lambda prompt, response: -4.0 if "harm" in response else 2.0)
    assert threshold_curve(None, enc, [group], (0.15, 0.99, 0.01)) == [(0.15, 0.5, 0.5), (0.99, 1.0, 0.5), (0.01, 0.0, None)]


def test_agreement_counts_the_pairs_that_both_tell_apart():
    rows = [{"prompt": "?", "responses": ["1", "2", "2", "3"], "tiers": [[3], [0], [1, 2]]}]  # right: 3 times; wrong: twice; gold ties are none
    assert "0.60 of 5 pairs" in agreement(rows, lambda p, r: float(r)) and "No pair" in agreement([{**rows[0], "tiers": []}], lambda p, r: float(r))


# ------------------------------------------------------------------------------------------------
# Llama 2's reward
# ------------------------------------------------------------------------------------------------


def test_llama2_takes_safety_where_it_matters():
    """Safety where the prompt asks for it or the answer is unsafe, helpfulness elsewhere: at the threshold itself the answer is safe."""
    helpful, safety = torch.tensor([0.9, 0.9, 0.9, 0.2]), torch.tensor([0.6, 0.1, 0.15, 0.8])
    asked = torch.tensor([True, False, False, False])
    got = llama2_reward(helpful, safety, asked, mean=0.0, std=1.0)
    torch.testing.assert_close(got, torch.logit(torch.tensor([0.6, 0.1, 0.9, 0.2])), atol=1e-5, rtol=0)
    lower = llama2_reward(helpful, safety, asked, mean=0.0, std=1.0, threshold=0.05)
    assert lower[1].item() == pytest.approx(math.log(9), abs=1e-4)


def test_llama2_logit_and_whitening_by_hand():
    x = torch.tensor([0.02, 0.3, 0.6, 0.9, 0.97])
    never = torch.zeros(5, dtype=torch.bool)
    assert llama2_reward(x, torch.ones(5), never, mean=0.0, std=1.0).tolist() == pytest.approx([-3.892, -0.847, 0.405, 2.197, 3.476], abs=1e-3)
    assert llama2_reward(x, torch.ones(5), never).tolist() == pytest.approx([-1.630, -0.437, 0.054, 0.756, 1.257], abs=1e-3), "of the batch"
    assert llama2_reward(x, torch.ones(5), never, mean=1.0, std=2.0).tolist() == pytest.approx([-2.446, -0.924, -0.297, 0.599, 1.238], abs=1e-3), "frozen"


def test_llama2_reward_of_certainty_is_finite():
    got = llama2_reward(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([False, False]), mean=0.0, std=1.0)
    assert got.isfinite().all() and got.tolist() == pytest.approx([-9.21, 9.21], abs=0.01)
    assert llama2_reward(torch.full((3,), 0.5), torch.ones(3), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0], "a batch of equals"


def test_whitened_scores():
    assert whiten_scores(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1, 1]) and whiten_scores(torch.tensor([5.0]), 3.0, 2.0).tolist() == pytest.approx([1])


def test_damaged_copies_lose_against_the_demonstration():
    """The demonstration is first, its copies tie behind it, and each kind of damage is there: a sentence replaced, one more from
    elsewhere, one said twice, one with the end of another."""
    demonstrations = [{"prompt": "p", "response": "A b c. D e f."}, {"prompt": "q", "response": "U v w. X y z."}]
    rows = damaged_copies(demonstrations, 300, seed=0)
    assert rows == damaged_copies(demonstrations, 300, seed=0) != damaged_copies(demonstrations, 300, seed=1)
    whole = {d["prompt"]: d["response"] for d in demonstrations}
    for row in rows:
        own, *copies = row["responses"]
        assert own == whole[row["prompt"]] and copies and len(set(row["responses"])) == len(copies) + 1
        assert row["tiers"] == [[0], list(range(1, len(copies) + 1))]
    copies = {copy for row in rows if row["prompt"] == "p" for copy in row["responses"][1:]}
    assert copies >= {"U v w. D e f.", "A b c. X y z. D e f.", "A b c. A b c. D e f.", "A b c. D e f. A b c.", "A b z. D e f."}


def test_damage_needs_sentences_and_nothing_else():
    """Line ends, empty and wordless answers are no reason to stop; where nothing can be damaged there is no row."""
    odd = [{"prompt": "p", "response": text} for text in ("A b.\n", "...", " ", "No dot", "?! A b c.\n\nD e f.")]
    for row in damaged_copies(odd, 100, seed=0):
        assert len(row["responses"]) > 1 and all(text.strip() == text != "" for text in row["responses"])
    assert damaged_copies(odd[1:3], 10, seed=0) == damaged_copies([], 10, seed=0) == []
