"""Checkpoints: everything a run carries, whole or absent, verified before it is believed.

A checkpoint is a folder ``checkpoints/STEP`` with ``state.safetensors`` (arrays), ``state.json`` (numbers and names) and ``manifest.json``,
which holds the size and SHA-256 of both, and its own, and is written last. The folder is filled aside, flushed to the disk, and renamed:
whatever stops the machine, what stands under its own name is complete. No file is ever unpickled.
"""

from __future__ import annotations

import contextlib
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
from safetensors.numpy import load_file, save_file

from surefoot.errors import Caution, RunError, UsageError
from surefoot.runs.directory import CHECKPOINTS_FOLDER

FORMAT = "surefoot checkpoint 1"
ARRAYS_FILE, STATE_FILE, MANIFEST_FILE = "state.safetensors", "state.json", "manifest.json"
NAME, ASIDE = re.compile(r"0|[1-9][0-9]{0,17}"), re.compile(r"\.(0|[1-9][0-9]{0,17})\.writing")
LARGEST_MANIFEST = 1 << 16
"""Bytes of a manifest: it lists two files."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run carried at one moment."""

    step: int
    """Environment steps, updates or iterations: the run's own measure of how far it is."""
    exact: bool
    """Whether a run that goes on from here ends with the bits of one that was never stopped."""
    arrays: dict[str, np.ndarray]
    state: Mapping[str, Any]


