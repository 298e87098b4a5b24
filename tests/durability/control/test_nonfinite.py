"""Numbers that are not finite: named, the state before them kept, the update skipped where that was asked for."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.control.environments.functional import make_functional
from surefoot.control.policies.policy import load_policy
from surefoot.control.training import resume, train
from surefoot.control.update.state import schedule_at
from surefoot.control.update.whole import whole_update
from surefoot.errors import EnvironmentFault, RunError
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import MetricsWriter, read_metrics
from tests.control import toys
from tests.control.helpers import DISCRETE, configure, leaves, same
from tests.control.update.test_update import ready
from tests.durability.control.runs import contents, differences


class Spikes:
    """CartPole that now and then pays so much that the update overflows: its reward is a finite number."""

    plain = make_functional("CartPole-v1")
    observation_space, action_space, max_episode_steps = plain.observation_space, plain.action_space, 30
    initial = staticmethod(plain.initial)

    def transition(self, state, action, key):
        state, observation, reward, terminated = self.plain.transition(state, action, key)
        rare = jax.random.uniform(jax.random.fold_in(key, 7)) < 0.01
        return state, observation, jnp.where(rare, 3e38, reward), terminated


class HostSpikes(toys.Toy):
    """The same on the host: every fortieth step."""

    total = 0

    def step(self, action):
        self.total += 1
        return self.observe(), 3e38 if self.total % 40 == 0 else 1.0, False, self.total % 10 == 0, {}


PLAIN = {"normalize_rewards": False, "advantage_normalization": "none", "max_gradient_norm": None, "total_steps": 1024}
SOURCES = {"jax": Spikes, "host": HostSpikes}


def spiky(out, algorithm="ppo", **options):
    return configure(algorithm, **PLAIN | {"env": "Spikes", "out": str(out)} | options)


@pytest.mark.parametrize("where", SOURCES)
def test_an_update_that_is_not_finite_is_named_and_the_state_before_it_kept(where, tmp_path):
    with pytest.raises(RunError) as caught:
        train(spiky(tmp_path / "run"), environment=SOURCES[where], quiet=True)
    message = str(caught.value)
    number = int(message.split("the update of iteration ")[1].split()[0])
    assert "left numbers that are not finite (" in message
    assert "/gradient_norm" in message
    place = tmp_path / "run" / "failed" / str((number - 1) * 64)
    assert message.endswith(f"; the state before it is in {place}")
    kept = Checkpoints(tmp_path / "run", name="failed").read((number - 1) * 64)
    assert "left numbers that are not finite" in kept.state["failure"]
    assert kept.state["iteration"] == number - 1 == len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert all(np.isfinite(array).all() for array in kept.arrays.values())
    policy = load_policy(tmp_path / "run").parameters
    for name, value in policy.items():
        np.testing.assert_array_equal(kept.arrays[f"iteration/learner/actor/parameters/{name}"].reshape(value.shape), value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_seed_is_named_where_there_are_several(tmp_path):
    with pytest.raises(RunError, match=r"the update of iteration \d+ of seed [5-7] left numbers that are not finite"):
        train(spiky(tmp_path / "run", seeds=3, seed=5), environment=Spikes, quiet=True)


def test_a_fault_of_an_environment_keeps_the_state_before_it(tmp_path):
    def faulty():
        return toys.Faulty(at=40)

    with pytest.raises(
        EnvironmentFault, match=r"raised RuntimeError at its step 40, .*; the state before it is in .*failed/128"
    ):
        train(configure(env="Faulty", out=str(tmp_path / "run"), total_steps=640), environment=faulty, quiet=True)
    assert "the motor is on fire" in Checkpoints(tmp_path / "run", name="failed").read(128).state["failure"]


@pytest.mark.parametrize(
    ("algorithm", "where"), [("ppo", "jax"), ("ppo", "host"), ("a2c", "jax"), ("a2c", "host"), ("reinforce", "jax")]
)
def test_skipping_leaves_such_updates_out_and_counts_them(algorithm, where, tmp_path):
    configuration = spiky(tmp_path / "run", algorithm, on_nonfinite="skip", hidden_sizes=(4,))
    result = train(configuration, environment=SOURCES[where], quiet=True)
    assert not result["interrupted"]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    counted = [line["update/skipped"] for line in lines]
    assert sum(counted) == result["skipped_updates"] > 0
    assert sum(counted) < configuration.iterations, "not all of them"
    assert all(np.isfinite(v).all() for v in load_policy(tmp_path / "run").parameters.values())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_updates"] == sum(counted)


def test_where_nothing_is_skipped_the_count_is_absent_or_zero(tmp_path):
    settings = {"backend": "jax", "total_steps": 128}
    train(configure(**settings, out=str(tmp_path / "stop")), quiet=True)
    train(configure(**settings, out=str(tmp_path / "skip"), on_nonfinite="skip"), quiet=True)
    assert all("update/skipped" not in line for line in read_metrics(tmp_path / "stop" / "metrics.jsonl"))
    assert [line["update/skipped"] for line in read_metrics(tmp_path / "skip" / "metrics.jsonl")] == [0, 0]
    a, b = (load_policy(tmp_path / name).parameters for name in ("stop", "skip"))
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_a_skipped_update_changes_nothing_but_what_has_gone_on(algorithm):
    """Key and episodes move on; networks, optimisers, statistics and β stay."""
    configuration, learner, rollout = ready(DISCRETE, algorithm=algorithm, on_nonfinite="skip", keep_discount=True)
    learner = learner._replace(returns=np.ones(4, np.float32))
    program = jax.jit(partial(whole_update, configuration, DISCRETE))
    broken = rollout._replace(
        rewards=np.where(np.arange(rollout.rewards.size).reshape(rollout.rewards.shape) == 9, np.nan, 1).astype(np.float32)
    )
    valid = np.asarray(rollout.valid).copy()
    valid.reshape(-1)[9] = True
    broken = broken._replace(valid=valid)
    after, _, finite = program(learner, broken, schedule_at(configuration, 0))
    assert not bool(finite)
    for name in ("actor", "critic", "observations", "rewards", "kl_coefficient"):
        assert same(getattr(after, name), getattr(learner, name)), name
    assert not same(after.key, learner.key)
    assert not same(after.elapsed, learner.elapsed)
    after, _, finite = program(learner, rollout, schedule_at(configuration, 0))
    assert bool(finite)
    assert not same(after.actor, learner.actor)
    assert not same(after.observations, learner.observations)


def test_a_gradient_that_the_optimiser_swallows_is_seen():
    """Adam divides an infinite gradient by its own infinite square root: nothing moves, and nothing ever would again."""
    configuration, learner, rollout = ready(
        DISCRETE, max_gradient_norm=None, normalize_rewards=False, advantage_normalization="none"
    )
    program = jax.jit(partial(whole_update, configuration, DISCRETE))
    huge = rollout._replace(rewards=np.full(rollout.rewards.shape, 1e30, np.float32))
    after, metrics, finite = program(learner, huge, schedule_at(configuration, 0))
    assert all(np.isfinite(x).all() for x in leaves(after.critic.parameters)), "they look healthy"
    assert not np.isfinite(float(metrics["critic/gradient_norm"]))
    assert not bool(finite)


def test_skipped_updates_are_the_same_after_a_resume(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("spiky_environment")
    module.make = Spikes
    monkeypatch.setitem(sys.modules, "spiky_environment", module)
    settings = {
        "env": "spiky_environment:make",
        "on_nonfinite": "skip",
        "checkpoint_every": "64",
        "keep_checkpoints": 99,
        "tensorboard": True,
    }
    train(spiky(tmp_path / "whole", **settings), quiet=True)
    train(spiky(tmp_path / "run", **settings), quiet=True)
    Checkpoints(tmp_path / "run").forget_after(512)
    (tmp_path / "run" / "summary.json").unlink()
    assert resume(tmp_path / "run", quiet=True)["skipped_updates"] > 0
    assert differences(contents(tmp_path / "whole"), contents(tmp_path / "run")) == []


def test_a_full_disk_does_not_hide_what_failed(tmp_path, monkeypatch):
    def full(self):
        raise RunError("cannot write metrics.jsonl: No space left on device")

    monkeypatch.setattr(MetricsWriter, "position", full)
    with pytest.raises(RunError, match=r"the update of iteration \d+ left numbers that are not finite"):
        train(spiky(tmp_path / "run", env="HostSpikes"), environment=HostSpikes, quiet=True)
