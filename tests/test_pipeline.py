"""Every script as a user runs it, in the tiny world: commands in an empty folder, a very small model, a few
steps.

Collections of rankings and RLAIF: test_rankings.py. A user's own data: test_own_data.py.
"""
# ruff: noqa: F401, F811 (fixtures are imported, and then named as arguments)
import json
import re
import shutil

import pytest
from conftest import ROOT
from pipeline import (
    COLLECTIONS,
    JOBS,
    MODELS,
    PPO,
    PPO_KNOBS,
    PRETRAIN,
    RM,
    ROUNDS,
    RS_KNOBS,
    SFT,
    SMALL,
    SMOKE,
    THREE,
    assert_each_matters,
    begin,
    call,
    command,
    copy,
    done,
    few,
    flat,
    interrupt,
    learned,
    ppo_knobs,
    printed,
    refused,
    rows_of,
    rs_knobs,
    same,
    start,
    stopped,
    tiny,
    twenty,
    weights,
    write_rows,
)

import data
import lab.explain
import lab.report
import train_ppo
import world.reward
from lab.cli import OLD_FLAGS
from lab.commands import recipe_of
from lab.records import fingerprint, fingerprint_of, load_checkpoint, load_model

# ------------------------------------------------------------------------------------------------
# Stage by stage
# ------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_every_stages_files(tiny):
    run = tiny / "runs/tiny"
    for stage in SMALL:
        endings = ("json", "jsonl", "samples.txt")
        if stage in MODELS:
            endings = ("pt", "jsonl", "png", "samples.txt")
            assert (run / f"{stage}.png").read_bytes().startswith(b"\x89PNG")
            assert load_checkpoint(run / f"{stage}.pt")["finished"]
        for ending in endings:
            assert (run / f"{stage}.{ending}").stat().st_size > 0, f"{stage}.{ending}"
            assert f"{stage}.{ending}" in printed(tiny, stage), "it is said where the files lie"
    files = {"pretrain.txt", "pretrain.held_out.txt", "sft.jsonl", "prompts.jsonl", "reviews.jsonl"}
    assert {p.name for p in (run / "data").iterdir()} == files
    assert (run / "tokenizer.json").exists() and not list(run.rglob("*.tmp"))


def test_metrics_have_the_same_keys_in_every_row(tiny):
    for stage in MODELS:
        rows = rows_of(tiny / f"runs/tiny/{stage}.jsonl")
        assert [r["step"] for r in rows] == list(range(len(rows)))
        assert len(rows) == load_checkpoint(tiny / f"runs/tiny/{stage}.pt")["step"]
        assert all(list(r) == list(rows[0]) for r in rows)
    assert len(rows_of(tiny / "runs/tiny/ppo.jsonl")) == 3


def test_every_stage_has_a_progress_bar_with_time_left(tiny):
    for stage in SMALL:
        assert re.search(r"\d+/\d+ \[\d+:\d+<", printed(tiny, stage)), stage


def test_every_table_is_in_a_file_too(tiny):
    """What a stage prints at its end is in NAME.samples.txt, to be read again."""
    for stage in SMALL:
        samples = (tiny / f"runs/tiny/{stage}.samples.txt").read_text(encoding="utf-8")
        first = samples.splitlines()[0]
        assert len(samples) > 100 and first in printed(tiny, stage), stage


def test_ppo_ends_with_a_table_that_has_its_control(tiny):
    out = printed(tiny)
    for words in ("pretrained", "SFT", "PPO", "gold score, points", "KL to SFT", "distinct answers",
                  "loss on text", "python model.py runs"):
        assert words in out
    assert out.index("test prompts  ") < out.index("Talk to it")
    assert "iteration 1 of 3" in out and "iteration 3 of 3" in out, "three answers, and when that was"


def test_kl_is_zero_before_the_first_update_and_not_after(tiny):
    rows = rows_of(tiny / "runs/tiny/ppo.jsonl")
    assert abs(rows[0]["kl_full"]) < 1e-5 and abs(rows[0]["kl"]) < 1e-3 and abs(rows[0]["kl_k3"]) < 1e-5
    assert rows[-1]["kl_full"] > 1e-5


def test_ppo_changes_the_policy_and_leaves_its_parents_alone(tiny):
    run = tiny / "runs/tiny"
    now = {f"{s}.pt": fingerprint(load_model(run / f"{s}.pt")[0]) for s in ("sft", "rm", "pretrain")}
    now["data/prompts.jsonl"] = fingerprint_of(run / "data/prompts.jsonl")
    assert load_checkpoint(run / "ppo.pt")["parents"] == now, "fingerprints are those of before the training"
    policy, sft = weights(run / "ppo.pt"), weights(run / "sft.pt")
    assert policy.keys() == sft.keys() and not same(run / "ppo.pt", run / "sft.pt")


