"""Every problem of the assignment has its lesson, in both languages, and no lesson gives away an answer."""
import re

import pytest
from assignment import PROBLEMS
from conftest import ROOT
from lessons import FOLDERS, LESSON, answers, faults, from_root, lesson, parts_of, sections, title

NUMBERS = range(1, len(PROBLEMS) + 1)


def test_every_problem_has_every_part_and_every_rubric_its_points():
    assert faults(len(PROBLEMS)) == []


def test_lessons_and_answers_are_called_what_their_problems_are_called():
    assert [title(n) for n in NUMBERS] == [problem.title for problem in PROBLEMS]
    for language in FOLDERS:
        answered = [section.title for section in sections("teaching-answers", language).values()]
        assert answered == [title(n, language) for n in NUMBERS]


@pytest.mark.parametrize("language", FOLDERS)
def test_hints_have_no_code(language):
    for number in NUMBERS:
        parts = sections("lessons", language)[number].parts
        assert not any("```" in parts[hint] for hint in LESSON[language][3:5]), number


@pytest.mark.parametrize("language", FOLDERS)
def test_a_lesson_points_into_a_chapter_and_runs_what_a_student_has(language):
    why, experiment = (LESSON[language][i] for i in (1, 7))
    for number in NUMBERS:
        parts = parts_of(lesson(number, language))
        [*chapters] = re.findall(r"\]\(([^)#]+)#[^)]+\)", parts[why])
        assert chapters and all((ROOT / chapter).is_file() for chapter in chapters), (number, chapters)
        commands = re.findall(r"^python (\S+)", parts[experiment], flags=re.M)
        assert commands and not any(re.match("docs/|tests/", script) for script in commands), number


@pytest.mark.parametrize("language", FOLDERS)
def test_students_do_not_read_the_answers(language):
    page = (ROOT / FOLDERS[language] / "lessons.md").read_text(encoding="utf-8")
    assert "teaching-answers" not in page
    for number in NUMBERS:
        for line in answers(number, language).split("\n"):
            assert len(line) < 20 or line not in page, line


def test_sections_and_parts_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("lessons.ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    text = ("# Page\n\n## 1. One\n\n**Goal.** G [c](3-ppo.md#x)\nand [r](../README.md)\n\n"
            "<details><summary>Hint 1</summary>\n\nH\n\n</details>\n\n## Another\n\nno lesson\n")
    (tmp_path / "docs" / "byhand.md").write_text(text, encoding="utf-8")
    [(number, section)] = sections("byhand", "en").items()
    assert (number, section.title) == (1, "One")
    goal = "G [c](docs/3-ppo.md#x)\nand [r](README.md)"
    assert section.parts == {"Goal": goal, "Hint 1": "H"}


def test_links_of_a_page_lead_from_the_root():
    assert from_root("[a](3-ppo.md#x) [b](../glossary.md) [c](https://x.org/y)", "docs/zh") == (
        "[a](docs/zh/3-ppo.md#x) [b](docs/glossary.md) [c](https://x.org/y)")
