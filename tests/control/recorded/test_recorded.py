"""Recorded data: what is written is what was played, and what another policy's data say is true or refused."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import Policy, load_policy
from surefoot.control.recorded.load import load_recorded
from surefoot.control.recorded.off_policy_evaluation import evaluate_from_data
from surefoot.control.recorded.record import record
from surefoot.errors import EnvironmentFault, UsageError
from tests.control import toys
from tests.control.recorded.recordings import save_balancer, save_policy, without_infos

minari = pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore:.*(is set to None|env_spec is None).*")


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """The same, twelve episodes."""
    folder = tmp_path_factory.mktemp("few")
    record(save_balancer(folder / "behavior", 1.0), folder / "data-v0", episodes=12)
    return folder


class Logged(gymnasium.Wrapper):
    """Writes down, independently of the recorder, what went through ``reset`` and ``step``."""

    def __init__(self, env, log):
        super().__init__(env)
        self.log = log

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.episode = {"observations": [observation], "actions": [], "rewards": [], "terminations": [], "truncations": []}
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        for name, value in zip(self.episode, (observation, action, reward, terminated, truncated), strict=True):
            self.episode[name].append(np.copy(value))
        if terminated or truncated:
            self.log.append(self.episode)
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", toys.SeveralChoices, toys.SeveralBits, toys.Walk])
def test_round_trip(tmp_path, env):
    """Minari itself reads what was played, and so does the loader, in the policy's units and with its own scores."""
    run, log = save_policy(tmp_path / "run", env), []
    make = partial(gymnasium.make, env) if isinstance(env, str) else env
    got = record(run, tmp_path / "data-v3", episodes=23, seed=4, environment=lambda: Logged(make(), log))
    dataset = minari.MinariDataset(tmp_path / "data-v3" / "data")
    assert (dataset.total_episodes, dataset.total_steps, dataset.id) == (23, got["steps"], "data-v3")
    data, policy = load_recorded(tmp_path / "data-v3", load_policy(run).spaces), load_policy(run)
    assert (data.episodes, data.steps, data.dataset, data.notices) == (23, got["steps"], "data-v3", ())
    for i, episode in enumerate(dataset.iterate_episodes()):
        steps = len(episode)
        same = [all(np.array_equal(getattr(episode, name), values) for name, values in e.items()) for e in log]
        assert any(same), "an episode that nobody played"
        log.pop(same.index(True))
        assert all(dataset.action_space.contains(action) for action in episode.actions)
        # In the policy's units: what it scores, and what the environment got of it.
        own = data.actions[:steps, i]
        np.testing.assert_array_equal(policy.spaces.action.for_environment(own), np.asarray(episode.actions))
        scores = policy.distribution(episode.observations[:-1]).log_probability(own)
        np.testing.assert_allclose(data.log_probabilities[:steps, i], scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(data.observations[: steps + 1, i], episode.observations)
        np.testing.assert_array_equal(data.rewards[:steps, i], episode.rewards)
        np.testing.assert_array_equal(data.terminated[:steps, i], episode.terminations)
        np.testing.assert_array_equal(data.truncated[:steps, i], episode.truncations)
        assert data.valid[:steps, i].all()
        assert not data.valid[steps:, i].any()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_recording_plays_what_evaluation_plays(tmp_path, env):
    run = save_policy(tmp_path / "run", env)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    got, expected = record(run, tmp_path / "data-v0", episodes=13, seed=7), evaluate(run, episodes=13, seed=7)
    assert {name: value for name, value in got.items() if name not in ("data", "dataset", "steps")} == {
        name: value for name, value in expected.items() if name != "deterministic"
    }
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data-v0", "run"], "nothing is left beside it"
    assert minari.MinariDataset(tmp_path / "data-v0" / "data").env_spec.id == env


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_final_observations_in_every_reset_mode(tmp_path, mode):
    run = save_policy(tmp_path / "run", toys.Walk)
    make = lambda num_envs: SyncVectorEnv(  # noqa: E731
        [partial(toys.Walk, 50.0 * i) for i in range(num_envs)], autoreset_mode=mode
    )
    record(run, tmp_path / "data-v0", episodes=8, environment=make)
    data = load_recorded(tmp_path / "data-v0")
    for i in range(8):
        steps = int(data.valid[:, i].sum())
        # The reward is the position reached, and the step count tells the final observation from a fresh start.
        np.testing.assert_allclose(data.observations[1 : steps + 1, i, 0], data.rewards[:steps, i], rtol=1e-6)
        assert data.observations[steps, i, 1] == steps
        assert (data.terminated[steps - 1, i], data.truncated[steps - 1, i]) == (steps == 3, steps == 4)


def test_missing_and_damaged_files(few, tmp_path, monkeypatch):
    run, data = few / "behavior", tmp_path / "copy"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def fresh() -> Path:
        import shutil

        shutil.rmtree(data, ignore_errors=True)
        return Path(shutil.copytree(few / "data-v0", data)) / "data"

    def complains(match, file=data):
        with pytest.raises(UsageError, match=match):
            evaluate_from_data(run, file)

    complains(
        "there is no data set nowhere: neither a folder, nor a name that Minari knows in .*, where there is none", "nowhere"
    )
    without = tmp_path / "minari" / "mine" / "known-v0" / "data"
    without.mkdir(parents=True)
    (without / "metadata.json").write_text("{}")
    complains("where there is mine/known-v0;", "nowhere")
    complains("holds no Minari data set: there is no metadata.json", tmp_path)
    complains("is a file, and a Minari data set is a folder", fresh() / "main_data.hdf5")
    folder = fresh()
    (folder / "main_data.hdf5").write_bytes((folder / "main_data.hdf5").read_bytes()[:5000])
    complains("cannot be read as a Minari data set")
    (fresh() / "main_data.hdf5").unlink()
    complains("cannot be read as a Minari data set")
    (fresh() / "metadata.json").write_text('{"data_format"')
    complains("metadata.json cannot be read as JSON")
    # Without spaces Minari would make the environment that the file names: any function that can be imported.
    path = fresh() / "metadata.json"
    metadata = json.loads(path.read_text())
    specification = json.loads(metadata["env_spec"]) | {"entry_point": "pathlib:Path.touch", "kwargs": {}}
    path.write_text(json.dumps({k: v for k, v in metadata.items() if k != "action_space"} | {"env_spec": specification}))
    complains("does not say action_space")
    path = fresh() / "metadata.json"
    path.write_text(json.dumps(metadata | {"data_format": "arrow"}))
    complains("cannot be read" if importlib.util.find_spec("pyarrow") else "stored as arrow, which needs another package")
    path.write_text(json.dumps(metadata | {"minari_version": "9.9.9"}))
    complains("9.9.9")
    assert evaluate_from_data(run, fresh())["episodes"] == 12, "the inner folder will do, too"


def test_data_that_cannot_be_used(few, tmp_path, monkeypatch):
    (tmp_path / "data-v0").symlink_to(few / "data-v0")
    run, number = few / "behavior", iter(range(100))

    def complains(match, change):
        name = without_infos(tmp_path, f"changed{next(number)}-v0", monkeypatch, keep=("log_probability",), change=change)
        with pytest.raises(UsageError, match=match):
            evaluate_from_data(run, name)

    def put(field, index, value):
        def change(buffer):
            values = np.array((buffer["infos"] if field == "log_probability" else buffer)[field])
            values[index] = value
            holder = buffer["infos"] if field == "log_probability" else buffer
            holder[field] = values
            return buffer

        return change

    complains("episode 0 has observations that are not finite at step 2", put("observations", (2, 1), np.nan))
    complains("episode 0 has rewards that are not finite at step 3", put("rewards", 3, np.inf))
    complains("episode 0 has log_probability that are not finite at step 1", put("log_probability", 1, -np.inf))
    complains("episode 0 goes on behind its end at step 4", put("terminations", 4, True))
    complains(r"has actions outside discrete \[2\]", put("actions", 0, 2))
    complains("observations have shape", lambda buffer: buffer | {"observations": buffer["observations"][:-1]})
    name = without_infos(tmp_path, "cut-v0", monkeypatch, change=put("terminations", -1, False))
    assert "12 of 12 episodes stop without an end" in load_recorded(name).notices[0]
    other = save_policy(tmp_path / "other", toys.ActionReward)
    with pytest.raises(UsageError, match="has observations of size 4, but the policy takes 1"):
        evaluate_from_data(other, few / "data-v0")
    acrobot = save_policy(tmp_path / "acrobot", "Acrobot-v1")
    policy = load_policy(acrobot)
    with pytest.raises(UsageError, match=r"has actions discrete \[2\], but the policy's are discrete \[3\]"):
        load_recorded(few / "data-v0", type(policy.spaces)(4, policy.spaces.action))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    spaces = {
        "observation_space": gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2)),
        "action_space": gymnasium.spaces.Discrete(2),
    }
    minari.create_dataset_from_buffers("dict-v0", [], **spaces)
    with pytest.raises(UsageError, match="only vectors are supported; record it again"):
        load_recorded("dict-v0")
    spaces["observation_space"] = gymnasium.spaces.Box(-1, 1, (4,))
    minari.create_dataset_from_buffers("empty-v0", [], **spaces)
    with pytest.raises(UsageError, match="empty-v0 holds no episodes"):
        evaluate_from_data(run, "empty-v0")


