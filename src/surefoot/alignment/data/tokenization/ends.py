"""What ends an answer: decided here, once, for data, sampling, rewards, what is saved and the model card alike."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surefoot.alignment.data.reading.tally import Unusable
from surefoot.alignment.data.tokenization.encoder import Encoder
from surefoot.alignment.data.tokenization.templates import PROBES, QUESTION, ChatTemplate
from surefoot.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class AnswerEnds:
    """The ends of answers, from tokenizer, settings and chat template together (:meth:`of`)."""

    eos: int | None
    """The tokenizer's EOS, with which the data loading ends every answer that it does not cut; None where it has none."""
    turn: tuple[int, ...]
    """What stands behind the whole answer of a conversation in training: what the chat template puts there, and EOS. It ends with EOS."""
    sampling: tuple[int, ...]
    """Ids that end an answer when it is sampled, and that the saved settings name: EOS, what the model's settings name, and the special
    token with which the chat template ends a turn, where it is one alone: parts of a longer end may stand within answers too."""
    ordinary: tuple[int, ...]
    """Those of them that only the settings name, and that are words or parts of words; usually the settings are another model's."""
    around: tuple[str, str]
    """What training puts before and behind the text of a conversation's answer; of plain texts where there is no template."""
    shown: tuple[str, ...]
    """The tokens at which sampling ends, as text."""
    notices: tuple[str, ...]
    """All this in a sentence for the user, and in a second one what is likely a mistake in it."""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast, named: Iterable[int] = ()) -> AnswerEnds:
        """Decide.

        Args:
            tokenizer: of the model, with its chat template.
            named: ids that the model's settings name as ends (:func:`~surefoot.alignment.models.ending.named_ends`).
        """
        eos, named = tokenizer.eos_token_id, tuple(dict.fromkeys(named))
        end = () if eos is None else (eos,)
        around, turn = _around_a_turn(tokenizer) or (("", tokenizer.eos_token or ""), end)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        end_of_turn = tokenizer.get_added_vocab().get(around[1].removesuffix(tokenizer.eos_token or "").strip())
        of_template = () if end_of_turn is None else (end_of_turn,)
        sampling = tuple(dict.fromkeys((*end, *named, *of_template)))
        ordinary = tuple(token for token in named if token not in special and token not in end)
        missing = tuple(token for token in sampling if token not in named)

        texts = {token: str(tokenizer.decode([token])) for token in sampling}
        there = set(tokenizer.get_vocab().values())

        def listed(ids: Iterable[int]) -> str:
            names = {token: repr(text) if token in there else f"id {token}, which is no token" for token, text in texts.items()}
            return " or ".join(f"EOS ({texts[token]})" if token == eos else names[token] for token in ids)

        parts = [
            f"answers end at {listed(sampling)}" if sampling else "no token ends an answer, so each has the longest length"
        ]
        if turn != end:
            parts.append(f"training puts {around[1]!r} behind a conversation's answer")
        if missing:
            parts.append(f"the model's settings do not name {listed(missing)}, and what is saved does")
        notices = ["; ".join(parts)]
        if ordinary:
            notices.append(
                f"answers also end at {listed(ordinary)}, no special token, because the model's settings name it: take it out of"
                " eos_token_id in generation_config.json and config.json if they are not to"
            )
        return AnswerEnds(eos, turn, sampling, ordinary, around, tuple(texts.values()), tuple(notices))

    def trained(self, *, conversation: bool) -> tuple[int, ...]:
        """Ids behind a whole answer in training."""
        return self.turn if conversation or self.eos is None else (self.eos,)

    def without(self, answer: np.ndarray, *, conversation: bool) -> np.ndarray:
        """A finished answer without what ended it: the token that was sampled last, or as much as there is of what training has there."""
        end = self.trained(conversation=conversation)
        for count in range(min(len(end), len(answer)), 0, -1):
            if tuple(answer[-count:].tolist()) == end[:count]:
                return answer[:-count]
        return answer[:-1]

    def as_trained(self, answer: np.ndarray, *, conversation: bool) -> np.ndarray:
        """A finished answer as the data loading would have ended it, whichever token ended it when it was sampled."""
        end = np.array(self.trained(conversation=conversation), dtype=answer.dtype)
        return np.concatenate([self.without(answer, conversation=conversation), end]) if len(end) else answer


def require_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that cannot end the answers that are trained on.

    Raises:
        UsageError: it has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no EOS, so no answer could end; name one as"
            " eos_token in its tokenizer_config.json"
        )


def without_eos(text: str, eos: str) -> tuple[str, bool]:
    """The text before its EOS, and whether it had one; behind EOS there may be white space and more EOS.

    Raises:
        Unusable: the text goes on behind EOS.
    """
    if not eos or eos not in text:
        return text, False
    before, _, behind = text.partition(eos)
    if behind.replace(eos, "").strip():
        raise Unusable("an answer goes on behind EOS")
    return before, True


def _around_a_turn(tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[str, str], tuple[int, ...]] | None:
    """What stands around a conversation's answer, as text, and the ids behind it; None where no template says so."""
    if not tokenizer.chat_template:
        return None
    template, eos_text, before = ChatTemplate(tokenizer), tokenizer.eos_token or "", ""
    if template.tail is None:
        return None
    with suppress(Unusable):
        before = template.answer(QUESTION, ({"role": "assistant", "content": PROBES[0]},)).before
    try:
        behind, _ = without_eos(template.tail, eos_text)
    except Unusable:
        return None
    ids = Encoder(tokenizer).encode([behind], continuing=True)[0].tolist() if behind else []
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return (before, behind + eos_text), (*ids, *end)
