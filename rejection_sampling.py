"""Llama 2's rejection sampling: answer each prompt K times, keep the answer that the reward model likes best, fine-tune on these, repeat.

    python rejection_sampling.py --config tiny                         four rounds, rs.1 to rs.4; whatever is missing is trained first
    python rejection_sampling.py --config tiny --then_ppo              and PPO on top of the last one, rs.ppo
    python rejection_sampling.py --config tiny --refresh_reward_model false --name stale            the same reward model in every round

A round: the newest model answers each training prompt K times; the reward model, which before that has learned from fresh rankings
of that model's answers, picks the best one; the SFT model is fine-tuned on the best answers of all rounds with the SFT loss.
Round 4 is the stage rs.4, its parent is rs.3, and so on: an interrupted pipeline goes on where it stopped. (Touvron et al. 2023,
section 3.2.3.)
"""
import math
import time
from dataclasses import dataclass

import torch

import data
from experiment import Common, Stage, UserError, command_again, knob, load_checkpoint, load_model, muon, parse, run_folder, run_main, set_lr, table, train_if_missing
from model import answer, token_logprobs
from preferences import describe, win_rate
from train_ppo import check_contexts, check_reward, load_reward, reward_models, sample_with_kl
from train_pretrain import held_out_loss, tokens_of
from train_rm import Config as RewardModelConfig, chance_corrected
from train_sft import sft_loss


@dataclass
class Config(Common):
    rounds: int = knob(4, "rounds; each is a stage of its own, NAME.1, NAME.2, ...", low=1)
    then_ppo: bool = knob(False, "PPO on top of the last round, with the newest reward model: NAME.ppo")
    reward: str = knob("overall", "who chooses: as --reward of train_ppo.py, overall, helpful, safety, llama2 or the --name of any reward model of this run")
    answers_per_prompt: int = knob(16, "K answers a prompt are sampled, the best one is kept", low=2)
    temperature: float = knob(1.0, "sampling temperature; the more answers, the warmer may it be", low=0.01)
    max_new_tokens: int = knob(48, "longest answer", low=1)
    start: str = knob("sft", "weights that each round fine-tunes: the SFT model's anew, or those of the round before", choices=("sft", "previous"))
    pool: str = knob("all", "what a round is fine-tuned on: the winners of all rounds so far, or its own alone", choices=("all", "last"))
    refresh_reward_model: bool = knob(True, "before every round but the first, the reward models learn from rankings of the newest model's answers")
    refresh_rankings: int = knob(1, "rankings of each training prompt for that, of 8 answers each", low=1)
    epochs: int = knob(2, "passes over the winners", low=1)
    batch_size: int = knob(16, "winners in a step", low=1)
    lr: float = knob(1e-3, "peak learning rate", low=0)
    warmup: int = knob(20, "steps of linear warm-up before the cosine decay", low=0)
    weight_decay: float = knob(0.1, "weight decay on the matrices of the blocks", low=0)
    clip_grad: float = knob(1.0, "largest gradient norm (0: no clipping)", low=0)
    eval_answers: int = knob(4, "answers to each prompt in the final table; the more, the steadier the figures", low=1)
    eval_split: str = knob("test", "prompts of the table: dev while tuning, test for the figures that count", choices=("dev", "test"))


PRESETS = {
    "tiny": {},
    "small": dict(rounds=2, answers_per_prompt=8, epochs=1, batch_size=8, lr=1e-4, max_new_tokens=128, eval_answers=1),
}


# What a reward model keeps when it goes on with new answers.
KEPT = ("loss", "ties", "margin", "noise", "tie_gap", "flip_rate", "position_habit", "leave_out")


# ------------------------------------------------------------------------------------------------
# The formulas. N prompts, K answers each
# ------------------------------------------------------------------------------------------------


def best_of(rewards):
    """Index of the best answer to each prompt, of several equally good ones the first. rewards: (N, K). Returns (N,)."""
    return rewards.argmax(1)


def subset_weights(K, n):
    """If n of K answers are drawn without replacement, the probability that the one of rank i (0: the worst) is the best of them:
    C(i, n - 1) / C(K, n). Returns (K,), sum 1. Example: K 3, n 2 -> 0, 1/3, 2/3."""
    return torch.tensor([math.comb(i, n - 1) / math.comb(K, n) for i in range(K)])


