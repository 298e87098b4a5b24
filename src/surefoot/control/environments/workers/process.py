"""A worker process, as its parent holds it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from typing import Any

from surefoot.control.environments.workers.progress import NONE, Progress

GRACE = 5.0
"""Seconds that a worker has for closing its environments."""
START_UP = 60.0
"""Seconds that a new process has besides, for its interpreter and libraries."""
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); descriptors = map(int, sys.argv[2:]); sys.argv[:] = ['surefoot-worker']; "
    "from surefoot.control.environments.workers.serving import serve; serve(*descriptors)"
)


class Gone(Exception):
    """A worker is no more; the message goes on from "environment 3".

    Args:
        what: what happened.
        member: the environment that it was at.
    """

    def __init__(self, what: str, member: int) -> None:
        super().__init__(what)
        self.member = member


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
        self.running = False
        """Whether there is a process; there is none before the first start, nor after the last one failed."""
        self._ordered: list[int] = []
        self._patience = 0.0

    def start(self) -> None:
        """Start the process; it loads its libraries meanwhile."""
        self._connection, theirs = multiprocessing.Pipe()
        path = json.dumps([os.path.abspath(entry) if entry else "" for entry in sys.path])
        with theirs, tempfile.TemporaryFile() as shown:
            shown.truncate(Progress.SIZE)
            descriptors = [theirs.fileno(), shown.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, path, *map(str, descriptors)],
                stdin=subprocess.PIPE,  # nothing is ever written: its end is this process's end
                pass_fds=descriptors,
                process_group=0,
            )
            self._progress = Progress(os.dup(shown.fileno()))
        self._progress.begin(NONE)
        self._answers = select.poll()
        self._answers.register(self._connection.fileno(), select.POLLIN)
        self._end = weakref.finalize(self, _end, self._process)
        self.running, self._ordered, self._patience = True, [], START_UP
        with contextlib.suppress(OSError):  # the first answer will tell
            self._connection.send_bytes(self._described)

    def order(self, orders: list[tuple[int, str, Any]]) -> None:
        """Have it do something; the answers must be taken before the next orders."""
        self._ordered = [number for number, _, _ in orders]
        self._progress.begin(NONE)
        with contextlib.suppress(OSError):
            self._connection.send(orders)

    def answers(self) -> list[tuple[Any, ...]]:
        """One for each order, in their order.

        Raises:
            Gone: the process ended, or was ended because an environment did not answer in time.
        """
        waits, hangs = self._limit, False
        # What has come counts, however late it is looked at: this process may have been suspended.
        while not self._answers.poll(max(waits, 0.001) * 1000):
            since, number = self._progress.read()
            waits = since - time.monotonic() + self._limit + (self._patience if number == NONE else 0)
            if hangs := waits <= 0:
                break
        _, number = self._progress.read()
        member = number if number in self._ordered else self._ordered[0]
        if hangs and self._process.poll() is None:
            self.kill()
            raise Gone(f"did not answer within {self._limit:g} s", member)
        with contextlib.suppress(EOFError, OSError):
            if not hangs:
                answers: list[tuple[Any, ...]] = self._connection.recv()
                self._ordered, self._patience = [], 0.0
                return answers
        how = self._how_it_ended()
        self.kill()
        raise Gone(how, member)

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        self.running = False
        self._end()
        self._connection.close()

    def release(self) -> None:
        """Have it close its environments and end, unless an order is unanswered: then it may hang."""
        if self.running and not self._ordered:
            self._connection.close()

    def close(self, until: float) -> None:
        """End it: one that was released, at a moment of the monotonic clock if it has not ended before; any other at once."""
        if not self.running:
            return
        if self._connection.closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(until - time.monotonic(), 0))
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
