"""Works out the timeline of one plan as it is dispatched, where nothing can cut it on its way.

The timeline is the twin of the process in ``simulator/engine/device.py``: the same instants, events
and record, with one timeout for each phase and no process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import simpy
from simpy.events import URGENT

from simulator.engine.assignment import Assignment
from simulator.engine.clock import Mailbox, at_this_instant
from simulator.engine.device import DeviceContext, end_plan
from simulator.engine.network import shown_s
from simulator.engine.tracks import Track
from simulator.log.records import NO_DETAILS, Event, PlanRow

Phase = Literal["download", "train", "upload"]
Stage = tuple[Phase, float, float]
"""A stage of a plan is a latency, a transfer or the training: the phase that it is part of, the
seconds that it takes, and the bytes or seconds of work that it does; -1 for a latency."""
LATENCY = -1.0


def stages_of(context: DeviceContext, work: Assignment) -> list[Stage] | None:
    """Return the stages of a plan that begins now, or None where something may cut one of them.

    A plan that the server may stop waiting for has stages all the same.
    """
    cost, tracks = work.cost, context.tracks
    now_s, device_id = float(context.env.now), work.plan.device_id
    share = cost.memory.total / tracks.memory_budget_bytes.item(device_id)
    if context.may_be_cut.item(device_id) or tracks.free_memory.lowest(device_id) < share:
        return None
    is_up, until_s = context.world.faults.server.span(now_s)
    until_s = min(until_s, context.presence.stays_until_s(device_id, now_s)) if is_up else now_s
    made: list[Stage] = []
    phases: tuple[tuple[Phase, Track, float], ...] = (
        ("download", tracks.downlink, cost.download_bytes),
        ("train", tracks.speed, cost.train_s),
        ("upload", tracks.uplink, cost.upload_bytes),
    )
    for phase, track, amount in phases:
        if phase != "train" and amount and (latency_s := tracks.latency.at(device_id, now_s)):
            wait_s = shown_s(latency_s, now_s)
            made.append((phase, wait_s, LATENCY))
            now_s += wait_s
        wait_s = shown_s(track.time_to(device_id, amount, now_s), now_s)
        made.append((phase, wait_s, amount))
        now_s += wait_s
        if not now_s < until_s:
            return None
    return made


class PlanTimeline(simpy.Event):
    """A timeline takes its plan from stage to stage until it ends or the server cuts it.

    It is its own event, which happens at the end of each stage.
    """

    def __init__(
        self, context: DeviceContext, work: Assignment, stages: Sequence[Stage], inbox: Mailbox
    ) -> None:
        super().__init__(context.env)
        self._ok, self._value = True, None
        self._context, self._work, self._inbox = context, work, inbox
        self._record = cast(PlanRow, work.record)
        cost = work.cost
        self._told = context.told(cost.download_bytes, cost.flops, cost.upload_bytes)
        self._stages, self._num_ended = stages, 0
        self.is_alive = True

    def begin(self) -> None:
        """Begin with the first stage at this instant, once the server waits."""
        self.callbacks.append(self._begin)
        self.env.schedule(self, URGENT)

    def interrupt(self, cause: str) -> None:
        """Cut the plan at this instant, after what is already about to happen at it."""
        at_this_instant(self.env, self._cut)

    def _begin(self, _: Any) -> None:
        self._event("download_started", self._told.download)
        self._wait()

    def _wait(self) -> None:
        self.callbacks = [self._ended]
        self.env.schedule(self, delay=self._stages[self._num_ended][1])

    def _ended(self, _: Any) -> None:
        if not self.is_alive:
            return
        phase, _, amount = self._stages[self._num_ended]
        self._num_ended += 1
        if phase == "train":
            self._event("upload_started", self._told.upload)
        elif amount != LATENCY:
            if phase == "upload":
                self._spend()
                self._end("aggregated", self._record.download_bytes + self._record.upload_bytes)
                return
            self._event("training_started", self._told.training)
        self._wait()

    def _cut(self, _: Any) -> None:
        """Count what the stage under way has done so far, and end the plan as late."""
        if self.is_alive:
            since_s, delivered_bytes = self._spend(), self._record.download_bytes
            self._count_part(since_s)
            self._event("late", NO_DETAILS)
            self._end("late", delivered_bytes)

    def _spend(self) -> float:
        """Record the stages that have ended, and return the instant at which the last one did."""
        record, cost, tracks = self._record, self._work.cost, self._context.tracks
        since_s = record.started_s
        for phase, wait_s, amount in self._stages[: self._num_ended]:
            now_s = since_s + wait_s
            if phase == "train":
                record.train_s, record.flops = now_s - since_s, float(cost.flops)
            elif phase == "upload":
                record.upload_s += now_s - since_s
                record.upload_bytes = 0 if amount == LATENCY else cost.upload_bytes
            else:
                record.download_s += now_s - since_s
                if amount != LATENCY:
                    record.download_bytes = cost.download_bytes
                    free = tracks.free_memory.at(record.device_id, now_s)
                    budget_bytes = tracks.memory_budget_bytes.item(record.device_id)
                    record.free_memory_bytes = int(free * budget_bytes)
            since_s = now_s
        return since_s

    def _count_part(self, since_s: float) -> None:
        """Record what the stage under way has done since it began."""
        record, cost, device = self._record, self._work.cost, self._work.device
        now_s, (phase, _, amount) = self.env.now, self._stages[self._num_ended]
        trace = {
            "download": device.link.downlink.steps,
            "train": device.speed,
            "upload": device.link.uplink.steps,
        }[phase]
        is_latency = amount == LATENCY
        moved = 0 if is_latency else min(trace.amount(now_s) - trace.amount(since_s), amount)
        match phase:
            case "download":
                record.download_s += now_s - since_s
                record.download_bytes = round(moved)
            case "train":
                record.train_s = now_s - since_s
                record.flops = cost.flops * (moved / amount) if amount else float(cost.flops)
            case _:
                record.upload_s += now_s - since_s
                record.upload_bytes = round(moved)

    def _end(self, outcome: Literal["aggregated", "late"], delivered_bytes: int) -> None:
        self.is_alive = False
        self._record.outcome = outcome
        end_plan(self._context, self._work, delivered_bytes)
        self._inbox.put(self._work)

    def _event(self, name: str, details: Mapping[str, Any]) -> None:
        record = self._record
        self._context.log.event(Event(self.env.now, name, record.round, record.device_id, details))