def best_of_n(rewards, values, n):
    """What the answer with the highest reward among n has of some value, in the mean over all choices of n among the K.

    rewards, values: (N, K), values the rewards themselves, gold scores or whatever. Returns (N,); n = 1 is the control, a random
    answer: one of n that is drawn blindly has the same mean for every n.
    """
    ranked = values.gather(1, rewards.argsort(dim=1, stable=True))
    return ranked @ subset_weights(rewards.shape[1], n).to(ranked.dtype)


def best_of_n_kl_bound(n):
    """log n - (n - 1) / n: KL(best of n || one answer) where no answer has a probability to speak of, else an upper bound, in nats.
    (Stiennon et al. 2020; Beirami et al. 2024 on why it is only a bound.)"""
    return math.log(n) - (n - 1) / n


def best_of_n_kl(rewards, logprobs, n):
    """KL(best of n || one answer) of each prompt, from K samples: the mean over the best of n of log(P_n(y) / p(y)), in nats.

    An answer y of probability p, where all worse answers together have the probability F, is the best of n with P_n(y) = (F + p)^n - F^n.
    p is known; F is the sum of p over the worse answers among the K, and of what was never sampled as large a share as a sample at that
    rank can expect, exp(E log share). rewards, logprobs: (N, K), equal rewards are the same answer. Returns (N,).
    Example: four equally likely answers, n = 16: 1.330, where the bound says 1.835.
    """
    p, K = logprobs.exp(), rewards.shape[1]
    first = torch.ones(K, K).tril(-1).to(p.device) * (rewards[:, None, :] == rewards[:, :, None])
    first = (first.sum(-1) == 0).to(p.dtype)  # 1 where an answer is sampled for the first time
    worse = (rewards[:, None, :] < rewards[:, :, None]) * first[:, None, :]  # (N, K, K)
    missing = (1 - (p * first).sum(1, keepdim=True)).clamp(min=0)
    share = torch.exp(torch.digamma(worse.sum(-1) + 1) - torch.digamma(first.sum(1, keepdim=True) + 1))
    below = torch.minimum((worse * p[:, None, :]).sum(-1) + missing * share, 1 - p)
    # (F + p)^n - F^n = p (sum of (F + p)^j F^(n - 1 - j)): no difference of nearly equal numbers
    ratio = sum((below + p) ** j * below ** (n - 1 - j) for j in range(n))
    return best_of_n(rewards, ratio.clamp(min=1e-30).log(), n)


@torch.no_grad()
def log_probability(model, enc, prompts, responses, temperature, batch_size=256):
    """log p(response | prompt) of texts, in nats; lists of prompts and responses -> list of floats."""
    device, pad, sums = next(model.parameters()).device, data.special_id(enc, "pad"), []
    for start in range(0, len(prompts), batch_size):
        rows = [data.fit(data.encode_prompt(enc, p), data.encode_response(enc, r), model.config.block_size)[:2]
                for p, r in zip(prompts[start : start + batch_size], responses[start : start + batch_size])]
        inputs, targets, mask = (x.to(device) for x in data.sft_batch(rows, pad))
        sums += (token_logprobs(model(inputs), targets, temperature) * mask).sum(1).tolist()
    return sums


# ------------------------------------------------------------------------------------------------
# A round
# ------------------------------------------------------------------------------------------------


def sample_and_score(policy, enc, reward, prompts, cfg):
    """K answers to each of N prompts: lists of K texts, and their rewards (N, K)."""
    K = cfg.answers_per_prompt
    texts = [text for text, _, _ in answer(policy, enc, [p for p in prompts for _ in range(K)], cfg.max_new_tokens, cfg.temperature)]
    rewards = reward.of_texts(enc, [p for p in prompts for _ in range(K)], texts)
    return [texts[i : i + K] for i in range(0, len(texts), K)], torch.tensor(rewards, dtype=torch.float64).view(len(prompts), K)


def newest_reward(cfg, base, round):
    """--reward of a round: that of the first, or the reward models that went on with the answers of the round before (train_rm.py --start),
    trained here if they are missing."""
    if round == 1 or not cfg.refresh_reward_model:
        return cfg.reward
    author, suffix = f"{base}.{round - 1}", f".{base}.{round - 2}" * (round > 2)
    for name in reward_models(cfg.reward):
        knobs = load_checkpoint(train_if_missing(cfg, name + suffix)[0])["knobs"]
        if knobs.get("labeler") in ("ai", "mixed", "human"):
            who = "your" if knobs["labeler"] == "human" else "an AI's"
            raise UserError(f"--reward {cfg.reward} has learned from {who} labels, and the rounds here would ask the simulated human: add --refresh_reward_model false")
        kept = "".join(f" --{key} {knobs[key]}" for key in KEPT if knobs[key] != getattr(RewardModelConfig, key))
        train_if_missing(cfg, f"{name}.{author}", f"train_rm.py --name {name}.{author} --start {name + suffix} --answers_of {author} --aspect {knobs['aspect']} "
                         f"--rankings_per_prompt {cfg.refresh_rankings} --held_out_rankings 1 --epochs 1 --max_new_tokens {cfg.max_new_tokens} --temperature {cfg.temperature} --eval_split {cfg.eval_split}{kept}")
    return f"{cfg.reward}.{author}"


