"""Checkpoints are whole or absent, and believed only if every byte is what was written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from surefoot.errors import RunError, UsageError
from surefoot.runs.checkpoints import ARRAYS_FILE, MANIFEST_FILE, STATE_FILE, Checkpoint, Checkpoints, Damaged

FILES = (ARRAYS_FILE, STATE_FILE, MANIFEST_FILE)


def checkpoint(step: int = 5, *, exact: bool = True, value: float = 1.0) -> Checkpoint:
    arrays = {"a/b": np.full((2, 3), value, np.float32), "key": np.arange(2, dtype=np.uint32), "flag": np.bool_(True)}
    return Checkpoint(step, exact, arrays, {"iteration": step, "text": "π", "none": None})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    equal = a.arrays.keys() == b.arrays.keys() and all(
        np.asarray(a.arrays[k]).dtype == np.asarray(b.arrays[k]).dtype
        and np.asarray(a.arrays[k]).tobytes() == np.asarray(b.arrays[k]).tobytes()
        and np.shape(a.arrays[k]) == np.shape(b.arrays[k])
        for k in a.arrays
    )
    return equal and (a.step, a.exact, dict(a.state)) == (b.step, b.exact, dict(b.state))


DTYPES = st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint8, np.bool_, np.float16])
ARRAYS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda name: name != "__metadata__"),
    DTYPES.flatmap(lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))),
    max_size=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda x: st.lists(x), max_leaves=5
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays=ARRAYS, state=st.dictionaries(st.text(), JSON, max_size=4), step=st.integers(0, 10**17), exact=st.booleans())
def test_what_is_read_is_what_was_written(tmp_path, arrays, state, step, exact):
    written = Checkpoint(step, exact, arrays, state)
    place = Checkpoints(tmp_path).write(written)
    assert place == tmp_path / "checkpoints" / str(step)
    assert same(Checkpoints(tmp_path).read(step), written)
    shutil.rmtree(tmp_path / "checkpoints")


def test_the_order_in_memory_does_not_matter(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    Checkpoints(tmp_path).write(Checkpoint(1, True, {"columns": np.asfortranarray(array), "view": array.T}, {}))
    read = Checkpoints(tmp_path).read(1).arrays
    np.testing.assert_array_equal(read["columns"], array)
    np.testing.assert_array_equal(read["view"], array.T)


class Kept:
    """What must be kept, by a plain reading of the rule: the last ones, the best, the last exact one."""

    def __init__(self, keep):
        self.keep, self.all = keep, {}

    def write(self, step, exact, best):
        self.all[step] = (exact, best)
        steps = sorted(self.all)
        wanted = set(steps[-self.keep :])
        wanted |= set([s for s in steps if self.all[s][1]][-1:]) | set([s for s in steps if self.all[s][0]][-1:])
        self.all = {s: self.all[s] for s in steps if s in wanted}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(1, 3), marks=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_the_last_ones_the_best_and_the_last_exact_one_are_kept(tmp_path, keep, marks):
    checkpoints, model = Checkpoints(tmp_path, keep=keep), Kept(keep)
    for i, (exact, best) in enumerate(marks):
        checkpoints.write(Checkpoint(i * 7, exact, {}, {}), best=best)
        model.write(i * 7, exact, best)
        assert checkpoints.steps() == sorted(model.all)
    shutil.rmtree(tmp_path / "checkpoints")


def test_the_latest_is_the_last_and_can_be_asked_to_be_exact(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    with pytest.raises(UsageError, match=r"has no checkpoint to go on from; train with --checkpoint-every"):
        checkpoints.latest()
    for step, exact in ((9, True), (10, False), (100, False)):
        checkpoints.write(checkpoint(step, exact=exact))
    found, said = checkpoints.latest()
    assert (found.step, said) == (100, [])
    found, said = checkpoints.latest(exact=True)
    assert found.step == 9
    assert [sentence[:27] for sentence in said] == ["the checkpoint at step 100 ", "the checkpoint at step 10 i"]


def damages(content: bytes, rng: np.random.Generator):
    """A byte changed at every sampled place, pieces left out, doubled, zeroed; too short, too long, empty."""
    for at in sorted({0, len(content) - 1, *rng.integers(0, len(content), 60).tolist()}):
        yield content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :]
    for _ in range(20):
        a, b = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        if a < b:
            yield content[:a] + content[b:]
            yield content[:b] + content[a:]
            if any(content[a:b]):
                yield content[:a] + bytes(b - a) + content[b:]
    yield b""
    yield content[:-1]
    yield content + b"\0"
    yield content * 2


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_detected_and_the_one_before_is_used(name, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(checkpoint(5, value=1.0))
    place = checkpoints.write(checkpoint(6, value=2.0))
    content = (place / name).read_bytes()
    for damaged in damages(content, np.random.default_rng(0)):
        (place / name).write_bytes(damaged)
        if name == MANIFEST_FILE and means_the_same(content, damaged):
            continue  # a space between two words
        with pytest.raises(Damaged):
            checkpoints.read(6)
        found, said = checkpoints.latest()
        assert same(found, checkpoint(5, value=1.0))
        assert len(said) == 1
        assert "6 is damaged" in said[0]
    (place / name).unlink()
    assert checkpoints.latest()[0].step == 5
    (place / name).write_bytes(content)
    assert checkpoints.latest()[0].step == 6


def means_the_same(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_only_damaged_ones_are_a_sentence(tmp_path):
    place = Checkpoints(tmp_path).write(checkpoint(5))
    (place / STATE_FILE).write_bytes(b"{}")
    with pytest.raises(
        UsageError, match=r"no checkpoint to go on from: .*5 is damaged \(state.json has 2 bytes, and its manifest says"
    ):
        Checkpoints(tmp_path).latest()


@pytest.mark.parametrize(
    "manifest",
    [b"[]", b"{}", b"null", b"[" * 60_000, b" " * 100_000, b'{"format": "surefoot checkpoint 1", "step": 5}', b"\xff\xfe"],
)
def test_strange_manifests_are_refused(manifest, tmp_path):
    place = Checkpoints(tmp_path).write(checkpoint(5))
    (place / MANIFEST_FILE).write_bytes(manifest)
    with pytest.raises(Damaged):
        Checkpoints(tmp_path).read(5)


def test_one_under_anothers_name_is_refused(tmp_path):
    place = Checkpoints(tmp_path).write(checkpoint(5))
    place.rename(place.parent / "8")
    with pytest.raises(Damaged, match="not that of"):
        Checkpoints(tmp_path).read(8)


def test_other_names_are_not_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(checkpoint(5))
    for name in ("007", "mine", "-1", "1e3", "9" * 30):
        (checkpoints.folder / name).mkdir()
    (checkpoints.folder / "12").write_text("a file")
    assert checkpoints.steps() == [5]


class Stopped(BaseException):
    """As if the machine stopped here."""


CALLS = ("mkdir", "open", "fsync", "rename", "rmtree")


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("kind", [Stopped, OSError])
def test_whenever_writing_ends_something_whole_is_left(kind, again, tmp_path, monkeypatch):
    """The write is stopped at every call into the operating system in turn; what is found afterwards is whole."""
    before, after = checkpoint(5, value=1.0), checkpoint(6, value=3.0)
    for stop_at in range(100):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        checkpoints = Checkpoints(folder)
        checkpoints.write(before)
        if again:
            checkpoints.write(checkpoint(6, value=2.0))
        calls = [0]

        def counted(function, calls=calls, stop_at=stop_at):
            def call(*arguments, **options):
                calls[0] += 1
                if calls[0] == stop_at + 1:
                    raise kind(28, "No space left on device")
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", counted(os.fsync))
            patch.setattr("os.open", counted(os.open))
            patch.setattr("builtins.open", counted(open))
            patch.setattr("pathlib.Path.mkdir", counted(type(folder).mkdir))
            patch.setattr("pathlib.Path.rename", counted(type(folder).rename))
            patch.setattr("shutil.rmtree", counted(shutil.rmtree))
            try:
                checkpoints.write(after)
                said = None
            except (Stopped, RunError) as error:
                said = str(error)
        assert said is None or kind is Stopped or "No space left on device; the checkpoints before it are whole" in said
        finished = said is None
        found, passed = Checkpoints(folder).latest()
        assert passed == []
        values = {5: {1.0}, 6: {2.0, 3.0} if again else {3.0}}
        assert float(found.arrays["a/b"][0, 0]) in values[found.step]
        if calls[0] <= stop_at:
            assert finished
            assert same(found, after)
            break
        checkpoints.write(after)
        assert same(Checkpoints(folder).latest()[0], after), "what was left aside is in nobody's way"
        assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["5", "6"]
    assert 8 < stop_at < 99


def test_a_whole_one_that_was_not_yet_called_so_is_found(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    place = checkpoints.write(checkpoint(5))
    place.rename(checkpoints.folder / ".5.writing")
    (checkpoints.folder / ".7.writing").mkdir()
    assert checkpoints.steps() == []
    assert same(checkpoints.latest()[0], checkpoint(5))
    assert checkpoints.steps() == [5]


def test_a_future_that_is_given_up_is_deleted(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (1, 2, 3, 10):
        checkpoints.write(checkpoint(step))
    checkpoints.forget_after(2)
    assert checkpoints.steps() == [1, 2]


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path):
    """Files may not grow beyond a limit that the second checkpoint needs more than."""
    script = f"""
    import resource
    import numpy as np
    from surefoot.errors import RunError
    from surefoot.runs.checkpoints import Checkpoint, Checkpoints
    checkpoints = Checkpoints(__import__("pathlib").Path({str(tmp_path)!r}))
    checkpoints.write(Checkpoint(1, True, {{"x": np.zeros(100)}}, {{}}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        checkpoints.write(Checkpoint(2, True, {{"x": np.zeros(10_000)}}, {{}}))
    except RunError as error:
        print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert re.search(r"2: .*File too large.*; the checkpoints before it are whole$", done.stdout.strip()), done.stderr
    assert Checkpoints(tmp_path).latest()[0].step == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads what Linux says of a process")
def test_writing_takes_no_second_copy_of_the_arrays(tmp_path):
    script = f"""
    import pathlib, re
    import numpy as np
    from surefoot.runs.checkpoints import Checkpoint, Checkpoints
    def peak():  # of this process, where getrusage knows its parent's too
        return int(re.search("VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
    array, checkpoints = np.ones(100 << 20, np.uint8), Checkpoints(pathlib.Path({str(tmp_path)!r}))
    before = peak()
    checkpoints.write(Checkpoint(1, True, {{"x": array}}, {{}}))
    print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert int(done.stdout) < 50  # MiB, of arrays of 100


def test_arrays_that_would_run_code_are_refused(tmp_path):
    with pytest.raises(Exception, match="object"):
        Checkpoints(tmp_path).write(Checkpoint(1, True, {"x": np.array([print], object)}, {}))
    assert Checkpoints(tmp_path).steps() == []
