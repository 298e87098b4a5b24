"""Every public function runs where JAX is told to refuse broadcasting across ranks, which is how some code bases set it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.equations import generalized_advantages, per_decision_importance_estimate
from tests.equations.examples import DATA, ENDS, EXAMPLES, NOISE, STEPS, of
from tests.equations.libraries import LIBRARIES

JAX = next(library for library in LIBRARIES if library.name == "jax")


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_rank_is_promoted(name):
    call, arrays = EXAMPLES[name]
    expected = JAX.call(call, **arrays)
    with jax.numpy_rank_promotion("raise"):
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.ones(3) + jnp.ones((2, 3))
        got = JAX.call(call, **arrays)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_nor_for_a_discount_per_column():
    discount = np.linspace(0.5, 0.9, DATA["rewards"].shape[1])
    with jax.numpy_rank_promotion("raise"):
        got = JAX.call(lambda discount, **a: generalized_advantages(**a, discount=discount, trace_decay=discount),
                       discount=discount, **STEPS, **ENDS)  # fmt: skip
        estimate = JAX.call(per_decision_importance_estimate, log_weights=NOISE, discount=discount, **of("rewards"))
    for column, one in enumerate(discount):
        alone = {k: v[:, column] for k, v in (STEPS | ENDS).items()}
        np.testing.assert_allclose(got[:, column], generalized_advantages(**alone, discount=one, trace_decay=one), atol=1e-12)
    by_hand = (np.exp(NOISE) * discount ** np.arange(len(NOISE))[:, None] * DATA["rewards"]).sum(axis=0).mean()
    np.testing.assert_allclose(estimate[0], by_hand)
