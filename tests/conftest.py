"""What the tests share: the path to the sources, small models with large random weights, a small tokenizer,
a server, commands in a process of their own."""
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"model": "lab.talk", "data": "lab.show"}  # where the main() of these two is
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)
SEED = int(os.environ.get("TEST_SEED", 0))  # another one gives the tests other random numbers
os.environ["COLUMNS"] = "100"  # not those of the terminal in which the tests are run
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background both may be ignored
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import data  # noqa: E402
import lab.run  # noqa: E402
from lab.cli import Common, run_main  # noqa: E402
from lab.optim import MuonAdamW  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

# ------------------------------------------------------------------------------------------------
# Two processes: one runs the tests, one trains what they look at and then begins at the other end of the list
# ------------------------------------------------------------------------------------------------

CHUNK = 40  # tests of a file that stay together


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files that look at what is trained come last."""
    items.sort(key=lambda item: hasattr(item.module, "JOBS"))  # stable: the rest stays in order


@pytest.fixture(scope="session", autouse=True)
def in_a_process_beside(request, tmp_path_factory):
    """What tests/test_pipeline.py looks at takes a minute to train: that begins at once. Then the process
    beside takes chunks of tests, the last one first, until it meets this one."""
    items = request.session.items
    wanted = [(item.module, name) for item in items
              for name in getattr(item.module, "JOBS", ()) if name in item.fixturenames]
    if not wanted or parent_process():
        yield
        return
    marks, chunks = tmp_path_factory.mktemp("taken"), {}
    for path, tests in itertools.groupby(items, lambda item: item.path):
        names = [item.nodeid for item in tests]
        for i in range(0, len(names), CHUNK):
            chunks[marks / f"{path.name}.{i}"] = names[i : i + CHUNK]
    beside = request.config.beside = {}  # {test: (the mark of its chunk, its reports to come)}
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    wanted[0][0].begin(pool, {name for _, name in wanted}, tmp_path_factory.mktemp("finished"))
    for mark, tests in reversed(chunks.items()):
        reports = pool.submit(run_tests, mark, tests)
        beside |= dict.fromkeys(tests, (mark, reports))
    yield
    pool.shutdown(wait=False, cancel_futures=True)
    for process in active_children():
        process.join(5)  # it has nothing left to do, but where somebody stops before the end
        process.kill()


@functools.cache
def take(mark):
    """Whether this process is the first of the two to ask for a chunk."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def run_tests(mark, tests):
    """For the process beside: {test: its reports}, in a form that can be sent; nothing where the other has
    taken them."""
    if not take(mark):
        return {}
    os.chdir(ROOT)
    watch = Watch()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-p", "no:cacheprovider", *tests], plugins=[watch])
    return watch.reports


class Watch:
    """A plugin of pytest that keeps the reports of the tests."""

    def __init__(self):
        self.reports = {}

    def pytest_configure(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        sent = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.setdefault(report.nodeid, []).append(sent)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """A test that the other process has run: its reports are shown as if it had been run here."""
    mark, reports = getattr(item.config, "beside", {}).get(item.nodeid, (None, None))
    if mark is None or take(mark):
        return None
    for sent in reports.result(timeout=300)[item.nodeid]:
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=sent)
        item.ihook.pytest_runtest_logreport(report=report)
    return True


# ------------------------------------------------------------------------------------------------
# What the tests share
# ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(SEED)
    random.seed(SEED)


@pytest.fixture(autouse=True)
def remarks_are_new():
    """What is said once in a process is said once in each test."""
    data.say_once.cache_clear()


