"""Llama 2's rejection sampling: answer each prompt K times, keep the answer that the reward model
likes best, fine-tune on these, repeat. (Touvron et al. 2023, section 3.2.3.)

    python rejection_sampling.py --config tiny                  four rounds, rs.1 to rs.4
    python rejection_sampling.py --config tiny --then_ppo       and PPO on top of the last, rs.ppo
    python rejection_sampling.py --config tiny --refresh_reward_model false --name stale

A round, as in the loop at the end of this file:
    0. the reward model learns from fresh rankings of the newest model's answers
    1. the newest model answers each training prompt K times
    2. the reward model picks the best answer to each, the winner
    3. the SFT model is fine-tuned on the winners of all rounds so far
    4. the new model is measured
Whatever is missing is trained first. Round 4 is the stage rs.4, its parent is rs.3, and so on: an
interrupted pipeline goes on where it stopped.
"""
import lab.before_torch
import math
import shlex
from dataclasses import dataclass, replace

import torch

import data
from lab.best_of_n import best_of_n_log_ratio, log_probability
from lab.cli import Common, knob, parse, run_main
from lab.commands import command_of, run_folder, shown_command
from lab.data_folder import held_out_prompts, training_prompts
from lab.optim import clip_gradients, muon, set_lr
from lab.parallel import part, share, total
from lab.records import MadeAgain, load_model, record_of
from lab.report_rounds import report
from lab.run import Stage, finished, knobs_of, other_knobs, train_if_missing
from lab.scorers import check_reward, count_from_sft, load_scorer, reward_models
from lab.talk import answer
from lab.tokens import room_for_prompts
from preferences import Config as CollectionConfig
from train_sft import sft_loss
from world.taste import gold_score
from world.tiny import in_tiny_world


@dataclass
class Config(Common):
    rounds: int = knob(4, "rounds; each is a stage of its own: NAME.1, NAME.2, ...", low=1, high=1000,
                       heading="Rounds", learned=False)
    reward: str = knob("overall", "who chooses: overall, helpful, safety, llama2 or a reward model's name")
    refresh_reward_model: bool = knob(True, "from round 2 on it first learns about the newest answers")
    start: str = knob("sft", "weights that each round fine-tunes: the SFT model's, or the round before's",
                      choices=("sft", "previous"))
    pool: str = knob("all", "fine-tune on the winners of all rounds so far, or of the last alone",
                     choices=("all", "last"))
    then_ppo: bool = knob(False, "PPO on top of the last round, with the newest reward model: NAME.ppo",
                          learned=False)

    answers_per_prompt: int = knob(16, "K answers a prompt, the best is kept", low=2, high=1000,
                                   heading="Sampling")
    temperature: float = knob(1.0, "the more answers, the warmer may it be", low=0.01)
    max_new_tokens: int = knob(48, "longest answer", low=1)

    epochs: int = knob(2, "passes over the winners", low=1, heading="Fine-tuning")
    batch_size: int = knob(16, "winners in a step", low=1, high=10**6)
    lr: float = knob(1e-3, "peak learning rate", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)

    eval_answers: int = knob(4, "answers to each prompt in the final table", low=1, high=10**4,
                             heading="Looking at it")
    eval_split: str = knob("test", "prompts of that table: dev while tuning", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "smoke": dict(rounds=2, answers_per_prompt=3, epochs=1, batch_size=50, max_new_tokens=12, eval_answers=1),
    "small": dict(rounds=2, answers_per_prompt=8, epochs=1, batch_size=8, lr=1e-4, max_new_tokens=128,
                  eval_answers=1),
    "gpt2": dict(rounds=2, answers_per_prompt=4, epochs=1, batch_size=8, lr=5e-5, max_new_tokens=96,
                 eval_answers=1),
}
RULES = (
    ("--reward ai has no reward model that could score so many answers; rm_ai is one that learned from an AI",
     lambda c: c.reward == "ai"),
    ("--then_ppo trains what is missing: leave --overwrite out, or train NAME.ppo again with train_ppo.py",
     lambda c: c.then_ppo and c.overwrite),
)


# ------------------------------------------------------------------------------------------------
# The formulas. N prompts, K answers each
# ------------------------------------------------------------------------------------------------


def best_of(rewards):
    """Index of the best answer to each prompt, of equally good ones the first.

    rewards: (N, K). Returns (N,)."""
    return rewards.argmax(1)


