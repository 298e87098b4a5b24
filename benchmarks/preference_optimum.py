"""How near DPO comes to the closed-form optimum, on a task of which everything is known.

    python benchmarks/preference_optimum.py            # about three minutes on one core
    python benchmarks/preference_optimum.py --figure   # only draw the figure from the results

Eight prompts with sixteen answers each, a policy with one logit per answer. First the expected loss over every pair, and over every
ranking of three and of four, is minimised: what is left of KL(π‖π*) is arithmetic. Then the same losses of N sampled preferences, for
growing N, five samples each; the dotted lines are what the Fisher information of one preference foretells. Writes
benchmarks/results/preference_optimum.json and docs/figures/preference_optimum.png.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.alignment.exact.fit import fit_table, limiting_distance
from surefoot.alignment.exact.rankings import all_rankings, sample_rankings
from surefoot.alignment.exact.tasks import (
    PreferenceTask,
    frontier,
    mean_kl_divergence,
    measure_policy,
    optimal_policy,
    table_task,
)

ROOT = Path(__file__).parent.parent
SEEDS = range(5)
EXACT = {2: [0.1, 0.3, 1.0, 3.0], 3: [0.1, 0.3, 1.0, 3.0], 4: [0.3]}
"""Which β, for rankings of how many answers; four answers have 349,440 rankings, which take most of the time."""
SAMPLED_BETAS, SAMPLED_ANSWERS = [0.3, 1.0], [2, 4]
COUNTS = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000]
FRONTIER = np.geomspace(0.05, 50, 60).tolist()


def exact_fits(task: PreferenceTask) -> list[dict[str, Any]]:
    rows = []
    for answers, betas in EXACT.items():
        rankings = all_rankings(task, answers=answers)
        for beta in betas:
            started = time.perf_counter()
            fit = fit_table(task, rankings, beta=beta)
            optimum = optimal_policy(task, beta=beta).log_probabilities
            start = mean_kl_divergence(task.reference_log_probabilities, optimum)
            measures = measure_policy(task, fit.log_probabilities, beta=beta)
            row = {
                "answers": answers,
                **measures._asdict(),
                "rankings": len(rankings.weights),
                "start": start,
                "share_of_start": measures.kl_to_optimum / start,
                "largest_log_probability_error": float(np.abs(fit.log_probabilities - optimum).max()),
                "evaluations": fit.evaluations,
                "seconds": round(time.perf_counter() - started, 2),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def sampled_fits(task: PreferenceTask) -> list[dict[str, Any]]:
    rows = []
    for answers in SAMPLED_ANSWERS:
        listed = all_rankings(task, answers=answers)
        for beta in SAMPLED_BETAS:
            limit = limiting_distance(task, listed, beta=beta)
            for count in COUNTS:
                measured = []
                for seed in SEEDS:
                    generator = np.random.default_rng([seed, count, answers])
                    rankings = sample_rankings(task, count=count, answers=answers, generator=generator)
                    measured.append(measure_policy(task, fit_table(task, rankings, beta=beta).log_probabilities, beta=beta))
                distances = np.array([m.kl_to_optimum for m in measured])
                row = {
                    "answers": answers,
                    "beta": beta,
                    "count": count,
                    "kl_to_optimum": distances.tolist(),
                    "mean": float(distances.mean()),
                    "std": float(distances.std(ddof=1)),
                    "foretold": limit / count,
                    "reward": [m.reward for m in measured],
                    "kl_to_reference": [m.kl_to_reference for m in measured],
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def measure() -> dict[str, Any]:
    task = table_task()
    return {
        "command": "python benchmarks/preference_optimum.py",
        "date": time.strftime("%Y-%m-%d"),
        "prompts": task.prompts,
        "answers_to_each": task.answers,
        "seeds": len(SEEDS),
        "exact": exact_fits(task),
        "sampled": sampled_fits(task),
        "frontier": [point._asdict() for point in frontier(task, FRONTIER)],
    }


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blue, orange, green, grey = "#0072B2", "#D55E00", "#009E73", "#666666"
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)

    axis = axes[0]
    points = report["frontier"]
    axis.plot(
        [p["kl_to_reference"] for p in points],
        [p["reward"] for p in points],
        "-",
        color=grey,
        linewidth=1.6,
        label="π*, every β",
    )
    styles = {
        2: ("o", blue, "DPO, pairs", 10),
        3: ("s", orange, "DPO, rankings of 3", 6.5),
        4: ("D", green, "DPO, rankings of 4", 3.5),
    }
    for answers, (marker, colour, label, size) in styles.items():
        rows = [row for row in report["exact"] if row["answers"] == answers]
        axis.plot(
            [row["kl_to_reference"] for row in rows], [row["reward"] for row in rows], marker, color=colour, markersize=size,
            markerfacecolor="white" if answers == 2 else colour, markeredgewidth=1.5, label=label,
        )  # fmt: skip
    for row in (row for row in report["exact"] if row["answers"] == 2):
        axis.annotate(
            f"β = {row['beta']:g}", (row["kl_to_reference"], row["reward"]), xytext=(8, -12), textcoords="offset points"
        )
    axis.plot([0], [0], "x", color="black", markersize=7)
    axis.annotate("π_ref", (0, 0), xytext=(8, -3), textcoords="offset points")
    axis.set(
        title="The expected loss is least at the optimum",
        xlabel="KL(π‖π_ref), nats",
        ylabel="E_π[r], in standard deviations under π_ref",
    )
    axis.legend(frameon=False, loc="lower right")

    axis = axes[1]
    ends = {"va": "center", "textcoords": "offset points"}
    for answers, colour in ((2, blue), (4, green)):
        for beta, line in ((0.3, "-"), (1.0, "--")):
            rows = [row for row in report["sampled"] if row["answers"] == answers and row["beta"] == beta]
            counts = [row["count"] for row in rows]
            lows, highs = ([f(row["kl_to_optimum"]) for row in rows] for f in (min, max))
            axis.fill_between(counts, lows, highs, color=colour, alpha=0.13, linewidth=0)
            means = [row["mean"] for row in rows]
            axis.plot(counts, means, line, marker="o", markersize=3.5, color=colour)
            label = f"{'pairs' if answers == 2 else 'rankings of 4'}, β = {beta:g}"
            axis.annotate(label, (counts[-1], means[-1]), xytext=(7, 2 if beta < 1 else -2), color=colour, **ends)
            far = [row for row in rows if row["count"] >= 1_000]
            axis.plot([r["count"] for r in far], [r["foretold"] for r in far], ":", color="black", linewidth=1)
    starts = {row["beta"]: row["start"] for row in report["exact"]}
    for beta, line in ((0.3, "-"), (1.0, "--")):
        axis.axhline(starts[beta], xmax=0.74, color=grey, linewidth=1, linestyle=line)
        axis.annotate(f"π_ref, β = {beta:g}", (100_000, starts[beta]), xytext=(7, 0), color=grey, **ends)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(80, 1_000_000)
    axis.set_xticks([100, 1_000, 10_000, 100_000], ["100", "1,000", "10,000", "100,000"])
    axis.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1, 10], ["0.0001", "0.001", "0.01", "0.1", "1", "10"])
    axis.minorticks_off()
    axis.plot([], [], ":", color="black", linewidth=1, label="foretold by the Fisher information")
    axis.set(
        title=f"Sampled preferences: mean and range of {report['seeds']} samples",
        xlabel="labelled prompts, N",
        ylabel="KL(π‖π*), nats",
    )
    axis.legend(frameon=False, loc="lower left")
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    torch.set_num_threads(1)
    results = ROOT / "benchmarks" / "results" / "preference_optimum.json"
    if "--figure" not in sys.argv:
        results.write_text(json.dumps(measure(), indent=1) + "\n")
    draw(json.loads(results.read_text()), ROOT / "docs" / "figures" / "preference_optimum.png")


if __name__ == "__main__":
    main()
