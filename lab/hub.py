"""GPT-2 folders as Hugging Face's transformers writes and reads them: into our GPT, and back.

Such a folder has config.json, the weights in model.safetensors or pytorch_model.bin, either also in several
files with an index, and a tokenizer (lab/hub_tokens.py). Our names are GPT-2's; what differs: its layers are
"Conv1D", whose matrices lie the other way round, some files say "transformer." before each name, and old
ones hold the causal mask as well.
"""
import json
import re

import torch

from data import SPECIAL, UserError, read_text
from lab.checks import shapes_of, stored_whole, wrong_shape
from lab.hub_tokens import read_tokenizer
from lab.safetensors import read_tensors
from lab.terminal import wrapped
from model import GPT, GPTConfig

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
           "pytorch_model.bin.index.json")
TURNED = re.compile(r"h\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc)\.weight")  # stored (in, out), ours (out, in)
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers of old files, no weights
# What a config.json may say beside its sizes; left out it means the first of the values.
FIXED = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
         "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
         "add_cross_attention": (False,), "quantization_config": (None,)}


def is_hub_folder(path):
    """Whether it looks like one, whole or not."""
    return path.is_dir() and any((path / name).exists() for name in ("config.json", *WEIGHTS))


def load_hub_model(folder, block_size=None, dropout=0.0):
    """(GPT in eval mode, its tiktoken.Encoding) of a folder. Raises UserError for one that is damaged, of
    another architecture, or whose tokenizer is not that of its weights.

    block_size: of its positions only so many, from the first on; None: all.
    Our special tokens that it lacks get ids behind the others (grow)."""
    model = read_gpt(folder, block_size, dropout)
    enc, known = read_tokenizer(folder)
    rows, own = model.config.vocab_size, enc.n_vocab - len(SPECIAL) + known
    if rows != own:
        raise UserError(f"{folder}: its weights know {rows} tokens and its tokenizer {own}, so they do not "
                        "belong together")
    return grow(model, enc.n_vocab), enc


