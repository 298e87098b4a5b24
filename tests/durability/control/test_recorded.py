"""Training from recorded data, stopped and gone on with."""

from __future__ import annotations

import shutil

import pytest

from surefoot.control.recorded.record import record
from surefoot.control.training import resume, train
from surefoot.errors import UsageError
from surefoot.runs.checkpoints import Checkpoints
from tests.control.helpers import configure
from tests.durability.control.runs import contents, differences, stopped_at

recordings = pytest.importorskip("tests.control.recorded.recordings")

SETTINGS = {
    "num_envs": 8, "rollout_length": 1, "hidden_sizes": (8,), "episodes_per_update": 6, "tensorboard": True, "normalize_rewards": False,
    "checkpoint_every": "1", "keep_checkpoints": 100, "smallest_effective_share": 0.0, "backend": "auto",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    record(recordings.save_balancer(folder / "policy", 3.0), folder / "data-v0", episodes=12, seed=0)
    return folder / "data-v0"


def from_data(algorithm, data, out, **options):
    return configure(
        algorithm, env="CartPole-v1", from_data=str(data), out=str(out), **SETTINGS | {"total_steps": 20_000} | options
    )


@pytest.mark.parametrize("algorithm", ["reinforce", "a2c"])
def test_gone_on_with_it_is_the_run(algorithm, data, tmp_path):
    train(from_data(algorithm, data, tmp_path / "run"), quiet=True)
    steps = Checkpoints(tmp_path / "run").steps()
    assert len(steps) >= 3
    copy = stopped_at(tmp_path / "run", steps[1], tmp_path / "copy")
    assert resume(copy, quiet=True)["resumed"] == [{"step": steps[1], "exact": True}]
    assert differences(contents(tmp_path / "run"), contents(copy)) == []


def test_one_that_ended_early_says_so(data, tmp_path):
    settings = {"smallest_effective_share": 0.9, "learning_rate": 0.1, "total_steps": 10_000_000}
    result = train(from_data("reinforce", data, tmp_path / "run", **settings), quiet=True)
    assert result["ended_early"] is not None
    with pytest.raises(UsageError, match="ended early: the effective sample fell to"):
        resume(tmp_path / "run", quiet=True)
    last = Checkpoints(tmp_path / "run").steps()[-1]
    copy = stopped_at(tmp_path / "run", last, tmp_path / "copy")
    again = resume(copy, quiet=True)
    assert again["ended_early"] == result["ended_early"], "killed before its summary was written"
    assert differences(contents(tmp_path / "run"), contents(copy)) == []


def test_data_may_be_moved(data, tmp_path):
    shutil.copytree(data, tmp_path / "before" / "data-v0")
    train(from_data("reinforce", tmp_path / "before" / "data-v0", tmp_path / "run"), quiet=True)
    copy = stopped_at(tmp_path / "run", Checkpoints(tmp_path / "run").steps()[1], tmp_path / "copy")
    (tmp_path / "before").rename(tmp_path / "after")
    path = copy / "config.json"
    path.write_text(path.read_text().replace("before/data-v0", "after/data-v0"))
    resume(copy, quiet=True)
    assert differences(contents(tmp_path / "run"), contents(copy)) == []


def test_other_data_are_refused(data, tmp_path):
    mine = tmp_path / "data-v0"
    shutil.copytree(data, mine)
    train(from_data("reinforce", mine, tmp_path / "run"), quiet=True)
    copy = stopped_at(tmp_path / "run", Checkpoints(tmp_path / "run").steps()[0], tmp_path / "copy")
    shutil.rmtree(mine)
    record(recordings.save_balancer(tmp_path / "policy", 3.0), mine, episodes=12, seed=1)
    with pytest.raises(UsageError, match="the recorded data are not what they were when the run began"):
        resume(copy, quiet=True)
