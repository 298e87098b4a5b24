"""Metrics of a run: a line of JSON per iteration, and TensorBoard files beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from surefoot.errors import RunError, UsageError
from surefoot.runs.directory import METRICS_FILE, TENSORBOARD_FOLDER
from surefoot.runs.tensorboard import EventFile


class MetricsWriter:
    """Writes ``metrics.jsonl``, a complete line at a time, and TensorBoard event files.

    A metric that has no value in an iteration (no episode finished) is null in the JSON and absent from TensorBoard. Names are
    kept stable, so that runs of different versions can be drawn in one chart.

    Raises:
        RunError: the disk is full or the folder cannot be written; every line written before is complete.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        self._path = folder / METRICS_FILE
        try:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed in close())
            self._events = EventFile(folder / TENSORBOARD_FOLDER) if tensorboard else None
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error

    def write(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """Add one iteration."""
        present = {k: v for k, v in metrics.items() if v is not None and math.isfinite(v)}
        line = json.dumps({k: present.get(k) for k in metrics}) + "\n"
        before = self._file.tell()
        try:
            written = self._file.write(line.encode())
            if written < len(line.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._events is not None:
                self._events.write(step, present)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)  # no torn line
            raise RunError(f"cannot write {self._path}: {error.strerror}; the lines before are kept") from error

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The lines of ``metrics.jsonl``, oldest first.

    Raises:
        UsageError: the file is missing, or a line is not JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
