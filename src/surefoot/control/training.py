"""From a configuration to a run's folder: one seed, several in one program or in turn; and again where one was stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.compilation import check_jax, use_persistent_cache
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.durability.resuming import (
    backend_of,
    check_source,
    find_start,
    finished_before,
    read_configuration,
    with_rate,
)
from surefoot.control.environments.arguments import Wrapper
from surefoot.control.environments.functional import FunctionalEnvironment
from surefoot.control.environments.making import Environment, environment_name
from surefoot.control.environments.seeding import shared_generators_restored
from surefoot.control.environments.select import Selection
from surefoot.control.loop import train_seeds
from surefoot.control.sources import Source, close_source, open_source
from surefoot.errors import UsageError
from surefoot.runs.directory import CONFIGURATION_FILE, SUMMARY_FILE, create_run_folder, write_json
from surefoot.runs.launchers import refuse_several_processes
from surefoot.runs.lock import RunLock
from surefoot.runs.settings import setting
from surefoot.runs.statistics import summarize_seeds
from surefoot.runs.stopping import StopRequest


@shared_generators_restored()
def train(
    configuration: TrainConfiguration,
    *,
    environment: Environment | None = None,
    quiet: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Train, and keep the run in a folder.

    Args:
        configuration: what to train and how.
        environment: a callable to take instead of ``configuration.run.env``, which then only names it.
        quiet: no progress.
        started: ``time.time()`` of the process's start, so that start-up includes imports; now by default.

    Returns:
        what ``surefoot train --json`` prints: algorithm, env, backend, total_steps (that the policy acted on),
        seconds, startup_seconds, steps_per_second (without start-up), mean_return (of the last 100 training episodes), run,
        last_finished_episodes (of the last report), finished_steps and running_steps (of the episodes that finished, and of those
        that had not when training ended); also ``interrupted``, ``ended_early`` (why training from data was over before its last
        update, or None), ``skipped_updates``, ``environment_restarts`` (those made anew after a failure in a worker process),
        ``checkpoint`` (the last one's ``step`` and whether it is ``exact``, or None), ``exact_checkpoint`` (the step of the last
        one that is, or None), ``resumed`` (as ``checkpoint``, for each time that the run was resumed), and with several seeds
        ``seeds``, a list, and ``summary``, their interquartile mean and its interval.

    Raises:
        UsageError: something in the configuration cannot be used.
        RunError: an environment failed, an update was not finite or the disk is full; what was learnt before is saved where
            that is possible.
    """
    started = time.time() if started is None else started
    refuse_several_processes()
    check_jax()
    use_persistent_cache()
    configuration, source = open_source(configuration, environment, seed=configuration.run.seed)
    try:
        name = configuration.run.env if environment is None else environment_name(environment)
        folder = create_run_folder(configuration.run.out, name=f"{configuration.algorithm}-{name}")
        with RunLock(folder):
            write_json(folder / CONFIGURATION_FILE, configuration.as_dict())
            return _train_all(configuration, folder, environment, source=source, quiet=quiet, started=started)
    finally:
        close_source(source)  # where the run did not come so far that it was done


