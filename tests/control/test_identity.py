"""What an environment is: recorded when a run begins, and compared wherever the run meets an environment again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import ClipReward, TimeLimit

from surefoot.cli import main
from surefoot.control.algorithms import configuration_for
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.durability.standing import check
from surefoot.control.environments import pool_identity
from surefoot.control.environments.arguments import parse_arguments, spell_arguments
from surefoot.control.environments.describing import describe
from surefoot.control.environments.identity import EnvironmentIdentity, differences
from surefoot.control.environments.making import make_named, recipe_for
from surefoot.control.environments.select import select_environments
from surefoot.control.environments.workers.replay import replay
from surefoot.control.environments.workers.vector import WorkerSettings
from surefoot.control.evaluation import evaluate
from surefoot.control.policies.networks import draw_network
from surefoot.control.policies.policy import Policy, load_policy
from surefoot.control.policies.spaces import describe_spaces
from surefoot.control.training import resume, train
from surefoot.errors import EnvironmentFault, UsageError
from surefoot.runs.checkpoints import Checkpoints
from tests.control import identities
from tests.control.helpers import configure
from tests.control.test_environments import choose, needs_envpool

HERE = "tests.control.identities"
SHORT = {"algorithm": "a2c", "num_envs": 2, "rollout_length": 4, "total_steps": 16}


def short():
    return gymnasium.make("CartPole-v1", max_episode_steps=7)


def saved_policy(run, environment, **description):
    """A policy for an environment that was not trained."""
    spaces = describe_spaces(environment.observation_space, environment.action_space, name="it")
    outputs = spaces.action.outputs
    parameters = draw_network(np.random.default_rng(0), (spaces.observation_size, 8, outputs), orthogonal=True, head_gain=1.0)
    parameters |= {"log_std": np.zeros(outputs, np.float32)} if spaces.action.kind == "box" else {}
    said = {"algorithm": "ppo", "env": "CartPole-v1", "backend": "gymnasium-sync", "steps": 0} | description
    Policy(spaces, "tanh", parameters, None, 10.0, said).save(run)
    return run


@pytest.fixture(scope="module")
def run_in_a_callable(tmp_path_factory):
    """A run that is named after Gymnasium's CartPole-v1, and was trained in one of seven steps."""
    run = tmp_path_factory.mktemp("callable") / "run"
    train(configure(**SHORT, checkpoint_every=8, out=str(run)), environment=short, quiet=True)
    return run


def test_a_callable_is_not_taken_for_its_name(run_in_a_callable, capsys):
    sentence = f"given as a callable, short; give environment=…, or --env {__name__}:short"
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
    assert load_policy(run).environment.max_episode_steps == 7


def test_a_run_from_before_this_was_recorded(run_in_a_callable, tmp_path):
    """Its policy and its checkpoint know nothing of the environment, nor of the settings that came with that."""
    checkpoint, _ = Checkpoints(run_in_a_callable).latest(exact=False)
    now = TrainConfiguration.from_dict(json.loads((run_in_a_callable / "config.json").read_text()))
    before = {n: v for n, v in checkpoint.state["configuration"].items() if n not in ("environment", "env_kwargs", "wrapper")}
    old = replace(checkpoint, state=checkpoint.state | {"configuration": before})
    assert check(old, replace(now, environment=None), 1) == ()
    with pytest.raises(UsageError, match="json says env_kwargs"):
        check(old, replace(now, run=replace(now.run, env_kwargs=("a=1",))), 1)
    run = saved_policy(tmp_path / "run", short())
    assert evaluate(run, episodes=2)["notices"] == []
    assert load_policy(run).environment == EnvironmentIdentity("CartPole-v1", spaces=load_policy(run).spaces)


OTHERS = [
    (identities.Line, lambda: identities.Line(actions=Discrete(2, start=5)), "spaces", "discrete 2 counted from 5 now"),
    (
        lambda: identities.Line(actions=Box(-2, 2, (1,), np.float32)),
        lambda: identities.Line(actions=Box(-1, 1, (1,), np.float32)),
        "spaces",
        "1 numbers in -2 … 2 before, 1 numbers in -1 … 1 now",
    ),
    (identities.Line, lambda: identities.Line(size=3), "spaces", "observations: 2 numbers before, 3 now"),
    (identities.Line, lambda: TimeLimit(identities.Line(), 9), "time limit", "none before, 9 steps now"),
    (identities.Line, identities.Breaks, "class", f"{HERE}:Line before, {HERE}:Breaks now"),
    (
        lambda: gymnasium.make("Pendulum-v1"),
        lambda: gymnasium.make("Pendulum-v1", g=5.0),
        "arguments",
        "none before, g=5.0 now",
    ),
    (identities.Line, lambda: ClipReward(identities.Line(), 0, 1), "wrappers", "ClipReward(min_reward=0, max_reward=1) now"),
]


