"""Launchers of several processes: torchrun, Slurm, MPI. A run is one process; several would train the same thing into one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from surefoot.errors import UsageError


class Launcher(NamedTuple):
    """Who starts several processes, and the variables with which it tells each how many there are and which one it is."""

    name: str
    size: str
    rank: str


LAUNCHERS = (
    Launcher("torchrun, accelerate or deepspeed", "WORLD_SIZE", "RANK"),
    Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    Launcher("MPICH or Intel MPI", "PMI_SIZE", "PMI_RANK"),
    Launcher("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    Launcher("MVAPICH", "MVP_COMM_WORLD_SIZE", "MVP_COMM_WORLD_RANK"),
    Launcher("Horovod", "HOROVOD_SIZE", "HOROVOD_RANK"),
    Launcher("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    Launcher("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
)
SLURM = Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
"""The tasks of a step. SLURM_NTASKS is of the whole job, and stands in shells and batch scripts that are a single process."""


def refuse_several_processes(variables: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError where a launcher's variables say that this is one of several processes.

    Args:
        variables: the process's environment.
    """
    for launcher in (*LAUNCHERS, _slurm(variables)):
        size, rank = _number(variables, launcher.size), _number(variables, launcher.rank)
        if max(size, rank + 1) > 1:
            named = launcher.size if size > 1 else launcher.rank
            raise UsageError(
                f"{named} is {variables[named]}: this is one of several processes of {launcher.name}, and each would train the"
                f" whole run; start a single process, or unset {launcher.size} and {launcher.rank} if each has a run and an --out"
                " of its own"
            )


def _slurm(variables: Mapping[str, str]) -> Launcher:
    """Slurm's variables for this process: a step's, or where that says nothing the job's, unless it is a batch script's own."""
    if SLURM.size in variables or SLURM.rank not in variables or variables.get("ENVIRONMENT") == "BATCH":
        return SLURM
    return SLURM._replace(size="SLURM_NTASKS")


def _number(variables: Mapping[str, str], name: str) -> int:
    """A variable as a number; 0 where it is none."""
    value = variables.get(name, "")
    return int(value) if value.isdecimal() else 0
