r"""The prompt of two texts that begin alike: where it ends.

A text cannot say where its prompt ends, and the longest common beginning is not the answer: two answers may begin with the
same words, which are then part of both answers. So the cut is made, in this order:

1. behind the last "\n\nAssistant:" that lies in the common beginning, as in Anthropic's data of helpfulness and harmlessness;
2. else at the last white space of the common beginning, never within a word; a space goes with the answer, as byte-level
   tokenizers write words, a line's end stays with the prompt.

The second rule counts words with which both answers begin as prompt. Data that have an explicit prompt do not need it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from surefoot.alignment.data.examples import Message
from surefoot.alignment.data.reading.tally import IDENTICAL, Unusable

TURN_MARKER = "\n\nAssistant:"


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen answer and rejected answer.

    Raises:
        Unusable: the texts are the same, share no beginning at whose end one could cut, or part before their last turn, so
            that they answer different prompts.
    """
    if chosen == rejected:
        raise Unusable(IDENTICAL)
    shared = chosen[: _shared_length(chosen, rejected)]
    marker = shared.rfind(TURN_MARKER)
    if marker >= 0:
        cut = marker + len(TURN_MARKER)
    else:
        space = max((i for i, character in enumerate(shared) if character.isspace()), default=-1)
        cut = space if space >= 0 and shared[space] == " " else space + 1
    prompt, answers = chosen[:cut], (chosen[cut:], rejected[cut:])
    if not prompt.strip():
        raise Unusable("chosen and rejected share no beginning that could be the prompt")
    if any(TURN_MARKER in answer for answer in answers):
        raise Unusable("chosen and rejected part before their last turn, so they answer different prompts")
    return prompt, *answers


def _shared_length(one: str, other: str) -> int:
    """Characters with which both begin, by bisection: comparing slices is much faster than comparing characters."""
    return bisect_left(range(1, min(len(one), len(other)) + 1), True, key=lambda n: one[:n] != other[:n])


def shared_messages(conversations: Sequence[Sequence[Message]]) -> tuple[Message, ...]:
    """The messages with which all conversations begin; each keeps at least its last one for the answer."""
    shared = []
    for messages in zip(*(conversation[:-1] for conversation in conversations), strict=False):
        if any(message != messages[0] for message in messages):
            break
        shared.append(messages[0])
    return tuple(shared)
