"""The table of silent bugs is well-formed, and who says "killed" is right. That all of them are killed:
python tests/mutants.py."""
import ast
import importlib
import os
import re
from collections import defaultdict
from pathlib import Path

import mutants
import pytest
from conftest import ROOT
from grader.problems import ALL, FILES, problems_of
from mutants import GALLERY, METRICS, MUTANTS, STAGES, Mutant, broken, how_to_see, main, verdict

from lab.cli import InvariantError, parse

NAMES = [mutant.name for mutant in MUTANTS]


def functions_of(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_names_are_distinct_and_every_test_exists():
    assert len(set(NAMES)) == len(NAMES) >= 83
    assert set(GALLERY) <= set(NAMES) and len(set(GALLERY)) == len(GALLERY) >= 12
    known = {path: functions_of(path) for path in {mutant.test.partition("::")[0] for mutant in MUTANTS}}
    for mutant in MUTANTS:
        path, _, test = mutant.test.partition("::")
        assert test.partition("[")[0] in known[path], mutant.name


def test_a_right_line_is_there_once_and_a_wrong_one_is_python():
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.right) == 1 and mutant.wrong != mutant.right, mutant.name
        compile(broken(mutant), mutant.name, "exec", ast.PyCF_ONLY_AST)


def test_every_bug_is_described_and_drawn_by_metrics_that_its_stage_has():
    for mutant in MUTANTS:
        assert mutant.what.endswith(".") and mutant.symptom.endswith("."), mutant.name
        if mutant.curves:
            stage, *metrics = mutant.curves
            assert stage in STAGES and len(metrics) <= 2 and set(metrics) <= METRICS.keys(), mutant.name
        assert mutant.name not in GALLERY or len(mutant.curves) > 1, mutant.name


EXACT = {"0", "1", "48", "10", "100", "1000"}  # one ratio, max_new_tokens, a rating, passes, Elo's beginning


def figures(symptom):
    """What a symptom says in figures, but for names, such as k1 and ppo-7, and the values of flags."""
    text = re.sub(r"--\w+ [\w.]+", "", symptom)
    return {figure.rstrip(".") for figure in re.findall(r"(?<![\w-])-?\d[\d.]*", text)}


def test_the_figures_of_a_symptom_are_those_of_every_run():
    """Not of one: another seed has others."""
    assert figures("With --lr 0.2 k1 is -0.5, 2.9 at first and 0.") == {"-0.5", "2.9", "0"}
    for mutant in MUTANTS:
        assert figures(mutant.symptom) <= EXACT, mutant.name
        assert all(flag in mutant.symptom for flag in mutant.flags.split()[::2]), mutant.name


def test_pictures_do_not_give_the_bug_away(tmp_path, monkeypatch):
    """A title is a name, and below stands a symptom."""
    shown = []
    monkeypatch.setattr(mutants, "picture", lambda *drawn: shown.append(drawn))
    monkeypatch.setattr(mutants, "trained", lambda *rest: defaultdict(list))
    out = str(tmp_path / "out.png")
    assert main(["gallery", out]) == main(["symptom", "ppo-7", out]) == 0
    (_, panels, _, _, caption), (_, _, _, title, below) = shown
    assert [panel[0] for panel in panels] == list(GALLERY) and "apply NAME --answer" in caption
    assert title == "ppo-7" and below.startswith(MUTANTS[NAMES.index("ppo-7")].symptom)
    assert not [mutant.name for mutant in MUTANTS if mutant.what in str(shown)]


@pytest.mark.parametrize("name, told", [
    ("ppo-19", ["(pretrain, sft, rm) is to be right", "OUT/runs/tiny",
                "    cd OUT\n    python train_ppo.py --config tiny --eval_split dev --eval_answers 1 --steps "
                "30 --ppo_epochs 4 --name broken\n"]),
    ("pretrain-1", ["make pretrain in it.\n\n", "    python train_pretrain.py --config tiny --steps 200 "]),
    ("elo-2", ["(pretrain, sft, rankings)", "    python docs/experiments.py elo\n"]),
    ("ppo-14", ["No command shows it"]),
])
def test_an_exercise_says_what_to_type(name, told):
    said = how_to_see(MUTANTS[NAMES.index(name)], Path("OUT"))
    assert all(words in said for words in told), said


