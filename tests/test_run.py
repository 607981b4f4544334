"""Run folder, checkpoints, going on after a stop, parents, collections."""
import atexit
import contextlib
import inspect
import json
import os
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import data
import lab.data_folder
import lab.lock
import lab.run
import lab.show
from data import UserError, encode_prompt
from lab.checks import NoInit
from lab.cli import Common, knob, parse
from lab.commands import STAGES, command_of, main_of, recipe_of
from lab.data_folder import check_apart, fill_once
from lab.machine import memory_bill, pick_device, pick_dtype, random_state, set_random_state
from lab.optim import muon, set_lr
from lab.records import load_language_model, load_model, record_in
from lab.run import (
    Stage,
    fingerprint,
    finished,
    load_checkpoint,
    record_of,
    train_if_missing,
    write_atomic,
)
from lab.tokens import encode_prompts, room_for_prompts
from model import GPT, GPTConfig


@dataclass
class Config(Common):
    steps: int = knob(10, "steps", low=1)
    lr: float = knob(0.5, "rate", low=0)
    timeout: float = knob(1.0, "changes nothing that is learned", learned=False)
    files: tuple = knob((), "names")
    questions: int = knob(0, "questions", learned=False)
    reviews: int = knob(0, "reviews", learned=False)


PRESETS = {"tiny": {}, "small": {}}
SMOKE = types.SimpleNamespace(config="smoke", data="", seed=0)
FILES = {"pretrain.pt", "pretrain.jsonl", "pretrain.png", "pretrain.samples.txt", "data"}


def read(*argv):
    preset = [] if "--config" in argv else ["--config", "tiny"]
    return parse(Config, PRESETS, "doc", [*preset, *argv])


