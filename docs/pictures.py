"""The pictures of docs/experiments.py: what is drawn is computed there."""
import math
import textwrap

from lab.report import COLORS, new_figure


def tidy(axis, title, x, y):
    """A panel as all pictures have it: title on the left, a light grid, no box."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, path, dpi=110, color="white"):
    figure.savefig(path, dpi=dpi, facecolor=color)


# ------------------------------------------------------------------------------------------------
# Reward hacking, AI labels
# ------------------------------------------------------------------------------------------------


def draw_hacking(path, logs):
    """Score and gold against the KL, an iteration a dot. logs: {label: rows of metrics}."""
    figure = new_figure((9, 3.4))
    axes = figure.subplots(1, 2)
    for (label, rows), color in zip(logs.items(), COLORS, strict=False):
        kl = [row["kl_full"] for row in rows]
        for axis, key in zip(axes, ("score", "gold"), strict=True):
            values = [row[key] for row in rows]
            axis.plot(kl, values, color=color, label=label, marker="o", markersize=2.5, linewidth=1)
    tidy(axes[0], "What the reward model says", "KL to the SFT model, nats an answer", "score, SD")
    tidy(axes[1], "The truth, never trained on", "KL to the SFT model, nats an answer", "gold score, points")
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1)
    axes[0].legend(fontsize=9, frameon=False)
    save(figure, path)


def draw_ai_labels(path, curve, human, human_label):
    """Reward models on more and more AI labels. curve: [(pairs, accuracy)]; human: that of human labels."""
    figure = new_figure((5.2, 3.4))
    axis = figure.subplots()
    axis.plot(*zip(*curve, strict=True), color=COLORS[0], marker="o", label="AI labels")
    axis.axhline(human, color=COLORS[1], linewidth=1, linestyle="--", label=human_label)
    tidy(axis, "Reward model on the human's held-out rankings", "pairs labelled by the AI",
         "chance-corrected accuracy")
    axis.set(xscale="log", ylim=(0, 1))
    axis.set_xticks([n for n, _ in curve], [f"{n:,}" for n, _ in curve])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
    save(figure, path)


# ------------------------------------------------------------------------------------------------
# Over-optimisation
# ------------------------------------------------------------------------------------------------


def draw_overoptimisation(path, best, ways, fits):
    """Score and gold against d = sqrt(KL), best-of-n on the left, PPO on the right.

    best: {"d", "score", "gold"}, lists over n; ways: {KL coefficient: the same, lists over iterations}
    fits: (of best-of-n, of PPO): (alpha, beta, curve, peak, d up to which it is drawn)"""
    figure = new_figure((10, 3.8))
    axes = figure.subplots(1, 2)
    for key, color in zip(("score", "gold"), COLORS, strict=False):
        axes[0].plot(best["d"], best[key], "o", color=color, markersize=4, label=key)
    for (c, way), color in zip(ways.items(), COLORS, strict=False):
        label = f"gold, KL coefficient {c}"
        axes[1].plot(way["d"], way["gold"], ".", color=color, markersize=4, label=label)
        axes[1].plot(way["d"], way["score"], "x", color=color, markersize=3, alpha=0.5)
    axes[1].plot([], [], "x", color="gray", label="score")
    for axis, fit, name in zip(axes, fits, ("d", "log d"), strict=True):
        draw_fit(axis, *fit, name)
    axes[1].set_xlim(-0.2, 1.05 * fits[1][-1])
    titles = ("Best of n answers of the SFT model, n up to 256",
              "PPO, an iteration a dot; drawn up to a KL of a nat a token")
    for axis, title in zip(axes, titles, strict=True):
        tidy(axis, title, "square root of the KL to the SFT model, nats", "SD of the SFT model's answers")
    axes[0].legend(fontsize=7, frameon=False)
    axes[1].legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0.2, 0))
    save(figure, path)


def draw_fit(axis, alpha, beta, curve, peak, end, name):
    """The line d (alpha - beta curve(d)), with its peak where that is inside."""
    xs = [0.05 + (end - 0.05) * i / 199 for i in range(200)]
    label = f"fit: d ({alpha:.2f} - {beta:.2f} {name})"
    axis.plot(xs, [x * (alpha - beta * curve(x)) for x in xs], color="black", linewidth=1, label=label)
    if math.isfinite(peak) and peak < end:
        axis.axvline(peak, color="gray", linewidth=0.8, linestyle=":")
        axis.annotate(f"peak of the fit, d = {peak:.1f}", (peak, 0.02), xycoords=("data", "axes fraction"),
                      fontsize=8, rotation=90, va="bottom", ha="right")


# ------------------------------------------------------------------------------------------------
# Alternatives to PPO
# ------------------------------------------------------------------------------------------------


def draw_alternatives(path, curves, points):
    """Gold score against d = sqrt(KL). curves: {method: [(KL, gold score), ...]}, of its training; points:
    {method, "best of n" or round: (KL, gold score)}, on test prompts, larger where a curve ends there."""
    figure = new_figure((8, 4.2))
    axis = figure.subplots()
    colors = dict(zip([*curves, "DPO"], COLORS, strict=True))
    for name, line in curves.items():
        d, gold = [max(kl, 0) ** 0.5 for kl, _ in line], [gold for _, gold in line]
        axis.plot(d, gold, color=colors[name], linewidth=1.2, marker=".", markersize=4, label=name)
    for name, (kl, gold) in points.items():
        if name == "rejection sampling":  # its last round, which is there
            continue
        style = {"color": colors.get(name, INK), "marker": "s" if name.startswith("best") else "o"}
        axis.plot(max(kl, 0) ** 0.5, gold, markersize=8 if name in colors else 5, **style)
        axis.annotate(name, (max(kl, 0) ** 0.5, gold), (6, -10), textcoords="offset points", fontsize=8,
                      color=style["color"])
    tidy(axis, "Lines: training, four iterations a dot. Marks: what came out, on test prompts",
         "square root of the KL to the SFT model, nats", "gold score, points")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, path)


# ------------------------------------------------------------------------------------------------
# The first picture
# ------------------------------------------------------------------------------------------------

PAPER, INK, FAINT = "#eceff3", "#1d2733", "#5a6675"  # a ground that is neither white nor black
INNER = 64  # characters in a line of a box


def draw_first(path, prompt, boxes, rows):
    """800 pixels: left the four stages and what each answers, right score and gold over PPO's iterations.

    boxes: [(stage, what it learned from, answer)]; rows: metrics of PPO, a row an iteration."""
    figure = new_figure((8, 4.2), layout=None)
    left = figure.add_axes((0.0, 0.0, 0.6, 1.0))
    left.axis("off")
    left.set(xlim=(0, 1), ylim=(0, 1))
    left.text(0.03, 0.945, f"“{prompt}”", fontsize=12, color=INK, weight="bold", va="center")
    left.text(0.97, 0.945, "always the likeliest token", fontsize=8.5, color=FAINT, va="center", ha="right")
    height, gap = 0.185, 0.035
    for i, (stage, learned, said) in enumerate(boxes):
        top = 0.885 - i * (height + gap)
        draw_box(left, top, height, stage, learned, said, COLORS[i])
        if i + 1 < len(boxes):
            left.annotate("", (0.5, top - height - gap), (0.5, top - height), color=INK,
                          arrowprops={"arrowstyle": "-|>", "color": FAINT, "shrinkA": 0, "shrinkB": 0})
    draw_race(figure, rows)
    save(figure, path, dpi=100, color=PAPER)


def draw_box(axis, top, height, stage, learned, said, color):
    """A stage: its name, what it learned from, and what it says, in two lines at most."""
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((0.03, top - height), 0.94, height, boxstyle="round,pad=0,rounding_size=0.02",
                           facecolor="white", edgecolor=color, linewidth=1.6)
    axis.add_patch(shape)
    axis.text(0.055, top - 0.045, stage, fontsize=10, weight="bold", color=color, va="center")
    axis.text(0.945, top - 0.045, learned, fontsize=8.5, color=FAINT, va="center", ha="right")
    lines = [line for part in said.split("\n") for line in textwrap.wrap(part, INNER)]
    if len(lines) > 2:
        lines = textwrap.wrap(said, INNER, max_lines=2, placeholder=" ...")
    axis.text(0.055, top - 0.118, "\n".join(lines), fontsize=9, color=INK, va="center", linespacing=1.15)


def draw_race(figure, rows):
    """The score that PPO is paid for and the gold score, over the iterations."""
    axis = figure.add_axes((0.672, 0.16, 0.258, 0.64), facecolor=PAPER)
    other = axis.twinx()
    steps = [row["step"] + 1 for row in rows]
    axis.plot(steps, [row["score"] for row in rows], color=COLORS[0], linewidth=1.8)
    other.plot(steps, [row["gold"] for row in rows], color=COLORS[1], linewidth=1.8)
    axis.set_xlabel("PPO iteration", fontsize=9, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    for side, color in ((axis, COLORS[0]), (other, COLORS[1])):
        side.tick_params(axis="y", colors=color, labelsize=8)
        side.spines["top"].set_visible(False)
        for name in ("left", "right", "bottom"):
            side.spines[name].set_color(FAINT)
    axis.yaxis.get_major_locator().set_params(nbins=6, steps=[1, 2, 5, 10])
    figure.text(0.625, 0.965, "PPO learns", fontsize=10.5, weight="bold", color=INK, va="top")
    figure.text(0.625, 0.84, "reward model's\nscore, SD", fontsize=8.5, color=COLORS[0], va="center")
    figure.text(0.985, 0.84, "gold score (the\ntruth), points", fontsize=8.5, color=COLORS[1], va="center",
                ha="right")
