"""Learning does not depend on the unit of rewards or observations, nor on where observations have their zero.

Multiplication by a power of two changes no digit of a float32 number, so that what is learnt must be the same to the bit.
"""

from __future__ import annotations

import re
from functools import partial

import gymnasium
import jax
import numpy as np
import pytest

import surefoot
from surefoot.control.algorithms import ALGORITHMS
from surefoot.control.environments.functional import make_functional
from surefoot.control.environments.pool import Pool
from surefoot.control.training import train
from surefoot.control.update.state import initialize, schedule_at
from surefoot.control.update.whole import whole_update
from surefoot.errors import EnvironmentFault
from tests.control.helpers import DISCRETE, configure, leaves, random_rollout

SMALL, LARGE = 2.0**-40, 2.0**40


def scaled(step, units):
    """What a step returned, in other units."""
    observations, rewards, *rest = step
    return (observations * np.float32(units[0]), rewards * units[1], *rest)


class OneByOne(gymnasium.Wrapper):
    """Rewards and observations of CartPole in other units."""

    def __init__(self, units):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.units = units
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return observation * np.float32(self.units[0]), info

    def step(self, action):
        return scaled(self.env.step(action), self.units)


class Together(gymnasium.vector.VectorWrapper):
    """The same of Gymnasium's own vectorised version."""

    def __init__(self, units, num_envs):
        super().__init__(gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point"))
        self.units = units

    def reset(self, **options):
        observations, info = self.env.reset(**options)
        return observations * np.float32(self.units[0]), info

    def step(self, actions):
        return scaled(self.env.step(actions), self.units)


class Functional:
    """The same of a pure-JAX environment."""

    def __init__(self, units):
        self.inner, self.units = make_functional("CartPole-v1"), units
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
        self.max_episode_steps = self.inner.max_episode_steps

    def initial(self, key):
        state, observation = self.inner.initial(key)
        return state, observation * self.units[0]

    def transition(self, state, action, key):
        state, observation, reward, terminated = self.inner.transition(state, action, key)
        return state, observation * self.units[0], reward * self.units[1], terminated


def trained(backend, units, folder, monkeypatch):
    """A policy after a few updates, with observations and rewards in these units."""
    environments = {
        "gymnasium-sync": lambda: OneByOne(units),
        "gymnasium": lambda num_envs: Together(units, num_envs),
        "jax": lambda: Functional(units),
        "envpool": None,
    }
    if backend == "envpool":
        start = Pool.start

        def start_scaled(self):
            carry, step = start(self)
            changed = lambda carry, actions: (lambda c, o, r, *rest: (c, o * units[0], r * units[1], *rest))(  # noqa: E731
                *step(carry, actions)
            )
            return carry._replace(observations=carry.observations * np.float32(units[0])), changed

        monkeypatch.setattr(Pool, "start", start_scaled)
    configuration = configure(backend=backend, out=str(folder), total_steps=256, learning_rate=0.01)
    train(configuration, environment=environments[backend], quiet=True)
    monkeypatch.undo()
    return surefoot.load(folder)


@pytest.mark.parametrize("backend", ["jax", "envpool", "gymnasium", "gymnasium-sync"])
def test_learning_knows_no_unit(backend, tmp_path, monkeypatch):
    units = (SMALL, LARGE)
    one, other = (trained(backend, of, tmp_path / f"{of}", monkeypatch) for of in ((1.0, 1.0), units))
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, other.parameters[name], err_msg=name)
    observations = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    acting = (one.distribution(observations), other.distribution(observations * np.float32(units[0])))
    np.testing.assert_array_equal(acting[0].logits, acting[1].logits)
    assert np.std(acting[0].logits) > 0  # the observations have been learnt from


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_update_knows_no_unit(algorithm):
    """1e-12 and 1e12 round: what is learnt differs by rounding; where it knows no advantage's scale, it is the same."""
    configuration = configure(algorithm)
    program = jax.jit(partial(whole_update, configuration, DISCRETE))

    def learnt(of_observations, of_rewards):
        learner = initialize(configuration, DISCRETE, 0)
        for seed in range(3):
            rollout = random_rollout(configuration, DISCRETE, seed=seed)
            # As rollouts hold them: less what is known of their mean.
            observations = rollout.observations * np.float32(of_observations) - np.asarray(learner.observations.mean)
            rollout = rollout._replace(observations=observations, rewards=rollout.rewards * np.float32(of_rewards))
            learner, _, finite = jax.tree.map(np.asarray, program(learner, rollout, schedule_at(configuration, 0)))
            assert finite
        return leaves((learner.actor, learner.critic))

    one = learnt(1, 1)
    for units in ((SMALL, LARGE), (LARGE, SMALL)):
        for a, b in zip(one, learnt(*units), strict=True):
            np.testing.assert_array_equal(a, b)
    for units in ((1e-12, 1e12), (1e12, 1e-12)):
        for a, b in zip(one, learnt(*units), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


class Clock(gymnasium.Env):
    """Shows numbers that no action changes, far from zero, in float64; the action should be their sign."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, offset):
        self.offset = offset

    def observe(self):
        self.shown = self.np_random.normal(size=2) * 0.3
        return self.shown + self.offset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        reward = float((self.shown[0] > 0) == bool(action))
        return self.observe(), reward, False, self.steps == 8, {}


@pytest.mark.parametrize("how", ["one", "several", "workers"])
def test_observations_far_from_zero_keep_their_digits(how, tmp_path):
    """A spread of 0.3 at 1e8: float32 has a number every 8 there."""
    rng = np.random.default_rng(1)
    modes = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    shown = 0.3 * rng.normal(size=(64, 2))
    acting = []
    for offset in (0.0, 1e8):
        make = partial(Clock, offset)
        several = lambda num_envs, make=make: gymnasium.vector.SyncVectorEnv([make] * num_envs, **modes)  # noqa: E731
        workers = {"env_workers": 1} if how == "workers" else {}
        configuration = configure(out=str(tmp_path / f"{offset}"), total_steps=512, **workers)
        train(configuration, environment=several if how == "several" else make, quiet=True)
        policy = surefoot.load(tmp_path / f"{offset}")
        acting.append(policy.distribution(shown + offset).logits)
    np.testing.assert_allclose(acting[0], acting[1], atol=1e-4)
    assert np.std(acting[1]) > 1e-3


class Told(gymnasium.Env):
    """Returns the same observation again and again."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, values, dtype, bound=np.inf, varied=0.0, reward=0.0):
        self.values, self.varied, self.reward = np.asarray(values, np.float64), varied, reward
        self.observation_space = gymnasium.spaces.Box(-bound, bound, self.values.shape, dtype)
        self.steps = 0

    def observe(self):
        varied = self.values + self.varied * self.np_random.normal(size=self.values.shape)
        return varied if abs(varied).max() > 1e38 else varied.astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        observation = self.observe()
        return observation * (abs(observation) < 1e38), {}

    def step(self, action):
        self.steps += 1
        reward = self.reward * self.np_random.choice([-1, 1])
        return self.observe(), float(reward), False, self.steps % 8 == 0, {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("several", [False, True])
def test_a_number_that_float32_does_not_hold_is_named(dtype, several, tmp_path):
    make = lambda: Told([0.0, 1e300], dtype)  # noqa: E731
    vector = lambda num_envs: gymnasium.vector.SyncVectorEnv([make] * num_envs)  # noqa: E731
    if several and dtype == np.float32:
        pytest.skip("Gymnasium's vector environment has made infinity of it")
    with pytest.raises(EnvironmentFault, match=r"an observation of 1e\+300 in component 1"):
        train(configure(out=str(tmp_path / "run")), environment=vector if several else make)


def test_observations_outside_their_space_are_told_once(tmp_path, capsys):
    configuration = configure(out=str(tmp_path / "run"), total_steps=512)
    train(configuration, environment=lambda: Told([0.5, -2.5], np.float32, bound=2.0), quiet=True)
    told = [line for line in capsys.readouterr().err.splitlines() if "outside its space" in line]
    assert len(told) == 1
    assert "environment 0 of " in told[0]
    assert "component 1 was -2.5" in told[0]
    assert "-2 … 2 is right" in told[0]
    train(configure(out=str(tmp_path / "inside")), environment=lambda: Told([0.5, -2.0], np.float32, bound=2.0))
    assert "outside" not in capsys.readouterr().err


def test_a_spread_that_float32_can_hardly_tell_apart_is_told(tmp_path, capsys):
    for dtype, told in ((np.float32, True), (np.float64, False)):
        train(configure(out=str(tmp_path / f"{told}")), environment=lambda dtype=dtype: Told([0, 1e6], dtype, varied=0.3))
        sentence = "component 1 of the observations is 1e+06 with a spread of 0.3, which float32 can hardly tell apart"
        assert (sentence in capsys.readouterr().err) == told
    plain = configure(out=str(tmp_path / "plain"), normalize_observations=False)
    train(plain, environment=lambda: Told([0, 1e8], np.float64, varied=0.3))
    assert re.search(
        r"component 1 of the observations is 1e\+08 with a spread of 0\.[234], which float32", capsys.readouterr().err
    )


def test_a_critic_that_explains_nothing_is_told_of(tmp_path, capsys):
    """Rewards that no observation tells of, and not brought to a scale that the critic could learn."""
    options = {"total_steps": 64 * 24, "learning_rate": 1e-6, "normalize_rewards": False}
    train(
        configure(out=str(tmp_path / "run"), **options),
        environment=lambda: Told([1.0, 2.0], np.float32, varied=1.0, reward=1e-6),
    )
    told = [line for line in capsys.readouterr().err.splitlines() if "critic/explained_variance" in line]
    assert len(told) == 1
    assert "in each of the first 20 reports" in told[0]
