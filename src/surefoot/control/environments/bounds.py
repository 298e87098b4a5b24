"""Whether observations keep to the space that their environment declares, and whether float32 can tell them apart."""

from __future__ import annotations

import gymnasium
import numpy as np

from surefoot.errors import Caution

ROUNDING = 1e-6
"""Share of its size, and of the mean's that was subtracted, by which a number may be beyond a bound."""
HARDLY = 16
"""So many times the smallest spread that is not rounding, few values are left to tell apart."""


class Bounds:
    """Looks at whole rollouts, until one observation was outside.

    Args:
        name: the environment's.
        space: of one observation.
    """

    def __init__(self, name: str, space: gymnasium.spaces.Box) -> None:
        self._name = name
        self._low, self._high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
        self._open = not (np.isfinite(self._low) | np.isfinite(self._high)).any()

    def outside(self, centered: np.ndarray, mean: np.ndarray) -> tuple[str, ...]:
        """The sentence for the first observation outside its space, once.

        Args:
            centered: a rollout's observations, shape (T+1, N, size).
            mean: what was subtracted from them, shape (size,).
        """
        if self._open:
            return ()
        low, high = (
            bound + sign * ROUNDING * (np.abs(mean) + np.abs(bound)) for bound, sign in ((self._low, -1), (self._high, 1))
        )
        least, most = centered.min(axis=(0, 1)) + mean, centered.max(axis=(0, 1)) + mean
        bad = (least < low) | (most > high)
        if not bad.any():
            return ()
        self._open = True
        component = int(np.argmax(bad))
        values = centered[..., component].astype(np.float64) + mean[component]
        step, environment = np.argwhere((values < low[component]) | (values > high[component]))[0]
        said = (
            f"environment {environment} of {self._name} returned an observation outside its space: component {component} was"
            f" {values[step, environment]:.6g}, where {self._low[component]:.6g} … {self._high[component]:.6g} is right; it is taken as"
            " it is"
        )
        return (Caution(said),)


def hardly_told_apart(mean: np.ndarray, spread: np.ndarray, *, resolution: float, dtype: str) -> tuple[str, ...]:
    """The sentence for observations of which few digits vary, where there are such.

    Args:
        mean: of each component.
        spread: their standard deviations.
        resolution: the smallest spread, as a share of the size, that is not taken for rounding.
        dtype: what they are told apart in.
    """
    hardly = np.flatnonzero((spread > 0) & (spread < HARDLY * resolution * np.abs(mean)))
    if not len(hardly):
        return ()
    first, others = hardly[0], f" (and {len(hardly) - 1} more like it)" if len(hardly) > 1 else ""
    said = (
        f"component {first} of the observations{others} is {mean[first]:.3g} with a spread of {spread[first]:.1g}, which {dtype} can"
        " hardly tell apart; shift it in the environment"
    )
    return (Caution(said),)
