"""Other projects at the work of tests/benchmark.py, in a Python that has them; it is started from there.

It says which packages it has, then reads lines of JSON, ["train", "tiny", "float32"], does that work once to
warm up and once more, and answers with the seconds that a unit of it took: a training step, a call of
generate, an iteration of PPO. The peers: model and training step of nanoGPT, generate of transformers,
PPOTrainer and RewardTrainer of TRL, with their defaults except for what would make it other work than ours.
"""
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

SIZES = {  # GPT-2's architecture; rows: of a training step
    "tiny": dict(n_layer=4, n_head=4, n_embd=128, vocab_size=1024, block_size=128, rows=32),
    "small": dict(n_layer=6, n_head=6, n_embd=384, vocab_size=4096, block_size=256, rows=12),
}
STEPS = {"tiny": 12, "small": 3}  # training steps in a measurement
PROMPT = 16  # tokens
ANSWER = 48  # tokens, in PPO; sampling fills the context
PPO = dict(answers=64, epochs=4, minibatches=4)
PAIRS = dict(pairs=32, tokens=64, steps=4)
PACKAGES = ("torch", "transformers", "trl", "datasets")


def shape(size):
    """The fields of a model's shape."""
    return {name: n for name, n in SIZES[size].items() if name != "rows"}


def autocast(dtype):
    """bfloat16 where it is asked for."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


# ------------------------------------------------------------------------------------------------
# nanoGPT
# ------------------------------------------------------------------------------------------------


def nanogpt(folder):
    """Its model.py as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder, "model.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train(size, dtype):
    """A step as in nanoGPT's train.py: forward, backward, clip, AdamW; its fused kind, which is the fastest
    here. (do it, times)"""
    import torch

    module = nanogpt(os.environ["NANOGPT"])
    model = module.GPT(module.GPTConfig(**shape(size), dropout=0.0, bias=True)).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    windows = torch.randint(shape(size)["vocab_size"], (SIZES[size]["rows"], shape(size)["block_size"] + 1))

    def work():
        for _ in range(STEPS[size]):
            with autocast(dtype):
                _, loss = model(windows[:, :-1], windows[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return work, STEPS[size]


# ------------------------------------------------------------------------------------------------
# transformers
# ------------------------------------------------------------------------------------------------


def gpt2(size, kind="GPT2LMHeadModel", **more):
    """A model of transformers with random weights. Its last token is pad and EOS; it never says it."""
    import torch
    import transformers

    s, last = shape(size), shape(size)["vocab_size"] - 1
    config = transformers.GPT2Config(
        vocab_size=s["vocab_size"], n_positions=s["block_size"], n_embd=s["n_embd"], n_layer=s["n_layer"],
        n_head=s["n_head"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=last,
        eos_token_id=last, pad_token_id=last, **more)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        row = model.transformer.wte.weight[last]
        model.transformer.ln_f.bias -= 30 * row / row.pow(2).sum()
    return model


def sample(size, rows, dtype):
    """Answers that fill the context. (do it, times)"""
    import torch

    model, s = gpt2(size), shape(size)
    prompts = torch.randint(s["vocab_size"] - 1, (rows, PROMPT))

    def work():
        with torch.no_grad(), autocast(dtype):
            answers = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, top_p=1.0,
                max_new_tokens=s["block_size"] - PROMPT, use_cache=True)
        assert answers.shape == (rows, s["block_size"]), "an answer ended early"
        assert (answers < s["vocab_size"] - 1).all(), "an answer ended early"

    return work, 1


# ------------------------------------------------------------------------------------------------
# TRL
# ------------------------------------------------------------------------------------------------


def tokenizer(size):
    """One that has as many words as the model, for trainers that want one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(shape(size)["vocab_size"])}
    last = f"w{len(words) - 1}"
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=last, eos_token=last,
                                   padding_side="left")


def step_seconds(make_trainer, look=None):
    """Median seconds of a trainer's steps, the first left out: from the end of one to the end of the next.
    make_trainer(folder, clock); look(log): what must be true of each step's log."""
    from transformers import TrainerCallback

    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.perf_counter())
            if look:
                look(state.log_history[-1])

    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        make_trainer(folder, Clock()).train()
    return statistics.median(b - a for a, b in zip(times, times[1:], strict=False))


def usual(folder, dtype):
    """What both trainers are told: no files, no GPU, and no gradient checkpointing, TRL's default, which
    saves memory and costs time."""
    return dict(output_dir=folder, use_cpu=True, bf16=dtype == "bfloat16", gradient_checkpointing=False,
                save_strategy="no", report_to="none", logging_steps=1000, disable_tqdm=True)


def none_ended(log):
    assert log["val/num_eos_tokens"] == 0, "an answer ended early"


def ppo_seconds(dtype):
    """An iteration of TRL's PPO. A step for each minibatch, as ours: with its gradient_accumulation_steps at
    4 it would make 4 optimizer steps in place of 16."""
    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    answers, vocabulary = PPO["answers"], shape("tiny")["vocab_size"]
    prompts = torch.randint(vocabulary - 1, (4 * answers, PROMPT)).tolist()

    def make_trainer(folder, clock):
        config = PPOConfig(
            **usual(folder, dtype), per_device_train_batch_size=answers, gradient_accumulation_steps=1,
            num_mini_batches=PPO["minibatches"], num_ppo_epochs=PPO["epochs"], total_episodes=4 * answers,
            response_length=ANSWER, temperature=1.0, local_rollout_forward_batch_size=answers,
            num_sample_generations=0, learning_rate=1e-5)
        scalar = dict(kind="GPT2ForSequenceClassification", num_labels=1)
        return PPOTrainer(
            args=config, processing_class=tokenizer("tiny"), model=gpt2("tiny"), ref_model=gpt2("tiny"),
            reward_model=gpt2("tiny", **scalar), value_model=gpt2("tiny", **scalar),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts[:answers]}), callbacks=[clock])

    return step_seconds(make_trainer, none_ended)


def reward_seconds(dtype):
    """A step of TRL's RewardTrainer."""
    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    steps, vocabulary = PAIRS["steps"] + 1, shape("tiny")["vocab_size"]
    rows = torch.randint(vocabulary - 1, (2, PAIRS["pairs"] * steps, PAIRS["tokens"])).tolist()

    def make_trainer(folder, clock):
        config = RewardConfig(
            **usual(folder, dtype), per_device_train_batch_size=PAIRS["pairs"], max_steps=steps,
            max_length=PAIRS["tokens"])
        return RewardTrainer(
            model=gpt2("tiny", "GPT2ForSequenceClassification", num_labels=1), args=config,
            processing_class=tokenizer("tiny"), callbacks=[clock],
            train_dataset=Dataset.from_dict({"chosen_ids": rows[0], "rejected_ids": rows[1]}))

    return step_seconds(make_trainer)


# ------------------------------------------------------------------------------------------------
# A measurement
# ------------------------------------------------------------------------------------------------


@functools.cache
def warm(kind, *words):
    """The work of a kind, done once already, and how many units of it that is."""
    work, times = {"train": train, "sample": sample}[kind](*words)
    work()
    return work, times


def seconds(kind, *words):
    """How long a unit of work takes."""
    if kind == "ppo":
        return ppo_seconds(*words)
    if kind == "reward":
        return reward_seconds(*words)
    work, times = warm(kind, *words)
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / times


def packages():
    """{package: its version, or None where it is missing}."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    found = packages()
    if None not in found.values():
        import torch

        torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(found), file=answers, flush=True)  # from now on it computes only when it is asked
    for line in sys.stdin:
        print(json.dumps(seconds(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
