"""The microscope's words: how the columns of its tables add up, and what they mean."""


def what_is_learned(cfg):
    """The column of the advantages that the loss sees."""
    return "whitened" if cfg.whiten_advantages else "advantage"


def obedient(advantages, ratios):
    """(how many tokens moved as the sign of their advantage asks, how many moved at all): likelier, a ratio
    above 1, where it is above 0. Lists of numbers; a ratio of 1.000 is of a token that has not moved."""
    moved = [a * (r - 1) > 0 for a, r in zip(advantages, ratios, strict=True) if round(r, 3) != 1]
    return sum(moved), len(moved)


def score_in_words(scorer, batch, parts, cfg, i=0):
    """Where the score of answer i comes from. parts: {name of what gave it: scores (B,)}, two for Llama 2."""
    raw, cut_off = batch.raw[i].item(), not batch.ended[i]
    mean, std, whose = scorer.mean, scorer.std, "the SFT model"
    if cfg.score_scale == "batch":
        mean, std, whose = batch.raw.mean().item(), batch.raw.std(correction=0).item(), "this batch"
    text = ", ".join(f"{name} {x[i]:.3f}" for name, x in parts.items())
    if len(parts) > 1:
        text += f", of which Llama 2's rule takes {raw:.3f}"
    white = (raw - mean) / (std + 1e-8)
    text += f"; ({raw:.3f} - mean {mean:.3f}) / standard deviation {std:.3f} = {white:.3f}, "
    text += f"both over answers of {whose}."
    if cfg.eos_penalty and cut_off:
        text += f" But the answer was cut off before its EOS: {-cfg.eos_penalty:g} (--eos_penalty)."
    return text


def reward_in_words(c, score, beta):
    kl = sum(c["KL"])
    return (f"score {score:z.3f} - beta {beta:g} x KL {kl:z.3f} = {score - beta * kl:z.3f}; the column sums "
            f"to {sum(c['reward']):z.3f}. The score judges the whole answer, so it stands on the last token "
            "only; the KL is known at each token, so each pays for its own.")


def advantage_in_words(c, cfg):
    reward, value, g, gl = c["reward"][0], c["value"][0], cfg.gamma, cfg.gamma * cfg.lam
    next_value, next_advantage = ([*c[name], 0.0][1] for name in ("value", "advantage"))
    delta = reward + g * next_value - value
    total = delta + gl * next_advantage
    return (f"first token: delta = reward {reward:z.3f} + gamma {g:g} x next value {next_value:z.3f} "
            f"- value {value:z.3f} = {delta:z.3f}; delta + gamma lambda {gl:g} x next advantage "
            f"{next_advantage:z.3f} = {total:z.3f}. How much better it went from here on than the critic "
            "expected.")


def whitened_in_words(c, mean, std, cfg):
    if not cfg.whiten_advantages:
        return "no such column: the loss takes the advantages as they are (--whiten_advantages false)."
    advantage = c["advantage"][0]
    return (f"first token: ({advantage:z.3f} - mean {mean:z.3f}) / standard deviation {std:z.3f} = "
            f"{(advantage - mean) / std:z.3f}, both over all tokens of the batch. Only the policy's loss "
            "uses it.")


def ratio_in_words(c, cfg, everywhere):
    """everywhere: `obedient` of all tokens of the batch."""
    which = what_is_learned(cfg)
    here, moved = obedient(c[which], c["ratio"])
    obeyed, all_moved = everywhere
    return (f"first token: exp(new log p ({c['new log p'][0]:z.3f}) - log p ({c['log p'][0]:z.3f})) = "
            f"{c['ratio'][0]:z.3f}. Above 1 a token has become likelier. Of the {moved} whose ratio is not "
            f"1.000, {here} moved as the sign in the column {which} asks; of all such tokens of the batch "
            f"{obeyed} of {all_moved}, {obeyed / max(1, all_moved):.0%}. Not all do: every answer pulls at "
            "the same weights.")


def branch_in_words(c, cfg, updates, again):
    """updates: of train_ppo.update; again: share of the batch's tokens that one more pass would find
    clipped."""
    if not cfg.clip:
        return "plain everywhere: --clip 0 turns the clip off."
    stopped = sum(u["clip_fraction"] for u in updates) / len(updates)
    which, here = what_is_learned(cfg), f"{len(c['KL'])} tokens {sum(c['branch']):.0f} clipped"
    return ("in the first optimizer step every ratio is 1, and nothing is clipped; in the mean of all of "
            f"them ({len(updates)}) the clip stopped {stopped:.1%} of the tokens. The column is what one "
            f"more pass over the same answers would meet: of these {here}, of the batch's {again:.1%}. "
            f"Their ratio is above {1 + cfg.clip:g} where the column {which} is above 0, or below "
            f"{1 - cfg.clip:g} where that is below 0: enough has been learned from them, their gradient "
            "is 0.")


def in_words(c, score, beta, mean, std, cfg, everywhere):
    """How the columns c add up, and what they mean: {column: text}. score, beta: of this answer; mean, std:
    of the batch's advantages; everywhere: `obedient` of all tokens of the batch."""
    advantage, value = c["advantage"][0], c["value"][0]
    return {
        "KL": f"{sum(c['KL']):z.3f} in sum. Below 0 where the reference finds a token likelier than the "
              "policy does: only the mean over many answers is the KL.",
        "reward": reward_in_words(c, score, beta),
        "advantage": advantage_in_words(c, cfg),
        "return": f"first token: advantage {advantage:z.3f} + value {value:z.3f} = {advantage + value:z.3f}. "
                  "What the critic learns to expect here.",
        "whitened": whitened_in_words(c, mean, std, cfg),
        "ratio": ratio_in_words(c, cfg, everywhere),
    }
