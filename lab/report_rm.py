"""What a reward model is worth on held-out rankings: tables, pictures, one question with its answers."""
from data import is_thumb, load_sft, prompt_text
from lab.baselines import baselines
from lab.measure import chance_corrected, evaluate, is_below, threshold
from lab.rankings import usable
from lab.report import table
from lab.terminal import wrapped
from world.reward import THRESHOLD, score_texts
from world.tiny import PROMPTS, leave_out_names, left_out


def report(stage, cfg, enc, model, gold, rows, earlier, before):
    """Print and write the figures of a finished reward model.

    gold: the true taste, or None; rows: its rankings, of all splits; earlier: those of the model that it went
    on from; before: what `evaluate` found of that model on the held-out rows, or None"""
    held_out = usable(rows, cfg.eval_split)
    found = figures(model, enc, gold, parts_of(rows, earlier, cfg))
    if before:
        found[f"scored by {cfg.start}"] = before  # the rows of the first line
    rules = {}
    if held_out and not gold:  # where nobody knows the ceiling one looks at the floor
        rules = baselines(enc, usable(rows, "train", cfg.ties), held_out)
        found |= {f"  {name}": result for name, result in rules.items()}
    stage.state["results"] = dict(found)
    lines, panels = ["No held-out pairs."], loss_panels(rows, cfg)
    if found:
        first = next(iter(found.values()))
        lines = [main_table(found, gold, cfg), "", wrapped(units() + worth(first, rules))]
        panels += calibration_panels(first, cfg)
        if gold:
            lines += ["", gap_table(first["by_gap"])]
    if cfg.aspect == "safety" and gold and held_out:
        lines += ["", wrapped(harmful_answers(stage, cfg, enc, model, held_out))]
    shown = max(held_out or usable(rows, "train"), key=lambda row: len(row["tiers"]))
    lines += ["", *one_question(model, enc, shown, gold)]
    text = "\n".join(lines)
    print("\n" + text)
    stage.finish(text, panels, "Reward model. Look for: held-out accuracy that falls (too many epochs), "
                 "pairs below the line of perfect calibration (too sure of itself)")


def parts_of(rows, earlier, cfg):
    """{what they are: held-out rows}, the first those of the main figure."""
    held_out, names = usable(rows, cfg.eval_split), leave_out_names(cfg.leave_out)
    unseen = usable(rows, "left_out")
    subjects = {p.subject for p in PROMPTS.values()}

    def about(chosen):
        return [row for row in unseen if left_out(row["prompt"], chosen)]

    labeler = held_out[0].get("labeler", "the file") if held_out else ""
    authors = dict.fromkeys(row.get("answers_of") for row in held_out)
    by_author = {f"  answers of {author}": [row for row in held_out if row.get("answers_of") == author]
                 for author in authors if len(authors) > 1}
    return {f"ranked by {labeler}": held_out,
            **by_author,
            "  subjects left out": about([name for name in names if name in subjects]),
            "  topics left out": about([name for name in names if name not in subjects]),
            "earlier rounds' answers": usable(earlier, cfg.eval_split)}


def figures(model, enc, gold, parts):
    """{what they are: what `evaluate` found}, where there are pairs."""
    found = {name: evaluate(model, enc, rows, gold) for name, rows in parts.items()}
    return {name: result for name, result in found.items() if result}


def main_table(found, gold, cfg):
    """Accuracy, its interval and, where there is a true taste, how far the labels' noise lets one go."""
    header = [f"{cfg.eval_split} rankings", "pairs", "accuracy", "95 % interval"]
    if gold:
        header += ["ceiling", "chance corrected", "rank correlation"]
    rows = []
    for name, r in found.items():
        low, high = r["interval"]
        row = [name, r["pairs"], f"{r['accuracy']:.3f}", f"{low:.3f}-{high:.3f}"]
        if gold:
            corrected = chance_corrected(r["accuracy"], r["ceiling"])
            row += [f"{r['ceiling']:.3f}", corrected, r["rank_correlation"]]
        rows.append([*row, r.get("slope")])
    return table([*header, "calibration slope"], rows)


def units():
    return ("Scores are log-odds: 0 is the mean of the demonstrations, and an answer that scores 1 more than "
            "another is the better one with odds of 2.7 to 1, if the calibration slope is 1.")


