"""The stages of a run, the commands that make them, and the folder that they share."""
import importlib
import os
import re
import shlex
import sys
from pathlib import Path

from data import UserError

# The stages of a run in their order, and the command that makes each.
STAGES = {
    "pretrain": "train_pretrain.py",
    "sft": "train_sft.py",
    "judge": "train_sft.py --reviews 50000 --block_size 256 --epochs 1 --batch_size 48 --lr 3e-3 "
             "--eval_every 400 --name judge",
    "rankings": "preferences.py",
    "rm_first": "train_rm.py --rankings rankings --epochs 1 --name rm_first",
    "pilot": "train_ppo.py --reward rm_first --steps 30 --eval_answers 1 --name pilot",
    "rankings_helpful": "preferences.py --aspect helpful",
    "rankings_safety": "preferences.py --aspect safety",
    "rankings_ai": "preferences.py --labeler ai",
    "rm": "train_rm.py",
    "rm_helpful": "train_rm.py --aspect helpful",
    "rm_safety": "train_rm.py --aspect safety",
    "rm_ai_first": "train_rm.py --rankings rankings_ai --epochs 1 --name rm_ai_first",
    "pilot_ai": "train_ppo.py --reward rm_ai_first --steps 30 --eval_answers 1 --name pilot_ai",
    "rm_ai": "train_rm.py --start rm_ai_first --rankings rankings_ai rankings_ai.pilot_ai --name rm_ai",
    "ppo": "train_ppo.py",
    "rejection_sampling": "rejection_sampling.py",
    "dpo": "docs/alternatives.py --method dpo",
    "rloo": "docs/alternatives.py --method rloo",
    "grpo": "docs/alternatives.py --method grpo",
}
LEARNED_FROM = {"pretrain": ["pretrain.txt"], "sft": ["sft.jsonl"], "rm": ["pretrain.txt", "sft.jsonl"],
                "ppo": ["prompts.jsonl"], "rloo": ["prompts.jsonl"], "grpo": ["prompts.jsonl"],
                "rejection_sampling": ["prompts.jsonl"]}  # {stage: its data}
OWN_TEXT = ("small", "gpt2")  # presets that need --data
ROUNDS = "rejection_sampling"  # the stage whose results are called rs.1, rs.2 and so on
COLLECTOR = "preferences.py"  # the script whose stages are collections
LONGEST = 100  # bytes of a name
OTHER_FILES = ("preferences", "tokenizer", "judge_calls", "judged", "data")  # names that are no stage's


def run_folder(cfg):
    """The run folder that the flags name: runs/PRESET, with the data folder's name and a seed other than 0
    behind it."""
    if cfg.config in OWN_TEXT and not cfg.data:
        raise UserError(f"--config {cfg.config} trains on your own text: name its folder with --data FOLDER")
    parts = [cfg.config]
    if cfg.data:
        parts.append(Path(cfg.data).resolve().name)
    if cfg.seed:
        parts.append(f"seed{cfg.seed}")
    run = cfg.run or "-".join(parts)
    parts = Path(run).parts
    if is_long(run) or not parts or Path(run).is_absolute() or ".." in parts or "data" in parts[1:]:
        made = "" if cfg.run else ", which is made of the name of --data"
        raise UserError(f"--run {run[:60]}{made}: choose a short name; the folder lies in runs/")
    return Path("runs") / run


def is_long(name):
    """Whether a name, with an ending behind it, might be too long for a file system."""
    return len(os.fsencode(name)) > LONGEST


def is_name(name):
    """Whether a stage may have that name: a short word, and no file has it that is no stage's."""
    taken = name in OTHER_FILES or name.endswith(".explain")
    return re.fullmatch(r"\w[\w.-]*", name) and not is_long(name) and not taken


def recipe_of(name):
    """Script and flags that make a stage of this name, or None. A collection's name with a model's behind a
    dot is one of that model's answers; rs.4 is the fourth round of rejection sampling.

    Example: rankings_safety.rs.1 -> preferences.py --aspect safety --answers_of rs.1 --name ..."""
    kind, dot, model = name.partition(".")
    if kind == "rs" and re.fullmatch("[1-9][0-9]*", model):
        return f"{STAGES[ROUNDS]} --rounds {int(model)}"
    if name in STAGES and name != ROUNDS:
        return STAGES[name]
    recipe = STAGES.get(kind, "")
    if dot and recipe.startswith(COLLECTOR):
        return f"{recipe} --answers_of {model} --name {name}"
    return None


def command_of(cfg, stage):
    """The words of the command that makes a stage of the run that cfg belongs to. stage: a name that
    recipe_of knows, or script and flags as text."""
    words = shlex.split(recipe_of(stage) or stage)
    words[1:1] = ["--config", cfg.config]
    for flag in ("run", "seed", "data", "device", "threads", "dtype"):
        value = getattr(cfg, flag)
        if str(value).startswith("-"):
            words.append(f"--{flag}={value}")  # it is no flag
        elif value and value != "auto":
            words += [f"--{flag}", str(value)]
    return words


def main_of(script):
    """The main() of a script of this project, wherever it lies in it."""
    folder = str(Path(__file__).resolve().parent.parent / Path(script).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(Path(script).stem).main


def shown_command(words):
    """A command as it can be typed again: without --overwrite."""
    return "python " + re.sub(r" --overwrite([ =](true|false))?\b", "", shlex.join(words), flags=re.I)


def same_command():
    """How a sentence calls the command that was typed, where it is to be typed once more."""
    overwrites = "--overwrite" in shlex.join(sys.argv)
    return "the same command without --overwrite" if overwrites else "the same command"


def short(value):
    """A knob's value in a sentence."""
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def again(path):
    return "trained again" if path.suffix == ".pt" else "changed"
