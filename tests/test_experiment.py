"""Command line, run folder, checkpoints and resume, tables."""
import dataclasses
import errno
import importlib
import json
import os
import re
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import experiment
from experiment import (command_of, Common, InvariantError, Stage, UserError, adam, fingerprint, knob, load_checkpoint, load_model, muon, orthogonal, parse,
                        pick_device, random_state, run_main, set_lr, set_random_state, table, write_atomic)
from data import DataError
from model import GPT, GPTConfig

ROOT = Path(experiment.__file__).parent
STAGES = [path.stem for path in sorted(ROOT.glob("train_*.py"))]


@dataclass
class Config(Common):
    steps: int = knob(10, "steps", low=1)
    lr: float = knob(0.5, "rate, 100 % of it", low=0)
    whiten: bool = knob(True, "a switch")
    critic: str = knob("separate", "which", choices=("separate", "shared"))


PRESETS = {"tiny": {}, "small": dict(steps=20, whiten=False)}


def read(*argv):
    return parse(Config, PRESETS, "doc", list(argv))


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def test_flags_have_the_type_of_their_field():
    cfg = read("--steps", "3", "--lr", "1e-3", "--whiten", "false", "--critic", "shared", "--seed=7")
    assert (cfg.steps, cfg.lr, cfg.whiten, cfg.critic, cfg.seed, cfg.config) == (3, 1e-3, False, "shared", 7, "tiny")
    assert isinstance(read("--lr", "1").lr, float)


def test_a_preset_changes_defaults_and_flags_win_wherever_they_stand():
    assert (read().steps, read("--config", "small").steps, read("--config=small").whiten) == (10, 20, False)
    assert read("--steps", "3", "--config", "small").steps == read("--config", "small", "--steps", "3").steps == 3
    assert read("--config", "small").config == "small"


@pytest.mark.parametrize("argv, value", [(["--whiten"], True), (["--whiten", "true"], True), (["--whiten", "False"], False),
                                         (["--whiten=false"], False), ([], False)])
def test_a_switch_can_be_turned_both_ways(argv, value):
    assert read("--config", "small", *argv).whiten is value


WRONG = [(["--stepz", "3"], "--steps"), (["--learning_rat", "1"], "unknown --learning_rat"), (["--step", "3"], "--steps"),
         (["--config", "smal"], "did you mean small?"), (["--config", "huge"], "tiny and small"), (["tiny"], "unknown tiny"),
         (["--steps", "three"], "expected int"), (["--steps", "1.5"], "expected int"), (["--steps", "0"], "at least 1"),
         (["--lr", "-1"], "at least 0"), (["--lr", "nan"], "finite"), (["--lr", "inf"], "finite"), (["--seed", "-1"], "at least 0"),
         (["--whiten", "perhaps"], "true or false"), (["--critic", "sepparate"], "did you mean separate?"),
         (["--steps"], "expected one argument"), (["--config"], "expected one argument")]


@pytest.mark.parametrize("argv, hint", WRONG)
def test_a_wrong_command_line_is_one_line_that_says_what_would_be_right(argv, hint, capsys):
    """Exit code 2, no traceback, one line; an abbreviation or a typo is never silently taken."""
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and hint in message and message.strip().count("\n") == 0


