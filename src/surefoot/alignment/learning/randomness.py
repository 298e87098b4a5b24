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
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, PYTORCH, number]).generate_state(1, np.uint64)[0]))
        yield
