"""A discount per step, or per column: products of γ everywhere, against loops over them."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.equations import (
    discounted_returns,
    generalized_advantages,
    lambda_returns,
    n_step_returns,
    per_decision_importance_estimate,
    policy_gradient_weights,
    returns_so_far,
    temporal_difference_residuals,
    vtrace,
    weighted_per_decision_importance_estimate,
)
from tests.equations.test_returns import random_rollout
from tests.equations.test_weights import rollout

LOGS = ("log_probabilities", "behavior_log_probabilities")
CASES = {
    "residuals": (lambda r, **a: temporal_difference_residuals(**_of(r, "values", "next_values", "terminated"), **a)),
    "advantages": (lambda r, **a: generalized_advantages(**_of(r, "values", "next_values"), **_ends(r), **a, trace_decay=0.7)),
    "lambda": (lambda r, **a: lambda_returns(**_of(r, "values", "next_values"), **_ends(r), **a, trace_decay=0.7)),
    "returns": (lambda r, **a: discounted_returns(**_of(r, "next_values"), **_ends(r), **a)),
    "n steps": (lambda r, **a: n_step_returns(**_of(r, "next_values"), **_ends(r), **a, steps=3)),
    "total": (lambda r, **a: policy_gradient_weights("total-return", **_ends(r), **a)),
    "so far": (lambda r, **a: returns_so_far(**_ends(r), **a)[1]),
    "V-trace": (lambda r, **a: vtrace(**_of(r, "values", "next_values", *LOGS), **_ends(r), **a)[0]),
    "per decision": (lambda r, **a: per_decision_importance_estimate(log_weights=r["values"], **a)[1]),
    "weighted": (lambda r, **a: weighted_per_decision_importance_estimate(log_weights=r["values"], **a)[1]),
}


def _of(r, *names):
    return {name: r[name] for name in names}


def _ends(r):
    return _of(r, "terminated", "truncated")


def call(library, case, r, discount, **more):
    """``r`` and the discount go in as arrays, whatever the function is called."""
    given = {k: v for k, v in r.items() if k != "valid"} | more
    if isinstance(discount, np.ndarray):
        given["discount"], options = discount, {}
    else:
        options = {"discount": discount}

    def function(**a):
        named = {k: a.pop(k) for k in ("discount", "rewards", "valid") if k in a}
        return CASES[case](a, **named, **options)

    return library.call(function, **given)


def data_of(seed=2):
    r, rng = random_rollout(seed, resets=False), np.random.default_rng(seed)
    return r | {name: 0.3 * rng.normal(size=r["rewards"].shape) for name in LOGS}


@pytest.mark.parametrize("case", CASES)
def test_the_same_discount_at_every_step_is_one_discount(library, case):
    r = data_of()
    expected = call(library, case, r, 0.9)
    np.testing.assert_allclose(call(library, case, r, np.full(r["rewards"].shape, 0.9)), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(call(library, case, r, np.full((len(r["rewards"]), 1), 0.9)), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(call(library, case, r, np.full(r["rewards"].shape[1], 0.9)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_discount_per_column_is_each_columns_own(library, case):
    r, discount = data_of(), np.array([0.2, 0.5, 0.9, 1.0])
    whole = call(library, case, r, discount)
    for column in range(4):
        if case == "weighted":  # its terms are of all trajectories together
            break
        alone = call(library, case, {k: v[:, [column]] for k, v in r.items()}, float(discount[column]))
        np.testing.assert_allclose(whole[..., [column]] if whole.ndim == 2 else whole[[column]], alone, rtol=1e-9, atol=1e-10)


def loops(r, discount, steps=3, decay=0.7):
    """From the definitions, with the products of γ written out: everything that a discount is in."""
    time, columns = r["rewards"].shape
    names = ("residuals", "advantages", "lambda", "returns", "n steps", "total", "so far")
    out = {name: np.zeros((time, columns)) for name in names}
    for e in range(columns):
        begin = 0
        for t in range(time):
            reward, value, after, γ = (x[:, e] for x in (r["rewards"], r["values"], r["next_values"], discount))
            end = next(k for k in range(t, time) if r["terminated"][k, e] or r["truncated"][k, e] or k == time - 1)
            last = lambda k, e=e, after=after: 0.0 if r["terminated"][k, e] else after[k]  # noqa: E731
            δ = [reward[k] + γ[k] * last(k) - value[k] for k in range(time)]
            Γ = lambda a, b, γ=γ: float(np.prod(γ[a:b]))  # noqa: E731
            out["residuals"][t, e] = δ[t]
            out["advantages"][t, e] = sum(decay ** (k - t) * Γ(t, k) * δ[k] for k in range(t, end + 1))
            out["lambda"][t, e] = out["advantages"][t, e] + value[t]
            out["returns"][t, e] = sum(Γ(t, k) * reward[k] for k in range(t, end + 1)) + Γ(t, end + 1) * last(end)
            stop = min(t + steps - 1, end)
            out["n steps"][t, e] = sum(Γ(t, k) * reward[k] for k in range(t, stop + 1)) + Γ(t, stop + 1) * last(stop)
            out["so far"][t, e] = sum(Γ(begin, k) * reward[k] for k in range(begin, t))
            out["total"][t, e] = sum(Γ(begin, k) * reward[k] for k in range(begin, end + 1))
            begin = t + 1 if end == t else begin
    return out


@pytest.mark.parametrize("case", ["residuals", "advantages", "lambda", "returns", "n steps", "total", "so far"])
def test_discounts_that_change_from_step_to_step(library, case):
    r = data_of(4)
    discount = np.random.default_rng(1).uniform(0, 1, r["rewards"].shape)
    discount[5, 0], discount[0, 1] = 0.0, 1.0
    np.testing.assert_allclose(call(library, case, r, discount), loops(r, discount)[case], rtol=1e-9, atol=1e-10)


def test_estimates_with_discounts_that_change(library):
    rng = np.random.default_rng(3)
    rewards, log_weights, discount = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.uniform(0, 1, (6, 4))
    valid = np.arange(6)[:, None] < np.array([2, 6, 4, 1])
    before = np.array([[np.prod(discount[:t, i]) for i in range(4)] for t in range(6)])
    terms = np.exp(log_weights) * before * np.where(valid, rewards, 0)
    given = {
        "log_weights": log_weights,
        "rewards": np.where(valid, rewards, np.nan),
        "discount": np.where(valid, discount, np.nan),
        "valid": valid,
    }
    got = library.call(per_decision_importance_estimate, **given)
    np.testing.assert_allclose(got[1], terms.sum(axis=0), rtol=1e-12)
    got = library.call(weighted_per_decision_importance_estimate, **given)
    np.testing.assert_allclose(got[0], (terms.sum(axis=1) / np.exp(log_weights).sum(axis=1)).sum(), rtol=1e-12)


@pytest.mark.parametrize("case", ["residuals", "advantages", "lambda", "returns", "n steps", "total", "so far"])
def test_a_discount_of_a_masked_slot_reaches_nothing(library, case):
    data = rollout(3)
    r = {k: v for k, v in data.items() if k != "action_values"}
    discount = np.random.default_rng(1).uniform(0, 1, r["rewards"].shape)
    clean = call(library, case, r, discount, valid=r["valid"])
    poisoned = call(library, case, r, np.where(r["valid"], discount, np.nan), valid=r["valid"])
    np.testing.assert_array_equal(poisoned[r["valid"]], clean[r["valid"]])


def test_a_carry_into_a_discount_per_step_is_refused():
    """What the steps before the first row discounted is in none of the arguments."""
    r = random_rollout(1)
    ends = {k: r[k] for k in ("rewards", "terminated", "truncated", "valid")}
    elapsed = np.ones(4)
    with pytest.raises(ValueError, match="elapsed goes with one discount, or one per column"):
        returns_so_far(**ends, discount=np.full(r["rewards"].shape, 0.9), elapsed=elapsed)
    with pytest.raises(ValueError, match="elapsed goes with one discount, or one per column"):
        policy_gradient_weights("total-return", **ends, discount=np.full(r["rewards"].shape, 0.9), elapsed=elapsed)
    assert returns_so_far(**ends, discount=np.full(4, 0.9), elapsed=elapsed)[0][0].tolist() == [1, 1, 1, 1]
