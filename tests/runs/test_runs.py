"""Files that are whole or absent, metrics, and summaries over seeds."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from surefoot.errors import RunError, UsageError
from surefoot.runs.directory import create_run_folder, read_json, write_json, write_whole
from surefoot.runs.metrics import MetricsWriter, read_metrics
from surefoot.runs.statistics import interquartile_mean, summarize_seeds


def test_failed_writes_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*file: No space left on device; what stood there before is untouched"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "nothing half-written stays"


def test_json_files(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert read_json(tmp_path / "a" / "b.json") == {"x": 1}
    with pytest.raises(UsageError, match="does not exist"):
        read_json(tmp_path / "c.json")
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        read_json(tmp_path / "d.json")
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(UsageError, match="holds list"):
        read_json(tmp_path / "e.json")


def test_default_folders_have_harmless_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create_run_folder(None, name="ppo-../../etc/x:y").parent.name == "runs"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_metrics_are_complete_lines(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(10, {"a": 1.5, "none": None, "nan": math.nan})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1.5, "none": null, "nan": null}\n', "at once, not when closed"
        writer.write(20, {"a": 2.5, "none": 3.0, "nan": 4.0})
    assert [line["a"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.5, 2.5]


def test_event_files_are_what_tensorboard_reads(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    steps = (0, 1, 127, 128, 10**10)
    with MetricsWriter(tmp_path) as writer:
        for step in steps:
            writer.write(step, {"π/ä": step / 3, "second": -1e-30, "huge": -1e300, "absent": None})
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
    assert [event.step for event in events] == list(steps)
    for event in events:
        values = {v.tag: v.tensor.float_val[0] for v in event.summary.value}
        assert values == {"π/ä": np.float32(event.step / 3), "second": np.float32(-1e-30), "huge": -np.inf}


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == (2 + 3 + 4 + 5) / 4 == 3.5
    assert interquartile_mean(np.array([9.0, 1, 2, 3, -50])) == 2.0
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        summary = summarize_seeds(rng.normal(5, 1, size=20), resamples=500)
        covered += summary.low <= 5 <= summary.high
        assert summary.low <= summary.interquartile_mean <= summary.high
    assert 0.85 < covered / 200 < 0.99
    with pytest.raises(ValueError, match="at least one number"):
        summarize_seeds([])


def test_summary_is_json():
    assert json.loads(json.dumps(summarize_seeds([1.0, 2.0, 3.0]).as_dict()))["seeds"] == 3
