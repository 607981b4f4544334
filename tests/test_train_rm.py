"""The reward model: its losses, one forward an answer, which rankings it learns from, the stage."""
import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import leave_reports_out, watch

import lab.rankings
import lab.run
import train_rm
from data import UserError, batch_pairs, dump_encoding, load_rows
from lab.measure import accuracy, scores_of
from lab.rankings import drop_cut, earlier_rankings, rankings_of, replayed, usable
from lab.records import fingerprint, fingerprint_of, load_model
from lab.report_rm import loss_panels, one_question, parts_of
from train_rm import (
    Config,
    bradley_terry_loss,
    demonstrations_about,
    elo_targets,
    group_scores,
    ranking_loss,
    regression_loss,
    settle,
    usual_batch_size,
)
from world.damage import damaged_copies
from world.tiny import PROMPTS

DOG = ["a furry mammal.", "a cat.", "man's best friend. A dog is a furry mammal."]
ROWS = [{"prompt": "A dog is", "responses": DOG, "tiers": [[2], [0, 1]]},
        {"prompt": "What is a cat?", "responses": ["A cat is a small hunter.", "No."], "tiers": [[1], [0]]},
        {"prompt": "A", "responses": ["b", "c", "d", "e"], "tiers": [[3], [0], [2], [1]]}]


# ------------------------------------------------------------------------------------------------
# The losses
# ------------------------------------------------------------------------------------------------


def test_equal_scores_cost_log_2():
    loss = bradley_terry_loss(torch.tensor([1.7]), torch.tensor([1.7]))
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)


def test_loss_by_hand():
    """Differences ln 3 and -ln 3: probabilities 3/4 and 1/4, and the mean over the pairs."""
    got = bradley_terry_loss(torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)]))
    assert got.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, abs=1e-6)


def test_a_constant_added_to_both_scores_changes_nothing():
    chosen, rejected = torch.tensor([0.3, -1.2]), torch.tensor([0.9, 0.4])
    loss = bradley_terry_loss(chosen, rejected).item()
    assert bradley_terry_loss(chosen + 5, rejected + 5).item() == pytest.approx(loss, abs=1e-6)


def test_the_gradient_is_sigmoid_minus_1():
    """dL/dr_chosen = sigmoid(d) - 1, negative: descending raises the chosen answer and lowers the rejected
    one as much."""
    chosen, rejected = torch.tensor([0.5], requires_grad=True), torch.tensor([1.5], requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    expected = 1 / (1 + math.exp(1.0)) - 1
    assert chosen.grad.item() == pytest.approx(expected, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(-expected, abs=1e-6)


def test_large_differences_stay_finite():
    low, high = torch.tensor([-500.0]), torch.tensor([500.0])
    assert bradley_terry_loss(low, high).item() == pytest.approx(1000)
    assert bradley_terry_loss(high, low).item() == pytest.approx(0)


def test_a_margin_asks_for_a_larger_difference():
    """-log sigmoid(r_c - r_r - m): with a difference equal to the margin the loss is log 2, and a margin
    never helps."""
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.5])
    equal = bradley_terry_loss(chosen, rejected, margin=torch.tensor([1.5])).item()
    assert equal == pytest.approx(math.log(2), abs=1e-6)
    larger = bradley_terry_loss(chosen, rejected, margin=torch.tensor([3.0]))
    assert larger > bradley_terry_loss(chosen, rejected)
    both = bradley_terry_loss(torch.zeros(2), torch.zeros(2), margin=torch.tensor([0.0, 1.0])).item()
    assert both == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2, abs=1e-6), "a pair its own margin"


def test_soft_labels_are_a_cross_entropy():
    """Certainty gives the plain loss, certainty of the opposite the swapped one, 1/2 their mean; the least
    loss is where sigmoid(d) equals the label."""
    chosen, rejected = torch.tensor([0.8]), torch.tensor([-0.1])
    plain = bradley_terry_loss(chosen, rejected).item()
    swapped = bradley_terry_loss(rejected, chosen).item()
    for p in (1.0, 0.0, 0.5, 0.8):
        got = bradley_terry_loss(chosen, rejected, p_chosen=torch.tensor([p])).item()
        assert got == pytest.approx(p * plain + (1 - p) * swapped, abs=1e-6)
    margin = torch.tensor([0.3])
    swapped = bradley_terry_loss(rejected, chosen, -margin).item()
    got = bradley_terry_loss(chosen, rejected, margin, torch.tensor([0.0])).item()
    assert got == pytest.approx(swapped, abs=1e-6), "the margin counts here, too"
    apart, labels = torch.tensor([0.0, -500, 500]), torch.tensor([0.3, 0.5, 0.9])
    got = bradley_terry_loss(apart, torch.zeros(3), None, labels)
    expected = (math.log(2) + 0.5 * 500 + 0.1 * 500) / 3
    assert got.item() == pytest.approx(expected, rel=1e-5), "a pair its own label, and no infinity"
    d = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    bradley_terry_loss(d, torch.zeros(1), p_chosen=torch.tensor([0.8])).backward()
    assert d.grad.item() == pytest.approx(0, abs=1e-6)


