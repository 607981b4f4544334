"""docs/experiments.py: the list, what is computed without a run, and the cross-validation."""
import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import data
from data import UserError
from lab.commands import STAGES

sys.path.insert(0, str(ROOT / "docs"))
experiments, folds, pages, records, runs = (
    importlib.import_module(name) for name in ("experiments", "folds", "pages", "records", "runs"))


def test_the_list_says_what_each_shows_and_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments.py"])
    experiments.main()
    out = capsys.readouterr().out
    for function, minutes in experiments.EXPERIMENTS.items():
        assert function.__name__ in out and function.__doc__.split()[0] in out
        assert "minutes" in minutes or "seconds" in minutes
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("stage", ["rm_first", "rankings_safety", "judge", "sft"])
def test_a_standard_stage_is_made_by_its_own_command(monkeypatch, tmp_path, stage):
    """Its flags are those of the list of stages, whatever their order, and its name is said once. How long it
    took is noted, but not of one that was there."""
    asked = []
    monkeypatch.chdir(tmp_path)
    folder = runs.run_of(2)
    folder.mkdir(parents=True)
    (folder / "other.pt").touch()
    monkeypatch.setattr(runs, "command", lambda *words: asked.append([str(word) for word in words]))
    assert runs.standard(stage, seed=2).as_posix() == f"runs/tiny-seed2/{stage}"
    runs.standard(stage, name="other", more=("--lr", "1"))
    script, *flags = STAGES[stage].split()
    flags += [] if "--name" in flags else ["--name", stage]
    assert sorted(asked[0]) == sorted([script, "--config", "tiny", "--seed", "2", *flags])
    assert asked[1][-2:] == ["--name", "other"] and asked[1].count("--name") == 1 and "--lr" in asked[1]
    assert 0 <= runs.noted(folder / stage) < 9 and runs.noted(folder / "other") is None


def test_win_rates_prompt_by_prompt():
    """Two prompts, two answers to each, prompt after prompt: won and tied; lost twice."""
    assert runs.shares([3, 0, 2, 0], [1, 1, 2, 1], 2) == [0.75, 0.0]
    assert runs.spread([1, 2, 3]) == "2.00 (1.00 to 3.00)"
    assert runs.corrected({"accuracy": 0.7, "ceiling": 0.9}) == pytest.approx(0.5)
    assert runs.corrected({"rm_accuracy": 0.9, "rm_ceiling": 0.9}) == pytest.approx(1)
    assert runs.corrected({"rm_accuracy": None, "rm_ceiling": 0}) is None


def test_intervals_count_prompts(monkeypatch):
    """Differences 0 0 2 2: mean 1, deviation 1.155, half an interval 1.96 * 1.155 / sqrt(4) = 1.132. Two
    prompts with shares 1 and 0, two answers each: deviation 0.707, error 0.707 / sqrt(2)."""
    assert experiments.paired([0] * 4, [0, 0, 2, 2]).endswith("+1.000 (95 % interval -0.132 to +2.132)")
    gold = {"gold of each answer": {"PPO": [1, 0, 1, 0], "SFT": [0, 1, 0, 1]}}
    monkeypatch.setattr(experiments, "results", lambda path: gold)
    monkeypatch.setattr(experiments, "prompts_of", lambda folder: ["a", "b"])
    assert experiments.standard_error(Path("ppo")) == pytest.approx(0.5)


def test_score_and_gold_each_count_in_their_own_deviations(monkeypatch):
    """Here a score is ten times the gold score: in deviations both are the same."""
    for name in ("encoding_of", "model_of"):
        monkeypatch.setattr(experiments, name, lambda folder: None)
    texts = [str(i * i % 7) for i in range(12)]
    monkeypatch.setattr(experiments, "prompts_of", lambda folder: ["a", "b", "c"])
    monkeypatch.setattr(experiments, "answer", lambda *rest: [SimpleNamespace(text=text) for text in texts])
    monkeypatch.setattr(experiments, "gold_score", lambda prompt, text: float(text))
    monkeypatch.setattr(experiments, "score_texts", lambda *rest: [10 * float(text) for text in texts])
    monkeypatch.setattr(experiments, "log_probability", lambda *rest: [-1.0] * 12)
    best, mean, _ = experiments.best_of_many(Path("run"), 4)
    assert best["score"] == pytest.approx(best["gold"]) and best["gold"][0] == pytest.approx(0)
    assert best["n"] == [1, 2, 4] and mean == pytest.approx(sum(map(float, texts)) / 12)


