"""Spaces, networks, normalisers and permutations."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from scipy import stats

from surefoot.control.policies.networks import draw_network, evaluate_network
from surefoot.control.policies.normalization import (
    RunningStatistics,
    center,
    no_statistics,
    normalize,
    resolution_of,
    running_returns,
    scale_rewards,
    update_statistics,
)
from surefoot.control.policies.spaces import ActionSpace, Spaces, describe_spaces
from surefoot.control.update.permutation import INDEX_BITS, shuffled_minibatches
from surefoot.errors import UsageError

VECTOR = gym_spaces.Box(-1, 1, (3,))


def test_box_actions_reach_their_bounds_and_no_further():
    space = describe_spaces(
        VECTOR, gym_spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float32), name="X"
    ).action
    actions = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [-9.0, 9.0], [0.5, -0.5]], np.float32)
    np.testing.assert_allclose(space.for_environment(actions), [[-2, 0], [0, 5], [2, 10], [-2, 10], [1, 2.5]])
    np.testing.assert_allclose(jax.jit(space.for_environment)(actions), space.for_environment(actions))


def test_unbounded_actions_mean_themselves():
    space = describe_spaces(VECTOR, gym_spaces.Box(np.array([-np.inf, 0.0]), np.array([np.inf, np.inf])), name="X").action
    np.testing.assert_allclose(space.for_environment(np.array([[7.0, -3.0]], np.float32)), [[7.0, 0.0]])


def test_the_largest_float_means_unbounded():
    top = float(np.finfo(np.float32).max)
    space = describe_spaces(VECTOR, gym_spaces.Box(-top, top, (2,)), name="X").action
    np.testing.assert_array_equal(space.for_environment(np.array([[0.0, -3.0]], np.float32)), [[0.0, -3.0]])


@pytest.mark.parametrize("high", [0.5, 1e6, 2e6, 1e12, 1e30])
def test_bounds_of_any_size_are_scaled_to(high):
    space = describe_spaces(VECTOR, gym_spaces.Box(0, high, (1,), np.float32), name="X").action
    actions = np.array([[-1.0], [0.5], [1.0]], np.float32)
    np.testing.assert_allclose(space.for_environment(actions), np.array([[0], [0.75], [1]]) * high, rtol=1e-6)
    np.testing.assert_allclose(space.from_environment(space.for_environment(actions)), actions, rtol=1e-6)


@pytest.mark.parametrize(
    "space",
    [
        gym_spaces.Box(-0.1, 0.1, (2,), np.float64),
        gym_spaces.Box(np.array([0.1, -0.7]), np.array([0.3, 1e-9]), dtype=np.float64),
        gym_spaces.Box(-0.1, 0.3, (2,), np.float16),
        gym_spaces.Box(-65504, 65504, (2,), np.float16),
        gym_spaces.Box(-0.1, 2e9, (2,), np.float32),
        gym_spaces.Discrete(3, start=-7),
        gym_spaces.MultiDiscrete([2, 3], dtype=np.int16, start=[5, 0]),
        gym_spaces.MultiBinary(4),
    ],
    ids=str,
)
def test_numpy_actions_are_what_the_space_contains(space):
    """Gymnasium's own ``contains`` judges, for the policy's numbers inside, at and beyond the bounds; its seed's actions come back."""
    action = describe_spaces(VECTOR, space, name="X").action
    rng = np.random.default_rng(0)
    own = {
        "box": rng.choice([-9.0, -1.0, 0.3, 1.0, 9.0], (50, *action.shape)).astype(np.float32),
        "discrete": rng.integers(0, 3, 50, np.int32),
        "multidiscrete": rng.integers(0, 2, (50, 2), np.int32),
        "multibinary": rng.integers(0, 2, (50, 4), np.int32),
    }[action.kind]
    taken = action.for_environment(own)
    assert taken.dtype == space.dtype
    assert all(space.contains(one) for one in taken)


def test_numbering_of_actions_may_start_anywhere():
    discrete = describe_spaces(VECTOR, gym_spaces.Discrete(3, start=-1), name="X").action
    assert discrete.for_environment(np.array([0, 2], np.int32)).tolist() == [-1, 1]
    several = describe_spaces(VECTOR, gym_spaces.MultiDiscrete([2, 3], start=[10, 0]), name="X").action
    assert several.for_environment(np.array([[1, 2]], np.int32)).tolist() == [[11, 2]]


@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (
            gym_spaces.Discrete(3),
            gym_spaces.Discrete(2),
            "X has observations Discrete.3., and only vectors",
        ),
        (gym_spaces.Box(0, 1, (8, 8)), gym_spaces.Discrete(2), "only vectors"),
        (VECTOR, gym_spaces.Tuple([gym_spaces.Discrete(2)]), "X has actions Tuple"),
        (VECTOR, gym_spaces.Box(-1, 1, (2, 2)), "X has actions Box"),
    ],
)
def test_other_spaces_are_refused_by_name(observations, actions, words):
    with pytest.raises(UsageError, match=words):
        describe_spaces(observations, actions, name="X")


