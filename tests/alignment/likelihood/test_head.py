"""Chunked = full, kept = computed again; the oracle is PyTorch's own log-softmax under its own autograd."""

from __future__ import annotations

import pytest
import torch

from surefoot.alignment.likelihood import head
from surefoot.alignment.likelihood.head import Excluded, token_log_probabilities, token_log_probabilities_and_entropies

ROWS, SIZE, VOCABULARY = 23, 6, 11
ROW_OF = torch.tensor(sorted([*range(ROWS), 0, 0, 5, 22]))
TARGET = torch.arange(len(ROW_OF)) * 7 % VOCABULARY


def inputs(*, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    return draw(ROWS, SIZE), draw(VOCABULARY, SIZE), draw(VOCABULARY) if bias else None


def full(hidden, weight, bias):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.float().log_softmax(-1)[ROW_OF, TARGET]


def both(hidden, weight, bias, **sizes):
    coefficients = torch.linspace(-2, 3, len(ROW_OF))
    leaves = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
    mine = token_log_probabilities(hidden=hidden, weight=weight, bias=bias, row_of=ROW_OF, target=TARGET, **sizes)
    theirs = full(hidden, weight, bias)
    of_mine = torch.autograd.grad((mine * coefficients).sum(), leaves)
    of_theirs = torch.autograd.grad((theirs * coefficients).sum(), leaves)
    return (mine, of_mine), (theirs, of_theirs)


SIZES = {
    "kept": {},
    "computed again, in one": {"keep_bytes": 0},
    "computed again, row by row": {"keep_bytes": 0, "chunk_bytes": 1},
    "computed again, in fives": {"keep_bytes": 0, "chunk_bytes": 5 * 4 * VOCABULARY},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_values_and_gradients_are_those_of_full_logits(sizes, bias):
    (mine, of_mine), (theirs, of_theirs) = both(*inputs(bias=bias), **sizes)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    for a, b in zip(of_mine, of_theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(sizes, frozen):
    hidden, weight, _ = inputs(bias=False)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    (_, of_mine), (_, of_theirs) = both(hidden, weight, None, **sizes)
    torch.testing.assert_close(of_mine[0], of_theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_half_the_bits_in_the_products_and_float32_in_the_sums(sizes):
    (mine, of_mine), (theirs, of_theirs) = both(*inputs(bias=False, dtype=torch.bfloat16), **sizes)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for a, b in zip(of_mine, of_theirs, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.2)


def test_logits_of_a_thousand_stay_finite():
    hidden, weight, _ = inputs(bias=False)
    for sizes in SIZES.values():
        (mine, of_mine), (theirs, of_theirs) = both((hidden * 300).detach().requires_grad_(), weight, None, **sizes)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-3)
        for a, b in zip(of_mine, of_theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)


def test_without_gradients_nothing_is_kept():
    hidden, weight, _ = inputs(bias=False)
    with torch.no_grad():
        tokens = token_log_probabilities(hidden=hidden, weight=weight, bias=None, row_of=ROW_OF, target=TARGET)
    assert tokens.grad_fn is None
    torch.testing.assert_close(tokens, full(hidden, weight, None).detach(), rtol=0, atol=1e-6)


def test_a_second_backward_pass_is_refused_where_the_softmax_was_used_up():
    hidden, weight, _ = inputs(bias=False)
    total = token_log_probabilities(hidden=hidden, weight=weight, bias=None, row_of=ROW_OF, target=TARGET).sum()
    first = torch.autograd.grad(total, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, hidden)
    assert first[0].shape == hidden.shape


ENDS = torch.tensor([2, 7])
EARLY = torch.tensor([0, 1, 5, 13, 22])
"""Rows in which the end tokens cannot be drawn."""


def in_float64(hidden, weight, bias, *, excluded):
    """Log-probabilities of the targets, and entropies of the rows, by PyTorch's own functions in twice the precision."""
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    hidden_away = torch.zeros_like(logits, dtype=torch.bool)
    if excluded:
        hidden_away[EARLY[:, None], ENDS] = True
    logits = logits.masked_fill(hidden_away, -torch.inf)
    entropies = torch.stack(
        [torch.distributions.Categorical(logits=row[there]).entropy() for row, there in zip(logits, ~hidden_away, strict=True)]
    )
    return logits.log_softmax(-1)[ROW_OF, TARGET], entropies


@pytest.mark.parametrize("counted", ["both", "tokens", "entropies"])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_entropies_and_excluded_tokens_are_those_of_float64(sizes, bias, excluded, counted, monkeypatch):
    monkeypatch.setattr(head, "BLOCK_BYTES", 4 * 4 * VOCABULARY)
    inputs_ = inputs(bias=bias)
    leaves = [x for x in inputs_ if x is not None]
    hidden, weight, biases = inputs_
    tokens, entropies = token_log_probabilities_and_entropies(
        hidden=hidden,
        weight=weight,
        bias=biases,
        row_of=ROW_OF,
        target=TARGET,
        excluded=Excluded(EARLY, ENDS) if excluded else None,
        **sizes,
    )
    exact_tokens, exact_entropies = in_float64(*inputs_, excluded=excluded)
    assert (exact_tokens == -torch.inf).any() == excluded
    torch.testing.assert_close(tokens, exact_tokens.float(), rtol=0, atol=2e-6)
    torch.testing.assert_close(entropies, exact_entropies.float(), rtol=0, atol=2e-6)
    of_tokens = torch.linspace(-2, 3, len(ROW_OF)) * (counted != "entropies")
    of_entropies = torch.linspace(3, -1, ROWS) * (counted != "tokens")

    def slope(tokens, entropies):
        terms = {"both": [(tokens, of_tokens), (entropies, of_entropies)], "tokens": [(tokens, of_tokens)]}
        pairs = terms.get(counted, [(entropies, of_entropies)])
        return torch.autograd.grad([x for x, _ in pairs], leaves, [g.to(x.dtype) for x, g in pairs])

    for mine, exact in zip(slope(tokens, entropies), slope(exact_tokens, exact_entropies), strict=True):
        torch.testing.assert_close(mine, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_an_excluded_token_gets_no_gradient_at_all(sizes):
    hidden, weight, bias = inputs(bias=True)
    every = Excluded(torch.arange(ROWS), ENDS)
    tokens, entropies = token_log_probabilities_and_entropies(
        hidden=hidden, weight=weight, bias=bias, row_of=ROW_OF, target=TARGET, excluded=every, **sizes
    )
    of_weight, of_bias = torch.autograd.grad((tokens.sum(), entropies.sum()), (weight, bias))
    assert (of_weight[ENDS] == 0).all()
    assert (of_bias[ENDS] == 0).all()
    assert (of_weight[[0, 1, 3]] != 0).all()


def test_the_entropy_of_a_certain_word_is_zero_and_its_gradient_finite():
    hidden = torch.tensor([[400.0], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    for sizes in SIZES.values():
        _, entropies = token_log_probabilities_and_entropies(
            hidden=hidden, weight=weight, bias=None, row_of=torch.tensor([0, 1]), target=torch.tensor([0, 0]), **sizes
        )
        torch.testing.assert_close(entropies.detach(), torch.tensor([1.0, 3.0]).log())
        (slope,) = torch.autograd.grad(entropies.sum(), hidden)
        torch.testing.assert_close(slope, torch.zeros(2, 1), rtol=0, atol=1e-6)
