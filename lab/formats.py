"""A user's own files into the four files of data.py, with one sentence about what is wrong.

A source is a folder with some of these files, or one of them alone:

  pretrain.txt       plain text (or .jsonl with "text")
  sft.jsonl          {"prompt", "response"}; also "completion", Alpaca's keys, chat "messages"
  preferences.jsonl  {"prompt", "chosen", "rejected"}; or whole transcripts as in Anthropic's HH; or
                     {"prompt", "response", "label"}, a thumb up or down;
                     optional "aspect" (helpful or safety) and "margin" (0 to 3)
  prompts.jsonl      {"prompt"}; optional "unsafe"

Each also as .json or .csv, and each also with .gz. A row may say its "split": train, dev or test; where no
row about its prompt does, a hash of the prompt does. A file that is missing is derived from the others.
"""
import csv
import difflib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from pathlib import Path

from data import UserError, hold_out, is_thumb, prompt_text, read_text, split_of
from lab.records import write_atomic
from lab.rows import SPLITS, check_text, field, preference_row, prompt_row, sft_row
from lab.terminal import wrapped

SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
SIGNS = {  # the kind of a file that is given alone, by the keys of its first row
    "preferences": {"chosen", "rejected", "label"},
    "sft": {"response", "completion", "messages", "instruction"},
    "pretrain": {"text"},
    "prompts": {"prompt"},
}
MOST = 2**29  # bytes of a file, unpacked
EXPECTED = "pretrain.txt, sft.jsonl, preferences.jsonl or prompts.jsonl"

# ------------------------------------------------------------------------------------------------
# Which files there are, and their rows
# ------------------------------------------------------------------------------------------------


def files_of(source):
    """{kind: path} of the files of a source, kind as in SIGNS. Raises UserError where there are none."""
    source = Path(source)
    if source.is_file():
        return {kind_of(source): source}
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; --data takes a folder with {EXPECTED} in it, or one file")
    found = {kind: find_file(source, kind) for kind in SIGNS}
    found = {kind: path for kind, path in found.items() if path}
    if not found:
        there = ", ".join(sorted(path.name for path in source.iterdir())[:5]) or "nothing"
        raise UserError(f"{source}: expected {EXPECTED} in it, found {there}")
    return found


def find_file(folder, kind):
    """The file of a kind whatever its ending, or None. Raises UserError where there are two, or one whose
    name is nearly right: it would be missed without a word."""
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
    right = {other + s + z: other for other in SIGNS for s in SUFFIXES for z in ("", ".gz")}
    found = [name for name in names if right.get(name) == kind]
    if len(found) > 1:
        raise UserError(f"{folder}: {found[0]} and {found[1]} are both here; which is meant? Move the other "
                        "away")
    for name in names:
        near = difflib.get_close_matches(name.split(".")[0].lower(), [kind], 1, 0.8)
        if near and name not in right and not found:
            raise UserError(f"{Path(folder) / name}: a file of this name is not read; did you mean "
                            f"{kind}.jsonl? Endings are {', '.join(SUFFIXES)}, each also with .gz")
    return Path(folder) / found[0] if found else None


def ending_of(path):
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def kind_of(path):
    """The kind of a file that is given alone: by its name, or by the keys of its first row."""
    if path.name.split(".")[0] in SIGNS:
        return path.name.split(".")[0]
    if ending_of(path) not in SUFFIXES:
        raise UserError(f"{path}: --data takes a folder, or a file that ends in {', '.join(SUFFIXES)}, each "
                        "also with .gz")
    if ending_of(path) == ".txt":
        return "pretrain"
    where, row = next(read_rows(path), (path, {}))
    kind = next((kind for kind, signs in SIGNS.items() if isinstance(row, dict) and signs & row.keys()), None)
    if kind is None:
        field(where, row, "prompt")  # raises: says what was found
    return kind


