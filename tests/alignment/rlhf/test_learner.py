"""One iteration of RLHF after the other, on a tiny policy."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.errors import RunError
from tests.alignment.models.tiny import language_model, reward_model
from tests.alignment.rlhf.experiences import (
    EOS,
    TokenCount,
    digest,
    iterate,
    learner,
    moved,
    paid,
    plain_training,
    some_prompts,
    weights_of,
)
from tests.alignment.rlhf.test_objective import plain_tokens

torch.set_num_threads(1)


def wrong_by(one, errors):
    """Make the sampler's log-probabilities wrong by some numbers, over and over again."""
    right = one.sampler.sample

    def sample(*arguments, **options):
        samples = right(*arguments, **options)
        wrong = [np.resize(errors, len(x)).astype(np.float32) + x for x in samples.log_probabilities]
        return replace(samples, log_probabilities=wrong)

    one.sampler.sample = sample


@pytest.mark.parametrize("choices", [{}, {"temperature": 0.6, "shortest_answer": 3}, {"weight": "leave-one-out"}])
def test_before_the_first_step_every_ratio_is_one(choices):
    one = learner(update_epochs=1, **choices)
    said = []
    one.say = said.append
    for metrics in iterate(one, 3):
        assert abs(metrics["ratio/lowest"] - 1) < 1e-5
        assert abs(metrics["ratio/highest"] - 1) < 1e-5
        assert metrics["clip_fraction"] == 0
        assert 0 <= metrics["kl/update"] < 1e-9
    assert one.ratio_error <= 1e-5
    assert said == []


def test_a_sampler_that_disagrees_a_little_is_said_once_and_scored_again():
    one = learner(update_epochs=1)
    said = []
    one.say = said.append
    wrong_by(one, [0.01, -0.02])
    for metrics in iterate(one, 3):
        # the policy's own numbers are what ratios refer to, from the first iteration on
        assert abs(metrics["ratio/lowest"] - 1) < 1e-5
        assert abs(metrics["ratio/highest"] - 1) < 1e-5
    assert one.ratio_error == pytest.approx(np.expm1(0.02), abs=1e-4)
    assert len(said) == 1
    assert "where rounding explains" in said[0]
    assert "computed again" in said[0]
    plain = learner(update_epochs=1)
    iterate(plain, 3)
    torch.testing.assert_close(weights_of(one.actor.model), weights_of(plain.actor.model), rtol=0, atol=1e-4)


def noisy(layers=2, dtype=torch.float32, **choices):
    """Of so many layers, sharp enough for rounding errors to grow."""
    model = language_model(num_hidden_layers=layers).to(dtype)
    one = learner(
        model=model, critic=None, **{"weight": "leave-one-out", "update_epochs": 1, "answers_per_prompt": 8} | choices
    )
    said = []
    one.say = said.append
    return one, said


@pytest.mark.parametrize("layers", [2, 12, 40])
def test_what_rounding_makes_of_many_layers_costs_no_forward_pass(layers):
    one, said = noisy(layers, longest_answer=16)
    iterate(one)
    assert layers == 2 or one.ratio_error > 1e-5
    assert said == []
    assert not one.state()[1]["scores_again"]


@pytest.mark.parametrize("layers", [2, 40])
@pytest.mark.parametrize("wrong", ["constant", "temperature", "one token", "position"])
def test_a_sampler_that_is_wrong_is_caught_however_many_layers_there_are(layers, wrong):
    """By more than rounding could explain, in the last digit of a log-probability that anybody would read."""
    one, said = noisy(layers, temperature=1.0)
    if wrong == "temperature":
        one.sampler._under = AnswerDistribution(1.01, ends=(EOS,))
    else:
        wrong_by(one, {"constant": [2e-3], "one token": [0.0] * 4 + [2e-3], "position": [0.0, 2e-3]}[wrong])
    iterate(one)
    assert len(said) == 1
    assert "where rounding explains" in said[0]


