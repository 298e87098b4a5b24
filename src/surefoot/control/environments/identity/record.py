"""What an environment is: recorded when a run begins, and compared wherever it meets an environment again.

No engine and no Gymnasium here: configurations and policies hold this record. What reads it off an environment stands in
:mod:`surefoot.control.environments.identity.reading`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.policies.spaces import ActionSpace, Spaces
from surefoot.errors import Caution

ROUNDING = 1e-5
"""Implementations of one environment may write its bounds in other precisions: so much relative difference is none."""
TASK = ("spaces", "time limit", "class", "arguments")
"""Parts in which two environments of one task agree."""


@dataclass(frozen=True)
class EnvironmentIdentity:
    """What is known of an environment. What is None is not known, and differs from nothing."""

    name: str
    """As ``--env`` has it; or what a callable is called."""
    given_as: str = "name"
    """``name``: it can be found by its name. ``callable``: only from Python, or by module and name of the callable."""
    module: str | None = None
    """Where the callable was defined."""
    spaces: Spaces | None = None
    """What a policy sees and does: sizes, dtypes, bounds, and what actions are counted from."""
    made_by: str | None = None
    """``module:class`` of what lies behind all wrappers."""
    arguments: Mapping[str, str] | None = field(default=None, hash=False)
    """That it was made with, as Gymnasium's registration has them, each as Python writes it."""
    wrappers: tuple[str, ...] | None = None
    """``module:class(arguments)`` from the innermost one outwards; those that only check, and time limits, are left out."""
    max_episode_steps: int | None = None
    """Episodes are truncated after so many steps; 0 for never."""
    statistics: tuple[str, ...] = ()
    """Wrappers that keep running statistics, which are not saved with a policy."""
    code: str | None = None
    """Digest of the class's source."""

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all that makes a task: equal for equal tasks."""
        parts = self._plain()
        kept = {name: parts[name] for name in ("spaces", "made_by", "arguments", "wrappers", "max_episode_steps", "code")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def as_option(self) -> str:
        """How a callable is named on the command line, as far as it is known."""
        module = "module" if self.module in (None, "__main__") else self.module
        return f"{module}:{self.name if self.name.isidentifier() else 'callable'}"

    @property
    def unfound(self) -> str | None:
        """What to tell where no environment is given, and this one cannot be found by its name; None where it can."""
        if self.given_as == "name":
            return None
        return f"the run was trained in an environment given as a callable, {self.name}; give environment=…, or --env {self.as_option}"

    def about_statistics(self, again: str) -> tuple[Caution, ...]:
        """What a user must know whose environment normalises by itself: every copy begins with statistics of its own.

        Args:
            again: when they begin afresh.
        """
        if not self.statistics:
            return ()
        returns = ", and returns are not the task's" if any("Reward" in name for name in self.statistics) else ""
        said = (
            f"{self.name} keeps statistics in {' and '.join(self.statistics)}, which are not saved with the policy and begin afresh in"
            f" {again}{returns}; surefoot normalises by itself, so leave them out"
        )
        return (Caution(said),)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: numbers that are not finite are texts."""
        return self._plain() | {"fingerprint": self.fingerprint}

    def _plain(self) -> dict[str, Any]:
        return _finite({f.name: getattr(self, f.name) for f in fields(self)} | {"spaces": self.spaces and asdict(self.spaces)})

    @staticmethod
    def from_dict(value: Any) -> EnvironmentIdentity:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: it is no such record.
        """
        try:
            parts: dict[str, Any] = {f.name: value[f.name] for f in fields(EnvironmentIdentity) if f.name in value}
            if parts.get("spaces") is not None:
                action = dict(parts["spaces"]["action"])
                bounds = {name: [float(bound) for bound in action[name]] for name in ("low", "high") if name in action}
                parts["spaces"] = Spaces.from_dict({**parts["spaces"], "action": action | bounds})
            held: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parts.items()}
            identity = EnvironmentIdentity(**held)
            identity._check()
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"it is no record of an environment ({type(error).__name__}: {error})") from error
        return identity

    def _check(self) -> None:
        texts = [self.name, self.given_as, *(self.wrappers or ()), *self.statistics]
        texts += [text for text in (self.module, self.made_by, self.code) if text is not None]
        arguments = {} if self.arguments is None else dict(self.arguments)
        limit = self.max_episode_steps
        if not all(isinstance(text, str) for text in (*texts, *arguments, *arguments.values())):
            raise ValueError("a name is no text")
        if self.given_as not in ("name", "callable") or (limit is not None and (type(limit) is not int or limit < 0)):
            raise ValueError("it is given in no known way, or its time limit is no number of steps")


class Difference(NamedTuple):
    """In what two environments differ."""

    part: str
    sentence: str
    """Goes on from "in this environment"."""

    @property
    def of_task(self) -> bool:
        """Whether it makes another task of it."""
        return self.part in TASK

    def caution(self, name: str, trained: str) -> Caution:
        """What to tell where the difference is taken.

        Args:
            name: of the environment.
            trained: what was trained in another one.
        """
        return Caution(f"{name} is not quite what {trained} was trained in ({self.sentence})")


def differences(
    before: EnvironmentIdentity, now: EnvironmentIdentity, *, words: tuple[str, str] = ("before", "now")
) -> tuple[Difference, ...]:
    """In what an environment differs from the one that was recorded; what either does not know is left out.

    Args:
        before: the record.
        now: the other one.
        words: what a sentence says after each one's value.
    """
    found: list[Difference] = []

    def compare(part: str, a: Any, b: Any, alike: bool, says: Any) -> None:
        if a is not None and b is not None and not alike:
            found.append(Difference(part, f"{part}: {says(a)} {words[0]}, {says(b)} {words[1]}"))

    if before.spaces is not None and now.spaces is not None and (sentence := other_spaces(before.spaces, now.spaces, words)):
        found.append(Difference("spaces", sentence))
    limits = before.max_episode_steps, now.max_episode_steps
    compare("time limit", *limits, limits[0] == limits[1], lambda limit: f"{limit} steps" if limit else "none")
    classes = before.made_by, now.made_by
    compare("class", *classes, _same_code(*classes), str)
    # Where one was made in its class's own words and not by Gymnasium's registration, arguments are in other places.
    arguments = before.arguments, now.arguments
    compare("arguments", *arguments, arguments[0] == arguments[1], _spelt)
    chains = before.wrappers, now.wrappers
    same = len(chains[0] or ()) == len(chains[1] or ()) and all(map(_same_code, chains[0] or (), chains[1] or ()))
    compare("wrappers", *chains, same, lambda chain: ", ".join(chain) or "none")
    if before.code is not None and now.code is not None and before.code != now.code and _same_code(*classes):
        found.append(Difference("code", f"the code of {now.made_by} is not what it was"))
    return tuple(found)


def other_spaces(before: Spaces, now: Spaces, words: tuple[str, str] = ("before", "now")) -> str | None:
    """In which words two spaces differ for a policy, by more than rounding of bounds; None where they do not."""
    if before.observation_size != now.observation_size:
        return f"observations: {before.observation_size} numbers {words[0]}, {now.observation_size} {words[1]}"
    mine, theirs = before.action, now.action
    same = (mine.kind, mine.sizes) == (theirs.kind, theirs.sizes) and _starts(mine) == _starts(theirs)
    # Policies from before dtypes were recorded have no bound where it was no scale.
    old = not (mine.environment_dtype and theirs.environment_dtype)
    unknown = lambda bounds: old & np.isinf(bounds)  # noqa: E731
    for a, b in ((mine.low, theirs.low), (mine.high, theirs.high)):
        same = same and len(a) == len(b) and bool((np.isclose(a, b, rtol=ROUNDING, atol=0.0) | unknown(a) | unknown(b)).all())
    return None if same else f"actions: {_of_actions(mine)} {words[0]}, {_of_actions(theirs)} {words[1]}"


def _starts(space: ActionSpace) -> tuple[int, ...]:
    return space.start or (0,) * len(space.sizes)


def _of_actions(space: ActionSpace) -> str:
    if space.kind == "box":

        def bounds(values: tuple[float, ...]) -> str:
            return f"{values[0]:g}" if len(set(values)) == 1 else f"[{' '.join(f'{value:g}' for value in values)}]"

        return f"{space.sizes[0]} numbers in {bounds(space.low)} … {bounds(space.high)}"
    counted = f" counted from {' '.join(map(str, space.start))}" if any(space.start) else ""
    return f"{space.kind} {' '.join(map(str, space.sizes))}{counted}"


def _same_code(before: str | None, now: str | None) -> bool:
    """Whether two ``module:name`` are one; what a script defines is called __main__ there, and by its file's name elsewhere."""
    if before is None or now is None or before == now:
        return True
    (one, _, rest), (other, _, others) = before.partition(":"), now.partition(":")
    return rest == others and "__main__" in (one, other)


def _spelt(arguments: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items()) or "none"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
