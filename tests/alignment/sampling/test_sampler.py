"""Sampled tokens and their log-probabilities; the oracle is a plain forward of every sequence by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from surefoot.alignment.likelihood.distribution import PLAIN, AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.alignment.models.counting import forward_flops
from surefoot.alignment.sampling import keys_and_values, sampler
from surefoot.alignment.sampling.sampler import Sampler
from surefoot.errors import RunError, UsageError
from tests.alignment.likelihood.architectures import CONFIGURATIONS, VOCABULARY, build
from tests.alignment.models.tiny import FAMILIES

torch.set_num_threads(1)

UNDER = AnswerDistribution(temperature=0.7, shortest=3, ends=(1, 5, 9), never=(3, 11))
LENGTHS = (9, 4, 12, 4)


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, n).astype(np.int32) for n in lengths]


def noise_for(count, longest, seed=0):
    return np.random.default_rng(seed).random((count, longest))


def exact(model, prompt, answer, under):
    """Probabilities of all words at each place of the answer, by a plain forward, [places, words]."""
    ids = torch.tensor(np.concatenate([prompt, answer]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double() / under.temperature
    if under.ends:
        logits[: under.shortest - 1, list(under.ends)] = -torch.inf
    logits[:, list(under.never)] = -torch.inf
    return logits.softmax(dim=-1).numpy()


def assert_right(model, prompts, answers, samples, noise, under, longest, tolerance=1e-5):
    """Every token is the one that its number draws, its log-probability is exact, and answers stop where they have to."""
    assert len(samples.answers) == len(samples.log_probabilities) == len(samples.finished) == len(prompts) * answers
    for i, (answer, log_probabilities) in enumerate(zip(samples.answers, samples.log_probabilities, strict=True)):
        assert answer.dtype == np.int32
        assert log_probabilities.dtype == np.float32
        probabilities = exact(model, prompts[i // answers], answer, under)
        own = probabilities[np.arange(len(answer)), answer]
        np.testing.assert_allclose(log_probabilities, np.log(own), rtol=0, atol=tolerance)
        expected = [int(np.searchsorted(p.cumsum(), u, side="right")) for p, u in zip(probabilities, noise[i], strict=False)]
        assert answer.tolist() == expected
        ends = np.isin(answer, under.ends)
        assert not ends[:-1].any()
        assert samples.finished[i] == ends[-1]
        assert len(answer) == longest or ends[-1]


@pytest.mark.parametrize("answers", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_log_probabilities_are_those_of_plain_forwards(name, answers):
    prompts, longest = prompts_of(*LENGTHS), 13
    noise = noise_for(len(prompts) * answers, longest)
    one = Sampler(Likelihood(build(name)), under=UNDER, longest=longest)
    samples = one.sample(prompts, answers=answers, noise=noise)
    assert one.notice is None
    assert len({len(answer) for answer in samples.answers}) > 1
    assert_right(build(name), prompts, answers, samples, noise, UNDER, longest)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    answers=st.integers(1, 5),
    longest=st.integers(1, 9),
    shortest=st.integers(1, 3),
    ends=st.sets(st.integers(0, VOCABULARY - 1), max_size=6),
    never=st.sets(st.integers(0, VOCABULARY - 1), max_size=6),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 100),
)
def test_any_lengths_any_number_of_answers(lengths, answers, longest, shortest, ends, never, temperature, seed):
    excluded = {"ends": tuple(sorted(ends)), "never": tuple(sorted(never))}
    under = AnswerDistribution(temperature=temperature, shortest=min(shortest, longest), **excluded)
    prompts, noise = prompts_of(*lengths, seed=seed), noise_for(len(lengths) * answers, longest, seed)
    samples = Sampler(Likelihood(build("llama")), under=under, longest=longest).sample(prompts, answers=answers, noise=noise)
    assert_right(build("llama"), prompts, answers, samples, noise, under, longest)


@pytest.mark.parametrize("answers", [1, 4])
def test_the_room_for_answers_grows(answers, monkeypatch):
    monkeypatch.setattr(keys_and_values, "SLOTS", 2)
    prompts, longest, under = prompts_of(3, 5), 21, AnswerDistribution(ends=(7,))
    noise = noise_for(2 * answers, longest)
    samples = Sampler(Likelihood(build("qwen2")), under=under, longest=longest).sample(prompts, answers=answers, noise=noise)
    assert max(len(a) for a in samples.answers) == longest
    assert_right(build("qwen2"), prompts, answers, samples, noise, under, longest)


@pytest.mark.parametrize("drop", [0, 1, 2, 10**6], ids=["never", "all at once", "half", "each at once"])
@pytest.mark.parametrize("answers", [1, 3])
def test_when_answers_are_dropped_changes_nothing(answers, drop, monkeypatch):
    monkeypatch.setattr(sampler, "DROP", drop)
    prompts, longest, under = prompts_of(5, 5, 7, 2, 9, 5), 15, AnswerDistribution(ends=(2, 4, 8))
    noise = noise_for(6 * answers, longest, seed=3)
    samples = Sampler(Likelihood(build("llama")), under=under, longest=longest).sample(prompts, answers=answers, noise=noise)
    assert len({len(answer) for answer in samples.answers}) > 4
    assert_right(build("llama"), prompts, answers, samples, noise, under, longest)


def same(one, i, other, j):
    assert one.answers[i].tolist() == other.answers[j].tolist()
    np.testing.assert_allclose(one.log_probabilities[i], other.log_probabilities[j], rtol=0, atol=1e-5)
    assert one.finished[i] == other.finished[j]


def test_an_answer_depends_on_its_own_prompt_and_numbers_alone():
    prompts, answers, longest = prompts_of(*LENGTHS), 4, 11
    noise = noise_for(16, longest)
    one = Sampler(Likelihood(build("llama")), under=UNDER, longest=longest)
    together = one.sample(prompts, answers=answers, noise=noise)
    for b, prompt in enumerate(prompts):
        alone = one.sample([prompt], answers=answers, noise=noise[4 * b : 4 * b + 4])
        for k in range(answers):
            same(alone, k, together, 4 * b + k)
            single = one.sample([prompt], answers=1, noise=noise[4 * b + k : 4 * b + k + 1])
            same(single, 0, together, 4 * b + k)
    repeated = one.sample([p for p in prompts for _ in range(answers)], answers=1, noise=noise)
    order = [2, 0, 3, 1]
    turned = one.sample(
        [prompts[b] for b in order], answers=answers, noise=noise.reshape(4, 4, -1)[order, ::-1].reshape(16, -1)
    )
    for i in range(16):
        same(repeated, i, together, i)
        same(turned, 4 * order.index(i // 4) + 3 - i % 4, together, i)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_the_most_likely_word_alone_is_what_transformers_generates_greedily(name):
    prompts, longest = prompts_of(*LENGTHS), 20
    under = AnswerDistribution(temperature=0.6, ends=(1, 5))
    noise = noise_for(len(prompts), longest)
    greedy = Sampler(Likelihood(build(name)), under=under, longest=longest, top_k=1).sample(prompts, answers=1, noise=noise)
    model = build(name)
    for prompt, answer, log_probabilities in zip(prompts, greedy.answers, greedy.log_probabilities, strict=True):
        ids = torch.tensor(prompt.astype(np.int64))[None]
        settings = {"do_sample": False, "max_new_tokens": longest, "eos_token_id": [1, 5], "pad_token_id": 0}
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert answer.tolist() == generated[0, len(prompt) :].tolist()
        assert np.abs(log_probabilities).max() < 1e-6


def test_log_probabilities_under_top_k_and_top_p_are_those_of_what_is_left():
    prompts, longest = prompts_of(6), 8
    noise = noise_for(40, longest)
    under = AnswerDistribution(temperature=1.3)
    left = Sampler(Likelihood(build("llama")), under=under, longest=longest, top_k=6, top_p=0.7)
    samples = left.sample(prompts, answers=40, noise=noise)
    model = build("llama")
    for answer, log_probabilities in zip(samples.answers, samples.log_probabilities, strict=True):
        for row, word, log_probability in zip(exact(model, prompts[0], answer, under), answer, log_probabilities, strict=True):
            order = np.argsort(-row)[:6]
            reached = np.cumsum(row[order] / row[order].sum())
            order = order[: int(np.searchsorted(reached, 0.7)) + 1]
            assert word in order
            assert log_probability == pytest.approx(np.log(row[word] / row[order].sum()), abs=1e-5)


@pytest.mark.parametrize("under", [PLAIN, AnswerDistribution(temperature=1.5, shortest=2, ends=(3, 4))])
def test_frequencies_are_the_models_probabilities(under):
    """χ² of the first word over all answers, and of the second behind each frequent first."""
    answers = 20_000
    prompts, model = prompts_of(5, 8), build("llama")
    noise = noise_for(2 * answers, 2, seed=11)
    samples = Sampler(Likelihood(build("llama")), under=under, longest=2).sample(prompts, answers=answers, noise=noise)

    def accepts(words, probabilities):
        expected = probabilities * len(words)
        common = expected >= 5
        seen = np.bincount(words, minlength=VOCABULARY)
        assert seen[probabilities == 0].sum() == 0
        observed, wanted = np.append(seen[common], seen[~common].sum()), np.append(expected[common], expected[~common].sum())
        if wanted[-1] < 1:
            observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
        return chisquare(observed, wanted).pvalue

    values = []
    for b, prompt in enumerate(prompts):
        own = np.array([answer.tolist() for answer in samples.answers[b * answers : (b + 1) * answers]])
        assert own.shape == (answers, 2)
        values.append(accepts(own[:, 0], exact(model, prompt, own[0], under)[0]))
        for first in np.argsort(-np.bincount(own[:, 0]))[:5]:
            behind = own[own[:, 0] == first, 1]
            if len(behind) > 500:
                values.append(accepts(behind, exact(model, prompt, np.array([first, 0]), under)[1]))
    assert len(values) >= 8
    assert min(values) > 1e-3


def test_an_answer_does_not_end_before_its_least_length():
    prompts = prompts_of(4, 6)
    free = AnswerDistribution(ends=tuple(range(12)))
    bound = AnswerDistribution(ends=tuple(range(12)), shortest=4)
    noise = noise_for(200, 9)
    lengths = {}
    for under in (free, bound):
        samples = Sampler(Likelihood(build("gpt2")), under=under, longest=9).sample(prompts, answers=100, noise=noise)
        lengths[under.shortest] = [len(answer) for answer in samples.answers]
        assert all((answer[: under.shortest - 1] >= 12).all() for answer in samples.answers)
    assert min(lengths[1]) == 1
    assert min(lengths[4]) == 4


def test_an_answer_that_ends_at_the_limit_is_finished_and_one_that_is_cut_is_not():
    prompts, under = prompts_of(4), AnswerDistribution(ends=tuple(range(8)))
    samples = Sampler(Likelihood(build("llama")), under=under, longest=3).sample(prompts, answers=200, noise=noise_for(200, 3))
    at_the_limit = [i for i, answer in enumerate(samples.answers) if len(answer) == 3]
    ended = [i for i in at_the_limit if samples.answers[i][-1] < 8]
    assert 0 < len(ended) < len(at_the_limit)
    assert all(samples.finished[i] == (i in ended) for i in at_the_limit)
    assert all(samples.finished[i] for i in range(200) if i not in at_the_limit)


def test_the_largest_number_below_one_draws_a_word_that_can_be():
    prompts, under = prompts_of(3, 5), AnswerDistribution(shortest=4, ends=tuple(range(15, VOCABULARY)))
    noise = np.full((6, 4), 1 - 2**-53)
    samples = Sampler(Likelihood(build("llama")), under=under, longest=4).sample(prompts, answers=3, noise=noise)
    assert all(answer[:3].tolist() == [14, 14, 14] for answer in samples.answers)


def test_dropout_is_off_while_sampling_and_every_module_as_it_was_afterwards():
    model = build("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    model.transformer.h[0].eval()
    before, config = [m.training for m in model.modules()], model.config.to_dict()
    prompts, noise = prompts_of(4, 7), noise_for(4, 6)
    state = torch.get_rng_state()
    samples = Sampler(Likelihood(model), under=PLAIN, longest=6).sample(prompts, answers=2, noise=noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == before
    assert model.config.to_dict() == config
    assert_right(build("gpt2"), prompts, 2, samples, noise, PLAIN, 6)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_head_may_have_a_bias(temperature):
    def biased():
        model = build("llama")
        torch.manual_seed(3)
        model.lm_head = torch.nn.Linear(16, VOCABULARY)
        torch.nn.init.normal_(model.lm_head.bias)
        return model

    under = AnswerDistribution(temperature=temperature, shortest=2, ends=(5,))
    prompts, noise = prompts_of(4, 7), noise_for(4, 6)
    samples = Sampler(Likelihood(biased()), under=under, longest=6).sample(prompts, answers=2, noise=noise)
    assert_right(biased(), prompts, 2, samples, noise, under, 6)


def test_an_adapter_takes_part():
    model = add_adapter(build("llama"), AdapterConfiguration(lora_rank=4), seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts, noise = prompts_of(4, 7), noise_for(4, 6)
    likelihood = Likelihood(model)
    samples = Sampler(likelihood, under=UNDER, longest=6).sample(prompts, answers=2, noise=noise)
    likelihood.release()
    assert_right(model, prompts, 2, samples, noise, UNDER, 6)


def test_the_work_is_one_forward_pass_of_every_token_but_the_last():
    model = build("llama")
    likelihood = Likelihood(model)
    Sampler(likelihood, under=PLAIN, longest=3).sample(prompts_of(4, 6), answers=2, noise=noise_for(4, 3))
    pairs = 10 + 21 + 2 * (5 + 6) + 2 * (7 + 8)
    assert likelihood.work.operations == forward_flops(model, tokens=4 + 6 + 4 * 2, scored=2 + 4 * 2, attention_pairs=pairs)


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float64, None, 1e-6), (torch.bfloat16, None, 0.15), (torch.float32, torch.bfloat16, 0.15)],
)
@pytest.mark.parametrize("answers", [1, 3])
def test_log_probabilities_in_other_precisions_are_those_that_training_computes(answers, dtype, autocast, tolerance):
    likelihood = Likelihood(build("llama", dtype=dtype), autocast=autocast)
    prompts, noise = prompts_of(*LENGTHS), noise_for(4 * answers, 9)
    samples = Sampler(likelihood, under=UNDER, longest=9).sample(prompts, answers=answers, noise=noise)
    groups = [(prompt, samples.answers[i * answers : (i + 1) * answers]) for i, prompt in enumerate(prompts)]
    again = likelihood.completions(groups, under=UNDER)
    expected = np.concatenate([again.tokens[again.completion_of == i].detach().numpy() for i in range(again.count)])
    np.testing.assert_allclose(np.concatenate(samples.log_probabilities), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_model_that_has_been_sampled_from_is_trained_as_before(name):
    prompts, noise = prompts_of(6, 9), noise_for(4, 5)

    def gradients(sampled):
        model = build(name)
        likelihood = Likelihood(model)
        likelihood.check([(prompts[1], [prompts[0]])])
        if sampled:
            Sampler(likelihood, under=UNDER, longest=5).sample(prompts, answers=2, noise=noise)
        likelihood.completions([(prompt, [prompts[0]]) for prompt in prompts]).tokens.sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for before, after in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(before, after)


def test_numbers_that_are_not_finite_are_an_error():
    model = build("llama")
    model.lm_head.weight.data[3, 2] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        Sampler(Likelihood(model), under=PLAIN, longest=3).sample(prompts_of(4), answers=2, noise=noise_for(2, 3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"longest": 2}, "at most 2 tokens and at least 3"),
        ({"top_k": 0}, "top-k is 0"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.1}, "top-p is 1.1"),
    ],
)
def test_what_leaves_nothing_to_draw_is_refused(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        Sampler(Likelihood(build("llama")), **{"under": UNDER, "longest": 5, **changes})


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), for 2 answers of 4 tokens"):
        Sampler(Likelihood(build("llama")), under=PLAIN, longest=4).sample(prompts_of(4), answers=2, noise=noise_for(2, 3))
