"""Says where the rates and times of a link are unlikely, and which other units would explain them.

Nothing is corrected: what a file means is for its reader to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from traces.bandwidth import BandwidthTrace
from traces.importers.own import RATE_UNITS, TIME_UNITS
from traces.importers.result import Recording
from traces.units import BYTES_PER_S_PER_MBPS, DAY_S, HOUR_S


class Plausible(NamedTuple):
    """A plausible range holds the values that recordings have; ``source`` says who states it."""

    least: float
    most: float
    source: str

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most


PLAUSIBLE: Mapping[str, Plausible] = MappingProxyType(
    {
        "rate_mbps": Plausible(
            0.01,
            2000.0,
            "GPRS, the slowest mobile data, carries 0.056 to 0.114 Mbit/s; mmWave 5G on foot up to "
            "2,000 (Narayanan et al., Lumos5G, IMC 2020)",
        ),
        "step_s": Plausible(
            0.01,
            60.0,
            "public recordings step by 0.4 s (Oboe), 1 s (Norway, Ghent, UCC, NYU-METS) or 5 s "
            "(FCC as cooked for Pensieve); packet schedules of mahimahi are summed over 1 s",
        ),
        "length_s": Plausible(
            0.0, DAY_S, "the longest of those recordings lasts 1.8 h (UCC 5G, static)"
        ),
    }
)
"""Ranges of the median rate, the median step and the whole length of a link."""

TYPICAL_MBPS = 10.0
"""Where several units would explain a rate, the one that brings it nearest to this is named."""

_WORDS: Mapping[str, str] = {
    "ms": "milliseconds",
    "kbps": "kbit/s",
    "bps": "bit/s",
    "gbps": "Gbit/s",
    "bytes_per_s": "bytes/s",
}


def unlikely_units(link: Recording) -> tuple[str, ...]:
    """Return a sentence for each direction of a link whose units are likely to be others."""
    traces = {"downlink": link.downlink, "uplink": link.uplink}
    return tuple(_doubts(traces))


def _doubts(traces: Mapping[str, BandwidthTrace | None]) -> Iterator[str]:
    for direction, trace in traces.items():
        if trace is None or not trace.rate_bytes_per_s.any():
            continue
        rates_mbps = trace.rate_bytes_per_s / BYTES_PER_S_PER_MBPS
        rate_mbps = float(np.median(rates_mbps[rates_mbps > 0]))  # outages say nothing of the unit
        step_s = float(np.median(trace.steps.lengths_s)) if len(rates_mbps) > 1 else math.nan
        time, rate = _time_unit(step_s, trace.period_s), _rate_unit(rate_mbps)
        if words := " and ".join(_WORDS[unit] for unit in (time, rate) if unit in _WORDS):
            steps = "" if math.isnan(step_s) else f" in steps of {step_s:.4g} s"
            rate_text = f"{rate_mbps:,.0f}" if rate_mbps >= 1000 else f"{rate_mbps:.4g}"
            yield (
                f"{rate_text} Mbit/s {'up' if direction == 'uplink' else 'down'}{steps} for "
                f"{_length(trace.period_s)}: {words}? If so, import it as csv under the header "
                f"time_{time},{direction}_{rate}"
            )


def _time_unit(step_s: float, length_s: float) -> str:
    """Return the unit in which a step and a length would be plausible: s, unless another is."""
    step, length = PLAUSIBLE["step_s"], PLAUSIBLE["length_s"]
    if math.isnan(step_s):  # a constant rate says nothing of the unit of time
        return "s"
    fitting = [
        unit
        for unit, unit_s in TIME_UNITS.items()
        if step.holds(step_s * unit_s) and length.holds(length_s * unit_s)
    ]
    return fitting[0] if fitting else "s"


def _rate_unit(rate_mbps: float) -> str:
    """Return the unit in which a rate would be plausible: Mbit/s, unless another is."""
    plausible = PLAUSIBLE["rate_mbps"]
    if plausible.holds(rate_mbps):
        return "mbps"
    fitting = [unit for unit, size in RATE_UNITS.items() if plausible.holds(rate_mbps * size)]
    return min(
        fitting,
        key=lambda unit: abs(math.log(rate_mbps * RATE_UNITS[unit] / TYPICAL_MBPS)),
        default="mbps",
    )


def _length(seconds: float) -> str:
    """Return a length in hours, minutes or seconds, whichever it has at least two of."""
    for size_s, unit in ((HOUR_S, "h"), (60.0, "min")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:,.3g} {unit}"
    return f"{seconds:.3g} s"
