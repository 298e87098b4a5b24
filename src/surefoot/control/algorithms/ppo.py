"""PPO with the clipped surrogate.

The three choices: ψ is the generalised advantage estimate; the objective is the clipped surrogate plus an entropy
bonus; the step is a few epochs of Adam on minibatches, actor and critic apart. The two networks share nothing, so
given the advantages their updates do not touch each other: each has its own optimiser and its own gradient-norm
limit, and they may run side by side.

One iteration reads: ``prepare`` (fix what the rollout says), ``estimate`` (advantages and targets), ``improve_actor``
and ``improve_critic`` (one pass over the minibatches each). Everything is a pure function of explicit state.

Source: Schulman et al., Proximal Policy Optimization Algorithms (2017).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from surefoot.control.algorithms.ppo_state import (
    Data,
    Learner,
    Network,
    Samples,
    Schedule,
    actor_of,
    initialize,
    optimizer_of,
    schedule_at,
)
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.permutation import shuffled_minibatches
from surefoot.control.policies.networks import Parameters, evaluate_network
from surefoot.control.policies.normalization import RunningStatistics, normalize, running_returns, update_statistics
from surefoot.control.policies.policy import action_distribution
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout, split_key
from surefoot.equations import (
    Array,
    clipped_surrogate,
    clipped_value_loss,
    generalized_advantages,
    importance_ratio,
    kl_k3,
    masked_mean,
    squared_value_loss,
)

__all__ = [
    "Data",
    "Learner",
    "Metrics",
    "Network",
    "Samples",
    "Schedule",
    "actor_loss",
    "actor_of",
    "critic_loss",
    "estimate",
    "improve_actor",
    "improve_critic",
    "initialize",
    "prepare",
    "schedule_at",
    "values_of",
]

Metrics = dict[str, Array]


def values_of(configuration: TrainConfiguration, critic: Parameters, observations: Array) -> Array:
    """V(s) for normalised observations."""
    return evaluate_network(critic, observations, activation=configuration.network.activation)[..., 0]


def prepare(
    configuration: TrainConfiguration, spaces: Spaces, learner: Learner, rollout: Rollout
) -> tuple[Learner, Data, Array]:
    """Fix what the rollout says: normalise it, score its actions, draw the order of the minibatches.

    Observations are normalised with the statistics that the policy acted under, so that the first minibatch's ratio
    is 1; only then do the statistics take the rollout in, for the next one. Rewards are scaled with statistics that
    include it.

    Returns:
        the learner with its statistics and key moved on; the data; sample numbers, (passes, minibatches,
        minibatch size).
    """
    actor, settings, scale = actor_of(configuration, spaces), configuration.ppo, configuration.normalization
    valid, slots = rollout.valid, rollout.rewards.size
    observations = actor.prepare(rollout.observations, learner.observations)
    finals = None if rollout.final_observations is None else actor.prepare(rollout.final_observations, learner.observations)
    policy = action_distribution(spaces, learner.actor.parameters, observations[:-1], activation=actor.activation)

    statistics, rewards, returns, reward_statistics = learner.observations, rollout.rewards, learner.returns, learner.rewards
    if scale.normalize_observations:
        seen = rollout.observations[:-1].reshape(slots, -1)
        statistics = update_statistics(statistics, seen, valid.reshape(slots))
    if scale.normalize_rewards:
        totals, returns = running_returns(
            rewards=rewards, ends=rollout.terminated | rollout.truncated, valid=valid, start=returns, discount=settings.discount
        )
        reward_statistics = update_statistics(reward_statistics, totals.reshape(slots), valid.reshape(slots))
        centered = RunningStatistics(jnp.zeros_like(reward_statistics.mean), *reward_statistics[1:])
        rewards = normalize(rewards, centered, clip=scale.reward_clip)

    keys = split_key(learner.key)
    order = shuffled_minibatches(keys.order, slots, epochs=settings.epochs, minibatch_size=settings.minibatch_size)
    passes = settings.epochs if settings.recompute_advantages else 1
    learner = learner._replace(observations=statistics, rewards=reward_statistics, returns=returns, key=keys.following)
    data = Data(
        observations=observations,
        final_observations=finals,
        actions=rollout.actions,
        log_probabilities=policy.log_probability(rollout.actions),
        rewards=rewards,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        valid=valid,
    )
    return learner, data, order.reshape(passes, -1, settings.minibatch_size)


def estimate(
    configuration: TrainConfiguration, critic: Parameters, data: Data, old_values: Array | None = None
) -> tuple[Samples, Metrics]:
    """Advantages, the critic's targets, and how much of the targets' variance the critic already explains.

    ``old_values`` are the samples' values from when the data was collected, for value clipping; the critic's own by default.
    """
    settings, ended = configuration.ppo, data.terminated | data.truncated
    values_and_last = values_of(configuration, critic, data.observations)
    values, next_values = values_and_last[:-1], values_and_last[1:]
    if data.final_observations is not None:
        next_values = jnp.where(ended, values_of(configuration, critic, data.final_observations), next_values)
    advantages = generalized_advantages(
        rewards=data.rewards,
        values=values,
        next_values=next_values,
        terminated=data.terminated,
        truncated=data.truncated,
        discount=settings.discount,
        trace_decay=settings.trace_decay,
        valid=data.valid,
    )
    targets = advantages + values
    spread = masked_variance(targets, data.valid)
    explained = 1 - masked_variance(advantages, data.valid) / jnp.where(spread > 0, spread, jnp.nan)
    if settings.advantage_normalization == "batch":
        advantages = standardize(advantages, data.valid)
    flat = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]),
        Samples(data.observations[:-1], data.actions, data.log_probabilities, advantages, targets, values, data.valid),
    )
    if old_values is not None:
        flat = flat._replace(values=old_values)
    return flat, {"critic/explained_variance": explained, "critic/value_mean": masked_mean(values, data.valid)}


def masked_variance(x: Array, valid: Array) -> Array:
    """Population variance over the valid entries."""
    return masked_mean((x - masked_mean(x, valid)) ** 2, valid)


def standardize(x: Array, valid: Array) -> Array:
    """Shift and scale to mean 0 and standard deviation 1 over the valid entries; the others become 0."""
    return jnp.where(valid, (x - masked_mean(x, valid)) / (jnp.sqrt(masked_variance(x, valid)) + 1e-8), 0.0)


def actor_loss(
    configuration: TrainConfiguration, spaces: Spaces, parameters: Parameters, batch: Samples, clip_range: Array
) -> tuple[Array, Metrics]:
    """−(clipped surrogate + entropy bonus), the mean over a minibatch's valid samples."""
    settings = configuration.ppo
    advantages = batch.advantages
    if settings.advantage_normalization == "minibatch":
        advantages = standardize(advantages, batch.valid)
    policy = action_distribution(spaces, parameters, batch.observations, activation=configuration.network.activation)
    # Masked samples are made harmless before the exponential: a NaN gradient would survive a mask that comes after it.
    log_probabilities = jnp.where(batch.valid, policy.log_probability(batch.actions), batch.log_probabilities)
    ratio = importance_ratio(log_probabilities=log_probabilities, behavior_log_probabilities=batch.log_probabilities)
    surrogate = masked_mean(clipped_surrogate(ratio=ratio, advantages=advantages, clip_range=clip_range), batch.valid)
    entropy = masked_mean(policy.entropy(), batch.valid)
    metrics = {
        "policy/objective": surrogate,
        "policy/entropy": entropy,
        "policy/approximate_kl": masked_mean(kl_k3(log_probabilities - batch.log_probabilities), batch.valid),
        "policy/clip_fraction": masked_mean((jnp.abs(ratio - 1) > clip_range).astype(ratio.dtype), batch.valid),
    }
    return -surrogate - settings.entropy_coefficient * entropy, metrics


