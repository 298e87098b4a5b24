"""ψ and targets from another policy's data: importance weights in place of the assumption that π acted."""

from __future__ import annotations

import jax.numpy as jnp

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.update.state import Data, Metrics
from surefoot.equations import (
    Array,
    discounted_returns,
    per_decision_weights,
    vtrace,
    weight_diagnostics,
)


def off_policy_weights(
    configuration: TrainConfiguration, data: Data, values: Array | None, next_values: Array | None
) -> tuple[Array, Array, Array | None, Metrics]:
    """ψ for E_μ, the weight that a baseline takes in it, the critic's targets, and how far the weights can be trusted.

    Monte-Carlo weights (reward-to-go, baseline) are corrected per decision: with w_t = Π_{k≤t} ρ_k of the episode, cut at
    the limit, ψ_t = Σ_{k≥t} γ^{k−t} w_k r_k, less w_t V(s_t) with a baseline, which also stands for the rewards behind a
    truncation: without the cut its expectation under μ is that of ψ_t under π. One-step and λ weights (td-residual, gae)
    take V-trace, which cuts each ρ by itself: far less variance, for the states that μ visits and not those that π would.

    Source: Precup, Sutton and Singh, Eligibility Traces for Off-Policy Policy Evaluation (2000); Espeholt et al., IMPALA
    (2018), section 4.
    """
    assert data.behavior_log_probabilities is not None
    settings, recorded = configuration.weight, configuration.recorded
    assert recorded is not None
    limit, valid = recorded.importance_limit, data.valid
    ends = {"terminated": data.terminated, "truncated": data.truncated, "valid": valid}
    scores = {
        "log_probabilities": data.log_probabilities,
        "behavior_log_probabilities": data.behavior_log_probabilities,
    }
    log_ratios = jnp.where(valid, data.log_probabilities - data.behavior_log_probabilities, 0.0)
    if settings.weight in ("reward-to-go", "baseline"):
        weights = per_decision_weights(**scores, **ends, limit=limit)
        rewards = data.rewards
        if next_values is not None:
            stopped = data.truncated & ~data.terminated & valid
            rewards = rewards + settings.discount * jnp.where(stopped, next_values, 0.0)
        psi = discounted_returns(rewards=weights * rewards, discount=settings.discount, **ends)
        targets, diagnosed = None, weight_diagnostics(log_weights=log_ratios.sum(axis=0))
        count = jnp.asarray(log_ratios.shape[1], jnp.float32)
        if values is not None:
            # The critic's own target is corrected from t on; the weight of what led to s_t belongs to ψ alone.
            cut = vtrace(
                **scores, **ends, rewards=data.rewards, values=values, next_values=next_values,
                discount=settings.discount, largest_ratio=max(limit, 1.0),
            )  # fmt: skip
            targets, psi = cut.targets, psi - weights * values
    else:
        decay = settings.trace_decay if settings.weight == "gae" else 0.0
        cut = vtrace(
            **scores, **ends, rewards=data.rewards, values=values, next_values=next_values,
            discount=settings.discount, trace_decay=decay, largest_ratio=limit, largest_trace=min(limit, 1.0),
        )  # fmt: skip
        psi, targets = cut.advantages, cut.targets
        weights = jnp.where(valid, jnp.minimum(jnp.exp(log_ratios), limit), 0.0)
        diagnosed = weight_diagnostics(log_weights=log_ratios, valid=valid)
        count = jnp.maximum(valid.sum(), 1)
    metrics = {
        "importance/effective_sample_share": diagnosed.effective_sample_size / count,
        "importance/mean_weight": diagnosed.mean_weight,
        "importance/weight_variance": diagnosed.weight_variance,
        "importance/largest_weight_max": diagnosed.largest_weight,
    }
    return psi, weights, targets, metrics
