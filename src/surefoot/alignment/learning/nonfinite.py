"""Numbers that are not finite, where they are met: what an update is left out for, or a run stopped."""

from __future__ import annotations

from surefoot.errors import RunError

MOST_IN_A_ROW = 10
"""Updates that may be left out one after the other: beyond them it is not the data, and nothing would be learnt any more."""


class NotFinite(RunError):
    """A loss, a gradient or a reward is not a finite number; the step that it was for is not taken."""


def refuse_too_many(in_a_row: int, reason: NotFinite) -> None:
    """Stop a run that leaves out everything.

    Args:
        in_a_row: updates, or iterations, that were left out one after the other, this one included.
        reason: why this one was.

    Raises:
        RunError: there are too many.
    """
    if in_a_row >= MOST_IN_A_ROW:
        raise RunError(f"{in_a_row} updates in a row were left out, the last because {reason}") from reason
