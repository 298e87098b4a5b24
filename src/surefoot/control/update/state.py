"""What training carries from step to step: networks, optimisers, statistics, keys, and the plan of what changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from surefoot.control.configuration import SurrogateObjective, TrainConfiguration
from surefoot.control.policies.networks import draw_network
from surefoot.control.policies.normalization import RunningStatistics, no_statistics
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Actor
from surefoot.equations import Array

Metrics = dict[str, Array]


class Network(NamedTuple):
    """Parameters and the state of their optimiser."""

    parameters: Any
    optimizer: Any


class Learner(NamedTuple):
    """All state of the algorithm: what is not in here does not influence the run."""

    actor: Network
    critic: Network
    """Its parameters are a dictionary of networks: v, and q where the weight needs it; none where it needs none."""
    observations: RunningStatistics
    rewards: RunningStatistics
    returns: Array
    """Discounted return so far of each environment's episode, (N,), for the reward normaliser."""
    elapsed: Array
    """Steps so far of each environment's episode, (N,)."""
    collected: Array
    """Σ γᵗ rₜ so far of each environment's episode, (N,), in the rewards that the update sees."""
    kl_coefficient: Array
    """β of the KL penalty."""
    key: Array


class Schedule(NamedTuple):
    """What changes from iteration to iteration by plan."""

    learning_rate: Array
    critic_learning_rate: Array
    clip_range: Array
    """Infinite where nothing is clipped."""
    max_kl: Array


class Data(NamedTuple):
    """A rollout as the update sees it, normalised; time leading. What stands in masked slots is the consumers' care."""

    observations: Array
    final_observations: Array | None
    actions: Array
    acting: dict[str, Array] | None
    """The acting policy's network outputs (and log σ), where the update needs its whole distribution and not only log π."""
    log_probabilities: Array
    rewards: Array
    terminated: Array
    truncated: Array
    valid: Array
    elapsed: Array
    """Each environment's steps and collected rewards at the first row."""
    collected: Array
    behavior_log_probabilities: Array | None = None
    """Log μ(a|s) where another policy acted."""


class Samples(NamedTuple):
    """Data and estimates with time and environments folded into one axis."""

    observations: Array
    actions: Array
    acting: dict[str, Array] | None
    log_probabilities: Array
    weights: Array
    """ψ."""
    targets: Array | None
    """The critics'; None where there is none."""
    values: Array | None
    valid: Array


def initialize(configuration: TrainConfiguration, spaces: Spaces, seed: int) -> Learner:
    """A fresh learner; everything random comes from ``seed``."""
    network, generator = configuration.network, np.random.default_rng([seed, 0])

    def draw(inputs: int, outputs: int, head_gain: float) -> dict[str, np.ndarray]:
        sizes = (inputs, *network.hidden_sizes, outputs)
        return draw_network(generator, sizes, orthogonal=network.orthogonal_initialization, head_gain=head_gain)

    size = spaces.observation_size
    actor = draw(size, spaces.action.outputs, 0.01)
    inputs = {"v": size, "q": size + spaces.action.outputs}
    critic = {name: draw(inputs[name], 1, 1.0) for name in configuration.weight.critics}
    if spaces.action.kind == "box":
        actor["log_std"] = np.full(spaces.action.outputs, configuration.initial_log_std, np.float32)
    each = np.zeros(configuration.run.num_envs, np.float32)
    objective = configuration.objective
    return Learner(
        actor=Network(actor, _fresh_optimizer(configuration, actor)),
        critic=Network(critic, _fresh_optimizer(configuration, critic)),
        observations=no_statistics((size,)),
        rewards=no_statistics(()),
        returns=each,
        elapsed=each,
        collected=each,
        kl_coefficient=np.float32(objective.kl_coefficient if isinstance(objective, SurrogateObjective) else 0),
        key=np.asarray([0, seed], np.uint32),
    )


def cut_episodes(learner: Learner, which: np.ndarray | None = None) -> Learner:
    """The learner as environments that begin afresh need it: of their episodes nothing has happened yet.

    Args:
        learner: as it was.
        which: (N,), of these environments; of all by default.
    """
    cut = np.ones(np.shape(learner.returns), bool) if which is None else which
    none = lambda x: np.where(cut, np.zeros_like(x), np.asarray(x))  # noqa: E731
    return learner._replace(returns=none(learner.returns), elapsed=none(learner.elapsed), collected=none(learner.collected))


def skip_update(before: Learner, after: Learner) -> Learner:
    """The learner from before an update, which yet has seen its rollout: no key serves twice, and the episodes have gone on."""
    return before._replace(key=after.key, returns=after.returns, elapsed=after.elapsed, collected=after.collected)


def optimizer_of(configuration: TrainConfiguration) -> optax.GradientTransformation:
    """Gradient to direction; the learning rate, which changes, is applied by the caller."""
    settings = configuration.optimizer
    clip = optax.identity() if settings.max_gradient_norm is None else optax.clip_by_global_norm(settings.max_gradient_norm)
    scale = {
        "adam": lambda: optax.scale_by_adam(eps=settings.adam_epsilon),
        # A2C's: the mean of squares starts at 1, so that the first steps are small where Adam corrects for a start at 0.
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=settings.adam_epsilon, initial_scale=1.0),
        "sgd": optax.identity,
    }[settings.optimizer]()
    return optax.chain(clip, scale)


def _fresh_optimizer(configuration: TrainConfiguration, parameters: Any) -> Any:
    # NumPy's zeros and ones need no compilation; every optimiser here starts from one of the two.
    start = np.ones if configuration.optimizer.optimizer == "rmsprop" else np.zeros
    return jax.tree.map(lambda s: start(s.shape, s.dtype), jax.eval_shape(optimizer_of(configuration).init, parameters))


def actor_of(configuration: TrainConfiguration, spaces: Spaces) -> Actor:
    """How the policy acts."""
    clip = configuration.normalization.observation_clip if configuration.normalization.normalize_observations else None
    return Actor(spaces, configuration.network.activation, clip)


def schedule_at(configuration: TrainConfiguration, iteration: int) -> Schedule:
    """The plan's values in one iteration."""
    left = max(1 - iteration / configuration.iterations, 0.0)  # a longer run's last report may reach beyond its end
    optimizer, objective, region = configuration.optimizer, configuration.objective, configuration.trust_region
    rate = optimizer.learning_rate
    critic_rate = rate if optimizer.critic_learning_rate is None else optimizer.critic_learning_rate
    fall = left if optimizer.learning_rate_schedule == "linear" else 1.0
    clip, max_kl = float("inf"), 0.0
    if isinstance(objective, SurrogateObjective) and objective.clip_range is not None:
        clip = objective.clip_range * (left if objective.clip_range_schedule == "linear" else 1.0)
    if region is not None:
        max_kl = region.max_kl * (left if region.max_kl_schedule == "linear" else 1.0)
    return Schedule(np.float32(rate * fall), np.float32(critic_rate * fall), np.float32(clip), np.float32(max_kl))


def schedules(configuration: TrainConfiguration, first: int, count: int) -> Schedule:
    """The plan's values in ``count`` iterations, each of shape (count,)."""
    return Schedule(*map(np.stack, zip(*(schedule_at(configuration, first + i) for i in range(count)), strict=True)))
