"""What another policy's data says: the return of π estimated from trajectories of μ, and V-trace.

The four estimators take weights from :mod:`surefoot.equations.importance`. Each returns one term per trajectory whose
mean is the estimate, so that one rule gives every standard error: std(terms) / √n. Slots that are not ``valid`` stand behind a trajectory's
end.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float

from surefoot.equations._library import (
    Array,
    Flags,
    align,
    flag,
    namespace,
    positions,
    reverse_linear_recurrence,
    stop_gradient,
)
from surefoot.equations._rows import Gaps, check_fraction, harmless, is_per_step, rows_of
from surefoot.equations.importance import importance_ratio, truncated_weights
from surefoot.equations.returns import temporal_difference_residuals

__all__ = [
    "ImportanceEstimate",
    "VTrace",
    "ordinary_importance_estimate",
    "per_decision_importance_estimate",
    "vtrace",
    "weighted_importance_estimate",
    "weighted_per_decision_importance_estimate",
]


class ImportanceEstimate(NamedTuple):
    """An estimate of J(π) = E_π[Σ_t γ^t r_t]."""

    estimate: Array
    """The mean of ``terms``, in reward units."""
    terms: Array
    """One per trajectory, in reward units. Self-normalised estimators are ratios of means; theirs are the terms of the
    linearised ratio (delta method), which have the estimate as their mean and its variance, to first order, as theirs."""
    numerators: Array
    """Σ_i of it over trajectories is the numerator of each ratio, shape (ratios, trajectories): what a bootstrap needs."""
    denominators: Array
    """Likewise; the estimate is Σ over ratios of (Σ_i numerators)/(Σ_i denominators)."""


def _ratios(numerators: Array, denominators: Array) -> ImportanceEstimate:
    """Σ_k N_k/D_k with N_k, D_k means over trajectories, and its linearisation Σ_k N_k/D_k + (n_ki − d_ki N_k/D_k)/D_k."""
    xp = namespace(numerators, denominators)
    totals = xp.mean(denominators, axis=1, keepdims=True)
    totals = xp.where(totals > 0, totals, xp.ones_like(totals))  # a ratio of which every weight vanished counts as 0
    ratios = xp.mean(numerators, axis=1, keepdims=True) / totals
    estimate = xp.sum(ratios)
    terms = estimate + xp.sum((numerators - denominators * ratios) / totals, axis=0)
    return ImportanceEstimate(estimate, terms, numerators, denominators)


def _relative_weights(log_weights: Array, limit: float | Array | None) -> Array:
    """Weights up to a common factor per row: the largest is 1. A self-normalised estimate does not see the factor."""
    xp = namespace(log_weights)
    if isinstance(limit, int | float) and not limit > 0:
        raise ValueError(f"limit must be positive, but is {limit}")
    if limit is not None:  # in log space, since the factor is taken out behind the cut
        bound = xp.log(xp.zeros_like(log_weights) + limit)
        log_weights = xp.where(log_weights > bound, bound, log_weights)
    return xp.exp(log_weights - xp.max(log_weights, axis=-1, keepdims=True))


def _discounted(rewards: Array, discount: float | Array, valid: Array | None) -> Array:
    """r_t times the discounts of the rows before it, γ^t or Π_{k<t} γ_k, and 0 behind the end."""
    check_fraction("discount", discount)
    xp, valid = namespace(rewards), flag("valid", valid)
    ones = xp.ones_like(rewards)
    if is_per_step(discount, rewards):
        discounts = xp.cumulative_prod(xp.concat([ones[:1, :], (ones * discount)[:-1, :]], axis=0), axis=0)
    else:
        times = xp.astype(positions(xp.permute_dims(rewards, (1, 0))), rewards.dtype)[:, None]
        discounts = (xp.zeros_like(times) + align(discount, rewards)) ** times
    return harmless(discounts, valid) * harmless(rewards, valid)


def ordinary_importance_estimate(
    *,
    log_weights: Float[Array, "trajectories"],
    returns: Float[Array, "trajectories"],
    limit: float | Array | None = None,
) -> ImportanceEstimate:
    """(1/n) Σ_i w_i G_i. Unbiased; its variance grows exponentially with the length of the trajectories.

    Args:
        log_weights: log w_i from :func:`trajectory_log_weights`, in nats.
        returns: G_i = Σ_t γ^t r_t of trajectory i, in reward units.
        limit: c > 0, cuts weights to min(w, c): less variance, and biased; none by default.

    Raises:
        ValueError: c is not positive.

    Source: Precup, Sutton and Singh, Eligibility Traces for Off-Policy Policy Evaluation (2000).
    """
    weights = truncated_weights(log_weights=log_weights, limit=limit)[None, :]
    return _ratios(weights * returns[None, :], namespace(weights).ones_like(weights))


def weighted_importance_estimate(
    *,
    log_weights: Float[Array, "trajectories"],
    returns: Float[Array, "trajectories"],
    limit: float | Array | None = None,
) -> ImportanceEstimate:
    """Σ_i w_i G_i / Σ_i w_i. Biased by O(1/n), consistent, and never outside the range of the returns.

    Arguments and errors are those of :func:`ordinary_importance_estimate`.

    Source: Precup, Sutton and Singh (2000), the weighted estimator.
    """
    weights = _relative_weights(log_weights, limit)[None, :]
    return _ratios(weights * returns[None, :], weights)


def per_decision_importance_estimate(
    *,
    log_weights: Float[Array, "time trajectories"],
    rewards: Float[Array, "time trajectories"],
    discount: float | Array,
    valid: Flags[Array, "time trajectories"] | None = None,
    limit: float | Array | None = None,
) -> ImportanceEstimate:
    """(1/n) Σ_i Σ_t γ^t w_it r_it. Unbiased: what is done after a reward was earned has no say in it.

    A discount per step, γ_t between r_t and r_{t+1}, puts Π_{k<t} γ_k in the place of γ^t.

    Args:
        log_weights: log w_it from :func:`cumulative_log_weights`, in nats.
        rewards: r_it, in reward units.
        discount: γ in [0, 1]; 1 for the plain sum of rewards.
        valid: which slots are steps of the trajectory; all by default.
        limit: c > 0, cuts weights to min(w, c): less variance, and biased; none by default.

    Raises:
        ValueError: γ lies outside [0, 1], or c is not positive.

    Source: Precup, Sutton and Singh (2000), the per-decision estimator.
    """
    weights = truncated_weights(log_weights=log_weights, limit=limit)
    xp = namespace(weights)
    products = xp.sum(weights * _discounted(rewards, discount, valid), axis=0)[None, :]
    return _ratios(products, xp.ones_like(products))


def weighted_per_decision_importance_estimate(
    *,
    log_weights: Float[Array, "time trajectories"],
    rewards: Float[Array, "time trajectories"],
    discount: float | Array,
    valid: Flags[Array, "time trajectories"] | None = None,
    limit: float | Array | None = None,
) -> ImportanceEstimate:
    """Σ_t γ^t (Σ_i w_it r_it) / (Σ_i w_it). Biased by O(1/n) and consistent.

    Trajectories that ended before t stay in the denominator with the weight they ended with and a reward of 0: left
    out, only the survivors would be asked how much is earned at t. Every row is then a consistent estimate of
    E_π[r_t], since E_μ[w_t] = 1 for every t.

    Arguments and errors are those of :func:`per_decision_importance_estimate`.

    Source: Thomas, Safe Reinforcement Learning (2015), consistent weighted per-decision importance sampling.
    """
    weights = _relative_weights(log_weights, limit)
    return _ratios(weights * _discounted(rewards, discount, valid), weights)


class VTrace(NamedTuple):
    """Targets for a critic and advantages for a policy, both constants to the gradient."""

    targets: Array
    """v_t, in reward units."""
    advantages: Array
    """ρ_t (r_t + γ v_{t+1} − V(s_t)), in reward units."""


def vtrace(
    *,
    log_probabilities: Float[Array, "time *batch"],
    behavior_log_probabilities: Float[Array, "time *batch"],
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    trace_decay: float | Array = 1.0,
    largest_ratio: float | Array = 1.0,
    largest_trace: float | Array = 1.0,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
) -> VTrace:
    """V-trace: v_t = V(s_t) + Σ_{k≥t} γ^{k−t} (Π_{t≤j<k} c_j) δ_k, with δ_k = ρ_k (r_k + γ(1−terminated)V(s′_k) − V(s_k)).

    ρ = min(ρ̄, π/μ) decides what is learnt: V of a policy between μ and π, and of π itself where nothing is cut.
    c = λ min(c̄, π/μ) decides only how fast, and with how much variance. The sum stops at both kinds of end. On-policy,
    with ρ̄, c̄ ≥ 1, v is the λ-return and the advantage the generalised advantage.

    Args:
        log_probabilities: log π(a_t|s_t) under the policy being improved, in nats.
        behavior_log_probabilities: log μ(a_t|s_t) under the policy that acted, in nats.
        rewards: r_t.
        values: V(s_t).
        next_values: V(s′_t) of the true next state, ignored where ``terminated``.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        trace_decay: λ in [0, 1].
        largest_ratio: ρ̄.
        largest_trace: c̄ ≤ ρ̄.
        valid: which steps are real; all by default. Masked slots return 0.
        gaps: whether masked slots stop the sum or are skipped, as :mod:`surefoot.equations.returns` says.

    Raises:
        ValueError: γ or λ lies outside [0, 1], c̄ is not positive, or ρ̄ is below c̄, for which no fixed point is known.

    Source: Espeholt et al., IMPALA (2018), section 4; its advantages have λ = 1.
    """
    check_fraction("trace_decay", trace_decay)
    limits = (largest_ratio, largest_trace)
    if all(isinstance(limit, int | float) for limit in limits) and not 0 < largest_trace <= largest_ratio:
        raise ValueError(
            f"largest_trace must be positive and at most largest_ratio, but they are {largest_trace} and {largest_ratio}"
        )
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    residuals = temporal_difference_residuals(
        rewards=rewards, values=values, next_values=next_values, terminated=rows.terminated, discount=discount, valid=rows.valid
    )
    xp = namespace(residuals, log_probabilities)
    zero = xp.zeros_like(residuals)
    log_probabilities, behavior_log_probabilities, values = (
        harmless(x, rows.valid) for x in (log_probabilities, behavior_log_probabilities, values)
    )
    plain = importance_ratio(log_probabilities=log_probabilities, behavior_log_probabilities=behavior_log_probabilities)
    largest_ratio, largest_trace = align(largest_ratio, plain), align(largest_trace, plain)
    ratios = xp.where(plain > largest_ratio, zero + largest_ratio, plain)
    traces = xp.where(plain > largest_trace, zero + largest_trace, plain)
    decay = align(discount, plain) * align(trace_decay, plain)
    corrections = reverse_linear_recurrence(coefficients=rows.coefficients(decay * traces, plain), terms=ratios * residuals)
    following = xp.concat([corrections[1:, ...], zero[:1, ...]], axis=0)
    advantages = ratios * (residuals + rows.coefficients(decay, plain) * following)
    return VTrace(stop_gradient(rows.cleared(values + corrections)), stop_gradient(rows.cleared(advantages)))
