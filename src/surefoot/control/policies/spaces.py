"""Observation and action spaces, as the policy needs to know them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from surefoot.control.policies.normalization import resolution_of
from surefoot.equations import Array, Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical, namespace
from surefoot.errors import UsageError

LARGEST_BOUND_BEFORE = 1e6
"""Policies whose file does not name the actions' dtype were trained without scaling to bounds beyond this."""

KINDS: dict[str, type[Distribution]] = {
    "discrete": Categorical,
    "box": DiagonalGaussian,
    "multidiscrete": MultiCategorical,
    "multibinary": Bernoulli,
}


@dataclass(frozen=True)
class ActionSpace:
    """A Gymnasium action space, and the distribution over it.

    A Box is scaled: the policy's component 1 is the upper bound and −1 the lower one where both are bounds, and means itself where
    one is none: infinite, or the largest number of its dtype or of float32, as many environments write it. The policy's sample is
    clipped for the environment only; the unclipped one is scored.
    """

    kind: str
    """discrete, box, multidiscrete or multibinary."""
    sizes: tuple[int, ...]
    """Choices of each part (discrete: one part), or the number of components."""
    start: tuple[int, ...] = ()
    """The environment's number for the first choice of each part (discrete, multidiscrete)."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    environment_dtype: str = ""
    """In which the environment takes actions, NumPy's name; empty where a policy's file does not say."""

    @property
    def outputs(self) -> int:
        """How many numbers the policy network puts out."""
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return {"discrete": (), "multidiscrete": (len(self.sizes),)}.get(self.kind, (self.outputs,))

    @property
    def dtype(self) -> type[np.generic]:
        """The dtype in which the policy keeps its actions."""
        return np.float32 if self.kind == "box" else np.int32

    @property
    def noise(self) -> str:
        """Which noise a sample needs, of shape (…, outputs)."""
        return KINDS[self.kind].noise

    def distribution(self, outputs: Array, log_std: Array | None) -> Distribution:
        """The distribution that the network's ``outputs``, shape (…, outputs), stand for; ``log_std`` is for a
        Box.
        """
        if self.kind == "discrete":
            return Categorical(outputs)
        if self.kind == "multidiscrete":
            return MultiCategorical(outputs, self.sizes)
        if self.kind == "multibinary":
            return Bernoulli(outputs)
        return DiagonalGaussian(outputs, log_std)

    def encode(self, actions: Array) -> Array:
        """The policy's actions as a network takes them in, shape (…, outputs): one number per component of a Box, one per
        choice elsewhere, 1 where it was taken.
        """
        xp = namespace(actions)
        if self.kind in ("box", "multibinary"):
            return actions
        choices = actions[..., None] if self.kind == "discrete" else actions
        parts = [choices[..., i : i + 1] == xp.arange(size) for i, size in enumerate(self.sizes)]
        return xp.concat(parts, axis=-1)

    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """A Box's center and scale: its environment's action is center + scale · the policy's, before it is clipped."""
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        none = float(np.finfo(np.float16 if self.environment_dtype == "float16" else np.float32).max)
        bounded = (np.abs(low) < none) & (np.abs(high) < none)
        inner_low, inner_high = np.where(bounded, low, -1), np.where(bounded, high, 1)
        return ((inner_high + inner_low) / 2).astype(np.float32), ((inner_high - inner_low) / 2).astype(np.float32)

    def for_environment(self, actions: Array) -> Array:
        """The policy's actions as the environment takes them: scaled to and clipped at the bounds, or counted from
        ``start``; in NumPy also as :meth:`as_taken` says.
        """
        if self.kind == "box":
            xp = namespace(actions)
            low, high = (xp.asarray(np.asarray(bound, np.float32)) for bound in (self.low, self.high))
            center, scale = (xp.asarray(part) for part in self.scaling())
            actions = xp.clip(actions * scale + center, low, high)
        elif any(self.start):
            actions = actions + (
                self.start[0] if self.kind == "discrete" else namespace(actions).asarray(self.start, dtype=actions.dtype)
            )
        return self.as_taken(actions) if isinstance(actions, np.ndarray | np.generic) else actions

    @cached_property
    def _dtype(self) -> np.dtype:
        return np.dtype(self.environment_dtype)

    def as_taken(self, actions: Any) -> Any:
        """Scaled or counted actions in the environment's dtype, within its bounds, which float32 may have rounded outwards."""
        if not self.environment_dtype:
            return actions
        dtype = self._dtype
        actions = actions.astype(dtype, copy=False)
        if self.kind == "box" and dtype != np.float32:
            actions = np.clip(actions, np.asarray(self.low, dtype), np.asarray(self.high, dtype))
        return actions

    def from_environment(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`for_environment`, as far as clipping left one."""
        if self.kind == "box":
            center, scale = self.scaling()
            return ((actions - center) / np.where(scale > 0, scale, 1)).astype(np.float32)
        start = np.asarray(self.start if any(self.start) else (0,), np.int64)
        return (actions - (start[0] if self.kind == "discrete" else start)).astype(np.int32)


@dataclass(frozen=True)
class Spaces:
    """What a policy sees and what it does."""

    observation_size: int
    action: ActionSpace
    observation_dtype: str = "float32"
    """In which observations reach the normaliser, NumPy's name."""

    @property
    def resolution(self) -> float:
        """The smallest spread of an observation, as a share of its size, that is not taken for rounding."""
        return resolution_of(self.observation_dtype)

    def in_float32(self) -> Spaces:
        """The same where observations are cast to float32 before anything else, as in compiled rollouts."""
        return replace(self, observation_dtype="float32")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Spaces:
        """The inverse of :meth:`as_dict`.

        Raises:
            KeyError, TypeError: a field is missing or one too many.
        """
        if unknown := value.keys() - {field.name for field in fields(Spaces)}:
            raise KeyError(f"spaces have no {', '.join(map(repr, unknown))}")
        action: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value["action"].items()}
        if "environment_dtype" not in action:
            for name in ("low", "high"):
                infinite = (x if abs(x) <= LARGEST_BOUND_BEFORE else np.copysign(np.inf, x) for x in action.get(name, ()))
                action[name] = tuple(map(float, infinite))
        dtype = str(value.get("observation_dtype", "float32"))
        return Spaces(int(value["observation_size"]), ActionSpace(**action), dtype)