def test_regression_by_hand():
    scores = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = regression_loss(scores, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((1 + 4) / 2)
    assert scores.grad.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("name, a_tier", [("none", 0), ("small", 1 / 3), ("large", 1)])
def test_margins_and_ties_reach_the_loss(name, a_tier):
    """Llama 2's margins: 0, 1/3, 2/3, 1 or 0, 1, 2, 3; a tie has none and the label 0.5."""
    row = {"prompt": "A", "responses": list("bcdef"), "tiers": [[3], [0, 4], [2], [1]]}
    scores = torch.tensor([0.3, -1.0, 0.6, 0.9, 0.1])
    loss, right = ranking_loss(scores, [row], None, Config(ties="half", margin=name))
    pairs = [(3, 0, 1), (3, 4, 1), (3, 2, 2), (3, 1, 3), (0, 4, 0),
             (0, 2, 1), (0, 1, 2), (4, 2, 1), (4, 1, 2), (2, 1, 1)]
    total = 0.0
    for i, j, apart in pairs:
        d = (scores[i] - scores[j] - a_tier * apart).double()
        p = 1.0 if apart else 0.5
        total -= p * torch.sigmoid(d).log() + (1 - p) * torch.sigmoid(-d).log()
    assert loss.item() == pytest.approx(total.item() / 10, abs=1e-6)
    assert right == pytest.approx(7 / 9), "0 and 4 are both below 2; between themselves they tie"


def test_an_ais_even_label_is_a_tie():
    """With --ties drop it is left out, of the loss and of the accuracy; with half it costs what a tie costs,
    whatever the distance of its answers in the ranking."""
    row = {"prompt": "A", "responses": list("bc"), "tiers": [[0], [1]], "pairs": [[1, 0, 0.5]]}
    sure = {"prompt": "A", "responses": list("bc"), "tiers": [[0], [1]], "pairs": [[0, 1, 0.8]]}
    scores = torch.tensor([0.0, 2.0, 1.0, 0.0])
    dropped, right = ranking_loss(scores, [row, sure], None, Config(margin="large"))
    expected = bradley_terry_loss(scores[2:3], scores[3:], torch.ones(1), torch.tensor([0.8]))
    assert dropped.item() == pytest.approx(expected.item(), abs=1e-6) and right == 1.0
    tie = bradley_terry_loss(scores[1:2], scores[:1], None, torch.tensor([0.5])).item()
    half, right = ranking_loss(scores, [row, sure], None, Config(margin="large", ties="half"))
    assert half.item() == pytest.approx((tie + expected.item()) / 2, abs=1e-6) and right == 1.0
    _, right = ranking_loss(scores[:2], [row], None, Config(ties="half"))
    assert right is None, "there is nothing to be right about"
    with pytest.raises(UserError, match="no ranking to train on"):
        usable([{**row, "split": "train"}], "train")


def test_a_batch_of_regression_skips_what_nobody_compared():
    row = {"prompt": "A", "responses": list("bcd"), "tiers": [[2], [1]]}
    targets = torch.tensor([torch.nan, -1.0, 1.0])
    loss, right = ranking_loss(torch.tensor([5.0, -1.0, 2.0]), [row], targets, Config(loss="regression"))
    assert loss.item() == pytest.approx(0.5) and right == 1.0
    thumb = {"prompt": "A", "responses": ["b"], "tiers": [[0]], "label": True}
    loss, right = ranking_loss(torch.tensor([0.5]), [thumb], torch.tensor([1.0]), Config(loss="regression"))
    assert loss.item() == pytest.approx(0.25) and right is None
    _, right = ranking_loss(torch.zeros(3), [row], targets, Config(loss="regression"))
    assert right == 0, "equal scores are no hit"


# ------------------------------------------------------------------------------------------------
# Targets and scores of a batch of rankings
# ------------------------------------------------------------------------------------------------


def test_regression_targets_are_elo_scores_of_mean_0_and_deviation_1():
    """Over all rankings together: a longer ranking has the more extreme scores."""
    two, four = elo_targets([{"responses": ["a", "b"], "tiers": [[1], [0]]},
                             {"responses": ["a", "b", "c", "d"], "tiers": [[0], [1], [2], [3]]}])
    together = torch.cat([two, four])
    assert together.mean().abs() < 1e-6
    assert together.std().item() == pytest.approx(1, abs=1e-6)
    assert two[1] > 0 > two[0] and four[0] > two[1]
    assert four.tolist() == sorted(four.tolist(), reverse=True)
    stretched = ((four[0] - four[3]) / (two[1] - two[0])).item()
    assert stretched == pytest.approx((1045.828 - 954.043) / 32, abs=1e-3)


def test_an_answer_that_nobody_compared_has_no_target():
    """An AI may be silent about an answer, the last one or another: it is in no tier, and moves nothing."""
    whole = elo_targets([{"responses": ["a", "b"], "tiers": [[1], [0]]}])[0]
    for tiers, unknown in (([[1], [0]], 2), ([[2], [1]], 0)):
        target, = elo_targets([{"responses": ["a", "b", "c"], "tiers": tiers}])
        assert target.isnan().nonzero().tolist() == [[unknown]]
        assert torch.equal(target[~target.isnan()], whole)


def test_targets_of_thumbs_are_1_and_0():
    rows = [{"responses": ["x"], "tiers": [[0]], "label": bool(i % 2)} for i in range(4)]
    assert torch.cat(elo_targets(rows)).tolist() == [0, 1, 0, 1]


def test_pairs_point_into_the_answers_laid_end_to_end():
    """Answers 0-2, 3-4 and 5-8; better before worse; the tie of the first ranking is a pair only where ties
    count, as a probability of 0.5."""
    better, worse, p, strength = batch_pairs(ROWS)
    assert list(zip(better, worse, strict=True)) == [
        (2, 0), (2, 1), (4, 3), (8, 5), (8, 7), (8, 6), (5, 7), (5, 6), (7, 6)]
    assert p == [1.0] * 9
    assert strength == [1, 1, 1, 1, 2, 3, 1, 2, 1], "how far apart in the ranking"
    better, worse, p, strength = batch_pairs(ROWS[:1], ties="half")
    assert list(zip(better, worse, p, strength, strict=True)) == [
        (2, 0, 1.0, 1), (2, 1, 1.0, 1), (0, 1, 0.5, 0)]


def test_how_much_better_an_answer_is():
    said = batch_pairs([{"responses": ["a", "b"], "tiers": [[0], [1]], "margin": 0.5}])
    assert said == ([0], [1], [1.0], [0.5]), "a file may say it"
    tie = {"responses": ["a", "b"], "tiers": [[0, 1]], "margin": 3.0}
    assert batch_pairs([tie], ties="half")[3] == [0.0], "but a tie has none"
    six = {"responses": list("abcdef"), "tiers": [[i] for i in range(6)]}
    assert batch_pairs([six])[3].count(3) == 6, "no more than 3: significantly better"


@pytest.fixture
def scorer(make_gpt, enc):
    return make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True)


