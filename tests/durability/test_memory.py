"""What long runs leave behind in memory: nothing per report, per checkpoint, or per restart of the environments.

benchmarks/memory.py measures the same for longer.
"""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch

from surefoot.alignment.learning import offline
from surefoot.alignment.rlhf import online
from surefoot.alignment.training import align
from surefoot.control.compilation import give_back_memory
from surefoot.control.environments.select import select_environments
from surefoot.control.iterations.split import SplitIteration
from surefoot.control.training import train
from surefoot.runs.metrics import MetricsWriter
from tests.control.helpers import configure
from tests.durability.alignment.runs import material, settings

torch.set_num_threads(1)
MEGABYTES = 1.5
"""That a run may grow by in its second half, of at least 40 reports: 37 kB a report."""


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def samples(monkeypatch):
    """Resident memory at every report."""
    taken, write = [], MetricsWriter.write

    def write_and_measure(self, *arguments):
        write(self, *arguments)
        give_back_memory()  # what other tests let go of would hide what is kept here
        taken.append(resident_megabytes())

    monkeypatch.setattr(MetricsWriter, "write", write_and_measure)
    return taken


def grown(samples: list[float]) -> float:
    assert len(samples) >= 80
    return samples[-1] - samples[len(samples) // 2]


CONTROL = {
    "pure JAX": {"backend": "jax"},
    "Gymnasium, begun afresh at every fourth report": {"backend": "gymnasium-sync", "restart_every": 256},
}


@pytest.mark.parametrize("kind", CONTROL)
def test_control_runs_do_not_grow(kind, samples, tmp_path):
    train(
        configure(**CONTROL[kind], out=str(tmp_path / "run"), total_steps=64 * 160, checkpoint_every="256", tensorboard=True),
        quiet=True,
    )
    assert grown(samples) < MEGABYTES


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_alignment_runs_do_not_grow(method, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (offline, online):
        monkeypatch.setattr(module, "matrix_rate", lambda *arguments, **options: 1e9)
    folder = material(tmp_path)
    changes = {"objective__samples_every": 5} if method == "ppo" else {}
    align(
        settings(method, folder, tmp_path / "run", training__epochs=28, training__checkpoint_every="10", **changes), quiet=True
    )
    assert grown(samples) < MEGABYTES


def test_what_is_kept_would_be_seen(samples, tmp_path, monkeypatch):
    """The tests above can fail: a report that leaves 60 kB behind."""
    kept, write = [], MetricsWriter.write
    monkeypatch.setattr(
        MetricsWriter, "write", lambda self, *arguments: (write(self, *arguments), kept.append(os.urandom(60_000)))
    )
    train(configure(backend="jax", out=str(tmp_path / "run"), total_steps=64 * 160, tensorboard=False), quiet=True)
    assert grown(samples) > MEGABYTES


def test_restarts_let_go_of_pools_and_their_threads():
    pytest.importorskip("envpool")
    configuration = configure(backend="envpool", num_envs=4, restart_every=64, total_steps=640)
    make = lambda number: select_environments("CartPole-v1", backend="envpool", num_envs=4, seed=0, began=number)  # noqa: E731
    first = make(0).environments
    alive = weakref.WeakSet([first.environments])
    iteration = SplitIteration(configuration, first, seed=0)
    del first
    threads = []
    for number in range(1, 4):
        iteration.run(number - 1)
        environments = make(number).environments
        alive.add(environments.environments)
        iteration.restart(number, lambda environments=environments: environments)
        del environments
        gc.collect()
        threads.append(len(os.listdir("/proc/self/task")))
    iteration.close()
    assert len(alive) == 1
    assert threads[-1] == threads[0]