def test_distinct_answers_are_counted_one_a_prompt(tiny):
    """With several answers a prompt the share would fall by itself: what is printed is a whole number of
    prompts in every column."""
    found = load_checkpoint(tiny / "runs/tiny/ppo.pt")["state"]["results"]["distinct answers"]
    n = sum(row["split"] == "test" for row in data.load_prompts(tiny / "runs/tiny/data"))
    for name, share in found.items():
        assert share <= 1 and share * n == pytest.approx(round(share * n), abs=1e-6), name


def test_the_final_table_keeps_each_answer_with_its_prompt(few, done, monkeypatch):
    """Several answers a prompt: those that the annotator ranks, to test the reward model with, are all to the
    same prompt."""
    sample, label, seen = lab.report.answer, lab.report.SimulatedHuman.label, []

    def tagged(policy, enc, prompts, *rest, **more):
        answers = sample(policy, enc, prompts, *rest, **more)
        return [a._replace(text=f"{i} {p}") for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]

    def watched(self, prompts, responses, *rest):
        seen.extend(zip(prompts, responses, strict=True))
        return label(self, prompts, responses, *rest)

    monkeypatch.setattr(lab.report, "answer", tagged)
    monkeypatch.setattr(lab.report.SimulatedHuman, "label", watched)
    done(few, f"train_ppo.py {THREE} --name watched")
    assert seen
    for prompt, responses in seen:
        assert len(responses) == 4 and {r.split(" ", 1)[1] for r in responses} == {prompt}


# ------------------------------------------------------------------------------------------------
# The same command again, other knobs, parents
# ------------------------------------------------------------------------------------------------


