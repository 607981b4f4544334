"""Bad inputs by the thousand: each must be refused in one sentence, or be taken for what it is.

    python tests/fuzz.py                                             10,036 of them, some minutes
    python tests/fuzz.py --only checkpoints --cases 200 --seed 7     another 200 of one kind
    python tests/fuzz.py --only checkpoints --first 41 --cases 1     one that failed, again

Each kind below makes an input in a copy of a small run, and returns a function that gives it to the code as a
user's command would; no training begins. It is wrong if that ends in a traceback or takes more than LIMIT
seconds, if a file is changed by what was refused, or if anything is written outside of runs/. It needs Linux;
pytest does not collect it.
"""
import argparse
import contextlib
import gzip
import importlib
import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socketserver
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections import Counter
from dataclasses import fields
from pathlib import Path

import torch
from conftest import ROOMS, ROOT, completion, run_lines
from pipeline import ASK, PPO, PRETRAIN, RM, ROUNDS, SFT, SMALL, fewer_prompts
from test_layouts import DEMONSTRATIONS, PREFERENCES

import lab.data_folder
import lab.explain
import lab.files
import lab.formats
import lab.lock
import lab.run
import lab.school
import lab.show
import preferences
from data import load_preferences, load_prompts, load_sft, load_text
from lab.cli import Help, run_main
from lab.records import fingerprint_of_weights, load_model
from world.judge import AI, preambles
from world.labelers import is_ranking
from world.server import Server

LIMIT = 20  # seconds
KEY = "SECRET99"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# ------------------------------------------------------------------------------------------------
# Damage
# ------------------------------------------------------------------------------------------------
VALUE = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
ODD = [value.encode() for value in (
    "null", "true", "-1", "0", "7", "0.5", "1e999", "NaN", "-Infinity", "9" * 5000, "1" + "0" * 400, '""',
    '" "', '"x"', '"\\ud800"', '"\\u0000\\u001b[2J"', '"../../x"', '"x\u202e\u2028y"', '"<|endoftext|>"',
    "[]", "{}", "[0]", "[[0], [1]]", '{"a": 1}', '[{"role": "user"}]', "[" * 900 + "]" * 900, "[" * 100_000,
    '{"a":' * 5000, '"' + "x" * 100_000 + '"', '"' + " " * 50_000 + '"')]
BYTES = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\0", b"\x1b[2J", b"\r", b"\n\n", b"\n",
         b"\x80" * 40, b'"', b",", b"{", b"}", b"\x1f\x8b", b"PK\3\4", b"9" * 5000, b" " * 100_000]


def damage(raw, chance):
    """Bytes that are a little, or entirely, wrong. chance: a random.Random."""
    start, end = sorted(chance.choices(range(len(raw) + 1), k=2))
    values = list(VALUE.finditer(raw[:200_000]))
    way = chance.randrange(12 if values else 8)
    if way == 0:
        return raw[:end]
    if way == 1:
        return raw[start:]
    if way == 2:
        return raw[:end] + raw[start:]
    if way == 3:
        return raw[:start] + bytes(end - start) + raw[end:]
    if way == 4:
        flipped = bytearray(raw or b"x")
        for _ in range(chance.choice((1, 8, 64))):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if way == 5:
        return chance.choice((b"", b"\n", raw.decode("utf-8", "replace").encode("utf-16"),
                              chance.randbytes(300), chance.choice(ODD)))
    if way in (6, 7):
        return raw[: start * (way - 6)] + chance.choice(BYTES) + raw[start * (way - 6) :]
    for _ in range(chance.choice((1, 1, 5))):
        found = chance.choice(values)
        raw = raw[: found.start()] + chance.choice(ODD) + raw[found.end() :]
        values = list(VALUE.finditer(raw[:200_000])) or [re.match(b"", raw)]
    return raw


