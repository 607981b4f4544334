"""The command line: knobs with a reason each, presets, and mistakes that end in one sentence."""
import argparse
import difflib
import math
import re
import sys
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from data import CONTROL, UserError
from lab import parallel
from lab.commands import same_command
from lab.terminal import screens, terminal_width, visible


class InvariantError(Exception):
    """Something that must hold in every run does not: a bug, told in words that a learner understands."""


LIMITS = {int: 10**9, float: 100.0}  # the highest value of a knob that names none; what is more is a slip


def knob(default, reason, low=None, high=None, choices=None, heading=None, learned=True):
    """A field of a Config.

    reason: why it is there, in words; -h shows it. low, high, choices: which values are allowed.
    heading: begins a group of knobs; -h shows the groups under their headings.
    A number without a `high` has that of LIMITS.
    learned: whether it changes what is learned. A stage that was trained with another value of such a knob
    is another stage; the other knobs (a timeout) may change from one call to the next.
    """
    high = LIMITS.get(type(default)) if high is None else high
    about = {"reason": reason, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata={**about, "heading": heading, "learned": learned})


@dataclass
class Which:
    """The knobs that name a run."""

    config: str = knob("tiny", "preset: tiny (embedded world, minutes on a CPU), smoke (the same in seconds: "
                       "does it run?), or on your text (--data) small or gpt2 (GPT-2's weights, 124 M)",
                       heading="The run")
    run: str = knob("", "its folder under runs/ (usually the preset, with the data's name and the seed)",
                    learned=False)
    seed: int = knob(0, "one seed, one result; other seeds get a run folder of their own", low=0,
                     high=2**63 - 1)
    data: str = knob("", "folder with your own pretrain, sft, preferences or prompts file")
    argv = ()  # the flags as they were given; no knob


@dataclass
class Common(Which):
    """The knobs that every stage has."""

    name: str = knob("", "name of a variant of this stage, kept beside the standard one", learned=False)
    device: str = knob("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"), learned=False)
    threads: int = knob(0, "of the CPU (0: one a core); 1 where several runs share it", low=0, high=1024,
                        learned=False)
    dtype: str = knob("auto", "of products in pretraining, SFT and reward models: bfloat16 where that is "
                      "faster (sampling and PPO compute in float32)", learned=False,
                      choices=("auto", "float32", "bfloat16"))
    overwrite: bool = knob(False, "begin this stage anew although it is there", learned=False)


@dataclass
class JudgeKnobs(Common):
    """The knobs of an AI judge, for the scripts that have one rank or rate."""

    judge: str = knob("judge", "a model of this run that has learned from reviews", heading="The AI judge")
    judge_url: str = knob("", "or one behind an OpenAI-compatible server, http://HOST:PORT/v1; a key is "
                          "read from the environment variable JUDGE_API_KEY")
    judge_model: str = knob("", "the name of that model, where the server has several")
    judge_timeout: float = knob(60.0, "seconds that the server may take for an answer", low=0.1,
                                high=86400, learned=False)
    preamble: str = knob("detailed", "what it is told to look for: none, base, detailed, or a text file "
                         "with principles of your own")
    chain_of_thought: bool = knob(True, "it writes notes on an answer first and reads them for its verdict")


def judge_is_asked(cfg):
    """Whether a flag says something about an AI judge."""
    common = {f.name for f in fields(Common)}
    own = [f for f in fields(JudgeKnobs) if f.name not in common]
    return any(getattr(cfg, f.name) != f.default for f in own)


