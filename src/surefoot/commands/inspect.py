"""``surefoot inspect``: prompts and preference data as a model sees them, token by token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from surefoot.alignment.data.configuration import DataConfiguration, FormatName, Overlong
from surefoot.commands.options import DONE, parse
from surefoot.errors import UsageError, printable

LEGEND = "tokens are separated by |; ␣ is a space, ↵ a line's end; ‹BOS› and ‹EOS› mark the token before them"
STYLES = {"BOS": "bold magenta", "EOS": "bold magenta", "prompt": "cyan", "answer": "green"}


@dataclass(frozen=True)
class Inspect:
    """Show the first rows of prompts or preference data token by token, and count what is in all of them."""

    data: tyro.conf.Positional[str]
    """A file, a folder, or a name on the Hugging Face hub."""
    model: str
    """Folder of the model, or its name on the hub; its tokenizer is loaded, and what its settings name as ends, but no weights."""
    rows: int = 3
    """How many rows to show."""
    purpose: Literal["auto", "sft", "preference", "prompts"] = "auto"
    """Read the data for supervised fine-tuning (one answer per prompt), for preferences, or for their prompts alone; auto takes
    what they are."""
    format: FormatName = "auto"
    """Columns to read; auto takes the format that most rows fit."""
    split: str | None = None
    """Split of a folder or of a data set on the hub."""
    max_length: int = 1024
    """Tokens that a prompt and one answer may have together."""
    overlong: Overlong = "truncate"
    """Whether an answer beyond that is cut, or its row left out."""
    trust_remote_code: bool = False
    """Run tokenizer code that comes with the model."""
    json: bool = False
    """Print one JSON object instead."""


def run(arguments: list[str]) -> int:
    """Inspect, and print."""
    chosen: Inspect = parse(Inspect, arguments, program="surefoot inspect")
    if chosen.rows < 0:
        raise UsageError(f"--rows must be 0 or more, but is {chosen.rows}")
    configuration = DataConfiguration(
        data=chosen.data,
        format=chosen.format,
        split=chosen.split,
        max_length=chosen.max_length,
        overlong=chosen.overlong,
    )
    from surefoot.alignment.data.inspection import inspect_data
    from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
    from surefoot.alignment.models.ending import ends_of

    tokenizer = load_tokenizer(chosen.model, trust_remote_code=chosen.trust_remote_code)
    purpose = None if chosen.purpose == "auto" else chosen.purpose
    result = inspect_data(configuration, tokenizer, rows=chosen.rows, purpose=purpose, ends=ends_of(chosen.model, tokenizer))
    if chosen.json:
        print(json.dumps(result))
        return DONE
    console = Console(highlight=False)
    for line in (*_rows(result), *_counts(result)):
        console.print(line, soft_wrap=True)
    return DONE


def _rows(result: dict[str, Any]) -> list[Text]:
    lines = [Text(LEGEND, style="dim"), Text()] if result["rows"] else []
    for row in result["rows"]:
        lines.append(Text(f"row {row['row']}{_order(row)}", style="bold"))
        lines.append(_tokens("prompt", row["prompt"], "prompt"))
        for i, answer in enumerate(row["answers"]):
            cut = "" if answer[-1]["mark"] == "EOS" else ", no EOS"
            rank = "" if row["ranks"] is None else f", rank {row['ranks'][i]}"
            lines.append(_tokens(f"answer {i}{rank}{cut}", answer, "answer"))
        lines.append(Text())
    return lines


def _order(row: dict[str, Any]) -> str:
    """Pairs where there are no ranks, and margins."""
    said = []
    if row["ranks"] is None and row["pairs"]:
        said.append("better > worse: " + ", ".join(f"{better} > {worse}" for better, worse in row["pairs"]))
    if row["margins"] is not None:
        said.append("margin " + ", ".join(f"{margin:g}" for margin in row["margins"]))
    return f" ({'; '.join(said)})" if said else ""


def _tokens(name: str, tokens: list[dict[str, Any]], style: str) -> Text:
    line = Text(f"  {name} ({len(tokens)} token{'s' * (len(tokens) > 1)}): ")
    for i, token in enumerate(tokens):
        shown = printable(token["text"].replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"))
        mark = f"‹{token['mark']}›" if token["mark"] else ""
        line.append("|" if i else "", style="dim")
        line.append(shown + mark, style=STYLES[token["mark"] or style])
    return line


def _counts(result: dict[str, Any]) -> list[Text]:
    said = result["description"]
    ends = ", ".join(result["ends"]["tokens"]) or "nothing but their longest length"
    facts = [
        ("answers end at", printable(ends)),
        ("rows", f"{said['rows']:,}, of which {said['used']:,} are used"),
        ("prompts, tokens", _lengths(said["prompt_tokens"])),
    ]
    if said["purpose"] != "prompts":
        facts += [
            ("answers, tokens", _lengths(said["answer_tokens"])),
            ("answers cut", f"{said['truncated']:,} of {said['answers']:,}, at {said['max_length']:,} tokens with the prompt"),
            ("answers per row", ", ".join(f"K = {size} in {count:,} rows" for size, count in said["ranking_sizes"].items())),
            ("rankings with ties", f"{said['tied']:,}"),
        ]
    shared = f"{said['share_of_rows_with_shared_prompt']:.0%} of the rows share theirs"
    facts.append(("different prompts", f"{said['different_prompts']:,}; {shared}"))
    if said["purpose"] != "prompts":
        facts.append(("duplicate rows", f"{said['duplicate_rows']:,}"))
    width = max(len(name) for name, _ in facts)
    return [
        *(Text(f"{name.ljust(width)}  {fact}") for name, fact in facts),
        Text(),
        *(Text(printable(notice)) for notice in result["notices"]),
        *(Text(f"warning: {printable(warning)}", style="yellow") for warning in result["warnings"]),
    ]


def _lengths(summary: dict[str, float]) -> str:
    return (
        f"smallest {summary['min']:.0f}, median {summary['median']:.0f}, 95 % up to {summary['percentile_95']:.0f},"
        f" largest {summary['max']:.0f}"
    )
