"""What test_pipeline.py, test_rankings.py and test_own_data.py share: commands as a user types them, and
runs that are made once, beside the other tests, and then looked at or copied.

runs/tiny (the tiny world, every stage by its own command) and runs/tiny-mine (a user's folder of preferences,
where train_ppo.py has to train its missing parents first). What needs no process of its own calls a script's
main() here, for importing torch is most of the time of a short command.
"""
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOMS, ROOT, leave_reports_out, run_lines

import lab.run
from lab.cli import run_main
from lab.records import fingerprint_of, load_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}

# Flags for small and quick stages.
PRETRAIN = ("--n_layer 1 --n_embd 32 --n_head 2 --vocab_size 500 --block_size 64 --steps 12 --batch_size 4 "
            "--warmup 2")
SFT = "--epochs 1 --batch_size 100 --max_new_tokens 12 --eval_split dev"
ASK = "--questions 120 --held_out_rankings 1 --answers_per_prompt 3 --max_new_tokens 12"
RM = "--epochs 1 --batch_size 40 --eval_split dev"
THREE = ("--steps 3 --batch_size 16 --minibatch_size 8 --micro_batch_size 8 --max_new_tokens 12 "
         "--eval_every 2 --eval_split dev")
ROUNDS = ("--answers_per_prompt 3 --epochs 1 --batch_size 100 --max_new_tokens 12 --eval_answers 2 "
          "--eval_split dev")
PPO = "--steps 2 --batch_size 8 --minibatch_size 4 --micro_batch_size 4 --max_new_tokens 8 --warmup 0"
SMOKE = "--config smoke --run tiny --dtype float32"  # a few steps, where a plain command looks for them
SMALL = {
    "pretrain": f"train_pretrain.py {SMOKE}",
    "sft": f"train_sft.py {SMOKE}",
    "judge": f"train_sft.py {SMOKE} --reviews 200 --block_size 400 --name judge",
    "rankings": f"preferences.py {SMOKE}",
    "rm": f"train_rm.py {SMOKE}",
    "ppo": f"train_ppo.py {SMOKE}",
    "rs.2": f"rejection_sampling.py {SMOKE}",
    "rankings.ppo": f"preferences.py {SMOKE} --answers_of ppo",
    "rm.2": f"train_rm.py {SMOKE} --start rm --rankings rankings.ppo --damaged 0.5 --name rm.2",
}
COLLECTIONS = ("rankings", "rankings.ppo")
MODELS = [stage for stage in SMALL if stage not in COLLECTIONS]


# ------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------


