"""The work that tests/benchmark.py measures: training, sampling, PPO, and how many operations each needs.

Random weights and random tokens; no answer ends early. Sizes are those of tests/peers.py, which does the
same work with other projects.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from conftest import ROOT  # noqa: F401  (where the imports below are found)
from peers import ANSWER, PAIRS, PPO, PROMPT, SIZES, STEPS, shape

import data
import train_ppo
import train_pretrain
from lab.machine import pick_dtype
from lab.optim import adam, clip_gradients, muon
from model import GPT, GPTConfig, generate, with_heads
from train_rm import bradley_terry_loss
from world.reward import Scorer


@dataclass
class Work:
    run: Callable  # does the unit of work `times` times
    does: str  # what a unit is, its forward and backward passes
    tokens: int  # of a unit
    operations: int  # of a unit: what its matrix products cannot do without
    times: int = 1


# ------------------------------------------------------------------------------------------------
# Operations of matrix products: a multiplication and an addition are two. A backward pass needs those of two
# forward passes. Optimizers, softmax, norms and sampling are not counted.
# ------------------------------------------------------------------------------------------------


def blocks(s, tokens, context, read=None):
    """Operations of a forward pass through all blocks: so many tokens, each of which looks at `context`. Only
    those whose last state is read, by default all, go through the last MLP."""
    C, read = s["n_embd"], tokens if read is None else read
    linear = 12 * C**2  # q, k, v: 3 C^2, their projection: C^2, the MLP: 8 C^2
    attention = 2 * context * C  # a product with the keys, one with the values
    return 2 * s["n_layer"] * tokens * (linear + attention) - 2 * (tokens - read) * 8 * C**2


def head(s, tokens):
    """Operations from the last hidden states of so many tokens to their logits."""
    return 2 * tokens * s["n_embd"] * s["vocab_size"]


def sampled(s, rows, prompt, answer):
    """Operations of answers with a cache: the prompt at once, then a token at a time. The last token of an
    answer is read by nobody."""
    rest = blocks(s, rows * (answer - 1), prompt + answer / 2)
    return blocks(s, rows * prompt, prompt, rows) + rest + head(s, rows * answer)


# ------------------------------------------------------------------------------------------------
# Training and sampling
# ------------------------------------------------------------------------------------------------


def adamw(model, lr, weight_decay):
    """nanoGPT's optimizer, in place of ours."""
    return torch.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=weight_decay, fused=True)


