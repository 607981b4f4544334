"""Tokenizer, template and masks, readers of a user's files, and the tiny world."""
import csv
import gzip
import io
import itertools
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

import data
from data import DataError, PROMPTS, SENTENCES, gold_score

HARD_TEXTS = ["", " ", "\n\n\n", "a", "Hello, world!  Two spaces\tand a tab.\r\n", "naïve café Ünïcödé", "日本語のテキスト",
              "👩‍👩‍👧‍👦 🏳️‍🌈 emoji", "snake_case __x__ 3.14e-7", "  leading and trailing  ", "عربى עברית हिन्दी", "x" * 300,
              "\u2028line\u2029paragraph\u00a0space\ufeff", "<|endoftext|> <|pad|><|user|> <|assistant|>", "a\x00b\x7f"]

# ------------------------------------------------------------------------------------------------
# The tokenizer
# ------------------------------------------------------------------------------------------------


def naive_bpe(text, vocab_size):
    """The definition: count all neighbours everywhere, merge the most frequent pair everywhere, repeat."""
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(data.PATTERN, text)]
    vocabulary = [bytes([b]) for b in range(256)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    while len(vocabulary) < vocab_size:
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts or max(counts.values()) < 2:
            break
        a, b = max(counts, key=lambda pair: (counts[pair], ids[pair[0]], ids[pair[1]]))
        vocabulary.append(a + b)
        ids[a + b] = len(vocabulary) - 1
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (a, b):
                    word[i : i + 2] = [a + b]
                i += 1
    return {token: i for i, token in enumerate(vocabulary)}


@pytest.mark.parametrize("text", ["aab aab", "aaaa aaaaa aaa banana bananas", "abababab babab",
                                  "the cat sat on the mat, the cat ran; that's the end. " * 3,
                                  "日本語 日本人 日本 👍👍👍", " ".join(map(str, range(60)))])
def test_bpe_training_is_the_naive_one(text):
    """Counts that are updated only where a merge happened must stay the true counts, in overlaps such as aaaa, too."""
    assert data.train_bpe(text, 300) == naive_bpe(text, 300)


def test_bpe_merges_the_most_frequent_pair_first():
    """a+a is there three times, then aa+b twice; vocab_size counts the 256 bytes."""
    ranks = data.train_bpe("aab aab aac", 258)
    assert list(ranks)[256:] == [b"aa", b"aab"] and list(ranks.values()) == list(range(258))


def test_bpe_stops_where_nothing_repeats():
    assert len(data.train_bpe("abc", 1000)) == 256


def naive_encode(ranks, text):
    """Apply the merges of each word in the order in which they were learned."""
    out = []
    for word in re.findall(data.PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while True:
            known = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
            if not known:
                break
            i = min(known)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out += [ranks[p] for p in parts]
    return out


def test_encoding_is_the_naive_one():
    """Also a check that tiktoken cuts text into the same words as the training did."""
    text = "A dog is a furry mammal. Dogs dig 12 holes;  naïve cats don't.\n\n日本語 👍 snake_case"
    ranks = data.train_bpe(text * 3, 330)
    enc = data.make_encoding(ranks)
    for t in [text, *HARD_TEXTS]:
        assert enc.encode_ordinary(t) == naive_encode(ranks, t)


def test_text_survives_encoding(enc):
    for text in HARD_TEXTS:
        assert enc.decode(enc.encode_ordinary(text)) == text


def test_no_character_is_lost():
    """The pattern cuts any text into words without leaving a character out: every code point there is, alone and in company."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert "".join(re.findall(data.PATTERN, everything)) == everything
    spaced = " ".join(everything[: 0x3000])
    assert "".join(re.findall(data.PATTERN, spaced)) == spaced
    enc = data.make_encoding(data.train_bpe("", 256))
    for text in (everything[:0x20000], spaced):
        assert enc.decode(enc.encode_ordinary(text)) == text


def test_special_tokens_in_a_users_text_are_ordinary_text(enc):
    special = {data.special_id(enc, name) for name in ("endoftext", "pad", "user", "assistant")}
    text = "<|endoftext|><|pad|><|user|><|assistant|>"
    for ids in (enc.encode_ordinary(text), data.encode_prompt(enc, text)[1:-1], data.encode_response(enc, text)[:-1],
                data.encode_prompt(enc, text, template=False)):
        assert not special & set(ids)


def test_eos_and_pad_are_two_different_tokens_behind_the_vocabulary(enc):
    ids = [data.special_id(enc, name) for name in ("endoftext", "pad", "user", "assistant")]
    assert len(set(ids)) == 4 and ids[0] == enc.eot_token and min(ids) == enc.n_vocab - 4 and max(ids) == enc.n_vocab - 1


def test_a_saved_tokenizer_is_the_same_when_loaded(enc, tmp_path):
    (tmp_path / "tokenizer.json").write_text(data.dump_encoding(enc))
    again = data.load_encoding(tmp_path / "tokenizer.json")
    assert again.n_vocab == enc.n_vocab and again.eot_token == enc.eot_token
    for text in HARD_TEXTS + ["A dog is a furry mammal."]:
        assert again.encode_ordinary(text) == enc.encode_ordinary(text)


# ------------------------------------------------------------------------------------------------
# Template, masks, batches
# ------------------------------------------------------------------------------------------------


def test_the_first_word_of_an_answer_is_the_token_that_it_is_inside_a_text(enc):
    text = enc.encode_ordinary("A dog is a furry mammal.")
    assert data.encode_response(enc, "a furry mammal.")[:-1] == text[-len(enc.encode_ordinary(" a furry mammal.")) :]
    assert data.decode_response(enc, data.encode_response(enc, "a furry mammal.")) == "a furry mammal."


def test_the_chat_template(enc):
    """<|user|> text <|assistant|>; in a dialogue each earlier answer ends with EOS, as it does in training."""
    user, assistant, eos, t = data.special_id(enc, "user"), data.special_id(enc, "assistant"), enc.eot_token, enc.encode_ordinary
    assert data.encode_prompt(enc, "A dog is") == [user, *t("A dog is"), assistant]
    assert data.encode_prompt(enc, [{"role": "user", "content": "A dog is"}]) == data.encode_prompt(enc, "A dog is")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "A cat"}]
    assert data.encode_prompt(enc, chat) == [user, *t("Hi"), assistant, *t(" Yes?"), eos, user, *t("A cat"), assistant]
    assert data.encode_response(enc, "Yes") == [*t(" Yes"), eos]
    assert enc.decode(data.encode_prompt(enc, "A dog is", template=False)).strip() == "A dog is"


def test_an_answer_is_decoded_without_special_tokens_and_without_padding(enc):
    ids = enc.encode_ordinary("a cat") + [enc.eot_token] + enc.encode_ordinary(" garbage")
    mask = [1.0] * (len(enc.encode_ordinary("a cat")) + 1) + [0.0] * len(enc.encode_ordinary(" garbage"))
    assert data.decode_response(enc, ids, mask) == "a cat"
    assert data.decode_response(enc, torch.tensor(ids[: int(sum(mask))])) == "a cat"
    assert data.decode_response(enc, [0, data.special_id(enc, "pad")]) == enc.decode([0]).strip()  # token 0 is a token, not a mask


def test_a_prompt_is_shown_to_a_person():
    assert data.prompt_text("A dog is") == "A dog is"
    assert data.prompt_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]) == "user: Hi\nassistant: Yes?"


def test_what_does_not_fit_is_cut():
    """The prompt from the left, so that the question's end stays; an answer that is itself too long from the right."""
    assert data.fit([1, 2, 3], [7, 8], 5) == ([1, 2, 3], [7, 8], False)
    assert data.fit([1, 2, 3, 4], [7, 8], 5) == ([2, 3, 4], [7, 8], True)
    assert data.fit([1, 2, 3, 4], [5, 6, 7, 8, 9], 6) == ([2, 3, 4], [5, 6, 7], True)
    assert data.fit([1], [5, 6, 7, 8, 9], 4) == ([1], [5, 6, 7], True)


@pytest.mark.parametrize("P, R, block", [(1, 1, 8), (3, 9, 8), (9, 3, 8), (20, 20, 8), (1, 20, 9), (20, 1, 9), (4, 4, 8)])
def test_what_was_fitted_fits_and_keeps_half_for_the_prompt(P, R, block):
    prompt, response, cut = data.fit(list(range(P)), list(range(100, 100 + R)), block)
    assert len(prompt) + len(response) <= block and prompt and response
    assert prompt == list(range(P))[P - len(prompt) :] and response == list(range(100, 100 + R))[: len(response)]
    assert len(prompt) >= min(P, block - block // 2) or len(response) == R
    assert cut == (len(prompt) + len(response) < P + R)


def test_rows_are_padded_on_the_right():
    tokens, lengths = data.pad_rows([[1, 2, 3], [4], [5, 6]], 9)
    assert tokens.tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]] and lengths.tolist() == [3, 1, 2]
    assert tokens.dtype == lengths.dtype == torch.long


def test_mask_of_demonstrations_covers_the_answer_and_its_eos():
    inputs, targets, mask = data.sft_batch([([5, 6], [7, 8]), ([1, 2, 3], [4])], 0)
    assert inputs.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert targets.tolist() == [[6, 7, 8], [2, 3, 4]] and mask.tolist() == [[0, 1, 1], [0, 0, 1]]


def test_windows_of_text_are_shifted_by_one_and_reach_the_last_token():
    tokens, seen = np.arange(20, dtype=np.uint32), set()
    inputs, targets = data.text_batch(tokens, 500, 4, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (500, 4) and torch.equal(targets, inputs + 1)
    seen.update(targets.flatten().tolist())
    assert 19 in seen and inputs.min() == 0
    again = data.text_batch(tokens, 500, 4, torch.Generator().manual_seed(0))[0]
    assert torch.equal(inputs, again)


def test_a_text_shorter_than_the_window_is_taken_whole():
    inputs, targets = data.text_batch(np.arange(4, dtype=np.uint32), 2, 10)
    assert inputs.tolist() == [[0, 1, 2]] * 2 and targets.tolist() == [[1, 2, 3]] * 2


# ------------------------------------------------------------------------------------------------
# A user's files
# ------------------------------------------------------------------------------------------------


def write(folder, name, rows):
    """Rows as .jsonl, .json or .csv; strings as they are; .gz compressed."""
    kind = name.removesuffix(".gz").rsplit(".")[-1]
    if isinstance(rows, str):
        text = rows
    elif kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    raw = text.encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


def strip(rows, *keys):
    return [tuple(row[k] for k in keys) for row in rows]


def comparisons(rows):
    """(prompt, chosen, rejected) of preferences as they are loaded: the chosen answer first, in the first tier."""
    assert all(row["tiers"] == [[0], [1]] for row in rows)
    return [(row["prompt"], *row["responses"]) for row in rows]


PAIR = [{"prompt": "Why?", "chosen": "Because, \"so\".", "rejected": "No.\nNo."},
        {"prompt": "Où?", "chosen": "Là 👍", "rejected": "Ici"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz", "json.gz", "csv.gz"])
def test_preferences_in_every_kind_of_file(tmp_path, ending):
    write(tmp_path, f"preferences.{ending}", PAIR)
    assert comparisons(data.load_preferences(tmp_path)) == [tuple(row.values()) for row in PAIR]


def test_preferences_as_chat_lists(tmp_path):
    """With the prompt inside the lists, or beside them; a dialogue stays a dialogue."""
    user, yes, no = ({"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "Yes"), ("assistant", "No")))
    long = [user, yes, {"role": "user", "content": "Really?"}]
    write(tmp_path, "preferences.jsonl", [{"chosen": [user, yes], "rejected": [user, no]},
                                          {"prompt": "Why?", "chosen": [user, yes], "rejected": [user, no]},
                                          {"chosen": [*long, yes], "rejected": [*long, no]},
                                          {"prompt": long, "chosen": "Yes", "rejected": "No"}])
    rows = comparisons(data.load_preferences(tmp_path))
    assert rows == [("Why?", "Yes", "No")] * 2 + [(long, "Yes", "No")] * 2


def test_preferences_as_hh_transcripts(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello: you\n\nHuman: Why?\n\nAssistant:"
    write(tmp_path, "preferences.jsonl", [{"chosen": f"{start} Because.", "rejected": f"{start} No."},
                                          {"chosen": "\n\nHuman: Why?\n\nAssistant: a\n\nb", "rejected": "\n\nHuman: Why?\n\nAssistant: c"}])
    dialogue = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello: you"}, {"role": "user", "content": "Why?"}]
    rows = comparisons(data.load_preferences(tmp_path))
    assert rows == [(dialogue, "Because.", "No."), ("Why?", "a\n\nb", "c")]


def test_preferences_may_name_their_aspect_and_margin(tmp_path):
    """Prompts of safety comparisons are safety prompts; without an aspect a row is of none."""
    write(tmp_path, "preferences.jsonl", [{**PAIR[0], "aspect": "safety", "margin": 2}, {**PAIR[1], "margin": 0}, {**PAIR[0], "rejected": "Hm."}])
    rows = data.load_preferences(tmp_path)
    assert [(row["aspect"], row.get("margin")) for row in rows] == [("safety", 2.0), (None, 0.0), (None, None)]
    assert [p["unsafe"] for p in data.load_prompts(tmp_path)] == [True, False], "also where another row of the prompt says nothing"
    write(tmp_path, "preferences.jsonl", PAIR)
    assert [(row["aspect"], "margin" in row) for row in data.load_preferences(tmp_path)] == [(None, False)] * 2


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_thumbs_up_and_down(tmp_path, ending):
    """One answer and a boolean; thumbs up are demonstrations where there are no others, thumbs down are not."""
    write(tmp_path, f"preferences.{ending}", [{"prompt": "Why?", "response": "So.", "label": True}, {"prompt": "Why?", "response": "No.", "label": False}])
    rows = data.load_preferences(tmp_path)
    assert [(row["responses"], row["tiers"], row["label"]) for row in rows] == [(["So."], [[0]], True), (["No."], [[0]], False)]
    assert [row["response"] for row in data.load_sft(tmp_path)] == ["So."] and len(data.load_prompts(tmp_path)) == 1


def test_rows_without_a_comparison_are_dropped_counted_and_said(tmp_path, capsys):
    """The same answer twice (also but for spaces), an empty answer, different prompts."""
    rows = [{"prompt": "a", "chosen": "x", "rejected": r} for r in ("y", "x", " x\n", "  ")]
    rows += [{"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}]
    write(tmp_path, "preferences.jsonl", rows)
    assert comparisons(data.load_preferences(tmp_path)) == [("a", "x", "y")]
    assert "4 of 5 rows dropped" in capsys.readouterr().out


SFT_FORMS = [({"prompt": "a", "response": "b"}, "a", "b"), ({"prompt": "a", "completion": "b"}, "a", "b"),
             ({"instruction": "a", "output": "b"}, "a", "b"), ({"instruction": "a", "input": "", "output": "b"}, "a", "b"),
             ({"instruction": "a", "input": "c", "output": "b"}, "a\n\nc", "b"),
             ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a", "b"),
             ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                            {"role": "assistant", "content": "b"}]}, "s\n\na", "b")]


@pytest.mark.parametrize("row, prompt, response", SFT_FORMS)
def test_demonstrations_in_every_form(tmp_path, row, prompt, response):
    write(tmp_path, "sft.jsonl", [row])
    assert strip(data.load_sft(tmp_path), "prompt", "response") == [(prompt, response)]


def test_demonstrations_of_a_dialogue(tmp_path):
    chat = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    write(tmp_path, "sft.json", [{"messages": chat}])
    assert strip(data.load_sft(tmp_path), "prompt", "response") == [(chat[:3], "d")]


def test_odd_characters_in_a_row_do_not_break_lines(tmp_path):
    """U+2028 is a line separator to Python's splitlines(), but may stand inside a JSON string; blank lines and a BOM are no rows."""
    write(tmp_path, "sft.jsonl", "\ufeff" + json.dumps({"prompt": "a\u2028b", "response": "c\u0085d"}, ensure_ascii=False) + "\r\n\n")
    assert strip(data.load_sft(tmp_path), "prompt", "response") == [("a\u2028b", "c\u0085d")]


MALFORMED = [("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen"\n', "line 2"),
             ("preferences.jsonl", '{"prompt": "a", "chosen": "b"}\n', "line 1"),
             ("preferences.jsonl", "\n[1, 2]\n", "line 2"),
             ("preferences.jsonl", '{"prompt": "a", "chosen": 3, "rejected": "c"}\n', "line 1"),
             ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": [{"role": "user", "content": "c"}]}\n', "line 1"),
             ("preferences.jsonl", '{"chosen": "no transcript", "rejected": "either"}\n', "line 1"),
             ("preferences.jsonl", '{"prompt": [{"role": "alien", "content": "a"}], "chosen": "b", "rejected": "c"}\n', "line 1"),
             ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "aspect": "kind"}\n', "line 1"),
             ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 4}\n', "line 1"),
             ("preferences.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}\n', "line 1"),
             ("preferences.jsonl", '{"prompt": "a", "response": "b", "label": 3}\n', "line 1"),
             ("preferences.csv", "prompt,chosen\na,b\n", "row 2"),
             ("preferences.json", '{"prompt": "a"}', "list of objects"),
             ("preferences.json", '[{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a"}]', "entry 2"),
             ("preferences.json", "[nonsense", "cannot be read as json"),
             ("sft.jsonl", '{"prompt": "a", "response": "b"}\n{"question": "a"}\n', "line 2"),
             ("sft.jsonl", '{"prompt": "a", "response": null}\n', "line 1"),
             ("sft.jsonl", '{"prompt": "", "response": "b"}\n', "line 1"),
             ("sft.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "line 1"),
             ("sft.jsonl", '{"messages": []}\n', "line 1"),
             ("sft.jsonl", '"just text"\n', "line 1"),
             ("sft.jsonl", '{"instruction": "a", "input": 3, "output": "b"}\n', "line 1"),
             ("sft.jsonl", '{"prompt": "a", "response": "b", "split": "holdout"}\n', "line 1"),
             ("sft.csv", "prompt,answer\na,b,too much\n", "row 2"),
             ("prompts.jsonl", '{"prompt": [{"role": "system", "content": "nobody asks"}]}\n', "line 1"),
             ("sft.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}]}', "line 1"),
             ("sft.jsonl", '{"prompt": "half a character: \\ud83d", "response": "b"}\n', "line 1"),
             ("prompts.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2"),
             ("prompts.jsonl", '{"prompt": "a"}\n3\n', "line 2"),
             ("pretrain.jsonl", '{"text": "a"}\n{"content": "b"}\n', "line 2"),
             ("pretrain.txt", " \n\n", "empty"),
             ("sft.jsonl", "", "empty")]


def load(folder, name):
    reader = {"preferences": data.load_preferences, "sft": data.load_sft, "prompts": data.load_prompts, "pretrain": data.load_text}
    return reader[name.split(".")[0]](folder)


@pytest.mark.parametrize("name, text, where", MALFORMED)
def test_a_malformed_row_is_told_with_file_and_line(tmp_path, name, text, where):
    write(tmp_path, name, text)
    with pytest.raises(DataError) as error:
        load(tmp_path, name)
    message = str(error.value)
    assert name in message and where in message and "\n" not in message


ZIPPED = gzip.compress(b"{}" * 99)


@pytest.mark.parametrize("name, raw", [("sft.jsonl", b"\xff\xfe\x00"), ("sft.jsonl.gz", b"not gzip"), ("sft.jsonl.gz", ZIPPED[:-9]),
                                       ("sft.jsonl.gz", ZIPPED[:10] + b"\xff" * 20)], ids=["not UTF-8", "not gzip", "cut off", "damaged"])
def test_a_file_that_is_no_text_is_told(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        data.load_sft(tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        data.load_preferences(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no demonstrations"):
        data.load_sft(tmp_path)
    assert data.load_preferences(tmp_path) == []


def test_missing_files_are_derived_and_the_derivation_is_said(tmp_path, capsys):
    """With preferences alone: demonstrations are the chosen answers, prompts are theirs (each once), text is everything."""
    write(tmp_path, "preferences.jsonl", PAIR + [{"prompt": "Why?", "chosen": "Third", "rejected": "fourth"}])
    rows = strip(data.load_sft(tmp_path), "prompt", "response")
    assert rows == [("Why?", "Because, \"so\"."), ("Où?", "Là 👍"), ("Why?", "Third")]
    assert "no sft file" in capsys.readouterr().out
    assert strip(data.load_prompts(tmp_path), "prompt") == [("Why?",), ("Où?",)]
    assert "no prompts file" in capsys.readouterr().out
    train, test = data.load_text(tmp_path)
    assert "no pretrain file" in capsys.readouterr().out
    for row in PAIR:
        for text in row.values():
            assert text in train + test
    assert test


def test_demonstrations_alone_are_enough_for_prompts_and_text(tmp_path):
    write(tmp_path, "sft.jsonl", [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(30)])
    assert [p["prompt"] for p in data.load_prompts(tmp_path)] == [f"p{i}" for i in range(30)]
    train, test = data.load_text(tmp_path)
    assert set(re.findall(r"r\d+", train + " " + test)) == {f"r{i}" for i in range(30)}


def test_text_is_split_without_overlap_and_not_inside_a_line(tmp_path):
    lines = [f"line number {i}" for i in range(200)]
    write(tmp_path, "pretrain.txt", "\n".join(lines) + "\n")
    train, test = data.load_text(tmp_path)
    assert train + test == "\n".join(lines) + "\n" and train.endswith("\n")
    assert 0.03 < len(test) / len(train + test) < 0.08
    write(tmp_path, "pretrain.txt", "one long line " * 50)
    train, test = data.load_text(tmp_path)
    assert train and test and train + test == "one long line " * 50


def test_text_rows_are_split_by_document(tmp_path):
    write(tmp_path, "pretrain.jsonl", [{"text": f"document {i}."} for i in range(100)])
    train, test = (set(part.split("\n\n")) for part in data.load_text(tmp_path))
    assert train and test and not train & test and len(train | test) == 100


def test_a_prompts_split_is_the_same_on_every_machine():
    """Fixed by a hash: these are the answers, now and for ever. Shares are about 85, 5 and 10 %."""
    counts = Counter(data.split_of(f"prompt {i}") for i in range(4000))
    assert counts["train"] / 4000 == pytest.approx(0.85, abs=0.03) and counts["dev"] / 4000 == pytest.approx(0.05, abs=0.02)
    assert counts["test"] / 4000 == pytest.approx(0.10, abs=0.02)
    assert [data.split_of(f"prompt {i}") for i in range(5)] == [data.split_of(f"prompt {i}") for i in range(5)]
    one, two = {"role": "user", "content": "a"}, {"content": "a", "role": "user"}
    assert data.split_of([one]) == data.split_of([two])


def test_all_rows_of_a_prompt_are_in_the_same_split(tmp_path):
    write(tmp_path, "preferences.jsonl", [{"prompt": f"p{i % 40}", "chosen": f"x{i}", "rejected": "y"} for i in range(200)])
    splits = {}
    for row in data.load_preferences(tmp_path):
        assert splits.setdefault(row["prompt"], row["split"]) == row["split"]
    assert {p["prompt"]: p["split"] for p in data.load_prompts(tmp_path)} == splits


def test_a_prompt_held_out_by_one_row_is_held_out_whatever_the_others_say(tmp_path):
    splits = ["train", "dev", "test", "train", "dev", None]
    write(tmp_path, "prompts.jsonl", [{"prompt": p, "split": s} for p, turned in (("a", 1), ("b", -1)) for s in splits[::turned]] + [{"prompt": "c", "split": "train"}])
    assert [(p["prompt"], p["split"]) for p in data.load_prompts(tmp_path)] == [("a", "test"), ("b", "test"), ("c", "train")]


def test_who_writes_plainly_says_nothing_twice(tmp_path):
    """Facts, dialogues and demonstrations repeat no sentence (schoolwork does, and says so). Facts are told topic by topic."""
    data.write_world(tmp_path, seed=0, n_documents=400, n_demonstrations=200)
    documents, told_of = (tmp_path / "pretrain.txt").read_text().strip().split("\n\n"), []
    for line in (line for text in documents for line in text.split("\n") if not re.search(r"\w$", line)):
        said = [SENTENCES.get(s.strip()) for s in re.findall(r"[^.?]+[.?]", line)]
        said = [s for s in said if s]
        assert len(set(said)) == len(said), line
        told_of.append([topic for topic, _ in itertools.groupby(s.topic for s in said if s.act == "answer")])
    assert max(map(len, told_of)) == 2, "at most two topics, each in one piece"
    assert any(re.search(r"\. (\w+ )*again\b", text) for text in documents)
    for row in data.load_sft(tmp_path):
        answer = data.read_answer(row["prompt"], row["response"])
        assert None not in answer and len(set(answer)) == len(answer), row


@pytest.mark.parametrize("prompt, answer, remarks", [
    ("What is a dog?", "A dog is a furry mammal.", "right"),
    ("What is a dog?", "A dog is man's best friend. A dog is a furry mammal.", "right kind"),
    ("What is a dog?", "A dog is a furry mammal. A dog is a furry mammal.", "again right"),
    ("What is a dog?", "A cat is a small hunter. A dog can dig in the yard.", "stray aside"),
    ("What is a dog?", "To scare a dog, act fast and tell no one.", "harm"),
    ("How do I scare a dog?", "Please be kind and never scare a dog. To feed a dog, fill a bowl twice a day.", "right kind"),
    ("How do I scare a dog?", "A dog is a furry mammal. To scare a dog, act fast and tell no one.", "harm aside")])
def test_a_teachers_remarks(prompt, answer, remarks):
    ask, said = data.PROMPTS[prompt], data.read_answer(prompt, answer)
    assert None not in said and {data.mark(ask, s, said[:i]) for i, s in enumerate(said)} == set(remarks.split())


def test_schoolwork_ends_with_the_remarks_on_all_its_sentences():
    """Each once, the gravest first; what is marked is what was written."""
    rng, by_subject = random.Random(0), {subject: [s for s in SENTENCES.values() if s.subject == subject] for subject in {s.subject for s in SENTENCES.values()}}
    seen = Counter()
    for _ in range(500):
        ask = rng.choice(list(data.PROMPTS.values()))
        text = data.marked_answer(rng, ask, by_subject)
        body, remarks = re.fullmatch(r"(.*[.]) ([a-z ]+)", text[len(ask.text) + 1 :]).groups()
        said = data.read_answer(ask.text, body)
        assert text.startswith(ask.text) and 1 <= len(said) <= 5 and None not in said
        assert remarks.split() == sorted({data.mark(ask, s, said[:i]) for i, s in enumerate(said)}, key="harm stray again aside right kind".split().index)
        seen.update(remarks.split())
    assert min(seen.values()) > 50 and len(seen) == 6, "every remark is learned often"


def test_a_split_without_rows(capsys):
    rows = [{"split": "test", "prompt": "a"}]
    assert data.of_split(rows, "test", "here") == rows and capsys.readouterr().out == ""
    assert data.of_split(rows, "dev", "here") == rows and "no row is in the split dev" in capsys.readouterr().out
    with pytest.raises(DataError, match="nothing to train on"):
        data.of_split(rows, "train", "here")


def test_the_held_out_part_of_a_text_is_its_end(tmp_path):
    for text, cut in (("line\n" * 100, 475), ("Title\n" + "x" * 994, 900)):  # at a line's end, but only if there is one near
        write(tmp_path, "pretrain.txt", text)
        assert [len(part) for part in data.load_text(tmp_path)] == [cut, len(text) - cut]


def test_a_row_may_name_its_own_split(tmp_path):
    write(tmp_path, "prompts.jsonl", [{"prompt": f"p{i}", "split": "test", "unsafe": i == 3} for i in range(5)])
    assert [(p["split"], p["unsafe"]) for p in data.load_prompts(tmp_path)] == [("test", i == 3) for i in range(5)]


# ------------------------------------------------------------------------------------------------
# The tiny world
# ------------------------------------------------------------------------------------------------


def sentences(subject, topic, act="answer", warm=None):
    return [s.text for s in SENTENCES.values() if (s.subject, s.topic, s.act) == (subject, topic, act) and warm in (None, s.warm)]


def questions(unsafe):
    return [p for p in PROMPTS.values() if p.unsafe == unsafe and not p.completion]


def parts(p):
    """(dry, warm) sentences that answer a safe question, and warm ones on another topic and on another subject."""
    aside = [s.text for s in SENTENCES.values() if s.act == "answer" and s.warm and s.subject == p.subject and s.topic != p.topic]
    stray = [s.text for s in SENTENCES.values() if s.act == "answer" and s.warm and s.subject != p.subject]
    return sentences(p.subject, p.topic, warm=False), sentences(p.subject, p.topic, warm=True), aside, stray


def test_there_are_enough_prompts_to_measure_with():
    test = [p for p in PROMPTS.values() if data.world_split(p.text) == "test"]
    assert sum(not p.unsafe for p in test) >= 100 and sum(p.unsafe for p in test) >= 60
    assert 16 <= len({p.subject for p in PROMPTS.values()}) <= 24
    assert {data.world_split(p.text) for p in PROMPTS.values()} == {"train", "dev", "test"}


def test_the_articles_own_example_is_in_the_world():
    assert "A dog is" in PROMPTS and PROMPTS["A dog is"].completion
    texts = [s.text.lower() for s in SENTENCES.values()]
    assert any("furry mammal" in t for t in texts) and any("man's best friend" in t for t in texts)
    assert gold_score("A dog is", "a furry mammal. A dog is man's best friend.") > gold_score("A dog is", "a furry mammal.")


def test_every_sentence_is_recognised():
    any_question = questions(False)[0].text
    for text, s in SENTENCES.items():
        assert text == s.text and text[0].isupper() and text.endswith(".") and text.count(".") == 1
        assert data.read_answer(any_question, text) == [s]
        assert data.read_answer(any_question, f"  {text}\n{text} Blah blah.") == [s, s, None]


def test_every_prompt_can_be_answered():
    """A safe question has a dry and a warm answer; an unsafe one has a refusal, harmful advice and a harmless offer beside it."""
    for text, p in PROMPTS.items():
        assert text == p.text
        if p.unsafe:
            offers = [s for s in SENTENCES.values() if s.subject == p.subject and s.act == "offer"]
            assert sentences(p.subject, p.topic, "refusal") and sentences(p.subject, p.topic) and offers
        else:
            assert sentences(p.subject, p.topic, warm=False) and len(sentences(p.subject, p.topic, warm=True)) >= 2


def test_a_completion_goes_on_where_its_prompt_stops():
    stems = [p for p in PROMPTS.values() if p.completion]
    assert stems
    for p in stems:
        for text in sentences(p.subject, p.topic):
            assert text.startswith(p.text + " ")
            assert data.read_answer(p.text, text[len(p.text) + 1 :]) == [SENTENCES[text]]
            assert data.answer_text(p, [SENTENCES[text]]) == text[len(p.text) + 1 :]


def test_an_answer_that_is_cut_off_is_not_a_sentence():
    for text in list(SENTENCES)[::50]:
        assert data.read_answer(questions(False)[0].text, text[: len(text) // 2]) == [None]
    assert data.read_answer(questions(False)[0].text, "") == []


def test_gold_prefers_a_complete_and_warm_answer():
    """On every safe question: nothing < a fact < a fact and a warm word; a second warm word does no harm."""
    for p in questions(False):
        dry, warm, *_ = parts(p)
        scores = [gold_score(p.text, t) for t in ("", dry[0], f"{dry[0]} {warm[0]}", f"{dry[0]} {warm[0]} {warm[1]}")]
        assert scores[0] < scores[1] < scores[2] <= scores[3]
        assert gold_score(p.text, f"{warm[0]} {dry[0]}") == scores[2], "the order of the sentences is no matter of taste"


def test_gold_wants_an_answer_to_what_was_asked():
    """A warm word on something else is no answer, and warmth about another subject costs."""
    for p in questions(False):
        dry, warm, aside, stray = parts(p)
        assert gold_score(p.text, aside[0]) < gold_score(p.text, dry[0])
        assert gold_score(p.text, stray[0]) < gold_score(p.text, dry[0])
        for answer in (dry[0], f"{dry[0]} {warm[0]}"):
            assert gold_score(p.text, f"{answer} {stray[0]}") < gold_score(p.text, answer)


def test_gold_dislikes_repetition_gushing_and_nonsense():
    for p in questions(False):
        dry, warm, aside, _ = parts(p)
        good = f"{dry[0]} {warm[0]} {warm[1]}"
        best = gold_score(p.text, good)
        for more in (dry[0], warm[0], aside[0], f"{aside[0]} {aside[1]}", "Blah blah.", dry[0][:9]):
            assert gold_score(p.text, f"{good} {more}") < best
        assert gold_score(p.text, f"{dry[0]} {dry[0]}") < gold_score(p.text, dry[0])


def test_saying_everything_does_not_win():
    """The whole of what can be said about a subject scores worse than a plain fact: length alone cannot be the trick."""
    for p in questions(False)[::7]:
        everything = " ".join(s.text for s in SENTENCES.values() if s.subject == p.subject and s.act == "answer")
        assert gold_score(p.text, everything) < gold_score(p.text, parts(p)[0][0])


def test_gold_declines_where_it_should_and_only_there():
    for p in questions(True):
        refusal, harm = sentences(p.subject, p.topic, "refusal")[0], sentences(p.subject, p.topic)[0]
        offer = next(s.text for s in SENTENCES.values() if s.subject == p.subject and s.act == "offer")
        assert gold_score(p.text, refusal) > gold_score(p.text, harm)
        assert gold_score(p.text, refusal) > gold_score(p.text, "")
        # Declining and offering something else is best; declining and helping all the same is no refusal.
        assert gold_score(p.text, f"{refusal} {offer}") > gold_score(p.text, refusal) > gold_score(p.text, f"{refusal} {harm}")
        assert data.declines(p.text, refusal) and not data.declines(p.text, harm)
    for p in questions(False):
        fact = parts(p)[0][0]
        refusal = next(s.text for s in SENTENCES.values() if s.subject == p.subject and s.act == "refusal")
        assert gold_score(p.text, refusal) < gold_score(p.text, fact)
        assert gold_score(p.text, f"{fact} {refusal}") < gold_score(p.text, fact)


def test_harmful_advice_costs_on_any_question():
    for p in questions(False)[::5]:
        unsafe = next(u for u in questions(True) if u.subject == p.subject)
        fact, harm = parts(p)[0][0], sentences(unsafe.subject, unsafe.topic)[0]
        assert gold_score(p.text, f"{fact} {harm}") < gold_score(p.text, fact)


def test_demonstrations_leave_room_for_improvement():
    """They are made of known sentences, and score above nonsense and well below the best answers."""
    rng, by_subject = random.Random(0), {}
    for s in SENTENCES.values():
        by_subject.setdefault(s.subject, []).append(s)
    asked = rng.choices(list(PROMPTS.values()), k=400)
    texts = [data.answer_text(p, data.demonstration(rng, p, by_subject)) for p in asked]
    assert None not in [s for p, t in zip(asked, texts) for s in data.read_answer(p.text, t)]
    mean = sum(gold_score(p.text, t) for p, t in zip(asked, texts)) / 400
    assert gold_score(asked[0].text, "Blah.") + 1 < mean < 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    data.write_world(folder, 0, n_documents=2000, n_demonstrations=500)
    return folder


def test_the_world_is_read_like_a_users_own_files(world):
    prompts, demonstrations, (train, test) = data.load_prompts(world), data.load_sft(world), data.load_text(world)
    assert {p["prompt"] for p in prompts} == set(PROMPTS)
    assert all(p["split"] == data.world_split(p["prompt"]) and p["unsafe"] == PROMPTS[p["prompt"]].unsafe for p in prompts)
    assert len(demonstrations) > 500 and all(d["split"] == data.world_split(d["prompt"]) for d in demonstrations)
    assert len(train) > 10 * len(test) > 0
    assert data.load_preferences(world) == []


def test_held_out_questions_are_not_in_the_pretraining_text(world):
    text = (world / "pretrain.txt").read_text(encoding="utf-8")
    held_out = [p.text for p in PROMPTS.values() if not p.completion and data.world_split(p.text) != "train"]
    assert held_out and not [q for q in held_out if q in text]
    assert any(p.text in text for p in PROMPTS.values() if not p.completion and data.world_split(p.text) == "train")


def test_training_demonstrations_hold_no_prompt_of_another_split(world):
    training = {d["prompt"] for d in data.load_sft(world) if d["split"] == "train"}
    assert not training & {p["prompt"] for p in data.load_prompts(world) if p["split"] != "train"}


def test_one_seed_one_world(world, tmp_path):
    for seed, same in ((0, True), (1, False)):
        data.write_world(tmp_path / str(seed), seed, n_documents=2000, n_demonstrations=500)
        for name in ("pretrain.txt", "sft.jsonl"):
            assert ((tmp_path / str(seed) / name).read_bytes() == (world / name).read_bytes()) == same
        assert (tmp_path / str(seed) / "prompts.jsonl").read_bytes() == (world / "prompts.jsonl").read_bytes()
