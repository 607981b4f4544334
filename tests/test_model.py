"""The GPT, its heads and its sampler. The reference sampler here is naive: one full forward for every token of every row."""
import math

import pytest
import torch

from model import GPT, GPTConfig, answer, generate, join, response_hidden, score, token_logprobs, with_context, with_heads

EOS, PAD = 10, 11


def naive_greedy(model, prompt, max_new_tokens):
    """One row, no cache, no padding. prompt: list of ids. Returns the list of new ids, EOS included."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def padded(rows, fill=PAD):
    lengths = torch.tensor([len(r) for r in rows])
    return torch.tensor([r + [fill] * (max(lengths).item() - len(r)) for r in rows]), lengths


def ragged_prompts(n=6, fill=PAD):
    generator = torch.Generator().manual_seed(1)
    return padded([torch.randint(0, 10, (1 + i % 5,), generator=generator).tolist() for i in range(n)], fill)


def reference_hidden(model, ids):
    """GPT-2 written out position by position and head by head, in double precision. ids: list. Returns (T, C)."""
    w, config = {k: v.double() for k, v in model.state_dict().items()}, model.config

    def norm(x, name):
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    C, D = config.n_embd, config.n_embd // config.n_head
    xs = [w["wte.weight"][i] + w["wpe.weight"][t] for t, i in enumerate(ids)]
    for n in range(config.n_layer):
        qkv = [linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn") for x in xs]
        for t in range(len(xs)):
            heads = []
            for h in range(config.n_head):
                at = slice(h * D, (h + 1) * D)
                match = torch.stack([qkv[t][:C][at] @ qkv[s][C : 2 * C][at] / math.sqrt(D) for s in range(t + 1)])
                heads.append(sum(p * qkv[s][2 * C :][at] for s, p in enumerate(match.softmax(0))))
            xs[t] = xs[t] + linear(torch.cat(heads), f"h.{n}.attn.c_proj")
        for t, x in enumerate(xs):
            up = linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc")
            gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
            xs[t] = x + linear(gelu, f"h.{n}.mlp.c_proj")
    return torch.stack([norm(x, "ln_f") for x in xs])


# ------------------------------------------------------------------------------------------------
# The network
# ------------------------------------------------------------------------------------------------


def test_long_sequences_take_another_kernel_and_mean_the_same(make_gpt):
    """Causal: the first 100 positions do not know whether 100 more follow, which are computed by the fused attention."""
    model = make_gpt(block_size=200, std=0.2)
    tokens = torch.randint(12, (2, 200), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(tokens)[:, :100], model(tokens[:, :100]), atol=1e-4)


def test_forward_is_gpt2(make_gpt):
    """Pre-LayerNorm, tanh-GELU, causal attention scaled by sqrt(head width), tied embeddings."""
    model, ids = make_gpt(), [3, 1, 4, 1, 5, 9, 2]
    expected = reference_hidden(model, ids) @ model.wte.weight.double().T
    torch.testing.assert_close(model(torch.tensor([ids]))[0].double(), expected, atol=2e-5, rtol=1e-5)


def test_no_token_sees_the_future(make_gpt):
    model = make_gpt()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = torch.tensor([[1, 2, 3, 9, 8, 7]])
    torch.testing.assert_close(model(tokens)[:, :3], model(other)[:, :3], atol=1e-6, rtol=0)
    assert (model(tokens)[:, 3:] - model(other)[:, 3:]).abs().min() > 0


def test_embeddings_are_tied():
    model = GPT(GPTConfig(7, 8, 1, 1, 4))
    assert model.lm_head.weight is model.wte.weight


def test_new_heads_start_as_they_should():
    """Value head: zero. Reward head: N(0, 1/sqrt(d + 1)), bias 0, gain 1."""
    model = GPT(GPTConfig(5, 8, 1, 4, 400, value_head=True, reward_head=True))
    assert not model.value_head.weight.any() and not model.value_head.bias.any()
    assert model.reward_head.weight.std().item() == pytest.approx(1 / math.sqrt(401), rel=0.15)
    assert model.reward_head.bias.item() == 0 and model.reward_gain.item() == 1 and model.reward_bias.item() == 0


def test_too_long_a_sequence_is_an_error_in_words(make_gpt):
    with pytest.raises(ValueError, match="context of 24"):
        make_gpt()(torch.zeros(1, 25, dtype=torch.long))


def test_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match="n_head"):
        GPT(GPTConfig(5, n_embd=10, n_head=4))


def test_with_heads_copies_the_trunk_and_only_the_heads_asked_for(make_gpt):
    model = make_gpt(reward_head=True)
    critic = with_heads(model, value_head=True)
    tokens = torch.tensor([[1, 2, 3]])
    assert not hasattr(critic, "reward_head") and not critic.value_head.weight.any()
    torch.testing.assert_close(critic(tokens), model(tokens), atol=0, rtol=0)
    again = with_heads(model, reward_head=True)
    torch.testing.assert_close(again.reward_head.weight, model.reward_head.weight, atol=0, rtol=0)
    with torch.no_grad():
        critic.wte.weight.zero_()
    assert model.wte.weight.abs().sum() > 0, "the copy shares memory with the original: training one changes the other"
    assert model.config.reward_head and not model.config.value_head


# ------------------------------------------------------------------------------------------------
# The reward model's score
# ------------------------------------------------------------------------------------------------


def test_score_is_read_at_the_last_real_token(make_gpt):
    """By hand: head weight . hidden state of the last real token + bias, then gain and bias of the scale."""
    model = make_gpt(reward_head=True)
    model.reward_gain.fill_(2.0)
    model.reward_bias.fill_(-0.5)
    rows = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    tokens, lengths = padded(rows)
    for row, got in zip(rows, model.reward(tokens, lengths)):
        last = reference_hidden(model, row)[-1]
        raw = model.reward_head.weight[0].double() @ last + model.reward_head.bias.double()
        assert got.item() == pytest.approx((2 * raw - 0.5).item(), abs=2e-5)


def test_score_does_not_depend_on_the_padding(make_gpt):
    """Neither on how much of it there is nor on what stands in it."""
    model = make_gpt(reward_head=True)
    rows = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    tokens, lengths = padded(rows)
    plain = model.reward(tokens, lengths)
    longer = torch.cat([tokens, torch.full((3, 7), PAD)], 1)
    garbage = torch.where(torch.arange(11) < lengths[:, None], longer, torch.randint(0, 12, (3, 11)))
    torch.testing.assert_close(model.reward(longer, lengths), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.reward(garbage, lengths), plain, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------
# Log-probabilities, and where a response's tokens are
# ------------------------------------------------------------------------------------------------


def test_token_logprobs_by_hand():
    """Logits (0, ln 3): probabilities 1/4, 3/4; at temperature 1/2 the odds are squared: 1/10, 9/10."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    tokens = torch.tensor([0, 1])
    torch.testing.assert_close(token_logprobs(logits, tokens).exp(), torch.tensor([0.25, 0.75]), atol=1e-6, rtol=0)
    torch.testing.assert_close(token_logprobs(logits, tokens, 0.5).exp(), torch.tensor([0.1, 0.9]), atol=1e-6, rtol=0)


