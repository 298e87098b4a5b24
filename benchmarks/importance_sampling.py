"""What importance weights correct and what they do not, on a problem small enough to know every answer exactly.

    python benchmarks/importance_sampling.py            # about two minutes on two cores

Eight steps in a chain of three states, two actions, every trajectory enumerated: means, standard deviations and KL
divergences are sums over trajectories, not estimates. The target policy walks from the behaviour policy (every action
½) towards one that always takes action 1. Self-normalised estimators have no such sums; they, and the coverage of the
bootstrap interval, come from repeated samples of 100 episodes. Writes benchmarks/results/importance_sampling.json and
docs/figures/importance_sampling.png.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path

import numpy as np

from surefoot.control.recorded.off_policy_evaluation import bootstrap_interval
from surefoot.equations.importance import cumulative_log_weights, weight_diagnostics
from surefoot.equations.off_policy import (
    ordinary_importance_estimate,
    per_decision_importance_estimate,
    weighted_importance_estimate,
    weighted_per_decision_importance_estimate,
)

ROOT = Path(__file__).parent.parent
STEPS, EPISODES, REPETITIONS, INTERVALS = 8, 100, 2000, 500
SLIP = 0.2
"""The chance that an action does the opposite of what it says."""
PREFERENCES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0]
"""Log-odds of action 1 under the target policy; the behaviour policy's are 0."""
AT = 2.0
"""The preference at which weights are cut."""
LIMITS = [round(10 ** (k / 12), 4) for k in range(-6, 31)]


def trajectories() -> dict[str, np.ndarray]:
    """Every sequence of actions and slips: up on 1, down on 0, states 0 … 2; the reward is the state arrived in."""
    actions, slips, rewards = [], [], []
    for acts in itertools.product((0, 1), repeat=STEPS):
        for slipped in itertools.product((0, 1), repeat=STEPS):
            state, earned = 0, []
            for act, slip in zip(acts, slipped, strict=True):
                state = min(max(state + (1 if act != slip else -1), 0), 2)
                earned.append(float(state))
            actions.append(acts)
            slips.append(sum(slipped))
            rewards.append(earned)
    slips = np.array(slips)
    return {
        "actions": np.array(actions).T,
        "rewards": np.array(rewards).T,
        "probability": SLIP**slips * (1 - SLIP) ** (STEPS - slips) * 0.5**STEPS,
    }


def log_target(actions: np.ndarray, preference: float) -> np.ndarray:
    return np.where(actions == 1, -np.logaddexp(0, -preference), -np.logaddexp(0, preference))


def moments(terms: np.ndarray, probability: np.ndarray, truth: float) -> dict[str, float]:
    """Of the mean of EPISODES terms, from the distribution of one."""
    mean = float((probability * terms).sum())
    deviation = math.sqrt(max(float((probability * (terms - mean) ** 2).sum()), 0.0) / EPISODES)
    return {"mean": mean, "std": deviation, "rmse": math.hypot(deviation, mean - truth)}


