"""The microscope: the columns of its tables, how they add up in words, and what a checkpoint decides."""
import math
import re
from types import SimpleNamespace

import pytest
import torch

import lab.explain
import train_ppo
from data import UserError
from lab.explain import (
    COLUMNS,
    arguments,
    caption_of,
    clipped_tokens,
    columns_of,
    draw_tokens,
    free_path,
    names_of_tokens,
    open_checkpoint,
    token_lines,
)
from lab.explain_words import in_words, obedient, ratio_in_words, score_in_words
from lab.records import fingerprint
from model import GPT, GPTConfig
from train_ppo import gae, ppo_policy_loss, whiten
from world.reward import Scorer

# ------------------------------------------------------------------------------------------------
# The columns
# ------------------------------------------------------------------------------------------------


def test_a_token_is_clipped_where_the_loss_has_no_gradient():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.19, 0.81, 1.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, -2.0, 3.0])
    old = torch.full((7,), -3.0)
    new = (old + ratios.log()).requires_grad_()
    clipped = [True, False, False, True, False, False, False]
    assert clipped_tokens(ppo_policy_loss, new, old, advantages, 0.2) == clipped
    slopes, = torch.autograd.grad(ppo_policy_loss(new, old, advantages, torch.ones(7), 0.2)[0], new)
    assert (slopes == 0).tolist() == clipped
    assert not any(clipped_tokens(ppo_policy_loss, new, old, advantages, 0))


def explained(other=9.0, **changes):
    """(columns of the first answer, of the second, knobs): two answers of 3 and 2 tokens, the first that of
    the worked examples of kl_shaped_rewards and gae; values and a new policy."""
    old = torch.tensor([[-1.0, -2.0, -0.5], [-4.0, -4.0, 0.0]])
    ref = torch.tensor([[-1.2, -1.5, -0.9], [-3.0, -3.0, 0.0]])
    values = torch.tensor([[0.2, 0.4, 0.6], [other, other, 0.0]])
    new = torch.tensor([[-0.5, -2.0, -1.0], [-4.0, -5.0, 7.0]])
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    cfg = SimpleNamespace(**{"clip": 0.2, "gamma": 1.0, "lam": 0.95, "whiten_advantages": False, **changes})
    advantages, returns = gae(rewards, values, mask, cfg.gamma, cfg.lam)
    if cfg.whiten_advantages:
        advantages = whiten(advantages, mask)
    batch = SimpleNamespace(mask=mask, old_logprobs=old, ref_logprobs=ref, rewards=rewards, old_values=values,
                            returns=returns, advantages=advantages)
    first, second = (columns_of(ppo_policy_loss, batch, new, cfg, i) for i in (0, 1))
    return first, second, cfg


def test_columns_of_the_worked_example():
    first, second, _ = explained()
    expected = {
        "log p": [-1, -2, -0.5],
        "reference": [-1.2, -1.5, -0.9],
        "KL": [0.2, -0.5, 0.4],
        "reward": [0, 0, 1],
        "value": [0.2, 0.4, 0.6],
        "return": [0.951, 0.98, 1],
        "advantage": [0.751, 0.58, 0.4],
        "new log p": [-0.5, -2, -1],
        "ratio": [math.exp(0.5), 1, math.exp(-0.5)],
        "branch": [1, 0, 0],
    }
    assert list(first) == list(expected) and {len(x) for x in second.values()} == {2}, "no padding"
    for name in expected:
        assert first[name] == pytest.approx(expected[name], abs=1e-6), name
    # Behind its second token nothing comes: A = -9, before that -9 + 9 - 0.95 * 9. The second token became
    # less likely, as it should: clipped.
    assert second["advantage"] == pytest.approx([-8.55, -9])
    assert second["return"] == pytest.approx([0.45, 0], abs=1e-6) and second["branch"] == [0, 1]


