"""How good a saved policy is, in Gymnasium's own environment."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.configuration.run import WORKER_TIMEOUT
from surefoot.control.environments.functional import FunctionalEnvironment, FunctionalOnHost
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.making import Environment, environment_name, names_callable
from surefoot.control.environments.pool import Pool
from surefoot.control.environments.seeding import shared_generators_restored
from surefoot.control.environments.select import select_environments
from surefoot.control.episodes import LONGEST_EPISODE
from surefoot.control.playing import EVALUATION_SEED, Request, Step, play
from surefoot.control.policies.policy import Policy, load_policy
from surefoot.errors import UsageError


@shared_generators_restored()
def evaluate(
    run: str | Path,
    *,
    episodes: int = 100,
    backend: Backend = "gymnasium-sync",
    deterministic: bool = False,
    seed: int = 0,
    environment: Environment | None = None,
    num_envs: int | None = None,
    env_workers: int = 0,
    worker_timeout: float = WORKER_TIMEOUT,
    longest_episode: int | None = LONGEST_EPISODE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a saved policy for whole episodes; nothing of the run is changed.

    Each environment plays its share of the episodes, counted out beforehand. Which episodes they are depends on ``seed`` and
    ``num_envs``.

    Args:
        run: the run's folder.
        episodes: how many.
        backend: what steps the environment; Gymnasium's own by default, whatever the run was trained on, so that a
            result never rests on a re-implementation.
        deterministic: the most probable action instead of a sample.
        seed: of environments and actions.
        environment: what to take instead of the environment that the run names. One that is code, ``module:callable``, must be
            given here: a run from elsewhere may name any.
        num_envs: environments that step together; by default as many as the run had, at most ten.
        env_workers: processes that step Gymnasium's environments; 0 steps them in this one.
        worker_timeout: seconds that an environment in a worker process may take to be made, reset or stepped.
        longest_episode: steps after which an episode is cut, as a time limit cuts it; it counts with what it had returned by then.
            None cuts none.
        quiet: no progress.

    Returns:
        env, episodes, mean_return, std_return (population), mean_length, cut_episodes (how many were cut), deterministic, backend,
        and notices: sentences about what did not go as it should.

    Raises:
        UsageError: there is no policy, no such environment, its spaces are not the policy's, or a number is out of range.
        EnvironmentFault: an environment failed.
    """
    request = Request(episodes, seed, backend, num_envs, env_workers, worker_timeout, longest_episode, quiet).of_run(run)
    policy = load_policy(run)
    opened = open_environments(policy, request, environment)
    generator = np.random.default_rng([request.seed, 2])
    act = partial(policy, deterministic=deterministic, generator=generator)
    try:
        played = _returns_and_lengths(play(act, opened.environments, request))
    finally:
        notices = opened.environments.close()
    return {
        "env": opened.name,
        "episodes": request.episodes,
        "mean_return": float(played.returns.mean()),
        "std_return": float(played.returns.std()),
        "mean_length": float(played.lengths.mean()),
        "cut_episodes": played.cut,
        "deterministic": deterministic,
        "backend": opened.backend,
        "notices": list(notices),
    }


class Opened(NamedTuple):
    """Environments to run a saved policy in."""

    name: str
    environments: HostEnvironments
    backend: str


def open_environments(policy: Policy, request: Request, environment: Environment | None = None) -> Opened:
    """Make the environments that are asked for, whatever the policy was trained on; the caller closes them.

    Raises:
        UsageError: there is no such environment, its spaces are not the policy's, or it is code that only the policy's file names.
    """
    backend = request.backend
    name = str(policy.description["env"]) if environment is None else environment_name(environment)
    if environment is None and ":" in name:
        raise UsageError(
            f"the policy was trained in {name}, which is code that would be imported and run; if that is what you want, give --env {name}"
        )
    target: Environment = environment or name
    if backend == "gymnasium-sync" and (callable(target) or names_callable(target)):
        backend = "auto"  # a callable decides by what it returns
    selection = select_environments(
        target,
        backend=backend,
        num_envs=request.together,
        seed=EVALUATION_SEED + request.seed,
        exactly=False,
        workers=request.workers,
    )
    environments = selection.environments
    if isinstance(environments, Pool):
        environments = environments.on_host()
    if isinstance(environments, FunctionalEnvironment):
        copies = FunctionalOnHost(environments, num_envs=request.together, seed=request.seed)
        environments = HostEnvironments(copies, name=name, seeded=True)
    if environments.spaces != policy.spaces and not _compatible(policy, environments):
        environments.close()
        raise UsageError(f"{name} has spaces {environments.spaces}, but the policy was trained on {policy.spaces}")
    return Opened(name, environments, selection.backend)


def _compatible(policy: Policy, environments: HostEnvironments) -> bool:
    """Same sizes and kinds; bounds may differ between implementations by rounding."""
    mine, theirs = policy.spaces, environments.spaces
    return (mine.observation_size, mine.action.kind, mine.action.sizes) == (
        theirs.observation_size,
        theirs.action.kind,
        theirs.action.sizes,
    )


class _Played(NamedTuple):
    """Every episode, in the order in which they ended."""

    returns: np.ndarray
    lengths: np.ndarray
    cut: int
    """How many were cut."""


def _returns_and_lengths(steps: Iterable[Step]) -> _Played:
    returns: Any = 0.0
    lengths: Any = 0
    cut = 0
    finished: list[tuple[float, int]] = []
    for step in steps:
        cut += int(np.count_nonzero(step.cut))
        returns = returns + np.where(step.counts, step.rewards, 0.0)
        lengths = lengths + step.counts
        ended = step.ended
        finished += [(float(returns[i]), int(lengths[i])) for i in np.flatnonzero(ended)]
        returns, lengths = np.where(ended, 0.0, returns), np.where(ended, 0, lengths)
    return _Played(np.asarray([r for r, _ in finished]), np.asarray([length for _, length in finished]), cut)
