"""The student's repository is ours but for the bodies asked for, and points are given for right ones only.
That the graded tests can be passed, and not by a sham: python tests/assignment.py --prove."""
import ast
import csv
import json
import re
import subprocess
import sys
from string import Formatter

import pytest
from assignment import main
from conftest import ROOT
from grader import chinese, english, sources
from grader.handout import LANGUAGES, handout, left_out, page
from grader.language import alone
from grader.points import in_words
from grader.problems import ALL, FILES, PROBLEMS, problems_of
from grader.sources import blanked, for_students, functions_of, repository, source, version
from lessons import lesson, title

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
    handouts = files - set(repository())
    assert handouts == {"HANDOUT.md", "HANDOUT.zh.md", "ANSWERS.md"}
    assert left_out >= {f"tests/{name}.py" for name in (
        "assignment", "test_assignment", "mutants", "test_mutants", "test_layout")}
    assert not [name for name in left_out if name.startswith(("world/", "lab/")) or "/" not in name]
    pages_and_pictures = {name for name in repository() if name.startswith("docs/")}
    theirs = ("teaching", "bugs.png", "alternatives.py", "6-alternatives")  # for teachers, or with solutions
    kept = {name for name in pages_and_pictures if not any(part in name for part in theirs)}
    assert files & pages_and_pictures == kept
    for name in files - handouts:
        expected = (ROOT / name).read_bytes()
        if name in FILES:
            expected = blanked(name).encode()
        elif name.endswith(".md"):
            note = {"README.md": english.NOTE, "docs/zh/README.md": chinese.NOTE}.get(name, "")
            expected = (note + page(name)).encode()
        assert (student / name).read_bytes() == expected


def test_no_page_names_what_was_left_out(student):
    """Neither as a link nor as a command, nor in a section for teachers."""
    for name in (name for name in for_students() if name.endswith(".md")):
        text = (student / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            there = (student / name).parent / target
            assert there.exists() or not ((ROOT / name).parent / target).is_file(), f"{name}: {target}"
        assert not [gone for gone in left_out() if gone in text], name
        assert "Teaching with it" not in text and "用它教学" not in text
        assert "How fast is it" not in text and "它有多快" not in text


def test_some_problems_are_handed_out_with_what_they_need(tmp_path, capsys):
    """Problem 12 needs seven others: given, solved, or with --blank not; the rest is blank all the same, or
    with --solved given, too."""
    needed, others = {1, 3, 6, 7, 8, 9, 10}, set(range(1, 12))
    for flags, solved in (([], needed), (["--blank"], set()), (["--solved"], others)):
        out = tmp_path / f"student{''.join(flags)}"
        assert main([str(out), "--problems", "12", *flags]) == 0
        for file in FILES:
            assert (out / file).read_text(encoding="utf-8") == blanked(file, solved)
        for words, own in ((english, "bring your own"), (chinese, "请用你自己的")):
            text = (out / words.FILE).read_text(encoding="utf-8")
            assert re.findall(r"^## (\d+)\.", text, re.M) == ["12"]
            assert (own in text) == (flags == ["--blank"])
        assert re.findall(r"^## (\d+)\.", (out / "ANSWERS.md").read_text(encoding="utf-8"), re.M) == ["12"]
    assert "1 problems, 18 points" in capsys.readouterr().out


@pytest.mark.parametrize("language, points", [("en", " ({} points)"), ("zh", "（{} 分）")])
def test_the_handout_says_what_to_write_where_and_how_it_is_graded(student, language, points):
    words = LANGUAGES[language]
    text = (student / words.FILE).read_text(encoding="utf-8")
    assert text == handout(language) and set(words.TASKS) == set(ALL)
    for number, problem in enumerate(PROBLEMS, 1):
        heading = f"## {number}. {title(number, language)}{points.format(problem.points)}"
        assert f"{heading}\n\n{words.TASKS[number]}\n\n{lesson(number, language)}\n\n- " in text
        assert f"python -m pytest {' '.join(problem.nodes())}\n" in text
        for file, names in problem.functions.items():
            functions = words.COMMA.join(f"`{name}`" for name in names.split())
            assert words.WHERE.format(file=file, functions=functions) in text
    assert "        " not in text, "the indentation of the table is gone"


def said(section):
    """What a section says in any language: blocks of code, code between words, numbers."""
    blocks = re.findall(r"```\w*\n(.*?)```", section, flags=re.S)
    prose = re.sub(r"```.*?```|\]\([^)]*\)", "", section, flags=re.S)
    code = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)}
    return blocks, code, set(re.findall(r"\d+(?:\.\d+)?", prose))


def fields(words):
    """The {fields} of every text of english.py or chinese.py."""
    texts = {name: text for name, text in vars(words).items() if name.isupper() and isinstance(text, str)}
    return {name: {field for _, field, *_ in Formatter().parse(text)} for name, text in texts.items()}


