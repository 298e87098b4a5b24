"""The algorithms as choices of weight, objective and step: what they share, and what follows from that."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.control.algorithms import ALGORITHMS, configuration_for
from surefoot.control.configuration import PassesConfiguration, TrustRegionConfiguration
from surefoot.control.environments.select import select_environments
from surefoot.control.iterations.split import SplitIteration
from surefoot.control.loop import make_iteration
from surefoot.control.policies.policy import action_distribution
from surefoot.control.update.estimation import action_values_of, values_of
from surefoot.control.update.objectives import actor_loss
from surefoot.control.update.state import schedule_at, schedules
from surefoot.control.update.whole import begin_update
from surefoot.equations import WEIGHTS
from surefoot.errors import UsageError
from tests.control.helpers import (
    BOX,
    DISCRETE,
    MULTIBINARY,
    MULTIDISCRETE,
    beginning,
    configure,
    leaves,
    random_rollout,
    update,
)

SPACES = {"discrete": DISCRETE, "box": BOX, "multidiscrete": MULTIDISCRETE, "multibinary": MULTIBINARY}


def begin(configuration, spaces, seed=0):
    learner = jax.tree.map(jnp.asarray, beginning(configuration, spaces, seed))
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, spaces, seed))
    _, data, samples, _, _ = begin_update(configuration, spaces, learner, rollout)
    return learner, data, samples


def gradient_of(configuration, spaces, learner, samples):
    loss = lambda p: actor_loss(configuration, spaces, p, samples, schedule_at(configuration, 0))[0]  # noqa: E731
    return jax.grad(loss)(learner.actor.parameters)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_the_surrogates_gradient_is_the_policy_gradient(kind, weight):
    """At θ_old: ∇E[ρψ] = E[ψ∇log π], by finite differences of the log-likelihood in float64."""
    spaces = SPACES[kind]
    configuration = configure(weight=weight, clip_range=None, advantage_normalization="none", hidden_sizes=(4,))
    learner, _, samples = begin(configuration, spaces)
    gradient = gradient_of(configuration, spaces, learner, samples)
    wide = {k: np.asarray(v, np.float64) for k, v in learner.actor.parameters.items()}
    seen, actions, valid = (np.asarray(x) for x in (samples.observations, samples.actions, samples.valid))
    weights = np.asarray(samples.weights, np.float64)

    def objective(parameters):
        policy = action_distribution(spaces, parameters, seen.astype(np.float64), activation="tanh")
        return (weights * policy.log_probability(actions))[valid].mean()

    for name, value in wide.items():
        for index in list(np.ndindex(value.shape))[:6]:
            up, down = ({k: v.copy() for k, v in wide.items()} for _ in range(2))
            up[name][index] += 1e-5
            down[name][index] -= 1e-5
            slope = (objective(up) - objective(down)) / 2e-5
            np.testing.assert_allclose(-gradient[name][index], slope, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", SPACES)
def test_one_epoch_of_unclipped_ppo_is_a2c(kind):
    """From the same rollout the same gradient, and with the same optimiser the same policy after it."""
    spaces = SPACES[kind]
    shared = {"trace_decay": 0.9, "advantage_normalization": "none", "optimizer": "adam", "learning_rate": 1e-3}
    a2c = configure("a2c", **shared)
    ppo = configure("ppo", clip_range=None, epochs=1, minibatch_size=64, **shared)
    learner, _, samples = begin(a2c, spaces)
    for name, value in gradient_of(a2c, spaces, learner, samples).items():
        np.testing.assert_allclose(gradient_of(ppo, spaces, learner, samples)[name], value, atol=1e-6)
    rollout = jax.tree.map(jnp.asarray, random_rollout(a2c, spaces))
    after = [update(c, spaces, learner, rollout)[0] for c in (a2c, ppo)]
    for one, other in zip(leaves(after[0].actor.parameters), leaves(after[1].actor.parameters), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", SPACES)
def test_critics_of_q_learn_the_value_of_the_action(kind):
    """Their input tells actions apart, the weight is Q or Q − V of the rollout's own actions, both learn the same target."""
    spaces = SPACES[kind]
    for weight in ("q-value", "advantage"):
        configuration = configure("a2c", weight=weight)
        learner, data, samples = begin(configuration, spaces)
        critic = learner.critic.parameters
        q = action_values_of(configuration, spaces, critic["q"], data.observations[:-1], data.actions)
        v = values_of(configuration, critic["v"], data.observations[:-1]) if weight == "advantage" else 0
        expected = np.where(np.asarray(data.valid), q - v, 0).reshape(-1)
        np.testing.assert_allclose(samples.weights, expected, atol=1e-6)
        encoded = np.asarray(spaces.action.encode(data.actions), np.float32).reshape(-1, spaces.action.outputs)
        actions = np.asarray(data.actions).reshape(len(encoded), -1)
        same_action = (actions[:, None] == actions[None]).all(axis=-1)
        same_code = (encoded[:, None] == encoded[None]).all(axis=-1)
        assert (same_action == same_code).all()
        rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, spaces))
        _, metrics = update(configuration, spaces, learner, rollout)
        gap = np.asarray(q).reshape(-1) - np.asarray(samples.targets)
        valid = np.asarray(samples.valid)
        np.testing.assert_allclose(metrics["critic/action_value_loss"], 0.5 * (gap[valid] ** 2).mean(), rtol=1e-4)


