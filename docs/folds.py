"""Cross-validation of a reward model, beside two rules that cost nothing."""
import json

import torch
from tqdm import tqdm

import data
from data import UserError, epoch_order, has_pairs, is_thumb, load_encoding, steps_per_epoch
from lab.baselines import baselines
from lab.commands import run_folder
from lab.measure import accuracy, wilson
from lab.optim import clip_gradients, muon, set_lr
from lab.records import load_model
from records import say, show
from runs import command, logged, standard
from train_rm import PRESETS, Config, group_scores, passes, ranking_loss, text_loss, with_reward_head


def folds(args):
    """a reward model, a bag of words and the answers' length, cross-validated; on your --data, too"""
    cfg = Config(config=args.config, data=args.data, **PRESETS[args.config])
    folder, of_run = run_folder(cfg), ["--config", args.config]
    if args.data:
        of_run += ["--data", args.data]
    command("train_pretrain.py", *of_run)
    if args.data:
        rows = data.load_preferences(folder / "data")
    else:
        rows = logged(standard("rankings"))
    rows = [row for row in rows if not is_thumb(row) and has_pairs(row)]
    fold_of = deal(rows, args.folds)
    base, _ = load_model(folder / "pretrain.pt", dropout=cfg.dropout)
    enc = load_encoding(folder / "tokenizer.json")
    corpus, _ = data.tokens_of(enc, data.load_text(folder / "data"))

    found = []
    for fold in range(args.folds):
        training = [row for row in rows if fold_of[key_of(row)] != fold]
        held_out = [row for row in rows if fold_of[key_of(row)] == fold]
        torch.manual_seed(fold)
        model = train_fold(base, enc, training, corpus, cfg, f"fold {fold + 1} of {args.folds}")
        hits, n = accuracy(model, enc, held_out)
        rules = baselines(enc, training, held_out)
        bag, length = (rule["accuracy"] for rule in rules.values())
        found.append((hits, bag, length, n))
        say(f"fold {fold + 1}: reward model {hits:.3f}, {list(rules)[0]} {bag:.3f}, {list(rules)[1]} "
              f"{length:.3f}, {n} pairs")
    summary(found, len(fold_of))


def key_of(row):
    return json.dumps(row["prompt"])


def deal(rows, n):
    """{prompt: its fold}, n folds of equally many prompts. Raises UserError where there are too few."""
    keys = sorted({key_of(row) for row in rows})
    if len(keys) < 2:
        raise UserError("there are no comparisons of two prompts or more, so nothing can be held out")
    if not 2 <= n <= len(keys):
        raise UserError(f"--folds {n}: choose 2 to {len(keys)}, the number of prompts with comparisons")
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0)).tolist()
    return {keys[i]: place % n for place, i in enumerate(order)}


def train_fold(base, enc, rows, corpus, cfg, what):
    """A reward model on some of the rankings, as train_rm.py trains it, but on these alone."""
    model, batch_size = with_reward_head(base, cfg.zero_head), cfg.batch_size or 16
    steps = passes(cfg.epochs, len(rows), batch_size) * steps_per_epoch(len(rows), batch_size)
    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    model.train()
    for step in tqdm(range(steps), desc=what, dynamic_ncols=True):
        batch = [rows[i] for i in epoch_order(len(rows), step, batch_size, cfg.seed)]
        loss, _ = ranking_loss(group_scores(model, enc, batch), batch, None, cfg)
        optimizer.zero_grad()
        loss.backward()
        if cfg.lm_coef:
            text_loss(model, corpus, cfg.lm_coef).backward()
        clip_gradients(model, cfg.clip_grad)
        set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
    return model.eval()


def summary(found, n_prompts):
    """Show mean accuracies over the folds, weighted by their pairs. The interval counts prompts, for the
    pairs about one share answers."""
    total, cells = sum(row[-1] for row in found), []
    for k, name in enumerate(("reward model", "bag of words", "longer or shorter answer wins")):
        mean = sum(row[k] * row[-1] for row in found) / total
        cells.append([name, *(f"{x:.3f}" for x in (mean, *wilson(mean, n_prompts)))])
    show(["cross-validated accuracy", "mean", "low", "high"], cells)
    say(f"{total:,} pairs about {n_prompts:,} prompts; low, high: 95 % interval, counting prompts.")
