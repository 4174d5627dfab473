"""Models a battery that work drains, that charges while plugged in, and that can run out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from annotated_types import Ge, Lt

from traces.availability import AvailabilityTrace
from traces.options import NotNegative, PartialShare, Positive, Share, check_options
from traces.steps import StepTrace

FloorShare = Annotated[float, Ge(0), Lt(1)]
"""The level of a battery, over its capacity, at which its device switches off."""


@dataclass(frozen=True, kw_only=True)
class BatteryOptions:
    """The options of a battery say what it holds, how fast it charges, and when it switches."""

    capacity_j: Positive
    """The energy of the full battery."""
    charge_w: NotNegative = 10.0
    """The power of the charger."""
    floor_share: FloorShare = 0.0
    """The level at which the device switches off."""
    resume_share: PartialShare = 0.2
    """The level at which it switches on again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatterySpec(BatteryOptions):
    """A battery specification holds the options of one battery, and when it is charged.

    The device is plugged in wherever ``charging`` is online, and then ``charge_w`` flows into the
    battery. Raises ValueError for a number out of range.
    """

    initial_share: Share
    charging: AvailabilityTrace

    def __post_init__(self) -> None:
        check_options(self)
        if not self.floor_share < self.resume_share:
            raise ValueError(
                f"floor_share must be below resume_share, got {self.floor_share:g} and "
                f"{self.resume_share:g}"
            )
        if not self.floor_share <= self.initial_share:
            raise ValueError(
                f"initial_share must be in [floor_share, 1], got {self.initial_share:g} with a "
                f"floor of {self.floor_share:g}"
            )

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return all fields but the charging trace."""
        return (
            self.capacity_j,
            self.initial_share,
            self.charge_w,
            self.floor_share,
            self.resume_share,
        )

    def begun_at(self, offset_s: float) -> BatterySpec:
        """Return the battery for a clock that starts ``offset_s`` further into the trace."""
        return replace(self, charging=self.charging.begun_at(offset_s))

    def ended(self) -> BatterySpec:
        """Return the battery whose charging trace does not repeat."""
        return replace(self, charging=self.charging.ended())

    def holding(self, share: float) -> BatterySpec:
        """Return the battery with this share of its capacity at instant 0, at least the floor."""
        return replace(self, initial_share=max(share, self.floor_share))


class DrainedBattery:
    """A drained battery keeps the level of one battery, and updates it only when it is asked for.

    d(level)/dt = charge_w * charging(t) - power_w, within [0, capacity]. The level is linear
    between the changes of the charging trace, so every crossing of a mark is in closed form. A
    device that is switched off draws nothing.
    """

    def __init__(self, spec: BatterySpec, idle_w: float) -> None:
        self._spec = spec
        self._level_j = spec.initial_share * spec.capacity_j
        self._at_s = 0.0
        self._power_w = idle_w
        self._idle_w = idle_w
        self._is_on = True
        # The cached instant of the next switch, which holds until the power or the state changes.
        self._next_switch_s: float | None = None

    @property
    def share(self) -> float:
        """Return the level over the capacity at the last instant asked for."""
        return self._level_j / self._spec.capacity_j

    def draw(self, power_w: float, at_s: float) -> None:
        """Set the power that the device draws from ``at_s`` on while it is switched on."""
        self.span(at_s)
        if power_w != self._power_w:
            self._power_w, self._next_switch_s = power_w, None

    def rest(self, at_s: float) -> None:
        """Set the power of an idle device from ``at_s`` on."""
        self.draw(self._idle_w, at_s)

    def span(self, at_s: float) -> tuple[bool, float]:
        """Return whether the device is on at ``at_s``, and until when it stays so at this power."""
        while True:
            if self._next_switch_s is None:
                self._next_switch_s = self._switch_s()
            switch_s = self._next_switch_s
            if switch_s > at_s:
                self._forward(at_s)
                return self._is_on, switch_s
            self._forward(switch_s)
            self._is_on, self._next_switch_s = not self._is_on, None
            # The level is set to the exact threshold, so that rounding errors do not add up.
            share = self._spec.resume_share if self._is_on else self._spec.floor_share
            self._level_j = share * self._spec.capacity_j

    def _net_w(self, is_plugged: bool) -> float:
        charge_w = self._spec.charge_w if is_plugged else 0.0
        return charge_w - (self._power_w if self._is_on else 0.0)

    def _switch_s(self) -> float:
        """Return when the level reaches the mark at which the device switches off, or on."""
        spec = self._spec
        mark = (spec.floor_share if self._is_on else spec.resume_share) * spec.capacity_j
        at_s, level = self._at_s, self._level_j
        loop_s, begun, nearest, is_full = at_s + spec.charging.period_s, level, math.inf, False
        spans = spec.charging.spans_from(at_s)
        is_plugged, until_s = next(spans)
        while True:
            net_w = self._net_w(is_plugged)
            change_s = min(until_s, loop_s)
            if net_w < 0 if self._is_on else net_w > 0:  # the level moves toward the mark
                crossing_s = at_s + (mark - level) / net_w
                if crossing_s <= change_s:
                    return max(crossing_s, math.nextafter(self._at_s, math.inf))
            if math.isinf(change_s):
                return math.inf
            moved = level + net_w * (change_s - at_s)
            at_s, level = change_s, min(max(moved, 0.0), spec.capacity_j)
            nearest, is_full = min(nearest, abs(level - mark)), is_full or moved != level
            if at_s == until_s:
                is_plugged, until_s = next(spans)
            if at_s == loop_s:
                nearer = abs(begun - mark) - abs(level - mark)
                if nearer <= 1e-12 * spec.capacity_j:
                    return math.inf  # no loop begins nearer to the mark than the one before
                # Each loop changes the level by the same amount, so that all loops before the one
                # in which it crosses the mark can be skipped.
                skipped = 0 if is_full else max(math.floor(nearest / nearer) - 1, 0)
                level += math.copysign(skipped * nearer, mark - level)
                at_s += skipped * spec.charging.period_s
                spans = spec.charging.spans_from(at_s)
                is_plugged, until_s = next(spans)
                loop_s, begun = at_s + spec.charging.period_s, level
                nearest, is_full = math.inf, False

    def _forward(self, to_s: float) -> None:
        spec = self._spec
        for is_plugged, until_s in spec.charging.spans_from(self._at_s):
            if self._at_s >= to_s:
                return
            change_s = min(until_s, to_s)
            moved_j = self._net_w(is_plugged) * (change_s - self._at_s)
            self._level_j = min(max(self._level_j + moved_j, 0.0), spec.capacity_j)
            self._at_s = change_s


@dataclass(frozen=True, eq=False)
class BatteryReplay:
    """A battery replay is a recorded level; the device is off while it is below a floor."""

    level: StepTrace
    floor_share: float

    def begun_at(self, offset_s: float) -> BatteryReplay:
        """Return the recording for a clock that starts ``offset_s`` further into it."""
        return BatteryReplay(self.level.begun_at(offset_s), self.floor_share)

    def ended(self) -> BatteryReplay:
        """Return the recording without repetition: its last level stays."""
        return BatteryReplay(self.level.ended(), self.floor_share)

    def holding(self, share: float) -> BatteryReplay:
        """Return the recording itself, which has its own level at instant 0."""
        return self


@dataclass(frozen=True)
class Mains:
    """A device on mains has power without end."""

    def begun_at(self, offset_s: float) -> Mains:
        """Return mains, which have no trace."""
        return self

    def ended(self) -> Mains:
        """Return mains, which never end."""
        return self

    def holding(self, share: float) -> Mains:
        """Return mains, which hold no charge."""
        return self


MAINS = Mains()
Battery = BatterySpec | BatteryReplay | Mains
"""Where a device gets its power from."""


class ReplayedBattery:
    """A replayed battery has the level that was recorded, whatever the device does."""

    def __init__(self, spec: BatteryReplay) -> None:
        level = spec.level
        edges = [*level.time_s.tolist(), level.period_s]
        intervals = [
            (start_s, end_s)
            for start_s, end_s, value in zip(edges, edges[1:], level.values, strict=False)
            if value >= spec.floor_share
        ]
        self._level = level
        self._on = AvailabilityTrace.of(intervals, level.period_s).begun_at(level.offset_s)
        self._at_s = 0.0

    @property
    def share(self) -> float:
        """Return the recorded level at the last instant asked for."""
        return self._level.at(self._at_s)

    def draw(self, power_w: float, at_s: float) -> None:
        """Note the instant; what the device draws is in the recording."""
        self._at_s = at_s

    def rest(self, at_s: float) -> None:
        """Note the instant; what the device draws is in the recording."""
        self._at_s = at_s

    def span(self, at_s: float) -> tuple[bool, float]:
        """Return whether the device is on at ``at_s``, and until when it stays so."""
        self._at_s = at_s
        return self._on.is_online(at_s), self._on.next_change_s(at_s)


class PowerSupply(Protocol):
    """A power supply says when a device has power. It is asked in order of time only."""

    @property
    def share(self) -> float:
        """Return the level over the capacity at the last instant asked for, in [0, 1]."""
        ...

    def draw(self, power_w: float, at_s: float) -> None:
        """Set the watts that the device draws from ``at_s`` on."""
        ...

    def rest(self, at_s: float) -> None:
        """Let the device be idle from ``at_s`` on."""
        ...

    def span(self, at_s: float) -> tuple[bool, float]:
        """Return whether the device is on at ``at_s``, and until when it stays so."""
        ...


def power_supply(spec: Battery, idle_w: float) -> PowerSupply | None:
    """Return the power supply of a device at instant 0, None for a device on mains."""
    match spec:
        case BatterySpec():
            return DrainedBattery(spec, idle_w)
        case BatteryReplay():
            return ReplayedBattery(spec)
    return None
