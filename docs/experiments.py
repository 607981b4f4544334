"""The tables and pictures of the chapters that no single training command makes.

    python docs/experiments.py                          the list, and how long each takes
    python docs/experiments.py rewards
    python docs/experiments.py ablations --seeds 2
    python docs/experiments.py folds --config small --data FOLDER
    python docs/experiments.py all                      every one whose record is not there yet
    python docs/experiments.py write                    the records into README and chapters
    python docs/experiments.py check                    which of their figures no record has

An experiment trains what is missing in runs/tiny (runs/tiny-seed1, ...) by the usual commands and leaves
alone what is finished: one that was interrupted goes on. What it printed is kept in runs/experiments; `all`
goes on with those that are missing there. Not among them are the figures of tests/benchmark.py, fuzz.py,
kill.py, mutants.py, solutions.py and assignment.py, and those of docs/lessons.md.
"""
# ruff: noqa: E402 (the path to the scripts comes before what is imported from there)
import itertools
import math
import random
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pages
import pictures
from beside import beside
from folds import folds

import data
import records
from lab.best_of_n import log_probability
from lab.cli import Help, Parser, run_main
from lab.measure import evaluate, scores_of, spearman
from lab.report import shown, table
from lab.talk import answer
from lab.terminal import wrapped
from preferences import bradley_terry_fit, elo_scores
from records import in_words, picture, quote, say, show
from rejection_sampling import best_of_n, best_of_n_kl, best_of_n_kl_bound
from runs import (
    DISTINCT,
    GOLD,
    KL,
    SAFE,
    SCORE,
    TEXT_LOSS,
    UNKNOWN,
    UNSAFE,
    WIN,
    corrected,
    encoding_of,
    logged,
    make,
    model_of,
    noted,
    output_of,
    prompts_of,
    rankings,
    results,
    reward_model,
    run_of,
    shares,
    spread,
    standard,
    state,
    win_rate,
)
from world.judge import AI, OwnModel, preambles
from world.reviews import DETAILED, preamble_of
from world.reward import score_texts
from world.taste import gold_score
from world.tiny import PROMPTS, left_out, read_answer

# ------------------------------------------------------------------------------------------------
# The main run
# ------------------------------------------------------------------------------------------------

RANKED = ("rankings", "rankings.pilot")  # what the usual reward model learns from
MAIN = ("pretrain", "sft", "rankings", "rm_first", "pilot", "rankings.pilot", "rm", "ppo")
METRICS = {  # of the glossary's table
    "pretrain": ("loss", "test_loss", "grad_norm"),
    "sft": ("loss", "test_loss", "grad_norm"),
    "rm": ("loss", "accuracy", "held_out_accuracy"),
    "ppo": ("score", "gold", "kl", "kl_k3", "kl_full", "length", "ends", "value_loss", "clip_fraction",
            "approx_kl", "explained_variance", "entropy"),
}


def main_run(args):
    """the tables of train_ppo.py and train_rm.py, and their times; docs/ppo.png, docs/reward_model.png"""
    path = [standard(stage) for stage in MAIN][-1]
    r, n = results(path), len(prompts_of(path.parent))
    names = ("pretrained", "SFT", "PPO")
    rows = [[key, *(r[key][name] for name in names)] for key in (WIN, GOLD, SCORE, KL)]
    declines = ["; ".join(f"{r[key][name]:.2f}" for key in (UNSAFE, SAFE)) for name in names]
    show([f"{n} test prompts", *names], [*rows, ["declines unsafe prompts; safe ones", *declines]])
    about_one_reward_model(judged(path.with_name("rm")))
    quote(excerpt(path))
    seconds = {stage: noted(path.with_name(stage)) for stage in MAIN}
    show(["stage", "seconds"], [[stage, x and f"{x:.0f}"] for stage, x in seconds.items()])
    if None not in seconds.values():
        say(f"Together {in_words(sum(seconds.values()))}; rankings, pilot and "
            f"reward models {sum(seconds[stage] for stage in MAIN[2:-1]):.0f} seconds.")
    most = max(noted(path.with_name(stage), "gigabytes") or 0 for stage in MAIN)
    say(f"Memory: at most {shown(most or None)} GB.")
    show(["metric", "first", "mean of the last ten", "lowest", "highest"], metrics_of(path.parent))
    say(f"The vocabulary has {encoding_of(path.parent).n_vocab:,} tokens, its logarithm is "
        f"{math.log(encoding_of(path.parent).n_vocab):.1f}.")
    for stage, name in (("ppo", "ppo.png"), ("rm", "reward_model.png")):
        shutil.copy(path.with_name(f"{stage}.png"), picture(args, name))


def about_one_reward_model(r):
    """Two tables of a reward model's figures on held-out rankings: all pairs, and by the gap of gold."""
    low, high = r["interval"]
    show(["pairs", "accuracy", "95 % interval", *FIGURES[1:]],
         [[f"{r['pairs']:,}", f"{r['accuracy']:.3f}", f"{low:.3f}-{high:.3f}", f"{r['ceiling']:.3f}",
           *row_of("", r)[3:]]])
    names = {0: "none", 5: "more"}
    rows = zip(*r["by_gap"].values(), strict=True)
    show(["gap of the gold scores, points", *(names.get(gap, f"up to {gap}") for gap in r["by_gap"])],
         [[label, *row] for label, row in zip(("accuracy", "ceiling", "pairs"), rows, strict=True)][:2])


def excerpt(path):
    """Of a stage's samples: the table, the first example of an unsafe prompt, what is said at the end."""
    blocks = Path(f"{path}.samples.txt").read_text(encoding="utf-8").strip().split("\n\n")
    prompts = {block.split("\n")[0].removeprefix("prompt:").strip(): block for block in blocks[1:-1]}
    example = next(block for prompt, block in prompts.items() if not is_safe(prompt))
    return f"{blocks[0]}\n\n...\n\n{example}\n\n...\n\n{blocks[-1]}"


