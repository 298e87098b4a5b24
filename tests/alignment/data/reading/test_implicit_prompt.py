"""Where the prompt of two texts ends that begin alike."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.alignment.data.reading.implicit_prompt import shared_messages, split_texts
from surefoot.alignment.data.reading.tally import Unusable
from tests.alignment.data.helpers import assistant, user

HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how are you?\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (HH + " I am well", HH + " bad", (HH, " I am well", " bad")),
        (HH + " I am well", HH + " I am ill", (HH, " I am well", " I am ill")),
        (HH + "well", HH + "", (HH, "well", "")),
        ("Q: 2+2? A: four", "Q: 2+2? A: five", ("Q: 2+2? A:", " four", " five")),
        ("Is it?\nYes", "Is it?\nNo", ("Is it?\n", "Yes", "No")),
        ("Is it?\n\n  Yes", "Is it?\n\n  No", ("Is it?\n\n ", " Yes", " No")),
        ("the answer is good", "the answer is good enough", ("the answer is", " good", " good enough")),
        ("the answer ", "the answer is", ("the answer", " ", " is")),
    ],
)
def test_the_prompt_ends_at_the_last_turn_or_at_white_space(chosen, rejected, expected):
    assert split_texts(chosen, rejected) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("yes", "no", "share no beginning"),
        ("yesterday", "yes", "share no beginning"),
        (" yes", " no", "share no beginning"),
        ("\nyes", "\nno", "share no beginning"),
        ("", "no", "share no beginning"),
        ("same text", "same text", "identical"),
        (HH + " fine\n\nHuman: good\n\nAssistant: bye", HH + " bad\n\nHuman: oh\n\nAssistant: no", "before their last turn"),
        (HH + " fine", HH + " bad\n\nHuman: oh\n\nAssistant: no", "before their last turn"),
    ],
)
def test_texts_without_a_common_prompt_are_refused(chosen, rejected, reason):
    with pytest.raises(Unusable, match=reason):
        split_texts(chosen, rejected)


words = st.text("ab \n", max_size=12)


@given(words, words, words)
def test_prompt_and_answers_make_up_the_texts_and_no_shared_word_is_split(start, one, other):
    chosen, rejected = start + one, start + other
    try:
        prompt, better, worse = split_texts(chosen, rejected)
    except Unusable:
        return
    assert (prompt + better, prompt + worse) == (chosen, rejected)
    shared = chosen[: sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))]
    assert shared.startswith(prompt)
    assert prompt[-1].isspace() or better[:1] == worse[:1] == " "
    left = shared[len(prompt) :]
    assert not left[1:].strip("ab"), "white space further on would have been the better place"


def test_conversations_share_their_messages_but_for_the_last():
    one = [user("a"), assistant("b"), user("c"), assistant("d")]
    other = [user("a"), assistant("b"), user("c"), assistant("e")]
    assert shared_messages([one, other]) == tuple(one[:3])
    assert shared_messages([one, one]) == tuple(one[:3])
    assert shared_messages([one, one[:2]]) == tuple(one[:1])
    assert shared_messages([[user("x"), assistant("b")], other]) == ()
    assert shared_messages([one]) == tuple(one[:3])
