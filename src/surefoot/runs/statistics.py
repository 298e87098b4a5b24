"""Summaries over seeds: the interquartile mean and its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SeedSummary(NamedTuple):
    """What several seeds reached together."""

    interquartile_mean: float
    low: float
    high: float
    mean: float
    std: float
    seeds: int

    def as_dict(self) -> dict[str, float | int]:
        """The same as a dictionary, for JSON."""
        return dict(self._asdict())


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the middle half of ``values``: ⌊n/4⌋ of the lowest and as many of the highest are left out.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021), section 4.3.
    """
    from scipy.stats import trim_mean  # half a second to import, and only several seeds need it

    return trim_mean(values, 0.25, axis=axis)


def readable(number: float, decimals: int = 1) -> str:
    """A number with so many decimals; one that they would make 0 or nearly, with three digits."""
    return f"{number:.3g}" if 0 < abs(number) < 10.0 ** (1 - decimals) else f"{number:.{decimals}f}"


def summarize_seeds(results: Sequence[float], *, resamples: int = 10_000, confidence: float = 0.95) -> SeedSummary:
    """Interquartile mean with a percentile-bootstrap confidence interval over seeds.

    Args:
        results: one result per seed.
        resamples: bootstrap samples, drawn from a fixed seed so that the same results give the same interval.
        confidence: coverage of the interval.

    Raises:
        ValueError: there are no results.

    Source: Agarwal et al. (2021), section 4.1.
    """
    values = np.asarray(results, dtype=np.float64)
    if values.size == 0:
        raise ValueError("results must hold at least one number, but is empty")
    draws = np.random.default_rng(0).integers(0, values.size, size=(resamples, values.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(interquartile_mean(values[draws]), [tail, 1 - tail])
    return SeedSummary(
        interquartile_mean=float(interquartile_mean(values)),
        low=float(low),
        high=float(high),
        mean=float(values.mean()),
        std=float(values.std()),
        seeds=int(values.size),
    )