def put(path, content, chance):
    """Write a damaged file, or something that is no file."""
    way = chance.randrange(40)
    path.unlink(missing_ok=True)
    if way == 0:
        path.mkdir()
    elif way == 1:
        os.mkfifo(path)
    elif way == 2:
        path.symlink_to(chance.choice(("/dev/zero", path.name, "/")))
    elif way > 3:  # 3: it is gone
        path.write_bytes(content)


def odd_value(chance):
    return chance.choice([
        None, True, -1, 0, 3, 2**70, math.nan, -math.inf, 0.5, "x", "", "\x1b[2J", "../x", b"x", [], {}, (1,),
        [math.nan], {"a": 1}, {1: 2}, torch.zeros(3), torch.full((32,), math.nan), torch.ones(32).long(),
        torch.ones(32, dtype=torch.complex64), torch.ones(32).to_sparse(), torch.zeros(1).expand(10**9),
        torch.zeros(32, device="meta")])


def change_inside(thing, chance):
    """Something inside nested dicts and lists is removed, replaced or added."""
    while True:
        keys = list(thing) if isinstance(thing, dict) else list(range(len(thing)))
        key = chance.choice(keys)
        if not isinstance(thing[key], dict | list) or not thing[key] or chance.random() < 0.2:
            break
        thing = thing[key]
    way, x = chance.randrange(6), thing[key]
    if way == 0:
        del thing[key]
    elif way == 1 and isinstance(thing, dict):
        thing[chance.choice(("other", 5, "\x1b[2J"))] = x
    elif way > 3 or not is_small(x):
        thing[key] = odd_value(chance)
    elif way == 2:
        x.view(-1)[0] = math.nan if x.is_floating_point() else 77
    else:
        thing[key] = chance.choice((x.double(), x[None], x.flatten()[:-1]))


def is_small(x):
    """Whether it is an ordinary tensor, and no large one."""
    return isinstance(x, torch.Tensor) and x.layout == torch.strided and 0 < x.numel() < 10**6


class Bomb:
    def __reduce__(self):
        return os.system, ("touch pwned",)


# ------------------------------------------------------------------------------------------------
# The kinds of input
# ------------------------------------------------------------------------------------------------
MODEL = "model.py runs/tiny/{} --prompt A --max_new_tokens 4"
READERS = {  # a file of runs/tiny: commands that read it
    "tokenizer.json": [MODEL.format("sft.pt"), f"train_sft.py {SFT} --name v", "data.py"],
    "rankings.jsonl": [f"train_rm.py {RM} --name v", f"{SMALL['rankings']} --questions 130", "data.py"],
    "rankings.json": [f"train_rm.py {RM} --name v", f"{SMALL['rankings']} --questions 130"],
    "broken.jsonl": [f"train_sft.py {SFT} --name broken"],
    "judge_calls.jsonl": ["preferences.py --labeler ai --judge_url http://localhost:9/v1 --judge_model m "
                          f"{ASK} --name v"],
    "judged.jsonl": ["model.py runs/tiny/sft.pt --against runs/tiny/ppo.pt --max_new_tokens 4"],
    "data/sft.jsonl": [f"train_sft.py {SFT} --name v", f"train_rm.py {RM} --name v", "data.py"],
    "data/prompts.jsonl": [f"train_ppo.py {PPO} --name v", f"preferences.py {ASK} --name v", "data.py",
                           f"rejection_sampling.py {ROUNDS} --name v", f"train_sft.py {SFT} --name v",
                           "model.py runs/tiny/sft.pt --against runs/tiny/ppo.pt --max_new_tokens 4"],
    "data/pretrain.txt": [f"train_ppo.py {PPO} --name v", f"train_rm.py {RM} --name v", "data.py",
                          "train_pretrain.py --name v --overwrite"],
    "data/pretrain.held_out.txt": ["data.py", "train_pretrain.py --name v"],
    "../tiny-mine/data/source.json": ["train_pretrain.py --data mine --name v", "data.py --data mine",
                                      "train_pretrain.py --run tiny-mine --name v"],
    "../tiny-mine/data/preferences.jsonl": ["train_rm.py --data mine --name v", "data.py --data mine"],
}
TINY = {"train_pretrain": PRETRAIN, "train_sft": SFT, "train_rm": RM,
        "preferences": ASK, "train_ppo": PPO, "rejection_sampling": ROUNDS}
