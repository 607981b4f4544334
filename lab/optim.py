"""Optimizers: Muon with AdamW for language models, Adam for PPO; the learning rate's schedule; clipping."""
import math

import torch

from lab.parallel import sum_gradients


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal, is the step.

    All directions of a matrix then move equally far, also those with small gradients; the small models here
    reached a lower loss with it than with AdamW in the same number of steps. torch has it too, in bfloat16,
    which CPUs without bfloat16 units emulate slowly; ours computes in the precision around it.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape in {p.shape for p in group["params"]}:
                self.step_of_shape([p for p in group["params"] if p.shape == shape], group)

    def step_of_shape(self, matrices, group):
        """Step matrices of one shape, which are made orthogonal together."""
        ahead = []
        for p in matrices:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
            ahead.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov's look-ahead
        rows, columns = matrices[0].shape
        for p, step in zip(matrices, orthogonal(torch.stack(ahead)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(step, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrices, steps=5):
    """Pull all singular values towards 1 by Newton-Schulz iterations of an odd polynomial, with Jordan's
    coefficients: x -> 3.4445 x - 4.775 (x x') x + 2.0315 (x x')^2 x. matrices: (N, rows, columns). With
    three in place of five the language models here are as good, and an AI judge learns far less."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if tall else x


class MuonAdamW:
    """Muon for the matrices inside the blocks, AdamW for embeddings, heads and vectors, behind one step().

    Muon's steps are measured in spectral norm; the factor 3 lets one learning rate serve both.
    """

    def __init__(self, model, lr, weight_decay=0.0):
        inner, outer = [], []
        for name, p in model.named_parameters():
            matrix_of_a_block = name.startswith("h.") and p.dim() == 2
            (inner if matrix_of_a_block else outer).append(p)
        adamw = torch.optim.AdamW([{"params": outer, "peak_lr": lr}], lr=lr, betas=(0.9, 0.95),
                                  weight_decay=0.0, fused=True)
        blocks = Muon([{"params": inner, "peak_lr": 3 * lr}], lr=3 * lr, weight_decay=weight_decay)
        self.optimizers = (adamw, blocks)

    @property
    def param_groups(self):
        return [group for o in self.optimizers for group in o.param_groups]

    def zero_grad(self):
        for o in self.optimizers:
            o.zero_grad()

    def step(self):
        for o in self.optimizers:
            o.step()

    def state_dict(self):
        return [o.state_dict() for o in self.optimizers]

    def load_state_dict(self, states):
        for o, state in zip(self.optimizers, states, strict=True):
            o.load_state_dict(state)


def muon(model, lr, weight_decay=0.0):
    """The optimizer of pretraining, fine-tuning and reward models. lr: the peak rate."""
    return MuonAdamW(model, lr, weight_decay)


def adam(*models_and_lrs, eps=1e-5):
    """Adam over (model, peak learning rate) pairs, with PPO's customary eps."""
    groups = [{"params": list(m.parameters()), "lr": lr, "peak_lr": lr} for m, lr in models_and_lrs]
    return torch.optim.Adam(groups, betas=(0.9, 0.95), eps=eps)


def set_lr(optimizer, step, steps, warmup):
    """Linear warm-up over `warmup` steps, a quarter of all at most, then a cosine from the peak rate down to
    0. Returns the first group's rate."""
    warmup = min(warmup, max(1, steps // 4))  # a short training should reach its peak, too
    if step < warmup:
        scale = (step + 1) / warmup
    else:
        scale = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale
    return optimizer.param_groups[0]["lr"]


def clip_gradients(model, limit):
    """Scale all gradients, of several processes their sum, so that their common norm is at most `limit`.
    Returns the norm before, a number. limit 0: nothing is scaled."""
    sum_gradients(model)
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit or torch.inf).item()
