"""Every script as a user runs it: commands in an empty folder, a very small model, a few steps.

Two runs are made once and then looked at or copied: runs/tiny (the embedded world, every stage by its own command) and
runs/tiny-mine (a user's folder of preferences, where train_ppo.py has to train its missing parents first). What needs no
process of its own calls a script's main() here, for importing torch is most of the time of a short command.
"""
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import data
import experiment
import preferences
import train_ppo
import train_rm
from conftest import ROOT, completion, run_lines
from experiment import fingerprint, load_checkpoint, load_model, run_main
from model import score

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}
RM = "--rankings_per_prompt 1 --held_out_rankings 1 --answers_per_prompt 3 --epochs 1 --batch_size 40 --max_new_tokens 12 --eval_split dev"
THREE = "--steps 3 --batch_size 16 --minibatch_size 8 --micro_batch_size 8 --max_new_tokens 12 --eval_every 2 --eval_split dev"
SMALL = {
    "pretrain": "--n_layer 1 --n_embd 32 --n_head 2 --vocab_size 500 --block_size 64 --steps 12 --batch_size 4 --warmup 2",
    "sft": "--epochs 1 --batch_size 100 --max_new_tokens 12 --eval_split dev",
    "judge": "--reviews 200 --block_size 400 --epochs 1 --batch_size 50 --max_new_tokens 12 --name judge",
    "rm": RM,
    "ppo": THREE,
    "rs.2": "--rounds 2 --answers_per_prompt 3 --epochs 1 --batch_size 100 --max_new_tokens 12 --eval_answers 2 --eval_split dev",
    "rm.2": f"{RM} --start rm --answers_of ppo --damaged 0.5 --name rm.2",
}
PPO = "--steps 2 --batch_size 8 --minibatch_size 4 --micro_batch_size 4 --max_new_tokens 8 --warmup 0"


def script(stage):
    """The script of a stage: train_rm.py for rm.2."""
    return {"rs.2": "rejection_sampling.py", "judge": "train_sft.py"}.get(stage) or f"train_{stage.split('.')[0]}.py"


def start(folder, script, *args):
    return subprocess.Popen([sys.executable, ROOT / script, *args], cwd=folder, env=ENVIRONMENT, text=True, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupt(process, metrics, rows):
    """Ctrl-C as soon as so many steps are logged; returns what was printed. It must end with 130 and without a traceback."""
    deadline = time.time() + 60
    while process.poll() is None and time.time() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= rows:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, out + err
    return out


def command(folder, script, *args, code=0):
    """Run a script in that folder as its own process; returns what it printed. It must end with that exit code."""
    process = start(folder, script, *args)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, f"{script} {args} ended with {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    assert "Traceback" not in err, err
    return out + err


@pytest.fixture
def call(monkeypatch, capsys):
    """call(folder, script, args): a script's main() inside this process. Returns (exit code or message, what it printed)."""
    monkeypatch.setattr(experiment, "picture", lambda path, *rest: path.write_text("no picture"))  # drawing takes longest

    def run(folder, script, args=""):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *(args.split() if isinstance(args, str) else map(str, args))])
        capsys.readouterr()
        try:
            run_main(importlib.import_module(script.removesuffix(".py")).main)
            code = 0
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def weights(path):
    return load_checkpoint(path)["model"]


def same(a, b):
    """Whether two checkpoints hold the same weights, bit for bit."""
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------
# The embedded world, stage by stage
# ------------------------------------------------------------------------------------------------


