"""The report of ``surefoot gradients``: every estimator of one problem's gradient, and how far its steps can be trusted."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.equations.weights import WEIGHTS
from surefoot.errors import UsageError
from surefoot.exact.bounds import trust_region_path
from surefoot.exact.enumerable import (
    PolicyEvaluation,
    TabularProblem,
    customary_direction,
    evaluate_policy,
    initial_logits,
    policy_gradient,
)
from surefoot.exact.estimators import (
    Critic,
    Estimator,
    EstimatorMoments,
    TrajectorySet,
    estimator_moments,
    exact_critic,
    trajectories_of,
    wrong_critic,
)
from surefoot.exact.problems import make_problem

__all__ = ["gradients_report", "gradients_text"]

SWEEP = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
LIMITS: tuple[float | str, ...] = ("theorem", "certified", 0.01, 1.0)
WALK = 20
ROUNDING = 1e-9
"""A relative bias below this is rounding."""


def gradients_report(
    problem: str,
    *,
    discount: float | None = None,
    horizon: int | None = None,
    trace_decay: float = 0.95,
    steps: int = 2,
    critic_error: float = 0.5,
    samples: int = 50_000,
    seed: int = 0,
    figure: Path | None = None,
) -> dict[str, Any]:
    """Bias and variance of every ψ, with γᵗ kept and dropped, with V^π and with a wrong V; λ swept; and trust-region walks.

    Args:
        problem: a name that :func:`surefoot.exact.problems.make_problem` knows.
        discount: γ in [0, 1]; the problem's own by default.
        horizon: H ≥ 1; the problem's own by default.
        trace_decay: λ in [0, 1] of ``gae``'s rows.
        steps: n ≥ 1 of ``n-step``'s rows.
        critic_error: how wrong the wrong V is, as a fraction of max|V^π|.
        samples: trajectories to draw where there are too many to enumerate.
        seed: of the policy, the wrong critic's error and the samples.
        figure: where to draw the figure, a PNG; None for none.

    Returns:
        what ``--json`` prints; numbers that do not exist (a bias relative to a zero gradient, a void bound) are None.
        ``rows`` and ``trace_decay_sweep`` hold one entry per estimator: ``bias`` = ‖E g − ∇J‖/‖∇J‖, ``cosine``,
        ``variance`` = tr Cov[g], ``relative_variance`` = tr Cov[g]/‖∇J‖², ``standard_error`` of the mean in the unit of
        ``bias`` (0 where all trajectories were enumerated). ``surrogate`` holds one entry per step length along the
        natural gradient, ``trust_region`` one per walk.

    Raises:
        UsageError: the problem is unknown, a number is out of range, or the figure's package is missing.
    """
    if not 0 <= trace_decay <= 1:
        raise UsageError(f"the trace decay λ must lie between 0 and 1, but is {trace_decay}")
    if steps < 1:
        raise UsageError(f"the steps of an n-step return must be at least 1, but are {steps}")
    if not (math.isfinite(critic_error) and critic_error >= 0):
        raise UsageError(f"the critic's error must be at least 0, but is {critic_error}")
    if samples < 2:
        raise UsageError(f"samples must be at least 2, but is {samples}")
    if seed < 0:
        raise UsageError(f"the seed must be at least 0, but is {seed}")
    tabular = make_problem(problem, discount=discount, horizon=horizon)
    logits = initial_logits(tabular, seed=seed)
    evaluation = evaluate_policy(tabular, logits)
    gradient, customary = policy_gradient(tabular, evaluation), customary_direction(tabular, evaluation)
    size = float(np.linalg.norm(gradient))
    everything = trajectories_of(tabular, evaluation, samples=samples, seed=seed)
    critics = {
        "exact": exact_critic(evaluation),
        "wrong": wrong_critic(tabular, evaluation, error=critic_error, seed=seed),
    }
    # γᵗ = 1 drops nothing.
    keeps = (True,) if tabular.discount == 1 else (True, False)

    def rows(estimators: list[Estimator]) -> list[dict[str, Any]]:
        return [
            _row(tabular, evaluation, gradient, everything, estimator, name, critic)
            for estimator in estimators
            for name, critic in (critics.items() if estimator.uses_critic else [("none", critics["exact"])])
        ]

    report = {
        "problem": problem,
        "discount": tabular.discount,
        "horizon": tabular.horizon,
        "states": tabular.states,
        "actions": tabular.actions,
        "trace_decay": trace_decay,
        "steps": steps,
        "critic_error": critic_error,
        "seed": seed,
        "method": everything.method,
        "trajectories": len(everything.trajectories.probabilities),
        "objective": evaluation.objective,
        "gradient_norm": size,
        "customary_distance": float(np.linalg.norm(customary - gradient)) / size if size else None,
        "customary_cosine": _cosine(customary, gradient),
        "rows": rows(
            [
                Estimator(weight, keep, trace_decay=trace_decay, steps=steps)
                for weight in WEIGHTS
                for keep in keeps
                if keep or weight != "total-return"
            ]
        ),
        "trace_decay_sweep": rows([Estimator("gae", keep, trace_decay=decay) for keep in keeps for decay in SWEEP]),
        "surrogate": _surrogate(tabular, logits),
        "trust_region": [_walk(tabular, logits, limit) for limit in LIMITS],
        "figure": None,
    }
    if figure is not None:
        from surefoot.exact.figure import draw_gradients

        draw_gradients(report, figure)
        report["figure"] = str(figure)
    return report


def _cosine(one: np.ndarray, other: np.ndarray) -> float | None:
    sizes = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / sizes if sizes else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(
    problem: TabularProblem,
    evaluation: PolicyEvaluation,
    gradient: np.ndarray,
    everything: TrajectorySet,
    estimator: Estimator,
    critic_name: str,
    critic: Critic,
) -> dict[str, Any]:
    moments: EstimatorMoments = estimator_moments(problem, evaluation, estimator, everything, critic=critic)
    size = float(np.linalg.norm(gradient))
    return {
        "problem": problem.name,
        "weight": estimator.weight,
        # There is no γᵗ to keep or drop where ψ is discounted from time 0.
        "keep_discount": None if estimator.weight == "total-return" else estimator.keep_discount,
        "critic": critic_name,
        "trace_decay": estimator.trace_decay if estimator.weight == "gae" else None,
        "steps": estimator.steps if estimator.weight == "n-step" else None,
        "bias": _finite(moments.bias(gradient)),
        "cosine": _finite(moments.cosine(gradient)),
        "variance": moments.variance,
        "variance_standard_error": moments.variance_standard_error,
        "relative_variance": moments.variance / size**2 if size else None,
        "standard_error": moments.standard_error / size if size else None,
        "method": everything.method,
        "trajectories": moments.trajectories,
    }


def _surrogate(problem: TabularProblem, logits: np.ndarray) -> list[dict[str, Any]]:
    """What one step along the natural gradient gains, what L says it gains, and the bounds, by the step's KL."""
    entries = []
    for limit in (1e-6, 1e-4, 1e-2, 1.0):
        gap = trust_region_path(problem, logits, iterations=1, limit=limit).steps[0].gap
        derived = {"gap": gap.gap, "certified_gain": gap.certified_gain, "certified_gain_theorem": gap.certified_gain_kl}
        entries.append({"limit": limit} | {key: _finite(value) for key, value in (asdict(gap) | derived).items()})
    return entries


