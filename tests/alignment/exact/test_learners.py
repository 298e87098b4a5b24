"""The learners against optima that are computed in another way: in closed form, and by minimising a table's loss."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from surefoot.alignment.exact.fit import expected_ranking_loss
from surefoot.alignment.exact.language import exact_log_probabilities, language_task, reference_model
from surefoot.alignment.exact.learners import (
    OnlineSteps,
    Steps,
    fit_policy,
    fit_reward_model,
    fit_to_reward,
    learn_online,
)
from surefoot.alignment.exact.models import as_language, table_model
from surefoot.alignment.exact.rankings import Rankings, sample_rankings
from surefoot.alignment.exact.rewards import TrueRewards, all_scores
from surefoot.alignment.exact.tasks import measure_policy, optimal_policy, table_task
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.rlhf.configuration import PPOConfiguration


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TABLE = as_language(table_task(prompts=2, answers=4, seed=5))


def tiny_language():
    model = reference_model(vocabulary=3, length=2, width=16)
    return language_task(model, prompts=2, length=2), model


def policy_of(model, language):
    return exact_log_probabilities(model, language.prompts, length=language.answers.shape[1])


def distance(model, language, beta):
    return measure_policy(language.task, policy_of(model, language), beta=beta).kl_to_optimum


def test_the_expected_loss_is_the_mean_over_rankings_by_definition():
    rewards, scores = [0.3, -1.0, 2.0], [1.1, 0.4, -0.2]

    def probability(order, of):
        chance, left = 1.0, list(order)
        for y in order:
            chance *= math.exp(of[y]) / sum(math.exp(of[z]) for z in left)
            left.remove(y)
        return chance

    expected = -sum(
        probability(order, rewards) * math.log(probability(order, scores)) for order in itertools.permutations(range(3))
    )
    got = expected_ranking_loss(torch.tensor([scores, rewards]), torch.tensor([rewards, rewards]))
    assert got[0].item() == pytest.approx(expected, rel=1e-6)
    assert got[1] < got[0]
    shifted = expected_ranking_loss(torch.tensor([scores]) + 5, torch.tensor([rewards]) - 3)
    assert shifted.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("answers", [2, 3])
def test_the_expected_loss_has_no_gradient_at_the_rewards(answers):
    rewards = torch.randn(5, answers, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = (rewards + 0.7).requires_grad_()
    (gradient,) = torch.autograd.grad(expected_ranking_loss(scores, rewards).sum(), scores)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("answers", [2, 3])
@pytest.mark.parametrize("make", [lambda: (TABLE, table_model(TABLE.task)), tiny_language], ids=["table", "language"])
def test_dpo_on_the_true_reward_lands_on_the_optimum(make, answers):
    language, model = make()
    start = distance(model, language, 0.5)
    drawn = fit_to_reward(
        language, Likelihood(model), answers=answers, beta=0.5, steps=Steps(250, 32, 1e-2), seed=0
    )  # fmt: skip
    assert drawn == 250 * 32 * answers
    assert distance(model, language, 0.5) < 1e-3 < 0.1 * start
    assert distance(model, language, 1.0) > 10 * distance(model, language, 0.5)


ONLINE = {
    "ppo": {"weight": "gae", "trace_decay": 1.0},
    "rloo": {"weight": "leave-one-out"},
}


@pytest.mark.parametrize("method", ["ppo", "rloo"])
@pytest.mark.parametrize(
    ("make", "rate"), [(lambda: (TABLE, table_model(TABLE.task)), 3e-2), (tiny_language, 1e-2)], ids=["table", "language"]
)
def test_ppo_and_rloo_land_on_the_optimum(make, rate, method):
    language, model = make()
    start, iterations = distance(model, language, 0.5), list[int]()
    settings = PPOConfiguration(
        reward="true",
        beta=0.5,
        longest_answer=language.answers.shape[1],
        answers_per_prompt=8,
        update_epochs=1,
        **ONLINE[method],
    )
    drawn = learn_online(
        language, Likelihood(model), TrueRewards(language), settings=settings, steps=OnlineSteps(250, 2, rate, rate), seed=0,
        tell=lambda iteration, metrics: iterations.append(iteration),
    )  # fmt: skip
    assert drawn == 250 * 2 * 2 * 8
    assert iterations == list(range(1, 251))
    assert distance(model, language, 0.5) < 3e-3 < 0.1 * start


def test_dpo_on_many_preferences_is_near_the_optimum_and_on_few_stops_before_it_is_far():
    policy = {}
    for count in (30, 10_000):
        rankings = sample_rankings(TABLE.task, count=count, answers=2, generator=np.random.default_rng(0))
        model = table_model(TABLE.task)
        fit_policy(TABLE, Likelihood(model), rankings, beta=1.0, steps=Steps(400, 64, 1e-2), seed=0)
        policy[count] = distance(model, TABLE, 1.0)
    start = distance(table_model(TABLE.task), TABLE, 1.0)
    assert policy[10_000] < 0.02 < start
    assert policy[30] < 1.5 * start


def test_rankings_of_more_answers_are_compared_as_rankings():
    rankings = sample_rankings(TABLE.task, count=3_000, answers=4, generator=np.random.default_rng(0))
    model = table_model(TABLE.task)
    fit_policy(TABLE, Likelihood(model), rankings, beta=1.0, steps=Steps(400, 64, 1e-2), seed=0)
    assert distance(model, TABLE, 1.0) < 0.02


def test_what_is_held_out_says_when_to_stop():
    """Labels that are noise: the best policy is the one that nothing was done to."""
    generator = np.random.default_rng(0)
    rankings = sample_rankings(TABLE.task, count=60, answers=2, generator=generator, temperature=1e6)
    model = table_model(TABLE.task)
    before = policy_of(model, TABLE)
    fit_policy(TABLE, Likelihood(model), rankings, beta=0.1, steps=Steps(200, 32, 5e-2), seed=1)
    free = table_model(TABLE.task)
    twice = Rankings(np.repeat(rankings.prompts, 40), np.repeat(rankings.answers, 40, axis=0), np.full(2400, 1 / 2400))
    fit_policy(TABLE, Likelihood(free), twice, beta=0.1, steps=Steps(200, 32, 5e-2), seed=1)
    moved = [np.abs(policy_of(m, TABLE) - before).max() for m in (model, free)]
    assert moved[0] < 0.5 * moved[1]


def test_a_reward_model_learns_the_differences_of_rewards():
    rankings = sample_rankings(TABLE.task, count=6_000, answers=2, generator=np.random.default_rng(0))
    likelihood = fit_reward_model(TABLE, rankings, steps=Steps(400, 64, 3e-3), seed=0)
    scores = all_scores(likelihood, TABLE)
    centred = lambda x: x - x.mean(axis=1, keepdims=True)  # noqa: E731
    assert np.abs(centred(scores) - centred(TABLE.task.rewards)).max() < 0.4
    optimum = optimal_policy(TABLE.task, beta=1.0).log_probabilities
    assert optimum.shape == scores.shape


def test_the_same_seed_is_the_same_run():
    def run(seed):
        language, model = tiny_language()
        settings = PPOConfiguration(reward="true", beta=0.5, longest_answer=2, answers_per_prompt=4, weight="leave-one-out")
        learn_online(
            language, Likelihood(model), TrueRewards(language), settings=settings, steps=OnlineSteps(3, 1, 1e-2, 1e-2), seed=seed
        )  # fmt: skip
        return copy.deepcopy(model.state_dict())

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
