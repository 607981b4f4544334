"""Solutions of the assignments' problems, wrong ones and right ones: does each get what it deserves?

    python tests/solutions.py                      no wrong one may pass all tests of its problem, no right
                                                   one may fail one of them, with five seeds
    python tests/solutions.py --problem 12         those of one problem only
    python tests/solutions.py --seeds 1 --jobs 1   one seed, one process

A wrong solution is ours with a plausible mistake: solutions_wrong.py and, of PPO's formulas and loop,
solutions_wrong_ppo.py and solutions_wrong_loop.py. A right one does the same in another style:
solutions_right.py and solutions_right_ppo.py. The exit code is 1 where a wrong one has passed or a right one
has failed.
"""
import argparse
import ast
import contextlib
import functools
import gc
import importlib
import io
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from assignment import PROBLEMS
from solutions_right import RIGHT as RIGHT_BEFORE_PPO
from solutions_right_ppo import RIGHT as RIGHT_IN_PPO
from solutions_wrong import WRONG as WRONG_BEFORE_PPO
from solutions_wrong_loop import IN_ROLLOUT, IN_THE_LOSS, IN_UPDATE
from solutions_wrong_ppo import WRONG as WRONG_FORMULAS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RIGHT = RIGHT_BEFORE_PPO + RIGHT_IN_PPO
WRONG = WRONG_BEFORE_PPO + WRONG_FORMULAS + IN_ROLLOUT + IN_THE_LOSS + IN_UPDATE

# ------------------------------------------------------------------------------------------------
# The text of a solution
# ------------------------------------------------------------------------------------------------


@functools.cache
def pieces(problem):
    """The functions of a problem with their decorators: [(file, text)]."""
    found = []
    for file, names in PROBLEMS[problem - 1].functions.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        nodes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        for node in map(nodes.get, names.split()):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found.append((file, "\n".join(text.split("\n")[first - 1 : node.end_lineno])))
    return found


def wrong_code(solution):
    """{module: code of the functions with the mistake in them}. Raises ValueError where a text to replace
    does not occur exactly once in the functions of the problem."""
    functions = pieces(solution.problem)
    for right, wrong in solution.edits:
        count = sum(text.count(right) for _, text in functions)
        if count != 1:
            raise ValueError(f"problem {solution.problem}, {solution.what}: {right!r} is there {count} times")
        functions = [(file, text.replace(right, wrong)) for file, text in functions]
    code = {}
    for file, text in functions:
        code[file] = code.get(file, "") + text + "\n\n"
    return {file.removesuffix(".py"): text for file, text in code.items()}


def right_code(solution):
    """{module: code of the solution, where that has functions of the module}."""
    names = {node.name for node in ast.parse(solution.code).body if isinstance(node, ast.FunctionDef)}
    return {file.removesuffix(".py"): solution.code
            for file, ours in PROBLEMS[solution.problem - 1].functions.items() if names & set(ours.split())}


def put_in(code):
    """From now on functions are those of this code, wherever they were imported. code: {module: its text}."""
    for name, text in code.items():
        module = sys.modules[name]
        before = dict(vars(module))
        exec(compile(text, f"{name} of a solution", "exec"), vars(module))
        changed = [key for key, old in before.items() if vars(module)[key] is not old]
        for other in list(sys.modules.values()):
            for key in changed:
                if getattr(other, "__dict__", {}).get(key) is before[key]:
                    setattr(other, key, vars(module)[key])


# ------------------------------------------------------------------------------------------------
# Its tests, in a process of their own
# ------------------------------------------------------------------------------------------------


class Seed:
    """A plugin of pytest: other random numbers than usual, and the first failure."""

    def __init__(self, seed):
        self.seed, self.failure = seed, None

    def pytest_runtest_call(self, item):
        random.seed(self.seed)
        torch.manual_seed(self.seed)

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.failure:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message.split("\n")[0] if crash else "an error"
            self.failure = f"{report.nodeid.split('::')[-1]}: {why}"


def too_long(*_):
    raise TimeoutError("too long")


def examine(task, limit=600):
    """In a process that is good for nothing else afterwards. task: (number, problem, {module: code}, seeds).
    Returns (number, the first failure or None)."""
    number, problem, code, seeds = task
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    put_in(code)
    for seed in seeds:
        plugin = Seed(1000 * seed)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = pytest.main(["-qx", "-p", "no:cacheprovider", *PROBLEMS[problem - 1].nodes()],
                               plugins=[plugin])
        if code:
            return number, f"{plugin.failure or f'pytest ends with {code!r}'} (seed {seed})"
    return number, None


def examined(tasks, jobs):
    """Results of examine, as they come, each of a process of its own that has everything imported."""
    files = {file.removesuffix(".py") for problem in PROBLEMS for file in problem.functions}
    for slow in ("matplotlib.pyplot", "torch._dynamo", *sorted(files)):
        importlib.import_module(slow)
    torch.set_num_threads(1)
    gc.freeze()
    os.chdir(ROOT)
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(examine, tasks)


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def main(argv=None):
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = range(1, len(PROBLEMS) + 1)
    parser.add_argument("--problem", type=int, choices=numbers, metavar="N", help="one problem only")
    parser.add_argument("--only", choices=("wrong", "right"), help="not the others")
    parser.add_argument("--seeds", type=int, default=5, help="for the right ones (default: 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--verbose", action="store_true", help="say of all wrong ones which test has failed")
    args = parser.parse_args(argv)
    asked = [args.problem] if args.problem else numbers
    wrong = [s for s in WRONG if s.problem in asked and args.only != "right"]
    right = [s for s in RIGHT if s.problem in asked and args.only != "wrong"]
    tasks = [(n, s.problem, wrong_code(s), [0]) for n, s in enumerate(wrong)]
    tasks += [(n, s.problem, right_code(s), range(args.seeds)) for n, s in enumerate(right, len(wrong))]
    bad, began = 0, time.time()
    for n, failure in examined(tasks, args.jobs):
        s, is_wrong = (wrong + right)[n], n < len(wrong)
        unjust = bool(failure) != is_wrong
        bad += unjust
        if unjust or args.verbose:
            verdict = f"fails {failure}" if failure else "PASSES"
            print(f"problem {s.problem}, {'wrong' if is_wrong else 'right'}: {s.what}  {verdict}", flush=True)
    print(f"{len(wrong)} wrong and {len(right)} right solutions ({args.seeds} seeds), {bad} of them not "
          f"judged as they deserve; {time.time() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
