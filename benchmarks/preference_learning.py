"""What reward models learn from pairs and from rankings, on the generated language task whose true reward is known.

    python benchmarks/preference_learning.py              # five seeds: about thirty minutes on two cores
    python benchmarks/preference_learning.py --seeds 1 --out one.json

Per seed: a task is generated, a tiny model fine-tuned on its demonstrations, and from it reward models are trained on growing
numbers of labelled prompts, with pairs (Bradley–Terry) and with rankings of four answers (Plackett–Luce). Measured are the accuracy
on held-out pairs in their true order, and on noisy labels beside that of the true reward itself.
What the results hold already, with the same settings, is not computed again; delete them for that.
Results: benchmarks/results/preference_learning.json, docs/figures/preference_learning.png."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULT = HERE / "results" / "preference_learning.json"
FIGURE = HERE.parent / "docs" / "figures" / "preference_learning.png"
COUNTS = {"pairs": (2000, 4000, 8000, 16000), "ranked": (1000, 2000, 4000)}
EPOCHS = {"pairs": 8, "ranked": 6}
LABELS = {"pairs": "pairs, Bradley–Terry", "ranked": "rankings of 4, Plackett–Luce"}
DEMONSTRATIONS = 8000
SFT = {"epochs": 2, "batch_size": 32, "learning_rate": 3e-3}
REWARD = {"batch_size": 32, "learning_rate": 1e-3, "weight_decay": 0.1}


def one_seed(seed: int, known: list[dict]) -> dict:
    from dataclasses import replace

    import torch

    from surefoot.alignment.configuration import configure
    from surefoot.alignment.evaluation import evaluate_alignment
    from surefoot.alignment.tasks.files import TaskConfiguration, write_grammar_task
    from surefoot.alignment.training import align

    torch.set_num_threads(1)
    rows = []
    found = {(row["data"], row["labelled_prompts"]): row for row in known}
    with tempfile.TemporaryDirectory() as place:
        task = Path(place)
        written = write_grammar_task(task, TaskConfiguration(seed=seed, prompts=max(map(max, COUNTS.values())), held_out=2000))

        def train(method: str, model: Path, data: Path, out: Path, **options: float) -> dict:
            plain = configure(method, model=str(model), data=str(data))
            training = replace(plain.training, out=str(out), tensorboard=False, seed=seed, **options)
            return align(replace(plain, training=training, data=replace(plain.data, cache=False)), quiet=True)

        def first(name: str, count: int) -> Path:
            part = task / f"{name}-{count}.jsonl"
            with open(task / f"{name}.jsonl") as whole:
                part.write_text("".join(islice(whole, count)))
            return part

        train("sft", task / "model", first("sft", DEMONSTRATIONS), task / "sft", **SFT)
        for kind, counts in COUNTS.items():
            for count in counts:
                if (kind, count) in found:
                    rows.append(found[kind, count])
                    continue
                run = task / f"{kind}-{count}"
                result = train("reward", task / "sft" / "model", first(kind, count), run, epochs=EPOCHS[kind], **REWARD)
                row = {"seed": seed, "data": kind, "labelled_prompts": count, "seconds": result["seconds"]}
                for labels in ("clean", "noisy"):
                    row[labels] = evaluate_alignment(run, data=str(task / f"{labels}.jsonl"))["accuracy"]
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return {"seed": seed, "ceiling": written["ceiling"], "rows": rows}


def summary(seeds: list[dict]) -> list[dict]:
    table = []
    for kind, counts in COUNTS.items():
        for count in counts:
            rows = [r for s in seeds for r in s["rows"] if (r["data"], r["labelled_prompts"]) == (kind, count)]
            gaps = [r["noisy"] - s["ceiling"] for s in seeds for r in s["rows"] if r in rows]
            clean = [r["clean"] for r in rows]
            table.append(
                {
                    "data": kind,
                    "labelled_prompts": count,
                    "clean_mean": float(np.mean(clean)),
                    "clean_lowest": min(clean),
                    "clean_highest": max(clean),
                    "noisy_mean": float(np.mean([r["noisy"] for r in rows])),
                    "noisy_minus_true_reward": float(np.mean(gaps)),
                    "worst_gap": float(min(gaps)),
                }
            )
    return table


def draw(table: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for kind, colour in (("pairs", "#2a6f97"), ("ranked", "#c8553d")):
        rows = [row for row in table if row["data"] == kind]
        x = [row["labelled_prompts"] for row in rows]
        axes.plot(x, [row["clean_mean"] for row in rows], marker="o", color=colour, label=LABELS[kind])
        low, high = [row["clean_lowest"] for row in rows], [row["clean_highest"] for row in rows]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    every = sorted({count for counts in COUNTS.values() for count in counts})
    axes.set_xticks(every, [f"{count:,}" for count in every])
    axes.set_xlabel("labelled prompts")
    axes.set_ylabel("accuracy on the true order")
    axes.axhline(0.97, color="grey", linewidth=0.8, linestyle=":")
    axes.legend(loc="lower right", frameon=False)
    axes.set_title("Reward models of the generated language task: mean and range over seeds", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    began = time.perf_counter()
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    same = all(before.get(name) == value for name, value in (("epochs", EPOCHS), ("sft", SFT), ("reward", REWARD)))
    known = {s["seed"]: s["rows"] for s in before["seeds"]} if before and same else {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        numbers = range(arguments.seeds)
        seeds = list(pool.map(one_seed, numbers, [known.get(seed, []) for seed in numbers]))
    table = summary(seeds)
    result = {
        "command": f"python benchmarks/preference_learning.py --seeds {arguments.seeds}",
        "minutes": (time.perf_counter() - began) / 60 + (before.get("minutes", 0.0) if known else 0.0),
        "epochs": EPOCHS,
        "sft": SFT,
        "reward": REWARD,
        "summary": table,
        "seeds": seeds,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(table, arguments.figure)
    for row in table:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
