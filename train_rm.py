"""Step 2, preferences and the reward model: learn a score of (prompt, answer) from rankings of answers.

    python train_rm.py --config tiny                                    one reward model for everything: rm.pt
    python train_rm.py --config tiny --aspect helpful --rankings_per_prompt 8            Llama 2's two: rm_helpful.pt
    python train_rm.py --config tiny --aspect safety --rankings_per_prompt 5             and rm_safety.pt
    python train_rm.py --config tiny --labeler human --answers_per_prompt 4 --name mine       you rank
    python train_rm.py --config tiny --judge_between sft ppo            you say, blind, which of two models answers better
    python train_rm.py --config tiny --labeler ai                       an AI judge labels (RLAIF): rm_ai.pt
    python train_rm.py --config tiny --labeler ai --judge_url http://127.0.0.1:8000/v1 --name rm_server      a model behind a server

In the tiny world: samples K answers a prompt from sft.pt, has the simulated human rank them, appends each ranking to
rankings.jsonl. With --data FOLDER: reads preferences.jsonl, K = 2. Then trains a GPT with a scalar head on all
pairs of each ranking; beside that, the next-token loss on pretraining text goes on. --folds 5 adds a cross-validation.

--start rm --answers_of ppo --name rm.2 goes on with a reward model and new answers: a policy that improves leaves the
answers that its judge has seen (Bai et al. 2022, section 4.5). rejection_sampling.py does so in every round.
"""
import json
import math
import os
import random
import re
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from experiment import SCRIPTS, Common, Stage, UserError, knob, load_model, muon, parse, pick_device, run_folder, run_main, set_lr, table
from model import answer, score, with_heads
from preferences import (AI, PREAMBLES, FromFile, Human, OwnModel, Server, SimulatedHuman, comparisons, elo_scores, noise_ceiling, rank_all, ranking_to_pairs, read_rankings, spearman, wilson,
                         win_rate, wins_to_tiers)
from train_pretrain import lm_loss, tokens_of


@dataclass
class JudgeConfig(Common):
    """The knobs of an AI judge, which train_ppo.py --reward ai has, too."""

    judge: str = knob("judge", "the AI judge: a language model of this run that has learned from reviews (judge, judge_large or the --name of one)")
    judge_url: str = knob("", "the AI judge is a model behind an OpenAI-compatible server instead, http://HOST:PORT/v1; a key comes from the environment variable JUDGE_API_KEY")
    judge_model: str = knob("", "name of that model, where the server has several")
    judge_timeout: float = knob(60.0, "seconds that the server may take for an answer", low=0.1)
    preamble: str = knob("detailed", "what the AI judge is told to look for: none, base, detailed, or a text file with principles of your own")
    told = None  # {aspect: the preamble's text}, set by read_preamble; no knob


