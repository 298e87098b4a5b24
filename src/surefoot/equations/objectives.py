"""Objectives and losses, one term per sample.

None of them takes a mean: reduce with :func:`masked_sum`, which returns (sum, count), so that the denominator can be
made global and micro-batches, devices or padding never change a gradient.
"""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, Flags, flag, namespace, stop_gradient
from surefoot.equations._rows import harmless

__all__ = ["clipped_surrogate", "clipped_value_loss", "masked_mean", "masked_sum", "squared_value_loss"]


def clipped_surrogate(
    *, ratio: Float[Array, "*batch"], advantages: Float[Array, "*batch"], clip_range: float | Array
) -> Float[Array, "*batch"]:
    """L = min(ρ A, clip(ρ, 1−ε, 1+ε) A), to be maximised.

    Where A > 0 and ρ > 1+ε, or A < 0 and ρ < 1−ε, the gradient is zero: the step has gone as far as it may. In the
    two cases in which the ratio left the interval the wrong way round, the gradient stays, and leads back.

    Args:
        ratio: ρ = π(a|s)/π_old(a|s).
        advantages: A, a constant to the gradient.
        clip_range: ε > 0; an array gives each sample its own. ``where(advantages > 0, 0.28, 0.2)`` is DAPO's clip-higher, a bound above
            that is not the bound below.

    Returns:
        one term per sample, in the unit of the advantages.

    Raises:
        ValueError: ε is not positive.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), equation 7; clip-higher: Yu et al., DAPO: An Open-Source
        LLM Reinforcement Learning System at Scale (2025), equation 10.
    """
    if isinstance(clip_range, int | float) and clip_range <= 0:
        raise ValueError(f"clip_range must be positive, but is {clip_range}")
    xp = namespace(ratio, advantages)
    advantages = stop_gradient(advantages)
    # clip, spelt so that ε may be a traced array and the bounds keep the dtype of the ratio in every library
    clipped = xp.where(ratio > 1 + clip_range, xp.ones_like(ratio) + clip_range, ratio)
    clipped = xp.where(ratio < 1 - clip_range, xp.ones_like(ratio) - clip_range, clipped)
    unclipped_term, clipped_term = ratio * advantages, clipped * advantages
    # `minimum` splits the gradient where its arguments are equal, and inside the interval they always are.
    return xp.where(clipped_term < unclipped_term, clipped_term, unclipped_term)


def squared_value_loss(*, values: Float[Array, "*batch"], targets: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """½ (V(s) − G)², G held constant.

    Args:
        values: V(s), in reward units.
        targets: G, for instance λ-returns, in reward units.

    Returns:
        one term per sample, in squared reward units.

    Source: Sutton and Barto, Reinforcement Learning (2018), equation 9.4 for the gradient.
    """
    return 0.5 * (values - stop_gradient(targets)) ** 2


def clipped_value_loss(
    *,
    values: Float[Array, "*batch"],
    old_values: Float[Array, "*batch"],
    targets: Float[Array, "*batch"],
    clip_range: float | Array,
) -> Float[Array, "*batch"]:
    """½ max((V − G)², (V_old + clip(V − V_old, −ε, ε) − G)²), G and V_old held constant.

    ε is in reward units, so what it does depends on the scale of the returns; without reward normalisation it can
    stop a critic from learning. There is evidence against it (Andrychowicz et al., What Matters in On-Policy
    Reinforcement Learning? 2021) and none for it.

    Args:
        values: V(s).
        old_values: V_old(s), from when the data was collected.
        targets: G.
        clip_range: ε > 0, in reward units.

    Returns:
        one term per sample, in squared reward units.

    Raises:
        ValueError: ε is not positive.

    Source: the authors' code of Schulman et al. (2017); it is not in the paper.
    """
    if isinstance(clip_range, int | float) and clip_range <= 0:
        raise ValueError(f"clip_range must be positive, but is {clip_range}")
    xp = namespace(values, old_values, targets)
    old_values = stop_gradient(old_values)
    move = values - old_values
    held = xp.where(move > clip_range, xp.zeros_like(move) + clip_range, move)
    held = xp.where(move < -clip_range, xp.zeros_like(move) - clip_range, held)
    plain = squared_value_loss(values=values, targets=targets)
    clipped = squared_value_loss(values=old_values + held, targets=targets)
    return xp.where(clipped > plain, clipped, plain)


def masked_sum(
    terms: Float[Array, "*batch"], valid: Flags[Array, "*batch"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(Σ terms, number of terms), both over the entries where ``valid`` is true.

    A masked term does not reach the sum, but a masked NaN still poisons the gradient of whatever produced it: make
    inputs harmless before the function that could turn them into NaN.

    Args:
        terms: one term per sample.
        valid: which samples count, as booleans or 0 and 1; all by default.

    Returns:
        the sum, in the unit of the terms, and the count as a number of the same dtype.
    """
    xp, valid = namespace(terms), flag("valid", valid)
    return xp.sum(harmless(terms, valid)), xp.sum(harmless(xp.ones_like(terms), valid))


def masked_mean(terms: Float[Array, "*batch"], valid: Flags[Array, "*batch"] | None = None) -> Float[Array, ""]:
    """The mean over the entries where ``valid`` is true, and 0 where there is none.

    Args:
        terms: one term per sample.
        valid: which samples count, as booleans or 0 and 1; all by default.

    Returns:
        Σ terms / max(number of terms, 1), in the unit of the terms. Correct only where one device sees the whole
        batch; elsewhere combine the pairs of :func:`masked_sum` first.
    """
    total, count = masked_sum(terms, valid)
    return total / namespace(terms).where(count > 0, count, 0 * count + 1)
