"""Returns and advantages, all over one reverse linear recurrence.

Conventions. Time is the leading axis: step t acts in state s_t, earns r_t and arrives in s′_t, the true next state,
never the first state of the next episode. ``values`` holds V(s_t) and ``next_values`` V(s′_t). ``terminated`` means
that nothing follows s′_t, so its value counts as zero; ``truncated`` means that somebody stopped watching, so V(s′_t)
stands for the rest. The last row of a rollout is treated as truncated. ``valid`` marks real steps; a slot in which a
vector environment only resets is not one: its result is zero, whatever stands there.

``gaps`` says what a slot that is not valid is to the sums. With ``"stop"``, the default, nothing crosses it: right for
slots that only reset, and for padding. With ``"skip"`` the sums are those of the valid rows alone, moved together: right for
an answer over several turns, in which the tokens of a tool or a user stand between its own; the last valid row of a column is then
what the last row is elsewhere, and ``next_values`` of a row before a gap is the value at the valid row behind it. With γ = ½, a
reward of 1 at the end and nothing else:

===========  =====  ====  ==  ==  ====  ==
``valid``    1      1     0   0   1     1
===========  =====  ====  ==  ==  ====  ==
``"stop"``   0      0     0   0   0.5   1
``"skip"``   0.125  0.25  0   0   0.5   1
===========  =====  ====  ==  ==  ====  ==

Flags are booleans, or 0 and 1 of any integer or real dtype; anything else raises TypeError for its dtype, or ValueError for its
values, which are looked at unless a program is being traced. ``discount`` is γ in [0, 1]: a number, an array of one per column, or
one per step, γ_t between r_t and what follows it.

Masks are applied with ``where`` before any arithmetic, so NaN in a masked slot reaches neither a value nor a
gradient. Rewards, values and results share one unit (reward units).
"""

from __future__ import annotations

from jaxtyping import Float

from surefoot.equations._library import Array, Flags, align, flag, namespace, reverse_linear_recurrence
from surefoot.equations._rows import Gaps, Rows, check_fraction, factor_of, harmless, rows_of

__all__ = [
    "discounted_returns",
    "generalized_advantages",
    "lambda_returns",
    "n_step_returns",
    "temporal_difference_residuals",
]


def temporal_difference_residuals(
    *,
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    discount: float | Array,
    valid: Flags[Array, "time *batch"] | None = None,
) -> Float[Array, "time *batch"]:
    """δ_t = r_t + γ (1 − terminated_t) V(s′_t) − V(s_t), and 0 where ``valid`` is false.

    Args:
        rewards: r_t.
        values: V(s_t).
        next_values: V(s′_t); ignored where ``terminated``, even if not finite.
        terminated: whether s′_t is terminal.
        discount: γ in [0, 1].
        valid: which steps are real; all by default.

    Returns:
        δ_t in reward units.

    Raises:
        ValueError: γ lies outside [0, 1].

    Source: Sutton and Barto, Reinforcement Learning (2018), equation 6.5.
    """
    check_fraction("discount", discount)
    terminated, valid = flag("terminated", terminated), flag("valid", valid)
    xp = namespace(rewards, values)
    bootstrap = xp.where(terminated, xp.zeros_like(rewards), next_values)
    rewards, values, bootstrap = (harmless(x, valid) for x in (rewards, values, bootstrap))
    return rewards + factor_of(discount, rewards, valid) * bootstrap - values


def generalized_advantages(
    *,
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    trace_decay: float | Array,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
) -> Float[Array, "time *batch"]:
    """Generalised advantage estimation, A_t = Σ_l (γλ)^l δ_{t+l}, the sum cut at both kinds of episode end.

    λ = 0 is the TD residual. λ = 1 is the discounted return minus V(s_t), bootstrapped where the episode did not end.

    Args:
        rewards: r_t.
        values: V(s_t).
        next_values: V(s′_t), ignored where ``terminated``.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        trace_decay: λ in [0, 1].
        valid: which steps are real; all by default.
        gaps: whether slots that are not valid stop the sum or are skipped, as the module says.

    Returns:
        A_t in reward units.

    Raises:
        ValueError: γ or λ lies outside [0, 1].

    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016),
    equation 16.
    """
    check_fraction("trace_decay", trace_decay)
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    residuals = temporal_difference_residuals(
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=rows.terminated,
        discount=discount,
        valid=rows.valid,
    )
    decay = rows.coefficients(align(discount, rewards) * align(trace_decay, rewards), residuals)
    return rows.cleared(reverse_linear_recurrence(coefficients=decay, terms=residuals))


def lambda_returns(
    *,
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    trace_decay: float | Array,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
) -> Float[Array, "time *batch"]:
    """G^λ_t = A_t + V(s_t), with A_t from :func:`generalized_advantages`: the target that a critic learns.

    Arguments, units and errors are those of :func:`generalized_advantages`; masked slots return 0.

    Source: Sutton and Barto (2018), equation 12.3, in the form that Schulman et al. (2016) use.
    """
    advantages = generalized_advantages(
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=terminated,
        truncated=truncated,
        discount=discount,
        trace_decay=trace_decay,
        valid=valid,
        gaps=gaps,
    )
    return advantages + harmless(values, flag("valid", valid))


