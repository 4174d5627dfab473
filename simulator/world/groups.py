"""Turns the groups of a config, with mixes and tables, into groups of one profile each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from devices.fleet.mixes import mix
from devices.fleet.speed import UniformSpeed
from devices.fleet.table import DeviceColumns, read_device_columns
from simulator.config.fleet import Calendar, DeviceGroup, FleetConfig, LinkReplay
from simulator.config.paths import profile_inside, stay_inside
from simulator.config.problems import Problems
from simulator.engine.seeds import stream
from traces.located import folder_of
from traces.units import BYTES_PER_S_PER_MBPS


@dataclass(frozen=True)
class Group:
    """A group is ``count`` devices of one profile; what else differs the seed draws for each."""

    where: str  # the group's key in the config, for error messages
    config: DeviceGroup
    count: int


def open_groups(fleet: FleetConfig, seed: int, problems: Problems) -> list[Group]:
    """Return the groups of a fleet in order, with mixes and tables replaced by their devices.

    Where a table has more rows than its ``count``, the seed draws which.
    """
    opened: list[Group] = []
    for k, (config, count) in enumerate(zip(fleet.devices, fleet.counts, strict=True)):
        group = Group(f"fleet.devices.{k}", config, count)
        opened += problems.attempt(group.where, partial(_open, group, seed)) or []
    return opened


def _open(group: Group, seed: int) -> list[Group]:
    if group.config.mix is not None:
        return list(_of_mix(group, seed))
    if group.config.table is not None:
        return list(_of_table(group, seed))
    return [group]


def _of_mix(group: Group, seed: int) -> Iterator[Group]:
    """Yield a group for each profile that the seed draws, in the order of the mix."""
    chosen = mix(str(group.config.mix))
    drawn = chosen.draw(stream(seed, "mix", group.where), group.count)
    counts = np.bincount(drawn, minlength=len(chosen.profiles)).tolist()
    for profile, count in zip(chosen.profiles, counts, strict=True):
        if count:
            one = replace(group.config, mix=None, profile=profile)
            yield Group(group.where, one, count)


def _of_table(group: Group, seed: int) -> Iterator[Group]:
    """Return a group for each row."""
    path = group.config.table
    assert path is not None  # this function is called for groups with a table
    table = read_device_columns(path)
    rows: Sequence[int] = range(len(table))
    if group.count:
        if group.count > len(table):
            raise ValueError(
                f"a table must hold a row for each of the {group.count} devices, got "
                f"{len(table)} rows in {path}"
            )
        rng = stream(seed, "table", group.where)
        rows = np.sort(rng.permutation(len(table))[: group.count]).tolist()
    return (Group(group.where, _of_row(group.config, table, row), 1) for row in rows)


def _of_row(config: DeviceGroup, table: DeviceColumns, row: int) -> DeviceGroup:
    """Return the group of one row, whose empty fields are those of the table's group."""
    said: dict[str, Any] = {"table": None, "count": 1}
    if table.profile[row]:
        said["profile"] = _inside(config, table.profile[row], profile_inside)
        said["device"] = None
    if table.link[row]:
        said["link"] = LinkReplay(source=_inside(config, table.link[row]))
    elif not math.isnan(table.downlink_bytes_per_s[row]):
        said["link"] = LinkReplay(mbps=_mbps(config, table, row))
    if table.availability[row]:
        said["availability"] = Calendar(source=_inside(config, table.availability[row]))
    if not math.isnan(table.speed[row]):
        factor = float(table.speed[row])
        said["speed_spread"] = UniformSpeed(factor, factor)
    if not math.isnan(table.memory_bytes[row]):
        said["memory_bytes"] = int(table.memory_bytes[row])
    if not math.isnan(table.memory_share[row]):
        said["memory_share"] = (float(table.memory_share[row]),)
    if not math.isnan(table.uplink_scale[row]):
        said["uplink_scale"] = float(table.uplink_scale[row])
    for key in ("profile", "link"):
        is_own = key == "profile" and config.device is not None
        if said.get(key, getattr(config, key)) is None and not is_own:
            raise ValueError(
                f"{config.table}: the row of device {table.device_id[row]} must name a {key}, or "
                f"the group must, got neither"
            )
    return replace(config, **said)


def _inside(config: DeviceGroup, named: str, check: Callable[..., str] = stay_inside) -> str:
    """Return a name or path of a table's row, which starts where that of the table does.

    Raises ValueError where it breaks the path rules.
    """
    try:
        return check(named, folder=folder_of(config.table or ""))
    except ValueError as error:
        raise ValueError(f"{config.table}: {error}") from None


def _mbps(config: DeviceGroup, table: DeviceColumns, row: int) -> tuple[float, float]:
    down = float(table.downlink_bytes_per_s[row]) / BYTES_PER_S_PER_MBPS
    up = float(table.uplink_bytes_per_s[row]) / BYTES_PER_S_PER_MBPS
    if not math.isnan(up):
        return down, up
    scale = float(table.uplink_scale[row])
    if math.isnan(scale):
        if config.uplink_scale is None:
            raise ValueError(
                f"{config.table}: the uplink of device {table.device_id[row]} was not measured; "
                f"give uplink_scale to use that multiple of the downlink instead"
            )
        scale = config.uplink_scale
    return down, down * scale
