"""Looks up the traces of a fleet's devices at one instant, without making the devices.

Devices share the traces of a few pools, each at an offset of its own. Ten thousand devices would be
ten thousand traces with as many offsets, and most of the time would go into fetching them from
memory. Each function gives the same floats as the device's own trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from devices.fleet.fleet import Assigned, Fleet
from devices.vocabulary.plan import DeviceId
from traces.arrays import FloatArray
from traces.steps import StepTrace


class Track:
    """A track is one kind of trace of all devices: a trace of a pool, and where it begins."""

    def __init__(self, assigned: Assigned[object], pool: Sequence[StepTrace]) -> None:
        self._pool, self._index = pool, assigned.index
        is_steady = len(pool) == 1 and len(pool[0].values) == 1
        self._steady: float | None = float(pool[0].values[0]) if is_steady else None
        begun_s: FloatArray = np.array([trace.offset_s for trace in pool])[assigned.index]
        for device_id in np.flatnonzero(assigned.offset_s).tolist():
            trace = pool[assigned.index.item(device_id)]
            begun_s[device_id] = trace.begun_s(assigned.offset_s.item(device_id))
        self._begun_s = begun_s

    def at(self, device_id: DeviceId, at_s: float) -> float:
        """Return the value of a device's trace at an instant."""
        if self._steady is not None:
            return self._steady
        trace = self._pool[self._index.item(device_id)]
        return trace.at_place(at_s + self._begun_s.item(device_id))

    def time_to(self, device_id: DeviceId, amount: float, start_s: float) -> float:
        """Return the seconds from an instant until a device has got an amount done."""
        if self._steady:
            return amount / self._steady
        trace = self._pool[self._index.item(device_id)]
        return trace.time_from(amount, start_s + self._begun_s.item(device_id))

    def lowest(self, device_id: DeviceId) -> float:
        """Return the least value that a device's trace ever has."""
        if self._steady is not None:
            return self._steady
        return self._pool[self._index.item(device_id)].lowest


class _Speed(Track):
    """This track is one of speeds, where some devices are faster or slower than their profile."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet.speed, fleet.speed.pool)
        self._fleet, self._is_own = fleet, fleet.speed_factor != 1.0

    def time_to(self, device_id: DeviceId, amount: float, start_s: float) -> float:
        if self._is_own.item(device_id):
            return self._fleet[device_id].speed.time_to(amount, start_s)
        return super().time_to(device_id, amount, start_s)


class Tracks:
    """The tracks of a fleet are all that the stages of a plan depend on, beside its presence."""

    def __init__(self, fleet: Fleet) -> None:
        self.memory_budget_bytes = fleet.memory_budget_bytes
        self.downlink = Track(fleet.link, [link.downlink.steps for link in fleet.link.pool])
        self.uplink = Track(fleet.link, [link.uplink.steps for link in fleet.link.pool])
        self.latency = Track(fleet.latency, fleet.latency.pool)
        self.speed = _Speed(fleet)
        self.free_memory = Track(fleet.free_memory, fleet.free_memory.pool)
