"""From a rollout to samples with a weight each: what an update does before its first gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from surefoot.control.configuration import SurrogateObjective, TrainConfiguration
from surefoot.control.policies.networks import Parameters, evaluate_network
from surefoot.control.policies.normalization import RESOLUTION, center, running_returns, scale_rewards, update_statistics
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout, split_key
from surefoot.control.update.off_policy import off_policy_weights
from surefoot.control.update.permutation import shuffled_minibatches
from surefoot.control.update.state import Data, Learner, Metrics, Samples, actor_of
from surefoot.equations import (
    Array,
    elapsed_steps,
    generalized_advantages,
    masked_mean,
    policy_gradient_weights,
    returns_so_far,
)


def values_of(configuration: TrainConfiguration, critic: Parameters, observations: Array) -> Array:
    """V(s) for normalised observations."""
    return evaluate_network(critic, observations, activation=configuration.network.activation)[..., 0]


def action_values_of(
    configuration: TrainConfiguration, spaces: Spaces, critic: Parameters, observations: Array, actions: Array
) -> Array:
    """Q(s, a) for normalised observations and the policy's own actions."""
    inputs = jnp.concatenate([observations, spaces.action.encode(actions).astype(observations.dtype)], axis=-1)
    return evaluate_network(critic, inputs, activation=configuration.network.activation)[..., 0]


def needs_distribution(configuration: TrainConfiguration) -> bool:
    """Whether the update measures KL(π_old‖π) in closed form, for which the probability of one action is not enough."""
    objective = configuration.objective
    penalised = isinstance(objective, SurrogateObjective) and objective.kl_penalty != "none"
    return penalised or configuration.trust_region is not None


def prepare(
    configuration: TrainConfiguration, spaces: Spaces, learner: Learner, rollout: Rollout
) -> tuple[Learner, Data, Array | None]:
    """Fix what the rollout says: normalise it, score its actions, draw the order of the minibatches.

    Observations are normalised with the statistics that the policy acted under, so that the first minibatch's ratio
    is 1; only then do the statistics take the rollout in, for the next one. Rewards are scaled with statistics that
    include it.

    Returns:
        the learner with its statistics and key moved on; the data; sample numbers, (passes, minibatches,
        minibatch size), None where one step takes the whole rollout.
    """
    actor, normalization, discount = actor_of(configuration, spaces), configuration.normalization, configuration.weight.discount
    valid, slots = rollout.valid, rollout.rewards.size
    ended = rollout.terminated | rollout.truncated
    observations = actor.prepare(rollout.observations, learner.observations)
    finals = None if rollout.final_observations is None else actor.prepare(rollout.final_observations, learner.observations)
    outputs = evaluate_network(learner.actor.parameters, observations[:-1], activation=actor.activation)
    log_std = learner.actor.parameters.get("log_std")
    acting = {"outputs": outputs} | ({} if log_std is None else {"log_std": jnp.broadcast_to(log_std, outputs.shape)})
    policy = spaces.action.distribution(outputs, log_std)

    statistics, rewards, returns, reward_statistics = learner.observations, rollout.rewards, learner.returns, learner.rewards
    if normalization.normalize_observations:
        seen = rollout.observations[:-1].reshape(slots, -1)
        statistics = update_statistics(statistics, seen, valid.reshape(slots), resolution=spaces.resolution)
    if normalization.normalize_rewards:
        totals, returns = running_returns(rewards=rewards, ends=ended, valid=valid, start=returns, discount=discount)
        centered = center(totals.reshape(slots), reward_statistics)
        reward_statistics = update_statistics(reward_statistics, centered, valid.reshape(slots))
        rewards = scale_rewards(rewards, reward_statistics, clip=normalization.reward_clip)
    elapsed, collected = learner.elapsed, learner.collected
    if needs_beginning(configuration):
        since, before = returns_so_far(
            rewards=rewards,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            discount=discount,
            valid=valid,
            elapsed=elapsed,
            collected=collected,
        )
        going = valid[-1] & ~ended[-1]
        elapsed = jnp.where(going, since[-1] + 1, 0.0)
        collected = jnp.where(going, before[-1] + discount ** since[-1] * rewards[-1], 0.0)

    keys, order = split_key(learner.key), None
    if (passes := configuration.passes) is not None:
        order = shuffled_minibatches(keys.order, slots, epochs=passes.epochs, minibatch_size=passes.minibatch_size)
        several = configuration.recomputes_advantages(continuous=spaces.action.kind == "box")
        order = order.reshape(passes.epochs if several else 1, -1, passes.minibatch_size)
    data = Data(
        observations=observations,
        final_observations=finals,
        actions=rollout.actions,
        acting=acting if needs_distribution(configuration) else None,
        log_probabilities=policy.log_probability(rollout.actions),
        rewards=rewards,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        valid=valid,
        elapsed=learner.elapsed,
        collected=learner.collected,
        behavior_log_probabilities=rollout.behavior_log_probabilities,
    )
    learner = learner._replace(
        observations=statistics,
        rewards=reward_statistics,
        returns=returns,
        elapsed=elapsed,
        collected=collected,
        key=keys.following,
    )
    return learner, data, order


