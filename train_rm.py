"""Step 2b, the reward model: learn a score of (prompt, answer) from rankings of answers.

    python train_rm.py --config tiny                       what the human ranked: rm.pt
    python train_rm.py --config tiny --aspect helpful      Llama 2's two: rm_helpful.pt
    python train_rm.py --config tiny --aspect safety       and rm_safety.pt
    python train_rm.py --config tiny --rankings rankings_ai --name rm_of_ai          an AI's labels
    python train_rm.py --config tiny --rankings rankings rankings_human --name mine  two collections
    python train_rm.py --config tiny --start rm --rankings rankings.ppo --name rm.2  a second round

Reads collections of rankings (preferences.py), or the preferences file of --data. A GPT with a
scalar head learns from all pairs of each ranking; beside that, the next-token loss on text goes on.
The first of these commands makes two models. rm_first learns from rankings of the SFT model's
answers. A pilot, a policy after a short PPO against it, gives answers like those that PPO will have
scored; they are ranked, too, and rm goes on from rm_first with both.

--start rm is for a policy that has left the answers that its judge knows; the new model keeps the
knobs of the old one unless a flag says otherwise, and sees some earlier rankings again.
rejection_sampling.py does so in every round.
"""
import lab.before_torch
import json
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

import data
from data import UserError, batch_pairs, epoch_order, is_thumb
from lab.cli import Common, check_rules, knob, knobs_from, parse, run_main
from lab.commands import STAGES, run_folder
from lab.measure import accuracy, calibration_slope, differences, evaluate, scores_of
from lab.optim import clip_gradients, muon, set_lr
from lab.parallel import part, share, together
from lab.rankings import check_names, earlier_rankings, rankings_of, replayed, usable
from lab.records import load_model, record_of
from lab.report_rm import report
from lab.run import Stage, train_if_missing
from model import with_heads
from preferences import elo_scores
from train_pretrain import lm_loss
from world.damage import damaged_copies
from world.reward import score_texts
from world.taste import TASTE


@dataclass
class Config(Common):
    aspect: str = knob(
        "overall", "what the annotator was asked: everything, or Llama 2's two, how helpful and how safe",
        choices=("overall", "helpful", "safety"), heading="What it learns from")
    rankings: tuple = knob(
        (), "collections of this run; preferences: the file of --data "
        "(by default the human's for this aspect, or that file)")
    limit: int = knob(0, "the first N training rankings only (0: all)", low=0)
    helpful_share: float = knob(
        0.1, "share of helpfulness rankings for a safety model (Llama 2: 10 %)", low=0, high=0.9)
    leave_out: str = knob(
        "", "subjects or topics of the tiny world (cake,why) that it learns nothing about")
    damaged: float = knob(
        0.3, "comparisons of a demonstration with damaged copies for each ranking: they are free", low=0)
    start: str = knob(
        "", "pretrain, sft, or a reward model that goes on (by default rm goes on from rm_first, and all "
        "others start from pretrain)")
    zero_head: bool = knob(
        False, "all scores begin at 0: where there is little to learn from, random ones are noise that stays")
    replay: float = knob(0.5, "earlier rankings for each new one, where a model goes on", low=0, high=1000)

    loss: str = knob(
        "bradley_terry", "pairs; or by regression Elo scores of a ranking (thumbs: 1 and 0)",
        choices=("bradley_terry", "regression"), heading="The loss")
    ties: str = knob(
        "drop", "pairs found equal: left out, or learned as a probability of 0.5",
        choices=("drop", "half"))
    margin: str = knob(
        "none", "Llama 2's, larger the further two answers are apart (at most 3 tiers): "
        "0, a third a tier, or 1 a tier", choices=("none", "small", "large"))
    lm_coef: float = knob(
        1.0, "weight of the next-token loss on text: keeps alive what new answers are judged by", low=0,
        high=10)

    epochs: int = knob(
        2, "passes over the rankings (0: 1 to 8, as many as make about 150 steps)", low=0, heading="Updates")
    batch_size: int = knob(
        0, "rankings in a step, each with all its answers (0: 16; 32 of an AI's)", low=0,
        high=10**6)
    lr: float = knob(3e-3, "peak learning rate", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    dropout: float = knob(0.0, "dropout in training", low=0, high=0.9)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)

    eval_every: int = knob(
        50, "steps between measurements on held-out rankings", low=1, heading="Looking at it")
    eval_split: str = knob(
        "test", "rankings of the final figures: dev while tuning", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "smoke": dict(epochs=1, batch_size=40),
    "small": dict(damaged=0.0, zero_head=True, batch_size=8, epochs=0, lr=1e-3, dropout=0.1),
    "gpt2": dict(damaged=0.0, zero_head=True, batch_size=4, epochs=1, lr=1e-4),
}
RULES = (
    ("--leave_out names subjects and topics of the tiny world, not of --data",
     lambda c: c.leave_out and c.data),
    ("--margin and --ties are about pairs: they go with --loss bradley_terry",
     lambda c: c.loss == "regression" and (c.margin != "none" or c.ties != "drop")),
)
MARGINS = {"none": 0.0, "small": 1 / 3, "large": 1.0}
USUAL = {  # the name of the model for an aspect, where it starts, its collections
    "overall": ("rm", "rm_first", ("rankings", "rankings.pilot")),
    "helpful": ("rm_helpful", "pretrain", ("rankings_helpful",)),
    "safety": ("rm_safety", "pretrain", ("rankings_safety", "rankings_helpful")),
}


