"""One update from beginning to end, and the pieces of it that may run side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout
from surefoot.control.update.descent import improve_actor, improve_critic, settle_penalty
from surefoot.control.update.estimation import estimate, prepare
from surefoot.control.update.state import Data, Learner, Metrics, Network, Samples, Schedule, skip_update
from surefoot.control.update.trust_region import natural_step
from surefoot.equations import Array


class ActorProgress(NamedTuple):
    """The actor within an update."""

    network: Network
    kl_coefficient: Array
    stopped: Array


def begin_update(
    configuration: TrainConfiguration, spaces: Spaces, learner: Learner, rollout: Rollout
) -> tuple[Learner, Data, Samples, tuple[Array | None, ...], Metrics]:
    """Everything of the update before the first gradient; an order of minibatches for every pass."""
    learner, data, order = prepare(configuration, spaces, learner, rollout)
    samples, metrics = estimate(configuration, spaces, learner.critic.parameters, data)
    return learner, data, samples, (None,) if order is None else tuple(order), metrics


def advance_actor(
    configuration: TrainConfiguration,
    spaces: Spaces,
    actor: ActorProgress,
    samples: Samples,
    order: Array | None,
    schedule: Schedule,
    last: Array | bool = True,
) -> tuple[ActorProgress, Metrics]:
    """The actor's step on a pass; after the ``last`` one its KL penalty is settled.

    Returns:
        the actor, and each metric's sum over minibatches with their number.
    """
    network, coefficient, stopped = actor
    if configuration.trust_region is not None:
        network, metrics = natural_step(configuration, spaces, network, samples, schedule)
        return ActorProgress(network, coefficient, stopped), metrics
    network, stopped, metrics = improve_actor(configuration, spaces, network, stopped, samples, order, schedule, coefficient)
    settled, of_penalty = settle_penalty(configuration, spaces, network, samples, coefficient)
    metrics |= {f"{name}_last": value for name, value in of_penalty.items()}
    return ActorProgress(network, jnp.where(last, settled, coefficient), stopped), metrics


def whole_update(
    configuration: TrainConfiguration, spaces: Spaces, learner: Learner, rollout: Rollout, schedule: Schedule
) -> tuple[Learner, Metrics, Array]:
    """The update in one piece: what the pieces that run side by side compute, one after the other.

    Returns:
        the learner, the metrics, and whether every number of the update is finite; where one is not and the configuration says
        so, the learner is the one from before.
    """
    begun, data, samples, orders, metrics = begin_update(configuration, spaces, learner, rollout)
    after, metrics, finite = improve(configuration, spaces, begun, data, samples, orders, metrics, schedule)
    if configuration.run.on_nonfinite == "skip":
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, skip_update(learner, after))
    return after, metrics, finite


def improve(
    configuration: TrainConfiguration,
    spaces: Spaces,
    learner: Learner,
    data: Data,
    samples: Samples,
    orders: tuple[Array | None, ...],
    metrics: Metrics,
    schedule: Schedule,
) -> tuple[Learner, Metrics, Array]:
    """Actor and critic, pass by pass; arguments and results as in :func:`begin_update` and :func:`whole_update`."""

    def one_pass(
        state: tuple[ActorProgress, Network], order: Array | None, samples: Samples, last: Array | bool
    ) -> tuple[tuple[ActorProgress, Network], tuple[Metrics, Metrics]]:
        actor, critic = state
        actor, of_actor = advance_actor(configuration, spaces, actor, samples, order, schedule, last)
        if not critic.parameters:
            return (actor, critic), (of_actor, {})
        critic, of_critic = improve_critic(configuration, spaces, critic, samples, order, schedule)
        return (actor, critic), (of_actor, of_critic)

    state = (ActorProgress(learner.actor, learner.kl_coefficient, np.bool_(False)), learner.critic)
    if len(orders) == 1:
        state, sums = one_pass(state, orders[0], samples, True)
    else:
        # A scan, so that the pass is compiled once whatever the number of epochs.
        lasts = jnp.arange(len(orders)) == len(orders) - 1

        def again(state: tuple[ActorProgress, Network], now: tuple[Array, Array]) -> tuple[Any, Any]:
            fresh, _ = estimate(configuration, spaces, state[1].parameters, data, samples.values)
            return one_pass(state, now[0], fresh, now[1])

        state, per_pass = jax.lax.scan(again, state, (jnp.stack([o for o in orders if o is not None]), lasts))
        sums = combine_passes(per_pass)
    metrics = metrics | mean_metrics(sums[0]) | mean_metrics(sums[1])
    actor, critic = state
    finite = still_finite(*sums, passes=len(orders))
    return learner._replace(actor=actor.network, critic=critic, kl_coefficient=actor.kl_coefficient), metrics, finite


def combine_passes(groups: Any) -> tuple[Metrics, Metrics]:
    """Metrics of several passes, stacked in front, to those of all: sums, maxima, or the last."""

    def combine(name: str, values: Array) -> Array:
        if name.endswith("_max"):
            return values.max(axis=0)
        return values[-1] if name.endswith("_last") else values.sum(axis=0)

    of_actor, of_critic = ({name: combine(name, values) for name, values in group.items()} for group in groups)
    return of_actor, of_critic


def still_finite(of_actor: Metrics, of_critic: Metrics, *, passes: int) -> Array:
    """Whether every number of actor and critic was finite in every pass."""
    return (of_actor["finite"] == passes) & (of_critic.get("finite", passes) == passes)


def mean_metrics(sums: Metrics) -> Metrics:
    """Sums over minibatches to means over those that were looked at, of which there is at least one."""
    return {
        name.removesuffix("_last"): value if name.endswith(("_max", "_last")) else value / sums["minibatches"]
        for name, value in sums.items()
        if name not in ("minibatches", "finite")
    }
