"""The grader, attacked. Each attack is handed in twice: as a student would, and as if the check of what it
says and the hook in Python were not there, so that the namespaces alone must hold it."""
import contextlib
import hashlib
import os
import secrets
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from grader.attack_table import ATTACKS
from grader.examine import standing
from grader.language import attributes
from grader.points import grade_one
from grader.problems import ROOT
from grader.sources import functions_of, source, span

LIMIT = 12.0  # seconds for an attack
FILE, NUMBER, OTHER = "train_ppo.py", 8, 4  # what is attacked, and a problem that the submission has solved
MARK = "torch.rsqrt(variance"  # stands in our solution


class Outcome(NamedTuple):
    points: float  # that the attack has earned
    others: bool  # whether the other problem kept its points
    harm: str  # what changed or leaked, or ""
    late: bool  # whether the deadline ended it


class Target:
    """What an attack may aim at: a folder with a secret, an open port, a variable of the environment, this
    repository."""

    def __init__(self, folder, port):
        self.folder, self.port, self.secret = Path(folder), port, f"secret{secrets.token_hex(8)}"
        (self.folder / "secret").write_text(self.secret)
        self.before = self.state()

    def state(self):
        """What is there, in a form that changes when anything does."""
        found = [(p.name, p.lstat().st_mode, p.lstat().st_nlink, p.read_bytes() if p.is_file() else b"")
                 for p in sorted(self.folder.rglob("*"))]
        ours = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(ROOT.glob("*.py"))]
        return self.folder.stat().st_mode, found, ours

    def harm(self, server, said, seconds):
        """What an attack has done, or ""."""
        text = " ".join(said)
        found = [(self.state() != self.before, "files changed"), (self.secret in text, "the secret leaked"),
                 (MARK in text, "our solution leaked"), (called(server), "it reached the network"),
                 (seconds > LIMIT + 10, f"it took {seconds:.0f} s")]
        return ", ".join(words for is_so, words in found if is_so)


def called(server):
    """Whether somebody has connected."""
    with contextlib.suppress(TimeoutError):
        server.accept()[0].close()
        return True
    return False


def solution(file, name):
    """Our solution of a function."""
    first, last = span(functions_of(source(file))[name])
    return "\n".join(source(file).split("\n")[first - 1 : last])


def outcome(attack, first_wall=True):
    """Hand in an attack together with a right solution of another problem."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)  # nothing but the walls protects it
        server.settimeout(0.01)
        target = Target(folder, server.getsockname()[1])
        os.chmod(target.folder / "secret", 0o666)
        target.before = target.state()
        texts = {FILE: attack.text(folder, ROOT, target.port),
                 "train_rm.py": solution("train_rm.py", "bradley_terry_loss")}
        began = time.time()
        walls = None if first_wall else ("namespaces",)
        row = grade_one(NUMBER, texts, LIMIT, first_wall=first_wall, walls=walls)
        said = list(filter(None, row["tests"].values()))
        harm = target.harm(server, said, time.time() - began)
        other = grade_one(OTHER, texts, 60.0) if not first_wall else None
    late = any(why.startswith("not done after") for why in said)
    return Outcome(row["points"], other is None or other["points"] == other["of"], harm, late)


def attack_all():
    """Print what all attacks come to. Returns whether none of them harms or earns anything."""
    attributes()  # torch is imported before time is measured
    began, good = time.time(), True
    walls = [True, False] if "namespaces" in standing() else [True]
    for first_wall in walls:
        where = "as handed in" if first_wall else "against the namespaces alone"
        with mock.patch.dict(os.environ, GRADER_SECRET="secret"), ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda a, up=first_wall: outcome(a, up), ATTACKS))
        for attack, came in zip(ATTACKS, outcomes, strict=True):
            if came.harm or not came.others or (came.points and first_wall):
                good = False
                print(f"{where}: {attack.kind}, {attack.name}: {came}")
        n, earned = len(ATTACKS), sum(came.points > 0 for came in outcomes)
        harm, others = sum(bool(came.harm) for came in outcomes), sum(not came.others for came in outcomes)
        late = sum(came.late for came in outcomes)
        print(f"{time.time() - began:4.0f} s  {where}: of {n} attacks {harm} changed or leaked something, "
              f"{earned} earned points, {others} cost another problem its points; the deadline ended {late}",
              flush=True)
    if len(walls) == 1:
        print("no namespaces here: nothing would hold an attack without the check, so that none is tried")
    return good
