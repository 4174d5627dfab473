"""Reads the devices of a fleet from a CSV with one row a device.

The column ``device_id`` must be there. Every other column may be missing, and an empty field is not
known: ``profile``, ``link``, ``availability`` (names as in a config); ``speed`` (a factor on the
profile's compute speed), ``memory_bytes``, ``memory_share``, ``uplink_scale``, ``downlink_mbps``
and ``uplink_mbps``. Further columns are not used, so the device table of an import is such a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.arrays import FloatArray
from traces.availability import device_id
from traces.located import located
from traces.text import Row, excerpt, read_table
from traces.units import BYTES_PER_S_PER_MBPS, MAX_MBPS

NAMES = ("profile", "link", "availability")
LARGEST = {
    "speed": 1e6,
    "memory_bytes": 1e15,
    "memory_share": 1.0,
    "uplink_scale": 1e6,
    "downlink_mbps": MAX_MBPS,
    "uplink_mbps": MAX_MBPS,
}


@dataclass(frozen=True, eq=False)
class DeviceColumns:
    """Device columns hold the devices of a table in columns of N entries each.

    A text that is not known is empty, and a number that is not known is NaN.
    """

    device_id: tuple[str, ...]
    profile: tuple[str, ...]
    link: tuple[str, ...]
    availability: tuple[str, ...]
    speed: FloatArray  # (N,), a factor on the profile's compute speed
    memory_bytes: FloatArray
    memory_share: FloatArray  # share of the memory that training may use, in (0, 1]
    uplink_scale: FloatArray  # uplink as a multiple of a downlink that was measured alone
    downlink_bytes_per_s: FloatArray
    uplink_bytes_per_s: FloatArray

    def __len__(self) -> int:
        return len(self.device_id)


def read_device_columns(path: str | Path) -> DeviceColumns:
    """Return the devices in a CSV file.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    table = read_table(located(path))
    table.require(["device_id"])
    if not table.rows:
        raise ValueError(f"{table.header_where}: expected at least one device below, found none")
    known = ("device_id", *NAMES, *LARGEST)
    if not set(table.columns) & set(known[1:]):
        raise ValueError(
            f"{table.header_where}: expected at least one column of {', '.join(known[1:])}, "
            f"found {excerpt(','.join(table.columns))}"
        )
    names = {column: _names(table.rows, column) for column in NAMES}
    numbers = {column: _numbers(table.rows, column) for column in LARGEST}
    return DeviceColumns(
        _ids(table.rows),
        **names,
        speed=numbers["speed"],
        memory_bytes=numbers["memory_bytes"],
        memory_share=numbers["memory_share"],
        uplink_scale=numbers["uplink_scale"],
        downlink_bytes_per_s=numbers["downlink_mbps"] * BYTES_PER_S_PER_MBPS,
        uplink_bytes_per_s=numbers["uplink_mbps"] * BYTES_PER_S_PER_MBPS,
    )


def _ids(rows: Sequence[Row]) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for row in rows:
        name = device_id(row.where, row.fields["device_id"])
        if name in seen:
            raise ValueError(
                f"{row.where}: device_id must differ from every other, found {excerpt(name)} "
                f"again after {seen[name]}"
            )
        seen[name] = row.where
    return tuple(seen)


def _names(rows: Sequence[Row], column: str) -> tuple[str, ...]:
    if rows and column not in rows[0].fields:
        return ("",) * len(rows)
    return tuple(row.fields[column] for row in rows)


def _numbers(rows: Sequence[Row], column: str) -> FloatArray:
    """Return (N,) numbers of a column, NaN where it is empty."""
    if rows and column not in rows[0].fields:
        return np.full(len(rows), math.nan)
    largest = LARGEST[column]
    return np.array([_number(row, column, largest) for row in rows])


def _number(row: Row, column: str, largest: float) -> float:
    if not row.fields[column]:
        return math.nan
    value = row.number(column, largest)
    if value == 0:
        raise ValueError(f"{row.where}: {column} must be above 0, found 0")
    return value
