"""Wrong solutions of the PPO loop, one mistake each: ours with some text replaced."""
from solutions_wrong import Wrong, in_each

RAW = "raw = scorer.raw(*join(padded, prompt_lengths, *full, pad), prompts, texts)"
SHAPE = "kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef)"
WHITE = "if cfg.whiten_advantages:\n        advantages = whiten(advantages, mask)"
POLICY_LOSS = "logprobs, mb.old_logprobs, mb.advantages, mb.mask, cfg.clip, n_tokens)"
VALUE_LOSS = "value_loss(values, mb.old_values, mb.returns, mb.mask, cfg.value_clip, n_tokens)"
ORDER = "for rows in torch.randperm(B).tensor_split(-(-B // cfg.minibatch_size)):"
ZERO = "            optimizer.zero_grad()\n            n_tokens, total"
TOTAL = "total = {name: total.get(name, 0.0) + float(x) for name, x in numbers.items()}"
PTX = ("            if cfg.ptx_coef:\n"
       "                add_ptx_gradient(agent.policy, corpus, cfg.ptx_coef)")
LIMIT = "limit = cfg.clip_grad or torch.inf"
NORMS = "norms = [nn.utils.clip_grad_norm_(net.parameters(), limit).item() for net in agent.networks]"
KEEP = 'updates.append({**total, "grad_norm": norms[0]})'

