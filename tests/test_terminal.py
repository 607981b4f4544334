"""What reaches the terminal, streams that are closed, and values that nobody can mean."""
import dataclasses
import importlib
import io
import subprocess
import sys
import unicodedata

import pytest
from pipeline import ENVIRONMENT, ROOT

from lab.cli import parse, run_main
from lab.terminal import Screen, colors, visible

SCRIPTS = ["train_pretrain", "train_sft", "preferences", "train_rm", "train_ppo", "rejection_sampling"]
HOSTILE = "a\x1b]0;pwn\x07\x1b[2J\x9b2J\x7f\r\u202eb\u2066\udc80"


def is_raw(char):
    return unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"


def test_controls_are_written_out_and_text_of_any_script_stays():
    assert visible(HOSTILE) == r"a\x1b]0;pwn\x07\x1b[2J\x9b2J\x7f\r\u202eb\u2066\udc80"
    for text in ("two\nlines\tand a tab", "你好, naïve 👍🏽", ""):
        assert visible(text) == text
    assert not any(map(is_raw, visible("".join(map(chr, range(0x3000))))))


def test_only_a_bar_may_go_back_and_only_a_terminal_is_bold(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def through(stream, bar=False):
        Screen(stream, bar).write("\r\x1b[1mx\x1b[0m\x1b[2J\x1b[A")
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert through(io.StringIO()) == r"\r\x1b[1mx\x1b[0m\x1b[2J\x1b[A"
    assert through(io.StringIO(), bar=True) == "\r\\x1b[1mx\\x1b[0m\\x1b[2J\x1b[A"
    assert through(Terminal()) == "\\r\x1b[1mx\x1b[0m\\x1b[2J\\x1b[A"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colors(Terminal()) and through(Terminal()) == through(io.StringIO())


@pytest.mark.parametrize("line", ["data.py", "model.py", "train_sft.py --data", "train_sft.py --config"])
def test_no_control_character_leaves_a_command(line, tmp_path, monkeypatch, capsys):
    """Names in arguments come back in messages."""
    monkeypatch.chdir(tmp_path)
    script, *flags = line.split()
    monkeypatch.setattr(sys, "argv", [script, *flags, HOSTILE])
    rooms = {"model": "lab.talk", "data": "lab.show"}
    module = importlib.import_module(rooms.get(script[:-3], script[:-3]))
    with pytest.raises(SystemExit) as stop:
        run_main(module.main)
    printed = "".join(capsys.readouterr()) + str(stop.value.code)
    assert "pwn" in printed and not any(map(is_raw, printed))


TALKS = """import pathlib, sys
sys.path.insert(0, sys.argv[1])
from lab.terminal import screens
with screens():
    for i in range(9000):
        print(i, "x" * 90)
    print("a bar", file=sys.stderr)
    sys.stdin.read()
pathlib.Path("saved").touch()
"""


@pytest.mark.parametrize("closed", ["| head -1", ">&-", "2>&-", "<&-"])
def test_a_closed_stream_stops_nothing(closed, tmp_path):
    (tmp_path / "talks.py").write_text(TALKS)
    line = f'"{sys.executable}" talks.py "{ROOT}" {closed}'
    ended = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, input="")
    assert ended.returncode == 0 and ended.stderr == ("" if closed == "2>&-" else "a bar\n")
    assert (tmp_path / "saved").exists()


def test_a_reader_of_a_command_may_go_away(tmp_path):
    line = f'"{sys.executable}" "{ROOT}/data.py" --config smoke | head -1'
    ended = subprocess.run(line, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0 and "Error" not in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_number_that_nobody_can_mean_is_one_line(name, capsys):
    """Every knob that is a number ends somewhere."""
    script = importlib.import_module(name)
    for f in dataclasses.fields(script.Config):
        if f.type in (int, float):
            for text in ("1" + "0" * 30, "-1" + "0" * 30):
                with pytest.raises(SystemExit) as stop:
                    parse(script.Config, script.PRESETS, "", [f"--{f.name}={text}"])
                message = capsys.readouterr().err
                assert stop.value.code == 2 and message.count("\n") == 1, f.name
                assert "at most" in message or "at least" in message, f.name


@pytest.mark.parametrize("error", [OSError(36, "File name too long", "x"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_what_a_system_refuses_is_one_sentence(error):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert "\n" not in stop.value.code
