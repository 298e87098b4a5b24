"""How much data may take in memory: a small file can unpack into more than any machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from surefoot.errors import UsageError

UNKNOWN = 1 << 33
"""Bytes, where the system does not say what is free."""
ROW = 512
"""Bytes that a row takes beside its texts, at least."""


def room() -> int:
    """Bytes that data may take: half of the memory that is free, in the process's own group of processes too."""
    free = [UNKNOWN]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(free), 0) // 2


def check_room(path: Path, wanted: int, *, given: int | None = None) -> None:
    """Raise UsageError where a file's content does not fit.

    Args:
        path: of the file, for the sentence.
        wanted: bytes that it has, or that are known so far.
        given: what :func:`room` returned; asked again by default.
    """
    given = room() if given is None else given
    if wanted > given:
        raise UsageError(
            f"{path} holds {wanted:,} bytes or more once it is unpacked, and {given:,} is half of the memory that is free; split the file"
        )


def counted(batches: Iterable[Any], path: Path) -> Iterator[Any]:
    """Arrow's batches as they come, refused once all together do not fit; and where a damaged one would be read beyond its end.

    Raises:
        UsageError: they do not fit.
        ArrowInvalid: a batch is damaged.
    """
    given, held = room(), 0
    for batch in batches:
        batch.validate(full=True)  # Arrow itself trusts the offsets in a file, and would follow them anywhere
        held += batch.nbytes + ROW * batch.num_rows
        check_room(path, held, given=given)
        yield batch
