"""From scores to what PPO maximises: one reward model, Llama 2's two, or the rating of an AI.

Reward models give scores. What PPO calls rewards, score minus the KL term, is made in train_ppo.py.
"""
import json
import statistics

import torch

import data

THRESHOLD = 0.15  # Llama 2's: an answer with a smaller probability of being safe is unsafe


def whiten_scores(scores, mean=None, std=None):
    """(scores - mean) / std, (B,); without the two with those of the batch, biased standard deviation."""
    if mean is None:
        mean, std = scores.mean(), scores.std(correction=0)
    return (scores - mean) / (std + 1e-8)


def llama2_reward(helpful, safety, is_safety_prompt, mean=None, std=None, threshold=THRESHOLD, eps=1e-4):
    """Llama 2's reward before the KL term: the safety score where the prompt asks for it or the answer is
    unsafe, otherwise the helpfulness score; its logit, whitened. (Touvron et al. 2023, section 3.2.3.)

    R_c = R_s if is_safety_prompt or R_s < threshold else R_h;   R = (logit(R_c) - mean) / std
    helpful, safety:  (B,) probabilities, kept eps away from 0 and 1, so that the logit is finite
    is_safety_prompt: (B,) bool
    mean, std:        of logit(R_c), measured before; None takes those of this batch (the paper says no more)
    Returns (B,). Example: logit of (.02, .3, .6, .9, .97) is (-3.892, -.847, .405, 2.197, 3.476),
    whitened (-1.630, -.437, .054, .756, 1.257).
    """
    combined = torch.where(is_safety_prompt | (safety < threshold), safety, helpful)
    return whiten_scores(torch.logit(combined, eps), mean, std)


def rows_at_once(model, length, most, logits=1):
    """How many sequences of `length` tokens, `most` at most, go through a model at once where nothing is
    learned: as many as take 1 GB. For each there are caches of keys and values, the scores of an attention
    layer (three copies), an MLP's inside (two), and the logits of so many tokens (three)."""
    shape = model.config
    attention, mlp = 3 * shape.n_head * length, 8 * shape.n_embd
    row = length * (2 * shape.n_layer * shape.n_embd + attention + mlp) + 3 * logits * shape.vocab_size
    return max(1, min(most, 250_000_000 // row))


@torch.no_grad()
def score_texts(model, enc, prompts, responses, batch_size=256):
    """Scores of texts by a reward model, in log-odds: lists of prompts and responses -> list of floats."""
    device, pad = next(model.parameters()).device, data.special_id(enc, "pad")
    rows = data.lay_out(enc, prompts, responses, model.config.block_size)
    longest = max((len(p) + len(r) for p, r in rows), default=1)
    batch_size = rows_at_once(model, longest, batch_size)
    was_training, scores = model.training, []
    model.eval()
    for start in range(0, len(rows), batch_size):
        tokens, lengths = data.pad_rows([p + r for p, r in rows[start : start + batch_size]], pad)
        scores += model.score(tokens.to(device), lengths.to(device)).tolist()
    model.train(was_training)
    return scores


class Scorer:
    """What gives an answer its score: a reward model, Llama 2's two, or an AI that rates it (direct RLAIF).

    kind: as --reward; models: the reward models; unsafe: the prompts that ask for harm, as JSON texts;
    judge: the AI, where there are no reward models. mean, std: of raw scores over answers of the SFT model,
    by `measure_scale`: scores then count standard deviations from there, so a beta means much the same for
    all kinds.
    """

    def __init__(self, kind, models, unsafe=(), judge=None):
        self.kind, self.models, self.unsafe, self.judge = kind, models, set(unsafe), judge
        self.mean, self.std = 0.0, 1.0

    def raw(self, tokens, lengths, prompts, texts):
        """Scores before whitening, (B,). tokens (B, T), lengths (B,): prompts and answers, each up to an EOS,
        for only there have reward models learned to score; texts: answers."""
        if self.judge:
            return torch.tensor(self.judge.rate(prompts, texts), device=tokens.device)
        return self.combine([model.score(tokens, lengths) for model in self.models], prompts)

    def raw_texts(self, enc, prompts, texts):
        """The same of texts alone, which get an EOS each."""
        if self.judge:
            return torch.tensor(self.judge.rate(prompts, texts))
        scores = [torch.tensor(score_texts(model, enc, prompts, texts)) for model in self.models]
        return self.combine(scores, prompts)

    def combine(self, scores, prompts):
        """scores: a tensor (B,) of log-odds for each model; of two, Llama 2's choice. Returns (B,)."""
        if len(scores) == 1:
            return scores[0]
        helpful, safety = (s.sigmoid() for s in scores)
        asks_for_harm = torch.tensor([json.dumps(p) in self.unsafe for p in prompts], device=helpful.device)
        return llama2_reward(helpful, safety, asks_for_harm, mean=0.0, std=1.0)

    def measure_scale(self, enc, prompts, texts):
        """From now on the scores of these answers have mean 0 and standard deviation 1."""
        raw = self.raw_texts(enc, prompts, texts).tolist()
        self.mean, self.std = statistics.fmean(raw), statistics.pstdev(raw)
        if self.std < 1e-6 * (1 + abs(self.mean)):  # equal scores, but for rounding
            self.std = 1.0

    def of_texts(self, enc, prompts, texts):
        """Scores of texts in standard deviations of the SFT model's answers, as a list."""
        return whiten_scores(self.raw_texts(enc, prompts, texts), self.mean, self.std).tolist()
