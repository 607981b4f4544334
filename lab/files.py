"""The files of a user: which of a folder are read and as what, their text and their rows.

A source is a folder, or one file alone. A file says by its name what it holds: pretrain, sft, preferences or
prompts; it may be in numbered parts (sft-00001-of-00002.jsonl) and name its split (sft.test.jsonl). One
that is called train, dev or test, or is a numbered part, is told by its keys. Texts (.txt) of other names are
for pretraining, where there is no pretrain file.
"""
import csv
import difflib
import gzip
import importlib
import io
import json
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from data import UserError
from lab.rows import SPLIT_WORDS, Row, check_text, one_break, shown, side_by_side, written_list

KINDS = ("pretrain", "sft", "preferences", "prompts")
PACKED = (".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z", ".rar")
FOREIGN = (".arrow", ".feather", ".xlsx", ".xls", ".ods", ".pkl", ".npy", ".db", ".sqlite", ".docx", ".pdf")
NO_TEXTS = ("readme", "license", "licence", "copying", "notice", "changelog", "requirements")
NO_TEXT_COLUMNS = {  # whose cells in a table are lists or objects
    "answers", "completions", "responses", "ranks", "scores", "tiers", "instances", "summaries", "info",
    "question", "answer_0", "answer_1", "conversation_a", "conversation_b", "history", "rank", "ranking",
    "rating", "ratings", "rewards",
}
ANSWERS = {"response", "completion", "output", "answer"}
MOST = 2**29  # bytes of a file, unpacked
EXPECTED = "pretrain.txt, sft.jsonl, preferences.jsonl or prompts.jsonl"
csv.field_size_limit(2**31 - 1)  # a cell may hold a whole book

# ------------------------------------------------------------------------------------------------
# Names
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """What a name says; kind is None where the keys have to tell it."""

    path: Path
    kind: str | None = None
    split: str | None = None
    part: int | None = None
    of: int | None = None

    @property
    def ending(self):
        return ending_of(self.path)


def ending_of(path):
    """Example: sft.JSONL.gz -> .jsonl"""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def can_be_read(path):
    return ending_of(path) in READERS


def stem_of(path):
    return Path(path.name.lower().removesuffix(".gz")).stem


def understood(path):
    """The File that a name means, or None: it has another ending, or says nothing that is known."""
    if not can_be_read(path):
        return None
    stem = stem_of(path)
    numbered = r"(.*?)[-_. ]?(?:(?:part|shard|data)[-_. ]?)?(\d+)(?:[-_. ]?of[-_. ]?(\d+))?"
    found = None if stem in SPLIT_WORDS else re.fullmatch(numbered, stem)
    name, part, of = found.groups() if found else (stem, None, None)
    words = [word for word in re.split(r"[-_. ]", name) if word]
    kinds = [word for word in words if word in KINDS]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    if len(kinds) > 1 or len(splits) > 1 or len(kinds) + len(splits) < len(words) or not (words or part):
        return None
    kind = kinds[0] if kinds else "pretrain" if ending_of(path) == ".txt" else None
    return File(path, kind, splits[0] if splits else None, part and int(part), of and int(of))


def natural(path):
    """Part 2 comes before part 10."""
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word)
            for word in re.split(r"(\d+)", path.name.lower())]


# ------------------------------------------------------------------------------------------------
# Which files there are
# ------------------------------------------------------------------------------------------------


def files_of(source):
    """(Files to read, names of others that might be meant) of a source. Raises UserError where there is none
    of this name, where two files could be meant, or a name is nearly right."""
    source = Path(source)
    if source.is_file():
        if not can_be_read(source):
            raise UserError(f"{source}: {advice_on(source)}")
        found = understood(source)
        text = ending_of(source) == ".txt"
        return [File(source, found.kind if found else "pretrain" if text else None)], []
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; --data takes a folder with {EXPECTED} in it, or one file")
    paths = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    paths.sort(key=natural)
    check_names(paths)
    files = [file for file in map(understood, paths) if file]
    if not any(file.kind == "pretrain" for file in files):
        files += [File(path, "pretrain") for path in paths if is_book(path)]
    read = {file.path for file in files}
    endings = (*READERS, *PACKED, *FOREIGN)
    others = [path.name for path in paths if path not in read and plain_suffix(path) in endings]
    check_parts(source, files)
    splits = {file.split for file in files}
    if splits <= {None, "train"} or len(splits) == 1:  # the names hold nothing out: the rows decide
        files = [replace(file, split=None) for file in files]
    return files, others


def plain_suffix(path):
    return ending_of(path) if path.name.lower().endswith(".gz") else path.suffix.lower()


def is_book(path):
    return ending_of(path) == ".txt" and not understood(path) and stem_of(path) not in NO_TEXTS


