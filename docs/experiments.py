"""The README's tables and pictures that no single training command makes.

    python docs/experiments.py seeds              the whole tiny pipeline on several seeds, one reward model and Llama 2's two
    python docs/experiments.py rewards            what PPO makes of one reward model, of helpfulness, of safety, of Llama 2's combination
    python docs/experiments.py domains            a reward model on subjects and topics that it was not trained on
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
from data import load_encoding  # noqa: E402
from experiment import COLORS, load_model, table  # noqa: E402
from preferences import bradley_terry_fit, elo_scores, read_rankings, spearman  # noqa: E402
from train_rm import scores_of  # noqa: E402


def train(*flags, script="train_ppo.py"):
    """Run a stage (and whatever is missing before it) as a command; a stage that is finished is left alone."""
    subprocess.run([sys.executable, ROOT / script, *flags], check=True)


def results(path):
    """What a stage measured at its end."""
    return torch.load(path, weights_only=True)["state"]["results"]


def corrected(r):
    """Accuracy of a reward model on a scale where 0 is guessing and 1 the ceiling that the annotator's noise sets."""
    return (r["accuracy"] - 0.5) / (r["ceiling"] - 0.5)


def seeds(args):
    """Every seed runs every stage from random weights, with one reward model and with Llama 2's two; the test prompts are the same."""
    rows, judged = [], []
    for seed in range(args.seeds):
        folder = Path("runs") / ("tiny" + f"-seed{seed}" * bool(seed))
        for reward, name, models in (("overall", "ppo", ["rm"]), ("llama2", "llama2", ["rm_helpful", "rm_safety"])):
            begin = time.time()
            train("--config", "tiny", "--seed", str(seed), *(() if name == "ppo" else ("--reward", reward, "--name", name)))
            seconds = time.time() - begin
            r = results(folder / f"{name}.pt")
            rows.append([f"seed {seed}, {reward}", r["gold win rate against SFT"]["PPO"], r["gold win rate against SFT"]["PPO greedy"],
                         *(r["gold score (never trained on)"][who] for who in ("SFT", "PPO")), r["KL to SFT, nats an answer"]["PPO"],
                         *(r[key][who] for key in ("declines unsafe prompts", "declines safe prompts") for who in ("SFT", "PPO")),
                         r["unknown sentences"]["PPO"], (r["rm_accuracy"] - 0.5) / (r["rm_ceiling"] - 0.5), f"{seconds:.0f} s"])
            for model in models:
                x = results(folder / f"{model}.pt")["answers of sft"]
                judged.append([f"seed {seed}, {model}", x["accuracy"], x["ceiling"], corrected(x), x["rank_correlation"], x["slope"],
                               *(results(folder / f"{model}.pt").get("threshold") or {"recall": None, "precision": None}).values()])
    print(table(["", "win", "greedy", "gold SFT", "PPO", "KL", "unsafe SFT", "PPO", "safe SFT", "PPO", "unknown", "reward on PPO", "time"], rows))
    print("\n" + table(["reward models, held-out answers of the SFT model", "accuracy", "ceiling", "chance-corrected", "rank correlation", "slope", "recall", "precision"], judged))
    for reward in ("overall", "llama2"):
        wins = [float(row[1].split()[0]) for row in rows if row[0].endswith(reward)]
        print(f"{reward}: gold win rate of PPO against SFT: mean {statistics.mean(wins):.2f}, lowest {min(wins):.2f} over {len(wins)} seeds")


def rewards(args):
    """What PPO makes of each reward: one model for everything, helpfulness alone, safety alone, Llama 2's combination of the two."""
    rows = []
    for reward in ("overall", "helpful", "safety", "llama2"):
        name = "ppo" if reward == "overall" else reward
        train("--config", "tiny", *(() if name == "ppo" else ("--reward", reward, "--name", name)))
        r = results(f"runs/tiny/{name}.pt")
        rows.append([reward, r["gold win rate against SFT"]["PPO"], r["gold score (never trained on)"]["PPO"], r["declines unsafe prompts"]["PPO"], r["declines safe prompts"]["PPO"]])
    sft = r["gold score (never trained on)"]["SFT"], r["declines unsafe prompts"]["SFT"], r["declines safe prompts"]["SFT"]
    print(table(["reward", "gold win rate against SFT", "gold score", "declines unsafe prompts", "declines safe prompts"], [["(SFT, before PPO)", None, *sft], *rows]))