def discounted_returns(
    *,
    rewards: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    next_values: Float[Array, "time *batch"] | None = None,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
) -> Float[Array, "time *batch"]:
    """G_t = r_t + γ G_{t+1} up to the end of the episode, then γ (1 − terminated) V(s′).

    Args:
        rewards: r_t.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        next_values: V(s′_t), read where an episode was cut and in the last row; without it the rest counts as zero.
        valid: which steps are real; all by default.
        gaps: whether slots that are not valid stop the sum or are skipped, as the module says.

    Returns:
        G_t in reward units.

    Raises:
        ValueError: γ lies outside [0, 1].

    Source: Sutton and Barto (2018), equation 3.9, with a bootstrap at cuts.
    """
    check_fraction("discount", discount)
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    coefficients = rows.coefficients(align(discount, rewards), rewards)
    terms = _rewards_and_bootstraps(rows, rewards, next_values, discount)
    return rows.cleared(reverse_linear_recurrence(coefficients=coefficients, terms=terms))


def _rewards_and_bootstraps(rows: Rows, rewards: Array, next_values: Array | None, discount: float | Array) -> Array:
    """r_t, and γ (1 − terminated) V(s′_t) where the rollout has nothing more of the episode."""
    rewards = harmless(rewards, rows.valid)
    if next_values is None:
        return rewards
    bootstraps = harmless(rows.closing() & ~rows.terminated, rows.valid)
    bootstrap = namespace(rewards).where(bootstraps, next_values, namespace(rewards).zeros_like(rewards))
    return rewards + factor_of(discount, rewards, rows.valid) * bootstrap


def n_step_returns(
    *,
    rewards: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    steps: int,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
) -> Float[Array, "time *batch"]:
    """G^(n)_t = Σ_{k<m} γ^k r_{t+k} + γ^m V(s′_{t+m−1}), m = n or what the episode and the rollout leave.

    Windows are put together from shorter ones, at most 2 log₂ n times, and nothing is subtracted: a reward reaches the n rows
    whose windows it lies in, and no other's digits.

    Args:
        rewards: r_t.
        next_values: V(s′_t), ignored where ``terminated``.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        steps: n ≥ 1.
        valid: which steps are real; all by default.
        gaps: whether slots that are not valid stop the sum or are skipped, as the module says.

    Returns:
        G^(n)_t in reward units; masked slots return 0.

    Raises:
        ValueError: γ lies outside [0, 1] or ``steps`` is below 1.

    Source: Sutton and Barto (2018), equation 7.1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    if steps >= rewards.shape[0]:
        return discounted_returns(
            rewards=rewards, terminated=terminated, truncated=truncated, discount=discount, next_values=next_values,
            valid=valid, gaps=gaps,
        )  # fmt: skip
    check_fraction("discount", discount)
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    xp = namespace(rewards)
    zero = xp.zeros_like(rewards)
    one_step = (
        xp.where(rows.closing(), zero, zero + align(discount, rewards)),
        _rewards_and_bootstraps(rows, rewards, next_values, discount),
    )
    if rows.gaps is None:
        return _windows(*one_step, next_values, steps)
    there, back = rows.order()
    coefficients, terms, values = (xp.take_along_axis(x, there, axis=0) for x in (*one_step, next_values))
    return xp.take_along_axis(_windows(coefficients, terms, values, steps), back, axis=0)


def _windows(coefficients: Array, terms: Array, values: Array, steps: int) -> Array:
    """What n rows of the recurrence y_t = b_t + a_t y_{t+1} make of y_{t+n} = V(s′_{t+n−1}); a of the last row must be 0."""
    xp = namespace(coefficients, terms)

    def beyond(coefficients: Array, x: Array) -> Array:
        return coefficients * xp.where(coefficients != 0, x, xp.zeros_like(x))  # 0 · ∞ is NaN, and nothing lies behind an end

    def behind(first: tuple[Array, Array], second: tuple[Array, Array], length: int) -> tuple[Array, Array]:
        later, last = second[0][length:, ...], second[1][length:, ...]
        before, terms = (x[: later.shape[0], ...] for x in first)
        return before * later, terms + beyond(before, last)

    padding = xp.zeros_like(terms[: steps - 1, ...])
    one = whole = (xp.concat([coefficients, padding], axis=0), xp.concat([terms, padding], axis=0))
    length = 1
    for digit in f"{steps:b}"[1:]:
        whole, length = behind(whole, whole, length), 2 * length
        if digit == "1":
            whole, length = behind(whole, one, length), length + 1
    return whole[1] + beyond(whole[0], xp.concat([values[steps - 1 :, ...], padding], axis=0))
