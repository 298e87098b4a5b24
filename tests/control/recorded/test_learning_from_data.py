"""Learning from another policy's data: weights against enumeration, and a policy that gets better than its data."""

from __future__ import annotations

import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surefoot.cli import main
from surefoot.control.algorithms import configuration_for
from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import action_distribution, load_policy
from surefoot.control.recorded.likelihood import recorded_log_likelihood
from surefoot.control.recorded.load import load_recorded
from surefoot.control.recorded.record import record
from surefoot.control.rollout import Rollout
from surefoot.control.training import train
from surefoot.control.update.estimation import values_of
from surefoot.control.update.whole import begin_update, whole_update
from surefoot.errors import UsageError
from surefoot.runs.metrics import read_metrics
from tests.control.helpers import DISCRETE, beginning, configure, random_rollout
from tests.control.recorded.recordings import save_balancer, without_infos

LENGTH = 3


def from_data(algorithm="a2c", **options):
    return configure(algorithm, from_data="x", normalize_rewards=False, advantage_normalization="none", **options)


def scored(configuration, rollout, learner):
    """The rollout as if the learner's own policy had acted."""
    seen = np.clip(np.asarray(rollout.observations[:-1]), -10, 10)
    policy = action_distribution(DISCRETE, learner.actor.parameters, seen, activation="tanh")
    return rollout._replace(behavior_log_probabilities=policy.log_probability(rollout.actions))


@pytest.mark.parametrize(("weight", "options"), [("reward-to-go", {}), ("gae", {"trace_decay": 0.8}), ("td-residual", {})])
def test_on_policy_the_correction_is_none(weight, options):
    configuration = from_data(weight=weight, importance_limit=5.0, **options)
    learner = jax.tree.map(jnp.asarray, beginning(configuration, DISCRETE))
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, DISCRETE))
    _, _, plain, _, _ = begin_update(configuration, DISCRETE, learner, rollout)
    _, _, corrected, _, metrics = begin_update(configuration, DISCRETE, learner, scored(configuration, rollout, learner))
    np.testing.assert_allclose(corrected.weights, plain.weights, atol=1e-5)
    np.testing.assert_allclose(metrics["importance/effective_sample_share"], 1, atol=1e-4)
    np.testing.assert_allclose(metrics["importance/mean_weight"], 1, atol=1e-5)


def every_trajectory(configuration):
    """All 2³ sequences of two actions; the observation is the time and the action before, the reward depends on both."""
    sequences = np.asarray(list(itertools.product((0, 1), repeat=LENGTH)), np.int32).T
    count = sequences.shape[1]
    observations = np.zeros((LENGTH + 1, count, 3), np.float32)
    observations[:, :, 0] = np.arange(LENGTH + 1)[:, None] / LENGTH
    observations[1:, :, 1 + 0] = sequences == 0
    observations[1:, :, 1 + 1] = sequences == 1
    rewards = (np.sin(1 + 2 * sequences) + np.cumsum(sequences, axis=0) * np.arange(1, LENGTH + 1)[:, None]).astype(np.float32)
    ends = np.zeros((LENGTH, count), bool)
    ends[-1] = True
    learner = beginning(configuration, DISCRETE)
    generator = np.random.default_rng(0)
    policies = [
        {k: v + s * generator.standard_normal(v.shape).astype(np.float32) for k, v in learner.actor.parameters.items()}
        for s in (0.5, 0.5)
    ]
    scores = [
        np.asarray(
            action_distribution(DISCRETE, p, observations[:-1], activation="tanh").log_probability(sequences), np.float64
        )
        for p in policies
    ]
    rollout = Rollout(
        observations, sequences, rewards, ends, np.zeros_like(ends), np.ones_like(ends),
        behavior_log_probabilities=scores[1].astype(np.float32),
    )  # fmt: skip
    learner = learner._replace(actor=learner.actor._replace(parameters=policies[0]))
    return jax.tree.map(jnp.asarray, learner), jax.tree.map(jnp.asarray, rollout), *(np.exp(s.sum(axis=0)) for s in scores)