# What flags of earlier versions have become. Looked at only where a script does not know a flag.
COLLECT = "who ranks, what and how much, is said when rankings are collected"
OLD_FLAGS = {
    "--resume": "the same command goes on by itself where it was stopped",
    "--judge_between": "python model.py A.pt --against B.pt compares two models blindly",
    "--explain": "python -m lab.explain CHECKPOINT shows one PPO step",
    "--prompt": "python -m lab.explain CHECKPOINT --prompt TEXT shows one PPO step, "
                "python model.py CHECKPOINT --prompt TEXT an answer",
    "--rankings": "preferences.py --questions N says how many are ranked, train_rm.py --rankings NAME which "
                  "collections it learns from",
    "--whitening": "train_ppo.py --score_scale sft or batch says what scores are measured in",
    "--folds": "python docs/experiments.py folds cross-validates a reward model",
    "--labeler": f"{COLLECT} (python preferences.py --labeler ai); then train_rm.py --rankings rankings_ai "
                 "--name NAME, or train_ppo.py --reward rm_ai",
    **dict.fromkeys(("--rankings_per_prompt", "--ai_rankings", "--human_rankings"),
                    f"{COLLECT}, by python preferences.py --questions N"),
    **dict.fromkeys(("--chain_of_thought", "--both_orders", "--noise", "--tie_gap", "--flip_rate",
                     "--position_habit", "--answers_of", "--answers_per_prompt", "--held_out_rankings"),
                    f"{COLLECT}, by a knob of preferences.py"),
}


# ------------------------------------------------------------------------------------------------
# From the command line to a Config
# ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse, whose complaint is one line."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        for word in args:
            if re.fullmatch("--\\w+=--", word):  # which argparse takes for no value at all
                self.error(f"argument {word[:-3]}: expected a value, got --")
            if re.search("[\ud800-\udfff]", word):  # bytes that no file could keep as text
                self.error(f"expected text in UTF-8, got {word[:60]!r}")
            if CONTROL.search(word):  # a record that holds such would be taken for damaged
                self.error(f"expected text without control characters, got {word[:60]!r}")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, visible(f"{self.prog}: {message} (-h lists every knob)") + "\n")


class Help(argparse.RawDescriptionHelpFormatter):
    """-h within 100 columns, or those of the terminal."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=terminal_width())


def parse(config_class, presets, doc, argv=None, rules=()):
    """Command line -> config_class. `--config NAME` picks a preset (its dict of changed defaults), every
    other flag sets one field.

    rules: (sentence, condition on the config) each: what does not go together. The first that holds raises
    UserError. A wrong flag, value or preset ends with one line that says what would be right.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    prog = Path(sys.argv[0]).name
    parser = Parser(prog=prog, usage=f"{prog} [--config PRESET] [--KNOB VALUE ...]", description=doc,
                    allow_abbrev=False, formatter_class=Help)
    preset = preset_of(parser, argv, presets)
    for heading, group in groups_of(config_class):
        section = parser.add_argument_group(heading)
        for f in group:
            add_flag(section, f, presets[preset].get(f.name, f.default))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(about_unknown(unknown[0], [f.name for f in fields(config_class)]))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items()}
    config = config_class(**values)
    config.config, config.argv = preset, argv
    check_rules(config, rules)
    return config


def check_rules(config, rules):
    """Raises UserError with the sentence of the first rule that holds."""
    for sentence, holds in rules:
        if holds(config):
            raise UserError(sentence)


def preset_of(parser, argv, presets):
    """The preset that the flags name; it has to be known before the others are read."""
    preset = "tiny"
    for i, flag in enumerate(argv):
        if flag == "--config":
            preset = "".join(argv[i + 1 : i + 2]) or preset  # argparse tells that there is none
        elif flag.startswith("--config="):
            preset = flag.partition("=")[2]
    if preset not in presets:
        near = did_you_mean(preset, presets, cutoff=0)
        parser.error(f"no preset {preset!r}; there is {' and '.join(presets)}{near}")
    return preset


def groups_of(config_class):
    """[(heading, fields)] in the order of interest: the script's own knobs, a judge's, those of any run."""
    groups = []
    for f in fields(config_class):
        if f.metadata["heading"] or not groups:
            groups.append((f.metadata["heading"], []))
        groups[-1][1].append(f)
    common, judge = ({f.name for f in fields(c)} for c in (Common, JudgeKnobs))

    def interest(group):
        first = group[1][0].name
        if first in common:
            return 2
        return 1 if first in judge else 0

    return sorted(groups, key=interest)


