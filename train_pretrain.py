"""Step 0, pretraining: learn to predict the next token of raw text (causal language modelling).

    python train_pretrain.py --config tiny               from random weights, in the tiny world
    python train_pretrain.py --config small --data FOLDER               on your own text
    python train_pretrain.py --data FOLDER --init runs/tiny/pretrain.pt
                                  domain adaptation: a model goes on with the text of FOLDER
    python train_pretrain.py --config gpt2 --data FOLDER          so does GPT-2, 124 M parameters

Reads pretrain.txt of the run's data, trains a tokenizer on it (or takes the one of --init), writes
tokenizer.json and pretrain.pt.
"""
import lab.before_torch
from dataclasses import dataclass
from pathlib import Path

import torch  # noqa: F401  (at hand for whoever writes lm_loss anew)
import torch.nn.functional as F

from data import SPECIAL, UserError, dump_encoding, load_text, make_encoding, text_batch, tokens_of, train_bpe
from lab.cli import Common, knob, parse, run_main
from lab.download import gpt2_folder
from lab.formats import enough
from lab.hub import is_hub_folder, load_hub_model
from lab.measure import held_out_loss, text_windows
from lab.optim import clip_gradients, muon, set_lr
from lab.parallel import part, share, total
from lab.records import load_model, record_in
from lab.report import table
from lab.run import Stage
from lab.talk import answer
from lab.terminal import wrapped
from lab.tokens import encoding_of
from model import GPT, GPTConfig

# ------------------------------------------------------------------------------------------------
# Knobs
# ------------------------------------------------------------------------------------------------


