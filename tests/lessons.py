"""A lesson for each problem of tests/assignment.py, read from the pages that hold them:

    docs/lessons.md, docs/zh/lessons.md                     for students: lesson(6), lesson(6, "zh")
    docs/teaching-answers.md, docs/zh/teaching-answers.md   for teachers alone: answers(6), answers(6, "zh")

A section begins with `## 6. Title`. Its parts begin with `**Goal.**` or, where a reader opens them one by
one, with `<details><summary>Hint 1</summary>`. faults() says what is missing.
"""
import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
POINTS = 4  # of each written question
LESSON = {
    "en": ("Goal", "Why", "Time", "Hint 1", "Hint 2", "Usual mistakes", "Question", "Experiment",
           "What you see"),
    "zh": ("目标", "为什么", "用时", "点拨 1", "点拨 2", "常见错误",
           "书面题", "实验", "会看到什么"),
}
ANSWER = {"en": ("Model answer", "Rubric"), "zh": ("参考答案", "评分标准")}
FOLDERS = {"en": "docs", "zh": "docs/zh"}
START = re.compile(r"^(?:\*\*(.+?)[.。]\*\*|<details><summary>(.+?)</summary>)", flags=re.M)
POINT = re.compile(r"^- (\d+)(?: points?:| 分：)", flags=re.M)


class Section(NamedTuple):
    title: str
    text: str  # all that stands under the heading
    parts: dict  # {label: text}


def parts_of(text):
    """The parts of a section: {"Goal": "...", ...}, in their order."""
    pieces = START.split(text)[1:]  # for each part: its label in one of two places, then its text
    labels = [bold or folded for bold, folded in zip(pieces[::3], pieces[1::3], strict=True)]
    return {label: x.replace("</details>", "").strip() for label, x in zip(labels, pieces[2::3], strict=True)}


def from_root(text, folder):
    """Text of a page in `folder` whose links lead from the root of the repository."""
    def moved(link):
        path = os.path.normpath(Path(folder, link[1])).replace(os.sep, "/")
        return link[0] if ":" in link[1] else f"]({path}"

    return re.sub(r"\]\(([^)#\s]+)", moved, text)


@functools.cache
def sections(name, language):
    """The numbered sections of docs/NAME.md or docs/zh/NAME.md: {number: Section}."""
    folder = FOLDERS[language]
    page = from_root((ROOT / folder / f"{name}.md").read_text(encoding="utf-8"), folder)
    found = re.findall(r"^## (\d+)\. (.+)\n((?:(?!## ).*\n)*)", page, flags=re.M)
    return {int(number): Section(title, text.strip(), parts_of(text)) for number, title, text in found}


def title(number, language="en"):
    """What a problem is called. Raises KeyError for a number without a lesson, as all of these do."""
    return sections("lessons", language)[number].title


def lesson(number, language="en"):
    """The lesson of a problem, for a handout at the root of a repository."""
    return sections("lessons", language)[number].text


def answers(number, language="en"):
    """Model answer and rubric of its written question."""
    return sections("teaching-answers", language)[number].text


def faults(n_problems):
    """What is missing in the lessons of problems 1 to n_problems, or stands where it should not: a list of
    sentences."""
    found = []
    for language in FOLDERS:
        for name, labels in (("lessons", LESSON[language]), ("teaching-answers", ANSWER[language])):
            page, there = f"{FOLDERS[language]}/{name}.md", sections(name, language)
            if list(there) != list(range(1, n_problems + 1)):
                found.append(f"{page} has sections {list(there)}, not 1 to {n_problems}")
            for number, section in there.items():
                if tuple(section.parts) != labels:
                    found.append(f"{page}, {number}: its parts are {', '.join(section.parts)}")
                found += [f"{page}, {number}: {x} is empty" for x, text in section.parts.items() if not text]
        for number, section in sections("teaching-answers", language).items():
            points = sum(map(int, POINT.findall(section.parts[ANSWER[language][1]])))
            if points != POINTS:
                found.append(f"the rubric of question {number} ({language}) has {points} points of {POINTS}")
    return found
