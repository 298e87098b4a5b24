"""Prompts for a policy to answer: from a file to token ids, with what reward functions may want to know beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.alignment.data import cache
from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.examples import Row, Text
from surefoot.alignment.data.loading import encode_rows, read_rows
from surefoot.alignment.data.notices import notices_of
from surefoot.alignment.data.reading.sources import open_source
from surefoot.alignment.data.reading.tally import Tally
from surefoot.alignment.data.tokenization.tokens import tokenise
from surefoot.errors import UsageError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from surefoot.alignment.likelihood.packing import Group


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is to be answered."""

    number: int
    """Which row of the source it was, counted from one."""
    ids: np.ndarray
    """Token ids, int32, as :class:`~surefoot.alignment.data.examples.Example` has them: with the BOS that the tokenizer or the chat
    template puts, and the template's generation prompt."""
    text: Text
    """As the data have it: a text, or the messages of a conversation."""
    columns: Mapping[str, Any]
    """The row's other columns as they stand in the source, for reward functions."""


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts, and what the user and the model's card should know of them."""

    prompts: list[Prompt]
    """In the order of the rows; prompts with the same ids share their array."""
    notices: tuple[str, ...]
    """Sentences for the user."""
    fingerprint: str
    """SHA-256 over content, format, limits, tokenizer and template, in hexadecimal."""
    description: dict[str, Any]
    """Counts: where the data come from, rows, used and not used by reason, repeated prompts, lengths."""


def load_prompts(configuration: DataConfiguration, tokenizer: PreTrainedTokenizerFast, *, longest_answer: int) -> LoadedPrompts:
    """All prompts that the data hold and that leave room for an answer.

    Any format will do. Of data with answers, the prompts alone are used, and answers are columns like all others; a conversation
    whose last message is not the assistant's is a prompt as a whole. Prompts that occur several times stay as often as they occur.

    Args:
        configuration: which data, and how long prompt and answer may be together.
        tokenizer: of the policy.
        longest_answer: tokens that each prompt must leave for its answer.

    Raises:
        UsageError: the data are not there, are broken, have other columns than their format needs, or hold no prompt that can be
            used; they are conversations, and the tokenizer has no chat template; or answers are as long as all may be.
    """
    limit = configuration.max_length
    require(
        longest_answer < limit,
        f"answers of up to {longest_answer:,} tokens leave no room for a prompt within --max-length {limit:,}; raise that, or lower"
        " the former",
    )
    source = open_source(configuration.data, configuration.split)
    reading = read_rows(source, configuration, purpose="prompts")
    examples, said = encode_rows(reading, source, configuration, tokenizer, room=longest_answer)
    texts = {row.number: row.prompt for row in reading.rows}
    prompts = [
        Prompt(example.number, example.prompt, texts[example.number], _columns(reading.fields[example.number]))
        for example in examples
    ]
    key = cache.key_of(source.checksum, configuration, tokenizer, purpose=f"prompts with answers of {longest_answer}")
    description = {"source": source.name, **said}
    return LoadedPrompts(prompts, (*source.notices, *notices_of(description)), key, description)


def prompt_of(text: Text, tokenizer: PreTrainedTokenizerFast, *, max_length: int, longest_answer: int) -> Prompt:
    """One prompt that stands in no file.

    Args:
        text: a text, or the messages of a conversation.
        tokenizer: of the policy.
        max_length: tokens that prompt and answer may have together.
        longest_answer: tokens that it must leave for its answer.

    Raises:
        UsageError: it cannot be used.
    """
    tally = Tally()
    examples = tokenise([Row(1, text, ())], tokenizer, tally, max_length=max_length, room=longest_answer).examples
    for reason in tally.counts():
        raise UsageError(f"the prompt cannot be used: {reason}")
    return Prompt(1, examples[0].prompt, text, {})


def longest_groups(prompts: Sequence[np.ndarray], *, longest_answer: int) -> list[Group]:
    """The two longest prompts with two answers each as long as any can be, of the prompts' own tokens: for a likelihood to be checked on.

    Args:
        prompts: token ids.
        longest_answer: tokens.
    """
    longest = sorted(prompts, key=len, reverse=True)[:2]
    return [(ids, [np.resize(ids, longest_answer), np.resize(ids[::-1], longest_answer)]) for ids in longest]


def _columns(fields: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in fields.items() if name != "prompt"}
