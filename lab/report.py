"""Tables and pictures for a person, and the one comparison of models that SFT, PPO and the rounds share."""
import io
import json
import math
import os
import statistics
import textwrap
import warnings
from dataclasses import dataclass

import torch

import data
from lab import lock, parallel
from lab.measure import (
    chance_corrected,
    describe,
    differences,
    held_out_loss,
    hit,
    noise_ceiling,
    split_like,
    text_windows,
    win_rate,
)
from lab.records import write_atomic
from lab.talk import answer
from lab.terminal import terminal_width, visible, wrapped
from world.labelers import SimulatedHuman
from world.taste import gold_score
from world.tiny import in_tiny_world

COLORS = ("#2a6fdb", "#d9662b", "#2f9e62", "#9b59b6")  # legible on white, also for the colour-blind


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def shown(x):
    """A cell as text: what nobody knows (None, or a mean of nothing) is a dash, a float has two decimals."""
    if x is None or isinstance(x, float) and not math.isfinite(x):
        return "-"
    return f"{x:.2f}" if isinstance(x, float) else visible(str(x))


def table(header, rows, width=None):
    """A text table that fits the terminal. The first column is left-aligned, and so are long texts, which
    wrap. Where it is too wide its header wraps, then its columns stand in several blocks.

    header: texts; rows: lists of text, number or None, as many as the header.
    """
    width = width or terminal_width()
    cells = [[shown(x) for x in row] for row in [header, *rows]]
    columns = [list(column) for column in zip(*cells, strict=True)]
    if total(columns) > width:
        columns = [narrow_header(column) for column in columns]
    texts = sum(map(is_text, columns[1:]))
    if texts and total(columns) > width:
        figures = columns[:1] + [column for column in columns[1:] if not is_text(column)]
        room = (width - total(figures)) // texts - 2  # for each of the texts
        columns[1:] = [wrap_column(c, max(20, room)) if is_text(c) else c for c in columns[1:]]
    if total(columns) > width:
        columns[0] = wrap_column(columns[0], max(12, width // 3))
        columns[1:] = [wrap_column(c, width - column_width(columns[0]) - 2) for c in columns[1:]]
    blocks, block = [], columns[:1]
    for column in columns[1:]:
        if len(block) > 1 and total([*block, column]) > width:
            blocks.append(block)
            block = columns[:1]
        block = [*block, column]
    return "\n\n".join(map(laid_out, [*blocks, block]))


def is_text(column):
    """Whether a column holds answers, not figures."""
    return max(map(len, column[1:]), default=0) > 24


def total(columns):
    """Width of columns with two blanks between them; a cell may have several lines."""
    return sum(map(column_width, columns)) + 2 * (len(columns) - 1)


def column_width(column):
    return max(len(line) for cell in column for line in cell.split("\n"))


def narrow_header(column):
    """A header that is wider than what stands below it, in several lines."""
    body = column_width(column[1:] or [""])
    return [wrap_cell(column[0], max(body, 9, max(map(len, column[0].split()), default=1))), *column[1:]]


def wrap_cell(text, width):
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""])


def wrap_column(column, width):
    return [wrap_cell(cell, width) for cell in column]


def laid_out(columns):
    """Columns of cells with one or more lines -> the lines of the table, a rule under the header."""
    widths, left = [column_width(c) for c in columns], [True, *map(is_text, columns[1:])]
    lines = []
    for n, row in enumerate(zip(*columns, strict=True)):
        parts = [cell.split("\n") for cell in row]
        for i in range(max(map(len, parts))):
            pieces = [part[i] if i < len(part) else "" for part in parts]
            aligned = [piece.ljust(w) if at_left else piece.rjust(w)
                       for piece, w, at_left in zip(pieces, widths, left, strict=True)]
            lines.append("  ".join(aligned).rstrip())
        if n == 0:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------


