"""TensorBoard event files, scalars only.

The format is small and frozen: a record is its length, a checksum of the length, the bytes and a checksum of the bytes; the
bytes are a protocol-buffer ``Event`` with a wall time, a step and a ``Summary`` of tagged floats. docs/decisions/tensorboard.md says why
no library writes it.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import google_crc32c

DOUBLE, VARINT, BYTES, FLOAT = 1, 0, 2, 5  # protocol-buffer wire types
PREFIX, SUFFIX = "events.out.tfevents.", ".surefoot"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, kind: int, payload: bytes) -> bytes:
    return bytes([number << 3 | kind]) + (_varint(len(payload)) if kind == BYTES else b"") + payload


def _single(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # finite, but beyond single precision, which is all that the format has
        return struct.pack("<f", math.copysign(math.inf, value))


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the record format asks, so that a checksum of checksums is not degenerate."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


class EventFile:
    """Appends scalars to a new event file; each ``write`` is one complete record.

    Args:
        folder: where; made if it is missing.
        name: of a file there to go on with, which is cut to ``length`` bytes; by default a new one begins.

    Raises:
        OSError: the folder or file cannot be written.
    """

    def __init__(self, folder: Path, *, name: str | None = None, length: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if name is not None:
            self._file = open(folder / name, "r+b", buffering=0)  # noqa: SIM115 (closed in close())
            self._file.truncate(length)
            self._file.seek(length)
            return
        name = f"{PREFIX}{int(time.time())}.{socket.gethostname()}.{os.getpid()}{SUFFIX}"
        self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115 (closed in close())
        self._append(_field(3, BYTES, b"brain.Event:2"))

    @staticmethod
    def resumed(folder: Path, position: tuple[str, int] | None) -> EventFile:
        """Cut a run's files back to ``position``, a file's name and its length, None where there was none, and go on.

        Where that file is gone or shorter, a new one begins.
        """
        name, length = position or (None, 0)
        for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
            if path.name != name:  # begun later
                path.unlink()
        if name is not None and (folder / name).is_file() and (folder / name).stat().st_size >= length:
            return EventFile(folder, name=name, length=length)
        return EventFile(folder)

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether a file of this class may be called so: a plain name, that leads to no other folder."""
        return name.startswith(PREFIX) and name.endswith(SUFFIX) and os.path.basename(name) == name and "\0" not in name

    def position(self) -> dict[str, str | int]:
        """The file's name and its length, which is brought to the disk first."""
        os.fsync(self._file.fileno())
        return {"file": os.path.basename(self._file.name), "bytes": os.fstat(self._file.fileno()).st_size}

    def _append(self, content: bytes) -> None:
        record = _record(_field(1, DOUBLE, struct.pack("<d", time.time())) + content)
        if self._file.write(record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each named curve."""
        values = b"".join(
            _field(1, BYTES, _field(1, BYTES, name.encode()) + _field(2, FLOAT, _single(value)))
            for name, value in scalars.items()
        )
        self._append(_field(2, VARINT, _varint(step)) + _field(5, BYTES, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
