"""Texts in, texts out; the chat, the scores, the blind comparison."""
import json
import re
import sys
from dataclasses import asdict

import pytest
import torch

import data
from data import UserError, dump_encoding, encode_prompt, encode_response
from lab import talk
from lab.records import fingerprint, load_checkpoint
from lab.talk import Answer, answer, answer_kl
from model import generate, log_softmax

# ------------------------------------------------------------------------------------------------
# The sampler of texts
# ------------------------------------------------------------------------------------------------

PROMPTS = ["A dog is", "What is a cat? A cat is a small hunter.", "A", "What is a dog?"]


@pytest.fixture
def policy(make_gpt, enc):
    return make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64)


def test_answers_are_in_the_order_of_the_prompts(policy, enc):
    """Whatever shares a batch: each is the answer that the prompt gets alone, greedily."""
    together = answer(policy, enc, PROMPTS, 8, 0, batch_size=2)
    assert together == [answer(policy, enc, [p], 8, 0)[0] for p in PROMPTS]
    assert len({a.text for a in together}) > 1 and all(a.kl is None for a in together)


def test_an_answer_is_what_was_sampled(policy, enc):
    """Against the sampler itself: text, whether it has an EOS, and its length with the EOS."""
    torch.manual_seed(3)
    got = answer(policy, enc, ["A dog is"], 8, 1.0)[0]
    torch.manual_seed(3)
    ids = torch.tensor([data.encode_prompt(enc, "A dog is")])
    responses, mask, _ = generate(policy, ids, torch.tensor([ids.shape[1]]), 8, 1.0, enc.eot_token,
                                  data.special_id(enc, "pad"))
    assert got.text == data.decode_response(enc, responses[0], mask[0])
    assert got.ended == (enc.eot_token in responses[0].tolist()) and got.length == int(mask.sum())


def test_an_answer_that_ends_at_once(make_bigram, enc):
    """Its length is 1, the EOS; its text is empty. Without an EOS the answer is as long as it may be."""
    table = torch.zeros(enc.n_vocab, enc.n_vocab)
    table[:, enc.eot_token] = 50.0
    assert answer(make_bigram(table), enc, ["A"], 5, 1.0) == [Answer("", True, 1, None)]
    table[:, enc.eot_token] = -50.0
    assert answer(make_bigram(table), enc, ["A"], 5, 1.0)[0][1:3] == (False, 5)


def test_a_long_prompt_loses_its_beginning(policy, enc):
    """64 tokens of context, 8 of them for the answer: the last 56 of the prompt count."""
    end = "What is a cat? " * 20
    short, longer = answer(policy, enc, [end, "A dog is not a cat. " + end], 8, 0)
    assert len(data.encode_prompt(enc, end)) > 56 and short == longer
    with pytest.raises(UserError, match="64 tokens leave no room for a prompt in a context of 64"):
        answer(policy, enc, ["A"], 64, 0)


def test_the_template_is_left_out_for_a_model_that_does_not_know_it(make_bigram, enc):
    """A model that says x behind the template's last token, and y behind any other."""
    x, y = enc.encode_ordinary("x")[0], enc.encode_ordinary("y")[0]
    table = torch.zeros(enc.n_vocab, enc.n_vocab)
    table[:, y] = 50.0
    table[data.special_id(enc, "assistant")] = torch.zeros(enc.n_vocab)
    table[data.special_id(enc, "assistant"), x] = 50.0
    model = make_bigram(table)
    assert answer(model, enc, ["A dog is"], 3, 0)[0].text == "xyy"
    assert answer(model, enc, ["A dog is"], 3, 0, template=False)[0].text == "yyy"


def test_the_kl_to_oneself_is_0_and_only_a_reference_gives_one(policy, make_gpt, enc):
    other = make_gpt(seed=1, std=0.2, vocab_size=enc.n_vocab, block_size=64)
    own = [a.kl for a in answer(policy, enc, PROMPTS, 8, 1.0, reference=policy)]
    assert own == pytest.approx([0] * 4, abs=1e-5)
    assert min(a.kl for a in answer(policy, enc, PROMPTS, 8, 1.0, reference=other)) > 0


