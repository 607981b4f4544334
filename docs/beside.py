"""What docs/alternatives.py shows: a method beside the SFT model, and all of them beside PPO."""
import statistics

import pictures
import torch

import data
from lab.best_of_n import log_probability
from lab.data_folder import held_out_prompts
from lab.records import load_checkpoint
from lab.report import compare, truth_about
from rejection_sampling import Config, as_matrix, best_of_n, best_of_n_kl, sample_and_score
from runs import (
    DISTINCT,
    GOLD,
    KL,
    SCORE,
    WIN,
    encoding_of,
    logged,
    make,
    model_of,
    prompts_of,
    results,
    run_of,
    shares,
    spread,
    state,
    win_rate,
)
from world.reward import Scorer
from world.taste import gold_score

SECONDS = "seconds of training"
COLUMNS = (WIN, GOLD, SCORE, KL, DISTINCT, SECONDS)
CURVES = {"PPO": "ppo", "RLOO": "rloo", "GRPO": "grpo"}  # methods with iterations, and their stages
STAGES = CURVES | {"DPO": "dpo"}
ROUNDS = ("rs.1", "rs.2", "rs.3", "rs.4")
BEST = (4, 16)  # of so many answers
BLOCK = 4  # iterations in a point of a curve

# Pictures of a training; see lab.report.picture.
OF_DPO = [
    ("DPO's loss should fall below log 2", {"loss": "loss"}, "nats a pair"),
    ("Pairs that the implicit reward ranks right", {"training": "accuracy"}, "share of the pairs"),
    ("Gradient norm: no spikes", {"norm": "grad_norm"}, "before clipping"),
]
OF_THE_OTHERS = [
    ("Score and truth should rise together", {"reward model's score": "score"}, "score, SD", "iteration",
     {"right": ({"gold score": "gold"}, "gold score, points")}),
    ("KL to the reference should level off", {"sampled (k1)": "kl"}, "nats an answer", "iteration"),
    ("Length: a sudden growth is suspicious", {"tokens": "length"}, "tokens an answer", "iteration"),
]


# ------------------------------------------------------------------------------------------------
# One method
# ------------------------------------------------------------------------------------------------


def report(stage, cfg, ppo, enc, policy, reference, scorer):
    """Compare a trained policy with the SFT model on held-out prompts, as PPO's report does; print and write
    the table, some answers and the pictures. ppo: the knobs of sampling."""
    name = cfg.method.upper()
    rows = held_out_prompts(stage.data, cfg.eval_split)
    found = compare({"SFT": reference, name: policy}, enc, rows, ppo.max_new_tokens, ppo.temperature,
                    ppo.eval_answers, baseline="SFT", reference=reference, scorer=scorer, seed=cfg.seed,
                    greedy=("SFT", name), held_out=data.tokens_of(enc, data.load_text(stage.data))[1])
    lines, figures = truth_about(scorer, enc, [row["prompt"] for row in rows], found, name,
                                 data.load_sft(stage.data), cfg.seed)
    stage.state["results"] = found.results | figures
    text = "\n".join([found.text, "", *lines])
    print("\n" + text)
    stage.finish(text, OF_DPO if cfg.method == "dpo" else OF_THE_OTHERS, f"{name} in the tiny world")


# ------------------------------------------------------------------------------------------------
# All of them
# ------------------------------------------------------------------------------------------------


def beside(seeds, path):
    """Train what is missing on the seeds from 0 on, draw the picture at `path`. Returns the head of the table
    and its rows, one a method: mean and range over the seeds."""
    each = [of_seed(seed) for seed in range(seeds)]
    rows = [[label, *(over_seeds([found[label][column] for found in each]) for column in COLUMNS)]
            for label in each[0]]
    points = {label: (mean_of(each, label, KL), mean_of(each, label, GOLD)) for label in each[0]}
    curves = {label: curve([logged(run_of(seed) / stage) for seed in range(seeds)])
              for label, stage in CURVES.items()}
    pictures.draw_alternatives(path, curves, points | rounds_of(seeds))
    return [f"{seeds} seeds, test prompts", *COLUMNS], rows


