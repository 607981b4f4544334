"""Rejection sampling: who is chosen, what best-of-n earns, and how far it goes."""
import itertools

import pytest
import torch

import data
from rejection_sampling import best_of, best_of_n, best_of_n_kl, best_of_n_kl_bound, log_probability, subset_weights


def test_the_best_answer_is_chosen_for_each_prompt():
    """Row by row, although all of the second prompt's answers are better than any of the first; of equals the first."""
    assert best_of(torch.tensor([[0.1, 0.3, 0.2], [9.0, 8.0, 7.0], [1.0, 2.0, 2.0]])).tolist() == [1, 0, 1]


def test_weights_of_ranks():
    assert subset_weights(3, 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert subset_weights(4, 1).tolist() == pytest.approx([0.25] * 4) and subset_weights(4, 4).tolist() == [0, 0, 0, 1]
    assert all(subset_weights(16, n).sum() == pytest.approx(1) for n in range(1, 17))


def test_best_of_n_is_the_mean_over_all_choices_of_n():
    """Against counting them out; the value is that of the answer with the highest reward, not the highest value."""
    rewards, gold = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    for n in (1, 2, 4, 6):
        for row in range(3):
            picked = [gold[row, max(subset, key=lambda i: rewards[row, i])].item() for subset in itertools.combinations(range(6), n)]
            assert best_of_n(rewards, gold, n)[row].item() == pytest.approx(sum(picked) / len(picked))
    assert best_of_n(rewards, rewards, 6).tolist() == pytest.approx(rewards.max(1).values.tolist()) and best_of_n(rewards, gold, 1).tolist() == pytest.approx(gold.mean(1).tolist())


def test_the_bound_on_the_kl():
    assert [best_of_n_kl_bound(n) for n in (1, 2, 16)] == pytest.approx([0, 0.1931, 1.8351], abs=1e-4)


def test_the_kl_reaches_its_bound_where_no_answer_comes_twice():
    rewards = torch.rand(2000, 16, dtype=torch.float64)
    for n in (1, 2, 4, 16):
        assert best_of_n_kl(rewards, torch.full_like(rewards, -40.0), n).mean().item() == pytest.approx(best_of_n_kl_bound(n), abs=0.02)


def exact_kl(p, n):
    """KL(best of n || one) over answers of probability p, the worst first."""
    F = torch.cat([torch.zeros(1, dtype=p.dtype), p.cumsum(0)[:-1]])
    P = (F + p) ** n - F**n
    return (P * (P / p).log()).sum().item()


@pytest.mark.parametrize("p, at_16", [([0.25] * 4, 1.330), ([0.7, 0.2, 0.1], None), ([0.05, 0.05, 0.9], None)])
def test_the_kl_of_few_answers_is_below_its_bound(p, at_16):
    """Four equally likely answers: 1.330 instead of 1.835; and others against the sum over all answers."""
    p = torch.tensor(p, dtype=torch.float64)
    drawn = torch.multinomial(p, 3000 * 64, replacement=True).view(3000, 64)
    for n in (2, 4, 16):
        assert best_of_n_kl(drawn.double(), p.log()[drawn], n).mean().item() == pytest.approx(exact_kl(p, n), abs=0.03) and exact_kl(p, n) < best_of_n_kl_bound(n)
    assert at_16 is None or exact_kl(p, 16) == pytest.approx(at_16, abs=5e-4)


def test_the_probability_of_a_text_is_the_product_over_its_tokens(make_gpt, enc):
    """Its EOS included, the prompt not, each under the template and at the temperature."""
    model, prompts, texts = make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64), ["A dog is", "What is a cat?", "A"], ["a furry mammal.", "A cat", ""]
    got = log_probability(model, enc, prompts, texts, 0.7, batch_size=2)
    for prompt, text, found in zip(prompts, texts, got):
        start, ids = data.encode_prompt(enc, prompt), data.encode_response(enc, text)
        assert ids[-1] == enc.eot_token
        expected = sum((model(torch.tensor([start + ids[:t]]))[0, -1] / 0.7).log_softmax(-1)[token].item() for t, token in enumerate(ids))
        assert found == pytest.approx(expected, abs=1e-4)
