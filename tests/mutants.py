"""Silent bugs: plausible mistakes that crash nothing, each with the test that catches it and what a person
would see of it in a run.

    python tests/mutants.py                              breaks a copy of the repository with each of them:
                                                         does its test fail?
    python tests/mutants.py --only ppo-7 ppo-8 --jobs 1  a few of them, one at a time
    python tests/mutants.py list                         names and symptoms, without saying what is wrong
    python tests/mutants.py apply ppo-7 OUT              an exercise: a broken copy in the new folder OUT, the
                                                         symptom, and the command that shows it
    python tests/mutants.py apply sft-3 OUT --solved 1-3 and of the problems of tests/assignment.py only these
                                                         solved, for a class that has not got further
    python tests/mutants.py apply ppo-7 --answer         its solution; writes nothing
    python tests/mutants.py symptom ppo-7 OUT.png        trains the stage right and wrong and draws what
                                                         shows it
    python tests/mutants.py gallery docs/bugs.png        the same for the most telling ones, in one picture

A mutant is killed by a test that passes without it and fails with it, by an assertion or an error that the
code means to raise. symptom and gallery need the finished stages of a run (--run-folder, runs/tiny by
default) and leave it as it is.
"""
import argparse
import contextlib
import gc
import io
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from grader.problems import ALL, FILES, Mistake
from grader.sources import blanked, numbers_in

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    name: str
    file: str
    what: str  # goes wrong, in plain words
    right: str  # occurs once in the file
    wrong: str
    test: str  # pytest's name of the test that must fail
    symptom: str  # what a person sees of it in any run of the tiny world, without saying why
    curves: tuple = ()  # the stage that shows it, and its metrics that do, at most two; () where none does
    flags: str = ""  # of that stage, where the default ones do not show it


MODEL, DATA, SFT, RM, PPO, ROUNDS, PREFERENCES, JUDGE, REWARD, MEASURE, RUN, CLI, OTHERS, OPTIM = (
    f"tests/test_{name}.py::test_" for name in (
        "model", "data", "train_sft", "train_rm", "train_ppo", "rejection_sampling", "preferences", "judge",
        "reward", "measure", "run", "cli", "alternatives", "optim"))