def check_names(paths):
    """Raises UserError for a name that is nearly right, where the right one is not there, too."""
    there = {file.kind for file in map(understood, paths) if file}
    for path in paths:
        stem = path.name.split(".")[0].lower()
        near = difflib.get_close_matches(stem, KINDS, 1, 0.8)
        data = plain_suffix(path) in (*READERS, *PACKED, *FOREIGN, "") or path.suffix.lower() == ".gz"
        if near and data and not understood(path) and near[0] not in there:
            if stem in KINDS:
                raise UserError(f"{path}: {advice_on(path)}")
            raise UserError(f"{path}: a file of this name is not read; did you mean {near[0]}"
                            f"{''.join(path.suffixes) or '.jsonl'}?")


def advice_on(path):
    """What to do with a file whose ending cannot be read."""
    if path.suffix.lower() in PACKED:
        return "a packed file of this kind is not read: unpack it first (.gz alone is understood)"
    return f"a file with this ending is not read; save it as one of {', '.join(READERS)}, each also with .gz"


def check_parts(folder, files):
    """Files of one kind are the parts of one: all numbered, or all of different splits. Raises UserError
    where they are not, for then nobody knows which is meant, and where a numbered part is missing."""
    for kind in (None, *KINDS):
        named = [file for file in files if file.kind == kind and not is_book(file.path)]
        named.sort(key=lambda file: (str(file.split), file.part or 0))
        for a, b in zip(named, named[1:], strict=False):
            one_set = (a.split is None) == (b.split is None) and ending_of(a.path) == ending_of(b.path)
            apart = a.split != b.split or None not in (a.part, b.part) and a.part != b.part
            if not (one_set and apart):
                raise UserError(f"{folder}: {a.path.name} and {b.path.name} are both here; which is meant? "
                                "Move the other away")
        for split, of in sorted({(file.split, file.of) for file in named if file.of}, key=str):
            n = sum((file.split, file.of) == (split, of) for file in named)
            if n < of:
                first = next(file for file in named if (file.split, file.of) == (split, of))
                raise UserError(f"{folder}: {first.path.name} is one of {of} parts, and {n} of them are "
                                "here: add the others, or rename it")


# ------------------------------------------------------------------------------------------------
# Text and rows
# ------------------------------------------------------------------------------------------------


