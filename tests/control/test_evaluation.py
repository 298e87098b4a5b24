"""Whole episodes of a saved policy: which ones, in what, and what happens where one does not end."""

from __future__ import annotations

import json
import os

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.cli import main
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.evaluation import evaluate
from surefoot.control.playing import Request, play
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import ActionSpace, Spaces
from surefoot.control.recorded.record import record
from surefoot.errors import EnvironmentFault, UsageError
from tests.control.toys import Toy

HERE = "tests.control.test_evaluation"


def saved(folder, *, env="CartPole-v1", weight=((0, 0),), **settings):
    """A run's folder with a linear policy, and of its configuration what is given."""
    spaces = Spaces(len(weight), ActionSpace("discrete", (2,), start=(0,)))
    parameters = {"layer_0/weight": np.array(weight, np.float32), "layer_0/bias": np.zeros(2, np.float32)}
    description = {"algorithm": "ppo", "env": env, "backend": "gymnasium", "steps": 0}
    Policy(spaces, "tanh", parameters, None, 10.0, description).save(folder)
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


class Sleeper(Toy):
    """Lives on for ever, for a reward of 1."""

    def step(self, action):
        self.steps += 1
        return self.observe(), 1.0, False, False, {}


class Uneven(Toy):
    """Ends after so many steps as its seed says, which it shows beside the steps."""

    observation_space = gymnasium.spaces.Box(0, 100, (2,), np.float32)

    def begin(self):
        self.length = int(self.np_random.integers(1, 20))

    def observe(self):
        return np.array([self.length, self.steps], np.float32)

    def step(self, action):
        self.steps += 1
        return self.observe(), float(self.steps), self.steps >= self.length, False, {}


class Alone(Sleeper):
    """A simulator of which there can be one at a time."""

    running = 0

    def __init__(self):
        super().__init__()
        assert not Alone.running, "port 9999 is in use"
        Alone.running = 1

    def close(self):
        Alone.running = 0


class Crashes(Toy):
    def step(self, action):
        os._exit(3)


class Endless:
    """As Sleeper, in JAX."""

    observation_space, action_space, max_episode_steps = Toy.observation_space, Toy.action_space, None

    def initial(self, key):
        return jnp.zeros(()), jnp.zeros(1)

    def transition(self, state, action, key):
        return state + 1, jnp.zeros(1), jnp.float32(1), jnp.bool_(False)


@pytest.mark.parametrize("kind", [Sleeper, Endless])
def test_episodes_that_never_end_are_cut(kind, tmp_path):
    result = evaluate(saved(tmp_path), episodes=5, environment=kind, num_envs=2, longest_episode=7)
    assert (result["episodes"], result["cut_episodes"]) == (5, 5)
    assert (result["mean_return"], result["std_return"], result["mean_length"]) == (7.0, 0.0, 7.0)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_environment_plays_its_share_whichever_episodes_are_cut(mode):
    """Counted by hand from what the environment shows: length, and steps so far."""
    environments = HostEnvironments(SyncVectorEnv([Uneven] * 3, autoreset_mode=mode), name="Uneven")
    request, seen, episodes = Request(31, longest_episode=10), np.zeros((3, 2)), [[] for _ in range(3)]

    def act(observations):
        seen[:] = observations
        return np.zeros(3, np.int64)

    for step in play(act, environments, request):
        for i in np.flatnonzero(step.ended):
            length, steps = seen[i]
            assert step.next_observations[i].tolist() == [length, steps + 1], "of the episode that ended, not of the next"
            assert step.cut[i] == (length > 10)
            assert step.truncated[i] == step.cut[i]
            assert steps + 1 == min(length, 10)
            episodes[i].append(length)
    assert [len(own) for own in episodes] == [11, 10, 10]
    assert sum(length > 10 for own in episodes for length in own) > 5
    assert len({tuple(own[:10]) for own in episodes}) == 3
    assert len(set(episodes[0])) > 3, "after a cut other episodes come, not the same once more"


GOLDEN = {
    "gymnasium-sync": (44.916666666666664, 23.403911116639364),
    "gymnasium": (37.0, 18.98244803320513),
    "jax": (36.25, 16.7488),
}
"""Computed before episodes were cut, or environments counted by the run."""


@pytest.mark.parametrize("backend", GOLDEN)
def test_the_same_seed_and_number_of_environments_mean_the_same_episodes_as_ever(backend, tmp_path):
    run = saved(tmp_path, weight=((0, 0.5), (0, 0.5), (0, 3), (0, 1)))
    for options in ({}, {"longest_episode": None}, {"num_envs": 10}):
        result = evaluate(run, episodes=12, seed=3, backend=backend, **options)
        assert (result["mean_return"], result["std_return"]) == pytest.approx(GOLDEN[backend], rel=1e-5)


@pytest.mark.parametrize(("own", "asked", "made"), [(4, None, 4), (64, None, 10), (None, None, 10), (4, 6, 6), ("4", None, 10)])
def test_as_many_environments_as_the_run_had_or_as_are_asked_for(own, asked, made, tmp_path):
    run = saved(tmp_path, num_envs=own)
    environments = []

    def make():
        environments.append(Sleeper())
        return environments[-1]

    evaluate(run, episodes=12, num_envs=asked, environment=make, longest_episode=2)
    assert len(environments) == made


