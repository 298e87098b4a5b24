"""Environments that return nonsense: one sentence that says which, where and what, and nothing is learnt from it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.cli import main
from surefoot.control.environments.host import HostEnvironments, NameFaults
from surefoot.control.environments.outputs import WrongOutput, checked_reset, checked_step
from surefoot.control.environments.select import select_environments
from surefoot.errors import EnvironmentFault
from tests.control.toys import Toy

NONSENSE_STEPS = {
    "nan": ((np.array([np.nan], np.float32), 1.0, False, False, {}), "returned an observation of nan in component 0"),
    "infinite": ((np.array([np.inf], np.float32), 1.0, False, False, {}), "returned an observation of inf in component 0"),
    "two numbers": ((np.zeros(2, np.float32), 1.0, False, False, {}), "returned an observation of shape (2,)"),
    "a row": ((np.zeros((1, 1), np.float32), 1.0, False, False, {}), "returned an observation of shape (1, 1)"),
    "a scalar": ((0.5, 1.0, False, False, {}), "returned an observation of shape ()"),
    "no observation": ((None, 1.0, False, False, {}), "returned an observation that is None"),
    "a text": ((np.array(["1"]), 1.0, False, False, {}), "returned an observation that is an array of shape (1,) and type <U1"),
    "complex": ((np.array([1j]), 1.0, False, False, {}), "returned an observation that is an array"),
    "dictionary": (({"a": 1}, 1.0, False, False, {}), "returned an observation that is dict"),
    "ragged": (([[1.0], [1.0, 2.0]], 1.0, False, False, {}), "returned an observation that no array can be made of"),
    "reward as text": ((np.zeros(1), "1.0", False, False, {}), "returned a reward that is str, where one number is right"),
    "rewards": ((np.zeros(1), np.ones(2), False, False, {}), "returned a reward that is an array of shape (2,)"),
    "no reward": ((np.zeros(1), None, False, False, {}), "returned a reward that is None"),
    "reward nan": ((np.zeros(1), float("nan"), False, False, {}), "returned a reward of nan"),
    "reward infinite": ((np.zeros(1), np.float32(np.inf), False, False, {}), "returned a reward of inf"),
    "terminated as number": ((np.zeros(1), 1.0, 0.5, False, {}), "returned terminated that is float, where true or false"),
    "terminated none": ((np.zeros(1), 1.0, None, False, {}), "returned terminated that is None"),
    "truncated as text": ((np.zeros(1), 1.0, False, "False", {}), "returned truncated that is str"),
    "truncated as array": ((np.zeros(1), 1.0, False, np.zeros(1, bool), {}), "returned truncated that is an array"),
    "info none": ((np.zeros(1), 1.0, False, False, None), "returned an info that is None, where a dictionary is right"),
    "old interface": ((np.zeros(1), 1.0, False, {}), "returned 4 values, where (observation, reward, terminated, truncated"),
    "nothing": (None, "returned None, where (observation, reward"),
}
GOOD = (np.zeros(1, np.float32), 1.0, False, False, {})


class GoesMad(Toy):
    """Sound for two steps; what the third returns is set from outside."""

    third: object = None

    def step(self, action):
        self.steps += 1
        return self.third if self.steps == 3 else GOOD


def host(returned) -> HostEnvironments:
    made = []

    def make():
        made.append(GoesMad())
        made[-1].third = returned if len(made) == 2 else GOOD
        return made[-1]

    return select_environments(make, backend="auto", num_envs=3, seed=0).environments


def stepped(environments: HostEnvironments, times: int):
    environments.reset(0)
    for _ in range(times):
        outcome = environments.step(np.zeros(environments.num_envs, np.int64))
    return outcome


@pytest.mark.parametrize("case", NONSENSE_STEPS)
def test_nonsense_is_named_with_environment_and_step(case):
    returned, sentence = NONSENSE_STEPS[case]
    environments = host(returned)
    stepped(environments, 2)
    with pytest.raises(EnvironmentFault) as caught:
        environments.step(np.zeros(3, np.int64))
    said = str(caught.value)
    assert said.startswith("environment 1 of "), said
    assert sentence in said
    assert "step 3" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "reward",
    [2, True, np.int32(3), np.float16(0.5), np.float64(2), np.array(2), np.array([3.0]), np.array([[True]]), [4.0], (5,)],
    ids=repr,
)
def test_one_number_is_a_reward_whatever_its_type_and_shape(reward):
    """As Gymnasium's checker takes it."""
    _, rewards, *_ = stepped(host((np.zeros(1), reward, False, False, {})), 3)
    assert rewards.tolist() == [1.0, float(np.asarray(reward).item()), 1.0]


