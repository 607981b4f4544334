"""What preferences.py says at the end of a collection, and the questions that it shows."""
import textwrap

from data import comparisons, prompt_text
from lab.commands import same_command
from lab.measure import agreement
from lab.terminal import wrapped


def summary(rows, K):
    """One sentence on rows of rankings. K: {labeler: answers sampled to a question}."""
    pairs = [pair for row in rows for pair in comparisons(row, ties=True)]
    ties = sum(p == 0.5 for _, _, p, _ in pairs)
    different = sum(len(row["responses"]) for row in rows)
    duplicates = sum(K.get(row.get("labeler"), len(row["responses"])) for row in rows) - different
    held_out = sum(row["split"] != "train" for row in rows)
    skipped = sum(not row["tiers"] for row in rows)
    skipped = f" ({skipped} without an order)" if skipped else ""
    return (f"{len(rows) - held_out:,} training and {held_out:,} held-out rankings{skipped}: {len(pairs):,} "
            f"pairs, {ties:,} of them ties, of {different:,} answers; {duplicates:,} duplicates left out")


def remarks(rows, labeler, wanted, gold):
    """Sentences about a labeler that is no simulated one. rows: its rankings; wanted: questions that there
    were for it; gold: the true taste, or None."""
    told = []
    if labeler.name == "ai" and labeler.pairs:
        told.append(labeler.summary())
    if labeler.name == "human":
        more = f"{same_command()} asks the rest" if len(rows) < wanted else "a larger --questions asks more"
        told.append(f"You have answered {len(rows)} of {wanted} questions; {more}.")
    if labeler.name != "simulated" and gold:
        told.append(agreement(rows, gold, "You" if labeler.name == "human" else "The AI"))
    return told


def shown(rows, gold, n=6):
    """A few questions with their answers in the order of the ranking. gold: the true taste, or None."""
    ranked = [row for row in rows if len(row["tiers"]) > 1]
    header = "place, answer" if gold is None else "place, gold score in points, answer"
    lines = [f"Answers in the order of their ranking: {header}"]
    for row in ranked[:: max(1, len(ranked) // n)][:n]:
        prompt = prompt_text(row["prompt"])
        lines += ["", wrapped(f"prompt ({row['split']}, ranked by {row.get('labeler', 'a file')}): {prompt}")]
        for place, tied in enumerate(row["tiers"], 1):
            for i in tied:
                text = row["responses"][i]
                points = "" if gold is None else f"{gold(row['prompt'], text):+6.1f}"
                head = f"  {place}{points}   "
                lines.append(textwrap.fill(text, 100, initial_indent=head, subsequent_indent=" " * len(head)))
    return "\n".join(lines)
