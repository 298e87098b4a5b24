"""From module:function or file.py:function to the function, with a sentence for everything that may go wrong."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from surefoot.errors import UsageError


def import_function(name: str) -> tuple[Callable[..., Any], str | None]:
    """What the user named, and the file that it was found in.

    The current directory is searched for modules behind everything that is installed; a file's own folder is, too, so that it can
    import its neighbours.

    Args:
        name: ``module:function`` or ``path/to/file.py:function``.

    Raises:
        UsageError: there is no such module, file or function, or importing it fails.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"--reward {name} names no function; write module:function, or path/to/file.py:function")
    try:
        module = _from_file(Path(place).expanduser(), name) if place.endswith(".py") else _by_name(place, name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a module is the user's program, and may raise anything
        raise UsageError(f"--reward {name}: {place} cannot be imported: {described(error)}") from error
    file = getattr(module, "__file__", None)
    if not hasattr(module, attribute):
        functions = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        near = difflib.get_close_matches(attribute, functions, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--reward {name}: {place} ({file}) has no function {attribute}{hint}")
    function = getattr(module, attribute)
    if not callable(function):
        raise UsageError(f"--reward {name}: {attribute} is no function, but {type(function).__name__}")
    return function, file


def described(error: BaseException, file: str | None = None) -> str:
    """An exception's type and message on one line, and where it was raised.

    Args:
        error: the exception.
        file: its last line in this file is named, where it passed through it; else the innermost.
    """
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename:
        message, place = error.msg, f"{error.filename}:{error.lineno}"
    else:
        frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        frames = [frame for frame in frames if not frame[0].startswith("<frozen")]
        place = "{}:{}".format(*([frame for frame in frames if frame[0] == file] or frames)[-1])
    return f"{type(error).__name__}{': ' if message else ''}{message} ({place})"


def _by_name(place: str, name: str) -> ModuleType:
    make_importable(Path.cwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if place != missing and not place.startswith(f"{missing}."):
            raise
        raise UsageError(
            f"--reward {name}: there is no module {missing}, neither installed nor in the current directory; a file is named by its"
            " path, as in path/to/file.py:function, and a reward model by its folder"
        ) from error


def _from_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"--reward {name}: there is no file {path}")
    make_importable(path.resolve().parent)
    specification = importlib.util.spec_from_file_location(f"surefoot_reward_{path.stem}", path.resolve())
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses, for one, look their module up
    specification.loader.exec_module(module)
    return module


def make_importable(folder: Path) -> None:
    """Let modules in a folder be found, behind everything that is found already."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # a file's name must not hide a library
