"""The weight ψ_t of the policy gradient ∇J = E[Σ_t ψ_t ∇log π(a_t|s_t)], in all its forms, by name.

All forms have the same expectation where V and Q are those of the policy, and differ in variance. ``total-return``
discounts from the beginning of the episode; the others discount from t, and equal ∇J only with the factor γᵗ, which
practice drops.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016), section 2.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Bool, Float

from surefoot.equations._library import Array, namespace, reverse_linear_recurrence
from surefoot.equations.returns import (
    discounted_returns,
    generalized_advantages,
    n_step_returns,
    temporal_difference_residuals,
)

__all__ = ["WEIGHTS", "WEIGHT_NEEDS", "Weight", "elapsed_steps", "policy_gradient_weights", "returns_so_far"]

Weight = Literal["total-return", "reward-to-go", "baseline", "q-value", "advantage", "td-residual", "n-step", "gae"]

WEIGHT_NEEDS: dict[str, tuple[str, ...]] = {
    "total-return": (),
    "reward-to-go": (),
    "baseline": ("values", "next_values"),
    "q-value": ("action_values",),
    "advantage": ("values", "action_values"),
    "td-residual": ("values", "next_values"),
    "n-step": ("values", "next_values", "steps"),
    "gae": ("values", "next_values", "trace_decay"),
}
WEIGHTS: tuple[str, ...] = tuple(WEIGHT_NEEDS)
_MEANINGS = {
    "values": "V(s), a critic of V",
    "next_values": "V(s′), a critic of V",
    "action_values": "Q(s, a), a critic of Q",
    "steps": "n, how many rewards to sum before V takes over",
    "trace_decay": "λ, a number between 0 and 1",
}


def policy_gradient_weights(
    name: Weight | str,
    *,
    rewards: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    values: Float[Array, "time *batch"] | None = None,
    next_values: Float[Array, "time *batch"] | None = None,
    action_values: Float[Array, "time *batch"] | None = None,
    trace_decay: float | Array | None = None,
    steps: int | None = None,
    valid: Bool[Array, "time *batch"] | None = None,
    elapsed: Float[Array, "*batch"] | None = None,
    collected: Float[Array, "*batch"] | None = None,
) -> Float[Array, "time *batch"]:
    """ψ_t for every step of a rollout.

    ============  =====================================================================  =====================
    name          ψ_t                                                                    needs
    ============  =====================================================================  =====================
    total-return  Σ_{t′≥0} γ^t′ r_t′ over the whole episode
    reward-to-go  G_t = Σ_{k≥0} γ^k r_{t+k} to the end of the episode or of the rollout
    baseline      G_t − V(s_t), G_t bootstrapped with V(s′) where the episode was cut    values, next_values
    q-value       Q(s_t, a_t)                                                            action_values
    advantage     Q(s_t, a_t) − V(s_t)                                                   values, action_values
    td-residual   δ_t = r_t + γ (1 − terminated_t) V(s′_t) − V(s_t)                      values, next_values
    n-step        G^(n)_t − V(s_t)                                                       those, and steps
    gae           Σ_l (γλ)^l δ_{t+l}                                                     those, and trace_decay
    ============  =====================================================================  =====================

    Without a critic nothing can stand for the rewards after a cut: there ``total-return`` and ``reward-to-go`` weigh
    an action by the rewards that were seen, which is the gradient of exactly those.

    Args:
        name: which form.
        rewards: r_t.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        values: V(s_t).
        next_values: V(s′_t), s′_t the true next state.
        action_values: Q(s_t, a_t).
        trace_decay: λ in [0, 1].
        steps: n ≥ 1.
        valid: which steps are real; all by default. Masked slots return 0.
        elapsed: t of the first row within its episode (total-return); 0 by default.
        collected: Σ γ^t′ r_t′ of the episode before the first row (total-return); 0 by default.

    Returns:
        ψ_t in reward units, shape (T, …).

    Raises:
        ValueError: there is no such form, or something that it needs is missing.

    Source: Schulman et al. (2016), section 2, equation 1; n-step: Mnih et al., Asynchronous Methods for Deep
    Reinforcement Learning (2016), section 4.
    """
    given: dict[str, Any] = {
        "values": values, "next_values": next_values, "action_values": action_values, "steps": steps, "trace_decay": trace_decay,
    }  # fmt: skip
    if name not in WEIGHT_NEEDS:
        raise ValueError(f"there is no weight {name!r}; there are {', '.join(WEIGHTS)}")
    if missing := [need for need in WEIGHT_NEEDS[name] if given[need] is None]:
        raise ValueError(f"the weight {name} needs {' and '.join(f'{need} ({_MEANINGS[need]})' for need in missing)}")
    ends: dict[str, Any] = {"terminated": terminated, "truncated": truncated, "discount": discount, "valid": valid}
    xp = namespace(rewards)
    if name in ("total-return", "reward-to-go"):
        to_go = discounted_returns(rewards=rewards, **ends)
        if name == "reward-to-go":
            return to_go
        since, before = returns_so_far(rewards=rewards, **ends, elapsed=elapsed, collected=collected)
        total = before + discount**since * to_go
        return total if valid is None else xp.where(valid, total, xp.zeros_like(total))
    if name == "td-residual":
        return temporal_difference_residuals(
            rewards=rewards, values=values, next_values=next_values, terminated=terminated, discount=discount, valid=valid
        )
    if name == "gae":
        return generalized_advantages(
            rewards=rewards, values=given["values"], next_values=next_values, trace_decay=given["trace_decay"], **ends
        )
    if name == "n-step":
        weights = n_step_returns(rewards=rewards, next_values=next_values, steps=given["steps"], **ends) - given["values"]
    elif name == "baseline":
        weights = discounted_returns(rewards=rewards, next_values=next_values, **ends) - given["values"]
    else:
        weights = given["action_values"] - (0 if name == "q-value" else given["values"])
    return weights if valid is None else xp.where(valid, weights, xp.zeros_like(rewards))


def _continues(terminated: Array, truncated: Array, valid: Array | None) -> Array:
    """1 where a row goes on with the episode of the row before, the first row included."""
    xp = namespace(terminated)
    going = ~(terminated | truncated)
    if valid is not None:
        going = going & valid
    return xp.concat([xp.ones_like(going[:1, ...]), going[:-1, ...]], axis=0)


def _forward(*, coefficients: Array, terms: Array) -> Array:
    """y_t = b_t + a_t y_{t−1}, with y_{−1} = 0: the reverse recurrence with time turned round."""
    xp = namespace(terms)
    flipped = reverse_linear_recurrence(coefficients=xp.flip(coefficients, axis=0), terms=xp.flip(terms, axis=0))
    return xp.flip(flipped, axis=0)


def elapsed_steps(
    *,
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    like: Float[Array, "..."],
    valid: Bool[Array, "time *batch"] | None = None,
    start: Float[Array, "*batch"] | None = None,
) -> Float[Array, "time *batch"]:
    """T of every row within its own episode, 0 at the first step after a beginning.

    Args:
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        like: any array of the floating dtype that the result shall have.
        valid: which steps are real; all by default.
        start: t of the first row; 0 by default.

    Returns:
        t as a floating-point number, shape (T, …).
    """
    xp = namespace(like)
    continues = xp.astype(_continues(terminated, truncated, valid), like.dtype)
    first = xp.zeros_like(continues[:1, ...]) if start is None else start[None, ...] * xp.ones_like(continues[:1, ...])
    return _forward(coefficients=continues, terms=xp.concat([first, continues[1:, ...]], axis=0))


def returns_so_far(
    *,
    rewards: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    valid: Bool[Array, "time *batch"] | None = None,
    elapsed: Float[Array, "*batch"] | None = None,
    collected: Float[Array, "*batch"] | None = None,
) -> tuple[Float[Array, "time *batch"], Float[Array, "time *batch"]]:
    """T of every row within its episode, and Σ_{t′<t} γ^t′ r_t′, what the episode brought before it.

    Args:
        rewards: r_t.
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        discount: γ in [0, 1].
        valid: which steps are real; all by default.
        elapsed: t of the first row; 0 by default.
        collected: the sum before the first row; 0 by default.

    Returns:
        t and the sum, in reward units, each of shape (T, …).
    """
    xp = namespace(rewards)
    since = elapsed_steps(terminated=terminated, truncated=truncated, like=rewards, valid=valid, start=elapsed)
    if valid is not None:
        rewards = xp.where(valid, rewards, xp.zeros_like(rewards))
    continues = xp.astype(_continues(terminated, truncated, valid), rewards.dtype)
    earned = discount**since * rewards
    first = xp.zeros_like(rewards[:1, ...]) if collected is None else collected[None, ...] * xp.ones_like(rewards[:1, ...])
    before = _forward(coefficients=continues, terms=xp.concat([first, continues[1:, ...] * earned[:-1, ...]], axis=0))
    return since, before
