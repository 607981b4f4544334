"""Kill every script again and again, start it again each time, and see that nothing is lost.

    python tests/kill.py                            20 kills of each script, 8 to 20 minutes
    python tests/kill.py --kills 100 --seed 1 --only train_ppo

A straight run of a script is the truth. Then, in a copy of the folder as it was before: the same command is
killed (SIGKILL, SIGTERM, SIGINT in turn), started again, maybe killed again, until it ends well. Now every
file must be what it is in the straight run: weights, optimizer, random numbers, metrics, rankings, samples,
tokenizer, data. A kill comes at a random time of the command's life, or in the middle of a file: where half
of a write has reached the disk, at a flush, before or after a renaming. Linux and macOS.
"""
import argparse
import builtins
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial, partialmethod
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  (what every command needs is imported once, before it starts)
import torch
from pipeline import SMALL, fewer_prompts

from lab import data_folder
from lab.cli import run_main
from lab.run import Stage
from world.tiny import write_world

STAGES = {"train_pretrain": "pretrain", "train_sft": "sft", "preferences": "rankings", "train_rm": "rm",
          "train_ppo": "ppo", "rejection_sampling": "rs.2"}
MAINS = {script: importlib.import_module(script).main for script in STAGES}
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
KILLED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 130}  # exit codes

# ------------------------------------------------------------------------------------------------
# A command that is killed
# ------------------------------------------------------------------------------------------------


def watch_files(moment):
    """From now on moment(kind) is called in the middle of everything that this process does to files."""
    replace, fsync, open_file = os.replace, os.fsync, io.open

    def replace_between(source, target):
        moment("rename")
        replace(source, target)
        moment("rename")

    def fsync_before(file):
        moment("flush")
        fsync(file)

    def open_and_watch(*args, **more):
        file = open_file(*args, **more)
        write = file.write

        def write_in_halves(content):
            middle = len(content) // 2
            write(content[:middle])
            file.flush()
            moment("write")
            return middle + write(content[middle:])

        if file.writable():
            file.write = write_in_halves
        return file

    os.replace, os.fsync = replace_between, fsync_before
    io.open = builtins.open = open_and_watch


def live(folder, words, log, kill, save_seconds):
    """What the process of a command does, to its end. kill: (kind of moment, its number, signal) or None.
    What it prints goes to the file `log`, and {kind: number of moments} behind it."""
    seen = Counter()

    def moment(kind):
        seen[kind] += 1
        if kill and (kind, seen[kind]) == kill[:2]:
            os.kill(os.getpid(), kill[2])

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    os.chdir(folder)
    for number, file in enumerate((os.devnull, log, log)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.argv = words
    Stage.steps = partialmethod(Stage.steps, save_seconds=save_seconds)
    data_folder.write_world = partial(write_world, n_documents=2000, n_demonstrations=500)  # a small world
    watch_files(moment)
    code = 1
    try:
        run_main(MAINS[words[0].removesuffix(".py")])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else print(end.code) or 1
    except BaseException:
        traceback.print_exc()
    print(json.dumps(seen), flush=True)
    os._exit(code)


def start(folder, line, kill=None, save_seconds=0.0):
    """A command in that folder. kill: as above; of the kind "time" the number is one of seconds. Returns
    (exit code, or minus the signal that ended it; what it printed)."""
    log = folder.with_suffix(".log")
    log.write_text("")
    pid = os.fork()
    if pid == 0:
        live(folder, line.split(), log, kill, save_seconds)
    if kill and kill[0] == "time":
        time.sleep(kill[1])
        os.kill(pid, kill[2])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), log.read_text()


# ------------------------------------------------------------------------------------------------
# What it ends with
# ------------------------------------------------------------------------------------------------


def content(path):
    """Of a file, in a form that can be compared; of a picture only that it is there."""
    if path.suffix == ".pt":
        return dict(flat(torch.load(path, weights_only=True)))
    return path.suffix == ".png" or path.read_bytes()