@shared_generators_restored()
def resume(
    run: str | Path,
    *,
    total_steps: int | None = None,
    learning_rate: float | None = None,
    exact: bool = False,
    environment: Environment | None = None,
    wrapper: Iterable[Wrapper] | None = None,
    quiet: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Go on with a run that was stopped, from its last whole checkpoint to its end.

    Args:
        run: its folder.
        total_steps: how many steps it shall have in place of those that it was planned for, which are fewer.
        learning_rate: the optimiser's step size from there on, in place of the one that the run has; its schedule goes on with it.
        exact: pass over checkpoints that are not exact.
        environment: what it was trained in, where that was a callable, which its configuration only names.
        wrapper: the wrappers that it was trained in, where those that its configuration names are not found.
        quiet: no progress.
        started: ``time.time()`` of the process's start; now by default.

    Returns:
        as :func:`train`.

    Raises:
        UsageError: there is no run or no checkpoint; it is finished, in use, or not what was written; or the environment is not
            given, or is another task than the one that the run was trained in.
        RunError: as :func:`train`.
    """
    started, folder = time.time() if started is None else started, Path(run)
    refuse_several_processes()
    configuration = read_configuration(folder)
    planned = configuration.run.total_steps
    total_steps = setting("total_steps", total_steps, int | None)
    with RunLock(folder):
        finished = finished_before(folder, total_steps=planned)
        # As many as planned, of a run that is not there yet: the command that raised them, given again after a stop.
        if total_steps is not None and (total_steps < planned or (total_steps == planned and finished)):
            raise UsageError(f"--total-steps {total_steps} is no more than the {planned} that {folder} is planned for")
        if total_steps is not None:
            configuration = replace(configuration, run=replace(configuration.run, total_steps=total_steps))
        elif finished is not None:
            why = f"ended early: {finished['ended_early']}" if finished["ended_early"] else "is finished"
            raise UsageError(f"{folder} {why}; --total-steps N goes on beyond its {planned} steps")
        if environment is None and configuration.environment is not None and configuration.environment.unfound is not None:
            raise UsageError(configuration.environment.unfound)
        check_jax()
        use_persistent_cache()
        given: dict[str, Any] = {"wrapper": wrapper, "quiet": quiet, "started": started}
        return _train_all(configuration, folder, environment, going_on=GoingOn(learning_rate, exact), **given)


class GoingOn(NamedTuple):
    """How a run that was stopped goes on."""

    learning_rate: float | None
    """In place of the run's; None leaves that."""
    exact: bool
    """Whether checkpoints that are not exact are passed over."""


def _train_all(
    configuration: TrainConfiguration,
    folder: Path,
    environment: Environment | None,
    *,
    source: Source | None = None,
    going_on: GoingOn | None = None,
    wrapper: Iterable[Wrapper] | None = None,
    quiet: bool,
    started: float,
) -> dict[str, Any]:
    """Train all seeds of a run, from the beginning or as ``going_on`` says; ``source`` is the first one's, where it is open already."""
    resumed = going_on is not None
    seeds = list(range(configuration.run.seed, configuration.run.seed + configuration.run.seeds))

    def train_at(home: Path, folders: dict[int, Path], source: Source | None, started: float) -> list[dict[str, Any]]:
        """One seed, or several in one program; ``home`` holds their checkpoints."""
        start, shaped = None, configuration
        if going_on is not None:
            if (home / CONFIGURATION_FILE).exists():
                start = find_start(home, configuration, seeds=len(folders), exact=going_on.exact)
            shaped, start = with_rate(configuration, start, going_on.learning_rate)
        planned = shaped
        if source is None:
            began, backend = (0 if start is None else start.iteration), backend_of(start, shaped, environment)
            settings: dict[str, Any] = {"began": began, "backend": backend, "wrapper": wrapper}
            shaped, source = open_source(shaped, environment, seed=next(iter(folders)), **settings)
        try:
            if resumed:
                start, shaped = check_source(start, source, planned, shaped)
            if resumed and len(seeds) > 1:  # of one seed the same is done below
                (folder / SUMMARY_FILE).unlink(missing_ok=True)
                write_json(folder / CONFIGURATION_FILE, planned.as_dict())
            return train_seeds(shaped, source, folders, home=home, start=start, quiet=quiet, started=started, stop=stop)
        finally:
            close_source(source)

    with StopRequest().listening() as stop:
        if len(seeds) == 1:
            return train_at(folder, {seeds[0]: folder}, source, started)[0]
        folders = {seed: folder / f"seed-{seed}" for seed in seeds}
        if source is None:
            _, source = open_source(configuration, environment, seed=seeds[0], wrapper=wrapper)
        together = isinstance(source, Selection) and isinstance(source.environments, FunctionalEnvironment)
        if going_on is not None and going_on.learning_rate is not None and not together:
            close_source(source)
            raise UsageError(
                "--learning-rate: seeds that are trained in turn would not have the same one; resume a run of one seed"
            )
        results: list[dict[str, Any]] = []
        try:
            if together:
                results = train_at(folder, folders, source, started)
            else:
                opened: Source | None = source
                if resumed:  # perhaps not what stepped the environments before, nor of a seed that goes on
                    opened = None
                    close_source(source)
                for seed, below in folders.items():
                    finished = finished_before(below, total_steps=configuration.run.total_steps) if resumed else None
                    if finished is not None:
                        results.append(finished)
                        continue
                    results += train_at(below, {seed: below}, opened, started)
                    opened, started = None, time.time()
                    if stop.signal is not None:
                        break
        finally:
            # A seed that fails takes nothing from those that finished.
            if results:
                overall = _summarize(results, folder, wanted=len(seeds), together=together)
                write_json(folder / SUMMARY_FILE, overall)
    return overall


OF_EPISODES = ("last_finished_episodes", "finished_steps", "running_steps")


def _summarize(results: list[dict[str, Any]], folder: Path, *, wanted: int, together: bool) -> dict[str, Any]:
    """Several seeds' results as one; ``together`` if they shared one program and so their seconds."""
    reached = [r["mean_return"] for r in results if r["mean_return"] is not None]
    seconds, startup = (
        max(r[name] for r in results) if together else sum(r[name] for r in results) for name in ("seconds", "startup_seconds")
    )
    steps = sum(r["total_steps"] for r in results)
    return {
        **results[-1],
        "total_steps": steps,
        "seconds": seconds,
        "startup_seconds": startup,
        "steps_per_second": steps / (seconds - startup) if seconds > startup else None,
        "mean_return": float(np.mean(reached)) if reached else None,
        **{name: sum(r.get(name) or 0 for r in results) for name in OF_EPISODES},
        "skipped_updates": sum(r.get("skipped_updates", 0) for r in results),
        "environment_restarts": sum(r.get("environment_restarts", 0) for r in results),
        "run": str(folder),
        "interrupted": len(results) < wanted or any(r["interrupted"] for r in results),
        "seeds": results,
        "summary": summarize_seeds(reached).as_dict() if reached else None,
    }