def test_the_loss_sees_the_whitened_advantages():
    first, whitened = explained()[0], explained(whiten_advantages=True)[0]
    assert list(whitened)[7] == "whitened" and whitened["advantage"] == first["advantage"]
    assert list(whitened) == list(COLUMNS)
    all_five = [0.751, 0.58, 0.4, -8.55, -9]
    mean = sum(all_five) / 5
    std = math.sqrt(sum((a - mean) ** 2 for a in all_five) / 5)
    assert whitened["whitened"] == pytest.approx([(a - mean) / std for a in all_five[:3]], abs=1e-5)
    # Beside better answers these advantages, though above 0, are below 0 when whitened.
    turned = explained(-9.0, whiten_advantages=True)[0]
    assert min(turned["advantage"]) > 0 > max(turned["whitened"]) and turned["branch"] == [0, 0, 1]


def test_tokens_that_moved_as_they_should():
    """Up for a good one, down for a bad one; a ratio of 1.0004 has not moved."""
    assert obedient([2.0, 1.0, -1.0, -3.0, 5.0], [1.1, 0.9, 0.5, 1.2, 1.0004]) == (2, 4)
    assert obedient([1.0], [1.0]) == (0, 0)


# ------------------------------------------------------------------------------------------------
# In words
# ------------------------------------------------------------------------------------------------


def test_the_sums_are_those_of_the_columns():
    """By hand: the KL is 0.1, the rewards of this table are score 1 without the price of the KL, which beta
    0 says; then other knobs for a token with nothing behind it."""
    columns, second, cfg = explained(whiten_advantages=True)
    said = in_words(columns, 1.0, 0.0, 0.5, 0.25, cfg, (30, 40))
    assert said["KL"].startswith("0.100 in sum")
    reward = "score 1.000 - beta 0 x KL 0.100 = 1.000; the column sums to 1.000."
    assert said["reward"].startswith(reward)
    assert ("delta = reward 0.000 + gamma 1 x next value 0.400 - value 0.200 = 0.200; delta + gamma lambda "
            "0.95 x next advantage 0.580 = 0.751.") in said["advantage"]
    assert "advantage 0.751 + value 0.200 = 0.951." in said["return"]
    assert "(0.751 - mean 0.500) / standard deviation 0.250 = 1.004" in said["whitened"]
    cfg.whiten_advantages, cfg.gamma = False, 0.9
    said = in_words({name: x[-1:] for name, x in second.items()}, -2.0, 0.5, 0.5, 0.25, cfg, (0, 0))
    wrong = "score -2.000 - beta 0.5 x KL -1.000 = -1.500; the column sums to 0.000."
    assert wrong in said["reward"], "a wrong column would be seen"
    last = ("gamma 0.9 x next value 0.000 - value 9.000 = -9.000; delta + gamma lambda 0.855 x next "
            "advantage 0.000 = -9.000.")
    assert last in said["advantage"], "nothing comes behind the last token"
    assert "--whiten_advantages false" in said["whitened"]
    said = in_words(columns, 1.0, 0.0, 0.5, 0.25, cfg, (0, 0))
    assert ("gamma 0.9 x next value 0.400 - value 0.200 = 0.160; delta + gamma lambda 0.855 x next advantage "
            "0.580 = 0.656.") in said["advantage"]


def test_how_many_tokens_moved_is_said_for_the_answer_and_for_the_batch():
    columns, _, cfg = explained(whiten_advantages=True)
    said = ratio_in_words(columns, cfg, (30, 40))
    assert "exp(new log p (-0.500) - log p (-1.000)) = 1.649." in said
    assert "Of the 2 whose ratio is not 1.000, 1 moved as the sign in the column whitened asks" in said
    assert "of all such tokens of the batch 30 of 40, 75%." in said


