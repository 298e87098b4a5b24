"""Objectives against hand-computed cases and finite differences; estimators against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surefoot.equations import (
    clipped_surrogate,
    clipped_value_loss,
    importance_ratio,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_sum,
    namespace,
    squared_value_loss,
)
from tests.equations.libraries import AUTOGRAD, finite_differences


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 2.0, 2.4, 0.0),  # too far the right way: held at 1.2
        (0.5, 2.0, 1.0, 2.0),  # too far the wrong way: the gradient leads back
        (1.5, -2.0, -3.0, -2.0),  # the same for a bad action
        (0.5, -2.0, -1.6, 0.0),
        (1.0, 2.0, 2.0, 2.0),  # inside, where both arguments of min are equal
        (1.1, -2.0, -2.2, -2.0),
    ],
)
def test_clipped_surrogate_cases(library, ratio, advantage, value, slope):
    advantages = np.array([advantage])
    got = library.call(clipped_surrogate, ratio=np.array([ratio]), advantages=advantages, clip_range=0.2)
    np.testing.assert_allclose(got, [value], rtol=1e-14)
    constant = library.convert(advantages)
    gradient = library.gradient(lambda x: clipped_surrogate(ratio=x, advantages=constant, clip_range=0.2), np.array([ratio]))
    np.testing.assert_allclose(gradient, [slope], atol=1e-8)


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
def test_advantages_are_constants(library):
    ratio = library.convert(np.array([0.9, 1.1]))
    gradient = library.gradient(lambda a: clipped_surrogate(ratio=ratio, advantages=a, clip_range=0.2), np.array([1.0, -1.0]))
    np.testing.assert_array_equal(gradient, 0)
    gradient = library.gradient(lambda g: squared_value_loss(values=ratio, targets=g), np.array([1.0, -1.0]))
    np.testing.assert_array_equal(gradient, 0)


def test_value_losses(library):
    values, old, targets = np.array([1.0, 5.0, -1.0]), np.array([0.5, 1.0, 1.0]), np.array([2.0, 4.0, 3.0])
    np.testing.assert_allclose(library.call(squared_value_loss, values=values, targets=targets), [0.5, 0.5, 8.0])
    # Held to within 1 of the old value: 1, 2 and 0; the larger error counts.
    got = library.call(clipped_value_loss, values=values, old_values=old, targets=targets, clip_range=1.0)
    np.testing.assert_allclose(got, [0.5, 2.0, 8.0])
    fixed = {k: library.convert(v) for k, v in (("old_values", old), ("targets", targets))}
    gradient = library.gradient(lambda v: clipped_value_loss(values=v, **fixed, clip_range=1.0), values)
    np.testing.assert_allclose(gradient, [-1.0, 0.0, -4.0], atol=1e-7)


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
def test_surrogate_gradient_is_the_policy_gradient(library):
    """At π = π_old the surrogate's gradient is that of E[A log π]: by finite differences of log π alone."""
    rng = np.random.default_rng(0)
    log_probabilities, advantages = rng.normal(size=6), rng.normal(size=6)
    old, weights = library.convert(log_probabilities), library.convert(advantages)

    def surrogate(x):
        ratio = importance_ratio(log_probabilities=x, behavior_log_probabilities=old)
        return clipped_surrogate(ratio=ratio, advantages=weights, clip_range=0.2)

    expected = finite_differences(lambda x: float((x * advantages).sum()), log_probabilities)
    np.testing.assert_allclose(library.gradient(surrogate, log_probabilities), expected, rtol=1e-7)


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
def test_overflowing_ratios_leave_gradients_finite(library):
    """A ratio of e^200 on a good action is clipped: its gradient is 0, not 0 · ∞."""
    old, advantages = library.convert(np.zeros(2, np.float32)), library.convert(np.array([1.0, 0.0], np.float32))

    def surrogate(x):
        ratio = importance_ratio(log_probabilities=x, behavior_log_probabilities=old)
        return clipped_surrogate(ratio=ratio, advantages=advantages, clip_range=0.2)

    np.testing.assert_array_equal(library.gradient(surrogate, np.array([200.0, 200.0], np.float32)), [0.0, 0.0])


