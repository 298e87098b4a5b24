"""Environments that are other ones under the same name, and wrappers."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers.utils import RunningMeanStd


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
