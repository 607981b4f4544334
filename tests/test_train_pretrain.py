"""Pretraining: the next-token loss, the texts, where a training begins."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_pretrain
from data import UserError, dump_encoding, load_rows, tokens_of
from train_pretrain import check_init, first_words, held_out_texts, lm_loss, make_tokenizer


def test_loss_is_the_mean_of_minus_log_p():
    """Probabilities of the targets 1/4, 3/4, 1/2, 1/2: the mean of their negative logarithms. Targets are a
    slice, as in training."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]], [[2.0, 2.0], [-1.0, -1.0]]])
    tokens = torch.tensor([[1, 0, 1], [0, 0, 1]])
    expected = -(math.log(1 / 4) + math.log(3 / 4) + 2 * math.log(1 / 2)) / 4
    loss = lm_loss(logits, tokens[:, 1:])
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_falls_as_the_target_becomes_likelier():
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    lm_loss(logits, torch.tensor([[2]])).backward()
    expected = torch.tensor([1 / 3, 1 / 3, -2 / 3])
    torch.testing.assert_close(logits.grad[0, 0], expected, atol=1e-6, rtol=0)


def test_large_logits_stay_finite():
    """What is certain and right costs nothing, what is certain and wrong as much as its logits are apart."""
    logits = torch.tensor([[[500.0, 0.0], [0.0, 500.0]]], requires_grad=True)
    loss = lm_loss(logits, torch.tensor([[0, 0]]))
    loss.backward()
    assert loss.item() == pytest.approx(500 / 2)
    expected = torch.tensor([[[0.0, 0.0], [-0.5, 0.5]]])
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)
    small_beside_large = torch.tensor([[[500.0, 0.0], [0.0, 1.0]]])
    expected = math.log(1 + math.exp(-1)) / 2  # 500 taken from all of them would leave nothing of 0 and 1
    assert lm_loss(small_beside_large, torch.tensor([[0, 1]])).item() == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------
# Texts
# ------------------------------------------------------------------------------------------------


def test_text_becomes_two_streams_of_tokens(enc):
    train, test = tokens_of(enc, ("A dog is a furry mammal.", "A cat <|endoftext|>"))
    assert enc.decode(train.tolist()) == "A dog is a furry mammal."
    assert enc.decode(test.tolist()) == "A cat <|endoftext|>" and enc.eot_token not in test
    with pytest.raises(UserError, match="too short"):
        tokens_of(enc, ("A dog is a furry mammal.", ""))


def test_who_goes_on_with_a_model_looks_at_its_old_text_too(tmp_path, enc):
    cfg = SimpleNamespace(init=str(tmp_path / "pretrain.pt"))
    new = np.array([1, 2, 3])
    assert list(held_out_texts(SimpleNamespace(init=""), enc, new)) == ["test_loss"]
    assert list(held_out_texts(cfg, enc, new)) == ["test_loss"], "there may be no old text any more"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pretrain.txt").write_text("A dog is a furry mammal. " * 5)
    (tmp_path / "data" / "pretrain.held_out.txt").write_text("A cat is a small hunter.")
    found = held_out_texts(cfg, enc, new)
    assert found["test_loss"] is new and enc.decode(found["old_loss"].tolist()) == "A cat is a small hunter."


# ------------------------------------------------------------------------------------------------
# Where a training begins
# ------------------------------------------------------------------------------------------------