FLAGS = {  # of the commands that have no Config
    "model.py": ["prompt", "response", "against", "questions", "temperature", "max_new_tokens", "seed",
                 "device"],
    "lab.explain": ["prompt", "device", "batch_size", "ppo_epochs", "clip", "gamma", "lam"],
    "data.py": ["config", "run", "seed", "data"],
}
NUMBERS = ["-1", "0", "1", "2", "3", "7", "-0.0", "0.3", "1.0", "5.5", "64", "100", "1000", "99999",
           "10000000", "1000000000", "1e9", "1e-320", "1e30", "1e308", "nan", "-inf", "9999999999999999999",
           "999999999999999999999999999999", "9" * 5000]
WORDS = ["", " ", "x", "0", "true", "false", "none", "\x1b[2J", "\udcff", "\u202e", "../x", "/",
         "/dev/zero", ".", "a/b", "a b", "a" * 300, "狗" * 90, "a" * 5000, "--", "-h", "tiny", "small",
         "mine", "sft", "rm", "ppo", "rankings", "ai", "human", "llama2", "cpu", "cuda", "rs.1", "rm.v",
         "rankings.ppo", "preferences", "tokenizer", "runs/tiny/sft.pt", "runs/tiny/rm.pt",
         "runs/tiny/pretrain.pt", "data", "http://[", "http://localhost:9", "ftp://x", "dog,why"]


def users_files(chance):
    """A file of a user, in every format, some of them zipped."""
    name, raw = chance.choice(list(MINE.items()))
    plain = name.removesuffix(".gz")
    if name != plain and chance.random() < 0.5:
        raw = gzip.compress(damage(gzip.decompress(raw), chance))
    else:
        raw = damage(raw, chance)
    if name != plain and chance.random() < 0.02:
        raw = gzip.compress(b"a" * 2**22)
    shutil.rmtree("mine")
    Path("mine").mkdir()
    put(Path("mine", chance.choice((name, name, plain))), raw, chance)

    def read():
        folder = Path("runs/new/data")
        lab.formats.convert("mine", folder)
        rows = load_sft(folder) + load_prompts(folder) + load_preferences(folder)
        assert all(row["split"] in ("train", "dev", "test") for row in rows) and all(load_text(folder))
        assert all(map(is_ranking, load_preferences(folder)))
    return read


def checkpoints(chance):
    """A checkpoint, its bytes or what is in it, for those who load it."""
    name = chance.choice(("pretrain", "sft", "rm", "ppo", "broken"))
    path, way = Path(f"runs/tiny/{name}.pt"), chance.randrange(20)
    if way < 7:
        put(path, damage(path.read_bytes(), chance), chance)
    elif way == 7:
        bomb = {"model": Bomb(), "step": 1}
        path.write_bytes(pickle.dumps(bomb))
        if chance.random() < 0.5:
            torch.save(bomb, path)
    elif way == 8:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}/data/99", bytes(2**26))
    else:
        checkpoint = torch.load(path, weights_only=True)
        for _ in range(chance.choice((1, 1, 3))):
            part = checkpoint.get(chance.choice(("all", "all", "model_config", "state", "knobs")))
            change_inside(part if isinstance(part, dict) and part else checkpoint, chance)
        with contextlib.suppress(Exception):
            if chance.random() < 0.5:  # by somebody who knows how it is checked
                checkpoint["fingerprint"] = fingerprint_of_weights(checkpoint["model"])
        torch.save(checkpoint, path)
    lines = {"broken": f"train_sft.py {SFT} --name broken", "sft": f"train_ppo.py {PPO} --name v",
             "ppo": "lab.explain runs/tiny/ppo.pt --batch_size 4", "rm": chance.choice((
                 f"train_ppo.py {PPO} --name v", "train_rm.py --start rm --rankings rankings --name rm.2"))}
    if chance.random() < 0.5:
        return command((chance.choice((lines.get(name), None)) or MODEL.format(f"{name}.pt")).split())

    def read():
        model, about = load_model(path)
        assert all(x.isfinite().all() for x in model.state_dict().values())
        assert type(about["step"]) is int and isinstance(about["knobs"], dict)
    return read


