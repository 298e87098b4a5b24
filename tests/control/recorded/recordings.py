"""Policies and data sets for tests of recorded data."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from surefoot.control.policies.networks import draw_network
from surefoot.control.policies.normalization import RunningStatistics
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import describe_spaces

minari = pytest.importorskip("minari")


def save_policy(folder: Path, env: str | type[gymnasium.Env], *, seed: int = 0, log_std: float = -0.3) -> Path:
    """A random policy with a normaliser, large enough to care what it sees."""
    made = gymnasium.make(env) if isinstance(env, str) else env()
    spaces = describe_spaces(made.observation_space, made.action_space, name=str(env))
    rng, size = np.random.default_rng(seed), spaces.observation_size
    parameters = draw_network(rng, (size, 8, spaces.action.outputs), orthogonal=True, head_gain=1.0)
    if spaces.action.kind == "box":
        parameters["log_std"] = np.full(spaces.action.outputs, log_std, np.float32)
    statistics = RunningStatistics(rng.normal(size=size) * 0.1, np.full(size, 2.0), np.float32(100))
    name = env if isinstance(env, str) else f"{env.__module__}:{env.__name__}"
    Policy(spaces, "tanh", parameters, statistics, 10.0, {"env": name, "algorithm": "none"}).save(folder)
    return folder


def save_balancer(folder: Path, gain: float) -> Path:
    """CartPole by hand: push where the pole falls, with log-odds ``gain`` (θ + θ̇/2)."""
    cart = gymnasium.make("CartPole-v1")
    spaces = describe_spaces(cart.observation_space, cart.action_space, name="CartPole-v1")
    odds = gain * np.array([0, 0, 1.0, 0.5], np.float32)
    parameters = {"layer_0/weight": np.stack([-odds / 2, odds / 2], axis=1), "layer_0/bias": np.zeros(2, np.float32)}
    Policy(spaces, "tanh", parameters, None, 10.0, {"env": "CartPole-v1"}).save(folder)
    return folder


def without_infos(folder: Path, name: str, monkeypatch, *, keep: tuple[str, ...] = (), change=lambda buffer: buffer) -> str:
    """The data set again, through Minari's own front door, without log-probabilities; known to Minari by its name."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    source = minari.MinariDataset(folder / "data-v0" / "data")
    buffers = []
    for episode in source.iterate_episodes():
        fields = {k: getattr(episode, k) for k in ("observations", "actions", "rewards", "terminations", "truncations")}
        fields["infos"] = {k: episode.infos[k] for k in keep}
        buffers.append(minari.data_collector.EpisodeBuffer(**change(fields)))
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=source.observation_space, action_space=source.action_space
    )
    return name
