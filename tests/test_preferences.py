"""Collecting rankings, and the numbers that are made of them."""
import itertools
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch

import preferences
from data import UserError, load_rows
from lab.report_rankings import remarks, shown, summary
from preferences import (
    RULES,
    Config,
    ask,
    bradley_terry_fit,
    check_questions,
    elo_scores,
    labelers,
    name_of,
    questions_of,
    sample,
)
from world.judge import AI
from world.labelers import Human, Labeler, SimulatedHuman
from world.taste import TASTE

# ------------------------------------------------------------------------------------------------
# Numbers made of rankings
# ------------------------------------------------------------------------------------------------

CLEAN = [[0], [1], [2], [3]]  # 0 > 1 > 2 > 3


def test_elo_by_hand():
    """K-factor 32, start 1000, the games in the order of the answers."""
    assert elo_scores([CLEAN]) == pytest.approx([1045.828, 1015.362, 984.767, 954.043], abs=2e-3)
    assert elo_scores([[[1], [0]]], k_factor=10, start=0) == pytest.approx([-5, 5]), "half of the K-factor"
    assert elo_scores([[[0, 1]]]) == [1000, 1000], "a tie between equals moves nothing"
    expected = 1 / (1 + 10 ** (-16 * 2 / 400))  # of the first, 32 points ahead after one win
    lost = 32 * (expected - 0.5)
    assert elo_scores([[[0], [1]], [[0, 1]]]) == pytest.approx([1016 - lost, 984 + lost]), "a loss"


@pytest.mark.parametrize("rankings", [[CLEAN], [[[2, 0], [1, 3]], [[3], [1], [0, 2]]]])
def test_elo_takes_from_one_what_it_gives_to_the_other(rankings):
    assert sum(elo_scores(rankings, passes=7, rng=random.Random(0))) == pytest.approx(4000)


def test_one_pass_depends_on_the_order_of_the_games_and_many_passes_have_no_end():
    assert elo_scores([CLEAN], rng=random.Random(1)) != pytest.approx(elo_scores([CLEAN]), abs=0.1)
    assert elo_scores([CLEAN], passes=100)[0] == pytest.approx(1685, abs=1)


def test_every_pass_is_shuffled():
    """All games: of the 720 orders of six those that keep to the ranking are 72. In two passes two games have
    four orders, shuffled once two."""
    def results(rankings, passes):
        seeds = [elo_scores(rankings, passes=passes, rng=random.Random(seed)) for seed in range(300)]
        return [tuple(round(rating, 6) for rating in scores) for scores in seeds]

    six, two = [[[0], [1], [2]], [[2], [1], [0]]], [[[0], [1]], [[1], [0]]]
    assert len(set(results(six, 1))) > 72
    assert len(set(results(two, 2))) == 4
    assert results(six, 1) == results(six, 1), "random numbers that are not rng's have a part in it"


def test_elo_rates_every_number_up_to_the_highest_that_plays():
    assert elo_scores([[[2], [1]]]) == pytest.approx([1000, 984, 1016]), "nobody is number 0"
    assert elo_scores([[[0], [1]], [[3], [2]]], start=0) == pytest.approx([16, -16, -16, 16])
    assert elo_scores([[[0]]]) == [1000], "nobody plays"


def test_bradley_terry_fit():
    """Known minimum; every win counts once, whatever the order; a tie is half a win for each."""
    assert bradley_terry_fit([CLEAN]).tolist() == pytest.approx([2.288, 0.7102, -0.7102, -2.288], abs=1e-3)
    assert bradley_terry_fit([[[1], [0]], [[0], [1]]]).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert bradley_terry_fit([[[0, 1]]]).tolist() == pytest.approx([0, 0], abs=1e-6)
    s = bradley_terry_fit([[[0], [1]]] * 30 + [[[1], [0]]] * 10, prior=1e-6)
    assert (s[0] - s[1]).item() == pytest.approx(math.log(3), abs=1e-3), "odds of 3 to 1"
    early, late = (bradley_terry_fit([CLEAN], iterations=n) for n in (6, 50))
    assert torch.allclose(early, late, atol=1e-4), "Newton's method is quick"
    rankings = [[[2], [0, 1]], [[1], [2], [0]]]
    assert torch.allclose(bradley_terry_fit(rankings), bradley_terry_fit(rankings[::-1]), atol=1e-6)