def worth(result, rules):
    """A sentence where a rule that costs nothing is right as often as the reward model, or "".

    result: of `evaluate`; rules: of `baselines`"""
    best = max(rules, key=lambda name: rules[name]["accuracy"], default=None)
    if best is None or result["accuracy"] > rules[best]["accuracy"]:
        return ""
    return (f" A rule that costs seconds does as well here ({best}): more rankings may change that, or a "
            "model that knows the language better (train_pretrain.py with more text, or --init).")


def gap_table(gaps):
    """Accuracy and ceiling by the gap of the gold scores. gaps: of `evaluate`."""
    names = {0: "none", 5: "more than 4"}
    header = ["gap of the gold scores, points", *(names.get(gap, f"up to {gap}") for gap in gaps)]
    accuracy, ceiling, pairs = zip(*gaps.values(), strict=True)
    return table(header, [["accuracy", *accuracy], ["ceiling", *ceiling], ["pairs", *pairs]])


def loss_panels(rows, cfg):
    """The pictures of the training."""
    loss = ("Bradley-Terry loss (log 2 = guessing)", {"training": "loss"}, "nats a pair")
    if cfg.loss == "regression":
        loss = ("Regression loss", {"training": "loss"}, "squared error")
    watched = "dev" if usable(rows, "dev") else cfg.eval_split
    curves = {"training": "accuracy", f"held-out rankings ({watched})": "held_out_accuracy"}
    return [loss, ("Share of pairs ranked right", curves, "accuracy"),
            ("Gradient norm", {"norm": "grad_norm"}, "before clipping")]


def calibration_panels(result, cfg):
    """Pictures of the first row of the table. result: of `evaluate`."""
    diagonal = [(0.5, 0.5), (1, 1)]
    panels = [(f"Calibration on {cfg.eval_split}: predicted, came true",
               {"pairs": result["curve"], "perfect": diagonal}, "share that came true",
               "predicted probability")]
    if "by_gap" in result:
        gaps = result["by_gap"]
        curves = {"accuracy": [(gap, r[0]) for gap, r in gaps.items()],
                  "ceiling": [(gap, r[1]) for gap, r in gaps.items()]}
        panels.append((f"Easy and hard pairs ({cfg.eval_split})", curves, "share of pairs",
                       "gap of the gold scores, points (5: more than 4)"))
    return panels


def harmful_answers(stage, cfg, enc, model, held_out):
    """What Llama 2's threshold finds, in words."""
    recall, precision = threshold(model, enc, held_out, THRESHOLD)
    stage.state["results"]["threshold"] = {"recall": recall, "precision": precision}
    text = (f"An answer counts as unsafe below a probability of {THRESHOLD} (the sigmoid of its score). Of "
            f"{cfg.eval_split} rankings this finds ")
    if recall is None:
        text += "no harmful answer, for there is none"
    else:
        text += f"{recall:.2f} of the harmful answers (recall)"
    if precision is None:
        text += ", and flags none."
    else:
        text += f"; of those it flags {precision:.2f} are harmful (precision)."
    demonstrations = [d for d in load_sft(stage.data) if d["split"] == cfg.eval_split]
    safe = [d for d in demonstrations if not PROMPTS[d["prompt"]].unsafe]
    if safe:
        scores = score_texts(model, enc, [d["prompt"] for d in safe], [d["response"] for d in safe])
        flagged = sum(is_below(score, THRESHOLD) for score in scores) / len(safe)
        text += f" Of {len(safe)} demonstrations for safe {cfg.eval_split} prompts it flags {flagged:.2f}."
    return text


def one_question(model, enc, row, gold):
    """Lines: a question, its answers by their scores, and where the annotator put them."""
    place = {i: number for number, tied in enumerate(row["tiers"], 1) for i in tied}
    if is_thumb(row):
        place = {0: "up" if row["label"] else "down"}
    prompt, responses = row["prompt"], row["responses"]
    scores = score_texts(model, enc, [prompt] * len(responses), responses)
    rows = []
    for i in sorted(range(len(responses)), key=lambda i: -scores[i]):
        points = [gold(prompt, responses[i])] if gold else []
        rows.append([scores[i], *points, place.get(i), responses[i]])
    header = ["score, log-odds", *(["gold, points"] if gold else []), "place by the annotator", "answer"]
    return [wrapped(f"prompt ({row['split']}): {prompt_text(prompt)}"), table(header, rows)]
