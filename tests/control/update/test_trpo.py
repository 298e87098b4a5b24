"""TRPO's step: products, system, bound and search, each against something that does not share its code."""

from __future__ import annotations

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from surefoot.control.policies.policy import action_distribution
from surefoot.control.update.state import schedule_at
from surefoot.control.update.trust_region import linearize, natural_step
from surefoot.control.update.whole import begin_update
from tests.control.helpers import BOX, DISCRETE, MULTIBINARY, MULTIDISCRETE, beginning, configure, random_rollout, same

SPACES = {"discrete": DISCRETE, "box": BOX, "multidiscrete": MULTIDISCRETE, "multibinary": MULTIBINARY}


@functools.cache
def programs(configuration, spaces):
    return tuple(jax.jit(partial(f, configuration, spaces)) for f in (begin_update, natural_step))


def ready(spaces, seed=0, **options):
    """A policy away from its start, and the samples of a random rollout."""
    configuration = configure("trpo", hidden_sizes=(5,), **options)
    learner = beginning(configuration, spaces, seed)
    generator = np.random.default_rng(seed)
    actor = {k: v + 0.3 * generator.standard_normal(v.shape).astype(np.float32) for k, v in learner.actor.parameters.items()}
    learner = jax.tree.map(jnp.asarray, learner._replace(actor=learner.actor._replace(parameters=actor)))
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, spaces, seed))
    _, _, samples, _, _ = programs(configuration, spaces)[0](learner, rollout)
    return configuration, learner, samples


def step_of(configuration, spaces, learner, samples, max_kl=None):
    schedule = schedule_at(configuration, 0)
    schedule = schedule if max_kl is None else schedule._replace(max_kl=np.float32(max_kl))
    return programs(configuration, spaces)[1](learner.actor, samples, schedule)


def explicit_fisher(spaces, learner, samples):
    """E[Jᵀ I(z) J] with the Fisher information I(z) of each kind of distribution written out from the textbook."""
    vector, unravel = ravel_pytree(learner.actor.parameters)
    network = lambda v, s: action_distribution(spaces, unravel(v), s, activation="tanh")  # noqa: E731
    total, count = np.zeros((vector.size, vector.size)), 0
    logits = lambda v, s: network(v, s).mean if spaces.action.kind == "box" else network(v, s).logits  # noqa: E731
    both = jax.jit(jax.vmap(lambda s: (jax.jacobian(logits)(vector, s), logits(vector, s))))(samples.observations)
    jacobians, values = (np.asarray(x, np.float64) for x in both)
    for j, z, real in zip(jacobians, values, samples.valid, strict=True):
        if not real:
            continue
        count += 1
        if spaces.action.kind == "box":
            precision = np.exp(-2 * np.asarray(learner.actor.parameters["log_std"], np.float64))
            total += j.T @ (precision[:, None] * j)
        elif spaces.action.kind == "multibinary":
            p = 1 / (1 + np.exp(-z))
            total += j.T @ ((p * (1 - p))[:, None] * j)
        else:
            start = 0
            for size in spaces.action.sizes:
                part = z[start : start + size]
                p = np.exp(part - part.max()) / np.exp(part - part.max()).sum()
                block = j[start : start + size]
                total += block.T @ (np.diag(p) - np.outer(p, p)) @ block
                start += size
    fisher = total / count
    if spaces.action.kind == "box":
        at = ravel_pytree({k: jnp.full(v.shape, float(k == "log_std")) for k, v in learner.actor.parameters.items()})[0]
        fisher = fisher + np.diag(2.0 * np.asarray(at))  # the information of log σ is 2
    return fisher


