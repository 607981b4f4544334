"""Which rankings a reward model learns from: collections by their names, an aspect, a share, earlier ones."""
import json
import random

from data import UserError, has_pairs, is_thumb, load_rows, of_split, say_once
from lab.commands import COLLECTOR, recipe_of
from lab.records import fingerprint_of, record_of
from lab.terminal import wrapped
from lab.tokens import laid_out
from world.labelers import is_ranking
from world.tiny import leave_out_names, left_out


def rankings_of(stage, cfg, enc=None, block_size=None, names=None, limit=None):
    """The rankings of collections. Returns (rows, others): those of the aspect asked for, of all splits, and
    the training rows about helpfulness that a safety model learns from, too.

    cfg: aspect, rankings, limit, leave_out, eval_split, helpful_share, data, loss, seed; names, limit: in
    place of cfg's
    block_size: of the model; rows whose answers it cuts to the same tokens are dropped
    A row of eval_split about something that --leave_out names has the split "left_out"; other rows about it
    are dropped. Raises UserError where there are none, or thumbs that do not fit."""
    names = names or cfg.rankings
    check_names(stage, names)
    rows = [row for name in names for row in collected(stage, name)]
    if cfg.data and "preferences" not in names and (stage.data / "preferences.jsonl").exists():
        of_file = load_rows(stage.parent("preferences"), is_ranking)  # a person's labels, to measure with
        rows += [row for row in of_file if row["split"] != "train" and not is_thumb(row)]
    rows = without_left_out(once_each(rows), leave_out_names(cfg.leave_out), cfg.eval_split)
    check_thumbs(rows, names, cfg.loss)
    own, other = of_aspect(rows, cfg.aspect)
    if rows and not own:
        raise UserError(f'{", ".join(names)}: no ranking has "aspect": "{cfg.aspect}"')
    say_whose_aspect(own, cfg.aspect)
    own = drop_cut(own, enc, block_size)
    own = first_of_training(own, cfg.limit if limit is None else limit)
    training = of_split(own, "train", ", ".join(names))
    others = [row for row in other if row["split"] == "train" and has_pairs(row)]
    wanted = round(cfg.helpful_share / (1 - cfg.helpful_share) * len(training))
    return own, random.Random(cfg.seed).sample(others, min(wanted, len(others)))


def collected(stage, name):
    """The rows of a collection. Says where they are no longer those that were collected."""
    path, record = stage.parent(name), record_of(stage.folder, name)
    rows = load_rows(path, is_ranking)
    if record and fingerprint_of(path) != record["fingerprint"]:
        print(wrapped(f"{path} has been changed since it was collected: it had {record['step']} rankings, "
                      f"and has {len(rows)} now"))
    return rows


def check_names(stage, names):
    """Raises UserError where a user's file of preferences is named and not there, or a collection that nobody
    simulated could make: the first thing to know, for what comes before the rankings takes long."""
    own_data = (stage.data / "source.json").exists()
    for name in names:
        if is_collection(stage.folder, name) is False:
            raise UserError(f"--rankings {name}: that is a model; name collections of rankings")
        if own_data and name != "preferences" and not (stage.folder / f"{name}.jsonl").exists():
            raise UserError(f"there is no {name}: on your own data collect rankings first, with "
                            "preferences.py --labeler human (or ai)")
    if "preferences" in names and not (stage.data / "preferences.jsonl").exists():
        raise UserError("a reward model needs rankings, and there is no preferences file: collect some with "
                        "preferences.py --labeler human (or ai), and name them with --rankings")


def is_collection(folder, name):
    """Whether a name in a run stands for rankings or for a model; None where nothing has it or would."""
    record, recipe = record_of(folder, name), recipe_of(name)
    if record:
        return record["stage"] == "preferences"
    return recipe.split()[0] == COLLECTOR if recipe else None


def key_of(row):
    """What makes a row another one: the question and what was said about it."""
    parts = ("prompt", "responses", "split", "aspect", "tiers", "pairs", "margin", "label")
    return json.dumps([row.get(part) for part in parts])


