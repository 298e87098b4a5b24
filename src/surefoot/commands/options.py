"""From arguments to dataclasses, with a sentence for every mistake."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import tyro

from surefoot.errors import UsageError

DONE, FAILED, WRONG_INPUT = 0, 1, 2
"""Exit statuses."""


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: bool = False
    """Print one JSON object as the last line of standard output."""
    quiet: bool = False
    """No progress."""

    def give(self, result: dict[str, Any]) -> None:
        """The result as JSON, where that was asked for."""
        if self.json:
            print(json.dumps(result))


def parse(kind: Any, arguments: list[str], *, program: str, default: Any = None) -> Any:
    """Options to a dataclass; a wrong one becomes a sentence."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    arguments = _spell_none(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(kind, prog=program, args=arguments, return_unknown_args=True, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{program}: {_unboxed(complaint.getvalue())}; `{program} --help` lists the options") from None
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], _option_names(kind), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"`{program} --help` lists what there is"
        raise UsageError(f"{program} has no option {unknown[0]}; {hint}")
    return parsed


MAY_BE_NONE = ("--max-gradient-norm", "--value-clip-range", "--target-kl", "--clip-range", "--critic-learning-rate", "--clip")


def _spell_none(arguments: list[str]) -> list[str]:
    """``none`` as the parser spells it, for the options that can be switched off."""
    spelt = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if before in MAY_BE_NONE and argument == "none":
            spelt.append("None")
        elif equals and name in MAY_BE_NONE and value == "none":
            spelt.append(f"{name}=None")
        else:
            spelt.append(argument)
    return spelt


def _unboxed(text: str) -> str:
    """The sentence inside the frame that the parser draws around its complaints, without the frame's title."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in text.splitlines()]
    inside = (line.strip("│ ") for line in lines if not line.startswith(("╭", "╰")))
    kept = itertools.takewhile(lambda line: not line.startswith(("For full helptext", "Argument helptext", "──")), inside)
    return " ".join(line for line in kept if line).rstrip(".")


def _option_names(kind: Any) -> list[str]:
    """The options of a command; the parts of its configuration are dataclasses whose prefixes are left out."""
    names: list[str] = []
    hints = get_type_hints(kind)
    for part in fields(kind):
        inner = hints[part.name]
        names += _option_names(inner) if is_dataclass(inner) else [f"--{part.name.replace('_', '-')}"]
    return names


def value_of(option: str, arguments: list[str]) -> str | None:
    """An option's value, before the other options are parsed: the environment decides their defaults."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
    return value


def hyphenated(argument: str) -> str:
    """An option's name with hyphens, however it was spelt: the parser takes both, and everything else reads one."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def given(options: Sequence[str], arguments: list[str]) -> str | None:
    """The first of ``options`` that the arguments name, in either spelling of a switch."""
    named = {argument.split("=")[0] for argument in arguments}
    return next((o for o in options if o in named or o.replace("--", "--no-", 1) in named), None)
