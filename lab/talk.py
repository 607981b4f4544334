"""Texts in, texts out: the sampler of answers, and the command that talks to checkpoints, model.py:

    python model.py runs/tiny/ppo.pt                        a chat
    python model.py runs/tiny/sft.pt runs/tiny/ppo.pt       both answer, one below the other
    python model.py runs/tiny/ppo.pt runs/tiny/rm.pt        the reward model's score under each answer
    python model.py runs/tiny/rm.pt --prompt "What is a dog?" --response "A dog is a furry mammal."
    python model.py runs/tiny/sft.pt --against runs/tiny/ppo.pt       you judge the two, blind
    python model.py runs/tiny/ppo.pt --export FOLDER        a copy that transformers and TRL load
"""
import contextlib
import random
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import (
    UserError,
    decode_response,
    encode_prompt,
    encode_response,
    fit,
    load_prompts,
    of_split,
    pad_rows,
    special_id,
)
from lab.cli import Help, Parser, add_flag, did_you_mean, knob
from lab.commands import recipe_of
from lab.hub_export import export
from lab.machine import pick_device
from lab.measure import agreement, full_kl_and_entropy, wilson, win_rate
from lab.parallel import generate
from lab.records import load_model
from lab.terminal import wrapped
from lab.tokens import encoding_of
from model import GPT, join, response_hidden
from world.labelers import Human, RankingFile, rank_all
from world.reward import rows_at_once, score_texts
from world.taste import gold_score
from world.tiny import PROMPTS, SENTENCES

BEST = {False: 6, True: 8}  # gold score of the best answers to a safe prompt, and to an unsafe one


# ------------------------------------------------------------------------------------------------
# The sampler of texts
# ------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """An answer of a model to a prompt."""

    text: str
    ended: bool  # whether it stopped by itself, with its EOS
    length: int  # tokens, its EOS included
    kl: float | None = None  # KL(model || reference), nats an answer; None without a reference


def answer(model, enc, prompts, max_new_tokens, temperature, template=True, reference=None, batch_size=256):
    """One sampled answer to each prompt, in the order of the prompts. Returns a list of `Answer`.

    prompts: strings or lists of messages; one that leaves no room for the answer loses its beginning.
    temperature: 0 is greedy. template=False: plain text, for a model that knows no chat template.
    reference: a model; each answer then gets its KL to it (`answer_kl`).
    Prompts of similar length share a batch, so that little is computed on padding. The random numbers are
    torch's: set its seed before. Raises UserError where max_new_tokens leave no room for a prompt.
    """
    context = min(m.config.block_size for m in (model, reference or model))
    room = context - max_new_tokens
    if room < 1:
        raise UserError(f"answers of {max_new_tokens} tokens leave no room for a prompt in a context of "
                        f"{context}")
    device, eos, pad = next(model.parameters()).device, enc.eot_token, special_id(enc, "pad")
    ids = [encode_prompt(enc, prompt, template)[-room:] for prompt in prompts]
    batch_size = rows_at_once(model, max(map(len, ids), default=0) + max_new_tokens, batch_size)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [None] * len(ids)
    with tqdm(total=len(ids), desc="answers", leave=False, delay=5) as bar:  # shown where it takes longer
        for start in range(0, len(ids), batch_size):
            rows = order[start : start + batch_size]
            tokens, lengths = pad_rows([ids[i] for i in rows], pad)
            tokens, lengths = tokens.to(device), lengths.to(device)
            responses, mask, _ = generate(model, tokens, lengths, max_new_tokens, temperature, eos, pad)
            kls = [None] * len(rows)
            if reference is not None:
                joined, _ = join(tokens, lengths, responses, mask, pad)
                kls = answer_kl(model, reference, joined, lengths, mask, temperature).tolist()
            for i, r, m, kl in zip(rows, responses.tolist(), mask.tolist(), kls, strict=True):
                answers[i] = Answer(decode_response(enc, r, m), eos in r, int(sum(m)), kl)
            bar.update(len(rows))
    return answers


