"""From a file to examples: read, recognise, judge every row, tokenise, and say what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.alignment.data import cache
from surefoot.alignment.data.configuration import DataConfiguration, Purpose
from surefoot.alignment.data.examples import Example, Row
from surefoot.alignment.data.notices import notices_of
from surefoot.alignment.data.reading.formats import PROMPTS, Format, recognise, with_usual_columns
from surefoot.alignment.data.reading.implicit_prompt import TURN_MARKER
from surefoot.alignment.data.reading.rows import demonstrated, preferred, read_prompt, read_row, refuse_marked
from surefoot.alignment.data.reading.sources import Source, open_source
from surefoot.alignment.data.reading.tally import Tally, Unusable, phrases
from surefoot.alignment.data.tokenization.ends import require_eos
from surefoot.alignment.data.tokenization.tokens import tokenise
from surefoot.errors import RunError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class LoadedData:
    """Examples, and what the user and the model's card should know of them."""

    examples: list[Example]
    notices: tuple[str, ...]
    """Sentences for the user."""
    fingerprint: str
    """SHA-256 over content, purpose, format, limits, tokenizer and template, in hexadecimal."""
    description: dict[str, Any]
    """Counts: where the data come from, rows, used and not used by reason, cut answers, sizes of rankings."""


def load_examples(
    configuration: DataConfiguration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    purpose: Purpose,
    cache_folder: Path | None = None,
) -> LoadedData:
    """Everything that the data hold and this tokenizer can use, from the cache where it was tokenised before.

    Args:
        configuration: which data, and how they become tokens.
        tokenizer: of the model that is trained, with EOS.
        purpose: sft for one answer per prompt (of preference data the best one), preference for several.
        cache_folder: where tokens are kept; None for a folder in the user's cache.

    Raises:
        UsageError: the data are not there, are broken, have other columns than their format needs, hold no row that can be
            used, or hold ties that were to be refused; or the tokenizer has no EOS.
    """
    require_eos(tokenizer)
    source = open_source(configuration.data, configuration.split)
    key = cache.key_of(source.checksum, configuration, tokenizer, purpose=purpose)
    folder = cache_folder or cache.default_folder()
    about_cache = []
    if configuration.cache:
        try:
            if found := cache.load(folder, key):
                examples, said = found
                description = {"source": source.name, **said}
                return LoadedData(examples, (*source.notices, *notices_of(description)), key, description)
        except cache.Damaged as reason:
            about_cache.append(f"tokens in the cache are damaged ({reason}), and are made anew")
    examples, said = read_examples(source, configuration, tokenizer, purpose=purpose)
    if configuration.cache:
        try:
            cache.store(folder, key, examples, said)
        except RunError as reason:
            about_cache.append(f"tokens are not kept for the next run: {reason}")
    description = {"source": source.name, **said}
    return LoadedData(examples, (*source.notices, *notices_of(description), *about_cache), key, description)


def read_examples(
    source: Source,
    configuration: DataConfiguration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    purpose: Purpose | None,
) -> tuple[list[Example], dict[str, Any]]:
    """Read and tokenise, without the cache.

    Args:
        source: the rows.
        configuration: how they become tokens.
        tokenizer: of the model.
        purpose: None takes what the data are; of prompts alone, the examples have no answers.

    Returns:
        examples and their description, but for the name of the source.

    Raises:
        UsageError: as :func:`load_examples`; a tokenizer without EOS ends answers without it.
    """
    return encode_rows(read_rows(source, configuration, purpose=purpose), source, configuration, tokenizer)


@dataclass(frozen=True, eq=False)
class Reading:
    """Rows as text, before any of them is tokenised."""

    rows: list[Row]
    """Those that can be used so far."""
    fields: dict[int, Any]
    """What stood in each row of the source, by its number."""
    shape: Format
    purpose: Purpose
    columns: list[str]
    """All that occur, under their usual names; of prompts, under their own."""
    tally: Tally


