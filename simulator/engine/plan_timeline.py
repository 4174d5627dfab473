"""Works out the timeline of one plan as it is dispatched, where nothing can cut it on its way.

The timeline is the twin of the process in ``simulator/engine/device.py``: the same instants, events
and record, with one timeout for each phase and no process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from simulator.engine.assignment import Assignment
from simulator.engine.clock import at_this_instant
from simulator.engine.device import DeviceContext, end_plan
from simulator.engine.network import shown_s
from simulator.log.records import Event, PlanRow
from traces.steps import StepTrace


class _Stage(NamedTuple):
    """A stage of a plan is a latency, a transfer or the training."""

    phase: str  # "download", "train" or "upload"
    wait_s: float
    amount: float = 0.0  # bytes, or seconds of work at full speed; 0 for a latency
    trace: StepTrace | None = None  # how the amount gets done


def stages_of(context: DeviceContext, work: Assignment) -> list[_Stage] | None:
    """Return the stages of a plan that begins now, or None where something may cut one of them.

    A plan that the server may stop waiting for has stages all the same.
    """
    device, cost, presence = work.device, work.cost, context.presence
    now_s, device_id = float(context.env.now), device.device_id
    if (
        context.may_be_cut[device_id]
        or device.free_memory.lowest < cost.memory.total / device.memory_budget_bytes
        or not presence.is_there(device_id, now_s)
    ):
        return None
    is_up, until_s = context.world.faults.server.span(now_s)
    until_s = min(until_s, presence.until_s(device_id, now_s)) if is_up else now_s
    made: list[_Stage] = []
    for phase, trace, amount in (
        ("download", device.link.downlink.steps, cost.download_bytes),
        ("train", device.speed, cost.train_s),
        ("upload", device.link.uplink.steps, cost.upload_bytes),
    ):
        latency_s = device.latency.at(now_s) if phase != "train" and amount else 0.0
        if latency_s:
            made.append(_Stage(phase, shown_s(latency_s, now_s)))
            now_s += made[-1].wait_s
        made.append(_Stage(phase, shown_s(trace.time_to(amount, now_s), now_s), amount, trace))
        now_s += made[-1].wait_s
        if not now_s < until_s:
            return None
    return made


class PlanTimeline:
    """A timeline takes its plan from stage to stage until it ends or the server cuts it."""

    def __init__(
        self, context: DeviceContext, work: Assignment, stages: Sequence[_Stage], inbox: Any
    ) -> None:
        self._context, self._work, self._inbox = context, work, inbox
        self._env, self._record = context.env, cast(PlanRow, work.record)
        self._rest = list(reversed(stages))
        self._stage, self._since_s = stages[0], 0.0
        self.is_alive = True

    def begin(self) -> None:
        """Begin with the first stage at this instant, once the server waits."""
        at_this_instant(self._env, self._begin)

    def interrupt(self, cause: str) -> None:
        """Cut the plan at this instant, after what is already about to happen at it."""
        at_this_instant(self._env, self._cut)

    def _begin(self, _: Any) -> None:
        self._event("download_started", {"bytes": self._work.cost.download_bytes})
        self._wait()

    def _wait(self) -> None:
        self._stage, self._since_s = self._rest.pop(), self._env.now
        self._env.timeout(self._stage.wait_s).callbacks.append(self._ended)

    def _ended(self, _: Any) -> None:
        if not self.is_alive:
            return
        self._spend()
        if self._stage.trace is not None:
            self._complete(self._stage.phase)
        if self._rest:
            self._wait()
        else:
            self._end("aggregated")

    def _complete(self, phase: str) -> None:
        """Note that a phase has done all that it had to, and what begins after it."""
        record, cost, device = self._record, self._work.cost, self._work.device
        match phase:
            case "download":
                record.download_bytes = cost.download_bytes
                free = device.free_memory.at(self._env.now)
                record.free_memory_bytes = int(free * device.memory_budget_bytes)
                self._event("training_started", {"flops": cost.flops})
            case "train":
                record.flops = float(cost.flops)
                self._event("upload_started", {"bytes": cost.upload_bytes})
            case _:
                record.upload_bytes = cost.upload_bytes

    def _cut(self, _: Any) -> None:
        """Count what the stage under way has done so far, and end the plan as late."""
        if self.is_alive:
            self._spend()
            self._count_part()
            self._end("late")

    def _count_part(self) -> None:
        phase, _, amount, trace = self._stage
        if trace is None:
            return
        moved = min(trace.amount(self._env.now) - trace.amount(self._since_s), amount)
        record, cost = self._record, self._work.cost
        match phase:
            case "download":
                record.download_bytes = round(moved)
            case "train":
                record.flops = cost.flops * (moved / amount) if amount else float(cost.flops)
            case _:
                record.upload_bytes = round(moved)

    def _spend(self) -> None:
        elapsed_s, record = self._env.now - self._since_s, self._record
        match self._stage.phase:
            case "download":
                record.download_s += elapsed_s
            case "train":
                record.train_s += elapsed_s
            case _:
                record.upload_s += elapsed_s

    def _end(self, outcome: Any) -> None:
        self.is_alive = False
        if outcome == "late":
            self._event("late", {})
        cost, record = self._work.cost, self._record
        delivered_bytes = cost.download_bytes if self._has_downloaded else 0
        delivered_bytes += cost.upload_bytes if outcome == "aggregated" else 0
        record.outcome = outcome
        end_plan(self._context, self._work, delivered_bytes)
        self._inbox.put(self._work)

    @property
    def _has_downloaded(self) -> bool:
        return self._stage.phase != "download"

    def _event(self, name: str, details: Mapping[str, Any]) -> None:
        record = self._record
        self._context.log.event(Event(self._env.now, name, record.round, record.device_id, details))
