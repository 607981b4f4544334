"""Step 2a, preferences: sample answers of a model, have somebody rank them (the H and F of RLHF).

  1. sample K answers to a prompt   2. have them ranked, best first   3. keep every ranking at once

    python preferences.py --config tiny                     the simulated human: rankings.jsonl
    python preferences.py --config tiny --labeler human     you rank: rankings_human.jsonl
    python preferences.py --config tiny --labeler ai        an AI judge (RLAIF): rankings_ai.jsonl
    python preferences.py --config tiny --aspect safety     asked for safety alone, as in Llama 2
    python preferences.py --config tiny --answers_of ppo    of another model: rankings.ppo.jsonl
    python preferences.py --config tiny --labeler ai --judge_url http://127.0.0.1:8000/v1 --name x

A collection is a file of rankings, a row each; train_rm.py --rankings NAME ... learns from it. In
the tiny world it also holds held-out questions, which the simulated human ranks whoever labels the
rest: so all figures are measured on the same taste. The same command goes on with a collection that
was interrupted, and a larger --questions with a finished one.
"""
import lab.before_torch
import random
import zlib
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

from data import UserError, load_prompts, load_rows, ranking_to_pairs
from lab import parallel
from lab.cli import JudgeKnobs, knob, parse, run_main
from lab.commands import STAGES, recipe_of, same_command
from lab.judges import judge_rules, load_judge
from lab.rankings import is_collection
from lab.records import load_language_model
from lab.report_rankings import remarks, shown, summary
from lab.run import Stage
from lab.talk import answer, knows_template
from lab.terminal import wrapped
from lab.tokens import encode_prompts
from world.judge import read_preamble
from world.labelers import Human, Quit, RankingFile, SimulatedHuman, Undo, is_ranking
from world.taste import TASTE

# ------------------------------------------------------------------------------------------------
# Knobs
# ------------------------------------------------------------------------------------------------


@dataclass
class Config(JudgeKnobs):
    labeler: str = knob(
        "simulated", "who ranks; human: you, at the terminal; ai: a language model (RLAIF)",
        choices=("simulated", "human", "ai"), heading="Who ranks, and what it is asked for")
    aspect: str = knob(
        "overall", "everything at once, or Llama 2's two: helpful (of safe prompts), safety (of unsafe ones)",
        choices=("overall", "helpful", "safety"))
    both_orders: bool = knob(True, "the AI compares two answers in both orders, and the label is the mean")

    answers_of: str = knob("sft", "stage of this run whose answers are ranked", heading="Questions")
    answers_per_prompt: int = knob(
        0, "K answers to a question (InstructGPT: 4 to 9). 0: 8, an AI 6, human and a server 4", low=0,
        high=9)
    questions: int = knob(
        0, "training questions in all, spread over the prompts; a larger number goes on with a collection. "
        "0: 3 a prompt (helpful 8, safety 5, of a pilot 2, of another model 1), human 20",
        low=0, high=10**6, learned=False)
    held_out_rankings: int = knob(3, "rankings of a test prompt: the more, the steadier the figures", low=1,
                                  high=1000)
    temperature: float = knob(1.0, "sampling temperature of the answers", low=0.01)
    max_new_tokens: int = knob(48, "longest answer", low=1)

    noise: float = knob(
        0.6, "scale of its noise, in points of the gold score", low=0, heading="The simulated human")
    tie_gap: float = knob(0.8, "answers that feel closer than this are a tie", low=0)
    flip_rate: float = knob(0.0, "share of rankings that it hands in upside down", low=0, high=1)
    position_habit: float = knob(0.0, "what the answer shown first gains over the last one", low=0)


PRESETS = {
    "tiny": {},
    "smoke": {"questions": 120, "held_out_rankings": 1, "answers_per_prompt": 3, "max_new_tokens": 12},
    "small": {"max_new_tokens": 128},
    "gpt2": {"max_new_tokens": 96},
}
PER_PROMPT = {"overall": 3, "helpful": 8, "safety": 5}  # questions about each prompt

