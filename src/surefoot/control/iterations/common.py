"""What every iteration shares: its report, and faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.host import describe_fault
from surefoot.control.environments.workers.vector import Restarts
from surefoot.control.rollout import Rollout
from surefoot.control.trees import named_leaves
from surefoot.control.update.state import Learner, Metrics
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
    """What the rollouts of one report leave behind; arrays have a leading axis of seeds, and T covers all rollouts."""

    metrics: dict[str, np.ndarray]
    """(seeds,)"""
    rewards: np.ndarray
    """(seeds, T, N), not normalised."""
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    skipped: np.ndarray
    """(seeds,): updates that were left out because a number in them was not finite."""
    seconds: Seconds
    """environment, inference and update, where they can be told apart."""
    cut: np.ndarray | None = None
    """(seeds, T, N): before which steps an episode was cut, and does not finish, because its environment was lost."""
    restarts: Restarts = Restarts()
    """Environments that were lost, and made anew."""
    notices: tuple[str, ...] = ()
    """Sentences for the user."""


class Iteration(Protocol):
    """Something that trains by one report's rollouts at a time."""

    learner: Learner
    finished: str | None
    """Why training is over before its last iteration; None while it is not."""
    whole: bool
    """Whether :meth:`state` is all that the run needs to go on bit for bit. Where it is not, environments are outside it, and
    begin afresh when a run is resumed."""

    def run(self, number: int) -> Outcome:
        """Collect and update, once for each rollout of a report, from iteration ``number`` on.

        Raises:
            EnvironmentFault: an environment failed; the learner is as it was before.
            RunError: a number in an update is not finite, and the configuration does not say to skip it; the learner likewise.
        """
        ...

    def restart(self, number: int, make: Callable[[], Any]) -> tuple[str, ...]:
        """Begin iteration ``number`` with the environments that ``make`` makes; only where the state is not whole.

        To the learner the episodes that were going on are cut: it has bootstrapped at the end of the last rollout, and now forgets
        them. Returns as :meth:`close`.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What it carries from iteration to iteration, by names."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the state of another that was made alike.

        Raises:
            UsageError: it does not fit.
        """
        ...

    def learners(self) -> list[Learner]:
        """The learner of each seed as it is now, in NumPy."""
        ...

    def close(self) -> tuple[str, ...]:
        """Release environments and threads; returns notices of what went wrong in that."""
        ...


def report_of(metrics: Metrics, rollout: Rollout) -> dict[str, Any]:
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


def raise_first_fault(faults: Faults, name: str, shape: tuple[int, int, int], number: int) -> None:
    """:func:`raise_faults` for arrays of shape (seeds, rollouts), the first of which is of iteration ``number``."""
    for one in zip(*(values for values in faults), strict=True):
        for i, fault in enumerate(zip(*one, strict=True)):
            raise_faults(Faults(*fault), name, shape, number + i)


def merge_reports(report: dict[str, Any]) -> dict[str, Any]:
    """Reports of several rollouts, (seeds, rollouts, …), to one: rollouts one after the other, metrics as their mean.

    A metric that is undefined in some rollouts is the mean over the others.
    """
    metrics = {}
    for name, values in report["metrics"].items():
        known = np.isfinite(values)
        if name.endswith("_max"):
            metrics[name] = values.max(axis=1)
        elif known.all():
            metrics[name] = values.mean(axis=1)
        else:
            total, count = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
            metrics[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    joined = {k: v.reshape(v.shape[0], -1, v.shape[-1]) for k, v in report.items() if k != "metrics"}
    return {"metrics": metrics, **joined}


WATCHED, SHOWN = ("policy/gradient_norm", "critic/gradient_norm", "policy/objective", "critic/loss"), 3


def diverged(
    configuration: TrainConfiguration, number: int, learner: Learner, metrics: Metrics, *, seed: int | None = None
) -> RunError:
    """The error for an update that left numbers that are not finite.

    Args:
        configuration: what was trained how.
        number: the iteration.
        learner: as the update left it.
        metrics: of the update.
        seed: which of several.
    """
    parameters = {"actor": learner.actor.parameters, "critic": learner.critic.parameters}
    numbers = {name: metrics[name] for name in WATCHED if name in metrics} | named_leaves(parameters)
    bad = [name for name, value in numbers.items() if not np.isfinite(np.asarray(value)).all()]
    what = ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
    of_seed = "" if seed is None else f" of seed {seed}"
    return RunError(
        f"the update of iteration {number + 1}{of_seed} left numbers that are not finite ({what}); lower --learning-rate"
        f" ({configuration.optimizer.learning_rate:g}) or set --max-gradient-norm; the policy from before it is kept"
    )
