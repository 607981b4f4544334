"""Tables that fit the terminal, pictures, and the one comparison of models."""
import re
from collections import defaultdict
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import lab.report
from lab.measure import held_out_loss, text_windows
from lab.report import compare, draw_panel, drawn, measures, on_own_answers, picture, table, truth_about
from lab.talk import answer
from lab.terminal import terminal_width, wrapped
from world.labelers import SimulatedHuman
from world.taste import gold_score

matplotlib.use("Agg")
WIDTHS = pytest.mark.parametrize("width", [40, 60, 80, 100])
LONG = "A dog is a furry mammal that likes to play in the garden. A dog is man's best friend, they say. "


# ------------------------------------------------------------------------------------------------
# Text
# ------------------------------------------------------------------------------------------------


def test_a_table_is_aligned():
    lines = table(["name", "n", "share"], [["first", 10, 0.5], ["x", None, 12.344]], 40).split("\n")
    assert lines == ["name    n  share", "----------------", "first  10   0.50", "x       -  12.34"]


def fits(text, width):
    assert max(map(len, text.split("\n"))) <= width, text
    return text.split()


@WIDTHS
def test_wide_headers_wrap(width):
    header = ["195 test prompts", "pretrained model", "SFT", "reinforcement learning", "SFT, temperature 0"]
    rows = [["gold win rate against SFT", None, 0.25, 1.5, 2.75],
            ["length, tokens", 48.0, 20.5, 21.0, 1234.5]]
    words = fits(table(header, rows, width), width)
    for word in " ".join(header + ["length, tokens"]).split():
        assert word in words
    for figure in ("0.25", "1.50", "2.75", "48.00", "20.50", "21.00", "1234.50"):
        assert words.count(figure) == 1


@WIDTHS
@pytest.mark.parametrize("n", [7, 19])
def test_many_columns_stand_in_blocks_that_each_say_what_a_row_is(width, n):
    header = ["measure", *(f"model {i}" for i in range(n))]
    rows = [["accuracy", *(100.0 + i for i in range(n))], ["ceiling", *(200.0 + i for i in range(n))]]
    shown = table(header, rows, width)
    words, blocks = fits(shown, width), shown.split("\n\n")
    for i in range(n):
        assert words.count(f"{100 + i}.00") == words.count(f"{200 + i}.00") == 1
    for block in blocks:
        first = [line.split()[0] for line in block.split("\n")]
        assert first[0] == "measure" and first[-2:] == ["accuracy", "ceiling"]
        assert block.split("\n")[-1].count("2") >= 1, "no block is empty"


@WIDTHS
@pytest.mark.parametrize("answers", [1, 2, 3])
def test_long_answers_wrap_and_lose_nothing(width, answers):
    header = ["prompt", "score, SD", *(f"answer {i}" for i in range(answers))]
    texts = [f"{LONG}{i}{LONG}" for i in range(answers)]
    rows = [["What is a dog? Tell me, please, all that you know.", 1.25, *texts], ["Why?", -0.5, *texts]]
    words = fits(table(header, rows, width), width)
    assert "1.25" in words and "-0.50" in words
    assert set(words) >= set(LONG.split())
    assert words.count("furry") == 4 * answers


@WIDTHS
def test_a_word_that_is_longer_than_the_terminal_is_cut(width):
    words = fits(table(["prompt", "answer"], [["x", "a" * 250], ["y" * 120, "b"]], width), width)
    assert "".join(words).count("a") == 250 + 1 and "".join(words).count("y") == 120


def test_a_short_table_stays_on_one_line_a_row():
    rows = [["What is a dog?", 1.0, "A dog is a furry mammal, I think."]]
    assert len(table(["prompt", "score", "answer"], rows, 80).split("\n")) == 3


def test_a_table_without_rows_is_its_header():
    assert table(["name", "n"], [], 40).split("\n") == ["name  n", "-------"]


@pytest.mark.parametrize("columns, expected", [("60", 60), ("12", 40), ("250", 100)])
def test_the_terminal_says_how_wide(monkeypatch, columns, expected):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == expected
    assert max(map(len, wrapped(LONG * 3).split("\n"))) <= expected
    fits(table(["prompt", "answer"], [["x", LONG]]), expected)


