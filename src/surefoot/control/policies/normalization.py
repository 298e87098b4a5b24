"""Running scales of observations and rewards: explicit state and pure functions."""

from __future__ import annotations

from typing import NamedTuple

from surefoot.equations import Array, namespace

VARIANCE_FLOOR = 1e-8
LARGEST = 1e15
"""Statistics see larger samples as this: their squares would overflow float32, and the statistics be lost for ever."""


class RunningStatistics(NamedTuple):
    """Mean and variance of all samples seen so far, per component, and how many they were."""

    mean: Array
    variance: Array
    count: Array


def update_statistics(statistics: RunningStatistics, samples: Array, valid: Array) -> RunningStatistics:
    """Merge a batch into running statistics.

    With n samples of mean m and variance v before, and n′, m′, v′ in the batch: m″ = m + (m′ − m) n′/(n + n′), and
    v″ = (n v + n′ v′ + (m′ − m)² n n′/(n + n′)) / (n + n′).

    Args:
        statistics: before; with a count of 0 only the batch counts.
        samples: shape (batch, …components).
        valid: which samples count, shape (batch,).

    Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
    """
    xp = namespace(samples)
    weights = xp.astype(valid, samples.dtype)
    weights = xp.reshape(weights, (weights.shape[0],) + (1,) * (samples.ndim - 1))
    samples = xp.clip(xp.where(weights > 0, samples, xp.zeros_like(samples)), -LARGEST, LARGEST)
    added = xp.sum(weights)
    divisor = xp.where(added > 0, added, xp.ones_like(added))
    mean = xp.sum(samples, axis=0) / divisor
    variance = xp.sum(weights * (samples - mean) ** 2, axis=0) / divisor
    total = statistics.count + added
    share = added / xp.where(total > 0, total, xp.ones_like(total))
    gap = mean - statistics.mean
    merged = (1 - share) * statistics.variance + share * variance + (gap * share) * (gap * (1 - share))
    return RunningStatistics(statistics.mean + gap * share, xp.where(total > 0, merged, statistics.variance), total)


def normalize(x: Array, statistics: RunningStatistics, *, clip: float) -> Array:
    """(x − mean)/√variance, clipped to ±``clip``."""
    xp = namespace(x)
    return xp.clip((x - statistics.mean) * (statistics.variance + VARIANCE_FLOOR) ** -0.5, -clip, clip)


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
