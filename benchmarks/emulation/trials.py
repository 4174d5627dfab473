"""The federations that are run: some to calibrate on, others to hold the simulation against.

All fine-tune MiniLM on texts of the bundled data set. Slowdowns are such that all devices of a
fleet, one after the other on one processor, are done before the quickest of them should be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.calibrated import calibrated_text
from devices.data import load_dataset
from devices.profile import DeviceProfile, StepRates
from simulator.config import RunConfig
from simulator.experiment import read_experiment

Section = Mapping[str, Any]
MAX_LENGTH = 32
NUM_TRAIN, NUM_TEST = 480, 16
TEXTS_A_TEXT = 8
"""Glosses put end to end: every text fills a batch to its full length, as on a simulated device."""
PROFILES, OUTAGES, BUSY = "profiles.toml", "outages.csv", "busy.csv"


@dataclass(frozen=True)
class Device:
    """One device: this machine slowed down, or one of the catalog, by its name."""

    kind: float | str
    link: Any
    memory_mb: float = 200.0
    latency_s: float = 0.02
    speed: Any = 1.0

    @property
    def slowdown(self) -> float | None:
        """As in an ``Enrolment``."""
        return None if isinstance(self.kind, str) else self.kind


@dataclass(frozen=True)
class Trial:
    """A federation, and what it is meant to show."""

    name: str
    strategy: Section
    devices: tuple[Device, ...]
    seed: int
    batch_size: int = 5
    steps: int = 3
    rounds: int = 3
    pacing: Section | None = None  # synchronous, all devices, unless given
    network: Section | None = None

    @property
    def slowdowns(self) -> Sequence[float | None]:
        return [device.slowdown for device in self.devices]


@dataclass(frozen=True)
class Files:
    """What the configs name, in one folder."""

    folder: Path

    def write(self) -> None:
        """Texts and traces."""
        _write_texts(self.folder)
        _write_steps(self.folder / OUTAGES, "downlink_mbps,uplink_mbps", _OUTAGES)
        _write_steps(self.folder / BUSY, "speed_share", _BUSY)

    def write_profiles(self, host: DeviceProfile, trials: Sequence[Trial]) -> None:
        """This machine at every slowdown that a trial asks for."""
        factors = {d.kind for trial in trials for d in trial.devices if not isinstance(d.kind, str)}
        text = "\n".join(calibrated_text(slowed(host, factor)) for factor in sorted(factors))
        (self.folder / PROFILES).write_text(text, "utf-8")

    def config(self, trial: Trial, message_s: float = 0.0) -> RunConfig:
        """The trial's config, with so much more latency than the trial says."""
        pacing = {"kind": "synchronous", "cohort": len(trial.devices)}
        content = {
            "name": "emulation",
            "label": "emulated",
            "seed": trial.seed,
            "task": {"data": str(self.folder), "max_length": MAX_LENGTH},
            "shards": {"kind": "iid"},
            "local": {"batch_size": trial.batch_size, "steps": trial.steps},
            "training": {"dtype": "fp32", "compute": "cpu"},
            "fleet": {"devices": [self._group(device, message_s) for device in trial.devices]},
            "network": trial.network or {},
            "pacing": trial.pacing or pacing,
            "evaluation": {"every": 1_000_000, "examples": NUM_TEST},
            "stop": {"rounds": trial.rounds},
            "strategy": trial.strategy,
        }
        return read_experiment(content, (), Path(trial.name))[0]

    def _group(self, device: Device, message_s: float) -> Section:
        own = isinstance(device.kind, str)
        profile = device.kind if own else f"{self.folder / PROFILES}:{name_of(float(device.kind))}"
        return {
            "profile": profile,
            "link": self._inside(device.link),
            "latency": device.latency_s + message_s,
            "speed": self._inside(device.speed),
            "memory_bytes": round(device.memory_mb * 1e6),
        }

    def _inside(self, source: Any) -> Any:
        return str(self.folder / source) if source in (OUTAGES, BUSY) else source


def name_of(factor: float) -> str:
    """Of the profile of this machine at so much of a slowdown."""
    return f"host-{factor:g}x"


def slowed(host: DeviceProfile, factor: float) -> DeviceProfile:
    """The same machine, every part of a step ``factor`` times as long."""
    assert host.measured
    rates = {bits: _slowed(found, factor) for bits, found in host.measured.items()}
    return replace(host, name=name_of(factor), measured=rates)


def _slowed(rates: StepRates, factor: float) -> StepRates:
    *per_s, overhead_s = rates
    return StepRates._make([*(rate / factor for rate in per_s), overhead_s * factor])


