"""Tasks and exact measures: definitions written out again, and identities that only the truth fulfils."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from surefoot.alignment.exact.tasks import (
    PreferenceTask,
    frontier,
    log_softmax,
    measure_policy,
    optimal_policy,
    standardized_rewards,
    table_task,
)
from surefoot.errors import UsageError

# One prompt, two answers: π_ref = (¼, ¾), r = (1, −⅓): mean 0 under π_ref.
SMALL = PreferenceTask(np.log([[0.25, 0.75]]), np.array([[1.0, -1 / 3]]))


def test_rewards_have_mean_zero_and_deviation_one_under_the_reference():
    task = table_task(prompts=5, answers=7, seed=3)
    probabilities = np.exp(task.reference_log_probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    for p, r in zip(probabilities, task.rewards, strict=True):
        assert np.average(r, weights=p) == pytest.approx(0, abs=1e-14)
        assert np.average(r**2, weights=p) == pytest.approx(1)
    assert task.rewards.std(axis=1).min() > 0.5  # and each prompt has its own
    assert not np.allclose(task.rewards[0], task.rewards[1])


def test_rewards_are_shifted_and_scaled_and_nothing_else():
    got = standardized_rewards(np.array([[5.0, 9.0]]), reference_log_probabilities=np.log([[0.25, 0.75]]))
    # Mean 8, variance ¼ · 9 + ¾ · 1 = 3.
    np.testing.assert_allclose(got, [[-3 / math.sqrt(3), 1 / math.sqrt(3)]], rtol=1e-14)


def test_a_seed_makes_a_task():
    first, again, other = table_task(seed=1), table_task(seed=1), table_task(seed=2)
    assert first.rewards.shape == (8, 16) == (first.prompts, first.answers)
    np.testing.assert_array_equal(first.rewards, again.rewards)
    np.testing.assert_array_equal(first.reference_log_probabilities, again.reference_log_probabilities)
    assert np.abs(first.reference_log_probabilities - other.reference_log_probabilities).max() > 0.5


def test_measures_by_hand():
    beta, policy = 2 / 3, np.array([[0.5, 0.5]])
    got = measure_policy(SMALL, np.log(policy), beta=beta)
    distance = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    weights = np.array([0.25 * math.exp(1.5), 0.75 * math.exp(-0.5)])
    optimum = weights / weights.sum()
    assert got.beta == beta
    assert got.reward == pytest.approx(1 / 3)
    assert got.kl_to_reference == pytest.approx(distance)
    assert got.objective == pytest.approx(1 / 3 - 2 / 3 * distance)
    assert got.optimal_objective == pytest.approx(2 / 3 * math.log(weights.sum()))
    assert got.kl_to_optimum == pytest.approx(float((policy[0] * np.log(policy[0] / optimum)).sum()))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_what_a_policy_misses_is_beta_times_its_distance(beta):
    task, generator = table_task(seed=4), np.random.default_rng(0)
    for size in (0.1, 2.0):
        got = measure_policy(task, log_softmax(size * generator.normal(size=task.rewards.shape)), beta=beta)
        assert got.optimal_objective - got.objective == pytest.approx(beta * got.kl_to_optimum, rel=1e-10)
        assert got.kl_to_optimum > 0
    reference = measure_policy(task, task.reference_log_probabilities, beta=beta)
    assert reference.objective == pytest.approx(0, abs=1e-13)
    assert reference.kl_to_reference == 0
    best = measure_policy(task, optimal_policy(task, beta=beta).log_probabilities, beta=beta)
    assert best.objective == pytest.approx(best.optimal_objective)
    assert best.kl_to_optimum == pytest.approx(0, abs=1e-14)


def test_the_slope_of_the_frontier_is_beta():
    task = table_task(seed=5)
    betas = np.array([0.3, 1.0, 3.0])
    for beta in betas:
        less, more = frontier(task, [beta * 1.0001, beta / 1.0001])
        slope = (more.reward - less.reward) / (more.kl_to_reference - less.kl_to_reference)
        assert slope == pytest.approx(beta, rel=1e-5)
    points = frontier(task, [0.01, *betas, 1000.0])
    assert [point.beta for point in points] == [0.01, *betas, 1000.0]
    assert all(a.reward > b.reward and a.kl_to_reference > b.kl_to_reference for a, b in itertools.pairwise(points))
    assert points[0].reward == pytest.approx(task.rewards.max(axis=1).mean(), rel=1e-2)
    assert points[-1].kl_to_reference == pytest.approx(0, abs=1e-6)


def test_no_policy_lies_above_the_frontier():
    task, generator = table_task(seed=6), np.random.default_rng(1)
    for _ in range(20):
        policy = log_softmax(
            task.reference_log_probabilities + generator.normal() * task.rewards + generator.normal(size=(8, 16))
        )
        got = [measure_policy(task, policy, beta=beta) for beta in (0.05, 0.3, 2.0)]
        assert all(point.objective < point.optimal_objective for point in got)


def test_what_is_no_task_is_refused():
    with pytest.raises(UsageError, match=r"rewards have shape \(1, 3\)"):
        PreferenceTask(np.log([[0.25, 0.75]]), np.zeros((1, 3)))
    with pytest.raises(UsageError, match="add up to 1"):
        PreferenceTask(np.log([[0.25, 0.7]]), np.zeros((1, 2)))
    with pytest.raises(UsageError, match="must be finite"):
        PreferenceTask(np.array([[0.0, -np.inf]]), np.zeros((1, 2)))
    with pytest.raises(UsageError, match="must be finite"):
        PreferenceTask(np.log([[0.25, 0.75]]), np.array([[np.nan, 0.0]]))
    with pytest.raises(UsageError, match="same reward"):
        standardized_rewards(np.ones((1, 2)), reference_log_probabilities=np.log([[0.25, 0.75]]))
    for wrong in ({"prompts": 0}, {"answers": 1}):
        with pytest.raises(UsageError, match="a prompt and two answers"):
            table_task(**wrong)


def test_what_is_no_policy_is_refused():
    with pytest.raises(UsageError, match="add up to 1"):
        measure_policy(SMALL, np.log([[0.25, 0.7]]), beta=1.0)
    with pytest.raises(UsageError, match=r"shape \(2, 2\)"):
        measure_policy(SMALL, np.log([[0.25, 0.75]] * 2), beta=1.0)
    with pytest.raises(ValueError, match="beta"):
        measure_policy(SMALL, np.log([[0.25, 0.75]]), beta=0.0)
