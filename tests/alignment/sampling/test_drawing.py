"""Tokens by the inverse distribution function; the oracle adds probabilities up in float64, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.alignment.sampling.drawing import BLOCK, Drawing, truncate

TOP = 1 - 2**-53
"""The largest number below 1."""


def drawn(logits, noise):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    drawing = Drawing(*logits.shape, torch.device("cpu"))
    tokens, log_probabilities = drawing.draw(logits, torch.as_tensor(noise, dtype=torch.float64))
    return tokens.numpy(), log_probabilities.numpy()


def random_logits(rows, words, scale=3.0):
    return (np.random.default_rng(0).standard_normal((rows, words)) * scale).astype(np.float32)


def probabilities(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("words", [1, 2, 255, 256, 257, 1000, 4096])
def test_tokens_are_those_of_the_distribution_function_added_up_word_by_word(words):
    logits = random_logits(300, words)
    noise = np.random.default_rng(1).random(300)
    tokens, log_probabilities = drawn(logits, noise)
    exact = probabilities(logits)
    function = exact.cumsum(axis=1)
    assert tokens.tolist() == [int(np.searchsorted(f, u * f[-1], side="right")) for f, u in zip(function, noise, strict=True)]
    np.testing.assert_allclose(log_probabilities, np.log(exact[np.arange(300), tokens]), rtol=0, atol=2e-6)


def test_every_word_gets_the_share_of_the_numbers_that_is_its_probability():
    logits = random_logits(1, 700, scale=1.0)
    grid = (np.arange(40_000) + 0.5) / 40_000
    tokens, _ = drawn(logits.repeat(len(grid), axis=0), grid)
    shares = np.bincount(tokens, minlength=700) / len(grid)
    assert np.abs(shares - probabilities(logits)[0]).max() <= 1.01 / len(grid)
    assert (np.diff(tokens) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    words=st.integers(1, 3 * BLOCK + 5),
    possible=st.sets(st.integers(0, 3 * BLOCK + 4), min_size=1, max_size=5),
    noise=st.sampled_from([0.0, 2**-60, 0.5, 1 - 2**-24, 1 - 2**-30, TOP]) | st.floats(0, TOP),
    seed=st.integers(0, 5),
)
def test_a_word_of_probability_zero_is_never_drawn(words, possible, noise, seed):
    possible = {word % words for word in possible}
    logits = np.full((1, words), -np.inf, dtype=np.float32)
    logits[0, list(possible)] = np.random.default_rng(seed).standard_normal(len(possible)) * 40
    tokens, log_probabilities = drawn(logits, [noise])
    assert int(tokens[0]) in possible
    assert probabilities(logits)[0, tokens[0]] > 0
    assert np.isfinite(log_probabilities).all()


def test_the_ends_of_the_interval_are_the_first_and_the_last_word_that_can_be():
    logits = random_logits(200, 1000, scale=1.0)
    logits[:, :3] = logits[:, 990:] = -np.inf
    assert (drawn(logits, np.zeros(200))[0] == 3).all()
    assert (drawn(logits, np.full(200, TOP))[0] == 989).all()
    logits[:, 700:] = -np.inf
    assert (drawn(logits, np.full(200, TOP))[0] == 699).all()
    logits[:, 512:] = -np.inf
    assert (drawn(logits, np.full(200, TOP))[0] == 511).all()


def test_a_shift_of_all_logits_changes_nothing_however_large():
    logits = np.round(random_logits(50, 300), 2)
    noise = np.random.default_rng(2).random(50)
    for shift in (-1024.0, 1024.0):
        assert drawn(logits + np.float32(shift), noise)[0].tolist() == drawn(logits, noise)[0].tolist()


def test_rows_are_drawn_apart_and_may_be_used_again():
    drawing = Drawing(5, 300, torch.device("cpu"))
    logits = torch.from_numpy(random_logits(5, 300))
    noise = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    five = drawing.draw(logits, noise)
    two = drawing.draw(logits[3:], noise[3:])
    assert torch.equal(five[0][3:], two[0])
    assert torch.equal(five[1][3:], two[1])


@pytest.mark.parametrize(
    ("top_k", "top_p", "left"),
    [
        (2, None, [0, 1]),
        (9, None, [0, 1, 2, 3]),
        (None, 0.4, [0]),
        (None, 0.5, [0]),
        (None, 0.51, [0, 1]),
        (None, 0.95, [0, 1, 2, 3]),
        (None, 1.0, [0, 1, 2, 3]),
        (3, 0.85, [0, 1]),  # 0.5 + 0.3 of 0.9, which is what the three largest have
        (1, 0.1, [0]),
    ],
)
def test_what_top_k_and_top_p_leave_of_four_words(top_k, top_p, left):
    probabilities = torch.tensor([[0.1, 0.3, 0.5, 0.1]])
    order = [2, 1, 0, 3]  # of the words, most likely first
    probabilities = torch.tensor([[0.1, 0.3, 0.5, 0.1 - 1e-4]])
    logits = probabilities.log() + 7
    log_left = truncate(logits, top_k=top_k, top_p=top_p)
    assert torch.isfinite(logits)[0].nonzero()[:, 0].tolist() == sorted(order[i] for i in left)
    kept = probabilities[0, [order[i] for i in left]].sum() / probabilities.sum()
    torch.testing.assert_close(log_left, kept.log()[None])


def test_top_k_and_top_p_are_those_of_transformers():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.from_numpy(random_logits(40, 500))
    for top_k, top_p in ((7, None), (None, 0.8), (30, 0.6)):
        mine, theirs = logits.clone(), logits.clone()
        truncate(mine, top_k=top_k, top_p=top_p)
        if top_k is not None:
            theirs = TopKLogitsWarper(top_k)(None, theirs)
        if top_p is not None:
            theirs = TopPLogitsWarper(top_p)(None, theirs)
        assert torch.equal(mine, theirs)
