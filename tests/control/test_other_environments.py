"""A run, or its policy, meets an environment that is not the one that it was trained in, under a name that is."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from surefoot.cli import main
from surefoot.control.environments.making import make_named
from surefoot.control.environments.select import select_environments
from surefoot.control.environments.workers.vector import WorkerSettings
from surefoot.control.evaluation import evaluate
from surefoot.control.training import resume, train
from surefoot.errors import EnvironmentFault, UsageError
from tests.control import identities
from tests.control.helpers import configure
from tests.control.identities import OTHERS, SHORT, saved_policy, short
from tests.control.test_environments import choose, needs_envpool

HERE = "tests.control.identities"


@pytest.fixture(scope="module")
def run_in_a_callable(tmp_path_factory):
    """A run that is named after Gymnasium's CartPole-v1, and was trained in one of seven steps."""
    run = tmp_path_factory.mktemp("callable") / "run"
    train(configure(**SHORT, checkpoint_every="8", out=str(run)), environment=short, quiet=True)
    return run


def test_a_callable_is_not_taken_for_its_name(run_in_a_callable, capsys):
    sentence = f"given as a callable, short; give environment=…, or --env {HERE}:short"
    assert json.loads((run_in_a_callable / "config.json").read_text())["environment"]["name"] == "short"
    for run in (evaluate, partial(resume, total_steps=32, quiet=True)):
        with pytest.raises(UsageError, match=sentence):
            run(run_in_a_callable)
    for command in ("evaluate", "export"):
        assert main([command, str(run_in_a_callable)]) == 2
        assert sentence in capsys.readouterr().err
    assert evaluate(run_in_a_callable, environment=short, episodes=4)["mean_length"] <= 7
    elsewhere = evaluate(run_in_a_callable, environment="CartPole-v1", episodes=4)
    assert "(time limit: 7 steps before, 500 steps now)" in elsewhere["notices"][0]


def test_a_run_goes_on_in_its_own_task_alone(run_in_a_callable, tmp_path):
    run = shutil.copytree(run_in_a_callable, tmp_path / "run")
    longer = lambda: gymnasium.make("CartPole-v1", max_episode_steps=8)  # noqa: E731
    with pytest.raises(
        UsageError, match=r"another task than the run was trained in \(time limit: 7 steps before, 8 steps now\)"
    ):
        resume(run, total_steps=32, environment=longer, quiet=True)
    assert resume(run, total_steps=32, environment=short, quiet=True)["total_steps"] > 16


