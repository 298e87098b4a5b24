"""From an environment's name (or a callable) and a backend to environments that can be stepped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv

from surefoot.control.configuration import Backend
from surefoot.control.environments.functional import FunctionalEnvironment, check_functional, make_functional
from surefoot.control.environments.host import HostEnvironments, NameFaults, environment_seed
from surefoot.control.environments.identity.comparison import EnvPoolTask, compare_with_gymnasium
from surefoot.control.environments.identity.reading import describe, describe_vector
from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.control.environments.making import (
    Environment,
    Recipe,
    call_factory,
    check_copies,
    make_named,
    make_single,
    recipe_for,
    specification_of,
)
from surefoot.control.environments.pool import Pool, has_task, is_installed
from surefoot.control.environments.seeding import seed_shared
from surefoot.control.environments.workers.vector import WorkerEnvironments, WorkerSettings
from surefoot.control.policies.spaces import describe_spaces
from surefoot.errors import Caution, UsageError

Environments = HostEnvironments | Pool | FunctionalEnvironment

POOLED = ("gymnasium.envs.classic_control", "gymnasium.envs.box2d", "gymnasium.envs.mujoco", "gymnasium.envs.toy_text")


@dataclass(frozen=True)
class Selection:
    """Environments, and why these."""

    environments: Environments
    backend: str
    notices: tuple[str, ...]
    """Sentences for the user: which backend was chosen, and what would be faster."""
    identity: EnvironmentIdentity
    """What they are."""
    again: Callable[[int], Selection] | None = None
    """The same environments made anew, to begin with the given iteration."""

    @property
    def described(self) -> dict[str, str | None]:
        """What a resumed run must find again."""
        return {"backend": self.backend, "data": None}


def select_environments(
    environment: Environment | Recipe,
    *,
    backend: Backend,
    num_envs: int,
    seed: int,
    exactly: bool = True,
    began: int = 0,
    workers: WorkerSettings | None = None,
) -> Selection:
    """Make ``num_envs`` environments.

    Args:
        environment: an id, ``package.module:callable``, or a callable that returns a Gymnasium environment, a
            Gymnasium vector environment (called with num_envs) or a :class:`FunctionalEnvironment`; or any of these with arguments
            and wrappers.
        backend: what shall step them.
        num_envs: how many.
        seed: the run's, or an evaluation's: EnvPool, and environments that draw numbers as they are made, want it here.
        exactly: refuse a vector environment of another number; else take it as it is.
        began: the iteration that the environments begin with, which EnvPool's seed comes from as well.
        workers: the processes that step them; None for this one.

    Raises:
        UsageError: there is no such environment, the backend does not have it, or a package that it needs is missing.
    """
    recipe = environment if isinstance(environment, Recipe) else recipe_for(environment)

    def make(began: int) -> Selection:
        own = environment_seed(seed, began)
        if workers is not None:
            return _in_workers(recipe, backend=backend, num_envs=num_envs, settings=workers, seed=own)
        seed_shared(own)
        if recipe.id is None:
            return _from_callable(recipe, backend=backend, num_envs=num_envs, exactly=exactly)
        return _from_id(recipe, recipe.id, backend, num_envs, seed, began)

    selected = make(began)
    return selected if selected.again is not None else replace(selected, again=make)


def _in_workers(recipe: Recipe, *, backend: Backend, num_envs: int, settings: WorkerSettings, seed: int) -> Selection:
    """Gymnasium's environments, one after the other, in processes of their own."""
    if os.name != "posix":
        raise UsageError("--env-workers needs a Unix system; leave it out")
    if (name := recipe.id) is not None:
        if name.startswith("phys2d/"):
            raise UsageError(f"--env-workers would do nothing: {name} is a pure-JAX environment; leave it out")
        if backend == "gymnasium" and recipe.plain and specification_of(name).vector_entry_point is not None:
            raise UsageError(
                f"--backend gymnasium steps {name} in Gymnasium's own vectorised version, which is one process; take"
                " gymnasium-sync, or leave --env-workers out"
            )
    several = f"{settings.count} worker processes" if settings.count > 1 else "a worker process"
    inside = WorkerEnvironments(recipe, name=recipe.name, num_envs=num_envs, settings=settings, seed=seed)
    notice = f"backend gymnasium-sync, Gymnasium's environments in {several}"
    environments = HostEnvironments(inside, name=recipe.name)
    return Selection(environments, "gymnasium-sync", (notice,), replace(inside.identity, spaces=environments.spaces))