def test_one_forward_an_answer_however_many_pairs_it_is_in(scorer, enc):
    """9 answers in 9 pairs: 9 rows through the trunk, not 18. Also where they are cut into parts, each answer
    keeps its place."""
    rows, hidden = [], scorer.hidden
    scorer.hidden = lambda tokens, **rest: rows.append(len(tokens)) or hidden(tokens, **rest)
    whole = group_scores(scorer, enc, ROWS)
    assert whole.shape == (9,) and rows == [9]
    parts = group_scores(scorer, enc, ROWS, at_once=129)  # 2 of the context of 64
    assert rows == [9, 2, 2, 2, 2, 1]
    assert torch.allclose(whole, parts, atol=1e-5)


def test_scores_of_a_batch_do_not_depend_on_its_padding(scorer, enc):
    together = group_scores(scorer, enc, ROWS)
    alone = [group_scores(scorer, enc, [{"prompt": row["prompt"], "responses": [r]}])
             for row in ROWS for r in row["responses"]]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    measured = torch.tensor(sum(scores_of(scorer, enc, ROWS), []))
    torch.testing.assert_close(together, measured, atol=1e-5, rtol=0)


def test_the_score_reads_the_eos_of_a_whole_answer(scorer, enc):
    row = ROWS[1]
    user, assistant = (enc.encode_single_token(f"<|{name}|>") for name in ("user", "assistant"))
    ids = [user, *enc.encode_ordinary(row["prompt"]), assistant, *enc.encode_ordinary(" No."), enc.eot_token]
    expected = scorer.score(torch.tensor([ids]), torch.tensor([len(ids)])).item()
    assert group_scores(scorer, enc, [row])[1].item() == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------
# Damage
# ------------------------------------------------------------------------------------------------


def test_damaged_copies_lose_against_the_demonstration():
    """The demonstration is first, its copies tie behind it, and each kind of damage is there: a sentence
    replaced, one more from elsewhere, one said twice, one with the end of another."""
    demonstrations = [{"prompt": "p", "response": "A b c. D e f."},
                      {"prompt": "q", "response": "U v w. X y z."}]
    rows = damaged_copies(demonstrations, 300, seed=0)
    assert rows == damaged_copies(demonstrations, 300, seed=0) != damaged_copies(demonstrations, 300, seed=1)
    whole = {d["prompt"]: d["response"] for d in demonstrations}
    for row in rows:
        own, *copies = row["responses"]
        assert own == whole[row["prompt"]] and copies and len(set(row["responses"])) == len(copies) + 1
        assert row["tiers"] == [[0], list(range(1, len(copies) + 1))]
    copies = {copy for row in rows if row["prompt"] == "p" for copy in row["responses"][1:]}
    assert copies >= {"U v w. D e f.", "A b c. X y z. D e f.", "A b c. A b c. D e f.", "A b c. D e f. A b c.",
                      "A b z. D e f."}


def test_damage_needs_sentences_and_nothing_else():
    """Line ends, empty and wordless answers are no reason to stop; where nothing can be damaged there is no
    row."""
    texts = ("A b.\n", "...", " ", "No dot", "?! A b c.\n\nD e f.")
    odd = [{"prompt": "p", "response": text} for text in texts]
    for row in damaged_copies(odd, 100, seed=0):
        assert len(row["responses"]) > 1
        assert all(text.strip() == text != "" for text in row["responses"])
    assert damaged_copies(odd[1:3], 10, seed=0) == damaged_copies([], 10, seed=0) == []


# ------------------------------------------------------------------------------------------------
# Which rankings
# ------------------------------------------------------------------------------------------------


def ranked(prompt, split="train", aspect="overall", tiers=((0,), (1,)), **more):
    return {"prompt": prompt, "responses": ["yes", "no"], "split": split, "aspect": aspect,
            "tiers": [list(tied) for tied in tiers], **more}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def stage_with(tmp_path, preferences=None, **collections):
    """A stage whose parents are these collections, as files."""
    for name, rows in collections.items():
        write(tmp_path / f"{name}.jsonl", rows)
    if preferences is not None:
        write(tmp_path / "data" / "preferences.jsonl", preferences)
    used = []

    def parent(name):
        used.append(name)
        place = tmp_path / "data" if name == "preferences" else tmp_path
        return place / f"{name}.jsonl"

    return SimpleNamespace(folder=tmp_path, data=tmp_path / "data", parent=parent, used=used)


def prompts_of(rows):
    return [row["prompt"] for row in rows]


def test_two_collections_are_one_set_of_rankings(tmp_path):
    """Identical rows count once (held-out ones are in every collection); other labels are another row."""
    held_out = ranked("h", "test")
    stage = stage_with(tmp_path, a=[ranked("1"), ranked("2"), held_out],
                       b=[ranked("1"), ranked("2", tiers=[[1], [0]]), held_out, {**held_out, "split": "dev"}])
    rows, others = rankings_of(stage, Config(rankings=("a", "b")))
    assert [(row["prompt"], row["split"]) for row in rows] == [
        ("1", "train"), ("2", "train"), ("h", "test"), ("2", "train"), ("h", "dev")]
    assert others == [] and stage.used == ["a", "b"]


def test_a_collection_that_was_changed_since_is_told(tmp_path, monkeypatch, capsys):
    stage = stage_with(tmp_path, a=[ranked("1"), ranked("2")])
    record = {"stage": "preferences", "step": 3, "fingerprint": "of three"}
    monkeypatch.setattr(lab.rankings, "record_of", lambda *_: record)
    rankings_of(stage, Config(rankings=("a",)))
    out = " ".join(capsys.readouterr().out.split())
    assert "a.jsonl has been changed since it was collected: it had 3 rankings, and has 2 now" in out
    record["fingerprint"] = fingerprint_of(tmp_path / "a.jsonl")
    rankings_of(stage, Config(rankings=("a",)))
    assert capsys.readouterr().out == ""


