"""Trees of arrays as files hold them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save

from surefoot.control.trees import arrays_of, named_leaves, tree_from
from surefoot.control.update.state import initialize
from surefoot.errors import UsageError
from tests.control.helpers import BOX, configure, same


def through_a_file(arrays):
    return load(save(arrays))


def test_a_learner_comes_back_bit_for_bit():
    learner = initialize(configure("a2c", weight="q-value"), BOX, 3)
    arrays = arrays_of({"learner": learner})
    assert "learner/critic/parameters/q/layer_0/weight" in arrays
    back = tree_from(through_a_file(arrays), {"learner": jax.tree.map(np.zeros_like, learner)})["learner"]
    assert same(back, learner)
    assert jax.tree.structure(back) == jax.tree.structure(learner)


def test_typed_keys_and_rare_types_come_back():
    tree = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
        "half": jnp.asarray([1.5, -2.0], jnp.bfloat16),
        "complex": np.asarray([1 + 2j]),
        "scalar": np.float32(2),
        "none": None,
    }
    back = tree_from(through_a_file(arrays_of(tree)), tree)
    assert jax.random.key_impl(back["keys"]) == jax.random.key_impl(tree["keys"])
    for name in ("key", "keys"):
        np.testing.assert_array_equal(jax.random.key_data(back[name]), jax.random.key_data(tree[name]))
    for name in ("half", "complex", "scalar"):
        assert np.asarray(back[name]).dtype == np.asarray(tree[name]).dtype
        np.testing.assert_array_equal(back[name], tree[name])
    assert back["none"] is None


def test_names_are_the_ways_and_no_two_are_the_same():
    tree = {"a": {"b": 1}, "a/b": 2}
    assert sorted(named_leaves(tree).items()) == [("a/b", 1), ("a/b'", 2)]
    assert tree_from(arrays_of(tree), tree) == tree


def test_what_does_not_fit_is_named():
    like = {"x": np.zeros(2, np.float32), "y": np.zeros(1)}
    for arrays, words in (
        ({"x": np.zeros(2, np.float32)}, "y is missing"),
        ({**like, "z": np.zeros(1)}, "z is not of it"),
        ({**like, "x": np.zeros(3, np.float32)}, r"x has shape \(3,\) of float32, where \(2,\) of float32 is right"),
        ({**like, "x": np.zeros(2)}, r"x has shape \(2,\) of float64, where"),
    ):
        with pytest.raises(UsageError, match=words):
            tree_from(arrays, like)