# ------------------------------------------------------------------------------------------------
# What is asked
# ------------------------------------------------------------------------------------------------

PROMPTS = [{"prompt": f"{split} {i}", "split": split, "unsafe": i % 3 == 0}
           for split, n in (("train", 9), ("dev", 3), ("test", 6)) for i in range(n)]


def test_questions_come_round_by_round_so_that_the_first_are_spread_over_all_prompts():
    training, held_out = questions_of(PROMPTS, Config(questions=20))
    names = [p["prompt"] for p in training]
    everything = {f"train {i}" for i in range(9)}
    assert set(names[:9]) == set(names[9:18]) == everything and len(names) == 20
    assert names[:9] != names[9:18], "each round has an order of its own"
    more, _ = questions_of(PROMPTS, Config(questions=40))
    assert more[:20] == training, "a larger collection begins with the smaller one"
    assert questions_of(PROMPTS, Config(questions=20, seed=1))[0] != training
    assert [p["split"] for p in held_out] == ["dev"] * 3 + ["test"] * 6 * 3
    assert len(questions_of(PROMPTS, Config(held_out_rankings=1))[1]) == 9


@pytest.mark.parametrize("knobs, n", [
    ({}, 9 * 3),
    ({"aspect": "helpful"}, 6 * 8),
    ({"aspect": "safety"}, 3 * 5),
    ({"answers_of": "pilot"}, 9 * 2),
    ({"answers_of": "ppo"}, 9),
    ({"answers_of": "ppo", "aspect": "safety"}, 3),
    ({"labeler": "ai"}, 9 * 3),
    ({"labeler": "ai", "answers_of": "pilot_ai"}, 9 * 2),
    ({"labeler": "human", "answers_of": "ppo"}, 20),
    ({"labeler": "human", "questions": 4}, 4),
])
def test_how_many_are_asked(knobs, n):
    training, held_out = questions_of(PROMPTS, Config(**knobs))
    assert len(training) == n
    if knobs.get("aspect"):
        wanted = knobs["aspect"] == "safety"
        assert all(p["unsafe"] == wanted for p in training + held_out)


def test_an_aspect_that_no_prompt_is_about():
    safe = [{**p, "unsafe": False} for p in PROMPTS]
    with pytest.raises(UserError, match="no training prompt is marked as unsafe, and --aspect safety asks"):
        questions_of(safe, Config(aspect="safety"))


@pytest.mark.parametrize("knobs, name", [
    ({}, "rankings"),
    ({"aspect": "helpful"}, "rankings_helpful"),
    ({"labeler": "ai"}, "rankings_ai"),
    ({"labeler": "human"}, "rankings_human"),
    ({"labeler": "ai", "aspect": "safety"}, "rankings_safety_ai"),
    ({"answers_of": "ppo"}, "rankings.ppo"),
    ({"answers_of": "rs.1", "aspect": "safety"}, "rankings_safety.rs.1"),
])
def test_the_name_of_a_collection(knobs, name):
    assert name_of(Config(**{"labeler": "simulated", **knobs})) == name


@pytest.mark.parametrize("knobs, sentence", [
    ({"data": "mine"}, "simulated human knows only the tiny world"),
    ({"data": "mine", "labeler": "simulated"}, "simulated human knows only the tiny world"),
    ({"answers_per_prompt": 1}, "at least 2 answers"),
    ({"preamble": "none"}, "are about an AI judge"),
    ({"judge": "other"}, "are about an AI judge"),
    ({"labeler": "human", "judge_url": "http://x/v1"}, "are about an AI judge"),
    ({"labeler": "ai", "judge_url": "x/v1"}, "expected http://HOST:PORT/v1"),
    ({"labeler": "ai", "judge_url": "http://x/v1", "judge": "other"}, "choose one"),
    ({"labeler": "ai", "data": "mine"}, "name a server's model with --judge_url"),
    ({"labeler": "ai", "preamble": "detaild"}, "--preamble: expected none, base"),
    ({"labeler": "ai", "preamble": "Please be brief.", "judge_url": "http://x/v1", "data": "mine"}, None),
    ({"labeler": "ai", "preamble": "base", "judge": "other"}, None),
    ({"labeler": "human", "data": "mine"}, None),
    ({}, None),
])
def test_flags_that_do_not_go_together(knobs, sentence):
    broken = [said for said, holds in RULES if holds(Config(**knobs))]
    assert sentence in broken[0] if sentence else broken == []