# ------------------------------------------------------------------------------------------------
# Devices, files, checkpoints
# ------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_told():
    assert pick_device("cpu") == "cpu" and pick_device() in ("cpu", "cuda", "mps")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name in (name for name, is_there in there.items() if not is_there):
        with pytest.raises(UserError, match="--device cpu"):
            pick_device(name)
    with pytest.raises(UserError, match="expected auto, cpu"):
        pick_device("gpu")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A process that dies while it writes leaves the old file as it was."""
    path = tmp_path / "x.txt"
    write_atomic(path, "old ü")
    assert path.read_text(encoding="utf-8") == "old ü"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü"
    write_atomic(path, b"bytes")
    assert path.read_bytes() == b"bytes"


def test_a_fingerprint_changes_with_any_weight(make_gpt):
    model = make_gpt()
    first = fingerprint(model)
    assert first == fingerprint(make_gpt()) != fingerprint(make_gpt(seed=1))
    with torch.no_grad():
        model.ln_f.bias[3] += 1e-6
    assert fingerprint(model) != first


@pytest.mark.parametrize("asked, device, units, stage, dtype", [
    ("auto", "cpu", {"amx_bf16": False, "avx512_bf16": True}, "pretrain", "float32"),
    ("auto", "cpu", {"amx_bf16": True}, "pretrain", "bfloat16"),
    ("auto", "cpu", {"amx_bf16": True}, "sft", "float32"),
    ("auto", "cpu", {"amx_bf16": True}, "rm", "float32"),
    ("bfloat16", "cpu", {"amx_bf16": True}, "rm", "bfloat16"),
    ("auto", "cpu", {"amx_bf16": True}, "ppo", "float32"),
    ("auto", "cpu", {}, "sft", "float32"), ("auto", "mps", {}, "sft", "float32"),
    ("bfloat16", "cpu", {}, "sft", "bfloat16"), ("bfloat16", "cpu", {}, "ppo", "float32"),
    ("float32", "cpu", {"amx_bf16": True}, "sft", "float32")])
def test_bfloat16_where_there_are_units_for_it_and_not_in_ppo(
        asked, device, units, stage, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert pick_dtype(asked, device, stage) == dtype


def test_products_of_a_training_pass_are_as_asked_and_that_is_told(here, capsys):
    """Weights and what is outside the context stay float32; the parents are asked for the same."""
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    for asked in ("float32", "bfloat16"):
        stage = new_stage("--dtype", asked, "--name", f"in_{asked}")
        with stage.autocast():
            assert model(torch.zeros(1, 2, dtype=torch.long)).dtype == getattr(torch, asked)
        stage.describe(model, "random weights")
        assert f"{asked} on cpu" in " ".join(capsys.readouterr().out.split())
        assert command_of(stage.cfg, "sft")[-2:] == ["--dtype", asked]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_who_goes_on_with_other_products_is_told(here, capsys):
    saved(new_stage("--steps", "6", "--dtype", "bfloat16"), finished=False)
    new_stage("--steps", "6", "--dtype", "float32")
    assert "begun with dtype bfloat16, now dtype float32" in capsys.readouterr().out


def test_the_random_state_can_be_put_back():
    state = random_state()
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"model": 1}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("text.pt", "other.pt", "tensor.pt"):
        with pytest.raises(UserError, match=f"{name}: not a checkpoint of this project"):
            load_checkpoint(tmp_path / name)
    for read_it in (load_checkpoint, record_in):
        with pytest.raises(UserError, match="no such checkpoint; .* has other.pt, tensor.pt, text.pt"):
            read_it(tmp_path / "missing.pt")


@pytest.mark.parametrize("content", ["", "some text here for you\n", "{}", "\x80\x02.", "(l."])
def test_a_file_that_is_no_checkpoint_is_told_from_one(tmp_path, content):
    """Whatever an unpickler makes of it."""
    (tmp_path / "text.pt").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "text.pt")


@pytest.mark.parametrize("change", [
    lambda c: c.pop("finished"), lambda c: c.pop("fingerprint"),
    lambda c: c["model"].update(reward_gain=torch.ones(())),
    lambda c: c["knobs"].update(whitening="frozen")])
def test_a_checkpoint_of_an_earlier_version_is_one_sentence(here, change):
    toy_training()
    path = Path("runs/tiny/pretrain.pt")
    checkpoint = load_checkpoint(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="earlier version.*--overwrite.*--run NAME"):
        toy_training()
    toy_training("--overwrite")


# ------------------------------------------------------------------------------------------------
# Names and commands
# ------------------------------------------------------------------------------------------------


def test_a_collection_of_another_models_answers_has_a_command_by_its_name():
    assert recipe_of("sft") == "train_sft.py" and recipe_of("nothing") is None
    assert recipe_of("rankings.ppo") == "preferences.py --answers_of ppo --name rankings.ppo"
    assert recipe_of("rankings_safety.rs.1") == (
        "preferences.py --aspect safety --answers_of rs.1 --name rankings_safety.rs.1")
    assert recipe_of("rs.4") == "rejection_sampling.py --rounds 4"
    assert recipe_of("rs.0") is recipe_of("rs.01") is recipe_of("rs.\u0663") is None, "no such rounds"
    assert recipe_of("rm.rs.1") is recipe_of("rs.x") is recipe_of("rejection_sampling") is None


@pytest.mark.parametrize("config", ["tiny", "smoke"])
def test_the_data_that_are_shown_are_those_that_a_run_gets(here, monkeypatch, config):
    def write_world(folder, seed, **sizes):
        asked.append((seed, sizes))

    asked, cfg = [], types.SimpleNamespace(config=config, seed=0, data="")
    monkeypatch.setattr(lab.data_folder, "write_world", write_world)
    lab.show.data_folder(cfg, Path("runs/shown"), Path("shown"))
    lab.data_folder.fill(cfg, Path("runs/written"))
    assert len(asked) == 2 and asked[0] == asked[1] and bool(asked[0][1]) == (config == "smoke")


def test_commands_say_only_what_is_not_usual():
    assert command_of(read(), "sft") == ["train_sft.py", "--config", "tiny"]
    words = " ".join(command_of(read("--seed", "3", "--run", "mine", "--device", "cpu"), "rm_first"))
    assert words.startswith("train_rm.py --config tiny --rankings rankings --epochs 1")
    assert words.endswith("--run mine --seed 3 --device cpu")
    assert command_of(read("--run=-h"), "sft")[-1] == "--run=-h", "which is no flag"
    assert command_of(read(), "train_rm.py --name x") == ["train_rm.py", "--config", "tiny", "--name", "x"]


@pytest.mark.parametrize("stage, name", [
    ("pretrain", "ppo"), ("ppo", "rm_first"), ("rm", "rankings_ai"), ("sft", "rankings.ppo"),
    ("rm", "preferences"), ("rm", "tokenizer"), ("rm", "../x"), ("rm", "a b"),
    ("rm", "x" * 101), ("rm", "狗" * 50)])
def test_a_variant_cannot_take_a_name_that_means_something_else(here, stage, name):
    with pytest.raises(UserError, match="name of another stage"):
        new_stage("--name", name, stage=stage)


def test_a_name_of_the_table_is_its_own_scripts(here):
    assert new_stage("--name", "rm_first", stage="rm").path == Path("runs/tiny/rm_first.pt")
    stage = new_stage("--name", "rankings_ai", stage="preferences")
    assert stage.path == Path("runs/tiny/rankings_ai.jsonl")


@pytest.mark.parametrize("place, fine", [("runs/mine", False), ("runs/mine/data", False), ("runs", True),
                                         ("mine", True), ("runs/mine/data/sft.jsonl", False)])
def test_a_users_files_do_not_lie_where_a_run_writes(place, fine):
    if fine:
        check_apart(place, Path("runs/mine"))
    else:
        with pytest.raises(UserError, match="lies in the folder of the run"):
            check_apart(place, Path("runs/mine"))


def test_files_in_the_runs_data_folder_that_no_command_has_put_there_are_left_alone(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "sft.jsonl").write_text("mine")
    with pytest.raises(UserError, match="data holds sft.jsonl without our pretrain.held_out.txt"):
        fill_once(SMOKE, tmp_path)
    assert (folder / "sft.jsonl").read_text() == "mine"


def test_a_data_folder_that_was_not_written_to_its_end_is_written_again(tmp_path):
    fill_once(SMOKE, tmp_path)
    (tmp_path / "data/pretrain.txt").unlink()
    (tmp_path / "data/sft.jsonl").write_text("")
    fill_once(SMOKE, tmp_path)
    assert (tmp_path / "data/pretrain.txt").exists() and (tmp_path / "data/sft.jsonl").read_text()


def test_run_folders_are_named_after_preset_data_and_seed(here):
    assert new_stage().folder.name == "tiny" and new_stage("--seed", "3").folder.name == "tiny-seed3"
    letters = new_stage("--data", "letters")
    assert letters.folder.name == "tiny-letters" and letters.knobs["data"] == "letters", "as it was given"
    assert new_stage("--run", "mine").folder == Path("runs/mine")
    with pytest.raises(UserError, match="--data"):
        new_stage("--config", "small")


# ------------------------------------------------------------------------------------------------
# A stage of a run
# ------------------------------------------------------------------------------------------------


def fake_world(folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pretrain.txt", "pretrain.held_out.txt"):
        (folder / name).write_text(f"world {seed}")


def fake_convert(source, folder):
    fake_world(folder, source)
    (folder / "source.json").write_text(json.dumps({"source": source, "files": {}}))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Runs of a test go to an empty directory; their data are two words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab.data_folder, "write_world", fake_world)
    monkeypatch.setattr(lab.data_folder, "convert", fake_convert)
    monkeypatch.setattr(lab.data_folder, "check_unchanged", lambda source, folder: None)
    return tmp_path


def new_stage(*argv, stage="pretrain"):
    return Stage(read("--device", "cpu", *argv), stage)


def test_threads_are_set_told_and_handed_on_to_parents(here, capsys, monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    new_stage("--name", "usual")
    stage = new_stage("--threads", "3", "--dtype", "float32")
    assert set_to == [3], "without the flag they stay as they are"
    stage.describe(GPT(GPTConfig(5, 8, 1, 1, 4)), "random weights")
    said = " ".join(capsys.readouterr().out.split())
    assert f"float32 on cpu, threads: {torch.get_num_threads()}" in said and "1 blocks, 4 wide" in said
    assert command_of(stage.cfg, "sft")[-4:] == ["--threads", "3", "--dtype", "float32"]


def test_what_memory_a_training_takes_is_told(here, capsys):
    """By hand, 4 bytes a number: 85.05 M in the blocks of GPT-2's size, 39.00 M in its embeddings; of a
    micro-batch each of 12 blocks keeps 16 vectors a token and the softmax of 12 heads."""
    with torch.device("meta"), NoInit():
        gpt2 = GPT(GPTConfig(50260, 512, 12, 12, 768))
    said = memory_bill(gpt2, rows=4, length=500, logits=96, networks=[gpt2, gpt2], frozen=[gpt2, gpt2])
    kept = 2 * 12 * 500 * (16 * 768 + 12 * 500) + 4 * 96 * 50260
    assert 4 * 4 * kept == pytest.approx(3.82e9, rel=0.01)
    assert said == ("up to 8.1 GB of memory: weights 2.0, gradients 1.0, the optimizer 1.3, "
                    "activations 3.8"), "Muon: 85.05 M + 2 x 39.00 M each"
    said = memory_bill(gpt2, 4, 500, 96, [gpt2, gpt2], {gpt2}, sampled=64)
    assert "weights 1.5, gradients 1.0, the optimizer 2.0" in said, "Adam's two moments"
    assert "activations 6.1" in said, "64 (2 x 12 x 500 x 768 + 3 x 96 x 50260): more than the micro-batch"
    new_stage().describe(GPT(GPTConfig(5, 8, 1, 1, 4)), "random weights", rows=2, length=8, logits=8)
    assert capsys.readouterr().out.rstrip().endswith("; 0.1 GB of memory")


def test_a_finished_checkpoint_has_no_optimizer_but_ppos(here):
    """Nobody goes on with it; lab.explain shows the next step of PPO."""
    for stage, holds in (("pretrain", False), ("sft", False), ("ppo", True)):
        new = new_stage("--name", f"of_{stage}", stage=stage)
        model = GPT(GPTConfig(5, 8, 1, 1, 4))
        new.track(model=model, critic=model, optimizer=muon(model, 0.01))
        new.save(0, False)
        assert {"critic", "optimizer"} <= load_checkpoint(new.path).keys()
        new.save(0, True)
        kept = load_checkpoint(new.path)
        assert ("optimizer" in kept) == holds and "critic" in kept


def test_a_save_that_takes_long_is_done_less_often(here, monkeypatch):
    """Steps of 6 s: with quick saves the pauses are 5, 10, 20, 40, 60 s and so on; where a save takes 10 s
    they are at least 200 s."""
    for seconds, most, least in ((0, 40, 10), (10, 5, 4)):
        stage, clock, saves = new_stage("--name", f"takes_{seconds}"), [0.0], []
        monkeypatch.setattr(lab.run, "time", types.SimpleNamespace(time=lambda clock=clock: clock[0]))

        def save(step, finished, clock=clock, saves=saves, seconds=seconds):
            clock[0] += seconds
            saves.append(step)

        stage.save = save
        for _ in stage.steps(70):
            clock[0] += 6
        assert saves[:2] == [0, 1] and saves[-1] == 70 and least <= len(saves) <= most, saves


def saved(stage, finished=True, step=1):
    """Save that stage as it is, with some model."""
    stage.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    stage.file("jsonl").write_text('{"step": 0}\n')
    stage.total = step
    stage.save(step, finished)
    return stage


def toy_training(*argv, stop_at=None):
    """A stage whose training uses random numbers, an optimizer with a memory, and a state: all that has to be
    there again when it goes on."""
    stage = new_stage("--steps", "6", *argv)
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    optimizer = muon(model, 0.01)
    stage.track(model=model, optimizer=optimizer)
    stage.state.setdefault("beta", 1.0)
    for step in stage.steps(6):
        set_lr(optimizer, step, 6, 2)
        wrong = model(torch.randint(5, (2, 4))) - torch.randn(2, 4, 5)
        loss = wrong.pow(2).mean() * stage.state["beta"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.state["beta"] *= 0.9
        stage.log(step, ("loss",), loss=loss.item(), sometimes=None if step % 2 else 1.0)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
    stage.finish("answers", [("Loss", {"training": "loss", "now and then": "sometimes"}, "nats")], "look")
    return stage


def contents(folder="runs/tiny"):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_finished_stage_holds_all_its_files(here):
    stage = toy_training()
    folder = here / "runs" / "tiny"
    assert {p.name for p in folder.iterdir()} == FILES
    rows = [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(6))
    assert {tuple(r) for r in rows} == {("step", "loss", "sometimes")}
    assert (folder / "pretrain.samples.txt").read_text() == "answers\n"
    assert (folder / "pretrain.png").read_bytes().startswith(b"\x89PNG")
    model, checkpoint = load_model(folder / "pretrain.pt")
    assert checkpoint["finished"] and checkpoint["step"] == 6 and not model.training
    assert checkpoint["fingerprint"] == fingerprint(model) == fingerprint(stage.tracked["model"])
    knobs = {"config": "tiny", "seed": 0, "data": "", "steps": 6, "lr": 0.5, "files": []}
    assert checkpoint["knobs"] == knobs
    assert checkpoint["command"] == "python train_pretrain.py --config tiny --device cpu --steps 6"


def test_a_finished_stage_does_nothing_again(here, capsys):
    toy_training()
    before = contents()
    with pytest.raises(SystemExit) as stop:
        toy_training()
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "is finished" in out and "pretrain.samples.txt" in out
    assert contents() == before
    toy_training("--overwrite")


def test_other_knobs_ask_for_a_name_and_touch_nothing(here):
    toy_training()
    before = contents()
    with pytest.raises(UserError, match=r"lr 0.5 -> 0.25.*--name"):
        toy_training("--lr", "0.25")
    with pytest.raises(UserError, match=r"files \[\] -> \['a'\]"):
        toy_training("--files", "a")
    assert contents() == before
    toy_training("--lr", "0.25", "--name", "slow")
    assert Path("runs/tiny/slow.pt").exists() and Path("runs/tiny/slow.png").exists()
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_knob_that_changes_nothing_that_is_learned_may_change(here):
    toy_training()
    with pytest.raises(SystemExit) as stop:
        toy_training("--timeout", "3")
    assert stop.value.code == 0


def test_the_same_command_goes_on_and_the_result_is_that_of_a_straight_run(here, capsys, monkeypatch):
    """Weights, metrics, random numbers, optimizer and state: Ctrl-C after the third step, then again."""
    straight = toy_training("--run", "straight")
    monkeypatch.setattr(sys, "argv", ["train_pretrain.py", "--config", "tiny", "--overwrite"])
    with pytest.raises(SystemExit) as stop:
        toy_training("--run", "broken", stop_at=2)
    out = capsys.readouterr().out
    assert stop.value.code == 130 and out.endswith("goes on:\npython train_pretrain.py --config tiny\n")
    assert load_checkpoint("runs/broken/pretrain.pt")["step"] == 3
    with open("runs/broken/pretrain.jsonl", "a") as file:  # as if killed later than its last checkpoint
        file.write('{"step": 3, "loss": 9.0, "sometimes": null}\n{"step": 4, "lo')
    resumed = toy_training("--run", "broken")
    assert "runs/broken/pretrain.pt stopped at step 3 of 6: it goes on from there" in capsys.readouterr().out
    assert fingerprint(resumed.tracked["model"]) == fingerprint(straight.tracked["model"])
    metrics = [(here / f"runs/{run}/pretrain.jsonl").read_text() for run in ("broken", "straight")]
    assert metrics[0] == metrics[1] and resumed.state == straight.state


def test_the_seconds_of_a_training_are_those_of_all_its_parts(here):
    """Not of what comes behind the last step."""
    with pytest.raises(SystemExit):
        toy_training(stop_at=2)
    path = Path("runs/tiny/pretrain.pt")
    stopped = load_checkpoint(path)
    assert 0 < stopped["seconds"] < 100
    torch.save(stopped | {"seconds": 1000.0}, path)
    stage = toy_training()
    assert 1000 < load_checkpoint(path)["seconds"] == stage.seconds < 1100


def test_an_unfinished_stage_goes_on_with_its_own_knobs_only(here):
    saved(new_stage("--steps", "6"), finished=False)
    with pytest.raises(UserError, match=r"steps 6 -> 7.; it is not finished: go on with python "
                       "train_pretrain.py .* --steps 6, keep both with --name NAME, or .*--overwrite"):
        new_stage("--steps", "7")
    assert new_stage("--steps", "6").start == 1
    assert new_stage("--steps", "7", "--overwrite").start == 0


def test_who_is_stopped_while_drawing_has_a_finished_stage(here, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.run, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy_training()
    assert load_checkpoint("runs/tiny/pretrain.pt")["finished"]


def test_the_same_seed_gives_the_same_weights(here):
    runs = [toy_training("--run", name, "--seed", seed) for name, seed in zip("abc", "556", strict=True)]
    a, b, c = (fingerprint(stage.tracked["model"]) for stage in runs)
    assert a == b != c


# ------------------------------------------------------------------------------------------------
# The data of a run
# ------------------------------------------------------------------------------------------------


def test_a_run_has_its_data_in_its_own_folder(here):
    assert new_stage().data == Path("runs/tiny/data") and new_stage("--seed", "3").data.exists()
    stage = new_stage("--data", "letters")
    assert stage.data == Path("runs/tiny-letters/data") and (stage.data / "source.json").exists()


def test_data_are_written_once(here, monkeypatch):
    path = new_stage().data / "pretrain.txt"
    path.write_text("kept")
    assert new_stage().data / "pretrain.txt" == path and path.read_text() == "kept"
    held_out = (path.parent / "pretrain.held_out.txt").rename("elsewhere")
    with pytest.raises(UserError, match="pretrain.held_out.txt"):
        data.load_text(new_stage().data)
    held_out.rename(path.parent / "pretrain.held_out.txt")
    path.unlink()  # half a world, of a command that died
    new_stage()
    assert path.read_text() == "world 0"
    saved(new_stage())
    path.unlink()
    with pytest.raises(UserError, match="pretrain.txt is gone: put it back"):
        new_stage()
    seen = []
    new_stage("--data", "letters")
    monkeypatch.setattr(lab.data_folder, "check_unchanged", lambda *both: seen.append(both))
    new_stage("--data", "letters")
    assert seen == [("letters", Path("runs/tiny-letters/data"))]


def test_a_run_does_not_change_from_the_tiny_world_to_own_data_or_back(here):
    toy_training("--run", "mine")
    with pytest.raises(UserError, match="tiny world"):
        new_stage("--run", "mine", "--data", "letters", "--name", "other")
    new_stage("--data", "letters")
    with pytest.raises(UserError, match="add --data letters"):
        new_stage("--run", "tiny-letters")


def test_a_run_goes_on_where_its_data_have_moved(here):
    """What the files hold is compared (lab/source.py), not the path that a record has of them."""
    saved(new_stage("--data", "letters"), finished=False)
    assert new_stage("--data", "moved/letters").start == 1
    saved(new_stage("--data", "letters", "--name", "other"))
    with pytest.raises(SystemExit):
        new_stage("--data", "moved/letters", "--name", "other")
    with pytest.raises(UserError, match=r"other knobs \(lr 0.5 -> 0.1\)"):
        new_stage("--data", "moved/letters", "--name", "other", "--lr", "0.1")


# ------------------------------------------------------------------------------------------------
# Parents
# ------------------------------------------------------------------------------------------------


def test_a_parent_that_was_trained_again_is_told(here):
    """sft was trained from a pretrain.pt that is no longer there: not silently used."""
    toy_training()
    child = new_stage(stage="sft")
    assert child.parent("pretrain") == Path("runs/tiny/pretrain.pt")
    saved(child)
    assert new_stage(stage="rm").parent("sft") == Path("runs/tiny/sft.pt")
    saved(new_stage("--steps", "6", "--overwrite"))
    with pytest.raises(UserError, match="trained again since.*python train_sft.py .* --overwrite"):
        new_stage(stage="rm").parent("sft")
    with pytest.raises(UserError, match="trained again since"):
        new_stage(stage="sft")


def test_to_go_on_with_a_parent_that_was_trained_anew_is_refused(here):
    """The parent's file was lost and is another one now: half a training with each would be neither."""
    toy_training()
    child = new_stage(stage="sft")
    child.parent("pretrain")
    saved(child, finished=False)
    assert new_stage(stage="sft").parent("pretrain").exists(), "the same parent is no reason to stop"
    Path("runs/tiny/pretrain.pt").unlink()
    resumed = new_stage(stage="sft")
    saved(new_stage("--steps", "6"))
    with pytest.raises(UserError, match="begun with an earlier pretrain.pt"):
        resumed.parent("pretrain")


