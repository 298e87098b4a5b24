"""Environments in processes of their own: the same numbers, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from surefoot.cli import main
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.making import Recipe, environment_name
from surefoot.control.environments.workers.failures import Failure, Recording
from surefoot.control.environments.workers.replay import replay
from surefoot.control.environments.workers.vector import WorkerEnvironments, WorkerSettings
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.iterations.host_loop import HostCollector
from surefoot.control.training import resume, train
from surefoot.errors import EnvironmentFault, RunError, UsageError
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import read_metrics
from tests.control.helpers import configure
from tests.durability.control import failing
from tests.durability.control.failing import FAILURES, FINE, WAYS
from tests.durability.control.runs import contents, differences

HERE = "tests.durability.control.failing"


def workers(environment, num_envs=3, count=2, *, limit=60.0, restart=False):
    settings = WorkerSettings(count, limit, restart)
    return WorkerEnvironments(
        Recipe(environment), name=environment_name(environment).rpartition(":")[2], num_envs=num_envs, settings=settings
    )


@pytest.mark.parametrize("kind", ["Echo", "EchoBox", "EchoChoices"])
def test_an_environment_sees_and_gives_what_it_would_in_this_process(kind):
    near = SyncVectorEnv([getattr(failing, kind)] * 3)
    far = workers(f"{HERE}:{kind}")
    try:
        assert (far.num_envs, far.single_action_space) == (3, near.single_action_space)
        near.action_space.seed(0)
        assert far.reset(seed=7)[0].tobytes() == near.reset(seed=7)[0].tobytes()
        for _ in range(30):
            actions = near.action_space.sample()
            for mine, theirs in zip(far.step(actions)[:4], near.step(actions)[:4], strict=True):
                assert (mine.dtype, mine.shape, mine.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    finally:
        far.close()


def test_a_run_with_workers_is_the_run_without_to_the_last_bit(tmp_path):
    options = {"env": f"{HERE}:Echo-v0", "backend": "gymnasium-sync", "checkpoint_every": "128", "restart_every": 128}
    options |= {"tensorboard": True}
    for name, count in (("near", 0), ("far", 3)):
        train(configure("ppo", **options, env_workers=count, out=str(tmp_path / name)), quiet=True)
    near, far = (contents(tmp_path / name) for name in ("near", "far"))
    assert len(near["./metrics"]) == 4
    assert differences(near, far) == []


def actions_of(*ways):
    return np.array([FINE if way is None else WAYS.index(way) for way in ways])


def test_every_failure_is_named_and_the_environment_made_anew(tmp_path):
    vector = workers(f"{HERE}:Ordered", limit=2.0, restart=True)
    seeds = set()
    try:
        vector.reset(seed=100)
        vector.step(actions_of(None, None, None))
        for way, what in FAILURES.items():
            dies = way in ("exit", "segfault", "hang")
            before = vector.step(actions_of(None, None, None))[0]
            observations, rewards, terminated, truncated, _ = vector.step(actions_of(None, way, None))
            # The first two share a process, which is lost as a whole.
            assert vector.begun_afresh.tolist() == [dies, True, False]
            assert rewards[1] == 0
            assert not terminated[1] | truncated[1]
            assert observations[1, 0] == 0
            assert observations[0, 0] == 0 if dies else observations[0, 0] - before[0, 0] == rewards[0]  # 0 where it is reset
            taken = vector.take_restarts()
            (failure,) = taken.failures
            assert (taken.begun, failure.index) == (1 + dies, 1)
            assert failure.what.startswith(what)
            assert (failure.traceback is not None) == (way in ("raise", "odd"))
            seeds.add(failure.recording.seed)
            # An episode has four steps, and the fifth slot of a life resets.
            where = "episode 1, step 3" if way == "raise" else "episode 2, step 1"
            assert failure.sentence == f"environment 1 of Ordered (seed {failure.recording.seed}, {where}) {failure.what}"
            for _ in range(4):
                vector.step(actions_of(None, None, None))
            assert vector.begun_afresh is None
            replay_again(failure, way, tmp_path)
        assert len(seeds) == len(FAILURES), "each life has a seed of its own"
    finally:
        vector.close()


def replay_again(failure, way, folder):
    command = failure.write(folder)
    path = folder / "failed" / "environment-1.json"
    assert command == f"to replay it: python -m surefoot.control.environments.workers.replay {path}"
    if way in ("exit", "segfault", "hang"):
        return
    said = []
    # Here its name is what `workers` calls it; in a run it is what `--env` says.
    again = replay(path, environment=failing.Ordered, say=said.append)
    assert again.failed
    step, episode = failure.recording.step, len(failure.recording.ends) + 1
    assert again.sentence == f"at step {step} of episode {episode} it {failure.what}"


def test_a_failure_stops_the_run_with_a_sentence_and_a_file_that_fails_again(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FAILING", "all:9:exit")
    run = tmp_path / "run"
    command = (
        f"train a2c --env {HERE}:Walk --num-envs 2 --rollout-length 4 --total-steps 64 --env-workers 1 --out {run} --quiet"
    )
    assert main(command.split()) == 1
    sentence = capfd.readouterr().err
    path = run / "failed" / "environment-0.json"
    record = json.loads(path.read_text())
    # Of nine steps of episodes of five, the ninth is the fourth of the second.
    assert (
        f"surefoot: environment 0 of {HERE}:Walk (seed {record['seed']}, episode 2, step 4) ended its process with exit"
        in sentence
    )
    assert f"to replay it: python -m surefoot.control.environments.workers.replay {path}; the state before it is in" in sentence
    assert "Traceback" not in sentence
    assert (len(record["actions"]), record["episodes_ended_after"], record["step"]) == (9, [5], 4)
    replayed = subprocess.run(
        [sys.executable, "-m", "surefoot.control.environments.workers.replay", str(path)], capture_output=True, text=True
    )
    assert (replayed.returncode, replayed.stdout.splitlines()[-1]) == (1, "the last one is next"), replayed.stderr
    monkeypatch.setenv("FAILING", "all:99")
    assert replay(path).sentence == "it did not fail"
    monkeypatch.setattr(failing.Walk, "length", 3)
    with pytest.raises(RunError, match="went another way: action 3 ended an episode"):
        replay(path)


def test_a_reset_that_fails_is_named_and_replayed(tmp_path):
    vector = workers(f"{HERE}:BadReset", num_envs=1, count=1)
    try:
        vector.reset(seed=11)
        said = r"seed 11, episode 3, its reset. returned an observation of shape .3,."
        with pytest.raises(EnvironmentFault, match=said) as fault:
            [vector.step(np.ones(1, int)) for _ in range(20)]
    finally:
        vector.close()
    fault.value.failure.write(tmp_path)
    again = replay(tmp_path / "failed" / "environment-0.json", environment=failing.BadReset)
    assert again.failed
    assert again.sentence.startswith("at the reset of episode 3 it returned an observation of shape (3,)")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_are_the_parents_to_answer(number):
    vector = workers(f"{HERE}:Ordered", num_envs=2, count=1)
    try:
        vector.reset(seed=1)
        vector.step(actions_of(None, None))
        os.kill(vector._workers[0]._process.pid, number)
        time.sleep(0.1)
        if number != signal.SIGKILL:
            assert vector.step(actions_of(None, None))[0][0, 0] == 2
        else:
            with pytest.raises(EnvironmentFault, match=r"was ended with its process by SIGKILL .which the system sends"):
                vector.step(actions_of(None, None))
    finally:
        vector.close()


SCRIPT = """
import os, sys, tests.durability.control.failing as failing
from surefoot.control.environments.making import Recipe
from surefoot.control.environments.workers.vector import WorkerEnvironments, WorkerSettings
print("once", flush=True)
class Mine(failing.{kind}):
    pass
