"""Imports cooked traces, as Pensieve's: lines of a time in seconds and a rate, without a header.

A rate holds from its line to the next, and the last one as long as the step before it.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from traces.importers.result import MAX_INSTANT_S, MIN_STEP_S, Recording, name_of, steps
from traces.text import TextLine, excerpt, number, read_lines
from traces.units import MAX_MBPS


def read_megabits(path: Path) -> Recording:
    """Return the downlink in a file whose rates are in Mbit/s (Pensieve, Lumos5G).

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    return _read(path, mbps_per_unit=1.0)


def read_megabytes(path: Path) -> Recording:
    """Return the downlink in a file whose rates are in MB/s (Puffer), otherwise as Pensieve's."""
    return _read(path, mbps_per_unit=8.0)


def _read(path: Path, *, mbps_per_unit: float) -> Recording:
    time_s: list[float] = []
    mbps: list[float] = []
    num_negative = 0
    for line in read_lines(path):
        at_s, rate = _row(line)
        if rate < 0:
            num_negative += 1
            continue
        # The difference of two floats may fall short of a millisecond by its rounding.
        if time_s and at_s - time_s[-1] < 0.999 * MIN_STEP_S:
            raise ValueError(
                f"{line.where}: the time must rise by at least 1 ms, "
                f"found {at_s:.12g} s after {time_s[-1]:.12g} s"
            )
        time_s.append(at_s)
        mbps.append(rate * mbps_per_unit)
    if not time_s:
        raise ValueError(f"{path}, line 1: expected a time and a rate, found no row with both")
    durations = [later - earlier for earlier, later in itertools.pairwise(time_s)]
    durations.append(durations[-1] if durations else 1.0)
    where = f"{path}, lines 1 to {len(time_s) + num_negative}"
    notes = (f"rows left out for their negative rate: {num_negative}",) if num_negative else ()
    return Recording(name_of(path), steps(where, durations, mbps), notes=notes)


def _row(line: TextLine) -> tuple[float, float]:
    fields = line.text.split()
    if len(fields) != 2:
        raise ValueError(
            f"{line.where}: expected a time in s and a rate, split by a tab or spaces, "
            f"found {excerpt(line.text) if line.text.strip() else 'nothing'}"
        )
    at_s = number(line.where, "the time in s", fields[0], MAX_INSTANT_S)
    return at_s, number(line.where, "the rate", fields[1], MAX_MBPS, smallest=-MAX_MBPS)
