"""Rejection sampling: who is chosen, what best-of-n earns, and how far it goes."""
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ASKED, leave_reports_out

import data
import rejection_sampling
from lab.best_of_n import log_probability
from lab.records import fingerprint, record_of
from lab.report import table
from lab.report_rounds import curve_in_words
from rejection_sampling import (
    Config,
    best_of,
    best_of_n,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_kl_bound,
    fresh_rankings,
    newest_reward,
    one_round,
    standard_error,
    subset_weights,
    winners_of,
)

# ------------------------------------------------------------------------------------------------
# The formulas
# ------------------------------------------------------------------------------------------------


def test_the_best_answer_is_chosen_for_each_prompt():
    """Row by row, although all of the second prompt's answers are better than any of the first; of equals the
    first."""
    rewards = torch.tensor([[-0.3, -0.1, -0.2], [9.0, 8.0, 7.0], [1.0, 2.0, 2.0]])
    assert best_of(rewards).tolist() == [1, 0, 1]
    texts = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]
    winners = winners_of(["p", "q", "r"], texts, rewards)
    assert [(w["prompt"], w["response"]) for w in winners] == [("p", "b"), ("q", "d"), ("r", "h")]
    assert [w["score"] for w in winners] == pytest.approx([-0.1, 9, 2])


def test_weights_of_ranks():
    assert subset_weights(3, 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert subset_weights(4, 1).tolist() == pytest.approx([0.25] * 4)
    assert subset_weights(4, 4).tolist() == [0, 0, 0, 1]
    assert all(subset_weights(16, n).sum() == pytest.approx(1) for n in range(1, 17))


def test_best_of_n_is_the_mean_over_all_choices_of_n():
    """Against counting them out; the value is that of the answer with the highest reward, not the highest
    value."""
    rewards, gold = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    for n in (1, 2, 4, 6):
        for row in range(3):
            picked = [gold[row, max(subset, key=lambda i, row=row: rewards[row, i])].item()
                      for subset in itertools.combinations(range(6), n)]
            assert best_of_n(rewards, gold, n)[row].item() == pytest.approx(sum(picked) / len(picked))
    assert best_of_n(rewards, rewards, 6).tolist() == pytest.approx(rewards.max(1).values.tolist())
    assert best_of_n(rewards, gold, 1).tolist() == pytest.approx(gold.mean(1).tolist())


def test_the_bound_on_the_kl():
    assert [best_of_n_kl_bound(n) for n in (1, 2, 16)] == pytest.approx([0, 0.1931, 1.8351], abs=1e-4)


def test_the_kl_reaches_its_bound_where_no_answer_comes_twice():
    rewards = torch.rand(2000, 16, dtype=torch.float64)
    for n in (1, 2, 4, 16):
        kl = best_of_n_kl(rewards, torch.full_like(rewards, -40.0), n).mean().item()
        assert kl == pytest.approx(best_of_n_kl_bound(n), abs=0.02)


def exact_kl(p, n):
    """KL(best of n || one) over answers of probability p, the worst first."""
    F = torch.cat([torch.zeros(1, dtype=p.dtype), p.cumsum(0)[:-1]])
    P = (F + p) ** n - F**n
    return (P * (P / p).log()).sum().item()


CASES = [([0.25] * 4, 1.330), ([0.7, 0.2, 0.1], None), ([0.05, 0.05, 0.9], None)]


@pytest.mark.parametrize("p, at_16", CASES)
def test_the_kl_of_few_answers_is_below_its_bound(p, at_16):
    """Four equally likely answers: 1.330 instead of 1.835; and others against the sum over all answers."""
    p = torch.tensor(p, dtype=torch.float64)
    drawn = torch.multinomial(p, 3000 * 64, replacement=True).view(3000, 64)
    for n in (2, 4, 16):
        kl = best_of_n_kl(drawn.double(), p.log()[drawn], n).mean().item()
        assert kl == pytest.approx(exact_kl(p, n), abs=0.03)
        assert exact_kl(p, n) < best_of_n_kl_bound(n)
    assert at_16 is None or exact_kl(p, 16) == pytest.approx(at_16, abs=5e-4)


def test_the_probability_of_a_text_is_the_product_over_its_tokens(make_gpt, enc):
    """Its EOS included, the prompt not, each under the template and at the temperature."""
    model = make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64)
    prompts, texts = ["A dog is", "What is a cat?", "A"], ["a furry mammal.", "A cat", ""]
    got = log_probability(model, enc, prompts, texts, 0.7, batch_size=2)
    for prompt, text, found in zip(prompts, texts, got, strict=True):
        start, ids = data.encode_prompt(enc, prompt), data.encode_response(enc, text)
        assert ids[-1] == enc.eot_token
        expected = 0.0
        for t, token in enumerate(ids):
            logits = model(torch.tensor([start + ids[:t]]))[0, -1]
            expected += (logits / 0.7).log_softmax(-1)[token].item()
        assert found == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------------------------
