"""Rewards from a function in Python: a rule that can be checked, a test that is run, another program that is asked."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.data.prompts import Prompt
from surefoot.alignment.data.tokenization.decoding import sampled_texts
from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.learning.nonfinite import NotFinite
from surefoot.alignment.rewards.importing import described, import_function
from surefoot.alignment.rewards.source import SHOWN_CHARACTERS, shown, shown_prompt
from surefoot.errors import RunError, UsageError, require

PROMPTS, COMPLETIONS = "prompts", "completions"
ABOUT_ANSWERS = ("completion_ids", "finished")
"""What a function may ask for beside the columns of the data."""


class FunctionReward:
    """Calls ``function(prompts, completions)`` with as many prompts as answers, and expects one finite number per answer.

    Prompts are as the data have them: texts, or lists of messages. Completions are texts without what ended them and without special tokens
    (:func:`~surefoot.alignment.data.tokenization.decoding.sampled_texts`). Every further parameter of the function gets, by keyword, one
    value per answer: ``completion_ids`` the answers' token ids with their end token, ``finished`` whether they ended by themselves, any
    other name the column of the data that is called so, None in rows that lack it. ``**keywords`` takes all columns.

    Args:
        name: ``module:function`` or ``path/to/file.py:function``.
        tokenizer: the policy's.
        ends: of the policy's answers; by its tokenizer alone where they are not given.

    Raises:
        UsageError: there is no such function, or it cannot be called so.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerFast, ends: AnswerEnds | None = None) -> None:
        self.name = name
        self.notices: tuple[str, ...] = ()
        self._function, self._file = import_function(name)
        self._tokenizer, self._ends = tokenizer, ends or AnswerEnds.of(tokenizer)
        self._parameters = _Parameters(self._function, name)
        self._columns: list[str] | None = None

    def check(self, prompts: Sequence[Prompt], *, longest_answer: int = 0) -> None:
        """See whether the data have the columns that the function asks for; of those with a default it is said where they do not.

        Raises:
            UsageError: one is missing.
        """
        there = dict.fromkeys(column for prompt in prompts for column in prompt.columns)
        missing = [column for column in self._parameters.columns if column not in there]
        needed = [column for column in missing if column not in self._parameters.optional]
        if needed:
            others = ", ".join(there) or "none"
            raise UsageError(
                f"--reward {self.name} asks for {needed[0]}, and the data have no column of that name beside the prompts; there are:"
                f" {others}"
            )
        asked = [column for column in self._parameters.columns if column in there]
        if self._parameters.everything:
            asked += [column for column in there if column not in (*asked, PROMPTS, COMPLETIONS, *ABOUT_ANSWERS)]
        self._columns = asked
        self.notices = tuple(
            f"{self.name}: the data have no column {column}, so that parameter keeps its default" for column in missing
        )

    def rewards(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[np.ndarray]], finished: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """What the function returns, one number per answer.

        Raises:
            UsageError: :meth:`check` was not called before, and finds something.
            NotFinite: a number is not finite.
            RunError: the function raises, or returns anything else.
        """
        if self._columns is None:
            self.check(prompts)
        of = [prompt for prompt, own in zip(prompts, answers, strict=True) for _ in own]
        texts: list[str] = []
        for prompt, own in zip(prompts, answers, strict=True):
            ended = finished[len(texts) : len(texts) + len(own)]
            texts += sampled_texts(prompt, own, ended, self._tokenizer, self._ends)
        about = {"completion_ids": [ids.tolist() for own in answers for ids in own], "finished": finished.tolist()}
        try:
            returned = self._call(of, texts, about)
        except (Exception, SystemExit) as error:  # the function is the user's program, and may raise anything
            prompt, text, narrower = self._first_to_raise(of, texts, about, error)
            raise RunError(
                f"the reward function {self.name} failed at {shown_prompt(prompt)}, answer {shown(text)}:"
                f" {described(narrower, self._file)}"
            ) from narrower
        return self._numbers(returned, of, texts)

    def fingerprint(self) -> str:
        """Of the file that the function is in; what it imports or asks is not seen."""
        try:
            return hashlib.sha256(b"" if self._file is None else Path(self._file).read_bytes()).hexdigest()
        except OSError:
            return ""

    def _call(self, prompts: Sequence[Prompt], texts: Sequence[str], about: Mapping[str, Sequence[Any]]) -> Any:
        given = [
            prompt.text if isinstance(prompt.text, str) else [dict(message) for message in prompt.text] for prompt in prompts
        ]
        asked: dict[str, Any] = {name: list(about[name]) for name in self._parameters.about_answers}
        asked |= {column: [prompt.columns.get(column) for prompt in prompts] for column in self._columns or ()}
        if not self._parameters.by_name:
            return self._function(given, list(texts), **asked)
        if self._parameters.takes_prompts:
            asked[PROMPTS] = given
        return self._function(**{COMPLETIONS: list(texts)}, **asked)

    def _first_to_raise(
        self, prompts: Sequence[Prompt], texts: Sequence[str], about: Mapping[str, Sequence[Any]], error: BaseException
    ) -> tuple[Prompt, str, BaseException]:
        """The answer that a failed call failed at, by calling for halves; the first where it fails for none of them alone."""
        if len(texts) == 1:
            return prompts[0], texts[0], error
        middle = len(texts) // 2
        for part in (slice(None, middle), slice(middle, None)):
            inside = prompts[part], texts[part], {name: values[part] for name, values in about.items()}
            try:
                self._call(*inside)
            except (Exception, SystemExit) as narrower:
                return self._first_to_raise(*inside, narrower)
        return prompts[0], texts[0], error

    def _numbers(self, returned: Any, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[np.ndarray, " N"]:
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, list | tuple):
            raise RunError(
                f"the reward function {self.name} returned {type(returned).__name__} for answers to {shown_prompt(prompts[0])} and"
                " others; it must return one number per answer, as a list, a tuple, an array or a tensor"
            )
        if len(values) != len(texts):
            raise RunError(
                f"the reward function {self.name} returned {len(values)} rewards for {len(texts)} answers, the first of them to"
                f" {shown_prompt(prompts[0])}; it must return one number per answer"
            )
        numbers = np.empty(len(values))
        for i, value in enumerate(values):
            number = _finite(value)
            if number is None:
                kind = NotFinite if isinstance(value, float) else RunError
                raise kind(
                    f"the reward function {self.name} returned {_printed(value)} for {shown_prompt(prompts[i])}, answer"
                    f" {shown(texts[i])}; a reward is a finite number"
                )
            numbers[i] = number
        return numbers