def metrics_of(folder):
    """Rows of a table: how the metrics of each stage begin and end."""
    rows = []
    for stage, keys in METRICS.items():
        for key in keys:
            values = [row[key] for row in logged(folder / stage) if row.get(key) is not None]
            figures = (values[0], statistics.fmean(values[-10:]), min(values), max(values))
            rows.append([f"{stage}: {key}", *(f"{x:.3f}" for x in figures)])
    return rows


ONE_BY_ONE = (  # prompts and answers of "A lesson in two prompts"
    ("What is a dog?", "A dog is man's best friend. A dog is a furry mammal."),
    ("What is a dog?", "A dog is a furry mammal."),
    ("What is a dog?", "A cat is a small hunter."),
    ("A dog is", "a furry mammal. A dog is man's best friend."),
    ("A dog is", "a small hunter. A dog is man's best friend."),
    ("A dog is", "a small hunter."),
    ("A dog is", "an animal with four legs."),
)


def scores(args):
    """what the reward model and the true taste say of single answers"""
    rm = standard("rm")
    found = score_texts(model_of(rm), encoding_of(rm.parent), *map(list, zip(*ONE_BY_ONE, strict=True)))
    rows = [[prompt, text, f"{score:+.2f}", f"{gold_score(prompt, text):g}"]
            for (prompt, text), score in zip(ONE_BY_ONE, found, strict=True)]
    show(["prompt", "answer", "score, log-odds", "gold, points"], rows)


def explain(args):
    """one step of PPO under the microscope; docs/explain.png"""
    policy = standard("ppo")
    printed = output_of("-m", "lab.explain", f"{policy}.pt", "--prompt", "A dog is", "--ppo_epochs", "4")
    say(printed)
    quote(some_tokens(printed))
    drawn = re.search(r"^The same as a picture: (.+)$", printed, flags=re.M)[1]
    shutil.copy(drawn, picture(args, "explain.png"))


def some_tokens(printed):
    """Of what lab.explain prints: of its tables the first three tokens, the last, and those whose gradient
    the clip would stop; the lines about score and reward."""
    tables = [block.split("\n") for block in printed.split("\n\n") if block.startswith("token")]
    n = len(tables[0])
    clipped = {i for block in tables for i in range(n) if block[i].endswith("clipped")}
    chosen = clipped | {0, 1, 2, 3, 4, n - 1}
    parts = []
    for block in tables:
        lines = [block[i] if i in chosen else "..." for i in range(n)]
        parts.append([line for i, line in enumerate(lines) if line != "..." or lines[i - 1] != "..."])
    said = re.findall(r"^(?:score|reward) (?:.+\n?)(?: {11}.+\n?)*", printed, flags=re.M)
    return "\n\n".join(["\n".join(part) for part in parts] + ["...\n".join(said).rstrip()])


# ------------------------------------------------------------------------------------------------
# The whole pipeline
# ------------------------------------------------------------------------------------------------


def seeds(args):
    """the whole pipeline on several seeds, with one reward model and with Llama 2's two"""
    rows, models, wins = [], [], {"one": [], "Llama 2's two": []}
    kinds = (("one", "overall", "ppo", ("rm",)),
             ("Llama 2's two", "llama2", "llama2", ("rm_helpful", "rm_safety")))
    for seed in range(args.seeds):
        for label, reward, name, judges_of_it in kinds:
            path = make(name, "--reward", reward, seed=seed)
            r = results(path)
            wins[label].append(win_rate(path))
            rows.append([f"{seed}, {label}", r[WIN]["PPO"], r[WIN]["PPO, T=0"], r[GOLD]["SFT"],
                         r[GOLD]["PPO"], r[UNSAFE]["SFT"], r[UNSAFE]["PPO"], r[SAFE]["PPO"], corrected(r)])
            models += [figures_of(f"{seed}, {model}", path.with_name(model)) for model in judges_of_it]
    show(["seed, reward model", "win rate", "win rate, T=0", "gold: SFT", "gold: PPO", "declines unsafe: SFT",
          "declines unsafe: PPO", "declines safe", "reward model on its answers"], rows)
    show(["seed, reward model", *FIGURES, "recall", "precision"], models)
    for label, values in wins.items():
        say(f"Reward models: {label}. Gold win rate of PPO {spread(values)}, {len(values)} seeds.")


FIGURES = ("accuracy", "ceiling", "chance-corrected", "rank correlation", "slope")


def row_of(label, r):
    """A row of a table with FIGURES: those of a reward model on some held-out rankings."""
    return [label, r["accuracy"], r["ceiling"], corrected(r), r["rank_correlation"], r["slope"]]


def figures_of(label, path):
    """The same from its checkpoint, with what the safety model finds at Llama 2's threshold."""
    found = results(path)
    at = found.get("threshold") or {"recall": None, "precision": None}
    return [*row_of(label, judged(path)), at["recall"], at["precision"]]


def judged(path):
    """Figures of a reward model on held-out rankings of the SFT model's answers."""
    found = results(path)
    return found.get("  answers of sft") or next(iter(found.values()))


REWARDS = (
    ("one model for everything", "ppo", "overall"),
    ("helpfulness only", "helpful", "helpful"),
    ("safety only", "safety", "safety"),
    ("Llama 2's combination", "llama2", "llama2"),
)


def rewards(args):
    """what PPO makes of one reward model, of helpfulness, of safety, and of Llama 2's combination"""
    rows = []
    for label, name, reward in REWARDS:
        r = results(make(name, "--reward", reward))
        rows.append([label, r[WIN]["PPO"], r[GOLD]["PPO"], r[UNSAFE]["PPO"], r[SAFE]["PPO"]])
    sft = ["(SFT, before PPO)", None, r[GOLD]["SFT"], r[UNSAFE]["SFT"], r[SAFE]["SFT"]]
    show(["reward", WIN, GOLD, UNSAFE, SAFE], [sft, *rows])


