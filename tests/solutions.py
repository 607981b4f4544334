"""Solutions of the assignments' problems, wrong ones and right ones: does each get what it deserves?

    python tests/solutions.py                      no wrong one may get full points, no right one may lose
                                                   some, with the tests as they are and in four variants
    python tests/solutions.py --problem 12         those of one problem only
    python tests/solutions.py --seeds 1 --jobs 1   the tests as they are, one process
    python tests/solutions.py --suite              students' repositories made of right ones: the whole suite
                                                   passes, and the tiny run ends

A wrong solution is ours with a plausible mistake: solutions_wrong.py and, of PPO's formulas and loop,
solutions_wrong_ppo.py and solutions_wrong_loop.py. A right one does the same in another style:
solutions_right.py and solutions_right_ppo.py. Each is handed in and graded like a student's (tests/grader).
The exit code is 1 where a wrong one has full points or a right one has less.
"""
import argparse
import ast
import functools
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grader.handout import write
from grader.points import grade_one
from grader.problems import ALL, FILES, PROBLEMS
from grader.sources import blanked, functions_of, source, span
from solutions_right import RIGHT as RIGHT_BEFORE_PPO
from solutions_right_ppo import RIGHT as RIGHT_IN_PPO
from solutions_wrong import WRONG as WRONG_BEFORE_PPO
from solutions_wrong_loop import IN_ROLLOUT, IN_THE_LOSS, IN_UPDATE
from solutions_wrong_ppo import WRONG as WRONG_FORMULAS

RIGHT = RIGHT_BEFORE_PPO + RIGHT_IN_PPO
WRONG = WRONG_BEFORE_PPO + WRONG_FORMULAS + IN_ROLLOUT + IN_THE_LOSS + IN_UPDATE
LIMIT = 120.0  # seconds for a problem

# ------------------------------------------------------------------------------------------------
# The text of a solution
# ------------------------------------------------------------------------------------------------


@functools.cache
def ours(problem):
    """The functions of a problem with their decorators: [(file, text)]."""
    found = []
    for file, names in PROBLEMS[problem - 1].functions.items():
        text = source(file)
        for name in names.split():
            first, last = span(functions_of(text)[name])
            found.append((file, "\n".join(text.split("\n")[first - 1 : last])))
    return found


def by_file(functions):
    """{file: text of its functions}."""
    return {file: "\n\n\n".join(text for other, text in functions if other == file) for file, _ in functions}


def wrong_texts(solution):
    """{file: the functions with the mistake in them}. Raises ValueError where a text to replace does not
    occur exactly once in the functions of the problem."""
    functions = ours(solution.problem)
    for right, wrong in solution.edits:
        count = sum(text.count(right) for _, text in functions)
        if count != 1:
            raise ValueError(f"problem {solution.problem}, {solution.what}: {right!r} is there {count} times")
        functions = [(file, text.replace(right, wrong)) for file, text in functions]
    return by_file(functions)


def right_texts(solution):
    """{file: the functions of the solution, ours where it has none}."""
    names = {node.name for node in ast.parse(solution.code).body if isinstance(node, ast.FunctionDef)}
    functions = [(file, text) for file, text in ours(solution.problem)
                 if ast.parse(text).body[0].name not in names]
    files = [file for file, asked in PROBLEMS[solution.problem - 1].functions.items()
             if names & set(asked.split())]
    return by_file([*functions, *((file, solution.code) for file in files)])


# ------------------------------------------------------------------------------------------------
# Its grade
# ------------------------------------------------------------------------------------------------


def first_loss(problem, texts, seeds):
    """The first test of the problem that this solution fails, with why and the seed, or None."""
    for seed in seeds:
        said = grade_one(problem, texts, LIMIT, seed)["tests"]
        failed = [f"{node.split('::')[1]}: {why} (seed {seed})" for node, why in said.items() if why]
        if failed:
            return failed[0]
    return None


def graded(wrong, right, seeds, jobs, verbose=False):
    """Grade solutions and print those that are not graded as they deserve. Returns how many these are."""
    tasks = [(s, wrong_texts(s), [0]) for s in wrong] + [(s, right_texts(s), range(seeds)) for s in right]
    bad, began = 0, time.time()
    with ThreadPoolExecutor(jobs) as pool:
        losses = pool.map(lambda task: first_loss(task[0].problem, *task[1:]), tasks)
        for n, (loss, (solution, _, _)) in enumerate(zip(losses, tasks, strict=True)):
            is_wrong = n < len(wrong)
            bad += bool(loss) != is_wrong
            if bool(loss) != is_wrong or verbose:
                kind, verdict = "wrong" if is_wrong else "right", f"fails {loss}" if loss else "FULL POINTS"
                print(f"problem {solution.problem}, {kind}: {solution.what}  {verdict}", flush=True)
    print(f"{len(wrong)} wrong and {len(right)} right solutions ({seeds} seeds), {bad} of them not graded as "
          f"they deserve; {time.time() - began:.0f} s", flush=True)
    return bad


# ------------------------------------------------------------------------------------------------
# Students' repositories that are all solved
# ------------------------------------------------------------------------------------------------


def students():
    """Lists of right solutions, one of each problem, so that each is in one of them."""
    by_problem = [[s for s in RIGHT if s.problem == number] for number in ALL]
    for n in range(max(map(len, by_problem))):
        yield [some[n % len(some)] for some in by_problem]


def hand_in(folder, solutions):
    """Write a student's repository with these solutions, one of each problem."""
    write(folder)
    for file in FILES:
        text, main, end = blanked(file).partition('if __name__ == "__main__":')
        codes = [right_texts(s)[file] for s in solutions if file in PROBLEMS[s.problem - 1].functions]
        (folder / file).write_text("\n\n\n".join([text, *codes, main + end]), encoding="utf-8")


def whole(solutions):
    """What is not as the handout promises for a repository with these solutions, as text, or None."""
    for command in (["-m", "pytest", "-q"], ["train_ppo.py", "--config", "tiny"]):
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room, "student")
            hand_in(folder, solutions)
            done = subprocess.run([sys.executable, *command], cwd=folder, text=True, capture_output=True)
            if done.returncode:
                return "\n".join([" ".join(command), *(done.stdout + done.stderr).split("\n")[-30:]])
    return None


def all_work():
    """Whether the suite passes and the tiny run ends for all students; prints which do not."""
    good, began = True, time.time()
    for n, solutions in enumerate(students(), 1):
        wrong, names = whole(solutions), "; ".join(s.what for s in solutions)
        good = good and not wrong
        print(f"student {n} ({names}): {wrong or 'the suite passes and the tiny run ends'}; "
              f"{time.time() - began:.0f} s", flush=True)
    return good


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def main(argv=None):
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=int, choices=ALL, metavar="N", help="one problem only")
    parser.add_argument("--only", choices=("wrong", "right"), help="not the others")
    parser.add_argument("--seeds", type=int, default=5, help="for the right ones (default: 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--verbose", action="store_true", help="say of all wrong ones which test has failed")
    parser.add_argument("--suite", action="store_true", help="whole repositories instead of single problems")
    args = parser.parse_args(argv)
    if args.suite:
        return int(not all_work())
    asked = [args.problem] if args.problem else ALL
    wrong = [s for s in WRONG if s.problem in asked and args.only != "right"]
    right = [s for s in RIGHT if s.problem in asked and args.only != "wrong"]
    return int(graded(wrong, right, args.seeds, args.jobs, args.verbose) > 0)


if __name__ == "__main__":
    sys.exit(main())
