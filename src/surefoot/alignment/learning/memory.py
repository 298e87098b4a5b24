"""Memory that is not enough, on a GPU or beside it, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from surefoot.errors import RunError, what_it_says

MAIN_MEMORY = "DefaultCPUAllocator: "
"""How PyTorch's message begins where it is the main memory; the error has no kind of its own."""


@contextmanager
def memory_in_a_sentence() -> Iterator[None]:
    """What is computed within may not fit.

    Raises:
        RunError: it does not, with what needs less.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        what = what_it_says(error)
        raise RunError(
            f"the memory does not suffice: {what.partition(MAIN_MEMORY)[2] or what}; less is needed with"
            " --gradient-checkpointing, --lora-rank, --accumulation, or a smaller --batch-size or --max-length"
        ) from error


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether that is what it says, of either memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or MAIN_MEMORY in str(error)
