"""Imports Ghent's 4G and Norway's HSDPA logs: the bytes received since the row before.

A row has six columns separated by spaces: epoch, milliseconds of uptime, latitude, longitude, bytes
and milliseconds since the row before (which may have leading zeros). The rate of a row belongs to
the interval that ends at it. Time between rows that no interval covers was not measured, and is
left out. Only the downlink is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from traces.importers.result import MAX_LENGTH_S, Recording, name_of, steps
from traces.text import TextLine, excerpt, number, read_lines

COLUMNS = ("epoch", "uptime_ms", "latitude", "longitude", "bytes", "interval_ms")
EPOCH_2001_S = 978e6
EPOCH_2100_S = 4.1e9
"""The bounds of an epoch. No log is older than the first, which tells milliseconds from seconds."""


def read_ghent(path: Path) -> Recording:
    """Return the downlink in a Ghent log, whose epoch is in milliseconds.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    return _read(path, "epoch in ms", 1000.0)


def read_hsdpa(path: Path) -> Recording:
    """Return the downlink in an HSDPA log, whose epoch is in seconds. Raises as ``read_ghent``."""
    return _read(path, "epoch in s", 1.0)


class _LogRow(NamedTuple):
    """A log row holds the numbers of one line from which the rate follows."""

    uptime_ms: float
    received_bytes: float
    interval_ms: float


def _read(path: Path, epoch: str, units_per_s: float) -> Recording:
    rows: list[_LogRow] = []
    gap_ms = 0.0
    for line in read_lines(path):
        row = _row(line, epoch, units_per_s)
        if rows:
            if row.uptime_ms <= rows[-1].uptime_ms:
                raise ValueError(
                    f"{line.where}: uptime_ms must increase, "
                    f"found {row.uptime_ms:.12g} after {rows[-1].uptime_ms:.12g}"
                )
            gap_ms += max(0.0, row.uptime_ms - rows[-1].uptime_ms - row.interval_ms)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}, line 1: expected {' '.join(COLUMNS)}, found an empty file")
    trace = steps(
        f"{path}, lines 1 to {len(rows)}",
        [row.interval_ms / 1000 for row in rows],
        [row.received_bytes * 8 / row.interval_ms / 1000 for row in rows],
    )
    notes = (f"left out: {gap_ms / 1000:g} s that no row covers",) if gap_ms else ()
    return Recording(name_of(path), trace, notes=notes)


def _row(line: TextLine, epoch: str, units_per_s: float) -> _LogRow:
    fields = line.text.split()
    if len(fields) != len(COLUMNS):
        raise ValueError(
            f"{line.where}: expected {len(COLUMNS)} columns ({' '.join(COLUMNS)}), "
            f"found {len(fields)} in {excerpt(line.text)}"
        )
    latest, earliest = EPOCH_2100_S * units_per_s, EPOCH_2001_S * units_per_s
    number(line.where, epoch, fields[0], latest, smallest=earliest)
    number(line.where, "latitude", fields[2], 90, smallest=-90)
    number(line.where, "longitude", fields[3], 180, smallest=-180)
    return _LogRow(
        number(line.where, "uptime_ms", fields[1], 1e13),
        number(line.where, "bytes", fields[4], 1e15),
        number(line.where, "interval_ms", fields[5], MAX_LENGTH_S * 1000, smallest=1),
    )
