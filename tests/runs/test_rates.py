"""Which learning rate a run had when, however often it was changed and however far it went back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.runs.rates import RateChange, changes_as_json, changes_from, check_changes, rate_at, read_changes


@given(
    length=st.integers(1, 30),
    resumed=st.lists(st.tuples(st.integers(0, 30), st.sampled_from([None, 0.1, 0.2, 0.3])), max_size=6),
)
def test_the_history_is_that_of_a_run_that_is_simulated_step_by_step(length, resumed):
    """At every step the rate with which the step before it was taken: what a checkpoint there was written under."""
    taken = [0.5] * length  # of step i + 1
    changes, rate = (), 0.5
    for step, wanted in resumed:
        step = min(step, len(taken))
        goes_on = rate if wanted is None else wanted
        changes, rate = changes_from(changes, rate, step, goes_on), goes_on
        taken = taken[:step] + [rate] * (length - step)
        for at in range(1, len(taken) + 1):
            assert rate_at(changes, rate, at) == taken[at - 1]
        check_changes(changes, rate) if taken and step < length else None
    assert read_changes(json.loads(json.dumps(changes_as_json(changes)))) == changes
    steps = [change.step for change in changes]
    assert steps == sorted(set(steps))


def test_without_changes_nothing_is_written():
    assert changes_as_json(()) == {}
    assert read_changes({}) == ()
    assert changes_from((), 0.1, 5, 0.1) == ()


@pytest.mark.parametrize(
    "wrong", [3, [3], {"step": 1}, [{"step": 1}], [{"step": -1, "before": 1, "after": 2}], [{"step": 1, "before": 0, "after": 2}],
              [{"step": 1, "before": 1, "after": 2, "more": 3}]],
)  # fmt: skip
def test_what_is_no_history_is_a_sentence(wrong):
    with pytest.raises(UsageError):
        read_changes({"learning_rate_changes": wrong})


def test_the_last_change_is_the_rate():
    with pytest.raises(UsageError, match="resume --learning-rate"):
        check_changes((RateChange(1, 0.1, 0.2),), 0.3)
