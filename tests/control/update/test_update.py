"""The update: what must hold in every one of them, and that every option has its effect."""

from __future__ import annotations

import functools
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surefoot.control.algorithms import ALGORITHMS
from surefoot.control.configuration import RecordedConfiguration, RunConfiguration
from surefoot.control.policies.normalization import RunningStatistics
from surefoot.control.policies.policy import action_distribution
from surefoot.control.update.descent import improve_actor, improve_critic
from surefoot.control.update.estimation import estimate, prepare, values_of
from surefoot.control.update.objectives import actor_loss, critic_loss
from surefoot.control.update.state import initialize, schedule_at
from surefoot.equations import WEIGHTS
from tests.control.helpers import BOX, DISCRETE, MULTIBINARY, MULTIDISCRETE, configure, leaves, random_rollout, same, update

SCHEDULE = schedule_at(configure(), 0)
SPACES = {"discrete": DISCRETE, "box": BOX, "multidiscrete": MULTIDISCRETE, "multibinary": MULTIBINARY}


def ready(spaces, **options):
    configuration = configure(**options)
    learner = initialize(configuration, spaces, 0)
    # Statistics as after some training, so that normalisation does something.
    learner = learner._replace(
        observations=RunningStatistics(
            *(np.full(3, n, np.float32) for n in (0.3, 2.0)), np.float32(100), np.zeros(3, np.float32)
        ),
        rewards=RunningStatistics(np.float32(0.1), np.float32(4.0), np.float32(100)),
    )
    return configuration, jax.tree.map(jnp.asarray, learner), jax.tree.map(jnp.asarray, random_rollout(configuration, spaces))


@pytest.mark.parametrize("kind", SPACES)
def test_ratio_is_one_on_the_first_minibatch(kind):
    spaces = SPACES[kind]
    configuration, learner, rollout = ready(spaces)
    _, data, order = jax.jit(partial(prepare, configuration, spaces))(learner, rollout)
    samples, _ = estimate(configuration, spaces, learner.critic.parameters, data)
    batch = jax.tree.map(lambda x: x[order[0][0]], samples)
    _, metrics = actor_loss(configuration, spaces, learner.actor.parameters, batch, SCHEDULE)
    assert float(metrics["policy/approximate_kl"]) < 1e-10
    assert float(metrics["policy/clip_fraction"]) == 0
    # An independent road to log π: Gymnasium's action under the network, evaluated with NumPy in float64.
    wide = {k: np.asarray(v, np.float64) for k, v in learner.actor.parameters.items()}
    seen = np.asarray(rollout.observations[:-1], np.float64) / np.sqrt(2.0)  # a rollout's are less their mean already
    direct = action_distribution(spaces, wide, seen, activation="tanh").log_probability(np.asarray(rollout.actions))
    np.testing.assert_allclose(data.log_probabilities, direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SPACES)