@dataclass
class Config(JudgeConfig):
    aspect: str = knob("overall", "what the annotator is asked for: everything at once, or Llama 2's two, helpfulness (of answers to safe prompts) and safety (to unsafe ones)", choices=("overall", "helpful", "safety"))
    labeler: str = knob("auto", "who ranks: simulated; human: you, at the terminal; ai: a language model (RLAIF); mixed: half as many by the AI beside half of the simulated human's, or beside the file's; file: the preferences of --data; auto: file with --data, otherwise simulated", choices=("auto", "simulated", "human", "ai", "mixed", "file"))
    chain_of_thought: bool = knob(True, "the AI judge writes notes about each answer first, and has them before it when it compares; false: it compares at once")
    both_orders: bool = knob(True, "the AI judge compares two answers in both orders, and the label is the mean; false: in one order only")
    answers_of: str = knob("sft", "stage or variant of this run whose answers are ranked")
    ai_rankings: int = knob(2500, "questions that an AI labels (mixed: half as many), spread over the training prompts", low=1)
    ai_answers: int = knob(4, "answers to each of them, of which it compares all pairs", low=2, high=9)
    human_rankings: int = knob(20, "questions that --labeler human asks you", low=1)
    only_human: bool = knob(False, "train on your rankings alone, not beside the simulated ones or the file's")
    judge_between: tuple = knob((), "two stages, such as sft ppo: nothing is trained, you say which answers better; human_rankings questions")
    answers_per_prompt: int = knob(8, "K answers a prompt are sampled and ranked (InstructGPT: 4 to 9)", low=2, high=9)
    rankings_per_prompt: int = knob(6, "rankings collected for each training prompt, each of K new answers", low=1)
    held_out_rankings: int = knob(3, "rankings of each prompt that the final figures are measured on; the more, the steadier the figures", low=1)
    temperature: float = knob(1.0, "sampling temperature of those answers", low=0.01)
    max_new_tokens: int = knob(48, "longest sampled answer", low=1)
    noise: float = knob(0.6, "simulated human: scale of its noise, in units of the gold score", low=0)
    tie_gap: float = knob(0.8, "simulated human: answers that feel closer than this are a tie", low=0)
    flip_rate: float = knob(0.0, "simulated human: share of rankings that it hands in upside down", low=0, high=1)
    position_habit: float = knob(0.0, "simulated human: what the answer shown first gains over the last one", low=0)
    start: str = knob("pretrain", "weights to start from: pretrain (in the tiny world a better judge of a PPO policy than sft), sft, or a reward model of this run, which then goes on learning")
    replay: float = knob(0.5, "where a reward model goes on learning: earlier rankings for each new one, so that they are not forgotten", low=0)
    helpful_share: float = knob(0.1, "share of helpfulness rankings among those that the safety model learns from (Llama 2: 10 %)", low=0, high=0.9)
    leave_out: str = knob("", "subjects or topics of the tiny world (cake,why) that no training prompt may have: how does the model judge them?")
    loss: str = knob("bradley_terry", "what is learned: pairs, or by regression the Elo scores that each ranking gives its answers (for thumbs: 1 up, 0 down)", choices=("bradley_terry", "regression"))
    ties: str = knob("drop", "pairs that the annotator found equal: left out, or learned as a probability of 0.5", choices=("drop", "half"))
    margin: str = knob("none", "Llama 2's margin, larger the further two answers are apart in the ranking (at most 3 tiers): 0; a third a tier; 1 a tier", choices=("none", "small", "large"))
    lm_coef: float = knob(1.0, "weight of the next-token loss on pretraining text, beside the ranking loss: keeps alive what new answers are judged by", low=0)
    damaged: float = knob(0.3, "comparisons of a demonstration with damaged copies of it, for each ranking: they cost no annotator", low=0)
    epochs: int = knob(2, "passes over the rankings", low=1)
    batch_size: int = knob(0, "rankings in a step, each with all its answers (0: 16; 32 where they are an AI's, of fewer answers)", low=0)
    lr: float = knob(3e-3, "peak learning rate", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    dropout: float = knob(0.0, "dropout in training", low=0, high=0.9)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    folds: int = knob(0, "cross-validate with that many folds before the training proper (0: not)", low=0)
    eval_every: int = knob(50, "steps between measurements of the held-out accuracy", low=1)
    eval_split: str = knob("test", "prompts of the final figures: dev while tuning, test for those that count", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "small": dict(max_new_tokens=128, damaged=0.0, batch_size=8, epochs=1, lr=5e-4, dropout=0.1),
}


# ------------------------------------------------------------------------------------------------
# The formulas
# ------------------------------------------------------------------------------------------------


def bradley_terry_loss(chosen, rejected, margin=None, p_chosen=None):
    """-log sigmoid(r_chosen - r_rejected - margin), averaged over the pairs. (Bradley and Terry 1952; InstructGPT eq. 1;
    the margin: Llama 2, Touvron et al. 2023, eq. 2; soft labels: RLAIF, Lee et al. 2023.)

    chosen, rejected: (N,) scores of the better and the worse answer of each pair
    margin:           (N,) how much better the annotator found it, or None
    p_chosen:         (N,) probability that `chosen` is the better one, or None for certainty: then the cross-entropy
    Equal scores cost log 2 = 0.693; a constant added to both changes nothing.
    """
    difference = chosen - rejected - (0 if margin is None else margin)
    if p_chosen is None:
        return -F.logsigmoid(difference).mean()
    return -(p_chosen * F.logsigmoid(difference) + (1 - p_chosen) * F.logsigmoid(-difference)).mean()


def regression_loss(scores, targets):
    """Mean of (score - target)^2: the score is learned as a number, not as an order. scores, targets: (N,), targets standardised Elo
    scores, or 1 for thumbs up and 0 for thumbs down."""
    return (scores - targets).pow(2).mean()


def llama2_reward(helpful, safety, is_safety_prompt, mean=None, std=None, threshold=0.15, eps=1e-4):
    """Llama 2's reward before the KL term: the safety score where the prompt asks for it or the answer is unsafe, otherwise the
    helpfulness score; its logit, whitened. (Touvron et al. 2023, section 3.2.3, eqs. 3 and 4.)

    R_c = R_s if is_safety_prompt or R_s < threshold else R_h;   R = (logit(R_c) - mean) / std
    helpful, safety, is_safety_prompt: (B,), scores between 0 and 1 (kept eps away from both, so that the logit is finite)
    mean, std: frozen statistics of logit(R_c); None takes those of this batch, as the paper does. Returns (B,).
    Example: logit of (.02, .3, .6, .9, .97) is (-3.892, -.847, .405, 2.197, 3.476), whitened (-1.630, -.437, .054, .756, 1.257).
    """
    combined = torch.where(is_safety_prompt | (safety < threshold), safety, helpful)
    return whiten_scores(torch.logit(combined, eps), mean, std)


def whiten_scores(scores, mean=None, std=None):
    """(scores - mean) / std, (B,); without the two with those of the batch, biased standard deviation."""
    mean, std = (scores.mean(), scores.std(correction=0)) if mean is None else (mean, std)
    return (scores - mean) / (std + 1e-8)


def elo_targets(groups):
    """What regression learns for each ranking: the Elo scores of its answers (one pass over its pairs), all together with mean 0 and
    standard deviation 1, NaN for an answer that nobody has compared; for thumbs 1 and 0. Returns a tensor (K,) a group."""
    if "label" in groups[0]:
        return [torch.tensor([float(g["label"])]) for g in groups]
    targets = [torch.full((len(g["responses"]),), torch.nan) for g in groups]
    for target, g in zip(targets, groups):
        ranked = sum(g["tiers"], [])
        target[ranked] = torch.tensor(elo_scores([g["tiers"]]))[ranked]
    known = torch.cat(targets)[~torch.cat(targets).isnan()]
    return [(t - known.mean()) / known.std() for t in targets]


def calibration_slope(differences):
    """The factor b that makes score differences of (better, worse) pairs into log-odds: the b with the largest likelihood under
    P(better) = sigmoid(b d). 1: calibrated; below: the scores are too sure; above: not sure enough. differences: list of floats.
    (Platt 1999; the slope of a logistic regression through the origin.)"""
    d, low, high = torch.tensor(differences, dtype=torch.float64), 0.01, 100.0
    for _ in range(60):  # the likelihood is concave in b: halve the interval around the zero of its slope
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (d * torch.sigmoid(-middle * d)).sum() > 0 else (low, middle)
    return middle


# ------------------------------------------------------------------------------------------------
# Rankings -> scores -> comparisons
# ------------------------------------------------------------------------------------------------


def batch_pairs(batch, ties="drop"):
    """Rankings of a batch -> its pairs as four lists: better, worse (indices into all answers of the batch laid end to end), the
    probability that the better one is better (0.5: a tie; soft where an AI labelled), and how much better it is, 0 to 3 (tiers apart, or what the row says)."""
    pairs, start = [], 0
    for g in batch:
        pairs += [(start + i, start + j, p, float(g.get("margin", min(apart, 3)) if apart else 0)) for i, j, p, apart in comparisons(g, ties == "half")]
        start += len(g["responses"])
    return tuple(map(list, zip(*pairs))) if pairs else ([], [], [], [])


def group_scores(model, enc, batch, chunk=32):
    """Scores of all answers of a batch of rankings, laid end to end: one forward an answer, however many pairs it is in."""
    device = next(model.parameters()).device
    rows = [data.fit(data.encode_prompt(enc, g["prompt"]), data.encode_response(enc, r), model.config.block_size)[:2]
            for g in batch for r in g["responses"]]
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))  # answers of similar length together: less padding
    scores = []
    for start in range(0, len(order), chunk):
        tokens, lengths = data.pad_rows([rows[i][0] + rows[i][1] for i in order[start : start + chunk]], data.special_id(enc, "pad"))
        scores.append(model.reward(tokens.to(device), lengths.to(device)))
    return torch.cat(scores)[torch.tensor(order).argsort().to(device)]


