"""The model as it was at a run's start, kept in the run's own folder: the reference, and what an adapter leaves frozen, when it goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.alignment.models.adapters import is_adapted
from surefoot.alignment.models.folders import quiet
from surefoot.alignment.models.saving import remove_left_over, replace_folders
from surefoot.errors import UsageError, require
from surefoot.runs.directory import read_json

START_FOLDER = "start"
REFERENCE_FOLDER = "reference"
MANIFEST_FILE = "manifest.json"
FORMAT = "surefoot start 1"


def clear_start(run: Path) -> None:
    """Remove the start that an earlier process left, which was stopped before its run began.

    Raises:
        UsageError: what is called so is not a run's.
    """
    folder = run / START_FOLDER
    remove_left_over(folder)
    if not folder.exists():
        return
    written = False
    with suppress(UsageError):
        written = read_json(folder / MANIFEST_FILE).get("format") == FORMAT
    require(written, f"{folder} is not a run's, and would be overwritten; choose another --out")
    shutil.rmtree(folder)


def keep_start(run: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model that nothing has changed yet, and its tokenizer, with the size and SHA-256 of every file.

    Args:
        run: the run's folder.
        model: as it was loaded, without an adapter.
        tokenizer: as it was loaded.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """

    def fill(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        files = {path.relative_to(folder).as_posix(): _described(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        (folder / MANIFEST_FILE).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))

    replace_folders({run / START_FOLDER: fill})


def start_checksum(run: Path) -> str:
    """SHA-256 of the list of files, which holds theirs: of everything that the run began with."""
    return hashlib.sha256((run / START_FOLDER / MANIFEST_FILE).read_bytes()).hexdigest()


def verified_start(run: Path, checksum: Any) -> Path:
    """The folder of the model that a run began with, once every byte of it is known to be the same.

    Args:
        run: the run's folder.
        checksum: what :func:`start_checksum` was when it began.

    Raises:
        UsageError: something is missing, was added or was altered.
    """
    folder = run / START_FOLDER
    remedy = "the run cannot go on without the model that it began with"
    require((folder / MANIFEST_FILE).is_file(), f"{folder} is gone, or not whole; {remedy}")
    require(start_checksum(run) == checksum, f"{folder / MANIFEST_FILE} is not the one that the run wrote; {remedy}")
    files: dict[str, Any] = read_json(folder / MANIFEST_FILE)["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST_FILE}
    there = {name for name in there if not name.startswith(f"{REFERENCE_FOLDER}/")}
    for name in sorted(there ^ files.keys()):
        raise UsageError(f"{folder / name} {'is gone' if name in files else 'was not written by the run'}; {remedy}")
    for name, stated in files.items():
        if (folder / name).stat().st_size != stated["bytes"] or _described(folder / name) != stated:
            raise UsageError(f"{folder / name} is not what the run began with: it does not have its checksum; {remedy}")
    return folder


def call_by_name(model: Any, name: str) -> None:
    """Let a model that was loaded from the run's own folder be called as the user called it, in what is saved of it."""
    inner = model.get_base_model() if is_adapted(model) else model
    inner.config.name_or_path = inner.name_or_path = name
    for adapter in model.peft_config.values() if is_adapted(model) else ():
        adapter.base_model_name_or_path = name


class StartKeeper:
    """Keeps what a run begins with, in its own folder.

    Args:
        run: the folder.
        tokenizer: as it is now, whatever is added to it later.
    """

    def __init__(self, run: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._run, self._tokenizer = run, copy.deepcopy(tokenizer)
        self.reference = reference_folder(run)
        """For log-probabilities of a reference that are evaluated once, by :class:`~surefoot.alignment.reference.ReferenceCache`."""

    def keep(self, model: Any) -> None:
        """Write a model that nothing has changed yet (:func:`keep_start`)."""
        keep_start(self._run, model, self._tokenizer)


def reference_folder(run: Path) -> Path:
    """Where a run keeps log-probabilities of its reference. Its files have checksums of their own: they come after the start's list."""
    return run / START_FOLDER / REFERENCE_FOLDER


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
