"""Rankings as stages, and what reward models make of them, as a user runs it: the simulated human, a person
at the terminal, an AI (RLAIF); two aspects, a second round, held-out subjects."""
# ruff: noqa: F401, F811 (fixtures are imported, and then named as arguments)
import json
import re
import signal

import pytest
from pipeline import (
    AI,
    ASK,
    ASK_KNOBS,
    JOBS,
    JUDGE_KNOBS,
    PPO,
    RM,
    RM_KNOBS,
    ROUNDS,
    SMALL,
    SMOKE,
    THREE,
    ask_knobs,
    asked_demonstrations,
    assert_each_matters,
    begin,
    call,
    copy,
    done,
    few,
    flat,
    judge_knobs,
    learned,
    printed,
    refused,
    rm_knobs,
    rows_of,
    same,
    stopped,
    tiny,
    twenty,
    two_models,
    typed,
    weights,
    write_rows,
)

import data
import world.judge
from lab.measure import calibration_slope, differences, scores_of
from lab.rankings import once_each, say_whose_aspect, without_left_out
from lab.records import load_checkpoint, load_model, record_of
from lab.terminal import visible
from train_rm import USUAL
from world.labelers import RankingFile
from world.reward import score_texts
from world.tiny import PROMPTS

OF_RM = {"data/pretrain.txt", "data/sft.jsonl"}  # what every reward model learns from, too

# ------------------------------------------------------------------------------------------------
# Collections of rankings
# ------------------------------------------------------------------------------------------------


def test_rankings_are_readable_rows(tiny):
    for name in ("rankings", "rankings.ppo"):
        rows = rows_of(tiny / f"runs/tiny/{name}.jsonl")
        assert sum(row["split"] == "train" for row in rows) == 120
        assert {row["labeler"] for row in rows} == {"simulated"}
        for row in rows:
            K = len(row["responses"])
            assert sorted(i for tier in row["tiers"] for i in tier) == list(range(K)) and K <= 3


def test_held_out_questions_are_in_every_collection(tiny):
    rows = rows_of(tiny / "runs/tiny/rankings.jsonl")
    prompts = data.load_prompts(tiny / "runs/tiny/data")
    for split in ("dev", "test"):
        asked = [row["prompt"] for row in rows if row["split"] == split]
        assert asked == [p["prompt"] for p in prompts if p["split"] == split]


def test_a_collection_knows_what_it_was_made_from(tiny):
    run = tiny / "runs/tiny"
    for name, author in (("rankings", "sft"), ("rankings.ppo", "ppo")):
        record = record_of(run, name)
        assert record["parents"] == {f"{author}.pt": load_checkpoint(run / f"{author}.pt")["fingerprint"]}
        assert record["finished"] and record["stage"] == "preferences"
    both = {"rankings.jsonl", "rankings.pilot.jsonl"}
    assert load_checkpoint(run / "rm.pt")["parents"].keys() == OF_RM | {"rm_first.pt"} | both
    second = load_checkpoint(run / "rm.2.pt")["parents"].keys()
    usual = OF_RM | {"rm.pt", "rankings.ppo.jsonl"}
    assert second == usual | both, "it learns some of the old again"


def test_an_interrupted_collection_goes_on_and_ends_like_a_straight_one(copy, call, done, monkeypatch):
    """Ctrl-C after the first rankings: the same command asks about the rest, nothing twice."""
    run, line = copy / "runs/tiny", f"preferences.py {ASK} --questions 300"
    add = RankingFile.add

    def add_and_stop(self, *rest):
        add(self, *rest)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RankingFile, "add", add_and_stop)
        code, out = call(copy, f"{line} --name broken")
    assert code == 130 and "goes on" in out
    first = rows_of(run / "broken.jsonl")
    assert 0 < len(first) < 300 and not record_of(run, "broken")["finished"]
    out = done(copy, f"{line} --name broken")
    assert "is not complete: it goes on from there" in out
    rows = rows_of(run / "broken.jsonl")
    assert rows[: len(first)] == first and sum(row["split"] == "train" for row in rows) == 300
    done(copy, f"{line} --name straight")
    other = rows_of(run / "straight.jsonl")
    assert [row["responses"] for row in rows] == [row["responses"] for row in other]