IN_ROLLOUT = [
    Wrong(12, "the graph of a rollout is kept", [("@torch.no_grad()\n", "")]),
    *in_each(12, "policy, padded, prompt_lengths, cfg.max_new_tokens, cfg.temperature, eos, pad)", {
        "sampled at temperature 1": "policy, padded, prompt_lengths, cfg.max_new_tokens, 1.0, eos, pad)",
        "greedy": "policy, padded, prompt_lengths, cfg.max_new_tokens, 0, eos, pad)",
        "48 tokens": "policy, padded, prompt_lengths, 48, cfg.temperature, eos, pad)",
        "answers of the reference":
            "reference, padded, prompt_lengths, cfg.max_new_tokens, cfg.temperature, eos, pad)",
        "prompts up to their padding": "policy, padded, torch.full_like(prompt_lengths, padded.shape[1]), "
                                       "cfg.max_new_tokens, cfg.temperature, eos, pad)",
    }),
    *in_each(12, "for x in data.pad_rows(ids, pad))", {
        "prompts without their first token": "for x in data.pad_rows([i[1:] for i in ids], pad))",
        "prompts without their last token": "for x in data.pad_rows([i[:-1] for i in ids], pad))",
        "the same prompt for all": "for x in data.pad_rows([ids[0] for _ in ids], pad))",
    }),
    *in_each(12, "tokens, _ = join(padded, prompt_lengths, responses, mask, pad)", {
        "answers behind the padding": "tokens = torch.cat([padded, responses], 1)",
        "answers behind the first prompt":
            "tokens, _ = join(padded, prompt_lengths[:1].expand(len(padded)), responses, mask, pad)",
    }),
    *in_each(12, "ended, R = (responses == eos).any(1), responses.shape[1]", {
        "ended: shorter than the longest": "ended, R = mask.sum(1) < mask.shape[1], responses.shape[1]",
        "ended: EOS in the last column": "ended, R = responses[:, -1] == eos, responses.shape[1]",
        "ended: turned round": "ended, R = ~(responses == eos).any(1), responses.shape[1]",
        "ended: all": "ended, R = torch.ones(len(mask), dtype=torch.bool), responses.shape[1]",
        "ended: none": "ended, R = torch.zeros(len(mask), dtype=torch.bool), responses.shape[1]",
        "ended: shorter than it may be":
            "ended, R = mask.sum(1) < cfg.max_new_tokens, responses.shape[1]",
    }),
    *in_each(12, RAW, {
        "cut-off answers are scored without EOS":
            "raw = scorer.raw(*join(padded, prompt_lengths, responses, mask, pad), prompts, texts)",
        "the EOS for the score stays in the batch":
            "raw = scorer.raw(*join(padded, prompt_lengths, *full, pad), prompts, texts); "
            "tokens, _ = join(padded, prompt_lengths, *full, pad)",
        "a second EOS": "full = full[0], torch.cat([mask, torch.ones_like(mask[:, :1])], 1); " + RAW,
        "scored with the whole width as length":
            "raw = scorer.raw(tokens, torch.full_like(prompt_lengths, tokens.shape[1]), prompts, texts)",
        "only answers are scored": "raw = scorer.raw(*join(padded[:, :0], 0 * prompt_lengths, *full, pad), "
                                   "prompts, texts)",
        "the mean of the scores": RAW + "; raw = raw.mean().expand(len(raw))",
        "prompts and texts are swapped": RAW.replace("prompts, texts", "texts, prompts"),
    }),
    *in_each(12, 'statistics = (scorer.mean, scorer.std) if cfg.score_scale == "sft" else ()', {
        "always the scale of the batch": "statistics = ()",
        "always the scale of SFT answers": "statistics = (scorer.mean, scorer.std)",
        "scales are swapped":
            'statistics = () if cfg.score_scale == "sft" else (scorer.mean, scorer.std)',
        "no mean": 'statistics = (0.0, scorer.std) if cfg.score_scale == "sft" else ()',
        "no deviation": 'statistics = (scorer.mean, 1.0) if cfg.score_scale == "sft" else ()',
        "the unbiased deviation of the batch": 'statistics = (scorer.mean, scorer.std) if cfg.score_scale == '
                                               '"sft" else (raw.mean(), raw.std())',
    }),
    Wrong(12, "scores as they come", [("scores = whiten_scores(raw, *statistics)", "scores = raw")]),
    *in_each(12, "scores = torch.where(ended, scores, -cfg.eos_penalty)", {
        "the penalty is taken from the score":
            "scores = torch.where(ended, scores, scores - cfg.eos_penalty)",
        "the sign of the penalty": "scores = torch.where(ended, scores, cfg.eos_penalty)",
        "the penalty for those that ended": "scores = torch.where(ended, -cfg.eos_penalty, scores)",
        "the penalty for all": "scores = torch.full_like(scores, -cfg.eos_penalty)",
        "a penalty of 1": "scores = torch.where(ended, scores, -1.0)",
        "the penalty where the score is better":
            "scores = torch.where(ended, scores, scores.clamp(max=-cfg.eos_penalty))",
        "the penalty where the score is worse":
            "scores = torch.where(ended, scores, scores.clamp(min=-cfg.eos_penalty))",
        "the penalty is whitened":
            "scores = whiten_scores(torch.where(ended, raw, -cfg.eos_penalty), *statistics)",
        "the penalty in the raw scores, too":
            "scores = torch.where(ended, scores, -cfg.eos_penalty); raw = torch.where(ended, raw, "
            "-cfg.eos_penalty)",
    }),
    Wrong(12, "a penalty of 0 is one, too", [("if cfg.eos_penalty:", "if True:")]),
    *in_each(12, "ref_logits = reference.lm_head(response_hidden(reference, tokens, prompt_lengths, R))", {
        "the reference is the policy": "ref_logits = policy.lm_head(response_hidden(policy, tokens, "
                                       "prompt_lengths, R))",
        "the reference one token late": "ref_logits = reference.lm_head(response_hidden(reference, tokens, "
                                        "prompt_lengths + 1, R))",
        "the reference's first tokens": "ref_logits = reference(tokens)[:, :R]",
        "the reference's last tokens": "ref_logits = reference(tokens)[:, -R - 1 : -1]",
    }),
    *in_each(12, "token_logprobs(ref_logits, responses, cfg.temperature)", {
        "the reference at temperature 1": "token_logprobs(ref_logits, responses)",
        "the reference's likeliest tokens":
            "token_logprobs(ref_logits, ref_logits.argmax(-1), cfg.temperature)",
        "probabilities of the reference": "token_logprobs(ref_logits, responses, cfg.temperature).exp()",
    }),
    *in_each(12, SHAPE, {
        "rewards of raw scores": "kl_shaped_rewards(raw, old_logprobs, ref_logprobs, mask, kl_coef)",
        "policy and reference are swapped":
            "kl_shaped_rewards(scores, ref_logprobs, old_logprobs, mask, kl_coef)",
        "no KL": "kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, 0.0)",
        "a beta of 0.1": "kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, 0.1)",
        "EOS is not rewarded":
            "kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask * (responses != eos), kl_coef)",
        "the KL twice": "kl_shaped_rewards(scores - kl_coef * ((old_logprobs - ref_logprobs) * mask).sum(1), "
                        "old_logprobs, ref_logprobs, mask, kl_coef)",
        "whitened rewards": f"whiten({SHAPE}, mask)",
    }),
    *in_each(12, "old_values = agent.values(tokens, prompt_lengths, R)", {
        "no values": "old_values = torch.zeros_like(mask)",
        "values one token late": "old_values = agent.values(tokens, prompt_lengths + 1, R)",
        "values of the prompt":
            "old_values = agent.critic.value_head(agent.critic.hidden(tokens)).squeeze(-1)[:, :R]",
        "one value for all tokens":
            "old_values = agent.values(tokens, prompt_lengths, R)[:, :1].expand(mask.shape)",
    }),
    *in_each(12, "gae(rewards, old_values, mask, cfg.gamma, cfg.lam)", {
        "gamma and lambda are swapped": "gae(rewards, old_values, mask, cfg.lam, cfg.gamma)",
        "the usual gamma and lambda": "gae(rewards, old_values, mask, 1.0, 0.95)",
        "lambda of 1": "gae(rewards, old_values, mask, cfg.gamma, 1.0)",
        "GAE without a critic": "gae(rewards, 0 * old_values, mask, cfg.gamma, cfg.lam)",
    }),
    *in_each(12, WHITE, {
        "never whitened": "",
        "always whitened": "advantages = whiten(advantages, mask)",
        "turned round": "if not cfg.whiten_advantages:\n        advantages = whiten(advantages, mask)",
        "the mean stays": "if cfg.whiten_advantages:\n        advantages = whiten(advantages, mask, False)",
        "padding is whitened, too": "if cfg.whiten_advantages:\n        advantages = whiten(advantages, "
                                    "torch.ones_like(mask)) * mask",
        "returns are whitened, too": WHITE + "\n        returns = whiten(returns, mask)",
        "returns of whitened advantages": WHITE + "\n        returns = advantages + old_values * mask",
        "whitened twice over": "if cfg.whiten_advantages:\n        advantages = 2 * whiten(advantages, mask)",
    }),
    *in_each(12, "responses, mask, ended, raw, scores, old_logprobs,", {
        "raw and scores are swapped": "responses, mask, ended, scores, raw, old_logprobs,",
        "whitened scores for raw ones": "responses, mask, ended, scores, scores, old_logprobs,",
        "the reference's log-probabilities are the old ones":
            "responses, mask, ended, raw, scores, ref_logprobs,",
        "EOS is not in the mask": "responses, mask * (responses != eos), ended, raw, scores, old_logprobs,",
        "a mask of ones": "responses, torch.ones_like(mask), ended, raw, scores, old_logprobs,",
    }),
    *in_each(12, "rewards, old_values, advantages, returns)", {
        "advantages and returns are swapped": "rewards, old_values, returns, advantages)",
        "returns are the rewards": "rewards, old_values, advantages, rewards)",
    }),
]

