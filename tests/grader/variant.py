"""Variants: with a seed of its own a class is graded with other random numbers in the tests (TEST_SEED, read
by tests/conftest.py), and the functions that calculate with hidden cases besides: other sizes, other knobs,
against what our solution gives. The expected values are calculated here, not where a submission runs."""
import importlib
import json
import random
import sys

from grader.problems import ROOT

HERE = "tests/test_variant.py"
N = 4  # cases of each function


def hidden_test(number):
    """The test of the hidden cases of a problem, as pytest calls it."""
    return f"{HERE}::test_hidden_cases_of_problem_{number}"


TEST = '''
import importlib
import json
from pathlib import Path

import torch


def read(x):
    """What encode() of the grader has written."""
    if isinstance(x, dict) and "tensor" in x:
        return torch.tensor(x["tensor"], dtype=getattr(torch, x["dtype"]))
    if isinstance(x, dict) and "tuple" in x:
        return tuple(map(read, x["tuple"]))
    if isinstance(x, dict):
        return {name: read(value) for name, value in x.items()}
    return list(map(read, x)) if isinstance(x, list) else x


def near(got, expected):
    """Whether two values are the same but for rounding; a tensor of one number may be a number."""
    if isinstance(expected, dict):
        return all(near(got[name], value) for name, value in expected.items())
    if isinstance(expected, tuple):
        return len(got) == len(expected) and all(map(near, got, expected))
    got, expected = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_hidden_cases_of_problem_NUMBER():
    for module, name, arguments, expected in json.loads(Path(__file__).with_suffix(".json").read_text()):
        got, expected = getattr(importlib.import_module(module), name)(*read(arguments)), read(expected)
        assert near(got, expected), f"hidden case of {name}"
'''


# ------------------------------------------------------------------------------------------------
# Arguments, each from a random.Random and a torch.Generator
# ------------------------------------------------------------------------------------------------


class Dice:
    """Random sizes, numbers and tensors of a seed."""

    def __init__(self, seed):
        import torch

        self.torch, self.rng = torch, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, least=2, most=7):
        return self.rng.randint(least, most)

    def knob(self, least, most):
        return round(self.rng.uniform(least, most), 3)

    def numbers(self, *shape, scale=1.0):
        return scale * self.torch.randn(shape, generator=self.generator)

    def tokens(self, below, *shape):
        return self.torch.randint(below, shape, generator=self.generator)

    def mask(self, B, R):
        """1 on the first tokens of each row, at least one."""
        lengths = self.torch.randint(1, R + 1, (B, 1), generator=self.generator)
        return (self.torch.arange(R) < lengths).float()


def language_model(dice):
    B, T, V = dice.size(), dice.size(), dice.size(3, 9)
    return dice.numbers(B, T, V, scale=3), dice.tokens(V, B, T)


def tuning(dice):
    logits, targets = language_model(dice)
    return logits, targets, dice.mask(*targets.shape)


def rows(dice):
    def ids():
        return [dice.size(1, 9) for _ in range(dice.size(1, 6))]

    return [(ids(), ids()) for _ in range(dice.size())], 0


def comparisons(dice):
    n = dice.size()
    margin = dice.rng.choice([None, dice.numbers(n).abs()])
    p_chosen = dice.rng.choice([None, dice.numbers(n).sigmoid()])
    return dice.numbers(n, scale=3), dice.numbers(n, scale=3), margin, p_chosen


def games(dice):
    n, rankings = dice.size(3, 6), []
    for _ in range(dice.size(1, 4)):
        order = dice.rng.sample(range(n), n)
        cut = dice.size(1, n - 1)
        rankings.append([[i] for i in order[:cut]] + [order[cut:]])
    return rankings, dice.knob(8, 40), dice.knob(500, 1500), dice.size(1, 4)


def shaping(dice):
    B, R = dice.size(), dice.size()
    return dice.numbers(B), dice.numbers(B, R), dice.numbers(B, R), dice.mask(B, R), dice.knob(0.01, 1)


def advantages(dice):
    B, R = dice.size(), dice.size()
    return dice.numbers(B, R), dice.numbers(B, R), dice.mask(B, R), dice.knob(0.5, 1), dice.knob(0, 1)


def white(dice):
    B, R = dice.size(), dice.size(3, 8)
    return dice.numbers(B, R, scale=3), dice.mask(B, R), dice.rng.random() < 0.5


def clipped(dice):
    B, R = dice.size(), dice.size()
    n_tokens = dice.rng.choice([None, dice.size(5, 50)])
    clip = dice.rng.choice([0, dice.knob(0.05, 0.5)])
    return *(dice.numbers(B, R) for _ in range(3)), dice.mask(B, R), clip, n_tokens


def answers(dice):
    N, K = dice.size(), dice.size(3, 8)
    return dice.numbers(N, K), dice.numbers(N, K), dice.size(1, K)


CASES = {  # problem: [(module, function, what makes its arguments)]
    1: [("train_pretrain", "lm_loss", language_model)],
    2: [("train_sft", "sft_loss", tuning), ("data", "sft_batch", rows)],
    4: [("train_rm", "bradley_terry_loss", comparisons)],
    5: [("preferences", "elo_scores", games)],
    6: [("train_ppo", "kl_shaped_rewards", shaping)],
    7: [("train_ppo", "gae", advantages)],
    8: [("train_ppo", "whiten", white)],
    9: [("train_ppo", "ppo_policy_loss", clipped)],
    10: [("train_ppo", "value_loss", clipped)],
    11: [("rejection_sampling", "best_of", lambda dice: answers(dice)[:1]),
         ("rejection_sampling", "subset_weights", lambda dice: (dice.size(4, 9), dice.size(1, 4))),
         ("rejection_sampling", "best_of_n", answers)],
}


def encode(x):
    """A value as JSON can hold it."""
    if hasattr(x, "dtype"):
        return {"tensor": x.tolist(), "dtype": str(x.dtype).removeprefix("torch.")}
    if isinstance(x, tuple):
        return {"tuple": list(map(encode, x))}
    if isinstance(x, dict):
        return {name: encode(value) for name, value in x.items()}
    return list(map(encode, x)) if isinstance(x, list) else x


def cases_of(number, seed):
    """The files of the hidden cases of a problem: {file: text}."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    dice, found = Dice(1000 * seed + number), []
    for module, name, arguments in CASES[number]:
        function = getattr(importlib.import_module(module), name)
        for _ in range(N):
            args = arguments(dice)
            given = encode(list(args))  # before the function can change them
            found.append([module, name, given, encode(function(*args))])
    text = TEST.replace("NUMBER", str(number))
    return {HERE: text, HERE.replace(".py", ".json"): json.dumps(found)}
