"""The training loop: iterate, report, keep what was learnt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.durability.keeping import Keeper, describe_failure
from surefoot.control.durability.resuming import Start
from surefoot.control.durability.standing import Standing, restore
from surefoot.control.environments.functional import FunctionalEnvironment
from surefoot.control.environments.identity.record import differences
from surefoot.control.environments.pool import Pool
from surefoot.control.environments.select import Environments, Selection
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.iterations.common import Iteration, Outcome
from surefoot.control.iterations.fused import FusedIteration
from surefoot.control.iterations.recorded import RecordedIteration
from surefoot.control.iterations.split import SplitIteration
from surefoot.control.notices import Watch
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import Spaces, describe_spaces
from surefoot.control.recorded.source import RecordedSource
from surefoot.control.sources import Source
from surefoot.control.update.state import Learner, Schedule, schedule_at
from surefoot.errors import Caution, EnvironmentFault, RunError, UsageError
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.directory import CONFIGURATION_FILE, SUMMARY_FILE, write_json
from surefoot.runs.metrics import BEGINNING, MetricsWriter
from surefoot.runs.progress import Progress
from surefoot.runs.statistics import readable
from surefoot.runs.stopping import StopRequest


def make_iteration(
    configuration: TrainConfiguration, source: Source, seeds: list[int], *, began: int = 0
) -> tuple[Iteration, Spaces]:
    """Compile the iteration that fits where the data come from; ``source`` was made to begin with iteration ``began``."""
    if isinstance(source, RecordedSource):
        return RecordedIteration(configuration, source, seed=seeds[0]), source.spaces
    environments, name = source.environments, configuration.run.env
    if isinstance(environments, FunctionalEnvironment):
        spaces = describe_spaces(environments.observation_space, environments.action_space, name=name).in_float32()
        _check_options(configuration, spaces, whole=True)
        return FusedIteration(configuration, environments, spaces, name, seeds=seeds), spaces
    _check_options(configuration, environments.spaces, whole=False)
    if isinstance(environments, Pool) and configuration.rollouts_per_report > 1:
        return FusedIteration(configuration, environments, environments.spaces, name, seeds=seeds), environments.spaces
    return SplitIteration(configuration, environments, seed=seeds[0], began=began), environments.spaces


def _check_options(configuration: TrainConfiguration, spaces: Spaces, *, whole: bool) -> None:
    """Refuse what this environment leaves without effect; the state of a ``whole`` one is saved."""
    run = configuration.run
    if spaces.action.kind != "box" and configuration.network.initial_log_std not in (None, 0):
        raise UsageError(f"--initial-log-std would do nothing: {run.env} has {spaces.action.kind} actions; leave it out")
    if whole and run.restart_every is not None:
        raise UsageError(
            f"--restart-every would do nothing: {run.env} is a pure-JAX environment, whose state is saved whole; leave it out"
        )


def train_seeds(
    configuration: TrainConfiguration,
    source: Source,
    folders: dict[int, Path],
    *,
    home: Path,
    start: Start | None,
    quiet: bool,
    started: float,
    stop: StopRequest,
) -> list[dict[str, Any]]:
    """Train the seeds that ``folders`` names: one, or several in one program; ``home`` holds their checkpoints.

    Args:
        configuration: what to train and how.
        source: where data come from, made to begin where the run does.
        folders: of each seed.
        home: one folder's, or the folder around several.
        start: where a run that was stopped goes on; None for a new one.
        quiet: no progress.
        started: ``time.time()`` of the beginning.
        stop: set from outside.
    """
    run, count = configuration.run, len(folders)
    standing = Standing.beginning(configuration, count)
    checkpoint = None if start is None else start.checkpoint
    first = 0 if start is None else start.iteration
    try:
        iteration, spaces = make_iteration(configuration, source, list(folders), began=first)
    except EnvironmentFault as error:  # in the first reset
        raise EnvironmentFault(describe_failure(error, home)) from error
    iterations, together = configuration.iterations, configuration.rollouts_per_report
    with ExitStack() as stack:
        label = f"{configuration.algorithm} {run.env}" + (f" × {count} seeds" if count > 1 else "")
        total = iterations * configuration.slots
        progress = Progress(label, total, done=first * configuration.slots, quiet=quiet)
        said = set[str]()

        def closed(notices: tuple[str, ...]) -> None:
            """Say each of them once: a run may close its environments many times."""
            for notice in notices:
                if notice not in said:
                    progress.say(notice)
            said.update(notices)

        stack.callback(lambda: closed(iteration.close()))  # last of all: it runs the user's program once more
        if checkpoint is not None:
            restore(checkpoint, iteration, standing)
        if start is not None:
            # From here on the folder changes.
            standing.resumed.append({"step": first * configuration.slots, "exact": start.exact})
            Checkpoints(home).forget_after(first * configuration.slots)
        writers = [stack.enter_context(writer) for writer in _open_folders(configuration, folders, start)]
        stack.enter_context(progress)
        of_start = () if start is None else start.notices
        of_metrics = [notice for writer in writers for notice in writer.notices]
        of_environment = (*_about_checkpoints(configuration, iteration), *_about_statistics(configuration))
        for notice in (*source.notices, *of_environment, *of_start, *of_metrics):
            progress.say(notice)
        startup = time.time() - started
        keeper = Keeper(configuration, home, iteration, standing, writers, source.described)
        if checkpoint is not None:
            keeper.last = {"step": checkpoint.step, "exact": checkpoint.exact}
        before, watch = sum(standing.acted), Watch(configuration, spaces)
        try:
            for number in range(first, iterations, together):
                if stop.signal is not None or iteration.finished is not None:
                    break
                began = time.perf_counter()
                try:
                    if number > first and not iteration.whole and configuration.restarts_at(number):
                        closed(_restart(iteration, source, number))
                        for tracker in standing.trackers:
                            tracker.cut()
                    outcome = iteration.run(number)
                except RunError as error:
                    raise keeper.before_failure(error) from error
                _record(configuration, outcome, standing, writers, number=number, seconds=time.perf_counter() - began)
                for sentence in (
                    *keeper.after_restarts(outcome.restarts),
                    *outcome.notices,
                    *watch.of_report(iteration, outcome),
                ):
                    progress.say(Caution(sentence))
                if iteration.finished is not None:
                    progress.say(Caution(iteration.finished))
                rate = (sum(standing.acted) - before) / keeper.seconds
                progress.update(standing.completed * configuration.slots, rate=rate, reached=_reached(standing))
                keeper.after_report()
            keeper.at_end()
        except BaseException:
            # A failed environment, a full disk, a second Ctrl-C: the learner is that of the last whole iteration.
            with contextlib.suppress(RunError):  # what went wrong first must be told
                _save_policies(configuration, spaces, source, iteration, standing, folders)
            raise
        trained = keeper.seconds
        _save_policies(configuration, spaces, source, iteration, standing, folders)
        results = []
        for i, below in enumerate(folders.values()):
            steps, spent = standing.acted[i], standing.seconds + trained
            result = {
                "algorithm": configuration.algorithm,
                "env": run.env,
                "backend": source.backend,
                "total_steps": steps,
                "seconds": startup + spent,
                "startup_seconds": startup,
                "steps_per_second": steps / spent if spent > 0 else None,
                "mean_return": standing.trackers[i].mean_return,
                "last_finished_episodes": standing.trackers[i].last_finished,
                "finished_steps": standing.trackers[i].finished_steps,
                "running_steps": standing.trackers[i].running_steps,
                "run": str(below),
                "interrupted": standing.completed < iterations and iteration.finished is None,
                "ended_early": iteration.finished,
                "skipped_updates": standing.skipped[i],
                "environment_restarts": standing.restarts[i],
                "checkpoint": keeper.last,
                "exact_checkpoint": keeper.last_exact,
                "resumed": standing.resumed,
            }
            write_json(below / SUMMARY_FILE, result)
            results.append(result)
    return results


def _open_folders(configuration: TrainConfiguration, folders: dict[int, Path], start: Start | None) -> Iterator[MetricsWriter]:
    """Make each seed's folder ready; its metrics are cut back to where the run goes on."""
    positions: list[Any] = [None] * len(folders)
    if start is not None:
        positions = [BEGINNING] * len(folders) if start.checkpoint is None else start.checkpoint.state["metrics"]
    for (seed, below), position in zip(folders.items(), positions, strict=True):
        single = replace(configuration, run=replace(configuration.run, seed=seed, seeds=1, out=str(below)))
        (below / SUMMARY_FILE).unlink(missing_ok=True)  # first: it would be one of a finished run of more steps
        write_json(below / CONFIGURATION_FILE, single.as_dict())
        yield MetricsWriter(below, tensorboard=configuration.run.tensorboard, resume=position)