@pytest.mark.parametrize(
    "sound", [([0.5], 1, False, np.bool_(True), {}), (np.zeros(1), np.float64(2), False, np.array(True), {})]
)
def test_what_means_the_same_is_taken(sound):
    _, rewards, _, truncated, _ = stepped(host(sound), 3)
    assert rewards[1] == sound[1]
    assert truncated.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "returned",
    [None, np.zeros(1), (np.zeros(1),), (np.zeros(2), {}), (None, {}), (np.zeros(1), None), (np.array([np.nan]), {})],
)
def test_a_reset_that_returns_nonsense_is_named(returned):
    class Mad(Toy):
        def reset(self, *, seed=None, options=None):
            return returned

    environments = select_environments(Mad, backend="auto", num_envs=2, seed=0).environments
    with pytest.raises(EnvironmentFault, match=r"^environment 0 of Mad returned "):
        environments.reset(0)


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_leaves_the_program_is_an_error(where):
    class Leaves(Toy):
        def reset(self, **options):
            return super().reset(**options) if where == "step" else exit(3)

        def step(self, action):
            raise SystemExit

    environments = select_environments(Leaves, backend="auto", num_envs=2, seed=0).environments
    with pytest.raises(EnvironmentFault, match="environment 0 of Leaves raised SystemExit"):
        stepped(environments, 1)


class Rows(VectorEnv):
    """A vector environment of one's own, which returns what it is told to."""

    num_envs = 2
    single_observation_space = observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    single_action_space = action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, mode=AutoresetMode.NEXT_STEP, **changes):
        self.metadata = {"autoreset_mode": mode}
        sound = {"observations": np.zeros((2, 1)), "rewards": np.ones(2), "terminated": np.zeros(2, bool)}
        self.returned = sound | {"truncated": np.zeros(2, bool), "info": {}, "reset": (np.zeros((2, 1)), {})} | changes

    def reset(self, *, seed=None, options=None):
        return (np.zeros((2, 1)), {}) if options is None else self.returned["reset"]

    def step(self, actions):
        return tuple(self.returned[name] for name in ("observations", "rewards", "terminated", "truncated", "info"))


ENDED = np.array([True, False])
NONSENSE_ROWS = {
    "one observation": ({"observations": np.zeros(1)}, "returned observations of shape (1,), where (2, 1) is right"),
    "three": ({"observations": np.zeros((3, 1))}, "returned observations of shape (3, 1), where (2, 1) is right"),
    "texts": ({"observations": np.array([["a"], ["b"]])}, "returned observations that are <U1, where numbers would be right"),
    "one reward": ({"rewards": 1.0}, "returned rewards of shape (), where (2,) is right"),
    "a row of rewards": ({"rewards": np.ones((1, 2))}, "returned rewards of shape (1, 2), where (2,) is right"),
    "two columns of rewards": ({"rewards": np.ones((2, 2))}, "returned rewards of shape (2, 2), where (2,) is right"),
    "a column of ends": ({"terminated": np.zeros((2, 1), bool)}, "returned terminated of shape (2, 1), where (2,) is right"),
    "rewards as texts": ({"rewards": ["1", "2"]}, "returned rewards that are <U1, where numbers would be right"),
    "one end": ({"terminated": None}, "returned terminated of shape (), where (2,) is right"),
    "ends as numbers": ({"truncated": np.array([0.2, 0.0])}, "returned truncated that are float64, where true or false"),
    "no final observations": (
        {"mode": AutoresetMode.SAME_STEP, "terminated": ENDED},
        'resets in the same step, but gives no info["final_obs"]',
    ),
    "no info": (
        {"mode": AutoresetMode.SAME_STEP, "terminated": ENDED, "info": None},
        'resets in the same step, but gives no info["final_obs"]',
    ),
    "final observation missing": (
        {"mode": AutoresetMode.SAME_STEP, "terminated": ENDED, "info": {"final_obs": [None, None]}},
        "a final observation of shape (), where (1,) is right",
    ),
    "final observations none": (
        {"mode": AutoresetMode.SAME_STEP, "terminated": ENDED, "info": {"final_obs": None}},
        'info["final_obs"] at vector step 1',
    ),
    "a reset by request that is wrong": (
        {"mode": AutoresetMode.DISABLED, "terminated": ENDED, "reset": (np.zeros(3), {})},
        "returned observations of shape (3,), where (2, 1) is right",
    ),
    "a reset by request that is nothing": (
        {"mode": AutoresetMode.DISABLED, "terminated": ENDED, "reset": None},
        "raised TypeError in a reset at vector step 1",
    ),
}


