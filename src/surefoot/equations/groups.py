"""The weight ψ of answers to one prompt, each judged by the others: no critic is needed.

With y_1 … y_K ~ π(·|x), independent, and their returns R_1 … R_K, the estimate of a prompt's gradient is (1/K) Σ_i A_i ∇log π(y_i|x).
What it is an estimate of depends on A:

================  ============================  =========================================================================
name              A_i                           E[estimate]
================  ============================  =========================================================================
leave-one-out     R_i − mean of the others      ∇E[R]
group             R_i − mean of all K           (K−1)/K ∇E[R]: the answer is part of its own baseline
group, divided    that, over √(their variance)  no gradient of E[R]; for K = 2 that of the probability to beat another answer
================  ============================  =========================================================================
"""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, namespace

__all__ = ["group_advantages", "leave_one_out_advantages"]


def leave_one_out_advantages(*, returns: Float[Array, "*batch answers"]) -> Float[Array, "*batch answers"]:
    """A_i = R_i − 1/(K−1) Σ_{j≠i} R_j = K/(K−1) (R_i − mean R).

    The other answers' mean does not depend on answer i, so it is a baseline that biases nothing, whatever K is.

    Args:
        returns: R_1 … R_K of the K answers to each prompt, in reward units.

    Returns:
        A_i in reward units; they add up to 0, and are 0 exactly where all K returns are equal.

    Raises:
        ValueError: K is below 2.

    Source: Kool, van Hoof and Welling, Buy 4 REINFORCE Samples, Get a Baseline for Free! (2019); for language models:
        Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback (2024).
    """
    answers = _count(returns)
    return _centred(returns) * (answers / (answers - 1))


def group_advantages(
    *, returns: Float[Array, "*batch answers"], divide_by_deviation: bool, epsilon: float = 1e-4
) -> Float[Array, "*batch answers"]:
    """A_i = R_i − mean R, or (R_i − mean R)/(s + ε) with s² = 1/(K−1) Σ_j (R_j − mean R)².

    The difference to the mean has (K−1)/K of the gradient of E[R], which the step size can make up for. Division by s changes what is
    climbed. Where answers' returns hardly differ, what little there is, noise included, is made as large as everywhere else; a return
    that raises s is held back, so rare high returns count for less than they bring. For K = 2 nothing is left of the returns but which
    is higher: A = ±1/√2.

    Args:
        returns: R_1 … R_K of the K answers to each prompt, in reward units.
        divide_by_deviation: whether to divide by s, the standard deviation whose square is unbiased.
        epsilon: ε > 0, in reward units: differences far below it are not made larger.

    Returns:
        A_i in reward units, or without unit where divided; 0 exactly where all K returns are equal.

    Raises:
        ValueError: K is below 2, or ε is not positive.

    Source: Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (2024), section 4.1.2;
        without division: Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective (2025).
    """
    answers = _count(returns)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, but is {epsilon}")
    centred = _centred(returns)
    if not divide_by_deviation:
        return centred
    xp = namespace(returns)
    variance = xp.sum(centred**2, axis=-1, keepdims=True) / (answers - 1)
    # The root has no derivative at 0: where nothing varies it is taken of 1, and divides zeros.
    deviation = xp.sqrt(xp.where(variance > 0, variance, xp.ones_like(variance)))
    return centred / (deviation + epsilon)


def _count(returns: Array) -> int:
    answers = int(returns.shape[-1])
    if answers < 2:
        raise ValueError(f"answers are judged by the others to their prompt, so there must be at least 2, not {answers}")
    return answers


def _centred(returns: Array) -> Array:
    """R_i − mean R. The first return is subtracted first: equal returns then give 0, where their mean might be rounded."""
    since_first = returns - returns[..., :1]
    return since_first - namespace(returns).mean(since_first, axis=-1, keepdims=True)