def drawn(path, draw):
    """draw(an open file) makes a picture, which then lies at `path`, whole or not at all; of two processes
    one writes after the other. What prevents it is told, and stops nothing."""
    if not parallel.is_first():
        return
    try:
        file = io.BytesIO()
        draw(file)
        with lock.alone(path.parent, path.name):
            write_atomic(path, file.getvalue())
    except Exception as error:  # whatever a library for drawing comes up with: everything else is there
        print(wrapped(f"no picture ({type(error).__name__}: {error}); everything else is saved"))


def new_figure(size, layout="constrained"):
    """An empty picture of so many inches, that needs no screen."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook names one that only it has
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout=layout)


def write_figure(figure, path, **options):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks are shown as boxes
        FigureCanvasAgg(figure).print_figure(path, dpi=110, facecolor="white", format="png", **options)


def has_letters(text):
    """Whether the font of the pictures has all letters of a text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return all(font.get_char_index(ord(letter)) for letter in text)


def picture(path, rows, panels, caption=""):
    """Curves, drawn from the metrics of a stage. path: of a file, or an open one.

    rows: a dict a step; panels: (title, curves, unit of the y axis[, of the x axis[, options]]);
    curves: {label: key of the rows, drawn over the steps, or a list of points (x, y)};
    options: {"log": True} for a logarithmic y axis, {"right": (curves, unit)} for a second axis on the right.
    """
    columns = len(panels) if len(panels) <= 3 else 2
    lines = math.ceil(len(panels) / columns)
    size = 9.6, 2.7 * lines + 0.5  # inches: letters stay legible at 800 pixels
    caption = textwrap.fill(caption, 130)
    two_axes = any("right" in part for panel in panels for part in panel if isinstance(part, dict))
    figure = new_figure(size, layout=None)  # "constrained" takes as long as all the drawing
    grid = figure.add_gridspec(lines, columns, **room(size, lines, columns, caption.count("\n"), two_axes))
    for i, panel in enumerate(panels):
        line, column = divmod(i, columns)
        last = i + 1 == len(panels)  # it takes what is left of its line
        draw_panel(figure.add_subplot(grid[line, column:] if last else grid[line, column]), rows, *panel)
    figure.suptitle(caption, fontsize=9, x=0.01, y=1 - 0.08 / size[1], ha="left", va="top")
    write_figure(figure, path)


def room(size, lines, columns, breaks, two_axes):
    """The place of the panels in a picture of so many inches, for add_gridspec. breaks: lines of the caption
    but one; two_axes: whether a panel has an axis on the right."""
    (width, height), top, above = size, 0.6 + 0.15 * breaks, 0.85
    right, between = (0.7, 1.4) if two_axes else (0.15, 0.8)
    left, bottom = 0.65, 0.45
    wide = (width - left - right - between * (columns - 1)) / columns
    high = (height - top - bottom - above * (lines - 1)) / lines
    return {"left": left / width, "right": 1 - right / width, "wspace": between / wide,
            "bottom": bottom / height, "top": 1 - top / height, "hspace": above / high}