def test_the_kl_of_a_bigram_model_by_hand(make_bigram, enc):
    """One token is likelier by 3 than all others in the model, none in the reference: the same KL at each of
    the positions that are visited, so that an answer of n tokens has n times as much; at temperature 2 it is
    the KL of logits half as large, greedily that at temperature 1."""
    V = enc.n_vocab
    table = torch.zeros(V, V)
    table[:, 7] = 3.0
    model, reference = make_bigram(table), make_bigram(torch.zeros(V, V))

    def kl(t):
        p = torch.tensor([3.0] + [0.0] * (V - 1), dtype=torch.float64).div(t).softmax(0)
        return (p * (p * V).log()).sum().item()

    for temperature, t in ((1.0, 1.0), (2.0, 2.0), (0, 1.0)):
        for a in answer(model, enc, ["A", "A dog is"], 6, temperature, reference=reference):
            assert a.kl == pytest.approx(a.length * kl(t), rel=1e-3)


def test_the_kl_counts_no_padding(policy, make_gpt, enc):
    other = make_gpt(seed=1, std=0.2, vocab_size=enc.n_vocab, block_size=64)
    tokens, lengths, mask = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([2]), torch.tensor([[1.0, 1, 0]])
    p, q = (log_softmax(m(tokens)) for m in (policy, other))
    at = (p.exp() * (p - q)).sum(-1)[0]
    with torch.no_grad():
        assert answer_kl(policy, other, tokens, lengths, mask, 1.0).item() == pytest.approx(
            (at[1] + at[2]).item(), rel=1e-4)


def test_the_kl_of_many_answers_is_that_of_each(policy, make_gpt, enc):
    """More answers than are worked out at a time, of different lengths."""
    other = make_gpt(seed=1, std=0.2, vocab_size=enc.n_vocab, block_size=64)
    tokens, lengths = torch.randint(5, 50, (150, 9)), torch.randint(2, 5, (150,))
    mask = (torch.arange(4) < torch.randint(1, 5, (150, 1))).float()
    many = answer_kl(policy, other, tokens, lengths, mask, 1.0)
    assert many.shape == (150,)
    for i in (0, 63, 64, 149):
        one = answer_kl(policy, other, tokens[i : i + 1], lengths[i : i + 1], mask[i : i + 1], 1.0)
        assert many[i].item() == pytest.approx(one.item(), rel=1e-3)


# ------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, make_gpt, enc, monkeypatch):
    """A run folder with random models: sft.pt, ppo.pt, rm.pt, the tokenizer and prompts."""
    monkeypatch.setenv("COLUMNS", "70")
    folder = tmp_path / "runs/tiny"
    (folder / "data").mkdir(parents=True)
    (folder / "tokenizer.json").write_text(dump_encoding(enc), encoding="utf-8")
    for seed, stage in enumerate(("sft", "ppo", "rm")):
        shape = {"vocab_size": enc.n_vocab, "block_size": 64, "reward_head": stage == "rm"}
        save(folder / f"{stage}.pt", stage, make_gpt(seed, 0.2, **shape))
    with (folder / "data/prompts.jsonl").open("w") as file:
        for prompt in ("A dog is", "A cat is", "A horse is", "An owl is"):
            file.write(json.dumps({"prompt": prompt, "split": "test", "unsafe": False}) + "\n")
    return folder


def save(path, stage, model, **knobs):
    about = {"stage": stage, "command": "", "knobs": {"data": "", **knobs}, "fingerprint": fingerprint(model)}
    about |= {"step": 1, "steps": 1, "finished": True, "state": {}, "parents": {}, "random": {}}
    torch.save({**about, "model_config": asdict(model.config), "model": model.state_dict()}, path)


@pytest.fixture
def typed(monkeypatch):
    """typed(lines): what input() gives or raises, one after the other; then the end of the input."""
    def use(*lines):
        left = list(lines)

        def read(prompt=""):
            print(prompt)
            if not left:
                raise EOFError
            line = left.pop(0)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return use


SCORE = r"score [+-]\d+\.\d\d \(log-odds; 0 is an average demonstration\), gold -?\d+ of at most 6"


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_prompt_is_answered_and_the_seed_decides(run, capsys):
    def ask(*flags):
        talk.main([str(run / "ppo.pt"), "--prompt", "A dog is", "--max_new_tokens", "8", *flags])
        return said(capsys)

    first = ask()
    assert first == ask("--seed", "0") != ask("--seed", "1")
    assert ask("--temperature", "0") == ask("--temperature", "0", "--seed", "1")
    assert re.search(r"gold -?\d+ of at most 6$", first), "the tiny world knows the prompt"


