"""However the matrix is laid out, products are PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from surefoot.alignment.sampling import products
from surefoot.alignment.sampling.products import linear_layers_laid_out, product_with
from tests.alignment.likelihood.architectures import build


@pytest.mark.parametrize("way", ["oneDNN", "without it", "too large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "words", "size"), [(1, 7, 3), (16, 300, 64), (33, 1000, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_with_a_matrix_laid_out_once_is_the_product(with_bias, way, dtype, rows, words, size, monkeypatch):
    if way == "without it":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    if way == "too large":
        monkeypatch.setattr(products, "COPY_BYTES", 4 * words * size - 1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(words, size, generator=generator).to(dtype)
    bias = torch.randn(words, generator=generator).to(dtype) if with_bias else None
    product = product_with(weight, bias)
    for shape in ((rows, size), (1, size), (2, rows, size)):
        x = torch.randn(*shape, generator=generator).to(dtype)
        y = product(x)
        assert y.dtype == dtype
        assert y.is_contiguous()
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(y, expected, rtol=1e-5 if dtype != torch.bfloat16 else 1e-2, atol=1e-5)


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("inputs", [(1, 3, 4), (2, 4)])
def test_linear_layers_are_laid_out_for_a_while_and_those_of_other_kinds_left_alone(inputs, monkeypatch):
    monkeypatch.setattr(products, "COPY_BYTES", 4 * (4 * 4 + 4 * 5))
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), Doubled(4, 4), torch.nn.Linear(4, 5, bias=False), torch.nn.Linear(5, 4))
    layers.append(torch.nn.Linear(4, 4))
    wrapped = layers[4].forward
    layers[4].forward = lambda x: wrapped(x) + 1  # as libraries do that wrap a module
    x = torch.randn(*inputs)
    with torch.no_grad():
        expected = layers(x)
        before = [vars(layer).get("forward") for layer in layers]
        with linear_layers_laid_out(layers):
            now = [vars(layer).get("forward") for layer in layers]
            torch.testing.assert_close(layers(x), expected)
    assert [a is not b for a, b in zip(before, now, strict=True)] == [True, False, True, False, False]  # no room for the fourth
    assert [vars(layer).get("forward") for layer in layers] == before


def test_layers_are_given_back_also_where_something_fails():
    model = build("llama")
    with pytest.raises(ZeroDivisionError), linear_layers_laid_out(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("reason", ["dtype", "autocast", "no operators"])
def test_layers_are_left_alone_where_it_would_not_help(reason, monkeypatch):
    model = build("llama", dtype=torch.bfloat16 if reason == "dtype" else torch.float32)
    if reason == "no operators":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"), linear_layers_laid_out(model):
        assert not any("forward" in vars(module) for module in model.modules())
