"""A worker process, as its parent holds it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from typing import Any

GRACE = 5.0
"""Seconds that a worker has for closing its environments."""
START_UP = 60.0
"""Seconds that a new process has besides, for its interpreter and libraries."""
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); descriptor = int(sys.argv[2]); sys.argv[:] = ['surefoot-worker']; "
    "from surefoot.control.environments.workers.serving import serve; serve(descriptor)"
)


class Gone(Exception):
    """A worker is no more; the message goes on from "environment 3"."""


class Worker:
    """One process with some environments; a new interpreter, not a copy of this one, which JAX's threads would not survive.

    It has a process group of its own: Ctrl-C in a terminal does not reach it, and what its environments start is ended with it.

    Args:
        members: the numbers of its environments.
        described: what :func:`~surefoot.control.environments.workers.serving.serve` is sent first.
        limit: seconds within which an environment must answer.
    """

    def __init__(self, members: list[int], described: bytes, *, limit: float) -> None:
        self.members, self._described, self._limit = members, described, limit
        self.running, self._fresh, self._deadline, self._owed = False, True, 0.0, 0

    def start(self) -> None:
        """Start the process; it loads its libraries meanwhile."""
        self._connection, theirs = multiprocessing.Pipe()
        path = json.dumps([os.path.abspath(entry) if entry else "" for entry in sys.path])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, path, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # nothing is ever written: its end is this process's end
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self._end = weakref.finalize(self, _end, self._process)
        self.running, self._fresh, self._owed = True, True, 0
        with contextlib.suppress(OSError):  # the first answer will tell
            self._connection.send_bytes(self._described)

    def order(self, orders: list[tuple[int, str, Any]]) -> None:
        """Have it do something; as many answers must be taken."""
        limit = self._limit + (START_UP if self._fresh else 0)
        self._deadline, self._owed, self._fresh = time.monotonic() + limit, len(orders), False
        with contextlib.suppress(OSError):
            self._connection.send(orders)

    def answer(self) -> tuple[Any, ...]:
        """The next answer.

        Raises:
            Gone: the process ended, or was ended because it did not answer in time.
        """
        try:
            if self._connection.poll(max(self._deadline - time.monotonic(), 0.0)):
                answer: tuple[Any, ...] = self._connection.recv()
                self._deadline, self._owed = time.monotonic() + self._limit, self._owed - 1
                return answer
        except (EOFError, OSError):
            pass
        else:
            if self._process.poll() is None:
                self.kill()
                raise Gone(f"did not answer within {self._limit:g} s")
        how = self._how_it_ended()
        self.kill()
        raise Gone(how)

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        self.running = False
        self._end()
        self._connection.close()

    def close(self) -> None:
        """Let it close its environments, and end it."""
        if not self.running:
            return
        if self._owed == 0:
            self._connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self.kill()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended its process with exit status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = " (which the system sends where memory runs out)" if name == "SIGKILL" else ""
        return f"was ended with its process by {name}{memory}"


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
