"""JAX's settings in a user's process or shell are for other programs: the bits of a run do not depend on them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import load_policy
from surefoot.control.training import train
from surefoot.errors import UsageError
from tests.control.helpers import configure

SETTINGS = [
    jax.default_prng_impl("rbg"), jax.enable_custom_prng(True), jax.legacy_prng_key("error"), jax.threefry_partitionable(False),
    jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"),
]  # fmt: skip
CASES = {
    "ppo on Gymnasium": ("ppo", {"backend": "gymnasium"}),
    "ppo on JAX": ("ppo", {"backend": "jax"}),
    "trpo, one after the other": ("trpo", {"backend": "gymnasium-sync", "weight": "advantage"}),
}
if importlib.util.find_spec("envpool"):
    CASES["a2c on EnvPool"] = ("a2c", {"backend": "envpool", "rollout_length": 4})
SMALL = {"total_steps": 128, "num_envs": 4, "seed": 3}


def outcome(case, out):
    algorithm, options = CASES[case]
    train(configure(algorithm, out=str(out), **SMALL | options), quiet=True)
    backend = "jax" if case == "ppo on JAX" else "gymnasium-sync"
    evaluated = evaluate(out, episodes=2, backend=backend)
    parameters = load_policy(out).parameters
    return {name: np.asarray(value).tobytes() for name, value in parameters.items()}, evaluated


@pytest.mark.parametrize("case", CASES)
def test_settings_for_other_programs_do_not_matter(case, tmp_path):
    expected = outcome(case, tmp_path / "plain")
    with contextlib.ExitStack() as stack:
        for setting in SETTINGS:
            stack.enter_context(setting)
        if case != "ppo on JAX":  # an environment that is written in JAX has the precision that its process has
            stack.enter_context(jax.enable_x64(True))
        assert outcome(case, tmp_path / "changed") == expected


class Doubled(gymnasium.Env):
    """Computes with JAX, as its process is set."""

    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (1,), np.float64), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.note()
        return np.zeros(1), {}

    def step(self, action):
        self.note()
        return np.zeros(1), 1.0, False, False, {}

    def note(self):
        assert jnp.float64(1).dtype == np.float64
        assert jax.random.key_data(jax.random.key(0)).shape == (4,)


def test_an_environment_in_python_computes_as_its_process_is_set(tmp_path):
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        train(configure(out=str(tmp_path / "run"), backend="auto", restart_every=64, **SMALL), environment=Doubled, quiet=True)


def test_training_needs_to_compile(tmp_path):
    with jax.disable_jit(), pytest.raises(UsageError, match=r"not to compile \(JAX_DISABLE_JIT\).*unset that"):
        train(configure(out=str(tmp_path / "run"), **SMALL), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_a_platform_that_is_not_there_is_a_sentence(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "surefoot", *f"train ppo --env CartPole-v1 --backend gymnasium --out {out}".split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cuda"})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "surefoot: JAX is told to compute on cuda (JAX_PLATFORMS), and finds no such device here; unset that, or take cpu"
    )
    assert "Traceback" not in done.stderr
    assert not out.exists()
