"""V-trace against the definition, its fixed point over every trajectory, and what masks and gradients may reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from surefoot.equations import generalized_advantages, lambda_returns
from surefoot.equations.importance import cumulative_log_weights, per_decision_weights, trajectory_log_weights
from surefoot.equations.off_policy import vtrace
from tests.equations.libraries import AUTOGRAD, NUMPY
from tests.equations.test_importance import BEHAVIOR, DISCOUNT, HORIZON, REWARDS, TARGET, TRANSITIONS, true_return
from tests.equations.test_returns import random_rollout


def loop_vtrace(r, ratios, discount, decay, largest_ratio, largest_trace):
    """Equation 1 of the paper, sum by sum and product by product, with ends of both kinds."""
    time, envs = ratios.shape
    targets, advantages = np.zeros((time, envs)), np.zeros((time, envs))
    rho, c = np.minimum(ratios, largest_ratio), decay * np.minimum(ratios, largest_trace)
    for e, s in itertools.product(range(envs), range(time)):
        if not r["valid"][s, e]:
            continue
        total, product, correction_behind = r["values"][s, e], 1.0, 0.0
        for t in range(s, time):
            bootstrap = 0.0 if r["terminated"][t, e] else r["next_values"][t, e]
            delta = rho[t, e] * (r["rewards"][t, e] + discount * bootstrap - r["values"][t, e])
            total += product * delta
            if t > s:
                correction_behind += product / (discount * c[s, e]) * delta  # v_{s+1} − V(s_{s+1})
            product *= discount * c[t, e]
            if r["terminated"][t, e] or r["truncated"][t, e]:
                break
        targets[s, e] = total
        bootstrap = 0.0 if r["terminated"][s, e] else r["next_values"][s, e]
        advantage = r["rewards"][s, e] + discount * (bootstrap + decay * correction_behind) - r["values"][s, e]
        advantages[s, e] = rho[s, e] * advantage
    return targets, advantages


def vtrace_case(seed, resets=True):
    r, rng = random_rollout(seed, resets=resets), np.random.default_rng(seed + 1)
    shape = r["rewards"].shape
    return r, {"log_probabilities": rng.normal(size=shape), "behavior_log_probabilities": rng.normal(size=shape)}


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize(("decay", "largest_ratio", "largest_trace"), [(1.0, 1.0, 1.0), (0.8, 2.5, 1.2), (1.0, 100.0, 100.0)])
def test_vtrace_is_the_definition(library, resets, decay, largest_ratio, largest_trace):
    r, logs = vtrace_case(2, resets)
    ratios = np.exp(logs["log_probabilities"] - logs["behavior_log_probabilities"])
    options = {"trace_decay": decay, "largest_ratio": largest_ratio, "largest_trace": largest_trace}
    got = library.call(vtrace, **r, **logs, discount=0.95, **options)
    for part, expected in zip(got, loop_vtrace(r, ratios, 0.95, decay, largest_ratio, largest_trace), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("limit", [1.0, 3.0])
def test_vtrace_on_policy_is_the_lambda_return(library, limit):
    r, logs = vtrace_case(9)
    same = logs["log_probabilities"]
    options = {"discount": 0.9, "trace_decay": 0.7}
    got = library.call(
        vtrace, **r, log_probabilities=same, behavior_log_probabilities=same,
        largest_ratio=limit, largest_trace=limit, **options,
    )  # fmt: skip
    np.testing.assert_allclose(got[0], NUMPY.call(lambda_returns, **r, **options), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got[1], NUMPY.call(generalized_advantages, **r, **options), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("largest_ratio", [1.0, 1.2, 100.0])
def test_vtrace_fixed_point(largest_ratio):
    """E_μ[v(s₀)] = V(s₀) exactly where V is the value of π_ρ̄ ∝ min(ρ̄μ, π), over every trajectory; elsewhere it is not."""
    held = np.minimum(largest_ratio * BEHAVIOR, TARGET)
    fixed = held / held.sum(axis=1, keepdims=True)
    # V by time left, so that the horizon is part of the state.
    values = np.zeros((HORIZON + 1, 3))
    for left in range(1, HORIZON + 1):
        q = (TRANSITIONS * (REWARDS + DISCOUNT * values[left - 1])).sum(axis=2)
        values[left, :2] = (fixed * q).sum(axis=1)
    for wrong in (False, True):
        expectation = 0.0

        def go_on(state, probability, steps, wrong=wrong):
            nonlocal expectation
            if state == 2 or len(steps) == HORIZON:
                states, actions, following, left = (np.array(column) for column in zip(*steps, strict=True))
                column = lambda x: np.asarray(x)[:, None]  # noqa: E731
                v = values[left, states] + wrong * (states == 1)
                v_next = values[left - 1, following] + wrong * (following == 1) * (left > 1)
                got = vtrace(
                    log_probabilities=column(np.log(TARGET[states, actions])),
                    behavior_log_probabilities=column(np.log(BEHAVIOR[states, actions])),
                    rewards=column(REWARDS[states, actions, following]),
                    values=column(v), next_values=column(v_next),
                    terminated=column((following == 2) | (left == 1)), truncated=column(following > 5),
                    discount=DISCOUNT, largest_ratio=largest_ratio, largest_trace=1.0,
                )  # fmt: skip
                expectation += probability * got.targets[0, 0]
                return
            for action, following in itertools.product(range(2), range(3)):
                chance = BEHAVIOR[state, action] * TRANSITIONS[state, action, following]
                if chance > 0:
                    go_on(following, probability * chance, [*steps, (state, action, following, HORIZON - len(steps))])

        go_on(0, 1.0, [])
        if wrong:
            assert abs(expectation - values[HORIZON, 0]) > 1e-3
        else:
            np.testing.assert_allclose(expectation, values[HORIZON, 0], rtol=1e-11)
    if largest_ratio == 100.0:
        np.testing.assert_allclose(values[HORIZON, 0], true_return(TARGET), rtol=1e-12)


@pytest.mark.parametrize("function", [vtrace, per_decision_weights, cumulative_log_weights, trajectory_log_weights])
def test_masked_slots_reach_nothing(library, function):
    r, logs = vtrace_case(12)
    more = {vtrace: {"discount": 0.9}, per_decision_weights: {"limit": 2.0}}.get(function, {})
    names = {vtrace: list(r), per_decision_weights: ["terminated", "truncated", "valid"]}.get(function, ["valid"])
    arguments = {k: r[k] for k in names} | logs
    clean = library.call(function, **arguments, **more)
    poisoned = {k: v.copy() for k, v in arguments.items()}
    for name in {"rewards", "values", "next_values", *logs} & set(poisoned):
        poisoned[name][~r["valid"]] = np.nan
    if "next_values" in poisoned:
        poisoned["next_values"][r["terminated"]] = np.nan
    np.testing.assert_array_equal(library.call(function, **poisoned, **more), clean)
    if library in AUTOGRAD:
        name = "values" if function is vtrace else "log_probabilities"
        others = {k: library.convert(v) for k, v in poisoned.items() if k != name}

        def total(x):
            out = function(**{name: x}, **others, **more)
            return sum(part.sum() for part in out) if isinstance(out, tuple) else out

        assert np.isfinite(library.gradient(total, poisoned[name])).all()


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
def test_gradients_stop(library):
    """V-trace's outputs and the weights for the policy gradient are constants; a log-weight is not."""
    r, logs = vtrace_case(3)
    fixed = {k: library.convert(v) for k, v in (r | logs).items()}
    for name in ("values", "log_probabilities", "next_values"):
        others = {k: v for k, v in fixed.items() if k != name}
        for part in (0, 1):
            gradient = library.gradient(
                lambda x, name=name, others=others, part=part: vtrace(**{name: x}, **others, discount=0.9)[part],
                (r | logs)[name],
            )
            np.testing.assert_array_equal(gradient, 0)
    flags = {k: fixed[k] for k in ("terminated", "truncated", "valid")}
    behavior = fixed["behavior_log_probabilities"]
    gradient = library.gradient(
        lambda x: per_decision_weights(log_probabilities=x, behavior_log_probabilities=behavior, **flags, limit=2.0),
        logs["log_probabilities"],
    )
    np.testing.assert_array_equal(gradient, 0)
    gradient = library.gradient(
        lambda x: trajectory_log_weights(log_probabilities=x, behavior_log_probabilities=behavior, valid=fixed["valid"]),
        logs["log_probabilities"],
    )
    np.testing.assert_array_equal(gradient, r["valid"].astype(float))


def test_wrong_arguments_are_named():
    r, logs = vtrace_case(1)
    with pytest.raises(ValueError, match="must be positive and at most largest_ratio"):
        vtrace(**r, **logs, discount=0.9, largest_trace=2.0)
    with pytest.raises(ValueError, match="trace_decay must lie between 0 and 1"):
        vtrace(**r, **logs, discount=0.9, trace_decay=2.0)
