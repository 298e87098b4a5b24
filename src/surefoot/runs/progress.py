"""Live progress on standard error: one line that renews itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 2.0
LIVE_SECONDS = 0.1


class Progress:
    """Shows step, return, steps per second and the time left.

    Where there is no terminal, a line is printed at most every two seconds, besides the first and the last: some tasks here run
    a hundred iterations a second.
    """

    def __init__(self, label: str, total_steps: int, *, quiet: bool = False) -> None:
        self._label, self._total, self._quiet = label, total_steps, quiet
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._start = time.monotonic()
        self._shown = 0.0
        self._text = ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(Text(""), console=self._console, auto_refresh=False, transient=False)
            self._live.__enter__()
        self._start = time.monotonic()
        return self

    def update(self, slots: int, *, steps_per_second: float, mean_return: float | None) -> None:
        """Show the state after ``slots`` of the total."""
        now = time.monotonic()
        last = slots >= self._total
        if self._quiet or (now - self._shown < (LIVE_SECONDS if self._live else PLAIN_SECONDS) and not last):
            return
        self._shown = now
        left = (now - self._start) / max(slots, 1) * max(self._total - slots, 0)
        reached = "no episode finished yet" if mean_return is None else f"return {mean_return:.1f}"
        self._text = (
            f"{self._label}  {slots:,}/{self._total:,} steps  {reached}  {steps_per_second:,.0f} steps/s  {_clock(left)} left"
        )
        if self._live is not None:
            self._live.update(Text(self._text), refresh=True)
        else:
            print(self._text, file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """Print one sentence that stays."""
        if not self._quiet:
            self._console.print(sentence, soft_wrap=True, markup=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, traceback)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