# ------------------------------------------------------------------------------------------------
# The formulas
# ------------------------------------------------------------------------------------------------


def bradley_terry_loss(chosen, rejected, margin=None, p_chosen=None):
    """-log sigmoid(r_chosen - r_rejected - margin), averaged over the pairs. (Bradley and Terry 1952;
    InstructGPT eq. 1, where each ranking counts the same; the margin: Llama 2, Touvron et al. 2023, eq. 2;
    soft labels: RLAIF, Lee et al. 2023.)

    chosen, rejected: (N,) scores of the better and the worse answer of each pair
    margin:           (N,) how much better the annotator found it, or None
    p_chosen:         (N,) probability that `chosen` is the better one: then the cross-entropy; None: it is
    Equal scores cost log 2 = 0.693; a constant added to both changes nothing.
    """
    difference = chosen - rejected - (0 if margin is None else margin)
    if p_chosen is None:
        return -F.logsigmoid(difference).mean()
    return -(p_chosen * F.logsigmoid(difference) + (1 - p_chosen) * F.logsigmoid(-difference)).mean()


def regression_loss(scores, targets):
    """Mean of (score - target)^2: the score is learned as a number, not as an order.

    scores, targets: (N,), targets standardised Elo scores, or 1 for thumbs up and 0 for thumbs down."""
    return (scores - targets).pow(2).mean()


def elo_targets(rows):
    """What regression learns for each ranking: the Elo scores of its answers (one pass over its pairs), all
    together with mean 0 and standard deviation 1, NaN for an answer that nobody has compared; for thumbs 1
    and 0. Returns a tensor (K,) a row."""
    if is_thumb(rows[0]):
        return [torch.tensor([float(row["label"])]) for row in rows]
    targets = []
    for row in rows:
        ranked = sum(row["tiers"], [])
        target = torch.full((len(row["responses"]),), torch.nan)
        target[ranked] = torch.tensor(elo_scores([row["tiers"]]))[ranked]
        targets.append(target)
    everything = torch.cat(targets)
    known = everything[~everything.isnan()]
    return [(target - known.mean()) / known.std() for target in targets]


