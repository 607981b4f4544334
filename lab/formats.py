"""A user's own files into the four files of data.py, with one sentence about what is wrong.

Which files there are: lab/files.py. What their rows may look like: lab/layouts.py. Here all rows of a source
become one: each prompt gets its split, votes become comparisons, what has no file is derived from the
others, and whatever is derived, dropped or left out is counted and said.
"""
import json
from collections import Counter
from pathlib import Path

from data import UserError, hold_out, is_thumb, prompt_text, split_of
from lab.files import EXPECTED, KINDS, advice_on, can_be_read, files_of, read_file, read_rows, understood
from lab.layouts import WHAT, layout_of, read_row
from lab.records import write_atomic
from lab.remarks import looked_over
from lab.rows import SPLITS, Dropped, first_question, is_absent, key_of, same_text
from lab.source import hashes
from lab.terminal import wrapped

COLUMNS = {  # what is written of a row
    "sft": ("prompt", "response", "split"), "prompts": ("prompt", "split", "unsafe"),
    "preferences": ("prompt", "responses", "tiers", "split", "aspect", "margin", "label", "pairs"),
}

MOST_ALIKE = 20  # questions that begin or end alike may be about the same; more of them hardly are

# ------------------------------------------------------------------------------------------------
# All rows of a kind
# ------------------------------------------------------------------------------------------------


def kinds_of(source):
    """({kind: [File]}, names of other files) of a source; where a name does not tell the kind, the keys of
    the first row do. Raises UserError where names and keys give two sets of one kind."""
    files, others = files_of(source)
    if not files:
        raise UserError(nothing_found(Path(source), others))
    found = {}
    for file in files:
        first = None if file.kind else next(read_rows(file.path), None)
        if not file.kind and not first:
            raise UserError(f"{file.path}: no rows")
        kind = file.kind or layout_of(*first).kind
        found.setdefault(kind, []).append(file)
    for kind, same in found.items():
        by_name = [file.path.name for file in same if file.kind]
        by_keys = [file.path.name for file in same if not file.kind]
        if by_name and by_keys:
            raise UserError(f"{source}: {by_name[0]} and {by_keys[0]} both hold {WHAT[kind]}; which is "
                            "meant? Move the other away")
    return {kind: found[kind] for kind in KINDS if kind in found}, others