def measure() -> dict:
    every = trajectories()
    probability, rewards = every["probability"], every["rewards"]
    returns = rewards.sum(axis=0)
    rng, rows = np.random.default_rng(0), []
    for preference in PREFERENCES:
        log_pi = log_target(every["actions"], preference)
        log_weights = np.asarray(
            cumulative_log_weights(log_probabilities=log_pi, behavior_log_probabilities=np.full_like(log_pi, math.log(0.5)))
        )
        weights = np.exp(log_weights[-1])
        target_probability = probability * 2.0**STEPS * np.exp(log_pi.sum(axis=0))
        truth = float((target_probability * returns).sum())  # no weight is asked
        row = {
            "preference": preference,
            "kl": float((target_probability * (log_pi.sum(axis=0) + STEPS * math.log(2))).sum()),
            "truth": truth,
            "own_episodes_std": math.sqrt(float((target_probability * (returns - truth) ** 2).sum()) / EPISODES),
            "unweighted": moments(returns, probability, truth),
            "ordinary": moments(
                ordinary_importance_estimate(log_weights=log_weights[-1], returns=returns).terms, probability, truth
            ),
            "per-decision": moments(
                per_decision_importance_estimate(log_weights=log_weights, rewards=rewards, discount=1.0).terms,
                probability,
                truth,
            ),
            "weight_variance": float((probability * weights**2).sum() - 1),
            "effective_share": float(1 / (probability * weights**2).sum()),
        }
        if preference == AT:
            row["cut"] = [
                {
                    "limit": limit,
                    "ordinary": moments(
                        ordinary_importance_estimate(log_weights=log_weights[-1], returns=returns, limit=limit).terms,
                        probability,
                        truth,
                    ),
                    "per-decision": moments(
                        per_decision_importance_estimate(
                            log_weights=log_weights, rewards=rewards, discount=1.0, limit=limit
                        ).terms,
                        probability,
                        truth,
                    ),
                }
                for limit in LIMITS
            ]
        row |= sampled(log_weights, rewards, probability, truth, rng)
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "cut"}), flush=True)
    return {
        "command": "python benchmarks/importance_sampling.py",
        "date": time.strftime("%Y-%m-%d"),
        "steps": STEPS,
        "trajectories": len(probability),
        "episodes": EPISODES,
        "repetitions": REPETITIONS,
        "intervals": INTERVALS,
        "rows": rows,
    }


def sampled(
    log_weights: np.ndarray, rewards: np.ndarray, probability: np.ndarray, truth: float, rng: np.random.Generator
) -> dict:
    """Over repeated samples: the self-normalised estimators, the effective sample size, the interval's coverage."""
    names = ("weighted", "weighted-per-decision")
    estimates: dict[str, list[float]] = {name: [] for name in names}
    sizes, covered, ladder = [], [], np.cumsum(probability)
    for repetition in range(REPETITIONS):
        drawn = np.minimum(np.searchsorted(ladder, rng.random(EPISODES)), len(probability) - 1)
        chosen, earned = log_weights[:, drawn], rewards[:, drawn]
        sizes.append(float(weight_diagnostics(log_weights=chosen[-1]).effective_sample_size))
        whole = weighted_importance_estimate(log_weights=chosen[-1], returns=earned.sum(axis=0))
        decided = weighted_per_decision_importance_estimate(log_weights=chosen, rewards=earned, discount=1.0)
        for name, estimate in zip(names, (whole, decided), strict=True):
            estimates[name].append(float(estimate.estimate))
        if repetition < INTERVALS:
            low, high = bootstrap_interval(decided, confidence=0.95, seed=repetition)
            covered.append(low <= truth <= high)
    out: dict = {
        name: {
            "mean": float(np.mean(values)),
            "std": float(np.std(values)),
            "rmse": float(np.sqrt(np.mean((np.array(values) - truth) ** 2))),
        }
        for name, values in estimates.items()
    }
    low, high = np.quantile(sizes, [0.05, 0.95])
    return out | {
        "effective_sample_size": {"mean": float(np.mean(sizes)), "low": float(low), "high": float(high)},
        "coverage": float(np.mean(covered)),
    }


