"""Whitening against NumPy's mean and variance of the valid entries alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from surefoot.equations import whiten
from tests.equations.libraries import AUTOGRAD, NUMPY, finite_differences

RNG = np.random.default_rng(11)
X = RNG.normal(size=(7, 4)) * 3 + 5
VALID = RNG.random((7, 4)) < 0.6


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "masked"])
def test_valid_entries_have_mean_zero_and_variance_one(library, valid):
    real = np.ones_like(VALID) if valid is None else valid
    got = library.call(whiten, x=X, **({} if valid is None else {"valid": valid}))
    expected = (X[real] - X[real].mean()) / X[real].std()
    np.testing.assert_allclose(got[real], expected, rtol=1e-7)
    assert got[real].mean() == pytest.approx(0, abs=1e-14)
    assert got[real].var() == pytest.approx(1, rel=1e-7)
    np.testing.assert_array_equal(got[~real], 0)


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "masked"])
def test_the_mean_can_be_kept(library, valid):
    real = np.ones_like(VALID) if valid is None else valid
    got = library.call(whiten, x=X, shift_mean=False, **({} if valid is None else {"valid": valid}))
    assert got[real].mean() == pytest.approx(X[real].mean())
    assert abs(X[real].mean()) > 3  # which shifting it away would not give
    assert got[real].var() == pytest.approx(1, rel=1e-7)
    np.testing.assert_array_equal(got[~real], 0)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_masked_entries_have_no_influence(library, poison, shift_mean):
    clean = library.call(whiten, x=np.where(VALID, X, 0.0), valid=VALID, shift_mean=shift_mean)
    poisoned = np.where(VALID, X, poison)
    np.testing.assert_array_equal(library.call(whiten, x=poisoned, valid=VALID, shift_mean=shift_mean), clean)
    if library in AUTOGRAD:
        slope = library.gradient(
            lambda x: whiten(x, valid=library.convert(VALID), shift_mean=shift_mean) ** 3, poisoned
        )  # fmt: skip
        np.testing.assert_array_equal(slope[~VALID], 0)

        def alone(x: np.ndarray) -> np.ndarray:
            return NUMPY.to_numpy(whiten(x, shift_mean=shift_mean)) ** 3

        expected = finite_differences(lambda x: alone(x).sum(), X[VALID])
        np.testing.assert_allclose(slope[VALID], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_entries_that_do_not_vary_stay_finite(library, shift_mean):
    expected = 0.0 if shift_mean else 2.5
    np.testing.assert_array_equal(library.call(whiten, x=np.full((2, 3), 2.5), shift_mean=shift_mean), expected)
    one = np.array([True, False])
    got = library.call(whiten, x=np.array([2.5, 9.0]), valid=one, shift_mean=shift_mean)
    np.testing.assert_array_equal(got, [expected, 0.0])
    nothing = library.call(whiten, x=np.full(3, math.nan), valid=np.zeros(3, bool), shift_mean=shift_mean)
    np.testing.assert_array_equal(nothing, np.zeros(3))
    if library in AUTOGRAD:
        assert np.isfinite(library.gradient(lambda x: whiten(x, shift_mean=shift_mean), np.full(3, 2.5))).all()


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
def test_what_comes_out_knows_no_unit(library, unit):
    got, expected = (library.call(whiten, x=X * u, valid=VALID) for u in (unit, 1.0))
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_epsilon_is_added_to_the_variance(library):
    x = np.array([1.0, 3.0])
    np.testing.assert_allclose(library.call(whiten, x=x, epsilon=3.0), [-0.5, 0.5], rtol=1e-14)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        whiten(x, epsilon=0.0)
