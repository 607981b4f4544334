"""The reward model: its loss, its pairs, one forward an answer, and collecting rankings."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_rm
from train_pretrain import held_out_loss
from train_rm import (accuracy, bag_of_words, batch_pairs, bradley_terry_loss, chance_corrected, collect, damaged_copies, elo_targets, group_scores,
                      regression_loss)

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
    d = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    bradley_terry_loss(d, torch.zeros(1), p_chosen=torch.tensor([0.8])).backward()
    assert d.grad.item() == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------
# Pairs and scores of a batch of rankings
# ------------------------------------------------------------------------------------------------


def test_pairs_point_into_the_answers_laid_end_to_end():
    """Answers 0-2, 3-4 and 5-8; winner before loser; the tie of the first ranking is no pair."""
    winners, losers = batch_pairs(GROUPS)
    assert list(zip(winners, losers)) == [(2, 0), (2, 1), (4, 3), (8, 5), (8, 7), (8, 6), (5, 7), (5, 6), (7, 6)]


def test_one_forward_an_answer_however_many_pairs_it_is_in(make_gpt, enc):
    """9 answers in 9 pairs: 9 rows through the trunk, not 18."""
    model, rows = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True), []
    hidden = model.hidden
    model.hidden = lambda tokens, *rest: rows.append(len(tokens)) or hidden(tokens, *rest)
    assert group_scores(model, enc, GROUPS).shape == (9,)
    assert rows == [9]


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
    assert accuracy(length_model(enc), enc, GROUPS[:2], batch_size=1) == (pytest.approx(2 / 3), 3)
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
    two, four = elo_targets([{"tiers": [[1], [0]]}, {"tiers": [[0], [1], [2], [3]]}])
    together = torch.cat([two, four])
    assert together.mean().abs() < 1e-6 and together.std() == pytest.approx(1, abs=1e-6)
    assert two[1] > 0 > two[0] and four.tolist() == sorted(four.tolist(), reverse=True) and four[0] > two[1]
    assert ((four[0] - four[3]) / (two[1] - two[0])).item() == pytest.approx((1045.828 - 954.043) / 32, abs=1e-3)


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
    """A second call with the same source samples nothing; another source does. The same answers are ranked once."""
    asked = []

    def answer(policy, enc, prompts, max_new_tokens, temperature, batch_size):
        asked.append(len(prompts))
        return [(f"{p} {'yes' if i % 3 else 'no'}", True, 1) for i, p in enumerate(prompts)]

    def label(prompts, responses):
        K = max(map(len, responses))
        better = torch.tensor([[1.0 if i < j else 0.0 for j in range(K)] for i in range(K)]).fill_diagonal_(math.nan)
        return better.repeat(len(prompts), 1, 1)

    monkeypatch.setattr(train_rm, "answer", answer)
    stage, labeler = SimpleNamespace(folder=tmp_path), SimpleNamespace(name="toy", label=label)
    prompts = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test"}]
    cfg = train_rm.Config(answers_per_prompt=3)
    rows = collect(stage, None, None, prompts, labeler, cfg, "first policy")
    assert asked == [6]
    assert [(r["prompt"], r["responses"], r["tiers"], r["labeler"], r["split"]) for r in rows] == [
        ("a", ["a no", "a yes"], [[0], [1]], "toy", "train"), ("b", ["b no", "b yes"], [[0], [1]], "toy", "test")]
    assert [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text().splitlines()] == rows
    assert collect(stage, None, None, prompts, labeler, cfg, "first policy") == rows and asked == [6]
    collect(stage, None, None, prompts, labeler, cfg, "second policy")
    assert asked == [6, 6] and len((tmp_path / "rankings.jsonl").read_text().splitlines()) == 4


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
