"""Log-probabilities, entropies and values for RLHF; the oracle is the model itself in float64, one sequence at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surefoot.alignment.likelihood.distribution import PLAIN, AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.errors import UsageError
from tests.alignment.likelihood.architectures import MORE_THAN_A_HEAD, VOCABULARY, build
from tests.alignment.likelihood.test_likelihood import EVEN, UNEVEN, gradients, weighted

torch.set_num_threads(1)

UNDER = AnswerDistribution(temperature=0.7, shortest=3, ends=(1, 23), never=(20,))
TWO = AnswerDistribution(temperature=1.9, shortest=2, ends=(23,))


def without_ends(groups):
    """And without the token that is never drawn."""
    return [
        (prompt, [np.choose((answer == 23) + 2 * (answer == 20), (answer, 22, 21)) for answer in answers])
        for prompt, answers in groups
    ]


def one_by_one(model, groups, under):
    """Log-probabilities and entropies of each answer's tokens, [(tokens, entropies)]."""
    result = []
    for prompt, answers in groups:
        for answer in answers:
            ids = torch.tensor([*prompt.tolist(), *answer.tolist()])[None]
            logits = model(ids).logits[0, len(prompt) - 1 : -1] / under.temperature
            rows = []
            for step, row in enumerate(logits):
                there = torch.ones(VOCABULARY, dtype=torch.bool)
                there[list(under.never)] = False
                if step < under.shortest - 1:
                    there[list(under.ends)] = False
                left = row[there]
                log_probabilities = torch.full_like(row, -torch.inf).masked_scatter(there, left.log_softmax(-1))
                entropy = torch.distributions.Categorical(logits=left).entropy()
                rows.append((log_probabilities[int(answer[step])], entropy))
            result.append(tuple(torch.stack(x) for x in zip(*rows, strict=True)))
    return result