def files_of(folder):
    """{path: (when it was written, content)} of all files below a folder."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stage", SMALL)
def test_the_same_command_again_does_nothing(tiny, done, stage):
    before = files_of(tiny / "runs/tiny")
    out = done(tiny, SMALL[stage])
    assert "finished" in out and files_of(tiny / "runs/tiny") == before
    if stage != "rs.2":
        assert f"{stage}.samples.txt" in out, "it says where the tables are"


@pytest.mark.parametrize("stage", SMALL)
def test_other_knobs_ask_for_a_name(tiny, refused, stage):
    before = files_of(tiny / "runs/tiny")
    knob = "--noise 0.123" if stage in COLLECTIONS else "--lr 0.123"
    message = refused(tiny, f"{SMALL[stage]} {knob}")
    assert "--name" in message and "0.123" in message
    assert files_of(tiny / "runs/tiny") == before


def test_a_variant_is_written_beside(few, done):
    run = few / "runs/tiny"
    before = (run / "ppo.pt").read_bytes()
    done(few, f"train_ppo.py {THREE} --kl_coef 0 --name no_kl")
    files = {f"no_kl.{ending}" for ending in ("pt", "jsonl", "png", "samples.txt")}
    assert files <= {p.name for p in run.iterdir()}
    assert (run / "ppo.pt").read_bytes() == before and not same(run / "no_kl.pt", run / "ppo.pt")


def test_a_parent_that_was_trained_again_makes_its_children_stale(few, learned, refused):
    """The collection first, for its answers are of another model now; then what has learned from it."""
    learned(few, f"train_sft.py {SFT} --lr 0.01 --overwrite")
    for line in (f"train_ppo.py {PPO} --name late", f"train_rm.py {RM} --name late"):
        message = refused(few, line)
        assert "rankings.jsonl was made from an earlier sft.pt" in message
        assert "preferences.py" in message and "--overwrite" in message
    assert not (few / "runs/tiny/late.pt").exists()
    learned(few, f"{SMALL['rankings']} --overwrite")
    message = refused(few, f"train_ppo.py {PPO} --name late")
    assert "rm_first.pt was made from an earlier rankings.jsonl" in message and "train_rm.py" in message
    for name in ("rm_first", "pilot", "rankings.pilot", "rm"):
        script, _, flags = recipe_of(name).partition(" ")
        learned(few, f"{script} {SMOKE} {flags} --overwrite")
    learned(few, f"train_ppo.py {PPO} --name late --eval_answers 1")


def test_a_stale_variant_names_its_own_command(few, learned, refused):
    """The one that it was made with, to be typed again as it stands."""
    again = f"train_rm.py {RM} --start rm --rankings rankings.ppo --name again"
    learned(few, again)
    learned(few, f"train_rm.py {RM} --lr 0.004 --overwrite")
    message = refused(few, f"train_ppo.py {THREE} --reward again --name late")
    assert "again.pt was made from an earlier rm.pt" in message and f"python {again} --overwrite" in message


def test_one_seed_one_run(tiny, done, tmp_path):
    """The same seed elsewhere writes the same world, tokenizer and weights. (That another seed has another
    world: test_world.py.)"""
    done(tmp_path, SMALL["pretrain"])
    first, there = tmp_path / "runs/tiny", tiny / "runs/tiny"
    for path in (tiny / "whole").iterdir():
        assert (first / "data" / path.name).read_bytes() == path.read_bytes()
    for name in ("tokenizer.json", "pretrain.jsonl"):
        assert (first / name).read_bytes() == (there / name).read_bytes()
    assert same(first / "pretrain.pt", there / "pretrain.pt")


def test_a_run_has_one_tokenizer(tiny, copy, done, refused):
    """A variant of the pretraining with another vocabulary would break every other stage of the run."""
    shutil.copy(tiny / "whole/pretrain.txt", copy / "runs/tiny/data/pretrain.txt")
    path = copy / "runs/tiny/tokenizer.json"
    before = path.read_text()
    message = refused(copy, f"train_pretrain.py {PRETRAIN} --vocab_size 400 --name small_words")
    assert "one tokenizer" in message and "--run NAME" in message and path.read_text() == before
    done(copy, f"train_pretrain.py {PRETRAIN} --steps 1 --name short")
    path.write_text(json.dumps({"tokens": json.loads(before)["tokens"][:300]}))
    assert "not the one that the stage pretrain was trained with" in refused(copy, "data.py --config tiny")


# ------------------------------------------------------------------------------------------------
# Ctrl-C, and the same command again
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [
    f"train_sft.py {SFT} --batch_size 2 --epochs 1 --dropout 0.2 --eval_every 3",
    f"train_rm.py {RM} --batch_size 8 --dropout 0.2 --eval_every 9",
    f"train_ppo.py {PPO} --steps 7 --kl_target 0.1 --eval_answers 1 --eval_split dev",
], ids=["sft", "rm", "ppo"])
def test_the_same_command_goes_on_after_ctrl_c_to_the_same_end(few, stopped, learned, refused, line):
    """With its own knobs only, and to the same weights, bit for bit."""
    run = few / "runs/tiny"
    out = stopped(few, f"{line} --name broken")
    assert f"python {line} --name broken" in out and "Stopped after step 3 of" in out
    there = load_checkpoint(run / "broken.pt")
    assert not there["finished"] and there["step"] == 3
    message = refused(few, f"{line} --lr 0.5 --name broken")
    assert "-> 0.5" in message and "not finished" in message and "--overwrite" in message
    out = learned(few, f"{line} --name broken")
    assert f"stopped at step 3 of {there['steps']}: it goes on from there" in out
    learned(few, f"{line} --name straight")
    assert same(run / "broken.pt", run / "straight.pt")
    assert (run / "broken.jsonl").read_text() == (run / "straight.jsonl").read_text()


def test_ctrl_c_on_a_real_command_line(few):
    """A process that gets the signal: the step under way is saved, the way to go on is told, it ends with
    130."""
    line, run = f"train_sft.py {SFT} --batch_size 2 --epochs 9 --name broken", few / "runs/tiny"
    out = interrupt(start(few, line), run / "broken.jsonl", rows=3)
    assert f"python {ROOT / line}" in out and "nothing is lost" in out
    there = load_checkpoint(run / "broken.pt")
    assert not there["finished"] and there["step"] >= 3
    assert len(rows_of(run / "broken.jsonl")) == there["step"]


def test_ctrl_c_in_a_missing_parent_names_the_command_that_was_typed(copy, stopped):
    run = copy / "runs/tiny"
    for name in ("pretrain.pt", "sft.pt", "tokenizer.json"):
        (run / name).unlink()
    out = stopped(copy, "train_sft.py --config tiny", rows=2)
    assert "pretrain.pt is not there yet; first:\npython train_pretrain.py --config tiny" in out
    assert out.rstrip().split("goes on:\n")[1].startswith("python train_sft.py --config tiny")
    assert load_checkpoint(run / "pretrain.pt")["step"] == 2 and not (run / "sft.pt").exists()


# ------------------------------------------------------------------------------------------------
# Rejection sampling
# ------------------------------------------------------------------------------------------------


def test_a_round_is_trained_after_the_round_before(tiny):
    """The second round sampled from the first one's model, with the reward model that had learned from
    rankings of its answers; it learned from the winners of both rounds, and its weights are the SFT model's,
    trained on."""
    run = tiny / "runs/tiny"
    first, second = (load_checkpoint(run / f"rs.{n}.pt") for n in (1, 2))
    assert first["parents"].keys() == {"sft.pt", "rm.pt", "data/prompts.jsonl"}
    assert second["parents"].keys() == {"sft.pt", "rs.1.pt", "rm.rs.1.pt", "data/prompts.jsonl"}
    refreshed = load_checkpoint(run / "rm.rs.1.pt")["parents"].keys()
    assert refreshed == {"rm.pt", "rankings.rs.1.jsonl", "rankings.jsonl", "rankings.pilot.jsonl",
                         "data/pretrain.txt", "data/sft.jsonl"}, "it learns some of the old again"
    prompts = [p["prompt"] for p in data.load_prompts(run / "data") if p["split"] == "train"]
    winners = second["state"]["winners"]
    assert [[w["prompt"] for w in of_round] for of_round in winners] == [prompts, prompts]
    assert winners[0] == first["state"]["winners"][0]
    steps = [data.steps_per_epoch(n * len(prompts), 50) for n in (1, 2)]
    assert [first["step"], second["step"]] == steps, "all winners so far, about 50 in a step"
    assert [row["model"] for row in second["state"]["left"]] == ["SFT", "rs.1"]
    curve = second["state"]["curve"]
    assert [c["n"] for c in curve] == [1, 2, 3] and curve[0]["score"] < curve[1]["score"]
    assert curve[0]["kl"] == curve[0]["kl_bound"] == 0 < curve[1]["kl"]
    for words in ("rs.1", "rs.2", "gold win rate", "n = 2", "beats a random one", "best of 3 - mean"):
        assert words in flat(printed(tiny, "rs.2")), words


def test_fresh_rankings_are_a_collection_like_the_first_one(tiny):
    """Asked about in the same way, of the newest model's answers, training prompts once each."""
    run = tiny / "runs/tiny"
    rows, prompts = rows_of(run / "rankings.rs.1.jsonl"), data.load_prompts(run / "data")
    asked = [row["prompt"] for row in rows if row["split"] == "train"]
    assert len(set(asked)) == len(asked) == 120, "as many as --config smoke asks for"
    assert set(asked) < {p["prompt"] for p in prompts if p["split"] == "train"}
    assert {row["labeler"] for row in rows} == {"simulated"}
    assert max(len(row["responses"]) for row in rows) == 3


