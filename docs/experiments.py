"""The README's tables and pictures that no single training command makes.

    python docs/experiments.py seeds              the whole tiny pipeline on several seeds, one reward model and Llama 2's two
    python docs/experiments.py rewards            what PPO makes of one reward model, of helpfulness, of safety, of Llama 2's combination
    python docs/experiments.py domains            a reward model on subjects and topics that it was not trained on
    python docs/experiments.py hacking            kl_coef 0 against the default: proxy and gold against KL
    python docs/experiments.py losses             reward models trained on pairs (Bradley-Terry) and on Elo scores (regression)
    python docs/experiments.py elo                one ranking as Elo scores and as a Bradley-Terry fit
    python docs/experiments.py rejection          rejection sampling, PPO and both on several seeds
    python docs/experiments.py variants           rejection sampling without fresh rankings, without a pool, from the round before
    python docs/experiments.py judges             the AI judge's agreement by preamble, chain of thought, order and size
    python docs/experiments.py labels             reward models on human, AI and mixed labels, and on more and more AI labels
    python docs/experiments.py rlaif              RLHF, RLAIF and direct RLAIF on several seeds
    python docs/experiments.py principle          brief in place of kind in the judge's preamble: does the policy follow?
    python docs/experiments.py shift              trained on one family of prompts, measured on another, with human and AI labels
    python docs/experiments.py ablations          PPO with one of its parts changed or left out, on several seeds
    python docs/experiments.py overoptimisation   proxy and gold against the distance from the SFT model, best-of-n and PPO
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
from data import BASE, DETAILED, PROMPTS, gold_score, load_encoding, load_prompts, preamble_of, read_answer  # noqa: E402
from experiment import COLORS, SCRIPTS, load_model, table  # noqa: E402
from model import answer, score  # noqa: E402
from preferences import AI, OwnModel, bradley_terry_fit, elo_scores, ranking_to_pairs, read_rankings, spearman  # noqa: E402
from rejection_sampling import best_of_n, best_of_n_kl, best_of_n_kl_bound, log_probability  # noqa: E402
from train_rm import left_out, scores_of  # noqa: E402


def train(*flags, script="train_ppo.py"):
    """Run a stage (and whatever is missing before it) as a command; one that is finished is left alone, one that was interrupted goes on."""
    subprocess.run([sys.executable, ROOT / script, *flags, "--resume"], check=True)


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
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlabel("KL to the SFT model, nats an answer", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=9, frameon=False)
    out = args.out or ROOT / "docs" / "hacking.png"
    figure.savefig(out, dpi=110, facecolor="white")
    both = {name: results(f"runs/tiny/{name}.pt") for name in ("weak", "no_kl")}
    keys = ("reward-model score", "gold score (never trained on)", "gold win rate against SFT", "KL to SFT, nats an answer")
    print(table(["test prompts", "SFT", "default", "kl_coef 0"],
                [[key, both["weak"][key]["SFT"], both["weak"][key]["PPO"], both["no_kl"][key]["PPO"]] for key in keys]))
    gap = both["weak"][keys[1]]["PPO"] - both["no_kl"][keys[1]]["PPO"]
    print(f"gold is {gap:.2f} lower without the KL penalty: {gap / both['weak']['gold_std_sft']:.2f} standard deviations of the SFT model's gold\n{out}")


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


def rate(scores, baseline, n_prompts):
    """For each prompt the share of answers that beat the baseline's, ties half. Lists of answers, those to prompt i at i, i + n_prompts, ..."""
    wins = [0.5 if a == b else float(a > b) for a, b in zip(scores, baseline, strict=True)]
    return [statistics.mean(wins[i::n_prompts]) for i in range(n_prompts)]


def rounds_of(path):
    """The rows of the table of rounds in a checkpoint of rejection_sampling.py, SFT first."""
    return torch.load(path, weights_only=True)["state"]["rounds"]


def n_test(folder):
    return sum(p["split"] == "test" for p in load_prompts(folder / "data"))


