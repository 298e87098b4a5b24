"""Arguments and wrappers of an environment as texts, which the command line gives and ``config.json`` holds."""

from __future__ import annotations

import ast
import importlib
import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from surefoot.errors import UsageError

Wrapper = str | Callable[..., Any]
"""``package.module:function``, or the function itself; it takes an environment and returns one."""


def parse_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as arguments by name; a value is JSON or a Python literal, or else a text.

    Raises:
        UsageError: one is not of this form, or names an argument again.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--env-kwargs {text} is not KEY=VALUE, as in --env-kwargs continuous=True gravity=-5")
        if name in arguments:
            raise UsageError(f"--env-kwargs gives {name} twice; give it once")
        arguments[name] = _value(value)
    return arguments


def spell_arguments(arguments: Mapping[str, Any] | Iterable[str]) -> tuple[str, ...]:
    """Arguments as texts that :func:`parse_arguments` makes the same arguments of; texts are brought into one spelling.

    Raises:
        UsageError: a text is wrong, or a value is nothing that a text can be written for.
    """
    if not isinstance(arguments, Mapping):
        texts: list[Any] = list(arguments) if isinstance(arguments, Iterable) and not isinstance(arguments, str) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(f"env_kwargs is {reprlib.repr(arguments)}, where arguments by name or KEY=VALUE texts are right")
        arguments = parse_arguments(texts)
    return tuple(f"{name}={_spelt(str(name), value)}" for name, value in arguments.items())


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _spelt(name: str, value: Any) -> str:
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    for text in (repr(value), json.dumps(value, default=str)):
        if text.isprintable() and repr(_value(text)) == repr(value):
            return text
    raise UsageError(
        f"env_kwargs: {name} is {type(value).__name__}, which config.json cannot hold; give the environment as a callable that makes it"
        " with this argument"
    )


def name_of(code: Callable[..., Any]) -> tuple[str | None, str | None]:
    """Module and name under which a function or class is found, each None where it has none: a lambda is looked for among its
    module's own names.
    """
    module = getattr(code, "__module__", None)
    held = vars(sys.modules[module]) if module in sys.modules else {}
    name = getattr(code, "__name__", None)
    if isinstance(name, str) and held.get(name) is code:
        return module, name
    bound = next((n for n, value in held.items() if value is code), None)
    return (module, bound) if bound is not None else (module, name if isinstance(name, str) and name.isidentifier() else None)


def spell_wrappers(wrappers: Any) -> tuple[str, ...]:
    """Each wrapper's ``package.module:function``, in their order.

    Raises:
        UsageError: one is no such text, nor a function that is found under its name.
    """
    if isinstance(wrappers, str) or callable(wrappers) or not isinstance(wrappers, Iterable):
        raise UsageError(
            f"wrapper is {reprlib.repr(wrappers)}, where a list of functions, or of package.module:function texts, is right"
        )
    return tuple(spell_wrapper(wrapper) for wrapper in wrappers)


def spell_wrapper(wrapper: Wrapper) -> str:
    """A wrapper's ``package.module:function``.

    Raises:
        UsageError: it is no such text, or a function without a name of its own at the top of its module.
    """
    if callable(wrapper) and not isinstance(wrapper, str):
        module, name = name_of(wrapper)
        if module is None or name is None or getattr(sys.modules.get(module), name, None) is not wrapper:
            raise UsageError(
                f"the wrapper {getattr(wrapper, '__name__', wrapper)} is found under no name in its module, and could not be found again;"
                " define it at the top of the module, or give the environment as a callable that wraps it"
            )
        return f"{module}:{name}"
    module, colon, name = wrapper.partition(":") if isinstance(wrapper, str) else ("", "", "")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(
            f"--wrapper {wrapper} is not package.module:function, as in --wrapper gymnasium.wrappers:FlattenObservation"
        )
    return str(wrapper)


def trusted(wrapper: str) -> bool:
    """Whether a wrapper is Gymnasium's own: code that is known, and may be taken from a policy's file without being named again."""
    module = wrapper.partition(":")[0]
    return module == "gymnasium.wrappers" or module.startswith("gymnasium.wrappers.")


def import_wrapper(wrapper: Wrapper) -> Callable[..., Any]:
    """What ``package.module:function`` names; one in the current folder is found.

    Raises:
        UsageError: there is no such module or function.
    """
    if not isinstance(wrapper, str):
        return wrapper
    return import_named(wrapper, "--wrapper")


def import_named(text: str, option: str) -> Callable[..., Any]:
    """The callable that ``package.module:callable`` names.

    Raises:
        UsageError: there is no such module or callable.
    """
    module_name, _, attribute = text.partition(":")
    module = import_module(text, module_name, option=option)
    found = getattr(module, attribute, None)
    if not callable(found) and module_name == "__main__":
        raise UsageError(f"{option} {text} was defined in a script; give {option} module:{attribute}, which can be imported")
    if not callable(found):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"{option} {text}: {module_name} has no callable {attribute}; it has {', '.join(functions) or 'none'}")
    return found


def import_module(text: str, module: str, *, option: str = "--env") -> Any:
    """The module that a name begins with; one in the current folder is found.

    Raises:
        UsageError: it cannot be imported.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{option} {text}: the module {module} cannot be imported: {reason}") from error
