"""The student's repository is ours but for the bodies asked for, and points are given for right ones only.
That the graded tests can be passed, and not by a sham: python tests/assignment.py --prove."""
import ast
import json
import re
import subprocess
import sys

import assignment
import pytest
from assignment import (
    FILES,
    PROBLEMS,
    alone,
    blanked,
    for_students,
    functions_of,
    handout,
    main,
    problems_of,
    repository,
    run,
    source,
    task_of,
    without_dead_links,
)
from conftest import ROOT

ALL = range(1, len(PROBLEMS) + 1)
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


def text_of(file, name):
    """The source of a function of one of our files, and of what the student gets in its place."""
    texts = source(file), blanked(file)
    return [ast.get_source_segment(text, functions_of(text)[name]) for text in texts]


def solution_lines(file):
    """The lines of a file, counted from 0, that stand behind the docstrings of what is asked for."""
    nodes, found = functions_of(source(file)), set()
    for name in problems_of(file):
        found |= set(range(nodes[name].body[0].end_lineno, nodes[name].end_lineno))
    return found


# ------------------------------------------------------------------------------------------------
# What the student gets
# ------------------------------------------------------------------------------------------------


def test_problems_are_in_the_order_of_the_pipeline_and_make_100_points():
    titles = "loss fine-tuning Sampling loss scores KL Advantages Whitening objective loss sampling loop"
    assert [p.title.split()[-1] for p in PROBLEMS] == titles.split()
    assert sum(p.points for p in PROBLEMS) == 100
    assert sum(len(problems_of(file)) for file in FILES) == 17
    for number, problem in enumerate(PROBLEMS, 1):
        nodes = problem.nodes()
        assert problem.points > 0 and nodes and len(set(nodes)) == len(nodes)
        assert set(problem.needs) <= set(ALL[: number - 1])


@pytest.mark.parametrize("file", FILES)
def test_only_bodies_are_gone(file):
    ours, theirs, gone = source(file).split("\n"), blanked(file).split("\n"), solution_lines(file)
    bodies = [line for line in theirs if line.startswith('    raise NotImplementedError("problem ')]
    kept = [line for i, line in enumerate(ours) if i not in gone]
    assert kept == [line for line in theirs if line not in bodies]
    assert len(bodies) == len(problems_of(file))
    nodes = functions_of(blanked(file))
    assert all(isinstance(nodes[name].body[1], ast.Raise) for name in problems_of(file))
    assert blanked(file, ALL) == source(file)


def test_no_second_line_of_a_solution_stands_elsewhere():
    """Neither in what is left of the scripts nor in world/ and lab/, which are given out whole."""
    programs = [name for name in for_students() if name.endswith(".py") and not name.startswith("tests/")]
    given = {line.strip() for name in programs
             for line in (blanked(name) if name in FILES else source(name)).split("\n")}
    for file in FILES:
        ours = source(file).split("\n")
        lines = [ours[i].strip() for i in solution_lines(file)]
        assert len([line for line in lines if len(line) > 40 and line in given]) < 2, file


def test_the_student_gets_everything_else_and_no_solution(student):
    files = {path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()}
    left_out = set(repository()) - files
    assert files - set(repository()) == {"HANDOUT.md"}
    assert left_out >= {f"tests/{name}.py" for name in (
        "assignment", "test_assignment", "mutants", "test_mutants", "test_layout")}
    assert not [name for name in left_out if name.startswith(("world/", "lab/")) or "/" not in name]
    pages_and_pictures = {name for name in repository() if name.startswith("docs/")}
    kept = {name for name in pages_and_pictures if name.endswith(".md") and "teaching" not in name}
    assert files & pages_and_pictures == kept
    for name in files - {"HANDOUT.md"}:
        expected = (ROOT / name).read_bytes()
        if name in FILES:
            expected = blanked(name).encode()
        elif name.endswith(".md"):
            expected = without_dead_links(name).encode()
        assert (student / name).read_bytes() == expected


def test_no_page_links_what_was_left_out(student):
    """A picture becomes its caption, a link its words; nothing else of a page changes."""
    for name in (name for name in for_students() if name.endswith(".md")):
        theirs, ours = ((folder / name).read_text(encoding="utf-8") for folder in (student, ROOT))
        for target in re.findall(r"\]\(([^)\s#]+)", theirs):
            there = (student / name).parent / target
            assert there.exists() or not ((ROOT / name).parent / target).is_file(), f"{name}: {target}"
        words = [re.sub(r"\*\[picture: |\]\*|!?\[|\]\([^)]*\)", "", text) for text in (theirs, ours)]
        assert re.sub(r"\]", "", words[0]) == re.sub(r"\]", "", words[1]), name


def test_the_handout_says_what_to_write_where_and_how_it_is_graded(student):
    text = (student / "HANDOUT.md").read_text(encoding="utf-8")
    assert text == handout()
    for number, problem in enumerate(PROBLEMS, 1):
        assert f"## {number}. {problem.title} ({problem.points} points)\n\n{task_of(problem)}" in text
        assert f"python -m pytest {' '.join(problem.nodes())}" in text
        for file, names in problem.functions.items():
            assert f"`{file}`: " + ", ".join(f"`{name}`" for name in names.split()) in text
    assert "        " not in text, "the indentation of the table is gone"


def test_the_command_of_the_handout_finds_its_tests(student):
    """One process for all: what pytest collects is what the table names."""
    nodes = [node for problem in PROBLEMS for node in problem.nodes()]
    how = ["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    said = subprocess.run([sys.executable, "-m", "pytest", *how, *nodes], cwd=student, capture_output=True,
                          text=True)
    found = {line.split("[")[0] for line in said.stdout.splitlines() if "::" in line}
    assert said.returncode == 0 and found == set(nodes), said.stdout[-2000:]


