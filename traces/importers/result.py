"""What an importer returns, each the content of one CSV file of ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace, availability_text
from traces.bandwidth import BandwidthTrace
from traces.formats import BYTES_PER_S_PER_MBPS, MAX_MBPS, link_text

MIN_STEP_S = 1e-3
# With 12 significant digits a CSV of ours still tells such steps apart after 115 days.
MAX_LENGTH_S = 1e7
_SUFFIXES = {".csv", ".dat", ".json", ".log", ".parquet", ".pickle", ".pkl", ".txt"}


@dataclass(frozen=True, eq=False)
class Recording:
    """One link as it was recorded; ``uplink`` None: that direction was not measured."""

    name: str
    downlink: BandwidthTrace
    uplink: BandwidthTrace | None = None
    notes: tuple[str, ...] = ()  # what was left out or assumed, for the user to read

    @property
    def text(self) -> str:
        """The link's CSV."""
        return link_text(self.downlink, self.uplink)

    def with_uplink(self, scale: float) -> Recording:
        """An uplink that was not measured becomes ``scale`` times the downlink."""
        if self.uplink is not None:
            return self
        return replace(self, uplink=self.downlink.scaled(scale))


@dataclass(frozen=True, eq=False)
class Availability:
    """When each device was online."""

    name: str
    devices: Mapping[str, AvailabilityTrace]
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The availability CSV."""
        return availability_text(self.devices)


@dataclass(frozen=True)
class DeviceTable:
    """One row a device; the first column is ``device_id``, an empty field is not known."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The CSV of the table."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()


Imported = Recording | Availability | DeviceTable


def steps(where: str, duration_s: Sequence[float], mbps: Sequence[float]) -> BandwidthTrace:
    """The trace of rates (n,) in Mbit/s that hold for these durations (n,), one after the other.

    Raises ValueError, which begins with ``where``, on a link that carries nothing, on a rate too
    high or a recording too long to be one.
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
    """What to call the content of a file: its name, without a suffix that says nothing."""
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name