def read_file(path):
    """Text of a file, .gz or not. Raises UserError where it is empty, too large or not text."""
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            raw = file.read(MOST + 1)
        if len(raw) > MOST:
            raise UserError(f"{path}: holds more than {MOST / 2**20:,.0f} MB of text: take a part of it")
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        problem = str(error).replace("\n", " ")[:100]
        raise UserError(f"{path}: cannot be read as UTF-8 text{' in gzip' * zipped} ({problem})") from None
    if not text.strip("\0 \t\r\n"):
        raise UserError(f"{path}: the file is empty")
    return text


def read_rows(path):
    """Yield (where, row) for each object of a .jsonl, .json or .csv file; `where` is "file, line n"."""
    reader = {".csv": csv_rows, ".json": json_rows}.get(ending_of(path), json_lines)
    return reader(path, read_file(path))


def csv_rows(path, text):
    """Rows of a table whose first line that is not blank is its header."""
    rows, i = csv.DictReader(io.StringIO(re.sub(r"\A\s*\n", "", text)), strict=True), 1
    while True:
        i += 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{path}, row {i}: cannot be read as csv ({error})") from None
        if row is None:
            return
        yield f"{path}, row {i}", row


def json_rows(path, text):
    """Entries of a list; a file of JSON Lines with this ending is read as what it is."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            yield from json_lines(path, text)
            return
        raise UserError(f"{path}: cannot be read as json ({told(error)})") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    for i, row in enumerate(rows, 1):
        where = f"{path}, entry {i}"
        yield where, check_text(where, row)


def told(error):
    """What a reader of JSON says, without its advice to programmers."""
    if isinstance(error, RecursionError):
        return "lists or objects lie too deep inside each other"
    return str(error).partition("; use")[0]


def json_lines(path, text):
    """One object a line."""
    for i, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 may stand inside a string
        where = f"{path}, line {i}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not a JSON object ({told(error)})") from None
            yield where, check_text(where, row)


# ------------------------------------------------------------------------------------------------
# All rows of a file
# ------------------------------------------------------------------------------------------------
READERS = {  # kind: (its reader of a row, what a row is, why one holds nothing)
    "sft": (sft_row, "demonstrations", "an empty prompt or answer"),
    "preferences": (preference_row, "preferences",
                    "same answer twice, an empty answer, or different prompts"),
    "prompts": (prompt_row, "prompts", "an empty prompt"),
}


def read_kind(path, kind):
    """(rows, remarks) of a file: rows as lab/rows.py makes them; those that hold nothing are counted."""
    reader, what, why = READERS[kind]
    found = [reader(where, row) for where, row in read_rows(path)]
    rows = [row for row in found if row]
    dropped, remarks = len(found) - len(rows), []
    if not found:
        raise UserError(f"{path}: no rows; expected {what}")
    if not rows:
        raise UserError(f"{path}: none of its {len(found)} rows holds anything to learn ({why})")
    if dropped:
        remarks.append(f"{path.name}: {dropped} of {len(found)} rows dropped ({why})")
    twice = sum(map(repeats_prompt, rows))
    if twice:
        remarks.append(f"{path.name}: in {twice} of {len(rows)} rows the answers begin with their own "
                       "prompt, which the model then sees twice: take it off, if that is not meant")
    return rows, remarks


def repeats_prompt(row):
    """Whether all answers of a row begin with its prompt."""
    answers = row.get("responses") or [row.get("response", "")]
    prompt = row["prompt"].strip() if isinstance(row["prompt"], str) else None
    return bool(prompt) and all(answer.startswith(prompt) for answer in answers)


def settle_splits(rows):
    """Each prompt gets one split, whatever file it is in: one that its rows name, or else its hash's. Held
    out once is held out always."""
    named = {}
    for row in rows:
        key = json.dumps(row["prompt"])
        places = [SPLITS.index(split) for split in (row["split"], named.get(key)) if split]
        if places:
            named[key] = SPLITS[max(places)]
    for row in rows:
        row["split"] = named.get(json.dumps(row["prompt"])) or split_of(row["prompt"])


def merge_votes(path, rows):
    """(rows, remarks): rows about the same prompt, two answers and aspect are the votes of several
    annotators, and become one comparison: the majority's, a draw one tier. A margin is their mean. Thumbs
    stay as they are. Raises UserError where there are thumbs and comparisons."""
    thumbs = sum(map(is_thumb, rows))
    if thumbs and thumbs < len(rows):
        raise UserError(f"{path}: its preferences hold both thumbs and comparisons; put them into two "
                        "folders")
    if thumbs:
        return rows, []
    votes = {}
    for row in rows:
        key = json.dumps([row["prompt"], sorted(row["responses"]), row["aspect"]])
        votes.setdefault(key, []).append(row)
    merged = [majority(same) for same in votes.values()]
    if len(merged) == len(rows):
        return rows, []
    draws = sum(len(row["tiers"]) == 1 for row in merged)
    return merged, [f"{path.name}: {len(rows)} votes make {len(merged)} comparisons, {draws} of them a draw"]


def majority(votes):
    """Rows about the same two answers -> one row.

    Example: two of three chose "b" -> {"responses": ["a", "b"], "tiers": [[1], [0]], ...} where the first
    vote was for "a"."""
    row = dict(votes[0])
    first = sum(vote["responses"] == row["responses"] for vote in votes)
    margins = [vote["margin"] for vote in votes if "margin" in vote]
    if 2 * first == len(votes):
        row["tiers"] = [[0, 1]]
    elif 2 * first < len(votes):
        row["tiers"] = [[1], [0]]
    if margins:
        row["margin"] = sum(margins) / len(margins)
    return row


def each_once(rows):
    """Prompts from rows that have one, {"prompt", "split", "unsafe"}, each once; unsafe where one row says so
    or is about safety."""
    unique = {}
    for row in rows:
        new = {"prompt": row["prompt"], "split": row["split"], "unsafe": False}
        prompt = unique.setdefault(json.dumps(row["prompt"]), new)
        prompt["unsafe"] |= row.get("unsafe", False) or row.get("aspect") == "safety"
    return list(unique.values())


def chosen_answers(rows):
    """Demonstrations from preferences: the better answer of each comparison, and thumbs up."""
    kept = [row for row in rows if row.get("label", len(row["tiers"]) > 1)]
    return [{"prompt": row["prompt"], "response": row["responses"][row["tiers"][0][0]], "split": row["split"]}
            for row in kept]


def texts_of(source, path, rows):
    """(text to pretrain on, held-out text): pretrain.txt, its last 5 % held out; rows with "text", split by
    their hash; or, where path is None, whatever the other rows say."""
    if path and ending_of(path) == ".txt":
        parts = hold_out(read_file(path))
    else:
        if path:
            texts = [field(where, row, "text") for where, row in read_rows(path)]
            documents = [(split_of(text) == "train", text) for text in texts]
        else:
            documents = [(row["split"] == "train", prompt_text(row["prompt"]) + "\n" + answer)
                         for row in rows for answer in row.get("responses") or [row["response"]]]
        if len({learned for learned, _ in documents}) == 1:  # few rows, all in one split: hold out the last
            n = len(documents)
            documents = [(i < 0.95 * n - 1, text) for i, (_, text) in enumerate(documents)]
        parts = ["\n\n".join(text for learned, text in documents if learned == wanted)
                 for wanted in (True, False)]
    if not all(parts):
        raise UserError(f"{path or source}: the text is too short to train on and to hold some of it out")
    return parts


# ------------------------------------------------------------------------------------------------
# The conversion
# ------------------------------------------------------------------------------------------------


def convert(source, folder):
    """Read a user's files and write the four files of a data folder, and source.json about where they are
    from. What was found, derived and dropped is printed. Everything is checked before anything is written.

    source: folder or file; folder: the run's data folder. Raises UserError, which names file and line."""
    files = files_of(source)
    found, remarks = {}, []
    for kind in ("sft", "preferences", "prompts"):
        found[kind], said = read_kind(files[kind], kind) if kind in files else ([], [])
        remarks += said
    if found["preferences"]:
        found["preferences"], said = merge_votes(files["preferences"], found["preferences"])
        remarks += said
    settle_splits([row for rows in found.values() for row in rows])
    said = [f"{files[kind].name}: {counted(rows, READERS[kind][1])}" for kind, rows in found.items() if rows]
    remarks = said + remarks + derive(source, files, found)
    texts = texts_of(source, files.get("pretrain"), found["preferences"] or found["sft"])
    if "pretrain" in files:
        remarks.insert(0, f"{files['pretrain'].name}: {len(texts[0]):,} characters, {len(texts[1]):,} more "
                       "held out")
    for remark in remarks + unread(source, files):
        print(wrapped(remark, indent="  "))
    write(Path(folder), found, texts)
    record = {"source": str(Path(source).resolve()), "files": hashes(files)}
    write_atomic(Path(folder) / "source.json", json.dumps(record, indent=1) + "\n")  # a path may be no UTF-8


