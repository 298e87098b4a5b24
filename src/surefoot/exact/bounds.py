"""What a step from π to π′ gains, what the local surrogate believes it gains, and how far the two can lie apart.

Throughout, A is that of π, Ā_t(s) = Σ_a π′(a|s) A_t(s,a), TV(s) = ½ Σ_a |π′(a|s) − π(a|s)|, KL(s) = KL(π(·|s)‖π′(·|s)) in
nats, α = max_s TV(s) and ε = max_{t,s,a} |A_t(s,a)|. Maxima and means run over the states that are not terminal.

    J(π′) − J(π) = Σ_t γᵗ Σ_s d^π′_t(s) Ā_t(s)               the performance difference
    L(π′) − J(π) = Σ_t γᵗ Σ_s d^π_t(s) Ā_t(s)                the same on π's own states

What L leaves out is that π′ visits other states: J(π′) − L(π′) = Σ_t γᵗ Σ_s (d^π′_t − d^π_t)(s) Ā_t(s). Every bound here
is a bound on that. A problem with a horizon and time-dependent values is a stationary one whose states are the pairs
(s, t), with nothing to earn after H steps, so bounds for infinite horizons hold too, for γ < 1. For γ = 1 they are
void (infinite), and the finite-horizon ones are what there is.

Sources: Kakade and Langford, Approximately Optimal Approximate Reinforcement Learning (2002), lemma 6.1; Schulman et
al., Trust Region Policy Optimization (2015), theorem 1; Achiam et al., Constrained Policy Optimization (2017),
theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from surefoot.errors import UsageError
from surefoot.exact.enumerable import PolicyEvaluation, TabularProblem, evaluate_policy

__all__ = [
    "PathStep",
    "SurrogateGap",
    "TrustRegionPath",
    "natural_gradient",
    "performance_difference",
    "surrogate_gap",
    "surrogate_objective",
    "trust_region_path",
]

CONVERGED = 1e-100
"""∇Jᵀ F⁺ ∇J below which there is no direction left: a step could gain 1e-50 at most, and its length would overflow."""


def _surplus(old: PolicyEvaluation, new: PolicyEvaluation) -> Float[np.ndarray, "H S"]:
    """Ā_t(s) = Σ_a π′(a|s) A_t(s,a)."""
    # Σ_a π A = 0, so the difference of the policies gives the same sum with less rounding where they are close.
    return np.einsum("sa,tsa->ts", new.policy - old.policy, old.advantages)


def performance_difference(problem: TabularProblem, old: PolicyEvaluation, new: PolicyEvaluation) -> float:
    """Σ_t γᵗ Σ_s d^π′_t(s) Σ_a π′(a|s) A_t(s,a) = E_π′[Σ_t γᵗ A_t(s_t,a_t)], which equals J(π′) − J(π).

    Args:
        problem: the problem.
        old: the evaluation of π.
        new: the evaluation of π′.

    Returns:
        the right-hand side, in reward units; the left-hand side is ``new.objective - old.objective``.

    Source: Kakade and Langford (2002), lemma 6.1; Schulman et al. (2015), equation 1.
    """
    return float(problem.discounts @ (new.visits * _surplus(old, new)).sum(axis=-1))


def surrogate_objective(problem: TabularProblem, old: PolicyEvaluation, new: PolicyEvaluation) -> float:
    """L(π′) = J(π) + Σ_t γᵗ Σ_s d^π_t(s) Σ_a π′(a|s) A_t(s,a): exact to first order at π′ = π.

    Arguments are those of :func:`performance_difference`.

    Returns:
        L, in reward units.

    Source: Schulman et al. (2015), equation 3.
    """
    return old.objective + float(problem.discounts @ (old.visits * _surplus(old, new)).sum(axis=-1))


@dataclass(frozen=True)
class SurrogateGap:
    """One pair of policies: what is gained, what the surrogate says, and every bound on the difference.

    Bounds are in reward units and bound |J(π′) − L(π′)|; ``math.inf`` where one is void.
    """

    gain: float
    """J(π′) − J(π)."""
    surrogate_gain: float
    """L(π′) − J(π)."""
    max_total_variation: float
    """α."""
    max_kl: float
    """max_s KL(s), in nats."""
    mean_kl: float
    """Σ_t γᵗ Σ_s d_t(s) KL(s) / Σ_t γᵗ Σ_s d_t(s), in nats: what TRPO limits."""
    schulman: float
    """4 ε γ α² / (1−γ)². Schulman et al. (2015), theorem 1."""
    schulman_kl: float
    """C · max_s KL(s) with C = 4 ε γ / (1−γ)². Schulman et al. (2015), equation 9; from α² ≤ KL."""
    achiam: float
    """2 γ max|Ā| / (1−γ)² · E_{d^π}[TV], d^π = (1−γ) Σ_t γᵗ d_t. Achiam et al. (2017), theorem 1."""
    finite: float
    """Σ_t γᵗ · 2(1 − (1−α)ᵗ) · 2αε, for a finite horizon and any γ; see :func:`surrogate_gap`."""
    finite_kl: float
    """The same with α ≤ √(max_s KL(s) / 2), Pinsker's inequality."""
    finite_expected: float
    """Σ_t γᵗ · min(2, 2 Σ_{k<t} E_{d_k}[TV]) · max_s|Ā_t(s)|, the tightest; see :func:`surrogate_gap`."""

    @property
    def gap(self) -> float:
        """J(π′) − L(π′): what the surrogate leaves out."""
        return self.gain - self.surrogate_gain

    @property
    def certified_gain(self) -> float:
        """L(π′) − J(π) − the least of the bounds: the gain is at least this much."""
        return self.surrogate_gain - min(self.schulman, self.achiam, self.finite, self.finite_expected)

    @property
    def certified_gain_kl(self) -> float:
        """L(π′) − J(π) − C · max KL, TRPO's own lower bound; −inf for γ = 1."""
        return self.surrogate_gain - self.schulman_kl


