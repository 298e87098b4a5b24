"""Dynamic programming against trajectories one by one, finite differences and cases done by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from surefoot.errors import UsageError
from surefoot.exact.enumerable import (
    TabularProblem,
    customary_direction,
    evaluate_policy,
    initial_logits,
    objective,
    policy_gradient,
    softmax_policy,
)
from surefoot.exact.problems import PROBLEMS, make_problem
from surefoot.exact.trajectories import count_trajectories, enumerate_trajectories, sample_trajectories
from tests.exact import brute_force

SMALL = [("chain", 5), ("two-paths", 6), ("cliff", 4), ("windy-cliff", 3), ("random-0", 3), ("random-7", 3)]
ALL = [*PROBLEMS, "random-0", "random-7", "random-123456"]


@pytest.mark.parametrize("discount", [0.9, 1.0, 0.0])
@pytest.mark.parametrize(("name", "horizon"), SMALL)
def test_evaluation_is_the_sum_over_trajectories(name, horizon, discount):
    problem = make_problem(name, discount=discount, horizon=horizon)
    logits = initial_logits(problem, seed=1)
    evaluation = evaluate_policy(problem, logits)
    paths = list(brute_force.every_path(problem, brute_force.stationary(problem, logits)))
    assert sum(p.probability for p in paths) == pytest.approx(1, abs=1e-12)
    expected = sum(p.probability * brute_force.discounted(p.rewards, discount) for p in paths)
    assert evaluation.objective == pytest.approx(expected, abs=1e-12)
    visits = np.zeros((horizon, problem.states))
    for path in paths:
        for t in range(len(path.actions)):
            visits[t, path.states[t]] += path.probability
    np.testing.assert_allclose(evaluation.visits, visits, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_values_are_the_objectives_of_what_is_left(name):
    problem = make_problem(name)
    logits = initial_logits(problem, seed=2)
    evaluation = evaluate_policy(problem, logits)
    for t in range(problem.horizon):
        for state in np.flatnonzero(~problem.terminal):
            rest = replace(problem, initial=np.eye(problem.states)[state], horizon=problem.horizon - t)
            assert evaluation.values[t, state] == pytest.approx(objective(rest, logits), abs=1e-12)
    np.testing.assert_allclose((evaluation.policy * evaluation.advantages).sum(-1), 0, atol=1e-12)
    assert not evaluation.values[-1].any()
    assert not evaluation.values[:, problem.terminal].any()
    assert not evaluation.visits[:, problem.terminal].any()


@pytest.mark.parametrize("discount", [0.9, 1.0, 0.3])
@pytest.mark.parametrize("name", ALL)
def test_gradient_is_that_of_finite_differences(name, discount):
    problem = make_problem(name, discount=discount)
    logits = initial_logits(problem, seed=3)
    got = policy_gradient(problem, evaluate_policy(problem, logits))
    expected = brute_force.finite_difference(lambda x: objective(problem, x), logits)
    np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize(("name", "horizon"), [("two-paths", 5), ("random-3", 3)])
def test_both_directions_are_sums_over_the_steps_own_gradients(name, horizon):
    # Give every step a policy of its own: ∇J is the sum of J's derivatives by each of them, and the customary direction
    # is the same sum with the t-th divided by γᵗ.
    problem = make_problem(name, discount=0.8, horizon=horizon)
    logits = initial_logits(problem, seed=4)

    def by_step(everything):
        return brute_force.expected_return(problem, [brute_force.softmax(row) for row in everything])

    parts = brute_force.finite_difference(by_step, np.stack([logits] * horizon))
    evaluation = evaluate_policy(problem, logits)
    np.testing.assert_allclose(policy_gradient(problem, evaluation), parts.sum(0), atol=1e-8)
    customary = (parts / 0.8 ** np.arange(horizon)[:, None, None]).sum(0)
    np.testing.assert_allclose(customary_direction(problem, evaluation), customary, atol=1e-8)
    assert np.abs(customary - parts.sum(0)).max() > 1e-3


def test_one_step_by_hand():
    # π = (¼, ¾), r = (4, 0): J = 1, ∂J/∂θ = π (r − J) = (¾, −¾).
    problem = TabularProblem("bandit", np.ones((1, 2, 1)), np.array([[4.0, 0.0]]), np.ones(1), np.zeros(1, bool), 0.5, 1)
    evaluation = evaluate_policy(problem, np.array([[0.0, np.log(3)]]))
    assert evaluation.objective == pytest.approx(1)
    np.testing.assert_allclose(policy_gradient(problem, evaluation), [[0.75, -0.75]])
    # Twice, with γ = ½: J = 1 + ½, and each step's gradient is the same but for γᵗ.
    twice = replace(problem, horizon=2)
    evaluation = evaluate_policy(twice, np.array([[0.0, np.log(3)]]))
    assert evaluation.objective == pytest.approx(1.5)
    np.testing.assert_allclose(policy_gradient(twice, evaluation), [[0.75 * 1.5, -0.75 * 1.5]])
    np.testing.assert_allclose(customary_direction(twice, evaluation), [[1.5, -1.5]])


def test_softmax_survives_large_logits():
    np.testing.assert_allclose(softmax_policy(np.array([[1000.0, 1000.0, -1000.0]])), [[0.5, 0.5, 0.0]])


@pytest.mark.parametrize(("name", "horizon"), SMALL)
def test_enumeration_misses_nothing(name, horizon):
    problem = make_problem(name, horizon=horizon)
    logits = initial_logits(problem, seed=5)
    got = enumerate_trajectories(problem, softmax_policy(logits), limit=100_000)
    ours = {}
    for n in range(got.valid.shape[1]):
        length = int(got.valid[:, n].sum())
        assert got.valid[:length, n].all()  # padding comes last
        key = (tuple(got.states[:length, n]), tuple(got.actions[:length, n]), int(got.next_states[length - 1, n]))
        assert (got.next_states[: length - 1, n] == got.states[1:length, n]).all()
        assert key not in ours
        ours[key] = got.probabilities[n]
    theirs = {
        (tuple(p.states[:-1]), tuple(p.actions), p.states[-1]): p.probability
        for p in brute_force.every_path(problem, brute_force.stationary(problem, logits))
    }
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == pytest.approx(theirs[key], rel=1e-10) for key in ours)
    assert count_trajectories(problem) == len(theirs)


@pytest.mark.parametrize("name", ["chain", "two-paths", "random-1"])
def test_samples_follow_the_probabilities(name):
    problem = make_problem(name, horizon=4)
    policy = softmax_policy(initial_logits(problem, seed=6))
    everything = enumerate_trajectories(problem, policy, limit=100_000)
    drawn = sample_trajectories(problem, policy, samples=40_000, seed=0)

    def keys(trajectories):
        fields = (trajectories.states, trajectories.actions, trajectories.next_states, trajectories.valid)
        return [tuple(column) for column in np.concatenate(fields).T.tolist()]

    counts = dict.fromkeys(keys(everything), 0)
    for key in keys(drawn):
        counts[key] += 1  # a KeyError would be a trajectory that cannot happen
    chance = everything.probabilities
    deviations = np.array(list(counts.values())) / 40_000 - chance
    assert (np.abs(deviations) <= 5 * np.sqrt(chance * (1 - chance) / 40_000) + 1e-4).all()
    again = sample_trajectories(problem, policy, samples=40_000, seed=0)
    np.testing.assert_array_equal(again.actions, drawn.actions)


def test_too_many_trajectories_are_refused():
    problem = make_problem("windy-cliff")
    with pytest.raises(UsageError, match="has 88493721 trajectories, more than 1000"):
        enumerate_trajectories(problem, softmax_policy(initial_logits(problem, seed=0)), limit=1000)
    with pytest.raises(UsageError, match="too many"):
        sample_trajectories(problem, softmax_policy(initial_logits(problem, seed=0)), samples=1_000_000, seed=0)


def test_wrong_input_is_named():
    for name in ("nowhere", "random-x", "random--1", "random-"):
        with pytest.raises(UsageError, match=r"there is no problem .*chain, two-paths, cliff, windy-cliff and random-0"):
            make_problem(name)
    for discount in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="discount must lie between 0 and 1"):
            make_problem("chain", discount=discount)
    with pytest.raises(UsageError, match="horizon must be at least 1 step, but is 0"):
        make_problem("chain", horizon=0)
    good = make_problem("chain")
    with pytest.raises(UsageError, match="transition holds no probabilities"):
        replace(good, transition=0.9 * good.transition)
    with pytest.raises(UsageError, match="initial holds no probabilities"):
        replace(good, initial=-good.initial)
    with pytest.raises(UsageError, match="start in a terminal state"):
        replace(good, initial=np.eye(7)[0])
    with pytest.raises(UsageError, match="initial has shape"):
        replace(good, initial=np.ones(1))


def test_problems_with_a_number_depend_on_it_alone():
    assert (make_problem("random-5").reward == make_problem("random-5").reward).all()
    assert (make_problem("random-5").reward != make_problem("random-6").reward).any()
