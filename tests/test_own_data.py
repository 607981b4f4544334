"""A user's own folder, as a user runs it: HH-style preferences, thumbs, aspects, a judge behind a server,
little data, mistakes in the files."""
# ruff: noqa: F401, F811 (fixtures are imported, and then named as arguments)
import re

import pytest
from conftest import completion
from pipeline import (
    JOBS,
    PPO,
    PRETRAIN,
    begin,
    call,
    command,
    done,
    flat,
    mine,
    printed,
    refused,
    rows_of,
    user,
    write_rows,
)

import data
from lab.records import load_checkpoint, record_of

RM = "--epochs 1 --batch_size 40 --eval_split test"
ASK = "--answers_per_prompt 3 --max_new_tokens 12"

# ------------------------------------------------------------------------------------------------
# Preferences alone: all four stages
# ------------------------------------------------------------------------------------------------


def test_missing_parents_are_trained_first_each_by_its_own_command(mine):
    said, run = printed(mine).replace("\\", "/"), mine / "runs/tiny-mine"
    for stage in ("sft", "rm"):
        command_of_it = f"python train_{stage}.py --config tiny --data mine"
        assert f"runs/tiny-mine/{stage}.pt is not there yet; first:\n{command_of_it}\n" in said
        assert load_checkpoint(run / f"{stage}.pt")["finished"]
    assert load_checkpoint(run / "ppo.pt")["finished"]


def test_what_is_found_derived_dropped_or_cut_is_said(mine):
    said = flat(printed(mine))
    for words in ("preferences.jsonl: 40 preference pairs, Anthropic transcripts (train 33, dev 0, test 7)",
                  "1 of 41 rows dropped",
                  "no sft file; the 40 chosen answers", "no prompts file", "no pretrain file",
                  "within a context of 64 tokens 1 of 40 prompts lose their beginning",
                  "longer than the 55 tokens that an answer leaves them"):
        assert words in said, words


def test_a_run_has_its_own_copy_of_the_data_and_a_users_folder_is_only_read(mine):
    run = mine / "runs/tiny-mine"
    assert sorted(p.name for p in (mine / "mine").iterdir()) == ["preferences.jsonl"]
    assert sorted(p.name for p in (run / "data").iterdir()) == [
        "preferences.jsonl", "pretrain.held_out.txt", "pretrain.txt", "prompts.jsonl", "sft.jsonl",
        "source.json"]
    assert not list(run.glob("rankings*"))


def test_a_folder_of_preferences_needs_no_answers_of_the_sft_model(mine):
    parents = load_checkpoint(mine / "runs/tiny-mine/rm.pt")["parents"]
    files = {f"data/{name}" for name in ("preferences.jsonl", "pretrain.txt", "sft.jsonl")}
    assert parents.keys() == files | {"pretrain.pt"}


def test_there_is_no_gold_score_outside_the_tiny_world(mine):
    rows = rows_of(mine / "runs/tiny-mine/ppo.jsonl")
    assert abs(rows[0]["kl_full"]) < 1e-5 and len(rows) == 2 and all(row["gold"] is None for row in rows)
    shown = printed(mine).split("7 test prompts")[-1]
    assert "win rate by reward model" in shown and "gold" not in shown and "declines" not in shown


def test_special_words_in_a_users_text_stay_text(mine):
    """"<|endoftext|>" in the answers did not become an EOS anywhere: text in, the same text out, and no
    special id inside."""
    run = mine / "runs/tiny-mine"
    enc, rows = data.load_encoding(run / "tokenizer.json"), data.load_sft(run / "data")
    assert len(rows) == 40 and all("<|endoftext|>" in row["response"] for row in rows)
    for row in rows:
        ids = data.encode_response(enc, row["response"])
        assert ids.count(enc.eot_token) == 1 and ids[-1] == enc.eot_token
        assert data.decode_response(enc, ids) == row["response"]


