"""Runs of control that are resumed with another learning rate."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from surefoot.control.training import resume, train
from surefoot.errors import RunError, UsageError
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import read_metrics
from tests.durability.control.runs import configured, contents, differences, stop_after, stopped_at

CONSTANT = {"learning_rate_schedule": "constant"}


def rates(run):
    return [line["schedule/learning_rate"] for line in read_metrics(run / "metrics.jsonl")]


def as_if_begun_with(run, rate):
    """The run's last checkpoint and its settings as those of a run that always had this rate: what came before is the same."""
    path, checkpoints = run / "config.json", Checkpoints(run)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": rate}))
    last = checkpoints.latest()[0]
    state = last.state | {"configuration": last.state["configuration"] | {"learning_rate": rate}}
    checkpoints.forget_after(last.step - 1)
    checkpoints.write(replace(last, state=state))
    return run


@pytest.mark.parametrize("case", ["ppo on JAX", "trpo on Gymnasium"])
def test_from_there_on_it_is_a_run_of_the_new_rate(case, tmp_path, capsys):
    train(configured(case, tmp_path / "whole", **CONSTANT), quiet=True)
    one, other = (stopped_at(tmp_path / "whole", 256, tmp_path / name) for name in ("one", "other"))
    result = resume(one, learning_rate=np.float32(0.25), quiet=True)
    before = rates(tmp_path / "whole")[0]
    assert f"from step 256 on the learning rate is 0.25 in place of {before:g}" in capsys.readouterr().err
    resume(as_if_begun_with(other, 0.25), quiet=True)
    assert differences(contents(one), contents(other)) == []
    assert differences(contents(one), contents(tmp_path / "whole")) != []
    assert rates(one) == [before] * 4 + [0.25] * 4
    settings = json.loads((one / "config.json").read_text())
    assert settings["learning_rate"] == 0.25
    assert [change["step"] for change in settings["learning_rate_changes"]] == [256]
    assert result["resumed"] == [{"step": 256, "exact": False}]


def test_a_later_resume_keeps_it_also_where_nothing_was_kept_since(tmp_path, monkeypatch):
    case = "ppo on JAX"
    train(configured(case, tmp_path / "whole"), quiet=True)
    once, often = (stopped_at(tmp_path / "whole", 256, tmp_path / name) for name in ("once", "often"))
    resume(once, learning_rate=1e-3, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", lambda *arguments, **options: (_ for _ in ()).throw(RunError("killed")))
        with pytest.raises(RunError, match="killed"):
            resume(often, learning_rate=1e-3, quiet=True)
    assert Checkpoints(often).latest()[0].step == 256
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        resume(often, quiet=True)
    result = resume(often, quiet=True)
    assert result["resumed"][-1] == {"step": 384, "exact": True}
    names = differences(contents(once), contents(often))
    assert names == []
    left = 1 - np.arange(8) / 8
    np.testing.assert_allclose(rates(often), np.where(np.arange(8) < 4, 3e-4, 1e-3) * left, rtol=1e-6)
    # And back again from before it: the new rate holds from there.
    back = stopped_at(often, 128, tmp_path / "back")
    resume(back, quiet=True)
    np.testing.assert_allclose(rates(back), np.where(np.arange(8) < 2, 3e-4, 1e-3) * left, rtol=1e-6)
    assert [c["step"] for c in json.loads((back / "config.json").read_text())["learning_rate_changes"]] == [128]


def test_the_same_rate_changes_nothing(tmp_path):
    case = "ppo on JAX"
    train(configured(case, tmp_path / "whole"), quiet=True)
    copy = stopped_at(tmp_path / "whole", 256, tmp_path / "copy")
    assert resume(copy, learning_rate=3e-4, quiet=True)["resumed"] == [{"step": 256, "exact": True}]
    assert differences(contents(tmp_path / "whole"), contents(copy)) == []
    assert "learning_rate_changes" not in json.loads((copy / "config.json").read_text())


def test_several_seeds_in_one_program_change_together_and_seeds_in_turn_do_not(tmp_path):
    train(configured("ppo on JAX, two seeds in one program", tmp_path / "together"), quiet=True)
    copy = stopped_at(tmp_path / "together", 256, tmp_path / "copy")
    resume(copy, learning_rate=1e-3, quiet=True)
    for place in (copy, copy / "seed-0", copy / "seed-1"):
        assert json.loads((place / "config.json").read_text())["learning_rate"] == 1e-3
    train(configured("ppo on Gymnasium", tmp_path / "turns", seeds=2), quiet=True)
    with pytest.raises(UsageError, match="seeds that are trained in turn"):
        resume(tmp_path / "turns", learning_rate=1e-3, total_steps=1024, quiet=True)


def test_a_rate_that_cannot_be_used_is_a_sentence(tmp_path):
    train(configured("ppo on JAX", tmp_path / "run"), quiet=True)
    copy = stopped_at(tmp_path / "run", 256, tmp_path / "copy")
    for wrong, words in (
        (0.0, "--learning-rate must be positive"),
        ("1e-3", "learning_rate is '1e-3'"),
        (np.nan, "--learning-rate"),
    ):
        with pytest.raises(UsageError, match=words):
            resume(copy, learning_rate=wrong, quiet=True)
    with pytest.raises(UsageError, match="is finished"):
        resume(tmp_path / "run", learning_rate=1e-3, quiet=True)
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.5}))
    with pytest.raises(UsageError, match=r"config.json says learning_rate 0.5, .* written under 0.0003"):
        resume(copy, quiet=True)


def test_where_nothing_reads_it_it_is_refused(tmp_path):
    options = {"weight": "reward-to-go", "advantage_normalization": "none"}
    train(configured("trpo on JAX", tmp_path / "run", **options), quiet=True)
    with pytest.raises(UsageError, match="--learning-rate would do nothing: --weight reward-to-go trains no critic"):
        resume(stopped_at(tmp_path / "run", 256, tmp_path / "copy"), learning_rate=1e-3, quiet=True)


def test_an_update_that_is_not_finite_names_the_way_on(tmp_path):
    train(configured("ppo on JAX", tmp_path / "whole", max_gradient_norm=None), quiet=True)
    copy = stopped_at(tmp_path / "whole", 256, tmp_path / "copy")
    with pytest.raises(RunError, match="left numbers that are not finite") as caught:
        resume(copy, learning_rate=1e30, quiet=True)
    assert f"with a lower rate: surefoot resume {copy} --learning-rate 1e+29" in str(caught.value)
    assert not resume(copy, learning_rate=1e-4, quiet=True)["interrupted"]
