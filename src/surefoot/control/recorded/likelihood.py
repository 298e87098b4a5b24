"""Log-likelihoods of recorded actions, in float64, for the policy that took them and for any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from surefoot.control.policies.normalization import RunningStatistics, center, scale
from surefoot.control.policies.policy import Policy, action_distribution
from surefoot.control.recorded.load import RecordedData
from surefoot.equations import Array, namespace

HALF_LOG_TWO_PI = 0.9189385332046727
STEPS_AT_ONCE = 65_536
"""A network's hidden layers over a million steps at once would take gigabytes."""


def action_log_likelihood(
    distribution: Any, actions: Array, *, at_bound: Array | None, log_normal_cdf: Callable[[Array], Array]
) -> Array:
    """Log π(a|s) of actions, of which some components may be known only to have been clipped.

    A component that was clipped to its upper bound b had been at least b: its probability is 1 − Φ((b − μ)/σ), where a
    component inside counts with its density. Two policies that are scored alike have the right ratio: it is that of
    the probabilities of what the environment was given.

    Args:
        distribution: π(·|s), a DiagonalGaussian wherever ``at_bound`` is given.
        actions: in the policy's own units, shape (…, components) or (…,).
        at_bound: −1, 0, 1 for at the lower bound, inside, at the upper bound, shape of ``actions``; None where the
            actions are as they were sampled.
        log_normal_cdf: log Φ of the array library (SciPy's or JAX's ``log_ndtr``).

    Returns:
        in nats, shape (…,).
    """
    if at_bound is None:
        return distribution.log_probability(actions)
    xp = namespace(distribution.mean)
    standardized = (actions - distribution.mean) * xp.exp(-distribution.log_std)
    inside = -0.5 * standardized**2 - distribution.log_std - HALF_LOG_TWO_PI
    beyond = log_normal_cdf(xp.where(at_bound > 0, -standardized, standardized))
    return xp.sum(xp.where(at_bound == 0, inside, beyond), axis=-1)


def policy_log_likelihood(
    policy: Policy, *, observations: np.ndarray, actions: np.ndarray, at_bound: np.ndarray | None = None
) -> np.ndarray:
    """Log π(a|s) under a saved policy.

    The same numbers as the policy's own, to float32's rounding, without accumulating it: over a thousand steps that
    rounding would show in the weight of an episode.

    Args:
        policy: π.
        observations: as the environment gave them, shape (…, observation size).
        actions: in the policy's own units: neither scaled nor clipped, counted from 0.
        at_bound: see :func:`action_log_likelihood`.

    Returns:
        in nats, shape (…,), float64.
    """
    from scipy.special import log_ndtr

    known = policy.observation_statistics
    centered = np.asarray(observations) if known is None else center(np.asarray(observations), known)
    inputs = centered.astype(np.float32).astype(np.float64)  # what the policy saw
    if known is not None:
        statistics = RunningStatistics(*(np.asarray(part, np.float64) for part in known))
        inputs = scale(inputs, statistics, clip=policy.observation_clip)
    parameters = {name: np.asarray(value, np.float64) for name, value in policy.parameters.items()}
    distribution = action_distribution(policy.spaces, parameters, inputs, activation=policy.activation)
    return np.asarray(action_log_likelihood(distribution, actions, at_bound=at_bound, log_normal_cdf=log_ndtr))


def recorded_log_likelihood(policy: Policy, data: RecordedData) -> np.ndarray:
    """Log π(a_t|s_t) of every recorded step, in nats, shape (time, episodes), 0 behind the ends."""
    steps = np.argwhere(data.valid)
    scores = np.zeros(data.valid.shape)
    for start in range(0, len(steps), STEPS_AT_ONCE):
        rows = tuple(steps[start : start + STEPS_AT_ONCE].T)
        scores[rows] = policy_log_likelihood(
            policy,
            observations=data.observations[:-1][rows],
            actions=data.actions[rows],
            at_bound=None if data.at_bound is None else data.at_bound[rows],
        )
    return scores
