"""Many small runs, each in a process of its own: none inherits what another has held, and several go on at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from surefoot.errors import RunError

__all__ = ["Call", "each_in_its_own_process"]

Name = TypeVar("Name")
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def each_in_its_own_process(
    work: Mapping[Name, Call], *, processes: int, preload: tuple[str, ...] = ()
) -> Iterator[tuple[Name, Any]]:
    """Function and arguments of each name to its result, in the order in which they are ready.

    Args:
        work: functions that a module holds by name, with arguments that can be sent to another process.
        processes: how many at once.
        preload: modules that all need, imported once where the system can.

    Raises:
        RunError: a process ended without a result, because it was killed or ran out of memory.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(list(preload))
    waiting, running = list(work.items()), dict[Any, tuple[Name, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                name, (function, arguments) = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(theirs, function, arguments), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (name, process)
            for ready in cast(list[Connection], wait(list(running))):
                name, process = running.pop(ready)
                try:
                    result, error = ready.recv()
                except EOFError:
                    process.join()
                    raise RunError(f"the run {name} ended without a result, with exit status {process.exitcode}") from None
                process.join()
                ready.close()
                if error is not None:
                    raise error
                yield name, result
    finally:
        for _, process in running.values():
            process.terminate()


def _call(answer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What a process does."""
    try:
        answer.send((function(*arguments), None))
    except Exception as error:  # whatever a run raises is raised where it was asked for
        answer.send((None, error))
    finally:
        answer.close()
