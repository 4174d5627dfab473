"""Defines the results of an import, each the content of a CSV file in a format of ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace, availability_text
from traces.bandwidth import BandwidthTrace
from traces.formats import link_text
from traces.units import BYTES_PER_S_PER_MBPS, MAX_MBPS

MIN_STEP_S = 1e-3
"""Shortest step of a recording."""
MAX_LENGTH_S = 1e7
"""Longest recording: 12 significant digits in a CSV file tell steps of 1 ms apart until then."""
MAX_INSTANT_S = 1e11
"""Largest instant of a recording, whose first need not be 0: some are counted from 1970."""
_SUFFIXES = {".csv", ".dat", ".json", ".log", ".parquet", ".pickle", ".pkl", ".txt"}


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording is one link as it was measured; without an uplink that was not measured.

    ``notes`` are sentences for the user about what was left out or assumed.
    """

    name: str
    downlink: BandwidthTrace
    uplink: BandwidthTrace | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the CSV of the link."""
        return link_text(self.downlink, self.uplink)

    def with_uplink(self, scale: float) -> Recording:
        """Return the recording with ``scale`` times the downlink for an unmeasured uplink."""
        if self.uplink is not None:
            return self
        return replace(self, uplink=self.downlink.scaled(scale))


@dataclass(frozen=True, eq=False)
class Availability:
    """An import of availability says when each of some devices was online."""

    name: str
    devices: Mapping[str, AvailabilityTrace]
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the CSV of the availability."""
        return availability_text(self.devices)


@dataclass(frozen=True)
class DeviceTable:
    """A device table has one row a device, of which an empty field is not known.

    The first column is ``device_id``.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the CSV of the table."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()


Imported = Recording | Availability | DeviceTable


def steps(where: str, duration_s: Sequence[float], mbps: Sequence[float]) -> BandwidthTrace:
    """Return the trace of rates (n,) in Mbit/s that hold for durations (n,), one after the other.

    Raises ValueError that begins with ``where`` for a link that carries nothing, a rate above
    ``MAX_MBPS`` and a recording longer than ``MAX_LENGTH_S``.
    """
    rates: FloatArray = np.array(mbps, dtype=np.float64)
    edges = np.concatenate([[0.0], np.cumsum(np.array(duration_s, dtype=np.float64))])
    if not rates.any():
        raise ValueError(f"{where}: the rate must be above 0 somewhere, found none that is")
    if not (rates <= MAX_MBPS).all():
        raise ValueError(f"{where}: rates must be at most {MAX_MBPS:g} Mbit/s, found {rates.max()}")
    if edges[-1] > MAX_LENGTH_S:
        raise ValueError(
            f"{where}: a recording must last at most {MAX_LENGTH_S:g} s, found {edges[-1]:.12g} s"
        )
    return BandwidthTrace(edges[:-1], rates * BYTES_PER_S_PER_MBPS, float(edges[-1]))


def name_of(path: Path) -> str:
    """Return the name for the content of a file: that of the file, without a common suffix."""
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def instant(text: str, layout: str) -> datetime | None:
    """Return the date and time that an ASCII text holds in a layout of ``strptime``, else None."""
    try:
        return datetime.strptime(text, layout) if text.isascii() else None
    except ValueError:
        return None
