"""Slots that are not valid between those that are: they stop a sum over time, or are skipped, as the caller says."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.equations import (
    WEIGHTS,
    discounted_returns,
    elapsed_steps,
    generalized_advantages,
    lambda_returns,
    n_step_returns,
    per_decision_weights,
    policy_gradient_weights,
    returns_so_far,
    vtrace,
)
from tests.equations.libraries import AUTOGRAD

TIME, COLUMNS = 19, 6


def with_gaps(seed=3):
    """Numbers with gaps of every length, at the beginning and the end too; flags and numbers within gaps mean nothing."""
    rng = np.random.default_rng(seed)
    valid = rng.random((TIME, COLUMNS)) < np.array([0.3, 0.5, 0.7, 0.9, 0.0, 1.0])
    names = ("rewards", "values", "next_values", "action_values", "log_probabilities", "behavior_log_probabilities")
    numbers = {name: np.where(valid, rng.normal(size=valid.shape), np.nan) for name in names}
    kind = rng.random(valid.shape)
    return numbers | {"terminated": kind < 0.15, "truncated": kind > 0.85, "valid": valid}


def elapsed(like, **flags):
    return elapsed_steps(like=like, **flags)


STEPS, LOGS = ("rewards", "values", "next_values"), ("log_probabilities", "behavior_log_probabilities")
CASES = {
    "generalized advantages": (generalized_advantages, STEPS, {"discount": 0.9, "trace_decay": 0.7}),
    "lambda returns": (lambda_returns, STEPS, {"discount": 0.9, "trace_decay": 0.7}),
    "discounted returns": (discounted_returns, ("rewards",), {"discount": 0.9}),
    "bootstrapped returns": (discounted_returns, ("rewards", "next_values"), {"discount": 0.9}),
    **{f"{n} steps": (n_step_returns, ("rewards", "next_values"), {"discount": 0.9, "steps": n}) for n in (1, 2, 3, 7, 18, 30)},
    "V-trace": (vtrace, STEPS + LOGS, {"discount": 0.9, "trace_decay": 0.8, "largest_ratio": 1.5, "largest_trace": 0.6}),
    "per decision": (per_decision_weights, LOGS, {"limit": 3.0}),
    "elapsed": (elapsed, (), {}),
    "so far": (returns_so_far, ("rewards",), {"discount": 0.9}),
    **{
        f"weight {name}": (
            lambda name=name, **a: policy_gradient_weights(name, **a, discount=0.9, steps=3, trace_decay=0.7),
            ("rewards", "values", "next_values", "action_values"), {},
        )
        for name in WEIGHTS
    },
}  # fmt: skip


def moved_together(function, arguments, options):
    """Every column's valid rows alone, in a rollout without gaps, and put back."""
    valid = arguments["valid"]
    results = []
    for column in range(COLUMNS):
        rows = valid[:, column]
        alone = {k: v[rows][:, [column]] for k, v in arguments.items() if k != "valid" and v.ndim == 2}
        alone |= {k: v[[column]] for k, v in arguments.items() if v.ndim == 1}
        got = function(**alone, **options) if rows.any() else np.zeros((0, 1))
        parts = got if isinstance(got, tuple) else (got,)
        results.append([np.zeros(TIME) for _ in parts])
        for out, part in zip(results[-1], parts, strict=True):
            out[rows] = part[:, 0]
    counts = max(len(parts) for parts in results)
    return [np.stack([p[min(i, len(p) - 1)] for p in results], axis=1) for i in range(counts)]


@pytest.mark.parametrize("case", CASES)
def test_skipped_gaps_are_as_if_they_were_not_there(library, case):
    function, names, options = CASES[case]
    data = with_gaps()
    arguments = {k: data[k] for k in (*names, "terminated", "truncated", "valid")}
    if case == "elapsed":
        arguments["like"] = np.zeros((TIME, COLUMNS))
    if case == "so far":
        arguments |= {"elapsed": np.arange(COLUMNS) + 1.0, "collected": np.linspace(-1, 1, COLUMNS)}
    expected = moved_together(function, arguments, options)
    got = library.call(lambda **a: function(**a, gaps="skip", **options), **arguments)
    for part, right in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
        valid = data["valid"]
        np.testing.assert_allclose(np.where(valid, part, 0), right, rtol=1e-11, atol=1e-12)
        if case not in ("elapsed", "so far"):
            np.testing.assert_array_equal(part[~valid], 0)


@pytest.mark.parametrize("gaps", ["stop", "skip"])
def test_an_answer_over_two_turns_by_hand(library, gaps):
    """γ = ½, one reward of 1 at the end: the table of the module."""
    right = {"stop": [0, 0, 0, 0, 0.5, 1], "skip": [0.125, 0.25, 0, 0, 0.5, 1]}[gaps]
    none, valid = np.zeros(6, bool), np.array([1, 1, 0, 0, 1, 1])
    arguments = {"rewards": np.array([0, 0, 0, 0, 0, 1.0]), "terminated": none, "truncated": none.copy(), "valid": valid}
    got = library.call(lambda **a: discounted_returns(**a, discount=0.5, gaps=gaps), **arguments)
    np.testing.assert_array_equal(got, right)
    got = library.call(
        lambda **a: generalized_advantages(**a, discount=0.5, trace_decay=1.0, gaps=gaps),
        **arguments, values=np.zeros(6), next_values=np.zeros(6),
    )  # fmt: skip
    np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
@pytest.mark.parametrize("gaps", ["stop", "skip"])
def test_gradients_reach_valid_rows_alone(library, gaps):
    data = with_gaps(5)
    for case in ("generalized advantages", "bootstrapped returns", "3 steps"):
        function, names, options = CASES[case]
        fixed = {k: library.convert(data[k]) for k in (*names, "terminated", "truncated", "valid") if k != "rewards"}
        gradient = library.gradient(
            lambda x, f=function, fixed=fixed, options=options: f(rewards=x, **fixed, **options, gaps=gaps), data["rewards"]
        )
        assert (gradient[data["valid"]] > 0).all()
        np.testing.assert_array_equal(gradient[~data["valid"]], 0)


def test_a_choice_that_does_not_exist_is_refused_with_those_that_do():
    data = with_gaps()
    arguments = {k: data[k] for k in ("rewards", "terminated", "truncated", "valid")}
    with pytest.raises(ValueError, match="gaps must be 'stop' or 'skip', but is 'carry'"):
        discounted_returns(**arguments, discount=0.9, gaps="carry")