def test_help_lists_every_knob_with_its_reason(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--config", "small", "-h")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in dataclasses.fields(Config):
        assert f"--{f.name}" in text and " ".join(f.metadata["reason"].split()) in text
    assert "[20]" in text, "the defaults shown are those of the preset"


def test_the_stages_of_a_preset_sample_answers_of_one_length():
    """What is ranked, chosen and trained on are the same answers."""
    for preset in ("tiny", "small"):
        lengths = {name: parse((script := importlib.import_module(name)).Config, script.PRESETS, "", ["--config", preset]).max_new_tokens
                   for name in ("train_sft", "train_rm", "train_ppo", "rejection_sampling")}
        assert len(set(lengths.values())) == 1, f"{preset}: {lengths}"


@pytest.mark.parametrize("name", STAGES)
def test_every_preset_of_every_script_builds(name):
    """Each key of a preset is a field of the Config, of its type and within its bounds."""
    script = importlib.import_module(name)
    assert "tiny" in script.PRESETS
    for preset, changes in script.PRESETS.items():
        cfg = parse(script.Config, script.PRESETS, script.__doc__, ["--config", preset])
        flags = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
        again = parse(script.Config, {"tiny": {}, preset: {}}, script.__doc__, ["--config", preset, *flags])
        assert cfg == again and cfg.config == preset


@pytest.mark.parametrize("name", STAGES)
def test_every_knob_is_read_somewhere_and_has_a_reason(name):
    """A field that nothing reads is a promise not kept."""
    script = importlib.import_module(name)
    sources = (ROOT / f"{name}.py").read_text(encoding="utf-8") + (ROOT / "experiment.py").read_text(encoding="utf-8")
    if name == "train_ppo":  # which has the judge of train_rm.py
        sources += (ROOT / "train_rm.py").read_text(encoding="utf-8").partition("def load_judge")[2].partition("\ndef ")[0] + "cfg.preamble"
    for f in dataclasses.fields(script.Config):
        assert re.search(rf"\bcfg\.{f.name}\b", sources), f"{name}: nothing reads cfg.{f.name}"
        assert f.metadata.get("reason"), f"{name}: {f.name} has no reason"


@pytest.mark.parametrize("name", STAGES)
def test_every_field_that_is_read_is_a_knob(name):
    """cfg.something that the Config lacks would fail only when its line runs."""
    script = importlib.import_module(name)
    used = set(re.findall(r"\bcfg\.([a-z_]\w*)", (ROOT / f"{name}.py").read_text(encoding="utf-8")))
    assert used - {"told", "argv"} <= {f.name for f in dataclasses.fields(script.Config)}


@pytest.mark.parametrize("error", [UserError, DataError, InvariantError])
def test_what_a_user_can_mend_ends_in_one_sentence(error):
    def main():
        raise error("do this instead")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code.endswith(": do this instead") and "\n" not in stop.value.code


def test_a_full_disk_is_one_sentence_and_leaves_what_was_saved(tmp_path, monkeypatch):
    path = tmp_path / "sft.pt"
    write_atomic(path, "old")
    write = Path.write_bytes

    def full(self, content):
        write(self, content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: write_atomic(path, "new"))
    assert "No space left on device" in stop.value.code and "is still there" in stop.value.code and "\n" not in stop.value.code
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_bug_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)


# ------------------------------------------------------------------------------------------------
# Devices, checkpoints, optimizer
# ------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_told():
    assert pick_device("cpu") == "cpu" and pick_device() in ("cpu", "cuda", "mps")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(UserError, match="--device cpu"):
                pick_device(name)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A process that dies while it writes leaves the old file as it was."""
    path = tmp_path / "x.txt"
    write_atomic(path, "old ü")
    assert path.read_text(encoding="utf-8") == "old ü" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü"
    monkeypatch.undo()
    write_atomic(path, b"bytes")
    assert path.read_bytes() == b"bytes"


def test_a_fingerprint_changes_with_any_weight(make_gpt):
    model = make_gpt()
    first = fingerprint(model)
    assert first == fingerprint(make_gpt()) != fingerprint(make_gpt(seed=1))
    with torch.no_grad():
        model.ln_f.bias[3] += 1e-6
    assert fingerprint(model) != first


def test_the_random_state_can_be_put_back():
    state = random_state()
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"model": 1}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("text.pt", "other.pt", "tensor.pt", "missing.pt"):
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    """Peaks 1 and 10, 4 steps of warm-up, 104 in all: up in a line, half-way down in the middle, 0 at the end."""
    a, b = GPT(GPTConfig(5, 8, 1, 1, 4)), GPT(GPTConfig(5, 8, 1, 1, 4))
    optimizer = adam((a, 1.0), (b, 10.0))
    rates = [set_lr(optimizer, step, 104, 4) for step in range(105)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0) and rates[54] == pytest.approx(0.5) and rates[104] == pytest.approx(0.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    set_lr(optimizer, 54, 104, 4)
    ratios = {round(g["lr"] / g["peak_lr"], 6) for g in optimizer.param_groups}
    assert ratios == {0.5}, "all groups keep their proportion"
    assert set_lr(optimizer, 0, 10, 0) == pytest.approx(1.0), "no warm-up: the peak at once"


def test_the_optimizer_holds_every_parameter_once():
    a, b = GPT(GPTConfig(5, 8, 1, 1, 4, value_head=True)), GPT(GPTConfig(5, 8, 1, 1, 4, reward_head=True))
    held = [id(p) for g in adam((a, 1.0), (b, 2.0)).param_groups for p in g["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for m in (a, b) for p in m.parameters()}


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 4, 12), (2, 12, 4)])
def test_muon_makes_a_step_orthogonal(shape):
    """The singular vectors stay, the singular values all come close to 1: against the same polynomial on the values alone."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    expected = values / x.norm(dim=(1, 2))[:, None]
    for _ in range(5):
        expected = 3.4445 * expected - 4.775 * expected**3 + 2.0315 * expected**5
    assert torch.allclose(orthogonal(x), u * expected[:, None] @ v, atol=1e-4)
    assert 0.5 < expected.min() and expected.max() < 1.3