def over_seeds(values):
    """Example: [1, 2, 3] -> "2.00 (1.00 to 3.00)"; None where one is not known."""
    return None if None in values else spread(values)


def mean_of(each, label, column):
    return statistics.mean(found[label][column] for found in each)


def curve(logs):
    """Points (KL, gold score) of a training, each the mean of BLOCK iterations of all seeds."""
    points = []
    for start in range(0, min(map(len, logs)), BLOCK):
        rows = [row for log in logs for row in log[start : start + BLOCK]]
        points.append(tuple(statistics.mean(row[key] for row in rows) for key in ("kl", "gold")))
    return points


def rounds_of(seeds):
    """{round of rejection sampling: (KL, gold score)}, of its answers to test prompts."""
    found = [results(run_of(seed) / ROUNDS[-1]) for seed in range(seeds)]
    return {name: tuple(statistics.mean(r[key][name] for r in found) for key in (KL, GOLD))
            for name in ROUNDS}


# ------------------------------------------------------------------------------------------------
# One seed
# ------------------------------------------------------------------------------------------------


def of_seed(seed):
    """{label of a method: {column: figure}}; what is missing is trained."""
    found = {}
    for label, stage in STAGES.items():
        script = "train_ppo.py" if stage == "ppo" else "docs/alternatives.py"
        flags = () if stage == "ppo" else ("--method", stage)
        found[label] = of_stage(make(stage, *flags, seed=seed, script=script), label, [stage])
    make("rs", seed=seed, script="rejection_sampling.py")
    last = ROUNDS[-1]
    refreshed = [f"rm.{name}" for name in ROUNDS[:-1]]
    found["rejection sampling"] = of_stage(run_of(seed) / last, last, [*ROUNDS, *refreshed])
    return found | best_of_sft(run_of(seed))


def of_stage(path, who, stages):
    """What a stage found at its end about the model `who`, and what it took to train all of `stages`."""
    r = results(path)
    figures = {column: r[column][who] for column in (GOLD, SCORE, KL, DISTINCT)}
    times = [load_checkpoint(path.with_name(f"{name}.pt")).get("seconds") for name in stages]
    return figures | {WIN: win_rate(path, who=who), SECONDS: None if None in times else sum(times)}


def best_of_sft(folder, split="test"):
    """The same of the best of n answers of the SFT model by the reward model, which trains nothing."""
    enc, sft, prompts = encoding_of(folder), model_of(folder / "sft"), prompts_of(folder, split)
    cfg = Config()
    scorer = Scorer("overall", [model_of(folder / "rm")])
    scorer.mean, scorer.std = state(folder / "ppo")["sft_scale"]
    torch.manual_seed(0)
    texts, scores = sample_and_score(sft, enc, scorer, prompts, cfg)
    asked, flat = [p for p, row in zip(prompts, texts, strict=True) for _ in row], sum(texts, [])
    gold = as_matrix([gold_score(p, text) for p, text in zip(asked, flat, strict=True)], scores)
    logprobs = as_matrix(log_probability(sft, enc, asked, flat, cfg.temperature), scores)
    others = results(folder / "ppo")["gold of each answer"]["SFT"]
    wins = as_matrix(wins_against(gold, others), scores)
    found = {}
    for n in BEST:
        best = scores[:, :n].argmax(1).tolist()
        chosen = {row[i] for row, i in zip(texts, best, strict=True)}
        figures = {WIN: wins, GOLD: gold, SCORE: scores}
        found[f"best of {n}"] = {
            **{column: best_of_n(scores, x, n).mean().item() for column, x in figures.items()},
            KL: best_of_n_kl(scores, logprobs, n).mean().item(),
            DISTINCT: len(chosen) / len(prompts), SECONDS: None}
    return found


def wins_against(gold, others):
    """For each answer the share of another model's answers to its prompt that it beats, ties half.

    gold: (N, K); others: those to prompt i at i, i + N, ... Returns a list of N K numbers."""
    found = []
    for i, row in enumerate(gold.tolist()):
        theirs = others[i :: len(gold)]
        found += [shares([ours] * len(theirs), theirs, 1)[0] for ours in row]
    return found
