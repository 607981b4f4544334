"""What an experiment prints and draws is kept: runs/experiments/NAME.json, one record an experiment.

A record has "experiment", "command", "code" (the commit at its start, with a + where a .py file differs from
it; "" without git), "machine", "threads", "seconds" (null where it went on after a stop), "date", "tables"
([{"head", "rows"}], cells as printed), "outputs" (what other commands printed, for pages to quote), "text"
(all the rest), "pictures". It is written whole, at the end.
"""
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from lab.records import write_atomic
from lab.report import shown, table
from lab.terminal import wrapped

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("runs") / "experiments"
WIDTH = 100  # of what is printed, for pages quote it
KEPT = {"tables": [], "outputs": [], "text": [], "pictures": []}  # of the experiment that is running


# ------------------------------------------------------------------------------------------------
# For an experiment
# ------------------------------------------------------------------------------------------------


def say(text, indent=""):
    """Print sentences, and keep them."""
    KEPT["text"].append(text)
    print(wrapped(text, indent), flush=True)


def show(head, rows):
    """Print a table, and keep it. head: texts; rows: lists of text, number or None."""
    blank = "\n" if KEPT["tables"] else ""
    KEPT["tables"].append({"head": head, "rows": [[shown(x) for x in row] for row in rows]})
    print(blank + table(head, rows), flush=True)


def quote(text):
    """Print what another command printed, and keep it for pages that quote it."""
    KEPT["outputs"].append(text)
    print(f"\n{text}\n", flush=True)


def picture(args, name):
    """Path of a picture that is about to be drawn."""
    path = args.out / name
    KEPT["pictures"].append(name)
    print(path)
    return path


# ------------------------------------------------------------------------------------------------
# Its record
# ------------------------------------------------------------------------------------------------


def load(name):
    """The record of an experiment, or None where it is not finished."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def keep(experiment, args, command):
    """Run an experiment and write its record."""
    name = experiment.__name__
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = FOLDER / f"{name}.started"
    in_one_go, began = not started.exists(), time.time()
    started.touch()
    record = {"experiment": name, "command": command, "code": code(), "machine": cpu(),
              "threads": torch.get_num_threads()}
    experiment(args)
    seconds = round(time.time() - began) if in_one_go else None
    record |= {"seconds": seconds, "date": time.strftime("%Y-%m-%d")}
    record |= KEPT | {"text": "\n".join(KEPT["text"])}
    write_atomic(FOLDER / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    started.unlink()


def code():
    """The commit that is checked out, with a + where a .py file differs from it; "" without git."""
    try:
        commit, changed = (subprocess.check_output(["git", *words.split()], cwd=ROOT, text=True,
                                                   stderr=subprocess.DEVNULL).strip()
                           for words in ("rev-parse --short HEAD", "status --porcelain -- *.py"))
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}+" if changed else commit


def cpu():
    """The processor's name, as far as the system tells it."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), flags=re.M) if file.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------------
# All of them
# ------------------------------------------------------------------------------------------------


def in_words(seconds):
    """Example: 546 -> "9 minutes 6 seconds"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "hour"), (minutes, "minute"), (rest if not hours else 0, "second"))
    return " ".join(f"{n} {unit}" if n == 1 else f"{n} {unit}s" for n, unit in parts if n) or "0 seconds"


def takes(name, guess):
    """How long an experiment takes: what its record says, or else the guess."""
    record = load(name)
    if not record or record["seconds"] is None:
        return guess
    seeds = re.search(r"--seeds (\d+)", record["command"])
    return in_words(record["seconds"]) + (f" for {seeds[1]} seeds" if seeds else "")


def seconds_of(guess, seeds):
    """Example: "20 to 45 minutes a seed", 2 -> 3900. A guess in seconds counts as nothing."""
    if "minute" not in guess:
        return 0
    numbers = [int(n) for n in re.findall(r"\d+", guess)[:2]]
    return 60 * sum(numbers) / len(numbers) * (seeds if "a seed" in guess else 1)


def words_of(name, guess, seeds):
    """The words behind `python docs/experiments.py` that make an experiment."""
    return [name, "--seeds", str(seeds)] if "a seed" in guess else [name]


def run_all(guesses, seeds, script):
    """Every experiment in its order, each as its own process; one whose record is there is passed over.

    guesses: {name: how long it takes, in words}. Exits with 1 where one has failed; the others are made."""
    wanted = {name: words_of(name, guess, seeds) for name, guess in guesses.items()}
    todo = [name for name, words in wanted.items() if not finished(name, words)]
    length = in_words(sum(seconds_of(guesses[name], seeds) for name in todo))
    print(wrapped(f"To be made: {', '.join(todo) or 'nothing'}; about {length} on two cores, less where "
                  "stages are finished."), flush=True)
    failed = []
    for name, words in wanted.items():
        if name not in todo:
            record = load(name)
            print(f"{name}: finished on {record['date']}, code {record['code'] or 'unknown'}", flush=True)
            continue
        print(f"\n{name}", flush=True)
        began = time.time()
        done = subprocess.run([sys.executable, script, *words], env={**os.environ, "COLUMNS": str(WIDTH)})
        how = f"failed with exit code {done.returncode} after" if done.returncode else "took"
        print(f"{name} {how} {in_words(time.time() - began)}", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"\nFailed: {', '.join(failed)}. The same command tries them again.")
        sys.exit(1)


def finished(name, words):
    """Whether the record of an experiment is there, made by the same command."""
    record = load(name)
    return record is not None and record["command"] == command(words)


def command(words):
    return "python docs/experiments.py " + shlex.join(words)


def overview(names):
    """One table about all records: which command made each, how long it took, with which code, on what."""
    found = [record for record in map(load, names) if record]
    rows = [[record["experiment"], f"`{record['command']}`",
             in_words(record["seconds"]) if record["seconds"] is not None else "-", record["date"],
             record["code"] or "-", str(record["threads"]), record["machine"]] for record in found]
    head = ["experiment", "command", "time", "date", "code", "threads", "machine"]
    return {"tables": [{"head": head, "rows": rows}], "outputs": [], "text": ""} if found else None