def test_a_missing_parent_is_trained_by_its_own_command(here, monkeypatch, capsys):
    """The same run, seed and data; its failure is passed on; it leaves no trace in our random numbers."""
    told = []

    def main(argv):
        told.append(" ".join(argv))
        torch.rand(3)
        if "--seed" in argv:
            sys.exit(7)
        saved(Stage(read(), "pretrain"))

    monkeypatch.setitem(sys.modules, "train_pretrain", types.SimpleNamespace(main=main))
    with pytest.raises(SystemExit) as stop:
        new_stage("--seed", "3", stage="sft").parent("pretrain")
    assert stop.value.code == 7 and told[-1] == "--config tiny --seed 3 --device cpu"
    assert "\npython train_pretrain.py --config tiny --seed 3 --device cpu\n" in capsys.readouterr().out
    stage = new_stage(stage="sft")
    expected = torch.Generator().manual_seed(0)
    assert stage.parent("pretrain").exists()
    assert torch.equal(torch.rand(4), torch.rand(4, generator=expected)), "no number depends on it"
    with pytest.raises(SystemExit):
        new_stage("--run", "mine/first", "--seed", "3", stage="sft").parent("pretrain")
    assert told[-1].startswith("--config tiny --run mine/first")


def test_a_parent_that_another_process_finishes_meanwhile_is_taken(here, monkeypatch):
    def main(argv):
        saved(new_stage())  # of another process, as soon as we know that it is missing
        new_stage()

    monkeypatch.setitem(sys.modules, "train_pretrain", types.SimpleNamespace(main=main))
    assert new_stage(stage="sft").parent("pretrain") == Path("runs/tiny/pretrain.pt")


