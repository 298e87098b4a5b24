"""``surefoot resume``: go on with a run that was stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from surefoot.commands import align, train
from surefoot.commands.options import Output, given, parse
from surefoot.errors import UsageError
from surefoot.runs.directory import CONFIGURATION_FILE, read_json
from surefoot.runs.lock import LOCK_FILE


@dataclass(frozen=True)
class Resume:
    """Go on with a run of `surefoot train` or `surefoot align` that was stopped, from its last whole checkpoint to its end."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    total_steps: int | None = None
    """More environment steps than the run was planned for; runs of `surefoot train`."""
    epochs: int | None = None
    """More passes over the data than the run was planned for; runs of `surefoot align`."""
    learning_rate: float | None = None
    """Learning rate from there on, in place of the run's; its schedule goes on with it. By default the run's."""
    exact: bool = False
    """Pass over checkpoints that are not exact: the run then ends bit for bit as if it had never been stopped."""
    env: str | None = None
    """Where the environment is found, module:callable, that the run was given as a callable; by default the one that its configuration
    names. One that is another task is refused."""
    wrapper: tuple[str, ...] | None = None
    """Where the wrappers are found, package.module:function each, that the run was trained in; by default those that its configuration
    names."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str], *, started: float) -> int:
    """Resume; ``started`` is when the process began."""
    chosen: Resume = parse(Resume, arguments, program="surefoot resume")
    if (chosen.run / LOCK_FILE).exists() and not (chosen.run / CONFIGURATION_FILE).exists():
        raise UsageError(f"{chosen.run} was stopped while it began, and holds nothing to go on from; begin it again")
    settings = read_json(chosen.run / CONFIGURATION_FILE)
    how: dict[str, Any] = {
        "learning_rate": chosen.learning_rate, "exact": chosen.exact, "quiet": chosen.output.quiet, "started": started,
    }  # fmt: skip
    if "algorithm" in settings:
        if chosen.epochs is not None:
            raise UsageError(
                f"--epochs does nothing for {chosen.run}, a run of `surefoot train`; --total-steps makes it longer"
            )
        from surefoot.control.training import resume

        result = resume(chosen.run, environment=chosen.env, wrapper=chosen.wrapper, total_steps=chosen.total_steps, **how)
        status = train.report(result)
    elif "method" in settings:
        if useless := given(("--env", "--wrapper"), arguments):
            raise UsageError(f"{useless} does nothing for {chosen.run}, a run of `surefoot align`, which has no environment")
        if chosen.total_steps is not None:
            raise UsageError(
                f"--total-steps does nothing for {chosen.run}, a run of `surefoot align`; --epochs makes it longer"
            )
        from surefoot.alignment.durability.resuming import resume_alignment

        result = resume_alignment(chosen.run, epochs=chosen.epochs, **how)
        status = align.report(result)
    else:
        raise UsageError(
            f"{chosen.run / CONFIGURATION_FILE} is not a run's; give the folder that `surefoot train` or `align` printed"
        )
    chosen.output.give(result)
    return status
