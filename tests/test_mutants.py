"""The table of silent bugs is well-formed, and who says "killed" is right. That all of them are killed: python tests/mutants.py."""
import ast
import os

import pytest

import mutants
from conftest import ROOT
from mutants import GALLERY, METRICS, MUTANTS, STAGES, Mutant, broken, main, verdict

NAMES = [mutant.name for mutant in MUTANTS]


def functions_of(path):
    return {node.name for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_names_are_distinct_and_every_test_exists():
    assert len(set(NAMES)) == len(NAMES) and set(GALLERY) <= set(NAMES) and len(set(GALLERY)) == len(GALLERY) >= 12
    known = {path: functions_of(path) for path in {mutant.test.partition("::")[0] for mutant in MUTANTS}}
    for mutant in MUTANTS:
        path, _, test = mutant.test.partition("::")
        assert test.partition("[")[0] in known[path], mutant.name


def test_a_right_line_is_there_once_and_a_wrong_one_is_python():
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.right) == 1 and mutant.wrong != mutant.right, mutant.name
        compile(broken(mutant), mutant.name, "exec", ast.PyCF_ONLY_AST)


def test_every_bug_is_described_and_drawn_by_metrics_that_its_stage_has():
    for mutant in MUTANTS:
        assert mutant.what.endswith(".") and mutant.symptom.endswith("."), mutant.name
        assert not mutant.curves or mutant.curves[0] in STAGES and 2 <= len(mutant.curves) <= 3 and set(mutant.curves[1:]) <= METRICS.keys(), mutant.name
    assert all(mutant.curves for mutant in MUTANTS if mutant.name in GALLERY)


def test_symptoms_do_not_give_the_bug_away(capsys):
    assert main(["list"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for mutant in MUTANTS:
        assert mutant.name in shown and mutant.symptom in shown and mutant.what not in shown and mutant.wrong.strip() not in shown


@pytest.mark.parametrize("name", ["ppo-16", "sft-4"])
def test_an_exercise_differs_in_one_file_and_shows_no_trace(tmp_path, capsys, name):
    mutant, out = MUTANTS[NAMES.index(name)], tmp_path / "deep" / "exercise"
    assert main(["apply", name, str(out)]) == 0
    assert capsys.readouterr().out.startswith(mutant.symptom + "\n")
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert [str(path) for path in files if (out / path).read_bytes() != (ROOT / path).read_bytes()] == [mutant.file]
    assert (out / mutant.file).read_text(encoding="utf-8").count(mutant.wrong) == 1
    assert {path.name for path in files} >= {path.name for path in ROOT.glob("*.py")} | {"README.md", "requirements.txt"}
    assert not (out / "tests").exists() and not (out / "docs/bugs.png").exists() and not (out / ".git").exists() and not (out / "runs").exists()
    assert main(["apply", name, str(out / "again"), "--answer"]) == 0
    told = capsys.readouterr().out
    assert mutant.right in told and mutant.wrong in told and mutant.what in told and not (out / "again").exists()


@pytest.mark.parametrize("argv, hint", [
    (["apply", "ppo-0", "out"], "ppo-0: no mutant has this name"), (["apply", "ppo-1", "."], "exists already"), (["apply", "ppo-1", str(ROOT / "inside")], "inside this repository"), (["apply", "ppo-1"], "new folder OUT"), (["apply"], "required: NAME"),
    (["--only", "ppo-0"], "ppo-0: no mutant has this name"), (["--jobs", "0"], "at least 1"), (["--jobs", "two"], "invalid int"), (["--onyl", "ppo-1"], "mutants.py: "),
    (["symptom", "ppo-7", "out"], "expected a .png"), (["symptom", "ppo-7", "nowhere/out.png"], "in a folder that is there"), (["symptom", "run-4", "out.png"], "no curve shows it"),
    (["symptom", "ppo-7", "out.png"], "takes a finished run"), (["gallery", "out.png", "--run-folder", "nowhere"], "takes a finished run"), (["lsit"], "list")])
def test_a_mistake_is_one_sentence(argv, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and hint in said and said.strip().count("\n") == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("before, after, expected", [
    (None, "assert 1 == 2", "killed"), (None, "AssertionError: Tensor-likes are not close!", "killed"), (None, "Failed: DID NOT RAISE <class 'SystemExit'>", "killed"),
    (None, "experiment.InvariantError: something is wrong", "killed"), (None, None, "SURVIVED"), ("assert 1 == 2", "assert 1 == 2", "its test fails without it"),
    (None, "NameError: name 'x' is not defined", "not found, but"), (None, "RuntimeError: shapes", "not found, but"), (None, "error: fixture failed", "not found, but")])
def test_who_was_killed_and_who_was_not(before, after, expected):
    assert verdict(before, after).startswith(expected)


def test_a_small_repository_with_every_kind_of_mutant(tmp_path, monkeypatch, capsys):
    """double(3) is 6: one bug is found, one is none, one breaks the file, one line is not there, one test fails anyway."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "small.py").write_text("def double(x):\n    return x + x\n")
    (tmp_path / "tests/test_small.py").write_text("import sys\nsys.path.insert(0, '.')\n\n\ndef test_double():\n    from small import double\n    assert double(3) == 6\n\n\ndef test_wrong():\n    assert False\n")
    table = [Mutant(name, "small.py", "Wrong.", right, wrong, f"tests/test_small.py::{test}", "None.") for name, right, wrong, test in (
        ("found", "x + x", "x * x", "test_double"), ("none", "x + x", "2 * x", "test_double"), ("broken", "x + x", "y + y", "test_double"),
        ("lost", "x + y", "x - y", "test_double"), ("anyway", "x + x", "x * x", "test_wrong"))]
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "MUTANTS", table)
    assert main(["--only", "found", "--jobs", "1"]) == 0 and "1 of 1 killed" in capsys.readouterr().out
    assert main(["--jobs", str(os.cpu_count())]) == 1
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, words in (("found", " killed "), ("none", " SURVIVED "), ("broken", "not found, but: NameError"), ("lost", "is in small.py 0 times"), ("anyway", "its test fails without it")):
        assert words in said[name]
    assert "1 of 5 killed" in " ".join(said.values())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["small.py", "test_small.py", "tests"], "nothing is left behind"
