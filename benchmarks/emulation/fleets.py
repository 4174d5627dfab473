"""Lists the federations that are run: some to calibrate on, others to validate the simulation.

All fine-tune MiniLM on texts of the bundled data set. Slowdowns are such that all devices of a
fleet, one after the other on one processor, are done before the quickest of them should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.emulation.trials import BUSY, OUTAGES, Device, Section, Trial


def _mbps(down: float, up: float) -> Section:
    return {"mbps": [down, up]}


def _markov(technology: str, scale: float = 1.0) -> Section:
    return {"generator": {"kind": "markov", "technology": technology, "scale": scale}}


FEDLORA = {"kind": "fedlora"}
FEDQUAD = {"kind": "fedquad"}
HAFLQ = {"kind": "haflq", "allocation_scope": "per_device"}
FEDRA = {"kind": "fedra"}
LAYERSEL = {"kind": "layersel"}
ONE_PACKED = {**FEDLORA, "depth": 1, "activation_bits": 4}
FIVE_AGAIN = {**FEDLORA, "depth": 5, "activation_bits": 0}
TO_4_BITS = {**FEDQUAD, "activation_bits": 4}


def _three(
    factors: Sequence[float], memory_mb: Sequence[float] = (200.0,) * 3
) -> tuple[Device, ...]:
    """Return three devices on links that never change."""
    links = (_mbps(6, 5), _mbps(12, 8), _mbps(9, 4))
    return tuple(map(Device, factors, links, memory_mb))


# The plans of these trials differ as much as possible; batch size and steps are the last fields.
CALIBRATION = tuple(
    replace(Trial(*trial), rounds=2)
    for trial in (
        ("all blocks", FEDLORA, _three((8, 12, 16)), 101, 7, 3),
        ("one block, packed", ONE_PACKED, _three((9, 10, 14)), 102, 6, 3),
        ("computed again", FIVE_AGAIN, _three((8, 12, 18)), 103, 4, 4),
        ("packed by memory", FEDQUAD, _three((8, 10, 16), (99.0, 102.0, 107.0)), 104, 7, 3),
        ("packed to 4 bits", TO_4_BITS, _three((8, 9, 14), (95.8, 96.8, 99.0)), 105, 5, 3),
        ("base packed", HAFLQ, _three((8, 12, 18), (81.0, 88.0, 97.0)), 106, 7, 3),
        ("base packed more", HAFLQ, _three((8, 10, 14), (73.0, 80.0, 105.0)), 107, 4, 4),
        ("compact models", FEDRA, _three((8, 11, 15), (62.0, 76.0, 92.0)), 108, 6, 3),
        ("compact and small", FEDRA, _three((9, 10, 18), (70.0, 84.0, 98.0)), 109, 3, 5),
        ("blocks by norm", LAYERSEL, _three((8, 12, 14), (96.5, 99.0, 102.0)), 110, 5, 3),
    )
)

VALIDATION = (
    Trial(
        "constant links",
        FEDLORA,
        (Device(6, _mbps(5, 4)), Device(14, _mbps(11, 2.5)), Device(10, _mbps(8, 7))),
        seed=1,
    ),
    Trial(
        "drawn 3G",
        {**FEDLORA, "rank": 4},
        (
            Device(8, _markov("3g"), latency_s=0.09),
            Device(10, _markov("3g"), latency_s=0.12),
            Device(20, _markov("3g", 2), latency_s=0.06),
        ),
        seed=2,
        batch_size=4,
        rounds=2,
    ),
    Trial(
        "LTE in a car",
        {**FEDLORA, "depth": 3},
        (
            *(Device(k, "lte-driving", latency_s=0.05) for k in (8, 12, 12)),
            Device(18, "lte-walking"),
        ),
        seed=3,
    ),
    Trial(
        "Wi-Fi, two devices",
        {**FEDLORA, "depth": 2, "activation_bits": 8},
        (Device(4, "wifi", latency_s=0.005), Device(6, "wifi", latency_s=0.005)),
        seed=4,
        steps=5,
    ),
    Trial(
        "memory binds",
        FEDQUAD,
        (
            Device(8, _markov("lte", 0.2), memory_mb=96.5),
            Device(10, _markov("lte", 0.2), memory_mb=104.0),
            Device(12, _markov("lte", 0.2), memory_mb=100.0),
            Device(24, _markov("lte", 0.2), memory_mb=130.0),
        ),
        seed=5,
    ),
    Trial(
        "at the edge of a cell",
        FEDQUAD,
        (
            Device(7, "shannon", memory_mb=96.2, latency_s=0.04),
            Device(12, "shannon", memory_mb=99.0, latency_s=0.04),
            Device(16, "shannon", memory_mb=120.0, latency_s=0.04),
        ),
        seed=6,
        batch_size=4,
        steps=4,
    ),
    Trial(
        "base packed by device",
        HAFLQ,
        (
            Device(8, "3g", memory_mb=81.0),
            Device(10, "3g", memory_mb=90.0),
            Device(16, "lte-driving", memory_mb=79.0),
        ),
        seed=7,
        batch_size=6,
    ),
    Trial(
        "one packed base for five",
        {"kind": "haflq", "mode": "truncation"},
        tuple(Device(k, "lte-driving", memory_mb=80.0 + k) for k in (10, 12, 14, 16, 24)),
        seed=8,
        rounds=2,
    ),
    Trial(
        "outages",
        FEDLORA,
        tuple(Device(k, OUTAGES) for k in (8, 10, 16)),
        seed=9,
    ),
    Trial(
        "outages, memory binds",
        FEDQUAD,
        tuple(
            Device(k, OUTAGES, memory_mb=mb, latency_s=0.2)
            for k, mb in ((8, 97.0), (12, 99.0), (14, 104.0))
        ),
        seed=10,
    ),
    Trial(
        "the server's link shared",
        {**FEDLORA, "depth": 4},
        (
            Device(8, _mbps(2, 1)),
            Device(10, _mbps(8, 6)),
            Device(12, _mbps(20, 10)),
            Device(12, _mbps(20, 10)),
        ),
        seed=11,
        network={"server": {"mbps": [9.0, 5.0]}},
    ),
    Trial(
        "a shared link that changes",
        HAFLQ,
        tuple(
            Device(k, _mbps(12, 8), memory_mb=mb) for k, mb in ((8, 82.0), (10, 97.0), (16, 88.0))
        ),
        seed=12,
        network={"server": {"source": "lte-walking-1"}},
    ),
    Trial(
        "asynchronous",
        FEDLORA,
        tuple(Device(k, _markov("lte", 0.2)) for k in (8, 12, 18)),
        seed=13,
        rounds=4,
        pacing={"kind": "fedbuff", "concurrency": 3, "size": 2},
    ),
    Trial(
        "asynchronous, base packed",
        HAFLQ,
        (
            Device(8, "lte-driving", memory_mb=80.0),
            Device(10, "3g", memory_mb=86.0),
            Device(14, "lte-driving", memory_mb=99.0),
            Device(18, "3g", memory_mb=110.0),
        ),
        seed=14,
        rounds=4,
        pacing={"kind": "fedbuff", "concurrency": 4, "size": 2},
    ),
    Trial(
        "a busy processor",
        {**FEDLORA, "depth": 4, "activation_bits": 8},
        tuple(Device(k, _mbps(9, 5), speed=BUSY) for k in (6, 8, 10)),
        seed=15,
    ),
    Trial(
        "devices of the catalog",
        FEDQUAD,
        (
            Device("raspberry-pi-4-4gb", "fixed", memory_mb=103.0),
            Device("phone-snapdragon-665", "lte-driving", memory_mb=99.0),
            Device("phone-exynos-850", "3g", memory_mb=110.0),
        ),
        seed=16,
    ),
    Trial(
        "slow devices of the catalog",
        HAFLQ,
        (
            Device("raspberry-pi-3b-plus", "lte-walking", memory_mb=80.0),
            Device("phone-snapdragon-665", "lte-driving", memory_mb=80.0),
            Device("phone-exynos-850", "lte-driving", memory_mb=95.0),
        ),
        seed=17,
    ),
)
