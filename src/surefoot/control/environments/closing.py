"""The end of an environment's life: one more call into a user's program, which may raise, or not return. Nothing here imports JAX."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from surefoot.errors import Caution

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
    limit = LIMIT if limit is None else limit
    try:
        with _within(limit):
            close()
    except _TooLong:
        did = f"took longer than {limit:g} s and was not waited for"
    except (Exception, SystemExit) as error:
        words = " ".join(str(error).split())
        did = f"raised {type(error).__name__}{words and ': '}{words}"
    else:
        return None
    return f"closing {name} {did}; no result is lost, but processes, files or ports that it had open may still be"


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
    inner = environments.unwrapped
    limit, options = None, {}
    if failed:
        limit, options = AFTER_FAILURE, {"terminate": True} if isinstance(inner, AsyncVectorEnv) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a call is unanswered, which is known
        notice = close_guarded(lambda: environments.close(**options), name, limit=limit)
    if notice is None:
        return ()
    inner.closed = True  # else it is closed once more when Python forgets it
    if isinstance(inner, AsyncVectorEnv):
        for process in inner.processes:
            process.terminate()
    if not isinstance(inner, SyncVectorEnv):
        return (Caution(notice),)
    # The first that raised kept the others from being closed; closing twice is allowed.
    each = [close_guarded(env.close, f"environment {i} of {name}", limit=limit) for i, env in enumerate(inner.envs)]
    return tuple(Caution(said) for said in each if said is not None) or (Caution(notice),)


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
