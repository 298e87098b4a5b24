"""Mean and variance of every policy-gradient estimator: claims about them become numbers.

One trajectory's estimate is g = Σ_t c_t ψ_t ∇log π(a_t|s_t), with c_t = γᵗ or, as is customary, c_t = 1. ψ is
computed by :func:`surefoot.equations.policy_gradient_weights`, the code that training runs. Mean and covariance of g
are sums over all trajectories where those can be enumerated, and otherwise estimated from a sample, with standard
errors.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation (2016), section 2,
for the forms of ψ; Greensmith, Bartlett and Baxter, Variance Reduction Techniques for Gradient Estimates in
Reinforcement Learning (2004), for the variance as what tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from surefoot.equations.weights import WEIGHT_NEEDS, elapsed_steps, policy_gradient_weights
from surefoot.errors import UsageError
from surefoot.exact.enumerable import PolicyEvaluation, TabularProblem
from surefoot.exact.trajectories import Trajectories, count_trajectories, enumerate_trajectories, sample_trajectories

__all__ = [
    "Critic",
    "Estimator",
    "EstimatorMoments",
    "TrajectorySet",
    "estimator_moments",
    "exact_critic",
    "look_ahead",
    "trajectories_of",
    "wrong_critic",
]

ENUMERATION_LIMIT = 200_000
CHUNK = 16_384


@dataclass(frozen=True)
class Estimator:
    """Which estimate of the gradient.

    Raises:
        UsageError: ψ is unknown, what it needs is missing, or λ or n is out of range.
    """

    weight: str
    """ψ, one of :data:`surefoot.equations.weights.WEIGHTS`."""
    keep_discount: bool = True
    """Multiply by γᵗ. ``total-return`` is discounted from time 0 as it is, and ignores this."""
    trace_decay: float | None = None
    """λ in [0, 1], for ``gae``."""
    steps: int | None = None
    """n ≥ 1, for ``n-step``."""

    def __post_init__(self) -> None:
        if self.weight not in WEIGHT_NEEDS:
            raise UsageError(f"there is no weight {self.weight!r}; there are {', '.join(WEIGHT_NEEDS)}")
        needs = WEIGHT_NEEDS[self.weight]
        if "trace_decay" in needs and (self.trace_decay is None or not 0 <= self.trace_decay <= 1):
            raise UsageError(f"λ must lie between 0 and 1, but is {self.trace_decay}")
        if "steps" in needs and (self.steps is None or self.steps < 1):
            raise UsageError(f"the steps of an n-step return must be at least 1, but are {self.steps}")

    @property
    def uses_critic(self) -> bool:
        """Whether ψ depends on V or Q."""
        return bool({"values", "action_values"} & set(WEIGHT_NEEDS[self.weight]))


Critic = Float[np.ndarray, "H1 S"]
"""V_t(s) for t = 0 … H as somebody believes it; row H is never read, because nothing counts beyond the horizon."""


def exact_critic(evaluation: PolicyEvaluation) -> Critic:
    """V^π."""
    return evaluation.values


def wrong_critic(problem: TabularProblem, evaluation: PolicyEvaluation, *, error: float, seed: int) -> Critic:
    """V^π_t(s) + ``error`` · max|V^π| · z_s with z_s ~ N(0, 1) drawn from ``seed``, the same for all t.

    An error that belongs to a state, as a function approximator's does; zero in terminal states and beyond the horizon.
    """
    noise = np.where(problem.terminal, 0.0, np.random.default_rng([seed, 3]).normal(size=problem.states))
    wrong = evaluation.values + error * np.abs(evaluation.values).max() * noise
    wrong[-1] = 0
    return wrong


def look_ahead(problem: TabularProblem, critic: Critic) -> Float[np.ndarray, "H S A"]:
    """Q_t(s,a) = r(s,a) + γ Σ_s′ P(s′|s,a) V_{t+1}(s′): the action values that a critic of V implies.

    For V^π these are Q^π.
    """
    beyond = np.where(problem.terminal, 0.0, critic[1:])
    beyond[-1] = 0
    return problem.reward + problem.discount * np.einsum("sax,tx->tsa", problem.transition, beyond)


@dataclass(frozen=True, eq=False)
class TrajectorySet:
    """All trajectories of a policy, or a sample of them."""

    trajectories: Trajectories
    complete: bool
    """Whether these are all."""

    @property
    def method(self) -> str:
        """``enumeration`` or ``monte-carlo``."""
        return "enumeration" if self.complete else "monte-carlo"


def trajectories_of(
    problem: TabularProblem,
    evaluation: PolicyEvaluation,
    *,
    samples: int,
    seed: int,
    limit: int = ENUMERATION_LIMIT,
) -> TrajectorySet:
    """All trajectories where there are at most ``limit``, else ``samples`` of them."""
    if count_trajectories(problem) <= limit:
        return TrajectorySet(enumerate_trajectories(problem, evaluation.policy, limit=limit), complete=True)
    return TrajectorySet(sample_trajectories(problem, evaluation.policy, samples=samples, seed=seed), complete=False)


@dataclass(frozen=True, eq=False)
class EstimatorMoments:
    """Mean and variance of one trajectory's gradient estimate."""

    mean: Float[np.ndarray, "S A"]
    """E[g], in reward units per unit of logit."""
    variances: Float[np.ndarray, "S A"]
    """Var[g_sa], the diagonal of the covariance."""
    trajectories: int
    complete: bool
    """Whether the moments are exact."""
    variance_standard_error: float
    """Of ``variance``; 0 where the moments are exact."""

    @property
    def variance(self) -> float:
        """Tr Cov[g] = E‖g − E g‖², in squared units of the gradient."""
        return float(self.variances.sum())

    @property
    def standard_error(self) -> float:
        """√(tr Cov[g] / N), the expected size of the error in ``mean``; 0 where the moments are exact."""
        return 0.0 if self.complete else float(np.sqrt(self.variance / self.trajectories))

    def bias(self, gradient: Float[np.ndarray, "S A"]) -> float:
        """‖E g − ∇J‖ / ‖∇J‖; NaN where ∇J = 0."""
        size = np.linalg.norm(gradient)
        return float(np.linalg.norm(self.mean - gradient) / size) if size else float("nan")

    def cosine(self, gradient: Float[np.ndarray, "S A"]) -> float:
        """The cosine of the angle between E g and ∇J; NaN where either is 0."""
        sizes = np.linalg.norm(self.mean) * np.linalg.norm(gradient)
        return float((self.mean * gradient).sum() / sizes) if sizes else float("nan")