def surrogate_gap(problem: TabularProblem, old: PolicyEvaluation, new: PolicyEvaluation) -> SurrogateGap:
    """J(π′) − L(π′) and what bounds it.

    Derivation of the bounds for a finite horizon. The step from t to t+1 gives

        d^π′_{t+1} − d^π_{t+1} = P_π′ᵀ (d^π′_t − d^π_t) + (P_π′ − P_π)ᵀ d^π_t,

    and P_π′ᵀ does not lengthen a vector in ‖·‖₁, while ‖(P_π′ − P_π)ᵀ d‖₁ ≤ Σ_s d(s) · 2 TV(s). With equal starts,
    therefore, ‖d^π′_t − d^π_t‖₁ ≤ 2 Σ_{k<t} E_{d_k}[TV] ≤ 2tα; and never more than 2. Two agents coupled so that they
    differ with probability at most α per step have parted by time t with probability at most 1 − (1−α)ᵗ, which
    sharpens 2tα to 2(1 − (1−α)ᵗ). Further |Ā_t(s)| = |Σ_a (π′ − π)(a|s) A_t(s,a)| ≤ 2 TV(s) ε ≤ 2αε. Then
    |J(π′) − L(π′)| ≤ Σ_t γᵗ ‖d^π′_t − d^π_t‖₁ max_s|Ā_t(s)|, with either bound put in for each factor. Summed to
    infinity, the coupled one is 4αε · γα / ((1−γ)(1−γ(1−α))) ≤ 4εγα²/(1−γ)², the theorem of TRPO.

    Arguments are those of :func:`performance_difference`.

    Returns:
        everything, for one pair.
    """
    acting, discounts, gamma = ~problem.terminal, problem.discounts, problem.discount
    total_variation = 0.5 * np.abs(new.policy - old.policy).sum(axis=-1)
    # A policy may underflow to 0, and 0 log 0 = 0; π′ = 0 where π > 0 is an infinite divergence, as it should be.
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(old.policy > 0, old.policy * (np.log(old.policy) - np.log(new.policy)), 0.0).sum(axis=-1)
    surplus = np.abs(_surplus(old, new))
    alpha, max_kl = float(total_variation[acting].max()), max(float(kl[acting].max()), 0.0)
    epsilon = float(np.abs(old.advantages).max())
    occupancy = discounts @ old.visits
    mean_kl = float(occupancy @ np.where(occupancy > 0, kl, 0.0) / occupancy.sum())  # 0 · ∞ where nobody comes is 0

    def coupled(step: float) -> float:
        parted = 1 - (1 - min(step, 1.0)) ** np.arange(problem.horizon)
        return float((discounts * 2 * parted).sum() * 2 * min(step, 1.0) * epsilon)

    moved = np.concatenate([[0.0], np.cumsum(old.visits @ total_variation)[:-1]])
    endless = float("inf") if gamma == 1 else gamma / (1 - gamma) ** 2
    return SurrogateGap(
        gain=new.objective - old.objective,
        surrogate_gain=surrogate_objective(problem, old, new) - old.objective,
        max_total_variation=alpha,
        max_kl=max_kl,
        mean_kl=mean_kl,
        schulman=_times(4 * epsilon * alpha**2, endless),
        schulman_kl=_times(4 * epsilon * max_kl, endless),
        achiam=_times(2 * float(surplus.max()) * (1 - gamma) * float(occupancy @ total_variation), endless),
        finite=coupled(alpha),
        finite_kl=coupled(float(np.sqrt(max_kl / 2))),
        finite_expected=float((discounts * np.minimum(2.0, 2 * moved) * surplus.max(axis=-1)).sum()),
    )


def _times(size: float, factor: float) -> float:
    """The product, infinite wherever the factor is: for γ = 1 Achiam's 1−γ would otherwise make 0 · ∞."""
    return factor if np.isinf(factor) else size * factor