def test_where_a_score_comes_from():
    cfg = SimpleNamespace(score_scale="sft", eos_penalty=1.0)
    batch = SimpleNamespace(raw=torch.tensor([3.0, 1.0]), ended=torch.tensor([True, False]))
    scorer = Scorer("rm_first", [])
    scorer.mean, scorer.std = 1.0, 4.0
    parts = {"rm_first": batch.raw}
    whole, cut = (score_in_words(scorer, batch, parts, cfg, i) for i in (0, 1))
    assert whole == ("rm_first 3.000; (3.000 - mean 1.000) / standard deviation 4.000 = 0.500, both over "
                     "answers of the SFT model.")
    assert cut.endswith("= 0.000, both over answers of the SFT model. But the answer was cut off before its "
                        "EOS: -1 (--eos_penalty).")
    cfg.score_scale, cfg.eos_penalty = "batch", 0.0
    assert score_in_words(scorer, batch, parts, cfg, 1) == (
        "rm_first 1.000; (1.000 - mean 2.000) / standard deviation 1.000 = -1.000, both over answers of "
        "this batch.")
    two = {"rm_helpful": torch.tensor([3.0, 1.0]), "rm_safety": torch.tensor([0.5, 2.0])}
    assert "rm_helpful 3.000, rm_safety 0.500, of which Llama 2's rule takes 3.000;" in score_in_words(
        scorer, batch, two, cfg, 0)


# ------------------------------------------------------------------------------------------------
# On the terminal and as a picture
# ------------------------------------------------------------------------------------------------

TOKENS = [" a", "dog", "EOS"]


def test_colors_change_no_figure():
    columns, _, _ = explained()
    plain, colored = (token_lines(TOKENS, columns, 100, color) for color in (False, True))
    assert "\033" not in "".join(plain)
    assert [re.sub(r"\033\[\d+m", "", line) for line in colored] == plain
    green, red, yellow = (f"\033[{code}m" for code in (32, 31, 33))
    after = plain.index("") + 3
    assert colored[2].count(green) == 2 and red not in colored[2], "KL, advantage; a reward of 0 has none"
    assert f"{red}    -0.500" in colored[3], "a KL below 0"
    assert f"{green}     1.649" in colored[after] and f"{yellow}   clipped" in colored[after]
    assert f"{red}     0.607" in colored[after + 2], "a ratio below 1"


def test_two_tables_before_and_after_the_step():
    columns, _, _ = explained(whiten_advantages=True)
    lines = token_lines(TOKENS, columns)
    cut = lines.index("")
    before, after = lines[:cut], lines[cut + 1 :]
    words = " ".join(before[0].split())
    assert words == "token log p reference KL reward value return advantage whitened"
    assert " ".join(after[0].split()) == "token new log p ratio branch"
    assert [len(before), len(after)] == [5, 5] and before[1] == "-" * len(before[0])
    shown = [float(x) for x in before[2].split()[1:]]
    assert shown == pytest.approx([columns[name][0] for name in list(columns)[:8]], abs=5e-4)


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_the_tables_fit_the_terminal(width):
    columns, _, _ = explained(whiten_advantages=True)
    lines = token_lines([" wonderful", "dog", "EOS"], columns, width)
    assert max(map(len, lines)) <= width
    heads = " ".join(line[10:] for line in lines if line.startswith("token"))
    assert heads.split() == " ".join(columns).split(), "every column is there once"


@pytest.mark.filterwarnings("error:Glyph")
def test_the_picture_has_any_text(tmp_path):
    """Also a dollar sign, which matplotlib would take for a formula, letters that its font lacks, and no
    answer at all but an EOS."""
    columns, _, _ = explained(whiten_advantages=True)
    draw_tokens(tmp_path / "c.png", ["狗", "b", "EOS"], columns, 0.2, caption_of("", "狗 is"))
    assert 'prompt "A dog": each' in caption_of("", "A dog") and "prompt" not in caption_of("", "狗 is")
    draw_tokens(tmp_path / "a.png", ["$a", "b$", "EOS"], columns, 0.2, 'prompt "Who $ate$ it?"')
    one = {name: x[:1] for name, x in columns.items()}
    draw_tokens(tmp_path / "b.png", ["EOS"], one, 0.0, "nothing said")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