def test_both_handouts_say_the_same():
    assert fields(english) == fields(chinese)
    assert set(["n", "points", "version", "imports", "needed", "rows", "sections"]) < fields(english)["PAGE"]
    for number in ALL:
        assert said(english.TASKS[number]) == said(chinese.TASKS[number]), f"task {number}"
    pages = [re.split("^## ", handout(language), flags=re.M) for language in LANGUAGES]
    for number, (ours, theirs) in enumerate(zip(*pages, strict=True)):
        assert said(ours) == said(theirs), f"problem {number}" if number else "before problem 1"


@pytest.mark.parametrize("language", LANGUAGES)
def test_links_of_a_handout_lead_to_what_the_student_has(student, language):
    text = handout(language)
    other = {"en": "[中文](HANDOUT.zh.md)", "zh": "[English](HANDOUT.md)"}[language]
    assert text.split("\n")[0] == other
    targets = set(re.findall(r"\]\(([^)\s#]+)", text))
    assert len(targets) > 4
    assert not [target for target in targets if not (student / target).is_file()]


def test_no_line_break_is_inside_chinese():
    text = "\n    一，\n    `a` 二\n    三 `b`\n    四。\n\n    五\n"
    assert chinese.joined(text) == "一，`a` 二三 `b`\n四。\n\n五"


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


def graded(folder, capsys, numbers, *more):
    """Grade a few problems. Returns {number: row of the JSON}."""
    flags = ["--grade", "--json", "--limit", "30", "--jobs", "1", "--problems", numbers]
    assert main([str(folder), *flags, *more]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["points"] == sum(row["points"] for row in said["problems"])
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


def test_points(handed_in, capsys, tmp_path):
    """Problem 8 is right, in a file that is not Python elsewhere and would never end; problem 4 passes all
    but one test, which is none of its core; the file of problem 5 is gone."""
    right, _ = text_of("train_ppo.py", "whiten")
    broken = f"while True:\n    pass\n\n\ndef gae(:\n    return 1\n\n\n{right}\n\n\nraise SystemExit\n"
    (handed_in / "train_ppo.py").write_text(broken, encoding="utf-8")
    right, _ = text_of("train_rm.py", "bradley_terry_loss")
    wrong = right.replace("- (0 if margin is None else margin)", "")
    (handed_in / "train_rm.py").write_text(f"import torch.nn.functional as F\n\n\n{wrong}\n")
    (handed_in / "preferences.py").unlink()
    rows = graded(handed_in, capsys, "4,5,7,8", "--gradescope", str(tmp_path / "results.json"))
    assert rows[8]["points"] == PROBLEMS[7].points and set(rows[8]["tests"].values()) == {None}
    assert rows[4]["points"] == PROBLEMS[3].points * 4 / 5
    failed = rows[4]["tests"]["tests/test_train_rm.py::test_a_margin_asks_for_a_larger_difference"]
    assert failed.startswith("assert equal == pytest.approx(math.log(2)") and "; equal = 0.2" in failed
    assert failed in in_words(rows[4])
    for number, hint in ((5, "preferences.py is missing"), (7, "is not Python: line 5: ")):
        assert rows[number]["points"] == 0
        assert all(hint in why for why in rows[number]["tests"].values())
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["score"] == sum(row["points"] for row in rows.values())
    assert [test["max_score"] for test in written["tests"]] == [PROBLEMS[n - 1].points for n in rows]


def test_many_submissions_make_a_table(handed_in, tmp_path, capsys):
    """In a variant, whose hidden cases see that a solution holds the numbers of the given tests alone."""
    for name in ("good", "bad", "=no()"):
        (tmp_path / "class" / name).mkdir(parents=True)
    right, _ = text_of("train_ppo.py", "value_loss")
    (tmp_path / "class" / "good" / "train_ppo.py").write_text(right + "\n")
    fails = "    if values.shape[1] > 4:\n        return 0 * values.sum()\n    errors ="
    learned = right.replace("    errors =", fails, 1)
    (tmp_path / "class" / "bad" / "train_ppo.py").write_text(learned + "\n")
    flags = ["--grade-all", "--problems", "10", "--variant", "1", "--jobs", "1"]
    assert main([str(tmp_path / "class"), *flags]) == 0
    rows = list(csv.reader((tmp_path / "class" / "grades.csv").open(encoding="utf-8")))
    assert [row[:4] for row in rows[1:]] == [["'=no()", "0", "6", "0"], ["bad", "0.0", "6", "0.0"],
                                             ["good", "6.0", "6", "6.0"]]
    assert "none of data.py" in rows[1][-1]
    told = json.loads((tmp_path / "class" / "grades.json").read_text())
    assert told["good"]["grader"] == version() and told["good"]["variant"] == 1
    assert "hidden case of value_loss" in str(told["bad"]["problems"][0]["tests"])


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
    (["new", "--problems", "1-13"], "there are problems 1 to 12"),
    (["new", "--problems", "one"], "expected numbers as in 1-5,7"),
    (["new", "--variant", "1"], "goes with --grade"),
    (["new", "--grade-all"], "holds a folder for each submission"),
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
    monkeypatch.setattr(sources, "PROBLEMS", [PROBLEMS[7]._replace(**change)])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "new")])
    assert hint in capsys.readouterr().err
