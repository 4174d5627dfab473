"""Step traces from files: latency, speed, free memory, battery level, each in its own column.

A file has the header ``time_s,<column>`` and one row per change. A value holds from its row's time
to the next row's, the last one as long as the step before it; then the file repeats. One row alone
is a value that never changes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.availability import COLUMNS, AvailabilityTrace
from traces.catalog import availability
from traces.formats import MAX_TIME_S
from traces.steps import StepTrace
from traces.text import Row, read_table


class Quantity(NamedTuple):
    """What a step trace tells: the column that holds it, and the largest value that makes sense."""

    column: str
    largest: float


LATENCY = Quantity("latency_s", 3600.0)
SPEED = Quantity("speed_share", 10.0)
FREE_MEMORY = Quantity("free_memory_share", 10.0)
BATTERY_LEVEL = Quantity("battery_share", 1.0)


def step_pool(source: str | float, quantity: Quantity) -> tuple[StepTrace, ...]:
    """A constant, the trace of a CSV file, or those of all CSV files of a folder, by name.

    Raises ValueError that names the file, the line, what stands there and what should.
    """
    if isinstance(source, int | float):
        if not 0 <= source <= quantity.largest:
            raise ValueError(
                f"{quantity.column} must be in [0, {quantity.largest:g}], got {source:g}"
            )
        return (StepTrace.constant(source),)
    return tuple(read_steps(file, quantity) for file in _files(source, quantity.column))


def availability_pool(source: str) -> tuple[AvailabilityTrace, ...]:
    """The devices of an availability CSV, of all of a folder in order, or of a fitted generator.

    In a folder, tables of devices are passed over: an import may write one beside the availability.
    """
    files = [Path(source)] if source.endswith(".toml") else _files(source, ",".join(COLUMNS))
    if os.path.isdir(source):
        kept = [file for file in files if "start_s" in read_table(file).columns]
        if not kept:
            raise ValueError(
                f"a folder of availability must hold CSV files with the columns "
                f"{','.join(COLUMNS)}, got none in {source}"
            )
        files = kept
    return tuple(trace for file in files for trace in availability(file).values())


def read_steps(path: str | Path, quantity: Quantity) -> StepTrace:
    """The step trace in a CSV file. Raises ValueError that says where it is wrong."""
    table = read_table(Path(path))
    table.require(("time_s", quantity.column))
    if not table.rows:
        raise ValueError(f"{table.header_where}: expected at least one row below, found none")
    times = [row.number("time_s", MAX_TIME_S) for row in table.rows]
    values = [row.number(quantity.column, quantity.largest) for row in table.rows]
    _check_order(table.rows, times)
    if len(times) == 1:
        return StepTrace.constant(values[0])
    return StepTrace(np.array(times), np.array(values), 2 * times[-1] - times[-2])


def _check_order(rows: tuple[Row, ...], times: list[float]) -> None:
    if times[0] != 0:
        raise ValueError(f"{rows[0].where}: the first time_s must be 0, found {times[0]:g}")
    for row, before_s, time_s in zip(rows[1:], times, times[1:], strict=False):
        if time_s <= before_s:
            raise ValueError(
                f"{row.where}: time_s must increase, found {time_s:.12g} after {before_s:.12g}"
            )


def _files(source: str, columns: str) -> list[Path]:
    path = Path(source)
    if os.path.isdir(path):  # false, where Path.is_dir raises: a name too long
        files = sorted(path.glob("*.csv"))
        if not files:
            raise ValueError(f"a folder of traces must hold CSV files, got none in {path}")
        return files
    if not os.path.isfile(path):
        raise ValueError(
            f"a trace must be a CSV file with the columns {columns}, or a folder of such files, "
            f"got {source!r}"
        )
    return [path]
