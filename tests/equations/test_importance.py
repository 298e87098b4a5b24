"""Importance weights, off-policy estimators and V-trace: by hand, by enumeration and against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.equations import importance_ratio
from surefoot.equations.importance import (
    cumulative_log_weights,
    per_decision_weights,
    trajectory_log_weights,
    truncated_weights,
    weight_diagnostics,
)
from surefoot.equations.off_policy import (
    ordinary_importance_estimate,
    per_decision_importance_estimate,
    weighted_importance_estimate,
    weighted_per_decision_importance_estimate,
)
from tests.equations.libraries import NUMPY
from tests.equations.test_returns import random_rollout

# Two states, two actions, at most three steps; arriving in state 2 is the end.
HORIZON, DISCOUNT = 3, 0.9
TRANSITIONS = np.array([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], [[0.4, 0.2, 0.4], [0.7, 0.3, 0.0]]])  # [state, action, next]
REWARDS = np.array([[[1.0, 2.0, -1.0], [0.0, 3.0, 5.0]], [[-2.0, 1.0, 4.0], [0.5, 0.0, 0.0]]])
BEHAVIOR = np.array([[0.7, 0.3], [0.4, 0.6]])
TARGET = np.array([[0.2, 0.8], [0.9, 0.1]])


def true_return(policy: np.ndarray, discount: float = DISCOUNT) -> float:
    """From state 0, by backward induction: nothing of the code under test."""
    values = np.zeros(3)
    for _ in range(HORIZON):
        q = (TRANSITIONS * (REWARDS + discount * values)).sum(axis=2)
        values = np.append((policy * q).sum(axis=1), 0.0)
    return float(values[0])


def all_trajectories() -> dict[str, np.ndarray]:
    """Every trajectory that μ can produce, one per column, with its probability; padded with NaN behind the end."""
    found = []

    def go_on(state, probability, steps):
        if state == 2 or len(steps) == HORIZON:
            found.append((probability, steps))
            return
        for action, following in itertools.product(range(2), range(3)):
            chance = BEHAVIOR[state, action] * TRANSITIONS[state, action, following]
            if chance > 0:
                go_on(following, probability * chance, [*steps, (state, action, REWARDS[state, action, following])])

    go_on(0, 1.0, [])
    shape = (HORIZON, len(found))
    out = {name: np.full(shape, np.nan) for name in ("log_probabilities", "behavior_log_probabilities", "rewards")}
    out["valid"], out["probability"] = np.zeros(shape, bool), np.array([p for p, _ in found])
    for i, (_, steps) in enumerate(found):
        for t, (state, action, reward) in enumerate(steps):
            out["log_probabilities"][t, i] = np.log(TARGET[state, action])
            out["behavior_log_probabilities"][t, i] = np.log(BEHAVIOR[state, action])
            out["rewards"][t, i], out["valid"][t, i] = reward, True
    assert out["probability"].sum() == pytest.approx(1)
    return out


def weights_of(trajectories):
    arguments = {k: trajectories[k] for k in ("log_probabilities", "behavior_log_probabilities", "valid")}
    return NUMPY.call(trajectory_log_weights, **arguments), NUMPY.call(cumulative_log_weights, **arguments)


def returns_of(trajectories, discount=DISCOUNT):
    return (discount ** np.arange(HORIZON)[:, None] * np.where(trajectories["valid"], trajectories["rewards"], 0)).sum(axis=0)


def test_weights_by_hand(library):
    # Ratios 2, ½, 3 | 4; the second trajectory ends after one step.
    ratios = np.array([[2.0, 4.0], [0.5, np.nan], [3.0, np.nan]])
    log_behavior = np.full((3, 2), -0.7)
    arguments = {
        "log_probabilities": np.log(ratios) + log_behavior,
        "behavior_log_probabilities": log_behavior,
        "valid": np.isfinite(ratios),
    }
    np.testing.assert_allclose(np.exp(library.call(trajectory_log_weights, **arguments)), [3.0, 4.0], rtol=1e-14)
    cumulative = np.exp(library.call(cumulative_log_weights, **arguments))
    np.testing.assert_allclose(cumulative, [[2.0, 4.0], [1.0, 4.0], [3.0, 4.0]], rtol=1e-14)
    cut = library.call(truncated_weights, log_weights=np.log([0.5, 3.0, 4.0]), limit=3.5)
    np.testing.assert_allclose(cut, [0.5, 3.0, 3.5], rtol=1e-14)


def test_estimates_by_hand(library):
    # Weights 1 and 3 of returns 10 and 2: (10 + 6)/2 and (10 + 6)/4; cut at 2: (10 + 4)/2 and (10 + 4)/3.
    arguments = {"log_weights": np.log([1.0, 3.0]), "returns": np.array([10.0, 2.0])}
    got = library.call(ordinary_importance_estimate, **arguments)
    np.testing.assert_allclose(got[0], 8.0)
    np.testing.assert_allclose(got[1], [10.0, 6.0])
    got = library.call(weighted_importance_estimate, **arguments)
    np.testing.assert_allclose(got[0], 4.0)
    # Linearised: 4 + w (G − 4)/w̄ with w̄ = 2.
    np.testing.assert_allclose(got[1], [4 + 6 / 2, 4 - 6 / 2])
    np.testing.assert_allclose(library.call(ordinary_importance_estimate, **arguments, limit=2.0)[0], 7.0)
    np.testing.assert_allclose(library.call(weighted_importance_estimate, **arguments, limit=2.0)[0], 14 / 3)
    # Per decision, γ = ½. Weights 1 | 2 then 3 | 2 (ended), rewards 4 | 8 then 6 | none.
    arguments = {
        "log_weights": np.log([[1.0, 2.0], [3.0, 2.0]]),
        "rewards": np.array([[4.0, 8.0], [6.0, np.nan]]),
        "valid": np.array([[True, True], [True, False]]),
        "discount": 0.5,
    }
    got = library.call(per_decision_importance_estimate, **arguments)
    np.testing.assert_allclose(got[1], [4 + 9, 16])
    np.testing.assert_allclose(got[0], 14.5)
    got = library.call(weighted_per_decision_importance_estimate, **arguments)
    np.testing.assert_allclose(got[0], (4 + 16) / 3 + 0.5 * 18 / 5)
    np.testing.assert_allclose(np.mean(got[1]), got[0])


def test_unbiased_over_every_trajectory(library):
    """Σ_τ μ(τ) term(τ) = J(π), exactly; no sampling anywhere."""
    trajectories = all_trajectories()
    probability, (whole, cumulative) = trajectories["probability"], weights_of(trajectories)
    truth = true_return(TARGET)
    assert abs(truth - true_return(BEHAVIOR)) > 0.5, "a test that μ's own return would pass shows nothing"
    terms = library.call(ordinary_importance_estimate, log_weights=whole, returns=returns_of(trajectories))[1]
    np.testing.assert_allclose((probability * terms).sum(), truth, rtol=1e-12)
    arguments = {"log_weights": cumulative, "rewards": trajectories["rewards"], "valid": trajectories["valid"]}
    decided = library.call(per_decision_importance_estimate, **arguments, discount=DISCOUNT)[1]
    np.testing.assert_allclose((probability * decided).sum(), truth, rtol=1e-12)
    undiscounted = library.call(per_decision_importance_estimate, **arguments, discount=1.0)[1]
    np.testing.assert_allclose((probability * undiscounted).sum(), true_return(TARGET, 1.0), rtol=1e-12)
    # The mean weight is 1, at the end and after every step.
    np.testing.assert_allclose((probability * np.exp(whole)).sum(), 1, rtol=1e-12)
    np.testing.assert_allclose((probability * np.exp(cumulative)).sum(axis=1), 1, rtol=1e-12)
    # Cutting loses weight, and the estimate is no longer J(π).
    cut = library.call(ordinary_importance_estimate, log_weights=whole, returns=returns_of(trajectories), limit=2.0)[1]
    assert abs((probability * cut).sum() - truth) > 0.1
    # What per-decision weighting is for.
    assert (probability * decided**2).sum() < (probability * terms**2).sum()


def test_self_normalised_estimates_are_biased_and_consistent(library):
    """In the limit of infinite data each trajectory stands with its probability; for n = 2 all pairs are enumerated."""
    trajectories = all_trajectories()
    probability, (whole, cumulative) = trajectories["probability"], weights_of(trajectories)
    truth, returns = true_return(TARGET), returns_of(trajectories)
    limit = library.call(weighted_importance_estimate, log_weights=whole + np.log(probability), returns=returns)
    np.testing.assert_allclose(limit[0], truth, rtol=1e-12)
    limit = library.call(
        weighted_per_decision_importance_estimate,
        log_weights=cumulative + np.log(probability),
        rewards=trajectories["rewards"],
        valid=trajectories["valid"],
        discount=DISCOUNT,
    )
    np.testing.assert_allclose(limit[0], truth, rtol=1e-12)
    w = np.exp(whole)
    pairs = np.outer(probability, probability)
    expected = (pairs * ((w * returns)[:, None] + (w * returns)[None]) / (w[:, None] + w[None])).sum()
    assert abs(expected - truth) > 0.05
    if library is NUMPY:
        rows = range(0, len(w), 7)
        estimates = np.array([[weighted_importance_estimate(log_weights=whole[[i, j]], returns=returns[[i, j]]).estimate
                               for j in range(len(w))] for i in rows])  # fmt: skip
        by_hand = ((w * returns)[rows, None] + (w * returns)[None]) / (w[rows, None] + w[None])
        np.testing.assert_allclose(estimates, by_hand, rtol=1e-10)


@pytest.mark.parametrize("estimator", ["weighted", "weighted per decision"])
def test_standard_errors_of_ratios(estimator):
    """The spread of the linearised terms is the spread of the estimates over many draws of a sample."""
    trajectories, rng, n = all_trajectories(), np.random.default_rng(0), 400
    whole, cumulative = weights_of(trajectories)
    returns, rewards, valid = returns_of(trajectories), trajectories["rewards"], trajectories["valid"]
    estimates, errors = [], []
    for _ in range(1500):
        i = rng.choice(len(whole), n, p=trajectories["probability"])
        if estimator == "weighted":
            got = weighted_importance_estimate(log_weights=whole[i], returns=returns[i])
        else:
            got = weighted_per_decision_importance_estimate(
                log_weights=cumulative[:, i], rewards=rewards[:, i], valid=valid[:, i], discount=DISCOUNT
            )
        estimates.append(got.estimate)
        errors.append(got.terms.std() / np.sqrt(n))
    np.testing.assert_allclose(np.mean(errors), np.std(estimates), rtol=0.06)


def test_effective_sample_size_by_hand(library):
    got = library.call(weight_diagnostics, log_weights=np.log([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(got, [36 / 14, 2.0, 2 / 3, 3.0], rtol=1e-13)
    poisoned, valid = np.log(np.array([1.0, 1.0, 2.0, 1.0, 3.0])), np.array([True, False, True, False, True])
    poisoned[1], poisoned[3] = np.nan, 900.0
    np.testing.assert_allclose(library.call(weight_diagnostics, log_weights=poisoned, valid=valid), got, rtol=1e-13)
    # Scaling changes nothing, far beyond what a float holds; a weight of zero counts for nothing.
    for shift in (-5000.0, 5000.0):
        scaled = library.call(weight_diagnostics, log_weights=np.log([1.0, 2.0, 3.0]) + shift)
        np.testing.assert_allclose(scaled[0], 36 / 14, rtol=1e-10)
        assert np.isfinite(scaled).all()
    np.testing.assert_allclose(library.call(weight_diagnostics, log_weights=np.array([0.0, -np.inf, 0.0]))[0], 2.0)
    impossible = library.call(weight_diagnostics, log_weights=np.full(3, -np.inf))
    np.testing.assert_array_equal(impossible[1:], 0)  # the mean weight tells, since they are all alike
    assert np.isfinite(impossible[0])
    nothing = library.call(weight_diagnostics, log_weights=np.array([1.0, np.nan]), valid=np.zeros(2, bool))
    np.testing.assert_array_equal(nothing, 0)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 50), spread=st.floats(0, 30))
def test_effective_sample_size_is_bounded(seed, count, spread):
    log_weights = np.random.default_rng(seed).normal(size=count) * spread
    size = float(weight_diagnostics(log_weights=log_weights).effective_sample_size)
    assert 1 - 1e-9 <= size <= count * (1 + 1e-9)
    assert float(weight_diagnostics(log_weights=0 * log_weights).effective_sample_size) == pytest.approx(count)


def test_on_policy_every_estimator_is_the_mean(library):
    rng = np.random.default_rng(4)
    rewards, log_probabilities = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    valid = np.arange(5)[:, None] < rng.integers(1, 6, 7)
    arguments = {"log_probabilities": log_probabilities, "behavior_log_probabilities": log_probabilities, "valid": valid}
    whole, cumulative = library.call(trajectory_log_weights, **arguments), library.call(cumulative_log_weights, **arguments)
    returns = np.where(valid, rewards, 0).sum(axis=0)
    for function in (ordinary_importance_estimate, weighted_importance_estimate):
        got = library.call(function, log_weights=whole, returns=returns)
        np.testing.assert_allclose(got[1], returns, rtol=1e-12)
        np.testing.assert_allclose(got[0], returns.mean(), rtol=1e-12)
    for function in (per_decision_importance_estimate, weighted_per_decision_importance_estimate):
        got = library.call(function, log_weights=cumulative, rewards=rewards, valid=valid, discount=1.0)
        np.testing.assert_allclose(got[1], returns, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(library.call(weight_diagnostics, log_weights=whole), [7, 1, 0, 1], atol=1e-12)


def test_impossible_and_enormous_weights_stay_finite(library):
    """Log π = −∞ twice, and a ratio of e^1000, in float32 where there is one."""
    dtype = np.float64 if library.name == "jax" else np.float32
    log_probabilities = np.array([[-np.inf, 0.0], [-np.inf, 1000.0]], dtype)
    arguments = {"log_probabilities": log_probabilities, "behavior_log_probabilities": np.zeros((2, 2), dtype)}
    whole, cumulative = library.call(trajectory_log_weights, **arguments), library.call(cumulative_log_weights, **arguments)
    returns = np.array([1.0, 2.0], dtype)
    for function, more in (
        (ordinary_importance_estimate, {"log_weights": whole, "returns": returns}),
        (weighted_importance_estimate, {"log_weights": whole, "returns": returns}),
        (per_decision_importance_estimate, {"log_weights": cumulative, "rewards": np.ones((2, 2), dtype), "discount": 1.0}),
        (weighted_per_decision_importance_estimate,
         {"log_weights": cumulative, "rewards": np.ones((2, 2), dtype), "discount": 1.0}),
    ):  # fmt: skip
        assert all(np.isfinite(part).all() for part in library.call(function, **more))
    assert library.call(weighted_importance_estimate, log_weights=whole, returns=returns)[0] == 2.0
    assert np.isfinite(library.call(weight_diagnostics, log_weights=whole)).all()


def loop_per_decision(r, log_ratios, limit):
    out = np.zeros_like(log_ratios)
    for e in range(out.shape[1]):
        product = 1.0
        for t in range(out.shape[0]):
            if not r["valid"][t, e]:
                product = 1.0
                continue
            product *= np.exp(log_ratios[t, e])
            out[t, e] = min(product, limit)
            if r["terminated"][t, e] or r["truncated"][t, e]:
                product = 1.0
    return out


@pytest.mark.parametrize("resets", [True, False])
def test_per_decision_weights_are_the_loop(library, resets):
    r, rng = random_rollout(8, resets=resets), np.random.default_rng(1)
    log_probabilities, behavior = rng.normal(size=r["rewards"].shape), rng.normal(size=r["rewards"].shape)
    expected = loop_per_decision(r, log_probabilities - behavior, 1.7)
    assert (expected == 1.7).any()
    assert ((expected > 0) & (expected < 1)).any()
    log_probabilities[~r["valid"]], behavior[~r["valid"]] = np.nan, np.nan
    flags = {k: r[k] for k in ("terminated", "truncated", "valid")}
    got = library.call(
        per_decision_weights, log_probabilities=log_probabilities, behavior_log_probabilities=behavior, **flags, limit=1.7
    )
    np.testing.assert_allclose(got, expected, rtol=1e-11)


def test_nothing_crosses_a_masked_slot(library):
    ratios, flags = np.log([[2.0], [9.0], [3.0], [0.5]]), np.zeros((4, 1), bool)
    got = library.call(
        per_decision_weights, log_probabilities=ratios, behavior_log_probabilities=0 * ratios, terminated=flags,
        truncated=flags.copy(), valid=np.array([[True], [False], [True], [True]]), limit=10.0,
    )  # fmt: skip
    np.testing.assert_allclose(got[:, 0], [2.0, 0.0, 3.0, 1.5], rtol=1e-14)


def test_wrong_arguments_are_named():
    w = np.zeros(3)
    for limit in (0, -1.0):
        with pytest.raises(ValueError, match="limit must be positive"):
            truncated_weights(log_weights=w, limit=limit)
        with pytest.raises(ValueError, match="limit must be positive"):
            weighted_importance_estimate(log_weights=w, returns=w, limit=limit)
    with pytest.raises(ValueError, match="discount must lie between 0 and 1"):
        per_decision_importance_estimate(log_weights=w[None], rewards=w[None], discount=1.1)
    with pytest.raises(Exception, match="returns"):  # the silent (n,) × (n, 1) broadcast
        ordinary_importance_estimate(log_weights=w, returns=w[:, None])


def test_ratio_by_hand(library):
    got = library.call(importance_ratio, log_probabilities=np.log([0.5, 0.1]), behavior_log_probabilities=np.log([0.25, 0.4]))
    np.testing.assert_allclose(got, [2.0, 0.25], rtol=1e-14)