def test_models_answer_below_each_other_with_the_score_under_each(run, capsys):
    paths = [str(run / f"{name}.pt") for name in ("sft", "ppo", "rm")]
    talk.main([*paths, "--prompt", "A dog is", "--max_new_tokens", "8"])
    out = capsys.readouterr().out
    assert out.startswith("sft: ") and "\nppo: " in out and "rm:" not in out
    scores = re.findall(SCORE, " ".join(out.split()))
    assert len(scores) == 2 and max(map(len, out.split("\n"))) <= 70
    talk.main([*paths, "--prompt", "Who is that?", "--max_new_tokens", "8"])
    assert "gold" not in said(capsys), "no gold score for what the world does not ask"


def test_models_of_one_name_are_told_apart(run, capsys, make_gpt, enc):
    other = run.parent / "tiny-1"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())
    save(other / "sft.pt", "sft", make_gpt(5, 0.2, vocab_size=enc.n_vocab, block_size=64), data="/mine")
    paths = [str(run / "sft.pt"), str(other / "sft.pt")]
    talk.main([*paths, "--prompt", "A dog is", "--max_new_tokens", "8"])
    out = said(capsys)
    assert out.startswith("tiny/sft: ") and " tiny-1/sft: " in out


def test_a_response_is_scored_also_an_empty_one(run, capsys):
    for response in ("man's best friend.", ""):
        talk.main([str(run / "rm.pt"), "--prompt", "A dog is", "--response", response])
        assert re.fullmatch(SCORE, said(capsys))


def test_without_the_tiny_world_there_is_no_gold_and_no_list_of_subjects(run, capsys, make_gpt, enc, typed):
    save(run / "own.pt", "sft", make_gpt(5, 0.2, vocab_size=enc.n_vocab, block_size=64), data="/mine")
    typed("A dog is", "Is quantum physics hard?")
    talk.main([str(run / "own.pt"), "--max_new_tokens", "4"])
    out = said(capsys)
    assert "gold" not in out and "subjects" not in out and "does not know" not in out


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_chat_names_the_subjects_and_ends_without_a_word(run, capsys, typed, end):
    typed("A dog is", "Is quantum physics like a dog?", "a dog is", end)
    talk.main([str(run / "ppo.pt"), "--max_new_tokens", "4"])
    out = capsys.readouterr().out
    flat = " ".join(out.split())
    assert "16 subjects: dog, cat, horse, owl, teacher," in flat and out.count("prompt>") == 4
    assert "does not know: quantum, physics)" in flat, "like, a and dog are known"
    assert "does not ask like this" in flat and "Stopped" not in out and out.endswith("prompt> \n\n")
    assert max(map(len, out.split("\n"))) <= 70


def test_a_reward_model_alone_asks_for_answers(run, capsys, typed):
    typed("A dog is", "", "A cat is", "a small hunter.", "")
    talk.main([str(run / "rm.pt")])
    out = capsys.readouterr().out
    assert out.count("answer>") == 2 and out.count("log-odds") == 2, "an empty answer is scored, too"


MISTAKES = [
    ("pppo.pt --prompt A", "pppo.pt: no such checkpoint; . has ppo.pt, rm.pt, sft.pt: did you mean ppo.pt"),
    ("../none/ppo.pt --prompt A", "there is no folder .*; python train_ppo.py --config tiny makes runs/"),
    ("runs/tiny/sft.pt --prompt A", "; python train_sft.py --config tiny makes runs/tiny/sft.pt"),
    ("runs/tiny/rm_first.pt --prompt A", "train_rm.py --config tiny --rankings rankings --epochs 1 --name"),
    ("rm.pt --prompt A", "rm.pt is a reward model: give it an answer to score with --response"),
    ("rm.pt --response A", "give both"),
    ("sft.pt --prompt A --response B", "needs a reward model; .*sft.pt is a checkpoint of the stage sft"),
    ("sft.pt --against rm.pt", "a reward model only scores"),
    ("sft.pt ppo.pt --against ppo.pt", "compares two models"),
    ("sft.pt --against ppo.pt --prompt A", "leave out --prompt"),
    ("sft.pt --prompt A --max_new_tokens 64", "leave no room for a prompt"),
    ("tokenizer.json --prompt A", "not a checkpoint"),
]