def test_a_mistake_of_a_parent_names_the_command_whose_flags_it_is_about(here, monkeypatch):
    """Once, where the parent has a parent."""
    def refuse(argv):
        raise UserError("--x 48 is too long")

    monkeypatch.setitem(sys.modules, "train_pretrain", types.SimpleNamespace(main=refuse))
    monkeypatch.setitem(sys.modules, "train_sft", types.SimpleNamespace(
        main=lambda argv: new_stage(stage="sft").parent("pretrain")))
    with pytest.raises(UserError) as error:
        new_stage(stage="ppo").parent("sft")
    assert str(error.value) == ("--x 48 is too long (told by what comes first: python train_pretrain.py "
                                "--config tiny --device cpu)")


def test_a_parent_that_nobody_makes_is_told(here):
    toy_training()
    with pytest.raises(UserError, match="has no mine, and no stage makes one; it has pretrain"):
        new_stage(stage="rm").parent("mine")
    saved(new_stage("--name", "half"), finished=False)
    with pytest.raises(UserError, match="half is not finished; go on with: python train_pretrain.py"):
        new_stage(stage="rm").parent("half")
    with pytest.raises(UserError, match="has no ../tiny/pretrain, and no stage makes one"):
        new_stage("--run", "other", stage="rm").parent("../tiny/pretrain")