class Damaged(Exception):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        keep: how many of the last to keep; the best, and the last exact one, are kept besides.
        name: of the folder in it.
    """

    def __init__(self, run: Path, *, keep: int = 2, name: str = CHECKPOINTS_FOLDER) -> None:
        self.folder, self._keep = run / name, keep

    def steps(self) -> list[int]:
        """Of all checkpoints that stand under their own names, oldest first."""
        return sorted(int(name) for name in self._names() if NAME.fullmatch(name) and (self.folder / name).is_dir())

    def write(self, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Keep a checkpoint, then delete those that are no longer wanted.

        Args:
            checkpoint: what to keep.
            best: whether it is the best so far, which is kept however old it gets.

        Raises:
            RunError: the disk is full or the folder cannot be written; the checkpoints before are whole.
        """
        place, aside = self.folder / str(checkpoint.step), self.folder / f".{checkpoint.step}.writing"
        state = json.dumps(dict(checkpoint.state)).encode()
        manifest: dict[str, Any] = {"format": FORMAT, "step": checkpoint.step, "exact": checkpoint.exact, "best": best}
        try:
            if not self.folder.is_dir():
                self.folder.mkdir()  # of a run's folder that is gone nothing is kept
                flush_names(self.folder.parent)
            self._clear_aside()
            aside.mkdir()
            _write_arrays(aside / ARRAYS_FILE, checkpoint.arrays)
            _write_flushed(aside / STATE_FILE, state)
            manifest["files"] = {name: _described(aside / name) for name in (ARRAYS_FILE, STATE_FILE)}
            manifest["sha256"] = _checksum_of(manifest)
            _write_flushed(aside / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
            flush_names(aside)
            if place.exists():
                # The same step again: should the machine stop before the rename, `latest` finds the whole one aside.
                shutil.rmtree(place)
            aside.rename(place)
            flush_names(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(f"cannot write {place}: {reason}; the checkpoints before it are whole") from error
        self._forget(just_written=checkpoint, best=best)
        return place

    def read(self, step: int) -> Checkpoint:
        """One checkpoint, every byte of it checked against its manifest.

        Raises:
            Damaged: it is not what was written.
        """
        return _read(self.folder / str(step), step)

    def latest(self, *, exact: bool = False) -> tuple[Checkpoint, list[str]]:
        """The last checkpoint that is whole.

        Args:
            exact: pass over those that are not exact.

        Returns:
            the checkpoint, and a sentence for each later one that was passed over.

        Raises:
            UsageError: there is none.
        """
        self.adopt()
        said: list[str] = []
        advice = "train with --checkpoint-every"
        for step in reversed(self.steps()):
            try:
                found = self.read(step)
            except Damaged as reason:
                said.append(Caution(f"{self.folder / str(step)} is damaged ({reason}) and is passed over"))
                continue
            if exact and not found.exact:
                said.append(f"the checkpoint at step {step:,} is not exact, and is passed over")
                advice = "leave --exact out to take one that is not"
                continue
            return found, said
        if said and "--exact" not in advice:
            advice = "train anew in another folder"
        why = f": {'; '.join(said)}" if said else ""
        raise UsageError(f"{self.folder.parent} has no {'exact ' if exact else ''}checkpoint to go on from{why}; {advice}")

    def last_exact(self) -> int | None:
        """The step of the last one that is marked exact; None where none is."""
        return next((step for step in reversed(self.steps()) if self._marks(step).get("exact") is True), None)

    def adopt(self) -> None:
        """Give its name to a checkpoint that was whole, but not yet called so, when the machine stopped."""
        for name in self._names():
            if (found := ASIDE.fullmatch(name)) is None or (self.folder / found[1]).exists():
                continue
            with contextlib.suppress(Damaged, OSError):
                _read(self.folder / name, int(found[1]))
                (self.folder / name).rename(self.folder / found[1])

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of a future that is given up: the run goes on from ``step``.

        Raises:
            RunError: one of them cannot be deleted, and would be taken for this run's.
        """
        for later in self.steps():
            if later > step:
                try:
                    shutil.rmtree(self.folder / str(later))
                except OSError as error:
                    raise RunError(f"cannot delete {self.folder / str(later)}: {error.strerror}; delete it by hand") from error

    def _names(self) -> list[str]:
        return [entry.name for entry in self.folder.iterdir()] if self.folder.is_dir() else []

    def _clear_aside(self) -> None:
        """Remove what an earlier process left half-written."""
        for name in self._names():
            if ASIDE.fullmatch(name):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _forget(self, *, just_written: Checkpoint, best: bool) -> None:
        """Delete all but the last ones, the best, and the last exact one: a run may be wanted back bit for bit."""
        steps = self.steps()
        wanted = set(steps[-self._keep :]) | {just_written.step}
        if set(steps) <= wanted:
            return
        marks = {step: self._marks(step) for step in steps}
        for mark, settled in (("best", best), ("exact", just_written.exact)):
            if not settled:
                wanted |= set([step for step in steps if marks[step].get(mark) is True][-1:])
        for step in steps:
            if step not in wanted:
                shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _marks(self, step: int) -> Mapping[str, Any]:
        try:
            return _read_manifest(self.folder / str(step) / MANIFEST_FILE)
        except Damaged:
            return {}


def _read(place: Path, step: int) -> Checkpoint:
    manifest = _read_manifest(place / MANIFEST_FILE)
    if manifest.get("format") != FORMAT or manifest.get("step") != step or not isinstance(manifest.get("exact"), bool):
        raise Damaged(f"its manifest is not that of {FORMAT!r} at step {step}")
    files = manifest.get("files")
    for name in (ARRAYS_FILE, STATE_FILE):
        wanted = files.get(name) if isinstance(files, dict) else None
        if not isinstance(wanted, dict) or not isinstance(wanted.get("bytes"), int):
            raise Damaged(f"its manifest does not list {name}")
        _check(place / name, wanted)
    try:
        arrays, state = load_file(place / ARRAYS_FILE), json.loads((place / STATE_FILE).read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"it cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{STATE_FILE} is no JSON object")
    return Checkpoint(step, manifest["exact"], arrays, state)


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _checksum_of(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_MANIFEST + 1)
        if len(content) > LARGEST_MANIFEST:
            raise Damaged("its manifest is far too large")
        value = json.loads(content)
        if not isinstance(value, dict):
            raise Damaged("its manifest is no JSON object")
        checksum = _checksum_of(value)
    except OSError as error:
        raise Damaged(f"its manifest cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"its manifest is no JSON: {error}") from error
    if value.get("sha256") != checksum:
        raise Damaged("its manifest does not have its own checksum")
    return value


def _check(path: Path, wanted: Mapping[str, Any]) -> None:
    """Raise where a file is not what its manifest says; its size is looked at first, and memory is taken for none of it."""
    try:
        if path.stat().st_size != wanted["bytes"]:
            raise Damaged(f"{path.name} has {path.stat().st_size:,} bytes, and its manifest says {wanted['bytes']:,}")
        checksum = _described(path)["sha256"]
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if checksum != wanted.get("sha256"):
        raise Damaged(f"{path.name} does not have the checksum of its manifest")


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays from where they are in memory: they may be most of what there is of it."""
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    path.chmod(0o644)  # safetensors makes its files private
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _write_flushed(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_names(folder: Path) -> None:
    """Bring a folder's list of names to the disk."""
    if os.name == "nt":  # which cannot open a folder, and flushes names by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
