"""What preference data are, whatever file they came from: a prompt, its K answers, and which is better."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

Message = dict[str, str]
"""``role`` and ``content``, as chat templates read them."""
Text = str | tuple[Message, ...]
"""Plain text, or the messages of a conversation."""
Pair = tuple[int, int]
"""(better, worse): indices of two answers to one prompt."""


@dataclass(frozen=True)
class Row:
    """One prompt and its K answers, as text."""

    number: int
    """Which row of the source it was, counted from one."""
    prompt: Text
    completions: tuple[Text, ...]
    """The answers; one of them is supervised data, two or more can be preferred to each other."""
    ranks: tuple[int, ...] | None = None
    """Rank of each answer, 1 the best, equal numbers tied; None where preferences are pairs only, or K = 1."""
    pairs: tuple[Pair, ...] = ()
    """Which answer was preferred to which: given, or implied by the ranks."""
    margins: tuple[float, ...] | None = None
    """By how much, one number per pair, in reward units; None where the data do not say."""


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt and its K answers, as token ids."""

    number: int
    """Which row of the source it was, counted from one."""
    prompt: np.ndarray
    """Token ids, int32, with the BOS that the tokenizer or the chat template puts, at least one token."""
    completions: tuple[np.ndarray, ...]
    """Token ids of each answer, int32, with the one EOS at the end unless the answer was cut; at least one token each."""
    ranks: tuple[int, ...] | None = None
    pairs: tuple[Pair, ...] = ()
    margins: tuple[float, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and all answers."""
        return len(self.prompt) + sum(map(len, self.completions))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.completions))

    @property
    def best(self) -> int:
        """Which answer is preferred to the others: the first of the best rank, or the better of the first pair."""
        if self.ranks is not None:
            return self.ranks.index(min(self.ranks))
        return self.pairs[0][0] if self.pairs else 0

    @property
    def tied(self) -> bool:
        """Whether two answers share a rank."""
        return self.ranks is not None and len(set(self.ranks)) < len(self.ranks)


def implied_pairs(ranks: tuple[int, ...]) -> tuple[Pair, ...]:
    """The pairs (better, worse) that a ranking implies; tied answers imply none between them."""
    pairs = []
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            pairs.append((i, j) if ranks[i] < ranks[j] else (j, i))
    return tuple(pairs)
