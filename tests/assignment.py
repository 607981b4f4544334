"""Assignments that grade themselves: this repository without the bodies of its central functions, and points
for whoever writes them.

    python tests/assignment.py OUT            writes the student's repository into the new folder OUT, with a
                                              HANDOUT.md
    python tests/assignment.py OUT --grade    grades it: points for each problem; --json for machines
    python tests/assignment.py --prove        shows that the tests can be passed, and neither by nothing nor
                                              by a sham

Problems, tests and points are in the table below; functions, docstrings and solutions are read off the
sources when this runs. A student is graded with our tests and, in everything but the problem in question, our
solutions. Each problem runs in a process of its own, on a copy in a temporary folder, and may neither read
this repository nor write outside the copy. That stops accidents and simple tricks, not an attacker:
strangers' code belongs on a machine that you can lose.
"""
import argparse
import ast
import copy
import dataclasses
import fnmatch
import functools
import gc
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OURS = (  # what students do not get
    "tests/assignment.py", "tests/test_assignment.py", "tests/mutants.py", "tests/test_mutants.py",
    "tests/solutions*.py", "tests/test_solutions.py", "tests/lessons.py", "tests/test_lessons.py",
    "tests/test_layout.py", "tests/test_docs.py",  # house rules, which say nothing about a student's code
    "docs/*.py", "docs/*.png", "docs/*teaching*.md", ".ci/*", ".github/*",
)

# ------------------------------------------------------------------------------------------------
# The problems
# ------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    title: str
    points: int
    functions: dict  # file: names of the functions to write
    tests: dict  # room: names of its tests that grade it; {"data": "a b"}: test_a, test_b of test_data.py
    task: str
    needs: tuple = ()  # numbers of the problems without which its tests cannot pass

    def nodes(self):
        """The tests as pytest calls them."""
        rooms = self.tests.items()
        return [f"tests/test_{room}.py::test_{name}" for room, names in rooms for name in names.split()]


