"""What a method is to the training loop: sums over a part of a batch, and the denominators of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float

from surefoot.alignment.data.examples import Example
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import Group

Sums = dict[str, tuple[Float[torch.Tensor, ""], float]]
"""Metrics as (sum, count), so that parts of any size add up to the whole's mean."""


class Parts(NamedTuple):
    """What some examples contribute."""

    loss: Float[torch.Tensor, ""]
    """Their share of the loss: sums, divided by the denominators of the whole batch."""
    sums: Sums


class Method(Protocol):
    """One way to train a model on examples."""

    likelihood: Likelihood
    headline: str
    """The metric, besides the loss, that progress shows."""

    def denominators(self, examples: Sequence[Example]) -> dict[str, float]:
        """What the loss's sums are divided by, counted over a whole batch before any of it is computed."""
        ...

    def parts(self, examples: Sequence[Example], denominators: Mapping[str, float]) -> Parts:
        """The examples' share of the loss and of the metrics."""
        ...


def groups_of(examples: Sequence[Example]) -> list[Group]:
    """Prompts with their answers, as the likelihood takes them."""
    return [(example.prompt, example.completions) for example in examples]


def add_sums(sums: Sums, more: Sums) -> None:
    """Add the sums and the counts of a part to those of the parts before."""
    for name, (total, count) in more.items():
        before = sums.get(name)
        sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)
