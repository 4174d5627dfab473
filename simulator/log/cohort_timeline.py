"""Holds in arrays the lives of plans that were dispatched at one instant, worked out ahead.

They stand for the processes of ``simulator/engine/device.py`` where nothing interrupts a plan
before it ends or the server stops waiting for it, and leave the same events in the same order and
the same records.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from algorithms.strategy import LinkRate
from devices.cost.model import Cost
from devices.fleet.fleet import Fleet
from devices.vocabulary.plan import DeviceId, TrainingPlan
from simulator.log.records import Event
from traces.arrays import BoolArray, FloatArray, IntArray

PHASES = ("download_started", "training_started", "upload_started", "update_received")


@dataclass(frozen=True, eq=False)
class CohortTimeline:
    """A cohort timeline has the instants of n plans, one a device, in arrays (n,) by device.

    Every plan is one of ``works`` but for its device: a plan, and what it costs on one profile.
    Instants are those of a plan that is not cut. At ``cut_s`` the server stops waiting, and a plan
    that would finish later is late.
    """

    fleet: Fleet
    round: int
    started_s: float
    plans: Sequence[TrainingPlan]
    devices: IntArray
    works: Sequence[tuple[TrainingPlan, Cost]]
    work_index: IntArray
    download_from_s: FloatArray  # the latency of the download has passed
    trained_from_s: FloatArray
    upload_asked_s: FloatArray  # training has ended
    upload_from_s: FloatArray  # the latency of the upload has passed
    finished_s: FloatArray
    free_memory_bytes: IntArray  # when training begins
    cut_s: float
    last_waits_s: tuple[float, ...]  # the lengths of the phases of the last plan that is not late

    @cached_property
    def is_late(self) -> BoolArray:
        """Return (n,): whether the server no longer waits when the plan would finish."""
        return self.finished_s > self.cut_s

    @property
    def num_late(self) -> int:
        """Return the number of plans that are late."""
        return int(self.is_late.sum())

    @cached_property
    def ended_s(self) -> FloatArray:
        """Return (n,): the instant at which each plan ends, finished or cut."""
        return np.minimum(self.finished_s, self.cut_s)

    @property
    def last_s(self) -> float:
        """Return the instant at which the last plan ends."""
        return float(self.ended_s.max())

    @cached_property
    def download_s(self) -> FloatArray:
        """Return (n,): seconds of each download, latency included."""
        return self._spent_s(np.full(len(self.devices), self.started_s), self.download_from_s) + (
            self._spent_s(self.download_from_s, self.trained_from_s)
        )

    @cached_property
    def train_s(self) -> FloatArray:
        """Return (n,): seconds of each training."""
        return self._spent_s(self.trained_from_s, self.upload_asked_s)

    @cached_property
    def upload_s(self) -> FloatArray:
        """Return (n,): seconds of each upload, latency included."""
        return self._spent_s(self.upload_asked_s, self.upload_from_s) + (
            self._spent_s(self.upload_from_s, self.finished_s)
        )

    def _spent_s(self, from_s: FloatArray, until_s: FloatArray) -> FloatArray:
        """Return (n,): the seconds between two instants that lie before the cut."""
        return np.minimum(until_s, self.cut_s) - np.minimum(from_s, self.cut_s)

    @cached_property
    def arrivals(self) -> IntArray:
        """Return the rows of the plans that are not late, in order of arrival.

        At one instant SimPy resolves ties by who began to wait first, and so by the order in which
        the phases before ended; at last, by device.
        """
        order = self._orders[2]
        return order[~self.is_late[order]]

    @cached_property
    def _orders(self) -> tuple[IntArray, IntArray, IntArray]:
        """Return the rows (n,) in order of the end of download, of training and of upload.

        Plans that end at one instant are in order of the phases before, and last of device.
        """
        order: IntArray = np.arange(len(self.devices))
        orders = []
        for instants in (self.download_from_s, self.trained_from_s, self.upload_asked_s,
                         self.upload_from_s, self.finished_s):  # fmt: skip
            order = order[np.argsort(instants[order], kind="stable")]
            orders.append(order)
        return orders[1], orders[2], orders[4]

    @cached_property
    def happenings(self) -> tuple[FloatArray, IntArray, IntArray]:
        """Return the instant, phase and row of all events before the cut, in order.

        At one instant the server receives last, since it wakes up after the devices have.
        """
        count = len(self.devices)
        instants = (self.trained_from_s, self.upload_asked_s, self.finished_s)
        at_s = [times[order] for times, order in zip(instants, self._orders, strict=True)]
        times_s = np.concatenate([np.full(count, self.started_s), *at_s])
        rows = np.concatenate([np.arange(count), *self._orders])
        phases = np.repeat(np.arange(len(PHASES)), count)
        order = np.argsort(times_s, kind="stable")
        order = order[times_s[order] <= self.cut_s]
        return times_s[order], phases[order], rows[order]

    @cached_property
    def late_rows(self) -> IntArray:
        """Return the rows of the plans that are late, in order of device."""
        return np.flatnonzero(self.is_late)

    def told(self, phase: int) -> list[tuple[str, float]]:
        """Return for each work the name and value in the event of a phase: bytes or FLOPs."""
        match PHASES[phase]:
            case "download_started":
                return [("bytes", cost.download_bytes) for _, cost in self.works]
            case "training_started":
                return [("flops", cost.flops) for _, cost in self.works]
        return [("bytes", cost.upload_bytes) for _, cost in self.works]

    def events(self) -> Iterator[Event]:
        """Return what happens before the cut, one event after the other; then who is late."""
        details = [[dict([told]) for told in self.told(phase)] for phase in range(len(PHASES))]
        devices, works = self.devices.tolist(), self.work_index.tolist()
        for at_s, phase, row in zip(*(column.tolist() for column in self.happenings), strict=True):
            told = details[phase][works[row]]
            # SimPy's clock begins with the integer 0, which is logged as "0" and not "0.0".
            yield Event(
                at_s if phase else self.started_s, PHASES[phase], self.round, devices[row], told
            )
        for row in self.late_rows.tolist():
            yield Event(self.cut_s, "late", self.round, devices[row])

    def waits_of(self, phase: int, row: int) -> list[float]:
        """Return the instants of a device's events before the one of a phase, latest first."""
        instants = (self.trained_from_s, self.upload_asked_s)
        before = [float(times_s[row]) for times_s in instants[: max(phase - 1, 0)]]
        return [*before[::-1], self.started_s] if phase else []

    def link_rates(self) -> dict[DeviceId, LinkRate]:
        """Return the rates that the server has measured of each link that brought an update."""
        rows = self.arrivals
        work = self.work_index[rows]
        down = np.array([cost.download_bytes for _, cost in self.works])[work]
        up = np.array([cost.upload_bytes for _, cost in self.works])[work]
        rates = zip(
            (down / self.download_s[rows]).tolist(),
            (up / self.upload_s[rows]).tolist(),
            strict=True,
        )
        return dict(zip(self.devices[rows].tolist(), map(LinkRate._make, rates), strict=True))


