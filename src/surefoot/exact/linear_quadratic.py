"""The linear-quadratic regulator with a Gaussian policy: a continuous problem whose gradient and optimum are known.

    s_0 ~ N(0, Σ_0)        a_t = −K s_t + e_t, e_t ~ N(0, Σ)        s_{t+1} = A s_t + B a_t + w_t, w_t ~ N(0, W)
    r_t = −(s_tᵀ Q s_t + a_tᵀ R a_t)        J(K, Σ) = E[Σ_{t≥0} γᵗ r_t], γ < 1

With the closed loop M = A − B K, everything exists where √γ times the spectral radius of M is below 1, and follows
from one symmetric matrix, the solution of a Lyapunov equation:

    P = Q + Kᵀ R K + γ Mᵀ P M
    V(s) = −sᵀ P s − c,    c = (tr(Σ R) + γ tr(P (B Σ Bᵀ + W))) / (1−γ)

Sources: Anderson and Moore, Optimal Control: Linear Quadratic Methods (1990), chapters 2 and 3; Fazel, Ge, Kakade and
Mesbahi, Global Convergence of Policy Gradient Methods for the Linear Quadratic Regulator (2018), lemma 1, here with a
discount and noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov

from surefoot.errors import UsageError

__all__ = [
    "LinearQuadraticEvaluation",
    "LinearQuadraticProblem",
    "double_integrator",
    "evaluate_gain",
    "optimal_gain",
]


def _check_symmetric(name: str, matrix: np.ndarray, *, size: int, definite: bool) -> None:
    if matrix.shape != (size, size) or not np.allclose(matrix, matrix.T):
        raise UsageError(f"{name} must be a symmetric {size}×{size} matrix, but is {matrix.tolist()}")
    least = np.linalg.eigvalsh(matrix).min()
    if least < (0 if definite else -1e-12) or (definite and least == 0):
        raise UsageError(f"{name} must be positive {'' if definite else 'semi-'}definite, but has the eigenvalue {least:.3g}")


@dataclass(frozen=True, eq=False)
class LinearQuadraticProblem:
    """n states, m actions.

    Raises:
        UsageError: shapes do not fit, R is not positive definite, another weight or covariance is not positive
            semi-definite, or γ lies outside [0, 1).
    """

    dynamics: Float[np.ndarray, "n n"]
    """A."""
    control: Float[np.ndarray, "n m"]
    """B."""
    state_cost: Float[np.ndarray, "n n"]
    """Q, positive semi-definite."""
    action_cost: Float[np.ndarray, "m m"]
    """R, positive definite."""
    initial_covariance: Float[np.ndarray, "n n"]
    """Σ_0."""
    noise_covariance: Float[np.ndarray, "n n"]
    """W."""
    discount: float
    """γ in [0, 1)."""

    def __post_init__(self) -> None:
        n = self.dynamics.shape[0]
        if self.dynamics.shape != (n, n) or self.control.ndim != 2 or self.control.shape[0] != n:
            raise UsageError(
                f"dynamics must be n×n and control n×m, but have the shapes {self.dynamics.shape} and {self.control.shape}"
            )
        for name, size, definite in (
            ("state_cost", n, False),
            ("action_cost", self.control.shape[1], True),
            ("initial_covariance", n, False),
            ("noise_covariance", n, False),
        ):
            _check_symmetric(name, getattr(self, name), size=size, definite=definite)
        if not 0 <= self.discount < 1:
            raise UsageError(f"the discount must lie between 0 and 1, below 1 itself, but is {self.discount}")


class LinearQuadraticEvaluation(NamedTuple):
    """What is known of one gain K and exploration covariance Σ."""

    objective: float
    """J = −tr(P Σ_0) − c, in reward units."""
    quadratic: Float[np.ndarray, "n n"]
    """P, of V(s) = −sᵀ P s − c."""
    constant: float
    """c."""
    gain_gradient: Float[np.ndarray, "m n"]
    """∇_K J = −2 ((R + γ Bᵀ P B) K − γ Bᵀ P A) S, in reward units per unit of gain."""
    covariance_gradient: Float[np.ndarray, "m m"]
    """∂J/∂Σ = −(R + γ Bᵀ P B) / (1−γ): exploration only costs, and least where it costs least."""
    second_moments: Float[np.ndarray, "n n"]
    """S = Σ_t γᵗ E[s_t s_tᵀ] = Σ_0 + γ/(1−γ) (B Σ Bᵀ + W) + γ M S Mᵀ."""

    def value(self, states: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
        """V(s) = −sᵀ P s − c."""
        return -np.einsum("...i,ij,...j->...", states, self.quadratic, states) - self.constant


def evaluate_gain(
    problem: LinearQuadraticProblem, gain: Float[np.ndarray, "m n"], covariance: Float[np.ndarray, "m m"]
) -> LinearQuadraticEvaluation:
    """J, V and the gradient of a ~ N(−K s, Σ), from two Lyapunov equations.

    Args:
        problem: the problem.
        gain: K.
        covariance: Σ, positive semi-definite.

    Raises:
        UsageError: K has another shape, Σ is no covariance, or K does not stabilise the problem: J is −∞.

    Source: Fazel et al. (2018), lemma 1.
    """
    a, b, r, gamma = problem.dynamics, problem.control, problem.action_cost, problem.discount
    if gain.shape != b.T.shape:
        raise UsageError(f"the gain must have the shape {b.T.shape}, but has {gain.shape}")
    _check_symmetric("the policy's covariance", covariance, size=b.shape[1], definite=False)
    closed = np.sqrt(gamma) * (a - b @ gain)
    radius = np.abs(np.linalg.eigvals(closed)).max()
    if not radius < 1:
        raise UsageError(
            f"the gain does not stabilise the problem: √γ times the spectral radius of A − B K is {radius:.4g}, and must be below 1"
        )
    quadratic = solve_discrete_lyapunov(closed.T, problem.state_cost + gain.T @ r @ gain)
    disturbance = b @ covariance @ b.T + problem.noise_covariance
    second = solve_discrete_lyapunov(closed, problem.initial_covariance + gamma / (1 - gamma) * disturbance)
    curvature = r + gamma * b.T @ quadratic @ b
    constant = float((np.trace(covariance @ r) + gamma * np.trace(quadratic @ disturbance)) / (1 - gamma))
    return LinearQuadraticEvaluation(
        objective=-float(np.trace(quadratic @ problem.initial_covariance)) - constant,
        quadratic=quadratic,
        constant=constant,
        gain_gradient=-2 * (curvature @ gain - gamma * b.T @ quadratic @ a) @ second,
        covariance_gradient=-curvature / (1 - gamma),
        second_moments=second,
    )


def optimal_gain(problem: LinearQuadraticProblem) -> Float[np.ndarray, "m n"]:
    """K* = (R + γ Bᵀ P B)⁻¹ γ Bᵀ P A, P from the discrete algebraic Riccati equation of (√γ A, √γ B, Q, R).

    It is the best gain for every Σ and W, and with Σ = 0 the best policy of all.

    Raises:
        UsageError: no gain stabilises the problem.

    Source: Anderson and Moore (1990), section 2.4, with the discount absorbed into A and B.
    """
    a, b = np.sqrt(problem.discount) * problem.dynamics, np.sqrt(problem.discount) * problem.control
    try:
        quadratic = solve_discrete_are(a, b, problem.state_cost, problem.action_cost)
    except np.linalg.LinAlgError as error:
        raise UsageError(f"the problem has no stabilising solution: {error}; A, B and Q must allow one") from error
    return np.linalg.solve(problem.action_cost + b.T @ quadratic @ b, b.T @ quadratic @ a)


def double_integrator() -> LinearQuadraticProblem:
    """A mass of 1 kg pushed along a line with some friction, by steps of 0.2 s: state (position, velocity), action the
    force; γ = 0.95.
    """
    step = 0.2
    return LinearQuadraticProblem(
        dynamics=np.array([[1.0, step], [0.0, 0.9]]),
        control=np.array([[0.5 * step**2], [step]]),
        state_cost=np.diag([1.0, 0.1]),
        action_cost=np.array([[0.1]]),
        initial_covariance=np.eye(2),
        noise_covariance=1e-3 * np.eye(2),
        discount=0.95,
    )
