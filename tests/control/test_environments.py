"""Which backend steps an environment, what is said about it, and how mistakes are named."""

from __future__ import annotations

import importlib.util

import gymnasium
import numpy as np
import pytest

from surefoot.control.environments import pool, select
from surefoot.control.environments.functional import FunctionalEnvironment, make_functional
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.select import select_environments
from surefoot.errors import UsageError
from tests.control import toys

needs_envpool = pytest.mark.skipif(not importlib.util.find_spec("envpool"), reason="EnvPool is not installed")


def choose(environment, backend="auto", num_envs=2):
    return select_environments(environment, backend=backend, num_envs=num_envs, seed=0)


@needs_envpool
def test_auto_takes_envpool_where_it_has_the_task_and_says_so():
    selection = choose("CartPole-v1")
    assert selection.backend == "envpool"
    assert "envpool" in selection.notices[0]


def test_auto_without_envpool_takes_the_vectorised_version_and_names_what_is_missing(monkeypatch):
    for module in (select, pool):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    selection = choose("CartPole-v1")
    assert selection.backend == "gymnasium"
    assert "pip install 'surefoot[envpool]'" in selection.notices[1]
    assert choose("Acrobot-v1").backend == "gymnasium-sync"
    with pytest.raises(
        UsageError, match=r"--backend envpool needs EnvPool; install it with: pip install 'surefoot\[envpool\]'"
    ):
        choose("CartPole-v1", "envpool")


@needs_envpool
def test_envpool_without_the_task():
    with pytest.raises(UsageError, match="EnvPool has no GymV21Environment-v0; take --backend gymnasium"):
        choose("GymV21Environment-v0", "envpool")


def test_gymnasium_without_a_vectorised_version_says_what_it_does_instead():
    selection = choose("Acrobot-v1", "gymnasium")
    assert selection.backend == "gymnasium-sync"
    assert "no vectorised version of Acrobot-v1" in selection.notices[0]


def test_functional_ids_take_jax():
    assert choose("phys2d/Pendulum-v0").backend == "jax"
    assert isinstance(choose("CartPole-v1", "jax").environments, FunctionalEnvironment)
    with pytest.raises(UsageError, match="no pure-JAX environment for Acrobot-v1; there are CartPole-v1"):
        choose("Acrobot-v1", "jax")


def test_functional_cartpole_has_two_physics():
    """Gymnasium's functional CartPole differs from its CartPole-v1 in one number; the name decides which is meant."""
    import jax

    states = []
    for name in ("CartPole-v1", "phys2d/CartPole-v1"):
        environment = make_functional(name)
        state, _ = environment.initial(jax.random.PRNGKey(0))
        states.append(environment.transition(state, 1, jax.random.PRNGKey(1))[1])
    assert not np.allclose(states[0], states[1], atol=1e-3)


def test_wrong_id():
    with pytest.raises(UsageError, match="there is no environment CartPole-v7"):
        choose("CartPole-v7")
    with pytest.raises(UsageError, match="there is no environment CartPoel-v1"):
        choose("CartPoel-v1")
    with pytest.raises(UsageError, match="no_such_package"):
        choose("no_such_package:Thing-v0")


def test_missing_package_is_named():
    def needs_something():
        raise gymnasium.error.DependencyNotInstalled("run `pip install warp-drive`")

    with pytest.raises(UsageError, match="needs_something needs a package that is not installed: run `pip install warp-drive`"):
        choose(needs_something)


