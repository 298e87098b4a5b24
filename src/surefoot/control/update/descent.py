"""Steps by gradient: the optimiser on the whole rollout, or a few passes of it over minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from surefoot.control.configuration import SurrogateObjective, TrainConfiguration
from surefoot.control.policies.policy import action_distribution
from surefoot.control.policies.spaces import Spaces
from surefoot.control.update.objectives import acting_distribution, actor_loss, critic_loss, mean_kl
from surefoot.control.update.state import Metrics, Network, Samples, Schedule, optimizer_of
from surefoot.equations import Array, adapt_kl_coefficient, ascend_kl_multiplier


def descend(configuration: TrainConfiguration, network: Network, gradients: Any, learning_rate: Array) -> tuple[Network, Array]:
    """One step of the optimiser; returns the network and the gradients' norm before it was limited."""
    directions, optimizer = optimizer_of(configuration).update(gradients, network.optimizer)
    parameters = jax.tree.map(lambda p, d: p - learning_rate * d, network.parameters, directions)
    return Network(parameters, optimizer), optax.tree.norm(gradients)


def over_minibatches(
    step: Callable[[Any, Samples], tuple[Any, Metrics]], state: Any, samples: Samples, order: Array | None
) -> tuple[Any, Metrics]:
    """``step`` for every minibatch of ``order``, or once for the whole; metrics are summed, those called max are maxima."""
    if order is None or (order.shape[0] == 1 and order.shape[1] == samples.valid.shape[0]):
        return step(state, samples)
    state, metrics = jax.lax.scan(lambda s, chosen: step(s, jax.tree.map(lambda x: x[chosen], samples)), state, order)
    return state, {name: values.max() if name.endswith("_max") else values.sum() for name, values in metrics.items()}


def improve_actor(
    configuration: TrainConfiguration,
    spaces: Spaces,
    actor: Network,
    stopped: Array,
    samples: Samples,
    order: Array | None,
    schedule: Schedule,
    kl_coefficient: Array | float = 0.0,
) -> tuple[Network, Array, Metrics]:
    """One pass of the actor over the minibatches ``order``, shape (minibatches, minibatch size), or one step on the whole.

    With a target KL, the pass stops for good at the first minibatch whose estimate exceeds 1.5 times the target,
    before stepping on it.

    Returns:
        the actor, whether it has stopped, and each metric's sum over the minibatches that were looked at, with their
        number, and whether the gradients, the objective and all parameters were finite throughout.
    """
    objective = configuration.objective
    target = objective.target_kl if isinstance(objective, SurrogateObjective) else None

    def step(state: tuple[Network, Array], batch: Samples) -> tuple[tuple[Network, Array], Metrics]:
        actor, stopped = state
        loss = lambda parameters: actor_loss(configuration, spaces, parameters, batch, schedule, kl_coefficient)  # noqa: E731
        gradients, metrics = jax.grad(loss, has_aux=True)(actor.parameters)
        moved, norm = descend(configuration, actor, gradients, schedule.learning_rate)
        metrics |= {"policy/gradient_norm": norm, "minibatches": jnp.ones((), jnp.float32)}
        if target is None:
            return (moved, stopped), metrics
        stopped = metrics["policy/approximate_kl"] > 1.5 * target
        return (jax.tree.map(lambda old, new: jnp.where(stopped, old, new), actor, moved), stopped), metrics

    def step_unless_stopped(state: tuple[Network, Array], batch: Samples) -> tuple[tuple[Network, Array], Metrics]:
        if target is None:
            return step(state, batch)
        idle = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, state, batch)[1])
        return jax.lax.cond(state[1], lambda: (state, idle), lambda: step(state, batch))

    (actor, stopped), metrics = over_minibatches(step_unless_stopped, (actor, stopped), samples, order)
    seen = (metrics["policy/gradient_norm"], metrics["policy/objective"])
    return actor, stopped, metrics | {"finite": all_finite((actor.parameters, seen))}


def improve_critic(
    configuration: TrainConfiguration,
    spaces: Spaces,
    critic: Network,
    samples: Samples,
    order: Array | None,
    schedule: Schedule,
) -> tuple[Network, Metrics]:
    """One pass of the critic over the minibatches ``order``; metrics as in :func:`improve_actor`."""

    def step(critic: Network, batch: Samples) -> tuple[Network, Metrics]:
        loss = lambda parameters: critic_loss(configuration, spaces, parameters, batch)  # noqa: E731
        gradients, metrics = jax.grad(loss, has_aux=True)(critic.parameters)
        critic, norm = descend(configuration, critic, gradients, schedule.critic_learning_rate)
        return critic, metrics | {"critic/gradient_norm": norm, "minibatches": jnp.ones((), jnp.float32)}

    critic, metrics = over_minibatches(step, critic, samples, order)
    seen = (metrics["critic/gradient_norm"], metrics["critic/loss"])
    return critic, metrics | {"finite": all_finite((critic.parameters, seen))}


def settle_penalty(
    configuration: TrainConfiguration, spaces: Spaces, actor: Network, samples: Samples, kl_coefficient: Array
) -> tuple[Array, Metrics]:
    """After a policy update: the KL(π_old‖π) that it came to, and the next update's β."""
    objective = configuration.objective
    if not isinstance(objective, SurrogateObjective) or objective.kl_penalty == "none":
        return kl_coefficient, {}
    policy = action_distribution(spaces, actor.parameters, samples.observations, activation=configuration.network.activation)
    kl = mean_kl(acting_distribution(spaces, samples), policy, samples.valid)
    metrics = {"policy/kl": kl, "policy/kl_coefficient": kl_coefficient}
    if objective.kl_penalty == "adaptive":
        return adapt_kl_coefficient(kl_coefficient, kl=kl, target=objective.kl_target), metrics
    if objective.kl_penalty == "dual":
        rate = objective.dual_learning_rate
        return ascend_kl_multiplier(kl_coefficient, kl=kl, target=objective.kl_target, learning_rate=rate), metrics
    return kl_coefficient, metrics


def all_finite(numbers: Any) -> Array:
    """1 if every number is finite, else 0."""
    return jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(numbers)]).all().astype(jnp.float32)
