"""Steps per second of eight Python environments in this process, in worker processes, and in Gymnasium's AsyncVectorEnv.

    python benchmarks/environment_workers.py

An environment's step sleeps for so many milliseconds, as one does that waits for a simulator; with 0 it costs nothing, so that
what is left is the price of asking. All ways take turns; the numbers go to benchmarks/results/environment_workers.json.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from surefoot.control.environments.workers.vector import WorkerEnvironments, WorkerSettings

ENVS, ROUNDS, SECONDS = 8, 3, 0.8
MILLISECONDS = (0, 1, 10)
COUNTS = (2, 4, 8)


class Sleeper(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, milliseconds: float):
        self.seconds, self.steps = milliseconds / 1000, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.seconds:
            time.sleep(self.seconds)
        return np.zeros(4, np.float32), 1.0, self.steps == 200, False, {}


def ways(milliseconds: float) -> dict[str, Any]:
    make = partial(Sleeper, milliseconds)
    in_workers = {
        f"{count} workers": partial(
            WorkerEnvironments, make, name="Sleeper", num_envs=ENVS, settings=WorkerSettings(count, 300.0, False)
        )
        for count in COUNTS
    }
    return {
        "this process": lambda: SyncVectorEnv([make] * ENVS),
        **in_workers,
        "AsyncVectorEnv": lambda: AsyncVectorEnv([make] * ENVS, context="spawn"),
    }


def rate(environments: VectorEnv) -> float:
    """Environment steps per second."""
    environments.reset(seed=0)
    actions, steps = np.zeros(ENVS, np.int64), 0
    for _ in range(10):
        environments.step(actions)
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        environments.step(actions)
        steps += ENVS
    return steps / (time.perf_counter() - began)


def main() -> None:
    results: dict[str, Any] = {"environments": ENVS, "processors": os.cpu_count(), "load_before": os.getloadavg(), "rates": {}}
    for milliseconds in MILLISECONDS:
        rates: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, make in ways(milliseconds).items():
                environments = make()
                rates.setdefault(name, []).append(rate(environments))
                environments.close()
        results["rates"][f"{milliseconds} ms"] = rates
        print(f"{milliseconds} ms:", ", ".join(f"{name} {statistics.median(values):,.0f}" for name, values in rates.items()))
    results["load_after"] = os.getloadavg()
    Path(__file__).with_name("results").joinpath("environment_workers.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
