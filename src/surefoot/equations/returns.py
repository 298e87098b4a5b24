"""Returns and advantages, all over one reverse linear recurrence.

Conventions. Time is the leading axis: step t acts in state s_t, earns r_t and arrives in s′_t, the true next state,
never the first state of the next episode. ``values`` holds V(s_t) and ``next_values`` V(s′_t). ``terminated`` means
that nothing follows s′_t, so its value counts as zero; ``truncated`` means that somebody stopped watching, so V(s′_t)
stands for the rest. The last row of a rollout is treated as truncated. ``valid`` marks real steps; a slot in which a
vector environment only resets is not one: its result is zero, whatever stands there, and nothing crosses it.

Masks are applied with ``where`` before any arithmetic, so NaN in a masked slot reaches neither a value nor a
gradient. Rewards, values and results share one unit (reward units).
"""

from __future__ import annotations

from jaxtyping import Bool, Float

from surefoot.equations._library import Array, namespace, reverse_linear_recurrence

__all__ = [
    "discounted_returns",
    "generalized_advantages",
    "lambda_returns",
    "n_step_returns",
    "temporal_difference_residuals",
]


def _check_fraction(name: str, value: float | Array) -> None:
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but is {value}")


def _goes_on(terminated: Array, truncated: Array, valid: Array | None) -> Array:
    """Where the recursion may look at the following row."""
    going = ~(terminated | truncated)
    return going if valid is None else going & valid


def temporal_difference_residuals(
    *,
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    discount: float | Array,
    valid: Bool[Array, "time *batch"] | None = None,
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
    _check_fraction("discount", discount)
    xp = namespace(rewards, values)
    zero = xp.zeros_like(rewards)
    next_values = xp.where(terminated, zero, next_values)
    if valid is not None:
        rewards, values = xp.where(valid, rewards, zero), xp.where(valid, values, zero)
        next_values = xp.where(valid, next_values, zero)
    return rewards + discount * next_values - values


def generalized_advantages(
    *,
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    trace_decay: float | Array,
    valid: Bool[Array, "time *batch"] | None = None,
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

    Returns:
        A_t in reward units.

    Raises:
        ValueError: γ or λ lies outside [0, 1].

    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016),
    equation 16.
    """
    _check_fraction("trace_decay", trace_decay)
    residuals = temporal_difference_residuals(
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=terminated,
        discount=discount,
        valid=valid,
    )
    xp = namespace(residuals)
    zero = xp.zeros_like(residuals)
    decay = xp.where(_goes_on(terminated, truncated, valid), zero + discount * trace_decay, zero)
    return reverse_linear_recurrence(coefficients=decay, terms=residuals)


def lambda_returns(
    *,
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    trace_decay: float | Array,
    valid: Bool[Array, "time *batch"] | None = None,
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
    )
    if valid is None:
        return advantages + values
    xp = namespace(values)
    return advantages + xp.where(valid, values, xp.zeros_like(values))


def discounted_returns(
    *,
    rewards: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    next_values: Float[Array, "time *batch"] | None = None,
    valid: Bool[Array, "time *batch"] | None = None,
) -> Float[Array, "time *batch"]:
    """G_t = r_t + γ G_{t+1} up to the end of the episode, then γ (1 − terminated) V(s′).

    Args:
        rewards: r_t.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        next_values: V(s′_t), read where an episode was cut and in the last row; without it the rest counts as zero.
        valid: which steps are real; all by default.

    Returns:
        G_t in reward units.

    Raises:
        ValueError: γ lies outside [0, 1].

    Source: Sutton and Barto (2018), equation 3.9, with a bootstrap at cuts.
    """
    _check_fraction("discount", discount)
    xp = namespace(rewards)
    zero = xp.zeros_like(rewards)
    going = _goes_on(terminated, truncated, valid)
    terms = rewards if valid is None else xp.where(valid, rewards, zero)
    if next_values is not None:
        last = xp.concat([xp.zeros_like(going[:-1, ...]), xp.ones_like(going[-1:, ...])], axis=0)
        bootstraps = ~terminated & (~going | last)
        if valid is not None:
            bootstraps = bootstraps & valid
        terms = terms + discount * xp.where(bootstraps, next_values, zero)
    return reverse_linear_recurrence(coefficients=xp.where(going, zero + discount, zero), terms=terms)


def n_step_returns(
    *,
    rewards: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    steps: int,
    valid: Bool[Array, "time *batch"] | None = None,
) -> Float[Array, "time *batch"]:
    """G^(n)_t = Σ_{k<m} γ^k r_{t+k} + γ^m V(s′_{t+m−1}), m = n or what the episode and the rollout leave.

    With G the discounted return, G^(n)_t = G_t − γⁿ (G_{t+n} − V(s′_{t+n−1})) where the episode lasts that long and
    G_t where it does not, so the cost does not depend on n.

    Args:
        rewards: r_t.
        next_values: V(s′_t), ignored where ``terminated``.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        steps: n ≥ 1.
        valid: which steps are real; all by default.

    Returns:
        G^(n)_t in reward units; masked slots return 0.

    Raises:
        ValueError: γ lies outside [0, 1] or ``steps`` is below 1.

    Source: Sutton and Barto (2018), equation 7.1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    full = discounted_returns(
        rewards=rewards, terminated=terminated, truncated=truncated, discount=discount, next_values=next_values, valid=valid
    )
    if steps >= full.shape[0]:
        return full
    xp = namespace(full)
    zero = xp.zeros_like(full)
    going = xp.where(_goes_on(terminated, truncated, valid), zero + 1, zero)
    rows_left = reverse_linear_recurrence(coefficients=going, terms=xp.ones_like(full))
    # The window reaches row t + n only if no end lies in rows t … t+n−1; row counts are exact in floating point.
    reaches = rows_left[:-steps, ...] > steps
    beyond = discount**steps * (full[steps:, ...] - next_values[steps - 1 : -1, ...])
    return full - xp.concat([xp.where(reaches, beyond, zero[steps:, ...]), zero[:steps, ...]], axis=0)
