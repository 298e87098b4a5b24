"""Environments that are pure JAX functions: stepped inside the compiled program, many seeds at once."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.compilation import fixed_settings
from surefoot.control.rollout import EnvironmentStep, ScanCarry
from surefoot.equations import Array
from surefoot.equations._library import flag
from surefoot.errors import UsageError


@runtime_checkable
class FunctionalEnvironment(Protocol):
    """One environment as pure functions that JAX can trace; batching is the caller's, by ``vmap``."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int | None
    """Episodes are truncated after this many steps; None for never."""

    def initial(self, key: Array) -> tuple[Any, Array]:
        """(state, observation) at the start of an episode."""
        ...

    def transition(self, state: Any, action: Array, key: Array) -> tuple[Any, Array, Array, Array]:
        """(next state, its observation, reward, terminated): a boolean, or 0 and 1 of any integer or real dtype."""
        ...


class GymnasiumFunctional:
    """A ``gymnasium.experimental.functional.FuncEnv`` as a :class:`FunctionalEnvironment`, with parameters of its own."""

    def __init__(self, environment: Any, parameters: Any, max_episode_steps: int | None) -> None:
        self._environment, self._parameters = environment, parameters
        self.observation_space, self.action_space = environment.observation_space, environment.action_space
        self.max_episode_steps = max_episode_steps

    def initial(self, key: Array) -> tuple[Any, Array]:
        """See :class:`FunctionalEnvironment`."""
        of_state, of_observation = jax.random.split(key)
        state = self._environment.initial(of_state, self._parameters)
        return state, self._environment.observation(state, of_observation, self._parameters)

    def transition(self, state: Any, action: Array, key: Array) -> tuple[Any, Array, Array, Array]:
        """See :class:`FunctionalEnvironment`."""
        of_state, of_observation, of_reward, of_end = jax.random.split(key, 4)
        following = self._environment.transition(state, action, of_state, self._parameters)
        observation = self._environment.observation(following, of_observation, self._parameters)
        reward = self._environment.reward(state, action, following, of_reward, self._parameters)
        terminated = self._environment.terminal(following, of_end, self._parameters)
        return following, observation, jnp.asarray(reward, jnp.float32), terminated


CARTPOLE, PENDULUM = "gymnasium.envs.phys2d.cartpole:CartPole", "gymnasium.envs.phys2d.pendulum:Pendulum"
# Functional environments that Gymnasium ships: where, changed parameters, and the time limit. Its functional CartPole adds
# mass and length of the pole where Gymnasium's CartPole-v1 multiplies them (0.6 for 0.05), which makes it another task:
# under the name CartPole-v1 it runs with the right number, under phys2d/ as Gymnasium has it.
GYMNASIUM_FUNCTIONAL: dict[str, tuple[str, dict[str, float], int]] = {
    "CartPole-v1": (CARTPOLE, {"polemass_length": 0.05}, 500),
    "Pendulum-v1": (PENDULUM, {}, 200),
    "phys2d/CartPole-v0": (CARTPOLE, {}, 200),
    "phys2d/CartPole-v1": (CARTPOLE, {}, 500),
    "phys2d/Pendulum-v0": (PENDULUM, {}, 200),
}


def make_functional(env_id: str) -> FunctionalEnvironment:
    """One of Gymnasium's functional environments.

    Raises:
        UsageError: there is none for this id, or a package that it needs is missing.
    """
    if env_id not in GYMNASIUM_FUNCTIONAL:
        raise UsageError(f"no pure-JAX environment for {env_id}; there are {', '.join(GYMNASIUM_FUNCTIONAL)}")
    where, changes, limit = GYMNASIUM_FUNCTIONAL[env_id]
    module_name, _, name = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"--backend jax needs {error.name} for {env_id}; install it with: pip install 'surefoot[control]'"
        ) from error
    return GymnasiumFunctional(getattr(module, f"{name}Functional")(), getattr(module, f"{name}Params")(**changes), limit)


class FunctionalState(NamedTuple):
    """One environment within its episode."""

    state: Any
    steps: Array
    needs_reset: Array
    key: Array


