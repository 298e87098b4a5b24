"""Returns and advantages against loops that follow the definitions, hand-computed cases and identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.equations import (
    discounted_returns,
    generalized_advantages,
    lambda_returns,
    n_step_returns,
    temporal_difference_residuals,
)
from surefoot.equations._library import reverse_linear_recurrence
from tests.equations.libraries import NUMPY


def random_rollout(seed: int, time: int = 23, envs: int = 4, resets: bool = True) -> dict[str, np.ndarray]:
    """Random numbers with ends of both kinds; with ``resets``, the slot after an end only resets."""
    rng = np.random.default_rng(seed)
    terminated, truncated, valid = (np.zeros((time, envs), bool) for _ in range(3))
    resetting = np.zeros(envs, bool)
    for t in range(time):
        valid[t] = ~resetting
        kind = rng.random(envs)
        terminated[t], truncated[t] = valid[t] & (kind < 0.12), valid[t] & (kind > 0.88)
        resetting = (terminated[t] | truncated[t]) if resets else resetting
    numbers = {name: rng.normal(size=(time, envs)) for name in ("rewards", "values", "next_values")}
    return numbers | {"terminated": terminated, "truncated": truncated, "valid": valid}


def loop_residuals(r, discount):
    bootstrap = np.where(r["terminated"], 0.0, r["next_values"])
    return np.where(r["valid"], r["rewards"] + discount * bootstrap - r["values"], 0.0)


def loop_advantages(r, discount, decay):
    """Σ_l (γλ)^l δ_{t+l}, term by term, stopping at the episode's end."""
    residuals, (time, envs) = loop_residuals(r, discount), r["rewards"].shape
    advantages = np.zeros((time, envs))
    for e in range(envs):
        for t in range(time):
            if not r["valid"][t, e]:
                continue
            for step in range(time - t):
                advantages[t, e] += (discount * decay) ** step * residuals[t + step, e]
                if r["terminated"][t + step, e] or r["truncated"][t + step, e]:
                    break
    return advantages


def loop_n_step(r, discount, steps):
    time, envs = r["rewards"].shape
    out = np.zeros((time, envs))
    for e in range(envs):
        for t in range(time):
            if not r["valid"][t, e]:
                continue
            for k in range(steps):
                out[t, e] += discount**k * r["rewards"][t + k, e]
                terminated = r["terminated"][t + k, e]
                if terminated or r["truncated"][t + k, e] or t + k == time - 1 or k == steps - 1:
                    out[t, e] += 0 if terminated else discount ** (k + 1) * r["next_values"][t + k, e]
                    break
    return out


@pytest.mark.parametrize("time", [1, 2, 3, 8, 13])
def test_recurrence_is_the_loop(library, time):
    rng = np.random.default_rng(time)
    coefficients, terms = rng.normal(size=(time, 3)), rng.normal(size=(time, 3))
    coefficients[time // 2, 0] = 0
    expected, following = np.zeros((time, 3)), np.zeros(3)
    for t in reversed(range(time)):
        following = expected[t] = terms[t] + coefficients[t] * following
    got = library.call(reverse_linear_recurrence, coefficients=coefficients, terms=terms)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_advantages_are_the_definition(library, decay, resets):
    r = random_rollout(3, resets=resets)
    got = library.call(generalized_advantages, **r, discount=0.97, trace_decay=decay)
    np.testing.assert_allclose(got, loop_advantages(r, 0.97, decay), rtol=1e-11, atol=1e-12)
    returns = library.call(lambda_returns, **r, discount=0.97, trace_decay=decay)
    np.testing.assert_allclose(returns, got + np.where(r["valid"], r["values"], 0), rtol=1e-12, atol=1e-12)


def test_residuals_are_the_definition(library):
    r = random_rollout(5)
    expected = loop_residuals(r, 0.9)
    del r["truncated"]
    np.testing.assert_allclose(library.call(temporal_difference_residuals, **r, discount=0.9), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 5, 22, 23, 40])
def test_n_step_returns_are_the_definition(library, steps):
    r = random_rollout(7)
    del r["values"]
    got = library.call(n_step_returns, **r, discount=0.9, steps=steps)
    np.testing.assert_allclose(got, loop_n_step(r, 0.9, steps), rtol=1e-10, atol=1e-11)


def windows_in_float64(rewards, next_values, ends, discount, steps):
    """The sum itself, a term at a time, for one long column."""
    out, weight, open_ = np.zeros(len(rewards)), np.ones(len(rewards)), np.ones(len(rewards), bool)
    for k in range(steps):
        rows = np.minimum(np.arange(len(rewards)) + k, len(rewards) - 1)
        out += np.where(open_, weight * rewards.astype(np.float64)[rows], 0)
        weight *= discount
        closes = open_ & (ends[rows] | (rows == len(rewards) - 1) | (k == steps - 1))
        out += np.where(closes, weight * next_values.astype(np.float64)[rows], 0)
        open_ &= ~closes
    return out


