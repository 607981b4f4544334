"""What surrounds a training loop, and nothing about RLHF: command line, seed and device, the run folder,
metrics, pictures, checkpoints and resume, and running a parent stage that is missing.

A stage is a script, a run is a folder. Stage S writes into it: S.pt (checkpoint), S.jsonl (metrics, a row
a step), S.png (pictures), S.samples.txt (answers).
"""
import argparse
import difflib
import errno
import hashlib
import importlib
import io
import json
import math
import os
import re
import shlex
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from tqdm import tqdm

from data import DataError
from model import GPT, GPTConfig

# The stages of a run in their order, and the command that trains each.
SCRIPTS = {
    "pretrain": "train_pretrain.py",
    "sft": "train_sft.py",
    "judge": "train_sft.py --reviews 90000 --block_size 256 --epochs 1 --batch_size 48 --lr 1.5e-3 --eval_every 400 --name judge",
    "rm": "train_rm.py",
    "rm_helpful": "train_rm.py --aspect helpful --rankings_per_prompt 8",
    "rm_safety": "train_rm.py --aspect safety --rankings_per_prompt 5",
    "rm_ai": "train_rm.py --labeler ai --name rm_ai",
    "rm_weak": "train_rm.py --name rm_weak --rankings_per_prompt 1 --epochs 1",
    "ppo": "train_ppo.py",
    "rejection_sampling": "rejection_sampling.py",
}


class UserError(Exception):
    """A mistake that the user can mend; its message is one sentence and no traceback is shown."""


class InvariantError(Exception):
    """Something that must hold in every run does not: a bug, told in words that a learner understands."""


def run_main(main):
    """Call a script's main(); what a user can mend ends in one sentence, Ctrl-C in a hint."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character is no reason to stop
    try:
        main()
    except (UserError, DataError, InvariantError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES):
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: {error.filename or 'a file of the run'} cannot be written or read ({error.strerror}); what was saved before is still there")
    except KeyboardInterrupt:
        print("\nStopped. The same command continues from what is saved, with --resume where it asks for it.", flush=True)
        sys.exit(130)


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def knob(default, reason, low=None, high=None, choices=None):
    """A field of a Config: its default, the reason in words (shown by -h), its least and largest value or its choices."""
    return field(default=default, metadata={"reason": reason, "low": low, "high": high, "choices": choices})


@dataclass
class WhichRun:
    """The knobs that name a run."""

    config: str = knob("tiny", "preset: tiny (embedded world, minutes on a CPU) or small (a larger GPT on --data)")
    run: str = knob("", "run folder under runs/ (default: the preset, with the data folder's name and the seed)")
    seed: int = knob(0, "one seed, one result; other seeds get a run folder of their own", low=0)
    data: str = knob("", "folder with your own pretrain, sft, preferences or prompts file")
    argv = ()  # the flags as they were given; no knob


@dataclass
class Common(WhichRun):
    """The knobs that every stage has."""

    name: str = knob("", "name of a variant of this stage, written beside the standard one")
    device: str = knob("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    resume: bool = knob(False, "continue this stage where it was interrupted")
    overwrite: bool = knob(False, "train this stage again although its checkpoint exists")


NOT_KNOBS = ("run", "name", "device", "resume", "overwrite", "judge_between", "explain", "prompt", "rounds", "then_ppo", "judge_timeout")  # do not change what is learned


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (-h lists every knob)\n")


def parse(config_class, presets, doc, argv=None):
    """Command line -> config_class. `--config NAME` picks a preset (its dict of changed defaults), every
    other flag sets one field. A wrong flag, value or preset ends with one line that says what would be right."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog=Path(sys.argv[0]).name, description=doc, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {f.name: f for f in fields(config_class)}
    given = dict(zip(argv, argv[1:])) | dict(arg.split("=", 1) for arg in argv if "=" in arg)
    preset = given.get("--config", "tiny")
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, 1, 0)
        parser.error(f"no preset {preset!r}; there is {' and '.join(presets)}" + (f": did you mean {near[0]}?" if near else ""))
    for f in names.values():
        default = presets[preset].get(f.name, f.default)
        shown = str(default) or "''"
        parser.add_argument(f"--{f.name}", type=lambda text, f=f: convert(f, text), default=default, metavar=f.type.__name__,
                            help=f"{f.metadata['reason']} [{shown}]".replace("%", "%%"),
                            **({"nargs": "?", "const": True} if f.type is bool else {"nargs": "+"} if f.type is tuple else {}))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0].lstrip("-"), names, 1, 0.5)
        parser.error(f"unknown {unknown[0]}" + (f"; did you mean --{near[0]}?" if near else ""))
    config = config_class(**vars(args))
    config.config, config.argv = preset, argv
    return config


