"""What every iteration shares: its report, faults, and the update in one piece."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.algorithms import ppo
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.host import describe_fault
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout
from surefoot.equations import Array
from surefoot.errors import EnvironmentFault, RunError

Seconds = dict[str, float]


class Faults(NamedTuple):
    """The first value of a rollout that is not finite: its flat index, −1 for none, and the value."""

    observation: Array
    observation_value: Array
    reward: Array
    reward_value: Array


class Outcome(NamedTuple):
    """What an iteration leaves to report; arrays have a leading axis of seeds."""

    metrics: dict[str, np.ndarray]
    """(seeds,)"""
    rewards: np.ndarray
    """(seeds, T, N), not normalised."""
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    seconds: Seconds
    """environment, inference and update."""


class Iteration(Protocol):
    """Something that trains by one iteration at a time."""

    learner: ppo.Learner

    def run(self, number: int) -> Outcome:
        """Collect and update once.

        Raises:
            EnvironmentFault: an environment failed; the learner is as it was before.
        """
        ...

    def learners(self) -> list[ppo.Learner]:
        """The learner of each seed as it is now, in NumPy."""
        ...

    def close(self) -> None:
        """Release environments and threads."""
        ...


def report_of(metrics: ppo.Metrics, rollout: Rollout) -> dict[str, Any]:
    """What an :class:`Outcome` takes from an iteration's programs."""
    return {
        "metrics": metrics,
        "rewards": rollout.rewards,
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "valid": rollout.valid,
    }


def find_faults(rollout: Rollout) -> Faults:
    """Look for a value that is not finite; sees every number that enters the update."""

    def first(x: Array) -> tuple[Array, Array]:
        bad = ~jnp.isfinite(x.reshape(-1))
        index = jnp.argmax(bad)
        return jnp.where(bad.any(), index, -1), x.reshape(-1)[index]

    # A fault in a final observation shows in the rollout's loop already; here rows are the steps after which they were seen.
    return Faults(*first(rollout.observations), *first(rollout.rewards))


def raise_faults(faults: Faults, name: str, shape: tuple[int, int, int], number: int) -> None:
    """Turn the faults of iteration ``number`` into a sentence; ``shape`` is (T, N, observation size)."""
    length, envs, size = shape
    if (index := int(faults.observation)) >= 0:
        row, environment, component = np.unravel_index(index, (length + 1, envs, size))
        step = number * length + row  # row t was returned by step t; the first row of all, by the reset before
        value = float(faults.observation_value)
        raise EnvironmentFault(describe_fault(name, "an observation", int(step), int(environment), (int(component),), value))
    if (index := int(faults.reward)) >= 0:
        row, environment = np.unravel_index(index, (length, envs))
        step = number * length + row + 1
        raise EnvironmentFault(describe_fault(name, "a reward", int(step), int(environment), (), float(faults.reward_value)))


def start_update(
    configuration: TrainConfiguration, spaces: Spaces, learner: ppo.Learner, rollout: Rollout
) -> tuple[ppo.Learner, ppo.Data, ppo.Samples, tuple[Array, ...], ppo.Metrics, Faults]:
    """Everything of the update before the first gradient."""
    learner, data, order = ppo.prepare(configuration, spaces, learner, rollout)
    samples, metrics = ppo.estimate(configuration, learner.critic.parameters, data)
    return learner, data, samples, tuple(order), metrics, find_faults(rollout)


def whole_update(
    configuration: TrainConfiguration, spaces: Spaces, learner: ppo.Learner, rollout: Rollout, schedule: ppo.Schedule
) -> tuple[ppo.Learner, ppo.Metrics, Faults, Array]:
    """The update in one piece: what the pieces that run side by side compute, one after the other.

    Returns:
        the learner, the metrics, the rollout's faults, and whether every parameter is still finite.
    """
    learner, data, samples, orders, metrics, faults = start_update(configuration, spaces, learner, rollout)

    def one_pass(
        state: tuple[ppo.Network, ppo.Network, Array], order: Array, samples: ppo.Samples
    ) -> tuple[tuple[ppo.Network, ppo.Network, Array], tuple[ppo.Metrics, ppo.Metrics]]:
        actor, critic, stopped = state
        actor, stopped, of_actor = ppo.improve_actor(configuration, spaces, actor, stopped, samples, order, schedule)
        critic, of_critic = ppo.improve_critic(configuration, critic, samples, order, schedule)
        return (actor, critic, stopped), (of_actor, of_critic)

    state = (learner.actor, learner.critic, jnp.bool_(False))
    if len(orders) == 1:
        state, sums = one_pass(state, orders[0], samples)
    else:
        # A scan, so that the pass is compiled once whatever the number of epochs.
        state, per_pass = jax.lax.scan(
            lambda s, o: one_pass(s, o, ppo.estimate(configuration, s[1].parameters, data, samples.values)[0]),
            state,
            jnp.stack(orders),
        )
        sums = jax.tree.map(lambda x: x.sum(axis=0), per_pass)
    metrics = metrics | mean_metrics(sums[0]) | mean_metrics(sums[1])
    finite = still_finite(*sums, passes=len(orders))
    return learner._replace(actor=state[0], critic=state[1]), metrics, faults, finite


def still_finite(of_actor: ppo.Metrics, of_critic: ppo.Metrics, *, passes: int) -> Array:
    """Whether actor and critic ended every pass with finite parameters."""
    return (of_actor["finite"] == passes) & (of_critic["finite"] == passes)


def diverged(configuration: TrainConfiguration, number: int) -> RunError:
    """The error for an update that left numbers that are not finite."""
    return RunError(
        f"the update of iteration {number + 1} left parameters that are not finite; lower --learning-rate"
        f" ({configuration.ppo.learning_rate:g}) or set --max-gradient-norm and --target-kl; the policy from before it is kept"
    )


def mean_metrics(sums: ppo.Metrics) -> ppo.Metrics:
    """Sums over minibatches to means over those that were looked at, of which there is at least one."""
    return {name: value / sums["minibatches"] for name, value in sums.items() if name not in ("minibatches", "finite")}