def test_what_can_exist_only_once_is_evaluated(tmp_path):
    run = saved(tmp_path, num_envs=1)
    assert evaluate(run, episodes=3, environment=Alone, longest_episode=2)["episodes"] == 3


def test_evaluation_in_worker_processes_is_the_same(tmp_path):
    run = saved(tmp_path, weight=((0.1, 0), (0, 0.1)))
    options = {"episodes": 7, "num_envs": 3, "longest_episode": 10, "environment": f"{HERE}:Uneven"}
    near, far = evaluate(run, **options), evaluate(run, **options, env_workers=2)
    assert far.pop("backend") == near.pop("backend") == "gymnasium-sync"
    assert near == far
    assert near["cut_episodes"] > 0


def test_an_environment_that_crashes_in_a_worker_is_a_sentence(tmp_path, capsys):
    run = str(saved(tmp_path))
    arguments = ["evaluate", run, "--env", f"{HERE}:Crashes", "--episodes", "2", "--env-workers", "1"]
    assert main(arguments) == 1
    assert "ended its process with exit status 3" in capsys.readouterr().err
    with pytest.raises(EnvironmentFault, match="exit status 3"):
        evaluate(run, environment=f"{HERE}:Crashes", episodes=1, env_workers=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--num-envs 0", "--num-envs must lie between 1 and --episodes 5, but is 0"),
        ("--num-envs 6", "--num-envs must lie between 1 and --episodes 5, but is 6"),
        ("--longest-episode 0", "--longest-episode must be at least 1, or none, but is 0"),
        ("--num-envs 2 --env-workers 3", "--env-workers must lie between 0 and --num-envs 2, but is 3"),
        ("--env-workers 1 --backend jax", "--env-workers would do nothing: --backend jax"),
        ("--worker-timeout 3", "--worker-timeout does nothing without --env-workers"),
        ("--env-workers 1 --worker-timeout 0", "--worker-timeout must be a positive number of seconds"),
        ("--num-envs 2 --from-data x", "--num-envs does nothing with --from-data"),
        ("--longest-episode 2 --data x", "--longest-episode does nothing with --data"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, words, tmp_path, capsys):
    episodes = [] if "data" in options else ["--episodes", "5"]
    assert main(["evaluate", str(saved(tmp_path)), *episodes, *options.split()]) == 2
    assert words in capsys.readouterr().err


def test_what_was_cut_is_said_and_progress_too_unless_quiet(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("surefoot.control.playing.SILENT", 0.0)
    command = ["evaluate", str(saved(tmp_path)), "--env", f"{HERE}:Sleeper", "--episodes", "3", "--longest-episode", "9"]
    assert main([*command, "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["cut_episodes"] == 3
    assert "evaluating tests.control.test_evaluation:Sleeper  0/3 episodes  3 steps so far" in said
    assert "3/3 episodes  27 steps so far" in said
    assert "over 3 episodes, 3 of them cut after 9 steps (--longest-episode), with what they had returned by then" in said
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_recorded_episodes_that_were_cut_are_truncated(tmp_path):
    minari = pytest.importorskip("minari")
    result = record(saved(tmp_path / "run"), tmp_path / "cut-v0", episodes=2, environment=Sleeper, longest_episode=4)
    assert (result["cut_episodes"], result["steps"]) == (2, 8)
    data = minari.MinariDataset(tmp_path / "cut-v0" / "data")
    assert [episode.truncations.tolist() for episode in data] == [[False] * 3 + [True]] * 2


class Settles(Toy):
    """The first episode ends at once, the second never."""

    begun = 0

    def begin(self):
        self.begun += 1

    def step(self, action):
        return self.observe(), 1.0, self.begun == 1, False, {}


def test_a_mean_return_of_episodes_long_ago_says_so(tmp_path, capsys):
    options = f"--env {HERE}:Settles --num-envs 2 --rollout-length 16 --minibatch-size 16 --hidden-sizes 4 --total-steps 128"
    assert main(["train", "ppo", *options.split(), "--out", str(tmp_path / "run"), "--json", "--no-tensorboard"]) == 0
    out, said = capsys.readouterr()
    assert (
        "done: mean return 1.0 over the last training episodes (none ended in the last report; those going on are longer than all"
        " that ended together, 124 steps to 2), "
    ) in said
    result = json.loads(out)
    assert (result["last_finished_episodes"], result["finished_steps"], result["running_steps"]) == (0, 2, 124)


def test_what_an_episode_tracker_counts_survives_a_checkpoint():
    tracker, again = EpisodeTracker(2), EpisodeTracker(2)
    ended = np.array([[True, False], [False, False]])
    tracker.take(np.ones((2, 2)), ended, np.ones((2, 2), bool))
    again.restore(tracker.state())
    assert (again.last_finished, again.finished_steps, again.running_steps) == (1, 1, 3)
    old = {name: value for name, value in tracker.state().items() if name != "counts"}
    again.restore(old)
    assert (again.last_finished, again.finished_steps, again.running_steps) == (None, 0, 3)
    with pytest.raises(UsageError, match="does not fit this run"):
        again.restore(old | {"counts": np.zeros(3)})
