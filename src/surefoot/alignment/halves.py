"""A batch in two halves that are computed at the same time, on a CPU.

Products of matrices keep two cores busy, but the many small operations between them do not. A thread per half, each with half
of the cores, is 12 to 15 % faster, with the same result to the bit in every run: each half's gradients are added to the other's,
and a + b = b + a.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

from surefoot.alignment.configuration import AlignConfiguration, DPOConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.likelihood.likelihood import Likelihood

Result = TypeVar("Result")


class Halves:
    """Computes the parts of a batch: both halves at once where that is sound, else one part after the other.

    Not at once: where the batch is computed in parts to save memory; where dropout draws random numbers, whose order two threads
    would mix; where a live reference is the policy with its adapter off, which one thread must not do to the other; where a
    forward pass changes the model's rotary frequencies; with gradient checkpointing, which looks at the state of random numbers;
    and on a GPU.

    Args:
        configuration: of the run.
        likelihood: of the model that is trained.
    """

    def __init__(self, configuration: AlignConfiguration, likelihood: Likelihood) -> None:
        self._accumulation = configuration.training.accumulation
        objective, adapter = configuration.objective, configuration.adapter
        switches = isinstance(objective, DPOConfiguration) and objective.live_reference and adapter.lora_rank > 0
        draws = configuration.model.dropout or adapter.lora_dropout > 0 or configuration.model.gradient_checkpointing
        threads = torch.get_num_threads()
        changes = switches or draws or likelihood.positions_depend_on_batch
        sound = likelihood.device.type == "cpu" and self._accumulation == 1 and not changes
        self._pool: ThreadPoolExecutor | None = None
        if sound and threads >= 2:
            # PyTorch keeps the number of threads per thread: the optimiser's step still has all cores.
            self._pool = ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(threads // 2))

    def map(self, compute: Callable[[list[Example]], Result], examples: Sequence[Example]) -> Iterable[Result]:
        """``compute`` of every part, in the parts' order."""
        by_length = sorted(examples, key=lambda e: e.tokens)
        if self._pool is not None and len(examples) >= 2:
            return self._pool.map(compute, (by_length[0::2], by_length[1::2]))
        edges = [len(by_length) * i // self._accumulation for i in range(self._accumulation + 1)]
        parts = (by_length[a:b] for a, b in pairwise(edges) if a < b)
        return map(compute, parts)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
