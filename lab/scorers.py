"""Which reward models a word of --reward stands for, what scores answers with them, and on which scale."""
import difflib
import json

import data
from lab.cli import JudgeKnobs
from lab.commands import STAGES, run_folder
from lab.judges import load_judge
from lab.records import load_model
from lab.talk import answer
from lab.terminal import wrapped
from world.judge import read_preamble
from world.reward import THRESHOLD, Scorer

KINDS = {"overall": ("rm",), "helpful": ("rm_helpful",), "safety": ("rm_safety",),
         "llama2": ("rm_helpful", "rm_safety")}


def reward_models(reward):
    """Names of the reward models that --reward stands for: llama2 -> rm_helpful, rm_safety; rm_ai -> rm_ai.
    What stands behind a dot goes to each: llama2.rs.4 -> rm_helpful.rs.4, rm_safety.rs.4."""
    kind, dot, newer = reward.partition(".")
    return [name + dot + newer for name in KINDS.get(kind, (kind,))]


def check_reward(cfg):
    """Raises UserError where --reward names nothing that exists in this run or could be trained. Of an AI's
    preamble in a file the text becomes the knob."""
    kinds = [*KINDS, "ai"] if isinstance(cfg, JudgeKnobs) else list(KINDS)
    if cfg.reward == "ai" and "ai" in kinds:
        cfg.preamble = read_preamble(cfg.preamble)
        return
    folder = run_folder(cfg)
    there = all((folder / f"{name}.pt").exists() for name in reward_models(cfg.reward))
    trainable = cfg.reward in KINDS or (cfg.reward in STAGES and cfg.reward.startswith("rm"))
    if not (there or trainable):
        near = difflib.get_close_matches(cfg.reward.partition(".")[0], kinds, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise data.UserError(f"--reward {cfg.reward}: expected {', '.join(kinds)} or the name of a reward "
                             f"model of this run{hint}")


def load_scorer(stage, reward, enc, cfg):
    """The Scorer that a word of --reward stands for; what it needs is trained first where it is missing.
    Raises UserError where there is no such thing."""
    if reward == "ai":
        return Scorer(reward, [], judge=load_judge(stage, enc, cfg))
    models = []
    for name in reward_models(reward):
        path = stage.parent(name)
        model, _ = load_model(path, stage.device)
        if not model.config.reward_head:
            raise data.UserError(f"--reward {reward}: {path} is no reward model; expected {', '.join(KINDS)} "
                                 "or the name of one")
        models.append(model)
    unsafe = [json.dumps(row["prompt"]) for row in data.load_prompts(stage.data) if row["unsafe"]]
    if len(models) > 1 and not unsafe:
        print(wrapped("no prompt is marked as unsafe: the safety model counts only where it gives an answer "
                      f"a probability of less than {THRESHOLD} to be safe"))
    return Scorer(reward, models, unsafe)


def count_from_sft(scorer, stage, sft, enc, prompts, cfg):
    """From now on scores count standard deviations from the mean of the SFT model's answers. Both are
    measured once, over 300 answers, and kept with the stage: they stay while the policy moves."""
    if "sft_scale" not in stage.state:
        some = [prompts[i * len(prompts) // 300] for i in range(300)]  # spread; of fewer each several times
        answers = answer(sft, enc, some, cfg.max_new_tokens, cfg.temperature)
        scorer.measure_scale(enc, some, [a.text for a in answers])
        stage.state["sft_scale"] = [scorer.mean, scorer.std]
    scorer.mean, scorer.std = stage.state["sft_scale"]