def test_episodes_are_followed_across_rollouts():
    """t and the rewards so far, over three rollouts that cut the episodes anywhere, against one long loop."""
    configuration = configure("a2c", weight="total-return", discount=0.9, normalize_rewards=False, rollout_length=48)
    short = replace(configuration, run=replace(configuration.run, rollout_length=16))
    whole = random_rollout(configuration, DISCRETE, seed=3)
    learner = jax.tree.map(jnp.asarray, beginning(short, DISCRETE, 0))
    elapsed, collected = np.zeros(4), np.zeros(4)
    for start in (0, 16, 32):
        part = jax.tree.map(lambda x, s=start: jnp.asarray(x[s : s + 16]), whole._replace(observations=whole.observations[:-1]))
        rows = jnp.asarray(whole.observations[start : start + 17])
        np.testing.assert_allclose(learner.elapsed, elapsed, atol=1e-6)
        np.testing.assert_allclose(learner.collected, collected, atol=1e-5)
        learner, *_ = begin_update(short, DISCRETE, learner, part._replace(observations=rows))
        for t in range(start, start + 16):
            going = whole.valid[t] & ~whole.terminated[t] & ~whole.truncated[t]
            collected = np.where(going, collected + 0.9**elapsed * whole.rewards[t], 0)
            elapsed = np.where(going, elapsed + 1, 0)


def test_penalised_loss_is_surrogate_less_divergence():
    configuration = configure(clip_range=None, kl_penalty="fixed", kl_coefficient=0.7, advantage_normalization="none")
    learner, _, samples = begin(configuration, DISCRETE)
    moved = {k: v + 0.2 for k, v in learner.actor.parameters.items()}
    moved["layer_1/weight"] = moved["layer_1/weight"].at[:, 0].add(0.3)
    loss, _ = actor_loss(configuration, DISCRETE, moved, samples, schedule_at(configuration, 0), learner.kl_coefficient)
    seen, valid = samples.observations, np.asarray(samples.valid)
    logits = [
        np.asarray(action_distribution(DISCRETE, p, seen, activation="tanh").logits, np.float64)
        for p in (learner.actor.parameters, moved)
    ]
    old, new = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in logits)
    chosen = np.asarray(samples.actions)
    ratio = (new / old)[np.arange(len(chosen)), chosen]
    kl = (old * np.log(old / new)).sum(axis=-1)
    expected = -(ratio * np.asarray(samples.weights))[valid].mean() + 0.7 * kl[valid].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert kl[valid].mean() > 1e-3


@pytest.mark.parametrize(("penalty", "factor"), [("fixed", 1.0), ("adaptive", 2.0), ("dual", None)])
def test_penalty_changes_once_per_update(penalty, factor):
    """However many epochs and minibatches there are; the KL that decides is that of the whole rollout, after the update."""
    options = {"learning_rate": 3e-2, "epochs": 3, "kl_target": 1e-3, "kl_coefficient": 0.1, "dual_learning_rate": 10.0}
    configuration = configure(clip_range=None, kl_penalty=penalty, recompute_advantages=True, **options)
    learner = jax.tree.map(jnp.asarray, beginning(configuration, BOX, 0))
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, BOX))
    after, metrics = update(configuration, BOX, learner, rollout)
    seen = np.clip(np.asarray(rollout.observations[:-1], np.float64) / np.sqrt(1 + 1e-8), -10, 10)
    old, new = (
        action_distribution(BOX, {k: np.asarray(v, np.float64) for k, v in x.actor.parameters.items()}, seen, activation="tanh")
        for x in (learner, after)
    )
    kl = old.kl_divergence(new)[np.asarray(rollout.valid)].mean()
    assert kl > 1.5e-3
    np.testing.assert_allclose(metrics["policy/kl"], kl, rtol=1e-3)
    expected = 0.1 + 10.0 * (kl - 1e-3) if factor is None else 0.1 * factor
    np.testing.assert_allclose(after.kl_coefficient, expected, rtol=1e-3)
    np.testing.assert_allclose(metrics["policy/kl_coefficient"], 0.1, rtol=1e-6)