def _record(
    configuration: TrainConfiguration,
    outcome: Outcome,
    standing: Standing,
    writers: list[MetricsWriter],
    *,
    number: int,
    seconds: float,
) -> None:
    """Count one report, which began with iteration ``number``, and write its metrics."""
    standing.completed = number + configuration.rollouts_per_report
    plan = planned(configuration, schedule_at(configuration, number))
    for i, (tracker, writer) in enumerate(zip(standing.trackers, writers, strict=True)):
        real = int(outcome.valid[i].sum())
        standing.acted[i] += real
        standing.skipped[i] += int(outcome.skipped[i])
        standing.restarts[i] += outcome.restarts.begun
        slots = standing.completed * configuration.slots
        counts = {"iteration": standing.completed, "steps": standing.acted[i], "slots": slots}
        report = _report(configuration, outcome, i, tracker, real=real)
        writer.write(standing.acted[i], counts | report | plan | {"speed/steps_per_second": real / seconds})


def _reached(standing: Standing) -> str:
    mean = standing.mean_return
    reached = "no episode finished yet" if mean is None else f"return {readable(mean)}"
    if any(standing.skipped):
        reached += f", {sum(standing.skipped)} updates skipped"
    if any(standing.restarts):
        reached += f", {sum(standing.restarts)} environments restarted"
    return reached