def natural_gradient(problem: TabularProblem, evaluation: PolicyEvaluation) -> Float[np.ndarray, "S A"]:
    """F⁺ ∇J with F = Σ_t γᵗ Σ_s d_t(s) E_a[∇log π ∇log πᵀ], the Fisher information of π on its discounted visits.

    For a softmax per state it is in closed form: Σ_t γᵗ d_t(s) A_t(s,a) / Σ_t γᵗ d_t(s), the advantage averaged over
    time, because F's block of s is that denominator times (diag π − π πᵀ), which maps A to π A where Σ_a π A = 0.

    Returns:
        a direction in logits, in reward units; 0 for states that are never visited.

    Source: Kakade, A Natural Policy Gradient (2002), section 3.
    """
    weights = problem.discounts[:, None] * evaluation.visits
    occupancy = weights.sum(axis=0)
    sums = np.einsum("ts,tsa->sa", weights, evaluation.advantages)
    return np.divide(sums, occupancy[:, None], out=np.zeros_like(sums), where=occupancy[:, None] > 0)


@dataclass(frozen=True)
class PathStep:
    """One step of :func:`trust_region_path`."""

    objective: float
    """J(π) before the step, in reward units."""
    gap: SurrogateGap
    """Of the step."""
    step_size: float
    """How far along the natural gradient; 0 where no step was found."""


@dataclass(frozen=True, eq=False)
class TrustRegionPath:
    """A walk, with the policy at its end."""

    steps: tuple[PathStep, ...]
    logits: Float[np.ndarray, "S A"]

    @property
    def smallest_gain(self) -> float:
        """The least J(π′) − J(π) of all steps: not below 0 (but for rounding) where the walk was monotonic."""
        return min(step.gap.gain for step in self.steps)


def trust_region_path(
    problem: TabularProblem,
    logits: Float[np.ndarray, "S A"],
    *,
    iterations: int,
    limit: float | Literal["certified", "theorem"],
    halvings: int = 40,
) -> TrustRegionPath:
    """Walk along exact natural gradients, as TRPO would with infinitely much data.

    With a number δ for ``limit`` a step is the longest that δ allows to second order, √(2δ / ∇Jᵀ F⁺ ∇J) with the mean
    of F per visit, halved until the mean KL on π's own states is at most δ and L does not fall: TRPO as it is used.
    Nothing then promises that J does not fall. With ``theorem`` the step is the scanned length with the largest
    L − J − C max KL, TRPO as it is proved; with ``certified`` the largest gain by the tightest of the bounds here.
    Under both, J cannot fall, and steps are short. For γ = 1 the theorem is void, and ``theorem`` stays where it is.

    Args:
        problem: the problem.
        logits: θ to start from.
        iterations: how many steps.
        limit: δ > 0 in nats, or which certificate to maximise.
        halvings: how many lengths are tried, each half the one before; the first is where the mean KL is δ to second
            order, or 1 nat.

    Returns:
        the steps and the last logits. Where no length would do, there stands a step of size 0 and gain 0.

    Raises:
        UsageError: δ is not positive, the certificate is unknown, or ``iterations`` is below 1.

    Source: Schulman et al. (2015), algorithm 1 (``theorem``), and section 6 with appendix C (δ).
    """
    if iterations < 1:
        raise UsageError(f"iterations must be at least 1, but is {iterations}")
    if limit not in ("certified", "theorem") and not (isinstance(limit, int | float) and limit > 0):
        raise UsageError(f"the limit of a step is a positive KL, 'certified' or 'theorem', but not {limit!r}")
    scan = 1.0 if isinstance(limit, str) else limit
    steps: list[PathStep] = []
    old = evaluate_policy(problem, logits)
    for _ in range(iterations):
        direction = natural_gradient(problem, old)
        occupancy = problem.discounts @ old.visits
        curvature = float((occupancy[:, None] * old.policy * direction**2).sum())  # ∇Jᵀ F⁺ ∇J
        # The mean KL is per visit, and so must its curvature be.
        converged = curvature < CONVERGED
        longest = 0.0 if converged else np.sqrt(2 * scan * occupancy.sum() / curvature)
        best: tuple[float, PolicyEvaluation, SurrogateGap] = (0.0, old, surrogate_gap(problem, old, old))
        best_gain = 0.0
        for size in longest * 0.5 ** np.arange(halvings):
            new = evaluate_policy(problem, logits + size * direction)
            gap = surrogate_gap(problem, old, new)
            if isinstance(limit, str):
                gain = gap.certified_gain if limit == "certified" else gap.certified_gain_kl
                if gain > best_gain:
                    best, best_gain = (float(size), new, gap), gain
            elif gap.mean_kl <= limit and gap.surrogate_gain >= 0:
                best = (float(size), new, gap)
                break
        size, new, gap = best
        steps.append(PathStep(old.objective, gap, size))
        logits, old = logits + size * direction, new
    return TrustRegionPath(tuple(steps), logits)
