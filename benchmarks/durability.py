"""Runs that are killed at random moments, gone on with, and compared bit for bit with runs that were never stopped.

    python benchmarks/durability.py --count 100
    python benchmarks/durability.py --count 12 --only ppo-envpool

Each run is a process that gets SIGKILL at a random moment, start-up included, once to three times; `surefoot resume --exact` goes on
each time. Then its weights, its last checkpoint, its metrics and its sample answers must be those of the run of the same command that
nobody stopped; only what a clock says may differ. Writes benchmarks/results/durability.json: every run with its kills, and what differed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import read_metrics

NETWORK = "--hidden-sizes 16 --num-envs 8 --quiet"
HOST = "--checkpoint-every 4096 --restart-every 8192"
CASES: dict[str, str] = {
    "ppo-jax": f"train ppo --env CartPole-v1 --backend jax --total-steps 120000 --checkpoint-every 4096 {NETWORK}",
    "ppo-jax-seeds": f"train ppo --env CartPole-v1 --backend jax --seeds 3 --total-steps 60000 --checkpoint-every 4096 {NETWORK}",
    "ppo-jax-box": f"train ppo --env Pendulum-v1 --backend jax --total-steps 30000 --checkpoint-every 4096 {NETWORK}",
    "ppo-penalty-jax": f"train ppo --env CartPole-v1 --backend jax --clip-range none --kl-penalty adaptive --total-steps 120000"
    f" --checkpoint-every 4096 {NETWORK}",
    "trpo-jax": f"train trpo --env CartPole-v1 --backend jax --total-steps 120000 --checkpoint-every 4096 {NETWORK}",
    "a2c-jax": f"train a2c --env CartPole-v1 --backend jax --total-steps 200000 --checkpoint-every 4096 {NETWORK}",
    "reinforce-jax": f"train reinforce --env CartPole-v1 --backend jax --total-steps 200000 --checkpoint-every 4096 {NETWORK}",
    "actor-critic-jax": f"train actor-critic --env CartPole-v1 --backend jax --total-steps 100000 --checkpoint-every 4096 {NETWORK}",
    "ppo-gymnasium": f"train ppo --env CartPole-v1 --backend gymnasium --total-steps 60000 {HOST} {NETWORK}",
    "ppo-gymnasium-sync": f"train ppo --env CartPole-v1 --backend gymnasium-sync --total-steps 40000 {HOST} {NETWORK}",
    "trpo-gymnasium": f"train trpo --env CartPole-v1 --backend gymnasium --total-steps 60000 {HOST} {NETWORK}",
    "ppo-envpool": f"train ppo --env CartPole-v1 --backend envpool --total-steps 100000 {HOST} {NETWORK}",
    "ppo-envpool-mujoco": f"train ppo --env HalfCheetah-v5 --backend envpool --epochs 2 --total-steps 24576 {HOST} {NETWORK}",
    "a2c-envpool": f"train a2c --env CartPole-v1 --backend envpool --total-steps 60000 {HOST} {NETWORK}",
}
PAIRS = "--data {task}/pairs.jsonl"
ALIGNED = "--batch-size 16 --checkpoint-every 8 --quiet"
ADAPTED = "--lora-rank 4 --lora-dropout 0.1"
ONLINE = "--data {task}/sft.jsonl --reward surefoot.alignment.tasks.grammar:reward_function --answers-per-prompt 2 --longest-answer 16"
CASES |= {
    "sft": f"align sft --model {{task}}/model --data {{task}}/sft.jsonl --epochs 10 {ALIGNED}",
    "sft-adapter": f"align sft --model {{task}}/model --data {{task}}/sft.jsonl --epochs 10 {ADAPTED} {ALIGNED}",
    "reward": f"align reward --model {{task}}/model {PAIRS} --epochs 10 {ALIGNED}",
    "reward-ranked-adapter": f"align reward --model {{task}}/model --data {{task}}/ranked.jsonl --epochs 6 {ADAPTED} {ALIGNED}",
    "dpo": f"align dpo --model {{task}}/model {PAIRS} --eval-data {{task}}/clean.jsonl --patience 9 --epochs 8 {ALIGNED}",
    "dpo-live-reference": f"align dpo --model {{task}}/model {PAIRS} --live-reference --epochs 8 {ALIGNED}",
    "dpo-ranked-adapter": f"align dpo --model {{task}}/model --data {{task}}/ranked.jsonl --epochs 6 {ADAPTED} {ALIGNED}",
    "align-ppo": f"align ppo --model {{task}}/model {ONLINE} --epochs 2 {ALIGNED}",
    "align-ppo-adapter": f"align ppo --model {{task}}/model {ONLINE} --epochs 2 --lora-rank 4 --critic shared {ALIGNED}",
    "align-grpo": f"align ppo --model {{task}}/model {ONLINE} --weight group --epochs 2 {ALIGNED}",
}
TASK = "task grammar --prompts 256 --held-out 32 --hidden-size 32 --layers 1 --quiet"
WEIGHTS = ("policy/*.safetensors", "model/*.safetensors", "adapter/*.safetensors", "samples.jsonl")
MOST_KILLS = 3


def start(command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "surefoot", *command.split()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run_whole(command: str) -> float:
    """Seconds of a command that nobody stops."""
    began = time.monotonic()
    process = start(command)
    errors = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"surefoot {command} does not run: {errors}")
    return time.monotonic() - began


def of_no_clock(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith("speed/")}


def contents(run: Path) -> dict[str, Any]:
    """Everything that must be the same, by name."""
    found: dict[str, Any] = {}
    for place in [run, *sorted(run.glob("seed-*"))]:
        name = "" if place == run else f"{place.name}/"
        if (place / "metrics.jsonl").exists():
            found[f"{name}metrics"] = [of_no_clock(line) for line in read_metrics(place / "metrics.jsonl")]
        for path in sorted(path for pattern in WEIGHTS for path in place.glob(pattern)):
            found[f"{name}{path.relative_to(place)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        if Checkpoints(place).steps():
            last = Checkpoints(place).latest()[0]
            found[f"{name}checkpoint"] = last.step, last.exact
            found |= {f"{name}checkpoint/{key}": (v.dtype.str, v.shape, v.tobytes()) for key, v in last.arrays.items()}
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [name for name in sorted(a.keys() | b.keys()) if repr(a.get(name)) != repr(b.get(name))]


def stopped_and_gone_on_with(command: str, run: Path, seconds: float, rng: random.Random) -> dict[str, Any]:
    """One run to its end, killed at random moments within the ``seconds`` that it takes."""
    kills: list[dict[str, Any]] = []
    wanted = rng.randint(1, MOST_KILLS)
    while True:
        begun = (run / "config.json").exists()
        process = start(f"resume {run} --exact --quiet" if begun else f"{command} --out {run}")
        wait = rng.uniform(0, seconds) if len(kills) < wanted else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kept = max((s for place in (run, *run.glob("seed-*")) for s in Checkpoints(place).steps()), default=None)
            kills.append({"after_seconds": round(wait or 0, 3), "last_checkpoint": kept})
            continue
        if "no exact checkpoint" in errors:
            # Killed between its first checkpoint, which is not exact, and the first place on the grid: begun again.
            shutil.rmtree(run)
            continue
        if process.returncode != 0 and "is finished" not in errors:
            return {"kills": kills, "failed": errors}
        return {"kills": kills, "resumed": json.loads((run / "summary.json").read_text()).get("resumed")}


def write_report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The result so far: a benchmark that is stopped keeps what it has seen."""
    by_case = {}
    for name in CASES:
        own = [row for row in rows if row["case"] == name]
        by_case[name] = {
            "command": f"surefoot {CASES[name].format(task='TASK')}",
            "runs": len(own),
            "kills": sum(len(row["kills"]) for row in own),
            "same": sum(not row["differs"] and "failed" not in row for row in own),
        }
    report = {
        "runs": len(rows),
        "killed": sum(bool(row["kills"]) for row in rows),
        "kills": sum(len(row["kills"]) for row in rows),
        "same": sum(case["same"] for case in by_case.values()),
        "task": f"surefoot {TASK}",
        "cases": {name: case for name, case in by_case.items() if case["runs"]},
        "each": rows,
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "durability.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    chosen = parser.parse_args()
    names = [name for name in CASES if not chosen.only or name in chosen.only]
    rng, rows = random.Random(chosen.seed), []
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        run_whole(f"{TASK} --out {task}")
        references: dict[str, tuple[dict[str, Any], float]] = {}
        for i in range(chosen.count):
            case = names[i % len(names)]
            command = CASES[case].format(task=task)
            if case not in references:
                # Twice: the second has compiled programs and tokens to hand, as those that are killed will.
                whole, again = (Path(folder) / f"{case}-{name}" for name in ("whole", "again"))
                run_whole(f"{command} --out {whole}")
                seconds = run_whole(f"{command} --out {again}")
                references[case] = contents(whole), seconds
                if differs := differences(references[case][0], contents(again)):
                    raise SystemExit(f"{case} is not the same run twice, and nobody stopped it: {', '.join(differs)}")
            reference, seconds = references[case]
            run = Path(folder) / f"{case}-{i}"
            row = {"case": case, **stopped_and_gone_on_with(command, run, seconds, rng)}
            row["differs"] = differences(reference, contents(run))
            rows.append(row)
            report = write_report(rows)
            print(json.dumps({"run": i + 1, **row}), flush=True)
    print(json.dumps({key: report[key] for key in ("runs", "killed", "kills", "same")}))
    if report["same"] != report["runs"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
