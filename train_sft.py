"""Step 1, supervised fine-tuning (SFT): learn to answer from (prompt, answer) pairs.

    python train_sft.py --config tiny

Reads sft.jsonl of the run's data and pretrain.pt, writes sft.pt. Every token is predicted from the
demonstration's own earlier tokens ("teacher forcing"), the loss is on the answer only; nothing is
generated while training.

With --reviews it makes an AI judge instead, which learns from reviews: see lab/school.py.
"""
import lab.before_torch
from dataclasses import dataclass

import torch.nn.functional as F

from data import (
    UserError,
    epoch_order,
    load_prompts,
    load_sft,
    of_split,
    sft_batch,
    special_id,
    steps_per_epoch,
)
from lab.cli import Common, knob, parse, run_main
from lab.data_folder import held_out_prompts
from lab.measure import held_out_loss, sft_batches
from lab.optim import clip_gradients, muon, set_lr
from lab.parallel import part, share, total
from lab.records import load_language_model
from lab.report import compare
from lab.run import Stage
from lab.school import by_length, report_on_reviews, reviews_of, with_context
from lab.talk import knows_template
from lab.tokens import laid_out, room_for_prompts

# ------------------------------------------------------------------------------------------------
# Knobs
# ------------------------------------------------------------------------------------------------