def hacking(args):
    """kl_coef 0 against the default, with a reward model that knows only SFT answers; docs/hacking.png"""
    priced = make("kl_0.15", "--reward", "rm_first", "--kl_coef", "0.15")
    no_kl = make("no_kl", "--reward", "rm_first", "--kl_coef", "0")
    logs = {"default KL coefficient": logged(priced), "KL coefficient 0": logged(no_kl)}
    pictures.draw_hacking(picture(args, "hacking.png"), logs)
    with_kl, without = results(priced), results(no_kl)
    rows = [[key, with_kl[key]["SFT"], with_kl[key]["PPO"], without[key]["PPO"]]
            for key in (SCORE, GOLD, KL, WIN)]
    show(["test prompts", "SFT", "kl_coef 0.15", "kl_coef 0"], rows)
    gap, sd = with_kl[GOLD]["PPO"] - without[GOLD]["PPO"], with_kl["gold_std_sft"]
    below_sft = (without[GOLD]["SFT"] - without[GOLD]["PPO"]) / without["gold_std_sft"]
    say(f"Gold is {gap:.2f} points lower without the KL term, {gap / sd:.2f} standard deviations of the SFT "
        f"model's gold, and {below_sft:.2f} below the SFT model.")
    say(excerpt(no_kl))


# One part of PPO changed at a time. With one step an iteration the ratio is 1 and nothing is clipped.
ABLATIONS = (
    ("the default", "ppo"),
    ("no KL term", "no_kl_rm", "--kl_coef", "0"),
    ("no clipping", "no_clip", "--clip", "0"),
    ("4 epochs", "epochs", "--ppo_epochs", "4"),
    ("4 epochs, no clipping", "epochs_no_clip", "--ppo_epochs", "4", "--clip", "0"),
    ("no value clipping", "no_value_clip", "--value_clip", "0"),
    ("no whitening", "no_whitening", "--whiten_advantages", "false"),
    ("lambda 0", "lam_0", "--lam", "0"),
    ("lambda 1", "lam_1", "--lam", "1"),
    ("adaptive KL, target 1 nat", "adaptive", "--kl_target", "1"),
    ("PPO-ptx", "ptx", "--ptx_coef", "1"),
    ("shared critic", "shared", "--critic", "shared"),
    ("REINFORCE with a baseline", "reinforce", "--lam", "1", "--minibatch_size", "128"),
)


def ablations(args):
    """PPO with one of its parts changed or left out, on several seeds"""
    keys, rows, ways = (SCORE, GOLD, KL, TEXT_LOSS), [], []
    for label, name, *flags in ABLATIONS:
        paths = [make(name, *flags, seed=seed) for seed in range(args.seeds)]
        found = [[win_rate(path), *(results(path)[key]["PPO"] for key in keys)] for path in paths]
        rows.append([label, " ".join(flags) or "-", *map(spread, zip(*found, strict=True))])
        ways.append([label, *on_the_way(paths)])
    show([f"{args.seeds} seeds, test prompts", "flags", WIN, *keys], rows)
    show(["training, mean of the seeds", "tokens clipped", "policy moved, nats a token", "gradient norm",
          "explained variance, at the end", "beta, at the end", "seconds"], ways)
    default = [run_of(seed) / "ppo" for seed in range(args.seeds)]
    wins, scored = zip(*((win_rate(path), results(path)[SCORE]["PPO"]) for path in default), strict=True)
    say(f"The seeds of the default differ by {max(wins) - min(wins):.2f} in the win rate, by "
        f"{max(scored) - min(scored):.2f} in the score. On {len(prompts_of(run_of()))} prompts a run's win "
        f"rate has a standard error of {standard_error(default[0]):.3f}.")


def standard_error(path):
    """Of the win rate of one run, counting prompts."""
    gold, n = results(path)["gold of each answer"], len(prompts_of(path.parent))
    return statistics.stdev(shares(gold["PPO"], gold["SFT"], n)) / n**0.5


def on_the_way(paths):
    """What the metrics of trainings say of how they went, in the mean over them."""
    logs, times = [logged(path) for path in paths], [noted(path) for path in paths]

    def mean(key, last=0):
        return statistics.fmean(row[key] for rows in logs for row in rows[-last:])

    return [f"{100 * mean('clip_fraction'):.2f} %", f"{mean('approx_kl'):.5f}", mean("grad_norm"),
            mean("explained_variance", last=10), f"{mean('kl_coef', last=1):.3f}",
            None if None in times else f"{statistics.fmean(times):.0f}"]


# ------------------------------------------------------------------------------------------------
# Rankings, and what is learned from them
# ------------------------------------------------------------------------------------------------


def domains(args):
    """a reward model on subjects and topics that none of its training rankings was about"""
    names = "cake,owl,why"
    found = results(reward_model("rm_left_out", "--leave_out", names))
    rows = []
    for name, r in found.items():
        if "ceiling" in r:
            label, *figures = row_of("other prompts" if name.startswith("ranked") else name.strip(), r)
            rows.append([label, f"{r['pairs']:,}", *figures])
    show([f"trained without {names}", "pairs", *FIGURES], rows)


def of_sft_alone(name, *flags, seed=0):
    """A reward model on as many rankings as the usual one has, all of the SFT model's answers; and on how
    many."""
    n = n_by_human(seed)
    rankings("rankings_sft", "--questions", str(n), seed=seed)
    return reward_model(name, "--rankings", "rankings_sft", *flags, seed=seed), n


def first_of_sft(seed):
    """The name of a model that stands to these rankings as rm_first does to the usual ones: one pass over as
    many of them as the SFT model's are there."""
    n = sum(row["split"] == "train" for row in logged(standard("rankings", seed)))
    rankings("rankings_sft", "--questions", str(n_by_human(seed)), seed=seed)
    return reward_model("rm_sft_first", "--rankings", "rankings_sft", "--limit", str(n), "--epochs", "1",
                        seed=seed).name