def fewer_prompts(folder, n=60):
    """Shorten a run's list of prompts, so that collecting takes no time: n of each split."""
    path = folder / "runs/tiny/data/prompts.jsonl"
    rows = rows_of(path)
    kept = [r for split in ("train", "dev", "test") for r in [r for r in rows if r["split"] == split][:: max(1, sum(r["split"] == split for r in rows) // n)]]
    path.write_text("".join(json.dumps(r) + "\n" for r in kept))
    return {r["prompt"]: r for r in kept}


def less_text(folder):
    """A twentieth of a run's pretraining text, for tests that read it dozens of times."""
    path = folder / "runs/tiny/data/pretrain.txt"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[::20]), encoding="utf-8")


def train_tiny(folder):
    """A finished runs/tiny of fewer prompts, and in ppo.out (and so on) what each stage printed."""
    for stage, flags in SMALL.items():
        ((code, out),) = run_lines(folder, [f"{script(stage)} --config tiny {flags}"], pictures=True)
        assert code == 0, f"{stage}: {code} {out[-2000:]}"
        (folder / f"{stage}.out").write_text(out, encoding="utf-8")
        if stage == "pretrain":
            fewer_prompts(folder, 120)


@pytest.fixture(scope="session")
def tiny():
    """A folder with a finished runs/tiny."""
    return trained("tiny")


def printed(folder, stage="ppo"):
    return (folder / f"{stage}.out").read_text(encoding="utf-8")


BEGUN = {}  # name of a job: (its result to come, its folder)


def begin(pool, names, folder):
    """Train what the tests look at, some of JOBS, in a process beside them."""
    for name in (name for name in JOBS if name in names):
        (folder / name).mkdir()
        BEGUN[name] = pool.apply_async(JOBS[name], [folder / name]), folder / name


def trained(name):
    result, folder = BEGUN[name]
    result.get(timeout=300)
    return folder


def try_knobs(folder, run, prompts, script, flags, knobs):
    """In a copy of a finished run, with fewer prompts: a script's flags with each of the knobs, as variants v0, v1 and so on."""
    shutil.copytree(folder.parent / run, folder, dirs_exist_ok=True)
    if prompts:
        fewer_prompts(folder, prompts)
        less_text(folder)
    results = run_lines(folder, [f"{script} {flags} {knob} --name v{i}" for i, knob in enumerate(knobs)])
    (folder / "results.json").write_text(json.dumps(results))


def assert_each_matters(folder, knobs, digest):
    """digest(folder, name of the variant, its knob) must differ between all of them."""
    results, seen = json.loads((folder / "results.json").read_text()), {}
    for i, (knob, (code, out)) in enumerate(zip(knobs, results, strict=True)):
        assert code == 0, f"{knob}: {code} {out[-500:]}"
        found = digest(folder, f"v{i}", knob)
        assert found not in seen, f"{knob!r} makes no difference to {seen[found]!r}"
        seen[found] = knob


@pytest.fixture
def copy(tiny, tmp_path):
    """A folder with a copy of runs/tiny that a test may spoil."""
    shutil.copytree(tiny / "runs", tmp_path / "runs")
    return tmp_path


def test_a_run_folder_holds_every_stages_files(tiny):
    run = tiny / "runs/tiny"
    for stage in SMALL:
        for suffix in ("pt", "jsonl", "png", "samples.txt"):
            assert (run / f"{stage}.{suffix}").stat().st_size > 0, f"{stage}.{suffix}"
        assert (run / f"{stage}.png").read_bytes().startswith(b"\x89PNG")
        assert load_checkpoint(run / f"{stage}.pt")["finished"] and f"runs/tiny/{stage}.pt" in printed(tiny, stage).replace("\\", "/")
    assert {p.name for p in (run / "data").iterdir()} == {"pretrain.txt", "sft.jsonl", "prompts.jsonl", "reviews.jsonl"}
    assert (run / "tokenizer.json").exists() and not list(run.glob("*.tmp"))


def test_metrics_have_the_same_keys_in_every_row(tiny):
    for stage in SMALL:
        rows = rows_of(tiny / f"runs/tiny/{stage}.jsonl")
        assert [r["step"] for r in rows] == list(range(len(rows))) and len(rows) == load_checkpoint(tiny / f"runs/tiny/{stage}.pt")["step"]
        assert all(list(r) == list(rows[0]) for r in rows)
    assert len(rows_of(tiny / "runs/tiny/ppo.jsonl")) == 3


def test_every_stage_has_a_progress_bar_with_time_left(tiny):
    for stage in SMALL:
        assert re.search(r"\d+/\d+ \[\d+:\d+<", printed(tiny, stage))


def test_rankings_are_readable_rows(tiny):
    rows = rows_of(tiny / "runs/tiny/rankings.jsonl")
    assert len(rows) > 200 and {r["labeler"] for r in rows} == {"simulated"}
    for r in rows:
        assert sorted(i for tier in r["tiers"] for i in tier) == list(range(len(r["responses"]))) and len(r["responses"]) <= (3 if r["round"] == 1 else 8)


def test_ppo_ends_with_a_table_that_has_its_control(tiny):
    out = printed(tiny)
    for words in ("pretrained", "SFT", "PPO", "gold score (never trained on)", "KL to SFT", "distinct answers", "loss on pretraining text",
                  "python model.py runs"):
        assert words in out
    assert out.index("A dog is   (greedy)") < out.index("Talk to it")
    assert "parameters: policy" in out and "shape from runs" in out


def test_kl_is_zero_before_the_first_update_and_not_after(tiny):
    rows = rows_of(tiny / "runs/tiny/ppo.jsonl")
    assert abs(rows[0]["kl_full"]) < 1e-5 and abs(rows[0]["kl"]) < 1e-3 and abs(rows[0]["kl_k3"]) < 1e-5
    assert rows[-1]["kl_full"] > 1e-5


def test_ppo_changes_the_policy_and_leaves_its_parents_alone(tiny):
    run = tiny / "runs/tiny"
    now = {f"{s}.pt": fingerprint(load_model(run / f"{s}.pt")[0]) for s in ("sft", "rm", "pretrain")}
    assert load_checkpoint(run / "ppo.pt")["parents"] == now, "the fingerprints were taken before the training"
    policy, sft = weights(run / "ppo.pt"), weights(run / "sft.pt")
    assert policy.keys() == sft.keys() and any(not torch.equal(policy[k], sft[k]) for k in sft)


@pytest.mark.parametrize("stage", SMALL)
def test_the_same_command_again_does_nothing(tiny, call, stage):
    path = tiny / f"runs/tiny/{stage}.pt"
    before = path.stat().st_mtime_ns, (tiny / f"runs/tiny/{stage}.jsonl").read_text()
    code, out = call(tiny, script(stage), f"--config tiny {SMALL[stage]}")
    assert code == 0 and "nothing to do" in out
    assert (path.stat().st_mtime_ns, (tiny / f"runs/tiny/{stage}.jsonl").read_text()) == before


@pytest.mark.parametrize("stage", SMALL)
def test_other_knobs_ask_for_a_name(tiny, call, stage):
    before = (tiny / f"runs/tiny/{stage}.pt").read_bytes()
    code, _ = call(tiny, script(stage), f"{SMALL[stage]} --lr 0.123")
    assert "--name" in code and "0.123" in code and "\n" not in code
    assert (tiny / f"runs/tiny/{stage}.pt").read_bytes() == before


def test_a_variant_is_written_beside(copy, call):
    before = (copy / "runs/tiny/ppo.pt").read_bytes()
    code, out = call(copy, "train_ppo.py", f"{SMALL['ppo']} --kl_coef 0 --name no_kl")
    assert code == 0, out
    assert {f"no_kl.{s}" for s in ("pt", "jsonl", "png", "samples.txt")} <= {p.name for p in (copy / "runs/tiny").iterdir()}
    assert (copy / "runs/tiny/ppo.pt").read_bytes() == before and not same(copy / "runs/tiny/no_kl.pt", copy / "runs/tiny/ppo.pt")


def test_a_parent_that_was_trained_again_makes_its_child_stale(copy, call):
    code, out = call(copy, "train_sft.py", f"{SMALL['sft']} --lr 0.01 --overwrite")
    assert code == 0, out
    code, _ = call(copy, "train_ppo.py", f"{PPO} --name late")
    assert "rm.pt was trained from an earlier sft.pt" in code and "train_rm.py" in code and "--overwrite" in code
    assert not (copy / "runs/tiny/late.pt").exists()


def test_one_seed_one_run(tiny, call, tmp_path):
    """The same seed elsewhere writes the same world, tokenizer and weights; another seed gets another folder and another world."""
    assert call(tmp_path, "train_pretrain.py", SMALL["pretrain"])[0] == 0
    assert call(tmp_path, "train_pretrain.py", SMALL["pretrain"] + " --seed 1")[0] == 0
    for name in ("data/pretrain.txt", "data/sft.jsonl", "tokenizer.json", "pretrain.jsonl"):
        assert (tmp_path / "runs/tiny" / name).read_bytes() == (tiny / "runs/tiny" / name).read_bytes()
        assert (tmp_path / "runs/tiny-seed1" / name).read_bytes() != (tiny / "runs/tiny" / name).read_bytes()
    assert (tmp_path / "runs/tiny/data/prompts.jsonl").read_bytes() == (tmp_path / "runs/tiny-seed1/data/prompts.jsonl").read_bytes(), "the same questions for every seed"
    assert same(tmp_path / "runs/tiny/pretrain.pt", tiny / "runs/tiny/pretrain.pt")
    assert not same(tmp_path / "runs/tiny-seed1/pretrain.pt", tiny / "runs/tiny/pretrain.pt")


# ------------------------------------------------------------------------------------------------
# A user's own folder
# ------------------------------------------------------------------------------------------------


def train_mine(folder):
    """HH-style preferences in mine/ and a finished runs/tiny-mine, whose SFT and reward model train_ppo.py trained."""
    (folder / "mine").mkdir()
    rows = []
    for i in range(40):
        start = f"\n\nHuman: What is thing {i}?{' Really, I mean it.' * (20 * (i == 5))}\n\nAssistant:"
        if i == 7:
            start += " Which one?\n\nHuman: The <|endoftext|> one, <|pad|> <|user|>.\n\nAssistant:"
        rows.append({"chosen": f"{start} A good <|endoftext|> thing, number {i}.", "rejected": f"{start} No{' idea' * (i % 4)}.",
                     "split": "test" if i % 5 == 0 and i != 5 else "train"})
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    (folder / "mine/preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = command(folder, "train_pretrain.py", "--data", "mine", *SMALL["pretrain"].split())
    out += command(folder, "train_ppo.py", "--data", "mine", *PPO.split())
    (folder / "ppo.out").write_text(out, encoding="utf-8")


@pytest.fixture(scope="session")
def mine():
    """A folder with a finished runs/tiny-mine."""
    return trained("mine")


def test_missing_parents_are_trained_first_each_by_its_own_command(mine):
    for stage in ("sft", "rm"):
        assert re.search(rf"runs.tiny-mine.{stage}\.pt is not there yet; first: python {re.escape(str(ROOT / f'train_{stage}.py'))} --config tiny --run tiny-mine", printed(mine))
        assert load_checkpoint(mine / f"runs/tiny-mine/{stage}.pt")["finished"]
    assert load_checkpoint(mine / "runs/tiny-mine/ppo.pt")["finished"]


def test_what_is_derived_dropped_or_cut_is_said(mine):
    for words in ("no sft file; the 40 chosen answers", "no prompts file", "no pretrain file", "1 of 41 rows dropped",
                  "longer than the context of 64 tokens: prompts cut from the left", "longer than the 56 tokens that the answer leaves them"):
        assert words in printed(mine)


def test_a_reward_model_goes_on_with_another_models_answers(tiny):
    """rm.2 learns on from rm, and its rankings are of another source; it knows the sources of both, for whoever goes on from it."""
    run = tiny / "runs/tiny"
    rows, (first, *_), (second, *earlier) = rows_of(run / "rankings.jsonl"), *(load_checkpoint(run / f"{rm}.pt")["state"]["sources"] for rm in ("rm", "rm.2"))
    assert {r["source"] for r in rows if r["round"] == 1} == {first["source"]} and {r["round"] for r in rows if r["source"] == second["source"]} == {2} and earlier == [first]
    assert first["source"].startswith("sft ") and second["source"].startswith("ppo ")
    assert {"rm.pt", "ppo.pt"} == load_checkpoint(run / "rm.2.pt")["parents"].keys()
    assert "answers of earlier rounds" in printed(tiny, "rm.2") and "rm on answers of ppo" in printed(tiny, "rm.2"), "it is compared with what it was"


def test_a_round_is_trained_after_the_round_before(tiny):
    """The second round sampled from the first one's model, with the reward model that had learned from rankings of its answers; it learned
    from the winners of both rounds, and its weights are the SFT model's, trained on."""
    run = tiny / "runs/tiny"
    first, second = (load_checkpoint(run / f"rs.{n}.pt") for n in (1, 2))
    assert first["parents"].keys() == {"sft.pt", "rm.pt"} and second["parents"].keys() == {"sft.pt", "rs.1.pt", "rm.rs.1.pt"}
    assert load_checkpoint(run / "rm.rs.1.pt")["parents"].keys() == {"rm.pt", "rs.1.pt"}
    prompts = [p["prompt"] for p in data.load_prompts(run / "data") if p["split"] == "train"]
    assert [[w["prompt"] for w in round] for round in second["state"]["winners"]] == [prompts, prompts] and second["state"]["winners"][0] == first["state"]["winners"][0]
    assert second["step"] == -(-2 * len(prompts) // 100) and first["step"] == -(-len(prompts) // 100), "all winners so far, 100 in a step"
    assert [r["model"] for r in second["state"]["rounds"]] == ["SFT", "RLHF-V1", "RLHF-V2"]
    assert ["headroom" in r for r in second["state"]["rounds"]] == [True, True, False], "what best-of-K of a model can earn, of those that were sampled from"
    curve = second["state"]["curve"]
    assert [c["n"] for c in curve] == [1, 2, 3] and curve[0]["reward"] < curve[1]["reward"] and curve[0]["kl"] == curve[0]["kl_bound"] == 0 < curve[1]["kl"]
    for words in ("RLHF-V2", "win rate against SFT", "n = 2", "KL at most", "reward model on its answers", "beats a random one"):
        assert words in printed(tiny, "rs.2")


def test_winners_are_the_best_of_their_own_prompt(copy, call, monkeypatch):
    """With a "reward" that counts what was sampled: the last answer to each prompt is the best one, whatever the others got."""
    fewer_prompts(copy)
    asked = []
    monkeypatch.setattr(train_ppo.Reward, "of_texts", lambda self, enc, prompts, texts: asked.append((prompts, texts)) or [float(i) for i in range(len(texts))])
    code, out = call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --rounds 1 --name counted")
    assert code == 0, out
    (prompts, texts), winners = asked[0], load_checkpoint(copy / "runs/tiny/counted.1.pt")["state"]["winners"][0]
    assert prompts[::3] == prompts[1::3] == prompts[2::3] == [w["prompt"] for w in winners] and texts[2::3] == [w["response"] for w in winners]


def test_an_interrupted_round_ends_like_a_straight_one(copy, call):
    """Ctrl-C in the fine-tuning: nothing is sampled again, and the weights are bit for bit the same."""
    fewer_prompts(copy, 30)
    flags, run = f"--config tiny {SMALL['rs.2']} --rounds 1 --batch_size 2 --epochs 3", copy / "runs/tiny"
    out = interrupt(start(copy, "rejection_sampling.py", *flags.split(), "--name", "broken"), run / "broken.1.jsonl", rows=3)
    stopped = load_checkpoint(run / "broken.1.pt")
    assert not stopped["finished"] and stopped["state"]["winners"] and "--resume" in out
    for again in ("broken --resume", "straight"):
        code, out = call(copy, "rejection_sampling.py", f"{flags} --name {again}")
        assert code == 0, out
    assert same(run / "broken.1.pt", run / "straight.1.pt") and (run / "broken.1.jsonl").read_text() == (run / "straight.1.jsonl").read_text()


def test_an_interrupted_pipeline_goes_on_where_it_stopped(copy, call):
    """The first round is there, half of the second one too: the same command with --resume ends both like a straight run."""
    fewer_prompts(copy, 30)
    flags, run = f"--config tiny {SMALL['rs.2']} --batch_size 2 --epochs 2", copy / "runs/tiny"
    interrupt(start(copy, "rejection_sampling.py", *flags.split(), "--name", "broken"), run / "broken.2.jsonl", rows=3)
    first = (run / "broken.1.pt").stat().st_mtime_ns
    for again in ("broken --resume", "straight"):
        code, out = call(copy, "rejection_sampling.py", f"{flags} --name {again}")
        assert code == 0, out
    assert (run / "broken.1.pt").stat().st_mtime_ns == first and same(run / "broken.2.pt", run / "straight.2.pt")


# Each alone must end with another model; what concerns several rounds, after two of them.
RS_KNOBS = ["", "--answers_per_prompt 4", "--temperature 0.5", "--max_new_tokens 9", "--epochs 2", "--batch_size 5", "--lr 0.02", "--warmup 1", "--weight_decay 3",
            "--clip_grad 0.01", "--seed 1 --run tiny", "--rounds 2", "--rounds 2 --start previous", "--rounds 2 --pool last",
            "--rounds 2 --start previous --pool last", "--rounds 2 --refresh_reward_model false", "--rounds 2 --refresh_rankings 4"]


def try_rs_knobs(folder):
    return try_knobs(folder, "tiny", 20, "rejection_sampling.py", f"{SMALL['rs.2']} --rounds 1 --refresh_rankings 8 --batch_size 10 --lr 0.01 --warmup 0", RS_KNOBS)


@pytest.fixture(scope="session")
def rs_knobs(tiny):
    return trained("rs_knobs")


def test_every_knob_of_rejection_sampling_changes_what_is_learned(rs_knobs):
    def digest(folder, name, knob):
        last, refreshed = (folder / f"runs/tiny/{file}.pt" for file in (f"{name}.{2 if 'rounds' in knob else 1}", f"rm.{name}.1"))
        return tuple(load_checkpoint(path)["fingerprint"] for path in (last, refreshed) if path.exists())

    assert_each_matters(rs_knobs, RS_KNOBS, digest)


def test_ppo_goes_on_from_rejection_sampling(copy, call, monkeypatch):
    """--then_ppo: policy and reference are the last round's model, the reward model has learned from its answers; SFT stays the yardstick."""
    fewer_prompts(copy)
    monkeypatch.setattr(train_ppo, "PRESETS", {"tiny": dict(steps=2, batch_size=8, minibatch_size=8, micro_batch_size=8, eval_answers=1)})
    code, out = call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --temperature 0.9 --name warm --then_ppo")
    assert code == 0 and re.search(r"dev prompts +pretrained +SFT +warm\.2 +PPO", out), out
    checkpoint = load_checkpoint(copy / "runs/tiny/warm.ppo.pt")
    assert checkpoint["parents"].keys() == {"pretrain.pt", "sft.pt", "warm.2.pt", "rm.warm.2.pt"}
    assert (checkpoint["knobs"]["temperature"], checkpoint["knobs"]["max_new_tokens"]) == (0.9, 12), "the same answers as in the rounds"
    rows = rows_of(copy / "runs/tiny/warm.ppo.jsonl")
    assert abs(rows[0]["kl_full"]) < 1e-5, "the reference is the model that it starts from"
    again = f"{SMALL['rs.2']} --temperature 0.9 --name warm --then_ppo"
    assert "warm.ppo.pt is finished; nothing to do" in call(copy, "rejection_sampling.py", again)[1]
    assert "leave --overwrite out" in call(copy, "rejection_sampling.py", f"{again} --overwrite")[0]
    assert "rs.1.pt was trained with other knobs (answers_per_prompt 3 -> 4)" in call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --answers_per_prompt 4 --rounds 3")[0]


def test_a_refreshed_reward_model_learns_as_before(copy, call):
    """Its loss, its annotator and what it was never asked about stay; it ranks answers like those it is to choose from."""
    fewer_prompts(copy)
    assert call(copy, "train_rm.py", f"{RM} --loss regression --noise 0.3 --leave_out cake --name own")[0] == 0
    code, out = call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --reward own --temperature 0.9 --name again")
    knobs = load_checkpoint(copy / "runs/tiny/own.again.1.pt")["knobs"]
    assert code == 0 and {key: knobs[key] for key in ("loss", "noise", "tie_gap", "leave_out", "temperature")} == {
        "loss": "regression", "noise": 0.3, "tie_gap": 0.8, "leave_out": "cake", "temperature": 0.9}, out
    checkpoint = load_checkpoint(copy / "runs/tiny/own.pt")
    checkpoint["knobs"]["labeler"] = "human"
    torch.save(checkpoint, copy / "runs/tiny/own.pt")
    assert "has learned from your labels" in call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --reward own --name yours")[0]


def test_models_of_one_run_see_equally_long_contexts(copy, call):
    assert call(copy, "train_sft.py", f"{SMALL['sft']} --block_size 80 --name long")[0] == 0
    assert "pretrain.pt 64, sft.pt 64, long.pt 80, rm.pt 64 tokens" in call(copy, "train_ppo.py", f"{THREE} --start long --name longer")[0]
    assert call(copy, "train_rm.py", f"{RM} --start long --name rm_long")[0] == 0
    assert "sft.pt 64, rm_long.pt 80 tokens" in call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --rounds 1 --reward rm_long --name longer")[0]


def test_rejection_sampling_on_a_users_preferences(user, call):
    """Nobody ranks new answers there: the reward model stays, which is said, and there is no gold score in the table."""
    for again in range(2):
        code, out = call(user, "rejection_sampling.py", "--data mine --rounds 2 --answers_per_prompt 4 --max_new_tokens 8 --batch_size 8 --epochs 1 --eval_answers 1")
        assert code == 0 and "stay as they are" in out and "gold" not in out and ("nothing to do" in out) == again, out
    parents = [load_checkpoint(user / f"runs/tiny-mine/rs.{n}.pt")["parents"] for n in (1, 2)]
    assert parents[0].keys() == {"sft.pt", "rm.pt"} and parents[1].keys() == {"sft.pt", "rm.pt", "rs.1.pt"}


def test_two_reward_models_are_refreshed_apart(copy, call):
    fewer_prompts(copy)
    for aspect in ("helpful", "safety"):
        assert call(copy, "train_rm.py", f"{RM} --aspect {aspect}")[0] == 0
    code, out = call(copy, "rejection_sampling.py", f"{SMALL['rs.2']} --reward llama2 --name two")
    assert code == 0 and load_checkpoint(copy / "runs/tiny/two.2.pt")["parents"].keys() == {"sft.pt", "two.1.pt", "rm_helpful.two.1.pt", "rm_safety.two.1.pt"}, out
    for aspect in ("helpful", "safety"):
        assert load_checkpoint(copy / f"runs/tiny/rm_{aspect}.two.1.pt")["knobs"]["aspect"] == aspect


def test_regression_learns_from_the_same_rankings(copy, call):
    code, out = call(copy, "train_rm.py", f"{RM} --loss regression --name numbers")
    assert code == 0 and "sampling" not in out and "rank correlation" in out, out
    assert not same(copy / "runs/tiny/numbers.pt", copy / "runs/tiny/rm.pt")
    model, enc = load_model(copy / "runs/tiny/numbers.pt")[0], data.load_encoding(copy / "runs/tiny/tokenizer.json")
    dev = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["round"] == 1 and r["split"] == "dev"]
    slope = train_rm.calibration_slope(train_rm.differences(dev, train_rm.scores_of(model, enc, dev)))
    assert slope == pytest.approx(1, abs=0.02) or model.reward_gain.item() in (pytest.approx(0.2), 5), "its differences were made log-odds, or as far as it goes"


@pytest.mark.parametrize("flags, start", [("", "pretrain"), ("--start sft", "sft"), ("--start rm", "rm")])
def test_where_a_reward_model_starts(copy, call, flags, start):
    """With a learning rate of 0 the weights stay what they were: the pretrained model's, the SFT model's, an earlier reward model's."""
    code, out = call(copy, "train_rm.py", f"{RM} {flags} --lr 0 --name still")
    assert code == 0 and f"shape from {os.path.join('runs', 'tiny', start)}.pt" in out, out
    now, then = weights(copy / "runs/tiny/still.pt"), weights(copy / f"runs/tiny/{start}.pt")
    trained = [k for k in then if k not in ("reward_gain", "reward_bias")]
    assert trained and all(torch.equal(now[k], then[k]) for k in trained)


def test_more_rankings_of_held_out_prompts_change_the_figures_and_nothing_else(copy, call):
    """Weights bit for bit the same; each dev prompt is asked about three times, with new answers."""
    code, out = call(copy, "train_rm.py", f"{RM} --held_out_rankings 3 --name measured")
    run = copy / "runs/tiny"
    assert code == 0, out
    fixed = [k for k in weights(run / "rm.pt") if k not in ("reward_gain", "reward_bias")]
    assert all(torch.equal(weights(run / "measured.pt")[k], weights(run / "rm.pt")[k]) for k in fixed)
    sources = [about["source"] for about in load_checkpoint(run / "measured.pt")["state"]["sources"]]
    asked = [r["prompt"] for r in rows_of(run / "rankings.jsonl") if r["source"] in sources and r["split"] == "dev"]
    assert len(sources) == 2 and {asked.count(p) for p in asked} == {3}
    once, thrice = (load_checkpoint(run / f"{name}.pt")["state"]["results"]["answers of sft"]["rankings"] for name in ("rm", "measured"))
    assert thrice > 2 * once


def test_what_a_reward_model_learns_that_goes_on(copy, call):
    """Its own rankings, with --replay 1 as many earlier ones, with --damaged 1 as many damaged demonstrations; one step a ranking here."""
    rows = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["split"] == "train"]
    sources = [load_checkpoint(copy / f"runs/tiny/{rm}.pt")["state"]["sources"][0]["source"] for rm in ("rm", "rm.2")]
    first, second = ([r for r in rows if r["source"] == source] for source in sources)
    training = asked_demonstrations(copy)
    pairs = [sum(len(r["tiers"]) > 1 for r in group) for group in (second, first, train_rm.damaged_copies(training, len(second), seed=0))]
    assert len(first) == len(second) and min(pairs) > 0
    for i, (replay, damaged, expected) in enumerate([(0, 0, pairs[0]), (1, 0, pairs[0] + pairs[1]), (0, 1, pairs[0] + pairs[2])]):
        code, out = call(copy, "train_rm.py", f"{RM} --batch_size 1 --start rm --answers_of ppo --replay {replay} --damaged {damaged} --eval_every 9999 --name mix{i}")
        assert code == 0, out
        assert load_checkpoint(copy / f"runs/tiny/mix{i}.pt")["step"] == expected


def test_whoever_goes_on_needs_what_was_learned_before(copy, call):
    """Without the first rankings there would be no replay, and the scores would be normalised on another model's answers."""
    before = (copy / "runs/tiny/rm.pt").read_bytes()
    rankings = copy / "runs/tiny/rankings.jsonl"
    rankings.write_text("".join(json.dumps(r) + "\n" for r in rows_of(rankings) if r["round"] == 2))
    assert "has lost the rankings" in call(copy, "train_rm.py", f"{RM} --start rm --answers_of ppo --name again")[0]
    assert (copy / "runs/tiny/rm.pt").read_bytes() == before and not (copy / "runs/tiny/again.pt").exists()


def test_distinct_answers_are_counted_one_a_prompt(tiny):
    """With several answers a prompt the share would fall by itself: what is printed is a whole number of prompts in every column."""
    results = load_checkpoint(tiny / "runs/tiny/ppo.pt")["state"]["results"]["distinct answers"]
    n = sum(p["split"] == "dev" for p in data.load_prompts(tiny / "runs/tiny/data"))
    for name, share in results.items():
        assert share <= 1 and share * n == pytest.approx(round(share * n), abs=1e-6), name


def test_a_folder_of_preferences_needs_no_answers_of_the_sft_model(mine, call, tmp_path):
    """Its reward model has one parent, the pretrained model; what is missing is told before anything is trained."""
    assert load_checkpoint(mine / "runs/tiny-mine/rm.pt")["parents"].keys() == {"pretrain.pt"}
    (tmp_path / "text").mkdir()
    (tmp_path / "text/pretrain.txt").write_text("A dog is a furry mammal.\n" * 50)
    assert "no preferences; the reward model needs comparisons" in call(tmp_path, "train_rm.py", "--data text")[0]
    assert "--kl_target moves beta" in call(tmp_path, "train_ppo.py", "--kl_target 1 --kl_coef 0")[0]
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.pt"))


def test_scores_are_log_odds_with_the_demonstrations_at_0(tiny):
    """Demonstrations of training prompts score 0 on average; Bradley-Terry's differences are left as they are."""
    enc, some = data.load_encoding(tiny / "runs/tiny/tokenizer.json"), asked_demonstrations(tiny)
    some = some[:: max(1, len(some) // 300)]
    for rm in ("rm", "rm.2"):
        model, _ = load_model(tiny / f"runs/tiny/{rm}.pt")
        assert model.reward_gain == 1
        assert abs(sum(score(model, enc, [d["prompt"] for d in some], [d["response"] for d in some])) / len(some)) < 1e-3


def test_a_stale_variant_names_its_own_command(copy, call):
    """The one that it was trained with, to be typed again as it stands."""
    code, out = call(copy, "train_rm.py", f"{RM} --start rm --answers_of sft --name again")
    assert code == 0 and call(copy, "train_rm.py", f"{RM} --lr 0.004 --overwrite")[0] == 0, out
    code, _ = call(copy, "train_ppo.py", f"{THREE} --reward again --name late")
    own = f"train_rm.py {RM} --start rm --answers_of sft --name again --overwrite"
    assert "again.pt was trained from an earlier rm.pt" in code and f"python {own}" in code
    code, out = call(copy, "train_rm.py", own.split(maxsplit=1)[1])
    assert code == 0 and call(copy, "train_ppo.py", f"{THREE} --reward again --name late")[0] == 0, out


def test_folds_do_not_start_from_a_model_that_has_seen_the_chosen_answers(copy, call):
    for start in ("sft", "rm"):
        code, _ = call(copy, "train_rm.py", f"--start {start} --folds 2 --name leaky")
        assert "--folds needs --start pretrain" in code
    code, _ = call(copy, "train_rm.py", f"{RM} --folds 1 --name one")
    assert "--folds 1: choose 2 to" in code


def test_a_reward_model_keeps_its_name_and_what_it_was_asked_for(copy, call):
    assert "that is another reward model" in call(copy, "train_rm.py", f"{RM} --name rm_safety --overwrite")[0]
    assert "rm was asked for overall, not for safety" in call(copy, "train_rm.py", f"{RM} --start rm --aspect safety --name two")[0]
    assert "nothing.pt: no such checkpoint" in call(copy, "train_rm.py", f"{RM} --start nothing --name two")[0]


def test_rankings_are_reused_only_for_the_same_answers(copy, call):
    for flags, again in (("--lr 0.002", True), ("--lr 0.002 --max_new_tokens 10", False)):
        code, out = call(copy, "train_rm.py", f"{RM} {flags} --name n{again}")
        assert code == 0 and ("sampling" not in out) == again
    assert "leaves no room for a prompt" in call(copy, "train_rm.py", f"{RM} --max_new_tokens 64 --name long")[0]


def asked_demonstrations(folder):
    """The demonstrations of the prompts that the reward model is asked about in training."""
    asked = {p["prompt"] for p in data.load_prompts(folder / "runs/tiny/data") if p["split"] == "train"}
    return [d for d in data.load_sft(folder / "runs/tiny/data") if d["prompt"] in asked]


def typed(monkeypatch, *lines):
    """Somebody at the terminal: these lines, then the end of the input."""
    lines = list(lines)

    def read(prompt=""):
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", read)


def test_two_reward_models_and_llama2s_combination(copy, call):
    """Helpfulness is asked of answers to safe prompts, safety of answers to unsafe ones; the safety model gets a tenth of helpfulness rankings."""
    prompts = fewer_prompts(copy)
    for aspect in ("helpful", "safety"):
        code, out = call(copy, "train_rm.py", f"{RM} --aspect {aspect}")
        assert code == 0 and f"rm_{aspect}.pt" in out and ("(recall)" in out) == (aspect == "safety"), out
    rows = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["aspect"] != "overall"]
    safety = [r for r in rows if r["aspect"] == "safety"]
    assert {prompts[r["prompt"]]["unsafe"] for r in safety} == {True} and {prompts[r["prompt"]]["unsafe"] for r in rows if r["aspect"] == "helpful"} == {False}
    about = load_checkpoint(copy / "runs/tiny/rm_safety.pt")["state"]["sources"]
    share = [r for r in rows if r["aspect"] == "helpful" and r["source"] == about[1]["source"]]
    train = sum(r["split"] == "train" for r in safety)
    assert [a["aspect"] for a in about] == ["safety", "helpful"] and len(share) == round(0.1 / 0.9 * train) > 0
    for reward, parents in (("llama2", {"rm_helpful.pt", "rm_safety.pt"}), ("safety", {"rm_safety.pt"}), ("rm_safety", {"rm_safety.pt"})):
        code, out = call(copy, "train_ppo.py", f"{THREE} --reward {reward} --name with_{reward}")
        assert code == 0 and load_checkpoint(copy / f"runs/tiny/with_{reward}.pt")["parents"].keys() == parents | {"pretrain.pt", "sft.pt"}, out
    assert same(copy / "runs/tiny/with_safety.pt", copy / "runs/tiny/with_rm_safety.pt") and not same(copy / "runs/tiny/with_safety.pt", copy / "runs/tiny/with_llama2.pt")
    assert "did you mean llama2?" in call(copy, "train_ppo.py", f"{THREE} --reward lama2 --name typo")[0]
    assert "is no reward model" in call(copy, "train_ppo.py", f"{THREE} --reward sft --name no_rm")[0]


def test_a_person_ranks_in_place_of_the_simulated_human(copy, call, monkeypatch):
    """What is typed is kept and trained on; the same command goes on where it stopped; how far one agrees with the gold score is printed."""
    fewer_prompts(copy)
    flags = f"{RM} --labeler human --only_human true --batch_size 1 --damaged 0 --human_rankings 4 --answers_per_prompt 3 --name mine"
    typed(monkeypatch)
    assert "no row is in the split train" in call(copy, "train_rm.py", flags)[0]
    typed(monkeypatch, *["3>2>1", "2>1"] * 2, "q")  # whatever does not fit the number of answers is asked again
    code, out = call(copy, "train_rm.py", flags)
    rows = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["labeler"] == "human"]
    assert code == 0 and "You agree with the gold score" in out or "No pair" in out, out
    assert len(rows) >= 2 and {r["split"] for r in rows} == {"train"} and f"{len(rows)} questions ranked, 0 skipped" in out
    assert load_checkpoint(copy / "runs/tiny/mine.pt")["step"] == sum(len(r["tiers"]) > 1 for r in rows), "trained on these alone"
    typed(monkeypatch, *["3>2>1", "2>1"] * 4)
    code, out = call(copy, "train_rm.py", f"{flags} --overwrite")
    again = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["labeler"] == "human"]
    assert code == 0 and again[: len(rows)] == rows and len(again) == 4
    code, out = call(copy, "train_rm.py", f"{flags.replace('mine', 'both').replace('true', 'false')}")
    assert code == 0 and load_checkpoint(copy / "runs/tiny/both.pt")["step"] > 20, "beside the simulated rankings"


