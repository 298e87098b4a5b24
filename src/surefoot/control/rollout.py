"""A rollout: what the environments and the policy did together, and how it is collected.

Layout. ``observations`` has one row more than the rest: row t is what the policy saw before step t, row t+1 what came
of it. Vector environments reset in next-step mode: the step after an end only resets. Row t+1 is then the true final
observation, and slot t+1, in which the environment ignored the action and reset, is not ``valid``. Environments that
reset within the step (Gymnasium's same-step mode, or its disabled mode with our reset) put the true final observation
into ``final_observations`` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surefoot.control.policies.normalization import RunningStatistics, center, scale
from surefoot.control.policies.policy import action_distribution
from surefoot.control.policies.spaces import Spaces
from surefoot.equations import Array


class Rollout(NamedTuple):
    """T steps of N environments, time leading; NumPy or JAX."""

    observations: Array
    """(T+1, N, observation size), float32: as :meth:`Actor.center` leaves them."""
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
    behavior_log_probabilities: Array | None = None
    """(T, N), log μ(a|s) where another policy acted; None where the one that learns did."""


class Actor(NamedTuple):
    """How a policy acts, for any array library."""

    spaces: Spaces
    activation: str
    observation_clip: float | None
    """None where observations are not normalised."""

    def center(self, observations: Array, statistics: RunningStatistics) -> Array:
        """Observations as a rollout holds them once they are float32: less their mean's first part where they are normalised."""
        return observations if self.observation_clip is None else center(observations, statistics)

    def prepare(self, centered: Array, statistics: RunningStatistics) -> Array:
        """Observations as the networks see them, from those of a rollout."""
        return centered if self.observation_clip is None else scale(centered, statistics, clip=self.observation_clip)

    def act(self, parameters: dict[str, Array], statistics: RunningStatistics, centered: Array, noise: Array) -> Array:
        """Sample actions from π(·|s), given the noise."""
        seen = self.prepare(centered, statistics)
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
        centered = actor.center(carry.observations, statistics)
        actions = actor.act(parameters, statistics, centered, noise).astype(actor.spaces.action.dtype)
        environments, observations, rewards, terminated, truncated = step(
            carry.environments, actor.spaces.action.for_environment(actions)
        )
        record = (centered, actions, rewards, terminated, truncated, ~carry.resetting)
        return ScanCarry(environments, observations, terminated | truncated), record

    carry, (observations, *rest) = jax.lax.scan(advance, carry, noises)
    last = actor.center(carry.observations, statistics)
    return carry, Rollout(jnp.concatenate([observations, last[None]]), *rest)
