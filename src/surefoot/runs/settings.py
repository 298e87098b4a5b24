"""From the JSON of ``config.json`` back to configuration dataclasses, with a sentence for everything that does not fit."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from surefoot.errors import UsageError

LARGEST = 1e308
"""Beyond it a whole number is no float any more."""


def part_from(kind: Any, settings: Mapping[str, Any]) -> Any:
    """One dataclass from those of ``settings`` that are its fields; what is not there keeps its default.

    Args:
        kind: the dataclass.
        settings: JSON values by name.

    Raises:
        UsageError: a value has the wrong type, a field without a default is missing, or the dataclass refuses a value.
    """
    hints = get_type_hints(kind)
    values = {f.name: _value(f.name, settings[f.name], hints[f.name]) for f in fields(kind) if f.name in settings}
    for field in fields(kind):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{field.name} is missing, where {_wanted(hints[field.name])} is right")
    return kind(**values)


def refuse_unknown(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UsageError where ``settings`` has a name that is not among the ``known``."""
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no setting {reprlib.repr(name)}; {hint}")


def _value(name: str, value: Any, kind: Any) -> Any:
    """A JSON value as a field's type has it."""
    for choice in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        fits, converted = _fit(value, choice)
        if fits:
            return converted
    raise UsageError(f"{name} is {reprlib.repr(value)}, where {_wanted(kind)} is right")


def _fit(value: Any, kind: Any) -> tuple[bool, Any]:
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind)), value
    if get_origin(kind) is tuple:
        (inner, *_) = get_args(kind)
        parts = [_fit(item, inner) for item in value] if isinstance(value, list) else [(False, None)]
        return all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if kind is NoneType:
        return value is None, None
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
        return number, float(value) if number else value
    if kind is str:  # what cannot be printed is no name of a file or of an environment either
        return isinstance(value, str) and value.isprintable(), value
    return type(value) is kind, value  # a bool is no int here


def _wanted(kind: Any) -> str:
    """What a type asks for, in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_wanted(choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each of it {_wanted(get_args(kind)[0])},"
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "a printable text", NoneType: "null"}[
        kind
    ]
