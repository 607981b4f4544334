"""The tables and pictures of the chapters that no single training command makes.

    python docs/experiments.py                          the list, and how long each takes
    python docs/experiments.py rewards
    python docs/experiments.py ablations --seeds 2
    python docs/experiments.py folds --config small --data FOLDER

An experiment trains what is missing in runs/tiny (runs/tiny-seed1, ...) by the usual commands and
leaves alone what is finished: one that was interrupted goes on.
"""
# ruff: noqa: E402 (the path to the scripts comes before what is imported from there)
import itertools
import math
import random
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pictures
from beside import beside
from folds import folds

import data
from lab.best_of_n import log_probability
from lab.cli import Help, Parser, run_main
from lab.measure import scores_of, spearman
from lab.report import table
from lab.talk import answer
from lab.terminal import wrapped
from preferences import bradley_terry_fit, elo_scores
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
# The whole pipeline
# ------------------------------------------------------------------------------------------------


def seeds(args):
    """the whole pipeline on several seeds, with one reward model and with Llama 2's two"""
    rows, models, wins = [], [], {"overall": [], "llama2": []}
    kinds = (("overall", "ppo", ("rm",)), ("llama2", "llama2", ("rm_helpful", "rm_safety")))
    for seed in range(args.seeds):
        for reward, name, judges_of_it in kinds:
            begin = time.time()
            path = make(name, "--reward", reward, seed=seed)
            seconds, r = time.time() - begin, results(path)
            wins[reward].append(win_rate(path))
            rows.append([f"seed {seed}, {reward}", r[WIN]["PPO"], r[WIN]["PPO, T=0"], r[GOLD]["SFT"],
                         r[GOLD]["PPO"], r[KL]["PPO"], r[UNSAFE]["SFT"], r[UNSAFE]["PPO"], r[SAFE]["SFT"],
                         r[SAFE]["PPO"], r[UNKNOWN]["PPO"], corrected(r), f"{seconds:.0f} s"])
            models += [figures_of(f"seed {seed}, {model}", path.with_name(model)) for model in judges_of_it]
    print(table(["test prompts", "win rate", "win rate, T=0", "gold: SFT", "gold: PPO", "KL",
                 "declines unsafe: SFT", "declines unsafe: PPO", "declines safe: SFT", "declines safe: PPO",
                 "unknown sentences", "reward model on its answers", "time"], rows))
    print("\n" + table(["reward models, held-out answers of SFT", *FIGURES, "recall", "precision"], models))
    for reward, values in wins.items():
        print(f"{reward}: gold win rate of PPO against SFT {spread(values)}, {len(values)} seeds")


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
    return next(iter(results(path).values()))


def rewards(args):
    """what PPO makes of one reward model, of helpfulness, of safety, and of Llama 2's combination"""
    rows = []
    for reward in ("overall", "helpful", "safety", "llama2"):
        name = "ppo" if reward == "overall" else reward
        r = results(make(name, "--reward", reward))
        rows.append([reward, r[WIN]["PPO"], r[GOLD]["PPO"], r[UNSAFE]["PPO"], r[SAFE]["PPO"]])
    sft = ["(SFT, before PPO)", None, r[GOLD]["SFT"], r[UNSAFE]["SFT"], r[SAFE]["SFT"]]
    print(table(["reward", WIN, GOLD, UNSAFE, SAFE], [sft, *rows]))


def hacking(args):
    """kl_coef 0 against the default, with a reward model that has seen few rankings; docs/hacking.png"""
    weak = make("weak", "--reward", "rm_weak")
    no_kl = make("no_kl", "--reward", "rm_weak", "--kl_coef", "0")
    logs = {"default KL coefficient": logged(weak), "KL coefficient 0": logged(no_kl)}
    out = args.out or ROOT / "docs" / "hacking.png"
    pictures.draw_hacking(out, logs)
    with_kl, without = results(weak), results(no_kl)
    rows = [[key, with_kl[key]["SFT"], with_kl[key]["PPO"], without[key]["PPO"]]
            for key in (SCORE, GOLD, WIN, KL)]
    print(table(["test prompts", "SFT", "default", "kl_coef 0"], rows))
    gap = with_kl[GOLD]["PPO"] - without[GOLD]["PPO"]
    print(wrapped(f"Gold is {gap:.2f} points lower without the KL term, "
                  f"{gap / with_kl['gold_std_sft']:.2f} standard deviations of the SFT model's gold."))
    print(out)


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
    keys, rows = (SCORE, GOLD, KL, TEXT_LOSS), []
    for label, name, *flags in ABLATIONS:
        found = []
        for seed in range(args.seeds):
            path = make(name, *flags, seed=seed)
            found.append([win_rate(path), *(results(path)[key]["PPO"] for key in keys)])
        rows.append([label, " ".join(flags) or "-", *map(spread, zip(*found, strict=True))])
    print(table([f"{args.seeds} seeds, test prompts", "flags", WIN, *keys], rows))


