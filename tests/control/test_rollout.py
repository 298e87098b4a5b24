"""Rollouts: ends of episodes, autoreset modes, masks and faults."""

from __future__ import annotations

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.control.environments.functional import functional_carry, functional_step, make_functional
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.iterations.host_loop import HostCollector
from surefoot.control.policies.spaces import describe_spaces
from surefoot.control.rollout import collect_compiled
from surefoot.control.update.estimation import estimate, prepare
from surefoot.control.update.state import actor_of, initialize
from surefoot.errors import EnvironmentFault
from tests.control.helpers import configure
from tests.control.toys import Faulty, Walk

ENVS, LENGTH = 3, 40


def collect(environments, configuration, learner, length=LENGTH):
    actor = actor_of(configuration, environments.spaces)
    collector = HostCollector(actor, environments, length=length, seed=0)
    return collector.collect(learner.actor.parameters, learner.observations)[0]


def walks(mode):
    vector = SyncVectorEnv([partial(Walk, offset=float(i)) for i in range(ENVS)], autoreset_mode=mode)
    return HostEnvironments(vector, name="Walk")


def test_advantages_are_equal_in_every_autoreset_mode():
    """The same episodes, whoever resets and whenever: equal advantages and targets, step for step."""
    configuration = configure(num_envs=ENVS, rollout_length=LENGTH, normalize_rewards=False, minibatch_size=40)
    sequences = {}
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        environments = walks(mode)
        learner = initialize(configuration, environments.spaces, 0)
        rollout = collect(environments, configuration, learner)
        learner, traced = jax.tree.map(jnp.asarray, (learner, rollout))
        _, data, _ = prepare(configuration, environments.spaces, learner, traced)
        samples, _ = estimate(configuration, environments.spaces, learner.critic.parameters, data)
        shape = rollout.rewards.shape
        ended = rollout.terminated | rollout.truncated
        sequences[mode] = []
        for env in range(ENVS):
            rows = np.flatnonzero(rollout.valid[:, env])
            rows = rows[: np.flatnonzero(ended[rows, env])[-1] + 1]  # whole episodes
            columns = [np.asarray(x).reshape(*shape)[rows, env] for x in (samples.weights, samples.targets)]
            sequences[mode].append(np.stack([*columns, rollout.rewards[rows, env], rollout.observations[rows, env, 0]]))
    reference = sequences[AutoresetMode.NEXT_STEP]
    for others in sequences.values():
        for mine, theirs in zip(reference, others, strict=True):
            common = min(mine.shape[1], theirs.shape[1])
            assert common >= 28, "both kinds of end are seen several times"
            np.testing.assert_allclose(mine[:, :common], theirs[:, :common], atol=1e-5)


def test_next_step_resets_are_masked():
    environments = walks(AutoresetMode.NEXT_STEP)
    configuration = configure(num_envs=ENVS, rollout_length=LENGTH, minibatch_size=40)
    rollout = collect(environments, configuration, initialize(configuration, environments.spaces, 0))
    # Episodes of 3 (terminal) and 4 steps (cut), each followed by one slot that only resets.
    pattern = [True] * 3 + [False] + [True] * 4 + [False]
    expected = (pattern * LENGTH)[:LENGTH]
    for env in range(ENVS):
        assert rollout.valid[:, env].tolist() == expected
    assert not rollout.valid[3].any()
    # The reset slot's observation is the true final one: position after three steps.
    np.testing.assert_allclose(rollout.observations[3, :, 0], np.arange(ENVS) + 3, rtol=1e-6)
    assert rollout.terminated[2].all()
    assert rollout.truncated[7].all()


def test_masks_go_on_across_rollouts():
    """An episode that ends with the last step of a rollout resets in the first slot of the next."""
    environments = walks(AutoresetMode.NEXT_STEP)
    configuration = configure(num_envs=ENVS, rollout_length=3, minibatch_size=9)
    learner = initialize(configuration, environments.spaces, 0)
    collector = HostCollector(actor_of(configuration, environments.spaces), environments, length=3, seed=0)
    first, _ = collector.collect(learner.actor.parameters, learner.observations)
    second, _ = collector.collect(learner.actor.parameters, learner.observations)
    assert first.terminated[2].all()
    assert second.valid[:, 0].tolist() == [False, True, True]
    np.testing.assert_array_equal(first.observations[3], second.observations[0])


