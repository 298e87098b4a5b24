"""From arguments to dataclasses, with a sentence for every mistake."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from surefoot.errors import DONE as DONE
from surefoot.errors import FAILED as FAILED
from surefoot.errors import WRONG_INPUT as WRONG_INPUT
from surefoot.errors import UsageError


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: bool = False
    """Print one JSON object as the last line of standard output."""
    quiet: bool = False
    """Print no progress; warnings are printed all the same."""

    def give(self, result: dict[str, Any]) -> None:
        """The result as JSON, where that was asked for."""
        if self.json:
            print(json.dumps(result))


def parse(kind: Any, arguments: list[str], *, program: str, default: Any = None) -> Any:
    """Options to a dataclass; a wrong one becomes a sentence."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    _refuse_twice(kind, arguments, program=program)
    arguments = _spell_switches(_spell_none(arguments, _may_be_none(kind)), _may_be_left_open(kind))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(kind, prog=program, args=arguments, return_unknown_args=True, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{program}: {_unboxed(complaint.getvalue())}; `{program} --help` lists the options") from None
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], [name for name, _ in _options(kind)], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"`{program} --help` lists what there is"
        raise UsageError(f"{program} has no option {unknown[0]}; {hint}")
    return parsed


def parse_configuration(configuration: Any, arguments: list[str], *, program: str, summary: str) -> tuple[Any, Output]:
    """A run's configuration from its command line: the options of its parts side by side, with their values as defaults.

    Args:
        configuration: has ``parts()``, its choices by name, and ``idle_options()``, those that nothing reads and why.
        arguments: what the user wrote.
        program: how the command is called.
        summary: what it does, for its help.

    Returns:
        the configuration with the parts that the arguments name replaced, and what is printed.

    Raises:
        UsageError: an option is wrong, or would do nothing.
    """
    parts = {**configuration.parts(), "output": Output()}
    members = [(name, tyro.conf.OmitArgPrefixes[type(part)], field(default=part)) for name, part in parts.items()]
    kind = make_dataclass("Options", members, frozen=True)
    kind.__doc__ = summary
    chosen = parse(kind, arguments, program=program, default=kind(**parts))
    configuration = replace(configuration, **{name: getattr(chosen, name) for name in configuration.parts()})
    for name, reason in configuration.idle_options().items():
        if option := given((f"--{name.replace('_', '-')}",), arguments):
            raise UsageError(f"{option} would do nothing: {reason}; leave it out")
    return configuration, chosen.output


def _refuse_twice(kind: Any, arguments: list[str], *, program: str) -> None:
    """Raise UsageError where an option of several values is given twice, the first values of which would be dropped."""
    for name, hint in _options(kind):
        several = any(get_origin(member) is tuple for member in (hint, *get_args(hint)))
        if several and sum(argument.split("=")[0] == name for argument in arguments) > 1:
            raise UsageError(f"{program}: {name} is given twice; give all its values after one, as in {name} A B")


def _spell_none(arguments: list[str], names: frozenset[str]) -> list[str]:
    """``none`` as the parser spells it, for the options that can be switched off."""
    spelt = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if before in names and argument == "none":
            spelt.append("None")
        elif equals and name in names and value == "none":
            spelt.append(f"{name}=None")
        else:
            spelt.append(argument)
    return spelt


def _spell_switches(arguments: list[str], names: frozenset[str]) -> list[str]:
    """``--switch`` and ``--no-switch`` as the parser spells them, for switches that have a third value."""
    spelt = []
    for argument in arguments:
        if argument in names:
            spelt.append(f"{argument}=True")
        elif (name := argument.replace("--no-", "--", 1)) in names:
            spelt.append(f"{name}=False")
        else:
            spelt.append(argument)
    return spelt


def _may_be_left_open(kind: Any) -> frozenset[str]:
    """Switches that are on, off or None."""
    return frozenset(name for name, hint in _options(kind) if set(get_args(hint)) == {bool, type(None)})


def _may_be_none(kind: Any) -> frozenset[str]:
    """Options whose value is a number or None; of a text, none might be the value."""
    kinds = ((name, set(get_args(hint))) for name, hint in _options(kind))
    return frozenset(name for name, of in kinds if type(None) in of and of & {int, float})


def _unboxed(text: str) -> str:
    """The sentence inside the frame that the parser draws around its complaints, without the frame's title."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in text.splitlines()]
    inside = (line.strip("│ ") for line in lines if not line.startswith(("╭", "╰")))
    kept = itertools.takewhile(lambda line: not line.startswith(("For full helptext", "Argument helptext", "──")), inside)
    return " ".join(line for line in kept if line).rstrip(".")


def _options(kind: Any) -> Iterator[tuple[str, Any]]:
    """The options of a command with their types; the parts of its configuration are dataclasses whose prefixes are left out."""
    hints = get_type_hints(kind)
    for part in fields(kind):
        inner = hints[part.name]
        if is_dataclass(inner):
            yield from _options(inner)
        else:
            yield f"--{part.name.replace('_', '-')}", inner


def value_of(option: str, arguments: list[str]) -> str | None:
    """An option's value, before the other options are parsed: the environment decides their defaults."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
    return value


def given(options: Sequence[str], arguments: list[str]) -> str | None:
    """The first of ``options`` that the arguments name, in either spelling of a switch."""
    named = {argument.split("=")[0] for argument in arguments}
    return next((o for o in options if o in named or o.replace("--", "--no-", 1) in named), None)
