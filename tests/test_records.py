"""Files that a person, a disk or a second process has changed: one sentence each, and nothing is trained on
them."""
import math
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_run import here, new_stage, read, saved, toy_training  # noqa: F401  (here is a fixture)

import lab.run
from data import UserError
from lab.commands import run_folder
from lab.records import fingerprint_of, load_checkpoint, record_of, rows_until
from world.labelers import RankingFile

SIZES = [("n_layer", 10**9), ("n_layer", -1), ("n_head", 0), ("n_head", 3), ("n_embd", "4"),
         ("vocab_size", None), ("block_size", math.nan), ("block_size", 2**40), ("dropout", 7),
         ("value_head", 1), ("other", 1)]


def changed(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="is damaged") as error:
        load_checkpoint(path)
    return str(error.value)


@pytest.mark.parametrize("name, value", SIZES)
def test_a_size_that_is_none_is_told_before_anything_is_allocated(here, name, value):  # noqa: F811
    path = saved(new_stage()).path
    message = changed(path, lambda c: c["model_config"].update({name: value}))
    assert "model_config" in message or "no multiple of n_head" in message


@pytest.mark.parametrize("key, value", [
    ("stage", 5), ("stage", "a\x1b[2J"), ("command", "a\x1bb"), ("knobs", []), ("knobs", {"rankings": 5}),
    ("knobs", {"limit": "x"}), ("parents", {"../x.pt": "a"}), ("parents", {"x.pt": 1}),
    ("step", -3), ("step", "1"), ("steps", None), ("finished", "x"), ("state", 0)])
def test_a_field_that_is_none_is_told(here, key, value):  # noqa: F811
    message = changed(saved(new_stage()).path, lambda c: c.update({key: value}))
    assert message.isprintable()


@pytest.mark.parametrize("state", [
    {"sft_scale": [1.0]}, {"sft_scale": [math.nan, 1.0]}, {"sft_scale": [0.0, 0.0]},
    {"kl_coef": math.inf}, {"warned": 5}, {"winners": [5]}, {"winners": [[]]}, {"winners": [[{"prompt": 5}]]},
    {"winners": [[{"prompt": "a", "response": "b", "score": math.nan}]]}, {"left": [{"gold": math.nan}]},
    {"picture": [[]]}])
def test_a_state_that_nothing_could_go_on_with_is_told(here, state):  # noqa: F811
    changed(saved(new_stage()).path, lambda c: c.update(state=state))


@pytest.mark.parametrize("change", [
    lambda w: w.pop("ln_f.bias"), lambda w: w.update(more=torch.ones(1)),
    lambda w: w.update({"ln_f.bias": torch.ones(5)}), lambda w: w.update({"ln_f.bias": torch.ones(4).long()}),
    lambda w: w["ln_f.bias"].fill_(math.nan), lambda w: w["ln_f.bias"].add_(1e-6)])
def test_weights_that_are_others_are_told(here, change):  # noqa: F811
    changed(saved(new_stage()).path, lambda c: change(c["model"]))


def test_a_flipped_bit_is_found(here):  # noqa: F811
    path = saved(new_stage()).path
    whole, chance, used = path.read_bytes(), random.Random(0), 0
    weights = load_checkpoint(path)["model"]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path)["model"]
        except UserError:
            continue
        used += 1  # in the padding of the archive: nothing else has changed
        assert all(torch.equal(found[name], x) for name, x in weights.items())
    assert used < 20


def test_a_small_file_that_unpacks_to_much_is_not_unpacked(here):  # noqa: F811
    path = saved(new_stage()).path
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(here / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(here / "bomb.pt")


def test_a_training_state_that_does_not_fit_is_told(here):  # noqa: F811
    with pytest.raises(SystemExit):
        toy_training(stop_at=3)
    path = Path("runs/tiny/pretrain.pt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer"] = {"param_groups": 5}
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="state of its training does not fit"):
        toy_training()


@pytest.mark.parametrize("change", [
    lambda rows: rows[:1], lambda rows: rows[:1] + rows, lambda rows: ["5\n"] + rows[1:],
    lambda rows: ["{\n"] + rows, lambda rows: [rows[0].replace("1.0", '"high"')] + rows[1:],
    lambda rows: [rows[0].replace("1.0", "NaN")] + rows[1:], lambda rows: ['{"step": 0}\n'] + rows[1:]])
def test_metrics_with_gaps_or_doubles_are_not_gone_on_with(here, change):  # noqa: F811
    with pytest.raises(SystemExit):
        toy_training(stop_at=3)
    path = Path("runs/tiny/pretrain.jsonl")
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(UserError, match="does not hold the rows of the [34] steps"):
        toy_training()
    path.unlink()
    with pytest.raises(UserError, match="does not hold the rows"):
        toy_training()


