"""Small configurations and learners for tests."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from surefoot.control.algorithms import ALGORITHMS
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.policies.normalization import RunningStatistics
from surefoot.control.policies.spaces import ActionSpace, Spaces
from surefoot.control.rollout import Rollout
from surefoot.control.update.state import Learner, initialize, schedule_at
from surefoot.control.update.whole import whole_update

DEFAULTS = {
    "env": "CartPole-v1",
    "num_envs": 4,
    "rollout_length": 16,
    "total_steps": 256,
    "hidden_sizes": (8,),
    "tensorboard": False,
}
PASSES = {"minibatch_size": 16, "epochs": 2}


def configure(algorithm: str = "ppo", **options) -> TrainConfiguration:
    """A tiny configuration with any option of any part; no preset."""
    plain = replace(ALGORITHMS[algorithm], presets={})
    passes = PASSES if plain.passes is not None else {}
    return plain.configure(**DEFAULTS | passes | options)


DISCRETE = Spaces(3, ActionSpace("discrete", (2,), start=(0,)))
BOX = Spaces(3, ActionSpace("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)))
MULTIDISCRETE = Spaces(3, ActionSpace("multidiscrete", (3, 2), start=(0, 0)))
MULTIBINARY = Spaces(3, ActionSpace("multibinary", (3,)))


def random_rollout(configuration: TrainConfiguration, spaces: Spaces, seed: int = 0, finals: bool = False) -> Rollout:
    """Random numbers with ends of both kinds and the resets after them."""
    rng, steps, envs = np.random.default_rng(seed), configuration.run.rollout_length, configuration.run.num_envs
    flags = {name: np.zeros((steps, envs), bool) for name in ("terminated", "truncated", "valid")}
    resetting = np.zeros(envs, bool)
    for t in range(steps):
        flags["valid"][t] = ~resetting
        kind = rng.random(envs)
        flags["terminated"][t], flags["truncated"][t] = ~resetting & (kind < 0.1), ~resetting & (kind > 0.9)
        resetting = (flags["terminated"][t] | flags["truncated"][t]) if not finals else resetting
    action = spaces.action
    if action.kind == "box":
        actions = rng.normal(size=(steps, envs, *action.shape)).astype(np.float32)
    elif action.kind == "discrete":
        actions = rng.integers(0, action.sizes[0], (steps, envs)).astype(np.int32)
    else:
        choices = action.sizes if action.kind == "multidiscrete" else (2,) * action.sizes[0]
        actions = np.stack([rng.integers(0, n, (steps, envs)) for n in choices], axis=-1).astype(np.int32)
    size = spaces.observation_size
    return Rollout(
        observations=rng.normal(size=(steps + 1, envs, size)).astype(np.float32),
        actions=actions,
        rewards=rng.normal(size=(steps, envs)).astype(np.float32),
        final_observations=rng.normal(size=(steps, envs, size)).astype(np.float32) if finals else None,
        **flags,
    )


def beginning(configuration: TrainConfiguration, spaces: Spaces, seed: int = 0) -> Learner:
    """A fresh learner, as after observations of mean 0 and variance 1: before the first of all, observations are seen as 0."""
    size = spaces.observation_size
    known = RunningStatistics(*np.float32([np.zeros(size), np.ones(size)]), np.float32(1), np.zeros(size, np.float32))
    return initialize(configuration, spaces, seed)._replace(observations=known)


def update(configuration: TrainConfiguration, spaces: Spaces, learner: Learner, rollout: Rollout, number: int = 0):
    """One whole update; returns the learner and the metrics."""
    program = jax.jit(partial(whole_update, configuration, spaces))
    learner, metrics, _ = program(learner, rollout, schedule_at(configuration, number))
    return learner, metrics


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same(a, b) -> bool:
    """Bit for bit."""
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(leaves(a), leaves(b), strict=True))