@pytest.mark.parametrize(("time", "discount", "scale"), [(2048, 0.99, 16), (4096, 1.0, 5)])
@pytest.mark.parametrize("steps", [5, 8])
def test_n_step_returns_in_float32_have_its_digits(library, time, discount, scale, steps):
    """As differences of returns over the whole rollout they lost a thousand times as much."""
    rng = np.random.default_rng(0)
    rewards = rng.uniform(0, scale, (time, 1)).astype(np.float32)
    next_values = rng.normal(size=(time, 1)).astype(np.float32)
    ends = np.zeros((time, 1), bool)
    got = library.call(
        n_step_returns, rewards=rewards, next_values=next_values, terminated=ends, truncated=ends.copy(), discount=discount,
        steps=steps,
    )  # fmt: skip
    assert got.dtype == np.float32
    exact = windows_in_float64(rewards[:, 0], next_values[:, 0], ends[:, 0], discount, steps)
    np.testing.assert_allclose(got[:, 0], exact, rtol=4e-7, atol=4e-7)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_reward_that_is_not_finite_reaches_the_rows_whose_windows_it_is_in(library, value):
    """Row 40 and the two before it; an end at row 39 keeps it from those too."""
    rewards, none, end = np.ones((50, 2)), np.zeros((50, 2), bool), np.zeros((50, 2), bool)
    rewards[40], end[39, 1] = value, True
    got = library.call(
        n_step_returns, rewards=rewards, next_values=np.ones((50, 2)), terminated=end, truncated=none, discount=0.9, steps=3
    )
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(got[:, 0])), [38, 39, 40])
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(got[:, 1])), [40])


def test_discounted_returns_by_hand(library):
    # Two episodes: rewards 1, 2 | terminal, then 3 | cut at a state of value 10, then 4 still going to a state of value 20.
    column = lambda *x: np.array(x)[:, None]  # noqa: E731
    arguments = {
        "rewards": column(1.0, 2.0, 3.0, 4.0),
        "terminated": column(False, True, False, False),
        "truncated": column(False, False, True, False),
        "next_values": column(99.0, 99.0, 10.0, 20.0),
    }
    got = library.call(discounted_returns, **arguments, discount=0.5)
    np.testing.assert_allclose(got[:, 0], [2.0, 2.0, 8.0, 14.0])
    del arguments["next_values"]
    np.testing.assert_allclose(library.call(discounted_returns, **arguments, discount=0.5)[:, 0], [2.0, 2.0, 3.0, 4.0])


def test_advantages_by_hand(library):
    # γ = ½, λ = ½. δ₁ = 3 − 1 = 2 (terminal), δ₀ = 1 + ½·1 − 2 = −½, A₀ = −½ + ¼·2 = 0.
    column = lambda *x: np.array(x)[:, None]  # noqa: E731
    got = library.call(
        generalized_advantages,
        rewards=column(1.0, 3.0),
        values=column(2.0, 1.0),
        next_values=column(1.0, 77.0),
        terminated=column(False, True),
        truncated=column(False, False),
        discount=0.5,
        trace_decay=0.5,
    )
    np.testing.assert_allclose(got[:, 0], [0.0, 2.0])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), time=st.integers(1, 40), discount=st.floats(0, 1), steps=st.integers(1, 45))
def test_identities(seed, time, discount, steps):
    r = random_rollout(seed, time=time)
    values = np.where(r["valid"], r["values"], 0)
    one_step = NUMPY.call(temporal_difference_residuals, **_without(r, "truncated"), discount=discount)
    zero_decay = NUMPY.call(generalized_advantages, **r, discount=discount, trace_decay=0.0)
    np.testing.assert_allclose(zero_decay, one_step, atol=1e-12)
    np.testing.assert_allclose(
        NUMPY.call(n_step_returns, **_without(r, "values"), discount=discount, steps=1), one_step + values, atol=1e-9
    )
    # λ = 1 is the bootstrapped return minus the baseline where V(s′_t) is the next row's V(s).
    same = r | {"next_values": np.where(_goes_on(r), np.roll(r["values"], -1, axis=0), r["next_values"])}
    full = NUMPY.call(lambda_returns, **same, discount=discount, trace_decay=1.0)
    np.testing.assert_allclose(full, NUMPY.call(discounted_returns, **_without(same, "values"), discount=discount), atol=1e-9)
    windows = NUMPY.call(n_step_returns, **_without(same, "values"), discount=discount, steps=steps)
    np.testing.assert_allclose(windows, loop_n_step(same, discount, steps), atol=1e-8)


def _without(r, *names):
    return {k: v for k, v in r.items() if k not in names}


def _goes_on(r):
    going = ~(r["terminated"] | r["truncated"])
    going[-1] = False
    return going


@pytest.mark.parametrize("function", [generalized_advantages, lambda_returns, n_step_returns, discounted_returns])
def test_masked_slots_cannot_leak(library, function):
    r = random_rollout(11)
    more = {generalized_advantages: {"trace_decay": 0.9}, lambda_returns: {"trace_decay": 0.9}, n_step_returns: {"steps": 3}}
    options = {"discount": 0.95, **more.get(function, {})}
    if function in (discounted_returns, n_step_returns):
        del r["values"]
    clean = library.call(function, **r, **options)
    poisoned = {k: v.copy() for k, v in r.items()}
    poisoned["rewards"][~r["valid"]] = np.nan
    if "values" in poisoned:
        poisoned["values"][~r["valid"]] = np.nan
    poisoned["next_values"][~r["valid"] | r["terminated"]] = np.nan
    np.testing.assert_array_equal(library.call(function, **poisoned, **options), clean)
    convert = library.convert
    if library.name in ("jax", "torch"):
        others = {k: convert(v) for k, v in poisoned.items() if k != "rewards"}
        gradient = library.gradient(lambda x: function(rewards=x, **others, **options), poisoned["rewards"])
        assert np.isfinite(gradient).all()
        assert (gradient[~r["valid"]] == 0).all()


def test_wrong_arguments_are_named():
    r = random_rollout(1)
    with pytest.raises(ValueError, match="discount must lie between 0 and 1"):
        generalized_advantages(**r, discount=1.5, trace_decay=0.9)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        n_step_returns(**_without(r, "values"), discount=0.9, steps=0)
    r["values"] = r["values"][:, :1]
    with pytest.raises(Exception, match="values"):  # the silent (T, N) × (T, 1) broadcast
        generalized_advantages(**r, discount=0.9, trace_decay=0.9)
