"""The training loop: iterate, report, keep what was learnt."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.control.compilation import use_persistent_cache
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.functional import FunctionalEnvironment
from surefoot.control.environments.pool import Pool
from surefoot.control.environments.select import Environment, Selection, environment_name, select_environments
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.iterations.common import Iteration, Outcome
from surefoot.control.iterations.fused import FusedIteration
from surefoot.control.iterations.recorded import RecordedIteration
from surefoot.control.iterations.split import SplitIteration
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import Spaces, describe_spaces
from surefoot.control.recorded.source import RecordedSource, open_recorded
from surefoot.control.update.state import Learner, Schedule, schedule_at
from surefoot.errors import UsageError
from surefoot.runs.directory import CONFIGURATION_FILE, SUMMARY_FILE, create_run_folder, write_json
from surefoot.runs.metrics import MetricsWriter
from surefoot.runs.progress import Progress
from surefoot.runs.statistics import summarize_seeds
from surefoot.runs.stopping import StopRequest

Source = Selection | RecordedSource
"""Where data come from: environments to act in, or recorded episodes."""


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
        seconds, startup_seconds, steps_per_second (without start-up), mean_return (of the last 100 training episodes)
        and run; also ``interrupted``, ``ended_early`` (why training from data was over before its last update, or None),
        and with several seeds ``seeds``, a list, and ``summary``, their interquartile mean and its interval.

    Raises:
        UsageError: something in the configuration cannot be used.
        RunError: an environment failed or the disk is full; what was learnt before is saved where that is possible.
    """
    started = time.time() if started is None else started
    run = configuration.run
    wanted: Environment = run.env if environment is None else environment
    use_persistent_cache()
    source: Source
    seeds = list(range(run.seed, run.seed + run.seeds))
    if configuration.recorded is not None and configuration.recorded.from_data is not None:
        if environment is not None:
            raise UsageError("recorded data are learnt from without acting; give no environment beside from_data")
        configuration, source = open_recorded(configuration)  # which names the environment
        wanted = configuration.run.env
    else:
        source = select_environments(wanted, backend=run.backend, num_envs=run.num_envs, seed=run.seed)
    folder = create_run_folder(run.out, name=f"{configuration.algorithm}-{environment_name(wanted)}")
    write_json(folder / CONFIGURATION_FILE, configuration.as_dict())
    with StopRequest().listening() as stop:
        if len(seeds) == 1:
            return _train_together(configuration, source, {run.seed: folder}, quiet=quiet, started=started, stop=stop)[0]
        folders = {seed: folder / f"seed-{seed}" for seed in seeds}
        results: list[dict[str, Any]] = []
        try:
            if isinstance(source, Selection) and isinstance(source.environments, FunctionalEnvironment):
                results = _train_together(configuration, source, folders, quiet=quiet, started=started, stop=stop)
            else:
                for seed, below in folders.items():
                    if results:
                        started = time.time()
                        source = select_environments(wanted, backend=run.backend, num_envs=run.num_envs, seed=seed)
                    results += _train_together(configuration, source, {seed: below}, quiet=quiet, started=started, stop=stop)
                    if stop.signal is not None:
                        break
        finally:
            # A seed that fails takes nothing from those that finished.
            if results:
                overall = _summarize(results, folder, wanted=len(seeds), together=source.backend == "jax")
                write_json(folder / SUMMARY_FILE, overall)
    return overall


def _summarize(results: list[dict[str, Any]], folder: Path, *, wanted: int, together: bool) -> dict[str, Any]:
    """Several seeds' results as one; ``together`` if they shared one program and so their seconds."""
    reached = [r["mean_return"] for r in results if r["mean_return"] is not None]
    seconds, startup = (
        max(r[name] for r in results) if together else sum(r[name] for r in results) for name in ("seconds", "startup_seconds")
    )
    steps = sum(r["total_steps"] for r in results)
    return {
        **results[0],
        "total_steps": steps,
        "seconds": seconds,
        "startup_seconds": startup,
        "steps_per_second": steps / (seconds - startup) if seconds > startup else None,
        "mean_return": float(np.mean(reached)) if reached else None,
        "run": str(folder),
        "interrupted": len(results) < wanted or any(r["interrupted"] for r in results),
        "seeds": results,
        "summary": summarize_seeds(reached).as_dict() if reached else None,
    }


def make_iteration(configuration: TrainConfiguration, source: Source, seeds: list[int]) -> tuple[Iteration, Spaces]:
    """Compile the iteration that fits where the data come from."""
    if isinstance(source, RecordedSource):
        return RecordedIteration(configuration, source, seed=seeds[0]), source.spaces
    environments, name = source.environments, configuration.run.env
    if isinstance(environments, FunctionalEnvironment):
        spaces = describe_spaces(environments.observation_space, environments.action_space, name=name)
        _check_policy_options(configuration, spaces)
        return FusedIteration(configuration, environments, spaces, name, seeds=seeds), spaces
    _check_policy_options(configuration, environments.spaces)
    if isinstance(environments, Pool) and configuration.rollouts_per_report > 1:
        return FusedIteration(configuration, environments, environments.spaces, name, seeds=seeds), environments.spaces
    return SplitIteration(configuration, environments, seed=seeds[0]), environments.spaces