def domains(args):
    """The reward model on subjects and topics that none of its training rankings was about."""
    names = "cake,owl,why"
    train("--config", "tiny", "--leave_out", names, "--name", "rm_left_out", script="train_rm.py")
    r = results("runs/tiny/rm_left_out.pt")
    print(table([f"trained without {names}", "pairs", "accuracy", "ceiling", "chance-corrected", "rank correlation", "slope"],
                [[name, r[key]["pairs"], r[key]["accuracy"], r[key]["ceiling"], corrected(r[key]), r[key]["rank_correlation"], r[key]["slope"]]
                 for name, key in (("other prompts", "answers of sft"), ("subjects left out", "  subjects left out"), ("topics left out", "  topics left out"))]))


def hacking(args):
    """A reward model that has seen few rankings, with and without the KL penalty; one picture, proxy and gold against KL."""
    for name, *flags in (("weak", ), ("no_kl", "--kl_coef", "0")):
        train("--config", "tiny", "--reward", "rm_weak", "--name", name, *flags)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (name, label), color in zip((("weak", "default KL coefficient"), ("no_kl", "KL coefficient 0")), COLORS):
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
    both = {name: results(f"runs/tiny/{name}.pt") for name in ("weak", "no_kl")}
    keys = ("reward-model score", "gold score (never trained on)", "gold win rate against SFT", "KL to SFT, nats an answer")
    print(table(["test prompts", "SFT", "default", "kl_coef 0"],
                [[key, both["weak"][key]["SFT"], both["weak"][key]["PPO"], both["no_kl"][key]["PPO"]] for key in keys]))
    gap = both["weak"][keys[1]]["PPO"] - both["no_kl"][keys[1]]["PPO"]
    print(f"gold is {gap:.2f} lower without the KL penalty: {gap / both['weak']['gold_std_sft']:.2f} standard deviations of the SFT model's gold\n{args.out}")


def losses(args):
    """The same rankings, learned as pairs and as numbers; and how alike the two rank the held-out answers to a prompt."""
    rows = []
    for seed in range(args.seeds):
        folder, found = Path("runs") / ("tiny" + f"-seed{seed}" * bool(seed)), {}
        for name, flags in (("rm", ()), ("rm_regression", ("--loss", "regression", "--name", "rm_regression"))):
            train("--config", "tiny", "--seed", str(seed), *flags, script="train_rm.py")
            r = results(folder / f"{name}.pt")["answers of sft"]
            rows.append([f"seed {seed}, {'pairs' if name == 'rm' else 'Elo scores'}", r["accuracy"], r["ceiling"], corrected(r), r["rank_correlation"]])
        about = torch.load(folder / "rm.pt", weights_only=True)["state"]["sources"][0]
        held_out = [row for row in read_rankings(folder / "rankings.jsonl", **about) if row["split"] == "test"]
        enc = load_encoding(folder / "tokenizer.json")
        for name in ("rm", "rm_regression"):
            found[name] = scores_of(load_model(folder / f"{name}.pt")[0], enc, held_out)
        alike = [c for c in map(spearman, *found.values()) if c is not None]
        rows.append([f"seed {seed}, the one with the other", None, None, None, statistics.mean(alike)])
    print(table(["held-out answers of the SFT model", "accuracy", "ceiling", "chance-corrected", "Spearman within a prompt, with gold"], rows))


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
    parser.add_argument("experiment", choices=("seeds", "rewards", "domains", "hacking", "losses", "elo"))
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "hacking.png", help="where the picture goes")
    arguments = parser.parse_args()
    {"seeds": seeds, "rewards": rewards, "domains": domains, "hacking": hacking, "losses": losses, "elo": elo}[arguments.experiment](arguments)