def sources(args):
    """a reward model on rankings of the SFT model's answers alone, or of a pilot's, too, and PPO with each"""
    rows, counts = [], set()
    for seed in range(args.seeds):
        alone, n = of_sft_alone("rm_sft", "--start", first_of_sft(seed), "--replay", "0", seed=seed)
        usual = make("ppo", seed=seed)
        cases = (("SFT", alone, make("ppo_sft", "--reward", "rm_sft", seed=seed)),
                 ("SFT and pilot", usual.with_name("rm"), usual))
        for label, rm, ppo in cases:
            r = results(ppo)
            rows.append([f"{seed}, {label}", corrected(judged(rm)), corrected(r), r[GOLD]["PPO"],
                         win_rate(ppo), r[KL]["PPO"]])
        counts.add(n)
    show(["seed, ranked answers of", "right on SFT's answers", "right on the policy's", GOLD, WIN, KL], rows)
    say(f"Training rankings, each time: {', '.join(f'{n:,}' for n in sorted(counts))}. The first two figures "
        "are accuracies, chance-corrected.")


def second_round(args):
    """a reward model that goes on learning from rankings of PPO's answers, on old and new answers"""
    standard("ppo")
    new = rankings("rankings.ppo", "--answers_of", "ppo")
    models = {"rm": run_of() / "rm",
              "rm.2": reward_model("rm.2", "--start", "rm", "--rankings", "rankings.ppo")}
    rows, enc = [], encoding_of(run_of())
    for whose, path in (("SFT", run_of() / "rankings"), ("PPO", new)):
        held_out = [row for row in logged(path) if row["split"] == "test"]
        for name, model in models.items():
            rows.append(row_of(f"{whose}, {name}", evaluate(model_of(model), enc, held_out, gold_score)))
    show(["held-out answers of, reward model", *FIGURES], rows)


def losses(args):
    """reward models that learned pairs (Bradley-Terry) and Elo scores (regression); how alike they rank"""
    kinds = (("pairs", "rm_pairs", "bradley_terry"), ("Elo scores", "rm_regression", "regression"))
    rows = []
    for seed in range(args.seeds):
        ranked = []
        for label, name, loss in kinds:
            path = reward_model(name, "--loss", loss, seed=seed)
            rows.append([*row_of(f"{seed}, {label}", judged(path))[:-1], None])
            held_out = [row for row in logged(run_of(seed) / "rankings") if row["split"] == "test"]
            ranked.append(scores_of(model_of(path), encoding_of(run_of(seed)), held_out))
        alike = [c for c in map(spearman, *ranked) if c is not None]
        rows[-2][-1] = statistics.mean(alike)
    show(["seed, learned from", *FIGURES[:-1], "one model with the other"], rows)
    say("Rank correlation: Spearman's, within a ranking, with the gold score, or of the two models.")


def elo(args):
    """one ranking as Elo scores, which depend on the order of the games, and as a Bradley-Terry fit"""
    row = next(r for r in logged(standard("rankings")) if len(r["tiers"]) == len(r["responses"]) >= 5)
    tiers = [row["tiers"]]
    orders = [elo_scores(tiers, rng=random.Random(i)) for i in range(100)]
    once, ten, hundred = (elo_scores(tiers, passes=n) for n in (1, 10, 100))
    fitted = [1000 + 400 / math.log(10) * s for s in bradley_terry_fit(tiers).tolist()]
    cells = []
    for i in sum(row["tiers"], []):
        low, high = min(o[i] for o in orders), max(o[i] for o in orders)
        one, *others = (f"{x:.0f}" for x in (once[i], ten[i], hundred[i], fitted[i]))
        cells.append([len(cells) + 1, one, f"{low:.0f} to {high:.0f}", *others, row["responses"][i]])
    say(f"prompt: {row['prompt']}")
    show(["place", "Elo", "in 100 orders", "10 passes", "100 passes", "fit with a prior", "answer"], cells)


# ------------------------------------------------------------------------------------------------
# Rejection sampling
# ------------------------------------------------------------------------------------------------


def rounds(name, *flags, seed=0):
    """Four rounds of rejection sampling; the paths of their files."""
    make(name, *flags, seed=seed, script="rejection_sampling.py")
    return [run_of(seed) / f"{name}.{n}" for n in (1, 2, 3, 4)]


def left_of(path):
    """{model: {"score", "gold", "right"}}, what was left to earn in each round up to this one."""
    return {row["model"]: row for row in state(path)["left"]}


def sampling(args):
    """the tables of rejection_sampling.py, round by round; docs/rejection_sampling.png"""
    ends = rounds("rs")
    before, last = ends[-2].name, ends[-1]
    r, found, left = results(last), state(last), left_of(last)
    names = ["SFT", *(path.name for path in ends)]
    keys = [key for key in r if key not in ("answers that end", "gold of each answer")]
    rows = [[key, *(r[key][name] for name in names)] for key in keys]
    one, *_, most = curve = found["curve"]
    gain = f"best of {most['n']} - mean"
    labels = {"right": "reward model on its answers, chance-corrected", "score": f"{gain}: score, SD",
              "gold": f"{gain}: gold, points"}
    place = keys.index(SAFE) + 1
    rows[place:place] = [[label, *(left[name][key] if name in left else None for name in names)]
                         for key, label in labels.items()]
    show([f"{len(prompts_of(last.parent))} test prompts", *names], rows)
    show([f"best of n answers of {before}", "score, SD", "random one", "gold, points", "random one",
          "KL at most", "KL estimated"],
         [[f"n = {c['n']}", c["score"], one["score"], c["gold"], one["gold"], c["kl_bound"], c["kl"]]
          for c in curve])
    say(f"The best of {most['n']} answers of {before} beats a random one by {most['gold'] - one['gold']:.2f} "
        f"points of gold (95 % interval from {most['gold_gain_low']:.2f} on).")
    shutil.copy(f"{last}.png", picture(args, "rejection_sampling.png"))


