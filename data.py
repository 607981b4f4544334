"""Text and tokens: from files that a person can read to the batches that a model is trained on.

From top to bottom: a tokenizer (byte pair encoding, BPE), the chat template with its masks and
batches, rankings and their pairs, and the four files of a data folder.

    python data.py --config tiny        shows a few rows of every file as text, tokens and masks
"""
import lab.before_torch
import base64
import functools
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import regex
import tiktoken
import torch


class UserError(Exception):
    """A mistake that the user can mend; its message is one sentence, and no traceback is shown."""


# ------------------------------------------------------------------------------------------------
# The tokenizer: always a tiktoken.Encoding, its merges learned here
# ------------------------------------------------------------------------------------------------
# Text is cut into words with the space in front of them, and no merge crosses such a border. The package
# `regex` (training) and tiktoken (encoding) read it alike; to Python's own `re` vowel signs are no letters.
PATTERN = r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"
PATTERN_OF_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPECIAL = ("<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>")
CONTROL = regex.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # characters that a terminal obeys


def train_bpe(text, vocab_size):
    """Learn a byte-level BPE: merge the most frequent neighbouring pair, again and again.

    text: str; vocab_size: tokens wanted, 256 bytes included, special tokens not (at least 256).
    Returns {token bytes: id}, ids in the order of the merges; fewer than vocab_size where nothing repeats.
    Example: "aab aab aac" first merges "a"+"a", then "aa"+"b".
    Counts are updated only in the words that a merge touches. It reads each as a whole, so only the first
    100 characters of a word are learned from. (Sennrich et al. 2016; bytes as in GPT-2.)"""
    tokens = [bytes([b]) for b in range(256)]
    counts = Counter(word[:100] for word in regex.findall(PATTERN, text))
    words = [[list(word.encode("utf-8")), n] for word, n in counts.items()]
    pair_count, pair_words = Counter(), defaultdict(set)
    for w, (ids, n) in enumerate(words):
        for pair in zip(ids, ids[1:], strict=False):
            pair_count[pair] += n
            pair_words[pair].add(w)
    while len(tokens) < vocab_size and pair_count:
        best = max(pair_count, key=lambda pair: (pair_count[pair], pair))  # ties: the larger ids
        if pair_count[best] < 2:
            break
        new = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for w in pair_words.pop(best):
            ids, n = words[w]
            merged = merge(ids, best, new)
            for pair in zip(ids, ids[1:], strict=False):
                pair_count[pair] -= n
                if pair_count[pair] <= 0:
                    del pair_count[pair]
            for pair in zip(merged, merged[1:], strict=False):
                pair_count[pair] += n
                pair_words[pair].add(w)
            words[w][0] = merged
    return {token: i for i, token in enumerate(tokens)}


def merge(ids, pair, new):
    """ids with each occurrence of the pair replaced. Example: [1, 2, 3, 1, 2], (1, 2), 4 -> [4, 3, 4]."""
    merged, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        merged.append(new if found else ids[i])
        i += 2 if found else 1
    return merged