# The curve
# ------------------------------------------------------------------------------------------------


def test_the_curve_begins_with_a_random_answer_and_ends_with_the_best(make_gpt, enc):
    """Longer answers are better here: what best of n earns can be counted."""
    model = make_gpt(std=0.2, vocab_size=enc.n_vocab, block_size=64)
    asked = []

    def of_texts(_, prompts, texts):
        asked.extend(zip(prompts, texts, strict=True))
        return [float(len(text)) for text in texts]

    cfg = SimpleNamespace(answers_per_prompt=6, max_new_tokens=8, temperature=1.0)
    scorer, prompts = SimpleNamespace(of_texts=of_texts), ["A dog is", "no such prompt"]
    curve = best_of_n_curve(model, enc, scorer, prompts, cfg)
    lengths = torch.tensor([float(len(text)) for _, text in asked]).view(2, 6)
    assert [p for p, _ in asked] == ["A dog is"] * 6 + ["no such prompt"] * 6
    assert [row["n"] for row in curve] == [1, 2, 4, 6]
    assert curve[0]["score"] == pytest.approx(lengths.mean().item())
    assert curve[-1]["score"] == pytest.approx(lengths.max(1).values.mean().item())
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert {row["gold"] for row in curve} == {None}, "not all of these prompts are of the tiny world"


def test_what_the_best_gains_at_least_on_a_random_answer(monkeypatch):
    """Best of 2 is 1 and 3 points above its own prompt's mean: 2 - 1.96 x 1; that one prompt is worth 100
    points more is nothing. Log-probabilities are those at the temperature of the answers."""
    sampled = [["0", "2"], ["106", "100"]], torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    asked, instead = [], {
        "sample_and_score": lambda *_: sampled, "in_tiny_world": lambda prompts: True,
        "gold_score": lambda prompt, text: float(text),
        "log_probability": lambda *args: asked.append(args[4]) or [-3.0] * 4}
    for name, function in instead.items():
        monkeypatch.setattr(rejection_sampling, name, function)
    cfg = Config(answers_per_prompt=2, temperature=0.7)
    one, two = best_of_n_curve(None, None, None, ["p", "q"], cfg)
    assert (one["gold"], one["gold_gain_low"], two["gold"]) == pytest.approx((52, 0, 54))
    assert two["gold_gain_low"] == pytest.approx(0.04) and asked == [0.7]


def row_of(n, kl, gold=None, low=None):
    return {"n": n, "score": 0.5 * n, "gold": gold, "gold_gain_low": low, "kl_bound": best_of_n_kl_bound(n),
            "kl": kl, "kl_error": 0.034}


def test_an_estimate_above_its_bound_is_not_left_without_a_word():
    possible = curve_in_words([row_of(1, 0.0), row_of(16, 1.80)], "rs.1")
    assert "1.80 ± 0.03" in possible and "standard error" in possible
    assert "above what is possible" not in possible and "gold" not in possible
    impossible = curve_in_words([row_of(1, 0.0, 1.0, 0.0), row_of(16, 1.87, 3.5, 2.25)], "rs.1")
    said = " ".join(impossible.split())
    assert "1.87 ± 0.03" in said and "above what is possible" in said
    assert "beats a random one by 2.50 points of gold score (95 % interval from 2.25" in said
    assert max(map(len, impossible.split("\n"))) <= 100