vector = WorkerEnvironments(Recipe(Mine), name="Mine", num_envs=2, settings=WorkerSettings(2, 60.0, False))
vector.reset(seed=1)
vector.step(vector.action_space.sample())
print("stepped", flush=True)
"""


def script(tmp_path, kind):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(kind=kind))
    search = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": search}
    )


def test_a_script_needs_no_guard_and_is_not_run_again(tmp_path):
    out, _ = script(tmp_path, "Echo").communicate(timeout=60)
    assert out.split() == ["once", "stepped"]


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes are running")
def test_workers_and_what_they_started_end_with_a_parent_that_is_killed(tmp_path):
    parent = script(tmp_path, "Stuck")
    assert parent.stdout.readline() == "once\n"
    processes = [*parent.stdout.readline().split(), *parent.stdout.readline().split()]
    assert len(processes) == 4
    assert all(map(running, processes))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(running, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [process for process in processes if running(process)]
    for process in left:
        os.kill(int(process), signal.SIGKILL)
    assert not left


class Still:
    """Acts always alike, for a collector."""

    def __init__(self, spaces):
        self.spaces = spaces

    def center(self, observations, statistics):
        return observations

    def act(self, parameters, statistics, observations, noise):
        return np.zeros(len(observations), np.int32)


@pytest.mark.parametrize(("at", "rollout", "slot"), [(3, 0, 2), (5, 1, 0), (6, 1, 2)])
def test_an_episode_that_is_cut_ends_truncated_where_it_was_last_seen(at, rollout, slot, monkeypatch):
    """Rollouts of four; the fifth action ends an episode, and the slot after it only resets: action 6 comes in slot 6."""
    kind = "EndlessWalk" if at == 5 else "Walk"
    from surefoot.control.environments.host import environment_seed

    monkeypatch.setenv("FAILING", f"{environment_seed(0) + 1}:{at}")
    host = HostEnvironments(workers(f"{HERE}:{kind}", num_envs=2, count=1, restart=True), name=kind)
    try:
        collector = HostCollector(Still(host.spaces), host, length=4, seed=0)
        rollouts = [collector.collect({}, None)[0]]
        cuts = [collector.cut]
        for _ in range(rollout):
            rollouts.append(collector.collect({}, None)[0])
            cuts.append(collector.cut)
    finally:
        host.close()
    last, cut = rollouts[-1], cuts[-1]
    steps = last.observations[:, 1, 0].tolist()
    first_of_its_episode = at == 6
    expected = np.zeros((4, 2), bool)
    expected[slot, 1] = True
    assert cut.tolist() == expected.tolist()
    assert not last.valid[slot, 1]
    assert last.valid[:, 0].sum() == (3 if at == 6 else 4)
    assert (last.rewards[slot, 1], steps[slot + 1]) == (0, 0)
    assert last.observations[slot + 1, 1, 1] != last.observations[slot, 1, 1], "another seed"
    truncated = np.zeros((4, 2), bool)
    if slot > 0 and not first_of_its_episode:
        truncated[slot - 1, 1] = True  # and row `slot` of the observations is what was last seen
        assert steps[slot] == at - 1
    assert last.truncated.tolist() == truncated.tolist()
    assert not any(c.any() for c in cuts[:-1])


def test_a_cut_episode_does_not_finish():
    tracker = EpisodeTracker(2)
    rewards, valid = np.ones((6, 2)), np.ones((6, 2), bool)
    ended, cut = np.zeros((6, 2), bool), np.zeros((6, 2), bool)
    tracker.take(rewards, ended, valid, cut)
    # The first environment is cut in slot 2, seen as truncated in slot 1; the second in slot 0, and in slot 3 without an end.
    cut[2, 0] = cut[0, 1] = cut[3, 1] = True
    valid[2, 0] = valid[0, 1] = valid[3, 1] = False
    ended[1, 0] = ended[4, 0] = ended[5, 1] = True
    report = tracker.take(rewards, ended, valid, cut)
    assert list(tracker.recent) == [2.0, 2.0]
    assert report["episode/finished"] == 2
    assert report["episode/length_mean"] == 2.0
    assert tracker.state()["returns"].tolist() == [1.0, 0.0]


def test_restarts_are_counted_and_the_count_goes_on_after_a_resume(tmp_path, monkeypatch):
    """Both environments fail at the fifth step of every life, the first slot of a rollout of four."""
    monkeypatch.setenv("FAILING", "all:5")
    run = tmp_path / "run"
    options = {"num_envs": 2, "rollout_length": 4, "minibatch_size": 8, "epochs": 1, "discount": 0.5}
    options |= {"env_workers": 2, "on_worker_failure": "restart", "checkpoint_every": "16", "restart_every": 0}
    configuration = configure("ppo", env=f"{HERE}:EndlessWalk", total_steps=16, out=str(run), **options)
    result = train(configuration, quiet=True)
    assert result["environment_restarts"] == 2 == json.loads((run / "summary.json").read_text())["environment_restarts"]
    assert [line["env/restarts"] for line in read_metrics(run / "metrics.jsonl")] == [0.0, 2.0]
    # Three steps of a new life, discounted by a half: what was collected in the first one is forgotten.
    kept = Checkpoints(run).latest()[0]
    np.testing.assert_allclose(kept.arrays["iteration/learner/returns"], 1 + 0.5 + 0.25)
    assert kept.arrays["episodes/0/returns"].tolist() == [3.0, 3.0]
    assert kept.state["restarts"] == [2]
    assert result["mean_return"] is None
    result = resume(run, total_steps=32, quiet=True)
    assert result["environment_restarts"] == 4
    assert (run / "failed" / "environment-1.json").exists()


def test_an_environment_that_fails_over_and_over_stops_the_run(monkeypatch):
    monkeypatch.setenv("FAILING", "all:2")
    vector = workers(f"{HERE}:Walk", num_envs=1, count=1, restart=True)
    try:
        vector.reset(seed=0)
        for _ in range(19):
            vector.step(np.zeros(1, int))
        with pytest.raises(EnvironmentFault, match="no contact, for the 10th time without an end of an episode or 1,000 steps"):
            vector.step(np.zeros(1, int))
    finally:
        vector.close()


@pytest.mark.parametrize(
    ("environment", "error", "words"),
    [
        (f"{HERE}:unmade", UsageError, "unmade cannot be made: ValueError: no licence"),
        (f"{HERE}:killed_while_made", EnvironmentFault, "ended its process with exit status 9 while it was made"),
        (f"{HERE}:hung_while_made", EnvironmentFault, "did not answer within 1 s while it was made"),
        (f"{HERE}:no_environment", UsageError, "returned int, and worker processes step a gymnasium.Env alone"),
        (partial(failing.Echo, threading.Lock()), UsageError, "partial cannot be sent to a worker process .TypeError"),
        ("NoSuch-v0", UsageError, "there is no environment NoSuch-v0"),
    ],
)
def test_what_cannot_be_made_is_said(environment, error, words):
    with pytest.raises(error, match=words):
        workers(environment, num_envs=1, count=1, limit=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("CartPole-v1 --env-workers 9", "--env-workers must lie between 0 and --num-envs 8, but is 9"),
        ("CartPole-v1 --env-workers -1", "--env-workers must lie between"),
        ("CartPole-v1 --env-workers 2 --backend envpool", "--backend envpool steps no Python environments; leave it out"),
        ("CartPole-v1 --env-workers 2 --backend jax", "--backend jax steps no Python environments; leave it out"),
        ("phys2d/CartPole-v1 --env-workers 2", "phys2d/CartPole-v1 is a pure-JAX environment; leave it out"),
        (
            "CartPole-v1 --env-workers 2 --backend gymnasium",
            "own vectorised version, which is one process; take gymnasium-sync",
        ),
        ("CartPole-v1 --env-workers 2 --worker-timeout 0", "--worker-timeout must be a positive number of seconds, but is 0"),
        (
            "CartPole-v1 --env-workers 2 --worker-timeout inf",
            "--worker-timeout must be a positive number of seconds, but is inf",
        ),
        ("CartPole-v1 --worker-timeout 5", "--worker-timeout would do nothing: there are no --env-workers"),
        ("CartPole-v1 --on-worker-failure restart", "--on-worker-failure would do nothing: there are no --env-workers"),
        ("NoSuch-v1 --env-workers 2", "there is no environment NoSuch-v1"),
        ("nosuchmodule:Id-v1 --env-workers 2", "the module nosuchmodule cannot be imported"),
        (f"{HERE}:no_observation --env-workers 1 --num-envs 1", "no_observation"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words, capfd, tmp_path):
    if "--num-envs" not in options:
        options += " --num-envs 8"
    assert main(f"train ppo --minibatch-size 8 --env {options} --out {tmp_path / 'run'}".split()) == 2
    assert words in " ".join(capfd.readouterr().err.split())


def test_records_are_bounded_and_one_that_does_not_reach_back_is_not_replayed(tmp_path):
    recording = Recording(5, np.dtype(np.float32), limit=100)
    for number in range(40):
        recording.act(np.array([number, number + 0.1], np.float32))
    actions = recording.actions
    assert 40 - len(actions) == recording.dropped > 0
    assert len(actions) * 8 <= 100
    assert np.float32(actions).tolist() == [[n, np.float32(n + 0.1)] for n in range(recording.dropped, 40)]
    Failure("CartPole-v1", 2, "raised", None, recording).write(tmp_path)
    path = tmp_path / "failed" / "environment-2.json"
    with pytest.raises(UsageError, match=r"holds only the last .* cannot be replayed; a smaller --restart-every"):
        replay(path)
    path.write_text('{"environment": "CartPole-v1"}')
    with pytest.raises(UsageError, match="is not the record of a failed environment: found_by_name"):
        replay(path)


def test_an_id_that_a_module_registers_is_found():
    assert "Echo-v0" in gymnasium.registry
    del gymnasium.registry["Echo-v0"]
    sys.modules.pop(HERE)
    from surefoot.control.environments.select import select_environments

    selection = select_environments(f"{HERE}:Echo-v0", backend="auto", num_envs=2, seed=0)
    assert selection.backend == "gymnasium-sync"
    assert selection.environments.reset(0).shape == (2, 4)