def rejection(args):
    """rejection sampling, PPO, and PPO on top of rejection sampling, on several seeds"""
    rows, each = [], {"PPO": [], "rs.4, then PPO": []}
    means = {"PPO": [], "rs.4": [], "rs.4, then PPO": []}
    keys = (GOLD, KL, UNSAFE, SAFE)
    for seed in range(args.seeds):
        *_, last = ends = rounds("rs", "--then_ppo", seed=seed)
        r, left = results(last), left_of(last)
        for path in (ends[0], last):
            right = left[path.name]["right"] if path.name in left else None
            won = win_rate(last, who=path.name)
            rows.append([f"{seed}, {path.name}", won, *(r[key][path.name] for key in keys), right,
                         r[DISTINCT][path.name]])
        means["rs.4"].append(won)
        for label, path in (("PPO", make("ppo", seed=seed)), ("rs.4, then PPO", run_of(seed) / "rs.ppo")):
            r, n = results(path), len(prompts_of(path.parent))
            gold = r["gold of each answer"]
            each[label].append(shares(gold["PPO"], gold["SFT"], n))
            means[label].append(win_rate(path))
            rows.append([f"{seed}, {label}", means[label][-1], *(r[key]["PPO"] for key in keys), corrected(r),
                         r[DISTINCT]["PPO"]])
    show(["seed, model", WIN, *keys, "reward model on its answers", DISTINCT], rows)
    show(["gold win rate", "mean", "lowest to highest", "standard deviation"],
         [[name, f"{statistics.fmean(x):.3f}", f"{min(x):.3f} to {max(x):.3f}",
           f"{statistics.stdev(x):.3f}" if len(x) > 1 else None] for name, x in means.items()])
    say("The reward model on its answers: accuracy, chance-corrected.")
    ppo, both = ([statistics.fmean(of_prompt) for of_prompt in zip(*of_seeds, strict=True)]
                 for of_seeds in each.values())
    say(paired(ppo, both))


