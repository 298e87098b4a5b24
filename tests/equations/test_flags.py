"""Flags that are 0 and 1 of any kind mean what booleans mean, in every public function; anything else is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from surefoot.equations import (
    discounted_returns,
    elapsed_steps,
    generalized_advantages,
    masked_mean,
    n_step_returns,
    per_decision_weights,
    vtrace,
)
from tests.equations.examples import EXAMPLES, NOT_CALLED, flags_of
from tests.equations.libraries import NUMPY

WITH_FLAGS = [name for name in EXAMPLES if flags_of(name)]
KINDS = ["uint8", "int32", "int64", "float32", "float64"]


def flags_in(name):
    return {argument: EXAMPLES[name].arrays[argument] for argument in flags_of(name)}


def test_every_public_function_has_an_example_with_its_flags():
    import surefoot.equations

    assert set(EXAMPLES) == set(surefoot.equations.__all__) - NOT_CALLED
    assert len(WITH_FLAGS) >= 20
    for name in WITH_FLAGS:
        for argument, array in flags_in(name).items():
            assert array.dtype == bool, (name, argument)
            assert array.any(), (name, argument)
            assert not array.all(), (name, argument)


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_0_and_1_of_any_kind_are_booleans(library, name):
    """Under JAX this is inside a program that is compiled, where no value can be looked at."""
    call, arrays = EXAMPLES[name]
    expected = library.call(call, **arrays)
    kinds = KINDS if library is NUMPY else ["uint8", "int64", "float32"]
    for kind in kinds:
        given = arrays | {argument: array.astype(kind) for argument, array in flags_in(name).items()}
        got = library.call(call, **given)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_other_dtypes_and_other_values_are_refused_in_a_sentence(name):
    call, arrays = EXAMPLES[name]
    for argument, array in flags_in(name).items():
        with pytest.raises(TypeError, match=f"{argument} must hold booleans, or 0 and 1, but its dtype is complex"):
            call(**(arrays | {argument: array.astype(complex)}))
        with pytest.raises(ValueError, match=f"{argument} must hold booleans, or 0 and 1 alone, but holds 2"):
            call(**(arrays | {argument: 2 * array.astype(int)}))


def test_values_are_checked_in_every_library_that_has_them(library):
    for wrong in (np.array([0.0, 0.5, 1.0]), np.array([0.0, -1.0, 1.0]), np.array([0.0, np.nan, 1.0])):
        with pytest.raises(ValueError, match="valid must hold booleans, or 0 and 1 alone, but holds"):
            masked_mean(library.convert(np.ones(3)), library.convert(wrong))
    with pytest.raises(TypeError, match=r"its dtype is .*complex"):
        masked_mean(library.convert(np.ones(3)), library.convert(np.ones(3, complex)))


def test_torch_maps_and_shapes_functions_of_integer_flags():
    """There a look at the values is refused, or there are none."""
    terms, valid = torch.arange(6.0).reshape(2, 3), torch.tensor([[1, 0, 1], [0, 1, 1]])
    expected = torch.stack([masked_mean(*rows) for rows in zip(terms, valid.bool(), strict=True)])
    torch.testing.assert_close(torch.func.vmap(masked_mean)(terms, valid), expected)
    assert masked_mean(terms.to("meta"), valid.to("meta")).shape == ()


@pytest.mark.parametrize("kind", ["bool", *KINDS])
def test_an_end_in_the_middle_by_hand(library, kind):
    """Rewards and values 1, γ = λ = 1, an end behind the second of three steps."""
    one, none = np.ones(3), np.zeros(3).astype(kind)
    ends = {"terminated": np.array([0, 1, 0]).astype(kind), "truncated": none}
    steps = {"rewards": one, "next_values": one} | ends
    call = library.call
    np.testing.assert_allclose(
        call(generalized_advantages, values=one, **steps, discount=1.0, trace_decay=1.0), [1, 0, 1], atol=1e-15
    )
    np.testing.assert_allclose(call(discounted_returns, rewards=one, **ends, discount=1.0), [2, 1, 1])
    np.testing.assert_allclose(call(n_step_returns, **steps, discount=1.0, steps=2), [2, 1, 2])
    logs = {"log_probabilities": one, "behavior_log_probabilities": 0 * one}
    np.testing.assert_allclose(call(vtrace, **logs, values=one, **steps, discount=1.0)[0], [2, 1, 2])
    np.testing.assert_allclose(call(lambda like, **e: elapsed_steps(like=like, **e), like=one, **ends), [0, 1, 0])
    e = np.e
    np.testing.assert_allclose(call(per_decision_weights, **logs, **ends, limit=100.0), [e, e**2, e])
