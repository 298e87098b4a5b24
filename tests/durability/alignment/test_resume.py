"""A run of alignment that is stopped and gone on with is the run that was never stopped, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from surefoot.alignment.configuration import ADDED_LATER
from surefoot.alignment.durability import keeping
from surefoot.alignment.learning import offline
from surefoot.alignment.rlhf import online, ratios
from surefoot.alignment.training import align
from surefoot.errors import UsageError
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import MetricsWriter
from tests.alignment.models.tiny import language_model, reward_model, save_language_model
from tests.alignment.tokenizers import gpt2_like, word_level
from tests.durability.alignment.runs import (
    Crash,
    assert_the_same,
    crashed,
    crashing_after,
    files,
    last_state,
    lines,
    material,
    results,
    resume,
    settings,
    write,
)

torch.set_num_threads(1)
ADAPTER = {"adapter__lora_rank": 2}
HELD_OUT = {"training__held_out": 0.2}


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (offline, online):
        monkeypatch.setattr(module, "matrix_rate", lambda *arguments, **options: 1e9)


@pytest.fixture
def folder(tmp_path):
    return material(tmp_path)


OFFLINE = {
    "sft": ("sft", HELD_OUT),
    "sft, adapter with dropout, in parts": (
        "sft",
        {**ADAPTER, "adapter__lora_dropout": 0.3, "training__accumulation": 2},
    ),
    "reward": ("reward", {**HELD_OUT, "objective__centering": 0.1}),
    "reward, adapter": ("reward", ADAPTER),
    "dpo, kept reference": ("dpo", {"training__evaluate_every": 2, **HELD_OUT}),
    "dpo, live reference": ("dpo", {"objective__live_reference": True}),
    "dpo, adapter, kept reference": ("dpo", {**ADAPTER, **HELD_OUT}),
    "dpo, adapter, live reference": ("dpo", {**ADAPTER, "objective__live_reference": True}),
}
ONLINE = {
    "gae, a critic of its own": {
        "objective__critic": "policy",
        "objective__kl_target": 0.1,
        "objective__kl_horizon": 100,
        "objective__standardize_rewards": "scale",
        "objective__minibatches": 2,
    },
    "gae, shared critic": {"objective__critic": "shared", "objective__value_clip_range": 0.2},
    "gae, adapter": {"objective__critic": "policy", **ADAPTER},
    "gae, shared critic, adapter": {"objective__critic": "shared", **ADAPTER},
    "leave-one-out": {"objective__weight": "leave-one-out", "objective__target_kl": 0.5},
    "group, adapter": {"objective__weight": "group", **ADAPTER, "training__accumulation": 2},
}


@pytest.mark.parametrize("name", OFFLINE)
def test_learning_from_given_answers_goes_on_as_if_nothing_had_happened(name, folder, tmp_path, monkeypatch):
    method, choices = OFFLINE[name]
    align(settings(method, folder, tmp_path / "whole", **choices), quiet=True)
    stopped = crashed(settings(method, folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    assert len(lines(stopped)) == 5  # of which the last is behind the checkpoint
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


@pytest.mark.parametrize("name", ONLINE)
def test_learning_from_own_answers_goes_on_as_if_nothing_had_happened(name, folder, tmp_path, monkeypatch):
    align(settings("ppo", folder, tmp_path / "whole", **ONLINE[name]), quiet=True)
    stopped = crashed(settings("ppo", folder, tmp_path / "stopped", **ONLINE[name]), 5, monkeypatch)
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_wherever_it_was_stopped_and_however_often(folder, tmp_path, monkeypatch):
    align(settings("sft", folder, tmp_path / "whole", **HELD_OUT), quiet=True)
    total = len(lines(tmp_path / "whole"))
    assert total == 6  # 8 examples in batches of 4, three times; checkpoints lie within epochs and at their ends
    for line in range(1, total + 1):
        stopped = crashed(settings("sft", folder, tmp_path / f"after-{line}", **HELD_OUT), line, monkeypatch)
        resume(stopped)
        assert_the_same(tmp_path / "whole", stopped)
    often = crashed(settings("sft", folder, tmp_path / "often", **HELD_OUT), 2, monkeypatch)
    for line in (1, 3, 2):  # of each process
        with crashing_after(line, monkeypatch), pytest.raises(Crash):
            resume(often)
    resume(often)
    assert_the_same(tmp_path / "whole", often)


def test_every_iteration_of_ppo_can_be_the_last_before_a_stop(folder, tmp_path, monkeypatch):
    choices = {"objective__weight": "leave-one-out", "training__checkpoint_every": "1", "training__epochs": 2}
    align(settings("ppo", folder, tmp_path / "whole", **choices), quiet=True)
    for line in range(1, 7):
        stopped = crashed(settings("ppo", folder, tmp_path / f"after-{line}", **choices), line, monkeypatch)
        resume(stopped)
        assert_the_same(tmp_path / "whole", stopped)


def test_checkpoints_change_nothing(folder, tmp_path):
    for method in ("sft", "ppo"):
        align(settings(method, folder, tmp_path / f"{method}-with"), quiet=True)
        align(settings(method, folder, tmp_path / f"{method}-without", training__checkpoint_every=None), quiet=True)
        assert lines(tmp_path / f"{method}-with") == lines(tmp_path / f"{method}-without")
        weights = [files(tmp_path / f"{method}-{name}" / "model")["model.safetensors"] for name in ("with", "without")]
        assert weights[0] == weights[1]
        assert not (tmp_path / f"{method}-without" / "checkpoints").exists()
        assert not (tmp_path / f"{method}-without" / "start").exists()


def test_the_best_is_kept_without_patience_too(folder, tmp_path, monkeypatch):
    """By the loss on held-out data, wherever that was lowest; by a stop nothing of it changes."""
    choices = {
        "training__eval_data": str(folder / "others.jsonl"),
        "training__learning_rate": 0.1,
        "training__evaluate_every": 1,
        "training__epochs": 6,
    }
    choices |= {"training__keep_checkpoints": 1, "training__checkpoint_every": "100"}
    whole = align(settings("sft", folder, tmp_path / "whole", **choices), quiet=True)
    losses = [line["evaluation/loss"] for line in lines(tmp_path / "whole")]
    best = int(np.argmin(losses)) + 1
    assert best < whole["updates"]
    assert whole["best_update"] is None, "the model is the last one"
    assert Checkpoints(tmp_path / "whole").steps() == [best, whole["updates"]]
    run = crashed(settings("sft", folder, tmp_path / "run", **choices), best + 1, monkeypatch)
    resume(run)
    assert Checkpoints(run).steps() == [best, whole["updates"]]


def test_the_best_of_answers_that_are_sampled_is_by_the_return_of_ten_iterations(folder, tmp_path):
    choices = {"training__keep_checkpoints": 1, "training__checkpoint_every": "1", "training__learning_rate": 0.05}
    align(settings("ppo", folder, tmp_path / "run", training__epochs=6, **choices), quiet=True)
    returns = [line["return"] for line in lines(tmp_path / "run")]
    means = [np.mean(returns[max(0, i - 9) : i + 1]) for i in range(len(returns))]
    best = int(np.argmax(means)) + 1
    assert 1 < best < len(means)
    assert Checkpoints(tmp_path / "run").steps() == [best, len(means)]


def test_patience_keeps_count_over_a_stop_and_the_best_weights_survive(folder, tmp_path, monkeypatch):
    choices = {
        "training__eval_data": str(folder / "others.jsonl"),
        "training__patience": 2,
        "training__epochs": 30,
        "training__learning_rate": 0.03,
        "training__checkpoint_every": "3",
    }
    whole = align(settings("sft", folder, tmp_path / "whole", **choices), quiet=True)
    assert whole["ended_early"] is not None
    best, last = whole["best_update"], whole["updates"]
    assert best < last
    for line in {best + 1, last - 1, last}:  # after the best; one evaluation without progress before; with everything settled
        stopped = crashed(settings("sft", folder, tmp_path / f"after-{line}", **choices), line, monkeypatch)
        resume(stopped)
        assert_the_same(tmp_path / "whole", stopped)
    assert best in Checkpoints(tmp_path / "whole").steps()  # however old it is


def test_dropout_of_the_model_itself_draws_the_same_after_a_stop(tmp_path, monkeypatch):
    folder = material(tmp_path, family="gpt2")
    choices = {"model__dropout": True, "model__gradient_checkpointing": True}
    align(settings("sft", folder, tmp_path / "whole", **choices), quiet=True)
    torch.rand(3)  # PyTorch's own numbers are elsewhere by now
    stopped = crashed(settings("sft", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    torch.rand(5)
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)
    align(settings("sft", folder, tmp_path / "without", model__gradient_checkpointing=True), quiet=True)
    assert lines(tmp_path / "whole")[0]["loss"] != lines(tmp_path / "without")[0]["loss"]


def with_positions_that_change(folder, *, shortest):
    """A model whose rotary frequencies follow the longest sequence that it has seen, until one has fewer than eight tokens."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    save_language_model(folder / "model", max_position_embeddings=8, rope_parameters=rope)
    for name in ("pairs.jsonl", "others.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for i, row in enumerate(rows):
            row["chosen"] += " a b c" * (shortest + i % 4)
        write(folder / name, rows)


def test_positions_that_depend_on_the_batch_are_those_of_the_update_after_a_stop_too(folder, tmp_path, monkeypatch):
    with_positions_that_change(folder, shortest=0)
    choices = {"training__batch_size": 1, "training__epochs": 2, "objective__live_reference": True}
    align(settings("dpo", folder, tmp_path / "whole", **choices), quiet=True)
    for line in range(3, 18, 4):
        stopped = crashed(settings("dpo", folder, tmp_path / f"after-{line}", **choices), line, monkeypatch)
        resume(stopped)
        assert_the_same(tmp_path / "whole", stopped)


def test_the_end_alone_can_be_done_again(folder, tmp_path):
    """Killed after its last checkpoint, while the model was saved; the best one is evaluated once more."""
    with_positions_that_change(folder, shortest=1)
    choices = {"training__eval_data": str(folder / "others.jsonl"), "training__patience": 2, "training__learning_rate": 0.1}
    align(settings("sft", folder, tmp_path / "run", **choices, training__batch_size=2, training__epochs=9), quiet=True)
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "model")
    (tmp_path / "killed" / "summary.json").unlink()
    result = resume(tmp_path / "killed")
    assert result["best_update"] < result["updates"]
    assert_the_same(tmp_path / "run", tmp_path / "killed")


