"""Running scales of observations and rewards: explicit state and pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from surefoot.equations import Array, namespace

RESOLUTION, FINE_RESOLUTION = 2.0**-22, 2.0**-44
"""A spread of at most this share of the mean's size is rounding: two units in the last place of float32; and of float64 numbers,
of which the mean was subtracted before they became float32."""
LARGEST = 1e18
"""Statistics see larger samples as this: their squares would overflow float32, and the statistics be lost for ever. Spreads below
its reciprocal, whose squares float32 does not hold either, count as none."""


class RunningStatistics(NamedTuple):
    """Mean and variance of all samples seen so far, per component, and how many they were.

    The mean is the sum of two float32 numbers, so that it is as exact as the samples' spread wants it where that is small beside
    their size. The first of them is subtracted from a sample before anything else, in the sample's own precision: what is left is of
    the spread's size, and loses nothing as float32.
    """

    mean: Array
    variance: Array
    """0 where all samples were alike, relative to their size."""
    count: Array
    remainder: Array = np.float32(0)
    """What float32 leaves out of the mean."""


def no_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Before the first sample; every sample is scaled to 0."""
    mean, variance, remainder = (np.zeros(shape, np.float32) for _ in range(3))
    return RunningStatistics(mean, variance, np.float32(0), remainder)


def statistics_of(samples: np.ndarray) -> RunningStatistics:
    """Of samples of shape (batch, …components), computed in float64."""
    mean = samples.mean(axis=0, dtype=np.float64)
    spread = samples.std(axis=0, dtype=np.float64)
    alike = spread <= np.finfo(samples.dtype if samples.dtype.kind == "f" else np.float64).eps * np.abs(mean)
    rounded = mean.astype(np.float32)
    variance = np.where(alike, 0, spread**2).astype(np.float32)
    return RunningStatistics(rounded, variance, np.float32(len(samples)), (mean - rounded).astype(np.float32))


def resolution_of(dtype: Any) -> float:
    """The smallest spread, as a share of the mean's size, that samples of a dtype tell from rounding."""
    return FINE_RESOLUTION if np.promote_types(dtype, np.float32) == np.float64 else RESOLUTION


def center(x: Array, statistics: RunningStatistics) -> Array:
    """X less the mean's first part, in the precision of x or in float32, whichever is finer; what statistics and normaliser take."""
    return x - statistics.mean


def update_statistics(
    statistics: RunningStatistics, centered: Array, valid: Array, *, resolution: float = RESOLUTION
) -> RunningStatistics:
    """Merge a batch into running statistics.

    With n samples of mean m and variance v before, and n′, m′, v′ in the batch: m″ = m + (m′ − m) n′/(n + n′), and
    v″ = (n v + n′ v′ + (m′ − m)² n n′/(n + n′)) / (n + n′). Multiplied by a power of two, samples have statistics that are multiplied
    by it, to the bit, between 1/LARGEST and LARGEST.

    Args:
        statistics: before; with a count of 0 only the batch counts.
        centered: samples as :func:`center` leaves them, shape (batch, …components).
        valid: which samples count, shape (batch,).
        resolution: up to which share of the mean's size a standard deviation is rounding, and the variance 0.

    Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979); for the sum
        of two numbers Knuth, The Art of Computer Programming, volume 2, section 4.2.2.
    """
    xp = namespace(centered)
    weights = xp.astype(valid, centered.dtype)
    weights = xp.reshape(weights, (weights.shape[0],) + (1,) * (centered.ndim - 1))
    samples = xp.clip(xp.where(weights > 0, centered, xp.zeros_like(centered)), -LARGEST, LARGEST)
    added = xp.sum(weights)
    each = weights / xp.where(added > 0, added, xp.ones_like(added))
    # The first sum's rounding is of the samples' size; the second one's, of what is left, is of the spread's.
    rough = xp.sum(each * samples, axis=0)
    left = samples - rough
    fine = xp.sum(each * left, axis=0)
    variance = xp.sum((each * (left - fine)) * (left - fine), axis=0)
    total = statistics.count + added
    share = added / xp.where(total > 0, total, xp.ones_like(total))
    gap = (rough - statistics.remainder) + fine
    merged = (1 - share) * statistics.variance + share * variance + (gap * share) * (gap * (1 - share))
    merged = xp.where(added > 0, merged, statistics.variance)
    step = statistics.remainder + share * (rough - statistics.remainder)
    mean, lost = _exact_sum(statistics.mean, step)
    mean, remainder = _exact_sum(mean, lost + share * fine)
    alike = xp.sqrt(merged) <= resolution * xp.abs(mean)
    return RunningStatistics(mean, xp.where(alike, xp.zeros_like(merged), merged), total, remainder)


def _exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A + b as it is rounded, and what was rounded off."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def scale(centered: Array, statistics: RunningStatistics, *, clip: float) -> Array:
    """(x − mean)/√variance, clipped to ±``clip``, for x as :func:`center` leaves it; 0 where all samples were alike."""
    xp = namespace(centered)
    deviation = xp.sqrt(statistics.variance)
    limit = clip * deviation  # before the division: where there is no spread, whatever comes is 0
    return xp.clip(centered - statistics.remainder, -limit, limit) / xp.where(deviation > 0, deviation, 1)


def normalize(x: Array, statistics: RunningStatistics, *, clip: float) -> Array:
    """(x − mean)/√variance, clipped to ±``clip``, in float32; see :func:`center` and :func:`scale`."""
    xp = namespace(x)
    return scale(xp.astype(center(x, statistics), xp.float32), statistics, clip=clip)


def scale_rewards(rewards: Array, statistics: RunningStatistics, *, clip: float) -> Array:
    """Rewards divided by the standard deviation of the discounted returns, clipped to ±``clip``; by the returns' size where all
    were alike. Nothing is subtracted: a reward's sign means something.
    """
    xp = namespace(rewards)
    size = xp.abs(statistics.mean)
    size = xp.where(size > 0, size, xp.ones_like(size))
    variance = statistics.variance
    return xp.clip(rewards / xp.where(variance > 0, xp.sqrt(variance), size), -clip, clip)


def running_returns(*, rewards: Array, ends: Array, valid: Array, start: Array, discount: float) -> tuple[Array, Array]:
    """R_t = γ R_{t−1} + r_t for every environment, restarted after both kinds of episode end.

    Args:
        rewards: r_t, shape (time, envs), JAX.
        ends: whether the episode ended with step t, either way.
        valid: which steps are real; others leave R as it is.
        start: R before the first step, shape (envs,).
        discount: γ.

    Returns:
        R_t, shape (time, envs), and R to go on from, shape (envs,).
    """
    import jax

    def step(before: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, end, real = now
        total = jax.numpy.where(real, discount * before + reward, before)
        return jax.numpy.where(end, 0.0, total), total

    last, totals = jax.lax.scan(step, start, (rewards, ends, valid))
    return totals, last