IN_THE_LOSS = [
    *in_each(12, "token_logprobs(logits, mb.responses, cfg.temperature)", {
        "trained at temperature 1": "token_logprobs(logits, mb.responses)",
        "trained at temperature 1 / T": "token_logprobs(logits, mb.responses, 1 / cfg.temperature)",
        "the next token's log-probability":
            "token_logprobs(logits, mb.responses.roll(-1, 1), cfg.temperature)",
    }),
    *in_each(12, POLICY_LOSS, {
        "the ratio is always 1": POLICY_LOSS.replace("mb.old_logprobs", "logprobs.detach()"),
        "the reference for the old policy": POLICY_LOSS.replace("mb.old_logprobs", "mb.ref_logprobs"),
        "returns for advantages": POLICY_LOSS.replace("mb.advantages", "mb.returns"),
        "rewards for advantages": POLICY_LOSS.replace("mb.advantages", "mb.rewards"),
        "advantages are whitened part by part":
            POLICY_LOSS.replace("mb.advantages", "whiten(mb.advantages, mb.mask)"),
        "advantages of the moved critic":
            POLICY_LOSS.replace("mb.advantages", "(mb.returns - values).detach()"),
        "the critic learns from the policy's loss":
            POLICY_LOSS.replace("mb.advantages", "mb.advantages + mb.old_values - values"),
        "no mask in the policy loss": POLICY_LOSS.replace("mb.mask", "torch.ones_like(mb.mask)"),
        "a clip of 0.2": POLICY_LOSS.replace("cfg.clip", "0.2"),
        "the clip of values for the policy": POLICY_LOSS.replace("cfg.clip", "cfg.value_clip"),
        "no clip": POLICY_LOSS.replace("cfg.clip", "0"),
        "the policy loss divides by its part": POLICY_LOSS.replace("n_tokens", "mb.mask.sum()"),
        "the policy loss forgets n_tokens": POLICY_LOSS.replace(", n_tokens", ""),
    }),
    *in_each(12, VALUE_LOSS, {
        "the values' own past is now": VALUE_LOSS.replace("mb.old_values", "values.detach()"),
        "values learn advantages": VALUE_LOSS.replace("mb.returns", "mb.advantages"),
        "values learn rewards": VALUE_LOSS.replace("mb.returns", "mb.rewards"),
        "the clip of the policy for values": VALUE_LOSS.replace("cfg.value_clip", "cfg.clip"),
        "a value clip of 0.2": VALUE_LOSS.replace("cfg.value_clip", "0.2"),
        "no value clip": VALUE_LOSS.replace("cfg.value_clip", "0"),
        "no mask in the value loss": VALUE_LOSS.replace("mb.mask", "torch.ones_like(mb.mask)"),
        "the value loss divides by its part": VALUE_LOSS.replace("n_tokens", "mb.mask.sum()"),
        "the critic does not learn": VALUE_LOSS.replace("(values", "(values.detach()", 1),
    }),
    *in_each(12, "return p_loss + agent.value_coef * v_loss, numbers", {
        "the value loss at its full weight": "return p_loss + v_loss, numbers",
        "a tenth of the value loss": "return p_loss + 0.1 * v_loss, numbers",
        "the weight of the flag": "return p_loss + cfg.value_coef * v_loss, numbers",
        "the sign of the value loss": "return p_loss - agent.value_coef * v_loss, numbers",
        "no value loss": "return p_loss, numbers",
        "the policy loss is weighted": "return agent.value_coef * p_loss + v_loss, numbers",
        "both are weighted": "return agent.value_coef * (p_loss + v_loss), numbers",
        "a bonus for entropy": "return p_loss + agent.value_coef * v_loss + 0.01 * masked_mean(logprobs, "
                               "mb.mask, n_tokens), numbers",
    }),
    *in_each(12, 'numbers |= {"policy_loss": p_loss.detach(), "value_loss": v_loss.detach()}', {
        "the numbers lack the losses": "pass",
        "the weighted value loss is logged": 'numbers |= {"policy_loss": p_loss.detach(), "value_loss": '
                                             "agent.value_coef * v_loss.detach()}",
        "losses are swapped": 'numbers |= {"policy_loss": v_loss.detach(), "value_loss": p_loss.detach()}',
        "numbers lack the clip fraction":
            'numbers = {"approx_kl": numbers["approx_kl"], "policy_loss": p_loss.detach(), '
            '"value_loss": v_loss.detach()}',
    }),
]

