"""Reads a user's examples: CSV (quoted), TSV (never quoted) or JSON lines in UTF-8, or Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices.datasets.parquet import read_parquet
from devices.datasets.records import MAX_BYTES, MISSING, Gathering, Records, error_at
from traces.text import parse_json

ENDINGS = ("csv", "tsv", "jsonl", "parquet")
BOM = "\ufeff".encode()


def portable_name(path: str) -> str:
    """Return a relative path as it is, and of an absolute one the last part alone.

    What is written into run folders names files by this, and tells them apart by their SHA-256.
    """
    return os.path.basename(os.path.normpath(path)) if os.path.isabs(path) else path


def split_file(directory: Path, split: str) -> Path:
    """Find the one file of a split. Raises ValueError where there is none, or more than one."""
    paths = [directory / f"{split}.{ending}" for ending in ENDINGS]
    found = [path for path in paths if os.path.isfile(path)]
    if len(found) != 1:
        raise ValueError(
            f"exactly one of {', '.join(path.name for path in paths)} must be there, "
            f"got {', '.join(path.name for path in found) or 'none'} ({directory})"
        )
    if (size := os.path.getsize(found[0])) > MAX_BYTES:
        raise ValueError(f"a file must be at most {MAX_BYTES:,} bytes, got {size:,} ({found[0]})")
    return found[0]


def read_examples(
    path: Path, content: bytes, columns: Mapping[str, str], *, others: bool = False
) -> Records:
    """Read the examples in a file's content; ``path`` tells the format and is named in errors.

    ``columns`` are the names in the file of what is read, by what they are used as. Their values
    are texts without space around them, and blank lines are left out. Raises ValueError, with the
    place, where a record is broken or lacks a column, where it has any other column unless
    ``others`` may be there, or where there is no record.
    """
    gathering = Gathering(path, columns, others=others)
    if path.suffix == ".parquet":
        read_parquet(content, gathering)
        return gathering.records()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte {content[error.start]:#04x}"
        raise error_at(path, line, f"the file must be UTF-8, got {found}") from None
    gathering.check_rows(content.count(b"\n"), "lines")
    read = _read_json if path.suffix == ".jsonl" else _read_table
    read(path, content.removeprefix(BOM), gathering)
    return gathering.records()


@contextmanager
def _fields_of_any_size(longest: int) -> Iterator[None]:
    """Lift the csv module's limit on a field, which is one number for the whole process."""
    before = csv.field_size_limit(max(longest, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table_rows(path: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line where it begins."""
    lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")
    if path.suffix == ".csv":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise error_at(path, line, f"every row must be well-formed, got: {error}") from None


def _read_table(path: Path, content: bytes, gathering: Gathering) -> None:
    with _fields_of_any_size(len(content)):
        rows = _table_rows(path, content)
        line, header = next(rows, (1, []))
        columns = [name.strip() for name in header]
        gathering.meet_table(line, columns)
        places = [columns.index(name) for name in gathering.names]
        for line, row in rows:
            if len(row) != len(columns):
                raise error_at(
                    path,
                    line,
                    f"a row must have {len(columns)} fields as the header, got {len(row)}",
                )
            gathering.add(line, [row[place] for place in places])


def _read_json(path: Path, content: bytes, gathering: Gathering) -> None:
    for line, row in enumerate(io.BytesIO(content), start=1):
        if text := row.decode().strip():
            record = _json_record(path, line, text)
            gathering.meet(line, record)
            gathering.add(line, [record.get(name, MISSING) for name in gathering.names])


def _json_record(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = parse_json(text)
    except ValueError as error:
        raise error_at(path, line, f"every line must be JSON, got: {error}") from None
    if not isinstance(record, dict):
        raise error_at(path, line, f"every line must be an object, got {type(record).__name__}")
    return record
