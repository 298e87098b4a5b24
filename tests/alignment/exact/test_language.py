"""The language task against answers run one by one, and against what the model generates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from surefoot.alignment.exact.language import (
    LanguageTask,
    all_answers,
    answer_log_probabilities,
    exact_log_probabilities,
    language_task,
    reference_model,
    to_examples,
)
from surefoot.alignment.exact.rankings import sample_rankings
from surefoot.errors import UsageError


@pytest.fixture(scope="module")
def language() -> LanguageTask:
    return language_task(reference_model(), prompts=2)


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=3, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, initializer_range=0.3,
        )
    ).eval()  # fmt: skip


def one_by_one(model, prompt, answer):
    """log π(y|x) token by token, each from a forward pass of its own."""
    total, tokens = 0.0, list(prompt)
    for token in answer:
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        total = total + logits.log_softmax(dim=-1)[token]
        tokens.append(token)
    return total


def test_answers_stand_in_lexical_order():
    assert all_answers(vocabulary=3, length=2).tolist() == [list(a) for a in itertools.product(range(3), repeat=2)]
    assert all_answers().shape == (4096, 4)
    assert all_answers(vocabulary=3, length=1).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("make", [lambda: reference_model(vocabulary=3, length=5, width=16), tiny_llama], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("prompts", "length"), [([[0], [2]], 3), ([[1, 0, 2]], 2), ([[2, 1], [0, 0]], 1)])
def test_enumeration_is_every_answer_by_itself(make, prompts, length):
    model, prompts = make(), np.array(prompts)
    with torch.no_grad():
        got = answer_log_probabilities(model, prompts, length=length)
        assert got.shape == (len(prompts), 3**length)
        for x, prompt in enumerate(prompts):
            for y, answer in enumerate(itertools.product(range(3), repeat=length)):
                assert got[x, y].item() == pytest.approx(one_by_one(model, prompt, answer).item(), abs=1e-5)


def test_gradients_are_those_of_every_answer_by_itself():
    model, prompts = reference_model(vocabulary=3, length=3, width=16).double(), np.array([[1], [2]])
    weights = torch.randn(2, 27, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (answer_log_probabilities(model, prompts, length=3) * weights).sum().backward()
    got = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    answers = list(itertools.product(range(3), repeat=3))
    sum(weights[x, y] * one_by_one(model, prompts[x], answers[y]) for x in range(2) for y in range(27)).backward()
    for gradient, parameter in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-11)


def test_the_exact_copy_is_float64_and_leaves_the_model_alone(language):
    model = reference_model().train()
    exact = exact_log_probabilities(model, language.prompts)
    assert exact.dtype == np.float64
    np.testing.assert_array_equal(exact, language.task.reference_log_probabilities)
    np.testing.assert_allclose(np.exp(exact).sum(axis=1), 1, rtol=1e-13)  # float32 would miss by 1e-7
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        own = answer_log_probabilities(model, language.prompts).numpy()
    assert 0 < np.abs(own - exact).max() < 1e-4


def test_dropout_does_not_reach_the_exact_probabilities():
    model = reference_model(vocabulary=3, length=2, width=16)
    expected = exact_log_probabilities(model, np.array([[0]]), length=2)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    np.testing.assert_array_equal(exact_log_probabilities(model.train(), np.array([[0]]), length=2), expected)


def test_the_reference_prefers_something_and_looks_at_its_context(language):
    probabilities = np.exp(language.task.reference_log_probabilities).reshape(2, 8, 8, 64)
    for p in probabilities:
        entropy = -(p * np.log(p)).sum()
        assert 2 < entropy < 4 * np.log(8) - 0.5
    first = probabilities.sum(axis=(2, 3))
    assert np.abs(first[0] - first[1]).max() > 0.02, "the prompt must matter"
    second = probabilities.sum(axis=3) / first[:, :, None]
    assert np.abs(second - second[:, :1]).max() > 0.1, "the first token must matter to the second"


def test_a_seed_makes_a_model_and_nothing_else_random_changes():
    before = torch.get_rng_state()
    first, again, other = reference_model(seed=1), reference_model(seed=1), reference_model(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_rewards_look_at_places_and_neighbours_alone(language):
    rewards = language.task.rewards.reshape(2, 8, 8, 8, 8)
    probabilities = np.exp(language.task.reference_log_probabilities)
    np.testing.assert_allclose((probabilities * language.task.rewards).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((probabilities * language.task.rewards**2).sum(axis=1), 1, rtol=1e-12)

    def interaction(first: int, second: int) -> float:
        """Largest mixed difference of two places: 0 where their rewards simply add up."""
        r = np.moveaxis(rewards, (first + 1, second + 1), (-2, -1))
        return float(np.abs(r - r[..., :1, :] - r[..., :, :1] + r[..., :1, :1]).max())

    assert min(interaction(t, t + 1) for t in range(3)) > 0.5
    assert max(interaction(s, t) for s, t in ((0, 2), (0, 3), (1, 3))) < 1e-12
    assert np.abs(rewards[0] - rewards[1]).max() > 0.5
    # Neighbours count the same wherever they stand; places do not.
    mixed = rewards - rewards[:, :1] - rewards[:, :, :1] + rewards[:, :1, :1]
    later = rewards - rewards[:, :, :, :1] - rewards[..., :1] + rewards[:, :, :, :1, :1]
    np.testing.assert_allclose(mixed[:, :, :, 0, 0], later[:, 0, 0], atol=1e-12)
    assert np.abs(rewards[:, 0, :, 0, 0] - rewards[:, 0, 0, :, 0]).max() > 0.3


def test_another_seed_is_another_reward(language):
    again, other = language_task(reference_model(), prompts=2), language_task(reference_model(), prompts=2, seed=1)
    np.testing.assert_array_equal(again.task.rewards, language.task.rewards)
    assert np.abs(other.task.rewards - language.task.rewards).max() > 0.5
    np.testing.assert_array_equal(other.task.reference_log_probabilities, language.task.reference_log_probabilities)


def test_what_the_model_generates_is_what_is_enumerated(language):
    """Hugging Face's own sampling, scored by its own probability: its mean is the negative entropy."""
    model, count = reference_model(), 4000
    torch.manual_seed(0)
    generated = model.generate(
        torch.full((count, 1), 1), do_sample=True, top_k=0, max_new_tokens=4, pad_token_id=0,
        attention_mask=torch.ones(count, 1, dtype=torch.long),
    )[:, 1:].numpy()  # fmt: skip
    assert generated.shape == (count, 4), "no answer may end early"
    log_probabilities = language.task.reference_log_probabilities[1]
    scores = log_probabilities[generated @ 8 ** np.arange(3, -1, -1)]
    probabilities = np.exp(log_probabilities)
    mean = (probabilities * log_probabilities).sum()
    error = np.sqrt((probabilities * (log_probabilities - mean) ** 2).sum() / count)
    assert abs(scores.mean() - mean) < 4 * error


def test_examples_are_the_rankings_in_tokens(language):
    rankings = sample_rankings(language.task, count=5, answers=3, generator=np.random.default_rng(0))
    examples = to_examples(language, rankings)
    assert [example.number for example in examples] == [1, 2, 3, 4, 5]
    for example, prompt, ranked in zip(examples, rankings.prompts, rankings.answers, strict=True):
        assert example.prompt.tolist() == [prompt]
        assert [c.tolist() for c in example.completions] == [language.answers[y].tolist() for y in ranked]
        assert example.prompt.dtype == example.completions[0].dtype == np.int32
        assert example.ranks == (1, 2, 3)
        assert example.pairs == ((0, 1), (0, 2), (1, 2))


def test_what_is_no_language_task_is_refused():
    model = reference_model(vocabulary=3, length=2, width=16)
    for prompts in (0, 4):
        with pytest.raises(UsageError, match=f"between 1 and 3 prompts, one per token, but {prompts}"):
            language_task(model, prompts=prompts, length=2)
    with pytest.raises(UsageError, match="at least 2 tokens"):
        language_task(model, prompts=1, length=1)
