"""The optimiser's step: AdamW, its step size over the run, and a limit on the gradient's length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from surefoot.alignment.configuration import TrainingConfiguration
from surefoot.alignment.learning.nonfinite import NotFinite

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]


def make_optimizer(parameters: NamedParameters, training: TrainingConfiguration) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; only matrices decay.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm 2.
    """
    matrices = [p for _, p in parameters if p.dim() >= 2]
    others = [p for _, p in parameters if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=training.learning_rate, eps=training.adam_epsilon, fused=True
    )


def learning_rate_at(update: int, total: int, training: TrainingConfiguration) -> float:
    """The step size of one update.

    It rises linearly over the first ``warmup`` share of the updates, the first of which already moves, and then stays, falls
    linearly, or falls as half a cosine, to 0 just behind the last update.

    Args:
        update: which, from 0.
        total: of the whole run.
        training: the highest step size, the warm-up and the schedule.
    """
    rising = math.ceil(round(training.warmup * total, 6))  # 0.07 · 100 is a little more than 7
    if update < rising:
        return training.learning_rate * (update + 1) / rising
    gone = (update - rising) / max(total - rising, 1)
    left = {"constant": 1.0, "linear": 1 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone))}
    return training.learning_rate * left[training.learning_rate_schedule]


def descend(
    optimizer: torch.optim.Optimizer,
    parameters: NamedParameters,
    *,
    learning_rate: float,
    max_gradient_norm: float | None,
) -> float:
    """One step along the gradients that have been accumulated, and none left behind.

    Returns:
        the gradient's norm before it was limited.

    Raises:
        NotFinite: the gradient is not finite; the step is not taken.
    """
    gradients = [p.grad for _, p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        name = next((n for n, p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())), "their norm")
        optimizer.zero_grad()
        raise NotFinite(f"the gradient is not finite ({name}); a smaller --learning-rate or a --max-gradient-norm may help")
    if max_gradient_norm is not None and norm > max_gradient_norm:
        torch.nn.utils.clip_grads_with_norm_([p for _, p in parameters], max_gradient_norm, torch.tensor(norm))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return norm
