"""What answers are drawn from, and scored under: temperature, a least length, and which rows of the vocabulary are tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from surefoot.errors import require


@dataclass(frozen=True)
class AnswerDistribution:
    """π_T(v | x, y_<t) ∝ exp(z_v / T) 1[v can be drawn at t].

    All tokens can be drawn, but those that end an answer only from its ``shortest``-th place on, and what is no token nowhere.

    Raises:
        UsageError: a temperature that is not above 0, a least length below 1, or a negative id.
    """

    temperature: float = 1.0
    """T."""
    shortest: int = 1
    """Tokens that an answer has at least, the one that ends it included."""
    ends: tuple[int, ...] = ()
    """Ids of the tokens that end an answer; () where nothing but its length does."""
    never: tuple[int, ...] = ()
    """Ids that are never drawn: rows of the vocabulary that are no token (:func:`surefoot.alignment.models.vocabulary.no_tokens`)."""

    def __post_init__(self) -> None:
        temperature = self.temperature
        require(0 < temperature < math.inf, f"the temperature is {temperature}; give a number above 0, 1 for the model's own")
        require(self.shortest >= 1, f"the shortest answer has {self.shortest} tokens; give at least 1")
        require(min(self.ends, default=0) >= 0, f"an answer is to end with token {min(self.ends, default=0)}; ids begin at 0")
        require(min(self.never, default=0) >= 0, f"token {min(self.never, default=0)} is to be left out; ids begin at 0")

    @property
    def excludes(self) -> bool:
        """Whether any token is excluded anywhere."""
        return self.excludes_ends or bool(self.never)

    @property
    def excludes_ends(self) -> bool:
        """Whether the tokens that end an answer are excluded from its first places."""
        return self.shortest > 1 and bool(self.ends)


PLAIN = AnswerDistribution()
"""The model's own distribution."""