def _from_id(recipe: Recipe, name: str, backend: Backend, num_envs: int, seed: int, began: int) -> Selection:
    if backend in ("envpool", "jax") and not recipe.plain:
        kind = "EnvPool's own" if backend == "envpool" else "a pure-JAX"
        raise UsageError(
            f"--backend {backend} steps {kind} {name}, which takes no --env-kwargs and no --wrapper; take gymnasium-sync, or auto"
        )
    if backend == "jax" or (backend == "auto" and recipe.plain and name.startswith("phys2d/")):
        notice = "backend jax: the whole iteration is one compiled program"
        return _functional(make_functional(name), recipe, notice)
    if backend == "envpool":
        return _pooled(recipe, name, compare_with_gymnasium(recipe, name), num_envs, seed, began, explicit=True)
    specification = specification_of(name)
    vectorized = specification.vector_entry_point is not None and recipe.plain
    given = "" if recipe.plain else ", which take --env-kwargs and --wrapper"
    notices = []
    if backend == "auto":
        backend = "gymnasium" if vectorized else "gymnasium-sync"
        which = f"{'own vectorised version' if vectorized else 'environments, one after the other'}{given}"
        if has_task(name) and recipe.plain:
            task = compare_with_gymnasium(recipe, name)
            if task.agrees:
                return _pooled(recipe, name, task, num_envs, seed, began, explicit=False)
            notices.append(f"backend {backend}, Gymnasium's {which}: EnvPool has a {name} too, but {task.why}")
        else:
            notices.append(f"backend {backend}, Gymnasium's {which}")
        if not is_installed() and recipe.plain and str(specification.entry_point).startswith(POOLED):
            notices.append(f"EnvPool would step {name} faster: pip install 'surefoot[envpool]'")
    elif backend == "gymnasium" and not vectorized:
        backend = "gymnasium-sync"
        why = (
            "Gymnasium has no vectorised version of"
            if recipe.plain
            else "--env-kwargs and --wrapper are for single environments of"
        )
        notices.append(f"backend gymnasium-sync: {why} {name}")
    else:
        notices.append(f"backend {backend}")
    try:
        if backend == "gymnasium":
            inside = make_named(name, partial(gymnasium.make_vec, name, num_envs, vectorization_mode="vector_entry_point"))
            environments = HostEnvironments(inside, name=name)
            identity = recipe.identify(_registered(specification))
        else:
            environments, identity = _one_by_one(recipe, num_envs)
    except UsageError as error:
        elsewhere = has_task(name) and recipe.plain
        hint = "; --backend envpool would step EnvPool's, for surefoot evaluate and export too" if elsewhere else ""
        raise type(error)(f"{error}{hint}") from error
    return Selection(environments, backend, tuple(notices), replace(identity, spaces=environments.spaces))


def _pooled(recipe: Recipe, name: str, task: EnvPoolTask, num_envs: int, seed: int, began: int, *, explicit: bool) -> Selection:
    """EnvPool's environments, which ``task`` has compared with Gymnasium's."""

    def make(began: int) -> Selection:
        pool = make_named(name, lambda: Pool(name, num_envs=num_envs, seed=seed, began=began))
        identity = replace(task.identity, spaces=pool.spaces)
        return Selection(pool if pool.compiles else pool.on_host(), "envpool", notices, recipe.identify(identity), make)

    chosen = f", which is installed and has {name}; --backend gymnasium would step Gymnasium's own"
    notices: tuple[str, ...] = (f"backend envpool{'' if explicit else chosen}",)
    if task.why is not None:
        notices += (Caution(f"{task.why}: give --backend envpool to surefoot evaluate and export too"),)
    return make(began)


