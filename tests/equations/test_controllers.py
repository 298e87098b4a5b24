"""The proportional controller against numbers worked out by hand, and a plant that it must settle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.equations import adapt_kl_coefficient_proportionally
from tests.equations.libraries import NUMPY


def adapt(library, coefficient, kl, **others):
    settings = {"target": 6.0, "answers": 64, "horizon": 10_000} | others
    return library.call(
        adapt_kl_coefficient_proportionally, coefficient=np.array(coefficient), kl=np.array(kl), **settings
    )  # fmt: skip


def test_by_hand(library):
    np.testing.assert_allclose(adapt(library, 0.2, 6.6, answers=5_000), 0.2 * (1 + 0.1 * 0.5), rtol=1e-14)
    np.testing.assert_allclose(adapt(library, 0.2, 5.7, answers=10_000), 0.2 * 0.95, rtol=1e-14)
    np.testing.assert_allclose(adapt(library, 0.2, 6.0), 0.2, rtol=1e-14)


def test_errors_count_up_to_a_fifth(library):
    for kl in (7.2, 7.3, 600.0):
        np.testing.assert_allclose(adapt(library, 0.2, kl, answers=1_000), 0.2 * 1.02, rtol=1e-14)
    for kl in (4.8, 4.7, 0.0, -1.0):  # a measured KL may be negative: k1 is
        np.testing.assert_allclose(adapt(library, 0.2, kl, answers=1_000), 0.2 * 0.98, rtol=1e-14)


def test_beta_stays_within_bounds(library):
    np.testing.assert_array_equal(adapt(library, 1e-8, 0.0, answers=10_000), 1e-8)
    np.testing.assert_array_equal(adapt(library, 1e8, 99.0, answers=10_000), 1e8)


def test_the_horizon_is_how_many_answers_it_takes(library):
    """One update with n answers, and n updates with one, differ at second order only; H answers change β by about e^±0.2."""
    beta = 0.3
    for _ in range(100):
        beta = float(adapt(NUMPY, beta, 99.0, answers=100))
    assert beta == pytest.approx(0.3 * math.exp(0.2), rel=0.001)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 5.0), st.floats(0.01, 10.0))
def test_a_kl_that_falls_as_beta_rises_settles_at_the_target(target, beta):
    for _ in range(20_000):
        beta = float(adapt_kl_coefficient_proportionally(
            np.array(beta), kl=np.array(1 / beta), target=target, answers=100, horizon=1_000
        ))  # fmt: skip
        if abs(1 / beta - target) < 1e-6 * target:
            break
    assert 1 / beta == pytest.approx(target, rel=1e-5)


def test_what_would_turn_the_sign_is_refused():
    arguments = {"kl": np.array(0.1), "target": 0.1}
    for answers, horizon in ((101, 100), (0, 100)):
        with pytest.raises(ValueError, match=f"number of answers, {answers}, but is {horizon}"):
            adapt_kl_coefficient_proportionally(np.array(0.2), **arguments, answers=answers, horizon=horizon)
    for target in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="target must be positive"):
            adapt_kl_coefficient_proportionally(np.array(0.2), kl=np.array(0.1), target=target, answers=1, horizon=10)
