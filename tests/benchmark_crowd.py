"""How long several trainings take at once, and one after the other: `python tests/benchmark.py crowd`. A
class that shares a computer does that, and so does everybody with two terminals."""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import ROOT

from data import UserError

TRAINING = (str(ROOT / "train_pretrain.py"), "--config", "tiny", "--steps", "100")
RUNS = 4


def together(commands, folder):
    """Run the commands at the same time, each as it is. Returns the seconds until the last has ended. Raises
    UserError where one of them fails."""
    began = time.perf_counter()
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    processes = [subprocess.Popen([sys.executable, *command], **quiet) for command in commands]
    codes = [process.wait() for process in processes]  # of all, before anything is said
    for command, code in zip(commands, codes, strict=True):
        if code:
            raise UserError(f"python {' '.join(command)} ended with {code}")
    return time.perf_counter() - began


def crowd(runs=RUNS, training=TRAINING):
    """Measures and prints. Returns what to keep as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        commands = [[*training, "--run", f"training{n}"] for n in range(2 * runs)]
        one_by_one = [together([command], Path(folder)) for command in commands[:runs]]
        at_once = together(commands[runs:], Path(folder))
    found = {"runs": runs, "one_by_one": one_by_one, "at_once": at_once, "ratio": at_once / sum(one_by_one)}
    print(f"python {' '.join([Path(training[0]).name, *training[1:]])}, {runs} times: "
          f"{sum(one_by_one):.1f} seconds one after the other, {at_once:.1f} at once, "
          f"{found['ratio']:.2f} times as long")
    return found