PROBLEMS = [
    Problem(
        "The language-model loss", 5, {"train_pretrain.py": "lm_loss"},
        {"train_pretrain": """
            loss_is_the_mean_of_minus_log_p
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
            targets_are_the_next_tokens_and_the_mask_is_on_the_answer
            loss_by_hand
            descending_the_loss_makes_the_answer_likelier
            batched_loss_equals_the_answers_one_token_at_a_time
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
            cached_greedy_equals_the_naive_sampler_for_ragged_prompts
            returned_logprobs_are_those_of_the_distribution_that_was_sampled
            eos_is_in_the_mask_and_nothing_behind_it
            an_answer_that_never_ends_has_a_full_mask
            temperature_divides_the_logits
            rows_and_steps_do_not_share_one_random_number
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
            loss_by_hand
            the_gradient_is_sigmoid_minus_1
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
            elo_by_hand
            elo_takes_from_one_what_it_gives_to_the_other
            one_pass_depends_on_the_order_of_the_games_and_many_passes_have_no_end
            every_pass_is_shuffled
         """},
        """
        Every pair of a ranking is a game, a tie is one, too (`ranking_to_pairs` of `data.py` lists them). The
        winner gets the K-factor times how much better the result was than expected, the loser gives as much;
        then comes the next game.
        """),
    Problem(
        "Rewards with the price of the KL", 8, {"train_ppo.py": "kl_shaped_rewards"},
        {"train_ppo": """
            rewards_of_the_worked_example
            kl_costs_when_the_policy_is_more_certain_than_the_reference
            score_lands_on_the_last_real_token_of_each_row
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
            gae_of_the_worked_example
            with_lambda_1_returns_are_the_rewards_to_go
            with_lambda_0_an_advantage_is_one_step_of_surprise
            gae_is_the_double_sum_of_the_paper
            gae_does_not_bootstrap_past_the_end
            gae_ignores_garbage_rewards_and_values_on_padding
         """},
        """
        From the last token to the first: the surprise is the reward plus gamma times the next value minus
        this value; the advantage is the surprise plus gamma lambda times the next advantage. Behind the last
        real token both are 0, whatever stands in the padding.
        """),
    Problem(
        "Whitening", 5, {"train_ppo.py": "whiten"},
        {"train_ppo": """
            whitening_by_hand
            whitening_removes_the_mean_and_keeps_it_only_when_asked
            whitening_sees_only_real_tokens
            whitening_equal_advantages_gives_no_infinity
         """},
        """
        Subtract the mean and divide by the standard deviation, both taken over real tokens only
        (`masked_mean` is there).
        """),
    Problem(
        "The clipped objective", 10, {"train_ppo.py": "ppo_policy_loss"},
        {"train_ppo": """
            clipped_objective_of_the_worked_table
            a_good_token_becomes_likelier
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
            value_loss_takes_the_larger_error
            value_loss_inside_the_clip_and_without_it_is_half_the_squared_error
            value_loss_sees_only_real_tokens_and_adds_up_over_micro_batches
         """},
        """
        Half the squared distance of values and returns; a value that has moved further than the clip from the
        old one is moved back to the border, and of the two errors the larger one counts.
        """),
    Problem(
        "Rejection sampling", 6, {"rejection_sampling.py": "best_of subset_weights best_of_n"},
        {"rejection_sampling": """
            the_best_answer_is_chosen_for_each_prompt
            weights_of_ranks
            best_of_n_is_the_mean_over_all_choices_of_n
         """},
        """
        The answer that is kept of K. Then what it is worth to choose among n: count in how many choices of n
        answers the one of each rank is the best, and weigh the answers, ordered by reward, with that.
        """),
    Problem(
        "The PPO loop", 18, {"train_ppo.py": "ppo_loss rollout update"},
        {"train_ppo": """
            the_first_ratio_is_1_at_any_temperature
            the_ratio_compares_with_the_policy_that_sampled
            the_value_loss_has_the_weight_of_the_agent
            gradients_of_micro_batches_add_up_to_those_of_the_minibatch
            a_batch_holds_what_the_formulas_give
            only_the_advantages_are_whitened
            scores_are_in_deviations_of_sft_answers_or_of_the_batch
            an_answer_that_was_cut_off_has_the_penalty_as_its_score
            a_step_has_one_temperature
            every_pass_takes_all_answers_in_a_new_order
            the_parts_of_a_minibatch_divide_by_its_tokens
            every_minibatch_begins_without_gradients
            gradients_are_clipped_for_each_network_by_itself
            the_loss_on_pretraining_text_has_its_weight
            the_formulas_get_the_knobs
            the_reference_stays_where_it_was
         """,
         "oracle": "ppo_finds_the_best_policy_there_is"},
        """
        The steps have the numbers that they have at the top of `train_ppo.py`. `rollout`: 1. sample an answer
        to each prompt; 2. score the answers by `scorer.raw`, those that were cut off with an EOS behind them
        (not in the batch), and whiten the scores by `whiten_scores`, with
        the scorer's own mean and deviation or, if `cfg.score_scale` is "batch", with those of the batch; an
        answer without an EOS gets minus `cfg.eos_penalty` where that is not 0; 3. subtract the price of the
        KL; 4. advantages, whitened if `cfg.whiten_advantages` says so (the returns are not). All of it goes
        into a `Batch`.

        `update`: 5. `cfg.ppo_epochs` passes in a random order over minibatches of `cfg.minibatch_size`
        answers, each in parts of `cfg.micro_batch_size` (`Batch.take`) whose gradients are added up before
        one optimizer step, gradients clipped to `cfg.clip_grad` (0: not) for each of `agent.networks` by
        itself, plus `add_ptx_gradient` where `cfg.ptx_coef` is not 0; each step's dict holds the summed
        numbers of `ppo_loss` and the policy's `grad_norm`.

        `ppo_loss`: the losses of a part, the value loss times `agent.value_coef`. Use your functions from
        above; `Agent`, `Batch`, `join`, `response_hidden`, `token_logprobs` and the functions of `data.py`
        are there. The last test lets your loop find an optimum that is known exactly.
        """,
        needs=(1, 3, 6, 7, 8, 9, 10)),
]


