"""The figure of ``surefoot gradients``, drawn from the report alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import UsageError
from surefoot.runs.directory import write_whole

__all__ = ["draw_gradients"]

COLORS = {"none": "#444444", "exact": "#1f6fb4", "wrong": "#d9622b"}
BUDGETS = (10, 100, 1000, 10_000)
SMALLEST_BIAS = 1e-9
LABELLED = (0.0, 0.9, 1.0)


def draw_gradients(report: dict[str, Any], path: Path) -> None:
    """Bias and variance per ψ, and the trade between them along λ.

    Args:
        report: from :func:`surefoot.exact.report.gradients_report`.
        path: the PNG to write.

    Raises:
        UsageError: matplotlib is missing, or the gradient is zero, so that nothing can be compared with it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("the figure needs matplotlib; install it with: pip install 'surefoot[reports]'") from error
    if not report["gradient_norm"]:
        raise UsageError(
            f"{report['problem']} has a zero gradient here, so there is no relative bias to draw; change γ, H or the seed"
        )
    figure: Any = Figure(figsize=(11.5, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["bias", "variance"], ["trade", "error"]], height_ratios=[1.15, 1])
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    floor = _floor(report)
    _per_weight(axes["bias"], report, "bias", floor)
    _per_weight(axes["variance"], report, "relative_variance", None)
    axes["bias"].set(title="Bias of each weight ψ", xlabel="‖E g − ∇J‖ / ‖∇J‖")
    axes["variance"].set(title="Variance of each weight ψ", xlabel="tr Cov[g] / ‖∇J‖²,  g from one trajectory")
    axes["variance"].tick_params(labelleft=False)
    _trade(axes["trade"], report, floor)
    _error(axes["error"], report)
    handles, labels = _legend(report)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    how = "all" if report["method"] == "enumeration" else "a sample of"
    bars = "" if report["method"] == "enumeration" else " (bars: one standard error)"
    figure.suptitle(
        f"{report['problem']}: γ = {report['discount']:g}, H = {report['horizon']},"
        f" {how} {report['trajectories']:,} trajectories{bars};  V wrong = V + {report['critic_error']:g} max|V| z(s), z ~ N(0, 1)",
        fontsize=11.5,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def _floor(report: dict[str, Any]) -> float:
    """Where a bias of zero is drawn on a logarithmic axis: a decade below the least bias that is none."""
    biases = [row["bias"] for row in report["rows"] + report["trace_decay_sweep"]]
    present = [bias for bias in biases if bias > SMALLEST_BIAS]
    return 10 ** (np.floor(np.log10(min(present, default=0.1))) - 1)


def _name(report: dict[str, Any], weight: str) -> str:
    return {"gae": f"gae (λ={report['trace_decay']:g})", "n-step": f"n-step (n={report['steps']})"}.get(weight, weight)


def _style(row: dict[str, Any]) -> dict[str, Any]:
    color = COLORS[row["critic"]]
    kept = row["keep_discount"] is not False
    return {"color": color, "markerfacecolor": color if kept else "white", "markeredgecolor": color, "markeredgewidth": 1.6}


def _zero_tick(axis: Any, floor: float, highest: float) -> None:
    """Ticks at the decades, and "0" where the floor stands for it."""
    decades = [d for d in floor * 10.0 ** np.arange(1, 20) if d <= highest]
    axis.set_ticks([floor, *decades], ["0", *(f"{100 * d:g} %" for d in decades)])


def _plain_ticks(axis: Any, smallest: float, largest: float) -> None:
    """1, 2, 5, 10, 20, 50 … in digits; every decade alone where the axis spans many."""
    spans = np.log10(largest / smallest)
    ticks = [m * 10.0**e for e in range(-12, 13) for m in ((1, 2, 5) if spans < 2.5 else (1,))]
    ticks = [tick for tick in ticks if smallest <= tick <= largest]
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])


