"""A stage of a run: its files, going on after a stop, and parents that are missing.

A stage is a script, a run is a folder. A stage S that trains a model writes S.pt (checkpoint), S.jsonl
(metrics, a row a step), S.png (pictures) and S.samples.txt (tables and answers). One that collects rankings
writes S.jsonl (the rankings), S.json (the record: what it was made with) and S.samples.txt.
"""
import contextlib
import json
import math
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm import tqdm

from data import UserError, load_rows
from lab import lock, machine, parallel
from lab.commands import (
    COLLECTOR,
    LEARNED_FROM,
    STAGES,
    again,
    command_of,
    is_name,
    main_of,
    recipe_of,
    run_folder,
    short,
    shown_command,
)
from lab.data_folder import fill_once
from lab.records import (
    append_row,
    check_descent,
    check_parents,
    fingerprint,
    fingerprint_of,
    flush,
    load_checkpoint,
    names_in,
    product_of,
    record_in,
    record_of,
    restore,
    rows_until,
    write_atomic,
)
from lab.report import drawn, picture
from lab.terminal import visible, wrapped
from lab.tokens import TOKENIZER, encoding_of, tokenizer_print


def finished(cfg, name):
    """Path of what a finished stage of the run that cfg belongs to has made, or None; its picture is drawn if
    it is missing. Raises UserError where its parents have been made again since."""
    folder = run_folder(cfg)
    record = record_of(folder, name)
    if record is None or not record["finished"]:
        return None
    path = product_of(folder, name, record["stage"] == "preferences")
    if not path.exists():
        return None
    check_parents(path, record)
    draw_if_missing(folder, name, record)
    return path


def draw_if_missing(folder, name, record):
    """The picture of a finished stage, where the command was stopped before it was drawn; not of one of
    which only the checkpoint was copied."""
    there = [(folder / f"{name}.{ending}").exists() for ending in ("jsonl", "png")]
    if "picture" in record["state"] and there == [True, False]:
        draw(folder, name, record["step"], *record["state"]["picture"])


def draw(folder, name, steps, panels, caption):
    """A picture of so many steps."""
    rows = folder / f"{name}.jsonl"
    drawn(folder / f"{name}.png", lambda file: picture(file, rows_until(rows, steps), panels, caption))


class OfAParent(UserError):
    """A mistake that the command of a parent has found; its flags are other ones than the user's."""


def train_if_missing(cfg, name, command=None):
    """Path of what the stage `name` has made in the run that cfg belongs to. Where it is not finished, its
    own command makes it, in this process, for starting Python takes seconds.

    command: script and flags of a stage that STAGES lacks. Raises UserError for a name that means nothing."""
    there = finished(cfg, name)
    if there:
        return there
    folder, recipe = run_folder(cfg), command or recipe_of(name)
    record = record_of(folder, name)
    if not recipe and record:
        raise UserError(f"{folder / name} is not finished; go on with: {record['command']}")
    if not recipe:
        raise UserError(f"{folder} has no {name}, and no stage makes one; it has "
                        + (", ".join(names_in(folder)) or "nothing yet"))
    words = command_of(cfg, recipe)
    path = product_of(folder, name, words[0] == COLLECTOR)
    missing = "is not finished" if record else "is not there yet"
    print(f"\n{path} {missing}; first:\n{shown_command(words)}\n", flush=True)
    state = machine.random_state()
    try:
        parallel.call(main_of(words[0]), words[1:], first_alone=words[0] == COLLECTOR)
    except OfAParent:
        raise
    except UserError as error:
        raise OfAParent(f"{error} (told by what comes first: {shown_command(words)})") from None
    except SystemExit as end:
        if end.code:  # it was stopped; 0 means that another process has finished it meanwhile
            raise
    machine.set_random_state(state)
    return path


