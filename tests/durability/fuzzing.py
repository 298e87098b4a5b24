"""What random tests of files share: how many examples, mutations of JSON and of bytes, and what every command must do with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from surefoot.cli import main

TIMES = int(os.environ.get("SUREFOOT_FUZZ", "1"))
"""How many times the examples of an ordinary run: SUREFOOT_FUZZ=100 is for an evening."""

strange = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 0, -1])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["\ud800", "\x1b[2J", "\0", "../..", "é" * 3, "NaN", "\ufeff", "a\u2028b", "x" * 5000])
)
json_values = st.recursive(
    strange, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)


def fuzz(examples: int) -> Callable[[Any], Any]:
    """As many examples as continuous integration has time for, times :data:`TIMES`."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def mutated(draw: Any, value: Any) -> Any:
    """The JSON value with one to three of its places dropped, doubled, or put in place of by something else."""
    for _ in range(draw(st.integers(1, 3))):
        value = _mutated_once(draw, value)
    return value


def _mutated_once(draw: Any, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: part for name, part in value.items() if name != key}
        match draw(st.sampled_from(["inside", "inside", "inside", "drop", "rename"])):
            case "drop":
                return rest
            case "rename":
                return rest | {draw(st.text(max_size=4)): value[key]}
            case _:
                return value | {key: _mutated_once(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        match draw(st.sampled_from(["inside", "inside", "drop", "double"])):
            case "drop":
                return value[:place] + value[place + 1 :]
            case "double":
                return [*value, value[place]]
            case _:
                return [*value[:place], _mutated_once(draw, value[place]), *value[place + 1 :]]
    return draw(json_values)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """The bytes with one to three stretches changed, cut out, doubled, or zeroed."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(start + draw(st.integers(1, 16)), len(content))
        middle = draw(st.sampled_from(["other", "gone", "twice", "zero", "rest"]))
        new = {"gone": b"", "twice": content[start:end] * 2, "zero": bytes(end - start), "rest": b""}.get(middle)
        new = draw(st.binary(min_size=end - start, max_size=end - start)) if new is None else new
        content = content[:start] + new + (b"" if middle == "rest" else content[end:])
    return content


def outcome(capsys: Any, *arguments: Any) -> tuple[int, str]:
    """What a command does with files that anything may stand in: its status and what it prints.

    Status 0, or 2 with one sentence as the only thing on standard error; never a traceback, nor anything that steers a terminal.
    """
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status in (0, 2), printed.err
    assert "Traceback" not in printed.err
    for line in (*printed.out.splitlines(), *printed.err.splitlines()):
        assert line.isprintable(), line
    if status == 2:
        (sentence,) = printed.err.splitlines()
        assert sentence.startswith("surefoot: ")
        assert len(sentence) > 30
        return status, sentence
    return status, printed.out
