"""The road as a picture: true reward against the distance from where it began."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw_road(policies: Sequence[dict[str, Any]], path: Sequence[tuple[float, float]], file: Path) -> Path | None:
    """Fine-tuning, PPO and DPO as points, and the reward model's word along PPO's way.

    Args:
        policies: method, reward, standard_error and kl of each.
        path: (KL to the reference, the reward model's mean reward) of every iteration of PPO.
        file: where the figure is written.

    Returns:
        the file, or None where Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    colours = {"sft": "#6c757d", "ppo": "#2a6f97", "dpo": "#c8553d"}
    names = {"sft": "fine-tuning", "ppo": "reward model + PPO", "dpo": "DPO"}
    for row in policies:
        method = row["method"]
        left.errorbar(
            row["kl"], row["reward"], yerr=2 * row["standard_error"], fmt="o", color=colours[method], label=names[method]
        )
    left.set_xlabel("KL to the fine-tuned model, nats per answer")
    left.set_ylabel("true reward")
    left.set_title("Where they arrive: unseen prompts, ± 2 standard errors", fontsize=10)
    left.legend(frameon=False, loc="lower right")
    right.plot([reward for _, reward in path], color=colours["ppo"], label="reward model's word")
    right.set_xlabel("iteration of PPO")
    right.set_ylabel("reward model's score", color=colours["ppo"])
    distance = right.twinx()
    distance.plot([kl for kl, _ in path], color="#8d99ae", linestyle="--")
    distance.set_ylabel("KL, nats per answer", color="#8d99ae")
    right.set_title("PPO's way", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
