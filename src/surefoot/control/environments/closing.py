"""The end of an environment's life: one more call into a user's program, which may raise, or not return. Nothing here imports JAX."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from surefoot.errors import Caution, words_of

LIMIT, AFTER_FAILURE = 30.0, 5.0
"""Seconds that an environment may take to close; likewise one whose last call did not return."""


class _TooLong(BaseException):
    """Raised in the middle of what takes too long; no environment means to catch it."""


def close_guarded(close: Callable[[], Any], name: str, *, limit: float | None = None) -> str | None:
    """Close something of a user's, so that neither what it raises nor that it waits is the end of anything else.

    The limit on its time holds in a process's main thread on Unix, for everything that Python waits for.

    Args:
        close: what to call.
        name: of the environment.
        limit: seconds that it may take; :data:`LIMIT` by default.

    Returns:
        a notice, where it raised or did not return in time.
    """
    return None if (did := _attempt(close, LIMIT if limit is None else limit)) is None else _notice(name, did)


def close_vector(environments: VectorEnv, name: str, *, failed: bool) -> tuple[str, ...]:
    """Close a vector environment and what is in it.

    Args:
        environments: what to close.
        name: of it.
        failed: whether its last call did not return. Gymnasium's ``AsyncVectorEnv`` would wait for the answer that was never
            given: its processes are ended instead.

    Returns:
        the notices.
    """
    inner, limit, options = environments.unwrapped, LIMIT, {}
    if failed:
        limit = AFTER_FAILURE
        if isinstance(inner, AsyncVectorEnv):
            options = {"terminate": True}
            _end_processes(inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a call is unanswered, which is known
        did = _attempt(lambda: environments.close(**options), limit)
    if did is None:
        return ()
    inner.closed = True  # else it is closed once more when Python forgets it
    if isinstance(inner, AsyncVectorEnv):
        _end_processes(inner)
    # Where environments are closed in turn, the first that raised kept the others from it; closing twice is allowed.
    members: dict[str, list[int]] = {}
    for i, environment in enumerate(inner.envs if isinstance(inner, SyncVectorEnv) else ()):
        if (its := _attempt(environment.close, limit)) is not None:
            members.setdefault(its, []).append(i)
    if not members:
        return (_notice(name, did),)
    several = {its: f" and {len(numbers) - 1} more" if len(numbers) > 1 else "" for its, numbers in members.items()}
    return tuple(_notice(f"environment {numbers[0]}{several[its]} of {name}", its) for its, numbers in members.items())


def _attempt(close: Callable[[], Any], limit: float) -> str | None:
    """Call what closes something; returns what went wrong."""
    try:
        with _within(limit):
            close()
    except _TooLong:
        return f"took longer than {limit:g} s and was not waited for"
    except (Exception, SystemExit) as error:
        return f"raised {type(error).__name__}{words_of(error)}"
    return None


def _notice(name: str, did: str) -> Caution:
    return Caution(f"closing {name} {did}; no result is lost, but processes, files or ports that it had open may still be")


def _end_processes(environments: AsyncVectorEnv) -> None:
    """At once: they may have been forked with this process's answers to other signals."""
    for process in environments.processes:
        process.kill()


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, where the system and the thread allow it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def interrupt(number: int, frame: Any) -> None:
        if not over:
            raise _TooLong

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