def test_two_checkpoints_are_judged_blind(copy, call, monkeypatch):
    """The better answer, of whichever model and in whichever place, is chosen by its gold score: the win rate is that of the gold score."""
    def best(prompt=""):
        question = asked.pop(0)
        gold = [data.gold_score(question["prompt"], r) for r in question["responses"]]
        return "=" if gold[0] == gold[1] else str(1 + gold.index(max(gold)))

    asked, rank_all = [], train_rm.rank_all
    monkeypatch.setattr(train_rm, "rank_all", lambda path, questions, *rest, **about: asked.extend(questions) or rank_all(path, questions, *rest, **about))
    monkeypatch.setattr("builtins.input", best)
    code, out = call(copy, "train_rm.py", "--judge_between pretrain sft --human_rankings 30 --eval_split dev --max_new_tokens 12")
    rate = re.search(r"You prefer sft to pretrain in ([\d.]+) of 30 comparisons", out)
    assert code in (0, None) and rate and f"prefers sft to pretrain in {rate[1]} of them" in out and "1.00 of" in out, out
    assert len({tuple(r["tiers"][0]) for r in rows_of(copy / "runs/tiny/judged.jsonl")}) > 1, "neither place always wins"
    code, again = call(copy, "train_rm.py", "--judge_between pretrain sft --human_rankings 30 --eval_split dev --max_new_tokens 12")
    assert rate[0] in again and "takes two stages" in call(copy, "train_rm.py", "--judge_between sft")[0]


