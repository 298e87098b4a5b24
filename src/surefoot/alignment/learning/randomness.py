"""Random numbers that follow from the seed and from how far a run is: nothing of them needs to be kept for a run to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ORDER, PYTORCH = 3, 4
"""Which stream of random numbers; the learner of PPO has 1 and 2."""


def data_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch, counted from 0, takes its ``count`` examples or prompts."""
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


@contextmanager
def drawing_anew(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """Within it PyTorch's own random numbers, which dropout draws, are those of update ``number``; outside they go on as before.

    Args:
        seed: of the run.
        number: of the update, or the iteration.
        device: where the model is.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index])
    before = [generator.get_state() for generator in generators]
    own = int(np.random.SeedSequence([seed, PYTORCH, number]).generate_state(1, np.uint64)[0])
    try:
        # Not torch.manual_seed, which takes a millisecond: it leaves a note, with a traceback, for every kind of device there could be.
        for generator in generators:
            generator.manual_seed(own)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
