"""What runs in a worker process: some environments, stepped as another process orders."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium

from surefoot.control.environments.closing import close_guarded
from surefoot.control.environments.identity.reading import describe
from surefoot.control.environments.making import make_single
from surefoot.control.environments.seeding import seed_shared
from surefoot.control.environments.workers.outcomes import Unusable, describe_exception, one_line, reset_checked, step_checked
from surefoot.control.environments.workers.progress import NONE, Progress
from surefoot.errors import UsageError


def serve(descriptor: int, shown: int) -> None:
    """Do what comes over the connection until it ends.

    First comes what environments are made from, and their name; then lists of (number, command, argument), each answered by a
    list in its order:

    - ``make`` with a seed: (``made``, observation space, action space, what the environment is);
    - ``begin`` with a seed: as ``make`` and ``reset``, the answer of the latter;
    - ``reset`` with a seed, or None to draw on: (``reset``, observation);
    - ``step`` with an action: (``step``, observation, reward, terminated, truncated);
    - any: (``failed``, what the environment did, traceback or None, whether it cannot be made at all).

    Args:
        descriptor: of the connection.
        shown: of the file in which :class:`Progress` is shown.
    """
    os.set_inheritable(descriptor, False)
    _leave_signals_to_the_parent()
    _end_with_the_parent()
    served, progress = _Served(), Progress(shown)
    try:
        with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
            served.described = connection.recv_bytes()
            while True:
                answers = []
                for number, command, argument in connection.recv():
                    progress.begin(number)
                    answers.append(served.answer(number, command, argument))
                progress.begin(NONE)
                if command == "make":  # spaces may be of classes that plain pickling cannot name
                    connection.send_bytes(cloudpickle.dumps(answers))
                else:
                    connection.send(answers)
    finally:
        served.close()


class _Served:
    """The environments of one worker, by number."""

    def __init__(self) -> None:
        self.described = b""
        self._environments: dict[int, gymnasium.Env] = {}

    def answer(self, number: int, command: str, argument: Any) -> tuple[Any, ...]:
        try:
            return self._do(number, command, argument)
        except Unusable as error:
            return ("failed", str(error), None, False)
        except UsageError as error:
            return ("failed", one_line(error), traceback.format_exc(), True)
        except Exception as error:
            return ("failed", describe_exception(error), traceback.format_exc(), False)

    def _do(self, number: int, command: str, argument: Any) -> tuple[Any, ...]:
        if command in ("make", "begin"):
            seed_shared(argument)
            made = self._make(number)
            if command == "make":
                return ("made", made.observation_space, made.action_space, describe(made))
            command = "reset"
        environment = self._environments[number]
        if command == "step":
            return ("step", *step_checked(environment, argument))
        # As Gymnasium's SyncVectorEnv calls it, so that an environment sees no difference.
        options = {} if argument is None else {"seed": argument, "options": None}
        return ("reset", reset_checked(environment, **options))

    def _make(self, number: int) -> gymnasium.Env:
        if (old := self._environments.pop(number, None)) is not None:
            close_guarded(old.close, "it")
        try:
            recipe, name = cloudpickle.loads(self.described)
        except Exception as error:
            raise UsageError(f"a worker process cannot load the environment: {type(error).__name__}: {error}") from error
        made = make_single(recipe, name=name)
        if any(made.unwrapped is other.unwrapped for other in self._environments.values()):
            raise UsageError(f"{name} returned the same environment twice; it must make a new one at each call")
        self._environments[number] = made
        return made

    def close(self) -> None:
        for environment in self._environments.values():
            close_guarded(environment.close, "it")


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C and SIGTERM are the parent's to answer: it finishes its update, and needs its environments for that.

    A handler that does nothing, and not SIG_IGN, which programs that an environment starts would inherit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def _end_with_the_parent() -> None:
    """End this process and those that it started when the parent's end of standard input closes, however the parent ended.

    On Linux the kernel sees to it, also while an environment hangs in C code that keeps Python's other threads from running.
    """
    try:
        from fcntl import F_GETFL, F_SETFL, F_SETOWN, F_SETSIG, fcntl  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        threading.Thread(target=_wait_for_the_end, daemon=True).start()
        return
    fcntl(0, F_SETOWN, -os.getpgid(0))
    fcntl(0, F_SETSIG, signal.SIGKILL)
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | os.O_ASYNC)
    already = select.poll()
    already.register(0, 0)
    if already.poll(0):  # it ended before this was set up
        os.killpg(0, signal.SIGKILL)


def _wait_for_the_end() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
