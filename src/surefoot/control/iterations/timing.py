"""How long the policy alone takes inside a compiled rollout."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.rollout import NOISES, Actor
from surefoot.control.update.state import Learner
from surefoot.equations import Array


def inference_program(actor: Actor, learner: Learner, *, envs: int, length: int) -> tuple[Any, tuple[Any, ...]]:
    """A jitted function that does the policy's part of a rollout alone, and its arguments.

    Inside a compiled rollout nobody can look at a clock between environment and policy, so the policy's share is
    measured by itself, once, and the environment's is the rest.
    """

    def infer(parameters: Any, statistics: Any, observations: Array, key: Array) -> Array:
        noises = NOISES[actor.spaces.action.noise](key, (length, envs, actor.spaces.action.outputs), jnp.float32)

        def step(seen: Array, noise: Array) -> tuple[Array, None]:
            actions = actor.act(parameters, statistics, seen, noise)
            # Each step must depend on the last, or the compiler would batch them.
            return seen + 1e-9 * jnp.sum(actions.astype(jnp.float32)), None

        return jax.lax.scan(step, observations, noises)[0]

    observations = np.zeros((envs, actor.spaces.observation_size), np.float32)
    return jax.jit(infer), (learner.actor.parameters, learner.observations, observations, learner.key)


def fastest(program: Any, arguments: tuple[Any, ...]) -> float:
    """Seconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
