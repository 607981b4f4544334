"""Command line: knobs, presets, rules, help, and how a command ends."""
import lab.before_torch
import dataclasses
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from data import UserError
from lab.cli import (
    OLD_FLAGS,
    Common,
    InvariantError,
    JudgeKnobs,
    judge_is_asked,
    knob,
    parse,
    run_main,
)
from lab.commands import same_command
from lab.run import write_atomic

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["train_pretrain", "train_sft", "preferences", "train_rm", "train_ppo", "rejection_sampling"]
SAMPLING = SCRIPTS[1:3] + SCRIPTS[4:]


@dataclass
class Config(Common):
    steps: int = knob(10, "steps", low=1, heading="Training")
    lr: float = knob(0.5, "rate, 100 % of it", low=0, high=10)
    whiten: bool = knob(True, "a switch")
    critic: str = knob("separate", "which", choices=("separate", "shared"), heading="The critic")
    files: tuple = knob((), "names")


@dataclass
class Judged(JudgeKnobs):
    steps: int = knob(10, "steps", heading="Training")


PRESETS = {"tiny": {}, "small": dict(steps=20, whiten=False)}
RULES = (("--lr 0 learns nothing", lambda cfg: cfg.lr == 0),
         ("--steps 13 brings bad luck", lambda cfg: cfg.steps == 13))


def read(*argv):
    return parse(Config, PRESETS, "doc", list(argv), RULES)


def test_flags_have_the_type_of_their_field():
    flags = "--steps 3 --lr 1e-3 --whiten false --critic shared --seed=7 --files a b"
    cfg = read(*flags.split())
    assert (cfg.steps, cfg.lr, cfg.whiten, cfg.critic) == (3, 1e-3, False, "shared")
    assert (cfg.seed, cfg.config, cfg.files) == (7, "tiny", ("a", "b"))
    assert isinstance(read("--lr", "1").lr, float) and read().files == ()
    assert cfg.argv == flags.split()


def test_a_preset_changes_defaults_and_flags_win_wherever_they_stand():
    assert read().steps == 10
    assert read("--config", "small").steps == 20 and read("--config=small").whiten is False
    assert read("--steps", "3", "--config", "small").steps == 3
    assert read("--config", "small", "--steps", "3").steps == 3
    assert read("--config", "small").config == "small"


@pytest.mark.parametrize("argv, value", [
    (["--whiten"], True), (["--whiten", "true"], True), (["--whiten", "False"], False),
    (["--whiten=false"], False), ([], False)])
def test_a_switch_can_be_turned_both_ways(argv, value):
    assert read("--config", "small", *argv).whiten is value


WRONG = [
    ("--stepz 3", "--steps"), ("--learning_rat 1", "unknown --learning_rat"), ("--step 3", "--steps"),
    ("--config smal", "did you mean small?"), ("--config huge", "tiny and small"), ("tiny", "unknown tiny"),
    ("--steps three", "expected int"), ("--steps 1.5", "expected int"), ("--steps 0", "at least 1"),
    ("--lr -1", "at least 0"), ("--lr 11", "at most 10"), ("--lr nan", "finite"), ("--lr inf", "finite"),
    ("--seed -1", "at least 0"), ("--whiten perhaps", "true or false"),
    ("--critic sepparate", "did you mean separate?"),
    ("--steps", "expected one argument"), ("--config", "expected one argument"),
    ("--steps=--", "expected a value"), ("--name \udcff", "text in UTF-8"),
    ("--name a\x07b", "without control characters"),
]


@pytest.mark.parametrize("flags, hint", WRONG)
def test_a_wrong_command_line_is_one_line_that_says_what_would_be_right(flags, hint, capsys):
    """Exit code 2, no traceback, one line; an abbreviation or a typo is never silently taken."""
    with pytest.raises(SystemExit) as stop:
        read(*flags.split())
    message = capsys.readouterr().err
    assert stop.value.code == 2 and hint in message and message.strip().count("\n") == 0


@pytest.mark.parametrize("flag", OLD_FLAGS)
def test_a_flag_of_an_earlier_version_says_what_it_has_become(flag, capsys):
    """Once for all scripts; a script that has such a flag takes it."""
    with pytest.raises(SystemExit):
        read(flag, "x")
    message = capsys.readouterr().err
    assert OLD_FLAGS[flag] in message and message.strip().count("\n") == 0


def test_an_old_flag_that_a_script_has_is_no_old_flag():
    @dataclass
    class Collection(Common):
        labeler: str = knob("auto", "who ranks")

    assert parse(Collection, PRESETS, "", ["--config", "tiny", "--labeler", "ai"]).labeler == "ai"


def test_what_does_not_go_together_is_the_first_rule_that_holds():
    read("--steps", "12")
    with pytest.raises(UserError, match="^--steps 13 brings bad luck$"):
        read("--steps", "13")
    with pytest.raises(UserError, match="^--lr 0"):
        read("--steps", "13", "--lr", "0")


def test_whether_a_flag_is_about_the_judge():
    def about(*argv):
        return judge_is_asked(parse(Judged, {"tiny": {}}, "", list(argv)))

    assert not about("--steps", "3", "--name", "x")
    assert about("--preamble", "base") and about("--judge", "mine") and about("--judge_timeout", "3")