def critic_loss(configuration: TrainConfiguration, parameters: Parameters, batch: Samples) -> tuple[Array, Metrics]:
    """½ (V − target)², clipped by option, the mean over a minibatch's valid samples."""
    values = values_of(configuration, parameters, batch.observations)
    clip = configuration.ppo.value_clip_range
    if clip is None:
        terms = squared_value_loss(values=values, targets=batch.targets)
    else:
        terms = clipped_value_loss(values=values, old_values=batch.values, targets=batch.targets, clip_range=clip)
    loss = masked_mean(terms, batch.valid)
    return loss, {"critic/loss": loss}


def _descend(
    configuration: TrainConfiguration, network: Network, gradients: Parameters, learning_rate: Array
) -> tuple[Network, Array]:
    directions, optimizer = optimizer_of(configuration).update(gradients, network.optimizer)
    parameters = jax.tree.map(lambda p, d: p - learning_rate * d, network.parameters, directions)
    return Network(parameters, optimizer), optax.tree.norm(gradients)


def improve_actor(
    configuration: TrainConfiguration,
    spaces: Spaces,
    actor: Network,
    stopped: Array,
    samples: Samples,
    order: Array,
    schedule: Schedule,
) -> tuple[Network, Array, Metrics]:
    """One pass of the actor over the minibatches ``order``, shape (minibatches, minibatch size).

    With a target KL, the pass stops for good at the first minibatch whose estimate exceeds 1.5 times the target,
    before stepping on it.

    Returns:
        the actor, whether it has stopped, and each metric's sum over the minibatches that were looked at, with their
        number, and whether all parameters are still finite.
    """
    target = configuration.ppo.target_kl

    def step(state: tuple[Network, Array], chosen: Array) -> tuple[tuple[Network, Array], Metrics]:
        actor, stopped = state
        batch = jax.tree.map(lambda x: x[chosen], samples)
        loss = lambda parameters: actor_loss(configuration, spaces, parameters, batch, schedule.clip_range)  # noqa: E731
        gradients, metrics = jax.grad(loss, has_aux=True)(actor.parameters)
        moved, norm = _descend(configuration, actor, gradients, schedule.learning_rate)
        metrics |= {"policy/gradient_norm": norm, "minibatches": jnp.ones(())}
        if target is None:
            return (moved, stopped), metrics
        stopped = metrics["policy/approximate_kl"] > 1.5 * target
        return (jax.tree.map(lambda old, new: jnp.where(stopped, old, new), actor, moved), stopped), metrics

    def step_unless_stopped(state: tuple[Network, Array], chosen: Array) -> tuple[tuple[Network, Array], Metrics]:
        if target is None:
            return step(state, chosen)
        idle = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, state, chosen)[1])
        return jax.lax.cond(state[1], lambda: (state, idle), lambda: step(state, chosen))

    (actor, stopped), metrics = jax.lax.scan(step_unless_stopped, (actor, stopped), order)
    return actor, stopped, jax.tree.map(jnp.sum, metrics) | {"finite": all_finite(actor.parameters)}


def improve_critic(
    configuration: TrainConfiguration, critic: Network, samples: Samples, order: Array, schedule: Schedule
) -> tuple[Network, Metrics]:
    """One pass of the critic over the minibatches ``order``; metrics as in :func:`improve_actor`."""

    def step(critic: Network, chosen: Array) -> tuple[Network, Metrics]:
        batch = jax.tree.map(lambda x: x[chosen], samples)
        gradients, metrics = jax.grad(lambda p: critic_loss(configuration, p, batch), has_aux=True)(critic.parameters)
        critic, norm = _descend(configuration, critic, gradients, schedule.learning_rate)
        return critic, metrics | {"critic/gradient_norm": norm, "minibatches": jnp.ones(())}

    critic, metrics = jax.lax.scan(step, critic, order)
    return critic, jax.tree.map(jnp.sum, metrics) | {"finite": all_finite(critic.parameters)}


def all_finite(parameters: Parameters) -> Array:
    """1 if every parameter is a finite number, else 0."""
    return jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(parameters)]).all().astype(jnp.float32)
