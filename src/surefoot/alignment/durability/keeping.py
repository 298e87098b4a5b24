"""When a run of alignment is kept, and what stands in its checkpoints."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from surefoot.alignment.configuration import AlignConfiguration
from surefoot.alignment.learning.nonfinite import NotFinite, NothingLearnt
from surefoot.errors import RunError
from surefoot.runs.cadence import Cadence
from surefoot.runs.checkpoints import Checkpoint, Checkpoints
from surefoot.runs.directory import FAILED_FOLDER
from surefoot.runs.libraries import library_versions
from surefoot.runs.metrics import MetricsWriter

if TYPE_CHECKING:
    from surefoot.alignment.training import Run

LIBRARIES = ("torch", "transformers", "peft", "numpy")


@dataclass(eq=False)
class Keeper:
    """Writes a run's checkpoints: every so often, at its end, and when it fails.

    Between two updates all of a run's state is in its parameters, its optimisers and a few numbers, so that every such checkpoint is
    exact.
    """

    folder: Path
    """The run's."""
    run: Run
    writer: MetricsWriter
    """The run's, whose files are cut back to where they were when the run goes on."""
    configuration: AlignConfiguration
    seconds: Callable[[], dict[str, float]]
    """How long the run has taken so far, by name."""
    kept_at: int | None = None
    """Where the last checkpoint was written, or read."""
    best_score: float | None = None
    """The run's, when the best checkpoint so far was written."""

    def __post_init__(self) -> None:
        training = self.configuration.training
        self._cadence = Cadence.parse(training.checkpoint_every)
        self._checkpoints = Checkpoints(self.folder, keep=training.keep_checkpoints)
        if self._cadence is not None:
            self._cadence.begin(self.run.step)

    def keep_if_due(self) -> None:
        """Write a checkpoint, where the time has come, or the best one is to be kept; while updates are left out it waits.

        Those from before are what a run can go on from with a lower learning rate, and would be given up for one that cannot.

        Raises:
            RunError: the disk is full; the checkpoints before are whole.
        """
        if self._cadence is None or self.run.skipped_in_row > 0:
            return
        if self._cadence.due(self.run.step) or self.run.improved:
            self.keep()

    def keep(self) -> None:
        """Write a checkpoint, where any are wanted and the last one is of an earlier state."""
        if self._cadence is None or self.kept_at == self.run.step:
            return
        score = self.run.score
        best = score is not None and (self.best_score is None or score > self.best_score)
        self.best_score = score if best else self.best_score
        self._checkpoints.write(self._checkpoint(exact=True), best=best)
        self.kept_at = self.run.step

    def failed(self, error: RunError) -> RunError:
        """Keep what is left of a run that cannot go on.

        Between two updates that is a checkpoint like others, from which the run can go on once its reason is mended. Where a number is
        not finite and there are no checkpoints, or some steps of an iteration are done already, it is a state to be looked at.

        Returns:
            the error, which says where, or how to go on.
        """
        with contextlib.suppress(RunError):  # a full disk, which may be the error itself
            if self.run.between_updates and self._cadence is not None:
                self.keep()
                if isinstance(error, NotFinite):
                    return NotFinite(f"{error}; the state before it is kept in {self._checkpoints.folder / str(self.run.step)}")
            elif isinstance(error, NotFinite):
                place = Checkpoints(self.folder, keep=1, name=FAILED_FOLDER).write(self._checkpoint(exact=False))
                return NotFinite(f"{error}; the state that it was found in is kept in {place}")
        resume = shlex.join(["surefoot", "resume", str(self.folder)]) if self._checkpoints.steps() else None
        if isinstance(error, NothingLearnt):
            lower = f"{self.configuration.training.learning_rate / 10:g}"
            advice = f"train anew with --learning-rate {lower}" if resume is None else f"{resume} --learning-rate {lower}"
            return NothingLearnt(f"{error}; a lower rate may help: {advice}")
        if isinstance(error, NotFinite) or resume is None:
            return error
        return RunError(f"{error}; once that is mended: {resume}")

    def _checkpoint(self, *, exact: bool) -> Checkpoint:
        arrays, state = self.run.state()
        about = {
            "run": state,
            "best_score": self.best_score,
            "prompts": self.run.prompts,
            "metrics": self.writer.position(),
            "seconds": self.seconds(),
            "settings": self.configuration.as_dict(),
            "computed_with": computed_with(),
        }
        return Checkpoint(self.run.step, exact, arrays, about)


def computed_with() -> dict[str, str]:
    """What rounding depends on beside the run: with all of it the same, so is every bit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine = {"threads": str(torch.get_num_threads()), "processor": torch.backends.cpu.get_cpu_capability(), "GPU": gpu}
    return library_versions(LIBRARIES) | machine
