"""Conversations to text, by the model's own chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.alignment.data.examples import Message
from surefoot.alignment.data.reading.rows import identity
from surefoot.alignment.data.reading.tally import Unusable
from surefoot.alignment.data.tokenization.thoughts import (
    Opened,
    begins_with_thoughts,
    continued,
    is_empty_thought,
    opened_at_the_end,
    same_thoughts,
    without_opening,
)
from surefoot.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = tuple[Message, ...]

SHOWN_CHARACTERS = 100
QUESTION: Messages = ({"role": "user", "content": "?"},)
PROBES = ("≺a", "b≻")
"""Two answers that begin and end differently: what the renderings of both share is not part of the answer."""
UNFINISHED_TAG = re.compile(r"[<\[][^>\]]*$")


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
    before: str
    """What ``head`` has and the generation prompt has not, and"""
    opening: str
    """the reverse: it begins an answer, with <think> for instance."""


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
        self._surroundings: dict[object, _Surroundings] = {}
        self.rewritten = 0
        """Answers that the template would write without their beginning, or otherwise than its generation prompt begins them,"""
        self.closed = 0
        """and those before which a thought is closed that the generation prompt opens."""

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
        around, written = self._usual(), None
        if around is not None:
            written = _as_it_stands(whole, prompt, content, around)
        if around is None or written is None:
            around = self._around(messages)
            written = _as_it_stands(whole, prompt, content, around)
        opened = self._opened(prompt, around)
        if written is not None and opened is None:
            empty = begins_with_thoughts(written.content) and is_empty_thought(written.before)
            return Written("", written.content, written.behind) if empty else written
        own = written or _own_text(whole, content, around, opened)
        closed = False
        if opened is not None:
            before, text, closed = continued(opened, own.before, own.content, content)
            own = Written(before, text, own.behind)
        self.closed += closed
        self.rewritten += written is None and not closed
        return own

    @property
    def tail(self) -> str | None:
        """What the template puts behind an answer; None where it refuses a short conversation."""
        usual = self._usual()
        return None if usual is None else usual.tail

    @property
    def opening(self) -> str:
        """What generation prompts open of an answer, such as <think>, up to their end; nothing where they open nothing."""
        usual = self._usual()
        opened = None if usual is None else self._opened(self.prompt(QUESTION), usual)
        return "" if opened is None else opened.tag + opened.white_space

    def repeats(self, token: str) -> bool:
        """Whether a conversation of several turns holds a token, given as text, more than once."""
        talk: Messages = (*QUESTION, {"role": "assistant", "content": PROBES[0]}, *QUESTION)
        try:
            return bool(self._tokenizer.chat_template) and self._render(talk, add_generation_prompt=True).count(token) > 1
        except Unusable:
            return False

    def _opened(self, prompt: str, around: _Surroundings) -> Opened | None:
        """What stands open behind the prompt."""
        if around.opening:
            return opened_at_the_end(around.opening, str(self._tokenizer.chat_template))
        return self._known(opened_at_the_end(prompt), around.tail)

    def _known(self, opened: Opened | None, tail: str) -> Opened | None:
        """The tag, if the template knows how to close it, and does not end turns so: it may be a speaker's name."""
        known = opened is not None and opened.closing in str(self._tokenizer.chat_template) and opened.closing not in tail
        return opened if known else None

    def _usual(self) -> _Surroundings | None:
        """Those of a short conversation: where they fit another one, it need not be rendered with other answers."""
        try:
            return self._around(QUESTION)
        except Unusable:
            return None

    def _around(self, messages: Messages) -> _Surroundings:
        """By rendering two other answers; raises Unusable where the template refuses them."""
        key = identity(messages)
        if key not in self._surroundings:
            prompt = self.prompt(messages)
            one, other = (
                self._render((*messages, {"role": "assistant", "content": probe}), add_generation_prompt=False)
                for probe in PROBES
            )
            head, tail = _shared(one, other), _shared(one[::-1], other[::-1])[::-1]
            shared = _shared(prompt, head)
            if shared != prompt:  # where they part, what is open belongs to what differs, as a whole
                opened = self._known(opened_at_the_end(prompt), tail)
                if opened is not None:
                    shared = shared[: len(prompt) - len(opened.tag + opened.white_space)]
                elif shared != head:
                    shared = UNFINISHED_TAG.sub("", shared)
            self._surroundings[key] = _Surroundings(head, tail, head[len(shared) :], prompt[len(shared) :])
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
    """The answer, where all that the rendering has behind the prompt is the message with what surrounds it.

    The tag that begins its thoughts may stand in the prompt instead, or be put there by the template.
    """
    body = _between(whole, prompt, around.tail)
    if body is None:
        return None
    for before in dict.fromkeys((around.before, "")):
        if body.startswith(before) and _same(body[len(before) :], content):
            text = body[len(before) :].lstrip()
            return Written(body[: len(body) - len(text)], text, around.tail)
    if same_thoughts(prompt, body, content, _same):
        return Written("", body, around.tail)
    return None


def _own_text(whole: str, content: str, around: _Surroundings, opened: Opened | None) -> Written:
    """The message's own text, where the template writes it otherwise than the generation prompt begins it, or without its beginning."""
    kept = _between(whole, around.head, around.tail)
    if kept is None:  # what the template puts before an answer may be nothing before this one
        kept = _between(whole, around.head.removesuffix(around.before), around.tail)
    if kept is None or not (_same(kept, content) or (kept.strip() and content.endswith(kept.strip()))):
        raise Unusable("the chat template does not write its answer as it stands")
    words = bool(around.before.strip())
    belongs = words and _same(kept, content) if around.opening else not words  # else it belongs to a text that is not this one
    before = around.before if belongs else ""
    return Written(before, content if opened is not None else without_opening(around.opening, content), around.tail)


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
