"""The machine that a stage computes on: device, precision, threads, random numbers."""
import torch

from data import UserError

LEARNS_IN_BFLOAT16 = ("pretrain", "sft", "rm")  # PPO does not: the ratio of an unchanged policy must be 1


def pick_dtype(name, device, stage):
    """"auto" -> the type of a training pass's products. bfloat16 needs units for it, on a CPU Intel's AMX;
    without such units it is several times slower. With AMX only pretraining gains by it, where all batches
    have one shape: for each new shape a CPU's bfloat16 products are compiled anew, and kept in memory."""
    if stage not in LEARNS_IN_BFLOAT16:
        return "float32"
    if name != "auto":
        return name
    units = {"cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
             "cpu": lambda: stage == "pretrain" and torch.cpu.get_capabilities().get("amx_bf16", False),
             "mps": lambda: False}
    return "bfloat16" if units[device]() else "float32"


def pick_device(name="auto"):
    """"auto" -> cuda, mps or cpu, whichever is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if name not in there:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or mps")
    if not there[name]:
        raise UserError(f"--device {name}: this machine has none; use --device cpu")
    return name


def random_state():
    """Everything that random numbers come from, to be stored in a checkpoint."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state):
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def steady_arithmetic():
    """The same seed shall give the same result, and in the same time."""
    # Numbers too small for a normal float (1e-38) make some CPUs 10 times slower; softmax is full of them.
    torch.set_flush_denormal(True)
    # Where the first call of such a function comes from two threads at once, one of them may compute it
    # less exactly: in a quarter of the runs Adam's first sqrt was another one. A call from one thread
    # settles it.
    for function in (torch.sqrt, torch.exp, torch.log):
        function(torch.ones(4))


def in_words(model, device, dtype):
    """A model's size, and what computes it."""
    shape, n = model.config, sum(p.numel() for p in model.parameters())
    threads = f", threads: {torch.get_num_threads()}" if device == "cpu" else ""
    return (f"{shape.n_layer} blocks, {shape.n_embd} wide, {n / 1e6:.2f} M parameters, {shape.block_size} "
            f"tokens of context; {dtype} on {device}{threads}")


def memory_bill(model, rows=0, length=0, logits=0, networks=None, frozen=(), sampled=0):
    """What a training takes of memory at most, in words. Numbers take 4 bytes.

    networks: models that learn, by default the one. Each has weights, gradients of the same size, and the
    optimizer's moments: of Adam two, so it is for PPO (sampled > 0); of Muon one, and two of embeddings.
    frozen: models that only compute, which have weights alone.
    rows, length: sequences of a micro-batch, and tokens of the longest. Of each token a block keeps 16
    vectors of its width for the backward pass (norms 2, q k v 3, attention 1, residual 2, MLP 4 + 4), and for
    each of its heads a softmax over the `length` tokens of its sequence.
    logits: tokens of a sequence that go through the vocabulary: four copies of their logits.
    sampled: answers that PPO samples at once: caches of keys and values, and three copies of the reference's
    logits. That is before the micro-batches, so the larger of the two counts. Torch itself takes 0.3 GB."""
    shape, networks = model.config, networks or [model]
    width, depth, V = shape.n_embd, shape.n_layer, shape.vocab_size
    learned, still = (sum(p.numel() for net in models for p in net.parameters())
                      for models in (networks, frozen))
    moments = 2 * learned if sampled else learned + len(networks) * width * (V + shape.block_size)
    kept = len(networks) * depth * length * (16 * width + shape.n_head * length)
    learning = rows * (kept + 4 * logits * V)
    sampling = sampled * (2 * depth * length * width + 3 * logits * V)
    parts = {"weights": learned + still, "gradients": learned, "the optimizer": moments,
             "activations": max(learning, sampling)}
    parts = {name: 4e-9 * n for name, n in parts.items()}
    total = sum(parts.values())
    if total < 1:
        return f"{max(0.1, total):.1f} GB of memory"
    listed = ", ".join(f"{name} {n:.1f}" for name, n in parts.items())
    return f"up to {total:.1f} GB of memory: {listed}"


def computed_with(dtype):
    """What a result depends on bit for bit, beside knobs and device."""
    return {"threads": torch.get_num_threads(), "dtype": dtype}


def tell_what_differs(then, now):
    """Say what of computed_with was otherwise when a stage was begun."""
    for what, value in now.items():
        if then.get(what, value) != value:
            print(f"begun with {what} {then[what]}, now {what} {value}: the result is not the same bit for "
                  "bit", flush=True)