def test_winners_are_the_best_of_their_own_prompt(few, done, monkeypatch):
    """With a "score" that counts what was sampled: the last answer to each prompt is the best one, whatever
    the others got."""
    asked = []

    def counted(self, enc, prompts, texts):
        asked.append((prompts, texts))
        return [float(i) for i in range(len(texts))]

    monkeypatch.setattr(world.reward.Scorer, "of_texts", counted)
    done(few, f"rejection_sampling.py {ROUNDS} --rounds 1 --name counted")
    (prompts, texts), = (x for x in asked[:1])
    winners = load_checkpoint(few / "runs/tiny/counted.1.pt")["state"]["winners"][0]
    assert prompts[::3] == prompts[1::3] == prompts[2::3] == [w["prompt"] for w in winners]
    assert texts[2::3] == [w["response"] for w in winners]


def test_an_interrupted_pipeline_goes_on_where_it_stopped(few, stopped, learned):
    """The first round is there, half of the second one too: the same command ends both like a straight run,
    nothing is sampled again."""
    line = f"rejection_sampling.py {ROUNDS} --batch_size 8 --epochs 2 --eval_answers 1"
    run = few / "runs/tiny"
    learned(few, f"{line} --rounds 1 --name broken")
    first = (run / "broken.1.pt").stat().st_mtime_ns
    learned(few, f"{SMALL['rm']} --start rm --rankings rankings.ppo --name rm.broken.1")
    stopped(few, f"{line} --rounds 2 --name broken")
    there = load_checkpoint(run / "broken.2.pt")
    assert not there["finished"] and len(there["state"]["winners"]) == 2
    learned(few, f"{line} --rounds 2 --name broken")
    assert (run / "broken.1.pt").stat().st_mtime_ns == first
    assert load_checkpoint(run / "broken.2.pt")["state"]["winners"] == there["state"]["winners"]
    learned(few, f"{line} --rounds 1 --name straight")
    assert same(run / "broken.1.pt", run / "straight.1.pt")


