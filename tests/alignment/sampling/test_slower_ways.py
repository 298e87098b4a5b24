"""Models whose prompts cannot be shared; the oracle is the same plain forward of every sequence by itself."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.sampling import decoding
from surefoot.alignment.sampling.sampler import Sampler
from tests.alignment.likelihood.architectures import MORE_THAN_A_HEAD, SEPARATE, build
from tests.alignment.models.tiny import GATED
from tests.alignment.sampling.test_sampler import UNDER, assert_right, noise_for, prompts_of

LONGEST = 10
WITHOUT_A_CACHE = ("mamba",)


def groups_for(prompts):
    return [(prompt, [prompts_of(LONGEST, seed=1)[0]]) for prompt in prompts]


@pytest.mark.parametrize("answers", [1, 3])
@pytest.mark.parametrize("name", [*SEPARATE, *MORE_THAN_A_HEAD])
def test_tokens_and_log_probabilities_are_right_and_the_way_is_told(name, answers):
    prompts = prompts_of(9, 4, 12)
    noise = noise_for(3 * answers, LONGEST)
    model = build(name)
    likelihood = Likelihood(model)
    assert likelihood.check(groups_for(prompts)) is not None
    config = model.config.to_dict()
    one = Sampler(likelihood, under=UNDER, longest=LONGEST)
    for _ in range(2):
        samples = one.sample(prompts, answers=answers, noise=noise)
        assert_right(build(name), prompts, answers, samples, noise, UNDER, LONGEST)
    assert ("without a cache" if name in WITHOUT_A_CACHE else "own cache") in one.notice
    assert model.config.to_dict() == config


def test_prompts_that_are_not_to_be_shared_are_not():
    prompts, noise = prompts_of(9, 4), noise_for(4, LONGEST)
    one = Sampler(Likelihood(build("llama"), share_prompts=False), under=UNDER, longest=LONGEST)
    assert_right(build("llama"), prompts, 2, one.sample(prompts, answers=2, noise=noise), noise, UNDER, LONGEST)
    assert "llama's own cache" in one.notice


@pytest.mark.parametrize("mistake", ["positions", "failure"])
def test_a_cache_that_does_not_fit_is_not_used(mistake, monkeypatch):
    ordinary = decoding.OwnCache.after_tokens

    def wrong(self, tokens):
        if mistake == "failure":
            raise RuntimeError("no cache today")
        self._positions = self._positions + 1
        return ordinary(self, tokens)

    monkeypatch.setattr(decoding.OwnCache, "after_tokens", wrong)
    prompts, noise = prompts_of(9, 4), noise_for(4, LONGEST)
    one = Sampler(Likelihood(build("llama"), share_prompts=False), under=UNDER, longest=LONGEST)
    assert_right(build("llama"), prompts, 2, one.sample(prompts, answers=2, noise=noise), noise, UNDER, LONGEST)
    assert "without a cache" in one.notice
    assert ("no cache today" if mistake == "failure" else "log-probabilities differ by") in one.notice


def test_a_cache_is_looked_at_again_where_prompts_first_differ_in_length(monkeypatch):
    ordinary = decoding.OwnCache.__init__

    def blind_to_padding(self, *inputs, **options):
        ordinary(self, *inputs, **options)
        self._mask = torch.ones_like(self._mask)

    monkeypatch.setattr(decoding.OwnCache, "__init__", blind_to_padding)
    one = Sampler(Likelihood(build("llama"), share_prompts=False), under=UNDER, longest=LONGEST)
    noise = noise_for(2, LONGEST)
    for lengths, notice in (((9, 9), "own cache"), ((9, 4), "without a cache")):
        prompts = prompts_of(*lengths)
        assert_right(build("llama"), prompts, 1, one.sample(prompts, answers=1, noise=noise), noise, UNDER, LONGEST)
        assert notice in one.notice


def test_a_cache_is_looked_at_again_where_sequences_are_longer(monkeypatch):
    ordinary = decoding.OwnCache.after_tokens

    def wrong_when_long(self, tokens):
        logits = ordinary(self, tokens)
        if self._mask.shape[1] > 12:
            logits[:, 4] += 3
        return logits

    monkeypatch.setattr(decoding.OwnCache, "after_tokens", wrong_when_long)
    one = Sampler(Likelihood(build("llama"), share_prompts=False), under=AnswerDistribution(), longest=6)
    noise = noise_for(2, 6)
    for length, notice in ((4, "own cache"), (9, "without a cache")):
        prompts = prompts_of(length, length)
        one.sample(prompts, answers=1, noise=noise)
        assert notice in one.notice


def test_a_cache_is_right_for_the_whole_distribution_where_only_a_part_is_drawn_from():
    one = Sampler(Likelihood(build("llama"), share_prompts=False), under=UNDER, longest=LONGEST, top_k=3, top_p=0.8)
    one.sample(prompts_of(9, 4), answers=2, noise=noise_for(4, LONGEST))
    assert "own cache" in one.notice


def test_a_window_that_no_check_has_found_is_found_here():
    prompts, noise = prompts_of(9, 4), noise_for(4, LONGEST)
    one = Sampler(Likelihood(build("mistral with a window")), under=UNDER, longest=LONGEST)
    samples = one.sample(prompts, answers=2, noise=noise)
    assert_right(build("mistral with a window"), prompts, 2, samples, noise, UNDER, LONGEST)
    assert "a sliding window of 6 tokens, for sequences of up to 18" in one.notice


def test_frequencies_that_depend_on_the_longest_sequence_are_not_kept():
    config = t.LlamaConfig(**GATED)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config.max_position_embeddings = 16
    torch.manual_seed(0)
    likelihood = Likelihood(t.AutoModelForCausalLM.from_config(config).eval())
    one = Sampler(likelihood, under=AnswerDistribution(), longest=8)
    one.sample(prompts_of(8), answers=2, noise=noise_for(2, 8))
    assert one.notice is None
    one.sample(prompts_of(9), answers=2, noise=noise_for(2, 8))
    assert "rotary frequencies" in one.notice
