"""Draws what goes wrong in a run from the seed alone: the same for every strategy."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from devices.vocabulary.plan import DeviceId
from simulator.config.faults import Byzantine, Failures, FaultsConfig, Moment, Scheduled
from simulator.config.problems import Problems, UserError
from simulator.engine.seeds import stream
from traces.arrays import BoolArray, FloatArray
from traces.units import HOUR_S

Cut = Literal["resume", "restart", "drop"]

MAX_OUTAGES = 1_000_000
"""The most outages by chance of one device in a run."""


class Outages:
    """Outages are the intervals in which something is down: some given, others by chance.

    Those by chance are a renewal process: after the end of one, the next begins in
    Exponential(``mean_gap_s``) seconds and lasts ``down_s``. They are drawn as far as they are
    asked for, in one order, so that who asks, and when, changes nothing.
    """

    def __init__(
        self,
        given: Iterable[tuple[float, float]] = (),
        *,
        mean_gap_s: float = math.inf,
        down_s: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._lengths = sorted(given)
        self._given = [(at_s, _end_s(at_s, length_s)) for at_s, length_s in self._lengths]
        self._mean_gap_s, self._down_s, self._rng = mean_gap_s, down_s, rng
        self._drawn: list[tuple[float, float]] = []
        self.is_none = not self._given and (rng is None or math.isinf(mean_gap_s))
        """Whether there is no outage at all."""

    def span(self, at_s: float) -> tuple[bool, float]:
        """Return whether it is up at ``at_s``, and until when it stays so."""
        if self.is_none:
            return True, math.inf
        end_s = at_s
        while (down_s := self._down_until_s(end_s)) > end_s:
            end_s = down_s
        if end_s > at_s:
            return False, end_s
        return True, self._next_start_s(at_s)

    def given_within(self, until_s: float) -> list[tuple[float, float]]:
        """Return ``(start, length)`` of the outages that begin before ``until_s``, in order."""
        self._draw_beyond(until_s)
        drawn = [(start_s, self._down_s) for start_s, _ in self._drawn]
        return [outage for outage in sorted(self._lengths + drawn) if outage[0] < until_s]

    def _down_until_s(self, at_s: float) -> float:
        """Return the end of an outage that goes on at ``at_s``; ``at_s`` where there is none."""
        self._draw_beyond(at_s)
        ends = [end_s for start_s, end_s in self._given if start_s <= at_s < end_s]
        before = bisect_right(self._drawn, (at_s, math.inf))
        if before and self._drawn[before - 1][1] > at_s:
            ends.append(self._drawn[before - 1][1])
        return max(ends, default=at_s)

    def _next_start_s(self, at_s: float) -> float:
        starts = [start_s for start_s, _ in self._given if start_s > at_s]
        after = bisect_right(self._drawn, (at_s, math.inf))
        starts += [start_s for start_s, _ in self._drawn[after : after + 1]]
        return min(starts, default=math.inf)

    def _draw_beyond(self, at_s: float) -> None:
        """Draw outages until one begins after ``at_s``."""
        if self._rng is None or math.isinf(self._mean_gap_s):
            return
        while not self._drawn or self._drawn[-1][0] <= at_s:
            if len(self._drawn) >= MAX_OUTAGES:
                raise UserError(
                    f"faults: a device must have at most {MAX_OUTAGES} outages by chance, but has "
                    f"more until {at_s:.6g} s; lower per_hour, or stop earlier"
                )
            before_s = self._drawn[-1][1] if self._drawn else 0.0
            start_s = before_s + float(self._rng.exponential(self._mean_gap_s))
            self._drawn.append((start_s, _end_s(start_s, self._down_s)))


def _end_s(start_s: float, length_s: float) -> float:
    """Return the end, above ``start_s`` also where the clock is too large to show the length."""
    return max(start_s + length_s, math.nextafter(start_s, math.inf))


NO_OUTAGES = Outages()


@dataclass(frozen=True, eq=False)
class Faults:
    """Faults are what goes wrong in one run with n devices."""

    config: FaultsConfig
    seed: int
    join_s: FloatArray  # (n,): 0 for devices that are there from the beginning
    leave_s: FloatArray  # (n,): inf for devices that never leave
    byzantine_s: FloatArray  # (n,): the instant from which updates are attacks; inf if never
    server: Outages
    _crashes: dict[DeviceId, Outages] = field(default_factory=dict)
    _link_losses: dict[DeviceId, Outages] = field(default_factory=dict)

    @property
    def cut_transfers(self) -> Cut:
        """Return the policy for a transfer whose link is lost: resume, restart or drop."""
        return self.config.cut_transfers

    @property
    def may_lose_links(self) -> BoolArray:
        """Return the devices that ever lose their link, (n,)."""
        return self._hit_by(self.config.link_loss)

    @property
    def is_honest(self) -> bool:
        """Return True if every device sends what it has trained."""
        return bool(np.isinf(self.byzantine_s).all())

    @property
    def may_crash(self) -> BoolArray:
        """Return the devices that ever crash, (n,)."""
        return self._hit_by(self.config.crash)

    def _hit_by(self, failures: Failures) -> BoolArray:
        found = np.full(len(self.join_s), failures.per_hour > 0)
        found[[one.device for one in failures.schedule]] = True
        return found

    def attack(self, device_id: DeviceId, at_s: float) -> Byzantine | None:
        """Return how the device falsifies the update of a plan dispatched at ``at_s``; or None."""
        return self.config.byzantine if self.byzantine_s[device_id] <= at_s else None

    def crashes(self, device_id: DeviceId) -> Outages:
        """Return the outages of a device after its crashes."""
        return self._outages("crash", self.config.crash, self._crashes, device_id)

    def link_losses(self, device_id: DeviceId) -> Outages:
        """Return the intervals in which the device has no link."""
        return self._outages("link_loss", self.config.link_loss, self._link_losses, device_id)

    def _outages(
        self, name: str, config: Failures, made: dict[DeviceId, Outages], device_id: DeviceId
    ) -> Outages:
        if device_id not in made:
            given = [(one.at_s, one.down_s) for one in config.schedule if one.device == device_id]
            by_chance = config.per_hour > 0
            if not given and not by_chance:
                return NO_OUTAGES
            made[device_id] = Outages(
                given,
                mean_gap_s=HOUR_S / config.per_hour if by_chance else math.inf,
                down_s=config.down_s,
                rng=stream(self.seed, name, device_id) if by_chance else None,
            )
        return made[device_id]


def no_faults(num_devices: int) -> Faults:
    """Return the faults of a run in which nothing goes wrong."""
    return draw_faults(FaultsConfig(), num_devices, seed=0, problems=Problems())


def draw_faults(config: FaultsConfig, num_devices: int, *, seed: int, problems: Problems) -> Faults:
    """Return the faults of a run. A schedule for an absent device goes to ``problems``."""
    scheduled: dict[str, Sequence[Scheduled | Moment]] = {
        "crash.schedule": config.crash.schedule,
        "link_loss.schedule": config.link_loss.schedule,
        "join.schedule": config.join.schedule,
        "leave.schedule": config.leave.schedule,
        "byzantine.schedule": config.byzantine.schedule,
    }
    for name, entries in scheduled.items():
        for k, entry in enumerate(entries):
            if entry.device >= num_devices:
                problems.add(
                    f"faults.{name}.{k}.device must be in [0, {num_devices - 1}], the devices of "
                    f"the fleet, got {entry.device}"
                )
    late = stream(seed, "join", "who").random(num_devices) < config.join.share
    when_s = stream(seed, "join", "when").random(num_devices) * config.join.within_s
    join_s = np.where(late, when_s, 0.0)
    leave_s = np.full(num_devices, np.inf)
    if config.leave.per_hour > 0:
        gaps = stream(seed, "leave").exponential(size=num_devices)
        leave_s = gaps * HOUR_S / config.leave.per_hour
    _set(join_s, config.join.schedule)
    _set(leave_s, config.leave.schedule)
    attacks = stream(seed, "byzantine").random(num_devices) < config.byzantine.share
    byzantine_s = np.where(attacks, 0.0, np.inf)
    _set(byzantine_s, config.byzantine.schedule)
    server = Outages([(restart.at_s, restart.down_s) for restart in config.server_restarts])
    return Faults(config, seed, join_s, leave_s, byzantine_s, server)


def _set(at_s: FloatArray, schedule: Iterable[Moment]) -> None:
    for moment in schedule:
        if moment.device < len(at_s):
            at_s[moment.device] = moment.at_s