def rejection(args):
    """Rejection sampling alone, PPO alone, and PPO on top of rejection sampling: the same test prompts and annotator, several seeds."""
    rows, shares, means = [], {"PPO": [], "both": []}, {"RLHF-V4": [], "PPO": [], "both": []}
    for seed in range(args.seeds):
        folder = Path("runs") / ("tiny" + f"-seed{seed}" * bool(seed))
        for flags in ((), ("--then_ppo",)):
            train("--config", "tiny", "--seed", str(seed), *flags, script="rejection_sampling.py")
        train("--config", "tiny", "--seed", str(seed))
        n, (sft, *rounds) = n_test(folder), rounds_of(folder / "rs.4.pt")
        for r in rounds:
            won = statistics.mean(rate(r["gold"], sft["gold"], n))
            rows.append([f"seed {seed}, {r['model']}", won, statistics.mean(r["gold"]), r["kl"], r["unsafe"], r["safe"], (r["rm_accuracy"] - 0.5) / (r["rm_ceiling"] - 0.5),
                         r.get("headroom"), r.get("gold_headroom"), r["distinct"]])
        means["RLHF-V4"].append(won)
        for label, name in (("PPO", "ppo"), ("both", "rs.ppo")):
            r = results(folder / f"{name}.pt")
            share = rate(r["gold of each answer"]["PPO"], r["gold of each answer"]["SFT"], n)
            shares[label] += share
            means[label].append(statistics.mean(share))
            rows.append([f"seed {seed}, {'RLHF-V4, then ' * (label == 'both')}PPO", means[label][-1], *(r[key]["PPO"] for key in (
                "gold score (never trained on)", "KL to SFT, nats an answer", "declines unsafe prompts", "declines safe prompts")),
                (r["rm_accuracy"] - 0.5) / (r["rm_ceiling"] - 0.5), None, None, r["distinct answers"]["PPO"]])
    print(table(["test prompts", "win rate against SFT", "gold score", "KL to SFT", "declines unsafe", "declines safe", "reward model on its answers", "best of 16 - mean: reward", "gold", "distinct"], rows))
    for name, m in means.items():
        print(f"{name}: win rate {statistics.mean(m):.3f} in the mean of {len(m)} seeds, {min(m):.3f} to {max(m):.3f}" + (f", standard deviation {statistics.stdev(m):.3f}" if len(m) > 1 else ""))
    difference = [b - a for a, b in zip(shares["PPO"], shares["both"])]
    mean, half = statistics.mean(difference), 1.96 * statistics.stdev(difference) / len(difference) ** 0.5
    print(f"both - PPO, paired over {len(difference)} prompts: {mean:+.3f} (95 % interval {mean - half:+.3f} to {mean + half:+.3f})")


def variants(args):
    """What the parts of the pipeline are for: the last of four rounds without each of them."""
    rows = []
    for name, *flags in (("rs",), ("from_previous", "--start", "previous"), ("last_pool", "--pool", "last"), ("forgetful", "--start", "previous", "--pool", "last"),
                         ("stale", "--refresh_reward_model", "false")):
        train("--config", "tiny", *flags, *(["--name", name] if flags else []), script="rejection_sampling.py")
        sft, *rounds = rounds_of(f"runs/tiny/{name}.4.pt")
        won = [statistics.mean(rate(r["gold"], sft["gold"], n_test(Path("runs/tiny")))) for r in rounds]
        rows.append([" ".join(flags) or "(the default)", ", ".join(f"{x:.2f}" for x in won), statistics.mean(rounds[-1]["gold"]), rounds[-1]["kl"],
                     ", ".join(f"{(r['rm_accuracy'] - 0.5) / (r['rm_ceiling'] - 0.5):.2f}" for r in rounds), rounds[-1]["unknown"], rounds[-1]["distinct"], rounds[-1]["text_loss"]])
    print(table(["", "win rates against SFT, rounds 1 to 4", "gold score", "KL to SFT", "reward model on the answers of each round", "unknown", "distinct", "loss on pretraining text"], rows))


