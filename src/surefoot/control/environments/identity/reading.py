"""What an environment is, read off the environment. Nothing here imports JAX: worker processes do this too."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from surefoot.control.environments.identity.record import EnvironmentIdentity

PASSIVE = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Wrappers that change nothing that a policy learns from, and the time limit, which is recorded as a number."""
STATISTICS = "RunningMeanStd"
"""What Gymnasium's normalisers, and those after their model, keep their statistics in."""


def describe(environment: gymnasium.Env) -> EnvironmentIdentity:
    """What one Gymnasium environment is; its name, how it was given and its spaces are for whoever made it to add."""
    chain, limits = list(_chain(environment)), list[int]()
    for wrapper in chain:
        limit = getattr(wrapper, "_max_episode_steps", None) if isinstance(wrapper, TimeLimit) else None
        limits += [limit] if isinstance(limit, int) else []
    inner = chain[-1]
    specification = _quietly(inner, "spec")
    arguments = getattr(specification, "kwargs", None)
    return EnvironmentIdentity(
        name="",
        made_by=_path(inner),
        # Only what a registration says is known; a class that was called by itself may have been given anything.
        arguments=_literals(arguments) if isinstance(arguments, Mapping) else None,
        wrappers=tuple(_wrapper(wrapper) for wrapper in reversed(chain[:-1]) if not isinstance(wrapper, PASSIVE)),
        max_episode_steps=min(limits, default=0),
        statistics=_keepers(chain),
        code=_digest(type(inner)),
    )


def describe_vector(environments: VectorEnv) -> EnvironmentIdentity:
    """What a user's vector environment is, as far as it can be looked into."""
    chain = list(_chain(environments))
    inside = getattr(chain[-1], "envs", None)
    if isinstance(inside, list) and inside and isinstance(inside[0], gymnasium.Env):
        one = describe(inside[0])
        wrappers = (*(one.wrappers or ()), *(_wrapper(wrapper) for wrapper in reversed(chain[:-1])))
        return replace(one, wrappers=wrappers, statistics=(*one.statistics, *_keepers(chain)))
    return EnvironmentIdentity("", statistics=_keepers(chain))


def _chain(environment: Any) -> Iterator[Any]:
    """An environment's wrappers from outside inwards, and itself."""
    seen = set[int]()
    while id(environment) not in seen:
        seen.add(id(environment))
        yield environment
        inner = vars(environment).get("env") if hasattr(environment, "__dict__") else None
        if isinstance(inner, gymnasium.Env | VectorEnv):
            environment = inner


def _keepers(chain: list[Any]) -> tuple[str, ...]:
    """Those of a chain that keep running statistics, by class."""
    held = ((type(part).__name__, vars(part).values()) for part in chain if hasattr(part, "__dict__"))
    return tuple(name for name, values in held if any(type(value).__name__ == STATISTICS for value in values))


def _wrapper(wrapper: Any) -> str:
    arguments = {name: value for name, value in _saved(wrapper).items() if name != "env"}
    spelt = ", ".join(f"{name}={text}" for name, text in _literals(arguments).items())
    return f"{_path(wrapper)}({spelt})"


def _saved(wrapper: Any) -> Mapping[str, Any]:
    """What a wrapper says that it was made with, as Gymnasium's own do."""
    saved = getattr(wrapper, "_saved_kwargs", None)
    return saved if isinstance(saved, Mapping) else {}


def _literals(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Arguments as Python writes them; those that are written in another way each time, as functions are, by their type."""
    spelt = {}
    for name, value in arguments.items():
        if name == "render_mode":  # what somebody watches is no part of a task
            continue
        text = repr(value)
        try:
            ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            text = type(value).__name__
        spelt[str(name)] = text
    return spelt


def _path(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _quietly(environment: Any, name: str) -> Any:
    try:
        return getattr(environment, name, None)
    except Exception:  # a property of the user's
        return None


def _digest(kind: type) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:16]
    except (OSError, TypeError):  # defined at a prompt, or in C
        return None
