"""Learning rates that a run was resumed with, in place of the one that it had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surefoot.errors import UsageError, require
from surefoot.runs.settings import Settings, part_from, refuse_unknown

CHANGES = "learning_rate_changes"
"""Under which ``config.json`` has them, where there are any."""


@dataclass(frozen=True)
class RateChange(Settings):
    """From a checkpoint on, a run has another learning rate."""

    step: int
    """Of the checkpoint, in the run's own measure."""
    before: float
    """The rate under which the checkpoint was written."""
    after: float
    """The rate from there on."""

    def _check(self) -> None:
        require(self.step >= 0, f"step of {CHANGES} must not be negative, but is {self.step}")
        for name in ("before", "after"):
            value = getattr(self, name)
            require(value > 0, f"{name} of {CHANGES} must be positive, but is {value}")


RateChanges = tuple[RateChange, ...]


def rate_at(changes: RateChanges, rate: float, step: int) -> float:
    """The rate under which a run wrote its checkpoint at ``step``; ``rate`` is the one that it has now."""
    earlier = [change.after for change in changes if change.step < step]
    return earlier[-1] if earlier else changes[0].before if changes else rate


def changes_from(changes: RateChanges, rate: float, step: int, wanted: float) -> RateChanges:
    """The changes of a run that is resumed from its checkpoint at ``step`` with the rate ``wanted``."""
    kept = tuple(change for change in changes if change.step < step)
    before = rate_at(changes, rate, step)
    return kept if wanted == before else (*kept, RateChange(step, before, wanted))


def check_changes(changes: RateChanges, rate: float) -> None:
    """Raise UsageError where the last change is not to ``rate``."""
    require(
        not changes or changes[-1].after == rate,
        f"learning_rate is {rate}, which is not the last of {CHANGES}; `surefoot resume --learning-rate` changes both",
    )


def changes_as_json(changes: RateChanges) -> dict[str, Any]:
    """The changes as ``config.json`` has them; nothing where there are none."""
    return {CHANGES: [vars(change) for change in changes]} if changes else {}


def read_changes(settings: Mapping[str, Any]) -> RateChanges:
    """The changes of a ``config.json``.

    Raises:
        UsageError: they are not as :func:`changes_as_json` has them.
    """
    changes = settings.get(CHANGES, [])
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        raise UsageError(f"{CHANGES} is no list of objects with step, before and after")
    for change in changes:
        refuse_unknown(change, RateChange.__dataclass_fields__)
    return tuple(part_from(RateChange, change) for change in changes)
