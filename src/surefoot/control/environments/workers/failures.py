"""What is left of an environment that failed: all that it was given, so that it can be replayed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.control.environments.arguments import spell_arguments
from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.control.environments.making import Recipe, environment_name
from surefoot.runs.directory import FAILED_FOLDER, write_json
from surefoot.runs.libraries import library_versions

KEPT_BYTES = 64 * 2**20
"""Of actions, for all environments together: with the default ``--restart-every``, those of 16 numbers fit in."""
LIBRARIES = ("surefoot", "gymnasium", "numpy", "mujoco")


class Recording:
    """What one environment was given since its seed: its actions, and where its episodes ended.

    Args:
        seed: of its reset.
        dtype: of an action.
        limit: bytes of actions that are kept; beyond it the oldest are dropped, and with them the way from the seed.
    """

    def __init__(self, seed: int, dtype: np.dtype, *, limit: int) -> None:
        self.seed, self._dtype, self._limit = seed, np.dtype(dtype), limit
        self._bytes, self._shape = bytearray(), ()
        self.dropped = 0
        """Actions that are not kept."""
        self.steps = 0
        """Actions in all."""
        self.ends: list[int] = []
        """After how many actions each episode ended."""

    def act(self, action: Any) -> None:
        """The environment is given an action."""
        array = np.asarray(action, self._dtype)
        self._bytes += array.tobytes()
        self._shape = array.shape
        self.steps += 1
        if len(self._bytes) > self._limit:
            size = array.nbytes
            many = max(len(self._bytes) // (2 * size), 1)
            del self._bytes[: many * size]
            self.dropped += many

    def end(self) -> None:
        """Its episode ended; a reset is next."""
        self.ends.append(self.steps)

    @property
    def step(self) -> int:
        """Of the episode, counted from 1; 0 in a reset."""
        return self.steps - (self.ends[-1] if self.ends else 0)

    @property
    def actions(self) -> list[Any]:
        """Those that are kept, in order."""
        array = np.frombuffer(bytes(self._bytes), self._dtype).reshape(-1, *self._shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            array = array.astype(str)  # JSON has no word for them
        kept: list[Any] = array.tolist()
        return kept


@dataclass(frozen=True)
class Failure:
    """An environment that failed in a worker process."""

    environment: str
    """As ``--env`` has it, or what a callable is called."""
    index: int
    what: str
    """Goes on from "environment 3 of CartPole-v1 (…)"."""
    traceback: str | None
    recording: Recording = field(repr=False)
    recipe: Recipe | None = field(default=None, repr=False)
    """What it was made from; its name alone by default."""
    identity: EnvironmentIdentity | None = field(default=None, repr=False)
    """What it was."""

    @property
    def sentence(self) -> str:
        """Which environment, where, and what it did."""
        recording = self.recording
        where = f"step {recording.step}" if recording.step else "its reset"
        return (
            f"environment {self.index} of {self.environment} (seed {recording.seed}, episode {len(recording.ends) + 1}, {where})"
            f" {self.what}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As its file has it."""
        recording, recipe = self.recording, self.recipe or Recipe(self.environment)
        return {
            "environment": self.environment,
            "found_by_name": isinstance(recipe.environment, str),
            "env_kwargs": spell_arguments(recipe.arguments),
            "wrapper": [w if isinstance(w, str) else environment_name(w) for w in recipe.wrappers],
            "identity": self.identity and self.identity.as_dict(),
            "index": self.index,
            "what": self.what,
            "traceback": self.traceback,
            "seed": recording.seed,
            "episode": len(recording.ends) + 1,
            "step": recording.step,
            "dropped_actions": recording.dropped,
            "episodes_ended_after": recording.ends,
            "actions": recording.actions,
            "libraries": library_versions(LIBRARIES),
        }

    def write(self, run: Path) -> str:
        """Write its file into a run's folder, over that of an earlier failure of the same environment.

        Returns:
            how it is replayed.

        Raises:
            RunError: the file cannot be written.
        """
        path = run / FAILED_FOLDER / f"environment-{self.index}.json"
        write_json(path, self.as_dict())
        command = shlex.join(["python", "-m", "surefoot.control.environments.workers.replay", str(path)])
        return f"to replay it: {command}"