def test_fused_rollouts_are_those_of_the_loop():
    """Many short rollouts in one program with EnvPool: what collecting and updating one after the other gives."""
    pytest.importorskip("envpool")
    for env in ("CartPole-v1", "HalfCheetah-v5"):
        configuration = configuration_for("a2c", env, rollout_length=5, total_steps=4096, tensorboard=False, hidden_sizes=(8,))
        together = configuration.rollouts_per_report
        assert together > 1
        learners, rewards = [], []
        for kind in ("fused", "split"):
            selection = select_environments(env, backend="envpool", num_envs=8, seed=0)
            if kind == "fused":
                iteration, _ = make_iteration(configuration, selection, [0])
                assert not isinstance(iteration, SplitIteration)
            else:
                iteration = SplitIteration(configuration, selection.environments, seed=0)
            outcomes = [iteration.run(number) for number in (0, together)]
            learners.append(iteration.learners()[0])
            rewards.append(np.concatenate([o.rewards[0] for o in outcomes]))
            iteration.close()
        assert rewards[0].shape == (2 * together * 5, 8)
        np.testing.assert_allclose(rewards[0][:50], rewards[1][:50], atol=1e-3)
        for one, other in zip(leaves(learners[0].observations), leaves(learners[1].observations), strict=True):
            np.testing.assert_allclose(one, other, rtol=0.2, atol=0.05)  # rounding grows in a simulation
        assert all(x.dtype == np.float32 for x in leaves(learners[0].actor.parameters))


def test_reports_cover_whole_rollouts():
    for steps, together in ((200_000, 50), (100, 3), (1_000_000, 50)):
        configuration = configuration_for("a2c", "CartPole-v1", total_steps=steps)
        assert configuration.rollouts_per_report == together
        assert configuration.iterations % together == 0
        assert 0 <= configuration.iterations * 40 - steps < 40 * together
    assert configuration_for("a2c", "CartPole-v1", total_steps=200_000).iterations == 5000
    odd = configuration_for("a2c", "CartPole-v1", total_steps=40 * 4999)
    assert odd.iterations - 4999 <= 1
    assert configuration_for("ppo", "CartPole-v1").rollouts_per_report == 1
    plan = schedules(configuration_for("a2c", "CartPole-v1", total_steps=400), 3, 2)
    np.testing.assert_allclose(plan.learning_rate, 7e-4 * np.array([0.7, 0.6]), rtol=1e-6)


def test_choices_that_contradict_each_other_are_refused():
    a2c, trpo = configure("a2c"), configure("trpo")
    with pytest.raises(UsageError, match="takes one step on the whole rollout; take batch or none"):
        configure("a2c", advantage_normalization="minibatch")
    with pytest.raises(UsageError, match="a trust region goes with the objective None"):
        replace(a2c, trust_region=TrustRegionConfiguration())
    with pytest.raises(UsageError, match="a trust region goes with the objective None"):
        replace(trpo, trust_region=None)
    with pytest.raises(UsageError, match="several passes need a SurrogateObjective"):
        replace(a2c, passes=PassesConfiguration(minibatch_size=16))
    with pytest.raises(UsageError, match="--keep-discount would do nothing"):
        configure("a2c", weight="total-return", keep_discount=True)
    with pytest.raises(UsageError, match="--backtrack-factor must lie between 0 and 1"):
        configure("trpo", backtrack_factor=1.0)
    with pytest.raises(TypeError, match="a2c has no setting epochs"):
        configure("a2c", epochs=3)


def test_a_natural_step_without_a_critic_needs_no_minibatches():
    configuration = configuration_for("trpo", "CartPole-v1", weight="reward-to-go", num_envs=1, rollout_length=100)
    assert "minibatch_size" in configuration.idle_options()
    with pytest.raises(UsageError, match="does not divide"):
        configuration_for("trpo", "CartPole-v1", num_envs=1, rollout_length=100)
    with pytest.raises(UsageError, match="a SurrogateObjective needs passes"):
        replace(configure("ppo"), passes=None, weight=configure("a2c").weight)


@pytest.mark.parametrize(("reward", "scaled"), [(0.0, 0.0), (0.5, 1.0), (-0.5e-9, -1.0), (0.5e9, 1.0)])
def test_rewards_without_spread_are_divided_by_their_size(reward, scaled):
    """Before two returns have differed there is no deviation to divide by, and no unit may decide: nothing is amplified."""
    configuration = configure("actor-critic")
    learner = jax.tree.map(jnp.asarray, beginning(configuration, DISCRETE, 0))
    rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, DISCRETE))
    one = jax.tree.map(lambda x: x[:1], rollout)._replace(
        observations=rollout.observations[:2], rewards=jnp.full((1, 4), reward), valid=jnp.ones((1, 4), bool)
    )
    _, data, *_ = begin_update(configuration, DISCRETE, learner, one)
    np.testing.assert_allclose(data.rewards, scaled, rtol=1e-6)


def test_every_weight_runs_with_every_algorithm():
    """One update each, on a Box: finite, and the actor moves."""
    for algorithm in ALGORITHMS:
        for weight in WEIGHTS:
            configuration = configure(algorithm, weight=weight)
            learner = beginning(configuration, BOX, 0)
            assert set(learner.critic.parameters) == set(configuration.weight.critics)
            rollout = jax.tree.map(jnp.asarray, random_rollout(configuration, BOX))
            after, _ = update(configuration, BOX, jax.tree.map(jnp.asarray, learner), rollout)
            pairs = zip(leaves(learner.actor.parameters), leaves(after.actor.parameters), strict=True)
            assert any(not np.array_equal(a, b) for a, b in pairs), (algorithm, weight)
            assert all(np.isfinite(x).all() for x in leaves((after.actor.parameters, after.critic.parameters)))