def plain(value):
    """A knob's value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def knobs_of(cfg):
    """The knobs that change what is learned."""
    return {f.name: plain(getattr(cfg, f.name)) for f in fields(cfg) if f.metadata["learned"]}


def other_knobs(then, now):
    """Names of the knobs whose values differ. Not of data, a path: the files themselves are compared,
    wherever they lie (lab/source.py)."""
    return [name for name in now if name != "data" and then.get(name, now[name]) != now[name]]


class Stage:
    """One stage in its run folder. In the order of use:
    stage = Stage(cfg, "sft")            stops here if the stage is finished; goes on with one that stopped
    parent = stage.parent("pretrain")    path of what a parent has made, which is made first if missing
    enc = stage.encoding()               the run's tokenizer; stage.data is the folder with its four files
    stage.track(model=model, optimizer=optimizer)     what a checkpoint holds; loads it when going on
    for step in stage.steps(cfg.steps):  progress bar, Ctrl-C, regular checkpoints
        with stage.autocast():           around a forward pass that is learned from
        stage.log(step, loss=...)        one row of metrics
    stage.finish(samples, panels, caption)      the final checkpoint; finish_collection(samples) for rankings

    stage.state is a dict that goes with a checkpoint; stage.start is the step to begin with.
    """

    def __init__(self, cfg, stage):
        self.cfg, self.stage, self.name = cfg, stage, cfg.name or stage
        self.folder = run_folder(cfg)
        self.data = self.folder / "data"
        self.device = machine.pick_device(cfg.device)
        self.dtype = machine.pick_dtype(cfg.dtype, self.device, stage)
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        self.collection = stage == "preferences"
        self.knobs = knobs_of(cfg)
        self.parents, self.tracked, self.state, self.rows = {}, {}, {}, []
        self.new_tokenizer = None  # content of tokenizer.json, which the first checkpoint writes
        self.start, self.total, self.seconds, self.clock, self.checkpoint = 0, 0, 0, time.time(), None
        self.check_name()
        parallel.first_then_others(fill_once, cfg, self.folder)
        old = self.earlier()
        if old:
            self.check_knobs(old)
            check_parents(self.path, old)
            more = self.collection and (cfg.questions > old["state"].get("wanted", 0)
                                        or old["state"].get("open", 0) > 0  # somebody had enough for a while
                                        or len(load_rows(self.path)) < old["step"])  # some are gone
            if old["finished"] and not more:
                draw_if_missing(self.folder, self.name, old)
                print(self.where_it_lies())
                sys.exit(0)
        lock.take(self.folder, self.name)
        if old:
            self.go_on(old)
        self.note_data()
        machine.steady_arithmetic()
        torch.manual_seed(cfg.seed)

    @property
    def path(self):
        """Path of what this stage makes."""
        return product_of(self.folder, self.name, self.collection)

    @property
    def script(self):
        return COLLECTOR if self.collection else STAGES[self.stage].split()[0]

    def file(self, suffix):
        """Path of this stage's file with that ending."""
        return self.folder / f"{self.name}.{suffix}"

    def encoding(self):
        """The run's tokenizer, a tiktoken.Encoding. Raises UserError where a parent has another."""
        parents = [record_in(self.folder / file) for file in self.parents if file.endswith(".pt")]
        return encoding_of(self.folder, parents)

    # -- Before it begins ------------------------------------------------------------------------

    def check_name(self):
        """A name belongs to one script."""
        recipe = recipe_of(self.name)
        if not is_name(self.name) or (recipe and recipe.split()[0] != self.script):
            raise UserError(f"--name {self.name[:60]}: choose a short word of letters, digits, _, - and . "
                            "that is not the name of another stage or of a file")

    def earlier(self):
        """The record of this stage from an earlier call, or None. Whoever overwrites has none."""
        try:
            record = record_of(self.folder, self.name)
        except UserError:
            if not self.cfg.overwrite:
                raise
            record = None
        if record and self.collection and not record["finished"] and not self.path.exists():
            record = None  # nothing was asked yet
        if not record and self.collection and self.path.exists() and not self.cfg.overwrite:
            raise UserError(f"{self.path} is there without its record {self.file('json').name}: move it "
                            "away, or begin anew with --overwrite")
        if record and record["stage"] != self.stage:
            raise UserError(f"{self.folder / self.name} is a stage {record['stage']} of this run; choose "
                            "another --name")
        return None if self.cfg.overwrite else record

    def check_knobs(self, old):
        """Raises UserError where this stage was begun with other knobs than those of this call."""
        defaults = {f.name: plain(f.default) for f in fields(self.cfg)}
        then = defaults | old["knobs"]  # a knob that is newer than the record had its default
        news = ", ".join(f"{name} {short(then[name])} -> {short(self.knobs[name])}"
                         for name in other_knobs(then, self.knobs))
        if not news:
            return
        advice = "keep both with --name NAME, or make it again with --overwrite"
        if not old["finished"]:
            advice = f"it is not finished: go on with {old['command']}, {advice}"
        raise UserError(f"{self.path} was made with other knobs ({news}); {advice}")

    def go_on(self, old):
        """Go on with a stage that stopped."""
        old = self.checkpoint = old if self.collection else load_checkpoint(self.path)
        self.start, self.seconds, self.parents = old["step"], old.get("seconds", 0), dict(old["parents"])
        if self.start or self.collection:  # at step 0 it begins as if for the first time
            self.state = old["state"]
        if self.collection:
            where = "is not complete"
        else:
            where = f"stopped at step {self.start} of {old['steps']}"
            self.rows = rows_until(self.file("jsonl"), self.start)
        print(f"{self.path} {where}: it goes on from there", flush=True)
        machine.tell_what_differs(old, machine.computed_with(self.dtype))

    def begin_collection(self):
        """Nothing can be refused any more: an overwritten collection is put aside; the record is new."""
        if not self.checkpoint and self.path.exists():  # somebody's answers may be all that there is of them
            self.path.replace(self.file(time.strftime("old-%Y%m%d-%H%M%S")))
        self.write_record(finished=False)

    def parent(self, name):
        """Path of what a parent stage has made, made first if it is missing; "preferences": a user's file."""
        if name == "preferences":
            path = self.data / "preferences.jsonl"
            if not path.exists():
                raise UserError(f"{path}: no such file; this run has no preferences of yours (--data)")
        else:
            if name == self.name:
                raise UserError(f"{name} cannot be made from itself: give the new one a --name of its own")
            path = finished(self.cfg, name)
            if path is None:
                path = train_if_missing(self.cfg, name)
                self.clock = time.time()  # what a parent took is not this stage's time
            check_descent(path, self.path)
        self.note(path)
        return path

    def note_data(self):
        """The files of the run's data that it learns from are parents, too; an AI judge has reviews."""
        names = () if getattr(self.cfg, "reviews", 0) else LEARNED_FROM.get(self.stage, ())
        for path in filter(Path.exists, map(self.data.joinpath, names)):
            self.note(path)

    def note(self, path):
        """Keep in mind what it is made from. Raises UserError where it was begun with another."""
        key, now = path.relative_to(self.folder).as_posix(), fingerprint_of(path)
        if self.checkpoint and self.checkpoint["parents"].get(key, now) != now:
            raise UserError(f"{self.path} was begun with an earlier {path.name}, which has been "
                            f"{again(path)} since: begin anew with --overwrite")
        self.parents[key] = now

    def check_contexts(self, names):
        """Raises UserError where models that read each other's answers see different lengths of text."""
        records = {name: record_of(self.folder, name) for name in names}
        lengths = {name: r["model_config"]["block_size"] for name, r in records.items() if r}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {n}" for name, n in lengths.items())
            raise UserError(f"the models must see equally long contexts, but have {said} tokens: train them "
                            "from one pretrained model")

    def describe(self, model, source, **work):
        """Print a model's size, origin, what computes it, and what memory its work takes (memory_bill)."""
        about = machine.in_words(model, self.device, self.dtype)
        needs = machine.memory_bill(model, **work)
        print(wrapped(f"{self.name}, from {source}: {about}; {needs}"), flush=True)

    def autocast(self):
        """The context of what --dtype decides on: passes that are learned from, pretraining's optimizer."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")

    # -- Training --------------------------------------------------------------------------------

    def track(self, **objects):
        """Modules and optimizers (anything with a state_dict) that a checkpoint holds; `model` is the main
        one."""
        self.tracked = objects
        if self.start:
            restore(self.path, self.checkpoint, objects)

    def steps(self, total, save_seconds=60):
        """Yield the step numbers with a progress bar, saving soon and then about once a minute. After
        Ctrl-C the step under way is completed and saved, and the way to go on is told."""
        self.total, earlier = total, self.seconds  # of training, those before a stop
        if self.start and self.checkpoint["steps"] != total:
            raise UserError(f"{self.path} was to have {self.checkpoint['steps']} steps, and has {total} now: "
                            "what it learns from has changed; begin anew with --overwrite")
        parallel.wait()
        if self.start == 0:
            self.save(0, False)  # before its metrics are overwritten: never the old model with new ones
        write_atomic(self.file("jsonl"), "".join(json.dumps(row) + "\n" for row in self.rows))
        stop, saved, pause = [], time.time(), min(5, save_seconds)
        signals = [getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, s)]
        signals = [s for s in signals if signal.getsignal(s) != signal.SIG_IGN]  # as nohup does
        before = {s: signal.signal(s, lambda number, frame: stop.append(number)) for s in signals}
        self.bar = tqdm(range(self.start, total), initial=self.start, total=total, desc=self.name,
                        dynamic_ncols=True, mininterval=0.5)
        try:
            for step in self.bar:
                yield step
                self.seconds = earlier + time.time() - self.clock
                stopped = parallel.any_of(stop)
                if stopped or step + 1 == total or time.time() - saved > pause:
                    began = time.time()
                    self.save(step + 1, False)
                    saved = time.time()
                    pause = max(min(2 * pause, save_seconds), 20 * (saved - began))  # 5 % of a run at most
                if stopped:
                    self.bar.close()
                    print(f"\nStopped after step {step + 1} of {total}; nothing is lost. The same command "
                          f"goes on:\n{shown_command(sys.argv)}", flush=True)
                    sys.exit(130)
        finally:
            self.bar.close()
            for s, handler in before.items():
                signal.signal(s, handler)

    def log(self, step, shown=(), **metrics):
        """Append one row of metrics (numbers, None where not measured); those named in `shown` go to the
        progress bar."""
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self.diverged(step, f"{name} is {value}")
        self.rows.append({"step": step, **metrics})
        append_row(self.file("jsonl"), self.rows[-1])
        values = {name: f"{metrics[name]:.3g}" for name in shown if metrics[name] is not None}
        self.bar.set_postfix(values, refresh=False)

    def diverged(self, step, what):
        """A UserError: nothing can be learned from here on."""
        rates = [name for name in vars(self.cfg) if name == "lr" or name.endswith("_lr")]
        rates = " or ".join(f"--{name} ({getattr(self.cfg, name)})" for name in rates)
        kept = f"; {self.path} keeps the last good state" if self.path.exists() else ""
        return UserError(f"step {step}: {what}, so the training has diverged, most often because {rates} or "
                         f"a coefficient is too large: try --overwrite with a tenth of it{kept}")

    def say(self, text):
        """Print above the progress bar."""
        tqdm.write(text, file=sys.stdout)

    # -- Keeping it ------------------------------------------------------------------------------

    def record(self, step, finished, fingerprint):
        """What a later call or another stage has to know about this one."""
        command = shown_command([self.script, *self.cfg.argv])
        return {"stage": self.stage, "command": command, "knobs": self.knobs, "parents": self.parents,
                "step": step, "steps": self.total, "seconds": self.seconds, "finished": finished,
                "state": self.state, "fingerprint": fingerprint}

    def save(self, step, finished):
        """Write the checkpoint."""
        model = self.tracked["model"]
        if not all(x.isfinite().all() for x in model.state_dict().values()):
            raise self.diverged(step, "weights are not finite")
        if not parallel.is_first():
            return
        last = finished and self.stage != "ppo"  # nobody goes on with it; lab.explain shows PPO's next step
        content = {name: thing.state_dict() for name, thing in self.tracked.items()
                   if not (last and name == "optimizer")}
        content |= self.record(step, finished, fingerprint(model))
        content |= {"model_config": asdict(model.config), "random": machine.random_state()}
        content |= machine.computed_with(self.dtype)
        if self.new_tokenizer is not None:  # it appears together with the first model that needs it
            write_atomic(self.folder / TOKENIZER, self.new_tokenizer)
            self.new_tokenizer = None
        content["tokenizer"] = tokenizer_print(self.folder)
        if self.file("jsonl").is_file():
            flush(self.file("jsonl"))  # the rows that this checkpoint counts
        write_atomic(self.path, lambda file: torch.save(content, file))

    def write_record(self, finished):
        """Write the record of a collection."""
        rows = len(load_rows(self.path))
        record = self.record(rows, finished, fingerprint_of(self.path) if rows else "")
        write_atomic(self.file("json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def finish(self, samples, panels, caption):
        """Write samples, final checkpoint and picture, and say where they lie. panels: lab.report.picture."""
        write_atomic(self.file("samples.txt"), visible(samples) + "\n")
        self.state["picture"] = [panels, caption]
        with contextlib.suppress(OSError):
            if parallel.is_first():
                self.file("png").unlink()  # that of an earlier training
        self.save(len(self.rows), True)  # whoever is stopped before repeats only the evaluation
        draw(self.folder, self.name, len(self.rows), panels, caption)
        self.done()

    def finish_collection(self, samples):
        """Write the samples and the record of a finished collection, and say where they lie."""
        write_atomic(self.file("samples.txt"), visible(samples) + "\n")
        self.write_record(finished=True)
        self.done()

    def done(self):
        lock.release(self.folder, self.name)
        parallel.wait()
        endings = ("samples.txt", "json") if self.collection else ("samples.txt", "png", "jsonl")
        files = ", ".join(file.name for file in map(self.file, endings) if file.exists())
        print(wrapped(f"\n{self.name}: {time.time() - self.clock:.0f} s. In {self.folder}: {self.path.name}, "
                      f"{files}"), flush=True)

    def where_it_lies(self):
        """What there is to do with a finished stage."""
        lines = [f"{self.path} is finished.", f"  tables and answers: {self.file('samples.txt')}"]
        if self.collection:
            lines.append("  more of it: a larger --questions")
        else:
            lines.append(f"  try it: {shown_command(['model.py', str(self.path)])}")
        return "\n".join([*lines, "  again from the beginning: --overwrite"])