@dataclass
class Config(Common):
    init: str = knob("", "language model to go on with, instead of random weights: a checkpoint, or a folder "
                     "of GPT-2's kind with config.json and model.safetensors",
                     heading="The model; with --init most is that model's")
    vocab_size: int = knob(1400, "tokens of the BPE trained on the text, 4 special ones included", low=260,
                           high=10**6)
    block_size: int = knob(96, "longest sequence in tokens, prompt and answer together; of GPT-2's positions "
                           "the first so many", low=8, high=65536)
    n_layer: int = knob(3, "transformer blocks", low=1, high=1000)
    n_head: int = knob(3, "attention heads", low=1)
    n_embd: int = knob(96, "width of the residual stream", low=1, high=10**5)
    dropout: float = knob(0.0, "off where there is more text than the model can learn by heart", low=0,
                          high=0.9)

    steps: int = knob(1800, "optimizer steps; 0 takes the model of --init as it is", low=0,
                      heading="Training")
    batch_size: int = knob(16, "windows of block_size tokens in a step", low=1, high=10**6)
    lr: float = knob(5e-3, "peak learning rate; small models bear large ones", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    eval_every: int = knob(100, "steps between measurements of the held-out loss", low=1)


PRESETS = {
    "tiny": {},
    "smoke": {
        "vocab_size": 500, "block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 32,
        "steps": 12, "batch_size": 4, "warmup": 2,
    },
    "small": {
        "vocab_size": 4096, "block_size": 384, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.1,
        "steps": 700, "batch_size": 8, "lr": 2e-3, "warmup": 50,
    },
    # A few careful steps: it can write already, and shall get used to what your text is about.
    "gpt2": {"block_size": 512, "steps": 20, "batch_size": 4, "lr": 1e-4, "warmup": 5, "eval_every": 20},
}

RULES = (
    ("--n_embd must be a multiple of --n_head: every head has its share of the width",
     lambda cfg: not cfg.init and cfg.n_embd % cfg.n_head),
    ("--steps 0 takes a model as it is: name it with --init",
     lambda cfg: not cfg.steps and not cfg.init and cfg.config != "gpt2"),
)

# ------------------------------------------------------------------------------------------------
# The loss
# ------------------------------------------------------------------------------------------------


def lm_loss(logits, targets):
    """Next-token cross-entropy: -1/(B T) sum log p(target_t | tokens before it), in nats a token.

    logits:  (B, T, V)
    targets: (B, T) already shifted: targets[:, t] is the token behind inputs[:, t]; a slice, not contiguous
    """
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


# ------------------------------------------------------------------------------------------------
# Where it begins
# ------------------------------------------------------------------------------------------------


def init_of(cfg, folder):
    """Path of the model to go on with, a checkpoint of ours or a folder of GPT-2's kind, or None. Raises
    UserError where --init names neither, or GPT-2 cannot be fetched."""
    if not cfg.init:
        return gpt2_folder() if cfg.config == "gpt2" else None
    path = Path(cfg.init)
    if is_hub_folder(path):
        return path
    if not path.is_file():
        found = "there is no such file or folder"
        if path.is_dir():
            names = sorted(file.name for file in path.iterdir())
            found = f"a folder with {', '.join(names[:5])}" if names else "an empty folder"
        raise UserError(f"--init {cfg.init}: {found}; expected a checkpoint such as runs/tiny/pretrain.pt, "
                        "or a folder with config.json and model.safetensors (--config gpt2 without --init "
                        "fetches GPT-2)")
    if path.suffix in (".safetensors", ".bin", ".json"):
        raise UserError(f"--init {cfg.init}: name the folder that this file lies in, with its config.json")
    check_init(path, folder)
    return path


def check_init(path, folder):
    """Raises UserError where --init names nothing that pretraining in this run folder could go on with."""
    if path.resolve().parent == folder.resolve():
        raise UserError("--init names a checkpoint of this same run; give the model that goes on a folder of "
                        "its own with --run NAME")
    record = record_in(path)
    if record["stage"] != "pretrain":
        raise UserError("--init takes a pretrained language model, such as runs/tiny/pretrain.pt; "
                        f"{path} is a checkpoint of the stage {record['stage']}")
    if not record["finished"]:
        raise UserError(f"--init: {path} stopped at step {record['step']} of {record['steps']}; first go on "
                        f"with it: {record['command']}")
    encoding_of(path.parent, [record])  # its tokenizer lies beside it


def make_tokenizer(stage, cfg, text, enc=None):
    """The run's tokenizer: that of a training that goes on, that of GPT-2 (enc) or of a checkpoint at --init,
    or one trained on the text."""
    path = stage.folder / "tokenizer.json"
    if stage.start:
        enc = encoding_of(stage.folder, [stage.checkpoint])
    elif cfg.init and not enc:
        enc = encoding_of(Path(cfg.init).parent)
    elif not enc:
        enc = make_encoding(train_bpe(text, cfg.vocab_size - len(SPECIAL)))
    stage.new_tokenizer = dump_encoding(enc)  # written together with the first checkpoint
    must_stay = cfg.name or not cfg.overwrite and any(stage.folder.glob("*.pt"))
    if must_stay and path.exists() and dump_encoding(encoding_of(stage.folder)) != stage.new_tokenizer:
        raise UserError(f"a run folder has one tokenizer, and {path} is another one; name a folder of its "
                        "own with --run NAME")
    return enc


def load_start(stage, cfg, text, source):
    """(tokenizer, model) to begin with: those of `source`, or a new one and one with random weights."""
    model = enc = None
    if source and source.is_dir():
        model, enc = load_hub_model(source, cfg.block_size, cfg.dropout)
    enc = make_tokenizer(stage, cfg, text, enc)
    if source and not model:
        model = load_model(source, "cpu", cfg.dropout)[0]
    if not model:
        shape = GPTConfig(enc.n_vocab, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.dropout)
        model = GPT(shape)
    return enc, model.to(stage.device)


def held_out_texts(cfg, enc, tokens):
    """{metric: held-out tokens}. Who goes on with a model looks at its old text, too: what does it cost?"""
    texts = {"test_loss": tokens}
    old = Path(cfg.init).parent / "data"
    if cfg.init and not Path(cfg.init).is_dir() and (old / "pretrain.held_out.txt").exists():
        texts["old_loss"] = tokens_of(enc, load_text(old))[1]
    return texts


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    stage = Stage(cfg, "pretrain")
    source, texts = init_of(cfg, stage.folder), load_text(stage.data)
    enc, model = load_start(stage, cfg, texts[0], source)
    train_tokens, test_tokens = tokens_of(enc, texts)
    T = model.config.block_size
    stage.describe(model, source or "random weights", rows=cfg.batch_size, length=T, logits=T)
    print(f"{len(train_tokens):,} tokens of text, of {enc.n_vocab} kinds")
    remark = enough(len(train_tokens), sum(p.numel() for p in model.parameters()))
    if remark and not source:
        print(wrapped(remark))
    held_out = held_out_texts(cfg, enc, test_tokens)
    windows = {name: text_windows(tokens, T) for name, tokens in held_out.items()}

    def losses():
        return {name: held_out_loss(model, batches) for name, batches in windows.items()}

    before = losses()
    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(cfg.steps):
        inputs, targets = map(share, text_batch(train_tokens, cfg.batch_size, T))
        with stage.autocast():
            loss = lm_loss(model(inputs.to(stage.device)), targets.to(stage.device))
        loss = part(loss, len(inputs))
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(model, cfg.clip_grad)
        lr = set_lr(optimizer, step, cfg.steps, cfg.warmup)
        with stage.autocast():  # Muon has products, too
            optimizer.step()

        measured = dict.fromkeys(windows)
        if step % cfg.eval_every == 0 or step + 1 == cfg.steps:
            measured = losses()
        stage.log(step, ("loss",), loss=total(loss.item()), **measured, grad_norm=grad_norm, lr=lr)

    model.eval()
    report(stage, cfg, enc, model, before, losses(), texts[1])


# ------------------------------------------------------------------------------------------------
# Looking at it
# ------------------------------------------------------------------------------------------------


def report(stage, cfg, enc, model, before, after, text):
    """Held-out losses, how the model goes on with a few words, the picture."""
    names = {"test_loss": "new text" if cfg.init else "text", "old_loss": "old text"}
    rows = [[names[key], before[key], after[key]] for key in before]
    losses = table(["held-out loss, nats a token", "before", "after"], rows)
    prompts = ["A dog is", "You find a library", "What is a lamp?"]
    if cfg.data:
        prompts = [first_words(text)]
    limit = model.config.block_size // 2
    answers = answer(model, enc, prompts, limit, 1.0, template=False)
    lines = [wrapped(f"{p!r} -> {a.text!r}", "    ") for p, a in zip(prompts, answers, strict=True)]
    samples = "\n".join([losses, "", *lines])
    print("\n" + samples)
    curves = {"training": "loss", **{f"held-out {names[key]}": key for key in before}}
    stage.finish(samples, [
        ("Next-token loss should fall", curves, "nats a token", "step", {"log": True}),
        ("Gradient norm: no spikes", {"norm": "grad_norm"}, "before clipping"),
        ("Learning rate: warm-up, cosine", {"rate": "lr"}, "")],
        f"Pretraining: held-out loss {before['test_loss']:.2f} -> {after['test_loss']:.2f}. Look for: a "
        "held-out loss that parts from the training loss (overfitting)")


def first_words(text, characters=60):
    """The beginning of a text, cut behind a word. Example: "In the forest" of 8 characters -> "In the"."""
    start = text.strip()[: characters + 1]
    cut = start.rfind(" ")
    return start[:cut] if len(start) > characters and cut > 0 else start[:characters]


if __name__ == "__main__":
    run_main(main)