def test_more_rounds_go_on_and_other_knobs_are_another_pipeline(few, done, refused):
    out = done(few, f"{SMALL['rs.2']} --rounds 3")
    assert "rs.1 is finished" in out and "rs.2 is finished" in out
    second, third = (load_checkpoint(few / f"runs/tiny/rs.{n}.pt") for n in (2, 3))
    assert third["parents"].keys() >= {"rs.1.pt", "rs.2.pt"}
    assert third["state"]["winners"][:-1] == second["state"]["winners"], "those of all rounds"
    message = refused(few, f"{SMALL['rs.2']} --rounds 3 --answers_per_prompt 4")
    assert "rs.1 was trained with other knobs (answers_per_prompt 3 -> 4)" in message
    done(few, f"{SMALL['rs.2']} --rounds 1 --lr 0.01 --overwrite")
    message = refused(few, f"{SMALL['rs.2']} --rounds 3 --lr 0.01")
    assert "rs.2.pt was made from an earlier rs.1.pt" in message, message
    assert "--lr 0.01 --rounds 2 --then_ppo false --overwrite" in message, "with the knobs of now"


def test_every_knob_of_rejection_sampling_changes_what_is_learned(rs_knobs):
    def digest(run, name, knob):
        last = f"{name}.2" if "rounds" in knob else f"{name}.1"
        return load_checkpoint(run / f"{last}.pt")["fingerprint"]

    assert_each_matters(rs_knobs, RS_KNOBS, digest)


def test_ppo_goes_on_from_rejection_sampling(few, done, refused, monkeypatch):
    """--then_ppo: policy and reference are the last round's model, the reward model has learned from its
    answers; SFT stays the yardstick."""
    small = {"steps": 2, "batch_size": 8, "minibatch_size": 8, "micro_batch_size": 8, "eval_answers": 1}
    monkeypatch.setattr(train_ppo, "PRESETS", {"tiny": small})
    line = f"rejection_sampling.py --rounds 2 {ROUNDS} --temperature 0.9 --name warm --then_ppo"
    out = done(few, line)
    assert re.search(r"dev prompts +pretrained +SFT +warm\.2 +PPO", out), out
    checkpoint = load_checkpoint(few / "runs/tiny/warm.ppo.pt")
    assert checkpoint["parents"].keys() == {
        "pretrain.pt", "sft.pt", "warm.2.pt", "rm.warm.2.pt", "data/prompts.jsonl"}
    knobs = checkpoint["knobs"]
    assert (knobs["temperature"], knobs["max_new_tokens"]) == (0.9, 12), "the same answers as in the rounds"
    rows = rows_of(few / "runs/tiny/warm.ppo.jsonl")
    assert abs(rows[0]["kl_full"]) < 1e-5, "the reference is the model that it starts from"
    before = files_of(few / "runs")
    again = done(few, line)
    assert "warm.2 is finished" in again and "warm.ppo is finished" in again
    assert files_of(few / "runs") == before
    assert "leave --overwrite out" in refused(few, f"{line} --overwrite")
    of_another = refused(few, line.replace("--rounds 2", "--rounds 1"))
    assert "warm.ppo is there already, with other knobs (start warm.2 -> warm.1, reward" in of_another
    assert "--start warm.1" in of_another


def test_models_of_one_run_see_equally_long_contexts(few, done, refused):
    done(few, f"train_sft.py {SFT} --block_size 80 --name long")
    message = refused(few, f"rejection_sampling.py --rounds 1 {ROUNDS} --reward rm_long --name longer")
    assert "rm_long" in message
    done(few, f"train_rm.py {RM} --start long --name rm_long")
    message = refused(few, f"rejection_sampling.py --rounds 1 {ROUNDS} --reward rm_long --name longer")
    assert "sft 64" in message and "rm_long 80 tokens" in message
    message = refused(few, f"train_ppo.py {THREE} --start long --name longer")
    assert "equally long contexts" in message and "long 80" in message


# ------------------------------------------------------------------------------------------------
# Knobs of PPO
# ------------------------------------------------------------------------------------------------


def test_every_knob_of_ppo_changes_what_is_learned(ppo_knobs):
    """No dead flags: each one alone ends with other weights (policy or critic) than all the others."""
    def digest(run, name, knob):
        checkpoint = load_checkpoint(run / f"{name}.pt")
        critic = checkpoint.get("critic", {})
        return checkpoint["fingerprint"], tuple(float(x.double().sum()) for x in critic.values())

    assert_each_matters(ppo_knobs, PPO_KNOBS, digest)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "ppo"])
