"""From tests to points: a submission, many of them, and the results in files that other programs read."""
import csv
import functools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from grader.examine import run
from grader.language import LONGEST, Refused, alone
from grader.problems import FILES, PROBLEMS, ROOT, Mistake, Test
from grader.sources import version
from grader.variant import CASES, cases_of, hidden_test


def points_of(problem, tests, said):
    """The points for a problem. tests: what grades it; said: {node: None where it passed, else why not}.
    Nothing where a test of the core fails, else the share that passes, by weight."""
    if any(test.core and said[test.node] is not None for test in tests):
        return 0.0
    passed = sum(test.weight for test in tests if said[test.node] is None)
    return round(problem.points * passed / sum(test.weight for test in tests), 2)


@functools.cache
def seed_of(number, seed, limit):
    """The seed with which a problem is graded in a variant: the first of a row that begins with `seed` under
    which our own solution passes, for not every seed gives the answers that some tests need; 0 where none
    does."""
    nodes = PROBLEMS[number - 1].nodes()
    tries = range(1000 * seed, 1000 * seed + 8) if seed else ()
    return next((s for s in tries if not any(run(nodes, {}, limit, s).values())), 0)


def grade_one(number, texts, limit, seed=0, first_wall=True, walls=None):
    """Grade one problem. texts: the student's files {file: text, or None where it is missing}; seed: of the
    variant, 0 for the tests as they are; walls: those behind the first, by default all that stand. Returns a
    row of the result."""
    problem = PROBLEMS[number - 1]
    tests, changed = problem.graded(), {}
    if seed and number in CASES:
        tests = [*tests, Test(hidden_test(number), True, 1)]
        changed |= cases_of(number, seed)
    try:
        for file in problem.functions:
            if texts.get(file) is None:
                raise Refused("is missing")
            changed[file] = alone(file, texts[file], number, first_wall)
        nodes = [test.node for test in tests]
        said = run(nodes, changed, limit, seed_of(number, seed, limit), walls)
    except Refused as error:
        said = {test.node: f"{file} {error}" for test in tests}
    return {"problem": number, "title": problem.title, "points": points_of(problem, tests, said),
            "of": problem.points, "core": [test.node for test in tests if test.core], "tests": said}


def read_student(out):
    """The student's files: {file: text, or None where there is none that can be read}. Raises Mistake where
    `out` is no student's repository."""
    if out.resolve() == ROOT:
        raise Mistake(f"{out} is this repository, with our solutions: name the folder of a student's")
    if not any((out / file).is_file() for file in FILES):
        raise Mistake(f"{out}: none of {', '.join(FILES)} is there; expected a folder that "
                      "tests/assignment.py has written")
    texts = dict.fromkeys(FILES)
    for file in FILES:
        if (out / file).is_file() and not (out / file).is_symlink():
            with open(out / file, "rb") as opened:
                raw = opened.read(4 * LONGEST + 1)
            texts[file] = raw.decode("utf-8-sig", "replace")
    return texts


class Grader:
    """How all submissions of a call are graded."""

    def __init__(self, numbers, limit=120.0, seed=0, jobs=None):
        self.numbers, self.limit, self.seed = numbers, limit, seed
        self.jobs = jobs or os.cpu_count() or 1

    def rows(self, texts):
        """The rows of a submission, as they are ready, in order."""
        with ThreadPoolExecutor(self.jobs) as pool:
            yield from pool.map(lambda n: grade_one(n, texts, self.limit, self.seed), self.numbers)

    def result(self, rows):
        """The result of a submission from its rows."""
        return {"points": round(sum(row["points"] for row in rows), 2), "of": sum(row["of"] for row in rows),
                "grader": version(), "variant": self.seed, "problems": rows}


def in_words(row):
    """A row of the result as a line: points, tests passed, the first failure, of the core before others."""
    failed = [(node, why) for node, why in row["tests"].items() if why is not None]
    failed.sort(key=lambda x: x[0] not in row["core"])  # stable
    n = len(row["tests"])
    line = (f"{row['problem']:>2}. {row['title']:<36}{row['points']:>6g} of {row['of']:>2}   "
            f"{n - len(failed)} of {n} tests")
    if failed:
        node, why = failed[0]
        kind = "core " if node in row["core"] else ""
        line += f"; {kind}{node.split('::')[1]}: {''.join(filter(str.isprintable, why))[:200]}"
    return line


def grade(out, grader, as_json=False):
    """Grade the student's repository and print the result, or print it as JSON. Returns it."""
    rows = []
    for row in grader.rows(read_student(out)):
        rows.append(row)
        if not as_json:
            print(in_words(row), flush=True)
    result = grader.result(rows)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{'total':<40}{result['points']:>6g} of {result['of']}   grader {result['grader']}")
    return result


def gradescope(result):
    """The result as Gradescope's results.json wants it."""
    tests = [{"name": f"{row['problem']}. {row['title']}", "score": row["points"], "max_score": row["of"],
              "output": in_words(row)} for row in result["problems"]]
    return {"score": result["points"], "output": f"grader {result['grader']}", "tests": tests}


def write_json(file, thing):
    with open(file, "w", encoding="utf-8") as opened:
        json.dump(thing, opened, indent=1)


def submissions_in(folder):
    """The folders in a folder, by name."""
    if not folder.is_dir():
        raise Mistake(f"{folder}: expected a folder that holds a folder for each submission")
    found = sorted(path for path in folder.iterdir()
                   if path.is_dir() and not path.is_symlink() and not path.name.startswith("."))
    if not found:
        raise Mistake(f"{folder}: there is no submission in it, expected a folder for each")
    return found


def grade_all(folder, grader):
    """Grade every submission in a folder; grades.csv and grades.json in it hold the results. One that is no
    student's repository has no points and says why."""
    results = {}
    for out in submissions_in(folder):
        try:
            result = grader.result(list(grader.rows(read_student(out))))
            print(f"{out.name:<40}{result['points']:>6g} of {result['of']}", flush=True)
        except Mistake as error:
            result = {**grader.result([]), "error": str(error)}
            print(f"{out.name}: {error}", file=sys.stderr, flush=True)
        results[out.name] = result
    write_json(folder / "grades.json", results)
    with open(folder / "grades.csv", "w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        problems = [f"problem {n}" for n in grader.numbers]
        table.writerow(["submission", "points", "of", *problems, "grader", "variant", "error"])
        for name, result in results.items():
            points = [row["points"] for row in result["problems"]] or [0] * len(problems)
            of = sum(PROBLEMS[n - 1].points for n in grader.numbers)
            table.writerow([plain(name), result["points"], of, *points, result["grader"], result["variant"],
                            result.get("error", "")])
    return results


def plain(name):
    """A name that no spreadsheet takes for a formula."""
    return "'" + name if name[:1] in "=+-@\t\r" else name
