"""From a configuration of PPO to its critic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from surefoot.alignment.configuration import AlignConfiguration
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import Group
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.loading import load_reward_model
from surefoot.alignment.models.precision import autocast_dtype
from surefoot.alignment.rewards.model import ModelReward
from surefoot.alignment.rewards.source import OpenedRewards
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.errors import UsageError


def ppo_settings(configuration: AlignConfiguration) -> PPOConfiguration:
    """The choices of a configuration whose method is ppo."""
    if not isinstance(configuration.objective, PPOConfiguration):
        raise ValueError(f"{configuration.method} is not ppo")
    return configuration.objective


def open_critic(
    configuration: AlignConfiguration,
    tokenizer: PreTrainedTokenizerFast,
    actor: Likelihood,
    reward: OpenedRewards,
    groups: list[Group],
    tell: Callable[[str], None],
) -> Critic:
    """The critic that a configuration asks for.

    Args:
        configuration: of a run of PPO whose ψ needs one.
        tokenizer: the policy's.
        actor: the policy, with its adapter.
        reward: where rewards come from; a reward model may be copied.
        groups: prompts with answers as long as any that will come.
        tell: takes sentences for the user.

    Raises:
        UsageError: there is no reward model to copy, or its tokens are not the policy's.
    """
    choice = ppo_settings(configuration).critic
    same_tokens = isinstance(reward, ModelReward) and reward.same_tokens
    if choice == "reward" and not same_tokens:
        what = (
            "a reward model has another tokenizer" if isinstance(reward, ModelReward) else "a function has no weights to copy"
        )
        raise UsageError(f"--critic reward: {what}; take --critic policy or shared")
    if choice == "shared":
        return Critic.sharing(actor)
    from_reward = choice == "reward" or (choice == "auto" and same_tokens)
    name = reward.name if from_reward else configuration.model.model
    own_tokenizer = copy.deepcopy(tokenizer)  # it may get a padding token that the policy has no row for
    model, notices = load_reward_model(
        replace(configuration.model, model=name), own_tokenizer, new_head=not from_reward, seed=configuration.training.seed
    )
    tell(f"the critic starts as a copy of {'the reward model' if from_reward else 'the policy, with a head of zeros'}")
    for sentence in notices if from_reward else ():
        tell(sentence)
    if configuration.adapter.lora_rank:
        model = add_adapter(model, configuration.adapter, seed=configuration.training.seed, notify=tell)
    likelihood = Likelihood(
        model, share_prompts=configuration.training.share_prompts, autocast=autocast_dtype(configuration.model)
    )
    likelihood.work = actor.work
    if notice := likelihood.check(groups):
        tell(f"critic: {notice}")
    if not from_reward:
        likelihood.head.weight.data.zero_()  # after the check, which compares what a head that is not zero computes
    return Critic(likelihood)
