"""The microscope: one PPO step, token by token.

    python -m lab.explain runs/tiny/ppo.pt                                      the answer to "A dog is"
    python -m lab.explain runs/tiny/ppo.pt --prompt "How do I steal a dog?"     to another prompt
    python -m lab.explain runs/tiny/ppo.pt --ppo_epochs 4                       what if it had four passes?

Loads a checkpoint of train_ppo.py with everything that belongs to it, makes one more rollout and update in
memory, on a batch that begins with --prompt, and tells what happens to each token of that answer: two tables,
how their columns add up, in words, and a picture beside the checkpoint. The checkpoint stays as it is.
"""
import lab.before_torch
import importlib
import textwrap
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

import data
from lab.cli import Help, Parser, convert, knobs_from, run_main
from lab.data_folder import training_prompts
from lab.explain_words import branch_in_words, in_words, obedient, score_in_words, what_is_learned
from lab.machine import pick_device, set_random_state
from lab.optim import adam, set_lr
from lab.records import check_parents, damaged, load_checkpoint, load_model, restore
from lab.report import COLORS, drawn, has_letters, new_figure, write_figure
from lab.scorers import load_scorer, reward_models
from lab.terminal import colors, terminal_width, wrapped
from lab.tokens import encoding_of, room_for_prompts
from model import response_hidden, token_logprobs

# What may be given anew for the step that is shown; every other knob is the checkpoint's.
WHAT_IF = ("batch_size", "minibatch_size", "micro_batch_size", "ppo_epochs", "clip", "value_clip", "gamma",
           "lam", "whiten_advantages")
# Columns of the tables, in the order of a step: {name: (what it is, its unit)}.
BEFORE = {
    "log p": ("log-probability, policy", "nats"),
    "reference": ("log-probability, reference", "nats"),
    "KL": ("KL: the difference", "nats, cost beta"),
    "reward": ("reward: score - beta KL", "SD"),
    "value": ("value: the critic expects", "SD"),
    "return": ("return: advantage + value", "SD"),
    "advantage": ("advantage: more than expected", "SD"),
    "whitened": ("advantage, whitened", "std"),
}
AFTER = {
    "new log p": ("log-probability, policy", "nats"),
    "ratio": ("ratio of the probabilities", "new / old"),
    "branch": ("branch of the loss", "next time"),
}
COLUMNS = {**BEFORE, **AFTER}
NEUTRAL = {"KL": 0, "reward": 0, "advantage": 0, "whitened": 0, "ratio": 1}  # where a colour begins
GREEN, RED, YELLOW = 32, 31, 33


# ------------------------------------------------------------------------------------------------
# The figures of one answer
# ------------------------------------------------------------------------------------------------


def clipped_tokens(policy_loss, logprobs, old_logprobs, advantages, clip):
    """Of which tokens the clip stops the gradient: the loss itself is asked, a token at a time.

    policy_loss: train_ppo.ppo_policy_loss; logprobs, old_logprobs, advantages: (R,). Returns R bools."""
    one = torch.ones(1, 1, device=logprobs.device)
    tokens = zip(*(x[:, None].split(1) for x in (logprobs, old_logprobs, advantages)), strict=True)
    return [bool(policy_loss(*token, one, clip)[1]["clip_fraction"] == 1) for token in tokens]


def columns_of(policy_loss, batch, new_logprobs, cfg, i=0):
    """What a step did to the tokens of answer i: {name, as in COLUMNS: a number for each token}; branch is 1
    where it is the clipped one.

    policy_loss: train_ppo.ppo_policy_loss; batch: of train_ppo.rollout; new_logprobs: (B, R), of the same
    tokens under the policy after train_ppo.update."""
    old, ref = batch.old_logprobs, batch.ref_logprobs
    all_rows = {
        "log p": old,
        "reference": ref,
        "KL": old - ref,
        "reward": batch.rewards,
        "value": batch.old_values,
        "return": batch.returns,
        "advantage": batch.returns - batch.old_values,
        "whitened": batch.advantages,
        "new log p": new_logprobs,
        "ratio": (new_logprobs - old).exp(),
    }
    if not cfg.whiten_advantages:
        del all_rows["whitened"]
    length = int(batch.mask[i].sum())
    row = {name: x[i, :length] for name, x in all_rows.items()}
    learned = row[what_is_learned(cfg)]
    branch = clipped_tokens(policy_loss, row["new log p"], row["log p"], learned, cfg.clip)
    return {name: x.tolist() for name, x in row.items()} | {"branch": [float(x) for x in branch]}