def test_what_is_left_out_is_not_trained_on_and_measured_apart(copy, call):
    fewer_prompts(copy, 200)
    code, out = call(copy, "train_rm.py", f"{RM} --leave_out cake,why --name ood")
    assert code == 0 and re.search(r"subjects left out +\d+", out) and re.search(r"topics left out +\d+", out), out
    source = load_checkpoint(copy / "runs/tiny/ood.pt")["state"]["sources"][0]["source"]
    rows = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["source"] == source]
    about = {split: [data.PROMPTS[r["prompt"]] for r in rows if r["split"] == split] for split in ("train", "dev")}
    assert about["train"] and not any(p.subject == "cake" or p.topic == "why" for p in about["train"])
    assert any(p.subject == "cake" for p in about["dev"]) and any(p.topic == "why" for p in about["dev"])
    assert "no subject or topic" in call(copy, "train_rm.py", f"{RM} --leave_out pie --name pie")[0]


def test_thumbs_are_learned_by_regression(user, call):
    rows = [{"prompt": f"What is thing {i}?", "response": f"{'A good thing' if i % 2 else 'No'}, number {i}.", "label": bool(i % 2), "split": "test" if i % 5 == 0 else "train"}
            for i in range(40)]
    (user / "mine/preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "thumbs up or down" in call(user, "train_rm.py", "--data mine --name thumbs")[0]
    code, out = call(user, "train_rm.py", "--data mine --loss regression --epochs 20 --lr 0.01 --batch_size 8 --name thumbs")
    assert code == 0 and float(re.search(r"preferences of the file +16 +([\d.]+)", out)[1]) > 0.9 and re.search(r" thumb (up|down)\n", out), out
    assert "no comparisons" in call(user, "train_rm.py", "--data mine --loss regression --folds 2 --name thumbs3")[0]
    (user / "mine/preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "a", "chosen": "b", "rejected": "c"}]))
    assert "both thumbs and comparisons" in call(user, "train_rm.py", "--data mine --loss regression --name thumbs2")[0]


def test_a_users_preferences_by_aspect(user, call):
    path = user / "mine/preferences.jsonl"
    rows = [{**r, "aspect": "safety" if i % 2 else "helpful"} for i, r in enumerate(rows_of(path))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for aspect in ("helpful", "safety"):
        code, out = call(user, "train_rm.py", f"--data mine --aspect {aspect} --epochs 1 --batch_size 4")
        assert code == 0 and (user / f"runs/tiny-mine/rm_{aspect}.pt").exists(), out
    code, out = call(user, "train_ppo.py", f"--data mine {PPO} --reward llama2 --name two")
    assert code == 0 and load_checkpoint(user / "runs/tiny-mine/two.pt")["parents"].keys() >= {"rm_helpful.pt", "rm_safety.pt"}, out
    path.write_text("".join(json.dumps({**row, "aspect": "helpful"}) + "\n" for row in rows))
    assert 'no preference has "aspect": "safety"' in call(user, "train_rm.py", "--data mine --aspect safety --name none")[0]


# Each alone must end with another reward model; where that needs other rankings, these are other ones.
RM_KNOBS = ["", "--aspect helpful", "--aspect safety", "--aspect safety --helpful_share 0.5", "--answers_per_prompt 4", "--rankings_per_prompt 2", "--temperature 0.5",
            "--max_new_tokens 6", "--noise 3", "--tie_gap 0", "--flip_rate 0.5", "--position_habit 5", "--start sft", "--leave_out cake,dog,why", "--loss regression",
            "--ties half", "--margin small", "--margin large", "--lm_coef 0", "--damaged 0", "--epochs 2", "--batch_size 9", "--lr 0.02", "--warmup 1", "--weight_decay 3",
            "--dropout 0.3", "--clip_grad 0.01", "--seed 1 --run tiny", "--answers_of ppo", "--start rm", "--start rm --replay 0"]


def try_rm_knobs(folder):
    return try_knobs(folder, "tiny", 40, "train_rm.py", f"{RM} --batch_size 12 --lr 0.01 --warmup 0", RM_KNOBS)


@pytest.fixture(scope="session")
def rm_knobs(tiny):
    return trained("rm_knobs")


def test_every_knob_of_the_reward_model_changes_what_is_learned(rm_knobs):
    assert_each_matters(rm_knobs, RM_KNOBS, lambda folder, name, knob: load_checkpoint(folder / f"runs/tiny/{name}.pt")["fingerprint"])


# ------------------------------------------------------------------------------------------------
# RLAIF
# ------------------------------------------------------------------------------------------------

AI = f"{RM} --labeler ai --ai_rankings 20 --ai_answers 3 --batch_size 12"


def ai_rows(folder):
    return [r for r in rows_of(folder / "runs/tiny/rankings.jsonl") if r["labeler"] == "ai"]


def test_an_ai_labels_in_the_humans_place(copy, call):
    """Trained on soft labels of pairs by the AI alone, in the end measured on the human's rankings; its policy is rlaif.pt."""
    fewer_prompts(copy)
    code, out = call(copy, "train_rm.py", AI)
    rows = ai_rows(copy)
    assert experiment.SCRIPTS["rm_ai"] == "train_rm.py --labeler ai --name rm_ai", "what train_ppo.py --labeler ai runs first where it is missing"
    assert code == 0 and "pairs labelled by the AI" in out and "the same position won in both orders" in out and "The AI agrees with the gold score" in out, out
    assert {len(r["responses"]) for r in rows} <= {1, 2, 3} and {r["split"] for r in rows} == {"train"}
    labels = [p for r in rows for _, _, p in r["pairs"]]
    assert len(labels) > 30 and any(0.01 < p < 0.99 for p in labels), "soft"
    checkpoint = load_checkpoint(copy / "runs/tiny/rm_ai.pt")
    assert checkpoint["parents"].keys() == {"pretrain.pt", "sft.pt", "judge.pt"}
    held_out = [about for about in checkpoint["state"]["sources"] if about["labeler"] == "simulated"]
    assert held_out and not any(r["split"] == "train" for about in held_out for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["source"] == about["source"])
    code, out = call(copy, "train_ppo.py", f"{THREE} --labeler ai")
    assert code == 0 and "rm_ai.pt" in load_checkpoint(copy / "runs/tiny/rlaif.pt")["parents"], out
    assert "stands for --reward rm_ai" in call(copy, "train_ppo.py", f"{THREE} --labeler ai --reward safety")[0]


def test_half_of_the_labels_by_each(copy, call):
    fewer_prompts(copy)
    code, out = call(copy, "train_rm.py", f"{AI.replace('ai ', 'mixed ', 1)} --rankings_per_prompt 4")
    assert code == 0 and "runs/tiny/rm_mixed.pt" in out.replace("\\", "/"), out
    assert len(ai_rows(copy)) == 10
    about = [a["source"] for a in load_checkpoint(copy / "runs/tiny/rm_mixed.pt")["state"]["sources"]]
    human = [r for r in rows_of(copy / "runs/tiny/rankings.jsonl") if r["labeler"] == "simulated" and r["source"] in about and r["split"] == "train"]
    assert len(human) == 2 * sum(p["split"] == "train" for p in data.load_prompts(copy / "runs/tiny/data"))


JUDGE_KNOBS = ["", "--ai_rankings 30", "--ai_answers 2", "--preamble none", "--preamble base", "--preamble brief.txt", "--chain_of_thought false", "--both_orders false", "--judge other",
               "--aspect helpful", "--aspect safety"]


def test_every_knob_of_the_judge_changes_the_labels(copy, call):
    fewer_prompts(copy, 40)
    (copy / "brief.txt").write_text("Please be short, never repeat.\n" + " and so on" * 30)
    code, out = call(copy, "train_sft.py", f"{SMALL['judge'].replace('--name judge', '--name other')} --lr 0.01")
    assert code == 0, out
    seen = {}
    for i, flags in enumerate(JUDGE_KNOBS):
        code, out = call(copy, "train_rm.py", f"{AI} {flags} --name v{i}")
        assert code == 0, f"{flags}: {code} {out[-500:]}"
        digest = load_checkpoint(copy / f"runs/tiny/v{i}.pt")["fingerprint"]
        assert digest not in seen, f"{flags!r} makes no difference to {seen[digest]!r}"
        seen[digest] = flags
        assert all(("notes" in r) == ("thought" not in flags) for r in ai_rows(copy)[-20:]), "the notes are kept with the labels"
    (copy / "brief.txt").write_text("Please be practical.\n")
    assert "trained with other knobs (preamble" in call(copy, "train_rm.py", f"{AI} --preamble brief.txt --name v5")[0], "what counts is the text of the file"
    for lost in ("lost.txt", "of my own" * 50):
        assert "expected none, base, detailed or a text file" in call(copy, "train_rm.py", [*AI.split(), "--preamble", lost, "--name", "v99"])[0]
    (copy / "long.txt").write_text("Please be short. " * 50)
    assert "shorten the preamble" in call(copy, "train_rm.py", f"{AI} --preamble long.txt --name v99")[0]
    assert "is about an AI judge" in call(copy, "train_rm.py", f"{RM} --judge other --name v99")[0]
    assert "has not learned from reviews" in call(copy, "train_rm.py", f"{AI} --judge sft --name v99")[0]


def test_an_ai_rates_without_a_reward_model(copy, call, monkeypatch):
    """Direct RLAIF: what PPO gets is the judge's rating of each text, whitened; the judge stays as it was."""
    told, rate = {}, preferences.AI.rate

    def remember(self, prompts, responses, aspect="overall"):
        ratings = rate(self, prompts, responses, aspect)
        told.update(zip(zip(prompts, responses), ratings))
        return ratings

    monkeypatch.setattr(preferences.AI, "rate", remember)
    code, out = call(copy, "train_ppo.py", f"{THREE} --reward ai")
    checkpoint = load_checkpoint(copy / "runs/tiny/direct.pt")
    assert code == 0 and re.search(r"AI judge rated \d+ different answers in \d+ s", out) and "judge 0." in out, out
    assert checkpoint["parents"].keys() == {"pretrain.pt", "sft.pt", "judge.pt"} and all(-1 <= r <= 1 for r in told.values())
    mean, std = checkpoint["state"]["whitening"]
    score, prompt, text = re.search(r"score ([+-][\d.]+), KL [\d.]+: (.*?) -> (.*)", out).groups()
    assert (told[prompt, text] - mean) / std == pytest.approx(float(score), abs=0.006)
    assert not same(copy / "runs/tiny/direct.pt", copy / "runs/tiny/ppo.pt")
    code, out = call(copy, "train_ppo.py", f"{THREE} --reward ai --preamble none --name other_taste")
    assert code == 0 and not same(copy / "runs/tiny/direct.pt", copy / "runs/tiny/other_taste.pt"), out
    assert "is about an AI judge" in call(copy, "train_ppo.py", f"{THREE} --preamble none --name lost")[0]
    assert "llama2 or the name" in call(copy, "rejection_sampling.py", "--reward ai")[0]
    assert "leaves no training prompt" in call(copy, "train_ppo.py", f"{THREE} --name none --leave_out {','.join(sorted({p.subject for p in data.PROMPTS.values()}))}")[0]


def test_direct_rlaif_that_was_interrupted_ends_like_a_straight_one(copy, call):
    """What the judge has rated is in the checkpoint, so that it is neither asked again nor rated otherwise."""
    flags, run = f"--config tiny {THREE.replace('--steps 3', '--steps 30')} --reward ai", copy / "runs/tiny"
    interrupt(start(copy, "train_ppo.py", *flags.split(), "--name", "broken"), run / "broken.jsonl", rows=3)
    rated = load_checkpoint(run / "broken.pt")["state"]["rated"]
    assert len(rated) > 20
    for again in ("broken --resume", "straight"):
        code, out = call(copy, "train_ppo.py", f"{flags} --name {again}")
        assert code == 0, out
    ends = [load_checkpoint(run / f"{name}.pt")["state"]["rated"] for name in ("broken", "straight")]
    assert same(run / "broken.pt", run / "straight.pt") and rated.items() <= ends[0].items() and ends[0] == ends[1]


def test_a_judge_behind_a_server_labels_a_users_answers(user, call, server):
    """Each comparison is asked for in both orders and bought once, and so are the notes on each answer; the file's own preferences are what the result is measured on."""
    def the_longer_one(sent):
        if not (answers := re.search("Answer 1: (.*)\n\nAnswer 2: (.*)\n\nWhich", sent["prompt"], re.S)):
            return completion({}, "Well")[1]
        one, two = answers.groups()
        return completion({"1": -1.0, "2": -1.0 + 0.1 * (len(two) - len(one))})[1]

    server.script = [(200, the_longer_one, {})]
    flags = f"--data mine --run tiny-mine {RM} --labeler ai --ai_rankings 6 --damaged 0.5 --eval_split test"
    assert "name a model behind a server" in call(user, "train_rm.py", flags)[0]
    code, out = call(user, "train_rm.py", f"{flags} --judge_url {server.url}")
    labelled = [r for r in rows_of(user / "runs/tiny-mine/rankings.jsonl") if r["labeler"] == "ai"]
    assert code == 0 and "preferences of the file" in out and "pairs labelled by the AI" in out, out
    assert len(labelled) == 6 and all((p > 0.5) == (len(r["responses"][i]) > len(r["responses"][j])) for r in labelled for i, j, p in r["pairs"] if p != 0.5)
    asked, calls = len(server.seen), rows_of(user / "runs/tiny-mine/judge_calls.jsonl")
    compared = {(str(r["prompt"]), *sorted((r["responses"][i], r["responses"][j]))) for r in labelled for i, j, _ in r["pairs"]}
    noted = {(str(r["prompt"]), text) for r in labelled for text in r["responses"]}
    assert asked == len(calls) == len({row["asked"]["prompt"] for row in calls}) == 2 * len(compared) + len(noted)
    (user / "runs/tiny-mine/rankings.jsonl").unlink()
    code, out = call(user, "train_rm.py", f"{flags} --judge_url {server.url} --overwrite")
    assert code == 0 and len(server.seen) == asked, "nothing was bought twice"


@pytest.mark.parametrize("loss", ["bradley_terry", "regression"])
def test_an_answer_about_which_the_judge_is_silent_has_no_place(user, call, server, loss):
    """A folder of prompts: the AI labels what is held out, too, and of some answers it never says whether they are better."""
    def silent_about_some(sent):
        one, two = map(len, re.search("Answer 1: (.*)\n\nAnswer 2: (.*)\n\nWhich", sent["prompt"], re.S).groups())
        return completion({"so": -0.1} if one % 3 == 0 or two % 3 == 0 else {"1": -1.0, "2": -1.0 + 0.1 * (two - one)})[1]

    server.script = [(200, silent_about_some, {})]
    (user / "mine/preferences.jsonl").rename(user / "mine/sft.jsonl")
    rows = [{"prompt": r["chosen"].split("Human: ")[1].split("\n")[0], "response": r["chosen"].split("Assistant:")[-1], "split": r["split"]} for r in rows_of(user / "mine/sft.jsonl")]
    (user / "mine/sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out = call(user, "train_rm.py", f"--data mine --run tiny-mine {RM} --labeler ai --ai_rankings 10 --loss {loss} --eval_split test --judge_url {server.url} --chain_of_thought false")
    labelled = [r for r in rows_of(user / "runs/tiny-mine/rankings.jsonl") if r["labeler"] == "ai"]
    assert any(0 < sum(map(len, r["tiers"])) < len(r["responses"]) for r in labelled), "some are in no tier"
    assert code == 0 and "labels by the AI" in out, out


def test_a_run_has_one_tokenizer(copy, call):
    """A variant of the pretraining with another vocabulary would break every other stage of the run."""
    flags, before = SMALL["pretrain"], (copy / "runs/tiny/tokenizer.json").read_text()
    code, _ = call(copy, "train_pretrain.py", f"{flags} --vocab_size 400 --name small_words")
    assert "one tokenizer" in code and "--run NAME" in code and (copy / "runs/tiny/tokenizer.json").read_text() == before
    code, out = call(copy, "train_pretrain.py", f"{flags} --steps 1 --name short")
    assert code == 0, out


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "ppo"])
def test_gradients_are_clipped_but_not_with_0(copy, call, stage):
    """--clip_grad 0 trains like a limit that no gradient reaches, and unlike one that all of them reach."""
    for limit in ("0", "1e9", "1e-4"):
        code, out = call(copy, script(stage), f"{SMALL[stage]} --clip_grad {limit} --name clip{limit}")
        assert code == 0, out
    free, far, near = (copy / f"runs/tiny/clip{limit}.pt" for limit in ("0", "1e9", "1e-4"))
    assert same(free, far) and not same(free, near)


def test_the_final_table_keeps_each_answer_with_its_prompt(copy, call, monkeypatch):
    """Several answers a prompt: those that the annotator ranks, to test the reward model with, are all to the same prompt."""
    sample, label, seen = train_ppo.sample_with_kl, train_ppo.SimulatedHuman.label, []

    def tagged(policy, reference, enc, prompts, *rest):
        answers, *others = sample(policy, reference, enc, prompts, *rest)
        return [(f"{i} {p}", *a[1:]) for i, (p, a) in enumerate(zip(prompts, answers))], *others

    def watched(self, prompts, responses, *rest):
        seen.extend(zip(prompts, responses))
        return label(self, prompts, responses, *rest)

    monkeypatch.setattr(train_ppo, "sample_with_kl", tagged)
    monkeypatch.setattr(train_ppo.SimulatedHuman, "label", watched)
    code, out = call(copy, "train_ppo.py", f"{SMALL['ppo']} --name watched")
    assert code == 0 and seen, out
    assert all(len(responses) == 4 and {r.split(" ", 1)[1] for r in responses} == {p} for p, responses in seen)


def test_an_adaptive_beta_needs_a_start_and_time(copy, call):
    for flags in ("--kl_coef 0", "--kl_horizon 7"):
        assert "--kl_target moves beta by factors" in call(copy, "train_ppo.py", f"{PPO} --kl_target 1 {flags} --name adaptive")[0]


def test_ppo_on_a_users_preferences(mine):
    rows = rows_of(mine / "runs/tiny-mine/ppo.jsonl")
    assert abs(rows[0]["kl_full"]) < 1e-5 and len(rows) == 2 and all(r["gold"] is None for r in rows)
    shown = printed(mine).split("7 test prompts")[1]
    assert "win rate by reward model" in shown and "gold" not in shown, "there is no gold score outside the tiny world"
    assert not (mine / "runs/tiny-mine/rankings.jsonl").exists() and not (mine / "runs/tiny-mine/data").exists()
    assert sorted(p.name for p in (mine / "mine").iterdir()) == ["preferences.jsonl"], "a user's folder is only read"


def test_special_words_in_a_users_text_stay_text(mine):
    """"<|endoftext|>" in the answers did not become an EOS anywhere: text in, the same text out, and no special id inside."""

    enc = data.load_encoding(mine / "runs/tiny-mine/tokenizer.json")
    rows = data.load_sft(mine / "mine")
    assert all("<|endoftext|>" in row["response"] for row in rows)
    for row in rows:
        ids = data.encode_response(enc, row["response"])
        assert ids.count(enc.eot_token) == 1 and ids[-1] == enc.eot_token and data.decode_response(enc, ids) == row["response"]


@pytest.fixture
def user(mine, tmp_path):
    """A copy of that folder without its PPO stage."""
    shutil.copytree(mine / "runs", tmp_path / "runs")
    shutil.copytree(mine / "mine", tmp_path / "mine")
    return tmp_path


@pytest.mark.parametrize("stage, flags", [("sft", "--batch_size 2 --epochs 12 --dropout 0.2 --eval_every 3 --max_new_tokens 8"),
                                          ("ppo", PPO + " --steps 40 --kl_target 0.1")])
def test_ctrl_c_and_resume_give_the_weights_of_an_uninterrupted_run(user, call, stage, flags):
    """The interrupted one is a process that gets the signal after a few steps; it is continued in this one."""
    flags, run = ["--data", "mine", *flags.split()], user / "runs/tiny-mine"
    process = start(user, script(stage), *flags, "--name", "broken")
    out = interrupt(process, run / "broken.jsonl", rows=3)
    assert f"python {ROOT / f'train_{stage}.py'}" in out and "--resume" in out, "it says how to continue"
    stopped = load_checkpoint(run / "broken.pt")
    assert not stopped["finished"] and stopped["step"] >= 3
    code, _ = call(user, script(stage), [*flags, "--name", "broken"])
    assert f"stopped at step {stopped['step']}" in code and "--resume" in code
    for again in (["broken", "--resume"], ["straight"]):
        code, out = call(user, script(stage), [*flags, "--name", *again])
        assert code == 0, out
    assert same(run / "broken.pt", run / "straight.pt")
    assert (run / "broken.jsonl").read_text() == (run / "straight.jsonl").read_text()


def test_ctrl_c_in_a_missing_parent_names_the_command_that_was_typed(user):
    process = start(user, "train_sft.py", "--data", "mine", "--run", "fresh")
    out = interrupt(process, user / "runs/fresh/pretrain.jsonl", rows=2)
    assert f"python {ROOT / 'train_sft.py'} --data mine --run fresh --resume" in out
    assert load_checkpoint(user / "runs/fresh/pretrain.pt")["step"] >= 2 and not (user / "runs/fresh/sft.pt").exists()


def files_of(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def table_of(out):
    """The table that --explain prints as {column: its numbers or words}; the rest of what it prints in one line."""
    head, rule, *rows = out[out.index("\ntoken ") + 1 : out.index("\n\nHow it adds up")].splitlines()
    columns = dict(zip(["log p", "reference", "KL", "reward", "value", "return", "advantage", "whitened", "new log p", "ratio"],
                       zip(*(map(float, row[len(head) - 10 * 11 :].split()[:-1]) for row in rows))))
    return columns | {"branch": [row.split()[-1] for row in rows]}, " ".join(out.split())


def test_a_step_is_explained_token_by_token(copy, call, monkeypatch):
    """Numbers that add up as they are printed, half of the last digit a token; the picture is all that is written; colors for a terminal alone."""
    run, prompts, rollout = copy / "runs/tiny", [], train_ppo.rollout
    monkeypatch.setattr(train_ppo, "rollout", lambda *what: prompts.append(what[5]) or rollout(*what))
    before = files_of(run)
    code, out = call(copy, "train_ppo.py", "--explain")
    after, (c, said) = files_of(run), table_of(out)
    assert code == 0 and "\033" not in out and {p: x for p, x in after.items() if p.name != "ppo.explain.png"} == before, out
    assert after[run / "ppo.explain.png"][1].startswith(b"\x89PNG") and "ppo.pt after step 3, and one more step in memory: 16 answers, 2 optimizer steps" in said
    n, checkpoint = len(c["KL"]), load_checkpoint(run / "ppo.pt")
    gamma, lam, beta, close = 1.0, 0.95, checkpoint["state"]["kl_coef"], lambda x, tokens=1: pytest.approx(x, abs=0.0006 * (tokens + 2))
    earned, kl, total, column = map(float, re.search(rf"score ([-.\d]+) - beta {beta:g} x KL ([-.\d]+) = ([-.\d]+); the column sums to ([-.\d]+)\.", said).groups())
    assert total == column == close(sum(c["reward"]), n) and kl == close(sum(c["KL"]), n) and total == close(earned - beta * kl)
    assert list(c["KL"]) == [close(a - b) for a, b in zip(c["log p"], c["reference"])] and any(c["KL"]), "three steps from the SFT model"
    assert list(c["reward"][:-1]) == [close(-beta * x) for x in c["KL"][:-1]] and c["reward"][-1] == close(earned - beta * c["KL"][-1])
    deltas = [r + gamma * v2 - v for r, v, v2 in zip(c["reward"], c["value"], [*c["value"][1:], 0])]
    assert list(c["advantage"]) == [close(d + gamma * lam * a, 3) for d, a in zip(deltas, [*c["advantage"][1:], 0])]
    assert list(c["return"]) == [close(a + v) for a, v in zip(c["advantage"], c["value"])]
    mean, std = map(float, re.search(r"- mean ([-.\d]+)\) / standard deviation ([-.\d]+) = [-.\d]+, both over all", said).groups())
    assert list(c["whitened"]) == [pytest.approx((a - mean) / std, abs=0.01 / std) for a in c["advantage"]]
    assert list(c["ratio"]) == [pytest.approx(math.exp(new - old), rel=0.002, abs=0.001) for new, old in zip(c["new log p"], c["log p"])] and set(c["ratio"]) != {1.0}
    clipped = [(r > 1.2 and a > 0) or (r < 0.8 and a < 0) for r, a in zip(c["ratio"], c["whitened"])]
    assert c["branch"] == ["clipped" if x else "plain" for x in clipped] and f"of these {n} tokens {sum(clipped)} clipped" in said
    (asked,), training = prompts, {p["prompt"] for p in data.load_prompts(run / "data") if p["split"] == "train"}
    assert asked[0] == "A dog is" and len(asked) == 16 and set(asked[1:]) <= training
    assert earned == -1 if "cut off before its EOS: -1" in said else f"= {earned:.3f}, both over answers of the SFT model" in said

    monkeypatch.setattr(train_ppo, "draw_tokens", lambda *rest: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, colored = call(copy, "train_ppo.py", "--explain")
    assert colored != out == re.sub(r"\033\[\d+m", "", colored), "the same step again, the same figures in color"
    monkeypatch.setenv("NO_COLOR", "1")
    assert call(copy, "train_ppo.py", "--explain")[1] == out


def test_explain_takes_what_the_checkpoint_was_trained_with(user, call, monkeypatch):
    """Knobs that are not given are the checkpoint's, some may be given anew for the step; a critic on the policy, a prompt that is in no list."""
    drawn = []
    monkeypatch.setattr(train_ppo, "draw_tokens", lambda *what: drawn.append(what))
    flags = "--data mine --critic shared --kl_coef 0.3 --whiten_advantages false --name other"
    code, out = call(user, "train_ppo.py", f"{PPO} --lr 0.02 {flags}")
    assert code == 0, out
    before = files_of(user / "runs")
    code, out = call(user, "train_ppo.py", ["--data", "mine", "--name", "other", "--explain", "--prompt", "Who $ate$ my cake?"])
    assert code == 0 and "8 answers, 2 optimizer steps at the peak learning rate 0.02" in out and "beta 0.3 x" in out and "whitened   no such column" in out, out
    assert "prompt: Who $ate$ my cake?" in out and drawn[0][0].name == "other.explain.png" and len(drawn[0][1]) == len(drawn[0][2]["KL"])
    code, out = call(user, "train_ppo.py", f"{flags} --explain --ppo_epochs 4 --clip 0.01")
    assert code == 0 and "8 optimizer steps" in out and "ratio is above 1.01" in " ".join(out.split()) and 1.0 in drawn[1][2]["branch"], out
    assert "kl_coef 0.3 -> 0.2" in call(user, "train_ppo.py", "--data mine --name other --explain --kl_coef 0.2")[0]
    assert files_of(user / "runs") == before


@pytest.mark.parametrize("args, hint", [("--explain --prompt " + "dog" * 60, "--prompt: expected a text of at most 52 tokens"), ("--explain --prompt=", "at most 52 tokens"),
                                        ("--prompt cats", "--prompt is for --explain"), ("--explain --overwrite", "--explain only looks"),
                                        ("--explain --prompt cats --kl_coef 0 --name none", "train_ppo.py --kl_coef 0 --name none (")])
def test_nothing_to_explain_is_one_sentence(tiny, call, args, hint):
    code, out = call(tiny, "train_ppo.py", args)
    assert code == 2 and hint in out.splitlines()[-1] and not (tiny / "runs/tiny/ppo.explain.png").exists()


# Flags under which each knob must matter, in two steps that move the policy far; then the knob's other value.
PPO_KNOBS = ["", "--steps 3", "--batch_size 12", "--minibatch_size 8", "--ppo_epochs 1", "--max_new_tokens 6", "--temperature 0.7", "--lr 0.002",
         "--critic_lr 0.02", "--warmup 2", "--clip_grad 0.01", "--kl_coef 0", "--kl_target 0.001", "--kl_target 0.001 --kl_horizon 100",
         "--gamma 0.5", "--lam 0.2", "--clip 0", "--value_clip 0", "--whiten_advantages false", "--critic shared", "--critic shared --value_coef 3",
         "--eos_penalty 0", "--ptx_coef 1", "--eos_penalty 0 --whitening batch", "--seed 1"]
FAR = f"--data mine --run tiny-mine {PPO} --steps 2 --ppo_epochs 3 --lr 0.02 --critic_lr 0.01"


def try_ppo_knobs(folder):
    return try_knobs(folder, "mine", None, "train_ppo.py", FAR, PPO_KNOBS)


@pytest.fixture(scope="session")
def ppo_knobs(mine):
    return trained("ppo_knobs")


def test_every_knob_of_ppo_changes_what_is_learned(ppo_knobs):
    """No dead flags: each one alone ends with other weights (policy or critic) than all the others."""
    def digest(folder, name, knob):
        checkpoint = load_checkpoint(folder / f"runs/tiny-mine/{name}.pt")
        return checkpoint["fingerprint"], tuple(float(x.double().sum()) for x in checkpoint.get("critic", {}).values())

    assert_each_matters(ppo_knobs, PPO_KNOBS, digest)


def test_small_micro_batches_learn_the_same(user, call):
    """Answers of different lengths: dividing by the tokens of each part instead of the whole would show at once."""
    for n in (1, 3, 8):
        code, out = call(user, "train_ppo.py", f"--data mine {PPO} --minibatch_size 8 --micro_batch_size {n} --name micro{n}")
        assert code == 0, out
    whole = weights(user / "runs/tiny-mine/micro8.pt")
    moved = max((whole[k] - w).abs().max() for k, w in weights(user / "runs/tiny-mine/sft.pt").items())
    for n in (1, 3):
        part = weights(user / f"runs/tiny-mine/micro{n}.pt")
        assert max((whole[k] - part[k]).abs().max() for k in whole) < 0.02 * moved
    rows = [rows_of(user / f"runs/tiny-mine/micro{n}.jsonl") for n in (1, 3, 8)]
    for key in set(rows[0][0]) - {"gold"}:
        assert [r[0][key] for r in rows[:2]] == [pytest.approx(rows[2][0][key], rel=1e-3, abs=1e-5)] * 2, key


def test_reward_model_is_compared_with_what_costs_nothing(user, call):
    code, out = call(user, "train_rm.py", "--data mine --folds 2 --name folded")
    assert code == 0, out
    assert "fold 2 of 2" in out and "bag of words" in out and "shorter answer wins" in out


def test_pretraining_continues_on_new_text(tiny, call, tmp_path):
    """Prints the held-out loss on the new and on the old text, before and after; shape and tokenizer come from the checkpoint."""
    (tmp_path / "sea").mkdir()
    (tmp_path / "sea/pretrain.txt").write_text("The sea is deep and the ship sails on. <|endoftext|>\n" * 200)
    code, out = call(tmp_path, "train_pretrain.py", ["--init", tiny / "runs/tiny/pretrain.pt", "--data", "sea", "--steps", 30, "--lr", 0.01,
                                                     "--n_embd", 64])
    assert code == 0, out
    losses = {name: tuple(map(float, re.search(rf"{name} text +([\d.]+) +([\d.]+)", out).groups())) for name in ("new", "old")}
    assert losses["new"][1] < losses["new"][0] - 0.5, "it learns the new text"
    assert losses["old"][0] == pytest.approx(rows_of(tiny / "runs/tiny/pretrain.jsonl")[-1]["test_loss"], abs=0.01), "it starts where the old one ended"
    folder = tmp_path / "runs/tiny-sea"
    assert load_checkpoint(folder / "pretrain.pt")["model_config"] == load_checkpoint(tiny / "runs/tiny/pretrain.pt")["model_config"]
    assert (folder / "tokenizer.json").read_bytes() == (tiny / "runs/tiny/tokenizer.json").read_bytes()


# ------------------------------------------------------------------------------------------------
# Talking to a checkpoint, looking at the data
# ------------------------------------------------------------------------------------------------


def test_every_checkpoint_answers(tiny, call):
    answers = [command(tiny, "model.py", "runs/tiny/ppo.pt", "--prompt", "A dog is", "--max_new_tokens", "8")]
    for flags in ("--seed 0", "--seed 1", "--temperature 0 --seed 0", "--temperature 0 --seed 1"):
        code, out = call(tiny, "model.py", ["runs/tiny/ppo.pt", "--prompt", "A dog is", "--max_new_tokens", "8", *flags.split()])
        assert code == 0  # what so small a model says may be nothing
        answers.append(out)
    assert answers[0] == answers[1] != answers[2] and answers[3] == answers[4]
    for stage in ("pretrain", "sft"):
        assert call(tiny, "model.py", [f"runs/tiny/{stage}.pt", "--prompt", "A dog is"])[0] == 0


def test_a_reward_model_scores(tiny, call):
    out = command(tiny, "model.py", "runs/tiny/rm.pt", "--prompt", "A dog is", "--response", "man's best friend.")
    assert re.fullmatch(r"score [+-]\d+\.\d{3}\s*", out)
    assert call(tiny, "model.py", ["runs/tiny/rm.pt", "--prompt", "A dog is", "--response", "a cat."])[1] != out
    assert "--response" in call(tiny, "model.py", ["runs/tiny/rm.pt", "--prompt", "A dog is"])[0]
    assert "give both" in call(tiny, "model.py", ["runs/tiny/rm.pt", "--response", "a cat."])[0]
    assert "reward model" in call(tiny, "model.py", ["runs/tiny/ppo.pt", "--prompt", "A dog is", "--response", "x"])[0]


def test_a_chat_reads_prompts_until_the_end_of_input(tiny):
    process = subprocess.run([sys.executable, ROOT / "model.py", "runs/tiny/ppo.pt", "--max_new_tokens", "4"], cwd=tiny, env=ENVIRONMENT,
                             input="A dog is\nWhat is a cat?\n", capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == 0 and process.stdout.count("prompt>") == 3 and "Traceback" not in process.stderr


def test_the_data_are_shown_as_the_model_sees_them(tiny, mine, call):
    """The embedded world before and after its run is made, and a user's folder; the mask is under its own tokens."""
    out = command(tiny, "data.py", "--config", "tiny")
    assert "from runs" in out and "rankings.jsonl, line 1" in out
    for name in ("pretrain.txt", "sft.jsonl", "prompts.jsonl"):
        assert name in out
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  tokens    <|user|>"))
    shown = [(piece.start(), piece.group()) for piece in re.finditer(r"<\|\w+\|>|[^|]+", lines[at][12:])]
    answer = next(i for i, (_, piece) in enumerate(shown) if piece == "<|assistant|>") + 1
    marks = lines[at + 1][12:]
    assert len(shown) == len(marks.split()) and all(marks[place] == str(int(i >= answer)) for i, (place, _) in enumerate(shown))
    code, out = call(mine, "data.py", "--data mine")
    assert code == 0 and "^" in out and "chosen answers of the preferences" in out and out.isascii() and len(out.splitlines()) < 70
    code, out = call(mine, "data.py", "--config tiny")
    assert code == 0 and "not there yet" in out and not (mine / "runs/tiny").exists(), "looking makes no run"


# ------------------------------------------------------------------------------------------------
# A user's mistakes: one sentence that says what would be right
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script, args, hint", [
    ("train_sft.py", "--config tiny --lrr 3", "did you mean --lr?"),
    ("train_ppo.py", "--config tinny", "did you mean tiny?"),
    ("train_pretrain.py", "--steps many", "int"),
    ("train_pretrain.py", "--data nowhere", "no such folder"),
    ("train_rm.py", "--config small", "--data FOLDER"),
    ("train_pretrain.py", "--data broken", "pretrain.jsonl, line 2"),
    ("train_pretrain.py", "--data empty", "the file is empty"),
    ("train_pretrain.py", "--init broken/pretrain.jsonl --run new", "not a checkpoint"),
    ("train_pretrain.py", "--n_embd 33 --n_head 2 --steps 1", "--n_embd 33 must be a multiple of --n_head 2"),
    ("model.py", "broken/pretrain.jsonl --prompt hello", "not a checkpoint"),
    ("model.py", "nothing.pt --prompt hello", "no such checkpoint"),
    ("data.py", "--data nowhere", "no such folder"),
    ("data.py", "--data broken", "pretrain.jsonl, line 2"),
    ("data.py", "--config small", "--data FOLDER"),
])
def test_a_mistake_ends_in_one_sentence(tmp_path, call, script, args, hint):
    (tmp_path / "broken").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken/pretrain.jsonl").write_text('{"text": "fine"}\n{"content": "no text"}\n')
    (tmp_path / "empty/pretrain.txt").write_text("")
    code, out = call(tmp_path, script, args)
    message = code if isinstance(code, str) else out
    assert code not in (0, None) and hint in message and len(message.strip().splitlines()) == 1
    if not isinstance(code, str):
        assert code == 2


@pytest.mark.parametrize("script, args, hint", [("train_ppo.py", ["--kl_coeff", "3"], "did you mean --kl_coef?"), ("data.py", ["--data", "nowhere"], "no such folder")])
def test_a_mistake_on_a_real_command_line(tmp_path, script, args, hint):
    """The same through a process: an exit code that is not 0, one line on the error output, no traceback."""
    process = start(tmp_path, script, *args)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2) and hint in err and len(err.strip().splitlines()) == 1 and out == ""


# What is trained beside the tests, in this order; each also names the fixture that waits for it.
JOBS = {"tiny": train_tiny, "mine": train_mine, "rs_knobs": try_rs_knobs, "rm_knobs": try_rm_knobs, "ppo_knobs": try_ppo_knobs}
