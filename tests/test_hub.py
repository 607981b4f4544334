"""GPT-2 folders: weights of every layout against a plain GPT-2 on the numbers of the files, tokenizers
against a plain BPE, exports read back, a download from a server on this machine, and what is refused."""
import hashlib
import json
import re
import struct
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jinja2  # torch brings it
import numpy as np
import pytest
import torch
from conftest import random_gpt, run_line

import data
from data import SPECIAL, UserError, dump_encoding, encode, encode_prompt, load_encoding, make_encoding
from lab import download, hub_tokens
from lab.hub import grow, load_hub_model, read_gpt
from lab.hub_export import export
from lab.hub_tokens import chat_template, gpt2_encoding, letters, read_tokenizer, tokenizer_file
from lab.safetensors import read_tensors, write_tensors
from train_pretrain import PRESETS, init_of

SHAPE = {"vocab_size": 11, "n_positions": 9, "n_embd": 8, "n_layer": 2, "n_head": 2}
CONFIG = {**SHAPE, "model_type": "gpt2", "activation_function": "gelu_new"}
IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 10], [0, 10, 0, 7, 7, 8, 2, 1, 0]]

# ------------------------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------------------------


def hub_weights(vocab_size=11, n_positions=9, n_embd=8, n_layer=2, seed=0, **others):
    """{GPT-2's name: tensor}, Conv1D matrices as (in, out), all large and random."""
    C, sizes = n_embd, {"wte.weight": (vocab_size, n_embd), "wpe.weight": (n_positions, n_embd)}
    for i in range(n_layer):
        sizes |= {f"h.{i}.{name}": size for name, size in {
            "ln_1.weight": (C,), "ln_1.bias": (C,), "attn.c_attn.weight": (C, 3 * C),
            "attn.c_attn.bias": (3 * C,), "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,),
            "ln_2.weight": (C,), "ln_2.bias": (C,), "mlp.c_fc.weight": (C, 4 * C), "mlp.c_fc.bias": (4 * C,),
            "mlp.c_proj.weight": (4 * C, C), "mlp.c_proj.bias": (C,)}.items()}
    sizes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.5 * torch.randn(size, generator=generator) for name, size in sizes.items()}


