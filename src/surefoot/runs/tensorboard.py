"""TensorBoard event files, scalars only.

The format is small and frozen: a record is its length, a checksum of the length, the bytes and a checksum of the bytes; the
bytes are a protocol-buffer ``Event`` with a wall time, a step and a ``Summary`` of tagged floats. docs/decisions/tensorboard.md says why
no library writes it.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import google_crc32c

DOUBLE, VARINT, BYTES, FLOAT = 1, 0, 2, 5  # protocol-buffer wire types


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, kind: int, payload: bytes) -> bytes:
    return bytes([number << 3 | kind]) + (_varint(len(payload)) if kind == BYTES else b"") + payload


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

    Raises:
        OSError: the folder or file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.surefoot"
        self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115 (closed in close())
        self._append(_field(3, BYTES, b"brain.Event:2"))

    def _append(self, content: bytes) -> None:
        self._file.write(_record(_field(1, DOUBLE, struct.pack("<d", time.time())) + content))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each named curve."""
        values = b"".join(
            _field(1, BYTES, _field(1, BYTES, name.encode()) + _field(2, FLOAT, struct.pack("<f", value)))
            for name, value in scalars.items()
        )
        self._append(_field(2, VARINT, _varint(step)) + _field(5, BYTES, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
