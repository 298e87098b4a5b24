"""Environments that are other ones under the same name, and wrappers."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import ClipReward, TimeLimit
from gymnasium.wrappers.utils import RunningMeanStd

from surefoot.control.policies.networks import draw_network
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import describe_spaces

SHORT = {"algorithm": "a2c", "num_envs": 2, "rollout_length": 4, "total_steps": 16}
"""A run that learns nothing."""


class Line(gymnasium.Env):
    """An episode of ``length`` steps, in which each brings a reward of ``reward``; it can be made with other spaces."""

    def __init__(self, length=4, reward=1.0, size=2, actions=None, low=-1.0):
        self.length, self.reward = length, reward
        self.observation_space, self.action_space = Box(low, 1, (size,), np.float32), actions or Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.done = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.done += 1
        return np.zeros(self.observation_space.shape, np.float32), self.reward, self.done == self.length, False, {}


def tenfold(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: 10 * reward)


def plus_one(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: reward + 1)


def no_wrapper(env):
    return 3


class Breaks(Line):
    """Raises in the second step of an episode that is worth a reward other than 1."""

    def step(self, action):
        if self.done == 1 and self.reward != 1:
            raise RuntimeError("out of order")
        return super().step(action)


class Centred(gymnasium.ObservationWrapper):
    """A normaliser of a user's own."""

    def __init__(self, env):
        super().__init__(env)
        self.of_all = RunningMeanStd(shape=env.observation_space.shape)

    def observation(self, observation):
        return observation


def normalised():
    return gymnasium.wrappers.NormalizeReward(gymnasium.wrappers.NormalizeObservation(Line()))


def centred():
    return gymnasium.wrappers.TimeLimit(Centred(Line()), 3)


def normalised_together(num_envs):
    return gymnasium.wrappers.vector.NormalizeObservation(gymnasium.vector.SyncVectorEnv([Line] * num_envs))


counter = itertools.count()


def other_bounds():
    """Of observations: nothing reads them."""
    return Line(low=-1.0 - next(counter))


def other_sizes():
    return Line(size=2 + next(counter))


def other_actions():
    return Line(actions=Discrete(2 + next(counter)))


def shown_nothing():
    return Line(size=0)


def short():
    return gymnasium.make("CartPole-v1", max_episode_steps=7)


def saved_policy(run, environment, **description):
    """A policy for an environment that was not trained."""
    spaces = describe_spaces(environment.observation_space, environment.action_space, name="it")
    outputs = spaces.action.outputs
    parameters = draw_network(np.random.default_rng(0), (spaces.observation_size, 8, outputs), orthogonal=True, head_gain=1.0)
    parameters |= {"log_std": np.zeros(outputs, np.float32)} if spaces.action.kind == "box" else {}
    said = {"algorithm": "ppo", "env": "CartPole-v1", "backend": "gymnasium-sync", "steps": 0} | description
    Policy(spaces, "tanh", parameters, None, 10.0, said).save(run)
    return run


OTHERS = [
    (Line, lambda: Line(actions=Discrete(2, start=5)), "spaces", "discrete 2 counted from 5 now"),
    (
        lambda: Line(actions=Box(-2, 2, (1,), np.float32)),
        lambda: Line(actions=Box(-1, 1, (1,), np.float32)),
        "spaces",
        "1 numbers in -2 … 2 before, 1 numbers in -1 … 1 now",
    ),
    (Line, lambda: Line(size=3), "spaces", "observations: 2 numbers before, 3 now"),
    (Line, lambda: TimeLimit(Line(), 9), "time limit", "none before, 9 steps now"),
    (Line, Breaks, "class", f"{__name__}:Line before, {__name__}:Breaks now"),
    (
        lambda: gymnasium.make("Pendulum-v1"),
        lambda: gymnasium.make("Pendulum-v1", g=5.0),
        "arguments",
        "none before, g=5.0 now",
    ),
    (Line, lambda: ClipReward(Line(), 0, 1), "wrappers", "ClipReward(min_reward=0, max_reward=1) now"),
]
"""Pairs of environments, the part in which they differ, and how it is said."""