def plain_gpt2(weights, ids, n_head=2, n_layer=2, head="wte.weight"):
    """Logits of GPT-2 in float64, straight from the numbers of a file (Radford et al. 2019)."""
    w = {name.removeprefix("transformer."): x.double().numpy() for name, x in weights.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    logits = []
    for row in ids:
        x = w["wte.weight"][row] + w["wpe.weight"][: len(row)]
        for i in range(n_layer):
            q, k, v = np.split(conv1d(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, -1)
            heads = []
            for q_, k_, v_ in zip(*(np.split(part, n_head, -1) for part in (q, k, v)), strict=True):
                scores = q_ @ k_.T / np.sqrt(q_.shape[-1])
                scores = np.exp(np.where(np.tri(len(row)) == 1, scores - scores.max(-1, keepdims=True), -1e9))
                heads.append(scores / scores.sum(-1, keepdims=True) @ v_)
            x = x + conv1d(np.concatenate(heads, -1), f"h.{i}.attn.c_proj")
            inner = conv1d(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
            inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            x = x + conv1d(inner, f"h.{i}.mlp.c_proj")
        logits.append(norm(x, "ln_f") @ w[head].T)
    return np.stack(logits)


def save(folder, weights, config=CONFIG, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".bin"):
        torch.save(weights, folder / name, _use_new_zipfile_serialization="old" not in folder.name)
    else:
        with (folder / name).open("wb") as file:
            write_tensors(file, weights)


def save_parts(folder, weights, kind):
    """The weights in two files, and their index."""
    names, where = sorted(weights), {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{kind.partition('.')[0]}-0000{n}-of-00002.{kind.partition('.')[2]}"
        save(folder, {name: weights[name] for name in part}, name=file)
        where |= dict.fromkeys(part, file)
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def prefixed(weights):
    return {f"transformer.{name}": x for name, x in weights.items()}


def with_masks(weights):
    mask = torch.ones(9, 9).tril().bool()[None, None]
    return weights | {f"h.{i}.attn.{name}": x for i in range(2)
                      for name, x in (("bias", mask), ("masked_bias", torch.tensor(-1e4)))}


def differs(folder, weights):
    """How far our logits of a folder are from those of its numbers."""
    model = read_gpt(folder)
    assert not model.training and model.config.dropout == 0
    with torch.no_grad():
        return np.abs(model(torch.tensor(IDS)).numpy() - plain_gpt2(weights, IDS)).max()


LAYOUTS = {
    "plain": save, "bin": partial(save, name="pytorch_model.bin"),
    "old bin": partial(save, name="pytorch_model.bin"),
    "prefixed": lambda folder, weights: save(folder, prefixed(weights)),
    "masks": lambda folder, weights: save(folder, with_masks(weights)),
    "masks in a bin": lambda folder, weights: save(folder, prefixed(with_masks(weights)),
                                                   name="pytorch_model.bin"),
    "tied head": lambda folder, weights: save(
        folder, prefixed(weights) | {"lm_head.weight": weights["wte.weight"]}),
    "parts": partial(save_parts, kind="model.safetensors"),
    "parts of a bin": partial(save_parts, kind="pytorch_model.bin"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_every_layout_give_gpt2s_logits(tmp_path, layout):
    weights = hub_weights()
    LAYOUTS[layout](tmp_path / layout, weights)
    assert differs(tmp_path / layout, weights) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_read(tmp_path, dtype):
    weights = {name: x.to(dtype) for name, x in hub_weights().items()}
    save(tmp_path, weights)
    assert differs(tmp_path, weights) < 1e-4
    save(tmp_path, weights | {"lm_head.weight": weights["wte.weight"]})
    assert differs(tmp_path, weights) < 1e-4


def test_mistakes_that_a_loader_makes_would_show():
    """What the tests above hold against: a square matrix that is not turned, another GELU."""
    weights = hub_weights()
    turned = weights | {"h.0.attn.c_proj.weight": weights["h.0.attn.c_proj.weight"].T}
    right = plain_gpt2(weights, IDS)
    assert np.abs(plain_gpt2(turned, IDS) - right).max() > 0.1
    model = random_gpt(vocab_size=11, block_size=9)
    tanh = model(torch.tensor(IDS))
    with pytest.MonkeyPatch.context() as patch:
        gelu = torch.nn.functional.gelu
        patch.setattr(torch.nn.functional, "gelu", lambda x, approximate: gelu(x))
        assert (model(torch.tensor(IDS)) - tanh).abs().max() > 1e-4


def test_fewer_positions_than_the_weights_have(tmp_path):
    weights = hub_weights()
    save(tmp_path, weights)
    short = read_gpt(tmp_path, block_size=5)
    assert short.config.block_size == 5 and read_gpt(tmp_path, block_size=99).config.block_size == 9
    some = [row[:5] for row in IDS]
    with torch.no_grad():
        found = short(torch.tensor(some)).numpy()
    assert np.abs(found - plain_gpt2(weights, some)).max() < 1e-4


def test_a_head_of_its_own_is_refused(tmp_path):
    weights = hub_weights()
    other = weights["wte.weight"].clone()
    other[3, 2] += 0.01
    save(tmp_path, prefixed(weights) | {"lm_head.weight": other})
    with pytest.raises(UserError, match="lm_head.weight, differs from its embeddings"):
        read_gpt(tmp_path)
    save(tmp_path, weights, CONFIG | {"tie_word_embeddings": False})
    with pytest.raises(UserError, match="untied"):
        read_gpt(tmp_path)


@pytest.mark.parametrize("change, words", [
    ({"model_type": "llama"}, "expected the model_type gpt2, found llama"),
    ({"activation_function": "gelu"}, "activation_function is gelu, and this GPT has gelu_new"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"n_inner": 24}, "n_inner is 24"), ({"n_head": 3}, "no multiple of n_head"),
    ({"n_positions": 0}, "config has n_positions '0'"), ({"n_layer": 3}, "lack h.2"),
    ({"n_layer": 1}, "it holds h.1.ln_1.weight"), ({"n_embd": "8"}, "n_embd"),
    ({"vocab_size": 12}, r"wte.weight has the shape \[11, 8\].*\[12, 8\]"),
])
def test_another_architecture_is_refused_in_one_sentence(tmp_path, change, words):
    save(tmp_path, hub_weights(), CONFIG | change)
    with pytest.raises(UserError, match=words):
        read_gpt(tmp_path)


def test_what_config_json_leaves_out_has_gpt2s_values(tmp_path):
    weights = hub_weights()
    save(tmp_path, weights, {**SHAPE, "model_type": "gpt2"})
    assert differs(tmp_path, weights) < 1e-4
    save(tmp_path, weights, {"model_type": "gpt2", "n_layer": 2})
    with pytest.raises(UserError, match="vocab_size is missing"):
        read_gpt(tmp_path)


def test_wrong_weights_are_refused_in_one_sentence(tmp_path):
    weights = hub_weights()

    def refused(words, others=None, **files):
        save(tmp_path, others or weights)
        for name, content in files.items():
            (tmp_path / name.replace("__", ".")).write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_gpt(tmp_path)

    refused("holds score.weight", weights | {"score.weight": torch.ones(1, 8)})
    refused("lack ln_f.bias", {name: x for name, x in weights.items() if name != "ln_f.bias"})
    refused("h.1.attn.c_attn.weight has the shape",
            weights | {"h.1.attn.c_attn.weight": weights["h.1.attn.c_attn.weight"].T.contiguous()})
    refused("wpe.weight holds what are no numbers", weights | {"wpe.weight": torch.full((9, 8), torch.nan)})
    refused("wpe.weight holds what are no numbers",
            weights | {"wpe.weight": torch.ones(9, 8, dtype=torch.int64)})
    refused("wte.weight is there twice", weights | prefixed(weights))
    refused("config.json is damaged", config__json=b"{")
    refused("expected a JSON object", config__json=b"[1]")
    for name in ("config.json", "model.safetensors"):
        save(tmp_path, weights)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match="no such file|has no weights: expected model.safetensors or"):
            read_gpt(tmp_path)
    save(tmp_path, weights, name="pytorch_model.bin")
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    for content in (whole[:-300], whole[:800] + b"?" + whole[801:], b"", b"PK", b"text"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match="pytorch_model.bin is damaged"):
            read_gpt(tmp_path)


def test_parts_that_are_not_all_there(tmp_path):
    save_parts(tmp_path, hub_weights(), "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="only a part of its weights: model-00002-of-00002.safetensors"):
        read_gpt(tmp_path)
    for names in ({"wte.weight": "../elsewhere"}, {"wte.weight": "/etc/passwd"}, {"a": 3}, {}, []):
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(UserError, match="expected a weight_map"):
            read_gpt(tmp_path)


# ------------------------------------------------------------------------------------------------
# The file format
# ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_as_it_was(tmp_path):
    tensors = {"a": torch.randn(2, 3), "scalar": torch.tensor(1.5), "none": torch.ones(0, 4),
               "turned": torch.arange(6.0).view(2, 3).T, "half": torch.randn(5).half(),
               "brain": torch.randn(3).bfloat16(), "whole": torch.arange(4),
               "mask": torch.tensor([True, False])}
    with (tmp_path / "x").open("wb") as file:
        write_tensors(file, tensors)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in tensors.items())
    raw = (tmp_path / "x").read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0 and header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert np.array_equal(np.frombuffer(raw[8 + length :][:24], "<f4").reshape(2, 3), tensors["a"].numpy())


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("header, body, words", [
    ({"a": GOOD}, b"\0" * 7, "its tensors take 8 bytes and it holds 7"),
    ({"a": GOOD}, b"\0" * 9, "its tensors take 8 bytes and it holds 9"),
    ({"a": GOOD | {"data_offsets": [0, 4]}}, b"\0" * 4, "a does not lie where"),
    ({"a": GOOD | {"data_offsets": [4, 12]}}, b"\0" * 12, "a does not lie where"),
    ({"a": GOOD, "b": GOOD}, b"\0" * 8, "b does not lie where"),
    ({"a": GOOD | {"data_offsets": [-8, 0]}}, b"\0" * 8, "a does not lie where"),
    ({"a": GOOD | {"data_offsets": [0, 10**18], "shape": [10**18 // 4]}}, b"\0" * 8, "its tensors take"),
    ({"a": GOOD | {"shape": [-1, -2]}}, b"\0" * 8, "a has no shape"),
    ({"a": GOOD | {"shape": [2.0]}}, b"\0" * 8, "a has no shape"),
    ({"a": GOOD | {"dtype": "F8_E4M3"}}, b"\0" * 8, "type F8_E4M3, which is not read here"),
    ({"a": GOOD | {"dtype": []}}, b"\0" * 8, "not that of safetensors"),
    ({"a": {"dtype": "F32"}}, b"\0" * 8, "not that of safetensors"),
    ({"a": 3}, b"", "not that of safetensors"), ([], b"", "not that of safetensors"),
    (b'{"a": 1, "a": 2}', b"", "says something twice"),
    (b"\xff\xff", b"", "is damaged"), (b"[" * 100_000, b"", "is damaged"),
])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, header, body, words):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + body)
    with pytest.raises(UserError, match=words):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 100) + b"{}", struct.pack("<Q", 2**63)])
def test_a_file_that_ends_before_its_header(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="ends before its header does"):
        read_tensors(tmp_path / "x")


# ------------------------------------------------------------------------------------------------
# Tokenizers
# ------------------------------------------------------------------------------------------------

MERGES = [("o", "g"), ("Ġ", "d"), ("Ġd", "og"), ("i", "s"), ("Ã", "©"), ("'", "s"), ("1", "2")]
TEXTS = ["A dog is", "the dog's dogs12 is  \n\n is é 狗 'S", "<|user|> dogis", "", " "]
BEFORE = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def small_vocab(special=("<|endoftext|>",)):
    """A vocabulary of the kind of GPT-2's: bytes as letters, merges, special tokens."""
    tokens = [*letters().values(), *(a + b for a, b in MERGES), *special]
    return {token: i for i, token in enumerate(tokens)}


def plain_bpe(text, vocab, merges, pattern):
    """Ids of a text by the merges of a file, each carried out wherever it is found, first ones first."""
    ids, of = [], {chr(i): i for i in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    of |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in set(of.values()))}
    letter = {b: name for name, b in of.items()}
    for word in re.findall(pattern, text):
        parts = [letter[b] for b in word.encode()]
        for a, b in merges:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (a, b):
                    parts[i : i + 2] = [a + b]
                i += 1
        ids += [vocab[part] for part in parts]
    return ids


IN_RE = r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+"  # GPT-2's pattern, for these texts


def save_two(folder, vocab=None, merges=MERGES):
    (folder / "vocab.json").write_text(json.dumps(small_vocab() if vocab is None else vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def one_file(vocab=None, merges=MERGES, added=(), **others):
    vocab = vocab or small_vocab()
    return {"added_tokens": list(added), "normalizer": None, "pre_tokenizer": BEFORE,
            "model": {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]}, **others}


@pytest.mark.parametrize("kind", ["two files", "one file", "one file, pairs"])
def test_a_folders_tokenizer_is_read(tmp_path, kind):
    if kind == "two files":
        save_two(tmp_path)
    else:
        about = one_file(added=[{"id": 263, "content": "<|endoftext|>"}])
        if "pairs" in kind:
            about["model"]["merges"] = [list(pair) for pair in MERGES]
        (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    enc, known = read_tokenizer(tmp_path)
    assert known == 1 and enc.eot_token == 263 and enc.n_vocab == 267
    assert [data.special_id(enc, name) for name in ("pad", "user", "assistant")] == [264, 265, 266]
    for text in TEXTS:
        assert encode(enc, text) == plain_bpe(text, small_vocab(), MERGES, IN_RE), text
        assert data.decode_response(enc, [*encode(enc, text), 263]) == text.strip()
    (tmp_path / "kept.json").write_text(dump_encoding(enc))
    again = load_encoding(tmp_path / "kept.json")
    assert all(encode(again, text) == encode(enc, text) for text in TEXTS)
    assert encode(again, "dog's") != encode(make_encoding(ranks_of(enc)), "dog's"), "the pattern is kept"


def ranks_of(enc):
    return {enc.decode_single_token_bytes(i): i for i in range(enc.n_vocab - len(SPECIAL))}


def test_an_unknown_pattern_is_not_loaded(tmp_path, enc):
    content = json.loads(dump_encoding(enc))
    assert "pattern" not in content, "ours stays as it was"
    for pattern in (r"\w+", 3, None):
        (tmp_path / "x.json").write_text(json.dumps(content | {"pattern": pattern}))
        with pytest.raises(ValueError, match="not one of our patterns"):
            load_encoding(tmp_path / "x.json")


SPLIT = {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}


@pytest.mark.parametrize("change, words", [
    ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts text in another way"),
    ({"pre_tokenizer": SPLIT}, "cuts text in another way"),
    ({"pre_tokenizer": BEFORE | {"add_prefix_space": True}}, "cuts text in another way"),
    ({"pre_tokenizer": None}, "damaged"), ({"normalizer": {"type": "NFC"}}, "cuts text in another way"),
    ({"model": {"type": "Unigram", "vocab": {}, "merges": []}}, "cuts text"), ({"model": {}}, "damaged"),
    ({"added_tokens": [{"id": 264, "content": "<|im_end|>"}]}, "special tokens <|endoftext|>, <|im_end|>"),
    ({"added_tokens": [{"id": 270, "content": "<|pad|>"}]}, "behind all others"),
])
def test_another_kind_of_tokenizer_is_refused(tmp_path, change, words):
    (tmp_path / "tokenizer.json").write_text(json.dumps(one_file() | change))
    with pytest.raises(UserError, match=re.escape(words)):
        read_tokenizer(tmp_path)


def test_a_vocabulary_that_does_not_fit_its_merges(tmp_path):
    ids = small_vocab()
    turned = ids | {"og": ids["Ġd"], "Ġd": ids["og"]}
    for vocab, merges, words in (
            (turned, MERGES, "not in the order of its merges"), (ids, MERGES[1:], "not in the order"),
            ({k: v for k, v in ids.items() if k != "!"}, MERGES, "damaged"), (ids, [("x", "y")], "damaged"),
            (ids | {"dogged": 264}, MERGES, "special tokens")):
        save_two(tmp_path, vocab, merges)
        with pytest.raises(UserError, match=words):
            read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[")
    with pytest.raises(UserError, match="damaged"):
        read_tokenizer(tmp_path)


def test_weights_and_tokenizer_must_have_one_vocabulary(tmp_path):
    save_two(tmp_path)
    save(tmp_path, hub_weights(vocab_size=265), CONFIG | {"vocab_size": 265})
    with pytest.raises(UserError, match="weights know 265 tokens and its tokenizer 264"):
        load_hub_model(tmp_path)
    weights = hub_weights(vocab_size=264)
    save(tmp_path, weights, CONFIG | {"vocab_size": 264})
    model, enc = load_hub_model(tmp_path, block_size=6, dropout=0.25)
    assert model.config.vocab_size == enc.n_vocab == 267 and model.config.block_size == 6
    assert model.config.dropout == 0.25 and not model.training


def test_new_tokens_leave_the_others_as_they_are():
    model = random_gpt(vocab_size=50, n_embd=32)
    bigger = grow(model, 53)
    ids, old = torch.randint(50, (2, 9)), model.wte.weight
    assert torch.equal(bigger.wte.weight[:50], old) and bigger.lm_head.weight is bigger.wte.weight
    torch.testing.assert_close(bigger(ids)[..., :50], model(ids))
    new = bigger.wte.weight[50:]
    assert (new - old.mean(0)).abs().max() < 0.1 * old.std() and torch.pdist(new).min() > 0
    assert grow(model, 50) is model


def test_our_tokenizer_as_a_file_gives_the_same_ids(tmp_path, enc):
    about = json.loads(json.dumps(tokenizer_file(enc)))
    merges = [tuple(pair) for pair in about["model"]["merges"]]
    for text in ("A dog is a furry mammal.", "man's best friend dogs 12 é 狗", *TEXTS):
        assert plain_bpe(text, about["model"]["vocab"], merges, data.PATTERN) == encode(enc, text), text
    assert {t["content"]: t["id"] for t in about["added_tokens"]} == enc._special_tokens
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    again, known = read_tokenizer(tmp_path)
    assert known == 4 and dump_encoding(again) == dump_encoding(enc)


def test_the_chat_template_is_ours(enc):
    render = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template()).render
    user, assistant = ({"role": role, "content": f"{role[0]} dog\n"} for role in ("user", "assistant"))
    for chat in ([user], [user, assistant, user], [user, user | {"content": " A dog  "}]):
        text = render(messages=chat, add_generation_prompt=True)
        assert enc.encode(text, allowed_special="all") == encode_prompt(enc, chat)
    assert render(messages=[user, assistant]) == "<|user|>u dog\n<|assistant|> a dog\n<|endoftext|>"


# ------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------


def speaker_of(model, enc, **checkpoint):
    return SimpleNamespace(path=Path("runs/tiny/x.pt"), model=model, enc=enc,
                           checkpoint={"stage": "sft", **checkpoint})


def test_an_export_is_read_back_as_it_was(tmp_path, enc):
    model = random_gpt(vocab_size=enc.n_vocab, value_head=True)
    said = export(speaker_of(model, enc, critic={}), tmp_path / "new" / "folder")
    assert "critic" in said and "language model" in said
    again, its_enc = load_hub_model(tmp_path / "new" / "folder")
    assert dump_encoding(its_enc) == dump_encoding(enc)
    old = {name: x for name, x in model.state_dict().items() if not name.startswith("value_head")}
    assert again.state_dict().keys() == old.keys()
    assert all(torch.equal(x, old[name]) for name, x in again.state_dict().items())
    ids = [[5, 1, 200, 33], [7, 7, 0, 299]]
    stored = read_tensors(tmp_path / "new/folder/model.safetensors")
    assert all(name.startswith("transformer.") for name in stored)
    with torch.no_grad():
        assert np.abs(plain_gpt2(stored, ids) - model(torch.tensor(ids)).numpy()).max() < 1e-3
    about = json.loads((tmp_path / "new/folder/config.json").read_text())
    assert about["architectures"] == ["GPT2LMHeadModel"] and about["eos_token_id"] == enc.eot_token
    assert about["pad_token_id"] == enc.eot_token + 1 and about["n_positions"] == 24
    assert about["activation_function"] == "gelu_new" and about["tie_word_embeddings"] is True
    settings = json.loads((tmp_path / "new/folder/tokenizer_config.json").read_text())
    assert settings["pad_token"] == "<|pad|>" and settings["eos_token"] == "<|endoftext|>"
    assert settings["chat_template"] == chat_template() and settings["model_max_length"] == 24


def test_a_reward_models_export_gives_its_scores(tmp_path, enc):
    """Gain and constants lie in a head without bias and the last layer norm."""
    model = random_gpt(vocab_size=enc.n_vocab, reward_head=True)
    model.set_scale(1.7, -0.9)
    assert "reward model" in export(speaker_of(model, enc), tmp_path)
    stored = read_tensors(tmp_path / "model.safetensors")
    ids = [[5, 1, 200, 33], [7, 7, 0, 299]]
    stored["head"] = stored.pop("score.weight")
    with torch.no_grad():
        expected = model.score(torch.tensor(ids), torch.tensor([4, 4])).numpy()
    assert np.abs(plain_gpt2(stored, ids, head="head")[:, -1, 0] - expected).max() < 1e-4
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["architectures"] == ["GPT2ForSequenceClassification"] and len(about["id2label"]) == 1
    assert "constant" in (tmp_path / "README.md").read_text()
    model.set_scale(0.0, 1.0)
    with pytest.raises(UserError, match="same score"):
        export(speaker_of(model, enc), tmp_path / "other")


def test_nothing_is_overwritten(tmp_path, enc):
    speaker = speaker_of(random_gpt(vocab_size=enc.n_vocab), enc)
    (tmp_path / "notes.txt").write_text("mine")
    for there in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="there is something already"):
            export(speaker, there)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# ------------------------------------------------------------------------------------------------
# GPT-2's public files
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server of files on this machine that stands for the public one; `asked` are the paths it was asked
    for. Nothing is cached yet."""
    folder = tmp_path / "public" / "openai-community" / "gpt2" / "resolve" / "main"
    folder.mkdir(parents=True)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = partial(Handler, directory=str(tmp_path / "public"))
    there = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=there.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{there.server_address[1]}/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    save(folder, hub_weights(vocab_size=264), CONFIG | {"vocab_size": 264})
    save_two(folder)
    right = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
             for name in ("model.safetensors", "vocab.json", "merges.txt")}
    monkeypatch.setattr(download, "FILES", {"config.json": None, **right})
    monkeypatch.setattr(hub_tokens, "FILES", download.FILES)
    yield SimpleNamespace(folder=folder, asked=asked, cache=tmp_path / "torch/hub/checkpoints/gpt2")
    there.shutdown()
    there.server_close()


def test_public_weights_are_fetched_once(hub, capsys):
    cfg = SimpleNamespace(init="", config="gpt2")
    for _ in range(2):
        assert init_of(cfg, Path("runs/x")) == hub.cache
        model, enc = load_hub_model(hub.cache)
    names = [path.rpartition("/")[2] for path in hub.asked]
    assert names == ["config.json", "model.safetensors", "vocab.json", "merges.txt"]
    assert model.config.vocab_size == enc.n_vocab == 267
    assert dump_encoding(gpt2_encoding()) == dump_encoding(enc)


def test_a_download_that_is_not_what_it_should_be_is_not_kept(hub):
    with (hub.folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="model.safetensors of GPT-2 cannot be fetched.*--init FOLDER"):
        init_of(SimpleNamespace(init="", config="gpt2"), Path("runs/x"))
    assert [path.name for path in hub.cache.iterdir()] == ["config.json"]
    (hub.folder / "vocab.json").unlink()
    with pytest.raises(UserError, match="404"):
        gpt2_encoding()


def test_without_a_network_it_is_told_in_seconds(hub, monkeypatch):
    began = time.time()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(UserError, match="config.json of GPT-2 cannot be fetched from http://127.0.0.1:9"):
        init_of(SimpleNamespace(init="", config="gpt2"), Path("runs/x"))
    for wrong in ("nonsense", "http://"):
        monkeypatch.setenv("HF_ENDPOINT", wrong)
        with pytest.raises(UserError, match="cannot be fetched"):
            gpt2_encoding()
    assert time.time() - began < 5


def test_a_silent_server_is_not_waited_for(hub, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(download, "SECONDS", 0.2)
        with pytest.raises(UserError, match="cannot be fetched.*timed out"):
            download.fetch("config.json")
    assert socket.getdefaulttimeout() is None and not any(hub.cache.iterdir())


def test_tiktokens_cache_is_looked_at_first(hub, tmp_path):
    cache = tmp_path / "tiktoken"
    cache.mkdir()
    for name, address in hub_tokens.TWO.items():
        content = (hub.folder / name).read_bytes()
        (cache / hashlib.sha1(address.encode()).hexdigest()).write_bytes(content)
    gpt2_encoding()
    assert not hub.asked
    broken = next(cache.iterdir())
    broken.write_bytes(b"damaged")
    gpt2_encoding()
    assert len(hub.asked) == 1 and broken.read_bytes() == b"damaged", "what is tiktoken's is left alone"


def test_the_addresses_are_those_of_tiktoken(monkeypatch):
    """The files that tiktoken itself would ask for, under the names that its cache gives them."""
    import tiktoken_ext.openai_public as public

    asked = {}
    monkeypatch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda **files: asked.update(files))
    public.gpt2()
    assert asked["encoder_json_file"] == hub_tokens.TWO["vocab.json"]
    assert asked["vocab_bpe_file"] == hub_tokens.TWO["merges.txt"]
    assert asked["encoder_json_hash"] == download.FILES["vocab.json"]
    assert asked["vocab_bpe_hash"] == download.FILES["merges.txt"]


# ------------------------------------------------------------------------------------------------
# As commands
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty place to run commands in, with GPT-2's kind of folder and a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    text = "A dog is a furry mammal. The dog's best friend is. " * 40
    (tmp_path / "mine" / "pretrain.txt").write_text(text)
    shape = {"vocab_size": 264, "n_positions": 32}
    save(tmp_path / "hub", hub_weights(**shape), CONFIG | shape)
    save_two(tmp_path / "hub")
    monkeypatch.setattr("lab.run.picture", lambda file, *rest: file.write(b"no picture"))
    return lambda line: run_line(monkeypatch, line.split())


def flat(text):
    return " ".join(str(text).split())


def test_a_training_goes_on_from_a_folder_and_comes_back_as_one(here, tmp_path):
    base = "train_pretrain.py --config gpt2 --data mine --init hub"
    code, out = here(f"{base} --steps 2 --block_size 16 --batch_size 2 --eval_every 1")
    assert code == 0 and "pretrain, from hub: 2 blocks" in flat(out) and "16 tokens of context" in flat(out)
    assert "of the 32 positions of hub the first 16 are kept (--block_size)" in flat(out)
    assert here(f"{base} --run whole --steps 0 --block_size 32")[0] == 0
    code, out = here("model.py runs/whole/pretrain.pt --export back")
    assert code == 0 and "transformers loads it" in flat(out)
    taken, back = (read_tensors(tmp_path / name / "model.safetensors") for name in ("hub", "back"))
    wte = back.pop("transformer.wte.weight")
    assert torch.equal(wte[:264], taken.pop("wte.weight")) and len(wte) == 267
    assert all(torch.equal(back[f"transformer.{name}"], x) for name, x in taken.items()), "as it is"
    code, out = here("train_pretrain.py --config small --data mine --init back --run again --steps 0")
    assert code == 0 and "32 tokens of context" in flat(out)
    for run in ("again", "whole"):
        kept = json.loads((tmp_path / "runs" / run / "tokenizer.json").read_text())
        assert kept["pattern"] == data.PATTERN_OF_GPT2 and len(kept["tokens"]) == 263


@pytest.mark.parametrize("init, words", [
    ("gpt2", "--init gpt2: there is no such file or folder; expected a checkpoint such as "
     "runs/tiny/pretrain.pt, or a folder with config.json and model.safetensors"),
    ("mine", "--init mine: a folder with pretrain.txt; expected a checkpoint"),
    ("hub/model.safetensors", "name the folder that this file lies in"),
    ("mine/pretrain.txt", "not a checkpoint of this project"),
])
def test_what_init_does_not_take(here, init, words):
    code, _ = here(f"train_pretrain.py --data mine --init {init}")
    assert words in str(code)


def test_a_model_as_it_is_needs_a_model(here):
    assert "name it with --init" in str(here("train_pretrain.py --steps 0")[0])


@pytest.mark.parametrize("flags", ["--prompt x", "--against b.pt", "--response x"])
def test_an_export_is_of_one_model_and_nothing_else(here, flags):
    assert "--export writes one model" in str(here(f"model.py a.pt --export out {flags}")[0])
    assert "--export writes one model" in str(here("model.py a.pt b.pt --export out")[0])


def test_gpt2_is_on_a_users_text_and_its_missing_parents_are_trained(here, monkeypatch):
    assert "--data FOLDER" in str(here("train_ppo.py --config gpt2")[0])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", "torch")
    code, out = here("train_sft.py --config gpt2 --data mine")
    assert "no demonstrations" in str(code)
    with open("mine/sft.jsonl", "w") as file:
        file.write('{"prompt": "What is a dog?", "response": "A mammal.", "split": "train"}\n')
    code, out = here("train_sft.py --config gpt2 --data mine --run other")
    assert "python train_pretrain.py --config gpt2 --run other --data mine" in flat(out)
    assert "cannot be fetched" in str(code) and "told by what comes first" in str(code)
    assert set(PRESETS) == {"tiny", "smoke", "small", "gpt2"}
