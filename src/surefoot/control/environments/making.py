"""One environment from its name, or from a callable. Nothing here imports JAX: worker processes start with it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium

from surefoot.errors import UsageError

Environment = str | Callable[..., Any]
"""A Gymnasium id, ``package.module:callable``, or a callable that returns an environment."""


def environment_name(environment: Environment) -> str:
    """What reports and messages call it."""
    if isinstance(environment, str):
        return environment
    return getattr(environment, "__name__", type(environment).__name__)


def names_callable(name: str) -> bool:
    """``package.module:callable``, as opposed to Gymnasium's ``package.module:Id-v0``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_module(name: str, module: str) -> ModuleType:
    """The module that an environment's name begins with; one in the current folder is found.

    Raises:
        UsageError: it cannot be imported.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"--env {name}: the module {module} cannot be imported: {reason}") from error


def import_callable(name: str) -> Callable[..., Any]:
    """What ``package.module:callable`` names.

    Raises:
        UsageError: there is no such module or callable.
    """
    module_name, _, attribute = name.partition(":")
    module = import_module(name, module_name)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"--env {name}: {module_name} has no callable {attribute}; it has {', '.join(functions) or 'none'}")
    return factory


def gymnasium_maker(name: str) -> Callable[[], gymnasium.Env]:
    """Makes environments of a Gymnasium id."""
    return partial(gymnasium.make, name, disable_env_checker=True)


def make_named(name: str, make: Callable[[], Any]) -> Any:
    """Call ``make``, and turn its failures into sentences.

    Raises:
        UsageError: it failed.
    """
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


def call_factory(factory: Callable[..., Any], name: str, num_envs: int) -> Any:
    """Call a user's callable, with ``num_envs`` if it takes that.

    Raises:
        UsageError: it failed.
    """
    try:
        takes = "num_envs" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        takes = False
    return make_named(name, partial(factory, num_envs=num_envs) if takes else factory)


def make_single(environment: Environment, *, name: str) -> gymnasium.Env:
    """One Gymnasium environment, for those that are stepped one by one.

    Args:
        environment: an id, ``package.module:callable`` or a callable.
        name: what messages call it.

    Raises:
        UsageError: it cannot be made, or is something else than a ``gymnasium.Env``.
    """
    factory = import_callable(environment) if isinstance(environment, str) and names_callable(environment) else environment
    if isinstance(factory, str):
        return make_named(name, gymnasium_maker(factory))
    made = call_factory(factory, name, 1)
    if not isinstance(made, gymnasium.Env):
        raise UsageError(
            f"{name} returned {type(made).__name__}, and worker processes step a gymnasium.Env alone; leave --env-workers out"
        )
    return made
