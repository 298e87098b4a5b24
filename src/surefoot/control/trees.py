"""Trees of arrays as flat dictionaries of named ones, as files hold them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from surefoot.errors import UsageError

KEPT_KINDS = "biuf"
"""NumPy's kinds that safetensors has; others travel as bytes."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the way to them."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        while name in named:  # keys with a slash in them may lead to the same name twice
            name += "'"
        named[name] = leaf
    return named


def arrays_of(tree: Any) -> dict[str, np.ndarray]:
    """A tree as named arrays: typed random keys as their words, types that files do not know as bytes."""
    return {name: _as_kept(leaf) for name, leaf in named_leaves(tree).items()}


def tree_from(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """The tree that :func:`arrays_of` made ``arrays`` of.

    Args:
        arrays: by name.
        like: a tree of the same structure, shapes and types.

    Raises:
        UsageError: a name is missing or unknown, or an array has another shape or type.
    """
    wanted = named_leaves(like)
    if arrays.keys() != wanted.keys():
        names = sorted(arrays.keys() ^ wanted.keys())
        raise UsageError(
            f"the checkpoint does not fit this run: {names[0]} is {'missing' if names[0] in wanted else 'not of it'}"
        )
    leaves = []
    for name, leaf in wanted.items():
        kept, there = _as_kept(leaf), np.asarray(arrays[name])
        if (kept.shape, kept.dtype) != (there.shape, there.dtype):
            raise UsageError(
                f"the checkpoint does not fit this run: {name} has shape {there.shape} of {there.dtype}, where {kept.shape} of"
                f" {kept.dtype} is right"
            )
        leaves.append(_as_it_was(there, leaf))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_kept(leaf: Any) -> np.ndarray:
    # In rows: a file of another order would be read back scrambled.
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    return array if array.dtype.kind in KEPT_KINDS else np.frombuffer(array.tobytes(), np.uint8)


def _as_it_was(kept: np.ndarray, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jax.numpy.asarray(kept), impl=jax.random.key_impl(leaf))
    own = np.asarray(leaf)
    if own.dtype.kind in KEPT_KINDS:
        return kept
    return np.frombuffer(kept.tobytes(), own.dtype).reshape(own.shape)
