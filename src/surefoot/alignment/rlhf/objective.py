"""The loss of PPO on tokens, on a part of a minibatch: control's clipped surrogate and value loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float

from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.method import Sums
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.experience import Answered, Experience, places
from surefoot.alignment.rlhf.weighing import Weighed
from surefoot.equations import clipped_surrogate, clipped_value_loss, importance_ratio, kl_k2, kl_k3, squared_value_loss


class Share(NamedTuple):
    """What a part of a minibatch contributed; its gradients are in the parameters already."""

    sums: Sums
    lowest_ratio: float
    highest_ratio: float


def accumulate_gradients(
    part: Sequence[Answered],
    *,
    tokens: int,
    experience: Experience,
    weighed: Weighed,
    beta: float,
    actor: Likelihood,
    critic: Critic | None,
    under: AnswerDistribution,
    settings: PPOConfiguration,
) -> Share:
    """Add the gradient of a part's share of

        L = −(1/S) Σ min(ρ ψ, clip(ρ, 1−ε, 1+ε) ψ) − c_H (1/S) Σ H + [KL in the loss] β (1/S) Σ_y ½ (log π(y)/π_ref(y))²

    over the S tokens of a minibatch, and of ½ (1/S) Σ (V − G)², which has parameters of its own or counts c_V times.

    Dividing everything by the tokens of the whole minibatch makes the gradient independent of how it is cut into parts, and weighs
    every token the same, in long answers and short ones: an answer is worth the sum over its tokens.

    Args:
        part: some prompts of the minibatch, with their answers.
        tokens: S.
        experience: what was sampled.
        weighed: ψ, and the critic's targets G.
        beta: β; 0 leaves the KL divergence out.
        actor: the policy.
        critic: V, or None.
        under: what the answers were sampled from.
        settings: the choices.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), equations 7 and 9.
    """
    groups = [one.group for one in part]
    bonus = settings.entropy_coefficient
    shared_head = critic.head if critic is not None else None
    completions = actor.completions(groups, under=under, entropies=bonus > 0, value_head=shared_head)
    at = places(part, completions)
    new = completions.tokens
    log_ratio = new - experience.log_probabilities[at]
    ratio = importance_ratio(log_probabilities=new, behavior_log_probabilities=experience.log_probabilities[at])
    surrogate = clipped_surrogate(ratio=ratio, advantages=weighed.weights[at], clip_range=settings.clip_range)
    loss = -surrogate.sum() / tokens
    with torch.no_grad():
        outside = (ratio < 1 - settings.clip_range) | (ratio > 1 + settings.clip_range)
        sums: Sums = {
            "loss/policy": (-surrogate.sum(), len(new)),
            "clip_fraction": (outside.float().sum(), len(new)),
            "kl/update": (kl_k3(log_ratio).sum(), len(new)),
        }
    if settings.kl_placement == "loss" and beta:
        assert experience.reference is not None
        moved = new - experience.reference[at]
        of_answers = moved.new_zeros(completions.count).index_add(0, completions.completion_of, moved)
        loss = loss + beta * kl_k2(of_answers).sum() / tokens
    if completions.entropies is not None:
        loss = loss - bonus * completions.entropies.sum() / tokens
    if critic is None or critic.head is None:
        loss.backward()  # the policy's graph is gone before the critic's is made
    if critic is not None:
        assert weighed.targets is not None
        assert experience.values is not None
        values = critic.values(groups, completions)
        if settings.value_clip_range is None:
            terms = squared_value_loss(values=values, targets=weighed.targets[at])
        else:
            old = experience.values[at]
            limit = settings.value_clip_range
            terms = clipped_value_loss(values=values, old_values=old, targets=weighed.targets[at], clip_range=limit)
        sums["loss/value"] = (terms.detach().sum(), len(terms))
        value_loss = terms.sum() / tokens
        (value_loss if critic.head is None else loss + settings.value_coefficient * value_loss).backward()
    return Share(sums, *_extremes(ratio.detach()))


def _extremes(ratio: Float[torch.Tensor, " S"]) -> tuple[float, float]:
    low, high = torch.aminmax(ratio)
    return float(low), float(high)