def test_kl_estimators(library):
    """Over all outcomes of two categoricals, weighted with p: E[k1] = E[k3] = KL; k2 is close and never negative."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    exact = (p * np.log(p / q)).sum()
    log_ratio = np.log(q) - np.log(p)
    k1, k2, k3 = (library.call(f, log_ratio=log_ratio) for f in (kl_k1, kl_k2, kl_k3))
    np.testing.assert_allclose((p * k1).sum(), exact, rtol=1e-12)
    np.testing.assert_allclose((p * k3).sum(), exact, rtol=1e-12)
    np.testing.assert_allclose((p * k2).sum(), exact, rtol=0.1)
    assert (k2 >= 0).all()
    assert (k3 >= 0).all()
    assert (k1 < 0).any()
    np.testing.assert_allclose(k3, np.exp(log_ratio) - 1 - log_ratio, rtol=1e-10)


def test_masked_reductions(library):
    terms, valid = np.array([1.0, np.nan, 3.0]), np.array([True, False, True])
    total, count = library.call(masked_sum, terms=terms, valid=valid)
    assert (total, count) == (4.0, 2.0)
    assert library.call(masked_mean, terms=terms, valid=valid) == 2.0
    assert library.call(masked_mean, terms=terms, valid=np.zeros(3, bool)) == 0.0
    assert library.call(masked_mean, terms=np.array([1.0, 2.0])) == 1.5


def test_micro_batches_do_not_change_a_mean():
    terms, valid = np.arange(6.0), np.array([True, True, True, True, False, False])
    parts = [masked_sum(terms[i : i + 2], valid[i : i + 2]) for i in (0, 2, 4)]
    whole = masked_sum(terms, valid)
    assert sum(p[0] for p in parts) / sum(p[1] for p in parts) == whole[0] / whole[1]


@pytest.mark.parametrize("clip_range", [0, -0.1])
def test_clip_range_must_be_positive(clip_range):
    x = np.ones(2)
    with pytest.raises(ValueError, match="clip_range must be positive"):
        clipped_surrogate(ratio=x, advantages=x, clip_range=clip_range)
    with pytest.raises(ValueError, match="clip_range must be positive"):
        clipped_value_loss(values=x, old_values=x, targets=x, clip_range=clip_range)


def test_k3_and_its_gradient_stay_finite(library):
    """Far outside of what a ratio means, in float32 where a library's tests have it: held at log r = 20, as the ratio is."""
    log_ratio = np.array([-100.0, -30.0, 20.0, 30.0, 100.0], np.float64 if library.name == "jax" else np.float32)
    held = np.e**20 - 21
    np.testing.assert_allclose(library.call(kl_k3, log_ratio=log_ratio), [99.0, 29.0, held, held, held], rtol=1e-6)
    if library in AUTOGRAD:
        gradient = library.gradient(kl_k3, log_ratio[[0, 1, 3, 4]])
        np.testing.assert_allclose(gradient, [-1.0, -1.0, 0.0, 0.0], atol=1e-12)
    inside = np.array([-19.0, -1.0, 0.0, 1.0, 19.0])
    np.testing.assert_allclose(library.call(kl_k3, log_ratio=inside), np.exp(inside) - 1 - inside, rtol=1e-12)


def test_a_step_on_k3_far_away_leaves_weights_finite():
    """Two policies over two actions, of which one gives the second action e⁻¹⁰⁰; the term is cut to ±10 behind the function."""
    logits = torch.tensor([[0.0, -100.0], [0.0, -1.0]], requires_grad=True)
    reference = torch.tensor([[0.0, 0.0], [0.0, -0.2]]).log_softmax(-1)[:, 1]
    optimizer = torch.optim.AdamW([logits], lr=0.1)
    terms = kl_k3(reference - logits.log_softmax(-1)[:, 1]).clamp(-10, 10)
    np.testing.assert_allclose(terms[0].item(), 10)
    terms.mean().backward()
    np.testing.assert_array_equal(logits.grad[0], 0)
    assert logits.grad[1].abs().min() > 0
    optimizer.step()
    assert torch.isfinite(logits).all()


def test_clip_higher_is_an_array_of_clip_ranges(library):
    """Bounds 1 − 0.2 and 1 + 0.28, by hand: a good action may become 1.28 times as likely, a bad one 0.8 times."""
    ratio, advantages = np.array([1.25, 1.4, 0.7, 0.85, 1.4]), np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    clip_range = np.where(advantages > 0, 0.28, 0.2)
    got = library.call(clipped_surrogate, ratio=ratio, advantages=advantages, clip_range=clip_range)
    np.testing.assert_allclose(got, [1.25, 1.28, -0.8, -0.85, -1.4], rtol=1e-14)


def test_three_calls_are_the_sequence_ratio(library):
    """(Π ratios)^(1/length) for every token of an answer, by hand; its gradient goes to each token's own log-probability."""
    log_ratios = np.log(np.array([[2.0, 0.5, 4.0], [3.0, 3.0, 7.0]]))
    valid = np.array([[True, True, True], [True, True, False]])

    def sequence_ratio(log_probabilities, behavior, valid):
        means = [masked_mean(log_probabilities[i, :] - behavior[i, :], valid[i, :]) for i in range(2)]
        mean = namespace(valid).stack(means)
        return importance_ratio(log_probabilities=mean, behavior_log_probabilities=0 * mean)

    behavior = np.full((2, 3), -1.5)
    got = library.call(sequence_ratio, log_probabilities=log_ratios - 1.5, behavior=behavior, valid=valid)
    np.testing.assert_allclose(got, [4.0 ** (1 / 3), 3.0], rtol=1e-14)
    if library in AUTOGRAD:
        fixed = library.convert(behavior), library.convert(valid)
        gradient = library.gradient(lambda x: sequence_ratio(x, *fixed), log_ratios - 1.5)
        np.testing.assert_allclose(gradient, [[4.0 ** (1 / 3) / 3] * 3, [1.5, 1.5, 0.0]], rtol=1e-12)