def read_file(path):
    """Text of a file, .gz or not, its lines ended by \\n. Raises UserError where it is empty, too large or
    not text."""
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            raw = file.read(MOST + 1)
        if len(raw) > MOST:
            raise UserError(f"{path}: holds more than {MOST / 2**20:,.0f} MB of text: take a part of it")
        text = one_break(raw.decode("utf-8-sig"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        problem = str(error).replace("\n", " ")[:100]
        what = "UTF-8 text in gzip" if zipped else "UTF-8 text"
        raise UserError(f"{path}: cannot be read as {what} ({problem}): save it as that") from None
    if not text.strip("\0 \t\n"):
        raise UserError(f"{path}: the file is empty")
    return text


def read_rows(path):
    """Yield (where, row) for each object of a file; `where` is "file, line n". A row is a Row, or what else
    stands there."""
    if ending_of(path) == ".parquet":
        rows = parquet_rows(path)
    else:
        rows = READERS[ending_of(path)](path, read_file(path))
    table = ending_of(path) in (".csv", ".tsv")
    for where, row in rows:
        row = check_text(where, unpacked(where, row, table) if isinstance(row, dict) else row)
        yield where, Row(where, row) if isinstance(row, dict) else row


def text_lines(path, text):
    """The prompts of a .txt file, one a line."""
    for i, line in enumerate(text.split("\n"), 1):
        if re.match(r'\s*\{\s*"', line) and isinstance(written_list(line), dict):
            raise UserError(f"{path}, line {i}: an object, where a prompt should be: call the file .jsonl")
        if line.strip():
            yield f"{path}, line {i}", {"prompt": line}


def table_rows(path, text):
    """Rows of a table whose first line that is not blank is its header; what separates the cells is whatever
    makes most cells of the header."""
    text = re.sub(r"\A(sep=.)?\s*\n", "", text)  # Excel writes sep=; where that is the mark
    header = text.split("\n", 1)[0]
    marks = "\t" if ending_of(path) == ".tsv" else ",;\t"
    mark = max(marks, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
    rows, i = csv.DictReader(io.StringIO(text), delimiter=mark, strict=True), 0  # i: the last row read
    try:
        names, i = [name for name in rows.fieldnames or [] if name.strip()], 1
        if len(set(names)) < len(names):
            raise UserError(f"{path}: its header has a column twice: {', '.join(names)[:100]}")
        for i, row in enumerate(rows, 2):
            where, surplus = f"{path}, row {i}", row.pop(None, [])
            cells = [cell or "" for cell in row.values()]
            surplus += [row[name] for name in row if not name.strip() and not is_number(row[name])]
            if any(cell.strip() for cell in surplus):
                raise UserError(f"{where}: has more cells than the header, which has {len(names)}: a cell "
                                f"with a {mark!r} in it must stand in quotes")
            lines = [cell.split("\n")[1] for cell in cells if re.match(r"\n[^\t]", cell)]
            if mark == "\t" and len(names) - 1 in [line.count("\t") for line in lines]:
                raise UserError(f'{where}: a cell that is one quote mark has taken in the rows behind it; '
                                'write it as """"')
            if any(map(str.strip, cells)) and cells != [*row]:  # a blank row, or the header once more
                yield where, row
    except csv.Error as error:
        raise UserError(f"{path}, row {i + 1}: cannot be read as csv ({error})") from None


def is_number(cell):
    return re.fullmatch(r"\s*-?[\d.]*\s*", cell or "") is not None


def unpacked(where, row, table):
    """A row whose messages are lists, also where they are written as text, in JSON or as Python does; in the
    columns of a table that hold no text, any list. An answer that looks like messages is text, but in a
    table, which has no lists. Raises UserError for messages that nobody can read."""
    for name, text in row.items():
        may_be = table or name.strip().lower() not in ANSWERS
        messages = may_be and isinstance(text, str) and like_messages(text, table)
        if messages or table and text and name.strip().lower() in NO_TEXT_COLUMNS:
            value = written_list(text)
            if side_by_side(text) and value is not None:
                raise UserError(f'{where}: "{name}" is a list without commas, as numpy prints it: write it '
                                f"as JSON, found {shown(text)}")
            if messages and value is None and table:
                raise UserError(f'{where}: "{name}" looks like a list of messages, but is neither JSON nor '
                                f"Python: {shown(text)}")
            row[name] = text if value is None else value
    return row


def like_messages(text, table):
    """Whether a text looks like a list of messages, or, in a table, like one alone."""
    keys = (("role", "content"), ("from", "value"))
    return bool(re.match(r"\s*(\[\s*)?\{" if table else r"\s*\[\s*\{", text)) and any(
        all(re.search(rf"['\"]{key}['\"]\s*:", text) for key in pair) for pair in keys)


def json_rows(path, text):
    """Entries of a list, which may be the only one of an object; a file of JSON Lines with this ending is
    read as what it is."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            yield from json_lines(path, text)
            return
        raise UserError(f"{path}: cannot be read as json ({told(error)})") from None
    if isinstance(rows, dict):
        rows = listed_rows(path, rows)
    if not isinstance(rows, list):
        keys = f" with {shown(list(rows)[:10], 100)}" if isinstance(rows, dict) else ""
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}{keys}")
    for i, row in enumerate(rows, 1):
        yield f"{path}, entry {i}", row


OF_ROWS = {"split", "system", "system_prompt", "system_message", "instruction", "prompt", "question",
           "context", "history", "input"}  # what belongs to each row of a list that it stands beside


def listed_rows(path, found):
    """The rows of an object's only list, or of lists that are called train, dev or test; without them the
    object. Raises UserError where something beside the list belongs to its rows."""
    lists = {name: value for name, value in found.items() if isinstance(value, list) and value
             and all(isinstance(row, dict) for row in value)}
    splits = [SPLIT_WORDS.get(name.strip().lower()) for name in lists]
    named = len(set(splits)) > 1 and all(splits)
    if not named and (len(lists) != 1 or {"messages", "conversations"} & found.keys()):
        return found
    beside = {name for name, value in found.items() if value and name not in lists
              and (name in OF_ROWS or isinstance(value, list) and name.strip().lower() in SPLIT_WORDS)}
    if beside:
        raise UserError(f'{path}: "{min(beside)}" stands beside the list "{min(lists)}": write it into its '
                        "rows")
    return [({"split": split} if named else {}) | row
            for split, rows in zip(splits, lists.values(), strict=True) for row in rows]


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
            yield where, row


def parquet_rows(path):
    """Rows of a table in columns, where the package that reads it is installed."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{path}: reading parquet needs a package: pip install pyarrow; or save the rows as "
                        "JSON Lines, from pandas with to_json(\"sft.jsonl\", orient=\"records\", lines=True)"
                        ) from None
    try:
        batches = parquet.ParquetFile(path).iter_batches()
        rows = [row for batch in batches for row in batch.to_pylist()]
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({str(error)[:100]})") from None
    for i, row in enumerate(rows, 1):
        yield f"{path}, row {i}", row


READERS = {
    ".jsonl": json_lines, ".ndjson": json_lines, ".json": json_rows, ".csv": table_rows, ".tsv": table_rows,
    ".txt": text_lines, ".parquet": parquet_rows,
}
