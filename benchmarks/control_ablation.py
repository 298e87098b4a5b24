"""What each detail of PPO does on one task: its option changed alone, everything else as in the preset.

    python benchmarks/control_ablation.py             # about five minutes on two cores

Five seeds of Pendulum-v1 in one compiled program per variant; the result is the mean return of the last 100 training
episodes, as interquartile mean over seeds with a 95 % bootstrap interval. One small task shows that an option works
and roughly what it costs there; it decides nothing about others. Writes benchmarks/results/control_ablation.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = "train ppo --env Pendulum-v1 --backend jax --seeds 5 --json --quiet --no-tensorboard"
VARIANTS = {
    "the preset": "",
    "value clipping at 0.2": "--value-clip-range 0.2",
    "advantages normalised per rollout": "--advantage-normalization batch",
    "advantages not normalised": "--advantage-normalization none",
    "observations not normalised": "--no-normalize-observations",
    "rewards not normalised": "--no-normalize-rewards",
    "no orthogonal initialisation": "--no-orthogonal-initialization",
    "constant learning rate": "--learning-rate-schedule constant",
    "clip range falling to 0": "--clip-range-schedule linear",
    "no limit on gradient norms": "--max-gradient-norm none",
    "Adam's ε 1e-8": "--adam-epsilon 1e-8",
    "advantages recomputed each epoch": "--recompute-advantages",
    "target KL 0.01": "--target-kl 0.01",
    "entropy bonus 0.01": "--entropy-coefficient 0.01",
}


def main() -> None:
    rows = []
    for name, options in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "surefoot", *COMMAND.split(), *options.split(), "--out", f"{folder}/run"]
            result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        returns = [seed["mean_return"] for seed in result["seeds"]]
        rows.append({"variant": name, "options": options, "returns": returns, **result["summary"]})
        print(json.dumps(rows[-1]), flush=True)
    report = {"command": f"surefoot {COMMAND}", "date": time.strftime("%Y-%m-%d"), "rows": rows}
    (Path(__file__).parent / "results" / "control_ablation.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    main()
