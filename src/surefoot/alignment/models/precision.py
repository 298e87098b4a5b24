"""Where a model is computed, and in which floating-point format."""

from __future__ import annotations

import torch

from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.errors import UsageError


def device_of(configuration: ModelConfiguration) -> torch.device:
    """The device that the configuration asks for.

    Raises:
        UsageError: a GPU is asked for, and PyTorch sees none.
    """
    available = torch.cuda.is_available()
    if configuration.device == "cuda" and not available:
        raise UsageError("--device cuda: PyTorch sees no GPU here; take cpu or auto, or install a PyTorch built for your GPU")
    return torch.device("cuda" if available and configuration.device != "cpu" else "cpu")


def weights_dtype(configuration: ModelConfiguration) -> torch.dtype:
    """What weights are kept in, whatever the file holds."""
    return torch.bfloat16 if configuration.precision == "bfloat16" else torch.float32


def autocast_dtype(configuration: ModelConfiguration) -> torch.dtype | None:
    """What matrix products are computed in where that differs from the weights: bfloat16 on a GPU under auto, else None."""
    return torch.bfloat16 if configuration.precision == "auto" and device_of(configuration).type == "cuda" else None
