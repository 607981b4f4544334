"""Step 2, preferences and the reward model: learn a score of (prompt, answer) from rankings of answers.

    python train_rm.py --config tiny

In the tiny world: samples K answers a prompt from sft.pt, has the simulated human rank them, appends the
rankings to rankings.jsonl. With --data FOLDER: reads preferences.jsonl, K = 2. Then trains a GPT with a
scalar head on all pairs of each ranking and writes rm.pt; beside that, the next-token loss on pretraining text
goes on. --folds 5 adds a cross-validation on the pairs.

--round 2 does the same once more with answers of the policy that PPO made of this reward model, ppo.1, and
writes rm.2: a policy that improves leaves the answers that its judge has seen (Bai et al. 2022, section 4.5).
"""
import json
import math
import random
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data
from experiment import Common, Stage, UserError, knob, load_model, muon, parse, run_main, set_lr, table, write_atomic
from model import answer, score, with_heads
from preferences import SimulatedHuman, elo_scores, noise_ceiling, rank_correlation, ranking_to_pairs, wilson, wins_to_tiers
from train_pretrain import lm_loss, tokens_of


@dataclass
class Config(Common):
    round: int = knob(1, "1: the SFT model's answers; 2: rm.pt goes on learning from the answers of ppo.1, the policy that it trained", low=1, high=2)
    answers_per_prompt: int = knob(8, "K answers a prompt are sampled and ranked (InstructGPT: 4 to 9)", low=2)
    rankings_per_prompt: int = knob(3, "rankings collected for each training prompt, each of K new answers", low=1)
    temperature: float = knob(1.0, "sampling temperature of those answers", low=0.01)
    max_new_tokens: int = knob(48, "longest sampled answer", low=1)
    start: str = knob("pretrain", "weights that round 1 starts from: in the tiny world these judged a PPO policy's answers better", choices=("pretrain", "sft"))
    replay: float = knob(0.5, "in round 2: rankings of round 1 for each new one, so that they are not forgotten", low=0)
    loss: str = knob("bradley_terry", "what is learned: pairs, or by regression the Elo scores that each ranking gives its answers", choices=("bradley_terry", "regression"))
    lm_coef: float = knob(1.0, "weight of the next-token loss on pretraining text, beside the ranking loss: keeps alive what new answers are judged by", low=0)
    damaged: float = knob(0.3, "comparisons of a demonstration with damaged copies of it, for each ranking: they cost no annotator", low=0)
    epochs: int = knob(1, "passes over the rankings; more than one overfits (InstructGPT)", low=1)
    batch_size: int = knob(3, "prompts in a step, each with all its answers", low=1)
    lr: float = knob(1e-3, "peak learning rate", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    dropout: float = knob(0.0, "dropout in training", low=0, high=0.9)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    folds: int = knob(0, "cross-validate with that many folds before the training proper (0: not)", low=0)
    eval_every: int = knob(100, "steps between measurements of the held-out accuracy", low=1)
    eval_split: str = knob("test", "prompts of the final figures: dev while tuning, test for those that count", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "small": dict(damaged=0.0, batch_size=8, lr=5e-4, dropout=0.1),
}


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
    """Mean of (score - target)^2: the score is learned as a number, not as an order. scores, targets: (N,), targets standardised."""
    return (scores - targets).pow(2).mean()


def elo_targets(groups):
    """What regression learns for each ranking: the Elo scores of its answers (one pass over its pairs), all together with mean 0 and
    standard deviation 1. Returns a tensor (K,) a group."""
    scores = [torch.tensor(elo_scores([g["tiers"]])) for g in groups]
    mean, std = torch.cat(scores).mean(), torch.cat(scores).std()
    return [(s - mean) / std for s in scores]


def batch_pairs(batch):
    """Rankings of a batch -> (winners, losers): indices into all answers of the batch laid end to end."""
    winners, losers, start = [], [], 0
    for g in batch:
        pairs = ranking_to_pairs(g["tiers"])
        winners += [start + i for i, _ in pairs]
        losers += [start + j for _, j in pairs]
        start += len(g["responses"])
    return winners, losers


def group_scores(model, enc, batch):
    """Scores of all answers of a batch of rankings, laid end to end: one forward an answer, however many pairs it is in."""
    device = next(model.parameters()).device
    rows = [data.fit(data.encode_prompt(enc, g["prompt"]), data.encode_response(enc, r), model.config.block_size)[:2]
            for g in batch for r in g["responses"]]
    tokens, lengths = data.pad_rows([p + r for p, r in rows], data.special_id(enc, "pad"))
    return model.reward(tokens.to(device), lengths.to(device))


@torch.no_grad()
def accuracy(model, enc, groups, batch_size=32):
    """Share of the pairs in which the better answer gets the higher score, and the number of pairs."""
    was_training, right, total = model.training, 0, 0
    model.eval()
    for i in range(0, len(groups), batch_size):
        scores = group_scores(model, enc, groups[i : i + batch_size])
        winners, losers = batch_pairs(groups[i : i + batch_size])
        right += (scores[winners] > scores[losers]).sum().item()
        total += len(winners)
    model.train(was_training)
    return right / max(1, total), total


def chance_corrected(hits, ceiling):
    """(accuracy - 0.5) / (ceiling - 0.5) as text: 0 is guessing, 1 is as good as the annotator's noise allows."""
    return f"{(hits - 0.5) / (ceiling - 0.5):.2f}" if ceiling > 0.5 else "-"


def stored_rankings(stage, source):
    """The rows of rankings.jsonl whose answers come from that source."""
    path = stage.folder / "rankings.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [row for row in rows if row["source"] == source]


def collect(stage, policy, enc, prompts, labeler, cfg, source):
    """Sample K answers for each entry of `prompts`, have them ranked, append the rankings to rankings.jsonl.

    source: where the answers come from, in words; rankings that are there already under that name are reused.
    Answers that are the same are ranked once. Returns rows {"prompt", "responses", "tiers", "aspect", "labeler",
    "round", "source", "split"}."""
    path = stage.folder / "rankings.jsonl"
    if rows := stored_rankings(stage, source):
        print(f"{len(rows)} rankings in {path} are used again")
        return rows
    K = cfg.answers_per_prompt
    print(f"sampling {K} answers for each of {len(prompts)} rankings", flush=True)
    texts = [a[0] for a in answer(policy, enc, [p["prompt"] for p in prompts for _ in range(K)], cfg.max_new_tokens, cfg.temperature, batch_size=512)]
    responses = [sorted(set(texts[i * K : (i + 1) * K])) for i in range(len(prompts))]
    wins = labeler.label([p["prompt"] for p in prompts], responses)
    rows = [{"prompt": p["prompt"], "responses": r, "tiers": wins_to_tiers(w), "aspect": "overall", "labeler": labeler.name,
             "round": cfg.round, "source": source, "split": p["split"]} for p, r, w in zip(prompts, responses, wins)]
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomic(path, before + "".join(json.dumps(row) + "\n" for row in rows))  # all of them or none: a kill leaves no half a collection
    print(f"{len(rows)} rankings of {K} answers in {path}; {len(rows) * K - sum(map(len, responses))} duplicates left out")
    return rows


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
    groups = [g for g in groups if len(g["tiers"]) > 1]  # a ranking that is one big tie holds no pair
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
        winners, losers = batch_pairs(batch)
        if targets_of:
            loss = regression_loss(scores, torch.cat([targets_of[i] for i in drawn]).to(scores.device))
        else:
            loss = bradley_terry_loss(scores[winners], scores[losers])
        optimizer.zero_grad()
        loss.backward()
        if cfg.lm_coef:
            inputs, targets = (x.to(scores.device) for x in data.text_batch(corpus, 4, min(96, model.config.block_size)))
            (cfg.lm_coef * lm_loss(model(inputs), targets)).backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or torch.inf)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
        if stage:
            measure = step + 1 == steps or step % cfg.eval_every == 0
            stage.log(step, ("loss",), loss=loss.item(), accuracy=(scores[winners] > scores[losers]).float().mean().item(),
                      test_accuracy=accuracy(model, enc, held_out[:50])[0] if measure and held_out else None, grad_norm=grad_norm.item(), lr=lr)
    return model.eval()


