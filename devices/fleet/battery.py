"""A battery that work drains, that charges while it is plugged in, and that can run out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from traces.availability import AvailabilityTrace
from traces.steps import StepTrace


@dataclass(frozen=True, eq=False)
class BatterySpec:
    """``charging`` says when the device is plugged in; then ``charge_w`` flows into it.

    The device switches off at ``floor_share`` of its capacity and is back at ``resume_share``.
    """

    capacity_j: float
    initial_share: float
    charge_w: float
    floor_share: float
    resume_share: float
    charging: AvailabilityTrace

    def __post_init__(self) -> None:
        if not (self.capacity_j > 0 and math.isfinite(self.capacity_j)):
            raise ValueError(f"capacity_j must be a number above 0, got {self.capacity_j:g}")
        if not 0 <= self.floor_share < self.resume_share <= 1:
            raise ValueError(
                f"0 <= floor_share < resume_share <= 1 must hold, got {self.floor_share:g} and "
                f"{self.resume_share:g}"
            )
        if not self.floor_share <= self.initial_share <= 1:
            raise ValueError(
                f"initial_share must be in [floor_share, 1], got {self.initial_share:g} with a "
                f"floor of {self.floor_share:g}"
            )
        if not self.charge_w >= 0:
            raise ValueError(f"charge_w must be >= 0, got {self.charge_w:g}")

    @property
    def numbers(self) -> tuple[float, ...]:
        """All fields but the trace."""
        return (
            self.capacity_j,
            self.initial_share,
            self.charge_w,
            self.floor_share,
            self.resume_share,
        )

    def begun_at(self, offset_s: float) -> BatterySpec:
        """The same battery, whose charging trace starts ``offset_s`` further on."""
        return replace(self, charging=self.charging.begun_at(offset_s))

    def ended(self) -> BatterySpec:
        """The same battery, plugged in as the trace says once, and never after."""
        return replace(self, charging=self.charging.ended())

    def holding(self, share: float) -> BatterySpec:
        """The same battery, with this share of its capacity at instant 0."""
        return replace(self, initial_share=max(share, self.floor_share))


class DrainedBattery:
    """The level of one battery, brought forward only when it is asked for.

    d(level)/dt = charge_w * charging(t) - power_w, within [0, capacity]: linear between the
    changes of the charging trace, so every crossing is in closed form. While it is switched off a
    device draws nothing.
    """

    def __init__(self, spec: BatterySpec, idle_w: float) -> None:
        self._spec = spec
        self._level_j = spec.initial_share * spec.capacity_j
        self._at_s = 0.0
        self._power_w = idle_w
        self._idle_w = idle_w
        self._is_on = True

    @property
    def share(self) -> float:
        """Level over capacity, as of the last instant asked for."""
        return self._level_j / self._spec.capacity_j

    def draw(self, power_w: float, at_s: float) -> None:
        """From ``at_s`` on the device draws this much; a device that is off draws nothing."""
        self.span(at_s)
        self._power_w = power_w

    def rest(self, at_s: float) -> None:
        """From ``at_s`` on the device is idle."""
        self.draw(self._idle_w, at_s)

    def span(self, at_s: float) -> tuple[bool, float]:
        """Whether the device is on at ``at_s``, and until when it stays so at this power."""
        while True:
            switch_s = self._switch_s()
            if switch_s > at_s:
                self._forward(at_s)
                return self._is_on, switch_s
            self._forward(switch_s)
            self._is_on = not self._is_on
            # Exactly on the mark, whatever the roundings on the way there.
            share = self._spec.resume_share if self._is_on else self._spec.floor_share
            self._level_j = share * self._spec.capacity_j

    def _net_w(self, at_s: float) -> float:
        charge_w = self._spec.charge_w if self._spec.charging.is_online(at_s) else 0.0
        return charge_w - (self._power_w if self._is_on else 0.0)

    def _switch_s(self) -> float:
        """When the level will cross the mark at which the device goes off, or comes back."""
        spec = self._spec
        mark = (spec.floor_share if self._is_on else spec.resume_share) * spec.capacity_j
        at_s, level = self._at_s, self._level_j
        loop_s, begun, nearest, is_full = at_s + spec.charging.period_s, level, math.inf, False
        while True:
            net_w = self._net_w(at_s)
            change_s = min(spec.charging.next_change_s(at_s), loop_s)
            if net_w < 0 if self._is_on else net_w > 0:  # towards the mark
                crossing_s = at_s + (mark - level) / net_w
                if crossing_s <= change_s:
                    return max(crossing_s, math.nextafter(self._at_s, math.inf))
            if math.isinf(change_s):
                return math.inf
            moved = level + net_w * (change_s - at_s)
            at_s, level = change_s, min(max(moved, 0.0), spec.capacity_j)
            nearest, is_full = min(nearest, abs(level - mark)), is_full or moved != level
            if at_s == loop_s:
                nearer = abs(begun - mark) - abs(level - mark)
                if nearer <= 1e-12 * spec.capacity_j:
                    return math.inf  # every loop to come begins no nearer: it never will cross
                # Until it crosses every loop moves it as far, so most need not be gone through.
                skipped = 0 if is_full else max(math.floor(nearest / nearer) - 1, 0)
                level += math.copysign(skipped * nearer, mark - level)
                at_s += skipped * spec.charging.period_s
                loop_s, begun = at_s + spec.charging.period_s, level
                nearest, is_full = math.inf, False

    def _forward(self, to_s: float) -> None:
        spec = self._spec
        while self._at_s < to_s:
            change_s = min(spec.charging.next_change_s(self._at_s), to_s)
            moved_j = self._net_w(self._at_s) * (change_s - self._at_s)
            self._level_j = min(max(self._level_j + moved_j, 0.0), spec.capacity_j)
            self._at_s = change_s


@dataclass(frozen=True, eq=False)
class BatteryReplay:
    """A recorded battery level: the device is off while it is below ``floor_share``."""

    level: StepTrace
    floor_share: float

    def begun_at(self, offset_s: float) -> BatteryReplay:
        """The same recording, begun ``offset_s`` further on."""
        return BatteryReplay(self.level.begun_at(offset_s), self.floor_share)

    def ended(self) -> BatteryReplay:
        """The recording played once; its last level stays."""
        return BatteryReplay(self.level.ended(), self.floor_share)

    def holding(self, share: float) -> BatteryReplay:
        """The recording says what is in it."""
        return self


@dataclass(frozen=True)
class Mains:
    """Power without end."""

    def begun_at(self, offset_s: float) -> Mains:
        """Always the same."""
        return self

    def ended(self) -> Mains:
        """Always the same."""
        return self

    def holding(self, share: float) -> Mains:
        """Always the same."""
        return self


MAINS = Mains()
Battery = BatterySpec | BatteryReplay | Mains
"""What feeds a device."""


class ReplayedBattery:
    """A battery whose level is what was recorded, whatever the device does."""

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
        """The level at the last instant asked for."""
        return self._level.at(self._at_s)

    def draw(self, power_w: float, at_s: float) -> None:
        """The recording has it already."""
        self._at_s = at_s

    def rest(self, at_s: float) -> None:
        """The recording has it already."""
        self._at_s = at_s

    def span(self, at_s: float) -> tuple[bool, float]:
        """Whether the device is on at ``at_s``, and until when it stays so."""
        self._at_s = at_s
        return self._on.is_online(at_s), self._on.next_change_s(at_s)


class PowerSupply(Protocol):
    """What keeps a device on."""

    @property
    def share(self) -> float: ...

    def draw(self, power_w: float, at_s: float) -> None: ...

    def rest(self, at_s: float) -> None: ...

    def span(self, at_s: float) -> tuple[bool, float]: ...


def power_supply(spec: Battery, idle_w: float) -> PowerSupply | None:
    """The battery of a device at instant 0; none for a device on mains."""
    match spec:
        case BatterySpec():
            return DrainedBattery(spec, idle_w)
        case BatteryReplay():
            return ReplayedBattery(spec)
    return None
