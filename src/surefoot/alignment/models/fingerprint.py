"""A checksum of what a model computes with, as the key under which what it computed is kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import torch

from surefoot.alignment.models.adapters import is_adapted

CHUNK = 2**24
"""Elements that are brought from a device, or copied at all, at a time."""
WITHOUT_EFFECT = re.compile(
    r"drop|name_or_path|architectures|dtype|use_cache|transformers_version|_token_id|^_|problem_type|label"
)
"""Settings of a model that change nothing of what it computes outside of training."""


def weights_fingerprint(model: Any) -> str:
    """SHA-256 over the settings of the architecture, and names, shapes, types and bytes of all parameters and buffers, 64
    hexadecimal digits.

    Two models with the same fingerprint compute the same; one changed bit gives another one. Buffers that are not saved
    count too: the frequencies of rotary positions are such. Dropout, the device and the mode do not count.

    Args:
        model: with an adapter that is on, base weights, adapter and its scale all count. Within
            :func:`~surefoot.alignment.models.adapters.adapter_switched_off` the base weights alone do, and the result is that of
            the model before it got its adapter.
    """
    inner = model.get_base_model() if is_adapted(model) else model
    config = inner.config.to_dict() if hasattr(inner, "config") else {}
    settings = {name: value for name, value in config.items() if not WITHOUT_EFFECT.search(name)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(_tensors(model), key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        for begin in range(0, len(flat), CHUNK):
            part = flat[begin : begin + CHUNK].cpu().contiguous()
            digest.update(part.view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor once, tied or not, under the name that it has without an adapter."""
    off = is_adapted(model) and model.get_model_status().enabled is False
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_adapted(model):
            if off and re.search(r"\.(lora_\w+|modules_to_save)\.", name):
                continue
            name = re.sub(r"^base_model\.model\.|\.(base_layer|original_module)(?=\.)", "", name)
        yield name, tensor
    if is_adapted(model) and not off:
        from peft.tuners.lora import LoraLayer

        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                for adapter, scale in module.scaling.items():
                    yield f"{name}.scaling.{adapter}", torch.tensor(scale)