def test_of_one_prompt_nobody_knows_how_sure_a_mean_is():
    assert standard_error(torch.ones(1)) is None and standard_error(torch.ones(4)) == 0
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1), "the root of 2 / the root of 2"
    one = [{**row_of(n, 0.5, float(n)), "kl_error": None} for n in (1, 2)]
    said = " ".join(curve_in_words(one, "rs.1").split())
    assert "0.50 ± -" in said and "nobody knows how sure" in said and "nan" not in said
    assert table(["a", "b", "c"], [["x", math.nan, None]]).split() == ["a", "b", "c", "-" * 7, "x", "-", "-"]


# ------------------------------------------------------------------------------------------------
# The rounds
# ------------------------------------------------------------------------------------------------


def test_a_round_is_a_stage_of_its_own():
    """Its name and its number; to train again means the last one."""
    cfg = Config(rounds=3, overwrite=True, then_ppo=True)
    cfg.argv = ["--rounds", "3", "--then_ppo"]
    rounds = [one_round(cfg, "rs", n) for n in (1, 2, 3)]
    assert [one.name for one in rounds] == ["rs.1", "rs.2", "rs.3"]
    assert [one.rounds for one in rounds] == [1, 2, 3] and not any(one.then_ppo for one in rounds)
    assert [one.overwrite for one in rounds] == [False, False, True]
    assert rounds[1].argv[-4:] == ["--rounds", "2", "--then_ppo", "false"] and cfg.rounds == 3


def test_a_round_samples_from_the_model_of_the_round_before(random_run, monkeypatch, rates):
    """Training prompts, with other random numbers in each round, and held-out ones for the curve, with the
    same. The rates of its steps are those of the log."""
    seen, whole = [], rejection_sampling.sample_and_score

    def sample_and_score(policy, enc, scorer, prompts, cfg):
        seen.append((fingerprint(policy), prompts, torch.rand(1).item()))
        return whole(policy, enc, scorer, prompts, cfg)

    monkeypatch.setattr(rejection_sampling, "sample_and_score", sample_and_score)
    monkeypatch.setattr(rejection_sampling, "count_from_sft", lambda *_: None)  # 300 answers
    leave_reports_out(monkeypatch)
    knobs = "--rounds 2 --answers_per_prompt 2 --max_new_tokens 8 --epochs 1 --batch_size 4 --device cpu"
    rejection_sampling.main(f"--data mine --refresh_reward_model false {knobs}".split())
    models, prompts, drawn = zip(*seen, strict=True)
    sft, first, second = (record_of(random_run, name)["fingerprint"] for name in ("sft", "rs.1", "rs.2"))
    assert models == (sft, sft, first, first) and len({sft, first, second}) == 3
    assert prompts == (ASKED["train"], ASKED["test"]) * 2
    assert drawn[0] != drawn[2] and drawn[1] == drawn[3]
    logged = [row for name in ("rs.1", "rs.2") for row in data.load_rows(random_run / f"{name}.jsonl")]
    assert rates == [row["lr"] for row in logged]


@pytest.fixture
def refreshed(monkeypatch, tmp_path):
    """refreshed(records) -> the commands that newest_reward runs, with these records of stages."""
    commands = []

    def use(records, **knobs):
        monkeypatch.setattr(rejection_sampling, "record_of", lambda folder, name: records.get(name))
        monkeypatch.setattr(rejection_sampling, "run_folder", lambda cfg: tmp_path)
        monkeypatch.setattr(rejection_sampling, "train_if_missing", lambda cfg, *what: commands.append(what))
        return Config(**knobs), commands

    return use


def knobs_of(**changes):
    """The record of a collection with these knobs, the others as they are by default."""
    known = rejection_sampling.CollectionConfig
    usual = {name: getattr(known, name) for name in rejection_sampling.WHO_RANKS}
    return {"knobs": {**usual, "labeler": "simulated", **changes}}