def test_half_the_bits_are_scored_again_and_the_reason_is_named():
    one, said = noisy(dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in one.actor.model.parameters():
            parameter *= 0.5  # less sharp, as a real model is
    iterate(one)
    assert 1e-3 < one.ratio_error < 0.3
    assert "which rounding explains" in said[0]
    assert said[0].endswith("--precision float32 avoids it")


@pytest.mark.parametrize("errors", [[0.0, 0.4], [-0.4], [np.nan]])
def test_a_sampler_that_disagrees_a_lot_ends_the_run_before_any_step(errors):
    one = learner()
    before = digest(one)
    wrong_by(one, errors)
    with pytest.raises(RunError, match="differ from 1"):
        iterate(one)
    assert digest(one) == before
    assert one.iterations == 0


def test_old_new_and_reference_are_of_the_distribution_that_was_sampled_from():
    under = AnswerDistribution(0.6, 3, (EOS,))
    one = learner(temperature=under.temperature, shortest_answer=under.shortest, longest_answer=6)
    base = language_model().eval()
    moved(one.actor.model, 0.1)
    experience = one.experience(some_prompts())
    one.actor.release()
    policy = one.actor.model.eval()
    checked = 0
    for group in experience.batch:
        for number, answer in enumerate(group.answers, start=group.first):
            assert len(answer) >= under.shortest
            assert EOS not in answer[:-1]
            assert bool(experience.finished[number]) == (answer[-1] == EOS)
            for model, table in ((policy, experience.log_probabilities), (base, experience.reference)):
                with torch.no_grad():
                    expected = plain_tokens(model, group.prompt.ids, answer, under)[0]
                torch.testing.assert_close(table[: len(answer), number], expected, rtol=0, atol=1e-5)
                assert not bool(table[len(answer) :, number].any())
            checked += len(answer)
    assert checked == int(experience.valid.sum()) == int(experience.lengths.sum())
    assert int(experience.last.sum()) == len(experience.rewards)


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_values_are_of_the_state_before_each_token(critic):
    one = learner(critic=critic)
    if critic == "shared":
        with torch.no_grad():
            one.critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
            one.critic.head.bias.fill_(0.5)
    experience = one.experience(some_prompts())
    one.actor.release()
    model = one.actor.model
    head = one.critic.head
    if critic == "own":
        one.critic.likelihood.release()
        model = one.critic.likelihood.model
        head = model.score
    for group in experience.batch:
        for number, answer in enumerate(group.answers, start=group.first):
            for t in range(len(answer)):
                state = torch.from_numpy(np.concatenate([group.prompt.ids, answer[:t]]).astype(np.int64))[None]
                with torch.no_grad():
                    expected = head(model.model(state).last_hidden_state[0, -1])[0]
                assert float(experience.values[t, number]) == pytest.approx(float(expected), abs=1e-5)


def test_values_of_a_shared_critic_begin_at_zero():
    one = learner(critic="shared")
    experience = one.experience(some_prompts())
    assert not bool(experience.values.any())


def test_the_reward_source_sees_every_answer_once_and_its_numbers_are_reported():
    one = learner()
    (metrics,) = iterate(one)
    (answers,) = one.reward.seen
    counts = paid(answers)
    np.testing.assert_array_equal(one.last.rewards, counts)
    lengths = np.array([len(answer) for answer in answers])
    assert metrics["reward"] == pytest.approx(counts.mean())
    assert metrics["reward/deviation"] == pytest.approx(counts.std())
    assert metrics["length"] == pytest.approx(lengths.mean())
    assert metrics["length/longest"] == lengths.max()
    assert metrics["finished"] == pytest.approx(np.mean([answer[-1] == EOS for answer in answers]))
    assert metrics["kl/reference"] == pytest.approx(0, abs=1e-5)
    logs = one.last.log_probabilities[one.last.valid]
    assert metrics["entropy"] == pytest.approx(-float(logs.mean()), abs=1e-6)


def test_the_explained_variance_is_of_the_tokens_targets():
    one = learner(trace_decay=1.0, beta=0.0, critic="own")
    (metrics,) = iterate(one)
    experience = one.last
    # with λ = 1 and γ = 1 the target of every token is its answer's reward
    targets = np.repeat(experience.rewards, experience.lengths.numpy())
    values = experience.values.T[experience.valid.T].numpy()
    assert metrics["critic/explained_variance"] == pytest.approx(1 - (targets - values).var() / targets.var(), abs=1e-4)
    assert metrics["critic/value_mean"] == pytest.approx(values.mean(), abs=1e-5)
    assert metrics["return"] == pytest.approx(experience.rewards.mean(), abs=1e-6)


def test_the_divergence_from_the_reference_is_reported_per_answer():
    one = learner()
    _, metrics = iterate(one, 2)
    differences = (one.last.log_probabilities - one.last.reference)[one.last.valid].sum() / len(one.last.rewards)
    assert metrics["kl/reference"] == pytest.approx(float(differences), abs=1e-5)
    assert abs(metrics["kl/reference"]) > 1e-3


def test_rewards_are_standardised_by_the_first_batch():
    one = learner(standardize_rewards="scale", weight="reward-to-go", beta=0.0, training=plain_training(learning_rate=0.05))
    first, *_, last = iterate(one, 4)
    rewards = one.reward_scale
    assert first["return"] == pytest.approx(0, abs=1e-6)
    (answers, *_) = one.reward.seen
    counts = paid(answers)
    assert rewards.center == pytest.approx(counts.mean())
    assert rewards.scale == pytest.approx(counts.std(ddof=1))
    assert last["return"] == pytest.approx((last["reward"] - rewards.center) / rewards.scale, abs=1e-5)
    assert last["reward"] != first["reward"]


def test_a_weight_without_critic_takes_none_and_the_other_needs_one():
    with pytest.raises(ValueError, match="no use for a critic"):
        learner_with(weight="group")
    with pytest.raises(ValueError, match="needs a critic"):
        learner(critic=None)


def learner_with(**choices):
    one = learner()
    return replace(one, settings=replace(one.settings, **choices))


def test_a_critic_is_a_model_or_a_head_and_not_both():
    head = torch.nn.Linear(16, 1)
    with pytest.raises(ValueError, match="one of the two"):
        Critic()
    with pytest.raises(ValueError, match="one of the two"):
        Critic(Likelihood(reward_model()), head)


def test_with_an_adapter_the_reference_is_the_policy_without_it():
    model = add_adapter(language_model().train(), AdapterConfiguration(lora_rank=2), seed=0)
    one = learner(model=model, training=plain_training(learning_rate=0.05))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    iterate(one, 3)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    experience = one.experience(some_prompts())
    base = language_model().eval()
    for group in experience.batch:
        for number, answer in enumerate(group.answers, start=group.first):
            with torch.no_grad():
                expected = plain_tokens(base, group.prompt.ids, answer, one.under)[0]
            torch.testing.assert_close(experience.reference[: len(answer), number], expected, rtol=0, atol=1e-5)
    assert float((experience.log_probabilities - experience.reference).abs().max()) > 1e-2


def test_one_thread_does_not_switch_the_adapter_on_while_another_reads_the_reference():
    from surefoot.alignment.configuration import configure
    from surefoot.alignment.learning.halves import can_be_computed_at_once

    model = add_adapter(language_model().train(), AdapterConfiguration(lora_rank=2), seed=0)
    likelihood = Likelihood(model)
    configuration = configure("ppo")
    assert can_be_computed_at_once(configuration, likelihood)
    assert not can_be_computed_at_once(replace(configuration, adapter=AdapterConfiguration(lora_rank=2)), likelihood)


class Failing(TokenCount):
    def rewards(self, prompts, answers, finished):
        if len(self.seen) == 1:
            raise RunError("the reward of row 2 is nan")
        return super().rewards(prompts, answers, finished)


def test_a_reward_that_fails_changes_no_weight():
    one, other = learner(), learner()
    one.reward = Failing()
    iterate(one)
    iterate(other)
    with pytest.raises(RunError, match="row 2"):
        iterate(one)
    assert digest(one) == digest(other)
    assert one.iterations == 1


def test_phases_are_timed_and_their_work_is_counted():
    one = learner(update_epochs=2)
    began = time.perf_counter()
    iterate(one)
    assert set(one.work) == {"sampling", "scoring", "update"}
    assert sum(work.seconds for work in one.work.values()) < time.perf_counter() - began
    update = one.work["update"].operations
    assert update > 0