def group_scores(model, enc, batch, at_once=3072):
    """Scores (N,) of all answers of a batch of rankings, laid end to end: one forward an answer, however many
    pairs it is in. Answers of similar length go through the model together: less padding. at_once: tokens in
    a pass at most, counting each answer as long as the context."""
    device, pad = next(model.parameters()).device, data.special_id(enc, "pad")
    chunk = max(1, at_once // model.config.block_size)
    prompts = [row["prompt"] for row in batch for _ in row["responses"]]
    responses = [text for row in batch for text in row["responses"]]
    ids = [p + r for p, r in data.lay_out(enc, prompts, responses, model.config.block_size)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    scores = []
    for start in range(0, len(order), chunk):
        tokens, lengths = data.pad_rows([ids[i] for i in order[start : start + chunk]], pad)
        scores.append(model.score(tokens.to(device), lengths.to(device)))
    return torch.cat(scores)[torch.tensor(order).argsort().to(device)]


def ranking_loss(scores, batch, targets, cfg):
    """The loss of a batch of rankings, and how many of its pairs are ranked right (a share of those that are
    no tie; None without such). scores: (N,) of its answers; targets: (N,) what regression learns, or None."""
    better, worse, p_better, strength = batch_pairs(batch, cfg.ties)
    told_apart = [p > 0.5 for p in p_better]
    hits = (scores[better] > scores[worse])[told_apart]
    right = hits.float().mean().item() if any(told_apart) else None
    if cfg.loss == "regression":
        targets = targets.to(scores.device)
        known = ~targets.isnan()
        return regression_loss(scores[known], targets[known]), right
    margin = MARGINS[cfg.margin] * torch.tensor(strength, device=scores.device)
    p_better = torch.tensor(p_better, device=scores.device)
    return bradley_terry_loss(scores[better], scores[worse], margin, p_better), right


# ------------------------------------------------------------------------------------------------
# The stage
# ------------------------------------------------------------------------------------------------


def settle(cfg):
    """Fill in what the flags leave open: where it starts, knobs of a reward model that goes on, collections,
    the name."""
    if cfg.start not in ("", "pretrain", "sft"):
        inherit(cfg)  # its aspect, too
    usual_name, usual_start, usual = USUAL[cfg.aspect]
    if cfg.data:
        usual_start, usual = "pretrain", ("preferences",)
    if not cfg.start:
        # rm_first has seen what --leave_out and --limit are to keep from it
        is_usual = cfg.name in ("", usual_name) and not cfg.leave_out and not cfg.limit
        cfg.start = usual_start if is_usual else "pretrain"
    cfg.rankings = cfg.rankings or usual
    differs = cfg.rankings != usual and not cfg.data
    of_another_aspect = cfg.name in [name for name, *_ in USUAL.values() if name != usual_name]
    recipe = STAGES.get(cfg.name, "")  # of rm_ai and of those that pay a pilot
    of_others = "--rankings" in recipe and f"--rankings {' '.join(cfg.rankings)} --" not in recipe
    if of_another_aspect or (of_others and not cfg.data) or (cfg.name == usual_name and differs):
        raise UserError(f"--name {cfg.name}: that is another reward model; choose a name of your own")
    if not cfg.name and differs:
        raise UserError(f"{usual_name} is the reward model of {' '.join(usual)}: give the one of "
                        f"{' '.join(cfg.rankings)} a name of its own with --name")
    cfg.name = cfg.name or usual_name


def inherit(cfg):
    """A reward model that goes on keeps the knobs of the one at --start unless a flag says otherwise, but
    for those that say what it learns from and how often."""
    if cfg.start == (cfg.name or USUAL[cfg.aspect][0]):
        raise UserError(f"--start {cfg.start}: give the model that goes on from it a --name of its own")
    train_if_missing(cfg, cfg.start)
    folder = run_folder(cfg)
    record = record_of(folder, cfg.start)
    if record["stage"] == "preferences":
        raise UserError(f"--start {cfg.start}: that is a collection; learn from it with --rankings")
    if record["stage"] != "rm":
        return
    if not cfg.rankings:
        raise UserError(f"--start {cfg.start} goes on with a reward model: name new rankings with --rankings")
    old = knobs_from(Config, record["knobs"], folder / f"{cfg.start}.pt")
    given = {word.split("=")[0] for word in cfg.argv}
    common = {f.name for f in fields(Common)}
    for f in fields(Config):
        own = f.name not in common and f.name not in ("start", "rankings", "limit", "epochs")
        if own and f.name in old and f"--{f.name}" not in given:
            setattr(cfg, f.name, old[f.name])
    if cfg.aspect != old.get("aspect", cfg.aspect):
        raise UserError(f"--start {cfg.start} was asked for {old['aspect']}, not {cfg.aspect}")


def demonstrations_about(training, demonstrations):
    """Demonstrations of the training split, those for prompts that were ranked where there are any."""
    mine = [d for d in demonstrations if d["split"] == "train"]
    ranked = {json.dumps(row["prompt"]) for row in training}
    return [d for d in mine if json.dumps(d["prompt"]) in ranked] or mine


def usual_batch_size(training):
    """16 rankings, or twice as many where most are an AI's: as right there, in half the steps."""
    by_ai = sum(row.get("labeler") == "ai" for row in training)
    return 32 if by_ai > len(training) / 2 else 16


def with_reward_head(base, zero_head):
    """A copy of a model that scores: with the reward head of base, or a new one where it has none."""
    model = with_heads(base, reward_head=True)
    if zero_head and not base.config.reward_head:
        torch.nn.init.zeros_(model.reward_head.weight)
    return model


def passes(epochs, n, batch_size):
    """Passes over n rankings: so many as --epochs says, or, where it says 0, as make about 150 steps, 1 to 8.
    Few rankings have to be seen more often, and many that are noisy are soon known by heart."""
    return epochs or min(8, max(1, round(150 / data.steps_per_epoch(n, batch_size))))


def text_loss(model, corpus, lm_coef):
    """lm_coef x the next-token loss on four windows of text. (The idea: Yang et al. 2024, "Regularizing
    hidden states".) corpus: token ids (1-D)."""
    device = next(model.parameters()).device
    inputs, targets = data.text_batch(corpus, 4, min(96, model.config.block_size))
    return part(lm_coef * lm_loss(model(inputs.to(device)), targets.to(device)), 1)


def calibrate(model, enc, demonstrations, dev, cfg):
    """Scores of a known scale: demonstrations at 0 on average (InstructGPT), differences log-odds. With
    Bradley-Terry they are that already (--margin makes them larger); regression's are made so by the slope
    that dev rankings ask for, where there are 30. Gain and bias are kept in the model (GPT.set_scale), so
    whoever loads it gets such scores."""
    gain = 1.0
    if cfg.loss == "regression" and len(dev) >= 30:
        d = differences(dev, scores_of(model, enc, dev))
        gain = min(max(calibration_slope(d), 0.05), 20.0) if d else 1.0
    some = demonstrations[:: max(1, len(demonstrations) // 300)]
    scores = score_texts(model, enc, [d["prompt"] for d in some], [d["response"] for d in some])
    model.set_scale(gain, -gain * sum(scores) / max(1, len(scores)))


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    settle(cfg)
    check_rules(cfg, RULES)  # it may have inherited knobs
    stage = Stage(cfg, "rm")
    check_names(stage, cfg.rankings)
    path = stage.parent(cfg.start)
    base = load_model(path, stage.device, cfg.dropout)[0]
    enc, gold = stage.encoding(), None if cfg.data else TASTE[cfg.aspect]
    corpus, _ = data.tokens_of(enc, data.load_text(stage.data))

    # What it learns from: rankings by the aspect asked for; for a safety model `others`, a share about
    # helpfulness; where a model goes on, some that it has learned before and shall not forget; and some that
    # need no annotator: a demonstration beats copies of it that were damaged.
    rows, others = rankings_of(stage, cfg, enc, base.config.block_size)
    earlier = earlier_rankings(stage, cfg, enc, base.config.block_size, rows)
    training = usable(rows, "train", cfg.ties)
    dev, held_out = usable(rows, "dev"), usable(rows, cfg.eval_split)
    demonstrations = demonstrations_about(training, data.load_sft(stage.data))
    learned = training + others + replayed(earlier, len(training), cfg)
    if not is_thumb(training[0]):  # with thumbs it learns no comparisons
        learned += damaged_copies(demonstrations, round(cfg.damaged * len(training)), cfg.seed)

    torch.manual_seed(cfg.seed)
    model = with_reward_head(base, cfg.zero_head)
    del base  # a large model need not be there twice
    before = evaluate(model, enc, held_out, gold) if earlier else None  # of the model that it goes on from
    model.set_scale(1.0, 0.0)  # raw scores while it learns
    targets_of = elo_targets(learned) if cfg.loss == "regression" else None
    batch_size = cfg.batch_size or usual_batch_size(training)
    most_answers = batch_size * max(len(row["responses"]) for row in learned)
    stage.describe(model, path, rows=most_answers, length=model.config.block_size)
    steps = passes(cfg.epochs, len(learned), batch_size) * data.steps_per_epoch(len(learned), batch_size)
    watched = (dev or held_out)[:: max(1, len(dev or held_out) // 50)]  # for the curve of the picture
    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(steps):
        # rankings -> scores of their answers -> loss of their pairs -> step
        drawn = epoch_order(len(learned), step, batch_size, cfg.seed)
        batch = [learned[i] for i in drawn]
        with stage.autocast():
            scores = together(group_scores(model, enc, share(batch)).float())
        targets = targets_of and torch.cat([targets_of[i] for i in drawn])
        loss, right = ranking_loss(scores, batch, targets, cfg)
        optimizer.zero_grad()
        loss.backward()
        if cfg.lm_coef:
            with stage.autocast():
                on_text = text_loss(model, corpus, cfg.lm_coef)
            on_text.backward()
        grad_norm = clip_gradients(model, cfg.clip_grad)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
        now = watched and (step + 1 == steps or step % cfg.eval_every == 0)
        held_out_accuracy = accuracy(model, enc, watched)[0] if now else None
        stage.log(step, ("loss",), loss=loss.item(), accuracy=right,
                  held_out_accuracy=held_out_accuracy, grad_norm=grad_norm, lr=lr)

    calibrate(model.eval(), enc, demonstrations, dev, cfg)
    report(stage, cfg, enc, model, gold, rows, earlier, before)


if __name__ == "__main__":
    run_main(main)
