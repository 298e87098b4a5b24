"""Good settings for known tasks, used unless an option says otherwise; what they reach stands in benchmarks/."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from surefoot.control.configuration import (
    NetworkConfiguration,
    NormalizationConfiguration,
    PPOConfiguration,
    RunConfiguration,
    TrainConfiguration,
)

Preset = dict[str, Any]

_MUJOCO: Preset = {"total_steps": 1_000_000, "num_envs": 8, "rollout_length": 256, "minibatch_size": 64, "epochs": 10}

PPO: dict[str, Preset] = {
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
}
PPO["phys2d/CartPole-v1"] = PPO["CartPole-v1"]
PPO["phys2d/Pendulum-v0"] = PPO["Pendulum-v1"]


def preset_for(env: str | None) -> Preset:
    """The preset of an environment; empty where there is none."""
    return dict(PPO.get(env or "", {}))


def configuration_for(env: str, **options: Any) -> TrainConfiguration:
    """An environment's preset as a configuration; ``options`` are fields of :class:`RunConfiguration` that override it."""
    chosen = preset_for(env) | {"env": env} | options

    def part(kind: Any) -> Any:
        return kind(**{f.name: chosen[f.name] for f in fields(kind) if f.name in chosen})

    kinds = (RunConfiguration, NetworkConfiguration, NormalizationConfiguration, PPOConfiguration)
    return TrainConfiguration(*map(part, kinds))