def nothing_found(folder, others):
    """The sentence about a folder in which nothing can be read. others: names of files like data."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    if {"dataset_info.json", "dataset_dict.json"} & set(names):
        return (f"{folder}: a data set that the library datasets has saved, in its own format; save it there "
                "with .to_json(\"sft.jsonl\"), or whichever kind it is")
    there = ", ".join(guessed(folder, others[:5]) or names[:5]) or "nothing"
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and any(map(understood, p.iterdir())))
    meant = f"; did you mean --data {inner[0]}?" if inner else ""
    if len(inner) > 1:
        meant = "; put their files into one folder, as sft.train.jsonl, sft.test.jsonl and the like"
    right = [folder / name for name in others if can_be_read(Path(name))]
    if right and not inner:
        meant = f"; rename it, or name the file itself: --data {right[0]}"
    elif others and not inner:
        meant = "; " + advice_on(Path(others[0]))
    return f"{folder}: expected {EXPECTED} in it, found {there}{meant}"


def guessed(folder, names):
    """Names of files that are not read, each with the one that would be right by its keys."""
    said = []
    for name in names:
        try:
            kind = layout_of(*next(read_rows(Path(folder) / name))).kind
            said.append(f"{name} (did you mean {kind}{''.join(Path(name).suffixes)}?)")
        except (UserError, LookupError, StopIteration):
            said.append(name)
    return said


def named(files):
    """Example: "sft.jsonl", or "train-1.jsonl and 3 more"."""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return files[0].path.name + more


def rows_of(files, kind):
    """[(where, row, layout)] of the files of a kind. A row has the split of its file's name, if it says
    none."""
    found = []
    for file in files:
        for where, row in read_rows(file.path):
            layout = layout_of(where, row, kind)
            if file.split and is_absent(row.get("split")):
                row["split"] = file.split
            found.append((where, row, layout))
    return found


def gathered(found):
    """[(where, row, layout)] with those that are a part of one put together, at the end."""
    rows = [(where, row, layout) for where, row, layout in found if not layout.gather]
    for layout in dict.fromkeys(layout for _, _, layout in found if layout.gather):
        parts = [(where, row) for where, row, other in found if other == layout]
        rows += [(where, row, layout) for where, row in layout.gather(parts)]
    return rows


def read_kind(files, kind):
    """(rows, remarks) of the files of a kind: rows as lab/layouts.py makes them; those that hold nothing are
    counted by their reasons. The first remark says what was found, but for the splits."""
    found, rows = rows_of(files, kind), []
    dropped, notes, layouts = Counter(), Counter(), Counter()
    name, given = named(files), gathered(found)
    for where, row, layout in given:
        try:
            new = read_row(where, row, layout)
        except Dropped as reason:
            dropped[str(reason)] += 1
            continue
        notes.update({note for one in new for note in one.pop("notes", [])})
        layouts[layout.name] += len(new)
        rows += new
    why = ", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common())
    if not found:
        raise UserError(f"{files[0].path}: no rows; expected {WHAT[kind]}")
    if not rows:
        raise UserError(f"{files[0].path}: none of its {len(given)} rows holds anything to learn ({why})")
    remarks = [", ".join(layouts) if len(layouts) < 2 else
               ", ".join(f"{n:,} {layout}" for layout, n in layouts.items())]
    if dropped:
        remarks.append(f"{name}: {dropped.total()} of {len(given)} rows dropped ({why})")
    remarks += [f"{name}: {n} of {len(given)} rows {note}" for note, n in notes.items()]
    remarks += [f"{name}: {remark}" for remark in looked_over(rows, [row for _, row, _ in found])]
    return rows, remarks


# ------------------------------------------------------------------------------------------------
# All rows of a source
# ------------------------------------------------------------------------------------------------


def settle_splits(rows):
    """Each prompt gets one split, whatever file it is in and however it is spelled: the strictest that its
    rows name, or else its hash's. Dialogues that begin with the same question have one, too: what follows a
    held-out question answers it. Where many begin alike ("Hello"), each goes by itself. Returns how many
    rows are held out though they say train."""
    named, settled = {}, {}
    first = without_systems([first_question(row["prompt"]) for row in rows])
    begins = Counter(first)
    for row, question in zip(rows, first, strict=True):
        row["key"], shared = key_of(row["prompt"]), begins[question] <= max(MOST_ALIKE, len(rows) / 10)
        row["group"] = question if shared else row.get("whole", row["key"])
        if row["split"]:
            for key in {row["key"], row["group"]}:
                named[key] = strictest(row["split"], named.get(key))
    for row in rows:
        split = named.get(row["group"]) or named.get(row["key"]) or split_of(json.loads(row["group"]))
        settled[row["key"]] = strictest(split, settled.get(row["key"]))
    moved = sum(row["split"] == "train" and settled[row["key"]] != "train" for row in rows)
    for row in rows:
        row["split"] = settled[row["key"]]
    return moved


def without_systems(questions):
    """The key of each question, without what stands in front of it in some rows alone: the same question
    behind another system message, or behind none, has the same key. What a few different questions end with,
    from a paragraph on, is taken for it."""
    keys = [key_of(q) for q in questions]
    tails = {key: tails_of(json.loads(key)) for key in set(keys)}
    shared = Counter(hash(tail) for of_one in tails.values() for tail in of_one)
    most = min(MOST_ALIKE, max(3, len(tails) / 10))  # a template ends more of them alike
    for key, of_one in tails.items():
        tails[key] = next((json.dumps(tail) for tail in of_one if 1 < shared[hash(tail)] <= most), key)
    return [tails[key] for key in keys]


def tails_of(question):
    """A question from each of its first paragraphs on."""
    parts = question.split("\n\n") if isinstance(question, str) else []
    return ["\n\n".join(parts[i:]).strip() for i in range(min(20, len(parts)))]


def strictest(a, b):
    return max((a, b or a), key=SPLITS.index)


def merge_votes(rows):
    """(rows, remarks): rows about the same prompt, two answers and aspect are the votes of several
    annotators, and become one comparison: the majority's, a draw one tier. A margin is their mean. Thumbs
    and longer rankings stay as they are."""
    votes = {}
    for i, row in enumerate(rows):
        pair = len(row["responses"]) == 2 and "pairs" not in row
        key = (row["key"], *sorted(map(same_text, row["responses"])), row["aspect"]) if pair else i
        votes.setdefault(key, []).append(row)
    merged = [majority(same) for same in votes.values()]
    draws = sum(len(row["tiers"]) == 1 and not is_thumb(row) for row in merged)
    remarks = []
    if len(merged) < len(rows):
        remarks.append(f"{len(rows)} votes make {len(merged)} comparisons")
    if draws:
        remarks.append(f"{draws} of {len(merged)} comparisons are a draw: train_rm.py leaves them out, or "
                       "with --ties half learns that neither is better")
    return merged, remarks


def majority(votes):
    """Rows about the same two answers -> one row.

    Example: two of three chose "b" -> {"responses": ["a", "b"], "tiers": [[1], [0]], ...} where the first
    vote was for "a"."""
    row = dict(votes[0])
    if len(votes) == 1:
        return row
    first, second = map(same_text, row["responses"])
    winners = Counter(same_text(vote["responses"][vote["tiers"][0][0]]) for vote in votes
                      if len(vote["tiers"]) > 1)
    ahead = winners[first] - winners[second]
    margins = [vote["margin"] for vote in votes if "margin" in vote]
    row["unsafe"] = any(vote["unsafe"] for vote in votes)
    row["tiers"] = [[0, 1]] if not ahead else [[0], [1]] if ahead > 0 else [[1], [0]]
    if margins:
        row["margin"] = sum(margins) / len(margins)
    return row


def chosen_answers(rows):
    """(demonstrations, how many are none): the best answers of preferences and thumbs up; none of those that
    were found worse in another row of the same prompt."""
    chosen, beaten = {}, set()
    for row in rows:
        if is_thumb(row):
            best, worse = ([0], []) if row["label"] else ([], [0])
        else:
            best, worse = row["tiers"][0] if len(row["tiers"]) > 1 else [], sum(row["tiers"][1:], [])
        beaten |= {(row["key"], same_text(row["responses"][i])) for i in worse}
        for i in best:
            answer = row["responses"][i]
            if not answer.strip():
                continue
            chosen.setdefault((row["key"], same_text(answer)), []).append({**row, "response": answer})
    good = [same for key, same in chosen.items() if key not in beaten]
    return [row for same in good for row in same], len(chosen) - len(good)


def each_once(rows):
    """Prompts from rows that have one, {"prompt", "split", "unsafe"}, each once; unsafe where one row says so
    or is about safety."""
    unique = {}
    for row in rows:
        new = {"prompt": row["prompt"], "split": row["split"], "unsafe": False}
        prompt = unique.setdefault(row["key"], new)
        prompt["unsafe"] |= row["unsafe"] or row.get("aspect") == "safety"
    return list(unique.values())


# ------------------------------------------------------------------------------------------------
# Text to pretrain on
# ------------------------------------------------------------------------------------------------


def texts_of(source, files, rows):
    """((text to pretrain on, held-out text), remarks): of texts the last 5 % held out, or whole files that
    say so; documents, split by their hash; or, where there are no files, what the other rows say."""
    if files and files[0].ending == ".txt":
        parts, remarks = texts_of_files(files), []
    else:
        documents, remarks = [], []
        if files:
            found, remarks = read_kind(files, "pretrain")
            named = {}
            for row in found:
                same = same_text(row["text"])
                named[same] = strictest(row["split"] or split_of(row["text"]), named.get(same))
            documents = [(named[same_text(row["text"])] == "train", row["text"]) for row in found]
        else:
            documents = [(row["split"] == "train", prompt_text(row["prompt"]) + "\n" + answer)
                         for row in rows if "whole" not in row
                         for answer in row.get("responses") or [row["response"]]]
        if len({learned for learned, _ in documents}) == 1:  # few rows, all in one split: hold out the last
            n = len(documents)
            documents = [(i < 0.95 * n - 1, text) for i, (_, text) in enumerate(documents)]
        parts = ["\n\n".join(text for learned, text in documents if learned == wanted)
                 for wanted in (True, False)]
    if not all(parts):
        path = files[0].path if files else source
        raise UserError(f"{path}: the text is too short to train on and to hold some of it out")
    return parts, remarks


def texts_of_files(files):
    """(text to learn from, held-out text) of whole texts."""
    parts = [(read_file(file.path), file.split) for file in files]
    parts = [hold_out(text) if split is None else (text, "") if split == "train" else ("", text)
             for text, split in parts]
    return ["\n\n".join(filter(None, texts)) for texts in zip(*parts, strict=True)]


# ------------------------------------------------------------------------------------------------
# The conversion
# ------------------------------------------------------------------------------------------------


def convert(source, folder):
    """Read a user's files and write the four files of a data folder, and source.json about where they are
    from. What was found, derived and dropped is printed. Everything is checked before anything is written.

    source: folder or file; folder: the run's data folder. Raises UserError, which names file and line."""
    files, others = kinds_of(source)
    found, remarks, layouts = {kind: [] for kind in COLUMNS}, [], {}
    for kind in COLUMNS:
        if kind in files:
            found[kind], [layouts[kind], *said] = read_kind(files[kind], kind)
            remarks += said
    check_thumbs(found["preferences"], files)
    moved = settle_splits([row for rows in found.values() for row in rows])
    if moved:
        remarks.append(f"{moved} rows that say train are held out, for another row holds their prompt out")
    found["preferences"], said = merge_votes(found["preferences"])
    found["prompts"] = each_once(found["prompts"])
    rows = found["preferences"] + found["sft"]
    remarks += [f"{named(files['preferences'])}: {remark}" for remark in said]
    first = [f"{named(files[kind])}: {counted(found[kind], kind, layout)}"
             for kind, layout in layouts.items()]
    remarks = first + remarks + derive(source, files, found, rows)
    texts, said = texts_of(source, files.get("pretrain"), rows)
    if "pretrain" in files:
        remarks = [f"{named(files['pretrain'])}: {len(texts[0]):,} characters, {len(texts[1]):,} more held "
                   "out", *said[1:], *remarks]
    for remark in remarks + unread(source, others):
        print(wrapped(remark, indent="  "))
    write(Path(folder), found, texts)
    record = {"source": str(Path(source).resolve()), "files": hashes(source)}
    write_atomic(Path(folder) / "source.json", json.dumps(record, indent=1) + "\n")  # a path may be no UTF-8


