"""Conversations to text, by the model's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surefoot.alignment.data.examples import Message
from surefoot.alignment.data.reading.rows import identity
from surefoot.alignment.data.reading.tally import Unusable
from surefoot.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHOWN_CHARACTERS = 100


class ChatTemplate:
    """Renders the prompt as the model sees it when it generates, and the answer as what follows that.

    The prompt is the template's text for the messages so far, with its generation prompt. The answer is what the text of the
    whole conversation has behind that. Some templates write an earlier answer differently from what their generation prompt
    asks for (without its thoughts, say), so that the one text does not begin with the other: the answer is then the message's
    own text, with what the template puts behind it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._prompts: dict[object, str] = {}
        self.rewritten = 0
        """Answers that the template would write differently from what its generation prompt begins."""

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The text before the answer.

        Raises:
            UsageError: the tokenizer has no chat template.
            Unusable: the template refuses these messages.
        """
        key = identity(messages)
        if key not in self._prompts:
            self._prompts[key] = self._render(messages, add_generation_prompt=True)
        return self._prompts[key]

    def answer(self, messages: tuple[Message, ...], answer: tuple[Message, ...]) -> str:
        """The text of an answer, with what the template puts behind it.

        Raises:
            Unusable: the template refuses these messages, or leaves the answer out.
        """
        prompt = self.prompt(messages)
        whole = self._render((*messages, *answer), add_generation_prompt=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        content = answer[-1]["content"].strip()
        place = whole.rfind(content)
        if place < 0:
            raise Unusable("the chat template does not write its answer as it stands")
        self.rewritten += 1
        return whole[place:]

    def _render(self, messages: tuple[Message, ...], *, add_generation_prompt: bool) -> str:
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


def template_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """What identifies a chat template: its source, and what it writes for a short conversation.

    The second part is there because templates may write the date.
    """
    if not tokenizer.chat_template:
        return ""
    probe: tuple[Message, ...] = ({"role": "user", "content": "?"},)
    try:
        written = ChatTemplate(tokenizer).prompt(probe)
    except Unusable as error:
        written = str(error)
    return f"{tokenizer.chat_template}\n{written}"
