"""Wrong solutions of the problems before PPO, one mistake each: ours with some text replaced."""
from typing import NamedTuple


class Wrong(NamedTuple):
    problem: int
    what: str  # is wrong, in a few words
    edits: list  # [(right text, wrong text)]; a right text is once in the functions of the problem


def in_each(problem, right, mistakes):
    """Wrong solutions that differ from ours in one place. mistakes: {what: wrong text}."""
    return [Wrong(problem, what, [(right, wrong)]) for what, wrong in mistakes.items()]


LM_LOSS = "F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))"
MASK = "mask[i, len(p) : len(p) + len(r)] = 1"
SHIFT = "return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]"
SFT_LOSSES = 'losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")'
SFT_LOSS = "(losses * response_mask).sum() / response_mask.sum()"
NAIVE = "logits.softmax(-1).gather(-1, targets[..., None])"
FLAT = "logits.flatten(0, 1), targets.flatten()"

WRONG = [
    *in_each(1, LM_LOSS, {
        "a sum": f'F.cross_entropy({FLAT}, reduction="sum")',
        "a sum over time, a mean over rows": f"F.cross_entropy({FLAT}) * targets.shape[1]",
        "the sign": f"-F.cross_entropy({FLAT})",
        "bits, not nats": f"F.cross_entropy({FLAT}) / 0.6931",
        "shifted once more": "F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())",
        "softmax twice": "F.cross_entropy(logits.softmax(-1).flatten(0, 1), targets.flatten())",
        "softmax over time": f"-{NAIVE.replace('(-1)', '(1)', 1)}.log().mean()",
        "softmax over rows": f"-{NAIVE.replace('(-1)', '(0)', 1)}.log().mean()",
        "the logarithm of the mean": f"-{NAIVE}.mean().log()",
        "no logarithm": f"(1 - {NAIVE}).mean()",
        "a logarithm of softmax that is minus infinity": f"-{NAIVE}.log().mean()",
        "a small number added to the probabilities": f"-({NAIVE} + 1e-9).log().mean()",
        "log-probabilities that are cut off": f"-{NAIVE}.log().clamp(min=-100).mean()",
        "exp overflows": "(logits.exp().sum(-1, True).log() - logits.gather(-1, targets[..., None])).mean()",
        "the largest logit of all is taken from each":
            "((logits - logits.max()).exp().sum(-1, True).log() + logits.max() "
            "- logits.gather(-1, targets[..., None])).mean()",
        "token 0 is left out": f"F.cross_entropy({FLAT}, ignore_index=0)",
        "smoothed labels": f"F.cross_entropy({FLAT}, label_smoothing=0.1)",
        "view, which slices refuse": "F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))",
        "the last position only": "F.cross_entropy(logits[:, -1], targets[:, -1])",
        "the first row only": "F.cross_entropy(logits[0], targets[0])",
        "no gradient": f"F.cross_entropy({FLAT}).detach()",
        "targets column by column": "F.cross_entropy(logits.flatten(0, 1), targets.T.flatten())",
        "a mean over the vocabulary, too": f"F.cross_entropy({FLAT}) / logits.shape[-1]",
        "reshaped where a transposition is meant":
            "F.cross_entropy(logits.reshape(logits.shape[0], -1, targets.shape[1]), targets)",
        "perplexity": f"F.cross_entropy({FLAT}).exp()",
        "the entropy of the model": "-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()",
    }),
    # --------------------------------------------------------------------------------------------
    # The mask of supervised fine-tuning
    # --------------------------------------------------------------------------------------------
    *in_each(2, MASK, {
        "the prompt is learned": "mask[i, : len(p) + len(r)] = 1",
        "the padding is learned": "mask[i, len(p) :] = 1",
        "EOS is left out": "mask[i, len(p) : len(p) + len(r) - 1] = 1",
        "the first token of the answer is left out": "mask[i, len(p) + 1 : len(p) + len(r)] = 1",
        "the mask begins a token early": "mask[i, len(p) - 1 : len(p) + len(r) - 1] = 1",
        "the last token of the prompt is learned, too": "mask[i, len(p) - 1 : len(p) + len(r)] = 1",
        "as many tokens as the prompt has": "mask[i, len(p) : 2 * len(p)] = 1",
        "only EOS is learned": "mask[i, len(p) + len(r) - 1] = 1",
        "the mask is on the prompt": "mask[i, : len(p)] = 1",
        "all rows have the first one's prompt": "mask[i, len(rows[0][0]) : len(p) + len(r)] = 1",
        "the rows of the mask are turned round": "mask[-1 - i, len(p) : len(p) + len(r)] = 1",
        "a mask that adds up to 1 in each row": "mask[i, len(p) : len(p) + len(r)] = 1 / len(r)",
    }),
    *in_each(2, SHIFT, {
        "targets are inputs": "return tokens[:, :-1], tokens[:, :-1], mask[:, 1:]",
        "the mask is not shifted": "return tokens[:, :-1], tokens[:, 1:], mask[:, :-1]",
        "shifted by two": "return tokens[:, :-2], tokens[:, 2:], mask[:, 2:]",
        "nothing is shifted": "return tokens, tokens, mask",
        "inputs and targets are swapped": "return tokens[:, 1:], tokens[:, :-1], mask[:, 1:]",
        "rolled round the end": "return tokens, tokens.roll(-1, 1), mask.roll(-1, 1)",
        "the answer is not among the inputs":
            "return tokens[:, :-1] * (1 - mask[:, :-1]).long(), tokens[:, 1:], mask[:, 1:]",
        "targets are 0 where nothing is learned":
            "return tokens[:, :-1], tokens[:, 1:] * mask[:, 1:].long(), mask[:, 1:]",
    }),
    *in_each(2, "pad_rows([p + r for p, r in rows], pad)", {
        "padded with 0": "pad_rows([p + r for p, r in rows], 0)",
        "the answer stands before the prompt": "pad_rows([r + p for p, r in rows], pad)",
        "a pad between prompt and answer": "pad_rows([p + [pad] + r for p, r in rows], pad)",
        "the last token is lost": "pad_rows([p + r[:-1] for p, r in rows], pad)",
        "a second EOS": "pad_rows([p + r + r[-1:] for p, r in rows], pad)",
    }),
    *in_each(2, SFT_LOSS, {
        "a mean over all positions": "(losses * response_mask).mean()",
        "a mean of the rows' means": "((losses * response_mask).sum(1) / response_mask.sum(1)).mean()",
        "a sum": "(losses * response_mask).sum()",
        "the sign": f"-{SFT_LOSS}",
        "divided by the rows": "(losses * response_mask).sum() / len(targets)",
        "no mask in the sum": "losses.sum() / response_mask.sum()",
        "the mask is turned round": "(losses * (1 - response_mask)).sum() / response_mask.sum()",
        "no gradient": f"({SFT_LOSS}).detach()",
        "the mask is shifted again":
            "(losses[:, :-1] * response_mask[:, 1:]).sum() / response_mask.sum()",
    }),
    *in_each(2, SFT_LOSSES, {
        "the mask multiplies the logits":
            "losses = F.cross_entropy((logits * response_mask[..., None]).transpose(1, 2), targets, "
            'reduction="none"); response_mask = losses * 0 + 1',
        "reshaped where a transposition is meant":
            "losses = F.cross_entropy(logits.reshape(len(logits), -1, targets.shape[1]), targets, "
            'reduction="none")',
        "targets are the inputs of the loss":
            'losses = F.cross_entropy(logits.transpose(1, 2), targets.roll(1, 1), reduction="none")',
        "view, which slices refuse":
            "losses = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), "
            'reduction="none").view(targets.shape)',
        "log of softmax, which becomes infinite":
            "losses = -logits.softmax(-1).gather(-1, targets[..., None])[..., 0].log()",
        "probabilities for logits":
            'losses = F.cross_entropy(logits.softmax(-1).transpose(1, 2), targets, reduction="none")',
        "a mean, spread over all positions": "losses = F.cross_entropy(logits.transpose(1, 2), targets)",
    }),
    # --------------------------------------------------------------------------------------------
    # Sampling
    # --------------------------------------------------------------------------------------------
    *in_each(3, "if longest > model.config.block_size:", {
        "no error where the answer cannot fit": "if False:",
        "the longest that fits is refused": "if longest >= model.config.block_size:",
        "only the prompt must fit": "if P > model.config.block_size:",
    }),
    *in_each(3, "model.train(was_training)", {
        "the model is left in eval mode": "pass",
        "the model is left in train mode": "model.train()",
    }),
    Wrong(3, "dropout while sampling", [("model.eval()", "pass")]),
    Wrong(3, "samples keep their graph", [("@torch.no_grad()\n", "")]),
    *in_each(3, "R = int(mask.sum(1).max())", {
        "as wide as answers may be": "R = max_new_tokens",
        "as wide as the shortest answer": "R = int(mask.sum(1).min())",
        "as wide as the first answer": "R = int(mask[0].sum())",
        "a column is lost": "R = int(mask.sum(1).max()) - 1",
        "a column too many": "R = int(mask.sum(1).max()) + 1",
    }),
    *in_each(3, "responses[rows, t] = token.where(going, pad)", {
        "something stands behind EOS": "responses[rows, t] = token",
        "EOS stands behind EOS": "responses[rows, t] = token.where(going, eos)",
        "EOS becomes a pad": "responses[rows, t] = token.where(going & (token != eos), pad)",
        "rows are numbered anew when some are over":
            "responses[: len(token), t] = token.where(going, pad)",
    }),
    *in_each(3, "mask[rows, t] = going.float()", {
        "EOS is not in the mask": "mask[rows, t] = (going & (token != eos)).float()",
        "one behind EOS is in the mask":
            "mask[rows, t] = (going | (responses[rows, max(t - 1, 0)] == eos)).float()",
        "a pad that was drawn is not in the mask": "mask[rows, t] = (going & (token != pad)).float()",
        "all is real": "mask[rows, t] = 1.0",
        "the mask of the first row for all": "mask[rows, t] = going[0].float()",
    }),
    *in_each(3, "logp.gather(1, token[:, None]).squeeze(1).where(going, 0.0)", {
        "log-probabilities behind EOS": "logp.gather(1, token[:, None]).squeeze(1)",
        "probabilities": "logp.exp().gather(1, token[:, None]).squeeze(1).where(going, 0.0)",
        "the likeliest token's": "logp.max(1).values.where(going, 0.0)",
        "another draw's":
            "logp.gather(1, draw(logp, temperature)[:, None]).squeeze(1).where(going, 0.0)",
        "logits": "model.lm_head(hidden).gather(1, token[:, None]).squeeze(1).where(going, 0.0)",
        "EOS has none": "logp.gather(1, token[:, None]).squeeze(1).where(going & (token != eos), 0.0)",
        "added up over the answer":
            "logp.gather(1, token[:, None]).squeeze(1).where(going, 0.0) + logprobs[rows, t - 1]",
        "at temperature 1": "log_softmax(model.lm_head(hidden)).gather(1, token[:, None]).squeeze(1)"
                            ".where(going, 0.0)",
    }),
    *in_each(3, "token = draw(logp, temperature)", {
        "always the likeliest": "token = draw(logp, 0)",
        "never the likeliest": "token = draw(logp, temperature or 1.0)",
        "drawn at temperature 1":
            "token = draw(log_softmax(model.lm_head(hidden)) if temperature else logp, temperature)",
        "one draw for all rows": "token = draw(logp[:1], temperature).expand(len(logp))",
        "the same seed for every token": "torch.manual_seed(0); token = draw(logp, temperature)",
        "no EOS at first": "token = draw(logp.index_fill(1, torch.tensor(eos), -1e9) if t == 0 else logp, "
                           "temperature)",
        "the temperature twice": "token = draw(log_softmax(logp, temperature), temperature)",
        "all tokens equally often":
            "token = draw(torch.zeros_like(logp) if temperature else logp, temperature)",
        "one of the three likeliest": "token = draw(logp.where(logp >= logp.topk(3).values[:, -1:], -1e9), "
                                      "temperature)",
    }),
    *in_each(3, "logp = log_softmax(model.lm_head(hidden), temperature)", {
        "no temperature": "logp = log_softmax(model.lm_head(hidden))",
        "the temperature multiplies": "logp = log_softmax(model.lm_head(hidden) * (temperature or 1.0))",
        "divided by 0 where greedy": "logp = torch.log_softmax(model.lm_head(hidden) / temperature, -1)",
        "nearly 0 where greedy": "logp = log_softmax(model.lm_head(hidden), temperature or 1e-6)",
    }),
    *in_each(3, "going = going & (token != eos)", {
        "EOS is not seen": "going = going & (token != pad)",
        "rows come back to life": "going = token != eos",
        "an answer ends at a pad, too": "going = going & (token != eos) & (token != pad)",
        "all stop with the first": "going = going & (token != eos).all()",
    }),
    Wrong(3, "stops when one answer is over", [("if not going.any():", "if not going.all():")]),
    *in_each(3, ", read=(rows, lengths - 1))", {
        "the first token is read off the padding": ")[:, -1]",
        "the first token is read one too early": ", read=(rows, lengths - 2))",
    }),
    *in_each(3, "lengths[:, None] + t)[:, 0]", {
        "positions one too far": "lengths[:, None] + t + 1)[:, 0]",
        "positions one too near": "lengths[:, None] + t - 1)[:, 0]",
        "written behind the longest prompt": "torch.full_like(lengths, P)[:, None] + t)[:, 0]",
        "positions stand still": "lengths[:, None])[:, 0]",
        "lengths of the caller grow": "lengths[:, None])[:, 0]\n        lengths += 1",
    }),
    Wrong(3, "one token too few", [("range(max_new_tokens)", "range(max_new_tokens - 1)")]),
    Wrong(3, "answers of the wrong rows go on", [("lengths[going], token[going]",
                                                  "lengths[: going.sum()], token[going]")]),
    # --------------------------------------------------------------------------------------------
    # The Bradley-Terry loss
    # --------------------------------------------------------------------------------------------
    *in_each(4, "difference = chosen - rejected - (0 if margin is None else margin)", {
        "chosen and rejected are swapped":
            "difference = rejected - chosen - (0 if margin is None else margin)",
        "the sign of the margin": "difference = chosen - rejected + (0 if margin is None else margin)",
        "no margin": "difference = chosen - rejected",
        "the margin multiplies": "difference = (chosen - rejected) * (1 if margin is None else margin)",
        "the mean margin for all":
            "difference = chosen - rejected - (0 if margin is None else margin.mean())",
        "the margin at both scores":
            "m = 0 if margin is None else margin; difference = (chosen - m) - (rejected + m)",
        "a difference of probabilities": "difference = chosen.sigmoid() - rejected.sigmoid() "
                                         "- (0 if margin is None else margin)",
        "no margin with soft labels": "difference = chosen - rejected - "
                                      "(0 if margin is None or p_chosen is not None else margin)",
        "differences are cut off":
            "difference = (chosen - rejected - (0 if margin is None else margin)).clamp(-20, 20)",
        "the margin is never below 0": "difference = chosen - rejected - "
                                       "(0 if margin is None else margin.clamp(min=0))",
        "the rejected score has no gradient":
            "difference = chosen - rejected.detach() - (0 if margin is None else margin)",
        "every chosen with every rejected": "difference = chosen[:, None] - rejected[None] - "
                                            "(0 if margin is None else margin[:, None])",
    }),
    *in_each(4, "return -F.logsigmoid(difference).mean()", {
        "a sum": "return -F.logsigmoid(difference).sum()",
        "the sign": "return F.logsigmoid(difference).mean()",
        "no logarithm": "return -difference.sigmoid().mean()",
        "no sigmoid": "return -difference.mean()",
        "log of sigmoid, which becomes infinite": "return -difference.sigmoid().log().mean()",
        "a small number added": "return -(difference.sigmoid() + 1e-8).log().mean()",
        "the logarithm of the mean": "return -difference.sigmoid().mean().log()",
        "a hinge": "return F.relu(1 - difference).mean()",
        "the squared error": "return ((1 - difference.sigmoid()) ** 2).mean()",
        "exp overflows": "return (1 + (-difference).exp()).log().mean()",
        "half of it": "return -0.5 * F.logsigmoid(difference).mean()",
    }),
    *in_each(4, "p_chosen * F.logsigmoid(difference) + (1 - p_chosen) * F.logsigmoid(-difference)", {
        "labels are swapped":
            "(1 - p_chosen) * F.logsigmoid(difference) + p_chosen * F.logsigmoid(-difference)",
        "half of the cross-entropy": "p_chosen * F.logsigmoid(difference)",
        "a loss that is weighted by its label": "p_chosen * F.logsigmoid(difference) + 0 * chosen",
        "soft labels are rounded": "(p_chosen > 0.5).float() * F.logsigmoid(difference) + "
                                   "(p_chosen <= 0.5).float() * F.logsigmoid(-difference)",
        "the labels' distance": "-(p_chosen - difference.sigmoid()) ** 2",
        "log of 1 - sigmoid, which becomes infinite":
            "p_chosen * F.logsigmoid(difference) + (1 - p_chosen) * (1 - difference.sigmoid()).log()",
        "the mean label for all": "p_chosen.mean() * F.logsigmoid(difference) + "
                                  "(1 - p_chosen.mean()) * F.logsigmoid(-difference)",
    }),
    # --------------------------------------------------------------------------------------------
    # Elo scores
    # --------------------------------------------------------------------------------------------
    *in_each(5, "expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400))", {
        "the expectation is turned round": "expected = 1 / (1 + 10 ** ((rating[i] - rating[j]) / 400))",
        "e in place of 10": "expected = 1 / (1 + 2.718281828 ** ((rating[j] - rating[i]) / 400))",
        "4000 points": "expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 4000))",
        "always even": "expected = 0.5",

    }),
    *in_each(5, "points = k_factor * ((1.0 if apart else 0.5) - expected)", {
        "a tie is a win": "points = k_factor * (1.0 - expected)",
        "a tie is a loss": "points = k_factor * ((1.0 if apart else 0.0) - expected)",
        "a tie does not count": "points = k_factor * (1.0 - expected) if apart else 0.0",
        "a K-factor of 32": "points = 32 * ((1.0 if apart else 0.5) - expected)",
        "the tiers count": "points = k_factor * ((float(apart) if apart else 0.5) - expected)",
        "the sign": "points = -k_factor * ((1.0 if apart else 0.5) - expected)",
        "the K-factor of a pass": "points = k_factor / passes * ((1.0 if apart else 0.5) - expected)",
    }),
    *in_each(5, "rating[j] -= points", {
        "the loser loses nothing": "pass",
        "the loser wins, too": "rating[j] += points",
        "half is lost": "rating[j] -= points / 2",
        "the loser pays by the new rating": "rating[j] -= k_factor * "
            "((1.0 if apart else 0.5) - 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400)))",
    }),
    *in_each(5, "    for _ in range(passes):\n        if rng:\n            rng.shuffle(games)\n", {
        "one pass": "    for _ in range(1):\n        if rng:\n            rng.shuffle(games)\n",
        "shuffled once": "    if rng:\n        rng.shuffle(games)\n    for _ in range(passes):\n",
        "never shuffled": "    for _ in range(passes):\n",
        "always shuffled": "    import random\n    for _ in range(passes):\n"
                           "        (rng or random).shuffle(games)\n",
        "shuffled by other random numbers": "    import random\n    for _ in range(passes):\n"
                                            "        if rng:\n            random.shuffle(games)\n",
        "every pass starts again": "    for _ in range(passes):\n        if rng:\n"
                                   "            rng.shuffle(games)\n        rating = [start] * len(rating)\n",
        "a pass too many":
            "    for _ in range(passes + 1):\n        if rng:\n            rng.shuffle(games)\n",
        "only the rankings are shuffled, not their games":
            "    for n in range(passes):\n        if rng:\n"
            "            rng.shuffle(rankings := [*rankings])\n"
            "            games = [g for t in rankings for g in ranking_to_pairs(t, ties=True)]\n",
        "the games of each ranking are shuffled":
            "    for n in range(passes):\n        if rng:\n"
            "            lists = [ranking_to_pairs(t, ties=True) for t in rankings]\n"
            "            games = [g for some in lists for g in rng.sample(some, len(some))]\n",
        "the games of each ranking are shuffled, and the rankings":
            "    for n in range(passes):\n        if rng:\n"
            "            mixed = rng.sample(rankings, len(rankings))\n"
            "            lists = [ranking_to_pairs(t, ties=True) for t in mixed]\n"
            "            games = [g for some in lists for g in rng.sample(some, len(some))]\n",
        "shuffled from the second pass on": "    for n in range(passes):\n        if rng and n:\n"
                                            "            rng.shuffle(games)\n",
    }),
    *in_each(5, "for tiers in rankings for game in ranking_to_pairs(tiers, ties=True)", {
        "no ties": "for tiers in rankings for game in ranking_to_pairs(tiers)",
        "the first ranking only": "for tiers in rankings[:1] for game in ranking_to_pairs(tiers, ties=True)",
        "the last ranking first":
            "for tiers in rankings[::-1] for game in ranking_to_pairs(tiers, ties=True)",
        "neighbours only":
            "for tiers in rankings for game in ranking_to_pairs(tiers, ties=True) if game[2] < 2",
    }),
    *in_each(5, "rating = [start] * (1 + max(max(i, j) for i, j, _ in games))", {
        "all start at 1000": "rating = [1000.0] * (1 + max(max(i, j) for i, j, _ in games))",
        "all start at 0": "rating = [0.0] * (1 + max(max(i, j) for i, j, _ in games))",
        "as many answers as the first ranking has tiers": "rating = [start] * len(rankings[0])",
        "as many answers as the first ranking has": "rating = [start] * sum(map(len, rankings[0]))",
        "as many answers as play": "rating = [start] * len({i for game in games for i in game[:2]})",
    }),
    Wrong(5, "no answer where nobody plays", [("    if not games:\n        return [start]\n", "")]),
    *in_each(5, "return rating", {
        "only the gains": "return [r - start for r in rating]",
        "sorted": "return sorted(rating, reverse=True)",
        "rounded": "return [round(r) for r in rating]",
    }),
    # --------------------------------------------------------------------------------------------
    # Rejection sampling
    # --------------------------------------------------------------------------------------------
    *in_each(11, "return rewards.argmax(1)", {
        "the worst": "return rewards.argmin(1)",
        "the best prompt for each answer": "return rewards.argmax(0)",
        "the best of all": "return rewards.argmax().expand(len(rewards)) % rewards.shape[1]",
        "the last of equals": "return rewards.shape[1] - 1 - rewards.flip(1).argmax(1)",
        "the reward, not its index": "return rewards.max(1).values",
        "the best by its size": "return rewards.abs().argmax(1)",
        "argsort, which may take any of equals": "return rewards.argsort(1)[:, -1]",
        "a column": "return rewards.argmax(1, keepdim=True)",
        "the second best": "return rewards.topk(2, 1).indices[:, 1]",
    }),
    *in_each(11, "[math.comb(i, n - 1) / math.comb(K, n) for i in range(K)]", {
        "C(i, n)": "[math.comb(i, n) / math.comb(K, n) for i in range(K)]",
        "C(i + 1, n - 1)": "[math.comb(i + 1, n - 1) / math.comb(K, n) for i in range(K)]",
        "divided by C(K, n - 1)": "[math.comb(i, n - 1) / math.comb(K, n - 1) for i in range(K)]",
        "with replacement": "[((i + 1) ** n - i ** n) / K ** n for i in range(K)]",
        "the best first": "[math.comb(K - 1 - i, n - 1) / math.comb(K, n) for i in range(K)]",
        "not divided": "[float(math.comb(i, n - 1)) for i in range(K)]",
        "equal": "[1 / K for i in range(K)]",
        "the n best, equally": "[float(i >= K - n) / n for i in range(K)]",
        "the best alone": "[float(i == K - 1) for i in range(K)]",
        "whole numbers": "[math.comb(i, n - 1) // math.comb(K, n) for i in range(K)]",
    }),
    *in_each(11, "values.gather(1, rewards.argsort(dim=1, stable=True))", {
        "ordered by value": "values.sort(1).values",
        "from the best to the worst": "values.gather(1, rewards.argsort(dim=1, descending=True))",
        "in the order in which they came": "values",
        "the rewards": "rewards.sort(1).values",
        "ordered over the prompts": "values.gather(0, rewards.argsort(dim=0))",
        "ranks in place of an order": "values.gather(1, rewards.argsort(1).argsort(1))",
        "all prompts in the order of the first": "values[:, rewards[0].argsort()]",
    }),
    *in_each(11, "subset_weights(rewards.shape[1], n).to(ranked.dtype)", {
        "best of n - 1": "subset_weights(rewards.shape[1], max(1, n - 1)).to(ranked.dtype)",
        "weights of as many prompts": "subset_weights(len(rewards), min(n, 3)).to(ranked.dtype)"
                                      ".repeat(rewards.shape[1])[: rewards.shape[1]]",
        "single precision, which float64 cannot take": "subset_weights(rewards.shape[1], n).float()",
    }),
    Wrong(11, "one number for all prompts", [("return ranked @", "return ranked.mean(0) @")]),
]
