"""Supervised fine-tuning: which tokens are supervised, and by which logits; the lessons of an AI judge."""
import json
import math
from types import SimpleNamespace

import pytest
import torch

import data
import preferences
import rejection_sampling
import train_ppo
import train_rm
import train_sft
from data import UserError, lay_out, load_rows, sft_batch
from lab.measure import held_out_loss, sft_batches
from lab.records import load_model
from lab.school import by_length, examine, with_context
from lab.tokens import laid_out
from train_sft import batch_loss, order_of, rows_of, sft_loss

EOS, PAD = 10, 11
ROWS = [([1, 2, 3], [4, 5, EOS]), ([6], [7, EOS]), ([8, 9, 1, 2], [3, 3, 3, 3, EOS])]


def naive_loss(model, rows):
    """Row by row, without padding: minus the log-probability of each answer token given all tokens before."""
    losses = []
    for prompt, response in rows:
        for t, token in enumerate(response):
            before = torch.tensor([prompt + response[:t]])
            losses.append(-model(before)[0, -1].log_softmax(-1)[token].item())
    return sum(losses) / len(losses)


def test_loss_by_hand():
    """Only the second and the third target count, however wrong another one is: -(log 3/4 + log 1/2) / 2."""
    logits = torch.tensor([[[500.0, -500.0], [0.0, math.log(3)], [1.0, 1.0], [-3.0, 3.0]]])
    targets, mask = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0.0, 1, 1, 0]])
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert sft_loss(logits, targets, mask).item() == pytest.approx(expected, abs=1e-6)


def test_descending_the_loss_makes_the_answer_likelier():
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    sft_loss(logits, torch.tensor([[1, 2]]), torch.tensor([[0.0, 1.0]])).backward()
    expected = torch.tensor([[0.0, 0, 0, 0], [0.25, 0.25, -0.75, 0.25]])
    torch.testing.assert_close(logits.grad[0], expected, atol=1e-6, rtol=0)


def test_targets_are_the_next_tokens_and_the_mask_is_on_the_answer():
    """The row `prompt 5 6 | answer 7 8` and a shorter one, position by position."""
    inputs, targets, mask = sft_batch([([5, 6], [7, 8]), ([5], [EOS])], PAD)
    assert inputs.tolist() == [[5, 6, 7], [5, EOS, PAD]]
    assert targets.tolist() == [[6, 7, 8], [EOS, PAD, PAD]]
    assert mask.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_batched_loss_equals_the_answers_one_token_at_a_time(make_gpt):
    """Prompt and padding left out, EOS included, no label off by one."""
    model = make_gpt()
    inputs, targets, mask = sft_batch(ROWS, PAD)
    expected = naive_loss(model, ROWS)
    assert sft_loss(model(inputs), targets, mask).item() == pytest.approx(expected, abs=1e-5)
    assert batch_loss(model, inputs, targets, mask).item() == pytest.approx(expected, abs=1e-5)


