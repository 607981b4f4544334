"""How time and memory of a training step grow with batch, length, width and layers, and those of a rollout of
PPO with the number of answers. Each size is measured in a process of its own: `python tests/benchmark.py
growth`."""
import math
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from benchmark_work import rollout, training
from peers import shape

from data import UserError
from lab.report import COLORS, drawn, new_figure, table, write_figure

BASE = {**shape("tiny"), "rows": 8}
SIZES = {  # of what grows, each twice the one before; all else is as in BASE
    "batch": (4, 8, 16, 32),
    "length": (64, 128, 256, 512),
    "width": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
    "answers": (16, 32, 64, 128),
}
FIELD = {"batch": "rows", "length": "block_size", "width": "n_embd", "layers": "n_layer"}
SMALL = {**BASE, "rows": 1, "block_size": 8, "n_layer": 1}
HEADER = ("what grows", "size", "seconds", "MB")


@dataclass
class Curve:
    """sizes -> seconds and megabytes, as lists."""

    sizes: list
    seconds: list
    megabytes: list

    def exponents(self):
        return {"time": exponent(self.sizes, self.seconds), "memory": exponent(self.sizes, self.megabytes)}


# ------------------------------------------------------------------------------------------------
# A measurement, in a process of its own
# ------------------------------------------------------------------------------------------------


def work_of(what, size):
    """The Work of a step or of a rollout at a size; None: at a very small one."""
    if what == "answers":
        return rollout(shape("tiny"), size or 1)
    s = {**BASE, FIELD[what]: size} if size else dict(SMALL)
    return training(s, s.pop("rows"))


def most_memory():
    """The most bytes that this process has had in memory so far."""
    import resource  # Windows has none

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # kilobytes on Linux


def measure(what, size, threads, times=2):
    """(seconds, bytes) of a piece of work: the least time, and the peak of the memory beyond what a very
    small piece of the same kind needs, libraries included."""
    torch.set_num_threads(threads)
    work_of(what, None).run()
    before, work = most_memory(), work_of(what, size)
    found = []
    for _ in range(times + 1):  # the first to warm up
        began = time.perf_counter()
        work.run()
        found.append(time.perf_counter() - began)
    return min(found[1:]), most_memory() - before


def in_a_process(what, size, threads):
    """measure in a fork of this process: its peak is its own, and counts from where it began. This process
    itself must have computed nothing with several threads, which a fork lacks. Raises UserError."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError("growth measures memory in forked processes, which this system does not have")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(measure(what, size, threads)))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise UserError(f"{what} {size}: the process that measured it died; is there memory?") from None
    finally:
        process.join()


def curves(threads):
    """{what grows: its Curve}."""
    found = {}
    for what, sizes in SIZES.items():
        measures = [in_a_process(what, size, threads) for size in sizes]
        seconds, memory = zip(*measures, strict=True)
        found[what] = Curve(list(sizes), list(seconds), [n / 1e6 for n in memory])
        print(in_words(what, found[what]), flush=True)
    return found


# ------------------------------------------------------------------------------------------------
# What it says
# ------------------------------------------------------------------------------------------------


def exponent(sizes, values):
    """The slope of a straight line through the logarithms: values ~ sizes^slope."""
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    return statistics.linear_regression(x, y).slope


def pace(slope):
    """An exponent in words."""
    kinds = ((0.15, "hardly grows"), (0.9, "grows more slowly than it"), (1.1, "grows in proportion to it"),
             (1.75, "grows faster than it"), (math.inf, "grows about with its square or faster"))
    return next(said for limit, said in kinds if slope < limit)


def in_words(what, curve):
    """A sentence each on time and memory."""
    of = "a rollout" if what == "answers" else "a training step"
    lines = [f"{what}, {curve.sizes[0]} to {curve.sizes[-1]}:"]
    for kind, slope in curve.exponents().items():
        values = curve.seconds if kind == "time" else curve.megabytes
        lines += [f"  {kind} of {of} {pace(slope)}: exponent {slope:.2f}, a doubling takes "
                  f"{2**slope:.1f} times as much, the last one {values[-1] / values[-2]:.1f}"]
    return "\n".join(lines)


def draw(file, found):
    """A row of panels for time and one for memory; the dashed line has slope 1."""
    figure = new_figure((2.6 * len(found), 5.2))
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (what, curve) in zip(axes.T, found.items(), strict=True):
        slopes = curve.exponents()
        rows = (("time", "seconds", curve.seconds), ("memory", "MB", curve.megabytes))
        for axis, (kind, unit, values), color in zip(column, rows, COLORS, strict=False):
            draw_panel(axis, curve.sizes, values, color)
            axis.set_title(rf"{kind} $\propto$ {what}$^{{{slopes[kind]:.2f}}}$", fontsize=10, loc="left")
            axis.set_xlabel(what, fontsize=9)
            axis.set_ylabel(unit, fontsize=9)
    figure.suptitle("A training step; of PPO (right) a rollout. Fitted exponents; dashed: in proportion",
                    fontsize=11)
    write_figure(figure, file)


def draw_panel(axis, sizes, values, color):
    proportional = [values[0] * size / sizes[0] for size in sizes]
    axis.plot(sizes, proportional, color="gray", linestyle="--", linewidth=1)
    axis.plot(sizes, values, color=color, marker="o", markersize=4)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_yticks(values, [f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in values])
    axis.minorticks_off()
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def growth(threads, path=None):
    """Measures, prints, draws. Returns what to keep as JSON."""
    found = curves(threads)
    rows = [[what, str(size), f"{seconds:.3f}", f"{megabytes:,.0f}"] for what, curve in found.items()
            for size, seconds, megabytes in zip(*vars(curve).values(), strict=True)]
    print("\n" + table(HEADER, rows))
    if path:
        drawn(path, lambda file: draw(file, found))
    return {what: {**vars(curve), "exponents": curve.exponents()} for what, curve in found.items()}
