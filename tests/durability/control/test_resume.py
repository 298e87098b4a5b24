"""A resumed run is the run: stopped anywhere and gone on with, it ends with the bits of one that was never stopped."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import Policy
from surefoot.control.training import resume, train
from surefoot.errors import RunError, UsageError
from surefoot.runs.checkpoints import Checkpoints, Damaged
from surefoot.runs.lock import RunLock
from surefoot.runs.metrics import read_metrics
from tests.durability.control.runs import CASES, configured, contents, differences, stop_after, stopped_at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by case, made once."""

    @functools.cache
    def make(case):
        run = tmp_path_factory.mktemp("whole") / "run"
        train(configured(case, run), quiet=True)
        return run

    return make


@pytest.mark.parametrize("case", CASES)
def test_gone_on_with_from_any_exact_checkpoint_it_is_the_run(case, whole, tmp_path):
    run = whole(case)
    steps = Checkpoints(run).steps()
    assert len(steps) >= 2
    for step in {steps[0], steps[len(steps) // 2]} - {steps[-1]}:
        copy = stopped_at(run, step, tmp_path / str(step))
        assert Checkpoints(copy).latest()[0].exact
        result = resume(copy, quiet=True)
        assert result["resumed"] == [{"step": step, "exact": True}]
        assert differences(contents(run), contents(copy)) == []


def test_what_is_compared_differs_between_seeds(whole, tmp_path):
    """The comparison sees a difference where there is one."""
    case = "ppo on JAX"
    train(configured(case, tmp_path / "other", seed=1), quiet=True)
    names = differences(contents(whole(case)), contents(tmp_path / "other"))
    assert {"./policy", "./metrics", "./curve", "./state", "./summary"} <= set(names)


@pytest.mark.parametrize("case", ["ppo on JAX", "ppo on Gymnasium"])
def test_keeping_checkpoints_changes_nothing(case, whole, tmp_path):
    train(configured(case, tmp_path / "run", checkpoint_every=None), quiet=True)
    names = differences(contents(whole(case)), contents(tmp_path / "run"))
    assert names == ["./state", "./summary"], "which says where the last checkpoint is"


def test_stopped_twice_and_before_the_first_checkpoint(whole, tmp_path):
    case = "ppo on JAX"
    run = whole(case)
    copy = stopped_at(run, 0, tmp_path / "copy")
    assert Checkpoints(copy).steps() == []
    result = resume(copy, quiet=True)
    assert result["resumed"] == [{"step": 0, "exact": True}]
    assert differences(contents(run), contents(copy)) == []
    again = stopped_at(copy, 256, tmp_path / "again")
    result = resume(again, quiet=True)
    assert result["resumed"] == [{"step": 0, "exact": True}, {"step": 256, "exact": True}]
    assert differences(contents(run), contents(again)) == []


@pytest.mark.parametrize(("case", "exact"), [("ppo on JAX", True), ("ppo on Gymnasium", False)])
def test_a_signal_keeps_a_checkpoint_of_the_moment(case, exact, whole, tmp_path, monkeypatch):
    """In the third report of 64 steps: between two of Gymnasium's beginnings."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        stopped = train(configured(case, tmp_path / "run"), quiet=True)
    assert stopped["interrupted"]
    assert stopped["checkpoint"] == {"step": 192, "exact": exact}
    result = resume(tmp_path / "run", quiet=True)
    assert result["resumed"] == [{"step": 192, "exact": exact}]
    assert not result["interrupted"]
    names = differences(contents(whole(case)), contents(tmp_path / "run"))
    assert (names == []) == exact
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["slots"] for line in lines] == [64 * i for i in range(1, 9)], "no line lost, none doubled"


def test_exact_passes_over_what_is_not(whole, tmp_path, monkeypatch):
    case = "ppo on Gymnasium"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(configured(case, tmp_path / "run", keep_checkpoints=1), quiet=True)
    assert Checkpoints(tmp_path / "run").steps() == [128, 192], "the last exact one is kept besides"
    result = resume(tmp_path / "run", exact=True, quiet=True)
    assert result["resumed"] == [{"step": 128, "exact": True}]
    assert differences(contents(whole(case)), contents(tmp_path / "run")) == []


def test_inexact_checkpoints_begin_other_episodes_not_the_same_again(whole, tmp_path, monkeypatch):
    """Resumed between two beginnings, environments and noise are neither those of the last beginning nor of the next."""
    from surefoot.control.environments.host import environment_seed

    assert (
        len({environment_seed(0, began) for began in range(100)} | {environment_seed(1, began) for began in range(100)}) == 200
    )
    assert environment_seed(3) == int(np.random.SeedSequence([3, 3]).generate_state(1)[0] >> 2)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_is_still_the_run(whole, tmp_path, capsys):
    case = "ppo on JAX"
    copy = stopped_at(whole(case), 320, tmp_path / "copy")
    path = copy / "checkpoints" / "320" / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = resume(copy, quiet=True)
    said = "320 is damaged (state.safetensors does not have the checksum of its manifest) and is passed over"
    (line,) = capsys.readouterr().err.splitlines()  # which is no progress
    assert said in line
    assert result["resumed"] == [{"step": 256, "exact": True}]
    assert differences(contents(whole(case)), contents(copy)) == []


def test_where_all_are_damaged_nothing_is_touched(whole, tmp_path):
    copy = stopped_at(whole("ppo on JAX"), 128, tmp_path / "copy")
    for step in Checkpoints(copy).steps():
        (copy / "checkpoints" / str(step) / "manifest.json").unlink()
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UsageError, match=r"has no checkpoint to go on from: .*128 is damaged .*; .*64 is damaged .*; train anew"
    ):
        resume(copy, quiet=True)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_other_libraries_are_said_and_do_not_stop_the_run(whole, tmp_path, capsys):
    case = "ppo on Gymnasium"
    copy = stopped_at(whole(case), 256, tmp_path / "copy")
    checkpoints = Checkpoints(copy)
    found = checkpoints.read(256)
    versions = found.state["computed_with"] | {"jax": "0.1", "processors": "1000"}
    checkpoints.write(replace(found, state={**found.state, "computed_with": versions}))
    result = resume(copy)
    words = (
        r"libraries have changed \(jax \S+ in place of 0.1, processors \d+ in place of 1000\): the run goes on, but may differ"
    )
    assert re.search(words, capsys.readouterr().err)
    assert result["resumed"] == [{"step": 256, "exact": False}]
    assert differences(contents(whole(case)), contents(copy)) == []


def test_metrics_that_lost_lines_are_said_and_do_not_stop_the_run(whole, tmp_path, capsys):
    case = "ppo on JAX"
    copy = stopped_at(whole(case), 256, tmp_path / "copy")
    path = copy / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:500])
    resume(copy)
    assert "bytes where it had" in capsys.readouterr().err
    names = differences(contents(whole(case)), contents(copy))
    assert names == ["./metrics"]


# What is refused


def test_without_checkpoints_there_is_nothing_to_go_on_from(tmp_path):
    train(configured("ppo on JAX", tmp_path / "run", checkpoint_every=None), quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(UsageError, match="keeps no checkpoints to go on from; train with --checkpoint-every"):
        resume(tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match="does not exist; give the folder of a run"):
        resume(tmp_path / "nowhere", quiet=True)


def test_another_configuration_is_refused(whole, tmp_path):
    copy = stopped_at(whole("ppo on JAX"), 256, tmp_path / "copy")
    path = copy / "config.json"
    settings = json.loads(path.read_text())
    for name, value, words in (
        ("learning_rate", 0.5, "config.json says learning_rate 0.5, but the checkpoint at step 256 was written under 0.0003"),
        ("hidden_sizes", [4], r"config.json says hidden_sizes \[4\]"),
        ("num_envs", 8, "config.json says num_envs 8, but the checkpoint at step 256 was written under 4"),
        ("seeds", 2, "config.json says seeds 2, but .*copy holds the run of one seed; set it back"),
        ("learning_rat", 0.5, "there is no setting 'learning_rat'; did you mean learning_rate"),
        ("epochs", "two", "epochs is 'two', where a whole number is right"),
        ("max_kl", 0.1, "give either entropy_coefficient, of an objective, or max_kl, of a trust region"),
        ("discount", 3.0, "--discount must lie between 0 and 1"),
        ("checkpoint_every", "often", "--checkpoint-every must be a number of steps"),
    ):
        path.write_text(json.dumps(settings | {name: value}))
        with pytest.raises(UsageError, match=words):
            resume(copy, quiet=True)
    path.write_text(json.dumps(settings | {"keep_checkpoints": 1, "tensorboard": False, "checkpoint_every": "5m"}))
    resume(copy, quiet=True)
    assert (
        differences(
            contents(whole("ppo on JAX")) | {"./curve": 0, "./summary": 0}, contents(copy) | {"./curve": 0, "./summary": 0}
        )
        == []
    )


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": -1}, {"iteration": 3}, {"iteration": "4"}, {"acted": []}, {"acted": [1, 2]}, {"acted": ["1"]}, {"metrics": [3]},
        {"metrics": [{"metrics": 0, "tensorboard": {"file": "../../x", "bytes": 0}}]}, {"backend": 3}, {"backend": "envpool"},
        {"configuration": []}, {"finished": 0}, {"resumed": [1]}, {"computed_with": []}, {"seconds": None}, {"data": "0"},
    ],
    ids=str,
)  # fmt: skip
def test_a_strangers_state_is_a_sentence(change, whole, tmp_path):
    """Well-formed, with right checksums, and yet not what this program writes."""
    copy = stopped_at(whole("ppo on JAX"), 256, tmp_path / "copy")
    checkpoints = Checkpoints(copy)
    found = checkpoints.read(256)
    checkpoints.write(replace(found, state=dict(found.state) | change))
    with pytest.raises(UsageError):
        resume(copy, quiet=True)


@pytest.mark.parametrize("how", ["missing", "unknown", "shape", "dtype", "tracker"])
def test_strange_arrays_are_a_sentence(how, whole, tmp_path):
    copy = stopped_at(whole("ppo on JAX"), 256, tmp_path / "copy")
    checkpoints = Checkpoints(copy)
    found = checkpoints.read(256)
    arrays = dict(found.arrays)
    name = "iteration/learner/actor/parameters/layer_0/weight"
    if how == "missing":
        del arrays[name]
    elif how == "unknown":
        arrays["iteration/learner/else"] = np.zeros(3)
    elif how == "tracker":
        arrays["episodes/0/returns"] = np.zeros(3)
    else:
        arrays[name] = arrays[name][..., :1].copy() if how == "shape" else arrays[name].astype(np.float64)
    checkpoints.write(replace(found, arrays=arrays))
    with pytest.raises(UsageError, match="the checkpoint does not fit this run"):
        resume(copy, quiet=True)


def test_two_processes_do_not_share_a_run(whole, tmp_path):
    copy = stopped_at(whole("ppo on JAX"), 256, tmp_path / "copy")
    with RunLock(copy), pytest.raises(UsageError, match="is in use by process"):
        resume(copy, quiet=True)
    (tmp_path / "new").mkdir()
    with RunLock(tmp_path / "new"), pytest.raises(UsageError, match="is in use by process"):
        train(configured("ppo on JAX", tmp_path / "new"), quiet=True)


def test_a_run_may_be_moved(whole, tmp_path, monkeypatch):
    case = "ppo on JAX"
    copy = stopped_at(whole(case), 256, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    resume("moved", quiet=True)
    assert differences(contents(whole(case)), contents(copy)) == []


def test_never_restarting_means_no_exact_checkpoint(tmp_path, capsys):
    case = "ppo on Gymnasium"
    result = train(configured(case, tmp_path / "run", restart_every=0, total_steps=256))
    assert "--restart-every 0: no checkpoint of CartPole-v1 is exact" in capsys.readouterr().err
    assert [Checkpoints(tmp_path / "run").read(step).exact for step in Checkpoints(tmp_path / "run").steps()] == [False, False]
    assert result["checkpoint"] == {"step": 256, "exact": False}
    words = "no exact checkpoint to go on from: .*256 is not exact, .*; leave --exact out to take one that is not"
    with pytest.raises(UsageError, match=words):
        resume(tmp_path / "run", exact=True, total_steps=512, quiet=True)


def test_pure_jax_environments_have_no_use_for_the_grid(tmp_path):
    with pytest.raises(UsageError, match="--restart-every would do nothing: CartPole-v1 is a pure-JAX environment"):
        train(configured("ppo on JAX", tmp_path / "run", restart_every=64), quiet=True)


def test_checkpoints_between_two_beginnings(tmp_path):
    """Every 64 steps, beginnings every 256: those in between are inexact; every 300, they wait for the next beginning."""
    case = "ppo on Gymnasium"
    train(configured(case, tmp_path / "often", restart_every=256, checkpoint_every="64"), quiet=True)
    found = Checkpoints(tmp_path / "often")
    assert {step: found.read(step).exact for step in found.steps()} == {64 * i: i % 4 == 0 for i in range(1, 9)}
    train(configured(case, tmp_path / "seldom", restart_every=256, checkpoint_every="300", total_steps=1024), quiet=True)
    found = Checkpoints(tmp_path / "seldom")
    assert {step: found.read(step).exact for step in found.steps()} == {512: True, 768: True, 1024: True}
    train(configured(case, tmp_path / "odd", restart_every=256, checkpoint_every="192"), quiet=True)
    found = Checkpoints(tmp_path / "odd")
    assert {step: found.read(step).exact for step in found.steps()} == {192: False, 256: True, 384: False, 512: True}


def test_gone_on_with_from_an_inexact_one_the_next_beginning_gets_an_exact_one(tmp_path, monkeypatch):
    """Every 192 steps, beginnings every 256: at 256 nothing is due but what 192 could not be."""
    case, settings = "ppo on Gymnasium", {"restart_every": 256, "checkpoint_every": "192"}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(configured(case, tmp_path / "run", **settings), quiet=True)
    assert resume(tmp_path / "run", quiet=True)["resumed"] == [{"step": 192, "exact": False}]
    found = Checkpoints(tmp_path / "run")
    assert {step: found.read(step).exact for step in found.steps()} == {192: False, 256: True, 384: False, 512: True}


def test_the_best_is_kept(tmp_path):
    train(configured("ppo on JAX", tmp_path / "run", keep_checkpoints=1, total_steps=2048, learning_rate=1e-2), quiet=True)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    known = [
        (line["episode/return_mean_recent"], line["slots"]) for line in lines if line["episode/return_mean_recent"] is not None
    ]
    best = max(known, key=lambda pair: (pair[0], -pair[1]))[1]
    assert Checkpoints(tmp_path / "run").steps() == sorted({best, 2048})


def test_disk_full_while_keeping_leaves_the_last_one(tmp_path, monkeypatch):
    from surefoot.runs import checkpoints

    plain, written = checkpoints._write_flushed, []

    def full(path, content):
        written.append(path)
        if len(written) == 3:  # the second checkpoint's state
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        plain(path, content)

    def no_policy(self, folder):
        raise RunError(f"cannot write {folder / 'policy'}")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write_flushed", full)
        patch.setattr(Policy, "save", no_policy)  # the disk is still full, and this is not what matters
        with pytest.raises(RunError, match=r"cannot write .*128: No space left on device; the checkpoints before it are whole"):
            train(configured("ppo on JAX", tmp_path / "run"), quiet=True)
    assert Checkpoints(tmp_path / "run").steps() == [64]
    result = resume(tmp_path / "run", quiet=True)
    assert result["resumed"] == [{"step": 64, "exact": True}]
    with pytest.raises(Damaged):
        Checkpoints(tmp_path / "run").read(65)


def test_what_python_gives_is_trained_loaded_and_resumed(tmp_path):
    """In the types that it comes in: of NumPy, as paths, as floats that are whole numbers."""
    given = {"total_steps": 128.0, "learning_rate": np.float32(1e-3), "seed": np.int64(3), "hidden_sizes": np.array([8])}
    options = given | {"checkpoint_every": np.int64(64), "normalize_rewards": np.bool_(True)}
    train(configured("ppo on JAX", tmp_path / "run", **options, restart_every=None), quiet=True)
    assert evaluate(tmp_path / "run", episodes=2.0, backend="jax", quiet=True)["episodes"] == 2
    assert resume(tmp_path / "run", total_steps=256.0, quiet=True)["checkpoint"] == {"step": 256, "exact": True}
    with pytest.raises(UsageError, match="total_steps is 'more', where a whole number or null is right"):
        resume(tmp_path / "run", total_steps="more", quiet=True)
