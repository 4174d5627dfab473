"""Holds the records of any format to one set of rules, and gathers the columns that are read."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "test"]
MAX_BYTES = 1_000_000_000
"""The largest size of a file of examples in bytes, and in characters once it is unpacked."""
MAX_ROWS = 10_000_000
"""The largest number of lines or rows in a file of examples."""

TEXTS = ("text", "pair", "prompt")
"""The columns that are learned from as texts: a number there is a mistake."""
LISTS = ("choices",)
"""The columns of lists, which a table holds as JSON."""
NUMBERS = ("score",)
"""The columns of numbers, which JSON may hold as such."""
MISSING = object()
"""Stands for a value that a record does not have."""
BY_LINE = (".csv", ".tsv", ".jsonl")
"""Endings of the files in which an example is found by its line."""

_HALF = re.compile("[\ud800-\udfff]")
"""A surrogate: one half of a character, which JSON can hold and UTF-8 cannot."""


def error_at(path: Path, number: int, message: str) -> ValueError:
    """Make an error whose message ends with its place, a line or a row counted from 1."""
    unit = "line" if path.suffix in BY_LINE else "row"
    return ValueError(f"{message} ({path}, {unit} {number})")


class Records(NamedTuple):
    """Records are the examples of one file or split, column by column."""

    columns: Mapping[str, tuple[str, ...]]  # by the task's own names, all of one length
    numbers: array[int]  # the line or row where each example begins, counted from 1
    unused: tuple[str, ...]  # the file's other columns, in their order


class Gathering:
    """A gathering takes the records of one file one by one, and keeps the columns that are read.

    ``columns`` are the file's names of what is read, by what they are used as. ``path`` is named in
    errors. Values are kept as texts without space around them. Every method raises ValueError, with
    the place, where a record breaks a rule; so does any other column unless ``others`` may be
    there.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], *, others: bool) -> None:
        self._path, self._columns, self._others = path, columns, others
        self._kept: list[list[str]] = [[] for _ in columns]
        self._ways = [
            (used_as, name, kept, used_as in TEXTS)
            for (used_as, name), kept in zip(columns.items(), self._kept, strict=True)
        ]
        self._numbers = array("q")
        self._size = 0
        self._unused: dict[str, None] = {}
        self._seen: dict[str, str] = {}  # one text object for all equal labels and names

    @property
    def names(self) -> tuple[str, ...]:
        """Return the file's names of what is read."""
        return tuple(self._columns.values())

    @property
    def num_records(self) -> int:
        """Return the number of records that were added."""
        return len(self._numbers)

    @property
    def listed(self) -> str:
        """Return the names as they stand in a sentence."""
        *most, last = self.names
        return f"{', '.join(most)} and {last}" if most else last

    def meet_table(self, number: int, found: Sequence[str]) -> None:
        """Hold a table's columns to the rules: each that is read must be there once."""
        if any(found.count(name) != 1 for name in self.names):
            shown = ", ".join(found) or "nothing"
            raise error_at(
                self._path,
                number,
                f"the header must name {self.listed} once each, got {shown:.300}",
            )
        self.meet(number, found)

    def meet(self, number: int, found: Iterable[str]) -> None:
        """Note which columns a table or record has that are not read."""
        for name in found:
            if name not in self._unused and name not in self.names:
                self._unused[name] = None
                if not self._others:
                    self._refuse_others(number, found)

    def _refuse_others(self, number: int, found: Iterable[str]) -> None:
        others = [repr(name)[:60] for name in found if name not in self.names]
        raise error_at(
            self._path,
            number,
            f"the columns must be {self.listed} alone, since no other would be used, got also "
            f"{', '.join(others[:5])}; remove what is not to be used, join it into text, or "
            "say in task.columns what is used",
        )

    def add(self, number: int, values: Iterable[object]) -> None:
        """Keep one record: its values in the order of the columns, ``MISSING`` for none."""
        size = self._size
        for (used_as, name, kept, is_text), value in zip(self._ways, values, strict=True):
            text = value if isinstance(value, str) else self._as_text(number, used_as, name, value)
            plain = text.strip()
            if not plain:
                raise error_at(self._path, number, f"{name} must not be empty, got {text!r}")
            if not plain.isascii() and _HALF.search(plain):
                raise error_at(
                    self._path, number, f"{name} must be valid Unicode, got half of a character"
                )
            size += len(plain)
            kept.append(plain if is_text else self._seen.setdefault(plain, plain))
        self._size = size
        self._numbers.append(number)
        if size > MAX_BYTES or len(self._numbers) > MAX_ROWS:
            self.check_size(size)
            self.check_rows(len(self._numbers))

    def check_size(self, size: int) -> None:
        """Raise ValueError for more bytes or characters than memory would hold."""
        if size > MAX_BYTES:
            raise ValueError(
                f"what is read of a file must be at most {MAX_BYTES:,} bytes, got {size:,} or more "
                f"({self._path})"
            )

    def check_rows(self, count: int, unit: str = "rows") -> None:
        """Raise ValueError for more lines or rows than memory would hold."""
        if count > MAX_ROWS:
            raise ValueError(
                f"a file must have at most {MAX_ROWS:,} {unit}, got {count:,} ({self._path})"
            )

    def damaged(self, error: Exception) -> ValueError:
        """Make the error about a file that its library cannot read."""
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ValueError(f"the file must be one that can be read, got: {said:.200} ({self._path})")

    def records(self) -> Records:
        """Return what was gathered. Raises ValueError where there is no record."""
        if not self._numbers:
            raise ValueError(f"there must be at least one example, got none ({self._path})")
        columns = zip(self._columns, map(tuple, self._kept), strict=True)
        return Records(dict(columns), self._numbers, tuple(self._unused))

    def _as_text(self, number: int, used_as: str, name: str, value: object) -> str:
        """Return a value as text; a number may stand for one, except where text is learned."""
        if used_as in LISTS and isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        numbers = (int, float) if used_as in NUMBERS else () if used_as in TEXTS else (int,)
        if isinstance(value, bool) or not isinstance(value, numbers):
            rule = {2: "a string or a number", 1: "a string or a whole number", 0: "a string"}
            found = "nothing" if value is MISSING else repr(value)[:60]
            raise error_at(self._path, number, f"{name} must be {rule[len(numbers)]}, got {found}")
        return repr(value)
