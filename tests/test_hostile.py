"""What nobody sane would write: files, answers of a server and rows that must end in one sentence."""
import gzip
import itertools
import json
import math
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

import lab.files
import lab.formats
from data import (
    UserError,
    decode_response,
    encode,
    encode_response,
    load_preferences,
    load_prompts,
    load_rows,
    load_sft,
    load_text,
    train_bpe,
)
from lab.formats import convert
from lab.rankings import drop_cut
from lab.source import source_of
from lab.tokens import laid_out
from train_sft import check_demonstrations
from world.labelers import RankingFile, is_ranking
from world.server import MOST, Server

PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c", '
BAD = {
    "digits": PAIR + '"margin": ' + "9" * 5000 + "}",
    "margin": PAIR + '"margin": 1' + "0" * 400 + "}",
    "deep": "[" * 100_000,
    "half deep": PAIR + '"x": ' + "[" * 960 + "]" * 960 + "}",
    "name": json.dumps({"x" * 100_000: "a"}),
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_monstrous_row_is_one_short_sentence(tmp_path, line):
    path = tmp_path / "preferences.jsonl"
    path.write_text(PAIR + '"margin": 1}\n' + line + "\n")
    try:
        lab.formats.read_kind([lab.files.File(path)], "preferences")
    except UserError as error:
        assert f"{path}, line 2" in str(error) and len(str(error)) < 700
    else:
        assert line is BAD["half deep"]  # how deep is too deep is the interpreter's affair


def test_what_is_no_text(tmp_path):
    for content in (b"", b"\0" * 50, b"\xef\xbb\xbf", "a b c".encode("utf-16"), b"\xff" * 9):
        (tmp_path / "pretrain.txt").write_bytes(content)
        with pytest.raises(UserError, match="pretrain.txt"):
            convert(tmp_path, tmp_path / "data")
    (tmp_path / "pretrain.txt").unlink()
    os.mkfifo(tmp_path / "pretrain.txt")
    (tmp_path / "sft.jsonl").symlink_to("sft.jsonl")
    with pytest.raises(UserError, match="expected pretrain.txt"):
        convert(tmp_path, tmp_path / "data")


def test_a_file_that_unpacks_to_too_much_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lab.files, "MOST", 2**20)
    path = tmp_path / "pretrain.txt.gz"
    path.write_bytes(gzip.compress(b"a" * 2**21))
    with pytest.raises(UserError, match="more than 1 MB"):
        lab.files.read_file(path)


def test_long_words_and_many_blanks(enc):
    began = time.monotonic()
    text = "".join(chr(97 + i * i * 7919 % 26) for i in range(200_000))
    assert train_bpe(text, 1024)
    blanks = "a" + " " * 1_500_000 + "b <|pad|>"
    assert enc.decode(encode(enc, blanks)) == blanks
    assert max(encode(enc, "<|user|><|endoftext|>")) < enc.eot_token
    assert encode(enc, "") == [] and encode(enc, "A dog.") == enc.encode_ordinary("A dog.")
    assert decode_response(enc, encode_response(enc, "<|pad|>")) == "<|pad|>"
    assert time.monotonic() - began < 20


ROW = {"prompt": "a", "responses": ["b", "c"], "tiers": [[0], [1]], "split": "train"}


@pytest.mark.parametrize("change", [
    {"tiers": [[0], [2]]}, {"tiers": [[0], [0]]}, {"tiers": 5}, {"tiers": [[0.5]]}, {"responses": "bc"},
    {"responses": [1, 2]}, {"prompt": None}, {"prompt": [5]}, {"split": 3}, {"pairs": [[0, 1, math.nan]]},
    {"pairs": [[0, 5, 0.5]]}, {"pairs": [[0]]}, {"margin": "x"}, {"label": "up"},
])
def test_a_damaged_ranking_is_told_with_its_line(tmp_path, change):
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(UserError, match="rankings.jsonl, line 3: the row is damaged"):
        load_rows(path, is_ranking)


FILES = [("prompts.jsonl", load_prompts), ("sft.jsonl", load_sft), ("preferences.jsonl", load_preferences),
         ("pretrain.txt", load_text), ("source.json", source_of)]


@pytest.mark.parametrize("name, load", FILES)
def test_a_file_of_a_run_that_is_none_is_told_by_its_name(tmp_path, name, load):
    """Missing, where it is needed; a pipe, from which nobody would ever read an end; a folder; no text."""
    path, optional = tmp_path / name, name == "preferences.jsonl"
    (tmp_path / "pretrain.held_out.txt").write_text("a")
    for make in (lambda: None, lambda: os.mkfifo(path), path.mkdir, lambda: path.write_bytes(b"a\xff\n")):
        make()
        if optional and not path.exists():
            assert load(tmp_path) == []
            continue
        with pytest.raises(UserError, match=f"{name}: no such file|byte 1"):
            load(tmp_path)
        if path.exists():
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"source": "x"}', '{"source": 5, "files": {}}',
                                     '{"source": "x", "files": {"a": 5}}', "[" * 100_000])
def test_a_damaged_record_of_the_source_is_told(tmp_path, content):
    (tmp_path / "source.json").write_text(content)
    with pytest.raises(UserError, match="source.json is damaged: put a copy back"):
        source_of(tmp_path)


