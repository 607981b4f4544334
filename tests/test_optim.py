"""Optimizers: the schedule, Muon's step, which parameters are held and which decay, clipping."""
import pytest
import torch

import lab.optim
from lab.optim import Muon, adam, clip_gradients, muon, orthogonal, set_lr
from model import GPT, GPTConfig


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    """Peaks 1 and 10, 4 steps of warm-up, 104 in all: up in a line, half-way down in the middle, 0 at the
    end."""
    a, b = GPT(GPTConfig(5, 8, 1, 1, 4)), GPT(GPTConfig(5, 8, 1, 1, 4))
    optimizer = adam((a, 1.0), (b, 10.0))
    rates = [set_lr(optimizer, step, 104, 4) for step in range(105)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert (rates[4], rates[54], rates[104]) == pytest.approx((1.0, 0.5, 0.0))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    set_lr(optimizer, 54, 104, 4)
    ratios = {round(g["lr"] / g["peak_lr"], 6) for g in optimizer.param_groups}
    assert ratios == {0.5}, "all groups keep their proportion"
    assert set_lr(optimizer, 0, 10, 0) == pytest.approx(1.0), "no warm-up: the peak at once"


@pytest.mark.parametrize("steps, reached", [(1, 0), (3, 0), (4, 0), (8, 1), (160, 39)])
def test_a_short_training_reaches_its_peak_too(steps, reached):
    """The warm-up takes a quarter of the steps at most; 40 of 160 steps are what was asked for."""
    optimizer = adam((torch.nn.Linear(1, 1), 1.0))
    rates = [set_lr(optimizer, step, steps, 40) for step in range(steps)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == reached
    assert rates[reached:] == sorted(rates[reached:], reverse=True)


def test_the_optimizer_holds_every_parameter_once():
    a = GPT(GPTConfig(5, 8, 1, 1, 4, value_head=True))
    b = GPT(GPTConfig(5, 8, 1, 1, 4, reward_head=True))
    for optimizer, models in ((adam((a, 1.0), (b, 2.0)), (a, b)), (muon(a, 1.0), (a,))):
        held = [id(p) for g in optimizer.param_groups for p in g["params"]]
        assert len(held) == len(set(held)) and set(held) == {id(p) for m in models for p in m.parameters()}


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 4, 12), (2, 12, 4)])
def test_muon_makes_a_step_orthogonal(shape):
    """The singular vectors stay, the singular values come closer to 1 with each iteration: against the same
    polynomial on the values alone."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    expected = values / x.norm(dim=(1, 2))[:, None]
    for steps in range(1, 6):
        expected = 3.4445 * expected - 4.775 * expected**3 + 2.0315 * expected**5
        assert torch.allclose(orthogonal(x, steps), u * expected[:, None] @ v, atol=1e-4)
    assert expected.min() > 0.5 and expected.max() < 1.3
    assert orthogonal(x).equal(orthogonal(x, 5))


def test_the_matrices_of_the_blocks_move_by_muon_and_the_rest_by_adam():
    """Muon's first step of a matrix has one length whatever the gradient's: the factor 3, times the root of
    rows / columns where there are more rows; AdamW's moves each number by the rate."""
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = muon(model, 0.01)
    set_lr(optimizer, 0, 10, 0)  # the rates are those of a training
    model(torch.tensor([[1, 2, 3]])).pow(2).sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        step = before[name] - p.detach()
        if name.startswith("h.") and p.dim() == 2:
            rows, columns = p.shape
            largest = torch.linalg.matrix_norm(step, 2).item()
            assert 0.5 < largest / (0.03 * max(1, rows / columns) ** 0.5) < 1.3, name
        else:
            moved = step[p.grad.abs() > 1e-4].abs()
            assert torch.allclose(moved, torch.full_like(moved, 0.01), rtol=0.01), name


def test_muon_looks_ahead_along_a_slow_momentum(monkeypatch):
    """Nesterov: .05 of a gradient of 1 goes into the momentum, and the step is .05 * 1 + .95 * .05 = .0975;
    after a gradient of 0 it is .95 * .95 * .05. Before each the weight shrinks by rate * decay = .05."""
    monkeypatch.setattr(lab.optim, "orthogonal", lambda x: x)
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    optimizer, found = Muon([weight], lr=0.1, weight_decay=0.5), []
    for gradient in (1.0, 0.0):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        found.append(weight.item())
    first = 2 * 0.95 - 0.1 * 0.0975
    assert found == pytest.approx([first, first * 0.95 - 0.1 * 0.045125])


@pytest.mark.parametrize("make", [lambda model: adam((model, 0.1)), lambda model: muon(model, 0.1)],
                         ids=["adam", "muon"])
def test_adam_forgets_squares_as_fast_as_a_short_training_needs(make):
    """Betas .9 and .95. Gradients 1, then 0: m = .09 / .19, v = .0475 / .0975, step .1 m / sqrt(v)."""
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer, found = make(model), [model.weight.item()]
    for gradient in (1.0, 0.0):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        found.append(model.weight.item())
    assert found[0] - found[1] == pytest.approx(0.1, rel=1e-4)
    assert found[1] - found[2] == pytest.approx(0.1 * (0.09 / 0.19) / (0.0475 / 0.0975) ** 0.5, rel=1e-3)


def test_an_optimizer_goes_on_where_it_stopped():
    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.tensor([[1, 2, 3]])).pow(2).sum().backward()
            optimizer.step()

    def begin():
        torch.manual_seed(0)
        model = GPT(GPTConfig(5, 8, 1, 1, 4))
        return model, muon(model, 0.01, 0.1)

    straight, optimizer = begin()
    train(straight, optimizer, 4)
    first, optimizer = begin()
    train(first, optimizer, 2)
    second, other = begin()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(optimizer.state_dict())
    train(second, other, 2)
    for p, q in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_biases_and_norms_do_not_decay():
    model = GPT(GPTConfig(5, 8, 1, 1, 4))
    groups = [g for g in muon(model, 1.0, 0.1).param_groups if g.get("weight_decay")]
    decayed = {id(p) for g in groups for p in g["params"]}
    assert decayed and not decayed & {id(p) for p in model.parameters() if p.dim() < 2}


@pytest.mark.parametrize("limit, norm", [(1.0, 1.0), (10.0, 5.0), (0.0, 5.0)])
def test_gradients_are_scaled_down_together_and_never_up(limit, norm):
    """Two gradients, 3 and 4: norm 5. A limit of 0 is none."""
    model = torch.nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert clip_gradients(model, limit) == pytest.approx(5.0)
    assert model.weight.grad.item() == pytest.approx(3 * norm / 5, abs=1e-5)
    assert model.bias.grad.item() == pytest.approx(4 * norm / 5, abs=1e-5)
