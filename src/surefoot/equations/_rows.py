"""How the rows of a rollout follow each other: where a sum over time goes on, where it stops, and what it passes over."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from surefoot.equations._library import Array, align, flag, namespace, reverse_linear_recurrence

__all__ = ["Gaps", "Rows", "carried", "check_fraction", "factor_of", "harmless", "is_per_step", "rows_of"]

Gaps = Literal["stop", "skip"]
"""What a slot that is not valid is to a sum over time: its end, or nothing at all."""


def check_fraction(name: str, value: float | Array) -> None:
    """Raise ValueError where a number lies outside [0, 1]; arrays, which may be traced, are believed."""
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but is {value}")


def is_per_step(discount: float | Array, like: Array) -> bool:
    """Whether γ has a time axis; one number, or one per column, has none."""
    return not isinstance(discount, int | float) and discount.ndim == like.ndim


def harmless(x: Array, valid: Array | None) -> Array:
    """``x``, with 0 for whatever stands in slots that are not valid: before arithmetic, since a NaN's gradient is NaN behind it."""
    return x if valid is None else namespace(x).where(valid, x, namespace(x).zeros_like(x))


def factor_of(x: float | Array, like: Array, valid: Array | None) -> Any:
    """γ or λ with as many axes as ``like``, and harmless in slots that are not valid."""
    x = align(x, like)
    return harmless(namespace(like).zeros_like(like) + x, valid) if is_per_step(x, like) else x


class Rows(NamedTuple):
    """The flags of a rollout as booleans, and what follows from them."""

    terminated: Array
    valid: Array | None
    going: Array
    """Where a sum goes on behind the row."""
    gaps: Array | None
    """Rows that sums pass over as if they were not there; None where there is no such row."""

    def cleared(self, sums: Array) -> Array:
        """A result without what was carried across gaps."""
        return sums if self.gaps is None else harmless(sums, self.valid)

    def coefficients(self, factor: float | Array, like: Array) -> Array:
        """a_t of the recurrence y_t = b_t + a_t y_{t+1}: ``factor`` where it goes on, 1 across a gap, 0 at an end."""
        xp = namespace(like)
        zero = xp.zeros_like(like)
        return xp.where(self.going, zero + factor, zero if self.gaps is None else xp.where(self.gaps, zero + 1, zero))

    def closing(self) -> Array:
        """Behind which rows the rollout has nothing more of their sum: ends, the last row, and slots that are not valid."""
        xp = namespace(self.going)
        if self.gaps is None:
            last = xp.concat([xp.zeros_like(self.going[:-1, ...]), xp.ones_like(self.going[-1:, ...])], axis=0)
        else:
            later = xp.cumulative_sum(xp.astype(xp.flip(~self.gaps, axis=0), xp.int32), axis=0)
            last = xp.flip(later, axis=0) == 1
        return ~self.going | last

    def order(self) -> tuple[Array, Array]:
        """The rows of each column with its gaps moved behind all others, and the way back."""
        xp = namespace(self.going)
        there = xp.argsort(xp.astype(self.gaps, xp.int8), axis=0, stable=True)
        return there, xp.argsort(there, axis=0, stable=True)


def rows_of(*, terminated: Array, truncated: Array, valid: Array | None, gaps: Gaps | str) -> Rows:
    """The flags, whatever holds them, as :class:`Rows`.

    Raises:
        TypeError, ValueError: a flag is neither boolean nor 0 or 1, or ``gaps`` is not the name of a choice.
    """
    if gaps not in get_args(Gaps):
        raise ValueError(f"gaps must be {' or '.join(map(repr, get_args(Gaps)))}, but is {gaps!r}")
    terminated, truncated, valid = flag("terminated", terminated), flag("truncated", truncated), flag("valid", valid)
    going = ~(terminated | truncated)
    if valid is None:
        return Rows(terminated, None, going, None)
    return Rows(terminated, valid, going & valid, ~valid if gaps == "skip" else None)


def carried(
    rows: Rows,
    *,
    like: Array,
    factor: float | Array = 1.0,
    earned: Array | None = None,
    start: Array | None = None,
    restart: float = 0.0,
) -> Array:
    """What row t finds of its episode: y_{t+1} = factor_t y_t + earned_t within one, ``restart`` behind an end.

    Args:
        rows: how rows follow each other.
        like: an array of the shape and the dtype of the result.
        factor: a number, or one per step.
        earned: what row t adds; nothing by default.
        start: y_0, one per column; ``restart`` by default.
        restart: the value at the beginning of an episode.

    Returns:
        y_t, shape (T, …).
    """
    xp = namespace(like)
    zero = xp.zeros_like(like)
    first = zero[:1, ...] + restart if start is None else zero[:1, ...] + start[None, ...]
    added = zero if earned is None else earned
    begins = zero + restart if rows.gaps is None else xp.where(rows.gaps, zero, zero + restart)
    terms = xp.concat([first, xp.where(rows.going, added, begins)[:-1, ...]], axis=0)
    coefficients = xp.concat([zero[:1, ...], rows.coefficients(factor, like)[:-1, ...]], axis=0)
    back = reverse_linear_recurrence(coefficients=xp.flip(coefficients, axis=0), terms=xp.flip(terms, axis=0))
    return xp.flip(back, axis=0)