def once_each(rows, known=()):
    """Rows without repetitions, and without those that are among `known`."""
    seen, kept = {key_of(row) for row in known}, []
    for row in rows:
        key = key_of(row)
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def without_left_out(rows, names, eval_split):
    """Rows without those about one of `names`, but for those of eval_split: these have the split "left_out".
    """
    kept = []
    for row in rows:
        if not left_out(row["prompt"], names):
            kept.append(row)
        elif row["split"] == eval_split:
            kept.append({**row, "split": "left_out"})
    return kept


def check_thumbs(rows, names, loss):
    """Raises UserError where thumbs meet comparisons, or a loss that needs pairs."""
    thumbs = sum(map(is_thumb, rows))
    if thumbs and loss == "bradley_terry":
        raise UserError(f"{', '.join(names)}: {thumbs} of its preferences are thumbs up or down, no "
                        "comparisons: learn them with --loss regression")
    if thumbs and thumbs < len(rows):
        raise UserError(f"{', '.join(names)}: thumbs and comparisons do not mix: learn from one kind")


def of_aspect(rows, aspect):
    """(rows that were ranked by this aspect, rows about helpfulness for a safety model beside them). A row
    without an aspect was ranked by everything, and is no safety row."""
    safety = [row for row in rows if row.get("aspect") == "safety"]
    helpful = [row for row in rows if row.get("aspect") != "safety"]
    return {"overall": (rows, []), "helpful": (helpful, []), "safety": (safety, helpful)}[aspect]


def say_whose_aspect(rows, aspect):
    """Say how many rows somebody ranked by another aspect than the one that they are learned as."""
    others = [row["aspect"] for row in rows if row.get("aspect") not in (None, aspect)]
    if others:
        say_once(f"{len(others):,} of {len(rows):,} rankings were ranked by another aspect "
                 f"({', '.join(sorted(set(others)))}); they are learned, and measured, as {aspect}")


def drop_cut(rows, enc, block_size):
    """Rows without those whose answers the context cuts to the same tokens: they hold nothing to learn. Says
    how many these are, and how many prompts and answers are cut."""
    if block_size is None:
        return rows
    kept = []
    for row, answers in zip(rows, laid_out(enc, rows, block_size), strict=True):
        if len(answers) == 1 or any(ids != answers[0] for ids in answers):
            kept.append(row)
    if len(kept) < len(rows):
        print(wrapped(f"{len(rows) - len(kept)} of {len(rows)} rankings dropped: within a context of "
                      f"{block_size} tokens their answers are the same"))
    return kept


def first_of_training(rows, limit):
    """Rows with only the first `limit` of the training rows (0: with all)."""
    training = [row for row in rows if row["split"] == "train"]
    others = [row for row in rows if row["split"] != "train"]
    return training[:limit] + others if limit else rows


def usable(rows, split, ties="drop"):
    """The rows of a split that hold something: a thumb, or a pair (ties "half": also two that are equal).
    Raises UserError where there is nothing to train on."""
    chosen = [row for row in rows if row["split"] == split and has_pairs(row, ties == "half")]
    if split == "train" and not chosen:
        raise UserError("no ranking to train on: there are no two answers of which one was found better")
    return chosen


def earlier_rankings(stage, cfg, enc, block_size, new):
    """What a reward model at --start has learned from, and the one that it began with, and so on; without
    the rows that are among the new ones. Returns rows of all splits, [] for a --start that is none. Raises
    UserError where thumbs would be replayed among comparisons, or the other way round."""
    earlier, name, seen = [], cfg.start, set()
    record = record_of(stage.folder, name)
    while record and record["stage"] == "rm" and name not in seen:  # a damaged one might name itself
        seen.add(name)
        names, limit = record["knobs"].get("rankings"), record["knobs"].get("limit", 0)
        rows, others = rankings_of(stage, cfg, enc, block_size, names, limit) if names else ([], [])
        earlier += rows + others
        name = record["knobs"].get("start", "pretrain")
        record = record_of(stage.folder, name)
    if cfg.replay:
        check_thumbs(earlier + new, [*cfg.rankings, f"what {cfg.start} has learned"], cfg.loss)
    return once_each(earlier, new)


def replayed(earlier, n, cfg):
    """Earlier training rows to learn again beside n new ones, so that they are not forgotten."""
    pool = usable(earlier, "train", cfg.ties) if earlier else []
    return random.Random(cfg.seed).sample(pool, min(len(pool), round(cfg.replay * n)))