def test_wrapped_text_keeps_its_paragraphs():
    text = wrapped("one two three four\n\nfive-and-six seven", "    ", 14)
    assert text.split("\n") == ["one two three", "    four", "", "five-and-six", "    seven"]


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------

ROWS = [{"step": i, "score": 0.1 * i, "gold": 3.0 * i, "rare": i if i % 2 else None} for i in range(6)]


@pytest.fixture
def axis():
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_two_units_have_an_axis_each(axis):
    """The score on the left, the gold score on the right, in colours that one can tell apart; one legend."""
    right = ({"gold score": "gold"}, "points")
    draw_panel(axis, ROWS, "Both", {"score": "score"}, "SD", "iteration", {"right": right})
    other = next(a for a in axis.figure.axes if a is not axis)
    assert (axis.get_ylabel(), other.get_ylabel(), axis.get_xlabel()) == ("SD", "points", "iteration")
    (left,), (gold,) = axis.get_lines(), other.get_lines()
    assert list(gold.get_ydata()) == [0, 3, 6, 9, 12, 15] and left.get_color() != gold.get_color()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["score", "gold score"]


def test_an_axis_may_be_logarithmic(axis):
    draw_panel(axis, ROWS, "Loss", {"training": [(1, 1.0), (10, 0.1)]}, "nats", "step", {"log": True})
    assert axis.get_yscale() == "log"


@pytest.mark.parametrize("low, high, some", [
    (0.55, 0.95, {"0.6", "0.7", "0.8", "0.9"}), (5.2, 9.0, {"6", "7", "8", "9"}), (3.05, 3.4, {"3.2"}),
    (4.1, 17, {"6", "10"}), (0.3, 9, {"0.4", "0.6", "1", "2", "4", "6"}), (2, 4000, {"10", "100", "1000"})])
def test_a_logarithmic_axis_has_plain_numbers_wherever_it_begins(axis, low, high, some):
    draw_panel(axis, ROWS, "Loss", {"training": [(1, high), (10, low)]}, "nats", "step", {"log": True})
    axis.set_ylim(low, high)
    axis.figure.canvas.draw()
    ticks = axis.yaxis.get_major_ticks() + axis.yaxis.get_minor_ticks()
    shown = {tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high} - {""}
    assert some <= shown and 2 <= len(shown) <= 12 and all(float(text) for text in shown), shown


def test_what_was_not_measured_is_not_drawn(axis):
    draw_panel(axis, ROWS, "Some", {"rare": "rare", "nobody's": "unknown"}, "nats")
    (line,) = axis.get_lines()
    assert list(line.get_xdata()) == [1, 3, 5] and axis.get_legend() is None


