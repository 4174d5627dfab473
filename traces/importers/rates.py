"""Imports lists of rates with their units, one line for each second, as iperf prints them.

A line is a number and a unit, separated by a comma, a tab or spaces: ``12.4,Mbits/sec``. Prefixes
of bits are powers of 1000; those of bytes are powers of 1024, as iperf means them. Only the
downlink is known.
"""

from __future__ import annotations

import re
from pathlib import Path

from traces.importers.result import Recording, name_of, steps
from traces.text import excerpt, number, read_lines
from traces.units import MAX_MBPS

_UNIT = re.compile(r"([kmg]?)(bit|bits|byte|bytes|b)(/s|/sec|ps)", re.ASCII | re.IGNORECASE)
_POWERS = ("", "k", "m", "g")


def read(path: Path) -> Recording:
    """Return the downlink in a file, one step a second.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    mbps: list[float] = []
    for line in read_lines(path):
        fields = line.text.replace(",", " ").split()
        unit_mbps = _mbps(fields[1]) if len(fields) == 2 else None
        if unit_mbps is None:
            raise ValueError(
                f"{line.where}: expected a rate and its unit, such as 12.4,Mbits/sec, "
                f"found {excerpt(line.text) if line.text.strip() else 'nothing'}"
            )
        rate = number(line.where, "the rate", fields[0], MAX_MBPS / unit_mbps)
        mbps.append(rate * unit_mbps)
    if not mbps:
        raise ValueError(f"{path}, line 1: expected a rate and its unit, found an empty file")
    trace = steps(f"{path}, lines 1 to {len(mbps)}", [1.0] * len(mbps), mbps)
    return Recording(name_of(path), trace, notes=("each line was taken as one second",))


def _mbps(unit: str) -> float | None:
    """Return the Mbit/s of one unit, None for a text that is no unit of a rate."""
    found = _UNIT.fullmatch(unit)
    if not found:
        return None
    power = _POWERS.index(found[1].lower())
    is_bytes = found[2].lower().startswith("byte") or found[2] == "B"
    return float(8 * 1024**power if is_bytes else 1000**power) / 1e6