def test_nothing_takes_the_place_of_what_it_was_made_from(here):
    """Neither of itself nor of an ancestor: what is in between could no longer be used, nor the new one."""
    saved(new_stage())
    for name, start in (("one", "pretrain"), ("two", "one")):
        stage = new_stage("--name", name, stage="sft")
        stage.parent(start)
        saved(stage)
    for start in ("one", "two"):
        with pytest.raises(UserError, match="give the new one a --name of its own"):
            new_stage("--name", "one", "--overwrite", stage="sft").parent(start)
    assert new_stage("--name", "two", "--overwrite", stage="sft").parent("one") == Path("runs/tiny/one.pt")


def test_a_finished_stage_of_earlier_parents_is_told_whoever_asks(here):
    saved(new_stage())
    child = new_stage(stage="sft")
    child.parent("pretrain")
    saved(child)
    assert finished(read(), "sft")
    other = new_stage("--overwrite")
    torch.manual_seed(1)
    saved(other)
    with pytest.raises(UserError, match="sft.pt was made from an earlier pretrain.pt, which has been"):
        finished(read(), "sft")


def test_a_reward_model_is_none_that_writes(here):
    saved(new_stage())
    stage = new_stage("--name", "mine", stage="rm")
    stage.track(model=GPT(GPTConfig(5, 8, 1, 1, 4, reward_head=True)))
    stage.save(0, True)
    assert not load_language_model(Path("runs/tiny/pretrain.pt"))[0].training
    with pytest.raises(UserError, match="^runs/tiny/mine.pt: a reward model gives scores, no answers"):
        load_language_model(stage.path)


