"""What stops a run of alignment, what is kept of it, and what is refused when it is gone on with."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace

import pytest
import torch

from surefoot import cli
from surefoot.alignment import preparation, training
from surefoot.alignment.learning import offline
from surefoot.alignment.rlhf import learner, online, samples
from surefoot.alignment.sampling import sampler
from surefoot.alignment.training import align
from surefoot.errors import RunError, UsageError
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.lock import RunLock
from tests.alignment.models.tiny import reward_model, save_language_model
from tests.alignment.tokenizers import word_level
from tests.durability.alignment.runs import assert_the_same, crashed, files, lines, material, resume, settings

torch.set_num_threads(1)
FAILING = """
import os

calls = 0

def good(prompts, completions):
    return [text.split().count("good") + len(text) / 8 for text in completions]

def at_times(prompts, completions):
    global calls
    calls += 1
    if calls in (3, 4) and not os.path.exists(__file__ + ".mended"):
        what = float("nan") if os.path.exists(__file__ + ".nan") else 1 / 0
        return [what, *good(prompts, completions)[1:]]
    return good(prompts, completions)

def never(prompts, completions):
    return [float("inf")] * len(completions)

def not_at_first(prompts, completions):
    global calls
    calls += 1
    return never(prompts, completions) if calls == 1 else good(prompts, completions)