def check_thumbs(rows, files):
    """Raises UserError where there are both thumbs and comparisons."""
    if 0 < sum(map(is_thumb, rows)) < len(rows):
        raise UserError(f"{files['preferences'][0].path}: its preferences hold both thumbs and comparisons; "
                        "put them into two folders")


def unread(source, names):
    """A remark on the files beside those that are read which might hold data, too; or none."""
    return [f"not read: {', '.join(guessed(source, names[:5]))}; expected {EXPECTED}"] if names else []


def counted(rows, kind, layout):
    """Example: "1,500 preference pairs, Anthropic transcripts (train 1,275, dev 75, test 150)"."""
    n, what = Counter(row["split"] for row in rows), WHAT[kind]
    if kind == "preferences":
        sizes = {0 if is_thumb(row) else len(row["responses"]) for row in rows}
        what = "thumbs" if sizes == {0} else "preference pairs" if sizes == {2} else "rankings"
    name = "" if layout in (what, "prompts") else f", {layout}"
    return (f"{len(rows):,} {what}{name} (" + ", ".join(f"{split} {n[split]:,}" for split in SPLITS) + ")")


def derive(source, files, found, others):
    """Fill in the kinds that have no file, from `others`, the rows of preferences and demonstrations. Returns
    remarks on it."""
    remarks = []
    if "sft" not in files and others:
        found["sft"], n = chosen_answers(found["preferences"])
        left_out = f", without {n} that another row found worse" if n else ""
        remarks.append(f"no sft file; the {len(found['sft'])} chosen answers of the preferences are the "
                       f"demonstrations{left_out}")
    if not found["sft"]:
        if "pretrain" not in files:
            there = ", ".join(f"{WHAT[kind]} ({named(same)})" for kind, same in files.items())
            why = "and no answer of them was found better" if others else "which have no answers"
            raise UserError(f"{source}: holds {there}, {why}: there are no demonstrations; add sft.jsonl or "
                            "preferences.jsonl, or pretrain.txt to pretrain alone")
        remarks.append("no demonstrations, for there is no sft file: the text is for train_pretrain.py alone")
    if "prompts" not in files and others:
        remarks.append(f"no prompts file; the prompts of its {len(others)} other rows are used")
    if "pretrain" not in files:
        remarks.append(f"no pretrain file; the text of its {len(others)} other rows is used, without those "
                       "of the held-out splits")
    found["prompts"] = found["prompts"] or each_once(others)
    return remarks


def write(folder, found, texts):
    """Write the files, each under a temporary name first; pretrain.txt last: where it is, the others are.
    The held-out text comes first: a folder without it is not ours (lab/data_folder.py)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "pretrain.held_out.txt", texts[1])
    (folder / "preferences.jsonl").unlink(missing_ok=True)
    for kind, rows in found.items():
        if rows or kind != "preferences":
            kept = [{key: row[key] for key in COLUMNS[kind] if key in row} for row in rows]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            write_atomic(folder / f"{kind}.jsonl", lines)
    write_atomic(folder / "pretrain.txt", texts[0])


def enough(tokens, parameters):
    """A sentence where there is too little text to learn to write from random weights, or "".

    tokens: of the training text; parameters: of the model. The tiny world has 2.4 tokens a parameter, which
    is enough where everybody says the same few sentences. (Hoffmann et al. 2022 find 20 best.)"""
    if tokens >= 2 * parameters:
        return ""
    return (f"{tokens:,} tokens for {parameters:,} parameters are little to learn to write from: expect "
            "sentences that it knows by heart, and nonsense. --init CHECKPOINT starts from a trained model.")
