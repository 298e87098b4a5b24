"""From rewards to ψ: what a token earned, how good it was, and what its critic should have said. Equations are control's own.

Rewards may be normalised: what a source gives has any scale. What the user gave a scale, β log π/π_ref and the penalty of cut answers,
is taken off behind that. Were it normalised with the rewards, β would drop out wherever rewards are equal, and the divergence, down
to its rounding, would be all that is learnt from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float

from surefoot.alignment.rlhf.configuration import BY_GROUP, PPOConfiguration
from surefoot.alignment.rlhf.experience import Experience
from surefoot.equations import (
    discounted_returns,
    group_advantages,
    leave_one_out_advantages,
    masked_mean,
    policy_gradient_weights,
    whiten,
)


class TokenRewards(NamedTuple):
    """What every token earns; 0 behind an answer's end."""

    earned: Float[torch.Tensor, "T N"]
    """The answer's reward, at its last token."""
    penalties: Float[torch.Tensor, "T N"]
    """What is taken off."""

    @property
    def total(self) -> Float[torch.Tensor, "T N"]:
        """r_t, both together."""
        return self.earned - self.penalties


class Weighed(NamedTuple):
    """What the update needs beside the experience."""

    weights: Float[torch.Tensor, "T N"]
    """ψ, in reward units, or without unit where whitened or divided."""
    targets: Float[torch.Tensor, "T N"] | None
    """What the critic learns, ψ + V before any whitening; None without one."""
    returns: Float[torch.Tensor, " N"]
    """Σ_t r_t of each answer, penalties included."""


def token_rewards(
    experience: Experience, answer_rewards: Float[torch.Tensor, " N"], *, beta: float, settings: PPOConfiguration
) -> TokenRewards:
    """r_t = −β (log π_old − log π_ref) at every token; at an answer's last its reward, less the penalty where it was cut.

    Args:
        experience: the answers.
        answer_rewards: one number per answer, in reward units.
        beta: β; it is left out where the KL divergence is in the loss.
        settings: where it is, the penalty, and whether the answers' rewards are whitened before both are taken off.

    Source: Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019), equation 2, taken apart over tokens.
    """
    if settings.whiten_rewards:
        answer_rewards = whiten(answer_rewards, shift_mean=False)
    earned = torch.where(experience.last, answer_rewards[None, :], 0.0)
    penalties = torch.zeros_like(earned)
    if settings.unfinished_penalty:
        cut = ~torch.from_numpy(experience.finished).to(earned.device)
        penalties = torch.where(experience.last & cut, settings.unfinished_penalty, penalties)
    if settings.kl_placement == "reward" and beta and experience.reference is not None:
        divergence = experience.log_probabilities - experience.reference
        penalties = penalties + torch.where(experience.valid, beta * divergence, 0.0)
    return TokenRewards(earned, penalties)


def weigh(experience: Experience, rewards: TokenRewards, settings: PPOConfiguration) -> Weighed:
    """ψ of every token.

    Where ψ is normalised, by ``divide_by_deviation`` or ``whiten_advantages``, that is ψ of what was earned; the penalties' own weight is
    taken off behind it: the difference to the prompt's other answers, or the penalties from a token on less their mean over the
    batch. The critic learns what was earned alone then.

    Args:
        experience: the answers, with the critic's values where ψ needs them.
        rewards: r_t, from :func:`token_rewards`.
        settings: which ψ. ``group`` and ``leave-one-out`` give all tokens of an answer its whole return, compared with those of
            the other answers to its prompt.
    """
    valid, divides = experience.valid, settings.weight == "group" and settings.divide_by_deviation
    apart = divides or settings.whiten_advantages
    returned = rewards.earned if apart else rewards.total
    targets = None
    if settings.weight in BY_GROUP:
        weights = _compared(experience, returned, settings, divide=divides)
    else:
        values = experience.values
        next_values = None if values is None else torch.cat([values[1:], torch.zeros_like(values[:1])])
        weights = policy_gradient_weights(
            settings.weight,
            rewards=returned,
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
    if apart:
        weights = weights - _weight_of_penalties(experience, rewards.penalties, settings)
    return Weighed(weights, targets, rewards.total.sum(dim=0))


def _compared(
    experience: Experience, rewards: Float[torch.Tensor, "T N"], settings: PPOConfiguration, *, divide: bool
) -> Float[torch.Tensor, "T N"]:
    """Every token by its answer's return, compared with those of the other answers to its prompt."""
    groups = rewards.sum(dim=0).reshape(-1, settings.answers_per_prompt)
    if settings.weight == "group":
        advantages = group_advantages(returns=groups, divide_by_deviation=divide)
    else:
        advantages = leave_one_out_advantages(returns=groups)
    return torch.where(experience.valid, advantages.reshape(1, -1), 0.0)


def _weight_of_penalties(
    experience: Experience, penalties: Float[torch.Tensor, "T N"], settings: PPOConfiguration
) -> Float[torch.Tensor, "T N"]:
    """What is taken off ψ where ψ was normalised; in the unit of the penalties, whatever theirs is."""
    if settings.weight in BY_GROUP:
        return _compared(experience, penalties, settings, divide=False)
    following = discounted_returns(
        rewards=penalties,
        terminated=experience.last,
        truncated=torch.zeros_like(experience.last),
        discount=settings.discount,
        valid=experience.valid,
    )
    return torch.where(experience.valid, following - masked_mean(following, experience.valid), 0.0)


class RewardScale(NamedTuple):
    """(r − center)/scale, with numbers that the first batch settles."""

    center: float = 0.0
    scale: float = 1.0

    @staticmethod
    def of(rewards: Float[torch.Tensor, " N"], settings: PPOConfiguration) -> RewardScale:
        """Of a batch of the reference's own answers. Equal rewards have no scale: 1 stands for it."""
        if settings.standardize_rewards == "none":
            return RewardScale()
        since_first = rewards - rewards[0]  # equal rewards differ from their mean by its rounding
        deviation = float(since_first.std()) if settings.standardize_rewards == "scale" and len(rewards) > 1 else 0.0
        return RewardScale(float(rewards[0] + since_first.mean()), deviation if deviation > 0 else 1.0)

    def answer_rewards(
        self, rewards: Float[torch.Tensor, " N"], finished: torch.Tensor, settings: PPOConfiguration
    ) -> Float[torch.Tensor, " N"]:
        """What an answer earns at its end: its reward, standardised, or what cut answers get instead."""
        scaled = (rewards - self.center) / self.scale
        return scaled if settings.unfinished_reward is None else torch.where(finished, scaled, settings.unfinished_reward)