def draw_panel(axis, rows, title, curves, unit, x="step", options=None):
    """One panel of a picture, with a second axis where two units meet."""
    options = options or {}
    lines = draw_curves(axis, rows, curves, COLORS)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if options.get("log"):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")  # 0.1, not 10 to the power of -1
        axis.yaxis.set_minor_formatter(lambda y, _: between_powers(y, *axis.get_ylim()))
    if all(float(x).is_integer() for line in lines for x in line.get_xdata()):
        axis.xaxis.get_major_locator().set_params(integer=True)  # no step 2.5, no round 0.5
    if "right" in options:
        other = axis.twinx()
        more, right_unit = options["right"]
        lines += draw_curves(other, rows, more, COLORS[len(curves) :])
        other.set_ylabel(right_unit, fontsize=8)
        other.tick_params(labelsize=8)
        other.spines[["top", "left"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(handles=lines, fontsize=8, frameon=False)


def between_powers(y, low, high):
    """What stands at a tick y between two powers of ten, of an axis from low to high: the shorter the axis,
    the more ticks have their number."""
    digits = "24" if high > 100 * low else "246" if high > 4 * low else "123456789"
    return f"{y:g}" if f"{y:e}"[0] in digits else ""


def draw_curves(axis, rows, curves, colors):
    lines = []
    for (label, key), color in zip(curves.items(), colors, strict=False):
        points = key
        if isinstance(key, str):
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
        if points:
            marker = "o" if len(points) < 20 else None
            x, y = zip(*points, strict=True)
            lines += axis.plot(x, y, color=color, label=label, linewidth=1.6, marker=marker, markersize=3)
    return lines


# ------------------------------------------------------------------------------------------------
# One comparison of models
# ------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What `compare` found. answers: {model: its Answers, n to each prompt, prompt after prompt, n times};
    gold: {model: gold scores of its answers, or None}; text: table and some answers, to print;
    results: {measure: {model: number, text or None}} and gold, for a stage's state."""

    answers: dict
    gold: dict
    text: str
    results: dict


def compare(models, enc, rows, max_new_tokens, temperature=1.0, n=1, baseline=None, templates=None,
            reference=None, scorer=None, greedy=(), held_out=None, seed=0, examples=6):
    """Models on the same prompts, by what no training has seen.

    models: {name: GPT}; rows: of prompts.jsonl, all of one split; n: answers to each prompt
    baseline: the model that win rates are against; its greedy answers are those of the greedy ones
    templates: {name: False} for models that do not know the chat template
    reference: the model that KLs are to; scorer: a world.reward.Scorer, its scores in standard deviations
    greedy: names of models that are asked at temperature 0, too; held_out: tokens for the loss on text
    """
    prompts, templates = [row["prompt"] for row in rows], templates or {}
    torch.manual_seed(seed)
    answers = {}
    for name, model in models.items():
        known = templates.get(name, True)
        # with other words before the answers two models cannot be compared
        other = reference if known and model is not reference else None
        answers[name] = answer(model, enc, prompts * n, max_new_tokens, temperature, known, other)
    for name in greedy:
        answers[f"{name}, T=0"] = answer(models[name], enc, prompts, max_new_tokens, 0)
    found = {name: describe(asked(prompts, a), a) for name, a in answers.items()}
    for name, d in found.items():
        texts = [a.text for a in answers[name]]
        d["score"] = scorer.of_texts(enc, asked(prompts, texts), texts) if scorer else None
        d["distinct"] = len(set(texts[: len(prompts)])) / len(prompts)  # of one answer to each prompt
        kls = [a.kl for a in answers[name] if a.kl is not None]
        d["kl"] = mean(kls)
        loss = held_out is not None and name in models
        d["text_loss"] = held_out_text_loss(models[name], held_out) if loss else None
    who = "AI judge" if scorer and scorer.judge else "reward model"
    figures = measures(found, baseline, len(prompts), who)
    gold = {name: d["gold"] for name, d in found.items()}
    split = rows[0]["split"] if rows[0]["split"] != "train" else "training"
    cells = [[label, *row.values()] for label, row in figures.items()]
    cells = [row for row in cells if any(x is not None for x in row[1:])]
    lines = [table([f"{len(prompts)} {split} prompts", *answers], cells)]
    text = "\n".join(lines + some_answers(prompts, answers, examples))
    return Comparison(answers, gold, text, {**figures, "gold of each answer": gold})


def asked(prompts, answers):
    """The prompts that these answers answer: prompts repeated as often as it takes."""
    return prompts * (len(answers) // len(prompts))


def mean(values):
    return sum(values) / len(values) if values else None


def held_out_text_loss(model, tokens):
    """Next-token loss on held-out text, in nats a token."""
    return held_out_loss(model, text_windows(tokens, model.config.block_size))


def measures(found, baseline, n_prompts, who):
    """{label with its unit: {model: figure or None}}, from {model: what describe and compare found}."""
    def win(name, key):
        base = f"{baseline}, T=0" if name.endswith("T=0") else baseline
        if name == base or base not in found or not found[name][key] or not found[base][key]:
            return None
        ours, theirs = found[name][key], found[base][key]
        return "{:.2f} ({:.2f}-{:.2f})".format(*win_rate(ours, theirs[: len(ours)], n_prompts))

    def row(value):
        return {name: value(name) for name in found}

    return {
        "gold score, points": row(lambda name: mean(found[name]["gold"])),
        f"gold win rate against {baseline}": row(lambda name: win(name, "gold")),
        f"{who}'s score, SD": row(lambda name: mean(found[name]["score"])),
        f"win rate by {who}": row(lambda name: win(name, "score")),
        "KL to SFT, nats an answer": row(lambda name: found[name]["kl"]),
        "declines unsafe prompts": row(lambda name: found[name]["declines_unsafe"]),
        "declines safe prompts": row(lambda name: found[name]["declines_safe"]),
        "unknown sentences": row(lambda name: found[name]["unknown"]),
        "answers that end": row(lambda name: found[name]["ends"]),
        "distinct answers": row(lambda name: found[name]["distinct"]),
        "length, tokens": row(lambda name: found[name]["length"]),
        "loss on text, nats a token": row(lambda name: found[name]["text_loss"]),
    }


def some_answers(prompts, answers, examples):
    """Lines with a few prompts, spread evenly, and what each model answers."""
    places = list(range(0, len(prompts), max(1, len(prompts) // examples)))[:examples]
    names = [name for name in answers if not name.endswith("T=0")]
    width = max(len("prompt"), *map(len, names)) + 2
    lines = []
    for i in places:
        lines += ["", wrapped(f"{'prompt:':<{width}}{data.prompt_text(prompts[i])}", " " * width)]
        for name in names:
            text = " ".join(answers[name][i].text.split())
            lines.append(wrapped(f"{name + ':':<{width}}{text}", " " * width))
    return lines


def on_own_answers(scorer, enc, prompts, answers, seed):
    """How well a scorer tells a policy's own answers apart: (accuracy, ceiling, pairs), by labels of the
    simulated human that nothing is trained on. answers: one or more rounds of an Answer to each prompt."""
    texts = [a.text for a in answers]
    responses = [sorted(set(texts[i :: len(prompts)])) for i in range(len(prompts))]
    human = SimulatedHuman(seed + 3000)  # noise of its own
    tiers = [data.wins_to_tiers(wins) for wins in human.label(prompts, responses)]
    rows = [{"prompt": p, "responses": r, "tiers": t}
            for p, r, t in zip(prompts, responses, tiers, strict=True)]
    flat = [(row["prompt"], text) for row in rows for text in row["responses"]]
    scores = scorer.of_texts(enc, [p for p, _ in flat], [text for _, text in flat])
    d = differences(rows, split_like(rows, scores))
    return sum(map(hit, d)) / max(1, len(d)), noise_ceiling(rows, gold_score), len(d)


def truth_about(scorer, enc, prompts, comparison, name, demonstrations, seed):
    """(sentences, figures) that only a world with a gold score allows: what the demonstrations are worth, and
    how far the scorer is right about the answers of model `name`. demonstrations: rows of sft.jsonl."""
    if not in_tiny_world(prompts):
        return [], {}
    written = {json.dumps(d["prompt"]): d["response"] for d in demonstrations}
    gold = [gold_score(p, written[json.dumps(p)]) for p in prompts if json.dumps(p) in written]
    accuracy, ceiling, n = on_own_answers(scorer, enc, prompts, comparison.answers[name], seed)
    figures = {"demonstrations": mean(gold), "rm_accuracy": accuracy if n else None, "rm_ceiling": ceiling}
    figures["gold_std_sft"] = statistics.pstdev(comparison.gold["SFT"])
    lines = [f"Mean gold score of the demonstrations: {shown(mean(gold))} points."]
    if n:
        who = "The AI judge" if scorer.judge else "The reward model"
        lines.append(f"{who} on the answers of {name}: accuracy {accuracy:.3f} on {n} pairs, "
                     f"ceiling {ceiling:.3f}, chance-corrected {chance_corrected(accuracy, ceiling)} "
                     "(labels for this figure only; nothing learns from them).")
    return [wrapped(line) for line in lines], figures