@pytest.mark.parametrize("line, hint", MISTAKES)
def test_a_mistake_is_one_sentence(run, monkeypatch, line, hint):
    monkeypatch.chdir(run)
    with pytest.raises(UserError, match=hint):
        talk.main(line.split())


@pytest.mark.parametrize("flag", ["--temperature=-1", "--temperature=nan", "--temperature=1e30",
                                  "--max_new_tokens=-1", "--max_new_tokens=1000000", "--questions=0",
                                  "--questions=99999999", "--seed=-1", "--seed=99999999999999999999",
                                  "--device=gpu", "--temperature=--"])
def test_a_value_that_nobody_can_mean_is_one_line(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        talk.arguments(["sft.pt", flag])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and flag.split("=")[0] in told


@pytest.mark.parametrize("word, hint", [("--seed=--", "argument --seed: expected a value"),
                                        ("--prompt=a\x07b", "text without control characters")])
def test_what_the_shell_hands_over_is_looked_at_like_what_a_function_does(monkeypatch, capsys, word, hint):
    monkeypatch.setattr(sys, "argv", ["model.py", "sft.pt", word])
    with pytest.raises(SystemExit):
        talk.arguments()
    assert hint in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# Judging blind
# ------------------------------------------------------------------------------------------------


def test_the_win_of_the_second_model():
    """By hand: the place of the answers, then the verdict."""
    assert talk.win_of_b({"tiers": [[0], [1]], "turned": True}) == 1, "its answer stood first, and was better"
    assert talk.win_of_b({"tiers": [[1], [0]], "turned": True}) == 0
    assert talk.win_of_b({"tiers": [[0], [1]], "turned": False}) == 0
    assert talk.win_of_b({"tiers": [[1], [0]], "turned": False}) == 1
    assert talk.win_of_b({"tiers": [[0, 1]], "turned": True}) == 0.5
    assert talk.in_order({"responses": ["b", "a"], "turned": True}) == ["a", "b"]


def judged(run):
    return [json.loads(line) for line in (run / "judged.jsonl").read_text().splitlines()]


def test_you_judge_two_models_blind_and_nothing_is_lost(run, capsys, typed):
    """Two judgements, then the end; the same command asks for the other two, and counts all four."""
    command = [str(run / "sft.pt"), "--against", str(run / "ppo.pt")]
    command += ["--max_new_tokens", "6", "--questions", "4"]
    typed("1", "2")
    talk.main(command)
    out = said(capsys)
    assert re.search(r"You prefer ppo to sft in \d\.\d\d of 2 comparisons", out)
    assert [row["tiers"] for row in judged(run)] == [[[0], [1]], [[1], [0]]]
    assert "sft" not in out.split("You prefer")[0], "blind"
    typed("=", KeyboardInterrupt)
    talk.main(command)
    assert "of 3 comparisons" in said(capsys)
    typed("1")
    talk.main(command)
    out = said(capsys)
    rows = judged(run)
    rate = sum(map(talk.win_of_b, rows)) / 4
    assert f"You prefer ppo to sft in {rate:.2f} of 4 comparisons" in out
    assert "The gold score prefers ppo to sft" in out
    assert len({row["prompt"] for row in rows}) == 4
    typed()
    talk.main([*command, "--seed", "1"])
    assert "Nothing was judged" in said(capsys), "other answers are another comparison"


def test_a_model_that_is_not_finished_is_told(run, capsys):
    checkpoint = load_checkpoint(run / "sft.pt")
    torch.save({**checkpoint, "finished": False, "step": 2, "steps": 9}, run / "half.pt")
    for name, words in (("half", "half.pt is not finished: it stopped at step 2 of 9"), ("sft", "")):
        talk.main([str(run / f"{name}.pt"), "--prompt", "A dog is"])
        out = " ".join(capsys.readouterr().out.split())
        assert words in out and ("finished" in out) == bool(words)


def test_a_score_of_a_part_of_an_answer_is_said_to_be_one(make_gpt, enc):
    model = make_gpt(reward_head=True, vocab_size=enc.n_vocab, block_size=24)
    judge = talk.Speaker("rm", None, model, enc, {})
    assert "only" not in talk.score_line([judge], False, "A dog is", "a cat.")
    long = "a cat. " * 30
    read, whole = 24 - len(encode_prompt(enc, "A dog")), len(encode_response(enc, long))
    assert f"for the first {read} of {whole} tokens only" in talk.score_line([judge], False, "A dog", long)
