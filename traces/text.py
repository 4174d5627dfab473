"""Reads text files and tables so that every error names the file, the line and what was found.

All importers and table readers take their numbers from here: one notation is a number everywhere.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

MAX_BYTES = 1_000_000_000
"""Largest file that is read: as Python objects a text takes many times its size in memory."""
MAX_ROWS = 10_000_000
"""Most rows of a table, and most intervals of an availability file."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"\d{1,20}", re.ASCII)


def did_you_mean(given: object, choices: Iterable[str], *, most: int = 1) -> str:
    """Return the end of an error message that names the choices nearest to what was given.

    Empty where none is near, or nothing was given.
    """
    near = difflib.get_close_matches(str(given), list(choices), n=most)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def unknown(what: str, given: object, choices: Iterable[str], *, most: int = 1) -> str:
    """Return the error message for a name that is none of the choices, which it lists."""
    names = list(choices)
    near = did_you_mean(given, names, most=most)
    return f"{what} must be one of {', '.join(names)}, got {given!r:.200}{near}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def counted(number: int, thing: str) -> str:
    """Return a number of things in words: ``1 run``, ``2 runs``."""
    return f"{number} {thing}{'s' * (number != 1)}"


class TextLine(NamedTuple):
    """A text line is one line of a text file, without its line end."""

    path: Path
    number: int  # from 1
    text: str

    @property
    def where(self) -> str:
        """Return the file and line with which an error message begins."""
        return f"{self.path}, line {self.number}"


class Row(NamedTuple):
    """A row of a table has the place where it stands, and its fields by the name of the column."""

    where: str
    fields: Mapping[str, str]

    def number(self, column: str, largest: float, *, smallest: float = 0.0) -> float:
        """Return the number in a column, in [smallest, largest].

        Raises ValueError that names the file, the line and the column.
        """
        return number(self.where, column, self.fields[column], largest, smallest=smallest)


@dataclass(frozen=True)
class Table:
    """A table has rows under named columns; ``header_where`` says where the names stand."""

    header_where: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, columns: Sequence[str]) -> None:
        """Check that the table has these columns. Raises ValueError that names the missing ones."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            found = excerpt(",".join(self.columns)) if any(self.columns) else "nothing"
            raise ValueError(
                f"{self.header_where}: expected a header with the columns {', '.join(columns)}, "
                f"found {found}, without {', '.join(missing)}"
            )


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises ValueError that names the file where it cannot be read, is a device or a pipe (which may
    never end), or is larger than ``MAX_BYTES``.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path}: expected a regular file, found a device or a pipe")
        if path.exists() and (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(
                f"{path}: expected at most {MAX_BYTES:,} bytes, found {size:,}; split the file"
            )
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """Return a UTF-8 file as text in which every line ends in a line feed.

    Raises ValueError that names the file, and the line where the bytes are not UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: expected UTF-8 text, found other bytes") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[TextLine]:
    """Return the lines of a text file up to the last one that is not blank.

    An empty file has none. Raises ValueError as ``read_text`` does.
    """
    text = read_text(path).rstrip()
    return (
        [TextLine(path, n, line) for n, line in enumerate(text.split("\n"), start=1)]
        if text
        else []
    )


def read_table(path: Path) -> Table:
    """Return a table with a header, whose fields are separated by commas or by tabs.

    Tabs separate the fields where the header has a tab and no comma; a row may then end in a tab,
    as those of G-NetTrack do. Fields lose the white space around them. Raises ValueError that names
    the file and line.
    """
    lines = read_lines(path)
    if len(lines) > MAX_ROWS + 1:
        raise ValueError(
            f"{path}: expected at most {MAX_ROWS:,} rows, found {len(lines) - 1:,}; split the file"
        )
    header_line = lines[0].text if lines else ""
    separator = "\t" if "\t" in header_line and "," not in header_line else ","
    reader = csv.reader((line.text + "\n" for line in lines), delimiter=separator, strict=True)
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
        if separator == "\t" and len(fields) == len(columns) + 1 and not fields[-1].strip():
            fields = fields[:-1]
        if len(fields) != len(columns):
            raise ValueError(
                f"{where}: expected {len(columns)} fields ({excerpt(','.join(columns))}), "
                f"found {len(fields)} in {excerpt(separator.join(fields))}"
            )
        stripped = (field.strip() for field in fields)
        rows.append(Row(where, dict(zip(columns, stripped, strict=True))))
    return Table(f"{path}, line 1", columns, tuple(rows))


def plain_number(text: str) -> float:
    """Return the number that a text holds in ASCII decimal notation, and NaN for any other text.

    Python's ``float`` would also take underscores, digits of other scripts, white space, ``inf``
    and ``nan``, all of which are mistakes in a data file. A number too large for a float is inf.
    """
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def number(where: str, name: str, text: str, largest: float, *, smallest: float = 0.0) -> float:
    """Return the number that a text holds, in [smallest, largest].

    Raises ValueError that begins with ``where``, calls the number ``name`` and quotes the text.
    """
    value = plain_number(text)
    if not smallest <= value <= largest:
        found = excerpt(text) if text else "nothing"
        raise ValueError(
            f"{where}: {name} must be a number in [{smallest:g}, {largest:g}], found {found}"
        )
    return value


def whole_number(where: str, name: str, text: str, largest: float) -> int:
    """Return the whole number in [0, largest] that a text of decimal digits holds.

    Raises ValueError that begins with ``where``, calls the number ``name`` and quotes the text.
    """
    if not (_WHOLE.fullmatch(text) and int(text) <= largest):
        raise ValueError(
            f"{where}: {name} must be a whole number up to {largest:.12g}, "
            f"found {excerpt(text) if text else 'nothing'}"
        )
    return int(text)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of JSON, TOML or a pickle is a finite number, and not a truth value.

    A whole number too large for a float is not.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def finite_or_nan(value: object) -> float:
    """Return the value where it is a finite number, as ``is_number`` tells; NaN for another."""
    return float(value) if is_number(value) else math.nan


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds, whose numbers are finite.

    Python's own reader takes ``NaN`` and ``Infinity``, which are no JSON, and reads 1e999 as
    infinite. Raises ValueError that says what is wrong, also for a text that is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("values must be nested less deeply") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"every number must be finite, got {text:.30}")
    return value


def excerpt(text: str) -> str:
    """Return a text as an error message quotes it: escaped, and cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _records(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and fields of each record; one over several lines has the first's number."""
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


def without_folders(text: str) -> str:
    """Return the text with every absolute path cut to its last part.

    An error that a library words may name a file: where somebody works is not handed on. A path
    with spaces is seen as one where it stands in quotes.
    """
    return _FOLDERS.sub("", text)


_FOLDERS = re.compile(
    r"""(?<=['"`])/(?:[^/\n'"`]+/)+"""  # in quotes
    r"""|(?<![^\s(\[=:,])/(?:[^/\s'"`]+/)+"""  # at the beginning of a word
)