def test_callables():
    assert choose("tests.control.toys:Walk").backend == "gymnasium-sync"
    assert choose(toys.Walk, "gymnasium-sync").environments.num_envs == 2

    def vector(num_envs):
        return gymnasium.make_vec("CartPole-v1", num_envs)

    assert choose(vector, num_envs=3).environments.num_envs == 3
    with pytest.raises(UsageError, match="returned 2 environments where --num-envs asks for 5"):
        choose(lambda: gymnasium.make_vec("CartPole-v1", 2), num_envs=5)
    with pytest.raises(UsageError, match=r"returned int; it must return a gymnasium\.Env"):
        choose(lambda: 3)
    with pytest.raises(UsageError, match="--backend envpool cannot step Walk"):
        choose(toys.Walk, "envpool")
    with pytest.raises(UsageError, match=r"tests\.control\.toys has no callable Wlak; it has .*Walk"):
        choose("tests.control.toys:Wlak")
    with pytest.raises(UsageError, match=r"the module tests\.nothing cannot be imported"):
        choose("tests.nothing:Walk")


def test_single_environments_become_several_of_their_own():
    environments = choose(toys.Walk, num_envs=3).environments
    assert isinstance(environments, HostEnvironments)
    environments.reset(0)
    first = environments.step(np.zeros(3, np.int32))
    assert first[0].shape == (3, 2)


@needs_envpool
def test_envpool_steps_from_python_as_well():
    """What evaluation uses, and training where EnvPool cannot be compiled in: same seeds, same numbers."""
    made = [pool.Pool("Pendulum-v1", num_envs=2, seed=3).on_host() for _ in range(2)]
    starts = [e.reset(0) for e in made]
    np.testing.assert_array_equal(*starts)
    steps = [e.step(np.full((2, 1), 0.5, np.float32)) for e in made]
    np.testing.assert_array_equal(steps[0][0], steps[1][0])
    discrete = pool.Pool("CartPole-v1", num_envs=2, seed=3).on_host()
    discrete.reset(0)
    assert discrete.step(np.array([0, 1], np.int32))[1].tolist() == [1.0, 1.0]


@needs_envpool
def test_envpool_resets_in_next_step_mode():
    """The assumption behind the masks, seen: the step after an end returns a fresh episode's start and no reward."""
    environments = pool.Pool("CartPole-v1", num_envs=1, seed=0).on_host()
    environments.reset(0)
    for _ in range(100):
        observations, _, terminated, _, _ = environments.step(np.array([1], np.int32))
        if terminated[0]:
            break
    assert np.abs(observations[0, 2]) > 0.2, "the true final observation"
    observations, rewards, terminated, truncated, _ = environments.step(np.array([1], np.int32))
    assert np.abs(observations).max() <= 0.05
    assert (rewards[0], terminated[0], truncated[0]) == (0.0, False, False)


@needs_envpool
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_compiled_rollouts_are_what_python_sees(env_id):
    """The rollout inside the compiled program, its actions replayed from Python in a pool of the same seed."""
    from functools import partial

    import jax

    from surefoot.control.rollout import collect_compiled
    from surefoot.control.update.state import actor_of, initialize
    from tests.control.helpers import configure

    compiled, plain = (pool.Pool(env_id, num_envs=3, seed=5) for _ in range(2))
    host = plain.on_host()
    configuration = configure(env=env_id, num_envs=3, rollout_length=60, minibatch_size=60)
    learner = initialize(configuration, compiled.spaces, 0)
    carry, step = compiled.start()
    with compiled.precision():
        program = jax.jit(partial(collect_compiled, actor_of(configuration, compiled.spaces), step, length=60))
        carry, rollout = program(carry, learner.actor.parameters, learner.observations, learner.key)
    np.testing.assert_array_equal(rollout.observations[0], host.reset(5).astype(np.float32))
    resetting = np.zeros(3, bool)
    for t in range(60):
        np.testing.assert_array_equal(rollout.valid[t], ~resetting)
        actions = np.asarray(compiled.spaces.action.for_environment(np.asarray(rollout.actions[t])))
        observations, rewards, terminated, truncated, _ = host.step(actions)
        np.testing.assert_allclose(rollout.observations[t + 1], observations.astype(np.float32), rtol=1e-6)
        np.testing.assert_allclose(rollout.rewards[t], rewards, rtol=1e-6)
        np.testing.assert_array_equal((rollout.terminated[t], rollout.truncated[t]), (terminated, truncated))
        resetting = terminated | truncated