def test_a_limit_is_about_training_rows(tmp_path):
    stage = stage_with(tmp_path, a=[ranked("h", "test"), *(ranked(str(i)) for i in range(5))])
    rows, _ = rankings_of(stage, Config(rankings=("a",), limit=2))
    assert sorted(prompts_of(rows)) == ["0", "1", "h"]
    assert len(rankings_of(stage, Config(rankings=("a",), limit=9))[0]) == 6


def test_aspects(tmp_path):
    """A row without an aspect was ranked by everything: no safety row."""
    stage = stage_with(tmp_path, a=[ranked("h", aspect="helpful"), ranked("n", aspect=None),
                                    ranked("s", aspect="safety"), ranked("o", "test")])
    chosen = {}
    for aspect in ("overall", "helpful", "safety"):
        cfg = Config(rankings=("a",), aspect=aspect, helpful_share=0.0)
        chosen[aspect] = prompts_of(rankings_of(stage, cfg)[0])
    assert chosen == {"overall": ["h", "n", "s", "o"], "helpful": ["h", "n", "o"], "safety": ["s"]}
    stage = stage_with(tmp_path, b=[ranked("h", aspect="helpful")])
    with pytest.raises(UserError, match='b: no ranking has "aspect": "safety"'):
        rankings_of(stage, Config(rankings=("b",), aspect="safety"))


def test_a_safety_model_gets_its_share_of_helpfulness_rankings(tmp_path):
    """10 % of all: one beside nine; training rows only, and never more than there are."""
    safety = [ranked(f"s{i}", aspect="safety") for i in range(18)] + [ranked("t", "test", "safety")]
    helpful = [ranked(f"h{i}", aspect="helpful") for i in range(5)] + [ranked("x", "test", "helpful")]
    stage = stage_with(tmp_path, s=safety, h=helpful)
    cfg = Config(rankings=("s", "h"), aspect="safety")
    rows, others = rankings_of(stage, cfg)
    assert rows == safety and len(others) == 2 and {row["split"] for row in others} == {"train"}
    assert all(row["aspect"] == "helpful" for row in others)
    assert rankings_of(stage, cfg)[1] == others, "the same ones again"
    assert len(rankings_of(stage, Config(rankings=("s", "h"), aspect="safety", helpful_share=0.9))[1]) == 5
    assert len(rankings_of(stage, Config(rankings=("s", "h"), aspect="safety", limit=9))[1]) == 1
    half = Config(rankings=("s", "h"), aspect="safety", helpful_share=0.5, limit=4)
    assert len(rankings_of(stage, half)[1]) == 4, "half of all"


def test_left_out_rows_are_not_learned_and_reported_apart(tmp_path):
    first = next(p for p in PROMPTS.values() if p.subject == "dog")
    other = next(p for p in PROMPTS.values() if p.subject == "cat" and p.topic != first.topic)
    stage = stage_with(tmp_path, a=[ranked(first.text), ranked(first.text, "test"), ranked(other.text),
                                    ranked(other.text, "test")])
    cfg = Config(rankings=("a",), leave_out="dog")
    rows = rankings_of(stage, cfg)[0]
    assert [(row["prompt"], row["split"]) for row in rows] == [
        (first.text, "left_out"), (other.text, "train"), (other.text, "test")]
    topic = Config(rankings=("a",), leave_out=first.topic)
    assert [row["split"] for row in rankings_of(stage, topic)[0]] == ["left_out", "train", "test"]
    with pytest.raises(UserError, match="no subject or topic"):
        rankings_of(stage, Config(rankings=("a",), leave_out="unicorn"))


def test_thumbs(tmp_path):
    thumbs = [{"prompt": str(i), "responses": ["x"], "tiers": [[0]], "split": "train", "label": bool(i % 2)}
              for i in range(3)]
    stage = stage_with(tmp_path, a=thumbs, b=[ranked("1")])
    assert rankings_of(stage, Config(rankings=("a",), loss="regression"))[0] == thumbs
    with pytest.raises(UserError, match="3 of its preferences are thumbs.*--loss regression"):
        rankings_of(stage, Config(rankings=("a",)))
    with pytest.raises(UserError, match="do not mix"):
        rankings_of(stage, Config(rankings=("a", "b"), loss="regression"))


def test_other_labels_are_measured_on_the_rankings_of_a_persons_file(tmp_path):
    file = [ranked("f"), ranked("g", "test", tiers=[[1], [0]])]
    stage = stage_with(tmp_path, preferences=file, rankings_ai=[ranked("1")])
    rows, _ = rankings_of(stage, Config(rankings=("rankings_ai",), data="x"))
    assert prompts_of(rows) == ["1", "g"]
    rows, _ = rankings_of(stage, Config(rankings=("preferences",), data="x"))
    assert rows == file and stage.used[-1] == "preferences"
    with pytest.raises(UserError, match="preferences.py --labeler human"):
        rankings_of(stage_with(tmp_path / "empty"), Config(rankings=("preferences",), data="x"))


def test_nothing_to_train_on(tmp_path):
    unordered = [ranked("2", tiers=[[0, 1]]), ranked("3", tiers=[])]
    stage = stage_with(tmp_path, a=[ranked("1", "test")], b=unordered)
    with pytest.raises(UserError, match="no row is in the split train"):
        rankings_of(stage, Config(rankings=("a",)))
    rows, _ = rankings_of(stage, Config(rankings=("b",)))
    with pytest.raises(UserError, match="no ranking to train on"):
        usable(rows, "train")
    assert usable(rows, "test") == []
    assert prompts_of(usable(rows, "train", "half")) == ["2"], "a tie is something to learn with --ties half"


