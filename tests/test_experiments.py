"""docs/experiments.py: the list, what is computed without a run, and the cross-validation."""
import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import data
from data import UserError
from lab.commands import STAGES

sys.path.insert(0, str(ROOT / "docs"))
experiments, folds, runs = (importlib.import_module(name) for name in ("experiments", "folds", "runs"))


def test_the_list_says_what_each_shows_and_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments.py"])
    experiments.main()
    out = capsys.readouterr().out
    for function, minutes in experiments.EXPERIMENTS.items():
        assert function.__name__ in out and function.__doc__.split()[0] in out
        assert "minutes" in minutes or "seconds" in minutes
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("stage", ["rm_weak", "rankings_safety", "judge", "sft"])
def test_a_standard_stage_is_made_by_its_own_command(monkeypatch, stage):
    """Its flags are those of the list of stages, whatever their order, and its name is said once."""
    asked = []
    monkeypatch.setattr(runs, "command", lambda *words: asked.append([str(word) for word in words]))
    assert runs.standard(stage, seed=2).as_posix() == f"runs/tiny-seed2/{stage}"
    runs.standard(stage, name="other", more=("--lr", "1"))
    script, *flags = STAGES[stage].split()
    flags += [] if "--name" in flags else ["--name", stage]
    assert sorted(asked[0]) == sorted([script, "--config", "tiny", "--seed", "2", *flags])
    assert asked[1][-2:] == ["--name", "other"] and asked[1].count("--name") == 1 and "--lr" in asked[1]


def test_win_rates_prompt_by_prompt():
    """Two prompts, two answers to each, prompt after prompt: won and tied; lost twice."""
    assert runs.shares([3, 0, 2, 0], [1, 1, 2, 1], 2) == [0.75, 0.0]
    assert runs.spread([1, 2, 3]) == "2.00 (1.00 to 3.00)"
    assert runs.corrected({"accuracy": 0.7, "ceiling": 0.9}) == pytest.approx(0.5)
    assert runs.corrected({"rm_accuracy": 0.9, "rm_ceiling": 0.9}) == pytest.approx(1)
    assert runs.corrected({"rm_accuracy": None, "rm_ceiling": 0}) is None


def test_an_experiment_shares_a_name_with_a_chapter_only_where_it_is_the_same_command():
    """Otherwise whoever has followed the chapter is told that the stage was made with other knobs."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    source = (ROOT / "docs" / "experiments.py").read_text(encoding="utf-8")
    shared = {name for name in re.findall(r"--name (\w[\w.-]*\w)", text) if f'"{name}"' in source}
    same, no_names = {"llama2", "no_kl", "stale"}, {"last", "short"}  # the same flags; other words
    assert shared - STAGES.keys() == same | no_names


def test_the_first_picture_is_of_the_default_run_whatever_else_was_trained(monkeypatch, tmp_path, capsys):
    drawn, model = [], SimpleNamespace(config=SimpleNamespace(block_size=96))
    monkeypatch.chdir(tmp_path)
    folder = runs.run_of()
    folder.mkdir(parents=True)
    for name, gold in (("ppo", 5.0), ("no_kl", -9.0)):
        (folder / f"{name}.jsonl").write_text(json.dumps({"step": 0, "score": 1.0, "gold": gold}) + "\n")
    monkeypatch.setattr(experiments, "model_of", lambda path: model)
    monkeypatch.setattr(experiments, "encoding_of", lambda folder: None)
    monkeypatch.setattr(experiments, "answer", lambda *_: [SimpleNamespace(text="To repair a lock, wait.")])
    monkeypatch.setattr(experiments, "score_texts", lambda *_: [1.0, -1.0])
    draw = experiments.pictures.draw_first
    monkeypatch.setattr(experiments.pictures, "draw_first", lambda *args: (drawn.append(args), draw(*args)))
    experiments.first(SimpleNamespace(out=tmp_path / "first.png"))
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


def test_a_fold_is_trained_and_measured(make_gpt, enc):
    """The reward model of a fold learns that "A dog" is better than nothing."""
    base = make_gpt(std=0.1, vocab_size=enc.n_vocab, block_size=64)
    rows = [row(f"What is a cat {i}?", "A dog is man's best friend.", "") for i in range(8)]
    corpus = torch.arange(200).numpy() % enc.n_vocab
    cfg = folds.Config(batch_size=4, epochs=10, lr=0.01, warmup=1)
    model = folds.train_fold(base, enc, rows, corpus, cfg, "fold")
    assert folds.accuracy(model, enc, rows) == (1.0, 8)
    assert all(data.has_pairs(r) for r in rows)
    table = folds.summary([(0.8, 0.6, 0.5, 10), (0.6, 0.6, 0.7, 30)], 40)
    assert "0.650" in table and "0.600" in table, "weighted by pairs"