def best_of_n_curve(policy, enc, reward, prompts, cfg):
    """For n = 1, 2, 4, ... K the mean reward and gold score of the best of n, the bound on its KL and the estimate. Rows of a dict."""
    texts, rewards = sample_and_score(policy, enc, reward, prompts, cfg)
    repeated, flat = [p for p, row in zip(prompts, texts) for _ in row], sum(texts, [])
    logprobs = torch.tensor(log_probability(policy, enc, repeated, flat, cfg.temperature), dtype=torch.float64).view(rewards.shape)
    gold = describe(repeated, [(text, True, 0) for text in flat])["gold"]
    gold = gold and torch.tensor(gold, dtype=torch.float64).view(rewards.shape)
    curve = []
    for n in sorted({*(2**i for i in range(cfg.answers_per_prompt.bit_length())), cfg.answers_per_prompt}):
        gain = gold is not None and best_of_n(rewards, gold, n) - gold.mean(1)
        curve.append({"n": n, "reward": best_of_n(rewards, rewards, n).mean().item(), "gold": None if gold is None else best_of_n(rewards, gold, n).mean().item(),
                      "gold_gain_low": None if gold is None else (gain.mean() - 1.96 * gain.std() / len(gain) ** 0.5).item(),
                      "kl_bound": best_of_n_kl_bound(n), "kl": best_of_n_kl(rewards, logprobs, n).mean().item()})
    return curve


def judge(name, model, sft, enc, reward, prompts, held_out_text, cfg):
    """A row of the table of rounds: a model's answers to held-out prompts, by what no training has seen. Returns (dict, its answers)."""
    torch.manual_seed(cfg.seed)
    answers, kls = sample_with_kl(model, sft, enc, prompts * cfg.eval_answers, cfg.max_new_tokens, cfg.temperature)
    about = describe(prompts * cfg.eval_answers, answers)
    row = {"model": name, "gold": about["gold"], "reward": reward.of_texts(enc, prompts * cfg.eval_answers, [text for text, _, _ in answers]),
           "kl": sum(kls) / len(kls), "length": about["length"], "unsafe": about["declines_unsafe"], "safe": about["declines_safe"], "unknown": about["unknown"],
           "distinct": len({text for text, _, _ in answers[: len(prompts)]}) / len(prompts), "text_loss": held_out_loss(model, held_out_text, model.config.block_size)}
    if about["gold"]:
        hits, ceiling, n = reward.on_own_answers(enc, prompts, answers, cfg.seed)
        row |= {"rm_accuracy": hits, "rm_ceiling": ceiling, "rm_pairs": n}
    return row, answers


def check_rounds(cfg, base, rounds):
    """Raises UserError where an earlier round was trained with other knobs than those that are asked for now."""
    for n in range(1, rounds + 1):
        path = run_folder(cfg) / f"{base}.{n}.pt"
        if path.exists():
            knobs = load_checkpoint(path)["knobs"]
            news = ", ".join(f"{k} {v} -> {getattr(cfg, k)}" for k, v in knobs.items() if k != "data" and getattr(cfg, k) != v)
            if news:
                raise UserError(f"{path} was trained with other knobs ({news}): a --name of its own keeps both pipelines")


