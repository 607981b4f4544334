"""Tests in a process behind the walls. What comes back is lines of JSON through a socket: read as bytes, up
to a size and a deadline, checked, never unpickled.

Every line carries a word that only this run knows, and behind the graded tests run three that must fail:
where one of them passes or is not heard of, somebody has laid hands on the tests, and none of them counts."""
import ast
import functools
import gc
import json
import multiprocessing
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from grader.problems import FILES, ROOT, Mistake
from grader.sources import for_students, write_to
from grader.wall import behind_namespaces, guard, set_limits

MOST = 1 << 20  # bytes that may come back
LONGEST = 500  # characters of a reason
CANARY = "tests/test_that_must_fail.py"
CANARIES = '''import torch


def test_numbers():
    assert 2 + 2 == 5


def test_tensors():
    assert torch.allclose(torch.zeros(3), torch.ones(3))


def test_an_error():
    raise ValueError


def test_truth():
    assert True
'''
MUST_FAIL = [f"{CANARY}::test_{name}" for name in ("numbers", "tensors", "an_error")]
MUST_PASS = f"{CANARY}::test_truth"


class Job(NamedTuple):
    room: str  # an empty folder
    files: list  # of ours, for the copy
    changed: dict  # {file: text}, other texts and more files
    nodes: list
    word: str
    limit: float  # seconds
    seed: int
    walls: tuple  # of "namespaces" and "hook"


# ------------------------------------------------------------------------------------------------
# In the process
# ------------------------------------------------------------------------------------------------


