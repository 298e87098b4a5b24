"""What is watched during a run of DPO: whether the chosen answers lose likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FALLEN = 1.0
"""Nats below the reference at which the chosen answers' likelihood is worth a warning."""
SMOOTHING = 0.9


class ChosenWatch:
    """Says once when DPO lowers the likelihood of the chosen answers too."""

    def __init__(self) -> None:
        self._moved: float | None = None
        self._said = False

    def state(self) -> dict[str, Any]:
        """What it has seen, for a checkpoint."""
        return {"moved": self._moved, "said": self._said}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Have seen what :meth:`state` says."""
        if not isinstance(state["said"], bool):
            raise TypeError("said is neither true nor false")
        if state["moved"] is not None and type(state["moved"]) is not float:
            raise TypeError("moved is no number")
        self._moved, self._said = state["moved"], state["said"]

    def look(self, metrics: Mapping[str, float]) -> str | None:
        """A sentence where the chosen answers' mean log-ratio, smoothed over updates, has fallen too far; once."""
        if "log_ratio/chosen" not in metrics or self._said:
            return None
        now = metrics["log_ratio/chosen"]
        self._moved = now if self._moved is None else SMOOTHING * self._moved + (1 - SMOOTHING) * now
        if self._moved > -FALLEN:
            return None
        self._said = True
        return (
            f"the chosen answers are losing likelihood: their log-probability is {-self._moved:.1f} nats below the reference's."
            " DPO asks only that the rejected ones lose more; --supervised-weight 1 holds the chosen ones up, and a larger --beta,"
            " a smaller --learning-rate or answers sampled from the model itself help too"
        )
