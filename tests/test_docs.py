"""README and chapters agree with the code: files and sections that they link to are there, commands have
flags that their scripts know, line counts are true, the Chinese edition has the same figures and commands."""
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lab.cli import parse

sys.path.insert(0, str(ROOT / "docs"))
pages, experiments = (importlib.import_module(name) for name in ("pages", "experiments"))
EXPERIMENTS = {function.__name__ for function in experiments.EXPERIMENTS}

README = ROOT / "README.md"
CHAPTERS = sorted((ROOT / "docs").glob("*.md"))
CHINESE = sorted((ROOT / "docs" / "zh").glob("*.md"))
PAGES = [README, *CHAPTERS, *CHINESE]
SCRIPTS = ("train_pretrain", "train_sft", "preferences", "train_rm", "train_ppo", "rejection_sampling")


def page_name(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """The text of a page without its code blocks."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)


def blocks(path):
    """The code blocks of a page."""
    return re.findall(r"```\w*\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)


def anchors(path):
    """The anchors that a page's headings have on the usual hosts, and those that it sets itself."""
    text, found = path.read_text(encoding="utf-8"), set()
    for heading in re.findall(r"^#+ (.*)$", prose(path), flags=re.M):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.replace(" ", "-"))
    return found | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path).replace("\n", " ")):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{page_name(path)} links {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page_name(path)} links {target}"


def commands(path):
    """The commands of a page, in code blocks and in the text: lists of words behind `python`."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(path) for line in block.replace("\\\n", " ").split("\n")]
    lines += re.findall(r"`(python [^`]*)`", prose(path).replace("\n", " "))
    found = []
    for line in lines:
        line = re.sub(r"\s#.*", "", line.strip())
        for part in re.split(r"&&|;", line):
            part = re.sub(r"^\s*(\w+=\S+ )*", "", part)
            if part.startswith("python ") and "..." not in part:
                found.append(shlex.split(part)[1:])
    assert text
    return found


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_are_understood(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a run that happens to be there has no say
    for words in commands(path):
        script = Path(words[0])
        if script.stem in SCRIPTS and script.suffix == ".py":
            module = importlib.import_module(script.stem)
            for word in words:
                if word == "FILE" or word.endswith(".txt"):  # a file of yours
                    Path(word).write_text("Please be brief.")
            monkeypatch.setattr(sys, "argv", words)
            parse(module.Config, module.PRESETS, "", words[1:], module.RULES)
        elif script.suffix == ".py":
            assert (ROOT / script).exists(), f"{page_name(path)}: {' '.join(words)}"
        elif words[0] == "-m" and words[1].startswith("lab."):
            assert (ROOT / f"{words[1].replace('.', '/')}.py").exists()


def test_experiments_that_pages_name_exist():
    for path in PAGES:
        for words in commands(path):
            if words[0] == "docs/experiments.py" and len(words) > 1:
                assert words[1] in EXPERIMENTS | {"all", "write", "check"}, words


def marks(path):
    """[(kind, what it names)] of a page's comments about its figures (docs/pages.py)."""
    pattern = r"^<!-- (table|output|measured): (.+?) -->$"
    return re.findall(pattern, path.read_text(encoding="utf-8"), flags=re.M)


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_figures_are_said_to_be_of_an_experiment_that_exists(path):
    for mark in pages.marks_of(path):
        assert set(mark.names) <= EXPERIMENTS | {"records"}, mark
        if mark.kind == "measured":
            assert mark.names or mark.what.startswith("python "), mark
        else:
            assert re.fullmatch(r"\w+ [1-9]( (rows|columns)( \d+)+)*", mark.what), mark
            first = pages.lines_of(path)[mark.begin]
            assert first.startswith("|" if mark.kind == "table" else "```"), mark
    english = README if path.name == "README.md" else ROOT / "docs" / path.name
    assert marks(path) == marks(english) == [(mark.kind, mark.what) for mark in pages.marks_of(path)]


def test_line_counts_of_the_readme_are_true():
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([\w/]+\.py)\]\(\S+\) \| (\d+) \|", text, flags=re.M)
    assert len(rows) >= 9
    for file, lines in rows:
        assert int(lines) == len((ROOT / file).read_text(encoding="utf-8").splitlines()), file


def test_the_readme_is_a_first_screen_and_a_map():
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 16_000
    assert any("](docs/first.png)" in line for line in text.split("\n")[:12])
    assert "python -m pytest" in text


def figures(path):
    """The numbers of each row of a page's tables."""
    rows = [line for line in prose(path).split("\n") if line.startswith("|")]
    return [re.findall(r"-?\d+(?:\.\d+)?", row) for row in rows]


@pytest.mark.parametrize("path", CHINESE, ids=page_name)
def test_the_chinese_edition_has_the_same_figures_and_commands(path):
    english = README if path.name == "README.md" else ROOT / "docs" / path.name
    assert [sorted(row) for row in figures(path)] == [sorted(row) for row in figures(english)]
    assert commands(path) == commands(english)
    assert {page.name for page in CHINESE} == {page.name for page in [README, *CHAPTERS]}
