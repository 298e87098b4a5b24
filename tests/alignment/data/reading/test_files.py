"""Files of every kind give the same rows, and mistakes in them are named by file and line."""

from __future__ import annotations

import csv
import gzip
import json
from contextlib import suppress

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from surefoot.alignment.data.reading.files import Malformed, read_file
from surefoot.errors import UsageError

ROWS = [{"prompt": "a", "chosen": "b\nc", "rejected": 'd, "e"'}, {"prompt": "ü", "chosen": "", "rejected": "f"}]


def as_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_list(path):
    path.write_text(json.dumps(ROWS, indent=2))


def as_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def as_arrow(path, new=ipc.new_file):
    table = pyarrow.Table.from_pylist(ROWS)
    with new(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "rows.jsonl": as_lines,
    "rows.ndjson": as_lines,
    "rows.json": as_list,
    "lines.json": as_lines,
    "rows.csv": as_csv,
    "rows.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "rows.arrow": as_arrow,
    "stream.arrow": lambda path: as_arrow(path, ipc.new_stream),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert list(read_file(tmp_path / name)) == [(1, ROWS[0]), (2, ROWS[1])]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_text_may_be_zipped(tmp_path, name):
    WRITERS[name](tmp_path / name)
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert list(read_file(zipped)) == [(1, ROWS[0]), (2, ROWS[1])]
    zipped.write_bytes(zipped.read_bytes()[:-9])
    with pytest.raises(UsageError, match=rf"{name}.gz cannot be unpacked"):
        list(read_file(zipped))


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "1\u2028"}\r\n\r\n3\n{"a": 2}'.encode())
    assert list(read_file(path)) == [(1, {"a": "1\u2028"}), (3, 3), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": 1,}\n', r"a.jsonl, line 3: broken JSON: .* \(column \d+\)"),
        ("a.jsonl", b'{"a": 1}\n"\xff"\n', "a.jsonl, line 2: the text is not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: the JSON is nested too deeply"),
        ("a.jsonl", b"1" * 5_000, "a.jsonl, line 1: Exceeds the limit"),
        ("a.json", b'[{"a": 1},\n {"a" 1}]', "a.json, line 2: broken JSON"),
        ("a.json", b'{\n"a": 1\n}', "a.json, line 1: broken JSON"),
        ("a.csv", b'a,b\n1,2\n"1,2\n', "a.csv, line 3: broken CSV"),
        ("a.csv", b"a,a\n1,2\n", "a.csv, line 1: the names of the columns must be there and different"),
        ("a.csv", b"a,\n1,2\n", "a.csv, line 1: the names of the columns"),
        ("a.parquet", b"PAR1 not really", "a.parquet cannot be read as Parquet"),
        ("a.parquet", b"", "a.parquet cannot be read as Parquet"),
        ("a.arrow", b"no arrow here", "a.arrow cannot be read as Arrow"),
        ("a.arrow", b"", "a.arrow cannot be read"),
        ("a.txt", b"text", "a.txt is of no kind that is read here; there are .jsonl"),
        ("a.parquet.gz", b"", "is of no kind that is read here"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        list(read_file(tmp_path / name))


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"a\.csv cannot be read: No such file"):
        list(read_file(tmp_path / "a.csv"))


def test_cells_of_csv_hold_lists_as_json(tmp_path):
    path = tmp_path / "a.csv"
    cells = ['["a", "b"]', "[2, 1]", " [not json", '[{"role": "user", "content": "x"}]', '[{"a": 1}]', "0.5"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["completions", "ranks", "pairs", "prompt", "chosen", "margin"], cells, [""] * 6])
    first, second = (row for _, row in read_file(path))
    assert first == {
        "completions": ["a", "b"],
        "ranks": [2, 1],
        "pairs": " [not json",
        "prompt": [{"role": "user", "content": "x"}],
        "chosen": '[{"a": 1}]',
        "margin": 0.5,
    }
    assert second == {"completions": None, "ranks": None, "pairs": None, "prompt": "", "chosen": "", "margin": None}


def test_csv_rows_of_another_width_are_passed_on_as_malformed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1\n\n1,2,3\n")
    rows = dict(read_file(path))
    assert rows[1] == {"a": "1", "b": "2"}
    assert isinstance(rows[2], Malformed)
    assert isinstance(rows[3], Malformed)


def test_a_cell_may_be_longer_than_the_csv_module_allows(tmp_path):
    csv.field_size_limit(131_072)
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "x" * 200_000 + "\n")
    assert len(next(row for _, row in read_file(path))["a"]) == 200_000
    assert csv.field_size_limit() == 131_072


@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".json", ".csv", ".jsonl.gz", ".arrow", ".parquet"]))
def test_no_content_gives_anything_but_rows_or_a_sentence(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    with suppress(UsageError):
        list(read_file(path))
