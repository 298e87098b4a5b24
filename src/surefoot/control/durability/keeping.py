"""When a run keeps a checkpoint, and what of."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.durability.standing import Standing, checkpoint_of
from surefoot.control.environments.workers.vector import Restarts
from surefoot.control.iterations.common import Iteration
from surefoot.errors import Caution, EnvironmentFault, RunError
from surefoot.runs.cadence import Cadence
from surefoot.runs.checkpoints import Checkpoint, Checkpoints
from surefoot.runs.directory import FAILED_FOLDER
from surefoot.runs.metrics import MetricsWriter


def describe_failure(error: RunError, home: Path) -> str:
    """What went wrong; where that was an environment in a worker process, also how to replay it, which a file is written for."""
    if isinstance(error, EnvironmentFault) and error.failure is not None:
        with contextlib.suppress(RunError):  # a full disk: the failure is what must be told
            return f"{error}; {error.failure.write(home)}"
    return str(error)


@dataclass
class Keeper:
    """Keeps checkpoints of one run: when they are due, at its end, and of the state before a failure.

    Where environments are outside the state, exact checkpoints lie where they begin afresh. One that is due in between is
    written as it is and marked inexact, unless the next such place is nearer than the next one due; and the next such place
    gets an exact one.
    """

    configuration: TrainConfiguration
    home: Path
    iteration: Iteration
    standing: Standing
    writers: list[MetricsWriter]
    source: dict[str, Any]
    """Where data come from, as a resumed run must find it again."""
    last: dict[str, Any] | None = None
    """The last checkpoint, ``step`` and whether it is ``exact``; None while there is none."""
    _warned: bool = False
    _began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        run = self.configuration.run
        self._checkpoints = Checkpoints(self.home, keep=run.keep_checkpoints)
        self._cadence = Cadence.parse(run.checkpoint_every)
        if self._cadence is not None:
            self._cadence.begin(self._step)
        self._owed = not self._exact  # begun from a checkpoint that could not be exact
        every = None if self._cadence is None else self._cadence.steps
        self._waits = every is not None and 0 < self.configuration.restart_grid * self.configuration.slots <= every

    @property
    def _step(self) -> int:
        return self.standing.completed * self.configuration.slots

    @property
    def seconds(self) -> float:
        """Of training, in this process."""
        return time.perf_counter() - self._began

    @property
    def last_exact(self) -> int | None:
        """The step of the last exact checkpoint that is kept; None where there is none."""
        return self._checkpoints.last_exact()

    @property
    def _exact(self) -> bool:
        """Whether a run that goes on from here is the run."""
        completed = self.standing.completed
        return self.iteration.whole or completed == 0 or self.configuration.restarts_at(completed)

    def after_report(self) -> None:
        """Keep a checkpoint where one is due.

        Raises:
            RunError: the disk is full.
        """
        if self._cadence is None:
            return
        due = self._cadence.due(self._step)
        if self._exact:
            if due or self._owed:
                self._keep()
            self._owed = False
        elif due:
            self._owed = True
            if not self._waits:
                self._keep()

    def at_end(self) -> None:
        """Keep where the run stops, whether it is over or was asked to.

        Raises:
            RunError: the disk is full.
        """
        if self._cadence is not None and (self.last is None or self.last["step"] != self._step):
            self._keep()

    def before_failure(self, error: RunError) -> RunError:
        """Keep the state before what failed, for inspection; returns the error, which says where."""
        sentence = describe_failure(error, self.home)
        with contextlib.suppress(RunError):  # a full disk: the failure is what must be told
            checkpoint = self._checkpoint()
            state = {**checkpoint.state, "failure": str(error)}
            place = Checkpoints(self.home, keep=1, name=FAILED_FOLDER).write(
                Checkpoint(checkpoint.step, checkpoint.exact, checkpoint.arrays, state)
            )
            kind = EnvironmentFault if isinstance(error, EnvironmentFault) else RunError
            return kind(f"{sentence}; the state before it is in {place}{self._advice(error)}")
        return type(error)(sentence)

    def _advice(self, error: RunError) -> str:
        """How a run whose update failed may go on, where it has a checkpoint and a learning rate."""
        configuration = self.configuration
        unread = "learning_rate" in configuration.idle_options() or configuration.run.seeds > 1
        if isinstance(error, EnvironmentFault) or unread or not self._checkpoints.steps():
            return ""
        lower = f"{configuration.optimizer.learning_rate / 10:g}"
        resume = shlex.join(["surefoot", "resume", str(self.home), "--learning-rate", lower])
        return f"; to go on from the last checkpoint with a lower rate: {resume}"

    def after_restarts(self, restarts: Restarts) -> tuple[str, ...]:
        """Keep what is left of environments that failed and were made anew; returns a sentence for each."""
        said = []
        for failure in restarts.failures:
            sentence = describe_failure(EnvironmentFault(failure.sentence, failure=failure), self.home)
            said.append(f"{sentence}; it is made anew")
            if not self._warned:
                self._warned = True
                said[-1] += ", and from here on the run need not be what its seed would give once more"
        return tuple(map(Caution, said))

    def _checkpoint(self) -> Checkpoint:
        return checkpoint_of(
            self.configuration,
            self.iteration,
            self.standing,
            exact=self._exact,
            seconds=self.seconds,
            metrics=[writer.position() for writer in self.writers],
            source=self.source,
        )

    def _keep(self) -> None:
        reached = self.standing.mean_return
        best = reached is not None and (self.standing.best is None or reached > self.standing.best)
        if best:
            self.standing.best = reached
        self._checkpoints.write(self._checkpoint(), best=best)
        self.last = {"step": self._step, "exact": self._exact}
