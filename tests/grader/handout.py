"""The student's repository: ours without the bodies asked for, with a HANDOUT.md."""
import importlib.util
import os
import re
import textwrap
from pathlib import Path

from grader.problems import ALL, FILES, PROBLEMS, ROOT, Mistake, needed_by
from grader.sources import blanked, for_students, repository, version, write_to

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")  # of markdown: picture?, words, file
FOR_TEACHERS = re.compile(r"^## (?:Teaching with it|用它教学)\n.*?(?=^## |\Z)", re.M | re.S)
MADE_BY = r"`?[^`\n]*(?:tests/(?:assignment|mutants)\.py|\.ci/run)[^`\n]*`?"
DEAD = re.compile(rf"<!-- [^>]*{MADE_BY}[^>]* -->\n+|[;；][^;；.。]*{MADE_BY}(?=[.。])")


def page(file):
    """The text of a page without what is for teachers: their section, commands and figures of scripts that
    stay here; a link to what stays here is its words, a picture its caption."""
    names = for_students()

    def plain(link):
        picture, words, target = link.groups()
        path = os.path.normpath(ROOT / Path(file).parent / target)
        name = Path(os.path.relpath(path, ROOT)).as_posix()
        if name in names or not os.path.isfile(path):
            return link[0]
        return f"*[picture: {words}]*" if picture else words

    text = (ROOT / file).read_bytes().decode("utf-8")
    return LINK.sub(plain, DEAD.sub("", FOR_TEACHERS.sub("", text)))


HANDOUT = """# Assignment: RLHF from scratch

{n} problems, {points} points (grader: {version}). This folder is a complete RLHF program in which the
functions below only say `raise NotImplementedError`. You write them. The docstring of a function is its
specification: what it gets, what it returns, and an example where one helps; signatures and docstrings stay
as they are. `README.md` explains the whole and says how to install what it needs.

**Where you are.** `model.py`, `data.py` and six scripts, one for each stage, tell the story; all that you
write is in them. `world/` (who speaks and who judges) and `lab/` (how a run is kept, measured and looked at)
are complete. You can write every function without reading there.

**How to work.** In the order below. Each problem has a command that runs the tests which grade it; it takes
seconds. A problem with prerequisites can be tested only when those are solved.{state} When all functions of
the program are written, `python -m pytest` and `python train_ppo.py --config tiny` work.

**How to hand in.** This whole folder. Only the files that the table below names are read, and of these only
the functions asked for, with the functions, constants and imports of your own that they use, each in the same
file. Changes elsewhere, tests included, count for nothing.

**What you may write.** Functions that calculate. You may import from
{imports}.
Classes, `global`, attributes that start with an underscore, and what opens files, starts programs or looks
into Python itself (`open`, `exec`, `getattr` ...) are refused with a sentence that names the line.

**How it is graded.** By the tests named here, some of which may run with other numbers and sizes. Each
problem is graded by itself, your functions for it together with correct versions of all others, so that a
mistake costs its points once. Tests marked *core* must pass first: where one of them fails the problem earns
nothing. Then it is worth its points times the share of its tests that pass, by their weight. A function that
ends the program or never ends itself costs its problem, and no other; so does one that Python cannot read.

| problem | points | where |
|---|---|---|
{rows}

{problems}
"""


def quoted(names):
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


def task_of(problem):
    """The words of a task, without the indentation that they have in the table."""
    return textwrap.dedent(problem.task).strip()


def lesson_of(number):
    """The lesson of a problem, where tests/lessons.py is there, with an empty line behind it."""
    if importlib.util.find_spec("lessons") is None:
        return ""
    import lessons

    return f"{lessons.lesson(number)}\n\n"


def section(number):
    """What the handout says of a problem."""
    problem = PROBLEMS[number - 1]
    files = problem.functions.items()
    needs = ", ".join(f"{n} ({PROBLEMS[n - 1].title})" for n in problem.needs) or "none"
    tests = problem.graded()
    core = quoted(test.node.split("::test_")[1] for test in tests if test.core)
    heavy = ", ".join(f"`{test.node.split('::test_')[1]}` counts {test.weight} times"
                      for test in tests if test.weight > 1)
    return f"""## {number}. {problem.title} ({problem.points} points)

{task_of(problem)}

{lesson_of(number)}- Deliverable: {"; ".join(f"`{file}`: {quoted(names.split())}" for file, names in files)}
- Prerequisites: {needs}
- Core: {core}
- Test ({len(tests)}{"; " + heavy if heavy else " of equal weight"}):

```
python -m pytest {" ".join(problem.nodes())}
```"""


def handout(numbers=ALL, blank=False):
    """The text of HANDOUT.md. blank: whether what the problems need is left blank, too."""
    from grader.language import IMPORTS

    needs, state = needed_by(numbers), ""
    if needs:
        listed = ", ".join(f"{n} ({PROBLEMS[n - 1].title})" for n in needs)
        given = "not given: bring your own" if blank else "given, solved"
        state = f" Needed for these and {given}: {listed}."
    chosen = [PROBLEMS[number - 1] for number in numbers]
    rows = [f"| {n}. {p.title} | {p.points} | {quoted(p.functions)} |"
            for n, p in zip(numbers, chosen, strict=True)]
    imports = quoted(name for name in IMPORTS if name != "__future__")
    return HANDOUT.format(n=len(chosen), points=sum(p.points for p in chosen), rows="\n".join(rows),
                          version=version(), state=state, imports=imports,
                          problems="\n\n".join(map(section, numbers)))


def write(out, numbers=ALL, blank=False):
    """Write the student's repository into the new folder `out`: these problems blank, what they need solved
    unless `blank`, what neither asks for nor needs blank, too, for it may be asked for later."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Mistake(f"{out} exists already: name a new folder for the student's repository, or give "
                      "--grade to grade this one")
    if ROOT in [out.resolve(), *out.resolve().parents]:
        raise Mistake(f"{out} is inside this repository: name a folder outside, where the solutions are not "
                      "next to it")
    names = for_students()
    changed = {name: page(name) for name in names if name.endswith(".md")}
    changed |= {file: blanked(file, () if blank else needed_by(numbers)) for file in FILES}
    write_to(out, names, changed)
    (out / "HANDOUT.md").write_text(handout(numbers, blank), encoding="utf-8")


def left_out():
    """Our files that a student does not get."""
    return sorted(set(repository()) - set(for_students()))
