"""Importance sampling: correcting for who collected the data."""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, namespace

__all__ = ["importance_ratio"]

LARGEST_LOG_RATIO = 20.0


def importance_ratio(
    *, log_probabilities: Float[Array, "*batch"], behavior_log_probabilities: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """ρ = π(a|s) / μ(a|s) = exp(log π − log μ), computed in log space.

    The difference is held within ±20, where ρ is far outside any range in which it means something: beyond about 88 the
    exponential overflows in float32, and its gradient, 0 · ∞, would be NaN even where a clip makes it zero.

    Args:
        log_probabilities: log π(a|s) under the policy being scored, in nats (densities: log of the density).
        behavior_log_probabilities: log μ(a|s) under the policy that acted, in nats.

    Returns:
        ρ in [e⁻²⁰, e²⁰], without unit; its mean under μ is 1.

    Source: Kahn and Marshall, Methods of Reducing Sample Size in Monte Carlo Computations (1953).
    """
    xp = namespace(log_probabilities, behavior_log_probabilities)
    return xp.exp(xp.clip(log_probabilities - behavior_log_probabilities, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