def test_gradients_are_clipped_but_not_with_0(few, learned, stage):
    """--clip_grad 0 trains like a limit that no gradient reaches, and unlike one that all of them reach."""
    if stage == "pretrain":  # whose tokenizer is that of the whole text
        (few / "runs/tiny/tokenizer.json").unlink()
    for limit in ("0", "100", "1e-4"):
        learned(few, f"{SMALL[stage]} --clip_grad {limit} --name clip{limit}")
    free, far, near = (few / f"runs/tiny/clip{limit}.pt" for limit in ("0", "100", "1e-4"))
    assert same(free, far) and not same(free, near)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "ppo"])
def test_what_learns_in_bfloat16(few, learned, stage):
    """--dtype is about all training passes but those of PPO; the weights stay in single precision."""
    if stage == "pretrain":  # whose tokenizer is that of the whole text
        (few / "runs/tiny/tokenizer.json").unlink()
    for dtype in ("float32", "bfloat16"):
        learned(few, f"{SMALL[stage]} --dtype {dtype} --name in_{dtype}")
    long, short = (few / f"runs/tiny/in_{dtype}.pt" for dtype in ("float32", "bfloat16"))
    assert same(long, short) == (stage == "ppo")
    assert {str(x.dtype) for x in weights(short).values()} == {"torch.float32"}


