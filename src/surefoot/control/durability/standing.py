"""Where a run stands, and that as a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.pool import processors
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.iterations.common import Iteration
from surefoot.errors import Caution, UsageError
from surefoot.runs.checkpoints import Checkpoint
from surefoot.runs.libraries import changed_versions, library_versions
from surefoot.runs.rates import CHANGES, rate_at

LIBRARIES = ("surefoot", "jax", "jaxlib", "numpy", "optax", "gymnasium", "envpool", "mujoco")
FREE = (
    "checkpoint_every", "keep_checkpoints", "tensorboard", "out", "on_nonfinite", "env_workers", "worker_timeout",
    "on_worker_failure", "from_data", "environment",
)  # fmt: skip
"""Settings that may differ from those that a checkpoint was written under; ``total_steps`` may be more. Recorded data and environments
are compared themselves, wherever they lie."""


@dataclass
class Standing:
    """How far a run is, beside what its iteration carries; lists have an entry for each seed."""

    trackers: list[EpisodeTracker]
    acted: list[int]
    """Environment steps so far, those left out in which an environment only reset."""
    skipped: list[int]
    """Updates that were left out."""
    restarts: list[int]
    """Environments that failed in a worker process, or were lost with it, and were made anew."""
    completed: int = 0
    """Iterations."""
    seconds: float = 0.0
    """Of training, in the processes before this one."""
    best: float | None = None
    """The highest mean return at a checkpoint."""
    resumed: list[dict[str, Any]] = field(default_factory=list)
    """Where it was resumed, each time: ``step``, and whether ``exact``."""

    @staticmethod
    def beginning(configuration: TrainConfiguration, seeds: int) -> Standing:
        """Of a run in which nothing has happened."""
        trackers = [EpisodeTracker(configuration.run.num_envs) for _ in range(seeds)]
        return Standing(trackers, acted=[0] * seeds, skipped=[0] * seeds, restarts=[0] * seeds)

    @property
    def mean_return(self) -> float | None:
        """Over the last finished episodes of the seeds that have some; None where none has."""
        known = [t.mean_return for t in self.trackers if t.mean_return is not None]
        return float(np.mean(known)) if known else None


def computed_with() -> dict[str, str]:
    """What rounding depends on, beside the run."""
    return library_versions(LIBRARIES) | {"device": jax.devices()[0].device_kind, "processors": str(processors())}


def checkpoint_of(
    configuration: TrainConfiguration,
    iteration: Iteration,
    standing: Standing,
    *,
    exact: bool,
    seconds: float,
    metrics: list[dict[str, Any]],
    source: Mapping[str, Any],
) -> Checkpoint:
    """Everything that a run carries.

    Args:
        configuration: of the run.
        iteration: what it trains with.
        standing: how far it is.
        exact: whether a run that goes on from here is the run.
        seconds: of training in this process.
        metrics: each seed's position in its metrics.
        source: ``backend`` and ``data``: what a resumed run must find again.
    """
    arrays = {f"iteration/{name}": array for name, array in iteration.state().items()}
    for i, tracker in enumerate(standing.trackers):
        arrays |= {f"episodes/{i}/{name}": array for name, array in tracker.state().items()}
    state = {
        "configuration": configuration.as_dict(),
        **source,
        "iteration": standing.completed,
        "acted": standing.acted,
        "skipped": standing.skipped,
        "restarts": standing.restarts,
        "seconds": standing.seconds + seconds,
        "best": standing.best,
        "finished": iteration.finished,
        "resumed": standing.resumed,
        "metrics": metrics,
        "computed_with": computed_with(),
    }
    return Checkpoint(standing.completed * configuration.slots, exact, arrays, state)


def restore(checkpoint: Checkpoint, iteration: Iteration, standing: Standing) -> None:
    """Take up a checkpoint that :func:`check` found to be of this run.

    Raises:
        UsageError: it does not fit.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in checkpoint.arrays.items():
        group, _, rest = name.rpartition("/") if name.startswith("episodes/") else name.partition("/")
        groups.setdefault(group, {})[rest] = array
    iteration.restore(groups.pop("iteration", {}))
    for i, tracker in enumerate(standing.trackers):
        tracker.restore(groups.pop(f"episodes/{i}", {}))
        if not iteration.whole:
            tracker.cut()
    if groups:
        raise UsageError(f"the checkpoint does not fit this run: {next(iter(groups))} is not of it")
    state = checkpoint.state
    standing.completed, standing.acted, standing.skipped = state["iteration"], list(state["acted"]), list(state["skipped"])
    standing.restarts = list(state["restarts"])
    standing.seconds, standing.best, standing.resumed = state["seconds"], state["best"], list(state["resumed"])
    iteration.finished = state["finished"]


