"""Small environments with known answers."""

from __future__ import annotations

import gymnasium
import numpy as np


class Toy(gymnasium.Env):
    """One Box observation; subclasses say what happens."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def observe(self):
        return np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.begin()
        return self.observe(), {}

    def begin(self):
        pass


class ConstantReward(Toy):
    """Probe: one step, reward 1. V = 1."""

    def step(self, action):
        return self.observe(), 1.0, True, False, {}


class EndlessReward(Toy):
    """Probe: reward 1 for ever, truncated every 5 steps. V = 1/(1 − γ) only if truncation is bootstrapped."""

    def step(self, action):
        self.steps += 1
        return self.observe(), 1.0, False, self.steps >= 5, {}


class ShownReward(Toy):
    """Probe: one step, the reward is the observation, ±1. V(s) = s."""

    def begin(self):
        self.sign = float(self.np_random.choice([-1.0, 1.0]))

    def observe(self):
        return np.full(1, self.sign, np.float32)

    def step(self, action):
        return self.observe(), self.sign, True, False, {}


class DelayedReward(Toy):
    """Probe: two steps, the reward comes after the second. V(0) = γ, V(1) = 1."""

    def observe(self):
        return np.full(1, float(self.steps), np.float32)

    def step(self, action):
        self.steps += 1
        return self.observe(), float(self.steps == 2), self.steps == 2, False, {}


class ActionReward(Toy):
    """Probe: one step, action 1 pays 1 and action 0 pays −1."""

    def step(self, action):
        return self.observe(), 1.0 if action == 1 else -1.0, True, False, {}


class MatchReward(ShownReward):
    """Probe: one step, the action must match the sign of the observation."""

    def step(self, action):
        return self.observe(), 1.0 if (action == 1) == (self.sign > 0) else -1.0, True, False, {}


class ContinuousTarget(Toy):
    """One step, reward −(a − 3)², action bounds 2 … 6."""

    action_space = gymnasium.spaces.Box(2.0, 6.0, (1,), np.float32)

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observe(), -float((action[0] - 3.0) ** 2), True, False, {}


class SeveralChoices(Toy):
    """One step, a point for each part that is right: 2 of 0–2 (counted from 5) and 1 of 0–1."""

    action_space = gymnasium.spaces.MultiDiscrete([3, 2], start=[5, 0])

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observe(), float(action[0] == 7) + float(action[1] == 1), True, False, {}


class SeveralBits(Toy):
    """One step, a point for each right bit of 1, 0, 1."""

    action_space = gymnasium.spaces.MultiBinary(3)

    def step(self, action):
        return self.observe(), float((np.asarray(action) == [1, 0, 1]).sum()), True, False, {}


class Walk(gymnasium.Env):
    """A deterministic walk with ends of both kinds: position and step count are the observation, actions do not matter.

    Ends with a terminal state after 3 steps or a cut after 4, in turn; the reward is the position reached.
    """

    observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, offset: float = 0.0):
        self.episode, self.offset = -1, offset

    def observe(self):
        return np.array([self.position, self.steps], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps, self.position = 0, self.offset + 0.1 * self.episode
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.position += 1.0
        even = self.episode % 2 == 0
        return self.observe(), self.position, even and self.steps == 3, not even and self.steps == 4, {}


class Faulty(Toy):
    """Raises, or returns a value that is no number, at a given step."""

    def __init__(self, at: int = 7, what: str = "raise"):
        super().__init__()
        self.total, self.at, self.what = 0, at, what

    def step(self, action):
        self.total += 1
        now = self.total == self.at
        if now and self.what == "raise":
            raise RuntimeError("the motor is on fire")
        observation = np.full(1, np.nan if now and self.what == "observation" else 0.0, np.float32)
        reward = float("inf") if now and self.what == "reward" else 1.0
        return observation, reward, False, self.total % 10 == 0, {}