def needs_beginning(configuration: TrainConfiguration) -> bool:
    """Whether the weight looks back to the beginning of an episode."""
    return configuration.weight.keep_discount or configuration.weight.weight == "total-return"


def estimate(
    configuration: TrainConfiguration,
    spaces: Spaces,
    critic: dict[str, Parameters],
    data: Data,
    old_values: Array | None = None,
) -> tuple[Samples, Metrics]:
    """ψ, the critics' targets, and how much of the targets' variance the critic already explains.

    ``old_values`` are the samples' values from when the data was collected, for value clipping; the critic's own by default.
    """
    settings, ended, valid = configuration.weight, data.terminated | data.truncated, data.valid
    known: dict[str, Array] = {
        "rewards": data.rewards,
        "terminated": data.terminated,
        "truncated": data.truncated,
        "discount": settings.discount,
        "valid": valid,
    }
    metrics: Metrics = {}
    values = targets = None
    critics: dict[str, Array] = {}
    if "v" in critic:
        values_and_last = values_of(configuration, critic["v"], data.observations)
        values, next_values = values_and_last[:-1], values_and_last[1:]
        if data.final_observations is not None:
            next_values = jnp.where(ended, values_of(configuration, critic["v"], data.final_observations), next_values)
        critics = {"values": values, "next_values": next_values}
    if "q" in critic:
        seen = action_values_of(configuration, spaces, critic["q"], data.observations[:-1], data.actions)
        critics["action_values"] = seen
    share: Array | None = None
    if data.behavior_log_probabilities is not None:
        weights, share, targets, metrics = off_policy_weights(configuration, data, values, critics.get("next_values"))
    else:
        weights = policy_gradient_weights(
            settings.weight,
            **known,
            **critics,
            trace_decay=settings.trace_decay,
            steps=settings.n_steps,
            elapsed=data.elapsed,
            collected=data.collected,
        )
        if values is not None:
            # The target is what ψ compares V with; where ψ is itself a critic's word, it is the λ-return.
            targets = weights + values
            if "q" in critic:
                pair = {"values": values, "next_values": critics["next_values"]}
                targets = values + generalized_advantages(**known, **pair, trace_decay=settings.trace_decay)
    if values is not None:
        spread = masked_variance(targets, valid)
        explained = 1 - masked_variance(targets - values, valid) / jnp.where(spread > 0, spread, jnp.nan)
        metrics |= {"critic/explained_variance": explained, "critic/value_mean": masked_mean(values, valid)}
    if settings.keep_discount:
        since = elapsed_steps(
            terminated=data.terminated, truncated=data.truncated, like=data.rewards, valid=valid, start=data.elapsed
        )
        weights = settings.discount**since * weights
    metrics["policy/weight_std"] = jnp.sqrt(masked_variance(weights, valid))
    if settings.advantage_normalization == "batch":
        weights = standardize(weights, valid, share)
    samples = Samples(
        data.observations[:-1], data.actions, data.acting, data.log_probabilities, weights, targets, values, valid
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
    if old_values is not None:
        flat = flat._replace(values=old_values)
    return flat, metrics


def masked_variance(x: Array, valid: Array) -> Array:
    """Population variance over the valid entries."""
    return masked_mean((x - masked_mean(x, valid)) ** 2, valid)


def standardize(x: Array, valid: Array, share: Array | None = None) -> Array:
    """Shift and scale to mean 0 and standard deviation 1 over the valid entries; the others become 0, and all where the valid ones
    are alike, relative to their size.

    ``share`` is how much of the shift each entry takes, all of it by default: where another policy acted, a baseline leaves
    the gradient's mean alone only if it is weighted as ψ is.
    """
    mean = masked_mean(x, valid)
    shift = mean if share is None else share * mean / jnp.maximum(masked_mean(share, valid), 1e-8)
    centered = jnp.where(valid, x - shift, 0.0)
    if share is None:  # once more, for the mean's rounding is of the entries' size
        centered = jnp.where(valid, centered - masked_mean(centered, valid), 0.0)
    spread = jnp.sqrt(masked_mean(centered**2, valid))
    return jnp.where(spread > RESOLUTION * jnp.abs(mean), centered / jnp.where(spread > 0, spread, 1.0), 0.0)
