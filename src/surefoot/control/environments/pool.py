"""EnvPool: environments in C++ on a thread pool, stepped from inside the compiled program where its XLA interface
works.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.environments.host import HostEnvironments, environment_seed
from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.control.policies.spaces import Spaces, describe_spaces
from surefoot.control.rollout import EnvironmentStep, ScanCarry
from surefoot.equations import Array
from surefoot.errors import UsageError


def is_installed() -> bool:
    """Whether EnvPool can be imported, without importing it: that takes more than a second."""
    return importlib.util.find_spec("envpool") is not None


def has_task(env_id: str) -> bool:
    """Whether EnvPool knows this task."""
    return is_installed() and env_id in _envpool().list_all_envs()


def _envpool() -> Any:
    return _quiet(lambda: importlib.import_module("envpool"))


NEVER = 2**31 - 1
"""Where EnvPool's configuration has a time limit of so many steps, it means none."""


def described_task(env_id: str) -> EnvironmentIdentity:
    """What EnvPool says of a task of its own, without making it; its spaces are unknown where a policy cannot have them."""
    specification = _quiet(lambda: _envpool().make_spec(env_id))
    limit = int(specification.config.max_episode_steps)
    observations = _quiet(lambda: specification.gymnasium_observation_space)
    actions = _quiet(lambda: specification.gymnasium_action_space)
    try:
        spaces = describe_spaces(observations, actions, name=env_id)
    except UsageError:
        spaces = None
    return EnvironmentIdentity("", spaces=spaces, max_episode_steps=0 if limit == NEVER else limit)


def _quiet(call: Callable[[], Any]) -> Any:
    """Its warnings are about the precision of bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


FEW_LIGHT = 32
"""So many environments of classic control, which step in a fraction of a microsecond, are done before a second thread wakes."""


def _threads(env_id: str, num_envs: int) -> int:
    """As many threads as environments or processors: more than processors cost a third of the speed; one for light work."""
    try:
        entry = str(gymnasium.spec(env_id).entry_point)
    except (gymnasium.error.Error, ImportError):  # EnvPool has tasks that Gymnasium has not
        entry = ""
    light = entry.startswith("gymnasium.envs.classic_control") and num_envs <= FEW_LIGHT
    return 1 if light else min(num_envs, processors())


class Pool:
    """N environments of one EnvPool task, in next-step mode.

    Args:
        env_id: which task.
        num_envs: N.
        seed: the run's, or an evaluation's.
        began: the iteration that the environments begin with.

    Raises:
        UsageError: EnvPool is missing, or does not have the task.
    """

    def __init__(self, env_id: str, *, num_envs: int, seed: int, began: int = 0) -> None:
        if not is_installed():
            raise UsageError("--backend envpool needs EnvPool; install it with: pip install 'surefoot[envpool]'")
        if not has_task(env_id):
            raise UsageError(f"EnvPool has no {env_id}; take --backend gymnasium, or auto to let surefoot choose")
        self.name, self.num_envs = env_id, num_envs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its own choice is a thread per environment. The numbers do not depend on it.
            self.environments = _envpool().make(
                env_id,
                env_type="gymnasium",
                num_envs=num_envs,
                num_threads=_threads(env_id, num_envs),
                seed=environment_seed(seed, began),
            )
            self.spaces: Spaces = describe_spaces(
                self.environments.observation_space, self.environments.action_space, name=env_id
            ).in_float32()
        self.observation_space = self.environments.observation_space
        # Its spaces say int64 for discrete actions, and it takes int32.
        self._dtype = np.dtype(np.int32 if self.spaces.action.kind == "discrete" else self.environments.action_space.dtype)
        self.compiles = sys.platform == "linux"
        """Whether the pool can be stepped inside a compiled program."""

    def on_host(self) -> HostEnvironments:
        """The same environments, stepped from Python."""
        return HostEnvironments(self.environments, name=self.name, action_dtype=self._dtype, seeded=True)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which programs with this pool are traced: MuJoCo tasks exchange float64 numbers."""
        return jax.enable_x64(True)

    def start(self) -> tuple[ScanCarry, EnvironmentStep]:
        """Reset all environments; what a compiled rollout starts from, and their step."""
        observations, _ = self.environments.reset()
        with self.precision():  # EnvPool reads off the types of its buffers here; a wrong one corrupts memory
            handle, _, _, step = self.environments.xla()

        def advance(carry: Array, actions: Array) -> tuple[Any, Array, Array, Array, Array]:
            carry, (observations, rewards, terminated, truncated, _) = step(carry, actions.astype(self._dtype))
            return carry, observations.astype(jnp.float32), rewards.astype(jnp.float32), terminated, truncated

        return ScanCarry(handle, np.asarray(observations, np.float32), np.zeros(self.num_envs, bool)), advance
