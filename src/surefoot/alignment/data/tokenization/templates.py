"""Conversations to text, by the model's own chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.alignment.data.examples import Message
from surefoot.alignment.data.reading.rows import identity
from surefoot.alignment.data.reading.tally import Unusable
from surefoot.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = tuple[Message, ...]

SHOWN_CHARACTERS = 100
QUESTION: Messages = ({"role": "user", "content": "?"},)
PROBES = ("≺a", "b≻")
"""Two answers that begin and end differently: what the renderings of both share is not part of the answer."""
TAG = re.compile(r"([<\[])(/?)(\w[\w:.-]*)([>\]])$")
"""A tag at the end of a text: <think>, [/THINK]."""
BRACKETS = (">", "]", "}", "▷")
"""With one of them end the marks that open a thought; words, as a colon behind a name, open nothing."""
UNFINISHED_TAG = re.compile(r"[<\[][^>\]]*$")
NOT_AS_IT_STANDS = "the chat template does not write its answer as it stands"


@dataclass(frozen=True)
class Written:
    """An answer as it follows a generation prompt."""

    before: str
    """What the template puts before the message's text."""
    content: str
    """The message's text."""
    behind: str
    """What the template puts behind it."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.before + self.content + self.behind


@dataclass(frozen=True)
class _Surroundings:
    """What a rendered conversation has around its last message's text, whatever that is."""

    head: str
    tail: str
    before: str | None
    """What ``head`` has behind the generation prompt; None where it does not begin with it."""
    opening: str
    """What the generation prompt has and ``head`` has not: it begins an answer, with <think> for instance."""