@pytest.mark.parametrize("n", [1, 3, 4, 5, 6])
def test_a_picture_has_all_panels_and_no_empty_place(tmp_path, monkeypatch, n):
    drawn, kept = [], FigureCanvasAgg.print_figure

    def keep(canvas, *args, **options):
        drawn.append(canvas.figure)
        kept(canvas, *args, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", keep)
    panels = [("Title", {"score": "score"}, "SD"), ("Title", {"g": "gold"}, "points", "round", {"log": True}),
              ("Right", {"score": "score"}, "SD", "step", {"right": ({"gold": "gold"}, "points")})] * 2
    picture(tmp_path / "shown.png", ROWS, panels[:n], "What to look for. " * 12)
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.undo()
    places = [axis.get_subplotspec() for axis in drawn[0].axes]
    taken = {(line, column) for place in places for line in place.rowspan for column in place.colspan}
    assert taken == {(line, column) for line in range(places[0].get_gridspec().nrows)
                     for column in range(places[0].get_gridspec().ncols)}
    assert len({(place.num1, place.num2) for place in places}) == n


def test_a_picture_is_drawn_whole_or_not_at_all_also_by_two_at_once(tmp_path, capsys):
    def draw(file):
        picture(file, ROWS, [("Title", {"score": "score"}, "SD")])

    def more_slowly(file):
        drawn(tmp_path / "shown.png", draw)  # by another process
        draw(file)

    def fail(file):
        draw(file)
        raise ValueError("no such font")

    drawn(tmp_path / "shown.png", more_slowly)
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == ""
    drawn(tmp_path / "other.png", fail)
    assert "no picture (ValueError: no such font)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["shown.png"]


# ------------------------------------------------------------------------------------------------
# The comparison
# ------------------------------------------------------------------------------------------------

ASKED = [{"prompt": p, "split": "test", "unsafe": False} for p in ("What is a dog?", "A cat is", "A dog is")]
NAMES = [row["prompt"] for row in ASKED]


def chatterbox(make_gpt, enc, seed):
    return make_gpt(seed, std=0.3, vocab_size=enc.n_vocab, block_size=48)


class Lengths:
    """A scorer that remembers what it was asked."""

    judge = None

    def __init__(self):
        self.asked = []

    def of_texts(self, enc, prompts, texts):
        self.asked += zip(prompts, texts, strict=True)
        return [float(len(p) + len(t)) for p, t in zip(prompts, texts, strict=True)]


@pytest.fixture
def compared(make_gpt, enc):
    """pretrained, SFT and PPO, random all of them, twice three answers and three greedy ones."""
    names = ("pretrained", "SFT", "PPO")
    models = {name: chatterbox(make_gpt, enc, seed) for seed, name in enumerate(names)}
    scorer, text = Lengths(), torch.arange(200).numpy() % enc.n_vocab
    found = compare(models, enc, ASKED, 6, n=2, baseline="SFT", templates={"pretrained": False},
                    reference=models["SFT"], scorer=scorer, greedy=("SFT", "PPO"), held_out=text, examples=2)
    return SimpleNamespace(found=found, models=models, scorer=scorer, tokens=text)


def test_every_model_answers_every_prompt(compared, enc):
    found = compared.found
    counts = {name: len(answers) for name, answers in found.answers.items()}
    assert counts == {"pretrained": 6, "SFT": 6, "PPO": 6, "SFT, T=0": 3, "PPO, T=0": 3}
    greedy = [answer(compared.models["PPO"], enc, [p], 6, 0)[0].text for p in NAMES]
    assert [a.text for a in found.answers["PPO, T=0"]] == greedy
    torch.manual_seed(0)  # the seed of the comparison; who knows no template is asked in plain text
    plain = answer(compared.models["pretrained"], enc, NAMES * 2, 6, 1.0, template=False)
    assert [a.text for a in found.answers["pretrained"]] == [a.text for a in plain]


def test_each_answer_is_scored_with_its_prompt(compared):
    expected = []
    for answers in compared.found.answers.values():
        texts = [a.text for a in answers]
        expected += zip(NAMES * (len(texts) // 3), texts, strict=True)
    assert compared.scorer.asked == expected


def test_figures_are_means_over_the_answers(compared):
    found = compared.found
    answers, figures = found.answers["PPO"], found.results
    texts = [a.text for a in answers]
    lengths = [len(p) + len(t) for p, t in zip(NAMES * 2, texts, strict=True)]
    gold = [gold_score(p, t) for p, t in zip(NAMES * 2, texts, strict=True)]
    expected = {"reward model's score, SD": sum(lengths) / 6, "gold score, points": sum(gold) / 6,
                "answers that end": sum(a.ended for a in answers) / 6,
                "length, tokens": sum(a.length for a in answers) / 6,
                "KL to SFT, nats an answer": sum(a.kl for a in answers) / 6,
                "distinct answers": len(set(texts[:3])) / 3}
    for label, value in expected.items():
        assert figures[label]["PPO"] == pytest.approx(value), label
    assert figures["KL to SFT, nats an answer"]["SFT"] is None  # the reference itself
    assert figures["KL to SFT, nats an answer"]["PPO, T=0"] is None
    windows = text_windows(compared.tokens, 48)
    assert figures["loss on text, nats a token"]["PPO"] == held_out_loss(compared.models["PPO"], windows)
    assert found.gold["PPO"] == gold


def test_several_answers_to_a_prompt_make_no_win_rate_surer():
    """Half of 40 answers to 10 prompts: 0.5 -+ 0.26 as of 10."""
    found = {name: defaultdict(lambda: None, gold=gold, ends=1.0)
             for name, gold in (("SFT", [1.0] * 40), ("PPO", ([0.0] * 5 + [2.0] * 5) * 4))}
    assert measures(found, "SFT", 10, "")["gold win rate against SFT"]["PPO"] == "0.50 (0.24-0.76)"


def test_a_win_rate_is_against_the_baseline_at_the_same_temperature(compared):
    wins = compared.found.results["win rate by reward model"]
    assert wins["SFT"] is None and wins["SFT, T=0"] is None
    for name, base in (("PPO", "SFT"), ("PPO, T=0", "SFT, T=0"), ("pretrained", "SFT")):
        ours, theirs = ([len(a.text) for a in compared.found.answers[who]] for who in (name, base))
        score = sum((a > b) + (a == b) / 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)
        assert re.fullmatch(rf"{score:.2f} \(\d\.\d\d-\d\.\d\d\)", wins[name])


def test_the_text_of_a_comparison_fits_the_terminal(compared, monkeypatch):
    lines = compared.found.text.split("\n")
    assert lines[0].startswith("3 test") and max(map(len, lines)) <= 100
    assert sum(line.startswith("prompt:") for line in lines) == 2
    assert sum(line.startswith("PPO:") for line in lines) == 2, "the greedy ones are not shown"


def test_the_same_seed_gives_the_same_comparison(make_gpt, enc):
    model = {"SFT": chatterbox(make_gpt, enc, 1)}
    one, two, other = (compare(model, enc, ASKED, 6, seed=seed) for seed in (0, 0, 1))
    assert one.answers == two.answers != other.answers
    assert "KL to SFT" not in one.text and "win rate" not in one.text, "what was not measured has no row"


def test_distinct_answers_are_of_one_to_each_prompt(make_gpt, enc):
    """Three prompts, each answered twice in the same way."""
    found = compare({"SFT": chatterbox(make_gpt, enc, 1)}, enc, ASKED, 6, temperature=0, n=2)
    texts = {a.text for a in found.answers["SFT"]}
    assert found.results["distinct answers"]["SFT"] == len(texts) / 3


def test_without_a_gold_score_there_is_none(make_gpt, enc):
    rows = [{"prompt": "my own question", "split": "train", "unsafe": False}]
    found = compare({"SFT": chatterbox(make_gpt, enc, 1)}, enc, rows, 6)
    assert found.gold == {"SFT": None} and "gold" not in found.text and "1 training prompts" in found.text


class Truth:
    """A scorer that is always right."""

    judge = None

    def of_texts(self, enc, prompts, texts):
        return [gold_score(p, t) for p, t in zip(prompts, texts, strict=True)]


def test_what_only_the_tiny_world_can_tell(enc):
    """The demonstrations' gold score, and how right a scorer is about answers of a model: of two rounds of
    answers only one prompt has two different ones, so there is one pair."""
    rounds = ["a furry mammal.", "a small hunter.", "No", "a metal device.", "a small hunter.", "No"]
    prompts = ["A dog is", "A cat is", "What is a dog?"]
    answers = {"PPO": [SimpleNamespace(text=text) for text in rounds]}
    found = SimpleNamespace(answers=answers, gold={"SFT": [1.0, 3.0]})
    demonstrations = [{"prompt": p, "response": "a furry mammal."} for p in prompts]
    lines, figures = truth_about(Truth(), enc, prompts, found, "PPO", demonstrations, 0)
    gold = [gold_score(p, "a furry mammal.") for p in prompts]
    assert figures["demonstrations"] == pytest.approx(sum(gold) / 3) and figures["gold_std_sft"] == 1
    assert figures["rm_accuracy"] == figures["rm_ceiling"] == 1 and "on 1 pairs" in " ".join(lines)
    assert truth_about(Truth(), enc, ["my own question"], found, "PPO", [], 0) == ([], {})


def test_a_scorer_is_measured_by_labels_that_no_training_has_seen(enc, monkeypatch):
    seeds = []
    monkeypatch.setattr(lab.report, "SimulatedHuman", lambda seed: seeds.append(seed) or SimulatedHuman(seed))
    on_own_answers(Truth(), enc, ["A dog is"], [SimpleNamespace(text=text) for text in ("a", "b")], 7)
    assert seeds == [3007]
