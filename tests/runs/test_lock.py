"""One process per run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from surefoot.errors import UsageError
from surefoot.runs.lock import RunLock

HOLDS = """
import sys, time
from pathlib import Path
from surefoot.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_refused_until_the_first_is_gone(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"is in use by process {holder.pid}; wait for it, or stop it first"):
        RunLock(tmp_path)
    holder.kill()  # without a chance to clean up
    holder.wait()
    with RunLock(tmp_path):
        pass


def test_released_means_free(tmp_path):
    first = RunLock(tmp_path)
    with pytest.raises(UsageError, match=f"process {os.getpid()}"):
        RunLock(tmp_path)
    first.release()
    first.release()
    RunLock(tmp_path).release()


def test_a_shorter_number_leaves_nothing_of_the_longer_one(tmp_path):
    (tmp_path / ".lock").write_text("123456789012\n")
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"the folder .*missing cannot be written: No such file or directory"):
        RunLock(tmp_path / "missing")


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def unsupported(descriptor):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("surefoot.runs.lock._lock", unsupported)
    with RunLock(tmp_path):
        pass
