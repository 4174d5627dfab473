"""Text files read so that every error says where: file, line, what was found, what should be."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One line of a file, without its end."""

    path: Path
    number: int  # from 1
    text: str

    @property
    def where(self) -> str:
        """The words that an error begins with."""
        return f"{self.path}, line {self.number}"


class Row(NamedTuple):
    """One row of a table: its fields by the name of their column."""

    where: str
    fields: Mapping[str, str]

    def number(self, column: str, largest: float, *, smallest: float = 0.0) -> float:
        """The finite number in a column. Raises ValueError that says where."""
        return number(self.where, column, self.fields[column], largest, smallest=smallest)


@dataclass(frozen=True)
class Table:
    """Rows under named columns; ``header_where`` is where the names stand."""

    header_where: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, columns: Sequence[str]) -> None:
        """Raise ValueError unless each of ``columns`` is there."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            found = excerpt(",".join(self.columns)) if any(self.columns) else "nothing"
            raise ValueError(
                f"{self.header_where}: expected a header with the columns {', '.join(columns)}, "
                f"found {found}"
            )


MAX_BYTES = 4_000_000_000


def read_bytes(path: Path) -> bytes:
    """What the file holds. Raises ValueError that names it where it cannot be read."""
    try:
        if path.exists() and not (
            path.is_file() or path.is_dir()
        ):  # a device or a pipe may never end
            raise ValueError(f"{path}: expected a regular file, found another thing")
        if path.exists() and path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes, found more")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The file as UTF-8, each line end as LF. Raises ValueError that names the file and line."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: expected UTF-8 text, found other bytes") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[Line]:
    """The lines up to the last that is not blank; none in an empty file."""
    text = read_text(path).rstrip()
    return [Line(path, n, line) for n, line in enumerate(text.split("\n"), start=1)] if text else []


def read_table(path: Path) -> Table:
    """A CSV file with a header. Raises ValueError that names the file and line."""
    reader = csv.reader((line.text + "\n" for line in read_lines(path)), strict=True)
    records = _records(path, reader)
    _, header = next(records, (1, []))
    columns = tuple(name.strip() for name in header)
    if len(set(columns)) < len(columns):
        raise ValueError(
            f"{path}, line 1: expected each column once, found {excerpt(','.join(columns))}"
        )
    rows = []
    for line, fields in records:
        where = f"{path}, line {line}"
        if len(fields) != len(columns):
            raise ValueError(
                f"{where}: expected {len(columns)} fields ({excerpt(','.join(columns))}), "
                f"found {len(fields)} in {excerpt(','.join(fields))}"
            )
        stripped = (field.strip() for field in fields)
        rows.append(Row(where, dict(zip(columns, stripped, strict=True))))
    return Table(f"{path}, line 1", columns, tuple(rows))


def number(where: str, column: str, text: str, largest: float, *, smallest: float = 0.0) -> float:
    """The number that ``text`` holds, in [smallest, largest]. Raises ValueError that says where."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not smallest <= value <= largest:
        found = excerpt(text) if text else "nothing"
        raise ValueError(
            f"{where}: {column} must be a number in [{smallest:g}, {largest:g}], found {found}"
        )
    return value


def excerpt(text: str) -> str:
    """The text as an error quotes it: short."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _records(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each record; a record over several lines has the number of its first."""
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: expected CSV, found damage ({error})") from None
        yield line, fields
        line = reader.line_num + 1  # type: ignore[attr-defined]
