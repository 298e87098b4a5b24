"""Rewards as the online loop asks for them, against the task's own table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surefoot.alignment.exact.language import language_task, reference_model
from surefoot.alignment.exact.models import as_language, scoring_model
from surefoot.alignment.exact.rewards import ScoredRewards, TrueRewards, all_scores, prompts_of
from surefoot.alignment.exact.tasks import table_task
from surefoot.alignment.likelihood.likelihood import Likelihood

LANGUAGE = language_task(reference_model(vocabulary=3, length=2, width=16), prompts=2, length=2)
TABLE = as_language(table_task(prompts=3, answers=4))


def asked(language, *numbers):
    """Prompts, not in order and one of them twice, with two answers each."""
    prompts = [prompts_of(language)[x] for x, *_ in numbers]
    answers = [[language.answers[y].astype(np.int32) for y in own] for _, *own in numbers]
    return prompts, answers, np.zeros(2 * len(numbers), bool)


@pytest.mark.parametrize("language", [LANGUAGE, TABLE], ids=["language", "table"])
def test_every_answer_has_its_own_reward(language):
    numbers = [(1, 0, 3), (0, 2, 2), (1, 3, 1)]
    got = TrueRewards(language).rewards(*asked(language, *numbers))
    assert got.tolist() == [language.task.rewards[x, y] for x, *own in numbers for y in own]
    assert len(set(got.tolist())) == 4


def test_prompts_are_the_tasks_in_order():
    prompts = prompts_of(LANGUAGE)
    assert [prompt.number for prompt in prompts] == [1, 2]
    assert [prompt.ids.tolist() for prompt in prompts] == LANGUAGE.prompts.tolist()
    assert prompts[0].ids.dtype == np.int32


@pytest.mark.parametrize("language", [LANGUAGE, TABLE], ids=["language", "table"])
def test_a_reward_models_scores_are_those_of_each_answer_alone(language):
    model = scoring_model(language)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    likelihood = Likelihood(model)
    scores = all_scores(likelihood, language)
    likelihood.release()
    assert scores.shape == language.task.rewards.shape
    for x, prompt in enumerate(language.prompts):
        for y, answer in enumerate(language.answers):
            with torch.no_grad():
                alone = model(torch.from_numpy(np.concatenate([prompt, answer]))[None]).logits.item()
            assert scores[x, y] == pytest.approx(alone, abs=1e-5)
    numbers = [(1, 0, 3), (0, 2, 2), (1, 3, 1)]
    got = ScoredRewards(Likelihood(model)).rewards(*asked(language, *numbers))
    np.testing.assert_allclose(got, [scores[x, y] for x, *own in numbers for y in own], atol=1e-5)
