"""Rewards of the enumerable tasks as the online loop asks for them: the true ones, and a reward model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from surefoot.alignment.data.prompts import Prompt
from surefoot.alignment.exact.language import LanguageTask
from surefoot.alignment.likelihood.likelihood import Likelihood

__all__ = ["ScoredRewards", "TrueRewards", "all_scores", "prompts_of"]

CHUNK = 1024
"""Answers scored at a time."""


def prompts_of(language: LanguageTask) -> list[Prompt]:
    """The task's prompts, as the online loop takes them; their numbers count from one."""
    return [
        Prompt(number, ids, " ".join(map(str, ids)), {})
        for number, ids in enumerate(language.prompts.astype(np.int32), start=1)
    ]


@dataclass(eq=False)
class TrueRewards:
    """r(x, y) of the task, looked up."""

    language: LanguageTask
    name: str = "the task's own"
    notices: tuple[str, ...] = ()

    def check(self, prompts: Sequence[Prompt], *, longest_answer: int) -> None:
        """Every answer of the task's own prompts has a reward."""

    def rewards(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[np.ndarray]], finished: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """One number per answer; none is unfinished, as all have the task's length."""
        listed = self.language.answers
        vocabulary, length = int(listed.max()) + 1, listed.shape[1]
        numbers = np.stack([answer for own in answers for answer in own]) @ vocabulary ** np.arange(length - 1, -1, -1)
        asked = np.repeat([prompt.number - 1 for prompt in prompts], [len(own) for own in answers])
        return self.language.task.rewards[asked, numbers]


@dataclass(eq=False)
class ScoredRewards:
    """What a reward model says."""

    likelihood: Likelihood
    name: str = "a reward model"
    notices: tuple[str, ...] = ()

    def check(self, prompts: Sequence[Prompt], *, longest_answer: int) -> None:
        """The model was made for the task's prompts and answers."""

    def rewards(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[np.ndarray]], finished: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """One score per answer."""
        with torch.no_grad():
            scores = self.likelihood.scores([(prompt.ids, own) for prompt, own in zip(prompts, answers, strict=True)])
        return scores.double().cpu().numpy()


def all_scores(likelihood: Likelihood, language: LanguageTask) -> Float[np.ndarray, "X Y"]:
    """A reward model's score of every answer to every prompt."""
    prompts, answers = language.prompts.astype(np.int32), list(language.answers.astype(np.int32))
    with torch.no_grad():
        rows = [
            torch.cat([likelihood.scores([(prompt, answers[a : a + CHUNK])]) for a in range(0, len(answers), CHUNK)])
            for prompt in prompts
        ]
    return torch.stack(rows).double().cpu().numpy()