def test_a_refused_file_of_rankings_stays_as_it_is(tmp_path):
    """Also where half a line would be dropped."""
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps({**ROW, "tiers": 5}) + "\n" + '{"prompt')
    with pytest.raises(UserError, match="line 1: the row is damaged"):
        RankingFile(path)
    assert path.read_text().endswith('{"prompt')


def test_prompts_are_missed_before_anything_is_trained(tmp_path):
    """They are for the table at the end of train_sft.py."""
    row = {"prompt": "a", "response": "b", "split": "train"}
    (tmp_path / "sft.jsonl").write_text(json.dumps(row) + "\n")
    stage = SimpleNamespace(data=tmp_path, folder=tmp_path)
    with pytest.raises(UserError, match="prompts.jsonl: no such file"):
        check_demonstrations(stage, SimpleNamespace(reviews=0, data="", eval_split="test"))
    (tmp_path / "prompts.jsonl").touch()
    with pytest.raises(UserError, match="prompts.jsonl: there are no rows"):
        check_demonstrations(stage, SimpleNamespace(reviews=0, data="", eval_split="test"))


@pytest.mark.parametrize("content, where", [
    (b"\xff\n", "byte 0"), (b"[]\n", "line 1"), (b"{\n", "line 1"), (b'{"prompt": "a"}\n', "line 1"),
    (b"[" * 100_000 + b"\n", "line 1"),
])
def test_damaged_prompts_of_a_run(tmp_path, content, where):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=where):
        load_prompts(tmp_path)


def test_what_is_cut_is_said(enc, capsys):
    row = {"prompt": "A dog is a furry mammal. " * 9, "responses": ["no", "A cat. " * 40]}
    drop_cut([row], enc, 24)
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 prompts lose their beginning and 1 of 2 answers lose their end" in out
    rows = [{"prompt": row["prompt"], "responses": [text]} for text in ("no", "A cat.", "A cat. " * 40)]
    laid_out(enc, rows, 24)
    assert "3 of 3 prompts lose their beginning and 1 of 3 answers lose their end" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------
# The judge's server
# ------------------------------------------------------------------------------------------------


def asked(server, **more):
    return Server(server.url, "m", **{"wait": 0.01, "tries": 1, **more}).next_token(["Which?"], "12")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "800", "1" + "0" * 400, "true", '"x"'])
def test_what_is_no_log_probability(server, value):
    top = '[{"1": ' + value + "}]"
    body = '{"choices": [{"text": "1", "logprobs": {"top_logprobs": ' + top + "}}]}"
    server.script = [(200, body.encode(), {})]
    with pytest.raises(UserError, match="no log-probabilities"):
        asked(server)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"choices": [{"text": 5}]}', b"[]", b"5"])
def test_what_is_no_completion(server, body):
    server.script = [(200, body, {})]
    with pytest.raises(UserError, match="no completion"):
        asked(server)


def test_an_answer_without_end(server):
    server.script = [(200, b" " * (MOST + 2), {})]
    with pytest.raises(UserError, match="more than 4 MB"):
        asked(server)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 500])
def test_the_key_is_neither_sent_on_nor_shown(server, status):
    server.script = [(status, b"your key SECRET99 \x1b[31m", {"Location": server.url + "/elsewhere"})]
    with pytest.raises(UserError) as told:
        asked(server, key="SECRET99")
    assert "SECRET99" not in str(told.value) and "\x1b" not in str(told.value) and len(server.seen) == 1


def test_a_key_with_a_line_end_is_not_shown():
    with pytest.raises(UserError, match="JUDGE_API_KEY") as told:
        Server("http://127.0.0.1:1/v1", "m", "SECRET\nX")
    assert "SECRET" not in str(told.value)


def test_no_part_of_a_key_is_shown_where_a_text_is_cut(server):
    """A key that stands at the place where a long text is cut off."""
    key = "K1" * 50
    for status, blanks in itertools.product((200, 400), (60, 120, 250, 3600)):
        server.script = [(status, (key * 4 + "x" * blanks + key).encode(), {})]
        with pytest.raises(UserError) as told:
            asked(server, key=key)
        assert "(key)" in str(told.value) and "K1" not in str(told.value)


@pytest.mark.parametrize("place", ["head", "body"])
def test_an_answer_drop_by_drop_has_a_deadline(place):
    class Drip(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            drops = b" " if place == "body" else b"X-More: 1\r\n"
            try:
                self.end_headers() if place == "body" else self.flush_headers()
                for _ in range(50):
                    self.wfile.write(drops)
                    time.sleep(0.1)
            except OSError:
                pass

        def log_message(self, *args):
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    there.url, there.daemon_threads = f"http://127.0.0.1:{there.server_port}/v1", True
    threading.Thread(target=there.serve_forever, args=[0.01], daemon=True).start()
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer within 0.3 s"):
        asked(there, timeout=0.3)
    there.shutdown()
    assert time.monotonic() - began < 3


def test_a_damaged_file_of_calls(server, tmp_path):
    path = tmp_path / "judge_calls.jsonl"
    for line in ('{"asked": {}}', '{"asked": {}, "choice": {"text": 5}}', "[]", '{"asked": 1, "choice": {}}'):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match="judge_calls.jsonl, line 1"):
            asked(server, path=path)