def help_of(capsys, config_class, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(config_class, PRESETS, "What it is.", [*argv, "-h"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_knob_with_its_reason(capsys):
    text = " ".join(help_of(capsys, Config, "--config", "small").split())
    for f in dataclasses.fields(Config):
        assert f"--{f.name}" in text and " ".join(f.metadata["reason"].split()) in text
    assert "[20]" in text, "the defaults shown are those of the preset"
    assert "separate|shared" in text


def test_help_shows_groups_under_their_headings_own_knobs_first(capsys):
    text = help_of(capsys, Judged)
    order = ("What it is.", "Training:", "  --steps", "The AI judge:", "  --judge ", "The run:", "  --config")
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_every_script_fits_100_columns(name, capsys):
    script = importlib.import_module(name)
    with pytest.raises(SystemExit):
        parse(script.Config, script.PRESETS, script.__doc__, ["--config", "tiny", "-h"])
    text = capsys.readouterr().out
    flags = text.partition("options:")[2]
    assert max(map(len, flags.splitlines())) <= 100
    assert max(map(len, text.splitlines())) <= 110


def test_the_stages_of_a_preset_sample_answers_of_one_length():
    """What is ranked, chosen and trained on are the same answers."""
    for preset in ("tiny", "small"):
        lengths = set()
        for name in SAMPLING:
            script = importlib.import_module(name)
            lengths.add(script.PRESETS.get(preset, {}).get("max_new_tokens", script.Config.max_new_tokens))
        assert len(lengths) == 1, f"{preset}: {lengths}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_preset_of_every_script_builds(name):
    """Each key of a preset is a field of the Config, of its type and within its bounds."""
    script = importlib.import_module(name)
    assert "tiny" in script.PRESETS
    for preset, changes in script.PRESETS.items():
        cfg = parse(script.Config, script.PRESETS, "", ["--config", preset])
        flags = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
        again = parse(script.Config, {"tiny": {}, preset: {}}, "", ["--config", preset, *flags])
        assert cfg == again and cfg.config == preset


def sources_that_know(config_class):
    """The text of all files that may read a knob of it."""
    rooms = [ROOT / "lab", ROOT / "world"]
    paths = [path for room in rooms for path in room.glob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_knob_is_read_somewhere_and_has_a_reason(name):
    """A field that nothing reads is a promise not kept."""
    script = importlib.import_module(name)
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8") + sources_that_know(script.Config)
    for f in dataclasses.fields(script.Config):
        if f.name not in ("run", "seed", "data", "device"):  # which lab/commands.py reads by name, too
            assert re.search(rf"\b(c|cfg|config|args)\.{f.name}\b", source), f"{name}: nothing reads {f.name}"
        assert f.metadata["reason"], f"{name}: {f.name} has no reason"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_field_that_is_read_is_a_knob(name):
    """cfg.something that the Config lacks would fail only when its line runs."""
    script = importlib.import_module(name)
    used = set(re.findall(r"\bcfg\.([a-z_]\w*)", (ROOT / f"{name}.py").read_text(encoding="utf-8")))
    assert used - {"argv"} <= {f.name for f in dataclasses.fields(script.Config)}


# ------------------------------------------------------------------------------------------------
# The end of a command
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UserError, InvariantError])
def test_what_a_user_can_mend_ends_in_one_sentence(error):
    def main():
        raise error("do this instead")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code.endswith(": do this instead") and "\n" not in stop.value.code


def test_a_full_disk_is_one_sentence_and_leaves_what_was_saved(tmp_path, monkeypatch):
    path = tmp_path / "sft.pt"
    write_atomic(path, "old")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: write_atomic(path, "new"))
    assert "No space left on device" in stop.value.code and "is still there" in stop.value.code
    assert "\n" not in stop.value.code
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_bug_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)


def test_ctrl_c_is_one_quiet_line_or_none(capsys):
    def main():
        raise KeyboardInterrupt

    for stopped in ("It goes on.", ""):
        with pytest.raises(SystemExit) as stop:
            run_main(main, stopped=stopped)
        assert stop.value.code == 130 and capsys.readouterr().out.strip() == stopped


@pytest.mark.parametrize("mine, then", [
    ({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_threads_that_wait_sleep_soon_unless_the_user_has_said_how(monkeypatch, mine, then):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # it is put back
    monkeypatch.setattr(os, "environ", dict(mine))
    importlib.reload(lab.before_torch)
    assert os.environ.get("GOMP_SPINCOUNT") == then


@pytest.mark.parametrize("words, said", [
    ("x.py --lr 1", "the same command"), ("x.py --overwrite", "the same command without --overwrite"),
    ("x.py --overwrite=true --lr 1", "the same command without --overwrite")])
def test_the_same_command_does_not_overwrite_what_it_has_made(monkeypatch, words, said):
    monkeypatch.setattr(sys, "argv", words.split())
    assert same_command() == said


@pytest.mark.parametrize("command", ["model.py", "data.py", *(f"{s}.py" for s in SCRIPTS), "-m lab.explain"])
def test_ctrl_c_while_torch_is_imported_is_one_quiet_line_too(command, tmp_path):
    for module in ("torch", "numpy", "tiktoken"):
        (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    ended = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=60)
    assert ended.returncode == -signal.SIGINT  # a shell calls it 130
    assert ended.stdout == "" and ended.stderr.strip() == "Stopped before it began."
