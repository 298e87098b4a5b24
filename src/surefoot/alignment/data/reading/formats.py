"""The shapes that prompts and answers have in files, and which of them a file has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from surefoot.alignment.data.configuration import FormatName, Purpose
from surefoot.alignment.data.reading.files import Record
from surefoot.errors import UsageError


@dataclass(frozen=True)
class Format:
    """One shape of rows."""

    name: FormatName
    columns: tuple[str, ...]
    """The columns that a row must have."""
    preferences: bool
    """Whether rows say which of several answers is better."""
    sentence: str
    """What the rows are."""
    without: tuple[str, ...] = ()
    """Columns that a row must not have, to be taken for this shape where nobody said which it is."""
    optional: tuple[str, ...] = ()
    """Columns that are read where they are there."""

    @property
    def reads(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.columns, *self.optional)


PREFERENCES = (
    Format("ranked", ("prompt", "completions", "ranks"), True, "ranked answers to a prompt"),
    Format("pairs", ("prompt", "completions", "pairs"), True, "answers to a prompt, with pairs of a better and a worse one"),
    Format("scored", ("prompt", "completions", "scores"), True, "scored answers to a prompt"),
    Format(
        "preference", ("prompt", "chosen", "rejected"), True, "a chosen and a rejected answer to a prompt", optional=("margin",)
    ),
    Format(
        "implicit",
        ("chosen", "rejected"),
        True,
        "chosen and rejected texts, whose shared beginning is the prompt",
        without=("prompt",),
        optional=("margin",),
    ),
)
DEMONSTRATIONS = (
    Format("completion", ("prompt", "completion"), False, "one answer to a prompt", optional=("label",)),
    Format("messages", ("messages",), False, "conversations, whose last message is the answer", optional=("label",)),
)
PROMPTS = Format(
    "prompt",
    ("prompt",),
    False,
    "prompts without answers",
    without=("chosen", "rejected", "completions", "completion", "messages"),
)
FORMATS = {shape.name: shape for shape in (*PREFERENCES, *DEMONSTRATIONS, PROMPTS)}
SYNONYMS = {"responses": "completions"}
INSIDE = {"rank": "ranks", "score": "scores"}
"""A list of {completion, rank} or {completion, score} is the two columns side by side."""
SHOWN_COLUMNS = 20


def with_usual_columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The row with synonyms replaced, and {completion, rank} taken apart; what is null is not there."""
    present = {str(name): value for name, value in fields.items() if value is not None}
    for name, usual in SYNONYMS.items():
        if name in present and usual not in present:
            present[usual] = present.pop(name)
    items = present.get("completions")
    if isinstance(items, list) and items and all(isinstance(item, dict) and "completion" in item for item in items):
        present["completions"] = [item["completion"] for item in items]
        for inside, usual in INSIDE.items():
            if usual not in present and any(item.get(inside) is not None for item in items):
                present[usual] = [item.get(inside) for item in items]
    return present


def recognise(records: Iterable[Record], *, name: str, wanted: FormatName, purpose: Purpose | None) -> Format:
    """The shape that most rows fit; of several that as many fit, the one that says most.

    Args:
        records: rows, through :func:`with_usual_columns`.
        name: the source, for sentences.
        wanted: a shape that the user named, or auto.
        purpose: preference allows only shapes that say which answer is better; sft prefers those with one answer; prompts and None
            take any.

    Raises:
        UsageError: no row has the columns of any shape, or of the wanted one.
    """
    candidates: Sequence[Format] = (*PREFERENCES, *DEMONSTRATIONS, PROMPTS)
    if purpose == "preference":
        candidates = PREFERENCES
    elif purpose == "sft":
        candidates = (*DEMONSTRATIONS, *PREFERENCES)
    if wanted != "auto":
        shape = FORMATS[wanted]
        if shape not in candidates:
            needed = ", ".join(candidate.name for candidate in candidates)
            what, why = _shortcoming(shape)
            raise UsageError(f"--format {wanted} is {what}, which {why}; give data in one of the formats {needed}")
        candidates = (shape,)
    columns: dict[str, None] = {}
    fitting: Counter[FormatName] = Counter()
    for _, fields in records:
        if isinstance(fields, dict):
            columns.update(dict.fromkeys(fields))
            for shape in candidates:
                fits = all(column in fields for column in shape.columns)
                if fits and (wanted != "auto" or not any(column in fields for column in shape.without)):
                    fitting[shape.name] += 1
    if not fitting:
        raise UsageError(_nothing_fits(name, list(columns), candidates))
    return max(candidates, key=lambda shape: fitting[shape.name])  # the first of those that most rows fit


def _shortcoming(shape: Format) -> tuple[str, str]:
    """What rows of a shape are, and why that is too little."""
    if shape is PROMPTS:
        return shape.sentence, "leaves nothing to learn from"
    return "one answer per prompt", "says nothing about preferences"


def _nothing_fits(name: str, columns: list[str], candidates: Sequence[Format]) -> str:
    more = f" and {len(columns) - SHOWN_COLUMNS} more" if len(columns) > SHOWN_COLUMNS else ""
    there = ", ".join(columns[:SHOWN_COLUMNS]) + more if columns else "none"
    needs = "; ".join(f"{', '.join(shape.columns)} ({shape.name})" for shape in candidates)
    if PROMPTS in candidates and "prompt" in columns:
        needs += "; --format prompt reads the prompts alone"
    too_little = (*(DEMONSTRATIONS if all(shape.preferences for shape in candidates) else ()), PROMPTS)
    for shape in too_little:
        if shape not in candidates and set(shape.columns) <= set(columns) and not set(shape.without) & set(columns):
            there += ", which is {} and {}".format(*_shortcoming(shape))
            break
    return f"{name} has no row with the columns that are needed: there are {there}; one of these is needed: {needs}"
