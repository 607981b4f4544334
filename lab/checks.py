"""What a checkpoint or a record must look like: a file that a person or a disk has changed is told in one
sentence and never trained on."""
import functools
import math
import os
import re
import zipfile
from dataclasses import astuple, fields

import torch
from torch.overrides import TorchFunctionMode

from data import CONTROL, is_prompt
from lab.optim import Muon
from model import GPT, GPTConfig

KINDS = {"stage": str, "command": str, "knobs": dict, "parents": dict, "step": int, "steps": int,
         "finished": bool, "state": dict, "fingerprint": str}
STATE = {"kl_coef": float, "sft_scale": list, "wanted": int, "open": int, "results": dict, "winners": list,
         "left": list, "picture": list, "warned": list}
KNOBS = {"start": str, "rankings": list, "limit": int, "labeler": str, "aspect": str, "data": str}
MOST = {"n_layer": 1000}  # blocks; any other size of a model is at most:
SIZE = 2**20
MOMENTS = {Muon: {"momentum"}, torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
           torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def stored_whole(file):
    """Whether an open file is an archive as torch.save writes it: nothing in it packed or told of twice (a
    small file that unpacks to gigabytes), every checksum right."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            fits = sum(entry.file_size for entry in entries) <= os.fstat(file.fileno()).st_size
            return plain and fits and archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------
# Records
# ------------------------------------------------------------------------------------------------


def wrong_record(record):
    """What is wrong with the record of a stage, or None."""
    for key, kind in KINDS.items():
        if type(record[key]) is not kind:
            return f"{key} is no {kind.__name__}"
    for part, kinds in (("state", STATE), ("knobs", KNOBS)):
        for key, kind in kinds.items():
            if not isinstance(record[part].get(key, kind()), kind):
                return f"{key} of its {part} is no {kind.__name__}"
    if wrong := wrong_state(record["state"]):
        return f"{wrong} of its state is not what a stage writes"
    if record["step"] < 0 or record["steps"] < 0:
        return "its steps are negative"
    if not re.fullmatch(r"\w[\w.-]*", record["stage"]) or CONTROL.search(record["command"]):
        return "stage or command is not a word"
    for file, print_of_it in record["parents"].items():
        inside = isinstance(file, str) and re.fullmatch(r"(data/)?\w[\w.-]*", file)
        if not inside or not isinstance(print_of_it, str):
            return "a parent is no file of this run"
    if not all(is_plain(part) for part in record["knobs"].items()):
        return "a knob is no number or text"
    return None


def wrong_state(state):
    """Which of the values that a stage goes on with is not as it must be, or None."""
    scale = state.get("sft_scale") or [0.0, 1.0]
    rounds = state.get("winners", [])
    if not is_plain(state.get("kl_coef", 0.0)):
        return "kl_coef"
    two = isinstance(scale, list) and [*map(type, scale)] == [float, float]
    if not two or not is_plain(scale) or scale[1] <= 0:
        return "sft_scale"
    if not all(isinstance(rows, list) and rows and all(map(is_winner, rows)) for rows in rounds):
        return "winners"
    if not all(isinstance(row, dict) and is_plain(list(row.values())) for row in state.get("left", [])):
        return "left"
    if len(state.get("picture", ["panels", "caption"])) != 2:
        return "picture"
    return None


def is_winner(row):
    """Whether a row is what rejection sampling fine-tunes on."""
    return (isinstance(row, dict) and is_prompt(row.get("prompt")) and isinstance(row.get("response"), str)
            and is_plain(row.get("score")))


def is_plain(value):
    """Whether a knob, its name and value, is made of clean text and finite numbers alone."""
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    if isinstance(value, str):
        return not CONTROL.search(value)
    return value is None or type(value) is bool or is_number(value)


def is_number(value):
    """Whether it is one, and finite."""
    return type(value) is int or type(value) is float and math.isfinite(value)


# ------------------------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------------------------


def wrong_model(shape, weights, file_size):
    """What is wrong with the shape (a dict of GPTConfig) or the weights of a checkpoint, or None. Nothing
    larger than the file is allocated."""
    wrong = wrong_shape(shape)
    if wrong:
        return wrong
    blocks = sum(str(name).endswith(".ln_1.weight") for name in weights) if isinstance(weights, dict) else -1
    if blocks != shape["n_layer"]:
        return "its weights are not those of n_layer blocks"
    expected = shapes_of(astuple(GPTConfig(**shape)))
    if weights.keys() != expected.keys():
        return "its weights have other names than its model_config asks for"
    tied = expected["lm_head.weight"].numel()  # embeddings, which the file holds once
    if 4 * (sum(size.numel() for size in expected.values()) - tied) > file_size:
        return "its model_config asks for more weights than the file holds"
    for name, x in weights.items():
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or x.shape != expected[name]:
            return f"its weights {name} have another shape or type"
        if x.layout != torch.strided:
            return f"its weights {name} are not stored one by one"
        if not x.isfinite().all():
            return f"{name} holds weights that are no numbers: train it again"
    return None


def wrong_shape(shape):
    """What is wrong with a model_config, or None."""
    if not isinstance(shape, dict) or shape.keys() != {f.name for f in fields(GPTConfig)}:
        return "its model_config has other fields"
    for f in fields(GPTConfig):
        value, most = shape[f.name], MOST.get(f.name, SIZE)
        if f.name == "dropout":
            right = type(value) in (int, float) and 0 <= value < 1
        elif type(f.default) is bool:
            right = type(value) is bool
        else:
            right = type(value) is int and (f.name == "n_layer" or value > 0) and 0 <= value <= most
        if not right:
            return f"its model_config has {f.name} {str(value)[:20]!r}"
    if shape["n_embd"] % shape["n_head"]:
        return "its n_embd is no multiple of n_head"
    return None


class NoInit(TorchFunctionMode):
    """Weights are not drawn: for those without memory torch would first import its compiler, in a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=100)
def shapes_of(config):
    """{name: torch.Size} of a model's weights; config: the values of a GPTConfig in their order. Nothing is
    allocated."""
    with torch.device("meta"), NoInit():
        return {name: x.shape for name, x in GPT(GPTConfig(*config)).state_dict().items()}


def fits(thing):
    """Whether what a module or an optimizer has loaded can be trained on. Of an optimizer's state torch
    itself compares only the number of tensors."""
    if isinstance(thing, torch.nn.Module):
        return all(x.isfinite().all() for x in thing.state_dict().values())
    return all(fits_its_parameters(o) for o in getattr(thing, "optimizers", [thing]))


def fits_its_parameters(optimizer):
    for group in optimizer.param_groups:
        if not all(type(group.get(key)) is float for key in ("lr", "peak_lr")):
            return False
        if not is_plain([group["lr"], group["peak_lr"]]):
            return False
    for p, moments in optimizer.state.items():
        if moments.keys() != MOMENTS[type(optimizer)]:
            return False
        if not all(x.shape in (p.shape, ()) and x.isfinite().all() for x in moments.values()):
            return False
    return True
