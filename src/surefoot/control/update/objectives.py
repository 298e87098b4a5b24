"""What actor and critic descend: the objectives, as mean losses over a batch of samples with their metrics."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from surefoot.control.configuration import LikelihoodObjective, TrainConfiguration
from surefoot.control.policies.networks import Parameters
from surefoot.control.policies.policy import action_distribution
from surefoot.control.policies.spaces import Spaces
from surefoot.control.update.estimation import action_values_of, standardize, values_of
from surefoot.control.update.state import Metrics, Samples, Schedule
from surefoot.equations import (
    Array,
    Distribution,
    clipped_surrogate,
    clipped_value_loss,
    importance_ratio,
    kl_k3,
    masked_mean,
    squared_value_loss,
    weight_diagnostics,
)


def acting_distribution(spaces: Spaces, samples: Samples) -> Distribution:
    """π_old(·|s), the whole distribution that the samples' actions were drawn from."""
    assert samples.acting is not None
    return spaces.action.distribution(samples.acting["outputs"], samples.acting.get("log_std"))


def ratio_of(policy: Distribution, batch: Samples) -> tuple[Array, Array]:
    """ρ = π/π_old and log π of a batch's actions.

    Masked samples are made harmless before the exponential: a NaN gradient would survive a mask that comes after it.
    """
    log_probabilities = jnp.where(batch.valid, policy.log_probability(batch.actions), batch.log_probabilities)
    ratio = importance_ratio(log_probabilities=log_probabilities, behavior_log_probabilities=batch.log_probabilities)
    return ratio, log_probabilities


def ratio_metrics(log_ratio: Array, valid: Array) -> Metrics:
    """How far the importance ratios π/π_old can be trusted: effective share of the sample, variance and largest ratio."""
    diagnosed = weight_diagnostics(log_weights=log_ratio, valid=valid)
    return {
        "policy/effective_sample_share": diagnosed.effective_sample_size / jnp.maximum(valid.sum(), 1),
        "policy/ratio_variance": diagnosed.weight_variance,
        "policy/ratio_max": diagnosed.largest_weight,
    }


def actor_loss(
    configuration: TrainConfiguration,
    spaces: Spaces,
    parameters: Parameters,
    batch: Samples,
    schedule: Schedule,
    kl_coefficient: Array | float = 0.0,
) -> tuple[Array, Metrics]:
    """−(objective + entropy bonus), the mean over a batch's valid samples.

    log-likelihood: ψ log π; surrogate: ρψ, clipped or not, less β KL(π_old‖π).
    """
    objective, valid, weights = configuration.objective, batch.valid, batch.weights
    if configuration.weight.advantage_normalization == "minibatch":
        weights = standardize(weights, valid)
    policy = action_distribution(spaces, parameters, batch.observations, activation=configuration.network.activation)
    entropy = masked_mean(policy.entropy(), valid)
    metrics: Metrics = {"policy/entropy": entropy}
    if isinstance(objective, LikelihoodObjective):
        log_probabilities = jnp.where(valid, policy.log_probability(batch.actions), 0.0)
        gain = masked_mean(weights * log_probabilities, valid)
        return -gain - objective.entropy_coefficient * entropy, metrics | {"policy/objective": gain}
    assert objective is not None, "a natural step descends no loss"
    ratio, log_probabilities = ratio_of(policy, batch)
    if objective.clip_range is None:
        terms = ratio * weights
    else:
        terms = clipped_surrogate(ratio=ratio, advantages=weights, clip_range=schedule.clip_range)
        outside = (jnp.abs(ratio - 1) > schedule.clip_range).astype(ratio.dtype)
        metrics["policy/clip_fraction"] = masked_mean(outside, valid)
    surrogate = masked_mean(terms, valid)
    loss = -surrogate - objective.entropy_coefficient * entropy
    if objective.kl_penalty != "none":
        loss = loss + kl_coefficient * mean_kl(acting_distribution(spaces, batch), policy, valid)
    metrics |= {
        "policy/objective": surrogate,
        "policy/approximate_kl": masked_mean(kl_k3(log_probabilities - batch.log_probabilities), valid),
    }
    return loss, metrics | ratio_metrics(log_probabilities - batch.log_probabilities, valid)


def mean_kl(old: Any, new: Any, valid: Array) -> Array:
    """The mean over valid samples of KL(old‖new), in nats."""
    return masked_mean(jnp.where(valid, old.kl_divergence(new), 0.0), valid)


def critic_loss(
    configuration: TrainConfiguration, spaces: Spaces, parameters: dict[str, Parameters], batch: Samples
) -> tuple[Array, Metrics]:
    """½ (V − target)², clipped by option, and ½ (Q − target)² where there is a Q: means over a batch's valid samples."""
    assert batch.targets is not None
    values = values_of(configuration, parameters["v"], batch.observations)
    clip = None if configuration.passes is None else configuration.passes.value_clip_range
    if clip is None:
        terms = squared_value_loss(values=values, targets=batch.targets)
    else:
        terms = clipped_value_loss(values=values, old_values=batch.values, targets=batch.targets, clip_range=clip)
    loss = masked_mean(terms, batch.valid)
    metrics = {"critic/loss": loss}
    if "q" in parameters:
        seen = action_values_of(configuration, spaces, parameters["q"], batch.observations, batch.actions)
        of_q = masked_mean(squared_value_loss(values=seen, targets=batch.targets), batch.valid)
        loss, metrics["critic/action_value_loss"] = loss + of_q, of_q
    return loss, metrics
