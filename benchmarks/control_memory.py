"""Memory over ten million CartPole steps: resident set size, sampled while `surefoot train` runs.

    python benchmarks/control_memory.py

Writes benchmarks/results/control_memory.json: a sample every two seconds, with the steps reached by then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 10_000_000
COMMAND = f"train ppo --env CartPole-v1 --num-envs 8 --rollout-length 256 --minibatch-size 256 --epochs 4 --total-steps {STEPS}"


def resident_megabytes(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        process = subprocess.Popen([sys.executable, "-m", "surefoot", *COMMAND.split(), "--quiet", "--out", str(out)])
        metrics, seen, steps = out / "metrics.jsonl", 0, 0
        while process.poll() is None:
            time.sleep(2)
            if metrics.exists() and process.poll() is None:
                with metrics.open("rb") as file:
                    file.seek(seen)
                    lines = file.read().splitlines()
                    seen = file.tell()
                steps = json.loads(lines[-1])["steps"] if lines else steps
                samples.append({"steps": steps, "megabytes": round(resident_megabytes(process.pid), 1)})
        if process.returncode != 0:
            raise SystemExit(process.returncode)
    at = lambda share: next(s["megabytes"] for s in samples if s["steps"] >= share * STEPS)  # noqa: E731
    report = {
        "command": f"surefoot {COMMAND}",
        "after_1_million": at(0.1),
        "after_5_million": at(0.5),
        "at_the_end": samples[-1]["megabytes"],
    }
    print(json.dumps(report))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "control_memory.json").write_text(json.dumps({**report, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
