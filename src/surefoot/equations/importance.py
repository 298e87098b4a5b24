"""Importance sampling: correcting for who collected the data.

E_π[X] = E_μ[w X] with w = π/μ: the mean is corrected, the variance is not, and it grows with the distance between the
policies. Weights are kept as logarithms until the last moment. Behind :func:`trajectory_log_weights` and
:func:`cumulative_log_weights` one column is one trajectory, padded behind its end with slots that are not ``valid``;
:func:`per_decision_weights` takes a rollout, in which episodes follow each other in a column.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float

from surefoot.equations._library import Array, Flags, align, flag, namespace, stop_gradient
from surefoot.equations._rows import Gaps, carried, harmless, rows_of

__all__ = [
    "WeightDiagnostics",
    "cumulative_log_weights",
    "importance_ratio",
    "per_decision_weights",
    "trajectory_log_weights",
    "truncated_weights",
    "weight_diagnostics",
]

LARGEST_LOG_RATIO = 20.0
LARGEST_LOG_WEIGHT = 40.0
SMALLEST_LOG_RATIO = -1e6
"""Stands for log 0: small enough for any float's exponential to be 0, and 0 times it is 0, where 0 · (−∞) is NaN."""


def importance_ratio(
    *, log_probabilities: Float[Array, "*batch"], behavior_log_probabilities: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """ρ = π(a|s) / μ(a|s) = exp(log π − log μ), computed in log space.

    The difference is held within ±20, where ρ is far outside any range in which it means something: beyond about 88 the
    exponential overflows in float32, and its gradient, 0 · ∞, would be NaN even where a clip makes it zero.

    The ratio of a whole answer, (Π ρ)^(1/length), as GSPO has it, is that of :func:`surefoot.equations.masked_mean` of log π − log μ
    over the answer's tokens, and 0.

    Args:
        log_probabilities: log π(a|s) under the policy being scored, in nats (densities: log of the density).
        behavior_log_probabilities: log μ(a|s) under the policy that acted, in nats.

    Returns:
        ρ in [e⁻²⁰, e²⁰], without unit; its mean under μ is 1.

    Source: Kahn and Marshall, Methods of Reducing Sample Size in Monte Carlo Computations (1953); of an answer: Zheng et al., Group
        Sequence Policy Optimization (2025), equation 7.
    """
    xp = namespace(log_probabilities, behavior_log_probabilities)
    return xp.exp(xp.clip(log_probabilities - behavior_log_probabilities, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def _log_ratios(log_probabilities: Array, behavior_log_probabilities: Array, valid: Array | None) -> Array:
    """Log π − log μ, 0 in masked slots; an action that π never takes gives a very small number, not −∞."""
    valid = flag("valid", valid)
    xp = namespace(log_probabilities, behavior_log_probabilities)
    ratios = harmless(log_probabilities, valid) - harmless(behavior_log_probabilities, valid)
    return xp.where(ratios < SMALLEST_LOG_RATIO, xp.zeros_like(ratios) + SMALLEST_LOG_RATIO, ratios)


def trajectory_log_weights(
    *,
    log_probabilities: Float[Array, "time trajectories"],
    behavior_log_probabilities: Float[Array, "time trajectories"],
    valid: Flags[Array, "time trajectories"] | None = None,
) -> Float[Array, "trajectories"]:
    """Log w = Σ_t log π(a_t|s_t) − log μ(a_t|s_t): how much likelier π makes a whole trajectory than μ did.

    What the environment contributes to a trajectory's probability cancels, which is why it need not be known.

    Args:
        log_probabilities: log π(a_t|s_t) under the policy to evaluate, in nats.
        behavior_log_probabilities: log μ(a_t|s_t) under the policy that acted, in nats; finite where ``valid``.
        valid: which slots are steps of the trajectory; all by default.

    Returns:
        log w, one per trajectory, in nats. The mean of w under μ is 1.

    Source: Precup, Sutton and Singh, Eligibility Traces for Off-Policy Policy Evaluation (2000).
    """
    ratios = _log_ratios(log_probabilities, behavior_log_probabilities, valid)
    return namespace(ratios).sum(ratios, axis=0)


def cumulative_log_weights(
    *,
    log_probabilities: Float[Array, "time trajectories"],
    behavior_log_probabilities: Float[Array, "time trajectories"],
    valid: Flags[Array, "time trajectories"] | None = None,
) -> Float[Array, "time trajectories"]:
    """Log w_t = Σ_{k≤t} log π(a_k|s_k) − log μ(a_k|s_k): the weight of what had happened when r_t was earned.

    Behind a trajectory's end the weight stays as it was: an ended episode is in a state in which both policies do the
    same, and E_μ[w_t] = 1 for every t.

    Arguments are those of :func:`trajectory_log_weights`.

    Returns:
        log w_t in nats; its last row is what :func:`trajectory_log_weights` returns.

    Source: Precup, Sutton and Singh (2000), the per-decision estimator.
    """
    ratios = _log_ratios(log_probabilities, behavior_log_probabilities, valid)
    return namespace(ratios).cumulative_sum(ratios, axis=0)


def per_decision_weights(
    *,
    log_probabilities: Float[Array, "time *batch"],
    behavior_log_probabilities: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    limit: float | Array,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
) -> Float[Array, "time *batch"]:
    """min(Π ρ_k, c) over the steps k of the same episode up to and including t, in a rollout of many episodes.

    This is the weight with which step t of another policy's data counts in the policy gradient. The product starts
    anew behind both kinds of end, and at the top of the rollout: what was done before it cannot be known.

    Args:
        log_probabilities: log π(a_t|s_t) under the policy to improve, in nats.
        behavior_log_probabilities: log μ(a_t|s_t) under the policy that acted, in nats.
        terminated: whether the episode ended with step t.
        truncated: whether it was cut there.
        limit: c > 0, what a weight is cut to; the bias of the cut is what its smaller variance costs.
        valid: which steps are real; others get 0. All by default.
        gaps: whether a product ends at slots that are not valid or skips them.

    Returns:
        weights in [0, c], constants to the gradient.

    Raises:
        ValueError: c is not positive.

    Source: Precup, Sutton and Singh (2000); the cut: Ionides, Truncated Importance Sampling (2008).
    """
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    ratios = _log_ratios(log_probabilities, behavior_log_probabilities, rows.valid)
    weights = truncated_weights(log_weights=ratios + carried(rows, like=ratios, earned=ratios), limit=limit)
    return stop_gradient(harmless(weights, rows.valid))


def truncated_weights(*, log_weights: Float[Array, "*batch"], limit: float | Array | None = None) -> Float[Array, "*batch"]:
    """min(w, c) for w = exp(log w), held at e⁴⁰ in any case, so that its square still is a float32.

    Args:
        log_weights: log w, in nats.
        limit: c > 0; none by default.

    Returns:
        weights without unit. Without a cut their mean under μ is 1. With one it is less: an estimate is biased towards 0,
        a self-normalised one towards what μ does.

    Raises:
        ValueError: c is not positive.

    Source: Ionides, Truncated Importance Sampling (2008).
    """
    if isinstance(limit, int | float) and not limit > 0:
        raise ValueError(f"limit must be positive, but is {limit}")
    xp = namespace(log_weights)
    held = xp.where(log_weights > LARGEST_LOG_WEIGHT, xp.zeros_like(log_weights) + LARGEST_LOG_WEIGHT, log_weights)
    weights = xp.exp(held)
    if limit is None:
        return weights
    limit = align(limit, weights)
    return xp.where(weights > limit, xp.zeros_like(weights) + limit, weights)


class WeightDiagnostics(NamedTuple):
    """How far a weighted sample can be trusted; ``_asdict()`` gives metrics."""

    effective_sample_size: Array
    """(Σ w)² / Σ w², between 1 and the number of samples: as many unweighted samples would be as precise."""
    mean_weight: Array
    """1 in expectation. Far less: the behaviour policy hardly ever did what the other one does, which no other number
    here shows."""
    weight_variance: Array
    """Mean of (w − w̄)²."""
    largest_weight: Array


def weight_diagnostics(
    *, log_weights: Float[Array, "*batch"], valid: Flags[Array, "*batch"] | None = None
) -> WeightDiagnostics:
    """Effective sample size (Σ w)² / Σ w², mean, variance and maximum of weights.

    The effective sample size does not change when all weights are scaled, and is computed so: it is right even where
    the weights themselves are too large or too small for a float.

    Args:
        log_weights: log w, in nats.
        valid: which weights count; all by default.

    Returns:
        four numbers without unit; zeros where nothing is valid.

    Source: Kong, A Note on Importance Sampling Using Standardized Weights (1992).
    """
    xp, valid = namespace(log_weights), flag("valid", valid)
    zero = xp.zeros_like(log_weights)
    counts = harmless(zero + 1, valid)
    log_weights = harmless(log_weights, valid)
    log_weights = xp.where(log_weights < SMALLEST_LOG_RATIO, zero + SMALLEST_LOG_RATIO, log_weights)
    shift = xp.max(log_weights if valid is None else xp.where(valid, log_weights, zero + 2 * SMALLEST_LOG_RATIO))
    # A masked slot's exponent is made 0 before the exponential, which could overflow on it.
    shares = counts * xp.exp(xp.where(counts > 0, log_weights - shift, zero))
    squares = xp.sum(shares**2)
    weights = counts * truncated_weights(log_weights=log_weights)
    number = xp.sum(counts)
    number = xp.where(number > 0, number, number + 1)
    mean = xp.sum(weights) / number
    return WeightDiagnostics(
        effective_sample_size=xp.sum(shares) ** 2 / xp.where(squares > 0, squares, squares + 1),
        mean_weight=mean,
        weight_variance=xp.sum(counts * (weights - mean) ** 2) / number,
        largest_weight=xp.max(weights),
    )
