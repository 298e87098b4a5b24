"""Speed against peers: the same work, run in turn, as the median of paired ratios.

    make peers                                          # the peers' own environments, once
    python benchmarks/control_speed.py                  # all groups: about half an hour on two quiet cores
    python benchmarks/control_speed.py cartpole         # one group

A group's commands run A B C, A B C, …; each round gives one ratio per pair. On every side network (64×64 tanh, actor
and critic apart), environments, rollout, minibatch and epochs are the same; steps are those that the policy acted on.
Restarts of episodes, bookkeeping and logging are inside the timed part; imports and compilation are outside on every
side, except in the group `solve`, which times whole processes. Raw results: benchmarks/results/control_speed/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import paired
from paired import HERE, ROOT, Comparison, Group, Side

RESULTS = HERE / "results" / "control_speed"

PLAIN = "--num-envs 8 --rollout-length 256 --minibatch-size 256 --epochs 10 --no-normalize-observations --no-normalize-rewards"
CARTPOLE = (
    f"--env CartPole-v1 {PLAIN} --learning-rate 3e-4 --learning-rate-schedule constant --discount 0.99 --trace-decay 0.95"
)
CARTPOLE += " --clip-range-schedule constant"
SIMPLE = "--no-normalize-observations --no-normalize-rewards --learning-rate-schedule constant"
A2C = f"a2c --env CartPole-v1 --num-envs 8 --rollout-length 5 {SIMPLE}"
TRPO = "trpo --num-envs 8 --rollout-length 256 --minibatch-size 256 --epochs 10"
# The peers estimate advantages once per rollout.
CHEETAH = "--env HalfCheetah-v5 --num-envs 8 --rollout-length 256 --minibatch-size 64 --epochs 10 --no-recompute-advantages"


def ours(name: str, options: str, steps: int, environment: str = "") -> Side:
    return Side(name, f"train {options} --total-steps {steps} --json --quiet", True, environment)


def peer(name: str, script: str, options: str) -> Side:
    return Side(name, f"{ROOT}/peers-{name.split()[0]}/bin/python {HERE}/peers/{script} {options}")


GROUPS = {
    "cartpole": Group(
        (
            ours("surefoot envpool", f"ppo {CARTPOLE}", 102_400),
            peer("sb3", "sb3.py", "ppo CartPole-v1 --steps 102400"),
            ours("surefoot gymnasium-sync", f"ppo {CARTPOLE} --backend gymnasium-sync", 102_400),
            peer("sbx", "sbx_ppo.py", "CartPole-v1 --steps 102400"),
            ours("surefoot gymnasium", f"ppo {CARTPOLE} --backend gymnasium", 102_400),
        ),
        (
            Comparison("surefoot envpool", "sb3", 6.5, 8),
            Comparison("surefoot envpool", "sbx", 5, 6),
            Comparison("surefoot gymnasium-sync", "sb3", 3, 4),
            Comparison("surefoot gymnasium", "sb3", 3, 4),
        ),
    ),
    "cartpole-jax": Group(
        (
            ours(
                "surefoot jax",
                "ppo --env CartPole-v1 --backend jax --num-envs 64 --rollout-length 32 --minibatch-size 512 --epochs 4"
                " --learning-rate 2e-3 --no-normalize-observations --no-normalize-rewards",
                294_912,
            ),
            peer("rejax", "rejax_ppo.py", "--steps 294912"),
        ),
        (Comparison("surefoot jax", "rejax", 1.0, 1.3),),
    ),
    "halfcheetah": Group(
        (
            ours("surefoot envpool", f"ppo {CHEETAH}", 61_440),
            peer("sb3", "sb3.py", "ppo HalfCheetah-v5 --steps 61440 --minibatch 64 --normalize"),
            ours("surefoot gymnasium-sync", f"ppo {CHEETAH} --backend gymnasium-sync", 61_440),
            peer("sbx", "sbx_ppo.py", "HalfCheetah-v5 --steps 61440 --minibatch 64 --normalize"),
        ),
        (
            Comparison("surefoot envpool", "sb3", 4.3, 5),
            Comparison("surefoot envpool", "sbx", 2.5, 3),
            Comparison("surefoot gymnasium-sync", "sb3", 2, 3),
        ),
    ),
    "a2c-cartpole": Group(
        (
            ours("surefoot envpool", A2C, 200_000),
            peer("sb3", "sb3.py", "a2c CartPole-v1 --steps 200000 --rollout 5"),
        ),
        (Comparison("surefoot envpool", "sb3", 7, 10),),
    ),
    "trpo-cartpole": Group(
        (
            ours("surefoot envpool", f"{TRPO} --env CartPole-v1 {SIMPLE}", 102_400),
            peer("sb3", "sb3.py", "trpo CartPole-v1 --steps 102400 --minibatch 256"),
        ),
        (Comparison("surefoot envpool", "sb3", 5, 7),),
    ),
    "trpo-halfcheetah": Group(
        (
            ours("surefoot envpool", f"{TRPO} --env HalfCheetah-v5 --learning-rate-schedule constant", 61_440),
            peer("sb3", "sb3.py", "trpo HalfCheetah-v5 --steps 61440 --minibatch 256 --normalize"),
        ),
        (Comparison("surefoot envpool", "sb3", 2.5, 3),),
    ),
    "solve": Group(
        (
            ours("surefoot cold", "ppo --env CartPole-v1", 100_000, "XDG_CACHE_HOME=empty"),
            ours("surefoot warm", "ppo --env CartPole-v1", 100_000, "XDG_CACHE_HOME=kept"),
            peer("sb3", "sb3.py", "ppo CartPole-v1 --steps 100000 --zoo"),
        ),
        (Comparison("surefoot cold", "sb3", 3, 3), Comparison("surefoot warm", "sb3", 3, 3)),
        measure="process_seconds",
    ),
}


def judge_the_policy(side: Side, out: Path, result: dict) -> None:
    """What was solved is evaluated too, where a whole process was timed."""
    if "evaluation" not in result and side.ours and "XDG" in side.environment:
        judge = [sys.executable, "-m", "surefoot", "evaluate", str(out), "--json", "--quiet"]
        result["evaluated_return"] = json.loads(subprocess.run(judge, capture_output=True, text=True).stdout)["mean_return"]


if __name__ == "__main__":
    paired.main(
        GROUPS,
        description=__doc__,
        results=RESULTS,
        libraries=("surefoot", "jax", "gymnasium", "envpool"),
        finish=judge_the_policy,
    )