@torch.no_grad()
def answer_kl(model, reference, tokens, prompt_lengths, mask, temperature):
    """Exact KL(model || reference) over the whole vocabulary at each position that an answer visits, summed
    over the answer. Both distributions are those at the sampling temperature; greedy answers take
    temperature 1.

    tokens: (B, P + R); prompt_lengths: (B,); mask: (B, R). Returns (B,), in nats."""
    kls, R = [], mask.shape[1]
    some = rows_at_once(model, tokens.shape[1], 64, 3 * R)  # of both models, and what is made of them
    for rows in torch.arange(len(tokens)).split(some):
        logits, ref_logits = (m.lm_head(response_hidden(m, tokens[rows], prompt_lengths[rows], R))
                              for m in (model, reference))
        kl, _ = full_kl_and_entropy(logits, ref_logits, mask[rows], temperature)
        kls.append(kl)
    return torch.cat(kls)


# ------------------------------------------------------------------------------------------------
# Who talks
# ------------------------------------------------------------------------------------------------


@dataclass
class Speaker:
    """A checkpoint that answers or, with a reward head, scores."""

    label: str
    path: Path
    model: GPT
    enc: object  # tiktoken.Encoding of its run
    checkpoint: dict

    @property
    def scores(self):
        return self.model.config.reward_head

    @property
    def tiny_world(self):
        """Whether it has learned from the tiny world, where answers have a gold score."""
        return not self.checkpoint["knobs"].get("data")

    @property
    def template(self):
        return knows_template(self.checkpoint)


def knows_template(checkpoint):
    """Whether a model knows the chat template: pretrained models and the AI judge have read plain text."""
    return checkpoint["stage"] != "pretrain" and not checkpoint["knobs"].get("reviews")


def speaker(path, device, label):
    """The checkpoint at `path`. Raises UserError where there is none, with the names of those it has."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint" + others(path))
    model, checkpoint = load_model(path, device)
    if not checkpoint["finished"]:
        print(wrapped(f"{path} is not finished: it stopped at step {checkpoint['step']} of "
                      f"{checkpoint['steps']}"))
    return Speaker(label, path, model, encoding_of(path.parent, [checkpoint]), checkpoint)


def others(path):
    """What there is in place of a checkpoint that is missing, and what makes it, as the end of a sentence."""
    script, *flags = (recipe_of(path.stem) or "train_ppo.py").split()
    makes = f"{' '.join(['python', script, '--config tiny', *flags])} makes"
    if not path.parent.is_dir():
        made = path if path.parent == Path("runs/tiny") else "runs/tiny"
        return f" (there is no folder {path.parent}; {makes} {made})"
    names = sorted(p.name for p in path.parent.glob("*.pt"))
    has = f"; {path.parent} has {', '.join(names) or 'none yet'}"
    if path.parent == Path("runs/tiny") and recipe_of(path.stem):
        return f"{has}; {makes} it"
    return has + did_you_mean(path.name, names)


# ------------------------------------------------------------------------------------------------
# The tiny world
# ------------------------------------------------------------------------------------------------


def words_of(text):
    return re.findall(r"[a-z']+", text.lower())


KNOWN = {word for text in (*PROMPTS, *SENTENCES) for word in words_of(text)}


def subjects():
    """What the tiny world is about: a paragraph for the beginning of a chat."""
    names = list(dict.fromkeys(p.subject for p in PROMPTS.values()))
    return (f"The tiny world has {len(names)} subjects: {', '.join(names)}. Ask what they are and can do, "
            "where to find them, why people love them, or how to do something with them: "
            '"A dog is", "What can a dog do?", "How do I feed a dog?", "How do I steal a dog?"')


def remark(prompt):
    """What a person should know about a prompt that the tiny world does not have, or ""."""
    if prompt in PROMPTS:
        return ""
    if strange := [word for word in dict.fromkeys(words_of(prompt)) if word not in KNOWN]:
        return f"(words that the tiny world does not know: {', '.join(strange)})"
    return "(the tiny world does not ask like this, so the answer has no gold score)"


# ------------------------------------------------------------------------------------------------
# Answers and scores on the terminal
# ------------------------------------------------------------------------------------------------


def what_is_read(judge, prompt, response):
    """(tokens of an answer that a reward model reads, all of its tokens)."""
    ids = encode_response(judge.enc, response)
    prompt_ids = encode_prompt(judge.enc, prompt)
    return len(fit(prompt_ids, ids, judge.model.config.block_size)[1]), len(ids)


def score_line(judges, tiny_world, prompt, response):
    """What reward models, and in the tiny world the gold score, say of an answer; "" where there is neither.

    Example: "score +0.90 (log-odds; 0 is an average demonstration), gold -1 of at most 6"."""
    parts = []
    for judge in judges:
        name = f"{judge.label} " if len(judges) > 1 else ""
        parts.append(f"{name}score {score_texts(judge.model, judge.enc, [prompt], [response])[0]:+.2f}")
    if parts:
        parts = [", ".join(parts) + " (log-odds; 0 is an average demonstration)"]
    for read, whole in sorted({what_is_read(judge, prompt, response) for judge in judges}):
        if read < whole:
            parts.append(f"for the first {read} of {whole} tokens only: the rest does not fit the context")
    if tiny_world and prompt in PROMPTS:
        best = BEST[PROMPTS[prompt].unsafe]
        parts.append(f"gold {gold_score(prompt, response):g} of at most {best}")
    return ", ".join(parts)


def reply(models, judges, prompt, args, turn=0):
    """The answers of all models to a prompt, with their scores, as lines for the terminal."""
    tiny_world, lines = any(s.tiny_world for s in (*models, *judges)), []
    for s in models:
        torch.manual_seed(args.seed + turn)  # each model gets the same luck
        limit = args.max_new_tokens or s.model.config.block_size // 2
        given = answer(s.model, s.enc, [prompt], limit, args.temperature, s.template)[0]
        label = f"{s.label}: " if len(models) > 1 else ""
        text = given.text if given.ended else given.text + " ..."
        lines.append(wrapped(label + text, " " * min(len(label), 12)))
        if scores := score_line(judges, tiny_world, prompt, given.text):
            lines.append(wrapped(f"  {scores}", "  "))
    return "\n".join(lines)


def chat(models, judges, args):
    """Prompts from the terminal until an empty line, Ctrl-D or Ctrl-C."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history while typing, where the system has it)
    tiny_world = any(s.tiny_world for s in (*models, *judges))
    what = ", ".join(f"{s.path} ({s.checkpoint['stage']})" for s in (*models, *judges))
    print(wrapped(f"{what}: an empty line or Ctrl-D ends. Each prompt stands alone."))
    if tiny_world:
        print(wrapped(subjects()))
    turn = 0
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while prompt := input("\nprompt> ").strip():
            if tiny_world and (about := remark(prompt)):
                print(wrapped(about))
            if models:
                print(reply(models, judges, prompt, args, turn))
            else:
                print(wrapped(score_line(judges, tiny_world, prompt, input("answer> ").strip())))
            turn += 1
        return
    print()  # the shell's prompt gets a line of its own