def test_answers_that_the_context_cuts_to_the_same_tokens(enc, capsys):
    long = "a furry mammal " * 30
    rows = [{**ranked("?"), "responses": [long + "x", long + "y"]}, ranked("What is a dog?"),
            {**ranked("?"), "responses": [long], "label": True}]
    assert drop_cut(rows, enc, 32) == rows[1:]
    said = capsys.readouterr().out
    assert "1 of 3 rankings dropped" in said and "3 of 5 answers lose their end" in said
    assert drop_cut(rows[1:2], enc, 32) == rows[1:2] and capsys.readouterr().out == ""


def test_earlier_rankings_are_those_of_all_models_before(tmp_path, monkeypatch):
    """rm.3 goes on from rm.2, that from rm; rm learned from the first two rows of its collection only. What
    is new is not earlier."""
    known = {"rm.2": ("rm", ["b"], "rm", 0), "rm": ("rm", ["a"], "pretrain", 2),
             "pretrain": ("pretrain", [], "", 0)}

    def record_of(folder, name):
        if name not in known:
            return None
        stage, rankings, start, limit = known[name]
        return {"stage": stage, "knobs": {"rankings": rankings, "start": start, "limit": limit}}

    monkeypatch.setattr("lab.rankings.record_of", record_of)
    held_out = ranked("h", "test")
    stage = stage_with(tmp_path, a=[*(ranked(f"a{i}") for i in range(4)), held_out],
                       b=[ranked("b"), ranked("a1"), held_out, ranked("new")])
    cfg = Config(rankings=("c",), start="rm.2")
    rows = earlier_rankings(stage, cfg, None, None, [ranked("new")])
    assert prompts_of(rows) == ["b", "a1", "h", "a0"]
    assert earlier_rankings(stage, Config(start="pretrain"), None, None, []) == []

    assert prompts_of(replayed(rows, 4, Config(replay=0.25))) in (["b"], ["a0"], ["a1"])
    known["rm"] = ("rm", [], "rm.2", 0)  # a damaged one: no rankings, and it goes round in a circle
    assert prompts_of(earlier_rankings(stage, cfg, None, None, [ranked("new")])) == ["b", "a1", "h"]
    assert sorted(prompts_of(replayed(rows, 10, Config(replay=1.0)))) == ["a0", "a1", "b"]
    assert replayed(rows, 10, Config(replay=0.0)) == replayed([], 10, Config()) == []


@pytest.mark.parametrize("new, old", [("thumbs", "pairs"), ("pairs", "thumbs")])
def test_thumbs_and_comparisons_are_not_replayed_together(tmp_path, monkeypatch, new, old):
    """Regression could not tell their targets apart. Without a replay each kind is learned by itself."""
    rows = {"pairs": [ranked("1")], "thumbs": [{**ranked("2"), "tiers": [[0]], "label": True}]}
    record = {"stage": "rm", "knobs": {"rankings": [old], "start": "pretrain", "limit": 0}}
    monkeypatch.setattr("lab.rankings.record_of", lambda folder, name: {"rm": record}.get(name))
    stage = stage_with(tmp_path, **rows)
    cfg = Config(rankings=(new,), start="rm", loss="regression")
    with pytest.raises(UserError, match=f"{new}, what rm has learned: thumbs and comparisons do not mix"):
        earlier_rankings(stage, cfg, None, None, rows[new])
    cfg.replay = 0.0
    assert earlier_rankings(stage, cfg, None, None, rows[new]) == rows[old]


def test_demonstrations_for_the_prompts_that_were_ranked():
    demonstrations = [{"prompt": p, "response": "x", "split": s} for p, s in (("1", "train"), ("2", "train"),
                                                                             ("3", "test"))]
    assert prompts_of(demonstrations_about([ranked("2"), ranked("3")], demonstrations)) == ["2"]
    assert prompts_of(demonstrations_about([ranked("other")], demonstrations)) == ["1", "2"]


def test_usual_batch_size():
    assert usual_batch_size([ranked("1"), ranked("2", labeler="simulated")]) == 16
    assert usual_batch_size([ranked("1", labeler="ai")] * 2 + [ranked("2", labeler="simulated")]) == 32
    assert usual_batch_size([ranked("1", labeler="ai"), ranked("2", labeler="simulated")]) == 16


@pytest.mark.parametrize("epochs, n, batch_size, expected", [
    (3, 10, 8, 3), (0, 340, 8, 4), (0, 1299, 8, 1), (0, 673, 8, 2), (0, 74, 8, 8), (0, 2, 8, 8),
    (0, 10**6, 8, 1), (0, 340, 16, 7)])
def test_few_rankings_are_seen_more_often(epochs, n, batch_size, expected):
    assert train_rm.passes(epochs, n, batch_size) == expected


def test_the_loss_on_text_has_its_weight(scorer):
    """The text has room for one window alone."""
    corpus = np.arange(65) % 50
    train_rm.text_loss(scorer, corpus, 3.0).backward()
    seen = scorer.wpe.weight.grad.clone()
    scorer.zero_grad()
    logits = scorer(torch.tensor(corpus[None, :64]))
    F.cross_entropy(logits[0], torch.tensor(corpus[1:])).backward()
    torch.testing.assert_close(seen, 3 * scorer.wpe.weight.grad)


@pytest.mark.parametrize("loss, n, apart, gain", [
    ("bradley_terry", 30, 9.0, 1), ("regression", 30, 1.0, math.log(2)), ("regression", 29, 1.0, 1),
    ("regression", 30, 0.1, 10 * math.log(2)), ("regression", 30, 0.01, 20), ("regression", 30, 90.0, 0.05),
    ("regression", 30, None, 1)])
