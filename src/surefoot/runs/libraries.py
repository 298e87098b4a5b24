"""Which versions of its libraries a run was computed with: another version may round otherwise."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from functools import cache


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of the named distributions that are installed."""
    return {name: version for name in names if (version := _version(name)) is not None}


@cache
def _version(name: str) -> str | None:
    """Looked up once: a checkpoint asks for eight, and each is a search through the installed packages."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def changed_versions(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is another version now, as words; empty where nothing is."""
    names = sorted(before.keys() | now.keys())
    pairs = [(name, before.get(name, "none"), now.get(name, "none")) for name in names]
    return ", ".join(f"{name} {new} in place of {old}" for name, old, new in pairs if old != new)
