"""What prompts and preference data look like to a model: the first rows token by token, and counts over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.alignment.data.configuration import DataConfiguration, Purpose
from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.loading import read_examples
from surefoot.alignment.data.notices import notices_of
from surefoot.alignment.data.reading.sources import open_source
from surefoot.alignment.data.tokenization.ends import AnswerEnds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Token:
    """One token as it is shown."""

    id: int
    text: str
    mark: str
    """BOS, EOS, or empty."""


def inspect_data(
    configuration: DataConfiguration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows: int,
    purpose: Purpose | None = None,
    ends: AnswerEnds | None = None,
) -> dict[str, Any]:
    """Look at data as they would be loaded, ties read as pairs, without the cache.

    Args:
        configuration: which data, and how they become tokens.
        tokenizer: of the model.
        rows: how many to show token by token.
        purpose: None takes what the data are.
        ends: of the model's answers; by its tokenizer alone where they are not given.

    Returns:
        ``rows`` (lists of tokens), ``ends`` (the tokens that end an answer, ids and texts), ``notices`` and ``warnings`` (sentences), and
        ``description`` (counts), ready for JSON.

    Raises:
        UsageError: the data cannot be loaded at all.
    """
    ends = ends or AnswerEnds.of(tokenizer)
    source = open_source(configuration.data, configuration.split)
    examples, said = read_examples(source, replace(configuration, ties="pairs"), tokenizer, purpose=purpose)
    description = {"source": source.name, **said, **_repetitions(examples)}
    return {
        "rows": [_shown(example, tokenizer) for example in examples[:rows]],
        "ends": {"ids": ends.sampling, "tokens": ends.shown, "trained_behind_a_conversations_answer": ends.turn},
        "notices": [*source.notices, *notices_of(description), *ends.notices[:1]],
        "warnings": [*ends.notices[1:], *_warnings(description)],
        "description": description,
    }


def _shown(example: Example, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    answers = [tokens_of(ids, tokenizer, marks=("EOS",)) for ids in example.completions]
    return {
        "row": example.number,
        "prompt": [vars(token) for token in tokens_of(example.prompt, tokenizer, marks=("BOS", "EOS"))],
        "answers": [[vars(token) for token in answer] for answer in answers],
        "ranks": example.ranks,
        "pairs": example.pairs,
        "margins": example.margins,
    }


def tokens_of(ids: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerFast, *, marks: Sequence[str]) -> list[Token]:
    """Each token with its text; bytes that are no text alone, since a letter has several, are shown as <0xF0>.

    Args:
        ids: the tokens.
        tokenizer: of the model.
        marks: which of BOS and EOS to look for, the likelier first: they may be the same token.
    """
    special = {"BOS": tokenizer.bos_token_id, "EOS": tokenizer.eos_token_id}
    tokens = []
    for i in map(int, ids):
        name = str(tokenizer.convert_ids_to_tokens(i))
        text = name.replace("▁", " ") if "▁" in name else str(tokenizer.decode([i], clean_up_tokenization_spaces=False))
        mark = next((mark for mark in marks if special[mark] == i), "")
        tokens.append(Token(i, _bytes_shown(name) if not text or "\ufffd" in text else text, mark))
    return tokens


@cache
def _spelled_bytes() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _bytes_shown(name: str) -> str:
    """A token of a byte-level vocabulary as text, and as bytes where it is none; other tokens as they are spelt."""
    table = _spelled_bytes()
    if any(letter not in table for letter in name):
        return name
    text = bytes(table[letter] for letter in name).decode(errors="surrogateescape")
    return "".join(f"<0x{ord(letter) - 0xDC00:02X}>" if "\udc80" <= letter <= "\udcff" else letter for letter in text)


def _repetitions(examples: Sequence[Example]) -> dict[str, Any]:
    """Different prompts, rows that share theirs, and rows that say the same as one before."""
    prompts = Counter(example.prompt.tobytes() for example in examples)
    whole = Counter((e.prompt.tobytes(), tuple(ids.tobytes() for ids in e.completions), e.pairs) for e in examples)
    sharing = sum(count for count in prompts.values() if count > 1)
    return {
        "different_prompts": len(prompts),
        "share_of_rows_with_shared_prompt": sharing / len(examples),
        "duplicate_rows": len(examples) - len(whole),
    }


def _warnings(description: dict[str, Any]) -> list[str]:
    """What is likely a mistake in the data or the tokenizer."""
    warnings = []
    if description["eos"] is None:
        warnings.append("the tokenizer has no EOS, so answers have no end that could be learnt; training refuses it")
    if description["purpose"] == "prompts":
        return warnings  # repeated prompts are said already, and the rest is about answers
    if description["duplicate_rows"]:
        warnings.append(f"{description['duplicate_rows']:,} rows repeat an earlier row")
    if 2 * description["run_together"] > description["answers"]:
        warnings.append(
            f"{description['run_together']:,} of {description['answers']:,} answers begin with a letter or digit right behind"
            " the prompt's last character, without white space between them"
        )
    if 20 * description["truncated"] > description["answers"]:
        share = description["truncated"] / description["answers"]
        warnings.append(f"{share:.0%} of the answers are cut at {description['max_length']:,} tokens; raise --max-length")
    if description["tied"] and description["purpose"] == "preference":
        warnings.append("training refuses rankings with ties unless --ties pairs is given")
    return warnings