def test_an_experiment_shares_a_name_with_a_chapter_only_where_it_is_the_same_command():
    """Otherwise whoever has followed the chapter is told that the stage was made with other knobs."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    source = (ROOT / "docs" / "experiments.py").read_text(encoding="utf-8")
    shared = {name for name in re.findall(r"--name (\w[\w.-]*\w)", text) if f'"{name}"' in source}
    same = {"llama2", "no_kl", "stale", "rm.2", "rankings.ppo"}  # the same flags
    no_names = {"last", "short"}  # other words
    assert shared - STAGES.keys() == same | no_names


def test_the_first_picture_is_of_the_default_run_whatever_else_was_trained(monkeypatch, tmp_path, capsys):
    drawn, model = [], SimpleNamespace(config=SimpleNamespace(block_size=96))
    monkeypatch.chdir(tmp_path)
    folder = runs.run_of()
    folder.mkdir(parents=True)
    for name, gold in (("ppo", 5.0), ("no_kl", -9.0)):
        (folder / f"{name}.jsonl").write_text(json.dumps({"step": 0, "score": 1.0, "gold": gold}) + "\n")
    monkeypatch.setattr(experiments, "standard", lambda stage: folder / stage)
    monkeypatch.setattr(experiments, "model_of", lambda path: model)
    monkeypatch.setattr(experiments, "encoding_of", lambda folder: None)
    monkeypatch.setattr(experiments, "answer", lambda *_: [SimpleNamespace(text="To repair a lock, wait.")])
    monkeypatch.setattr(experiments, "score_texts", lambda *_: [1.0, -1.0])
    draw = experiments.pictures.draw_first
    monkeypatch.setattr(experiments.pictures, "draw_first", lambda *args: (drawn.append(args), draw(*args)))
    experiments.first(SimpleNamespace(out=tmp_path))
    assert [row["gold"] for row in drawn[0][3]] == [5.0] and (tmp_path / "first.png").exists()
    assert "first.png" in capsys.readouterr().out


def test_the_fits_of_over_optimisation_find_their_own_curve():
    d = [0.5, 1.0, 2.0, 3.0]
    alpha, beta = experiments.fit(d, [x * (2 - 0.5 * x) for x in d], lambda x: x)
    assert (alpha, beta) == pytest.approx((2, 0.5))


def row(prompt, better, worse):
    return {"prompt": prompt, "responses": [worse, better], "tiers": [[1], [0]]}


def test_folds_hold_out_whole_prompts():
    rows = [row(f"prompt {i % 6}", "good", "bad") for i in range(12)]
    fold_of = folds.deal(rows, 3)
    assert sorted(fold_of.values()) == [0, 0, 1, 1, 2, 2] and len(fold_of) == 6
    with pytest.raises(UserError, match="choose 2 to 6"):
        folds.deal(rows, 7)
    with pytest.raises(UserError, match="two prompts or more"):
        folds.deal(rows[:1], 2)


def test_a_fold_is_trained_and_measured(make_gpt, enc, capsys):
    """The reward model of a fold learns that "A dog" is better than nothing."""
    base = make_gpt(std=0.1, vocab_size=enc.n_vocab, block_size=64)
    rows = [row(f"What is a cat {i}?", "A dog is man's best friend.", "") for i in range(8)]
    corpus = torch.arange(200).numpy() % enc.n_vocab
    cfg = folds.Config(batch_size=4, epochs=10, lr=0.01, warmup=1)
    model = folds.train_fold(base, enc, rows, corpus, cfg, "fold")
    assert folds.accuracy(model, enc, rows) == (1.0, 8)
    assert all(data.has_pairs(r) for r in rows)
    folds.summary([(0.8, 0.6, 0.5, 10), (0.6, 0.6, 0.7, 30)], 40)
    table = capsys.readouterr().out
    assert "0.650" in table and "0.600" in table, "weighted by pairs"


def test_no_fold_learns_the_rankings_that_it_is_measured_on(random_run, monkeypatch):
    """The "model" here is what it has learned from."""
    rows, parts = [row(f"What is a cat {i}?", "A dog.", "") for i in range(4)], []

    def accuracy(learned, enc, held_out):
        parts.append((learned, held_out))
        return 1.0, 2

    text = "".join(json.dumps({**r, "split": "train"}) + "\n" for r in rows)
    (random_run / "data/preferences.jsonl").write_text(text)
    monkeypatch.setattr(folds, "command", lambda *words: None)
    monkeypatch.setattr(folds, "train_fold", lambda base, enc, training, *rest: training)
    monkeypatch.setattr(folds, "accuracy", accuracy)
    folds.folds(SimpleNamespace(config="tiny", data="mine", folds=2))
    for part in parts:
        learned, held_out = ({r["prompt"] for r in some} for some in part)
        assert len(learned) == len(held_out) == 2 and not learned & held_out
    assert len(parts) == 2


# ------------------------------------------------------------------------------------------------
# Records, and the pages that hold them
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty folder to be in, and nothing kept so far."""
    monkeypatch.chdir(tmp_path)
    for part in records.KEPT.values():
        part.clear()
    return tmp_path


