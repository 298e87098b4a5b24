"""One environment from its name, or from a callable. Nothing here imports JAX: worker processes start with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium

from surefoot.control.environments.arguments import (
    Wrapper,
    import_module,
    import_named,
    import_wrapper,
    name_of,
    parse_arguments,
    spell_arguments,
)
from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.errors import UsageError

Environment = str | Callable[..., Any]
"""A Gymnasium id, ``package.module:callable``, or a callable that returns an environment."""


class MissingPackage(UsageError):
    """An environment cannot be made for the want of a package."""


@dataclass(frozen=True)
class Recipe:
    """All that environments are made from."""

    environment: Environment
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """For ``gymnasium.make``, or for the callable."""
    wrappers: tuple[Wrapper, ...] = ()
    """Around each environment, the first one innermost."""
    specification: Any = None
    """Gymnasium's registration of an id; None to look it up, which another process may do in vain."""

    @property
    def name(self) -> str:
        """What reports and messages call it."""
        return environment_name(self.environment)

    @property
    def plain(self) -> bool:
        """Whether there is nothing but the environment itself."""
        return not self.arguments and not self.wrappers

    @property
    def id(self) -> str | None:
        """Gymnasium's id; None for a callable."""
        environment = self.environment
        return environment if isinstance(environment, str) and not names_callable(environment) else None

    def identify(self, described: EnvironmentIdentity) -> EnvironmentIdentity:
        """What was read off an environment, with what this recipe knows of it besides."""
        if isinstance(self.environment, str):
            return replace(described, name=self.environment)
        module, name = name_of(self.environment)
        return replace(described, name=name or self.name, given_as="callable", module=module)

    def factory(self) -> Callable[..., Any]:
        """Makes one environment, or several: what a callable returns, without the wrappers.

        Raises:
            UsageError: there is no such module or callable, or no such environment.
        """
        if self.id is None:
            code = self.environment if callable(self.environment) else import_named(str(self.environment), "--env")
            return partial(code, **self.arguments) if self.arguments else code
        if self.specification is not None:
            module, _, _ = self.id.rpartition(":")
            if module:
                import_module(self.id, module)
            return partial(gymnasium.make, self.specification, disable_env_checker=True, **self.arguments)
        return partial(gymnasium.make, self.id, disable_env_checker=True, **self.arguments)

    def for_another_process(self) -> Recipe:
        """The same, for a process that knows neither what this one registered nor what a script defines.

        Raises:
            UsageError: there is no such environment or wrapper.
        """
        specification = None if self.id is None else specification_of(self.id)
        wrappers = tuple(import_wrapper(w) if isinstance(w, str) and w.startswith("__main__:") else w for w in self.wrappers)
        return replace(self, specification=specification, wrappers=wrappers)

    def wrapped(self, environment: gymnasium.Env) -> gymnasium.Env:
        """An environment in the wrappers.

        Raises:
            UsageError: a wrapper cannot be found, or raises, or returns something else than a ``gymnasium.Env``.
        """
        for wrapper in self.wrappers:
            name = wrapper if isinstance(wrapper, str) else environment_name(wrapper)
            environment = make_named(f"the wrapper {name} of {self.name}", partial(import_wrapper(wrapper), environment))
            if not isinstance(environment, gymnasium.Env):
                raise UsageError(
                    f"--wrapper {name} returned {type(environment).__name__}; it takes a gymnasium.Env and must return one"
                )
        return environment


def recipe_for(
    environment: Environment, arguments: Mapping[str, Any] | Iterable[str] = (), wrappers: Iterable[Wrapper] = ()
) -> Recipe:
    """A recipe from what a user gave.

    Args:
        environment: an id, ``package.module:callable`` or a callable.
        arguments: by name, or as ``KEY=VALUE`` texts.
        wrappers: callables, or ``package.module:function``.

    Raises:
        UsageError: an argument is no such text.
    """
    if isinstance(arguments, Mapping):
        return Recipe(environment, dict(arguments), tuple(wrappers))
    return Recipe(environment, parse_arguments(spell_arguments(arguments)), tuple(wrappers))


def environment_name(environment: Environment) -> str:
    """What reports and messages call it."""
    if isinstance(environment, str):
        return environment
    return getattr(environment, "__name__", type(environment).__name__)


def names_callable(name: str) -> bool:
    """``package.module:callable``, as opposed to Gymnasium's ``package.module:Id-v0``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def specification_of(name: str) -> Any:
    """Gymnasium's registration of an id.

    Raises:
        UsageError: there is none, or the module that should register it cannot be imported.
    """
    module, _, plain = name.rpartition(":")
    if module:  # package.module:Id-v0, which the module registers
        import_module(name, module)
    try:
        return gymnasium.spec(plain)
    except gymnasium.error.Error as error:
        hint = f"; if a script registered it, give --env module:{plain}, where importing module registers it, or a callable"
        raise UsageError(f"there is no environment {name}: {str(error).rstrip('.')}{'' if module else hint}") from None
    except ImportError as error:
        raise UsageError(f"there is no environment {name}: {error}; give a Gymnasium id or package.module:callable") from None


def make_named(name: str, make: Callable[[], Any]) -> Any:
    """Call ``make``, and turn its failures into sentences.

    Raises:
        MissingPackage: a package is not installed.
        UsageError: it failed otherwise.
    """
    try:
        return make()
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingPackage(f"{name} needs a package that is not installed: {error}") from error
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{name} needs {error.name}, which is not installed; install it with pip") from error
    except UsageError:
        raise
    except ImportError as error:  # its text is a sentence, and no package's name
        raise UsageError(f"{name} cannot be made: {str(error).rstrip('.')}") from error
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


def make_single(recipe: Recipe, *, name: str) -> gymnasium.Env:
    """One Gymnasium environment, for those that are stepped one by one.

    Args:
        recipe: what it is made from.
        name: what messages call it.

    Raises:
        UsageError: it cannot be made, or is something else than a ``gymnasium.Env``.
    """
    if recipe.id is not None:
        made = make_named(name, recipe.factory())
    else:
        made = call_factory(recipe.factory(), name, 1)
        if not isinstance(made, gymnasium.Env):
            raise UsageError(
                f"{name} returned {type(made).__name__}, and worker processes step a gymnasium.Env alone; leave --env-workers out"
            )
    return recipe.wrapped(made)


def check_copies(spaces: list[tuple[gymnasium.Space, gymnasium.Space]], *, name: str) -> None:
    """Compare the spaces of copies of one environment; bounds of observations, which nothing reads, may differ.

    Args:
        spaces: each copy's observation and action space.
        name: the environment's, for the sentence.

    Raises:
        UsageError: a copy has other spaces than the first one.
    """
    first = spaces[0]
    for i, (observations, actions) in enumerate(spaces):
        if actions != first[1] or not _exchangeable(observations, first[0]):
            raise UsageError(
                f"environment {i} of {name} has the spaces {observations} and {actions}, and environment 0 {first[0]} and {first[1]};"
                " all must have the same"
            )


def _exchangeable(space: gymnasium.Space, other: gymnasium.Space) -> bool:
    boxes = isinstance(space, gymnasium.spaces.Box) and isinstance(other, gymnasium.spaces.Box)
    return space == other or (boxes and (space.shape, space.dtype) == (other.shape, other.dtype))