IN_UPDATE = [
    *in_each(12, "for _ in range(cfg.ppo_epochs):", {
        "one pass": "for _ in range(1):",
        "a pass too many": "for _ in range(cfg.ppo_epochs + 1):",
        "old log-probabilities anew every pass":
            "for _ in range(cfg.ppo_epochs):\n"
            "        with torch.no_grad():\n"
            "            logits, _ = agent(batch.tokens, batch.prompt_lengths, batch.mask.shape[1])\n"
            "            batch.old_logprobs = token_logprobs(logits, batch.responses, cfg.temperature)",
        "old values anew every pass":
            "for _ in range(cfg.ppo_epochs):\n"
            "        with torch.no_grad():\n"
            "            batch.old_values = agent.values(batch.tokens, batch.prompt_lengths, "
            "batch.mask.shape[1])",
        "the same random numbers every pass": "for _ in range(cfg.ppo_epochs):\n        torch.manual_seed(0)",
        "advantages shrink every pass": "for _ in range(cfg.ppo_epochs):\n"
                                        "        batch.advantages = batch.advantages * 0.9",
    }),
    *in_each(12, ORDER, {
        "no random order": ORDER.replace("randperm", "arange"),
        "drawn with replacement":
            ORDER.replace("randperm(B)", "randint(B, (B,))"),
        "one minibatch": ORDER.replace("cfg.minibatch_size", "len(batch.mask)"),
        "minibatches of parts": ORDER.replace("cfg.minibatch_size", "cfg.micro_batch_size"),
        "the last minibatch is dropped": ORDER.replace("size)):", "size))[:-1]:"),
        "the first minibatch only": ORDER.replace("size)):", "size))[:1]:"),
        "what does not divide is a step of its own":
            "for rows in torch.randperm(B).split(cfg.minibatch_size):",
        "chunks, of which the last may be far smaller": ORDER.replace("tensor_split", "chunk"),
        "as many minibatches as rounding gives":
            ORDER.replace("-(-B // cfg.minibatch_size)", "max(1, round(B / cfg.minibatch_size))"),
        "minibatches come in a new order, with the same answers":
            "groups = torch.arange(B).tensor_split(-(-B // cfg.minibatch_size))\n"
            "        for rows in (groups[i] for i in torch.randperm(len(groups))):",
        "one answer is forgotten":
            ORDER.replace("randperm(B)", "randperm(B - 1)"),
    }),
    Wrong(12, "an order that no seed of torch gives again", [
        ("    updates, B =", "    import random\n    updates, B ="),
        ("torch.randperm(B)", "torch.tensor(random.sample(range(B), B))")]),
    Wrong(12, "the same orders in every iteration", [
        ("for _ in range(cfg.ppo_epochs):", "for epoch in range(cfg.ppo_epochs):"),
        ("randperm(B)", "randperm(B, generator=torch.Generator().manual_seed(epoch))")]),
    Wrong(12, "the same orders in every iteration, but not with another seed", [
        ("for _ in range(cfg.ppo_epochs):", "for epoch in range(cfg.ppo_epochs):"),
        ("randperm(B)",
         "randperm(B, generator=torch.Generator().manual_seed(torch.initial_seed() + epoch))")]),
    Wrong(12, "one order for all passes", [
        ("= [], len(batch.mask)\n", "= [], len(batch.mask)\n    order = torch.randperm(B)\n"),
        ("torch.randperm(B).tensor_split(", "order.tensor_split(")]),
    *in_each(12, ZERO, {
        "gradients are never cleared": ZERO.replace("optimizer.zero_grad()", "pass"),
        "n_tokens of the whole batch": ZERO.replace("n_tokens, total", "batch_tokens, total"),
        "gradients are cleared before each part":
            ZERO.replace("optimizer.zero_grad()", "clear = optimizer.zero_grad"),
    }),
    Wrong(12, "gradients are cleared once a pass", [
        ("            optimizer.zero_grad()\n", ""),
        ("range(cfg.ppo_epochs):\n", "range(cfg.ppo_epochs):\n        optimizer.zero_grad()\n")]),
    Wrong(12, "gradients are cleared once", [
        ("            optimizer.zero_grad()\n", ""),
        ("= [], len(batch.mask)\n", "= [], len(batch.mask)\n    optimizer.zero_grad()\n")]),
    *in_each(12, "n_tokens, total = batch.mask[rows].sum(), {}", {
        "n_tokens: all answers": "n_tokens, total = batch.mask.sum(), {}",
        "n_tokens: of full answers": "n_tokens, total = batch.mask[rows].numel(), {}",
        "n_tokens: the answers": "n_tokens, total = len(rows), {}",
        "n_tokens: none": "n_tokens, total = None, {}",
    }),
    *in_each(12, "for micro in by_length.split(cfg.micro_batch_size):", {
        "no parts": "for micro in [by_length]:",
        "the first part only": "for micro in by_length.split(cfg.micro_batch_size)[:1]:",
        "answers one by one": "for micro in by_length.split(1):",
    }),
    *in_each(12, "batch.take(micro)", {
        "always the first answers": "batch.take(torch.arange(len(micro)))",
        "the whole minibatch for each part": "batch.take(by_length)",
        "the whole batch for each part": "batch",
    }),
    *in_each(12, "loss.backward()", {
        "parts are averaged": "(loss / len(by_length.split(cfg.micro_batch_size))).backward()",
        "uphill": "(-loss).backward()",
        "a step for each part": "loss.backward(); optimizer.step(); optimizer.zero_grad()",
        "a step for each part, and one more": "loss.backward(); optimizer.step()",
        "backward twice": "loss.backward(retain_graph=True); loss.backward()",
        "cleared before each part": "optimizer.zero_grad(); loss.backward()",
    }),
    *in_each(12, TOTAL, {
        "numbers of the last part": "total = {name: float(x) for name, x in numbers.items()}",
        "numbers of the first part":
            "total = total or {name: float(x) for name, x in numbers.items()}",
        "numbers are averaged over the parts":
            TOTAL.replace("float(x)", "float(x) / len(by_length.split(cfg.micro_batch_size))"),
    }),
    *in_each(12, PTX, {
        "no text": "",
        "text whatever the weight": PTX.replace("if cfg.ptx_coef:", "if corpus is not None:")
                                       .replace("cfg.ptx_coef)", "cfg.ptx_coef or 1.0)"),
        "text at weight 1": PTX.replace("cfg.ptx_coef)", "1.0)"),
        "text at the weight squared": PTX.replace("cfg.ptx_coef)", "cfg.ptx_coef**2)"),
        "text for the critic": PTX.replace("agent.policy", "agent.networks[-1]"),
        "text twice": PTX + "\n" + PTX.split("\n")[1],
        "the sign of the text": PTX.replace("cfg.ptx_coef)", "-cfg.ptx_coef)"),
    }),
    Wrong(12, "text for each part", [
        (PTX, ""),
        ("                loss.backward()\n",
         "                loss.backward()\n    " + PTX.replace("\n", "\n    ") + "\n")]),
    Wrong(12, "text once a pass", [
        (PTX, PTX.replace("if cfg.ptx_coef:", "if cfg.ptx_coef and len(updates) % "
                          "-(-len(batch.mask) // cfg.minibatch_size) == 0:"))]),
    Wrong(12, "text is not clipped", [
        (PTX, ""), ("            optimizer.step()", PTX + "\n            optimizer.step()")]),
    *in_each(12, LIMIT, {
        "clipped at 1": "limit = 1.0",
        "clip 0 stops everything": "limit = cfg.clip_grad",
        "never clipped": "limit = torch.inf",
        "clipped at half": "limit = cfg.clip_grad / 2 or torch.inf",
    }),
    *in_each(12, NORMS, {
        "both networks are clipped together":
            "norms = [nn.utils.clip_grad_norm_(agent.parameters(), limit).item()]",
        "only the policy is clipped":
            "norms = [nn.utils.clip_grad_norm_(agent.policy.parameters(), limit).item()]",
        "every element is clipped": NORMS + "; nn.utils.clip_grad_value_(agent.parameters(), limit / 100)",
        "the norm after clipping": NORMS + "; " + NORMS,
        "every matrix is clipped by itself":
            "norms = [nn.utils.clip_grad_norm_([p], limit).item() for p in agent.parameters() "
            "if p.grad is not None]",
    }),
    Wrong(12, "no step", [("            optimizer.step()\n", "")]),
    Wrong(12, "clipped after the step", [("            optimizer.step()\n", ""),
                                         (LIMIT, "optimizer.step(); " + LIMIT)]),
    *in_each(12, KEEP, {
        "the critic's norm": 'updates.append({**total, "grad_norm": norms[-1]})',
        "the norms' sum": 'updates.append({**total, "grad_norm": sum(norms)})',
        "only the last step's numbers": 'updates = [{**total, "grad_norm": norms[0]}]',
        "no norm": "updates.append(total)",
    }),
    Wrong(12, "no numbers of a pass but its last", [
        ("    return updates", "    return updates[:: max(1, len(updates) // cfg.ppo_epochs)]")]),
]
