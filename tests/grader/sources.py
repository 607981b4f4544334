"""Our files with and without solutions, and which of them a student gets."""
import ast
import fnmatch
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from grader.problems import ALL, PROBLEMS, ROOT, Mistake, problems_of

OURS = (  # what students do not get
    "tests/assignment.py", "tests/test_assignment.py", "tests/grader/*", "tests/test_grader*.py",
    "tests/lessons.py", "tests/test_lessons.py", "tests/*solutions*.py",
    "tests/mutants.py", "tests/test_mutants.py", "docs/bugs.png",  # the bugs that they are to find
    "tests/*benchmark*.py", "tests/peers.py",
    "tests/test_layout.py", "tests/test_docs.py",  # house rules, which say nothing about a student's code
    "docs/*teaching*.md", ".ci/*", ".github/*",
    "docs/alternatives.py", "tests/test_alternatives.py", "docs/*6-alternatives.md",  # solve 9 in passing
)


@functools.cache
def source(file):
    """Text of one of our files. Raises Mistake where it is gone."""
    if not (ROOT / file).is_file():
        raise Mistake(f"the table of problems in tests/grader names {file}, which does not exist")
    return (ROOT / file).read_bytes().decode("utf-8")


@functools.cache
def functions_of(text):
    """The functions of a module: {name: node}."""
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def check():
    """Raises Mistake where the table of problems names a function or a test that is not there."""
    for number, problem in enumerate(PROBLEMS, 1):
        where = f"problem {number} of tests/grader/problems.py"
        for file, names in problem.functions.items():
            for name in names.split():
                node = functions_of(source(file)).get(name)
                if not node or not ast.get_docstring(node) or len(node.body) < 2:
                    raise Mistake(f"{where}: {file} has no function {name} with a docstring and a body")
        for file, test in (node.split("::") for node in problem.nodes()):
            if test not in functions_of(source(file)):
                raise Mistake(f"{where}: {file} has no {test}")


def put(text, pieces):
    """Text with some lines replaced. pieces: {(first, last): new lines}, from 1, both included."""
    lines = text.split("\n")
    for (first, last), new in sorted(pieces.items(), reverse=True):
        lines[first - 1 : last] = new.split("\n")
    return "\n".join(lines)


def span(node):
    """First and last line of a function, decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno


def blanked(file, solved=()):
    """Our file as the student gets it, except that the problems of these numbers are solved."""
    text, pieces = source(file), {}
    nodes = functions_of(text)
    for name, number in problems_of(file).items():
        if number not in solved:
            body = nodes[name].body[0].end_lineno + 1, nodes[name].end_lineno
            title = PROBLEMS[number - 1].title
            pieces[body] = f'    raise NotImplementedError("problem {number}: {title}")'
    return put(text, pieces)


@functools.cache
def repository():
    """The files of this repository, relative to it: those that git tracks or, where there is no .git, would
    track."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = git("ls-files", "-z").split("\0")
        return sorted(name for name in listed if name and (ROOT / name).is_file())
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split("\n")
    ignored = [".git", *(line.strip().rstrip("/") for line in lines if line.strip())]
    found = []

    def keep(names):
        return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]

    for folder, folders, files in os.walk(ROOT):
        folders[:] = keep(folders)
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in keep(files)]
    return sorted(found)


def git(*words):
    """What git says about this repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
                          check=True).stdout


@functools.cache
def version():
    """Which grader this is: the commit where there is one, and a hash of all files that decide about points.
    Equal hashes are equal graders."""
    files = [name for name in for_students() if name.endswith((".py", ".toml"))]
    files += [name for name in repository() if name.startswith("tests/grader/")]
    lines = [f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}" for name in files]
    sources = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    known = (ROOT / ".git").exists() and shutil.which("git")
    commit = f"{git('rev-parse', '--short', 'HEAD').strip()}, " if known else ""
    return f"{commit}sources {sources}"


def for_students():
    """The files of this repository that a student gets."""
    return [name for name in repository() if not any(fnmatch.fnmatch(name, ours) for ours in OURS)]


def write_to(folder, names, changed):
    """Copy files of this repository into a folder, with other texts for some: {file: text}."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = changed[name].encode("utf-8") if name in changed else (ROOT / name).read_bytes()
        (folder / name).write_bytes(text)


def numbers_in(text, flag="--problems"):
    """"1-3,7" -> [1, 2, 3, 7]. Raises Mistake."""
    found = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise Mistake(f"{flag} {text}: expected numbers as in 1-5,7")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or not found <= set(ALL):
        raise Mistake(f"{flag} {text}: there are problems 1 to {len(PROBLEMS)}")
    return sorted(found)
