"""How fast the parts are, and how much of the machine they use.

    python tests/benchmark.py                                        a table; --json FILE keeps it
    python tests/benchmark.py --peer_python OTHER/bin/python         beside TRL and transformers
    python tests/benchmark.py --peer_python ... --nanogpt FOLDER     and nanoGPT, its checkout
    python tests/benchmark.py growth --picture growth.png            how time and memory grow with what
    python tests/benchmark.py crowd                                  several trainings at once

"Peak" is the fastest product of two large matrices, measured here in the same process. Peers do the same
work (tests/peers.py), in turn with ours: one computes, the other waits. A ratio is of such a pair: 2 says
that the peer took twice as long. Nothing else should run meanwhile.
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmark_crowd import crowd
from benchmark_growth import growth
from benchmark_work import all_work
from conftest import ROOT

from data import UserError
from lab.cli import Help, Parser, run_main
from lab.report import table
from lab.terminal import wrapped

PEERS = {"train": "nanoGPT", "sample": "transformers", "ppo": "TRL", "reward": "TRL"}
HEADER = ("work", "seconds", "tokens/s", "of fp32 peak", "of bf16 peak", "peer's time / ours")

# ------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------


def seconds(work):
    """How long a unit of the work takes."""
    began = time.perf_counter()
    work.run()
    return (time.perf_counter() - began) / work.times


def peaks():
    """{dtype: operations a second of the fastest matrix product}."""
    return {str(dtype).removeprefix("torch."): peak(dtype) for dtype in (torch.float32, torch.bfloat16)}


def peak(dtype, n=1024, least=0.5):
    """Operations a second of the fastest product of two n x n matrices within `least` seconds."""
    a, b = torch.randn(2, n, n).to(dtype)
    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < least:
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * n**3 / min(times)


class Peer:
    """Another Python, which runs tests/peers.py. Raises UserError where it cannot."""

    def __init__(self, python, threads, nanogpt=None, script=ROOT / "tests" / "peers.py"):
        self.python = python
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it lives as long as the peer)
        environment = {**os.environ, "NANOGPT": str(nanogpt or "")}
        try:
            self.process = subprocess.Popen(
                [python, str(script), str(threads)], text=True, env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self.errors)
        except OSError as error:
            raise UserError(f"--peer_python {python}: it cannot be started ({error.strerror})") from error
        self.versions = self.reply("which packages it has")
        missing = " ".join(name for name, version in self.versions.items() if not version)
        if missing:
            raise UserError(f"--peer_python {python} has no {missing}: {python} -m pip install {missing}")

    def seconds(self, asked):
        """How long a unit of the work takes there."""
        with contextlib.suppress(BrokenPipeError):  # it is gone: then there is no reply
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        return self.reply(" ".join(map(str, asked)))

    def reply(self, what):
        line = self.process.stdout.readline()
        try:
            return json.loads(line)
        except ValueError:  # none, or a program that is no Python
            self.errors.seek(0)
            said = self.errors.read().strip().split("\n")[-1] or line.strip() or "nothing"
            raise UserError(f"--peer_python {self.python} could not do tests/peers.py ({what}); its last "
                            f"words: {said[:200]}") from None

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measured(name, work, asked, peer, dtypes, pairs):
    """A row of the table, as a dict. asked: of the peer, in each of the dtypes, or None."""
    work.run()  # to warm up
    row = {"work": name, "does": work.does, "tokens": work.tokens, "operations": work.operations, "peers": {}}
    ours = [] if asked else [seconds(work) for _ in range(pairs)]
    for dtype in dtypes if asked else ():
        both = [(seconds(work), peer.seconds([*asked, dtype])) for _ in range(pairs)]
        ours += [mine for mine, _ in both]
        ratios = [theirs / mine for mine, theirs in both]
        row["peers"][f"{PEERS[asked[0]]} {dtype}"] = {
            "pairs": both, "ratios": ratios, "ratio": statistics.median(ratios)}
    return row | {"seconds": statistics.median(ours), "measured": ours}


# ------------------------------------------------------------------------------------------------
# In words
# ------------------------------------------------------------------------------------------------


def against(found):
    """The ratios to all peers: the median, and where there are several pairs the ratio of each."""
    said = []
    for name, x in found.items():
        each = " ".join(f"{ratio:.2f}" for ratio in x["ratios"])
        said.append(f"{name} {x['ratio']:.2f}" + (f" (pairs: {each})" if len(x["ratios"]) > 1 else ""))
    return "; ".join(said) or None


def cells(row, most):
    """A row as the table has it. most: the peaks, operations a second in float32 and in bfloat16."""
    shares = [f"{row['operations'] / row['seconds'] / speed:.0%}" for speed in most.values()]
    return [row["work"], f"{row['seconds']:.3f}", f"{row['tokens'] / row['seconds']:,.0f}", *shares,
            against(row["peers"])]


def about(machine):
    """What it is measured with."""
    lines = [f"torch {machine['torch']}, threads: {machine['threads']}"]
    if machine["peers"]:
        versions = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
        lines += [f"peers: {versions}"]
    if machine["load"] > 0.5:
        lines += [f"Something else is running (load {machine['load']:.1f}): do not trust these figures."]
    return "\n".join(map(wrapped, lines))


def remarks(most):
    """What stands below the table."""
    said = ", ".join(f"{name} {speed / 1e9:,.1f}" for name, speed in most.items())
    lines = [f"Peak: {said} GFLOP/s. Tokens of PPO and of sampling are those of the answers. Seconds are "
             "medians."]
    if most["bfloat16"] < most["float32"]:
        lines += ["This processor has no units for bfloat16; torch emulates it, slowly."]
    return "\n".join(map(wrapped, lines))


# ------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------


def compare(args):
    """The table."""
    peer = args.peer_python and Peer(args.peer_python, args.threads, args.nanogpt)
    before = peaks()
    machine = {"torch": torch.__version__, "threads": args.threads, "load": args.load,
               "peers": peer.versions if peer else {}}
    print(about(machine), flush=True)
    dtypes = ["float32", "bfloat16"] if args.bfloat16 else ["float32"]
    rows = []
    for name, make, asked in all_work():
        if args.only in name:
            known = peer and asked and (args.nanogpt or PEERS[asked[0]] != "nanoGPT")
            work = make()
            print(wrapped(f"{name}: {work.does}", "    "), flush=True)
            rows.append(measured(name, work, known and asked, peer, dtypes, args.pairs))
            print(f"    {rows[-1]['seconds']:.3f} seconds", against(rows[-1]["peers"]) or "", flush=True)
    if peer:
        peer.close()
    after = peaks()
    most = {dtype: max(before[dtype], after[dtype]) for dtype in before}
    print("\n" + table(HEADER, [cells(row, most) for row in rows]))
    print(remarks(most))
    return {"machine": machine, "peaks": most, "rows": rows}


def positive(text):
    if not text.isdecimal() or not 0 < int(text) < 10_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 9999, got {text}")
    return int(text)


def arguments():
    parser = Parser(description=__doc__, allow_abbrev=False, formatter_class=Help)
    parser.add_argument("what", nargs="?", choices=("growth", "crowd"), help="instead of the table")
    parser.add_argument("--peer_python", metavar="PYTHON", help="with torch, transformers, trl, datasets")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a checkout of nanoGPT")
    parser.add_argument("--threads", type=positive, help="of ours and of the peer (default: all cores)")
    parser.add_argument("--pairs", type=positive, default=5, help="measurements of each row (default: 5)")
    parser.add_argument("--bfloat16", action="store_true", help="peers also so; very slow without units")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose name has it")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of growth, a PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    args = parser.parse_args()
    args.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return args


def check(args):
    """Raises UserError where flags do not fit together or a file is not where it should be."""
    if args.what and (args.peer_python or args.nanogpt or args.only):
        raise UserError(f"{args.what} is about our code alone: no --peer_python, --nanogpt or --only")
    if args.what == "crowd" and args.threads:
        raise UserError("crowd runs the scripts as they come: no --threads")
    if args.picture and args.what != "growth":
        raise UserError("--picture goes with growth")
    if args.nanogpt and not args.peer_python:
        raise UserError("--nanogpt needs a --peer_python, which runs it")
    if args.nanogpt and not (args.nanogpt / "model.py").is_file():
        raise UserError(f"--nanogpt {args.nanogpt}: expected a folder with nanoGPT's model.py")
    if args.only and not any(args.only in name for name, *_ in all_work()):
        names = "; ".join(name for name, *_ in all_work())
        raise UserError(f"--only {args.only}: expected a part of one of these: {names}")
    for file in filter(None, (args.picture, args.json)):
        if not file.resolve().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}")


def main():
    args = arguments()
    check(args)
    args.threads = args.threads or os.cpu_count()
    torch.manual_seed(0)
    if args.what == "growth":
        found = growth(args.threads, args.picture)
    elif args.what == "crowd":
        found = crowd()
    else:
        torch.set_num_threads(args.threads)
        found = compare(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main, stopped="Stopped."))