def subset_weights(K, n):
    """If n of K answers are drawn without replacement, the probability that the one of rank i (0: the worst)
    is the best of them: C(i, n - 1) / C(K, n). Returns (K,), sum 1. Example: K 3, n 2 -> 0, 1/3, 2/3."""
    return torch.tensor([math.comb(i, n - 1) / math.comb(K, n) for i in range(K)])


def best_of_n(rewards, values, n):
    """What the answer with the highest reward among n has of some value, in the mean over all choices of n
    among the K.

    rewards, values: (N, K), values the rewards themselves, gold scores or whatever. Returns (N,); n = 1 is
    the control, a random answer: one of n that is drawn blindly has the same mean for every n.
    """
    ranked = values.gather(1, rewards.argsort(dim=1, stable=True))
    return ranked @ subset_weights(rewards.shape[1], n).to(ranked.dtype)


def best_of_n_kl_bound(n):
    """log n - (n - 1) / n: KL(best of n || one answer) where no answer has a probability to speak of, else an
    upper bound, in nats. (Stiennon et al. 2020; Beirami et al. 2024 on why it is only a bound.)"""
    return math.log(n) - (n - 1) / n


def best_of_n_kl(rewards, logprobs, n):
    """KL(best of n || one answer) of each prompt, estimated from K samples: the mean over the best of n of
    log(P_n(y) / p(y)), in nats; P_n is the probability to be the best of n, p that of one sample.

    rewards, logprobs: (N, K), equal rewards are the same answer. Returns (N,).
    Example: four equally likely answers, n = 16: 1.330 if K is large, where the bound says 1.835.
    """
    return best_of_n(rewards, best_of_n_log_ratio(rewards, logprobs, n), n)


# ------------------------------------------------------------------------------------------------
# 0. The reward models learn about the newest model's answers
# ------------------------------------------------------------------------------------------------
# Knobs of preferences.py that say who ranks, and how.
WHO_RANKS = ("labeler", "aspect", "answers_per_prompt", "noise", "tie_gap", "flip_rate", "position_habit",
             "chain_of_thought", "both_orders", "judge", "judge_url", "judge_model", "preamble")


def newest_reward(cfg, base, n):
    """--reward of round n: that of the first, or the reward models of round n - 1 gone on with rankings of
    that round's answers. Those are collected, and these trained, where they are missing."""
    if n == 1 or not cfg.refresh_reward_model:
        return cfg.reward
    before, author = newest_reward(cfg, base, n - 1), f"{base}.{n - 1}"
    for name, start in zip(reward_models(cfg.reward), reward_models(before), strict=True):
        train_if_missing(cfg, start)
        rankings = fresh_rankings(cfg, start, author)
        if not rankings:
            return cfg.reward
        newest = f"{name}.{author}"
        train_if_missing(cfg, newest, f"train_rm.py --start {start} --rankings {rankings} --epochs 1 "
                         f"--name {newest}")
    return f"{cfg.reward}.{author}"


def fresh_rankings(cfg, reward_model, author):
    """Name of a collection like the one that a reward model has learned from, of answers of the model
    `author`, made here if it is missing; None where nobody is there who would rank them."""
    folder = run_folder(cfg)
    first = record_of(folder, reward_model)["knobs"]["rankings"][0]
    kind = first.partition(".")[0]
    collection = record_of(folder, first) or record_of(folder, kind)
    if collection is None:
        data.say_once(f"{reward_model} stays as it is: it has learned from a file of preferences, and nobody "
                      "is there to rank new answers")
        return None
    knobs = collection["knobs"]
    if knobs["labeler"] == "human":
        raise data.UserError(f"--reward {cfg.reward} has learned from your labels, and nobody else shall "
                             "rank in your place: add --refresh_reward_model false")
    name, flags = f"{kind}.{author}", {"answers_of": author, "held_out_rankings": 1}
    flags |= {key: getattr(cfg, key) for key in ("max_new_tokens", "temperature")}
    flags |= {key: knobs[key] for key in WHO_RANKS if knobs[key] != getattr(CollectionConfig, key)}
    words = " ".join(f"--{key} {shlex.quote(str(value))}" for key, value in flags.items())
    train_if_missing(cfg, name, f"preferences.py --name {name} {words}")
    return name


