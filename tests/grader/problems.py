"""The table of problems: what is to be written, what it is worth, and which tests grade it."""
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Mistake(Exception):
    """What whoever typed the command can mend; one sentence."""


class Test(NamedTuple):
    node: str  # as pytest calls it
    core: bool  # where it fails, the problem earns nothing
    weight: int


class Problem(NamedTuple):
    title: str
    points: int
    functions: dict  # file: names of the functions to write
    tests: dict  # room: its tests that grade it; {"data": "*a b:6"}: test_a, core, and test_b, of weight 6
    task: str
    needs: tuple = ()  # numbers of the problems without which its tests cannot pass

    def graded(self):
        """The tests, each a Test."""
        found = []
        for room, words in self.tests.items():
            for word in words.split():
                name, _, weight = word.removeprefix("*").partition(":")
                node = f"tests/test_{room}.py::test_{name}"
                found.append(Test(node, word.startswith("*"), int(weight or 1)))
        return found

    def nodes(self):
        """The tests as pytest calls them."""
        return [test.node for test in self.graded()]


PROBLEMS = [
    Problem(
        "The language-model loss", 5, {"train_pretrain.py": "lm_loss"},
        {"train_pretrain": """
            *loss_is_the_mean_of_minus_log_p
            the_loss_falls_as_the_target_becomes_likelier
            large_logits_stay_finite
         """},
        """
        Minus the logarithm of the probability that the model gives to the token that really comes next, in
        the mean over all positions of all rows. The targets are shifted already.
        """),
    Problem(
        "The mask of supervised fine-tuning", 8, {"data.py": "sft_batch", "train_sft.py": "sft_loss"},
        {"train_sft": """
            *targets_are_the_next_tokens_and_the_mask_is_on_the_answer
            *loss_by_hand
            descending_the_loss_makes_the_answer_likelier
            *batched_loss_equals_the_answers_one_token_at_a_time
            every_answer_token_and_no_other_is_supervised
            the_model_learns_to_end
         """,
         "data": "mask_of_demonstrations_covers_the_answer_and_its_eos"},
        """
        Lay prompt and answer end to end, shift by one, and mark which targets belong to the answer, its EOS
        included; `pad_rows` is there. Then the loss: as in problem 1, but only over the marked targets,
        divided by their number.
        """),
    Problem(
        "Sampling", 12, {"model.py": "generate"},
        {"model": """
            *cached_greedy_equals_the_naive_sampler_for_ragged_prompts
            *returned_logprobs_are_those_of_the_distribution_that_was_sampled
            eos_is_in_the_mask_and_nothing_behind_it
            an_answer_that_never_ends_has_a_full_mask
            *temperature_divides_the_logits
            rows_and_steps_do_not_share_one_random_number
            model_and_arguments_stay_as_they_were
            the_same_seed_gives_the_same_answers
         """},
        """
        Token by token: the logits behind a row's last real token, divided by the temperature
        (`log_softmax`), give a distribution; draw from it (`draw`; at temperature 0 it takes the likeliest),
        remember its log-probability, append it at the row's own length, and stop a row at its EOS. Without a
        cache, by a full forward for each token, is right, too; `GPT.hidden` takes caches for those who want
        speed.
        """),
    Problem(
        "The Bradley-Terry loss", 6, {"train_rm.py": "bradley_terry_loss"},
        {"train_rm": """
            *loss_by_hand
            *the_gradient_is_sigmoid_minus_1
            large_differences_stay_finite
            a_margin_asks_for_a_larger_difference
            soft_labels_are_a_cross_entropy
         """},
        """
        The better answer wins with the probability sigmoid(score of the better - score of the worse -
        margin). The loss is minus the logarithm of that, or, with soft labels, the cross-entropy with the
        given probability; the mean over the pairs. It must stay finite for scores that are far apart.
        """),
    Problem(
        "Elo scores", 6, {"preferences.py": "elo_scores"},
        {"preferences": """
            *elo_by_hand
            elo_takes_from_one_what_it_gives_to_the_other
            one_pass_depends_on_the_order_of_the_games_and_many_passes_have_no_end
            every_pass_is_shuffled
            elo_rates_every_number_up_to_the_highest_that_plays
         """},
        """
        Every pair of a ranking is a game, a tie is one, too (`ranking_to_pairs` of `data.py` lists them). The
        winner gets the K-factor times how much better the result was than expected, the loser gives as much;
        then comes the next game.
        """),
    Problem(
        "Rewards with the price of the KL", 8, {"train_ppo.py": "kl_shaped_rewards"},
        {"train_ppo": """
            *rewards_of_the_worked_example
            kl_costs_when_the_policy_is_more_certain_than_the_reference
            *score_lands_on_the_last_real_token_of_each_row
            rewards_are_zero_on_padding_whatever_the_logprobs_there
            rewards_of_a_row_sum_to_score_minus_beta_kl
            shaping_does_not_change_its_arguments
         """},
        """
        Each token pays beta times the log-ratio of policy and reference; the last real token also earns the
        score. Leave the arguments as they are.
        """),
    Problem(
        "Advantages", 10, {"train_ppo.py": "gae"},
        {"train_ppo": """
            *gae_of_the_worked_example
            with_lambda_1_returns_are_the_rewards_to_go
            with_lambda_0_an_advantage_is_one_step_of_surprise
            *gae_is_the_double_sum_of_the_paper
            gae_does_not_bootstrap_past_the_end
            gae_ignores_garbage_rewards_and_values_on_padding
         """},
        """
        From the last token to the first: the surprise is the reward plus gamma times the next value minus
        this value; the advantage is the surprise plus gamma lambda times the next advantage. Behind the last
        real token value and advantage are 0, whatever stands in the padding.
        """),
    Problem(
        "Whitening", 5, {"train_ppo.py": "whiten"},
        {"train_ppo": """
            *whitening_by_hand
            whitening_removes_the_mean_and_keeps_it_only_when_asked
            whitening_sees_only_real_tokens
            whitening_equal_advantages_gives_no_infinity
            whitening_adds_its_small_number_to_the_variance
         """},
        """
        Subtract the mean and divide by the standard deviation, both taken over real tokens only
        (`masked_mean` is there).
        """),
    Problem(
        "The clipped objective", 10, {"train_ppo.py": "ppo_policy_loss"},
        {"train_ppo": """
            *clipped_objective_of_the_worked_table
            *a_good_token_becomes_likelier
            the_clip_is_as_wide_as_asked
            clip_0_means_no_clipping
            policy_loss_is_a_mean_over_real_tokens_only
            micro_batches_divide_by_the_tokens_of_the_whole
            clip_fraction_and_approx_kl_by_hand
         """},
        """
        The ratio is the new probability of a token over the old one. The objective is the smaller of ratio
        times advantage and clipped ratio times advantage, in the mean over real tokens; a loss is descended,
        so its sign is turned.
        """),
    Problem(
        "The value loss", 6, {"train_ppo.py": "value_loss"},
        {"train_ppo": """
            *value_loss_takes_the_larger_error
            *value_loss_inside_the_clip_and_without_it_is_half_the_squared_error
            value_loss_sees_only_real_tokens_and_adds_up_over_micro_batches
         """},
        """
        Half the squared distance of values and returns; a value that has moved further than the clip from the
        old one is moved back to the border, and of the two errors the larger one counts.
        """),
    Problem(
        "Rejection sampling", 6, {"rejection_sampling.py": "best_of subset_weights best_of_n"},
        {"rejection_sampling": """
            *the_best_answer_is_chosen_for_each_prompt
            *weights_of_ranks
            best_of_n_is_the_mean_over_all_choices_of_n
         """},
        """
        The answer that is kept of K. Then what it is worth to choose among n: count in how many choices of n
        answers the one of each rank is the best, and weigh the answers, ordered by reward, with that.
        """),
    Problem(
        "The PPO loop", 18, {"train_ppo.py": "ppo_loss rollout update"},
        {"train_ppo": """
            *the_first_ratio_is_1_at_any_temperature
            the_ratio_compares_with_the_policy_that_sampled
            the_value_loss_has_the_weight_of_the_agent
            gradients_of_micro_batches_add_up_to_those_of_the_minibatch
            *a_batch_holds_what_the_formulas_give
            only_the_advantages_are_whitened
            scores_are_in_deviations_of_sft_answers_or_of_the_batch
            an_answer_that_was_cut_off_has_the_penalty_as_its_score
            a_step_has_one_temperature
            every_pass_takes_all_answers_in_a_new_order
            minibatches_have_the_same_size_or_one_less
            the_order_of_answers_comes_from_the_seed_of_torch
            the_parts_of_a_minibatch_divide_by_its_tokens
            the_gradient_of_a_step_is_that_of_the_loss
            every_minibatch_begins_without_gradients
            gradients_are_clipped_for_each_network_by_itself
            the_loss_on_pretraining_text_has_its_weight
            the_formulas_get_the_knobs
            the_reference_stays_where_it_was
         """,
         "oracle": "ppo_finds_the_best_policy_there_is:8"},
        """
        The steps have the numbers that they have at the top of `train_ppo.py`. `rollout`: 1. sample an answer
        to each prompt; 2. score the answers by `scorer.raw`, those that were cut off with an EOS behind them
        (not in the batch), and whiten the scores by `whiten_scores`, with the scorer's own mean and deviation
        or, if `cfg.score_scale` is "batch", with those of the batch; an answer without an EOS gets minus
        `cfg.eos_penalty` instead where that is not 0; 3. subtract the price of the KL; 4. advantages,
        whitened if `cfg.whiten_advantages` says so (the returns are not). All of it goes into a `Batch`.

        `update`: 5. `cfg.ppo_epochs` passes, each in a new order that torch's random numbers decide, over as
        few minibatches as there can be of at most `cfg.minibatch_size` answers, of the same size or one less
        (8 answers, at most 5: 4 and 4). A minibatch is taken in parts of `cfg.micro_batch_size` answers
        (`Batch.take`); their gradients are added up, with that of `add_ptx_gradient` where `cfg.ptx_coef` is
        not 0; then the gradients of each of `agent.networks` are clipped, by themselves, to the norm
        `cfg.clip_grad` (0: not at all), and the optimizer takes one step. What is returned is a dict for each
        step: the numbers of `ppo_loss`, added up over the parts, and `grad_norm`, the norm of the policy's
        gradient before clipping.

        `ppo_loss`: the policy loss of a part plus `agent.value_coef` times its value loss. Use your functions
        from above; `Agent`, `Batch`, `join`, `response_hidden`, `token_logprobs` and the functions of
        `data.py` are there. The last test lets your loop find an optimum that is known exactly.
        """,
        needs=(1, 3, 6, 7, 8, 9, 10)),
]

FILES = sorted({file for problem in PROBLEMS for file in problem.functions})
ALL = range(1, len(PROBLEMS) + 1)


def problems_of(file):
    """Which problem each function belongs to: {name: number}."""
    found = {}
    for number, problem in enumerate(PROBLEMS, 1):
        found |= dict.fromkeys(problem.functions.get(file, "").split(), number)
    return found


def needed_by(numbers):
    """The problems without which these cannot be tested, themselves left out."""
    return sorted({n for number in numbers for n in PROBLEMS[number - 1].needs} - set(numbers))
