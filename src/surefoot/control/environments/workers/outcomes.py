"""What an environment gives back, checked where it arises: its shape, its type, and that its numbers are finite."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np

from surefoot.control.environments.outputs import WrongOutput, checked_reset, checked_step
from surefoot.control.environments.seeding import seed_environment

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
    """Reset an environment; returns its observation in its space's dtype. With a seed, all that it may draw from is seeded.

    Raises:
        Unusable: it returned something else than an observation of its space's shape, all of it finite, and a dictionary.
    """
    if (seed := options.get("seed")) is not None:
        seed_environment(environment, seed)
    returned = environment.reset(**options)
    try:
        observation, _ = checked_reset(returned, environment.observation_space)
    except WrongOutput as error:
        raise Unusable(f"returned {error}, from reset") from error
    return _finite_observation(observation, environment.observation_space)


def step_checked(environment: gymnasium.Env, action: Any) -> Step:
    """Step an environment.

    Raises:
        Unusable: it returned something else than five values: an observation of its space's shape, a reward, both finite, two
            flags, and a dictionary.
    """
    returned = environment.step(action)
    try:
        observation, reward, terminated, truncated, _ = checked_step(returned, environment.observation_space)
    except WrongOutput as error:
        raise Unusable(f"returned {error}") from error
    if not abs(reward) < LARGEST and not _finite(np.asarray(reward)):
        raise Unusable(f"returned a reward of {reward}")
    return _finite_observation(observation, environment.observation_space), reward, terminated, truncated


def _finite_observation(array: np.ndarray, space: gymnasium.Space) -> np.ndarray:
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


def _finite(values: np.ndarray) -> np.ndarray:
    """Which are finite in float32, the precision that they are learnt from in."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))
