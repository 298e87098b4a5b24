"""A configuration as config.json, and back; and where environments begin afresh."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.commands.options import parse_configuration
from surefoot.control.algorithms import ALGORITHMS, configuration_for
from surefoot.control.configuration import (
    LikelihoodObjective,
    PassesConfiguration,
    RunConfiguration,
    SurrogateObjective,
    TrainConfiguration,
    TrustRegionConfiguration,
    WeightConfiguration,
)
from surefoot.errors import UsageError
from tests.control.helpers import configure
from tests.runs.test_settings import ANY

PRESETS = [(name, env) for name, algorithm in ALGORITHMS.items() for env in (*algorithm.presets, "Other-v0")]
CUSTOM = [
    TrainConfiguration(RunConfiguration("A-v0")),
    TrainConfiguration(RunConfiguration("A-v0"), objective=SurrogateObjective(clip_range=None), passes=PassesConfiguration()),
    TrainConfiguration(
        RunConfiguration("A-v0", checkpoint_every="10m", keep_checkpoints=3, restart_every=0, on_nonfinite="skip"),
        weight=WeightConfiguration("q-value"), objective=None, passes=PassesConfiguration(),
        trust_region=TrustRegionConfiguration(max_kl=0.02),
    ),
    TrainConfiguration(RunConfiguration("A-v0"), objective=LikelihoodObjective(0.1), weight=WeightConfiguration("n-step", n_steps=3)),
]  # fmt: skip


def written(configuration):
    return json.loads(json.dumps(configuration.as_dict()))


@pytest.mark.parametrize(("algorithm", "env"), PRESETS)
def test_what_was_written_comes_back(algorithm, env):
    configuration = configuration_for(algorithm, env, hidden_sizes=(3, 5), seed=7)
    assert TrainConfiguration.from_dict(written(configuration)) == configuration
    if ALGORITHMS[algorithm].recorded is not None:
        configuration = configuration_for(algorithm, env, from_data="somewhere", normalize_observations=True)
        assert TrainConfiguration.from_dict(written(configuration)) == configuration


@pytest.mark.parametrize("configuration", CUSTOM)
def test_other_combinations_come_back_too(configuration):
    assert TrainConfiguration.from_dict(written(configuration)) == configuration


def test_settings_that_are_not_there_keep_their_defaults():
    settings = written(configure("ppo", restart_every=5))
    del settings["restart_every"], settings["checkpoint_every"]
    assert TrainConfiguration.from_dict(settings) == configure("ppo")


SETTINGS = {algorithm: written(configure(algorithm)) for algorithm in ALGORITHMS}


@given(data=st.data())
def test_anything_else_is_a_sentence_or_what_it_says(data):
    settings = dict(SETTINGS[data.draw(st.sampled_from(list(SETTINGS)))])
    name = data.draw(st.sampled_from([*settings, "max_kl", "clip_range", "minibatch_size", "from_data"]) | st.text())
    settings[name] = data.draw(ANY | st.sampled_from([0, 1, -1, 2**31, 1e-300, "none", "linear", "gae", "10m", [8]]))
    try:
        configuration = TrainConfiguration.from_dict(settings)
    except UsageError:
        return
    if name != "env_kwargs":  # arguments by name are taken too, and written as texts
        assert configuration.as_dict()[name] == settings[name]
    assert TrainConfiguration.from_dict(written(configuration)) == configuration


def test_the_words_for_what_is_wrong():
    for change, words in (
        ({"epoch": 3}, "there is no setting 'epoch'; did you mean epochs?"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', where a finite number is right"),
        ({"num_envs": 0}, "--num-envs must be at least 1, but is 0"),
        ({"algorithm": 3}, "algorithm is 3, where a printable text is right"),
        ({"minibatch_size": 100}, "--minibatch-size 100 does not divide"),
    ):
        with pytest.raises(UsageError) as caught:
            TrainConfiguration.from_dict(SETTINGS["ppo"] | change)
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="env is missing"):
        TrainConfiguration.from_dict({"algorithm": "ppo"})


@given(
    every=st.integers(0, 5000), envs=st.integers(1, 8), length=st.integers(1, 64), total=st.integers(1, 20_000),
    algorithm=st.sampled_from(["ppo", "a2c"]),
)  # fmt: skip
def test_environments_begin_afresh_once_every_so_many_steps(every, envs, length, total, algorithm):
    """At the first report at or beyond each multiple, never at the beginning; the fewest iterations that cover the steps."""
    plain = configure(
        algorithm,
        num_envs=envs,
        rollout_length=length,
        total_steps=total,
        **({"minibatch_size": 1, "advantage_normalization": "none"} if algorithm == "ppo" else {}),
    )
    configuration = replace(plain, run=replace(plain.run, restart_every=every))
    together, slots, grid = configuration.rollouts_per_report, configuration.slots, configuration.restart_grid
    assert grid % together == 0
    if every:
        assert grid * slots >= every
        assert (grid - together) * slots < every
    begun = [number for number in range(0, configuration.iterations, together) if configuration.restarts_at(number)]
    assert begun == (list(range(grid, configuration.iterations, grid)) if every else [])


@given(first=st.integers(1, 300))
def test_a_longer_run_that_reports_otherwise_begins_afresh_all_the_same(first):
    """Reports of a raised run may not begin on multiples any more: once in every span of the grid, all the same."""
    configuration = configure("a2c", num_envs=2, rollout_length=4, total_steps=16_000, restart_every=4_000)
    together, grid = configuration.rollouts_per_report, configuration.restart_grid
    begun = [n for n in range(first, first + 4000, together) if configuration.restarts_at(n)]
    assert len({n // grid for n in begun}) == len(begun)
    assert abs(len(begun) - 4000 / grid) <= 1


def test_the_default_grid_is_coarser_where_a_beginning_compiles_everything_again():
    """Whatever the length of the run, which `resume` may raise."""
    for algorithm, steps in (("ppo", 1_000_000), ("trpo", 1_000_000), ("a2c", 10_000_000), ("actor-critic", 10_000_000)):
        for total in (64, 20_000_000):
            configuration = configuration_for(algorithm, "Other-v0", total_steps=total)
            covered = configuration.restart_grid * configuration.slots
            assert steps <= covered < steps + configuration.slots * configuration.rollouts_per_report


def test_what_follows_the_actions_is_left_open_and_decided_by_them():
    """log σ starts at −0.7 and advantages are estimated again where ppo's actions are continuous; no default is refused."""
    ppo = configuration_for("ppo", "Mine-v0")
    assert ppo.initial_log_std == -0.7
    assert [ppo.recomputes_advantages(continuous=c) for c in (True, False)] == [True, False]
    for options, expected in (
        ({"recompute_advantages": False}, [False, False]),
        ({"recompute_advantages": True}, [True, True]),
        ({"epochs": 1}, [False, False]),
        ({"weight": "reward-to-go"}, [False, False]),
    ):
        changed = configuration_for("ppo", "HalfCheetah-v5", **options)
        assert [changed.recomputes_advantages(continuous=c) for c in (True, False)] == expected
    for name in ("a2c", "reinforce", "trpo", "actor-critic"):
        assert configuration_for(name, "Mine-v0").initial_log_std == 0
    assert configuration_for("ppo", "Mine-v0", initial_log_std=0).initial_log_std == 0
    pendulum = configuration_for("ppo", "Pendulum-v1")
    assert (pendulum.initial_log_std, pendulum.recomputes_advantages(continuous=True)) == (0, False)


@pytest.mark.parametrize(
    ("written", "value"), [((), None), (("--recompute-advantages",), True), (("--no-recompute-advantages",), False)]
)
def test_a_switch_that_may_be_left_open(written, value):
    configuration, _ = parse_configuration(configuration_for("ppo", "Mine-v0"), list(written), program="surefoot", summary="")
    assert configuration.objective.recompute_advantages is value
