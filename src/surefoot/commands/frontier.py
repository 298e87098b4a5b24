"""``surefoot frontier``: PPO, GRPO, RLOO and DPO against the exact optimum of tasks that can be enumerated."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from surefoot.commands.options import DONE, Output, given, parse
from surefoot.errors import UsageError

QUICK_BETAS, QUICK_EFFORT = (1.0,), 0.5


@dataclass(frozen=True)
class Frontier:
    """Run every method on tasks whose optimum is known, and place each policy on the exact frontier of reward and KL divergence."""

    tasks: tuple[str, ...] = ("table", "language")
    """Which tasks: table (8 prompts, 16 answers each), language (2 prompts, 4,096 answers each)."""
    methods: tuple[str, ...] = ("ppo", "grpo", "rloo", "dpo", "ranked-dpo")
    """Which methods: ppo, grpo, rloo, dpo, ranked-dpo (rankings of four answers)."""
    betas: tuple[float, ...] = (0.5, 2.0)
    """β, reward units per nat; rewards have standard deviation 1 under π_ref."""
    seeds: int = 5
    """Runs of each kind; of those that learn from preferences, and of failures, three at most."""
    preferences: int | None = 3_000
    """Sampled preferences that rewards are learned from, beside the runs that know them; none leaves those out."""
    failures: bool = True
    """Show on the table, too, what details cost, how many preferences it takes, over-optimisation, and answers that no preference
    shows."""
    quick: bool = False
    """One β, one seed, half of the updates, the reward known, and no failures: less than a minute."""
    processes: int = 2
    """Runs at once, each of one thread."""
    out: Path | None = None
    """Folder for frontier.json and the figures; none writes nothing."""
    figure: Path | None = None
    """Where to draw the frontier, a PNG; by default in the folder of --out."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str]) -> int:
    """Run, print and write."""
    chosen: Frontier = parse(Frontier, arguments, program="surefoot frontier")
    if chosen.quick:
        if option := given(("--betas", "--seeds", "--preferences", "--failures"), arguments):
            raise UsageError(f"--quick chooses {option} itself; leave one of the two out")
        chosen = replace(chosen, betas=QUICK_BETAS, seeds=1, preferences=None, failures=False)
    if chosen.out is not None and chosen.out.exists() and not chosen.out.is_dir():
        raise UsageError(f"--out {chosen.out} is a file; give a folder")
    from surefoot.alignment.exact.figure import draw_failures, draw_frontier
    from surefoot.alignment.exact.frontier import FAILURES, frontier_report, plan_frontier
    from surefoot.alignment.exact.frontier_text import frontier_text
    from surefoot.runs.directory import write_json
    from surefoot.runs.progress import Progress

    plan = plan_frontier(
        tasks=chosen.tasks,
        methods=chosen.methods,
        betas=chosen.betas,
        seeds=chosen.seeds,
        preferences=chosen.preferences,
        failures=chosen.failures,
        effort=QUICK_EFFORT if chosen.quick else 1.0,
    )
    began = time.perf_counter()
    with Progress("frontier", plan.total, unit="runs", quiet=chosen.output.quiet) as progress:

        def tell(done: int, what: str) -> None:
            progress.update(done, rate=done / (time.perf_counter() - began), reached=what)

        report = frontier_report(plan, processes=chosen.processes, tell=tell)
    report["seconds"] = round(time.perf_counter() - began, 1)
    if not chosen.output.quiet:
        print(frontier_text(report), file=sys.stderr if chosen.output.json else sys.stdout)
    if chosen.out is not None:
        # Before anything is drawn: what took minutes is not lost to a figure that cannot be made.
        write_json(chosen.out / "frontier.json", report)
    figure = chosen.figure or (None if chosen.out is None else chosen.out / "frontier.png")
    if figure is not None:
        draw_frontier(report, figure)
    if chosen.out is not None and any(report.get(part) for part in FAILURES):
        draw_failures(report, chosen.out / "failures.png")
    chosen.output.give(report)
    return DONE