def test_biases_and_norms_do_not_decay():
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    decayed = {id(p) for g in muon(model, 1.0, 0.1).param_groups if g.get("weight_decay") for p in g["params"]}
    assert decayed and not decayed & {id(p) for p in model.parameters() if p.dim() < 2}


# ------------------------------------------------------------------------------------------------
# A stage of a run
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Runs of a test go to an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new_stage(*argv, stage="pretrain"):
    return Stage(read("--device", "cpu", *argv), stage)


def toy_training(*argv, stop_at=None):
    """A stage whose training uses random numbers, an optimizer with a memory, and a state: all that resuming must restore."""
    stage = new_stage("--steps", "6", *argv)
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    optimizer = muon(model, 0.01)
    stage.track(model=model, optimizer=optimizer)
    stage.state.setdefault("beta", 1.0)
    for step in stage.steps(6):
        set_lr(optimizer, step, 6, 2)
        loss = (model(torch.randint(5, (2, 4))) - torch.randn(2, 4, 5)).pow(2).mean() * stage.state["beta"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.state["beta"] *= 0.9
        stage.log(step, ("loss",), loss=loss.item(), sometimes=None if step % 2 else 1.0)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
    stage.finish("answers", [("Loss", {"training": "loss", "now and then": "sometimes"}, "nats")])
    return stage


def test_a_finished_stage_holds_all_its_files(here):
    stage = toy_training()
    folder = here / "runs" / "tiny"
    assert {p.name for p in folder.iterdir()} == {"pretrain.pt", "pretrain.jsonl", "pretrain.png", "pretrain.samples.txt"}
    rows = [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(6)) and {tuple(r) for r in rows} == {("step", "loss", "sometimes")}
    assert (folder / "pretrain.samples.txt").read_text() == "answers\n"
    assert (folder / "pretrain.png").read_bytes().startswith(b"\x89PNG")
    model, checkpoint = load_model(folder / "pretrain.pt")
    assert checkpoint["finished"] and checkpoint["step"] == 6 and not model.training
    assert checkpoint["fingerprint"] == fingerprint(model) == fingerprint(stage.tracked["model"])
    assert checkpoint["knobs"]["steps"] == 6 and "overwrite" not in checkpoint["knobs"]


def test_a_finished_stage_does_nothing_again(here, capsys):
    toy_training()
    before = {p: p.read_bytes() for p in (here / "runs" / "tiny").iterdir()}
    with pytest.raises(SystemExit) as stop:
        toy_training()
    assert stop.value.code == 0 and "finished" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (here / "runs" / "tiny").iterdir()} == before
    toy_training("--overwrite")