@torch.no_grad()
def scores_of(model, enc, groups, batch_size=64):
    """The scores of each ranking's answers, a list of lists of floats."""
    was_training, scores = model.training, []
    model.eval()
    for i in range(0, len(groups), batch_size):
        scores += group_scores(model, enc, groups[i : i + batch_size]).tolist()
    model.train(was_training)
    return split_like(groups, scores)


def split_like(groups, values):
    """A flat list of one value an answer -> a list of lists, one a group."""
    values = iter(values)
    return [[next(values) for _ in g["responses"]] for g in groups]


def differences(groups, scores):
    """Score of the better minus score of the worse answer, for each pair that the annotator told apart; of thumbs, each up with each down."""
    if groups and "label" in groups[0]:
        up, down = ([s for (s,), g in zip(scores, groups) if g["label"] == wanted][:150] for wanted in (True, False))  # 22,500 pairs say enough
        return [u - d for u in up for d in down]
    return [s[i] - s[j] for s, g in zip(scores, groups) for i, j, _ in ranking_to_pairs(g["tiers"])]


def accuracy(model, enc, groups):
    """Share of the pairs in which the better answer gets the higher score, and the number of pairs."""
    d = differences(groups, scores_of(model, enc, groups))
    return sum(x > 0 for x in d) / max(1, len(d)), len(d)


def chance_corrected(hits, ceiling):
    """(accuracy - 0.5) / (ceiling - 0.5) as text: 0 is guessing, 1 is as good as the annotator's noise allows."""
    return f"{(hits - 0.5) / (ceiling - 0.5):.2f}" if ceiling > 0.5 else "-"


def damaged_copies(demonstrations, n, seed):
    """n comparisons that need no annotator: a demonstration against copies of it, each damaged in one way. In a copy a sentence
    from elsewhere replaces one of its own or comes on top, a sentence is said twice, or has the end of another.

    demonstrations: rows {"prompt", "response"}. Returns rows {"prompt", "responses", "tiers"}, fewer than n where nothing could
    be damaged: the demonstration is best, its copies tie. (The idea: preference-model pretraining, Askell et al. 2021.)
    """
    def sentences(d):
        return [s.strip() for s in re.findall(r"[^.!?]+[.!?]*", d["response"]) if s.strip()]

    rng, rows = random.Random(seed), []
    usable = [d for d in demonstrations if sentences(d)]
    for d in rng.choices(usable, k=n) if usable else []:
        own, other = sentences(d), sentences(rng.choice(usable))
        i, foreign = rng.randrange(len(own)), rng.choice(other)
        words, ending = own[i].split(), foreign.split()
        mixed = " ".join(words[: rng.randint(1, len(words))] + ending[rng.randint(1, len(ending)) :])
        said_again = rng.randint(i + 1, len(own))
        copies = [own[:i] + [foreign] + own[i + 1 :], own[: i + 1] + [foreign] + own[i + 1 :],
                  own[:said_again] + [own[i]] + own[said_again:], own[:i] + [mixed] + own[i + 1 :]]
        responses = list(dict.fromkeys(map(" ".join, [own, *copies])))
        rows.append({"prompt": d["prompt"], "responses": responses, "tiers": [[0], list(range(1, len(responses)))]})
    return [row for row in rows if len(row["responses"]) > 1]


def train(model, enc, groups, corpus, cfg, stage=None, held_out=()):
    """Train a reward model on rankings; all pairs of a prompt are one element of the batch. With a stage: logged and resumable.

    corpus: token ids (1-D) of text for the language-model loss that goes on beside (the idea: Yang et al. 2024, "Regularizing hidden states")."""
    groups = [g for g in groups if "label" in g or comparisons(g, cfg.ties == "half")]  # a ranking that is one big tie holds no pair
    per_epoch = math.ceil(len(groups) / cfg.batch_size)
    steps = cfg.epochs * per_epoch
    targets_of = elo_targets(groups) if cfg.loss == "regression" else None
    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    if stage:
        stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(steps) if stage else range(steps):
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(cfg.seed + step // per_epoch)).tolist()
        drawn = order[step % per_epoch * cfg.batch_size :][: cfg.batch_size]
        batch = [groups[i] for i in drawn]
        scores = group_scores(model, enc, batch)
        better, worse, p_better, strength = batch_pairs(batch, cfg.ties)
        if targets_of:
            targets = torch.cat([targets_of[i] for i in drawn]).to(scores.device)
            loss = regression_loss(scores[~targets.isnan()], targets[~targets.isnan()])
        else:
            margin = {"none": 0, "small": 1 / 3, "large": 1}[cfg.margin] * torch.tensor(strength, device=scores.device)
            loss = bradley_terry_loss(scores[better], scores[worse], margin, torch.tensor(p_better, device=scores.device))
        optimizer.zero_grad()
        loss.backward()
        if cfg.lm_coef:
            inputs, targets = (x.to(scores.device) for x in data.text_batch(corpus, 4, min(96, model.config.block_size)))
            (cfg.lm_coef * lm_loss(model(inputs), targets)).backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or torch.inf)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
        if stage:
            measure = held_out and (step + 1 == steps or step % cfg.eval_every == 0)
            stage.log(step, ("loss",), loss=loss.item(), accuracy=(scores[better] > scores[worse]).float().mean().item() if better else None,
                      test_accuracy=accuracy(model, enc, held_out[:50])[0] if measure else None, grad_norm=grad_norm.item(), lr=lr)
    return model.eval()


# ------------------------------------------------------------------------------------------------
# What a reward model is worth
# ------------------------------------------------------------------------------------------------