"""


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (offline, online):
        monkeypatch.setattr(module, "matrix_rate", lambda *arguments, **options: 1e9)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    return material(tmp_path)


@pytest.fixture
def stopped(folder, tmp_path, monkeypatch):
    return crashed(settings("dpo", folder, tmp_path / "stopped"), 5, monkeypatch)


def spoiling_update(number, monkeypatch, *, how):
    """Make the loss, or a gradient, of update ``number`` not finite."""
    compute, seen = offline.OfflineRun.gradients, []

    def spoilt(self, examples):
        loss, sums = compute(self, examples)
        seen.append(self.updates)
        if self.updates + 1 == number:
            if how == "loss":
                self.parameters[0][1].grad.fill_(1.0)
                raise offline.NotFinite("the loss is nan")
            self.parameters[0][1].grad[0] = float("inf")
        return loss, sums

    monkeypatch.setattr(offline.OfflineRun, "gradients", spoilt)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_the_state_before_an_update_that_is_not_finite_is_kept_and_the_sentence_says_which(how, folder, tmp_path, monkeypatch):
    align(settings("sft", folder, tmp_path / "whole"), quiet=True)
    with monkeypatch.context() as patch:
        spoiling_update(4, patch, how=how)
        with pytest.raises(RunError) as raised:
            align(settings("sft", folder, tmp_path / "run"), quiet=True)
    said = str(raised.value)
    assert "update 4, on the batch with rows " in said
    assert "embed_tokens" in said or how == "loss"
    assert str(tmp_path / "run" / "checkpoints" / "3") in said
    checkpoint = Checkpoints(tmp_path / "run").read(3)
    assert checkpoint.exact
    kept = torch.from_numpy(checkpoint.arrays["parameter/model.embed_tokens.weight"])
    assert bool(torch.isfinite(kept).all())
    resume(tmp_path / "run")  # the machine computes right again
    assert_the_same(tmp_path / "whole", tmp_path / "run")


def test_without_checkpoints_too_the_state_is_kept_for_inspection(folder, tmp_path, monkeypatch):
    spoiling_update(2, monkeypatch, how="gradient")
    with pytest.raises(RunError, match="failed"):
        align(settings("reward", folder, tmp_path / "run", training__checkpoint_every=None), quiet=True)
    kept = Checkpoints(tmp_path / "run", name="failed").read(1)
    assert kept.state["run"]["updates"] == 1
    assert "exp_avg/model.embed_tokens.weight" in kept.arrays
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_update_that_is_not_finite_can_be_left_out_and_is_counted(folder, tmp_path, monkeypatch):
    spoiling_update(4, monkeypatch, how="loss")
    choices = {"training__on_nonfinite": "skip", "training__held_out": 0.2, "training__epochs": 3}
    result = align(settings("sft", folder, tmp_path / "run", **choices), quiet=True)
    reported = lines(tmp_path / "run")
    assert [line["skipped"] for line in reported] == [0, 0, 0, 1, 1, 1]
    assert reported[3]["loss"] is None
    assert reported[3]["evaluation/loss"] is not None  # at the epoch's end, update or not
    assert result["updates"] == 6
    stopped = crashed(settings("sft", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    resume(stopped)
    assert_the_same(tmp_path / "run", stopped)


def test_what_was_accumulated_for_an_update_that_is_left_out_is_forgotten(folder, tmp_path, monkeypatch):
    choices = {"training__on_nonfinite": "skip", "training__batch_size": 10, "training__epochs": 2}
    choices |= {"training__learning_rate_schedule": "constant", "training__warmup": 0.0}
    align(settings("sft", folder, tmp_path / "one", **(choices | {"training__epochs": 1})), quiet=True)
    spoiling_update(2, monkeypatch, how="gradient")
    align(settings("sft", folder, tmp_path / "two", **choices), quiet=True)
    # The second update changed nothing.
    assert files(tmp_path / "one" / "model")["model.safetensors"] == files(tmp_path / "two" / "model")["model.safetensors"]


def test_a_run_that_leaves_out_everything_stops(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(offline.OfflineRun, "gradients", lambda self, examples: (_ for _ in ()).throw(offline.NotFinite("nan")))
    with pytest.raises(RunError, match="10 updates in a row"):
        align(settings("sft", folder, tmp_path / "run", training__on_nonfinite="skip", training__epochs=9), quiet=True)
    never = f"{folder / 'failing.py'}:never"
    with pytest.raises(RunError, match="10 updates in a row"):
        align(
            settings("ppo", folder, tmp_path / "p", reward=never, training__on_nonfinite="skip", training__epochs=9), quiet=True
        )


def test_what_cannot_be_written_in_the_middle_of_an_update_is_gone_on_with_from_before(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RunError("the disk is full")

    align(settings("ppo", folder, tmp_path / "whole"), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(samples.SampleFile, "write", full)
        with pytest.raises(RunError, match=r"the disk is full; once that is mended: surefoot resume .*run"):
            align(settings("ppo", folder, tmp_path / "run"), quiet=True)
    resume(tmp_path / "run")
    assert_the_same(tmp_path / "whole", tmp_path / "run")


def test_updates_that_are_left_out_are_counted_once_also_where_they_end_a_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(offline.OfflineRun, "gradients", lambda self, examples: (_ for _ in ()).throw(offline.NotFinite("nan")))
    choices = {"training__on_nonfinite": "skip", "training__epochs": 9, "training__checkpoint_every": "20"}
    with pytest.raises(RunError, match="10 updates in a row"):
        align(settings("sft", folder, tmp_path / "run", **choices), quiet=True)
    state = Checkpoints(tmp_path / "run").latest()[0].state["run"]
    assert (state["updates"], state["skipped"], state["skipped_in_row"]) == (9, 9, 9)
    with pytest.raises(RunError, match="10 updates in a row"):
        resume(tmp_path / "run")


def test_a_reward_function_that_fails_leaves_a_run_that_goes_on_once_it_is_mended(folder, tmp_path):
    align(settings("ppo", folder, tmp_path / "whole"), quiet=True)
    reward = f"{folder / 'failing.py'}:at_times"
    with pytest.raises(RunError, match="ZeroDivisionError") as raised:
        align(settings("ppo", folder, tmp_path / "run", reward=reward), quiet=True)
    assert f"surefoot resume {tmp_path / 'run'}" in str(raised.value)
    assert Checkpoints(tmp_path / "run").steps() == [0, 2]
    (folder / "failing.py.mended").touch()
    resume(tmp_path / "run")
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "run"))
    assert one["reward"] == other["reward"]
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")


def test_a_reward_function_may_be_another_one_afterwards_which_is_said(folder, tmp_path, monkeypatch, capsys):
    stopped = crashed(settings("ppo", folder, tmp_path / "stopped"), 5, monkeypatch)
    with (folder / "rewards.py").open("a") as file:
        file.write("\n# mended\n")
    resume(stopped, quiet=False)
    assert "is another file than when the run began" in capsys.readouterr().err


def test_a_reward_that_is_not_finite_is_left_out_with_its_iteration(folder, tmp_path):
    (folder / "failing.py.nan").touch()
    reward = f"{folder / 'failing.py'}:at_times"
    with pytest.raises(RunError, match=r"iteration 3, on the prompts of rows .*nan.*checkpoints/2"):
        align(settings("ppo", folder, tmp_path / "stops", reward=reward), quiet=True)
    result = align(settings("ppo", folder, tmp_path / "skips", reward=reward, training__on_nonfinite="skip"), quiet=True)
    assert [line["skipped"] for line in lines(tmp_path / "skips")] == [0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert lines(tmp_path / "skips")[2]["prompts"] == 7
    assert lines(tmp_path / "skips")[1].keys() > lines(tmp_path / "skips")[2].keys()
    assert result["iterations"] == 9


def spoiling_forward_passes(number, monkeypatch, *, of):
    """Make what a model computes in iteration ``number`` not finite."""
    measure, sample = learner.PolicyOptimization._measure, sampler.Sampler._run
    seen = []

    def measured(self, part, experience):
        measure(self, part, experience)
        if self.iterations + 1 == number and of != "policy":
            (experience.reference if of == "reference" else experience.values)[0, 0] = float("nan")

    def sampled(self, *arguments, **options):
        samples, plain = sample(self, *arguments, **options)
        seen.append(1)
        if len(seen) == number and of == "policy":
            samples.log_probabilities[0][0] = float("nan")
        return samples, plain

    monkeypatch.setattr(learner.PolicyOptimization, "_measure", measured)
    monkeypatch.setattr(sampler.Sampler, "_run", sampled)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("policy", "the model's probabilities"),
        ("reference", "log-probability by the reference"),
        ("critic", "value by the critic"),
    ],
)
def test_what_models_compute_is_named_where_it_is_not_finite_and_changes_nothing(of, said, folder, tmp_path, monkeypatch):
    choices = {"objective__critic": "policy", "objective__kl_target": 0.1, "objective__kl_horizon": 100}
    with monkeypatch.context() as patch:
        spoiling_forward_passes(2, patch, of=of)
        with pytest.raises(RunError, match=rf"iteration 2, on the prompts of rows .*{said}.*checkpoints/1"):
            align(settings("ppo", folder, tmp_path / "stops", **choices), quiet=True)
    spoiling_forward_passes(2, monkeypatch, of=of)
    align(settings("ppo", folder, tmp_path / "skips", **choices, training__on_nonfinite="skip"), quiet=True)
    assert [line["skipped"] for line in lines(tmp_path / "skips")] == [0, *[1] * 8]
    coefficients = [line.get("kl/coefficient") for line in lines(tmp_path / "skips")]
    assert coefficients[1] is None
    assert None not in coefficients[2:]


def test_where_the_first_iteration_is_left_out_the_second_is_checked_and_settles_the_scale(folder, tmp_path):
    choices = {"training__on_nonfinite": "skip", "objective__standardize_rewards": "center", "objective__critic": "shared"}
    reward = f"{folder / 'failing.py'}:not_at_first"
    result = align(settings("ppo", folder, tmp_path / "run", reward=reward, **choices), quiet=True)
    assert result["ratio_error"] <= 1e-5
    scale = Checkpoints(tmp_path / "run").latest()[0].state["run"]["learner"]["reward_scale"]
    assert scale[0] == pytest.approx(lines(tmp_path / "run")[1]["reward"])


def test_in_the_middle_of_an_iteration_the_state_is_kept_for_inspection_alone(folder, tmp_path, monkeypatch):
    steps, descend = [], learner.descend

    def spoilt(*arguments, **options):
        steps.append(1)
        if len(steps) == 8:
            raise learner.NotFinite("the gradient is not finite (somewhere)")
        return descend(*arguments, **options)

    choices = {"objective__weight": "leave-one-out", "objective__update_epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(learner, "descend", spoilt)
        with pytest.raises(RunError, match=r"iteration 3, on the prompts of rows .*\(somewhere\).*failed/2"):
            align(settings("ppo", folder, tmp_path / "run", **choices), quiet=True)
        steps.clear()
        result = align(settings("ppo", folder, tmp_path / "skips", **choices, training__on_nonfinite="skip"), quiet=True)
    assert [line["skipped"] for line in lines(tmp_path / "skips")] == [0, 0, *[1] * 7]
    assert [line["steps"] for line in lines(tmp_path / "skips")] == [3, 3, 2, *[3] * 6]
    assert result["iterations"] == 9
    kept = Checkpoints(tmp_path / "run", name="failed").read(2)
    assert not kept.exact
    assert Checkpoints(tmp_path / "run").steps() == [0, 2]
    before = Checkpoints(tmp_path / "run").read(2).arrays
    assert any(kept.arrays[name].tobytes() != array.tobytes() for name, array in before.items())
    align(settings("ppo", folder, tmp_path / "whole", **choices), quiet=True)
    resume(tmp_path / "run")
    assert_the_same(tmp_path / "whole", tmp_path / "run")


def test_other_data_are_refused(folder, stopped, tmp_path, monkeypatch):
    text = (folder / "pairs.jsonl").read_text()
    (folder / "pairs.jsonl").write_text(text.replace("good", "yes", 1))
    with pytest.raises(UsageError, match=r"--data .*pairs.jsonl is not what the run began with"):
        resume(stopped)
    (folder / "pairs.jsonl").write_text("".join(reversed(text.splitlines(keepends=True))))
    with pytest.raises(UsageError, match="--data"):
        resume(stopped)
    before = (stopped / "metrics.jsonl").read_bytes()
    (folder / "pairs.jsonl").unlink()
    with pytest.raises(UsageError, match=r"pairs\.jsonl"):
        resume(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before  # what is refused changes nothing
    (folder / "pairs.jsonl").write_text(text)
    resume(stopped)
    others = {"training__eval_data": str(folder / "others.jsonl")}
    stopped = crashed(settings("reward", folder, tmp_path / "evaluated", **others), 5, monkeypatch)
    (folder / "others.jsonl").write_text(text)
    with pytest.raises(UsageError, match="--eval-data"):
        resume(stopped)
    stopped = crashed(settings("ppo", folder, tmp_path / "ppo"), 5, monkeypatch)
    text = (folder / "prompts.jsonl").read_text()
    (folder / "prompts.jsonl").write_text(text.replace('"about": 3', '"about": 4'))
    with pytest.raises(UsageError, match="--data"):
        resume(stopped)


def test_another_reward_model_is_refused(folder, tmp_path, monkeypatch):
    judge = reward_model()
    judge.save_pretrained(folder / "judge")
    word_level().save_pretrained(folder / "judge")
    choices = {"reward": str(folder / "judge"), "objective__weight": "group"}
    stopped = crashed(settings("ppo", folder, tmp_path / "stopped", **choices), 5, monkeypatch)
    with torch.no_grad():
        judge.score.weight[0, 0] += 1e-6
    judge.save_pretrained(folder / "judge")
    with pytest.raises(UsageError, match=r"--reward .*judge is not what the run began with"):
        resume(stopped)


def test_another_start_is_refused(folder, stopped, tmp_path):
    start = stopped / "start"
    weights = start / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"start/model.safetensors is not what the run began with"):
        resume(stopped)
    weights.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match="not what the run began with"):
        resume(stopped)
    weights.unlink()
    with pytest.raises(UsageError, match="is gone"):
        resume(stopped)
    weights.write_bytes(whole)
    (start / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UsageError, match=r"chat_template.jinja was not written by the run"):
        resume(stopped)
    (start / "chat_template.jinja").unlink()
    # another run's start, whole in itself
    save_language_model(folder / "model", "gpt2")
    align(settings("sft", folder, tmp_path / "other", training__epochs=1), quiet=True)
    shutil.move(start, tmp_path / "aside")
    shutil.copytree(tmp_path / "other" / "start", start)
    with pytest.raises(UsageError, match=r"manifest\.json is not the one that the run wrote"):
        resume(stopped)
    shutil.rmtree(start)
    with pytest.raises(UsageError, match="is gone"):
        resume(stopped)
    shutil.move(tmp_path / "aside", start)
    resume(stopped)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(folder, stopped, tmp_path, capsys):
    align(settings("dpo", folder, tmp_path / "whole"), quiet=True)
    assert Checkpoints(stopped).steps() == [2, 4]
    state = stopped / "checkpoints" / "4" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    resume(stopped, quiet=True)
    (said,) = capsys.readouterr().err.splitlines()  # which is no progress
    assert "4 is damaged" in said
    assert_the_same(tmp_path / "whole", stopped)


def test_a_run_without_a_whole_checkpoint_is_refused_with_a_sentence(folder, stopped, tmp_path):
    for step in (2, 4):
        (stopped / "checkpoints" / str(step) / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no checkpoint to go on from"):
        resume(stopped)
    align(settings("sft", folder, tmp_path / "plain", training__checkpoint_every=None), quiet=True)
    with pytest.raises(UsageError, match="trained without --checkpoint-every"):
        resume(tmp_path / "plain")


def test_a_finished_run_says_so(folder, stopped, tmp_path):
    resume(stopped)
    before = files(stopped)
    with pytest.raises(UsageError, match="is finished"):
        resume(stopped)
    with pytest.raises(UsageError, match="is finished"):
        resume(stopped, epochs=3)
    with pytest.raises(UsageError, match="may be raised from 3, but is 2"):
        resume(stopped, epochs=2)
    assert files(stopped) == before
    choices = {"objective__stop_kl": 1e-3, "training__epochs": 4}
    align(settings("ppo", folder, tmp_path / "early", **choices), quiet=True)
    with pytest.raises(UsageError, match="finished: it stopped after"):
        resume(tmp_path / "early", epochs=5)


def test_two_processes_cannot_write_to_one_run(folder, stopped, tmp_path, monkeypatch):
    with RunLock(stopped), pytest.raises(UsageError, match="in use"):
        resume(stopped)
    taken = tmp_path / "taken"
    taken.mkdir()
    with RunLock(taken), pytest.raises(UsageError, match="in use"):
        align(settings("sft", folder, taken), quiet=True)
    held, update = [], offline.OfflineRun.update

    def held_meanwhile(self, *arguments, **options):
        with pytest.raises(UsageError, match="in use"):
            RunLock(tmp_path / "run")
        held.append(self.updates)
        update(self, *arguments, **options)

    monkeypatch.setattr(offline.OfflineRun, "update", held_meanwhile)
    align(settings("sft", folder, tmp_path / "run"), quiet=True)
    assert len(held) == 9
    RunLock(tmp_path / "run").release()


def test_settings_that_were_altered_are_refused_with_a_sentence(folder, stopped):
    path = stopped / "config.json"
    whole = json.loads(path.read_text())
    for change, said in (
        ({"epoch": 3}, "did you mean epochs"),
        ({"epochs": "three"}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"learning_rate": -1.0}, "learning-rate"),
        ({"method": "grpo"}, "there is no method 'grpo'"),
        ({"method": ["dpo"]}, "there is no method"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite"),
        ({"fingerprints": []}, "fingerprints"),
        ({"command": 3}, "command"),
        ({"directory": None}, "directory"),
        ({"start": 3}, "start"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(UsageError, match=r"config\.json") as raised:
            resume(stopped)
        assert said in str(raised.value)
    for name in ("beta", "start", "fingerprints"):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        with pytest.raises(UsageError, match=name):
            resume(stopped)
    for name, value in (("learning_rate", 0.02), ("beta", 0.2), ("seed", 1), ("lora_rank", 2), ("batch_size", 5)):
        path.write_text(json.dumps(whole | {name: value}))
        with pytest.raises(UsageError, match=f"says {name} {value}, where the run had {whole[name]}"):
            resume(stopped)
    path.write_text(json.dumps(whole | {"fingerprints": {}}))
    with pytest.raises(UsageError, match=r"--data .* is not what the run began with"):
        resume(stopped)
    (folder / "pairs.jsonl").rename(folder / "moved.jsonl")
    whole["fingerprints"]["--nothing"] = "that anybody reads"
    path.write_text(json.dumps(whole | {"keep_checkpoints": 5, "data": str(folder / "moved.jsonl")}))
    resume(stopped)
    assert Checkpoints(stopped).steps() == [2, 4, 6, 8, 9]


def places(state, path=()):
    """Where in a state something stands."""
    for name, value in state.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_checkpoint_with_anything_in_it_is_a_sentence(method, folder, tmp_path, monkeypatch):
    stopped = crashed(settings(method, folder, tmp_path / "stopped"), 5, monkeypatch)
    monkeypatch.setattr(offline.OfflineRun, "advance", lambda self: iter(()))
    monkeypatch.setattr(online.OnlineRun, "advance", lambda self: iter(()))
    monkeypatch.setattr(training, "save_model", lambda *arguments, **options: None)
    checkpoint = Checkpoints(stopped).latest()[0]
    values = ["x", -1, [], {"x": "y"}, [None, 3], True]
    there = [place for place in places(checkpoint.state) if place[0] not in ("computed_with", "settings") or len(place) == 1]
    assert len(there) > 30
    accepted = []
    for number, (*path, name) in enumerate(there):
        state = json.loads(json.dumps(checkpoint.state))
        inner = state
        for step in path:
            inner = inner[step]
        value = values[number % len(values)]
        inner[name] = value
        Checkpoints(stopped).write(replace(checkpoint, state=state))
        try:
            resume(stopped)
        except UsageError:
            continue
        except RunError:
            continue
        accepted.append((name, value))
        (stopped / "summary.json").unlink()
    # Where a number is right any could be, but for counts; and texts are only shown.
    counts = {"updates", "iterations", "prompts", "asked", "pairs", "tokens", "step", "samples", "metrics"}
    texts = ("ended_early", "notice")
    assert [(name, value) for name, value in accepted if value != -1 and name not in texts] == []
    assert not counts & {name for name, _ in accepted}
    for name in ("parameter/model.embed_tokens.weight", "step/model.embed_tokens.weight"):
        arrays = {other: array for other, array in checkpoint.arrays.items() if other != name}
        Checkpoints(stopped).write(replace(checkpoint, arrays=arrays))
        with pytest.raises(UsageError, match="of another run"):
            resume(stopped)


def test_other_libraries_and_threads_are_said(stopped, capsys):
    torch.set_num_threads(2)
    try:
        resume(stopped, quiet=False)
    finally:
        torch.set_num_threads(1)
    assert "threads 2 in place of 1" in capsys.readouterr().err


def test_the_command_line_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    options = ["--model", str(folder / "model"), "--data", str(folder / "pairs.jsonl"), "--batch-size", "4", "--epochs", "2"]
    places = ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(offline.OfflineRun, "unfinished", property(lambda self: True))
    assert cli.main(["align", "sft", *options, *places, "--checkpoint-every", "2", "--quiet"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"to go on: surefoot resume {tmp_path / 'run'}"
    assert cli.main(["align", "sft", *options, "--out", str(tmp_path / "b"), "--checkpoint-every", "often"]) == 2
    assert "--checkpoint-every" in capsys.readouterr().err
    assert cli.main(["align", "sft", *options, "--out", str(tmp_path / "b"), "--keep-checkpoints", "3"]) == 2
    assert "there is no --checkpoint-every" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_run_that_is_refused_before_it_began_leaves_nothing(folder, tmp_path):
    broken = settings("dpo", folder, tmp_path / "run")
    broken = replace(broken, data=replace(broken.data, max_length=2))
    with pytest.raises(UsageError):
        align(broken, quiet=True)
    assert not (tmp_path / "run").exists()
    adapter = settings("dpo", folder, tmp_path / "run", adapter__lora_rank=2, adapter__lora_targets="nothing")
    with pytest.raises(UsageError, match="lora-targets"):  # when the start was kept already
        align(adapter, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_somebody_elses_that_is_called_start_is_left_alone(folder, tmp_path):
    notes = tmp_path / "mine" / "start" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("precious")
    for every in ("2", None):
        with pytest.raises(UsageError, match=r"mine/start is not a run's, and would be overwritten; choose another --out"):
            align(settings("sft", folder, tmp_path / "mine", training__checkpoint_every=every), quiet=True)
        assert files(tmp_path / "mine") == {"start/notes.txt": b"precious"}


def test_an_adapter_of_somebody_elses_is_left_alone(folder, tmp_path):
    weights = tmp_path / "mine" / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("precious")
    with pytest.raises(UsageError, match="choose another --out"):
        align(settings("sft", folder, tmp_path / "mine", adapter__lora_rank=2), quiet=True)
    assert files(tmp_path / "mine") == {"adapter/adapter_model.safetensors": b"precious"}


@pytest.mark.parametrize("every", ["2", None])
def test_what_a_process_left_that_was_killed_while_it_began_is_in_nobodys_way(every, folder, tmp_path, monkeypatch, capsys):
    def killed(*arguments):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_json", killed)
        patch.setattr(training, "_leave", lambda folder: None)
        with pytest.raises(SystemExit):
            align(settings("dpo", folder, tmp_path / "run"), quiet=True)
    assert (tmp_path / "run" / "start" / "model.safetensors").exists()
    (tmp_path / "run" / ".start.writing").mkdir()
    assert cli.main(["resume", str(tmp_path / "run")]) == 2
    assert "stopped while it began" in capsys.readouterr().err
    save_language_model(folder / "model", "gpt2")
    align(settings("dpo", folder, tmp_path / "run", training__checkpoint_every=every), quiet=True)
    assert (tmp_path / "run" / "start").exists() == (every is not None)
    assert not (tmp_path / "run" / ".start.writing").exists()
    from surefoot.alignment.evaluation import evaluate_alignment

    evaluate_alignment(tmp_path / "run", data=str(folder / "others.jsonl"))


def test_a_run_that_is_stopped_at_once_while_it_begins_leaves_nothing(folder, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_reference", interrupted)  # the start is kept already
    with pytest.raises(KeyboardInterrupt):
        align(settings("dpo", folder, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_stopped_at_once_in_the_middle_of_an_update_it_saves_nothing_and_can_be_gone_on_with(folder, tmp_path, monkeypatch):
    align(settings("sft", folder, tmp_path / "whole"), quiet=True)
    descend, steps = offline.descend, []

    def interrupted(*arguments, **options):
        steps.append(descend(*arguments, **options))
        if len(steps) == 4:
            raise KeyboardInterrupt  # as the second signal does
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(offline, "descend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            align(settings("sft", folder, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run" / "model").exists()
    resume(tmp_path / "run")
    assert_the_same(tmp_path / "whole", tmp_path / "run")


def test_what_came_first_is_what_is_said(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RunError("the disk is full")

    spoiling_update(4, monkeypatch, how="loss")
    monkeypatch.setattr(training, "save_model", full)
    with pytest.raises(RunError, match="update 4, on the batch with rows"):
        align(settings("sft", folder, tmp_path / "run"), quiet=True)


def test_the_reference_of_an_evaluation_is_the_runs_own(folder, tmp_path):
    from surefoot.alignment.evaluation import evaluate_alignment

    align(settings("dpo", folder, tmp_path / "run"), quiet=True)
    before = evaluate_alignment(tmp_path / "run", data=str(folder / "others.jsonl"))
    shutil.rmtree(folder / "model")
    after = evaluate_alignment(tmp_path / "run", data=str(folder / "others.jsonl"))
    assert before["metrics"] == after["metrics"]


def test_sample_answers_are_whole_entries_on_a_full_disk_too(folder, tmp_path, monkeypatch):
    align(settings("ppo", folder, tmp_path / "run", training__epochs=1), quiet=True)
    path = tmp_path / "run" / "samples.jsonl"
    before = path.read_bytes()
    assert before.endswith(b"}\n")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    entries = samples.SampleFile(tmp_path / "run", word_level())
    monkeypatch.setattr(samples.SampleFile, "_lines", lambda *arguments: ["x" * 2000 + "\n"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, limit[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*samples\.jsonl: .*; the entries before are kept"):
            entries.write(None, iteration=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert entries.length() == len(before)
