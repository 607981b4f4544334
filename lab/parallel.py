"""Several processes at one training: torchrun --nproc_per_node=2 train_ppo.py --config tiny

All hold the same weights, draw the same random numbers and take the same steps. Of every batch each process
computes a share; gradients are added up, scores and sampled answers gathered. So a step is that of one
process, but for rounding; sampling alone has random numbers of its own in each. (Dropout draws as many as
its share has rows: with it processes see other masks, and maybe other texts.) The first process alone writes,
prints and has answers ranked. Without torchrun there is one process, and nothing here does anything.
"""
import contextlib
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import model as gpt
from data import UserError
from lab import machine

solo = False  # while the first process works and the others wait for it


def several():
    """Whether more than one process is at this step."""
    return not solo and dist.is_available() and dist.is_initialized()


def size():
    return dist.get_world_size() if several() else 1


def rank():
    return dist.get_rank() if several() else 0


@contextlib.contextmanager
def joined():
    """Around a command: if torchrun has started it, with its other processes. What they print goes nowhere,
    and of an error that all of them meet the first one tells."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others may have to wait for hours, while the first process has answers ranked.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                            timeout=timedelta(days=7))
    there = sys.stdout, sys.stderr
    try:
        with contextlib.ExitStack() as quiet:
            if rank():
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                sys.stdout = sys.stderr = nowhere
            yield
    except BaseException as error:
        if rank() and getattr(error, "code", 1):  # an exit without an error has the code 0 or None
            time.sleep(2)
        raise
    finally:
        sys.stdout, sys.stderr = there
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------
# A batch in shares
# ------------------------------------------------------------------------------------------------


def share(rows):
    """This process's share of the rows of a batch, a list or a tensor: a piece without gaps. Raises UserError
    where there is not one row for each."""
    if size() > len(rows) > 0:
        raise UserError(f"a batch of {len(rows)} cannot be shared by {size()} processes: start fewer "
                        "(--nproc_per_node), or make the batch larger")
    first, last = (len(rows) * r // size() for r in (rank(), rank() + 1))
    return rows[first:last]


def part(mean, n):
    """A mean over this process's n things -> what it adds to the mean over all processes' things."""
    return mean * (n / total(n)) if several() else mean


def total(x):
    """The sum of a number over all processes, a float."""
    if not several():
        return float(x)
    x = torch.tensor([float(x)], dtype=torch.float64)
    dist.all_reduce(x)
    return x.item()


def together(rows):
    """The shares (n, ...) of all processes, end to end; gradients flow into one's own. Longer shares decide
    how wide the others are padded, with zeros."""
    if not several():
        return rows
    parts = [None] * size()
    dist.all_gather_object(parts, rows.detach().cpu())
    parts = [p.to(rows.device) for p in parts]
    parts[rank()] = rows
    if rows.dim() == 2:
        width = max(p.shape[1] for p in parts)
        parts = [torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts]
    return torch.cat(parts)


def sum_gradients(model):
    """Each process gets the sum of all processes' gradients."""
    if several():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(summed.view_as(g))


def summed(numbers, *models):
    """sum_gradients of these models; returns a dict of numbers, each summed over the processes."""
    for model in models:
        sum_gradients(model)
    return {name: total(x) for name, x in numbers.items()}


def generate(model, prompts, prompt_lengths, max_new_tokens, temperature, eos, pad):
    """That of model.py; of several processes each samples a share of the answers, with random numbers of its
    own, and gets all of them."""
    rest = (max_new_tokens, temperature, eos, pad)
    if not several() or len(prompts) < size():
        return gpt.generate(model, prompts, prompt_lengths, *rest)
    with own_random_numbers():
        responses, mask, logprobs = gpt.generate(model, share(prompts), share(prompt_lengths), *rest)
    mask = together(mask)
    return together(responses).where(mask.bool(), pad), mask, together(logprobs)


@contextlib.contextmanager
def own_random_numbers():
    """In each process others; afterwards all go on with the same ones as before."""
    seed = int(torch.randint(2**31, ())) + rank()
    common = machine.random_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        machine.set_random_state(common)


# ------------------------------------------------------------------------------------------------
# Who is first
# ------------------------------------------------------------------------------------------------


def is_first():
    """Whether this process is the one that writes."""
    return rank() == 0


def wait():
    """Until all processes are here."""
    total(0)


def any_of(condition):
    """Whether it holds in one of the processes."""
    return total(bool(condition)) > 0


def call(function, *arguments, first_alone=True):
    """All processes call it, or the first one alone does, as if it were the only one, and the others wait."""
    global solo
    if not first_alone:
        function(*arguments)
        return
    if is_first():
        before, solo = solo, True
        try:
            function(*arguments)
        finally:
            solo = before
    wait()


def first_then_others(function, *arguments):
    """The first process calls it before the others do."""
    if not is_first():
        wait()
    function(*arguments)
    if is_first():
        wait()
