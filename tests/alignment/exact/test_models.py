"""The tasks as models: a table that a real model answers from, and what every part of alignment makes of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from surefoot.alignment.exact.language import exact_log_probabilities, language_task, reference_model
from surefoot.alignment.exact.models import TASKS, as_language, critic_of, make_task, scoring_model, table_model
from surefoot.alignment.exact.tasks import log_softmax, measure_policy, optimal_policy, table_task
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.errors import UsageError


@pytest.mark.parametrize(("prompts", "answers", "seed"), [(8, 16, 0), (1, 2, 1), (5, 5, 2), (7, 9, 3)])
def test_the_model_answers_as_the_table_does(prompts, answers, seed):
    task = table_task(prompts=prompts, answers=answers, seed=seed)
    language, model = as_language(task), table_model(task)
    got = exact_log_probabilities(model, language.prompts, length=1)
    np.testing.assert_allclose(got, task.reference_log_probabilities, atol=2e-6)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(table_model(task).parameters(), model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_can_become_any_table():
    task = table_task(prompts=3, answers=4)
    model, language = table_model(task), as_language(task)
    wanted = torch.from_numpy(optimal_policy(task, beta=0.2).log_probabilities)
    model.double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        likely = model(torch.from_numpy(language.prompts)).logits[:, -1].log_softmax(dim=-1)
        loss = (wanted.exp() * (wanted - likely)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert measure_policy(task, exact_log_probabilities(model, language.prompts, length=1), beta=0.2).kl_to_optimum < 1e-7


@pytest.mark.parametrize("name", TASKS)
def test_the_likelihood_takes_every_task_without_a_slow_way(name):
    language, model = make_task(name)
    likelihood = Likelihood(model)
    answers = list(language.answers[[0, 5, -1]].astype(np.int32))
    groups = [(prompt, answers) for prompt in language.prompts.astype(np.int32)]
    assert likelihood.check(groups) is None
    got = likelihood.completions(groups).sums().detach().numpy().reshape(len(groups), 3)
    np.testing.assert_allclose(got, language.task.reference_log_probabilities[:, [0, 5, -1]], atol=1e-5)
    for other in (critic_of(model), scoring_model(language)):
        torch.nn.init.normal_(other.score.weight, generator=torch.Generator().manual_seed(0))
        assert Likelihood(other).check(groups) is None


def test_prompts_of_a_table_are_tokens_among_its_answers():
    task = table_task(prompts=3, answers=4)
    language = as_language(task)
    assert language.task is task
    assert language.prompts.tolist() == [[0], [1], [2]]
    assert language.answers.tolist() == [[0], [1], [2], [3]]
    with pytest.raises(UsageError, match="5 prompts need as many answers, but there are 4"):
        as_language(table_task(prompts=5, answers=4))
    with pytest.raises(UsageError, match="no task 'chess'; there are table, language"):
        make_task("chess")


def test_a_critic_has_the_policys_trunk_and_says_zero():
    language, model = make_task("language")
    critic = critic_of(model)
    trunk = dict(model.transformer.named_parameters())
    for name, parameter in critic.transformer.named_parameters():
        assert torch.equal(parameter, trunk[name])
        assert parameter.data_ptr() != trunk[name].data_ptr()
    groups = [(language.prompts[0].astype(np.int32), [language.answers[7].astype(np.int32)])]
    np.testing.assert_array_equal(Likelihood(critic).scores(groups).detach().numpy(), 0)
    assert model.config.num_labels == 2  # the policy's configuration is its own


def test_a_scoring_model_sees_prompt_and_answer_of_a_table():
    """One with the table's own trunk would not: it has no attention."""
    language = as_language(table_task(prompts=3, answers=4))
    model = scoring_model(language, seed=1)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    groups = [(p, list(language.answers.astype(np.int32))) for p in language.prompts.astype(np.int32)]
    scores = Likelihood(model).scores(groups).detach().reshape(3, 4)
    mixed = scores - scores[:1] - scores[:, :1] + scores[:1, :1]
    assert mixed[1:, 1:].abs().min() > 1e-3
    again = scoring_model(language, seed=2)
    assert not torch.equal(again.transformer.wte.weight, model.transformer.wte.weight)


def test_policies_of_the_task_are_measured_as_models():
    """A model that was changed is another policy."""
    model = reference_model(vocabulary=3, length=2, width=16)
    language = language_task(model, prompts=2, length=2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.5)
    got = exact_log_probabilities(other, language.prompts, length=2)
    np.testing.assert_allclose(log_softmax(got), got, atol=1e-9)
    assert measure_policy(language.task, got, beta=1.0).kl_to_reference > 1e-3