def convert(f, text):
    """The text of a flag -> the value of field f. Raises argparse's error with what would be right."""
    kind, meta = str if f.type is tuple else f.type, f.metadata
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"expected {'true or false' if kind is bool else kind.__name__}, got {text!r}")
    if meta["choices"] and value not in meta["choices"]:
        near = difflib.get_close_matches(value, meta["choices"], 1)
        raise argparse.ArgumentTypeError(f"expected {', '.join(meta['choices'])}, got {value!r}"
                                         + (f": did you mean {near[0]}?" if near else ""))
    if kind is float and not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
    if meta["low"] is not None and value < meta["low"]:
        raise argparse.ArgumentTypeError(f"expected at least {meta['low']}, got {text}")
    if meta["high"] is not None and value > meta["high"]:
        raise argparse.ArgumentTypeError(f"expected at most {meta['high']}, got {text}")
    return value


# ------------------------------------------------------------------------------------------------
# Seed, device, checkpoints
# ------------------------------------------------------------------------------------------------


def pick_device(name="auto"):
    """"auto" -> cuda, mps or cpu, whichever is there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or mps")
    if name == "cuda" and not torch.cuda.is_available() or name == "mps" and not torch.backends.mps.is_available():
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


def write_atomic(path, content):
    """Write text or bytes under a temporary name, then rename: neither a killed process nor a full disk leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def fingerprint(module):
    """A short hash of all weights: the same weights, the same hash."""
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_checkpoint(path, device="cpu"):
    """A checkpoint of ours as a dict. Raises UserError for anything else."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        if not {"stage", "model_config", "model", "knobs", "step"} <= checkpoint.keys():
            raise KeyError("stage")
    except Exception:  # what is something else may fail in any way where it is read as a checkpoint
        raise UserError(f"{path}: not a checkpoint of this project (expected a .pt file that one of its scripts wrote)")
    return checkpoint


def load_model(path, device="cpu", dropout=0.0):
    """(GPT in eval mode, its checkpoint). The model's shape comes from the checkpoint alone; only dropout,
    which is a matter of training, is the caller's."""
    checkpoint = load_checkpoint(path, device)
    model = GPT(GPTConfig(**{**checkpoint["model_config"], "dropout": dropout})).to(device)
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal, is the step.

    All directions of a matrix then move equally far, also those with small gradients; the small models here reached a lower
    loss with it than with AdamW in the same number of steps. torch has it too, in bfloat16, which CPUs without bfloat16 units emulate slowly.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape in {p.shape for p in group["params"]}:  # matrices of one shape are made orthogonal together
                same = [p for p in group["params"] if p.shape == shape]
                ahead = []
                for p in same:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    ahead.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov's look-ahead
                for p, step in zip(same, orthogonal(torch.stack(ahead))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(step, alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)


def orthogonal(matrices, steps=5):
    """Pull all singular values towards 1 by Newton-Schulz iterations of an odd polynomial (Jordan's coefficients). (N, rows, columns)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315)  # -4.775 S + 2.0315 S S
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if tall else x


class Optimizers:
    """Several optimizers behind one step()."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

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
    """Muon for the matrices inside the blocks, AdamW for embeddings, heads and vectors. Muon's steps are measured in spectral
    norm; the factor 3 lets one learning rate serve both."""
    inner = [p for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2]
    outer = [p for name, p in model.named_parameters() if not (name.startswith("h.") and p.dim() == 2)]
    return Optimizers(torch.optim.AdamW([{"params": outer, "peak_lr": lr}], lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
                      Muon([{"params": inner, "peak_lr": 3 * lr}], lr=3 * lr, weight_decay=weight_decay))


def adam(*models_and_lrs, eps=1e-5):
    """Adam over (model, peak learning rate) pairs, with PPO's customary eps."""
    return torch.optim.Adam([{"params": list(m.parameters()), "lr": lr, "peak_lr": lr} for m, lr in models_and_lrs], betas=(0.9, 0.95), eps=eps)


def set_lr(optimizer, step, steps, warmup):
    """Linear warm-up over `warmup` steps, then a cosine from the peak rate down to 0. Returns the first group's rate."""
    scale = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale
    return optimizer.param_groups[0]["lr"]


# ------------------------------------------------------------------------------------------------
# A stage of a run
# ------------------------------------------------------------------------------------------------


def run_folder(cfg):
    """The run folder that the flags name: runs/PRESET, with the data folder's name and a seed other than 0 behind it."""
    if cfg.config != "tiny" and not cfg.data:
        raise UserError(f"--config {cfg.config} trains on your own text: name its folder with --data FOLDER")
    parts = [cfg.config] + [Path(cfg.data).resolve().name] * bool(cfg.data) + [f"seed{cfg.seed}"] * bool(cfg.seed)
    return Path("runs") / (cfg.run or "-".join(parts))


def command_of(cfg, stage):
    """The command that runs a stage of the run that cfg belongs to, from what SCRIPTS has for it or from such a text."""
    script, *args = shlex.split(SCRIPTS.get(stage, stage))
    args = [str(Path(sys.argv[0]).with_name(script)), "--config", cfg.config, "--run", cfg.run or run_folder(cfg).name, "--seed", str(cfg.seed), *args]
    return args + ["--data", cfg.data] * bool(cfg.data) + ["--device", cfg.device] * (cfg.device != "auto")


def train_if_missing(cfg, stage, command=None):
    """(path of a stage's finished checkpoint in the run that cfg belongs to, whether it was trained just now: in this process, for starting
    Python takes seconds). command: script and flags of a stage that SCRIPTS does not have."""
    path = run_folder(cfg) / f"{stage}.pt"
    if path.exists() and load_checkpoint(path)["finished"]:
        return path, False
    if stage not in SCRIPTS and not command:
        raise UserError(f"{path}: {'its training is not finished; complete it with --resume' if path.exists() else 'no such checkpoint'}")
    command = command_of(cfg, command or stage) + ["--resume"] * path.exists()
    print(f"\n{path} is {'not finished' if path.exists() else 'not there yet'}; first: python {' '.join(command)}\n", flush=True)
    state = random_state()
    importlib.import_module(Path(command[0]).stem).main(command[1:])
    set_random_state(state)
    return path, True


def command_again(*words):
    """A command as text, without --resume and --overwrite."""
    return re.sub(r" --(resume|overwrite)([ =](true|false))?\b", "", shlex.join(words), flags=re.I)


class Stage:
    """One stage in its run folder. In the order of use:

    stage = Stage(cfg, "sft")            stops here if the stage is finished already (look=True: a checkpoint is only looked at)
    parent = stage.parent("pretrain")    path of the parent's checkpoint, trained first if it is missing
    stage.track(model=model, optimizer=optimizer)     what a checkpoint holds; loads it when resuming
    for step in stage.steps(cfg.steps):  progress bar, Ctrl-C, regular checkpoints
        stage.log(step, loss=...)        one row of metrics
    stage.finish()                       the final checkpoint
    """

    def __init__(self, cfg, stage, look=False):
        if cfg.resume and cfg.overwrite:
            raise UserError("--resume continues this stage, --overwrite begins it anew: choose one")
        self.cfg, self.stage, self.name = cfg, stage, cfg.name or stage
        self.folder = run_folder(cfg)
        self.data = Path(cfg.data) if cfg.data else self.folder / "data"
        self.device = pick_device(cfg.device)
        self.knobs = {k: v for k, v in asdict(cfg).items() if k not in NOT_KNOBS}
        self.knobs["data"] = str(Path(cfg.data).resolve()) if cfg.data else ""
        self.parents, self.tracked, self.state, self.start, self.clock = {}, {}, {}, 0, time.time()
        # Numbers too small for a normal float (1e-38) make some CPUs 10 times slower, and softmax is full of them.
        torch.set_flush_denormal(True)
        # Where the first call of such a function comes from two threads at once, one of them may compute it less exactly: in a
        # quarter of the runs Adam's first sqrt was another one. A call from one thread settles it; the same seed, the same result.
        for function in (torch.sqrt, torch.exp, torch.log):
            function(torch.ones(4))
        torch.manual_seed(cfg.seed)
        self.checkpoint = None
        path = self.file("pt")
        taken = {"rankings", "judged", "judge_calls", "tokenizer"} | {s for s, command in SCRIPTS.items() if command.split()[0] != SCRIPTS[stage]}
        if self.name in taken or not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"--name {self.name}: choose a word of letters, digits, _, - and . that is not the name of a stage or a file")
        old = load_checkpoint(path) if path.exists() else None
        if old and old["stage"] != stage:
            raise UserError(f"{path} is a checkpoint of the stage {old['stage']}; choose another --name")
        if old and not cfg.overwrite:
            then = {f.name: f.default for f in fields(cfg)} | old["knobs"]  # a knob that is newer than the checkpoint had its default
            changed = [k for k, v in self.knobs.items() if then[k] != v]
            if changed:
                news = ", ".join(f"{k} {then[k]} -> {self.knobs[k]}" for k in changed)
                raise UserError(f"{path} was trained with other knobs ({news}); " + (
                    "keep both with --name NAME, or train it again with --overwrite" if old["finished"] else
                    f"it stopped at step {old['step']}: finish it with those knobs and --resume, or train it again with --overwrite"))
            self.check_parents(path, old)
            if old["finished"] and not look:
                print(f"{path} is finished; nothing to do (--overwrite trains it again, python model.py {path} talks to it)")
                sys.exit(0)
            if not (cfg.resume or look):
                raise UserError(f"{path} stopped at step {old['step']}; --resume continues it, --overwrite begins anew")
            self.checkpoint, self.start = old, old["step"]
            self.state = old["state"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(row) for row in self.file("jsonl").read_text().splitlines()[: self.start]] if self.start and not look else []

    def file(self, suffix):
        """Path of this stage's file with that ending."""
        return self.folder / f"{self.name}.{suffix}"

    def parent(self, stage):
        """Path of a parent stage's finished checkpoint, which is trained first if it is missing."""
        path, trained = train_if_missing(self.cfg, stage)
        if trained:
            self.clock = time.time()
        checkpoint = load_checkpoint(path)
        self.check_parents(path, checkpoint)
        if self.checkpoint and self.checkpoint["parents"].get(path.name, checkpoint["fingerprint"]) != checkpoint["fingerprint"]:
            raise UserError(f"{self.file('pt')} was begun with an earlier {path.name}, which has been trained again since: begin anew with --overwrite")
        self.parents[path.name] = checkpoint["fingerprint"]
        return path

    def check_parents(self, path, checkpoint):
        """A checkpoint whose parents have been trained again since is reported, never silently used."""
        for file, print_then in checkpoint["parents"].items():
            if (self.folder / file).exists() and load_checkpoint(self.folder / file)["fingerprint"] != print_then:
                raise UserError(f"{path} was trained from an earlier {file}, which has been trained again since; "
                                f"train it again, too: python {checkpoint['command']} --overwrite")

    def track(self, **objects):
        """Modules and optimizers (anything with a state_dict) that a checkpoint holds; `model` is the main one."""
        self.tracked = objects
        if self.checkpoint:
            for name, thing in objects.items():
                thing.load_state_dict(self.checkpoint[name])
            set_random_state(self.checkpoint["random"])

    def save(self, step, finished):
        model = self.tracked["model"]
        content = {name: thing.state_dict() for name, thing in self.tracked.items()}
        content |= {"stage": self.stage, "command": command_again(SCRIPTS[self.stage].split()[0], *self.cfg.argv), "model_config": asdict(model.config), "knobs": self.knobs, "step": step, "finished": finished,
                    "state": self.state, "random": random_state(), "parents": self.parents, "fingerprint": fingerprint(model)}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomic(self.file("pt"), buffer.getvalue())

    def steps(self, total, save_seconds=60):
        """Yield the step numbers with a progress bar, saving about once a minute. After Ctrl-C the step under
        way is completed and saved, and the way to continue is told."""
        write_atomic(self.file("jsonl"), "".join(json.dumps(row) + "\n" for row in self.rows))
        stop, saved = [], time.time()
        before = {s: signal.signal(s, lambda number, frame: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
        self.bar = tqdm(range(self.start, total), initial=self.start, total=total, desc=self.name, dynamic_ncols=True, mininterval=0.5)
        try:
            for step in self.bar:
                yield step
                if stop or step + 1 == total or time.time() - saved > save_seconds:
                    self.save(step + 1, False)
                    saved = time.time()
                if stop:
                    self.bar.close()
                    print(f"\nStopped after step {step + 1} of {total}; nothing is lost. Continue with:\npython {command_again(*sys.argv)} --resume", flush=True)
                    sys.exit(130)
        finally:
            self.bar.close()
            for s, handler in before.items():
                signal.signal(s, handler)

    def log(self, step, shown=(), **metrics):
        """Append one row of metrics (numbers, None where not measured); those named in `shown` go to the progress bar."""
        self.rows.append({"step": step, **metrics})
        with self.file("jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        self.bar.set_postfix({k: f"{metrics[k]:.3g}" for k in shown if metrics[k] is not None}, refresh=False)

    def say(self, text):
        """Print above the progress bar."""
        tqdm.write(text, file=sys.stdout)

    def finish(self, samples, panels, caption=""):
        """Write the final checkpoint, the samples and the picture, and say where they lie."""
        write_atomic(self.file("samples.txt"), samples + "\n")
        picture(self.file("png"), self.rows, panels, caption)
        self.save(len(self.rows), True)  # last: whoever is stopped before repeats only the evaluation
        print(f"\n{self.name}: {time.time() - self.clock:.0f} s; checkpoint {self.file('pt')}, picture {self.file('png')}, "
              f"answers {self.file('samples.txt')}, metrics {self.file('jsonl')}", flush=True)


# ------------------------------------------------------------------------------------------------
# Tables and pictures for a person
# ------------------------------------------------------------------------------------------------


def table(header, rows):
    """Text table; the first column is left-aligned, None is shown as a dash, floats with two decimals."""
    def show(x):
        return "-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x)

    cells = [[show(x) for x in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


COLORS = ("#2a6fdb", "#d9662b", "#2f9e62", "#9b59b6")  # legible on white, also for the colour-blind


def picture(path, rows, panels, caption=""):
    """Curves. panels: [(title, {label: key of the rows, drawn over the steps, or a list of points (x, y)}, what the y axis is, and the x axis)]."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(panels) if len(panels) <= 3 else 2
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(9.6, 2.7 * lines + 0.5), squeeze=False, layout="constrained")  # letters stay legible at 800 pixels
    for axis, panel in zip(axes.flat, [*panels, *[None] * (lines * columns - len(panels))]):
        if panel is None:
            axis.axis("off")
            continue
        title, curves, unit, x = (*panel, "step")[:4]
        for (label, key), color in zip(curves.items(), COLORS):
            points = [(r["step"], r[key]) for r in rows if r[key] is not None] if isinstance(key, str) else key
            if points:
                axis.plot(*zip(*points), color=color, label=label, linewidth=1.6, marker="o" if len(points) < 20 else None, markersize=3)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(x, fontsize=8)
        axis.set_ylabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if all(float(x).is_integer() for line in axis.lines for x in line.get_xdata()):
            axis.xaxis.get_major_locator().set_params(integer=True)  # no step 2.5, no round 0.5
        if len(curves) > 1:
            axis.legend(fontsize=8, frameon=False)
    figure.suptitle(caption, fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
