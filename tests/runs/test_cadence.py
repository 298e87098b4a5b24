"""When something is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.runs.cadence import Cadence


@given(every=st.integers(1, 50), first=st.integers(0, 100), moves=st.lists(st.integers(0, 60), max_size=30))
def test_due_once_whenever_a_multiple_is_reached_or_passed(every, first, moves):
    cadence = Cadence.parse(str(every))
    cadence.begin(first)
    step = first
    for move in moves:
        passed = any(n % every == 0 for n in range(step + 1, step + move + 1))
        step += move
        assert cadence.due(step) == passed
        assert not cadence.due(step)


@given(minutes=st.integers(1, 5), waits=st.lists(st.floats(0, 400), max_size=20))
def test_due_after_so_many_minutes(minutes, waits):
    now = [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surefoot.runs.cadence.time.monotonic", lambda: now[0])
        cadence = Cadence.parse(f"{minutes}m")
        cadence.begin(0)
        last = now[0]
        for step, wait in enumerate(waits):
            now[0] += wait
            due = now[0] - last >= 60 * minutes
            assert cadence.due(step) == due
            last = now[0] if due else last


@pytest.mark.parametrize(
    ("text", "steps", "minutes"), [("500", 500, None), ("100_000", 100_000, None), ("1,000", 1000, None), ("10m", None, 10)]
)
def test_spellings(text, steps, minutes):
    cadence = Cadence.parse(text)
    assert (cadence.steps, cadence.minutes) == (steps, minutes)
    assert Cadence.parse(None) is None


@pytest.mark.parametrize("text", ["", "0", "0m", "m", "-5", "1.5", "10s", "10 m", "1e3", "nan", "٣", "9" * 19, "5\n"])
def test_anything_else_is_a_sentence(text):
    with pytest.raises(
        UsageError, match="--checkpoint-every must be a number of steps, such as 100000, or of minutes, such as 10m"
    ):
        Cadence.parse(text)
