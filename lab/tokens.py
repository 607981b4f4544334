"""A run folder's tokenizer and the checkpoints that were trained with it belong together."""
import hashlib

from data import UserError, load_encoding

FILE = "tokenizer.json"


def tokenizer_print(folder):
    """A short hash of a run folder's tokenizer, or None where there is none."""
    path = folder / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def encoding_of(folder, records=()):
    """The tokenizer of a run folder, a tiktoken.Encoding. Raises UserError where it is missing, damaged, or
    not the one that a checkpoint was trained with.

    records: checkpoints or their records; those of an earlier version do not name their tokenizer."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{path}: there is no tokenizer.json beside the checkpoint; keep them together")
    now = tokenizer_print(folder)
    for record in records:
        if record.get("tokenizer", now) not in (None, now):
            raise UserError(f"{path} is not the one that the stage {record['stage']} was trained with, so "
                            "its text would be gibberish: put the tokenizer back, or train the stage again")
    try:
        return load_encoding(path)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: put a copy back, or train the run again from "
                        "train_pretrain.py --overwrite on") from None
