"""Whole episodes of a saved policy: how many, in how many environments, and where one that does not end is cut."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.configuration.run import WORKER_TIMEOUT, check_workers
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.workers.vector import WorkerSettings
from surefoot.errors import UsageError, require
from surefoot.runs.directory import CONFIGURATION_FILE, read_json
from surefoot.runs.progress import Progress
from surefoot.runs.settings import Settings

CONCURRENT = 10
"""So many environments step together, unless the run had fewer or another number is asked for."""
EVALUATION_SEED = 2**31
"""Evaluation's seeds start here, where those of training end."""
SILENT = 2.0
"""Seconds after which progress is shown."""


@dataclass(frozen=True)
class Request(Settings):
    """Which episodes are played, and in what; see :func:`surefoot.control.evaluation.evaluate`."""

    episodes: int
    seed: int = 0
    backend: Backend = "gymnasium-sync"
    num_envs: int | None = None
    env_workers: int = 0
    worker_timeout: float = WORKER_TIMEOUT
    longest_episode: int | None = None
    quiet: bool = True

    def _check(self) -> None:
        require(self.episodes >= 1, f"--episodes must be at least 1, but is {self.episodes}")
        require(0 <= self.seed < 2**31, f"--seed must lie between 0 and 2147483647, but is {self.seed}")
        most, given = self.episodes, self.num_envs
        require(given is None or 1 <= given <= most, f"--num-envs must lie between 1 and --episodes {most}, but is {given}")
        cut = self.longest_episode
        require(cut is None or cut >= 1, f"--longest-episode must be at least 1, or none, but is {cut}")
        check_workers(self.env_workers, num_envs=self.together, backend=self.backend, timeout=self.worker_timeout)

    @property
    def together(self) -> int:
        """Environments that step together."""
        return min(self.episodes, CONCURRENT) if self.num_envs is None else self.num_envs

    @property
    def workers(self) -> WorkerSettings | None:
        """The processes that step them; None for this one. An environment that fails ends the evaluation."""
        return WorkerSettings(self.env_workers, self.worker_timeout, restart=False) if self.env_workers else None

    def of_run(self, run: str | Path) -> Request:
        """With the number of environments that a run had, where none was asked for and it had fewer."""
        path, own = Path(run) / CONFIGURATION_FILE, None
        if self.num_envs is None and path.exists():
            with contextlib.suppress(UsageError):  # the policy alone is needed
                own = read_json(path).get("num_envs")
        return replace(self, num_envs=own) if type(own) is int and 1 <= own < self.together else self


class Step(NamedTuple):
    """What one step of all environments brought; each field has one row per environment."""

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observations: np.ndarray
    """True next ones, final ones included; the environments may overwrite them at the next step."""
    counts: np.ndarray
    """Whether the row is a step of one of the episodes asked for: no reset, nor an episode beyond them."""
    cut: np.ndarray
    """Whether its episode was cut here, because it had become too long; it is ``truncated`` then."""

    @property
    def ended(self) -> np.ndarray:
        """Whether one of the episodes asked for ended here."""
        return (self.terminated | self.truncated) & self.counts


Act = Callable[[np.ndarray], np.ndarray]
"""From observations to the environments' actions."""


def play(act: Act, environments: HostEnvironments, request: Request) -> Iterator[Step]:
    """Play exactly the episodes that are asked for, step by step, and show how far it is."""
    finished, taken, began = 0, 0, time.monotonic()
    with ExitStack() as stack:
        progress: Progress | None = None
        for step in _steps(act, environments, request):
            yield step
            finished, taken = finished + int(np.count_nonzero(step.ended)), taken + int(np.count_nonzero(step.counts))
            spent = time.monotonic() - began
            if progress is None and spent >= SILENT and not request.quiet:
                shown = Progress(f"evaluating {environments.name}", request.episodes, unit="episodes", began=began)
                progress = stack.enter_context(shown)
            if progress is not None:
                progress.update(finished, rate=finished / spent, reached=f"{taken:,} steps so far")


def _steps(act: Act, environments: HostEnvironments, request: Request) -> Iterator[Step]:
    """Each environment gets its share of the episodes beforehand: taking the first to finish would favour the short ones.

    Most environments cannot be reset one by one. One whose episode was cut therefore rests until the others have played their
    shares; then all are reset, with other seeds, for what is left to play.
    """
    envs, longest = environments.num_envs, request.longest_episode
    quota = np.full(envs, request.episodes // envs) + (np.arange(envs) < request.episodes % envs)
    nobody = np.zeros(envs, bool)
    for began in itertools.count():
        observations = environments.reset(EVALUATION_SEED + request.seed, began=began)
        playing, resetting, lengths = quota > 0, nobody, np.zeros(envs, np.int64)
        while playing.any():
            observations, rewards, terminated, truncated, finals = environments.step(act(observations))
            ended, counts = (terminated | truncated) & ~resetting, ~resetting & playing
            lengths += counts
            cut = nobody if longest is None else counts & ~ended & (lengths >= longest)
            following = observations if finals is None else np.where(ended[:, None], finals, observations)
            yield Step(rewards, terminated, truncated | cut, following, counts, cut)
            quota -= (ended | cut) & playing
            playing = (quota > 0) & playing & ~cut
            lengths[ended] = 0
            resetting = ended if environments.next_step else resetting
        if not quota.any():
            return
