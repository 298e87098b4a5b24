"""What an environment is: recorded when a run begins, and compared wherever the run meets an environment again."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import numpy as np
import onnx
import pytest

from surefoot.cli import main
from surefoot.control.algorithms import configuration_for
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.durability.standing import check
from surefoot.control.environments.arguments import parse_arguments, spell_arguments
from surefoot.control.environments.identity import comparison
from surefoot.control.environments.identity.reading import describe
from surefoot.control.environments.identity.record import EnvironmentIdentity, differences
from surefoot.control.environments.making import recipe_for
from surefoot.control.environments.select import select_environments
from surefoot.control.environments.workers.replay import replay
from surefoot.control.evaluation import evaluate
from surefoot.control.policies.policy import load_policy
from surefoot.control.policies.spaces import describe_spaces
from surefoot.control.recorded.record import record
from surefoot.control.training import train
from surefoot.errors import EnvironmentFault, UsageError
from surefoot.runs.checkpoints import Checkpoints
from tests.control import identities
from tests.control.helpers import configure
from tests.control.identities import OTHERS, SHORT, saved_policy, short
from tests.control.test_environments import choose, needs_envpool

HERE = "tests.control.identities"


def test_a_run_from_before_this_was_recorded(tmp_path):
    """Its policy and its checkpoint know nothing of the environment, nor of the settings that came with that."""
    run = tmp_path / "before"
    train(configure(**SHORT, env=f"{HERE}:Line", checkpoint_every="8", out=str(run)), quiet=True)
    checkpoint, _ = Checkpoints(run).latest(exact=False)
    now = TrainConfiguration.from_dict(json.loads((run / "config.json").read_text()))
    before = {n: v for n, v in checkpoint.state["configuration"].items() if n not in ("environment", "env_kwargs", "wrapper")}
    old = replace(checkpoint, state=checkpoint.state | {"configuration": before})
    assert check(old, replace(now, environment=None), 1) == ()
    with pytest.raises(UsageError, match="json says env_kwargs"):
        check(old, replace(now, run=replace(now.run, env_kwargs=("a=1",))), 1)
    run = saved_policy(tmp_path / "run", short())
    assert evaluate(run, episodes=2)["notices"] == []
    assert load_policy(run).environment == EnvironmentIdentity("CartPole-v1", spaces=load_policy(run).spaces)


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
        ("__main__:a", "was defined in a script; give --wrapper module:a"),
    ):
        with pytest.raises(UsageError, match=f"--wrapper {text}.*{words}"):
            select_environments(recipe_for(identities.Line, wrappers=[text]), backend="auto", num_envs=1, seed=0)


def test_values_of_an_option_that_is_given_twice_are_not_dropped(capsys):
    assert main(["train", "ppo", "--env", "CartPole-v1", "--wrapper", f"{HERE}:tenfold", "--wrapper", f"{HERE}:plus_one"]) == 2
    assert "--wrapper is given twice; give all its values after one, as in --wrapper A B" in capsys.readouterr().err


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
    said = {entry.key: entry.value for entry in onnx.load(run / "policy" / "policy.onnx").metadata_props}
    assert (json.loads(said["env_kwargs"]), json.loads(said["wrapper"])) == (["reward=3.0", "length=2"], wrappers)
    assert main(["resume", str(run), "--total-steps", "32", "--quiet"]) == 0
    assert mean_reward(run) == 40


def test_a_recording_has_the_arguments(tmp_path):
    """Minari makes the environment of a data set from what is recorded there."""
    minari = pytest.importorskip("minari")
    run = saved_policy(
        tmp_path / "run", gymnasium.make("Pendulum-v1"), env="Pendulum-v1", env_kwargs=["g=5.0", "max_episode_steps=3"]
    )
    assert record(run, tmp_path / "data-v0", episodes=2)["mean_length"] == 3
    made = minari.MinariDataset(tmp_path / "data-v0" / "data").recover_environment()
    assert (made.unwrapped.g, made.spec.max_episode_steps) == (5.0, 3)


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
def test_what_no_policy_can_see_is_wrapped():
    wrapped = choose(recipe_for("Blackjack-v1", wrappers=["gymnasium.wrappers:FlattenObservation"]))
    assert (wrapped.backend, wrapped.environments.spaces.observation_size) == ("gymnasium-sync", 45)


@needs_envpool
def test_envpool_is_taken_for_the_tasks_that_are_gymnasiums():
    for name in ("CartPole-v1", "Pendulum-v1", "LunarLanderContinuous-v3", "Hopper-v5"):
        task = comparison.compare_with_gymnasium(recipe_for(name), name)
        assert (task.agrees, task.why) == (True, None)
        specification = gymnasium.spec(name)
        assert task.identity.max_episode_steps == specification.max_episode_steps
        assert comparison.shipped(name) == {n: getattr(specification, n) for n in comparison.REGISTERED}


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
