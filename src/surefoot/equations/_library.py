"""The only module that asks which array library it was handed.

Everything else in :mod:`surefoot.equations` is written against the Python array API. Three operations have no
portable form that is also fast and differentiable: a reverse recurrence, stopping a gradient, and a stable
log-sum-exp. Whether an array's values are known, or only traced, is a library's own affair too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
from jaxtyping import Shaped as Flags  # what `flag` takes: a shape that is checked, and a dtype that `flag` decides about

__all__ = [
    "Array",
    "Flags",
    "align",
    "flag",
    "log_sigmoid",
    "log_sum_exp",
    "namespace",
    "positions",
    "repeat",
    "reverse_linear_recurrence",
    "stop_gradient",
]

Array = Any
"""An array of any library that the Python array API covers: NumPy, JAX (traced too), PyTorch, array-api-strict."""


def namespace(*arrays: Array) -> Any:
    """The array-API namespace that all ``arrays`` share; Python numbers and ``None`` are passed over.

    Raises:
        TypeError: arrays of two libraries were mixed, or none is an array.
    """
    return array_api_compat.array_namespace(*(a for a in arrays if a is not None and not isinstance(a, int | float)))


def flag(name: str, x: Array | None) -> Any:
    """``x`` as booleans: itself, or where 0 and 1 of an integer or real dtype are 1. ``None`` is passed on.

    Logs and replay buffers keep ends of episodes as uint8 or floats, tokenizers their masks as int64. Of an integer, ``~`` is
    bitwise, and ~1 is true: every flag goes through here before anything else. Values are looked at only where there are any, so
    that this costs nothing while a program is traced, nor where ``x`` is boolean.

    Raises:
        TypeError: ``x`` is no array, or its dtype is neither boolean nor integer nor real.
        ValueError: it holds something else than 0 and 1.
    """
    if x is None:
        return None
    if not array_api_compat.is_array_api_obj(x):
        raise TypeError(f"{name} must be an array of booleans, or of 0 and 1, but is of type {type(x).__name__}")
    xp = namespace(x)
    if xp.isdtype(x.dtype, "bool"):
        return x
    if not xp.isdtype(x.dtype, ("integral", "real floating")):
        raise TypeError(f"{name} must hold booleans, or 0 and 1, but its dtype is {x.dtype}")
    other = (x != 0) & (x != 1)
    if _is_known_to_hold(other):
        raise ValueError(f"{name} must hold booleans, or 0 and 1 alone, but holds {float(x[other][0]):g}")
    return x != 0


def _is_known_to_hold(x: Array) -> bool:
    """Whether any of ``x`` is true; false where it has no values, which is while JAX or PyTorch traces or maps a function."""
    if array_api_compat.is_jax_array(x):
        import jax

        return not isinstance(x, jax.core.Tracer) and bool(x.any())
    if array_api_compat.is_torch_array(x):
        import torch

        try:
            return not (x.is_meta or torch.compiler.is_compiling()) and bool(x.any())
        except RuntimeError:  # torch.func.vmap and fake tensors
            return False
    return bool(namespace(x).any(x))


def align(x: float | Array, like: Array) -> Any:
    """``x`` with axes of length one in front, until it has as many as ``like``: what broadcasting does, in words.

    JAX can be told to refuse to do it by itself, ``jax_numpy_rank_promotion="raise"``.
    """
    if isinstance(x, int | float) or x.ndim in (0, like.ndim):
        return x
    return namespace(x).reshape(x, (1,) * (like.ndim - x.ndim) + tuple(x.shape))


def positions(x: Array) -> Array:
    """0, 1, …, n−1 along the last axis of ``x``, on the device of ``x``."""
    xp = namespace(x)
    if array_api_compat.is_jax_array(x):  # a traced array has no device to name
        return xp.arange(x.shape[-1])
    return xp.arange(x.shape[-1], device=array_api_compat.device(x))


def stop_gradient(x: Array) -> Array:
    """``x`` as a constant: no gradient flows through it."""
    if array_api_compat.is_jax_array(x):
        import jax

        return jax.lax.stop_gradient(x)
    if array_api_compat.is_torch_array(x):
        return x.detach()
    return x


def log_sum_exp(x: Array) -> Array:
    """Log Σ exp x over the last axis, which stays with length one; finite wherever the maximum of ``x`` is."""
    if array_api_compat.is_jax_array(x):
        import jax

        return jax.nn.logsumexp(x, axis=-1, keepdims=True)
    if array_api_compat.is_torch_array(x):
        import torch

        return torch.logsumexp(x, dim=-1, keepdim=True)
    xp = namespace(x)
    shift = xp.max(x, axis=-1, keepdims=True)
    return shift + xp.log(xp.sum(xp.exp(x - shift), axis=-1, keepdims=True))


def log_sigmoid(x: Array) -> Array:
    """Log σ(x) = min(x, 0) − log(1 + exp(−|x|)), without overflow on either side."""
    xp = namespace(x)
    # max(x, 0) = (x + |x|)/2 has the gradient ½ at 0 that σ needs; `minimum` would leave the choice to the library.
    return 0.5 * (x - xp.abs(x)) - xp.log1p(xp.exp(-xp.abs(x)))


def reverse_linear_recurrence(*, coefficients: Array, terms: Array) -> Array:
    """y_t = b_t + a_t · y_{t+1} for t = T−1, …, 0, with y_T = 0.

    Under JAX this is a scan, which compiles in a tenth of the time of an associative scan and, on a CPU, runs faster.
    Elsewhere it takes ⌈log₂ T⌉ rounds of doubling, each of which composes the affine maps of neighbours over whole
    arrays: no Python step per time index, and differentiable by anyone's autograd. Nothing is ever divided, so
    coefficients of zero cut the sum exactly.

    Args:
        coefficients: a_t, shape (T, …).
        terms: b_t, shape (T, …); must be finite, since 0 · inf is NaN.

    Returns:
        y_t, shape (T, …).
    """
    if array_api_compat.is_jax_array(terms):
        import jax

        def step(following: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            coefficient, term = now
            y = term + coefficient * following
            return y, y

        return jax.lax.scan(step, terms[0] * 0, (coefficients, terms), reverse=True)[1]
    xp = namespace(coefficients, terms)
    length, span = terms.shape[0], 1
    while span < length:
        untouched = terms[length - span :, ...]
        terms = xp.concat([terms[:-span, ...] + coefficients[:-span, ...] * terms[span:, ...], untouched], axis=0)
        # Past the end y is 0, so the last rows' coefficients no longer matter.
        coefficients = xp.concat(
            [coefficients[:-span, ...] * coefficients[span:, ...], coefficients[length - span :, ...]], axis=0
        )
        span *= 2
    return terms


def repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    """``step`` applied ``count`` times: a loop inside the program under JAX, where a Python loop would be compiled as many
    times; a Python loop elsewhere.
    """
    first = next(iter(state))
    if array_api_compat.is_jax_array(first):
        import jax

        return jax.lax.fori_loop(0, count, lambda _, s: step(s), state)
    for _ in range(count):
        state = step(state)
    return state