def training(s, rows, times=1, optimizer_of=muon):
    """A step of train_pretrain.py on rows x context tokens."""
    model, T = GPT(GPTConfig(**s)).train(), s["block_size"]
    use_bfloat16 = pick_dtype("auto", "cpu", "pretrain") == "bfloat16"
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=use_bfloat16)
    optimizer = optimizer_of(model, 1e-3, 0.1)
    windows = torch.randint(s["vocab_size"], (rows, T + 1))

    def run():
        for _ in range(times):
            with autocast():
                loss = train_pretrain.lm_loss(model(windows[:, :-1]), windows[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(model, 1.0)
            with autocast():
                optimizer.step()

    needed = 3 * (blocks(s, rows * T, T) + head(s, rows * T))
    return Work(run, f"1 forward, 1 backward pass of {rows} x {T} tokens", rows * T, needed, times)


def preset_step(times=10):
    """A step of pretraining as the tiny preset has it."""
    cfg = train_pretrain.Config()
    s = {name: getattr(cfg, name) for name in shape("tiny")}
    return training(s, cfg.batch_size, times)


def never_ends(model, eos):
    """The model, which from now on never says EOS."""
    with torch.no_grad():
        row = model.wte.weight[eos]
        model.ln_f.bias -= 30 * row / row.pow(2).sum()
    return model.eval()


def sampling(s, rows):
    """generate of model.py, to the end of the context."""
    n, eos = s["block_size"] - PROMPT, s["vocab_size"] - 1
    model = never_ends(GPT(GPTConfig(**s)), eos)
    prompts, lengths = torch.randint(eos, (rows, PROMPT)), torch.full((rows,), PROMPT)

    def run():
        _, mask, _ = generate(model, prompts, lengths, n, 1.0, eos, eos)
        assert mask.sum() == rows * n, "an answer ended early"

    does = f"{rows} answers of {n} tokens to {PROMPT} of a prompt, with their log-probabilities"
    return Work(run, does, rows * n, sampled(s, rows, PROMPT, n))


# ------------------------------------------------------------------------------------------------
# PPO and the reward model
# ------------------------------------------------------------------------------------------------


def tokens_of_bytes(vocab_size):
    """A tokenizer of exactly so many tokens: bytes, pairs of bytes, our special tokens."""
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {bytes(divmod(i, 256)): i for i in range(256, vocab_size - len(data.SPECIAL))}
    return data.make_encoding(ranks)


class Players:
    """All that an iteration of train_ppo.py needs: policy, critic, reference, reward model, prompts."""

    def __init__(self, s, answers, critic="separate", epochs=1, minibatches=1):
        part = answers // minibatches
        self.cfg = train_ppo.Config(critic=critic, batch_size=answers, max_new_tokens=ANSWER,
                                    ppo_epochs=epochs, minibatch_size=part, micro_batch_size=part)
        self.enc = tokens_of_bytes(s["vocab_size"])
        self.reference = never_ends(GPT(GPTConfig(**s)), self.enc.eot_token)
        self.scorer = Scorer("overall", [with_heads(self.reference, reward_head=True).eval()])
        self.agent = train_ppo.make_agent(self.cfg, self.reference, self.scorer)
        self.ids = torch.randint(256, (answers, PROMPT)).tolist()

    def rollout(self):
        """Answers and all that the updates learn from: a Batch."""
        batch = train_ppo.rollout(self.agent, self.reference, self.scorer, self.enc, ["?"] * len(self.ids),
                                  self.ids, self.cfg, 0.05)
        assert batch.mask.sum() == len(self.ids) * ANSWER, "an answer ended early"
        return batch


def rollout(s, answers):
    """Answers, their scores and advantages: no updates."""
    T = PROMPT + ANSWER
    needed = sampled(s, answers, PROMPT, ANSWER) + head(s, answers * ANSWER)  # the reference has a head, too
    needed += 2 * blocks(s, answers * T, T, answers * ANSWER)  # reference and critic
    needed += blocks(s, answers * (T + 1), T + 1, answers)  # the reward model also reads an EOS
    does = f"sampling; 1 forward pass each of reference, reward model and critic, {answers} x {T} tokens"
    return Work(Players(s, answers).rollout, does, answers * ANSWER, needed)


def ppo_iteration(s, critic, answers, epochs, minibatches):
    """rollout and update of train_ppo.py."""
    players = Players(s, answers, critic, epochs, minibatches)
    optimizer = adam(*((network, 1e-5) for network in players.agent.networks))

    def run():
        train_ppo.update(players.agent, optimizer, players.rollout(), players.cfg)

    before, T, networks = rollout(s, answers), PROMPT + ANSWER, len(players.agent.networks)
    read = answers * ANSWER
    updates = 3 * epochs * (networks * blocks(s, answers * T, T, read) + head(s, read))
    trained = "policy and critic" if critic == "separate" else "policy and critic in one"
    does = (f"{before.does}; {epochs} x {minibatches} optimizer steps, in each 1 forward, 1 backward pass of "
            f"{trained}, {answers // minibatches} x {T} tokens")
    return Work(run, does, before.tokens, before.operations + updates)


def reward_steps(s, pairs, T, times=1):
    """Steps of train_rm.py on pairs, without its next-token loss on text."""
    model = GPT(GPTConfig(**s, reward_head=True)).train()
    optimizer = muon(model, 1e-3)
    tokens, lengths = torch.randint(s["vocab_size"], (2 * pairs, T)), torch.full((2 * pairs,), T)

    def run():
        for _ in range(times):
            scores = model.score(tokens, lengths)
            loss = bradley_terry_loss(scores[:pairs], scores[pairs:])
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(model, 1.0)
            optimizer.step()

    does = f"1 forward, 1 backward pass of {2 * pairs} x {T} tokens"
    return Work(run, does, 2 * pairs * T, 3 * blocks(s, 2 * pairs * T, T, 2 * pairs), times)


# ------------------------------------------------------------------------------------------------
# All of it
# ------------------------------------------------------------------------------------------------


def all_work():
    """(name, what makes the Work, what a peer is asked for: [kind, ...], or None)."""
    yield "pretraining step, tiny preset", preset_step, None
    for size in SIZES:
        s, rows = shape(size), SIZES[size]["rows"]
        for with_adamw, optimizer in (("", muon), (", with AdamW", adamw)):
            yield (f"training step, {size}-bench, {rows} x {s['block_size']}{with_adamw}",
                   lambda s=s, rows=rows, times=STEPS[size], optimizer=optimizer: training(
                       s, rows, times, optimizer), ["train", size])
    for size, rows in (("tiny", 32), ("tiny", 128), ("small", 32)):
        yield (f"sampling, {size}-bench, {rows} at a time",
               lambda size=size, rows=rows: sampling(shape(size), rows), ["sample", size, rows])
    for critic in ("separate", "shared"):
        less = " (less work than TRL's)" if critic == "shared" else ""
        yield (f"PPO iteration, {critic} critic{less}",
               lambda critic=critic: ppo_iteration(shape("tiny"), critic, **PPO), ["ppo"])
    yield (f"reward-model step, {PAIRS['pairs']} pairs x {PAIRS['tokens']}",
           lambda: reward_steps(shape("tiny"), PAIRS["pairs"], PAIRS["tokens"], PAIRS["steps"]), ["reward"])
