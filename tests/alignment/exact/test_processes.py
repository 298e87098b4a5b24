"""Runs in processes of their own: results by name, errors where they were asked for, and nothing inherited."""

from __future__ import annotations

import os
import signal
import time

import pytest

from surefoot.alignment.exact.processes import each_in_its_own_process
from surefoot.errors import RunError, UsageError


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def wait_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail() -> None:
    raise UsageError("give a number")


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_call_has_its_result_and_its_process():
    got = dict(each_in_its_own_process({name: (where, (i,)) for i, name in enumerate("abcde")}, processes=2))
    assert {name: number for name, (number, _) in got.items()} == dict(zip("abcde", range(5), strict=True))
    processes = {process for _, process in got.values()}
    assert len(processes) == 5
    assert os.getpid() not in processes


def test_results_come_when_they_are_ready_and_several_at_once():
    work = {"long": (wait_for, (1.5,)), "short": (wait_for, (0.0,)), "last": (wait_for, (0.0,))}
    assert [name for name, _ in each_in_its_own_process(work, processes=2)] == ["short", "last", "long"]
    assert [name for name, _ in each_in_its_own_process(work, processes=1)] == ["long", "short", "last"]


def test_an_error_is_raised_where_it_was_asked_for():
    with pytest.raises(UsageError, match="give a number"):
        list(each_in_its_own_process({"a": (fail, ())}, processes=1))


def test_a_process_that_is_killed_is_an_error_of_one_sentence():
    with pytest.raises(RunError, match="run a ended without a result, with exit status -9"):
        list(each_in_its_own_process({"a": (vanish, ())}, processes=1))