def test_other_knobs_ask_for_a_name_and_touch_nothing(here):
    toy_training()
    before = {p: p.read_bytes() for p in (here / "runs" / "tiny").iterdir()}
    with pytest.raises(UserError, match=r"lr 0.5 -> 0.25.*--name"):
        toy_training("--lr", "0.25")
    assert {p: p.read_bytes() for p in (here / "runs" / "tiny").iterdir()} == before
    toy_training("--lr", "0.25", "--name", "slow")
    assert (here / "runs" / "tiny" / "slow.pt").exists() and (here / "runs" / "tiny" / "slow.png").exists()
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_variant_cannot_take_a_stages_name(here):
    with pytest.raises(UserError, match="name of a stage"):
        new_stage("--name", "ppo")


def test_variants_that_others_need_have_commands_of_their_own(here):
    """rm_weak is a variant with flags of its own; a stage may take such a name only from its own script. Other flags may be given."""
    cfg = new_stage("--seed", "3").cfg
    for command in (command_of(cfg, "rm_weak"), command_of(cfg, "train_rm.py --name rm_weak --epochs 1")):
        command = " ".join(command)
        assert Path(command.split()[0]) == Path(sys.argv[0]).with_name("train_rm.py") and "--epochs 1" in command and "--name rm_weak" in command and "--seed 3" in command
    assert new_stage("--name", "rm_weak", stage="rm").file("pt") == Path("runs/tiny/rm_weak.pt")
    with pytest.raises(UserError, match="name of a stage"):
        new_stage("--name", "rm_weak", stage="ppo")


def test_run_folders_are_named_after_preset_data_and_seed(here):
    (here / "letters").mkdir()
    assert new_stage().folder.name == "tiny" and new_stage("--seed", "3").folder.name == "tiny-seed3"
    assert new_stage("--data", "letters").folder.name == "tiny-letters"
    assert new_stage("--data", "letters").data == Path("letters") and new_stage().data == Path("runs/tiny/data")
    assert new_stage("--run", "mine").folder == Path("runs/mine")
    with pytest.raises(UserError, match="--data"):
        new_stage("--config", "small")


def test_a_resumed_run_equals_a_straight_one(here, capsys):
    """Weights, metrics, random numbers, optimizer and state: Ctrl-C after the third step, then --resume."""
    straight = toy_training("--run", "straight")
    with pytest.raises(SystemExit) as stop:
        toy_training("--run", "broken", stop_at=2)
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().out
    assert load_checkpoint("runs/broken/pretrain.pt")["step"] == 3
    with pytest.raises(UserError, match="--resume"):
        toy_training("--run", "broken")
    with open("runs/broken/pretrain.jsonl", "a") as file:  # as if killed later than its last checkpoint
        file.write('{"step": 3, "loss": 9.0, "sometimes": null}\n{"step": 4, "lo')
    resumed = toy_training("--run", "broken", "--resume")
    assert fingerprint(resumed.tracked["model"]) == fingerprint(straight.tracked["model"])
    assert (here / "runs/broken/pretrain.jsonl").read_text() == (here / "runs/straight/pretrain.jsonl").read_text()
    assert resumed.state == straight.state


