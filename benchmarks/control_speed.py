"""Speed against peers: the same work, run in turn, as the median of paired ratios.

    make peers                                          # the peers' own environments, once
    python benchmarks/control_speed.py                  # all groups: about half an hour on two quiet cores
    python benchmarks/control_speed.py cartpole         # one group

A group's commands run A B C, A B C, …; each round gives one ratio per pair. On every side network (64×64 tanh, actor
and critic apart), environments, rollout, minibatch and epochs are the same; steps are those that the policy acted on.
Restarts of episodes, bookkeeping and logging are inside the timed part; imports and compilation are outside on every
side, except in the group `solve`, which times whole processes. Raw results: benchmarks/results/control_speed/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "control_speed"

PLAIN = "--num-envs 8 --rollout-length 256 --minibatch-size 256 --epochs 10 --no-normalize-observations --no-normalize-rewards"
CARTPOLE = (
    f"--env CartPole-v1 {PLAIN} --learning-rate 3e-4 --learning-rate-schedule constant --discount 0.99 --trace-decay 0.95"
)
CARTPOLE += " --clip-range-schedule constant"
SIMPLE = "--no-normalize-observations --no-normalize-rewards --learning-rate-schedule constant"
A2C = f"a2c --env CartPole-v1 --num-envs 8 --rollout-length 5 {SIMPLE}"
TRPO = "trpo --num-envs 8 --rollout-length 256 --minibatch-size 256 --epochs 10"
CHEETAH = "--env HalfCheetah-v5 --num-envs 8 --rollout-length 256 --minibatch-size 64 --epochs 10"


@dataclass(frozen=True)
class Side:
    """A command; `ours` ones are surefoot's."""

    name: str
    command: str
    ours: bool = False
    environment: str = ""
    """A variable to set, NAME=VALUE."""


@dataclass(frozen=True)
class Comparison:
    ours: str
    peer: str
    floor: float
    aim: float


@dataclass(frozen=True)
class Group:
    sides: tuple[Side, ...]
    comparisons: tuple[Comparison, ...]
    measure: str = "steps_per_second"
    """Which number counts; for seconds a ratio is peer ÷ ours."""


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


def run(side: Side, folder: Path, attempt: int) -> dict:
    """Run one side once; returns the JSON that it prints, with the seconds of the whole process."""
    environment = dict(os.environ)
    if side.environment:
        name, _, value = side.environment.partition("=")
        environment[name] = str(folder / (f"empty-{attempt}" if value == "empty" else value))
    command = shlex.split(side.command)
    out = folder / f"{side.name.replace(' ', '-')}-{attempt}"
    if side.ours:
        command = [sys.executable, "-m", "surefoot", *command, "--out", str(out)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    result.pop("run", None)
    result["process_seconds"] = result.get("seconds_from_start", seconds)  # the peer's own evaluation does not count
    if "evaluation" not in result and side.ours and "XDG" in side.environment:
        judge = [sys.executable, "-m", "surefoot", "evaluate", str(out), "--json", "--quiet"]
        result["evaluated_return"] = json.loads(subprocess.run(judge, capture_output=True, text=True).stdout)["mean_return"]
    shutil.rmtree(out, ignore_errors=True)
    return result


def run_group(name: str, rounds: int) -> dict:
    group, rows = GROUPS[name], []
    with tempfile.TemporaryDirectory() as folder:
        if any(side.environment.endswith("kept") for side in group.sides):
            run(next(side for side in group.sides if side.environment.endswith("kept")), Path(folder), -1)  # fills the cache
        for attempt in range(rounds):
            row = {}
            for side in group.sides:
                row[side.name] = run(side, Path(folder), attempt)
                print(f"{name} {attempt} {side.name}: {row[side.name][group.measure]:,.1f} {group.measure}", file=sys.stderr)
            rows.append(row)
    comparisons = []
    for c in group.comparisons:
        pairs = [(row[c.ours][group.measure], row[c.peer][group.measure]) for row in rows]
        ratios = [mine / theirs if group.measure == "steps_per_second" else theirs / mine for mine, theirs in pairs]
        comparisons.append(
            {
                "ours": c.ours,
                "peer": c.peer,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "floor": c.floor,
                "aim": c.aim,
                "ours_median": statistics.median(mine for mine, _ in pairs),
                "peer_median": statistics.median(theirs for _, theirs in pairs),
            }
        )
    return {
        "group": name,
        "measure": group.measure,
        "commands": {
            side.name: ("surefoot " if side.ours else "") + side.command.replace(f"{ROOT}/", "") for side in group.sides
        },
        "comparisons": comparisons,
        "rounds": rows,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "processor": processor()},
        "versions": {name: version(name) for name in ("surefoot", "jax", "gymnasium", "envpool")},
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"groups to run, of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for name in arguments.groups or GROUPS:
        result = run_group(name, arguments.rounds)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        for c in result["comparisons"]:
            reached = "aim" if c["ratio"] >= c["aim"] else "floor" if c["ratio"] >= c["floor"] else "NOTHING"
            print(
                f"{name}: {c['ours']} against {c['peer']}: {c['ratio']:.2f} × ({c['ours_median']:,.1f} to {c['peer_median']:,.1f}"
                f" {result['measure']}; floor {c['floor']}, aim {c['aim']}): {reached} reached",
                flush=True,
            )


if __name__ == "__main__":
    main()
