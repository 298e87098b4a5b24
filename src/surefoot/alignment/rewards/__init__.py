"""What an answer is worth: by a trained reward model, or by a function in Python."""

from surefoot.alignment.rewards.function import FunctionReward
from surefoot.alignment.rewards.model import ModelReward
from surefoot.alignment.rewards.opening import open_reward
from surefoot.alignment.rewards.source import OpenedRewards, RewardSource

__all__ = ["FunctionReward", "ModelReward", "OpenedRewards", "RewardSource", "open_reward"]