def draw(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, blue, orange, green, purple, grey = report["rows"], "#0072B2", "#D55E00", "#009E73", "#8E5BA6", "#666666"
    styles = {
        "ordinary": (orange, "-", "ordinary"),
        "per-decision": (blue, "-", "per decision"),
        "weighted": (purple, "--", "weighted"),
        "weighted-per-decision": (green, "--", "weighted per decision"),
    }
    kl = [row["kl"] for row in rows]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.2), constrained_layout=True)
    distance = "KL(target ‖ behaviour) of an episode, nats"

    axis = axes[0, 0]
    for name in ("ordinary", "weighted-per-decision"):
        colour, line, label = styles[name]
        mean, std = (np.array([row[name][k] for row in rows]) for k in ("mean", "std"))
        axis.fill_between(kl, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
        axis.plot(kl, mean, line, color=colour, label=f"{label}: mean ± 1 std", linewidth=1.6)
    axis.plot(
        kl, [row["unweighted"]["mean"] for row in rows], ":", color=grey, label="unweighted mean of the data", linewidth=1.6
    )
    axis.plot(kl, [row["truth"] for row in rows], "o", color="black", markersize=3.5, label="truth")
    axis.set(title="The mean is corrected", xlabel=distance, ylabel="estimated return (reward units)")
    axis.legend(frameon=False, loc="upper left")
    axis.set_ylim(0, 22)

    axis = axes[0, 1]
    for name, (colour, line, label) in styles.items():
        axis.plot(kl, [row[name]["std"] for row in rows], line, color=colour, label=label, linewidth=1.6)
    axis.plot(kl, [row["unweighted"]["std"] for row in rows], ":", color=grey, label="unweighted", linewidth=1.6)
    axis.set(title="The variance is not", xlabel=distance, ylabel="standard deviation of the estimate")
    axis.set_ylim(0, None)
    axis.legend(frameon=False, loc="upper left")

    axis, at = axes[1, 0], next(row for row in rows if row["preference"] == AT)
    limits, cuts = [cut["limit"] for cut in at["cut"]], [cut["per-decision"] for cut in at["cut"]]
    axis.axhline(at["unweighted"]["rmse"], color=grey, linestyle=":", linewidth=1.2)
    axis.annotate("error of the unweighted mean", (limits[-1], at["unweighted"]["rmse"] + 0.12), color=grey, ha="right")
    axis.plot(limits, [at["truth"] - cut["mean"] for cut in cuts], "-.", color=purple, label="bias (too low by)", linewidth=1.6)
    axis.plot(limits, [cut["std"] for cut in cuts], "--", color=orange, label="standard deviation", linewidth=1.6)
    axis.plot(limits, [cut["rmse"] for cut in cuts], "-", color=blue, label="root mean squared error", linewidth=1.8)
    best = min(range(len(cuts)), key=lambda i: cuts[i]["rmse"])
    axis.plot([limits[best]], [cuts[best]["rmse"]], "o", color=blue, markersize=6)
    axis.annotate(
        f"least error: {cuts[best]['rmse']:.2f} at c = {limits[best]:.0f}\n(without a cut: {at['per-decision']['rmse']:.2f})",
        (limits[best], cuts[best]["rmse"]), xytext=(0.6, 0.12), textcoords="axes fraction",
        arrowprops={"arrowstyle": "-", "color": blue, "linewidth": 0.8, "shrinkB": 4},
    )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([1, 10, 100], ["1", "10", "100"])
    axis.set(
        title=f"Clipping trades bias for variance (per decision, KL {at['kl']:.1f} nats)",
        xlabel="largest weight allowed, c",
        ylabel="error (reward units)",
    )
    axis.set_ylim(0, None)
    axis.legend(frameon=False, loc="upper right")

    axis = axes[1, 1]
    sizes = [row["effective_sample_size"] for row in rows]
    axis.fill_between(kl, [s["low"] for s in sizes], [s["high"] for s in sizes], color=blue, alpha=0.2, linewidth=0)
    axis.plot(kl, [s["mean"] for s in sizes], color=blue, label=f"of {EPISODES} episodes (band: 5–95 %)", linewidth=1.6)
    axis.axhline(30, color=grey, linewidth=1, linestyle="--")
    axis.annotate("warned below 30", (kl[-1], 31.5), color=grey, va="bottom", ha="right")
    axis.axhline(3, color="black", linewidth=1, linestyle="--")
    axis.annotate("refused below 3", (0, 3.15), va="bottom", ha="left")
    axis.set_yscale("log")
    axis.set_ylim(1, 150)
    axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axis.minorticks_off()
    axis.set(title="The effective sample shrinks", xlabel=distance, ylabel="effective sample size (episodes)")
    axis.legend(frameon=False, loc="upper right")
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    report = measure()
    (ROOT / "benchmarks" / "results" / "importance_sampling.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, ROOT / "docs" / "figures" / "importance_sampling.png")


if __name__ == "__main__":
    main()