def test_every_command_is_one_that_its_script_takes(monkeypatch):
    """But for the typo of run-3, and the experiment, which has no knobs."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    for mutant in MUTANTS:
        if mutant.curves and mutant.curves[0] != "elo" and mutant.name != "run-3":
            line = how_to_see(mutant, Path("OUT")).partition("    python ")[2].partition("\n")[0]
            script, *argv = line.split()
            module = importlib.import_module(Path(script).stem)
            parse(module.Config, module.PRESETS, module.__doc__, argv, module.RULES)


def test_symptoms_do_not_give_the_bug_away(capsys):
    assert main(["list"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for mutant in MUTANTS:
        assert mutant.name in shown and mutant.symptom in shown
        assert mutant.what not in shown and mutant.wrong.strip() not in shown


def test_the_list_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    main(["list"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


@pytest.mark.parametrize("name", ["ppo-16", "sft-4", "judge-3", "ppo-2"])
def test_an_exercise_differs_in_one_file_and_shows_no_trace(tmp_path, capsys, name):
    mutant, out = MUTANTS[NAMES.index(name)], tmp_path / "deep" / "exercise"
    assert main(["apply", name, str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(mutant.symptom + "\n") and how_to_see(mutant, out) in said
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    changed = [str(path) for path in files if (out / path).read_bytes() != (ROOT / path).read_bytes()]
    assert changed == [mutant.file]
    assert (out / mutant.file).read_text(encoding="utf-8").count(mutant.wrong) == 1
    for part in ("*.py", "world/*.py", "lab/*.py", "README.md", "requirements.txt"):
        assert files >= {path.relative_to(ROOT) for path in ROOT.glob(part)}, part
    for part in ("tests", "docs/bugs.png", ".git", "runs"):
        assert not (out / part).exists(), part


def test_an_exercise_for_a_class_that_has_not_got_further(tmp_path, capsys):
    """Of the assignment's problems only those that are handed in already are solved in it."""
    out = tmp_path / "exercise"
    assert main(["apply", "sft-3", str(out), "--solved", "1-3"]) == 0
    mutant = MUTANTS[NAMES.index("sft-3")]
    assert (out / mutant.file).read_text(encoding="utf-8").count(mutant.wrong) == 1
    for file in FILES:
        wanted = {number for number in problems_of(file).values() if number > 3}
        text = (out / file).read_text(encoding="utf-8")
        assert {n for n in ALL if f'NotImplementedError("problem {n}: ' in text} == wanted, file
    for part in ("docs/alternatives.py", "docs/teaching-answers.md", "docs/zh/teaching-answers.md"):
        assert not (out / part).exists(), part
    assert main(["apply", "dpo-2", str(tmp_path / "other"), "--solved", "1-3"]) == 0
    assert (tmp_path / "other/docs/alternatives.py").exists(), "its own file is there"


def test_the_solution_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    mutant = MUTANTS[NAMES.index("ppo-16")]
    assert main(["apply", "ppo-16", str(tmp_path / "again"), "--answer"]) == 0
    told = capsys.readouterr().out
    assert mutant.right in told and mutant.wrong in told and mutant.what in told
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("argv, hint", [
    (["apply", "ppo-0", "out"], "ppo-0: no mutant has this name"),
    (["apply", "ppo-1", "."], "exists already"),
    (["apply", "ppo-1", str(ROOT / "inside")], "inside this repository"),
    (["apply", "ppo-1"], "new folder OUT"),
    (["apply"], "required: NAME"),
    (["apply", "ppo-1", "out", "--solved", "1-3"], "that --solved leaves blank"),
    (["apply", "sft-3", "out", "--solved", "0"], "--solved 0: there are problems 1 to 12"),
    (["--only", "ppo-0"], "ppo-0: no mutant has this name"),
    (["--jobs", "0"], "at least 1"),
    (["--jobs", "two"], "invalid int"),
    (["--onyl", "ppo-1"], "mutants.py: "),
    (["symptom", "ppo-7", "out"], "expected a .png"),
    (["symptom", "ppo-7", "nowhere/out.png"], "in a folder that is there"),
    (["symptom", "run-4", "out.png"], "no curve shows it"),
    (["symptom", "ppo-7", "out.png"], "takes a finished run"),
    (["gallery", "out.png", "--run-folder", "nowhere"], "takes a finished run"),
    (["lsit"], "list"),
])
def test_a_mistake_is_one_sentence(argv, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and hint in said and said.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before, after, expected", [
    (None, "assert 1 == 2", "killed"),
    (None, "AssertionError: Tensor-likes are not close!", "killed"),
    (None, "Failed: DID NOT RAISE <class 'SystemExit'>", "killed"),
    (None, "lab.cli.InvariantError: something is wrong", "killed"),
    (None, None, "SURVIVED"),
    ("assert 1 == 2", "assert 1 == 2", "its test fails without it"),
    (None, "NameError: name 'x' is not defined", "not found, but"),
    (None, "RuntimeError: shapes", "not found, but"),
    (None, "error: fixture failed", "not found, but"),
])
def test_who_was_killed_and_who_was_not(before, after, expected):
    assert verdict(before, after).startswith(expected)


def test_an_invariant_that_is_broken_counts_as_found():
    """The error's name, as pytest prints it."""
    name = f"{InvariantError.__module__}.{InvariantError.__qualname__}"
    assert verdict(None, f"{name}: something is wrong") == "killed"


SMALL_TEST = """
import sys
sys.path.insert(0, ".")


def test_double():
    from small import double
    assert double(3) == 6


def test_wrong():
    assert False
"""


def test_a_small_repository_with_every_kind_of_mutant(tmp_path, monkeypatch, capsys):
    """double(3) is 6: one bug is found, one is none, one breaks the file, one line is not there, one test
    fails anyway."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "small.py").write_text("def double(x):\n    return x + x\n")
    (tmp_path / "tests/test_small.py").write_text(SMALL_TEST)
    rows = {"found": ("x + x", "x * x", "test_double", " killed "),
            "none": ("x + x", "2 * x", "test_double", " SURVIVED "),
            "broken": ("x + x", "y + y", "test_double", "not found, but: NameError"),
            "lost": ("x + y", "x - y", "test_double", "is in small.py 0 times"),
            "anyway": ("x + x", "x * x", "test_wrong", "its test fails without it")}
    table = [Mutant(name, "small.py", "Wrong.", right, wrong, f"tests/test_small.py::{test}", "None.")
             for name, (right, wrong, test, _) in rows.items()]
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "MUTANTS", table)
    assert main(["--only", "found", "--jobs", "1"]) == 0
    assert "1 of 1 killed" in capsys.readouterr().out
    assert main(["--jobs", str(os.cpu_count())]) == 1
    said = capsys.readouterr().out.splitlines()
    for name, (*_, words) in rows.items():
        assert words in next(line for line in said if line.startswith(name))
    assert said[-1].startswith("1 of 5 killed")
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == ["small.py", "test_small.py", "tests"], "nothing is left behind"