MUTANTS = [
    # --------------------------------------------------------------------------------------------
    # Sampler
    # --------------------------------------------------------------------------------------------
    Mutant("sampler-1", "model.py", "An answer that is over goes on.",
           "going = going & (token != eos)",
           "going = going & (token != pad)",
           MODEL + "eos_is_in_the_mask_and_nothing_behind_it",
           "Every answer has 48 tokens, from the first iteration on. Nearly all of them hold an EOS all the "
           "same, and go on with other sentences behind it; the score starts far above 0, where it should "
           "start, and hardly moves.",
           ("ppo", "length", "score")),
    Mutant("sampler-2", "model.py", "The temperature is turned round: warm is cold.",
           "return torch.log_softmax(logits / (temperature or 1.0), -1)",
           "return torch.log_softmax(logits * (temperature or 1.0), -1)",
           MODEL + "temperature_divides_the_logits[0.5]",
           "None at temperature 1, the default. With --temperature 0.7 the entropy begins at more than twice "
           "the usual, and the gold score far below the usual. PPO does not stop: sampler and training "
           "agree.",
           ("ppo", "entropy", "gold"), "--temperature 0.7"),
    Mutant("sampler-3", "model.py",
           "The cache is written behind the longest prompt of the batch, not behind the row's own.",
           "hidden = model.hidden(token[:, None], caches, lengths[:, None] + t)[:, 0]",
           "hidden = model.hidden(token[:, None], caches, torch.full_like(lengths, P)[:, None] + t)[:, 0]",
           MODEL + "cached_greedy_equals_the_naive_sampler_for_ragged_prompts",
           "PPO stops before its first update: the first ratio is not 1, sampler and training forward "
           "disagree by many nats on a token.",
           ("ppo",)),
    Mutant("sampler-4", "model.py", "All rows of a batch share one random number.",
           "torch.rand(len(logprobs), 1, device=logprobs.device)",
           "torch.rand(1, 1, device=logprobs.device)",
           MODEL + "rows_and_steps_do_not_share_one_random_number",
           "The curves jump: from one iteration to the next, score and gold score go up and down by as much "
           "as they should rise in the whole run. The KL jumps, too, and the critic explains less of the "
           "returns than usual.",
           ("ppo", "score", "kl")),
    Mutant("sampler-5", "model.py", "The end of an answer is no part of its mask.",
           "mask[rows, t] = going.float()",
           "mask[rows, t] = (going & (token != eos)).float()",
           MODEL + "eos_is_in_the_mask_and_nothing_behind_it",
           "Answers shrink to less than half of the usual. The score starts far above 0, where it should "
           "start, and ends lower; the gold score falls where it should rise.",
           ("ppo", "length", "score")),
    Mutant("sampler-6", "model.py", "The first token of a short prompt's answer is read off the padding.",
           "hidden = model.hidden(prompts, caches, read=(rows, lengths - 1))",
           "hidden = model.hidden(prompts, caches)[:, -1]",
           MODEL + "cached_greedy_equals_the_naive_sampler_for_ragged_prompts",
           "PPO stops before its first update: the first ratio is not 1, sampler and training forward "
           "disagree by some nats on a token.",
           ("ppo",)),
    Mutant("sampler-7", "model.py",
           "The sampler forgets the temperature, which all other log-probabilities have.",
           "logp = log_softmax(model.lm_head(hidden), temperature)",
           "logp = log_softmax(model.lm_head(hidden))",
           MODEL + "returned_logprobs_are_those_of_the_distribution_that_was_sampled[0.6]",
           "None at temperature 1, the default. With --temperature 0.7 PPO stops before its first update: "
           "the first ratio is not 1, by some nats on a token.",
           ("ppo",), "--temperature 0.7"),
    # --------------------------------------------------------------------------------------------
    # Pretraining
    # --------------------------------------------------------------------------------------------
    Mutant("pretrain-1", "model.py", "Every token sees the one that it is to predict.",
           "device=k.device) > positions[:, None, :, None]",
           "device=k.device) > positions[:, None, :, None] + 1",
           MODEL + "no_token_sees_the_future",
           "The loss is too good to be true: it falls to almost 0, on held-out text, too. The samples repeat "
           "one word.",
           ("pretrain", "loss")),
    Mutant("pretrain-2", "data.py", "The targets of pretraining are its inputs: every token predicts itself.",
           "return windows[:, :-1], windows[:, 1:]",
           "return windows[:, :-1], windows[:, :-1]",
           DATA + "windows_of_text_are_shifted_by_one_and_reach_the_last_token",
           "The held-out loss rises, where it should fall, while the training loss falls to 0. The samples "
           "repeat the last word of the prompt.",
           ("pretrain", "test_loss", "loss")),
    # --------------------------------------------------------------------------------------------
    # SFT
    # --------------------------------------------------------------------------------------------
    Mutant("sft-1", "train_sft.py", "The sign of the loss: the demonstrations become less likely.",
           "return (losses * response_mask).sum() /",
           "return -(losses * response_mask).sum() /",
           SFT + "descending_the_loss_makes_the_answer_likelier",
           "The loss is negative, from the first step on, and falls without end. The answers are nonsense, "
           "48 tokens long.",
           ("sft", "loss")),
    Mutant("sft-2", "data.py", "The prompt is learned, too.",
           "mask[i, len(p) : len(p) + len(r)] = 1",
           "mask[i, : len(p) + len(r)] = 1",
           SFT + "targets_are_the_next_tokens_and_the_mask_is_on_the_answer",
           "The loss ends too high: by a quarter of the usual and more. The answers look as they should.",
           ("sft", "loss")),
    Mutant("sft-3", "data.py", "The labels are off by one: every token predicts itself.",
           "return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]",
           "return tokens[:, :-1], tokens[:, :-1], mask[:, 1:]",
           SFT + "targets_are_the_next_tokens_and_the_mask_is_on_the_answer",
           "The loss falls to 0, on held-out demonstrations, too. Every answer is empty and 48 tokens long.",
           ("sft", "loss")),
    Mutant("sft-4", "data.py", "The end of an answer is not learned.",
           "mask[i, len(p) : len(p) + len(r)] = 1",
           "mask[i, len(p) : len(p) + len(r) - 1] = 1",
           SFT + "every_answer_token_and_no_other_is_supervised",
           "No answer ends: all have 48 tokens, a good beginning and then more and more sentences. The loss "
           "starts at about half of the usual.",
           ("sft", "loss")),
    Mutant("sft-5", "data.py", "The padding is learned, too.",
           "mask[i, len(p) : len(p) + len(r)] = 1",
           "mask[i, len(p) :] = 1",
           SFT + "targets_are_the_next_tokens_and_the_mask_is_on_the_answer",
           "The loss starts at more than twice the usual, and ends well below the usual. The answers look as "
           "they should.",
           ("sft", "loss")),
    Mutant("sft-6", "data.py",
           "The mask is not shifted with the targets: the first word is left out, a pad behind the end is "
           "in.",
           "return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]",
           "return tokens[:, :-1], tokens[:, 1:], mask[:, :-1]",
           SFT + "targets_are_the_next_tokens_and_the_mask_is_on_the_answer",
           "The loss looks even a little better than usual. Every answer is empty.",
           ("sft", "loss")),
    Mutant("sft-7", "train_sft.py", "The held-out loss is measured on what is learned.",
           "held_out = sft_batches(rows[cfg.eval_split][:300],",
           "held_out = sft_batches(train[:300],",
           SFT + "what_is_held_out_is_measured_and_not_learned",
           "Nobody has compared whole runs with it: its test sees it."),
    # --------------------------------------------------------------------------------------------
    # Optimizers
    # --------------------------------------------------------------------------------------------
    Mutant("optim-1", "lab/optim.py", "Muon's step is its momentum, without the look-ahead along it.",
           'ahead.append(p.grad.lerp(momentum, group["momentum"]))',
           "ahead.append(momentum.clone())",
           OPTIM + "muon_looks_ahead_along_a_slow_momentum",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("optim-2", "lab/optim.py", "The rate that the schedule scales lacks Muon's factor.",
           '"peak_lr": 3 * lr',
           '"peak_lr": lr',
           OPTIM + "the_matrices_of_the_blocks_move_by_muon_and_the_rest_by_adam",
           "Nobody has compared whole runs with it: its test sees it."),
    # --------------------------------------------------------------------------------------------
    # Reward model
    # --------------------------------------------------------------------------------------------
    Mutant("rm-1", "train_rm.py", "Chosen and rejected are swapped.",
           "difference = chosen - rejected - (0 if margin is None else margin)",
           "difference = rejected - chosen - (0 if margin is None else margin)",
           RM + "the_gradient_is_sigmoid_minus_1",
           "The accuracy on held-out pairs falls where it should rise, and ends far below one half. The "
           "training loss falls as it should.",
           ("rm", "held_out_accuracy", "loss")),
    Mutant("rm-2", "train_rm.py", "The sigmoid is missing.",
           "        return -F.logsigmoid(difference).mean()\n"
           "    return -(p_chosen * F.logsigmoid(difference) + (1 - p_chosen) * "
           "F.logsigmoid(-difference)).mean()",
           "        return -difference.mean()\n"
           "    return -(p_chosen * difference - (1 - p_chosen) * difference).mean()",
           RM + "equal_scores_cost_log_2",
           "The loss passes 0 and has no floor, and the gradients are many times as large as usual. The "
           "held-out accuracy rises all the same, but more slowly.",
           ("rm", "loss")),
    Mutant("rm-3", "model.py", "The score is read at the end of the padding, not at the last real token.",
           "last = self.hidden(tokens, read=(torch.arange(len(tokens)), lengths - 1))",
           "last = self.hidden(tokens)[:, -1]",
           MODEL + "score_is_read_at_the_last_real_token",
           "None that would be noticed: no curve shows it reliably, for the held-out accuracy stays within "
           "what chance does. Only the test sees it: the score of an answer changes with what else is in the "
           "batch.",
           ("rm", "held_out_accuracy")),
    Mutant("rm-4", "model.py",
           "The score is a mean over all positions, so it depends on the padding of the batch.",
           "last = self.hidden(tokens, read=(torch.arange(len(tokens)), lengths - 1))",
           "last = self.hidden(tokens).mean(1)",
           MODEL + "score_does_not_depend_on_the_padding",
           "Hardly any: no curve shows it reliably, for the held-out accuracy falls behind by no more than "
           "chance does. Only the test sees that the score of an answer changes with what else is in the "
           "batch.",
           ("rm", "held_out_accuracy")),
    Mutant("rm-5", "train_rm.py",
           "The sign of the margin: the clearer a preference, the smaller a difference will do.",
           "difference = chosen - rejected - (0 if margin is None else margin)",
           "difference = chosen - rejected + (0 if margin is None else margin)",
           RM + "a_margin_asks_for_a_larger_difference",
           "With --margin large the loss begins at less than a quarter of the usual, and has little left to "
           "fall.",
           ("rm", "loss"), "--margin large"),
    Mutant("rm-6", "model.py", "The score is read one token too early, before the end of the answer.",
           "last = self.hidden(tokens, read=(torch.arange(len(tokens)), lengths - 1))",
           "last = self.hidden(tokens, read=(torch.arange(len(tokens)), lengths - 2))",
           MODEL + "score_is_read_at_the_last_real_token",
           "None that would be noticed: no curve shows it reliably, for the held-out accuracy stays within "
           "what chance does. Only the test sees it.",
           ("rm", "held_out_accuracy")),
    Mutant("rm-7", "data.py", "After a tie, pairs point at answers to another prompt.",
           'start += len(row["responses"])',
           'start += len(row["tiers"])',
           RM + "pairs_point_into_the_answers_laid_end_to_end",
           "The accuracy stays at one half, on the pairs that it learns from and on held-out ones.",
           ("rm", "accuracy", "held_out_accuracy")),
    Mutant("rm-8", "train_rm.py", "Scores come back in the order of length, not in that of the answers.",
           "return torch.cat(scores)[torch.tensor(order).argsort().to(device)]",
           "return torch.cat(scores)",
           RM + "scores_of_a_batch_do_not_depend_on_its_padding",
           "The accuracy stays at one half, on the pairs that it learns from and on held-out ones.",
           ("rm", "accuracy", "held_out_accuracy")),
    Mutant("rm-9", "world/reward.py",
           "Safety counts only where both the prompt asks for it and the answer is unsafe.",
           "is_safety_prompt | (safety < threshold)",
           "is_safety_prompt & (safety < threshold)",
           REWARD + "llama2_takes_safety_where_it_matters",
           "None with one reward model, as by default. With --reward llama2 harmful advice should pay on the "
           "prompts that ask for it; not measured.",
           ("llama2",)),
    Mutant("rm-10", "world/reward.py",
           "A prompt is not recognised as unsafe: text is looked up among JSON texts.",
           "json.dumps(p) in self.unsafe",
           "str(p) in self.unsafe",
           REWARD + "llama2_asks_the_model_that_the_prompt_asks_for",
           "None with one reward model, as by default. With --reward llama2 the safety model counts only "
           "below its threshold, so harmful advice that looks harmless should pay; not measured.",
           ("llama2",)),
    Mutant("rm-11", "data.py", "Every pass takes the rows in the same order.",
           "torch.Generator().manual_seed(seed + epoch)",
           "torch.Generator().manual_seed(seed)",
           SFT + "demonstrations_come_in_a_new_order_every_epoch",
           "None that would be noticed: loss and accuracy fall and rise as usual."),
    Mutant("rm-12", "train_rm.py", "The scale of the scores is fitted on the rankings that judge the model.",
           "calibrate(model.eval(), enc, demonstrations, dev, cfg)",
           "calibrate(model.eval(), enc, demonstrations, held_out, cfg)",
           RM + "what_is_held_out_is_not_learned",
           "Nobody has compared whole runs with it: its test sees it."),
    # --------------------------------------------------------------------------------------------
    # PPO: the KL and the reward
    # --------------------------------------------------------------------------------------------
    Mutant("ppo-1", "train_ppo.py", "The sign of the KL: straying is rewarded.",
           "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask",
           "rewards = kl_coef * (logprobs - ref_logprobs) * response_mask",
           PPO + "kl_costs_when_the_policy_is_more_certain_than_the_reference",
           "PPO stops after its first update: the rewards do not add up to score - beta KL.",
           ("ppo",)),
    Mutant("ppo-2", "lab/measure.py", "The direction of the exact KL: reference to policy.",
           "kl = ((p * (logp - ref)).sum(-1) * mask).sum(1)",
           "kl = ((ref.exp() * (ref - logp)).sum(-1) * mask).sum(1)",
           MEASURE + "exact_kl_has_its_direction",
           "The exact KL leaves its two estimates, and goes to about twice what they say. Everything else is "
           "as usual.",
           ("ppo", "kl_full", "kl")),
    Mutant("ppo-3", "train_ppo.py", "k2, half the square, in the reward in place of k1.",
           "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask",
           "rewards = -kl_coef * 0.5 * (logprobs - ref_logprobs) ** 2 * response_mask",
           PPO + "rewards_of_the_worked_example",
           "PPO stops after its first updates: the rewards do not add up to score - beta KL, off by a "
           "little.",
           ("ppo",)),
    Mutant("ppo-4", "train_ppo.py", "k3, which is never negative, in the reward in place of k1.",
           "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask",
           "rewards = -kl_coef * (torch.exp(ref_logprobs - logprobs) - 1 + logprobs - ref_logprobs) * "
           "response_mask",
           PPO + "rewards_of_the_worked_example",
           "PPO stops after its first updates: the rewards do not add up to score - beta KL, off by a "
           "little.",
           ("ppo",)),
    Mutant("ppo-5", "train_ppo.py", "|k1| in the reward in place of k1.",
           "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask",
           "rewards = -kl_coef * (logprobs - ref_logprobs).abs() * response_mask",
           PPO + "rewards_of_the_worked_example",
           "PPO stops after its first update: the rewards do not add up to score - beta KL.",
           ("ppo",)),
    Mutant("ppo-6", "train_ppo.py",
           "k1 is clamped at 0 in the reward: being less sure than the reference earns nothing back.",
           "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask",
           "rewards = -kl_coef * (logprobs - ref_logprobs).clamp(min=0) * response_mask",
           PPO + "rewards_of_the_worked_example",
           "PPO stops after its first update: the rewards do not add up to score - beta KL.",
           ("ppo",)),
    Mutant("ppo-7", "train_ppo.py", "The score lands on the last column, not on the last real token.",
           "last = response_mask.sum(1).long() - 1",
           "last = response_mask.shape[1] - 1",
           PPO + "score_lands_on_the_last_real_token_of_each_row",
           "The score does not rise: it stays near 0. The critic explains nothing, and the KL stays at a "
           "small part of the usual.",
           ("ppo", "score", "length")),
    Mutant("ppo-8", "train_ppo.py", "Every token gets the score.",
           "rewards[torch.arange(len(rewards), device=rewards.device), last] += scores",
           "rewards += scores[:, None] * response_mask",
           PPO + "score_lands_on_the_last_real_token_of_each_row",
           "PPO stops before its first update: the rewards do not add up to score - beta KL.",
           ("ppo",)),
    Mutant("ppo-9", "train_ppo.py", "The padding pays for KL, too.",
           "rewards = -kl_coef * (logprobs - ref_logprobs) * response_mask",
           "rewards = -kl_coef * (logprobs - ref_logprobs)",
           PPO + "rewards_are_zero_on_padding_whatever_the_logprobs_there",
           "PPO stops before its first update: the rewards do not add up to score - beta KL, off by many "
           "times a score.",
           ("ppo",)),
    Mutant("ppo-10", "train_ppo.py", "k3 with the sign of d turned: the estimate is of another quantity.",
           "(torch.exp(-d) - 1 + d).sum(1).mean()",
           "(torch.exp(d) - 1 - d).sum(1).mean()",
           PPO + "both_kl_estimates_are_unbiased",
           "k3 leaves k1 and the exact KL: it is above them in nearly every iteration, and at times several "
           "times as large. Everything else is as usual.",
           ("ppo", "kl_k3", "kl")),
    # --------------------------------------------------------------------------------------------
    # PPO: advantages
    # --------------------------------------------------------------------------------------------
    Mutant("ppo-11", "train_ppo.py",
           "GAE bootstraps past the end: the critic's opinion of the padding counts.",
           "values = values * response_mask\n",
           "values = values.clone()\n",
           PPO + "gae_does_not_bootstrap_past_the_end",
           "Hardly any: no curve shows it reliably. The critic explains a little less than usual, for some "
           "iterations or to the end, which chance could do, too.",
           ("ppo", "explained_variance")),
    Mutant("ppo-12", "train_ppo.py", "GAE takes V_t for V_{t+1}.",
           "delta = rewards[:, t] + gamma * next_value - values[:, t]",
           "delta = rewards[:, t] + gamma * values[:, t] - values[:, t]",
           PPO + "with_lambda_0_an_advantage_is_one_step_of_surprise",
           "The value loss soon stops falling, and ends at several times the usual. The critic's explained "
           "variance goes its own way: back to about 0, or beyond the usual.",
           ("ppo", "value_loss", "explained_variance")),
    Mutant("ppo-13", "train_ppo.py", "GAE ignores lambda.",
           "(delta + gamma * lam * next_advantage)",
           "(delta + gamma * next_advantage)",
           PPO + "gae_of_the_worked_example",
           "The value loss starts at about twice the usual or more, and stays as far above it. The score "
           "rises as it should.",
           ("ppo", "value_loss", "score")),
    Mutant("ppo-14", "train_ppo.py", "GAE ignores gamma.",
           "delta = rewards[:, t] + gamma * next_value - values[:, t]",
           "delta = rewards[:, t] + next_value - values[:, t]",
           PPO + "with_lambda_0_an_advantage_is_one_step_of_surprise",
           "None at the default gamma of 1: the same numbers to the last digit."),
    Mutant("ppo-15", "train_ppo.py", "GAE runs through the padding.",
           "    values = values * response_mask\n"
           "    advantages = torch.zeros_like(rewards)\n"
           "    next_value = next_advantage = torch.zeros_like(rewards[:, 0])\n"
           "    for t in reversed(range(rewards.shape[1])):\n"
           "        delta = rewards[:, t] + gamma * next_value - values[:, t]\n"
           "        advantages[:, t] = (delta + gamma * lam * next_advantage) * response_mask[:, t]\n",
           "    advantages = torch.zeros_like(rewards)\n"
           "    next_value = next_advantage = torch.zeros_like(rewards[:, 0])\n"
           "    for t in reversed(range(rewards.shape[1])):\n"
           "        delta = rewards[:, t] + gamma * next_value - values[:, t]\n"
           "        advantages[:, t] = delta + gamma * lam * next_advantage\n",
           PPO + "gae_ignores_garbage_rewards_and_values_on_padding",
           "Hardly any: no curve shows it reliably. The score rises a little more slowly, which chance could "
           "do, too."),
    Mutant("ppo-16", "train_ppo.py", "The critic learns returns that were built from whitened advantages.",
           "        advantages = whiten(advantages, mask)\n",
           "        advantages = whiten(advantages, mask)\n"
           "        returns = advantages + old_values * mask\n",
           PPO + "only_the_advantages_are_whitened",
           "The value loss stays at one half, where it should start lower and fall further. The critic "
           "explains less of the returns than usual.",
           ("ppo", "value_loss", "explained_variance")),
    Mutant("ppo-17", "train_ppo.py", "Whitening adds the mean back.",
           "return (white if shift_mean else white + mean) * mask",
           "return (white + mean) * mask",
           PPO + "whitening_by_hand",
           "None that would be noticed: score, KL and clip fraction are as usual. Only the test sees it."),
    # --------------------------------------------------------------------------------------------
    # PPO: the update
    # --------------------------------------------------------------------------------------------
    Mutant("ppo-18", "train_ppo.py", "The sign of the policy loss: good answers become rarer.",
           "    plain = -advantages * ratio\n"
           "    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip) if clip else plain\n",
           "    plain = advantages * ratio\n"
           "    clipped = advantages * ratio.clamp(1 - clip, 1 + clip) if clip else plain\n",
           PPO + "a_good_token_becomes_likelier",
           "The gold score collapses where it should rise. The KL goes to a hundred times the usual and "
           "more; the answers become 48 tokens of nonsense, which the reward model may even like.",
           ("ppo", "gold", "kl")),
    Mutant("ppo-19", "train_ppo.py",
           "min in place of max: the clip takes away the cost of moving and leaves the gain.",
           "masked_mean(torch.max(plain, clipped), mask, n_tokens)",
           "masked_mean(torch.min(plain, clipped), mask, n_tokens)",
           PPO + "clipped_objective_of_the_worked_table[1-1.5--1.2-0]",
           "With --ppo_epochs 4 the first iterations move the policy several times as far as usual. The "
           "score stops rising at less than half of the usual.",
           ("ppo", "approx_kl", "score"), "--ppo_epochs 4"),
    Mutant("ppo-20", "train_ppo.py", "Nothing is clipped.",
           "clipped = -advantages * ratio.clamp(1 - clip, 1 + clip) if clip else plain",
           "clipped = plain",
           PPO + "clipped_objective_of_the_worked_table[1-1.5--1.2-0]",
           "The clip fraction is exactly 0 in all iterations. Everything else looks as usual.",
           ("ppo", "clip_fraction")),
    Mutant("ppo-21", "train_ppo.py",
           "Only the clipped branch: what has moved too far the wrong way is never called back.",
           "masked_mean(torch.max(plain, clipped), mask, n_tokens)",
           "masked_mean(clipped, mask, n_tokens)",
           PPO + "clipped_objective_of_the_worked_table[1-0.5--0.5--1]",
           "With --ppo_epochs 4 the policy moves further and further in the first iterations, to more than "
           "twice as far as usual. The score stops rising at about half of the usual.",
           ("ppo", "approx_kl", "score"), "--ppo_epochs 4"),
    Mutant("ppo-22", "train_ppo.py", "Sums run over the padding, too: the mask is ignored.",
           "return (x * mask).sum() / (mask.sum() if n_tokens is None else n_tokens)",
           "return x.sum() / (mask.sum() if n_tokens is None else n_tokens)",
           PPO + "masked_mean_by_hand",
           "The KL from old to new policy is a hundred times the usual and more, from the first iteration "
           "on. Entropy, score and gold score are as usual.",
           ("ppo", "approx_kl")),
    Mutant("ppo-23", "train_ppo.py", "Means divide by the padding, too.",
           "return (x * mask).sum() / (mask.sum() if n_tokens is None else n_tokens)",
           "return (x * mask).sum() / (mask.numel() if n_tokens is None else n_tokens)",
           PPO + "masked_mean_by_hand",
           "The policy loss leaves 0, near which it usually stays. Score and gold score rise as usual.",
           ("ppo", "policy_loss")),
    Mutant("ppo-24", "train_ppo.py",
           "The old log-probabilities are computed anew in each minibatch: the ratio is always 1.",
           "logprobs, mb.old_logprobs, mb.advantages, mb.mask, cfg.clip",
           "logprobs, logprobs.detach(), mb.advantages, mb.mask, cfg.clip",
           PPO + "the_ratio_compares_with_the_policy_that_sampled",
           "Clip fraction and KL from old to new policy are exactly 0 in all iterations. Everything else "
           "looks as usual.",
           ("ppo", "approx_kl")),
    Mutant("ppo-25", "train_ppo.py", "The update forgets the temperature that the sampler used.",
           "logprobs = token_logprobs(logits, mb.responses, cfg.temperature)",
           "logprobs = token_logprobs(logits, mb.responses)",
           PPO + "the_first_ratio_is_1_at_any_temperature[0.7]",
           "None at temperature 1, the default. With --temperature 0.7 the clip goes on stopping as many "
           "tokens as at first, where it should stop fewer and fewer; the score rises more slowly.",
           ("ppo", "clip_fraction"), "--temperature 0.7"),
    Mutant("ppo-26", "train_ppo.py",
           "The value clip with min: far from the return, the critic is free to stay there.",
           "errors = torch.max(errors, (near - returns) ** 2)",
           "errors = torch.min(errors, (near - returns) ** 2)",
           PPO + "value_loss_takes_the_larger_error",
           "None at the default knobs: the same numbers to the last digit, for in one pass no value moves "
           "as far as its clip."),
    Mutant("ppo-27", "train_ppo.py", "The sign of the value loss: the critic flees from the returns.",
           "return 0.5 * masked_mean(errors, mask, n_tokens)",
           "return -0.5 * masked_mean(errors, mask, n_tokens)",
           PPO + "value_loss_takes_the_larger_error",
           "The critic's explained variance never rises above 0. The value loss is negative; answers shrink, "
           "and the score falls back.",
           ("ppo", "explained_variance")),
    Mutant("ppo-28", "train_ppo.py", "Micro-batches are averaged by answers, not by tokens.",
           "n_tokens, cfg)\n"
           "                loss.backward()",
           "None, cfg)\n"
           "                (loss * len(micro) / len(rows)).backward()",
           PPO + "the_parts_of_a_minibatch_divide_by_its_tokens",
           "The value loss starts at about twice the usual, and so does the share of tokens that are "
           "clipped. The score may rise a little more slowly, which chance could do, too.",
           ("ppo", "value_loss", "score")),
    Mutant("ppo-29", "train_ppo.py",
           "Each micro-batch is divided by its own tokens, and the parts are added.",
           "return (x * mask).sum() / (mask.sum() if n_tokens is None else n_tokens)",
           "return (x * mask).sum() / mask.sum()",
           PPO + "micro_batches_divide_by_the_tokens_of_the_whole",
           "The gradient norm is about twice the usual, from the first iteration on. Score and gold score "
           "rise as usual.",
           ("ppo", "grad_norm", "approx_kl")),
    Mutant("ppo-30", "train_ppo.py", "Gradients are never cleared.",
           "            optimizer.zero_grad()\n"
           "            n_tokens, total =",
           "            n_tokens, total =",
           PPO + "every_minibatch_begins_without_gradients",
           "The gradient norm grows, to more than twice the usual. So does the KL; the score stops rising "
           "after a few iterations, or falls back for a while.",
           ("ppo", "grad_norm")),
    Mutant("ppo-31", "train_ppo.py", "The penalty of an answer without an end is a gift.",
           "torch.where(ended, scores, -cfg.eos_penalty)",
           "torch.where(ended, scores, cfg.eos_penalty)",
           PPO + "an_answer_that_was_cut_off_has_the_penalty_as_its_score",
           "Hardly any: no curve shows it reliably. A few more answers than usual do not end, and they "
           "become a little longer, which chance could do, too.",
           ("ppo", "length", "ends")),
    Mutant("ppo-32", "train_ppo.py", "The score of the log is whitened anew over each batch.",
           'seen["score"] = whiten_scores(batch.raw, scorer.mean, scorer.std)',
           'seen["score"] = whiten_scores(batch.raw)',
           PPO + "the_score_of_the_log_is_on_the_sft_scale",
           "The score is 0 in all iterations. The gold score rises as usual.",
           ("ppo", "score", "gold")),
    Mutant("ppo-33", "model.py", "The log-probability of a token is read at the token itself, not before it.",
           "places = prompt_lengths[:, None] - 1 + torch.arange(R, device=tokens.device)",
           "places = prompt_lengths[:, None] + torch.arange(R, device=tokens.device)",
           MODEL + "logprob_of_a_response_token_comes_from_the_position_before_it",
           "PPO stops before its first update: the first ratio is not 1, sampler and training forward "
           "disagree by many nats on a token.",
           ("ppo",)),
    Mutant("ppo-34", "train_ppo.py", "The adaptive beta moves the wrong way.",
           "min(max(kl / target - 1, -0.2), 0.2)",
           "min(max(1 - kl / target, -0.2), 0.2)",
           PPO + "adaptive_beta_of_the_worked_example",
           "With --kl_target 0.5 --kl_horizon 500 beta rises while the KL is below the target, and falls as "
           "soon as it is above.",
           ("ppo", "kl_coef", "kl"), "--kl_target 0.5 --kl_horizon 500"),
    Mutant("ppo-35", "train_ppo.py", "The reference is scored at another temperature than the policy.",
           "ref_logprobs = token_logprobs(ref_logits, responses, cfg.temperature)",
           "ref_logprobs = token_logprobs(ref_logits, responses)",
           PPO + "a_step_has_one_temperature",
           "None at temperature 1, the default. With --temperature 0.7 the sampled KL begins above 0, where "
           "the exact one is 0.",
           ("ppo", "kl", "kl_full"), "--temperature 0.7"),
    Mutant("ppo-36", "train_ppo.py", "One pass over the answers, whatever --ppo_epochs says.",
           "for _ in range(cfg.ppo_epochs):",
           "for _ in range(1):",
           PPO + "every_pass_takes_all_answers_in_a_new_order",
           "None with one pass, the default. With --ppo_epochs 4 an iteration takes no longer, and the "
           "numbers are those of one pass.",
           ("ppo",), "--ppo_epochs 4"),
    Mutant("ppo-37", "train_ppo.py", "Every pass takes the answers in the order in which they were sampled.",
           "torch.randperm(B).tensor_split(",
           "torch.arange(B).tensor_split(",
           PPO + "every_pass_takes_all_answers_in_a_new_order",
           "None that would be noticed, with --ppo_epochs 4, either: score and KL rise as usual.",
           ("ppo", "score", "kl"), "--ppo_epochs 4"),
    Mutant("ppo-38", "train_ppo.py", "The clip is 0.2, whatever --clip says.",
           "ratio.clamp(1 - clip, 1 + clip)",
           "ratio.clamp(0.8, 1.2)",
           PPO + "the_clip_is_as_wide_as_asked",
           "None at the default clip: the same numbers to the last digit."),
    Mutant("ppo-39", "train_ppo.py", "Gradients are not clipped.",
           "limit = cfg.clip_grad or torch.inf",
           "limit = torch.inf",
           PPO + "gradients_are_clipped_for_each_network_by_itself",
           "None that would be noticed: the policy's gradient norm is below the limit, and only the critic "
           "takes longer steps. The score rises as usual.",
           ("ppo", "score", "grad_norm")),
    Mutant("ppo-40", "train_ppo.py", "The loss on pretraining text is forgotten.",
           "if cfg.ptx_coef:",
           "if False:",
           PPO + "the_loss_on_pretraining_text_has_its_weight",
           "None at the default weight of 0. With --ptx_coef 1 the loss on pretraining text ends far above "
           "the usual.",
           ("ppo",), "--ptx_coef 1"),
    Mutant("ppo-41", "train_ppo.py", "Advantages are whitened, whatever --whiten_advantages says.",
           "if cfg.whiten_advantages:",
           "if True:",
           PPO + "only_the_advantages_are_whitened",
           "None by default. With --whiten_advantages false the numbers are those of the default.",
           ("ppo",), "--whiten_advantages false"),
    Mutant("ppo-42", "train_ppo.py", "Scores are whitened anew over each batch, whatever --score_scale says.",
           'statistics = (scorer.mean, scorer.std) if cfg.score_scale == "sft" else ()',
           "statistics = ()",
           PPO + "scores_are_in_deviations_of_sft_answers_or_of_the_batch",
           "Hardly any: no curve shows it reliably. The KL grows a little faster, which chance could do, "
           "too; the score rises as usual."),
    Mutant("ppo-43", "train_ppo.py", "A part of a batch is cut to the shortest of its answers.",
           "R = int(self.mask[rows].sum(1).max())",
           "R = int(self.mask[rows].sum(1).min())",
           PPO + "a_part_of_a_batch_is_cut_to_its_longest_answer",
           "The value loss starts at about half of the usual, and so does the gradient norm. In the end the "
           "critic explains less of the returns than usual.",
           ("ppo", "value_loss", "explained_variance")),
    Mutant("ppo-44", "train_ppo.py", "The adaptive beta moves, and nobody asks for it.",
           "ids, cfg, kl_coef)  # 1 to 4",
           "ids, cfg, cfg.kl_coef)  # 1 to 4",
           PPO + "beta_moves_by_the_kl_of_each_iteration",
           "None by default, where beta stays. With --kl_target 0.5 --kl_horizon 500 PPO stops within its "
           "first iterations: the rewards do not add up to score - beta KL, off by a little.",
           ("ppo",), "--kl_target 0.5 --kl_horizon 500"),
    Mutant("ppo-45", "train_ppo.py",
           "The score of an answer that was cut off counts, too, beside the penalty.",
           "scores = torch.where(ended, scores, -cfg.eos_penalty)",
           "scores = scores - cfg.eos_penalty * ~ended",
           PPO + "an_answer_that_was_cut_off_has_the_penalty_as_its_score",
           "None that would be noticed: nearly all answers end, and score, gold score and KL rise as usual."),
    # --------------------------------------------------------------------------------------------
    # Rejection sampling
    # --------------------------------------------------------------------------------------------
    Mutant("rs-1", "rejection_sampling.py", "The worst answer is kept.",
           "return rewards.argmax(1)",
           "return rewards.argmin(1)",
           ROUNDS + "the_best_answer_is_chosen_for_each_prompt",
           "Answers become worse with every round. The winners have a far lower mean reward than all answers "
           "together, and should have a far higher one.",
           ("rejection_sampling",)),
    Mutant("rs-2", "rejection_sampling.py",
           "Every prompt keeps the answer at the place where the best of the whole batch stands.",
           "return rewards.argmax(1)",
           "return (rewards.argmax() % rewards.shape[1]).expand(len(rewards))",
           ROUNDS + "the_best_answer_is_chosen_for_each_prompt",
           "A round changes nothing for the better. The winners have no higher mean reward than all answers "
           "together.",
           ("rejection_sampling",)),
    Mutant("rs-3", "rejection_sampling.py",
           "The best-of-n curve takes the best value, not that of the answer with the highest reward.",
           "ranked = values.gather(1, rewards.argsort(dim=1, stable=True))",
           "ranked = values.sort(dim=1).values",
           ROUNDS + "best_of_n_is_the_mean_over_all_choices_of_n",
           "The gold score of the best of n is a little too high. Nothing stands beside it that would show "
           "it.",
           ("rejection_sampling",)),
    Mutant("rs-4", "rejection_sampling.py", "Every round samples the SFT model, not that of the last round.",
           "texts, scores = sample_and_score(policy, enc, scorer, prompts, cfg)\n            # 2.",
           "texts, scores = sample_and_score(sft, enc, scorer, prompts, cfg)\n            # 2.",
           ROUNDS + "a_round_samples_from_the_model_of_the_round_before",
           "Nobody has compared whole runs with it: its test sees it."),
    # --------------------------------------------------------------------------------------------
    # Elo
    # --------------------------------------------------------------------------------------------
    Mutant("elo-1", "preferences.py",
           "The expected score is turned round: the favourite is expected to lose.",
           "expected = 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400))",
           "expected = 1 / (1 + 10 ** ((rating[i] - rating[j]) / 400))",
           PREFERENCES + "elo_by_hand",
           "None by default. With more than one pass the ratings run away, to many times the usual (python "
           "docs/experiments.py elo).",
           ("elo",)),
    Mutant("elo-2", "preferences.py", "The winner takes points that nobody loses.",
           "            rating[i] += points\n"
           "            rating[j] -= points\n",
           "            rating[i] += points\n",
           PREFERENCES + "elo_takes_from_one_what_it_gives_to_the_other[rankings0]",
           "None by default. In python docs/experiments.py elo no rating is below 1000, and the last one is "
           "1000 after 100 passes, too.",
           ("elo",)),
    Mutant("elo-3", "preferences.py", "A tie is a win of the one that is named first.",
           "points = k_factor * ((1.0 if apart else 0.5) - expected)",
           "points = k_factor * (1.0 - expected)",
           PREFERENCES + "elo_by_hand",
           "None by default, nor for a ranking without ties. With --loss regression answers that tie are "
           "taught different scores, the one named first the highest."),
    # --------------------------------------------------------------------------------------------
    # The run
    # --------------------------------------------------------------------------------------------
    Mutant("run-1", "lab/records.py", "A run that goes on draws its random numbers from the beginning again.",
           'set_random_state(checkpoint["random"])',
           'torch.manual_seed(checkpoint["knobs"]["seed"])',
           RUN + "the_same_command_goes_on_and_the_result_is_that_of_a_straight_run",
           "None in a straight run. One that was stopped and went on has other numbers from there on than "
           "one that was not."),
    Mutant("run-2", "lab/records.py", "A run that goes on has lost the optimizer's memory.",
           "        for name, thing in objects.items():\n"
           "            thing.load_state_dict(checkpoint[name])",
           '        objects["model"].load_state_dict(checkpoint["model"])',
           RUN + "the_same_command_goes_on_and_the_result_is_that_of_a_straight_run",
           "None in a straight run. One that was stopped and went on has other numbers from there on than "
           "one that was not."),
    Mutant("run-3", "lab/cli.py", "An unknown flag is accepted and ignored.",
           "    if unknown:\n",
           '    if unknown and not unknown[0].startswith("-"):\n',
           CLI + "a_wrong_command_line_is_one_line_that_says_what_would_be_right[--stepz 3---steps]",
           "A typo costs a day: --kl_coeff 0 trains with the usual beta, and nobody says a word.",
           ("ppo",), "--kl_coeff 0"),
    Mutant("run-4", "train_ppo.py", "A preset has a knob that does not exist.",
           "lr=5e-5, critic_lr=1e-4, eval_answers=1),",
           "lr=5e-5, critic_lr=1e-4, eval_answer=1),",
           CLI + "every_preset_of_every_script_builds[train_ppo]",
           "None in the tiny world. With --config small the table at the end takes four answers a prompt, "
           "and four times as long."),
    Mutant("run-5", "train_ppo.py", "Nothing reads a knob.",
           "return Agent(policy, policy, cfg.value_coef).eval()",
           "return Agent(policy, policy, 0.1).eval()",
           CLI + "every_knob_is_read_somewhere_and_has_a_reason[train_ppo]",
           "None at the default knobs. With --critic shared any --value_coef gives the same run to the last "
           "digit.",
           ("ppo",), "--critic shared --value_coef 1"),
    Mutant("run-6", "model.py",
           "A copy of a model shares its memory with the original: whoever trains the one trains the "
           "other.",
           "new.load_state_dict(known, strict=False)",
           "new.load_state_dict(known, strict=False, assign=True)",
           MODEL + "with_heads_copies_the_trunk_and_only_the_heads_asked_for",
           "The gold score rises, then falls below where it began. The KL is 0 all the time, the score "
           "soars, the answers shrink to a few tokens; after the last iteration PPO stops: the reference or "
           "a reward model changed.",
           ("ppo", "gold", "score")),
    Mutant("run-7", "train_ppo.py", "The reference is the policy itself.",
           "return Agent(with_heads(reference), critic).eval()",
           "return Agent(reference, critic).eval()",
           PPO + "the_reference_stays_where_it_was",
           "The KL is 0 in all iterations. After the last one PPO stops: the reference or a reward model "
           "changed.",
           ("ppo", "kl", "score")),
    # --------------------------------------------------------------------------------------------
    # The AI judge
    # --------------------------------------------------------------------------------------------
    Mutant("judge-1", "world/judge.py", "The judge is asked in one order only.",
           "back = self.compare(asked, two, one, aspect) if self.both_orders else [math.nan] * len(pairs)",
           "back = [math.nan] * len(pairs)",
           JUDGE + "both_orders_are_averaged",
           "The summary of the labels says that the same position won in both orders in 0 of the pairs, "
           "where it does in a good part of them. Labels cost half the time.",
           ("rankings_ai",)),
    Mutant("judge-2", "world/judge.py", "The second order is not turned back: p in place of 1 - p.",
           "[p for p in (p_there, 1 - p_back) if not math.isnan(p)]",
           "[p for p in (p_there, p_back) if not math.isnan(p)]",
           JUDGE + "both_orders_are_averaged",
           "Labels agree with the gold score in about one half of the pairs, which is guessing. They are all "
           "close to one half, too.",
           ("rankings_ai",)),
    Mutant("judge-3", "world/judge.py", "The ratings are counted from 0 to 9, not from 1 to 10.",
           "s = sum(i * p for i, p in probabilities.items())",
           "s = sum((i - 1) * p for i, p in probabilities.items())",
           JUDGE + "expected_rating_by_hand",
           "The printed ratings are lower by two ninths. What PPO makes of them is the same, for it whitens "
           "them.",
           ("direct",)),
    Mutant("judge-4", "world/judge.py", "The digits are swapped: 1 means the second answer.",
           'found.get("2", UNLISTED) - found.get("1", UNLISTED)',
           'found.get("1", UNLISTED) - found.get("2", UNLISTED)',
           JUDGE + "a_label_is_the_softmax_over_1_and_2",
           "Labels agree with the gold score in far less than one half of the pairs.",
           ("rankings_ai",)),
    Mutant("judge-5", "data.py", "A soft label keeps its probability where its pair is turned round.",
           "(i, j, p) if p >= 0.5 else (j, i, 1 - p)",
           "(i, j, p) if p >= 0.5 else (j, i, p)",
           JUDGE + "soft_labels_reach_the_loss",
           "The AI is said to agree with the gold score in about one half of the pairs, which is guessing.",
           ("rm_ai",)),
    Mutant("judge-6", "world/judge.py", "A rating of 10, which is 1 and then 0, is read as 1.",
           'unsure = [i for i, f in enumerate(found) if "10" not in f and f.get("1", UNLISTED) > '
           "math.log(0.001)]",
           "unsure = []",
           JUDGE + "ten_is_one_and_then_zero_where_it_is_no_token_of_its_own",
           "Hardly any with our own judge, whose ratings hardly change, for it rarely says 10.",
           ("direct",)),
    # --------------------------------------------------------------------------------------------
    # DPO, RLOO, GRPO
    # --------------------------------------------------------------------------------------------
    Mutant("dpo-1", "docs/alternatives.py", "The sign: the worse answer becomes the likelier one.",
           "bradley_terry_loss(r_chosen, r_rejected, p",
           "bradley_terry_loss(r_rejected, r_chosen, p",
           OTHERS + "dpo_counts_what_the_policy_changed",
           "The loss falls as usual, but the share of pairs that the implicit reward ranks right falls "
           "below one half, where it should rise.",
           ("dpo", "accuracy", "loss")),
    Mutant("dpo-2", "docs/alternatives.py", "The reference is left out.",
           "r_chosen, r_rejected = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)",
           "r_chosen, r_rejected = beta * chosen, beta * rejected",
           OTHERS + "dpo_counts_what_the_policy_changed",
           "The loss does not begin at the logarithm of two, where it begins in every right run: before the "
           "first step the policy has changed nothing.",
           ("dpo", "loss")),
    Mutant("dpo-3", "docs/alternatives.py", "The reference is the policy itself.",
           "ref = answer_logprobs(reference, enc, prompts, responses)",
           "ref = answer_logprobs(policy, enc, prompts, responses)",
           OTHERS + "dpo_learns_to_rank_and_its_reference_stays",
           "The loss is the logarithm of two in all steps, and the share of pairs ranked right is 0.",
           ("dpo", "loss", "accuracy")),
    Mutant("dpo-4", "docs/alternatives.py", "The mean log-probability of a token, not that of the answer.",
           "return logprobs.new_zeros(len(rows)).index_add(0, row, logprobs)",
           "return logprobs.new_zeros(len(rows)).index_add(0, row, logprobs) / mask.sum(1)",
           OTHERS + "log_probabilities_are_those_of_whole_answers",
           "The loss falls by much less than usual: a pair differs in a few hundredths where it should "
           "differ in whole nats.",
           ("dpo", "loss")),
    Mutant("dpo-5", "docs/alternatives.py", "The tokens of the prompt and of the padding count, too.",
           "row, t = mask.nonzero(as_tuple=True)",
           "row, t = torch.ones_like(mask).nonzero(as_tuple=True)",
           OTHERS + "log_probabilities_are_those_of_whole_answers",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("dpo-6", "docs/alternatives.py", "A doubtful label counts as a sure one.",
           "(r_chosen, r_rejected, p_chosen=p_chosen)",
           "(r_chosen, r_rejected)",
           OTHERS + "dpo_with_a_doubtful_label",
           "None with the simulated human, whose labels are sure. With those of an AI the loss falls lower "
           "than the doubt in the labels allows."),
    Mutant("rloo-1", "docs/alternatives.py", "The baseline holds the answer itself.",
           "others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)",
           "others = rewards.mean(1, keepdim=True)",
           OTHERS + "rloo_advantages_by_leaving_one_out",
           "None that would be noticed: each advantage is smaller by the same factor, and Adam divides by "
           "the size of the gradient anyway. Only the test sees it."),
    Mutant("rloo-2", "docs/alternatives.py", "The price of the KL is forgotten: paid is the score alone.",
           "return rloo_advantages(batch.rewards.sum(1).view(-1, cfg.answers)).flatten()",
           "return rloo_advantages(batch.scores.view(-1, cfg.answers)).flatten()",
           OTHERS + "what_rloo_is_paid_for_holds_the_kl",
           "The KL goes on growing, beyond what is usual, for nothing holds the policy back.",
           ("rloo", "kl")),
    Mutant("rloo-3", "docs/alternatives.py", "The mean over an answer's tokens in place of the sum.",
           "return -(advantages * (logprobs * mask).sum(1)).mean()",
           "return -(advantages * (logprobs * mask).sum(1) / mask.sum(1)).mean()",
           OTHERS + "rloo_loss_is_a_mean_over_answers_of_whole_answers",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("rloo-4", "docs/alternatives.py", "The sign of the loss: good answers become rarer.",
           "return -(advantages * (logprobs * mask).sum(1)).mean()",
           "return (advantages * (logprobs * mask).sum(1)).mean()",
           OTHERS + "an_update_makes_the_better_answers_likelier[rloo]",
           "The score falls where it should rise, and the gold score with it.",
           ("rloo", "score", "gold")),
    Mutant("rloo-5", "docs/alternatives.py", "The padding behind an answer counts as answer.",
           "return -(advantages * (logprobs * mask).sum(1)).mean()",
           "return -(advantages * logprobs.sum(1)).mean()",
           OTHERS + "rloo_loss_is_a_mean_over_answers_of_whole_answers",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("rloo-6", "docs/alternatives.py",
           "Answers to one prompt do not stand one behind another: each is compared with answers to others.",
           "torch.randint(len(prompts), (cfg.prompts,)).repeat_interleave(cfg.answers).tolist()",
           "torch.randint(len(prompts), (cfg.prompts,)).repeat(cfg.answers).tolist()",
           OTHERS + "answers_to_a_prompt_stand_one_behind_another",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("rloo-7", "docs/alternatives.py", "The answers are shuffled, their advantages are not.",
           "loss = policy_loss(policy, batch.take(rows), advantages[rows], cfg, ppo)",
           "loss = policy_loss(policy, batch.take(rows), advantages[: len(rows)], cfg, ppo)",
           OTHERS + "an_update_makes_the_better_answers_likelier[rloo]",
           "The score stays near 0, where it begins, and so does the gold score.",
           ("rloo", "score", "gold")),
    Mutant("grpo-1", "docs/alternatives.py", "The deviation is that of the whole batch, not of a prompt's.",
           "return (scores - mean) / (scores.std(1, correction=0, keepdim=True) + 1e-6)",
           "return (scores - mean) / (scores.std(correction=0) + 1e-6)",
           OTHERS + "grpo_advantages_have_mean_0_and_deviation_1_for_each_prompt",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("grpo-2", "docs/alternatives.py", "The answers of different prompts are one group.",
           "return grpo_advantages(batch.scores.view(-1, cfg.answers)).flatten()",
           "return grpo_advantages(batch.scores.view(cfg.answers, -1)).flatten()",
           OTHERS + "what_rloo_is_paid_for_holds_the_kl",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("grpo-3", "docs/alternatives.py", "The sign of the difference in k3: it is that of the other KL.",
           "k3 = torch.exp(-d) - 1 + d",
           "k3 = torch.exp(d) - 1 - d",
           OTHERS + "grpo_loss_term_by_term",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("grpo-4", "docs/alternatives.py", "The KL is a gain: the policy is paid for going away.",
           "return (((k3_coef * k3 - gain) * mask).sum(1) / mask.sum(1)).mean()",
           "return (((-k3_coef * k3 - gain) * mask).sum(1) / mask.sum(1)).mean()",
           OTHERS + "grpo_pulls_towards_the_reference",
           "The KL grows far above the usual, the answers grow longer, and the gold score stays lower.",
           ("grpo", "kl", "length")),
    Mutant("grpo-5", "docs/alternatives.py",
           "The mean over all columns: short answers count less than long ones, by their padding.",
           "return (((k3_coef * k3 - gain) * mask).sum(1) / mask.sum(1)).mean()",
           "return ((k3_coef * k3 - gain) * mask).mean()",
           OTHERS + "grpo_loss_term_by_term",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("grpo-6", "docs/alternatives.py", "max in place of min: what has moved too far is pushed on.",
           "gain = torch.min(A * ratio, A * clipped)",
           "gain = torch.max(A * ratio, A * clipped)",
           OTHERS + "grpo_loss_term_by_term",
           "Nobody has compared whole runs with it: its test sees it."),
    Mutant("grpo-7", "docs/alternatives.py", "The ratio is always 1: of new to new, not to old.",
           "grpo_loss(logprobs, mb.old_logprobs,",
           "grpo_loss(logprobs, logprobs.detach(),",
           OTHERS + "grpo_is_clipped_and_pays_with_its_own_coefficient",
           "Nobody has compared whole runs with it: its test sees it."),
]

GALLERY = ("pretrain-1", "pretrain-2", "sft-3", "sft-5", "rm-1", "rm-2", "sampler-1", "sampler-5", "ppo-2",
           "ppo-7", "ppo-19", "ppo-16", "ppo-18", "ppo-22", "ppo-24", "ppo-27", "ppo-32", "run-6")

# ------------------------------------------------------------------------------------------------
# Broken copies
# ------------------------------------------------------------------------------------------------
# What a copy consists of. It has no trace of this file, its test or its picture, and all files of a copy are
# equally old.
PARTS = ("*.py", "*.md", "*.txt", "*.toml", "LICENSE", "world/*.py", "lab/*.py", "tests/*.py", "docs/**/*.py",
         "docs/**/*.md", "docs/**/*.png")
OURS = ("mutants.py", "test_mutants.py", "bugs.png", "teaching.md", "teaching-answers.md")
SOLVES = ("docs/alternatives.py",)  # some problems in passing


def problem(mutant):
    """Why a mutant cannot be made, "" where it can."""
    n = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.right)
    return "" if n == 1 else f"its right line is in {mutant.file} {n} times and must be there once"


def broken(mutant):
    """The text of the mutant's file with the bug in it. Raises Mistake where the right line is not there
    exactly once."""
    if problem(mutant):
        raise Mistake(f"{mutant.name}: {problem(mutant)}")
    return (ROOT / mutant.file).read_text(encoding="utf-8").replace(mutant.right, mutant.wrong)


def copy_to(folder, mutant=None, tests=True, solved=ALL):
    """Write a copy of the repository into a new folder, with the bug of a mutant in it. solved: the problems
    of tests/assignment.py that are solved there."""
    changed = {ROOT / mutant.file: broken(mutant).encode("utf-8")} if mutant else {}
    others = ()
    if solved != ALL:
        changed |= {ROOT / file: blank_but(file, solved, mutant) for file in FILES}
        others = [ROOT / name for name in SOLVES if name != mutant.file]
    parts = [part for part in PARTS if tests or part != "tests/*.py"]
    for path in sorted({path for part in parts for path in ROOT.glob(part)}.difference(others)):
        if path.name not in OURS:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(changed.get(path) or path.read_bytes())


def blank_but(file, solved, mutant):
    """The bytes of a file with only some of the problems solved, and the bug in it. Raises Mistake where the
    bug is in what is blank then."""
    text = blanked(file, solved)
    if file == mutant.file:
        if mutant.right not in text:
            raise Mistake(f"{mutant.name} is in a function of {file} that --solved leaves blank: name its "
                          "problem, too")
        text = text.replace(mutant.right, mutant.wrong)
    return text.encode("utf-8")


# ------------------------------------------------------------------------------------------------
# Does its test fail?
# ------------------------------------------------------------------------------------------------
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
# What a test, or a check inside the code, says when it finds a bug. Anything else, such as a NameError, says
# that the mutant is no silent bug.
FOUND = re.compile(r"assert|AssertionError|Failed: DID NOT RAISE|SystemExit|lab\.cli\.InvariantError")


def run_tests(folder, tests):
    """Run some tests of a copy in this process, which is good for nothing afterwards. Returns ({test: None
    where it passed, else what it said}, seconds)."""
    import pytest

    class Ears:
        def pytest_runtest_makereport(self, item, call):
            if call.excinfo:
                first_line = call.excinfo.exconly().partition("\n")[0]
                said[item.nodeid] = first_line if call.when == "call" else f"{call.when}: {first_line}"
            elif call.when == "call":
                said[item.nodeid] = None

        def pytest_collectreport(self, report):
            if report.failed:
                last_line = report.longreprtext.strip().rpartition("\n")[2]
                said.update(dict.fromkeys(tests, f"did not run: {last_line}"))

    began, said = time.time(), dict.fromkeys(tests, "did not run: there is no such test")
    os.chdir(folder)
    sys.dont_write_bytecode = True
    ours = (ROOT, ROOT / "tests")  # it is the copy's files that are to be imported
    sys.path = [path for path in sys.path if Path(path).resolve() not in ours]
    gc.freeze()  # pytest collects garbage when it ends, and torch has many objects
    quick = ["-p", "no:cacheprovider", "--assert=plain"]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", *quick, "--rootdir", ".", *tests], plugins=[Ears()])
    return said, time.time() - began


def verdict(before, after):
    """What became of a mutant: "killed", or why not. before, after: what its test said without and with it,
    None where it passed."""
    if before is not None:
        return f"its test fails without it: {before}"
    if after is None:
        return "SURVIVED"
    return "killed" if FOUND.match(after) else f"not found, but: {after}"


def prove(mutants, jobs):
    """Run the test of every mutant with and without it, print a line each. Returns whether all were
    killed."""
    os.environ.update(ENVIRONMENT)
    # A process of its own for every mutant. Importing torch takes longer than most tests: where the system
    # can, they start with it imported.
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    starts = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        starts.set_forkserver_preload(["pytest", "tiktoken", "torch", "torch._dynamo", "matplotlib.pyplot"])
    began, killed, tests = time.time(), 0, sorted({mutant.test for mutant in mutants})
    pool = ProcessPoolExecutor(jobs, starts, max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, pool:
        def start(name, tests, mutant=None):
            copy_to(Path(folder, name), mutant)
            return pool.submit(run_tests, Path(folder, name), tests)

        before, seconds = start("right", tests).result()
        passed = sum(said is None for said in before.values())
        print(f"{passed} of {len(tests)} tests pass without a bug ({seconds:.0f} s). With it:\n", flush=True)
        attempts = [None if problem(mutant) else start(mutant.name, [mutant.test], mutant)
                    for mutant in mutants]
        for mutant, attempt in zip(mutants, attempts, strict=True):
            after, seconds = attempt.result() if attempt else ({mutant.test: problem(mutant)}, 0.0)
            result = verdict(before[mutant.test], after[mutant.test])
            killed += result == "killed"
            print(f"{mutant.name:<11}{result:<9}{seconds:5.1f} s  {mutant.what}  "
                  f"[{mutant.test.partition('::')[2]}]", flush=True)
    print(f"\n{killed} of {len(mutants)} killed in {time.time() - began:.0f} s")
    return killed == len(mutants)


# ------------------------------------------------------------------------------------------------
# What a person sees of it
# ------------------------------------------------------------------------------------------------
# A stage as it is run to see a bug, often shorter than by default, and the files that it starts from.
STAGES = {
    "pretrain": ("train_pretrain.py --steps 200 --eval_every 20", ()),
    "sft": ("train_sft.py --eval_split dev --eval_every 20", ("pretrain.pt",)),
    "rm": ("train_rm.py --epochs 1 --eval_every 20",
           ("pretrain.pt", "sft.pt", "rankings.jsonl", "rankings.json")),
    "ppo": ("train_ppo.py --eval_split dev --eval_answers 1 --steps 30", ("pretrain.pt", "sft.pt", "rm.pt")),
    "rejection_sampling": ("rejection_sampling.py --eval_split dev --eval_answers 1 --rounds 2",
                           ("pretrain.pt", "sft.pt", "rankings.jsonl", "rankings.json", "rm.pt")),
    "llama2": ("train_ppo.py --reward llama2", ("pretrain.pt", "sft.pt", "rm_helpful.pt", "rm_safety.pt")),
    "rankings_ai": ("preferences.py --labeler ai", ("pretrain.pt", "sft.pt", "judge.pt")),
    "rm_ai": ("train_rm.py --rankings rankings_ai",
              ("pretrain.pt", "sft.pt", "rankings_ai.jsonl", "rankings_ai.json")),
    "direct": ("train_ppo.py --reward ai", ("pretrain.pt", "sft.pt", "judge.pt")),
    "elo": ("docs/experiments.py elo", ("pretrain.pt", "sft.pt", "rankings.jsonl", "rankings.json")),
    "dpo": ("docs/alternatives.py --method dpo --eval_split dev",
            ("pretrain.pt", "sft.pt", "rankings.jsonl", "rankings.json", "rm.pt")),
    "rloo": ("docs/alternatives.py --method rloo --eval_split dev --steps 30",
             ("pretrain.pt", "sft.pt", "rm.pt")),
    "grpo": ("docs/alternatives.py --method grpo --eval_split dev --steps 30",
             ("pretrain.pt", "sft.pt", "rm.pt")),
}
METRICS = {
    "loss": "training loss",
    "test_loss": "held-out loss, nats a token",
    "accuracy": "share of training pairs ranked right",
    "held_out_accuracy": "share of held-out pairs ranked right",
    "score": "reward-model score, SD",
    "gold": "gold score, points",
    "kl": "KL to SFT, k1, nats an answer",
    "kl_k3": "KL to SFT, k3, nats an answer",
    "kl_full": "KL to SFT, exact, nats an answer",
    "kl_coef": "beta",
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "length": "tokens an answer",
    "ends": "share of answers that end",
    "clip_fraction": "share of tokens clipped",
    "approx_kl": "KL from old to new policy, nats a token",
    "grad_norm": "gradient norm",
    "explained_variance": "critic's explained variance",
    "entropy": "entropy, nats a token",
}
RIGHT, WRONG = "#2a6fdb", "#d9662b"


def train(mutant, stage, flags, run_folder):
    """Train a stage in a broken copy (mutant None: a right one), from the parents of a finished run. Returns
    the rows of its metrics, and the sentence with which it stopped, "" where it came to its end."""
    command, parents = STAGES[stage]
    script, *knobs = [*command.split(), *flags.split()]
    with tempfile.TemporaryDirectory() as folder:
        run, code = Path(folder, "runs", "tiny"), Path(folder, "code")
        shutil.copytree(run_folder / "data", run / "data")
        for name in ("tokenizer.json", *parents):
            shutil.copy(run_folder / name, run / name)
        copy_to(code, mutant)
        which = ["--run", "tiny", "--name", "shown", "--device", "cpu"]
        done = subprocess.run([sys.executable, code / script, *which, *knobs], cwd=folder, env=ENVIRONMENT,
                              capture_output=True, text=True, encoding="utf-8")
        metrics = run / "shown.jsonl"
        text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
        return rows, done.stderr.strip().splitlines()[-1] if done.returncode else ""


def trained(mutants, run_folder, jobs):
    """Train the stages that these mutants need, right and wrong. Returns {(mutant's name or "right", stage,
    flags): (rows, why it stopped)}."""
    wanted = {}
    for m in mutants:
        wanted["right", m.curves[0], m.flags] = None
        wanted[m.name, m.curves[0], m.flags] = m
    for _, stage, _ in wanted:
        for name in ("data", "tokenizer.json", *STAGES[stage][1]):
            if not (run_folder / name).exists():
                raise Mistake(f"{run_folder / name} is not there: --run-folder takes a finished run, and "
                              "python train_ppo.py --config tiny makes one")

    def one(key, mutant):
        began, result = time.time(), train(mutant, *key[1:], run_folder)
        print(f"{key[0]}: {key[1]} {key[2]} {time.time() - began:.0f} s {result[1]}", flush=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        runs = dict(zip(wanted, pool.map(one, wanted, wanted.values()), strict=True))
    for (name, stage, flags), (rows, stopped) in runs.items():
        if not rows:
            raise Mistake(f"{name}: {stage} {flags} has no curve to draw, it stopped at once: {stopped}")
    return runs


def draw(axis, metric, right, wrong):
    """One metric of a stage, right against wrong, a cross where a run stopped. Where the wrong curve goes far
    away it leaves the picture for a while."""
    shown = []
    for (rows, stopped), color, label in ((right, RIGHT, "right"), (wrong, WRONG, "wrong")):
        points = [(row["step"], row[metric]) for row in rows
                  if row[metric] is not None and math.isfinite(row[metric])]
        marker = "x" if stopped else None
        axis.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.6, marker=marker,
                  markevery=[-1])
        shown.append([y for _, y in points])
    low, high, wrong = min(shown[0]), max(shown[0]), sorted(shown[1])
    # Three quarters of the wrong curve at either end are always in the picture.
    room, quarter = 2 * (high - low) or 1.0, len(wrong) // 4
    bottom = max(min(low, wrong[0]), min(low - room, wrong[quarter]))
    top = min(max(high, wrong[-1]), max(high + room, wrong[-1 - quarter]))
    axis.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
    axis.set_ylabel(textwrap.fill(METRICS[metric], 26), fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def picture(path, panels, columns, title, caption):
    """Curves with a text above and below each. panels: [(above, below, metric, (rows, why it stopped) of the
    right version, the same of the wrong one)]."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image  # matplotlib brings it along

    lines, width = math.ceil(len(panels) / columns), 93 // columns
    size = (8, 2.5 * lines + 1)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (above, below, *curves) in zip(axes.flat, panels, strict=False):
        draw(axis, *curves)
        axis.set_title(textwrap.fill(above, width), fontsize=8.5, loc="left")
        axis.set_xlabel("step\n" + textwrap.fill(below, width), fontsize=8.5, loc="left")
    axes.flat[0].legend(fontsize=8, frameon=False)
    figure.suptitle(textwrap.fill(title, 100), fontsize=10, x=0.01, ha="left")
    figure.supxlabel(textwrap.fill(caption, 116), fontsize=8.5, x=0.01, ha="left")
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
    with Image.open(path) as drawn:  # a few colours are enough, and make a quarter of the file
        few = drawn.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def symptom(mutant, out, run_folder, jobs):
    """Draw what shows one mutant."""
    stage, *metrics = mutant.curves or (None,)
    if not metrics:
        raise Mistake(f"{mutant.name}: no curve shows it. {mutant.symptom}")
    runs = trained([mutant], run_folder, jobs)
    pair = [runs[name, stage, mutant.flags] for name in ("right", mutant.name)]
    panels = [("", "", metric, *pair) for metric in metrics]
    command = f"{STAGES[stage][0]} {mutant.flags}".strip()
    picture(out, panels, len(metrics), mutant.name, f"{mutant.symptom} ({command})")


def gallery(out, run_folder, jobs):
    """Draw the most telling ones, the first metric of each."""
    mutants = [by_name(name) for name in GALLERY]
    runs = trained(mutants, run_folder, jobs)
    panels = []
    for m in mutants:
        stage, metric, *_ = m.curves
        seen = m.symptom.partition(". ")[0].rstrip(".") + "."
        panels.append((m.name, seen, metric, runs["right", stage, m.flags], runs[m.name, stage, m.flags]))
    picture(out, panels, 3, "What a silent bug looks like: a stage of the tiny world, right (blue) and wrong "
            "(orange)", "python tests/mutants.py apply NAME --answer says what is wrong.")


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def by_name(name):
    """The mutant of that name. Raises Mistake where there is none."""
    if found := [mutant for mutant in MUTANTS if mutant.name == name]:
        return found[0]
    raise Mistake(f"{name}: no mutant has this name; python tests/mutants.py list shows all of them")


def how_to_see(mutant, out):
    """The commands that show the symptom in the broken copy OUT, and what they take from a right run."""
    if not mutant.curves:
        return "No command shows it for sure: only the right test does."
    stage = mutant.curves[0]
    recipe, parents = STAGES[stage]
    script, *knobs = [*recipe.split(), *mutant.flags.split()]
    if script != "docs/experiments.py":
        knobs = ["--config", "tiny", *knobs, "--name", "broken"]
    told = f"To see the symptom, make {stage} in it."
    if parents:
        right = ", ".join(Path(name).stem for name in parents if not name.endswith(".json"))
        told += (f" What that starts from ({right}) is to be right: first copy a finished runs/tiny of "
                 f"the right code to {out / 'runs/tiny'}, and nothing else is trained.")
    command = " ".join(["python", script, *knobs])
    return (f"{told}\n\n    cd {shlex.quote(str(out))}\n    {command}\n\n"
            "The same command with the right code shows what is usual.")


def apply(mutant, out, answer, solved=ALL):
    """Write the exercise and print its symptom and how to see it, or print its solution. solved: see
    copy_to."""
    if answer:
        print(f"{mutant.file}: {mutant.what}\n\nwrong:\n{mutant.wrong}\n\nright:\n{mutant.right}\n\n"
              f"Its test: {mutant.test}")
    elif out is None:
        raise Mistake("apply NAME OUT writes the broken copy to the new folder OUT, apply NAME --answer "
                      "prints the solution")
    elif out.exists():
        raise Mistake(f"{out} exists already: name a folder that does not")
    elif ROOT in out.resolve().parents:
        raise Mistake(f"{out} is inside this repository: name a folder outside, where the right code is not "
                      "next to it")
    else:
        copy_to(out, mutant, tests=False, solved=solved)
        print(f"{mutant.symptom}\n\n{out} has one wrong place, and no tests: they would name it.\n"
              f"{how_to_see(mutant, out)}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"mutants.py: {message} (-h shows all commands)\n")


def main(argv=None):
    """Returns the exit code: 0, or 1 where a mutant was not killed."""
    parser = parser_of_commands()
    args = parser.parse_args(argv)
    try:
        if args.jobs < 1:
            raise Mistake(f"--jobs {args.jobs}: at least 1")
        if args.command is None:
            return 0 if prove([by_name(name) for name in args.only] or MUTANTS, args.jobs) else 1
        if args.command == "list":
            width = min(100, shutil.get_terminal_size((100, 24)).columns)
            for m in MUTANTS:
                print(textwrap.fill(f"{m.name:<12}{m.symptom}", width, subsequent_indent=" " * 12,
                                    break_on_hyphens=False))
        elif args.command == "apply":
            solved = numbers_in(args.solved, "--solved") if args.solved else ALL
            apply(by_name(args.name), args.out, args.answer, solved)
        elif args.out.suffix != ".png" or not args.out.resolve().parent.is_dir():
            raise Mistake(f"{args.out}: expected a .png file in a folder that is there")
        elif args.command == "symptom":
            symptom(by_name(args.name), args.out, args.run_folder, args.jobs)
        else:
            gallery(args.out, args.run_folder, args.jobs)
    except BrokenPipeError:
        if args.command != "list":
            raise
        # `list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Mistake as error:
        parser.exit(2, f"mutants.py: {error}\n")
    return 0


def parser_of_commands():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    jobs = {"type": int, "metavar": "N",
            "help": "processes at a time, each with one thread (default: one a core)"}
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these mutants alone")
    parser.add_argument("--jobs", default=os.cpu_count(), **jobs)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    commands.add_parser("list", help="names and symptoms")
    exercise = commands.add_parser("apply", help="a broken copy")
    one = commands.add_parser("symptom", help="a picture of one")
    many = commands.add_parser("gallery", help="a picture of many")
    for command in (exercise, one):
        command.add_argument("name", metavar="NAME")
    exercise.add_argument("out", metavar="OUT", type=Path, nargs="?", help="a new folder")
    exercise.add_argument("--answer", action="store_true", help="print the solution instead")
    exercise.add_argument("--solved", metavar="NUMBERS",
                          help="leave all problems of the assignment but these blank, as in 1-3")
    for command in (one, many):
        command.add_argument("out", metavar="OUT", type=Path, help="a .png file")
        command.add_argument("--run-folder", type=Path, default=Path("runs/tiny"), metavar="FOLDER",
                             help="a finished run (default: runs/tiny)")
        command.add_argument("--jobs", default=argparse.SUPPRESS, **jobs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
