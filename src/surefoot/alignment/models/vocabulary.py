"""Rows of a model's vocabulary against the tokens of its tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase


def no_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that a language model has logits for and that are no token of its tokenizer.

    Vocabularies are often rounded up to a number that is quick to compute with. Were such an id drawn, it would be read as nothing by a
    person or a function, and a reward model with fewer rows could not read it at all.
    """
    rows = model.get_output_embeddings().weight.shape[0]
    return tuple(sorted(set(range(rows)) - set(tokenizer.get_vocab().values())))


def about_no_tokens(ids: tuple[int, ...]) -> str | None:
    """A sentence on the rows that are no token, where there are some."""
    if not ids:
        return None
    some = f"{len(ids):,} rows of the model's vocabulary are" if len(ids) > 1 else "a row of the model's vocabulary is"
    return f"{some} no token of its tokenizer: answers are never drawn from there"
