"""The walls around what is graded. All attacks against both: python tests/assignment.py --attack."""
import json
import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from grader.attack_table import ATTACKS
from grader.attacks import MARK, outcome
from grader.examine import message, run, standing
from grader.language import Refused, alone, pieces_of
from grader.points import grade_one
from grader.problems import FILES, PROBLEMS, ROOT, problems_of
from grader.sources import source
from grader.variant import CASES, Dice, encode

HARMLESS = {"replace runtest from the top of the file", "a decorator", "for ever at the top"}  # never taken
CALCULATE = {"tensors", "lists", "a number", "for ever"}  # what only limits can stop


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_what_no_solution_needs_is_refused(attack):
    text = attack.text("/outside", ROOT, 1)
    if attack.name in HARMLESS | CALCULATE:
        assert attack.name in CALCULATE or attack.top not in alone("train_ppo.py", text, 8)
    else:
        with pytest.raises(Refused, match="^line [0-9]+: "):
            alone("train_ppo.py", text, 8)


@pytest.mark.parametrize("file", FILES)
def test_our_solutions_pass_the_check_and_change_nothing(file):
    for number in set(problems_of(file).values()):
        assert alone(file, source(file), number) == source(file)


@pytest.mark.parametrize("code", [
    "import torch.nn.functional as f\ndef whiten(x, mask, shift_mean=True):\n    return f.relu(x)",
    "from math import sqrt\nSMALL = 1e-8\ndef shrunk(v): return sqrt(v + SMALL)\n"
    "def whiten(x, mask, shift_mean=True):\n    return x * shrunk(masked_mean(x, mask).item())",
    "def whiten(x, mask, shift_mean=True):\n    from torch.distributions import Categorical\n    return x",
    "from torch.nn.utils.rnn import pad_sequence\ndef whiten(x, mask, shift_mean=True):\n"
    "    return pad_sequence(list(x)) + torch.nn.utils.rnn.pad_sequence(list(x), batch_first=True)",
    "def whiten(x, mask, shift_mean=True):\n    assert isinstance(x, torch.Tensor), f'{x!r:>9} %s' % x\n"
    "    return x",
    "def whiten(x, mask, shift_mean=True):\n"
    "    open = [row[m > 0].type(torch.float64) for row, m in zip(x, mask)]\n"
    "    return torch.einsum('bt->b', x)[:, None] + open[0].mean()",
])
def test_ordinary_code_is_taken(code):
    mixed = alone("train_ppo.py", code, 8)
    assert all(line in mixed for line in code.split("\n")) and compile(mixed, "mixed", "exec")


@pytest.mark.parametrize("code", [
    "type(x)", "type(type(x))('Yes', (), {})", "hasattr(x, 'shape')", "getattr(x, 'shape')",
    "'{0.shape}'.format(x)", "str.format('{}', x)", "'{x}'.format_map({'x': x})", "format(x, '')",
    "f'{x.__class__}'", "torch.nn.utils.rnn.torch", "torch.nn.utils.rnn.PackedSequence(x)"])
def test_what_looks_into_objects_is_refused_harmless_as_it_may_be(code):
    with pytest.raises(Refused, match="^line 2: .*none that a solution needs"):
        alone("train_ppo.py", f"def whiten(x, mask, shift_mean=True):\n    return {code}\n", 8)


def test_a_file_that_is_not_python_is_cut_into_what_is():
    text = "import math\n\n\n@cache\ndef a(x):\n    return (x\n\n\n"
    text += "def b(x):\n    '''\n\n\ndef c(x):\n    return x\n"
    broken = {piece.line: piece.why for piece in pieces_of(text) if piece.node is None}
    assert list(broken) == [4, 9] and "line 6" in broken[4]
    assert [piece.node.name for piece in pieces_of(text) if hasattr(piece.node, "name")] == ["c"]


@pytest.mark.parametrize("line, expected", [
    (b'["word", "node", null]', ("node", None)),
    (b'["word", "node", "why"]', ("node", "why")),
    (b'["guess", "node", null]', None),
    (b'["word", "node", {"a": 1}]', None),
    (b'["word", 1, null]', None),
    (b"\x80\x04cposix\nsystem\n", None),
    (b"[" * 100_000, None),
    (b"", None),
])
def test_a_message_is_checked(line, expected):
    assert message(line, "word") == expected


@pytest.mark.skipif("namespaces" not in standing(), reason="no namespaces here")
@pytest.mark.parametrize("name", ["unlink of C", "replace runtest"])
def test_the_namespaces_hold_what_gets_past_the_check(name):
    """And the other problem of the submission keeps its points."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    with mock.patch.dict(os.environ, GRADER_SECRET="secret"):
        came = outcome(attack, first_wall=False)
    assert (came.points, came.others, came.harm) == (0, True, "")


@pytest.mark.skipif("namespaces" not in standing(), reason="no namespaces here")
def test_signals_to_its_group_reach_no_other_submission():
    killer = {"train_ppo.py": "def whiten(x, mask, shift_mean=True):\n    import os\n    import time\n"
                              "    for _ in range(9):\n        time.sleep(0.1)\n        os.kill(0, 9)\n"}
    with ThreadPoolExecutor() as pool:
        attack = pool.submit(grade_one, 8, killer, 30.0, first_wall=False, walls=("namespaces",))
        for _ in range(2):
            row = grade_one(4, {"train_rm.py": source("train_rm.py")}, 30.0)
            assert row["points"] == row["of"], "another submission, at the same time"
    assert attack.result()["points"] == 0


def test_time_has_an_end():
    node = PROBLEMS[7].nodes()[0]
    text = "def whiten(x, mask, shift_mean=True):\n    while True:\n        pass\n"
    said = run([node], {"train_ppo.py": alone("train_ppo.py", text, 8)}, 1.0)
    assert said == {node: "not done after 1 s"}


def test_hidden_cases_are_the_seeds_and_can_be_written_down():
    for number, functions in CASES.items():
        for _, _, arguments in functions:
            one, again, other = (json.dumps(encode(list(arguments(Dice(seed))))) for seed in (1, 1, 2))
            assert one == again != other, number


def test_the_mark_of_our_solution_is_in_it():
    assert MARK in source("train_ppo.py")
