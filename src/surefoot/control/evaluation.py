"""How good a saved policy is, in Gymnasium's own environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.environments.functional import FunctionalEnvironment, FunctionalOnHost
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.pool import Pool
from surefoot.control.environments.select import Environment, environment_name, names_callable, select_environments
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
        environment: a callable to take instead of the environment that the run names.

    Returns:
        env, episodes, mean_return, std_return (population), mean_length, deterministic, backend.

    Raises:
        UsageError: there is no policy, no such environment, or its spaces are not the policy's.
    """
    if episodes < 1:
        raise UsageError(f"--episodes must be at least 1, but is {episodes}")
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed must lie between 0 and 2147483647, but is {seed}")
    policy = load_policy(run)
    name = str(policy.description["env"]) if environment is None else environment_name(environment)
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
        raise UsageError(f"{name} has spaces {environments.spaces}, but the policy was trained on {policy.spaces}")
    try:
        returns, lengths = _play(policy, environments, episodes, deterministic=deterministic, seed=seed)
    finally:
        environments.close()
    return {
        "env": name,
        "episodes": episodes,
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
        "mean_length": float(lengths.mean()),
        "deterministic": deterministic,
        "backend": selection.backend,
    }


def _compatible(policy: Policy, environments: HostEnvironments) -> bool:
    """Same sizes and kinds; bounds may differ between implementations by rounding."""
    mine, theirs = policy.spaces, environments.spaces
    return (mine.observation_size, mine.action.kind, mine.action.sizes) == (
        theirs.observation_size,
        theirs.action.kind,
        theirs.action.sizes,
    )


def _play(
    policy: Policy, environments: HostEnvironments, episodes: int, *, deterministic: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths of exactly ``episodes`` episodes.

    Each environment gets its share of them beforehand: taking the first to finish would favour the short ones.
    """
    generator = np.random.default_rng([seed, 2])
    envs = environments.num_envs
    quota = np.full(envs, episodes // envs) + (np.arange(envs) < episodes % envs)
    returns, lengths = np.zeros(envs), np.zeros(envs, np.int64)
    finished: list[tuple[float, int]] = []
    resetting = np.zeros(envs, bool)
    observations = environments.reset(EVALUATION_SEED + seed)
    while quota.any():
        actions = policy(observations, deterministic=deterministic, generator=generator)
        observations, rewards, terminated, truncated, _ = environments.step(actions)
        counts = ~resetting
        returns += np.where(counts, rewards, 0.0)
        lengths += counts
        ended = (terminated | truncated) & counts
        for i in np.flatnonzero(ended):
            if quota[i] > 0:
                quota[i] -= 1
                finished.append((float(returns[i]), int(lengths[i])))
            returns[i], lengths[i] = 0.0, 0
        resetting = ended if environments.next_step else resetting
    return np.asarray([r for r, _ in finished]), np.asarray([length for _, length in finished])
