"""Tokenizer, template, masks and batches, rankings and their pairs, the files of a data folder."""
import json
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
import regex
import tiktoken
import torch

import data
from data import UserError
from world.tiny import write_world

HARD_TEXTS = [
    "", " ", "\n\n\n", "a", "Hello, world!  Two spaces\tand a tab.\r\n", "naïve café Ünïcödé",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 🏳️‍🌈 emoji", "snake_case __x__ 3.14e-7",
    "  leading and trailing  ", "عربى עברית हिन्दी",
    "x" * 300,
    "\u2028line\u2029paragraph\u00a0space\ufeff", "<|endoftext|> <|pad|><|user|> <|assistant|>", "a\x00b\x7f",
]

# ------------------------------------------------------------------------------------------------
# The tokenizer
# ------------------------------------------------------------------------------------------------


def naive_bpe(text, vocab_size):
    """The definition: count all neighbours everywhere, merge the most frequent pair everywhere, repeat."""
    words = [[bytes([b]) for b in word.encode()] for word in regex.findall(data.PATTERN, text)]
    vocabulary = [bytes([b]) for b in range(256)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    while len(vocabulary) < vocab_size:
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
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
    """Counts that are updated only where a merge happened must stay the true counts, in overlaps
    such as aaaa, too."""
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
    for word in regex.findall(data.PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while True:
            pairs = enumerate(zip(parts, parts[1:], strict=False))
            known = [(ranks[a + b], i) for i, (a, b) in pairs if a + b in ranks]
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


def pieces_of_tiktoken(text):
    """Where tiktoken cuts a text: each part of it is a token here, so each piece becomes one."""
    parts = {text[i:j].encode() for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    ranks = {bytes([i]): i for i in range(256)}
    for part in sorted(parts - ranks.keys()):
        ranks[part] = len(ranks)
    enc = data.make_encoding(ranks)
    return [enc.decode([i]) for i in enc.encode_ordinary(text)]


SCRIPTS = {
    "Hindi": "हिन्दी में लिखी हुई बातें, क्या कहें?",
    "Thai": "ภาษาไทยที่นี่ มีสระ ๑๒๓", "Tamil": "தமிழ் மொழி",
    "Arabic with marks": "الحَمْدُ لِلَّهِ رَبِّ العَالَمِينَ ١٢", "Hebrew with points": "בְּרֵאשִׁית בָּרָא",
    "NFD Latin": unicodedata.normalize("NFD", "naïve café Ünïcödé Việt Nam"),
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 1️⃣", "superscripts": "x² ½ Ⅷ", "controls": "a\x1cb \x1d\x85c\u200bd",
}


@pytest.mark.parametrize("text", [*SCRIPTS.values(), *filter(None, HARD_TEXTS[:-6])], ids=ascii)
def test_training_cuts_words_where_the_encoder_does(text):
    assert regex.findall(data.PATTERN, text) == pieces_of_tiktoken(text)


def test_both_engines_know_the_same_letters():
    """The classes of PATTERN hold the same characters, but for those that tiktoken's tables do not know yet.
    Whether one is in a class is seen by a mark behind it, with which it then is one token."""
    characters = [chr(c) for c in range(0x3000)]
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {(c + "@").encode(): 256 + i for i, c in enumerate(characters)}

    def tiktokens(name):
        enc = tiktoken.Encoding("x", pat_str=name + r"@|[\s\S]", mergeable_ranks=ranks, special_tokens={})
        return {c for c in characters if len(enc.encode_ordinary(c + "@")) == 1}

    unknown = tiktokens(r"\p{Cn}")
    for name in (r"\w", r"\d", r"\s"):
        assert tiktokens(name) - unknown == {c for c in characters if regex.fullmatch(name, c)} - unknown


def test_words_with_vowel_signs_become_tokens():
    text = SCRIPTS["Hindi"] + "\n"
    ranks = data.train_bpe(text * 3, 400)
    assert " लिखी".encode() in ranks and " कहें".encode() in ranks
    assert len(data.make_encoding(ranks).encode_ordinary(text)) <= len(text.split()) + 3


def test_ascii_is_cut_as_before(tmp_path):
    """As Python's `re` cuts it, but for four control characters; so the tiny world's tokenizer is what it
    was."""
    write_world(tmp_path, 0, 300, 30)
    characters = [chr(c) for c in range(128) if not 28 <= c < 32]
    text = data.load_text(tmp_path)[0]
    text += "".join(f"{a}{b} {b}{a}{a} " for a in characters for b in "a1_.! \n\t")
    assert regex.findall(data.PATTERN, text) == re.findall(data.PATTERN, text)


def test_text_survives_encoding(enc):
    for text in HARD_TEXTS:
        assert enc.decode(enc.encode_ordinary(text)) == text


def test_no_character_is_lost():
    """The pattern cuts any text into words without leaving a character out: every code point there is, alone
    and in company."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert "".join(regex.findall(data.PATTERN, everything)) == everything
    spaced = " ".join(everything[: 0x3000])
    assert "".join(regex.findall(data.PATTERN, spaced)) == spaced
    enc = data.make_encoding(data.train_bpe("", 256))
    for text in (everything[:0x20000], spaced):
        assert enc.decode(enc.encode_ordinary(text)) == text


def test_special_tokens_in_a_users_text_are_ordinary_text(enc):
    special = {data.special_id(enc, name) for name in ("endoftext", "pad", "user", "assistant")}
    text = "<|endoftext|><|pad|><|user|><|assistant|>"
    assert not special & set(enc.encode_ordinary(text))
    assert not special & set(data.encode_prompt(enc, text)[1:-1])
    assert not special & set(data.encode_response(enc, text)[:-1])
    assert not special & set(data.encode_prompt(enc, text, template=False))


def test_eos_and_pad_are_two_different_tokens_behind_the_vocabulary(enc):
    ids = [data.special_id(enc, name) for name in ("endoftext", "pad", "user", "assistant")]
    assert sorted(ids) == list(range(enc.n_vocab - 4, enc.n_vocab)) and ids[0] == enc.eot_token


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
    answer = data.encode_response(enc, "a furry mammal.")[:-1]
    assert answer == text[-len(answer) :]
    assert data.decode_response(enc, data.encode_response(enc, "a furry mammal.")) == "a furry mammal."


def test_the_chat_template(enc):
    """<|user|> text <|assistant|>; in a dialogue each earlier answer ends with EOS, as in training."""
    user, assistant, eos = data.special_id(enc, "user"), data.special_id(enc, "assistant"), enc.eot_token
    t = enc.encode_ordinary
    turn = {"role": "user", "content": "A dog is"}
    assert data.encode_prompt(enc, "A dog is") == [user, *t("A dog is"), assistant]
    assert data.encode_prompt(enc, [turn]) == data.encode_prompt(enc, "A dog is")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, turn]
    assert data.encode_prompt(enc, chat) == [
        user, *t("Hi"), assistant, *t(" Yes?"), eos, user, *t("A dog is"), assistant]
    assert data.encode_response(enc, "Yes") == [*t(" Yes"), eos]
    assert enc.decode(data.encode_prompt(enc, "A dog is", template=False)).strip() == "A dog is"


def test_an_answer_is_decoded_without_its_end_and_without_padding(enc):
    ids = enc.encode_ordinary("a cat") + [enc.eot_token] + enc.encode_ordinary(" garbage")
    mask = [1.0] * (len(enc.encode_ordinary("a cat")) + 1) + [0.0] * len(enc.encode_ordinary(" garbage"))
    assert data.decode_response(enc, ids, mask) == "a cat"
    assert data.decode_response(enc, torch.tensor(ids[: int(sum(mask))])) == "a cat"
    zero = data.decode_response(enc, [0, enc.eot_token])
    assert zero == enc.decode([0]).strip(), "token 0 is a token, not a mask"
    user = enc.encode_ordinary("a") + [data.special_id(enc, "user")]
    assert data.decode_response(enc, user, [1.0, 1.0]) == "a<|user|>", "nothing hides from the reader"


def test_a_prompt_is_shown_to_a_person():
    assert data.prompt_text("A dog is") == "A dog is"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert data.prompt_text(chat) == "user: Hi\nassistant: Yes?"


def test_what_does_not_fit_is_cut():
    """The prompt from the left, so that the question's end stays; an answer that is itself too long from the
    right."""
    assert data.fit([1, 2, 3], [7, 8], 5) == ([1, 2, 3], [7, 8], False)
    assert data.fit([1, 2, 3, 4], [7, 8], 5) == ([2, 3, 4], [7, 8], True)
    assert data.fit([1, 2, 3, 4], [5, 6, 7, 8, 9], 6) == ([2, 3, 4], [5, 6, 7], True)
    assert data.fit([1], [5, 6, 7, 8, 9], 4) == ([1], [5, 6, 7], True)


@pytest.mark.parametrize("P, R, block", [
    (1, 1, 8), (3, 9, 8), (9, 3, 8), (20, 20, 8), (1, 20, 9), (20, 1, 9), (4, 4, 8)])
def test_what_was_fitted_fits_and_keeps_half_for_the_prompt(P, R, block):
    prompt, response, cut = data.fit(list(range(P)), list(range(100, 100 + R)), block)
    assert len(prompt) + len(response) <= block and prompt and response
    assert prompt == list(range(P))[P - len(prompt) :]
    assert response == list(range(100, 100 + R))[: len(response)]
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


def test_prompts_and_answers_are_laid_out_within_the_context(enc):
    """Row by row: encoded, and cut by fit where they are too long."""
    prompts, answers = ["A dog is", "What is a cat?"], ["a furry mammal.", "a small hunter."]
    rows = data.lay_out(enc, prompts, answers, 100)
    assert rows == [(data.encode_prompt(enc, p), data.encode_response(enc, r))
                    for p, r in zip(prompts, answers, strict=True)]
    short = data.lay_out(enc, prompts, answers, 8)
    assert short == [data.fit(p, r, 8)[:2] for p, r in rows] and all(len(p) + len(r) <= 8 for p, r in short)
    with pytest.raises(ValueError):
        data.lay_out(enc, prompts, answers[:1], 100)


# ------------------------------------------------------------------------------------------------
# Passes over rows
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, batch_size", [(1, 8), (8, 8), (20, 8), (21, 8), (100, 7), (3, 1)])
def test_every_row_is_seen_once_a_pass_in_batches_of_nearly_one_size(n, batch_size):
    per_epoch = data.steps_per_epoch(n, batch_size)
    first, second = ([data.epoch_order(n, e * per_epoch + s, batch_size, 5) for s in range(per_epoch)]
                     for e in range(2))
    sizes = [len(batch) for batch in first]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 1.5 * batch_size
    for batches in (first, second):
        assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert first != second or n < 4, "a new order every time"
    assert data.epoch_order(n, 0, batch_size, 5) == first[0]


def test_a_step_has_as_nearly_a_batch_as_can_be():
    assert [data.steps_per_epoch(n, 8) for n in (1, 11, 15, 17, 21)] == [1, 1, 2, 2, 3]


def test_the_order_depends_on_the_seed():
    assert data.epoch_order(50, 0, 50, 1) != data.epoch_order(50, 0, 50, 2)
    assert data.epoch_order(50, 1, 50, 1) == data.epoch_order(50, 0, 50, 2), "the seed counts the passes, too"


# ------------------------------------------------------------------------------------------------
# Rankings and their pairs
# ------------------------------------------------------------------------------------------------


def test_a_ranking_holds_all_pairs_of_its_answers():
    assert data.ranking_to_pairs([[1], [0, 2]]) == [(1, 0, 1), (1, 2, 1)]
    assert data.ranking_to_pairs([[1], [0, 2]], ties=True) == [(1, 0, 1), (1, 2, 1), (0, 2, 0)]
    assert data.ranking_to_pairs([[2], [0], [1]]) == [(2, 0, 1), (2, 1, 2), (0, 1, 1)]
    assert len(data.ranking_to_pairs([[i] for i in range(9)])) == 36 and data.ranking_to_pairs([]) == []


def test_comparisons_are_certain_and_a_tie_is_even():
    row = {"tiers": [[1], [0, 2]]}
    assert data.comparisons(row) == [(1, 0, 1.0, 1), (1, 2, 1.0, 1)]
    assert data.comparisons(row, ties=True)[2] == (0, 2, 0.5, 0)
    by_ai = {"tiers": [[0], [1], [2]], "pairs": [[0, 2, 0.9], [1, 0, 0.25], [1, 2, 0.5]]}
    assert data.comparisons(by_ai) == [(0, 2, 0.9, 2), (0, 1, 0.75, 1)], "an AI's own pairs, its places apart"
    assert data.comparisons(by_ai, ties=True)[2] == (1, 2, 0.5, 0)


def test_wins_become_tiers():
    """Answers 0 and 2 win once and tie; answer 3 was compared with nothing."""
    nan = float("nan")
    wins = torch.tensor([[nan, 1, 0.5, nan], [0, nan, 0, nan], [0.5, 1, nan, nan], [nan] * 4])
    assert data.wins_to_tiers(wins) == [[0, 2], [1]]
    wins = torch.tensor([[nan, 1, nan], [0, nan, 1], [nan, 0, nan]])
    assert data.wins_to_tiers(wins) == [[0], [1], [2]], "not to be compared costs nothing"
    wins = torch.full((4, 4), nan)
    wins[0, 1], wins[1] = 0.9, torch.tensor([0.1, nan, 0.6, 0.6])
    wins[2, 1] = wins[3, 1] = 0.4
    assert data.wins_to_tiers(wins) == [[0], [1], [2, 3]], "the share of the games, not their sum"
    wins = torch.tensor([[nan, 0.5, 0.6], [0.5, nan, 0.6000002], [0.4, 0.4, nan]])
    assert data.wins_to_tiers(wins) == [[0, 1], [2]], "probabilities add up but for rounding"


def test_what_holds_something_to_learn():
    tie, thumb = {"tiers": [[0, 1]]}, {"responses": ["a"], "tiers": [[0]], "label": False}
    assert data.is_thumb(thumb) and not data.is_thumb(tie)
    assert data.has_pairs(thumb) and data.has_pairs({"tiers": [[0], [1]]})
    assert not data.has_pairs(tie) and data.has_pairs(tie, ties=True)
    assert data.comparisons(thumb, ties=True) == [] and data.batch_pairs([thumb]) == ([], [], [], [])


# ------------------------------------------------------------------------------------------------
# The files of a data folder
# ------------------------------------------------------------------------------------------------


def test_half_a_last_line_is_no_row(tmp_path):
    path = tmp_path / "rankings.jsonl"
    assert data.load_rows(path) == []
    path.write_text('{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n{"pro', encoding="utf-8")
    assert data.load_rows(path) == [{"prompt": "a\u2028b"}, {"prompt": "c"}]
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}')
    assert data.load_rows(path) == [{"prompt": "a"}, {"prompt": "b"}], "whole, but for the end of its line"


def test_each_loader_reads_its_file(tmp_path):
    readers = {"sft": data.load_sft, "prompts": data.load_prompts, "preferences": data.load_preferences}
    for name, load in readers.items():
        row = {"prompt": name, "response": "yes", "split": "train", "unsafe": False}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        assert load(tmp_path) == [row]
    (tmp_path / "pretrain.txt").write_text("one")
    (tmp_path / "pretrain.held_out.txt").write_text("two")
    assert data.load_text(tmp_path) == ("one", "two")


def test_a_prompts_split_is_the_same_on_every_machine():
    """Fixed by a hash, now and for ever. Shares are about 85, 5 and 10 %."""
    counts = Counter(data.split_of(f"prompt {i}") for i in range(4000))
    assert counts["train"] / 4000 == pytest.approx(0.85, abs=0.03)
    assert counts["dev"] / 4000 == pytest.approx(0.05, abs=0.02)
    assert counts["test"] / 4000 == pytest.approx(0.10, abs=0.02)
    found = [i for i in range(40) if data.split_of(f"prompt {i}") != "train"]
    assert found == [0, 13, 18, 26, 31, 33]
    edges = [data.split_of(f"prompt {i}") for i in (41, 451, 33, 105)]  # hashes 84, 85, 89, 90
    assert edges == ["train", "dev", "dev", "test"]
    for text in "abcdefghijkl":
        one, two = {"role": "user", "content": text}, {"content": text, "role": "user"}
        assert data.split_of([one]) == data.split_of([two])


def test_the_held_out_part_of_a_text_is_its_end():
    """Cut at a line's end, but only if there is one near."""
    for text, cut in (("line\n" * 100, 475), ("Title\n" + "x" * 994, 900), ("word " * 100, 450)):
        assert data.hold_out(text) == (text[:cut], text[cut:])


def test_a_split_without_rows(capsys):
    rows = [{"split": "test", "prompt": "a"}]
    assert data.of_split(rows, "test", "here") == rows and capsys.readouterr().out == ""
    assert data.of_split(rows, "dev", "here") == rows
    assert "no row is in the split dev" in capsys.readouterr().out
    assert data.of_split(rows, "dev", "here") == rows and capsys.readouterr().out == "", "said once"
    with pytest.raises(UserError, match="no row is in the split train"):
        data.of_split(rows, "train", "here")
    for split in ("train", "test"):
        with pytest.raises(UserError, match="here: there are no rows"):
            data.of_split([], split, "here")
