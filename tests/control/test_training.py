"""Whole runs: learning, repeatability, what is logged and kept, and what happens when something goes wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from surefoot.control.configuration import PassesConfiguration, RunConfiguration
from surefoot.control.environments.select import select_environments
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.evaluation import evaluate
from surefoot.control.loop import make_iteration
from surefoot.control.policies.policy import load_policy
from surefoot.control.training import train
from surefoot.errors import EnvironmentFault, RunError, UsageError
from surefoot.runs.metrics import read_metrics
from tests.control import toys
from tests.control.helpers import configure, same

BACKENDS = ["gymnasium-sync", "gymnasium", "jax"] + (["envpool"] if importlib.util.find_spec("envpool") else [])
CARTPOLE = {
    "num_envs": 8, "rollout_length": 32, "minibatch_size": 256, "epochs": 20, "learning_rate": 1e-3, "hidden_sizes": (64, 64),
    "clip_range_schedule": "linear", "discount": 0.98, "trace_decay": 0.8, "normalize_observations": False,
    "normalize_rewards": False, "total_steps": 100_000,
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_learns_cartpole(backend, tmp_path):
    result = train(configure(**CARTPOLE, backend=backend, out=str(tmp_path / "run")), quiet=True)
    assert result["backend"] == backend
    evaluation = evaluate(result["run"], episodes=20)
    assert evaluation["mean_return"] >= 475, "untrained it is about 20"


def digest(run):
    return hashlib.sha256((run / "policy" / "policy.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_seed_same_bits(backend, tmp_path):
    runs = [tmp_path / name for name in "abc"]
    for run, seed in zip(runs, (3, 3, 4), strict=True):
        train(configure(backend=backend, out=str(run), seed=seed, total_steps=512), quiet=True)
    a, b, c = (load_policy(run).parameters for run in runs)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not all(np.array_equal(a[k], c[k]) for k in a)
    drop = lambda line: {k: v for k, v in line.items() if not k.startswith("speed/")}  # noqa: E731
    assert [drop(m) for m in read_metrics(runs[0] / "metrics.jsonl")] == [
        drop(m) for m in read_metrics(runs[1] / "metrics.jsonl")
    ]


def test_seeds_together_are_the_seeds_alone(tmp_path):
    """Three seeds in one compiled program train the policies that each would train by itself, up to rounding."""
    options = {"backend": "jax", "total_steps": 512, "learning_rate": 1e-3}
    together = train(configure(**options, out=str(tmp_path / "all"), seeds=3, seed=5), quiet=True)
    assert [r["run"] for r in together["seeds"]] == [str(tmp_path / "all" / f"seed-{i}") for i in (5, 6, 7)]
    assert together["summary"]["seeds"] == 3
    assert together["summary"]["low"] <= together["summary"]["interquartile_mean"] <= together["summary"]["high"]
    train(configure(**options, out=str(tmp_path / "one"), seed=6), quiet=True)
    alone, member = load_policy(tmp_path / "one"), load_policy(tmp_path / "all" / "seed-6")
    for name, value in alone.parameters.items():
        np.testing.assert_allclose(member.parameters[name], value, atol=1e-4)


def test_seeds_in_turn(tmp_path):
    result = train(configure(backend="gymnasium", out=str(tmp_path / "all"), seeds=2, total_steps=128), quiet=True)
    train(configure(backend="gymnasium", out=str(tmp_path / "one"), seed=1, total_steps=128), quiet=True)
    assert digest(tmp_path / "one") == digest(tmp_path / "all" / "seed-1")
    assert len(result["seeds"]) == 2
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["summary"]["seeds"] == 2


def test_what_is_logged(tmp_path):
    result = train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=640, tensorboard=True), quiet=True)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 10
    groups = {
        "episode": ("return_mean", "length_mean"),
        "policy": ("objective", "entropy", "approximate_kl", "clip_fraction", "gradient_norm"),
        "critic": ("loss", "explained_variance", "gradient_norm"),
        "schedule": ("learning_rate", "clip_range"),
        "speed": [f"{part}steps_per_second" for part in ("", "environment_", "inference_", "update_")],
    }
    wanted = [f"{group}/{name}" for group, names in groups.items() for name in names]
    for name in wanted:
        assert any(line[name] is not None for line in lines), name
    assert lines[-1]["slots"] == 640
    finished = sum(int(line["episode/finished"]) for line in lines)
    # Every finished episode but those that ended with the very last slot was followed by a slot that only reset.
    assert 640 - finished <= result["total_steps"] == lines[-1]["steps"] <= 640 - finished + 4

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    curve = events.Scalars("policy/entropy")
    assert [e.step for e in curve] == [line["steps"] for line in lines]
    np.testing.assert_allclose([e.value for e in curve], [line["policy/entropy"] for line in lines], rtol=1e-6)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["minibatch_size"] == 16


def test_no_tensorboard_means_none(tmp_path):
    train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=64), quiet=True)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_episode_tracker_against_a_loop():
    rng, envs = np.random.default_rng(0), 3
    tracker, returns, lengths, recent = EpisodeTracker(envs), np.zeros(envs), np.zeros(envs, int), []
    for _ in range(20):
        rewards, ended, valid = rng.normal(size=(20, envs)), rng.random((20, envs)) < 0.15, rng.random((20, envs)) < 0.8
        done = []
        for t in range(20):
            for e in np.flatnonzero(valid[t]):
                returns[e] += rewards[t, e]
                lengths[e] += 1
                if ended[t, e]:
                    done.append((returns[e], lengths[e]))
                    returns[e], lengths[e] = 0, 0
        got = tracker.take(rewards, ended, valid)
        assert got["episode/finished"] == len(done)
        recent += [r for r, _ in done]
        np.testing.assert_allclose(tracker.recent, recent[-100:])
        np.testing.assert_allclose(got["episode/return_mean"], np.mean([r for r, _ in done]))
        np.testing.assert_allclose(got["episode/length_mean"], np.mean([n for _, n in done]))


@pytest.mark.parametrize("what", ["raise", "observation", "reward"])
def test_a_fault_keeps_what_was_learnt(what, tmp_path):
    """The third rollout of 16 steps fails: the policy that is kept is the one after two, bit for bit."""
    configuration = configure(env="Faulty", out=str(tmp_path / "run"), total_steps=640, learning_rate_schedule="constant")
    with pytest.raises(EnvironmentFault, match=r"of Faulty .* step 4[03]"):
        train(configuration, environment=named_faulty(what), quiet=True)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2
    shorter = replace(configuration, run=replace(configuration.run, out=str(tmp_path / "shorter"), total_steps=128))
    train(shorter, environment=named_faulty("never"), quiet=True)
    assert digest(tmp_path / "run") == digest(tmp_path / "shorter")


def named_faulty(what):
    def make():
        return toys.Faulty(at=40, what=what)

    make.__name__ = "Faulty"
    return make


def test_compiled_rollouts_are_checked_too(tmp_path):
    import jax.numpy as jnp

    from surefoot.control.environments.functional import make_functional

    environment = make_functional("CartPole-v1")

    class Breaks:
        observation_space, action_space, max_episode_steps = environment.observation_space, environment.action_space, 30
        initial = staticmethod(environment.initial)

        def transition(self, state, action, key):
            state, observation, reward, terminated = environment.transition(state, action, key)
            return state, observation.at[2].set(jnp.where(observation[2] > 0.1, jnp.nan, observation[2])), reward, terminated

    def broken():
        return Breaks()

    configuration = configure(env="broken", out=str(tmp_path / "run"), total_steps=6400)
    with pytest.raises(EnvironmentFault, match=r"of broken returned an observation of nan in component 2 at vector step \d+"):
        train(configuration, environment=broken, quiet=True)
    assert all(np.isfinite(v).all() for v in load_policy(tmp_path / "run").parameters.values())


def test_folder_with_a_run_is_refused(tmp_path):
    train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=64), quiet=True)
    with pytest.raises(UsageError, match="already holds a run"):
        train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=64), quiet=True)


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """Metrics on a device that is always full: what Linux offers for the purpose."""
    monkeypatch.setattr("surefoot.runs.metrics.METRICS_FILE", "/dev/full")
    with pytest.raises(RunError, match="cannot write /dev/full: No space left on device"):
        train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=128), quiet=True)
    assert load_policy(tmp_path / "run").spaces.observation_size == 4


def test_any_failure_keeps_the_policy(tmp_path, monkeypatch):
    """Not only the errors that surefoot knows: whatever ends the loop, what was learnt is saved."""

    def fail(self, *arguments, **options):
        raise MemoryError

    monkeypatch.setattr("surefoot.control.loop.MetricsWriter.write", fail)
    with pytest.raises(MemoryError):
        train(configure(backend="gymnasium", out=str(tmp_path / "run"), total_steps=128), quiet=True)
    assert load_policy(tmp_path / "run").description["env"] == "CartPole-v1"


@pytest.mark.parametrize("backend", ["gymnasium", "jax"])
def test_divergence_stops_the_run_with_the_last_finite_policy(backend, tmp_path):
    configuration = configure(
        backend=backend, learning_rate=1e38, adam_epsilon=1e-30, out=str(tmp_path / "run"), total_steps=640
    )
    with pytest.raises(
        RunError, match=r"the update of iteration \d+ left numbers that are not finite \(.*\); lower --learning-rate"
    ):
        train(configuration, quiet=True)
    assert all(np.isfinite(v).all() for v in load_policy(tmp_path / "run").parameters.values())


def test_finished_seeds_outlive_a_failed_one(tmp_path):
    made = []

    def make():
        made.append(toys.Faulty(at=20 if len(made) >= 4 else -1))
        return made[-1]

    configuration = configure(env="make", seeds=3, out=str(tmp_path / "run"), total_steps=128)
    with pytest.raises(EnvironmentFault):
        train(configuration, environment=make, quiet=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["seeds"]) == 1
    assert summary["interrupted"]


def test_a_run_that_never_began_does_not_block_its_folder(tmp_path):
    class Broken(toys.Toy):
        def reset(self, **options):
            raise OSError("no display")

    configuration = configure(env="Broken", out=str(tmp_path / "run"), total_steps=64)
    with pytest.raises(EnvironmentFault, match="environment 0 of Broken raised OSError in a reset after 0 steps: no display"):
        train(configuration, environment=Broken, quiet=True)
    train(configuration, environment=toys.ConstantReward, quiet=True)


def test_seeds_share_no_environments():
    """Neighbouring seeds' environments start in different places, though environment i has a number of its own."""
    from surefoot.control.environments.select import select_environments

    starts = [
        select_environments("CartPole-v1", backend="gymnasium-sync", num_envs=4, seed=seed).environments.reset(seed)
        for seed in (0, 1)
    ]
    rows = np.concatenate(starts)
    assert len(np.unique(rows, axis=0)) == 8


