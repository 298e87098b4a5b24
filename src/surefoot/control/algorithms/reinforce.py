"""REINFORCE: whole-rollout Monte Carlo.

=========  ==========================================================================================
ψ          reward-to-go Σ_k γ^k r_{t+k}, standardised over the rollout; with ``--weight baseline`` less a learned V(s)
objective  E[ψ log π(a|s)]
step       one step of Adam on the whole rollout
=========  ==========================================================================================

Source: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning (1992).
"""

from surefoot.control.algorithms.algorithm import Algorithm
from surefoot.control.configuration import LikelihoodObjective, OptimizerConfiguration, WeightConfiguration

REINFORCE = Algorithm(
    name="reinforce",
    summary="Train a policy with REINFORCE: reward-to-go, log-likelihood, one step per rollout.",
    weight=WeightConfiguration("reward-to-go", advantage_normalization="batch"),
    objective=LikelihoodObjective(),
    optimizer=OptimizerConfiguration(learning_rate=1e-3),
    presets={"CartPole-v1": {"total_steps": 500_000}},
)
