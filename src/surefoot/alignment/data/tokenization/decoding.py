"""From sampled ids back to the text that a reader expects behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from surefoot.alignment.data.prompts import Prompt
    from surefoot.alignment.data.tokenization.ends import AnswerEnds


def sampled_texts(
    prompt: Prompt,
    answers: Sequence[np.ndarray],
    finished: Sequence[bool] | np.ndarray,
    tokenizer: PreTrainedTokenizerFast,
    ends: AnswerEnds,
    *,
    special_tokens: bool = False,
) -> list[str]:
    """The text of answers as they were sampled, without what ended those that are finished (:func:`answer_texts`).

    Args:
        prompt: what is answered.
        answers: token ids, the one that ended an answer included.
        finished: which of them ended by themselves.
        tokenizer: of the model that answered.
        ends: of its answers.
        special_tokens: whether special tokens within an answer are text as well, or left out.
    """
    conversation = not isinstance(prompt.text, str)
    read = [ends.without(ids, conversation=conversation) if end else ids for ids, end in zip(answers, finished, strict=True)]
    return answer_texts(prompt.ids, read, tokenizer, conversation=conversation, special_tokens=special_tokens)


def answer_texts(
    prompt: np.ndarray,
    answers: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    *,
    conversation: bool,
    special_tokens: bool = False,
) -> list[str]:
    """The text of each answer.

    It is what the decoded whole has behind the decoded prompt, so that prompt and answer, put together, are the whole text: decoded
    alone, an answer loses its first space with tokenizers of SentencePiece's kind and with those that split at white space. Of a
    conversation it is the content of a message, which has no white space around it.

    Args:
        prompt: token ids.
        answers: token ids of its answers, without what ended them: not every such token is special.
        tokenizer: of the model that answered.
        conversation: whether the prompt is one.
        special_tokens: whether special tokens are text as well, or left out.
    """
    begun = prompt.tolist()
    sequences = [begun, *(begun + answer.tolist() for answer in answers), *(answer.tolist() for answer in answers)]
    before, *decoded = tokenizer.backend_tokenizer.decode_batch(sequences, skip_special_tokens=not special_tokens)
    behind = [
        whole[len(before) :] if whole.startswith(before) else alone  # a word that the answer goes on with may look different
        for whole, alone in zip(decoded[: len(answers)], decoded[len(answers) :], strict=True)
    ]
    return [text.strip() for text in behind] if conversation else behind