def test_a_picture_that_cannot_be_drawn_costs_one_line(here, monkeypatch, capsys):  # noqa: F811
    def fail(*_):
        raise ValueError("no such font")

    monkeypatch.setattr(lab.run, "picture", fail)
    toy_training()
    assert "no picture (ValueError: no such font)" in capsys.readouterr().out
    assert load_checkpoint("runs/tiny/pretrain.pt")["finished"]


def test_the_backend_of_a_notebook_is_not_asked(tmp_path):
    code = ("from pathlib import Path; from lab.report import picture; from lab.explain import draw_tokens\n"
            "picture(Path('a.png'), [], [('t', {}, 'u')], '狗')\n"
            "draw_tokens(Path('b.png'), ['狗'], {'new log p': [-1.0]}, 0.2, 'one token')")
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    assert told.returncode == 0 and "Glyph" not in told.stderr, told.stderr


def test_a_training_that_diverges_ends_in_a_sentence(here):  # noqa: F811
    stage = new_stage()
    saved(stage, finished=False)
    for _ in stage.steps(3):
        with pytest.raises(UserError, match="step 0: loss is nan.*--lr .0.5. or a coefficient"):
            stage.log(0, loss=math.nan)
        stage.cfg.critic_lr = 7.0
        with pytest.raises(UserError, match="--lr .0.5. or --critic_lr .7.0. or a coefficient"):
            stage.log(0, loss=math.nan)
        with torch.no_grad():
            stage.tracked["model"].ln_f.bias.fill_(math.inf)
        with pytest.raises(UserError, match="weights are not finite"):
            stage.save(1, True)
        break


def test_two_processes_do_not_make_one_stage(here):  # noqa: F811
    code = ("import sys; from pathlib import Path; from lab.lock import take\n"
            "take(Path('runs/tiny'), 'pretrain'); print('held', flush=True); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, cwd=here,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is at runs/tiny/pretrain"):
            new_stage()
        new_stage("--name", "mine")
        other.kill()
    toy_training()
    assert not Path("runs/tiny/.pretrain.lock").exists(), "nothing is left behind"


@pytest.mark.parametrize("run", ["../x", "/elsewhere/x", "a/../../x", "3" * 300])
def test_a_run_lies_in_the_folder_of_runs(run):
    with pytest.raises(UserError, match="--run"):
        run_folder(read("--run", run))


def test_another_number_of_threads_is_said(here, monkeypatch, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        toy_training(stop_at=3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    toy_training()
    assert "begun with threads 1, now threads 7" in capsys.readouterr().out


def test_any_damage_is_one_sentence_or_changes_nothing(here):  # noqa: F811
    """A seeded loop: cut off, bytes turned, zeroed, doubled, or the fields of a checkpoint replaced."""
    path, chance = saved(new_stage()).path, random.Random(1)
    whole, weights = path.read_bytes(), load_checkpoint(path)["model"]
    fields = list(torch.load(path, weights_only=True))
    odd = [None, -1, "x", [], {}, {"a": 1}, math.nan, 2**70]
    refused = 0
    for n in range(300):
        start, end = sorted(chance.choices(range(len(whole)), k=2))
        copies = [whole[:end], whole[start:], whole[:start] + bytes(end - start) + whole[end:],
                  whole[:start] + chance.randbytes(8) + whole[start + 8:], whole[:start] + whole]
        path.write_bytes(copies[n % 5])
        if n % 6 == 0:
            path.write_bytes(whole)
            checkpoint = torch.load(path, weights_only=True)
            checkpoint[chance.choice(fields)] = chance.choice(odd)
            torch.save(checkpoint, path)
        try:
            found = load_checkpoint(path)["model"]
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert all(torch.equal(found[name], x) for name, x in weights.items())
    assert refused > 250


def test_a_file_that_may_not_be_read_is_said_to_be_so(here, monkeypatch):  # noqa: F811
    path = saved(new_stage()).path

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="may not be read .Permission denied"):
        load_checkpoint(path)


def test_a_pipe_in_a_run_is_no_file(tmp_path):
    """To read one would never end."""
    for name in ("preferences.jsonl", "rankings.json", "sft.jsonl", "judged.jsonl"):
        os.mkfifo(tmp_path / name)
    for read_it in (lambda: fingerprint_of(tmp_path / "preferences.jsonl"),
                    lambda: record_of(tmp_path, "rankings"), lambda: rows_until(tmp_path / "sft.jsonl", 1),
                    lambda: RankingFile(tmp_path / "judged.jsonl")):
        with pytest.raises(UserError):
            read_it()


def test_moments_of_another_shape_are_told(here):  # noqa: F811
    with pytest.raises(SystemExit):
        toy_training(stop_at=3)
    path = Path("runs/tiny/pretrain.pt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer"][0]["state"][0]["exp_avg"] = torch.ones(7)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="state of its training does not fit"):
        toy_training()


def test_before_the_first_step_there_are_no_metrics(tmp_path):
    """A training may be killed between its first checkpoint and the file of its metrics."""
    assert rows_until(tmp_path / "sft.jsonl", 0) == []