def run_files(chance):
    """Another file of a run folder, for a command that reads it."""
    name, lines = chance.choice(list(READERS.items()))
    path = Path("runs/tiny", name)
    put(path, damage(path.read_bytes(), chance), chance)
    return command(chance.choice(lines).split())


def command_lines(chance):
    """A command with one to three flags that are extreme or nonsense."""
    script = chance.choice((*TINY, *FLAGS))
    if script in FLAGS:
        words, names = [script], dict.fromkeys(FLAGS[script], NUMBERS + WORDS)
        if script != "data.py":
            words.append(chance.choice(("runs/tiny/sft.pt", "runs/tiny/ppo.pt", chance.choice(WORDS))))
    else:
        words = [f"{script}.py", *TINY[script].split()]
        known = fields(importlib.import_module(script).Config)
        names = {f.name: values_for(f, chance) for f in known}
    if chance.random() < 0.7 and script in TINY:
        words += ["--name", "v"]
    for name in chance.choices(list(names), k=chance.choice((1, 1, 2, 3))):
        flag = [f"--{name}", chance.choice(names[name])]
        words += chance.choice((flag, ["=".join(flag)]))
    return command(words)


def values_for(f, chance):
    """What to give to the flag of a field: mostly something that could be meant."""
    if chance.random() < 0.2:
        return NUMBERS + WORDS
    return f.metadata["choices"] or {int: NUMBERS, float: NUMBERS, bool: ["true", "false"]}.get(f.type, WORDS)


def servers(chance):
    """An answer of a server that should be an AI judge."""
    top = {chance.choice(("1", " 2", "10", "x", " ")): -chance.random() * 3 for _ in range(3)}
    body = json.dumps(completion(top)[1]).encode()
    status = chance.choice((200, 200, 200, 200, 204, 302, 401, 404, 429, 500, 999))
    if chance.random() < 0.7:
        body = damage(body, chance)
    if chance.random() < 0.1:
        body = chance.choice((b" " * (2**22 + 2), KEY.encode() * 200, b"x" * 290 + KEY.encode()))
    head = f"HTTP/1.1 {status} Fine\r\nContent-Length: {len(body)}\r\nLocation: {FAKE.url}/2\r\n\r\n".encode()
    if chance.random() < 0.3:
        head = damage(head, chance)
    FAKE.answer, judge_of = head + body, chance.choice(("label", "rate", "write"))

    def ask():
        server = Server(FAKE.url, "m", KEY, Path("runs/tiny/judge_calls.jsonl"), timeout=1.0, tries=1)
        judge = AI(server, preambles("none"), chain_of_thought=judge_of == "write")
        if judge_of == "rate":
            assert all(-1 <= x <= 1 for x in judge.rate(["p"], ["a"]))
        else:
            wins = judge.label(["p"], [["a", "b"]])
            assert ((wins >= 0) & (wins <= 1) | wins.isnan()).all()
    return ask


KINDS = {users_files: 4160, checkpoints: 2600, run_files: 1248, command_lines: 780, servers: 1248}  # cases


