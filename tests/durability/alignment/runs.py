"""Small runs of alignment that are stopped and gone on with, and what must be equal to the last bit."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.alignment.configuration import AlignConfiguration, configure
from surefoot.alignment.durability.resuming import resume_alignment
from surefoot.alignment.training import align
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import MetricsWriter, read_metrics
from tests.alignment.models.tiny import save_language_model
from tests.alignment.tokenizers import WORDS

REWARDS = '''
def good(prompts, completions):
    """How often the word occurs, and something for the length, so that there is something to learn in every iteration."""
    return [text.split().count("good") + len(text) / 8 for text in completions]
'''
TIMES = ("seconds", "updating")
"""Of a state, what a clock says."""
OF_TIME = {"seconds", "startup_seconds", "utilization", "phases", "peak_mb", "reference_seconds", "run", "model"}


class Crash(BaseException):
    """In place of a power cut: nothing in the program answers to it."""


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, count))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def material(folder: Path, *, seed: int = 0, family: str = "llama") -> Path:
    """A folder with a model, pairs, pairs to evaluate on, prompts and a reward function."""
    rng = np.random.default_rng(seed)
    save_language_model(folder / "model", family)

    def pairs(count: int) -> list[dict[str, Any]]:
        return [
            {"prompt": words(rng, 3 + i % 3), "chosen": f"{words(rng, 2)} good", "rejected": f"{words(rng, 1)} bad b"}
            for i in range(count)
        ]

    write(folder / "pairs.jsonl", pairs(10))
    write(folder / "others.jsonl", pairs(6))
    write(folder / "prompts.jsonl", [{"prompt": words(rng, 2 + i % 3), "about": i} for i in range(7)])
    (folder / "rewards.py").write_text(REWARDS)
    return folder


def settings(method: Any, folder: Path, out: Path, **choices: Any) -> AlignConfiguration:
    """Three updates per epoch, three epochs, a checkpoint after every second update."""
    parts: dict[str, dict[str, Any]] = {"training": {}, "model": {}, "adapter": {}, "objective": {}}
    reward = choices.pop("reward", f"{folder / 'rewards.py'}:good")
    for name, value in choices.items():
        part, _, option = name.partition("__")
        parts[part][option] = value
    data = folder / ("prompts.jsonl" if method == "ppo" else "pairs.jsonl")
    defaults = configure(method, model=str(folder / "model"), data=str(data), reward=reward)
    plain = {
        "batch_size": 3 if method == "ppo" else 4,
        "epochs": 3,
        "learning_rate": 0.01,
        "checkpoint_every": "2",
        "out": str(out),
        "tensorboard": False,
    }
    of_ppo = {"answers_per_prompt": 2, "longest_answer": 4, "samples_every": 2} if method == "ppo" else {}
    return replace(
        defaults,
        model=replace(defaults.model, **parts["model"]),
        adapter=replace(defaults.adapter, **parts["adapter"]),
        training=replace(defaults.training, **(plain | parts["training"])),
        objective=None if defaults.objective is None else replace(defaults.objective, **(of_ppo | parts["objective"])),
    )


@contextmanager
def crashing_after(line: int, monkeypatch: Any) -> Any:
    """Within it a process ends when it has written so many lines of metrics."""
    written, write_line = [0], MetricsWriter.write

    def write_and_crash(self: MetricsWriter, *arguments: Any) -> None:
        write_line(self, *arguments)
        written[0] += 1
        if written[0] == line:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_and_crash)
        yield


def crashed(configuration: AlignConfiguration, line: int, monkeypatch: Any) -> Path:
    """The folder of a run that was ended after so many lines."""
    with crashing_after(line, monkeypatch):
        try:
            align(configuration, quiet=True)
        except Crash:
            return Path(str(configuration.training.out))
    raise AssertionError(f"it ended before line {line}")


def resume(run: Path, *, quiet: bool = True, **options: Any) -> dict[str, Any]:
    return resume_alignment(run, quiet=quiet, started=time.time(), **options)


def last_state(run: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Everything that the last checkpoint holds, as bits, without what a clock said."""
    checkpoint, passed_over = Checkpoints(run).latest()
    assert not passed_over
    assert checkpoint.exact
    arrays = {name: array.tobytes() for name, array in checkpoint.arrays.items()}
    assert arrays
    return arrays, {name: value for name, value in checkpoint.state["run"].items() if name not in TIMES}


def lines(run: Path) -> list[dict[str, float | None]]:
    """Its metrics without speeds."""
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in read_metrics(run / "metrics.jsonl")]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in OF_TIME and not name.endswith("_per_second")}


def assert_the_same(one: Path, other: Path, *, cards: bool = True) -> None:
    """Weights, optimisers, counters, metrics, sample answers and what is kept for others: equal to the bit.

    Model cards differ where one run was begun on the command line, which they cite.
    """
    first, second = last_state(one), last_state(other)
    assert first[0].keys() == second[0].keys()
    assert [name for name, bits in first[0].items() if bits != second[0][name]] == []
    assert first[1] == second[1]
    assert lines(one) == lines(other)
    for name in ("model", "adapter"):
        kept = [files(run / name) for run in (one, other)]
        for contents in kept:
            if "README.md" in contents:  # it names the run's folder
                contents["README.md"] = re.sub(rb"\| out \|.*", b"", contents["README.md"]) if cards else b""
        assert kept[0].keys() == kept[1].keys()
        assert [file for file, content in kept[0].items() if content != kept[1][file]] == []
    summaries = [results(json.loads((run / "summary.json").read_text())) for run in (one, other)]
    assert summaries[0] == summaries[1]
    samples = [(run / "samples.jsonl").read_bytes() if (run / "samples.jsonl").exists() else b"" for run in (one, other)]
    assert samples[0] == samples[1]