def test_two_reward_models_go_on_with_rankings_of_the_newest_answers(refreshed):
    """Each with its own kind of collection; whoever ranked before ranks again, with the same failings."""
    helpful = {"rankings": ["rankings_helpful.rs.1"]}
    safety = {"rankings": ["rankings_safety.rs.1", "more"]}
    cfg, commands = refreshed({
        "rm_helpful": {"knobs": {"rankings": ["rankings_helpful"]}}, "rm_helpful.rs.1": {"knobs": helpful},
        "rm_safety": {"knobs": {"rankings": ["rankings_safety"]}}, "rm_safety.rs.1": {"knobs": safety},
        "rankings_helpful": knobs_of(aspect="helpful", noise=2.0),
        "rankings_safety": knobs_of(aspect="safety")}, reward="llama2")
    assert newest_reward(cfg, "rs", 1) == "llama2" and not commands
    assert newest_reward(cfg, "rs", 3) == "llama2.rs.2"
    names = [what[0] for what in commands]
    first = ["rm_helpful", "rankings_helpful.rs.1", "rm_helpful.rs.1"]
    assert names[:3] == first, "those of the round before"
    del commands[:6]
    assert names[6:] == ["rm_helpful.rs.1", "rankings_helpful.rs.2", "rm_helpful.rs.2",
                         "rm_safety.rs.1", "rankings_safety.rs.2", "rm_safety.rs.2"]
    asked, trained = commands[1][1], commands[2][1]
    assert asked.startswith("preferences.py --name rankings_helpful.rs.2 --answers_of rs.2 ")
    assert "--aspect helpful" in asked and "--noise 2.0" in asked and "--tie_gap" not in asked
    assert "--aspect safety" in commands[4][1] and "--noise" not in commands[4][1]
    assert trained == ("train_rm.py --start rm_helpful.rs.1 --rankings rankings_helpful.rs.2 --epochs 1 "
                       "--name rm_helpful.rs.2")


def test_the_first_refresh_goes_on_from_the_reward_model_itself(refreshed):
    cfg, commands = refreshed({"rm": {"knobs": {"rankings": ["rankings"]}}, "rankings": knobs_of()})
    assert newest_reward(cfg, "rs", 2) == "overall.rs.1"
    assert [what[0] for what in commands] == ["rm", "rankings.rs.1", "rm.rs.1"]
    cfg.refresh_reward_model = False
    assert newest_reward(cfg, "rs", 2) == "overall"


def test_a_collection_of_another_name_is_the_one_that_is_gone_on_with(refreshed):
    records = {"rm": {"knobs": {"rankings": ["rankings.me"]}}, "rankings": knobs_of(),
               "rankings.me": knobs_of(labeler="human")}
    with pytest.raises(data.UserError, match="learned from your labels"):
        newest_reward(refreshed(records)[0], "rs", 2)
    cfg, commands = refreshed({"rm": {"knobs": {"rankings": ["my.own"]}}, "my.own": knobs_of(noise=2.0)})
    assert newest_reward(cfg, "rs", 2) == "overall.rs.1"
    assert commands[-2][0] == "my.rs.1" and "--noise 2.0" in commands[-2][1]


def test_an_ai_labels_again_a_human_is_not_replaced_a_file_cannot_answer(refreshed, tmp_path):
    (tmp_path / "data").mkdir()
    splits = ("train", "test", "train")
    rows = "".join(f'{{"prompt": "a", "split": "{s}", "unsafe": false}}\n' for s in splits)
    (tmp_path / "data/prompts.jsonl").write_text(rows)
    cfg, commands = refreshed({
        "rm_ai": {"knobs": {"rankings": ["rankings_ai"]}},
        "rankings_ai": knobs_of(labeler="ai", preamble="Be kind."),
        "rm": {"knobs": {"rankings": ["rankings_human"]}}, "rankings_human": knobs_of(labeler="human"),
        "filed": {"knobs": {"rankings": ["preferences"]}}})
    assert fresh_rankings(cfg, "rm_ai", "rs.1") == "rankings_ai.rs.1"
    assert "--labeler ai" in commands[0][1] and "--preamble 'Be kind.'" in commands[0][1]
    assert "--questions" not in commands[0][1], "one a prompt, as usual of another model"
    with pytest.raises(data.UserError, match="your labels.*--refresh_reward_model false"):
        fresh_rankings(cfg, "rm", "rs.1")
    assert fresh_rankings(cfg, "filed", "rs.1") is None and len(commands) == 1
    cfg.reward = "filed"
    assert newest_reward(cfg, "rs", 3) == "filed"
