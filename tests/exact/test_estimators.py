"""Means and variances of the estimators against a loop over trajectories, and what the theorem says of them."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.equations.weights import WEIGHTS
from surefoot.errors import UsageError
from surefoot.exact.enumerable import customary_direction, evaluate_policy, initial_logits, policy_gradient
from surefoot.exact.estimators import (
    Estimator,
    estimator_moments,
    exact_critic,
    look_ahead,
    trajectories_of,
    wrong_critic,
)
from surefoot.exact.problems import make_problem
from tests.exact import brute_force

ENUMERATED = [("chain", 7), ("two-paths", 7), ("cliff", 6), ("random-0", 5), ("random-7", 5)]


class Case:
    def __init__(self, name, horizon=None, discount=0.9, seed=0):
        self.problem = make_problem(name, horizon=horizon, discount=discount)
        self.logits = initial_logits(self.problem, seed=seed)
        self.evaluation = evaluate_policy(self.problem, self.logits)
        self.gradient = policy_gradient(self.problem, self.evaluation)
        self.trajectories = trajectories_of(self.problem, self.evaluation, samples=20_000, seed=seed)
        self.wrong = wrong_critic(self.problem, self.evaluation, error=0.5, seed=seed)

    def moments(self, weight, keep=True, critic=None, trace_decay=0.95, steps=2):
        estimator = Estimator(weight, keep, trace_decay=trace_decay, steps=steps)
        return estimator_moments(self.problem, self.evaluation, estimator, self.trajectories, critic=critic)


@pytest.mark.parametrize("critic", ["exact", "wrong"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("name", "horizon"), [("two-paths", 6), ("random-2", 3), ("chain", 4)])
def test_moments_are_those_of_a_loop(name, horizon, weight, keep, critic):
    case = Case(name, horizon, discount=0.8)
    values = exact_critic(case.evaluation) if critic == "exact" else case.wrong
    implied = np.zeros((horizon, *case.problem.reward.shape))
    for t, s, a in np.ndindex(implied.shape):
        following = [
            0.0 if case.problem.terminal[x] or t == horizon - 1 else values[t + 1, x] for x in range(case.problem.states)
        ]
        implied[t, s, a] = case.problem.reward[s, a] + 0.8 * float(np.dot(case.problem.transition[s, a], following))
    mean, variances = brute_force.gradient_moments(
        case.problem, case.logits, weight, values, implied, keep=keep, trace_decay=0.7, steps=3
    )
    got = case.moments(weight, keep, values, trace_decay=0.7, steps=3)
    assert got.complete
    np.testing.assert_allclose(got.mean, mean, atol=1e-12)
    np.testing.assert_allclose(got.variances, variances, atol=1e-12)
    assert got.standard_error == 0


def test_looking_ahead_from_the_true_values_gives_the_true_action_values():
    case = Case("random-4")
    acting = ~case.problem.terminal
    implied = look_ahead(case.problem, exact_critic(case.evaluation))
    np.testing.assert_allclose(implied[:, acting], case.evaluation.action_values[:, acting], atol=1e-13)


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize(("name", "horizon"), ENUMERATED)
def test_every_weight_has_the_gradient_for_its_mean(name, horizon, discount):
    case = Case(name, horizon, discount)
    for weight in WEIGHTS:
        assert case.moments(weight).bias(case.gradient) < 1e-9, weight
        assert case.moments(weight).cosine(case.gradient) > 1 - 1e-12
    for steps in (1, 3, 50):
        assert case.moments("n-step", steps=steps).bias(case.gradient) < 1e-9
    for trace_decay in (0.0, 0.3, 1.0):
        assert case.moments("gae", trace_decay=trace_decay).bias(case.gradient) < 1e-9


@pytest.mark.parametrize(("name", "horizon"), ENUMERATED)
def test_without_the_discount_factor_the_mean_is_the_customary_direction(name, horizon):
    case = Case(name, horizon)
    customary = customary_direction(case.problem, case.evaluation)
    for weight in WEIGHTS:
        got = case.moments(weight, keep=False)
        if weight == "total-return":  # discounted from time 0: the gradient as it is
            assert got.bias(case.gradient) < 1e-9
        else:
            assert got.bias(customary) < 1e-9
            assert got.bias(case.gradient) > 0.02
    undiscounted = Case(name, horizon, discount=1.0)
    for weight in WEIGHTS:
        assert undiscounted.moments(weight, keep=False).bias(undiscounted.gradient) < 1e-9


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize(("name", "horizon"), ENUMERATED)
def test_a_wrong_critic_biases_what_leans_on_it(name, horizon, discount):
    case = Case(name, horizon, discount)
    for weight in ("total-return", "reward-to-go", "baseline"):
        assert case.moments(weight, critic=case.wrong).bias(case.gradient) < 1e-9
    for weight in ("q-value", "advantage", "td-residual", "n-step", "gae"):
        assert case.moments(weight, critic=case.wrong).bias(case.gradient) > 1e-3, weight
    # λ = 1 and n = H lean on V only as a baseline.
    assert case.moments("gae", critic=case.wrong, trace_decay=1.0).bias(case.gradient) < 1e-9
    assert case.moments("n-step", critic=case.wrong, steps=horizon).bias(case.gradient) < 1e-9
    # The residual averages over s′ what the look-ahead averages in advance; V itself is a baseline to Q.
    advantage = case.moments("advantage", critic=case.wrong)
    np.testing.assert_allclose(case.moments("td-residual", critic=case.wrong).mean, advantage.mean, atol=1e-12)
    np.testing.assert_allclose(case.moments("q-value", critic=case.wrong).mean, advantage.mean, atol=1e-12)


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize(("name", "horizon"), ENUMERATED)
def test_variances_fall_as_the_article_says(name, horizon, discount):
    """On these problems. For one step's term the law of total variance proves it; a sum over time has covariances too."""
    case = Case(name, horizon, discount)
    variance = {weight: case.moments(weight).variance for weight in WEIGHTS}
    assert variance["total-return"] > variance["reward-to-go"] > variance["q-value"] > variance["advantage"]
    assert variance["baseline"] > variance["n-step"] > variance["td-residual"]
    if name == "cliff":  # nothing is random in it but the policy
        assert variance["td-residual"] == pytest.approx(variance["advantage"], rel=1e-9)
    else:
        # On two-paths with γ = 1 the residual's steps covary less than the advantage's: 0.01 % below it.
        assert variance["td-residual"] > 0.999 * variance["advantage"]
    swept = [case.moments("gae", trace_decay=x).variance for x in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert swept == sorted(swept)
    assert swept[0] == pytest.approx(variance["td-residual"], rel=1e-12)
    assert swept[-1] == pytest.approx(variance["baseline"], rel=1e-12)


def test_the_true_values_are_not_always_a_good_baseline():
    case = Case("random-7", 6)
    assert case.moments("baseline").variance > case.moments("reward-to-go").variance


@pytest.mark.parametrize("name", ["chain", "random-0"])
def test_trace_decay_trades_bias_for_variance_where_the_critic_is_wrong(name):
    case = Case(name)
    swept = [case.moments("gae", critic=case.wrong, trace_decay=x) for x in (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)]
    biases, variances = [m.bias(case.gradient) for m in swept], [m.variance for m in swept]
    assert biases == sorted(biases, reverse=True)
    assert variances == sorted(variances)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_samples_agree_with_the_enumeration_within_their_error(weight):
    case = Case("random-0", 5)
    sampled = trajectories_of(case.problem, case.evaluation, samples=20_000, seed=3, limit=100)
    assert (sampled.method, case.trajectories.method) == ("monte-carlo", "enumeration")
    estimator = Estimator(weight, trace_decay=0.9, steps=2)
    exact = estimator_moments(case.problem, case.evaluation, estimator, case.trajectories)
    guess = estimator_moments(case.problem, case.evaluation, estimator, sampled)
    assert 0 < np.linalg.norm(guess.mean - exact.mean) < 3 * guess.standard_error
    assert guess.standard_error == pytest.approx(np.sqrt(exact.variance / 20_000), rel=0.1)
    assert abs(guess.variance - exact.variance) < 5 * guess.variance_standard_error < exact.variance


def test_sample_moments_are_those_of_a_loop():
    case = Case("random-0", 4)
    sampled = trajectories_of(case.problem, case.evaluation, samples=9, seed=3, limit=1)
    policy, estimates = brute_force.softmax(case.logits), []
    for states, actions, following, valid in zip(*(field.T for field in sampled.trajectories[:4]), strict=True):
        length = int(valid.sum())
        rewards = [float(case.problem.reward[s, a]) for s, a in zip(states[:length], actions[:length], strict=True)]
        path = brute_force.Path(1.0, [*states[:length].tolist(), following[length - 1]], actions[:length].tolist(), rewards)
        estimates.append(
            brute_force.gradient_estimate(
                case.problem,
                policy,
                path,
                "gae",
                case.wrong,
                case.evaluation.action_values,
                keep=True,
                trace_decay=0.7,
                steps=1,
            )
        )
    got = estimator_moments(case.problem, case.evaluation, Estimator("gae", trace_decay=0.7), sampled, critic=case.wrong)
    mean = np.mean(estimates, axis=0)
    np.testing.assert_allclose(got.mean, mean, atol=1e-13)
    np.testing.assert_allclose(got.variances, np.var(estimates, axis=0, ddof=1), atol=1e-13)
    assert got.standard_error == pytest.approx(np.sqrt(np.var(estimates, axis=0, ddof=1).sum() / 9))
    distances = ((np.array(estimates) - mean) ** 2).sum((1, 2))
    assert got.variance_standard_error == pytest.approx(distances.std() / 3)


def test_standard_errors_are_the_spread_over_samples():
    case = Case("chain", 4)
    estimator = Estimator("reward-to-go")
    runs = [
        estimator_moments(
            case.problem,
            case.evaluation,
            estimator,
            trajectories_of(case.problem, case.evaluation, samples=500, seed=seed, limit=1),
        )
        for seed in range(300)
    ]
    exact = estimator_moments(case.problem, case.evaluation, estimator, case.trajectories)
    spread = np.array([run.variance for run in runs]).std()
    assert np.mean([run.variance_standard_error for run in runs]) == pytest.approx(spread, rel=0.15)
    errors = np.array([np.linalg.norm(run.mean - exact.mean) ** 2 for run in runs])
    assert np.sqrt(errors.mean()) == pytest.approx(np.mean([run.standard_error for run in runs]), rel=0.1)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_nothing_is_read_beyond_the_end(weight):
    case = Case("two-paths", 5)
    poisoned = case.wrong.copy()
    poisoned[:, case.problem.terminal] = poisoned[-1] = 1e6
    clean, got = case.moments(weight, critic=case.wrong), case.moments(weight, critic=poisoned)
    np.testing.assert_array_equal(got.mean, clean.mean)


def test_the_wrong_critic_is_wrong_as_documented():
    case = Case("random-0")
    error = wrong_critic(case.problem, case.evaluation, error=0.5, seed=4) - case.evaluation.values
    acting = ~case.problem.terminal
    np.testing.assert_allclose(error[:-1], np.broadcast_to(error[0], error[:-1].shape), atol=1e-15)
    assert not error[-1].any()
    assert not error[:, ~acting].any()
    assert (error[0, acting] != 0).all()
    half = wrong_critic(case.problem, case.evaluation, error=0.25, seed=4) - case.evaluation.values
    np.testing.assert_allclose(2 * half, error, atol=1e-14)
    many = [wrong_critic(case.problem, case.evaluation, error=0.5, seed=s)[0] - case.evaluation.values[0] for s in range(500)]
    assert np.std(np.array(many)[:, acting]) == pytest.approx(0.5 * np.abs(case.evaluation.values).max(), rel=0.05)


def test_chunks_change_nothing(monkeypatch):
    case = Case("random-0", 5)
    whole = case.moments("gae", critic=case.wrong)
    monkeypatch.setattr("surefoot.exact.estimators.CHUNK", 100)
    parts = case.moments("gae", critic=case.wrong)
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-13)
    np.testing.assert_allclose(parts.variances, whole.variances, rtol=1e-10)


def test_a_policy_that_rules_actions_out_is_no_trouble():
    problem = make_problem("chain", horizon=4)
    evaluation = evaluate_policy(problem, np.array([[-2000.0, 2000.0]] * 7))
    moments = estimator_moments(
        problem, evaluation, Estimator("reward-to-go"), trajectories_of(problem, evaluation, samples=2, seed=0)
    )
    assert np.isfinite(moments.mean).all()
    assert np.isnan(moments.bias(np.zeros_like(moments.mean)))


def test_wrong_input_is_named():
    with pytest.raises(UsageError, match="there is no weight 'best'; there are total-return"):
        Estimator("best")
    with pytest.raises(UsageError, match=r"λ must lie between 0 and 1, but is 1\.5"):
        Estimator("gae", trace_decay=1.5)
    with pytest.raises(UsageError, match="must be at least 1, but are 0"):
        Estimator("n-step", steps=0)
    case = Case("chain", 4)
    with pytest.raises(UsageError, match=r"a critic here has the shape \(5, 7\)"):
        case.moments("gae", critic=np.zeros((4, 7)))
