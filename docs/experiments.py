"""The README's tables and pictures that no single training command makes.

    python docs/experiments.py seeds              the whole tiny pipeline on seeds 0 to 4, one row each
    python docs/experiments.py hacking            kl_coef 0 against the default: proxy and gold against KL
    python docs/experiments.py losses             reward models trained on pairs (Bradley-Terry) and on Elo scores (regression)
    python docs/experiments.py elo                one ranking as Elo scores and as a Bradley-Terry fit
"""
import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from experiment import COLORS, table  # noqa: E402
from preferences import bradley_terry_fit, elo_scores  # noqa: E402


def train(*flags, script="train_ppo.py"):
    """Run a stage (and whatever is missing before it) as a command; a stage that is finished is left alone."""
    subprocess.run([sys.executable, ROOT / script, *flags], check=True)


def results(path):
    """What a stage measured at its end."""
    return torch.load(path, weights_only=True)["state"]["results"]


def seeds(args):
    """Every seed runs every stage from random weights; the test prompts are the same."""
    rows = []
    for seed in range(args.seeds):
        begin = time.time()
        train("--config", "tiny", "--seed", str(seed))
        seconds = time.time() - begin
        folder = Path("runs") / ("tiny" + f"-seed{seed}" * bool(seed))
        r = results(folder / "ppo.pt")
        first, second = (results(folder / f"{rm}.pt")["sft"] for rm in ("rm", "rm.2"))
        rows.append([
            f"seed {seed}", r["gold win rate against SFT"]["PPO"], r["gold win rate against SFT"]["PPO greedy"],
            *(r["gold score (never trained on)"][name] for name in ("SFT", "PPO")), r["demonstrations"], r["KL to SFT, nats an answer"]["PPO"],
            *(r[key][name] for key in ("declines unsafe prompts", "declines safe prompts", "unknown sentences", "distinct answers")
              for name in ("SFT", "PPO")),
            *((x["accuracy"] - 0.5) / (x["ceiling"] - 0.5) for x in (first, second)), (r["rm_accuracy"] - 0.5) / (r["rm_ceiling"] - 0.5), f"{seconds:.0f} s"])
    header = ["", "win", "win greedy", "gold SFT", "PPO", "demos", "KL", "unsafe SFT", "PPO", "safe SFT", "PPO", "unknown SFT", "PPO",
              "distinct SFT", "PPO", "rm on SFT", "rm.2 on SFT", "on PPO", "time"]
    print(table(header, rows))
    wins = [float(row[1].split()[0]) for row in rows]
    print(f"gold win rate of PPO against SFT: mean {statistics.mean(wins):.2f}, lowest {min(wins):.2f} over {len(wins)} seeds")


def hacking(args):
    """The first reward model, with and without the KL penalty; one picture, proxy and gold against KL."""
    for name, *flags in (("one_round",), ("no_kl", "--kl_coef", "0")):
        train("--config", "tiny", "--rounds", "1", "--name", name, *flags)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (name, label), color in zip((("one_round", "default KL coefficient"), ("no_kl", "KL coefficient 0")), COLORS):
        rows = [json.loads(line) for line in Path(f"runs/tiny/{name}.jsonl").read_text().splitlines()]
        for axis, key in zip(axes, ("score", "gold")):
            axis.plot([r["kl_full"] for r in rows], [r[key] for r in rows], color=color, label=label, marker="o", markersize=2.5, linewidth=1)
    for axis, title in zip(axes, ("Proxy: what the reward model says", "Truth: the gold score, never trained on")):
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("KL to the SFT model, nats an answer", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=9, frameon=False)
    figure.savefig(args.out, dpi=110, facecolor="white")
    both = {name: results(f"runs/tiny/{name}.pt") for name in ("one_round", "no_kl")}
    keys = ("reward-model score", "gold score (never trained on)", "gold win rate against SFT", "KL to SFT, nats an answer")
    print(table(["test prompts", "SFT", "default", "kl_coef 0"],
                [[key, both["one_round"][key]["SFT"], both["one_round"][key]["PPO"], both["no_kl"][key]["PPO"]] for key in keys]))
    gap = both["one_round"][keys[1]]["PPO"] - both["no_kl"][keys[1]]["PPO"]
    print(f"gold is {gap:.2f} lower without the KL penalty: {gap / both['one_round']['gold_std_sft']:.2f} standard deviations of the SFT model's gold\n{args.out}")


def losses(args):
    """The same rankings, learned as pairs and as numbers."""
    rows = []
    for name, loss in (("rm", "bradley_terry"), ("rm_regression", "regression")):
        train("--config", "tiny", *(("--loss", loss, "--name", name) if loss == "regression" else ()), script="train_rm.py")
        r = results(f"runs/tiny/{name}.pt")["sft"]
        rows.append([loss, r["accuracy"], r["ceiling"], (r["accuracy"] - 0.5) / (r["ceiling"] - 0.5), r["rank_correlation"]])
    print(table(["held-out answers of the SFT model", "accuracy", "ceiling", "chance-corrected", "rank correlation with gold"], rows))


def elo(args):
    """What a ranking becomes. Elo depends on the order of the games, and every pass pushes it further apart; a fit with a prior does neither."""
    train("--config", "tiny", script="train_rm.py")
    rankings = map(json.loads, Path("runs/tiny/rankings.jsonl").read_text(encoding="utf-8").splitlines())
    row = next(r for r in rankings if len(r["tiers"]) == len(r["responses"]) >= 5)
    orders = [elo_scores([row["tiers"]], rng=random.Random(i)) for i in range(100)]
    columns = [elo_scores([row["tiers"]], passes=n) for n in (1, 10, 100)]
    fit = [1000 + 400 / math.log(10) * s for s in bradley_terry_fit([row["tiers"]]).tolist()]
    print(f"prompt: {row['prompt']}")
    print(table(["answer", "Elo, 1 pass", "least and most in 100 orders", "10 passes", "100 passes", "Bradley-Terry with a prior, on Elo's scale"],
                [[row["responses"][i], f"{columns[0][i]:.0f}", f"{min(o[i] for o in orders):.0f} to {max(o[i] for o in orders):.0f}",
                  f"{columns[1][i]:.0f}", f"{columns[2][i]:.0f}", f"{fit[i]:.0f}"] for tier in row["tiers"] for i in tier]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("seeds", "hacking", "losses", "elo"))
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "hacking.png", help="where the picture goes")
    arguments = parser.parse_args()
    {"seeds": seeds, "hacking": hacking, "losses": losses, "elo": elo}[arguments.experiment](arguments)