def test_first_step_is_the_policy_gradient(kind):
    """One epoch, one minibatch, no normalisation: the actor's gradient is −∇ mean A log π, by another road."""
    spaces = SPACES[kind]
    configuration, learner, rollout = ready(spaces, epochs=1, minibatch_size=64, advantage_normalization="none")
    _, data, _ = prepare(configuration, spaces, learner, rollout)
    samples, _ = estimate(configuration, spaces, learner.critic.parameters, data)
    gradient = jax.grad(lambda p: actor_loss(configuration, spaces, p, samples, SCHEDULE)[0])(learner.actor.parameters)

    def plain(parameters):
        policy = action_distribution(spaces, parameters, samples.observations, activation="tanh")
        weights = jnp.where(samples.valid, samples.weights, 0)
        return -jnp.sum(weights * policy.log_probability(samples.actions)) / samples.valid.sum()

    for name, value in jax.grad(plain)(learner.actor.parameters).items():
        np.testing.assert_allclose(gradient[name], value, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("weight", ["gae", "total-return", "q-value"])
def test_masked_slots_reach_nothing(algorithm, weight):
    configuration, learner, rollout = ready(DISCRETE, algorithm=algorithm, weight=weight)
    clean, metrics = update(configuration, DISCRETE, learner, rollout)
    invalid = ~rollout.valid
    assert invalid.any()
    actions, rewards = np.array(rollout.actions), np.array(rollout.rewards)
    actions[invalid] = 1 - actions[invalid]
    rewards[invalid] = np.nan
    poisoned, poisoned_metrics = update(configuration, DISCRETE, learner, rollout._replace(actions=actions, rewards=rewards))
    assert same(clean, poisoned)
    assert same(metrics, poisoned_metrics)


def test_statistics_take_in_what_the_policy_saw():
    """The rows that it acted on, resets left out; and the rewards' scale is that of the discounted returns, this rollout included."""
    configuration = configure(discount=0.9)
    learner = jax.tree.map(jnp.asarray, initialize(configuration, DISCRETE, 0))
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, DISCRETE))
    after, data, _ = prepare(configuration, DISCRETE, learner, rollout)
    valid = np.asarray(rollout.valid)
    seen = np.asarray(rollout.observations, np.float64)[:-1][valid]
    np.testing.assert_allclose(after.observations.mean, seen.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(after.observations.variance, seen.var(axis=0), rtol=1e-4)
    totals, running = [], np.zeros(valid.shape[1])
    ended = np.asarray(rollout.terminated | rollout.truncated)
    for t in range(len(valid)):
        running = np.where(valid[t], 0.9 * running + np.asarray(rollout.rewards[t]), running)
        totals += running[valid[t]].tolist()
        running = np.where(ended[t], 0, running)
    np.testing.assert_allclose(np.asarray(data.rewards)[valid], np.asarray(rollout.rewards)[valid] / np.std(totals), rtol=1e-4)
    np.testing.assert_allclose(after.returns, running, atol=1e-5)


def test_valid_slots_count_alone():
    """The mean over a minibatch with masked samples is that over the others: the denominator is their number."""
    configuration, learner, rollout = ready(DISCRETE, advantage_normalization="none")
    _, data, _ = prepare(configuration, DISCRETE, learner, rollout)
    samples, _ = estimate(configuration, DISCRETE, learner.critic.parameters, data)
    kept = np.flatnonzero(np.asarray(samples.valid))
    fewer = jax.tree.map(lambda x: x[kept], samples)
    for loss in (
        lambda s: actor_loss(configuration, DISCRETE, learner.actor.parameters, s, SCHEDULE)[0],
        lambda s: critic_loss(configuration, DISCRETE, learner.critic.parameters, s)[0],
    ):
        np.testing.assert_allclose(loss(samples), loss(fewer), rtol=1e-5)


def test_advantages_are_those_of_a_loop():
    """Through normalisation and reshaping: the samples' advantages, recomputed in float64 from the rollout by hand."""
    configuration, learner, rollout = ready(
        DISCRETE, normalize_rewards=False, advantage_normalization="none", discount=0.9, trace_decay=0.8
    )
    _, data, _ = prepare(configuration, DISCRETE, learner, rollout)
    samples, metrics = estimate(configuration, DISCRETE, learner.critic.parameters, data)
    values = np.asarray(values_of(configuration, learner.critic.parameters["v"], data.observations), np.float64)
    steps, envs = rollout.rewards.shape
    expected, following = np.zeros((steps, envs)), np.zeros(envs)
    for t in reversed(range(steps)):
        delta = rollout.rewards[t] + 0.9 * np.where(rollout.terminated[t], 0, values[t + 1]) - values[t]
        goes_on = ~(rollout.terminated[t] | rollout.truncated[t])
        following = np.where(rollout.valid[t], delta + 0.9 * 0.8 * goes_on * following, 0)
        expected[t] = following
    got = np.asarray(samples.weights).reshape(steps, envs)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    valid, targets = rollout.valid, (expected + values[:-1])
    explained = 1 - expected[valid].var() / targets[valid].var()
    np.testing.assert_allclose(metrics["critic/explained_variance"], explained, rtol=1e-3)


def test_final_observations_bootstrap_truncations():
    configuration, learner, _ = ready(DISCRETE)
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, DISCRETE, finals=True))
    _, data, _ = prepare(configuration, DISCRETE, learner, rollout)
    base = np.asarray(estimate(configuration, DISCRETE, learner.critic.parameters, data)[0].targets).reshape(
        rollout.rewards.shape
    )
    finals = np.array(rollout.final_observations)
    finals[rollout.terminated | ~rollout.truncated] = 5.0  # nobody may read these
    _, data, _ = prepare(configuration, DISCRETE, learner, rollout._replace(final_observations=jnp.asarray(finals)))
    again = np.asarray(estimate(configuration, DISCRETE, learner.critic.parameters, data)[0].targets).reshape(
        rollout.rewards.shape
    )
    np.testing.assert_array_equal(again, base)
    finals[rollout.truncated] += 1.0
    _, data, _ = prepare(configuration, DISCRETE, learner, rollout._replace(final_observations=jnp.asarray(finals)))
    moved = np.asarray(estimate(configuration, DISCRETE, learner.critic.parameters, data)[0].targets).reshape(
        rollout.rewards.shape
    )
    assert (moved != base)[rollout.truncated].all()