def test_a_run_folder_has_one_tokenizer(tmp_path, enc):
    cfg = SimpleNamespace(init="", name="other", vocab_size=300, overwrite=False)
    stage = SimpleNamespace(folder=tmp_path, start=0, checkpoint={})
    text = "A dog is a furry mammal. " * 5
    first = make_tokenizer(stage, cfg, text)
    (tmp_path / "tokenizer.json").write_text(stage.new_tokenizer)
    assert first.decode(first.encode_ordinary("A dog")) == "A dog"
    make_tokenizer(stage, cfg, text)
    with pytest.raises(UserError, match="one tokenizer.*--run NAME"):
        make_tokenizer(stage, SimpleNamespace(**{**vars(cfg), "vocab_size": 265}), text)
    cfg = SimpleNamespace(**{**vars(cfg), "vocab_size": 265, "name": ""})
    make_tokenizer(stage, cfg, text)  # nobody needs the one of a training that was killed at its beginning
    (tmp_path / "sft.pt").touch()
    with pytest.raises(UserError, match="one tokenizer.*--run NAME"):
        make_tokenizer(stage, cfg, text)
    cfg.overwrite = True
    make_tokenizer(stage, cfg, text)
    stage.start = 3  # who goes on takes what is there
    assert make_tokenizer(stage, cfg, "other text").n_vocab == first.n_vocab
    stage.start = 0
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        make_tokenizer(stage, SimpleNamespace(**{**vars(cfg), "overwrite": False}), text)


def test_the_tokenizer_comes_with_the_model_that_is_gone_on_with(tmp_path, enc):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer.json").write_text(dump_encoding(enc))
    cfg = SimpleNamespace(init=str(tmp_path / "old/pretrain.pt"), name="", vocab_size=300, overwrite=False)
    stage = SimpleNamespace(folder=tmp_path, start=0)
    found = make_tokenizer(stage, cfg, "not looked at")
    assert found.n_vocab == enc.n_vocab
    assert stage.new_tokenizer == dump_encoding(enc) and not (tmp_path / "tokenizer.json").exists()


def test_only_a_pretrained_model_of_another_run_is_gone_on_with(tmp_path, enc, monkeypatch):
    kind = {"stage": "pretrain", "finished": True}
    monkeypatch.setattr(train_pretrain, "record_in", lambda path: kind)
    with pytest.raises(UserError, match="same run"):
        check_init(tmp_path / "pretrain.pt", tmp_path)
    with pytest.raises(UserError, match="no tokenizer.json beside"):
        check_init(tmp_path / "pretrain.pt", tmp_path / "mine")
    (tmp_path / "tokenizer.json").write_text(dump_encoding(enc))
    check_init(tmp_path / "pretrain.pt", tmp_path / "mine")
    with pytest.raises(UserError, match="gibberish"):
        kind["tokenizer"] = "another"
        check_init(tmp_path / "pretrain.pt", tmp_path / "mine")
    kind |= {"finished": False, "step": 3, "steps": 9, "command": "python train_pretrain.py"}
    with pytest.raises(UserError, match="stopped at step 3 of 9; first go on with it: python train_pretrain"):
        check_init(tmp_path / "pretrain.pt", tmp_path / "mine")
    kind["stage"] = "rm"
    with pytest.raises(UserError, match="checkpoint of the stage rm"):
        check_init(tmp_path / "pretrain.pt", tmp_path / "mine")


def test_a_model_that_goes_on_learns_with_dropout(random_run, monkeypatch, rates):
    """And at the rates of the log."""
    monkeypatch.setattr(train_pretrain, "report", lambda stage, *rest: stage.finish("", [], ""))
    logs, knobs = [], "--init runs/tiny-mine/pretrain.pt --steps 3 --batch_size 2 --device cpu"
    for dropout in ("0", "0.5"):
        train_pretrain.main(f"--data mine {knobs} --dropout {dropout} --run with{dropout}".split())
        logs.append(load_rows(random_run.parent / f"with{dropout}/pretrain.jsonl"))
    assert logs[0][0]["loss"] != logs[1][0]["loss"]
    assert [row["lr"] for log in logs for row in log] == rates


@pytest.mark.parametrize("text, expected", [
    ("In the forest", "In the"), ("In the", "In the"), ("\nIn the end of it", "In the"),
    ("Donaudampfschiff", "Donaudam"), ("In the e", "In the e"), ("", "")])
def test_a_sample_prompt_ends_behind_a_word(text, expected):
    assert first_words(text, 8) == expected