def _save_policies(
    configuration: TrainConfiguration,
    spaces: Spaces,
    source: Source,
    iteration: Iteration,
    standing: Standing,
    folders: dict[int, Path],
) -> None:
    for learner, below, steps in zip(iteration.learners(), folders.values(), standing.acted, strict=True):
        _policy_of(configuration, spaces, source.backend, learner, steps).save(below)


def _about_checkpoints(configuration: TrainConfiguration, iteration: Iteration) -> tuple[str, ...]:
    """What a user who wants checkpoints must know of environments whose state cannot be saved."""
    run = configuration.run
    if run.checkpoint_every is None or iteration.whole:
        return ()
    if run.restart_every == 0:
        return (
            f"--restart-every 0: no checkpoint of {run.env} is exact, because the state of its environments cannot be saved",
        )
    grid = configuration.restart_grid * configuration.slots
    return (f"exact checkpoints every {grid:,} steps (--restart-every): the state of {run.env} cannot be saved in between",)


def _about_statistics(configuration: TrainConfiguration) -> tuple[str, ...]:
    """What a user must know whose environment normalises by itself."""
    grid = configuration.restart_grid * configuration.slots
    again = f"evaluation and every {grid:,} steps" if grid else "evaluation"
    return () if configuration.environment is None else configuration.environment.about_statistics(again)


def _restart(iteration: Iteration, source: Source, number: int) -> tuple[str, ...]:
    """Begin iteration ``number`` with fresh environments; returns notices about the end of the old ones."""
    assert isinstance(source, Selection)
    assert source.again is not None
    again = source.again

    def make() -> Environments:
        made = again(number)
        if other := [found.sentence for found in differences(source.identity, made.identity) if found.of_task]:
            raise UsageError(f"{made.identity.name} has become another task ({'; '.join(other)})")
        return made.environments

    try:
        return iteration.restart(number, make)
    except UsageError as error:
        raise EnvironmentFault(f"the environments could not begin afresh: {error}") from error


def _report(
    configuration: TrainConfiguration, outcome: Outcome, i: int, tracker: EpisodeTracker, *, real: int
) -> dict[str, float | None]:
    """One report's metrics of one seed, which acted in ``real`` steps."""
    ended = outcome.terminated[i] | outcome.truncated[i]
    cut = None if outcome.cut is None else outcome.cut[i]
    report: dict[str, float | None] = tracker.take(outcome.rewards[i], ended, outcome.valid[i], cut)
    report |= {name: float(values[i]) for name, values in outcome.metrics.items()}
    if configuration.run.on_nonfinite == "skip":
        report["update/skipped"] = float(outcome.skipped[i])
    if configuration.run.on_worker_failure == "restart":
        report["env/restarts"] = float(outcome.restarts.begun)
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
    normalizes, identity = configuration.normalization.normalize_observations, configuration.environment
    run, known = configuration.run, {} if identity is None else {"environment": identity.as_dict()}
    known |= {name: list(given) for name in ("env_kwargs", "wrapper") if (given := getattr(run, name))}
    return Policy(
        spaces=spaces,
        activation=configuration.network.activation,
        parameters=learner.actor.parameters,
        observation_statistics=learner.observations if normalizes else None,
        observation_clip=configuration.normalization.observation_clip,
        description={"algorithm": configuration.algorithm, "env": configuration.run.env, "backend": backend, "steps": steps}
        | known,
    )