# Every option changes the outcome; where the default hides it, `given` makes it visible.
OPTIONS = [
    ("ppo", "epochs", 3, {}),
    ("ppo", "minibatch_size", 32, {}),
    ("ppo", "learning_rate", 1e-3, {}),
    ("ppo", "critic_learning_rate", 1e-3, {}),
    ("ppo", "optimizer", "rmsprop", {}),
    ("a2c", "optimizer", "sgd", {}),
    ("ppo", "learning_rate_schedule", "constant", {"number": 1}),
    ("ppo", "adam_epsilon", 1e-3, {}),
    ("a2c", "adam_epsilon", 1e-1, {}),
    ("ppo", "max_gradient_norm", None, {"max_gradient_norm": 0.01, "adam_epsilon": 1e-2}),
    ("ppo", "clip_range", 0.001, {"learning_rate": 1e-2}),
    ("ppo", "clip_range", None, {"learning_rate": 1e-2, "clip_range": 0.05}),
    ("ppo", "clip_range_schedule", "linear", {"number": 3, "learning_rate": 3e-2, "clip_range": 0.05}),
    ("ppo", "discount", 0.5, {}),
    ("ppo", "trace_decay", 0.5, {}),
    ("ppo", "advantage_normalization", "batch", {}),
    ("a2c", "advantage_normalization", "batch", {}),
    ("ppo", "advantage_normalization", "none", {}),
    ("ppo", "value_clip_range", 0.001, {"learning_rate": 1e-2}),
    ("ppo", "entropy_coefficient", 0.1, {"learning_rate": 1e-2}),
    ("a2c", "entropy_coefficient", 0.1, {"learning_rate": 1e-2}),
    ("ppo", "target_kl", 1e-5, {"learning_rate": 1e-2}),
    ("ppo", "recompute_advantages", False, {}),
    ("ppo", "kl_penalty", "fixed", {"learning_rate": 1e-2}),
    ("ppo", "kl_penalty", "adaptive", {"learning_rate": 1e-2, "kl_penalty": "fixed", "kl_target": 1e-6, "updates": 2}),
    ("ppo", "kl_penalty", "dual", {"learning_rate": 1e-2, "kl_penalty": "fixed", "updates": 2}),
    ("ppo", "kl_coefficient", 3.0, {"learning_rate": 1e-2, "kl_penalty": "fixed"}),
    ("ppo", "kl_target", 0.3, {"learning_rate": 1e-2, "kl_penalty": "dual", "updates": 2}),
    ("ppo", "dual_learning_rate", 0.1, {"learning_rate": 1e-2, "kl_penalty": "dual", "updates": 2}),
    ("a2c", "n_steps", 2, {"weight": "n-step"}),
    ("a2c", "keep_discount", True, {}),
    ("trpo", "max_kl", 0.001, {}),
    ("trpo", "max_kl_schedule", "linear", {"number": 2}),
    ("trpo", "conjugate_gradient_steps", 2, {}),
    ("trpo", "damping", 1.0, {}),
    ("trpo", "backtracks", 0, {"max_kl": 3.0, "conjugate_gradient_steps": 40, "damping": 1e-3}),
    ("trpo", "backtrack_factor", 0.5, {"max_kl": 3.0, "conjugate_gradient_steps": 40, "damping": 1e-3}),
    *[("a2c", "weight", weight, {"trace_decay": 0.9}) for weight in WEIGHTS if weight != "gae"],
    ("ppo", "hidden_sizes", (8, 8), {}),
    ("ppo", "activation", "relu", {}),
    ("ppo", "orthogonal_initialization", False, {}),
    ("ppo", "initial_log_std", -1.0, {}),
    ("ppo", "normalize_observations", False, {}),
    ("ppo", "observation_clip", 0.5, {}),
    ("ppo", "normalize_rewards", False, {}),
    ("ppo", "reward_clip", 0.1, {}),
    ("ppo", "seed", 1, {}),
]


@functools.cache
def outcome(algorithm, number, updates, options):
    """All parameters after some updates with the given options."""
    configuration, learner, rollout = ready(BOX, algorithm=algorithm, **dict(options))
    learner = initialize(configuration, BOX, configuration.run.seed)._replace(
        observations=learner.observations, rewards=learner.rewards, elapsed=np.arange(4, dtype=np.float32)
    )
    for _ in range(updates):
        learner, _ = update(configuration, BOX, learner, rollout, number)
    return leaves((learner.actor.parameters, learner.critic.parameters))


@pytest.mark.parametrize(("algorithm", "name", "value", "given"), OPTIONS, ids=[f"{a}-{n}={v}" for a, n, v, _ in OPTIONS])
def test_every_option_has_an_effect(algorithm, name, value, given):
    given = dict(given)
    number, updates = given.pop("number", 0), given.pop("updates", 1)

    final = lambda options: outcome(algorithm, number, updates, tuple(sorted(options.items())))  # noqa: E731
    before, after = final(given), final(given | {name: value})
    assert len(before) != len(after) or any(
        a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
    )


