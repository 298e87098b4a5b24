"""Metrics that go on where a checkpoint left them: no line is lost, none doubled."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import RunError, UsageError
from surefoot.runs.metrics import BEGINNING, MetricsWriter, read_metrics
from surefoot.runs.statistics import readable


def curve(folder) -> list[tuple[int, float]]:
    """Steps and values as TensorBoard reads them, from all files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points = []
    for file in sorted((folder / "tensorboard").iterdir()):
        events = [e for e in EventFileLoader(str(file)).Load() if e.HasField("summary")]
        points += [(e.step, e.summary.value[0].tensor.float_val[0]) for e in events]
    return points


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 10), processes=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), max_size=4))
def test_cut_back_and_gone_on_with_is_as_if_never_stopped(tmp_path_factory, total, processes):
    """Each process writes some lines and takes the position after some of them; the last one writes to the end."""
    folder = tmp_path_factory.mktemp("run")
    position, kept = None, 0
    for count, keep_after in [*processes, (total, 0)]:
        with MetricsWriter(folder, resume=position) as writer:
            assert writer.notices == []
            first = kept
            position = BEGINNING if position is None else position
            for step in range(first, min(first + count, total)):
                writer.write(step, {"a": float(step)})
                if step - first + 1 == keep_after:
                    position, kept = writer.position(), step + 1
    assert [line["a"] for line in read_metrics(folder / "metrics.jsonl")] == [float(i) for i in range(total)]
    assert curve(folder) == [(i, float(i)) for i in range(total)]
    assert len(list((folder / "tensorboard").iterdir())) == 1


def run(folder, lines, **options):
    with MetricsWriter(folder, **options) as writer:
        for line in lines:
            writer.write(line, {"a": float(line)})
        return writer.position(), writer.notices


def values(folder):
    return [line["a"] for line in read_metrics(folder / "metrics.jsonl")]


def test_position_is_lengths_in_bytes(tmp_path):
    position, _ = run(tmp_path, (1, 2))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert position == {
        "metrics": (tmp_path / "metrics.jsonl").stat().st_size,
        "tensorboard": {"file": events.name, "bytes": events.stat().st_size},
    }
    assert run(tmp_path, (), tensorboard=False)[0]["tensorboard"] is None


def test_curves_outlast_processes_that_write_none(tmp_path):
    position, _ = run(tmp_path, (1, 2))
    run(tmp_path, (8, 9), resume=position)  # of a future that is given up
    for step in (3, 4):
        position, _ = run(tmp_path, (step,), resume=position, tensorboard=False)
    run(tmp_path, (5,), resume=position)
    assert values(tmp_path) == [1, 2, 3, 4, 5]
    assert curve(tmp_path) == [(1, 1.0), (2, 2.0), (5, 5.0)]


def test_what_was_torn_after_the_position_is_gone(tmp_path):
    position, _ = run(tmp_path, (1, 2))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"a": 3.0}\n{"a": 4.')
    _, notices = run(tmp_path, (3,), resume=position)
    assert values(tmp_path) == [1, 2, 3]
    assert notices == []


@pytest.mark.parametrize("cut", [1, 7, 11, 22])
def test_lines_that_are_missing_are_said_and_no_torn_one_stays(cut, tmp_path):
    """Eleven bytes a line; the last `cut` bytes are lost."""
    position, _ = run(tmp_path, (1, 2, 3))
    path = tmp_path / "metrics.jsonl"
    assert path.stat().st_size == 33
    path.write_bytes(path.read_bytes()[: 33 - cut])
    _, (notice,) = run(tmp_path, (4,), resume=position)
    assert f"has {33 - cut} bytes where it had 33 when the checkpoint was written: lines are missing from it" in notice
    assert values(tmp_path) == [*range(1, 1 + (33 - cut) // 11), 4]


def test_a_file_that_is_gone_is_said(tmp_path):
    position, _ = run(tmp_path, (1,))
    (tmp_path / "metrics.jsonl").unlink()
    for file in (tmp_path / "tensorboard").iterdir():
        file.unlink()
    _, notices = run(tmp_path, (2,), resume=position)
    assert notices == [f"{tmp_path / 'metrics.jsonl'} is gone; it begins anew"]
    assert values(tmp_path) == [2]
    assert curve(tmp_path) == [(2, 2.0)]


def test_an_altered_file_is_not_cut_within_a_line(tmp_path):
    position, _ = run(tmp_path, (1, 2))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" + path.read_bytes())
    _, notices = run(tmp_path, (3,), resume=position)
    assert len(notices) == 1
    assert path.read_bytes() == b'x{"a": 1.0}\n{"a": 3.0}\n'


def test_the_beginning_is_nothing(tmp_path):
    run(tmp_path, (1, 2))
    (tmp_path / "tensorboard" / "events.out.tfevents.1.other").write_text("somebody else's")
    run(tmp_path, (5,), resume=BEGINNING)
    assert values(tmp_path) == [5]
    (tmp_path / "tensorboard" / "events.out.tfevents.1.other").unlink()
    assert curve(tmp_path) == [(5, 5.0)]


STRANGE = [
    {}, {"metrics": -1, "tensorboard": None}, {"metrics": "3", "tensorboard": None}, {"metrics": 1.5, "tensorboard": None},
    {"metrics": 0, "tensorboard": []}, {"metrics": 0, "tensorboard": {"file": "events.out.tfevents.x.surefoot"}},
    *({"metrics": 0, "tensorboard": {"file": name, "bytes": 0}} for name in (
        "../victim", "events.out.tfevents.1/../../../victim.surefoot", "/etc/events.out.tfevents.1.surefoot", "victim", "", 3,
        "events.out.tfevents.\0.surefoot",
    )),
    {"metrics": 0, "tensorboard": {"file": "events.out.tfevents.1.surefoot", "bytes": -3}},
]  # fmt: skip


@pytest.mark.parametrize("position", STRANGE, ids=str)
def test_a_strangers_position_leads_nowhere(position, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    run(folder, (1,))
    with pytest.raises(UsageError, match="which names no place in them"):
        MetricsWriter(folder, resume=position)
    assert victim.read_text() == "precious"
    assert values(folder) == [1]


def test_a_full_disk_is_a_sentence_and_no_torn_line_stays(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"a": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surefoot.runs.tensorboard.EventFile._append", full)
    with pytest.raises(RunError, match=r"metrics.jsonl: No space left on device; the lines before are kept"):
        writer.write(2, {"a": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before

    def failing(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(RunError, match="Input/output error"):
        writer.position()


def test_lines_are_json_whatever_the_numbers(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"a": float("inf"), "b": -0.0, "c": 3})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"a": None, "b": 0.0, "c": 3}


def test_numbers_are_readable_whatever_their_size():
    given = [500.0, -78.84, 0.0, 0.84, 3e-6, -2.5e-7, 1.25e9]
    assert [readable(x) for x in given] == ["500.0", "-78.8", "0.0", "0.84", "3e-06", "-2.5e-07", "1250000000.0"]
    assert [readable(x, 2) for x in (500.0, 0.56, 0.012)] == ["500.00", "0.56", "0.012"]
