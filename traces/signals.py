"""Reads the step traces of latency, speed, free memory and battery level from CSV files.

A file has the columns ``time_s`` and that of its signal, and one row per change. A value holds
from its row's time to the next row's, and the last one as long as the step before it; then the
trace repeats. A file of one row is a value that never changes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.availability import COLUMNS, AvailabilityTrace
from traces.catalog import availability
from traces.located import located, not_there
from traces.steps import StepTrace
from traces.text import Row, read_table
from traces.units import HOUR_S, MAX_TIME_S


class Signal(NamedTuple):
    """A signal is a quantity that a run can replay from a file."""

    column: str  # the column of the file that holds the quantity
    largest: float  # the largest value that makes sense


LATENCY = Signal("latency_s", HOUR_S)
SPEED = Signal("speed_share", 10.0)
FREE_MEMORY = Signal("free_memory_share", 10.0)
BATTERY_LEVEL = Signal("battery_share", 1.0)


def step_pool(source: str | float, signal: Signal) -> tuple[StepTrace, ...]:
    """Return the traces of a signal that a config names by ``source``.

    A number is one constant trace, a CSV file one trace, and a folder those of its CSV files in
    order of their names. Raises ValueError that names the file, the line, what was found and what
    is expected.
    """
    if isinstance(source, int | float):
        if not 0 <= source <= signal.largest:
            raise ValueError(f"{signal.column} must be in [0, {signal.largest:g}], got {source:g}")
        return (StepTrace.constant(source),)
    return tuple(read_steps(file, signal) for file in _files(source, signal.column))


def availability_pool(source: str) -> tuple[AvailabilityTrace, ...]:
    """Return the traces of the devices that a config names by ``source``.

    ``source`` is an availability CSV, a folder of them, or the TOML file of a fitted generator.
    Device tables in a folder are skipped, since an import may write one beside the availability.
    Raises ValueError that names the file and what is wrong.
    """
    files = [located(source)] if source.endswith(".toml") else _files(source, ",".join(COLUMNS))
    if os.path.isdir(located(source)):
        kept = [file for file in files if "start_s" in read_table(file).columns]
        if not kept:
            raise ValueError(
                f"a folder of availability must hold CSV files with the columns "
                f"{','.join(COLUMNS)}, got none in {source}"
            )
        files = kept
    return tuple(trace for file in files for trace in availability(file).values())


def read_steps(path: str | Path, signal: Signal) -> StepTrace:
    """Return the step trace of a signal in a CSV file.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    table = read_table(Path(path))
    table.require(("time_s", signal.column))
    if not table.rows:
        raise ValueError(f"{table.header_where}: expected at least one row below, found none")
    times = [row.number("time_s", MAX_TIME_S) for row in table.rows]
    values = [row.number(signal.column, signal.largest) for row in table.rows]
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
    path = located(source)
    if os.path.isdir(path):  # Path.is_dir would raise for a name that is too long
        files = sorted(path.glob("*.csv"))
        if not files:
            raise ValueError(f"a folder of traces must hold CSV files, got none in {path}")
        return files
    if not os.path.isfile(path):
        raise ValueError(
            f"a trace must be a CSV file with the columns {columns}, or a folder of such files, "
            f"got {source!r}{not_there(source)}"
        )
    return [path]
