"""What the update does with answers: its coefficient, its limits, its minibatches, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from surefoot.alignment.rlhf import learner as learning
from surefoot.alignment.rlhf.objective import accumulate_gradients
from surefoot.errors import RunError
from tests.alignment.models.tiny import reward_model
from tests.alignment.rlhf.experiences import (
    TokenCount,
    digest,
    iterate,
    learner,
    plain_training,
    some_prompts,
    weights_of,
)

torch.set_num_threads(1)


def test_the_coefficient_adapts_once_an_iteration_and_counts_from_the_next():
    one = learner(kl_target=3.0, kl_horizon=90, beta=0.2)
    metrics = iterate(one, 3)
    betas = [m["kl/coefficient"] for m in metrics] + [one.beta]
    assert betas[0] == 0.2
    for m, beta, following in zip(metrics, betas, betas[1:], strict=False):
        error = min(max(m["kl/reference"] / 3.0 - 1, -0.2), 0.2)
        assert following == pytest.approx(beta * (1 + error * 9 / 90), rel=1e-6)
    assert betas[1] == pytest.approx(0.2 * (1 - 0.2 / 10))
    fixed = learner(beta=0.2)
    assert {m["kl/coefficient"] for m in iterate(fixed, 2)} == {0.2}


def test_the_coefficient_that_has_adapted_is_the_one_that_penalises():
    one = learner(weight="reward-to-go", kl_placement="reward")
    iterate(one)
    one.beta = 100.0
    (metrics,) = iterate(one)
    penalty = 100.0 * metrics["kl/reference"]
    assert metrics["return"] == pytest.approx(metrics["reward"] - penalty, rel=1e-4)


def test_in_the_loss_too_it_is_the_coefficient_that_has_adapted():
    digests = []
    for beta in (None, 5.0):
        one = learner(weight="reward-to-go", kl_placement="loss", beta=0.05)
        iterate(one)
        one.beta = one.beta if beta is None else beta
        iterate(one)
        digests.append(digest(one))
    assert digests[0] != digests[1]


def test_a_target_is_held_against_the_divergence_of_each_minibatch():
    def of(epochs, target=None):
        training = plain_training(learning_rate=3e-3)
        one = learner(weight="reward-to-go", update_epochs=epochs, target_kl=target, training=training)
        (metrics,) = iterate(one)
        return metrics

    sums = [of(epochs)["kl/update"] * epochs for epochs in range(1, 5)]
    divergences = np.diff(sums)  # before steps 2, 3 and 4; before step 1 there is none
    assert list(divergences) == sorted(divergences)
    assert of(8, target=0.98 * divergences[1] / 1.5)["steps"] == 2
    assert of(8, target=1.02 * divergences[1] / 1.5)["steps"] > 2


def test_ratios_are_the_extremes_of_all_minibatches_and_denominators_are_each_ones_own(monkeypatch):
    extremes = iter([(0.9, 1.1), (0.4, 1.2), (0.8, 1.9), (0.7, 1.3)])
    counts = []

    def recording(part, *, tokens, **others):
        lowest, highest = next(extremes)
        counts.append((sum(len(answer) for one in part for answer in one.answers), tokens))
        return accumulate_gradients(part, tokens=tokens, **others)._replace(lowest_ratio=lowest, highest_ratio=highest)

    monkeypatch.setattr(learning, "accumulate_gradients", recording)
    one = learner(update_epochs=1, minibatches=2, training=plain_training(accumulation=2))
    (metrics,) = iterate(one, prompts=some_prompts(4))
    assert (metrics["ratio/lowest"], metrics["ratio/highest"]) == (0.4, 1.9)
    assert len(counts) == 4
    for first, second in (counts[:2], counts[2:]):
        assert first[1] == second[1] == first[0] + second[0]
    assert counts[0][1] + counts[2][1] == int(one.last.lengths.sum())


def test_a_target_ends_the_passes_before_the_step_that_would_go_on():
    prompts = some_prompts()
    stopped = learner(update_epochs=8, target_kl=0.002)
    (metrics,) = iterate(stopped, prompts=prompts)
    steps = int(metrics["steps"])
    assert 1 <= steps < 8
    assert not any(p.grad is not None and bool(p.grad.any()) for p in stopped.actor.model.parameters())
    free = learner(update_epochs=steps)
    (of_free,) = iterate(free, prompts=prompts)
    assert digest(stopped) == digest(free)
    # the minibatch that was too far away was measured, and is in the means
    assert metrics["kl/update"] > of_free["kl/update"]
    further = learner(update_epochs=steps + 1)
    (of_further,) = iterate(further, prompts=prompts)
    assert metrics["kl/update"] == pytest.approx(of_further["kl/update"], rel=1e-5)
    assert of_further["kl/update"] * (steps + 1) - of_free["kl/update"] * steps > 1.5 * 0.002
    for one in (stopped, free):
        one.settings = replace(one.settings, update_epochs=1, target_kl=None)
        iterate(one, prompts=prompts)
    assert digest(stopped) == digest(free)
    critics = [weights_of(one.critic.likelihood.model) for one in (stopped, free)]
    assert torch.equal(*critics)


def test_every_pass_sees_every_prompt_once_in_minibatches_of_whole_prompts():
    one = learner(update_epochs=3, minibatches=2)
    prompts = some_prompts(5)
    orders = []
    random = np.random.default_rng(0)
    experience = one.experience(prompts)
    minibatches = list(one._minibatches(experience.batch, random))
    assert [len(m) for m in minibatches] == [3, 2] * 3
    for first, second in zip(minibatches[::2], minibatches[1::2], strict=True):
        orders.append([group.prompt.number for group in (*first, *second)])
        assert sorted(orders[-1]) == [1, 2, 3, 4, 5]
    assert len({tuple(order) for order in orders}) > 1
    (metrics,) = iterate(learner(update_epochs=3, minibatches=7), prompts=prompts)
    assert metrics["steps"] == 3 * 5


@pytest.mark.parametrize(
    ("critic", "choices"), [("own", {}), ("shared", {"kl_placement": "loss", "minibatches": 2, "entropy_coefficient": 0.1})]
)
def test_parts_and_halves_at_once_are_the_same_iteration(critic, choices):
    prompts = some_prompts(4)

    def weights(at_once=False, **training):
        chosen = plain_training(learning_rate=1e-3, adam_epsilon=1e-3, **training)  # Adam's own would not damp rounding
        one = learner(critic=critic, at_once=at_once, training=chosen, update_epochs=2, **choices)
        iterate(one, 1, prompts)
        one.close()
        models = [one.actor.model, one.critic.head if critic == "shared" else one.critic.likelihood.model]
        return torch.cat([weights_of(model) for model in models])

    whole, cut = weights(), weights(accumulation=3)
    torch.set_num_threads(2)
    try:
        halves = [weights(at_once=True) for _ in range(2)]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(*halves)
    for other in (cut, halves[0]):
        torch.testing.assert_close(whole, other, rtol=0, atol=2e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    digests, answers = [], []
    for seed in (3, 3, 4):
        one = learner(training=plain_training(seed=seed), minibatches=2)
        torch.manual_seed(len(digests))
        iterate(one, 2)
        digests.append(digest(one))
        answers.append([answer.tolist() for answer in one.reward.seen[0]])
    assert digests[0] == digests[1] != digests[2]
    assert answers[0] == answers[1] != answers[2]


def test_iterations_draw_other_answers():
    one = learner(training=plain_training(learning_rate=1e-12))
    iterate(one, 2)
    first, second = one.reward.seen
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(first, second, strict=True))


def test_a_gradient_that_is_not_finite_takes_no_step():
    one = learner(weight="reward-to-go")
    before = digest(one)

    class Huge(TokenCount):
        def rewards(self, prompts, answers, finished):
            return super().rewards(prompts, answers, finished) * 1e38 + 3e38

    one.reward = Huge()
    with pytest.raises(RunError, match="not finite"):
        iterate(one)
    assert digest(one) == before


def test_the_critics_step_size_is_its_own():
    def critic_and_actor(rate):
        one = learner(critic_learning_rate=rate)
        iterate(one)
        return weights_of(one.critic.likelihood.model), digest(one)

    start = weights_of(reward_model())
    (plain, actor), (slow, same_actor) = critic_and_actor(None), critic_and_actor(1e-5)
    assert actor == same_actor
    # Adam's steps are as long as the step size, whatever the gradient
    ratio = float((plain - start).abs().max() / (slow - start).abs().max())
    assert ratio == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("kind", ["weight", "value"])
def test_a_tiny_policy_learns_what_it_is_paid_for(kind):
    one = learner(
        critic="shared" if kind == "value" else None,
        weight="gae" if kind == "value" else "leave-one-out",
        beta=0.0,
        training=plain_training(learning_rate=0.03),
        update_epochs=2,
    )
    rewards = [m["reward"] for m in iterate(one, 12, some_prompts(6))]
    assert np.mean(rewards[-2:]) > rewards[0] + 1.5
