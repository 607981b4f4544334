"""The school of an AI judge: a language model of ours that learns from reviews of answers in the tiny world,
with the loss of supervised fine-tuning. The reviews come in lessons; at the end it is examined."""
import random

import torch

from data import encode, fit, load_rows, steps_per_epoch
from lab import parallel
from lab.report import table
from lab.terminal import wrapped
from model import GPT, GPTConfig
from world.judge import NOTES_LENGTH, REMARK_LENGTH, OwnModel
from world.reviews import BEST, RATING, REASONS, REMARK, write_reviews


def with_context(model, block_size):
    """A copy of the model with another context length. Positions behind those that it knows begin as copies
    of them, from the first on, so that what it does with neighbouring tokens works there, too."""
    config = GPTConfig(**{**vars(model.config), "block_size": block_size})
    new = GPT(config).to(next(model.parameters()).device)
    weights = model.state_dict()
    copies = torch.arange(block_size) % model.config.block_size
    weights["wpe.weight"] = weights["wpe.weight"][copies]
    new.load_state_dict(weights)
    return new


def reviews_of(folder, enc, block_size, n, seed):
    """Write n reviews of the tiny world to reviews.jsonl of the folder -> {split: [(prompt_ids, reply_ids)]},
    plain text to go on with; dev and test are the same ones."""
    parallel.call(write_reviews, folder / "reviews.jsonl", seed, n)
    reviews, rows, n_cut = load_rows(folder / "reviews.jsonl"), {"train": [], "dev": []}, 0
    for row in reviews:
        prompt, reply = encode(enc, "\n\n" + row["prompt"]), encode(enc, row["response"])
        prompt, reply, cut = fit(prompt, reply, block_size)
        rows[row["split"]].append((prompt, reply))
        n_cut += cut
    if n_cut:
        print(wrapped(f"{n_cut} of {len(reviews)} reviews are longer than the context of {block_size} "
                      "tokens: cut from the left; --block_size lengthens it"))
    return {**rows, "test": rows["dev"]}


def by_length(rows, batch_size):
    """The batches of an epoch, lists of indices, in the order of the rows but for this: within every eight
    batches rows of similar length share one, so that little is computed on padding, and these eight come in
    a random order. rows: (prompt_ids, response_ids) each."""
    parts = torch.arange(len(rows)).tensor_split(steps_per_epoch(len(rows), batch_size))
    rng, batches = random.Random(len(rows)), []
    for start in range(0, len(parts), 8):
        eight = parts[start : start + 8]
        some = sorted(torch.cat(eight).tolist(), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        sorted_parts = torch.tensor(some).split([len(part) for part in eight])
        batches += rng.sample([part.tolist() for part in sorted_parts], len(eight))
    return batches


def examine(judge, label, verdict, asked):
    """[label, number, share] of reviews whose verdict, one token, the judge gives as the reviewer did."""
    asked = [r for r in asked if r["prompt"].endswith(verdict)]
    asked = [r for r in asked if not r["response"].startswith("10")]  # which is two tokens
    found = judge.next_token([r["prompt"] for r in asked], [str(i) for i in range(1, 10)])
    alike = sum(max(f, key=f.get) == r["response"][0] for f, r in zip(found, asked, strict=True))
    return [label, len(asked), alike / max(1, len(asked))]


def lines_beside(judge, asked, length):
    """Of each review what was asked, the line that the judge writes, and that of the reviewer."""
    written = judge.write([row["prompt"] for row in asked], length)
    return [(row["prompt"], line, row["response"].split("\n")[0].strip())
            for row, line in zip(asked, written, strict=True)]


def agreement(label, lines):
    """[label, number, share] of lines that the judge ends as the reviewer did, behind what they are about."""
    ends = [[line.rpartition("; ")[2] for line in two] for _, *two in lines]
    return [label, len(lines), sum(ours == theirs for ours, theirs in ends) / max(1, len(lines))]


def report_on_reviews(stage, enc, model, panels):
    """How often the judge decides held-out reviews as the reviewer did; a few of its remarks and notes."""
    judge, room = OwnModel(model, enc), model.config.block_size - NOTES_LENGTH - 2  # the "\n\n" before it
    reviews = [row for row in load_rows(stage.data / "reviews.jsonl") if row["split"] == "dev"]
    reviews = [row for row in reviews if len(encode(enc, row["prompt"])) < room]
    at_once = [row for row in reviews if REASONS not in row["prompt"]]
    noted = [row for row in reviews if REASONS in row["prompt"]]
    remarks = lines_beside(judge, [row for row in at_once if row["prompt"].endswith(REMARK)], REMARK_LENGTH)
    ratings = lines_beside(judge, [row for row in noted if BEST not in row["prompt"]], NOTES_LENGTH)
    rows = [agreement("remarks on a sentence", remarks),
            agreement("notes on the whole, with the reviewer's remarks", ratings),
            examine(judge, "ratings at once", RATING, at_once),
            examine(judge, "comparisons at once", BEST, at_once),
            examine(judge, "comparisons with the reviewer's notes", BEST, noted)]
    lines = [table(["held-out reviews", "number", "decided alike"], rows),
             wrapped("Of two equal answers the reviewer chose one at random: 1.00 is out of reach.")]
    for asked, ours, theirs in remarks[:4] + ratings[:4]:
        lines += ["", wrapped(f"{asked} {ours}"), wrapped(f"  (the reviewer: {theirs})")]
    text = "\n".join(lines)
    print("\n" + text)
    stage.state["results"] = {label: share for label, _, share in rows}
    stage.finish(text, panels, "AI judge, loss on the reviewers' replies. Look for: a held-out loss that "
                 "stays (a verdict is one token of a reply, and learned late)")