def test_a_larger_collection_goes_on_with_a_finished_one(copy, done, refused):
    run, more = copy / "runs/tiny", f"{SMALL['rankings']} --questions 150"
    before, record = rows_of(run / "rankings.jsonl"), (run / "rankings.json").read_bytes()
    write_rows(run / "rankings.jsonl", [{**before[0], "tiers": [[9]]}, *before[1:]])
    assert "line 1: the row is damaged" in refused(copy, more)
    assert (run / "rankings.json").read_bytes() == record, "what is refused changes nothing"
    write_rows(run / "rankings.jsonl", before)
    done(copy, more)
    rows = rows_of(run / "rankings.jsonl")
    assert rows[: len(before)] == before and len(rows) == len(before) + 30
    message = refused(copy, f"train_ppo.py {PPO} --name late")
    assert "rm_first.pt was made from an earlier rankings.jsonl" in message


def test_variants_of_the_loss_share_a_collection(copy, learned):
    """Nothing is sampled and nobody is asked again."""
    run = copy / "runs/tiny"
    before = (run / "rankings.jsonl").stat().st_mtime_ns
    for flags in ("--loss regression", "--ties half", "--margin small --lr 0.001"):
        out = learned(copy, f"train_rm.py {RM} {flags} --name variant{len(flags)}")
        assert "questions" not in out and "answers:" not in out
    assert (run / "rankings.jsonl").stat().st_mtime_ns == before
    assert len(list(run.glob("variant*.pt"))) == 3 and not list(run.glob("variant*.json"))


def test_a_missing_collection_is_asked_for_first(few, learned):
    """By its own command: the human's by the usual name, another model's behind a dot."""
    run = few / "runs/tiny"
    out = learned(few, f"train_rm.py {RM} --start rm --rankings rankings.rs.2 --name rm.3")
    assert "rankings.rs.2.jsonl is not there yet; first:" in out and "--answers_of rs.2" in out
    assert record_of(run, "rankings.rs.2")["parents"].keys() == {"rs.2.pt"}
    assert load_checkpoint(run / "rm.3.pt")["parents"].keys() >= {"rm.pt", "rankings.rs.2.jsonl"}


def test_every_knob_of_a_collection_changes_its_rankings(ask_knobs):
    def digest(run, name, knob):
        rows = rows_of(run / f"{name}.jsonl")
        return str([(row["prompt"], row["responses"], row["tiers"]) for row in rows])

    assert_each_matters(ask_knobs, ASK_KNOBS, digest)


def test_a_collection_that_is_refused_leaves_no_trace_and_takes_nothing(copy, refused):
    """Neither the file of a new one nor an old one that it was to overwrite."""
    run, flags = copy / "runs/tiny", ("--answers_of ppo9", "--answers_of rm", "--labeler ai --judge ppo")
    for i, flag in enumerate(flags):
        refused(copy, f"preferences.py {ASK} {flag} --name new{i}")
        (run / f"old{i}.jsonl").write_text("{}\n")
        refused(copy, f"preferences.py {ASK} {flag} --name old{i} --overwrite")
        assert (run / f"old{i}.jsonl").read_text() == "{}\n"
    assert not list(run.glob("new*")) and not list(run.glob("old*.json"))


def test_an_answer_leaves_room_for_its_prompt(copy, refused):
    line = f"preferences.py {ASK} --name odd"
    assert "leaves no room for a prompt" in refused(copy, f"{line} --max_new_tokens 64")
    assert "a reward model gives scores" in refused(copy, f"{line} --answers_of rm --overwrite")


# ------------------------------------------------------------------------------------------------
# What a reward model learns
# ------------------------------------------------------------------------------------------------