@dataclass(frozen=True, eq=False)
class CohortEvents:
    """The events of a cohort's timeline and those of other plans of the round, in one order.

    ``others`` come with the number of the timeline's events that stand before each.
    """

    timeline: CohortTimeline
    others: Sequence[tuple[int, Event]]

    def __iter__(self) -> Iterator[Event]:
        """Return one event after the other."""
        rest, passed = self.timeline.events(), 0
        for place, event in self.others:
            while passed < place:
                yield next(rest)
                passed += 1
            yield event
        yield from rest


def in_order(
    timeline: CohortTimeline, others: Sequence[Event], num_before_cut: int
) -> CohortEvents:
    """Merge the events of other plans of the round, which are in order, with a timeline's.

    ``num_before_cut`` of the others happened before the server stopped waiting; what follows
    stands after the timeline's own, but those who are late are named in order of device. At one
    instant who began to wait first comes first, then the lower device, and the server last.
    """
    at_s, phases, rows = timeline.happenings

    def order_of(place: int) -> tuple[bool, list[float], DeviceId]:
        phase, row = int(phases[place]), int(rows[place])
        is_server = PHASES[phase] == "update_received"
        return is_server, timeline.waits_of(phase, row), int(timeline.devices[row])

    placed: list[tuple[int, Event]] = []
    # The instants of each device's events so far, at which its next wait began.
    waits: dict[DeviceId | None, list[float]] = {}
    place = 0
    for event in others[:num_before_cut]:
        since = waits.setdefault(event.device, [])
        tied = range(*(int(np.searchsorted(at_s, event.at_s, side)) for side in ("left", "right")))
        order = event.name == "update_received", since[::-1], event.device or 0
        place = max(place, tied.start + bisect_left(tied, order, key=order_of))
        placed.append((place, event))
        since.append(event.at_s)
    late = timeline.devices[timeline.late_rows].tolist()
    for event in others[num_before_cut:]:
        place = len(at_s) + (
            bisect_left(late, event.device or 0) if event.name == "late" else len(late)
        )
        placed.append((place, event))
    return CohortEvents(timeline, placed)
