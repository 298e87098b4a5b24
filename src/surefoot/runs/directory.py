"""A run's folder, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import RunError, UsageError

CONFIGURATION_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
POLICY_FOLDER = "policy"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
LARGEST_JSON = 1 << 25
"""Bytes of a configuration, summary or list of files; the largest that are known have a tenth of that."""
FAILED_FOLDER = "failed"
"""State before an update or a step that failed, as a checkpoint: for inspection."""


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` aside, flush it to the disk, then rename: a reader sees the old file or the new one, never a torn one.

    Raises:
        RunError: the disk is full or the folder cannot be written; what stood there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; nothing there was changed") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):  # stopped at once, for instance
            raise
        raise RunError(f"cannot write {path}: {error.strerror}; what stood there before is untouched") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        UsageError: the file is missing, unreadable, far too large or not a JSON object.
    """
    try:
        value = json.loads(_content(path))
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist; give the folder of a run, the one that `surefoot train` or `align` printed"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds {type(value).__name__}, not a JSON object")
    return value


def _content(path: Path) -> bytes:
    """A file's bytes, once they are known to be few; a pipe under its name would be waited for without end."""
    if not path.is_file():
        if path.exists():
            raise OSError("it is no file")
        raise FileNotFoundError
    with open(path, "rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
    return content


def create_run_folder(folder: str | None, *, name: str) -> Path:
    """Make the folder of a new run.

    Args:
        folder: where; None for ``runs/NAME-TIME`` in the current directory.
        name: what the run is, for the default folder's name.

    Raises:
        UsageError: a run is there already, or the folder cannot be made.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    path = Path(folder).expanduser() if folder else Path("runs") / f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    configuration = path / CONFIGURATION_FILE
    if configuration.exists() and not {"algorithm", "method"} & read_json(configuration).keys():
        raise UsageError(f"{configuration} is not a run's, and would be overwritten; choose another --out")
    folders = (POLICY_FOLDER, MODEL_FOLDER, ADAPTER_FOLDER, CHECKPOINTS_FOLDER)
    traces = (METRICS_FILE, *folders, SUMMARY_FILE, f"seed-*/{METRICS_FILE}")
    if any(True for trace in traces for _ in path.glob(trace)):
        raise UsageError(
            f"{path} already holds a run; choose another --out, delete that folder, or go on with it: surefoot resume {path}"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}: {error.strerror}; choose another --out") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"the folder {path} cannot be written; choose another --out")
    return path
