"""What a pure-JAX environment may return: numbers of any real kind, and nothing that ends in JAX's own words."""

from __future__ import annotations

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.control.environments.functional import FunctionalOnHost, check_functional
from surefoot.errors import UsageError


class Countdown:
    """Three steps of reward 1 and 2 and 3, then the end."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    max_episode_steps = None

    def __init__(self, ends=bool, rewards=jnp.float32, observations=jnp.float32):
        self.ends, self.rewards, self.observations = ends, rewards, observations

    def initial(self, key):
        return jnp.int32(0), jnp.zeros(1).astype(self.observations)

    def transition(self, state, action, key):
        state = state + 1
        return state, state[None].astype(self.observations), state.astype(self.rewards), (state == 3).astype(self.ends)


@pytest.mark.parametrize("kind", [bool, jnp.int32, jnp.uint8, jnp.float32])
def test_an_end_of_any_kind_is_an_end(kind):
    environment = Countdown(ends=kind, rewards=jnp.int32, observations=jnp.uint8)
    check_functional(environment, name="countdown")
    host = FunctionalOnHost(environment, num_envs=2, seed=0)
    host.reset()
    seen = [host.step(jnp.zeros(2, int))[:4] for _ in range(5)]
    assert [bool(terminated[0]) for _, _, terminated, _ in seen] == [False, False, True, False, False]
    assert [float(rewards[1]) for _, rewards, _, _ in seen] == [1, 2, 3, 0, 1]  # the fourth slot only resets
    assert all(terminated.dtype == bool and observations.dtype == jnp.float32 for observations, _, terminated, _ in seen)


@pytest.mark.parametrize(
    ("kinds", "what"),
    [
        ({"ends": complex}, "terminated"),
        ({"rewards": complex}, "its reward"),
        ({"observations": complex}, "initial's observation"),
    ],
)
def test_other_kinds_are_refused_in_a_sentence(kinds, what):
    right = "real numbers, integers or booleans are right"
    with pytest.raises(UsageError, match=f"countdown: {what} has dtype complex64 where {right}"):
        check_functional(Countdown(**kinds), name="countdown")
