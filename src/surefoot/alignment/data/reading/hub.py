"""The Hugging Face hub: data sets by name, and doing without it where there is no network."""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.errors import UsageError, what_it_says
from surefoot.runs.directory import read_json

if TYPE_CHECKING:
    from datasets import Dataset

PATIENCE = 5.0
"""Seconds in which the hub must accept a connection."""


@contextlib.contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Within it the hub's libraries look into their cache alone where the hub cannot be reached.

    They would try for most of a minute for each file otherwise. Gives whether the hub can be reached.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    reachable = not offline and _reachable(constants.ENDPOINT)
    settings: list[Any] = [constants]
    with contextlib.suppress(ModuleNotFoundError):
        from datasets import config

        settings.append(config)
    before = [library.HF_HUB_OFFLINE for library in settings]
    try:
        for library in settings:
            library.HF_HUB_OFFLINE = library.HF_HUB_OFFLINE or not reachable
        yield reachable
    finally:
        for library, value in zip(settings, before, strict=True):
            library.HF_HUB_OFFLINE = value


def _reachable(endpoint: str) -> bool:
    if urllib.request.getproxies():
        return True  # the proxy knows; a direct connection says nothing
    address = urllib.parse.urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def load_from_hub(name: str, *, split: str | None) -> Dataset:
    """A data set by its name on the hub: OWNER/NAME, NAME, or OWNER/NAME/CONFIGURATION.

    Raises:
        UsageError: there is none of that name, it has no such configuration or split, or it can neither be reached nor is
            it in the cache.
    """
    datasets = _datasets()
    owner_and_name, configuration = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:]) or None
    with hub_or_cache() as reachable:
        try:
            loaded = datasets.load_dataset(owner_and_name, configuration, split=split)
        except Exception as error:  # builders of data sets raise whatever their files make them raise
            if not reachable:
                raise UsageError(
                    f"{name} is no file or folder here, and as a name on the Hugging Face hub it can be reached neither over"
                    " the network nor in the cache; give a path, or connect"
                ) from error
            raise UsageError(f"{name} cannot be loaded from the Hugging Face hub: {what_it_says(error)}") from error
    return loaded if split is not None else choose_split(loaded, None, name=name)


def load_saved(folder: str, *, split: str | None) -> Dataset:
    """What ``datasets.save_to_disk`` wrote.

    Raises:
        UsageError: the folder is damaged, or has no such split.
    """
    datasets = _datasets()
    try:
        _check_names(Path(folder))
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UsageError(f"{folder} cannot be read as a folder of datasets.save_to_disk: {what_it_says(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        return choose_split(loaded, split, name=folder)
    if split is not None:
        raise UsageError(f"{folder} is one split, so --split {split} chooses nothing; leave it out")
    return loaded


def _check_names(folder: Path) -> None:
    """Refuse splits and files that lie elsewhere than in the folder."""
    splits = read_json(folder / "dataset_dict.json").get("splits") if (folder / "dataset_dict.json").is_file() else []
    files: list[Any] = []
    for state in (folder / "state.json", *folder.glob("*/state.json")):
        there = read_json(state).get("_data_files") if state.is_file() else []
        files += there if isinstance(there, list) else [there]
    named = (
        [*splits, *(file.get("filename") if isinstance(file, dict) else None for file in files)]
        if isinstance(splits, list)
        else [0]
    )
    for name in named:
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            raise UsageError(f"it names {name!r}, which is no file in it")


def choose_split(splits: Any, wanted: str | None, *, name: str) -> Any:
    """One of several splits by name: the wanted one, the only one, or train.

    Raises:
        UsageError: the wanted one is not there, or none was asked for and there is no train.
    """
    there = ", ".join(map(str, splits))
    if wanted is not None and wanted not in splits:
        raise UsageError(f"{name} has no split {wanted}; there are {there}")
    if wanted is None and len(splits) > 1 and "train" not in splits:
        raise UsageError(f"{name} has the splits {there}; choose one with --split")
    return splits[wanted or ("train" if "train" in splits else next(iter(splits)))]


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise UsageError(
            "folders of datasets.save_to_disk and names on the hub need datasets; install it with: pip install"
            " 'surefoot[alignment]'"
        ) from None
    return datasets