def test_the_data_are_shown_as_the_model_sees_them(mine, done):
    out = done(mine, "data.py --data mine")
    assert "^" in out and "chosen" in out and "from runs" in out and "source.json" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_files_that_change_are_reported(user, refused):
    path = user / "mine/preferences.jsonl"
    path.write_text(path.read_text().replace("A good", "A fine"))
    message = refused(user, f"train_ppo.py --data mine {PPO} --name late")
    assert "preferences.jsonl has changed since" in message and "--run NAME" in message
    (user / "other").mkdir()
    (user / "other/pretrain.txt").write_text("A dog is a furry mammal.\n" * 50)
    assert "was made from" in refused(user, "train_sft.py --data other --run tiny-mine")
    assert "add --data" in refused(user, "train_ppo.py --run tiny-mine")


def test_missing_preferences_are_told_before_anything_is_trained(tmp_path, refused):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/pretrain.txt").write_text("A dog is a furry mammal.\n" * 50)
    message = refused(tmp_path, "train_rm.py --data text")
    assert "preferences" in message
    assert not list(tmp_path.rglob("*.pt"))


# ------------------------------------------------------------------------------------------------
# Little data
# ------------------------------------------------------------------------------------------------


def test_thirty_rows_are_told_to_be_few(tmp_path, done):
    """They run through, and what so few can teach is said at the beginning."""
    (tmp_path / "few").mkdir()
    rows = [{"prompt": f"What is thing {i}?", "chosen": f"A good thing, number {i}.", "rejected": "No idea."}
            for i in range(30)]
    write_rows(tmp_path / "few/preferences.jsonl", rows)
    small = PRETRAIN.replace("--n_embd 32", "--n_embd 64")
    said = flat(done(tmp_path, f"train_pretrain.py --data few {small}"))
    found = re.search(r"([\d,]+) tokens for ([\d,]+) parameters are little to learn to write from", said)
    assert found and int(found[1].replace(",", "")) < int(found[2].replace(",", ""))
    assert "--init CHECKPOINT starts from a trained model" in said
    out = done(tmp_path, f"train_ppo.py --data few {PPO} --eval_answers 1")
    assert "Talk to it" in out and load_checkpoint(tmp_path / "runs/tiny-few/ppo.pt")["finished"]


def test_empty_answers_and_one_row_of_a_split_stop_nobody(tmp_path, call, done):
    (tmp_path / "odd").mkdir()
    rows = [{"prompt": f"What is thing {i}?", "chosen": f"A good thing, number {i}.",
             "rejected": "" if i % 3 == 0 else "No.", "split": "test" if i == 1 else "train"}
            for i in range(20)]
    write_rows(tmp_path / "odd/preferences.jsonl", rows)
    done(tmp_path, f"train_pretrain.py --data odd {PRETRAIN}")
    done(tmp_path, f"train_rm.py --data odd {RM}")


# ------------------------------------------------------------------------------------------------
# Other kinds of preferences
# ------------------------------------------------------------------------------------------------


def test_thumbs_are_learned_by_regression(tmp_path, done, refused):
    (tmp_path / "mine").mkdir()
    rows = [{"prompt": f"What is thing {i}?", "response": f"{'A good thing' if i % 2 else 'No'}, number {i}.",
             "label": bool(i % 2), "split": "test" if i % 5 == 0 else "train"} for i in range(40)]
    write_rows(tmp_path / "mine/preferences.jsonl", rows)
    done(tmp_path, f"train_pretrain.py --data mine {PRETRAIN}")
    assert "thumbs up or down" in refused(tmp_path, "train_rm.py --data mine --name thumbs")
    learn = "train_rm.py --data mine --loss regression --epochs 20 --lr 0.01 --batch_size 8 --name thumbs"
    out = done(tmp_path, learn)
    found = load_checkpoint(tmp_path / "runs/tiny-mine/thumbs.pt")["state"]["results"]
    first = next(iter(found.values()))
    assert first["pairs"] == 16 and first["accuracy"] > 0.9
    assert re.search(r" (up|down)\b", out)
    assert found["  bag of words"]["accuracy"] == 1 and re.search(r"bag of words +16 +1.000", out)
    assert re.search(r"longer answer wins +16 +\d", out), "what a reward model has to beat stands beside it"
    write_rows(tmp_path / "mine/preferences.jsonl", [*rows, {"prompt": "a", "chosen": "b", "rejected": "c"}])
    message = refused(tmp_path, "train_rm.py --data mine --loss regression --run mixed")
    assert "both thumbs and comparisons" in message