@pytest.mark.parametrize(
    ("weight", "normalization"), [("reward-to-go", "none"), ("baseline", "none"), ("reward-to-go", "batch")]
)
def test_the_gradient_is_that_of_the_policy_and_not_of_the_data(weight, normalization):
    """Σ_τ μ(τ) g(τ) with corrected ψ = Σ_τ π(τ) g(τ) with plain ψ, over all trajectories, where nothing is cut.

    Standardised over the batch, the two are parallel: the shift is a baseline, weighted as ψ is.
    """
    options = {"weight": weight, "normalize_observations": True, "discount": 0.9, "num_envs": 8, "rollout_length": LENGTH}
    configuration = from_data(importance_limit=1e6, **options)
    corrector = configure("a2c", from_data="x", normalize_rewards=False, importance_limit=1e6,
                          advantage_normalization=normalization, **options)  # fmt: skip
    learner, rollout, of_policy, of_data = every_trajectory(configuration)
    np.testing.assert_allclose([of_policy.sum(), of_data.sum()], 1, rtol=1e-5)
    assert np.abs(of_policy - of_data).max() > 0.02

    def gradient(rollout, probabilities, configuration=configuration):
        _, _, samples, _, _ = begin_update(configuration, DISCRETE, learner, rollout)
        weights = samples.weights * jnp.tile(jnp.asarray(probabilities, jnp.float32), LENGTH)

        def objective(parameters):
            policy = action_distribution(DISCRETE, parameters, samples.observations, activation="tanh")
            return jnp.sum(weights * policy.log_probability(samples.actions))

        return jax.grad(objective)(learner.actor.parameters)

    corrected = gradient(rollout, of_data, corrector)
    truth = gradient(rollout._replace(behavior_log_probabilities=None), of_policy)
    naive = gradient(rollout._replace(behavior_log_probabilities=None), of_data)
    scale = 1.0
    if normalization == "batch":
        scale = float(optax.tree.vdot(corrected, truth) / optax.tree.vdot(truth, truth))
        assert scale > 0.1
    for name, value in truth.items():
        np.testing.assert_allclose(corrected[name], scale * value, atol=2e-5)
    assert max(float(jnp.abs(naive[name] - value).max()) for name, value in truth.items()) > 0.05


def test_a_baseline_stands_for_what_a_truncation_cut_off():
    """ψ of the last row is w (r + γ V(s′) − V(s)) where the episode was cut, and w (r − V(s)) where it ended."""
    configuration = from_data("reinforce", weight="baseline", importance_limit=1e6, num_envs=8, rollout_length=LENGTH)
    learner, rollout, *_ = every_trajectory(configuration)
    learner = learner._replace(critic=jax.tree.map(jnp.asarray, beginning(configuration, DISCRETE)).critic)
    cut = rollout._replace(terminated=rollout.truncated, truncated=rollout.terminated)
    _, data, ended, _, _ = begin_update(configuration, DISCRETE, learner, rollout)
    _, _, stopped, _, _ = begin_update(configuration, DISCRETE, learner, cut)
    values = values_of(configuration, learner.critic.parameters["v"], data.observations)
    weights = np.exp(np.asarray(data.log_probabilities - rollout.behavior_log_probabilities).sum(axis=0))
    gap = np.asarray(stopped.weights - ended.weights).reshape(LENGTH, 8)
    np.testing.assert_allclose(gap[-1], weights * configuration.weight.discount * np.asarray(values[-1]), rtol=1e-3, atol=1e-5)


def test_the_limit_cuts():
    learner, rollout, *_ = every_trajectory(from_data(num_envs=8, rollout_length=LENGTH))
    after = []
    for limit in (1e6, 1.0, 0.5):
        for weight in ("reward-to-go", "gae"):
            configuration = from_data(importance_limit=limit, weight=weight, num_envs=8, rollout_length=LENGTH)
            fresh = jax.tree.map(jnp.asarray, beginning(configuration, DISCRETE))._replace(actor=learner.actor)
            program = jax.jit(partial(begin_update, configuration, DISCRETE))
            after.append(np.asarray(program(fresh, rollout)[2].weights))
    assert not np.allclose(after[0], after[2])
    assert not np.allclose(after[2], after[4])
    assert not np.allclose(after[1], after[3])
    assert not np.allclose(after[3], after[5])


@pytest.fixture(scope="module")
def mediocre(tmp_path_factory):
    """150 episodes of a policy that balances badly."""
    folder = tmp_path_factory.mktemp("mediocre")
    save_balancer(folder / "run", gain=6.0)
    record(folder / "run", folder / "data-v0", episodes=150)
    return folder / "data-v0", evaluate(folder / "run", episodes=100)["mean_return"]


