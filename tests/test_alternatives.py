"""The formulas of docs/alternatives.py: DPO, RLOO, GRPO."""
# ruff: noqa: F811 (fixtures are imported, and then named as arguments)
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from pipeline import JOBS, begin, copy, rows_of, tiny  # noqa: F401  (fixtures)

sys.path.insert(0, str(ROOT / "docs"))

import alternatives  # noqa: E402
import beside  # noqa: E402
from alternatives import (  # noqa: E402
    answer_logprobs,
    dpo_loss,
    grpo_advantages,
    grpo_loss,
    rloo_advantages,
    rloo_loss,
)

from data import UserError, encode_prompt, encode_response  # noqa: E402
from lab.cli import parse  # noqa: E402
from lab.records import load_checkpoint  # noqa: E402
from model import log_softmax, response_hidden, token_logprobs  # noqa: E402


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# ------------------------------------------------------------------------------------------------
# DPO
# ------------------------------------------------------------------------------------------------


def test_dpo_of_the_worked_examples():
    zero = torch.zeros(3)
    assert dpo_loss(zero, zero, zero, zero, 0.1).item() == pytest.approx(math.log(2))
    one = torch.ones(1)
    assert dpo_loss(one, 0 * one, 0 * one, 0 * one, 0.5).item() == pytest.approx(0.474, abs=1e-3)


def test_dpo_counts_what_the_policy_changed():
    """Not how likely an answer is: the worse one stays the likelier here, and yet the loss is below log 2."""
    chosen, rejected = torch.tensor([-9.0, -4.0]), torch.tensor([-3.0, -6.0])
    ref_chosen, ref_rejected = torch.tensor([-12.0, -4.5]), torch.tensor([-2.5, -5.0])
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    expected = -(math.log(sigmoid(0.3 * (3.0 + 0.5))) + math.log(sigmoid(0.3 * (0.5 + 1.0)))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dpo_moves_both_answers_by_beta_times_how_wrong_it_is():
    """d loss / d log pi(y_w) = -beta sigmoid(-z), and the opposite for y_l (Rafailov et al., section 4)."""
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (-5.0, -6.0))
    dpo_loss(chosen, rejected, torch.tensor([-4.0]), torch.tensor([-6.5]), 0.2).backward()
    z = 0.2 * (-1.0 - 0.5)
    assert chosen.grad.item() == pytest.approx(-0.2 * sigmoid(-z), rel=1e-5)
    assert rejected.grad.item() == pytest.approx(0.2 * sigmoid(-z), rel=1e-5)


def test_dpo_with_a_doubtful_label():
    x = [torch.tensor([v]) for v in (-5.0, -6.0, -5.5, -5.0)]
    sure, turned = dpo_loss(*x, 0.4), dpo_loss(x[1], x[0], x[3], x[2], 0.4)
    doubtful = dpo_loss(*x, 0.4, torch.tensor([0.7]))
    assert doubtful.item() == pytest.approx(0.7 * sure.item() + 0.3 * turned.item(), rel=1e-5)


def test_log_probabilities_are_those_of_whole_answers(make_gpt, enc):
    """Token by token by hand, EOS included and the prompt not; in whatever order."""
    model = make_gpt(vocab_size=enc.n_vocab, block_size=64, std=0.2)
    prompts = ["What is a dog?", "A cat?", "What is a cat? A dog?", "What"]
    responses = ["A furry mammal.", "a dog is a dog is a friend", "best", "A cat is a small hunter."]
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        before, answer = encode_prompt(enc, prompt), encode_response(enc, response)
        logp = log_softmax(model(torch.tensor([before + answer])))[0]
        places = range(len(before) - 1, len(before) + len(answer) - 1)
        expected.append(sum(logp[t, token].item() for t, token in zip(places, answer, strict=True)))
    found = answer_logprobs(model, enc, prompts, responses)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=1e-4)


# ------------------------------------------------------------------------------------------------
# RLOO
# ------------------------------------------------------------------------------------------------


def test_rloo_advantages_by_leaving_one_out():
    assert rloo_advantages(torch.tensor([[1.0, 2, 6]])).tolist() == [[-3, -1.5, 4.5]]
    rewards = torch.randn(5, 4)
    for i in range(5):
        for k in range(4):
            others = [rewards[i, j].item() for j in range(4) if j != k]
            expected = rewards[i, k].item() - sum(others) / 3
            assert rloo_advantages(rewards)[i, k].item() == pytest.approx(expected, abs=1e-5)


