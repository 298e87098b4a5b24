"""The linear-quadratic regulator as a pure-JAX environment: training on it can be compared with the exact optimum."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from surefoot.equations import Array
from surefoot.exact.linear_quadratic import LinearQuadraticProblem
from surefoot.exact.linear_quadratic import double_integrator as double_integrator_problem

__all__ = ["LinearQuadratic", "double_integrator"]


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """L with L Lᵀ = the covariance, which may be singular, as Cholesky's must not."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


class LinearQuadratic:
    """s′ = A s + B a + w, reward −(sᵀ Q s + aᵀ R a); a :class:`FunctionalEnvironment`.

    Nothing is bounded: actions are neither scaled nor clipped, and the state is the observation. Episodes never
    terminate, only the time limit cuts them, so a bootstrapped value at the cut is what makes the discounted objective
    that of the infinite horizon.
    """

    def __init__(self, problem: LinearQuadraticProblem, *, max_episode_steps: int | None = 100) -> None:
        states, actions = problem.control.shape
        self.problem, self.max_episode_steps = problem, max_episode_steps
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (states,), np.float32)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (actions,), np.float32)
        self._dynamics, self._control, self._state_cost, self._action_cost = (
            np.asarray(x, np.float32) for x in (problem.dynamics, problem.control, problem.state_cost, problem.action_cost)
        )
        self._initial_root = np.asarray(_square_root(problem.initial_covariance), np.float32)
        self._noise_root = np.asarray(_square_root(problem.noise_covariance), np.float32)

    def initial(self, key: Array) -> tuple[Array, Array]:
        """s_0 ~ N(0, Σ_0)."""
        state = self._initial_root @ jax.random.normal(key, self.observation_space.shape)
        return state, state

    def transition(self, state: Array, action: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        """(s′, s′, r, false)."""
        noise = self._noise_root @ jax.random.normal(key, self.observation_space.shape)
        reward = -(state @ self._state_cost @ state + action @ self._action_cost @ action)
        following = self._dynamics @ state + self._control @ action + noise
        return following, following, reward, jnp.bool_(False)


def double_integrator() -> LinearQuadratic:
    """A mass on a line: ``--env surefoot.control.environments.linear_quadratic:double_integrator``."""
    return LinearQuadratic(double_integrator_problem())
