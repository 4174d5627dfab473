"""Imports mahimahi packet schedules: the millisecond of each packet that a link could deliver.

A line is one packet of 1500 bytes. ``NAME.down`` and ``NAME.up`` are the two directions of one
recording, of which the longer is cut to the length of the shorter. A file of any other name is a
downlink alone. A file repeats after its last timestamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from traces.arrays import FloatArray, IntArray
from traces.bandwidth import BandwidthTrace
from traces.importers.result import MAX_LENGTH_S, Recording, steps
from traces.text import read_lines, whole_number

PACKET_BITS = 1500 * 8
WINDOW_MS = 1000
"""Milliseconds over which packets are counted to give one rate."""


def read(paths: Sequence[Path]) -> list[Recording]:
    """Return one recording for each downlink among the files.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    given = list(dict.fromkeys(paths))
    recordings = []
    for path in given:
        if path.suffix == ".up":
            if path.with_suffix(".down") not in given:
                raise ValueError(
                    f"{path}: expected the downlink {path.with_suffix('.down').name} beside the "
                    f"uplink, found it not among the files given"
                )
        elif path.suffix == ".down" and path.with_suffix(".up") in given:
            recordings.append(_both(path, path.with_suffix(".up")))
        else:
            stamps = _stamps(path)
            recordings.append(Recording(_name(path), _trace(path, stamps, int(stamps[-1]))))
    return recordings


def _name(path: Path) -> str:
    return path.stem if path.suffix in (".down", ".up", ".pps") else path.name


def _both(down: Path, up: Path) -> Recording:
    down_ms, up_ms = _stamps(down), _stamps(up)
    period_ms = int(min(down_ms[-1], up_ms[-1]))
    notes: tuple[str, ...] = ()
    if down_ms[-1] != up_ms[-1]:
        notes = (
            f"down ends at {down_ms[-1] / 1000:g} s and up at {up_ms[-1] / 1000:g} s: "
            f"both cut to {period_ms / 1000:g} s",
        )
    traces = _trace(down, down_ms, period_ms), _trace(up, up_ms, period_ms)
    return Recording(_name(down), *traces, notes=notes)


def _stamps(path: Path) -> IntArray:
    """Return (n,) milliseconds that never decrease and end above 0."""
    stamps: list[int] = []
    lines = read_lines(path)
    for line in lines:
        stamp = whole_number(line.where, "the time in ms", line.text.strip(), MAX_LENGTH_S * 1000)
        if stamps and stamp < stamps[-1]:
            raise ValueError(
                f"{line.where}: milliseconds must never decrease, found {stamp} after {stamps[-1]}"
            )
        stamps.append(stamp)
    if not stamps or stamps[-1] == 0:
        raise ValueError(
            f"{path}, line {max(len(lines), 1)}: expected milliseconds that end above 0, "
            f"found {'0' if stamps else 'an empty file'}"
        )
    return np.array(stamps, dtype=np.int64)


def _trace(path: Path, stamps: IntArray, period_ms: int) -> BandwidthTrace:
    """Return the trace of the mean rate in each whole second, and in the rest after the last.

    A packet at the very end of the period belongs to its last millisecond.
    """
    kept = np.minimum(stamps[stamps <= period_ms], period_ms - 1)
    windows, packets = np.unique(kept // WINDOW_MS, return_counts=True)
    # Steps begin only where the rate may change, so that a long outage is one step.
    starts = np.union1d(np.concatenate([windows, windows + 1]) * WINDOW_MS, [0])
    starts = starts[starts < period_ms]
    duration_s: FloatArray = np.diff(np.append(starts, period_ms)) / 1000
    bits = np.zeros(len(starts))
    bits[np.searchsorted(starts, windows * WINDOW_MS)] = packets * PACKET_BITS
    mbps: FloatArray = bits / duration_s / 1e6
    return steps(f"{path}, lines 1 to {len(stamps)}", duration_s.tolist(), mbps.tolist())