RULES = (
    ("the simulated human knows only the tiny world: with --data it is --labeler human or --labeler ai",
     lambda c: c.data and c.labeler == "simulated"),
    ("--answers_per_prompt: a ranking needs at least 2 answers", lambda c: c.answers_per_prompt == 1),
    ("one process has answers ranked: start preferences.py with python, not with torchrun",
     lambda c: parallel.several()),
    ("--both_orders is about an AI judge: it goes with --labeler ai",
     lambda c: not c.both_orders and c.labeler != "ai"),
    *judge_rules(lambda c: c.labeler == "ai"),
)

# ------------------------------------------------------------------------------------------------
# Numbers made of rankings
# ------------------------------------------------------------------------------------------------


def elo_scores(rankings, k_factor=32.0, start=1000.0, passes=1, rng=None):
    """Elo ratings of N answers from rankings: every pair plays, and the winner takes points from the loser.

    E_a = 1 / (1 + 10^((R_b - R_a) / 400));  R_a += K (S_a - E_a), S 1 for a win, 0.5 for a tie, 0 for a loss.
    (Elo 1978.)

    rankings: lists of tiers of answers, which are numbers from 0; N is the highest one that plays + 1, not
    how many play; rng: a random.Random that shuffles all games of each pass. Returns N floats ([start] where
    nobody plays). The sum stays N * start; 400 points are odds of 10 to 1. The result depends on the order of
    the games, and one clean ranking has no limit: with every pass the ratings move further apart.
    Example: 0 > 1 > 2 > 3, one pass -> 1045.8, 1015.4, 984.8, 954.0.
    """
    games = [game for tiers in rankings for game in ranking_to_pairs(tiers, ties=True)]
    if not games:
        return [start]
    rating = [start] * (1 + max(max(i, j) for i, j, _ in games))
    for _ in range(passes):
        if rng:
            rng.shuffle(games)
        for i, j, apart in games:
            expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400))
            points = k_factor * ((1.0 if apart else 0.5) - expected)
            rating[i] += points
            rating[j] -= points
    return rating


def bradley_terry_fit(rankings, prior=0.05, iterations=20):
    """Strengths s of N answers, P(i beats j) = sigmoid(s_i - s_j), by Newton's method: the minimum of the
    games' cross-entropy + prior * sum s^2. Without the prior a ranking without a tie or an upset has no
    minimum.
    rankings: lists of tiers over the same N answers. Returns (N,), sum 0.

    Unlike Elo's ratings it depends on no order. A strength times 400 / ln 10 is on Elo's scale.
    Example: 0 > 1 > 2 > 3 -> 2.288, 0.710, -0.710, -2.288.
    """
    games = [game for tiers in rankings for game in ranking_to_pairs(tiers, ties=True)]
    i, j = torch.tensor([game[:2] for game in games]).T
    won = torch.tensor([1.0 if apart else 0.5 for *_, apart in games], dtype=torch.float64)
    unit = torch.eye(int(torch.cat([i, j]).max()) + 1, dtype=torch.float64)
    difference = unit[i] - unit[j]  # (games, N): 1 at i, -1 at j
    s = torch.zeros(len(unit), dtype=torch.float64)
    for _ in range(iterations):
        p = torch.sigmoid(difference @ s)
        gradient = difference.T @ (p - won) + 2 * prior * s
        hessian = difference.T @ ((p * (1 - p))[:, None] * difference) + 2 * prior * unit
        s = s - torch.linalg.solve(hessian, gradient)
    return s.float()


# ------------------------------------------------------------------------------------------------
# Questions and those who answer them
# ------------------------------------------------------------------------------------------------


