"""From rows of text to examples of token ids.

Prompt and answer are encoded apart and joined as ids, so the boundary between them is exact, and a model that generates from
the prompt's ids meets the ids that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.alignment.data.configuration import Overlong
from surefoot.alignment.data.examples import Example, Row
from surefoot.alignment.data.reading.tally import EMPTY, IDENTICAL, Tally, Unusable
from surefoot.alignment.data.tokenization.encoder import Encoder
from surefoot.alignment.data.tokenization.ends import without_eos
from surefoot.alignment.data.tokenization.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Prompt:
    """What begins an example: text, and ids that stand before its ids."""

    text: str
    before: tuple[int, ...]
    templated: bool
    """Whether a chat template wrote it, which then put BOS where it belongs."""


@dataclass(frozen=True)
class Answer:
    """What follows a prompt, without EOS."""

    text: str
    continuing: bool
    """Whether text stands before it; behind an empty prompt it begins the text."""


@dataclass
class Tokenised:
    """Examples, and what happened on the way."""

    examples: list[Example] = field(default_factory=list)
    conversations: int = 0
    """Examples that a chat template wrote."""
    empty_prompts: int = 0
    truncated: int = 0
    """Answers that were cut."""
    prompt_lengths: list[int] = field(default_factory=list)
    answer_lengths: list[int] = field(default_factory=list)
    """Tokens before cutting, with EOS."""
    behind_turn: str | None = None
    """What the chat template puts behind an answer where it does not end it with EOS."""
    rewritten: int = 0
    """Answers that the chat template writes without their beginning, or otherwise than its generation prompt begins them."""
    closed: int = 0
    """Answers before which a thought is closed that the generation prompt opens."""
    bos_within: int = 0
    """Plain prompts that hold BOS behind their beginning, where it begins a turn or another text."""
    without_bos: int = 0
    """Conversations before which the chat template puts no BOS, though the tokenizer puts one before a text."""
    run_together: int = 0
    """Plain answers that begin with a letter or digit right behind a prompt that does not end with white space."""
    special_tokens: dict[str, str | None] = field(default_factory=dict)
    """BOS and EOS, and with what an empty prompt begins."""

    def counts(self) -> dict[str, Any]:
        """What can be said of them in numbers."""
        return {
            "answers": sum(len(example.completions) for example in self.examples),
            "truncated": self.truncated,
            "empty_prompts": self.empty_prompts,
            "conversations": self.conversations,
            "rewritten": self.rewritten,
            "closed": self.closed,
            "bos_within": self.bos_within,
            "behind_turn": self.behind_turn,
            "run_together": self.run_together,
            "without_bos": self.without_bos,
            **self.special_tokens,
            "prompt_tokens": _summary(self.prompt_lengths),
            "answer_tokens": _summary(self.answer_lengths),
        }


def _summary(lengths: Sequence[int]) -> dict[str, float]:
    """Smallest, median, 95th percentile and largest of some lengths; none of no lengths."""
    if not lengths:
        return {}
    quantiles = np.quantile(lengths, (0.0, 0.5, 0.95, 1.0)).tolist()
    return dict(zip(("min", "median", "percentile_95", "max"), quantiles, strict=True))


def tokenise(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    tally: Tally,
    *,
    max_length: int,
    overlong: Overlong = "truncate",
    room: int = 1,
) -> Tokenised:
    """Examples of the rows that fit.

    Args:
        rows: prompts and answers as text; a prompt may have no answers yet.
        tokenizer: a fast tokenizer, with a chat template where rows are conversations.
        tally: rows that are left out are added to it.
        max_length: tokens that a prompt and one answer may have together.
        overlong: whether an answer beyond that is cut, or its row left out.
        room: tokens that a prompt must leave for an answer.

    Returns:
        the examples, in the order of the rows; examples with the same prompt share its array.

    Raises:
        UsageError: rows are conversations, and there is no chat template.
    """
    encoder, template = Encoder(tokenizer), ChatTemplate(tokenizer)
    start = str(tokenizer.decode(encoder.start)) if encoder.start else None
    result = Tokenised(special_tokens={"bos": tokenizer.bos_token, "eos": tokenizer.eos_token, "start": start})
    texts = []
    for row in rows:
        try:
            prompt, answers = _texts(row, encoder, template, result)
        except Unusable as reason:
            tally.add(row.number, str(reason))
        else:
            texts.append((row, prompt, answers))
    begun = _each_once((prompt.text for _, prompt, _ in texts), encoder, continuing=False)
    first = _each_once((a.text for _, _, answers in texts for a in answers if not a.continuing), encoder, continuing=False)
    further = _each_once((a.text for _, _, answers in texts for a in answers if a.continuing), encoder, continuing=True)
    whole: dict[Prompt, np.ndarray] = {}
    for row, prompt, answers in texts:
        try:
            if prompt not in whole:
                whole[prompt] = _prompt_ids(prompt, begun[prompt.text], encoder, template)
            ids = [(further if answer.continuing else first)[answer.text] for answer in answers]
            example = _example(row, whole[prompt], ids, encoder, result, max_length=max_length, overlong=overlong, room=room)
        except Unusable as reason:
            tally.add(row.number, str(reason))
        else:
            result.examples.append(example)
            result.conversations += prompt.templated
            result.bos_within += not prompt.templated and encoder.bos in example.prompt[1:]
            result.without_bos += tuple(example.prompt[: len(encoder.beginning)]) != encoder.beginning
            if not prompt.templated and prompt.text and not prompt.text[-1].isspace():
                result.run_together += sum(_begins_a_word(answer.text) for answer in answers)
            result.empty_prompts += not len(begun[prompt.text])
    result.rewritten, result.closed = template.rewritten, template.closed
    return result


def _each_once(texts: Iterable[str], encoder: Encoder, *, continuing: bool) -> dict[str, np.ndarray]:
    different = list(dict.fromkeys(texts))
    return dict(zip(different, encoder.encode(different, continuing=continuing), strict=True))


def _texts(row: Row, encoder: Encoder, template: ChatTemplate, result: Tokenised) -> tuple[Prompt, list[Answer]]:
    """The texts to encode; EOS is cut off answers that have one."""
    if isinstance(row.prompt, str):
        prompt = _plain_prompt(row.prompt, encoder)
        written = [without_eos(str(answer), encoder.eos_text)[0] for answer in row.completions]
    else:
        prompt = Prompt(template.prompt(row.prompt), (), templated=True)
        written = []
        for answer in row.completions:
            assert not isinstance(answer, str)
            whole = template.answer(row.prompt, answer)
            text, ended = without_eos(whole.text, encoder.eos_text)
            written.append(text)
            if not ended:
                result.behind_turn = whole.behind
    return prompt, [Answer(text, continuing=bool(prompt.text)) for text in written]


def _plain_prompt(text: str, encoder: Encoder) -> Prompt:
    """A prompt that no template wrote: BOS goes before it where the tokenizer puts one, or where the text itself has it."""
    before, bos = encoder.beginning, encoder.bos_text
    if bos and text.startswith(bos):
        before = before or encoder.start
        while text.startswith(bos):
            text = text[len(bos) :]
    return Prompt(text, before, templated=False)


def _begins_a_word(text: str) -> bool:
    """Whether a letter that has a case, or a digit, comes first: scripts without cases often have no spaces either."""
    return text[0].isdigit() or text[0].lower() != text[0].upper()


def _prompt_ids(prompt: Prompt, ids: np.ndarray, encoder: Encoder, template: ChatTemplate) -> np.ndarray:
    whole = np.concatenate([np.array(prompt.before, dtype=np.int32), ids])
    if not prompt.templated and encoder.bos is not None and encoder.bos in whole[1:]:
        if whole[:2].tolist() == [encoder.bos] * 2:
            raise Unusable("its prompt begins with BOS twice")
        if not _bos_begins_parts(prompt, encoder, template):
            raise Unusable("its prompt holds BOS once more behind its beginning")
    if not len(whole):
        whole = np.array(encoder.start, dtype=np.int32)
    if not len(whole):
        raise Unusable("its prompt is empty, and the tokenizer has neither BOS nor EOS to begin with")
    return whole


def _bos_begins_parts(prompt: Prompt, encoder: Encoder, template: ChatTemplate) -> bool:
    """Whether BOS belongs within a text: it is EOS as well, stands behind EOS, or the chat template begins turns with it."""
    if encoder.bos == encoder.eos or template.repeats(encoder.bos_text):
        return True
    *parts, _ = prompt.text.split(encoder.bos_text)
    return bool(encoder.eos_text and parts) and all(part.rstrip().endswith(encoder.eos_text) for part in parts)


def _example(
    row: Row,
    prompt: np.ndarray,
    answers: Sequence[np.ndarray],
    encoder: Encoder,
    result: Tokenised,
    *,
    max_length: int,
    overlong: Overlong,
    room: int,
) -> Example:
    """One example, its answers ended by EOS or cut at the limit."""
    left = max_length - len(prompt)
    if left < room:
        wanted = "an answer" if room == 1 else f"an answer of {room:,} tokens"
        raise Unusable(f"its prompt leaves no room for {wanted} within {max_length:,} tokens")
    end = [] if encoder.eos is None else [encoder.eos]
    completions, cut = [], 0
    for ids in answers:
        if not len(ids):
            raise Unusable(EMPTY)
        if encoder.eos in ids:
            raise Unusable("an answer goes on behind EOS")
        if encoder.bos in ids:
            raise Unusable("an answer holds BOS")
        whole = np.concatenate([ids, np.array(end, dtype=np.int32)])
        completions.append(whole[:left])
        cut += len(whole) > left
    if cut and overlong == "drop":
        raise Unusable(f"an answer goes beyond {max_length:,} tokens")
    if len({completion.tobytes() for completion in completions}) < len(completions):
        raise Unusable("two answers are identical up to the limit" if cut else IDENTICAL)
    result.truncated += cut
    result.prompt_lengths.append(len(prompt))
    result.answer_lengths.extend(len(ids) + len(end) for ids in answers)
    return Example(row.number, prompt, tuple(completions), row.ranks, row.pairs, row.margins)
