"""Model folders that are whole or absent, and that plain transformers opens."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surefoot.alignment.models.adapters import is_adapted, merge_adapter
from surefoot.alignment.models.folders import quiet
from surefoot.errors import RunError
from surefoot.runs.directory import ADAPTER_FOLDER


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, *, card: str, adapter: Path | None = None) -> None:
    """Write a model, its tokenizer with the chat template, and its card.

    Everything is written aside, flushed to the disk, and then renamed into place (:func:`replace_folders`). The model that is
    being trained stays as it is.

    Args:
        model: as trained; of a PEFT model, the weights with the adapter merged into them.
        tokenizer: the model's.
        folder: what to write; what was there before is replaced.
        card: README.md, from :func:`surefoot.alignment.models.card.model_card`.
        adapter: where a PEFT model's adapter is kept apart, in PEFT's format; ``adapter`` beside the folder by default.

    Raises:
        RunError: the disk is full, or the place cannot be written; what stood there before is whole.
        ValueError: a place for an adapter, and no adapter.
    """
    plain = model
    parts: dict[Path, Callable[[Path], None]] = {}
    if is_adapted(model):
        parts[adapter or folder.with_name(ADAPTER_FOLDER)] = lambda part: _write_adapter(model, part)
        plain = merge_adapter(model)
    elif adapter is not None:
        raise ValueError("there is a place for an adapter, but the model has none")
    parts[folder] = lambda part: _write_model(plain, tokenizer, card, part)
    replace_folders(parts)


def replace_folders(parts: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write folders aside, flush them, and put each in its place by renaming.

    A folder ``x`` is written as ``.x.writing``. A full folder cannot be renamed over, so the old ``x`` becomes ``.x.previous``
    just before ``.x.writing`` becomes ``x``, and is deleted then. Whenever the machine stops, one of the two is whole: at ``x``,
    or, between those two renames, at ``.x.previous``, from where the next call puts it back before it writes.

    Args:
        parts: for each folder, what fills it, given the place to write to. No place changes before all are written.

    Raises:
        RunError: something could not be written; the old folders are in their places, whole.
    """
    folder = Path()
    try:
        for folder, fill in parts.items():
            previous = _beside(folder, "previous")
            if previous.exists() and not folder.exists():
                previous.rename(folder)
            for left_over in (previous, _beside(folder, "writing")):
                if left_over.exists():
                    shutil.rmtree(left_over)
            aside = _beside(folder, "writing")
            aside.mkdir(parents=True)
            fill(aside)
            _flush(aside)
        for folder in parts:
            _swap(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"cannot write {folder}: {reason}; what stood there before is untouched") from error
    finally:
        for folder in parts:
            shutil.rmtree(_beside(folder, "writing"), ignore_errors=True)


def remove_left_over(folder: Path) -> None:
    """Remove what :func:`replace_folders` left beside a folder when the machine stopped."""
    for state in ("previous", "writing"):
        shutil.rmtree(_beside(folder, state), ignore_errors=True)


def _swap(folder: Path) -> None:
    previous = _beside(folder, "previous")
    if not folder.exists():
        _beside(folder, "writing").rename(folder)
    else:
        folder.rename(previous)
        try:
            _beside(folder, "writing").rename(folder)
        except OSError:
            previous.rename(folder)
            raise
    _flush_names(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _beside(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}.{state}")


def _flush(folder: Path) -> None:
    """Bring a folder's files to the disk, readable for all as files usually are (safetensors makes them private)."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    _flush_names(folder)


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str, folder: Path) -> None:
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["use_cache"] = True  # off in training, where it only costs memory; generation is slow without
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(card)


def _write_adapter(model: Any, folder: Path) -> None:
    # Embeddings are not part of an adapter; left to itself, PEFT asks the hub whether they might have changed.
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own is a form that nobody has filled in
