"""TRPO's step: the natural gradient, as far as KL(π_old‖π) ≤ δ allows, and only where the surrogate does not fall.

Source: Schulman et al., Trust Region Policy Optimization (2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.policies.networks import Parameters, evaluate_network
from surefoot.control.policies.spaces import Spaces
from surefoot.control.update.descent import all_finite
from surefoot.control.update.objectives import mean_kl, ratio_metrics, ratio_of
from surefoot.control.update.state import Metrics, Network, Samples, Schedule
from surefoot.equations import Array, Distribution, conjugate_gradient, masked_mean, trust_region_scale

Outputs = dict[str, Array]


def outputs_of(configuration: TrainConfiguration, parameters: Parameters, observations: Array) -> Outputs:
    """What the policy's distribution is made of: the network's outputs, and log σ where there is one."""
    outputs = {"outputs": evaluate_network(parameters, observations, activation=configuration.network.activation)}
    return outputs | {name: parameters[name] for name in ("log_std",) if name in parameters}


class Linearization(NamedTuple):
    """The policy around θ_old."""

    outputs: Outputs
    """z(θ_old)."""
    pull: Callable[[Outputs], tuple[Array]]
    """u ↦ Jᵀu."""
    fisher_product: Callable[[Array], Array]
    """v ↦ F v, without damping."""


def linearize(
    configuration: TrainConfiguration, spaces: Spaces, start: Array, unravel: Callable[[Array], Parameters], samples: Samples
) -> Linearization:
    """Linearise the policy's outputs at θ_old, once for all products.

    F = E[Jᵀ H J], with J the Jacobian of the outputs z(θ) and H the Hessian of KL(π_old‖π) in z: at θ_old this is the KL's
    whole Hessian, since its gradient is 0 there.
    """
    outputs, push = jax.linearize(lambda vector: outputs_of(configuration, unravel(vector), samples.observations), start)
    pull = jax.linear_transpose(push, start)
    old = distribution_of(spaces, outputs)
    slope = jax.grad(lambda z: mean_kl(old, distribution_of(spaces, z), samples.valid))
    product = lambda vector: pull(jax.jvp(slope, (outputs,), (push(vector),))[1])[0]  # noqa: E731
    return Linearization(outputs, pull, product)


def distribution_of(spaces: Spaces, outputs: Outputs) -> Distribution:
    """π(·|s) from its outputs."""
    return spaces.action.distribution(outputs["outputs"], outputs.get("log_std"))


def natural_step(
    configuration: TrainConfiguration, spaces: Spaces, actor: Network, samples: Samples, schedule: Schedule
) -> tuple[Network, Metrics]:
    """One natural step on the surrogate L(θ) = E[ρ ψ].

    1. g = ∇L(θ_old), which is the policy gradient, since ρ = 1 there.
    2. x ≈ (F + damping)⁻¹ g by conjugate gradients; the Fisher matrix is never formed (see :func:`linearize`).
    3. s = α x with ½ sᵀ(F + damping) s = δ: the longest step that the quadratic model of the KL allows, or a little less,
       since the damping counts as curvature.
    4. s is shortened until KL ≤ δ and L has not fallen, both measured; if no length passes, nothing moves.

    Returns:
        the actor, and metrics: kl of the accepted step, the improvement of L that the gradient promised and the one that
        came, how often the step was shortened, whether it was accepted, and the relative residual of the system.
    """
    region = configuration.trust_region
    assert region is not None
    start, unravel = ravel_pytree(actor.parameters)
    valid, weights = samples.valid, samples.weights

    around = linearize(configuration, spaces, start, unravel, samples)
    old = distribution_of(spaces, around.outputs)

    def surrogate(outputs: Outputs) -> Array:
        return masked_mean(ratio_of(distribution_of(spaces, outputs), samples)[0] * weights, valid)

    def damped_product(vector: Array) -> Array:
        return around.fisher_product(vector) + region.damping * vector

    before, slope = jax.value_and_grad(surrogate)(around.outputs)
    (gradient,) = around.pull(slope)
    solved = conjugate_gradient(damped_product, gradient, steps=region.conjugate_gradient_steps)
    step = trust_region_scale(direction=solved.solution, product=solved.product, radius=schedule.max_kl) * solved.solution

    def try_length(number: Array) -> tuple[Array, Array, Array]:
        vector = start + region.backtrack_factor**number * step
        outputs = outputs_of(configuration, unravel(vector), samples.observations)
        kl, gain = mean_kl(old, distribution_of(spaces, outputs), valid), surrogate(outputs) - before
        # Comparisons with a number that is not one are false: such a step is not accepted.
        return (kl <= schedule.max_kl) & (gain >= 0), kl, gain

    def shorten(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number = state[0] + 1
        return (number, *try_length(number.astype(step.dtype)))

    last = region.backtracks
    first = (np.int32(0), *try_length(jnp.zeros((), step.dtype)))
    number, accepted, kl, gain = jax.lax.while_loop(lambda s: ~s[1] & (s[0] < last), shorten, first)
    length = jnp.where(accepted, region.backtrack_factor ** number.astype(step.dtype), 0.0)
    # Not start + 0 · step: the step may hold numbers that are not finite.
    vector = jnp.where(accepted, start + length * step, start)
    parameters = unravel(vector)
    policy = distribution_of(spaces, outputs_of(configuration, parameters, samples.observations))
    _, log_probabilities = ratio_of(policy, samples)
    metrics = {
        "policy/objective": before,
        "policy/entropy": masked_mean(policy.entropy(), valid),
        "policy/kl": jnp.where(accepted, kl, 0.0),
        "policy/improvement": jnp.where(accepted, gain, 0.0),
        "policy/expected_improvement": jnp.where(accepted, length * jnp.vdot(gradient, step), 0.0),
        "policy/backtracks": number.astype(step.dtype),
        "policy/accepted": accepted.astype(step.dtype),
        "policy/conjugate_gradient_residual": solved.residual,
        "policy/gradient_norm": jnp.linalg.norm(gradient),
        **ratio_metrics(log_probabilities - samples.log_probabilities, valid),
        "minibatches": jnp.ones((), jnp.float32),
    }
    return Network(parameters, actor.optimizer), metrics | {"finite": all_finite(parameters)}
