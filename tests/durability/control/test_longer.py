"""Runs that get more steps than they were planned for: finished ones, stopped ones, several seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from surefoot.control.training import resume, train
from surefoot.errors import UsageError
from surefoot.runs.metrics import read_metrics
from tests.durability.control.runs import configured, contents, differences, stop_after, stopped_at


@pytest.mark.parametrize("case", ["ppo on JAX", "trpo on Gymnasium"])
def test_raised_steps_are_exact_where_no_schedule_depends_on_them(case, tmp_path, capsys):
    constant = {"learning_rate_schedule": "constant"}
    train(configured(case, tmp_path / "long", **constant, total_steps=1024), quiet=True)
    train(configured(case, tmp_path / "run", **constant), quiet=True)
    with pytest.raises(UsageError, match=r"is finished; --total-steps N goes on beyond its 512 steps"):
        resume(tmp_path / "run", quiet=True)
    for fewer in (512, 100, -1):
        with pytest.raises(UsageError, match=f"--total-steps {fewer} is no more than the 512 that"):
            resume(tmp_path / "run", total_steps=fewer, quiet=True)
    result = resume(tmp_path / "run", total_steps=1024)
    assert "spread over the whole run" not in capsys.readouterr().err
    assert result["resumed"] == [{"step": 512, "exact": True}]
    assert differences(contents(tmp_path / "long"), contents(tmp_path / "run")) == []
    assert json.loads((tmp_path / "run" / "config.json").read_text())["total_steps"] == 1024


def test_raised_steps_say_what_depends_on_them(tmp_path, capsys):
    train(configured("ppo on JAX", tmp_path / "run", clip_range_schedule="linear"), quiet=True)
    result = resume(tmp_path / "run", total_steps=1024)
    assert (
        "--learning-rate-schedule linear and --clip-range-schedule linear are spread over the whole run"
        in capsys.readouterr().err
    )
    assert result["resumed"] == [{"step": 512, "exact": False}]
    rates = [line["schedule/learning_rate"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    np.testing.assert_allclose(rates[:8], 3e-4 * (1 - np.arange(8) / 8), rtol=1e-6)
    np.testing.assert_allclose(rates[8:], 3e-4 * (1 - np.arange(8, 16) / 16), rtol=1e-6)


def test_raised_steps_may_change_what_a_report_covers(tmp_path, capsys):
    """A report of four rollouts where that is all there is, then of more."""
    case, short = "a2c on Gymnasium", {"total_steps": 32, "restart_every": 3000, "learning_rate_schedule": "constant"}
    first = train(configured(case, tmp_path / "run", **short), quiet=True)
    assert first["checkpoint"]["step"] == 32
    result = resume(tmp_path / "run", total_steps=8000)
    assert "a report now covers" in capsys.readouterr().err
    assert not result["interrupted"]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["slots"] >= 8000
    assert all(np.isfinite(line["policy/objective"]) for line in lines)


def test_killed_before_it_keeps_anything_the_longer_run_is_still_what_it_was(tmp_path, capsys):
    """Its checkpoint is the shorter run's, under a schedule of that, and its config.json the longer one's."""
    train(configured("ppo on Gymnasium", tmp_path / "run"), quiet=True)
    resume(tmp_path / "run", total_steps=1024, quiet=True)
    capsys.readouterr()
    for name, options in (("copy", {}), ("same command", {"total_steps": 1024})):
        copy = stopped_at(tmp_path / "run", 512, tmp_path / name)
        result = resume(copy, **options)
        assert "of a run of 1,024 steps, but what was learnt so far was learnt under one of 512" in capsys.readouterr().err
        assert result["resumed"] == [{"step": 512, "exact": False}]
        assert differences(contents(tmp_path / "run"), contents(copy)) == []


def test_killed_while_its_folder_is_made_ready_it_goes_on(tmp_path, monkeypatch):
    from surefoot.control import loop

    train(configured("ppo on Gymnasium", tmp_path / "run"), quiet=True)
    plain = loop.write_json

    def write_and_die(path, value):
        plain(path, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_json", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run", total_steps=1024, quiet=True)
    assert not resume(tmp_path / "run", quiet=True)["interrupted"]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["slots"] == 1024


def test_every_seed_in_turn_gets_the_more_steps_though_the_first_is_stopped(tmp_path, monkeypatch):
    case, settings = "ppo on Gymnasium", {"seeds": 2, "learning_rate_schedule": "constant"}
    train(configured(case, tmp_path / "long", **settings), quiet=True)
    train(configured(case, tmp_path / "run", **settings, total_steps=256), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = resume(tmp_path / "run", total_steps=512, quiet=True)
    assert [r["interrupted"] for r in stopped["seeds"]] == [True]
    resume(tmp_path / "run", exact=True, quiet=True)
    assert differences(contents(tmp_path / "long"), contents(tmp_path / "run")) == []


def test_where_it_cannot_go_on_nothing_is_changed(tmp_path):
    run = tmp_path / "run"
    train(configured("ppo on JAX, two seeds in one program", run), quiet=True)
    for manifest in run.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    before = {path: path.read_bytes() for path in run.rglob("*.json*")}
    with pytest.raises(UsageError, match="is damaged"):
        resume(run, total_steps=1024, quiet=True)
    assert {path: path.read_bytes() for path in run.rglob("*.json*")} == before


def test_steps_are_not_taken_back_by_hand(tmp_path):
    train(configured("ppo on Gymnasium", tmp_path / "run"), quiet=True)
    copy = stopped_at(tmp_path / "run", 256, tmp_path / "copy")
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_steps": 128}))
    words = "config.json says total_steps 128, but the checkpoint at step 256 was written under 512; set it back"
    with pytest.raises(UsageError, match=words):
        resume(copy, quiet=True)