def functional_step(environment: FunctionalEnvironment) -> EnvironmentStep:
    """A step of N copies in next-step mode, for :func:`surefoot.control.rollout.collect_compiled`."""

    def one(carry: FunctionalState, action: Array) -> tuple[FunctionalState, Array, Array, Array, Array]:
        key, of_step, of_reset = jax.random.split(carry.key, 3)
        state, observation, reward, terminated = environment.transition(carry.state, action, of_step)
        terminated = flag("terminated", jnp.asarray(terminated))
        fresh_state, fresh_observation = environment.initial(of_reset)
        resets = carry.needs_reset
        state, observation = jax.tree.map(
            lambda fresh, ongoing: jnp.where(resets, fresh, ongoing), (fresh_state, fresh_observation), (state, observation)
        )
        steps = jnp.where(resets, 0, carry.steps + 1)
        terminated = terminated & ~resets
        limit = environment.max_episode_steps
        truncated = jnp.zeros_like(terminated) if limit is None else (steps >= limit) & ~terminated & ~resets
        following = FunctionalState(state, steps, terminated | truncated, key)
        reward = jnp.where(resets, 0.0, jnp.reshape(reward, ())).astype(jnp.float32)
        return following, observation.astype(jnp.float32), reward, terminated, truncated

    return jax.vmap(one)


def functional_carry(environment: FunctionalEnvironment, *, num_envs: int, key: Array) -> ScanCarry:
    """N fresh episodes."""

    def one(key: Array) -> tuple[FunctionalState, Array]:
        key, of_reset = jax.random.split(key)
        state, observation = environment.initial(of_reset)
        return FunctionalState(state, jnp.int32(0), jnp.bool_(False), key), jnp.asarray(observation, jnp.float32)

    states, observations = jax.vmap(one)(jax.random.split(key, num_envs))
    return ScanCarry(states, observations, jnp.zeros(num_envs, bool))


class FunctionalOnHost:
    """N copies stepped from Python, one compiled call a step: what evaluation uses."""

    def __init__(self, environment: FunctionalEnvironment, *, num_envs: int, seed: int) -> None:
        self.observation_space, self.action_space = environment.observation_space, environment.action_space
        self.num_envs = num_envs
        self._environment, self._seed, self._resets = environment, seed, 0
        self._step = jax.jit(functional_step(environment))

    @fixed_settings(x64=None)
    def reset(self) -> tuple[Array, dict[str, Any]]:
        """Begin episodes, from the seed and the number of resets before."""
        key = np.asarray([self._resets, self._seed], np.uint32)
        self._carry, self._resets = functional_carry(self._environment, num_envs=self.num_envs, key=key), self._resets + 1
        return self._carry.observations, {}

    @fixed_settings(x64=None)
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """A step of all, in next-step mode."""
        states, observations, rewards, terminated, truncated = self._step(self._carry.environments, actions)
        self._carry = ScanCarry(states, observations, terminated | truncated)
        return observations, rewards, terminated, truncated, {}


@fixed_settings(x64=None)
def check_functional(environment: FunctionalEnvironment, *, name: str) -> None:
    """Trace one step of an environment, so that a mistake in it becomes a sentence.

    Raises:
        UsageError: it raises, returns another number of values, or values of other shapes or kinds than its spaces say.
    """
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    action = jnp.asarray(environment.action_space.sample())
    expected = environment.observation_space.shape
    try:
        state, observation = jax.eval_shape(environment.initial, key)
        following, later, reward, terminated = jax.eval_shape(environment.transition, state, action, key)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(
            f"{name} cannot be traced: {type(error).__name__}: {reason}; initial(key) returns (state, observation), and"
            " transition(state, action, key) returns (state, observation, reward, terminated)"
        ) from error
    for what, value, shape in (
        ("initial's observation", observation, expected),
        ("transition's observation", later, expected),
        ("its reward", reward, jnp.shape(reward) if math.prod(jnp.shape(reward)) == 1 else ()),  # one number
        ("terminated", terminated, ()),
    ):
        if jnp.shape(value) != shape:
            raise UsageError(f"{name}: {what} has shape {jnp.shape(value)} where {shape} is right")
        if not jnp.isdtype(jnp.result_type(value), ("bool", "integral", "real floating")):
            raise UsageError(
                f"{name}: {what} has dtype {jnp.result_type(value)} where real numbers, integers or booleans are right"
            )
    before, after = (jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), s) for s in (state, following))
    if before != after:
        raise UsageError(f"{name}: transition's state differs in structure, shape or type from initial's: {after} and {before}")