def test_who_is_stopped_while_drawing_repeats_only_the_end(here, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy_training()
    assert load_checkpoint("runs/tiny/pretrain.pt")["step"] == 6
    assert len(toy_training("--resume").rows) == 6 and (here / "runs/tiny/pretrain.png").exists()


def test_resume_and_overwrite_exclude_each_other(here):
    with pytest.raises(UserError, match="choose one"):
        new_stage("--resume", "--overwrite")


def test_the_same_seed_gives_the_same_weights(here):
    runs = [toy_training("--run", name, "--seed", seed) for name, seed in (("a", "5"), ("b", "5"), ("c", "6"))]
    a, b, c = (fingerprint(stage.tracked["model"]) for stage in runs)
    assert a == b != c


def test_a_parent_that_was_trained_again_is_told(here):
    """sft was trained from a pretrain.pt that is no longer there: not silently used."""
    toy_training()
    child = new_stage(stage="sft")
    assert child.parent("pretrain") == Path("runs/tiny/pretrain.pt")
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    child.track(model=model)
    child.save(1, True)
    assert new_stage(stage="rm").parent("sft") == Path("runs/tiny/sft.pt")
    grandparent = new_stage("--steps", "6", "--overwrite")
    grandparent.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    grandparent.save(1, True)
    with pytest.raises(UserError, match="trained again since"):
        new_stage(stage="rm").parent("sft")


def test_resuming_with_a_parent_that_was_trained_anew_is_refused(here):
    """The parent's file was lost and is another one now: half a training with each would be neither."""
    toy_training()
    child = new_stage(stage="sft")
    child.parent("pretrain")
    child.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    child.file("jsonl").write_text('{"step": 0}\n')
    child.save(1, False)
    resumed = new_stage("--resume", stage="sft")
    assert resumed.parent("pretrain").exists(), "the same parent is no reason to stop"
    Path("runs/tiny/pretrain.pt").unlink()
    resumed = new_stage("--resume", stage="sft")
    other = new_stage("--steps", "6")
    other.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    other.save(1, True)
    with pytest.raises(UserError, match="begun with an earlier pretrain.pt"):
        resumed.parent("pretrain")


@pytest.mark.parametrize("finished, advice", [(True, "keep both with --name NAME"), (False, "stopped at step 1: finish it with those knobs and --resume")])
def test_other_knobs_than_those_of_the_checkpoint(here, finished, advice):
    stage = new_stage("--steps", "6")
    stage.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
    stage.save(1, finished)
    with pytest.raises(UserError, match=f"other knobs .steps 6 -> 7.; .*{advice}"):
        new_stage("--steps", "7", "--resume")


def test_a_missing_parent_is_trained_by_its_own_command(here, monkeypatch):
    """The same run, seed and data; its failure is passed on; it leaves no trace in our random numbers."""
    told = []

    def main(argv):
        told.append(argv)
        torch.rand(3)
        if "--seed" not in argv or argv[argv.index("--seed") + 1] == "3":
            sys.exit(7)
        stage = Stage(parse(Config, {"tiny": {}}, "", ["--config", "tiny"]), "pretrain")
        stage.track(model=GPT(GPTConfig(5, 8, 1, 1, 4)))
        stage.save(1, True)

    monkeypatch.setitem(sys.modules, "train_pretrain", types.SimpleNamespace(main=main))
    with pytest.raises(SystemExit) as stop:
        new_stage("--seed", "3", stage="sft").parent("pretrain")
    assert stop.value.code == 7 and " ".join(told[0]).startswith("--config tiny --run tiny-seed3 --seed 3")
    stage = new_stage("--seed", "0", stage="sft")
    expected = torch.Generator().manual_seed(0)
    assert stage.parent("pretrain").exists()
    assert torch.equal(torch.rand(4), torch.rand(4, generator=expected)), "whether a parent had to be trained first changes no number"
    with pytest.raises(SystemExit):
        new_stage("--run", "mine/first", "--seed", "3", stage="sft").parent("pretrain")
    assert "--run mine/first" in " ".join(told[-1])


@pytest.mark.parametrize("content", ["", "some text here for you\n", "{}", "\x80\x02.", "(l."])
def test_a_file_that_is_no_checkpoint_is_told_from_one(tmp_path, content):
    """Whatever an unpickler makes of it."""
    (tmp_path / "text.pt").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "text.pt")


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def test_a_table_is_aligned():
    shown = table(["name", "n", "share"], [["first", 10, 0.5], ["x", None, 12.345]]).split("\n")
    assert shown[0] == "name    n  share" and set(shown[1]) == {"-"} and len(shown[1]) == len(shown[0])
    assert shown[2:] == ["first  10   0.50", "x       -  12.35"] or shown[2:] == ["first  10   0.50", "x       -  12.34"]
