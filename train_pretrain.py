"""Step 0, pretraining: learn to predict the next token of raw text (causal language modelling).

    python train_pretrain.py --config tiny                              from random weights
    python train_pretrain.py --config tiny --init runs/tiny/pretrain.pt --data FOLDER
                                          domain adaptation: continue on the text of FOLDER

Reads pretrain.txt of the run's data, trains a tokenizer on it (or takes the one of --init), writes
tokenizer.json and pretrain.pt.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
from experiment import Common, Stage, UserError, knob, load_model, muon, parse, run_main, set_lr, table, write_atomic
from model import GPT, GPTConfig, answer


@dataclass
class Config(Common):
    init: str = knob("", "checkpoint of a language model to continue from, instead of random weights")
    vocab_size: int = knob(1400, "tokens of the BPE trained on the text, 4 special tokens included", low=260)
    block_size: int = knob(96, "longest sequence in tokens: prompt and answer together must fit", low=8, high=65536)
    n_layer: int = knob(3, "transformer blocks", low=1)
    n_head: int = knob(3, "attention heads", low=1)
    n_embd: int = knob(96, "width of the residual stream", low=1)
    dropout: float = knob(0.0, "dropout in training; off where the text is plentiful for the model", low=0, high=0.9)
    steps: int = knob(1800, "optimizer steps", low=1)
    batch_size: int = knob(16, "windows of block_size tokens in a step", low=1)
    lr: float = knob(5e-3, "peak learning rate; small models bear large ones", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    eval_every: int = knob(100, "steps between measurements of the held-out loss", low=1)


PRESETS = {
    "tiny": {},
    "small": dict(vocab_size=4096, block_size=384, n_layer=6, n_head=6, n_embd=192, dropout=0.1, steps=300, batch_size=16,
                  lr=1e-3, warmup=50, eval_every=100),
}


def lm_loss(logits, targets):
    """Next-token cross-entropy: -1/(B T) sum log p(target_t | tokens before it), in nats a token.

    logits:  (B, T, V)
    targets: (B, T) already shifted: targets[:, t] is the token behind inputs[:, t]
    """
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


@torch.no_grad()
def held_out_loss(model, tokens, block_size, batch_size=32, windows=64):
    """Mean loss over up to `windows` windows spread evenly over a token stream, in nats a token."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    starts = np.unique(np.linspace(0, max(0, len(tokens) - block_size - 1), windows).astype(int))
    total = count = 0
    for i in range(0, len(starts), batch_size):
        rows = torch.stack([torch.from_numpy(tokens[s : s + block_size + 1].astype(np.int64)) for s in starts[i : i + batch_size]]).to(device)
        total += lm_loss(model(rows[:, :-1]), rows[:, 1:]).item() * rows[:, 1:].numel()
        count += rows[:, 1:].numel()
    model.train(was_training)
    return total / count


def tokens_of(enc, texts):
    """(training text, held-out text) -> two 1-D arrays of token ids."""
    parts = [np.array(enc.encode_ordinary(text), dtype=np.uint32) for text in texts]
    if min(map(len, parts)) < 3:
        raise data.DataError("the pretraining text is too short to train on and to hold some of it out")
    return parts


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    if not cfg.init and cfg.n_embd % cfg.n_head:
        raise UserError(f"--n_embd {cfg.n_embd} must be a multiple of --n_head {cfg.n_head}")
    stage = Stage(cfg, "pretrain")
    if not cfg.data and not (stage.data / "pretrain.txt").exists():
        data.write_world(stage.data, cfg.seed)
    texts = data.load_text(stage.data)
    tokenizer = stage.folder / "tokenizer.json"
    if cfg.init:
        if Path(cfg.init).resolve().parent == stage.folder.resolve():
            raise UserError("--init names a checkpoint of this same run; give the continued model a folder of its own with --run NAME")
        model, parent = load_model(cfg.init, stage.device, cfg.dropout)
        if parent["stage"] != "pretrain":
            raise UserError(f"--init takes a pretrained language model, such as runs/tiny/pretrain.pt; {cfg.init} is a {parent['stage']} checkpoint")
        own = Path(cfg.init).parent / "tokenizer.json"
        if not own.is_file():
            raise UserError(f"{own} is missing; a checkpoint needs the tokenizer of its run beside it")
        words = own.read_text(encoding="utf-8")
        print(f"shape and tokenizer from {cfg.init}: {parent['model_config']}")
    elif stage.start:
        words = tokenizer.read_text(encoding="utf-8")
    else:
        words = data.dump_encoding(data.make_encoding(data.train_bpe(texts[0], cfg.vocab_size - len(data.SPECIAL))))
    if cfg.name and tokenizer.exists() and tokenizer.read_text(encoding="utf-8") != words:
        raise UserError(f"a run folder has one tokenizer, and {tokenizer} is another one; name a folder of its own with --run NAME")
    write_atomic(tokenizer, words)
    enc = data.load_encoding(tokenizer)
    if not cfg.init:
        model = GPT(GPTConfig(enc.n_vocab, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.dropout)).to(stage.device)
    block_size = model.config.block_size
    train_tokens, test_tokens = tokens_of(enc, texts)
    held_out = {"new": test_tokens}
    if cfg.init:  # what continuing costs: the loss on the text of the model that we start from
        old = Path(parent["knobs"]["data"] or Path(cfg.init).parent / "data")
        if old.is_dir():
            held_out["old"] = tokens_of(enc, data.load_text(old))[1]
    before = {name: held_out_loss(model, tokens, block_size) for name, tokens in held_out.items()}
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(train_tokens):,} tokens of text in {enc.n_vocab} kinds")

    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    torch.set_float32_matmul_precision("medium")  # matrix units with fewer bits, where there are any: a quarter faster here
    model.train()
    for step in stage.steps(cfg.steps):
        inputs, targets = data.text_batch(train_tokens, cfg.batch_size, block_size)
        loss = lm_loss(model(inputs.to(stage.device)), targets.to(stage.device))
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or torch.inf)
        lr = set_lr(optimizer, step, cfg.steps, cfg.warmup)
        optimizer.step()
        last = step + 1 == cfg.steps
        test_loss = held_out_loss(model, test_tokens, block_size) if last or step % cfg.eval_every == 0 else None
        stage.log(step, ("loss",), loss=loss.item(), test_loss=test_loss, grad_norm=grad_norm.item(), lr=lr)

    torch.set_float32_matmul_precision("highest")
    model.eval()
    after = {name: held_out_loss(model, tokens, block_size) for name, tokens in held_out.items()}
    print("\n" + table(["held-out loss, nats a token", "before", "after"], [[f"{name} text", before[name], after[name]] for name in held_out]))
    prompts = ["A dog is", "You find a library", "What is a lamp?"] if not cfg.data else [texts[1][:60]]
    limit = block_size // 2
    samples = "\n".join(f"{p!r} -> {a[0]!r}" for p, a in zip(prompts, answer(model, enc, prompts, limit, 1.0, template=False)))
    print("\n" + samples)
    stage.finish(samples, [("Next-token loss falls", {"training": "loss", "held-out": "test_loss"}, "nats a token"),
                           ("Gradient norm: no spikes", {"norm": "grad_norm"}, "before clipping"), ("Learning rate: warm-up, cosine", {"rate": "lr"}, "")],
                 f"Pretraining: held-out loss {before['new']:.2f} -> {after['new']:.2f}. Look for: a held-out loss that parts from the training loss (overfitting)")


if __name__ == "__main__":
    run_main(main)