def test_spaces_survive_json():
    import json

    spaces = Spaces(
        4, ActionSpace("box", (2,), low=(-1.0, float("-inf")), high=(1.0, 2.0), environment_dtype="float64"), "float64"
    )
    assert Spaces.from_dict(json.loads(json.dumps(spaces.as_dict()))) == spaces


def test_bounds_in_files_without_a_dtype_mean_what_they_meant():
    """Policies were trained without scaling to bounds beyond a million."""
    action = {"kind": "box", "sizes": [2], "start": [], "low": [0.0, -1.0], "high": [2e6, 1.0]}
    space = Spaces.from_dict({"observation_size": 1, "action": action}).action
    np.testing.assert_array_equal(space.for_environment(np.float32([[7.0, 0.5], [-7.0, 2.0]])), [[7.0, 0.5], [0.0, 1.0]])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_network_is_torchs(activation):
    parameters = draw_network(np.random.default_rng(0), (5, 7, 3, 2), orthogonal=False, head_gain=1.0)
    layers = []
    for i in range(3):
        weight = parameters[f"layer_{i}/weight"]
        layer = torch.nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(parameters[f"layer_{i}/bias"])
        layers += [layer, {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[activation]()]
    x = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    expected = torch.nn.Sequential(*layers[:-1])(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(evaluate_network(parameters, x, activation=activation), expected, atol=1e-6)
    np.testing.assert_allclose(evaluate_network(parameters, jnp.asarray(x), activation=activation), expected, atol=1e-6)


@pytest.mark.parametrize("sizes", [(4, 64, 64, 2), (64, 8, 1)])
def test_orthogonal_initialisation(sizes):
    parameters = draw_network(np.random.default_rng(0), sizes, orthogonal=True, head_gain=0.01)
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = parameters[f"layer_{i}/weight"].astype(np.float64)
        gain = 0.01 if i == len(sizes) - 2 else np.sqrt(2)
        gram = weight.T @ weight if inputs >= outputs else weight @ weight.T
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-6)
        assert (parameters[f"layer_{i}/bias"] == 0).all()


def taken_in(statistics, batch, valid=None, **options):
    """Statistics that have seen a batch, cast to float32 where its mean has been subtracted, as rollouts are."""
    centered = np.asarray(center(batch, statistics), np.float32)
    valid = np.ones(len(batch), bool) if valid is None else valid
    return jax.tree.map(np.asarray, jax.jit(partial(update_statistics, **options))(statistics, centered, valid))


@pytest.mark.parametrize("exponent", [-40, -20, 20, 40])
def test_statistics_know_no_unit(exponent):
    """Multiplied by a power of two, which float32 does exactly, samples are normalised to the same bits."""
    unit = np.float32(2.0**exponent)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(64, 3)) * [0.01, 1, 30] + [1, 0, 0]).astype(np.float32) for _ in range(3)]
    one, other = no_statistics((3,)), no_statistics((3,))
    for batch in batches:
        valid = rng.random(64) < 0.8
        one, other = taken_in(one, batch, valid), taken_in(other, batch * unit, valid)
        np.testing.assert_array_equal(one.mean * unit, other.mean)
        np.testing.assert_array_equal(one.variance * unit**2, other.variance)
    assert (one.variance > 0).all()
    for normalized in (normalize, jax.jit(partial(normalize, clip=3.0))):
        given = {} if normalized is not normalize else {"clip": 3.0}
        np.testing.assert_array_equal(normalized(batches[0], one, **given), normalized(batches[0] * unit, other, **given))
    rewards = batches[0][:, 0]
    scales = (taken_in(no_statistics(()), rewards), taken_in(no_statistics(()), rewards * unit))
    given = (scale_rewards(rewards * u, scale, clip=2.0) for u, scale in zip((1, unit), scales, strict=True))
    np.testing.assert_array_equal(*given)


@pytest.mark.parametrize("offset", [1e6, 1e8, 1.7e9, -1e12])
def test_a_spread_far_from_zero_is_found_in_float64(offset):
    """NumPy's mean and standard deviation in extended precision are the oracle; each batch is centred by what is known before it."""
    rng = np.random.default_rng(0)
    batches = [offset + 0.3 * rng.normal(size=(256, 1)) for _ in range(4)]
    statistics = no_statistics((1,))._replace(mean=batches[0][0].astype(np.float32))
    for batch in batches:
        statistics = taken_in(statistics, batch, resolution=resolution_of(np.float64))
    seen = np.concatenate(batches).astype(np.longdouble)
    spread = float(seen.std())
    off = float(np.longdouble(statistics.mean[0]) + np.longdouble(statistics.remainder[0]) - seen.mean())
    slack = 2 * np.spacing(abs(offset)) + 1e-6  # of the samples themselves
    assert abs(off) < slack
    np.testing.assert_allclose(np.sqrt(statistics.variance), spread, rtol=1e-5 + np.spacing(abs(offset)))
    np.testing.assert_allclose(
        normalize(batches[0], statistics, clip=10.0)[:, 0],
        np.float64((batches[0][:, 0] - seen.mean()) / spread),
        atol=10 * slack,
    )