def test_environments_that_are_made_again_are_the_same_task(tmp_path):
    made = itertools.count()
    grows = lambda: gymnasium.make("CartPole-v1", max_episode_steps=7 + next(made) // 2)  # noqa: E731
    with pytest.raises(EnvironmentFault, match=r"has become another task \(time limit: 7 steps before, 8 steps now\)"):
        train(configure(num_envs=2, total_steps=64, restart_every=32, out=str(tmp_path / "run")), environment=grows, quiet=True)


@pytest.mark.parametrize(("before", "now", "words"), [(*pair[:2], pair[3]) for pair in OTHERS[:3]])
def test_a_policy_is_not_let_into_other_spaces(before, now, words, tmp_path):
    run = saved_policy(tmp_path / "run", before())
    assert evaluate(run, environment=before, episodes=2)["mean_length"] == 4
    with pytest.raises(UsageError, match=f"other spaces than the policy was trained with .*{words}"):
        evaluate(run, environment=now, episodes=2)


def test_bounds_that_differ_by_rounding_are_the_same(tmp_path):
    run = saved_policy(tmp_path / "run", identities.Line(actions=Box(-0.1, 0.1, (2,), np.float32)))
    assert evaluate(run, environment=lambda: identities.Line(actions=Box(-0.1, 0.1, (2,), np.float64)), episodes=2)


@needs_envpool
def test_envpool_is_not_taken_for_a_name_alone(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"Blackjack-v1 has observations Tuple.*--backend envpool would step EnvPool's"):
        choose("Blackjack-v1")
    with pytest.raises(UsageError, match=r"HalfCheetah-v3 cannot be made: The mujoco v2 and v3 .* --backend envpool would"):
        choose("HalfCheetah-v3")
    run = saved_policy(tmp_path / "run", gymnasium.make("CartPole-v1"), env="Blackjack-v1", backend="envpool")
    with pytest.raises(
        UsageError, match=r"EnvPool's Blackjack-v1, so give --backend envpool: Blackjack-v1 has observations Tuple[^;]*$"
    ):
        evaluate(run, episodes=2)
    asked = choose("Blackjack-v1", "envpool")
    assert "give --backend envpool to surefoot evaluate and export too" in asked.notices[1]
    monkeypatch.setitem(gymnasium.registry, "CartPole-v1", replace(gymnasium.spec("CartPole-v1"), max_episode_steps=30))
    selection = choose("CartPole-v1")
    assert (selection.backend, selection.identity.max_episode_steps) == ("gymnasium", 30)
    assert "what is registered as CartPole-v1 is not what Gymnasium ships" in selection.notices[0]


def test_a_package_that_is_missing_and_an_error_that_is_a_sentence():
    def missing():
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    def moved():
        raise ImportError("They have been moved elsewhere.")

    with pytest.raises(UsageError, match=r"^it needs absent, which is not installed; install it with pip$"):
        make_named("it", missing)
    with pytest.raises(UsageError, match=r"^it cannot be made: They have been moved elsewhere$"):
        make_named("it", moved)


WORKERS = [None, WorkerSettings(1, 60.0, False)]


def test_workers_know_what_a_script_registered(monkeypatch):
    class Mine(identities.Line):
        pass

    with pytest.raises(UsageError, match=r"no environment Mine-v0: .*; if a script registered it, give --env module:Mine-v0"):
        choose("Mine-v0")
    monkeypatch.setitem(
        gymnasium.registry, "Mine-v0", gymnasium.envs.registration.EnvSpec("Mine-v0", Mine, max_episode_steps=3)
    )
    for workers in WORKERS:
        selection = select_environments("Mine-v0", backend="auto", num_envs=1, seed=0, workers=workers)
        assert selection.identity.max_episode_steps == 3
        selection.environments.reset(0)
        ends = [bool(selection.environments.step(np.zeros(1, np.int64))[3][0]) for _ in range(3)]
        assert ends == [False, False, True]
        selection.environments.close()


@pytest.mark.parametrize("workers", WORKERS, ids=["here", "workers"])
def test_copies_have_the_same_spaces(workers):
    make = partial(select_environments, backend="auto", num_envs=2, seed=0, workers=workers)
    selection = make(f"{HERE}:other_bounds")
    assert selection.environments.reset(0).shape == (2, 2)
    selection.environments.close()
    for name in ("other_sizes", "other_actions"):
        with pytest.raises(UsageError, match=f"environment 1 of {HERE}:{name} has the spaces .*; all must have the same"):
            make(f"{HERE}:{name}")
    with pytest.raises(UsageError, match="observations of no component"):
        make(f"{HERE}:shown_nothing")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "normalised",
            "keeps statistics in NormalizeReward and NormalizeObservation, .* every 16 steps, and returns are not the task's",
        ),
        (
            "centred",
            "keeps statistics in Centred, which are not saved with the policy and begin afresh in evaluation and every 16 steps;",
        ),
        ("normalised_together", "keeps statistics in NormalizeObservation, which"),
        ("Line", None),
    ],
)
def test_statistics_that_are_lost_are_mentioned(name, words, tmp_path, capsys):
    train(configure(**SHORT, env=f"{HERE}:{name}", restart_every=8, out=str(tmp_path / "run")), quiet=True)
    said = " ".join(capsys.readouterr().err.split())
    evaluated = evaluate(tmp_path / "run", episodes=1, environment=f"{HERE}:{name}", longest_episode=5)["notices"]
    if words is None:
        assert "statistics" not in said
        assert evaluated == []
    else:
        assert re.search(words, said)
        assert "keeps statistics in" in evaluated[0]
        assert "begin afresh in every evaluation" in evaluated[0]