def test_what_skips_the_vocabulary_changes_no_gradient(make_gpt):
    gradients = []
    for loss_of in (batch_loss, lambda model, inputs, *rest: sft_loss(model(inputs), *rest)):
        model = make_gpt()
        loss_of(model, *sft_batch(ROWS, PAD)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_every_answer_token_and_no_other_is_supervised(make_gpt):
    """The gradient reaches exactly the logits in front of the answer's tokens: the last prompt token's, not
    EOS's own."""
    inputs, targets, mask = sft_batch(ROWS, PAD)
    logits = make_gpt()(inputs).detach().requires_grad_()
    sft_loss(logits, targets, mask).backward()
    for (prompt, response), touched in zip(ROWS, logits.grad.abs().sum(-1) > 0, strict=True):
        n = len(prompt)
        assert touched.nonzero().flatten().tolist() == list(range(n - 1, n - 1 + len(response)))


def test_the_model_learns_to_end(make_gpt):
    """A row whose answer is EOS alone still has a loss."""
    model = make_gpt()
    inputs, targets, mask = sft_batch([([1, 2], [EOS])], PAD)
    expected = -model(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)[EOS].item()
    assert sft_loss(model(inputs), targets, mask).item() == pytest.approx(expected, abs=1e-5)


def test_held_out_loss_weighs_every_token_the_same(make_gpt):
    model = make_gpt(dropout=0.5).train()
    losses = [held_out_loss(model, sft_batches(ROWS, PAD, n)) for n in (1, 2, 3)]
    assert model.training
    assert losses == pytest.approx([naive_loss(model.eval(), ROWS)] * 3, abs=1e-5)


# ------------------------------------------------------------------------------------------------
# The order of the rows, and the school of a judge
# ------------------------------------------------------------------------------------------------


def rows_of_lengths(lengths):
    return [([1] * (n - 1), [2]) for n in lengths]


def test_what_the_context_is_too_short_for_is_told(enc, capsys):
    """Prompt and answer count, the tokens of the template and the EOS with them."""
    short, long = ({"prompt": "1 2", "responses": [text]} for text in ("3 4 5", "3 4 5 6"))
    [(prompt_ids, response_ids)] = lay_out(enc, ["1 2"], ["3 4 5"], 64)
    n = len(prompt_ids) + len(response_ids)
    laid_out(enc, [short, short], n)
    assert capsys.readouterr().out == ""
    laid_out(enc, [short, long], n)
    assert f"within a context of {n} tokens 1 of 2 answers lose their end" in capsys.readouterr().out


def test_demonstrations_are_laid_out_split_by_split(enc, tmp_path):
    rows = [{"prompt": "A dog is", "response": f"{i}", "split": split}
            for i, split in enumerate(("train", "test", "train", "dev"))]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = SimpleNamespace(reviews=0, eval_split="test")
    found = rows_of(SimpleNamespace(data=tmp_path), enc, cfg, 64)
    assert {split: [enc.decode(ids[:-1]) for _, ids in some] for split, some in found.items()} == {
        "train": [" 0", " 2"], "test": [" 1"]}


def test_demonstrations_come_in_a_new_order_every_epoch():
    order = order_of(rows_of_lengths([3] * 10), SimpleNamespace(reviews=0, batch_size=3, seed=0))
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in order(step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_reviews_come_lesson_by_lesson_in_batches_of_similar_length():
    """Within every eight batches rows of similar length share one; no review of a later lesson comes
    earlier."""
    rows = rows_of_lengths([2 + (7 * i) % 40 for i in range(128)])
    batches = by_length(rows, 4)
    assert [len(batch) for batch in batches] == [4] * 32
    for start in range(0, 32, 8):
        eight = batches[start : start + 8]
        assert sorted(sum(eight, [])) == list(range(4 * start, 4 * start + 32))
        spread = [max(len(rows[i][0]) for i in b) - min(len(rows[i][0]) for i in b) for b in eight]
        assert sum(spread) < 40, "sorted, all together span the lengths once"
    lengths = [len(rows[batch[0]][0]) for batch in batches[:8]]
    assert lengths != sorted(lengths), "these eight come in a random order"
    order = order_of(rows, SimpleNamespace(reviews=128, batch_size=4, seed=0))
    assert [order(step) for step in range(32)] == batches and order(32) == batches[0]


def test_lessons_whose_number_is_no_multiple_of_the_batch():
    batches = by_length(rows_of_lengths([3] * 101), 4)
    assert sorted(sum(batches, [])) == list(range(101)) and {len(b) for b in batches} <= {4, 5}


def test_a_longer_context_begins_as_copies_of_the_positions_that_are_known(make_gpt):
    model = make_gpt(block_size=8)
    longer = with_context(model, 20)
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert longer.config.block_size == 20 and torch.equal(longer(tokens), model(tokens))
    assert torch.equal(longer.wpe.weight[8:16], model.wpe.weight)
    assert longer(torch.ones(1, 20, dtype=torch.long)).shape == (1, 20, 12)


def test_an_examination_counts_verdicts_that_are_the_reviewers():
    """Three of the questions end with the verdict; 10 is two tokens and left out; 2 of the other 3 agree."""
    reviews = [{"prompt": "a Best=", "response": "1"}, {"prompt": "b Best=", "response": "2"},
               {"prompt": "c Best=", "response": "2"}, {"prompt": "d Best=", "response": "10"},
               {"prompt": "e Rating=", "response": "5"}]
    says = {"a": "1", "b": "2", "c": "1"}
    judge = SimpleNamespace(next_token=lambda texts, words: [
        {w: float(says[text[0]] == w) for w in words} for text in texts])
    assert examine(judge, "comparisons", "Best=", reviews) == ["comparisons", 3, pytest.approx(2 / 3)]


def test_what_is_held_out_is_measured_and_not_learned(random_run, enc, monkeypatch, rates):
    """The loss of demonstrations, and the table's prompts. A step has the rate of the log, and dropout."""
    asked = []
    monkeypatch.setattr(train_sft, "compare", lambda models, enc, rows, *rest, **more: asked.extend(rows)
                        or SimpleNamespace(text="", results={}))
    logs, knobs = [], "--batch_size 4 --warmup 1 --device cpu"
    for dropout in ("0", "0.5"):
        train_sft.main(f"--data mine {knobs} --dropout {dropout} --name with{dropout}".split())
        logs.append(load_rows(random_run / f"with{dropout}.jsonl"))
    held_out = lay_out(enc, ["What is a cat?"], ["A small hunter."], 64)
    model, _ = load_model(random_run / "with0.pt")
    expected = held_out_loss(model, sft_batches(held_out, data.special_id(enc, "pad"), 1))
    assert logs[0][-1]["test_loss"] == pytest.approx(expected, abs=1e-4)
    assert [row["prompt"] for row in asked] == ["What is a cat?"] * 2
    assert [row["lr"] for log in logs for row in log] == rates
    assert logs[0][0]["loss"] != logs[1][0]["loss"]


@pytest.mark.parametrize("script, flags, words", [
    (train_sft, "", "mine has no demonstrations.*sft.jsonl or preferences.jsonl"),
    (train_ppo, "--start pretrain", "no demonstrations"), (rejection_sampling, "", "no demonstrations"),
    (preferences, "--labeler human", "no training prompt"), (train_rm, "", "no preferences file"),
    (train_rm, "--rankings rankings_human --name mine", "there is no rankings_human: .*--labeler human")])
def test_text_alone_is_told_before_minutes_of_pretraining(tmp_path, monkeypatch, script, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pretrain.txt").write_text("A dog is a furry mammal. " * 60)
    monkeypatch.setattr("train_pretrain.main", lambda argv: pytest.fail("pretraining has begun"))
    with pytest.raises(UserError, match=words):
        script.main(["--data", "mine", "--device", "cpu", *flags.split()])
