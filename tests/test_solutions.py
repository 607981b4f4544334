"""The tables of wrong and right solutions fit the sources. What the graded tests say of them:
python tests/solutions.py."""
import pytest
from grader.problems import PROBLEMS
from solutions import RIGHT, WRONG, by_file, ours, right_texts, wrong_texts
from solutions_wrong import Wrong


def test_every_wrong_solution_is_python_and_another_one_than_ours():
    names = [(s.problem, s.what) for s in WRONG]
    assert len(set(names)) == len(names) >= 150
    assert {number for number, _ in names} == set(range(1, len(PROBLEMS) + 1))
    for s in WRONG:
        texts = wrong_texts(s)
        assert texts != by_file(ours(s.problem)), s.what
        for text in texts.values():
            compile(text, f"problem {s.problem}, {s.what}", "exec")


def test_every_right_solution_is_python_and_in_place_of_something():
    assert len({(s.problem, s.what) for s in RIGHT}) == len(RIGHT) >= 40
    assert {s.problem for s in RIGHT} == set(range(1, len(PROBLEMS) + 1))
    for s in RIGHT:
        compile(s.code, f"problem {s.problem}, {s.what}", "exec")
        texts = right_texts(s)
        assert any(s.code in text for text in texts.values()), f"{s.what}: none of the functions asked for"
        assert texts.keys() == PROBLEMS[s.problem - 1].functions.keys()


@pytest.mark.parametrize("text, count", [("Returns", 3), ("perplexity", 0)])
def test_a_text_that_is_not_there_once_is_told(text, count):
    with pytest.raises(ValueError, match=f"problem 11, no reason: '{text}' is there {count} times"):
        wrong_texts(Wrong(11, "no reason", [(text, "pass")]))
