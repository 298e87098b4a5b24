"""How good a saved policy is, in Gymnasium's own environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.configuration.run import WORKER_TIMEOUT
from surefoot.control.environments.arguments import Wrapper, trusted
from surefoot.control.environments.functional import FunctionalEnvironment, FunctionalOnHost
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.identity.record import differences
from surefoot.control.environments.making import Environment, Recipe, names_callable, recipe_for
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
    env_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    wrapper: Iterable[Wrapper] | None = None,
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
            given here: a run from elsewhere may name any. So must one that was given to training as a callable.
        num_envs: environments that step together; by default as many as the run had, at most ten.
        env_workers: processes that step Gymnasium's environments; 0 steps them in this one.
        worker_timeout: seconds that an environment in a worker process may take to be made, reset or stepped.
        longest_episode: steps after which an episode is cut, as a time limit cuts it; it counts with what it had returned by then.
            None cuts none.
        quiet: no progress.
        env_kwargs: arguments of the environment, in place of the run's.
        wrapper: wrappers around each environment, in place of the run's. They are code, like the environment: those that are not
            Gymnasium's own must be given here.

    Returns:
        env, episodes, mean_return, std_return (population), mean_length, cut_episodes (how many were cut), deterministic, backend,
        and notices: sentences about what did not go as it should.

    Raises:
        UsageError: there is no policy, no such environment, its spaces are not the policy's, or a number is out of range.
        EnvironmentFault: an environment failed.
    """
    request = Request(
        episodes=episodes,
        seed=seed,
        backend=backend,
        num_envs=num_envs,
        env_workers=env_workers,
        worker_timeout=worker_timeout,
        longest_episode=longest_episode,
        quiet=quiet,
    ).of_run(run)
    policy = load_policy(run)
    opened = open_environments(policy, request, environment=environment, env_kwargs=env_kwargs, wrapper=wrapper)
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
        "notices": [*opened.notices, *notices],
    }


class Opened(NamedTuple):
    """Environments to run a saved policy in."""

    recipe: Recipe
    environments: HostEnvironments
    backend: str
    notices: tuple[str, ...] = ()
    """In what they are not what the policy was trained in."""

    @property
    def name(self) -> str:
        """Of the environment."""
        return self.recipe.name


def open_environments(
    policy: Policy,
    request: Request,
    *,
    environment: Environment | None = None,
    env_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    wrapper: Iterable[Wrapper] | None = None,
) -> Opened:
    """Make the environments that are asked for, whatever the policy was trained on; the caller closes them.

    Raises:
        UsageError: there is no such environment, its spaces are not the policy's, or it is code that only the policy's file names.
    """
    recipe, backend = _recipe(policy, environment, env_kwargs, wrapper), request.backend
    name = recipe.name
    if backend == "gymnasium-sync" and recipe.id is None:
        backend = "auto"  # a callable decides by what it returns
    settings: dict[str, Any] = {"seed": EVALUATION_SEED + request.seed, "exactly": False, "workers": request.workers}
    try:
        selection = select_environments(recipe, backend=backend, num_envs=request.together, **settings)
        environments = selection.environments
        if isinstance(environments, Pool):
            environments = environments.on_host()
        if isinstance(environments, FunctionalEnvironment):
            copies = FunctionalOnHost(environments, num_envs=request.together, seed=request.seed)
            environments = HostEnvironments(copies, name=name, seeded=True)
        found = differences(policy.environment, replace(selection.identity, spaces=environments.spaces))
        if other := [difference.sentence for difference in found if difference.part == "spaces"]:
            environments.close()
            raise UsageError(f"{name} has other spaces than the policy was trained with ({other[0]})")
    except UsageError as error:
        if policy.description.get("backend") != "envpool" or environment is not None or backend == "envpool":
            raise
        # What would be right for a new run, such as a wrapper, is not for this policy.
        reason = str(error).partition(";")[0]
        raise UsageError(f"the policy was trained in EnvPool's {name}, so give --backend envpool: {reason}") from error
    notices: tuple[str, ...] = tuple(d.caution(name, "the policy") for d in found)
    notices += selection.identity.about_statistics("every evaluation")
    return Opened(recipe, environments, selection.backend, notices)


def _recipe(
    policy: Policy,
    environment: Environment | None,
    env_kwargs: Mapping[str, Any] | Iterable[str] | None,
    wrapper: Iterable[Wrapper] | None,
) -> Recipe:
    """What the policy's environment is made from; what is code must be given, and is not taken from the policy's file.

    Raises:
        UsageError: code that is needed is not given.
    """
    recorded, named = policy.environment, str(policy.description["env"])
    if environment is None and recorded.unfound is not None:
        raise UsageError(recorded.unfound)
    if environment is None and ":" in named:
        raise UsageError(
            f"the policy was trained in {named}, which is code that would be imported and run; if that is what you want, give --env {named}"
        )
    given, wrappers = environment or named, policy.description.get("wrapper", ())
    if wrapper is None and (own := [w for w in wrappers if not trusted(w)]):
        raise UsageError(
            f"the policy was trained in the wrapper {', '.join(own)}, which is code that would be imported and run; if that is what you"
            f" want, give --wrapper {' '.join(wrappers)}"
        )
    another = isinstance(given, str) and not names_callable(given) and given != named
    arguments = () if another else policy.description.get("env_kwargs", ())  # another id's arguments are its own
    return recipe_for(given, arguments if env_kwargs is None else env_kwargs, wrappers if wrapper is None else wrapper)


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
