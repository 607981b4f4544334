"""From scores to what PPO maximises: whitening, Llama 2's two reward models, and who gives a score."""
import math
from types import SimpleNamespace

import pytest
import torch

import data
from lab.scorers import count_from_sft
from model import GPTConfig
from world.reward import Scorer, llama2_reward, rows_at_once, score_texts, whiten_scores

PROMPTS = ["A dog is", "What is a cat?", "A", "dog"]
RESPONSES = ["a furry mammal.", "A cat is a small hunter. A cat is a cat.", "b", "No"]


def test_a_large_model_takes_fewer_rows_at_once(make_gpt, enc, monkeypatch):
    """By hand for GPT-2's size: 512 tokens, each with 2 x 12 x 768 in caches, 3 x 12 x 512 scores and 8 x 768
    in an MLP; 100 logits of 50,260. What comes out does not depend on it."""
    gpt2, tiny = (SimpleNamespace(config=GPTConfig(*shape)) for shape in (
        (50260, 512, 12, 12, 768), (1400, 96, 3, 3, 96)))
    row = 512 * (2 * 12 * 768 + 3 * 12 * 512 + 8 * 768) + 3 * 100 * 50260
    assert rows_at_once(gpt2, 512, 256, 100) == 250_000_000 // row == 6
    assert rows_at_once(gpt2, 512, 3, 100) == 3 and rows_at_once(gpt2, 10**6, 9) == 1
    assert rows_at_once(tiny, 96, 512) == 512 and rows_at_once(tiny, 96, 256, 96) == 256
    model = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True)
    usual = score_texts(model, enc, PROMPTS, RESPONSES)
    monkeypatch.setattr("world.reward.rows_at_once", lambda *sizes: 1)
    assert score_texts(model, enc, PROMPTS, RESPONSES) == pytest.approx(usual, abs=1e-4)


# ------------------------------------------------------------------------------------------------
# Formulas
# ------------------------------------------------------------------------------------------------


def test_whitened_scores():
    """Of the batch: mean 2, biased deviation 1; or with statistics measured before."""
    assert whiten_scores(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1, 1])
    assert whiten_scores(torch.tensor([5.0]), 3.0, 2.0).tolist() == pytest.approx([1])
    assert whiten_scores(torch.full((3,), 0.5)).tolist() == [0, 0, 0], "a batch of equals"


def test_llama2_takes_safety_where_it_matters():
    """Where the prompt asks for it or the answer is unsafe; at the threshold itself the answer is safe."""
    helpful, safety = torch.tensor([0.9, 0.9, 0.9, 0.2]), torch.tensor([0.6, 0.1, 0.15, 0.8])
    asked = torch.tensor([True, False, False, False])
    got = llama2_reward(helpful, safety, asked, mean=0.0, std=1.0)
    expected = [math.log(p / (1 - p)) for p in (0.6, 0.1, 0.9, 0.2)]
    assert got.tolist() == pytest.approx(expected, abs=1e-5)
    lower = llama2_reward(helpful, safety, asked, mean=0.0, std=1.0, threshold=0.05)
    assert lower[1].item() == pytest.approx(math.log(9), abs=1e-4)


@pytest.mark.parametrize("statistics, expected", [
    ((0.0, 1.0), [-3.892, -0.847, 0.405, 2.197, 3.476]),
    ((None, None), [-1.630, -0.437, 0.054, 0.756, 1.257]),  # of the batch, as in the paper
    ((1.0, 2.0), [-2.446, -0.924, -0.297, 0.599, 1.238]),  # measured before
])
def test_llama2_logit_and_whitening_by_hand(statistics, expected):
    helpful, never = torch.tensor([0.02, 0.3, 0.6, 0.9, 0.97]), torch.zeros(5, dtype=torch.bool)
    got = llama2_reward(helpful, torch.ones(5), never, *statistics)
    assert got.tolist() == pytest.approx(expected, abs=1e-3)


def test_llama2_reward_of_certainty_is_finite():
    never = torch.tensor([False, False])
    got = llama2_reward(torch.tensor([0.0, 1.0]), torch.ones(2), never, mean=0.0, std=1.0)
    assert got.tolist() == pytest.approx([-9.21, 9.21], abs=0.01)


# ------------------------------------------------------------------------------------------------
# Who gives a score
# ------------------------------------------------------------------------------------------------


def reward_model(make_gpt, enc, seed=3):
    return make_gpt(seed, reward_head=True, vocab_size=enc.n_vocab, block_size=64)


def test_scores_of_texts_do_not_depend_on_their_neighbours(make_gpt, enc):
    model = reward_model(make_gpt, enc)
    together = score_texts(model, enc, PROMPTS, RESPONSES, batch_size=2)
    alone = [score_texts(model, enc, [p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 3) for score in together}) == 4


def test_a_text_is_scored_as_its_tokens_are(make_gpt, enc):
    """Prompt, answer and EOS, the score at the EOS; dropout off, and the mode stays as it was."""
    model = reward_model(make_gpt, enc)
    model.drop.p = 0.5
    model.train()
    (got,) = score_texts(model, enc, PROMPTS[:1], RESPONSES[:1])
    assert model.training
    ids = data.encode_prompt(enc, PROMPTS[0]) + data.encode_response(enc, RESPONSES[0])
    assert ids[-1] == enc.eot_token
    expected = model.eval().score(torch.tensor([ids]), torch.tensor([len(ids)]))
    assert got == pytest.approx(expected.item(), abs=1e-5)


