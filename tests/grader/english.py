"""The words of HANDOUT.md; chinese.py has the same names with the same {fields}."""
import textwrap

from grader.problems import PROBLEMS

FILE = "HANDOUT.md"
COMMA, SEMICOLON = ", ", "; "

PAGE = """[中文](HANDOUT.zh.md)

# Assignment: RLHF from scratch

{n} problems, {points} points (grader: {version}). This folder is a complete RLHF program in which the
functions below only say `raise NotImplementedError`. You write them. The docstring of a function is its
specification: what it gets, what it returns, and an example where one helps; signatures and docstrings stay
as they are. `README.md` explains the whole and says how to install what it needs.

**Where you are.** `model.py`, `data.py` and six scripts, one for each stage, tell the story; all that you
write is in them. `world/` (who speaks and who judges) and `lab/` (how a run is kept, measured and looked at)
are complete. You can write every function without reading there.

**How to work.** In the order below. Each problem has a command that runs the tests which grade it; it takes
seconds. A problem with prerequisites can be tested only when those are solved.{needed}{others} When all
functions of the program are written, `python -m pytest` and `python train_ppo.py --config tiny` work.

**Hints, questions, experiments.** Hints are folded away: try twenty minutes without. Questions are answered
in words, in `ANSWERS.md`: 4 points each, which your teacher gives, apart from those here. Experiments come
last, for their commands train whatever is missing (talking to a model trains nothing): those of pretraining
and SFT need problems 1 to 3, a reward model of `--rankings rankings` 4 as well, PPO and the usual reward
model all but 5 and 11, and rejection sampling 11, too. What is not written yet ends a command with
`NotImplementedError` and the number of its problem.

**How to hand in.** This whole folder. Only the files that the table below names are read, and of these only
the functions asked for, with the functions, constants and imports of your own that they use, each in the same
file. Changes elsewhere, tests included, count for nothing.

**What you may write.** Functions that calculate. You may import from {imports}. Classes, `global`, attributes
that start with an underscore, and what opens files, starts programs or looks into Python itself (`open`,
`exec`, `getattr` ...) are refused with a sentence that names the line; so are, harmless as your use of them
may be, `type`, `hasattr` and `str.format` (`isinstance` and f-strings are allowed). What tensors, modules and
optimizers can do (`model.eval()`, too) is allowed, and so are the functions of our own files; NumPy is not.

**How it is graded.** By the tests named here, some of which may run with other numbers and sizes. Each
problem is graded by itself, your functions for it together with correct versions of all others, so that a
mistake costs its points once. A test passes where all its cases do. Tests marked *core* must pass first:
where one of them fails the problem earns nothing. Then it is worth its points times the share of its tests
that pass, by their weight. A function that ends the program or never ends itself costs its problem, and no
other; so does one that Python cannot read.

| problem | points | where |
|---|---|---|
{rows}

{sections}
"""
GIVEN = " These others are given, solved: {problems}."
NOT_GIVEN = " The problems below need these others, which are not given, so bring your own: {problems}."
OTHERS = " Blank as well, but no part of this sheet: {problems}."
ANSWERS = "# Answers to the written questions"
NOTE = """> An assignment: some functions here are blank, and commands that need them do not work yet. Begin
> with [HANDOUT.md](HANDOUT.md).

"""

SECTION = """## {number}. {title} ({points} points)

{task}

{lesson}

- Deliverable: {functions}
- Prerequisites: {needs}
- Core: {core}
- Test ({tests}):

```
python -m pytest {nodes}
```"""
WHERE = "`{file}`: {functions}"
PROBLEM = "{number} ({title})"
NONE = "none"
EQUAL = "{n} of equal weight"
UNEQUAL = "{n}; {heavy}"
HEAVY = "`{test}` counts {weight} times"

TASKS = {number: textwrap.dedent(problem.task).strip() for number, problem in enumerate(PROBLEMS, 1)}
