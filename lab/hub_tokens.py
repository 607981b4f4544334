"""Tokenizers of GPT-2 folders: byte-level BPE, as tokenizer.json or as vocab.json and merges.txt.

Their files write each of the 256 bytes as a letter of its own (letters), a space as Ġ. A tokenizer.json also
says how text is cut into words before it is merged; here that is our PATTERN or GPT-2's.
"""
import hashlib
import json
import os
import tempfile
from pathlib import Path

from data import PATTERN, PATTERN_OF_GPT2, SPECIAL, UserError, make_encoding, read_text
from lab import parallel
from lab.download import FILES, fetch

# The two files of GPT-2's tokenizer, and the addresses under which tiktoken keeps them.
TIKTOKEN = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
TWO = {"vocab.json": TIKTOKEN + "encoder.json", "merges.txt": TIKTOKEN + "vocab.bpe"}


def letters():
    """{byte: the letter that stands for it}: printable ones for themselves, the others from Ā on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTE = {letter: bytes([b]) for b, letter in letters().items()}


def in_letters(token):
    """b" dog" -> "Ġdog"."""
    of = letters()
    return "".join(of[b] for b in token)


# ------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------


def read_tokenizer(folder):
    """(tiktoken.Encoding with our four special tokens, how many of these the folder knows by itself). Where a
    folder has no tokenizer it is GPT-2's, if that is at hand. Raises UserError for one that is damaged, that
    cuts text in another way or has other special tokens, or where there is none."""
    one, two = folder / "tokenizer.json", [folder / name for name in TWO]
    if one.is_file():
        vocab, merges, pattern = read_one(one)
    elif all(path.is_file() for path in two):
        vocab, merges, pattern = read_two(folder, *(path.read_bytes() for path in two))
    else:
        vocab, merges, pattern = read_two(folder, *map(gpt2_file, TWO))
    return encoding(folder, vocab, merges, pattern)


def read_one(path):
    """({token in letters: id}, [(left, right)], pattern) of a tokenizer.json."""
    try:
        about = json.loads(read_text(path))
        model, vocab = about["model"], dict(about["model"]["vocab"])
        vocab |= {added["content"]: added["id"] for added in about.get("added_tokens") or ()}
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        pattern = pattern_of(about["pre_tokenizer"])
        plain = model["type"] == "BPE" and not about.get("normalizer") and not model.get("dropout")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(path) from None
    if pattern is None or not plain:
        raise UserError(f"{path}: it cuts text in another way than GPT-2's tokenizer or ours, and only "
                        "these two are read")
    return vocab, merges, pattern


def pattern_of(step):
    """The pattern by which a "pre_tokenizer" cuts text, or None for one that we do not have."""
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    if steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if len(steps) == 1 and steps[0].get("use_regex", True):
        return PATTERN_OF_GPT2
    if len(steps) == 2 and steps[0]["type"] == "Split" and not steps[1].get("use_regex", True):
        found = steps[0]["pattern"].get("Regex")
        alone = steps[0]["behavior"] == "Isolated" and not steps[0].get("invert")
        return found if alone and found in (PATTERN, PATTERN_OF_GPT2) else None
    return None


def read_two(folder, vocab, merges):
    """The same of the contents of vocab.json and merges.txt."""
    try:
        vocab = dict(json.loads(vocab.decode()))
        lines = merges.decode().splitlines()
        lines = lines[1:] if lines[:1] and lines[0].startswith("#version") else lines
        merges = [tuple(line.split(" ")) for line in lines if line]
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise damaged(folder / "vocab.json or merges.txt") from None
    return vocab, merges, PATTERN_OF_GPT2


def encoding(folder, vocab, merges, pattern):
    """What read_tokenizer returns. Bytes and merged tokens have the first ids in the order of the merges, for
    there tiktoken reads which merge comes first; what is left of the vocabulary is special."""
    try:
        merged = dict.fromkeys(left + right for left, right in merges)
        order = [vocab[token] for token in merged]
        ids = {vocab[letter] for letter in BYTE} | set(order)
        right = order == sorted(order) and ids == set(range(len(BYTE) + len(merged)))
        ranks = {b"".join(BYTE[letter] for letter in token): vocab[token] for token in (*BYTE, *merged)}
    except (ValueError, KeyError, TypeError):
        raise damaged(folder) from None
    if not right or len(ranks) < len(ids):
        raise UserError(f"{folder}: the ids of its tokenizer are not in the order of its merges, by which "
                        "it is read here")
    others = {i: token for token, i in vocab.items() if token not in BYTE and token not in merged}
    special = [others[i] for i in sorted(others)]
    expected = dict(enumerate(SPECIAL[: len(special)], len(ranks)))
    if others != expected:
        raise UserError(f"{folder}: its tokenizer has the special tokens {', '.join(special)[:80]}; "
                        f"expected {SPECIAL[0]} alone, or {', '.join(SPECIAL)}, behind all others")
    return make_encoding(dict(sorted(ranks.items(), key=lambda item: item[1])), pattern), len(special)


def damaged(path):
    return UserError(f"{path}: the tokenizer is damaged; copy or download it again")


def gpt2_encoding():
    """GPT-2's own tokenizer with our special tokens. Raises UserError where it is not at hand."""
    return encoding("GPT-2", *read_two("GPT-2", *map(gpt2_file, TWO)))[0]


