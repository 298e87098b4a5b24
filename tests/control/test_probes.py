"""Probe environments with known values and policies: each fails for one reason.

The idea is Andy Jones's (Debugging Reinforcement Learning Systems, 2021).
"""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.control.environments.select import select_environments
from surefoot.control.iterations.split import SplitIteration
from surefoot.control.update.estimation import values_of
from tests.control import toys
from tests.control.helpers import configure


def trained(factory, steps=12_000, **options):
    """Train, and return functions of raw observations: V in reward units, and the most probable action."""
    options = {
        "num_envs": 8, "rollout_length": 32, "minibatch_size": 64, "epochs": 8, "learning_rate": 1e-2, "hidden_sizes": (16,),
        "total_steps": steps, "normalize_rewards": False, "normalize_observations": False,
    } | options  # fmt: skip
    configuration = configure(**options)
    selection = select_environments(factory, backend="auto", num_envs=8, seed=0)
    iteration = SplitIteration(configuration, selection.environments, seed=0)
    for number in range(configuration.iterations):
        outcome = iteration.run(number)
    iteration.close()
    learner, spaces = iteration.learner, iteration.spaces

    def value(*observations):
        seen = np.asarray(observations, np.float32)[:, None]
        parameters = {k: np.asarray(v) for k, v in learner.critic.parameters["v"].items()}
        return values_of(configuration, parameters, seen)

    def action(*observations):
        from surefoot.control.policies.policy import action_distribution

        seen = np.asarray(observations, np.float32)[:, None]
        parameters = {k: np.asarray(v) for k, v in learner.actor.parameters.items()}
        chosen = action_distribution(spaces, parameters, seen, activation="tanh").mode()
        return spaces.action.for_environment(chosen)

    return value, action, outcome


def test_value_of_a_constant():
    value, _, _ = trained(toys.ConstantReward)
    np.testing.assert_allclose(value(0.0), [1.0], atol=0.05)


def test_value_depends_on_the_observation():
    value, _, outcome = trained(toys.ShownReward)
    np.testing.assert_allclose(value(-1.0, 1.0), [-1.0, 1.0], atol=0.05)
    assert outcome.metrics["critic/explained_variance"][0] > 0.99


def test_value_is_discounted():
    value, _, _ = trained(toys.DelayedReward, discount=0.5)
    np.testing.assert_allclose(value(0.0, 1.0), [0.5, 1.0], atol=0.05)


def test_truncation_is_bootstrapped():
    """Cut every 5 steps: V = 1/(1 − γ) = 5 with the bootstrap, at most 3.4 without."""
    value, _, _ = trained(toys.EndlessReward, discount=0.8, steps=20_000)
    np.testing.assert_allclose(value(0.0), [5.0], atol=0.25)


def test_better_action_is_found():
    value, action, _ = trained(toys.ActionReward)
    assert action(0.0) == [1]
    assert value(0.0)[0] > 0.9


def test_action_depends_on_the_observation():
    _, action, _ = trained(toys.MatchReward)
    assert action(-1.0, 1.0).tolist() == [0, 1]


def test_box_actions_are_scaled_and_bounded():
    _, action, _ = trained(toys.ContinuousTarget, steps=40_000, learning_rate=3e-3)
    np.testing.assert_allclose(action(0.0), [[3.0]], atol=0.25)


@pytest.mark.parametrize(("factory", "best"), [(toys.SeveralChoices, [7, 1]), (toys.SeveralBits, [1, 0, 1])])
def test_actions_of_several_parts(factory, best):
    _, action, _ = trained(factory)
    assert action(0.0)[0].tolist() == best
