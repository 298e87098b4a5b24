"""From rewards to ψ: what a token earned, how good it was, and what its critic should have said. Equations are control's own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float

from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.experience import Experience
from surefoot.equations import group_advantages, leave_one_out_advantages, policy_gradient_weights, whiten


class Weighed(NamedTuple):
    """What the update needs beside the experience."""

    weights: Float[torch.Tensor, "T N"]
    """ψ, in reward units, or without unit where whitened or divided."""
    targets: Float[torch.Tensor, "T N"] | None
    """What the critic learns, ψ + V before any whitening; None without one."""
    returns: Float[torch.Tensor, " N"]
    """Σ_t r_t of each answer, KL penalty included where it is in the reward."""


def token_rewards(
    experience: Experience, answer_rewards: Float[torch.Tensor, " N"], *, beta: float, settings: PPOConfiguration
) -> Float[torch.Tensor, "T N"]:
    """r_t = −β (log π_old − log π_ref) at every token, and the answer's reward at its last; 0 behind the end.

    Args:
        experience: the answers.
        answer_rewards: one number per answer, in reward units.
        beta: β; it is left out where the KL divergence is in the loss.
        settings: where it is, and whether rewards are whitened.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019), equation 2, taken apart over tokens.
    """
    rewards = torch.where(experience.last, answer_rewards[None, :], 0.0)
    if settings.kl_placement == "reward":
        penalty = beta * (experience.log_probabilities - experience.reference)
        rewards = rewards - torch.where(experience.valid, penalty, 0.0)
    return whiten(rewards, valid=experience.valid, shift_mean=False) if settings.whiten_rewards else rewards


def weigh(experience: Experience, rewards: Float[torch.Tensor, "T N"], settings: PPOConfiguration) -> Weighed:
    """ψ of every token.

    Args:
        experience: the answers, with the critic's values where ψ needs them.
        rewards: r_t, from :func:`token_rewards`.
        settings: which ψ. ``group`` and ``leave-one-out`` give all tokens of an answer its whole return, compared with those of
            the other answers to its prompt.
    """
    valid = experience.valid
    returns = rewards.sum(dim=0)
    targets = None
    if settings.weight in ("group", "leave-one-out"):
        groups = returns.reshape(-1, settings.answers_per_prompt)
        if settings.weight == "group":
            advantages = group_advantages(returns=groups, divide_by_deviation=settings.divide_by_deviation)
        else:
            advantages = leave_one_out_advantages(returns=groups)
        weights = torch.where(valid, advantages.reshape(1, -1), 0.0)
    else:
        values = experience.values
        next_values = None if values is None else torch.cat([values[1:], torch.zeros_like(values[:1])])
        weights = policy_gradient_weights(
            settings.weight,
            rewards=rewards,
            values=values,
            next_values=next_values,
            terminated=experience.last,
            truncated=torch.zeros_like(experience.last),
            discount=settings.discount,
            trace_decay=settings.trace_decay,
            valid=valid,
        )
        if values is not None:
            targets = torch.where(valid, weights + values, 0.0)
    if settings.whiten_advantages:
        weights = whiten(weights, valid=valid)
    return Weighed(weights, targets, returns)


class RewardScale(NamedTuple):
    """(r − center)/scale, with numbers that the first batch settles."""

    center: float = 0.0
    scale: float = 1.0

    @staticmethod
    def of(rewards: Float[torch.Tensor, " N"], settings: PPOConfiguration) -> RewardScale:
        """Of a batch of the reference's own answers. Equal rewards have no scale: 1 stands for it."""
        if settings.standardize_rewards == "none":
            return RewardScale()
        deviation = float(rewards.std()) if settings.standardize_rewards == "scale" and len(rewards) > 1 else 0.0
        return RewardScale(float(rewards.mean()), deviation if deviation > 0 else 1.0)

    def answer_rewards(
        self, rewards: Float[torch.Tensor, " N"], finished: torch.Tensor, settings: PPOConfiguration
    ) -> Float[torch.Tensor, " N"]:
        """What an answer earns at its end: standardised, and then what cut answers get instead or lose."""
        scaled = (rewards - self.center) / self.scale
        if settings.unfinished_reward is not None:
            return torch.where(finished, scaled, settings.unfinished_reward)
        return torch.where(finished, scaled, scaled - settings.unfinished_penalty)
