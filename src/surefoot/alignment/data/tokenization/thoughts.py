"""What a generation prompt opens of an answer, such as <think>, and how the answer goes on behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from surefoot.alignment.data.reading.tally import Unusable

TAG = re.compile(r"([<\[])(/?)(\w[\w:.-]*)([>\]])$")
"""A tag at the end of a text: <think>, [/THINK]."""
LEADING_TAG = re.compile(r"\s*([<\[])(\w[\w:.-]*)([>\]])")
EMPTY_THOUGHT = re.compile(r"\s*([<\[])(\w[\w:.-]*)([>\]])\s*\1/\2\3\s*")
SPECIAL = re.compile(r"<\|(\w*)(START|BEGIN|start|begin)(\w*)\|>$")
"""A special token at the end of a text that begins something: <|START_THINKING|>."""
ENDS = {"START": "END", "BEGIN": "END", "start": "end", "begin": "end"}
MARK = re.compile(r"[<\[][^<>\[\]]*[>\]]")


@dataclass(frozen=True)
class Opened:
    """What stands open where an answer begins."""

    tag: str
    closing: str
    white_space: str
    """Between the tag and the end of the prompt."""


def opened_at_the_end(text: str, source: str = "") -> Opened | None:
    """What a text opens at its end: a tag, or a special token.

    Args:
        text: a prompt, or the end of one.
        source: the chat template, which knows the counterpart of such a token; special tokens are passed over where it is not given.
    """
    begun = text.rstrip()
    white_space = text[len(begun) :]
    if (tag := TAG.search(begun)) is not None:
        return None if tag[2] else Opened(tag[0], f"{tag[1]}/{tag[3]}{tag[4]}", white_space)
    if source and (special := SPECIAL.search(begun)) is not None:
        closing = f"<|{special[1]}{ENDS[special[2]]}{special[3]}|>"
        return Opened(special[0], closing, white_space) if closing in source else None
    return None


def continued(opened: Opened, before: str, content: str, message: str) -> tuple[str, str, bool]:
    """How an answer goes on behind what its prompt opened.

    Args:
        opened: at the end of the prompt.
        before: what the chat template writes before the answer's text.
        content: the answer's text, as the template writes it.
        message: the same as the data have it.

    Returns:
        what stands before the text, the text without the opening that it repeats, and whether it had to be closed before it.
    """
    if message.startswith(opened.tag):
        return "", content.removeprefix(opened.tag + opened.white_space).removeprefix(opened.tag), False
    if opened.closing in content:  # as a model writes it behind such a prompt
        return "", content, False
    if opened.closing in before:
        return before.removeprefix(opened.tag), content, False
    line = "\n" if TAG.search(opened.tag) is not None else ""  # tags stand in lines of their own, special tokens need none
    first = line if opened.white_space.endswith("\n") else 2 * line
    return f"{first}{opened.closing}{2 * line}{before}", content, True


def without_opening(opening: str, content: str) -> str:
    """An answer's text without what it repeats of an opening that nobody knows how to close.

    Raises:
        Unusable: the answer lacks an opening that is one mark alone, such as a token that begins a thought. Two marks are a beginning
            and an end, and words need no end.
    """
    mark = opening.strip()
    if mark and content.startswith(mark):
        return content[len(mark) :].removeprefix(opening[len(opening.rstrip()) :])
    tag = TAG.search(mark)
    if MARK.fullmatch(mark) and (tag is None or not tag[2]):
        raise Unusable(f"the chat template's generation prompt begins an answer with {mark!r}, which this one lacks")
    return content


def begins_with_thoughts(content: str) -> bool:
    """Whether a text begins with a tag that it closes."""
    tag = LEADING_TAG.match(content)
    return tag is not None and _closing(tag) in content


def is_empty_thought(text: str) -> bool:
    """Whether a text is a tag that is closed at once."""
    return EMPTY_THOUGHT.fullmatch(text) is not None


def same_thoughts(prompt: str, body: str, content: str, same: Callable[[str, str], bool]) -> bool:
    """Whether a rendered answer with thoughts is the message, but for the tag that begins them.

    The prompt may end with it, or the template may write it where the message does not.
    """
    tag = LEADING_TAG.match(content)
    if tag is not None and prompt.rstrip().endswith(tag[0]) and same(body, content[tag.end() :]):
        return True
    tag = LEADING_TAG.match(body)
    return tag is not None and _closing(tag) in content and same(body[tag.end() :], content)


def _closing(tag: re.Match[str]) -> str:
    return f"{tag[1]}/{tag[2]}{tag[3]}"
