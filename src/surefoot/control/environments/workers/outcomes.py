"""What an environment gives back, checked where it arises: its shape, its type, its numbers."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np

LONGEST = 500
"""Characters of an exception's message that are passed on."""

LARGEST = float(np.finfo(np.float32).max)

Step = tuple[np.ndarray, float, bool, bool]
"""Observation, reward, terminated, truncated."""


class Unusable(Exception):
    """An environment gave back what it must not; the message goes on from "environment 3"."""


def one_line(error: Exception) -> str:
    """An exception's message, without line ends and no longer than a sentence should be."""
    return " ".join(str(error).split())[:LONGEST]


def describe_exception(error: Exception) -> str:
    """What an environment did that raised; goes on from "environment 3"."""
    return f"raised {type(error).__name__}: {one_line(error)}"


def reset_checked(environment: gymnasium.Env, **options: Any) -> np.ndarray:
    """Reset an environment; returns its observation in its space's dtype.

    Raises:
        Unusable: it returned something else than an observation of its space's shape, all of it finite, and a dictionary.
    """
    result = environment.reset(**options)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Unusable(f"returned {_described(result)} from reset, which must return an observation and a dictionary")
    return _observation(result[0], environment.observation_space)


def step_checked(environment: gymnasium.Env, action: Any) -> Step:
    """Step an environment.

    Raises:
        Unusable: it returned something else than five values: an observation of its space's shape, a reward, both finite, two
            flags, and anything.
    """
    result = environment.step(action)
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise Unusable(
            f"returned {_described(result)} from step, which must return an observation, a reward, terminated, truncated and a"
            " dictionary"
        )
    observation, reward, terminated, truncated, _ = result
    return (
        _observation(observation, environment.observation_space),
        _reward(reward),
        _flag(terminated, "terminated"),
        _flag(truncated, "truncated"),
    )


def _observation(value: Any, space: gymnasium.Space) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise Unusable(f"returned an observation that is no array: {error}") from error
    if array.shape != space.shape:
        raise Unusable(f"returned an observation of shape {array.shape}, where its space has {space.shape}")
    # What Gymnasium's vector environments take over without a word: float64 for float32, but no float for an integer.
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise Unusable(f"returned an observation of dtype {array.dtype}, where its space has {space.dtype}")
    if array.dtype == np.float32 == space.dtype and math.isfinite(array.sum(dtype=np.float64)):
        return array  # nearly always; one sum is cheaper than a look at every number
    with np.errstate(over="ignore"):
        converted = array.astype(space.dtype, copy=False)
    finite = _finite(converted)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        where = f" in component {index[0]}" if index else ""
        raise Unusable(f"returned an observation of {array[index]}{where}")
    return converted


def _reward(value: Any) -> float:
    if type(value) is float and abs(value) < LARGEST:
        return value
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise Unusable(f"returned a reward that is no number: {_described(value)}") from error
    if array.size != 1:
        raise Unusable(f"returned a reward of shape {array.shape}, where a number is right")
    if not _finite(array).all():
        raise Unusable(f"returned a reward of {array.item()}")
    return array.item()


def _flag(value: Any, name: str) -> bool:
    if value is True or value is False:
        return value
    array = np.asarray(value)
    if array.size != 1 or array.item() not in (0, 1):
        raise Unusable(f"returned {_described(value)} for {name}, where True or False is right")
    return bool(array.item())


def _finite(values: np.ndarray) -> np.ndarray:
    """Which are finite in float32, the precision that they are learnt from in."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values"
    return "None" if value is None else f"one of {type(value).__name__}"
