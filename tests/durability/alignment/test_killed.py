"""Processes of ``surefoot align`` that are killed, or asked to stop, in the middle of their work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from surefoot.alignment.learning import offline
from surefoot.alignment.rlhf import online
from surefoot.alignment.training import align
from surefoot.runs.checkpoints import Checkpoints
from tests.durability.alignment.runs import assert_the_same, material, resume, settings

torch.set_num_threads(1)
LONG = {
    "dpo": {"training__epochs": 40, "training__held_out": 0.2, "adapter__lora_rank": 2},
    "ppo": {"training__epochs": 12, "objective__critic": "shared"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (offline, online):
        monkeypatch.setattr(module, "matrix_rate", lambda *arguments, **options: 1e9)
    return material(tmp_path)


def options_of(configuration):
    """As the command line has them."""
    options = []
    for part in configuration.parts().values():
        for name, value in vars(part).items():
            if value != getattr(type(part), name, None) and not isinstance(value, bool):
                options += [f"--{name.replace('_', '-')}", "none" if value is None else str(value)]
    return options


@contextmanager
def begun(method, configuration, *, until):
    """A process that trains, once it has a checkpoint at ``until`` or later."""
    command = [sys.executable, "-m", "surefoot", "align", method, *options_of(configuration), "--no-tensorboard"]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 300
        while max(Checkpoints(Path(configuration.training.out)).steps(), default=0) < until:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_killed_at_any_moment_it_goes_on_from_its_last_checkpoint(method, folder, tmp_path):
    align(settings(method, folder, tmp_path / "whole", **LONG[method]), quiet=True)
    with begun(method, settings(method, folder, tmp_path / "killed", **LONG[method]), until=4) as process:
        time.sleep(random.random() * 0.2)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    resume(tmp_path / "killed")
    assert_the_same(tmp_path / "whole", tmp_path / "killed", cards=False)


def test_asked_to_stop_it_says_how_to_go_on(folder, tmp_path):
    long = {"training__epochs": 100, "training__checkpoint_every": "20"}
    align(settings("sft", folder, tmp_path / "whole", **long), quiet=True)
    with begun("sft", settings("sft", folder, tmp_path / "stopped", **long), until=20) as process:
        process.terminate()
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 1
    assert said.splitlines()[-1] == f"to go on: surefoot resume {tmp_path / 'stopped'}"
    resume(tmp_path / "stopped")
    assert_the_same(tmp_path / "whole", tmp_path / "stopped", cards=False)
