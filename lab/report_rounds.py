"""What a round of rejection sampling shows: the rounds so far, best-of-n, what is left to earn."""
import data
from lab.commands import shown_command
from lab.measure import chance_corrected
from lab.report import compare, on_own_answers, shown, table
from lab.terminal import wrapped


def report(stage, cfg, enc, rows, models, scorer, curve, before):
    """The table of rounds, what best-of-n of the model that was sampled from is worth, answers, pictures.

    rows: held-out ones of prompts.jsonl; models: {"SFT", the rounds so far, the last of them the new one}
    curve: of `rejection_sampling.best_of_n_curve`; before: checkpoint of the model that was sampled from"""
    prompts = [row["prompt"] for row in rows]
    *_, sampled, new = models  # their names, in order
    held_out = data.tokens_of(enc, data.load_text(stage.data))[1]
    found = compare(models, enc, rows, cfg.max_new_tokens, cfg.temperature, cfg.eval_answers, baseline="SFT",
                    reference=models["SFT"], scorer=scorer, held_out=held_out, seed=cfg.seed)
    left = left_to_earn(curve, scorer, enc, prompts, found.answers[sampled], cfg.seed)
    history = [*before["state"].get("left", []), {"model": sampled, **left}]
    stage.state |= {"results": found.results, "curve": curve, "left": history}
    text = "\n\n".join([found.text, curve_in_words(curve, sampled), left_table(cfg, history)])
    print("\n" + text)
    stage.finish(text, panels(cfg, curve, history, found.gold), f"{new}. Look for: gold that falls while the "
                 "score rises (over-optimisation), rounds that no longer raise it, nothing left to earn")
    print("Talk to it:", shown_command(["model.py", str(stage.file("pt"))]))


def curve_in_words(curve, name):
    """The best-of-n table of a model's answers, and what to know about it."""
    first, last = curve[0], curve[-1]
    header = [f"best of n of {name}", "score, SD", "random one", "KL at most", "KL estimated"]
    rows = []
    for c in curve:
        estimate = f"{shown(c['kl'])} ± {shown(c['kl_error'])}"
        rows.append([f"n = {c['n']}", c["score"], first["score"], c["kl_bound"], estimate])
    if first["gold"] is not None:
        header[3:3] = ["gold, points", "random one"]
        for row, c in zip(rows, curve, strict=True):
            row[3:3] = [c["gold"], first["gold"]]
    lines = ["KL in nats an answer; ± is one standard error of the estimate, over the prompts."]
    if any(c["kl"] > c["kl_bound"] + 0.005 for c in curve):
        lines[0] += (" Where it is above what is possible it is wrong by at least that much, for what was "
                     "never sampled is a guess: there the KL is about as large as it can be.")
    if first["gold"] is not None:
        sure = " (of one prompt, so nobody knows how sure that is)"
        if last["gold_gain_low"] is not None:
            sure = f" (95 % interval from {last['gold_gain_low']:.2f} on)"
        lines.append(f"The best of {last['n']} by the reward model beats a random one by "
                     f"{last['gold'] - first['gold']:.2f} points of gold score{sure}.")
    return "\n".join([table(header, rows), *map(wrapped, lines)])


def left_to_earn(curve, scorer, enc, prompts, answers, seed):
    """What best of K gains on the mean of a model's answers, in score and gold, and how far the reward model
    is right about them: {"score", "gold", "right"}, None where there is no gold score."""
    first, last = curve[0], curve[-1]
    left = {"score": last["score"] - first["score"], "gold": None, "right": None}
    if first["gold"] is not None:
        left["gold"] = last["gold"] - first["gold"]
        accuracy, ceiling, pairs = on_own_answers(scorer, enc, prompts, answers, seed)
        left["right"] = chance_corrected(accuracy, ceiling) if pairs else None
    return left


def left_table(cfg, history):
    """What was left to earn, round after round. history: rows of `left_to_earn` with their "model"."""
    columns = {"model": "answers of", "score": f"best of {cfg.answers_per_prompt} - mean: score, SD",
               "gold": "gold, points", "right": "reward model on them, chance-corrected"}
    known = [key for key in columns if any(row[key] is not None for row in history)]
    return table([columns[key] for key in known], [[row[key] for key in known] for row in history])


def panels(cfg, curve, history, gold_of):
    """The pictures of a round. gold_of: {model: gold scores of its answers, or None}."""
    def points(key, x="kl_bound"):
        return [(c[x], c[key]) for c in curve if c[key] is not None]

    def over_rounds(measure):
        return [(i, x) for i, x in enumerate(measure) if x is not None]

    def level(key):
        return [(x, curve[0][key]) for x, _ in points(key)]

    gold = [sum(g) / len(g) if g else None for g in gold_of.values()]
    at_most = "KL, at most: log n - (n-1)/n"
    every = [
        ("Best of n by the reward model", {"best of n": points("score"), "a random one": level("score")},
         "score, SD", at_most),
        ("The same answers by gold score", {"best of n": points("gold"), "a random one": level("gold")},
         "gold score, points", at_most),
        ("KL of best of n", {"bound": points("kl_bound", "n"), "estimated": points("kl", "n")},
         "nats an answer", "n"),
        ("Gold score over the rounds", {"gold": over_rounds(gold)}, "gold score, points", "round (0: SFT)"),
        (f"Left to earn: best of {cfg.answers_per_prompt} - mean",
         {key: over_rounds([row[key] for row in history]) for key in ("score", "gold")}, "SD; points",
         "round (0: SFT)"),
        ("Loss on the winners", {"training": "loss"}, "nats a token"),
    ]
    # A dot is no curve.
    return [panel for panel in every if any(len(curve) > 1 for curve in panel[1].values())]
