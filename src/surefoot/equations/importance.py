"""Importance sampling: correcting for who collected the data."""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, namespace

__all__ = ["importance_ratio"]


def importance_ratio(
    *, log_probabilities: Float[Array, "*batch"], behavior_log_probabilities: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """ρ = π(a|s) / μ(a|s) = exp(log π − log μ), computed in log space.

    Args:
        log_probabilities: log π(a|s) under the policy being scored, in nats (densities: log of the density).
        behavior_log_probabilities: log μ(a|s) under the policy that acted, in nats.

    Returns:
        ρ ≥ 0, without unit; its mean under μ is 1.

    Source: Kahn and Marshall, Methods of Reducing Sample Size in Monte Carlo Computations (1953).

    """
    xp = namespace(log_probabilities, behavior_log_probabilities)
    return xp.exp(log_probabilities - behavior_log_probabilities)