def read_gpt(folder, block_size=None, dropout=0.0):
    """The same without a tokenizer: a GPT with the vocabulary of the weights."""
    about = read_json(folder / "config.json")
    shape, weights = shape_of(about, folder / "config.json"), read_weights(folder)
    expected = shapes_of(tuple(vars(GPTConfig(**shape)).values()))
    tied = weights.pop("lm_head.weight", None)
    check_weights(folder, weights, {name: x for name, x in expected.items() if name != "lm_head.weight"})
    own = tied is None and about.get("tie_word_embeddings") is False
    if own or tied is not None and not torch.equal(tied.float(), weights["wte.weight"].float()):
        raise UserError(f"{folder}: its output head, lm_head.weight, differs from its embeddings, "
                        "wte.weight (untied); here both are one matrix, so this model cannot be read")
    if block_size and block_size < shape["block_size"]:
        print(wrapped(f"of the {shape['block_size']} positions of {folder} the first {block_size} are kept "
                      "(--block_size)"))
        shape["block_size"] = block_size
        weights["wpe.weight"] = weights["wpe.weight"][:block_size]
    model = GPT(GPTConfig(**{**shape, "dropout": dropout})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # tied weights are one parameter, wte.weight
            p.copy_(weights[name].T if TURNED.fullmatch(name) else weights[name])
    return model


def shape_of(about, path):
    """The content of a config.json -> the values of a GPTConfig, a dict. Raises UserError for another
    architecture. path: of the file."""
    if about.get("model_type") != "gpt2":
        raise UserError(f"{path}: expected the model_type gpt2, found "
                        f"{str(about.get('model_type', 'none'))[:40]}")
    for key, allowed in FIXED.items():
        if about.get(key, allowed[0]) not in allowed:
            raise UserError(f"{path}: {key} is {str(about[key])[:40]}, and this GPT has "
                            f"{' or '.join(map(str, allowed))}")
    names = {"vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer",
             "n_head": "n_head", "n_embd": "n_embd"}
    if missing := [name for name in names.values() if name not in about]:
        raise UserError(f"{path}: {missing[0]} is missing")
    shape = vars(GPTConfig(**{ours: about[theirs] for ours, theirs in names.items()}))
    if wrong := wrong_shape(shape):
        raise UserError(f"{path}: {wrong}".replace("model_config has block_size", "config has n_positions"))
    if about.get("n_inner") not in (None, 4 * shape["n_embd"]):
        raise UserError(f"{path}: n_inner is {about['n_inner']}, and this GPT has four times n_embd")
    return shape


def read_json(path):
    """A JSON object of a folder. Raises UserError where there is none."""
    try:
        found = json.loads(read_text(path)) if path.is_file() else None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is no JSON; copy or download it again") from None
    if found is None:
        raise UserError(f"{path}: there is no such file; a GPT-2 folder has config.json and "
                        "model.safetensors (or pytorch_model.bin)")
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: expected a JSON object; copy or download it again")
    return found


def read_weights(folder):
    """{our name: tensor as it is stored} of all files with weights, without masks."""
    there = [name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        raise UserError(f"{folder} has no weights: expected {' or '.join(WEIGHTS[::2])}")
    files = [there[0]]
    if there[0].endswith(".index.json"):
        files = shards_of(folder / there[0])
    found = {}
    for name in files:
        read = read_tensors if name.endswith(".safetensors") else read_pickle
        for key, x in read(folder / name).items():
            key = key.removeprefix("transformer.")
            if MASK.fullmatch(key):
                continue
            if key in found:
                raise UserError(f"{folder / name}: {key} is there twice")
            found[key] = x
    return found


def shards_of(path):
    """Names of the files that an index tells of, each of them there."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(
            isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names.values()):
        raise UserError(f"{path} is damaged: expected a weight_map of names of files in this folder")
    names = sorted(set(names.values()))
    if gone := [name for name in names if not (path.parent / name).is_file()]:
        raise UserError(f"{path.parent} has only a part of its weights: {gone[0]} is missing")
    return names


def read_pickle(path):
    """{name: tensor} of a pytorch_model.bin, in which only tensors are read."""
    try:
        with path.open("rb") as file:
            packed, found = file.read(2) == b"PK", None
            if not packed or stored_whole(file):
                found = torch.load(path, map_location="cpu", weights_only=True)
        whole = isinstance(found, dict) and all(isinstance(key, str) for key in found)
        whole = whole and all(isinstance(x, torch.Tensor) for x in found.values())
    except Exception:  # what is something else may fail in any way where it is read as weights
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged, or no file of weights: copy or download it again")
    return found


def check_weights(folder, weights, expected):
    """Raises UserError where weights are missing, too many, of another shape or no numbers."""
    if others := [name for name in weights if name not in expected]:
        raise UserError(f"{folder}: it holds {others[0][:60]}, which a GPT-2 language model does not have")
    if missing := [name for name in expected if name not in weights]:
        raise UserError(f"{folder}: its weights lack {missing[0]}")
    for name, size in expected.items():
        x, size = weights[name], tuple(size)[::-1] if TURNED.fullmatch(name) else tuple(size)
        if tuple(x.shape) != size:
            raise UserError(f"{folder}: {name} has the shape {list(x.shape)}, and its config.json asks for "
                            f"{list(size)}")
        if not x.is_floating_point() or not x.isfinite().all():
            raise UserError(f"{folder}: {name} holds what are no numbers")


@torch.no_grad()
def grow(model, vocab_size, noise=0.01):
    """A model with rows for more tokens behind those that it has: at the mean of the others, so that an
    untrained token is an unlikely one, with a little noise, so that no two are alike."""
    old = model.wte.weight
    more = vocab_size - len(old)
    if not more:
        return model
    bigger = GPT(GPTConfig(**{**vars(model.config), "vocab_size": vocab_size})).eval()
    bigger.wpe, bigger.h, bigger.ln_f = model.wpe, model.h, model.ln_f
    new = old.mean(0) + noise * old.std() * torch.randn(more, old.shape[1])
    bigger.wte.weight.copy_(torch.cat([old, new]))
    return bigger
