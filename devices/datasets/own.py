"""Reads a user's examples: CSV (quoted), TSV (never quoted) or JSON lines, all in UTF-8."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ENDINGS = ("csv", "tsv", "jsonl")

MAX_BYTES = 1_000_000_000
"""Largest file of examples: as Python texts it takes several times its size in memory."""
MAX_LINES = 10_000_000
"""Most lines of one, each of which becomes an example, tokens and a label."""


TEXTS = ("text", "pair", "prompt")
"""The columns that are learned from as texts: a number there is a mistake."""
LISTS = ("choices",)
"""The columns of lists, which a table holds as JSON."""
NUMBERS = ("score",)
"""The columns of numbers, which JSON may hold as such."""


class Example(NamedTuple):
    """One example, and the line of its file where it begins, counted from 1."""

    line: int
    values: tuple[str, ...]  # of the columns that were asked for, in their order


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
    if (size := os.path.getsize(found[0])) > MAX_BYTES:
        raise ValueError(f"a file must be at most {MAX_BYTES:,} bytes, got {size:,} ({found[0]})")
    return found[0]


def parse_examples(
    path: Path, content: bytes, columns: Mapping[str, str], *, others: bool = False
) -> list[Example]:
    """Read the examples in a file's content; ``path`` tells the format and is named in errors.

    ``columns`` are the names in the file of what is read, by what they are used as. Their values
    are texts without space around them, and blank lines are left out. Raises ValueError, with file
    and line, where a record is broken or lacks a column, where it has any other column unless
    ``others`` may be there, or where there is no record.
    """
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte {content[error.start]:#04x}"
        raise error_at(path, line, f"the file must be UTF-8, got {found}") from None
    if (num_lines := decoded.count("\n")) > MAX_LINES:
        raise ValueError(
            f"a file must have at most {MAX_LINES:,} lines, got {num_lines:,} ({path})"
        )
    read = _json_records if path.suffix == ".jsonl" else _table_records
    wanted = _Wanted(columns, others)
    examples = [_checked(path, line, record) for line, record in read(path, decoded, wanted)]
    if not examples:
        raise ValueError(f"there must be at least one example, got none ({path})")
    return examples


class _Wanted(NamedTuple):
    """The columns to read from a file, and whether it may have others."""

    columns: Mapping[str, str]  # their names in the file, by what they are used as
    others: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Their names in the file."""
        return tuple(self.columns.values())

    @property
    def listed(self) -> str:
        """The names as they stand in a sentence."""
        *most, last = self.names
        return f"{', '.join(most)} and {last}" if most else last

    def check_no_other(self, path: Path, line: int, found: Sequence[str]) -> None:
        """Raise ValueError for a column that nothing would read: a second text, a client."""
        others = [repr(name)[:60] for name in found if name not in self.names]
        if others and not self.others:
            raise error_at(
                path,
                line,
                f"the columns must be {self.listed} alone, since no other would be used, got also "
                f"{', '.join(others[:5])}; remove what is not to be used, join it into text, or "
                "say in task.columns what is used",
            )


def _checked(path: Path, line: int, record: Mapping[str, str]) -> Example:
    for column, value in record.items():
        if not value.strip():
            raise error_at(path, line, f"{column} must not be empty, got {value!r}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise error_at(path, line, f"{column} must be valid Unicode, got half of a character")
    return Example(line, tuple(value.strip() for value in record.values()))


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


def _table_records(
    path: Path, decoded: str, wanted: _Wanted
) -> Iterator[tuple[int, dict[str, str]]]:
    rows = _table_rows(path, decoded)
    line, header = rows[0] if rows else (1, [])
    columns = [name.strip() for name in header]
    if any(columns.count(name) != 1 for name in wanted.names):
        found = ", ".join(columns) or "nothing"
        raise error_at(
            path, line, f"the header must name {wanted.listed} once each, got {found:.300}"
        )
    wanted.check_no_other(path, line, columns)
    places = {name: columns.index(name) for name in wanted.names}
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise error_at(
                path, line, f"a row must have {len(columns)} fields as the header, got {len(row)}"
            )
        yield line, {name: row[place] for name, place in places.items()}


def _json_records(
    path: Path, decoded: str, wanted: _Wanted
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, row in enumerate(decoded.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            record = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise error_at(path, line, f"every line must be JSON, got: {error}") from None
        if not isinstance(record, dict):
            raise error_at(path, line, f"every line must be an object, got {type(record).__name__}")
        wanted.check_no_other(path, line, list(record))
        yield (
            line,
            {
                name: _json_text(path, line, record, name, used_as)
                for used_as, name in wanted.columns.items()
            },
        )


def _json_text(path: Path, line: int, record: Mapping[str, object], name: str, used_as: str) -> str:
    """Return a value as text; a number may stand for one, except where text is learned."""
    value = record.get(name)
    if isinstance(value, str):
        return value
    if used_as in LISTS and isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    numbers = (int, float) if used_as in NUMBERS else () if used_as in TEXTS else (int,)
    if isinstance(value, bool) or not isinstance(value, numbers):
        rule = {2: "a string or a number", 1: "a string or a whole number", 0: "a string"}
        found = _shown(record, name)
        raise error_at(path, line, f"{name} must be {rule[len(numbers)]}, got {found}")
    return repr(value)


def _shown(record: Mapping[str, object], key: str) -> str:
    return repr(record[key])[:60] if key in record else "nothing"
