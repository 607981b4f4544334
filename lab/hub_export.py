"""A checkpoint of ours as a folder that transformers loads: model.py CHECKPOINT --export FOLDER."""
import json

import torch

from data import UserError, special_id
from lab.hub import TURNED
from lab.hub_tokens import tokenizer_config, tokenizer_file
from lab.records import write_atomic
from lab.safetensors import write_tensors

ABOUT = """# {name}, a {kind}

Exported from a checkpoint of the stage {stage}. It loads with transformers:

```python
from transformers import AutoTokenizer, {architecture}
model = {architecture}.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
ids = tokenizer.apply_chat_template([{{"role": "user", "content": "What is a dog?"}}],
                                    add_generation_prompt={generates}, return_tensors="pt")
```

- Prompts are `<|user|>` and the text, then `<|assistant|>`. An answer has a space in front, which the chat
  template adds, and `<|endoftext|>` behind it. Padding is `<|pad|>`, on the right.
- This tokenizer reads `<|user|>` and the like inside a text as special tokens; in the checkpoint's own
  scripts they are ordinary characters.
{more}"""
SCORE = """- The score is of a whole dialogue that ends with `<|endoftext|>`, in log-odds; 0 is the mean of
  the demonstrations. transformers' head has no bias, so the score's constant lies in the bias of the last
  layer norm (`ln_f`), which only the head reads: scores are the same, hidden states are not.
"""


def export(speaker, folder):
    """Write a language model or a reward model, a lab.talk.Speaker, into a new or empty folder, and return a
    sentence about it. Raises UserError where there is something in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export {folder}: there is something already, and it is not overwritten; name a "
                        "new folder")
    folder.mkdir(parents=True, exist_ok=True)
    model, checkpoint = speaker.model, speaker.checkpoint
    scores, about = model.config.reward_head, config_of(model, speaker.enc)
    kind = "reward model" if scores else "language model"
    readme = ABOUT.format(name=speaker.path.stem, kind=kind, stage=checkpoint["stage"],
                          more=SCORE if scores else "",
                          architecture=about["architectures"][0], generates=not scores)
    write_json(folder / "config.json", about)
    write_json(folder / "tokenizer.json", tokenizer_file(speaker.enc))
    write_json(folder / "tokenizer_config.json", tokenizer_config(model.config.block_size))
    write_atomic(folder / "README.md", readme)
    if not scores:
        ends = {key: about[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(folder / "generation_config.json", {**ends, "do_sample": True})
    tensors = weights_of(model)  # last: where they are, all is there
    write_atomic(folder / "model.safetensors", lambda file: write_tensors(file, tensors))
    critic = model.config.value_head or "critic" in checkpoint
    left = "; the critic, which only PPO needs, is left out" if critic else ""
    return (f"{speaker.path} is in {folder} as a {kind}, with its tokenizer{left}. Its README.md says how "
            "transformers loads it.")


def write_json(path, content):
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def config_of(model, enc):
    """The content of config.json."""
    shape, eos = model.config, enc.eot_token
    about = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": shape.vocab_size,
             "n_positions": shape.block_size, "n_layer": shape.n_layer, "n_head": shape.n_head,
             "n_embd": shape.n_embd, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
             "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": eos, "eos_token_id": eos,
             "pad_token_id": special_id(enc, "pad"),
             **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}  # as RLHF trains here
    if shape.reward_head:
        about |= {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "score"},
                  "label2id": {"score": 0}}  # one label: one number
    return about


@torch.no_grad()
def weights_of(model):
    """{transformers' name: tensor} of the trunk, and of a reward model's head."""
    skipped = ("lm_head.", "value_head.", "reward_head.", "score_")
    weights = {name: x.T.contiguous() if TURNED.fullmatch(name) else x
               for name, x in model.state_dict().items() if not name.startswith(skipped)}
    found = {f"transformer.{name}": x for name, x in weights.items()}
    if model.config.reward_head:
        found["score.weight"], found["transformer.ln_f.bias"] = fold(model)
    return found


def fold(model):
    """(matrix of a head without a bias (1, C), bias of the last layer norm) that together give our score.

    score = gain (w . (n + b) + c) + bias, n + b what the layer norm says. With s = gain w and b moved by
    s (gain c + bias) / (s . s) that is s . (n + b'), without a constant."""
    head, b = model.reward_head, model.ln_f.bias.double()
    s = (model.score_gain.double() * head.weight.double())[0]
    constant = (model.score_gain * head.bias + model.score_bias).double()
    if not s.any():
        raise UserError("this reward model gives everything the same score: there is nothing to export")
    return s[None].float(), (b + s * constant / (s @ s)).float()