def check(checkpoint: Checkpoint, configuration: TrainConfiguration, seeds: int) -> tuple[str, ...]:
    """See whether a checkpoint is of a run of this configuration.

    Returns:
        what the user should know.

    Raises:
        UsageError: it is of another, or not a checkpoint of a training run.
    """
    state = checkpoint.state
    number = (int, float)
    kinds: dict[str, Any] = {
        "configuration": dict, "backend": str, "data": (str, type(None)), "iteration": int, "acted": list, "skipped": list,
        "restarts": list,
        "seconds": number, "best": (*number, type(None)), "finished": (str, type(None)), "resumed": list, "metrics": list,
        "computed_with": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        if name not in state or not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise UsageError(f"the checkpoint at step {checkpoint.step:,} is not one of a training run: it has no {name}")
    before, now = state["configuration"], configuration.as_dict()
    with contextlib.suppress(UsageError):  # a setting that came later was at its default
        before = TrainConfiguration.from_dict({name: now[name] for name in now if name in before}).as_dict() | before
    steps = before.get("total_steps")
    shorter = type(steps) is not int or not 1 <= steps <= configuration.run.total_steps
    rate = rate_at(configuration.learning_rate_changes, configuration.optimizer.learning_rate, checkpoint.step)
    now |= {"learning_rate": rate, CHANGES: before.get(CHANGES)}
    for name in sorted(before.keys() | now.keys()):
        if shorter if name == "total_steps" else name not in FREE and before.get(name) != now.get(name):
            raise UsageError(
                f"config.json says {name} {now.get(name)}, but the checkpoint at step {checkpoint.step:,} was written under"
                f" {before.get(name)}; set it back, or train anew in another folder"
            )
    counts = [*state["acted"], *state["skipped"], *state["restarts"]]
    lengths = {len(state[name]) for name in ("acted", "skipped", "restarts", "metrics")}
    whole = all(type(count) is int for count in counts) and all(
        isinstance(m, dict) for m in (*state["metrics"], *state["resumed"])
    )
    if lengths != {seeds} or not whole or checkpoint.step != state["iteration"] * configuration.slots or state["iteration"] < 0:
        raise UsageError(f"the checkpoint at step {checkpoint.step:,} is not one of this run: its counts do not fit")
    notices = _longer(replace(configuration, run=replace(configuration.run, total_steps=steps)), configuration)
    versions = {str(name): str(version) for name, version in state["computed_with"].items()}
    if changes := changed_versions(versions, computed_with()):
        said = (
            f"libraries have changed ({changes}): the run goes on, but may differ in its bits from one that was never stopped"
        )
        notices += (Caution(said),)
    return notices


def _longer(before: TrainConfiguration, after: TrainConfiguration) -> tuple[str, ...]:
    """What the user should know of a run whose steps were raised from those of ``before`` to those of ``after``."""
    if before.run.total_steps == after.run.total_steps:
        return ()
    settings = after.as_dict()
    falling = [
        name for name in ("learning_rate_schedule", "clip_range_schedule", "max_kl_schedule") if settings.get(name) == "linear"
    ]
    options = " and ".join(f"--{name.replace('_', '-')} linear" for name in falling)
    notices = []
    if falling:
        notices.append(
            f"{options} {'is' if len(falling) == 1 else 'are'} spread over the whole run: from here on it is that of"
            f" a run of {after.run.total_steps:,} steps, but what was learnt so far was learnt under one of {before.run.total_steps:,}"
        )
    if before.rollouts_per_report != after.rollouts_per_report:
        notices.append(
            f"a report now covers {after.rollouts_per_report} rollouts in place of {before.rollouts_per_report}: its metrics, and where"
            " environments begin afresh, are not those of a run that was never stopped"
        )
    return tuple(map(Caution, notices))
