"""When a checkpoint is due: every so many steps, or every so many minutes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from surefoot.errors import UsageError

WRITTEN = re.compile(r"([0-9]{1,18})(m?)")


@dataclass
class Cadence:
    """Every N steps of the run's own measure, or every N minutes; one of the two is None."""

    steps: int | None = None
    minutes: int | None = None
    _last_step: int = 0
    _last_time: float = field(default_factory=time.monotonic)

    @staticmethod
    def parse(given: int | str | None, *, option: str = "--checkpoint-every") -> Cadence | None:
        """500 is steps, as a number or a text, ``10m`` minutes; None stays None.

        Raises:
            UsageError: it is neither.
        """
        if given is None:
            return None
        found = WRITTEN.fullmatch(str(given).replace("_", "").replace(",", ""))
        if found is None or int(found[1]) < 1:
            raise UsageError(f"{option} must be a number of steps, such as 100000, or of minutes, such as 10m, but is {given}")
        count = int(found[1])
        return Cadence(minutes=count) if found[2] else Cadence(steps=count)

    def begin(self, step: int) -> None:
        """The run is at ``step`` now."""
        self._last_step, self._last_time = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a multiple of N has been reached since the last one, or N minutes are over; asking takes note."""
        if self.steps is not None:
            reached = step // self.steps > self._last_step // self.steps
        else:
            assert self.minutes is not None
            reached = time.monotonic() - self._last_time >= 60 * self.minutes
        if reached:
            self.begin(step)
        return reached