def test_every_option_is_tested():
    names = {f.name for algorithm in ALGORITHMS for part in configure(algorithm).parts().values() for f in fields(part)}
    # What is about the run, or about recorded data, is tested with those.
    names -= {f.name for part in (RunConfiguration, RecordedConfiguration) for f in fields(part)}
    assert names <= {name for _, name, _, _ in OPTIONS}


def test_target_kl_stops_the_actor_and_not_the_critic():
    configuration, learner, rollout = ready(BOX, learning_rate=1e-2, epochs=8)
    limited = configure(learning_rate=1e-2, epochs=8, target_kl=1e-3)
    free, free_metrics = update(configuration, BOX, learner, rollout)
    held, held_metrics = update(limited, BOX, learner, rollout)
    assert same(free.critic, held.critic)
    assert float(held_metrics["policy/approximate_kl"]) < float(free_metrics["policy/approximate_kl"])
    _, data, order = prepare(limited, BOX, learner, rollout)
    samples, _ = estimate(limited, BOX, learner.critic.parameters, data)
    schedule = schedule_at(limited, 0)
    _, stopped, sums = improve_actor(limited, BOX, learner.actor, np.bool_(False), samples, order[0], schedule)
    looked_at = int(sums["minibatches"])
    assert bool(stopped)
    assert 1 < looked_at < order[0].shape[0]
    # The steps taken are those of the minibatches before the one that showed too much, and no more.
    prefix, _, _ = improve_actor(
        configuration, BOX, learner.actor, np.bool_(False), samples, order[0][: looked_at - 1], schedule, 0.0
    )
    assert same(prefix.parameters, held.actor.parameters)
    unmoved, _, sums = improve_actor(limited, BOX, learner.actor, np.bool_(True), samples, order[0], schedule)
    assert same(unmoved, learner.actor)
    assert int(sums["minibatches"]) == 0


def test_recomputed_advantages_follow_the_critic():
    """With two epochs: the second uses the critic as the first left it. Recomputed here pass by pass."""
    configuration, learner, rollout = ready(DISCRETE, recompute_advantages=True)
    got, _ = update(configuration, DISCRETE, learner, rollout)
    _, data, order = prepare(configuration, DISCRETE, learner, rollout)
    actor, critic, schedule = learner.actor, learner.critic, schedule_at(configuration, 0)
    assert order.shape == (2, 4, 16)
    for one in order:
        samples, _ = estimate(configuration, DISCRETE, critic.parameters, data)
        actor, _, _ = improve_actor(configuration, DISCRETE, actor, np.bool_(False), samples, one, schedule)
        critic, _ = improve_critic(configuration, DISCRETE, critic, samples, one, schedule)
    for a, b in zip(leaves((actor, critic)), leaves((got.actor, got.critic)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gradient_norm_and_step_are_those_of_optax():
    """The critic's first step against an optimiser put together here."""
    configuration, learner, rollout = ready(DISCRETE, epochs=1, minibatch_size=64, max_gradient_norm=0.05)
    _, data, order = prepare(configuration, DISCRETE, learner, rollout)
    samples, _ = estimate(configuration, DISCRETE, learner.critic.parameters, data)
    schedule = schedule_at(configuration, 0)
    got, sums = improve_critic(configuration, DISCRETE, learner.critic, samples, order[0], schedule)
    optimizer = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(float(schedule.learning_rate), eps=1e-5))
    gradient = jax.grad(lambda p: critic_loss(configuration, DISCRETE, p, samples)[0])(learner.critic.parameters)
    updates, _ = optimizer.update(gradient, optimizer.init(learner.critic.parameters))
    expected = optax.apply_updates(learner.critic.parameters, updates)
    for name, value in expected["v"].items():
        np.testing.assert_allclose(got.parameters["v"][name], value, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(sums["critic/gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)


def test_schedules_fall_to_zero():
    configuration = configure(learning_rate=1e-3, clip_range_schedule="linear", clip_range=0.4, total_steps=64 * 10)
    first, middle = schedule_at(configuration, 0), schedule_at(configuration, 5)
    assert (first.learning_rate, first.clip_range) == (np.float32(1e-3), np.float32(0.4))
    np.testing.assert_allclose((middle.learning_rate, middle.clip_range), (5e-4, 0.2), rtol=1e-6)
    constant = configure(learning_rate_schedule="constant", total_steps=64 * 10)
    assert schedule_at(constant, 9) == schedule_at(constant, 0)
