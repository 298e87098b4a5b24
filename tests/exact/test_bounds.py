"""The performance difference, the surrogate and the bounds on what it leaves out, on random policies and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.exact.bounds import (
    natural_gradient,
    performance_difference,
    surrogate_gap,
    surrogate_objective,
    trust_region_path,
)
from surefoot.exact.enumerable import TabularProblem, evaluate_policy, initial_logits, policy_gradient
from surefoot.exact.problems import make_problem
from tests.exact import brute_force

BOUNDS = ("schulman", "schulman_kl", "achiam", "finite", "finite_kl", "finite_expected")
NAMES = st.sampled_from(["chain", "two-paths", "cliff", "windy-cliff", *(f"random-{i}" for i in range(40))])
DISCOUNTS = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])


def pair(name, discount, seed, size, horizon=None):
    problem = make_problem(name, discount=discount, horizon=horizon)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=problem.reward.shape)
    other = logits + size * rng.normal(size=logits.shape)
    return problem, evaluate_policy(problem, logits), evaluate_policy(problem, other)


@settings(deadline=None, max_examples=100)
@given(name=NAMES, discount=DISCOUNTS, seed=st.integers(0, 10**6), size=st.sampled_from([0.01, 0.3, 3.0]))
def test_the_performance_difference_is_exact(name, discount, seed, size):
    problem, old, new = pair(name, discount, seed, size)
    assert performance_difference(problem, old, new) == pytest.approx(new.objective - old.objective, abs=1e-12)


def test_the_performance_difference_is_an_expectation_over_the_new_policys_trajectories():
    problem = make_problem("two-paths", horizon=5)
    logits, others = (initial_logits(problem, seed=seed, scale=1.0) for seed in (1, 2))
    old, new = evaluate_policy(problem, logits), evaluate_policy(problem, others)
    expected = 0.0
    for path in brute_force.every_path(problem, brute_force.stationary(problem, others)):
        for t, (state, action) in enumerate(zip(path.states, path.actions, strict=False)):
            expected += path.probability * problem.discount**t * old.advantages[t, state, action]
    assert performance_difference(problem, old, new) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("name", ["chain", "random-3"])
def test_the_surrogate_is_the_objective_to_first_order(name):
    problem = make_problem(name)
    logits = initial_logits(problem, seed=7)
    old = evaluate_policy(problem, logits)
    assert surrogate_objective(problem, old, old) == old.objective
    slope = brute_force.finite_difference(lambda x: surrogate_objective(problem, old, evaluate_policy(problem, x)), logits)
    np.testing.assert_allclose(slope, policy_gradient(problem, old), atol=1e-9)


def test_the_surrogate_is_an_importance_weighted_expectation_over_the_old_policys_trajectories():
    problem = make_problem("random-2", horizon=3)
    logits, others = (initial_logits(problem, seed=seed, scale=1.0) for seed in (1, 2))
    old, new = evaluate_policy(problem, logits), evaluate_policy(problem, others)
    expected = old.objective
    for path in brute_force.every_path(problem, brute_force.stationary(problem, logits)):
        for t, (state, action) in enumerate(zip(path.states, path.actions, strict=False)):
            ratio = new.policy[state, action] / old.policy[state, action]
            expected += path.probability * problem.discount**t * ratio * old.advantages[t, state, action]
    assert surrogate_objective(problem, old, new) == pytest.approx(expected, abs=1e-13)


@settings(deadline=None, max_examples=150)
@given(
    name=NAMES,
    discount=DISCOUNTS,
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 0.03, 0.3, 1.0, 5.0]),
    horizon=st.sampled_from([1, 2, 6, 30]),
)
def test_every_bound_holds(name, discount, seed, size, horizon):
    problem, old, new = pair(name, discount, seed, size, horizon)
    gap = surrogate_gap(problem, old, new)
    for bound in BOUNDS:
        assert abs(gap.gap) <= getattr(gap, bound) + 1e-12, bound
    assert gap.gain >= gap.certified_gain - 1e-12
    assert gap.gain >= gap.certified_gain_kl - 1e-12
    # The finer never exceeds the coarser that it refines.
    slack = 1 + 1e-9
    assert gap.finite <= gap.finite_kl * slack
    assert gap.schulman <= gap.schulman_kl * slack
    assert gap.finite <= gap.schulman * slack + 1e-15
    assert gap.achiam <= gap.schulman * slack or discount == 1
    assert gap.finite_expected <= gap.achiam * slack + 1e-15
    assert 2 * gap.max_total_variation**2 <= gap.max_kl * slack + 1e-15  # Pinsker
    assert gap.mean_kl <= gap.max_kl * slack
    # The shift of the states itself, as derived.
    shift = np.abs(new.visits - old.visits).sum(-1)
    moved = np.concatenate([[0], np.cumsum(old.visits @ (0.5 * np.abs(new.policy - old.policy).sum(-1)))[:-1]])
    assert (shift <= 2 * moved + 1e-12).all()
    assert (2 * moved <= 2 * np.arange(horizon) * gap.max_total_variation + 1e-12).all()


def test_without_a_horizon_beyond_the_first_step_the_surrogate_is_exact():
    problem, old, new = pair("random-1", 0.9, 0, 3.0, horizon=1)
    gap = surrogate_gap(problem, old, new)
    assert gap.gap == pytest.approx(0, abs=1e-14)
    assert gap.finite == gap.finite_expected == 0


def leaving() -> TabularProblem:
    """Stay in state 0 or leave for 1 for good; in 1, action 0 earns 1 and action 1 earns −1; nothing is earned in 0."""
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = transition[0, 1, 1] = 1
    transition[1, :, 1] = 1
    reward = np.array([[0.0, 0.0], [1.0, -1.0]])
    return TabularProblem("leaving", transition, reward, np.array([1.0, 0.0]), np.zeros(2, bool), 0.9, 3)


def test_the_quantities_by_hand():
    # π is even, so V = 0 and A is ±1 in state 1, 0 in state 0. π′ takes action 0 with ¾ and 0.2 … everything else follows.
    problem = leaving()
    old = evaluate_policy(problem, np.zeros((2, 2)))
    stay, good = 0.2, 0.75
    new = evaluate_policy(problem, np.log([[stay, 1 - stay], [good, 1 - good]]))
    gap = surrogate_gap(problem, old, new)
    surplus = good - (1 - good)  # Ā in state 1: 0.5
    away_old, away_new = [0, 0.5, 0.75], [0, 0.8, 0.96]
    assert gap.surrogate_gain == pytest.approx(sum(0.9**t * away_old[t] * surplus for t in range(3)))
    assert gap.gain == pytest.approx(sum(0.9**t * away_new[t] * surplus for t in range(3)))
    alpha = 0.3
    assert gap.max_total_variation == pytest.approx(alpha)
    kl_0 = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    kl_1 = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert gap.max_kl == pytest.approx(kl_0)
    occupancy_1 = 0.9 * 0.5 + 0.81 * 0.75
    occupancy_0 = 1 + 0.9 * 0.5 + 0.81 * 0.25
    assert gap.mean_kl == pytest.approx((occupancy_0 * kl_0 + occupancy_1 * kl_1) / (1 + 0.9 + 0.81))
    assert gap.schulman == pytest.approx(4 * 0.9 * alpha**2 / 0.1**2)
    assert gap.schulman_kl == pytest.approx(4 * 0.9 * kl_0 / 0.1**2)
    mean_variation = 0.1 * (occupancy_0 * 0.3 + occupancy_1 * 0.25)
    assert gap.achiam == pytest.approx(2 * 0.9 * surplus / 0.1**2 * mean_variation)
    assert gap.finite == pytest.approx(2 * alpha * (0.9 * 2 * alpha + 0.81 * 2 * (1 - 0.7**2)))
    shifts = [0, 2 * 0.3, 2 * (0.3 + 0.5 * 0.3 + 0.5 * 0.25)]
    assert gap.finite_expected == pytest.approx(surplus * (0.9 * shifts[1] + 0.81 * shifts[2]))


def test_for_no_discount_the_infinite_bounds_are_void_and_the_finite_ones_are_not():
    problem, old, new = pair("chain", 1.0, 0, 0.05)
    gap = surrogate_gap(problem, old, new)
    assert gap.schulman == gap.schulman_kl == gap.achiam == math.inf
    assert gap.certified_gain_kl == -math.inf
    assert abs(gap.gap) <= gap.finite_expected <= gap.finite < 1


def test_a_policy_that_gives_up_an_action_is_infinitely_far_in_kl_and_not_in_variation():
    problem = make_problem("chain")
    old = evaluate_policy(problem, np.zeros((7, 2)))
    new = evaluate_policy(problem, np.array([[-2000.0, 2000.0]] * 7))
    gap = surrogate_gap(problem, old, new)
    assert gap.max_kl == math.inf
    assert gap.max_total_variation == pytest.approx(0.5)
    assert math.isfinite(gap.finite_expected)


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("name", ["chain", "two-paths", "cliff", "random-0", "random-7"])
def test_close_policies_are_certified_to_gain(name, discount):
    problem = make_problem(name, discount=discount)
    logits = initial_logits(problem, seed=0)
    old = evaluate_policy(problem, logits)
    sizes, gaps = (1e-3, 1e-4), []
    for size in sizes:
        new = evaluate_policy(problem, logits + size * natural_gradient(problem, old))
        gaps.append(surrogate_gap(problem, old, new))
    assert gaps[0].certified_gain > 0.9 * gaps[0].gain > 0
    if discount < 1:
        assert gaps[1].certified_gain_kl > 0.5 * gaps[1].gain > 0
    for bound in BOUNDS:  # second order: a tenth of the step, a hundredth of the bound (KL's own: √KL is first order)
        if math.isfinite(getattr(gaps[0], bound)):
            assert getattr(gaps[0], bound) / getattr(gaps[1], bound) == pytest.approx(100, rel=0.05), bound


@pytest.mark.parametrize("name", ["chain", "random-0", "random-5"])
def test_the_natural_gradient_solves_the_fisher_system(name):
    problem = make_problem(name)
    old = evaluate_policy(problem, initial_logits(problem, seed=8))
    size = problem.states * problem.actions
    fisher = np.zeros((size, size))
    for t in range(problem.horizon):
        for state in range(problem.states):
            for action in range(problem.actions):
                score = np.zeros(problem.reward.shape)
                score[state] = -old.policy[state]
                score[state, action] += 1
                weight = problem.discount**t * old.visits[t, state] * old.policy[state, action]
                fisher += weight * np.outer(score, score)
    gradient, natural = policy_gradient(problem, old), natural_gradient(problem, old)
    np.testing.assert_allclose(fisher @ natural.ravel(), gradient.ravel(), atol=1e-13)
    # The same policy as the pseudo-inverse gives: they differ by a constant per state, which a softmax does not see.
    difference = (np.linalg.pinv(fisher, rcond=1e-10) @ gradient.ravel()).reshape(natural.shape) - natural
    np.testing.assert_allclose(difference - difference.mean(-1, keepdims=True), 0, atol=1e-8)


@pytest.mark.parametrize("limit", ["certified", "theorem"])
@pytest.mark.parametrize("name", ["chain", "two-paths", "windy-cliff", "random-76", "random-14", "random-12"])
def test_certified_steps_never_lose(name, limit):
    problem = make_problem(name)
    walk = trust_region_path(problem, initial_logits(problem, seed=0), iterations=8, limit=limit)
    for step in walk.steps:
        promised = step.gap.certified_gain if limit == "certified" else step.gap.certified_gain_kl
        assert 0 < promised <= step.gap.gain
        assert step.step_size > 0
    objectives = [step.objective for step in walk.steps]
    assert objectives == sorted(objectives)
    assert evaluate_policy(problem, walk.logits).objective == pytest.approx(objectives[-1] + walk.steps[-1].gap.gain, abs=1e-14)
    assert walk.smallest_gain == min(step.gap.gain for step in walk.steps)


@pytest.mark.parametrize("limit", [1e-3, 0.01, 1.0])
@pytest.mark.parametrize("name", ["chain", "random-0", "random-76"])
def test_limited_steps_keep_their_limit_and_use_it(name, limit):
    problem = make_problem(name)
    walk = trust_region_path(problem, initial_logits(problem, seed=0), iterations=5, limit=limit)
    for step in walk.steps:
        assert step.gap.mean_kl <= limit
        assert step.gap.surrogate_gain >= 0
    assert walk.steps[0].gap.mean_kl > 0.2 * limit


def test_a_step_that_is_too_long_for_the_bound_can_lose():
    problem = make_problem("random-76")
    walk = trust_region_path(problem, initial_logits(problem, seed=0), iterations=6, limit=1.0)
    worst = min(walk.steps, key=lambda step: step.gap.gain)
    assert worst.gap.gain < -0.1 < 0 <= worst.gap.surrogate_gain


def test_without_discount_the_theorem_takes_no_step():
    problem = make_problem("chain", discount=1.0)
    logits = initial_logits(problem, seed=0)
    walk = trust_region_path(problem, logits, iterations=2, limit="theorem")
    assert [step.step_size for step in walk.steps] == [0, 0]
    np.testing.assert_array_equal(walk.logits, logits)
    assert trust_region_path(problem, logits, iterations=2, limit="certified").smallest_gain > 0


def test_a_problem_without_rewards_takes_no_step():
    problem = make_problem("chain", discount=0.0)
    walk = trust_region_path(problem, initial_logits(problem, seed=0), iterations=1, limit=0.01)
    assert walk.smallest_gain == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cliff", "two-paths"])
def test_a_walk_that_has_arrived_stays(name):
    problem = make_problem(name)
    walk = trust_region_path(problem, initial_logits(problem, seed=0), iterations=60, limit=10.0)
    assert walk.steps[-1].gap.gain == pytest.approx(0, abs=1e-14)
    # On these problems it arrives at the best of the deterministic policies.
    ends = [
        evaluate_policy(problem, 1e3 * np.eye(problem.actions)[list(choice)]).objective
        for choice in np.random.default_rng(0).integers(problem.actions, size=(3000, problem.states))
    ]
    assert walk.steps[-1].objective == pytest.approx(max(ends), abs=1e-9)


def test_wrong_input_is_named():
    problem = make_problem("chain")
    logits = initial_logits(problem, seed=0)
    with pytest.raises(UsageError, match="iterations must be at least 1, but is 0"):
        trust_region_path(problem, logits, iterations=0, limit=0.1)
    for limit in (0.0, -1.0, "best"):
        with pytest.raises(UsageError, match="a positive KL, 'certified' or 'theorem'"):
            trust_region_path(problem, logits, iterations=1, limit=limit)
