"""Live progress on standard error: one line that renews itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from surefoot.errors import on_one_line, shown

PLAIN_SECONDS = 2.0
LIVE_SECONDS = 0.1


class Progress:
    """Shows how much is done, what was reached, how fast, and the time left.

    Where there is no terminal, a line is printed at most every two seconds, besides the first and the last: some tasks here run
    a hundred iterations a second.

    Args:
        label: what runs.
        total: how much there is to do.
        done: how much of it was done before, by a run that this one goes on with.
        unit: of what.
        quiet: show no progress.
        began: ``time.monotonic()`` of the beginning, where it is shown only later; by default it is when it is first shown.
    """

    def __init__(
        self, label: str, total: int, *, done: int = 0, unit: str = "steps", quiet: bool = False, began: float | None = None
    ) -> None:
        self._before = done
        self._label, self._total, self._unit, self._quiet = label, total, unit, quiet
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._began = began
        self._start = time.monotonic()
        self._shown = 0.0
        self._text = ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(Text(""), console=self._console, auto_refresh=False, transient=False)
            self._live.__enter__()
        self._start = time.monotonic() if self._began is None else self._began
        return self

    def update(self, done: int, *, rate: float, reached: str) -> None:
        """Show the state after ``done`` of the total, at ``rate`` units per second."""
        now = time.monotonic()
        last = done >= self._total
        if self._quiet or (now - self._shown < (LIVE_SECONDS if self._live else PLAIN_SECONDS) and not last):
            return
        self._shown = now
        unit, left = self._unit, "time left unknown"
        if done > self._before:
            left = f"{_clock((now - self._start) / (done - self._before) * max(self._total - done, 0))} left"
        self._text = f"{self._label}  {done:,}/{self._total:,} {unit}  {reached}  {rate:,.{_digits(rate)}f} {unit}/s  {left}"
        if self._live is not None:
            self._live.update(Text(self._text), refresh=True)
        else:
            print(self._text, file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """Print one sentence that stays; under quiet a :class:`~surefoot.errors.Caution` alone."""
        if shown(sentence, quiet=self._quiet):
            self._console.print(on_one_line(sentence), soft_wrap=True, markup=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, traceback)


def _digits(rate: float) -> int:
    return 0 if rate >= 10 else 1


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