def test_data_of_another_environment_are_named(few, tmp_path):
    policy = load_policy(few / "behavior")
    Policy(policy.spaces, "tanh", policy.parameters, None, 10.0, {"env": "Other-v0"}).save(tmp_path)
    assert evaluate_from_data(tmp_path, few / "data-v0")["notices"][:1] == [
        "the data are of CartPole-v1, the policy was trained on Other-v0"
    ]


def test_recording_refuses_and_leaves_nothing_behind(tmp_path, monkeypatch):
    run = save_policy(tmp_path / "run", "CartPole-v1")
    with pytest.raises(UsageError, match="data of a deterministic policy cannot be reweighted"):
        record(run, tmp_path / "data", deterministic=True)
    with pytest.raises(UsageError, match="--episodes must be at least 1"):
        record(run, tmp_path / "data", episodes=0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="taken already exists"):
        record(run, tmp_path / "taken")
    faulty = save_policy(tmp_path / "faulty", toys.Faulty)
    with pytest.raises(EnvironmentFault, match="the motor is on fire"):
        record(faulty, tmp_path / "data", environment=toys.Faulty)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faulty", "run", "taken"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "minari" else find(name, *rest))
    for use in (lambda: record(run, tmp_path / "data"), lambda: evaluate_from_data(run, tmp_path / "data")):
        with pytest.raises(UsageError, match=r"needs minari; install it with: pip install 'surefoot\[data\]'"):
            use()


def test_relative_paths(few, tmp_path, monkeypatch):
    """As they are typed: from the current folder."""
    monkeypatch.chdir(tmp_path)
    record(few / "behavior", "here", episodes=2)
    assert load_recorded("here").episodes == 2