def _weighted_scores(
    problem: TabularProblem,
    policy: Float[np.ndarray, "S A"],
    estimator: Estimator,
    critic: Critic,
    implied: Float[np.ndarray, "H S A"],
    part: Trajectories,
) -> Float[np.ndarray, "N S A"]:
    """G = Σ_t c_t ψ_t ∇log π(a_t|s_t) of every trajectory."""
    time = np.arange(problem.horizon)[:, None]
    ends = part.valid & ~np.concatenate([part.valid[1:], np.zeros_like(part.valid[:1])])
    rewards = np.where(part.valid, problem.reward[part.states, part.actions], 0.0)
    everything = {
        "values": critic[time, part.states],
        "next_values": critic[time + 1, part.next_states],
        "action_values": implied[time, part.states, part.actions],
        "trace_decay": estimator.trace_decay,
        "steps": estimator.steps,
    }
    # A horizon that belongs to the problem ends an episode for good: terminated, not truncated.
    marks = {"terminated": ends, "truncated": np.zeros_like(ends), "valid": part.valid}
    weights = policy_gradient_weights(
        estimator.weight,
        rewards=rewards,
        discount=problem.discount,
        **marks,
        **{need: everything[need] for need in WEIGHT_NEEDS[estimator.weight]},
    )
    if estimator.keep_discount and estimator.weight != "total-return":
        weights = weights * problem.discount ** elapsed_steps(like=rewards, **marks)
    # ∇_θs log π(a|s) = e_a − π(·|s): add the weight at (s_t, a_t), then take π times the weights that a state received.
    states, actions = problem.reward.shape
    count = part.valid.shape[1]
    cell = (np.arange(count) * states + part.states) * actions + part.actions
    sums = np.bincount(cell.ravel(), weights=weights.ravel(), minlength=count * states * actions)
    scores = sums.reshape(count, states, actions)
    return scores - policy * scores.sum(axis=-1, keepdims=True)


def estimator_moments(
    problem: TabularProblem,
    evaluation: PolicyEvaluation,
    estimator: Estimator,
    trajectory_set: TrajectorySet,
    *,
    critic: Critic | None = None,
) -> EstimatorMoments:
    """E[g] and Var[g] of one trajectory's gradient estimate g = Σ_t c_t ψ_t ∇log π(a_t|s_t).

    Args:
        problem: the problem.
        evaluation: of the policy that acted.
        estimator: ψ, and whether γᵗ is kept.
        trajectory_set: from :func:`trajectories_of`, of the same policy; shared between estimators.
        critic: V_t(s), shape (H+1, S); V^π by default. Q is :func:`look_ahead` of it.

    Returns:
        the moments: exact up to rounding for a complete set, else estimates with standard errors.

    Raises:
        UsageError: the critic has another shape.
    """
    critic = exact_critic(evaluation) if critic is None else critic
    if critic.shape != evaluation.values.shape:
        raise UsageError(f"a critic here has the shape {evaluation.values.shape}, (H+1, S), but this one has {critic.shape}")
    implied = look_ahead(problem, critic)
    shape = problem.reward.shape
    # Deviations from a fixed point near the mean: a variance from raw second moments would lose its digits.
    centre = np.zeros(shape)
    first, second = np.zeros(shape), np.zeros(shape)
    length, fourth = 0.0, 0.0
    for index, part in enumerate(trajectory_set.trajectories.chunks(CHUNK)):
        estimates = _weighted_scores(problem, evaluation.policy, estimator, critic, implied, part)
        mass = part.probabilities.sum()
        if index == 0 and mass > 0:
            centre = np.einsum("n,nsa->sa", part.probabilities, estimates) / mass
        deviations = estimates - centre
        first += np.einsum("n,nsa->sa", part.probabilities, deviations)
        second += np.einsum("n,nsa->sa", part.probabilities, deviations**2)
        lengths = (deviations**2).sum(axis=(1, 2))
        length += float(part.probabilities @ lengths)
        fourth += float(part.probabilities @ lengths**2)
    count = trajectory_set.trajectories.valid.shape[1]
    correction = 1.0 if trajectory_set.complete else count / (count - 1)
    return EstimatorMoments(
        mean=centre + first,
        variances=np.maximum(second - first**2, 0.0) * correction,
        trajectories=count,
        complete=trajectory_set.complete,
        variance_standard_error=0.0 if trajectory_set.complete else float(np.sqrt(max(fourth - length**2, 0.0) / count)),
    )