def test_configuration_mistakes_are_named():
    def run(**options):
        return RunConfiguration(**{"env": "CartPole-v1"} | options)

    with pytest.raises(
        UsageError, match=r"--minibatch-size 100 does not divide a rollout of 8 × 256 = 2048 steps; 128 is the nearest"
    ):
        replace(configure(), run=run(), passes=PassesConfiguration(minibatch_size=100))
    with pytest.raises(UsageError, match="--reward-clip must be positive and finite, but is inf"):
        configure(reward_clip=float("inf"))
    with pytest.raises(UsageError, match="--seed must lie between 0 and 2147483647, but runs from 2147483647 to 2147483648"):
        run(seed=2**31 - 1, seeds=2)
    with pytest.raises(UsageError, match="--num-envs must be at least 1, but is 0"):
        run(num_envs=0)
    with pytest.raises(UsageError, match=r"--discount must lie between 0 and 1, but is 1\.2"):
        configure(discount=1.2)
    with pytest.raises(UsageError, match="--learning-rate must be positive, but is -1"):
        configure(learning_rate=-1)
    with pytest.raises(UsageError, match="leaves no signal"):
        configure(minibatch_size=1)


def test_options_without_effect_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--observation-clip 3\.0 would do nothing without --normalize-observations"):
        configure(normalize_observations=False, observation_clip=3.0)
    with pytest.raises(UsageError, match="--recompute-advantages would do nothing with --epochs 1"):
        configure(recompute_advantages=True, epochs=1)
    with pytest.raises(UsageError, match="--activation would do nothing without hidden layers"):
        configure(hidden_sizes=(), activation="relu")
    with pytest.raises(UsageError, match="--initial-log-std would do nothing: CartPole-v1 has discrete actions"):
        train(configure(initial_log_std=-1.0, backend="gymnasium", out=str(tmp_path / "run")), quiet=True)