class Mistake(Exception):
    """What whoever typed the command can mend; one sentence."""


# ------------------------------------------------------------------------------------------------
# Sources with and without solutions
# ------------------------------------------------------------------------------------------------


@functools.cache
def source(file):
    """Text of one of our files. Raises Mistake where it is gone."""
    if not (ROOT / file).is_file():
        raise Mistake(f"the table of problems in tests/assignment.py names {file}, which does not exist")
    return (ROOT / file).read_bytes().decode("utf-8")


@functools.cache
def functions_of(text):
    """The functions of a module: {name: node}."""
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def check():
    """Raises Mistake where the table of problems names a function or a test that is not there."""
    for number, problem in enumerate(PROBLEMS, 1):
        where = f"problem {number} of tests/assignment.py"
        for file, names in problem.functions.items():
            for name in names.split():
                node = functions_of(source(file)).get(name)
                if not node or not ast.get_docstring(node) or len(node.body) < 2:
                    raise Mistake(f"{where}: {file} has no function {name} with a docstring and a body")
        for file, test in (node.split("::") for node in problem.nodes()):
            if test not in functions_of(source(file)):
                raise Mistake(f"{where}: {file} has no {test}")


def put(text, pieces):
    """Text with some lines replaced. pieces: {(first, last): new lines}, from 1, both included."""
    lines = text.split("\n")
    for (first, last), new in sorted(pieces.items(), reverse=True):
        lines[first - 1 : last] = new.split("\n")
    return "\n".join(lines)


def span(node):
    """First and last line of a function, decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno


def problems_of(file):
    """Which problem each function belongs to: {name: number}."""
    found = {}
    for number, problem in enumerate(PROBLEMS, 1):
        found |= dict.fromkeys(problem.functions.get(file, "").split(), number)
    return found


def blanked(file, solved=()):
    """Our file as the student gets it, except that the problems of these numbers are solved."""
    text, pieces = source(file), {}
    nodes = functions_of(text)
    for name, number in problems_of(file).items():
        if number not in solved:
            body = nodes[name].body[0].end_lineno + 1, nodes[name].end_lineno
            title = PROBLEMS[number - 1].title
            pieces[body] = f'    raise NotImplementedError("problem {number}: {title}")'
    return put(text, pieces)


def alone(file, text, number):
    """A student's file in which only their own solution of one problem counts: the other problems are solved
    by us. Raises SyntaxError."""
    ours, theirs, pieces, missing = source(file), functions_of(text), {}, ""
    for name, other in problems_of(file).items():
        if other != number:
            first, last = span(functions_of(ours)[name])
            solution = "\n".join(ours.split("\n")[first - 1 : last])
            if name in theirs:
                pieces[span(theirs[name])] = solution
            else:
                missing += f"\n\n{solution}\n"
    return put(text, pieces) + missing


FILES = sorted({file for problem in PROBLEMS for file in problem.functions})


@functools.cache
def repository():
    """The files of this repository, relative to it: those that git tracks or, where there is no .git, would
    track."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True,
                                encoding="utf-8", check=True).stdout.split("\0")
        return sorted(name for name in listed if name and (ROOT / name).is_file())
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split("\n")
    ignored = [".git", *(line.strip().rstrip("/") for line in lines if line.strip())]
    found = []

    def keep(names):
        return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]

    for folder, folders, files in os.walk(ROOT):
        folders[:] = keep(folders)
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in keep(files)]
    return sorted(found)


def for_students():
    """The files of this repository that a student gets."""
    return [name for name in repository() if not any(fnmatch.fnmatch(name, ours) for ours in OURS)]


