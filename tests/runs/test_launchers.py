"""Several processes of a launcher are refused; one process is not, whatever started it."""

from __future__ import annotations

import pytest

from surefoot.errors import UsageError
from surefoot.runs.launchers import LAUNCHERS, refuse_several_processes

SEVERAL = [
    *({launcher.size: "2", launcher.rank: rank} for launcher in LAUNCHERS for rank in "01"),
    {"WORLD_SIZE": "2"}, {"RANK": "3"}, {"OMPI_COMM_WORLD_SIZE": "16"},
    {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, {"SLURM_PROCID": "1"},
    # As `srun -n 2` sets them, within a batch script too.
    {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "ENVIRONMENT": "BATCH"},
    {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
]  # fmt: skip
SINGLE = [
    {}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"WORLD_SIZE": "many"}, {"PMI_SIZE": ""},
    # `salloc -n 8`: a shell on the login node, and one that is a step of the allocation.
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"},
    {"SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    # `sbatch -n 8`: the script itself, and `srun -n 1` within it.
    {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"},
    {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"},
]  # fmt: skip


@pytest.mark.parametrize("variables", SEVERAL, ids=str)
def test_one_of_several_processes_is_refused(variables):
    with pytest.raises(UsageError, match="this is one of several processes") as caught:
        refuse_several_processes(variables)
    assert any(f"{name} is {value}:" in str(caught.value) for name, value in variables.items())


@pytest.mark.parametrize("variables", SINGLE, ids=str)
def test_a_single_process_is_not(variables):
    refuse_several_processes(variables)


def test_training_and_resuming_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    from surefoot.alignment.configuration import configure as align_configuration
    from surefoot.alignment.durability.resuming import resume_alignment
    from surefoot.alignment.training import align
    from surefoot.control.training import resume, train
    from tests.control.helpers import configure

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    for begin in (
        lambda: train(configure("ppo")),
        lambda: resume("run"),
        lambda: align(align_configuration("sft", model="model", data="data.jsonl")),
        lambda: resume_alignment("run"),
    ):
        with pytest.raises(UsageError, match="WORLD_SIZE is 2: this is one of several processes of torchrun"):
            begin()
    assert list(tmp_path.iterdir()) == []
