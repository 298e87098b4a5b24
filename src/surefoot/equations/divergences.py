"""Estimators of KL(p‖q) from samples of p, one term per sample; closed forms stand with the distributions.

With r = q(x)/p(x) and x ~ p, all from log r alone. k1 is unbiased and noisy, and negative on some samples. k2 is
biased with low variance. k3 is unbiased, never negative, and has low variance where p and q are close.

As *losses*, samples held fixed, they differ. Where q is trained (p = π_old), E_p[∇k1] = E_p[∇k3] = ∇KL(p‖q), and E_p[∇k2] is that to
first order in p − q. Where p itself is trained (p = π, q = π_ref), E_p[∇k1] = 0, E_p[∇k2] = ∇KL(p‖q) exactly, and E_p[∇k3] = ∇KL(q‖p),
the other direction. There x must be the whole of what p chose, an answer and not a token: that a token also changes which later ones
follow, and their divergence, is in no sum of per-token terms.

Source: Schulman, Approximating KL Divergence (2020), http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, namespace
from surefoot.equations.importance import LARGEST_LOG_RATIO

__all__ = ["kl_k1", "kl_k2", "kl_k3"]


def kl_k1(log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """k1 = −log r. E_p[k1] = KL(p‖q).

    Args:
        log_ratio: log r = log q(x) − log p(x), in nats, at x ~ p.

    Returns:
        one term per sample, in nats.
    """
    return -log_ratio


def kl_k2(log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """k2 = ½ (log r)². Equal to KL(p‖q) up to third order in p − q.

    Args:
        log_ratio: log r = log q(x) − log p(x), in nats, at x ~ p.

    Returns:
        one term per sample, in nats, never negative.
    """
    return 0.5 * log_ratio**2


def kl_k3(log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """k3 = (r − 1) − log r. E_p[k3] = KL(p‖q), and no term is negative.

    log r is held at 20, as in :func:`importance_ratio`: beyond, a term stays at e²⁰ − 21 and its gradient is 0. In float32 the
    exponential overflows beyond about 88, and the gradient behind anything that cuts its value would be 0 · ∞.

    Args:
        log_ratio: log r = log q(x) − log p(x), in nats, at x ~ p.

    Returns:
        one term per sample, in nats, never negative.
    """
    xp = namespace(log_ratio)
    held = xp.where(log_ratio > LARGEST_LOG_RATIO, xp.zeros_like(log_ratio) + LARGEST_LOG_RATIO, log_ratio)
    return xp.expm1(held) - held
