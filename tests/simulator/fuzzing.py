"""Breaks valid configs and files in the ways of tired people, other programs and ill will.

Guided by messages: an input that is answered in words that no other was, becomes a seed itself, so
that what is reached only through two mistakes is reached. Everything follows from one generator.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from simulator.log.manifest import file_hashes

NASTY: Sequence[Any] = (
    None, True, False, "", " ", "nan", float("nan"), float("inf"), -float("inf"), -1, 0, 1, 2, 3,
    -0.0, 0.5, 1e-300, 5e-324, 1e-9, 1e9, 1e300, 2**31, 2**63, 2**64, 10**30, "x" * 300, "\x00",
    "a\x00b", "../x", "../../etc/passwd", "/", "/dev/zero", "/nonexistent/file", ".", "a/b", "1e3",
    "é\u202e\U0001f600", "\x85", "file.py:X", "../file.py:X", "/dev/zero.py:X", "missing.csv",
    "link.csv", "online.csv", "table.csv", "conditions.json", "wifi", "lte", "fedquad", "uniform",
    "none", [], {}, [[[]]], [1, 2], [2, 1], [0.1, 0.2], {"kind": "x"}, {"kind": None}, {"kind": []},
    {"source": 1}, {"": 1}, datetime.date(2020, 1, 1), b"\xff\x00", {1: 2}, {None: 3}, {"a", "b"},
)  # fmt: skip
NASTY_CELLS: Sequence[Any] = (
    None, -1, 0, 1, 7, 2**62, -(2**63), 1.5, float("nan"), float("inf"), -1e300, 1e300, 1e13, "",
    "oom", "aggregated", "x" * 2000, "\x1b[31m", "a\nb", "$$", "\\", True, b"\xff\xfe", [1],
    {"a": 1},
)  # fmt: skip
PIECES = (
    b"", b" ", b"\n", b"\t", b":", b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a",
    b"!!python/name:os", b"!!binary ", b"!!set ", b"<<: ", b"? ", b"|", b">", b"'", b'"',
    b"#", b"---\n", b"...", b"%", b"\xff", b"\x00", b"\xef\xbb\xbf", b"0x" + b"f" * 40, b"9" * 5000,
    b"1e999", b".nan", b"-.inf", b"~", b"2020-02-30", b"1:30", b"0b2", b"null",
    b"[" * 60, b"- " * 60, b"\\u0000", b",",
    b"1", b"-", b".", b"e",
)  # fmt: skip


class HangError(BaseException):
    """An input took longer than any may. No Exception, so that nothing swallows it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError in the block once it has used ``seconds`` of this process's own time."""

    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def broken_tree(rng: np.random.Generator, tree: Any, donors: Sequence[Any]) -> Any:
    """Return a copy of a tree of plain values with one to three places changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(tree))
        if not places:
            return tree
        parent, key = places[rng.integers(len(places))]
        _change(rng, parent, key, donors)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Return every (container, key) below."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _change(rng: np.random.Generator, parent: Any, key: Any, donors: Sequence[Any]) -> None:
    value = parent[key]
    match rng.integers(8):
        case 0 | 1 | 2:
            parent[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
        case 3:
            del parent[key]
        case 4:  # a part of another config, or a number of another size
            if isinstance(value, int | float) and not isinstance(value, bool):
                parent[key] = value * 10.0 ** int(rng.integers(-12, 13)) * rng.choice([-1, 1])
                parent[key] = float(parent[key])
            else:
                places = list(_places(donors[rng.integers(len(donors))]))
                other, at = places[rng.integers(len(places))]
                parent[key] = copy.deepcopy(other[at])
        case 5:
            parent[key] = [value, copy.deepcopy(value)] if rng.random() < 0.5 else {"kind": value}
        case 6:  # the value of a key of the same name in any donor
            found = [o[k] for d in donors for o, k in _places(d) if k == key]
            if found:
                parent[key] = copy.deepcopy(found[rng.integers(len(found))])
        case 7:
            if isinstance(parent, dict):
                name = str(key)
                at = int(rng.integers(len(name) + 1))
                parent[name[:at] + "x" + name[at:]] = parent.pop(key)
            else:
                parent.append(copy.deepcopy(value))


def broken_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a file's content with a few stretches cut out, replaced or repeated, or its end cut
    off."""
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(0, len(content) + 1))
        end = min(start + int(rng.integers(0, 20)), len(content))
        middle = b"".join(PIECES[i] for i in rng.integers(0, len(PIECES), rng.integers(0, 3)))
        middle += content[start:end] * int(rng.integers(0, 3))
        content = content[:start] + middle + content[end:]
    return content[: rng.integers(0, len(content) + 1)] if rng.random() < 0.1 else content


def seal(run: Path) -> None:
    """Write the hashes of a run's files anew, as whoever forges one would."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**manifest, "files": file_hashes(run)}), "utf-8")


def broken_table(rng: np.random.Generator, table: pa.Table) -> pa.Table:
    """Return a table with one or two columns or its rows changed; it is a valid file still."""
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(table.num_columns))
        name, values = table.column_names[place], table.column(place).to_pylist()
        other = table.column(int(rng.integers(table.num_columns)))
        odd = NASTY_CELLS[rng.integers(len(NASTY_CELLS))]
        match rng.integers(9):
            case 0:
                table = table.remove_column(place)
            case 1:
                table = table.set_column(place, name, other)
            case 2:
                table = table.set_column(place, name + "x", table.column(place))
            case 3:
                rows = rng.integers(0, max(table.num_rows, 1), rng.integers(0, 2 * len(values) + 1))
                table = table.take(rows) if len(values) else table
            case 4:
                table = table.append_column(name, other)
            case 5:
                table = table.set_column(place, name, pa.array([odd] * len(values)))
            case _:
                for row in rng.integers(0, max(len(values), 1), min(len(values), 2)):
                    values[row] = odd
                try:
                    column = pa.array(values, table.schema.field(place).type)
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    column = pa.array([None if v is None else str(v) for v in values])
                table = table.set_column(place, name, column)
    return table


def wording(message: str) -> str:
    """Return a message without what differs from input to input."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+\d.]+(e[-+]?\d+)?|got .*|/\S+", "#", message)[:300]


class Guided:
    """A guided search keeps its seeds, and the inputs that were answered in new words."""

    def __init__(self, seeds: Sequence[Any], *, most: int = 500) -> None:
        self._seeds, self._learned, self._most = list(seeds), list(seeds), most
        self.wordings: set[str] = set()

    def pick(self, rng: np.random.Generator) -> Any:
        pool = self._learned if rng.random() < 0.4 else self._seeds
        return pool[rng.integers(len(pool))]

    def learn(self, tree: Any, answer: str) -> None:
        """Keep the tree if nobody was answered so."""
        new = {wording(line) for line in answer.splitlines()} - self.wordings
        self.wordings |= new
        if new and len(self._learned) < self._most:
            self._learned.append(tree)


class Broke:
    """This collects what inputs wrongly led to: one of each kind, and a copy of its input."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found: dict[str, str] = {}

    @contextmanager
    def keeping(self, file: Path) -> Iterator[None]:
        """Note what the block raises, by its place in the code, and go on."""
        try:
            yield
        except (Exception, HangError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {frame.filename}:{frame.lineno}"
            if place not in self.found:
                copy_ = self._folder / f"broke-{len(self.found)}{file.suffix}"
                shutil.copy(file, copy_)
                self.found[place] = f"{copy_}: {str(error)[:500]}"
                print(f"\n{place}\n  {self.found[place]}")
                traceback.print_exc(limit=-6)