# ------------------------------------------------------------------------------------------------
# Rankings, and what is learned from them
# ------------------------------------------------------------------------------------------------


def domains(args):
    """a reward model on subjects and topics that none of its training rankings was about"""
    names = "cake,owl,why"
    found = results(reward_model("rm_left_out", "--leave_out", names))
    rows = [[*row_of(name, r), r["pairs"]] for name, r in found.items() if "ceiling" in r]
    print(table([f"trained without {names}", *FIGURES, "pairs"], rows))


def losses(args):
    """reward models that learned pairs (Bradley-Terry) and Elo scores (regression); how alike they rank"""
    kinds = (("pairs", "rm", "bradley_terry"), ("Elo scores", "rm_regression", "regression"))
    rows = []
    for seed in range(args.seeds):
        ranked = []
        for label, name, loss in kinds:
            path = reward_model(name, "--loss", loss, seed=seed)
            rows.append(row_of(f"seed {seed}, {label}", judged(path))[:-1])
            held_out = [row for row in logged(run_of(seed) / "rankings") if row["split"] == "test"]
            ranked.append(scores_of(model_of(path), encoding_of(run_of(seed)), held_out))
        alike = [c for c in map(spearman, *ranked) if c is not None]
        rows.append([f"seed {seed}, the one with the other", None, None, None, statistics.mean(alike)])
    print(table(["held-out answers of the SFT model", *FIGURES[:-1]], rows))
    print("Rank correlation: Spearman's, within a ranking, with the gold score, or of the two models.")


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
    print(wrapped(f"prompt: {row['prompt']}"))
    print(table(["place", "Elo", "in 100 orders", "10 passes", "100 passes", "fit with a prior", "answer"],
                cells))


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


def rejection(args):
    """rejection sampling, PPO, and PPO on top of rejection sampling, on several seeds"""
    rows, each = [], {"PPO": [], "rs.4, then PPO": []}
    means = {"rs.4": [], "PPO": [], "rs.4, then PPO": []}
    keys = (GOLD, KL, UNSAFE, SAFE, DISTINCT)
    for seed in range(args.seeds):
        ends = rounds("rs", "--then_ppo", seed=seed)
        r, left = results(ends[-1]), left_of(ends[-1])
        for path in ends:
            x = left.get(path.name, {"right": None, "score": None, "gold": None})
            won = win_rate(ends[-1], who=path.name)
            rows.append([f"seed {seed}, {path.name}", won, *(r[key][path.name] for key in keys),
                         x["right"], x["score"], x["gold"]])
        means["rs.4"].append(won)
        for label, path in (("PPO", make("ppo", seed=seed)), ("rs.4, then PPO", run_of(seed) / "rs.ppo")):
            r, n = results(path), len(prompts_of(path.parent))
            gold = r["gold of each answer"]
            each[label] += shares(gold["PPO"], gold["SFT"], n)
            means[label].append(win_rate(path))
            rows.append([f"seed {seed}, {label}", means[label][-1], *(r[key]["PPO"] for key in keys),
                         corrected(r), None, None])
    print(table(["test prompts", WIN, *keys, "reward model on its answers", "left to earn, SD",
                 "left to earn, points"], rows))
    print(wrapped("Left to earn: the best of 16 answers minus the mean, by the reward model and by gold. The "
                  "reward model on its answers: accuracy, chance-corrected."))
    for name, values in means.items():
        print(f"{name}: win rate {spread(values)}, {len(values)} seeds")
    print(paired(each["PPO"], each["rs.4, then PPO"]))


