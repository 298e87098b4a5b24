"""``surefoot gradients``: every weight ψ of the policy gradient against the exact gradient."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from surefoot.commands.options import DONE, Output, parse
from surefoot.errors import UsageError


@dataclass(frozen=True)
class Gradients:
    """Compute the exact policy gradient of enumerable problems, and the bias and variance of every weight's estimate of it."""

    problem: tuple[str, ...] = ("chain", "two-paths", "random-0")
    """Which problems: chain, two-paths, cliff, windy-cliff, random-K for any whole number K."""
    discount: float | None = None
    """γ; the problem's own by default."""
    horizon: int | None = None
    """Steps until an episode ends; the problem's own by default."""
    trace_decay: float = 0.95
    """λ of gae."""
    n_steps: int = 2
    """n of n-step."""
    critic_error: float = 0.5
    """How wrong the wrong critic is: the size of its error relative to V's spread."""
    samples: int = 50_000
    """Trajectories to draw where there are too many to enumerate; the standard error is stated."""
    seed: int = 0
    """Seed of the wrong critic's error and of sampled trajectories."""
    out: Path | None = None
    """Folder for a figure per problem and gradients.json; none writes nothing."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str]) -> int:
    """Compute, print and write."""
    chosen: Gradients = parse(Gradients, arguments, program="surefoot gradients")
    from surefoot.exact.report import gradients_report, gradients_text
    from surefoot.runs.directory import write_json

    if not chosen.problem:
        raise UsageError("--problem is empty; name at least one, such as chain")
    if chosen.out is not None and chosen.out.exists() and not chosen.out.is_dir():
        raise UsageError(f"--out {chosen.out} is a file; give a folder")
    reports = []
    for name in chosen.problem:
        report = gradients_report(
            name,
            discount=chosen.discount,
            horizon=chosen.horizon,
            trace_decay=chosen.trace_decay,
            steps=chosen.n_steps,
            critic_error=chosen.critic_error,
            samples=chosen.samples,
            seed=chosen.seed,
            figure=None if chosen.out is None else chosen.out / f"{name}.png",
        )
        reports.append(report)
        if not chosen.output.quiet:
            print(gradients_text(report), file=sys.stderr if chosen.output.json else sys.stdout)
    if chosen.out is not None:
        write_json(chosen.out / "gradients.json", {"problems": reports})
    chosen.output.give({"problems": reports})
    return DONE
