"""The benchmark counts and compares as it says; what it measures is for a quiet machine."""
import ast
import os
import sys

import pytest
import torch
from benchmark import HEADER, Peer, cells, check, measured, remarks, seconds
from benchmark_crowd import crowd, together
from benchmark_growth import Curve, exponent, in_a_process, in_words
from benchmark_work import (
    Work,
    all_work,
    blocks,
    head,
    ppo_iteration,
    reward_steps,
    sampling,
    training,
)
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from data import UserError
from lab.report import table
from model import GPT, GPTConfig

PROMPT, ANSWER = 3, 4
TINY = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=264, block_size=8)


@pytest.fixture
def short_answers(monkeypatch):
    monkeypatch.setattr("benchmark_work.PROMPT", PROMPT)
    monkeypatch.setattr("benchmark_work.ANSWER", ANSWER)


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------
# Operations
# ------------------------------------------------------------------------------------------------


def test_operations_of_an_example():
    s = dict(n_layer=3, n_embd=2, vocab_size=3)
    # 3 layers, 5 tokens, each 12 * 2^2 = 48 multiplications and, looking at 7 tokens, 2 * 7 * 2 = 28
    assert blocks(s, 5, 7) == 2 * 3 * 5 * (48 + 28)
    assert blocks(s, 5, 7, read=1) == blocks(s, 5, 7) - 2 * 4 * 32  # an MLP: 8 * 2^2
    assert head(s, 5) == 2 * 5 * 2 * 3


def test_operations_of_training_are_three_forward_passes(monkeypatch):
    monkeypatch.setattr("lab.optim.Muon.step", lambda self: None)  # its products are not counted
    work, tokens = training(TINY, 3), torch.zeros(3, TINY["block_size"], dtype=torch.long)
    forward = counted(lambda: GPT(GPTConfig(**TINY))(tokens))
    assert work.operations == 3 * forward == counted(work.run)
    assert work.tokens == tokens.numel()


def test_operations_of_sampling_are_all_but_the_last_token(short_answers):
    work, T = sampling(TINY, 3), TINY["block_size"]
    assert counted(work.run) == work.operations + blocks(TINY, 3, T)  # which is read, and needed by nobody


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_operations_of_ppo(critic, short_answers):
    work = ppo_iteration(TINY, critic, answers=4, epochs=2, minibatches=2)
    heads_of_one_number = 0.02  # those of critic and reward model
    unneeded = blocks(TINY, 4, PROMPT + ANSWER)
    assert counted(work.run) == pytest.approx(work.operations + unneeded, rel=heads_of_one_number)
    assert work.tokens == 4 * ANSWER
    assert "2 x 2 optimizer steps" in work.does and "2 x 7 tokens" in work.does


def test_operations_of_the_reward_model(monkeypatch):
    monkeypatch.setattr("lab.optim.Muon.step", lambda self: None)
    work = reward_steps(TINY, 2, 7, times=2)
    assert counted(work.run) == pytest.approx(2 * work.operations, rel=0.01)


# ------------------------------------------------------------------------------------------------
# Ours and theirs, in turn
# ------------------------------------------------------------------------------------------------


class FakePeer:
    def __init__(self, heard):
        self.heard = heard

    def seconds(self, asked):
        self.heard.append(asked)
        return 8.0


def test_ours_and_theirs_in_turn(monkeypatch):
    heard = []
    work = Work(lambda: heard.append("ours"), "1 forward pass", 100, 1000, times=2)
    ticks = iter([0, 4, 10, 18, 20, 32])  # 4, 8 and 12 seconds for two units each
    monkeypatch.setattr("benchmark.time.perf_counter", lambda: next(ticks))
    row = measured("a step", work, ["ppo"], FakePeer(heard), ["float32"], pairs=3)
    assert heard == ["ours", *["ours", ["ppo", "float32"]] * 3]
    assert row["measured"] == [2, 4, 6] and row["seconds"] == 4
    found = row["peers"]["TRL float32"]
    assert found["ratios"] == [4, 2, 8 / 6] and found["ratio"] == 2


def test_without_a_peer():
    heard = []
    row = measured("a step", Work(lambda: heard.append(1), "", 1, 1), None, None, ["float32"], 2)
    assert len(heard) == 3 and len(row["measured"]) == 2 and row["peers"] == {}


def test_seconds_are_of_a_unit(monkeypatch):
    ticks = iter([1.0, 13.0])
    monkeypatch.setattr("benchmark.time.perf_counter", lambda: next(ticks))
    assert seconds(Work(lambda: None, "", 1, 1, times=4)) == 3.0


def peer_that_says(folder, lines):
    """A Peer that runs a script of these lines."""
    script = folder / "other.py"
    script.write_text("\n".join(["import json, sys", "def say(x): print(json.dumps(x), flush=True)", *lines]))
    return Peer(sys.executable, 1, script=script)


def test_a_peer_is_asked_line_by_line(tmp_path):
    answers = "for line in sys.stdin: say(len(json.loads(line)))"
    peer = peer_that_says(tmp_path, ["say({'trl': '1.2'})", answers])
    assert peer.versions == {"trl": "1.2"}
    assert [peer.seconds(["ppo", "float32"]), peer.seconds(["ppo"])] == [2, 1]
    peer.close()