def describe_spaces(observation_space: Any, action_space: Any, *, name: str) -> Spaces:
    """Read Gymnasium spaces of one environment.

    Args:
        observation_space: must be a one-dimensional Box.
        action_space: Discrete, Box, MultiDiscrete or MultiBinary.
        name: the environment's name, for the error.

    Raises:
        UsageError: a space is of another kind; the sentence says which wrapper helps.
    """
    from gymnasium import (
        spaces as gym_spaces,
    )  # not at the top: a saved policy needs the rest of this module, and no environment

    if not isinstance(observation_space, gym_spaces.Box) or len(observation_space.shape) != 1:
        raise UsageError(
            f"{name} has observations {observation_space}, and only vectors (a one-dimensional Box) are supported;"
            " wrap it in gymnasium.wrappers.FlattenObservation (--wrapper gymnasium.wrappers:FlattenObservation)"
        )
    (size,) = observation_space.shape
    if size == 0:
        raise UsageError(
            f"{name} has observations of no component; give them one, of a constant value, where there is nothing to see"
        )
    if isinstance(action_space, gym_spaces.Discrete):
        action = ActionSpace("discrete", (int(action_space.n),), start=(int(action_space.start),))
    elif isinstance(action_space, gym_spaces.MultiDiscrete) and action_space.nvec.ndim == 1:
        action = ActionSpace(
            "multidiscrete", tuple(map(int, action_space.nvec)), start=tuple(int(s) for s in np.ravel(action_space.start))
        )
    elif isinstance(action_space, gym_spaces.MultiBinary) and len(action_space.shape) == 1:
        action = ActionSpace("multibinary", (int(action_space.shape[0]),))
    elif isinstance(action_space, gym_spaces.Box) and len(action_space.shape) == 1 and action_space.dtype.kind == "f":
        action = ActionSpace(
            "box",
            (int(action_space.shape[0]),),
            low=tuple(map(float, action_space.low)),
            high=tuple(map(float, action_space.high)),
        )
    else:
        raise UsageError(
            f"{name} has actions {action_space}, and supported are Discrete, one-dimensional float Box, MultiDiscrete and"
            " MultiBinary; wrap it in a gymnasium.ActionWrapper that offers one of these"
        )
    action = replace(action, environment_dtype=str(action_space.dtype))
    return Spaces(int(size), action, str(observation_space.dtype))