class Fake(socketserver.ThreadingTCPServer):
    """Answers anything with the same bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), None)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def finish_request(self, request, address):
        with contextlib.suppress(OSError):
            request.recv(2**16)
            request.sendall(self.answer)


# ------------------------------------------------------------------------------------------------
# The place where it happens
# ------------------------------------------------------------------------------------------------


class Begun(BaseException):
    """A training, or the asking of questions, would begin now: the input was taken."""


class Hang(BaseException):
    pass


def begin(*_):
    raise Begun


def ring(*_):
    raise Hang


def command(words):
    sys.argv = words

    def call():
        script = words[0].removesuffix(".py")
        importlib.import_module(ROOMS.get(script, script)).main(words[1:])
    return call


def make_run():
    """runs/tiny and runs/tiny-mine here, with all files that a run can have, and mine/."""
    for stage in ("pretrain", "sft", "rankings", "rm", "ppo"):
        [(code, out)] = run_lines(Path(), [SMALL[stage]])
        assert code == 0, out
        if stage == "pretrain":
            fewer_prompts(Path(), 6)
    folder = Path("runs/tiny")
    broken = torch.load(folder / "sft.pt", weights_only=True) | {"finished": False, "step": 1}
    torch.save(broken, folder / "broken.pt")
    shutil.copy(folder / "sft.jsonl", folder / "broken.jsonl")
    (folder / "judged.jsonl").write_bytes((folder / "rankings.jsonl").read_bytes())
    asked = {"url": "u", "prompt": "p", "max_tokens": 1}
    call = {"asked": asked, "choice": completion({"1": -0.1})[1]["choices"][0]}
    (folder / "judge_calls.jsonl").write_text(json.dumps(call) + "\n")
    rows = [{"prompt": f"What is {i}?", "chosen": "a thing", "rejected": "no"} for i in range(30)]
    Path("mine").mkdir()
    Path("mine/preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [(code, out)] = run_lines(Path(), [f"train_pretrain.py {PRETRAIN} --data mine"])
    assert code == 0, out


def users_formats():
    """{name: bytes} of the files that users bring."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."}]
    said = "\n\nHuman: Why {}?\n\nAssistant: {}"
    rows = {
        "sft": [{"prompt": "Why?", "response": "So.", "split": "train"}, {"messages": messages},
                {"instruction": "Do", "input": "it", "output": "Done"}],
        "preferences": [{"prompt": f"Why {i}?", "chosen": "So.", "rejected": "No", "margin": i % 3,
                         "aspect": "safety"} for i in range(5)]
        + [{"chosen": said.format(i, "a"), "rejected": said.format(i, "b")} for i in range(5)]
        + [{"chosen": messages[1:], "rejected": [messages[1], {"role": "assistant", "content": "N"}]}],
        "prompts": [{"prompt": "Why?", "unsafe": True}, {"prompt": messages[1:2], "split": "test"}],
        "pretrain": [{"text": f"A text, number {i}."} for i in range(30)]}
    files = {"pretrain.txt": b"A line of text, and more of it.\n" * 60}
    for kind, some in rows.items():
        files[f"{kind}.jsonl"] = "".join(json.dumps(row) + "\n" for row in some).encode()
        files[f"{kind}.json"] = json.dumps(some).encode()
    for kind, table in (("preferences", PREFERENCES), ("sft", DEMONSTRATIONS)):
        for i, (_, some, _) in enumerate(table):
            files[f"{kind}.test-{i + 1}.jsonl"] = "".join(json.dumps(row) + "\n" for row in some).encode()
    files["sft.csv"] = b'prompt,response,split\nWhy?,"So, ""so"".",train\nOh,Ah,\n'
    files["preferences.csv"] = b"prompt,response,label\nWhy?,So.,true\nWhy?,No,0\n"
    return files | {f"{name}.gz": gzip.compress(raw) for name, raw in files.items()}


def contents():
    """{path: bytes} of the files here."""
    return {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and not p.is_symlink()}


