"""Draws the devices of a run and the traces they meet, from the config and the seed alone.

Every draw is the n-th of a stream with a name of its own, n being the device: one more device, or
one more quantity, moves no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np

from devices import catalog as device_catalog
from devices.battery import MAINS, Battery, BatteryReplay, BatterySpec
from devices.fleet import Assigned, Fleet, IndexArray, Shards
from simulator.config import RunConfig
from simulator.fleet_config import (
    BatteryConfig,
    BatteryLevel,
    Calendar,
    DeviceGroup,
    LinkReplay,
    Replay,
)
from simulator.fleet_groups import Group
from simulator.problems import Problems
from simulator.seeds import stream
from traces import catalog as trace_catalog
from traces.availability import ALWAYS, AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.formats import BYTES_PER_S_PER_MBPS
from traces.signals import (
    BATTERY_LEVEL,
    FREE_MEMORY,
    LATENCY,
    SPEED,
    Quantity,
    availability_pool,
    step_pool,
)
from traces.steps import FloatArray, StepTrace

NEVER = AvailabilityTrace.of([], math.inf)
T = TypeVar("T")


def draw_fleet(
    config: RunConfig, groups: Sequence[Group], shards: Shards, problems: Problems
) -> Fleet:
    """The fleet of this config and seed; what is wrong with it is added to ``problems``."""
    configs = [group.config for group in groups]
    draw = _Draw(config.seed, groups, problems)
    profiles = [
        problems.attempt(group.where, partial(device_catalog.profile, str(group.config.profile)))
        for group in groups
    ]
    memory_bytes = [
        group.memory_bytes or (profile.memory_bytes if profile else 0)
        for group, profile in zip(configs, profiles, strict=True)
    ]
    memory_share = draw.between(
        "memory_share", [g.memory_share or config.fleet.memory_share for g in configs]
    )
    battery: _Quantity[Battery] = _Quantity(
        "battery", partial(_load_batteries, draw), _battery_period, MAINS
    )
    availability = _Quantity(
        "availability", partial(_load_availability, draw), lambda trace: trace.period_s, ALWAYS
    )
    links: _Quantity[Link] = _Quantity(
        "link", partial(_load_links, draw), lambda link: link.downlink.period_s
    )
    return Fleet(
        profiles=[profile for profile in profiles if profile],
        profile_index=draw.members,
        memory_budget_bytes=(memory_share * np.array(memory_bytes)[draw.members]).astype(np.int64),
        shards=shards,
        link=draw.assign(links, [group.link for group in configs]),
        latency=draw.assign(_steps("latency", LATENCY), [group.latency for group in configs]),
        speed=draw.assign(_steps("speed", SPEED), [group.speed for group in configs]),
        speed_factor=_speed_factors(draw, configs),
        free_memory=draw.assign(
            _steps("free_memory", FREE_MEMORY), [group.free_memory for group in configs]
        ),
        availability=draw.assign(availability, [group.availability for group in configs]),
        battery=draw.assign(battery, [_battery_replay(group) for group in configs]),
        battery_share=draw.between("battery_share", [_initial_share(g) for g in configs]),
    )


@dataclass(frozen=True)
class _Quantity(Generic[T]):
    """Something that devices replay traces of."""

    name: str
    load: Callable[[int, Replay], Sequence[T]]  # the pool of a group
    period_s: Callable[[T], float]
    missing: T | None = None  # where a group replays nothing


class _Draw:
    """Draws for all devices at once, group by group."""

    def __init__(self, seed: int, groups: Sequence[Group], problems: Problems) -> None:
        self.seed, self.groups, self.problems = seed, groups, problems
        counts = [group.count for group in groups]
        self.members = np.repeat(np.arange(len(groups)), counts)  # (n,): the group of each device
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()

    def devices(self, group: int) -> IndexArray:
        """The devices of a group."""
        return np.arange(self._starts[group], self._starts[group + 1])

    def uniform(self, *names: str) -> FloatArray:
        """(n,) numbers in [0, 1), the k-th always the same whatever n is."""
        return stream(self.seed, *names).random(len(self.members))

    def between(self, name: str, ranges: Sequence[Sequence[float]]) -> FloatArray:
        """(n,): for each device its own number between the two bounds of its group."""
        low = np.array([bounds[0] for bounds in ranges])[self.members]
        high = np.array([bounds[-1] for bounds in ranges])[self.members]
        between: FloatArray = low + (high - low) * self.uniform(name)
        return between

    def assign(self, quantity: _Quantity[T], replays: Sequence[Replay | None]) -> Assigned[T]:
        """The trace of each device, and where in it the device starts."""
        pools = _Pools[T]()
        index = np.zeros(len(self.members), dtype=np.int64)
        offset_s = np.zeros(len(self.members))
        drawn = self.uniform(quantity.name, "trace")
        started = self.uniform(quantity.name, "start")
        for k, replay in enumerate(replays):
            mine = self.devices(k)
            if replay is None:
                assert quantity.missing is not None
                pool = pools.of("", [quantity.missing].copy)
            else:
                where, key = (
                    f"{self.groups[k].where}.{quantity.name}",
                    self._key(k, quantity.name, replay),
                )
                loaded = partial(quantity.load, k, replay)
                found = self.problems.attempt(where, partial(pools.of, key, loaded))
                if found is None:
                    continue
                pool = found
            picked = (drawn[mine] * pool.size).astype(np.int64)
            if replay and replay.sample == "without_replacement":
                picked = self._each_once(quantity.name, k, replay, pool)
            index[mine] = pool.start + picked
            if replay and replay.start == "random":
                periods_s = pool.periods_s(quantity.period_s)[picked]
                offset_s[mine] = started[mine] * np.where(np.isfinite(periods_s), periods_s, 0.0)
            if replay and replay.at_end == "stop":
                pool.end()
        return Assigned(pools.traces(), index, offset_s)

    def _key(self, k: int, name: str, replay: Replay) -> str:
        """Groups of one key draw from one pool."""
        config = self.groups[k].config
        origin = (replay.model_dump_json(exclude={"start", "sample"}), config.uplink_scale)
        is_own = replay.source is None or name == "battery"
        return repr((origin, self.groups[k].where if is_own else ""))

    def _each_once(self, name: str, k: int, replay: Replay, pool: _Pool[Any]) -> IndexArray:
        count = self.groups[k].count
        order = stream(self.seed, name, "order", pool.key).permutation(pool.size)
        picked: IndexArray = order[pool.num_taken : pool.num_taken + count]
        pool.num_taken += count
        if len(picked) == count:
            return picked
        self.problems.add(
            f"{self.groups[k].where}.{name}: a pool drawn from without replacement must hold a "
            f"trace for each of the {pool.num_taken} devices that draw from it, got {pool.size} in "
            f"{replay.source or 'variants'}; take more traces, fewer devices or "
            f"sample: with_replacement"
        )
        return np.zeros(count, dtype=np.int64)


@dataclass
class _Pool(Generic[T]):
    """The traces that groups of one key draw from; they begin at ``start`` among all traces."""

    key: str
    start: int
    loaded: Sequence[T]
    played: Sequence[T]
    num_taken: int = 0

    @property
    def size(self) -> int:
        return len(self.loaded)

    def periods_s(self, period_s: Callable[[T], float]) -> FloatArray:
        """(size,): the length of each trace, whether it repeats or not."""
        return np.array([period_s(trace) for trace in self.loaded])

    def end(self) -> None:
        """Play the traces once, rather than again and again."""
        self.played = [cast(Any, trace).ended() for trace in self.loaded]


@dataclass
class _Pools(Generic[T]):
    """The pools of all groups, one behind the other; each is loaded once."""

    _by_key: dict[str, _Pool[T]] = field(default_factory=dict)
    _total: int = 0

    def of(self, key: str, load: Callable[[], Sequence[T]]) -> _Pool[T]:
        """The pool of this key."""
        if key not in self._by_key:
            traces = load()
            self._by_key[key] = _Pool(key, self._total, traces, traces)
            self._total += len(traces)
        return self._by_key[key]

    def traces(self) -> list[T]:
        """All traces, as they are played."""
        return [trace for pool in self._by_key.values() for trace in pool.played]


def _steps(name: str, quantity: Quantity) -> _Quantity[StepTrace]:
    return _Quantity(
        name,
        lambda _, replay: step_pool(_source(replay), quantity),
        lambda trace: trace.period_s,
    )


def _source(replay: Replay) -> str | float:
    assert replay.source is not None  # the config sees to it
    return replay.source


def _load_links(draw: _Draw, k: int, replay: Replay) -> Sequence[Link]:
    assert isinstance(replay, LinkReplay)
    group = draw.groups[k]
    if replay.mbps:
        down, up = (BandwidthTrace.constant(mbps * BYTES_PER_S_PER_MBPS) for mbps in replay.mbps)
        return [Link(f"{replay.mbps[0]:g}/{replay.mbps[1]:g} Mbit/s", down, up)]
    if replay.generator:
        drawn = (
            replay.generator.link(stream(draw.seed, group.where, "link", n))
            for n in range(replay.variants)
        )
        return [Link(f"{k.name}-{n}", k.downlink, k.uplink) for n, k in enumerate(drawn, start=1)]
    return trace_catalog.pool(str(replay.source), uplink_scale=group.config.uplink_scale)


def _load_availability(draw: _Draw, k: int, replay: Replay) -> Sequence[AvailabilityTrace]:
    assert isinstance(replay, Calendar)
    if replay.generator:
        return [
            replay.generator.availability(stream(draw.seed, draw.groups[k].where, "online", n))
            for n in range(replay.variants)
        ]
    return availability_pool(str(replay.source))


def _speed_factors(draw: _Draw, groups: Sequence[DeviceGroup]) -> FloatArray:
    """(n,): how much faster each device is than its profile."""
    factors = np.ones(len(draw.members))
    rngs: dict[tuple[str, str], np.random.Generator] = {}  # the rows of a table share theirs
    for k, group in enumerate(groups):
        if group.speed_spread is not None:
            mine = draw.devices(k)
            name = draw.groups[k].where, str(group.profile)
            rng = rngs.setdefault(name, stream(draw.seed, "speed_spread", *name))
            factors[mine] = group.speed_spread.draw(rng, len(mine))
    return factors


def _initial_share(group: DeviceGroup) -> Sequence[float]:
    return group.battery.initial_share if isinstance(group.battery, BatteryConfig) else (1.0,)


def _battery_replay(group: DeviceGroup) -> Replay | None:
    match group.battery:
        case BatteryConfig():
            return group.battery.charging or Calendar(source=0.0)
        case BatteryLevel():
            return group.battery.level
    return None


def _load_batteries(draw: _Draw, k: int, replay: Replay) -> Sequence[Battery]:
    """A battery for every trace of the pool that charges it, or that is its level."""
    config = draw.groups[k].config.battery
    if isinstance(config, BatteryLevel):
        levels = step_pool(_source(replay), BATTERY_LEVEL)
        return [BatteryReplay(level, config.floor_share) for level in levels]
    assert config is not None
    plugged = [NEVER] if replay.source == 0 else _load_availability(draw, k, replay)
    return [
        BatterySpec(
            capacity_j=config.capacity_j,
            initial_share=config.initial_share[-1],
            charge_w=config.charge_w,
            floor_share=config.floor_share,
            resume_share=config.resume_share,
            charging=trace,
        )
        for trace in plugged
    ]


def _battery_period(battery: Battery) -> float:
    match battery:
        case BatterySpec():
            return battery.charging.period_s
        case BatteryReplay():
            return battery.level.period_s
    return math.inf
