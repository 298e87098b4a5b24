"""Controllers of a KL penalty's weight: (coefficient, measured KL) to the next coefficient, once per policy update."""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, namespace

__all__ = ["adapt_kl_coefficient", "adapt_kl_coefficient_proportionally", "ascend_kl_multiplier"]

SMALLEST, LARGEST = 1e-8, 1e8
LARGEST_ERROR = 0.2


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


def adapt_kl_coefficient_proportionally(
    coefficient: Float[Array, ""], *, kl: Float[Array, ""], target: float | Array, answers: int, horizon: int
) -> Float[Array, ""]:
    """β ← β (1 + e n/H) with e = clip(KL/d − 1, −0.2, 0.2): towards d in small steps, in proportion to what is missing.

    H is how many answers it takes to change β by a factor of about e^0.2 when KL is far from d, however many come at a time.

    Args:
        coefficient: β > 0, in reward units per nat.
        kl: mean KL(π‖π_ref) of the answers, in nats.
        target: d > 0, in nats.
        answers: n, how many answers the KL was measured on.
        horizon: H ≥ n.

    Returns:
        β for the next update, within 1e−8 … 1e8.

    Raises:
        ValueError: d is not positive, or H is below n: then β could change by more than a fifth at once, even its sign.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019), section 2.2.
    """
    if isinstance(target, int | float) and not target > 0:
        raise ValueError(f"target must be positive, but is {target}")
    if not 1 <= answers <= horizon:
        raise ValueError(f"horizon must be at least the number of answers, {answers}, but is {horizon}")
    xp = namespace(coefficient, kl)
    error = xp.clip(kl / target - 1, -LARGEST_ERROR, LARGEST_ERROR)
    return xp.clip(coefficient * (1 + error * (answers / horizon)), SMALLEST, LARGEST)