@pytest.mark.parametrize("kind", SPACES)
def test_fisher_products_are_those_of_the_explicit_matrix(kind):
    spaces = SPACES[kind]
    configuration, learner, samples = ready(spaces)
    vector, unravel = ravel_pytree(learner.actor.parameters)
    product = jax.jit(lambda v: linearize(configuration, spaces, vector, unravel, samples).fisher_product(v))
    fisher = explicit_fisher(spaces, learner, samples)
    for seed in range(3):
        v = np.random.default_rng(seed).standard_normal(vector.size)
        np.testing.assert_allclose(product(jnp.asarray(v, jnp.float32)), fisher @ v, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_step_is_that_of_a_reference_in_numpy(kind):
    """The whole step in float64 with an explicit matrix and a direct solver, line search included."""
    spaces = SPACES[kind]
    configuration, learner, samples = ready(spaces, max_kl=0.02, damping=0.05, conjugate_gradient_steps=60)
    after, metrics = step_of(configuration, spaces, learner, samples)
    wide = lambda tree: {k: np.asarray(v, np.float64) for k, v in tree.items()}  # noqa: E731
    valid, weights = np.asarray(samples.valid), np.asarray(samples.weights, np.float64)
    seen = np.asarray(samples.observations, np.float64)
    policy = lambda tree: action_distribution(spaces, wide(tree), seen, activation="tanh")  # noqa: E731
    actions = np.asarray(samples.actions)
    old = policy(learner.actor.parameters)

    def measure(tree):
        new = policy(tree)
        ratio = np.exp(new.log_probability(actions) - old.log_probability(actions))
        return (ratio * weights)[valid].mean(), old.kl_divergence(new)[valid].mean()

    vector, unravel = ravel_pytree(learner.actor.parameters)

    def log_likelihood(v):
        new = action_distribution(spaces, unravel(v), samples.observations, activation="tanh")
        return (
            jnp.sum(jnp.where(samples.valid, samples.weights * new.log_probability(samples.actions), 0)) / samples.valid.sum()
        )

    gradient = np.asarray(jax.grad(log_likelihood)(vector), np.float64)
    matrix = explicit_fisher(spaces, learner, samples) + 0.05 * np.eye(vector.size)
    direction = np.linalg.solve(matrix, gradient)
    step = np.sqrt(2 * 0.02 / (direction @ matrix @ direction)) * direction
    before = measure(learner.actor.parameters)[0]
    for number in range(11):
        tried = unravel(jnp.asarray(np.asarray(vector, np.float64) + 0.8**number * step, jnp.float32))
        gain, kl = measure(tried)
        if kl <= 0.02 and gain >= before:
            break
    assert int(metrics["policy/backtracks"]) == number
    got, wanted = ravel_pytree(after.parameters)[0] - vector, 0.8**number * step
    np.testing.assert_allclose(got, wanted, atol=2e-3 * np.abs(wanted).max())
    np.testing.assert_allclose(metrics["policy/kl"], kl, rtol=2e-3)
    np.testing.assert_allclose(metrics["policy/improvement"], gain - before, rtol=2e-3)
    np.testing.assert_allclose(metrics["policy/expected_improvement"], 0.8**number * step @ gradient, rtol=2e-3)


@pytest.mark.parametrize("kind", SPACES)
def test_accepted_steps_keep_the_bound_and_do_not_lose(kind):
    """Over random batches and radii, measured afresh in float64."""
    spaces, accepted = SPACES[kind], 0
    for seed in range(12):
        radius = [0.003, 0.03, 0.3][seed % 3]
        configuration, learner, samples = ready(spaces, seed)
        after, metrics = step_of(configuration, spaces, learner, samples, max_kl=radius)
        if not metrics["policy/accepted"]:
            assert same(after.parameters, learner.actor.parameters)
            continue
        accepted += 1
        policies = [
            action_distribution(
                spaces,
                {k: np.asarray(v, np.float64) for k, v in tree.items()},
                np.asarray(samples.observations, np.float64),
                activation="tanh",
            )
            for tree in (learner.actor.parameters, after.parameters)
        ]
        valid, actions = np.asarray(samples.valid), np.asarray(samples.actions)
        assert policies[0].kl_divergence(policies[1])[valid].mean() <= radius * (1 + 1e-4)
        ratio = np.exp(policies[1].log_probability(actions) - policies[0].log_probability(actions))
        weights = np.asarray(samples.weights, np.float64)
        assert ((ratio - 1) * weights)[valid].mean() >= -1e-6
    assert accepted >= 8


def test_a_step_that_cannot_be_trusted_is_not_taken():
    configuration, learner, samples = ready(BOX, max_kl=0.5, backtracks=0)
    for weights in (jnp.full_like(samples.weights, jnp.nan), jnp.zeros_like(samples.weights)):
        after, metrics = step_of(configuration, BOX, learner, samples._replace(weights=weights))
        assert same(after.parameters, learner.actor.parameters)
        assert abs(float(metrics["policy/kl"])) < 1e-6
        assert float(metrics["finite"]) == 1
    # Far beyond where the quadratic model holds, and nothing may be shortened.
    bold = configure("trpo", hidden_sizes=(5,), max_kl=2.0, backtracks=0, damping=0.0, conjugate_gradient_steps=60)
    patient = configure("trpo", hidden_sizes=(5,), max_kl=2.0, backtracks=25, damping=0.0, conjugate_gradient_steps=60)
    after, metrics = step_of(bold, BOX, learner, samples)
    assert float(metrics["policy/accepted"]) == 0
    assert same(after.parameters, learner.actor.parameters)
    after, metrics = step_of(patient, BOX, learner, samples)
    assert float(metrics["policy/accepted"]) == 1
    assert float(metrics["policy/backtracks"]) > 0


def test_masked_samples_do_not_move_the_step():
    configuration, learner, samples = ready(DISCRETE)
    clean, _ = step_of(configuration, DISCRETE, learner, samples)
    invalid = ~samples.valid
    assert invalid.any()
    poisoned = samples._replace(
        actions=jnp.where(invalid, 1 - samples.actions, samples.actions),
        observations=jnp.where(invalid[:, None], 7.0, samples.observations),
    )
    other, _ = step_of(configuration, DISCRETE, learner, poisoned)
    for name, value in clean.parameters.items():
        np.testing.assert_allclose(other.parameters[name], value, atol=1e-6)
