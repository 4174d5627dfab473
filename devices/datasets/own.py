"""Reads a user's labelled texts: CSV (quoted), TSV (never quoted) or JSON lines, all in UTF-8."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ENDINGS = ("csv", "tsv", "jsonl")


class Example(NamedTuple):
    """One labelled text, and the line of its file where it begins, counted from 1."""

    line: int
    text: str
    label: str


def portable_name(path: str) -> str:
    """Return a relative path as it is, and of an absolute one the last part alone.

    What is written into run folders names files by this, and tells them apart by their SHA-256.
    """
    return os.path.basename(os.path.normpath(path)) if os.path.isabs(path) else path


def error_at(path: Path, line: int, message: str) -> ValueError:
    """Make an error whose message ends with its place, a line counted from 1."""
    return ValueError(f"{message} ({path}, line {line})")


def split_file(directory: Path, split: str) -> Path:
    """Find the one file of a split. Raises ValueError where there is none, or more than one."""
    paths = [directory / f"{split}.{ending}" for ending in ENDINGS]
    found = [path for path in paths if os.path.isfile(path)]
    if len(found) != 1:
        raise ValueError(
            f"exactly one of {', '.join(path.name for path in paths)} must be there, "
            f"got {', '.join(path.name for path in found) or 'none'} ({directory})"
        )
    return found[0]


def parse_examples(path: Path, content: bytes) -> list[Example]:
    """Read the examples in a file's content; ``path`` tells the format and is named in errors.

    Every record has a ``text`` and a ``label``, without space around them; blank lines are left
    out. Raises ValueError, with file and line, where a record is broken or has any other column,
    or where there is no record.
    """
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte {content[error.start]:#04x}"
        raise error_at(path, line, f"the file must be UTF-8, got {found}") from None
    read = _json_records if path.suffix == ".jsonl" else _table_records
    examples = [_checked(path, *record) for record in read(path, decoded)]
    if not examples:
        raise ValueError(f"there must be at least one example, got none ({path})")
    return examples


def _checked(path: Path, line: int, text: str, label: str) -> Example:
    for column, value in (("text", text), ("label", label)):
        if not value.strip():
            raise error_at(path, line, f"{column} must not be empty, got {value!r}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise error_at(path, line, f"{column} must be valid Unicode, got half of a character")
    return Example(line, text.strip(), label.strip())


@contextmanager
def _fields_of_any_size(longest: int) -> Iterator[None]:
    """Lift the csv module's limit on a field, which is one number for the whole process."""
    before = csv.field_size_limit(max(longest, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table_rows(path: Path, decoded: str) -> list[tuple[int, list[str]]]:
    """Read the rows that are not blank, each with the line where it begins."""
    content = io.StringIO(decoded, newline="")
    if path.suffix == ".csv":
        reader = csv.reader(content, strict=True)
    else:
        reader = csv.reader(content, delimiter="\t", quoting=csv.QUOTE_NONE)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        with _fields_of_any_size(len(decoded)):
            for row in reader:
                if row:
                    rows.append((line, row))
                line = reader.line_num + 1
    except csv.Error as error:
        raise error_at(path, line, f"every row must be well-formed, got: {error}") from None
    return rows


def _table_records(path: Path, decoded: str) -> Iterator[tuple[int, str, str]]:
    rows = _table_rows(path, decoded)
    line, header = rows[0] if rows else (1, [])
    columns = [name.strip() for name in header]
    if columns.count("text") != 1 or columns.count("label") != 1:
        found = ", ".join(columns) or "nothing"
        raise error_at(path, line, f"the header must name text and label once each, got {found}")
    _check_no_other(path, line, columns)
    text, label = columns.index("text"), columns.index("label")
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise error_at(
                path, line, f"a row must have {len(columns)} fields as the header, got {len(row)}"
            )
        yield line, row[text], row[label]


def _check_no_other(path: Path, line: int, columns: list[str]) -> None:
    """Raise ValueError for a column that nothing would read: a second text, a client, a weight."""
    others = [repr(name)[:60] for name in columns if name not in ("text", "label")]
    if others:
        raise error_at(
            path,
            line,
            "the columns must be text and label alone, since no other would be used, got also "
            f"{', '.join(others[:5])}; remove what is not to be used, or join it into text",
        )


def _json_records(path: Path, decoded: str) -> Iterator[tuple[int, str, str]]:
    for line, row in enumerate(decoded.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            record = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise error_at(path, line, f"every line must be JSON, got: {error}") from None
        if not isinstance(record, dict):
            raise error_at(path, line, f"every line must be an object, got {type(record).__name__}")
        _check_no_other(path, line, list(record))
        text, label = record.get("text"), record.get("label")
        if not isinstance(text, str):
            raise error_at(path, line, f"text must be a string, got {_shown(record, 'text')}")
        if not isinstance(label, str | int) or isinstance(label, bool):
            found = _shown(record, "label")
            raise error_at(path, line, f"label must be a string or a whole number, got {found}")
        yield line, text, str(label)


def _shown(record: dict[str, object], key: str) -> str:
    return repr(record[key])[:60] if key in record else "nothing"