def start(folder, line):
    """A command in that folder as its own process."""
    words = line.split() if isinstance(line, str) else list(map(str, line))
    return subprocess.Popen([sys.executable, ROOT / words[0], *words[1:]], cwd=folder, env=ENVIRONMENT,
                            text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupt(process, file, rows):
    """Ctrl-C as soon as a file has so many rows; returns what was printed. The process must end with 130 and
    without a traceback."""
    deadline = time.time() + 60
    while process.poll() is None and time.time() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= rows:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, out + err
    return out


def command(folder, line, code=0):
    """Run a command as its own process; returns what it printed. It must end with that exit code."""
    process = start(folder, line)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, f"{line} ended with {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    assert "Traceback" not in err, err
    return out + err


@pytest.fixture
def call(monkeypatch, capsys):
    """call(folder, line): a script's main() inside this process. Returns (exit code or message, what it
    printed)."""
    def draw(file, *rest):  # drawing takes longest
        file.write(b"no picture")

    monkeypatch.setattr(lab.run, "picture", draw)

    def run(folder, line):
        words = line.split() if isinstance(line, str) else list(map(str, line))
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        script = words[0].removesuffix(".py")
        try:
            run_main(importlib.import_module(ROOMS.get(script, script)).main)
            code = 0
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code or 0, captured.out + captured.err

    return run


@pytest.fixture
def done(call):
    """done(folder, line): the same of a command that must end well. Returns what it printed."""
    def run(folder, line):
        code, out = call(folder, line)
        assert code == 0, f"{line}: {code}\n{out[-2000:]}"
        return out

    return run


@pytest.fixture
def learned(done, monkeypatch):
    """learned(folder, line): the same where only what is learned is looked at: no report at the end."""
    def run(folder, line):
        with monkeypatch.context() as patch:
            leave_reports_out(patch)
            return done(folder, line)

    return run


@pytest.fixture
def refused(call):
    """refused(folder, line): the same of a command that must not. Returns its sentence, in one line."""
    def run(folder, line):
        code, out = call(folder, line)
        message = code if isinstance(code, str) else out
        assert code, f"{line} did not complain\n{out[-1000:]}"
        return " ".join(message.split())

    return run


# ------------------------------------------------------------------------------------------------
# What a run holds
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(call, monkeypatch):
    """stopped(folder, line, rows): Ctrl-C in this process as soon as so many steps are logged; the command
    must end with 130. Returns what it printed."""
    def run(folder, line, rows=3):
        log = lab.run.Stage.log

        def log_and_stop(self, *rest, **more):
            log(self, *rest, **more)
            if len(self.rows) == rows:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(lab.run.Stage, "log", log_and_stop)
            code, out = call(folder, line)
        assert code == 130 and "nothing is lost" in out, out
        return out

    return run


def weights(path):
    return load_checkpoint(path)["model"]


def same(a, b):
    """Whether two checkpoints hold the same weights, bit for bit."""
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def flat(text):
    """A text without its line breaks, for what is wrapped on the way to the terminal."""
    return " ".join(text.split())


def fewer_prompts(folder, n, held_out=None):
    """Shorten a run's list of prompts and what is demonstrated of them, so that collecting takes no time:
    about n of each split, or so many of the two that are held out."""
    path = folder / "runs/tiny/data/prompts.jsonl"
    rows, kept = rows_of(path), []
    for split in ("train", "dev", "test"):
        some = [row for row in rows if row["split"] == split]
        wanted = n if split == "train" else held_out or n
        kept += some[:: max(1, len(some) // wanted)]
    asked = {row["prompt"]: row for row in kept}
    demonstrations = path.with_name("sft.jsonl")
    write_rows(path, kept)
    write_rows(demonstrations, [row for row in rows_of(demonstrations) if row["prompt"] in asked])
    accept_data(folder)
    return asked


def accept_data(folder):
    """The models of a run shall have learned from its data as they are now."""
    run = folder / "runs/tiny"
    for path in run.glob("*.pt"):
        checkpoint = torch.load(path, weights_only=True)
        for key in [key for key in checkpoint["parents"] if key.startswith("data/")]:
            checkpoint["parents"][key] = fingerprint_of(run / key)
        torch.save(checkpoint, path)


# ------------------------------------------------------------------------------------------------
# What is trained beside the tests
# ------------------------------------------------------------------------------------------------

# Knobs of each script; each alone must end with something else than all the others.
PPO_KNOBS = [
    "", "--steps 3", "--batch_size 12", "--minibatch_size 8", "--ppo_epochs 1", "--max_new_tokens 6",
    "--temperature 0.7", "--lr 0.002", "--critic_lr 0.02", "--warmup 2", "--clip_grad 0.01", "--kl_coef 0",
    "--kl_target 0.001", "--kl_target 0.001 --kl_horizon 100", "--gamma 0.5", "--lam 0.2", "--clip 0",
    "--value_clip 0", "--whiten_advantages false", "--critic shared", "--critic shared --value_coef 3",
    "--eos_penalty 0", "--ptx_coef 1", "--eos_penalty 0 --score_scale batch", "--seed 1 --run tiny",
    "--start rs.2", "--leave_out dog,why", "--reward rm.2",
]
RM_KNOBS = [
    "", "--aspect safety", "--aspect safety --helpful_share 0.5", "--rankings rankings.ppo",
    "--rankings rankings rankings.ppo", "--limit 60", "--start sft", "--leave_out cake,dog,why",
    "--loss regression", "--ties half", "--margin small", "--margin large", "--lm_coef 0", "--damaged 0",
    "--epochs 2", "--batch_size 9", "--lr 0.02", "--warmup 1", "--weight_decay 3", "--dropout 0.3",
    "--clip_grad 0.01", "--seed 1 --run tiny", "--start rm --rankings rankings.ppo",
    "--start rm --rankings rankings.ppo --replay 0",
]
RS_KNOBS = [
    "", "--answers_per_prompt 4", "--temperature 0.5", "--max_new_tokens 9", "--epochs 2", "--batch_size 5",
    "--lr 0.02", "--warmup 1", "--weight_decay 3", "--clip_grad 0.01", "--seed 1 --run tiny", "--reward rm",
    "--rounds 2", "--rounds 2 --start previous", "--rounds 2 --pool last",
    "--rounds 2 --start previous --pool last", "--rounds 2 --refresh_reward_model false",
]
ASK_KNOBS = [
    "", "--questions 31", "--held_out_rankings 2", "--answers_per_prompt 4", "--answers_of ppo",
    "--answers_of pretrain", "--temperature 0.5", "--max_new_tokens 6", "--noise 3", "--tie_gap 0",
    "--flip_rate 0.5", "--position_habit 5", "--seed 1 --run tiny", "--aspect helpful", "--aspect safety",
]


JUDGE_KNOBS = [
    "", "--questions 30", "--answers_per_prompt 2", "--preamble none", "--preamble base",
    "--preamble brief.txt", "--chain_of_thought false", "--both_orders false", "--judge other",
    "--aspect helpful", "--aspect safety",
]
AI = f"{ASK} --labeler ai --questions 20"


def train_tiny(folder):
    """A finished runs/tiny of fewer prompts and less text; the whole data in whole/, and in ppo.out and so on
    what each stage printed."""
    for stage, line in SMALL.items():
        [(code, out)] = run_lines(folder, [line], pictures=True)
        assert code == 0, f"{stage}: {code} {out[-2000:]}"
        (folder / f"{stage}.out").write_text(out, encoding="utf-8")
        if stage == "pretrain":
            shutil.copytree(folder / "runs/tiny/data", folder / "whole")
            fewer_prompts(folder, 120, held_out=40)


def train_mine(folder):
    """HH-style preferences in mine/ and a finished runs/tiny-mine, whose SFT and reward model train_ppo.py
    trained."""
    (folder / "mine").mkdir()
    rows = []
    for i in range(40):
        more = " Really, I mean it." * 20 if i == 5 else ""
        said = f"\n\nHuman: What is thing {i}?{more}\n\nAssistant:"
        if i == 7:
            said += " Which one?\n\nHuman: The <|endoftext|> one, <|pad|> <|user|>.\n\nAssistant:"
        rows.append({"chosen": f"{said} A good <|endoftext|> thing, number {i}.",
                     "rejected": f"{said} No{' idea' * (i % 4)}.",
                     "split": "test" if i % 5 == 0 and i != 5 else "train"})
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    write_rows(folder / "mine/preferences.jsonl", rows)
    lines = [f"train_pretrain.py --data mine {PRETRAIN}", f"train_ppo.py --data mine {PPO}"]
    out = ""
    for code, said in run_lines(folder, lines):
        assert code == 0, f"{code} {said[-2000:]}"
        out += said
    (folder / "ppo.out").write_text(out, encoding="utf-8")


def try_knobs(folder, prompts, line, knobs, before=()):
    """In a copy of runs/tiny with fewer prompts: a command with each of the knobs, as v0, v1 and so on. What
    they end with is looked at, no report."""
    shutil.copytree(folder.parent / "tiny", folder, dirs_exist_ok=True)
    fewer_prompts(folder, prompts)
    lines = [*before, *(f"{line} {knob} --name v{i}" for i, knob in enumerate(knobs))]
    results = run_lines(folder, lines, reports=False)[len(before) :]
    (folder / "results.json").write_text(json.dumps(results))


def try_ppo_knobs(folder):
    far = f"train_ppo.py {PPO} --steps 2 --ppo_epochs 3 --lr 0.02 --critic_lr 0.01 --eval_answers 1"
    try_knobs(folder, 20, far, PPO_KNOBS)


def try_rm_knobs(folder):
    few = ASK.replace("120", "40")
    before = [f"preferences.py {few} --aspect {aspect}" for aspect in ("helpful", "safety")]
    try_knobs(folder, 40, f"train_rm.py {RM} --batch_size 12 --lr 0.01 --warmup 0", RM_KNOBS, before)


def try_rs_knobs(folder):
    """With a reward model that learns much from a few rankings."""
    line = f"rejection_sampling.py --rounds 1 {ROUNDS} --batch_size 10 --lr 0.01 --warmup 0 --reward quick"
    try_knobs(folder, 20, line, RS_KNOBS, [f"train_rm.py {RM} --lr 0.05 --batch_size 4 --name quick"])


def try_ask_knobs(folder):
    """One name for all of them, and so the same noise of the simulated human."""
    shutil.copytree(folder.parent / "tiny", folder, dirs_exist_ok=True)
    fewer_prompts(folder, 20)
    results = []
    for i, knob in enumerate(ASK_KNOBS):
        few = ASK.replace("120", "30")
        results += run_lines(folder, [f"preferences.py {few} {knob} --name v --overwrite"])
        shutil.copy(folder / "runs/tiny/v.jsonl", folder / f"runs/tiny/v{i}.jsonl")
    (folder / "results.json").write_text(json.dumps(results))


def try_judge_knobs(folder):
    (folder / "brief.txt").write_text("Please be short, never repeat.\n" + " and so on" * 30)
    other = f"{SMALL['judge'].replace('--name judge', '--name other')} --lr 0.01"
    try_knobs(folder, 20, f"preferences.py {AI}", JUDGE_KNOBS, [other])


def train_two_models(folder):
    """Llama 2's pipeline in a copy of runs/tiny with fewer prompts: two collections, two reward models, PPO
    on their combination and on one of them, two rounds of rejection sampling. Their printing: results.json.
    """
    shutil.copytree(folder.parent / "tiny", folder, dirs_exist_ok=True)
    fewer_prompts(folder, 40)
    lines = []
    for aspect in ("helpful", "safety"):
        lines.append(f"preferences.py {ASK} --questions 60 --aspect {aspect}")
        lines.append(f"train_rm.py {RM} --aspect {aspect}")
    lines += [f"train_ppo.py {THREE} --reward {reward} --name with_{reward} --eval_answers 1"
              for reward in ("llama2", "safety", "rm_safety")]
    lines.append(f"rejection_sampling.py --rounds 2 {ROUNDS} --reward llama2 --name two")
    results = dict(zip(lines, run_lines(folder, lines), strict=True))
    (folder / "results.json").write_text(json.dumps(results))


def assert_each_matters(folder, knobs, digest):
    """digest(folder, name of the variant, its knob) must differ between all of them."""
    results, seen = json.loads((folder / "results.json").read_text()), {}
    for i, (knob, (code, out)) in enumerate(zip(knobs, results, strict=True)):
        assert code == 0, f"{knob}: {code} {out[-500:]}"
        found = digest(folder / "runs/tiny", f"v{i}", knob)
        assert found not in seen, f"{knob!r} makes no difference to {seen[found]!r}"
        seen[found] = knob


# In this order; each also names the fixture that waits for it.
JOBS = {"tiny": train_tiny, "mine": train_mine, "rs_knobs": try_rs_knobs, "ppo_knobs": try_ppo_knobs,
        "two_models": train_two_models, "ask_knobs": try_ask_knobs, "rm_knobs": try_rm_knobs,
        "judge_knobs": try_judge_knobs}
BEGUN = {}  # {name of a job: (its result to come, its folder)}; in the process beside it is there already


def begin(pool, names, folder):
    """Train what the tests look at, some of JOBS, in a process beside them."""
    for name in JOBS:
        if name in names:
            (folder / name).mkdir()
            BEGUN[name] = pool.submit(train, name, folder / name), folder / name


def train(name, folder):
    BEGUN[name] = None, folder
    JOBS[name](folder)


def trained(name):
    result, folder = BEGUN[name]
    if result:
        result.result(timeout=300)
    return folder


# ------------------------------------------------------------------------------------------------
# The finished runs as fixtures
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny():
    """A folder with a finished runs/tiny."""
    return trained("tiny")


@pytest.fixture(scope="session")
def mine():
    """A folder with a finished runs/tiny-mine."""
    return trained("mine")


@pytest.fixture
def copy(tiny, tmp_path):
    """A folder with a copy of runs/tiny that a test may spoil."""
    shutil.copytree(tiny / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture(scope="session")
def twenty(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twenty")
    shutil.copytree(tiny / "runs", folder / "runs")
    fewer_prompts(folder, 20)
    return folder


@pytest.fixture
def few(twenty, tmp_path):
    """The same with twenty prompts of each split and their demonstrations."""
    shutil.copytree(twenty / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture
def user(mine, tmp_path):
    """A copy of that folder, at home in its new place."""
    shutil.copytree(mine / "runs", tmp_path / "runs")
    shutil.copytree(mine / "mine", tmp_path / "mine")
    record = tmp_path / "runs/tiny-mine/data/source.json"
    there = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps(there | {"source": str((tmp_path / "mine").resolve())}), encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def ask_knobs(tiny):
    return trained("ask_knobs")


@pytest.fixture(scope="session")
def rs_knobs(tiny):
    return trained("rs_knobs")


@pytest.fixture(scope="session")
def rm_knobs(tiny):
    return trained("rm_knobs")


@pytest.fixture(scope="session")
def ppo_knobs(tiny):
    return trained("ppo_knobs")


@pytest.fixture(scope="session")
def judge_knobs(tiny):
    return trained("judge_knobs")


@pytest.fixture(scope="session")
def two_models(tiny):
    return trained("two_models")


def printed(folder, stage="ppo"):
    """What a stage of the finished run has printed."""
    return (folder / f"{stage}.out").read_text(encoding="utf-8")


def asked_demonstrations(folder):
    """The demonstrations of the prompts that are asked about in training."""
    data = folder / "runs/tiny/data"
    asked = {row["prompt"] for row in rows_of(data / "prompts.jsonl") if row["split"] == "train"}
    return [row for row in rows_of(data / "sft.jsonl") if row["prompt"] in asked]


def typed(monkeypatch, *lines):
    """Somebody at the terminal: these lines, then the end of the input."""
    lines = list(lines)

    def read(prompt=""):
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", read)