def ppo_on_top(cfg, base):
    """PPO from the last round's model, paid by the newest reward model. Raises UserError where the one that
    is there began from another round or was paid by another model."""
    name, last = f"{base}.ppo", f"{base}.{cfg.rounds}"
    flags = {"name": name, "start": last, "reward": newest_reward(cfg, base, cfg.rounds + 1)}
    flags |= {key: getattr(cfg, key) for key in ("max_new_tokens", "temperature", "eval_split")}
    command = " ".join(["train_ppo.py", *(f"--{key} {value}" for key, value in flags.items())])
    record = record_of(run_folder(cfg), name)
    then = record["knobs"] if record else flags
    differ = [key for key in flags if key in then and then[key] != flags[key]]
    if differ:
        news = ", ".join(f"{key} {then[key]} -> {flags[key]}" for key in differ)
        again = shown_command(command_of(cfg, command))
        raise data.UserError(f"{name} is there already, with other knobs ({news}); to make it anew: {again} "
                             "--overwrite")
    if finished(cfg, name):
        say_finished(cfg, name)
    train_if_missing(cfg, name, command)


# ------------------------------------------------------------------------------------------------
# The steps of a round
# ------------------------------------------------------------------------------------------------


def sample_and_score(policy, enc, scorer, prompts, cfg):
    """K answers to each of N prompts: N lists of K texts, and their scores (N, K). One that was cut off
    counts as if it ended there."""
    K = cfg.answers_per_prompt
    repeated = [prompt for prompt in prompts for _ in range(K)]
    texts = [a.text for a in answer(policy, enc, repeated, cfg.max_new_tokens, cfg.temperature)]
    scores = torch.tensor(scorer.of_texts(enc, repeated, texts), dtype=torch.float64)
    return [texts[i : i + K] for i in range(0, len(texts), K)], scores.view(len(prompts), K)


def winners_of(prompts, texts, scores):
    """The best answer to each prompt: rows {"prompt", "response", "score"}."""
    best = best_of(scores).tolist()
    return [{"prompt": p, "response": answers[i], "score": s[i].item()}
            for p, answers, s, i in zip(prompts, texts, scores, best, strict=True)]


def fine_tune(stage, model, winners, enc, cfg):
    """Step 1's loss on the winners, the steps of the stage."""
    pad = data.special_id(enc, "pad")
    prompts, responses = ([w[key] for w in winners] for key in ("prompt", "response"))
    rows = data.lay_out(enc, prompts, responses, model.config.block_size)
    steps = cfg.epochs * data.steps_per_epoch(len(rows), cfg.batch_size)
    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    model.train()
    for step in stage.steps(steps):
        order = data.epoch_order(len(rows), step, cfg.batch_size, cfg.seed)
        batch = data.sft_batch([rows[i] for i in share(order)], pad)
        inputs, targets, mask = (x.to(stage.device) for x in batch)
        loss = part(sft_loss(model(inputs), targets, mask), mask.sum().item())
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(model, cfg.clip_grad)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
        stage.log(step, ("loss",), loss=total(loss.item()), grad_norm=grad_norm, lr=lr)
    model.eval()


# ------------------------------------------------------------------------------------------------
# 4. Measure
# ------------------------------------------------------------------------------------------------


def best_of_n_curve(policy, enc, scorer, prompts, cfg):
    """What the best of n of a model's answers is worth, for n = 1, 2, 4, ... K: rows {"n", "score", "gold",
    "gold_gain_low" (95 % sure: what it gains at least on a random answer), "kl_bound", "kl", "kl_error"}."""
    texts, scores = sample_and_score(policy, enc, scorer, prompts, cfg)
    repeated = [p for p, row in zip(prompts, texts, strict=True) for _ in row]
    flat = sum(texts, [])
    logprobs = as_matrix(log_probability(policy, enc, repeated, flat, cfg.temperature), scores)
    gold = None
    if in_tiny_world(prompts):
        gold = as_matrix([gold_score(p, text) for p, text in zip(repeated, flat, strict=True)], scores)
    curve, K = [], cfg.answers_per_prompt
    for n in sorted({*(2**i for i in range(K.bit_length())), K}):
        kl = best_of_n_kl(scores, logprobs, n)
        row = {"n": n, "score": best_of_n(scores, scores, n).mean().item(), "gold": None}
        row |= {"kl_bound": best_of_n_kl_bound(n), "kl": kl.mean().item(), "kl_error": standard_error(kl)}
        if gold is not None:
            of_best = best_of_n(scores, gold, n)
            row["gold"], gain = of_best.mean().item(), of_best - gold.mean(1)
            error = standard_error(gain)
            row["gold_gain_low"] = None if error is None else gain.mean().item() - 1.96 * error
        curve.append(row)
    return curve