def test_join_puts_the_answer_right_behind_its_own_prompt():
    prompts, prompt_lengths = padded([[1, 2, 3], [4]], fill=0)
    responses, mask = torch.tensor([[5, 6], [7, 9]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    tokens, lengths = join(prompts, prompt_lengths, responses, mask, 0)
    assert tokens.tolist() == [[1, 2, 3, 5, 6], [4, 7, 0, 0, 0]]
    assert lengths.tolist() == [5, 2]


def test_logprob_of_a_response_token_comes_from_the_position_before_it(make_gpt):
    model = make_gpt()
    rows, answers = [[1, 2, 3], [4]], [[5, 6], [7, 8]]
    prompts, prompt_lengths = padded(rows)
    tokens, _ = join(prompts, prompt_lengths, torch.tensor(answers), torch.ones(2, 2), PAD)
    logits = model.lm_head(response_hidden(model, tokens, prompt_lengths, 2))
    for b, (p, r) in enumerate(zip(rows, answers)):
        full = model(torch.tensor([p + r]))[0].log_softmax(-1)
        for t, token in enumerate(r):
            assert logits[b, t].log_softmax(-1)[token].item() == pytest.approx(full[len(p) + t - 1, token].item(), abs=1e-5)


# ------------------------------------------------------------------------------------------------
# The sampler
# ------------------------------------------------------------------------------------------------


def counting_table(V=12):
    """Logits of "the next token is this one plus 1": after 9 comes 10, which is EOS."""
    return 50.0 * torch.eye(V).roll(1, 1)


def test_cached_greedy_equals_the_naive_sampler_for_ragged_prompts(make_gpt):
    for seed in range(4):
        model = make_gpt(seed)
        prompts, lengths = ragged_prompts()
        responses, mask, _ = generate(model, prompts, lengths, 12, 0, EOS, PAD)
        for row, n, r, m in zip(prompts.tolist(), lengths, responses.tolist(), mask):
            expected = naive_greedy(model, row[:n], 12)
            assert r[: len(expected)] == expected
            assert m.sum() == len(expected)


def test_what_stands_in_the_padding_of_a_prompt_does_not_matter(make_gpt):
    model = make_gpt(2)
    one = generate(model, *ragged_prompts(fill=PAD), 10, 0, EOS, PAD)
    two = generate(model, *ragged_prompts(fill=3), 10, 0, EOS, PAD)
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_batched_rows_equal_single_rows(make_gpt):
    model = make_gpt(3)
    prompts, lengths = ragged_prompts()
    responses, mask, logprobs = generate(model, prompts, lengths, 10, 0, EOS, PAD)
    for b, n in enumerate(lengths.tolist()):
        r, m, l = generate(model, prompts[b : b + 1, :n], lengths[b : b + 1], 10, 0, EOS, PAD)
        R = r.shape[1]
        assert responses[b, :R].tolist() == r[0].tolist()
        assert mask[b, R:].sum() == 0
        torch.testing.assert_close(logprobs[b, :R], l[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_returned_logprobs_are_those_of_the_distribution_that_was_sampled(make_gpt, temperature):
    """Equal to a full forward at the same temperature, also in rows of different lengths; otherwise PPO's first ratio is not 1."""
    model = make_gpt(1, std=0.3)
    prompts, lengths = ragged_prompts(12)
    responses, mask, logprobs = generate(model, prompts, lengths, 10, temperature, EOS, PAD)
    assert 0 < mask.sum() < mask.numel(), "this test needs answers of different lengths"
    for b, n in enumerate(lengths.tolist()):
        R = int(mask[b].sum())
        ids = prompts[b, :n].tolist() + responses[b, :R].tolist()
        full = (model(torch.tensor([ids]))[0] / temperature).log_softmax(-1)
        expected = torch.stack([full[n + t - 1, responses[b, t]] for t in range(R)])
        torch.testing.assert_close(logprobs[b, :R], expected, atol=2e-5, rtol=0)
    assert not logprobs[mask == 0].any()


def test_eos_is_in_the_mask_and_nothing_behind_it(make_bigram):
    """The counting model: 7 -> 8 9 EOS; 9 -> EOS; every row stops at its own time."""
    prompts, lengths = padded([[7], [9], [5, 8]])
    responses, mask, logprobs = generate(make_bigram(counting_table()), prompts, lengths, 10, 1.0, EOS, PAD)
    assert responses.tolist() == [[8, 9, EOS], [EOS, PAD, PAD], [9, EOS, PAD]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert logprobs[mask == 0].tolist() == [0, 0, 0]


def test_sampling_stops_when_all_rows_are_done(make_bigram):
    responses, _, _ = generate(make_bigram(counting_table()), torch.tensor([[8], [9]]), torch.tensor([1, 1]), 40, 0, EOS, PAD)
    assert responses.shape[1] == 2


def test_an_answer_that_never_ends_has_a_full_mask(make_bigram):
    responses, mask, _ = generate(make_bigram(counting_table()), torch.tensor([[1], [8]]), torch.tensor([1, 1]), 4, 1.0, EOS, PAD)
    assert responses.tolist() == [[2, 3, 4, 5], [9, EOS, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(make_bigram, temperature):
    """Frequencies of 20000 samples against softmax(logits / T), within five standard deviations."""
    logits = torch.tensor([1.0, -0.5, 0.3, 0.0, 2.0, -30.0])
    n = 20000
    responses, _, logprobs = generate(make_bigram(logits.repeat(6, 1)), torch.zeros(n, 1, dtype=torch.long),
                                      torch.ones(n, dtype=torch.long), 1, temperature, 5, 5)
    p = torch.softmax(logits / temperature, 0)
    frequency = torch.bincount(responses[:, 0], minlength=6) / n
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-6).all()
    torch.testing.assert_close(logprobs[:, 0], p.log()[responses[:, 0]], atol=1e-5, rtol=0)


def test_rows_and_steps_do_not_share_one_random_number(make_bigram):
    """Uniform model: the tokens of two rows, and of two steps, are independent, so all 16 pairs are equally frequent."""
    n = 4000
    table = torch.zeros(5, 5)
    table[:, 4] = -1e9
    responses, _, _ = generate(make_bigram(table), torch.zeros(n, 1, dtype=torch.long), torch.ones(n, dtype=torch.long), 2, 1.0, 4, 4)
    two_steps = torch.bincount(4 * responses[:, 0] + responses[:, 1], minlength=16) / n
    two_rows = torch.bincount(4 * responses[0::2, 0] + responses[1::2, 0], minlength=16) / (n / 2)
    assert (two_steps - 1 / 16).abs().max() < 5 * math.sqrt(1 / 16 / n)
    assert (two_rows - 1 / 16).abs().max() < 5 * math.sqrt(2 / 16 / n)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_an_impossible_token_is_never_sampled(make_bigram, monkeypatch, uniform):
    """Probability 0 at both ends of the vocabulary, and the most extreme random numbers there are."""
    table = torch.tensor([-math.inf, 0.0, 0.3, -0.2, -math.inf]).repeat(5, 1)
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: torch.full(size, uniform))
    responses, _, _ = generate(make_bigram(table), torch.ones(3, 1, dtype=torch.long), torch.ones(3, dtype=torch.long), 3, 1.0, 4, 4)
    assert set(responses.flatten().tolist()) == {1 if uniform == 0 else 3}


def test_sampling_is_free_of_dropout_and_leaves_the_mode_alone(make_gpt):
    model = make_gpt(dropout=0.5)
    prompts, lengths = ragged_prompts()
    expected = generate(model, prompts, lengths, 8, 0, EOS, PAD)
    model.train()
    got = generate(model, prompts, lengths, 8, 0, EOS, PAD)
    assert model.training
    assert got[0].tolist() == expected[0].tolist()
    torch.testing.assert_close(got[2], expected[2], atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_answers(make_gpt):
    model, (prompts, lengths) = make_gpt(std=0.2), ragged_prompts()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(generate(model, prompts, lengths, 10, 1.0, EOS, PAD)[0].tolist())
    assert runs[0] == runs[1] != runs[2]


def test_an_answer_that_cannot_fit_is_an_error_in_words(make_gpt):
    with pytest.raises(ValueError, match="do not fit"):
        generate(make_gpt(), torch.zeros(1, 20, dtype=torch.long), torch.tensor([20]), 5, 1.0, EOS, PAD)
    generate(make_gpt(), torch.zeros(1, 20, dtype=torch.long), torch.tensor([20]), 4, 1.0, EOS, PAD)


# ------------------------------------------------------------------------------------------------
# Texts in, texts out
# ------------------------------------------------------------------------------------------------


def test_answers_come_back_in_the_order_of_the_prompts(make_gpt, enc):
    """They are sampled in order of length, in batches; that must not show."""
    model = make_gpt(std=0.3, vocab_size=enc.n_vocab, block_size=64)
    prompts = ["A dog is a furry mammal. What is it?", "A", "A cat is", "What is a dog? What is a cat?", "dog"]
    together = answer(model, enc, prompts, 8, 0, batch_size=2)
    assert together == [answer(model, enc, [p], 8, 0)[0] for p in prompts]
    for text, ended, n in together:
        assert isinstance(text, str) and isinstance(ended, bool) and 1 <= n <= 8


def test_scores_of_texts_do_not_depend_on_their_neighbours(make_gpt, enc):
    model = make_gpt(vocab_size=enc.n_vocab, block_size=64, reward_head=True)
    prompts, responses = ["A dog is", "What is a cat?", "A"], ["a furry mammal.", "A cat is a small hunter. A cat is a cat.", "b"]
    together = score(model, enc, prompts, responses, batch_size=2)
    for p, r, s in zip(prompts, responses, together):
        assert s == pytest.approx(score(model, enc, [p], [r])[0], abs=1e-5)
    assert len({round(s, 3) for s in together}) == 3


def test_a_longer_context_changes_nothing_where_it_was_known(make_gpt):
    """Positions behind the old context begin as copies: a text that is moved there by the old length looks the same to every token."""
    gpt = make_gpt(block_size=8)
    longer = with_context(gpt, 20)
    tokens = torch.randint(12, (2, 8))
    assert longer.config.block_size == 20 and gpt.config.block_size == 8
    torch.testing.assert_close(longer(tokens), gpt(tokens))
    assert torch.equal(longer.wpe.weight, gpt.wpe.weight[[*range(8), *range(8), *range(4)]])
    torch.testing.assert_close(with_context(gpt, 5)(tokens[:, :5]), gpt(tokens[:, :5]))
    assert longer(torch.randint(12, (1, 20))).shape == (1, 20, 12)
