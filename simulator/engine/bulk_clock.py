"""Which hand-outs nothing can cut short, and when each of their phases ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from algorithms.merging.robust import AS_SENT
from algorithms.pacing import Synchronous
from devices.cost.model import Cost
from devices.fleet.fleet import Assigned, Fleet
from devices.vocabulary.plan import TrainingPlan
from devices.vocabulary.trainer import NullTrainer
from simulator.engine.federation import Federation
from simulator.engine.presence import Presence
from simulator.log.bulk_round import Wave
from traces.arrays import BoolArray, FloatArray, IntArray
from traces.steps import StepTrace


class Waves:
    """Tells which hand-outs are waves, and works them out."""

    def __init__(self, federation: Federation, presence: Presence) -> None:
        self._fed, self._presence = federation, presence
        fleet = federation.fleet
        if (
            isinstance(federation.trainer, NullTrainer)
            and isinstance(federation.pacing, Synchronous)
            and not federation.faults.may_cut_links
            and federation.shared_links.is_nothing
            and federation.faults.is_honest
            and federation.robustness == AS_SENT
        ):
            self._fleet: Fleet | None = fleet
            self._is_plain: BoolArray = _has(
                fleet.latency, lambda trace: not trace.values.any()
            ) & _has(fleet.free_memory, lambda trace: bool((trace.values >= 1).all()))
        else:
            self._fleet = None

    def wave(
        self, plans: Sequence[TrainingPlan], at: tuple[int, float], due_s: float
    ) -> Wave | None:
        """The plans as a wave, handed out in this round at this instant, and to end before another.

        None where something may cut one of them.
        """
        fleet = self._fleet
        if fleet is None or not plans:
            return None
        plans = sorted(plans, key=lambda plan: plan.device_id)
        devices = np.array([plan.device_id for plan in plans], dtype=np.int64)
        if not (self._is_plain[devices].all() and self._presence.stays(devices)):
            return None
        works, index = self._works(plans)
        costs = [cost for _, cost in works]
        needed_bytes = np.array([cost.memory.total for cost in costs])[index]
        if (needed_bytes > fleet.memory_budget_bytes[devices]).any():
            return None
        wave = _lived(fleet, plans, devices, works=(works, index), at=at)
        phases = (wave.download_s, wave.train_s, wave.upload_s)
        lasting = all(bool((phase > 0).all()) for phase in phases)
        is_whole = (
            lasting and math.isfinite(wave.finished_s.max()) and wave.finished_s.max() < due_s
        )
        return wave if is_whole else None

    def _works(
        self, plans: Sequence[TrainingPlan]
    ) -> tuple[list[tuple[TrainingPlan, Cost]], IntArray]:
        """Distinct works, and which of them each plan is."""
        found: dict[int, int] = {}  # by the cost, which the view makes once for each work
        works: list[tuple[TrainingPlan, Cost]] = []
        index = []
        for plan in plans:
            cost = self._fed.view.cost(plan)
            if id(cost) not in found:
                found[id(cost)] = len(works)
                works.append((plan, cost))
            index.append(found[id(cost)])
        return works, np.array(index, dtype=np.int64)


def _lived(
    fleet: Fleet,
    plans: Sequence[TrainingPlan],
    devices: IntArray,
    *,
    works: tuple[Sequence[tuple[TrainingPlan, Cost]], IntArray],
    at: tuple[int, float],
) -> Wave:
    distinct, index = works
    costs = [cost for _, cost in distinct]
    down = np.array([cost.download_bytes for cost in costs], dtype=np.float64)[index]
    up = np.array([cost.upload_bytes for cost in costs], dtype=np.float64)[index]
    work_s = np.array([cost.train_s for cost in costs])[index]
    downlinks = [link.downlink.steps for link in fleet.link.pool]
    uplinks = [link.uplink.steps for link in fleet.link.pool]
    now_s = np.full(len(devices), float(at[1]))
    ends_s = [now_s]
    for traces, assigned, amounts, factors in (
        (downlinks, fleet.link, down, np.ones(len(fleet))),
        (fleet.speed.pool, fleet.speed, work_s, fleet.speed_factor),
        (uplinks, fleet.link, up, np.ones(len(fleet))),
    ):
        pace = _Pace(traces, assigned.index, assigned.offset_s, factors)
        ends_s.append(ends_s[-1] + pace.times_to(devices, amounts, ends_s[-1]))
    return Wave(fleet, *at, plans, devices, distinct, index, *ends_s[1:])


@dataclass(frozen=True, eq=False)
class _Pace:
    """How fast amounts come together on each device of a fleet."""

    traces: Sequence[StepTrace]
    index: IntArray  # of each device's trace
    offset_s: FloatArray
    factor: FloatArray  # of its values

    def times_to(self, devices: IntArray, amounts: FloatArray, starts_s: FloatArray) -> FloatArray:
        """Seconds that these devices need from these instants: all (n,)."""
        needed_s = np.empty(len(devices))
        of_trace = self.index[devices]
        order = np.argsort(of_trace, kind="stable")
        cuts = np.flatnonzero(np.diff(of_trace[order])) + 1
        for rows in np.split(order, cuts):
            trace, mine = self.traces[int(of_trace[rows[0]])], devices[rows]
            if len(trace.values) == 1 and trace.values[0] > 0:
                needed_s[rows] = amounts[rows] / (trace.values[0] * self.factor[mine])
            elif (self.factor[mine] == 1.0).all():
                needed_s[rows] = trace.times_to(amounts[rows], starts_s[rows], self.offset_s[mine])
            else:
                for row in rows.tolist():
                    own = trace.begun_at(float(self.offset_s[devices[row]]))
                    own = own.scaled(float(self.factor[devices[row]]))
                    needed_s[row] = own.time_to(float(amounts[row]), float(starts_s[row]))
        return needed_s


def _has(assigned: Assigned[StepTrace], holds: Callable[[StepTrace], bool]) -> BoolArray:
    """(n,): whether it holds of the trace of each device."""
    found: BoolArray = np.array([holds(trace) for trace in assigned.pool])[assigned.index]
    return found