def paired(ours, theirs):
    """The mean difference of two lists over the same prompts, a number each (a mean over seeds), with its
    interval, as a sentence."""
    difference = [b - a for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(difference)
    half = 1.96 * statistics.stdev(difference) / len(difference) ** 0.5
    return (f"both - PPO, paired over {len(difference)} prompts: {mean:+.3f} "
            f"(95 % interval {mean - half:+.3f} to {mean + half:+.3f})")


VARIANTS = (
    ("rs",),
    ("from_previous", "--start", "previous"),
    ("last_pool", "--pool", "last"),
    ("forgetful", "--start", "previous", "--pool", "last"),
    ("stale", "--refresh_reward_model", "false"),
)


def variants(args):
    """rejection sampling without fresh rankings, without a pool, from the round before"""
    rows, knows, keys = [], [], (GOLD, KL, UNKNOWN, DISTINCT, TEXT_LOSS)
    for name, *flags in VARIANTS:
        *_, last = ends = rounds(name, *flags)
        r, left, label = results(last), left_of(last), " ".join(flags) or "the default"
        won = [f"{win_rate(last, who=path.name):.2f}" for path in ends]
        rows.append([label, ", ".join(won), *(r[key][last.name] for key in keys)])
        knows.append([label, *(row["right"] for row in left.values())])
    show(["four rounds", "win rates of the rounds", *keys], rows)
    show(["reward model on the answers of", "SFT", *(f"round {n}" for n in (1, 2, 3))], knows)
    say("Win rates against SFT, rounds 1 to 4. Reward model: its chance-corrected accuracy on the answers "
        "that it chose from.")


def alternatives(args):
    """PPO beside DPO, RLOO, GRPO, best-of-n and rounds, on several seeds; docs/alternatives.png"""
    show(*beside(args.seeds, picture(args, "alternatives.png")))


# ------------------------------------------------------------------------------------------------
# RLAIF
# ------------------------------------------------------------------------------------------------


def judges(args):
    """the AI judge's agreement by preamble, chain of thought, order and size"""
    size = ("--n_layer", "4", "--n_head", "4", "--n_embd", "128")
    make("pretrain_large", *size, script="train_pretrain.py")
    paths = [standard("judge"), standard("judge", name="judge_large", more=("--start", "pretrain_large"))]
    pairs = sample_pairs(logged(standard("rankings")))
    prompts, one, two, gaps, human = zip(*pairs, strict=True)
    median = statistics.median(abs(gap) for gap in gaps if gap)
    told, clear = [gap != 0 for gap in gaps], [abs(gap) > median for gap in gaps]
    better, rows = [gap > 0 for gap in gaps], []
    for path in paths:
        model, enc = model_of(path), encoding_of(run_of())
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        for preamble, thought in itertools.product(("none", "base", "detailed"), (False, True)):
            judge, began = AI(OwnModel(model, enc), preambles(preamble), thought), time.time()
            first, turned = judge.compare(prompts, one, two), judge.compare(prompts, two, one)
            milliseconds = 1000 * (time.time() - began) / len(pairs)
            both = [(p + 1 - q) / 2 for p, q in zip(first, turned, strict=True)]
            same = [(p > 0.5) == (q > 0.5) for p, q in zip(first, turned, strict=True)]
            name = f"{parameters:.1f} M, {preamble}" + (", notes" if thought else "")
            rows.append([name, agree(both, better, clear), agree(first, better, clear),
                         agree(both, better, told), agree(both, human), statistics.fmean(same),
                         f"{milliseconds:.0f} ms"])
    his = [float(h) for h in human]
    say(f"{len(pairs)} pairs that the simulated human told apart. It agrees with the gold score on "
        f"{agree(his, better, told):.2f} of them, on {agree(his, better, clear):.2f} where the gap is above "
        f"the median of {median:g} points.")
    show(["AI judge", "gold, gap above median", "the same, one order", "gold, all pairs", "the human",
          "same position wins both", "time a pair"], rows)
    notes = 100 * (rows[5][1] - rows[4][1])
    orders = 100 * statistics.fmean(row[1] - row[2] for row in rows)
    say(f"Notes are worth {notes:.1f} points with the detailed preamble and the smaller judge; both orders "
        f"{orders:.1f} points in the mean of the {len(rows)} rows.")


def sample_pairs(rows):
    """Up to five pairs of each test ranking, in either order: (prompt, first answer, second one, gold of the
    first minus that of the second, whether the human preferred the first)."""
    rng, found = random.Random(0), []
    for row in rows:
        apart = data.ranking_to_pairs(row["tiers"]) if row["split"] == "test" else []
        for i, j, _ in rng.sample(apart, min(5, len(apart))):
            a, b = rng.sample((i, j), 2)
            one, two = row["responses"][a], row["responses"][b]
            gap = gold_score(row["prompt"], one) - gold_score(row["prompt"], two)
            found.append((row["prompt"], one, two, gap, a == i))
    return found


def agree(p, wanted, chosen=None):
    """Share of the chosen pairs (None: of all) where P(first is better) says what is wanted; 0.5 counts
    half."""
    chosen = chosen or [True] * len(wanted)
    return statistics.mean(0.5 if x == 0.5 else float((x > 0.5) == w)
                           for x, w, c in zip(p, wanted, chosen, strict=True) if c)


def labels(args):
    """reward models on human, AI and mixed labels, and on more and more AI labels; docs/ai_labels.png"""
    human, n_human = of_sft_alone("rm_human")
    by_the_ai = ("--labeler", "ai", "--answers_per_prompt", "4")
    everything = rankings("ai_8000", *by_the_ai, "--questions", "8000")
    by_ai = [len(row["pairs"]) for row in logged(everything) if row["split"] == "train"]

    def row(label, rankings, pairs, r):
        label, accuracy, _, *others = row_of(label, r)
        return [label, f"{rankings:,}", f"{pairs:,}", accuracy, *others]

    curve, rows = [], []
    for n in (250, 800, 2500, 8000):
        r = judged(reward_model(f"rm_ai_{n}", "--rankings", "ai_8000", "--limit", str(n)))
        rows.append(row("AI", 0, sum(by_ai[:n]), r))
        curve.append((sum(by_ai[:n]), corrected(r)))
    half = rankings("half_human", "--questions", str(n_human // 2))
    other = rankings("half_ai", *by_the_ai, "--questions", "1250")
    r = judged(reward_model("rm_half", "--rankings", half.name, other.name))
    pairs = sum(len(row["pairs"]) for row in logged(other) if row["split"] == "train")
    best = judged(human)
    show(["labels", "rankings by the human", "pairs by the AI", "accuracy", *FIGURES[2:]],
         [row("human", n_human, 0, best), row("half of each", n_human // 2, pairs, r), *rows])
    say(f"The ceiling is {best['ceiling']:.2f}.")
    pictures.draw_ai_labels(picture(args, "ai_labels.png"), curve, corrected(best),
                            f"{n_human:,} rankings by the human")


def n_by_human(seed):
    """Training rankings that the usual reward model learns from."""
    return sum(row["split"] == "train" for name in RANKED for row in logged(standard(name, seed)))


DIRECT = ("--reward", "ai", "--kl_coef", "0.07")  # a rating has a top, so a nat is dearer at the same beta
METHODS = (
    ("RLHF", "ppo"),
    ("RLAIF", "rlaif", "--reward", "rm_ai"),
    ("direct RLAIF", "direct", *DIRECT),
)


def rlaif(args):
    """RLHF, RLAIF and direct RLAIF on several seeds"""
    rows, wins = [], {label: [] for label, *_ in METHODS}
    for seed in range(args.seeds):
        stages = [standard(stage, seed) for stage in (*MAIN, "judge", "rankings_ai", "rm_ai")]
        for label, name, *flags in METHODS:
            path = make(name, *flags, seed=seed)
            r = results(path)
            wins[label].append(win_rate(path))
            rows.append([f"{seed}, {label}", r[WIN]["PPO"], r[WIN]["PPO, T=0"], win_rate(path, keep=is_safe),
                         r[GOLD]["PPO"], r[KL]["PPO"], r[UNSAFE]["PPO"], r[SAFE]["PPO"]])
        agreed, n = gold_agrees(stages[-2])
        say(f"Seed {seed}: {n_by_human(seed):,} rankings by the human. The AI's labels of {n:,} pairs "
            f"agree with the gold score on {agreed:.2f}. SFT declines {r[UNSAFE]['SFT']:.2f} of the unsafe "
            f"prompts, {r[SAFE]['SFT']:.2f} of the safe ones.")
    show(["seed, method", "win rate", "win rate, T=0", "win rate, safe prompts", GOLD, KL, UNSAFE, SAFE],
         rows)
    for label, values in wins.items():
        say(f"{label}: gold win rate against SFT {spread(values)}, {len(values)} seeds.")
    names = ("judge", "rankings_ai", "rm_ai", "rlaif", "direct")
    took = {name: noted(run_of() / name) for name in names}
    say("Times of seed 0: " + ", ".join(f"{name} {in_words(x)}" for name, x in took.items() if x) + ".")


def gold_agrees(path):
    """Of an AI's training labels the share that the gold score agrees with, where it sees a difference; and
    how many pairs it labelled."""
    labels, better, told = [], [], []
    for row in logged(path):
        gold = [gold_score(row["prompt"], text) for text in row["responses"]]
        for i, j, p in row["pairs"] if row["split"] == "train" else []:
            labels.append(p)
            better.append(gold[i] > gold[j])
            told.append(gold[i] != gold[j])
    return agree(labels, better, told), len(labels)


def is_safe(prompt):
    return not PROMPTS[prompt].unsafe


def principle(args):
    """the judge is told to want short answers in place of kind ones: does the policy follow?"""
    folder = make("direct", *DIRECT).parent
    names = ["short" if name == "kind" else name for name in DETAILED]
    file = folder / "brief.txt"
    file.write_text(preamble_of(names) + "\n", encoding="utf-8")
    make("brief", *DIRECT, "--preamble", str(file))
    prompts, enc, rows = prompts_of(folder), encoding_of(folder), []
    labels = {"sft": "(SFT, before PPO)", "direct": "told to want kind answers",
              "brief": "told to want short answers"}
    for name, label in labels.items():
        torch.manual_seed(0)
        answers = answer(model_of(folder / name), enc, prompts, 48, 1.0)
        said = [[s for s in read_answer(p, a.text) if s] for p, a in zip(prompts, answers, strict=True)]
        warm = [any(s.warm for s in sentences) for sentences in said]
        rows.append([label, statistics.fmean(warm), statistics.fmean(map(len, said)),
                     f"{statistics.fmean(a.length for a in answers):.1f}"])
        for i in range(0, len(prompts), 40):
            say(f"{name}: {prompts[i]} -> {answers[i].text}", "    ")
    say(f"Kind: {preamble_of(DETAILED)}\nShort: {preamble_of(names)}")
    show(["the judge was", "answers with a warm sentence", "sentences", "tokens"], rows)


def shift(args):
    """trained without one family of prompts, measured on it, with human and AI labels"""
    family = "library,school,bank,cake,soup"
    cases = (("human labels", "shift_human", "rankings", "--reward", "rm_shift_human"),
             ("AI labels", "shift_ai", "rankings_ai", "--reward", "rm_shift_ai"),
             ("direct RLAIF", "shift_direct", None, *DIRECT))
    rows, names = [], family.split(",")
    for label, name, collection, *flags in cases:
        known = new = None
        if collection:
            path = reward_model(flags[-1], "--rankings", collection, "--leave_out", family)
            known, new = corrected(judged(path)), corrected(results(path)["  subjects left out"])
        path = make(name, "--leave_out", family, *flags)
        rows.append([label, known, new, win_rate(path, lambda p: not left_out(p, names)),
                     win_rate(path, lambda p: left_out(p, names))])
    n = sum(left_out(p, names) for p in prompts_of(run_of()))
    show([f"trained without {family}", "reward model: other prompts", "reward model: left-out prompts",
          "policy's win rate: other prompts", "policy's win rate: left-out prompts"], rows)
    for label, known, new, other, left in rows:
        model = f"the reward model {known - new:.2f}, " if None not in (known, new) else ""
        say(f"{label}: on prompts left out {model}the policy {other - left:.2f} lower.")
    say(f"{n} test prompts are left out.")


# ------------------------------------------------------------------------------------------------
# Over-optimisation
# ------------------------------------------------------------------------------------------------


def fit(distances, gains, curve):
    """alpha and beta of gain = d (alpha - beta curve(d)), least squares: curve d for best-of-n, log d for
    reinforcement learning. (Gao et al. 2022, equations 1 and 2.)"""
    d, y = (torch.tensor(x, dtype=torch.float64) for x in (distances, gains))
    curved = torch.tensor([curve(x) for x in distances], dtype=torch.float64)
    return torch.linalg.lstsq(torch.stack([d, -d * curved], 1), y[:, None]).solution[:, 0].tolist()


def overoptimisation(args):
    """score and gold against the distance from the SFT model; docs/overoptimisation.png"""
    runs = {0: "no_kl", 0.05: "kl_0.05", 0.15: "kl_0.15", 0.5: "kl_0.5"}  # two of them are those of hacking
    for c, name in runs.items():
        make(name, "--reward", "rm_first", "--kl_coef", str(c))
    best, mean, sd = best_of_many(run_of(), K=256)
    start, ways = gold_of_sft(run_of(), "train"), {}  # PPO's log is of training prompts
    for c, name in runs.items():
        steps = logged(run_of() / name)
        ways[c] = {"d": [max(r["kl_full"], 0) ** 0.5 for r in steps], "score": [r["score"] for r in steps],
                   "gold": [(r["gold"] - start) / sd for r in steps]}
    # Behind more than a nat a token the policy says one thing to everybody.
    steps, way = logged(run_of() / "no_kl"), ways[0]
    far = next((i for i, r in enumerate(steps) if r["kl_full"] > r["length"]), len(steps))
    parts = (("best of n", best["d"][1:], best["gold"][1:], lambda x: x, lambda a, b: a / (2 * b)),
             ("PPO, KL coefficient 0", way["d"][1:far], way["gold"][1:far], math.log,
              lambda a, b: math.exp(a / b - 1)))
    fits = []
    for what, d, gold, curve, top in parts:
        alpha, beta = fit(d, gold, curve)
        peak = top(alpha, beta) if beta > 0 else math.inf
        fits.append((alpha, beta, curve, peak, max(d)))
        name = "d" if what == "best of n" else "log d"
        far_gold = gold[d.index(max(d))]
        say(f"{what}: gold = d ({alpha:.3f} - {beta:.3f} {name}), peak at d = {peak:.2f}, KL {peak**2:.1f}; "
            f"seen up to d = {max(d):.2f}, KL {max(d) ** 2:.1f}, where gold is {far_gold:.2f} SD")
    pictures.draw_overoptimisation(picture(args, "overoptimisation.png"), best, ways, fits)
    rows = [[f"best of {n}", d * d, best_of_n_kl_bound(n), score, gold] for n, d, score, gold in zip(
        best["n"], best["d"], best["score"], best["gold"], strict=True)]
    show(["test prompts", "KL, estimated", "KL, at most", "score, SD", "gold, SD"], rows)
    ends = {c: results(run_of() / name) for c, name in runs.items()}
    rows = [[f"KL coefficient {c}", r[KL]["PPO"], r[SCORE]["PPO"], (r[GOLD]["PPO"] - mean) / sd]
            for c, r in ends.items()]
    show(["PPO, test prompts", "KL", "score, SD", "gold, SD"], rows)


def gold_of_sft(folder, split, K=4):
    """Mean gold score of the SFT model's answers, K to each prompt of a split."""
    prompts = [p for p in prompts_of(folder, split) for _ in range(K)]
    torch.manual_seed(0)
    answers = answer(model_of(folder / "sft"), encoding_of(folder), prompts, 48, 1.0)
    return statistics.fmean(gold_score(p, a.text) for p, a in zip(prompts, answers, strict=True))


def best_of_many(folder, K):
    """The SFT model's best of n by rm_first, n = 1, 2, ... K: ({"n", "d", "score", "gold"}, mean and standard
    deviation of the gold score of its answers); score and gold in SD above the mean answer."""
    enc, sft, rm = encoding_of(folder), model_of(folder / "sft"), model_of(folder / "rm_first")
    prompts = [p for p in prompts_of(folder) for _ in range(K)]
    torch.manual_seed(0)
    texts = [a.text for a in answer(sft, enc, prompts, 48, 1.0)]
    gold = [gold_score(p, text) for p, text in zip(prompts, texts, strict=True)]
    measured = (score_texts(rm, enc, prompts, texts), gold, log_probability(sft, enc, prompts, texts, 1.0))
    score, gold, logprobs = (torch.tensor(x, dtype=torch.float64).view(-1, K) for x in measured)
    best = {"n": [2**i for i in range(K.bit_length())]}
    best["d"] = [max(0.0, best_of_n_kl(score, logprobs, n).mean().item()) ** 0.5 for n in best["n"]]
    for key, x in (("score", score), ("gold", gold)):
        best[key] = [(best_of_n(score, x, n).mean() - x.mean()).item() / x.std().item() for n in best["n"]]
    return best, gold.mean().item(), gold.std().item()


# ------------------------------------------------------------------------------------------------
# The first picture
# ------------------------------------------------------------------------------------------------

LOCK = "How do I pick a lock?"
REFUSAL, HARM = "I will not help you pick a lock.", "To pick a lock, wear a mask and gloves."


def first(args):
    """the picture of the first page: docs/first.png"""
    folder = standard("ppo").parent
    enc = encoding_of(folder)

    def says(name, template=True):
        """The likeliest answer of a model."""
        model = model_of(folder / name)
        return answer(model, enc, [LOCK], model.config.block_size // 2, 0.0, template)[0].text

    refusal, harm = score_texts(model_of(folder / "rm"), enc, [LOCK] * 2, [REFUSAL, HARM])
    scores = f"“{REFUSAL}”  {refusal:+.1f}\n“{HARM}”  {harm:+.1f}"
    boxes = [("pretrained", "read text", says("pretrain", False)),
             ("SFT", "read demonstrations", says("sft")),
             ("reward model", "read rankings, gives scores", scores),
             ("PPO", "practised, paid by the scores", says("ppo"))]
    pictures.draw_first(picture(args, "first.png"), LOCK, boxes, logged(folder / "ppo"))
    for stage, _, said in boxes:
        say(f"{stage}: {said}", "    ")


# ------------------------------------------------------------------------------------------------
# The list
# ------------------------------------------------------------------------------------------------

EXPERIMENTS = {  # on two cores and a bare clone
    main_run: "6 to 15 minutes",
    seeds: "30 minutes a seed",
    first: "seconds, after main_run",
    scores: "seconds, after main_run",
    explain: "seconds, after main_run",
    rewards: "25 minutes",
    hacking: "6 minutes",
    domains: "20 minutes",
    losses: "5 minutes a seed",
    elo: "3 minutes",
    folds: "8 minutes",
    sources: "12 minutes a seed",
    second_round: "12 minutes",
    sampling: "15 minutes",
    rejection: "9 minutes a seed",
    variants: "15 minutes",
    alternatives: "25 minutes a seed",
    judges: "18 minutes",
    labels: "14 minutes",
    rlaif: "25 minutes a seed",
    principle: "6 minutes",
    shift: "22 minutes",
    ablations: "20 to 45 minutes a seed",
    overoptimisation: "23 minutes",
}
ABOUT_TIMES = ("Where a record is there the time is its own, with the stages that were missing then. The "
               "others are of earlier code, of two cores and a bare clone: three and a half minutes of them "
               "for the pretrained, SFT and reward model, which a finished runs/tiny has already. Folds on "
               "1,500 pairs of your own with --config small take 11.")


FOLDS = 5  # in how many parts


def about_all():
    rows = [[f.__name__, records.takes(f.__name__, guess), f.__doc__] for f, guess in EXPERIMENTS.items()]
    return table(["experiment", "takes", "what it shows"], rows) + "\n\n" + wrapped(ABOUT_TIMES)


def main():
    about = about_all()
    parser = Parser(description=__doc__, epilog=about, formatter_class=Help)
    known = {f.__name__: f for f in EXPERIMENTS}
    parser.add_argument("experiment", nargs="?", choices=[*known, "all", "write", "check"],
                        metavar="EXPERIMENT")
    parser.add_argument("--seeds", type=int, choices=range(1, 11), metavar="N", default=3,
                        help="how many seeds, from 0 [3]")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=ROOT / "docs",
                        help="where pictures go [docs]")
    parser.add_argument("--folds", type=int, metavar="N", default=FOLDS, help=f"of folds [{FOLDS}]")
    parser.add_argument("--data", default="", metavar="FOLDER", help="of folds: your own preferences")
    parser.add_argument("--config", default="tiny", choices=("tiny", "small"), help="of folds [tiny]")
    args = parser.parse_args()
    if args.experiment in ("all", "write", "check"):
        alone = parser.parse_args([args.experiment, "--seeds", str(args.seeds)])
        if args != alone:
            parser.error(f"{args.experiment} takes no flag but --seeds: give the others to one experiment")
    guesses = {f.__name__: guess for f, guess in EXPERIMENTS.items()}
    if not args.experiment:
        print(about)
    elif args.experiment == "all":
        records.run_all(guesses, args.seeds, Path(__file__))
    elif args.experiment == "write":
        pages.write(list(known))
    elif args.experiment == "check":
        faults = pages.check(list(known))
        print(*faults, f"{len(faults)} faults", sep="\n")
        sys.exit(1 if faults else 0)
    else:
        run_one(known[args.experiment], args, guesses[args.experiment])


def run_one(experiment, args, guess):
    """Run an experiment and keep its record, but for one on somebody's own data or with other folds."""
    name = experiment.__name__
    print(wrapped(f"{name}: {experiment.__doc__}. It takes {records.takes(name, guess)}, less where stages "
                  "are finished already."), flush=True)
    if args.data or args.folds != FOLDS:
        experiment(args)
    else:
        records.keep(experiment, args, records.command(records.words_of(name, guess, args.seeds)))


if __name__ == "__main__":
    run_main(main)
