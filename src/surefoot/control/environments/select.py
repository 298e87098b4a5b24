"""From an environment's name (or a callable) and a backend to environments that can be stepped."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv

from surefoot.control.configuration import Backend
from surefoot.control.environments.functional import FunctionalEnvironment, check_functional, make_functional
from surefoot.control.environments.host import HostEnvironments, NameFaults
from surefoot.control.environments.pool import Pool, has_task, is_installed
from surefoot.errors import UsageError

Environment = str | Callable[..., Any]
"""A Gymnasium id, ``package.module:callable``, or a callable that returns an environment."""

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


def environment_name(environment: Environment) -> str:
    """What reports and messages call it."""
    if isinstance(environment, str):
        return environment
    return getattr(environment, "__name__", type(environment).__name__)


def select_environments(
    environment: Environment, *, backend: Backend, num_envs: int, seed: int, exactly: bool = True, began: int = 0
) -> Selection:
    """Make ``num_envs`` environments.

    Args:
        environment: an id, ``package.module:callable``, or a callable that returns a Gymnasium environment, a
            Gymnasium vector environment (called with num_envs) or a :class:`FunctionalEnvironment`.
        backend: what shall step them.
        num_envs: how many.
        seed: EnvPool wants its seed when it is made.
        exactly: refuse a vector environment of another number; else take it as it is.
        began: the iteration that the environments begin with, which EnvPool's seed comes from as well.

    Raises:
        UsageError: there is no such environment, the backend does not have it, or a package that it needs is missing.
    """
    settings: dict[str, Any] = {"backend": backend, "num_envs": num_envs, "seed": seed, "exactly": exactly}
    again = lambda began: select_environments(environment, **settings, began=began)  # noqa: E731
    return replace(_select(environment, **settings, began=began), again=again)


def _select(environment: Environment, *, backend: Backend, num_envs: int, seed: int, exactly: bool, began: int) -> Selection:
    factory = _import_callable(environment) if isinstance(environment, str) and names_callable(environment) else environment
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
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise UsageError(f"there is no environment {name}: {error}") from None
    except ImportError as error:
        raise UsageError(f"there is no environment {name}: {error}; give a Gymnasium id or package.module:callable") from None


def _gymnasium(name: str, *, backend: str, num_envs: int) -> HostEnvironments:
    if backend == "gymnasium":
        environments: VectorEnv = _named(
            name, partial(gymnasium.make_vec, name, num_envs, vectorization_mode="vector_entry_point")
        )
    else:
        make = partial(gymnasium.make, name, disable_env_checker=True)
        environments = _synchronous(lambda i: NameFaults(_named(name, make), name=name, index=i), num_envs)
    return HostEnvironments(environments, name=name)


def _pool(name: str, num_envs: int, seed: int, began: int) -> Pool | HostEnvironments:
    pool = _named(name, lambda: Pool(name, num_envs=num_envs, seed=seed, began=began))
    return pool if pool.compiles else pool.on_host()


def _synchronous(make: Callable[[int], gymnasium.Env], num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([partial(make, i) for i in range(num_envs)])


def _named(name: str, make: Callable[[], Any]) -> Any:
    """Call ``make``, and turn its failures into sentences."""
    try:
        return make()
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(f"{name} needs a package that is not installed: {error}") from error
    except ImportError as error:
        raise UsageError(f"{name} needs {error.name or error}, which is not installed; install it with pip") from error
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{name} cannot be made: {type(error).__name__}: {error}") from error


def names_callable(name: str) -> bool:
    """``package.module:callable``, as opposed to Gymnasium's ``package.module:Id-v0``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _import_callable(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the current folder, as `python -m` finds it
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"--env {name}: the module {module_name} cannot be imported: {reason}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"--env {name}: {module_name} has no callable {attribute}; it has {', '.join(functions) or 'none'}")
    return factory


def _from_callable(factory: Callable[..., Any], name: str, *, backend: Backend, num_envs: int, exactly: bool) -> Selection:
    first = _call(factory, name, num_envs)
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
        make = lambda i: NameFaults(made.pop() if made else _named(name, factory), name=name, index=i)  # noqa: E731
        first = _synchronous(make, num_envs)
        if len({id(e.unwrapped) for e in first.envs}) < num_envs:
            raise UsageError(f"{name} returned the same environment twice; it must make a new one at each call")
    environments = HostEnvironments(first, name=name)
    return Selection(environments, kind, notices + environments.notices)


def _call(factory: Callable[..., Any], name: str, num_envs: int) -> Any:
    import inspect

    try:
        takes = "num_envs" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        takes = False
    return _named(name, partial(factory, num_envs=num_envs) if takes else factory)
