"""Reads and writes the project's own link format.

A file has the header ``time_s,downlink_mbps,uplink_mbps`` and one row per change of rate. A rate
holds from its row's time to the next row's, and the last one as long as the step before it; then
the link repeats. A file of one row is a link that never changes. An empty ``uplink_mbps`` column
means that the uplink was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.arrays import FloatArray
from traces.bandwidth import BandwidthTrace, Link
from traces.text import excerpt, number, read_text
from traces.units import BYTES_PER_S_PER_MBPS, MAX_MBPS, MAX_TIME_S

COLUMNS = ("time_s", "downlink_mbps", "uplink_mbps")


class _LinkRow(NamedTuple):
    """A link row is one row of a link file; an uplink of None was not measured."""

    time_s: float
    downlink_mbps: float
    uplink_mbps: float | None


def read_link(path: str | Path, *, uplink_scale: float | None = None) -> Link:
    """Return the link in a CSV file, under the name of the file.

    An uplink that was not measured is ``uplink_scale`` times the downlink; a measured one is always
    kept. Raises ValueError that names the file, the line, what was found and what is expected.
    """
    path = Path(path)
    if uplink_scale is not None and not (math.isfinite(uplink_scale) and uplink_scale > 0):
        raise ValueError(f"uplink_scale must be a number above 0, got {uplink_scale}")
    rows = _rows(path)
    time_s = np.array([row.time_s for row in rows])
    downlink = _trace(path, time_s, np.array([row.downlink_mbps for row in rows]), COLUMNS[1])
    uplink_mbps = [row.uplink_mbps for row in rows if row.uplink_mbps is not None]
    if uplink_mbps:
        return Link(path.stem, downlink, _trace(path, time_s, np.array(uplink_mbps), COLUMNS[2]))
    if uplink_scale is None:
        raise ValueError(
            f"{path}, lines 2 to {len(rows) + 1}: uplink_mbps is empty, so the uplink was not "
            f"measured; give uplink_scale to use that multiple of the downlink instead"
        )
    return Link(path.stem, downlink, downlink.scaled(uplink_scale))


def write_link(path: str | Path, link: Link) -> None:
    """Write a link as a CSV file from which ``read_link`` returns the same rates and times.

    Raises ValueError unless both directions repeat after the same time, since one file has one
    time column.
    """
    if link.downlink.period_s != link.uplink.period_s:
        raise ValueError(
            f"both directions must have one period to share a file, got {link.downlink.period_s:g} "
            f"s down and {link.uplink.period_s:g} s up (link {link.name})"
        )
    text = link_text(link.downlink, link.uplink)
    Path(path).write_text(text, encoding="utf-8", newline="\n")


def link_text(downlink: BandwidthTrace, uplink: BandwidthTrace | None) -> str:
    """Return the CSV of two traces of one period; without an uplink its column stays empty."""
    traces = [downlink] if uplink is None else [downlink, uplink]
    time_s = downlink.time_s if uplink is None else np.union1d(downlink.time_s, uplink.time_s)
    last_s = downlink.period_s - time_s[-1]
    if len(time_s) > 1 and not math.isclose(time_s[-1] - time_s[-2], last_s):
        # The last rate lasts as long as the step before it, so an odd last step is halved.
        time_s = np.append(time_s, time_s[-1] + last_s / 2)
    lines = [",".join(COLUMNS)]
    for at_s in time_s.tolist():
        rates = (trace.rate_at(at_s) / BYTES_PER_S_PER_MBPS for trace in traces)
        row = ",".join(f"{value:.12g}" for value in (at_s, *rates))
        lines.append(row if uplink is not None else row + ",")
    return "\n".join(lines) + "\n"


def _rows(path: Path) -> list[_LinkRow]:
    lines = read_text(path).rstrip().split("\n")
    header = lines[0].strip()
    if tuple(name.strip() for name in header.split(",")) != COLUMNS:
        raise ValueError(
            f"{path}, line 1: expected the header {','.join(COLUMNS)}, "
            f"found {excerpt(header) if header else 'nothing'}"
        )
    if len(lines) == 1:
        raise ValueError(f"{path}, line 2: expected at least one row, found the end of the file")
    rows = [_row(f"{path}, line {n}", line) for n, line in enumerate(lines[1:], start=2)]
    _check_order(path, rows)
    return rows


def _row(where: str, line: str) -> _LinkRow:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(COLUMNS):
        raise ValueError(
            f"{where}: expected {len(COLUMNS)} fields ({','.join(COLUMNS)}), "
            f"found {len(fields)} in {excerpt(line)}"
        )
    return _LinkRow(
        number(where, COLUMNS[0], fields[0], MAX_TIME_S),
        number(where, COLUMNS[1], fields[1], MAX_MBPS),
        number(where, COLUMNS[2], fields[2], MAX_MBPS) if fields[2] else None,
    )


def _check_order(path: Path, rows: Sequence[_LinkRow]) -> None:
    if rows[0].time_s != 0:
        raise ValueError(f"{path}, line 2: the first time_s must be 0, found {rows[0].time_s:g}")
    is_measured = rows[0].uplink_mbps is not None
    previous_s = -1.0
    for n, row in enumerate(rows, start=2):
        if row.time_s <= previous_s:
            raise ValueError(
                f"{path}, line {n}: time_s must increase, "
                f"found {row.time_s:.12g} after {previous_s:.12g}"
            )
        if (row.uplink_mbps is not None) != is_measured:
            raise ValueError(
                f"{path}, line {n}: uplink_mbps must be given in every row or in none, "
                f"found it {'missing' if is_measured else 'given'} here, unlike in line 2"
            )
        previous_s = row.time_s


def _trace(path: Path, time_s: FloatArray, mbps: FloatArray, column: str) -> BandwidthTrace:
    if not mbps.any():
        raise ValueError(
            f"{path}, lines 2 to {len(mbps) + 1}: {column} must be above 0 somewhere, "
            f"found a link that never carries anything"
        )
    period_s = 2 * time_s[-1] - time_s[-2] if len(time_s) > 1 else 1.0
    return BandwidthTrace(time_s, mbps * BYTES_PER_S_PER_MBPS, float(period_s))
