"""What gives rewards, whatever is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float

from surefoot.alignment.data.examples import Text
from surefoot.alignment.data.prompts import Prompt

SHOWN_CHARACTERS = 60


class RewardSource(Protocol):
    """Scores answers to prompts. What it changes in itself is no part of a run's state."""

    name: str
    """As the user gave it, for logs."""
    notices: tuple[str, ...]
    """Sentences for the user; :meth:`check` may add some."""

    def check(self, prompts: Sequence[Prompt], *, longest_answer: int) -> None:
        """Find out before training whether these prompts can be scored.

        Args:
            prompts: all that will be answered.
            longest_answer: tokens that an answer may have, its end token included.

        Raises:
            UsageError: they cannot.
        """
        ...

    def rewards(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[np.ndarray]], finished: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """The reward of every answer, in reward units, float64.

        Args:
            prompts: B of them.
            answers: of each prompt its K answers as sampled: token ids of the policy, the end token included where there is one.
            finished: whether each of the N = B·K answers ended by itself rather than at the limit.

        Raises:
            NotFinite: a reward is not finite; the sentence names the prompt, as do all.
            RunError: a reward cannot be had.
        """
        ...


class OpenedRewards(RewardSource, Protocol):
    """Rewards that a user named, which are found again when the run goes on."""

    def fingerprint(self) -> str:
        """SHA-256 of what the rewards depend on, as far as it can be seen, in hexadecimal."""
        ...


def shown(text: Text) -> str:
    """The beginning of a text, or of a conversation's last message, in quotes and on one line."""
    line = " ".join((text if isinstance(text, str) else text[-1]["content"]).split())
    return repr(line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + "…")


def shown_prompt(prompt: Prompt) -> str:
    """Where a prompt stands, and how it begins."""
    return f"the prompt of row {prompt.number} ({shown(prompt.text)})"