def gpt2_file(name):
    """The content of GPT-2's own vocab.json or merges.txt: from tiktoken's cache, or fetched. (tiktoken
    itself would wait for its server without end, and delete a file of the cache that is damaged.)"""
    path = tiktoken_cache() / hashlib.sha1(TWO[name].encode()).hexdigest()
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() == FILES[name]:
        return content
    parallel.first_then_others(fetch, name)
    return fetch(name).read_bytes()


def tiktoken_cache():
    """The folder where tiktoken keeps what it has fetched."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return Path(os.environ[name])
    return Path(tempfile.gettempdir()) / "data-gym-cache"


# ------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------


def tokenizer_file(enc):
    """A tiktoken.Encoding of ours -> the content of a tokenizer.json.

    tiktoken merges any two neighbours that make a token, so all ways to cut a token in two are merges."""
    ranks = {enc.decode_single_token_bytes(i): i for i in range(enc.n_vocab - len(SPECIAL))}
    named = {token: in_letters(token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
        cuts = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        merges += [[named[part] for part in cut] for cut in sorted(cuts, key=lambda c: [ranks[x] for x in c])]
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": len(ranks) + i, "content": name, **usual} for i, name in enumerate(SPECIAL)]
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": enc._pat_str}, "behavior": "Isolated", "invert": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, in_bytes]},
            "post_processor": None, "decoder": in_bytes,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": True, "vocab": {named[token]: i for token, i in ranks.items()},
                      "merges": merges}}


def chat_template():
    """encode_prompt and encode_response of data.py in the language of chat templates: an answer has a space
    before it and its end behind it."""
    eos, _, user, assistant = SPECIAL
    return ("{%- for m in messages -%}"
            "{%- if m['role'] == 'user' -%}{{ '" + user + "' + m['content'] }}"
            "{%- elif m['role'] == 'assistant' -%}"
            "{{ '" + assistant + " ' + m['content'] + '" + eos + "' }}"
            "{%- else -%}{{ raise_exception('roles are user and assistant') }}{%- endif -%}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ '" + assistant + "' }}{%- endif -%}")


def tokenizer_config(block_size):
    """The content of tokenizer_config.json."""
    eos, pad, *roles = SPECIAL
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": eos, "eos_token": eos,
            "pad_token": pad, "unk_token": eos, "additional_special_tokens": roles,
            "model_max_length": block_size, "clean_up_tokenization_spaces": False,
            "padding_side": "right", "chat_template": chat_template()}
