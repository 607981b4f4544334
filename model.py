"""One small GPT for every role in RLHF: language model, policy, critic and reward model.

The architecture is GPT-2's (Radford et al. 2019): learned positions, pre-LayerNorm, tanh-GELU, embeddings
tied. Two optional scalar heads make of the same trunk a critic (value_head, a number a token) or a reward
model (reward_head, a number a sequence). B batch, T time, P prompt, R response, V vocabulary, C channels.

    python model.py runs/tiny/ppo.pt                             talk to a checkpoint, or to several
    python model.py runs/tiny/rm.pt --prompt "What is a dog?" --response "A dog is a furry mammal."
    python model.py runs/tiny/sft.pt --against runs/tiny/ppo.pt  you judge the two, blind
"""
import lab.before_torch
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # longest sequence, prompt and response together
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0  # only in training; PPO has it off in all its models
    value_head: bool = False
    reward_head: bool = False


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, positions, cache=None):
        """x: (B, T, C), the tokens at positions (1 or B, T); with a cache also those before them are seen."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D): H heads of D channels
        if cache is not None:
            k, v = remember(cache, k, v, positions)
        y = attention(q, k, v, positions)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


def attention(q, k, v, positions):
    """softmax(q k' / sqrt(D)) v, where a token sees itself and what stands before it. (Vaswani et al. 2017,
    eq. 1.) q: (B, H, T, D), tokens at positions (1 or B, T); k, v: (B, H, S, D), at positions 0 to S - 1.
    Returns (B, H, T, D). Two plain products are as fast here as torch's fused attention, or faster."""
    later = torch.arange(k.shape[2], device=k.device) > positions[:, None, :, None]  # (1 or B, 1, T, S)
    hide = torch.zeros_like(later, dtype=q.dtype).masked_fill(later, -torch.inf)
    scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2) + hide
    return scores.softmax(-1) @ v


def remember(cache, k, v, positions):
    """Write keys and values of new tokens (B, H, T, D) into the cache, in row b at positions[b] (T). Returns
    the keys and values (B, H, S, D) of all slots up to the last of them; a slot behind a row's own tokens may
    hold anything."""
    keys, values = cache  # each (B, H, longest, D)
    rows = torch.arange(len(k), device=k.device)[:, None]
    keys[rows, :, positions] = k.transpose(1, 2)
    values[rows, :, positions] = v.transpose(1, 2)
    S = int(positions.max()) + 1
    return keys[:, :, :S], values[:, :, :S]


class Block(nn.Module):
    """Pre-LayerNorm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.ln_1 = nn.LayerNorm(C)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(C)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, positions, cache=None, read=...):
        """read: index of those of the B x T positions that are wanted; no others go through the MLP."""
        x = (x + self.drop(self.attn(self.ln_1(x), positions, cache)))[read]
        inner = F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.drop(self.mlp.c_proj(inner))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} must be a multiple of n_head {config.n_head}")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        self.init_weights()
        if config.value_head:  # zero: before training the critic says nothing (lm-human-preferences)
            self.value_head = nn.Linear(config.n_embd, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        if config.reward_head:
            self.reward_head = nn.Linear(config.n_embd, 1)
            nn.init.normal_(self.reward_head.weight, std=1 / math.sqrt(config.n_embd + 1))
            nn.init.zeros_(self.reward_head.bias)
            self.register_buffer("score_gain", torch.tensor(1.0))  # see set_scale
            self.register_buffer("score_bias", torch.tensor(0.0))

    def init_weights(self):
        """GPT-2 draws from N(0, 0.02), made for 768 channels and more; 1 / sqrt(C) keeps narrow models
        lively. Projections back into the residual stream start smaller, for 2 n_layer of them add up."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02 if name == "wpe.weight" else self.config.n_embd**-0.5
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def hidden(self, tokens, caches=None, positions=None, read=...):
        """tokens: (B, T) -> the trunk's last hidden states (B, T, C), or only those at `read`. Right padding
        needs no mask: under causal attention no real position sees what stands behind it."""
        if positions is None:
            T, longest = tokens.shape[1], self.config.block_size
            if longest < T:
                raise ValueError(f"{T} tokens do not fit the model's context of {longest}")
            positions = torch.arange(T, device=tokens.device)[None]
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for i, block in enumerate(self.h):
            x = block(x, positions, caches and caches[i], read if block is self.h[-1] else ...)
        return self.ln_f(x)

    def forward(self, tokens):
        """tokens: (B, T) -> logits (B, T, V); logits[:, t] predict token t + 1."""
        return self.lm_head(self.hidden(tokens))

    def score(self, tokens, lengths):
        """Score of whole sequences, read at the last real token and never at the padding.

        tokens: (B, T) right-padded; lengths: (B,) real tokens of each row. Returns (B,), in log-odds."""
        last = self.hidden(tokens, read=(torch.arange(len(tokens)), lengths - 1))
        return self.score_gain * self.reward_head(last).squeeze(-1) + self.score_bias

    def set_scale(self, gain, bias):
        """From now on score = gain * what the head says + bias, a known scale: 0 is the mean of the
        demonstrations, and differences are log-odds (calibrate in train_rm.py)."""
        self.score_gain.fill_(gain)
        self.score_bias.fill_(bias)


