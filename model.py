"""One small GPT for every role in RLHF: language model, policy, critic and reward model.

The architecture is GPT-2's (Radford et al. 2019): learned positions, pre-LayerNorm, tanh-GELU, tied
embeddings. Two optional scalar heads turn the same trunk into a critic (value_head, one number a
token) or a reward model (reward_head, one number a sequence). Shapes: B batch, T time, P prompt,
R response, V vocabulary, C channels.

    python model.py runs/tiny/ppo.pt                                    talk to a checkpoint
    python model.py runs/tiny/ppo.pt --prompt "A dog is"                one answer
    python model.py runs/tiny/rm.pt --prompt "A dog is" --response "man's best friend."     its score
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int = 96  # longest sequence, prompt and response together
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
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

    def forward(self, x, cache=None, positions=None):
        """x: (B, T, C). With a cache (keys, values), each (B, H, S, D): row b writes its keys at positions[b]
        (B, T) and sees every slot up to there; slots behind it may hold anything. H heads of D channels."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            keys, values = cache
            rows = torch.arange(B, device=x.device)[:, None]
            keys[rows, :, positions] = k.transpose(1, 2)
            values[rows, :, positions] = v.transpose(1, 2)
            S = int(positions.max()) + 1
            ahead = torch.arange(S, device=x.device) > positions[:, None, :, None]  # (B, 1, T, S): True where a token would look into the future
            weights = (q @ keys[:, :, :S].transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(ahead, -torch.inf).softmax(-1)
            y = weights @ values[:, :, :S]  # the formula of the fused kernel above, which is 5 to 10 % faster and knows no cache
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Pre-LayerNorm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(config.n_embd, 4 * config.n_embd),
                                  "c_proj": nn.Linear(4 * config.n_embd, config.n_embd)})
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, positions=None):
        x = x + self.drop(self.attn(self.ln_1(x), cache, positions))
        return x + self.drop(self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")))


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
        # GPT-2 draws from N(0, 0.02), made for 768 channels and more; 1 / sqrt(C) keeps narrow models lively. Projections
        # back into the residual stream start smaller, for 2 n_layer of them add up.
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02 if name == "wpe.weight" else config.n_embd**-0.5
                nn.init.normal_(p, std=std / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        if config.value_head:  # zero: before training the critic says nothing (lm-human-preferences)
            self.value_head = nn.Linear(config.n_embd, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        if config.reward_head:
            self.reward_head = nn.Linear(config.n_embd, 1)
            nn.init.normal_(self.reward_head.weight, std=1 / math.sqrt(config.n_embd + 1))
            nn.init.zeros_(self.reward_head.bias)
            # score = gain * raw + bias, set once after training and then frozen: scores of a known scale
            self.register_buffer("reward_gain", torch.tensor(1.0))
            self.register_buffer("reward_bias", torch.tensor(0.0))

    def hidden(self, tokens, caches=None, positions=None):
        """tokens: (B, T) -> the trunk's last hidden states (B, T, C). Right padding needs no mask: under
        causal attention no real position sees what stands behind it."""
        if positions is None:
            if tokens.shape[1] > self.config.block_size:
                raise ValueError(f"{tokens.shape[1]} tokens do not fit the model's context of {self.config.block_size}")
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for i, block in enumerate(self.h):
            x = block(x, caches and caches[i], positions)
        return self.ln_f(x)

    def forward(self, tokens):
        """tokens: (B, T) -> logits (B, T, V); logits[:, t] predict token t + 1."""
        return self.lm_head(self.hidden(tokens))

    def reward(self, tokens, lengths):
        """Score of whole sequences, read at the last real token and never at the padding.

        tokens: (B, T) right-padded; lengths: (B,) real tokens of each row. Returns (B,)."""
        last = self.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return self.reward_gain * self.reward_head(last).squeeze(-1) + self.reward_bias


def with_heads(model, **heads):
    """A copy of the model with other heads (value_head=True, reward_head=True); the trunk's weights are
    copied, heads that it lacks are initialised, heads that are not asked for are dropped."""
    config = GPTConfig(**{**vars(model.config), "value_head": False, "reward_head": False, **heads})
    new = GPT(config).to(next(model.parameters()).device)
    new.load_state_dict({k: v for k, v in model.state_dict().items() if k in new.state_dict()}, strict=False)
    return new


def with_context(model, block_size):
    """A copy of the model with another context length; positions behind those that it knows begin as copies of them, from the first on,
    so that what it does with neighbouring tokens works there, too."""
    new = GPT(GPTConfig(**{**vars(model.config), "block_size": block_size})).to(next(model.parameters()).device)
    weights = model.state_dict()
    weights["wpe.weight"] = weights["wpe.weight"][torch.arange(block_size) % model.config.block_size]
    new.load_state_dict(weights)
    return new


def token_logprobs(logits, tokens, temperature=1.0):
    """log p(token) under softmax(logits / temperature). logits: (..., V); tokens: (...). Returns (...)."""
    return torch.log_softmax(logits / temperature, -1).gather(-1, tokens[..., None]).squeeze(-1)


def join(prompts, prompt_lengths, responses, response_mask, pad):
    """Put each response right behind its own prompt: (B, P), (B,), (B, R), (B, R) -> tokens (B, P + R), lengths (B,).

    Example: prompt `a b _`, response `c d` -> `a b c d _`, length 4.
    """
    B, P = prompts.shape
    R = responses.shape[1]
    tokens = torch.cat([prompts, torch.full((B, R), pad, device=prompts.device)], 1)
    places = prompt_lengths[:, None] + torch.arange(R, device=prompts.device)
    tokens.scatter_(1, places, torch.where(response_mask.bool(), responses, pad))
    return tokens, prompt_lengths + response_mask.sum(1).long()


def response_hidden(model, tokens, prompt_lengths, R):
    """Hidden states that predict the R response tokens: for the token at t, the state at t - 1. Returns (B, R, C)."""
    hidden = model.hidden(tokens)
    places = prompt_lengths[:, None] - 1 + torch.arange(R, device=tokens.device)
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


@torch.no_grad()
def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    """Sample one answer a row. Every row writes at its own length, so prompts of different lengths share a batch.

    prompts: (B, P) right-padded; prompt_lengths: (B,); temperature 0 is greedy.
    Returns, all (B, R) and left-aligned, R the length of the longest answer: responses (pad behind EOS), response_mask
    (1 on the answer, its EOS included), logprobs (of the very distribution that was sampled; 0 behind EOS).
    """
    B, P = prompts.shape
    device, config = prompts.device, model.config
    if P + max_new_tokens > config.block_size:
        raise ValueError(f"prompt of {P} and answer of {max_new_tokens} tokens do not fit the context of {config.block_size}")
    was_training = model.training
    model.eval()
    size = (B, config.n_head, P + max_new_tokens, config.n_embd // config.n_head)
    caches = [(torch.zeros(size, device=device), torch.zeros(size, device=device)) for _ in model.h]
    positions = torch.arange(P, device=device).expand(B, P)
    hidden = model.hidden(prompts, caches, positions)[torch.arange(B, device=device), prompt_lengths - 1]
    responses = torch.full((B, max_new_tokens), pad, device=device)
    mask, logprobs = torch.zeros(responses.shape, device=device), torch.zeros(responses.shape, device=device)
    rows, lengths = torch.arange(B, device=device), prompt_lengths  # of the answers that go on
    going = torch.ones(B, dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        logprob = torch.log_softmax(model.lm_head(hidden) / (temperature or 1.0), -1)
        if temperature == 0:
            token = logprob.argmax(-1)
        else:  # inverse CDF, one uniform number a row; much faster on a CPU than torch.multinomial
            cdf = logprob.exp().cumsum(-1)
            token = torch.searchsorted(cdf, torch.rand(len(rows), 1, device=device) * cdf[:, -1:], right=True).squeeze(1)
            token = token.clamp(max=config.vocab_size - 1)
        responses[rows, t] = token.where(going, pad)
        mask[rows, t] = going.float()
        logprobs[rows, t] = logprob.gather(1, token[:, None]).squeeze(1).where(going, 0.0)
        going = going & (token != eos)
        if not going.any():
            break
        if going.sum() < 0.75 * len(rows):  # answers that are over leave the batch, not one by one: copying the caches costs time
            rows, lengths, token, caches = rows[going], lengths[going], token[going], [(keys[going], values[going]) for keys, values in caches]
            going = going[going]
        hidden = model.hidden(token[:, None], caches, lengths[:, None] + t)[:, 0]
    model.train(was_training)
    R = int(mask.sum(1).max())
    return responses[:, :R], mask[:, :R], logprobs[:, :R]


def answer(model, enc, prompts, max_new_tokens, temperature, template=True, batch_size=256):
    """Texts in, texts out: one sampled answer for each prompt. Returns a list of (text, whether it ended by itself, length).

    A prompt that does not fit is cut from the left. Prompts of similar length are sampled together."""
    from data import decode_response, encode_prompt, pad_rows, special_id

    device, pad, room = next(model.parameters()).device, special_id(enc, "pad"), model.config.block_size - max_new_tokens
    if room < 1:
        raise ValueError(f"answers of {max_new_tokens} tokens leave no room for a prompt in a context of {model.config.block_size}")
    ids = [encode_prompt(enc, p, template)[-room:] for p in prompts]
    answers, order = [None] * len(ids), sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(ids), batch_size):
        rows = order[start : start + batch_size]
        tokens, lengths = pad_rows([ids[i] for i in rows], pad)
        responses, mask, _ = generate(model, tokens.to(device), lengths.to(device), max_new_tokens, temperature, enc.eot_token, pad)
        for i, r, m in zip(rows, responses.tolist(), mask.tolist()):
            answers[i] = (decode_response(enc, r, m), enc.eot_token in r, int(sum(m)))
    return answers


@torch.no_grad()
def score(model, enc, prompts, responses, batch_size=256):
    """Reward-model scores of texts: lists of prompts and responses -> list of floats."""
    from data import encode_prompt, encode_response, fit, pad_rows, special_id

    device, scores, was_training = next(model.parameters()).device, [], model.training
    model.eval()
    for start in range(0, len(prompts), batch_size):
        pairs = zip(prompts[start : start + batch_size], responses[start : start + batch_size])
        rows = [fit(encode_prompt(enc, p), encode_response(enc, r), model.config.block_size)[:2] for p, r in pairs]
        tokens, lengths = pad_rows([p + r for p, r in rows], special_id(enc, "pad"))
        scores += model.reward(tokens.to(device), lengths.to(device)).tolist()
    model.train(was_training)
    return scores


def main(argv=None):
    """Talk to a checkpoint, or have a reward model score what you type."""
    import argparse
    from pathlib import Path

    from experiment import UserError, load_model, pick_device
    from data import load_encoding

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a .pt file of a run folder, such as runs/tiny/ppo.pt")
    parser.add_argument("--prompt", help="answer this one prompt and stop")
    parser.add_argument("--response", help="with a reward model: score this answer to --prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy; 1 (default) is what PPO trained")
    parser.add_argument("--max_new_tokens", type=int, default=0, help="longest answer (default: half of the context)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    if not 0 <= args.temperature < math.inf or args.max_new_tokens < 0:
        raise UserError("--temperature and --max_new_tokens must be numbers of at least 0")
    torch.manual_seed(args.seed)
    model, checkpoint = load_model(args.checkpoint, pick_device(args.device))
    if not (args.checkpoint.parent / "tokenizer.json").exists():
        raise UserError(f"{args.checkpoint.parent}: there is no tokenizer.json beside the checkpoint; keep them together")
    enc = load_encoding(args.checkpoint.parent / "tokenizer.json")
    scores, template = model.config.reward_head, checkpoint["stage"] != "pretrain" and not checkpoint["knobs"].get("reviews")  # an AI judge goes on with plain text
    limit = args.max_new_tokens or model.config.block_size // 2
    if limit >= model.config.block_size:
        raise UserError(f"--max_new_tokens {limit} leaves no room for a prompt: the context is {model.config.block_size} tokens")
    if args.response and not scores:
        raise UserError(f"--response needs a reward model; {args.checkpoint} is a {checkpoint['stage']} checkpoint")
    if args.response and not args.prompt:
        raise UserError("--response is scored as the answer to a --prompt: give both")
    if scores and args.prompt and not args.response:
        raise UserError(f'{args.checkpoint} is a reward model: give it an answer to score with --response "..."')

    def reply(prompt, response=None):
        if scores:
            return f"score {score(model, enc, [prompt], [response])[0]:+.3f}"
        text, ended, _ = answer(model, enc, [prompt], limit, args.temperature, template)[0]
        return text + ("" if ended else " ...")

    if args.prompt:
        print(reply(args.prompt, args.response))
        return
    print(f"{checkpoint['stage']} model from {args.checkpoint}; an empty line or Ctrl-D ends. Each prompt stands alone.")
    try:
        while prompt := input("\nprompt> ").strip():
            print(reply(prompt, input("answer> ").strip() if scores else None))
    except EOFError:
        print()


if __name__ == "__main__":
    from experiment import run_main

    run_main(main)