def make_encoding(ranks, pattern=PATTERN):
    """ranks: {token bytes: id} -> tiktoken.Encoding with our four special tokens behind them."""
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL)}
    return tiktoken.Encoding("rlhf", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def dump_encoding(enc):
    """The content of tokenizer.json: a base64 string a token, in the order of the merges; GPT-2's pattern."""
    ids = range(enc.n_vocab - len(SPECIAL))
    tokens = [base64.b64encode(enc.decode_single_token_bytes(i)).decode() for i in ids]
    other = {} if enc._pat_str == PATTERN else {"pattern": enc._pat_str}
    return json.dumps({"tokens": tokens, **other}, indent=0)


def load_encoding(path):
    """A tokenizer.json -> tiktoken.Encoding. Raises ValueError where it is damaged."""
    content = json.loads(path.read_text(encoding="utf-8"))
    tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
    pattern, every_byte = content.get("pattern", PATTERN), {bytes([i]) for i in range(256)}
    if pattern not in (PATTERN, PATTERN_OF_GPT2):  # one with a gap would lose text
        raise ValueError("not one of our patterns")
    if every_byte != set(tokens[:256]) or len(set(tokens)) < len(tokens):
        raise ValueError("not the 256 bytes and different tokens behind them")
    return make_encoding({token: i for i, token in enumerate(tokens)}, pattern)


def encode(enc, text):
    """Token ids of a text, in which nothing is special. Where 10,000 blanks stand in a row it is encoded
    in pieces: tiktoken's stack overflows on a million of them."""
    if len(text) < 10_000 or not regex.search(r"(?<!\s)\s{10000}", text):
        return enc.encode_ordinary(text)
    return [token for i in range(0, len(text), 10_000) for token in enc.encode_ordinary(text[i : i + 10_000])]


def special_id(enc, name):
    """special_id(enc, "pad") -> the id of <|pad|>; also "endoftext", "user", "assistant"."""
    return enc.encode_single_token(f"<|{name}|>")


# ------------------------------------------------------------------------------------------------
# The chat template, masks and batches
# ------------------------------------------------------------------------------------------------
# A prompt is a string, or a list of messages {"role": "user" or "assistant", "content": ...}.
# One row of SFT data, position by position; the loss is on the positions where the mask is 1:
#
#   <|user|> What is a dog ? <|assistant|> A furry mammal . <|endoftext|> <|pad|>
#      0      0    0  0  0 0      0        1   1     1    1       1          0
#
# Text is never interpreted: "<|endoftext|>" inside a user's text is encoded as ordinary characters.


def messages(prompt):
    """A prompt as messages: a string is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_text(prompt):
    """A prompt for a person to read: one line for a string, `role: text` lines for a dialogue."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def encode_prompt(enc, prompt, template=True):
    """Token ids of a prompt, up to the point where the answer begins. template=False: of the plain text, for
    a language model that has not seen the template yet."""
    if not template:
        return encode(enc, "\n\n" + prompt_text(prompt))
    ids = []
    for m in messages(prompt):
        ids.append(special_id(enc, m["role"]))
        encode_turn = encode if m["role"] == "user" else encode_response
        ids += encode_turn(enc, m["content"])
    return ids + [special_id(enc, "assistant")]


def encode_response(enc, response):
    """Token ids of an answer, EOS included: ending is an action that the model has to learn. The space in
    front makes its first word the token that the word is inside a text, as pretraining knows it."""
    return encode(enc, " " + response) + [enc.eot_token]


def decode_response(enc, ids, mask=None):
    """Text of an answer (ids: list or 1-D tensor; mask: its response mask): all its tokens but EOS."""
    if mask is not None:
        ids = [i for i, m in zip(ids, mask, strict=True) if m]
    return enc.decode([int(i) for i in ids if i != enc.eot_token]).strip()


def fit(prompt_ids, response_ids, block_size):
    """Make prompt + response fit the context: the prompt is cut from the left, the response, where it
    alone is too long, from the right (then it has no EOS: it did not end here). At least half of the
    context stays for the prompt. Returns (prompt_ids, response_ids, whether anything was cut)."""
    response = response_ids[: max(block_size - len(prompt_ids), block_size // 2)]
    prompt = prompt_ids[max(0, len(prompt_ids) + len(response) - block_size) :]
    return prompt, response, len(prompt) + len(response) < len(prompt_ids) + len(response_ids)


def lay_out(enc, prompts, responses, block_size):
    """Prompts and their answers as rows (prompt_ids, response_ids) that fit the context."""
    pairs = zip(prompts, responses, strict=True)
    return [fit(encode_prompt(enc, p), encode_response(enc, r), block_size)[:2] for p, r in pairs]


def pad_rows(rows, pad):
    """Lists of ids of different lengths -> (tokens (B, T) padded on the right, lengths (B,)), both long."""
    lengths = torch.tensor([len(row) for row in rows])
    T = int(lengths.max())
    return torch.tensor([row + [pad] * (T - len(row)) for row in rows], dtype=torch.long), lengths


def sft_batch(rows, pad):
    """rows: [(prompt_ids, response_ids)] -> inputs, targets, response_mask, each (B, T).

    targets[t] = inputs[t + 1]; the mask is 1 where the target is a token of the answer, EOS included.
    Example: ([5, 6], [7, 8]) -> inputs 5 6 7, targets 6 7 8, mask 0 1 1."""
    tokens, _ = pad_rows([p + r for p, r in rows], pad)
    mask = torch.zeros(tokens.shape)
    for i, (p, r) in enumerate(rows):
        mask[i, len(p) : len(p) + len(r)] = 1
    return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]


def text_batch(tokens, batch_size, block_size, generator=None):
    """Random windows of a token stream (1-D numpy array) -> inputs, targets (shifted by one), both (B, T)."""
    last = max(1, len(tokens) - block_size)
    starts = torch.randint(0, last, (batch_size,), generator=generator).tolist()
    windows = torch.from_numpy(np.stack([tokens[s : s + block_size + 1] for s in starts]).astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


def tokens_of(enc, texts):
    """(training text, held-out text) -> two 1-D arrays of token ids. Raises UserError for too little text."""
    parts = [np.array(encode(enc, text), dtype=np.uint32) for text in texts]
    if min(map(len, parts)) < 3:
        raise UserError("the pretraining text is too short to train on and to hold some of it out")
    return parts


def steps_per_epoch(n, batch_size):
    """Steps in which n rows are seen once, about batch_size at a time."""
    return max(1, round(n / batch_size))


def epoch_order(n, step, batch_size, seed):
    """Indices of the rows of a step. Every pass has a new order and sees each of n rows once; its batches are
    nearly equally large, for a short last one would make the loss jump."""
    per_epoch = steps_per_epoch(n, batch_size)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
    return order.tensor_split(per_epoch)[place].tolist()


# ------------------------------------------------------------------------------------------------
# Rankings and their pairs
# ------------------------------------------------------------------------------------------------
# A row of rankings: {"prompt", "responses", "tiers", ...}, tiers the indices of the answers, best first:
# [[1], [0, 2]] puts answer 1 first; 0 and 2 tie behind it. Where an AI labelled also "pairs", each of them
# [i, j, probability that i is the better one].


def ranking_to_pairs(tiers, ties=False):
    """All K(K-1)/2 comparisons of a ranking, as (better, worse, how many tiers apart); with ties also those.
    Example: [[1], [0, 2]] -> [(1, 0, 1), (1, 2, 1)], with ties also (0, 2, 0)."""
    places = [(i, t) for t, tied in enumerate(tiers) for i in tied]
    pairs = []
    for n, (i, t) in enumerate(places):
        pairs += [(i, j, u - t) for j, u in places[n + 1 :] if ties or u > t]
    return pairs


def comparisons(row, ties=False):
    """The comparisons of a row of rankings as (better, worse, P(better is better), tiers apart): all pairs of
    a ranking, certain; where an AI labelled, its own pairs with their soft labels; none of a thumb. ties:
    also those of which neither is better, with 0.5."""
    if "pairs" not in row:
        pairs = ranking_to_pairs(row["tiers"], ties)
        return [(i, j, 1.0 if apart else 0.5, apart) for i, j, apart in pairs]
    place = {i: t for t, tied in enumerate(row["tiers"]) for i in tied}
    found = []
    for i, j, p in row["pairs"]:
        better, worse, p = (i, j, p) if p >= 0.5 else (j, i, 1 - p)
        if p != 0.5:
            found.append((better, worse, p, abs(place[i] - place[j])))
        elif ties:
            found.append((better, worse, 0.5, 0))
    return found


def is_thumb(row):
    """Whether a row is a thumb, up or down, for one answer, and no ranking."""
    return "label" in row


def has_pairs(row, ties=False):
    """Whether a row holds something to learn: a thumb, or at least one comparison."""
    return is_thumb(row) or bool(comparisons(row, ties))


def batch_pairs(batch, ties="drop"):
    """Rankings of a batch -> its pairs as four lists: better, worse (indices into all answers of the batch,
    laid end to end), the probability that the better one is better (0.5: a tie), and how much better it is,
    0 to 3 (tiers apart, or what the row says). ties: "drop" or "half"."""
    pairs, start = [], 0
    for row in batch:
        for i, j, p, apart in comparisons(row, ties == "half"):
            strength = float(row.get("margin", min(apart, 3))) if apart else 0.0
            pairs.append((start + i, start + j, p, strength))
        start += len(row["responses"])
    return tuple(map(list, zip(*pairs, strict=True))) if pairs else ([], [], [], [])


def wins_to_tiers(wins):
    """A labeler's (K, K) for one prompt -> tiers, best first, by the share of wins (a tie is half a win)."""
    share = [round(x, 4) for x in wins.nanmean(1).tolist()]  # a sum depends on its order a little
    ranked = [i for i in range(len(share)) if not wins[i].isnan().all()]
    levels = sorted({share[i] for i in ranked}, reverse=True)
    return [[i for i in ranked if share[i] == level] for level in levels]


# ------------------------------------------------------------------------------------------------
# A data folder: four kinds of file, one path for everybody's data
# ------------------------------------------------------------------------------------------------
#   pretrain.txt, pretrain.held_out.txt    plain text
#   sft.jsonl                              {"prompt", "response", "split"}
#   preferences.jsonl, where there is one  {"prompt", "responses", "tiers", "split", "aspect"}, or a "label"
#   prompts.jsonl                          {"prompt", "split", "unsafe"}
# The tiny world writes them (world/tiny.py); from a user's own files they are made once (lab/formats.py).


def load_text(folder):
    """(text to pretrain on, held-out text) of a data folder."""
    return tuple(read_text(Path(folder) / name) for name in ("pretrain.txt", "pretrain.held_out.txt"))


def read_text(path):
    """Text of a file. Raises UserError where there is none (a pipe has no end and is none) or no UTF-8."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, or no plain one; put it back, or take another --run NAME")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged at byte {error.start}, which is no UTF-8 text") from None


def load_rows(path, right=None, needed=False):
    """The rows of a .jsonl file, [] where there is none, unless it is needed; half a last line, of a process
    that died, is no row. right: whether a row is as it must be. Raises UserError with a damaged line."""
    rows, lines = [], read_text(path).split("\n") if needed or path.exists() else []
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict) and (not right or right(row)):
                rows.append(row)
            elif row is not None or n < len(lines):  # else it is half a last line
                raise UserError(f"{path}, line {n}: the row is damaged ({line[:60]!r}); mend or delete the "
                                "line if you wrote it, or else make the file anew")
    return rows


def is_prompt(prompt):
    """Whether it is text or a list of messages."""
    return isinstance(prompt, str) or isinstance(prompt, list) and prompt != [] and all(
        isinstance(m, dict) and m.get("role") in ("user", "assistant") and isinstance(m.get("content"), str)
        for m in prompt)


def is_example(row):
    """Whether a row has a prompt and a split; "response" and "unsafe", where they are, of their type."""
    return (is_prompt(row.get("prompt")) and isinstance(row.get("split"), str)
            and isinstance(row.get("response", ""), str) and isinstance(row.get("unsafe", False), bool))


def load_sft(folder):
    """Demonstrations: rows {"prompt", "response", "split"}."""
    return load_rows(Path(folder) / "sft.jsonl", lambda row: "response" in row and is_example(row), True)


def load_prompts(folder):
    """Prompts to sample answers to: rows {"prompt", "split", "unsafe"}, each prompt once."""
    return load_rows(Path(folder) / "prompts.jsonl", lambda row: "unsafe" in row and is_example(row), True)


def load_preferences(folder):
    """The preferences of a user's file, as rows of rankings or thumbs; [] where there is none."""
    return load_rows(Path(folder) / "preferences.jsonl", is_example)


def split_of(prompt):
    """"train" (85 %), "dev" (5 %) or "test" (10 %), always the same for the same prompt, on every machine."""
    h = int(hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest(), 16) % 100
    return "train" if h < 85 else "dev" if h < 90 else "test"


def hold_out(text):
    """(text to learn from, the last 5 %, held out), cut at a line's end if there is one near."""
    cut = max(text.rfind("\n", 0, int(0.95 * len(text))) + 1, int(0.9 * len(text)))
    return text[:cut], text[cut:]


@functools.cache
def say_once(text):
    """Print a remark on a user's files, but only the first time it comes up."""
    print(text)


def of_split(rows, split, where):
    """The rows of a split. Raises UserError if there is nothing to train on; where nothing is held out, says
    so and takes all rows. where: the file, or what else they come from."""
    if not rows:
        raise UserError(f"{where}: there are no rows, and so nothing to train on or to measure with")
    chosen = [row for row in rows if row["split"] == split]
    if not chosen and split == "train":
        raise UserError(f"{where}: no row is in the split train, so there is nothing to train on")
    if not chosen:
        say_once(f"{where}: no row is in the split {split}; the figures at the end are measured on rows that "
                 "were trained on")
    return chosen or rows


if __name__ == "__main__":
    from lab.cli import run_main
    from lab.show import main

    run_main(main, stopped="")
