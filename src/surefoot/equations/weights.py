"""The weight ψ_t of the policy gradient ∇J = E[Σ_t ψ_t ∇log π(a_t|s_t)], in all its forms, by name.

All forms have the same expectation where V and Q are those of the policy, and differ in variance. ``total-return``
discounts from the beginning of the episode; the others discount from t, and equal ∇J only with the factor γᵗ, which
practice drops.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016), section 2.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float

from surefoot.equations._library import Array, Flags, align, flag, namespace
from surefoot.equations._rows import Gaps, Rows, carried, check_fraction, harmless, is_per_step, rows_of
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
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    values: Float[Array, "time *batch"] | None = None,
    next_values: Float[Array, "time *batch"] | None = None,
    action_values: Float[Array, "time *batch"] | None = None,
    trace_decay: float | Array | None = None,
    steps: int | None = None,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
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
        gaps: whether masked slots stop a sum over time or are skipped, as :mod:`surefoot.equations.returns` says.
        elapsed: t of the first row within its episode (total-return); 0 by default.
        collected: Σ γ^t′ r_t′ of the episode before the first row (total-return); 0 by default.

    Returns:
        ψ_t in reward units, shape (T, …).

    Raises:
        ValueError: there is no such form, something that it needs is missing, or ``elapsed`` is given with a discount per step.

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
    valid = flag("valid", valid)
    ends: dict[str, Any] = {
        "terminated": terminated, "truncated": truncated, "discount": discount, "valid": valid, "gaps": gaps,
    }  # fmt: skip
    if name == "reward-to-go":
        return discounted_returns(rewards=rewards, **ends)
    if name == "total-return":
        _, discounts, before = _so_far(rewards=rewards, **ends, elapsed=elapsed, collected=collected)
        return harmless(before + discounts * discounted_returns(rewards=rewards, **ends), valid)
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
    return harmless(weights, valid)


def elapsed_steps(
    *,
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    like: Float[Array, "..."],
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
    start: Float[Array, "*batch"] | None = None,
) -> Float[Array, "time *batch"]:
    """T of every row within its own episode, 0 at the first step after a beginning.

    Args:
        terminated: whether s′_t is terminal.
        truncated: whether the episode was cut at s′_t.
        like: any array of the floating dtype that the result shall have.
        valid: which steps are real; all by default.
        gaps: whether slots that are not valid end an episode or are skipped.
        start: t of the first row; 0 by default.

    Returns:
        t as a floating-point number, shape (T, …).
    """
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    like = _of_rows(like, rows)
    return carried(rows, like=like, earned=namespace(like).ones_like(like), start=start)


def _of_rows(like: Array, rows: Rows) -> Array:
    """Zeros of the dtype of ``like`` and the shape of a rollout."""
    return namespace(like).astype(namespace(rows.going).zeros_like(rows.going), like.dtype)


def returns_so_far(
    *,
    rewards: Float[Array, "time *batch"],
    terminated: Flags[Array, "time *batch"],
    truncated: Flags[Array, "time *batch"],
    discount: float | Array,
    valid: Flags[Array, "time *batch"] | None = None,
    gaps: Gaps | str = "stop",
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
        gaps: whether slots that are not valid end an episode or are skipped.
        elapsed: t of the first row; 0 by default.
        collected: the sum before the first row; 0 by default.

    Returns:
        t and the sum, in reward units, each of shape (T, …). Of a discount per step γ^t′ is Π_{k<t′} γ_k.

    Raises:
        ValueError: ``elapsed`` is given with a discount per step: what the steps before the first row discounted is not known.
    """
    since, _, before = _so_far(
        rewards=rewards, terminated=terminated, truncated=truncated, discount=discount, valid=valid, gaps=gaps,
        elapsed=elapsed, collected=collected,
    )  # fmt: skip
    return since, before


def _so_far(
    *, rewards: Array, terminated: Array, truncated: Array, discount: float | Array, valid: Array | None, gaps: Gaps | str,
    elapsed: Array | None, collected: Array | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """T of every row within its episode, what the steps before it discount, Π γ, and what they brought."""
    check_fraction("discount", discount)
    rows = rows_of(terminated=terminated, truncated=truncated, valid=valid, gaps=gaps)
    rewards = harmless(rewards, rows.valid)
    since = carried(rows, like=rewards, earned=namespace(rewards).ones_like(rewards), start=elapsed)
    if not is_per_step(discount, rewards):
        discounts = align(discount, rewards) ** since
    elif elapsed is None:
        discounts = carried(rows, like=rewards, factor=discount, restart=1.0)
    else:
        raise ValueError(
            "elapsed goes with one discount, or one per column; with a discount per step, what the steps before the first row"
            " discounted is not known: begin the rollout with the episode"
        )
    return since, discounts, carried(rows, like=rewards, earned=discounts * rewards, start=collected)
