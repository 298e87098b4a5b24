"""A2C, advantage actor–critic: short rollouts of several environments, one step on each.

=========  ==========================================================================================
ψ          advantage: GAE (with λ = 1 the n-step return of the rollout less V), or ``--weight n-step``
objective  E[ψ log π(a|s)] + c H(π)
step       one step of RMSprop or Adam per rollout
=========  ==========================================================================================

Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning (2016), without the asynchrony.
"""

from surefoot.control.algorithms.algorithm import Algorithm
from surefoot.control.configuration import (
    LikelihoodObjective,
    OptimizerConfiguration,
    RecordedConfiguration,
    WeightConfiguration,
)

A2C = Algorithm(
    name="a2c",
    summary="Train a policy with advantage actor-critic: GAE or n-step advantage, log-likelihood, one step per short rollout.",
    weight=WeightConfiguration("gae", trace_decay=1.0),
    objective=LikelihoodObjective(),
    optimizer=OptimizerConfiguration(optimizer="rmsprop", learning_rate=7e-4),
    rollout_length=5,
    recorded=RecordedConfiguration(),
    presets={
        "CartPole-v1": {"total_steps": 200_000},
        "HalfCheetah-v5": {"rollout_length": 16, "trace_decay": 0.95, "learning_rate": 1.4e-3, "initial_log_std": -1.0},
    },
    data_preset={
        "total_steps": 10_000_000,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-2,
        "trace_decay": 0.95,
        "advantage_normalization": "batch",
        # Of single steps' weights, which are far tamer than those of whole episodes; further away V-trace can go wrong.
        "smallest_effective_share": 0.5,
    },
)