def with_heads(model, **heads):
    """A copy of the model with other heads (value_head=True, reward_head=True); the trunk's weights are
    copied, heads that it lacks are initialised, heads that are not asked for are dropped."""
    config = GPTConfig(**{**vars(model.config), "value_head": False, "reward_head": False, **heads})
    new = GPT(config).to(next(model.parameters()).device)
    known = {name: x for name, x in model.state_dict().items() if name in new.state_dict()}
    new.load_state_dict(known, strict=False)
    return new


def log_softmax(logits, temperature=1.0):
    """Log-probabilities of the distribution that is sampled from: the one place where a temperature enters.
    Temperature 0 means greedy: its log-probabilities are those at temperature 1. Shapes as given."""
    return torch.log_softmax(logits / (temperature or 1.0), -1)


def token_logprobs(logits, tokens, temperature=1.0):
    """log p(token). logits: (..., V); tokens: (...). Returns (...), in nats."""
    return log_softmax(logits, temperature).gather(-1, tokens[..., None]).squeeze(-1)


def join(prompts, prompt_lengths, responses, response_mask, pad):
    """Put each response right behind its own prompt.

    prompts: (B, P); prompt_lengths: (B,); responses, response_mask: (B, R).
    Returns tokens (B, P + R), padded on the right, and lengths (B,).
    Example: prompt `a b _`, response `c d` -> `a b c d _`, length 4.
    """
    B, R = responses.shape
    tokens = torch.cat([prompts, torch.full((B, R), pad, device=prompts.device)], 1)
    places = prompt_lengths[:, None] + torch.arange(R, device=prompts.device)
    tokens.scatter_(1, places, torch.where(response_mask.bool(), responses, pad))
    return tokens, prompt_lengths + response_mask.sum(1).long()


def response_hidden(model, tokens, prompt_lengths, R):
    """Hidden states that predict the R response tokens: for the token at t, the one at t - 1. (B, R, C)."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    places = prompt_lengths[:, None] - 1 + torch.arange(R, device=tokens.device)
    return model.hidden(tokens, read=(rows, places))


def draw(logprobs, temperature):
    """One token a row from log-probabilities (B, V). Returns (B,). Laid end to end, the probabilities fill
    the line from 0 to 1, and a uniform number falls into one of them: faster here than torch.multinomial."""
    if temperature == 0:
        return logprobs.argmax(-1)
    cdf = logprobs.exp().cumsum(-1)
    uniform = torch.rand(len(logprobs), 1, device=logprobs.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, uniform, right=True).squeeze(1).clamp(max=logprobs.shape[1] - 1)


@torch.no_grad()
def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    """Sample one answer a row. Every row writes at its own length: prompts of any length share a batch.

    prompts: (B, P) right-padded; prompt_lengths: (B,); temperature 0 is greedy.
    Returns, all (B, R) and left-aligned, R the length of the longest answer: responses (long, pad behind
    EOS), response_mask (float, 1 on the answer, its EOS included), logprobs (of the very distribution that
    was sampled, as by log_softmax; 0 behind EOS). Dropout is off; model and arguments stay as they were.
    Raises ValueError where P + max_new_tokens is more than the context.
    """
    (B, P), device = prompts.shape, prompts.device
    longest = P + max_new_tokens
    if longest > model.config.block_size:
        raise ValueError(f"prompt of {P} and answer of {max_new_tokens} tokens do not fit the context "
                         f"of {model.config.block_size}")
    was_training = model.training
    model.eval()
    responses = torch.full((B, max_new_tokens), pad, device=device)
    mask, logprobs = torch.zeros(2, B, max_new_tokens, device=device)
    size = (B, model.config.n_head, longest, model.config.n_embd // model.config.n_head)
    caches = [(torch.zeros(size, device=device), torch.zeros(size, device=device)) for _ in model.h]
    rows, lengths = torch.arange(B, device=device), prompt_lengths  # of the answers that go on
    hidden = model.hidden(prompts, caches, read=(rows, lengths - 1))
    going = torch.ones(B, dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        logp = log_softmax(model.lm_head(hidden), temperature)
        token = draw(logp, temperature)
        responses[rows, t] = token.where(going, pad)
        mask[rows, t] = going.float()
        logprobs[rows, t] = logp.gather(1, token[:, None]).squeeze(1).where(going, 0.0)
        going = going & (token != eos)
        if not going.any():
            break
        if going.sum() < 0.75 * len(rows):  # answers that are over leave the batch, some at a time
            rows, lengths, token = rows[going], lengths[going], token[going]
            caches = [(keys[going], values[going]) for keys, values in caches]
            going = going[going]
        hidden = model.hidden(token[:, None], caches, lengths[:, None] + t)[:, 0]
    model.train(was_training)
    R = int(mask.sum(1).max())
    return responses[:, :R], mask[:, :R], logprobs[:, :R]


if __name__ == "__main__":
    from lab.cli import run_main
    from lab.talk import main

    run_main(main, stopped="")
