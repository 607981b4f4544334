"""Step 1, supervised fine-tuning: learn to answer from (prompt, answer) pairs, the loss on the answer only.

    python train_sft.py --config tiny
    python train_sft.py --config tiny --reviews 90000 --block_size 256 --epochs 1 --batch_size 48 --lr 1.5e-3 --eval_every 400 --name judge          on reviews of answers: an AI judge for train_rm.py --labeler ai

Reads sft.jsonl of the run's data and pretrain.pt, writes sft.pt. (Every token is predicted from the
demonstration's own earlier tokens, "teacher forcing"; nothing is generated while training.)
"""
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data
from experiment import Common, Stage, UserError, knob, load_model, muon, parse, run_main, set_lr, table
from model import answer, with_context
from preferences import OwnModel, describe, win_rate
from train_pretrain import lm_loss


@dataclass
class Config(Common):
    start: str = knob("pretrain", "language model to start from: pretrain, or a variant of it in this run")
    reviews: int = knob(0, "learn from so many reviews of answers in the tiny world in place of demonstrations: plain text, no chat template", low=0)
    block_size: int = knob(0, "longest sequence in tokens; 0 keeps that of the model (a review with two answers needs about 250)", low=0, high=65536)
    epochs: int = knob(2, "passes over the demonstrations; more makes a small model recite them", low=1)
    batch_size: int = knob(16, "demonstrations in a step", low=1)
    lr: float = knob(1e-3, "peak learning rate", low=0)
    warmup: int = knob(40, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    dropout: float = knob(0.0, "dropout in training", low=0, high=0.9)
    max_new_tokens: int = knob(48, "longest answer that is sampled for the evaluation", low=1)
    eval_every: int = knob(100, "steps between measurements of the held-out loss", low=1)
    eval_split: str = knob("test", "prompts of the final table: dev while tuning, test for the figures that count", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "small": dict(epochs=1, batch_size=8, lr=3e-4, warmup=20, dropout=0.1, max_new_tokens=128),
}


def sft_loss(logits, targets, response_mask, n_tokens=None):
    """Cross-entropy on the tokens of the answer, its EOS included: -sum(mask log p(target)) / number of answer tokens.

    logits:        (B, T, V)
    targets:       (B, T) already shifted
    response_mask: (B, T) aligned with targets: 1 where the target belongs to the answer
    n_tokens:      the number to divide by, where this is a micro-batch of a larger batch; default sum(mask)
    (InstructGPT, Ouyang et al. 2022, section 3.5.)
    """
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (losses * response_mask).sum() / (response_mask.sum() if n_tokens is None else n_tokens)


@torch.no_grad()
def held_out_loss(model, rows, pad, batch_size):
    """Mean loss an answer token over rows of (prompt_ids, response_ids)."""
    was_training, device, total, count = model.training, next(model.parameters()).device, 0.0, 0
    model.eval()
    for i in range(0, len(rows), batch_size):
        inputs, targets, mask = (x.to(device) for x in data.sft_batch(rows[i : i + batch_size], pad))
        total += sft_loss(model(inputs), targets, mask, n_tokens=1).item()
        count += mask.sum().item()
    model.train(was_training)
    return total / count


def demonstrations_of(folder, enc, block_size, eval_split):
    """Demonstrations as {split: [(prompt_ids, response_ids)]}."""
    demonstrations = data.load_sft(folder)
    for d in demonstrations:
        *d["ids"], d["cut"] = data.fit(data.encode_prompt(enc, d["prompt"]), data.encode_response(enc, d["response"]), block_size)
    if cut := sum(d["cut"] for d in demonstrations):
        print(f"{cut} of {len(demonstrations)} demonstrations are longer than the context of {block_size} tokens: prompts cut from the left, "
              "answers that are too long by themselves from the right")
    return {split: [tuple(d["ids"]) for d in data.of_split(demonstrations, split, folder)] for split in ("train", eval_split)}


def reviews_of(folder, enc, block_size, n, seed):
    """Write n reviews of the tiny world -> ({split: [(prompt_ids, reply_ids)]}, the held-out ones as text), plain text to go on with."""
    data.write_reviews(folder / "reviews.jsonl", seed, n)
    reviews, rows, cut = [row for _, row in data.read_rows(folder / "reviews.jsonl")], {"train": [], "dev": []}, 0
    for row in reviews:
        *ids, was_cut = data.fit(enc.encode_ordinary("\n\n" + row["prompt"]), enc.encode_ordinary(row["response"]), block_size)
        rows[row["split"]].append(tuple(ids))
        cut += was_cut
    if cut:
        print(f"{cut} of {len(reviews)} reviews are longer than the context of {block_size} tokens: cut from the left; --block_size lengthens it")
    return rows | {"test": rows["dev"]}, [row for row in reviews if row["split"] == "dev"]


def by_length(order, rows, batch_size):
    """An order of rows in which the rows of a batch are of similar length: every eight batches are sorted, then dealt out in a random order."""
    result, rng = [], random.Random(len(order))
    for start in range(0, len(order), 8 * batch_size):
        some = sorted(order[start : start + 8 * batch_size], key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        batches = [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
        result += [i for batch in rng.sample(batches[:-1], len(batches) - 1) + batches[-1:] for i in batch]  # the last may be a short one
    return result


PANELS = [("Loss on answer tokens", {"training": "loss", "held-out": "test_loss"}, "nats a token"),
          ("Gradient norm: no spikes", {"norm": "grad_norm"}, "before clipping"), ("Learning rate: warm-up, cosine", {"rate": "lr"}, "")]


def report_on_reviews(stage, cfg, enc, model, parent, reviews):
    """How often the judge decides held-out reviews as the reviewer did; a few of its notes."""
    judge, rows = OwnModel(model, enc), []
    reviews = [r for r in reviews if len(enc.encode_ordinary(r["prompt"])) < model.config.block_size - 60]  # room for the notes
    to_note = [r for r in reviews if r["prompt"].endswith(data.REASONS)]
    notes = judge.write([r["prompt"] for r in to_note], 48)
    shown = [f"{r['prompt']} {note}\n  (the reviewer:{r['response'].split(chr(10))[0]})" for r, note in list(zip(to_note, notes))[:6]]
    for label, verdict, asked in (
            ("comparisons at once", data.BEST, [r for r in reviews if data.REASONS not in r["prompt"]]),
            ("comparisons with the reviewer's notes", data.BEST, [r for r in reviews if data.REASONS in r["prompt"]]),
            ("ratings at once", data.RATING, reviews),
            ("ratings behind its own notes", data.RATING, [{"prompt": f"{r['prompt']} {note}\n{data.RATING}", "response": r["response"].split(data.RATING)[1]}
                                                           for r, note in zip(to_note, notes)])):
        asked = [r for r in asked if r["prompt"].endswith(verdict) and not r["response"].startswith("10")]  # which is two tokens
        found = judge.next_token([r["prompt"] for r in asked], [str(i) for i in range(1, 10)])
        rows.append([label, len(asked), sum(max(f, key=f.get) == r["response"][0] for f, r in zip(found, asked)) / max(1, len(asked))])
    lines = [table(["held-out reviews (of two equal answers the reviewer chose one at random)", "number", "decided alike"], rows), "", *shown]
    print("\n" + "\n".join(lines))
    stage.state["results"] = {row[0]: row[2] for row in rows}
    stage.finish("\n".join(lines), PANELS, "AI judge, loss of the reviewers' replies. Look for: a held-out loss that stays (a verdict is one token of a reply, and learned late)")


def report(stage, cfg, enc, model, parent, _):
    """Pretrained against SFT on held-out prompts."""
    pretrained, _ = load_model(parent, stage.device)
    prompts = [p["prompt"] for p in data.of_split(data.load_prompts(stage.data), cfg.eval_split, stage.data)[:300]]
    answers = {"pretrained": answer(pretrained, enc, prompts, cfg.max_new_tokens, 1.0, template=False),
               "SFT": answer(model, enc, prompts, cfg.max_new_tokens, 1.0)}
    about = {name: describe(prompts, a) for name, a in answers.items()}
    header = ["on held-out prompts", "gold", "declines unsafe", "declines safe", "ends", "distinct", "length", "unknown"]
    print("\n" + table(header, [[name, d["gold"] and sum(d["gold"]) / len(prompts), d["declines_unsafe"], d["declines_safe"],
                                 d["ends"], d["distinct"], d["length"], d["unknown"]] for name, d in about.items()]))
    if about["SFT"]["gold"]:
        print("gold win rate of SFT against pretrained: {:.2f} (95 % interval {:.2f} to {:.2f})".format(
            *win_rate(about["SFT"]["gold"], about["pretrained"]["gold"])))
    samples = "\n\n".join(f"prompt:     {data.prompt_text(prompts[i])}\npretrained: {answers['pretrained'][i][0]}\nSFT:        {answers['SFT'][i][0]}"
                          for i in range(min(6, len(prompts))))
    print("\n" + samples)
    stage.finish(samples, PANELS, "SFT. Look for: held-out loss that rises again (too many epochs)")


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    if 0 < cfg.reviews < 20:
        raise UserError(f"--reviews {cfg.reviews}: at least 20, one of every twenty more is held out")
    if cfg.reviews and cfg.data:
        raise UserError("--reviews are written about the tiny world; with --data an AI judge is a model behind a server (--judge_url of train_rm.py)")
    cfg.name = cfg.name or ("judge" if cfg.reviews else "")
    stage = Stage(cfg, "sft")
    parent = stage.parent(cfg.start)
    model, checkpoint = load_model(parent, stage.device, cfg.dropout)
    if cfg.block_size:
        model = with_context(model, cfg.block_size)
    print(f"shape from {parent}: {checkpoint['model_config']}")
    if cfg.max_new_tokens >= model.config.block_size:
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {model.config.block_size} tokens")
    enc = data.load_encoding(stage.folder / "tokenizer.json")
    pad, block_size = data.special_id(enc, "pad"), model.config.block_size
    reviews = []
    if cfg.reviews:
        rows, reviews = reviews_of(stage.data, enc, block_size, cfg.reviews, cfg.seed)
    else:
        rows = demonstrations_of(stage.data, enc, block_size, cfg.eval_split)
    train, test = rows["train"], rows[cfg.eval_split][:300]
    per_epoch = max(1, len(train) // cfg.batch_size)
    steps = cfg.epochs * per_epoch

    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(steps):
        if step % per_epoch == 0 or step == stage.start:  # a new order every epoch, the same again when resumed
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(cfg.seed + step // per_epoch)).tolist()
            order = by_length(list(range(len(train))), train, cfg.batch_size) if reviews else order  # reviews come in lessons
        i = step % per_epoch * cfg.batch_size
        inputs, targets, mask = (x.to(stage.device) for x in data.sft_batch([train[j] for j in order[i : i + cfg.batch_size]], pad))
        if reviews:  # long to read, short to write: only what is learned goes through the vocabulary
            loss = lm_loss(model.lm_head(model.hidden(inputs)[mask.bool()]), targets[mask.bool()])
        else:
            loss = sft_loss(model(inputs), targets, mask)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or torch.inf)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
        measure = step + 1 == steps or step % cfg.eval_every == 0
        test_loss = held_out_loss(model, test, pad, cfg.batch_size) if measure else None
        stage.log(step, ("loss",), loss=loss.item(), test_loss=test_loss, grad_norm=grad_norm.item(), lr=lr)

    model.eval()
    (report_on_reviews if reviews else report)(stage, cfg, enc, model, parent, reviews)


if __name__ == "__main__":
    run_main(main)
