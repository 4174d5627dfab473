"""Works out ahead, in arrays, the plans of a cohort that nothing can interrupt.

A plan's phases follow from its start, since link, latency, speed, memory and presence of its device
are known functions of time. Each function here is the twin of what ``simulator/engine/device.py``
does for one plan: both give the same floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algorithms.merging.robust import AS_SENT
from algorithms.pacing import Synchronous
from devices.cost.model import Cost
from devices.fleet.battery import Mains
from devices.fleet.fleet import Assigned, Fleet
from devices.vocabulary.plan import TrainingPlan
from simulator.engine.federation import Federation
from simulator.engine.presence import Presence
from simulator.engine.server_view import ServerView
from simulator.log.cohort_timeline import CohortTimeline
from traces.arrays import BoolArray, FloatArray, IntArray, groups_of
from traces.steps import StepTrace

TIE = 1e-9
"""Relative to the clock: SimPy orders events that are as near to the deadline as this."""
Workloads = tuple[Sequence[tuple[TrainingPlan, Cost]], IntArray]
"""Distinct workloads as (plan, cost), and (n,) the index of each plan among them."""


class Timelines:
    """Timelines works out the plans of a federation's cohorts ahead of the clock.

    It does so only in a run that trains nothing and paces its rounds synchronously, where no device
    shares a link or sends an attack; elsewhere every plan is simulated one by one.
    """

    def __init__(self, federation: Federation, view: ServerView, presence: Presence) -> None:
        self._fed, self._view, self._presence = federation, view, presence
        fleet = self._fleet = federation.world.fleet
        self._applies = (
            federation.is_timing_only
            and isinstance(federation.pacing, Synchronous)
            and federation.world.shared_links.is_nothing
            and federation.world.modes.are_none
            and federation.world.faults.is_honest
            and federation.rules.robustness == AS_SENT
        )
        has_mains = [isinstance(battery, Mains) for battery in fleet.battery.pool]
        lowest_free = [trace.values.min() for trace in fleet.free_memory.pool]
        self._is_on_mains: BoolArray = np.array(has_mains)[fleet.battery.index]
        self._lowest_free: FloatArray = np.array(lowest_free)[fleet.free_memory.index]

    def timeline(
        self, plans: Sequence[TrainingPlan], at: tuple[int, float], due_s: float
    ) -> CohortTimeline | None:
        """Return the timeline of those plans that nothing interrupts before ``due_s``.

        ``at`` is the round and the instant in which they are dispatched, and at ``due_s`` the
        server stops waiting. None where there is no such plan.
        """
        if not self._applies or not plans:
            return None
        plans = sorted(plans, key=lambda plan: plan.device_id)
        devices = np.array([plan.device_id for plan in plans], dtype=np.int64)
        works = self._works(plans)
        needed_bytes = np.array([cost.memory.total for _, cost in works[0]])[works[1]]
        share = needed_bytes / self._fleet.memory_budget_bytes[devices]
        is_sent = np.array([cost.download_bytes * cost.upload_bytes > 0 for _, cost in works[0]])
        fits = self._is_on_mains[devices] & (self._lowest_free[devices] >= share)
        # A phase that takes no time would change the order of events at one instant.
        fits &= is_sent[works[1]]
        if not fits.any():
            return None
        times = _PlanTimes(self._fleet, devices, works, float(at[1]))
        fits &= times.are_timely(due_s)
        fits &= self._are_there(devices, at[1], np.minimum(times.finished_s, due_s), due_s)
        rows = self._while_server_up(np.flatnonzero(fits), times.finished_s, at[1], due_s)
        if not len(rows):
            return None
        return times.timeline(rows, plans, at, due_s)

    def _works(self, plans: Sequence[TrainingPlan]) -> Workloads:
        found: dict[int, int] = {}  # id of a cost, which is one object for equal works -> its index
        works: list[tuple[TrainingPlan, Cost]] = []
        index = []
        for plan in plans:
            cost = self._view.cost(plan)
            if id(cost) not in found:
                found[id(cost)] = len(works)
                works.append((plan, cost))
            index.append(found[id(cost)])
        return works, np.array(index, dtype=np.int64)

    def _are_there(
        self, devices: IntArray, now_s: float, until_s: FloatArray, due_s: float
    ) -> BoolArray:
        """Return (n,) True for devices that keep presence and link until these instants.

        Where an instant is the deadline, they keep them beyond it.
        """
        faults = self._fed.world.faults
        gone_s = self._presence.gone_s(devices)
        if faults.may_lose_links.any():
            for row in np.flatnonzero(faults.may_lose_links[devices]).tolist():
                is_up, lost_s = faults.link_losses(int(devices[row])).span(now_s)
                gone_s[row] = min(gone_s[row], lost_s) if is_up else -math.inf
        stays: BoolArray = (gone_s >= until_s) & ~_is_near(gone_s, due_s)
        return stays

    def _while_server_up(
        self, rows: IntArray, finished_s: FloatArray, now_s: float, due_s: float
    ) -> IntArray:
        """Return the rows, or none where the server restarts before all of them have ended."""
        is_up, until_s = self._fed.world.faults.server.span(now_s)
        last_s = min(finished_s[rows].max(initial=now_s), due_s)
        return rows if is_up and until_s > last_s * (1 + TIE) else rows[:0]


class _PlanTimes:
    """Plan times are the (n,) instants of each phase of plans that start together, without cuts."""

    def __init__(self, fleet: Fleet, devices: IntArray, works: Workloads, now_s: float) -> None:
        self._fleet, self._devices, self._works = fleet, devices, works
        distinct, index = works
        costs = [cost for _, cost in distinct]
        down = np.array([cost.download_bytes for cost in costs], dtype=np.float64)[index]
        up = np.array([cost.upload_bytes for cost in costs], dtype=np.float64)[index]
        work_s = np.array([cost.train_s for cost in costs])[index]
        downlink = _Pace.of(fleet.link, [link.downlink.steps for link in fleet.link.pool])
        uplink = _Pace.of(fleet.link, [link.uplink.steps for link in fleet.link.pool])
        speed = _Pace.of(fleet.speed, fleet.speed.pool, fleet.speed_factor)
        # False for plans with a phase that never ends, or is too short to move the clock.
        self.has_lasted = np.ones(len(devices), dtype=np.bool_)
        self.now_s = np.full(len(devices), now_s)
        self.waits_s: list[FloatArray] = []
        latency_s = self._latency_s()
        self.download_from_s = self._after(latency_s, latency_s > 0)
        self.trained_from_s = self._after(downlink.times_to(devices, down, self.now_s))
        self.upload_asked_s = self._after(speed.times_to(devices, work_s, self.now_s))
        latency_s = self._latency_s()
        self.upload_from_s = self._after(latency_s, latency_s > 0)
        self.finished_s = self._after(uplink.times_to(devices, up, self.now_s))

    def _latency_s(self) -> FloatArray:
        return _values_at(self._fleet.latency, self._devices, self.now_s)

    def _after(self, needed_s: FloatArray, takes_time: BoolArray | bool = True) -> FloatArray:
        """Return (n,) the clocks after these seconds, unchanged where those are infinite."""
        ends_s: FloatArray = self.now_s + needed_s
        self.has_lasted &= np.isfinite(ends_s) & ((ends_s > self.now_s) | ~np.asarray(takes_time))
        self.waits_s.append(needed_s)
        self.now_s = np.where(np.isfinite(ends_s), ends_s, self.now_s)
        return self.now_s

    def are_timely(self, due_s: float) -> BoolArray:
        """Return (n,) True for plans whose phases take time and do not end at the very deadline."""
        timely = self.has_lasted.copy()
        if math.isfinite(due_s):
            for instants in (self.download_from_s, self.trained_from_s, self.upload_asked_s,
                             self.upload_from_s, self.finished_s):  # fmt: skip
                timely &= ~_is_near(instants, due_s)
        return timely

    def timeline(
        self, rows: IntArray, plans: Sequence[TrainingPlan], at: tuple[int, float], due_s: float
    ) -> CohortTimeline:
        """Return the timeline of these rows."""
        fleet, devices = self._fleet, self._devices[rows]
        budget = fleet.memory_budget_bytes[devices]
        free = _values_at(fleet.free_memory, devices, self.trained_from_s[rows])
        made = CohortTimeline(
            fleet=fleet,
            round=at[0],
            started_s=at[1],
            plans=[plans[row] for row in rows.tolist()],
            devices=devices,
            works=self._works[0],
            work_index=self._works[1][rows],
            download_from_s=self.download_from_s[rows],
            trained_from_s=self.trained_from_s[rows],
            upload_asked_s=self.upload_asked_s[rows],
            upload_from_s=self.upload_from_s[rows],
            finished_s=self.finished_s[rows],
            free_memory_bytes=(free * budget).astype(np.int64),
            cut_s=due_s,
            last_waits_s=(),
        )
        if len(made.arrivals):
            last = rows[made.arrivals[-1]]
            waits_s = tuple(float(needed_s[last]) for needed_s in self.waits_s)
            object.__setattr__(made, "last_waits_s", waits_s)
        return made


@dataclass(frozen=True, eq=False)
class _Pace:
    """A pace is the rate at which each device of a fleet moves bytes or does work, over time."""

    traces: Sequence[StepTrace]
    index: IntArray  # (n,): the index of each device's trace
    offset_s: FloatArray
    factor: FloatArray | None  # (n,): factors on the values of traces; None where all are 1

    @classmethod
    def of(
        cls,
        assigned: Assigned[object],
        traces: Sequence[StepTrace],
        factor: FloatArray | None = None,
    ) -> _Pace:
        """Return the pace of these traces as they are assigned to devices."""
        return cls(traces, assigned.index, assigned.offset_s, factor)

    def times_to(self, devices: IntArray, amounts: FloatArray, starts_s: FloatArray) -> FloatArray:
        """Return (n,) seconds that these devices need for these amounts from these instants."""
        needed_s = np.empty(len(devices))
        for rows, k in groups_of(self.index[devices]):
            trace, mine = self.traces[k], devices[rows]
            factor = None if self.factor is None else self.factor[mine]
            if len(trace.values) == 1 and trace.values[0] > 0:
                value = trace.values[0] if factor is None else trace.values[0] * factor
                needed_s[rows] = amounts[rows] / value
            elif factor is None or (factor == 1.0).all():
                needed_s[rows] = trace.times_to(amounts[rows], starts_s[rows], self.offset_s[mine])
            else:
                for row in rows.tolist():
                    own = trace.begun_at(float(self.offset_s[devices[row]]))
                    own = own.scaled(float(self.factor[devices[row]]))  # type: ignore[index]
                    needed_s[row] = own.time_to(float(amounts[row]), float(starts_s[row]))
        return needed_s


def _values_at(assigned: Assigned[StepTrace], devices: IntArray, at_s: FloatArray) -> FloatArray:
    """Return (n,) the value that each device's trace has at its instant."""
    if len(assigned.pool) == 1 and len(assigned.pool[0].values) == 1:
        return np.full(len(devices), assigned.pool[0].values[0])
    found = np.empty(len(devices))
    for rows, k in groups_of(assigned.index[devices]):
        found[rows] = assigned.pool[k].values_at(at_s[rows], assigned.offset_s[devices[rows]])
    return found


def _is_near(instants: FloatArray, due_s: float) -> BoolArray:
    """Return (n,) True for instants so near to ``due_s`` that rounding decides the order."""
    if math.isinf(due_s):
        return np.zeros(len(instants), dtype=np.bool_)
    near: BoolArray = np.abs(instants - due_s) <= TIE * max(due_s, 1.0)
    return near
