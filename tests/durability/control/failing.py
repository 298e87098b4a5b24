"""Environments that fail in every way; worker processes import this, and no engine."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time

import gymnasium
import numpy as np

INHERITED = sys.argv[0] == "surefoot-worker" and "jax" in sys.modules


class Echo(gymnasium.Env):
    """Shows what it is given: the observation tells the action, its type, and its random numbers; episodes end both ways."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def observe(self, action=0):
        kind = np.asarray(action).dtype.num + 100 * isinstance(action, np.ndarray) + 1000 * np.asarray(action).flags.writeable
        return np.array([np.sum(action), kind, self.np_random.normal(), self.steps], np.float64)

    def reset(self, **options):
        super().reset(seed=options.get("seed"))
        self.steps, self.length = 0, int(self.np_random.integers(2, 6))
        return self.observe(len(options)), {}

    def step(self, action):
        self.steps += 1
        over = self.steps >= self.length
        even = self.length % 2 == 0
        return self.observe(action), float(self.np_random.normal()), over and even, np.bool_(over and not even), {}


class EchoBox(Echo):
    action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)


class EchoChoices(Echo):
    action_space = gymnasium.spaces.MultiDiscrete([3, 4])


gymnasium.register("Echo-v0", entry_point="tests.durability.control.failing:Echo")


class Odd(Exception):
    """An exception that cannot be sent to another process."""

    def __init__(self, left, right):
        super().__init__(f"{left}\nand {right}")
        self.held = lambda: left


FAILURES = {
    "raise": "raised ValueError: the motor is on fire",
    "odd": "raised Odd: one and two",
    "exit": "ended its process with exit status 7",
    "segfault": "was ended with its process by SIGSEGV",
    "hang": "did not answer within 2 s",
    "shape": "returned an observation of shape (1,), where its space says (2,)",
    "dtype": "returned an observation that is an array of shape (2,) and type complex128, where its space says numbers, float32",
    "ragged": "returned an observation that no array can be made of",
    "nan": "returned an observation of nan in component 1",
    "large": "returned an observation of 1e+300 in component 0",
    "reward": "returned a reward of nan",
    "text": "returned a reward that is str, where one number is right",
    "flag": "returned terminated that is None, where true or false is right",
    "four": "returned 4 values, where (observation, reward, terminated, truncated, info) is right",
}
WAYS = list(FAILURES)
FINE = len(WAYS)


class Ordered(gymnasium.Env):
    """Fails as the action says; the last one is fine. The observation is its own number of steps, over which resets do not go."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(len(WAYS) + 1)

    def __init__(self):
        assert not INHERITED, "a worker process has loaded JAX"
        self.total = 0

    def observe(self):
        return np.array([self.total, self.np_random_seed], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.total, self.steps = self.total + 1, self.steps + 1
        observation, reward, terminated = self.observe(), 1.0, self.steps == 4
        way = "fine" if action == FINE else WAYS[action]
        if way == "raise":
            raise ValueError("the motor is on fire")
        if way == "odd":
            raise Odd("one", "two")
        if way == "exit":
            os._exit(7)
        if way == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if way == "hang":
            time.sleep(1000)
        if way == "four":
            return observation, reward, terminated, {}
        bad = {
            "shape": observation[:1], "dtype": observation.astype(complex), "ragged": [[1.0], [1.0, 2.0]],
            "nan": np.array([1, np.nan]), "large": np.array([1e300, 0]),
        }  # fmt: skip
        observation = bad.get(way, observation)
        reward = {"reward": float("nan"), "text": "much"}.get(way, reward)
        return observation, reward, None if way == "flag" else terminated, False, {}


class Walk(gymnasium.Env):
    """Episodes of five steps, reward 1; the observation is the step, and which life of which environment this is.

    The environment with the number that FAILING names, counted by its seed, raises at the step of its life that it names: "1:4",
    or ends its process: "1:4:exit".
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    length = 5

    def __init__(self):
        self.total = 0

    def observe(self):
        return np.array([self.steps, self.np_random_seed % 1000], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.total, self.steps = self.total + 1, self.steps + 1
        seed, step, way, *_ = [*os.environ["FAILING"].split(":"), ""]
        if seed in ("all", str(self.np_random_seed)) and self.total == int(step):
            if way == "exit":
                os._exit(1)
            raise OSError("no contact")
        return self.observe(), 1.0, self.steps >= self.length, False, {}


class EndlessWalk(Walk):
    length = 1_000_000


class BadReset(Echo):
    """Its third reset gives no observation of its space."""

    resets = 0

    def reset(self, **options):
        self.resets += 1
        observation, info = super().reset(**options)
        return (observation[:3] if self.resets == 3 else observation), info


class Stuck(Echo):
    """Hangs in C code that lets no other thread of Python run, with a child process beside it."""

    def step(self, action):
        import subprocess

        child = subprocess.Popen(["sleep", "1000"])
        print(os.getpid(), child.pid, flush=True)
        ctypes.PyDLL(None).sleep(1000)


def unmade():
    raise ValueError("no licence")


def killed_while_made():
    os._exit(9)


def hung_while_made():
    time.sleep(1000)


def no_environment():
    return 7


def no_observation():
    environment = Echo()
    environment.observation_space = gymnasium.spaces.Dict({"a": Echo.observation_space})
    return environment


class Draws(gymnasium.Env):
    """Draws from everything that there is to draw from, as environments of users do: while it is made, reset and stepped."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(1000)
        self.own = [np.random.normal(), random.random()]

    def observe(self):
        drawn = [np.random.normal(), random.random(), self.action_space.sample() / 1000, self.observation_space.sample()[0]]
        return np.array(drawn) + self.own[0] + self.own[1]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), random.random() + np.random.normal(), self.steps == 20, bool(np.random.random() < 0.1), {}


class Gambles(Draws):
    def step(self, action):
        if np.random.random() < 0.05:
            raise ValueError("lost everything")
        return super().step(action)
