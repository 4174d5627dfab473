"""Tells which devices are present, and until when, from all that can keep one away.

These are its availability, its battery, crashes, late joining and leaving for good.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import numpy as np

from devices.fleet.battery import PowerSupply, power_supply
from devices.fleet.fleet import Fleet
from devices.vocabulary.plan import DeviceId
from simulator.engine.faults import NO_OUTAGES, Faults
from traces.arrays import BoolArray, FloatArray, IntArray, groups_of
from traces.availability import ALWAYS, AvailabilityTrace

MAX_LOOKS = 10_000
"""The most changes that are searched for an instant at which all conditions hold."""
FEW = 8
"""Below this many devices of one calendar it is faster to look each up by itself."""
Cause = Literal["crashed", "flat", "left", "offline"]


class Condition(Protocol):
    """A condition is something that must hold for a device to be present."""

    def span(self, at_s: float) -> tuple[bool, float]:
        """Return whether it holds at ``at_s``, and until when that stays so."""
        ...


class Presence:
    """Presence is who of the fleet is there, worked out only as far as it is asked for.

    A device on mains that is always there, in a world without faults, costs two numbers.
    """

    def __init__(self, fleet: Fleet, faults: Faults) -> None:
        self._fleet, self._faults = fleet, faults
        count = len(fleet)
        self._is_there = np.ones(count, dtype=np.bool_)
        self._until_s = np.full(count, np.inf)
        self._conditions: dict[DeviceId, dict[Cause, Condition]] = {}
        self._supplies: dict[DeviceId, PowerSupply] = {}
        changing = ~_is_steady(fleet) | (faults.join_s > 0) | np.isfinite(faults.leave_s)
        changing |= faults.may_crash
        self._until_s[changing] = -np.inf  # not computed yet
        self._unchanged_until_s = -math.inf  # a lower bound on all entries of ``_until_s``
        is_member = (faults.join_s == 0) & np.isinf(faults.leave_s)
        self._is_steadfast: BoolArray = is_member & ~faults.may_crash
        # The instant until which a battery surely lasts; -inf once the battery is a condition.
        self._lasts_until_s = fleet.charged_until_s.copy()

    def present(self, at_s: float) -> BoolArray:
        """Return (n,) which devices are present at ``at_s``, not before the last instant asked."""
        if at_s < self._unchanged_until_s:
            return self._is_there
        changed = np.flatnonzero(self._until_s <= at_s)
        together = self._is_steadfast[changed] & (at_s < self._lasts_until_s[changed])
        self._update_calendars(changed[together], at_s)
        for device_id in changed[~together].tolist():
            self._update(device_id, at_s)
        self._unchanged_until_s = float(self._until_s.min(initial=math.inf))
        return self._is_there

    def _update_calendars(self, device_ids: IntArray, at_s: float) -> None:
        """Update devices whose presence depends on their calendar alone, many at once."""
        calendars = self._fleet.availability
        for rows, k in groups_of(calendars.index[device_ids]):
            mine = device_ids[rows]
            if len(mine) < FEW:
                traces = [self._fleet.availability_of(device_id) for device_id in mine.tolist()]
                is_there = np.array([trace.is_online(at_s) for trace in traces])
                until_s = np.array([trace.next_change_s(at_s) for trace in traces])
            else:
                is_there, until_s = calendars.pool[k].spans_at(at_s, calendars.offset_s[mine])
            lasts_s = self._lasts_until_s[mine]
            self._is_there[mine] = is_there
            self._until_s[mine] = np.minimum(until_s, lasts_s)
            # A battery may be flat when the calendar lets its device come, so these are updated
            # with all of their conditions.
            for device_id in mine[~is_there & (until_s > lasts_s)].tolist():
                self._update(device_id, at_s)

    def gone_s(self, device_ids: IntArray) -> FloatArray:
        """Return (n,) when devices go that ``present`` has just found, whatever power they draw."""
        gone_s: FloatArray = self._until_s[device_ids]
        return gone_s

    def until_s(self, device_id: DeviceId, at_s: float) -> float:
        """Return the next instant at which the device comes or goes."""
        if self._until_s[device_id] <= at_s:
            self._update(device_id, at_s)
        return float(self._until_s[device_id])

    def is_there(self, device_id: DeviceId, at_s: float) -> bool:
        """Return whether the device is present at ``at_s``."""
        if self._until_s[device_id] <= at_s:
            self._update(device_id, at_s)
        return bool(self._is_there[device_id])

    def stays_until_s(self, device_id: DeviceId, at_s: float) -> float:
        """Return until when a device that is present at ``at_s`` stays; ``at_s`` if it is away."""
        until_s = self._until_s.item(device_id)
        if until_s <= at_s:
            until_s = self.until_s(device_id, at_s)
        return until_s if self._is_there.item(device_id) else at_s

    def next_arrival_s(self, at_s: float, but: Collection[DeviceId] = ()) -> float:
        """Return the first instant after ``at_s`` at which a device comes, ``inf`` if none will.

        Devices of ``but`` are passed over.
        """
        away = ~self.present(at_s)
        away[list(but)] = False
        return float(self._until_s[away].min(initial=math.inf))

    def cause(self, device_id: DeviceId, at_s: float) -> Cause | None:
        """Return the gravest cause for which a device is away; None where it is present."""
        for cause, condition in self._of(device_id).items():
            if not condition.span(at_s)[0]:
                return cause
        return None

    def next_loss_s(self, device_id: DeviceId, at_s: float) -> float:
        """Return when a device that is offline at ``at_s`` would lose the work that it keeps."""
        keeping = [k for cause, k in self._of(device_id).items() if cause != "offline"]
        return min((condition.span(at_s)[1] for condition in keeping), default=math.inf)

    def drop(self, device_id: DeviceId) -> None:
        """Take a device out of the run for good."""
        self._is_there[device_id], self._until_s[device_id] = False, np.inf
        self._conditions[device_id] = {}
        self._lasts_until_s[device_id] = -math.inf
        self._supplies.pop(device_id, None)

    def draw(self, device_id: DeviceId, power_w: float, at_s: float) -> None:
        """Set the power that the device draws from ``at_s`` on."""
        if supply := self._supply(device_id):
            supply.draw(power_w, at_s)
            self._update(device_id, at_s)

    def rest(self, device_id: DeviceId, at_s: float) -> None:
        """Set the power of a device to that of an idle one from ``at_s`` on."""
        if supply := self._supply(device_id):
            supply.rest(at_s)
            self._update(device_id, at_s)

    def battery_share(self, device_id: DeviceId, at_s: float) -> float:
        """Return the level of the battery over its capacity; NaN on mains."""
        supply = self._supply(device_id)
        if supply is None:
            return math.nan
        supply.span(at_s)
        return supply.share

    def _supply(self, device_id: DeviceId) -> PowerSupply | None:
        if self._fleet.on_mains.item(device_id):
            return None
        self._of(device_id)
        return self._supplies.get(device_id)

    def _update(self, device_id: DeviceId, at_s: float) -> None:
        there, until_s = _span(list(self._of(device_id).values()), at_s)
        self._is_there[device_id], self._until_s[device_id] = there, until_s
        self._unchanged_until_s = min(self._unchanged_until_s, until_s)

    def _of(self, device_id: DeviceId) -> dict[Cause, Condition]:
        if device_id not in self._conditions:
            self._conditions[device_id] = self._make(device_id)
            if not self._fleet.on_mains[device_id]:
                self._lasts_until_s[device_id] = -math.inf
        return self._conditions[device_id]

    def _make(self, device_id: DeviceId) -> dict[Cause, Condition]:
        # The device itself is not made here, since a large fleet draws its examples then.
        fleet, faults = self._fleet, self._faults
        conditions: dict[Cause, Condition] = {}
        if (crashes := faults.crashes(device_id)) is not NO_OUTAGES:
            conditions["crashed"] = crashes
        member_s = float(faults.join_s[device_id]), float(faults.leave_s[device_id])
        if member_s != (0.0, math.inf):
            conditions["left"] = _Online(
                AvailabilityTrace.of([member_s] if member_s[0] < member_s[1] else [], math.inf)
            )
        idle_w = fleet.profile_of(device_id).power_w["idle"]
        supply = power_supply(fleet.battery_of(device_id), idle_w)
        if supply:
            self._supplies[device_id] = conditions["flat"] = supply
        if (availability := fleet.availability_of(device_id)) is not ALWAYS:
            conditions["offline"] = _Online(availability)
        return conditions


class _Online:
    """This condition holds while an availability trace is online."""

    def __init__(self, trace: AvailabilityTrace) -> None:
        self._trace = trace

    def span(self, at_s: float) -> tuple[bool, float]:
        return self._trace.is_online(at_s), self._trace.next_change_s(at_s)


def _span(conditions: Sequence[Condition], at_s: float) -> tuple[bool, float]:
    """Return whether all conditions hold at ``at_s``, and until when that stays so."""
    spans = [condition.span(at_s) for condition in conditions]
    if all(holds for holds, _ in spans):
        return True, min((until_s for _, until_s in spans), default=math.inf)
    now_s = at_s
    # Asking a battery about a later instant advances it, so copies are asked. The same copies serve
    # all steps, since new ones would start from here again and make the work quadratic.
    ahead = [copy.copy(condition) for condition in conditions]
    for _ in range(MAX_LOOKS):
        looks = [condition.span(now_s) for condition in ahead]
        waits = [until_s for holds, until_s in looks if not holds]
        if not waits:
            return False, now_s
        now_s = max(waits)
        if math.isinf(now_s):
            break
    return False, math.inf


def are_always_there(fleet: Fleet, faults: Faults) -> bool:
    """Return whether every device is present at every instant, whatever a run asks of it."""
    stays = (faults.join_s == 0) & np.isinf(faults.leave_s) & ~faults.may_crash
    return bool((stays & _is_steady(fleet)).all())


def _is_steady(fleet: Fleet) -> BoolArray:
    """Return (n,) which devices are on mains and always present."""
    always = np.array([trace is ALWAYS for trace in fleet.availability.pool], dtype=np.bool_)
    found: BoolArray = always[fleet.availability.index] & fleet.on_mains
    return found