def _write_texts(folder: Path) -> None:
    whole = load_dataset("wordnet-16")
    for split, texts, labels, count in (
        ("train", whole.train_texts, whole.train_labels, NUM_TRAIN),
        ("test", whole.test_texts, whole.test_labels, NUM_TEST),
    ):
        by_label: dict[int, list[str]] = {}
        for text, label in zip(texts, labels.tolist(), strict=True):
            by_label.setdefault(label, []).append(text)
        share = count // len(by_label)
        lines = [
            json.dumps({"text": " ".join(own[k::share][:TEXTS_A_TEXT]), "label": label})
            for label, own in sorted(by_label.items())
            for k in range(share)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")


def _write_steps(path: Path, columns: str, rows: Sequence[tuple[float, ...]]) -> None:
    lines = [f"time_s,{columns}", *(",".join(f"{value:g}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


# Down for 0.7 s of every 2.5, and for 1.2 s of every 7.5.
_OUTAGES = (
    (0.0, 6.0, 4.0), (1.8, 0.0, 0.0), (2.5, 4.0, 2.5), (4.3, 0.0, 0.0), (5.0, 8.0, 5.0),
    (6.3, 0.0, 0.0), (7.5, 6.0, 4.0), (9.3, 0.0, 0.0), (10.0, 5.0, 3.0),
)  # fmt: skip
# What other apps leave of the processor.
_BUSY = ((0.0, 1.0), (1.1, 0.45), (1.9, 0.7), (3.2, 0.3), (4.0, 0.9), (5.5, 0.6), (6.1, 1.0))


def _mbps(down: float, up: float) -> Section:
    return {"mbps": [down, up]}


def _markov(technology: str, scale: float = 1.0) -> Section:
    return {"generator": {"kind": "markov", "technology": technology, "scale": scale}}


FEDLORA = {"kind": "fedlora"}
FEDQUAD = {"kind": "fedquad"}
HAFLQ = {"kind": "haflq", "allocation_scope": "per_device"}

CALIBRATION = (
    Trial(
        "all-blocks",
        FEDLORA,
        (Device(8, _mbps(6, 5)), Device(12, _mbps(9, 3)), Device(16, _mbps(12, 8))),
        seed=101,
        batch_size=7,
    ),
    Trial(
        "one-block-packed",
        {**FEDLORA, "depth": 1, "activation_bits": 4},
        (Device(8, _mbps(8, 2)), Device(10, _mbps(4, 1)), Device(14, _mbps(20, 10))),
        seed=102,
        batch_size=6,
    ),
    Trial(
        "computed-again",
        {**FEDLORA, "depth": 5, "activation_bits": 0},
        (Device(8, _mbps(10, 4)), Device(12, _mbps(5, 5)), Device(18, _mbps(7, 6))),
        seed=103,
        batch_size=4,
        steps=4,
    ),
    Trial(
        "by-memory",
        FEDQUAD,
        (
            Device(8, _mbps(6, 6), memory_mb=101.8),
            Device(10, _mbps(12, 3), memory_mb=110.0),
            Device(16, _mbps(9, 9), memory_mb=103.0),
        ),
        seed=104,
        batch_size=8,
    ),
    Trial(
        "packed-weights",
        HAFLQ,
        (
            Device(8, _mbps(7, 4), memory_mb=72.0),
            Device(12, _mbps(10, 2), memory_mb=88.0),
            Device(18, _mbps(5, 8), memory_mb=97.0),
        ),
        seed=105,
        batch_size=7,
    ),
    Trial(
        "packed-weights-small-batch",
        HAFLQ,
        (
            Device(8, _mbps(15, 4), memory_mb=66.0),
            Device(10, _mbps(8, 3), memory_mb=82.0),
            Device(14, _mbps(6, 6), memory_mb=105.0),
        ),
        seed=106,
        batch_size=4,
        steps=4,
    ),
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
        FEDLORA,
        (
            Device(8, _markov("3g"), latency_s=0.09),
            Device(10, _markov("3g"), latency_s=0.12),
            Device(20, _markov("3g", 2), latency_s=0.06),
        ),
        seed=2,
        batch_size=4,
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
            Device(8, "3g", memory_mb=73.0),
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
            Device(k, _mbps(12, 8), memory_mb=mb) for k, mb in ((8, 75.0), (10, 97.0), (16, 85.0))
        ),
        seed=12,
        network={"server": {"source": "lte-walking-1"}},
    ),
    Trial(
        "asynchronous",
        FEDLORA,
        tuple(Device(k, _markov("lte", 0.2)) for k in (8, 12, 18)),
        seed=13,
        rounds=5,
        pacing={"kind": "fedbuff", "concurrency": 3, "size": 2},
    ),
    Trial(
        "asynchronous, base packed",
        HAFLQ,
        (
            Device(8, "lte-driving", memory_mb=72.0),
            Device(10, "3g", memory_mb=86.0),
            Device(14, "lte-driving", memory_mb=99.0),
            Device(18, "3g", memory_mb=110.0),
        ),
        seed=14,
        rounds=5,
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
        "phones of the catalog",
        HAFLQ,
        (
            Device("phone-snapdragon-730", "lte-walking", memory_mb=80.0),
            Device("phone-snapdragon-665", "lte-driving", memory_mb=72.0),
            Device("phone-exynos-850", "lte-driving", memory_mb=95.0),
        ),
        seed=17,
    ),
)
