"""Answers judged by the others: the definitions written out, and what must hold for any returns."""

from __future__ import annotations

import math
import statistics

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.equations import group_advantages, leave_one_out_advantages
from tests.equations.libraries import AUTOGRAD, NUMPY, finite_differences

RETURNS = np.random.default_rng(3).normal(size=(2, 3, 5)) * 2 + 7


def leave_one_out(library, returns):
    return library.call(leave_one_out_advantages, returns=np.asarray(returns))


def group(library, returns, divided, **others):
    return library.call(group_advantages, returns=np.asarray(returns), divide_by_deviation=divided, **others)


def test_by_hand(library):
    returns = [[1.0, 2.0, 6.0]]
    np.testing.assert_allclose(leave_one_out(library, returns), [[-3.0, -1.5, 4.5]], rtol=1e-14)
    np.testing.assert_allclose(group(library, returns, False), [[-2.0, -1.0, 3.0]], rtol=1e-14)
    # s² = (4 + 1 + 9)/2 = 7
    divided = group(library, returns, True, epsilon=0.5)
    np.testing.assert_allclose(divided, np.array([[-2.0, -1.0, 3.0]]) / (math.sqrt(7) + 0.5), rtol=1e-14)


def test_every_group_is_its_definition(library):
    alone, whole, divided = (
        leave_one_out(library, RETURNS), group(library, RETURNS, False), group(library, RETURNS, True, epsilon=1e-3)
    )  # fmt: skip
    for index in np.ndindex(RETURNS.shape[:2]):
        returns = RETURNS[index].tolist()
        for i, own in enumerate(returns):
            assert alone[(*index, i)] == pytest.approx(own - statistics.mean(returns[:i] + returns[i + 1 :]))
            difference = own - statistics.mean(returns)
            assert whole[(*index, i)] == pytest.approx(difference)
            assert divided[(*index, i)] == pytest.approx(difference / (statistics.stdev(returns) + 1e-3))


def test_of_two_answers_only_which_is_better_is_left(library):
    got = group(library, [[5.0, 5.5], [-200.0, -1000.0]], True)
    np.testing.assert_allclose(got, np.array([[-1, 1], [1, -1]]) / math.sqrt(2), rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("answers", [2, 3, 7])
@pytest.mark.parametrize("value", [0.1, -1e7, 1 / 3])
def test_equal_returns_give_zero_to_the_bit(library, value, answers, dtype):
    returns = np.full((2, answers), value, dtype)
    for got in (leave_one_out(library, returns), group(library, returns, False), group(library, returns, True)):
        np.testing.assert_array_equal(got, np.zeros((2, answers)))


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
def test_gradients_are_finite_where_returns_are_equal_and_right_elsewhere(library):
    functions = {
        "alone": lambda x: leave_one_out_advantages(returns=x) ** 2,
        "whole": lambda x: group_advantages(returns=x, divide_by_deviation=False) ** 2,
        "divided": lambda x: group_advantages(returns=x, divide_by_deviation=True) ** 3,
    }
    for name, function in functions.items():
        got = library.gradient(function, np.concatenate([RETURNS[0], np.full((1, 5), 0.1)]))
        assert np.isfinite(got).all(), name
        np.testing.assert_array_equal(got[3], 0)
        expected = finite_differences(lambda x, f=function: NUMPY.to_numpy(f(x)).sum(), RETURNS[0])
        np.testing.assert_allclose(got[:3], expected, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.floats(-1000, 1000), st.floats(0.01, 100))
def test_a_common_shift_changes_nothing_and_a_scale_only_the_scale(returns, shift, scale):
    returns = np.array(returns)
    alone = leave_one_out(NUMPY, returns)
    assert abs(alone.sum()) < 1e-9
    np.testing.assert_allclose(leave_one_out(NUMPY, returns * scale + shift), alone * scale, atol=1e-8)
    np.testing.assert_allclose(group(NUMPY, returns, False) * len(returns) / (len(returns) - 1), alone, atol=1e-10)
    if returns.std() > 1e-3:
        divided = group(NUMPY, returns, True, epsilon=1e-12)
        np.testing.assert_allclose(group(NUMPY, returns * scale + shift, True, epsilon=1e-12), divided, atol=1e-6)
        assert (divided**2).sum() == pytest.approx(len(returns) - 1, rel=1e-6)


def test_differences_below_epsilon_are_not_made_larger():
    tiny = np.array([1.0, 1.0 + 1e-7, 1.0 - 1e-7])
    assert np.abs(group(NUMPY, tiny, True)).max() < 2e-3


def test_what_is_no_group_is_refused():
    for returns in (np.ones((3, 1)), np.ones((2, 0))):
        for function in (leave_one_out_advantages, lambda returns: group_advantages(returns=returns, divide_by_deviation=True)):
            with pytest.raises(ValueError, match=f"at least 2, not {returns.shape[-1]}"):
                function(returns=returns)
    for epsilon in (0.0, math.nan):
        with pytest.raises(ValueError, match="epsilon must be positive"):
            group_advantages(returns=np.ones(3), divide_by_deviation=True, epsilon=epsilon)
    with pytest.raises(jaxtyping.TypeCheckError):
        leave_one_out_advantages(returns=np.ones(3, int))