def prints_something(args):
    """an invented experiment"""
    records.say("Of 195 prompts 0.826 were won, 12.5 % more than before; SFT has -3.91 points.")
    rows = [["one", 0.8, "0.78 to 0.82"], ["two, KL 0.5", 0.66, None]]
    records.show(["reward", "win rate", "spread"], rows)
    records.quote("a table\n\nand below it 1.75")


COMMAND = "python docs/experiments.py prints_something"
PAGE = """# A page

<!-- table: prints_something 1 -->

| what PPO follows | won | {to} |
|---|---|---|
| {one} | 0.80 | 0.78 {to} 0.82 |
| {two} | 0.66 | - |

<!-- measured: prints_something; given 0.15 -->

- Of 195 prompts it wins 0.83 (`--kl_coef 0.5`, 95 % interval), 13 % more, with 0.15.
  SFT had -3.9 points, as in Llama 2 ($x = 0.77$, [this](page-0.99.md), Gao et al. 2022).

Nobody measured 0.77.

<!-- output: prints_something 1 -->

```
a table

and below it 1.75
```

<!-- measured: python tests/fuzz.py -->

It damages 10,036 files.
"""
WORDS = {"en": {"to": "to", "one": "one", "two": "two, KL 0.5"},
         "zh": {"to": "至", "one": "一", "two": "二，KL 0.5"}}


def page_in(folder, language, change=("", "")):
    """Path of the page above, changed."""
    path = folder / language / "page.md"
    path.parent.mkdir(exist_ok=True)
    text = PAGE.format(**WORDS[language])
    assert change[0] in text
    path.write_text(text.replace(*change), encoding="utf-8")
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_that_says_what_the_record_says_has_no_fault_and_stays(elsewhere, language):
    records.keep(prints_something, None, COMMAND)
    record = records.load("prints_something")
    assert record["command"] == COMMAND and record["threads"] > 0 and record["seconds"] == 0
    assert not list(records.FOLDER.glob("*.started"))
    page = page_in(elsewhere, language)
    before = page.read_text(encoding="utf-8")
    assert pages.check(["prints_something"], [page]) == []
    pages.write(["prints_something"], [page])
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("change, fault", [
    (("0.66", "0.67"), "page.md:3: table prints_something 1: line 8 differs"),
    (("wins 0.83", "wins 0.84"), "page.md:12: measured prints_something; given 0.15: 0.84 is in no record"),
    (("-3.9 points", "-3.8 points"), "page.md:13: "),
    (("13 %", "14 %"), "14 % is in no record"),
    (("had -3.9", "had 3.92"), "3.92 is in no record"),
    (("195 prompts it", "196 prompts it"), "196 is in no record"),
    (("with 0.15", "with 0.16"), "0.16 is in no record"),
    (("below it 1.75", "below it 1.76"), "the record has: and below it 1.75"),
    (("KL 0.5 | 0.66", "KL 0.6 | 0.66"), "differs"),
    (("prints_something 1 -->\n\n|", "prints_something 2 -->\n\n|"), "a number from 1 to 1"),
    (("table: prints_something", "table: another"), "there is no record"),
    (("measured: prints_something", "measured: another"), "there is no record of another"),
    (("| won |", "| won | lost |"), "the page has 4 columns, the record 3"),
])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_differs_from_the_record_is_found(elsewhere, language, change, fault):
    records.keep(prints_something, None, COMMAND)
    found = pages.check(["prints_something"], [page_in(elsewhere, language, change)])
    assert len(found) == 1 and fault in found[0], found


@pytest.mark.parametrize("language, label", [("en", "two, KL 0.5"), ("zh", "二，KL 0.5")])
def test_write_puts_the_record_into_the_page(elsewhere, capsys, language, label):
    """The header stays, and in a Chinese page the first cells; what has no record stays as it is."""
    records.keep(prints_something, None, COMMAND)
    right = page_in(elsewhere, language).read_text(encoding="utf-8")
    page = page_in(elsewhere, language, ("0.66", "0.11"))
    page.write_text(page.read_text(encoding="utf-8").replace("it 1.75", "it 9.99"), encoding="utf-8")
    pages.write(["prints_something"], [page])
    assert page.read_text(encoding="utf-8") == right
    page.write_text(right.replace("table: prints_something", "table: another"), encoding="utf-8")
    capsys.readouterr()
    pages.write(["prints_something"], [page])
    assert "table another 1: left alone, there is no record" in capsys.readouterr().out
    page.write_text(right.replace("something 1 -->\n\n|", "something 1 rows 2 columns 1 2 3 -->\n\n|"))
    pages.write(["prints_something"], [page])
    text = page.read_text(encoding="utf-8")
    assert "| two, KL 0.5 | 0.66 | - |\n\n" in text and "0.80" not in text, "another number of rows: no label"


