"""The figures of README and chapters against the records of the experiments (records.py).

Three comments stand in the pages, each in a line before what it is about:

    <!-- table: NAME 1 -->                the rows of the markdown table are those of the first table of NAME;
                                          the header is the page's. `columns 1 3` and `rows 2 4` behind it
                                          choose some, counted from 1
    <!-- output: NAME 1 -->               the code block is the first text that NAME quotes
    <!-- measured: NAME, NAME; given 0.2 -->    the numbers of the paragraph or list are in these records,
                                          rounded as the text has it, but for those that were given: knobs,
                                          numbers of papers, sums that the text itself does

`table: records 1` is about the records themselves. In a Chinese page the first cells of a table stay, as
translations, where their numbers are those of the record. Not counted as numbers are what stands in `code`,
in formulas and in the addresses of links, years, "95 %" and whole numbers below 10. A number that happens to
be somewhere in the record passes: `check` finds what is out of date, not what is out of place. A marker that
begins with `python` names a command outside of the experiments.
"""
import re
from dataclasses import dataclass
from pathlib import Path

from records import ROOT, load, overview

MARK = re.compile(r"<!-- (table|output|measured): (.+?) -->")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])([-+]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![A-Za-z0-9_]|\.\d)(\s*%)?")
NUMERAL = re.compile(r"\d[\d.,]*\d|\d")
NO_NUMBERS = re.compile(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|<!--.*?-->|\b(?:19|20)\d\d\b|95\s*%", flags=re.S)


@dataclass
class Mark:
    """A comment in a page, and the lines [begin, end) of its table, code block, paragraph or list."""

    page: Path
    line: int  # from 1
    kind: str
    what: str
    begin: int
    end: int

    def __str__(self):
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.line}: {self.kind} {self.what}"

    @property
    def names(self):
        """The experiments that it is about; none where it is a command outside of them."""
        if self.what.startswith("python "):
            return []
        names = self.what.partition(";")[0]
        return names.split(", ") if self.kind == "measured" else names.split()[:1]


def pages():
    docs = ROOT / "docs"
    return [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted((docs / "zh").glob("*.md"))]


def lines_of(page):
    return page.read_text(encoding="utf-8").split("\n")


def marks_of(page):
    """The marks of a page, from top to bottom."""
    lines, found = lines_of(page), []
    for i, line in enumerate(lines):
        mark = MARK.fullmatch(line.strip())
        if mark:
            begin = i + 1
            while begin < len(lines) and (not lines[begin].strip() or MARK.fullmatch(lines[begin].strip())):
                begin += 1
            found.append(Mark(page, i + 1, mark[1], mark[2], begin, end_of(lines, begin)))
    return found


def end_of(lines, begin):
    """Where a block ends: behind the fence of a code block, else at a blank line."""
    fenced, end = lines[begin:begin + 1] and lines[begin].startswith("```"), begin + 1
    while end < len(lines) and (not lines[end].startswith("```") if fenced else lines[end].strip()):
        end += 1
    return end + 1 if fenced else end


# ------------------------------------------------------------------------------------------------
# Tables and outputs
# ------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """Why a marker and its record do not go together."""


def wanted(mark, lines, find):
    """The lines of a table or a code block as the record has them. Raises Wrong. find: name -> record."""
    record = find(mark.names[0])
    if record is None:
        raise Wrong("there is no record")
    words = mark.what.split()
    parts = record["tables" if mark.kind == "table" else "outputs"]
    if len(words) < 2 or not words[1].isdigit() or not 1 <= int(words[1]) <= len(parts):
        raise Wrong(f"expected NAME and a number from 1 to {len(parts)}")
    part = parts[int(words[1]) - 1]
    if mark.kind == "output":
        if not lines[0].startswith("```"):
            raise Wrong("no code block follows")
        return [lines[0], *part.split("\n"), lines[-1]]
    chosen = dict(re.findall(r"(columns|rows) ([\d ]+)", " ".join(words[2:])))
    return table_lines(lines, part["rows"], chosen, mark.page.parent.name == "zh")


def table_lines(lines, rows, chosen, chinese):
    """A markdown table with other rows. lines: its header, its rule, its rows; chosen: {"columns", "rows"} as
    the marker has them."""
    rows = pick(rows, chosen.get("rows"))
    rows = [[in_page(cell, chinese) for cell in pick(row, chosen.get("columns"))] for row in rows]
    if len(lines) < 2 or not re.fullmatch(r"\|[-:| ]+\|", lines[1]):
        raise Wrong("no table follows")
    here = [cells_of(line) for line in lines]
    if any(len(row) != len(here[0]) for row in rows):
        raise Wrong(f"the page has {len(here[0])} columns, the record {len(rows[0])}")
    if chinese:
        labels = translated([row[0] for row in rows], [row[0] for row in here[2:]])
        rows = [[label, *row[1:]] for label, row in zip(labels, rows, strict=True)]
    return [*lines[:2], *(f"| {' | '.join(row)} |" for row in rows)]