class ChatTemplate:
    """Renders the prompt as the model sees it when it generates, and the answer as what follows that.

    The prompt is the template's text for the messages so far, with its generation prompt. The answer is what the text of the
    whole conversation has behind that. Where a message stands in a rendering is found by what surrounds it: what the renderings of two
    other answers share, from both ends. The message's text is never searched for, since it may occur elsewhere too, for
    instance in the token that ends the answer. What lies between must be the message, character for character up to white space.

    Some templates write an answer differently from what their generation prompt asks for: they leave its thoughts out, or do not open
    a thought where the generation prompt does. The answer is then the message's own text, without the opening that it repeats, and
    with what the template puts behind it; before an answer without thoughts, the thought is closed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._prompts: dict[object, str] = {}
        self._surroundings: dict[object, _Surroundings | None] = {}
        self.rewritten = 0
        """Answers that the template would write without their beginning, or otherwise than its generation prompt begins them."""
        self.closed = 0
        """Answers before which a thought is closed that the generation prompt opens."""

    def prompt(self, messages: Messages) -> str:
        """The text before the answer.

        Raises:
            UsageError: the tokenizer has no chat template.
            Unusable: the template refuses these messages.
        """
        key = identity(messages)
        if key not in self._prompts:
            self._prompts[key] = self._render(messages, add_generation_prompt=True)
        return self._prompts[key]

    def answer(self, messages: Messages, answer: Messages) -> Written:
        """The text of an answer, with what the template puts before and behind it.

        Raises:
            Unusable: the template refuses these messages, changes the answer, or begins answers with what this one lacks.
        """
        prompt = self.prompt(messages)
        whole = self._render((*messages, *answer), add_generation_prompt=False)
        content = answer[-1]["content"].strip()
        usual = self._usual()
        if usual is not None and (written := _as_it_stands(whole, prompt, content, usual)) is not None:
            return written
        own = self._around(messages)
        if own is None:
            raise Unusable(NOT_AS_IT_STANDS)
        if (written := _as_it_stands(whole, prompt, content, own)) is not None:
            return written
        kept = _between(whole, own.head, own.tail)
        if kept is None or not (_same(kept, content) or (kept.strip() and content.endswith(kept.strip()))):
            raise Unusable(NOT_AS_IT_STANDS)
        before, content = self._behind_opening(own.opening, content)
        self.rewritten += 1
        return Written(before, content, own.tail)

    @property
    def tail(self) -> str | None:
        """What the template puts behind an answer; None where it refuses a short conversation."""
        usual = self._usual()
        return None if usual is None else usual.tail

    @property
    def opening(self) -> str:
        """The tag with which the generation prompt begins an answer and the template does not, such as <think>; else nothing."""
        usual = self._usual()
        tag = None if usual is None else TAG.search(usual.opening.strip())
        return usual.opening if usual is not None and tag is not None and not tag[2] else ""

    def repeats(self, token: str) -> bool:
        """Whether a conversation of several turns holds a token, given as text, more than once."""
        talk: Messages = (*QUESTION, {"role": "assistant", "content": PROBES[0]}, *QUESTION)
        try:
            return bool(self._tokenizer.chat_template) and self._render(talk, add_generation_prompt=True).count(token) > 1
        except Unusable:
            return False

    def _behind_opening(self, opening: str, content: str) -> tuple[str, str]:
        """What must stand before an answer's text behind what the generation prompt opens, and the text without what it repeats."""
        mark = opening.strip()
        tag = TAG.search(mark)
        for repeated in (mark, tag[0] if tag is not None else ""):
            if repeated and content.startswith(repeated):
                white_space = opening[len(opening.rstrip()) :]
                return "", content[len(repeated) :].removeprefix(white_space)
        if not mark or mark[-1] not in BRACKETS or (tag is not None and tag[2]):  # nothing that must be closed is open
            return "", content
        if tag is None:
            raise Unusable(f"the chat template's generation prompt begins an answer with {mark!r}, which this one lacks")
        closing = f"{tag[1]}/{tag[3]}{tag[4]}"
        if closing in content:  # the answer of a model, which continues what was opened
            return "", content
        self.closed += 1
        return f"{'' if opening.endswith(chr(10)) else chr(10)}\n{closing}\n\n", content

    def _usual(self) -> _Surroundings | None:
        """Those of a short conversation: where they fit another one, it need not be rendered with other answers."""
        try:
            return self._around(QUESTION)
        except Unusable:
            return None

    def _around(self, messages: Messages) -> _Surroundings | None:
        """None where the template refuses the two answers that are needed to see it."""
        key = identity(messages)
        if key not in self._surroundings:
            self._surroundings[key] = None
            prompt = self.prompt(messages)
            one, other = (
                self._render((*messages, {"role": "assistant", "content": probe}), add_generation_prompt=False)
                for probe in PROBES
            )
            head, tail = _shared(one, other), _shared(one[::-1], other[::-1])[::-1]
            shared = _shared(prompt, head)
            if shared not in (prompt, head):  # where they part within a tag, that tag belongs to what differs
                shared = UNFINISHED_TAG.sub("", shared)
            before = head[len(prompt) :] if head.startswith(prompt) else None
            self._surroundings[key] = _Surroundings(head, tail, before, prompt[len(shared) :])
        return self._surroundings[key]

    def _render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        if not self._tokenizer.chat_template:
            raise UsageError(
                "these data are conversations, and the tokenizer has no chat template to write them as text; take a model"
                " that has one, or data in which prompt and answers are texts"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except Exception as error:  # a template is a program of the model's makers, and may raise anything
            said = " ".join(str(error).split())[:SHOWN_CHARACTERS] or type(error).__name__
            raise Unusable(f"the chat template refuses it: {said}") from error


def _as_it_stands(whole: str, prompt: str, content: str, around: _Surroundings) -> Written | None:
    """The answer, where all that the rendering has behind the prompt is the message with what surrounds it."""
    body = _between(whole, prompt, around.tail)
    if body is None:
        return None
    for before in dict.fromkeys((around.before or "", "")):
        if body.startswith(before) and _same(body[len(before) :], content):
            text = body[len(before) :].lstrip()
            return Written(body[: len(body) - len(text)], text, around.tail)
    return None


def _between(whole: str, head: str, tail: str) -> str | None:
    """What a text has between its two ends; None where it has others."""
    end = len(whole) - len(tail)
    return whole[len(head) : end] if whole.startswith(head) and whole.endswith(tail) and len(head) <= end else None


def _shared(one: str, other: str) -> str:
    """What two texts begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differ, min(len(one), len(other)))]


def _same(one: str, other: str) -> bool:
    """Whether two texts differ in white space at most."""
    return one.strip() == other.strip() or "".join(one.split()) == "".join(other.split())


def template_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """What identifies a chat template: its source, and what it writes for a short conversation.

    The second part is there because templates may write the date.
    """
    if not tokenizer.chat_template:
        return ""
    try:
        written = ChatTemplate(tokenizer).prompt(QUESTION)
    except Unusable as error:
        written = str(error)
    return f"{tokenizer.chat_template}\n{written}"
