"""From a row of a file to a prompt, its answers, and which is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from surefoot.alignment.data.configuration import FormatName
from surefoot.alignment.data.examples import Message, Pair, Row, Text, implied_pairs
from surefoot.alignment.data.reading.files import Malformed
from surefoot.alignment.data.reading.formats import PROMPTS, Format
from surefoot.alignment.data.reading.implicit_prompt import shared_messages, split_texts
from surefoot.alignment.data.reading.tally import EMPTY, IDENTICAL, Unusable

NO_ANSWER = "an answer is neither a text nor a list of messages"
UNKNOWN_RANKS = "its ranks are not whole numbers from 0 or 1 upwards, one per answer"
MARKED_BAD = "its label marks its answer as a bad one, which fine-tuning would imitate"
UNKNOWN_PAIRS = "its pairs are not [better, worse], two different places in the list of answers"


def read_row(number: int, fields: Any, shape: Format) -> Row:
    """One row, as its format says.

    Args:
        number: which row it is, counted from one.
        fields: its columns, through :func:`~surefoot.alignment.data.reading.formats.with_usual_columns`.
        shape: its format.

    Raises:
        Unusable: the row lacks a column, or what stands there is of the wrong kind.
    """
    if isinstance(fields, Malformed):
        raise Unusable(str(fields))
    if not isinstance(fields, dict):
        raise Unusable("it is no JSON object")
    for column in shape.columns:
        if column not in fields:
            raise Unusable(f"it has no {column}")
    return READERS[shape.name](number, fields)


def read_prompt(number: int, fields: Any, shape: Format) -> Row:
    """The prompt of one row, without answers; a conversation that no answer ends is a prompt as a whole.

    Args:
        number: as for :func:`read_row`, like the others.
        fields: its columns.
        shape: its format.

    Raises:
        Unusable: as :func:`read_row`; or the prompt is empty.
    """
    messages = fields.get("messages") if shape.name == "messages" and isinstance(fields, dict) else None
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict) and messages[-1].get("role") != "assistant":
        fields, shape = {"prompt": messages}, PROMPTS
    prompt = read_row(number, fields, shape).prompt
    if is_empty(prompt):
        raise Unusable("its prompt is empty")
    return Row(number, prompt, ())


def preferred(row: Row) -> Row:
    """The row, where it can teach a preference.

    Raises:
        Unusable: it has fewer than two answers, one of them is empty, two are the same, or none is preferred to another.
    """
    if len(row.completions) < 2:
        raise Unusable("it has fewer than two answers")
    if any(map(is_empty, row.completions)):
        raise Unusable(EMPTY)
    if len(set(map(identity, row.completions))) < len(row.completions):
        raise Unusable(IDENTICAL)
    if not row.pairs:
        raise Unusable("no answer is preferred to another")
    return row


def demonstrated(row: Row) -> Row:
    """The row with its best answer alone: the only one, the one of the best rank, or the undefeated one with most wins.

    Of several that are best, the first.

    Raises:
        Unusable: it has no answer, its best one is empty, or every answer loses to another.
    """
    if not row.completions:
        raise Unusable("it has no answers")
    best = 0
    if row.ranks is not None:
        best = row.ranks.index(min(row.ranks))
    elif row.pairs:
        wins, losses = Counter(better for better, _ in row.pairs), Counter(worse for _, worse in row.pairs)
        undefeated = [answer for answer in range(len(row.completions)) if not losses[answer]]
        if not undefeated:
            raise Unusable("every answer loses to another, so none is the best")
        best = max(undefeated, key=lambda answer: wins[answer])
    if is_empty(row.completions[best]):
        raise Unusable(EMPTY)
    return Row(row.number, row.prompt, (row.completions[best],))


def refuse_marked(fields: Any) -> None:
    """Refuse a demonstration that is marked as a bad one; a label that is neither true nor false marks nothing.

    Raises:
        Unusable: it is.
    """
    label = fields.get("label") if isinstance(fields, dict) else None
    if label.strip().lower() == "false" if isinstance(label, str) else isinstance(label, int | float) and label == 0:
        raise Unusable(MARKED_BAD)


def is_empty(text: Text) -> bool:
    """Whether nothing but white space is there, or in the last message."""
    return not (text if isinstance(text, str) else text[-1]["content"]).strip()


def identity(text: Text) -> str | tuple[tuple[str, str], ...]:
    """Something that can be a key, and is equal for equal texts."""
    return text if isinstance(text, str) else tuple((message["role"], message["content"]) for message in text)


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f"{what} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(f"{what} holds half a Unicode surrogate pair") from None
    return value


def _messages(value: Any, reason: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise Unusable(reason)
    messages = []
    for item in value:
        if item.get("tool_calls"):
            raise Unusable("a message calls tools, which cannot be read here")
        messages.append({part: _string(item.get(part), f"the {part} of a message") for part in ("role", "content")})
    return tuple(messages)


def _dialogue(prompt: Any, answers: Sequence[Any]) -> tuple[Text, tuple[Text, ...]]:
    """Prompt and answers, all texts or all messages.

    Answers may repeat the prompt's messages, and the prompt may then be the text of one of them.
    """
    if isinstance(prompt, str) and not any(isinstance(answer, list) for answer in answers):
        return _string(prompt, "the prompt"), tuple(_string(answer, "an answer") for answer in answers)
    conversations = [
        _messages(answer, NO_ANSWER)
        if isinstance(answer, list)
        else ({"role": "assistant", "content": _string(answer, "an answer")},)
        for answer in answers
    ]
    if isinstance(prompt, str):
        question = _string(prompt, "the prompt").strip()
        begun = shared_messages(conversations)
        if begun and question not in (message["content"].strip() for message in begun):
            raise Unusable("the conversations of its answers do not hold its prompt")
        opening = begun or ({"role": "user", "content": prompt},)
    else:
        opening = _messages(prompt, "the prompt is neither a text nor a list of messages")
    if all(conversation[: len(opening)] == opening for conversation in conversations):
        conversations = [conversation[len(opening) :] for conversation in conversations]
    return _checked(opening, conversations)


def _checked(opening: tuple[Message, ...], answers: Sequence[tuple[Message, ...]]) -> tuple[Text, tuple[Text, ...]]:
    if not opening:
        raise Unusable("no message stands before the answer")
    if opening[-1]["role"] == "assistant":
        raise Unusable("the message before the answer is the assistant's own")
    if any(len(answer) != 1 or answer[0]["role"] != "assistant" for answer in answers):
        raise Unusable("an answer is not exactly one message of the assistant")
    return opening, tuple(answers)


def _pair(number: int, prompt: Text, answers: tuple[Text, ...], fields: dict[str, Any]) -> Row:
    """A chosen and a rejected answer, and by how much the one was better where that is said."""
    margins = None
    if "margin" in fields:
        with suppress(Unusable):  # only --use-margins reads it, and refuses rows without one
            margins = (_number(fields["margin"], ""),)
    return Row(number, prompt, answers, ranks=(1, 2), pairs=((0, 1),), margins=margins)


def _preference(number: int, fields: dict[str, Any]) -> Row:
    return _pair(number, *_dialogue(fields["prompt"], [fields["chosen"], fields["rejected"]]), fields)


def _implicit(number: int, fields: dict[str, Any]) -> Row:
    answers = [fields["chosen"], fields["rejected"]]
    if any(isinstance(answer, list) for answer in answers):
        conversations = [
            _messages(answer, "chosen and rejected are neither two texts nor two lists of messages") for answer in answers
        ]
        opening = shared_messages(conversations)
        prompt, completions = _checked(opening, [conversation[len(opening) :] for conversation in conversations])
        return _pair(number, prompt, completions, fields)
    prompt, *texts = split_texts(*(_string(answer, "an answer") for answer in answers))
    return _pair(number, prompt, tuple(texts), fields)


def _answers(fields: dict[str, Any]) -> tuple[Text, tuple[Text, ...]]:
    if not isinstance(fields["completions"], list):
        raise Unusable("its completions are no list")
    return _dialogue(fields["prompt"], fields["completions"])


def _per_answer(values: Any, answers: Sequence[Text], name: str) -> list[Any]:
    if not isinstance(values, list) or len(values) != len(answers):
        raise Unusable(f"its {name} are not a list as long as that of its answers")
    return values


def _ranked(number: int, fields: dict[str, Any]) -> Row:
    prompt, answers = _answers(fields)
    given = [_whole(rank, UNKNOWN_RANKS) for rank in _per_answer(fields["ranks"], answers, "ranks")]
    if any(rank < 0 for rank in given):
        raise Unusable(UNKNOWN_RANKS)
    return _ranking(number, prompt, answers, given)


def _scored(number: int, fields: dict[str, Any]) -> Row:
    prompt, answers = _answers(fields)
    scores = _per_answer(fields["scores"], answers, "scores")
    return _ranking(number, prompt, answers, [-_number(score, "a score is no finite number") for score in scores])


def _ranking(number: int, prompt: Text, answers: tuple[Text, ...], order: Sequence[float]) -> Row:
    """Ranks 1, 2, … without gaps, the smallest of ``order`` the best."""
    place = {value: rank for rank, value in enumerate(sorted(set(order)), start=1)}
    ranks = tuple(place[value] for value in order)
    return Row(number, prompt, answers, ranks=ranks, pairs=implied_pairs(ranks))


def _pairs(number: int, fields: dict[str, Any]) -> Row:
    prompt, answers = _answers(fields)
    if not isinstance(fields["pairs"], list):
        raise Unusable("its pairs are no list")
    pairs: list[Pair] = []
    for item in fields["pairs"]:
        if not isinstance(item, list) or len(item) != 2:
            raise Unusable(UNKNOWN_PAIRS)
        better, worse = (_whole(place, UNKNOWN_PAIRS) for place in item)
        if better == worse:
            raise Unusable(UNKNOWN_PAIRS)
        if not (0 <= better < len(answers) and 0 <= worse < len(answers)):
            raise Unusable("a pair names an answer that is not there; answers count from 0")
        pairs.append((better, worse))
    return Row(number, prompt, answers, pairs=tuple(pairs))


def _completion(number: int, fields: dict[str, Any]) -> Row:
    return Row(number, *_dialogue(fields["prompt"], [fields["completion"]]))


def _prompt(number: int, fields: dict[str, Any]) -> Row:
    return Row(number, *_dialogue(fields["prompt"], ()))


def _conversation(number: int, fields: dict[str, Any]) -> Row:
    messages = _messages(fields["messages"], "its messages are no list of messages")
    return Row(number, *_checked(messages[:-1], [messages[-1:]]))


def _number(value: Any, reason: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Unusable(reason)
        return float(value)
    except OverflowError:  # a whole number beyond any float
        raise Unusable(reason) from None


def _whole(value: Any, reason: str) -> int:
    number = _number(value, reason)
    if number != int(number):
        raise Unusable(reason)
    return int(number)


READERS: dict[FormatName, Callable[[int, dict[str, Any]], Row]] = {
    "ranked": _ranked,
    "pairs": _pairs,
    "scored": _scored,
    "preference": _preference,
    "implicit": _implicit,
    "completion": _completion,
    "messages": _conversation,
    "prompt": _prompt,
}
