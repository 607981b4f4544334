"""A run folder's tokenizer and the checkpoints that were trained with it belong together."""
import hashlib

from data import UserError, encode_prompt, lay_out, load_encoding
from lab.terminal import wrapped

TOKENIZER = "tokenizer.json"


def tokenizer_print(folder):
    """A short hash of a run folder's tokenizer, or None where there is none."""
    path = folder / TOKENIZER
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def encoding_of(folder, records=()):
    """The tokenizer of a run folder, a tiktoken.Encoding. Raises UserError where it is missing, damaged, or
    not the one that a checkpoint was trained with.

    records: checkpoints or their records; those of an earlier version do not name their tokenizer."""
    path = folder / TOKENIZER
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


def room_for_prompts(max_new_tokens, model):
    """How many tokens of its context an answer leaves to a prompt. Raises UserError where it leaves none."""
    context = model.config.block_size
    room = context - max_new_tokens - 1  # an EOS behind the answer, where its score is read
    if room < 1:
        raise UserError(f"--max_new_tokens {max_new_tokens} leaves no room for a prompt: the context is "
                        f"{context} tokens")
    return room


def encode_prompts(enc, prompts, max_new_tokens, model):
    """The prompts as token ids; one that is too long for an answer behind it loses its beginning, and how
    many do is said. Raises UserError as room_for_prompts does."""
    room = room_for_prompts(max_new_tokens, model)
    ids = [encode_prompt(enc, prompt) for prompt in prompts]
    cut = sum(len(row) > room for row in ids)
    if cut:
        print(wrapped(f"{cut} of {len(prompts)} prompts are longer than the {room} tokens that an answer "
                      "leaves them: cut from the left"))
    return [row[-room:] for row in ids]


def laid_out(enc, rows, block_size):
    """Rows {"prompt", "responses"} -> for each the (prompt_ids, response_ids) of its answers, as they fit the
    context. Says how many prompts and answers are cut."""
    found, prompts, ends = [], 0, 0
    for row in rows:
        answers = lay_out(enc, [row["prompt"]] * len(row["responses"]), row["responses"], block_size)
        whole = len(encode_prompt(enc, row["prompt"]))
        prompts += any(len(prompt) < whole for prompt, _ in answers)
        ends += sum(answer[-1] != enc.eot_token for _, answer in answers)
        found.append(answers)
    parts = ((prompts, len(rows), "prompts lose their beginning"),
             (ends, sum(map(len, found)), "answers lose their end"))
    if said := [f"{cut} of {n} {what}" for cut, n, what in parts if cut]:
        print(wrapped(f"within a context of {block_size} tokens {' and '.join(said)}"))
    return found
