"""The regulator against finite differences, rollouts in NumPy and the environment's own transitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from surefoot.errors import UsageError
from surefoot.exact.linear_quadratic import LinearQuadraticProblem, double_integrator, evaluate_gain, optimal_gain
from tests.exact import brute_force


def random_problem(seed, states=3, actions=2, discount=0.9):
    rng = np.random.default_rng(seed)

    def covariance(size):
        root = rng.normal(size=(size, size))
        return root @ root.T / size + 0.1 * np.eye(size)

    dynamics = rng.normal(size=(states, states))
    dynamics *= 0.9 / np.abs(np.linalg.eigvals(dynamics)).max()
    return LinearQuadraticProblem(
        dynamics,
        rng.normal(size=(states, actions)),
        covariance(states),
        covariance(actions),
        covariance(states),
        0.3 * covariance(states),
        discount,
    ), covariance(actions)


def cases():
    yield double_integrator(), np.array([[0.3]]), np.array([[0.7, 0.9]])
    for seed in range(4):
        problem, covariance = random_problem(seed)
        rng = np.random.default_rng([seed, 9])
        yield problem, covariance, optimal_gain(problem) + 0.1 * rng.normal(size=problem.control.T.shape)


@pytest.mark.parametrize(("problem", "covariance", "gain"), list(cases()))
def test_gradients_are_those_of_finite_differences(problem, covariance, gain):
    got = evaluate_gain(problem, gain, covariance)
    by_gain = brute_force.finite_difference(lambda k: evaluate_gain(problem, k, covariance).objective, gain)
    np.testing.assert_allclose(got.gain_gradient, by_gain, rtol=1e-5, atol=1e-5)

    def along(x):  # symmetric directions only: Σ is a covariance
        return evaluate_gain(problem, gain, covariance + (x + x.T) / 2).objective

    by_covariance = brute_force.finite_difference(along, np.zeros_like(covariance))
    np.testing.assert_allclose(got.covariance_gradient, by_covariance, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("problem", "covariance", "gain"), list(cases()))
def test_the_riccati_gain_is_the_best(problem, covariance, gain):
    best = optimal_gain(problem)
    at_best = evaluate_gain(problem, best, covariance)
    assert np.abs(at_best.gain_gradient).max() < 1e-8 * max(
        1, np.abs(evaluate_gain(problem, gain, covariance).gain_gradient).max()
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = evaluate_gain(problem, best + 0.05 * rng.normal(size=best.shape), covariance)
        assert other.objective < at_best.objective
    # Value iteration, which knows nothing of Riccati solvers.
    a, b, gamma = problem.dynamics, problem.control, problem.discount
    quadratic = np.zeros_like(a)
    for _ in range(2000):
        iterated = np.linalg.solve(problem.action_cost + gamma * b.T @ quadratic @ b, gamma * b.T @ quadratic @ a)
        closed = a - b @ iterated
        quadratic = problem.state_cost + iterated.T @ problem.action_cost @ iterated + gamma * closed.T @ quadratic @ closed
    np.testing.assert_allclose(best, iterated, atol=1e-9)
    np.testing.assert_allclose(at_best.quadratic, quadratic, atol=1e-9)


@pytest.mark.parametrize(("problem", "covariance", "gain"), list(cases())[:3])
def test_the_objective_is_the_mean_of_rollouts(problem, covariance, gain):
    rng = np.random.default_rng(1)
    count, (states, actions) = 20_000, problem.control.shape
    state = rng.multivariate_normal(np.zeros(states), problem.initial_covariance, count)
    start, total, moments, discount = state, np.zeros(count), np.zeros((states, states)), 1.0
    while discount > 1e-4:
        action = -state @ gain.T + rng.multivariate_normal(np.zeros(actions), covariance, count)
        reward = -np.einsum("ni,ij,nj->n", state, problem.state_cost, state)
        reward -= np.einsum("ni,ij,nj->n", action, problem.action_cost, action)
        total += discount * reward
        moments += discount * state.T @ state / count
        noise = rng.multivariate_normal(np.zeros(states), problem.noise_covariance, count)
        state = state @ problem.dynamics.T + action @ problem.control.T + noise
        discount *= problem.discount
    got = evaluate_gain(problem, gain, covariance)
    error = total.std() / np.sqrt(count)
    assert abs(total.mean() - got.objective) < 4 * error + 2e-4 * abs(got.objective)
    np.testing.assert_allclose(moments, got.second_moments, rtol=0.05, atol=0.05 * np.abs(moments).max())
    # V(s) is what is left after subtracting it: the mean of what each start earned beyond its value is 0.
    surprise = total - got.value(start)
    assert abs(surprise.mean()) < 4 * surprise.std() / np.sqrt(count) + 2e-4 * abs(got.objective)
    assert abs(np.mean(surprise * (start**2).sum(-1))) < 5 * np.std(surprise * (start**2).sum(-1)) / np.sqrt(count) + 1e-2


def test_one_dimension_by_hand():
    # A = B = Q = R = 1, γ = ½, K = ½: M = ½, P = (1 + ¼)/(1 − ⅛) = 10/7; Σ = 2, W = 1: c = (2 + ½·10/7·3)/½ = 58/7.
    one = np.ones((1, 1))
    problem = LinearQuadraticProblem(one, one, one, one, 4 * one, one, 0.5)
    got = evaluate_gain(problem, 0.5 * one, 2 * one)
    np.testing.assert_allclose(got.quadratic, 10 / 7)
    assert got.constant == pytest.approx(58 / 7)
    assert got.objective == pytest.approx(-40 / 7 - 58 / 7)
    np.testing.assert_allclose(got.value(np.array([[0.0], [2.0]])), [-58 / 7, -98 / 7])


def test_wrong_input_is_named():
    problem = double_integrator()
    noise = np.array([[0.1]])
    with pytest.raises(UsageError, match=r"does not stabilise the problem: .* must be below 1"):
        evaluate_gain(problem, np.array([[-5.0, -5.0]]), noise)
    with pytest.raises(UsageError, match=r"the gain must have the shape \(1, 2\)"):
        evaluate_gain(problem, np.ones((2, 1)), noise)
    with pytest.raises(UsageError, match=r"covariance must be positive semi-definite"):
        evaluate_gain(problem, np.ones((1, 2)), -noise)
    with pytest.raises(UsageError, match="action_cost must be positive definite"):
        replace(problem, action_cost=np.zeros((1, 1)))
    with pytest.raises(UsageError, match="state_cost must be a symmetric 2×2 matrix"):
        replace(problem, state_cost=np.array([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(UsageError, match="discount must lie between 0 and 1, below 1 itself"):
        replace(problem, discount=1.0)
    with pytest.raises(UsageError, match="dynamics must be n×n and control n×m"):
        replace(problem, control=np.ones((3, 1)))
    unstable = replace(problem, dynamics=2 * np.eye(2), control=np.zeros((2, 1)))
    with pytest.raises(UsageError, match="no stabilising solution"):
        optimal_gain(unstable)


class TestEnvironment:
    """The JAX environment; skipped where JAX is not installed."""

    @pytest.fixture
    def jax(self):
        pytest.importorskip("gymnasium")
        return pytest.importorskip("jax")

    def test_transitions_are_the_matrices(self, jax):
        from surefoot.control.environments.functional import FunctionalEnvironment, check_functional
        from surefoot.control.environments.linear_quadratic import LinearQuadratic

        problem, _ = random_problem(5)
        environment = LinearQuadratic(replace(problem, noise_covariance=np.zeros((3, 3))))
        assert isinstance(environment, FunctionalEnvironment)
        check_functional(environment, name="regulator")
        state, action = np.array([1.0, -2.0, 0.5], np.float32), np.array([0.3, -0.7], np.float32)
        following, observation, reward, terminated = environment.transition(state, action, jax.random.PRNGKey(0))
        np.testing.assert_allclose(following, problem.dynamics @ state + problem.control @ action, rtol=1e-5)
        np.testing.assert_array_equal(observation, following)
        assert reward == pytest.approx(-(state @ problem.state_cost @ state + action @ problem.action_cost @ action), rel=1e-5)
        assert not terminated

    def test_noise_and_starts_have_their_covariances(self, jax):
        from surefoot.control.environments.linear_quadratic import LinearQuadratic

        problem, _ = random_problem(6)
        environment = LinearQuadratic(problem)
        keys = jax.random.split(jax.random.PRNGKey(1), 40_000)
        starts, observations = jax.vmap(environment.initial)(keys)
        np.testing.assert_array_equal(starts, observations)
        np.testing.assert_allclose(np.cov(np.asarray(starts).T), problem.initial_covariance, atol=0.05)
        ends = jax.vmap(lambda key: environment.transition(np.zeros(3, np.float32), np.zeros(2, np.float32), key)[0])(keys)
        np.testing.assert_allclose(np.cov(np.asarray(ends).T), problem.noise_covariance, atol=0.03)
        assert np.abs(np.asarray(ends).mean(0)).max() < 0.03

    def test_actions_reach_it_as_they_are(self, jax):
        from surefoot.control.environments.linear_quadratic import double_integrator as make
        from surefoot.control.policies.spaces import describe_spaces

        environment = make()
        spaces = describe_spaces(environment.observation_space, environment.action_space, name="regulator")
        actions = np.array([[-1e5], [0.3], [7.0]], np.float32)
        np.testing.assert_array_equal(spaces.action.for_environment(actions), actions)
        assert spaces.observation_size == 2

    def test_rollouts_in_it_earn_the_objective(self, jax):
        import jax.numpy as jnp

        from surefoot.control.environments.linear_quadratic import double_integrator as make

        environment = make()
        problem, gain, deviation = environment.problem, np.array([[0.7, 0.9]]), 0.5

        def episode(key):
            of_start, key = jax.random.split(key)
            state, _ = environment.initial(of_start)

            def step(carry, key):
                state, discount = carry
                of_action, of_step = jax.random.split(key)
                action = -jnp.asarray(gain, jnp.float32) @ state + deviation * jax.random.normal(of_action, (1,))
                state, _, reward, _ = environment.transition(state, action, of_step)
                return (state, discount * problem.discount), discount * reward

            return jax.lax.scan(step, (state, jnp.float32(1)), jax.random.split(key, 200))[1].sum()

        totals = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.PRNGKey(2), 10_000)), np.float64)
        expected = evaluate_gain(problem, gain, np.array([[deviation**2]])).objective
        assert abs(totals.mean() - expected) < 4 * totals.std() / 100