def split(result, x):
    return [x[result.completion_of == i] for i in range(result.count)]


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", *MORE_THAN_A_HEAD])
@pytest.mark.parametrize("groups", [without_ends(UNEVEN), without_ends(EVEN)], ids=["uneven", "even"])
def test_log_probabilities_entropies_and_their_gradients_are_those_of_separate_forwards(name, groups):
    model, twice = build(name), build(name).double()
    likelihood = Likelihood(model)
    likelihood.check(groups)
    result = likelihood.completions(groups, under=UNDER, entropies=True)
    exact = one_by_one(twice, groups, UNDER)
    tokens, entropies = split(result, result.tokens), split(result, result.entropies)
    for mine, of_mine, (theirs, of_theirs) in zip(tokens, entropies, exact, strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=2e-5)
        torch.testing.assert_close(of_mine, of_theirs.float(), rtol=0, atol=2e-5)
    slopes = gradients(model, weighted(tokens) + 0.7 * weighted(entropies))
    of_exact = gradients(twice, weighted([t for t, _ in exact]) + 0.7 * weighted([e for _, e in exact]))
    largest = max(g.abs().max() for g in of_exact.values())
    for key, slope in of_exact.items():
        assert (slopes[key] - slope).abs().max() <= 2e-5 * largest, key


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_may_have_a_bias_and_one_token_is_a_least_length_too(bias):
    def biased():
        model = build("llama")
        torch.manual_seed(3)
        model.lm_head = torch.nn.Linear(16, VOCABULARY, bias=bias)
        return model

    groups = without_ends(UNEVEN)
    likelihood = Likelihood(biased())
    assert likelihood.check(groups) is None
    result = likelihood.completions(groups, under=TWO, entropies=True)
    exact = one_by_one(biased().double(), groups, TWO)
    slopes = gradients(likelihood.model, weighted(split(result, result.tokens)))
    of_exact = gradients(likelihood.model, weighted([t.float() for t, _ in one_by_one(likelihood.model, groups, TWO)]))
    for mine, of_mine, (theirs, of_theirs) in zip(
        split(result, result.tokens), split(result, result.entropies), exact, strict=True
    ):
        torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=2e-5)
        torch.testing.assert_close(of_mine, of_theirs.float(), rtol=0, atol=2e-5)
    for key, slope in of_exact.items():
        torch.testing.assert_close(slopes[key], slope, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_token_that_cannot_be_drawn_has_no_chance_and_no_gradient(name):
    model = build(name)
    likelihood = Likelihood(model)
    likelihood.check(UNEVEN)
    ended = [(prompt, [torch.tensor([4, 1, 1]).numpy(), torch.tensor([1, 5]).numpy()]) for prompt, _ in UNEVEN]
    result = likelihood.completions(ended, under=UNDER, entropies=True)
    impossible = split(result, result.tokens == -torch.inf)
    assert [x.tolist() for x in impossible] == [[False, True, False], [True, False]] * 3
    there = result.tokens[result.tokens != -torch.inf]
    slopes = gradients(model, there.sum() + result.entropies.sum())
    assert all(torch.isfinite(slope).all() for slope in slopes.values())


def test_the_plain_distribution_is_the_default_to_the_bit():
    likelihood = Likelihood(build("llama"))
    default, plain = likelihood.completions(UNEVEN), likelihood.completions(UNEVEN, under=PLAIN)
    assert torch.equal(default.tokens, plain.tokens)
    assert default.entropies is None
    assert default.values is None
    free = likelihood.completions(UNEVEN, under=AnswerDistribution(ends=(3, 4), shortest=1))
    assert torch.equal(default.tokens, free.tokens)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_what_is_no_token_has_no_chance_anywhere_and_the_others_share_it(name):
    model = build(name)
    likelihood = Likelihood(model)
    likelihood.check(UNEVEN)
    under = AnswerDistribution(never=tuple(range(12, VOCABULARY)))
    one_token = [(UNEVEN[0][0], [np.array([token]) for token in range(VOCABULARY)])]
    logs = likelihood.completions(one_token, under=under).tokens.detach()
    assert float(logs[:12].exp().sum()) == pytest.approx(1, abs=1e-6)
    assert bool((logs[12:] == -torch.inf).all())
    head = likelihood.head.weight
    likely = likelihood.completions([(UNEVEN[0][0], [np.array([3])])], under=under, entropies=True)
    slope = gradients(model, likely.tokens.sum() + likely.entropies.sum())
    name_of_head = next(n for n, p in model.named_parameters() if p is head)
    if name == "llama":  # gemma2's head is its embedding too
        assert not bool(slope[name_of_head][12:].any())
    assert bool(slope[name_of_head][:12].any())


def test_steps_count_an_answers_tokens():
    result = Likelihood(build("llama")).completions(UNEVEN)
    assert [x.tolist() for x in split(result, result.step_of)] == [list(range(n)) for n in (5, 1, 7, 3, 6, 2)]


@pytest.mark.parametrize("name", ["llama", *MORE_THAN_A_HEAD])
@pytest.mark.parametrize("bias", [False, True])
def test_a_value_head_reads_the_state_before_each_token(name, bias):
    model, head = build(name), torch.nn.Linear(16, 1, bias=bias)
    likelihood = Likelihood(model)
    likelihood.check(UNEVEN)
    result = likelihood.completions(UNEVEN, value_head=head)
    values = split(result, result.values)
    slopes = gradients(torch.nn.ModuleList([model, head]), weighted(values))
    likelihood.release()
    expected = []
    for prompt, answers in UNEVEN:
        for answer in answers:
            ids = torch.tensor([*prompt.tolist(), *answer.tolist()])[None]
            expected.append(head(likelihood.trunk(ids).last_hidden_state)[0, len(prompt) - 1 : -1, 0])
    for mine, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
    of_expected = gradients(torch.nn.ModuleList([model, head]), weighted(expected))
    largest = max(g.abs().max() for g in of_expected.values())
    assert "1.weight" in of_expected
    for key, slope in of_expected.items():
        assert (slopes[key] - slope).abs().max() <= 2e-5 * largest, key


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral with a window"])
def test_a_critics_values_are_its_scores_of_what_came_before_each_token(name):
    model = build(name, reward=True)
    critic = Likelihood(model)
    critic.check(UNEVEN)
    values = critic.values(UNEVEN)
    assert values.dtype == torch.float32
    result = Likelihood(build(name), share_prompts=critic.shared).completions(UNEVEN)
    critic.release()
    numbers = iter(range(result.count))
    for prompt, answers in UNEVEN:
        for answer in answers:
            own = values[result.completion_of == next(numbers)]
            for step, value in enumerate(own):
                ids = torch.tensor([*prompt.tolist(), *answer.tolist()[:step]])[None]
                torch.testing.assert_close(value, model(ids).logits[0, 0], rtol=0, atol=2e-5)


def test_a_critics_head_may_have_a_bias():
    model = build("llama", reward=True)
    critic = Likelihood(model)
    before = critic.values(UNEVEN)
    model.score = torch.nn.Linear(16, 1)
    model.score.weight = critic.head.weight
    torch.testing.assert_close(Likelihood(model).values(UNEVEN), before + model.score.bias)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"shortest": 0}, "shortest answer has 0 tokens"),
        ({"ends": (3, -1)}, "token -1"),
    ],
)
def test_what_is_no_distribution_is_refused(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        AnswerDistribution(**changes)
