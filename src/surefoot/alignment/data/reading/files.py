"""Rows out of one file. What is not a row of columns is passed on as it is, to be counted where rows are judged.

Text formats are read by the standard library, so that a mistake can be named by its line; Arrow's by pyarrow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from surefoot.alignment.data.reading.room import check_room, counted, room
from surefoot.errors import UsageError, what_it_says

Record = tuple[int, Any]
"""The row's number, counted from one, and what stands there."""
LISTS = ("completions", "responses", "ranks", "scores", "pairs", "messages")
"""Columns that hold lists, which a CSV file spells as JSON."""


class Malformed(str):
    """Why something is no row at all, in place of a row."""


def read_file(path: Path) -> Iterator[Record]:
    """Rows of a .jsonl, .ndjson, .json, .csv (each also with .gz), .parquet or .arrow file.

    Raises:
        UsageError: the file cannot be read, is broken (with the line), or is of another kind.
    """
    reader = reader_of(path)
    if reader is None:
        raise UsageError(f"{path} is of no kind that is read here; there are {', '.join(READERS)}, and .gz behind a text file")
    try:
        yield from reader(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def reader_of(path: Path) -> Callable[[Path], Iterator[Record]] | None:
    """What reads the file, by its name; None where nothing does."""
    reader = READERS.get(kind_of(path))
    return None if path.name.lower().endswith(".gz") and reader in (_arrow, _parquet) else reader


def kind_of(path: Path) -> str:
    """The ending of the file's name, .gz left out."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _text(path: Path) -> str:
    if not path.name.lower().endswith(".gz"):
        content = path.read_bytes()
    else:
        most = room()
        try:
            with gzip.open(path) as packed:
                content = b"".join(_pieces(packed, path, most))
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path} cannot be unpacked: {error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: the text is not UTF-8; convert the file first") from error


def _pieces(packed: gzip.GzipFile, path: Path, most: int) -> Iterator[bytes]:
    """What is unpacked, as long as it fits."""
    held = 0
    while piece := packed.read(1 << 20):
        held += len(piece)
        check_room(path, held, given=most)
        yield piece


def _value(path: Path, text: str, line: int) -> Any:
    """One JSON value that begins on the given line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {line + error.lineno - 1}: broken JSON: {error.msg} (column {error.colno})") from error
    except RecursionError:
        raise UsageError(f"{path}, line {line}: the JSON is nested too deeply to be read") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise UsageError(f"{path}, line {line}: {error}") from error


def _json_lines(path: Path) -> Iterator[Record]:
    """One object per line; the row's number is the line's, so that an editor finds it."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _value(path, line, number)


def _json(path: Path) -> Iterator[Record]:
    """A list of objects; or one object per line, as many files called .json are."""
    text = _text(path)
    if text.lstrip().startswith("["):
        yield from enumerate(_value(path, text, 1), start=1)
    else:
        yield from _json_lines(path)


def _csv(path: Path) -> Iterator[Record]:
    before = csv.field_size_limit(sys.maxsize)  # an answer may be longer than the 131,072 characters that csv allows a cell
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or not all(header):
            raise UsageError(f"{path}, line 1: the names of the columns must be there and different, but are {header}")
        rows = [cells for cells in reader if cells]
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: broken CSV: {error}") from error
    finally:
        csv.field_size_limit(before)
    for number, cells in enumerate(rows, start=1):
        if len(cells) == len(header):
            yield number, {name: _cell(name, text) for name, text in zip(header, cells, strict=True)}
        else:
            yield number, Malformed("it has more or fewer cells than there are columns")


def _cell(name: str, text: str) -> Any:
    """A list or a number where the column holds those, messages where the text is a list of them, else the text."""
    if name == "margin":
        try:
            return float(text) if text.strip() else None
        except ValueError:
            return text
    if name not in LISTS and not text.lstrip().startswith("[{"):
        return text
    try:
        value = json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        return text
    conversation = isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value)
    return value if name in LISTS or conversation else text


def _parquet(path: Path) -> Iterator[Record]:
    _pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in counted(file.iter_batches(1024), path))
            yield from enumerate((row for batch in batches for row in batch), start=1)
    except UsageError:
        raise
    except Exception as error:  # whatever a damaged file makes of Arrow, and its values of Python's types
        raise UsageError(f"{path} cannot be read as Parquet: {what_it_says(error)}") from error


def _arrow(path: Path) -> Iterator[Record]:
    """Arrow's file format, or its stream, which `datasets` writes."""
    arrow = _pyarrow()
    from pyarrow import ipc

    try:
        with arrow.memory_map(str(path)) as file:
            try:
                whole = ipc.open_file(file)
                parts = (whole.get_batch(i) for i in range(whole.num_record_batches))
            except arrow.ArrowInvalid:
                file.seek(0)
                parts = iter(ipc.open_stream(file))
            batches = (batch.to_pylist() for batch in counted(parts, path))
            yield from enumerate((row for batch in batches for row in batch), start=1)
    except UsageError:
        raise
    except Exception as error:  # as above
        raise UsageError(f"{path} cannot be read as Arrow: {what_it_says(error)}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise UsageError("Parquet and Arrow files need pyarrow; install it with: pip install 'surefoot[alignment]'") from None
    return pyarrow


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
