"""Saved policies and their evaluation: what is loaded is what was trained, and nothing of the run changes."""

from __future__ import annotations

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
    got = evaluate(tmp_path / "run", episodes=40, environment="tests.control.toys:Walk")
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
    np.testing.assert_allclose(several, singles, rtol=1e-6)
    assert (policy.observation_statistics is None) == ("normalize_observations" in options)
    seen = observations
    if policy.observation_statistics is not None:
        mean, variance, count = policy.observation_statistics
        assert count > 200
        seen = np.clip((observations - mean) / np.sqrt(variance + 1e-8), -10, 10)
    hidden = np.tanh(seen @ policy.parameters["layer_0/weight"] + policy.parameters["layer_0/bias"])
    outputs = hidden @ policy.parameters["layer_1/weight"] + policy.parameters["layer_1/bias"]
    expected = outputs.argmax(-1) if "env" not in options else np.clip(2 * outputs, -2, 2)
    np.testing.assert_allclose(several, expected, rtol=1e-5)
    generator = lambda: np.random.default_rng(5)  # noqa: E731
    np.testing.assert_array_equal(policy(observations, generator=generator()), policy(observations, generator=generator()))
    with pytest.raises(ValueError, match="observations have shape"):
        policy(np.zeros(size + 1))


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
