"""What a run's files hold: checkpoints and records, written whole or not at all, and read with care."""
import functools
import hashlib
import json
import os
import warnings
from pathlib import Path

import torch

from data import UserError, read_text
from lab import parallel
from lab.checks import fits, is_number, stored_whole, wrong_model, wrong_record
from lab.commands import again, is_name
from lab.machine import set_random_state
from model import GPT, GPTConfig

# What a later call or another stage has to know about a stage.
RECORD = {"stage", "command", "knobs", "parents", "step", "steps", "finished", "state", "fingerprint"}


def write_atomic(path, content):
    """Write text, bytes or what a function writes into an open file under a temporary name, then rename:
    neither a killed process nor a full disk leaves half a file. Of several processes the first one writes."""
    if not parallel.is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # the content is on the disk before the name is
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def append_row(path, row):
    """Add a line to a .jsonl file. Of several processes the first one writes."""
    if parallel.is_first():
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def flush(path):
    """What was added to a file is on the disk, should the power fail."""
    with path.open("ab") as file:
        os.fsync(file.fileno())


def fingerprint(module):
    """A short hash of all weights: the same weights, the same hash."""
    return fingerprint_of_weights(module.state_dict())


def fingerprint_of_weights(weights):
    """The same of a state_dict."""
    digest = hashlib.sha256()
    for key, tensor in weights.items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of(path):
    """The fingerprint of a file that a stage was made from: the model's, or a short hash of its content."""
    if path.suffix == ".pt":
        return record_in(path)["fingerprint"]
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; put it back, or make it again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def must_be_there(path):
    """Raises UserError where a checkpoint is not."""
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.pt")))
        hint = f"; {path.parent} has {others}" if others else ""
        raise UserError(f"{path}: no such checkpoint{hint}")


def load_checkpoint(path, device="cpu"):
    """A checkpoint of ours as a dict. Raises UserError for anything else."""
    path = Path(path)
    must_be_there(path)
    try:
        with path.open("rb") as file:
            checkpoint, size = read_archive(path, file, device), path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} may not be read ({error.strerror})") from None
    ours = {"stage", "model_config", "model", "knobs", "step"}
    if not isinstance(checkpoint, dict) or not ours <= checkpoint.keys():
        raise UserError(f"{path}: not a checkpoint of this project "
                        "(expected a .pt file that one of its scripts wrote)")
    shape, weights, knobs = (checkpoint[key] for key in ("model_config", "model", "knobs"))
    if not checkpoint.keys() >= RECORD or has(weights, "reward_gain") or has(knobs, "whitening"):
        raise UserError(f"{path} was trained by an earlier version of these scripts; train it again with "
                        "--overwrite, or in another folder with --run NAME")
    wrong = wrong_record(checkpoint) or wrong_model(shape, weights, size)
    if not wrong and checkpoint["step"] > checkpoint["steps"]:
        wrong = "it has more steps than its training"
    if not wrong and fingerprint_of_weights(weights) != checkpoint["fingerprint"]:
        wrong = "its weights have changed since they were written"
    if wrong:
        raise damaged(path, wrong)
    return checkpoint


def read_archive(path, file, device):
    """What torch.save wrote into an open file; None where something else has written it. Raises UserError
    for a damaged archive, before anything in it is unpacked."""
    if file.read(2) != b"PK":
        return None
    if not stored_whole(file):
        raise damaged(path, "its content is not what was written")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a foreign file is told in one sentence
            return torch.load(file, map_location=device, weights_only=True)
    except Exception:  # what is something else may fail in any way where it is read as a checkpoint
        return None


def load_model(path, device="cpu", dropout=0.0):
    """(GPT in eval mode, its checkpoint, a dict). The model's shape comes from the checkpoint alone; only
    dropout, which is a matter of training, is the caller's. Raises UserError as load_checkpoint does."""
    checkpoint = load_checkpoint(path, device)
    model = GPT(GPTConfig(**{**checkpoint["model_config"], "dropout": dropout})).to(device)
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint


def load_language_model(path, device="cpu", dropout=0.0):
    """The same of a model that shall write. Raises UserError for a reward model, too."""
    model, checkpoint = load_model(path, device, dropout)
    if model.config.reward_head:
        raise UserError(f"{path}: a reward model gives scores, no answers")
    return model, checkpoint