def as_matrix(values, like):
    """A list of N K numbers as a tensor of the shape of `like`, (N, K)."""
    return torch.tensor(values, dtype=torch.float64).view(like.shape)


def standard_error(x):
    """Of the mean of (N,) numbers; None for a single one."""
    return x.std().item() / len(x) ** 0.5 if len(x) > 1 else None


# ------------------------------------------------------------------------------------------------
# The rounds
# ------------------------------------------------------------------------------------------------


def one_round(cfg, base, n):
    """The knobs of round n as a stage of its own, NAME.n. --overwrite means the last round."""
    one = replace(cfg, name=f"{base}.{n}", rounds=n, then_ppo=False)
    one.argv = [*cfg.argv, "--rounds", str(n), "--then_ppo", "false"]
    one.overwrite = cfg.overwrite and n == cfg.rounds
    return one


def is_there(one):
    """Whether a round is finished. Raises UserError where it was trained with other knobs than those of
    now."""
    try:
        if one.overwrite or not finished(one, one.name):
            return False
    except MadeAgain as error:
        if error.path.stem != one.name:
            raise
        again = shown_command(["rejection_sampling.py", *one.argv])  # with the flags of now, not of then
        raise MadeAgain(error.path, error.what, again) from None
    now, then = knobs_of(one), record_of(run_folder(one), one.name)["knobs"]
    if news := [f"{key} {then[key]} -> {now[key]}" for key in other_knobs(then, now)]:
        raise data.UserError(f"{one.name} was trained with other knobs ({', '.join(news)}): a --name of its "
                             "own keeps both pipelines")
    return True


def say_finished(cfg, name):
    talk = shown_command(["model.py", f"{run_folder(cfg) / name}.pt"])
    print(f"{name} is finished ({talk} talks to it)")


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv, RULES)
    base = cfg.name or "rs"
    check_reward(cfg)
    for n in range(1, cfg.rounds + 1):
        one = one_round(cfg, base, n)
        newest = f"{base}.{n - 1}" if n > 1 else "sft"
        if is_there(one):
            say_finished(one, one.name)
            continue
        reward = newest_reward(cfg, base, n)  # 0. it goes on learning from rankings of newest's answers
        stage = Stage(one, "rejection_sampling")
        policy, before = load_model(stage.parent(newest), stage.device)
        sft, _ = load_model(stage.parent("sft"), stage.device)
        enc, prompts = stage.encoding(), training_prompts(stage.data, "")
        scorer = load_scorer(stage, reward, enc, one)
        room_for_prompts(cfg.max_new_tokens, policy)
        stage.check_contexts(["sft", newest, *reward_models(reward)])
        count_from_sft(scorer, stage, sft, enc, prompts, cfg)

        if "winners" not in stage.state:
            # 1. sample K answers to each prompt, and score them
            torch.manual_seed(cfg.seed + 1000 * n)
            texts, scores = sample_and_score(policy, enc, scorer, prompts, cfg)
            # 2. keep the best one
            stage.state["winners"] = [*before["state"].get("winners", []), winners_of(prompts, texts, scores)]
        pool = stage.state["winners"] if cfg.pool == "all" else stage.state["winners"][-1:]

        # 3. fine-tune on the winners
        model, _ = load_model(stage.parent("sft" if cfg.start == "sft" else newest), stage.device)
        fine_tune(stage, model, sum(pool, []), enc, cfg)

        # 4. measure
        rows = held_out_prompts(stage.data, cfg.eval_split)
        torch.manual_seed(cfg.seed + 1)
        curve = best_of_n_curve(policy, enc, scorer, [row["prompt"] for row in rows], cfg)
        models = {"SFT": sft}
        for name in (f"{base}.{i}" for i in range(1, n)):
            models[name], _ = load_model(stage.parent(name), stage.device)
        report(stage, cfg, enc, rows, {**models, one.name: model}, scorer, curve, before)

    if cfg.then_ppo:
        ppo_on_top(cfg, base)


if __name__ == "__main__":
    run_main(main)
