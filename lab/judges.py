"""The AI judge that the flags describe (lab.cli.JudgeKnobs): which of them go together, and the judge
itself."""
import os
import re

from data import UserError
from lab import parallel
from lab.cli import JudgeKnobs, judge_is_asked
from lab.commands import command_of, shown_command
from lab.records import load_model
from world.judge import AI, OwnModel, is_preamble, preambles
from world.server import Server


def judge_rules(wanted):
    """Rules for a script with the knobs of an AI judge. wanted: a function of the config, whether an AI
    labels or rates."""
    return (
        ("--judge, --judge_url, --judge_model, --judge_timeout, --preamble and --chain_of_thought are about "
         "an AI judge: they go with preferences.py --labeler ai, or with train_ppo.py --reward ai",
         lambda cfg: judge_is_asked(cfg) and not wanted(cfg)),
        ("--judge_url: expected http://HOST:PORT/v1",
         lambda cfg: cfg.judge_url and not re.match(r"https?://[^/]+", cfg.judge_url)),
        ("--judge_url: a name and password in it would be kept in files; a key goes into JUDGE_API_KEY",
         lambda cfg: "@" in cfg.judge_url),
        ("--judge names a model of this run, --judge_url a server: choose one",
         lambda cfg: cfg.judge_url and cfg.judge != JudgeKnobs.judge),
        ("--judge_url: one process asks a server; start it with python, not with torchrun",
         lambda cfg: cfg.judge_url and parallel.several()),
        ("our own AI judge knows only the tiny world: with --data name a server's model with --judge_url",
         lambda cfg: wanted(cfg) and cfg.data and not cfg.judge_url),
        ("--preamble: expected none, base, detailed, a text file with your principles or a sentence",
         lambda cfg: wanted(cfg) and not is_preamble(cfg.preamble)),
    )


def load_judge(stage, enc, cfg, both_orders=True):
    """The AI judge that --judge, --judge_url and --preamble describe; our own one is trained first if it is
    missing."""
    if cfg.judge_url:
        key, bought = os.environ.get("JUDGE_API_KEY", "").strip(), stage.folder / "judge_calls.jsonl"
        model = Server(cfg.judge_url, cfg.judge_model, key, bought, cfg.judge_timeout)
    else:
        model, checkpoint = load_model(stage.parent(cfg.judge), stage.device)
        if not checkpoint["knobs"].get("reviews"):
            raise UserError(f"--judge {cfg.judge}: that model has not learned from reviews; train one with: "
                            f"{shown_command(command_of(cfg, 'judge'))}")
        model = OwnModel(model, enc)
    return AI(model, preambles(cfg.preamble), cfg.chain_of_thought, both_orders)