# ------------------------------------------------------------------------------------------------
# Asking
# ------------------------------------------------------------------------------------------------


def policy(prompts):
    """A "model": each answer is a number in words, of the random numbers of torch."""
    return [SimpleNamespace(text=str(n)) for n in torch.randint(0, 20, (len(prompts),)).tolist()]


class Largest(Labeler):
    """Puts the largest number first; after `patience` questions somebody presses Ctrl-C."""

    name, answers, batch = "simulated", 4, 3

    def __init__(self, patience=10**9):
        self.patience, self.asked = patience, []

    def rank(self, prompt, responses, aspect="overall"):
        if len(self.asked) == self.patience:
            raise KeyboardInterrupt
        self.asked.append(prompt)
        return [[i] for i in sorted(range(len(responses)), key=lambda i: -int(responses[i]))]


def test_a_question_holds_the_different_ones_of_k_answers_in_random_order():
    same = sample(policy, PROMPTS, 8, "a")
    assert same == sample(policy, PROMPTS, 8, "a") != sample(policy, PROMPTS, 8, "b")
    assert [q["prompt"] for q in same] == [p["prompt"] for p in PROMPTS]
    assert all(len(set(q["responses"])) == len(q["responses"]) <= 8 for q in same)
    assert any(q["responses"] != sorted(q["responses"]) for q in same), "no order gives anything away"
    asked = []
    [question] = sample(lambda prompts: asked.extend(prompts) or policy(prompts), PROMPTS[:1], 3, "a")
    assert asked == ["train 0"] * 3 and sorted(question) == ["prompt", "responses", "split"]


def test_an_interrupted_collection_ends_like_one_that_was_not(tmp_path):
    cfg, prompts = Config(), PROMPTS[:8]
    whole = ask(tmp_path / "whole.jsonl", prompts, Largest(), policy, cfg)
    assert [row["prompt"] for row in whole] == [p["prompt"] for p in prompts]
    assert all(row["tiers"] and row["aspect"] == "overall" for row in whole)
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(path, prompts, Largest(patience=4), policy, cfg)
    assert load_rows(path) == whole[:3], "a batch is kept before the next one is asked"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # killed while it wrote, inside of a batch
    rest = Largest()
    assert ask(path, prompts, rest, policy, cfg) == whole
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert rest.asked == [p["prompt"] for p in prompts[2:]], "nothing is asked twice"


def test_a_ranking_that_was_removed_by_hand_is_told(tmp_path):
    """What comes behind it would be asked again, as another question."""
    cfg, path = Config(), tmp_path / "rankings.jsonl"
    training, held_out = questions_of(PROMPTS, Config(questions=6))
    ask(path, training, Largest(), policy, cfg)
    ask(path, held_out, Largest(), policy, cfg, held_out=True)
    check_questions(path, training, held_out)
    lines = path.read_text().splitlines(keepends=True)
    for gone, what in ((2, "ranking 3 of the questions"), (6, "ranking 1 of the held-out questions")):
        path.write_text("".join(lines[:gone] + lines[gone + 1 :]))
        with pytest.raises(UserError, match=f"{what} is not of the prompt"):
            check_questions(path, training, held_out)
    path.write_text("".join(lines[:2]))
    check_questions(path, training, held_out)  # the last ones may go


def test_two_parts_of_a_collection_share_a_file_and_more_questions_go_on(tmp_path):
    cfg, path = Config(), tmp_path / "rankings.jsonl"
    training, held_out = questions_of(PROMPTS, Config(questions=5))
    first = ask(path, training, Largest(), policy, cfg)
    tests = ask(path, held_out, Largest(), policy, cfg, held_out=True)
    assert {row["split"] for row in first} == {"train"} and {row["split"] for row in tests} == {"dev", "test"}
    assert first[0]["responses"] != tests[0]["responses"], "the parts have random numbers of their own"
    other = ask(tmp_path / "other.jsonl", training, Largest(), policy, Config(seed=1))
    assert first[0]["responses"] != other[0]["responses"], "and so has another seed"
    assert {row["answers_of"] for row in first + tests} == {"sft"}
    more, _ = questions_of(PROMPTS, Config(questions=11))
    rest = Largest()
    assert ask(path, more, rest, policy, cfg)[:5] == first and len(rest.asked) == 6
    assert ask(path, held_out, Largest(patience=0), policy, cfg, held_out=True) == tests
    assert len(load_rows(path)) == 11 + len(held_out)