def questions_of(prompts, cfg):
    """Rows of prompts.jsonl -> (training, held-out) rows to ask about, each as often as it is asked.

    The training prompts come round by round, each in an order of its own: the first n are spread over all.
    """
    if cfg.aspect != "overall":
        prompts = [p for p in prompts if p["unsafe"] == (cfg.aspect == "safety")]
    split = {name: [p for p in prompts if p["split"] == name] for name in ("train", "dev", "test")}
    training = split["train"]
    if not training:
        kind = {"overall": "there", "helpful": "marked as safe", "safety": "marked as unsafe"}[cfg.aspect]
        raise UserError(f"no training prompt is {kind}, and --aspect {cfg.aspect} asks about those")
    each = {"sft": PER_PROMPT[cfg.aspect], "pilot": 2, "pilot_ai": 2}.get(cfg.answers_of, 1)
    wanted = cfg.questions or (20 if cfg.labeler == "human" else each * len(training))
    rng, drawn = random.Random(seed_of_questions(cfg)), []
    while len(drawn) < wanted:
        drawn += rng.sample(training, len(training))
    return drawn[:wanted], split["dev"] + split["test"] * cfg.held_out_rankings


def load_policy(path, stage, enc, cfg):
    """A function: prompts -> a sampled answer of the model at `path` to each."""
    model, checkpoint = load_language_model(path, stage.device)
    prompts = [p["prompt"] for p in load_prompts(stage.data)]
    encode_prompts(enc, prompts, cfg.max_new_tokens, model)  # tells how many are too long
    return partial(answer, model, enc, max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature,
                   template=knows_template(checkpoint), batch_size=512)


# ------------------------------------------------------------------------------------------------
# Asking
# ------------------------------------------------------------------------------------------------


def sample(policy, prompts, K, seed):
    """Questions {"prompt", "split", "responses"}: of K sampled answers the different ones, in random order.
    The same seed gives the same questions again, to whoever goes on with a collection."""
    torch.manual_seed(zlib.crc32(seed.encode()))
    rng = random.Random(seed)
    texts = [a.text for a in policy([p["prompt"] for p in prompts for _ in range(K)])]
    questions = []
    for i, p in enumerate(prompts):
        distinct = sorted(set(texts[i * K : (i + 1) * K]))
        responses = rng.sample(distinct, len(distinct))
        questions.append({"prompt": p["prompt"], "split": p["split"], "responses": responses})
    return questions


def check_questions(path, training, held_out):
    """Raises UserError where the rankings so far are damaged, or not of the first prompts: one was removed by
    hand, and what comes behind it would be asked again as another question."""
    rows = load_rows(path, is_ranking)
    for prompts, is_held_out in ((training, False), (held_out, True)):
        what = "held-out questions" if is_held_out else "questions"
        part = [row for row in rows if (row["split"] != "train") == is_held_out]
        for n, (row, asked) in enumerate(zip(part, prompts, strict=False), 1):
            if row["prompt"] != asked["prompt"]:
                raise UserError(f"{path}: ranking {n} of the {what} is not of the prompt that is asked "
                                "there: rows or prompts have changed; put them back, or begin anew with "
                                "--overwrite")


def ask(path, prompts, labeler, policy, cfg, held_out=False):
    """Have answers to each entry of `prompts` ranked, and kept in the file `path`; what is ranked there
    already is not asked again. Returns rows.

    prompts: rows of prompts.jsonl; policy: see load_policy; held_out: which part of the file this is.
    """
    kept = RankingFile(path, part=lambda row: (row["split"] != "train") == held_out)
    K = cfg.answers_per_prompt or labeler.answers
    labeler.total, N = len(prompts), labeler.batch
    what = "held-out questions" if held_out else "questions"
    done = len(kept.rows)
    quiet = labeler.name == "human" or done >= len(prompts)
    with tqdm(total=len(prompts), initial=done, desc=what, disable=quiet, dynamic_ncols=True) as bar:
        while len(kept.rows) < len(prompts):
            labeler.done = len(kept.rows)
            first = labeler.done // N * N

            # 1. Sample K answers to each of the next prompts; whoever goes on samples the same N again.
            seed = f"{seed_of_questions(cfg)} {what} {first}"
            questions = sample(policy, prompts[first : first + N], K, seed)
            questions = [{**question, "answers_of": cfg.answers_of} for question in questions]
            try:
                # 2. Have them ranked, and 3. keep every ranking before the next question is asked.
                kept.add(questions[labeler.done - first :], labeler, cfg.aspect)
                bar.update(len(kept.rows) - labeler.done)
            except Undo:
                kept.take_back()
            except Quit:
                break
    return kept.rows[: len(prompts)]


