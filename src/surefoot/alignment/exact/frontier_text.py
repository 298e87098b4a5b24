"""The report of ``surefoot frontier`` as aligned tables for a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["frontier_text"]

Row = dict[str, Any]


def frontier_text(report: dict[str, Any]) -> str:
    """Everything that was run, seeds as means, and the worst distance beside it."""
    sections = []
    for name in report["tasks"]:
        sections += [_heading(report, name), "", *_methods(report, name)]
        for key, table in (("changes", _changes), ("counts", _counts), ("restricted", _restricted), ("optimised", _optimised)):
            if rows := [row for row in report.get(key, []) if row["task"] == name]:
                sections += ["", *table(report, rows, name)]
        sections.append("")
    return "\n".join(sections[:-1])


def _heading(report: Row, name: str) -> str:
    optima = [o for o in report["tasks"][name]["optima"] if o["beta"] in report["betas"]]
    return f"{name}: KL(π*‖π_ref) is " + ", ".join(f"{o['kl_reference']:.3g} at β = {o['beta']:g}" for o in optima) + " nats"


def _methods(report: Row, task: str) -> list[str]:
    """Every method beside π*."""
    table = [
        [
            "reward",
            "β",
            "method",
            "E[r]",
            "KL(π‖π_ref)",
            "KL(π‖π*)",
            "worst",
            "of the start",
            "answers",
            "seconds",
            "MB",
            "state",
        ]
    ]
    optima = {o["beta"]: o for o in report["tasks"][task]["optima"]}
    for rewards in ("known", "learned"):
        for beta in report["betas"]:
            rows = [r for r in report["rows"] if (r["task"], r["rewards"], r["beta"]) == (task, rewards, beta)]
            if not rows:
                continue
            label = "known" if rewards == "known" else f"from {rows[0]['preferences']:,}"
            best = optima[beta]
            table.append([label, f"{beta:g}", "π*", _number(best["reward"]), _number(best["kl_reference"]), "0", *[""] * 6])
            table += [["", "", method, *_cells(of_method)] for method, of_method in _grouped(rows, "method")]
    return [
        *_aligned(table, left=3),
        "",
        "Means over seeds; worst, and its share of KL(π_ref‖π*), is of the worst seed. MB is the most that the process held; state,",
        "of it, the MB of weights, gradients and moments.",
    ]


def _cells(rows: list[Row]) -> list[str]:
    return [
        *(_number(_mean(rows, key)) for key in ("reward", "kl_reference", "kl_optimum")),
        _number(max(row["kl_optimum"] for row in rows)),
        _percent(max(row["share"] for row in rows)),
        f"{_mean(rows, 'samples'):,.0f}",
        f"{_mean(rows, 'seconds'):.1f}",
        f"{_mean(rows, 'peak_mb'):.0f}",
        f"{_mean(rows, 'state_mb'):.2f}",
    ]


def _changes(report: Row, rows: list[Row], task: str) -> list[str]:
    """Each change beside the method as it is, the reward known."""
    betas = sorted({row["beta"] for row in rows})
    table = [["method", "change", *(f"KL(π‖π*), β = {beta:g}" for beta in betas)]]
    for method, of_method in _grouped(rows, "method"):
        plain = [r for r in report["rows"] if (r["task"], r["method"], r["rewards"]) == (task, method, "known")]
        for change, of_change in [("none", plain), *_grouped(of_method, "change")]:
            cells = [[row for row in of_change if row["beta"] == beta] for beta in betas]
            table.append([method, change, *(_number(_mean(cell, "kl_optimum")) if cell else "–" for cell in cells)])
    return _aligned(table, left=2)


def _counts(report: Row, rows: list[Row], task: str) -> list[str]:
    """Distance from the optimum by N."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    beta = rows[0]["beta"]
    models = [r for r in report["reward_models"] if (r["task"], r["beta"], r["restricted"]) == (task, beta, False)]
    table = [["preferences", *methods, "optimum of a reward model"]]
    for count in sorted({row["preferences"] for row in rows}):
        cells = [[r for r in rows if (r["preferences"], r["method"]) == (count, method)] for method in methods]
        cells.append([r for r in models if r["preferences"] == count])
        table.append([f"{count:,}", *(_number(_mean(cell, "kl_optimum")) if cell else "–" for cell in cells)])
    return [f"KL(π‖π*) at β = {beta:g} by the number of preferences:", *_aligned(table, left=0)]


def _restricted(report: Row, rows: list[Row], task: str) -> list[str]:
    """What becomes of answers that no preference shows."""
    table = [["method", "E[r]", "KL(π‖π*)", "probability of unseen answers"]]
    for method, of_method in _grouped(rows, "method"):
        table.append([method, *(_number(_mean(of_method, key)) for key in ("reward", "kl_optimum", "unseen"))])
    return [
        f"{rows[0]['preferences']:,} preferences that leave out answers by their first token, β = {rows[0]['beta']:g}:",
        *_aligned(table, left=1),
    ]


def _optimised(report: Row, rows: list[Row], task: str) -> list[str]:
    """How the true reward falls while the learned one rises."""
    table = [["seed", "best E[r] on the way", "at KL(π‖π_ref)", "E[r] at the end", "at KL(π‖π_ref)", "learned reward there"]]
    for row in rows:
        best = max(row["trace"], key=lambda point: point["reward"])
        numbers = (best["reward"], best["kl_reference"], row["reward"], row["kl_reference"], row["learned_reward"])
        table.append([str(row["seed"]), *map(_number, numbers)])
    return [
        f"{rows[0]['method']} on a reward model of {rows[0]['preferences']:,} preferences, β = {rows[0]['beta']:g}:",
        *_aligned(table, left=0),
    ]


def _grouped(rows: list[Row], key: str) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return list(groups.items())


def _mean(rows: list[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _aligned(table: list[list[str]], *, left: int) -> list[str]:
    """Columns side by side, the first ``left`` of them aligned to the left."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
