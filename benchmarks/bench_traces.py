"""Measures transfer queries per CPU second, and the time to set up a fleet of a million devices.

python benchmarks/bench_traces.py [devices]

A transfer of about a minute is asked for on an hour-long trace of 1 Hz, from instants in the first
hour and from instants a thousand and a million hours later: the cost must not grow with the loops.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import numpy as np

from simulator.config.schema import RunConfig, read_section
from simulator.engine.presence import Presence
from simulator.world.build import build_world
from traces.bandwidth import BandwidthTrace

HOUR_S = 3600
NUM_QUERIES = 200_000
CONFIG: dict[str, Any] = {
    "name": "bench",
    "label": "bench",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "shards": {"kind": "drawn", "examples": 20},
    "pacing": {"kind": "synchronous", "cohort": 10},
    "stop": {"rounds": 1},
    "strategy": {"kind": "fedlora"},
}


def queries(after_hours: int) -> None:
    """Time transfers of about a minute from instants in the hour after so many."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(13.0, 1.0, HOUR_S) * (rng.random(HOUR_S) > 0.02)  # some outages
    trace = BandwidthTrace(np.arange(float(HOUR_S)), rates, float(HOUR_S))
    starts_s = (HOUR_S * (after_hours + rng.random(NUM_QUERIES))).tolist()
    size_bytes = 60 * trace.mean_bytes_per_s
    trace.transfer_s(size_bytes, 0.0)  # computes the cached sums of the trace
    began = time.process_time()
    for start_s in starts_s:
        trace.transfer_s(size_bytes, start_s)
    taken_s = time.process_time() - began
    print(f"transfers from hour {after_hours:>9,}: {NUM_QUERIES / taken_s:>9,.0f} a CPU second")


def fleet(num_devices: int, what: str, **met: Any) -> None:
    """Time the world of a fleet, who is there at the start, and one device."""
    group = {"profile": "raspberry-pi-4-2gb", "link": "wifi", "count": num_devices, **met}
    config = read_section(RunConfig, {**CONFIG, "fleet": {"devices": [group]}})
    began, before = time.process_time(), _peak_mb()
    world = build_world(config, "bench")
    built_s = time.process_time() - began
    presence = Presence(world.fleet, world.faults)
    num_there = int(presence.present(0.0).sum())
    _ = world.fleet[num_devices // 2]
    print(
        f"{num_devices:,} devices, {what}: world in {built_s:.1f} s, {num_there:,} there after "
        f"{time.process_time() - began - built_s:.1f} s more, peak memory {before:,.0f} -> "
        f"{_peak_mb():,.0f} MB"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(num_devices: int = 1_000_000) -> None:
    """Time queries, then fleets."""
    for after_hours in (0, 1_000, 1_000_000):
        queries(after_hours)
    fleet(num_devices, "always there")
    diurnal = {"generator": {"kind": "diurnal"}, "variants": 64, "start": "random"}
    fleet(num_devices // 10, "there by the time of day", availability=diurnal)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