def write_to(folder, names, changed):
    """Copy files of this repository into a folder, with other texts for some: {file: text}."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = changed[name].encode("utf-8") if name in changed else (ROOT / name).read_bytes()
        (folder / name).write_bytes(text)


# ------------------------------------------------------------------------------------------------
# The student's repository
# ------------------------------------------------------------------------------------------------
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")  # of markdown: picture?, words, file


def without_dead_links(file):
    """The text of a chapter in which a picture that stays here is its caption, a link to what stays here its
    words."""
    names = for_students()

    def plain(link):
        picture, words, target = link.groups()
        path = os.path.normpath(ROOT / Path(file).parent / target)
        name = Path(os.path.relpath(path, ROOT)).as_posix()
        if name in names or not os.path.isfile(path):
            return link[0]
        return f"*[picture: {words}]*" if picture else words

    return LINK.sub(plain, (ROOT / file).read_bytes().decode("utf-8"))


HANDOUT = """# Assignment: RLHF from scratch

{n} problems, {points} points. This folder is a complete RLHF program in which the functions below only say
`raise NotImplementedError`. You write them. The docstring of a function is its specification: what it gets,
what it returns, and an example where one helps; signatures and docstrings stay as they are. `README.md`
explains the whole and says how to install what it needs.

**Where you are.** `model.py`, `data.py` and six scripts, one for each stage, tell the story; all that you
write is in them. `world/` (who speaks and who judges) and `lab/` (how a run is kept, measured and looked at)
are complete. You can write every function without reading there.

**How to work.** In the order below. Each problem has a command that runs the tests which grade it; it takes
seconds. A problem with prerequisites can be tested only when those are solved. When all are solved,
`python -m pytest` and `python train_ppo.py --config tiny` work, and you have trained a model with your own
code.

**How to hand in.** This whole folder. Only the files that the table below names are read. You may add imports
and functions of your own to these, each in the file that uses it; changes in other files, tests included,
count for nothing.

**How it is graded.** By the tests named here, as they were when you got them. Each problem is graded by
itself, your files for it together with correct versions of all others, so that a mistake costs its points
once. A problem is worth its points times the share of its tests that pass; a function that ends the program
or never ends itself takes the tests behind it along, but no other problem. What stands outside the functions
that you are to write counts for all problems of its file: leave the rest as it is, and no calls of your own
there. A file that Python cannot read costs all problems in it.

| problem | points | where |
|---|---|---|
{rows}

{problems}
"""


def quoted(names):
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


def task_of(problem):
    """The words of a task, without the indentation that they have in the table."""
    return textwrap.dedent(problem.task).strip()


def section(number, problem):
    """What the handout says of a problem."""
    files = problem.functions.items()
    needs = ", ".join(f"{n} ({PROBLEMS[n - 1].title})" for n in problem.needs) or "none"
    return f"""## {number}. {problem.title} ({problem.points} points)

{task_of(problem)}

- Deliverable: {"; ".join(f"`{file}`: {quoted(names.split())}" for file, names in files)}
- Prerequisites: {needs}
- Test ({len(problem.nodes())} of equal weight):

```
python -m pytest {" ".join(problem.nodes())}
```"""


def handout():
    """The text of HANDOUT.md."""
    numbered = list(enumerate(PROBLEMS, 1))
    rows = [f"| {number}. {p.title} | {p.points} | {quoted(p.functions)} |" for number, p in numbered]
    sections = [section(number, p) for number, p in numbered]
    return HANDOUT.format(n=len(PROBLEMS), points=sum(p.points for p in PROBLEMS), rows="\n".join(rows),
                          problems="\n\n".join(sections))


def write(out):
    """Write the student's repository into the new folder `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Mistake(f"{out} exists already: name a new folder for the student's repository, or give "
                      "--grade to grade this one")
    if ROOT in [out.resolve(), *out.resolve().parents]:
        raise Mistake(f"{out} is inside this repository: name a folder outside, where the solutions are not "
                      "next to it")
    names = for_students()
    changed = {name: without_dead_links(name) for name in names if name.endswith(".md")}
    changed |= {file: blanked(file) for file in FILES}
    write_to(out, names, changed)
    (out / "HANDOUT.md").write_text(handout(), encoding="utf-8")


# ------------------------------------------------------------------------------------------------
# Tests in a process of their own
# ------------------------------------------------------------------------------------------------
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
            "os.chmod", "os.chown", "os.utime")
OF_TWO_PATHS = ("os.rename", "os.link", "os.symlink")
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
            "os.startfile", "os.kill")