# ------------------------------------------------------------------------------------------------
# Grading
# ------------------------------------------------------------------------------------------------


def test_in_a_graded_file_one_solution_is_the_students_and_the_others_are_ours():
    mixed = alone("train_ppo.py", HALF, 8)
    ours, nodes = functions_of(source("train_ppo.py")), functions_of(mixed)
    assert "forgets the mask" in ast.unparse(nodes["whiten"])
    assert ast.dump(nodes["gae"]) == ast.dump(ours["gae"])
    for name, number in problems_of("train_ppo.py").items():
        assert number == 8 or ast.dump(nodes[name]) == ast.dump(ours[name])
    with pytest.raises(SyntaxError):
        alone("train_ppo.py", "def whiten(:", 8)


def graded(folder, monkeypatch, capsys, numbers):
    """Grade a few problems only. Returns {number: row of the JSON}."""
    grade_one = assignment.grade_one

    def one_of_them(number, texts, limit):
        if number in numbers:
            return grade_one(number, texts, limit)
        return {"problem": number, "title": "", "points": 0, "of": PROBLEMS[number - 1].points, "tests": {}}

    with monkeypatch.context() as patch:
        patch.setattr(assignment, "grade_one", one_of_them)
        assert main([str(folder), "--grade", "--json", "--limit", "20"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["of"] == 100 and said["points"] == sum(row["points"] for row in said["problems"])
    return {row["problem"]: row for row in said["problems"]}


@pytest.fixture
def handed_in(student, tmp_path):
    """A copy of the files that are read, and a test of the student's own, which counts for nothing."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes((student / name).read_bytes())
    (copy / "tests").mkdir()
    (copy / "tests" / "conftest.py").write_text("raise SystemExit('a student was here')\n")
    return copy


def test_points_for_all_and_for_nothing(handed_in, monkeypatch, capsys):
    """Problem 8 is right, problem 5 ends the process, in files where nothing else is solved."""
    right, empty = text_of("train_ppo.py", "whiten")
    text = blanked("train_ppo.py").replace(empty, right)
    (handed_in / "train_ppo.py").write_text(text, encoding="utf-8")
    exits = "def elo_scores(*_, **__):\n    import os\n    os._exit(0)\n\n\ndef other("
    text = source("preferences.py").replace("def elo_scores(", exits)
    (handed_in / "preferences.py").write_text(text, encoding="utf-8")
    rows = graded(handed_in, monkeypatch, capsys, {5, 8})
    assert rows[8]["points"] == PROBLEMS[7].points and set(rows[8]["tests"].values()) == {None}
    assert rows[5]["points"] == 0, "who ends the process has passed nothing"
    assert all("process ended" in why for why in rows[5]["tests"].values())


def test_points_for_half(handed_in, monkeypatch, capsys):
    """Problem 8 forgets the mask, and the file of problem 5 is not Python, that of problem 4 is gone."""
    right, empty = text_of("train_ppo.py", "whiten")
    wrong = right.replace("masked_mean(x, mask)", "x.mean()")
    assert wrong != right
    text = blanked("train_ppo.py").replace(empty, wrong)
    (handed_in / "train_ppo.py").write_text(text, encoding="utf-8")
    (handed_in / "preferences.py").write_text("def elo_scores(:\n")
    (handed_in / "train_rm.py").unlink()
    rows = graded(handed_in, monkeypatch, capsys, {4, 5, 8})
    assert rows[8]["points"] == PROBLEMS[7].points / 2
    for number, hint in ((5, "preferences.py is not Python"), (4, "train_rm.py: the file is missing")):
        assert rows[number]["points"] == 0
        assert all(hint in why for why in rows[number]["tests"].values())


@pytest.mark.parametrize("body, why", [
    ("    while True:\n        pass", "not done after"),
    (f"    return open({str(ROOT / 'train_ppo.py')!r}).read()", "may not touch"),
    ("    open('../graded_code_was_here', 'w').close()", "may not touch"),
    ("    __import__('subprocess').run(['true'])", "may not start"),
])
def test_graded_code_has_its_limits(body, why):
    empty = '    raise NotImplementedError("problem 8: Whitening")'
    text = blanked("train_ppo.py").replace(empty, body)
    nodes = PROBLEMS[7].nodes()[:1]
    said = run(nodes, {"train_ppo.py": alone("train_ppo.py", text, 8)}, 4)
    assert why in said[nodes[0]]


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv, hint", [
    ([], "or --prove"),
    (["."], "exists already"),
    (["new", "--prove"], "or --prove"),
    (["new", "--json"], "go with OUT"),
    (["new", "--grade"], "expected a folder that tests/assignment.py has written"),
    (["new", "--grade", "--limit", "0"], "above 0"),
    ([str(ROOT / "student")], "is inside this repository"),
    ([str(ROOT), "--grade"], "is this repository"),
    (["new", "--gradee"], "unrecognized"),
])
def test_a_mistake_is_one_sentence(argv, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and hint in said and said.strip().count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("change, hint", [
    ({"functions": {"train_ppo.py": "whitened"}}, "train_ppo.py has no function whitened"),
    ({"tests": {"train_ppo": "whitening_by_foot"}}, "has no test_whitening_by_foot"),
    ({"functions": {"train_dpo.py": "whiten"}}, "names train_dpo.py, which does not exist"),
])
def test_a_table_that_names_what_is_gone_says_so(monkeypatch, tmp_path, capsys, change, hint):
    monkeypatch.setattr(assignment, "PROBLEMS", [PROBLEMS[7]._replace(**change)])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "new")])
    assert hint in capsys.readouterr().err
