"""Pretraining: the next-token loss and the loss on held-out text."""
import math

import numpy as np
import pytest
import torch

import data
from train_pretrain import held_out_loss, lm_loss, tokens_of


def test_loss_is_the_mean_of_minus_log_p():
    """Probabilities of the targets 1/4, 3/4, 1/2, 1/2: the mean of their negative logarithms."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]], [[2.0, 2.0], [-1.0, -1.0]]])
    targets = torch.tensor([[0, 1], [0, 1]])
    expected = -(math.log(1 / 4) + math.log(3 / 4) + 2 * math.log(1 / 2)) / 4
    assert lm_loss(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_falls_as_the_target_becomes_likelier():
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    lm_loss(logits, torch.tensor([[2]])).backward()
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([1 / 3, 1 / 3, -2 / 3]), atol=1e-6, rtol=0)


def test_a_model_that_knows_nothing_loses_log_of_the_vocabulary(make_bigram):
    model = make_bigram(torch.zeros(7, 7))
    model.wte.weight.data.zero_()
    assert held_out_loss(model, np.arange(100, dtype=np.uint32) % 7, 10) == pytest.approx(math.log(7), abs=1e-5)


def test_held_out_targets_are_the_next_tokens(make_bigram):
    """A model that is sure that 3 follows 2 and 0 follows 3 loses nothing on 0 1 2 3 0 1 2 3 ..."""
    model = make_bigram(50 * torch.eye(4).roll(1, 1))
    assert held_out_loss(model, np.arange(60, dtype=np.uint32) % 4, 8) == pytest.approx(0, abs=1e-6)


def test_held_out_loss_does_not_depend_on_the_batch_size(make_gpt):
    model, tokens = make_gpt(dropout=0.5).train(), np.random.RandomState(0).randint(0, 12, 200).astype(np.uint32)
    losses = [held_out_loss(model, tokens, 16, batch_size=n) for n in (1, 5, 64)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=1e-5)
    assert model.training, "measuring leaves the model in training mode, and itself uses no dropout"


def test_held_out_loss_of_a_text_shorter_than_the_window(make_gpt):
    model = make_gpt()
    got = held_out_loss(model, np.array([1, 2, 3, 4], dtype=np.uint32), 16)
    logp = model(torch.tensor([[1, 2, 3]]))[0].log_softmax(-1)
    assert got == pytest.approx(-(logp[0, 2] + logp[1, 3] + logp[2, 4]).item() / 3, abs=1e-5)


def test_text_becomes_two_streams_of_tokens(enc):
    train, test = tokens_of(enc, ("A dog is a furry mammal.", "A cat <|endoftext|>"))
    assert enc.decode(train.tolist()) == "A dog is a furry mammal."
    assert enc.decode(test.tolist()) == "A cat <|endoftext|>" and enc.eot_token not in test
    with pytest.raises(data.DataError, match="too short"):
        tokens_of(enc, ("A dog is a furry mammal.", ""))