def _check_policy_options(configuration: TrainConfiguration, spaces: Spaces) -> None:
    """Refuse what this action space leaves without effect."""
    if spaces.action.kind != "box" and configuration.network.initial_log_std != 0:
        raise UsageError(
            f"--initial-log-std would do nothing: {configuration.run.env} has {spaces.action.kind} actions; leave it out"
        )


def _train_together(
    configuration: TrainConfiguration,
    source: Source,
    folders: dict[int, Path],
    *,
    quiet: bool,
    started: float,
    stop: StopRequest,
) -> list[dict[str, Any]]:
    """Train the seeds that ``folders`` names: one, or several in one program."""
    run, count = configuration.run, len(folders)
    iteration, spaces = make_iteration(configuration, source, list(folders))
    trackers = [EpisodeTracker(run.num_envs) for _ in folders]
    acted, completed = [0] * count, 0
    iterations, together = configuration.iterations, configuration.rollouts_per_report
    with ExitStack() as stack:
        stack.callback(iteration.close)
        writers = []
        for seed, below in folders.items():
            single = replace(configuration, run=replace(run, seed=seed, seeds=1, out=str(below)))
            write_json(below / CONFIGURATION_FILE, single.as_dict())
            writers.append(stack.enter_context(MetricsWriter(below, tensorboard=run.tensorboard)))
        label = f"{configuration.algorithm} {run.env}" + (f" × {count} seeds" if count > 1 else "")
        progress = stack.enter_context(Progress(label, iterations * configuration.slots, quiet=quiet))
        for notice in source.notices:
            progress.say(notice)
        startup = time.time() - started
        start = time.perf_counter()
        try:
            for number in range(0, iterations, together):
                if stop.signal is not None or iteration.finished is not None:
                    break
                began = time.perf_counter()
                outcome = iteration.run(number)
                completed = number + together
                seconds = time.perf_counter() - began
                plan = planned(configuration, schedule_at(configuration, number))
                for i, (tracker, writer) in enumerate(zip(trackers, writers, strict=True)):
                    real = int(outcome.valid[i].sum())
                    acted[i] += real
                    counts = {"iteration": completed, "steps": acted[i], "slots": completed * configuration.slots}
                    speed = {"speed/steps_per_second": real / seconds}
                    writer.write(acted[i], counts | _report(outcome, i, tracker, real=real) | plan | speed)
                known = [t.mean_return for t in trackers if t.mean_return is not None]
                rate = sum(acted) / (time.perf_counter() - start)
                if iteration.finished is not None:
                    progress.say(iteration.finished)
                reached = f"return {np.mean(known):.1f}" if known else "no episode finished yet"
                progress.update(completed * configuration.slots, rate=rate, reached=reached)
        finally:
            # On every way out, a failed environment or a second Ctrl-C included: the learner is that of the last whole
            # iteration.
            trained = time.perf_counter() - start
            for learner, below, steps in zip(iteration.learners(), folders.values(), acted, strict=True):
                _policy_of(configuration, spaces, source.backend, learner, steps).save(below)
    results = []
    for below, steps, tracker in zip(folders.values(), acted, trackers, strict=True):
        result = {
            "algorithm": configuration.algorithm,
            "env": run.env,
            "backend": source.backend,
            "total_steps": steps,
            "seconds": startup + trained,
            "startup_seconds": startup,
            "steps_per_second": steps / trained if trained > 0 else None,
            "mean_return": tracker.mean_return,
            "run": str(below),
            "interrupted": completed < iterations and iteration.finished is None,
            "ended_early": iteration.finished,
        }
        write_json(below / SUMMARY_FILE, result)
        results.append(result)
    return results


def _report(outcome: Outcome, i: int, tracker: EpisodeTracker, *, real: int) -> dict[str, float | None]:
    """One report's metrics of one seed, which acted in ``real`` steps."""
    ended = outcome.terminated[i] | outcome.truncated[i]
    report: dict[str, float | None] = tracker.take(outcome.rewards[i], ended, outcome.valid[i])
    report |= {name: float(values[i]) for name, values in outcome.metrics.items()}
    for part, spent in outcome.seconds.items():
        report[f"speed/{part}_steps_per_second"] = real / spent if spent > 0 else None
    return report


def planned(configuration: TrainConfiguration, schedule: Schedule) -> dict[str, float]:
    """The plan's values that this run reads, as metrics."""
    settings = configuration.as_dict()
    reads = {"learning_rate": True, "critic_learning_rate": settings.get("critic_learning_rate") is not None}
    reads |= {"clip_range": settings.get("clip_range") is not None, "max_kl": "max_kl" in settings}
    return {f"schedule/{name}": float(getattr(schedule, name)) for name, read in reads.items() if read}


def _policy_of(configuration: TrainConfiguration, spaces: Spaces, backend: str, learner: Learner, steps: int) -> Policy:
    normalizes = configuration.normalization.normalize_observations
    return Policy(
        spaces=spaces,
        activation=configuration.network.activation,
        parameters=learner.actor.parameters,
        observation_statistics=learner.observations if normalizes else None,
        observation_clip=configuration.normalization.observation_clip,
        description={"algorithm": configuration.algorithm, "env": configuration.run.env, "backend": backend, "steps": steps},
    )