@pytest.mark.parametrize("value", [0.1, -9.81, 1e-9, 3e7, 0.0])
def test_what_does_not_vary_is_zero(value):
    """Also where rounding makes it vary in its last digits, and where it varies once the statistics are frozen."""
    rng = np.random.default_rng(0)
    statistics = no_statistics((2,))
    for _ in range(5):
        batch = np.full((2048, 2), value, np.float32)
        batch[:, 1] = np.nextafter(batch[:, 1], np.where(rng.random(2048) < 0.5, -1, 1).astype(np.float32))
        batch[:, 1] *= value != 0
        statistics = taken_in(statistics, batch)
    assert (statistics.variance == 0).all()
    assert (normalize(np.array([[value, value + 1]], np.float32), statistics, clip=10.0) == 0).all()


def test_rewards_that_are_all_alike_are_divided_by_their_size():
    for value in (1.0, -1e-12, 1e12):
        statistics = taken_in(no_statistics(()), np.full(40, value, np.float32))
        np.testing.assert_allclose(scale_rewards(np.float32([value]), statistics, clip=10.0), [np.sign(value)], rtol=1e-6)
    statistics = taken_in(no_statistics(()), np.zeros(40, np.float32))
    assert scale_rewards(np.zeros(3, np.float32), statistics, clip=10.0).tolist() == [0, 0, 0]


def test_statistics_of_batches_are_those_of_all_valid_samples():
    rng = np.random.default_rng(0)
    batches = [rng.normal(5, 3, size=(n, 2)).astype(np.float32) for n in (10, 1, 40)]
    masks = [rng.random(len(b)) < 0.7 for b in batches]
    batches[0][~masks[0]] = np.nan
    statistics = no_statistics((2,))
    for batch, mask in zip(batches, masks, strict=True):
        statistics = taken_in(statistics, batch, mask)
    seen = np.concatenate([b[m] for b, m in zip(batches, masks, strict=True)]).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, seen.var(axis=0), rtol=1e-5)
    assert statistics.count == len(seen)
    empty = update_statistics(statistics, jnp.full((3, 2), jnp.nan), jnp.zeros(3, bool))
    for before, after in zip(statistics, empty, strict=True):
        np.testing.assert_array_equal(before, after)


def test_statistics_survive_huge_numbers():
    statistics = no_statistics((2,))
    for _ in range(3):
        statistics = taken_in(statistics, np.array([[3e38, 1.0], [1.0, 2.0]], np.float32))
    assert all(np.isfinite(np.asarray(x)).all() for x in statistics)
    np.testing.assert_allclose(statistics.mean[1], 1.5)


def test_normalisation_by_hand():
    statistics = RunningStatistics(np.float32(2.0), np.float32(4.0), np.float32(9))
    np.testing.assert_allclose(
        normalize(np.array([2.0, 6.0, 1000.0, -1000.0], np.float32), statistics, clip=3.0), [0, 2, 3, -3], rtol=1e-6
    )


def test_running_returns_restart_at_both_kinds_of_end():
    column = lambda *x: np.array(x)[:, None]  # noqa: E731
    totals, last = running_returns(
        rewards=column(1.0, 1.0, 9.0, 1.0, 1.0),
        ends=column(False, True, False, False, True),
        valid=column(True, True, False, True, True),
        start=np.array([4.0]),
        discount=0.5,
    )
    np.testing.assert_allclose(np.asarray(totals)[:, 0], [3.0, 2.5, 0.0, 1.0, 1.5])
    np.testing.assert_allclose(last, [0.0])


@pytest.mark.parametrize("count", [1, 6, 64, 2049])
def test_minibatches_cover_everything_once_per_epoch(count):
    batches = np.asarray(
        shuffled_minibatches(jax.random.PRNGKey(3), count, epochs=3, minibatch_size=count if count % 2 else count // 2)
    )
    for epoch in np.split(batches.reshape(-1), 3):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_orders_are_uniform():
    """All 24 orders of four samples are equally frequent."""
    orders = np.asarray(shuffled_minibatches(jax.random.PRNGKey(0), 4, epochs=24_000, minibatch_size=4))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


def test_many_samples_take_the_librarys_permutation():
    count = 2**INDEX_BITS + 1
    order = np.asarray(shuffled_minibatches(jax.random.PRNGKey(0), count, epochs=1, minibatch_size=count))
    np.testing.assert_array_equal(np.sort(order[0]), np.arange(count))
    assert (order[0] != np.arange(count)).any()


@pytest.mark.parametrize("change", [{"observation_sise": 3}, {"": "float32"}])
def test_spaces_with_a_field_too_many_are_refused(change):
    spaces = Spaces(3, ActionSpace("discrete", sizes=(2,)))
    assert Spaces.from_dict(spaces.as_dict()) == spaces
    with pytest.raises(KeyError, match="spaces have no"):
        Spaces.from_dict(spaces.as_dict() | change)