def test_a_stage_without_a_recipe_can_be_given_one(here, monkeypatch):
    def main(argv):
        assert argv == ["--config", "tiny", "--name", "rm.2", "--epochs", "1"]
        saved(Stage(read("--name", "rm.2"), "rm"))

    monkeypatch.setitem(sys.modules, "train_rm", types.SimpleNamespace(main=main))
    path = train_if_missing(read(), "rm.2", "train_rm.py --name rm.2 --epochs 1")
    assert path == Path("runs/tiny/rm.2.pt") == finished(read(), "rm.2")
    assert train_if_missing(read(), "rm.2") == path, "what is there is not made again"


def test_every_stage_of_the_table_is_a_script_of_this_repository():
    root = Path(lab.run.__file__).parent.parent
    for script in {command.split()[0] for command in STAGES.values()}:
        assert Path(inspect.getfile(main_of(script))) == root / script, "docs/, too"


# ------------------------------------------------------------------------------------------------
# Collections of rankings
# ------------------------------------------------------------------------------------------------


def collection(*argv, name="rankings", rows=2, parent=None):
    stage = new_stage("--name", name, *argv, stage="preferences")
    if parent:
        stage.parent(parent)
    stage.begin_collection()
    with stage.path.open("a") as file:
        file.writelines(f'{{"row": {i}}}\n' for i in range(rows))
    return stage


def test_a_collection_is_a_file_with_a_record_beside_it(here):
    stage = collection("--files", "a")
    record = record_of(stage.folder, "rankings")
    assert not record["finished"] and record["knobs"]["files"] == ["a"], "the record is there from the start"
    assert finished(stage.cfg, "rankings") is None
    stage.finish_collection("some answers")
    record = json.loads(Path("runs/tiny/rankings.json").read_text())
    assert record["finished"] and record["step"] == 2 and record["stage"] == "preferences"
    assert finished(stage.cfg, "rankings") == Path("runs/tiny/rankings.jsonl")
    assert Path("runs/tiny/rankings.samples.txt").read_text() == "some answers\n"
    assert not Path("runs/tiny/rankings.pt").exists()
    with pytest.raises(SystemExit) as stop:
        collection("--files", "a")
    assert stop.value.code == 0


def test_a_finished_collection_of_which_a_part_is_gone_goes_on(here, capsys):
    collection().finish_collection("")
    for rows in ('{"row": 0}\n{"row": 1}\n', '{"row": 0}\n{"row": 1}'):  # as editors save it
        Path("runs/tiny/rankings.jsonl").write_text(rows)
        with pytest.raises(SystemExit):
            new_stage("--name", "rankings", stage="preferences")
    Path("runs/tiny/rankings.jsonl").write_text('{"row": 0}\n')
    new_stage("--name", "rankings", stage="preferences")
    assert "is not complete: it goes on from there" in capsys.readouterr().out


def test_a_collection_that_stopped_goes_on_and_keeps_its_rows(here, capsys):
    toy_training()
    stage = collection(parent="pretrain")
    again = new_stage("--name", "rankings", stage="preferences")
    assert "goes on" in capsys.readouterr().out and again.path.read_text().count("\n") == 2
    assert again.parents == stage.parents != {}
    with pytest.raises(UserError, match="other knobs"):
        new_stage("--name", "rankings", "--lr", "0.1", stage="preferences")
    new_stage("--name", "rankings", "--overwrite", stage="preferences").begin_collection()
    assert not again.path.exists(), "who overwrites begins with no ranking"
    new_stage("--name", "rankings", "--overwrite", stage="preferences").begin_collection()
    [old] = Path("runs/tiny").glob("rankings.old-*")
    assert old.read_text().count("\n") == 2, "what somebody has answered is kept"
    old.rename(old.with_suffix(".old-20260101-120000"))
    again.path.write_text("{}\n")
    new_stage("--name", "rankings", "--overwrite", stage="preferences").begin_collection()
    assert len(list(Path("runs/tiny").glob("rankings.old-*"))) == 2, "and so it is when he overwrites twice"


def test_a_model_trained_from_rankings_that_have_changed_since_is_told(here):
    stage = collection()
    stage.finish_collection("")
    model = new_stage(stage="rm")
    assert model.parent("rankings") == stage.path
    saved(model)
    assert new_stage(stage="ppo").parent("rm").exists()
    with stage.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="earlier rankings.jsonl, which has been changed since"):
        new_stage(stage="ppo").parent("rm")


def test_preferences_of_a_user_are_a_parent(here):
    stage = new_stage("--data", "letters", stage="rm")
    with pytest.raises(UserError, match="preferences.jsonl: no such file"):
        stage.parent("preferences")
    (stage.data / "preferences.jsonl").write_text("{}\n")
    assert stage.parent("preferences") == stage.data / "preferences.jsonl"
    assert "data/preferences.jsonl" in stage.parents


def test_rankings_without_a_record_are_not_gone_on_with(here):
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/rankings.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="without its record rankings.json"):
        new_stage("--name", "rankings", stage="preferences")
    Path("runs/tiny/rankings.json").write_text("[1]")
    with pytest.raises(UserError, match="not the record of a collection"):
        new_stage("--name", "rankings", stage="preferences")
    new_stage("--name", "rankings", "--overwrite", stage="preferences")