def guard(folder):
    """A hook for sys.addaudithook that refuses what graded code has no business with: reading our repository
    (an environment of Python's inside it excepted), writing outside `folder`, starting processes."""
    ours, python = str(ROOT) + os.sep, os.path.realpath(sys.prefix) + os.sep
    null = os.path.realpath(os.devnull)

    def hook(event, args):
        if event in STARTING:
            raise PermissionError("graded code may not start or end processes")
        if event != "open" and event not in CHANGING:
            return
        for path in args[: 2 if event in OF_TWO_PATHS else 1]:
            if isinstance(path, (str, bytes, os.PathLike)):
                path = os.path.realpath(os.fsdecode(path))
                changes = event != "open" or bool((args[2] or 0) & WRITING)
                is_ours = path.startswith(ours) and not path.startswith(python)
                is_outside = not (path + os.sep).startswith(folder + os.sep) and path != null
                if is_ours or (changes and is_outside):
                    raise PermissionError(f"graded code may not touch {path}")

    return hook


class Ears:
    """A plugin of pytest that tells a connection of every test that ends: (node, None where it passed or else
    why not)."""

    def __init__(self, said):
        self.said = said

    def pytest_runtest_logreport(self, report):
        if report.failed or report.when == "call":
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message.split("\n")[0] if crash else report.outcome
            self.said.send((report.nodeid.split("[")[0], None if report.passed else why))

    def pytest_collectreport(self, report):
        if report.failed:
            lines = [line[1:].strip() for line in report.longreprtext.split("\n") if line.startswith("E")]
            self.said.send((report.nodeid, lines[-1] if lines else "cannot be imported"))


def examine(folder, nodes, said):
    """Run tests of the copy in `folder`. In a process of its own, which is good for nothing else afterwards;
    the connection `said` hears how every test ends."""
    import pytest
    import torch  # noqa: F401  (before the guard stands: importing may start processes)

    os.chdir(folder)
    os.environ.update(TMPDIR=folder, MPLCONFIGDIR=folder, MPLBACKEND="Agg",
                      PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    tempfile.tempdir, sys.dont_write_bytecode = folder, True
    sys.path = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests")]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    gc.freeze()  # pytest collects garbage when it ends, and torch has many objects
    sys.addaudithook(guard(folder))
    how = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--rootdir={folder}",
           f"--basetemp={folder}/tmp"]
    pytest.main([*how, *nodes], plugins=[Ears(said)])


@functools.cache
def processes():
    """How processes start. Importing torch takes longer than most tests: where the system can, they start
    with it imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if context.get_start_method() == "forkserver":
        slow = ["pytest", "tiktoken", "torch", "torch._dynamo", "matplotlib.pyplot"]
        context.set_forkserver_preload(slow)
    return context


def run(nodes, changed, limit):
    """Run tests of ours on our files, some of them changed ({file: text}), within `limit` seconds. Returns
    {node: None where it passed, else why not}."""
    with tempfile.TemporaryDirectory() as folder:
        folder = os.path.realpath(folder)
        names = [name for name in for_students() if name.endswith((".py", ".toml"))]
        write_to(Path(folder), names, changed)
        ears, mouth = processes().Pipe(duplex=False)
        process = processes().Process(target=examine, args=(folder, nodes, mouth))
        process.start()
        mouth.close()
        result, broken, end = {}, {}, time.monotonic() + limit
        why = f"not done after {limit:g} s"
        try:
            while ears.poll(max(0.0, end - time.monotonic())):
                node, said = ears.recv()
                heard = result if "::" in node else broken
                heard[node] = result.get(node) or said  # of a test with several cases the first failure
        except (EOFError, OSError):
            process.join(5)
            why = (f"the process ended before this test did (exit code {process.exitcode}): is there a call "
                   "of exit?")
        process.kill()
        process.join()
    return {node: result.get(node, broken.get(node.split("::")[0], why)) for node in nodes}


# ------------------------------------------------------------------------------------------------
# Grading
# ------------------------------------------------------------------------------------------------


def grade_one(number, texts, limit):
    """Grade one problem. texts: the student's files {file: text, or None where it is missing}. Returns a row
    of the result."""
    problem = PROBLEMS[number - 1]
    nodes, changed = problem.nodes(), {}
    try:
        for file in problem.functions:
            if texts[file] is None:
                raise ValueError("the file is missing")
            changed[file] = alone(file, texts[file], number)
        said = run(nodes, changed, limit)
    except SyntaxError as error:
        said = dict.fromkeys(nodes, f"{file} is not Python (line {error.lineno}: {error.msg})")
    except (ValueError, RecursionError, MemoryError) as error:
        said = dict.fromkeys(nodes, f"{file}: {error}")
    share = sum(why is None for why in said.values()) / len(said)
    return {"problem": number, "title": problem.title, "points": round(problem.points * share, 2),
            "of": problem.points, "tests": said}


def read_student(out):
    """The student's files: {file: text, or None where there is none that can be read}. Raises Mistake where
    `out` is no student's repository."""
    if out.resolve() == ROOT:
        raise Mistake(f"{out} is this repository, with our solutions: name the folder of a student's")
    if not any((out / file).is_file() for file in FILES):
        raise Mistake(f"{out}: none of {', '.join(FILES)} is there; expected a folder that "
                      "tests/assignment.py has written")
    texts = dict.fromkeys(FILES)
    for file in FILES:
        if (out / file).is_file() and not (out / file).is_symlink():
            texts[file] = (out / file).read_bytes().decode("utf-8-sig", "replace")
    return texts


