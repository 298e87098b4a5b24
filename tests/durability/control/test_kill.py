"""kill −9 at random moments, signals, full and read-only places, two processes: as a user's machine does it."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surefoot.runs.checkpoints import Checkpoints
from tests.control.helpers import configure
from tests.durability.control.runs import contents, differences, stop_after

TINY = (
    "--env CartPole-v1 --num-envs 4 --rollout-length 16 --minibatch-size 16 --epochs 1 --hidden-sizes 8 --total-steps 40000"
    " --keep-checkpoints 3"
)
KINDS = {
    "jax": f"ppo {TINY} --backend jax --checkpoint-every 640",
    "gymnasium": f"ppo {TINY} --backend gymnasium --checkpoint-every 640 --restart-every 1280",
}


def surefoot(command: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "surefoot", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(command: str, **options) -> subprocess.CompletedProcess:
    process = surefoot(command, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_killed_twice_at_random_it_is_still_the_run(kind, tmp_path):
    assert finished(f"train {KINDS[kind]} --out {tmp_path / 'whole'} --quiet").returncode == 0
    run = tmp_path / "run"
    rng = random.Random(os.getpid())
    process = surefoot(f"train {KINDS[kind]} --out {run} --quiet")
    for _ in range(2):
        goal = min(lines(run) + rng.randrange(150), 600)
        if wait_for(lambda goal=goal: lines(run) > goal, process):
            time.sleep(rng.random() * 0.05)
            process.kill()
        process.communicate()
        process = surefoot(f"resume {run} --exact --quiet")
    _, errors = process.communicate(timeout=300)
    if "no exact checkpoint" in errors:  # killed between its first checkpoint and the first place on the grid
        assert process.returncode == 2
        assert not any(Checkpoints(run).read(step).exact for step in Checkpoints(run).steps())
        return
    assert process.returncode == 0 or "is finished" in errors, errors
    summary = json.loads((run / "summary.json").read_text())
    assert not summary["interrupted"]
    assert all(entry["exact"] for entry in summary["resumed"])
    assert differences(contents(tmp_path / "whole"), contents(run)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signals_last_line_says_how_to_go_on(number, tmp_path):
    run = tmp_path / "a run"
    command = [
        sys.executable,
        "-m",
        "surefoot",
        "train",
        *KINDS["jax"].replace("40000", "100000000").split(),
        "--out",
        str(run),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_for(lambda: lines(run) > 20, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    (step,) = Checkpoints(run).steps()[-1:]
    assert last == f"to go on from step {step:,} (exact): surefoot resume '{run}'"
    assert lines(run) == step // 64
    assert not [p for p in run.rglob(".*") if p.name != ".lock"], "nothing half-written is left"


@pytest.mark.parametrize(
    ("grid", "words"), [(640, "; with --exact from step 640, as if it had never been stopped"), (10**6, "")]
)
def test_a_signals_last_line_offers_an_exact_checkpoint_where_there_is_one(grid, words, tmp_path, capsys, monkeypatch):
    """SIGTERM in the twelfth report of 64 steps."""
    from surefoot.cli import main

    stop_after(monkeypatch, 12)
    run = tmp_path / "run"
    assert main(f"train ppo {TINY} --backend gymnasium --checkpoint-every 640 --restart-every {grid} --out {run}".split()) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"to go on from step 768 (inexact: its environments begin afresh{words}): surefoot resume {run}"


def test_a_second_process_is_refused(tmp_path):
    run = tmp_path / "run"
    process = surefoot(f"train {KINDS['jax'].replace('40000', '100000000')} --out {run} --quiet")
    assert wait_for(lambda: len(Checkpoints(run).steps()) > 0, process)
    second = finished(f"resume {run} --quiet")
    assert second.returncode == 2
    assert f"{run} is in use by process {process.pid}; wait for it, or stop it first" in second.stderr
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_disk_that_fills_up_is_a_sentence_and_the_last_checkpoint_is_whole(tmp_path):
    """From some moment on no file may grow beyond 2,000 bytes; then the disk is free again."""
    run = tmp_path / "run"
    process = surefoot(f"train {KINDS['jax'].replace('40000', '100000000')} --out {run} --quiet")
    assert wait_for(lambda: len(Checkpoints(run).steps()) > 1, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("surefoot: ") == 1
    assert re.search(
        r"cannot write .*(metrics.jsonl: File too large; the lines before|File too large; the checkpoints before)", errors
    )
    assert "Traceback" not in errors
    before = Checkpoints(run).latest()[0].step
    process = surefoot(f"resume {run} --quiet")
    assert wait_for(lambda: Checkpoints(run).steps()[-1] > before, process)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("kept", ["", "--keep-checkpoints 3 --checkpoint-every 640"], ids=["no checkpoints", "checkpoints"])
def test_a_folder_that_is_deleted_under_a_run_ends_it(kept, tmp_path):
    """Else it would go on to its end, and keep nothing of what it did."""
    run = tmp_path / "run"
    endless = TINY.replace("40000", "100000000").replace("--keep-checkpoints 3", kept)
    process = surefoot(f"train ppo {endless} --backend jax --out {run} --quiet")
    assert wait_for(lambda: lines(run) > 20, process)
    shutil.rmtree(run, ignore_errors=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{run / 'metrics.jsonl'} is gone" in errors
    assert "Traceback" not in errors
    assert not (run / "checkpoints").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write here")
def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path):
    whole = tmp_path / "whole"
    assert finished(f"train {KINDS['jax'].replace('40000', '1280')} --out {whole} --quiet").returncode == 0
    public = Path("/tmp") / f"read-only-{os.getpid()}"
    shutil.copytree(whole, public)
    try:
        nobody = {
            "user": 65534,
            "group": 65534,
            "extra_groups": [],
            "env": {**os.environ, "HOME": "/proc", "XDG_CACHE_HOME": "/proc/x"},
        }
        try:
            probe = finished("--version", **nobody)
        except PermissionError:
            pytest.skip("nobody may not run this Python")
        if probe.returncode != 0:
            pytest.skip("nobody may not read this package")
        done = finished(f"resume {public} --total-steps 2560 --quiet", **nobody)
        assert done.returncode == 2
        assert "Permission denied" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        shutil.rmtree(public)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("")
    done = finished(
        f"train {KINDS['jax'].replace('40000', '1280')} --out {tmp_path / 'run'} --quiet",
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("resume nowhere", "nowhere/config.json does not exist"),
        ("resume", "Folder of the run"),
        ("resume other", "is not a run's"),
        ("resume broken", "cannot be read as JSON"),
        ("resume deep", "cannot be read as JSON"),
        (
            "resume control --epochs 3",
            "--epochs does nothing for control, a run of `surefoot train`; --total-steps makes it longer",
        ),
        (
            "resume language --total-steps 3",
            "--total-steps does nothing for language, a run of `surefoot align`; --epochs makes it longer",
        ),
        ("resume control", "control keeps no checkpoints to go on from; train with --checkpoint-every"),
        ("resume none", "env is missing, where a printable text is right"),
        ("train ppo --env CartPole-v1 --checkpoint-every often", "--checkpoint-every must be a number of steps"),
        (
            "train ppo --env CartPole-v1 --keep-checkpoints 3",
            "--keep-checkpoints would do nothing: there is no --checkpoint-every",
        ),
        (
            "train ppo --env CartPole-v1 --checkpoint-every 5 --keep-checkpoints 0",
            "--keep-checkpoints must be at least 1, but is 0",
        ),
        ("train ppo --env CartPole-v1 --restart-every -1", "--restart-every must be at least 0, but is -1"),
        ("train a2c --from-data x --restart-every 5", "--restart-every would do nothing"),
        ("train ppo --env CartPole-v1 --on-nonfinite ignore", "ignore"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    from surefoot.cli import main

    monkeypatch.chdir(tmp_path)
    files = {
        "other": "{}", "broken": "{", "deep": "[" * 100_000, "control": json.dumps(configure().as_dict()),
        "language": '{"method": "sft"}', "none": '{"algorithm": "ppo"}',
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert main(arguments.split()) == 2
    output = capsys.readouterr()
    assert words in output.err.replace("\n", " ")
    assert output.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)
