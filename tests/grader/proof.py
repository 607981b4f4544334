"""What the tests are worth: they can be passed, and not by nothing or a sham."""
import copy
import dataclasses
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solutions import RIGHT, WRONG, all_work, graded

from grader.examine import run
from grader.handout import write
from grader.points import Grader, grade
from grader.problems import ALL, FILES, PROBLEMS, problems_of
from grader.sources import blanked, source, write_to

SHAMS = {"zeros": 0, "ones": 1, "its first argument": None}


def like(x, value):
    """Something of the kind and shape of x that is nothing but this value."""
    import torch

    if isinstance(x, torch.Tensor):
        return torch.full_like(x, value)
    if isinstance(x, dict):
        return {key: like(y, value) for key, y in x.items()}
    if dataclasses.is_dataclass(x):
        return dataclasses.replace(x, **like(vars(x), value))
    if isinstance(x, (list, tuple)):
        return type(x)(like(y, value) for y in x)
    return type(x)(value) if isinstance(x, (int, float)) else x


def sham(function, kind):
    """What returns zeros or ones of the right kind and shape, or its first argument in each place, and does
    nothing else."""
    import torch

    def wrong(*args, **named):
        memo = {}  # a model and its optimizer are copied together
        moved = torch.nn.Module, torch.optim.Optimizer
        kept = [copy.deepcopy(a, memo) if isinstance(a, moved) else a for a in args]
        right = function(*kept, **named)
        if SHAMS[kind] is None:
            return (args[0],) * len(right) if isinstance(right, tuple) else args[0]
        return like(right, SHAMS[kind])

    return wrong


def with_shams(numbers, kind):
    """Our files {file: text}, all problems solved but these, whose functions are shams."""
    texts = {}
    for file in FILES:
        names = [name for name, n in problems_of(file).items() if n in numbers]
        lines = [f"{name} = sham({name}, {kind!r})\n" for name in names]
        texts[file] = f"{source(file)}\n\nfrom {__name__} import sham\n{''.join(lines)}"
    return texts


class Claim:
    """On our files, some of them changed, all tests of these problems pass, or none of them does."""

    def __init__(self, words, numbers, changed, passes):
        self.words, self.numbers, self.changed, self.passes = words, numbers, changed, passes

    def wrong(self, limit):
        """What is not so, in words."""
        nodes = [node for n in self.numbers for node in PROBLEMS[n - 1].nodes()]
        said = run(nodes, self.changed, limit)
        return [f"{node} {'fails: ' + why if why else 'passes'}" for node, why in said.items()
                if (why is None) != self.passes]


def listed(numbers):
    return ", ".join(map(str, numbers))


def claims():
    """All that is to be shown, a Claim each."""
    yield Claim("with nothing written all tests fail", ALL, {f: blanked(f) for f in FILES}, False)
    for number in ALL:
        needs = PROBLEMS[number - 1].needs
        own = f"its solution and those of {listed(needs)}" if needs else "its solution"
        solved = {file: blanked(file, (number, *needs)) for file in FILES}
        yield Claim(f"problem {number}: with {own} alone all its tests pass", [number], solved, True)
    # What passes with its own solution alone does not depend on the other problems, so that these may be
    # shams at the same time.
    together = [number for number in ALL if not PROBLEMS[number - 1].needs]
    for some in (together, *([number] for number in ALL if number not in together)):
        who = f"problem{'s' if len(some) > 1 else ''} {listed(some)}"
        for kind in SHAMS:
            yield Claim(f"{who}: with all others solved, bodies that return {kind} pass no test", some,
                        with_shams(some, kind), False)


def prove(limit, jobs=None, brief=False):
    """Print what the tests of the problems are worth. Returns whether all of it is as it should be. brief:
    without the wrong solutions, the variants and the whole suite, which take most of the time."""
    began, good, grader = time.time(), True, Grader(ALL, limit, jobs=jobs)
    everything = list(claims())
    with ThreadPoolExecutor(grader.jobs) as pool:
        answers = pool.map(lambda claim: claim.wrong(limit), everything)
        for claim, wrong in zip(everything, answers, strict=True):
            good = good and not wrong
            said = "NO: " + "; ".join(wrong) if wrong else "yes"
            print(f"{time.time() - began:5.0f} s  {claim.words}: {said}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        write_to(Path(folder), FILES, {})
        print("\nthe whole solution, handed in:\n")
        points = grade(Path(folder), grader)["points"]
    good = good and points == sum(problem.points for problem in PROBLEMS) == 100
    print("\nother solutions:\n")
    good = not graded([] if brief else WRONG, RIGHT, 1 if brief else 5, grader.jobs) and good
    good = (brief or all_work()) and good
    print(f"\n{'All of it holds' if good else 'NOT all of it holds'}; {time.time() - began:.0f} s.")
    return good
