"""Where the rows come from: a file, a folder, or a data set on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.alignment.data.reading.files import READERS, Record, kind_of, read_file, reader_of
from surefoot.alignment.data.reading.hub import choose_split, load_from_hub, load_saved
from surefoot.alignment.data.reading.room import check_room, counted
from surefoot.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

SAVED = ("state.json", "dataset_dict.json")
"""One of these lies in a folder that datasets.save_to_disk wrote."""
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in a file's name that say which split it is; the ones that `datasets` knows."""


@dataclass(frozen=True)
class Source:
    """Rows, and what identifies them."""

    name: str
    """What sentences call it."""
    checksum: str
    """SHA-256 of the content, in hexadecimal."""
    records: Callable[[], Iterator[Record]]
    """Reads the rows; nothing is read before."""
    notices: tuple[str, ...] = ()
    """What the user should know about the choice of files."""


def open_source(data: str, split: str | None = None) -> Source:
    """Find what ``data`` names.

    Args:
        data: a path, or a name on the hub; with ``:SPLIT`` behind it where it is no file.
        split: the split, where ``data`` does not say.

    Raises:
        UsageError: it is not there, cannot be read, or has no such split.
    """
    base, behind = _without_split(data)
    if behind:
        if split not in (None, behind):
            raise UsageError(f"--data {data} and --split {split} name two splits; give one")
        data, split = base, behind
    if not _exists(data):
        if _looks_like_a_path(data):
            raise UsageError(f"{data} does not exist; give a file, a folder, or a name on the Hugging Face hub")
        return _from_dataset(load_from_hub(data, split=split), name=data if split is None else f"{data}:{split}")
    path = Path(data)
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return _from_dataset(load_saved(data, split=split), name=data)
        return _folder(path, split)
    if split is not None:
        raise UsageError(f"{data} is one file, so the split {split} chooses nothing; leave it out")
    if reader_of(path) is None:
        raise UsageError(f"{data} is of no kind that is read here; there are {', '.join(READERS)}, and .gz behind a text file")
    return Source(data, _checksum([path]), lambda: read_file(path))


def _without_split(data: str) -> tuple[str, str]:
    """What stands before and behind the colon of NAME:SPLIT; a path may have colons of its own."""
    if _exists(data):
        return data, ""
    base, _, split = data.rpartition(":")  # leaves base empty where there is none
    if not base or not _exists(base):
        base, _, split = data.partition(":")  # a split of the hub may have one too: NAME:train[:100]
    return base, split


def _exists(data: str) -> bool:
    try:
        return Path(data).exists()
    except (OSError, ValueError):  # too long for a path, or with a zero byte in it
        return False


def _looks_like_a_path(data: str) -> bool:
    try:
        known = reader_of(Path(data)) is not None
    except ValueError:
        return True
    return known or data.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", data)


def _folder(folder: Path, split: str | None) -> Source:
    """All files of one split; where no file's name says a split, all files."""
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file() and reader_of(path) is not None)
    paths = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise UsageError(f"{folder} holds no file of a kind that is read here; there are {', '.join(READERS)}")
    splits: dict[str, list[Path]] = {}
    for path in paths:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if split is not None and split not in splits:
        word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?![^\W_])")
        splits[split] = [path for path in paths if word.search(str(path.relative_to(folder)))]
        if not splits[split]:
            named = ", ".join(name for name in splits if name not in ("", split)) or "none"
            raise UsageError(f"{folder} has no files of a split {split}; splits in the names of its files: {named}")
    unmarked = splits.pop("", [])
    if unmarked:
        splits.setdefault("train", unmarked)  # data.jsonl beside test.jsonl
    chosen = choose_split(splits, split, name=str(folder))
    others = sorted(str(path.relative_to(folder)) for path in paths if path not in chosen)
    notices: tuple[str, ...] = ()
    if others:
        notices = (f"{folder}: {len(chosen)} of its files are read; not read, as other splits: {', '.join(others)}",)
    return Source(str(folder), _checksum(chosen), lambda: _one_after_the_other(chosen), notices)


def _split_of(path: Path) -> str:
    """The split that the name of a file says, or else of a folder above it; empty where none does."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        if found := [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]:
            return found[-1]
    return ""


def _one_after_the_other(paths: list[Path]) -> Iterator[Record]:
    """Rows of several files; the numbers of a file go on where those of the file before it ended."""
    before = 0
    for path in paths:
        last = 0
        for last, value in read_file(path):
            yield before + last, value
        before += last


def _checksum(paths: list[Path]) -> str:
    """Of the files' content in their order, and of how each is read; their names make no difference."""
    total = hashlib.sha256()
    for path in paths:
        try:
            check_room(path, path.stat().st_size)  # before hours are spent on reading it
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        total.update(kind_of(path).encode() + content)
    return total.hexdigest()


def _from_dataset(dataset: Dataset, *, name: str) -> Source:
    """Rows of a `datasets` table, read as Arrow so that no image or sound is decoded."""
    batches = counted(dataset.with_format("arrow").iter(batch_size=1024), Path(name))
    try:
        rows: list[Any] = [row for batch in batches for row in batch.to_pylist()]
    except UsageError:
        raise
    except Exception as error:  # whatever damaged columns make of Python's types
        raise UsageError(f"{name} is damaged: {' '.join(str(error).split())[:300]}") from error
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return Source(name, total.hexdigest(), lambda: iter(enumerate(rows, start=1)))
