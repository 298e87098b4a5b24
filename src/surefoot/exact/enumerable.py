"""Finite problems of a finite horizon, and the exact quantities of the policy-gradient theorem by dynamic programming.

Conventions. An episode starts in s_0 ~ ``initial``, acts at t = 0 … H−1 and ends on arrival in a terminal state or
after H steps. The horizon is the problem's own end, not somebody's impatience: nothing counts beyond it, so values
depend on t and V_H = 0. The policy is a softmax of one logit per state and action, π(a|s) = exp θ_sa / Σ_b exp θ_sb,
and does not see t. S is the number of states, A of actions. Everything is float64 NumPy.

With d_t(s) = P(the episode still runs at t and s_t = s):

    J(θ) = Σ_s d_0(s) V_0(s) = E[Σ_t γᵗ r_t]
    ∇J(θ) = Σ_t γᵗ Σ_s d_t(s) Σ_a ∇π(a|s) Q_t(s,a)

Source: Sutton, McAllester, Singh and Mansour, Policy Gradient Methods for Reinforcement Learning with Function
Approximation (2000), theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from surefoot.errors import UsageError

__all__ = [
    "PolicyEvaluation",
    "TabularProblem",
    "customary_direction",
    "evaluate_policy",
    "initial_logits",
    "objective",
    "policy_gradient",
    "softmax_policy",
]

PROBABILITY_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class TabularProblem:
    """A finite decision problem with a finite horizon.

    Raises:
        UsageError: shapes do not fit, probabilities do not add up to 1, an episode could start in a terminal state,
            γ lies outside [0, 1], or the horizon is below 1.
    """

    name: str
    transition: Float[np.ndarray, "S A S"]
    """P(s′ | s, a); the rows of terminal states are never used."""
    reward: Float[np.ndarray, "S A"]
    """r(s, a), in reward units; where the reward depends on s′ too, its expectation."""
    initial: Float[np.ndarray, " S"]
    """P(s_0)."""
    terminal: Bool[np.ndarray, " S"]
    """In which states an episode is over."""
    discount: float
    """γ in [0, 1]."""
    horizon: int
    """H, in steps."""

    def __post_init__(self) -> None:
        states, actions = self.reward.shape
        shapes = {"transition": (states, actions, states), "initial": (states,), "terminal": (states,)}
        for field, shape in shapes.items():
            if getattr(self, field).shape != shape:
                raise UsageError(f"{self.name}: {field} has shape {getattr(self, field).shape} where {shape} is right")
        acting = self.transition[~self.terminal]
        for field, rows in (("transition", acting), ("initial", self.initial)):
            if (rows < 0).any() or not np.allclose(rows.sum(-1), 1, atol=PROBABILITY_TOLERANCE):
                raise UsageError(f"{self.name}: {field} holds no probabilities; they must be at least 0 and add up to 1")
        if self.initial[self.terminal].any():
            raise UsageError(f"{self.name}: an episode could start in a terminal state; give those initial probability 0")
        if not 0 <= self.discount <= 1:
            raise UsageError(f"the discount must lie between 0 and 1, but is {self.discount}")
        if self.horizon < 1:
            raise UsageError(f"the horizon must be at least 1 step, but is {self.horizon}")

    @property
    def states(self) -> int:
        """S."""
        return self.reward.shape[0]

    @property
    def actions(self) -> int:
        """A."""
        return self.reward.shape[1]

    @property
    def discounts(self) -> Float[np.ndarray, " H"]:
        """γᵗ for t = 0 … H−1."""
        return self.discount ** np.arange(self.horizon, dtype=np.float64)


def initial_logits(problem: TabularProblem, *, seed: int, scale: float = 0.5) -> Float[np.ndarray, "S A"]:
    """θ ~ N(0, scale²): a policy that prefers something everywhere and rules nothing out."""
    return scale * np.random.default_rng([seed, 1]).normal(size=problem.reward.shape)


def softmax_policy(logits: Float[np.ndarray, "S A"]) -> Float[np.ndarray, "S A"]:
    """π(a|s) = exp θ_sa / Σ_b exp θ_sb."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


