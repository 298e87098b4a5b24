"""The weights ψ against loops written down from their definitions, episode by episode."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.equations import WEIGHT_NEEDS, WEIGHTS, elapsed_steps, policy_gradient_weights, returns_so_far
from tests.equations.libraries import NUMPY

STEPS, ENVS, DISCOUNT, DECAY, N = 23, 5, 0.9, 0.7, 3


def rollout(seed=0, masked=True):
    """Random numbers, ends of both kinds, and the reset slots after them."""
    generator = np.random.default_rng(seed)
    flags = np.zeros((3, STEPS, ENVS), bool)
    resetting = np.zeros(ENVS, bool)
    for t in range(STEPS):
        kind = generator.random(ENVS)
        flags[0, t], flags[1, t] = ~resetting & (kind < 0.12), ~resetting & (kind > 0.88)
        flags[2, t] = ~resetting
        resetting = (flags[0, t] | flags[1, t]) & masked
    numbers = {name: generator.standard_normal((STEPS, ENVS)) for name in ("rewards", "values", "next_values", "action_values")}
    return numbers | {"terminated": flags[0], "truncated": flags[1], "valid": flags[2]}


def by_loop(name, data, elapsed, collected):
    """ψ from the definition: every episode's stretch of the rollout on its own."""
    result, since, before = (np.zeros((STEPS, ENVS)) for _ in range(3))
    for env in range(ENVS):
        row, offset, bag = 0, elapsed[env], collected[env]
        while row < STEPS:
            if not data["valid"][row, env]:
                row, offset, bag = row + 1, 0, 0.0
                continue
            end = row
            while not (data["terminated"][end, env] or data["truncated"][end, env] or end == STEPS - 1):
                end += 1
            span = range(row, end + 1)
            r, v, after, q = (data[k][:, env] for k in ("rewards", "values", "next_values", "action_values"))
            last = 0.0 if data["terminated"][end, env] else after[end]
            follow = lambda t, end=end, last=last, v=v, after=after: last if t == end else after[t]  # noqa: E731
            for t in span:
                since[t, env] = offset + t - row
                before[t, env] = bag + sum(DISCOUNT ** (offset + k - row) * r[k] for k in range(row, t))
                to_go = sum(DISCOUNT ** (k - t) * r[k] for k in range(t, end + 1))
                if name == "total-return":
                    result[t, env] = bag + sum(DISCOUNT ** (offset + k - row) * r[k] for k in span)
                elif name == "reward-to-go":
                    result[t, env] = to_go
                elif name == "baseline":
                    result[t, env] = to_go + DISCOUNT ** (end + 1 - t) * last - v[t]
                elif name == "q-value":
                    result[t, env] = q[t]
                elif name == "advantage":
                    result[t, env] = q[t] - v[t]
                elif name == "td-residual":
                    result[t, env] = r[t] + DISCOUNT * follow(t) - v[t]
                elif name == "n-step":
                    stop = min(t + N - 1, end)
                    window = sum(DISCOUNT ** (k - t) * r[k] for k in range(t, stop + 1))
                    result[t, env] = window + DISCOUNT ** (stop + 1 - t) * follow(stop) - v[t]
                else:
                    result[t, env] = sum(
                        (DISCOUNT * DECAY) ** (k - t) * (r[k] + DISCOUNT * follow(k) - v[k]) for k in range(t, end + 1)
                    )
            row, offset, bag = end + 1, 0, 0.0
    return result, since, before


def of(library, name, data, **options):
    needs = {k: data[k] for k in WEIGHT_NEEDS[name] if k in data} | {
        k: v for k, v in (("trace_decay", DECAY), ("steps", N)) if k in WEIGHT_NEEDS[name]
    }
    known = {k: data[k] for k in ("rewards", "terminated", "truncated", "valid")}
    return library.call(lambda **a: policy_gradient_weights(name, discount=DISCOUNT, **a), **known, **needs, **options)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_their_definitions(library, name, masked):
    data = rollout(1, masked)
    elapsed, collected = np.arange(ENVS, dtype=float), np.linspace(-1, 1, ENVS)
    expected, since, before = by_loop(name, data, elapsed, collected)
    carried = {"elapsed": elapsed, "collected": collected} if name == "total-return" else {}
    np.testing.assert_allclose(of(library, name, data, **carried), expected, atol=1e-12)
    if name == "total-return":
        ends = {k: data[k] for k in ("rewards", "terminated", "truncated", "valid")}
        got = library.call(returns_so_far, discount=DISCOUNT, **ends, **carried)
        valid = data["valid"]
        np.testing.assert_allclose(got[0][valid], since[valid], atol=1e-12)
        np.testing.assert_allclose(got[1][valid], before[valid], atol=1e-12)


def test_the_beginning_is_the_beginning():
    """Without a carry, t and the sum before it start at 0."""
    data = rollout(2)
    since = elapsed_steps(terminated=data["terminated"], truncated=data["truncated"], valid=data["valid"], like=data["rewards"])
    _, expected, _ = by_loop("total-return", data, np.zeros(ENVS), np.zeros(ENVS))
    np.testing.assert_array_equal(since[data["valid"]], expected[data["valid"]])


@pytest.mark.parametrize("name", WEIGHTS)
def test_masked_numbers_reach_nothing(library, name):
    data = rollout(3)
    assert (~data["valid"]).any()
    clean = of(library, name, data)
    poisoned = data | {
        k: np.where(data["valid"], data[k], np.nan) for k in ("rewards", "values", "next_values", "action_values")
    }
    np.testing.assert_array_equal(of(library, name, poisoned), clean)
    np.testing.assert_array_equal(clean[~data["valid"]], 0)


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_missing_is_named(name):
    data = rollout()
    known = {k: data[k] for k in ("rewards", "terminated", "truncated")}
    if not WEIGHT_NEEDS[name]:
        assert policy_gradient_weights(name, discount=DISCOUNT, **known).shape == (STEPS, ENVS)
        return
    with pytest.raises(ValueError, match=f"the weight {name} needs {WEIGHT_NEEDS[name][0]}"):
        policy_gradient_weights(name, discount=DISCOUNT, **known)


def test_an_unknown_weight_is_refused_with_the_list():
    data = rollout()
    known = {k: data[k] for k in ("rewards", "terminated", "truncated")}
    with pytest.raises(ValueError, match="there is no weight 'best'; there are total-return, reward-to-go, baseline"):
        policy_gradient_weights("best", discount=DISCOUNT, **known)


def test_without_discounting_total_return_is_the_same_for_the_whole_episode():
    data = rollout(4, masked=False)
    total = NUMPY.call(
        lambda **a: policy_gradient_weights("total-return", discount=1.0, **a),
        **{k: data[k] for k in ("rewards", "terminated", "truncated")},
    )
    ends = data["terminated"] | data["truncated"]
    np.testing.assert_allclose(total[1:][~ends[:-1]], total[:-1][~ends[:-1]], atol=1e-12)