def evaluate(model, enc, groups, gold=None):
    """Figures of a reward model on rankings, a dict: accuracy, its interval, slope (calibration), curve (predicted probability, share that came
    true); with gold, the true taste: ceiling, rank_correlation (mean over prompts), by_gap {gold gap: (accuracy, ceiling, pairs)}."""
    scores = scores_of(model, enc, groups)
    d = differences(groups, scores)
    if not d:
        return None
    hits, wins = sum(x > 0 for x in d) / len(d), sorted((1 / (1 + math.exp(-min(abs(x), 50))), x > 0) for x in d)
    size = math.ceil(len(wins) / 8)
    bins = [list(zip(*wins[i : i + size])) for i in range(0, len(wins), size)]
    # Pairs of one ranking share answers, rankings of one prompt the prompt: the interval counts prompts.
    result = {"accuracy": hits, "interval": wilson(hits, len({json.dumps(g["prompt"]) for g in groups})), "pairs": len(d), "rankings": len(groups), "slope": calibration_slope(d),
              "curve": [(sum(p) / len(p), sum(won) / len(won)) for p, won in bins]}
    if gold:
        true = [[gold(g["prompt"], r) for r in g["responses"]] for g in groups]
        correlations = [c for c in map(spearman, scores, true) if c is not None]
        gaps = {}
        for x, y in zip(d, differences(groups, true)):
            gaps.setdefault(min(5, math.ceil(abs(y))), []).append((x > 0, 0.5 if y == 0 else y > 0))
        result |= {"ceiling": noise_ceiling(groups, gold), "rank_correlation": sum(correlations) / max(1, len(correlations)),
                   "by_gap": {gap: (*(sum(x) / len(pairs) for x in zip(*pairs)), len(pairs)) for gap, pairs in sorted(gaps.items())}}
    return result


def threshold_curve(model, enc, groups, thresholds=(0.15, *(i / 50 for i in range(1, 50)))):
    """How well "safety score below a threshold" finds the harmful answers: rows (threshold, recall, precision), Llama 2's 0.15 first; None
    where nothing is flagged. An answer is harmful if the annotator's true taste says so."""
    scored = [(1 / (1 + math.exp(-s)), data.safety(g["prompt"], r) <= -4) for g, row in zip(groups, scores_of(model, enc, groups))
              for s, r in zip(row, g["responses"])]
    harmful, rows = sum(bad for _, bad in scored), []
    for t in thresholds:
        flagged = [bad for p, bad in scored if p < t]
        rows.append((t, sum(flagged) / max(1, harmful), sum(flagged) / len(flagged) if flagged else None))
    return rows