def add_flag(section, f, default):
    """The flag of field f, which is `default` where it is not given."""
    shown = "" if default in ("", ()) else f" [{default}]"
    kind = {int: "N", float: "X", str: "TEXT", tuple: "NAME", bool: "true|false"}[f.type]
    more = {}
    if f.type is bool:
        more = {"nargs": "?", "const": True}
    elif f.type is tuple:
        more = {"nargs": "+"}
    elif f.metadata["choices"]:
        kind = "|".join(f.metadata["choices"])
    reason = f"{f.metadata['reason']}{shown}".replace("%", "%%")
    section.add_argument(f"--{f.name}", type=partial(convert, f), default=default, metavar=kind,
                         help=reason, **more)


def about_unknown(flag, names):
    """What is to be said about a flag that a script does not have."""
    flag = flag.split("=")[0]
    if flag in OLD_FLAGS:
        return f"there is no {flag} here; {OLD_FLAGS[flag]}"
    near = did_you_mean(flag.lstrip("-"), names, cutoff=0.5, prefix="--")
    return f"unknown {flag}{near.replace(':', ';')}"


def did_you_mean(word, words, cutoff=0.6, prefix=""):
    near = difflib.get_close_matches(word, words, 1, cutoff)
    return f": did you mean {prefix}{near[0]}?" if near else ""


def convert(f, text):
    """The text of a flag -> the value of field f. Raises argparse's error with what would be right."""
    kind = str if f.type is tuple else f.type
    low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
    wanted = "true or false" if kind is bool else kind.__name__
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
    complaint = None
    if choices and value not in choices:
        complaint = f"expected {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}"
    elif kind is float and not math.isfinite(value):
        complaint = f"expected a finite number, got {text}"
    elif low is not None and value < low:
        complaint = f"expected at least {low}, got {text}"
    elif high is not None and value > high:
        complaint = f"expected at most {high}, got {text}"
    if complaint:
        raise argparse.ArgumentTypeError(complaint)
    return value


def knobs_from(config_class, knobs, where):
    """{name: value} of those of the knobs of a stage, a dict, that a Config has. Raises UserError where one
    has a value that no flag gives it, or none gives it any more. where: the stage's file."""
    found = {}
    for f in (f for f in fields(config_class) if f.name in knobs):
        try:
            found[f.name] = value_of(f, knobs[f.name])
        except (argparse.ArgumentTypeError, TypeError) as error:
            raise UserError(f"{where} has a --{f.name} that is not allowed ({error}): make it again with "
                            "--overwrite") from None
    return found


def value_of(f, value):
    """What was kept of the value of field f, as a Config has it."""
    return tuple(convert(f, part) for part in value) if f.type is tuple else convert(f, str(value))


# ------------------------------------------------------------------------------------------------
# The end of a command
# ------------------------------------------------------------------------------------------------


def run_main(main, stopped=None):
    """Call a script's main(); what a user can mend ends in one sentence. stopped: said after Ctrl-C."""
    program = Path(sys.argv[0]).name
    with screens(), parallel.joined():
        try:
            main()
        except KeyboardInterrupt:
            if stopped is None:
                stopped = f"Stopped. {same_command().capitalize()} goes on from what is saved."
            print(f"\n{stopped}".rstrip(), flush=True)
            sys.exit(130)
        except (UserError, InvariantError, OSError, MemoryError, RuntimeError) as error:
            sentence = sentence_of(error)
            if not sentence:
                raise
            sys.exit(visible(f"{program}: {sentence}"))


def sentence_of(error):
    """What a user should know of an error, or None for a bug, whose traceback helps more."""
    if isinstance(error, (UserError, InvariantError)):
        return str(error)
    if isinstance(error, OSError):
        what = error.filename or "a file of the run"
        why = error.strerror or error
        return f"{what} cannot be written or read ({why}); what was saved before is still there"
    if parallel.several() and re.search("peer|gloo|NCCL|[Cc]onnection", str(error)):
        return f"another process of this training has ended; {same_command()} goes on from what is saved"
    if isinstance(error, MemoryError) or re.search(r"allocate|out of memory", str(error)):
        return "this needs more memory than there is: choose a smaller model, batch or number of answers"
    return None
