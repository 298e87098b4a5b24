"""Holding out examples, by prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.splitting import split_examples
from surefoot.errors import UsageError


def examples(prompts):
    return [
        Example(i, np.array([prompt, 3], dtype=np.int32), (np.array([i], dtype=np.int32),)) for i, prompt in enumerate(prompts)
    ]


@given(
    st.lists(st.integers(0, 8), min_size=2, max_size=40).filter(lambda prompts: len(set(prompts)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 10),
)
def test_a_prompt_is_never_on_both_sides_and_nothing_is_lost(prompts, share, seed):
    whole = examples(prompts)
    train, held_out = split_examples(whole, share=share, seed=seed)
    sides = [{example.prompt.tobytes() for example in side} for side in (train, held_out)]
    assert train
    assert held_out
    assert not sides[0] & sides[1]
    assert sorted(example.number for example in (*train, *held_out)) == list(range(len(prompts)))
    assert [example.number for example in train] == sorted(example.number for example in train)
    rarest = min(map(prompts.count, prompts))
    assert len(held_out) <= max(round(share * len(prompts)), rarest)


def test_the_share_is_met_where_prompts_differ():
    whole = examples(range(200))
    train, held_out = split_examples(whole, share=0.1, seed=0)
    assert (len(train), len(held_out)) == (180, 20)
    again = split_examples(whole, share=0.1, seed=0)[1]
    other = split_examples(whole, share=0.1, seed=1)[1]
    assert [e.number for e in again] == [e.number for e in held_out] != [e.number for e in other]
    assert [e.number for e in held_out] != list(range(20))


def test_no_share_holds_out_nothing():
    assert split_examples(examples([1, 1]), share=0, seed=0)[1] == []


@pytest.mark.parametrize(
    ("prompts", "share", "why"), [([1, 2], 1.0, "below 1, but is 1.0"), ([1, 2], -0.1, "from 0"), ([1, 1], 0.5, "same prompt")]
)
def test_what_cannot_be_held_out_is_refused(prompts, share, why):
    with pytest.raises(UsageError, match=why):
        split_examples(examples(prompts), share=share, seed=0)
