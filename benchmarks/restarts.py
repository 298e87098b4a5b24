"""What it costs to begin environments afresh on a grid: seconds of a restart, and returns with grids finer than the default.

    python benchmarks/restarts.py             # both
    python benchmarks/restarts.py speed

Speed: how long one restart takes, and its share of the time with the default grid. Learning: training with a grid of a
twentieth of the run, and without any, over the same seeds. Writes benchmarks/results/restarts.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from surefoot.control.algorithms import configuration_for
from surefoot.control.compilation import use_persistent_cache
from surefoot.control.environments.select import select_environments
from surefoot.control.loop import make_iteration
from surefoot.runs.statistics import summarize_seeds

SPEED = [
    ("ppo", "CartPole-v1", "envpool", {}),
    ("ppo", "HalfCheetah-v5", "envpool", {}),
    ("a2c", "CartPole-v1", "envpool", {}),
    ("a2c", "HalfCheetah-v5", "envpool", {}),
    ("ppo", "CartPole-v1", "gymnasium", {}),
    ("ppo", "HalfCheetah-v5", "gymnasium-sync", {}),
]
LEARNING = [("ppo", "CartPole-v1", 5), ("ppo", "Pendulum-v1", 5), ("a2c", "CartPole-v1", 5)]
REPEATS = 5


def cost(algorithm: str, env: str, backend: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a restart, and their share of the time from one to the next at the speed of a few reports."""
    configuration = configuration_for(algorithm, env, backend=backend, **options)
    run = configuration.run
    source = select_environments(env, backend=backend, num_envs=run.num_envs, seed=0)
    iteration, _ = make_iteration(configuration, source, [0])
    together = configuration.rollouts_per_report
    iteration.run(0)
    began, reports = time.perf_counter(), 10
    for i in range(reports):
        iteration.run((i + 1) * together)
    rate = reports * together * configuration.slots / (time.perf_counter() - began)
    restarts = []
    for i in range(REPEATS):
        number = (i + 1) * 1000 * together
        began = time.perf_counter()
        assert source.again is not None
        iteration.restart(number, lambda number=number: source.again(number).environments)  # type: ignore[misc]
        restarts.append(time.perf_counter() - began)
    iteration.close()
    median = statistics.median(restarts)
    grid = configuration.restart_grid * configuration.slots
    share = median / (grid / rate + median)
    return {
        "algorithm": algorithm,
        "env": env,
        "backend": backend,
        "steps_per_second": round(rate),
        "restart_seconds": round(median, 4),
        "default_grid": grid,
        "share_of_the_default_grid": round(share, 5),
    }


def learnt(algorithm: str, env: str, seeds: int) -> dict[str, Any]:
    """Returns of the trained policies with a fine grid, and with none."""
    total = configuration_for(algorithm, env).run.total_steps
    rows: dict[str, list[float]] = {}
    for name, every in (("none", 0), ("fine", total // 20)):
        rows[name] = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                command = f"train {algorithm} --env {env} --restart-every {every} --seed {seed} --out {out} --quiet"
                subprocess.run([sys.executable, "-m", "surefoot", *command.split()], check=True, stderr=subprocess.DEVNULL)
                evaluate = [sys.executable, "-m", "surefoot", "evaluate", str(out), "--json", "--quiet"]
                done = subprocess.run(evaluate, check=True, capture_output=True, text=True)
                rows[name].append(json.loads(done.stdout.splitlines()[-1])["mean_return"])
                print(json.dumps({"env": env, "grid": name, "seed": seed, "return": rows[name][-1]}), flush=True)
    return {
        "algorithm": algorithm,
        "env": env,
        "total_steps": total,
        "fine_grid": total // 20,
        **{name: {**summarize_seeds(values).as_dict(), "each": values} for name, values in rows.items()},
    }


def main() -> None:
    use_persistent_cache()
    path = Path(__file__).parent / "results" / "restarts.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    parts = sys.argv[1:] or ["speed", "learning"]
    if "speed" in parts:
        report["speed"] = []
        for case in SPEED:
            report["speed"].append(cost(*case))
            print(json.dumps(report["speed"][-1]), flush=True)
    if "learning" in parts:
        report["learning"] = [learnt(*case) for case in LEARNING]
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