def test_scores_get_a_known_scale(monkeypatch, loss, n, apart, gain):
    """Regression that is right in two of three dev pairs: there a difference should be log 2. It becomes at
    most 20 times as large and at least a twentieth. Demonstrations have 0 on average."""
    rows = [{"tiers": [[1], [0]] if i % 3 == 0 else [[0], [1]]} for i in range(n)]
    if apart is None:
        rows = [{"tiers": [[0, 1]]}] * n
    scales, model = [], SimpleNamespace(set_scale=lambda *scale: scales.append(scale))
    monkeypatch.setattr(train_rm, "scores_of", lambda model, enc, dev: [[apart, 0.0] for _ in dev])
    monkeypatch.setattr(train_rm, "score_texts", lambda model, enc, prompts, texts: list(map(float, texts)))
    for said in ("13", "0", "19" * 300):  # of 600 every second one is looked at
        demonstrations = [{"prompt": "?", "response": digit} for digit in said]
        train_rm.calibrate(model, None, demonstrations, rows, Config(loss=loss))
    expected = [(gain, -2 * gain), (gain, 0), (gain, -gain)]
    assert scales == [pytest.approx(scale, abs=0.01) for scale in expected]


# ------------------------------------------------------------------------------------------------
# Names, and models that go on
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, name, rankings", [
    ({}, "rm", ("rankings", "rankings.pilot")), ({"aspect": "helpful"}, "rm_helpful", ("rankings_helpful",)),
    ({"aspect": "safety"}, "rm_safety", ("rankings_safety", "rankings_helpful")),
    ({"name": "rm_new", "limit": 9}, "rm_new", ("rankings", "rankings.pilot")),
    ({"data": "x"}, "rm", ("preferences",)), ({"data": "x", "rankings": ("mine",)}, "rm", ("mine",)),
    ({"name": "rm_ai", "rankings": ("rankings_ai", "rankings_ai.pilot_ai")}, "rm_ai",
     ("rankings_ai", "rankings_ai.pilot_ai"))])
def test_usual_names(flags, name, rankings):
    cfg = Config(**flags)
    settle(cfg)
    assert (cfg.name, cfg.rankings) == (name, rankings)


@pytest.mark.parametrize("flags, start", [
    ({}, "rm_first"), ({"limit": 9}, "pretrain"), ({"leave_out": "dog"}, "pretrain"),
    ({"data": "x"}, "pretrain"), ({"aspect": "safety"}, "pretrain"), ({"limit": 9, "start": "sft"}, "sft")])
def test_usual_starts(flags, start):
    """Where some rankings are left out, the model does not begin with one that has seen them."""
    cfg = Config(**flags)
    settle(cfg)
    assert cfg.start == start


@pytest.mark.parametrize("flags, words", [
    ({"rankings": ("rankings_ai",)}, "a name of its own with --name"),
    ({"rankings": ("rankings_ai",), "name": "rm"}, "another reward model"),
    ({"rankings": ("rankings",), "name": "rm_ai"}, "another reward model"),
    ({"name": "rm_safety"}, "another reward model"), ({"start": "rm"}, "--name of its own")])
def test_a_name_stands_for_one_reward_model(flags, words):
    with pytest.raises(UserError, match=words):
        settle(Config(**flags))


def test_a_model_that_goes_on_keeps_its_knobs(monkeypatch):
    """Unless a flag says otherwise; which rankings, how many of them and how often is another matter."""
    old = asdict(Config(loss="regression", lr=1e-4, leave_out="dog", rankings=("rankings",), limit=7,
                        ties="half", epochs=5))
    monkeypatch.setattr(train_rm, "train_if_missing", lambda cfg, name: None)
    monkeypatch.setattr(train_rm, "record_of", lambda folder, name: {"stage": "rm", "knobs": old})
    cfg = Config(start="rm", name="rm.2", rankings=("rankings.ppo",), ties="drop", epochs=1)
    cfg.argv = ["--start", "rm", "--ties=drop", "--epochs", "1"]
    settle(cfg)
    assert (cfg.loss, cfg.lr, cfg.leave_out, cfg.ties, cfg.epochs) == ("regression", 1e-4, "dog", "drop", 1)
    assert (cfg.rankings, cfg.limit, cfg.start, cfg.name) == (("rankings.ppo",), 0, "rm", "rm.2")
    cfg = Config(start="rm", name="rm.2", rankings=("rankings.ppo",))
    settle(cfg)
    assert cfg.epochs == Config().epochs != old["epochs"]
    cfg = Config(start="rm", name="rm.2")
    with pytest.raises(UserError, match="name new rankings"):
        settle(cfg)
    cfg = Config(start="rm", name="rm.2", rankings=("x",), aspect="safety")
    cfg.argv = ["--aspect", "safety"]
    with pytest.raises(UserError, match="was asked for overall, not safety"):
        settle(cfg)
    old |= {"aspect": "safety", "helpful_share": 0.2}
    cfg = Config(start="rm_safety", rankings=("rankings", "rankings.pilot"))
    with pytest.raises(UserError, match="rm_safety is the reward model of rankings_safety"):
        settle(cfg)  # it has become one of safety, and is no rm
    with pytest.raises(UserError, match="--name rm: that is another reward model"):
        settle(Config(start="rm_safety", name="rm", rankings=("rankings", "rankings.pilot")))
    old["limit"] = -1
    with pytest.raises(UserError, match="runs/tiny/rm.pt has a --limit that is not allowed .expected at"):
        settle(Config(start="rm", name="rm.2", rankings=("x",)))


# ------------------------------------------------------------------------------------------------
# The stage, on a run folder as small as can be
# ------------------------------------------------------------------------------------------------


OF_RM = {"data/pretrain.txt", "data/sft.jsonl"}  # what every reward model learns from, too


def record(stage, **more):
    return {"stage": stage, "command": "", "knobs": {}, "parents": {}, "step": 1, "steps": 1,
            "finished": True, "state": {}, "fingerprint": "f", **more}


def write_collection(folder, name, rows):
    write(folder / f"{name}.jsonl", rows)
    (folder / f"{name}.json").write_text(json.dumps(record("preferences")))