def put_back(clean):
    """The files here as they were."""
    for path in sorted(Path().rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path not in clean or path.is_symlink() or not path.is_file():
            path.unlink()
    for path, raw in clean.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != raw:
            path.write_bytes(raw)


outside = []  # files elsewhere that were opened to be written, made, renamed or removed


def watch(event, args):
    """An audit hook of Python: sees every file that is opened."""
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove"):
        paths = [os.path.abspath(os.fsdecode(x)) for x in args[:2] if isinstance(x, str | bytes | Path)]
        outside.extend(path for path in paths if not path.startswith((HERE, "/dev/null")))


def attempt(call):
    """(how it ended, a line about it) of one input."""
    before, printed = contents(), io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    outside.clear()
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            run_main(call)
        ended, told = "accepted", ""
    except Begun:
        ended, told = "accepted", "begun"
    except Hang:
        ended, told = "hangs", "".join(traceback.format_exc(limit=-6))
    except SystemExit as end:
        ended, told = "refused" if end.code else "accepted", end.code
        if isinstance(told, int):
            told = printed.buffer.getvalue().decode().rstrip("\n") if told == 2 else f"exit {told}"
    except BaseException:
        ended, told = "tracebacks", traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for file in lab.lock.held.values():
        file.close()
    lab.lock.held.clear()
    said = printed.buffer.getvalue().decode("utf-8", "replace")
    if ended == "refused" and (not told or "\n" in told or RAW.search(told)):
        ended, told = "tracebacks", f"no sentence: {told!r}"
    if RAW.search(re.sub("\r|\x1b\\[A", "", said)) or KEY in f"{said}{told}":
        ended, told = "tracebacks", f"printed raw: {said[-300:]!r}"
    after = contents()
    changed = {path for path in before if not after.get(path, b"").startswith(before[path])}  # or is gone
    changed = {path for path in changed if ended != "accepted"} | {
        path for path in after if path.parts[0] != "runs" and after[path] != before.get(path)}
    if changed or outside:
        ended, told = "files changed", f"{[*map(str, changed), *outside]} ({told})"
    return ended, told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--cases", type=int, help="in all; by default each kind has its number of KINDS")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[kind.__name__ for kind in KINDS])
    parser.add_argument("--show", action="store_true", help="the sentences, too")
    args = parser.parse_args()
    kinds = {kind: n for kind, n in KINDS.items() if args.only in (None, kind.__name__)}
    make_run()
    clean, results = contents(), {}
    lab.run.Stage.steps = preferences.sample = lab.school.write_reviews = begin
    lab.explain.drawn = lambda *_: None
    lab.files.MOST = 2**21
    world = {path.name: raw for path, raw in clean.items() if path.parts[:3] == ("runs", "tiny", "data")}
    lab.data_folder.write_world = lambda folder, seed, **sizes: put_world(folder, world)
    signal.signal(signal.SIGALRM, ring)
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + 2**32
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    sys.addaudithook(watch)
    for kind, share in kinds.items():
        began, counts = time.monotonic(), Counter()
        cases = round(args.cases * share / sum(kinds.values())) if args.cases else share
        for n in range(args.first, args.first + cases):
            put_back(clean)
            sys.stdin, sys.argv = io.StringIO(), ["fuzz"]
            call = kind(random.Random(f"{args.seed} {kind.__name__} {n}"))
            ended, told = attempt(call)
            counts[ended] += 1
            if ended not in ("accepted", "refused") or args.show:
                print(f"{kind.__name__} {n} ({' '.join(sys.argv)[:200]!r}): {ended} {told}", flush=True)
        results[kind.__name__] = (cases, counts, time.monotonic() - began)
    report(results)
    sys.exit(any(counts.keys() - {"accepted", "refused"} for _, counts, _ in results.values()))


def put_world(folder, world):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in world.items():
        (folder / name).write_bytes(raw)


def report(results):
    ways = ("accepted", "refused", "tracebacks", "hangs", "files changed")
    print(f"{'kind':<14} cases" + "".join(f"{way:>15}" for way in ways) + "  seconds")
    for kind, (cases, counts, seconds) in results.items():
        print(f"{kind:<14} {cases:>5}" + "".join(f"{counts[way]:>15}" for way in ways) + f"  {seconds:7.0f}")


if __name__ == "__main__":
    HERE = tempfile.mkdtemp()
    sys.dont_write_bytecode = True
    os.chdir(HERE)
    tempfile.tempdir = f"{HERE}/"
    MINE, FAKE = users_formats(), Fake()
    try:
        main()
    finally:
        os.chdir(ROOT)
        shutil.rmtree(HERE)