def in_words(row):
    """A row of the result as a line: points, tests passed, the first failure."""
    failed = [(node.split("::")[1], why) for node, why in row["tests"].items() if why is not None]
    n = len(row["tests"])
    line = (f"{row['problem']:>2}. {row['title']:<36}{row['points']:>6g} of {row['of']:>2}   "
            f"{n - len(failed)} of {n} tests")
    if failed:
        name, why = failed[0]
        line += f"; {name}: {''.join(filter(str.isprintable, why))[:100]}"
    return line


def grade(out, limit, as_json=False):
    """Grade the student's repository and print the result, or print it as JSON. Returns the points."""
    texts, rows = read_student(out), []
    for number in range(1, len(PROBLEMS) + 1):
        rows.append(grade_one(number, texts, limit))
        if not as_json:
            print(in_words(rows[-1]), flush=True)
    points, of = round(sum(row["points"] for row in rows), 1), sum(row["of"] for row in rows)
    if as_json:
        print(json.dumps({"points": points, "of": of, "problems": rows}, indent=1))
    else:
        print(f"{'total':<40}{points:>6g} of {of}")
    return points


# ------------------------------------------------------------------------------------------------
# Proof
# ------------------------------------------------------------------------------------------------
SHAMS = {"zeros": 0, "ones": 1, "its first argument": None}


def like(x, value):
    """Something of the kind and shape of x that is nothing but this value."""
    import torch

    if isinstance(x, torch.Tensor):
        return torch.full_like(x, value)
    if isinstance(x, dict):
        return {key: like(y, value) for key, y in x.items()}
    if dataclasses.is_dataclass(x):
        return dataclasses.replace(x, **like(vars(x), value))
    if isinstance(x, (list, tuple)):
        return type(x)(like(y, value) for y in x)
    return type(x)(value) if isinstance(x, (int, float)) else x


def sham(function, kind):
    """What returns zeros or ones of the right kind and shape, or its first argument in each place, and does
    nothing else."""
    import torch

    def wrong(*args, **named):
        memo = {}  # a model and its optimizer are copied together
        moved = torch.nn.Module, torch.optim.Optimizer
        kept = [copy.deepcopy(a, memo) if isinstance(a, moved) else a for a in args]
        right = function(*kept, **named)
        if SHAMS[kind] is None:
            return (args[0],) * len(right) if isinstance(right, tuple) else args[0]
        return like(right, SHAMS[kind])

    return wrong


