"""What is shown of a run that goes on."""

from __future__ import annotations

from surefoot.errors import Caution
from surefoot.runs.progress import Progress


def test_time_left_counts_what_this_process_did(capsys, monkeypatch):
    """90 of 100 were done before; 5 more took 10 seconds, so that 5 take as long."""
    now = [100.0]
    monkeypatch.setattr("surefoot.runs.progress.time.monotonic", lambda: now[0])
    with Progress("run", 100, done=90) as progress:
        now[0] += 10
        progress.update(95, rate=0.5, reached="something")
    assert "95/100 steps" in (line := capsys.readouterr().err)
    assert "0:10 left" in line


def test_quiet_leaves_out_progress_and_no_warning(capsys):
    with Progress("run", 100, quiet=True) as progress:
        progress.say("backend gymnasium")
        progress.update(100, rate=1.0, reached="something")
        progress.say(Caution("4 is damaged and is passed over"))
    assert capsys.readouterr().err == "4 is damaged and is passed over\n"
