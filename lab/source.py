"""A user's files and the copy that a run has of them: whether they still are the same."""
import hashlib
import json
from pathlib import Path

from data import UserError, read_text
from lab.files import files_of


def hashes(source):
    """{name: sha256} of the files that are read."""
    found = {}
    for file in files_of(source)[0]:
        with file.path.open("rb") as content:
            found[file.path.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def source_of(folder):
    """What source.json says of a data folder: {"source": path, "files": {name: sha256}}. Raises UserError
    where it is damaged."""
    path = Path(folder) / "source.json"
    try:
        record = json.loads(read_text(path))
        whole = all(isinstance(x, str) for x in (record["source"], *record["files"].values()))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: put a copy back, or train with another --run NAME")
    return record


def check_unchanged(source, folder):
    """Raises UserError where a data folder was made from other files, or these have changed. Where they lie
    does not matter: a project may be moved with its runs."""
    run = Path(folder).parent
    record = source_of(folder)
    advice = f"train with another --run NAME, or delete {run}"
    then, now = record["files"], hashes(source)
    if then != now and str(Path(source).resolve()) != record["source"]:
        raise UserError(f"{run} was made from {record['source']}, and the files of --data {source} are "
                        f"others: {advice}")
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            what = "has changed" if name in now else "is gone"
            if name not in then:
                what = "is new"
            raise UserError(f"{source}: {name} {what} since {run} was made from it: {advice}")
