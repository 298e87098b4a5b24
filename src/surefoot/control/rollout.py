"""A rollout: what the environments and the policy did together, and how it is collected.

Layout. ``observations`` has one row more than the rest: row t is what the policy saw before step t, row t+1 what came
of it. Vector environments reset in next-step mode: the step after an end only resets. Row t+1 is then the true final
observation, and slot t+1, in which the environment ignored the action and reset, is not ``valid``. Environments that
reset within the step (Gymnasium's same-step mode, or its disabled mode with our reset) put the true final observation
into ``final_observations`` instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.environments.host import HostEnvironments
from surefoot.control.policies.normalization import RunningStatistics, normalize
from surefoot.control.policies.policy import action_distribution, draw_noise
from surefoot.control.policies.spaces import Spaces
from surefoot.equations._library import Array


class Rollout(NamedTuple):
    """T steps of N environments, time leading; NumPy or JAX."""

    observations: Array
    """(T+1, N, observation size), float32, not normalised."""
    actions: Array
    """(T, N, …), the policy's own, unclipped."""
    rewards: Array
    """(T, N), float32, not normalised."""
    terminated: Array
    """(T, N), bool."""
    truncated: Array
    """(T, N), bool."""
    valid: Array
    """(T, N), bool: false in slots that only reset."""
    final_observations: Array | None = None
    """(T, N, observation size), read where an episode ended; None where row t+1 of ``observations`` is it."""


class Actor(NamedTuple):
    """How a policy acts, for any array library."""

    spaces: Spaces
    activation: str
    observation_clip: float | None
    """None where observations are not normalised."""

    def prepare(self, observations: Array, statistics: RunningStatistics) -> Array:
        """Observations as the networks see them."""
        if self.observation_clip is None:
            return observations
        return normalize(observations, statistics, clip=self.observation_clip)

    def act(self, parameters: dict[str, Array], statistics: RunningStatistics, observations: Array, noise: Array) -> Array:
        """Sample actions from π(·|s), given the noise."""
        seen = self.prepare(observations, statistics)
        return action_distribution(self.spaces, parameters, seen, activation=self.activation).sample(noise)


EnvironmentStep = Callable[[Any, Array], tuple[Any, Array, Array, Array, Array]]
"""A step of N environments in next-step mode that JAX can trace: (carry, actions) → (carry, observations, rewards,
terminated, truncated)."""


class ScanCarry(NamedTuple):
    """What a compiled rollout hands to the next."""

    environments: Any
    observations: Array
    resetting: Array
    """Which environments only reset in the coming step."""


NOISES: dict[str, Callable[..., Array]] = {
    "normal": jax.random.normal,
    "gumbel": jax.random.gumbel,
    "logistic": jax.random.logistic,
}


class Keys(NamedTuple):
    """An iteration's shares of randomness."""

    following: Array
    """The next iteration's key."""
    actions: Array
    order: Array


def split_key(key: Array) -> Keys:
    """Split an iteration's key; every user of randomness takes its share from here, so that no two use the same."""
    return Keys(*jax.random.split(key, len(Keys._fields)))


def collect_compiled(
    actor: Actor,
    step: EnvironmentStep,
    carry: ScanCarry,
    parameters: dict[str, Array],
    statistics: RunningStatistics,
    key: Array,
    *,
    length: int,
) -> tuple[ScanCarry, Rollout]:
    """Collect a rollout inside a compiled program.

    Args:
        actor: how the policy acts.
        step: a step of the environments that JAX can trace.
        carry: where the last rollout stopped.
        parameters: the actor's.
        statistics: the observation normaliser's, held for the whole rollout so that old and new probabilities see the
        same input.
        key: the learner's; this rollout's share of it is used.
        length: T.
    """
    envs = carry.observations.shape[0]
    key = split_key(key).actions
    noises = NOISES[actor.spaces.action.noise](key, (length, envs, actor.spaces.action.outputs), jnp.float32)

    def advance(carry: ScanCarry, noise: Array) -> tuple[ScanCarry, tuple[Array, ...]]:
        actions = actor.act(parameters, statistics, carry.observations, noise).astype(actor.spaces.action.dtype)
        environments, observations, rewards, terminated, truncated = step(
            carry.environments, actor.spaces.action.for_environment(actions)
        )
        record = (carry.observations, actions, rewards, terminated, truncated, ~carry.resetting)
        return ScanCarry(environments, observations, terminated | truncated), record

    carry, (observations, *rest) = jax.lax.scan(advance, carry, noises)
    return carry, Rollout(jnp.concatenate([observations, carry.observations[None]]), *rest)


class HostCollector:
    """Collects rollouts from environments that only Python can step; the policy runs in NumPy.

    A call into a compiled program costs more (about 40 µs, and copies both ways) than a small network on a handful of
    observations (about 15 µs), so the loop makes none: per step, one network, one vector step, one row of each array.
    """

    def __init__(self, actor: Actor, environments: HostEnvironments, *, length: int, seed: int) -> None:
        self._actor, self._environments, self._length = actor, environments, length
        self._generator = np.random.default_rng([seed, 1])
        self._observations = environments.reset(seed)
        self._resetting = np.zeros(environments.num_envs, bool)

    def collect(self, parameters: dict[str, np.ndarray], statistics: RunningStatistics) -> tuple[Rollout, dict[str, float]]:
        """The next T steps, and the seconds spent in environments and inference.

        Raises:
            EnvironmentFault: an environment raised or returned a number that is not finite.
        """
        actor, environments, length, envs = self._actor, self._environments, self._length, self._environments.num_envs
        action_space = actor.spaces.action
        noises = draw_noise(self._generator, action_space.noise, (length, envs, action_space.outputs))
        # Fresh arrays for every rollout: JAX may keep reading the last ones while the next rollout is collected.
        observations = np.empty((length + 1, envs, actor.spaces.observation_size), np.float32)
        actions = np.empty((length, envs, *action_space.shape), action_space.dtype)
        rewards = np.empty((length, envs), np.float32)
        terminated, truncated, valid = (np.empty((length, envs), bool) for _ in range(3))
        finals = None if environments.next_step else np.zeros((length, envs, actor.spaces.observation_size), np.float32)
        inference = 0.0
        start = time.perf_counter()
        for t in range(length):
            before = time.perf_counter()
            observations[t] = self._observations
            actions[t] = actor.act(parameters, statistics, observations[t], noises[t])
            valid[t] = ~self._resetting
            inference += time.perf_counter() - before
            outcome = environments.step(action_space.for_environment(actions[t]))
            self._observations, rewards[t], terminated[t], truncated[t] = outcome[:4]
            if finals is None:
                self._resetting = terminated[t] | truncated[t]
            elif outcome[4] is not None:
                finals[t] = outcome[4]
        observations[length] = self._observations
        total = time.perf_counter() - start
        rollout = Rollout(observations, actions, rewards, terminated, truncated, valid, finals)
        return rollout, {"environment": total - inference, "inference": inference}
