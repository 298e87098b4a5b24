"""Model folders that are whole or absent, and that plain transformers opens."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from surefoot.alignment.models.adapters import is_adapted, merged_weights, trainable_parameters
from surefoot.alignment.models.folders import quiet, sentences
from surefoot.errors import RunError, what_it_says
from surefoot.runs.directory import ADAPTER_FOLDER

RESCUED = "trained.safetensors"
"""All that was trained, by the names that the model has in training."""


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, *, card: str, adapter: Path | None = None) -> None:
    """Write a model, its tokenizer with the chat template, and its card.

    Everything is written aside, flushed to the disk, and then renamed into place (:func:`replace_folders`); a PEFT model's adapter first,
    and on its own: it is small, and all that was trained, while merging it takes memory for weights in float32. The model that is being
    trained stays as it is.

    Args:
        model: as trained; of a PEFT model, the weights with the adapter merged into them.
        tokenizer: the model's.
        folder: what to write; what was there before is replaced.
        card: README.md, from :func:`surefoot.alignment.models.card.model_card`.
        adapter: where a PEFT model's adapter is kept apart, in PEFT's format; ``adapter`` beside the folder by default.

    Raises:
        RunError: the disk is full, or the place cannot be written; what stood there before is whole. Or an adapter cannot be merged,
            and is kept; or a library cannot write the model, and the weights alone are kept.
        ValueError: a place for an adapter, and no adapter.
    """
    if not is_adapted(model):
        if adapter is not None:
            raise ValueError("there is a place for an adapter, but the model has none")
        _write_or_rescue(folder, lambda part: _write_model(model, None, tokenizer, card, part), model)
        return
    place = adapter or folder.with_name(ADAPTER_FOLDER)
    _write_or_rescue(place, lambda part: _write_adapter(model, part), model)
    try:
        weights = merged_weights(model)
        replace_folders({folder: lambda part: _write_model(model.get_base_model(), weights, tokenizer, card, part)})
    except Exception as error:  # whatever it is, what was learnt is kept, and the user knows where
        reason = str(error) if isinstance(error, RunError) else f"it cannot be merged into its model: {what_it_says(error)}"
        raise RunError(f"{reason}; the adapter is kept in {place}, which --model takes as it takes a model") from error


def _write_or_rescue(folder: Path, fill: Callable[[Path], None], model: Any) -> None:
    """Fill a folder; where a library cannot, keep all that was trained in it nevertheless, by name.

    Raises:
        RunError: it could not be filled; the weights alone are there, unless the disk is to blame.
    """
    try:
        replace_folders({folder: fill})
    except RunError:
        raise
    except Exception as error:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable_parameters(model)}
        replace_folders({folder: lambda part: save_file(weights, part / RESCUED)})
        raise RunError(
            f"{folder} cannot be written as usual: {what_it_says(error)}; what was trained is in {folder / RESCUED}"
        ) from error


def rehearse_saving(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Write all that is saved beside weights once, to where it is forgotten: what cannot be written is found before training, not behind.

    Args:
        model: as it is to be trained.
        tokenizer: its own.
        name: of the model, for the sentence.

    Raises:
        UsageError: its settings or its tokenizer can be read, and not be written.
    """
    inner = model.get_base_model() if is_adapted(model) else model
    with TemporaryDirectory() as folder, sentences(name, "be saved again once it is trained"):
        inner.config.save_pretrained(folder)
        if inner.can_generate():
            inner.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


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


def _write_model(
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    folder: Path,
) -> None:
    """Into a folder, with the model's own weights or others of the same names, which are float32."""
    with quiet():
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["use_cache"] = True  # off in training, where it only costs memory; generation is slow without
    if weights is not None:
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(card)


def _write_adapter(model: Any, folder: Path) -> None:
    # Embeddings are not part of an adapter; left to itself, PEFT asks the hub whether they might have changed.
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own is a form that nobody has filled in
