"""``surefoot resume``: go on with a run that was stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from surefoot.commands import align, train
from surefoot.commands.options import Output, parse
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
    exact: bool = False
    """Pass over checkpoints that are not exact: the run then ends bit for bit as if it had never been stopped."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str], *, started: float) -> int:
    """Resume; ``started`` is when the process began."""
    chosen: Resume = parse(Resume, arguments, program="surefoot resume")
    if (chosen.run / LOCK_FILE).exists() and not (chosen.run / CONFIGURATION_FILE).exists():
        raise UsageError(f"{chosen.run} was stopped while it began, and holds nothing to go on from; begin it again")
    settings, quiet = read_json(chosen.run / CONFIGURATION_FILE), chosen.output.quiet
    if "algorithm" in settings:
        if chosen.epochs is not None:
            raise UsageError(
                f"--epochs does nothing for {chosen.run}, a run of `surefoot train`; --total-steps makes it longer"
            )
        from surefoot.control.training import resume

        result = resume(chosen.run, total_steps=chosen.total_steps, exact=chosen.exact, quiet=quiet, started=started)
        status = train.report(result)
    elif "method" in settings:
        if chosen.total_steps is not None:
            raise UsageError(
                f"--total-steps does nothing for {chosen.run}, a run of `surefoot align`; --epochs makes it longer"
            )
        from surefoot.alignment.durability.resuming import resume_alignment

        result = resume_alignment(chosen.run, epochs=chosen.epochs, exact=chosen.exact, quiet=quiet, started=started)
        status = align.report(result)
    else:
        raise UsageError(
            f"{chosen.run / CONFIGURATION_FILE} is not a run's; give the folder that `surefoot train` or `align` printed"
        )
    chosen.output.give(result)
    return status