# ------------------------------------------------------------------------------------------------
# As tables and as a picture
# ------------------------------------------------------------------------------------------------


def cell(name, x, color):
    """A number in ten columns. color: green above 0 (a ratio: above 1), red below, as far as three digits
    show it; a clipped token yellow."""
    if name == "branch":
        text, code = ("clipped", YELLOW) if x else ("plain", None)
        text = f"{text:>10}"
    else:
        text = f"{x:z10.3f}"
        above = round(x - NEUTRAL.get(name, x), 3)
        code = GREEN if above > 0 else RED if above < 0 else None
    return f"\033[{code}m{text}\033[0m" if color and code else text


def token_lines(tokens, columns, width=100, color=False):
    """A line for each token, in as many tables as it takes: what was known before the step, then what it
    changed, each in at most `width` columns of the terminal. Returns lines, an empty one between tables."""
    first = max(5, *map(len, tokens))
    fit = max(1, (width - first) // 10)  # columns of numbers to a table
    groups = [[name for name in columns if name in part] for part in (BEFORE, AFTER)]
    tables = [names[start : start + fit] for names in groups for start in range(0, len(names), fit)]
    lines = []
    for names in tables:
        head = "token".ljust(first) + "".join(f"{name:>10}" for name in names)
        rows = (token.ljust(first) + "".join(cell(name, columns[name][t], color) for name in names)
                for t, token in enumerate(tokens))
        lines += ["", head, "-" * len(head), *rows]
    return lines[1:]


def draw_tokens(path, tokens, columns, clip, caption):
    """The tables as a picture: a strip for each column, up to 16 tokens to a line; strips of one unit share
    their shades. Blue is above 0 (a ratio: above 1), orange below."""
    width = -(-len(tokens) // -(-len(tokens) // 16))  # lines of equal length
    starts = range(0, len(tokens), width)
    figure = new_figure((9.6, 3.2 * len(starts) + 0.6))
    axes = figure.subplots(len(starts), squeeze=False)
    for axis, start in zip(axes.flat, starts, strict=True):
        draw_line(axis, tokens, columns, clip, slice(start, start + width))
        axis.set_xlim(-0.5, max(width, 8) - 0.5)
    figure.suptitle(caption, fontsize=9, x=0.01, ha="left", parse_math=False)
    write_figure(figure, path, bbox_inches="tight")


def draw_line(axis, tokens, columns, clip, part):
    """The strips of the tokens in the slice `part`."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("", [COLORS[1], "white", COLORS[0]])
    step = list(columns).index("new log p")  # where a gap says: after the step
    places = [y + 0.8 if y >= step else float(y) for y in range(len(columns))]
    for y, (name, x) in zip(places, columns.items(), strict=True):
        most = 1.3 * largest(name, columns, clip)
        strip = shade(name, x)[part]
        edges = (-0.5, len(strip) - 0.5, y + 0.46, y - 0.46)
        axis.imshow([strip], cmap=shades, vmin=-most, vmax=most, extent=edges, aspect="auto")
        for t, v in enumerate(x[part]):
            text = f"{v:z.2f}" if name != "branch" else "clipped" if v else "plain"
            axis.text(t, y, text, fontsize=8, ha="center", va="center")
    axis.text(-0.5, step - 0.1, "after the step", fontsize=9, weight="bold", va="center")
    axis.set_ylim(places[-1] + 0.5, -0.5)
    names, plain = tokens[part], {"weight": "bold", "parse_math": False}
    axis.set_xticks(range(len(names)), names, fontsize=9, rotation=30, ha="left", **plain)
    axis.set_yticks(places, ["{} ({})".format(*COLUMNS[name]) for name in columns], fontsize=8)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)


def shade(name, x):
    """A column as it is coloured: a ratio by how far it is from 1, a clipped token orange."""
    if name == "ratio":
        return [v - 1 for v in x]
    return [-v for v in x] if name == "branch" else x


def largest(name, columns, clip):
    """The value that gets the full shade: the largest of all columns of the same unit."""
    same = [other for other in columns if COLUMNS[other][1] == COLUMNS[name][1]]
    least = clip if name == "ratio" else 0
    return max([1e-9, least, *(abs(v) for other in same for v in shade(other, columns[other]))])


# ------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------


class Opened:
    """A finished stage that is only looked at: what functions of a script ask a `lab.run.Stage` for."""

    def __init__(self, path, checkpoint, cfg, device):
        self.path, self.checkpoint, self.cfg, self.device = path, checkpoint, cfg, device
        self.folder, self.data, self.state = path.parent, path.parent / "data", checkpoint["state"]

    def encoding(self):
        return encoding_of(self.folder, [self.checkpoint])

    def parent(self, name):
        """Path of a parent's checkpoint. Raises UserError where it is gone, or another one than then."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            raise data.UserError(f"{path}, which {self.path.name} was trained with, is no longer there")
        check_parents(self.path, self.checkpoint)
        return path


def arguments(config_class, argv):
    """(checkpoint, prompt and device; {knob of WHAT_IF: value} of those that were given)."""
    parser = Parser(prog="lab.explain", description=__doc__, formatter_class=Help)
    parser.add_argument("checkpoint", type=Path, help="of train_ppo.py, such as runs/tiny/ppo.pt")
    parser.add_argument("--prompt", default="A dog is", help="whose answer is shown [A dog is]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    group = parser.add_argument_group("of the one step that is shown; what is not given is the checkpoint's")
    known = {f.name: f for f in fields(config_class)}
    for name in WHAT_IF:
        f = known[name]
        kind, reason = f.type.__name__, f.metadata["reason"]
        group.add_argument(f"--{name}", type=partial(convert, f), metavar=kind, help=reason)
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in WHAT_IF if getattr(args, name) is not None}
    return args, given


def open_checkpoint(path, config_class, given, device):
    """The stage at `path` as an `Opened`, with its own knobs but those that are given."""
    checkpoint = load_checkpoint(path)
    if checkpoint["stage"] != "ppo":
        raise data.UserError(f"{path} is a checkpoint of the stage {checkpoint['stage']}; a PPO step needs "
                             "one of train_ppo.py, such as runs/tiny/ppo.pt")
    if not {"kl_coef", "sft_scale"} <= checkpoint["state"].keys():
        raise damaged(path, "a part of its state is missing")
    knobs = knobs_from(config_class, checkpoint["knobs"], path)
    cfg = config_class(**{**knobs, **given, "run": path.parent.name, "name": path.stem})
    return Opened(path, checkpoint, cfg, device)


def load_agent(ppo, stage, reference, scorer):
    """(agent, optimizer) as the checkpoint has them, the learning rate at its peak, for it ended at 0."""
    cfg, checkpoint = stage.cfg, stage.checkpoint
    agent = ppo.make_agent(cfg, reference, scorer)
    optimizer = adam(*zip(agent.networks, (cfg.lr, cfg.critic_lr), strict=False))
    networks = dict(zip(("model", "critic"), agent.networks, strict=False))
    restore(stage.path, checkpoint, {**networks, "optimizer": optimizer})
    set_lr(optimizer, 0, cfg.steps, warmup=0)
    return agent, optimizer


@torch.no_grad()
def logprobs_now(policy, batch, temperature):
    """Log-probabilities of a batch's tokens under the policy as it is now: (B, R)."""
    hidden = response_hidden(policy, batch.tokens, batch.prompt_lengths, batch.mask.shape[1])
    return token_logprobs(policy.lm_head(hidden), batch.responses, temperature)


@torch.no_grad()
def parts_of_score(scorer, enc, batch):
    """{what gave the first answer its score: (1,)}: reward models by their names, or the AI that rates."""
    if scorer.judge:
        return {"rating by the AI, from -1 to 1:": batch.raw[:1]}
    names = reward_models(scorer.kind)
    if len(names) == 1:
        return {names[0]: batch.raw[:1]}
    # the tokens as they were sampled: their text may have other ones; whoever was cut off gets an EOS
    n = int(batch.prompt_lengths[0] + batch.mask[0].sum())
    eos = torch.full((1, 1), enc.eot_token, device=batch.tokens.device)
    tokens = batch.tokens[:1, :n] if batch.ended[0] else torch.cat([batch.tokens[:1, :n], eos], 1)
    length = torch.tensor([tokens.shape[1]], device=tokens.device)
    return {name: model.score(tokens, length) for name, model in zip(names, scorer.models, strict=True)}


def free_path(path, suffix):
    """A path beside a checkpoint that nothing has yet: ppo.explain.png, ppo.explain.2.png, ..."""
    number, free = 1, path.with_suffix(suffix + ".png")
    while free.exists():
        number += 1
        free = path.with_suffix(f"{suffix}.{number}.png")
    return free


def words_for(ppo, stage, batch, updates, new, columns, scorer, parts, beta):
    """How everything adds up: {column: text}, the score before them, the branch behind them."""
    cfg, mask = stage.cfg, batch.mask.bool()
    raw_advantages = (batch.returns - batch.old_values)[mask]
    mean, std = raw_advantages.mean().item(), raw_advantages.std(correction=0).item() or 1e-4
    ratios = (new - batch.old_logprobs).exp()
    everywhere = obedient(batch.advantages[mask].tolist(), ratios[mask].tolist())
    _, numbers = ppo.ppo_policy_loss(new, batch.old_logprobs, batch.advantages, batch.mask, cfg.clip)
    return {
        "score": score_in_words(scorer, batch, parts, cfg),
        **in_words(columns, batch.scores[0].item(), beta, mean, std, cfg, everywhere),
        "branch": branch_in_words(columns, cfg, updates, float(numbers["clip_fraction"])),
    }


def names_of_tokens(enc, ids):
    """Tokens for a person: a blank in front stays visible, EOS has its name."""
    return ["EOS" if i == enc.eot_token else repr(enc.decode_single_token_bytes(i))[2:-1] for i in ids]


CAPTION = ("Blue: above 0 (a ratio: above 1), orange: below. Look for: the score, on the last token only; "
           "the advantage, which shares it out among the tokens; ratios above 1 where the advantage is above "
           "0, below 1 where it is below: most, not all, for every answer of the batch pulls at the same "
           "weights; clipped tokens, which have no gradient.")


def caption_of(changed, prompt):
    """What stands above the picture; a prompt whose letters the font lacks is left out."""
    text = " ".join(prompt.split())[:80]
    asked = f', prompt "{text}"' if has_letters(text) else ""
    return f"A PPO step{changed}{asked}: each token of the answer.\n{textwrap.fill(CAPTION, 125)}"


def main(argv=None):
    ppo = importlib.import_module("train_ppo")  # a script, which nothing here imports at the top
    args, given = arguments(ppo.Config, argv)
    stage = open_checkpoint(args.checkpoint, ppo.Config, given, pick_device(args.device))
    cfg, enc, beta = stage.cfg, stage.encoding(), stage.state["kl_coef"]
    reference, _ = load_model(stage.parent(cfg.start), stage.device)
    room = room_for_prompts(cfg.max_new_tokens, reference)
    length = len(data.encode_prompt(enc, args.prompt))
    if not args.prompt.strip():
        raise data.UserError("--prompt: expected a text, found an empty one")
    if length > room:
        raise data.UserError(f"--prompt: expected a text of at most {room} tokens, those of the template "
                             f"included; this one has {length}")
    scorer = load_scorer(stage, cfg.reward, enc, cfg)
    scorer.mean, scorer.std = stage.state["sft_scale"]
    agent, optimizer = load_agent(ppo, stage, reference, scorer)
    corpus, _ = data.tokens_of(enc, data.load_text(stage.data))
    prompts = training_prompts(stage.data, cfg.leave_out)
    set_random_state(stage.checkpoint["random"])

    others = torch.randint(len(prompts), (cfg.batch_size - 1,)).tolist()
    asked = [args.prompt, *(prompts[i] for i in others)]
    ids = [data.encode_prompt(enc, prompt)[-room:] for prompt in asked]
    batch = ppo.rollout(agent, reference, scorer, enc, asked, ids, cfg, beta)
    updates = ppo.update(agent, optimizer, batch, cfg, corpus)
    new = logprobs_now(agent.policy, batch, cfg.temperature)

    columns = columns_of(ppo.ppo_policy_loss, batch, new, cfg)
    parts = parts_of_score(scorer, enc, batch)
    words = words_for(ppo, stage, batch, updates, new, columns, scorer, parts, beta)
    tokens = names_of_tokens(enc, batch.responses[0, : len(columns["KL"])].tolist())
    changed = "".join(f", --{name} {value}" for name, value in given.items())
    color = colors()
    print(wrapped(f"{stage.path} after step {stage.checkpoint['step']}, and one more step in "
                  f"memory{changed}: {len(asked)} answers, {len(updates)} optimizer steps at the peak "
                  f"learning rate {cfg.lr:g}. The checkpoint stays as it is."))
    print(wrapped(f"\nprompt: {args.prompt}\nanswer: {batch.texts[0]}\n", " " * 8))
    print(*token_lines(tokens, columns, terminal_width(), color), sep="\n")
    print("\nHow it adds up (rounding shows in the last digits):\n")
    for name, text in words.items():
        print(wrapped(f"{name:<11}{text}", " " * 11))
    path = free_path(stage.path, ".explain")
    drawn(path, lambda file: draw_tokens(file, tokens, columns, cfg.clip, caption_of(changed, args.prompt)))
    if path.exists():
        print(f"\nThe same as a picture: {path}")


if __name__ == "__main__":
    run_main(main)
