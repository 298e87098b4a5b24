"""PPO, proximal policy optimisation: several passes over each rollout, with what keeps them near the policy that acted.

=========  ==========================================================================================
ψ          generalised advantage estimate, standardised per minibatch
objective  min(ρψ, clip(ρ, 1−ε, 1+ε)ψ), or ρψ − β KL(π_old‖π) with β fixed, adaptive or a multiplier; + c H(π)
step       a few epochs of Adam on shuffled minibatches
=========  ==========================================================================================

PPO aims at what TRPO guarantees, a policy that does not get worse; it does not inherit the guarantee.

Source: Schulman et al., Proximal Policy Optimization Algorithms (2017).
"""

from surefoot.control.algorithms.algorithm import Algorithm, Preset
from surefoot.control.configuration import (
    OptimizerConfiguration,
    PassesConfiguration,
    SurrogateObjective,
    WeightConfiguration,
)

_MUJOCO: Preset = {
    "total_steps": 1_000_000,
    "num_envs": 8,
    "rollout_length": 256,
    "minibatch_size": 64,
    "epochs": 10,
    "initial_log_std": -0.7,
}

_PRESETS: dict[str, Preset] = {
    "CartPole-v1": {
        "total_steps": 100_000,
        "num_envs": 8,
        "rollout_length": 32,
        "minibatch_size": 256,
        "epochs": 20,
        "learning_rate": 1e-3,
        "clip_range_schedule": "linear",
        "discount": 0.98,
        "trace_decay": 0.8,
        "normalize_observations": False,
        "normalize_rewards": False,
    },
    "Acrobot-v1": {
        "total_steps": 500_000,
        "num_envs": 16,
        "rollout_length": 256,
        "minibatch_size": 256,
        "epochs": 4,
        "learning_rate": 1e-3,
        "trace_decay": 0.94,
    },
    "Pendulum-v1": {
        "total_steps": 200_000,
        "num_envs": 4,
        "rollout_length": 512,
        "minibatch_size": 64,
        "epochs": 10,
        "learning_rate": 1e-3,
        "discount": 0.9,
        "initial_log_std": 0.0,
        "recompute_advantages": False,
    },
    "LunarLander-v3": {
        "total_steps": 1_000_000,
        "num_envs": 16,
        "rollout_length": 512,
        "minibatch_size": 128,
        "epochs": 4,
        "learning_rate": 1e-3,
        "discount": 0.999,
        "trace_decay": 0.98,
        "entropy_coefficient": 0.01,
    },
    "HalfCheetah-v5": _MUJOCO,
    "Hopper-v5": _MUJOCO,
    "Walker2d-v5": _MUJOCO,
    "Ant-v5": _MUJOCO,
}
_PRESETS["phys2d/CartPole-v1"] = _PRESETS["CartPole-v1"]
_PRESETS["phys2d/Pendulum-v0"] = _PRESETS["Pendulum-v1"]

PPO = Algorithm(
    name="ppo",
    summary="Train a policy with proximal policy optimisation: GAE, clipped or penalised surrogate, a few epochs per rollout.",
    weight=WeightConfiguration("gae", advantage_normalization="minibatch"),
    objective=SurrogateObjective(),
    optimizer=OptimizerConfiguration(),
    passes=PassesConfiguration(),
    presets=_PRESETS,
)