def _functional(environment: FunctionalEnvironment, recipe: Recipe, *notices: str) -> Selection:
    limit = environment.max_episode_steps
    spaces = describe_spaces(environment.observation_space, environment.action_space, name=recipe.name)
    described = EnvironmentIdentity("", spaces=spaces, max_episode_steps=0 if limit is None else limit)
    return Selection(environment, "jax", notices, recipe.identify(described))


def _registered(specification: Any) -> EnvironmentIdentity:
    """What Gymnasium's vectorised version of an id is: what is registered, without a look inside."""
    return EnvironmentIdentity("", max_episode_steps=specification.max_episode_steps or 0)


def _one_by_one(
    recipe: Recipe, num_envs: int, first: gymnasium.Env | None = None
) -> tuple[HostEnvironments, EnvironmentIdentity]:
    """Single environments, one after the other.

    Args:
        recipe: what they are made from.
        num_envs: how many.
        first: number 0, without wrappers, where it is made already.
    """
    name = recipe.name
    made = [make_single(recipe, name=name) if first is None else recipe.wrapped(first)]
    made += [make_single(recipe, name=name) for _ in range(num_envs - 1)]
    if len({id(environment.unwrapped) for environment in made}) < num_envs:
        raise UsageError(f"{name} returned the same environment twice; it must make a new one at each call")
    check_copies([(environment.observation_space, environment.action_space) for environment in made], name=name)
    identity = recipe.identify(describe(made[0]))
    # All say that they have the first one's space: bounds of observations may differ, and nothing reads them.
    named = [NameFaults(e, name=name, index=i, space=made[0].observation_space) for i, e in enumerate(made)]
    vector = make_named(name, lambda: SyncVectorEnv([partial(lambda e: e, environment) for environment in named]))
    return HostEnvironments(vector, name=name), identity


def _from_callable(recipe: Recipe, *, backend: Backend, num_envs: int, exactly: bool) -> Selection:
    name = recipe.name
    first = call_factory(recipe.factory(), name, num_envs)
    if isinstance(first, VectorEnv):
        if first.num_envs != num_envs and exactly:
            raise UsageError(
                f"{name} returned {first.num_envs} environments where --num-envs asks for {num_envs}; make them agree"
            )
        kind = "gymnasium"
    elif isinstance(first, gymnasium.Env):
        kind = "gymnasium-sync"
    elif isinstance(first, FunctionalEnvironment):
        kind = "jax"
    else:
        raise UsageError(
            f"{name} returned {type(first).__name__}; it must return a gymnasium.Env, a gymnasium.vector.VectorEnv or a"
            " surefoot.control.environments.functional.FunctionalEnvironment"
        )
    if backend not in ("auto", kind) and not (backend == "gymnasium" and kind == "gymnasium-sync"):
        raise UsageError(f"--backend {backend} cannot step {name}, which returns {type(first).__name__}; take auto or {kind}")
    if recipe.wrappers and kind != "gymnasium-sync":
        raise UsageError(
            f"--wrapper is for single environments, and {name} returns {type(first).__name__}; wrap it inside of {name}"
        )
    notice = f"backend {kind}, from what {name} returns"
    if isinstance(first, FunctionalEnvironment):
        check_functional(first, name=name)
        return _functional(first, recipe, notice)
    if isinstance(first, gymnasium.Env):
        environments, identity = _one_by_one(recipe, num_envs, first)
    else:
        environments, identity = HostEnvironments(first, name=name), recipe.identify(describe_vector(first))
    return Selection(environments, kind, (notice, *environments.notices), replace(identity, spaces=environments.spaces))