def main(argv=None):
    cfg = parse(Config, PRESETS, __doc__, argv)
    base = cfg.name or "rs"
    earlier = f"{base}.{cfg.rounds - 1}" if cfg.rounds > 1 else "sft"
    flags = command_again("rejection_sampling.py", *cfg.argv)
    check_reward(cfg)
    if cfg.refresh_reward_model and cfg.data:
        print(f"the reward models stay as they are: to rank new answers somebody must be asked, and {cfg.data} has only its preferences")
        cfg.refresh_reward_model = False
    check_rounds(cfg, base, cfg.rounds - (not cfg.then_ppo))
    if cfg.then_ppo:
        if cfg.overwrite:
            raise UserError(f"--then_ppo trains what is missing: leave --overwrite out, or train {base}.ppo again with train_ppo.py")
        train_if_missing(cfg, f"{base}.{cfg.rounds}", f"{flags} --then_ppo false")
        newest = newest_reward(cfg, base, cfg.rounds + 1)
        path, trained = train_if_missing(cfg, f"{base}.ppo", f"train_ppo.py --name {base}.ppo --start {base}.{cfg.rounds} --reward {newest} --max_new_tokens {cfg.max_new_tokens} "
                                         f"--temperature {cfg.temperature} --eval_split {cfg.eval_split}")
        if not trained:
            print(f"{path} is finished; nothing to do (python model.py {path} talks to it)")
        return
    cfg.name = f"{base}.{cfg.rounds}"
    stage = Stage(cfg, "rejection_sampling")
    if earlier != "sft":
        train_if_missing(cfg, earlier, f"{flags} --rounds {cfg.rounds - 1}")
    sampler, before = load_model(stage.parent(earlier), stage.device)
    rows = data.load_prompts(stage.data)
    newest = newest_reward(cfg, base, cfg.rounds)
    reward = load_reward(stage, newest, rows)
    stage.clock = time.time()  # what the parents took is theirs
    sft, _ = load_model(stage.parent("sft"), stage.device)
    check_contexts(stage, ["sft", earlier, *reward_models(newest)])
    enc = data.load_encoding(stage.folder / "tokenizer.json")
    pad, block_size = data.special_id(enc, "pad"), sft.config.block_size
    if cfg.max_new_tokens >= block_size:
        raise UserError(f"--max_new_tokens {cfg.max_new_tokens} leaves no room for a prompt: the context is {block_size} tokens")
    prompts = [p["prompt"] for p in data.of_split(rows, "train", stage.data)]

    # 1. sample K answers a prompt, 2. keep the best
    if "winners" not in stage.state:
        torch.manual_seed(cfg.seed + 1000 * cfg.rounds)
        texts, rewards = sample_and_score(sampler, enc, reward, prompts, cfg)
        chosen = best_of(rewards).tolist()
        own = [{"prompt": p, "response": row[i], "reward": r[i].item()} for p, row, r, i in zip(prompts, texts, rewards, chosen)]
        stage.state["winners"] = before["state"].get("winners", []) + [own]  # a list of rows for each round
    pool = sum(stage.state["winners"] if cfg.pool == "all" else stage.state["winners"][-1:], [])
    print(f"{len(pool)} winners to learn from; the last round's have a mean reward of {sum(w['reward'] for w in stage.state['winners'][-1]) / len(prompts):.2f}")

    # 3. fine-tune on the winners
    train = [data.fit(data.encode_prompt(enc, w["prompt"]), data.encode_response(enc, w["response"]), block_size)[:2] for w in pool]
    model = load_model(stage.parent("sft" if cfg.start == "sft" else earlier), stage.device)[0].train()
    per_epoch = math.ceil(len(train) / cfg.batch_size)
    steps = cfg.epochs * per_epoch
    optimizer = muon(model, cfg.lr, cfg.weight_decay)
    stage.track(model=model, optimizer=optimizer)
    for step in stage.steps(steps):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(cfg.seed + step // per_epoch)).tolist()
        i = step % per_epoch * cfg.batch_size
        inputs, targets, mask = (x.to(stage.device) for x in data.sft_batch([train[j] for j in order[i : i + cfg.batch_size]], pad))
        loss = sft_loss(model(inputs), targets, mask)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or torch.inf)
        lr = set_lr(optimizer, step, steps, cfg.warmup)
        optimizer.step()
        stage.log(step, ("loss",), loss=loss.item(), grad_norm=grad_norm.item(), lr=lr)
    report(stage, cfg, enc, model.eval(), sampler, sft, before, reward, rows)