def test_what_a_peer_lacks_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nowhere/python: it cannot be started .No such file"):
        Peer("nowhere/python", 1)
    with pytest.raises(UserError, match=r"has no trl datasets: .* -m pip install trl datasets"):
        peer_that_says(tmp_path, ["say({'torch': '2', 'trl': None, 'datasets': None})"])
    peer = peer_that_says(tmp_path, ["say({})", "sys.stdin.readline()", "raise ValueError('too old')"])
    with pytest.raises(UserError, match=r"\(train tiny\); its last words: ValueError: too old"):
        peer.seconds(["train", "tiny"])


def test_peers_are_imported_only_where_they_are():
    tree = ast.parse((ROOT / "tests" / "peers.py").read_text(encoding="utf-8"))
    names = {a.name for x in tree.body if isinstance(x, ast.Import) for a in x.names}
    names |= {x.module for x in tree.body if isinstance(x, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


# ------------------------------------------------------------------------------------------------
# What it says
# ------------------------------------------------------------------------------------------------


def test_the_table_in_words():
    row = {"work": "a step", "operations": 6e9, "seconds": 2.0, "tokens": 3000,
           "peers": {"TRL float32": {"ratio": 1.5, "ratios": [1.4, 1.5, 1.6]}}}
    most = {"float32": 12e9, "bfloat16": 3e9}
    ratios = "TRL float32 1.50 (pairs: 1.40 1.50 1.60)"
    assert cells(row, most) == ["a step", "2.000", "1,500", "25%", "100%", ratios]
    text = table(HEADER, [cells(row, most), cells({**row, "peers": {}}, most)], 120)
    assert "of fp32 peak" in text and "peer's time / ours" in text
    assert text.split("\n")[-1].endswith("-")
    assert "12.0, bfloat16 3.0 GFLOP/s" in remarks(most) and "no units for bfloat16" in remarks(most)


def test_every_row_has_a_name_of_its_own():
    names = [name for name, *_ in all_work()]
    assert len(set(names)) == len(names) == 11
    assert any("less work than TRL's" in name for name in names)


@pytest.mark.parametrize("given, said", [
    ({"what": "growth", "only": "PPO"}, "about our code alone"),
    ({"what": "crowd", "threads": 2}, "as they come: no --threads"),
    ({"picture": ROOT / "x.png"}, "goes with growth"),
    ({"nanogpt": ROOT}, "needs a --peer_python"), ({"only": "PPPO"}, "pretraining step"),
    ({"nanogpt": ROOT / "docs", "peer_python": "python"}, "a folder with nanoGPT's model.py"),
    ({"json": ROOT / "nowhere" / "x.json"}, "there is no folder")])
def test_flags_that_do_not_fit(given, said):
    usual = dict(what=None, threads=None, peer_python=None, nanogpt=None, only="", picture=None, json=None)
    with pytest.raises(UserError, match=said):
        check(type("Args", (), usual | given))


def test_memory_is_that_of_the_work_alone(monkeypatch):
    """A process of its own: neither what this one has had in memory nor what the small work needs. (200 MB
    are more than the C library takes from what it has kept.)"""
    def work_of(what, size):
        return Work(lambda: torch.ones(size or 200, 10**6, dtype=torch.uint8), "", 1, 1)

    torch.ones(400, 10**6, dtype=torch.uint8)
    monkeypatch.setattr("benchmark_growth.work_of", work_of)
    seconds, memory = in_a_process("batch", 250, 1)
    assert memory == pytest.approx(50e6, abs=8e6) and seconds > 0


def test_a_measurement_that_dies_is_one_sentence(monkeypatch):
    monkeypatch.setattr("benchmark_growth.measure", lambda *args: os._exit(9))
    with pytest.raises(UserError, match="batch 4: the process that measured it died"):
        in_a_process("batch", 4, 1)


def test_growth_in_words():
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    curve = Curve([1, 2, 4], [1.0, 2.0, 4.0], [5.0, 5.0, 5.0])
    text = in_words("length", curve)
    assert "time of a training step grows in proportion to it: exponent 1.00, a doubling takes 2.0" in text
    assert "memory of a training step hardly grows: exponent 0.00" in text
    assert "a rollout" in in_words("answers", curve)


WAITS_FOR_THE_OTHER = """
import pathlib, sys, time
me, other = sys.argv[1:]
pathlib.Path(me).touch()
while not pathlib.Path(other).exists():
    time.sleep(0.01)
"""


def test_a_crowd_runs_at_once(tmp_path):
    pairs = (("a", "b"), ("b", "a"))
    assert together([["-c", WAITS_FOR_THE_OTHER, *pair] for pair in pairs], tmp_path) > 0
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(UserError, match="exit.5. ended with 5"):
        together([["-c", "pass"], ["-c", "exit(5)"]], tmp_path)


def test_a_crowd_is_compared_with_one_after_the_other(monkeypatch, capsys):
    asked, times = [], iter([1.0, 2.0, 6.0])
    fake = lambda commands, folder: asked.append(commands) or next(times)  # noqa: E731
    monkeypatch.setattr("benchmark_crowd.together", fake)
    assert crowd(2, ("train_it.py", "--fast"))["ratio"] == 2.0
    assert [len(commands) for commands in asked] == [1, 1, 2]
    names = [command[-1] for commands in asked for command in commands]
    assert len(set(names)) == 4, "each has a folder of its own"
    said = capsys.readouterr().out
    assert "train_it.py --fast, 2 times: 3.0 seconds one after the other, 6.0 at once, 2.00 times" in said