def test_the_file_of_a_lock_goes_with_its_process(here, monkeypatch):
    """Where a command is refused, too."""
    at_the_end = []
    monkeypatch.setattr(atexit, "register", lambda call, *args: at_the_end.append((call, args)))
    lab.lock.take(Path("runs"), "x")
    assert [file.name for file in Path("runs").iterdir()] == [".x.lock"]
    for call, args in at_the_end:
        call(*args)
    assert not list(Path("runs").iterdir())


def test_one_name_is_one_kind_of_stage(here):
    collection(name="mine")
    with pytest.raises(UserError, match="is a stage preferences of this run"):
        new_stage("--name", "mine", "--overwrite", stage="rm")


# ------------------------------------------------------------------------------------------------
# Room and contexts
# ------------------------------------------------------------------------------------------------


def test_an_answer_must_leave_room_for_a_prompt(enc, make_gpt, capsys):
    model = make_gpt(vocab_size=enc.n_vocab)
    with pytest.raises(UserError, match="--max_new_tokens 24 leaves no room for a prompt"):
        room_for_prompts(24, model)
    prompts = ["a", "What is a dog? " * 9]
    short, long = encode_prompts(enc, prompts, 11, model)  # 11, an EOS and 12 are 24
    assert "1 of 2 prompts are longer than the 12 tokens" in capsys.readouterr().out
    assert short == encode_prompt(enc, "a"), "whole"
    assert long == encode_prompt(enc, prompts[1])[-12:], "without its beginning"


def test_models_that_read_each_others_answers_see_equally_much(here):
    saved(new_stage())
    saved(new_stage(stage="sft"))
    stage = new_stage(stage="ppo")
    stage.check_contexts(["pretrain", "sft"])
    other = new_stage("--overwrite", stage="sft")
    other.track(model=GPT(GPTConfig(5, 16, 1, 1, 4)))
    other.total = 1
    other.save(1, True)
    with pytest.raises(UserError, match="pretrain 8, sft 16 tokens"):
        stage.check_contexts(["pretrain", "sft"])


# ------------------------------------------------------------------------------------------------
# What goes wrong
# ------------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_drawn_costs_nothing(here, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no such backend")

    with monkeypatch.context() as patch:
        patch.setattr(lab.run, "picture", broken)
        toy_training()
    assert "no picture (ValueError: no such backend)" in capsys.readouterr().out
    assert load_checkpoint("runs/tiny/pretrain.pt")["finished"]
    Path("runs/tiny/b.png").mkdir()
    toy_training("--name", "b")
    assert "no picture (IsADirectoryError" in capsys.readouterr().out
    assert load_checkpoint("runs/tiny/b.pt")["finished"]


def test_a_pipe_in_a_run_folder_holds_nobody_up(here):
    """Whoever opens one waits until somebody opens its other end (here the test does, to fail in time)."""
    paths, ends = ["runs/tiny/pretrain.jsonl", "runs/tiny/.other.lock"], []
    Path("runs/tiny").mkdir(parents=True)
    for path in paths:
        os.mkfifo(path)
        ends.append(os.open(path, os.O_RDWR))
    toy_training()
    assert Path(paths[0]).is_file()
    with pytest.raises(OSError):
        new_stage("--name", "other")
    for end in ends:
        os.close(end)


def test_a_training_that_diverges_ends_in_a_sentence(here):
    stage = new_stage()
    stage.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    with pytest.raises(UserError, match="step 0: loss is nan.*diverged.*--lr"):
        for step in stage.steps(3):
            stage.log(step, loss=float("nan"))
    assert not load_checkpoint(stage.path)["finished"]


def test_who_is_killed_before_the_first_step_begins_as_if_new(here, capsys):
    """--overwrite does not leave the old finished model beside new metrics."""
    toy_training("--run", "straight")
    toy_training()
    stage = new_stage("--steps", "6", "--overwrite")
    stage.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    next(stage.steps(6))
    assert load_checkpoint(stage.path)["step"] == 0
    lab.run.lock.release(stage.folder, stage.name)
    toy_training()
    straight, again = (load_checkpoint(f"runs/{run}/pretrain.pt") for run in ("straight", "tiny"))
    assert straight["fingerprint"] == again["fingerprint"]


def test_a_foreign_or_damaged_tokenizer_is_told(here, enc):
    stage = new_stage()
    stage.new_tokenizer = data.dump_encoding(enc)
    path = stage.folder / "tokenizer.json"
    assert not path.exists()
    saved(stage)
    assert path.read_text() == data.dump_encoding(enc)
    child = new_stage(stage="sft")
    child.parent("pretrain")
    assert child.encoding().n_vocab == enc.n_vocab
    path.write_text(data.dump_encoding(data.make_encoding(data.train_bpe("another text " * 9, 260))))
    with pytest.raises(UserError, match="not the one that the stage pretrain was trained with"):
        child.encoding()
    for content in ("", "[]", '{"tokens": 5}', '{"tokens": ["%"]}'):
        path.write_text(content)
        with pytest.raises(UserError, match="tokenizer.json is damaged"):
            lab.run.encoding_of(stage.folder)
    path.unlink()
    with pytest.raises(UserError, match="there is no tokenizer.json"):
        child.encoding()



@pytest.mark.parametrize("run", ["../x", "/elsewhere/x", "x" * 300, "狗" * 50, "./"])
def test_a_run_lies_in_runs(here, run):
    with pytest.raises(UserError, match="^--run [^,]*: choose a short name"):
        new_stage("--run", run)
    with pytest.raises(UserError, match="made of the name of --data: choose a short name"):
        new_stage("--data", "x" * 120)


# ------------------------------------------------------------------------------------------------
# Stopped at a bad moment
# ------------------------------------------------------------------------------------------------