def bag_of_words(enc, groups, held_out, epochs=200):
    """Accuracy of a Bradley-Terry model whose score is a sum of token weights: what one gets without reading the order."""
    def differences(groups):
        x = torch.zeros(sum(len(ranking_to_pairs(g["tiers"])) for g in groups), enc.n_vocab)
        pairs = [(g["responses"][i], g["responses"][j]) for g in groups for i, j in ranking_to_pairs(g["tiers"])]
        for row, (winner, loser) in zip(x, pairs):
            for text, sign in ((winner, 1.0), (loser, -1.0)):
                row.index_add_(0, torch.tensor(enc.encode_ordinary(text)), torch.full((len(enc.encode_ordinary(text)),), sign))
        return x.sign() * x.abs().log1p()

    x, y = differences(groups), differences(held_out)
    weights = torch.zeros(enc.n_vocab, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        (bradley_terry_loss(x @ weights, torch.zeros(len(x))) + 0.01 * weights.pow(2).sum()).backward()
        optimizer.step()
    return ((y @ weights.detach()) > 0).float().mean().item()


def cross_validate(base, enc, groups, corpus, cfg):
    """k folds over the prompts: reward model, bag of words and "the shorter answer wins", on the same held-out pairs."""
    groups = [g for g in groups if len(g["tiers"]) > 1]
    keys = sorted({json.dumps(g["prompt"]) for g in groups})
    if not 2 <= cfg.folds <= len(keys):
        raise UserError(f"--folds {cfg.folds}: choose 2 to {len(keys)}, the number of prompts with comparisons")
    fold_of = {keys[i]: n % cfg.folds for n, i in enumerate(torch.randperm(len(keys), generator=torch.Generator().manual_seed(cfg.seed)).tolist())}
    results = []
    for fold in range(cfg.folds):
        training = [g for g in groups if fold_of[json.dumps(g["prompt"])] != fold]
        held_out = [g for g in groups if fold_of[json.dumps(g["prompt"])] == fold]
        torch.manual_seed(cfg.seed + fold)
        model = train(with_heads(base, reward_head=True), enc, training, corpus, cfg)
        shorter = [len(g["responses"][i]) < len(g["responses"][j]) for g in held_out for i, j in ranking_to_pairs(g["tiers"])]
        results.append((accuracy(model, enc, held_out)[0], bag_of_words(enc, training, held_out), sum(shorter) / len(shorter), len(shorter), len(held_out)))
        print(f"fold {fold + 1} of {cfg.folds}: reward model {results[-1][0]:.3f}, bag of words {results[-1][1]:.3f}, shorter wins {results[-1][2]:.3f}", flush=True)
    means = [sum(r[k] * r[3] for r in results) / sum(r[3] for r in results) for k in range(3)]
    n = sum(r[4] for r in results)  # pairs of one ranking share answers: the interval counts rankings
    print(table(["cross-validated accuracy", "mean", "low", "high"],
                [[name, f"{m:.3f}", *(f"{x:.3f}" for x in wilson(m, n))] for name, m in zip(("reward model", "bag of words", "shorter answer wins"), means)]))


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    if cfg.round == 2:
        cfg.name = cfg.name or "rm.2"
        if cfg.name == "rm":
            raise UserError("--round 2 starts from rm.pt and must not overwrite it: leave out --name rm")
    elif cfg.name == "rm.2":
        raise UserError("rm.2 is the reward model of the second round: --round 2 trains it")
    stage = Stage(cfg, "rm")
    if cfg.data and cfg.round == 2:
        raise UserError(f"--round 2 asks an annotator about new answers; {cfg.data} has none to ask, only its preferences")
    if cfg.folds and cfg.round == 2:
        raise UserError("--folds is for round 1: in round 2 the reward model has already learned from the prompts that a fold would hold out")
    if cfg.folds and cfg.start == "sft":
        raise UserError("--folds needs --start pretrain: the SFT model was trained on the chosen answers that a fold would hold out")
    author = "sft" if cfg.round == 1 else "ppo.1"  # whose answers are ranked
    preferences, earlier = data.load_preferences(cfg.data) if cfg.data else [], []
    if cfg.data and not preferences:
        raise data.DataError(f"{cfg.data}: no preferences file; the reward model needs comparisons (preferences.jsonl)")
    start_path = stage.parent(cfg.start if cfg.round == 1 else "rm")
    base, started_from = load_model(start_path, stage.device, cfg.dropout)
    print(f"shape from {start_path}: {started_from['model_config']}")
    enc = data.load_encoding(stage.folder / "tokenizer.json")
    corpus, _ = tokens_of(enc, data.load_text(stage.data))
    if not preferences and cfg.max_new_tokens >= base.config.block_size:
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {base.config.block_size} tokens")
    if cfg.round == 2:
        earlier = stored_rankings(stage, started_from["state"]["source"])
        if not earlier:
            raise UserError(f"{stage.folder / 'rankings.jsonl'} has lost the rankings that {start_path} was trained on; train_rm.py --overwrite collects new ones")
    if preferences:
        groups = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "tiers": [[0], [1]], "split": r["split"]} for r in preferences]
    else:
        prompts = [p for p in data.load_prompts(stage.data) for _ in range(cfg.rankings_per_prompt if p["split"] == "train" else 1)
                   if p["split"] in ("train", cfg.eval_split)]
        policy, checkpoint = load_model(stage.parent(author), stage.device)
        source = (f"{author} {checkpoint['fingerprint']}, {cfg.rankings_per_prompt} x {cfg.answers_per_prompt} answers of up to {cfg.max_new_tokens} tokens at "
                  f"temperature {cfg.temperature}, {cfg.eval_split}, seed {cfg.seed}")
        groups = collect(stage, policy, enc, prompts, SimulatedHuman(cfg.seed + 1000 * cfg.round), cfg, source)
        stage.state["source"] = source
    data.of_split(groups, "train", stage.data)
    training, seen_before = ([g for g in rows if g["split"] == "train"] for rows in (groups, earlier))
    held_out, held_out_before = ([g for g in rows if g["split"] == cfg.eval_split and len(g["tiers"]) > 1] for rows in (groups, earlier))
    if cfg.folds:
        cross_validate(base, enc, groups, corpus, cfg)
    torch.manual_seed(cfg.seed)
    model = with_heads(base, reward_head=True)
    model.reward_gain.fill_(1.0)  # raw scores while it learns
    model.reward_bias.fill_(0.0)
    replayed = random.Random(cfg.seed).sample(seen_before, min(len(seen_before), round(cfg.replay * len(training))))
    demonstrations = [d for d in data.load_sft(stage.data) if d["split"] == "train"] if cfg.damaged else []
    free = damaged_copies(demonstrations, round(cfg.damaged * len(training)), cfg.seed)
    train(model, enc, training + replayed + free, corpus, cfg, stage, held_out)

    # Scores of a known scale: mean 0 and standard deviation 1 over the SFT model's answers, from now on frozen.
    some = (seen_before or training)[:: max(1, len(seen_before or training) // 200)]
    raw = torch.tensor(score(model, enc, [g["prompt"] for g in some for _ in g["responses"]], [r for g in some for r in g["responses"]]))
    model.reward_gain.fill_(1 / raw.std().item())
    model.reward_bias.fill_(-raw.mean().item() / raw.std().item())
    lines, stage.state["results"] = [], {}
    for name, rows in {author: held_out, **({"sft": held_out_before} if held_out_before else {})}.items():
        hits, n = accuracy(model, enc, rows)
        low, high = wilson(hits, max(1, len(rows)))  # pairs of one ranking share answers: the interval counts rankings
        line = f"held-out accuracy {hits:.3f} on {n} pairs of {len(rows)} rankings (95 % interval {low:.3f} to {high:.3f})" if n else "no held-out pairs"
        if n and not preferences:
            ceiling = noise_ceiling(rows, data.gold_score)
            scores = iter(score(model, enc, [g["prompt"] for g in rows for _ in g["responses"]], [r for g in rows for r in g["responses"]]))
            taus = [rank_correlation([next(scores) for _ in g["responses"]], [data.gold_score(g["prompt"], r) for r in g["responses"]]) for g in rows]
            taus = [tau for tau in taus if tau is not None]
            tau = sum(taus) / max(1, len(taus))
            stage.state["results"][name] = {"accuracy": hits, "ceiling": ceiling, "rank_correlation": tau}
            line = (f"answers of {name}: {line}; ceiling set by the annotator's noise {ceiling:.3f}; chance-corrected {chance_corrected(hits, ceiling)}; "
                    f"rank correlation with the gold score, within a prompt {tau:.2f}")
        lines.append(line)
    line = "\n".join(lines)
    print("\n" + line)
    shown = max(held_out or training, key=lambda g: len(g["tiers"]))
    samples = sorted(zip(score(model, enc, [shown["prompt"]] * len(shown["responses"]), shown["responses"]), shown["responses"]), reverse=True)
    place = {shown["responses"][i]: t + 1 for t, tied in enumerate(shown["tiers"]) for i in tied}
    text = f"prompt: {data.prompt_text(shown['prompt'])}\n" + table(["answer", "score", "rank by the annotator"], [[r, s, place[r]] for s, r in samples])
    print("\n" + text)
    stage.finish(line + "\n\n" + text, [("Bradley-Terry loss (log 2 = guessing)" if cfg.loss == "bradley_terry" else "Regression loss (1 = guessing)", {"training": "loss"},
                         "nats a pair" if cfg.loss == "bradley_terry" else "squared error"),
                        ("Share of pairs ranked right", {"training": "accuracy", "held-out": "test_accuracy"}, "accuracy"),
                        ("Gradient norm", {"norm": "grad_norm"}, "before clipping")], line)


if __name__ == "__main__":
    run_main(main)
