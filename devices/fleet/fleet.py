"""Holds the devices of one experiment: profiles, memory budgets, data shards and traces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Generic, Protocol, TypeVar, overload

import numpy as np

from devices.fleet.battery import MAINS, Battery, BatteryReplay, BatterySpec, Mains
from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import DeviceId
from traces.arrays import BoolArray, FloatArray, IntArray, groups_of
from traces.availability import ALWAYS, AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace

NO_LATENCY = StepTrace.constant(0.0)
FULL_SPEED = StepTrace.constant(1.0)
ALL_FREE = StepTrace.constant(1.0)
ROUNDING = 1e-9
"""A bound on the relative rounding error of a battery's level."""
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Device:
    """A device of the fleet has a profile and its traces. A server sees less (see FleetView)."""

    device_id: DeviceId
    profile: DeviceProfile
    memory_budget_bytes: int  # memory for training that the device reports to the server
    link: Link
    shard: Callable[[], IntArray]  # draws or looks up ``examples``, which only training needs
    latency: StepTrace = NO_LATENCY  # seconds from the request of a transfer to its first byte
    speed: StepTrace = FULL_SPEED  # share of the profile's rates available to training
    free_memory: StepTrace = ALL_FREE  # share of the budget that is free at the time
    availability: AvailabilityTrace = ALWAYS
    battery: Battery = MAINS

    @cached_property
    def examples(self) -> IntArray:
        """Return (n,): the device's shard, as indices into the training set."""
        return self.shard()


class Shards(Protocol):
    """Shards give the training examples of each device; they are made when they are asked for."""

    def __getitem__(self, device_id: DeviceId) -> IntArray:
        """Return (n,) indices of a device's examples into the training set."""
        ...

    def each(self, device_ids: Sequence[int]) -> Iterator[IntArray]:
        """Return the examples of these devices, one device after the other."""
        ...

    def sizes(self) -> IntArray:
        """Return (n,): the number of examples of each device."""
        ...


@dataclass(frozen=True, eq=False)
class Assigned(Generic[T_co]):
    """An assignment gives each of n devices a trace of a pool and an offset into it."""

    pool: Sequence[T_co]
    index: IntArray  # (n,): positions in the pool
    offset_s: FloatArray  # (n,): where instant 0 lies in the trace


@dataclass(frozen=True, eq=False)
class Fleet(Sequence[Device]):
    """A fleet holds n devices as arrays of length n, and makes a Device when it is asked for.

    Devices share traces: each has an index into a pool and an offset.
    """

    profiles: Sequence[DeviceProfile]
    profile_index: IntArray
    memory_budget_bytes: IntArray
    shards: Shards
    link: Assigned[Link]
    latency: Assigned[StepTrace]
    speed: Assigned[StepTrace]
    speed_factor: FloatArray  # how much faster a device is than its profile
    free_memory: Assigned[StepTrace]
    availability: Assigned[AvailabilityTrace]
    battery: Assigned[Battery]
    battery_share: FloatArray  # level over capacity at instant 0
    _made: dict[int, Device] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, devices: Sequence[Device]) -> Fleet:
        """Return the fleet of these devices, of which the k-th must have the id k.

        Raises ValueError for another id.
        """
        for k, device in enumerate(devices):
            if device.device_id != k:
                raise ValueError(
                    f"devices must be listed by id from 0 on, got {device.device_id} at place {k}"
                )
        each, zeros = np.arange(len(devices)), np.zeros(len(devices))
        return cls(
            profiles=[device.profile for device in devices],
            profile_index=each,
            memory_budget_bytes=np.array([d.memory_budget_bytes for d in devices], dtype=np.int64),
            shards=_ListedShards([device.examples for device in devices]),
            link=Assigned([device.link for device in devices], each, zeros),
            latency=Assigned([device.latency for device in devices], each, zeros),
            speed=Assigned([device.speed for device in devices], each, zeros),
            speed_factor=np.ones(len(devices)),
            free_memory=Assigned([device.free_memory for device in devices], each, zeros),
            availability=Assigned([device.availability for device in devices], each, zeros),
            battery=Assigned([device.battery for device in devices], each, zeros),
            battery_share=np.array([_initial_share(device.battery) for device in devices]),
            _made=dict(enumerate(devices)),  # the given objects, whose batteries keep their level
        )

    def __len__(self) -> int:
        return len(self.profile_index)

    @overload
    def __getitem__(self, device_id: int) -> Device: ...
    @overload
    def __getitem__(self, device_id: slice) -> list[Device]: ...
    def __getitem__(self, device_id: int | slice) -> Device | list[Device]:
        if isinstance(device_id, slice):
            return [self[k] for k in range(*device_id.indices(len(self)))]
        made = self._made.get(device_id)
        if made is None:
            if not 0 <= device_id < len(self):
                raise IndexError(f"a device id must be in [0, {len(self)}), got {device_id}")
            made = self._made[device_id] = self._make(device_id)
        return made

    def __iter__(self) -> Iterator[Device]:
        return (self[device_id] for device_id in range(len(self)))

    def profile_of(self, device_id: DeviceId) -> DeviceProfile:
        """Return the profile of a device."""
        return self.profiles[self.profile_index.item(device_id)]

    def link_of(self, device_id: DeviceId) -> Link:
        """Return the link of a device."""
        return _begun(self.link, device_id)

    def speed_of(self, device_id: DeviceId) -> StepTrace:
        """Return the share of its profile's rates that a device trains at, over time."""
        return _scaled(_begun(self.speed, device_id), float(self.speed_factor[device_id]))

    def availability_of(self, device_id: DeviceId) -> AvailabilityTrace:
        """Return when a device is online."""
        return _begun(self.availability, device_id)

    def battery_of(self, device_id: DeviceId) -> Battery:
        """Return the battery of a device as it is at instant 0."""
        if device_id in self._made:
            return self._made[device_id].battery
        return _begun(self.battery, device_id).holding(float(self.battery_share[device_id]))

    @cached_property
    def on_mains(self) -> BoolArray:
        """Return (n,): which devices have no battery."""
        found: BoolArray = np.array([isinstance(one, Mains) for one in self.battery.pool])
        return found[self.battery.index]

    @cached_property
    def charged_until_s(self) -> FloatArray:
        """Return (n,): the instant until which each battery lasts if its device idles, in seconds.

        This is a lower bound, which assumes that the battery is never charged. It is infinite on
        mains, and 0 for a battery whose level is recorded.
        """
        idle_w = np.array([profile.power_w["idle"] for profile in self.profiles])
        found = np.where(self.on_mains, np.inf, 0.0)
        for rows, k in groups_of(self.battery.index):
            spec = self.battery.pool[k]
            if isinstance(spec, BatterySpec):
                stored_j = (self.battery_share[rows] - spec.floor_share) * spec.capacity_j
                with np.errstate(divide="ignore", invalid="ignore"):
                    lasts_s = stored_j / idle_w[self.profile_index[rows]] * (1 - ROUNDING)
                found[rows] = np.where(stored_j > 0, lasts_s, 0.0)
        return found

    @cached_property
    def num_examples(self) -> IntArray:
        """Return (n,): the number of examples of each device."""
        return self.shards.sizes()

    def _make(self, device_id: DeviceId) -> Device:
        return Device(
            device_id=device_id,
            profile=self.profile_of(device_id),
            memory_budget_bytes=int(self.memory_budget_bytes[device_id]),
            link=self.link_of(device_id),
            shard=partial(self.shards.__getitem__, device_id),
            latency=_begun(self.latency, device_id),
            speed=self.speed_of(device_id),
            free_memory=_begun(self.free_memory, device_id),
            availability=self.availability_of(device_id),
            battery=self.battery_of(device_id),
        )

    def conditions_hash(self) -> str:
        """Return the SHA-256 of the devices, their traces and shards.

        Runs with equal hashes meet equal conditions, so their schedulers can be compared.
        """
        sha = hashlib.sha256()
        for profile in self.profiles:
            sha.update(repr(profile).encode())
            if profile.format_time:
                sha.update(repr(sorted(profile.format_time.items())).encode())
        sha.update(self.profile_index.tobytes())
        sha.update(self.memory_budget_bytes.tobytes())
        sha.update(np.ascontiguousarray(self.shards.sizes()).tobytes())
        for examples in self.shards.each(_sampled(len(self))):
            sha.update(examples.tobytes())
        every: tuple[Assigned[object], ...] = (
            self.link, self.latency, self.speed, self.free_memory, self.availability, self.battery
        )  # fmt: skip
        for assigned in every:
            for one in assigned.pool:
                _add(sha, one)
            sha.update(assigned.index.tobytes())
            sha.update(assigned.offset_s.tobytes())
        sha.update(self.battery_share.tobytes() + self.speed_factor.tobytes())
        return sha.hexdigest()


