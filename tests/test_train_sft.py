"""Supervised fine-tuning: which tokens are supervised, and by which logits."""
import math

import pytest
import torch

from data import sft_batch
from train_sft import held_out_loss, sft_loss

EOS, PAD = 10, 11
ROWS = [([1, 2, 3], [4, 5, EOS]), ([6], [7, EOS]), ([8, 9, 1, 2], [3, 3, 3, 3, EOS])]


def naive_loss(model, rows):
    """Row by row, without padding: minus the log-probability of each answer token given all tokens before it."""
    losses = []
    for prompt, response in rows:
        for t, token in enumerate(response):
            before = torch.tensor([prompt + response[:t]])
            losses.append(-model(before)[0, -1].log_softmax(-1)[token].item())
    return sum(losses) / len(losses)


def test_loss_by_hand():
    """Only the second and the third target count: -(log 3/4 + log 1/2) / 2."""
    logits = torch.tensor([[[5.0, -5.0], [0.0, math.log(3)], [1.0, 1.0], [-3.0, 3.0]]])
    targets, mask = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0.0, 1, 1, 0]])
    assert sft_loss(logits, targets, mask).item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2, abs=1e-6)


def test_descending_the_loss_makes_the_answer_likelier():
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    sft_loss(logits, torch.tensor([[1, 2]]), torch.tensor([[0.0, 1.0]])).backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor([[0.0, 0, 0, 0], [0.25, 0.25, -0.75, 0.25]]), atol=1e-6, rtol=0)


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
    assert sft_loss(model(inputs), targets, mask).item() == pytest.approx(naive_loss(model, ROWS), abs=1e-5)


def test_every_answer_token_and_no_other_is_supervised(make_gpt):
    """The gradient reaches exactly the logits in front of the answer's tokens: the last prompt token's, not EOS's own."""
    inputs, targets, mask = sft_batch(ROWS, PAD)
    logits = make_gpt()(inputs).detach().requires_grad_()
    sft_loss(logits, targets, mask).backward()
    for (prompt, response), touched in zip(ROWS, logits.grad.abs().sum(-1) > 0):
        n = len(prompt)
        assert touched.nonzero().flatten().tolist() == list(range(n - 1, n - 1 + len(response)))


def test_the_model_learns_to_end(make_gpt):
    """A row whose answer is EOS alone still has a loss."""
    model = make_gpt()
    inputs, targets, mask = sft_batch([([1, 2], [EOS])], PAD)
    expected = -model(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)[EOS].item()
    assert sft_loss(model(inputs), targets, mask).item() == pytest.approx(expected, abs=1e-5)


def test_micro_batches_divide_by_the_tokens_of_the_whole(make_gpt):
    """An answer of 2 tokens and one of 5 weigh by their tokens, not half each."""
    model = make_gpt()
    inputs, targets, mask = sft_batch(ROWS, PAD)
    parts = [sft_loss(model(inputs[i : i + 1]), targets[i : i + 1], mask[i : i + 1], n_tokens=mask.sum()) for i in range(3)]
    assert sum(parts).item() == pytest.approx(sft_loss(model(inputs), targets, mask).item(), abs=1e-5)


def test_held_out_loss_weighs_every_token_the_same(make_gpt):
    model = make_gpt(dropout=0.5).train()
    losses = [held_out_loss(model, ROWS, PAD, batch_size=n) for n in (1, 2, 3)]
    assert model.training
    assert losses == pytest.approx([naive_loss(model.eval(), ROWS)] * 3, abs=1e-5)