class PolicyEvaluation(NamedTuple):
    """What dynamic programming knows about one policy in one problem; zero in terminal states."""

    policy: Float[np.ndarray, "S A"]
    """π(a|s)."""
    values: Float[np.ndarray, "H1 S"]
    """V_t(s) for t = 0 … H, in reward units; V_H = 0."""
    action_values: Float[np.ndarray, "H S A"]
    """Q_t(s,a) = r(s,a) + γ Σ_s′ P(s′|s,a) V_{t+1}(s′), in reward units."""
    advantages: Float[np.ndarray, "H S A"]
    """A_t(s,a) = Q_t(s,a) − V_t(s), in reward units."""
    visits: Float[np.ndarray, "H S"]
    """d_t(s), a probability; γᵗ d_t(s) is the discounted one. Σ_s d_t(s) is the chance that the episode still runs."""
    objective: float
    """J = E[Σ_t γᵗ r_t], in reward units."""


def evaluate_policy(problem: TabularProblem, logits: Float[np.ndarray, "S A"]) -> PolicyEvaluation:
    """V, Q, A backwards in time and the visits d forwards.

    Args:
        problem: the problem.
        logits: θ.

    Returns:
        the exact quantities of π = softmax θ.

    Source: Puterman, Markov Decision Processes (1994), section 4.2 (finite-horizon policy evaluation).
    """
    policy = softmax_policy(logits)
    horizon, shape = problem.horizon, problem.reward.shape
    acting = ~problem.terminal
    values, action_values = np.zeros((horizon + 1, shape[0])), np.zeros((horizon, *shape))
    for t in reversed(range(horizon)):
        following = problem.transition @ values[t + 1]
        action_values[t] = np.where(acting[:, None], problem.reward + problem.discount * following, 0.0)
        values[t] = (policy * action_values[t]).sum(axis=-1)
    visits = np.zeros((horizon, shape[0]))
    visits[0] = problem.initial
    for t in range(horizon - 1):
        visits[t + 1] = np.where(acting, np.einsum("s,sa,sax->x", visits[t], policy, problem.transition), 0.0)
    advantages = action_values - values[:-1, :, None]
    return PolicyEvaluation(policy, values, action_values, advantages, visits, float(problem.initial @ values[0]))


def objective(problem: TabularProblem, logits: Float[np.ndarray, "S A"]) -> float:
    """J(θ), in reward units."""
    return evaluate_policy(problem, logits).objective


def _score_weighted_sum(weighted_visits: Float[np.ndarray, "H S"], evaluation: PolicyEvaluation) -> Float[np.ndarray, "S A"]:
    # ∂π(a|s)/∂θ_sb = π(a|s)(1[a=b] − π(b|s)), so Σ_a ∂π(a|s)/∂θ_sb Q(s,a) = π(b|s)(Q(s,b) − V(s)).
    return evaluation.policy * np.einsum("ts,tsa->sa", weighted_visits, evaluation.advantages)


def policy_gradient(problem: TabularProblem, evaluation: PolicyEvaluation) -> Float[np.ndarray, "S A"]:
    """∇J = Σ_t γᵗ Σ_s d_t(s) Σ_a ∇π(a|s) Q_t(s,a), by the logits θ.

    Args:
        problem: the problem.
        evaluation: of the policy, from :func:`evaluate_policy`.

    Returns:
        ∂J/∂θ_sa, in reward units per unit of logit.

    Source: Sutton et al. (2000), theorem 1.
    """
    return _score_weighted_sum(problem.discounts[:, None] * evaluation.visits, evaluation)


def customary_direction(problem: TabularProblem, evaluation: PolicyEvaluation) -> Float[np.ndarray, "S A"]:
    """Σ_t Σ_s d_t(s) Σ_a ∇π(a|s) Q_t(s,a): what practice follows. Values are discounted, visits are not.

    For γ < 1 it differs from ∇J, and in general it is the gradient of no function at all.

    Source: Nota and Thomas, Is the Policy Gradient a Gradient? (2020), section 3.
    """
    return _score_weighted_sum(evaluation.visits, evaluation)
