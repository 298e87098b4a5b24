"""The demo's first half: PPO on CartPole-v1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from surefoot.control.algorithms import configuration_for
from surefoot.control.evaluation import evaluate
from surefoot.control.training import train
from surefoot.runs.directory import METRICS_FILE
from surefoot.runs.metrics import read_metrics

ENV, WANTED, BAR = "CartPole-v1", 475.0, 50


def balance_a_pole(out: Path, *, seed: int, quiet: bool, started: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Train PPO on CartPole-v1 with its preset, draw the learning curve in the terminal, evaluate.

    Returns:
        the training result, with ``evaluation`` and whether the task was ``learned`` (a mean return of at least 475).
    """
    configuration = configuration_for("ppo", ENV, out=str(out), seed=seed)
    say(f"1. PPO on {ENV}: keep a pole upright for 500 steps; {configuration.run.total_steps:,} steps of experience")
    result = train(configuration, quiet=quiet, started=started)
    if result["interrupted"]:
        return {**result, "evaluation": None, "learned": False}
    say("\n   mean return of finished episodes against steps")
    for line in learning_curve(Path(result["run"])):
        say(line)
    evaluation = evaluate(result["run"], quiet=quiet)
    learned = evaluation["mean_return"] >= WANTED
    say(
        f"\n   the final policy in Gymnasium's own {ENV}: {evaluation['mean_return']:.1f} ± {evaluation['std_return']:.1f} over"
        f" {evaluation['episodes']} episodes ({'solved' if learned else 'not solved'}: the bar is {WANTED:.0f})"
    )
    return {**result, "evaluation": evaluation, "learned": learned}


def learning_curve(run: Path, rows: int = 12) -> list[str]:
    """The run's returns as bars, one row per stretch of training."""
    metrics = read_metrics(run / METRICS_FILE)
    points = [(s, r) for m in metrics if (s := m["steps"]) is not None and (r := m["episode/return_mean"]) is not None]
    if not points:
        return ["no episode finished"]
    last, top = points[-1][0], max(value for _, value in points)
    lines = []
    for row in range(rows):
        here = [value for steps, value in points if row * last / rows < steps <= (row + 1) * last / rows]
        if here:
            mean = sum(here) / len(here)
            lines.append(f"   {int((row + 1) * last / rows):>9,}  {'█' * max(round(BAR * mean / top), 0):<{BAR}} {mean:.0f}")
    return lines
