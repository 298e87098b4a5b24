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
from surefoot.control.environments.making import (
    Environment,
    call_factory,
    environment_name,
    gymnasium_maker,
    import_callable,
    import_module,
    make_named,
    names_callable,
)
from surefoot.control.environments.pool import Pool, has_task, is_installed
from surefoot.control.environments.seeding import seed_shared
from surefoot.control.environments.workers.vector import WorkerEnvironments, WorkerSettings
from surefoot.errors import UsageError

Environments = HostEnvironments | Pool | FunctionalEnvironment

POOLED = ("gymnasium.envs.classic_control", "gymnasium.envs.box2d", "gymnasium.envs.mujoco", "gymnasium.envs.toy_text")


@dataclass(frozen=True)
class Selection:
    """Environments, and why these."""

    environments: Environments
    backend: str
    notices: tuple[str, ...]
    """Sentences for the user: which backend was chosen, and what would be faster."""
    again: Callable[[int], Selection] | None = None
    """The same environments made anew, to begin with the given iteration."""

    @property
    def described(self) -> dict[str, str | None]:
        """What a resumed run must find again."""
        return {"backend": self.backend, "data": None}


def select_environments(
    environment: Environment,
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
            Gymnasium vector environment (called with num_envs) or a :class:`FunctionalEnvironment`.
        backend: what shall step them.
        num_envs: how many.
        seed: the run's, or an evaluation's: EnvPool, and environments that draw numbers as they are made, want it here.
        exactly: refuse a vector environment of another number; else take it as it is.
        began: the iteration that the environments begin with, which EnvPool's seed comes from as well.
        workers: the processes that step them; None for this one.

    Raises:
        UsageError: there is no such environment, the backend does not have it, or a package that it needs is missing.
    """
    settings: dict[str, Any] = {"backend": backend, "num_envs": num_envs, "seed": seed, "exactly": exactly}
    again = lambda began: select_environments(environment, **settings, began=began, workers=workers)  # noqa: E731
    own = environment_seed(seed, began)
    if workers is not None:
        made = _in_workers(environment, backend=backend, num_envs=num_envs, settings=workers, seed=own)
        return replace(made, again=again)
    seed_shared(own)
    return replace(_select(environment, **settings, began=began), again=again)


def _in_workers(environment: Environment, *, backend: Backend, num_envs: int, settings: WorkerSettings, seed: int) -> Selection:
    """Gymnasium's environments, one after the other, in processes of their own."""
    name = environment_name(environment)
    if os.name != "posix":
        raise UsageError("--env-workers needs a Unix system; leave it out")
    if isinstance(environment, str) and not names_callable(environment):
        if environment.startswith("phys2d/"):
            raise UsageError(f"--env-workers would do nothing: {environment} is a pure-JAX environment; leave it out")
        if backend == "gymnasium" and _specification(environment).vector_entry_point is not None:
            raise UsageError(
                f"--backend gymnasium steps {environment} in Gymnasium's own vectorised version, which is one process; take"
                " gymnasium-sync, or leave --env-workers out"
            )
        _specification(environment)
    several = f"{settings.count} worker processes" if settings.count > 1 else "a worker process"
    environments = WorkerEnvironments(environment, name=name, num_envs=num_envs, settings=settings, seed=seed)
    notice = f"backend gymnasium-sync, Gymnasium's environments in {several}"
    return Selection(HostEnvironments(environments, name=name), "gymnasium-sync", (notice,))


def _select(environment: Environment, *, backend: Backend, num_envs: int, seed: int, exactly: bool, began: int) -> Selection:
    factory = import_callable(environment) if isinstance(environment, str) and names_callable(environment) else environment
    if not isinstance(factory, str):
        return _from_callable(factory, environment_name(environment), backend=backend, num_envs=num_envs, exactly=exactly)
    name = factory
    if backend == "jax" or (backend == "auto" and name.startswith("phys2d/")):
        return Selection(make_functional(name), "jax", ("backend jax: the whole iteration is one compiled program",))
    if backend == "envpool":
        return Selection(_pool(name, num_envs, seed, began), "envpool", ("backend envpool",))
    specification = _specification(name)
    vectorized = specification.vector_entry_point is not None
    if backend == "auto":
        if has_task(name):
            notice = f"backend envpool, which is installed and has {name}; --backend gymnasium would step Gymnasium's own"
            return Selection(_pool(name, num_envs, seed, began), "envpool", (notice,))
        backend = "gymnasium" if vectorized else "gymnasium-sync"
        notices = [
            f"backend {backend}, Gymnasium's {'own vectorised version' if vectorized else 'environments, one after the other'}"
        ]
        if not is_installed() and str(specification.entry_point).startswith(POOLED):
            notices.append(f"EnvPool would step {name} faster: pip install 'surefoot[envpool]'")
    elif backend == "gymnasium" and not vectorized:
        backend = "gymnasium-sync"
        notices = [f"backend gymnasium-sync: Gymnasium has no vectorised version of {name}"]
    else:
        notices = [f"backend {backend}"]
    return Selection(_gymnasium(name, backend=backend, num_envs=num_envs), backend, tuple(notices))


def _specification(name: str) -> Any:
    module, _, plain = name.rpartition(":")
    if module:  # package.module:Id-v0, which the module registers
        import_module(name, module)
    try:
        return gymnasium.spec(plain)
    except gymnasium.error.Error as error:
        raise UsageError(f"there is no environment {name}: {error}") from None
    except ImportError as error:
        raise UsageError(f"there is no environment {name}: {error}; give a Gymnasium id or package.module:callable") from None


def _gymnasium(name: str, *, backend: str, num_envs: int) -> HostEnvironments:
    if backend == "gymnasium":
        environments: VectorEnv = make_named(
            name, partial(gymnasium.make_vec, name, num_envs, vectorization_mode="vector_entry_point")
        )
    else:
        make = gymnasium_maker(name)
        environments = _synchronous(lambda i: NameFaults(make_named(name, make), name=name, index=i), num_envs)
    return HostEnvironments(environments, name=name)


def _pool(name: str, num_envs: int, seed: int, began: int) -> Pool | HostEnvironments:
    pool = make_named(name, lambda: Pool(name, num_envs=num_envs, seed=seed, began=began))
    return pool if pool.compiles else pool.on_host()


def _synchronous(make: Callable[[int], gymnasium.Env], num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([partial(make, i) for i in range(num_envs)])


def _from_callable(factory: Callable[..., Any], name: str, *, backend: Backend, num_envs: int, exactly: bool) -> Selection:
    first = call_factory(factory, name, num_envs)
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
    notices = (f"backend {kind}, from what {name} returns",)
    if isinstance(first, FunctionalEnvironment):
        check_functional(first, name=name)
        return Selection(first, kind, notices)
    if isinstance(first, gymnasium.Env):
        made = [first]  # the first call's environment becomes number 0, so that the callable runs N times for N environments
        make = lambda i: NameFaults(made.pop() if made else make_named(name, factory), name=name, index=i)  # noqa: E731
        first = _synchronous(make, num_envs)
        if len({id(e.unwrapped) for e in first.envs}) < num_envs:
            raise UsageError(f"{name} returned the same environment twice; it must make a new one at each call")
    environments = HostEnvironments(first, name=name)
    return Selection(environments, kind, notices + environments.notices)