@pytest.mark.parametrize("labeler, theirs", [("human", True), ("simulated", False), ("ai", False)])
def test_people_who_collect_under_names_of_their_own_share_the_work(tmp_path, labeler, theirs):
    """Each is asked about other prompts and other answers; several of the others label the same ones."""
    usual, *own = (Config(labeler=labeler, questions=5, name=name) for name in ("", "anna", "ben"))
    asked = [questions_of(PROMPTS, cfg)[0] for cfg in (usual, *own)]
    answers = [[row["responses"] for row in ask(tmp_path / f"{i}.jsonl", PROMPTS[:5], Largest(), policy, cfg)]
               for i, cfg in enumerate((usual, *own))]
    for found in (asked, answers):
        different = found[0] != found[1] != found[2] != found[0]
        assert different if theirs else found[0] == found[1] == found[2]
    assert asked[0] == questions_of(PROMPTS, Config(questions=5))[0], "under the usual name the usual ones"


def test_the_number_of_answers_is_the_labelers_unless_a_flag_says_otherwise(tmp_path):
    def counting(prompts):
        return [SimpleNamespace(text=str(i)) for i in range(len(prompts))]

    for n, cfg in ((4, Config()), (6, Config(answers_per_prompt=6))):
        [row] = ask(tmp_path / f"{n}.jsonl", PROMPTS[:1], Largest(), counting, cfg)
        assert len(row["responses"]) == n


def typing(monkeypatch, *lines):
    lines = iter(lines)
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))


def counted(prompts):
    """Four different answers to a question."""
    return [SimpleNamespace(text=f"answer {i}") for i in range(len(prompts))]


def test_a_person_is_asked_one_by_one_and_may_go_back_or_stop(monkeypatch, tmp_path, capsys):
    """Nothing is sampled before the first question but its own answers; after q, what is ranked stays."""
    path, sampled = tmp_path / "rankings.jsonl", []

    def watched(prompts):
        sampled.append(len(prompts))
        return counted(prompts)

    typing(monkeypatch, "u", "1>2>3>4", "4>3>2>1", "u", "s", "q")
    rows = ask(path, PROMPTS[:5], Human(), watched, Config(labeler="human"))
    assert [row["tiers"] for row in rows] == [[[0], [1], [2], [3]], []] and load_rows(path) == rows
    assert set(sampled) == {4} and "nothing to take back" in capsys.readouterr().out
    typing(monkeypatch, "1=2>3>4", "q")
    again = ask(path, PROMPTS[:5], Human(), counted, Config(labeler="human"))
    assert again[:2] == rows and again[2]["tiers"] == [[0, 1], [2], [3]]
    assert "3 of 5" in capsys.readouterr().out


def test_a_bar_shows_how_far_a_collection_is_but_not_to_somebody_who_types(monkeypatch, tmp_path, capsys):
    cfg, path = Config(), tmp_path / "rankings.jsonl"
    for held_out, prompts, name in ((False, PROMPTS[:5], "questions:"), (True, PROMPTS[-5:], "held-out q")):
        ask(path, prompts, Largest(), policy, cfg, held_out)
        bar = capsys.readouterr().err.strip()
        assert bar.startswith(name) and " 5/5 " in bar
        ask(path, prompts, Largest(), policy, cfg, held_out)
        assert capsys.readouterr().err == "", "nothing is left to ask"
    typing(monkeypatch, "q")
    ask(tmp_path / "mine.jsonl", PROMPTS[:2], Human(), counted, cfg)
    assert capsys.readouterr().err == ""