def test_a2c_gets_better_than_its_data(mediocre, tmp_path):
    data, before = mediocre
    out = tmp_path / "run"
    configuration = configuration_for("a2c", "recorded", from_data=str(data), total_steps=3_000_000, out=str(out))
    result = train(configuration, quiet=True)
    assert result["env"] == "CartPole-v1"
    assert not result["interrupted"]
    after = evaluate(out, episodes=50)["mean_return"]
    assert after > 1.5 * before
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[0]["importance/effective_sample_share"] > 0.9, "it starts where the data are"
    settings = json.loads((out / "config.json").read_text())
    assert settings["from_data"] == str(data)
    assert settings["num_envs"] == settings["episodes_per_update"] == 64 < 150


def test_training_ends_where_the_data_fall_silent(mediocre, tmp_path):
    options = {
        "from_data": str(mediocre[0]),
        "learning_rate": 3e-2,
        "smallest_effective_share": 0.5,
        "out": str(tmp_path / "r"),
    }
    result = train(configuration_for("reinforce", "recorded", **options), quiet=True)
    rows = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert rows[-1]["importance/effective_sample_share"] < 0.5
    assert rows[-1]["steps"] == rows[-2]["steps"] == result["total_steps"], "nothing was learnt from the last sample"
    # What is kept is the last policy that its sample spoke of: rescored here over all the data, by another road.
    data, policy = load_recorded(mediocre[0]), load_policy(tmp_path / "r")
    log_weights = ((recorded_log_likelihood(policy, data) - data.log_probabilities) * data.valid).sum(axis=0)
    weights = np.exp(log_weights - log_weights.max())
    assert weights.sum() ** 2 / (weights**2).sum() / data.episodes >= 0.4
    assert all(row["importance/effective_sample_share"] >= 0.5 for row in rows[:-1])
    assert not result["interrupted"]
    assert "below --smallest-effective-share" in result["ended_early"]
    assert result["mean_return"] is None


def test_episodes_without_rewards_teach_nothing_and_break_nothing():
    """Every ψ is 0: scaling them to a standard deviation of 1 must not divide by it."""
    for weight in ("reward-to-go", "gae"):
        configuration = configure(
            "a2c", from_data="x", weight=weight, advantage_normalization="batch", num_envs=8, rollout_length=LENGTH
        )
        learner, rollout, *_ = every_trajectory(configuration)
        silent = rollout._replace(rewards=0 * rollout.rewards)
        fresh = jax.tree.map(jnp.asarray, beginning(configuration, DISCRETE))._replace(actor=learner.actor)
        *_, finite = whole_update(configuration, DISCRETE, fresh, silent, jax.tree.map(jnp.float32, _plan(configuration)))
        assert bool(finite)


@pytest.mark.filterwarnings("ignore")
def test_data_without_probabilities_get_a_fitted_policy_and_say_so(mediocre, tmp_path, capfd, monkeypatch):
    bare = without_infos(mediocre[0].parent, "bare-v0", monkeypatch)
    command = f"train reinforce --from-data {bare} --total-steps 100000 --out {tmp_path / 'run'}"
    assert main(command.split()) == 2
    assert "does not say which environment it is of; give --env" in capfd.readouterr().err
    assert main([*command.split(), "--env", "CartPole-v1"]) == 0
    errors = capfd.readouterr().err
    assert "the data do not say how likely their actions were" in errors
    assert "preset for recorded data" in errors
    assert "learnt from recorded data" in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": "n-step"}, "corrects the weights reward-to-go, baseline, td-residual and gae"),
        ({"seeds": 2}, "trains one seed"),
        ({"normalize_observations": False}, "leave that on"),
        ({"importance_limit": 0.0}, "--importance-limit must be positive"),
        ({"smallest_effective_share": 2.0}, "--smallest-effective-share must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        configuration_for("a2c", "recorded", from_data="x", **options)


def test_another_environment_is_refused(mediocre):
    with pytest.raises(UsageError, match="is of CartPole-v1, but --env says Acrobot-v1"):
        train(configuration_for("a2c", "Acrobot-v1", from_data=str(mediocre[0])), quiet=True)


def test_whole_update_runs_on_data():
    """The corrected samples go through the same update: finite, and the critic moves."""
    configuration = from_data(num_envs=8, rollout_length=LENGTH)
    learner, rollout, *_ = every_trajectory(configuration)
    after, _, finite = whole_update(configuration, DISCRETE, learner, rollout, jax.tree.map(jnp.float32, _plan(configuration)))
    assert bool(finite)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.critic.parameters, learner.critic.parameters)
    assert any(jax.tree.leaves(moved))


def _plan(configuration):
    from surefoot.control.update.state import schedule_at

    return schedule_at(configuration, 0)
