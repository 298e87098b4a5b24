"""config.json read back: what was written, or a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.runs.libraries import changed_versions, library_versions
from surefoot.runs.settings import Settings, part_from, refuse_unknown


@dataclass(frozen=True)
class Part(Settings):
    name: str
    count: int = 1
    rate: float = 0.5
    on: bool = True
    limit: float | None = None
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)


def test_values_come_back_as_they_were():
    part = Part("π x", 3, 2.0, False, 1e-3, "b", ())
    assert part_from(Part, json.loads(json.dumps(vars(part)))) == part
    assert part_from(Part, {"name": "x"}) == Part("x")
    back = part_from(Part, {"name": "x", "rate": 2, "sizes": [4]})
    assert (back.rate, type(back.rate), back.sizes) == (2.0, float, (4,))
    assert part_from(Part, {"name": "x", "limit": None, "of_another_part": 3}) == Part("x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "name is missing, where a printable text is right"),
        ({"name": 3}, "name is 3, where a printable text is right"),
        ({"name": "a\0b"}, "where a printable text is right"),
        ({"name": "\ud800"}, "where a printable text is right"),
        ({"count": 1.5}, "count is 1.5, where a whole number is right"),
        ({"count": True}, "count is True, where a whole number is right"),
        ({"count": None}, "count is None, where a whole number is right"),
        ({"rate": "0.5"}, "rate is '0.5', where a finite number is right"),
        ({"rate": False}, "rate is False, where a finite number is right"),
        ({"rate": float("nan")}, "rate is nan, where a finite number is right"),
        ({"rate": 10**400}, "where a finite number is right"),
        ({"limit": float("inf")}, "limit is inf, where a finite number or null is right"),
        ({"count": float("inf")}, "count is inf, where a whole number is right"),
        ({"count": "1"}, "count is '1', where a whole number is right"),
        ({"on": 2}, "on is 2, where true or false is right"),
        ({"kind": "c"}, "kind is 'c', where one of 'a', 'b' is right"),
        ({"sizes": 3}, "sizes is 3, where a list, each of it a whole number, is right"),
        ({"sizes": [1, "2"]}, "where a list, each of it a whole number, is right"),
        ({"sizes": {"1": 2}}, "where a list, each of it a whole number, is right"),
    ],
)
def test_what_does_not_fit_is_a_sentence(settings, words):
    with pytest.raises(UsageError) as caught:
        part_from(Part, settings if not settings or "name" in settings else {"name": "x"} | settings)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=4,
)


@given(settings=st.dictionaries(st.sampled_from(list(Part.__dataclass_fields__)), ANY))
def test_anything_is_a_sentence_or_what_it_says(settings):
    try:
        part = part_from(Part, settings)
    except UsageError:
        return
    for name, value in settings.items():
        got = getattr(part, name)
        assert got == (tuple(value) if name == "sizes" else value)
        assert isinstance(got, bool) == (name == "on")


def test_unknown_names_are_named():
    refuse_unknown({"rate": 1}, ["rate", "count"])
    with pytest.raises(UsageError, match="there is no setting 'rat'; did you mean rate"):
        refuse_unknown({"rat": 1}, ["rate", "count"])
    with pytest.raises(UsageError, match="there is no setting 'zzz'; there are rate, count"):
        refuse_unknown({"zzz": 1}, ["rate", "count"])


def test_versions_that_changed_are_words():
    import numpy

    now = library_versions(("numpy", "no-such-distribution"))
    assert now == {"numpy": numpy.__version__}
    assert changed_versions(now, now) == ""
    assert changed_versions({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "3", "d": "4"}) == (
        "b 3 in place of 2, c none in place of 3, d 4 in place of none"
    )
