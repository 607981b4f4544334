"""The GPT, its heads and its sampler. The reference sampler here is naive: one full forward for every token
of every row."""
import math

import pytest
import torch

from lab.records import fingerprint, load_model
from model import (
    GPT,
    GPTConfig,
    draw,
    generate,
    join,
    log_softmax,
    response_hidden,
    token_logprobs,
    with_heads,
)

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
    """GPT-2 written out position by position and head by head, in double precision. Returns (T, C)."""
    w = {name: x.double() for name, x in model.state_dict().items()}
    config = model.config

    def norm(x, name):
        normal = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return normal * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    C, D = config.n_embd, config.n_embd // config.n_head
    xs = [w["wte.weight"][token] + w["wpe.weight"][t] for t, token in enumerate(ids)]
    for n in range(config.n_layer):
        qkv = [linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn") for x in xs]
        for t in range(len(xs)):
            heads = []
            for h in range(config.n_head):
                at = slice(h * D, (h + 1) * D)
                query = qkv[t][:C][at] / math.sqrt(D)
                match = torch.stack([query @ qkv[s][C : 2 * C][at] for s in range(t + 1)])
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
    """Causal: the first 100 positions do not know whether 100 more follow."""
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
    assert model.reward_head.bias.item() == 0
    assert model.score_gain.item() == 1 and model.score_bias.item() == 0


def test_projections_back_into_the_residual_stream_start_smaller():
    """1 / sqrt(C) of C = 64 channels is 1/8; 2 projections in each of 8 blocks: a quarter of that."""
    torch.manual_seed(0)
    block = GPT(GPTConfig(5, 8, 8, 2, 64)).h[3]
    for layer, std in ((block.attn.c_attn, 1 / 8), (block.attn.c_proj, 1 / 32), (block.mlp.c_proj, 1 / 32)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)


def test_dropout_is_on_the_embeddings_and_on_what_a_block_adds():
    """What came before stays whole: where a block adds nothing it is the identity."""
    torch.manual_seed(0)
    model, tokens = GPT(GPTConfig(5, 8, 1, 1, 8, dropout=0.5)).train(), torch.tensor([[1, 2, 3]])
    x, places = torch.randn(1, 3, 8), torch.arange(3)[None]
    for part in (model.h[0].attn.c_proj, model.h[0].mlp["c_proj"]):
        torch.nn.init.zeros_(part.weight)
    assert torch.equal(model.h[0](x, places), x)
    assert not torch.equal(model.hidden(tokens), model.hidden(tokens)), "the embeddings"


def test_too_long_a_sequence_is_an_error_in_words(make_gpt):
    with pytest.raises(ValueError, match="context of 24"):
        make_gpt()(torch.zeros(1, 25, dtype=torch.long))


def test_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match="n_head"):
        GPT(GPTConfig(5, 8, 1, 4, 10))


def test_with_heads_copies_the_trunk_and_only_the_heads_asked_for(make_gpt):
    model = make_gpt(reward_head=True)
    critic = with_heads(model, value_head=True)
    tokens = torch.tensor([[1, 2, 3]])
    assert not hasattr(critic, "reward_head") and not critic.value_head.weight.any()
    torch.testing.assert_close(critic(tokens), model(tokens), atol=0, rtol=0)
    model.set_scale(3.0, -1.0)
    again, length = with_heads(model, reward_head=True), torch.tensor([3])
    torch.testing.assert_close(again.score(tokens, length), model.score(tokens, length), atol=0, rtol=0)
    with torch.no_grad():
        critic.wte.weight.zero_()
    assert model.wte.weight.abs().sum() > 0, "the copy shares memory with the original"
    assert model.config.reward_head and not model.config.value_head
    assert not hasattr(with_heads(critic), "value_head")


def test_states_that_are_read_alone_are_those_of_all(make_gpt):
    """Only they go through the last MLP; a mask, or rows and places. Their gradients are the same, too."""
    model = make_gpt()
    tokens, places = torch.randint(0, 12, (3, 5)), torch.tensor([[4, 0], [2, 2], [1, 3]])
    rows, mask = torch.arange(3)[:, None], torch.rand(3, 5) > 0.5
    for read in ((rows, places), mask):
        states, gradients = [model.hidden(tokens)[read], model.hidden(tokens, read=read)], []
        for x in states:
            model.zero_grad()
            x.pow(3).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.h.parameters()]))
        torch.testing.assert_close(*states, atol=1e-5, rtol=0)
        torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)


