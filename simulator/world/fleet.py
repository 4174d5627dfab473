"""Draws the devices of a run and the traces they meet, from the config and the seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

import numpy as np

from devices.fleet.battery import MAINS, Battery, BatteryOptions, BatteryReplay, BatterySpec
from devices.fleet.fleet import Fleet, Shards
from devices.fleet.profile import DeviceProfile
from simulator.config.fleet import (
    BatteryConfig,
    BatteryLevel,
    Calendar,
    DeviceGroup,
    LinkReplay,
    Replay,
)
from simulator.config.problems import Problems
from simulator.config.schema import RunConfig
from simulator.engine.seeds import stream
from simulator.world.groups import Group
from simulator.world.own_device import profile_of
from simulator.world.traces import Draw, Replayed
from traces import catalog as trace_catalog
from traces.arrays import FloatArray, IntArray
from traces.availability import ALWAYS, AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.signals import (
    BATTERY_LEVEL,
    FREE_MEMORY,
    LATENCY,
    SPEED,
    Signal,
    availability_pool,
    step_pool,
)
from traces.steps import StepTrace
from traces.units import BYTES_PER_S_PER_MBPS

NEVER = AvailabilityTrace.of([], math.inf)


def draw_fleet(
    config: RunConfig, groups: Sequence[Group], shards: Shards, problems: Problems
) -> Fleet:
    """Return the fleet of this config and seed; what is wrong with it is added to ``problems``."""
    configs = [group.config for group in groups]
    draw = Draw(config.seed, groups, problems)
    profiles = [
        problems.attempt(group.where, partial(profile_of, group.config)) for group in groups
    ]
    return Fleet(
        profiles=[profile for profile in profiles if profile],
        profile_index=draw.members,
        memory_budget_bytes=_memory_budgets(draw, configs, profiles, config.fleet.memory_share),
        shards=shards,
        link=draw.assign(
            Replayed("link", partial(_load_links, draw), lambda link: link.downlink.period_s),
            [group.link for group in configs],
        ),
        latency=draw.assign(_steps("latency", LATENCY), [group.latency for group in configs]),
        speed=draw.assign(_steps("speed", SPEED), [group.speed for group in configs]),
        speed_factor=_speed_factors(draw, configs),
        free_memory=draw.assign(
            _steps("free_memory", FREE_MEMORY), [group.free_memory for group in configs]
        ),
        availability=draw.assign(
            Replayed("availability", partial(_load_availability, draw), _calendar_period, ALWAYS),
            [group.availability for group in configs],
        ),
        battery=draw.assign(
            Replayed("battery", partial(_load_batteries, draw), _battery_period, MAINS),
            [_battery_replay(group) for group in configs],
        ),
        battery_share=draw.between("battery_share", [_initial_share(g) for g in configs]),
    )


def _memory_budgets(
    draw: Draw,
    groups: Sequence[DeviceGroup],
    profiles: Sequence[DeviceProfile | None],
    fleet_share: Sequence[float],
) -> IntArray:
    """Return (n,) bytes: the part of each device's memory that training may take.

    The framework takes its own out of the share that other apps leave.
    """
    pairs = list(zip(groups, profiles, strict=True))
    memory_bytes = [
        group.memory_bytes or (profile.memory_bytes if profile else 0) for group, profile in pairs
    ]
    runtime_bytes = [
        (profile.runtime_bytes if profile else 0)
        if group.runtime_bytes is None
        else group.runtime_bytes
        for group, profile in pairs
    ]
    share = draw.between("memory_share", [group.memory_share or fleet_share for group in groups])
    budgets: IntArray = (share * np.array(memory_bytes)[draw.members]).astype(np.int64)
    left: IntArray = np.maximum(budgets - np.array(runtime_bytes)[draw.members], 0)
    return left


def _steps(name: str, quantity: Signal) -> Replayed[StepTrace]:
    return Replayed(
        name,
        lambda _, replay: step_pool(_source(replay), quantity),
        lambda trace: trace.period_s,
    )


def _source(replay: Replay) -> str | float:
    assert replay.source is not None  # the config's checks make sure of it
    return replay.source


def _path(replay: Replay) -> str:
    return source if isinstance(source := _source(replay), str) else str(source)


def _load_links(draw: Draw, k: int, replay: Replay) -> Sequence[Link]:
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
    return trace_catalog.pool(_path(replay), uplink_scale=group.config.uplink_scale)


def _load_availability(draw: Draw, k: int, replay: Replay) -> Sequence[AvailabilityTrace]:
    assert isinstance(replay, Calendar)
    if replay.generator:
        return [
            replay.generator.availability(stream(draw.seed, draw.groups[k].where, "online", n))
            for n in range(replay.variants)
        ]
    return availability_pool(_path(replay))


def _speed_factors(draw: Draw, groups: Sequence[DeviceGroup]) -> FloatArray:
    """Return (n,): how much faster each device is than its profile."""
    factors = np.ones(len(draw.members))
    rngs: dict[tuple[str, str], np.random.Generator] = {}  # all rows of a table share one
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


def _load_batteries(draw: Draw, k: int, replay: Replay) -> Sequence[Battery]:
    """Return a battery for every trace of the pool that charges it, or that is its level."""
    config = draw.groups[k].config.battery
    if isinstance(config, BatteryLevel):
        levels = step_pool(_source(replay), BATTERY_LEVEL)
        return [BatteryReplay(level, config.floor_share) for level in levels]
    assert config is not None
    plugged = [NEVER] if replay.source == 0 else _load_availability(draw, k, replay)
    options = {one.name: getattr(config, one.name) for one in fields(BatteryOptions)}
    share = config.initial_share[-1]
    return [BatterySpec(**options, initial_share=share, charging=trace) for trace in plugged]


def _calendar_period(trace: AvailabilityTrace) -> float:
    return trace.period_s


def _battery_period(battery: Battery) -> float:
    match battery:
        case BatterySpec():
            return battery.charging.period_s
        case BatteryReplay():
            return battery.level.period_s
    return math.inf
