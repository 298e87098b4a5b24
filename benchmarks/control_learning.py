"""What is learnt: every seed of every task, trained and evaluated by the command line, nothing left out.

    python benchmarks/control_learning.py                      # all tasks: more than an hour on two cores
    python benchmarks/control_learning.py trpo-Hopper-v5       # one task
    python benchmarks/control_learning.py a2c                  # one algorithm

Each seed is one `surefoot train` and one `surefoot evaluate --episodes 100` (sampled actions, Gymnasium's own
environment). Results go to benchmarks/results/control_learning/ALGORITHM-TASK.json: commands, every seed's numbers,
interquartile mean and its 95 % bootstrap interval."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from surefoot.runs.statistics import summarize_seeds

RESULTS = Path(__file__).parent / "results" / "control_learning"
STANDARD = "--num-envs 8 --rollout-length 256 --minibatch-size 64 --epochs 10 --hidden-sizes 64 64 --activation tanh"


@dataclass(frozen=True)
class Task:
    algorithm: str
    env: str
    steps: int
    seeds: int
    wanted: float
    """The interquartile mean to reach; on CartPole every single seed."""
    options: str = ""
    every_seed: bool = False
    wanted_deterministic: float | None = None
    name: str = ""
    """Where it is not ALGORITHM-ENV."""

    @property
    def key(self) -> str:
        return self.name or f"{self.algorithm}-{self.env}"


TASKS = {
    task.key: task
    for task in (
        Task("ppo", "CartPole-v1", 100_000, 10, 475, every_seed=True),
        Task("ppo", "Acrobot-v1", 500_000, 5, -85),
        Task("ppo", "Pendulum-v1", 200_000, 5, -200),
        Task("ppo", "LunarLander-v3", 1_000_000, 5, 200, wanted_deterministic=240),
        Task("ppo", "HalfCheetah-v5", 1_000_000, 10, 4000, STANDARD),
        Task("ppo", "Hopper-v5", 1_000_000, 10, 2300, STANDARD),
        Task("ppo", "Walker2d-v5", 1_000_000, 10, 3000, STANDARD),
        Task("ppo", "CartPole-v1", 100_000, 5, 475, "--clip-range none --kl-penalty adaptive", name="ppo-penalty-CartPole-v1"),
        Task("ppo", "CartPole-v1", 100_000, 5, 475, "--clip-range none --kl-penalty dual", name="ppo-dual-CartPole-v1"),
        Task("trpo", "CartPole-v1", 100_000, 5, 475),
        Task("a2c", "CartPole-v1", 200_000, 5, 475),
        Task("reinforce", "CartPole-v1", 500_000, 5, 475),
        Task("actor-critic", "CartPole-v1", 500_000, 5, 475),
        Task("trpo", "HalfCheetah-v5", 1_000_000, 5, 1800),
        Task("trpo", "Hopper-v5", 1_000_000, 5, 2500),
        Task("a2c", "HalfCheetah-v5", 1_000_000, 5, 1200),
        Task("reinforce", "HalfCheetah-v5", 3_000_000, 5, 880),
    )
}


def surefoot(command: str) -> dict:
    """Run the command line; returns the JSON that it prints."""
    done = subprocess.run([sys.executable, "-m", "surefoot", *shlex.split(command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"surefoot {command}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_task(task: Task, extra: str) -> dict:
    train = f"train {task.algorithm} --env {task.env} --total-steps {task.steps} {task.options} {extra}".strip()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(task.seeds):
            out = f"{folder}/{seed}"
            trained = surefoot(f"{train} --seed {seed} --no-tensorboard --json --quiet --out {out}")
            row = {
                "seed": seed,
                **{k: trained[k] for k in ("backend", "total_steps", "seconds", "startup_seconds", "steps_per_second")},
            }
            row["training_return"] = trained["mean_return"]
            evaluated = surefoot(f"evaluate {out} --episodes 100 --json --quiet")
            row |= {"mean_return": evaluated["mean_return"], "std_return": evaluated["std_return"]}
            if task.wanted_deterministic is not None:
                row["deterministic_return"] = surefoot(f"evaluate {out} --episodes 100 --deterministic --json --quiet")[
                    "mean_return"
                ]
            rows.append(row)
            print(json.dumps({"task": task.key, **row}), file=sys.stderr, flush=True)
    returns = [row["mean_return"] for row in rows]
    result = {
        "task": task.key,
        "env": task.env,
        "train": f"surefoot {train} --seed SEED --out RUN",
        "evaluate": "surefoot evaluate RUN --episodes 100",
        "wanted": task.wanted,
        "wanted_of": "every seed" if task.every_seed else "interquartile mean",
        "summary": summarize_seeds(returns).as_dict(),
        "reached": min(returns) >= task.wanted
        if task.every_seed
        else summarize_seeds(returns).interquartile_mean >= task.wanted,
        "seeds": rows,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("surefoot", "jax", "gymnasium", "envpool", "mujoco")},
    }
    if task.wanted_deterministic is not None:
        summary = summarize_seeds([row["deterministic_return"] for row in rows])
        result |= {
            "wanted_deterministic": task.wanted_deterministic,
            "deterministic": summary.as_dict(),
            "reached_deterministic": summary.interquartile_mean >= task.wanted_deterministic,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"tasks to run, of {', '.join(TASKS)}; all by default")
    parser.add_argument("--options", default="", help="further options of `surefoot train`, for experiments")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    wanted = [key for key in TASKS if not arguments.tasks or {key, TASKS[key].algorithm} & set(arguments.tasks)]
    if unknown := set(arguments.tasks) - {x for task in TASKS.values() for x in (task.key, task.algorithm)}:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(TASKS)}")
    for name in wanted:
        result = run_task(TASKS[name], arguments.options)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        summary = result["summary"]
        print(
            f"{name}: interquartile mean {summary['interquartile_mean']:.1f}, 95 % interval {summary['low']:.1f} …"
            f" {summary['high']:.1f},"
            f" wanted {result['wanted']} of {result['wanted_of']}: {'reached' if result['reached'] else 'NOT reached'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