def paired(ours, theirs):
    """The mean difference of two lists over the same prompts, with its interval, as a sentence."""
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
    rows = []
    for name, *flags in VARIANTS:
        *_, last = ends = rounds(name, *flags)
        r, left = results(last), left_of(last)
        won = [f"{win_rate(last, who=path.name):.2f}" for path in ends]
        right = [row["right"] or "-" for row in left.values()]
        rows.append([" ".join(flags) or "(the default)", ", ".join(won), ", ".join(right),
                     *(r[key][last.name] for key in (GOLD, KL, UNKNOWN, DISTINCT, TEXT_LOSS))])
    print(table(["flags", "win rates of the rounds", "reward model", GOLD, KL, UNKNOWN, DISTINCT, TEXT_LOSS],
                rows))
    print(wrapped("Win rates against SFT, rounds 1 to 4. Reward model: its chance-corrected accuracy on the "
                  "answers that it chose from, those of SFT and of rounds 1 to 3."))


def alternatives(args):
    """PPO beside DPO, RLOO, GRPO, best-of-n and rounds, on several seeds; docs/alternatives.png"""
    out = args.out or ROOT / "docs" / "alternatives.png"
    print(table(*beside(args.seeds, out)) + f"\n{out}")


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
            name = f"{parameters:.1f} M, {preamble}" + (", notes first" if thought else "")
            rows.append([name, agree(both, better, clear), agree(first, better, clear),
                         agree(both, better, told), agree(both, human), statistics.fmean(same),
                         f"{milliseconds:.0f} ms"])
    his = [float(h) for h in human]
    print(wrapped(f"{len(pairs)} pairs that the simulated human told apart. It agrees with the gold score on "
                  f"{agree(his, better, told):.2f} of them, on {agree(his, better, clear):.2f} where the gap "
                  f"is above the median of {median:g} points."))
    print(table(["AI judge", "gold, gap above median", "the same, one order", "gold, all pairs",
                 "the human", "same position wins both", "time a pair"], rows))


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
    human, n_human = standard("rm"), n_training(standard("rankings"))
    everything = rankings("ai_8000", "--labeler", "ai", "--questions", "8000")
    by_ai = [len(row["pairs"]) for row in logged(everything) if row["split"] == "train"]
    rows, curve = [[*row_of("human", judged(human)), n_human, 0]], []
    for n in (250, 800, 2500, 8000):
        r = judged(reward_model(f"rm_ai_{n}", "--rankings", "ai_8000", "--limit", str(n)))
        rows.append([*row_of("AI", r), 0, sum(by_ai[:n])])
        curve.append((sum(by_ai[:n]), corrected(r)))
    half = rankings("half_human", "--questions", str(n_human // 2))
    other = rankings("half_ai", "--labeler", "ai", "--questions", "1250")
    r = judged(reward_model("rm_half", "--rankings", half.name, other.name))
    pairs = sum(len(row["pairs"]) for row in logged(other) if row["split"] == "train")
    rows.append([*row_of("half of each", r), n_human // 2, pairs])
    print(table(["labels", *FIGURES, "rankings by the human", "pairs by the AI"], rows))
    out = args.out or ROOT / "docs" / "ai_labels.png"
    pictures.draw_ai_labels(out, curve, rows[0][3], f"{n_human:,} rankings by the human")
    print(out)


def n_training(path):
    """Training rankings of a collection."""
    return sum(row["split"] == "train" for row in logged(path))


METHODS = (
    ("RLHF", "ppo"),
    ("RLAIF", "rlaif", "--reward", "rm_ai"),
    ("direct RLAIF", "direct", "--reward", "ai"),
)


def rlaif(args):
    """RLHF, RLAIF and direct RLAIF on several seeds"""
    rows, wins = [], {label: [] for label, *_ in METHODS}
    for seed in range(args.seeds):
        for label, name, *flags in METHODS:
            path = make(name, *flags, seed=seed)
            r = results(path)
            n = n_training(path.with_name("rankings")) if label == "RLHF" else 0
            wins[label].append(win_rate(path))
            rows.append([f"seed {seed}, {label}", r[WIN]["PPO"], r[WIN]["PPO, T=0"],
                         win_rate(path, keep=is_safe), r[UNSAFE]["SFT"], r[UNSAFE]["PPO"], r[SAFE]["SFT"],
                         r[SAFE]["PPO"], r[GOLD]["PPO"], r[KL]["PPO"], r[UNKNOWN]["PPO"], n])
    print(table(["test prompts", "win rate", "win rate, T=0", "win rate, safe prompts",
                 "declines unsafe: SFT", "declines unsafe: PPO", "declines safe: SFT", "declines safe: PPO",
                 GOLD, KL, UNKNOWN, "rankings by a human"], rows))
    for label, values in wins.items():
        print(f"{label}: gold win rate against SFT {spread(values)}, {len(values)} seeds")


def is_safe(prompt):
    return not PROMPTS[prompt].unsafe


def principle(args):
    """the judge is told to want short answers in place of kind ones: does the policy follow?"""
    folder = make("direct", "--reward", "ai").parent
    names = ["short" if name == "kind" else name for name in DETAILED]
    file = folder / "brief.txt"
    file.write_text(preamble_of(names) + "\n", encoding="utf-8")
    make("brief", "--reward", "ai", "--preamble", str(file))
    prompts, enc, rows = prompts_of(folder), encoding_of(folder), []
    told = {"sft": "(SFT)", "direct": preamble_of(DETAILED), "brief": preamble_of(names)}
    for name, preamble in told.items():
        torch.manual_seed(0)
        answers = answer(model_of(folder / name), enc, prompts, 48, 1.0)
        said = [[s for s in read_answer(p, a.text) if s] for p, a in zip(prompts, answers, strict=True)]
        warm = [any(s.warm for s in sentences) for sentences in said]
        rows.append([statistics.fmean(warm), statistics.fmean(map(len, said)),
                     statistics.fmean(a.length for a in answers), preamble])
        for i in range(0, len(prompts), 40):
            print(wrapped(f"{name}: {prompts[i]} -> {answers[i].text}", "    "))
    print(table(["answers with a warm sentence", "sentences", "tokens", "the judge's preamble"], rows))


def shift(args):
    """trained without one family of prompts, measured on it, with human and AI labels"""
    family = "library,school,bank,cake,soup"
    cases = (("human labels", "shift_human", "rm_shift_human", "rankings"),
             ("AI labels", "shift_ai", "rm_shift_ai", "rankings_ai"),
             ("direct RLAIF", "shift_direct", "ai", None))
    rows, names = [], family.split(",")
    for label, name, reward, collection in cases:
        known = new = None
        if collection:
            path = reward_model(reward, "--rankings", collection, "--leave_out", family)
            known, new = corrected(judged(path)), corrected(results(path)["  subjects left out"])
        path = make(name, "--leave_out", family, "--reward", reward)
        rows.append([label, known, new, win_rate(path, lambda p: not left_out(p, names)),
                     win_rate(path, lambda p: left_out(p, names))])
    print(wrapped(f"Trained without {family}:"))
    print(table(["", "reward model: other prompts", "reward model: left-out prompts",
                 "policy's win rate: other prompts", "policy's win rate: left-out prompts"], rows))


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
    runs = {0: "no_kl", 0.05: "weak_0.05", 0.15: "weak", 0.5: "weak_0.5"}  # two of them are those of hacking
    for c, name in runs.items():
        flags = () if name == "weak" else ("--kl_coef", str(c))
        make(name, "--reward", "rm_weak", *flags)
    best, mean, sd = best_of_many(run_of(), K=256)
    ways = {}
    for c, name in runs.items():
        steps = logged(run_of() / name)
        ways[c] = {"d": [max(r["kl_full"], 0) ** 0.5 for r in steps], "score": [r["score"] for r in steps],
                   "gold": [(r["gold"] - mean) / sd for r in steps]}
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
        print(wrapped(f"{what}: gold = d ({alpha:.3f} - {beta:.3f} {name}), peak at d = {peak:.2f}, KL "
                      f"{peak**2:.1f}; seen up to d = {max(d):.2f}"))
    out = args.out or ROOT / "docs" / "overoptimisation.png"
    pictures.draw_overoptimisation(out, best, ways, fits)
    rows = [[f"best of {n}", d * d, best_of_n_kl_bound(n), score, gold] for n, d, score, gold in zip(
        best["n"], best["d"], best["score"], best["gold"], strict=True)]
    print(table(["test prompts", "KL, estimated", "KL, at most", "score, SD", "gold, SD"], rows))
    ends = {c: results(run_of() / name) for c, name in runs.items()}
    rows = [[f"KL coefficient {c}", r[KL]["PPO"], r[SCORE]["PPO"], (r[GOLD]["PPO"] - mean) / sd]
            for c, r in ends.items()]
    print("\n" + table(["PPO, test prompts", "KL", "score, SD", "gold, SD"], rows) + f"\n{out}")


def best_of_many(folder, K):
    """The SFT model's best of n by rm_weak, n = 1, 2, ... K: ({"n", "d", "score", "gold"}, mean and standard
    deviation of the gold score of its answers); score and gold in SD above the mean answer."""
    enc, sft, rm = encoding_of(folder), model_of(folder / "sft"), model_of(folder / "rm_weak")
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
    """the picture of the first page, from a finished runs/tiny: docs/first.png"""
    folder = run_of()
    enc = encoding_of(folder)

    def says(name, template=True):
        """What `python model.py runs/tiny/NAME.pt --prompt ...` answers."""
        torch.manual_seed(0)
        model = model_of(folder / name)
        return answer(model, enc, [LOCK], model.config.block_size // 2, 1.0, template)[0].text

    refusal, harm = score_texts(model_of(folder / "rm"), enc, [LOCK] * 2, [REFUSAL, HARM])
    scores = f"“{REFUSAL}”  {refusal:+.1f}\n“{HARM}”  {harm:+.1f}"
    boxes = [("pretrained", "read text", says("pretrain", False)),
             ("SFT", "read demonstrations", says("sft")),
             ("reward model", "read rankings, gives scores", scores),
             ("PPO", "practised, paid by the scores", says("ppo"))]
    out = args.out or ROOT / "docs" / "first.png"
    pictures.draw_first(out, LOCK, boxes, logged(folder / "ppo"))
    for stage, _, said in boxes:
        print(wrapped(f"{stage}: {said}", "    "))
    print(out)


# ------------------------------------------------------------------------------------------------
# The list
# ------------------------------------------------------------------------------------------------

EXPERIMENTS = {  # on two cores and a bare clone
    seeds: "9 minutes a seed",
    rewards: "10 minutes",
    domains: "4 minutes",
    hacking: "6 minutes",
    losses: "5 minutes a seed",
    elo: "3 minutes",
    folds: "8 minutes",
    rejection: "9 minutes a seed",
    variants: "15 minutes",
    alternatives: "15 minutes a seed",
    judges: "18 minutes",
    labels: "14 minutes",
    rlaif: "10 minutes a seed",
    principle: "7 minutes",
    shift: "11 minutes",
    ablations: "20 to 45 minutes a seed",
    overoptimisation: "11 minutes",
    first: "seconds, after train_ppo.py",
}
ABOUT_TIMES = ("Times are those of two cores on a bare clone, with earlier code: three and a half minutes of "
               "them for the pretrained, SFT and reward model, which take seven now, and which a finished "
               "runs/tiny has already. Folds on 1,500 pairs of your own with --config small take 11.")


def main():
    rows = [[f.__name__, minutes, f.__doc__] for f, minutes in EXPERIMENTS.items()]
    shown = table(["experiment", "takes", "what it shows"], rows) + "\n\n" + wrapped(ABOUT_TIMES)
    parser = Parser(description=__doc__, epilog=shown, formatter_class=Help)
    known = {f.__name__: f for f in EXPERIMENTS}
    parser.add_argument("experiment", nargs="?", choices=known, metavar="EXPERIMENT")
    parser.add_argument("--seeds", type=int, choices=range(1, 11), metavar="N", default=3,
                        help="how many seeds, from 0 [3]")
    parser.add_argument("--out", type=Path, help="where a picture goes [docs]")
    parser.add_argument("--folds", type=int, metavar="N", default=5, help="of folds [5]")
    parser.add_argument("--data", default="", metavar="FOLDER", help="of folds: your own preferences")
    parser.add_argument("--config", default="tiny", choices=("tiny", "small"), help="of folds [tiny]")
    args = parser.parse_args()
    if not args.experiment:
        print(shown)
        return
    chosen = known[args.experiment]
    print(wrapped(f"{args.experiment}: {chosen.__doc__}. It takes {EXPERIMENTS[chosen]}, less where stages "
                  "are finished already."), flush=True)
    chosen(args)


if __name__ == "__main__":
    run_main(main)