def unread(source, files):
    """A remark on the files beside those that are read which might hold data, too; or none."""
    folder = Path(source)
    others = folder.iterdir() if folder.is_dir() else []
    names = sorted(path.name for path in others if ending_of(path) in SUFFIXES and path not in files.values())
    return [f"not read: {', '.join(names[:5])}; expected {EXPECTED}"] if names else []


def counted(rows, what):
    """Example: "40 prompts (train 30, dev 4, test 6)"."""
    n = Counter(row["split"] for row in rows)
    return f"{len(rows):,} {what} (" + ", ".join(f"{split} {n[split]:,}" for split in SPLITS) + ")"


def derive(source, files, found):
    """Fill in the kinds that have no file, from the rows of the others. Returns remarks on it."""
    remarks = []
    others = found["preferences"] or found["sft"]
    if "sft" not in files:
        found["sft"] = chosen_answers(found["preferences"])
        remarks.append(f"no sft file; the {len(found['sft'])} chosen answers of the preferences are the "
                       "demonstrations")
    if not found["sft"]:
        if "pretrain" not in files:
            raise UserError(f"{source}: no demonstrations; expected sft.jsonl or preferences.jsonl")
        remarks[-1] = "no demonstrations, for there is no sft file: the text is for train_pretrain.py alone"
    if "prompts" not in files and others:
        remarks.append(f"no prompts file; the prompts of its {len(others)} other rows are used")
    if "pretrain" not in files:
        remarks.append(f"no pretrain file; the text of its {len(others)} other rows is used, without those "
                       "of the held-out splits")
    found["prompts"] = each_once(found["prompts"] or others)
    return remarks