def flat(value, name=""):
    """(name, value) of all that lies in a nested value; of a tensor its bytes."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [pair for key, part in items for pair in flat(part, f"{name}.{key}")]
    return [(name, value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value))]


def differences(folder, truth):
    """Names of the files that differ. (An empty .lock may stay behind.)"""
    here, there = ({p.relative_to(f): p for p in f.rglob("*") if p.is_file() and p.suffix != ".lock"}
                   for f in (folder, truth))
    both = here.keys() & there.keys()
    return sorted(map(str, {name for name in both if content(here[name]) != content(there[name])}
                      | (here.keys() ^ there.keys())))


def progress(run, stage):
    """How far a stage has come: steps that are saved, or rankings on the disk."""
    model, rankings = run / f"{stage}.pt", run / f"{stage}.jsonl"
    if model.exists():
        return torch.load(model, weights_only=True)["step"]
    return rankings.read_bytes().count(b"\n") if rankings.exists() and stage == "rankings" else 0


# ------------------------------------------------------------------------------------------------
# Again and again
# ------------------------------------------------------------------------------------------------


def any_moment(rng, seen, seconds, sig):
    """A kill: at a time, or in one of the moments of files, all kinds equally often."""
    kind = rng.choice(["time", *seen])
    return kind, rng.uniform(0.01, seconds) if kind == "time" else rng.randint(1, seen[kind]), sig


def torture(script, before, truth, seen, seconds, kills, rng):
    """Kill a script `kills` times. before, truth: folders before and after its straight run, in which it saw
    {kind: number} moments in so many seconds. Returns how often it went wrong."""
    line, work, done = SMALL[STAGES[script]], before.with_name("work"), Counter()
    wrong = lost = 0
    while done.total() < kills:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before, work)
        code, told = None, []
        while code != 0:
            name, kill, often = list(SIGNALS)[done.total() % 3], None, 0.0
            if done.total() < kills and (code is None or rng.random() < 0.4):
                kill = any_moment(rng, seen, seconds, SIGNALS[name])
                if kill[0] == "time":
                    often = rng.choice([0.0, 0.1, 60.0])  # seconds between two saves
            far = progress(work / "runs/tiny", STAGES[script])
            code, said = start(work, line, kill, often)
            told.append((kill, code))
            done[name] += code in KILLED
            if "Traceback" in said or code not in KILLED | {0}:
                told.append(said)
                break
            if progress(work / "runs/tiny", STAGES[script]) < far:
                lost += 1
                print(f"{script}: {far} steps or rankings were there before {told}")
        print(f"{script}: {done.total()} kills so far", end="\r", file=sys.stderr, flush=True)
        differ = differences(work, truth)
        if differ or code != 0:
            wrong += 1
            print(f"{script}: {differ or 'it does not go on'} after {told}")
    counts = ", ".join(f"{n} {name}" for name, n in done.items())
    print(f"{script}.py  {done.total()} kills ({counts}), {wrong} differences, {lost} lost", flush=True)
    return wrong + lost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=STAGES)
    flags = parser.parse_args()
    wrong, total, begun = 0, 0, time.time()
    with tempfile.TemporaryDirectory() as folder:
        before, truth = Path(folder).resolve() / "before", Path(folder).resolve() / "truth"
        before.mkdir()
        for script, stage in STAGES.items():
            shutil.rmtree(truth, ignore_errors=True)
            shutil.copytree(before, truth)
            clock = time.time()
            code, said = start(truth, SMALL[stage])
            if code:
                sys.exit(f"{script}: the straight run ends with {code}\n{said}")
            seconds, seen = time.time() - clock, json.loads(said.splitlines()[-1])
            if flags.only in (None, script):
                rng = random.Random(f"{flags.seed} {script}")
                wrong += torture(script, before, truth, seen, seconds, flags.kills, rng)
                total += flags.kills
            shutil.rmtree(before)
            shutil.move(truth, before)
            if stage == "pretrain":
                fewer_prompts(before, 40)
    print(f"{total} kills in {time.time() - begun:.0f} s: {wrong} times something was different or lost")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
