"""Whitening: numbers of a batch brought to variance 1, and to mean 0 or not."""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, Flags, flag, namespace
from surefoot.equations._rows import harmless
from surefoot.equations.objectives import masked_mean

__all__ = ["whiten"]

SHARE = 1e-8


def whiten(
    x: Float[Array, "*batch"],
    *,
    valid: Flags[Array, "*batch"] | None = None,
    shift_mean: bool = True,
    epsilon: float | None = None,
) -> Float[Array, "*batch"]:
    """(x − μ)/√(σ² + ε) or, with the mean kept, (x − μ)/√(σ² + ε) + μ.

    μ and σ² are the mean and the variance of all valid entries together, σ² with their number as its denominator. RLHF as it was first
    published whitens advantages, with the mean shifted to 0, and rewards, with the mean kept: a reward's sign means something.

    Args:
        x: of a whole batch; a part of it has another mean.
        valid: which entries are real; all by default. The others reach neither μ nor σ², NaN included.
        shift_mean: True makes the mean 0; False leaves it at μ.
        epsilon: ε > 0, in squared units of x: entries that do not vary become 0 (or μ), not NaN. By default 1e-8 of the mean square
            μ² + σ², which makes what comes out independent of the unit of x.

    Returns:
        whitened entries without unit (with the mean kept: μ in the unit of x); 0 where not valid.

    Raises:
        ValueError: ε is not positive.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019), the authors' code; Huang et al., The N+
        Implementation Details of RLHF with PPO (2024).
    """
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon must be positive, but is {epsilon}")
    xp, valid = namespace(x), flag("valid", valid)
    # One of the entries is subtracted first: equal ones then differ by 0, where their mean might be rounded.
    some = xp.max(x if valid is None else xp.where(valid, x, -xp.inf))
    some = xp.where(xp.isfinite(some), some, xp.zeros_like(some))
    since = harmless(harmless(x, valid) - some, valid)
    mean = masked_mean(since, valid)
    centred = since - mean
    variance = masked_mean(centred**2, valid)
    total = variance + (SHARE * (variance + (some + mean) ** 2) if epsilon is None else epsilon)
    whitened = centred / xp.sqrt(xp.where(total > 0, total, xp.ones_like(total)))
    return harmless(whitened if shift_mean else whitened + (some + mean), valid)
