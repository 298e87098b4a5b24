"""What another policy's data say of a policy is true, warned of or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import Policy, load_policy
from surefoot.control.recorded.behavior import fit_behavior
from surefoot.control.recorded.likelihood import policy_log_likelihood
from surefoot.control.recorded.load import load_recorded
from surefoot.control.recorded.off_policy_evaluation import Estimator, evaluate_from_data
from surefoot.control.recorded.record import record
from surefoot.errors import UsageError
from tests.control import toys
from tests.control.recorded.recordings import save_balancer, save_policy, without_infos

minari = pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore:.*(is set to None|env_spec is None).*")
ESTIMATORS = Estimator.__args__


@pytest.fixture(scope="module")
def balancing(tmp_path_factory) -> Path:
    """400 episodes of a policy that returns about 33."""
    folder = tmp_path_factory.mktemp("balancing")
    save_balancer(folder / "behavior", 1.0)
    record(folder / "behavior", folder / "data-v0", episodes=400)
    return folder


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_on_policy_data_give_the_plain_mean(tmp_path, env, estimator):
    run = save_policy(tmp_path / "run", env)
    recorded = record(run, tmp_path / "data-v0", episodes=40)
    got = evaluate_from_data(run, tmp_path / "data-v0", estimator=estimator)
    np.testing.assert_allclose(got["estimated_return"], recorded["mean_return"], rtol=1e-5)
    np.testing.assert_allclose(got["standard_error"], recorded["std_return"] / np.sqrt(39), rtol=1e-5)
    np.testing.assert_allclose([got["largest_weight"], got["mean_weight"]], 1, atol=1e-5)
    np.testing.assert_allclose(got["effective_sample_size"], 40, rtol=1e-5)
    assert got["weight_variance"] < 1e-9
    assert got["interval"][0] < got["estimated_return"] < got["interval"][1]
    assert (got["behavior"], got["behavior_held_out_log_likelihood"], got["notices"]) == ("recorded", None, [])
    assert (got["env"], got["episodes"], got["actions_at_bound"]) == (env, 40, 0)
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_another_policy_is_evaluated_right(balancing, tmp_path, estimator):
    """The policy evaluated returns about 56; the data, of another, 33."""
    run = save_balancer(tmp_path / "target", 2.0)
    truth = evaluate(run, episodes=400, seed=5)
    got = evaluate_from_data(run, balancing / "data-v0", estimator=estimator)
    low, high = got["interval"]
    margin = 2 * truth["std_return"] / 20
    assert low - margin < truth["mean_return"] < high + margin
    assert high - low < 30
    # What the data say unweighted is many standard errors off.
    assert got["data_mean_return"] < 35 < truth["mean_return"] - 5 * truth["std_return"] / 20
    assert got["data_mean_return"] < low
    assert 100 < got["effective_sample_size"] < 300
    assert abs(got["mean_weight"] - 1) < 0.2
    assert got["notices"] == []


def test_discount_and_clip(balancing, tmp_path):
    run = save_balancer(tmp_path / "target", 2.0)
    got = evaluate_from_data(run, balancing / "data-v0", discount=0.9)
    assert 8.5 < got["data_mean_return"] < got["estimated_return"] < 10, "at most 1/(1 − γ) = 10"
    plain = evaluate_from_data(run, balancing / "data-v0", estimator="ordinary")
    cut = evaluate_from_data(run, balancing / "data-v0", estimator="ordinary", clip=2.0)
    assert cut["estimated_return"] < plain["estimated_return"]
    assert cut["standard_error"] < plain["standard_error"] / 2
    assert cut["largest_weight"] == plain["largest_weight"] > 2, "of the weights as they were"
    assert any("were cut to 2" in notice for notice in cut["notices"])


def test_a_small_sample_is_warned_of_and_a_collapsed_one_refused(balancing, tmp_path):
    behavior = balancing / "behavior"
    record(behavior, tmp_path / "two-v0", episodes=2)
    with pytest.raises(UsageError, match=r"of 2 episodes only 2\.0 count effectively, and at least 3 must"):
        evaluate_from_data(behavior, tmp_path / "two-v0")
    assert evaluate_from_data(behavior, tmp_path / "two-v0", accept_small_sample=True)["mean_weight"] == pytest.approx(1)
    middling, far = save_balancer(tmp_path / "middling", 3.0), save_balancer(tmp_path / "far", -40.0)
    got = evaluate_from_data(middling, balancing / "data-v0")
    assert 3 < got["effective_sample_size"] < 40
    assert any("count effectively: the interval is likely too narrow" in notice for notice in got["notices"])
    with pytest.raises(UsageError, match=r"cannot tell how good this policy is: .* --accept-small-sample"):
        evaluate_from_data(far, balancing / "data-v0")
    got = evaluate_from_data(far, balancing / "data-v0", accept_small_sample=True)
    assert got["notices"][0].startswith("not to be trusted")
    assert np.isfinite(got["estimated_return"])


def test_data_that_do_not_show_what_the_policy_does_are_refused(tmp_path):
    """Where no episode does what the policy does, all weights are small and alike: the effective sample size is full."""
    left, right = (save_policy(tmp_path / name, toys.ActionReward) for name in ("left", "right"))
    for run, odds in ((left, 5.0), (right, -5.0)):
        policy = load_policy(run)
        parameters = {k: 0 * v for k, v in policy.parameters.items()}
        parameters["layer_1/bias"] = np.array([odds, -odds], np.float32)
        Policy(policy.spaces, "tanh", parameters, None, 10.0, policy.description).save(run)
    record(left, tmp_path / "data-v0", episodes=50, environment="tests.control.toys:ActionReward")
    policy = load_policy(right)
    parameters = dict(policy.parameters) | {"layer_1/bias": np.array([0.5, -0.5], np.float32)}
    Policy(policy.spaces, "tanh", parameters, None, 10.0, policy.description).save(tmp_path / "between")
    between = evaluate_from_data(tmp_path / "between", tmp_path / "data-v0")
    assert not any("the weights average" in notice for notice in between["notices"]), "0.73 is near enough to 1"
    parameters |= {"layer_1/bias": np.array([-0.5, 0.5], np.float32)}
    Policy(policy.spaces, "tanh", parameters, None, 10.0, policy.description).save(tmp_path / "between")
    between = evaluate_from_data(tmp_path / "between", tmp_path / "data-v0")
    assert any("the weights average 0.27" in notice for notice in between["notices"])
    with pytest.raises(UsageError, match=r"the weights average 4\.5e-05 where 1 is expected"):
        evaluate_from_data(right, tmp_path / "data-v0")
    got = evaluate_from_data(right, tmp_path / "data-v0", accept_small_sample=True)
    assert got["effective_sample_size"] == pytest.approx(50)
    assert got["mean_weight"] == pytest.approx(np.exp(-10), rel=1e-4)


def test_an_estimated_behavior_policy_is_said_to_be_one(balancing, tmp_path, monkeypatch):
    (tmp_path / "data-v0").symlink_to(balancing / "data-v0")
    name = without_infos(tmp_path, "expert/bare-v0", monkeypatch)
    data = load_recorded(name)
    assert data.log_probabilities is None
    run = save_balancer(tmp_path / "target", 2.0)
    got, exact = evaluate_from_data(run, name), evaluate_from_data(run, balancing / "data-v0")
    assert (got["behavior"], exact["behavior"]) == ("estimated", "recorded")
    assert any("the behaviour policy is estimated from them" in notice for notice in got["notices"])
    np.testing.assert_allclose(got["estimated_return"], exact["estimated_return"], rtol=0.12)
    # On episodes that it was not fitted to, the estimate makes what was done about as likely as the policy that did it.
    true = load_recorded(balancing / "data-v0").log_probabilities[data.valid].mean()
    assert abs(got["behavior_held_out_log_likelihood"] - true) < 0.03


def true_return_of_clipped_gaussian(mean: float, std: float) -> float:
    """E[−(x − 3)²] of ContinuousTarget, x = clip(4 + 2a, 2, 6), a ~ N(mean, std²): by quadrature."""
    density = lambda a: stats.norm.pdf(a, mean, std) * -((np.clip(4 + 2 * a, 2, 6) - 3) ** 2)  # noqa: E731
    return integrate.quad(density, mean - 9 * std, mean + 9 * std, points=[-1, 1], limit=200)[0]


@pytest.mark.parametrize("raw", [True, False])
def test_box_actions(tmp_path, monkeypatch, raw):
    """One step, actions clipped about a third of the time: exact with the raw actions, and right without them."""
    runs = {}
    for name, mean, log_std in (("behavior", 0.3, 0.0), ("target", -0.1, -0.2)):
        policy = load_policy(save_policy(tmp_path / name, toys.ContinuousTarget))
        parameters = {k: 0 * v for k, v in policy.parameters.items()}
        parameters |= {"layer_1/bias": np.array([mean], np.float32), "log_std": np.array([log_std], np.float32)}
        Policy(policy.spaces, "tanh", parameters, None, 10.0, policy.description).save(tmp_path / name)
        runs[name] = true_return_of_clipped_gaussian(mean, np.exp(log_std))
    record(tmp_path / "behavior", tmp_path / "data-v0", episodes=700, environment="tests.control.toys:ContinuousTarget")
    file = tmp_path / "data-v0"
    if not raw:
        file = without_infos(tmp_path, "bare-v0", monkeypatch, keep=("log_probability",))
    got = evaluate_from_data(tmp_path / "target", file)
    error = got["standard_error"]
    assert abs(got["estimated_return"] - runs["target"]) < 3 * error
    assert abs(got["data_mean_return"] - runs["behavior"]) < 0.25
    assert abs(got["data_mean_return"] - runs["target"]) > 5 * error
    data = load_recorded(file, load_policy(tmp_path / "target").spaces)
    if raw:
        assert np.abs(data.actions).max() > 2, "unclipped"
        assert (got["actions_at_bound"], got["notices"], got["behavior"]) == (0, [], "recorded")
    else:
        share = stats.norm.sf(1, 0.3, 1) + stats.norm.cdf(-1, 0.3, 1)
        assert abs(got["actions_at_bound"] / 700 - share) < 0.05
        assert np.abs(data.actions).max() == 1
        assert got["behavior"] == "estimated", "the log-probability is of an action that is not there"
        assert any("no policy_action" in notice for notice in got["notices"])
        assert any("lie at a bound" in notice for notice in got["notices"])
        parameters = fit_behavior(data, load_policy(tmp_path / "target").spaces).policy.parameters
        # The fit sees through the clipping: the clipped actions' own deviation is 0.76.
        assert abs(np.exp(parameters["log_std"][0]) - 1) < 0.1


def test_clipped_actions_have_a_probability(tmp_path):
    """Density inside plus probability at both bounds is 1."""
    policy = load_policy(save_policy(tmp_path / "run", toys.ContinuousTarget, log_std=0.2))
    observations = np.array([0.7], np.float32)

    def score(action, at_bound):
        columns = {"actions": np.full((1, 1), action), "at_bound": np.full((1, 1), at_bound)}
        return float(np.exp(policy_log_likelihood(policy, observations=observations[None], **columns))[0])

    inside = integrate.quad(lambda a: score(a, 0), -1, 1)[0]
    assert inside < 0.9
    assert inside + score(-1.0, -1) + score(1.0, 1) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"estimator": "best"},
            "there is no --estimator best; there are weighted-per-decision, per-decision, weighted, ordinary",
        ),
        ({"discount": 1.5}, "--discount must lie between 0 and 1"),
        ({"clip": 0.0}, "--clip must be positive"),
        ({"confidence": 95.0}, "--confidence must lie between 0 and 1"),
        ({"seed": -1}, "--seed must lie between"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(UsageError, match=match):
        evaluate_from_data("nowhere", "nothing", **options)