def translated(labels, there):
    """First cells of a table, in the words of those that a Chinese page has. Where these are as many, each
    says its own, if its numbers are the same; else those that begin with a number (a seed) are a pattern for
    the others."""
    def kept(label, old):
        return old if numerals(label) == numerals(old) and not old.isascii() else label

    pairs = [(label, kept(label, old)) for label, old in zip(labels, there, strict=False)]
    if len(labels) == len(there):
        return [old for _, old in pairs]
    patterns = {NUMERAL.sub("#", label): NUMERAL.sub("#", old) for label, old in pairs if label[:1].isdigit()}
    return [filled(patterns.get(NUMERAL.sub("#", label), label), numerals(label)) for label in labels]


def numerals(label):
    return NUMERAL.findall(label)


def filled(pattern, numbers):
    """Example: "#, one", ["2"] -> "2, one"."""
    numbers = iter(numbers)
    return re.sub("#", lambda _: next(numbers), pattern)


def pick(items, places):
    """Some of a list, by their places from 1 as text; all where places is None."""
    if places is None:
        return list(items)
    try:
        return [items[int(n) - 1] for n in places.split()]
    except IndexError:
        raise Wrong(f"there are only {len(items)} to choose {places.strip()} from") from None


def cells_of(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def in_page(cell, chinese):
    """A printed cell as a page shows it: flags as code, ranges in the page's language."""
    cell = cell.strip().replace("|", "\\|")
    if cell.startswith("--"):
        return f"`{cell}`"
    return re.sub(r"(?<=\d) to (?=[-+\d])", " 至 ", cell) if chinese else cell


# ------------------------------------------------------------------------------------------------
# Numbers in prose
# ------------------------------------------------------------------------------------------------


def numbers_in(text, all_of_them=False):
    """[(as it stands, sign, value without it, decimals, whether % follows)]. Of whole numbers below 10 only
    with all_of_them."""
    found = []
    for match in NUMBER.finditer(text):
        sign, whole, rest, percent = match.groups()
        value, decimals = float(whole.replace(",", "") + (rest or "")), len(rest or ".") - 1
        if all_of_them or decimals or value >= 10:
            found.append((match[0].strip(), sign, value, decimals, bool(percent)))
    return found


def said_by(record):
    """All numbers of a record."""
    cells = [cell for table in record["tables"] for row in [table["head"], *table["rows"]] for cell in row]
    return numbers_in("\n".join([record["text"], *record["outputs"], *cells]), all_of_them=True)


def is_among(number, known):
    """Whether a number of the text is one of those, rounded to its own decimals."""
    _, sign, value, decimals, percent = number
    for _, other_sign, other, precision, _ in known:
        if sign == "-" and other_sign != "-" or sign == "+" and other_sign == "-":
            continue
        scales = ((1, 0), (100, 2)) if percent else ((1, 0),)
        for scale, fewer in scales:
            error = 0.5 * 10**-decimals if precision - fewer >= decimals else 0
            if abs(other * scale - value) <= error + 1e-9:
                return True
    return False


def not_found(mark, lines, find):
    """Faults of a block of prose: [sentence], with the line of each number that is in no record."""
    records = [find(name) for name in mark.names]
    if not records:
        return []  # of a command outside of the experiments
    if None in records:
        return [f"{mark}: there is no record of {mark.names[records.index(None)]}"]
    given = [number[0] for number in numbers_in(mark.what.partition("; given ")[2], all_of_them=True)]
    known = [number for record in records for number in said_by(record)]
    text = NO_NUMBERS.sub(lambda found: "\n" * found[0].count("\n") + " ", "\n".join(lines))
    faults = []
    for i, line in enumerate(text.split("\n")):
        for number in numbers_in(line):
            if number[0] not in given and not is_among(number, known):
                where = Mark(mark.page, mark.begin + i + 1, mark.kind, mark.what, 0, 0)
                faults.append(f"{where}: {number[0]} is in no record")
    return faults


# ------------------------------------------------------------------------------------------------
# The two commands
# ------------------------------------------------------------------------------------------------


def finder(names):
    """name -> its record, each read once."""
    known = {name: load(name) for name in names} | {"records": overview(names)}
    return known.get


def write(names, paths=None):
    """Fill the tables and code blocks of the pages from the records; say which were left alone, and why."""
    find = finder(names)
    for page in paths or pages():
        lines, changed = lines_of(page), 0
        for mark in reversed(marks_of(page)):
            if mark.kind == "measured":
                continue
            there = lines[mark.begin : mark.end]
            try:
                new = wanted(mark, there, find)
            except Wrong as why:
                print(f"{mark}: left alone, {why}")
                continue
            lines[mark.begin : mark.end] = new
            changed += new != there
        if changed:
            page.write_text("\n".join(lines), encoding="utf-8")
            print(f"{page.name}: {changed} tables and outputs written")


def check(names, paths=None):
    """Faults of the pages, one sentence each: what differs from the records."""
    find, faults = finder(names), []
    for page in paths or pages():
        lines = lines_of(page)
        for mark in marks_of(page):
            there = lines[mark.begin : mark.end]
            if mark.kind == "measured":
                faults += not_found(mark, there, find)
                continue
            try:
                new = wanted(mark, there, find)
            except Wrong as why:
                faults.append(f"{mark}: {why}")
                continue
            for i in range(max(len(new), len(there))):
                if new[i:i + 1] != there[i:i + 1]:
                    said = new[i] if i < len(new) else "nothing"
                    faults.append(f"{mark}: line {mark.begin + i + 1} differs, the record has: {said}")
    return faults