def test_a_users_preferences_by_aspect(mine, tmp_path, done, refused):
    (tmp_path / "mine").mkdir()
    rows = [{**row, "aspect": "safety" if i % 2 else "helpful"}
            for i, row in enumerate(rows_of(mine / "mine/preferences.jsonl"))]
    write_rows(tmp_path / "mine/preferences.jsonl", rows)
    done(tmp_path, f"train_pretrain.py --data mine {PRETRAIN}")
    run = tmp_path / "runs/tiny-mine"
    for aspect in ("helpful", "safety"):
        done(tmp_path, f"train_rm.py --data mine --aspect {aspect} --epochs 1 --batch_size 4")
        assert (run / f"rm_{aspect}.pt").exists()
    done(tmp_path, f"train_ppo.py --data mine {PPO} --reward llama2 --name two")
    assert load_checkpoint(run / "two.pt")["parents"].keys() >= {"rm_helpful.pt", "rm_safety.pt"}
    unsafe = [row for row in rows_of(run / "data/prompts.jsonl") if row["unsafe"]]
    assert unsafe, "a prompt whose preference is about safety is a safety prompt"
    (tmp_path / "helpful").mkdir()
    write_rows(tmp_path / "helpful/preferences.jsonl", [{**row, "aspect": "helpful"} for row in rows])
    done(tmp_path, f"train_pretrain.py --data helpful {PRETRAIN} --steps 2")
    message = refused(tmp_path, "train_rm.py --data helpful --aspect safety --name none")
    assert 'no ranking has "aspect": "safety"' in message


def test_rejection_sampling_on_a_users_preferences(user, done):
    """Nobody ranks new answers there: the reward model stays, which is said, and there is no gold score."""
    line = ("rejection_sampling.py --data mine --rounds 2 --answers_per_prompt 4 --max_new_tokens 8 "
            "--batch_size 8 --epochs 1 --eval_answers 1")
    out = done(user, line)
    assert "stays as it is" in flat(out) and "gold" not in out
    out = done(user, line)
    assert "rs.1 is finished" in out and "rs.2 is finished" in out
    parents = [load_checkpoint(user / f"runs/tiny-mine/rs.{n}.pt")["parents"] for n in (1, 2)]
    usual = {"sft.pt", "rm.pt", "data/prompts.jsonl"}
    assert parents[0].keys() == usual and parents[1].keys() == usual | {"rs.1.pt"}


# ------------------------------------------------------------------------------------------------
# Somebody else ranks the answers to a user's prompts
# ------------------------------------------------------------------------------------------------


def test_the_simulated_human_knows_only_the_tiny_world(user, refused):
    assert "knows only the tiny world" in refused(user, f"preferences.py --data mine {ASK}")
    message = refused(user, f"preferences.py --data mine {ASK} --labeler ai")
    assert "name a server's model with --judge_url" in message


def test_a_judge_behind_a_server_labels_a_users_answers(user, done, server):
    """Each comparison is asked for in both orders and bought once, and so are the notes on each answer; the
    file's own held-out preferences are what the result is measured on."""
    def the_longer_one(sent):
        answers = re.search("Answer 1: (.*)\n\nAnswer 2: (.*)\n\nWhich", sent["prompt"], re.S)
        if not answers:
            return completion({}, "Well")[1]
        one, two = map(len, answers.groups())
        return completion({"1": -2.0, "2": min(0.0, -2.0 + 0.1 * (two - one))})[1]

    server.script, run = [(200, the_longer_one, {})], user / "runs/tiny-mine"
    ask = f"preferences.py --data mine {ASK} --labeler ai --questions 6 --judge_url {server.url}"
    out = flat(done(user, ask))
    rows = rows_of(run / "rankings_ai.jsonl")
    assert "pairs labelled by the AI" in out and len(rows) == 6
    assert {row["split"] for row in rows} == {"train"}, "held out is what the file has"
    for row in rows:
        for i, j, p in row["pairs"]:
            longer = len(row["responses"][i]) - len(row["responses"][j])
            assert p == 0.5 or (p > 0.5) == (longer > 0)
    asked, calls = len(server.seen), rows_of(run / "judge_calls.jsonl")
    compared = {(str(row["prompt"]), *sorted((row["responses"][i], row["responses"][j])))
                for row in rows for i, j, _ in row["pairs"]}
    noted = {(str(row["prompt"]), text) for row in rows for text in row["responses"]}
    assert asked == len(calls) == 2 * len(compared) + len(noted)
    assert len({row["asked"]["prompt"] for row in calls}) == asked, "nothing was asked twice"
    done(user, f"{ask} --overwrite")
    assert len(server.seen) == asked, "nothing was bought twice"

    out = flat(done(user, f"train_rm.py --data mine {RM} --rankings rankings_ai --damaged 0.5 --name rm_ai"))
    found = load_checkpoint(run / "rm_ai.pt")
    assert found["parents"].keys() >= {"pretrain.pt", "rankings_ai.jsonl"}
    assert next(iter(found["state"]["results"].values()))["rankings"] == 7, "those of the file's test split"
    done(user, f"train_ppo.py --data mine {PPO} --reward rm_ai --eval_answers 1")
    assert load_checkpoint(run / "rlaif.pt")["parents"].keys() >= {"rm_ai.pt"}


