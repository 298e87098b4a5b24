"""From sampled ids back to the text that a reader expects behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def answer_texts(
    prompt: np.ndarray, answers: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerFast, *, conversation: bool
) -> list[str]:
    """The text of each answer, without special tokens.

    It is what the decoded whole has behind the decoded prompt, so that prompt and answer, put together, are the whole text: decoded
    alone, an answer loses its first space with tokenizers of SentencePiece's kind and with those that split at white space. Of a
    conversation it is the content of a message, which has no white space around it.

    Args:
        prompt: token ids.
        answers: token ids of its answers, with or without EOS.
        tokenizer: of the model that answered.
        conversation: whether the prompt is one.
    """
    begun = prompt.tolist()
    sequences = [begun, *(begun + answer.tolist() for answer in answers), *(answer.tolist() for answer in answers)]
    before, *decoded = tokenizer.backend_tokenizer.decode_batch(sequences, skip_special_tokens=True)
    behind = [
        whole[len(before) :] if whole.startswith(before) else alone  # a word that the answer goes on with may look different
        for whole, alone in zip(decoded[: len(answers)], decoded[len(answers) :], strict=True)
    ]
    return [text.strip() for text in behind] if conversation else behind
