"""One process per run: the second is refused, and a process that died holds nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

from surefoot.errors import UsageError

LOCK_FILE = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


class RunLock:
    """Held while a process writes to a run's folder; the system lets go of it however the process ends.

    A file system that knows no locks is written to without one.

    Args:
        run: the run's folder, which exists.

    Raises:
        UsageError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / LOCK_FILE
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"the folder {run} cannot be written: {error.strerror}; choose another") from error
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno in HELD:
                holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() if hasattr(os, "pread") else ""
                os.close(self._descriptor)
                who = f"process {holder}" if holder.isdigit() else "another process"
                raise UsageError(f"{run} is in use by {who}; wait for it, or stop it first") from None
        with contextlib.suppress(OSError):  # a full disk: the number is for people
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go; the file stays, empty of meaning."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: bytes are locked there, one is enough
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