def random_gpt(seed=0, std=0.4, **shape):
    """A tiny GPT whose weights are all random and large, so that every wrong position or mask shows in the
    output."""
    usual = {"vocab_size": 12, "block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model, generator = GPT(GPTConfig(**{**usual, **shape})), torch.Generator().manual_seed(seed + SEED)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(std * torch.randn(p.shape, generator=generator))
    return model.eval()


def bigram_gpt(table):
    """A "GPT" whose logits depend on the token before only: table[token] are the logits of the next one.
    table: (V, V)."""
    table = torch.as_tensor(table, dtype=torch.float32)
    model = GPT(GPTConfig(len(table), block_size=64, n_layer=0, n_head=1, n_embd=4)).eval()
    model.hidden = lambda tokens, caches=None, positions=None, read=...: F.embedding(tokens, table)[read]
    model.lm_head = nn.Identity()
    return model


@pytest.fixture
def make_gpt():
    return random_gpt


@pytest.fixture
def make_bigram():
    return bigram_gpt


@pytest.fixture(scope="session")
def enc():
    """A tokenizer of some 300 tokens, trained on a few sentences."""
    text = "A dog is a furry mammal. A dog is man's best friend. What is a cat? A cat is a small hunter. " * 5
    return data.make_encoding(data.train_bpe(text, 300))


def watch(monkeypatch, name, module):
    """The arguments of every call of a function that the module knows, in the order of its signature, and its
    result: a list that grows."""
    formula, calls = getattr(module, name), []

    def watched(*args, **named):
        calls.append((inspect.signature(formula).bind(*args, **named).args, formula(*args, **named)))
        return calls[-1][1]

    monkeypatch.setattr(module, name, watched)
    return calls


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step that Muon makes: a list that grows."""
    seen, step = [], MuonAdamW.step

    def watched(self):
        seen.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(MuonAdamW, "step", watched)
    return seen


def some_answers_end(model, enc):
    """EOS becomes likelier than other tokens: some answers end, some are cut off."""
    with torch.no_grad():
        eos = model.wte.weight[enc.eot_token]
        model.ln_f.bias += 4 * eos / eos.pow(2).sum()
    return model


ASKED = {"train": ["A dog is" + " a cat" * i for i in range(8)], "dev": ["What is a dog?"],
         "test": ["What is a cat?"]}


@pytest.fixture
def random_run(tmp_path, monkeypatch, make_gpt, enc):
    """Path of runs/tiny-mine, on a user's few prompts and demonstrations. pretrain, sft and rm are there, and
    know nothing."""
    monkeypatch.setattr(lab.run, "picture", lambda file, *rest: file.write(b"no picture"))  # slow
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    text = "A dog is a furry mammal. What is a cat? A cat is a small hunter.\n"
    (tmp_path / "mine/pretrain.txt").write_text(text * 60)
    rows = [{"prompt": p, "split": split} for split, prompts in ASKED.items() for p in prompts]
    answers = {"train": "A furry mammal.", "dev": "A best friend.", "test": "A small hunter."}
    demonstrations = [{**row, "response": answers[row["split"]]} for row in rows]
    for name, some in (("prompts", rows), ("sft", demonstrations)):
        (tmp_path / f"mine/{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    for seed, name in enumerate(("pretrain", "sft", "rm")):
        model = make_gpt(seed, 0.2, vocab_size=enc.n_vocab, block_size=64, reward_head=name == "rm")
        stage = lab.run.Stage(Common(data="mine", device="cpu"), name)
        stage.track(model=some_answers_end(model, enc))
        stage.save(0, True)
    (tmp_path / "runs/tiny-mine/tokenizer.json").write_text(data.dump_encoding(enc))
    return tmp_path / "runs/tiny-mine"


@pytest.fixture
def server():
    """A server on this machine that plays through `script`, a list of (status, body or bytes, headers), the
    last one again and again; `seen` are the requests it got. A body that is a number is a pause in
    seconds."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            there.seen.append((self.path, self.headers.get("Authorization"), sent))
            status, body, headers = there.script.pop(0) if len(there.script) > 1 else there.script[0]
            body = body(sent) if callable(body) else body
            if isinstance(body, float):
                time.sleep(body)
                body = {}
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
            except OSError:
                pass  # whoever asked has gone

        def log_message(self, *args):
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.seen, there.script = [], []
    there.url = f"http://127.0.0.1:{there.server_address[1]}/v1"
    often = [0.01]  # seconds between two looks for the end
    threading.Thread(target=there.serve_forever, args=often, daemon=True).start()
    yield there
    there.shutdown()
    there.server_close()


def completion(top, text=" 1"):
    """What a server answers that gives log-probabilities of the next token. top: {token: log-probability}."""
    return 200, {"choices": [{"text": text, "logprobs": {"top_logprobs": [top]}}]}, {}


def run_lines(folder, lines, pictures=False, reports=True):
    """For the process beside: the main() of scripts in that folder, a command line each; drawing takes
    longest and is left out unless pictures are wanted; without reports nothing is measured at the end, but by
    pretraining and SFT. Returns [(exit code or message, what it printed)]."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if not pictures:
            patch.setattr(lab.run, "picture", lambda file, *rest: file.write(b"no picture"))
        if not reports:
            leave_reports_out(patch)
        return [run_line(patch, line.split()) for line in lines]


def leave_reports_out(patch):
    for script in ("train_rm", "train_ppo", "rejection_sampling"):
        patch.setattr(f"{script}.report", lambda stage, *rest: stage.finish("", [], ""))


def run_line(patch, words):
    patch.setattr(sys, "argv", words)
    data.say_once.cache_clear()
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            script = words[0].removesuffix(".py")
            run_main(importlib.import_module(ROOMS.get(script, script)).main)
            code = 0
        except SystemExit as end:
            code = end.code
    return code, out.buffer.getvalue().decode()
