"""The loop over environments that only Python can step."""

from __future__ import annotations

import time

import numpy as np

from surefoot.control.environments.bounds import hardly_told_apart
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.policies.normalization import RESOLUTION, RunningStatistics
from surefoot.control.policies.policy import draw_noise
from surefoot.control.rollout import Actor, Rollout
from surefoot.control.update.state import Learner


class HostCollector:
    """Collects rollouts from environments that only Python can step; the policy runs in NumPy.

    A call into a compiled program costs more (about 40 µs, and copies both ways) than a small network on a handful of
    observations (about 15 µs), so the loop makes none: per step, one network, one vector step, one row of each array.

    Args:
        actor: how the policy acts.
        environments: what is stepped.
        length: steps of a rollout.
        seed: the run's.
        began: the iteration that this begins with, which has a randomness of its own.
    """

    def __init__(self, actor: Actor, environments: HostEnvironments, *, length: int, seed: int, began: int = 0) -> None:
        self._actor, self._environments, self._length = actor, environments, length
        self._generator = np.random.default_rng([seed, 1, began])
        self._observations = environments.reset(seed, began=began, steps=began * length)
        self._first = np.array(self._observations)
        self._resetting = np.zeros(environments.num_envs, bool)
        self.cut = np.zeros((length, environments.num_envs), bool)
        """(T, N), of the last rollout: before which steps an episode was cut because its environment was lost."""

    def look(self, learner: Learner) -> Learner:
        """The learner with a first idea of the observations' mean, where it has none: what is subtracted from the first of them."""
        if float(learner.observations.count) > 0 or self._actor.observation_clip is None:
            return learner
        mean = self._observations.mean(axis=0, dtype=np.float64).astype(np.float32)
        return learner._replace(observations=learner.observations._replace(mean=mean))

    def hardly_told_apart(self) -> tuple[str, ...]:
        """What the cast to float32 leaves too few digits of, where no mean is subtracted before it: by the first and last observations."""
        if self._actor.observation_clip is not None:
            return ()
        seen = np.concatenate([self._first, self._observations]).astype(np.float64)
        return hardly_told_apart(seen.mean(axis=0), seen.std(axis=0), resolution=RESOLUTION, dtype="float32")

    def collect(self, parameters: dict[str, np.ndarray], statistics: RunningStatistics) -> tuple[Rollout, dict[str, float]]:
        """The next T steps, and the seconds spent in environments and inference.

        Raises:
            EnvironmentFault: an environment raised or returned a number that is not finite.
        """
        actor, environments, length, envs = self._actor, self._environments, self._length, self._environments.num_envs
        action_space = actor.spaces.action
        noises = draw_noise(self._generator, action_space.noise, (length, envs, action_space.outputs))
        # Fresh arrays for every rollout: JAX may keep reading the last ones while the next rollout is collected.
        observations = np.empty((length + 1, envs, actor.spaces.observation_size), np.float32)
        actions = np.empty((length, envs, *action_space.shape), action_space.dtype)
        rewards = np.empty((length, envs), np.float32)
        terminated, truncated, valid = (np.empty((length, envs), bool) for _ in range(3))
        finals = None if environments.next_step else np.zeros((length, envs, actor.spaces.observation_size), np.float32)
        self.cut = np.zeros((length, envs), bool)
        inference = 0.0
        start = time.perf_counter()
        for t in range(length):
            before = time.perf_counter()
            observations[t] = actor.center(self._observations, statistics)
            actions[t] = actor.act(parameters, statistics, observations[t], noises[t])
            valid[t] = ~self._resetting
            inference += time.perf_counter() - before
            outcome = environments.step(action_space.for_environment(actions[t]))
            self._observations, rewards[t], terminated[t], truncated[t] = outcome[:4]
            if (afresh := environments.begun_afresh) is not None:
                # What the action would have brought is lost, and the step only reset. The episode ends where it was last seen,
                # and is bootstrapped there: in this rollout, or at the end of the last one.
                self.cut[t] = afresh & valid[t]
                valid[t] &= ~afresh
                if t > 0:
                    truncated[t - 1] |= self.cut[t] & valid[t - 1]
            if finals is None:
                self._resetting = terminated[t] | truncated[t]
            elif outcome[4] is not None:
                finals[t] = actor.center(outcome[4], statistics)
        observations[length] = actor.center(self._observations, statistics)
        total = time.perf_counter() - start
        rollout = Rollout(observations, actions, rewards, terminated, truncated, valid, finals)
        return rollout, {"environment": total - inference, "inference": inference}
