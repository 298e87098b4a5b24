"""Controllers of a KL penalty's weight: (coefficient, measured KL) to the next coefficient, once per policy update."""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, namespace

__all__ = ["adapt_kl_coefficient", "ascend_kl_multiplier"]

SMALLEST, LARGEST = 1e-8, 1e8


def adapt_kl_coefficient(coefficient: Float[Array, ""], *, kl: Float[Array, ""], target: float | Array) -> Float[Array, ""]:
    """β/2 where KL < d/1.5, 2β where KL > 1.5 d, else β.

    The factors are coarse on purpose: the rule has to find β's order of magnitude, and then hold KL within a band around
    d. β stays within 1e−8 … 1e8, so that a long stretch on one side can neither underflow nor overflow it.

    Args:
        coefficient: β > 0.
        kl: mean KL(π_old‖π) after the update, in nats.
        target: d, in nats.

    Returns:
        β for the next update.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), section 4.
    """
    xp = namespace(coefficient, kl)
    doubled = xp.where(kl > 1.5 * target, 2 * coefficient, coefficient)
    return xp.clip(xp.where(kl < target / 1.5, coefficient / 2, doubled), SMALLEST, LARGEST)


def ascend_kl_multiplier(
    multiplier: Float[Array, ""], *, kl: Float[Array, ""], target: float | Array, learning_rate: float | Array
) -> Float[Array, ""]:
    """λ ← max(λ + η (KL − ε), 0): gradient ascent on the dual of max E[ρ A] subject to KL ≤ ε.

    The Lagrangian is E[ρ A] − λ (KL − ε), and its derivative by λ is ε − KL, which the multiplier descends. At a fixed
    point KL = ε, or λ = 0 and the constraint is slack.

    Args:
        multiplier: λ ≥ 0.
        kl: mean KL(π_old‖π) after the update, in nats.
        target: ε, in nats.
        learning_rate: η, per nat.

    Returns:
        λ for the next update.

    Source: Boyd and Vandenberghe, Convex Optimization (2004), section 5.5; as a rule for policies, Schulman et al.,
    Trust Region Policy Optimization (2015), section 3, states the penalised problem.
    """
    xp = namespace(multiplier, kl)
    return xp.clip(multiplier + learning_rate * (kl - target), 0.0, LARGEST)
