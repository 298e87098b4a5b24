"""Small training runs that are stopped and gone on with, and what must be equal to the last bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from surefoot.control.configuration import TrainConfiguration
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import read_metrics
from tests.control.helpers import configure

OF_TIME = {"seconds", "startup_seconds", "steps_per_second", "run", "resumed"}
"""Of a summary, what may differ."""
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True, "hidden_sizes": (8,), "total_steps": 512}
GRID = {"restart_every": 128, "checkpoint_every": "128"}
"""Two iterations of 64 steps, of eight."""
JAX = {**NORMALIZED, "backend": "jax", "checkpoint_every": "64"}
HOST = {**NORMALIZED, **GRID, "backend": "gymnasium"}
SHORT = {"rollout_length": 4, "num_envs": 2, "total_steps": 8192}
"""Rollouts of eight steps, 256 to a report of 2048."""
LONG = {"rollout_length": 64, "total_steps": 8192, "checkpoint_every": "2048"}
"""Rollouts of 256 steps, eight to a report."""
SHORT_GRID = {"restart_every": 4096, "checkpoint_every": "4096"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo on JAX": ("ppo", JAX),
    "ppo on JAX, two seeds in one program": ("ppo", {**JAX, "seeds": 2}),
    "ppo on JAX with an adaptive penalty": ("ppo", {**JAX, "kl_penalty": "adaptive", "learning_rate": 1e-2}),
    "ppo on JAX, actions of a Box": ("ppo", {**JAX, "env": "Pendulum-v1"}),
    "a2c on JAX": ("a2c", {**JAX, **SHORT, "checkpoint_every": "2048"}),
    "actor-critic on JAX": ("actor-critic", {**JAX, **SHORT, "rollout_length": 1, "total_steps": 6144, "checkpoint_every": "2048"}),
    "trpo on JAX": ("trpo", JAX),
    "reinforce on JAX": ("reinforce", {**JAX, **LONG, "normalize_rewards": False}),
    "reinforce on JAX, total returns": ("reinforce", {**JAX, **LONG, "weight": "total-return", "advantage_normalization": "none"}),
    "ppo on Gymnasium": ("ppo", HOST),
    "ppo on Gymnasium, one after the other": ("ppo", {**HOST, "backend": "gymnasium-sync", "kl_penalty": "dual"}),
    "ppo on Gymnasium, same-step resets": ("ppo", {**HOST, "env": "tests.durability.control.runs:same_step", "backend": "auto"}),
    "a2c on Gymnasium": ("a2c", {**HOST, **SHORT, **SHORT_GRID}),
    "trpo on Gymnasium": ("trpo", HOST),
    "reinforce on Gymnasium, total returns": (
        "reinforce", {**HOST, **LONG, **SHORT_GRID, "weight": "total-return", "advantage_normalization": "none"},
    ),
}  # fmt: skip
if importlib.util.find_spec("envpool"):
    CASES |= {
        "ppo on EnvPool": ("ppo", {**HOST, "backend": "envpool"}),
        "ppo on EnvPool, float64": ("ppo", {**HOST, "backend": "envpool", "env": "Pendulum-v1"}),
        "a2c on EnvPool, rollouts and updates in one program": ("a2c", {**HOST, **SHORT, **SHORT_GRID, "backend": "envpool"}),
    }


def same_step(num_envs: int) -> Any:
    """CartPole in Gymnasium's same-step mode, whose final observations come apart."""
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    make = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def configured(case: str, out: Path, **options: Any) -> TrainConfiguration:
    algorithm, settings = CASES[case]
    return configure(algorithm, **{**settings, "keep_checkpoints": 100, "tensorboard": True, "out": str(out), **options})


def contents(run: Path) -> dict[str, Any]:
    """Everything of a run but the times, bit for bit."""
    kept: dict[str, Any] = {}
    for below in sorted([run, *run.glob("seed-*")]):
        name = below.name if below != run else "."
        if (below / "metrics.jsonl").exists():
            lines = read_metrics(below / "metrics.jsonl")
            kept[f"{name}/metrics"] = [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]
            kept[f"{name}/policy"] = (below / "policy" / "policy.safetensors").read_bytes()
            kept[f"{name}/curve"] = [(e.step, curves_of(e)) for e in events(below)]
        if Checkpoints(below).steps():
            last = Checkpoints(below).latest()[0]
            kept[f"{name}/state"] = {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in sorted(last.arrays.items())}
        summary = json.loads((below / "summary.json").read_text())
        kept[f"{name}/summary"] = {k: v for k, v in summary.items() if k not in OF_TIME | {"seeds"}}
    return kept


def events(run: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (run / "tensorboard").iterdir()
    return [e for e in EventFileLoader(str(file)).Load() if e.HasField("summary")]


def curves_of(event: Any) -> dict[str, float]:
    return {v.tag: v.tensor.float_val[0] for v in event.summary.value if not v.tag.startswith("speed/")}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names of what is not the same."""
    return [name for name in sorted(a.keys() | b.keys()) if repr(a.get(name)) != repr(b.get(name))]


def stopped_at(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as a power cut leaves it between the checkpoint at ``step`` and the next one."""
    shutil.copytree(run, copy)
    for place in (copy, *copy.glob("seed-*")):
        Checkpoints(place).forget_after(step)
        shutil.rmtree(place / "policy", ignore_errors=True)
        (place / "summary.json").unlink(missing_ok=True)
    return copy


def stop_after(monkeypatch, reports, number=15):
    """SIGTERM during the given report."""
    import os

    from surefoot.control.loop import MetricsWriter

    plain, seen = MetricsWriter.write, []

    def write(self, step, metrics):
        seen.append(step)
        if len(seen) == reports:
            os.kill(os.getpid(), number)
        plain(self, step, metrics)

    monkeypatch.setattr(MetricsWriter, "write", write)
