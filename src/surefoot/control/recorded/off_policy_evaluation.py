"""How good a saved policy is, from data that another policy recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from surefoot.control.policies.policy import Policy, load_policy
from surefoot.control.recorded.likelihood import recorded_log_likelihood
from surefoot.control.recorded.load import RecordedData, load_recorded
from surefoot.equations.importance import WeightDiagnostics, cumulative_log_weights, weight_diagnostics
from surefoot.equations.off_policy import (
    ImportanceEstimate,
    ordinary_importance_estimate,
    per_decision_importance_estimate,
    weighted_importance_estimate,
    weighted_per_decision_importance_estimate,
)
from surefoot.errors import Caution, UsageError

Estimator = Literal["weighted-per-decision", "per-decision", "weighted", "ordinary"]

COLLAPSED = 3.0
"""Below this effective sample size nothing is reported unless asked for: the interval would rest on two episodes."""
SMALL, SMALL_SHARE = 30.0, 0.1
"""Below either the result carries a warning."""
UNSEEN = 0.1
"""A mean weight below this, where 1 is expected: nine tenths of what the policy does are not in the data."""
USUAL_MEAN = (0.5, 2.0)
"""A mean weight outside carries a warning."""
RESAMPLES, RESAMPLES_AT_ONCE = 2000, 100


def evaluate_from_data(
    run: str | Path,
    file: str | Path,
    *,
    estimator: Estimator = "weighted-per-decision",
    discount: float = 1.0,
    clip: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    accept_small_sample: bool = False,
) -> dict[str, Any]:
    """Estimate J(π) = E_π[Σ_t γ^t r_t] of a saved policy, actions sampled, from recorded episodes of another.

    Args:
        run: the run's folder: π.
        file: a Minari data set, see :func:`load_recorded`: episodes of μ.
        estimator: weighted-per-decision by default: it never leaves the range of the rewards, a reward is not weighted
            by what was done after it, and of the four its error is the smallest on every problem measured here; it is
            biased by O(1/episodes). ordinary and per-decision are unbiased.
        discount: γ; 1 for the plain sum of rewards that ``evaluate`` reports.
        clip: c, cuts weights to min(w, c): less variance, and biased towards the policy that acted where the estimator is
            weighted, towards 0 where it is not.
        confidence: coverage of the interval, from a percentile bootstrap over episodes.
        seed: of the bootstrap and of a fitted behaviour policy.
        accept_small_sample: report even where the sample has collapsed.

    Returns:
        env, data, dataset, estimator, discount, clip, episodes, steps, estimated_return, standard_error, confidence,
        interval (two numbers), data_mean_return (of the policy that acted, same γ), effective_sample_size, mean_weight,
        weight_variance, largest_weight (of whole episodes, before any cut), behavior (recorded or estimated),
        behavior_held_out_log_likelihood (nats per step, where estimated, else None), actions_at_bound (steps), notices.

    Raises:
        UsageError: an option is out of range; there is no policy or no data; they do not fit together; or the sample
            has collapsed.
    """
    _check(estimator, discount, clip, confidence, seed)
    policy = load_policy(run)
    data = load_recorded(file, policy.spaces)
    notices = list(data.notices)
    if data.env is not None and data.env != policy.description.get("env"):
        notices.append(f"the data are of {data.env}, the policy was trained on {policy.description.get('env')}")
    behavior_scores, held_out = _behavior(data, policy, seed, notices)
    scores = recorded_log_likelihood(policy, data)
    log_weights = cumulative_log_weights(log_probabilities=scores, behavior_log_probabilities=behavior_scores, valid=data.valid)
    diagnostics = weight_diagnostics(log_weights=log_weights[-1])
    notices += _judge(diagnostics, data.episodes, accept_small_sample)
    if clip is not None and (cut := int((log_weights[-1] > np.log(clip)).sum())):
        notices.append(f"the weights of {cut} of {data.episodes} episodes were cut to {clip:g}, which biases the estimate")
    at_bound = 0 if data.at_bound is None else int((np.any(data.at_bound != 0, axis=-1) & data.valid).sum())
    if at_bound:
        notices.append(
            f"{at_bound} of {data.steps} actions lie at a bound and the data do not say by how much they were clipped;"
            " they are weighted by the probability of being clipped"
        )
    returns = (discount ** np.arange(len(data.rewards))[:, None] * data.rewards).sum(axis=0)
    if estimator in ("ordinary", "weighted"):
        whole = ordinary_importance_estimate if estimator == "ordinary" else weighted_importance_estimate
        result = whole(log_weights=log_weights[-1], returns=returns, limit=clip)
    else:
        decided = per_decision_importance_estimate if estimator == "per-decision" else weighted_per_decision_importance_estimate
        result = decided(log_weights=log_weights, rewards=data.rewards, discount=discount, valid=data.valid, limit=clip)
    low, high = bootstrap_interval(result, confidence=confidence, seed=seed)
    return {
        "env": str(policy.description.get("env")),
        "data": str(file),
        "dataset": data.dataset,
        "estimator": estimator,
        "discount": discount,
        "clip": clip,
        "episodes": data.episodes,
        "steps": data.steps,
        "estimated_return": float(result.estimate),
        "standard_error": float(np.std(result.terms, ddof=1) / np.sqrt(data.episodes)) if data.episodes > 1 else None,
        "confidence": confidence,
        "interval": [low, high],
        "data_mean_return": float(returns.mean()),
        **{name: float(value) for name, value in diagnostics._asdict().items()},
        "behavior": "recorded" if held_out is None else "estimated",
        "behavior_held_out_log_likelihood": held_out,
        "actions_at_bound": at_bound,
        "notices": [Caution(notice) for notice in notices],
    }


def _check(estimator: str, discount: float, clip: float | None, confidence: float, seed: int) -> None:
    if estimator not in get_args(Estimator):
        raise UsageError(f"there is no --estimator {estimator}; there are {', '.join(get_args(Estimator))}")
    if not 0 <= discount <= 1:
        raise UsageError(f"--discount must lie between 0 and 1, but is {discount}")
    if clip is not None and not 0 < clip < float("inf"):
        raise UsageError(f"--clip must be positive, but is {clip}")
    if not 0 < confidence < 1:
        raise UsageError(f"--confidence must lie between 0 and 1, but is {confidence}")
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed must lie between 0 and 2147483647, but is {seed}")


def _behavior(data: RecordedData, policy: Policy, seed: int, notices: list[str]) -> tuple[np.ndarray, float | None]:
    """Log μ(a|s), and the held-out log-likelihood where μ had to be estimated."""
    if data.log_probabilities is not None:
        return data.log_probabilities, None
    from surefoot.control.recorded.behavior import fit_behavior  # JAX, needed only here

    fitted = fit_behavior(data, policy.spaces, seed=seed)
    notices.append(
        "the data do not say how likely their actions were: the behaviour policy is estimated from them"
        f" ({fitted.held_out_log_likelihood:.3f} nats per step on held-out episodes,"
        f" {fitted.training_log_likelihood:.3f} on the others), and the interval does not know of its error"
    )
    return recorded_log_likelihood(fitted.policy, data), fitted.held_out_log_likelihood


def _judge(diagnostics: WeightDiagnostics, episodes: int, accept: bool) -> list[str]:
    """Sentences about a small sample; UsageError about a collapsed one."""
    size, mean = float(diagnostics.effective_sample_size), float(diagnostics.mean_weight)
    problem = None
    if size < COLLAPSED:
        problem = f"of {episodes} episodes only {size:.1f} count effectively, and at least {COLLAPSED:g} must"
    elif mean < UNSEEN:
        problem = f"the weights average {mean:.2g} where 1 is expected: the data hardly show what this policy does"
    if problem is not None:
        if not accept:
            raise UsageError(
                f"the data cannot tell how good this policy is: {problem}; record more episodes, or with a policy closer to"
                " this one, or run it; --accept-small-sample reports the number all the same"
            )
        return [f"not to be trusted: {problem}"]
    notices = []
    if size < SMALL or size < SMALL_SHARE * episodes:
        notices.append(f"of {episodes} episodes {size:.1f} count effectively: the interval is likely too narrow")
    if not USUAL_MEAN[0] <= mean <= USUAL_MEAN[1]:
        notices.append(f"the weights average {mean:.2g} where 1 is expected: the data show too little of what this policy does")
    return notices


def bootstrap_interval(result: ImportanceEstimate, *, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over trajectories, each resample's ratios of sums taken anew.

    Args:
        result: an estimate of one of the four kinds.
        confidence: coverage.
        seed: of the resampling.

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife (1979).
    """
    numerators, denominators = np.asarray(result.numerators).T, np.asarray(result.denominators).T
    count, generator = len(numerators), np.random.default_rng([seed, 6])
    estimates = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):  # in parts: a resample is a row of counts, one per trajectory
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES_AT_ONCE).astype(np.float64)
        totals = drawn @ denominators
        estimates.append((drawn @ numerators / np.where(totals > 0, totals, 1)).sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(estimates), [tail, 1 - tail])
    return float(low), float(high)
