"""What a model's computation costs, in floating-point operations, and how many of them this machine does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from surefoot.alignment.models.loading import hidden_states_and_head


def matrix_rate(device: torch.device, seconds: float = 0.5, *, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of matrix products, the best that was seen.

    Products are 1024 × 1024 × 1024 on a CPU, and 8192 × 8192 × 8192 on a GPU, which smaller ones do not fill.

    Args:
        device: where.
        seconds: for about how long to measure, after one product to warm up; at least three are timed.
        dtype: float32, or what matrix products are computed in under autocast.

    Returns:
        operations per second, a product of n × k with k × m counted as 2nkm.
    """
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator().manual_seed(0)  # of constants, GPUs compute products faster than of numbers that vary
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    times: list[float] = []
    _timed_product(left, right)
    while len(times) < 3 or sum(times) < seconds:
        times.append(_timed_product(left, right))
    return 2 * size**3 / min(times)


def forward_flops(model: Any, *, tokens: int, scored: int, attention_pairs: int) -> int:
    """2 N T + 2 H S + 4 L D P: operations of a forward pass in matrix products; everything else is left out.

    N are the weights of the trunk's linear layers, those of adapters included; H those of the head; L layers; D = query
    heads × size of a head, which is the hidden size in most models, however many heads share keys and values.
    Embeddings are look-ups, and cost nothing. Right for dense decoders; of a mixture of experts it counts no expert.

    Args:
        model: causal, or for sequence classification, with or without an adapter.
        tokens: T, tokens that the trunk computes, all sequences together.
        scored: S, tokens that the head computes.
        attention_pairs: P, pairs of a query and a key that it attends to: n(n+1)/2 for a sequence of n tokens by itself.
    """
    trunk, head = hidden_states_and_head(model)
    weights = sum(weight.numel() for weight, _ in _linear_weights(trunk))
    return 2 * weights * tokens + 2 * head.weight.numel() * scored + 4 * _attention_width(trunk.config) * attention_pairs


def backward_flops(model: Any, *, tokens: int, scored: int, attention_pairs: int) -> int:
    """Operations of the backward pass: for each matrix product one for the gradient of its input, and one for that of its weight.

    With all weights trained that is twice the forward pass. A frozen weight needs no gradient of its own: with an adapter, the base
    model's layers cost their forward pass once, the adapter's twice, and attention, which has no weights, always twice.

    Args:
        model: as for :func:`forward_flops`, and so are the counts.
    """
    trunk, head = hidden_states_and_head(model)
    weights = sum(weight.numel() * (1 + trained) for weight, trained in _linear_weights(trunk))
    of_head = head.weight.numel() * (1 + head.weight.requires_grad)
    return 2 * weights * tokens + 2 * of_head * scored + 8 * _attention_width(trunk.config) * attention_pairs


def _linear_weights(trunk: torch.nn.Module) -> Iterator[tuple[torch.Tensor, bool]]:
    for module in trunk.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            yield module.weight, module.weight.requires_grad


def _attention_width(config: Any) -> int:
    """L · D."""
    config = config.get_text_config()
    if getattr(config, "num_attention_heads", None) is None:
        return 0  # a state-space model has no attention
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * config.num_attention_heads * size


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    begin = time.perf_counter()
    (left @ right)[0, 0].item()  # waits for the device
    return time.perf_counter() - begin