def test_the_simulated_human_is_the_seeds_and_another_collection_has_noise_of_its_own(tmp_path):
    stage = SimpleNamespace(data=tmp_path)
    seeds = {}
    for name in ("rankings", "second", "third"):
        labeler, examiner = labelers(stage, None, Config(labeler="simulated", seed=7, name=name))
        assert labeler is examiner
        seeds[name] = labeler.seed
    assert seeds["rankings"] == 7 and len(set(seeds.values())) == 3
    usual, _ = labelers(stage, None, Config(labeler="simulated", seed=7, name="rankings"))
    assert vars(usual) == vars(SimulatedHuman(7)), "its usual failings are those of the flags"


def test_who_labels_the_held_out_questions(tmp_path, monkeypatch):
    """The simulated human, in the tiny world; a user's file has them; without a file the AI labels some."""
    stage, judge = SimpleNamespace(data=tmp_path), Largest()
    monkeypatch.setattr(preferences, "load_judge", lambda *rest: judge)
    for labeler in ("human", "ai"):
        who, examiner = labelers(stage, None, Config(labeler=labeler, name="x", noise=0.1))
        assert isinstance(examiner, SimulatedHuman) and examiner.noise == 0.1 and who is not examiner
    assert labelers(stage, None, Config(labeler="ai", data="mine")) == (judge, judge)
    assert labelers(stage, None, Config(labeler="human", data="mine"))[1] is None
    (tmp_path / "preferences.jsonl").touch()
    assert labelers(stage, None, Config(labeler="ai", data="mine")) == (judge, None)


# ------------------------------------------------------------------------------------------------
# Looking at it
# ------------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": "A dog is", "split": "train", "responses": ["a moon.", "a furry mammal.", "a pet."],
     "tiers": [[1], [0, 2]], "aspect": "overall", "labeler": "human"},
    {"prompt": "A cat is", "split": "train", "responses": ["a", "b"], "tiers": [],
     "aspect": "overall", "labeler": "human"},
    {"prompt": "A cat is", "split": "test", "responses": ["word " * 60, "b"], "tiers": [[1], [0]],
     "aspect": "overall", "labeler": "simulated"},
]


def test_the_end_of_a_collection_in_a_sentence():
    """Pairs: 3 of the first, of which one is a tie, 1 of the third. Answers: 3 of 4, 2 of 4, 2 of 8."""
    assert summary(ROWS, {"human": 4, "simulated": 8}) == (
        "2 training and 1 held-out rankings (1 without an order): 4 pairs, 1 of them ties, "
        "of 7 answers; 9 duplicates left out")


def test_what_is_said_of_a_labeler():
    """Of the simulated one nothing; of the others how often the gold score agrees, where there is one."""
    rows, human = ROWS[:1], Human()
    gold = TASTE["overall"]
    assert remarks(rows, SimulatedHuman(0), 20, gold) == []
    said = remarks(rows, human, 20, gold)
    assert said[0] == "You have answered 1 of 20 questions; the same command asks the rest."
    assert len(said) == 2
    assert remarks(rows, human, 20, None) == said[:1]
    silent = AI(SimpleNamespace(form="own"), {})
    assert remarks(rows, silent, 20, None) == [], "an AI that was not asked this time"


def test_samples_show_the_answers_in_their_order_with_the_gold_score():
    text = shown(ROWS, TASTE["overall"])
    lines = [line.split() for line in text.split("\n")]
    assert max(map(len, text.split("\n"))) <= 100
    places = [line[0] for line in lines if line and line[0].isdigit()]
    assert places == ["1", "2", "2", "1", "2"]
    assert text.index("furry") < text.index("a moon")
    gold = TASTE["overall"]("A dog is", "a furry mammal.")
    assert f"  1{gold:+6.1f}   a furry mammal." in text
    assert "  1   a furry mammal." in shown(ROWS, None)


def test_a_ranking_is_a_row_of_json_that_others_can_read(tmp_path):
    ask(tmp_path / "r.jsonl", PROMPTS[:2], Largest(), policy, Config(aspect="helpful"))
    [first, _] = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted(first) == ["answers_of", "aspect", "labeler", "prompt", "responses", "split", "tiers"]
    ranked = sorted(itertools.chain(*first["tiers"]))
    assert first["aspect"] == "helpful" and ranked == list(range(len(first["responses"])))
