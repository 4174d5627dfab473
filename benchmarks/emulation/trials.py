"""Describes federations that are run for real, and makes their configs and the files they name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.datasets.dataset import load_dataset
from devices.fleet.calibrated import calibrated_text
from devices.fleet.profile import DeviceProfile, StepRates
from devices.tasks.classification import Classification
from simulator.config.experiment import read_experiment
from simulator.config.schema import RunConfig

Section = Mapping[str, Any]
MAX_LENGTH = 32
NUM_TRAIN, NUM_TEST = 480, 16
TEXTS_A_TEXT = 8
"""The glosses that are joined to one text, so that every text fills a batch to its full length."""
PROFILES, OUTAGES, BUSY = "profiles.toml", "outages.csv", "busy.csv"


@dataclass(frozen=True)
class Device:
    """A device is this machine slowed down, or one of the catalog, by its name."""

    kind: float | str
    link: Any
    memory_mb: float = 200.0
    latency_s: float = 0.02
    speed: Any = 1.0

    @property
    def slowdown(self) -> float | None:
        """Return the factor by which this machine is slowed down; None for a catalog device."""
        return None if isinstance(self.kind, str) else self.kind


@dataclass(frozen=True)
class Trial:
    """A trial is a federation, with what it is meant to show."""

    name: str
    strategy: Section
    devices: tuple[Device, ...]
    seed: int
    batch_size: int = 5
    steps: int = 3
    rounds: int = 3
    pacing: Section | None = None  # if None, synchronous with all devices
    network: Section | None = None

    @property
    def slowdowns(self) -> Sequence[float | None]:
        return [device.slowdown for device in self.devices]


@dataclass(frozen=True)
class Files:
    """These are the files that the configs name, in one folder."""

    folder: Path

    def write(self) -> None:
        """Write the texts and traces."""
        _write_texts(self.folder)
        _write_steps(self.folder / OUTAGES, "downlink_mbps,uplink_mbps", _OUTAGES)
        _write_steps(self.folder / BUSY, "speed_share", _BUSY)

    def write_profiles(self, host: DeviceProfile, trials: Sequence[Trial]) -> None:
        """Write the profile of this machine at every slowdown that a trial asks for."""
        factors = {d.kind for trial in trials for d in trial.devices if not isinstance(d.kind, str)}
        text = "\n".join(calibrated_text(slowed(host, factor)) for factor in sorted(factors))
        (self.folder / PROFILES).write_text(text, "utf-8")

    def config(self, trial: Trial, message_s: float = 0.0) -> RunConfig:
        """Return the trial's config, with this latency added to that of the trial."""
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
    """Return the name of the profile of this machine slowed down by a factor."""
    return f"host-{factor:g}x"


def slowed(host: DeviceProfile, factor: float) -> DeviceProfile:
    """Return the profile of the same machine with every part of a step ``factor`` times as long."""
    assert host.measured
    rates = {bits: _slowed(found, factor) for bits, found in host.measured.items()}
    return replace(host, name=name_of(factor), measured=rates)


def _slowed(rates: StepRates, factor: float) -> StepRates:
    *per_s, overhead_s = rates
    return StepRates._make([*(rate / factor for rate in per_s), overhead_s * factor])


def _write_texts(folder: Path) -> None:
    whole = Classification.of(load_dataset("wordnet-16", Classification.columns))
    for split, texts, labels, count in (
        ("train", whole.data.train["text"], whole.labels["train"], NUM_TRAIN),
        ("test", whole.data.test["text"], whole.labels["test"], NUM_TEST),
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


# The link is down for 0.7 s of every 2.5 s, and for 1.2 s of every 7.5 s.
_OUTAGES = (
    (0.0, 6.0, 4.0), (1.8, 0.0, 0.0), (2.5, 4.0, 2.5), (4.3, 0.0, 0.0), (5.0, 8.0, 5.0),
    (6.3, 0.0, 0.0), (7.5, 6.0, 4.0), (9.3, 0.0, 0.0), (10.0, 5.0, 3.0),
)  # fmt: skip
# The share of the processor that other apps leave, from each instant on.
_BUSY = ((0.0, 1.0), (1.1, 0.45), (1.9, 0.7), (3.2, 0.3), (4.0, 0.9), (5.5, 0.6), (6.1, 1.0))
