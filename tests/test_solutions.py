"""The tables of wrong and right solutions fit the sources. What the graded tests say of them:
python tests/solutions.py."""
import sys
from types import ModuleType

import pytest
from assignment import PROBLEMS
from solutions import RIGHT, WRONG, pieces, put_in, right_code, wrong_code
from solutions_wrong import Wrong


def test_every_wrong_solution_is_python_and_another_one_than_ours():
    names = [(s.problem, s.what) for s in WRONG]
    assert len(set(names)) == len(names) >= 150
    assert {number for number, _ in names} == set(range(1, len(PROBLEMS) + 1))
    for s in WRONG:
        ours = "\n\n".join(text for _, text in pieces(s.problem)).strip()
        code = wrong_code(s)
        assert "\n\n".join(text.strip() for text in code.values()) != ours, s.what
        for text in code.values():
            compile(text, f"problem {s.problem}, {s.what}", "exec")


def test_every_right_solution_is_python_and_in_place_of_something():
    assert len({(s.problem, s.what) for s in RIGHT}) == len(RIGHT) >= 40
    assert {s.problem for s in RIGHT} == set(range(1, len(PROBLEMS) + 1))
    for s in RIGHT:
        compile(s.code, f"problem {s.problem}, {s.what}", "exec")
        assert right_code(s), f"problem {s.problem}, {s.what}: none of the functions asked for"


@pytest.mark.parametrize("text, count", [("Returns", 3), ("perplexity", 0)])
def test_a_text_that_is_not_there_once_is_told(text, count):
    with pytest.raises(ValueError, match=f"problem 11, no reason: '{text}' is there {count} times"):
        wrong_code(Wrong(11, "no reason", [(text, "pass")]))


def test_a_solution_stands_wherever_ours_was_imported(monkeypatch):
    here, there = ModuleType("here_it_is"), ModuleType("there_it_is")
    here.double = there.double = lambda x: x + x
    for module in (here, there):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    put_in({"here_it_is": "def double(x):\n    return helper * x\n\n\nhelper = 3"})
    assert here.double(2) == there.double(2) == 6