def judges(args):
    """Every variant of the AI judge on the same pairs: answers of the SFT model to test prompts, which the simulated human ranked."""
    folder, rng, pairs = Path("runs/tiny"), random.Random(0), []
    train("--config", "tiny", script="train_rm.py")
    train("--config", "tiny", "--name", "pretrain_large", "--n_layer", "4", "--n_head", "4", "--n_embd", "128", script="train_pretrain.py")
    script, *flags = SCRIPTS["judge"].split()
    for start, name in (("pretrain", "judge"), ("pretrain_large", "judge_large")):
        train("--config", "tiny", *flags, "--start", start, "--name", name, script=script)
    about = torch.load(folder / "rm.pt", weights_only=True)["state"]["sources"][0]
    for row in read_rankings(folder / "rankings.jsonl", **about):
        told_apart = ranking_to_pairs(row["tiers"]) if row["split"] == "test" else []
        for i, j, _ in rng.sample(told_apart, min(5, len(told_apart))):
            a, b = rng.sample((i, j), 2)  # in either order
            gap = gold_score(row["prompt"], row["responses"][a]) - gold_score(row["prompt"], row["responses"][b])
            pairs.append((row["prompt"], row["responses"][a], row["responses"][b], gap, a == i))
    median = statistics.median(abs(gap) for *_, gap, _ in pairs if gap)
    prompts, one, two, gaps, human = zip(*pairs)

    def agree(p, wanted, chosen):
        return statistics.mean(0.5 if x == 0.5 else float((x > 0.5) == w) for x, w, c in zip(p, wanted, chosen) if c)

    rows, enc = [], load_encoding(folder / "tokenizer.json")
    for name in ("judge", "judge_large"):
        model = load_model(folder / f"{name}.pt")[0]
        size = sum(p.numel() for p in model.parameters()) / 1e6
        for preamble, text in (("none", ""), ("base", BASE), ("detailed", preamble_of(DETAILED))):
            for thought in (False, True):
                judge, began = AI(OwnModel(model, enc), {"overall": text}, thought), time.time()
                first, turned = judge.compare(prompts, one, two), judge.compare(prompts, two, one)
                seconds, both = time.time() - began, [(p + 1 - q) / 2 for p, q in zip(first, turned)]
                told, clear = [gap != 0 for gap in gaps], [abs(gap) > median for gap in gaps]
                better = [gap > 0 for gap in gaps]
                rows.append([f"{size:.1f} M, {preamble}{', chain of thought' * thought}", agree(both, better, clear), agree(first, better, clear), agree(both, better, told),
                             agree(both, human, [True] * len(pairs)), statistics.mean((p > 0.5) == (q > 0.5) for p, q in zip(first, turned)), f"{1000 * seconds / len(pairs):.0f} ms"])
    print(f"{len(pairs)} pairs that the simulated human told apart; it agrees with the gold score on {agree([float(h) for h in human], [g > 0 for g in gaps], [g != 0 for g in gaps]):.2f}, "
          f"on {agree([float(h) for h in human], [g > 0 for g in gaps], [abs(g) > median for g in gaps]):.2f} where the gap is above the median of {median:g}")
    print(table(["AI judge", "gold, gap above median", "the same, one order", "gold, all pairs", "the human", "same position wins both", "time a pair"], rows))


