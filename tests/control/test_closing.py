"""The end of an environment's life: what closing raises is a notice, and what never returns is not waited for."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from surefoot.cli import main
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.select import select_environments
from surefoot.control.environments.workers.failures import Failure, Recording
from surefoot.control.environments.workers.replay import replay
from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import load_policy
from surefoot.control.recorded.record import record
from surefoot.control.training import resume, train
from surefoot.errors import EnvironmentFault, UsageError
from tests.control.helpers import configure, same
from tests.control.toys import Toy

HERE = "tests.control.test_closing"
GONE = "closing environment 0{} of {} raised RuntimeError: the simulator is gone already; no result is lost"


class Sound(Toy):
    """Ten steps of noise; closes without a word."""

    def step(self, action):
        self.steps += 1
        return self.np_random.normal(size=1).astype(np.float32), float(action), False, self.steps >= 10, {}


class Fragile(Sound):
    def close(self):
        raise RuntimeError("the simulator is\ngone already")


class Leaves(Sound):
    def close(self):
        raise SystemExit(3)


class Dies(Sound):
    def step(self, action):
        os._exit(3)


def trained(tmp_path, kind, *, seeds=1, quiet=True):
    options = {"env": f"{HERE}:{kind.__name__}", "checkpoint_every": "64", "restart_every": 128, "seeds": seeds}
    return train(configure(**options, out=str(tmp_path / kind.__name__)), quiet=quiet)


@pytest.mark.parametrize("kind", [Fragile, Leaves])
def test_a_run_whose_environments_cannot_be_closed_is_the_run(kind, tmp_path, capsys):
    """Across the places where environments begin afresh, and to its end: nothing is lost, and it is said once."""
    result, whole = trained(tmp_path, kind, quiet=False), trained(tmp_path, Sound)
    said = capsys.readouterr().err
    assert result["total_steps"] == whole["total_steps"]
    assert json.loads((tmp_path / kind.__name__ / "summary.json").read_text())["interrupted"] is False
    learnt = [load_policy(tmp_path / name.__name__).parameters for name in (kind, Sound)]
    assert same(*learnt)
    assert said.count(f"closing environment 0 and 3 more of {HERE}:{kind.__name__} raised") == 1, "of two closings, once"
    with pytest.raises(UsageError, match="is finished"):
        resume(tmp_path / kind.__name__)


def test_the_summary_is_written_before_anything_is_closed(tmp_path):
    found = []

    class Looks(Sound):
        def close(self):
            found.append((tmp_path / "run" / "summary.json").exists())

    train(configure(env="Looks", out=str(tmp_path / "run"), total_steps=64), environment=Looks, quiet=True)
    assert found == [True] * 4, "once each"


def test_seeds_in_turn_outlive_each_others_environments(tmp_path):
    assert [len(trained(tmp_path, kind, seeds=2)["seeds"]) for kind in (Sound, Fragile)] == [2, 2]


def test_evaluation_recording_export_and_replay_keep_their_results(tmp_path, capsys):
    trained(tmp_path, Fragile)
    run, name = str(tmp_path / "Fragile"), f"{HERE}:Fragile"
    result = evaluate(run, episodes=3, environment=name)
    assert (result["episodes"], result["mean_length"], len(result["notices"])) == (3, 10.0, 1)
    assert result["notices"][0].startswith(GONE.format(" and 2 more", name))
    assert main(["evaluate", run, "--env", name, "--episodes", "3"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert GONE.format(" and 2 more", name) in said[-2]
    assert "mean return" in said[-1]
    pytest.importorskip("minari")
    recorded = record(run, tmp_path / "data", episodes=2, environment=name)
    assert (recorded["episodes"], len(recorded["notices"])) == (2, 1)
    assert (tmp_path / "data").is_dir()
    pytest.importorskip("onnxruntime")
    from surefoot.control.onnx_export.export import export_policy

    exported = export_policy(load_policy(run), tmp_path / "policy.onnx", environment=name)
    assert exported["notices"][0].startswith(GONE.format("", name))
    assert (tmp_path / "policy.onnx").exists()


def test_a_replay_keeps_its_result(tmp_path):
    recording = Recording(3, np.dtype(np.int64), limit=1000)
    recording.act(1)
    Failure(f"{HERE}:Fragile", 0, "raised OSError", None, recording).write(tmp_path)
    said = []
    assert not replay(tmp_path / "failed" / "environment-0.json", say=said.append).failed
    assert said[-1].startswith(f"closing {HERE}:Fragile raised RuntimeError")


def test_one_that_raises_does_not_keep_the_others_open():
    closed = []

    class Tells(Sound):
        def close(self):
            closed.append(self)

    made = iter([Fragile, Tells, Fragile, Tells])
    environments = select_environments(lambda: next(made)(), backend="auto", num_envs=4, seed=0).environments
    assert [notice.split(" of ")[0] for notice in environments.close()] == ["closing environment 0 and 1 more"]
    assert len(set(closed)) == 2
    assert environments.close() == (), "closing twice does nothing"


def test_what_does_not_return_is_not_waited_for(monkeypatch):
    class Hangs(SyncVectorEnv):
        def close_extras(self, **options):
            threading.Event().wait(60)

    monkeypatch.setattr("surefoot.control.environments.closing.LIMIT", 0.2)
    environments, began = HostEnvironments(Hangs([Sound]), name="Hangs"), time.monotonic()
    assert environments.close()[0].startswith("closing Hangs took longer than 0.2 s and was not waited for")
    assert time.monotonic() - began < 10


def test_processes_of_a_vector_environment_that_failed_are_ended(monkeypatch):
    """Gymnasium's own waits for the answer of the process that is dead, for ever."""
    vector = AsyncVectorEnv([Sound, Sound, Dies], context="spawn")
    environments = HostEnvironments(vector, name="vector")
    environments.reset(0)
    with pytest.raises(EnvironmentFault, match="vector raised"):
        environments.step(np.zeros(3, np.int64))
    ends = threading.Thread(target=environments.close, daemon=True)  # where no clock could interrupt it
    ends.start()
    ends.join(30)
    assert not ends.is_alive()
    assert not any(process.is_alive() for process in vector.processes)


def test_spaces_that_are_refused_leave_nothing_open():
    closed = []

    class Tells(SyncVectorEnv):
        def close_extras(self, **options):
            closed.append(self)

    class Odd(Sound):
        observation_space = Toy.action_space

    with pytest.raises(UsageError):
        HostEnvironments(Tells([Odd]), name="Odd")
    assert len(closed) == 1
