"""The student's repository is ours but for the bodies asked for, and points are given for right ones only. That the graded tests
can be passed, and not by a sham: python tests/assignment.py --prove."""
import ast
import json
import subprocess
import sys

import pytest

from assignment import FILES, PROBLEMS, alone, blanked, functions_of, handout, main, problems_of, repository, source
from conftest import ROOT

HALF = '''
import math


def whiten(x, mask, shift_mean=True):
    """Another docstring, and a mean that forgets the mask."""
    return (x - x.mean()) / max(x.std(), 1e-8)


def gae(rewards, values, mask, gamma, lam):
    while True:
        pass
'''


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    out = tmp_path_factory.mktemp("class") / "student"
    assert main([str(out)]) == 0
    return out


def test_problems_are_in_the_order_of_the_pipeline_and_make_100_points():
    assert [p.title.split()[-1] for p in PROBLEMS] == "loss fine-tuning Sampling loss scores KL Advantages Whitening objective loss sampling loop".split()
    assert sum(p.points for p in PROBLEMS) == 100
    assert all(p.points > 0 and p.nodes() and len(set(p.nodes())) == len(p.nodes()) and set(p.needs) <= set(range(1, len(PROBLEMS) + 1)) for p in PROBLEMS)


@pytest.mark.parametrize("file", FILES)
def test_only_bodies_are_gone(file):
    ours, theirs, nodes = source(file).split("\n"), blanked(file), functions_of(source(file))
    gone = {i for name in problems_of(file) for i in range(nodes[name].body[0].end_lineno, nodes[name].end_lineno)}  # lines behind the docstring, from 0
    bodies = [line for line in theirs.split("\n") if line.startswith("    raise NotImplementedError(\"problem ")]
    assert [line for i, line in enumerate(ours) if i not in gone] == [line for line in theirs.split("\n") if line not in bodies]
    assert all(node.name not in problems_of(file) or isinstance(node.body[1], ast.Raise) for node in functions_of(theirs).values()) and len(bodies) == len(problems_of(file))
    assert len([ours[i] for i in gone if len(ours[i].strip()) > 40 and ours[i].strip() in theirs]) < 2, "no second line of a solution stands elsewhere"
    assert blanked(file, range(1, len(PROBLEMS) + 1)) == source(file)


def test_the_student_gets_everything_else_and_no_solution(student):
    files = {path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()}
    assert files == {name for name in repository() if not name.startswith(".ci/")} - {f"tests/{name}.py" for name in ("assignment", "test_assignment", "mutants", "test_mutants")} - {"docs/bugs.png"} | {"HANDOUT.md"}
    for name in files - {"HANDOUT.md"}:
        expected = blanked(name).encode() if name in FILES else (ROOT / name).read_bytes()
        assert (student / name).read_bytes() == expected
    text = (student / "HANDOUT.md").read_text(encoding="utf-8")
    assert text == handout()
    for number, problem in enumerate(PROBLEMS, 1):
        assert f"## {number}. {problem.title} ({problem.points} points)" in text and f"python -m pytest {' '.join(problem.nodes())}" in text and problem.task in text


def test_the_command_of_the_handout_finds_its_tests(student):
    """One process for all: what pytest collects is what the table names."""
    nodes = [node for problem in PROBLEMS for node in problem.nodes()]
    said = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *nodes], cwd=student, capture_output=True, text=True)
    assert said.returncode == 0 and {line.split("[")[0] for line in said.stdout.splitlines() if "::" in line} == set(nodes), said.stdout[-2000:]


def test_in_a_graded_file_one_solution_is_the_students_and_the_others_are_ours():
    mixed = alone("train_ppo.py", HALF, 8)
    ours, nodes = functions_of(source("train_ppo.py")), functions_of(mixed)
    assert "forgets the mask" in ast.unparse(nodes["whiten"]) and ast.dump(nodes["gae"]) == ast.dump(ours["gae"])
    assert all(ast.dump(nodes[name]) == ast.dump(ours[name]) for name, number in problems_of("train_ppo.py").items() if number != 8)
    with pytest.raises(SyntaxError):
        alone("train_ppo.py", "def whiten(:", 8)


