"""Checks what the columns of a run's tables hold, once, as they are read.

The rules are those of the records that a run writes (``simulator.log.records``): a table of another
hand that breaks them is refused as a whole, since every figure and metric trusts its columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from devices.tasks.registry import METRICS
from simulator.config.schema import MAX_ROUNDS
from simulator.log.records import ClientRecord, DeviceRecord, Outcome, RoundRecord

RECORDS: Mapping[str, type] = {
    "devices": DeviceRecord, "rounds": RoundRecord, "clients": ClientRecord,
}  # fmt: skip
METRIC = "metric"
"""The kind of a column that a task adds: any number, or NaN where nothing was measured."""
OF_DEVICES = ("expected_", "own_")
"""The prefixes of the columns of devices that hold a metric."""
UNKNOWN = ("train_loss", "battery_share")
"""Other columns that are NaN where a number is not known."""

MAX_CELLS = 500_000_000
"""Most rows times columns that are read of a table; as numbers they take 4 GB."""
MAX_TEXT = 1000
"""Longest text; a small file may repeat a long one many times."""
KEYS = {"devices": "device_id", "rounds": "round"}
"""The column of each table that tells its rows apart, in the order in which they are written."""
OUTCOMES = get_args(Outcome)
LARGEST, LARGEST_S = 1e30, 1e12
"""Largest number of a column, and largest instant or length of time (30,000 years)."""
ROUNDING = 1e-6
"""The rounding error by which a metric may exceed its range, such as a correlation of 1."""
ROUNDS = ("round", "staleness")
"""Columns that count rounds, of which one may be open when a run ends."""
ABOVE_ZERO = ("memory_budget_bytes",)


def read_columns(file: Path, table: str, names: list[str]) -> pa.Table:
    """Return these columns of a table, as many rows as the file says.

    The size is checked before anything is read. Raises ValueError that says which column breaks
    which rule, and OSError or ArrowException where the file is damaged.
    """
    schema = pq.read_schema(file)
    check_types(table, schema)
    texts = [name for name in names if _is_text(schema.field(name).type)]
    # A run's tables are small: starting more threads would take longer than reading in one.
    with pq.ParquetFile(file, pre_buffer=False, read_dictionary=texts) as parquet:
        num_rows = parquet.metadata.num_rows
        if num_rows * max(len(names), 1) > MAX_CELLS:
            raise ValueError(
                f"must have at most {MAX_CELLS:,} rows times columns, got {num_rows:,} rows of "
                f"{len(names)} columns; read fewer columns"
            )
        stored = parquet.read(names, use_threads=False)
    for place, name in enumerate(stored.column_names):
        if name in texts:
            stored = stored.set_column(place, name, _short_texts(name, stored.column(name)))
    stored.validate(full=True)  # a text may hold bytes that are no UTF-8
    for name, kind in _kinds(table, stored.column_names).items():
        _check_values(name, kind, stored.column(name))
    if table in KEYS:
        _check_keys(table, stored)
    return stored


def check_types(table: str, schema: pa.Schema) -> None:
    """Raise ValueError where a column stands twice or is not of the type that its record has."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ValueError(f"each column must stand once, got {', '.join(twice):.100} again")
    for name, kind in _kinds(table, schema.names).items():
        found = schema.field(name).type
        is_whole = pa.types.is_integer(found)
        is_number = is_whole or pa.types.is_floating(found)
        is_right = {"int": is_whole, "float": is_number, METRIC: is_number}
        if not is_right.get(kind, _is_text(found)):
            wanted = {"int": "whole numbers", "float": "numbers", METRIC: "numbers"}
            raise ValueError(f"{name} must hold {wanted.get(kind, 'texts')}, got {found}")


def _kinds(table: str, names: Iterable[str]) -> dict[str, str]:
    """Return the type of each column that is checked, as its record names it.

    Of rounds, each column that is not in the record is a metric of the task, and of devices each
    that says what the end of the run told of one.
    """
    known = {field.name: str(field.type) for field in fields(RECORDS[table])}
    has_metrics = known.pop("metrics", None) is not None
    return {
        name: known.get(name, METRIC)
        for name in names
        if name in known or has_metrics or name.startswith(OF_DEVICES)
    }


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _short_texts(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a dictionary-encoded column as plain texts. Raises ValueError for too long ones."""
    for chunk in column.chunks:
        longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
        if longest > MAX_TEXT:
            raise ValueError(f"{name} must hold texts of at most {MAX_TEXT} bytes, got {longest}")
    return column.cast(pa.string())


def _check_values(name: str, kind: str, column: pa.ChunkedArray) -> None:
    """Raise ValueError where a value is missing, or is none that a run can have written."""
    is_number = kind in ("int", "float", METRIC)
    missing = column.null_count  # counted here, since pandas would turn an empty cell into NaN
    if is_number:
        values = column.to_numpy()
        numbers = values[~np.isnan(values)]
        missing = len(values) - len(numbers)
    if missing and kind != METRIC and name not in UNKNOWN:
        raise ValueError(f"{name} must have a value in every row, {missing} have none")
    if kind == METRIC and len(numbers):
        low, high = float(numbers.min()), float(numbers.max())
        if np.isinf([low, high]).any():
            raise ValueError(f"{name} must be finite or have no value, got {low:g} to {high:g}")
        least, most = _possible(name)
        if not least - ROUNDING <= low <= high <= most + ROUNDING:
            raise ValueError(f"{name} must lie in [{least:g}, {most:g}], got {low:g} to {high:g}")
    elif is_number and len(numbers):
        largest = LARGEST_S if name.endswith("_s") else LARGEST
        if name in ROUNDS:
            largest = MAX_ROUNDS + 1
        low, high = float(numbers.min()), float(numbers.max())
        if not 0 <= low <= high <= largest:
            raise ValueError(f"{name} must lie in [0, {largest:g}], got {low:g} to {high:g}")
        if name in ABOVE_ZERO and low == 0:
            raise ValueError(f"{name} must be above 0, got 0")
    if name == "outcome" and (odd := set(pc.unique(column).to_pylist()) - set(OUTCOMES)):
        raise ValueError(f"{name} must be one of {', '.join(OUTCOMES)}, got {min(odd)!r:.100}")


def _possible(name: str) -> tuple[float, float]:
    """Return the least and the most that a column of a metric can hold; any number if unknown."""
    for beginning in OF_DEVICES:
        name = name.removeprefix(beginning)
    return METRICS[name].possible if name in METRICS else (-math.inf, math.inf)


def _check_keys(table: str, stored: pa.Table) -> None:
    """Raise ValueError where there is no row, or where the rows do not rise by their key."""
    name = KEYS[table]
    if not stored.num_rows:
        raise ValueError("must have at least one row")
    if name in stored.column_names:
        values = stored.column(name).to_numpy()
        if (values[1:] <= values[:-1]).any():
            raise ValueError(f"{name} must rise from row to row")