# ------------------------------------------------------------------------------------------------
# The reward model's score
# ------------------------------------------------------------------------------------------------


def test_score_is_read_at_the_last_real_token(make_gpt):
    """By hand: head weight . hidden state of the last real token + bias, then gain and bias of the scale."""
    model = make_gpt(reward_head=True)
    model.set_scale(2.0, -0.5)
    rows = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    tokens, lengths = padded(rows)
    for row, got in zip(rows, model.score(tokens, lengths), strict=True):
        last = reference_hidden(model, row)[-1]
        raw = model.reward_head.weight[0].double() @ last + model.reward_head.bias.double()
        assert got.item() == pytest.approx((2 * raw - 0.5).item(), abs=2e-5)


def test_score_does_not_depend_on_the_padding(make_gpt):
    """Neither on how much of it there is nor on what stands in it."""
    model = make_gpt(reward_head=True)
    rows = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    tokens, lengths = padded(rows)
    plain = model.score(tokens, lengths)
    longer = torch.cat([tokens, torch.full((3, 7), PAD)], 1)
    garbage = torch.where(torch.arange(11) < lengths[:, None], longer, torch.randint(0, 12, (3, 11)))
    torch.testing.assert_close(model.score(longer, lengths), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.score(garbage, lengths), plain, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------
# Log-probabilities, and where a response's tokens are
# ------------------------------------------------------------------------------------------------


def test_token_logprobs_by_hand():
    """Logits (0, ln 3): probabilities 1/4, 3/4; at temperature 1/2 the odds are squared: 1/10, 9/10."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    tokens = torch.tensor([0, 1])
    assert token_logprobs(logits, tokens).exp().tolist() == pytest.approx([0.25, 0.75])
    assert token_logprobs(logits, tokens, 0.5).exp().tolist() == pytest.approx([0.1, 0.9])


def test_temperature_0_means_the_log_probabilities_at_1():
    logits = torch.tensor([0.0, math.log(3)])
    assert log_softmax(logits, 2.0).exp().tolist() == pytest.approx([1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5)])
    for temperature in (0, 1):
        assert log_softmax(logits, temperature).exp().tolist() == pytest.approx([0.25, 0.75])


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
    got = token_logprobs(logits, torch.tensor(answers)).tolist()
    for b, (p, r) in enumerate(zip(rows, answers, strict=True)):
        full = model(torch.tensor([p + r]))[0].log_softmax(-1)
        expected = [full[len(p) + t - 1, token].item() for t, token in enumerate(r)]
        assert got[b] == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------
# The sampler
# ------------------------------------------------------------------------------------------------


def counting_table(V=12):
    """Logits of "the next token is this one plus 1": after 9 comes 10, which is EOS, and after that a 3."""
    table = 50.0 * torch.eye(V).roll(1, 1)
    table[EOS] = table[2]
    return table


def test_cached_greedy_equals_the_naive_sampler_for_ragged_prompts(make_gpt):
    """Answers as wide as the longest, without dropout. What is greedy has the log-probabilities at
    temperature 1."""
    for seed in range(4):
        model, (prompts, lengths) = make_gpt(seed, dropout=0.5), ragged_prompts()
        rows = [row[:n] for row, n in zip(prompts.tolist(), lengths, strict=True)]
        expected = [naive_greedy(model, row, 12) for row in rows]
        full = model(torch.tensor([rows[1] + expected[1]]))[0].log_softmax(-1)
        model.train(seed % 2 == 0)
        responses, mask, logprobs = generate(model, prompts, lengths, 12, 0, EOS, PAD)
        R = max(map(len, expected))
        assert responses.tolist() == [ids + [PAD] * (R - len(ids)) for ids in expected]
        assert mask.tolist() == [[1] * len(ids) + [0] * (R - len(ids)) for ids in expected]
        n = len(rows[1])
        first = full[n - 1 :].gather(1, torch.tensor(expected[1])[:, None]).squeeze(1)
        torch.testing.assert_close(logprobs[1, : len(first)], first, atol=2e-5, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_model_and_arguments_stay_as_they_were(make_gpt, training):
    model, (prompts, lengths) = make_gpt().train(training), ragged_prompts()
    responses, _, _ = generate(model, prompts, lengths, 5, 0, EOS, PAD)
    assert model.training == training, "the model's mode"
    before = [x.tolist() for x in ragged_prompts()]
    assert [prompts.tolist(), lengths.tolist()] == before, "the arguments have changed"
    for prompt, n, answer in zip(prompts.tolist(), lengths, responses.tolist(), strict=True):
        expected = naive_greedy(model, prompt[:n], 5)
        assert answer[: len(expected)] == expected, "an answer, too"


def test_what_stands_in_the_padding_of_a_prompt_does_not_matter(make_gpt):
    model = make_gpt(2)
    one = generate(model, *ragged_prompts(fill=PAD), 10, 0, EOS, PAD)
    two = generate(model, *ragged_prompts(fill=3), 10, 0, EOS, PAD)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_batched_rows_equal_single_rows(make_gpt):
    model = make_gpt(3)
    prompts, lengths = ragged_prompts()
    responses, mask, logprobs = generate(model, prompts, lengths, 10, 0, EOS, PAD)
    for b, n in enumerate(lengths.tolist()):
        r, _, alone = generate(model, prompts[b : b + 1, :n], lengths[b : b + 1], 10, 0, EOS, PAD)
        R = r.shape[1]
        assert responses[b, :R].tolist() == r[0].tolist()
        assert mask[b, R:].sum() == 0
        torch.testing.assert_close(logprobs[b, :R], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_returned_logprobs_are_those_of_the_distribution_that_was_sampled(make_gpt, temperature):
    """Equal to a full forward at the same temperature, also in rows of different lengths; otherwise PPO's
    first ratio is not 1."""
    model = make_gpt(1, std=0.3)
    eos = model.wte.weight[EOS].detach()
    model.ln_f.bias.data += 2 * temperature * eos / eos.pow(2).sum()  # EOS becomes likelier
    prompts, lengths = ragged_prompts(40)
    responses, mask, logprobs = generate(model, prompts, lengths, 10, temperature, EOS, PAD)
    assert len(mask.sum(1).unique()) > 2, "this test needs answers of different lengths"
    for b, n in enumerate(lengths.tolist()):
        R = int(mask[b].sum())
        ids = prompts[b, :n].tolist() + responses[b, :R].tolist()
        full = (model(torch.tensor([ids]))[0] / temperature).log_softmax(-1)
        expected = torch.stack([full[n + t - 1, responses[b, t]] for t in range(R)])
        torch.testing.assert_close(logprobs[b, :R], expected, atol=2e-5, rtol=0)
    assert set(logprobs[mask == 0].tolist()) <= {0.0}, "log-probabilities behind EOS"


def test_eos_is_in_the_mask_and_nothing_behind_it(make_bigram):
    """The counting model: 7 -> 8 9 EOS; 9 -> EOS; every row stops at its own time. Responses are whole
    numbers, the other two are not."""
    prompts, lengths = padded([[7], [9], [5, 8], [6]])
    responses, mask, logprobs = generate(make_bigram(counting_table()), prompts, lengths, 10, 1.0, EOS, PAD)
    assert responses.tolist() == [
        [8, 9, EOS, PAD], [EOS, PAD, PAD, PAD], [9, EOS, PAD, PAD], [7, 8, 9, EOS]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert logprobs[mask == 0].tolist() == [0] * 6
    assert [x.dtype for x in (responses, mask, logprobs)] == [torch.long, torch.float, torch.float]


def test_sampling_stops_when_all_rows_are_done(make_bigram):
    model, prompts = make_bigram(counting_table()), torch.tensor([[8], [9]])
    responses, _, _ = generate(model, prompts, torch.tensor([1, 1]), 40, 0, EOS, PAD)
    assert responses.shape[1] == 2


def test_an_answer_that_never_ends_has_a_full_mask(make_bigram):
    """And where it might not fit the context of 64, there is an error."""
    model, prompts = make_bigram(counting_table()), torch.tensor([[1], [8]])
    responses, mask, _ = generate(model, prompts, torch.tensor([1, 1]), 4, 1.0, EOS, PAD)
    assert responses.tolist() == [[2, 3, 4, 5], [9, EOS, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    generate(model, prompts, torch.tensor([1, 1]), 63, 1.0, EOS, PAD)
    with pytest.raises(ValueError):
        generate(model, prompts, torch.tensor([1, 1]), 64, 1.0, EOS, PAD)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(make_bigram, temperature):
    """Frequencies of 20000 samples against softmax(logits / T), within five standard deviations."""
    logits = torch.tensor([1.0, -0.5, 0.3, 0.0, 2.0, -30.0])
    n = 20000
    model, prompts = make_bigram(logits.repeat(6, 1)), torch.zeros(n, 1, dtype=torch.long)
    responses, _, logprobs = generate(model, prompts, prompts[:, 0] + 1, 1, temperature, 5, 5)
    p = torch.softmax(logits / temperature, 0)
    frequency = torch.bincount(responses[:, 0], minlength=6) / n
    too_far = (frequency - p).abs() > 5 * (p * (1 - p) / n).sqrt() + 1e-6
    assert not too_far.any(), f"sampled as often as {frequency.tolist()}, expected {p.tolist()}"
    torch.testing.assert_close(logprobs[:, 0], p.log()[responses[:, 0]], atol=1e-5, rtol=0)


def test_rows_and_steps_do_not_share_one_random_number(make_bigram):
    """Uniform model: the tokens of two rows, and of two steps, are independent: 16 equally frequent pairs."""
    n = 4000
    table = torch.zeros(5, 5)
    table[:, 4] = -1e9
    prompts = torch.zeros(n, 1, dtype=torch.long)
    responses, _, _ = generate(make_bigram(table), prompts, prompts[:, 0] + 1, 2, 1.0, 4, 4)
    two_steps = torch.bincount(4 * responses[:, 0] + responses[:, 1], minlength=16) / n
    two_rows = torch.bincount(4 * responses[0::2, 0] + responses[1::2, 0], minlength=16) / (n / 2)
    assert (two_steps - 1 / 16).abs().max() < 5 * math.sqrt(1 / 16 / n)
    assert (two_rows - 1 / 16).abs().max() < 5 * math.sqrt(2 / 16 / n)


@pytest.mark.parametrize("uniform, expected", [(0.0, 1), (1 - 2**-24, 3)])
def test_an_impossible_token_is_never_sampled(monkeypatch, uniform, expected):
    """Probability 0 at both ends of the vocabulary, and the most extreme random numbers there are."""
    monkeypatch.setattr(torch, "rand", lambda *size, **named: torch.full(size, uniform))
    logprobs = torch.log_softmax(torch.tensor([[-math.inf, 0.0, 0.3, -0.2, -math.inf]] * 3), -1)
    assert draw(logprobs, 1.0).tolist() == [expected] * 3


def test_a_number_that_is_rounded_to_the_end_of_the_line_draws_the_last_token(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **named: torch.ones(size))
    assert draw(torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), 1.0).tolist() == [1, 1]


def test_the_same_seed_gives_the_same_answers(make_gpt):
    model, (prompts, lengths) = make_gpt(std=0.2), ragged_prompts()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(generate(model, prompts, lengths, 10, 1.0, EOS, PAD)[0].tolist())
    assert runs[0] == runs[1] != runs[2]
    assert not generate(model, prompts, lengths, 2, 1.0, EOS, PAD)[2].requires_grad, "samples keep no graph"


# ------------------------------------------------------------------------------------------------
# From a file
# ------------------------------------------------------------------------------------------------


def test_a_checkpoint_alone_says_what_the_model_is_like(tmp_path, make_gpt):
    """Shape, heads and the scale of the scores; only dropout is the caller's."""
    model = make_gpt(n_layer=1, n_embd=8, reward_head=True, dropout=0.3)
    model.set_scale(3.0, 1.0)
    about = {"stage": "rm", "command": "", "knobs": {}, "parents": {}, "step": 7, "steps": 7,
             "finished": True, "state": {}, "fingerprint": fingerprint(model)}
    saved = {**about, "model": model.state_dict(), "model_config": vars(model.config)}
    torch.save(saved, tmp_path / "rm.pt")
    again, checkpoint = load_model(tmp_path / "rm.pt")
    tokens, lengths = padded([[1, 2, 3], [4]])
    torch.testing.assert_close(again.score(tokens, lengths), model.score(tokens, lengths))
    assert checkpoint["step"] == 7 and not again.training and again.config.dropout == 0
    assert load_model(tmp_path / "rm.pt", dropout=0.1)[0].drop.p == 0.1
