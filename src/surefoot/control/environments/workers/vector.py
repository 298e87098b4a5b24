"""Environments in worker processes, as one Gymnasium vector environment that resets in the next step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.control.environments.making import Recipe, check_copies
from surefoot.control.environments.workers.failures import KEPT_BYTES, Failure, Recording
from surefoot.control.environments.workers.process import GRACE, Gone, Worker
from surefoot.errors import EnvironmentFault, UsageError

FAILURES_IN_A_ROW = 10
"""So many failures of one environment end the run, if none of its episodes ended in between,"""
STEPS_OF_PROGRESS = 1000
"""nor did it take so many steps from one to the next."""


@dataclass(frozen=True)
class WorkerSettings:
    """How environments are spread over processes."""

    count: int
    """Processes; each has as many environments as the others, or one more."""
    limit: float
    """Seconds within which an environment must be made, reset or stepped."""
    restart: bool
    """Whether one that fails is made anew; else it ends the run."""


class Restarts(NamedTuple):
    """What happened since somebody asked last."""

    begun: int = 0
    """Environments that were made anew: those that failed, and those whose process went with them."""
    failures: tuple[Failure, ...] = ()


class Fault(NamedTuple):
    """Why an environment has no answer."""

    what: str
    traceback: str | None = None
    unusable: bool = False
    """It could not even be made."""


Answers = dict[int, tuple[Any, ...]]


class WorkerEnvironments(VectorEnv):
    """N environments in worker processes; each sees what it would see in Gymnasium's ``SyncVectorEnv``, to the last bit.

    Where ``settings.restart`` says so, one that fails is made anew, with a seed from the first one and the number of such
    restarts, and with it all others of a process that ended: :attr:`begun_afresh` tells for which environments a step was
    only that. Its reward is 0, and its observation the first of another episode.

    Args:
        recipe: what environments are made from; a callable must be one that can be sent to another process.
        name: what messages call it.
        num_envs: N.
        settings: how they are spread.
        seed: of what they draw while they are made, environment i with ``seed + i``; resets have their own.

    Raises:
        UsageError: the environment cannot be made, or cannot be sent.
        EnvironmentFault: a process ended, or did not answer, while it made one.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, recipe: Recipe, *, name: str, num_envs: int, settings: WorkerSettings, seed: int = 0) -> None:
        self.name, self.num_envs, self._settings = name, num_envs, settings
        self._recipe, recipe = recipe, recipe.for_another_process()
        self.identity: EnvironmentIdentity
        """What environment 0 is."""
        try:
            described = cloudpickle.dumps((recipe, name))
        except Exception as error:
            raise UsageError(
                f"{name} cannot be sent to a worker process ({type(error).__name__}: {error}); make everything that it needs inside"
                " of it, or leave --env-workers out"
            ) from error
        blocks = np.array_split(np.arange(num_envs), settings.count)
        self._workers = [Worker(block.tolist(), described, limit=settings.limit) for block in blocks]
        self.begun_afresh: np.ndarray | None = None
        """(N,): which environments the last step, or the reset, made anew; None where none."""
        self._failures: list[Failure] = []
        self._begun, self._restarts, self._seed, self._in_a_row = 0, 0, 0, [0] * num_envs
        self._recordings: list[Recording] = []
        self._resetting = np.zeros(num_envs, bool)
        try:
            self._make(seed)
        except BaseException:
            self._close()
            raise

    def _make(self, seed: int) -> None:
        for worker in self._workers:  # all at once, so that they load their libraries at the same time
            worker.start()
        answers, faults, _ = self._exchange({i: ("make", seed + i) for i in range(self.num_envs)})
        for i, fault in faults.items():
            if fault.unusable:
                raise UsageError(fault.what)
            raise EnvironmentFault(f"environment {i} of {self.name} {fault.what} while it was made")
        self.single_observation_space, self.single_action_space, described = answers[0][1:]
        check_copies([answers[i][1:3] for i in range(self.num_envs)], name=self.name)
        self.identity = self._recipe.identify(described)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all; environment i with ``seed + i``.

        Raises:
            EnvironmentFault: one failed, and is not to be made anew.
        """
        self._seed, self.begun_afresh = seed, None
        self._recordings = [self._recording(seed + i) for i in range(self.num_envs)]
        self._resetting[:] = False
        answers = self._answered({i: ("reset", seed + i) for i in range(self.num_envs)})
        return np.stack([answers[i][1] for i in range(self.num_envs)]), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all; those whose episode ended in the last step are reset, and ignore their action.

        Raises:
            EnvironmentFault: one failed, and is not to be made anew.
        """
        self.begun_afresh = None
        orders: dict[int, tuple[str, Any]] = {}
        for i, recording in enumerate(self._recordings):
            if self._resetting[i]:
                recording.end()
                orders[i] = ("reset", None)
            else:
                recording.act(actions[i])
                orders[i] = ("step", actions[i])
        answers = self._answered(orders)
        observations = np.stack([answers[i][1] for i in range(self.num_envs)])
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, answer in answers.items():
            if answer[0] == "step":
                rewards[i], terminated[i], truncated[i] = answer[2:]
        self._resetting = terminated | truncated
        for i in range(self.num_envs):
            if self._in_a_row[i] and (self._resetting[i] or self._recordings[i].steps >= STEPS_OF_PROGRESS):
                self._in_a_row[i] = 0
        return observations, rewards, terminated, truncated, {}

    def take_restarts(self) -> Restarts:
        """What was made anew since this was called last."""
        taken = Restarts(self._begun, tuple(self._failures))
        self._begun, self._failures = 0, []
        return taken

    def close_extras(self, **options: Any) -> None:
        """End the processes."""
        self._close()

    def _close(self) -> None:
        until = time.monotonic() + GRACE
        for worker in self._workers:
            worker.release()
        for worker in self._workers:
            worker.close(until)

    def _recording(self, seed: int) -> Recording:
        return Recording(seed, self.single_action_space.dtype, limit=KEPT_BYTES // self.num_envs)

    def _answered(self, orders: dict[int, tuple[str, Any]]) -> Answers:
        """The answers; of environments that had none, those of others made in their place."""
        answers, faults, lost = self._exchange(orders)
        if not lost:
            return answers
        anew = np.zeros(self.num_envs, bool)
        while lost:
            self._take_up(faults)
            anew[list(lost)] = True
            seeds = {i: self._next_seed() for i in sorted(lost)}
            for i, seed in seeds.items():
                self._recordings[i] = self._recording(seed)
            for worker in self._workers:
                if not worker.running:
                    worker.start()
            begun, faults, lost = self._exchange({i: ("begin", seed) for i, seed in seeds.items()})
            answers |= begun
        self.begun_afresh = anew
        return answers

    def _take_up(self, faults: dict[int, Fault]) -> None:
        """Keep what is left of environments that failed; raise where that ends the run."""
        for i, fault in faults.items():
            made_from: dict[str, Any] = {"recipe": self._recipe, "identity": self.identity}
            failure = Failure(self.name, i, fault.what, fault.traceback, self._recordings[i], **made_from)
            self._in_a_row[i] += 1
            if not self._settings.restart:
                raise EnvironmentFault(failure.sentence, failure=failure)
            if self._in_a_row[i] >= FAILURES_IN_A_ROW:
                raise EnvironmentFault(
                    f"{failure.sentence}, for the {FAILURES_IN_A_ROW}th time without an end of an episode or"
                    f" {STEPS_OF_PROGRESS:,} steps in between",
                    failure=failure,
                )
            self._failures.append(failure)

    def _next_seed(self) -> int:
        self._restarts, self._begun = self._restarts + 1, self._begun + 1
        return int(np.random.SeedSequence([self._seed, self._restarts]).generate_state(1)[0] >> 2)

    def _exchange(self, orders: dict[int, tuple[str, Any]]) -> tuple[Answers, dict[int, Fault], set[int]]:
        """Give orders to environments, and take the answers.

        Returns:
            the answers; the faults of environments that failed; and which have no answer, or none that counts, because their
            process has ended: there may be more of these.
        """
        answers: Answers = {}
        faults: dict[int, Fault] = {}
        lost: set[int] = set()
        busy = [(worker, [i for i in worker.members if i in orders]) for worker in self._workers]
        for worker, members in busy:
            if members:
                worker.order([(i, *orders[i]) for i in members])
        for worker, members in busy:
            if not members:
                continue
            try:
                given = worker.answers()
            except Gone as how:
                faults[how.member] = Fault(str(how))
                lost |= set(worker.members)
                continue
            for i, answer in zip(members, given, strict=True):
                if answer[0] == "failed":
                    faults[i] = Fault(*answer[1:])
                else:
                    answers[i] = answer
        lost |= faults.keys()
        return {i: answer for i, answer in answers.items() if i not in lost}, faults, lost
