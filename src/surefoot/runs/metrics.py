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
from typing import Any

from surefoot.errors import Caution, RunError, UsageError
from surefoot.runs.directory import METRICS_FILE, TENSORBOARD_FOLDER
from surefoot.runs.tensorboard import EventFile

BEGINNING: Mapping[str, Any] = {"metrics": 0, "tensorboard": None}
"""The position of a run that has written nothing."""


class MetricsWriter:
    """Writes ``metrics.jsonl``, a complete line at a time, and TensorBoard event files.

    A metric that has no value in an iteration (no episode finished) is null in the JSON and absent from TensorBoard. Names are
    kept stable, so that runs of different versions can be drawn in one chart.

    Args:
        folder: the run's.
        tensorboard: whether to write TensorBoard files.
        resume: a :meth:`position`, to which both are cut back: what was written after it is of a future that is given up.

    Raises:
        UsageError: ``resume`` is not a position.
        RunError: the disk is full, or the folder cannot be written or is gone; every line written before is complete.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True, resume: Mapping[str, Any] | None = None) -> None:
        self._path = folder / METRICS_FILE
        self._left = None if resume is None or tensorboard else resume.get("tensorboard")
        """An event file of processes before, that this one does not write: its position stays what it was."""
        self.notices: list[str] = []
        """Where a position could not be gone back to: the lines that are gone."""
        try:
            if resume is not None:
                length, events = _checked(resume)
                self.notices += _cut_lines(self._path, length)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed in close())
            self._events = None
            if tensorboard:
                place = folder / TENSORBOARD_FOLDER
                self._events = EventFile(place) if resume is None else EventFile.resumed(place, events)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error

    def write(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """Add one iteration."""
        present = {k: v for k, v in metrics.items() if v is not None and math.isfinite(v)}
        line = json.dumps({k: present.get(k) for k in metrics}) + "\n"
        self._refuse_deleted()
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

    def position(self) -> dict[str, Any]:
        """How long the files are, for a checkpoint; what they hold is brought to the disk first.

        Returns:
            ``metrics``, bytes of the lines; ``tensorboard``, the event file's name (``file``) and ``bytes``, None where the run has
            none.

        Raises:
            RunError: the disk is full, or the file is gone.
        """
        self._refuse_deleted()
        try:
            os.fsync(self._file.fileno())
            events = self._left if self._events is None else self._events.position()
            return {"metrics": os.fstat(self._file.fileno()).st_size, "tensorboard": events}
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}; the lines before are kept") from error

    def _refuse_deleted(self) -> None:
        """A deleted file can still be written to: everything would be lost without a word."""
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise RunError(f"{self._path} is gone: it was deleted under the run, which ends here")

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _checked(position: Mapping[str, Any]) -> tuple[int, tuple[str, int] | None]:
    """A position's parts; it comes from a file, which anybody may have written."""
    length, events = position.get("metrics"), position.get("tensorboard")
    good = type(length) is int and length >= 0
    if events is not None:
        name, size = (events.get("file"), events.get("bytes")) if isinstance(events, dict) else (None, None)
        good = good and isinstance(name, str) and EventFile.is_name(name) and type(size) is int and size >= 0
    if not good:
        raise UsageError(f"the checkpoint's position in the metrics is {position}, which names no place in them")
    assert isinstance(length, int)
    return length, None if events is None else (events["file"], events["bytes"])


def _cut_lines(path: Path, length: int) -> list[str]:
    """Shorten a file of lines to ``length`` bytes, or to the whole lines before; returns a sentence where some are missing."""
    if not path.exists():
        return [Caution(f"{path} is gone; it begins anew")] if length else []
    with open(path, "r+b") as file:
        there = file.seek(0, os.SEEK_END)
        file.truncate(min(there, length))
        kept = file.seek(0, os.SEEK_END)
        if kept == length and (kept == 0 or _last_byte(file) == b"\n"):
            return []
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    missing = f"{path} has {there:,} bytes where it had {length:,} when the checkpoint was written: lines are missing from it"
    return [Caution(missing)]


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The lines of ``metrics.jsonl``, oldest first.

    Raises:
        UsageError: the file is missing, or a line is not JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
