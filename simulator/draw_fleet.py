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
from simulator.fleet_config import BatteryConfig, BatteryLevel, Calendar, DeviceGroup, Replay
from simulator.problems import Problems
from simulator.seeds import stream
from traces import catalog as trace_catalog
from traces.availability import ALWAYS, AvailabilityTrace
from traces.bandwidth import Link
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
P = TypeVar("P")


def draw_fleet(config: RunConfig, shards: Shards, problems: Problems) -> Fleet:
    """The fleet of this config and seed; what is wrong with it is added to ``problems``."""
    groups = config.fleet.devices
    members = np.repeat(np.arange(len(groups)), config.fleet.counts)
    draw = _Draw(config.seed, members, problems)
    profiles = [
        problems.attempt(f"fleet.devices.{k}", partial(device_catalog.profile, group.profile))
        for k, group in enumerate(groups)
    ]
    links = draw.traces("link", [group.link for group in groups], _link_pools(groups), _link_period)
    steps = [
        draw.traces(name, [getattr(g, name) for g in groups], _step_pool(quantity), _step_period)
        for name, quantity in (("latency", LATENCY), ("speed", SPEED), ("free_memory", FREE_MEMORY))
    ]
    availability = draw.traces(
        "availability",
        [group.availability for group in groups],
        lambda _, replay: availability_pool(str(replay.source)),
        lambda trace: trace.period_s,
        missing=ALWAYS,
    )
    battery: Assigned[Battery] = draw.traces(
        "battery",
        [_battery_replay(group) for group in groups],
        _battery_pool(groups),
        _battery_period,
        missing=MAINS,
    )
    memory_bytes = np.array([p.memory_bytes if p else 0 for p in profiles], dtype=np.float64)
    memory_share = _between(
        draw, "memory_share", [g.memory_share or config.fleet.memory_share for g in groups]
    )
    return Fleet(
        profiles=[profile for profile in profiles if profile],
        profile_index=members,
        memory_budget_bytes=(memory_share * memory_bytes[members]).astype(np.int64),
        shards=shards,
        link=links,
        latency=steps[0],
        speed=steps[1],
        free_memory=steps[2],
        availability=availability,
        battery=battery,
        battery_share=_between(draw, "battery_share", [_initial_share(g) for g in groups]),
    )


def _link_pools(groups: Sequence[DeviceGroup]) -> Callable[[int, Replay], Sequence[Link]]:
    return lambda k, replay: trace_catalog.pool(
        str(replay.source), uplink_scale=groups[k].uplink_scale
    )


def _step_pool(quantity: Quantity) -> Callable[[int, Replay], Sequence[StepTrace]]:
    return lambda _, replay: step_pool(replay.source, quantity)


def _link_period(link: Link) -> float:
    return link.downlink.period_s


def _step_period(trace: StepTrace) -> float:
    return trace.period_s


@dataclass
class _Draw:
    seed: int
    members: IndexArray  # (n,): the group of each device
    problems: Problems

    def uniform(self, *names: str) -> FloatArray:
        """(n,) numbers in [0, 1), the k-th always the same whatever n is."""
        return stream(self.seed, *names).random(len(self.members))

    def traces(
        self,
        name: str,
        replays: Sequence[Replay | None],
        load: Callable[[int, Replay], Sequence[T]],
        period_s: Callable[[T], float],
        missing: T | None = None,
    ) -> Assigned[T]:
        """What each group replays under ``name``, and ``missing`` where it replays nothing."""
        pools = _Pools[T]()
        index = np.zeros(len(self.members), dtype=np.int64)
        offset_s = np.zeros(len(self.members))
        drawn, started = self.uniform(name, "trace"), self.uniform(name, "start")
        for k, replay in enumerate(replays):
            mine = np.flatnonzero(self.members == k)
            if replay is None:
                assert missing is not None
                index[mine] = pools.add("", [missing])[0]
                continue
            where = f"fleet.devices.{k}.{name}"
            pool = self.problems.attempt(where, partial(load, k, replay))
            if not pool:
                continue
            first, used = pools.add(repr((replay.source, replay.at_end, k)), pool)
            picked = (drawn[mine] * len(pool)).astype(np.int64)
            if replay.sample == "without_replacement":
                picked = self._without_replacement(where, replay, mine, len(pool))
            index[mine] = first + picked
            periods_s = np.array([period_s(trace) for trace in pool])[picked]
            if replay.start == "random":
                finite = np.isfinite(periods_s)
                offset_s[mine[finite]] = started[mine[finite]] * periods_s[finite]
            if replay.at_end == "stop":
                pools.traces[first : first + used] = [cast(Any, trace).ended() for trace in pool]
        return Assigned(pools.traces, index, offset_s)

    def _without_replacement(
        self, where: str, replay: Replay, mine: IndexArray, size: int
    ) -> IndexArray:
        if len(mine) > size:
            self.problems.add(
                f"{where}: a pool drawn from without replacement must hold a trace for each of the "
                f"{len(mine)} devices, got {size} in {replay.source}; take more traces, fewer "
                f"devices or sample: with_replacement"
            )
            return np.zeros(len(mine), dtype=np.int64)
        order = stream(self.seed, where, "order").permutation(size)
        return order[: len(mine)]


@dataclass
class _Pools(Generic[P]):
    """The pools of all groups, one behind the other."""

    traces: list[P] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, pool: Sequence[P]) -> tuple[int, int]:
        """Where the pool of this name begins, and how many it holds."""
        if key not in self.starts:
            self.starts[key] = len(self.traces)
            self.traces.extend(pool)
        return self.starts[key], len(pool)


def _initial_share(group: DeviceGroup) -> Sequence[float]:
    return group.battery.initial_share if isinstance(group.battery, BatteryConfig) else (1.0,)


def _battery_replay(group: DeviceGroup) -> Replay | None:
    match group.battery:
        case BatteryConfig():
            return group.battery.charging or Calendar(source=0.0)
        case BatteryLevel():
            return group.battery.level
    return None


def _battery_pool(groups: Sequence[DeviceGroup]) -> Callable[[int, Replay], Sequence[Battery]]:
    """A battery for every trace of the pool that charges it, or that is its level."""

    def load(k: int, replay: Replay) -> Sequence[Battery]:
        config = groups[k].battery
        if isinstance(config, BatteryLevel):
            levels = step_pool(replay.source, BATTERY_LEVEL)
            return [BatteryReplay(level, config.floor_share) for level in levels]
        assert config is not None
        plugged = [NEVER] if replay.source == 0 else availability_pool(str(replay.source))
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

    return load


def _battery_period(battery: Battery) -> float:
    match battery:
        case BatterySpec():
            return battery.charging.period_s
        case BatteryReplay():
            return battery.level.period_s
    return math.inf


def _between(draw: _Draw, name: str, ranges: Sequence[Sequence[float]]) -> FloatArray:
    """(n,): for each device its own number between the two bounds of its group."""
    low = np.array([bounds[0] for bounds in ranges])[draw.members]
    high = np.array([bounds[-1] for bounds in ranges])[draw.members]
    between: FloatArray = low + (high - low) * draw.uniform(name)
    return between
