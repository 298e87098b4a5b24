"""The linear-quadratic regulator: the learners' gradient and optimum against Lyapunov and Riccati equations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.algorithms import configuration_for
from surefoot.control.environments.functional import functional_carry, functional_step
from surefoot.control.environments.linear_quadratic import LinearQuadratic, double_integrator
from surefoot.control.policies.policy import load_policy
from surefoot.control.policies.spaces import describe_spaces
from surefoot.control.rollout import collect_compiled
from surefoot.control.training import train
from surefoot.control.update.objectives import actor_loss
from surefoot.control.update.state import actor_of, initialize, schedule_at
from surefoot.control.update.whole import begin_update
from surefoot.equations import elapsed_steps, policy_gradient_weights
from surefoot.exact.linear_quadratic import evaluate_gain, optimal_gain

PLAIN = {"hidden_sizes": (), "normalize_observations": False, "normalize_rewards": False, "tensorboard": False}


def test_the_gradient_is_that_of_the_lyapunov_equations():
    """Σ_t γᵗ ψ_t ∇log π from many episodes, ψ the TD residual of the exact V, with respect to the gain."""
    problem = double_integrator().problem
    length, envs, batches, log_std = 150, 512, 24, -0.7
    configuration = configuration_for(
        "reinforce", "lqr", **PLAIN, num_envs=envs, rollout_length=length, discount=problem.discount,
        advantage_normalization="none", initial_log_std=log_std,
    )  # fmt: skip
    environment = LinearQuadratic(problem, max_episode_steps=None)
    spaces = describe_spaces(environment.observation_space, environment.action_space, name="lqr")
    gain = optimal_gain(problem) * np.array([0.7, 1.3])
    exact = evaluate_gain(problem, gain, np.exp(2 * log_std) * np.eye(gain.shape[0]))
    learner = initialize(configuration, spaces, 0)
    parameters = learner.actor.parameters | {"layer_0/weight": -gain.T.astype(np.float32)}
    learner = learner._replace(actor=learner.actor._replace(parameters=parameters))
    actor, step = actor_of(configuration, spaces), functional_step(environment)

    def estimate(key):
        carry = functional_carry(environment, num_envs=envs, key=key)
        _, rollout = collect_compiled(actor, step, carry, parameters, learner.observations, key, length=length)
        _, data, samples, _, _ = begin_update(configuration, spaces, learner, rollout)
        values = -jnp.einsum("tei,ij,tej->te", rollout.observations, jnp.asarray(exact.quadratic), rollout.observations)
        values = values - exact.constant
        ends = {"terminated": data.terminated, "truncated": data.truncated}
        psi = policy_gradient_weights(
            "td-residual", rewards=data.rewards, values=values[:-1], next_values=values[1:], discount=problem.discount, **ends
        )
        psi = problem.discount ** elapsed_steps(**ends, like=psi) * psi
        weighted = samples._replace(weights=psi.reshape(-1))
        loss = lambda p: actor_loss(configuration, spaces, p, weighted, schedule_at(configuration, 0))[0]  # noqa: E731
        return -length * jax.grad(loss)(parameters)["layer_0/weight"]

    program = jax.jit(estimate)
    estimates = np.stack([np.asarray(program(key)) for key in jax.random.split(jax.random.PRNGKey(0), batches)])
    wanted = -exact.gain_gradient.T  # the policy's mean is −K s
    error = estimates.std(axis=0, ddof=1) / np.sqrt(batches)
    assert (np.abs(estimates.mean(axis=0) - wanted) < 4 * error).all()
    assert (error < 0.05 * np.abs(wanted).max()).all(), "the estimate says something"


def test_the_optimum_is_that_of_the_riccati_equation(tmp_path):
    """TRPO with a linear policy and no critic: gain and value of what it ends with."""
    problem = double_integrator().problem
    configuration = configuration_for(
        "trpo", "lqr", **PLAIN, backend="jax", num_envs=128, rollout_length=100, total_steps=2_000_000, minibatch_size=12_800,
        weight="reward-to-go", discount=problem.discount, max_kl=0.05, max_kl_schedule="linear", out=str(tmp_path / "run"),
    )  # fmt: skip
    train(configuration, environment=double_integrator, quiet=True)
    policy = load_policy(tmp_path / "run")
    gain, best = -np.asarray(policy.parameters["layer_0/weight"], np.float64).T, optimal_gain(problem)
    silent = np.zeros((gain.shape[0],) * 2)
    start, reached, optimum = (evaluate_gain(problem, k, silent).objective for k in (0 * best, gain, best))
    assert reached <= optimum + 1e-9
    assert optimum - reached < 0.002 * (optimum - start)
    np.testing.assert_allclose(gain, best, rtol=0.2)
    np.testing.assert_allclose(policy.parameters["layer_0/bias"], 0, atol=0.1)
