"""How far PPO is from this machine's limit: environment stepping alone plus the update's floating-point operations at
the measured matrix rate.

    python benchmarks/control_limit.py

For the tasks of control_speed.py: seconds per rollout of 2048 steps that (1) EnvPool's environments take by
themselves, stepped from a compiled loop with fixed actions, and (2) the update's matrix products take at the rate of
a large product on all cores. Their sum is the limit; the share reached is the limit divided by the measured
iteration. Writes benchmarks/results/control_limit.json."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.environments.pool import Pool

ENVS, LENGTH = 8, 256
TASKS = {
    "CartPole-v1": {"minibatch": 256, "options": "--minibatch-size 256 --no-normalize-observations --no-normalize-rewards"},
    "HalfCheetah-v5": {"minibatch": 64, "options": "--minibatch-size 64 --no-recompute-advantages"},
}


def median_seconds(action, repeats: int = 15) -> float:
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def environment_seconds(env: str) -> tuple[float, int, int]:
    """EnvPool alone for a rollout; also the sizes of observations and policy outputs."""
    pool = Pool(env, num_envs=ENVS, seed=0)
    space = pool.spaces.action
    with pool.precision():
        carry, step = pool.start()
        actions = jnp.asarray(np.random.default_rng(0).integers(0, 2, (LENGTH, ENVS, *space.shape)), space.dtype)

        def advance(carry, action):
            carry, *_ = step(carry, action)
            return carry, None

        program = jax.jit(lambda c, a: jax.lax.scan(advance, c, a)[0]).lower(carry.environments, actions).compile()
        state = [carry.environments]

        def go():
            state[0] = jax.block_until_ready(program(state[0], actions))

        return median_seconds(go), pool.spaces.observation_size, space.outputs


def matrix_rate() -> float:
    """Floating-point operations per second of a large float32 product on all cores."""
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / median_seconds(lambda: product(x).block_until_ready())


def update_operations(observation: int, outputs: int, epochs: int = 10) -> float:
    """Multiply-adds of both networks, forward and backward, times two; the first layer needs no gradient of its
    input."""
    total = 0
    for head in (outputs, 1):
        sizes = [(observation, 64), (64, 64), (64, head)]
        forward = sum(a * b for a, b in sizes)
        backward = 2 * forward - observation * 64
        total += 2 * (forward + backward)
    return float(total * ENVS * LENGTH * epochs)


def measured(env: str, options: str) -> float:
    """Steps per second of surefoot, the median of five runs of 50 rollouts."""
    rates = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            command = f"train ppo --env {env} --num-envs 8 --rollout-length 256 --epochs 10 {options} --total-steps 102400 --json --quiet"
            done = subprocess.run(
                [sys.executable, "-m", "surefoot", *command.split(), "--out", f"{folder}/run"],
                capture_output=True,
                text=True,
                check=True,
            )
            rates.append(json.loads(done.stdout)["steps_per_second"])
    return statistics.median(rates)


def main() -> None:
    rate = matrix_rate()
    report = {"matrix_gigaflops_per_second": rate / 1e9, "tasks": {}}
    for env, task in TASKS.items():
        environment, observation, outputs = environment_seconds(env)
        operations = update_operations(observation, outputs)
        limit = environment + operations / rate
        steps = measured(env, task["options"])
        report["tasks"][env] = {
            "environment_seconds": environment,
            "update_gigaflops": operations / 1e9,
            "update_seconds_at_matrix_rate": operations / rate,
            "limit_steps_per_second": ENVS * LENGTH / limit,
            "measured_steps_per_second": steps,
            "share_of_limit": steps * limit / (ENVS * LENGTH),
        }
        print(env, json.dumps(report["tasks"][env]), flush=True)
    (Path(__file__).parent / "results" / "control_limit.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