def test_two_calls_write_two_pictures(tmp_path):
    found = []
    for _ in range(3):
        found.append(free_path(tmp_path / "ppo.rs.pt", ".explain"))
        found[-1].touch()
    assert [p.name for p in found] == ["ppo.rs.explain.png", "ppo.rs.explain.2.png", "ppo.rs.explain.3.png"]


def test_tokens_have_names(enc):
    ids = enc.encode_ordinary(" A dog") + [enc.eot_token]
    names = names_of_tokens(enc, ids)
    assert "".join(names[:-1]) == " A dog" and names[-1] == "EOS"


# ------------------------------------------------------------------------------------------------
# What is the checkpoint's, and what may be given anew
# ------------------------------------------------------------------------------------------------


def test_only_what_is_given_differs_from_the_checkpoint():
    args, given = arguments(train_ppo.Config, ["runs/tiny/ppo.pt", "--ppo_epochs", "4", "--clip", "0"])
    assert given == {"ppo_epochs": 4, "clip": 0.0} and args.prompt == "A dog is"
    assert args.checkpoint.name == "ppo.pt"
    with pytest.raises(SystemExit):
        arguments(train_ppo.Config, ["runs/tiny/ppo.pt", "--kl_coef", "0"])


@pytest.fixture
def saved(tmp_path):
    """saved(stage, **knobs) writes a checkpoint with a small model and gives its path."""
    model = GPT(GPTConfig(5, 8, 0, 1, 4))

    def save(stage, **knobs):
        path = tmp_path / f"{stage}.pt"
        about = {"stage": stage, "command": "train_ppo.py", "knobs": knobs}
        about["state"] = {"kl_coef": 0.1, "sft_scale": [0.0, 1.0]}
        about |= {"fingerprint": fingerprint(model), "model_config": vars(model.config)}
        about |= {"parents": {"sft.pt": fingerprint(model)}, "step": 3, "steps": 3}
        about |= {"finished": True, "random": {}}
        torch.save({**about, "model": model.state_dict()}, path)
        return path

    return save


def test_a_step_under_the_microscope_has_the_peak_rates(make_gpt, monkeypatch):
    """Of the policy and of the critic: the training ended at 0."""
    agent, cfg = SimpleNamespace(networks=[make_gpt(), make_gpt()]), train_ppo.Config(config="tiny")
    monkeypatch.setattr(lab.explain, "restore", lambda path, checkpoint, objects: None)
    stage = SimpleNamespace(cfg=cfg, checkpoint={}, path=None)
    _, optimizer = lab.explain.load_agent(SimpleNamespace(make_agent=lambda *_: agent), stage, None, None)
    assert [group["lr"] for group in optimizer.param_groups] == [cfg.lr, cfg.critic_lr]


def test_the_knobs_are_those_of_the_checkpoint(saved):
    path = saved("ppo", kl_coef=0.3, lam=0.5, gamma=0.9, forgotten=1)
    stage = open_checkpoint(path, train_ppo.Config, {"lam": 0.7}, "cpu")
    assert (stage.cfg.kl_coef, stage.cfg.lam, stage.cfg.gamma) == (0.3, 0.7, 0.9)
    assert stage.cfg.steps == train_ppo.Config.steps and stage.cfg.name == "ppo"
    with pytest.raises(UserError, match="sft.pt, which ppo.pt was trained with, is no longer there"):
        stage.parent("sft")
    saved("sft")
    assert stage.parent("sft").name == "sft.pt"
    stage.checkpoint["parents"]["sft.pt"] = "another"
    with pytest.raises(UserError, match="trained again since"):
        stage.parent("sft")
    for knob in ({"leave_out": "x", "lr": "fast"}, {"steps": -1}, {"critic": "both"}, {"clip": [1]}):
        with pytest.raises(UserError, match=f"ppo.pt has a --{[*knob][-1]} that is not allowed .expected"):
            open_checkpoint(saved("ppo", **knob), train_ppo.Config, {}, "cpu")
    with pytest.raises(UserError, match="checkpoint of the stage sft; a PPO step needs one of train_ppo.py"):
        open_checkpoint(saved("sft"), train_ppo.Config, {}, "cpu")
