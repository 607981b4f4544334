"""What a run of PPO shows: three answers now and then, and the comparison with the SFT model at the end."""
import data
from lab.commands import shown_command
from lab.data_folder import held_out_prompts
from lab.machine import random_state, set_random_state
from lab.measure import warnings_of
from lab.records import load_model
from lab.report import compare, truth_about
from lab.talk import answer
from lab.terminal import wrapped

CHAPTER = "When it looks wrong"  # of docs/3-ppo.md


def show_answers(stage, step, policy, reference, scorer, enc, prompts, cfg):
    """Print three answers of the policy as it is now, with score and KL; a dog first in the tiny world."""
    state = random_state()  # looking must not change the run
    first = [] if cfg.data else ["What is a dog?"]
    others = [p for p in prompts[:: max(1, len(prompts) // 3)] if p not in first]
    three = (first + others)[:3]
    answers = answer(policy, enc, three, cfg.max_new_tokens, cfg.temperature, reference=reference)
    scores = scorer.of_texts(enc, three, [a.text for a in answers])
    stage.say(f"iteration {step + 1} of {cfg.steps}:")
    for prompt, a, score in zip(three, answers, scores, strict=True):
        figures = f"  score {score:+.2f} SD, KL {a.kl:.2f} nats: "
        stage.say(wrapped(f"{figures}{data.prompt_text(prompt)[-200:]} -> {a.text[:300]}", " " * 6))
    set_random_state(state)
    warn(stage)


def warn(stage):
    """Say what goes wrong, each kind once a run."""
    said = stage.state.setdefault("warned", [])
    for kind, sentence in warnings_of(stage.rows).items():
        if kind not in said:
            stage.say(wrapped(f"Warning: {sentence} (docs/3-ppo.md, {CHAPTER})", " " * 6))
            said.append(kind)


def report(stage, cfg, enc, policy, reference, sft, scorer, held_out_tokens):
    """Compare pretrained, SFT and PPO (and the model that PPO started from, where it is another one) on
    held-out prompts; print and write the table, some answers and the pictures."""
    rows = held_out_prompts(stage.data, cfg.eval_split)
    prompts = [row["prompt"] for row in rows]
    models = {"pretrained": load_model(stage.parent("pretrain"), stage.device)[0], "SFT": sft}
    if cfg.start != "sft":
        models[cfg.start] = reference
    models["PPO"] = policy
    found = compare(models, enc, rows, cfg.max_new_tokens, cfg.temperature, cfg.eval_answers, baseline="SFT",
                    templates={"pretrained": False}, reference=sft, scorer=scorer, held_out=held_out_tokens,
                    greedy=[name for name in models if name != "pretrained"], seed=cfg.seed, examples=8)
    lines, figures = [], {}
    if not cfg.data:
        lines, figures = truth_about(scorer, enc, prompts, found, "PPO", data.load_sft(stage.data), cfg.seed)
    if scorer.judge:
        silent = f"; {scorer.judge.silent} without a rating count as 0" if scorer.judge.silent else ""
        lines.append(f"The AI judge rated {len(scorer.judge.rated)} different answers since this command "
                     f"began{silent}.")
    stage.state["results"] = found.results | figures
    text = "\n".join([found.text, "", *lines])
    print("\n" + text)
    who = "AI judge" if scorer.judge else "reward model"
    gold = {"right": ({"gold score": "gold"}, "gold score, points")} if found.gold["PPO"] else {}
    moved = {"right": ({"KL to the sampling policy": "approx_kl"}, "nats a token")}
    stage.finish(text, [
        ("Score and truth should rise together", {f"{who}'s score": "score"}, "score, SD", "iteration", gold),
        ("KL to the reference should level off", {"sampled (k1)": "kl", "exact, whole vocabulary": "kl_full"},
         "nats an answer", "iteration"),
        ("Length: a sudden growth is suspicious", {"tokens": "length"}, "tokens an answer", "iteration"),
        ("Updates should be small, and get smaller", {"tokens clipped": "clip_fraction"},
         "share of the tokens", "iteration", moved),
        ("Critic: what it foresees of the returns", {"explained variance": "explained_variance"},
         "share of the variance", "iteration"),
        ("Entropy of the policy may fall, not to 0", {"entropy": "entropy"}, "nats a token", "iteration")],
        "PPO. Look for: " + ("gold that falls while the score rises (reward hacking), " if gold else "")
        + "a KL that runs away, length that jumps, entropy at 0")
    print("Talk to it:", shown_command(["model.py", str(stage.file("pt"))]))