def test_scores_are_log_odds_with_the_demonstrations_at_0(tiny):
    """Demonstrations of training prompts score 0 on average; Bradley-Terry's differences are left as they
    are."""
    run = tiny / "runs/tiny"
    enc = data.load_encoding(run / "tokenizer.json")
    model, _ = load_model(run / "rm.pt")
    learned = {row["prompt"] for name in USUAL["overall"][-1] for row in rows_of(run / f"{name}.jsonl")
               if row["split"] == "train" and data.has_pairs(row)}
    some = [row for row in asked_demonstrations(tiny) if row["prompt"] in learned]
    some = some[:: max(1, len(some) // 300)]
    scores = score_texts(model, enc, [d["prompt"] for d in some], [d["response"] for d in some])
    assert abs(sum(scores) / len(scores)) < 1e-3


def test_regression_learns_from_the_same_rankings(copy, done):
    run = copy / "runs/tiny"
    out = done(copy, f"train_rm.py {RM} --loss regression --epochs 4 --name numbers")
    assert "rank" in out and "correlation" in out and not same(run / "numbers.pt", run / "rm.pt")
    model, enc = load_model(run / "numbers.pt")[0], data.load_encoding(run / "tokenizer.json")
    dev = [row for name in USUAL["overall"][-1] for row in rows_of(run / f"{name}.jsonl")
           if row["split"] == "dev"]
    slope = calibration_slope(differences(dev, scores_of(model, enc, dev)))
    limits = model.score_gain.item() if hasattr(model, "score_gain") else None
    assert slope == pytest.approx(1, abs=0.02) or limits in (pytest.approx(0.05), 20), (
        "its differences were made log-odds, or as far as it goes")


@pytest.mark.parametrize("flags, parent", [
    ("", "pretrain"),
    ("--start sft", "sft"),
    ("--start rm --rankings rankings.ppo", "rm"),
])
def test_where_a_reward_model_starts(copy, learned, flags, parent):
    """With a learning rate of 0 the weights stay what they were: the pretrained model's, the SFT model's, an
    earlier reward model's."""
    out = learned(copy, f"train_rm.py {RM} {flags} --lr 0 --name still")
    assert f"runs/tiny/{parent}.pt" in flat(out).replace("\\", "/")
    now, then = weights(copy / "runs/tiny/still.pt"), weights(copy / f"runs/tiny/{parent}.pt")
    trained = [key for key in then if then[key].dim() > 0]
    assert trained and all((now[key] == then[key]).all() for key in trained)


def test_a_second_round_is_compared_with_the_first(tiny):
    """rm.2 learned on from rm, with rankings of PPO's answers; it keeps rm's knobs unless a flag says
    otherwise."""
    run = tiny / "runs/tiny"
    first, second = (load_checkpoint(run / f"{name}.pt")["knobs"] for name in ("rm", "rm.2"))
    assert second["rankings"] == ["rankings.ppo"] and second["damaged"] == 0.5
    changed = {key for key in first if first[key] != second[key]}
    assert changed == {"rankings", "start", "damaged"}
    said = flat(printed(tiny, "rm.2"))
    assert "earlier rounds' answers" in said and "scored by rm" in said


def test_a_reward_model_that_goes_on_keeps_the_knobs_it_had(copy, learned, refused):
    run = copy / "runs/tiny"
    learned(copy, f"train_rm.py {RM} --loss regression --leave_out cake --damaged 0.1 --name own")
    learned(copy, "train_rm.py --start own --rankings rankings.ppo --epochs 2 --name own.2")
    first, second = (load_checkpoint(run / f"{name}.pt")["knobs"] for name in ("own", "own.2"))
    for key in ("loss", "leave_out", "damaged", "batch_size", "eval_split"):
        assert first[key] == second[key], key
    assert second["epochs"] == 2
    line = "train_rm.py --start own --rankings rankings.ppo --margin large --name own.3"
    assert "--margin and --ties are about pairs" in refused(copy, line), "it would be regression"


def test_what_a_reward_model_learns_that_goes_on(copy, learned):
    """Its own rankings, with --replay 1 as many earlier ones, with --damaged 1 as many damaged
    demonstrations; one step a ranking here."""
    run = copy / "runs/tiny"
    steps = {}
    for replay, damaged in ((0, 0), (1, 0), (0, 1)):
        learned(copy, f"train_rm.py {RM} --batch_size 1 --start rm --rankings rankings.ppo --replay {replay} "
                   f"--damaged {damaged} --limit 40 --eval_every 9999 --name mix{replay}{damaged}")
        steps[replay, damaged] = load_checkpoint(run / f"mix{replay}{damaged}.pt")["step"]
    own = [row for row in rows_of(run / "rankings.ppo.jsonl") if row["split"] == "train"][:40]
    own = [row for row in own if data.has_pairs(row)]
    earlier = [row for name in USUAL["overall"][-1] for row in rows_of(run / f"{name}.jsonl")
               if row["split"] == "train" and data.has_pairs(row)]
    assert steps[0, 0] == len(own)
    assert steps[1, 0] == len(own) + min(len(own), len(earlier))
    assert len(own) < steps[0, 1] <= 2 * len(own)


def test_two_collections_are_learned_together_and_fewer_rankings_alone(copy, learned):
    """Mixing is naming two; --limit takes the first ones."""
    run = copy / "runs/tiny"
    usual = f"train_rm.py {RM} --batch_size 1 --damaged 0 --eval_every 9999"
    learned(copy, f"{usual} --rankings rankings rankings.ppo --name both")
    learned(copy, f"{usual} --limit 40 --name few")
    first, second = ([row for row in rows_of(run / f"{name}.jsonl") if row["split"] == "train"]
                     for name in ("rankings", "rankings.ppo"))
    both, few = (load_checkpoint(run / f"{name}.pt") for name in ("both", "few"))
    assert both["step"] == sum(map(data.has_pairs, once_each(first + second))), "the same ones count once"
    assert few["step"] == sum(map(data.has_pairs, first[:40]))
    assert both["parents"].keys() == OF_RM | {"pretrain.pt", "rankings.jsonl", "rankings.ppo.jsonl"}


def test_what_is_left_out_is_not_trained_on_and_measured_apart(copy, done, refused):
    out = flat(done(copy, f"train_rm.py {RM} --rankings rankings --leave_out cake,why --name ood"))
    found = load_checkpoint(copy / "runs/tiny/ood.pt")["state"]["results"]
    assert "subjects left out" in out and "topics left out" in out
    about = {name.strip(): r["rankings"] for name, r in found.items() if "left out" in name}
    held_out = [PROMPTS[row["prompt"]] for row in rows_of(copy / "runs/tiny/rankings.jsonl")
                if row["split"] == "dev" and data.has_pairs(row)]
    assert about["subjects left out"] == sum(p.subject == "cake" for p in held_out) > 0
    assert about["topics left out"] == sum(p.topic == "why" for p in held_out) > 0
    assert "pie" in refused(copy, f"train_rm.py {RM} --leave_out pie --name pie")


def test_only_the_held_out_rows_of_the_split_asked_for_are_left_out():
    rows = [{"prompt": prompt, "split": split} for prompt in ("What is a cake?", "What is a dog?")
            for split in ("train", "dev", "test")]
    cake, *_ = without_left_out(rows, ["cake"], "dev")
    assert cake == {"prompt": "What is a cake?", "split": "left_out"}
    assert without_left_out(rows, ["cake"], "dev")[1:] == rows[3:]


def test_who_learns_by_another_aspect_than_was_asked_for_is_told(capsys):
    rows = [{"aspect": "safety"}, {"aspect": "safety"}, {"aspect": "overall"}, {}]
    say_whose_aspect(rows, "overall")
    assert "2 of 4 rankings were ranked by another aspect (safety)" in capsys.readouterr().out
    say_whose_aspect(rows[2:], "overall")
    assert not capsys.readouterr().out


def test_models_and_collections_are_told_apart_before_they_are_made(tmp_path, refused):
    assert "rm: that is a model" in refused(tmp_path, "train_rm.py --config smoke --rankings rm --name x")
    for name in ("rankings", "rankings_ai.rs.1"):
        line = f"preferences.py --config smoke --answers_of {name} --name x"
        assert f"{name}: that is a collection" in refused(tmp_path, line)


def test_two_reward_models_and_llama2s_combination(two_models):
    """Helpfulness is asked of answers to safe prompts, safety of answers to unsafe ones; the safety model
    learns from both collections, PPO from both models."""
    run = two_models / "runs/tiny"
    prompts = {row["prompt"]: row for row in rows_of(run / "data/prompts.jsonl")}
    for line, (code, out) in json.loads((two_models / "results.json").read_text()).items():
        assert code == 0, f"{line}: {code} {out[-1000:]}"
        if line.startswith("train_rm.py"):
            told = "counts as unsafe below a probability of 0.15" in flat(out)
            assert told == ("--aspect safety" in line)
    for aspect in ("helpful", "safety"):
        rows = rows_of(run / f"rankings_{aspect}.jsonl")
        assert {row["aspect"] for row in rows} == {aspect}
        assert {prompts[row["prompt"]]["unsafe"] for row in rows} == {aspect == "safety"}
    parents = load_checkpoint(run / "rm_safety.pt")["parents"]
    assert parents.keys() == OF_RM | {"pretrain.pt", "rankings_safety.jsonl", "rankings_helpful.jsonl"}
    usual = {"pretrain.pt", "sft.pt", "data/prompts.jsonl"}
    for reward, models in (("llama2", {"rm_helpful.pt", "rm_safety.pt"}), ("safety", {"rm_safety.pt"})):
        assert load_checkpoint(run / f"with_{reward}.pt")["parents"].keys() == models | usual
    assert same(run / "with_safety.pt", run / "with_rm_safety.pt")
    assert not same(run / "with_safety.pt", run / "with_llama2.pt")


def test_the_microscope_scores_the_tokens_that_were_sampled(two_models, done):
    """What Llama 2's rule takes is the score of one of the two models."""
    out = flat(done(two_models, "lab.explain runs/tiny/with_llama2.pt --prompt Hello --batch_size 4"))
    found = re.search(r"rm_helpful (\S+), rm_safety (\S+), of which Llama 2's rule takes (\S+);", out)
    assert found and found[3] in found.groups()[:2], out


def test_two_reward_models_are_refreshed_apart(two_models):
    """In rejection sampling, each with rankings of its own kind of the newest answers."""
    run = two_models / "runs/tiny"
    assert load_checkpoint(run / "two.2.pt")["parents"].keys() == {
        "data/prompts.jsonl", "sft.pt", "two.1.pt", "rm_helpful.two.1.pt", "rm_safety.two.1.pt"}
    for aspect in ("helpful", "safety"):
        assert load_checkpoint(run / f"rm_{aspect}.two.1.pt")["knobs"]["aspect"] == aspect
        assert {row["aspect"] for row in rows_of(run / f"rankings_{aspect}.two.1.jsonl")} == {aspect}


@pytest.mark.parametrize("flags, words", [
    ("--name rm_safety --overwrite", "another reward model"),
    ("--start rm --rankings rankings.ppo --aspect safety --name two", "asked for overall, not safety"),
    ("--start nothing --name two", "no nothing"),
    ("--start rm --name two", "name new rankings with --rankings"),
    ("--start rankings --rankings rankings.ppo --name two", "that is a collection"),
    ("--rankings rankings.ppo", "--name"),
    ("--rankings rankings sft --name two", "--rankings sft: that is a model"),
    ("--loss regression --ties half --name two", "--loss bradley_terry"),
])
def test_flags_that_a_reward_model_refuses(copy, refused, flags, words):
    before = (copy / "runs/tiny/rm.pt").read_bytes()
    assert words in refused(copy, f"train_rm.py {RM} {flags}")
    assert (copy / "runs/tiny/rm.pt").read_bytes() == before and not (copy / "runs/tiny/two.pt").exists()


def test_every_knob_of_the_reward_model_changes_what_is_learned(rm_knobs):
    def digest(run, name, knob):
        return load_checkpoint(run / f"{name}.pt")["fingerprint"]

    assert_each_matters(rm_knobs, RM_KNOBS, digest)


# ------------------------------------------------------------------------------------------------
# A person at the terminal
# ------------------------------------------------------------------------------------------------


def test_a_person_ranks_in_place_of_the_simulated_human(few, call, done, monkeypatch):
    """What is typed is kept; the same command goes on where it stopped; a reward model learns from that
    alone, or beside the simulated rankings."""
    run = few / "runs/tiny"
    line = "preferences.py --labeler human --questions 4 --answers_per_prompt 3 --held_out_rankings 1"
    line += " --max_new_tokens 12"
    typed(monkeypatch)
    code, out = call(few, line)
    assert "nothing is ranked yet" in code
    typed(monkeypatch, *["3>2>1", "2>1"] * 2, "q")  # what does not fit the number of answers is asked again
    out = flat(done(few, line))
    rows = [row for row in rows_of(run / "rankings_human.jsonl") if row["labeler"] == "human"]
    assert {row["split"] for row in rows} == {"train"} and len(rows) >= 2
    assert f"You have answered {len(rows)} of 4 questions; the same command asks the rest" in out
    assert "You agree with the gold score" in out or "No pair that both you" in out
    typed(monkeypatch, *["3>2>1", "2>1"] * 8)
    assert "answered 4 of 4 questions; a larger --questions asks more" in flat(done(few, line))
    assert "is finished" in done(few, line)
    typed(monkeypatch, *["3>2>1", "2>1"] * 8)
    done(few, f"{line.replace('--questions 4', '--questions 5')}")
    again = [row for row in rows_of(run / "rankings_human.jsonl") if row["labeler"] == "human"]
    assert len(again) == 5 and [row["tiers"] for row in again[: len(rows)]] == [row["tiers"] for row in rows]
    usual = f"train_rm.py {RM} --batch_size 1 --damaged 0 --eval_every 9999"
    done(few, f"{usual} --rankings rankings_human --name mine")
    assert load_checkpoint(run / "mine.pt")["step"] == sum(map(data.has_pairs, again)), "on these alone"
    done(few, f"{usual} --rankings rankings rankings_human --name both")
    assert load_checkpoint(run / "both.pt")["step"] > 20, "beside the simulated rankings"


def test_rejection_sampling_does_not_rank_in_a_persons_place(few, done, refused, monkeypatch):
    typed(monkeypatch, *["3>2>1", "2>1"] * 8)
    done(few, "preferences.py --labeler human --questions 4 --answers_per_prompt 3 --max_new_tokens 12 "
               "--held_out_rankings 1")
    done(few, f"train_rm.py {RM} --rankings rankings_human --name own")
    message = refused(few, f"rejection_sampling.py --rounds 2 {ROUNDS} --reward own --name yours")
    assert "has learned from your labels" in message and "--refresh_reward_model false" in message


def test_two_checkpoints_are_judged_blind(copy, done, monkeypatch):
    """The better answer, of whichever model and in whichever place, is chosen by its gold score: the win rate
    is that of the gold score."""
    from lab import talk

    questions, asked = talk.pairs, []

    def watched(*rest):
        found = questions(*rest)
        asked.extend(found[0])
        return found

    def best(prompt=""):
        question = asked.pop(0)
        gold = [gold_score(question["prompt"], text) for text in question["responses"]]
        return "=" if gold[0] == gold[1] else str(1 + gold.index(max(gold)))

    def gold_score(prompt, text):  # the true one gives all answers of such models the same
        return len(text)

    monkeypatch.setattr(talk, "pairs", watched)
    monkeypatch.setattr(talk, "gold_score", gold_score)
    monkeypatch.setattr("builtins.input", best)
    line = "model.py runs/tiny/pretrain.pt --against runs/tiny/sft.pt --questions 30 --max_new_tokens 12"
    out = flat(done(copy, line))
    rate = re.search(r"You prefer sft to pretrain in ([\d.]+) of 30 comparisons", out)
    assert rate and f"prefers sft to pretrain in {rate[1]} of them" in out and "1.00 of" in out
    assert rate[0] in flat(done(copy, line)), "nobody is asked twice"


# ------------------------------------------------------------------------------------------------
# RLAIF
# ------------------------------------------------------------------------------------------------

def test_an_ai_labels_in_the_humans_place(few, done):
    """Soft labels of pairs by the AI alone for the training; held-out questions are the simulated human's;
    its policy is rlaif.pt."""
    run = few / "runs/tiny"
    out = flat(done(few, f"preferences.py {SMOKE} --labeler ai --questions 20"))
    assert "pairs labelled by the AI" in out and "the same position won in both orders" in out
    assert "The AI agrees with the gold score" in out or "No pair that both the AI" in out
    rows = rows_of(run / "rankings_ai.jsonl")
    by_ai = [row for row in rows if row["labeler"] == "ai"]
    assert len(by_ai) == 20 and {row["split"] for row in by_ai} == {"train"}
    assert {row["labeler"] for row in rows if row["split"] != "train"} == {"simulated"}
    labels = [p for row in by_ai for _, _, p in row["pairs"]]
    assert len(labels) > 30 and any(0.01 < p < 0.99 for p in labels), "soft"
    assert all(len(row["notes"]) == len(row["responses"]) for row in by_ai)
    assert record_of(run, "rankings_ai")["parents"].keys() == {"sft.pt", "judge.pt"}

    out = flat(done(few, f"train_ppo.py {SMOKE} --reward rm_ai"))
    assert "rm_ai.pt is not there yet; first:" in out, "what train_ppo.py --reward rm_ai trains first"
    assert load_checkpoint(run / "rlaif.pt")["parents"].keys() == {
        "pretrain.pt", "sft.pt", "rm_ai.pt", "data/prompts.jsonl"}
    assert load_checkpoint(run / "rm_ai.pt")["parents"].keys() == OF_RM | {
        "rm_ai_first.pt", "rankings_ai.jsonl", "rankings_ai.pilot_ai.jsonl"}
    assert load_checkpoint(run / "pilot_ai.pt")["parents"].keys() >= {"rm_ai_first.pt"}
    rows = rows_of(run / "rankings_ai.pilot_ai.jsonl")
    assert {row["labeler"] for row in rows if row["split"] == "train"} == {"ai"}


def test_every_knob_of_the_judge_changes_the_labels(judge_knobs):
    def digest(run, name, knob):
        by_ai = [row for row in rows_of(run / f"{name}.jsonl") if row["labeler"] == "ai"]
        assert all(("notes" in row) == ("thought" not in knob) for row in by_ai), "notes are kept"
        return str([(row["prompt"], row["pairs"]) for row in by_ai])

    assert_each_matters(judge_knobs, JUDGE_KNOBS, digest)


def test_what_a_judge_is_told(few, done, refused):
    (few / "brief.txt").write_text("Please be short.\n")
    done(few, f"preferences.py {AI} --preamble brief.txt --name brief")
    (few / "brief.txt").write_text("Please be practical.\n")
    message = refused(few, f"preferences.py {AI} --preamble brief.txt --name brief")
    assert "made with other knobs (preamble" in message, "what counts is the text of the file"
    (few / "long.txt").write_text("Please be short. " * 50)
    assert "shorten the preamble" in refused(few, f"preferences.py {AI} --preamble long.txt --name v99")
    assert "expected none, base" in refused(few, f"preferences.py {AI} --preamble lost.txt --name v99")
    assert "about an AI judge" in refused(few, f"preferences.py {ASK} --judge other --name v99")
    assert "with --labeler ai" in refused(few, f"preferences.py {ASK} --both_orders false --name v99")
    assert "has not learned from reviews" in refused(few, f"preferences.py {AI} --judge sft --name v99")
    assert not (few / "runs/tiny/v99.jsonl").exists()


def test_an_ai_rates_without_a_reward_model(few, done, learned, refused, monkeypatch):
    """Direct RLAIF: what PPO gets is the judge's rating of each text, whitened; the judge stays as it was."""
    told, rate, run = {}, world.judge.AI.rate, few / "runs/tiny"

    def remember(self, prompts, responses, aspect="overall"):
        ratings = rate(self, prompts, responses, aspect)
        told.update(zip(zip(prompts, responses, strict=True), ratings, strict=True))
        return ratings

    monkeypatch.setattr(world.judge.AI, "rate", remember)
    out = done(few, f"train_ppo.py {THREE} --eval_answers 1 --reward ai")
    checkpoint = load_checkpoint(run / "direct.pt")
    assert re.search(r"The AI judge rated \d+ different answers", out)
    assert checkpoint["parents"].keys() == {"pretrain.pt", "sft.pt", "judge.pt", "data/prompts.jsonl"}
    assert all(-1 <= r <= 1 for r in told.values())
    mean, std = checkpoint["state"]["sft_scale"]
    found = re.search(r"score ([+-][\d.]+) SD, KL [-\d.]+ nats: (.*?) -> (.*?)\n  score", out, re.S)
    score, prompt, text = float(found[1]), flat(found[2]), flat(found[3])
    said = {(p, flat(visible(t))): r for (p, t), r in told.items()}
    assert (said[prompt, text] - mean) / std == pytest.approx(score, abs=0.006)
    assert not same(run / "direct.pt", run / "ppo.pt")
    (few / "brief.txt").write_text("Please be short.\n")
    other = f"train_ppo.py {THREE} --eval_answers 1 --reward ai --preamble brief.txt --name other_taste"
    learned(few, other)
    assert not same(run / "direct.pt", run / "other_taste.pt")
    (few / "brief.txt").write_text("Please be practical.\n")
    assert "made with other knobs (preamble" in refused(few, other), "what counts is the text of the file"
    everything = ",".join(sorted({p.subject for p in PROMPTS.values()}))
    message = refused(few, f"train_ppo.py {THREE} --name none --leave_out {everything}")
    assert "nothing to train on" in message or "no training prompt" in message


def test_direct_rlaif_that_was_interrupted_ends_like_a_straight_one(few, stopped, learned):
    line, run = f"train_ppo.py {THREE} --eval_answers 1 --reward ai", few / "runs/tiny"
    stopped(few, f"{line} --name broken", rows=2)
    assert load_checkpoint(run / "broken.pt")["step"] == 2
    learned(few, f"{line} --name broken")
    learned(few, f"{line} --name straight")
    assert same(run / "broken.pt", run / "straight.pt")


def test_a_server_rates_without_a_reward_model(few, done, server):
    def rates(sent):
        top = {str(1 + len(sent["prompt"]) % 9): -0.1}
        return {"choices": [{"text": "1", "logprobs": {"top_logprobs": [top]}}]}

    server.script = [(200, rates, {})]
    judge = f"--reward ai --judge_url {server.url} --judge_model m"
    out = done(few, f"train_ppo.py {PPO} {judge} --eval_answers 1 --name served")
    assert re.search(r"The AI judge rated \d+ different answers", out)
    calls = rows_of(few / "runs/tiny/judge_calls.jsonl")
    assert 0 < len(calls) == len(server.seen), "every answer is rated once"
