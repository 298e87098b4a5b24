"""Where a run that was stopped goes on: its configuration, the checkpoint, and whether both are of one run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from surefoot.control.configuration import Backend, TrainConfiguration
from surefoot.control.durability.standing import check
from surefoot.control.environments.identity.record import differences
from surefoot.control.environments.making import Environment, names_callable
from surefoot.control.sources import Source
from surefoot.control.update.state import schedule_at
from surefoot.errors import Caution, UsageError
from surefoot.runs.checkpoints import Checkpoint, Checkpoints
from surefoot.runs.directory import CONFIGURATION_FILE, METRICS_FILE, SUMMARY_FILE, read_json
from surefoot.runs.rates import changes_from

RESULTS = ("algorithm", "env", "backend", "total_steps", "seconds", "startup_seconds", "mean_return", "run", "ended_early")
"""What the summary of a finished run has at least."""


class Start(NamedTuple):
    """Where a run that was stopped goes on."""

    checkpoint: Checkpoint | None
    """None where none had been kept yet: it begins again."""
    exact: bool
    """Whether it ends as if it had never been stopped."""
    notices: tuple[str, ...]
    """Sentences for the user: which checkpoint this is, and which were passed over."""

    @property
    def iteration(self) -> int:
        """The first one to do."""
        return 0 if self.checkpoint is None else int(self.checkpoint.state["iteration"])


def find_start(home: Path, configuration: TrainConfiguration, *, seeds: int, exact: bool) -> Start:
    """Where a run that was stopped goes on: at its last whole checkpoint.

    Args:
        home: of the checkpoints.
        configuration: of the run.
        seeds: how many a checkpoint is of.
        exact: pass over checkpoints that are not exact.

    Raises:
        UsageError: there are only damaged ones, or it is not of a run of this configuration.
    """
    checkpoints = Checkpoints(home)
    checkpoints.adopt()
    if not checkpoints.steps():
        return Start(None, True, (f"{home} has no checkpoint yet: it begins again",))
    checkpoint, passed = checkpoints.latest(exact=exact)
    changes = check(checkpoint, configuration, seeds)
    kind = "exact" if checkpoint.exact else "inexact: its environments begin afresh"
    where = f"going on from step {checkpoint.step:,} ({kind})"
    return Start(checkpoint, checkpoint.exact and not changes, (*passed, where, *changes))


def with_rate(
    configuration: TrainConfiguration, start: Start | None, learning_rate: float | None
) -> tuple[TrainConfiguration, Start | None]:
    """A configuration whose run goes on with another learning rate, where one is given or the checkpoint had another.

    Args:
        configuration: of the run.
        start: where it goes on.
        learning_rate: what takes the place of the run's; None leaves it.

    Returns:
        the configuration, and the start with a sentence about what changes there.

    Raises:
        UsageError: the rate cannot be used, or nothing would read it.
    """
    optimizer, changes = configuration.optimizer, configuration.learning_rate_changes
    rate = optimizer.learning_rate
    if learning_rate is not None:
        if (reason := configuration.idle_options().get("learning_rate")) is not None:
            raise UsageError(f"--learning-rate would do nothing: {reason}; leave it out")
        optimizer = replace(optimizer, learning_rate=learning_rate)
    if start is None or start.checkpoint is None:  # it begins again, and knows no other
        return replace(configuration, optimizer=optimizer, learning_rate_changes=()), start
    step = start.checkpoint.step
    following = changes_from(changes, rate, step, optimizer.learning_rate)
    configuration = replace(configuration, optimizer=optimizer, learning_rate_changes=following)
    if not following or following[-1].step != step:
        return configuration, start
    change, there = following[-1], float(schedule_at(configuration, start.iteration).learning_rate)
    said = f"from step {step:,} on the learning rate is {change.after:g} in place of {change.before:g} (--learning-rate)"
    if optimizer.learning_rate_schedule != "constant":
        said += f"; its schedule, {optimizer.learning_rate_schedule}, goes on and has it at {there:.3g} there"
    return configuration, start._replace(exact=False, notices=(*start.notices, Caution(said)))


def backend_of(start: Start | None, configuration: TrainConfiguration, environment: Environment | None) -> Backend | None:
    """What stepped the environments before, where the configuration left the choice open; None where it does not."""
    chosen = configuration.run.backend == "auto" and environment is None and not names_callable(configuration.run.env)
    if start is None or start.checkpoint is None or not chosen:
        return None
    before: Any = start.checkpoint.state["backend"]
    return before if before in get_args(Backend) else None


def check_source(
    start: Start | None, source: Source, recorded: TrainConfiguration, opened: TrainConfiguration
) -> tuple[Start | None, TrainConfiguration]:
    """See whether data come from where they came from before.

    Args:
        start: where the run goes on; None where it begins.
        source: as it was opened now.
        recorded: the run's configuration, with the environment that it was trained in, as far as it was recorded.
        opened: the same, with the environment that was made now.

    Returns:
        ``start``, with what the user should know of the environment; and ``opened`` with the recorded environment, which stays the
        run's own.

    Raises:
        UsageError: they come from elsewhere, or the environment is another task.
    """
    said: tuple[str, ...] = ()
    if recorded.environment is not None and opened.environment is not None:
        name, found = opened.environment.name, differences(recorded.environment, opened.environment)
        if other := [difference.sentence for difference in found if difference.of_task]:
            raise UsageError(
                f"{name} is another task than the run was trained in ({'; '.join(other)}); give that environment, or train anew in another"
                " folder"
            )
        said = tuple(difference.caution(name, "the run") for difference in found)
        opened = replace(opened, environment=recorded.environment)
    if start is not None and start.checkpoint is not None:
        before, now = start.checkpoint.state, source.described
        if before["backend"] != now["backend"]:
            raise UsageError(f"the run was trained with backend {before['backend']}, and this would be {now['backend']}")
        if before["data"] != now["data"]:
            raise UsageError("the recorded data are not what they were when the run began; put them back, or train anew")
    return start and start._replace(notices=(*start.notices, *said)), opened


def read_configuration(folder: Path) -> TrainConfiguration:
    """The configuration of a training run that keeps checkpoints.

    Raises:
        UsageError: there is no run, it keeps none, or its configuration was altered into one that cannot be used.
    """
    path = folder / CONFIGURATION_FILE
    settings = read_json(path)
    try:
        configuration = TrainConfiguration.from_dict(settings)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    around = folder.resolve().parent
    if re.fullmatch(r"seed-\d+", folder.resolve().name) and (around / CONFIGURATION_FILE).exists():
        raise UsageError(f"{folder} is one of several seeds; give the folder of all, {around}")
    if configuration.run.checkpoint_every is None:
        raise UsageError(f"{folder} keeps no checkpoints to go on from; train with --checkpoint-every")
    seeds, single = configuration.run.seeds, (folder / METRICS_FILE).exists()
    if single if seeds > 1 else any(folder.glob("seed-*")):
        holds = "the run of one seed" if single else "the runs of several"
        raise UsageError(f"{path} says seeds {seeds}, but {folder} holds {holds}; set it back")
    return configuration


def finished_before(folder: Path, *, total_steps: int) -> dict[str, Any] | None:
    """The summary of a run, or of one of its seeds, that was planned for so many steps and reached its end; else None."""
    path = folder / SUMMARY_FILE
    if not path.exists() or read_json(folder / CONFIGURATION_FILE).get("total_steps") != total_steps:
        return None
    summary = read_json(path)
    return summary if summary.get("interrupted") is False and all(name in summary for name in RESULTS) else None
