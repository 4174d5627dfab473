"""Our own formats from a table that is nearly one: columns by name, in any order, more beside them.

``time_s`` and ``downlink_mbps`` (``uplink_mbps`` where it was measured) make a link, whose first
time need not be 0; ``device_id``, ``start_s``, ``end_s`` and ``state`` make availability.
"""

from __future__ import annotations

from pathlib import Path

from traces import availability
from traces.formats import MAX_MBPS
from traces.importers.result import MIN_STEP_S, Availability, Recording, name_of, steps
from traces.text import Row, Table, read_table

MAX_INSTANT_S = 1e11


def read_csv(path: Path) -> Recording | Availability:
    """The link or the availability in a CSV. Raises ValueError: file, line, found, expected."""
    return from_table(path, read_table(path))


def from_table(path: Path, table: Table) -> Recording | Availability:
    """The link or the availability in a table that was read from ``path``."""
    if "device_id" in table.columns:
        return Availability(name_of(path), availability.availability_of(table))
    table.require(["time_s", "downlink_mbps"])
    if not table.rows:
        raise ValueError(f"{table.header_where}: expected at least one row below, found none")
    durations = _durations(table.rows)
    where = f"{path}, {len(table.rows)} rows"
    down = [row.number("downlink_mbps", MAX_MBPS) for row in table.rows]
    trace = steps(f"{where}: downlink_mbps", durations, down)
    fields = [row.fields.get("uplink_mbps", "") for row in table.rows]
    if not any(fields):
        return Recording(name_of(path), trace)
    up = [row.number("uplink_mbps", MAX_MBPS) for row in table.rows]
    return Recording(name_of(path), trace, steps(f"{where}: uplink_mbps", durations, up))


def _durations(rows: tuple[Row, ...]) -> list[float]:
    """Seconds from each row to the next; the last lasts as long as the step before it."""
    durations: list[float] = []
    before_s = 0.0
    for n, row in enumerate(rows):
        at_s = row.number("time_s", MAX_INSTANT_S)
        # The difference of two floats may fall short of a millisecond by its rounding.
        if n and at_s - before_s < 0.999 * MIN_STEP_S:
            raise ValueError(
                f"{row.where}: time_s must rise by at least 1 ms, "
                f"found {at_s:.12g} after {before_s:.12g}"
            )
        if n:
            durations.append(at_s - before_s)
        before_s = at_s
    return [*durations, durations[-1] if durations else 1.0]
