"""Stopping a run from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM is what Ctrl-C is, :class:`KeyboardInterrupt`, so that a process that has no run yet tidies up and says so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(sentence: str) -> None:
    """To standard error, past its buffer: the signal may have come in the middle of a print, which cannot be entered twice."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), sentence.encode())
