"""What one environment returned, checked before anything is computed from it.

NumPy would make a number of nearly everything: "3" a reward of 3, None an end that did not come, a row of one a row of many.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space

NUMBERS = "biuf"
"""Kinds of NumPy's types that are real numbers."""
STEP = "(observation, reward, terminated, truncated, info)"


class WrongOutput(Exception):
    """What was returned and what would be right, in words that follow "environment 3 of NAME returned"."""


def checked_step(returned: Any, space: Space) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """What ``step`` returned, as its own types.

    Args:
        returned: anything.
        space: of the observations, a Box.

    Raises:
        WrongOutput: it is not five values; or one of them is not what Gymnasium's interface says. Whether numbers are finite is
            left to whoever sees those of all environments together, which is cheaper.
    """
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise WrongOutput(f"{_described(returned)}, where {STEP} is right")
    observation, reward, terminated, truncated, info = returned
    plain = type(observation) is np.ndarray and type(reward) is float and type(terminated) is bool and type(truncated) is bool
    if plain and observation.dtype is space.dtype and observation.shape == space.shape and type(info) is dict:
        return returned  # as nearly all are; a microsecond counts here
    return (
        _observation(observation, space),
        _reward(reward),
        _flag(terminated, "terminated"),
        _flag(truncated, "truncated"),
        _info(info),
    )


def checked_reset(returned: Any, space: Space) -> tuple[np.ndarray, dict[str, Any]]:
    """What ``reset`` returned, as its own types.

    Args:
        returned: as for :func:`checked_step`, like ``space``.
        space: of the observations.

    Raises:
        WrongOutput: it is not an observation and a dictionary.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise WrongOutput(f"{_described(returned)}, where (observation, info) is right")
    return _observation(returned[0], space), _info(returned[1])


def checked_rows(values: Any, what: str, shape: tuple[int, ...], *, flags: bool = False, column: bool = False) -> np.ndarray:
    """One row per environment, as vector environments return them.

    Args:
        values: anything.
        what: what it should be, in the plural.
        shape: that it must have.
        flags: whether they are true or false, and not numbers.
        column: whether a column of them is taken as well, and of one environment the number alone.

    Raises:
        WrongOutput: it has another shape, or other values.
    """
    array = values if type(values) is np.ndarray else _array(values, what)
    if column and array.shape != shape and array.size == shape[0] and array.shape in ((*shape, 1), ()):
        array = array.reshape(shape)
    if array.shape != shape:
        raise WrongOutput(f"{what} of shape {array.shape}, where {shape} is right")
    if flags:
        array = _as_flags(array)
    if array.dtype.kind not in ("b" if flags else NUMBERS):
        raise WrongOutput(f"{what} that are {array.dtype}, where {'true or false' if flags else 'numbers'} would be right")
    return array


def _observation(value: Any, space: Space) -> np.ndarray:
    array = value if type(value) is np.ndarray else _array(value, "an observation")
    dtype = array.dtype
    # The first comparison settles what environments do that keep to their space.
    if dtype is not space.dtype and dtype != space.dtype:
        if dtype.kind not in NUMBERS:
            raise WrongOutput(f"an observation that is {_described(value)}, where its space says numbers, {space.dtype}")
        if not np.can_cast(dtype, space.dtype, "same_kind"):
            raise WrongOutput(f"an observation of {dtype}, where its space says {space.dtype}")
        _refuse_too_large(array, space)
    if array.shape != space.shape:
        raise WrongOutput(f"an observation of shape {array.shape}, where its space says {space.shape}")
    return array


def _refuse_too_large(array: np.ndarray, space: Space) -> None:
    """Name a number that would be infinite in the space's dtype while it is still there to be named."""
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(array.astype(space.dtype))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f" in component {index[0]}" if index else ""
        raise WrongOutput(f"an observation of {array[index]}{where}, which is no finite number in {space.dtype}")


def _reward(value: Any) -> float:
    if type(value) is not float:
        array = _array(value, "a reward")
        if array.size != 1 or array.dtype.kind not in NUMBERS:  # whatever its shape, one number is one number
            raise WrongOutput(f"a reward that is {_described(value)}, where one number is right")
        value = float(array.item())
    return value


def _flag(value: Any, name: str) -> bool:
    if value is True or value is False:
        return value
    array = _as_flags(_array(value, name))
    if array.shape != () or array.dtype.kind != "b":
        raise WrongOutput(f"{name} that is {_described(value)}, where true or false is right")
    return bool(array)


def _as_flags(array: np.ndarray) -> np.ndarray:
    """Integers 0 and 1, which can mean only one thing, as false and true; anything else as it is."""
    return array.astype(bool) if array.dtype.kind in "iu" and ((array == 0) | (array == 1)).all() else array


def _info(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongOutput(f"an info that is {_described(value)}, where a dictionary is right")
    return value


def _array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # rows of different lengths; or what an object's own conversion raises
        raise WrongOutput(f"{what} that no array can be made of ({type(error).__name__})") from error


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape} and type {value.dtype}"
    return "None" if value is None else f"{type(value).__name__}"
