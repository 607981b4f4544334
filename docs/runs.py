"""What the experiments need of the runs: stages made by their commands, and what their files hold."""
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import data
from lab.commands import recipe_of
from lab.records import append_row, load_checkpoint, load_model

try:
    import resource
except ImportError:  # Windows
    resource = None

ROOT = Path(__file__).resolve().parent.parent
TIMES = Path("runs") / "experiments" / "times.jsonl"

# Rows of the comparison at the end of PPO and of a round (lab/report.py).
GOLD, WIN, KL = "gold score, points", "gold win rate against SFT", "KL to SFT, nats an answer"
SCORE, TEXT_LOSS = "reward model's score, SD", "loss on text, nats a token"
UNSAFE, SAFE = "declines unsafe prompts", "declines safe prompts"
UNKNOWN, DISTINCT = "unknown sentences", "distinct answers"


# ------------------------------------------------------------------------------------------------
# Stages by their commands
# ------------------------------------------------------------------------------------------------


def run_of(seed=0):
    """The run folder of a seed."""
    return Path("runs") / (f"tiny-seed{seed}" if seed else "tiny")


def command(script, *words):
    """Run a script; it must end well."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, words)])
    if done.returncode:
        sys.exit(done.returncode)  # it has said why


def make(name, *flags, seed=0, script="train_ppo.py"):
    """The stage `name` of a run, made by its command where it is not finished; returns the path of its files
    without an ending. How long that took, and how much memory, is noted where nothing of it was there."""
    path, began = run_of(seed) / name, time.time()
    new = not any(path.parent.glob(f"{name}.*"))
    command(script, "--config", "tiny", "--seed", seed, *flags, "--name", name)
    if new:
        TIMES.parent.mkdir(parents=True, exist_ok=True)
        append_row(TIMES, {"stage": path.as_posix(), "seconds": time.time() - began, "gigabytes": memory()})
    return path


def memory():
    """The most memory that a command took that this process has run, GB; None where nobody says that."""
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kB, on macOS bytes
    return most / (1e9 if sys.platform == "darwin" else 1e6)


def noted(path, what="seconds"):
    """How long it took to make a stage, with what it had to make first, or its "gigabytes"; None where that
    was not noted."""
    rows = reversed(data.load_rows(TIMES))
    return next((row[what] for row in rows if row["stage"] == Path(path).as_posix()), None)


def output_of(*words):
    """What a Python command prints; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, words)], stdout=subprocess.PIPE, encoding="utf-8",
                          env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def reward_model(name, *flags, seed=0):
    return make(name, *flags, seed=seed, script="train_rm.py")


def rankings(name, *flags, seed=0):
    return make(name, *flags, seed=seed, script="preferences.py")


def standard(stage, seed=0, name="", more=()):
    """A stage that the list of stages knows, or a variant of it with more flags and a name of its own."""
    script, *flags = re.sub(r" --name \S+", "", recipe_of(stage)).split()
    return make(name or stage, *flags, *more, seed=seed, script=script)


# ------------------------------------------------------------------------------------------------
# What they hold
# ------------------------------------------------------------------------------------------------


def state(path):
    return load_checkpoint(f"{path}.pt")["state"]


def results(path):
    """What a stage measured at its end."""
    return state(path)["results"]


def logged(path):
    """The rows of a stage's .jsonl: metrics, a row a step, or rankings."""
    return data.load_rows(Path(f"{path}.jsonl"))


def model_of(path):
    return load_model(f"{path}.pt")[0]


def encoding_of(folder):
    return data.load_encoding(folder / "tokenizer.json")


def prompts_of(folder, split="test"):
    return [row["prompt"] for row in data.load_prompts(folder / "data") if row["split"] == split]


# ------------------------------------------------------------------------------------------------
# Numbers made of that
# ------------------------------------------------------------------------------------------------


def corrected(r):
    """Accuracy of a reward model where 0 is guessing and 1 is what the annotator's noise allows. r: a row of
    its results, or the results of a comparison (then on the answers of that policy)."""
    accuracy, ceiling = r.get("accuracy", r.get("rm_accuracy")), r.get("ceiling", r.get("rm_ceiling"))
    return (accuracy - 0.5) / (ceiling - 0.5) if accuracy is not None and ceiling > 0.5 else None


def shares(ours, theirs, n_prompts):
    """For each prompt the share of answers that beat the other's, ties half. Lists of gold scores, those of
    answers to prompt i at i, i + n_prompts, ..."""
    wins = [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]
    return [statistics.mean(wins[i::n_prompts]) for i in range(n_prompts)]


def win_rate(path, keep=lambda prompt: True, who="PPO"):
    """Gold win rate against SFT at temperature 1, on the test prompts that keep(prompt) chooses."""
    gold, prompts = results(path)["gold of each answer"], prompts_of(path.parent)
    each = shares(gold[who], gold["SFT"], len(prompts))
    return statistics.mean(share for share, prompt in zip(each, prompts, strict=True) if keep(prompt))


def spread(values):
    """Example: [1, 2, 3] -> "2.00 (1.00 to 3.00)"."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
