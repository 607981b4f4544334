"""Look at the data as the model sees it: a few rows of every file as text, tokens and masks.

    python data.py --config tiny        the data of runs/tiny, or what will be written into it
    python data.py --data FOLDER        your own
"""
import importlib
import json
import tempfile
from pathlib import Path

from data import (
    SPECIAL,
    encode,
    encode_prompt,
    encode_response,
    is_thumb,
    load_preferences,
    load_prompts,
    load_rows,
    load_sft,
    load_text,
    make_encoding,
    prompt_text,
    sft_batch,
    special_id,
    train_bpe,
)
from lab.cli import Which, parse
from lab.commands import run_folder
from lab.data_folder import write_data
from lab.formats import convert
from lab.hub_tokens import gpt2_encoding
from lab.records import record_of
from lab.source import check_unchanged
from lab.terminal import terminal_width, wrapped
from lab.tokens import encoding_of

MARGIN = 12  # columns in front of every text

# ------------------------------------------------------------------------------------------------
# Lines that fit the terminal
# ------------------------------------------------------------------------------------------------


def show_text(label, text):
    """One line: a string with its line breaks as \\n, a dialogue as `role: text` lines; a long one without
    its middle."""
    text, room = json.dumps(prompt_text(text), ensure_ascii=False)[1:-1], terminal_width() - MARGIN
    if len(text) > room:
        half = (room - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    print(f"  {label:<{MARGIN - 2}}{text}")


def token_pieces(enc, ids, marks, room):
    """[(a token's bytes as text and a |, its mark)], a long row without its middle, a long token without its
    end."""
    pieces = []
    for i, mark in zip(ids, marks, strict=True):
        text = repr(enc.decode_single_token_bytes(i))[2:-1]
        if len(text) >= room:
            text = text[: room - 4] + "..."
        pieces.append((text + "|", mark))
    return pieces if len(pieces) <= 30 else pieces[:15] + [("... |", " ")] + pieces[-15:]


def show_tokens(enc, *parts):
    """Tokens as their bytes with | between them, under each the character of its mark. parts: (ids, marks)
    laid end to end.

    Example: ([user, a, cat], "000") -> `<|user|>|a| cat` and under it `0        0 0`.
    """
    room = terminal_width() - MARGIN
    lines = [["", ""]]
    for ids, marks in parts:
        for piece, mark in token_pieces(enc, ids, marks, room):
            if len(lines[-1][0]) + len(piece) - 1 > room:
                lines.append(["", ""])
            lines[-1][0] += piece
            lines[-1][1] += mark.ljust(len(piece))
    label = "  tokens"
    for tokens, marks in lines:
        print(label.ljust(MARGIN) + tokens.removesuffix("|"))
        if marks.strip():
            print(" " * MARGIN + marks.rstrip())
        label = ""


def heading(name, rows, what):
    """A line about a file and its rows."""
    splits = ", ".join(f"{split} {sum(row['split'] == split for row in rows)}"
                       for split in ("train", "dev", "test"))
    print("\n" + wrapped(f"{name}: {len(rows)} rows ({splits}). {what}"))


def some(rows, n):
    """n rows from all over."""
    return rows[:: max(1, len(rows) // n)][:n]


# ------------------------------------------------------------------------------------------------
# The files
# ------------------------------------------------------------------------------------------------


def show_pretraining(folder, enc):
    text, held_out = load_text(folder)
    print("\n" + wrapped(f"pretrain.txt: {len(text):,} characters to learn from, {len(held_out):,} held out. "
                         "Each token is predicted from those before it."))
    show_text("text", text[:150])
    ids = encode(enc, text[:150])
    show_tokens(enc, (ids, " " * len(ids)))


def show_demonstrations(folder, enc):
    rows = load_sft(folder)
    heading("sft.jsonl", rows, "The loss is on the tokens marked 1: the answer and its end.")
    for row in some(rows, 2):
        prompt, response = encode_prompt(enc, row["prompt"]), encode_response(enc, row["response"])
        mask = sft_batch([(prompt, response)], special_id(enc, "pad"))[2][0]
        marks = "0" + "".join(str(int(m)) for m in mask)  # the mask is aligned with the targets
        show_text("prompt", row["prompt"])
        show_text("response", row["response"])
        show_tokens(enc, (prompt, marks[: len(prompt)]), (response, marks[len(prompt) :]))


def show_preferences(folder, enc):
    rows = load_preferences(folder)
    heading("preferences.jsonl", rows,
            "The reward model's score of an answer is read at the token marked ^, its last.")
    for row in some(rows, 2):
        show_text("prompt", row["prompt"])
        margin = f"margin {row['margin']:g}" if "margin" in row else None
        if row["aspect"] or margin:
            show_text("about", ", ".join(filter(None, (row["aspect"], margin))))
        for label, text in labelled(row):
            show_text(label, text)
            response = encode_response(enc, text)
            show_tokens(enc, (response, " " * (len(response) - 1) + "^"))


def labelled(row):
    """[(what it was found to be, answer)] of a user's ranking or thumb, the best one first."""
    if is_thumb(row):
        return [("thumb up" if row["label"] else "thumb down", row["responses"][0])]
    if len(row["responses"]) > 2:
        return in_places(row)
    names = ("chosen", "rejected") if len(row["tiers"]) > 1 else ("a draw",)
    return [(name, row["responses"][i]) for name, tied in zip(names, row["tiers"], strict=True) for i in tied]


def in_places(row):
    """[("place 1", answer), ...] of a ranking, the best first."""
    return [(f"place {place}", row["responses"][i])
            for place, tied in enumerate(row["tiers"], 1) for i in tied]


def show_rankings(path):
    """Rankings of the run's own answers, where there are some."""
    rows = load_rows(path)
    if not rows:
        print("\n" + wrapped("no preferences file: preferences.py samples answers of the SFT model, has them "
                             f"ranked and keeps the rankings in {path}."))
        return
    heading(path.name, rows, "Answers of the SFT model as they were ranked, the best in place 1.")
    row = rows[0]
    show_text("prompt", row["prompt"])
    for label, text in in_places(row):
        show_text(label, text)


def show_prompts(folder, enc):
    rows = load_prompts(folder)
    heading("prompts.jsonl", rows, "The policy's answer begins behind the last token.")
    for row in some(rows, 3):
        show_text("prompt", row["prompt"])
        show_text("split", row["split"] + (", unsafe" if row["unsafe"] else ""))
        prompt = encode_prompt(enc, row["prompt"])
        show_tokens(enc, (prompt, " " * len(prompt)))


def show_folder(folder, run, enc):
    """Print the beginning of the text and a few rows of each other file, as text and as tokens.

    folder: a data folder; run: the run folder, for its rankings."""
    show_pretraining(folder, enc)
    if not load_sft(folder):
        return  # text alone
    show_demonstrations(folder, enc)
    if (folder / "preferences.jsonl").exists():
        show_preferences(folder, enc)
    else:
        show_rankings(run / "rankings.jsonl")
    show_prompts(folder, enc)


# ------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------


def data_folder(cfg, run, temporary):
    """The run's data folder; where it is not there yet, one like it in a temporary folder."""
    folder = run / "data"
    own = (folder / "source.json").exists()
    if own and cfg.data:
        check_unchanged(cfg.data, folder)
    if (folder / "pretrain.txt").exists() and (own or not cfg.data):
        return folder
    print(wrapped(f"{folder} is not there yet; this is what train_pretrain.py will write into it"))
    if cfg.data:
        convert(cfg.data, temporary)
    else:
        write_data(temporary, cfg)
    return temporary


def main(argv=None):
    """Show a run's data; it stays as it is."""
    pretraining = importlib.import_module("train_pretrain")  # a script, which no module of lab imports
    cfg = parse(Which, pretraining.PRESETS, __doc__, argv)
    run = run_folder(cfg)
    tokenizer = run / "tokenizer.json"
    with tempfile.TemporaryDirectory() as temporary:
        folder = data_folder(cfg, run, Path(temporary) / "data")
        if tokenizer.exists():
            pretrained = record_of(run, "pretrain")
            enc, origin = encoding_of(run, [pretrained] if pretrained else []), f"from {tokenizer}"
        elif cfg.config == "gpt2":
            enc, origin = gpt2_encoding(), "those of GPT-2 and our four special ones"
        else:
            size = pretraining.PRESETS[cfg.config].get("vocab_size", pretraining.Config.vocab_size)
            enc = make_encoding(train_bpe(load_text(folder)[0], size - len(SPECIAL)))
            origin = "learned from this text just now"
        print(wrapped(f"{enc.n_vocab} tokens, {origin}"))
        show_folder(folder, run, enc)