@pytest.mark.parametrize("case", NONSENSE_ROWS)
def test_nonsense_of_a_vector_environment_is_named(case):
    changes, sentence = NONSENSE_ROWS[case]
    environments = HostEnvironments(Rows(**changes), name="Rows")
    with pytest.raises(EnvironmentFault) as caught:
        stepped(environments, 1)
    assert "Rows" in str(caught.value)
    assert sentence in str(caught.value)


def test_a_column_of_rewards_is_one_number_each():
    _, rewards, *_ = stepped(HostEnvironments(Rows(rewards=np.array([[1], [2]])), name="Rows"), 1)
    assert rewards.tolist() == [1.0, 2.0]
    assert rewards.shape == (2,)


numbers = st.floats(allow_nan=True) | st.integers() | st.floats(width=32).map(np.float32)
anything = st.recursive(
    numbers
    | st.complex_numbers()
    | st.text(max_size=3)
    | st.booleans()
    | st.none()
    | st.binary(max_size=3)
    | numbers.map(np.array),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=2), inner)
    ),
    max_leaves=4,
)
column = numbers.map(lambda number: np.array([number])) | anything
returned_steps = st.tuples(
    column, numbers | anything, st.booleans() | anything, st.booleans() | anything, st.just({}) | anything
)


@settings(max_examples=150, deadline=None)
@given(returned_steps | anything)
def test_anything_is_refused_or_of_the_right_types(returned):
    """What passes is what Gymnasium's own passive checker asks for: shape, one number, two booleans, a dictionary."""
    space = Toy.observation_space
    try:
        observation, reward, terminated, truncated, info = checked_step(returned, space)
    except WrongOutput:
        return
    assert observation.shape == space.shape
    assert observation.dtype.kind in "biuf"
    assert (type(reward), type(terminated), type(truncated), type(info)) == (float, bool, bool, dict)


@settings(max_examples=50, deadline=None)
@given(st.tuples(column, st.just({}) | anything) | anything)
def test_any_reset_is_refused_or_of_the_right_types(returned):
    try:
        observation, info = checked_reset(returned, Toy.observation_space)
    except WrongOutput:
        return
    assert observation.shape == (1,)
    assert type(info) is dict


def test_sound_environments_are_stepped_as_without_the_check():
    make = lambda: gymnasium.make("CartPole-v1", disable_env_checker=True)  # noqa: E731
    plain, checked = SyncVectorEnv([make]), SyncVectorEnv([lambda: NameFaults(make(), name="CartPole-v1", index=0)])
    assert plain.reset(seed=3)[0].tolist() == checked.reset(seed=3)[0].tolist()
    for _ in range(60):
        for one, other in zip(plain.step(np.array([1])), checked.step(np.array([1])), strict=True):
            np.testing.assert_equal(one, other)


def gone_mad():
    environment = GoesMad()
    environment.third = (np.zeros(1), "1.0", False, False, {})
    return environment


def test_on_the_command_line_it_is_one_sentence_and_status_1(tmp_path, capsys):
    command = "train ppo --env tests.control.test_outputs:gone_mad --num-envs 2 --rollout-length 8 --minibatch-size 8 --hidden-sizes 4"
    assert main([*command.split(), "--total-steps", "64", "--quiet", "--out", str(tmp_path / "run")]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "environment 0 of tests.control.test_outputs:gone_mad returned a reward that is str" in sentence
    assert "at its step 3, with action" in sentence
    assert not (tmp_path / "run" / "metrics.jsonl").read_text(), "nothing was learnt from it"
