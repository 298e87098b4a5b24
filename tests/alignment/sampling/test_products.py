"""However the matrix is laid out, products are PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from surefoot.alignment.sampling import products
from surefoot.alignment.sampling.products import product_with


@pytest.mark.parametrize("way", ["oneDNN", "without it", "too large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "words", "size"), [(1, 7, 3), (16, 300, 64), (33, 1000, 5)])
def test_a_product_with_a_matrix_laid_out_once_is_the_product(way, dtype, rows, words, size, monkeypatch):
    if way == "without it":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    if way == "too large":
        monkeypatch.setattr(products, "COPY_BYTES", 4 * words * size - 1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(words, size, generator=generator).to(dtype)
    product = product_with(weight)
    for count in (rows, 1):
        x = torch.randn(count, size, generator=generator).to(dtype)
        y = product(x)
        assert y.dtype == dtype
        assert y.is_contiguous()
        torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)
