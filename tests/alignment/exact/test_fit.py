"""DPO for pairs and for rankings lands on the closed-form optimum, and samples approach it at the rate that theory gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surefoot.alignment.exact.fit import fit_table, limiting_distance, preference_loss
from surefoot.alignment.exact.rankings import Rankings, all_rankings, sample_rankings
from surefoot.alignment.exact.tasks import (
    PreferenceTask,
    log_softmax,
    mean_kl_divergence,
    measure_policy,
    optimal_policy,
    table_task,
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_loss_is_the_weighted_mean_of_its_definition():
    task = table_task(prompts=2, answers=4, seed=2)
    policy = log_softmax(np.random.default_rng(0).normal(size=(2, 4)))
    beta, generator = 0.3, np.random.default_rng(1)
    for answers in (2, 3):
        rankings = sample_rankings(task, count=7, answers=answers, generator=generator)
        rankings = Rankings(rankings.prompts, rankings.answers, np.arange(1.0, 8) / 28)
        expected = 0.0
        for x, ranked, weight in zip(rankings.prompts, rankings.answers, rankings.weights, strict=True):
            scores = beta * (policy[x, ranked] - task.reference_log_probabilities[x, ranked])
            for k in range(answers):
                expected -= weight * (scores[k] - math.log(np.exp(scores[k:]).sum()))
        got = preference_loss(torch.from_numpy(policy), task, rankings, beta=beta)
        assert got.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("answers", "beta"), [(2, 0.1), (2, 1.0), (3, 0.1)], ids=["pairs", "pairs-1", "rankings"])
def test_the_expected_loss_is_least_at_the_optimum(answers, beta):
    """The target: 0.001 nats, and 0.2 % of the way that there was to go."""
    task = table_task()
    fit = fit_table(task, all_rankings(task, answers=answers), beta=beta)
    start = mean_kl_divergence(task.reference_log_probabilities, optimal_policy(task, beta=beta).log_probabilities)
    distance = measure_policy(task, fit.log_probabilities, beta=beta).kl_to_optimum
    assert distance <= 0.001
    assert distance <= 0.002 * start
    # It is far better than the target, as an exact loss and an exact minimum must be.
    assert distance < 1e-9
    assert fit.largest_gradient < 1e-7


def test_rankings_of_four_land_there_too():
    task = table_task(prompts=2, answers=6, seed=8)
    fit = fit_table(task, all_rankings(task, answers=4), beta=0.2)
    assert measure_policy(task, fit.log_probabilities, beta=0.2).kl_to_optimum < 1e-9


def test_the_least_loss_is_the_entropy_of_the_labels():
    task = table_task(prompts=3, answers=5, seed=9)
    rankings = all_rankings(task, answers=2)
    fit = fit_table(task, rankings, beta=0.5)
    r = task.rewards[rankings.prompts[:, None], rankings.answers]
    entropy = (rankings.weights * np.log1p(np.exp(r[:, 1] - r[:, 0]))).sum()
    assert fit.loss == pytest.approx(entropy, rel=1e-10)
    assert 3 < fit.evaluations < 1000


def test_noisier_labels_lead_to_the_optimum_of_a_smaller_reward():
    task = table_task(prompts=2, answers=5, seed=10)
    fit = fit_table(task, all_rankings(task, answers=3, temperature=2.0), beta=0.5)
    halved = PreferenceTask(task.reference_log_probabilities, task.rewards / 2)
    expected = optimal_policy(halved, beta=0.5).log_probabilities
    np.testing.assert_allclose(fit.log_probabilities, expected, atol=1e-6)


def test_answers_that_are_never_compared_keep_their_place():
    """By hand: 0 beats 1 in three of four pairs, 2 and 3 are not asked about: their log-ratio is the mean of the others'."""
    task = table_task(prompts=1, answers=4, seed=1)
    rankings = Rankings(np.zeros(4, int), np.array([[0, 1], [0, 1], [1, 0], [0, 1]]), np.full(4, 0.25))
    fit = fit_table(task, rankings, beta=0.5)
    log_ratios = (fit.log_probabilities - task.reference_log_probabilities)[0]
    assert 0.5 * (log_ratios[0] - log_ratios[1]) == pytest.approx(math.log(3), rel=1e-6)
    np.testing.assert_allclose(log_ratios[2:], log_ratios[:2].mean(), atol=1e-7)


def test_the_limit_is_that_of_the_information_of_pairs():
    task, beta = table_task(prompts=2, answers=4, seed=3), 0.7
    rankings, total = all_rankings(task, answers=2), 0.0
    for x in range(2):
        information = np.zeros((4, 4))
        for prompt, (winner, loser), weight in zip(rankings.prompts, rankings.answers, rankings.weights, strict=True):
            if prompt == x:
                direction = np.eye(4)[winner] - np.eye(4)[loser]
                right = 1 / (1 + math.exp(task.rewards[x, loser] - task.rewards[x, winner]))
                information += weight * beta**2 * right * (1 - right) * np.outer(direction, direction)
        p = np.exp(optimal_policy(task, beta=beta).log_probabilities[x])
        # Fix the last logit at 0, which no probability can tell, and invert what is left.
        covariance = np.zeros((4, 4))
        covariance[:3, :3] = np.linalg.inv(information[:3, :3])
        total += 0.5 * np.trace((np.diag(p) - np.outer(p, p)) @ covariance) / 2
    assert limiting_distance(task, rankings, beta=beta) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("answers", [2, 3])
def test_more_preferences_come_nearer_at_the_rate_of_theory(answers):
    task, beta = table_task(prompts=2, answers=6, seed=6), 1.0
    limit = limiting_distance(task, all_rankings(task, answers=answers), beta=beta)
    found = {}
    for count, seeds in ((300, 8), (3_000, 8), (30_000, 24)):
        found[count] = distances = []
        for seed in range(seeds):
            rankings = sample_rankings(task, count=count, answers=answers, generator=np.random.default_rng([seed, count]))
            fit = fit_table(task, rankings, beta=beta)
            distances.append(measure_policy(task, fit.log_probabilities, beta=beta).kl_to_optimum)
    assert np.mean(found[300]) > 4 * np.mean(found[3_000]) > 16 * np.mean(found[30_000])
    scaled = 30_000 * np.array(found[30_000])
    assert scaled.mean() == pytest.approx(limit, abs=4 * scaled.std() / np.sqrt(24))
    assert scaled.std() < limit, "otherwise the bound says nothing"