def labels(args):
    """Reward models that learned from human, AI and mixed labels, all measured on the human's held-out rankings; and a curve over the AI labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, curve = [], []
    for label, name, *flags in (("human", "rm"), ("AI", "rm_ai", "--labeler", "ai"), ("half and half", "rm_mixed", "--labeler", "mixed"),
                                *(("AI", f"rm_ai_{n}", "--labeler", "ai", "--ai_rankings", str(n)) for n in (250, 800, 8000))):
        train("--config", "tiny", *flags, *(["--name", name] if name != "rm" else []), script="train_rm.py")
        r, state = results(f"runs/tiny/{name}.pt")["answers of sft"], torch.load(f"runs/tiny/{name}.pt", weights_only=True)["state"]
        learned = [row for about in state["sources"] for row in read_rankings(Path("runs/tiny/rankings.jsonl"), **about) if row["split"] == "train"]
        by_ai = sum(len(row["pairs"]) for row in learned if row["labeler"] == "ai")
        rows.append([label, sum(row["labeler"] == "simulated" for row in learned), by_ai, r["accuracy"], r["ceiling"], corrected(r), r["rank_correlation"], r["slope"]])
        curve += [(by_ai, corrected(r))] * (label == "AI")
    print(table(["labels", "rankings by the human", "pairs by the AI", "accuracy", "ceiling", "chance-corrected", "rank correlation", "slope"], rows))
    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    axis.plot(*zip(*sorted(curve)), color=COLORS[0], marker="o", label="AI labels")
    axis.axhline(rows[0][5], color=COLORS[1], linewidth=1, linestyle="--", label=f"{rows[0][1]} rankings by the human")
    axis.set(xscale="log", xlabel="pairs labelled by the AI", ylabel="chance-corrected accuracy", ylim=(0, 1))
    axis.set_xticks([n for n, _ in curve], [f"{n:,}" for n, _ in curve])
    axis.minorticks_off()
    axis.set_title("Reward model on the human's held-out rankings", fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(args.out or ROOT / "docs" / "ai_labels.png", dpi=110, facecolor="white")


METHODS = (("RLHF", "ppo"), ("RLAIF", "rlaif", "--labeler", "ai"), ("direct RLAIF", "direct", "--reward", "ai"))


def split_rates(path, keep):
    """Gold win rate against SFT at temperature 1 on the test prompts that keep(prompt) chooses."""
    gold = results(path)["gold of each answer"]
    prompts = [p["prompt"] for p in load_prompts(path.parent / "data") if p["split"] == "test"]
    return statistics.mean(x for x, p in zip(rate(gold["PPO"], gold["SFT"], len(prompts)), prompts) if keep(p))


def rlaif(args):
    """Who labels: the simulated human, an AI, or an AI that rates each answer without a reward model."""
    rows, wins = [], {}
    for seed in range(args.seeds):
        folder = Path("runs") / ("tiny" + f"-seed{seed}" * bool(seed))
        for label, name, *flags in METHODS:
            train("--config", "tiny", "--seed", str(seed), *flags)
            r, path = results(folder / f"{name}.pt"), folder / f"{name}.pt"
            human = {"RLHF": "rm"}.get(label)
            sources = torch.load(folder / f"{human}.pt", weights_only=True)["state"]["sources"] if human else []
            n = sum(row["split"] == "train" for about in sources for row in read_rankings(folder / "rankings.jsonl", **about))
            rows.append([f"seed {seed}, {label}", r["gold win rate against SFT"]["PPO"], r["gold win rate against SFT"]["PPO greedy"],
                         split_rates(path, lambda p: not PROMPTS[p].unsafe), *(r[key][who] for key in ("declines unsafe prompts", "declines safe prompts") for who in ("SFT", "PPO")),
                         r["gold score (never trained on)"]["PPO"], r["KL to SFT, nats an answer"]["PPO"], r["unknown sentences"]["PPO"], n])
            wins.setdefault(label, []).append(split_rates(path, lambda p: True))
    print(table(["test prompts", "win rate", "greedy", "win, safe prompts", "declines unsafe: SFT", "PPO", "declines safe: SFT", "PPO", "gold", "KL", "unknown", "rankings by a human"], rows))
    for label, w in wins.items():
        print(f"{label}: win rate {statistics.mean(w):.3f} in the mean of {len(w)} seeds, {min(w):.3f} to {max(w):.3f}")


def principle(args):
    """The judge is told to want a short answer instead of a kind one; direct RLAIF, so that nothing else changes."""
    folder, rows = Path("runs/tiny"), []
    names = [{"kind": "short"}.get(name, name) for name in DETAILED]
    file = folder / "brief.txt"
    train("--config", "tiny", "--reward", "ai")
    file.write_text(preamble_of(names) + "\n")
    train("--config", "tiny", "--reward", "ai", "--preamble", str(file), "--name", "brief")
    prompts = [p["prompt"] for p in load_prompts(folder / "data") if p["split"] == "test"]
    for label, name in (("(SFT)", "sft"), (preamble_of(DETAILED), "direct"), (preamble_of(names), "brief")):
        torch.manual_seed(0)
        answers = answer(load_model(folder / f"{name}.pt")[0], load_encoding(folder / "tokenizer.json"), prompts, 48, 1.0)
        said = [[s for s in read_answer(p, text) if s] for p, (text, _, _) in zip(prompts, answers)]
        rows.append([label, statistics.mean(any(s.warm for s in sentences) for sentences in said), statistics.mean(map(len, said)), statistics.mean(n for _, _, n in answers)])
        print("\n".join(f"{name}: {p} -> {text}" for p, (text, _, _) in list(zip(prompts, answers))[::40]))
    print(table(["the judge's preamble", "answers with a warm sentence", "sentences", "tokens"], rows))


def shift(args):
    """Labels and training without one family of prompts, and what becomes of it there: RLHF, RLAIF and direct RLAIF."""
    family = "library,school,bank,cake,soup"
    names, rows = family.split(","), []
    for label, name, rm, labeler in (("human labels", "shift_human", "rm_shift_human", "simulated"), ("AI labels", "shift_ai", "rm_shift_ai", "ai"), ("direct RLAIF", "shift_direct", None, None)):
        if rm:
            train("--config", "tiny", "--labeler", labeler, "--leave_out", family, "--name", rm, script="train_rm.py")
            r = results(f"runs/tiny/{rm}.pt")
        train("--config", "tiny", "--leave_out", family, "--reward", rm or "ai", "--name", name)
        path = Path(f"runs/tiny/{name}.pt")
        rows.append([label, *([corrected(r["answers of sft"]), corrected(r["  subjects left out"])] if rm else [None, None]),
                     split_rates(path, lambda p: not left_out(p, names)), split_rates(path, lambda p: left_out(p, names))])
    print(table([f"trained without {family}", "reward model: other prompts", "left-out prompts", "policy's win rate: other prompts", "left-out prompts"], rows))


ABLATIONS = (("the default", "ppo"), ("no KL term", "no_kl_rm", "--kl_coef", "0"), ("no clipping", "no_clip", "--clip", "0"),
             ("4 epochs", "epochs", "--ppo_epochs", "4"), ("4 epochs, no clipping", "epochs_no_clip", "--ppo_epochs", "4", "--clip", "0"),
             ("no value clipping", "no_value_clip", "--value_clip", "0"), ("no whitening", "no_whitening", "--whiten_advantages", "false"),
             ("lambda 0", "lam_0", "--lam", "0"), ("lambda 1", "lam_1", "--lam", "1"), ("adaptive KL, target 1 nat", "adaptive", "--kl_target", "1"),
             ("PPO-ptx", "ptx", "--ptx_coef", "1"), ("shared critic", "shared", "--critic", "shared"),
             ("REINFORCE with a baseline", "reinforce", "--lam", "1", "--minibatch_size", "128"))  # one step an iteration: the ratio is 1, nothing is clipped


def ablations(args):
    """PPO on the default reward model, one part of it changed at a time; test prompts, mean and range over the seeds."""
    keys = ("reward-model score", "gold score (never trained on)", "KL to SFT, nats an answer", "loss on pretraining text")
    rows = []
    for label, name, *flags in ABLATIONS:
        found = []
        for seed in range(args.seeds):
            train("--config", "tiny", "--seed", str(seed), *flags, *(["--name", name] if flags else []))
            path = Path("runs") / ("tiny" + f"-seed{seed}" * bool(seed)) / f"{name}.pt"
            found.append([split_rates(path, lambda p: True), *(results(path)[key]["PPO"] for key in keys)])
        rows.append([label, " ".join(flags) or "-", *(f"{statistics.mean(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in zip(*found))])
    print(table([f"{args.seeds} seeds, test prompts", "flags", "gold win rate against SFT", *keys], rows))


def fit(distances, gains, curve):
    """alpha and beta of gain = d (alpha - beta curve(d)), least squares: curve d for best-of-n, log d for reinforcement learning.
    (Gao et al. 2022, equations 1 and 2.)"""
    d, y = torch.tensor(distances, dtype=torch.float64), torch.tensor(gains, dtype=torch.float64)
    return torch.linalg.lstsq(torch.stack([d, -d * curve(d)], 1), y[:, None]).solution[:, 0].tolist()


def overoptimisation(args):
    """Proxy and gold score against d = sqrt(KL): best-of-n of the SFT model, and PPO on its way at several KL coefficients. Both with the
    reward model that has seen few rankings; both in standard deviations of the SFT model's score above its mean."""
    runs = {0: "no_kl", 0.05: "weak_0.05", 0.15: "weak", 0.5: "weak_0.5"}  # two of them are those of hacking
    for c, name in runs.items():
        train("--config", "tiny", "--reward", "rm_weak", "--name", name, *(["--kl_coef", str(c)] if name != "weak" else []))
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder, K, n_of = Path("runs/tiny"), 256, [2**i for i in range(9)]
    enc, sft, rm = load_encoding(folder / "tokenizer.json"), load_model(folder / "sft.pt")[0], load_model(folder / "rm_weak.pt")[0]
    prompts = [p["prompt"] for p in load_prompts(folder / "data") if p["split"] == "test"]
    repeated = [p for p in prompts for _ in range(K)]
    torch.manual_seed(0)
    texts = [text for text, _, _ in answer(sft, enc, repeated, 48, 1.0)]
    proxy, gold, logprobs = (torch.tensor(x, dtype=torch.float64).view(-1, K) for x in (
        score(rm, enc, repeated, texts), [gold_score(p, t) for p, t in zip(repeated, texts)], log_probability(sft, enc, repeated, texts, 1.0)))
    kl = [best_of_n_kl(proxy, logprobs, n).mean().item() for n in n_of]
    best = {name: [(best_of_n(proxy, x, n).mean() - x.mean()).item() / x.std().item() for n in n_of] for name, x in (("proxy", proxy), ("gold", gold))}
    rows = [[f"best of {n}", k, best_of_n_kl_bound(n), p, g] for n, k, p, g in zip(n_of, kl, best["proxy"], best["gold"])]

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    distance = [k**0.5 for k in kl]
    for (name, y), color in zip(best.items(), COLORS):
        axes[0].plot(distance, y, "o", color=color, markersize=4, label=name)
    sd, mean = gold.std().item(), gold.mean().item()
    ways, logs = {}, {c: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for c, name in runs.items()}
    for (c, steps), color in zip(logs.items(), COLORS):
        ways[c] = [max(r["kl_full"], 0) ** 0.5 for r in steps], [r["score"] for r in steps], [(r["gold"] - mean) / sd for r in steps]
        axes[1].plot(ways[c][0], ways[c][2], ".", color=color, markersize=4, label=f"gold, KL coefficient {c}")
        axes[1].plot(ways[c][0], ways[c][1], "x", color=color, markersize=3, alpha=0.5)
    axes[1].plot([], [], "x", color="gray", label="proxy")
    d_ppo, _, gold_ppo = ways[0]
    far = next((i for i, r in enumerate(logs[0]) if r["kl_full"] > r["length"]), len(d_ppo))  # more than a nat a token: behind it the policy says one thing to everybody
    for axis, d, y, curve, peak in ((axes[0], distance, best["gold"], lambda x: x, lambda a, b: a / (2 * b)),
                                    (axes[1], d_ppo[1:far], gold_ppo[1:far], torch.log, lambda a, b: math.exp(a / b - 1))):
        alpha, beta = fit(d, y, curve)
        x = torch.linspace(0.05, max(d), 200, dtype=torch.float64)
        axis.plot(x, x * (alpha - beta * curve(x)), color="black", linewidth=1, label=f"fit: d ({alpha:.2f} - {beta:.2f} {'d' if axis is axes[0] else 'log d'})")
        top = peak(alpha, beta) if beta > 0 else math.inf
        if top < max(d):
            axis.axvline(top, color="gray", linewidth=0.8, linestyle=":")
            axis.annotate(f"peak of the fit, d = {top:.1f}", (top, 0.02), xycoords=("data", "axes fraction"), fontsize=8, rotation=90, va="bottom", ha="right")
        print(f"{'best of n' if axis is axes[0] else 'PPO, KL coefficient 0'}: gold = d ({alpha:.3f} - {beta:.3f} {'d' if axis is axes[0] else 'log d'}), peak at d = {top:.2f}, KL {top * top:.1f}; seen up to d = {max(d):.2f}")
    axes[1].set_xlim(-0.2, 1.05 * d_ppo[far - 1])
    for axis, title in zip(axes, (f"Best of n answers of the SFT model, n up to {K}", "PPO, an iteration a dot; drawn up to a KL of a nat a token")):
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("square root of the KL to the SFT model, nats", fontsize=9)
        axis.set_ylabel("standard deviations of the SFT model", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False, **({} if axis is axes[0] else {"loc": "lower left", "bbox_to_anchor": (0.2, 0)}))
    figure.savefig(args.out or ROOT / "docs" / "overoptimisation.png", dpi=110, facecolor="white")
    print(table(["test prompts", "KL, estimated", "KL, at most", "proxy", "gold"], rows))
    at_end = {c: results(folder / f"{name}.pt") for c, name in runs.items()}
    print("\n" + table(["PPO, test prompts", "KL", "proxy", "gold"], [[f"KL coefficient {c}", r["KL to SFT, nats an answer"]["PPO"], r["reward-model score"]["PPO"],
                       (r["gold score (never trained on)"]["PPO"] - mean) / sd] for c, r in at_end.items()]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    experiments = {f.__name__: f for f in (seeds, rewards, domains, hacking, losses, elo, rejection, variants, judges, labels, rlaif, principle, shift, ablations, overoptimisation)}
    parser.add_argument("experiment", choices=experiments)
    parser.add_argument("--seeds", type=int, choices=range(1, 11), metavar="N", default=3, help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, help="where the picture goes (default: into docs)")
    arguments = parser.parse_args()
    experiments[arguments.experiment](arguments)
