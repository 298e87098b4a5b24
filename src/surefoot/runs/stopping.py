"""Stopping a run from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from surefoot.errors import FAILED, STOPPED


class StopRequest:
    """Ctrl-C and SIGTERM: the first finishes the iteration, the second stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take over both signals; outside the main thread, where Python cannot, leave them as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def stop(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number
            _say("stopping after this iteration; once more to stop at once\n")

        with _handled_by(stop):
            yield self


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM is what Ctrl-C is, :class:`KeyboardInterrupt`, so that a process that has no run yet tidies up and says so.

    In the middle of an import the process ends there and then: code that is being imported may swallow the exception, or be C++ that
    aborts over it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        if _imports(frame):
            _say(f"{STOPPED}\n")
            os._exit(FAILED)
        raise KeyboardInterrupt

    with _handled_by(end):
        yield


def _imports(frame: Any) -> bool:
    """Whether the command line's own code is importing something."""
    while frame is not None and frame.f_globals.get("__name__") != "surefoot.cli":
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within it a handler has both signals; then those from before have them again."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def _say(sentence: str) -> None:
    """To standard error, past its buffer: the signal may have come in the middle of a print, which cannot be entered twice."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), sentence.encode())