def test_a_strangers_configuration_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="is not a run's, and would be overwritten"):
        train(configure(backend="gymnasium", out=str(tmp_path), total_steps=64), quiet=True)
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


class Counter:
    """A functional environment of a user: count to five, reward the action 1."""

    import gymnasium
    import jax.numpy as jnp

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    max_episode_steps = 3

    def initial(self, key):
        return self.jnp.zeros(()), self.jnp.zeros(1)

    def transition(self, state, action, key):
        return state + 1, self.jnp.reshape(state + 1, 1), self.jnp.float32(action), state + 1 >= 5


def test_functional_environments_of_ones_own(tmp_path):
    configuration = configure(
        env="tests.control.test_training:Counter", out=str(tmp_path / "run"), total_steps=6400, learning_rate=1e-2
    )
    assert train(configuration, quiet=True)["backend"] == "jax"
    got = evaluate(tmp_path / "run", episodes=12, deterministic=True, environment=configuration.run.env)
    assert (got["mean_return"], got["mean_length"]) == (3.0, 3.0), "three steps, cut by the time limit, all right"


def test_a_functional_reward_may_be_an_array_of_one_number():
    import jax

    from surefoot.control.environments.functional import check_functional, functional_carry, functional_step

    class Column(Counter):
        def transition(self, state, action, key):
            *rest, reward, terminated = super().transition(state, action, key)
            return *rest, reward[None], terminated

    check_functional(Column(), name="Column")
    carry = functional_carry(Column(), num_envs=2, key=jax.random.PRNGKey(0))
    _, _, rewards, _, _ = functional_step(Column())(carry.environments, np.array([0, 1]))
    assert rewards.tolist() == [0.0, 1.0]


