"""What PPO carries from step to step: networks, optimisers, statistics, keys, and the plan of what changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.policies.networks import Parameters, draw_network
from surefoot.control.policies.normalization import RunningStatistics
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Actor
from surefoot.equations import (
    Array,
)


class Network(NamedTuple):
    """Parameters and the state of their optimiser."""

    parameters: Parameters
    optimizer: Any


class Learner(NamedTuple):
    """All state of the algorithm: what is not in here does not influence the run."""

    actor: Network
    critic: Network
    observations: RunningStatistics
    rewards: RunningStatistics
    returns: Array
    """Discounted return so far of each environment's episode, (N,), for the reward normaliser."""
    key: Array


class Schedule(NamedTuple):
    """What changes from iteration to iteration by plan."""

    learning_rate: Array
    clip_range: Array


class Data(NamedTuple):
    """A rollout as the update sees it: normalised, masked slots made harmless; time leading."""

    observations: Array
    final_observations: Array | None
    actions: Array
    log_probabilities: Array
    rewards: Array
    terminated: Array
    truncated: Array
    valid: Array


class Samples(NamedTuple):
    """Data and estimates with time and environments folded into one axis."""

    observations: Array
    actions: Array
    log_probabilities: Array
    advantages: Array
    targets: Array
    values: Array
    valid: Array


def initialize(configuration: TrainConfiguration, spaces: Spaces, seed: int) -> Learner:
    """A fresh learner; everything random comes from ``seed``."""
    network, generator = configuration.network, np.random.default_rng([seed, 0])

    def draw(outputs: int, head_gain: float) -> dict[str, np.ndarray]:
        sizes = (spaces.observation_size, *network.hidden_sizes, outputs)
        return draw_network(generator, sizes, orthogonal=network.orthogonal_initialization, head_gain=head_gain)

    actor, critic = draw(spaces.action.outputs, 0.01), draw(1, 1.0)
    if spaces.action.kind == "box":
        actor["log_std"] = np.full(spaces.action.outputs, network.initial_log_std, np.float32)
    shape = (spaces.observation_size,)
    statistics = lambda shape: RunningStatistics(np.zeros(shape, np.float32), np.ones(shape, np.float32), np.float32(0))  # noqa: E731
    return Learner(
        actor=Network(actor, _fresh_optimizer(configuration, actor)),
        critic=Network(critic, _fresh_optimizer(configuration, critic)),
        observations=statistics(shape),
        rewards=statistics(()),
        returns=np.zeros(configuration.run.num_envs, np.float32),
        key=np.asarray([0, seed], np.uint32),
    )


def optimizer_of(configuration: TrainConfiguration) -> optax.GradientTransformation:
    """Gradient to direction; the learning rate, which changes, is applied by the caller."""
    limit = configuration.ppo.max_gradient_norm
    clip = optax.identity() if limit is None else optax.clip_by_global_norm(limit)
    return optax.chain(clip, optax.scale_by_adam(eps=configuration.ppo.adam_epsilon))


def _fresh_optimizer(configuration: TrainConfiguration, parameters: dict[str, np.ndarray]) -> Any:
    # Adam starts from zeros, and NumPy's zeros need no compilation.
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(optimizer_of(configuration).init, parameters))


def actor_of(configuration: TrainConfiguration, spaces: Spaces) -> Actor:
    """How the policy acts."""
    clip = configuration.normalization.observation_clip if configuration.normalization.normalize_observations else None
    return Actor(spaces, configuration.network.activation, clip)


def schedule_at(configuration: TrainConfiguration, iteration: int) -> Schedule:
    """The plan's values in one iteration."""
    left = 1 - iteration / configuration.run.iterations
    settings = configuration.ppo
    return Schedule(
        np.float32(settings.learning_rate * (left if settings.learning_rate_schedule == "linear" else 1)),
        np.float32(settings.clip_range * (left if settings.clip_range_schedule == "linear" else 1)),
    )
