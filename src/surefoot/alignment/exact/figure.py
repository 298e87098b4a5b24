"""The figures of ``surefoot frontier``, drawn from the report alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import UsageError
from surefoot.runs.directory import write_whole

__all__ = ["draw_failures", "draw_frontier"]

Row = dict[str, Any]

COLORS = {"ppo": "#0072B2", "grpo": "#E69F00", "rloo": "#009E73", "dpo": "#D55E00", "ranked-dpo": "#CC79A7"}
GREY = "#666666"
TARGET = 0.01
"""Nats: where a policy is called the optimum."""
LEAST = 1e-6
"""Nats: distances below it are drawn there."""


def draw_frontier(report: Row, path: Path) -> None:
    """Where every policy lies on the frontier, and how far from π* it is.

    Args:
        report: from :func:`surefoot.alignment.exact.frontier.frontier_report`.
        path: the PNG to write.

    Raises:
        UsageError: matplotlib is missing.
    """
    tasks = list(report["tasks"])
    figure, axes = _figure(len(tasks), 2, height=4.3)
    for (places, distances), task in zip(axes, tasks, strict=True):
        _places(places, report, task)
        _distances(distances, report, task)
    handles = [*_methods(report), *_markers(report)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    _write(figure, path)


def draw_failures(report: Row, path: Path) -> None:
    """What details cost, what few preferences lead to, over-optimisation, and answers that no preference shows.

    Args:
        report: as that of :func:`draw_frontier`, with its failures.
        path: the PNG to write.

    Raises:
        UsageError: matplotlib is missing.
    """
    parts = ("changes", "counts", "optimised", "restricted")
    tasks = [task for task in report["tasks"] if any(row["task"] == task for part in parts for row in report.get(part, []))]
    if not tasks:
        raise UsageError("there are no failures to draw: they are shown for none of these tasks and methods")
    figure, axes = _figure(4, len(tasks), height=3.6)
    for column, task in enumerate(tasks):
        for row, draw in enumerate((_changes, _counts, _optimised, _restricted)):
            draw(axes[row][column], report, task)
    _write(figure, path)


def _figure(rows: int, columns: int, *, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("the figure needs matplotlib; install it with: pip install 'surefoot[reports]'") from error
    figure: Any = Figure(figsize=(max(7.8, 5.8 * columns), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def _methods(report: Row) -> list[Any]:
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(row["method"] for row in report["rows"]))
    return [Line2D([], [], linestyle="", marker="o", color=COLORS[name], label=name) for name in names]


def _markers(report: Row) -> list[Any]:
    """What a filled and a hollow marker mean, as far as there are any."""
    from matplotlib.lines import Line2D

    style: Row = {"linestyle": "", "marker": "o", "color": GREY}
    kinds: dict[str, Row] = {
        "known": {"label": "reward known"},
        "learned": {"label": "learned from preferences", "markerfacecolor": "white"},
    }
    there = {row["rewards"] for row in report["rows"]}
    return [Line2D([], [], **style, **kind) for name, kind in kinds.items() if name in there]


def _optima(report: Row, task: str) -> list[Row]:
    """What is known of π* for the β that every method is run with."""
    return [optimum for optimum in report["tasks"][task]["optima"] if optimum["beta"] in report["betas"]]


def _style(row: Row) -> Row:
    color = COLORS[row["method"]]
    return {"color": color, "markerfacecolor": color if row["rewards"] == "known" else "white", "markeredgecolor": color}


def _places(axis: Any, report: Row, task: str) -> None:
    exact = report["tasks"][task]
    points = exact["frontier"]
    axis.plot([p["kl_reference"] for p in points], [p["reward"] for p in points], "-", color=GREY, linewidth=1.4, zorder=1)
    optima = _optima(report, task)
    for optimum in optima:
        at = optimum["kl_reference"], optimum["reward"]
        axis.plot(*at, "*", color="black", markersize=13, zorder=2)
        axis.annotate(f"π*, β = {optimum['beta']:g}", at, xytext=(-6, 9), textcoords="offset points", ha="right")
    for row in sorted((r for r in report["rows"] if r["task"] == task), key=lambda r: r["rewards"] == "known"):
        axis.plot(row["kl_reference"], row["reward"], "o", markersize=5.5, zorder=3, alpha=0.8, **_style(row))
    furthest = max([r["kl_reference"] for r in report["rows"] if r["task"] == task] + [o["kl_reference"] for o in optima])
    axis.set_xlim(-0.04 * furthest, 1.1 * furthest)
    highest = max(p["reward"] for p in points if p["kl_reference"] <= 1.1 * furthest)
    axis.set_ylim(-0.05, 1.08 * highest)
    axis.set(title=f"{task}: the frontier", xlabel="KL(π‖π_ref), nats", ylabel="E_π[r], in standard deviations under π_ref")


def _distances(axis: Any, report: Row, task: str) -> None:
    methods = list(dict.fromkeys(row["method"] for row in report["rows"]))
    for place, optimum in enumerate(_optima(report, task)):
        axis.plot([place - 0.42, place + 0.42], [optimum["start"]] * 2, "-", color="black", linewidth=1.2)
        if place == 0:
            axis.annotate("π_ref", (place - 0.42, optimum["start"]), xytext=(0, 4), textcoords="offset points")
        for row in (r for r in report["rows"] if r["task"] == task and r["beta"] == optimum["beta"]):
            offset = (methods.index(row["method"]) - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axis.plot(place + offset, max(row["kl_optimum"], LEAST), "o", markersize=5, alpha=0.8, **_style(row))
    axis.axhline(TARGET, color=GREY, linestyle=":", linewidth=1.2)
    axis.set_yscale("log")
    axis.set_xticks(range(len(report["betas"])), [f"β = {beta:g}" for beta in sorted(report["betas"])])
    axis.set(title=f"{task}: distance from π*, every seed", ylabel="KL(π‖π*), nats")


def _changes(axis: Any, report: Row, task: str) -> None:
    rows = [row for row in report["changes"] if row["task"] == task]
    if not rows:
        axis.set_visible(False)
        return
    labels = list(dict.fromkeys((row["method"], row["change"]) for row in rows))
    methods = list(dict.fromkeys(method for method, _ in labels))
    lines = [(method, change) for method in methods for change in [None, *(c for m, c in labels if m == method)]]
    betas = sorted({row["beta"] for row in rows})
    plain = [row for row in report["rows"] if row["task"] == task and row["rewards"] == "known"]
    for place, (method, change) in enumerate(lines):
        for beta, marker, offset in zip(betas, ("o", "s", "D", "^"), np.linspace(-0.15, 0.15, len(betas)), strict=False):
            own = plain if change is None else rows
            values = [r["kl_optimum"] for r in own if (r["method"], r["change"], r["beta"]) == (method, change, beta)]
            axis.plot(
                np.maximum(values, LEAST), [place + offset] * len(values), marker, color=COLORS[method], markersize=4.5, alpha=0.8,
                markerfacecolor=COLORS[method] if beta == betas[0] else "white",
            )  # fmt: skip
    axis.set_yticks(range(len(lines)), [f"{method}: {change or 'as it is'}" for method, change in lines], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(TARGET, color=GREY, linestyle=":", linewidth=1.2)
    kinds = ", ".join(f"{kind} β = {beta:g}" for kind, beta in zip(("filled", "hollow"), betas, strict=False))
    axis.set(title=f"{task}: what details cost ({kinds})", xlabel="KL(π‖π*), nats")


def _counts(axis: Any, report: Row, task: str) -> None:
    rows = [row for row in report["counts"] if row["task"] == task]
    if not rows:
        axis.set_visible(False)
        return
    beta = rows[0]["beta"]
    for method in dict.fromkeys(row["method"] for row in rows):
        _curve(axis, [row for row in rows if row["method"] == method], COLORS[method], method)
    models = [r for r in report["reward_models"] if (r["task"], r["beta"], r["restricted"]) == (task, beta, False)]
    _curve(axis, models, COLORS["ppo"], "optimum of a reward model")
    start = next((o["start"] for o in report["tasks"][task]["optima"] if o["beta"] == beta), None)
    if start is not None:
        axis.axhline(start, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.legend(frameon=False, fontsize=8)
    axis.set(title=f"{task}: β = {beta:g}, rewards from N preferences", xlabel="preferences, N", ylabel="KL(π‖π*), nats")


def _curve(axis: Any, rows: list[Row], color: str, label: str) -> None:
    counts = sorted({row["preferences"] for row in rows})
    values = [[row["kl_optimum"] for row in rows if row["preferences"] == count] for count in counts]
    axis.fill_between(counts, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.13, linewidth=0)
    axis.plot(counts, [np.mean(v) for v in values], "-o", color=color, markersize=4, label=label)


def _optimised(axis: Any, report: Row, task: str) -> None:
    rows = [row for row in report["optimised"] if row["task"] == task]
    if not rows:
        axis.set_visible(False)
        return
    for index, row in enumerate(rows):
        distance = [0, *(np.sqrt(point["kl_reference"]) for point in row["trace"])]
        for key, line, label in (("learned_reward", "--", "the learned reward"), ("reward", "-", "the true reward")):
            values = [0, *(point[key] for point in row["trace"])]
            axis.plot(distance, values, line, color=COLORS[row["method"]], label=label if index == 0 else None)
    points = report["tasks"][task]["frontier"]
    furthest = max(point["kl_reference"] for row in rows for point in row["trace"])
    inside = [p for p in points if p["kl_reference"] <= furthest]
    axis.plot(
        np.sqrt([p["kl_reference"] for p in inside]), [p["reward"] for p in inside], color=GREY, label="the most there is"
    )
    axis.legend(frameon=False, fontsize=8)
    title = f"{task}: {rows[0]['method']}, a reward model of {rows[0]['preferences']:,} preferences, β = {rows[0]['beta']:g}"
    axis.set(title=title, xlabel="√KL(π‖π_ref)", ylabel="E_π, in standard deviations under π_ref")


def _restricted(axis: Any, report: Row, task: str) -> None:
    rows = [row for row in report["restricted"] if row["task"] == task]
    if not rows:
        axis.set_visible(False)
        return
    exact, beta = report["tasks"][task], rows[0]["beta"]
    optimum = next(o for o in exact["optima"] if o["beta"] == beta)
    lines = [("π_ref", [exact["unseen"]], GREY, ""), ("π*", [optimum["unseen"]], "black", "")]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        distance = f"KL(π‖π*) = {np.mean([row['kl_optimum'] for row in own]):.2g}"
        lines.append((method, [row["unseen"] for row in own], COLORS[method], distance))
    for place, (_, values, color, note) in enumerate(lines):
        axis.barh(place, np.mean(values), color=color, alpha=0.35)
        axis.plot(values, [place] * len(values), "o", color=color, markersize=4)
        axis.annotate(note, (np.max(values), place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(lines)), [name for name, *_ in lines])
    axis.invert_yaxis()
    title = f"{task}: {rows[0]['preferences']:,} preferences that leave answers out, β = {beta:g}"
    axis.set(title=title, xlabel="probability of the answers that none of them shows")