class _ListedShards(list[IntArray]):
    """Listed shards hold the examples of each device in a list."""

    def each(self, device_ids: Sequence[int]) -> Iterator[IntArray]:
        return map(self.__getitem__, device_ids)

    def sizes(self) -> IntArray:
        return np.array([len(examples) for examples in self], dtype=np.int64)


class _Trace(Protocol):
    """A trace is one of any kind that can begin at an offset."""

    def begun_at(self: TraceT, offset_s: float) -> TraceT:
        """Return the trace for a clock that starts ``offset_s`` further into it."""
        ...


TraceT = TypeVar("TraceT", bound=_Trace)


def _begun(assigned: Assigned[TraceT], device_id: DeviceId) -> TraceT:
    trace = assigned.pool[int(assigned.index[device_id])]
    offset_s = float(assigned.offset_s[device_id])
    return trace.begun_at(offset_s) if offset_s else trace


def _initial_share(battery: Battery) -> float:
    return battery.initial_share if isinstance(battery, BatterySpec) else 1.0


def _scaled(speed: StepTrace, factor: float) -> StepTrace:
    return speed if factor == 1.0 else speed.scaled(factor)


def _sampled(count: int) -> Sequence[int]:
    """Return the devices whose shards are hashed: all, or about 10,000 of a larger fleet.

    The shards of the others follow from the same seed.
    """
    return range(0, count, max(1, count // 10_000))


def _add(sha: hashlib._Hash, value: object) -> None:
    match value:
        case Link():
            _add(sha, value.downlink)
            _add(sha, value.uplink)
        case BandwidthTrace():
            sha.update(repr((value.period_s, value.offset_s)).encode())
            sha.update(value.time_s.tobytes() + value.rate_bytes_per_s.tobytes())
        case StepTrace():
            sha.update(repr((value.period_s, value.offset_s)).encode())
            sha.update(value.time_s.tobytes() + value.values.tobytes())
        case AvailabilityTrace():
            sha.update(repr((value.period_s, value.offset_s)).encode())
            sha.update(value.start_s.tobytes() + value.end_s.tobytes())
        case BatterySpec():
            sha.update(repr(value.numbers).encode())
            _add(sha, value.charging)
        case BatteryReplay():
            sha.update(repr(value.floor_share).encode())
            _add(sha, value.level)
        case Mains():
            sha.update(b"mains")
        case _:
            raise TypeError(f"no hash for {type(value).__name__}")