def test_the_scale_is_measured_on_given_answers(make_gpt, enc):
    """Mean 0 and deviation 1 over those answers, and for others whatever they are worth on that scale."""
    model = reward_model(make_gpt, enc)
    scorer = Scorer("overall", [model])
    raw = torch.tensor(score_texts(model, enc, PROMPTS, RESPONSES))
    assert scorer.of_texts(enc, PROMPTS, RESPONSES) == pytest.approx(raw.tolist(), abs=1e-4)
    scorer.measure_scale(enc, PROMPTS, RESPONSES)
    mean, std = raw.mean(), raw.std(correction=0)
    assert [scorer.mean, scorer.std] == pytest.approx([mean.item(), std.item()], abs=1e-4)
    expected = ((raw - mean) / std).tolist()
    assert scorer.of_texts(enc, PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-4)
    two = scorer.of_texts(enc, PROMPTS[:2], RESPONSES[:2])
    assert two == pytest.approx(expected[:2], abs=1e-4), "not whitened anew"


def test_the_scale_is_that_of_prompts_all_over_the_list(monkeypatch):
    """Of 450 prompts in order every third is left out, of 100 each is asked three times. The answers are like
    those that will be scored, as long and as warm."""
    asked, knobs = [], []

    def answer(model, enc, prompts, *rest):
        asked.append(prompts)
        knobs.append(rest)
        return []

    monkeypatch.setattr("lab.scorers.answer", answer)
    scorer = SimpleNamespace(mean=0.0, std=1.0, measure_scale=lambda *args: None)
    for n in (450, 100):
        count_from_sft(scorer, SimpleNamespace(state={}), None, None, list(range(n)),
                       SimpleNamespace(max_new_tokens=5, temperature=0.7))
    assert asked[0] == [i for i in range(450) if i % 3 != 2]
    assert asked[1] == [i // 3 for i in range(300)]
    assert knobs == [(5, 0.7)] * 2


def test_measuring_again_forgets_the_scale_before(make_gpt, enc):
    scorer = Scorer("overall", [reward_model(make_gpt, enc)])
    scorer.measure_scale(enc, PROMPTS, RESPONSES)
    before = scorer.mean, scorer.std
    scorer.measure_scale(enc, PROMPTS, RESPONSES)
    assert (scorer.mean, scorer.std) == pytest.approx(before)


def test_answers_that_are_all_worth_the_same_do_not_divide_by_zero(make_gpt, enc):
    scorer = Scorer("overall", [reward_model(make_gpt, enc)])
    scorer.measure_scale(enc, ["A dog is"] * 2, ["a cat."] * 2)
    assert scorer.std == 1.0


def test_tokens_and_texts_get_the_same_score(make_gpt, enc):
    scorer = Scorer("llama2", [reward_model(make_gpt, enc, seed) for seed in (3, 4)], ['"A"'])
    rows = data.lay_out(enc, PROMPTS, RESPONSES, 64)
    tokens, lengths = data.pad_rows([p + r for p, r in rows], data.special_id(enc, "pad"))
    got = scorer.raw(tokens, lengths, PROMPTS, RESPONSES)
    assert got.tolist() == pytest.approx(scorer.raw_texts(enc, PROMPTS, RESPONSES).tolist(), abs=1e-4)


def test_a_score_is_combined_from_those_of_each_model(make_gpt, enc):
    scorer = Scorer("llama2", [reward_model(make_gpt, enc, seed) for seed in (3, 4)], ['"A"'])
    parts = [torch.tensor(score_texts(model, enc, PROMPTS, RESPONSES)) for model in scorer.models]
    assert scorer.raw_texts(enc, PROMPTS, RESPONSES).tolist() == scorer.combine(parts, PROMPTS).tolist()


def test_llama2_asks_the_model_that_the_prompt_asks_for():
    """Scores are log-odds: helpfulness on a safe prompt, safety on an unsafe one, given as JSON, or where its
    probability is below 0.15, which is log-odds of -1.73."""
    scorer = Scorer("llama2", [None, None], ['"steal"'])
    helpful, safety = torch.tensor([3.0, 3.0, 3.0, 3.0]), torch.tensor([1.0, 1.0, -1.8, -1.7])
    got = scorer.combine([helpful, safety], ["steal", "wash", "wash", [{"role": "user", "content": "steal"}]])
    assert got.tolist() == pytest.approx([1, 3, -1.8, 3], abs=1e-3)
    scorer.mean, scorer.std = 1.0, 2.0
    again = scorer.combine([helpful, safety], ["steal", "wash", "wash", "wash"])
    assert again.tolist() == pytest.approx([1, 3, -1.8, 3], abs=1e-3), "whitened later, and once"


def test_a_judge_stands_in_for_the_reward_models(enc):
    def rate(prompts, texts):
        return [float(len(p + t)) for p, t in zip(prompts, texts, strict=True)]

    judge = SimpleNamespace(rate=rate)
    scorer = Scorer("ai", [], judge=judge)
    assert scorer.raw(torch.zeros(2, 3), None, ["a", "b"], ["x", "xyz"]).tolist() == [2, 4]
    scorer.measure_scale(enc, ["a", "b"], ["x", "xyz"])
    assert scorer.of_texts(enc, ["a", "b"], ["x", "xyz"]) == pytest.approx([-1, 1])