def test_a_chinese_page_keeps_its_labels_where_the_numbers_in_them_are_those_of_the_record():
    there = ["0，一个", "0，Llama 2 的两个"]
    assert pages.translated(["0, one", "0, Llama 2's two"], there) == there
    same = ["人工智能", "人工智能（默认）"]
    assert pages.translated(["AI", "AI"], same) == same
    assert pages.translated(["1, one", "0, Llama 3's two"], there) == ["1, one", "0, Llama 3's two"]
    more = pages.translated(["0, one", "0, Llama 2's two", "1, one", "1, Llama 2's two"], there)
    assert more == [*there, "1，一个", "1，Llama 2 的两个"], "another seed"
    assert pages.translated(["best of n", "new"], ["n 个中最好的"]) == ["best of n", "new"]


def test_a_page_can_show_the_records_themselves(elsewhere):
    records.keep(prints_something, None, COMMAND)
    page = elsewhere / "page.md"
    page.write_text("<!-- table: records 1 -->\n\n| a | b | c | d | e | f | g |\n|-|-|-|-|-|-|-|\n")
    pages.write(["prints_something", "never_made"], [page])
    assert f"| prints_something | `{COMMAND}` | 0 seconds |" in page.read_text(encoding="utf-8")


ALL = """
import sys
from pathlib import Path
sys.path[:0] = {places!r}
import experiments
from records import say

def whole(args):
    "one that ends well"
    say(f"{{args.seeds}} seeds")

def fails_at_first(args):
    "one that does not"
    if not Path("tried").exists():
        Path("tried").touch()
        sys.exit(3)

experiments.EXPERIMENTS = {{fails_at_first: "1 minute", whole: "2 minutes a seed"}}
experiments.run_main(experiments.main)
"""


def test_all_goes_on_behind_a_failure_and_makes_no_experiment_twice(elsewhere, capfd):
    script = elsewhere / "script.py"
    script.write_text(ALL.format(places=[str(ROOT / "docs"), str(ROOT)]))
    guesses = {"fails_at_first": "1 minute", "whole": "2 minutes a seed"}
    with pytest.raises(SystemExit, match="1"):
        records.run_all(guesses, 2, script)
    first = capfd.readouterr().out
    assert "fails_at_first, whole; about 5 minutes" in first and "Failed: fails_at_first." in first
    assert "fails_at_first failed with exit code 3" in first
    assert records.load("whole")["text"] == "2 seeds"
    assert records.load("fails_at_first") is None
    records.run_all(guesses, 2, script)
    again = capfd.readouterr().out
    assert "To be made: fails_at_first; about 1 minute" in again and "whole: finished on" in again
    assert records.load("fails_at_first")["seconds"] is None, "nobody knows how long the first try took"
    assert records.takes("fails_at_first", "1 minute") == "1 minute"
    assert re.fullmatch(r"\d+ seconds? for 2 seeds", records.takes("whole", "2 minutes a seed"))
    assert not records.finished("whole", records.words_of("whole", guesses["whole"], 3)), "other seeds"


def test_times_in_words():
    assert [records.in_words(x) for x in (0, 61, 546, 7260)] == [
        "0 seconds", "1 minute 1 second", "9 minutes 6 seconds", "2 hours 1 minute"]
    assert records.seconds_of("20 to 45 minutes a seed", 2) == 3900
    assert records.seconds_of("seconds, after main_run", 3) == 0


def test_the_quoted_tokens_are_the_first_the_clipped_and_the_last():
    rows = [f"{name:<6}0.1{'   clipped' if name == 'e' else ''}" for name in "abcdefgh"]
    block = "\n".join(["token  log p", "-" * 12, *rows])
    words = "score      1\n           of it\nKL         2\nreward     3\n"
    text = experiments.some_tokens(f"above\n\n{block}\n\n{words}")
    assert [line[:1] for line in text.split("\n")[2:]] == [*"abc", ".", "e", ".", "h", "", "s", " ", ".", "r"]
