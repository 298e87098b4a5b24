"""How far from 1 the first ratios of an update may be: what rounding explains, and what it does not."""

from __future__ import annotations

import math

import torch

from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.errors import Caution, RunError

ROUNDINGS = {torch.bfloat16: 1.0, torch.float16: 1.0}
"""c of half the bits, where a product's sum is carried in float32, and rounded once."""
ROUNDINGS_OF_FLOAT32 = 32.0
"""c of float32, where every addition of a sum is rounded, in another order each way."""
HARMLESS = 0.01
"""Share of ε that ratios may be away from 1 before anything is learnt: no token is clipped for it that would not be otherwise."""
LARGEST_DISAGREEMENT = 0.3
"""In float32, where rounding explains far less, what is beyond it is no distribution like the one that was sampled from."""


def ratio_tolerance(likelihood: Likelihood, *, temperature: float, tokens: int) -> float:
    """How far rounding may take the largest of S first ratios from 1: exp(c u (L + 1) √(2 ln S) / min(T, 1)) − 1.

    u is the spacing of the numbers that matrix products are computed in, L the number of layers, through which rounding errors grow, S
    the number of tokens of which the largest error counts, and T the temperature that logits are divided by; c is measured
    (docs/decisions/ratio_tolerance.md). The vocabulary makes no difference.

    Args:
        likelihood: of the policy.
        temperature: T.
        tokens: S.
    """
    dtype = likelihood.autocast or likelihood.head.weight.dtype
    spacing = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # log-probabilities are float32 in any case
    layers = getattr(likelihood.trunk.config.get_text_config(), "num_hidden_layers", 1)
    of_largest = math.sqrt(2 * math.log(max(tokens, 2)))
    nats = ROUNDINGS.get(dtype, ROUNDINGS_OF_FLOAT32) * spacing * (layers + 1) * of_largest / min(temperature, 1.0)
    return math.expm1(min(nats, 10.0))


def judge_ratios(error: float, likelihood: Likelihood, *, tokens: int, settings: PPOConfiguration) -> tuple[bool, str | None]:
    """Whether the policy's log-probabilities must be computed again before every update, and a sentence where they must.

    Args:
        error: the largest difference of a first ratio from 1.
        likelihood: of the policy.
        tokens: how many ratios there were.
        settings: temperature and ε.

    Raises:
        RunError: no rounding explains the difference; or it is not a number.
    """
    tolerance = ratio_tolerance(likelihood, temperature=settings.temperature, tokens=tokens)
    found = f"the first ratios of the update differ from 1 by up to {error:.1e}"
    if not error <= max(tolerance, LARGEST_DISAGREEMENT):
        raise RunError(
            f"{found}: answers are not sampled from the distribution that they are scored under, and nothing could be learnt from them"
        )
    if error <= min(tolerance, HARMLESS * settings.clip_range):
        return False, None
    half = (likelihood.autocast or likelihood.head.weight.dtype) in ROUNDINGS
    advice = "; --precision float32 avoids it" if half else ""
    costs = f"log-probabilities are computed again before every update, which costs a forward pass{advice}"
    if error <= tolerance:
        return True, f"{found}, which rounding explains: {costs}"
    return True, Caution(f"{found}, where rounding explains {tolerance:.1e}: {costs}")