def test_small_micro_batches_learn_the_same(few, learned):
    """Answers of different lengths: dividing by the tokens of each part instead of the whole would show at
    once."""
    run = few / "runs/tiny"
    line = f"train_ppo.py {PPO} --minibatch_size 8 --eval_answers 1 --eval_split dev"
    for n in (3, 8):
        learned(few, f"{line} --micro_batch_size {n} --name micro{n}")
    whole, start = weights(run / "micro8.pt"), weights(run / "sft.pt")
    moved = max((whole[k] - w).abs().max() for k, w in start.items())
    part = weights(run / "micro3.pt")
    assert max((whole[k] - part[k]).abs().max() for k in whole) < 0.02 * moved
    first, _ = rows_of(run / "micro3.jsonl")
    expected, _ = rows_of(run / "micro8.jsonl")
    for key, value in expected.items():
        assert first[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_an_adaptive_beta_needs_a_start_and_time(copy, refused):
    for flags in ("--kl_coef 0", "--kl_horizon 7"):
        message = refused(copy, f"train_ppo.py {PPO} --kl_target 1 {flags} --name adaptive")
        assert "--kl_target needs a --kl_coef above 0" in message


@pytest.mark.parametrize("flags, words", [
    ("--reward lama2", "did you mean llama2?"),
    ("--reward sft", "is no reward model"),
    ("--preamble none", "about an AI"),
    ("--leave_out dog,unicorn", "unicorn"),
    ("--max_new_tokens 64", "leaves no room for a prompt"),
])
def test_flags_that_ppo_refuses(copy, refused, flags, words):
    assert words in refused(copy, f"train_ppo.py {PPO} {flags} --name odd")
    assert not (copy / "runs/tiny/odd.pt").exists()


# ------------------------------------------------------------------------------------------------
# Pretraining that goes on
# ------------------------------------------------------------------------------------------------


def test_pretraining_goes_on_with_new_text(tiny, copy, done):
    """Prints the held-out loss on the new and on the old text, before and after; shape and tokenizer come
    from the checkpoint."""
    (copy / "sea").mkdir()
    text = "The sea is deep and the ship sails on. <|endoftext|>\n" * 200
    (copy / "sea/pretrain.txt").write_text(text)
    old = copy / "runs/tiny"
    shutil.copy(tiny / "whole/pretrain.held_out.txt", old / "data")
    out = done(copy, ["train_pretrain.py", "--init", old / "pretrain.pt", "--data", "sea", "--steps", 30,
                      "--lr", 0.01, "--n_embd", 64])
    losses = {}
    for name in ("new", "old"):
        found = re.search(rf"{name} text +([\d.]+) +([\d.]+)", out)
        losses[name] = tuple(map(float, found.groups()))
    assert losses["new"][1] < losses["new"][0] - 0.5, "it learns the new text"
    end = rows_of(old / "pretrain.jsonl")[-1]["test_loss"]
    assert losses["old"][0] == pytest.approx(end, abs=0.01), "it starts where the old one ended"
    run = copy / "runs/tiny-sea"
    shape = load_checkpoint(run / "pretrain.pt")["model_config"]
    assert shape == load_checkpoint(old / "pretrain.pt")["model_config"]
    assert (run / "tokenizer.json").read_bytes() == (old / "tokenizer.json").read_bytes()


# ------------------------------------------------------------------------------------------------
# Looking at it: chat, scores, the microscope, the data
# ------------------------------------------------------------------------------------------------


def test_every_checkpoint_answers(tiny, done):
    ask = "model.py runs/tiny/{}.pt --prompt Hello --max_new_tokens 8"
    answers = [command(tiny, ask.format("ppo"))]
    for flags in ("--seed 0", "--seed 1", "--temperature 0 --seed 0", "--temperature 0 --seed 1"):
        answers.append(done(tiny, f"{ask.format('ppo')} {flags}"))
    assert answers[0] == answers[1] != answers[2] and answers[3] == answers[4]
    for stage in ("pretrain", "sft"):
        done(tiny, ask.format(stage))


def test_a_reward_model_scores(tiny, done, refused):
    ask = ["model.py", "runs/tiny/rm.pt", "--prompt", "What is a dog?"]
    out = done(tiny, [*ask, "--response", "A dog is a furry mammal."])
    assert re.search(r"score [+-]\d+\.\d\d \(log-odds", out) and "gold 4 of at most 6" in out
    assert done(tiny, [*ask, "--response", "a cat."]) != out
    assert "--response" in refused(tiny, ask)
    assert "reward model" in refused(tiny, ["model.py", "runs/tiny/ppo.pt", *ask[2:], "--response", "x"])


def test_a_step_is_explained_and_the_run_stays_as_it_is(copy, done, monkeypatch):
    """The microscope writes its picture and nothing else."""
    run = copy / "runs/tiny"
    before = files_of(run)
    out = done(copy, ["lab.explain", "runs/tiny/ppo.pt", "--prompt", "A dog is", "--ppo_epochs", "2"])
    new = {p: x for p, x in files_of(run).items() if before.get(p) != x}
    assert [p.name for p in new] == ["ppo.explain.png"]
    assert all(content.startswith(b"\x89PNG") for _, content in new.values())
    assert "ppo.pt after step 3, and one more step in memory" in flat(out) and "How it adds up" in out
    assert "2 optimizer steps" in flat(out), "two epochs of 16 answers, a minibatch each"
    monkeypatch.setattr(lab.explain, "draw_tokens", lambda *_: 1 / 0)
    out = done(copy, "lab.explain runs/tiny/ppo.pt --batch_size 1")
    assert "How it adds up" in out and out.endswith("no picture (ZeroDivisionError: division by zero); "
                                                    "everything else is saved\n")
    assert len(list(run.glob("ppo.explain*"))) == 1


def test_the_data_are_shown_as_the_model_sees_them(tiny, done, tmp_path):
    out = done(tiny, "data.py --config tiny")
    for name in ("pretrain.txt", "sft.jsonl", "prompts.jsonl", "rankings.jsonl", "<|assistant|>"):
        assert name in out
    out = done(tmp_path, "data.py --config tiny")
    assert "not there yet" in out and not (tmp_path / "runs").exists(), "looking makes no run"


# ------------------------------------------------------------------------------------------------
# Everything fits the terminal
# ------------------------------------------------------------------------------------------------


def too_wide(out, columns):
    """The lines that do not fit, but for progress bars and commands, which are to be copied."""
    wide = [line for line in out.replace("\r", "\n").split("\n") if len(line.rstrip()) > columns]
    return [line for line in wide if not re.search(r"^python |\d+%\||\d+/\d+ \[", line)]


@pytest.mark.parametrize("stage", SMALL)
def test_what_a_stage_prints_fits_100_columns(tiny, stage):
    assert too_wide(printed(tiny, stage), 100) == []
    samples = (tiny / f"runs/tiny/{stage}.samples.txt").read_text(encoding="utf-8")
    assert too_wide(samples, 100) == []


NARROW = [
    f"train_pretrain.py {PRETRAIN} --steps 1 --name narrow",
    f"train_sft.py {SFT} --name narrow",
    SMALL["judge"].replace("--name judge", "--name narrow"),
    f"{SMALL['rankings']} --questions 20 --name narrow",
    f"train_rm.py {RM} --name narrow",
    f"{SMALL['rm.2'].replace('rm.2', 'narrow')}",
    f"train_ppo.py {THREE} --steps 1 --name narrow",
    f"{SMALL['rs.2']} --rounds 3",
    "lab.explain runs/tiny/ppo.pt --prompt Hello",
    "model.py runs/tiny/sft.pt runs/tiny/ppo.pt runs/tiny/rm.pt --prompt Hello",
    "data.py --config tiny",
]


@pytest.mark.parametrize("line", NARROW, ids=lambda line: line.split()[0])
def test_what_a_stage_prints_fits_80_columns(few, done, monkeypatch, line):
    if line.startswith("train_pretrain"):
        (few / "runs/tiny/tokenizer.json").unlink()
    monkeypatch.setenv("COLUMNS", "80")
    assert too_wide(done(few, line), 80) == []


@pytest.mark.parametrize("script", ["train_pretrain.py", "train_sft.py", "preferences.py", "train_rm.py",
                                    "train_ppo.py", "rejection_sampling.py", "model.py", "data.py"])
def test_help_fits_100_columns(tmp_path, done, script):
    out = done(tmp_path, f"{script} -h")
    assert too_wide(out, 100) == [] and "--config" in out or script == "model.py"


# ------------------------------------------------------------------------------------------------
# A user's mistakes: one sentence that says what would be right
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, hint", [
    ("train_sft.py --config tiny --lrr 3", "did you mean --lr?"),
    ("train_ppo.py --config tinny", "did you mean tiny?"),
    ("train_pretrain.py --steps many", "int"),
    ("train_rm.py --config small", "--data FOLDER"),
    ("train_pretrain.py --init broken.jsonl --run new", "not a checkpoint"),
    ("train_pretrain.py --n_embd 33 --n_head 2 --steps 1", "--n_embd must be a multiple of --n_head"),
    ("model.py broken.jsonl --prompt hello", "not a checkpoint"),
    ("model.py nothing.pt --prompt hello", "no such checkpoint"),
    ("data.py --config small", "--data FOLDER"),
    ("preferences.py --labeler robot", "expected simulated, human, ai"),
    ("preferences.py --name rm", "choose a name of its own"),
    ("preferences.py --name rankings.rs.1", "choose a name of its own"),
    ("train_sft.py --name judge", "the AI judge, which learns from --reviews"),
    ("train_sft.py --name sft --reviews 200", "choose another --name"),
    ("train_sft.py --name sft.explain", "--name"),
    ("train_sft.py --run some/data/own", "choose a short name"),
    ("rejection_sampling.py --reward ai", "rm_ai"),
])
def test_a_mistake_ends_in_one_sentence(tmp_path, call, line, hint):
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n')
    code, out = call(tmp_path, line)
    message = code if isinstance(code, str) else out
    assert code and hint in message and len(message.strip().splitlines()) == 1
    if not isinstance(code, str):
        assert code == 2
    assert not list(tmp_path.rglob("*.pt"))