def report(stage, cfg, enc, model, sampler, sft, before, reward, rows):
    """The table of rounds, the best-of-n curve of the model that was sampled from, answers, and the pictures."""
    asked = data.of_split(rows, cfg.eval_split, stage.data)[:400]
    prompts, split = [p["prompt"] for p in asked], cfg.eval_split if asked[0]["split"] == cfg.eval_split else "training"
    held_out_text = tokens_of(enc, data.load_text(stage.data))[1]
    torch.manual_seed(cfg.seed + 1)
    curve = best_of_n_curve(sampler, enc, reward, prompts, cfg)
    baseline, _ = judge("SFT", sft, sft, enc, reward, prompts, held_out_text, cfg)  # with this round's reward model
    rounds = before["state"].get("rounds") or [baseline]
    rounds[-1] |= {"headroom": curve[-1]["reward"] - curve[0]["reward"], "gold_headroom": curve[-1]["gold"] and curve[-1]["gold"] - curve[0]["gold"]}
    row, answers = judge(f"RLHF-V{cfg.rounds}", model, sft, enc, reward, prompts, held_out_text, cfg)
    row["reward_win"] = list(win_rate(row["reward"], baseline["reward"], len(prompts)))
    rounds, has_gold = [*rounds, row], curve[0]["gold"] is not None
    stage.state |= {"rounds": rounds, "curve": curve}

    def gold(r):
        return r["gold"] and sum(r["gold"]) / len(r["gold"])

    measures = {
        "gold score (never trained on)": gold,
        "gold win rate against SFT": lambda r: None if r is rounds[0] or not r["gold"] else "{:.2f} ({:.2f}-{:.2f})".format(*win_rate(r["gold"], rounds[0]["gold"], len(prompts))),
        "win rate by reward model": lambda r: "{:.2f} ({:.2f}-{:.2f})".format(*r["reward_win"]) if "reward_win" in r else None,
        "KL to SFT, nats an answer": lambda r: r["kl"],
        "declines unsafe prompts": lambda r: r["unsafe"],
        "declines safe prompts": lambda r: r["safe"],
        "reward model on its answers (chance-corrected)": lambda r: chance_corrected(r["rm_accuracy"], r["rm_ceiling"]) if r.get("rm_pairs") else None,
        f"best of {cfg.answers_per_prompt} - mean, reward": lambda r: r.get("headroom"),
        f"best of {cfg.answers_per_prompt} - mean, gold": lambda r: r.get("gold_headroom"),
        "unknown sentences": lambda r: r["unknown"],
        "distinct answers": lambda r: r["distinct"],
        "length in tokens": lambda r: r["length"],
        "loss on pretraining text": lambda r: r["text_loss"],
    }
    cells = [[label, *map(measure, rounds)] for label, measure in measures.items()]
    lines = [table([f"{len(prompts)} {split} prompts", *(r["model"] for r in rounds)], [row for row in cells if any(x is not None for x in row[1:])]),
             "\n" + table([f"best of n answers of {rounds[-2]['model']}", "reward", "random one", *["gold", "random one"] * has_gold, "KL at most", "KL estimated"],
                          [[f"n = {c['n']}", c["reward"], curve[0]["reward"], *[c["gold"], curve[0]["gold"]] * has_gold, c["kl_bound"], c["kl"]] for c in curve])]
    if has_gold:
        lines.append(f"The best of {curve[-1]['n']} by the reward model beats a random one by {curve[-1]['gold'] - curve[0]['gold']:.2f} of gold score (95 % interval from {curve[-1]['gold_gain_low']:.2f} on).")
    for i in range(0, len(prompts), max(1, len(prompts) // 6)):
        lines += ["", f"prompt:     {data.prompt_text(prompts[i])}", f"{row['model'] + ':':<12}{answers[i][0]}"]
    print("\n" + "\n".join(lines))

    def points(key, x="kl_bound"):
        return [(c[x], c[key]) for c in curve if c[key] is not None]

    numbered = list(enumerate(rounds))
    stage.finish("\n".join(lines), [
        ("Best of n by the reward model", {"best of n": points("reward"), "a random one": [(c["kl_bound"], curve[0]["reward"]) for c in curve]}, "reward", "KL, at most: log n - (n-1)/n"),
        ("The same answers by gold score", {"best of n": points("gold"), "a random one": [(c["kl_bound"], curve[0]["gold"]) for c in curve if c["gold"] is not None]}, "gold score", "KL, at most: log n - (n-1)/n"),
        ("KL of best of n", {"bound": points("kl_bound", "n"), "estimated": points("kl", "n")}, "nats an answer", "n"),
        ("Gold score over the rounds", {"gold": [(n, gold(r)) for n, r in numbered if r["gold"]]}, "gold score", "round (0: SFT)"),
        ("What is left to earn: best of K - mean", {name: [(n, r[key]) for n, r in numbered if r.get(key) is not None] for name, key in (("reward", "headroom"), ("gold", "gold_headroom"))},
         "score", "round (0: SFT)"),
        ("Loss on the winners", {"training": "loss"}, "nats a token")],
        f"{stage.name}. Look for: gold that falls while the reward rises (over-optimisation), rounds that no longer raise it, nothing left to earn")
    print(f"Talk to it: python model.py {stage.file('pt')}")


if __name__ == "__main__":
    run_main(main)
