"""The seed is of everything: also of what an environment draws from its spaces, and from the generators of a whole process."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from surefoot.control.environments.making import Recipe
from surefoot.control.environments.seeding import seed_environment, seed_shared, seed_vector, shared_generators_restored
from surefoot.control.environments.select import select_environments
from surefoot.control.environments.workers.replay import replay
from surefoot.control.environments.workers.vector import WorkerEnvironments, WorkerSettings
from surefoot.control.evaluation import evaluate
from surefoot.control.training import resume, train
from surefoot.errors import EnvironmentFault
from tests.control.helpers import configure
from tests.control.test_evaluation import saved
from tests.durability.control.failing import Draws
from tests.durability.control.runs import GRID, contents, differences, stopped_at

HERE = "tests.durability.control.failing"
SETTINGS = {"env": f"{HERE}:Draws", "num_envs": 4, "total_steps": 256, "keep_checkpoints": 100, "tensorboard": True, **GRID}


def draws():
    """Somewhere else in the sequences of this process's generators than before."""
    return [random.random(), np.random.normal()]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_is_the_same_run_and_so_is_one_that_is_resumed(workers, tmp_path):
    for name in ("first", "second"):
        train(configure("ppo", **SETTINGS, env_workers=workers, out=str(tmp_path / name)), quiet=True)
        draws()
    first = contents(tmp_path / "first")
    assert differences(first, contents(tmp_path / "second")) == []
    copy = stopped_at(tmp_path / "first", 128, tmp_path / "copy")
    assert resume(copy, quiet=True)["resumed"] == [{"step": 128, "exact": True}]
    assert differences(first, contents(copy)) == []


def seen(environments, steps=40):
    rows = [environments.reset(3, began=2)]
    for _ in range(steps):
        observations, rewards, *_ = environments.step(np.zeros(environments.num_envs, np.int64))
        rows += [observations, rewards]
    environments.close()
    return np.concatenate([np.ravel(row) for row in rows]).tolist()


def test_alone_in_a_process_it_draws_what_it_would_in_this_one():
    options = {"backend": "auto", "num_envs": 1, "seed": 3, "began": 2}
    with shared_generators_restored():
        near, again = (seen(select_environments(Draws, **options).environments) for _ in range(2))
        other = seen(select_environments(Draws, **(options | {"began": 1})).environments)
        far = seen(select_environments(f"{HERE}:Draws", **options, workers=WorkerSettings(1, 60.0, False)).environments)
    assert near == again == far
    assert near[0] != other[0], "each beginning has numbers of its own"
    assert near[4] != other[4]


def test_an_evaluation_is_repeated_and_the_users_generators_are_left_where_they_were(tmp_path):
    run = saved(tmp_path, weight=((0, 0),) * 4)
    policy_of = {"environment": lambda: gymnasium.wrappers.TransformAction(Draws(), int, gymnasium.spaces.Discrete(2))}
    random.seed(1)
    np.random.seed(1)
    before = [random.getstate(), np.random.get_state()[1].tolist()]
    first = evaluate(run, episodes=6, **policy_of)
    assert [random.getstate(), np.random.get_state()[1].tolist()] == before
    draws()
    assert evaluate(run, episodes=6, **policy_of) == first
    assert evaluate(run, episodes=6, seed=1, **policy_of) != first


def until_it_fails(vector):
    for _ in range(1000):
        vector.step(np.zeros(1, np.int64))


def test_a_failure_that_was_drawn_is_replayed(tmp_path):
    vector = WorkerEnvironments(
        Recipe(f"{HERE}:Gambles"), name=f"{HERE}:Gambles", num_envs=1, settings=WorkerSettings(1, 60.0, False), seed=8
    )
    try:
        vector.reset(seed=8)
        with pytest.raises(EnvironmentFault, match="lost everything") as caught:
            until_it_fails(vector)
    finally:
        vector.close()
    assert caught.value.failure.recording.steps > 3
    caught.value.failure.write(tmp_path)
    draws()
    assert replay(tmp_path / "failed" / "environment-0.json", say=lambda _: None).failed


def test_every_layers_spaces_are_seeded_and_no_two_generators_are_alike():
    def numbers(seed):
        inner = Draws()
        outer = gymnasium.wrappers.TransformAction(inner, int, gymnasium.spaces.Box(-1, 1, (1,)))
        vector = SyncVectorEnv([lambda: outer])
        with shared_generators_restored():
            seed_vector(vector, seed)
            one = [inner.action_space.sample(), vector.action_space.sample()[0], np.random.random(), random.random()]
            seed_environment(outer, seed)
            spaces = (inner.action_space, inner.observation_space, outer.action_space)
            inner.reset(seed=seed)
            generators = (*(space.np_random for space in spaces), inner.np_random)
            return one, [generator.random() for generator in generators], np.random.random(), random.random()

    assert numbers(5) == numbers(5)
    first, other = numbers(5), numbers(6)
    assert len({*first[1], *first[2:]}) == 6
    assert all(a != b for a, b in zip(first[1], other[1], strict=True))


def test_pytorch_is_seeded_and_restored_where_it_is_loaded(monkeypatch):
    calls = []
    fake = SimpleNamespace(
        manual_seed=lambda seed: calls.append(("seed", seed)),
        get_rng_state=lambda: "where it was",
        set_rng_state=lambda state: calls.append(("back", state)),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    with shared_generators_restored():
        seed_shared(1)
        seed_shared(1)
    assert calls[0] == calls[1]
    assert calls[0][0] == "seed"
    assert calls[2] == ("back", "where it was")