def write(folder, found, texts):
    """Write the files, each under a temporary name first; pretrain.txt last: where it is, the others are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preferences.jsonl").unlink(missing_ok=True)
    for kind, rows in found.items():
        if rows or kind != "preferences":
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomic(folder / f"{kind}.jsonl", lines)
    write_atomic(folder / "pretrain.held_out.txt", texts[1])
    write_atomic(folder / "pretrain.txt", texts[0])


def hashes(files):
    """{name: sha256} of files."""
    found = {}
    for path in files.values():
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
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
    then, now = record["files"], hashes(files_of(source))
    if then != now and str(Path(source).resolve()) != record["source"]:
        raise UserError(f"{run} was made from {record['source']}, and the files of --data {source} are "
                        f"others: {advice}")
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            what = "has changed" if name in now else "is gone"
            if name not in then:
                what = "is new"
            raise UserError(f"{source}: {name} {what} since {run} was made from it: {advice}")


def enough(tokens, parameters):
    """A sentence where there is too little text to learn to write from random weights, or "".

    tokens: of the training text; parameters: of the model. The tiny world has 2.4 tokens a parameter, which
    is enough where everybody says the same few sentences. (Hoffmann et al. 2022 find 20 best.)"""
    if tokens >= 2 * parameters:
        return ""
    return (f"{tokens:,} tokens for {parameters:,} parameters are little to learn to write from: expect "
            "sentences that it knows by heart, and nonsense. --init CHECKPOINT starts from a trained model.")