def functional_rollout(env_id, seed, length=600, envs=2):
    environment = make_functional(env_id)
    spaces = describe_spaces(environment.observation_space, environment.action_space, name=env_id)
    configuration = configure(
        env=env_id, num_envs=envs, rollout_length=length, normalize_observations=False, minibatch_size=100
    )
    learner = initialize(configuration, spaces, seed)
    carry = functional_carry(environment, num_envs=envs, key=learner.key)
    actor = actor_of(configuration, spaces)
    _, rollout = jax.jit(partial(collect_compiled, actor, functional_step(environment), length=length))(
        carry, learner.actor.parameters, learner.observations, learner.key
    )
    return spaces, jax.tree.map(np.asarray, rollout)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_functional_environments_are_gymnasiums(env_id):
    """Replayed step for step in Gymnasium's own environment: same observations, rewards and ends."""
    spaces, rollout = functional_rollout(env_id, 0)
    real = gymnasium.make(env_id)
    episodes = 0
    for env in range(2):
        fresh = True
        for t in range(len(rollout.rewards)):
            if fresh:
                real.reset(seed=0)
                start = rollout.observations[t, env].astype(np.float64)
                real.unwrapped.state = (
                    start if env_id == "CartPole-v1" else np.array([np.arctan2(start[1], start[0]), start[2]])
                )
                fresh = False
            if not rollout.valid[t, env]:
                assert rollout.rewards[t, env] == 0
                assert not rollout.terminated[t, env] | rollout.truncated[t, env]
                fresh, episodes = True, episodes + 1
                continue
            if t % 25 == 0:  # float32 against float64: begin again from the same numbers now and then
                now = rollout.observations[t, env].astype(np.float64)
                real.unwrapped.state = now if env_id == "CartPole-v1" else np.array([np.arctan2(now[1], now[0]), now[2]])
            action = spaces.action.for_environment(rollout.actions[t, env])
            observation, reward, terminated, truncated, _ = real.step(
                np.asarray(action) if env_id != "CartPole-v1" else int(action)
            )
            np.testing.assert_allclose(rollout.observations[t + 1, env], observation, atol=2e-3)
            np.testing.assert_allclose(rollout.rewards[t, env], reward, atol=5e-3)
            assert (rollout.terminated[t, env], rollout.truncated[t, env]) == (terminated, truncated)
    assert episodes >= 4


@pytest.mark.parametrize(("what", "words"), [
    ("raise", "environment 1 of Faulty raised RuntimeError at its step 7, with action .: the motor is on fire"),
    ("observation", "environment 1 of Faulty returned an observation of nan in component 0 at vector step 7"),
    ("reward", "environment 1 of Faulty returned a reward of inf at vector step 7"),
])  # fmt: skip
def test_faults_are_named(what, words):
    from surefoot.control.environments.select import select_environments

    made = []

    def make():
        made.append(Faulty(at=7 if len(made) == 1 else -1, what=what))
        return made[-1]

    make.__name__ = "Faulty"
    environments = select_environments(make, backend="auto", num_envs=2, seed=0).environments
    assert len(made) == 2
    configuration = configure(num_envs=2, rollout_length=16)
    with pytest.raises(EnvironmentFault, match=words):
        collect(environments, configuration, initialize(configuration, environments.spaces, 0), length=16)


class IntegerFlags(SyncVectorEnv):
    """A vector environment as a user may write it: a list of rewards, integer flags, and no word on how it resets."""

    metadata = {}  # noqa: RUF012

    def __init__(self):
        super().__init__([Walk, Walk])
        self.metadata = {}

    def step(self, actions):
        observations, rewards, terminated, truncated, info = super().step(actions)
        return observations, rewards.tolist(), terminated.astype(int), truncated.astype(int), info


def test_loose_types_are_made_strict_and_the_assumption_is_said():
    environments = HostEnvironments(IntegerFlags(), name="IntegerFlags")
    assert "autoreset_mode" in environments.notices[0]
    environments.reset(0)
    _, rewards, terminated, truncated, _ = environments.step(np.zeros(2, np.int32))
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)


def test_float64_bounds_hold_after_rounding():
    class Narrow(Walk):
        action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)

        def step(self, action):
            assert self.action_space.contains(action), action
            return super().step(action)

    environments = HostEnvironments(SyncVectorEnv([Narrow]), name="Narrow")
    environments.reset(0)
    for extreme in (-5.0, 5.0):
        environments.step(environments.spaces.action.for_environment(np.full((1, 1), extreme, np.float32)))


def test_one_environment_is_not_several():
    from surefoot.control.environments.select import select_environments
    from surefoot.errors import UsageError

    shared = Walk()
    with pytest.raises(UsageError, match="returned the same environment twice"):
        select_environments(lambda: shared, backend="auto", num_envs=2, seed=0)
