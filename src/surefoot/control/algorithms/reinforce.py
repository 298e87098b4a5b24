"""REINFORCE: whole-rollout Monte Carlo.

=========  ==========================================================================================
ψ          reward-to-go Σ_k γ^k r_{t+k}, standardised over the rollout; with ``--weight baseline`` less a learned V(s)
objective  E[ψ log π(a|s)]
step       one step of Adam on the whole rollout
=========  ==========================================================================================

Source: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning (1992).
"""

from surefoot.control.algorithms.algorithm import Algorithm
from surefoot.control.configuration import (
    LikelihoodObjective,
    OptimizerConfiguration,
    RecordedConfiguration,
    WeightConfiguration,
)

REINFORCE = Algorithm(
    name="reinforce",
    summary="Train a policy with REINFORCE: reward-to-go, log-likelihood, one step per rollout.",
    weight=WeightConfiguration("reward-to-go", advantage_normalization="batch"),
    objective=LikelihoodObjective(),
    optimizer=OptimizerConfiguration(learning_rate=1e-3),
    recorded=RecordedConfiguration(),
    presets={
        "CartPole-v1": {"total_steps": 500_000},
        "HalfCheetah-v5": {"total_steps": 3_000_000, "weight": "baseline", "initial_log_std": -1.0},
    },
    data_preset={
        "total_steps": 10_000_000,
        "weight": "baseline",
        "learning_rate": 3e-4,
        "critic_learning_rate": 1e-2,
        "episodes_per_update": 512,
    },
)
