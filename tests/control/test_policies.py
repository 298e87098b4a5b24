"""Saved policies and their evaluation: what is loaded is what was trained, and nothing of the run changes."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest

import surefoot
from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import load_policy
from surefoot.control.training import train
from surefoot.errors import UsageError
from tests.control.helpers import configure


def test_evaluation_leaves_the_run_untouched(tmp_path):
    run = tmp_path / "run"
    train(configure(backend="gymnasium", out=str(run), total_steps=128), quiet=True)
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    first, second = evaluate(run, episodes=7), evaluate(run, episodes=7)
    assert first == second
    assert evaluate(run, episodes=7, seed=1) != first
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before


def test_evaluation_counts_long_episodes_too(tmp_path):
    """Episodes of 3 and 4 steps in turn: exactly half of each, though short ones end first."""
    configuration = configure(env="tests.control.toys:Walk", out=str(tmp_path / "run"), total_steps=64)
    train(configuration, quiet=True)
    with pytest.raises(UsageError, match=r"tests.control.toys:Walk, which is code that .* give --env tests.control.toys:Walk"):
        evaluate(tmp_path / "run", episodes=40)
    got = evaluate(tmp_path / "run", episodes=40, environment="tests.control.toys:Walk", num_envs=10)
    assert got["mean_length"] == 3.5
    # Positions 1, 2, 3 (, 4) plus 0.1 per earlier episode of that environment, four episodes each.
    np.testing.assert_allclose(got["mean_return"], np.mean([6.0, 10 + 0.4, 6 + 0.6, 10 + 1.2]), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"normalize_observations": False}, {"env": "Pendulum-v1"}])
def test_saved_policy_is_the_trained_one(options, tmp_path):
    """What `surefoot.load` gives acts as the learner did, normaliser included, for one observation and for several."""
    configuration = configure(**{"backend": "gymnasium-sync", "out": str(tmp_path / "run"), "total_steps": 256} | options)
    train(configuration, quiet=True)
    policy = surefoot.load(tmp_path / "run")
    size = policy.spaces.observation_size
    observations = np.random.default_rng(0).normal(size=(6, size)).astype(np.float32)
    several = policy(observations, deterministic=True)
    singles = np.stack([policy(o, deterministic=True) for o in observations])
    np.testing.assert_allclose(several, singles, rtol=1e-6, atol=1e-8)
    assert (policy.observation_statistics is None) == ("normalize_observations" in options)
    seen = observations
    if policy.observation_statistics is not None:
        mean, variance, count, remainder = policy.observation_statistics
        assert count > 200
        seen = np.clip((observations - mean - remainder) / np.sqrt(variance), -10, 10)
    hidden = np.tanh(seen @ policy.parameters["layer_0/weight"] + policy.parameters["layer_0/bias"])
    outputs = hidden @ policy.parameters["layer_1/weight"] + policy.parameters["layer_1/bias"]
    expected = outputs.argmax(-1) if "env" not in options else np.clip(2 * outputs, -2, 2)
    np.testing.assert_allclose(several, expected, rtol=1e-5)
    generator = lambda: np.random.default_rng(5)  # noqa: E731
    np.testing.assert_array_equal(policy(observations, generator=generator()), policy(observations, generator=generator()))
    with pytest.raises(ValueError, match="observations have shape"):
        policy(np.zeros(size + 1))


def test_loaded_policies_act_within_a_space_of_float64(tmp_path):
    """float32's 0.1 is larger than 0.1."""
    space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)
    make = lambda: gymnasium.wrappers.TransformAction(gymnasium.make("Pendulum-v1"), lambda a: np.float32(20 * a), space)  # noqa: E731
    train(configure(out=str(tmp_path / "run"), total_steps=64, initial_log_std=1.0), environment=make, quiet=True)
    policy = surefoot.load(tmp_path / "run")
    generator = np.random.default_rng(0)
    actions = [policy(np.zeros(3, np.float32), generator=generator) for _ in range(100)]
    assert all(space.contains(action) for action in actions)
    assert any(action == 0.1 for action in actions)


def test_policies_of_before_normalise_as_they_did(tmp_path):
    """Their files say nothing of dtypes nor of what float32 leaves out of a mean, and 1e-8 was added to a variance."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    run = tmp_path / "run"
    train(configure(backend="gymnasium", out=str(run), total_steps=64), quiet=True)
    file = run / "policy" / "policy.safetensors"
    with safe_open(file, framework="numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = json.loads(opened.metadata()["surefoot"])
    del tensors["observation_statistics/remainder"], about["spaces"]["observation_dtype"]
    del about["spaces"]["action"]["environment_dtype"]
    mean, variance = np.float32([0.5, 0, -1, 2]), np.float32([1e-8, 0, 4, 1e-10])
    tensors |= {"observation_statistics/mean": mean, "observation_statistics/variance": variance}
    save_file(tensors, file, metadata={"surefoot": json.dumps(about)})
    observations = np.float32([[0.5001, 1e-5, 3, 2.0002]])
    expected = np.clip((observations - mean) / np.sqrt(variance + 1e-8), -10, 10)
    np.testing.assert_allclose(surefoot.load(run).seen(observations), expected, rtol=1e-4)
    assert evaluate(run, episodes=2)["episodes"] == 2


def test_policies_load_without_jax(tmp_path):
    import subprocess
    import sys

    train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=64), quiet=True)
    code = (
        "import sys, numpy, surefoot\n"
        f"policy = surefoot.load({str(tmp_path / 'run')!r})\n"
        "assert policy(numpy.zeros(4)) in (0, 1)\n"
        "assert not {'jax', 'torch', 'gymnasium'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_policies_are_refused(tmp_path):
    run = tmp_path / "run"
    train(configure(backend="gymnasium", out=str(run), total_steps=64), quiet=True)
    weights = run / "policy" / "policy.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:100], b"", b"\x80\x04 not safetensors"):
        weights.write_bytes(damaged)
        with pytest.raises(UsageError, match="damaged or not a surefoot policy"):
            load_policy(run)
    with pytest.raises(UsageError, match="is not a run"):
        load_policy(tmp_path / "nowhere")


def test_several_seeds_are_evaluated_one_by_one(tmp_path):
    train(configure(backend="jax", out=str(tmp_path / "all"), seeds=2, total_steps=64), quiet=True)
    with pytest.raises(UsageError, match=r"holds several seeds; give the folder of one, such as .*seed-0"):
        evaluate(tmp_path / "all")