def go_behind(job, said):
    """Make the copy, raise the walls but for the hook. Returns the copy and the folder for writing."""
    def fill(folder):
        write_to(folder, job.files + [name for name in job.changed if name not in job.files], job.changed)

    if "namespaces" in job.walls:
        behind_namespaces(job.room, fill, job.limit + 2)
        os.closerange(3, said.fileno())
        os.closerange(said.fileno() + 1, 4096)
        work, room = "/work", "/room"
    else:
        work, room = f"{job.room}/work", f"{job.room}/tmp"
        os.mkdir(room)
        fill(Path(work))
        set_limits(job.limit)
    os.chdir(work)
    os.environ.clear()
    os.environ.update(PATH=os.defpath, TMPDIR=room, HOME=room, MPLCONFIGDIR=room, MPLBACKEND="Agg",
                      OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", TEST_SEED=str(job.seed))
    tempfile.tempdir, sys.dont_write_bytecode = room, True
    return work, room


def short(value):
    """A value in a few words."""
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 90 else text[:87] + "..."


def values_in(statement, known):
    """The names in a statement with their values, as far as they are data: ["a = 1", ...]."""
    try:
        names = dict.fromkeys(x.id for x in ast.walk(ast.parse(statement)) if isinstance(x, ast.Name))
    except SyntaxError:
        return []
    pairs = [(name, known.get(name)) for name in names]
    return [f"{name} = {short(x)}" for name, x in pairs if x is not None and not callable(x)]


def explained(excinfo, path):
    """Why a test failed, in a line: the line of the test, what it says or the values of the names in it; of
    an error that is none of an assertion's what it says and the student's line."""
    message = excinfo.exconly().split("\n")[0].removeprefix("AssertionError: ")[:160]
    tests = [entry for entry in excinfo.traceback if str(entry.path) == str(path)]
    theirs = [entry for entry in excinfo.traceback if Path(entry.path).name in FILES]
    if not tests or not excinfo.errisinstance(AssertionError):
        return f"{message} (in: {str(theirs[-1].statement).strip()})" if theirs else message
    line = re.sub(r"\s+", " ", str(tests[0].statement)).strip()
    if not message.startswith(("assert", "AssertionError")):
        return f"{line[:120]}: {message}"
    last = str(tests[-1].statement).strip()
    return "; ".join([line, *values_in(last, tests[-1].locals)])


class Ears:
    """A plugin of pytest that tells a socket of every test that ends: [word, node, None where it passed or
    else why not]."""

    def __init__(self, said, word):
        self.said, self.word = said, word

    def tell(self, node, why):
        line = json.dumps([self.word, node, why and why[:LONGEST]])
        self.said.sendall(line.encode() + b"\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items):
        yield
        items.sort(key=lambda item: item.nodeid.startswith(CANARY))  # stable: these come last

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.failed and call.excinfo:
            report.words = explained(call.excinfo, item.path)
        return report

    def pytest_runtest_logreport(self, report):
        if report.failed or report.when == "call":
            why = None if report.passed else getattr(report, "words", report.outcome)
            self.tell(report.nodeid.split("[")[0], why)

    def pytest_collectreport(self, report):
        if report.failed:
            lines = [line[1:].strip() for line in report.longreprtext.split("\n") if line.startswith("E")]
            self.tell(report.nodeid, lines[-1] if lines else "cannot be imported")


def examine(job, said):
    """Run the tests of a job. In a process of its own, which is good for nothing else afterwards."""
    import torch  # noqa: F401  (before the walls stand)

    work, room = go_behind(job, said)
    sys.path = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests")]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    gc.freeze()  # pytest collects garbage when it ends, and torch has many objects
    if "hook" in job.walls:
        sys.addaudithook(guard(work, room))
    how = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--rootdir={work}",
           f"--basetemp={room}/tmp"]
    pytest.main([*how, *job.nodes], plugins=[Ears(said, job.word)])
    os._exit(0)


# ------------------------------------------------------------------------------------------------
# From outside
# ------------------------------------------------------------------------------------------------


@functools.cache
def processes():
    """How processes start. Importing torch takes longer than most tests: where the system can, they start
    with it imported. They get nothing of the environment that is not theirs."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if context.get_start_method() == "forkserver":
        slow = ["pytest", "tiktoken", "torch", "torch._dynamo", "matplotlib.pyplot", "sqlite3"]
        context.set_forkserver_preload(slow)
        kept = {x: os.environ[x] for x in ("PATH", "HOME", "LANG", "LC_ALL") if x in os.environ}
        with mock.patch.dict(os.environ, {**kept, "OMP_NUM_THREADS": "1"}, clear=True):
            forkserver.ensure_running()
    os.environ["OMP_NUM_THREADS"] = "1"
    return context


def heard(ears, limit):
    """What comes through a socket until it is closed: its lines. Ends after `limit` seconds and behind MOST
    bytes. Returns them, and whether the other side closed it."""
    said, end = b"", time.monotonic() + limit
    while len(said) < MOST and time.monotonic() < end:
        ears.settimeout(max(0.01, end - time.monotonic()))
        try:
            part = ears.recv(1 << 16)
        except TimeoutError:
            break
        except OSError:
            part = b""
        if not part:
            return said.split(b"\n"), True
        said += part
    return said.split(b"\n"), False


def message(line, word):
    """(node, why) of a line, or None where it is not one of ours."""
    try:
        told = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    good = isinstance(told, list) and len(told) == 3 and isinstance(told[1], str) and told[0] == word
    return (told[1], told[2]) if good and (told[2] is None or isinstance(told[2], str)) else None


def start(target, job):
    """Run target(job, socket) in a process. Returns the lines it sends, and whether it ended by itself."""
    ears, mouth = socket.socketpair()
    with ears:
        process = processes().Process(target=target, args=(job, mouth), daemon=True)
        process.start()
        mouth.close()
        lines, over = heard(ears, job.limit)
    if not over:
        process.terminate()  # who watches behind namespaces ends what it watches
    process.join(2)
    process.kill()
    process.join()
    return lines, over


def run(nodes, changed, limit, seed=0, walls=None):
    """Run tests of ours on our files, some of them changed ({file: text}), within `limit` seconds. Returns
    {node: None where it passed, else why not}."""
    with tempfile.TemporaryDirectory() as room:
        files = [name for name in for_students() if name.endswith((".py", ".toml"))]
        tests = [*nodes, *MUST_FAIL, MUST_PASS]
        job = Job(os.path.realpath(room), files, {**changed, CANARY: CANARIES}, tests, secrets.token_hex(16),
                  limit, seed, standing() if walls is None else walls)
        lines, over = start(examine, job)
    result, broken = {}, {}
    for node, why in filter(None, (message(line, job.word) for line in lines)):
        known = result if "::" in node else broken
        known[node] = known.get(node) or why  # of a test with several cases the first failure
    why = f"not done after {limit:g} s" if not over else "the process ended before this test did"
    said = {node: result.get(node, broken.get(node.split("::")[0], why)) for node in nodes}
    if any(result.get(node, "") is None for node in MUST_FAIL):
        return dict.fromkeys(nodes, "a test that must fail passed: somebody has changed what tests do")
    if result.get(MUST_PASS, "") is not None or not result.keys() >= set(MUST_FAIL):
        return {node: reason or why for node, reason in said.items()}
    return said


# ------------------------------------------------------------------------------------------------
# Which walls stand
# ------------------------------------------------------------------------------------------------


def attempts(outside, port):
    """What nothing behind a wall may be able to do: {name: what does it}."""
    def write():
        Path(outside).write_text("a submission was here")

    def read():
        (ROOT / "train_ppo.py").read_bytes()

    def talk():
        socket.create_connection(("127.0.0.1", port), 1).close()

    def begin():
        os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}), 0)

    return {"write outside": write, "read the solutions": read, "use the network": talk,
            "start a program": begin}


def canary(job, said):
    """Attempt all of it. Sends [word, what, None where it succeeded or else why not]."""
    tries = attempts(*job.nodes)
    try:
        work, room = go_behind(job, said)
    except OSError:  # there is no such wall here
        os._exit(1)
    if "hook" in job.walls:
        sys.addaudithook(guard(work, room))
    for name, attempt in tries.items():
        try:
            attempt()
            why = None
        except (OSError, RuntimeError) as error:
            why = str(error)
        said.sendall(json.dumps([job.word, name, why]).encode() + b"\n")
    os._exit(0)


def holds(walls):
    """Whether nothing gets through these walls."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        room = os.path.join(os.path.realpath(folder), "room")
        os.mkdir(room)
        names = os.path.join(folder, "outside"), server.getsockname()[1]
        job = Job(room, [], {"nothing.txt": ""}, names, secrets.token_hex(16), 20.0, 0, walls)
        told = dict(filter(None, (message(line, job.word) for line in start(canary, job)[0])))
        return len(told) == len(attempts(*names)) and None not in told.values()


@functools.cache
def standing():
    """The walls that stand on this system. Raises Mistake where not even the hook does."""
    if holds(("namespaces",)):
        return "namespaces", "hook"
    if holds(("hook",)):
        return ("hook",)
    raise Mistake("nothing here keeps a submission from writing outside of its copy: grade on another system")


def in_words(walls):
    if "namespaces" in walls:
        return "namespaces, no network, limits, and a hook behind them"
    return ("no namespaces here: only limits and a hook in Python stand behind the check of what a "
            "submission says, so grade on a machine that you can lose")