def test_a_mistake_on_a_real_command_line(tmp_path):
    """The same through a process: an exit code that is not 0, one line on the error output, no traceback."""
    process = start(tmp_path, "train_ppo.py --data nowhere")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and len(err.strip().splitlines()) == 1 and out == ""
    assert err.startswith("train_ppo.py: nowhere: no such folder")


@pytest.mark.parametrize("line, words", [
    ("train_pretrain.py --resume", "the same command goes on by itself"),
    ("train_ppo.py --resume", "the same command goes on by itself"),
    ("train_ppo.py --explain", "python -m lab.explain"),
    ("train_ppo.py --prompt cats", "python -m lab.explain"),
    ("train_ppo.py --labeler ai", "--reward rm_ai"),
    ("train_rm.py --labeler ai", "python preferences.py --labeler ai"),
    ("train_rm.py --labeler=human", "--rankings"),
    ("train_rm.py --judge_between sft ppo", "--against"),
    ("train_rm.py --folds 5", "docs/experiments.py folds"),
    ("train_rm.py --rankings_per_prompt 8", "preferences.py --questions N"),
    ("train_rm.py --ai_rankings 100", "preferences.py --questions N"),
    ("train_rm.py --answers_of ppo", "preferences.py"),
    ("train_rm.py --noise 1", "preferences.py"),
])
def test_a_flag_of_an_earlier_version_gets_its_sentence(tmp_path, call, line, words):
    code, out = call(tmp_path, line)
    flag = line.split()[1].partition("=")[0]
    assert code == 2 and f"there is no {flag} here" in out and words in out
    assert len(out.strip().splitlines()) == 1 and flag in OLD_FLAGS
