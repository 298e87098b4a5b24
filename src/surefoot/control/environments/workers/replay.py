"""Replay an environment that failed in a worker process: make it, seed it, give it what it was given, in this process.

``python -m surefoot.control.environments.workers.replay runs/x/failed/environment-3.json``. It makes the environment that the
file names, so replay files of runs that you began.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.environments.closing import close_guarded
from surefoot.control.environments.identity.reading import describe
from surefoot.control.environments.identity.record import Difference, EnvironmentIdentity, differences
from surefoot.control.environments.making import Environment, make_single, recipe_for
from surefoot.control.environments.seeding import seed_shared, shared_generators_restored
from surefoot.control.environments.workers.outcomes import Unusable, describe_exception, reset_checked, step_checked
from surefoot.errors import RunError, UsageError, require
from surefoot.runs.directory import read_json

KINDS: dict[str, Any] = {
    "environment": str, "found_by_name": bool, "what": str, "seed": int, "dropped_actions": int, "episodes_ended_after": list,
    "actions": list,
}  # fmt: skip


class Replayed(NamedTuple):
    """How a replay went."""

    failed: bool
    """Whether the environment failed where it had."""
    sentence: str
    """What it did."""


@shared_generators_restored()
def replay(path: str | Path, environment: Environment | None = None, *, say: Callable[[str], None] = print) -> Replayed:
    """Give an environment what the one that failed was given, from its seed to its last action.

    An environment that had ended its process ends this one, and one that hung hangs: ``say`` is told before the last step.

    Args:
        path: the file in the run's folder ``failed``.
        environment: the callable that the run was trained with, where the file has only its name.
        say: what takes sentences on the way.

    Raises:
        UsageError: the file is not such a one, its first actions were dropped, or there is no such environment.
        RunError: the environment went another way than before, so that it does not depend on its seed and actions alone.
    """
    record = read_json(Path(path))
    for name, kind in KINDS.items():
        require(
            type(record.get(name)) is kind, f"{path} is not the record of a failed environment: {name} is not as it should be"
        )
    require(
        record["dropped_actions"] == 0,
        f"{path} holds only the last {len(record['actions'])} actions since the seed: it ran longer than records reach, and cannot be"
        " replayed; a smaller --restart-every seeds environments more often",
    )
    name = record["environment"]
    # Records from before these could be given have none.
    arguments, wrappers = record.get("env_kwargs", []), record.get("wrapper", [])
    texts = (
        isinstance(arguments, list) and isinstance(wrappers, list) and all(isinstance(t, str) for t in (*arguments, *wrappers))
    )
    require(texts, f"{path} is not the record of a failed environment: env_kwargs and wrapper are not as they should be")
    require(
        environment is not None or record["found_by_name"],
        f"{name} was given as a callable; replay it from Python: replay({str(path)!r}, environment={name})",
    )
    seed_shared(record["seed"])
    made = make_single(recipe_for(name if environment is None else environment, arguments, wrappers), name=name)
    for difference in _differences(record.get("identity"), describe(made), path):
        say(f"this is not quite the environment that failed ({difference.sentence})")
    actions, ends = record["actions"], record["episodes_ended_after"]
    steps = iter([("reset", record["seed"]), *_steps(actions, ends, np.dtype(made.action_space.dtype))])
    say(f"{name}: seed {record['seed']}, {len(actions)} actions; it {record['what']}")
    ended, done, last = set(ends), 0, len(actions) + len(ends)
    try:
        for number, (command, argument) in enumerate(steps):
            if number == last:
                say("the last one is next")
            if command == "reset":
                reset_checked(made, **({} if argument is None else {"seed": argument, "options": None}))
                continue
            done += 1
            _, _, terminated, truncated = step_checked(made, argument)
            if number < last and (terminated or truncated) != (done in ended):
                raise RunError(
                    f"{name} went another way: action {done} {'ended' if done not in ended else 'did not end'} an episode; it does"
                    " not depend on its seed and actions alone"
                )
    except Unusable as error:
        return Replayed(number == last, f"at {_where(command, done, ends)} it {error}")
    except (RunError, UsageError):
        raise
    except Exception as error:
        say(traceback.format_exc().rstrip())
        return Replayed(number == last, f"at {_where(command, done, ends)} it {describe_exception(error)}")
    finally:
        if (notice := close_guarded(made.close, name)) is not None:
            say(notice)
    return Replayed(False, "it did not fail")


def _differences(recorded: Any, made: EnvironmentIdentity, path: str | Path) -> tuple[Difference, ...]:
    try:
        return () if recorded is None else differences(EnvironmentIdentity.from_dict(recorded), made)
    except ValueError as error:
        raise UsageError(f"{path} is not the record of a failed environment: of identity, {error}") from error


def _steps(actions: list[Any], ends: list[int], dtype: np.dtype) -> list[tuple[str, Any]]:
    """The actions, and the resets between them."""
    try:
        given = [np.asarray(action, dtype)[()] for action in actions]
    except (TypeError, ValueError) as error:
        raise UsageError(f"the actions are not those of this environment: {error}") from error
    steps, resets = list[tuple[str, Any]](), set(ends)
    for number, action in enumerate([*given, None]):
        if number in resets:
            steps.append(("reset", None))
        if number < len(given):
            steps.append(("step", action))
    return steps


def _where(command: str, done: int, ends: list[int]) -> str:
    """Where a replay is: in a reset, or in its last action of ``done``."""
    if command == "reset":
        return f"the reset of episode {sum(end <= done for end in ends) + 1}"
    before = [end for end in ends if end < done]
    return f"step {done - (before[-1] if before else 0)} of episode {len(before) + 1}"


def main(arguments: list[str]) -> int:
    """The command; returns 0 where the environment failed again where it had, 1 where not, 2 where the file cannot be used."""
    if len(arguments) != 1:
        print("usage: python -m surefoot.control.environments.workers.replay RUN/failed/environment-N.json", file=sys.stderr)
        return 2
    try:
        replayed = replay(arguments[0], say=lambda sentence: print(sentence, flush=True))
    except UsageError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 1
    print(f"failed as before: {replayed.sentence}" if replayed.failed else f"not as before: {replayed.sentence}")
    return 0 if replayed.failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
