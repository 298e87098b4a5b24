"""Numbers that are not finite, where they are met: what an update is left out for, or a run stopped."""

from __future__ import annotations

from surefoot.errors import RunError

MOST_IN_A_ROW = 10
"""Updates that may be left out one after the other: beyond them it is not the data, and nothing would be learnt any more."""


class NotFinite(RunError):
    """A loss, a gradient, a reward or a probability is not a finite number; the step that it was for is not taken."""


class NothingLearnt(RunError):
    """One update after the other was left out: the policy no longer changes, and the run ends."""


def one_more(in_a_row: int, reason: NotFinite) -> int:
    """Count an update, or an iteration, that is left out.

    Args:
        in_a_row: that were left out one after the other before it.
        reason: why this one is.

    Returns:
        how many they are now.

    Raises:
        NothingLearnt: they are too many, and the run leaves out everything.
    """
    if in_a_row + 1 >= MOST_IN_A_ROW:
        raise NothingLearnt(f"{in_a_row + 1} updates in a row were left out, the last because {reason}") from reason
    return in_a_row + 1