def restore(path, checkpoint, objects):
    """Load the state of modules and optimizers, {name in the checkpoint: object}, and that of the random
    numbers. Raises UserError where a state does not fit."""
    try:
        for name, thing in objects.items():
            thing.load_state_dict(checkpoint[name])
        set_random_state(checkpoint["random"])
        fit = all(fits(thing) for thing in objects.values())
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError):
        fit = False
    if not fit:
        raise damaged(path, "the state of its training does not fit")


def damaged(path, what):
    return UserError(f"{path} is damaged ({what}): put a copy back, or make it again with --overwrite")


def has(part, name):
    """Whether a part of a checkpoint is a dict with that name."""
    return isinstance(part, dict) and name in part


def record_in(path):
    """What a checkpoint says about itself, without its tensors: to be read, not to be changed."""
    must_be_there(path)
    about = path.stat()
    return read_record(path, path.resolve(), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=200)
def read_record(path, where, written, size):
    """The same; a file that was written anew is read anew. (A command asks many times about its parents and
    theirs, and a checkpoint is large.)"""
    checkpoint = load_checkpoint(path)
    return {key: checkpoint[key] for key in (*RECORD, "model_config", "tokenizer") if key in checkpoint}


def record_of(folder, name):
    """The record of a stage, a dict with the keys of RECORD: what NAME.pt says (then with "model_config"), or
    for a collection NAME.json. None where the stage is not there; so for what is no name ("../tiny/sft")."""
    if not is_name(name):
        return None
    if (folder / f"{name}.pt").exists():
        return record_in(folder / f"{name}.pt")
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(read_text(path))
        ours = record.keys() >= RECORD and not wrong_record(record)
    except OSError as error:
        raise UserError(f"{path} may not be read ({error.strerror})") from None
    except (ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{path}: not the record of a collection of rankings; --overwrite begins it anew")
    return record


class MadeAgain(UserError):
    """What the stage at `path` was made from is another one now."""

    def __init__(self, path, what, command):
        super().__init__(f"{what}: {command} --overwrite")
        self.path, self.what = path, what


def check_parents(path, record, checked=None):
    """A stage whose parents have been made again since is reported, never silently used; so is one whose
    parents' parents have, and so on. checked: files of which that is known."""
    checked = set() if checked is None else checked
    for file, then in record["parents"].items():
        parent = path.parent / file
        if not parent.exists() or parent in checked:
            continue
        if fingerprint_of(parent) != then:
            raise MadeAgain(path, f"{path} was made from an earlier {file}, which has been {again(parent)} "
                            "since; make it again, too", record["command"])
        checked.add(parent)  # before its own parents: a damaged file might name itself
        of_parent = record_of(parent.parent, parent.stem)
        if of_parent:  # a user's file has none
            check_parents(parent, of_parent, checked)


def check_descent(path, of):
    """Raises UserError where `path` was made from the file `of`, its parents from it, and so on: what is made
    from `path` cannot take the place of `of`."""
    to_see, seen = [path] if of.exists() else [], set()
    while to_see:
        child = to_see.pop()
        record = record_of(child.parent, child.stem) if child not in seen else None
        seen.add(child)
        for parent in [child.parent / file for file in record["parents"]] if record else []:
            if parent == of:
                raise UserError(f"{path} descends from {of}, which it would take the place of: give the new "
                                "one a --name of its own")
            to_see.append(parent)


def rows_until(path, step):
    """The metrics of the steps before that one. Raises UserError where a row is missing, another's or holds
    what is no number."""
    if step == 0:
        return []  # where a training was stopped before its first step there may be no file yet
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()[:step]]
        whole = [row["step"] for row in rows] == list(range(step)) and len({tuple(row) for row in rows}) == 1
        whole = whole and all(x is None or is_number(x) for row in rows for x in row.values())
    except (UserError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path} does not hold the rows of the {step} steps so far; put it back, or begin "
                        "anew with --overwrite")
    return rows


def product_of(folder, name, collection):
    """Path of what a stage makes: a checkpoint, or a file of rankings."""
    return folder / f"{name}.{'jsonl' if collection else 'pt'}"


def names_in(folder):
    """Names of the models and collections of a run."""
    files = [*folder.glob("*.pt"), *folder.glob("*.json")]
    return sorted(path.stem for path in files if path.stem != "tokenizer")
