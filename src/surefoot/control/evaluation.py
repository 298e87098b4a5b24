"""How good a saved policy is, in Gymnasium's own environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.environments.functional import FunctionalEnvironment, FunctionalOnHost
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.making import Environment, environment_name, names_callable
from surefoot.control.environments.pool import Pool
from surefoot.control.environments.select import select_environments
from surefoot.control.policies.policy import Policy, load_policy
from surefoot.errors import UsageError

CONCURRENT = 10
EVALUATION_SEED = 2**31
"""Evaluation's seeds start here, where those of training end."""


def evaluate(
    run: str | Path,
    *,
    episodes: int = 100,
    backend: Backend = "gymnasium-sync",
    deterministic: bool = False,
    seed: int = 0,
    environment: Environment | None = None,
) -> dict[str, Any]:
    """Run a saved policy for whole episodes; nothing of the run is changed.

    Args:
        run: the run's folder.
        episodes: how many.
        backend: what steps the environment; Gymnasium's own by default, whatever the run was trained on, so that a
            result never rests on a re-implementation.
        deterministic: the most probable action instead of a sample.
        seed: of environments and actions.
        environment: what to take instead of the environment that the run names. One that is code, ``module:callable``, must be
            given here: a run from elsewhere may name any.

    Returns:
        env, episodes, mean_return, std_return (population), mean_length, deterministic, backend, and notices: sentences about what
        did not go as it should.

    Raises:
        UsageError: there is no policy, no such environment, or its spaces are not the policy's.
    """
    check_request(episodes=episodes, seed=seed)
    policy = load_policy(run)
    opened = open_environments(policy, backend=backend, episodes=episodes, seed=seed, environment=environment)
    generator = np.random.default_rng([seed, 2])
    act = partial(policy, deterministic=deterministic, generator=generator)
    try:
        returns, lengths = _returns_and_lengths(play(act, opened.environments, episodes, seed=seed))
    finally:
        notices = opened.environments.close()
    return {
        "env": opened.name,
        "episodes": episodes,
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
        "mean_length": float(lengths.mean()),
        "deterministic": deterministic,
        "backend": opened.backend,
        "notices": list(notices),
    }


def check_request(*, episodes: int, seed: int) -> None:
    """Raise UsageError where a number is out of range."""
    if episodes < 1:
        raise UsageError(f"--episodes must be at least 1, but is {episodes}")
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed must lie between 0 and 2147483647, but is {seed}")


class Opened(NamedTuple):
    """Environments to run a saved policy in."""

    name: str
    environments: HostEnvironments
    backend: str


def open_environments(
    policy: Policy, *, backend: Backend, episodes: int, seed: int, environment: Environment | None = None
) -> Opened:
    """Make as many environments as ``episodes`` need, whatever the policy was trained on; the caller closes them.

    Raises:
        UsageError: there is no such environment, its spaces are not the policy's, or it is code that only the policy's file names.
    """
    name = str(policy.description["env"]) if environment is None else environment_name(environment)
    if environment is None and ":" in name:
        raise UsageError(
            f"the policy was trained in {name}, which is code that would be imported and run; if that is what you want, give --env {name}"
        )
    target: Environment = environment or name
    if backend == "gymnasium-sync" and (callable(target) or names_callable(target)):
        backend = "auto"  # a callable decides by what it returns
    selection = select_environments(
        target, backend=backend, num_envs=min(episodes, CONCURRENT), seed=EVALUATION_SEED + seed, exactly=False
    )
    environments = selection.environments
    if isinstance(environments, Pool):
        environments = environments.on_host()
    if isinstance(environments, FunctionalEnvironment):
        copies = FunctionalOnHost(environments, num_envs=min(episodes, CONCURRENT), seed=seed)
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


class Step(NamedTuple):
    """What one step of all environments brought; each field has one row per environment."""

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observations: np.ndarray
    """True next ones, final ones included; the environments may overwrite them at the next step."""
    counts: np.ndarray
    """Whether the row is a step of one of the episodes asked for: no reset, nor an episode beyond them."""


def play(
    act: Callable[[np.ndarray], np.ndarray], environments: HostEnvironments, episodes: int, *, seed: int
) -> Iterator[Step]:
    """Play exactly ``episodes`` episodes, step by step.

    Each environment gets its share of them beforehand: taking the first to finish would favour the short ones.

    Args:
        act: from observations to the environments' actions.
        environments: what is stepped.
        episodes: how many.
        seed: of the environments.
    """
    envs = environments.num_envs
    quota = np.full(envs, episodes // envs) + (np.arange(envs) < episodes % envs)
    resetting = np.zeros(envs, bool)
    observations = environments.reset(EVALUATION_SEED + seed)
    while quota.any():
        observations, rewards, terminated, truncated, finals = environments.step(act(observations))
        ended = (terminated | truncated) & ~resetting
        following = observations if finals is None else np.where(ended[:, None], finals, observations)
        yield Step(rewards, terminated, truncated, following, ~resetting & (quota > 0))
        quota -= ended & (quota > 0)
        resetting = ended if environments.next_step else resetting


def _returns_and_lengths(steps: Iterable[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Of every episode, in the order in which they ended."""
    returns: Any = 0.0
    lengths: Any = 0
    finished: list[tuple[float, int]] = []
    for step in steps:
        returns = returns + np.where(step.counts, step.rewards, 0.0)
        lengths = lengths + step.counts
        ended = (step.terminated | step.truncated) & step.counts
        finished += [(float(returns[i]), int(lengths[i])) for i in np.flatnonzero(ended)]
        returns, lengths = np.where(ended, 0.0, returns), np.where(ended, 0, lengths)
    return np.asarray([r for r, _ in finished]), np.asarray([length for _, length in finished])
