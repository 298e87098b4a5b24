"""Steps so small that weights of half the bits round them away."""

from __future__ import annotations

import math

import torch

from surefoot.alignment.learning.optimization import NamedParameters
from surefoot.errors import Caution

MOST = 0.5
"""Share of the weights beyond which it is worth a warning."""
SMALLEST = -160
"""Exponents below it, which are those of no float, count as it."""


@torch.no_grad()
def rounded_away(parameters: NamedParameters, *, learning_rate: float) -> Caution | None:
    """A warning where a step of Adam leaves most weights as they are.

    Adam moves a weight by at most about the step size η. A weight w = m 2^e with ½ ≤ |m| < 1 has neighbours 2^(e−b) away, b the bits of
    its format: bfloat16 has 8. Where η is below half of that, w + η is rounded to w again, in every update.

    Args:
        parameters: all that the optimiser changes. Those of float32 lose nothing worth naming, and count with the others.
        learning_rate: η at its highest.
    """
    counts = torch.zeros(2 * -SMALLEST, dtype=torch.int64)
    others, bits = 0, 8
    for _, parameter in parameters:
        if parameter.dtype != torch.bfloat16:
            others += parameter.numel()
            continue
        exponents = torch.frexp(parameter.float()).exponent
        exponents = torch.where(parameter == 0, SMALLEST, exponents).clamp_(SMALLEST, -SMALLEST - 1)
        counts += torch.bincount(exponents.flatten() - SMALLEST, minlength=len(counts)).cpu()
    half_spacings = torch.exp2(torch.arange(SMALLEST, -SMALLEST, dtype=torch.float64) - bits - 1)
    total = int(counts.sum()) + others
    share = int(counts[half_spacings > learning_rate].sum()) / max(total, 1)
    if share <= MOST:
        return None
    enough = float(half_spacings[others + counts.cumsum(0) >= total * (1 - MOST)][0])
    digit = 10.0 ** math.floor(math.log10(enough))
    enough = math.ceil(enough / digit) * digit
    return Caution(
        f"--precision bfloat16 rounds steps of --learning-rate {learning_rate:g} away in {share:.0%} of the weights, which then stay"
        f" as they are: leave --precision out, train an adapter with --lora-rank, or give a --learning-rate of {enough:g} or more"
    )
