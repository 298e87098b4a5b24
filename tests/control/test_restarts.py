"""Environments whose state cannot be saved begin afresh on a grid: made anew, otherwise seeded, their episodes cut."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from surefoot.control.environments.host import environment_seed
from surefoot.control.environments.select import select_environments
from surefoot.control.loop import make_iteration
from surefoot.control.training import train
from surefoot.errors import EnvironmentFault
from surefoot.runs.metrics import read_metrics
from tests.control import toys
from tests.control.helpers import configure, leaves, same

needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed")


class Diary(toys.Toy):
    """Seven steps of reward 1 an episode; writes down what happens to it."""

    pages: list[tuple[str, int | None]] = []  # noqa: RUF012 (of all, on purpose)

    def __init__(self):
        super().__init__()
        self.pages.append(("made", None))

    def reset(self, *, seed=None, options=None):
        self.pages.append(("reset", seed))
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        return self.observe(), 1.0, self.steps >= 7, False, {}

    def close(self):
        self.pages.append(("closed", None))


def diary(tmp_path, **options):
    Diary.pages.clear()
    settings = {"env": "Diary", "num_envs": 2, "rollout_length": 16, "total_steps": 160, "restart_every": 64, "seed": 9}
    train(configure(**settings | options, out=str(tmp_path / "run")), environment=Diary, quiet=True)
    return read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_they_are_made_anew_with_seeds_of_their_own(tmp_path):
    """Five iterations of 32 steps, a grid of two: beginnings with iterations 0, 2 and 4."""
    diary(tmp_path)
    assert Diary.pages.count(("made", None)) == 6
    assert Diary.pages.count(("closed", None)) == 6
    assert [seed for what, seed in Diary.pages if what == "reset" and seed is not None] == [
        environment_seed(9, began) + i for began in (0, 2, 4) for i in (0, 1)
    ]
    last_of_the_first = max(
        i for i, page in enumerate(Diary.pages[: Diary.pages.index(("closed", None)) + 2]) if page[0] == "closed"
    )
    assert Diary.pages[last_of_the_first + 1 : last_of_the_first + 3] == [("made", None)] * 2, "the old are closed before"


def test_an_episode_that_is_cut_is_none_of_the_statistics(tmp_path):
    """Seven steps and a reset in eight slots; rollouts of 20 cut the third episode after four steps."""
    cut = diary(tmp_path / "a", rollout_length=20, restart_every=40, total_steps=160, minibatch_size=20)
    lines = [(line["episode/finished"], line["episode/return_min"], line["episode/return_max"]) for line in cut]
    assert lines == [(4, 7, 7)] * 4, "two of each environment, and nothing of the third"
    whole = diary(tmp_path / "b", rollout_length=20, restart_every=0, total_steps=160, minibatch_size=20)
    assert sum(line["episode/finished"] for line in whole) == 20
    assert Diary.pages.count(("made", None)) == 2


def test_a_grid_beyond_the_run_changes_nothing(tmp_path):
    never, late = diary(tmp_path / "a", restart_every=0), diary(tmp_path / "b", restart_every=160)
    drop = lambda lines: [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]  # noqa: E731
    assert drop(never) == drop(late)


BACKENDS = ["gymnasium", "gymnasium-sync", pytest.param("envpool", marks=needs_envpool)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_the_learner_forgets_the_episodes_and_nothing_else(algorithm, backend):
    passes = {"minibatch_size": 32} if algorithm == "ppo" else {}
    configuration = configure(algorithm, total_steps=8192, rollout_length=8, keep_discount=True, **passes)
    source = select_environments("CartPole-v1", backend=backend, num_envs=4, seed=0)
    iteration, _ = make_iteration(configuration, source, [0])
    iteration.run(0)
    (before,) = iteration.learners()
    assert np.abs(before.returns).max() > 0
    assert np.abs(before.elapsed).max() > 0
    number = configuration.rollouts_per_report
    iteration.restart(number, lambda: source.again(number).environments)
    (after,) = iteration.learners()
    for name in ("returns", "elapsed", "collected"):
        assert not getattr(after, name).any(), name
    rest = [name for name in before._fields if name not in ("returns", "elapsed", "collected")]
    assert all(same(getattr(before, name), getattr(after, name)) for name in rest)
    outcome = iteration.run(number)
    assert np.isfinite(outcome.rewards).all()
    assert outcome.valid[0, 0].all(), "fresh episodes, not resets"
    assert not same(iteration.learners()[0].actor, after.actor)
    iteration.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_beginning_is_another(backend):
    """First observations and noise: of two seeds, two iterations, and twice the same."""
    configuration = configure(num_envs=4)

    def first_rollout(seed, number):
        source = select_environments("CartPole-v1", backend=backend, num_envs=4, seed=seed, began=number)
        iteration, _ = make_iteration(configuration, source, [seed], began=number)
        rollout, _ = iteration._rollout()
        iteration.close()
        return np.asarray(rollout.observations[0]), np.asarray(rollout.actions)

    a, b, c, again = (first_rollout(*key) for key in ((0, 0), (0, 4), (1, 0), (0, 4)))
    rows = np.concatenate([a[0], b[0], c[0]])
    assert len(np.unique(rows, axis=0)) == 12
    np.testing.assert_array_equal(b[0], again[0])
    np.testing.assert_array_equal(b[1], again[1])


def test_the_noise_is_another_too():
    """Without it the same policy would take the same actions in every stretch of the grid."""
    from surefoot.control.iterations.host_loop import HostCollector
    from surefoot.control.update.state import actor_of, initialize

    configuration = configure(env="Still", num_envs=4)
    actions = []
    for began in (0, 2, 2):
        environments = select_environments(toys.EndlessReward, backend="auto", num_envs=4, seed=0).environments
        learner = initialize(configuration, environments.spaces, 0)
        collector = HostCollector(actor_of(configuration, environments.spaces), environments, length=16, seed=0, began=began)
        rollout, _ = collector.collect(learner.actor.parameters, learner.observations)
        actions.append(rollout.actions)
    assert (actions[0] != actions[1]).mean() > 0.2
    np.testing.assert_array_equal(actions[1], actions[2])


def test_environments_that_cannot_be_made_again_are_a_sentence(tmp_path):
    made = []

    def make():
        if len(made) == 2:
            raise OSError("no more of them")
        made.append(toys.EndlessReward())
        return made[-1]

    configuration = configure(
        env="make", num_envs=2, rollout_length=16, total_steps=160, restart_every=64, out=str(tmp_path / "run")
    )
    with pytest.raises(
        EnvironmentFault, match=r"the environments could not begin afresh: make cannot be made: OSError: no more of them"
    ):
        train(configuration, environment=make, quiet=True)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2
    assert (tmp_path / "run" / "policy" / "policy.safetensors").exists()


def test_messages_count_on(tmp_path):
    """The fault comes five vector steps after the second beginning, with iteration 2 of 16 steps."""

    class Later(toys.Faulty):
        made = 0

        def __init__(self):
            Later.made += 1
            super().__init__(at=5 if Later.made > 2 else -1, what="observation")

    configuration = configure(
        env="Later", num_envs=2, rollout_length=16, total_steps=160, restart_every=64, out=str(tmp_path / "run")
    )
    with pytest.raises(EnvironmentFault, match="at vector step 37;"):
        train(configuration, environment=Later, quiet=True)


@needs_envpool
def test_a_pool_outlives_whoever_made_it():
    """The compiled program has a pool's address, and nothing else keeps it alive."""
    import gc

    configuration = configure("a2c", total_steps=8192, rollout_length=4)
    source = select_environments("CartPole-v1", backend="envpool", num_envs=4, seed=0)
    iteration, _ = make_iteration(configuration, source, [0])
    number = configuration.rollouts_per_report
    iteration.restart(number, lambda: source.again(number).environments)
    del source
    gc.collect()
    outcome = iteration.run(number)
    assert set(np.unique(outcome.rewards)) <= {0.0, 1.0}
    assert all(np.isfinite(x).all() for x in leaves(iteration.learners()[0]))
