"""Whether EnvPool's task of a name is Gymnasium's environment of that name, found before it is stepped."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium.envs

from surefoot.control.environments.closing import close_guarded
from surefoot.control.environments.identity.reading import describe
from surefoot.control.environments.identity.record import EnvironmentIdentity, differences
from surefoot.control.environments.making import MissingPackage, Recipe, make_single, specification_of
from surefoot.control.environments.pool import described_task, has_task
from surefoot.control.environments.seeding import shared_generators_restored
from surefoot.control.policies.spaces import describe_spaces
from surefoot.errors import UsageError

REGISTERED = ("entry_point", "max_episode_steps", "kwargs")
"""What makes a task of a registration."""


@dataclass(frozen=True)
class EnvPoolTask:
    """EnvPool's task beside Gymnasium's environment of the same name."""

    agrees: bool
    """Whether both are one task, as far as can be seen without acting; `tests` compare what they do."""
    why: str | None
    """Why not, or what could not be compared; None where all was compared and agrees."""
    identity: EnvironmentIdentity
    """Gymnasium's where they agree, and else EnvPool's."""


@shared_generators_restored()
def compare_with_gymnasium(recipe: Recipe, name: str) -> EnvPoolTask:
    """Make Gymnasium's environment of an id once, and compare it with EnvPool's task of that name.

    Compared are observations' size, actions, and time limit, and the registration (entry point, arguments, time limit) with the one
    that Gymnasium ships, which EnvPool's tasks are written after.

    Args:
        recipe: of Gymnasium's environment.
        name: the id.
    """
    if not has_task(name):
        return EnvPoolTask(False, None, EnvironmentIdentity(""))
    pooled = described_task(name)
    try:
        registered = specification_of(name)
    except UsageError:
        return EnvPoolTask(False, f"Gymnasium has no {name}", pooled)
    if shipped(name) != {part: getattr(registered, part) for part in REGISTERED}:
        return EnvPoolTask(False, f"what is registered as {name} is not what Gymnasium ships under that name", pooled)
    try:
        made = make_single(recipe, name=name)
    except MissingPackage as error:
        return EnvPoolTask(True, f"Gymnasium's own could not be made here, to compare EnvPool's with it ({error})", pooled)
    except UsageError as error:
        return EnvPoolTask(False, f"Gymnasium's own cannot be made ({error})", pooled)
    try:
        spaces = describe_spaces(made.observation_space, made.action_space, name=name)
        own = replace(describe(made), spaces=spaces)
    except UsageError as error:
        return EnvPoolTask(False, f"Gymnasium's own cannot be trained on ({error})", pooled)
    finally:
        close_guarded(made.close, name)
    if found := differences(own, pooled, words=("in Gymnasium", "in EnvPool")):
        return EnvPoolTask(False, f"it is another task ({'; '.join(d.sentence for d in found)})", pooled)
    return EnvPoolTask(True, None, own)


def shipped(name: str) -> dict[str, Any] | None:
    """What Gymnasium itself registers under an id, read from its source: by now others may have registered something else.

    Returns:
        entry_point, max_episode_steps and kwargs; None where it registers no such id, or one that is no environment.
    """
    for node in ast.walk(ast.parse(Path(str(gymnasium.envs.__file__)).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "register":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if isinstance(given.get("id"), ast.Constant) and ast.literal_eval(given["id"]) == name:
                try:
                    written = {part: ast.literal_eval(given[part]) for part in REGISTERED if part in given}
                except ValueError:  # a function that says where the environment went
                    return None
                return {"entry_point": None, "max_episode_steps": None, "kwargs": {}} | written
    return None
