"""Shuffling samples into minibatches inside a compiled program."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from surefoot.equations import Array

INDEX_BITS = 18


def shuffled_minibatches(key: Array, count: int, *, epochs: int, minibatch_size: int) -> Array:
    """For every epoch a random order of all samples, cut into minibatches.

    ``jax.random.permutation`` sorts pairs several times over; on a CPU that took a fifth of a whole update. Here a
    sample's number rides in the low bits of a random word, and one sort of single words does it. With b bits for the
    number, 32 − b are random: two samples tie with probability 2^(b−32) and then keep their order, which for 2048
    samples happens once per epoch on average. Above 2^18 samples ties would be frequent, and the library's
    permutation is used.

    Args:
        key: source of randomness.
        count: samples.
        epochs: orders to draw.
        minibatch_size: divides ``count``.

    Returns:
        sample numbers, shape (epochs · count / minibatch_size, minibatch_size).
    """
    bits = max(1, math.ceil(math.log2(count)))
    if bits > INDEX_BITS:
        orders = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, epochs))
    else:
        low = jnp.uint32((1 << bits) - 1)
        words = (jax.random.bits(key, (epochs, count)) & ~low) | jnp.arange(count, dtype=jnp.uint32)
        orders = (jax.lax.sort(words, dimension=1, is_stable=False) & low).astype(jnp.int32)
    return orders.reshape(-1, minibatch_size)