def test_mistakes_in_functional_environments_are_sentences():
    from surefoot.control.environments.select import select_environments

    class TooFew(Counter):
        def transition(self, state, action, key):
            return state, self.jnp.zeros(1)

    class WrongShape(Counter):
        def initial(self, key):
            return self.jnp.zeros(()), self.jnp.zeros(3)

    for kind, words in (
        (TooFew, "TooFew cannot be traced: ValueError"),
        (WrongShape, r"initial's observation has shape \(3,\) where"),
    ):
        with pytest.raises(UsageError, match=words):
            select_environments(kind, backend="auto", num_envs=2, seed=0)


def test_a_fault_within_a_report_keeps_what_the_metrics_speak_of(tmp_path):
    """Many short rollouts share a report; one that fails takes the unreported updates with it."""
    configuration = configure("actor-critic", num_envs=1, rollout_length=1, total_steps=4000, backend="gymnasium-sync")
    assert configuration.rollouts_per_report > 100
    selection = select_environments(lambda: toys.Faulty(at=9), backend="auto", num_envs=1, seed=0)
    iteration, _ = make_iteration(configuration, selection, [0])
    before = iteration.learners()[0]
    with pytest.raises(EnvironmentFault):
        iteration.run(0)
    assert same(before, iteration.learners()[0])
    iteration.close()
