"""Disks that are full from the start, or fill up in the middle of alignment: a sentence, and what was whole before is whole."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import pytest
import torch

from surefoot.alignment.learning import offline
from surefoot.alignment.rlhf import online
from surefoot.alignment.training import align
from surefoot.cli import main
from surefoot.runs.checkpoints import Checkpoints
from surefoot.runs.metrics import MetricsWriter, read_metrics
from tests.durability.alignment.runs import assert_the_same, material, resume, settings
from tests.durability.alignment.test_killed import options_of

torch.set_num_threads(1)
LINE = 4
"""Of the metrics, behind which there is no room left."""
SMALL = {
    "sft": {},
    "dpo": {"adapter__lora_rank": 2},
    "ppo": {"objective__critic": "shared", "objective__samples_every": 1},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (offline, online):
        monkeypatch.setattr(module, "matrix_rate", lambda *arguments, **options: 1e9)
    return material(tmp_path)


@contextmanager
def full_disk():
    """Gives what makes the disk full: from then on no file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failed(capsys, method, configuration) -> str:
    """The one sentence with which a run ends."""
    capsys.readouterr()
    assert main(["align", method, *options_of(configuration)]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("surefoot: ")]
    assert "too large" in sentence.lower()
    assert said.rstrip().endswith(sentence)
    return sentence


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize(("size", "checkpoints"), [(600, True), (4000, True), (24000, True), (12000, False)])
def test_a_disk_that_is_full_from_the_start(method, size, checkpoints, folder, tmp_path, capsys):
    """The larger the size, the later a file is met that does not fit: settings, metrics, the start, a checkpoint, the model."""
    run = tmp_path / "run"
    changes = SMALL[method] | {"training__tensorboard": True} | ({} if checkpoints else {"training__checkpoint_every": None})
    with full_disk() as fill:
        fill(size)
        sentence = failed(capsys, method, settings(method, folder, run, **changes))
    assert "cannot write" in sentence
    assert not list(run.rglob("*.writing")), "nothing half-written is left"
    assert not list(run.rglob(".model*"))
    for step in Checkpoints(run).steps():
        Checkpoints(run).read(step)


@pytest.mark.parametrize("method", SMALL)
def test_a_disk_that_fills_up_in_the_middle(method, folder, tmp_path, monkeypatch, capsys):
    """Then there is room again, and the run goes on as if nothing had been."""
    changes = SMALL[method] | {"training__tensorboard": True}
    align(settings(method, folder, tmp_path / "whole", **changes), quiet=True)
    run, write, written = tmp_path / "run", MetricsWriter.write, [0]

    with full_disk() as fill:

        def write_and_fill(self, *arguments):
            write(self, *arguments)
            written[0] += 1
            if written[0] == LINE:
                fill((run / "metrics.jsonl").stat().st_size)

        with monkeypatch.context() as patch:
            patch.setattr(MetricsWriter, "write", write_and_fill)
            failed(capsys, method, settings(method, folder, run, **changes))
    assert len(read_metrics(run / "metrics.jsonl")) == LINE, "whole lines only"
    before = Checkpoints(run).latest()[0].step
    assert before > 0
    resume(run)
    assert_the_same(tmp_path / "whole", run, cards=False)