@pytest.mark.parametrize(
    ("before", "now", "part", "words"), OTHERS, ids=[f"{part}-{i}" for i, (_, _, part, _) in enumerate(OTHERS)]
)
def test_what_makes_another_environment(before, now, part, words):
    def identity(make):
        made = make()
        return replace(describe(made), spaces=describe_spaces(made.observation_space, made.action_space, name="it"))

    one, other = identity(before), identity(now)
    (found,) = differences(one, other)
    assert (found.part, found.of_task) == (part, part != "wrappers")
    assert words in found.sentence
    assert one.fingerprint != other.fingerprint
    assert differences(one, identity(before)) == ()
    assert one.fingerprint == identity(before).fingerprint
    for known in (one, other):
        assert EnvironmentIdentity.from_dict(json.loads(json.dumps(known.as_dict(), allow_nan=False))) == known
    assert differences(EnvironmentIdentity("it"), other) == ()


@pytest.mark.parametrize(("before", "now", "words"), [(*pair[:2], pair[3]) for pair in OTHERS[:3]])
def test_a_policy_is_not_let_into_other_spaces(before, now, words, tmp_path):
    run = saved_policy(tmp_path / "run", before())
    assert evaluate(run, environment=before, episodes=2)["mean_length"] == 4
    with pytest.raises(UsageError, match=f"other spaces than the policy was trained with .*{words}"):
        evaluate(run, environment=now, episodes=2)


def test_bounds_that_differ_by_rounding_are_the_same(tmp_path):
    run = saved_policy(tmp_path / "run", identities.Line(actions=Box(-0.1, 0.1, (2,), np.float32)))
    assert evaluate(run, environment=lambda: identities.Line(actions=Box(-0.1, 0.1, (2,), np.float64)), episodes=2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("true", True),
        ("5", 5),
        ("-1e3", -1000.0),
        ("null", None),
        ("(1, 2)", (1, 2)),
        ('{"a": [1]}', {"a": [1]}),
        ("4x4", "4x4"),
    ],
)
def test_arguments_as_texts(text, value):
    assert parse_arguments([f"key={text}"]) == {"key": value}
    (spelt,) = spell_arguments({"key": value})
    assert parse_arguments([spelt]) == {"key": value}
    assert spell_arguments([f"key={text}"]) == (spelt,)
    assert configuration_for("ppo", "Line", env_kwargs={"key": value}).run.env_kwargs == (spelt,)


def test_arguments_that_no_text_can_hold():
    for value in (len, {1: object()}, np):
        with pytest.raises(UsageError, match="env_kwargs: key is"):
            configuration_for("ppo", "Line", env_kwargs={"key": value})


def test_wrappers_are_found_under_their_names():
    assert configuration_for("ppo", "Line", wrapper=[identities.tenfold]).run.wrapper == (f"{HERE}:tenfold",)
    with pytest.raises(UsageError, match="the wrapper <lambda> is found under no name in its module"):
        configuration_for("ppo", "Line", wrapper=[lambda env: env])
    for text, words in (
        (f"{HERE}:none", "has no callable none"),
        (f"{HERE}:no_wrapper", "returned int"),
        ("absent:a", "cannot be imported"),
    ):
        with pytest.raises(UsageError, match=f"--wrapper {text}.*{words}"):
            select_environments(recipe_for(identities.Line, wrappers=[text]), backend="auto", num_envs=1, seed=0)


def mean_reward(run):
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1:]
    return row["episode/return_mean"] / row["episode/length_mean"]


