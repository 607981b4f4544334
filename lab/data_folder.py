"""The data folder of a run: filled once, by whichever command is the first, and then never changed."""
from contextlib import nullcontext
from pathlib import Path

from data import UserError, load_prompts, of_split
from lab import lock
from lab.formats import convert
from lab.source import check_unchanged, source_of
from world.tiny import leave_out_names, left_out, write_world


def fill_once(cfg, run):
    """Fill the data folder of a run folder; of two commands that begin at once the second waits. Raises
    UserError where it holds other data than those that cfg asks for."""
    ready = is_filled(run) and not cfg.data or (run / "data/source.json").exists()
    with nullcontext() if ready else lock.alone(run, "data"):
        fill(cfg, run)


def is_filled(run):
    """Whether the data folder of a run is whole; pretrain.txt is its last file. Raises UserError where it was
    whole once."""
    if not (run / "data/pretrain.txt").exists() and any(run.glob("*.pt")):
        raise UserError(f"{run / 'data/pretrain.txt'} is gone: put it back, or train in another folder with "
                        "--run NAME")
    return (run / "data/pretrain.txt").exists()


def fill(cfg, run):
    """From the user's files, or with the tiny world. source.json says from which files of the user."""
    folder, source = run / "data", run / "data/source.json"
    check_apart(cfg.data, run)
    check_ours(folder)
    if cfg.data and source.exists():
        check_unchanged(cfg.data, folder)
    elif source.exists():
        theirs = source_of(folder)["source"]
        raise UserError(f"{run} is a run on your own data: add --data {theirs} (or where they lie now)")
    elif cfg.data:
        if is_filled(run) and any(run.glob("*.pt")):
            raise UserError(f"{run} is a run in the tiny world; give your own data a folder of its own with "
                            "--run NAME")
        convert(cfg.data, folder)
    elif not is_filled(run):
        write_data(folder, cfg)


def check_apart(data, run):
    """Raises UserError where the user's files lie in the folder of the run, where stages would overwrite
    them."""
    place = Path(data).resolve() if data else None
    if place and run.resolve() in (place, *place.parents):
        raise UserError(f"--data {data} lies in the folder of the run, {run}, whose files would take the "
                        "place of yours: name another folder with --run NAME, or move your files")


def check_ours(folder):
    """Raises UserError where somebody has put files into a run's data folder. Ours begin with the held-out
    text."""
    files = sorted(path.name for path in folder.glob("*.*"))
    if files and not any(folder.glob("pretrain.held_out.txt*")):
        raise UserError(f"{folder} holds {files[0]} without our pretrain.held_out.txt: put that back; or, if "
                        "the files are yours, move them to a folder of their own and name it with --data")


def write_data(folder, cfg):
    """Write the tiny world's data, less of it for --config smoke."""
    sizes = {"n_documents": 1000, "n_demonstrations": 200} if cfg.config == "smoke" else {}
    write_world(folder, cfg.seed, **sizes)


def held_out_prompts(folder, split, most=400):
    """Rows of prompts.jsonl to compare models on."""
    return of_split(load_prompts(folder), split, folder / "prompts.jsonl")[:most]


def training_prompts(folder, leave_out):
    """The prompts to learn from, but for those about subjects or topics that --leave_out names."""
    names = leave_out_names(leave_out)
    rows = [row for row in load_prompts(folder) if not left_out(row["prompt"], names)]
    return [row["prompt"] for row in of_split(rows, "train", folder / "prompts.jsonl")]