def test_a_prompt_does_not_see_the_answers_to_another():
    rewards = torch.randn(3, 4)
    changed = torch.cat([rewards[:1], rewards[1:] + 100])
    assert torch.equal(rloo_advantages(rewards)[0], rloo_advantages(changed)[0])
    assert torch.equal(grpo_advantages(rewards)[0], grpo_advantages(changed)[0])


def test_rloo_loss_is_a_mean_over_answers_of_whole_answers():
    """A long answer counts as one action: its log-probability is a sum."""
    logprobs = torch.tensor([[-1.0, -2, -3], [-4, 9, 9]], requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    loss = rloo_loss(logprobs, torch.tensor([2.0, -1]), mask)
    assert loss.item() == pytest.approx((2 * 6 - 1 * 4) / 2)
    loss.backward()
    assert logprobs.grad.tolist() == [[-1, -1, -1], [0.5, 0, 0]]


# ------------------------------------------------------------------------------------------------
# GRPO
# ------------------------------------------------------------------------------------------------


def test_grpo_advantages_have_mean_0_and_deviation_1_for_each_prompt():
    found = grpo_advantages(torch.tensor([[1.0, 2, 6], [5, 5, 5]]))
    assert found[0].tolist() == pytest.approx([-0.926, -0.463, 1.389], abs=1e-3)
    assert found[1].tolist() == [0, 0, 0]
    scores = torch.randn(4, 6)
    torch.testing.assert_close(grpo_advantages(7 * scores + 3), grpo_advantages(scores), atol=1e-4, rtol=1e-4)


def a_batch(B=3, R=5):
    logprobs, old, ref = (-torch.rand(B, R) * 2 for _ in range(3))
    mask = torch.zeros(B, R)
    for i, n in enumerate((5, 2, 3)):
        mask[i, :n] = 1
    return logprobs.requires_grad_(), old, ref, torch.tensor([1.5, -0.7, 0.4]), mask


def test_grpo_loss_term_by_term():
    logprobs, old, ref, advantages, mask = a_batch()
    expected = 0.0
    for i in range(3):
        n, total = int(mask[i].sum()), 0.0
        for t in range(n):
            lp, A = logprobs[i, t].item(), advantages[i].item()
            rho = math.exp(lp - old[i, t].item())
            gain = min(A * rho, A * min(max(rho, 0.8), 1.2))
            d = ref[i, t].item() - lp
            total += gain - 0.3 * (math.exp(d) - d - 1)
        expected -= total / n / 3
    found = grpo_loss(logprobs, old, ref, advantages, mask, 0.2, 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    free, wide = (grpo_loss(logprobs, old, ref, advantages, mask, clip, 0.3).item() for clip in (0, 1e6))
    assert free == pytest.approx(wide, rel=1e-6) and free != pytest.approx(expected, rel=1e-3), "0: no clip"


def test_grpo_pulls_towards_the_reference():
    """Without advantages the gradient is that of k3 alone: a token likelier than under the reference becomes
    less likely, and the other way round."""
    logprobs, old, ref, advantages, mask = a_batch()
    grpo_loss(logprobs, old, ref, 0 * advantages, mask, 0.2, 1.0).backward()
    real = mask.bool()
    assert torch.equal(logprobs.grad[real].sign(), (logprobs - ref)[real].sign())
    assert (logprobs.grad[~real] == 0).all()


# ------------------------------------------------------------------------------------------------
# The stage
# ------------------------------------------------------------------------------------------------


class FirstHalf:
    """A scorer that likes tokens of the first half of the vocabulary."""

    mean, std = 0.5, 0.1

    def __init__(self, enc):
        self.half = enc.n_vocab / 2

    def raw(self, tokens, lengths, prompts, texts):
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        return ((tokens < self.half) & real).sum(1) / lengths


class FewSteps:
    """What the trainings need of a stage; `rows` is what they log."""

    def __init__(self, path=None):
        self.path, self.rows, self.asked = path, [], []

    def parent(self, name):
        self.asked.append(name)
        return self.path

    def track(self, **objects):
        pass

    def steps(self, total):
        return range(total)

    def log(self, step, shown, **metrics):
        self.rows.append(metrics)


def test_dpo_learns_to_rank_and_its_reference_stays(make_gpt, enc, tmp_path):
    """The loss is log 2 before the first step, where the policy is the reference, and then falls."""
    ranking = {"prompt": "What is a dog?", "responses": ["best friend", "A dog is a dog", "A furry mammal"],
               "tiers": [[2], [0], [1]], "split": "train"}
    rows = [ranking] * 4 + [ranking | {"split": "test"}] * 4
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")  # of either collection
    reference = make_gpt(vocab_size=enc.n_vocab, block_size=48, std=0.1)
    policy, stage = alternatives.with_heads(reference).eval(), FewSteps(path)
    cfg = alternatives.Config(method="dpo", batch_size=4, epochs=8, dpo_lr=0.01, beta=0.3)
    alternatives.train_dpo(stage, cfg, policy, reference, enc)
    losses = [row["loss"] for row in stage.rows]
    assert len(losses) == 16 and losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.5 and stage.rows[-1]["accuracy"] == 1 and stage.rows[0]["accuracy"] == 0
    assert stage.asked == ["rankings", "rankings.pilot"], "what the reward model learns from"


def test_grpo_is_clipped_and_pays_with_its_own_coefficient(make_gpt, enc):
    """A token that is e times as likely as when it was sampled, with A = 1, counts 1.2; at A = 0 only k3
    counts, and its coefficient is 0."""
    model = make_gpt(vocab_size=enc.n_vocab, block_size=48).eval()
    ppo = alternatives.ppo_config(alternatives.Config())
    tokens, mask = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 2)
    mb = SimpleNamespace(tokens=tokens, prompt_lengths=torch.tensor([2]), mask=mask, responses=tokens[:, 2:])
    hidden = response_hidden(model, tokens, mb.prompt_lengths, 2)
    now = token_logprobs(model.lm_head(hidden), mb.responses, ppo.temperature).detach()
    mb.old_logprobs, mb.ref_logprobs = now - 1, now + 2
    cfg = alternatives.Config(method="grpo", k3_coef=0.0, kl_coef=1.0)
    for advantage, loss in ((1.0, -1.2), (0.0, 0.0)):
        found = alternatives.policy_loss(model, mb, torch.tensor([advantage]), cfg, ppo)
        assert found.item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("method, lr", [("rloo", 5e-4), ("grpo", 2.5e-4)])
def test_each_method_has_its_own_rate_and_asks_every_prompt(make_gpt, enc, monkeypatch, method, lr):
    """The first of four steps has the peak rate, for a warm-up takes a quarter of them; the last one is at
    two thirds of a cosine's half turn."""
    asked, rollout = [], alternatives.train_ppo.rollout
    monkeypatch.setattr(alternatives.train_ppo, "rollout", lambda *a: (asked.extend(a[4]), rollout(*a))[1])
    reference = make_gpt(vocab_size=enc.n_vocab, block_size=96, std=0.1)
    policy, stage = alternatives.with_heads(reference).eval(), FewSteps()
    cfg = alternatives.Config(method=method, prompts=8, steps=4)
    prompts = ["What is a dog?", "A cat"]
    alternatives.train_rl(stage, cfg, policy, reference, enc, FirstHalf(enc), prompts)
    rates = stage.rows[0]["lr"], stage.rows[-1]["lr"]
    assert rates == pytest.approx((lr, lr / 4)) and set(asked) == {*prompts}


def test_answers_to_a_prompt_stand_one_behind_another(make_gpt, enc, monkeypatch):
    """For so the advantages group them."""
    asked, rollout = [], alternatives.train_ppo.rollout
    monkeypatch.setattr(alternatives.train_ppo, "rollout", lambda *a: (asked.append(a[4]), rollout(*a))[1])
    reference = make_gpt(vocab_size=enc.n_vocab, block_size=96, std=0.1)
    policy, cfg = alternatives.with_heads(reference).eval(), alternatives.Config(method="grpo", prompts=8)
    cfg.steps = 2
    prompts = [f"What is a dog {i}?" for i in range(30)]
    alternatives.train_rl(FewSteps(), cfg, policy, reference, enc, FirstHalf(enc), prompts)
    for texts in asked:
        groups = [texts[i : i + cfg.answers] for i in range(0, len(texts), cfg.answers)]
        assert len(groups) == 8 and all(len(set(group)) == 1 for group in groups) and len(set(texts)) > 4


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_an_update_makes_the_better_answers_likelier(make_gpt, enc, method):
    """Paid for tokens of the first half of the vocabulary, a policy learns to write them."""
    reference = make_gpt(vocab_size=enc.n_vocab, block_size=48, std=0.15)
    policy = alternatives.with_heads(reference).eval()
    cfg = alternatives.Config(method=method, answers=4, minibatch_size=16)
    ppo = alternatives.ppo_config(cfg)
    ppo.max_new_tokens, ppo.eos_penalty = 12, 0
    optimizer = alternatives.adam((policy, 0.02))
    prompts = ["What is a dog?"] * 16 + ["A cat"] * 16
    ids = [encode_prompt(enc, prompt) for prompt in prompts]
    scores = []
    for _ in range(20):
        batch = alternatives.train_ppo.rollout(alternatives.Policy(policy), reference, FirstHalf(enc),
                                               enc, prompts, ids, ppo, 0.0)
        scores.append(batch.scores.mean().item())
        alternatives.update(policy, optimizer, batch, alternatives.advantages_of(batch, cfg), cfg, ppo)
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 1, scores


def test_what_rloo_is_paid_for_holds_the_kl():
    """Score - beta KL of whole answers, as PPO's; GRPO has the KL in its loss alone. Three prompts with two
    answers each, one behind the other."""
    rewards = torch.tensor([[1.0, 1], [0, 3], [5, 0], [2, 2], [9, -1], [1, 1]])
    batch = SimpleNamespace(rewards=rewards, scores=torch.tensor([4.0, 1, 7, 8, 0, 6]))
    of = {m: alternatives.advantages_of(batch, alternatives.Config(method=m, answers=2)).tolist()
          for m in ("rloo", "grpo")}
    assert of["rloo"] == [-1, 1, 1, -1, 6, -6]
    assert of["grpo"] == pytest.approx([1, -1, -1, 1, -1, 1], abs=1e-4)


def test_each_method_is_a_stage(copy, monkeypatch):
    """It ends with the comparison that PPO ends with; the reference has stayed as it was."""
    monkeypatch.chdir(copy)
    monkeypatch.setattr("lab.run.picture", lambda file, *rest: file.write(b"no picture"))
    run, before = copy / "runs/tiny", load_checkpoint(copy / "runs/tiny/sft.pt")["fingerprint"]
    for method in ("dpo", "rloo", "grpo"):
        alternatives.main(f"--config smoke --run tiny --method {method} --eval_split dev --steps 2".split())
        there = load_checkpoint(run / f"{method}.pt")
        assert there["finished"] and there["fingerprint"] != before
        assert set(there["state"]["results"]["gold score, points"]) >= {"SFT", method.upper()}
        assert len(rows_of(run / f"{method}.jsonl")) == there["step"] > 0 and there["seconds"] > 0
    assert load_checkpoint(run / "sft.pt")["fingerprint"] == before


# ------------------------------------------------------------------------------------------------
# Beside each other
# ------------------------------------------------------------------------------------------------


def test_several_processes_are_refused(monkeypatch):
    """Each would take the whole batch, and the sum of their gradients would be too large."""
    monkeypatch.setattr(alternatives.parallel, "several", lambda: True)
    with pytest.raises(UserError, match="start them with python, not with torchrun"):
        alternatives.main(["--config", "smoke", "--method", "dpo"])


def test_the_table_of_all_has_default_knobs():
    for flags in ("--beta 1", "--seed 1", "--config smoke", "--eval_split dev", "--name other", "--run a",
                  "--threads 1", "--overwrite"):
        with pytest.raises(UserError, match="name a --method"):
            alternatives.main(flags.split())
    with pytest.raises(UserError, match="a folder that is there"):
        alternatives.main(["--out", "nowhere/all.png"])


def test_answers_against_those_of_another_model():
    """Two prompts, three answers against two: of prompt 0 its 1 and 3, of prompt 1 its 5 and 5."""
    found = beside.wins_against(torch.tensor([[0.0, 1, 4], [5, 6, 4]]), [1, 5, 3, 5])
    assert found == [0, 0.25, 1, 0.5, 1, 0]


def test_a_curve_is_the_mean_of_iterations_and_seeds():
    logs = [[{"kl": float(i), "gold": seed} for i in range(11)] for seed in (1, 3)]
    assert beside.curve(logs) == [(1.5, 2), (5.5, 2), (9, 2)]


def test_best_of_n_of_the_sft_model(copy, monkeypatch):
    """More to choose from has more score, and is further away."""
    monkeypatch.chdir(copy)
    found = beside.best_of_sft(copy / "runs/tiny", split="dev")
    few, many = found["best of 4"], found["best of 16"]
    assert few.keys() == set(beside.COLUMNS) and few[beside.SECONDS] is None
    assert many[beside.SCORE] > few[beside.SCORE] and many[beside.KL] > few[beside.KL] > 0
    assert 0 < many[beside.DISTINCT] <= 1 and 0 <= many[beside.WIN] <= 1


def test_the_table_has_a_row_a_method_and_the_picture_all_of_them(monkeypatch, tmp_path):
    """Mean and range over two seeds; a training of before there were seconds has a dash."""
    def of_seed(seed):
        figures = dict.fromkeys(beside.COLUMNS, 1.0 + seed)
        return {name: figures | ({beside.SECONDS: None} if name == "PPO" else {})
                for name in (*beside.STAGES, "rejection sampling", "best of 4")}

    ends = {column: dict.fromkeys(beside.ROUNDS, 2.0) for column in (beside.KL, beside.GOLD)}
    monkeypatch.setattr(beside, "of_seed", of_seed)
    monkeypatch.setattr(beside, "results", lambda path: ends)
    monkeypatch.setattr(beside, "logged", lambda path: [{"kl": -0.1, "gold": 2.0}] * 10)
    head, rows = beside.beside(2, tmp_path / "all.png")
    assert head == ["2 seeds, test prompts", *beside.COLUMNS] and (tmp_path / "all.png").exists()
    assert [row[0] for row in rows] == [*beside.STAGES, "rejection sampling", "best of 4"]
    assert rows[0][1] == "1.50 (1.00 to 2.00)" and rows[0][-1] is None and rows[1][-1] == rows[1][1]


def test_what_it_took_is_that_of_all_stages_of_a_method(copy, monkeypatch):
    """Rejection sampling: its rounds and the reward models between them."""
    monkeypatch.setattr(beside, "win_rate", lambda path, who: 0.5)
    run = copy / "runs/tiny"
    found = beside.of_stage(run / "rs.2", "rs.2", ["rs.1", "rs.2"])
    each = [load_checkpoint(run / f"{name}.pt")["seconds"] for name in ("rs.1", "rs.2")]
    assert found[beside.SECONDS] == sum(each) > max(each) > 0 and found[beside.WIN] == 0.5


def test_what_is_missing_is_made_by_commands_that_their_scripts_take(monkeypatch, tmp_path):
    """All with default knobs, but for --method, --name and the seed."""
    monkeypatch.chdir(tmp_path)  # where it notes how long they took
    asked = []
    monkeypatch.setattr("runs.command", lambda *words: asked.append([str(word) for word in words]))
    monkeypatch.setattr(beside, "of_stage", lambda path, who, stages: (path.as_posix(), who, stages))
    monkeypatch.setattr(beside, "best_of_sft", lambda folder: {"best of 4": folder.as_posix()})
    found = beside.of_seed(2)
    assert found["DPO"] == ("runs/tiny-seed2/dpo", "DPO", ["dpo"])
    assert found["PPO"] == ("runs/tiny-seed2/ppo", "PPO", ["ppo"])
    assert found["rejection sampling"][2] == [*beside.ROUNDS, "rm.rs.1", "rm.rs.2", "rm.rs.3"]
    assert found["best of 4"] == "runs/tiny-seed2" and len(asked) == 5
    for script, *flags in asked:
        module = importlib.import_module(Path(script).stem)
        cfg = parse(module.Config, module.PRESETS, "", flags, module.RULES)
        assert cfg.seed == 2 and cfg.name and (ROOT / script).exists()
        assert getattr(cfg, "method", cfg.name) == cfg.name