def test_one_process_fills_the_data_folder_while_others_wait(here, monkeypatch):
    seen = []

    def write(folder, seed):
        with open("runs/tiny/.data.lock") as file, pytest.raises(BlockingIOError):
            lab.lock.fcntl.flock(file, lab.lock.fcntl.LOCK_EX | lab.lock.fcntl.LOCK_NB)
        seen.append(folder)
        fake_world(folder, seed)

    monkeypatch.setattr(lab.data_folder, "write_world", write)
    new_stage()
    new_stage("--name", "other")
    assert len(seen) == 1 and not Path("runs/tiny/.data.lock").exists()


def test_who_had_to_wait_for_the_data_does_not_write_them_again(here, monkeypatch):
    @contextlib.contextmanager
    def after_another(run, name):
        fake_world(run / "data", "first")
        yield

    monkeypatch.setattr(lab.lock, "alone", after_another)
    assert (new_stage().data / "pretrain.txt").read_text() == "world first"


@pytest.mark.parametrize("flags", [(), ("--data", "mine", "--run", "a/b")])
def test_data_that_are_refused_leave_no_folder(here, monkeypatch, flags):
    def refuse(*_):
        raise UserError("line 1")

    for reader in ("write_world", "convert"):
        monkeypatch.setattr(lab.data_folder, reader, refuse)
    with pytest.raises(UserError):
        new_stage(*flags)
    assert not list(here.iterdir())


def test_what_another_process_removes_meanwhile_is_made_again(here, monkeypatch):
    """First the folder that it leaves empty goes, then its lock, before anybody else has it."""
    folder, opened, real = Path("runs/tiny"), [], Path.open

    def too_late(path, *args):
        opened.append(path)
        if len(opened) == 1:
            path.parent.rmdir()
        file = real(path, *args)
        if len(opened) == 2:
            path.unlink()
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", too_late)
        lab.lock.take(folder, "data")
    assert len(opened) == 3 and (folder / ".data.lock").exists()
    lab.lock.release(folder, "data")
    Path("runs/file").write_text("")
    with pytest.raises(FileExistsError):  # which does not go away
        lab.lock.take(Path("runs/file"), "data")


@pytest.mark.parametrize("finished", [True, False])
def test_a_stage_whose_data_were_changed_by_hand_is_told(here, finished):
    saved(new_stage(), finished)
    new_stage("--overwrite")
    path = Path("runs/tiny/data/pretrain.txt")
    path.write_text("edited")
    with pytest.raises(UserError, match="from an earlier data/pretrain.txt, which has been changed since"):
        new_stage()
    if finished:
        with pytest.raises(UserError, match="earlier data/pretrain.txt, which has been changed since"):
            new_stage(stage="sft").parent("pretrain")
    saved(new_stage("--overwrite"))
    assert new_stage(stage="sft").parent("pretrain").exists()


@pytest.mark.parametrize("file", ["pretrain.txt", "sft.jsonl"])
def test_a_reward_model_has_learned_from_demonstrations_and_text(here, file):
    new_stage()
    Path("runs/tiny/data/sft.jsonl").write_text("")
    saved(new_stage(stage="rm"))
    Path(f"runs/tiny/data/{file}").write_text("edited")
    with pytest.raises(UserError, match=f"rm.pt was made from an earlier data/{file}"):
        new_stage(stage="rm")


def test_a_judge_has_not_learned_from_demonstrations(here):
    new_stage()
    Path("runs/tiny/data/sft.jsonl").write_text("")
    assert [*new_stage(stage="sft").parents] == ["data/sft.jsonl"]
    assert [*new_stage("--reviews", "20", "--name", "judge", stage="sft").parents] == []


def test_another_number_of_steps_is_told(here):
    saved(new_stage(), finished=False)
    again = new_stage()
    again.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    with pytest.raises(UserError, match="was to have 1 steps, and has 2 now"):
        next(again.steps(2))


def test_metrics_are_on_the_disk_before_the_checkpoint_that_counts_them(here, monkeypatch):
    done = []
    monkeypatch.setattr(lab.run, "flush", lambda path: done.append(path.name))
    monkeypatch.setattr(lab.run, "write_atomic", lambda path, _: done.append(path.name))
    saved(new_stage())
    assert done == ["pretrain.jsonl", "pretrain.pt"]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_signal_ends_a_training_after_a_save(here, monkeypatch, name):
    monkeypatch.setattr(signal, "SIGINT", getattr(signal, name))  # what toy_training sends itself
    with pytest.raises(SystemExit) as stop:
        toy_training(stop_at=1)
    assert stop.value.code == 130 and load_checkpoint("runs/tiny/pretrain.pt")["step"] == 2


def test_a_signal_that_is_ignored_stops_nothing(here, monkeypatch):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "SIGINT", signal.SIGHUP)
            toy_training(stop_at=1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert load_checkpoint("runs/tiny/pretrain.pt")["finished"]


def test_a_picture_that_was_not_drawn_any_more_is_drawn_by_the_same_command(here, monkeypatch):
    def killed(file, *_):
        file.write(b"half a picture")
        raise KeyboardInterrupt

    path = here / "runs/tiny/pretrain.png"
    path.parent.mkdir(parents=True)
    path.write_text("of an earlier training")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lab.run, "picture", killed)
        toy_training()
    assert not path.exists()
    assert finished(read(), "pretrain") and path.exists(), "whoever asks for it as a parent draws it"
    path.unlink()
    with pytest.raises(SystemExit) as stop:
        toy_training()
    assert stop.value.code == 0 and path.read_bytes().startswith(b"\x89PNG")


def test_where_only_the_checkpoint_was_copied_nothing_is_drawn(here, capsys):
    toy_training()
    for ending in ("png", "jsonl"):
        Path(f"runs/tiny/pretrain.{ending}").unlink()
    capsys.readouterr()
    assert finished(read(), "pretrain") and capsys.readouterr().out == ""
