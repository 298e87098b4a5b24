"""Rows that cannot be used: why, how many, and which were the first."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN_ROWS = 5

EMPTY = "an answer is empty"
IDENTICAL = "two answers are identical"


class Unusable(Exception):
    """Why a row cannot be used, in words that are the same for every row with that fault."""


@dataclass
class Tally:
    """The numbers of the rows that cannot be used, by reason."""

    numbers: dict[str, list[int]] = field(default_factory=dict)

    def add(self, number: int, reason: str) -> None:
        """One more row."""
        self.numbers.setdefault(reason, []).append(number)

    def counts(self) -> dict[str, int]:
        """Rows per reason, the most frequent reason first."""
        return {reason: len(rows) for reason, rows in sorted(self.numbers.items(), key=lambda item: -len(item[1]))}

    def first(self) -> dict[str, list[int]]:
        """The numbers of the first rows per reason."""
        return {reason: sorted(self.numbers[reason])[:SHOWN_ROWS] for reason in self.counts()}


def phrases(counts: dict[str, int], first: dict[str, list[int]]) -> list[str]:
    """One phrase per reason: what, how often, and in which rows."""
    return [f"{reason} (row{'s' * (count > 1)} {_listed(first[reason], count)})" for reason, count in counts.items()]


def _listed(numbers: list[int], count: int) -> str:
    if count == len(numbers):
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers))} and {count - len(numbers):,} more"