def with_shams(numbers, kind):
    """Our files {file: text}, all problems solved but these, whose functions are shams."""
    texts = {}
    for file in FILES:
        names = [name for name, n in problems_of(file).items() if n in numbers]
        lines = [f"{name} = sham({name}, {kind!r})\n" for name in names]
        texts[file] = f"{source(file)}\n\nfrom {__name__} import sham\n{''.join(lines)}"
    return texts


class Proof:
    """Claims about the tests of problems, each printed with the answer; `good` while all of them hold."""

    def __init__(self, limit):
        self.limit, self.began, self.good = limit, time.time(), True

    def claim(self, words, numbers, changed, passes):
        """On our files, some of them changed, all tests of these problems pass, or none of them does."""
        nodes = [node for n in numbers for node in PROBLEMS[n - 1].nodes()]
        said = run(nodes, changed, self.limit)
        wrong = [f"{node} {'fails: ' + why if why else 'passes'}" for node, why in said.items()
                 if (why is None) != passes]
        self.good = self.good and not wrong
        answer = "NO: " + "; ".join(wrong) if wrong else "yes"
        print(f"{time.time() - self.began:5.0f} s  {words}: {answer}", flush=True)


def listed(numbers):
    return ", ".join(map(str, numbers))


def prove(limit):
    """Print what the tests of the problems are worth. Returns whether all of it is as it should be."""
    proof, numbers = Proof(limit), range(1, len(PROBLEMS) + 1)
    proof.claim("with nothing written all tests fail", numbers, {f: blanked(f) for f in FILES}, False)
    for number in numbers:
        needs = PROBLEMS[number - 1].needs
        own = f"its solution and those of {listed(needs)}" if needs else "its solution"
        solved = {file: blanked(file, (number, *needs)) for file in FILES}
        proof.claim(f"problem {number}: with {own} alone all its tests pass", [number], solved, True)
    # What passes with its own solution alone does not depend on the other problems, so that these may be
    # shams at the same time.
    together = [number for number in numbers if not PROBLEMS[number - 1].needs]
    others = [[number] for number in numbers if number not in together]
    for some in (together, *others):
        who = f"problem{'s' if len(some) > 1 else ''} {listed(some)}"
        for kind in SHAMS:
            proof.claim(f"{who}: with all others solved, bodies that return {kind} pass no test", some,
                        with_shams(some, kind), False)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        write_to(Path(folder), FILES, {})
        print("\nthe whole solution, handed in:\n")
        points = grade(Path(folder), limit)
    good = proof.good and points == sum(problem.points for problem in PROBLEMS) == 100
    print(f"\n{'All of it holds' if good else 'NOT all of it holds'}; {time.time() - proof.began:.0f} s.")
    return good


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"assignment.py: {message} (-h shows what can be done)\n")


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help="the student's repository")
    parser.add_argument("--grade", action="store_true", help="grade OUT")
    parser.add_argument("--json", action="store_true",
                        help="with --grade: the result as JSON, every test of it with why it failed")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS",
                        help="time for the tests of a problem (default: 120)")
    parser.add_argument("--prove", action="store_true", help="show what the tests are worth; takes no OUT")
    return parser


def check_flags(args):
    """Raises Mistake where flags do not go together."""
    if bool(args.out) == args.prove:
        raise Mistake("expected OUT, the folder of a student's repository, or --prove")
    if args.json and not args.grade or args.grade and args.prove:
        raise Mistake("--grade and --json go with OUT: python tests/assignment.py OUT --grade --json")
    if not args.limit > 0:
        raise Mistake(f"--limit {args.limit:g}: expected a number of seconds above 0")


def main(argv=None):
    """Returns the exit code: 0, or 1 where --prove finds something wrong."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check_flags(args)
        check()
        if args.prove:
            return 0 if prove(args.limit) else 1
        if args.grade:
            grade(args.out, args.limit, args.json)
        else:
            write(args.out)
            points = sum(p.points for p in PROBLEMS)
            print(f"{args.out}: {len(PROBLEMS)} problems, {points} points; {args.out / 'HANDOUT.md'} is for "
                  "the student")
    except Mistake as error:
        parser.exit(2, f"assignment.py: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
