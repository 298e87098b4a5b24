"""What a worker is at, where its parent can see it even when the worker cannot say so any more."""

from __future__ import annotations

import mmap
import os
import struct
import time

NUMBER = struct.Struct("=dq")
"""When it began (the monotonic clock, which is the whole system's), and with which environment."""
NONE = -1


class Progress:
    """Memory that two processes share; one message for all environments of a worker then says enough.

    Args:
        descriptor: of a file of :attr:`SIZE` bytes.
    """

    SIZE = NUMBER.size

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self.SIZE)
        os.close(descriptor)

    def begin(self, number: int) -> None:
        """Environment ``number`` is next, or none."""
        NUMBER.pack_into(self._memory, 0, time.monotonic(), number)

    def read(self) -> tuple[float, int]:
        """Since when, and with which environment."""
        since, number = NUMBER.unpack_from(self._memory)
        return since, number