class _Parameters:
    """What a function asks for."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            raise UsageError(f"--reward {name}: its parameters cannot be read; write a function in Python around it") from None
        kinds = inspect.Parameter
        in_order = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.everything = any(p.kind == kinds.VAR_KEYWORD for p in parameters)
        any_number = any(p.kind == kinds.VAR_POSITIONAL for p in parameters)
        only_named = [p for p in parameters if p.kind == kinds.KEYWORD_ONLY]
        names = [p.name for p in (*in_order, *only_named)]
        self.by_name = COMPLETIONS in names and not any(p.kind == kinds.POSITIONAL_ONLY for p in parameters)
        self.takes_prompts = PROMPTS in names or self.everything
        if self.by_name:
            further = [p for p in (*in_order, *only_named) if p.name not in (PROMPTS, COMPLETIONS)]
        else:
            require(
                len(in_order) >= 2 or any_number,
                f"--reward {name} takes {len(in_order)} of the two arguments that it is called with, (prompts, completions)",
            )
            first, further = in_order[:2], [*in_order[2:], *only_named]
            for parameter, wrong in zip(first, (ABOUT_ANSWERS, (PROMPTS, *ABOUT_ANSWERS)), strict=False):
                require(
                    parameter.name not in wrong,
                    f"--reward {name} has {parameter.name} in the wrong place; it is called with (prompts, completions), and with"
                    " what else it asks for by keyword",
                )
            for parameter in further:
                require(
                    parameter.kind != kinds.POSITIONAL_ONLY,
                    f"--reward {name}: its parameter {parameter.name} cannot be given by keyword, as all but the first two are",
                )
        self.about_answers = [p.name for p in further if p.name in ABOUT_ANSWERS]
        self.columns = [p.name for p in further if p.name not in ABOUT_ANSWERS]
        self.optional = [p.name for p in further if p.default is not kinds.empty]


def _printed(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _finite(value: Any) -> float | None:
    """The number; None where it is none, or not finite."""
    if hasattr(value, "tolist"):  # a scalar of NumPy's, or a tensor without dimensions
        value = value.tolist()
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond any float
        return None
    return number if math.isfinite(number) else None
