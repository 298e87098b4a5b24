"""The natural step: max gᵀx subject to ½ xᵀF x ≤ δ, solved with products F v alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float

from surefoot.equations._library import Array, namespace, repeat

__all__ = ["ConjugateGradient", "conjugate_gradient", "trust_region_scale"]


class ConjugateGradient(NamedTuple):
    """An approximate solution of F x = g."""

    solution: Float[Array, "n"]
    """x."""
    product: Float[Array, "n"]
    """F x, which the iteration knows without another product."""
    residual: Float[Array, ""]
    """‖g − F x‖ / ‖g‖; 0 where g is 0."""


def conjugate_gradient(
    product: Callable[[Float[Array, "n"]], Float[Array, "n"]],
    vector: Float[Array, "n"],
    *,
    steps: int,
    tolerance: float = 1e-10,
) -> ConjugateGradient:
    """Solve F x = g for a symmetric positive F by conjugate gradients, from x = 0.

    Ends early, without moving any more, once ‖g − F x‖² ≤ tolerance · ‖g‖², or where a direction shows curvature
    pᵀF p ≤ 0, along which a minimum does not exist: x is then what was found before.

    Args:
        product: v ↦ F v.
        vector: g.
        steps: products to spend; in exact arithmetic n of them solve the system.
        tolerance: of the squared relative residual.

    Returns:
        x, F x and the relative residual.

    Source: Hestenes and Stiefel, Methods of Conjugate Gradients for Solving Linear Systems (1952); Schulman et al., Trust
    Region Policy Optimization (2015), appendix C.
    """
    xp = namespace(vector)
    zero = xp.zeros_like(vector)
    size = xp.sum(vector**2)
    State = tuple[Array, Array, Array, Array]

    def step(state: State) -> State:
        solution, residual, direction, goes_on = state
        square = xp.sum(residual**2)
        image = product(direction)
        curvature = xp.sum(direction * image)
        goes_on = goes_on & (square > tolerance * size) & (curvature > 0)
        length = xp.where(goes_on, square / xp.where(goes_on, curvature, xp.ones_like(curvature)), xp.zeros_like(square))
        solution, residual = solution + length * direction, residual - length * image
        turn = xp.sum(residual**2) / xp.where(square > 0, square, xp.ones_like(square))
        return solution, residual, xp.where(goes_on, residual + turn * direction, direction), goes_on

    solution, residual, _, _ = repeat(steps, step, (zero, vector, vector, size > 0))
    left = (xp.sum(residual**2) / xp.where(size > 0, size, xp.ones_like(size))) ** 0.5
    return ConjugateGradient(solution, vector - residual, left)


def trust_region_scale(*, direction: Float[Array, "n"], product: Float[Array, "n"], radius: float | Array) -> Float[Array, ""]:
    """α = √(2δ / xᵀF x): the longest step along x that the quadratic model ½ α² xᵀF x ≤ δ of the KL allows.

    Args:
        direction: x.
        product: F x.
        radius: δ > 0, in nats.

    Returns:
        α, and 0 where xᵀF x is not positive or not finite: no step is better than one that cannot be trusted.

    Source: Schulman et al. (2015), appendix C.
    """
    xp = namespace(direction, product)
    curvature = xp.sum(direction * product)
    usable = (curvature > 0) & xp.isfinite(curvature)
    scale = (2 * radius / xp.where(usable, curvature, xp.ones_like(curvature))) ** 0.5
    return xp.where(usable, scale, xp.zeros_like(scale))
