"""Several processes at one training take the steps of one. The processes here are forks of this one, with the
environment that torchrun gives its own."""
# ruff: noqa: F811 (fixtures are imported, and then named as arguments)
import gc
import json
import multiprocessing
import os
import pickle
import re
import sys
import time

import pytest
import torch
import torch._dynamo  # noqa: F401  (an optimizer imports it, for seconds: once here, not in each fork)
import torch.distributed as dist
from conftest import random_gpt
from pipeline import JOBS, begin, copy, rows_of, tiny  # noqa: F401  (fixtures)
from test_train_ppo import EOS, PAD, config, one_network, sampled_batch, two_networks

import lab.run
import rejection_sampling
import train_ppo
import train_rm
import train_sft
from data import UserError, sft_batch
from lab import parallel
from lab.cli import sentence_of
from lab.optim import adam, clip_gradients
from lab.parallel import joined, part, rank, share, summed, together, total
from train_pretrain import lm_loss
from train_sft import batch_loss

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="forks of a process with torch")
ROWS = [([5, 6, 7], [2, 9]), ([5], [3, 4, 8, 9]), ([4, 4], [9]), ([6, 1], [2, 2, 2, 2, 9]), ([1], [9])]


def processes(n, function, wanted=None):
    """What a function returns in each of n processes that train together, or in the first of them."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    fork = multiprocessing.get_context("fork")

    def body(number, end):
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(n),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                       "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        gc.freeze()  # stores of earlier tests: their threads are not here, so to end them would take for ever
        torch.manual_seed(7)
        with joined():
            total(0.0)  # before all are there, none may leave
            found = function()
        end.send_bytes(pickle.dumps(found))
        os._exit(0)  # nothing of pytest's own end

    pipes = [fork.Pipe(duplex=False) for _ in range(n)]
    started = [fork.Process(target=body, args=(i, end)) for i, (_, end) in enumerate(pipes)]
    for process in started:
        process.start()
    for _, end in pipes:
        end.close()
    try:
        assert all(there.poll(300) for there, _ in pipes[:wanted]), "a process says nothing"
        return [pickle.loads(there.recv_bytes()) for there, _ in pipes[:wanted]]
    finally:
        for process in started:
            process.kill()
            process.join()


def weights_of(*models):
    return torch.cat([p.detach().flatten() for model in models for p in model.parameters()])


def gradients_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_alone_nothing_changes():
    x = torch.arange(6.0).view(3, 2)
    assert torch.equal(share(x), x) and together(x) is x and part(x, 3) is x
    assert total(2) == 2 and summed({"a": 1.5}) == {"a": 1.5} and rank() == 0 and parallel.is_first()


def test_shares_lie_end_to_end():
    """Seven rows for three processes; gathered they are the batch again, in its order."""
    def shares():
        mine = share(torch.arange(7))
        wide = torch.ones(len(mine), rank() + 1)
        return mine.tolist(), together(mine).tolist(), together(wide).sum(1).tolist(), total(rank() + 1)

    found = processes(3, shares)
    assert [mine for mine, *_ in found] == [[0, 1], [2, 3], [4, 5, 6]]
    for _, all_of_them, widths, sum_of_ranks in found:
        assert all_of_them == list(range(7)) and sum_of_ranks == 6
        assert widths == [1, 1, 2, 2, 3, 3, 3], "narrower shares are padded with zeros"


def test_a_batch_smaller_than_the_processes_is_refused():
    def refusal():
        with pytest.raises(UserError, match="a batch of 1 cannot be shared by 2 processes"):
            share([1])
        return True

    assert all(processes(2, refusal))


def loss_on_text(enc):
    model = random_gpt(std=0.3)
    windows = torch.arange(5 * 9).view(5, 9) * 7 % 12
    inputs, targets = map(share, (windows[:, :-1], windows[:, 1:]))
    loss = part(lm_loss(model(inputs), targets), len(inputs))
    return model, loss, total(loss.item())


def loss_on_answers(enc):
    model = random_gpt(std=0.3)
    inputs, targets, mask = sft_batch(share(ROWS), PAD)
    loss = part(batch_loss(model, inputs, targets, mask), mask.sum().item())
    return model, loss, total(loss.item())


def loss_on_rankings(enc):
    """Of 3, 2 and 4 answers, so 3, 1 and 6 pairs."""
    model = random_gpt(std=0.3, vocab_size=enc.n_vocab, block_size=64, reward_head=True)
    texts = ["a dog", "A cat is a small hunter.", "friend", "What?"]
    rows = [{"prompt": "What is a dog?", "responses": texts[:K], "tiers": [[i] for i in range(K)]}
            for K in (3, 2, 4)]
    scores = together(train_rm.group_scores(model, enc, share(rows)))
    loss, _ = train_rm.ranking_loss(scores, rows, None, train_rm.Config())
    return model, loss, loss.item()


@pytest.mark.parametrize("loss_of", [loss_on_text, loss_on_answers, loss_on_rankings])
def test_the_gradient_is_that_of_the_whole_batch(enc, loss_of):
    """With shares that count differently much: the mean of their means would be another one."""
    def compute():
        model, loss, logged = loss_of(enc)
        loss.backward()
        return clip_gradients(model, 0), logged, gradients_of(model)

    [(norm, loss, gradient)] = processes(1, compute)
    for their_norm, their_loss, theirs in processes(2, compute):
        torch.testing.assert_close(theirs, gradient, atol=1e-6, rtol=1e-4)
        assert their_norm == pytest.approx(norm, rel=1e-4) and their_loss == pytest.approx(loss, rel=1e-5)


class Steps:
    """What fine_tune needs of a stage."""

    device = "cpu"

    def __init__(self):
        self.losses = []

    def track(self, **objects):
        pass

    def steps(self, total):
        return range(total)

    def log(self, step, shown, loss, **others):
        self.losses.append(loss)


def test_a_round_is_fine_tuned_like_by_one_process(enc):
    """Five winners in batches of up to three, longer and shorter ones."""
    winners = [{"prompt": "What is a dog?", "response": "a dog " * n} for n in (1, 6, 2, 3, 1)]
    cfg = rejection_sampling.Config(batch_size=3, epochs=2, clip_grad=0.0)

    def compute():
        model, stage = random_gpt(std=0.3, vocab_size=enc.n_vocab, block_size=64), Steps()
        rejection_sampling.fine_tune(stage, model, winners, enc, cfg)
        return stage.losses

    [losses] = processes(1, compute)
    assert len(losses) == 4
    for theirs in processes(2, compute):
        assert theirs == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("build", [one_network, two_networks])
def test_an_update_is_that_of_one_process(build):
    """Two minibatches, each shared, in parts of at most two answers; with a loss on text mixed in."""
    cfg = config(minibatch_size=4, micro_batch_size=2, ptx_coef=0.3, clip_grad=0.5)

    def compute():
        agent = build(random_gpt)
        batch = sampled_batch(agent, cfg)
        optimizer = adam(*((net, 1e-3) for net in agent.networks))
        numbers = train_ppo.update(agent, optimizer, batch, cfg, torch.arange(200).numpy() % 11)
        return weights_of(agent), numbers

    [(weights, numbers)] = processes(1, compute)
    for their_weights, theirs in processes(2, compute):
        torch.testing.assert_close(their_weights, weights, atol=2e-5, rtol=1e-4)
        assert theirs[0] == pytest.approx(numbers[0], rel=1e-3, abs=1e-5)


def test_each_process_samples_its_own_answers():
    """Eight times the same prompt: no answer comes twice, all processes get all, and go on alike."""
    def answers():
        model, prompts = random_gpt(std=0.1, vocab_size=50), torch.full((8, 2), 5)
        found = parallel.generate(model, prompts, torch.full((8,), 2), 12, 1.0, EOS, PAD)
        again = parallel.generate(model, prompts, torch.full((8,), 2), 12, 1.0, EOS, PAD)
        return found, again[0], torch.rand(3)

    (found, again, drawn), (theirs, _, they_drew) = processes(2, answers)
    for mine, other in zip(found, theirs, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(drawn, they_drew)
    texts = [tuple(row) for row in [*found[0].tolist(), *again.tolist()]]
    assert len({row[:6] for row in texts}) == 16


def test_gathered_answers_are_padded_like_those_of_one_process():
    """The shares have answers of different length at most."""
    def answers():
        prompts = torch.full((6, 2), 5)
        return parallel.generate(random_gpt(std=0.3), prompts, torch.full((6,), 2), 8, 1.0, EOS, PAD)

    responses, mask, logprobs = processes(3, answers)[1]
    longest = mask.sum(1).view(3, 2).max(1).values
    assert longest.min() < longest.max() == mask.shape[1] == responses.shape[1]
    assert (responses[mask == 0] == PAD).all() and (logprobs[mask == 0] == 0).all()
    assert (logprobs[mask == 1] < 0).all()


def test_only_the_first_one_writes_and_prints(tmp_path, capfd):
    def write():
        lab.run.write_atomic(tmp_path / f"{rank()}.txt", "x")
        lab.run.append_row(tmp_path / f"{rank()}.jsonl", {})
        print(f"from {rank()}", flush=True)
        return parallel.is_first()

    assert processes(2, write) == [True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "0.txt"]
    assert capfd.readouterr().out == "from 0\n"


def test_what_the_first_one_does_alone_is_done_once(tmp_path):
    def rank_answers():
        def ask():
            assert not parallel.several(), "as if it were the only process"
            (tmp_path / "asked").open("a").write(f"{rank()}")
            time.sleep(0.2)

        parallel.call(ask)
        return (tmp_path / "asked").read_text(), parallel.several()

    assert processes(2, rank_answers) == [("0", True)] * 2


def test_all_stop_after_the_same_step():
    """Ctrl-C reaches one process a little earlier than the other."""
    assert processes(2, lambda: parallel.any_of(rank() == 1)) == [True, True]
    assert processes(2, lambda: parallel.any_of(False)) == [False, False]


def test_a_dead_process_is_told():
    def look_for_the_other():
        if rank():
            os._exit(1)
        try:
            total(1)
        except RuntimeError as error:
            return sentence_of(error)

    assert "another process of this training has ended" in processes(2, look_for_the_other, wanted=1)[0]


def test_stages_of_two_processes_end_as_those_of_one(copy):
    """All is trained anew: the losses of two processes are those of one, though each reads a share of the
    rows; what is collected is collected once, and every file is there."""
    run = copy / "runs/tiny"
    stages = r"(pretrain|sft|rankings|rm_first|pilot|rankings\.pilot|rm|ppo)"
    made = re.compile(stages + r"\.(pt|jsonl|json|png|samples\.txt)")
    old = {path.name: path.read_text() for path in run.glob("*.jsonl")}
    there = sorted(path.name for path in run.iterdir() if made.fullmatch(path.name))
    for name in there:
        (run / name).unlink()

    def chain():
        os.chdir(copy)
        lab.run.picture = lambda file, *rest: file.write(b"no picture")
        read = []
        train_sft.sft_batch = lambda rows, pad: read.append(len(rows)) or sft_batch(rows, pad)
        train_ppo.main(["--config", "smoke", "--run", "tiny", "--dtype", "float32", "--steps", "2",
                        "--eval_answers", "1"])
        return sum(read)

    first, second = processes(2, chain)
    demonstrations = rows_of(run / "data/sft.jsonl")
    assert first + second == sum(row["split"] == "train" for row in demonstrations) and first and second
    for name in ("pretrain.jsonl", "sft.jsonl", "rm_first.jsonl"):  # what PPO samples is drawn otherwise
        now, then = ([json.loads(line)["loss"] for line in text.splitlines()]
                     for text in ((run / name).read_text(), old[name]))
        assert now == pytest.approx(then, abs=1e-4), name
    assert [name for name in there if not (run / name).exists()] == []
