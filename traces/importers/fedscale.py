"""Imports FedScale's two pickles: how fast 500,000 devices are, and when 107,749 phones charge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from traces.availability import AvailabilityTrace, device_id
from traces.importers.plain_pickle import load
from traces.importers.relative_speed import with_speed
from traces.importers.result import Availability, DeviceTable, name_of
from traces.text import MAX_ROWS, excerpt, is_number
from traces.units import MAX_MBPS, MAX_TIME_S

CAPACITY_COLUMNS = ("device_id", "inference_s_per_sample", "downlink_mbps", "uplink_mbps")
CAPACITY_KEYS = ("computation", "communication")
BEHAVE_KEYS = ("active", "inactive", "finish_time")
MAX_MS = 1e9
MAX_ID = 10**12


def read_capacity(path: Path) -> DeviceTable:
    """Return the devices of ``client_device_capacity``.

    Each has the milliseconds of inference for one sample, and one rate in kbit/s for both
    directions. Raises ValueError that names the file and client, what was found and what is
    expected.
    """
    rows = []
    for where, name, entry in _entries(path, CAPACITY_KEYS):
        inference_ms = _number(where, "computation", entry["computation"], MAX_MS)
        kbps = _number(where, "communication", entry["communication"], MAX_MBPS * 1000)
        rate = f"{kbps / 1000:.12g}"
        rows.append((name, f"{inference_ms / 1000:.12g}", rate, rate))
    notes = ("inference_s_per_sample: FedScale takes three times as long for training",)
    return with_speed(DeviceTable(name_of(path), CAPACITY_COLUMNS, tuple(rows), notes))


def read_behave(path: Path) -> list[Availability | DeviceTable]:
    """Return when each phone of ``client_behave_trace`` was charging, and a table of their models.

    Raises ValueError that names the file and client, what was found and what is expected.
    """
    devices, models, num_intervals = {}, [], 0
    entries = list(_entries(path, BEHAVE_KEYS))
    # A pickle may name one long list many times, so their number is bounded before any is read.
    for where, _, entry in entries:
        num_intervals += len(entry["active"]) if isinstance(entry["active"], list | tuple) else 0
        if num_intervals > MAX_ROWS:
            raise ValueError(
                f"{where}: expected at most {MAX_ROWS:,} intervals of all clients, found more"
            )
    for where, name, entry in entries:
        devices[name] = _trace(where, entry)
        models.append((name, _model(where, entry.get("model", ""))))
    table = DeviceTable(f"{name_of(path)}-devices", ("device_id", "model"), tuple(models))
    return [Availability(name_of(path), devices), table]


def _entries(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the place, device id and entry of each client; the entry's values are unchecked."""
    value = load(path)
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: expected a dict of clients, found {_kind(value)}")
    for client, entry in value.items():
        where = f"{path}, client {_kind(client)}"
        is_id = isinstance(client, int | str) and not isinstance(client, bool)
        if not is_id or (isinstance(client, int) and not 0 <= client <= MAX_ID):
            raise ValueError(
                f"{where}: a client's id must be an int from 0 to {MAX_ID} or a text, "
                f"found {_kind(client)}"
            )
        if not isinstance(entry, dict) or not all(key in entry for key in keys):
            raise ValueError(
                f"{where}: expected a dict with {', '.join(keys)}, found {_kind(entry)}"
            )
        yield where, device_id(where, str(client)), entry


def _trace(where: str, entry: dict[str, Any]) -> AvailabilityTrace:
    period_s = _number(where, "finish_time", entry["finish_time"], MAX_TIME_S)
    starts, ends = entry["active"], entry["inactive"]
    if not (isinstance(starts, list | tuple) and isinstance(ends, list | tuple)):
        raise ValueError(
            f"{where}: active and inactive must be lists, found {_kind(starts)} and {_kind(ends)}"
        )
    if len(starts) != len(ends):
        raise ValueError(
            f"{where}: active and inactive must be of one length, "
            f"found {len(starts)} and {len(ends)}"
        )
    before_s, intervals = 0.0, []
    for start, end in zip(starts, ends, strict=True):
        start_s = _number(where, "active", start, period_s, smallest=0.0)
        end_s = _number(where, "inactive", end, period_s, smallest=0.0)
        if not before_s <= start_s <= end_s:
            raise ValueError(
                f"{where}: active and inactive must take turns in rising order, "
                f"found {start_s:.12g} to {end_s:.12g} after {before_s:.12g}"
            )
        before_s = end_s
        intervals.append((start_s, end_s))
    return AvailabilityTrace.of(intervals, period_s)


def _number(
    where: str, key: str, value: object, largest: float, *, smallest: float = math.ulp(0.0)
) -> float:
    """Return a number in [smallest, largest], or above 0 where no smallest is given."""
    if not (is_number(value) and smallest <= value <= largest):
        low = "[0" if smallest == 0 else "(0"
        raise ValueError(
            f"{where}: {key} must be a number in {low}, {largest:g}], found {_kind(value)}"
        )
    return float(value)


def _model(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{where}: model must be printable text, found {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """Return a value as an error message quotes it, short whatever it holds."""
    if isinstance(value, dict):
        keys = ", ".join(_kind(key) for key in list(value)[:5])
        return f"a dict of {len(value)} with the keys {keys}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > MAX_ID:
        return f"an int of {value.bit_length()} bits"
    return excerpt(value) if isinstance(value, str) else repr(value)
