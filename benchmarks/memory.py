"""Resident memory over long runs: what a report, a restart of the environments, a checkpoint and an update leave behind.

    python benchmarks/memory.py

One process per kind of run, which notes its resident set at every report of metrics. Writes benchmarks/results/memory.json:
megabytes after a fifth of the reports, when everything has been used once, and at the end; and what a report added in between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONTROL = (
    "train ppo --env CartPole-v1 --num-envs 4 --rollout-length 32 --minibatch-size 64 --epochs 2 --hidden-sizes 32 --quiet"
    " --checkpoint-every 12800 --total-steps"
)
ALIGNMENT = "--model task/model --batch-size 16 --checkpoint-every 50 --learning-rate 1e-4 --quiet"
KINDS = {
    "pure JAX": f"{CONTROL} 640000 --backend jax",
    "Gymnasium, begun afresh every tenth report": f"{CONTROL} 256000 --backend gymnasium-sync --restart-every 1280",
    "EnvPool": f"{CONTROL} 512000 --backend envpool",
    "EnvPool, begun afresh at every report": f"{CONTROL} 3840 --backend envpool --restart-every 128",
    "DPO": f"align dpo --data task/clean.jsonl {ALIGNMENT} --epochs 5",
    "PPO of a language model": f"align ppo --data task/clean.jsonl --reward rewards.py:short --longest-answer 16 {ALIGNMENT} --epochs 3",
}
REWARDS = "def short(prompts, completions):\n    return [-float(len(text)) for text in completions]\n"


def resident_megabytes() -> float:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measured(arguments: list[str]) -> list[float]:
    """Megabytes at every report of a command that runs in this process."""
    from surefoot.cli import main
    from surefoot.runs.metrics import MetricsWriter

    samples: list[float] = []
    write = MetricsWriter.write

    def write_and_measure(self: MetricsWriter, *values: Any) -> None:
        write(self, *values)
        samples.append(resident_megabytes())

    MetricsWriter.write = write_and_measure  # type: ignore[method-assign]
    if main(arguments) != 0:
        raise SystemExit(1)
    return samples


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1:])))
        return
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rewards.py").write_text(REWARDS)
        surroundings = os.environ | {"XDG_CACHE_HOME": f"{folder}/cache"}
        task = [sys.executable, "-m", "surefoot", "task", "grammar", "--out", "task"]
        subprocess.run(task, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for number, (kind, command) in enumerate(KINDS.items()):
            line = [sys.executable, str(Path(__file__).resolve()), *command.split(), "--out", f"run-{number}"]
            done = subprocess.run(line, cwd=folder, env=surroundings, check=True, stdout=subprocess.PIPE, text=True)
            samples = json.loads(done.stdout.splitlines()[-1])
            early = samples[len(samples) // 5]
            report[kind] = {
                "command": f"surefoot {command}",
                "reports": len(samples),
                "megabytes_after_a_fifth": round(early, 1),
                "megabytes_at_the_end": round(samples[-1], 1),
                "kilobytes_per_report": round(1024 * (samples[-1] - early) / (len(samples) - len(samples) // 5), 2),
            }
            print(kind, report[kind], flush=True)
    (Path(__file__).parent / "results" / "memory.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