@dataclass
class Config(Common):
    start: str = knob("pretrain", "language model to start from: pretrain, or a variant of it in this run",
                      heading="Training")
    epochs: int = knob(2, "passes over the demonstrations; more makes a small model recite them", low=1)
    batch_size: int = knob(16, "demonstrations in a step", low=1, high=10**6)
    lr: float = knob(1e-3, "peak learning rate", low=0)
    warmup: int = knob(40, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    dropout: float = knob(0.0, "dropout in training", low=0, high=0.9)

    reviews: int = knob(0, "learn from so many reviews of answers in place of demonstrations", low=0,
                        high=10**7, heading="An AI judge")
    block_size: int = knob(0, "longest sequence in tokens (0: the model's); a review of two answers has 250",
                           low=0, high=65536)

    max_new_tokens: int = knob(48, "longest answer that is sampled for the table", low=1,
                               heading="Looking at it")
    eval_every: int = knob(50, "steps between measurements of the held-out loss", low=1)
    eval_split: str = knob("test", "prompts of the table: dev while tuning, test for the figures that count",
                           choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "smoke": {"epochs": 1, "batch_size": 50, "max_new_tokens": 12},
    "small": {"epochs": 1, "batch_size": 8, "lr": 3e-4, "warmup": 20, "dropout": 0.1, "max_new_tokens": 128},
    "gpt2": {"epochs": 1, "batch_size": 8, "lr": 1e-4, "warmup": 20, "max_new_tokens": 96},
}

RULES = (
    ("--reviews: at least 20, for one of every twenty more is held out", lambda cfg: 0 < cfg.reviews < 20),
    ("--reviews are about the tiny world; with --data an AI judge is a model behind a server (--judge_url of "
     "preferences.py)", lambda cfg: cfg.reviews and cfg.data),
    ("--name judge is the AI judge, which learns from --reviews; choose another",
     lambda cfg: cfg.name == "judge" and not cfg.reviews),
    ("--reviews make an AI judge, and sft is none; choose another --name",
     lambda cfg: cfg.name == "sft" and cfg.reviews),
)

# ------------------------------------------------------------------------------------------------
# The loss
# ------------------------------------------------------------------------------------------------


def sft_loss(logits, targets, response_mask):
    """Cross-entropy on the tokens of the answer, its EOS included: -sum(mask log p(target)) / number of
    answer tokens.

    logits:        (B, T, V)
    targets:       (B, T) already shifted; a slice, not contiguous
    response_mask: (B, T) aligned with targets: 1 where the target belongs to the answer
    (SFT: InstructGPT, Ouyang et al. 2022, section 3.5; on the answer alone: Llama 2, section 3.1.)
    """
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (losses * response_mask).sum() / response_mask.sum()


def batch_loss(model, inputs, targets, response_mask):
    """sft_loss of a batch. Prompts are read, but only what is learned goes through the last MLP and the
    vocabulary: the logits before other tokens would be multiplied by 0."""
    learned = response_mask.bool()
    logits = model.lm_head(model.hidden(inputs, read=learned))  # (N, V)
    return sft_loss(logits[None], targets[learned][None], response_mask[learned][None])


# ------------------------------------------------------------------------------------------------
# The rows
# ------------------------------------------------------------------------------------------------


def rows_of(stage, enc, cfg, block_size):
    """{split: [(prompt_ids, response_ids)]} of the demonstrations, or of reviews for a judge."""
    if cfg.reviews:
        return reviews_of(stage.data, enc, block_size, cfg.reviews, cfg.seed)
    demonstrations = [{**d, "responses": [d["response"]]} for d in load_sft(stage.data)]
    for d, [ids] in zip(demonstrations, laid_out(enc, demonstrations, block_size), strict=True):
        d["ids"] = ids
    rows = {}
    for split in ("train", cfg.eval_split):
        rows[split] = [d["ids"] for d in of_split(demonstrations, split, stage.data / "sft.jsonl")]
    return rows


def check_demonstrations(stage, cfg):
    """Raises UserError where there are none, or no prompts for the table at the end: to be told at once, for
    pretraining takes minutes."""
    if cfg.reviews:
        return
    if not load_sft(stage.data):
        source = cfg.data or stage.data
        raise UserError(f"{source} has no demonstrations, and text alone is for train_pretrain.py: add "
                        f"sft.jsonl or preferences.jsonl, then delete {stage.folder} or name another --run")
    of_split(load_prompts(stage.data), cfg.eval_split, stage.data / "prompts.jsonl")


def order_of(rows, cfg):
    """A function: step -> indices of its rows. Demonstrations come in a new order every epoch, reviews
    lesson by lesson."""
    if cfg.reviews:
        batches = by_length(rows, cfg.batch_size)
        return lambda step: batches[step % len(batches)]
    return lambda step: epoch_order(len(rows), step, cfg.batch_size, cfg.seed)


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    if cfg.reviews and not cfg.name:
        cfg.name = "judge"
    stage = Stage(cfg, "sft")
    check_demonstrations(stage, cfg)
    path, enc = stage.parent(cfg.start), stage.encoding()
    model = load_language_model(path, stage.device, cfg.dropout)[0]
    if cfg.block_size:
        model = with_context(model, cfg.block_size)
    room_for_prompts(cfg.max_new_tokens, model)
    rows, pad = rows_of(stage, enc, cfg, model.config.block_size), special_id(enc, "pad")
    train = rows["train"]
    longest, learned = max(len(p) + len(r) for p, r in train), max(len(r) for _, r in train)
    stage.describe(model, path, rows=cfg.batch_size, length=longest, logits=learned)
    held_out = sft_batches(rows[cfg.eval_split][:300], pad, cfg.batch_size)
    steps, order = cfg.epochs * steps_per_epoch(len(train), cfg.batch_size), order_of(train, cfg)

    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(steps):
        batch = sft_batch([train[i] for i in share(order(step))], pad)
        inputs, targets, mask = (x.to(stage.device) for x in batch)
        with stage.autocast():
            loss = part(batch_loss(model, inputs, targets, mask), mask.sum().item())
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(model, cfg.clip_grad)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()

        measure = step % cfg.eval_every == 0 or step + 1 == steps
        test_loss = held_out_loss(model, held_out) if measure else None
        stage.log(step, ("loss",), loss=total(loss.item()), test_loss=test_loss, grad_norm=grad_norm, lr=lr)

    model.eval()
    if cfg.reviews:
        report_on_reviews(stage, enc, model, PANELS)
    else:
        report(stage, cfg, enc, model)


# ------------------------------------------------------------------------------------------------
# Looking at it
# ------------------------------------------------------------------------------------------------

PANELS = [
    ("Loss on answer tokens should fall", {"training": "loss", "held-out": "test_loss"}, "nats a token"),
    ("Gradient norm: no spikes", {"norm": "grad_norm"}, "before clipping"),
    ("Learning rate: warm-up, cosine", {"rate": "lr"}, ""),
]


def report(stage, cfg, enc, model):
    """The model that it started from against SFT, on held-out prompts."""
    before, checkpoint = load_language_model(stage.parent(cfg.start), stage.device)
    name = "pretrained" if cfg.start == "pretrain" else cfg.start
    prompts = held_out_prompts(stage.data, cfg.eval_split, 300)
    found = compare({name: before, "SFT": model}, enc, prompts, cfg.max_new_tokens, baseline=name,
                    templates={name: knows_template(checkpoint)}, seed=cfg.seed)
    print("\n" + found.text)
    stage.state["results"] = found.results
    stage.finish(found.text, PANELS, "SFT. Look for: a held-out loss that rises again (too many epochs)")


if __name__ == "__main__":
    run_main(main)
