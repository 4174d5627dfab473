"""The devices of one experiment: profiles, memory budgets, links and data shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from devices.plan import DeviceId
from devices.profile import DeviceProfile
from traces.bandwidth import BandwidthTrace, Link


@dataclass(frozen=True, eq=False)
class Device:
    """One device of the fleet, as the world knows it. A server sees less (see FleetView)."""

    device_id: DeviceId
    profile: DeviceProfile
    memory_budget_bytes: int  # what other apps leave to training
    link: Link
    examples: npt.NDArray[np.int64]  # (n,): its shard, as indices into the training set


def conditions_hash(fleet: Sequence[Device]) -> str:
    """SHA-256 of everything that every scheduler must meet alike: devices, traces and shards."""
    sha = hashlib.sha256()
    for device in fleet:
        sha.update(repr((device.device_id, device.profile, device.memory_budget_bytes)).encode())
        for trace in (device.link.downlink, device.link.uplink):
            _add_trace(sha, trace)
        sha.update(device.examples.tobytes())
    return sha.hexdigest()


def _add_trace(sha: hashlib._Hash, trace: BandwidthTrace) -> None:
    sha.update(repr(trace.period_s).encode())
    sha.update(trace.time_s.tobytes())
    sha.update(trace.rate_bytes_per_s.tobytes())
