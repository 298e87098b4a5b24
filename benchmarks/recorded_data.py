"""How far a policy gets from another one's data alone: CartPole-v1, five mediocre policies and their recorded episodes.

    python benchmarks/recorded_data.py        # about six minutes on two cores

For each seed: PPO trains for 12,000 steps, its policy is recorded for 500 episodes, and REINFORCE and A2C learn from these
episodes, once with the recorded log-probabilities and once (A2C) without them, from a fitted behaviour policy. All policies
are evaluated in Gymnasium's own environment, 100 episodes. Writes benchmarks/results/recorded_data.json; no seed is left
out."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from surefoot.control.recorded.load import load_recorded
from surefoot.runs.statistics import summarize_seeds

SEEDS, EPISODES = 5, 500
TRAIN = "train ppo --env CartPole-v1 --total-steps 12000 --no-tensorboard --quiet --seed {seed} --out {out}"
RECORD = "evaluate {run} --record {out} --episodes 500 --seed {seed} --quiet"
LEARN = "train {algorithm} --from-data {data} --no-tensorboard --quiet --seed {seed} --out {out}"
EVALUATE = "evaluate {run} --episodes 100 --json --quiet"


def surefoot(command: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "surefoot", *shlex.split(command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"surefoot {command}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) if "--json" in command else None


def without_log_probabilities(data: Path, name: str) -> Path:
    """The same data set as anybody might publish it: actions, and not how likely they were."""
    import minari
    from minari.data_collector import EpisodeBuffer

    source = minari.MinariDataset(data / "data")
    columns = ("observations", "actions", "rewards", "terminations", "truncations")
    buffers = [EpisodeBuffer(**{k: getattr(e, k) for k in columns}) for e in source.iterate_episodes()]
    bare = data.parent / name
    bare.mkdir()
    storage = minari.dataset.minari_storage.MinariStorage.new(
        bare / "data", observation_space=source.observation_space, action_space=source.action_space, env_spec=source.env_spec
    )
    storage.update_episodes(buffers)
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__})
    assert load_recorded(bare).log_probabilities is None
    return bare


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            here = Path(folder) / str(seed)
            run, data = here / "behavior", here / "data-v0"
            surefoot(TRAIN.format(seed=seed, out=run))
            surefoot(RECORD.format(run=run, out=data, seed=seed))
            bare = without_log_probabilities(data, "bare-v0")
            row = {"seed": seed, "behavior": surefoot(EVALUATE.format(run=run))["mean_return"]}
            for name, algorithm, source in (
                ("reinforce", "reinforce", data), ("a2c", "a2c", data), ("a2c, fitted behaviour", "a2c", bare),
            ):  # fmt: skip
                out = here / name.replace(", ", "-").replace(" ", "-")
                surefoot(LEARN.format(algorithm=algorithm, data=source, seed=seed, out=out))
                row[name] = surefoot(EVALUATE.format(run=out))["mean_return"]
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    summary = {k: summarize_seeds([row[k] for row in rows]).as_dict() for k in rows[0] if k != "seed"}
    report = {
        "commands": [f"surefoot {c}" for c in (TRAIN, RECORD, LEARN, EVALUATE)],
        "date": time.strftime("%Y-%m-%d"),
        "summary": summary,
        "seeds": rows,
    }
    (Path(__file__).parent / "results" / "recorded_data.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