@pytest.mark.parametrize("adapter", [{}, ADAPTER], ids=["all weights", "adapter"])
def test_weights_of_half_the_bits_survive(adapter, folder, tmp_path, monkeypatch):
    choices = {"model__precision": "bfloat16", "training__epochs": 2, **adapter}
    align(settings("reward", folder, tmp_path / "whole", **choices), quiet=True)
    stopped = crashed(settings("reward", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_log_probabilities_that_are_computed_again_still_are_after_a_stop(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ratios, "HARMLESS", -1.0)
    choices = {"objective__weight": "leave-one-out"}
    align(settings("ppo", folder, tmp_path / "whole", **choices), quiet=True)
    stopped = crashed(settings("ppo", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    assert Checkpoints(stopped).latest()[0].state["run"]["learner"]["scores_again"]
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_a_reward_model_and_a_critic_made_of_it(folder, tmp_path, monkeypatch):
    judge = reward_model()
    judge.save_pretrained(folder / "judge")
    word_level().save_pretrained(folder / "judge")
    choices = {"reward": str(folder / "judge"), "objective__critic": "reward", **ADAPTER}
    align(settings("ppo", folder, tmp_path / "whole", **choices), quiet=True)
    stopped = crashed(settings("ppo", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_a_padding_token_that_a_reward_model_gets_is_got_again_and_not_read_in_the_data(folder, tmp_path, monkeypatch):
    tokenizer = gpt2_like()
    model = language_model("gpt2", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=None)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    text = (folder / "pairs.jsonl").read_text()
    (folder / "pairs.jsonl").write_text(text.replace("good", "<|pad|>"))
    align(settings("reward", folder, tmp_path / "whole"), quiet=True)
    stopped = crashed(settings("reward", folder, tmp_path / "stopped"), 5, monkeypatch)
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_the_start_is_kept_and_where_it_came_from_is_not_asked_again(folder, tmp_path, monkeypatch):
    choices = {**ADAPTER, "objective__live_reference": True}
    align(settings("dpo", folder, tmp_path / "whole", **choices), quiet=True)
    stopped = crashed(settings("dpo", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    before = files(stopped / "start")
    (folder / "model").rename(folder / "elsewhere")
    save_language_model(folder / "model", "gpt2")
    resume(stopped)
    assert files(stopped / "start") == before
    assert_the_same(tmp_path / "whole", stopped)


def test_values_of_the_reference_stay_with_the_run_however_they_were_rounded(folder, tmp_path, monkeypatch):
    choices = {"objective__reference_cache": str(tmp_path / "reference"), **HELD_OUT}
    align(settings("dpo", folder, tmp_path / "other", training__batch_size=1, training__epochs=1, **choices), quiet=True)
    (kept,) = files(tmp_path / "reference").items()  # other parts of the data at a time: other rounding
    align(settings("dpo", folder, tmp_path / "whole", **choices), quiet=True)
    stopped = crashed(settings("dpo", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    (tmp_path / "reference" / kept[0]).unlink()
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)
    assert files(tmp_path / "reference") == {}  # nobody else's affair
    (own,) = (stopped / "start" / "reference").iterdir()
    assert own.read_bytes() == kept[1]


def test_values_of_the_reference_that_are_gone_are_computed_again_with_the_same_bits(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    align(settings("dpo", folder, tmp_path / "whole", **HELD_OUT), quiet=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    stopped = crashed(settings("dpo", folder, tmp_path / "stopped", **HELD_OUT), 5, monkeypatch)
    shutil.rmtree(tmp_path / "second")
    shutil.rmtree(stopped / "start" / "reference")
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_values_of_the_reference_that_are_damaged_are_refused(folder, tmp_path, monkeypatch):
    stopped = crashed(settings("dpo", folder, tmp_path / "stopped"), 5, monkeypatch)
    (own,) = (stopped / "start" / "reference").iterdir()
    content = own.read_bytes()
    own.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError, match="delete it, and they are computed again"):
        resume(stopped)


def test_a_run_that_was_stopped_before_its_first_update_begins_again(folder, tmp_path, monkeypatch):
    align(settings("reward", folder, tmp_path / "whole", training__checkpoint_every="100"), quiet=True)
    stopped = crashed(settings("reward", folder, tmp_path / "stopped", training__checkpoint_every="100"), 2, monkeypatch)
    assert Checkpoints(stopped).steps() == [0]
    assert not Checkpoints(stopped).read(0).arrays  # the start is kept once
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(folder, tmp_path, monkeypatch):
    align(settings("sft", folder, tmp_path / "whole"), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(keeping.Checkpoints, "write", lambda self, *arguments, **options: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            align(settings("sft", folder, tmp_path / "stopped"), quiet=True)
    resume(tmp_path / "stopped")
    assert_the_same(tmp_path / "whole", tmp_path / "stopped")


def test_two_halves_at_once_go_on_too(folder, tmp_path, monkeypatch):
    torch.set_num_threads(2)
    try:
        align(settings("dpo", folder, tmp_path / "whole"), quiet=True)
        stopped = crashed(settings("dpo", folder, tmp_path / "stopped"), 5, monkeypatch)
        resume(stopped)
    finally:
        torch.set_num_threads(1)
    assert_the_same(tmp_path / "whole", stopped)


def stopping_at(line, monkeypatch):
    """A signal from outside while line ``line`` is written."""
    write = MetricsWriter.write
    count = [0]

    def write_and_stop(self, *arguments):
        count[0] += 1
        if count[0] == line:
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, *arguments)

    monkeypatch.setattr(MetricsWriter, "write", write_and_stop)


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_a_signal_leaves_a_checkpoint_of_that_very_moment(method, folder, tmp_path, monkeypatch):
    align(settings(method, folder, tmp_path / "whole"), quiet=True)
    with monkeypatch.context() as patch:
        stopping_at(3, patch)
        result = align(settings(method, folder, tmp_path / "stopped"), quiet=True)
    assert result["interrupted"]
    assert Checkpoints(tmp_path / "stopped").steps() == [2, 3]
    again = resume(tmp_path / "stopped")
    assert not again["interrupted"]
    assert_the_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_more_epochs_than_before_are_the_longer_run_where_the_step_size_is_constant(method, folder, tmp_path, capsys):
    constant = {"training__learning_rate_schedule": "constant", "training__warmup": 0.0}
    if method == "ppo":
        constant["objective__samples_every"] = 0  # a run's last iteration always gives some
    align(settings(method, folder, tmp_path / "long", **constant, training__epochs=4), quiet=True)
    align(settings(method, folder, tmp_path / "short", **constant, training__epochs=2), quiet=True)
    result = resume(tmp_path / "short", epochs=4, quiet=False)
    assert "does not depend" in capsys.readouterr().err
    assert result["prompts"] == 4 * (7 if method == "ppo" else 10)
    assert json.loads((tmp_path / "short" / "config.json").read_text())["epochs"] == 4
    assert last_state(tmp_path / "long") == last_state(tmp_path / "short")
    assert lines(tmp_path / "long") == lines(tmp_path / "short")


def test_more_epochs_under_a_schedule_are_said_to_be_another_run(folder, tmp_path, capsys):
    align(settings("sft", folder, tmp_path / "run", training__epochs=2), quiet=True)
    resume(tmp_path / "run", epochs=3, quiet=False)
    assert "not that of so many epochs from the start" in capsys.readouterr().err


def test_more_epochs_by_hand_are_said_to_be_another_run_too(folder, tmp_path, capsys, monkeypatch):
    stopped = crashed(settings("sft", folder, tmp_path / "run", training__epochs=2), 3, monkeypatch)
    path = stopped / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epochs": 3}))
    resume(stopped, quiet=False)
    assert "3 epochs: the step size" in capsys.readouterr().err
    assert len(lines(stopped)) == 9


def test_tensorboard_and_metrics_have_each_update_once(folder, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped = crashed(settings("sft", folder, tmp_path / "stopped", training__tensorboard=True), 5, monkeypatch)
    resume(stopped)
    assert [line["update"] for line in lines(stopped)] == list(range(1, 10))
    events = EventAccumulator(str(stopped / "tensorboard"))
    events.Reload()
    assert [round(event.value) for event in events.Scalars("update")] == list(range(1, 10))


def test_results_are_those_of_the_whole_run(folder, tmp_path, monkeypatch):
    whole = align(settings("reward", folder, tmp_path / "whole"), quiet=True)
    stopped = crashed(settings("reward", folder, tmp_path / "stopped"), 8, monkeypatch)
    earlier = Checkpoints(stopped).latest()[0].state["seconds"]
    result = resume(stopped)
    assert results(result) == results(whole)
    assert result["prompts"] == 30
    assert result["startup_seconds"] > earlier["startup"]
    assert result["seconds"] - result["startup_seconds"] > earlier["training"]
    assert result["prompts_per_second"] == pytest.approx(30 / (result["seconds"] - result["startup_seconds"]), rel=1e-3)
    assert json.loads((stopped / "summary.json").read_text()) == result


def test_a_run_can_be_gone_on_with_from_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    relative = settings("ppo", folder, tmp_path / "stopped", reward="rewards.py:good")
    relative = replace(relative, data=replace(relative.data, data="prompts.jsonl"))
    align(settings("ppo", folder, tmp_path / "whole"), quiet=True)
    stopped = crashed(relative, 5, monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "prompts.jsonl").write_text("others of the same name")
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(stopped)
    assert last_state(tmp_path / "whole") == last_state(stopped)
    assert lines(tmp_path / "whole") == lines(stopped)


def test_a_reward_that_is_a_module_is_found_from_another_folder_too(folder, tmp_path, monkeypatch):
    (folder / "rewards.py").rename(folder / "judging.py")
    monkeypatch.chdir(folder)
    there = [place for place in sys.path if place not in ("", str(folder))]
    monkeypatch.setattr(sys, "path", list(there))
    stopped = crashed(settings("ppo", folder, tmp_path / "stopped", reward="judging:good"), 5, monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", list(there))  # as another process has it
    monkeypatch.delitem(sys.modules, "judging")
    resume(stopped)
    assert len(lines(stopped)) == 9
    monkeypatch.delitem(sys.modules, "judging")


def test_a_run_of_a_version_that_had_fewer_settings_goes_on(folder, tmp_path, monkeypatch):
    align(settings("dpo", folder, tmp_path / "whole"), quiet=True)
    stopped = crashed(settings("dpo", folder, tmp_path / "stopped"), 5, monkeypatch)
    fewer = lambda recorded: {name: value for name, value in recorded.items() if name not in ADDED_LATER}  # noqa: E731
    path, checkpoints = stopped / "config.json", Checkpoints(stopped)
    path.write_text(json.dumps(fewer(json.loads(path.read_text()))))
    last = checkpoints.latest()[0]
    checkpoints.forget_after(last.step - 1)
    checkpoints.write(replace(last, state=last.state | {"settings": fewer(last.state["settings"])}))
    resume(stopped)
    assert_the_same(tmp_path / "whole", stopped)