def graded(folder, monkeypatch, capsys, numbers):
    """Grade a few problems only. Returns {number: row of the JSON}."""
    import assignment

    few = [problem if number in numbers else problem._replace(tests={}) for number, problem in enumerate(PROBLEMS, 1)]
    monkeypatch.setattr(assignment, "grade_one", lambda number, texts, limit, one=assignment.grade_one: one(number, texts, limit) if number in numbers
                        else {"problem": number, "title": "", "points": 0, "of": few[number - 1].points, "tests": {}})
    assert main([str(folder), "--grade", "--json", "--limit", "20"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["of"] == 100 and said["points"] == sum(row["points"] for row in said["problems"])
    return {row["problem"]: row for row in said["problems"]}


def test_points_for_all_for_half_and_for_nothing(student, tmp_path, monkeypatch, capsys):
    """Problem 8 right and half right, problem 5 nonsense, in files where nothing else is solved; a student's own tests count for nothing."""
    copy = tmp_path / "copy"
    for name in FILES:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((student / name).read_bytes())
    (copy / "tests").mkdir()
    (copy / "tests" / "conftest.py").write_text("raise SystemExit('a student was here')\n")
    nodes = functions_of(source("train_ppo.py"))
    whiten = ast.get_source_segment(source("train_ppo.py"), nodes["whiten"])
    text = blanked("train_ppo.py")
    (copy / "train_ppo.py").write_text(text.replace(ast.get_source_segment(text, functions_of(text)["whiten"]), whiten), encoding="utf-8")
    (copy / "preferences.py").write_text(source("preferences.py").replace("def elo_scores(", "def elo_scores(*_, **__):\n    import os\n    os._exit(0)\n\n\ndef other("), encoding="utf-8")
    rows = graded(copy, monkeypatch, capsys, {5, 8})
    assert rows[8]["points"] == PROBLEMS[7].points and set(rows[8]["tests"].values()) == {None}
    assert rows[5]["points"] == 0 and all("process ended" in why for why in rows[5]["tests"].values()), "who ends the process has passed nothing"
    wrong = whiten.replace("masked_mean(x, mask)", "x.mean()")
    assert wrong != whiten
    (copy / "train_ppo.py").write_text(text.replace(ast.get_source_segment(text, functions_of(text)["whiten"]), wrong), encoding="utf-8")
    (copy / "preferences.py").write_text("def elo_scores(:\n")
    rows = graded(copy, monkeypatch, capsys, {5, 8})
    assert rows[8]["points"] == PROBLEMS[7].points / 2 and rows[5]["points"] == 0 and all("is not Python" in why for why in rows[5]["tests"].values())


@pytest.mark.parametrize("body, why", [
    ("    while True:\n        pass", "not done after"), (f"    return open({str(ROOT / 'train_ppo.py')!r}).read()", "may not touch"),
    ("    open('../graded_code_was_here', 'w').close()", "may not touch"), ("    __import__('subprocess').run(['true'])", "may not start")])
def test_graded_code_has_its_limits(body, why):
    from assignment import run

    text = blanked("train_ppo.py").replace('    raise NotImplementedError("problem 8: Whitening")', body)
    nodes = PROBLEMS[7].nodes()[:1]
    said = run(nodes, {"train_ppo.py": alone("train_ppo.py", text, 8)}, 4)
    assert why in said[nodes[0]]


@pytest.mark.parametrize("argv, hint", [
    ([], "or --prove"), (["."], "exists already"), (["new", "--prove"], "or --prove"), (["new", "--json"], "go with OUT"), (["new", "--grade"], "expected a folder that tests/assignment.py has written"),
    (["new", "--grade", "--limit", "0"], "above 0"), ([str(ROOT / "student")], "is inside this repository"), (["new", "--gradee"], "unrecognized")])
def test_a_mistake_is_one_sentence(argv, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and hint in said and said.strip().count("\n") == 0 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_table_that_names_what_is_gone_says_so(monkeypatch, tmp_path, capsys):
    import assignment

    for change, hint in ((dict(functions={"train_ppo.py": "whitened"}), "train_ppo.py has no function whitened"), (dict(tests={"train_ppo": "whitening_by_foot"}), "has no test_whitening_by_foot"),
                         (dict(functions={"train_dpo.py": "whiten"}), "names train_dpo.py, which does not exist")):
        monkeypatch.setattr(assignment, "PROBLEMS", [PROBLEMS[7]._replace(**change)])
        with pytest.raises(SystemExit):
            main([str(tmp_path / "new")])
        assert hint in capsys.readouterr().err
