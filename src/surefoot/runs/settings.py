"""Settings: what a configuration's dataclasses take, whether it comes from Python, the command line or ``config.json``."""

from __future__ import annotations

import difflib
import functools
import math
import os
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from surefoot.errors import UsageError

LARGEST = 1e308
"""Beyond it a whole number is no float any more."""


class Settings:
    """Base of a configuration's frozen dataclasses: every value is checked as it comes in, whatever made the object.

    The constructor, :func:`dataclasses.replace`, the command line and :func:`part_from` all end here: each value is compared with its
    field's type and held as that type's own (:func:`setting`), and then the class's own ``_check`` runs. What can be made can
    therefore be written as JSON, and is made again by what was written.

    Raises:
        UsageError: a value has another type, or the class refuses it.
    """

    def __post_init__(self) -> None:
        own: Any = type(self)
        kinds = _kinds(own)
        for name, kind in kinds.items():
            object.__setattr__(self, name, setting(name, getattr(self, name), kind))
        self._check()  # says more of a number out of its range, as one that is not finite mostly is
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise _misfit(name, value, kinds[name])

    def _check(self) -> None:
        """Raise UsageError where values, all of the right type, cannot be used; a class without such has nothing to do."""


def setting(name: str, value: Any, kind: Any) -> Any:
    """A value as a field of a type holds it.

    Taken as what they are: numbers, words and flags of NumPy, PyTorch and JAX; a float that is a whole number for an int, and
    any number for a float; 0 and 1 for a bool; a path for a str; any sequence or array for a tuple.

    Args:
        name: of the field, for the sentence.
        value: whatever was given.
        kind: the field's type, of int, float, bool, str, None, a Literal, a dataclass, tuples ``tuple[T, ...]`` and unions of these.

    Raises:
        UsageError: it is none of the type's values.
    """
    fits, held = _fit(value, kind)
    if not fits:
        raise _misfit(name, value, kind)
    return held


def part_from(kind: Any, settings: Mapping[str, Any]) -> Any:
    """One part of a configuration from those of ``settings`` that are its fields; what is not there keeps its default.

    Args:
        kind: the part's class, a :class:`Settings`.
        settings: values by name, as ``config.json`` holds them.

    Raises:
        UsageError: a value has the wrong type, a field without a default is missing, or the class refuses a value.
    """
    kinds = _kinds(kind)
    for field in fields(kind):
        if field.name not in settings and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{field.name} is missing, where {_wanted(kinds[field.name])} is right")
    return kind(**{name: settings[name] for name in kinds if name in settings})


def refuse_unknown(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UsageError where ``settings`` has a name that is not among the ``known``."""
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no setting {reprlib.repr(name)}; {hint}")


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fit(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether a value is one of a type's, and how the type holds it."""
    value = _plain(value)
    if get_origin(kind) in (Union, UnionType):
        # A member whose own value it is comes first: 1 is no flag where a whole number is as right.
        for choice in sorted(get_args(kind), key=lambda choice: choice is not type(value)):
            fits, held = _fit(value, choice)
            if fits:
                return True, held
        return False, value
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind)), value
    if get_origin(kind) is tuple:
        parts = [_fit(item, get_args(kind)[0]) for item in value] if _is_list(value) else [(False, None)]
        return all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if kind is NoneType or is_dataclass(kind):
        return type(value) is kind, value
    if kind is str:  # what cannot be printed is no name of a file or of an environment either
        return isinstance(value, str) and value.isprintable(), value
    if kind is bool:
        flag = isinstance(value, Real) and value in (0, 1)
        return flag, bool(value) if flag else value
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        whole = number and (isinstance(value, int) or (math.isfinite(value) and value == math.floor(value)))
        return whole, int(value) if whole else value
    real = number and (isinstance(value, float) or abs(value) < LARGEST)
    return real, float(value) if real else value


def _plain(value: Any) -> Any:
    """A value without the array, tensor, path or subclass of str that it came in."""
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return str.__str__(value) if isinstance(value, str) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _misfit(name: str, value: Any, kind: Any) -> UsageError:
    return UsageError(f"{name} is {reprlib.repr(value)}, where {_wanted(kind)} is right")


def _wanted(kind: Any) -> str:
    """What a type asks for, in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_wanted(choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each of it {_wanted(get_args(kind)[0])},"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a printable text", NoneType: "null"}
    return words.get(kind) or f"a {kind.__name__}"
