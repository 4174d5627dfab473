"""Writes the conditions that a run met as traces in one file, and reads them back.

One JSON file holds every number as Python prints it, which reads back bit by bit: a replay has the
same events, byte for byte. Faults are not in it: they go into the config, as schedules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from devices.datasets.partition import DividedShards
from devices.fleet.battery import MAINS, Battery, BatteryReplay, BatterySpec
from devices.fleet.fleet import Assigned, Fleet
from devices.fleet.profile import DeviceProfile, StepRates
from simulator.config.problems import UserError
from simulator.engine.faults import Faults
from simulator.engine.network import NOTHING_SHARED, SharedLinks
from traces.availability import ALWAYS, AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.located import located
from traces.steps import StepTrace
from traces.text import parse_json

FORMAT = 1
MAX_BYTES = 1_000_000_000
MAX_DEVICES = 100_000
T = TypeVar("T")
Encoded = dict[str, Any]


def write_conditions(path: Path, fleet: Fleet, shared: SharedLinks) -> None:
    """Write a fleet with all that its devices meet, and what they share.

    Raises UserError for a fleet too large to be written device by device.
    """
    if len(fleet) > MAX_DEVICES:
        raise UserError(
            f"a fleet must have at most {MAX_DEVICES} devices to be recorded, got {len(fleet)}"
        )
    document = {
        "format": FORMAT,
        "profiles": [vars(profile) for profile in fleet.profiles],
        "profile_index": fleet.profile_index.tolist(),
        "memory_budget_bytes": fleet.memory_budget_bytes.tolist(),
        "speed_factor": fleet.speed_factor.tolist(),
        "battery_share": fleet.battery_share.tolist(),
        "examples": [fleet.shards[k].tolist() for k in range(len(fleet))],
        "link": _assigned(fleet.link, _link),
        "latency": _assigned(fleet.latency, _steps),
        "speed": _assigned(fleet.speed, _steps),
        "free_memory": _assigned(fleet.free_memory, _steps),
        "availability": _assigned(fleet.availability, _availability),
        "battery": _assigned(fleet.battery, _battery),
        "shared": {
            "server": _link(shared.server) if shared.server else None,
            "cells": [_link(cell) for cell in shared.cells],
            "cell_index": shared.cell_index.tolist(),
        },
    }
    path.write_text(json.dumps(document, default=dict) + "\n", "utf-8", newline="\n")


def read_conditions(path: str | Path) -> tuple[Fleet, SharedLinks]:
    """Return the fleet in a file that ``write_conditions`` wrote, and what its devices share.

    Raises ValueError that names the file and what is wrong in it.
    """
    path = located(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("must be a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"must be at most {MAX_BYTES} bytes")
        found = parse_json(path.read_text("utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"must be recorded conditions of format {FORMAT}")
        fleet = _fleet(found)
        _check(fleet)
        shared = _shared(found["shared"], len(fleet)) if "shared" in found else NOTHING_SHARED
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be read: {error.strerror}") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: no recorded conditions, or damaged: {said}") from None
    return fleet, shared


def _shared(found: Mapping[str, Any], num_devices: int) -> SharedLinks:
    cells = tuple(_read_link(cell) for cell in found["cells"])
    index = np.array(found["cell_index"], dtype=np.int64)
    if cells and (
        len(index) != num_devices or not (index >= -1).all() or index.max() >= len(cells)
    ):
        raise ValueError(f"cell_index must name one of {len(cells)} cells for each device, or -1")
    return SharedLinks(_read_link(found["server"]) if found["server"] else None, cells, index)


def fault_schedules(faults: Faults, until_s: float) -> dict[str, Any]:
    """Return the faults that began until ``until_s``, as the ``faults`` of a config."""
    config, devices = faults.config, range(len(faults.join_s))

    def outages(of: Callable[[int], Any]) -> list[dict[str, Any]]:
        return [
            {"device": device, "at_s": start_s, "down_s": down_s}
            for device in devices
            for start_s, down_s in of(device).given_within(until_s)
        ]

    return {
        "crash": {"schedule": outages(faults.crashes)},
        "link_loss": {"schedule": outages(faults.link_losses)},
        "cut_transfers": config.cut_transfers,
        "join": {"schedule": _moments(faults.join_s, lambda at_s: at_s > 0)},
        "leave": {"schedule": _moments(faults.leave_s, math.isfinite)},
        "server_restarts": [asdict(one) for one in config.server_restarts],
        "byzantine": {
            "kind": config.byzantine.kind,
            "strength": config.byzantine.strength,
            "schedule": _moments(faults.byzantine_s, math.isfinite),
        },
    }


def _moments(at_s: Any, is_one: Callable[[float], bool]) -> list[dict[str, Any]]:
    return [{"device": k, "at_s": s} for k, s in enumerate(at_s.tolist()) if is_one(s)]


def _assigned(assigned: Assigned[T], encode: Callable[[T], Any]) -> Encoded:
    return {
        "pool": [encode(one) for one in assigned.pool],
        "index": assigned.index.tolist(),
        "offset_s": assigned.offset_s.tolist(),
    }


def _period(period_s: float) -> float | None:
    return period_s if math.isfinite(period_s) else None  # JSON cannot hold infinity


def _steps(trace: StepTrace) -> Encoded:
    return {
        "time_s": trace.time_s.tolist(),
        "values": trace.values.tolist(),
        "period_s": _period(trace.period_s),
    }


def _link(link: Link) -> Encoded:
    ways = {"downlink": link.downlink.steps, "uplink": link.uplink.steps}
    return {"name": link.name, **{way: _steps(trace) for way, trace in ways.items()}}


def _availability(trace: AvailabilityTrace) -> Encoded | None:
    if trace is ALWAYS:
        return None
    last = trace.end_s.tolist()
    return {
        "start_s": trace.start_s.tolist(),
        "end_s": [_period(end_s) for end_s in last],
        "period_s": _period(trace.period_s),
    }


def _battery(battery: Battery) -> Encoded | None:
    match battery:
        case BatterySpec():
            numbers = {k: v for k, v in vars(battery).items() if k != "charging"}
            return numbers | {"charging": _availability(battery.charging)}
        case BatteryReplay():
            return {"level": _steps(battery.level), "floor_share": battery.floor_share}
    return None


def _fleet(found: Mapping[str, Any]) -> Fleet:
    return Fleet(
        profiles=[_profile(one) for one in found["profiles"]],
        profile_index=np.array(found["profile_index"], dtype=np.int64),
        memory_budget_bytes=np.array(found["memory_budget_bytes"], dtype=np.int64),
        shards=DividedShards([np.array(one, dtype=np.int64) for one in found["examples"]]),
        link=_read_assigned(found["link"], _read_link),
        latency=_read_assigned(found["latency"], _read_steps),
        speed=_read_assigned(found["speed"], _read_steps),
        speed_factor=np.array(found["speed_factor"], dtype=np.float64),
        free_memory=_read_assigned(found["free_memory"], _read_steps),
        availability=_read_assigned(found["availability"], _read_availability),
        battery=_read_assigned(found["battery"], _read_battery),
        battery_share=np.array(found["battery_share"], dtype=np.float64),
    )


def _profile(found: Mapping[str, Any]) -> DeviceProfile:
    rates = {int(bits): float(rate) for bits, rate in found["flops_per_s"].items()}
    measured = found.get("measured") and {
        int(bits): StepRates(*map(float, each)) for bits, each in found["measured"].items()
    }
    return DeviceProfile(**{**found, "flops_per_s": rates, "measured": measured})


def _read_assigned(found: Mapping[str, Any], decode: Callable[[Any], T]) -> Assigned[T]:
    return Assigned(
        [decode(one) for one in found["pool"]],
        np.array(found["index"], dtype=np.int64),
        np.array(found["offset_s"], dtype=np.float64),
    )


def _read_period(period_s: float | None) -> float:
    return math.inf if period_s is None else float(period_s)


def _read_steps(found: Mapping[str, Any]) -> StepTrace:
    return StepTrace(
        np.array(found["time_s"], dtype=np.float64),
        np.array(found["values"], dtype=np.float64),
        _read_period(found["period_s"]),
    )


def _read_link(found: Mapping[str, Any]) -> Link:
    ways = (_read_steps(found[way]) for way in ("downlink", "uplink"))
    down, up = (BandwidthTrace(way.time_s, way.values, way.period_s) for way in ways)
    return Link(str(found["name"]), down, up)


def _read_availability(found: Mapping[str, Any] | None) -> AvailabilityTrace:
    if found is None:
        return ALWAYS
    return AvailabilityTrace(
        np.array(found["start_s"], dtype=np.float64),
        np.array([_read_period(end_s) for end_s in found["end_s"]], dtype=np.float64),
        _read_period(found["period_s"]),
    )


def _read_battery(found: Mapping[str, Any] | None) -> Battery:
    if found is None:
        return MAINS
    if "level" in found:
        return BatteryReplay(_read_steps(found["level"]), float(found["floor_share"]))
    return BatterySpec(**{**found, "charging": _read_availability(found["charging"])})


def _check(fleet: Fleet) -> None:
    """Raise ValueError unless every array is over the same devices and names traces that exist."""
    count = len(fleet)
    if count == 0:
        raise ValueError("must hold at least one device")
    columns: dict[str, Any] = {
        "memory_budget_bytes": fleet.memory_budget_bytes,
        "speed_factor": fleet.speed_factor,
        "battery_share": fleet.battery_share,
        "examples": fleet.shards.sizes(),
    }
    pools: dict[str, tuple[Any, Any]] = {"profiles": (fleet.profile_index, fleet.profiles)}
    for name in ("link", "latency", "speed", "free_memory", "availability", "battery"):
        assigned = getattr(fleet, name)
        columns |= {f"{name}.index": assigned.index, f"{name}.offset_s": assigned.offset_s}
        pools[name] = (assigned.index, assigned.pool)
        if not np.isfinite(assigned.offset_s).all():
            raise ValueError(f"{name}.offset_s must hold finite numbers")
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"{name} must hold {count} devices, found {len(column)}")
    for name, (index, pool) in pools.items():
        if index.min() < 0 or index.max() >= len(pool):
            raise ValueError(f"{name} must be among the {len(pool)} there are, found {index.max()}")
    factor, share = fleet.speed_factor, fleet.battery_share
    if (fleet.memory_budget_bytes <= 0).any() or not ((factor > 0) & np.isfinite(factor)).all():
        raise ValueError("memory_budget_bytes and speed_factor must be above 0 and finite")
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError("battery_share must be in [0, 1]")
