"""All trajectories of a small problem, or a sample of them where there are too many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from surefoot.errors import UsageError
from surefoot.exact.enumerable import TabularProblem

__all__ = ["Trajectories", "count_trajectories", "enumerate_trajectories", "sample_trajectories"]

MOST_STEPS = 10_000_000


class Trajectories(NamedTuple):
    """N trajectories side by side, time leading; rows after an episode's end are padding, marked in ``valid``."""

    states: Int[np.ndarray, "H N"]
    actions: Int[np.ndarray, "H N"]
    next_states: Int[np.ndarray, "H N"]
    valid: Bool[np.ndarray, "H N"]
    probabilities: Float[np.ndarray, " N"]
    """Under the policy; 1/N each where they are a sample."""

    def chunks(self, size: int) -> Iterator[Trajectories]:
        """The same in parts of at most ``size`` trajectories."""
        for start in range(0, len(self.probabilities), size):
            yield Trajectories(*(field[..., start : start + size] for field in self))


def count_trajectories(problem: TabularProblem) -> int:
    """How many trajectories have a positive probability under a policy that rules no action out."""
    possible = (problem.transition > 0).sum(axis=1)
    possible[problem.terminal] = 0
    possible = possible.astype(object)  # Python's integers: the count is exact, however large
    following = np.ones(problem.states, dtype=object)
    for _ in range(problem.horizon):
        following = np.where(problem.terminal, 1, possible @ following)
    return int(sum(following[problem.initial > 0]))


def enumerate_trajectories(problem: TabularProblem, policy: Float[np.ndarray, "S A"], *, limit: int) -> Trajectories:
    """Every trajectory, with its probability P(s_0) Π_t π(a_t|s_t) P(s_{t+1}|s_t,a_t).

    Args:
        problem: the problem.
        policy: π(a|s).
        limit: the most trajectories to make; they are counted first.

    Raises:
        UsageError: there are more than ``limit``.
    """
    count = count_trajectories(problem)
    if count > limit:
        raise UsageError(
            f"{problem.name} with horizon {problem.horizon} has {count} trajectories, more than {limit}; shorten it"
        )
    possible = (problem.transition > 0) & ~problem.terminal[:, None, None]
    of_state, of_action, of_next = np.nonzero(possible)  # sorted by state: the outcomes of a state lie together
    chance = policy[of_state, of_action] * problem.transition[of_state, of_action, of_next]
    branches = np.bincount(of_state, minlength=problem.states)
    first = np.cumsum(branches) - branches

    here = np.flatnonzero(problem.initial > 0)
    probabilities = problem.initial[here]
    path = np.zeros((3, 0, len(here)), dtype=np.int16)  # states, actions, next states
    finished: list[tuple[np.ndarray, np.ndarray]] = []
    for t in range(problem.horizon):
        parent = np.repeat(np.arange(len(here)), branches[here])
        starts = np.cumsum(branches[here]) - branches[here]
        outcome = first[here[parent]] + np.arange(len(parent)) - starts[parent]
        step = np.stack([of_state[outcome], of_action[outcome], of_next[outcome]]).astype(np.int16)
        path = np.concatenate([path[:, :, parent], step[:, None, :]], axis=1)
        probabilities = probabilities[parent] * chance[outcome]
        here = of_next[outcome]
        over = problem.terminal[here] | (t == problem.horizon - 1)
        finished.append((path[:, :, over], probabilities[over]))
        path, probabilities, here = path[:, :, ~over], probabilities[~over], here[~over]

    total = sum(p.shape[-1] for p, _ in finished)
    whole, valid = np.zeros((3, problem.horizon, total), dtype=np.int16), np.zeros((problem.horizon, total), dtype=bool)
    start = 0
    for part, _ in finished:
        whole[:, : part.shape[1], start : start + part.shape[2]] = part
        valid[: part.shape[1], start : start + part.shape[2]] = True
        start += part.shape[2]
    return Trajectories(whole[0], whole[1], whole[2], valid, np.concatenate([p for _, p in finished]))


def sample_trajectories(problem: TabularProblem, policy: Float[np.ndarray, "S A"], *, samples: int, seed: int) -> Trajectories:
    """``samples`` independent trajectories, each of weight 1/``samples``.

    Raises:
        UsageError: ``samples`` is below 2, too few for a variance, or they would hold more than ten million steps.
    """
    if samples < 2:
        raise UsageError(f"samples must be at least 2, but is {samples}")
    if samples * problem.horizon > MOST_STEPS:
        raise UsageError(
            f"{samples} trajectories of {problem.horizon} steps are too many; let the two multiply to at most {MOST_STEPS}"
        )
    rng = np.random.default_rng([seed, 2])
    shape = (problem.horizon, samples)
    states, actions, next_states = (np.zeros(shape, dtype=np.int16) for _ in range(3))
    valid = np.zeros(shape, dtype=bool)
    here, runs = _draw(rng, np.broadcast_to(problem.initial, (samples, problem.states))), np.ones(samples, dtype=bool)
    for t in range(problem.horizon):
        chosen = _draw(rng, policy[here])
        # Terminal rows hold no probabilities; a trajectory that is over stays where it is.
        arrived = np.where(runs, _draw(rng, problem.transition[here, chosen]), here)
        states[t], actions[t], next_states[t] = (np.where(runs, x, 0) for x in (here, chosen, arrived))
        valid[t] = runs
        here, runs = arrived, runs & ~problem.terminal[arrived]
    return Trajectories(states, actions, next_states, valid, np.full(samples, 1 / samples))


def _draw(rng: np.random.Generator, probabilities: Float[np.ndarray, "N n"]) -> Int[np.ndarray, " N"]:
    """One index per row."""
    reached = np.cumsum(probabilities, axis=-1)
    # Scaled by the row's own sum, so that rounding can never lead past the last index of positive probability.
    thresholds = rng.random(len(probabilities)) * reached[:, -1]
    return (reached <= thresholds[:, None]).sum(axis=-1).clip(max=probabilities.shape[-1] - 1)
