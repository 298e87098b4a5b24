"""Distributions against torch.distributions, enumeration and the frequencies of their own samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from surefoot.equations import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical

RNG = np.random.default_rng(0)
LOGITS, OTHER = RNG.normal(size=(5, 7)), RNG.normal(size=(5, 7))
LOG_STD, OTHER_STD = RNG.normal(size=7) * 0.3, RNG.normal(size=7) * 0.3
SIZES = (2, 4, 1)
T = torch.from_numpy


def cases():
    """(name, make(logits, extra), torch's, torch's other, actions)."""
    independent = lambda base: td.Independent(base, 1)  # noqa: E731
    yield (
        "categorical",
        lambda x, s: Categorical(x),
        td.Categorical(logits=T(LOGITS)),
        td.Categorical(logits=T(OTHER)),
        RNG.integers(0, 7, 5),
    )
    yield (
        "gaussian",
        DiagonalGaussian,
        independent(td.Normal(T(LOGITS), T(np.exp(LOG_STD)))),
        independent(td.Normal(T(OTHER), T(np.exp(OTHER_STD)))),
        RNG.normal(size=(5, 7)),
    )
    yield (
        "bernoulli",
        lambda x, s: Bernoulli(x),
        independent(td.Bernoulli(logits=T(LOGITS))),
        independent(td.Bernoulli(logits=T(OTHER))),
        RNG.integers(0, 2, (5, 7)),
    )


CASES = {case[0]: case[1:] for case in cases()}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch_distributions(library, name):
    make, reference, other, actions = CASES[name]
    log_probability = library.call(lambda x, s, a: make(x, s).log_probability(a), x=LOGITS, s=LOG_STD, a=actions)
    as_torch = T(actions).double() if name != "categorical" else T(actions)
    np.testing.assert_allclose(log_probability, reference.log_prob(as_torch).numpy(), rtol=1e-12)
    entropy = library.call(lambda x, s: make(x, s).entropy(), x=LOGITS, s=LOG_STD)
    np.testing.assert_allclose(entropy, reference.entropy().numpy(), rtol=1e-12)
    kl = library.call(lambda x, s, y, u: make(x, s).kl_divergence(make(y, u)), x=LOGITS, s=LOG_STD, y=OTHER, u=OTHER_STD)
    np.testing.assert_allclose(kl, td.kl_divergence(reference, other).numpy(), rtol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_torch_distributions(library, name):
    make, _, _, actions = CASES[name]
    a, s, _y, _u = (library.convert(x) for x in (actions, LOG_STD, OTHER, OTHER_STD))
    kinds = {
        "categorical": lambda x: td.Categorical(logits=x),
        "bernoulli": lambda x: td.Independent(td.Bernoulli(logits=x), 1),
    }
    kinds["gaussian"] = lambda x: td.Independent(td.Normal(x, T(np.exp(LOG_STD))), 1)
    x = T(LOGITS.copy()).requires_grad_()
    as_torch = T(actions).double() if name != "categorical" else T(actions)
    (kinds[name](x).log_prob(as_torch) + kinds[name](x).entropy()).sum().backward()
    got = library.gradient(lambda z: make(z, s).log_probability(a) + make(z, s).entropy(), LOGITS)
    np.testing.assert_allclose(got, x.grad.numpy(), atol=2e-8)


def test_multi_categorical_is_the_sum_of_its_parts(library):
    actions = np.stack([RNG.integers(0, n, 5) for n in SIZES], axis=-1)
    make = lambda x: MultiCategorical(x, SIZES)  # noqa: E731
    splits = np.cumsum(SIZES)[:-1]
    references = [td.Categorical(logits=T(part)) for part in np.split(LOGITS, splits, axis=-1)]
    others = [td.Categorical(logits=T(part)) for part in np.split(OTHER, splits, axis=-1)]
    expected = sum(r.log_prob(T(actions[:, i])) for i, r in enumerate(references)).numpy()
    np.testing.assert_allclose(library.call(lambda x, a: make(x).log_probability(a), x=LOGITS, a=actions), expected, rtol=1e-12)
    np.testing.assert_allclose(
        library.call(lambda x: make(x).entropy(), x=LOGITS), sum(r.entropy() for r in references).numpy(), rtol=1e-12
    )
    np.testing.assert_allclose(
        library.call(lambda x, y: make(x).kl_divergence(make(y)), x=LOGITS, y=OTHER),
        sum(td.kl_divergence(r, o) for r, o in zip(references, others, strict=True)).numpy(),
        rtol=1e-11,
    )


def test_multi_discrete_of_one_part_is_discrete(library):
    noise, actions = RNG.gumbel(size=(5, 7)), RNG.integers(0, 7, 5)
    one, plain = lambda x: MultiCategorical(x, (7,)), Categorical
    same = np.testing.assert_array_equal
    same(
        library.call(lambda x, n: one(x).sample(n)[..., 0], x=LOGITS, n=noise),
        library.call(lambda x, n: plain(x).sample(n), x=LOGITS, n=noise),
    )
    same(
        library.call(lambda x, a: one(x).log_probability(a[..., None]), x=LOGITS, a=actions),
        library.call(lambda x, a: plain(x).log_probability(a), x=LOGITS, a=actions),
    )
    same(library.call(lambda x: one(x).entropy(), x=LOGITS), library.call(lambda x: plain(x).entropy(), x=LOGITS))


def test_sizes_must_add_up():
    with pytest.raises(ValueError, match="add up to 3, but there are 7 logits"):
        MultiCategorical(LOGITS, (1, 2))


def test_masked_actions(library):
    """As if they did not exist: probabilities of the rest, entropy and KL are those of the smaller distribution."""
    mask = np.ones((5, 7), bool)
    mask[:, [1, 4]] = False
    kept = T(np.ascontiguousarray(LOGITS[:, mask[0]]))
    kept_other = T(np.ascontiguousarray(OTHER[:, mask[0]]))
    reference, other = td.Categorical(logits=kept), td.Categorical(logits=kept_other)
    poisoned = np.where(mask, LOGITS, np.nan)  # what stands in a masked place must not matter
    make = lambda x, m: Categorical(x, m)  # noqa: E731
    np.testing.assert_allclose(
        library.call(lambda x, m: make(x, m).entropy(), x=poisoned, m=mask), reference.entropy().numpy(), rtol=1e-12
    )
    np.testing.assert_allclose(
        library.call(lambda x, y, m: make(x, m).kl_divergence(make(y, m)), x=poisoned, y=OTHER, m=mask),
        td.kl_divergence(reference, other).numpy(),
        rtol=1e-11,
    )
    everywhere = np.flatnonzero(mask[0])
    actions = np.full(5, everywhere[3])
    np.testing.assert_allclose(
        library.call(lambda x, m, a: make(x, m).log_probability(a), x=poisoned, m=mask, a=actions),
        reference.log_prob(torch.full((5,), 3)).numpy(),
        rtol=1e-12,
    )
    noise = RNG.gumbel(size=(4000, 5, 7)) * 3
    draws = library.call(lambda x, m, n: make(x, m).sample(n), x=np.broadcast_to(poisoned, noise.shape).copy(),
                         m=np.broadcast_to(mask, noise.shape).copy(), n=noise)  # fmt: skip
    assert set(np.unique(draws)) == set(everywhere)
    if library.name in ("jax", "torch"):
        m, a = library.convert(mask), library.convert(actions)
        gradient = library.gradient(lambda x: make(x, m).log_probability(a) + make(x, m).entropy(), poisoned)
        assert np.isfinite(gradient).all()
        assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "multicategorical", "gaussian"])
def test_samples_follow_the_distribution(library, kind):
    draws, rng = 20_000, np.random.default_rng(1)
    logits = np.broadcast_to(LOGITS[0], (draws, 7)).copy()
    make = {
        "categorical": Categorical,
        "bernoulli": Bernoulli,
        "multicategorical": lambda x: MultiCategorical(x, SIZES),
        "gaussian": lambda x: DiagonalGaussian(x, library.convert(LOG_STD)),
    }[kind]
    noise_kind = {"gaussian": "normal", "bernoulli": "logistic"}.get(kind, "gumbel")
    noise = getattr(rng, noise_kind)(size=(draws, 7))
    sample = library.call(lambda x, n: make(x).sample(n), x=logits, n=noise)
    if kind == "gaussian":
        for i in range(7):
            assert stats.kstest(sample[:, i], "norm", (LOGITS[0, i], np.exp(LOG_STD[i]))).pvalue > 1e-4
        return
    if kind == "bernoulli":
        pairs = [(sample[:, i], np.array([1 - p, p])) for i, p in enumerate(1 / (1 + np.exp(-LOGITS[0])))]
    else:
        parts = [LOGITS[0]] if kind == "categorical" else np.split(LOGITS[0], np.cumsum(SIZES)[:-1])
        pairs = [(sample if kind == "categorical" else sample[:, i], np.exp(z) / np.exp(z).sum()) for i, z in enumerate(parts)]
    for drawn, probabilities in pairs:
        if len(probabilities) > 1:
            counts = np.bincount(drawn, minlength=len(probabilities))
            assert stats.chisquare(counts, probabilities * draws).pvalue > 1e-4


def test_modes(library):
    np.testing.assert_array_equal(library.call(lambda x: Categorical(x).mode(), x=LOGITS), LOGITS.argmax(-1))
    np.testing.assert_array_equal(library.call(lambda x: Bernoulli(x).mode(), x=LOGITS), LOGITS > 0)
    np.testing.assert_array_equal(library.call(lambda x, s: DiagonalGaussian(x, s).mode(), x=LOGITS, s=LOG_STD), LOGITS)
    parts = np.stack([p.argmax(-1) for p in np.split(LOGITS, np.cumsum(SIZES)[:-1], axis=-1)], axis=-1)
    np.testing.assert_array_equal(library.call(lambda x: MultiCategorical(x, SIZES).mode(), x=LOGITS), parts)


def test_extreme_logits_stay_finite(library):
    extreme = np.array([[1e4, -1e4, 0.0]])
    assert np.isfinite(library.call(lambda x: Categorical(x).entropy(), x=extreme)).all()
    assert np.isfinite(library.call(lambda x: Bernoulli(x).entropy(), x=extreme)).all()
    assert np.isfinite(library.gradient(lambda x: Bernoulli(x).entropy() + Categorical(x).entropy(), extreme)).all()