@pytest.mark.parametrize("workers", [0, 1])
def test_arguments_and_wrappers_are_everywhere(workers, tmp_path, capsys):
    """(3 + 1) · 10 a step, where the wrapper that is named first is the inner one; anywhere else it would be another number."""
    run, wrappers = tmp_path / "run", [f"{HERE}:plus_one", f"{HERE}:tenfold"]
    sizes = "--num-envs 2 --rollout-length 4 --total-steps 16 --hidden-sizes 4 --no-tensorboard --checkpoint-every 8"
    options = [*sizes.split(), "--env-workers", str(workers), "--env-kwargs", "reward=3.0", "length=2", "--wrapper", *wrappers]
    assert main(["train", "a2c", "--env", f"{HERE}:Line", *options, "--out", str(run)]) == 0
    assert mean_reward(run) == 40
    capsys.readouterr()
    given = ["--env", f"{HERE}:Line", "--episodes", "2"]
    assert main(["evaluate", str(run), *given]) == 2
    assert f"give --wrapper {' '.join(wrappers)}" in capsys.readouterr().err
    assert main(["evaluate", str(run), *given, "--wrapper", *wrappers, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_return"] == 80
    assert main(["evaluate", str(run), *given, "--wrapper", *wrappers[:1], "--env-kwargs", "length=3", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["mean_return"] == 6
    assert "wrappers: " in out.err
    assert main(["export", str(run), "--env", f"{HERE}:Line", "--wrapper", *wrappers]) == 0
    assert main(["resume", str(run), "--total-steps", "32", "--quiet"]) == 0
    assert mean_reward(run) == 40


def test_a_replay_has_them_too(tmp_path):
    run = tmp_path / "run"
    settings = {"env": f"{HERE}:Breaks", "env_workers": 1, "env_kwargs": {"reward": 2.0}, "wrapper": [identities.tenfold]}
    with pytest.raises(EnvironmentFault, match="out of order"):
        train(configure(**SHORT | settings, out=str(run)), quiet=True)
    path = next(run.glob("failed/environment-*.json"))
    assert replay(path, say=lambda sentence: None).failed
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"env_kwargs": []}))
    said: list[str] = []
    assert not replay(path, say=said.append).failed


@needs_envpool
@pytest.mark.parametrize("given", [{"arguments": {"g": 5.0}}, {"wrappers": ["gymnasium.wrappers:FlattenObservation"]}])
def test_what_envpool_does_not_have_is_stepped_by_gymnasium(given):
    selection = choose(recipe_for("Pendulum-v1", **given))
    assert selection.backend == "gymnasium-sync"
    assert "take --env-kwargs and --wrapper" in selection.notices[0]
    with pytest.raises(UsageError, match="--backend envpool steps EnvPool's own Pendulum-v1, which takes no --env-kwargs"):
        choose(recipe_for("Pendulum-v1", **given), "envpool")


@needs_envpool
def test_envpool_is_taken_for_the_tasks_that_are_gymnasiums():
    for name in ("CartPole-v1", "Pendulum-v1", "LunarLanderContinuous-v3", "Hopper-v5"):
        task = pool_identity.compare_with_gymnasium(recipe_for(name), name)
        assert (task.agrees, task.why) == (True, None)
        specification = gymnasium.spec(name)
        assert task.identity.max_episode_steps == specification.max_episode_steps
        assert pool_identity.shipped(name) == {n: getattr(specification, n) for n in pool_identity.REGISTERED}


@needs_envpool
def test_envpool_is_not_taken_for_a_name_alone(monkeypatch):
    with pytest.raises(UsageError, match=r"Blackjack-v1 has observations Tuple.*--backend envpool would step EnvPool's"):
        choose("Blackjack-v1")
    with pytest.raises(UsageError, match=r"HalfCheetah-v3 cannot be made: The mujoco v2 and v3 .* --backend envpool would"):
        choose("HalfCheetah-v3")
    wrapped = choose(recipe_for("Blackjack-v1", wrappers=["gymnasium.wrappers:FlattenObservation"]))
    assert wrapped.environments.spaces.observation_size == 45
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


def test_a_configuration_with_its_environment_comes_back():
    identity = EnvironmentIdentity("it", arguments={"a": "1"}, wrappers=("m:W()",), max_episode_steps=3)
    configuration = replace(configure(), environment=identity)
    written = json.loads(json.dumps(configuration.as_dict(), allow_nan=False))
    assert TrainConfiguration.from_dict(written) == configuration
    for wrong in (
        3,
        [],
        {},
        {"name": 3},
        {"name": "x", "max_episode_steps": -1},
        {"name": "x", "spaces": {}},
        {"name": "x", "wrappers": [3]},
    ):
        with pytest.raises(UsageError, match="of environment, it is no record"):
            TrainConfiguration.from_dict(written | {"environment": wrong})
