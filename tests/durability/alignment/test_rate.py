"""Runs of alignment that are resumed with another learning rate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from surefoot.alignment.learning import offline
from surefoot.alignment.rlhf import online
from surefoot.alignment.training import align
from surefoot.errors import RunError, UsageError
from surefoot.runs.checkpoints import Checkpoints
from tests.durability.alignment.runs import assert_the_same, crashed, lines, material, resume, settings

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (offline, online):
        monkeypatch.setattr(module, "matrix_rate", lambda *arguments, **options: 1e9)


@pytest.fixture
def folder(tmp_path):
    return material(tmp_path)


def as_if_begun_with(run, rate):
    """The run's last checkpoint and its settings as those of a run that always had this rate: what came before is the same."""
    path, checkpoints = run / "config.json", Checkpoints(run)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": rate}))
    last = checkpoints.latest()[0]
    checkpoints.forget_after(last.step - 1)
    checkpoints.write(replace(last, state=last.state | {"settings": last.state["settings"] | {"learning_rate": rate}}))
    return run


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_from_there_on_it_is_a_run_of_the_new_rate(method, folder, tmp_path, monkeypatch, capsys):
    align(settings(method, folder, tmp_path / "whole"), quiet=True)
    stopped = crashed(settings(method, folder, tmp_path / "stopped"), 5, monkeypatch)
    other = shutil.copytree(stopped, tmp_path / "other")
    resume(stopped, learning_rate=np.float32(0.125))
    assert "from here on the learning rate is 0.125 in place of 0.01 (--learning-rate)" in capsys.readouterr().err
    resume(as_if_begun_with(other, 0.125))
    assert_the_same(stopped, other, cards=False)
    rates, planned = ([line["learning_rate"] for line in lines(run)] for run in (stopped, tmp_path / "whole"))
    times = np.where(np.arange(len(planned)) < 4, 1.0, 12.5)
    np.testing.assert_allclose(rates, np.asarray(planned) * times, rtol=1e-6)
    recorded = json.loads((stopped / "config.json").read_text())
    assert recorded["learning_rate"] == 0.125
    assert recorded["learning_rate_changes"] == [{"step": 4, "before": 0.01, "after": 0.125}]


def test_a_later_resume_keeps_it(folder, tmp_path, monkeypatch):
    stopped = crashed(settings("sft", folder, tmp_path / "once"), 5, monkeypatch)
    often = shutil.copytree(stopped, tmp_path / "often")
    resume(stopped, learning_rate=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", lambda *arguments, **options: (_ for _ in ()).throw(RunError("killed")))
        with pytest.raises(RunError, match="killed"):
            resume(often, learning_rate=0.05)
    assert Checkpoints(often).latest()[0].step == 4
    resume(often)
    assert_the_same(stopped, often, cards=False)


def test_the_same_rate_changes_nothing_and_a_wrong_one_is_a_sentence(folder, tmp_path, monkeypatch):
    align(settings("sft", folder, tmp_path / "whole"), quiet=True)
    stopped = crashed(settings("sft", folder, tmp_path / "stopped"), 5, monkeypatch)
    for wrong, words in ((0.0, "--learning-rate must be positive"), ("fast", "learning_rate is 'fast'")):
        with pytest.raises(UsageError, match=words):
            resume(stopped, learning_rate=wrong)
    resume(stopped, learning_rate=0.01)
    assert_the_same(tmp_path / "whole", stopped)
    with pytest.raises(UsageError, match="is finished"):
        resume(stopped, learning_rate=0.001)


@pytest.mark.parametrize("every", ["1", "2"])
def test_ten_updates_in_a_row_that_are_left_out_go_on_with_a_lower_rate(every, folder, tmp_path, monkeypatch, capsys):
    """Gradients of the fifth update on are not finite where the rate is high, as where a step has led astray."""
    plain = offline.OfflineRun.gradients

    def gradients(self, examples):
        if self.updates >= 4 and self.training.learning_rate > 0.005:
            raise offline.NotFinite("the gradient is not finite")
        return plain(self, examples)

    monkeypatch.setattr(offline.OfflineRun, "gradients", gradients)
    choices = {"training__on_nonfinite": "skip", "training__epochs": 9, "training__checkpoint_every": every}
    with pytest.raises(RunError, match="10 updates in a row") as caught:
        align(settings("sft", folder, tmp_path / "run", **choices), quiet=True)
    assert str(caught.value).endswith(f"a lower rate may help: surefoot resume {tmp_path / 'run'} --learning-rate 0.001")
    with pytest.raises(RunError, match="10 updates in a row"):
        resume(tmp_path / "run")
    capsys.readouterr()
    result = resume(tmp_path / "run", learning_rate=0.001)
    said = capsys.readouterr().err
    assert "9 updates were left out in a row; it goes on from before them" in said
    assert not result["interrupted"]
    assert [line["skipped"] for line in lines(tmp_path / "run")] == [0] * 27
    assert json.loads((tmp_path / "run" / "config.json").read_text())["learning_rate_changes"][0]["step"] == 4


def test_where_only_such_checkpoints_are_left_it_counts_anew(folder, tmp_path, monkeypatch):
    """The tenth in a row would end it at once."""
    plain = offline.OfflineRun.gradients

    def gradients(self, examples):
        if self.training.learning_rate > 0.005 or self.updates == 9:
            raise offline.NotFinite("the gradient is not finite")
        return plain(self, examples)

    monkeypatch.setattr(offline.OfflineRun, "gradients", gradients)
    choices = {"training__on_nonfinite": "skip", "training__epochs": 9, "training__keep_checkpoints": 1}
    with pytest.raises(RunError, match="10 updates in a row"):
        align(settings("sft", folder, tmp_path / "run", **choices), quiet=True)
    assert Checkpoints(tmp_path / "run").steps() == [9]
    result = resume(tmp_path / "run", learning_rate=0.001)
    assert not result["interrupted"]
    assert lines(tmp_path / "run")[-1]["skipped"] == 10
