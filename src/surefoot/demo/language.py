"""The demo's second half: a language model learns to judge kindly, by a reward model and PPO, and by DPO alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from surefoot.alignment.configuration import MethodName, configure
from surefoot.alignment.evaluation import evaluate_alignment
from surefoot.alignment.tasks.files import CLEAN, PAIRS, RANKED, SUPERVISED, TaskConfiguration, write_grammar_task
from surefoot.alignment.tasks.files import MODEL as UNTRAINED
from surefoot.alignment.tasks.measuring import measure_answers
from surefoot.alignment.training import align
from surefoot.demo.figure import draw_road
from surefoot.runs.directory import METRICS_FILE, MODEL_FOLDER
from surefoot.runs.metrics import read_metrics

LABELLED = 4000
"""Prompts with labelled answers."""
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 32, "epochs": 3, "learning_rate": 3e-3},
    "reward": {"batch_size": 32, "epochs": 5, "learning_rate": 1e-3, "weight_decay": 0.1},
    "ppo": {"batch_size": 64, "epochs": 1, "learning_rate": 1e-3},
    "dpo": {"batch_size": 32, "epochs": 5, "learning_rate": 1e-3, "weight_decay": 0.1},
}
PPO: dict[str, Any] = {
    "beta": 0.1,
    "standardize_rewards": "scale",
    "critic_learning_rate": 1e-3,
    "longest_answer": 24,
    "update_epochs": 2,
    "minibatches": 2,
}
DPO: dict[str, Any] = {"beta": 1.0, "supervised_weight": 5.0}
"""A policy this small gives what the rejected answers lose to nonsense; the supervised term holds the good answers up."""
BETTER = 0.5
"""Reward units by which PPO and DPO must beat fine-tuning for the demo to have succeeded."""


def follow_the_road(folder: Path, *, seed: int, quiet: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Generate the task; fine-tune; then a reward model and PPO on its word, and DPO on the same rankings, both from the fine-tuned model.

    Returns:
        ``policies``, one row each (method, true reward, its standard error, share of sentences, KL to the fine-tuned model, seconds,
        answers sampled in training), the reward model's ``accuracy`` on the true order, whether they ``learned``, and the ``figure``.
    """
    task = folder / "task"
    say(
        "\n2. a language task: questions about two things, answers that judge both; the reward is how kindly the right one is judged"
    )
    write_grammar_task(task, TaskConfiguration(seed=seed, prompts=LABELLED, held_out=500))
    seconds: dict[str, float] = {}
    results: dict[str, dict[str, Any]] = {}

    def train(method: MethodName, model: Path, data: str, *, reward: Path | None = None, **choices: Any) -> Path:
        began, out = time.perf_counter(), folder / method
        plain = configure(
            method, model=str(model), data=str(task / data), **({} if reward is None else {"reward": str(reward)})
        )
        configuration = replace(
            plain,
            training=replace(plain.training, out=str(out), seed=seed, **SETTINGS[method]),
            data=replace(plain.data, cache=False),
            objective=plain.objective and replace(plain.objective, **choices),
        )
        results[method] = align(configuration, quiet=quiet)
        seconds[method] = time.perf_counter() - began
        return out / MODEL_FOLDER

    say("\n3. fine-tuning: learn to write such answers, kind and unkind alike")
    start = train("sft", task / UNTRAINED, SUPERVISED)
    say("\n4. a reward model from rankings of four answers, a tenth of the labels wrong (Plackett–Luce)")
    judge = train("reward", start, RANKED)
    accuracy = evaluate_alignment(folder / "reward", data=str(task / CLEAN))["accuracy"]
    say(f"   it puts {accuracy:.1%} of unseen pairs in their true order")
    say("\n5. PPO on the reward model's word: policy, critic, reward model and reference")
    by_ppo = train("ppo", start, PAIRS, reward=judge, **PPO)
    say("\n6. DPO on the same rankings: no reward model, no critic, no sampling")
    by_dpo = train("dpo", start, RANKED, reference_cache=str(folder / "reference"), **DPO)

    policies = []
    for name, model in (("sft", start), ("ppo", by_ppo), ("dpo", by_dpo)):
        measured = measure_answers(model, reference=start, data=task / CLEAN, seed=seed)
        policies.append(
            {
                "method": name,
                **measured._asdict(),
                "seconds": seconds[name] + (seconds["reward"] if name == "ppo" else 0.0),
                "answers_sampled": results[name].get("answers", 0),
                "peak_mb": results[name]["peak_mb"],
            }
        )
    say("\n7. answers to prompts that nobody was trained on, by the true reward (largest 1.65)\n")
    for line in table(policies):
        say(f"   {line}")
    path = [(line["kl/reference"] or 0.0, line["reward"] or 0.0) for line in read_metrics(folder / "ppo" / METRICS_FILE)]
    figure = draw_road(policies, path, folder / "road.png")
    if figure is None:
        say("\n   a figure of the road needs Matplotlib: pip install 'surefoot[reports]'")
    else:
        say(f"\n   the road as a figure: {figure}")
    rewards = {row["method"]: row["reward"] for row in policies}
    learned = min(rewards["ppo"], rewards["dpo"]) >= rewards["sft"] + BETTER
    return {"policies": policies, "accuracy": accuracy, "learned": learned, "figure": None if figure is None else str(figure)}


def table(policies: list[dict[str, Any]]) -> list[str]:
    """The policies side by side."""
    lines = [f"{'':<20} {'true reward':>15} {'sentences':>10} {'KL, nats':>9} {'seconds':>8}  {'needs'}"]
    needs = {"sft": "demonstrations", "ppo": "rankings, a reward model, a critic, samples", "dpo": "rankings"}
    names = {"sft": "fine-tuning", "ppo": "reward model + PPO", "dpo": "DPO"}
    for row in policies:
        reward = f"{row['reward']:.2f} ± {row['standard_error']:.2f}"
        method = row["method"]
        lines.append(
            f"{names[method]:<20} {reward:>15} {row['sentences']:>10.1%} {row['kl']:>9.2f} {row['seconds']:>8.1f}  {needs[method]}"
        )
    return lines
