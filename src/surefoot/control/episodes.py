"""Finished episodes, found in rollouts as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from surefoot.errors import UsageError

RECENT_EPISODES = 100
LONGEST_EPISODE = 100_000
"""Steps after which an evaluation cuts an episode, unless it is told otherwise."""


class EpisodeTracker:
    """Returns and lengths of finished episodes, from rollouts as they come."""

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self.recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.finished_steps = 0
        """Of all episodes that finished."""
        self.last_finished: int | None = None
        """Episodes that the last rollout finished; None before the first, and where it is not known."""

    @property
    def running_steps(self) -> int:
        """Of the episodes that are going on."""
        return int(self._lengths.sum())

    @property
    def mean_return(self) -> float | None:
        """Over the last 100 finished episodes; None before the first."""
        return float(np.mean(self.recent)) if self.recent else None

    def cut(self) -> None:
        """Forget the episodes that are going on: they do not finish."""
        self._returns[:], self._lengths[:] = 0, 0

    def state(self) -> dict[str, np.ndarray]:
        """What it knows, by names."""
        counts = np.asarray([self.finished_steps, -1 if self.last_finished is None else self.last_finished], np.int64)
        recent = np.asarray(self.recent, np.float64)
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy(), "recent": recent, "counts": counts}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what another knew.

        Raises:
            UsageError: it was of another number of environments.
        """
        returns, lengths, recent = (np.asarray(state.get(name)) for name in ("returns", "lengths", "recent"))
        if not _like(returns, self._returns) or not _like(lengths, self._lengths) or recent.ndim != 1:
            raise UsageError("the checkpoint does not fit this run: the episodes of other environments were going on")
        counts = np.asarray(state.get("counts", (0, -1)))  # checkpoints of older versions have none
        if counts.shape != (2,) or counts.dtype.kind != "i":
            raise UsageError("the checkpoint does not fit this run: it does not say how many episodes finished")
        self.finished_steps, self.last_finished = int(counts[0]), int(counts[1]) if counts[1] >= 0 else None
        self._returns, self._lengths = returns.copy(), lengths.copy()
        self.recent = deque(recent.tolist(), maxlen=RECENT_EPISODES)

    def take(
        self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray, cut: np.ndarray | None = None
    ) -> dict[str, float | None]:
        """Take in a rollout; returns the metrics of the episodes that it finished.

        Args:
            rewards: (T, N), not normalised.
            ended: (T, N), by either kind of end, or by a cut.
            valid: (T, N), false in steps that only reset.
            cut: (T, N), before which steps an episode was cut: it does not finish.
        """
        rewards, counts = np.where(valid, rewards, 0.0), valid.astype(np.int64)
        ends = ended & valid
        unfinished = np.zeros_like(ends)
        if cut is not None:
            self._returns[cut[0]], self._lengths[cut[0]] = 0, 0
            unfinished[:-1] = cut[1:] & valid[:-1]
            ends |= unfinished  # where a rollout begins with a cut, the one before did not know that it ended there
        returns, lengths = np.cumsum(rewards, axis=0, dtype=np.float64), np.cumsum(counts, axis=0)
        finished_returns: list[tuple[int, float, int]] = []
        for env in np.flatnonzero(ends.any(axis=0)):
            rows = np.flatnonzero(ends[:, env])
            totals = np.diff(returns[rows, env], prepend=-self._returns[env])
            spans = np.diff(lengths[rows, env], prepend=-self._lengths[env])
            whole = ~unfinished[rows, env]
            finished_returns += zip(rows[whole].tolist(), totals[whole].tolist(), spans[whole].tolist(), strict=True)
            self._returns[env] = returns[-1, env] - returns[rows[-1], env]
            self._lengths[env] = lengths[-1, env] - lengths[rows[-1], env]
        going = ~ends.any(axis=0)
        self._returns[going] += returns[-1, going]
        self._lengths[going] += lengths[-1, going]
        finished_returns.sort(key=lambda episode: episode[0])  # in the order of time, so that "the last 100" means it
        self.recent.extend(value for _, value, _ in finished_returns)
        done = np.asarray([(value, span) for _, value, span in finished_returns])
        self.last_finished = len(done)
        self.finished_steps += sum(span for *_, span in finished_returns)
        return {
            "episode/return_mean": float(done[:, 0].mean()) if len(done) else None,
            "episode/return_min": float(done[:, 0].min()) if len(done) else None,
            "episode/return_max": float(done[:, 0].max()) if len(done) else None,
            "episode/length_mean": float(done[:, 1].mean()) if len(done) else None,
            "episode/finished": float(len(done)),
            "episode/return_mean_recent": self.mean_return,
        }


def _like(array: np.ndarray, other: np.ndarray) -> bool:
    return (array.shape, array.dtype) == (other.shape, other.dtype)