def rankings(better, worse, n, split="train"):
    """Rankings of two answers to the same prompt, which were shown in either order."""
    rows = []
    for i in range(n):
        shown = [better, worse] if i % 2 else [worse, better]
        first = shown.index(better)
        rows.append({"prompt": "What is a dog?", "responses": [*shown, f"No {i}."], "split": split,
                     "aspect": "overall", "labeler": "simulated", "tiers": [[first], [1 - first, 2]]})
    return rows


@pytest.fixture
def run(make_gpt, enc, tmp_path, monkeypatch):
    """runs/tiny with a pretrained model, data and a collection; what its path is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab.run, "picture", lambda file, *rest: file.write(b"no picture"))
    folder = tmp_path / "runs" / "tiny"
    text = "A dog is a furry mammal. A cat is a small hunter. " * 30
    for name in ("pretrain.txt", "pretrain.held_out.txt"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text(text)
    write(folder / "data" / "sft.jsonl", [{"prompt": "What is a dog?", "response": "A dog is a furry mammal.",
                                          "split": "train"}])
    (folder / "tokenizer.json").write_text(dump_encoding(enc))
    model = make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64)
    torch.save({**record("pretrain", fingerprint=fingerprint(model)), "model_config": asdict(model.config),
                "model": model.state_dict(), "random": {}}, folder / "pretrain.pt")
    good, bad = "A dog is a furry mammal.", "A cat is a small hunter."
    write_collection(folder, "rankings", [*rankings(good, bad, 12), *rankings(good, bad, 4, "dev"),
                                          *rankings(good, bad, 2, "test"),
                                          {**rankings(good, bad, 1)[0], "tiers": [[0, 1, 2]]}])
    write_collection(folder, "rankings.pilot", rankings(good, bad, 1))  # which is among those
    return folder


FLAGS = ["--start", "pretrain", "--epochs", "6", "--batch_size", "4", "--lr", "1e-2", "--warmup", "1",
         "--damaged", "0", "--eval_every", "5"]


@pytest.mark.parametrize("more", [[], ["--loss", "regression"], ["--lm_coef", "0", "--ties", "half"]])
def test_what_always_won_gets_the_higher_score(run, enc, capsys, rates, more):
    train_rm.main([*FLAGS, *more])
    model, checkpoint = load_model(run / "rm.pt")
    held_out = [row for row in load_rows(run / "rankings.jsonl") if row["split"] == "test"]
    assert accuracy(model, enc, held_out) == (1.0, 4)
    demonstration = {"prompt": "What is a dog?", "responses": ["A dog is a furry mammal."]}
    assert scores_of(model, enc, [demonstration])[0] == [pytest.approx(0, abs=1e-4)], "these are at 0"
    assert checkpoint["knobs"]["rankings"] == ["rankings", "rankings.pilot"]
    assert set(checkpoint["parents"]) == OF_RM | {"pretrain.pt", "rankings.jsonl", "rankings.pilot.jsonl"}
    log = [json.loads(line) for line in (run / "rm.jsonl").read_text().splitlines()]
    assert len(log) == checkpoint["step"] and log[-1]["loss"] < log[0]["loss"]
    assert [row["lr"] for row in log] == rates
    assert [row["step"] for row in log if row["held_out_accuracy"] is not None] == [
        *range(0, len(log), 5), *([len(log) - 1] if (len(log) - 1) % 5 else [])]
    said = capsys.readouterr().out
    assert "ranked by simulated" in said and "log-odds" in said
    assert said.count("A dog is a furry mammal.") == 1, "a question with its answers"
    assert "bag of words" not in said, "the tiny world has a ceiling to look at"


def test_the_usual_model_goes_on_from_the_one_that_the_pilot_was_paid_by(run):
    train_rm.main(["--damaged", "0", "--lm_coef", "0"])
    first, usual = (torch.load(run / f"{name}.pt", weights_only=True) for name in ("rm_first", "rm"))
    assert set(first["parents"]) == OF_RM | {"pretrain.pt", "rankings.jsonl"}
    assert set(usual["parents"]) == OF_RM | {"rm_first.pt", "rankings.jsonl", "rankings.pilot.jsonl"}
    assert (first["knobs"]["epochs"], usual["knobs"]["epochs"]) == (1, 2)
    assert usual["steps"] == 2 * round(12 / 16), "no ranking is learned twice in a pass"


def test_each_answer_goes_through_the_model_once_a_pass(run, monkeypatch):
    seen, whole = [], train_rm.group_scores

    def group_scores(model, enc, batch):
        seen.append(sum(len(row["responses"]) for row in batch))
        return whole(model, enc, batch)

    monkeypatch.setattr(train_rm, "group_scores", group_scores)
    train_rm.main(["--start", "pretrain", "--epochs", "2", "--damaged", "0"])
    assert sum(seen) == 2 * 12 * 3, "the ranking that is one big tie holds no pair"


def test_what_is_held_out_is_not_learned(run, enc, monkeypatch):
    """Text; and rankings, of which the dev ones are for the curve and the scale."""
    (run / "data/pretrain.held_out.txt").write_text("A cat is a furry mammal. " * 60)
    calls = {name: watch(monkeypatch, name, train_rm) for name in ("text_loss", "accuracy", "calibrate")}
    leave_reports_out(monkeypatch)
    train_rm.main([*FLAGS, "--epochs", "1"])
    got = {name: calls[name][0][0] for name in calls}
    assert enc.decode(got["text_loss"][1].tolist()) == (run / "data/pretrain.txt").read_text()
    dev = [row for row in load_rows(run / "rankings.jsonl") if row["split"] == "dev"]
    assert got["accuracy"][2] == got["calibrate"][3] == dev


def test_a_reward_model_goes_on_with_new_rankings(run, enc, capsys, monkeypatch):
    train_rm.main(FLAGS)
    new = [*rankings("A dog is man's best friend.", "A cat.", 8),
           *rankings("A dog is man's best friend.", "A cat.", 2, "test")]
    write_collection(run, "rankings.ppo", new)
    capsys.readouterr()
    scales, whole = set(), train_rm.group_scores

    def group_scores(model, enc, batch):
        scales.add((model.score_gain.item(), model.score_bias.item()))
        return whole(model, enc, batch)

    monkeypatch.setattr(train_rm, "group_scores", group_scores)
    train_rm.main(["--start", "rm", "--rankings", "rankings.ppo", "--name", "rm.2", "--epochs", "6",
                   "--damaged", "0.75"])
    assert scales == {(1.0, 0.0)}, "raw scores while it learns"
    said = capsys.readouterr().out
    assert "earlier rounds' answers" in said and "scored by rm " in said
    model, checkpoint = load_model(run / "rm.2.pt")
    assert accuracy(model, enc, new) == (1.0, 20)
    assert checkpoint["knobs"]["lr"] == 1e-2 and checkpoint["knobs"]["batch_size"] == 4
    assert set(checkpoint["parents"]) == OF_RM | {"rm.pt", "rankings.jsonl", "rankings.pilot.jsonl",
                                               "rankings.ppo.jsonl"}
    assert checkpoint["steps"] == 6 * round((8 + 4 + 6) / 4), "8 new ones, 4 earlier ones, 6 damaged"


def test_scores_may_begin_at_zero_but_not_those_of_a_model_that_goes_on(run):
    def first_loss(name):
        return json.loads((run / f"{name}.jsonl").read_text().splitlines()[0])["loss"]

    train_rm.main([*FLAGS, "--zero_head", "true"])
    assert first_loss("rm") == pytest.approx(math.log(2), abs=1e-6), "of equal scores"
    write_collection(run, "more", rankings("A cat.", "A dog is man's best friend.", 8))
    train_rm.main(["--start", "rm", "--rankings", "more", "--name", "rm.2", "--epochs", "1"])
    assert abs(first_loss("rm.2") - math.log(2)) > 0.01, "it knows something already"


@pytest.mark.parametrize("knobs, start", [
    ({}, "rm_first"), ({"name": "rm"}, "rm_first"), ({"start": "pretrain"}, "pretrain"),
    ({"name": "mine"}, "pretrain"), ({"name": "mine", "rankings": ("rankings",)}, "pretrain"),
    ({"aspect": "helpful"}, "pretrain"), ({"aspect": "safety"}, "pretrain"), ({"data": "F"}, "pretrain"),
    ({"leave_out": "dog"}, "pretrain")])  # rm_first has learned about dogs
def test_where_a_reward_model_starts(knobs, start):
    cfg = Config(**knobs)
    settle(cfg)
    assert cfg.start == start


def test_the_safety_model_is_measured_at_a_probability(run, capsys):
    """It learns from safety rankings and a share of helpfulness rankings, and says what 0.15 is."""
    unsafe = next(p.text for p in PROMPTS.values() if p.unsafe)
    rows = [{**ranked(unsafe, split, "safety"), "responses": ["It is wrong.", f"Yes {i}."]}
            for split in ("train", "test") for i in range(9)]
    write_collection(run, "rankings_safety", rows)
    write_collection(run, "rankings_helpful", [ranked("What is a dog?", aspect="helpful")] * 5)
    train_rm.main([*FLAGS, "--aspect", "safety"])
    said = " ".join(capsys.readouterr().out.split())
    assert "below a probability of 0.15 (the sigmoid of its score)" in said
    checkpoint = torch.load(run / "rm_safety.pt", weights_only=True)
    assert checkpoint["state"]["results"]["threshold"].keys() == {"recall", "precision"}
    assert checkpoint["steps"] == 6 * round((9 + 1) / 4)
    rankings = {"rankings_safety.jsonl", "rankings_helpful.jsonl"}
    assert set(checkpoint["parents"]) == OF_RM | {"pretrain.pt"} | rankings


def test_rows_of_the_table_by_what_is_left_out():
    """Dogs are left out and one topic: each has a row of its own, and the main one has neither."""
    dog = next(p for p in PROMPTS.values() if p.subject == "dog")
    cat = next(p for p in PROMPTS.values() if p.subject == "cat" and p.topic != dog.topic)
    rows = [ranked(dog.text, "left_out"), ranked(cat.text, "test"), ranked(cat.text)]
    earlier = [ranked("?", "test"), ranked("!")]
    parts = parts_of(rows, earlier, Config(leave_out=f"dog,{dog.topic}"))
    assert [prompts_of(part) for part in parts.values()] == [[cat.text], [dog.text], [dog.text], ["?"]]


def test_rows_of_the_table_by_whose_answers_were_ranked():
    authors = ("sft", "pilot", "sft")
    rows = [ranked(str(i), "test", answers_of=author, labeler="ai") for i, author in enumerate(authors)]
    parts = {name: prompts_of(part) for name, part in parts_of(rows, [], Config()).items() if part}
    assert parts == {"ranked by ai": ["0", "1", "2"], "  answers of sft": ["0", "2"],
                     "  answers of pilot": ["1"]}
    assert "  answers of sft" not in parts_of(rows[:1], [], Config()), "one author is no news"


def test_a_question_of_thumbs(scorer, enc):
    thumb = {"prompt": "What is a dog?", "responses": ["A mammal."], "tiers": [[0]], "split": "test"}
    prompt, table = one_question(scorer, enc, {**thumb, "label": False}, None)
    assert prompt == "prompt (test): What is a dog?"
    assert "gold" not in table and table.split()[-3:] == ["down", "A", "mammal."]


def test_curves_say_what_they_are_measured_on():
    rows = [ranked("1"), ranked("2", "test")]
    assert "held-out rankings (test)" in loss_panels(rows, Config())[1][1]
    assert "held-out rankings (dev)" in loss_panels([*rows, ranked("3", "dev")], Config())[1][1]
