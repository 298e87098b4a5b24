"""The named problems.

chain         a corridor with a small reward near and a large one far, in which one slips
two-paths     a risky bridge against a long safe way round
cliff         a walk along an edge; nothing is random but the policy
windy-cliff   the same with wind towards the edge; more trajectories than can be enumerated at its horizon
random-K      sparse random transitions and rewards from the seed K, for any integer K ≥ 0
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from surefoot.errors import UsageError
from surefoot.exact.enumerable import TabularProblem

__all__ = ["PROBLEMS", "make_problem"]

DEFAULT_DISCOUNT = 0.9
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


def _build(
    name: str, *, arrivals: np.ndarray, transition: np.ndarray, terminal: list[int], start: int, step_cost: float, horizon: int
) -> TabularProblem:
    """A problem whose reward is that of the state in which one arrives, less the cost of the step."""
    over = np.isin(np.arange(len(arrivals)), terminal)
    reward = np.where(over[:, None], 0.0, transition @ arrivals - step_cost)
    initial = np.eye(len(arrivals))[start]
    return TabularProblem(name, transition, reward, initial, over, DEFAULT_DISCOUNT, horizon)


def _chain() -> TabularProblem:
    """Seven places in a row, the ends terminal, start at 2: +0.4 at the near end, +1 at the far one.

    Actions: left, right; with probability 0.15 one slips the other way. Horizon 7.
    """
    length, slip = 7, 0.15
    transition = np.zeros((length, 2, length))
    for place in range(1, length - 1):
        for action, move in enumerate((-1, 1)):
            transition[place, action, place + move] += 1 - slip
            transition[place, action, place - move] += slip
    arrivals = np.zeros(length)
    arrivals[0], arrivals[-1] = 0.4, 1.0
    return _build(
        "chain", arrivals=arrivals, transition=transition, terminal=[0, length - 1], start=2, step_cost=0.0, horizon=7
    )


def _two_paths() -> TabularProblem:
    """A fork (0): a bridge (1) that is crossed with probability 0.8 walking and 0.4 running, else −1 and back to the
    fork; or three safe places (2, 3, 4). Either way leads to the goal (5), +1; each step costs 0.05. State 6 is the
    river, from which every action leads back to the fork.

    Actions: 0 takes the bridge, walks over it, waits on the long way; 1 takes the long way, runs over the bridge,
    goes on. Horizon 7.
    """
    transition = np.zeros((7, 2, 7))
    transition[0, 0, 1] = transition[0, 1, 2] = 1
    transition[1, 0, [5, 6]] = 0.8, 0.2
    transition[1, 1, [5, 6]] = 0.4, 0.6
    for place, following in ((2, 3), (3, 4), (4, 5)):
        transition[place, 0, place] = transition[place, 1, following] = 1
    transition[6, :, 0] = 1
    arrivals = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0])
    return _build("two-paths", arrivals=arrivals, transition=transition, terminal=[5], start=0, step_cost=0.05, horizon=7)


def _grid_walk(name: str, *, wind: float, horizon: int) -> TabularProblem:
    rows, columns = 2, 4
    states = rows * columns
    transition = np.zeros((states, len(MOVES), states))
    for row in range(rows):
        for column in range(columns):
            for action, (down, right) in enumerate(MOVES):
                to_row, to_column = min(max(row + down, 0), rows - 1), min(max(column + right, 0), columns - 1)
                blown = min(to_row + 1, rows - 1)
                transition[row * columns + column, action, to_row * columns + to_column] += 1 - wind
                transition[row * columns + column, action, blown * columns + to_column] += wind
    arrivals = np.array([0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, 1.0])
    return _build(name, arrivals=arrivals, transition=transition, terminal=[5, 6, 7], start=4, step_cost=0.05, horizon=horizon)


def _cliff() -> TabularProblem:
    """Two rows of four: start and goal (+1) at the ends of the lower row, the cliff (−1) between them; all three end
    the episode. Each step costs 0.05. Actions: up, right, down, left; a wall leaves one in place. Horizon 8.
    """
    return _grid_walk("cliff", wind=0.0, horizon=8)


def _windy_cliff() -> TabularProblem:
    """The cliff with a wind: after a move, one is blown one row down with probability 0.1. Horizon 12."""
    return _grid_walk("windy-cliff", wind=0.1, horizon=12)


def _random(seed: int) -> TabularProblem:
    """Four states and a terminal one, three actions, each with two possible successors; rewards N(0, 1). Horizon 6."""
    rng = np.random.default_rng([seed, 0])
    states, actions, successors = 5, 3, 2
    transition = np.zeros((states, actions, states))
    for state in range(states - 1):
        for action in range(actions):
            to = rng.choice(states, size=successors, replace=False)
            transition[state, action, to] = rng.dirichlet(np.ones(successors))
    reward = rng.normal(size=(states, actions))
    reward[-1] = 0
    initial = np.append(rng.dirichlet(np.ones(states - 1)), 0.0)
    over = np.arange(states) == states - 1
    return TabularProblem(f"random-{seed}", transition, reward, initial, over, DEFAULT_DISCOUNT, 6)


PROBLEMS: dict[str, Callable[[], TabularProblem]] = {
    "chain": _chain,
    "two-paths": _two_paths,
    "cliff": _cliff,
    "windy-cliff": _windy_cliff,
}
"""The problems with a name of their own; ``random-K`` comes on top."""


def make_problem(name: str, *, discount: float | None = None, horizon: int | None = None) -> TabularProblem:
    """The problem of a name.

    Args:
        name: one of :data:`PROBLEMS` or ``random-K``.
        discount: γ in [0, 1]; the problem's own, 0.9, by default.
        horizon: H ≥ 1 in steps; the problem's own by default.

    Raises:
        UsageError: there is no such problem, or γ or H is out of range.
    """
    numbered = re.fullmatch(r"random-(\d+)", name)
    if numbered:
        problem = _random(int(numbered[1]))
    elif name in PROBLEMS:
        problem = PROBLEMS[name]()
    else:
        raise UsageError(f"there is no problem {name!r}; there are {', '.join(PROBLEMS)} and random-0, random-1, …")
    return replace(
        problem,
        discount=problem.discount if discount is None else discount,
        horizon=problem.horizon if horizon is None else horizon,
    )
