"""What each detail of an algorithm does on one task: its option changed alone, everything else as usual.

    python benchmarks/control_ablation.py             # all algorithms: about fifteen minutes on two cores
    python benchmarks/control_ablation.py trpo        # one of them

Five seeds in one compiled program per variant; the result is the mean return of the last 100 training episodes, as
interquartile mean over seeds with a 95 % bootstrap interval. One small task shows that an option works and roughly what it
costs there; it decides nothing about others. Writes benchmarks/results/control_ablation/ALGORITHM.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "control_ablation"
SEEDS = "--backend jax --seeds 5 --json --quiet --no-tensorboard"
PENDULUM, CARTPOLE = "Pendulum-v1, 200,000 steps, 5 seeds", "CartPole-v1, {steps} steps, 5 seeds"
NORMALIZATION = {
    "observations not normalised": "--no-normalize-observations",
    "rewards not normalised": "--no-normalize-rewards",
    "no orthogonal initialisation": "--no-orthogonal-initialization",
    "constant learning rate": "--learning-rate-schedule constant",
}
# Algorithm: the task in words, the command, and the variants.
ABLATIONS: dict[str, tuple[str, str, dict[str, str]]] = {
    "ppo": (
        PENDULUM,
        f"train ppo --env Pendulum-v1 {SEEDS}",
        {
            "the preset": "",
            "value clipping at 0.2": "--value-clip-range 0.2",
            "advantages normalised per rollout": "--advantage-normalization batch",
            "advantages not normalised": "--advantage-normalization none",
            **NORMALIZATION,
            "clip range falling to 0": "--clip-range-schedule linear",
            "no limit on gradient norms": "--max-gradient-norm none",
            "Adam's ε 1e-8": "--adam-epsilon 1e-8",
            "advantages recomputed each epoch": "--recompute-advantages",
            "target KL 0.01": "--target-kl 0.01",
            "entropy bonus 0.01": "--entropy-coefficient 0.01",
        },
    ),
    "penalty": (
        PENDULUM,
        f"train ppo --env Pendulum-v1 {SEEDS}",
        {
            "clipped, no penalty": "",
            "neither clip nor penalty": "--clip-range none",
            "fixed β = 1": "--clip-range none --kl-penalty fixed",
            "fixed β = 10": "--clip-range none --kl-penalty fixed --kl-coefficient 10",
            "adaptive, d = 0.01": "--clip-range none --kl-penalty adaptive",
            "adaptive, d = 0.03": "--clip-range none --kl-penalty adaptive --kl-target 0.03",
            "dual, ε = 0.01": "--clip-range none --kl-penalty dual",
            "dual, ε = 0.01, step 10": "--clip-range none --kl-penalty dual --dual-learning-rate 10",
            "clipped and adaptive, d = 0.01": "--kl-penalty adaptive",
        },
    ),
    "trpo": (
        PENDULUM,
        f"train trpo --env Pendulum-v1 --total-steps 200000 --discount 0.9 {SEEDS}",
        {
            "as usual": "",
            "δ = 0.001": "--max-kl 0.001",
            "δ = 0.1": "--max-kl 0.1",
            "δ falling to 0": "--max-kl-schedule linear",
            "5 products": "--conjugate-gradient-steps 5",
            "damping 0.001": "--damping 0.001",
            "damping 1": "--damping 1",
            "no backtracking": "--backtracks 0",
            "advantages not normalised": "--advantage-normalization none",
            "critic: 1 epoch": "--epochs 1",
            "critic: 30 epochs": "--epochs 30",
            "λ = 1": "--trace-decay 1",
            "TD residual": "--weight td-residual",
            **NORMALIZATION,
        },
    ),
    "a2c": (
        CARTPOLE.format(steps="100,000"),
        f"train a2c --env CartPole-v1 --total-steps 100000 {SEEDS}",
        {
            "as usual": "",
            "Adam": "--optimizer adam",
            "plain gradient descent": "--optimizer sgd",
            "λ = 0.9": "--trace-decay 0.9",
            "n-step, n = 5": "--weight n-step",
            "TD residual": "--weight td-residual",
            "Q critic: q-value": "--weight q-value",
            "Q critic: advantage": "--weight advantage",
            "advantages normalised": "--advantage-normalization batch",
            "rollouts of 16 steps": "--rollout-length 16",
            "entropy bonus 0.01": "--entropy-coefficient 0.01",
            "no limit on gradient norms": "--max-gradient-norm none",
            **NORMALIZATION,
        },
    ),
    "reinforce": (
        CARTPOLE.format(steps="250,000"),
        f"train reinforce --env CartPole-v1 --total-steps 250000 {SEEDS}",
        {
            "as usual": "",
            "total return": "--weight total-return",
            "learned baseline": "--weight baseline",
            "returns not standardised": "--advantage-normalization none",
            "γᵗ kept": "--keep-discount",
            "learning rate 3e-3": "--learning-rate 3e-3",
            "rollouts of 64 steps": "--rollout-length 64",
            **{name: options for name, options in NORMALIZATION.items() if "rewards" not in name},
        },
    ),
    "actor-critic": (
        CARTPOLE.format(steps="100,000"),
        f"train actor-critic --env CartPole-v1 --total-steps 100000 {SEEDS}",
        {
            "as usual": "",
            "learning rate 1e-3": "--learning-rate 1e-3",
            "critic ten times faster": "--critic-learning-rate 3e-3",
            "RMSprop": "--optimizer rmsprop",
            "one environment": "--num-envs 1",
            "32 environments": "--num-envs 32",
            "no limit on gradient norms": "--max-gradient-norm none",
            **NORMALIZATION,
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ABLATIONS, []], help="which; all by default")
    for name in parser.parse_args().names or ABLATIONS:
        task, command, variants = ABLATIONS[name]
        rows = []
        for variant, options in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                whole = [sys.executable, "-m", "surefoot", *command.split(), *options.split(), "--out", f"{folder}/run"]
                done = subprocess.run(whole, capture_output=True, text=True)
            if done.returncode != 0:  # a variant may diverge, which is a result
                rows.append({"variant": variant, "options": options, "failed": done.stderr.splitlines()[-1]})
            else:
                result = json.loads(done.stdout.splitlines()[-1])
                returns = [seed["mean_return"] for seed in result["seeds"]]
                rows.append({"variant": variant, "options": options, "returns": returns, **result["summary"]})
            print(json.dumps({"ablation": name, **rows[-1]}), flush=True)
        report = {"task": task, "command": f"surefoot {command}", "date": time.strftime("%Y-%m-%d"), "rows": rows}
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
