"""Imports tables that nearly have this project's formats: columns by name, in any order.

A time and a downlink (with an uplink where it was measured) make a link, whose first time need not
be 0. Their columns end in a unit: ``time_s`` or ``time_ms``, and ``downlink_mbps`` or one of the
other ``RATE_UNITS``. ``device_id``, ``start_s``, ``end_s`` and ``state`` make availability. Further
columns of a link are named in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from traces import availability
from traces.importers.result import (
    MAX_INSTANT_S,
    MIN_STEP_S,
    Availability,
    Recording,
    name_of,
    steps,
)
from traces.text import Row, Table, excerpt, read_table
from traces.units import MAX_MBPS

TIME_UNITS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3}
"""Seconds of each unit that a column of times may end in."""
RATE_UNITS: Mapping[str, float] = {
    "mbps": 1.0,
    "kbps": 1e-3,
    "bps": 1e-6,
    "gbps": 1e3,
    "bytes_per_s": 8e-6,
}
"""Mbit/s of each unit that a column of rates may end in."""


def read_csv(path: Path) -> Recording | Availability:
    """Return the link or the availability in a CSV file.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    return from_table(path, read_table(path))


def from_table(path: Path, table: Table) -> Recording | Availability:
    """Return the link or the availability in a table that was read from ``path``."""
    if "device_id" in table.columns:
        return Availability(name_of(path), availability.availability_of(table))
    time = _column(table, "time", TIME_UNITS)
    downlink = _column(table, "downlink", RATE_UNITS)
    uplink = _column(table, "uplink", RATE_UNITS)
    table.require([time, downlink])
    if not table.rows:
        raise ValueError(f"{table.header_where}: expected at least one row below, found none")
    durations = _durations(table.rows, time, TIME_UNITS[time.removeprefix("time_")])
    where = f"{path}, {len(table.rows)} rows"
    down = steps(f"{where}: {downlink}", durations, _rates(table.rows, downlink))
    notes = _left_out(table, (time, downlink, uplink))
    if not any(row.fields.get(uplink) for row in table.rows):
        return Recording(name_of(path), down, notes=notes)
    up = steps(f"{where}: {uplink}", durations, _rates(table.rows, uplink))
    return Recording(name_of(path), down, up, notes)


def _column(table: Table, quantity: str, units: Mapping[str, float]) -> str:
    """Return the name of a table's column of a quantity, in the first of ``units`` if it has none.

    Raises ValueError where the table has the quantity in two units.
    """
    found = [f"{quantity}_{unit}" for unit in units if f"{quantity}_{unit}" in table.columns]
    if len(found) > 1:
        raise ValueError(
            f"{table.header_where}: expected one column of the {quantity}, found "
            f"{' and '.join(found)}"
        )
    return found[0] if found else f"{quantity}_{next(iter(units))}"


def _left_out(table: Table, used: Sequence[str]) -> tuple[str, ...]:
    others = [column for column in table.columns if column not in used]
    return (f"columns left out: {excerpt(', '.join(others))}",) if others else ()


def _rates(rows: Sequence[Row], column: str) -> list[float]:
    """Return (n,) rates in Mbit/s from a column whose name ends in its unit."""
    unit_mbps = RATE_UNITS[column.split("_", 1)[1]]
    return [row.number(column, MAX_MBPS / unit_mbps) * unit_mbps for row in rows]


def _durations(rows: Sequence[Row], column: str, unit_s: float) -> list[float]:
    """Return (n,) seconds from each row to the next; the last lasts as long as that before it."""
    durations: list[float] = []
    before_s = 0.0
    for n, row in enumerate(rows):
        at_s = row.number(column, MAX_INSTANT_S / unit_s) * unit_s
        # The difference of two floats may fall short of a millisecond by its rounding.
        if n and at_s - before_s < 0.999 * MIN_STEP_S:
            raise ValueError(
                f"{row.where}: {column} must rise by at least 1 ms, "
                f"found {at_s:.12g} s after {before_s:.12g} s"
            )
        if n:
            durations.append(at_s - before_s)
        before_s = at_s
    return [*durations, durations[-1] if durations else 1.0]
