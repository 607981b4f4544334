"""Step 1, supervised fine-tuning: learn to answer from (prompt, answer) pairs, the loss on the answer only.

    python train_sft.py --config tiny

Reads sft.jsonl of the run's data and pretrain.pt, writes sft.pt. (Every token is predicted from the
demonstration's own earlier tokens, "teacher forcing"; nothing is generated while training.)
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data
from experiment import Common, Stage, UserError, knob, load_model, muon, parse, run_main, set_lr, table
from model import answer
from preferences import describe, win_rate


@dataclass
class Config(Common):
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


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    stage = Stage(cfg, "sft")
    parent = stage.parent("pretrain")
    model, checkpoint = load_model(parent, stage.device, cfg.dropout)
    print(f"shape from {parent}: {checkpoint['model_config']}")
    if cfg.max_new_tokens >= model.config.block_size:
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {model.config.block_size} tokens")
    enc = data.load_encoding(stage.folder / "tokenizer.json")
    pad, block_size = data.special_id(enc, "pad"), model.config.block_size
    demonstrations = data.load_sft(stage.data)
    cut, rows = 0, {}
    for split in ("train", cfg.eval_split):
        rows[split] = [data.fit(data.encode_prompt(enc, d["prompt"]), data.encode_response(enc, d["response"]), block_size)
                       for d in data.of_split(demonstrations, split, stage.data)]
        cut += sum(was_cut for _, _, was_cut in rows[split])
        rows[split] = [(prompt, response) for prompt, response, _ in rows[split]]
    if cut:
        print(f"{cut} of {len(demonstrations)} demonstrations are longer than the context of {block_size} tokens: prompts cut from the left")
    train, test = rows["train"], rows[cfg.eval_split][:300]
    per_epoch = max(1, len(train) // cfg.batch_size)
    steps = cfg.epochs * per_epoch

    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(steps):
        if step % per_epoch == 0 or step == stage.start:  # a new order every epoch, the same again when resumed
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(cfg.seed + step // per_epoch)).tolist()
        i = step % per_epoch * cfg.batch_size
        inputs, targets, mask = (x.to(stage.device) for x in data.sft_batch([train[j] for j in order[i : i + cfg.batch_size]], pad))
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
    stage.finish(samples, [("Loss on answer tokens", {"training": "loss", "held-out": "test_loss"}, "nats a token"),
                           ("Gradient norm", {"norm": "grad_norm"}, "before clipping"), ("Learning rate", {"rate": "lr"}, "")],
                 "SFT: the loss of the demonstrations' answers; held-out loss that rises again means too many epochs")


if __name__ == "__main__":
    run_main(main)