def _per_weight(axes: Any, report: dict[str, Any], quantity: str, floor: float | None) -> None:
    weights = list(dict.fromkeys(row["weight"] for row in report["rows"]))
    offsets = {("none", True): 0.0, ("none", False): 0.0, ("exact", True): -0.13, ("exact", False): -0.13}
    for position, weight in enumerate(weights):
        if position % 2:
            axes.axhspan(position - 0.5, position + 0.5, color="#f3f3f3", zorder=0)
        for row in (row for row in report["rows"] if row["weight"] == weight):
            value = row[quantity] if floor is None else max(row[quantity], floor)
            height = position + offsets.get((row["critic"], row["keep_discount"] is not False), 0.13)
            if floor is not None and row["standard_error"]:
                ends = [max(value - row["standard_error"], floor), value + row["standard_error"]]
                axes.plot(ends, [height, height], "-", linewidth=1.4, zorder=2, color=COLORS[row["critic"]])
            axes.plot(value, height, "o", markersize=7.5, zorder=3, **_style(row))
    axes.set_yticks(range(len(weights)), [_name(report, weight) for weight in weights], fontsize=11)
    axes.set_ylim(len(weights) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(axis="x", color="#dddddd", zorder=1)
    axes.set_axisbelow(True)
    if floor is None:
        _plain_ticks(axes.xaxis, *axes.get_xlim())
    else:
        highest = max(row["bias"] for row in report["rows"])
        axes.set_xlim(floor / 2, max(highest * 2, floor * 20))
        _zero_tick(axes.xaxis, floor, max(highest * 2, floor * 20))
    axes.minorticks_off()


def _sweep(report: dict[str, Any], critic: str, keep: bool) -> list[dict[str, Any]]:
    return [row for row in report["trace_decay_sweep"] if row["critic"] == critic and row["keep_discount"] is keep]


def _trade(axes: Any, report: dict[str, Any], floor: float) -> None:
    for critic in ("exact", "wrong"):
        for keep in (True, False):
            rows = _sweep(report, critic, keep)
            if not rows:
                continue
            variances = [row["relative_variance"] for row in rows]
            biases = [max(row["bias"], floor) for row in rows]
            style = _style(rows[0])
            axes.plot(variances, biases, "-" if keep else "--", marker="o", markersize=6, linewidth=1.6, **style)
            for row, variance, bias in zip(rows, variances, biases, strict=True):
                if row["trace_decay"] in LABELLED and keep:
                    axes.annotate(
                        f"{row['trace_decay']:g}", (variance, bias), textcoords="offset points",
                        xytext=(0, -14) if critic == "exact" else (11, 4), ha="center", fontsize=9.5, color=style["color"],
                    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    highest = 2 * max(row["bias"] for row in report["trace_decay_sweep"])
    axes.set_ylim(floor / 2.5, max(highest, floor * 20))
    _zero_tick(axes.yaxis, floor, max(highest, floor * 20))
    _plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.minorticks_off()
    axes.grid(color="#dddddd")
    axes.set(
        title="gae: λ (the small numbers) trades bias for variance", xlabel="tr Cov[g] / ‖∇J‖²", ylabel="‖E g − ∇J‖ / ‖∇J‖"
    )


def _error(axes: Any, report: dict[str, Any]) -> None:
    rows = _sweep(report, "wrong", True)
    decays = [row["trace_decay"] for row in rows]
    for index, budget in enumerate(BUDGETS):
        errors = [np.sqrt(row["bias"] ** 2 + row["relative_variance"] / budget) for row in rows]
        shade = 0.3 + 0.7 * index / (len(BUDGETS) - 1)
        axes.plot(decays, errors, "-", color=COLORS["wrong"], alpha=shade, linewidth=1.8)
        best = int(np.argmin(errors))
        axes.plot(decays[best], errors[best], "*", color=COLORS["wrong"], markersize=13, markeredgecolor="white")
        axes.annotate(f"N = {budget:,}", (1, errors[-1]), xytext=(12, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_xlim(-0.03, 1.33)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (m * 10.0**e for e in range(-9, 6) for m in (1, 2, 5)) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#dddddd")
    axes.set(
        title="gae, V wrong, γᵗ kept: error of the mean of N (★ best λ)",
        xlabel="λ", ylabel="√(bias² + variance / N),  N trajectories",
    )  # fmt: skip


def _legend(report: dict[str, Any]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    entries = [("none", True, "no critic"), ("exact", True, "V exact"), ("wrong", True, "V wrong")]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=8, **_style({"critic": c, "keep_discount": k}))
        for c, k, _ in entries
    ]
    labels = [label for *_, label in entries]
    if report["discount"] < 1:
        for keep, label in ((True, "γᵗ kept"), (False, "γᵗ dropped")):
            style: dict[str, Any] = {
                "color": "#777777",
                "markerfacecolor": "#777777" if keep else "white",
                "markeredgecolor": "#777777",
            }
            handles.append(Line2D([], [], linestyle="-" if keep else "--", marker="o", markersize=8, **style))
            labels.append(label)
    return handles, labels
