"""Checkpoints: everything a run carries, whole or absent, verified before it is believed.

A checkpoint is a folder ``checkpoints/STEP`` with ``state.safetensors`` (arrays), ``state.json`` (numbers and names) and ``manifest.json``,
which holds the size and SHA-256 of both and is written last. The folder is filled aside, flushed to the disk, and renamed: whatever stops
the machine, what stands under its own name is complete. No file is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from surefoot.errors import RunError, UsageError

CHECKPOINTS_FOLDER = "checkpoints"
FORMAT = "surefoot checkpoint 1"
ARRAYS_FILE, STATE_FILE, MANIFEST_FILE = "state.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"\d{1,18}")
LARGEST_MANIFEST = 1 << 20
"""Bytes of a manifest: it lists two files."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run carried at one moment."""

    step: int
    """Environment steps, updates or iterations: the run's own measure of how far it is."""
    exact: bool
    """Whether a run that goes on from here ends with the bits of one that was never stopped."""
    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]


class Damaged(Exception):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        keep: how many of the last to keep; the best is kept besides.
    """

    def __init__(self, run: Path, *, keep: int = 2) -> None:
        self.folder, self._keep = run / CHECKPOINTS_FOLDER, keep

    def steps(self) -> list[int]:
        """Of all checkpoints that stand under their own names, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if NAME.fullmatch(entry.name) and entry.is_dir())

    def write(self, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Keep a checkpoint, then delete those that are no longer wanted.

        Args:
            checkpoint: what to keep.
            best: whether it is the best so far, which is kept however old it gets.

        Raises:
            RunError: the disk is full or the folder cannot be written; the checkpoints before are whole.
        """
        place, aside = self.folder / str(checkpoint.step), self.folder / f".{checkpoint.step}.writing"
        arrays = save({name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()})
        state = json.dumps(dict(checkpoint.state), allow_nan=True).encode()
        manifest = {
            "format": FORMAT,
            "step": checkpoint.step,
            "exact": checkpoint.exact,
            "best": best,
            "files": {name: _described(content) for name, content in ((ARRAYS_FILE, arrays), (STATE_FILE, state))},
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            contents = {ARRAYS_FILE: arrays, STATE_FILE: state, MANIFEST_FILE: json.dumps(manifest, indent=1).encode()}
            for name, content in contents.items():
                _write_flushed(aside / name, content)
            flush_names(aside)
            if place.exists():  # the same step again, after a resumed run: the older one is as good until this one is whole
                shutil.rmtree(place)
            aside.rename(place)
            flush_names(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise RunError(f"cannot write {place}: {error.strerror}; the checkpoints before it are whole") from error
        self._forget(best=checkpoint.step if best else None)
        return place

    def read(self, step: int) -> Checkpoint:
        """One checkpoint, every byte of it checked against its manifest.

        Raises:
            Damaged: it is not what was written.
        """
        place = self.folder / str(step)
        manifest = _read_manifest(place / MANIFEST_FILE)
        if manifest.get("format") != FORMAT or manifest.get("step") != step:
            raise Damaged(f"its manifest is not that of {FORMAT!r} at step {step}")
        files, contents = manifest.get("files"), {}
        for name in (ARRAYS_FILE, STATE_FILE):
            wanted = files.get(name) if isinstance(files, dict) else None
            if not isinstance(wanted, dict) or not isinstance(wanted.get("bytes"), int):
                raise Damaged(f"its manifest does not list {name}")
            contents[name] = _read_checked(place / name, wanted)
        try:
            return Checkpoint(step, bool(manifest["exact"]), load(contents[ARRAYS_FILE]), json.loads(contents[STATE_FILE]))
        except (SafetensorError, ValueError, KeyError) as error:
            raise Damaged(f"it cannot be read: {error}") from error

    def latest(self, *, exact: bool = False) -> tuple[Checkpoint, list[str]]:
        """The last checkpoint that is whole.

        Args:
            exact: pass over those that are not exact.

        Returns:
            the checkpoint, and a sentence for each later one that was passed over.

        Raises:
            UsageError: there is none.
        """
        said = []
        for step in reversed(self.steps()):
            try:
                found = self.read(step)
            except Damaged as reason:
                said.append(f"{self.folder / str(step)} is damaged ({reason}); the one before it is used")
                continue
            if exact and not found.exact:
                said.append(f"the checkpoint at step {step} is not exact, and is passed over")
                continue
            return found, said
        why = f": {'; '.join(said)}" if said else ""
        raise UsageError(
            f"{self.folder.parent} has no {'exact ' if exact else ''}checkpoint to go on from{why}; train with --checkpoint-every"
        )

    def _forget(self, *, best: int | None) -> None:
        """Delete all but the last ones and the best."""
        steps = self.steps()
        if best is None:
            best = next((step for step in reversed(steps) if self._is_best(step)), None)
        for step in steps[: -self._keep]:
            if step != best:
                shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _is_best(self, step: int) -> bool:
        try:
            return _read_manifest(self.folder / str(step) / MANIFEST_FILE).get("best") is True
        except Damaged:
            return False


def _described(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise Damaged("its manifest is far too large")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise Damaged(f"its manifest cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Damaged(f"its manifest is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Damaged("its manifest is no JSON object")
    return value


def _read_checked(path: Path, wanted: Mapping[str, Any]) -> bytes:
    """A file's content; its size is looked at before memory is taken for it."""
    try:
        if path.stat().st_size != wanted["bytes"]:
            raise Damaged(f"{path.name} has {path.stat().st_size:,} bytes, and its manifest says {wanted['bytes']:,}")
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != wanted.get("sha256"):
        raise Damaged(f"{path.name} does not have the checksum of its manifest")
    return content


def _write_flushed(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_names(folder: Path) -> None:
    """Bring a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