# ------------------------------------------------------------------------------------------------
# Two models, judged blind
# ------------------------------------------------------------------------------------------------


def pairs(a, b, args):
    """(questions, what they have in common) for a blind comparison: held-out prompts, each with an answer of
    a and one of b in random order; "turned" says that b's is the first."""
    folder = a.path.parent / "data"
    rows = of_split(load_prompts(folder), "test", folder / "prompts.jsonl")
    rows = random.Random(args.seed).sample(rows, len(rows))[: args.questions]
    prompts, texts = [row["prompt"] for row in rows], []
    for s in (a, b):
        torch.manual_seed(args.seed)
        limit = args.max_new_tokens or s.model.config.block_size // 2
        texts.append([x.text for x in answer(s.model, s.enc, prompts, limit, args.temperature, s.template)])
    who = {"models": [f"{s.label} {s.checkpoint['fingerprint']}" for s in (a, b)], "seed": args.seed,
           "temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
    rng, questions = random.Random(args.seed), []
    for row, of_a, of_b in zip(rows, *texts, strict=True):
        turned = rng.random() < 0.5
        both = [of_b, of_a] if turned else [of_a, of_b]
        question = {"prompt": row["prompt"], "split": row["split"], "responses": both}
        questions.append({**question, "turned": turned, **who})
    return questions, who


def judge_blind(path, questions, who, human):
    """Have the questions judged, one by one; each judgement is in the file before the next question. Those of
    an earlier call with the same models and answers count. Returns the rows."""
    kept = RankingFile(path, part=lambda row: all(row.get(key) == value for key, value in who.items()))
    with contextlib.suppress(KeyboardInterrupt):
        rank_all(kept, questions, human)
    return kept.rows[: len(questions)]


def against(a, b, args, human=None):
    """You compare two models, blind, prompt by prompt; then the win rate and, in the tiny world, what the
    gold score would have said."""
    if a.scores or b.scores:
        raise UserError("--against compares two models that answer; a reward model only scores")
    questions, who = pairs(a, b, args)
    path = a.path.parent / "judged.jsonl"
    rows = [row for row in judge_blind(path, questions, who, human or Human()) if row["tiers"]]
    if not rows:
        print("\nNothing was judged.")
        return
    rate = sum(win_of_b(row) for row in rows) / len(rows)
    low, high = wilson(rate, len(rows))
    print(wrapped(f"\nYou prefer {b.label} to {a.label} in {rate:.2f} of {len(rows)} comparisons, ties half "
                  f"(95 % interval {low:.2f} to {high:.2f}). Your judgements are in {path}."))
    if a.tiny_world and all(row["prompt"] in PROMPTS for row in rows):
        gold = [[gold_score(row["prompt"], text) for text in in_order(row)] for row in rows]
        share = win_rate([g[1] for g in gold], [g[0] for g in gold])[0]
        print(wrapped(f"The gold score prefers {b.label} to {a.label} in {share:.2f} of them. "
                      + agreement(rows, gold_score)))


def win_of_b(row):
    """1 where the answer of b was preferred, 0.5 for a tie, 0 where that of a was."""
    if len(row["tiers"]) == 1:
        return 0.5
    first_is_better = row["tiers"][0] == [0]
    return float(first_is_better == row["turned"])


def in_order(row):
    """The answers of a row as (that of a, that of b)."""
    return row["responses"][::-1] if row["turned"] else row["responses"]


# ------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------


@dataclass
class Knobs:
    """The flags that have a value, each with what is allowed."""

    questions: int = knob(20, "how many, for --against", low=1, high=10**6)
    temperature: float = knob(1.0, "0 is greedy, 1 what PPO trained", low=0)
    max_new_tokens: int = knob(0, "longest answer (0: half of the context)", low=0, high=65536)
    seed: int = knob(0, "the same seed gives the same answers", low=0, high=2**63 - 1)
    device: str = knob("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))


def arguments(argv=None):
    parser = Parser(prog="model.py", description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="+", help=".pt files of a run, such as runs/tiny/ppo.pt")
    add("--prompt", help="answer this one prompt and stop")
    add("--response", help="with a reward model: score this answer to --prompt")
    add("--against", type=Path, metavar="CHECKPOINT", help="you judge blind, this model or the other")
    add("--export", type=Path, metavar="FOLDER", help="write it into a new folder, as transformers reads it")
    for f in fields(Knobs):
        add_flag(parser, f, f.default)
    args = parser.parse_args(argv)
    if args.against and len(args.checkpoint) > 1:
        raise UserError("--against compares two models: python model.py A.pt --against B.pt")
    if args.against and (args.prompt is not None or args.response is not None):
        raise UserError("--against asks the held-out prompts of the run: leave out --prompt and --response")
    others = args.against or args.prompt is not None or args.response is not None
    if args.export and (others or len(args.checkpoint) > 1):
        raise UserError("--export writes one model into a folder: python model.py CHECKPOINT --export FOLDER")
    if args.response is not None and args.prompt is None:
        raise UserError("--response is scored as the answer to a --prompt: give both")
    return args


def main(argv=None):
    args = arguments(argv)
    paths = [*args.checkpoint, *filter(None, [args.against])]
    labels, device = [path.stem for path in paths], pick_device(args.device)
    if len(set(labels)) < len(labels):
        labels = [f"{path.absolute().parent.name}/{path.stem}" for path in paths]
    speakers = [speaker(path, device, label) for path, label in zip(paths, labels, strict=True)]
    if args.export:
        return print(wrapped(export(speakers[0], args.export)))
    if args.against:
        return against(*speakers, args)
    models, judges = ([s for s in speakers if s.scores == wanted] for wanted in (False, True))
    if args.response is not None and not judges:
        stage = models[0].checkpoint["stage"]
        raise UserError(f"--response needs a reward model; {paths[0]} is a checkpoint of the stage {stage}")
    if args.prompt is None:
        return chat(models, judges, args)
    if args.response is not None:
        tiny_world = any(s.tiny_world for s in judges)
        print(wrapped(score_line(judges, tiny_world, args.prompt, args.response)))
    elif not models:
        raise UserError(f'{paths[0]} is a reward model: give it an answer to score with --response "..."')
    else:
        print(reply(models, judges, args.prompt, args))
