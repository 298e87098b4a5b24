"""Rewards from a trained reward model, with the policy's tokenizer or one of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.data.examples import Message, Row
from surefoot.alignment.data.prompts import Prompt, longest_groups
from surefoot.alignment.data.reading.tally import Tally, Unusable, phrases
from surefoot.alignment.data.tokenization.decoding import sampled_texts
from surefoot.alignment.data.tokenization.encoder import Encoder, content_of
from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.data.tokenization.templates import ChatTemplate, Written
from surefoot.alignment.data.tokenization.tokens import tokenise
from surefoot.alignment.learning.nonfinite import NotFinite
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import Group
from surefoot.alignment.models.fingerprint import weights_fingerprint
from surefoot.alignment.preparation import check_length
from surefoot.alignment.rewards.source import shown_prompt
from surefoot.errors import RunError, UsageError

TOKENS_AT_ONCE = 8192
"""Tokens of prompts and answers that are scored together, which bounds the memory."""
ENCODING_PARTS = ("model", "normalizer", "pre_tokenizer", "post_processor")
"""Parts of a tokenizer that decide which ids a text becomes, added tokens apart."""


class ModelReward:
    """Scores answers with a reward model's head, read where it was read in the reward model's training.

    Where the reward model has the policy's tokenizer, it reads the ids that were sampled. A finished answer is ended as training
    ended it (:meth:`AnswerEnds.as_trained`), whichever token ended it when it was sampled: behind the end of a turn there may be more, and
    EOS. The score of an answer that was cut at the limit is read at its last token, since it has no end.

    Else the policy's ids become text, special tokens within it included, what ended it taken off
    (:func:`~surefoot.alignment.data.tokenization.decoding.sampled_texts`), and then the ids that the
    data loading would have made of that text for the reward model's tokenizer: its BOS, its chat template, its EOS behind finished answers
    and behind no others. What follows an EOS that is spelt in the text is left out.

    Args:
        likelihood: of the reward model, which is put into evaluation mode and frozen.
        tokenizer: the reward model's.
        policy_tokenizer: the policy's.
        policy_ends: of the policy's answers; by its tokenizer alone where they are not given.
        name: of the reward model, for logs.
        notices: what was said when it was loaded.
        tokens_at_once: how many tokens are scored together; one answer with its prompt always is.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        tokenizer: PreTrainedTokenizerFast,
        policy_tokenizer: PreTrainedTokenizerFast,
        policy_ends: AnswerEnds | None = None,
        *,
        name: str,
        notices: Sequence[str] = (),
        tokens_at_once: int = TOKENS_AT_ONCE,
    ) -> None:
        likelihood.model.eval().requires_grad_(False)
        self.name, self.likelihood, self.tokenizer = name, likelihood, tokenizer
        self.same_tokens = same_tokenizer(policy_tokenizer, tokenizer)
        """Whether the policy's ids are the reward model's."""
        self.same_template = policy_tokenizer.chat_template == tokenizer.chat_template
        self.notices = tuple(notices)
        if not self.same_tokens:
            self.notices += (f"{name} has another tokenizer than the policy: answers are decoded and encoded anew for it",)
        self._policy_tokenizer, self._at_once = policy_tokenizer, tokens_at_once
        self._policy_ends, self.ends = policy_ends or AnswerEnds.of(policy_tokenizer), AnswerEnds.of(tokenizer)
        self._encoder, self._template = Encoder(tokenizer), ChatTemplate(tokenizer)
        self._opening = ChatTemplate(policy_tokenizer).opening if policy_tokenizer.chat_template else ""
        """What the policy's prompts begin of its answers, which is part of what a reward model reads as the answer."""
        self._prompts: dict[Prompt, np.ndarray] = {}
        self._longest = 0
        """Tokens of prompt and answer that there are known to be positions for."""

    def check(self, prompts: Sequence[Prompt], *, longest_answer: int) -> None:
        """Encode the prompts, and see whether there are positions for all and whether prompts can be shared.

        Raises:
            UsageError: the reward model cannot read a prompt, or has too few positions; or its score is more than a linear layer.
        """
        if self.same_tokens and not self.same_template and not all(isinstance(prompt.text, str) for prompt in prompts):
            self.notices += (f"{self.name} has another chat template than the policy: conversations are written anew for it",)
        self._read_prompts(prompts)
        own = [self._prompt_ids(prompt) for prompt in prompts]
        more = max(len(self.ends.trained(conversation=not isinstance(prompt.text, str))) for prompt in prompts)
        said = self._check_length(
            max(map(len, own)) + longest_answer + max(0, more - 1)
        )  # an end of one token is in the answer
        if notice := self.likelihood.check(longest_groups(own, longest_answer=longest_answer)):
            said.append(notice)
        self.notices += tuple(type(sentence)(f"{self.name}: {sentence}") for sentence in said)

    @torch.no_grad()
    def rewards(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[np.ndarray]], finished: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """The head's output for every answer, in parts of bounded size.

        Raises:
            UsageError: :meth:`check` was not called before, and finds something.
            NotFinite: a score is not finite.
            RunError: an answer goes beyond the model's positions.
        """
        if not self._longest:
            self.check(prompts, longest_answer=max(len(ids) for own in answers for ids in own))
        counts = np.cumsum([len(own) for own in answers])
        groups = [
            self._group(prompt, own, ended)
            for prompt, own, ended in zip(prompts, answers, np.split(finished, counts[:-1]), strict=True)
        ]
        for prompt, (ids, own) in zip(prompts, groups, strict=True):
            try:
                self._check_length(len(ids) + max(map(len, own)))
            except UsageError as error:
                raise RunError(f"an answer to {shown_prompt(prompt)} cannot be scored: {error}") from error
        scores = torch.cat([self.likelihood.scores(part) for part in _parts(groups, self._at_once)]).double().cpu().numpy()
        if not np.isfinite(scores).all():
            first = int(np.flatnonzero(~np.isfinite(scores))[0])
            prompt = prompts[int(np.searchsorted(counts, first, side="right"))]
            raise NotFinite(f"the reward model {self.name} gives {scores[first]} for an answer to {shown_prompt(prompt)}")
        return scores

    def fingerprint(self) -> str:
        """Of the weights, and of the tokenizer that answers are read with."""
        reading = [weights_fingerprint(self.likelihood.model), content_of(self.tokenizer), self.tokenizer.chat_template]
        return hashlib.sha256(json.dumps(reading, sort_keys=True, default=str).encode()).hexdigest()

    def _as_sampled(self, prompt: Prompt) -> bool:
        return self.same_tokens and (self.same_template or isinstance(prompt.text, str))

    def _group(self, prompt: Prompt, answers: Sequence[np.ndarray], finished: Bool[np.ndarray, " K"]) -> Group:
        """Prompt and answers as the reward model reads them."""
        if self._as_sampled(prompt):
            conversation = not isinstance(prompt.text, str)
            return prompt.ids, [
                self.ends.as_trained(ids, conversation=conversation) if ended else ids
                for ids, ended in zip(answers, finished.tolist(), strict=True)
            ]
        texts = sampled_texts(prompt, answers, finished, self._policy_tokenizer, self._policy_ends, special_tokens=True)
        written = [self._written(prompt, text, ended) for text, ended in zip(texts, finished.tolist(), strict=True)]
        encoded = self._encoder.encode(written, continuing=bool(prompt.text))
        end = np.array([self._encoder.eos], dtype=np.int32)
        return self._prompt_ids(prompt), [
            np.concatenate([ids, end]) if ended or not len(ids) else ids  # something must be there to be read at
            for ids, ended in zip(encoded, finished.tolist(), strict=True)
        ]

    def _written(self, prompt: Prompt, text: str, finished: bool) -> str:
        """An answer as the reward model's template writes it, up to its EOS; where it was cut, up to the cut.

        What the template does not write as it stands follows the prompt as it stands, with what ends a turn behind it.
        """
        if not isinstance(prompt.text, str):
            try:
                written = self._template.answer(prompt.text, _message(self._opening + text))
            except Unusable:
                written = Written("", text, self.ends.around[1])
            text = written.text if finished else written.before + written.content
        eos = self._encoder.eos_text
        return text.partition(eos)[0] if eos else text

    def _prompt_ids(self, prompt: Prompt) -> np.ndarray:
        if self._as_sampled(prompt):
            return prompt.ids
        if prompt not in self._prompts:
            self._read_prompts([prompt])
        return self._prompts[prompt]

    def _read_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Encode prompts as the data loading does."""
        unread = [prompt for prompt in prompts if prompt not in self._prompts and not self._as_sampled(prompt)]
        if not unread:
            return
        if self._encoder.eos is None:
            raise UsageError(f"the tokenizer of {self.name} has no EOS, so answers cannot be ended for it")
        tally, limit = Tally(), 2**31
        rows = [Row(prompt.number, prompt.text, ()) for prompt in unread]
        try:
            examples = tokenise(rows, self.tokenizer, tally, max_length=limit).examples
        except UsageError as error:
            raise UsageError(f"{self.name} cannot read the prompts: {error}") from error
        if tally.numbers:
            said = "; ".join(phrases(tally.counts(), tally.first()))
            raise UsageError(f"{self.name} cannot read all prompts: {said}")
        self._prompts |= {prompt: example.prompt for prompt, example in zip(unread, examples, strict=True)}

    def _check_length(self, tokens: int) -> list[str]:
        """What is to be said of sequences of so many tokens."""
        said: list[str] = []
        if tokens > self._longest:
            try:
                check_length(self.likelihood, tokens, said.append)
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from error
            self._longest = tokens
        return said


def same_tokenizer(policy: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Whether the ids of a policy's texts mean the same to another tokenizer, which would have made the same ids.

    The other one may know more tokens: a reward model's tokenizer may have been given a token that pads.
    """
    mine, its = content_of(policy), content_of(other)
    if any(mine[part] != its[part] for part in ENCODING_PARTS):
        return False
    special = ("bos_token_id", "eos_token_id", "split_special_tokens")
    if any(getattr(policy, name) != getattr(other, name) for name in special):
        return False
    vocabulary = other.get_vocab()
    return all(vocabulary.get(token) == number for token, number in policy.get_vocab().items())


def _message(content: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": content},)


def _parts(groups: Sequence[Group], tokens: int) -> Iterator[list[Group]]:
    """The groups in their order, in parts of at most so many tokens where an answer with its prompt does not exceed that alone."""
    part: list[Group] = []
    held = 0
    for prompt, answers in groups:
        for count, answer in enumerate(answers):
            new_prompt = count == 0
            needed = len(answer) + (len(prompt) if new_prompt else 0)
            if part and held + needed > tokens:
                yield part
                part, held, new_prompt, needed = [], 0, True, len(prompt) + len(answer)
            if new_prompt:
                part.append((prompt, [answer]))
            else:
                part[-1] = (prompt, [*part[-1][1], answer])
            held += needed
    if part:
        yield part
