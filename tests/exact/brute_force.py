"""Trajectories one by one in plain Python, and every weight from its definition: the oracles of these tests."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from surefoot.exact.enumerable import TabularProblem


class Path(NamedTuple):
    probability: float
    states: list[int]  # s_0 … s_n, the last one not acted in
    actions: list[int]
    rewards: list[float]


def every_path(problem: TabularProblem, policies):
    """All trajectories; ``policies[t][s][a]`` may differ from step to step."""

    def extend(path: Path):
        t, here = len(path.actions), path.states[-1]
        if t == problem.horizon or problem.terminal[here]:
            yield path
            return
        for action in range(problem.actions):
            for there in range(problem.states):
                chance = float(problem.transition[here, action, there])
                if chance > 0:
                    yield from extend(
                        Path(
                            path.probability * float(policies[t][here][action]) * chance,
                            [*path.states, there],
                            [*path.actions, action],
                            [*path.rewards, float(problem.reward[here, action])],
                        )
                    )

    for start in range(problem.states):
        if problem.initial[start] > 0:
            yield from extend(Path(float(problem.initial[start]), [start], [], []))


def softmax(logits):
    return [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in np.asarray(logits).tolist()]


def stationary(problem: TabularProblem, logits):
    return [softmax(logits)] * problem.horizon


def discounted(rewards, discount):
    return sum(discount**k * r for k, r in enumerate(rewards))


def expected_return(problem: TabularProblem, policies) -> float:
    return sum(p.probability * discounted(p.rewards, problem.discount) for p in every_path(problem, policies))


def weights(problem: TabularProblem, path: Path, name: str, critic, action_values, *, trace_decay, steps):
    """ψ_t for t = 0 … n−1, straight from the definitions; ``critic[t][s]`` with 0 where nothing follows."""
    gamma, length = problem.discount, len(path.actions)

    def value(t: int) -> float:  # of the state reached at time t
        return 0.0 if t == length else float(critic[t][path.states[t]])

    to_go = [discounted(path.rewards[t:], gamma) for t in range(length)]
    residual = [path.rewards[t] + gamma * value(t + 1) - value(t) for t in range(length)]
    q = [float(action_values[t][path.states[t]][path.actions[t]]) for t in range(length)]
    window = [
        discounted(path.rewards[t : t + steps], gamma) + gamma ** min(steps, length - t) * value(min(t + steps, length))
        for t in range(length)
    ]
    return {
        "total-return": [to_go[0]] * length,
        "reward-to-go": to_go,
        "baseline": [to_go[t] - value(t) for t in range(length)],
        "q-value": q,
        "advantage": [q[t] - value(t) for t in range(length)],
        "td-residual": residual,
        "n-step": [window[t] - value(t) for t in range(length)],
        "gae": [sum((gamma * trace_decay) ** k * residual[t + k] for k in range(length - t)) for t in range(length)],
    }[name]


def gradient_estimate(problem: TabularProblem, policy, path: Path, name, critic, action_values, *, keep, trace_decay, steps):
    """Σ_t γᵗ ψ_t ∇log π(a_t|s_t) of one trajectory."""
    g = np.zeros((problem.states, problem.actions))
    psi = weights(problem, path, name, critic, action_values, trace_decay=trace_decay, steps=steps)
    for t, (state, action) in enumerate(zip(path.states, path.actions, strict=False)):
        factor = problem.discount**t if keep and name != "total-return" else 1.0
        for b in range(problem.actions):
            g[state, b] += factor * psi[t] * ((action == b) - policy[state][b])
    return g


def gradient_moments(problem: TabularProblem, logits, name: str, critic, action_values, **options):
    """Mean and variance of the estimate over all trajectories."""
    policy = softmax(logits)
    paths = list(every_path(problem, stationary(problem, logits)))
    chances = np.array([path.probability for path in paths])
    estimates = np.array([gradient_estimate(problem, policy, p, name, critic, action_values, **options) for p in paths])
    mean = np.tensordot(chances, estimates, 1)
    return mean, np.tensordot(chances, (estimates - mean) ** 2, 1)


def finite_difference(function, point, step=1e-5):
    """Central differences of a scalar function by every entry of an array."""
    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        shift = np.zeros_like(point)
        shift[index] = step
        gradient[index] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient
