"""Holding out a part of the examples, prompts whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surefoot.alignment.data.examples import Example
from surefoot.errors import UsageError


def split_examples(examples: Sequence[Example], *, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to learn from, and examples held out; examples with the same prompt lie on the same side.

    Prompts are taken in a random order, and each is held out whose examples still fit into the share: at most round(share · N)
    examples are held out, or those of the rarest prompt where none fits.

    Args:
        examples: N of them.
        share: how large a part to hold out, from 0 to below 1; 0 holds out none.
        seed: of the random order.

    Returns:
        the part to learn from and the part held out, each in the order of ``examples``.

    Raises:
        UsageError: the share is not in that range, or is positive and all examples have one prompt.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the share of held-out examples must lie from 0 to below 1, but is {share}")
    if share == 0:
        return list(examples), []
    groups: dict[bytes, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(example.prompt.tobytes(), []).append(i)
    if len(groups) < 2:
        raise UsageError("nothing can be held out: all rows have the same prompt, and a prompt stays on one side")
    prompts = list(groups.values())
    allowed = min(round(share * len(examples)), len(examples) - 1)
    held_out: set[int] = set()
    for place in np.random.default_rng(seed).permutation(len(prompts)):
        if len(held_out) + len(prompts[place]) <= allowed:
            held_out.update(prompts[place])
    held_out = held_out or set(sorted(prompts, key=len)[0])
    return (
        [example for i, example in enumerate(examples) if i not in held_out],
        [example for i, example in enumerate(examples) if i in held_out],
    )