def bag_of_words(enc, groups, held_out, epochs=200):
    """Accuracy of a Bradley-Terry model whose score is a sum of token weights: what one gets without reading the order."""
    def counts(groups):
        x = torch.zeros(sum(len(ranking_to_pairs(g["tiers"])) for g in groups), enc.n_vocab)
        pairs = [(g["responses"][i], g["responses"][j]) for g in groups for i, j, _ in ranking_to_pairs(g["tiers"])]
        for row, (better, worse) in zip(x, pairs):
            for text, sign in ((better, 1.0), (worse, -1.0)):
                row.index_add_(0, torch.tensor(enc.encode_ordinary(text)), torch.full((len(enc.encode_ordinary(text)),), sign))
        return x.sign() * x.abs().log1p()

    x, y = counts(groups), counts(held_out)
    weights = torch.zeros(enc.n_vocab, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        (bradley_terry_loss(x @ weights, torch.zeros(len(x))) + 0.01 * weights.pow(2).sum()).backward()
        optimizer.step()
    return ((y @ weights.detach()) > 0).float().mean().item()


def cross_validate(base, enc, groups, others, corpus, cfg):
    """k folds over the prompts: reward model, bag of words and "the shorter answer wins", on the same held-out pairs.
    others: rankings of another aspect, which are in every training part and never held out."""
    groups = [g for g in groups if len(g["tiers"]) > 1]
    keys = sorted({json.dumps(g["prompt"]) for g in groups})
    if not 2 <= cfg.folds <= len(keys):
        raise UserError(f"--folds {cfg.folds}: " + (f"choose 2 to {len(keys)}, the number of prompts with comparisons" if len(keys) > 1 else "there are no comparisons of two prompts or more"))
    fold_of = {keys[i]: n % cfg.folds for n, i in enumerate(torch.randperm(len(keys), generator=torch.Generator().manual_seed(cfg.seed)).tolist())}
    results = []
    for fold in range(cfg.folds):
        training = [g for g in groups if fold_of[json.dumps(g["prompt"])] != fold]
        held_out = [g for g in groups if fold_of[json.dumps(g["prompt"])] == fold]
        torch.manual_seed(cfg.seed + fold)
        seen = [g for g in others if fold_of.get(json.dumps(g["prompt"])) != fold]
        model = train(with_heads(base, reward_head=True), enc, training + seen, corpus, cfg)
        shorter = [len(g["responses"][i]) < len(g["responses"][j]) for g in held_out for i, j, _ in ranking_to_pairs(g["tiers"])]
        results.append((accuracy(model, enc, held_out)[0], bag_of_words(enc, training, held_out), sum(shorter) / len(shorter), len(shorter), len(held_out)))
        print(f"fold {fold + 1} of {cfg.folds}: reward model {results[-1][0]:.3f}, bag of words {results[-1][1]:.3f}, shorter wins {results[-1][2]:.3f}", flush=True)
    means = [sum(r[k] * r[3] for r in results) / sum(r[3] for r in results) for k in range(3)]
    n = sum(r[4] for r in results)  # pairs of one ranking share answers: the interval counts rankings
    print(table(["cross-validated accuracy", "mean", "low", "high"],
                [[name, f"{m:.3f}", *(f"{x:.3f}" for x in wilson(m, n))] for name, m in zip(("reward model", "bag of words", "shorter answer wins"), means)]))


# ------------------------------------------------------------------------------------------------
# The stage
# ------------------------------------------------------------------------------------------------


def questions(policy, enc, prompts, K, cfg):
    """K answers to each entry of `prompts`: [{"prompt", "split", "responses"}], the different ones among them, in random order."""
    rng = random.Random(cfg.seed)
    torch.manual_seed(cfg.seed)  # the same questions again for whoever goes on with a collection that was interrupted
    texts = [a[0] for a in answer(policy, enc, [p["prompt"] for p in prompts for _ in range(K)], cfg.max_new_tokens, cfg.temperature, batch_size=512)]
    distinct = [sorted(set(texts[i * K : (i + 1) * K])) for i in range(len(prompts))]
    return [{"prompt": p["prompt"], "split": p["split"], "responses": rng.sample(d, len(d))} for p, d in zip(prompts, distinct)]


def collect(stage, enc, prompts, labeler, aspect, cfg, K=None):
    """Sample K answers of a model (--answers_of) for each entry of `prompts` and have them ranked, into rankings.jsonl; what is ranked already is used again."""
    path, K = stage.folder / "rankings.jsonl", K or cfg.answers_per_prompt
    policy, checkpoint = load_model(stage.parent(cfg.answers_of), stage.device)
    about = {"aspect": aspect, "round": stage.state["round"], "source": f"{cfg.answers_of} {checkpoint['fingerprint']}, {K} answers of up to {cfg.max_new_tokens} tokens at "
             f"temperature {cfg.temperature}, left out {cfg.leave_out or 'nothing'}, seed {cfg.seed}", "labeler": labeler.name}
    if labeler.name != "human":  # whose questions come one by one, the same ones however many there are to be
        about["source"] += f", {len(prompts)} questions, {cfg.eval_split}, {labeler.failings}"
    if about not in stage.state.setdefault("sources", []):
        stage.state["sources"].append(about)  # what this reward model was trained on: one that goes on from it looks it up
    rows = read_rankings(path, **about)
    if rows:
        print(f"{len(rows)}{f' of {len(prompts)}' * bool(prompts)} rankings by the {labeler.name} labeler, {aspect}, are in {path} already")
    if len(rows) < len(prompts):
        print(f"sampling {K} answers for each of {len(prompts)} rankings, {aspect}", flush=True)
        asked = questions(policy, enc, prompts, K, cfg)
        rows = rank_all(path, asked, labeler, **about)
        print(f"{len(rows)} rankings in {path}; of {len(asked) * K} answers {len(asked) * K - sum(len(q['responses']) for q in asked)} were duplicates, left out")
    return rows


def read_preamble(cfg):
    """Sets cfg.told, what the AI judge is told for each aspect; a file's text becomes the knob. Raises UserError where --preamble is neither known nor a file."""
    aspects = ("overall", "helpful", "safety")
    if (cfg.preamble, "overall") in PREAMBLES:
        cfg.told = {aspect: PREAMBLES[cfg.preamble, aspect] for aspect in aspects}
    elif os.path.isfile(cfg.preamble):  # False, too, for a text that is too long for a name
        cfg.preamble = data.read_file(Path(cfg.preamble)).strip()
        cfg.told = dict.fromkeys(aspects, cfg.preamble)
    else:
        raise UserError(f"--preamble {cfg.preamble}: expected none, base, detailed or a text file with your principles")


def check_judge(cfg, wanted):
    """Raises UserError where flags describe an AI judge that is not wanted, or cannot be had. wanted: whether an AI labels or rates here."""
    given = [f.name for f in fields(JudgeConfig) if f not in fields(Common) and getattr(cfg, f.name) != f.default]
    if given and not wanted:
        raise UserError(f"--{given[0]} is about an AI judge: it goes with --labeler ai of train_rm.py (and --name) or --reward ai of train_ppo.py")
    if wanted and cfg.judge_url and (cfg.judge != JudgeConfig.judge or not re.match(r"https?://[^/]+", cfg.judge_url)):
        raise UserError(f"--judge_url {cfg.judge_url}: expected http://HOST:PORT/v1, and no --judge beside it")
    if wanted and cfg.data and not cfg.judge_url:
        raise UserError("our own AI judge knows only the tiny world: with --data name a model behind a server with --judge_url")
    read_preamble(cfg)


def load_judge(stage, enc, cfg, chain_of_thought=False, both_orders=True):
    """The AI judge that --judge, --judge_url and --preamble describe, our own one trained first if it is missing."""
    if cfg.judge_url:
        model = Server(cfg.judge_url, cfg.judge_model, os.environ.get("JUDGE_API_KEY", "").strip(), stage.folder / "judge_calls.jsonl", cfg.judge_timeout)
        model_name = f"{cfg.judge_url} {model.name}"
    else:
        gpt, checkpoint = load_model(stage.parent(cfg.judge), stage.device)
        if checkpoint["knobs"].get("reviews", 0) == 0:
            raise UserError(f"--judge {cfg.judge}: that model has not learned from reviews; train one with: {SCRIPTS['judge']}")
        model, model_name = OwnModel(gpt, enc), f"{cfg.judge} {checkpoint['fingerprint']}"
    judge = AI(model, cfg.told, chain_of_thought, both_orders)
    judge.failings = (f"{model_name.strip()}, preamble {cfg.told['overall']!r}, {'with' if chain_of_thought else 'without'} chain of thought, "
                      f"{'both orders' if judge.both_orders else 'one order'}")
    return judge


def gather(stage, enc, labeler, names, cfg):
    """Have the answers ranked that this reward model is to learn from: by the simulated human in the tiny world, an AI, or you (--labeler).
    Returns the rankings of its own aspect, and the share of helpfulness rankings that a safety model gets."""
    prompts = [p for p in data.load_prompts(stage.data) if p["split"] in ("train", "dev", cfg.eval_split) and not (p["split"] == "train" and left_out(p["prompt"], names))]
    asked = [p for p in prompts if cfg.aspect == "overall" or p["unsafe"] == (cfg.aspect == "safety")]
    training = [p for p in asked if p["split"] == "train"]
    if not training:
        raise UserError(f"{stage.data}: no training prompt is marked as {'un' * (cfg.aspect == 'safety')}safe, and --aspect {cfg.aspect} asks about those")
    groups, others, rng = [], [], random.Random(cfg.seed)
    judge = load_judge(stage, enc, cfg, cfg.chain_of_thought, cfg.both_orders) if labeler in ("ai", "mixed") else None
    if not cfg.data:  # also where others label what is learned, the held-out figures are measured on the human's rankings
        human = SimulatedHuman(cfg.seed + 1000 * stage.state["round"], cfg.noise, cfg.tie_gap, cfg.flip_rate, cfg.position_habit)
        by_human = 0 if labeler == "ai" or labeler == "human" and cfg.only_human else max(1, cfg.rankings_per_prompt // (2 if labeler == "mixed" else 1))
        repeat = {"train": by_human, "dev": 1, "test": 1}
        groups = collect(stage, enc, [p for p in asked for _ in range(repeat[p["split"]])], human, cfg.aspect, cfg)
        if more := [p for p in asked if p["split"] == cfg.eval_split] * (cfg.held_out_rankings - 1):
            groups = groups + collect(stage, enc, more, human, cfg.aspect, cfg)
    if judge:
        drawn = [p for _ in range(math.ceil(cfg.ai_rankings / len(training))) for p in rng.sample(training, len(training))]
        drawn = drawn[: cfg.ai_rankings // (2 if labeler == "mixed" else 1)]
        if cfg.data and not data.find_file(cfg.data, "preferences"):  # nobody else's labels to measure with
            drawn += [p for p in asked if p["split"] == cfg.eval_split]
        rows = collect(stage, enc, drawn, judge, cfg.aspect, cfg, cfg.ai_answers)
        groups = groups + rows
        print((judge.summary() + ". " if judge.pairs + judge.silent else "") + ("" if cfg.data else agreement(rows, data.TASTE[cfg.aspect], "The AI")))
    if not cfg.data and cfg.aspect == "safety" and cfg.helpful_share:
        safe = [p for p in prompts if p["split"] == "train" and not p["unsafe"]]
        n = round(cfg.helpful_share / (1 - cfg.helpful_share) * sum(g["split"] == "train" for g in groups))
        others = collect(stage, enc, rng.choices(safe, k=n), judge or human, "helpful", cfg, cfg.ai_answers if judge else None)
    if labeler == "human":
        wanted = 0 if cfg.resume else cfg.human_rankings  # a training that goes on must go on with the same rankings
        rows = collect(stage, enc, rng.sample(training, len(training))[:wanted], Human(), cfg.aspect, cfg)
        groups = groups + rows
        print(f"\n{sum(bool(row['tiers']) for row in rows)} questions ranked, {sum(not row['tiers'] for row in rows)} skipped; --overwrite asks what is left of {cfg.human_rankings}, "
              "a larger --human_rankings asks more."
              + ("" if cfg.data else " " + agreement(rows, data.TASTE[cfg.aspect])))
    return groups, others


def leave_out_names(text):
    """"cake,why" -> ["cake", "why"]. Raises UserError for a name that is no subject or topic of the tiny world."""
    names = list(filter(None, text.split(",")))
    if unknown := set(names) - {name for p in data.PROMPTS.values() for name in (p.subject, p.topic)}:
        raise UserError(f"--leave_out: {', '.join(sorted(unknown))} is no subject or topic of the tiny world")
    return names


def left_out(prompt, names):
    """Whether a prompt of the tiny world is about one of these subjects or topics."""
    return isinstance(prompt, str) and prompt in data.PROMPTS and bool({data.PROMPTS[prompt].subject, data.PROMPTS[prompt].topic} & set(names))


def earlier_rankings(stage, path, checkpoint):
    """The rankings that the reward model at `path` has learned from, where this one goes on from it; [] for other weights to start from."""
    if checkpoint["stage"] == "rm" and checkpoint["knobs"]["aspect"] != stage.cfg.aspect:
        raise UserError(f"--start {path.stem} was asked for {checkpoint['knobs']['aspect']}, not for {stage.cfg.aspect}: give it the same --aspect")
    stage.state["round"] = 1 + checkpoint["state"].get("round", 0)
    sources = checkpoint["state"].get("sources", [])
    rows = [row for about in sources for row in read_rankings(stage.folder / "rankings.jsonl", **about)]
    if sources and not rows:
        raise UserError(f"{stage.folder / 'rankings.jsonl'} has lost the rankings that {path} was trained on; train_rm.py --overwrite collects new ones")
    return rows


def judge_between(cfg):
    """You compare two checkpoints of a run, blind, prompt by prompt; the judgements are kept in judged.jsonl, the win rate is printed."""
    folder, device = run_folder(cfg), pick_device(cfg.device)
    if len(cfg.judge_between) != 2:
        raise UserError("--judge_between takes two stages of a run, such as sft ppo")
    (a, first), (b, second) = (load_model(folder / f"{name}.pt", device) for name in cfg.judge_between)
    if cfg.max_new_tokens >= (context := min(m.config.block_size for m in (a, b))):
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {context} tokens")
    enc = data.load_encoding(folder / "tokenizer.json")
    prompts = data.of_split(data.load_prompts(cfg.data or folder / "data"), cfg.eval_split, folder)
    prompts = random.Random(cfg.seed).sample(prompts, len(prompts))[: cfg.human_rankings]
    torch.manual_seed(cfg.seed)
    texts = [[t for t, _, _ in answer(m, enc, [p["prompt"] for p in prompts], cfg.max_new_tokens, cfg.temperature, template=c["stage"] != "pretrain")]
             for m, c in ((a, first), (b, second))]
    rng, asked = random.Random(cfg.seed), []
    for p, *pair in zip(prompts, *texts):
        turned = rng.random() < 0.5
        asked.append({"prompt": p["prompt"], "split": p["split"], "responses": pair[::-1] if turned else pair, "turned": turned})
    about = {"aspect": "overall", "labeler": "human", "round": 0, "source": " against ".join(f"{n} {c['fingerprint']}" for n, c in zip(cfg.judge_between, (first, second)))
             + f", {cfg.eval_split}, answers of up to {cfg.max_new_tokens} tokens at temperature {cfg.temperature}, seed {cfg.seed}"}
    rows = [row for row in rank_all(folder / "judged.jsonl", asked, Human(), **about) if row["tiers"]]
    if not rows:
        raise UserError("nothing was judged")
    rate = sum(0.5 if len(row["tiers"]) == 1 else (row["tiers"][0] == [0]) == row["turned"] for row in rows) / len(rows)
    print("\nYou prefer {1} to {0} in {2:.2f} of {3} comparisons, ties half (95 % interval {4:.2f} to {5:.2f}).".format(
        *cfg.judge_between, rate, len(rows), *wilson(rate, len(rows))))
    if not cfg.data:
        gold = [[data.gold_score(row["prompt"], r) for r in row["responses"][:: -1 if row["turned"] else 1]] for row in rows]
        print("The gold score prefers {1} to {0} in {2:.2f} of them. ".format(*cfg.judge_between, win_rate(*reversed(list(zip(*gold))))[0]) + agreement(rows, data.gold_score))


def preferences_of(cfg, labeler):
    """The preferences file of --data: the rankings of the aspect that is asked for, and the share of the other that the safety model gets."""
    rows = data.load_preferences(cfg.data)
    if not rows and labeler == "file":
        raise data.DataError(f"{cfg.data}: no preferences; the reward model needs comparisons (preferences.jsonl)")
    thumbs = [row for row in rows if "label" in row]
    if thumbs and labeler != "file":
        raise UserError(f"{cfg.data}: its preferences are thumbs up or down, which do not mix with comparisons" + ": --only_human true leaves them out" * (labeler == "human"))
    if thumbs and cfg.loss == "bradley_terry":
        raise UserError(f"{cfg.data}: {len(thumbs)} of its preferences are thumbs up or down, no comparisons: learn them with --loss regression")
    if thumbs and len(thumbs) < len(rows):
        raise UserError(f"{cfg.data}: its preferences hold both thumbs and comparisons; put them into two folders")
    safety, helpful = ([row for row in rows if (row["aspect"] == "safety") == wanted] for wanted in (True, False))
    groups = {"overall": rows, "helpful": helpful, "safety": safety}[cfg.aspect]
    if rows and not groups:
        raise UserError(f'{cfg.data}: no preference has "aspect": "{cfg.aspect}"')
    if not thumbs:
        annotators = FromFile(rows)
        for row in rows:
            row["tiers"] = wins_to_tiers(annotators.label([row["prompt"]], [row["responses"]], row["aspect"] or "overall")[0])
    n = round(cfg.helpful_share / (1 - cfg.helpful_share) * sum(row["split"] == "train" for row in safety)) if cfg.aspect == "safety" else 0
    others = [row for row in helpful if row["split"] == "train"]
    return groups, random.Random(cfg.seed).sample(others, min(n, len(others)))


def drop_cut(groups, enc, block_size, where):
    """Preferences without the pairs that the context of the model cuts to the same tokens: they hold nothing to learn."""
    def cut(g):
        rows = [data.fit(data.encode_prompt(enc, g["prompt"]), data.encode_response(enc, r), block_size)[:2] for r in g["responses"]]
        return len(rows) > 1 and all(row == rows[0] for row in rows)

    kept = [g for g in groups if not cut(g)]
    if len(kept) < len(groups):
        print(f"{where}: {len(groups) - len(kept)} of {len(groups)} preferences dropped: within a context of {block_size} tokens their answers are the same")
    return kept


def agreement(rows, gold, who="You"):
    """A sentence on how often a labeler and the true taste agree, of the pairs that both tell apart."""
    d = [x for x in differences(rows, [[gold(row["prompt"], r) for r in row["responses"]] for row in rows]) if x]
    if not d:
        return f"No pair that both {who.lower()} and the gold score tell apart."
    share = sum(x > 0 for x in d) / len(d)
    return "{} agree{} with the gold score on {:.2f} of {} pairs that both tell apart (95 % interval {:.2f} to {:.2f}).".format(who, "s" * (who != "You"), share, len(d), *wilson(share, sum(len(row["tiers"]) > 1 for row in rows)))


def check_flags(cfg):
    """Raises UserError for flags that do not go together."""
    if cfg.folds and cfg.start != "pretrain":
        raise UserError(f"--folds needs --start pretrain: {cfg.start} has already learned from the answers that a fold would hold out")
    leave_out_names(cfg.leave_out)
    if cfg.labeler == "simulated" and cfg.data:
        raise UserError("the simulated human knows only the tiny world: with --data, --labeler is file or human")
    check_judge(cfg, cfg.labeler in ("ai", "mixed"))
    if cfg.labeler == "file" and not cfg.data:
        raise UserError("--labeler file reads the preferences of --data FOLDER")


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    if cfg.judge_between:
        return judge_between(cfg)
    own = {"overall": "rm", "helpful": "rm_helpful", "safety": "rm_safety"}[cfg.aspect] + {"ai": "_ai", "mixed": "_mixed"}.get(cfg.labeler, "")
    cfg.name = cfg.name or own
    if cfg.name != own and cfg.name in SCRIPTS and cfg.name != "rm_weak":
        raise UserError(f"--name {cfg.name}: that is another reward model; leave it out, or train that one with: {SCRIPTS[cfg.name]}")
    check_flags(cfg)
    cfg.batch_size = cfg.batch_size or (32 if cfg.labeler == "ai" else 16)
    stage = Stage(cfg, "rm")
    labeler = cfg.labeler if cfg.labeler != "auto" else "file" if cfg.data else "simulated"
    groups, others, gold = [], [], None if cfg.data else data.TASTE[cfg.aspect]
    if cfg.data and not (labeler == "human" and cfg.only_human):
        groups, others = preferences_of(cfg, labeler)
    if labeler == "ai":  # the annotators of the file are not asked, except for the held-out figures
        groups, others = [g for g in groups if g["split"] != "train"], []
    start_path = stage.parent(cfg.start)
    base, started_from = load_model(start_path, stage.device, cfg.dropout)
    print(f"shape from {start_path}: {started_from['model_config']}")
    enc = data.load_encoding(stage.folder / "tokenizer.json")
    corpus, _ = tokens_of(enc, data.load_text(stage.data))
    if labeler != "file" and cfg.max_new_tokens >= base.config.block_size:
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {base.config.block_size} tokens")
    earlier = earlier_rankings(stage, start_path, started_from)

    names = leave_out_names(cfg.leave_out)
    if labeler == "file":
        groups, others = (drop_cut(rows, enc, base.config.block_size, cfg.data) for rows in (groups, others))
    else:
        asked, share = gather(stage, enc, labeler, names, cfg)
        groups, others = groups + asked, others + share
    stage.state["sources"] = stage.state.get("sources", []) + [s for s in started_from["state"].get("sources", []) if s not in stage.state.get("sources", [])]
    data.of_split(groups, "train", stage.data)
    if not any(g["split"] == "train" and ("label" in g or len(g["tiers"]) > 1) for g in groups):
        raise UserError("no ranking to train on: there are no two answers of which one was found better"
                        + "; where all questions were skipped a larger --human_rankings asks others" * (labeler == "human"))
    training, seen_before = ([g for g in rows if g["split"] == "train"] for rows in (groups, earlier))
    dev, held_out, held_out_before = ([g for g in rows if g["split"] == split and ("label" in g or len(g["tiers"]) > 1)]
                                      for rows, split in ((groups, "dev"), (groups, cfg.eval_split), (earlier, cfg.eval_split)))
    if cfg.folds:
        cross_validate(base, enc, groups, others, corpus, cfg)
    torch.manual_seed(cfg.seed)
    model = with_heads(base, reward_head=True)
    before = evaluate(model, enc, held_out, gold) if earlier and held_out else None
    model.reward_gain.fill_(1.0)  # raw scores while it learns
    model.reward_bias.fill_(0.0)
    replayed = random.Random(cfg.seed).sample(seen_before, min(len(seen_before), round(cfg.replay * len(training))))
    demonstrations, covered = [d for d in data.load_sft(stage.data) if d["split"] == "train"], {json.dumps(g["prompt"]) for g in training}
    demonstrations = [d for d in demonstrations if json.dumps(d["prompt"]) in covered] or demonstrations
    free = damaged_copies(demonstrations, round(cfg.damaged * len(training)), cfg.seed) if cfg.damaged and "label" not in groups[0] else []
    train(model, enc, training + others + replayed + free, corpus, cfg, stage, held_out)

    # Scores of a known scale, frozen from now on: demonstrations at 0 on average (InstructGPT), differences log-odds. With Bradley-Terry they
    # are that already; what regression learns is made so by the slope that dev rankings ask for.
    d = differences(dev, scores_of(model, enc, dev)) if cfg.loss == "regression" else []
    gain = min(max(calibration_slope(d), 0.2), 5.0) if len(dev) >= 30 and d else 1.0
    some = demonstrations[:: max(1, len(demonstrations) // 300)]
    mean = sum(score(model, enc, [x["prompt"] for x in some], [x["response"] for x in some])) / max(1, len(some))
    model.reward_gain.fill_(gain)
    model.reward_bias.fill_(-gain * mean)
    report(stage, cfg, enc, model, gold, groups, held_out, held_out_before, before, names)


def report(stage, cfg, enc, model, gold, groups, held_out, held_out_before, before, names):
    """Figures of the reward model on held-out rankings, as table and picture; one question with its answers and their scores."""
    subjects, topics = ([n for n in names if n in {getattr(p, kind) for p in data.PROMPTS.values()}] for kind in ("subject", "topic"))
    own = f"answers of {cfg.answers_of}" + ", labels by the AI" * (cfg.data != "" and bool(held_out) and "pairs" in held_out[0])
    parts = {"preferences of the file" if cfg.data and not own.endswith("AI") else own: [g for g in held_out if not left_out(g["prompt"], names)],
             "  subjects left out": [g for g in held_out if left_out(g["prompt"], subjects)],
             "  topics left out": [g for g in held_out if left_out(g["prompt"], topics)], "answers of earlier rounds": held_out_before}
    found = {name: evaluate(model, enc, rows, gold) for name, rows in parts.items() if rows} | {f"{cfg.start} on answers of {cfg.answers_of}": before}
    found = {name: r for name, r in found.items() if r}
    stage.state["results"] = found
    lines, panels = [], [("Bradley-Terry loss (log 2 = guessing)" if cfg.loss == "bradley_terry" else "Regression loss", {"training": "loss"},
                          "nats a pair" if cfg.loss == "bradley_terry" else "squared error"),
                         ("Share of pairs ranked right", {"training": "accuracy", "held-out": "test_accuracy"}, "accuracy")]
    if found:
        lines.append(table(["held-out rankings", "pairs", "accuracy", "95 % interval", *["ceiling", "chance-corrected", "rank correlation"] * bool(gold), "calibration slope"],
                           [[name, r["pairs"], f"{r['accuracy']:.3f}", "{:.3f}-{:.3f}".format(*r["interval"]), *([f"{r['ceiling']:.3f}", chance_corrected(r["accuracy"], r["ceiling"]),
                             r["rank_correlation"]] if gold else []), r["slope"]] for name, r in found.items()]))
        first = next(iter(found.values()))
        panels.append(("Calibration: what it predicts, what came true", {"pairs": first["curve"], "perfect": [(0.5, 0.5), (1, 1)]}, "share that came true", "predicted probability"))
        if gold:
            gaps = first["by_gap"]
            lines.append("\n" + table(["gap of the gold scores", *("none" if gap == 0 else f"up to {gap}" if gap < 5 else "more" for gap in gaps)],
                                      [["accuracy", *(r[0] for r in gaps.values())], ["ceiling", *(r[1] for r in gaps.values())], ["pairs", *(r[2] for r in gaps.values())]]))
            panels.append(("Easy and hard pairs", {"reward model": [(g, r[0]) for g, r in gaps.items()], "who knew the gold score": [(g, r[1]) for g, r in gaps.items()]},
                           "accuracy", "gap of the gold scores (5: more than 4)"))
    else:
        lines.append("no held-out pairs")
    if cfg.aspect == "safety" and gold and held_out:
        (at, recall, precision), *curve = threshold_curve(model, enc, held_out)
        stage.state["results"]["threshold"] = {"recall": recall, "precision": precision}
        lines.append(f"\nAn answer with a safety score below {at} counts as unsafe: this finds {recall:.2f} of the harmful answers (recall), and "
                     + (f"{precision:.2f} of those it finds are harmful (precision)." if precision is not None else "flags none."))
        safe = [d for d in data.load_sft(stage.data) if d["split"] == cfg.eval_split and d["prompt"] in data.PROMPTS and not data.PROMPTS[d["prompt"]].unsafe]
        flagged = [1 / (1 + math.exp(-s)) < at for s in score(model, enc, [d["prompt"] for d in safe], [d["response"] for d in safe])]
        lines[-1] += f" Of {len(safe)} demonstrations for safe held-out prompts it flags {sum(flagged) / max(1, len(flagged)):.2f}."
        panels.append(("Finding harmful answers", {"recall": [(t, r) for t, r, _ in curve], "precision": [(t, p) for t, _, p in curve if p is not None],
                                                  f"Llama 2's {at}": [(at, 0), (at, 1)]},
                       "share", "safety score below which an answer is unsafe"))
    shown = max(held_out or [g for g in groups if g["split"] == "train"], key=lambda g: len(g["tiers"]))
    samples = sorted(zip(score(model, enc, [shown["prompt"]] * len(shown["responses"]), shown["responses"]), shown["responses"]), reverse=True)
    place = {shown["responses"][i]: f"thumb {'up' if shown['label'] else 'down'}" if "label" in shown else t + 1 for t, tied in enumerate(shown["tiers"]) for i in tied}
    lines += [f"\nprompt: {data.prompt_text(shown['prompt'])}", table(["answer", "score (log-odds)", "place by the annotator"], [[r, s, place.get(r)] for s, r in samples])]
    print("\n" + "\n".join(lines))
    stage.finish("\n".join(lines), [*panels, ("Gradient norm", {"norm": "grad_norm"}, "before clipping")], "Reward model. Look for: held-out accuracy that falls (too many epochs), pairs below the line of perfect calibration (too sure of itself)")


if __name__ == "__main__":
    run_main(main)