def read_rows(source: Source, configuration: DataConfiguration, *, purpose: Purpose | None) -> Reading:
    """Read, recognise, and judge every row.

    Args:
        source: the rows.
        configuration: their format, and what happens to ties.
        purpose: None takes what the data are.

    Raises:
        UsageError: there are no rows, or other columns than the format needs, or ties that were to be refused.
    """
    fields = dict(source.records())
    if not fields:
        raise UsageError(f"{source.name} holds no rows")
    records = [(number, with_usual_columns(value) if isinstance(value, dict) else value) for number, value in fields.items()]
    shape = recognise(records, name=source.name, wanted=configuration.format, purpose=purpose)
    if purpose is None:
        purpose = "preference" if shape.preferences else "prompts" if shape is PROMPTS else "sft"
    tally, rows = Tally(), []
    for number, row_fields in records:
        try:
            if purpose == "prompts":
                rows.append(read_prompt(number, row_fields, shape))
                continue
            row = read_row(number, row_fields, shape)
            if purpose == "preference" and configuration.ties == "refuse":
                _refuse_ties(row, source.name)
            if not shape.preferences:
                refuse_marked(row_fields)
            rows.append(preferred(row) if purpose == "preference" else demonstrated(row))
        except Unusable as reason:
            tally.add(number, str(reason))
    named = fields.items() if purpose == "prompts" else records  # reward functions see columns under their own names
    columns = list(dict.fromkeys(str(name) for _, value in named if isinstance(value, dict) for name in value))
    return Reading(rows, fields, shape, purpose, columns, tally)


def encode_rows(
    reading: Reading, source: Source, configuration: DataConfiguration, tokenizer: PreTrainedTokenizerFast, *, room: int = 1
) -> tuple[list[Example], dict[str, Any]]:
    """Tokenise, and describe what happened.

    Args:
        reading: the rows.
        source: where they come from, for sentences.
        configuration: how they become tokens.
        tokenizer: of the model.
        room: tokens that a prompt must leave for an answer.

    Returns:
        examples and their description, but for the name of the source.

    Raises:
        UsageError: no row can be used; or rows are conversations, and there is no chat template.
    """
    tally, shape, purpose = reading.tally, reading.shape, reading.purpose
    limits: dict[str, Any] = {"max_length": configuration.max_length, "overlong": configuration.overlong, "room": room}
    result = tokenise(reading.rows, tokenizer, tally, **limits)
    if not result.examples:
        raise UsageError(f"{source.name} has no row that can be used: {'; '.join(phrases(tally.counts(), tally.first()))}")
    said: dict[str, Any] = {
        "format": shape.name,
        "purpose": purpose,
        "columns": [column for column in reading.columns if column in shape.reads],
        "columns_not_read": [column for column in reading.columns if column not in shape.reads],
        "rows": len(reading.fields),
        "used": len(result.examples),
        "unusable": tally.counts(),
        "unusable_rows": tally.first(),
        "max_length": configuration.max_length,
        "ranking_sizes": _ranking_sizes(result.examples),
        "tied": sum(example.tied for example in result.examples),
        "with_margin": sum(example.margins is not None for example in result.examples),
        "cut_at_white_space": _cut_at_white_space(reading.rows) if shape.name == "implicit" else 0,
        **result.counts(),
    }
    if purpose == "prompts":
        said["repeated_prompts"] = len(result.examples) - len({example.prompt.tobytes() for example in result.examples})
    return result.examples, said


def _ranking_sizes(examples: Sequence[Example]) -> dict[str, int]:
    """How many rows have how many answers."""
    sizes = Counter(len(example.completions) for example in examples)
    return {str(size): sizes[size] for size in sorted(sizes)}


def _cut_at_white_space(rows: Sequence[Row]) -> int:
    """Rows whose implicit prompt does not end with a turn marker."""
    return sum(isinstance(row.prompt, str) and not row.prompt.endswith(TURN_MARKER) for row in rows)


def _refuse_ties(row: Row, name: str) -> None:
    if row.ranks is None or len(set(row.ranks)) == len(row.ranks):
        return
    rank, count = next(item for item in Counter(row.ranks).items() if item[1] > 1)
    raise UsageError(
        f"row {row.number} of {name} gives {count} answers the rank {rank}; --ties pairs breaks a ranking with ties into the"
        " pairs that it implies"
    )
