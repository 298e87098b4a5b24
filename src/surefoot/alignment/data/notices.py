"""What the user should know of the data that were loaded, in sentences."""

from __future__ import annotations

from typing import Any

from surefoot.alignment.data.reading.formats import FORMATS
from surefoot.alignment.data.reading.tally import phrases
from surefoot.errors import Caution


def notices_of(description: dict[str, Any]) -> tuple[str, ...]:
    """Sentences about the rows that were and were not used, and about what was done to them.

    Args:
        description: of :class:`~surefoot.alignment.data.loading.LoadedData`.
    """
    shape, rows = FORMATS[description["format"]], description["rows"]
    columns, unread = description["columns"], description["columns_not_read"]
    left_out = f"; not read: {', '.join(unread)}" if unread and description["purpose"] != "prompts" else ""
    sentences = [
        f"{description['source']}: {shape.sentence} (format {shape.name}, columns {', '.join(columns)}{left_out});"
        f" {description['used']:,} of {rows:,} rows are used"
    ]
    sentences += [Caution(f"not used: {phrase}") for phrase in phrases(description["unusable"], description["unusable_rows"])]
    said = (
        _prompts_alone(description),
        _repeated_prompts(description),
        _best_answers(description),
        _ties(description),
        _implicit_prompts(description),
        _cut(description),
        *_conversations(description),
        _bos_within(description),
        _empty_prompts(description),
    )
    return (*sentences, *(sentence for sentence in said if sentence))


def _best_answers(description: dict[str, Any]) -> str:
    if description["purpose"] != "sft" or not FORMATS[description["format"]].preferences:
        return ""
    which = "chosen" if description["format"] in ("preference", "implicit") else "best"
    return f"supervised fine-tuning imitates one answer per row: the {which} one is used, the others are not"


def _prompts_alone(description: dict[str, Any]) -> str:
    others = [name for name in (*description["columns"], *description["columns_not_read"]) if name != "prompt"]
    if description["purpose"] != "prompts" or not others:
        return ""
    return f"the prompts alone are read; reward functions can ask for the other columns: {', '.join(others)}"


def _repeated_prompts(description: dict[str, Any]) -> str:
    count = description.get("repeated_prompts", 0)  # counted for prompts alone: answers to one prompt in several rows are usual
    return (
        count
        and f"{_rows(count)} {_verb(count, 'repeats', 'repeat')} an earlier row's prompt, and {_verb(count, 'is', 'are')} kept"
    )


def _ties(description: dict[str, Any]) -> str:
    count = description["tied"]
    return count and f"{_rows(count)} {_verb(count, 'has', 'have')} tied answers, read as the pairs that the ranking implies"


def _implicit_prompts(description: dict[str, Any]) -> str:
    count = description["cut_at_white_space"]
    return count and (
        f"{_rows(count)} {_verb(count, 'has', 'have')} no turn marker: what chosen and rejected share up to the last white space"
        " is taken for the prompt, words with which both answers begin included"
    )


def _cut(description: dict[str, Any]) -> str:
    count = description["truncated"]
    return count and Caution(
        f"{count:,} of {description['answers']:,} answers {_verb(count, 'goes', 'go')} beyond {description['max_length']:,} tokens"
        f" and {_verb(count, 'is', 'are')} cut there, without EOS; --overlong drop leaves such rows out"
    )


def _conversations(description: dict[str, Any]) -> tuple[str, ...]:
    eos, behind, sentences = description["eos"], description["behind_turn"], []
    if behind is not None and eos is not None:
        ends = f"ends an answer with {behind!r}, which is not EOS" if behind else "puts nothing behind an answer"
        sentences.append(f"the chat template {ends}; EOS ({eos}) is put behind it")
    if count := description["rewritten"]:
        sentences.append(
            f"{count:,} {_verb(count, 'answer', 'answers')} would be written by the chat template without {_verb(count, 'its', 'their')}"
            " beginning, such as thoughts, or otherwise than its generation prompt begins; the message's own text follows that prompt"
        )
    if count := description["closed"]:
        sentences.append(
            f"the generation prompt opens a thought, and {count:,} {_verb(count, 'answer has', 'answers have')} none: it is closed before"
            f" {_verb(count, 'it', 'them')}"
        )
    if description["without_bos"]:
        sentences.append(
            f"the chat template puts no BOS ({description['bos']}), though the tokenizer puts one before plain text; the"
            " template decides"
        )
    return tuple(sentences)


def _bos_within(description: dict[str, Any]) -> str:
    count = description["bos_within"]
    return count and (
        f"{count:,} {_verb(count, 'prompt holds', 'prompts hold')} BOS ({description['bos']}) behind {_verb(count, 'its', 'their')}"
        " beginning too, where it begins a turn or another text, and is used as it stands"
    )


def _empty_prompts(description: dict[str, Any]) -> str:
    count = description["empty_prompts"]
    return count and (
        f"{count:,} {_verb(count, 'prompt is', 'prompts are')} empty; {_verb(count, 'it begins', 'they begin')} with"
        f" {description['start']}"
    )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count > 1)}"


def _verb(count: int, one: str, several: str) -> str:
    return one if count == 1 else several