def _walk(problem: TabularProblem, logits: np.ndarray, limit: Any) -> dict[str, Any]:
    walk = trust_region_path(problem, logits, iterations=WALK, limit=limit)
    gaps = [step.gap for step in walk.steps]
    objectives = [step.objective for step in walk.steps]
    return {
        "limit": limit,
        "iterations": WALK,
        "objectives": [*objectives, objectives[-1] + gaps[-1].gain],
        "surrogates": [step.objective + step.gap.surrogate_gain for step in walk.steps],
        "lower_bounds": [step.objective + step.gap.certified_gain for step in walk.steps],
        "lower_bounds_theorem": [_finite(step.objective + step.gap.certified_gain_kl) for step in walk.steps],
        "mean_kl": [_finite(gap.mean_kl) for gap in gaps],
        "smallest_gain": walk.smallest_gain,
        "certified_steps": sum(gap.certified_gain > 0 for gap in gaps),
        "certified_steps_theorem": sum(gap.certified_gain_kl > 0 for gap in gaps),
    }


def _aligned(lines: list[list[str]], *, left: int) -> list[str]:
    """Columns side by side, the first ``left`` of them aligned to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _percent(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    if error:
        return f"{100 * value:.1f} ± {100 * error:.1f} %"
    return "0" if value < ROUNDING else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def gradients_text(report: dict[str, Any]) -> str:
    """The report as aligned tables for a terminal."""
    exact = report["method"] == "enumeration"
    how = f"all {report['trajectories']} trajectories" if exact else f"{report['trajectories']} sampled trajectories"
    by_key = {(row["weight"], row["keep_discount"], row["critic"]): row for row in report["rows"]}
    keys = list(dict.fromkeys((row["weight"], row["keep_discount"]) for row in report["rows"]))
    table = [["weight ψ", "γᵗ", "bias, V exact", "cosine", "variance", "bias, V wrong", "cosine", "variance"]]
    kept = {None: "in ψ", True: "kept", False: "dropped"}
    names = {"gae": f"gae, λ = {report['trace_decay']:g}", "n-step": f"n-step, n = {report['steps']}"}
    for weight, keep in keys:
        cells = []
        for critic in ("exact", "wrong"):
            row = by_key.get((weight, keep, critic)) or by_key.get(
                (weight, keep, "none") if critic == "exact" else ("", None, "")
            )
            cells += (
                [_percent(row["bias"], row["standard_error"]), _number(row["cosine"]), _number(row["variance"])]
                if row
                else ["", "", ""]
            )
        table.append([names.get(weight, weight), kept[keep], *cells])
    steps = [
        ["KL of the step", "gain of J", "gain of L", "gap", "finite-horizon bound", "Achiam's", "TRPO's", "certified gain"]
    ]
    for entry in report["surrogate"]:
        numbers = ("mean_kl", "gain", "surrogate_gain", "gap", "finite_expected", "achiam", "schulman_kl", "certified_gain")
        steps.append([_number(entry[name]) for name in numbers])
    walks = [["steps limited by", "J at the end", "smallest gain of a step", "certified steps", "by TRPO's bound"]]
    for walk in report["trust_region"]:
        limit = {"theorem": "TRPO's bound", "certified": "the tightest bound"}.get(walk["limit"], f"KL ≤ {walk['limit']}")
        smallest = walk["smallest_gain"]
        walks.append(
            [
                limit,
                _number(walk["objectives"][-1]),
                "0" if abs(smallest) < ROUNDING else _number(smallest),
                f"{walk['certified_steps']} of {walk['iterations']}",
                f"{walk['certified_steps_theorem']} of {walk['iterations']}",
            ]
        )
    return "\n".join(
        [
            f"{report['problem']}: γ = {report['discount']:g}, H = {report['horizon']}, {how};"
            f" J = {report['objective']:.4g}, ‖∇J‖ = {report['gradient_norm']:.4g}",
            "",
            *_aligned(table, left=2),
            "",
            "bias: ‖E g − ∇J‖/‖∇J‖; variance: tr Cov of one trajectory's estimate g = Σ γᵗ ψ ∇log π.",
            "",
            *_aligned(steps, left=0),
            "",
            *_aligned(walks, left=1),
        ]
    )
