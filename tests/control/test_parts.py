"""Spaces, networks, normalisers and permutations."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from scipy import stats

from surefoot.control.policies.networks import draw_network, evaluate_network
from surefoot.control.policies.normalization import RunningStatistics, normalize, running_returns, update_statistics
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

    spaces = Spaces(4, ActionSpace("box", (2,), low=(-1.0, float("-inf")), high=(1.0, 2.0)))
    assert Spaces.from_dict(json.loads(json.dumps(spaces.as_dict()))) == spaces


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


def test_statistics_of_batches_are_those_of_all_valid_samples():
    rng = np.random.default_rng(0)
    batches = [rng.normal(5, 3, size=(n, 2)).astype(np.float32) for n in (10, 1, 40)]
    masks = [rng.random(len(b)) < 0.7 for b in batches]
    batches[0][~masks[0]] = np.nan
    statistics = RunningStatistics(np.zeros(2, np.float32), np.ones(2, np.float32), np.float32(0))
    for batch, mask in zip(batches, masks, strict=True):
        statistics = jax.jit(update_statistics)(statistics, batch, mask)
    seen = np.concatenate([b[m] for b, m in zip(batches, masks, strict=True)]).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, seen.var(axis=0), rtol=1e-5)
    assert statistics.count == len(seen)
    empty = update_statistics(statistics, jnp.full((3, 2), jnp.nan), jnp.zeros(3, bool))
    for before, after in zip(statistics, empty, strict=True):
        np.testing.assert_array_equal(before, after)


def test_statistics_survive_huge_numbers():
    statistics = RunningStatistics(np.zeros(2, np.float32), np.ones(2, np.float32), np.float32(0))
    for _ in range(3):
        statistics = jax.jit(update_statistics)(statistics, np.array([[3e38, 1.0], [1.0, 2.0]], np.float32), np.ones(2, bool))
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
