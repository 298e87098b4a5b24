"""TRPO, trust-region policy optimisation: a natural step that KL(π_old‖π) ≤ δ bounds.

=========  ==========================================================================================
ψ          generalised advantage estimate, standardised over the rollout
objective  E[ρ ψ], ρ = π/π_old: the performance of π on the states of π_old
step       F⁻¹∇E[ρψ] by conjugate gradients, as long as KL ≤ δ allows, shortened until KL ≤ δ and the objective has not
           fallen; the critic takes a few epochs of Adam
=========  ==========================================================================================

Source: Schulman et al., Trust Region Policy Optimization (2015).
"""

from surefoot.control.algorithms.algorithm import Algorithm
from surefoot.control.configuration import (
    OptimizerConfiguration,
    PassesConfiguration,
    TrustRegionConfiguration,
    WeightConfiguration,
)

TRPO = Algorithm(
    name="trpo",
    summary="Train a policy with trust-region policy optimisation: GAE, surrogate, a natural step within a KL bound.",
    weight=WeightConfiguration("gae", advantage_normalization="batch"),
    objective=None,
    optimizer=OptimizerConfiguration(learning_rate=1e-3),
    passes=PassesConfiguration(minibatch_size=256, epochs=10),
    trust_region=TrustRegionConfiguration(),
    presets={
        "CartPole-v1": {"total_steps": 100_000},
        "Hopper-v5": {"rollout_length": 128, "minibatch_size": 128, "max_kl": 0.02},
    },
)