# ------------------------------------------------------------------------------------------------
# The stage
# ------------------------------------------------------------------------------------------------


def name_of(cfg):
    """The name of a collection where --name gives none: rankings, rankings_ai, rankings.ppo ..."""
    aspect = {"overall": "", "helpful": "_helpful", "safety": "_safety"}[cfg.aspect]
    labeler = {"simulated": "", "ai": "_ai", "human": "_human"}[cfg.labeler]
    model = "" if cfg.answers_of == "sft" else f".{cfg.answers_of}"
    return f"rankings{aspect}{labeler}{model}"


def own_seed(cfg):
    """The seed of a collection: one with a name of its own has its own."""
    return cfg.seed if cfg.name in ("", name_of(cfg)) else cfg.seed + zlib.crc32(cfg.name.encode())


def seed_of_questions(cfg):
    """The seed of its prompts and answers. People who collect under names of their own are asked other
    questions each, so that they can share the work; a simulated human or an AI is asked the same ones."""
    return own_seed(cfg) if cfg.labeler == "human" else cfg.seed


def labelers(stage, enc, cfg):
    """(who labels the training questions, who the held-out ones, or None)."""
    simulated = SimulatedHuman(own_seed(cfg), cfg.noise, cfg.tie_gap, cfg.flip_rate, cfg.position_habit)
    if cfg.labeler == "simulated":
        return simulated, simulated
    if cfg.labeler == "human":
        labeler = Human()
    else:
        labeler = load_judge(stage, enc, cfg, cfg.both_orders)
    if not cfg.data:
        return labeler, simulated
    # Held-out rankings are those of the preferences file; where there is none, an AI labels some.
    a_file = (stage.data / "preferences.jsonl").exists()
    return labeler, None if a_file or cfg.labeler == "human" else labeler


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    cfg.preamble = read_preamble(cfg.preamble)  # of a file its text is the knob, not its name
    cfg.name = cfg.name or name_of(cfg)
    if cfg.name != name_of(cfg) and (cfg.name in STAGES or recipe_of(cfg.name)):
        raise UserError(f"--name {cfg.name} is another collection: choose a name of its own for this one")
    stage = Stage(cfg, "preferences")
    training, held_out = questions_of(load_prompts(stage.data), cfg)
    if not cfg.overwrite:
        check_questions(stage.path, training, held_out)  # before anything is written
    if is_collection(stage.folder, cfg.answers_of):
        raise UserError(f"--answers_of {cfg.answers_of}: that is a collection of rankings; name a model")
    path = stage.parent(cfg.answers_of)
    enc = stage.encoding()
    policy = load_policy(path, stage, enc, cfg)
    labeler, examiner = labelers(stage, enc, cfg)
    stage.state["wanted"] = len(training)
    stage.begin_collection()

    plan = f"{len(training):,} questions about answers of {cfg.answers_of} for {labeler.title}"
    if examiner:
        plan += f", then {len(held_out):,} held-out ones for {examiner.title}"
    print(wrapped(plan), flush=True)
    rows = ask(stage.file("jsonl"), training, labeler, policy, cfg)
    stage.state["open"] = len(training) - len(rows)
    if not any(row["tiers"] for row in rows):
        raise UserError(f"nothing is ranked yet; {same_command()} asks again")
    gold = None if cfg.data else TASTE[cfg.aspect]
    told = remarks(rows, labeler, len(training), gold)
    if examiner:
        rows = rows + ask(stage.file("jsonl"), held_out, examiner, policy, cfg, held_out=True)

    K = {who.name: cfg.answers_per_prompt or who.answers for who in (labeler, examiner or labeler)}
    text = wrapped("\n".join([summary(rows, K), *told]))
    print(f"\n{text}", flush=True)
    stage.finish_collection(f"{text}\n\n{shown(rows, gold)}")


if __name__ == "__main__":
    run_main(main)