@pytest.mark.parametrize("loss", ["bradley_terry", "regression"])
def test_an_answer_about_which_the_judge_is_silent_has_no_place(tmp_path, done, server, loss):
    """A folder of demonstrations: the AI labels what is held out, too, and of some answers it never says
    whether they are better."""
    def silent_about_some(sent):
        answers = re.search("Answer 1: (.*)\n\nAnswer 2: (.*)\n\nWhich", sent["prompt"], re.S)
        one, two = map(len, answers.groups())
        if one % 3 == 0 or two % 3 == 0:
            return completion({"so": -0.1})[1]
        return completion({"1": -2.0, "2": min(0.0, -2.0 + 0.1 * (two - one))})[1]

    server.script = [(200, silent_about_some, {})]
    (tmp_path / "mine").mkdir()
    rows = [{"prompt": f"What is thing {i}?", "response": f"A good thing, number {i}.",
             "split": "test" if i % 5 == 0 else "train"} for i in range(40)]
    write_rows(tmp_path / "mine/sft.jsonl", rows)
    done(tmp_path, f"train_pretrain.py --data mine {PRETRAIN}")
    done(tmp_path, f"preferences.py --data mine {ASK} --labeler ai --questions 10 --held_out_rankings 1 "
                   f"--judge_url {server.url} --chain_of_thought false --name mine")
    labelled = rows_of(tmp_path / "runs/tiny-mine/mine.jsonl")
    assert {row["labeler"] for row in labelled} == {"ai"}
    assert {"train", "test"} <= {row["split"] for row in labelled}
    places = [sum(map(len, row["tiers"])) for row in labelled]
    assert any(0 < n < len(row["responses"]) for n, row in zip(places, labelled, strict=True))
    done(tmp_path, f"train_rm.py --data mine {RM} --rankings mine --loss {loss} --name rm_mine")


# ------------------------------------------------------------------------------------------------
# Mistakes in the files: one sentence that names the file and the line
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, hint", [
    ("train_pretrain.py --data nowhere", "no such folder"),
    ("train_pretrain.py --data broken", "pretrain.jsonl, line 2"),
    ("train_pretrain.py --data empty", "the file is empty"),
    ("train_ppo.py --data broken", "pretrain.jsonl, line 2"),
    ("data.py --data nowhere", "no such folder"),
    ("data.py --data broken", "pretrain.jsonl, line 2"),
    ("train_rm.py --data typo", "did you mean preferences.jsonl?"),
    ("train_sft.py --data nothing", "expected pretrain.txt, sft.jsonl"),
])
def test_a_mistake_ends_in_one_sentence(tmp_path, call, line, hint):
    for name in ("broken", "empty", "typo", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/pretrain.jsonl").write_text('{"text": "fine"}\n{"content": "no text"}\n')
    (tmp_path / "empty/pretrain.txt").write_text("")
    (tmp_path / "typo/preference.jsonl").write_text("{}\n")
    code, out = call(tmp_path, line)
    message = code if isinstance(code, str) else out
    assert code and hint in message and len(message.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("runs/*/data/*.jsonl"))
