"""Works out the timeline of one plan as it is dispatched, where nothing can cut it on its way.

The timeline is the twin of the process in ``simulator/engine/device.py``: the same instants, events
and record, with one timeout for each phase and no process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from simulator.engine.assignment import Assignment
from simulator.engine.clock import at_this_instant
from simulator.engine.device import DeviceContext, end_plan
from simulator.engine.network import shown_s
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
    cost, presence, tracks = work.cost, context.presence, context.tracks
    now_s, device_id = float(context.env.now), work.plan.device_id
    share = cost.memory.total / tracks.memory_budget_bytes.item(device_id)
    if (
        context.may_be_cut[device_id]
        or tracks.free_memory.lowest(device_id) < share
        or not presence.is_there(device_id, now_s)
    ):
        return None
    is_up, until_s = context.world.faults.server.span(now_s)
    until_s = min(until_s, presence.until_s(device_id, now_s)) if is_up else now_s
    made: list[Stage] = []
    phases: tuple[tuple[Phase, Any, float], ...] = (
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


class PlanTimeline:
    """A timeline takes its plan from stage to stage until it ends or the server cuts it."""

    __slots__ = (
        "_amount", "_context", "_env", "_inbox", "_phase", "_record", "_rest", "_since_s", "_told",
        "_work", "is_alive",
    )  # fmt: skip

    def __init__(
        self, context: DeviceContext, work: Assignment, stages: Sequence[Stage], inbox: Any
    ) -> None:
        self._context, self._work, self._inbox = context, work, inbox
        self._env, self._record = context.env, cast(PlanRow, work.record)
        cost = work.cost
        self._told = context.told(cost.download_bytes, cost.flops, cost.upload_bytes)
        self._rest = list(reversed(stages))
        # The phase, the amount and the start of the stage that is under way.
        self._phase: Phase = "download"
        self._amount = self._since_s = 0.0
        self.is_alive = True

    def begin(self) -> None:
        """Begin with the first stage at this instant, once the server waits."""
        at_this_instant(self._env, self._begin)

    def interrupt(self, cause: str) -> None:
        """Cut the plan at this instant, after what is already about to happen at it."""
        at_this_instant(self._env, self._cut)

    def _begin(self, _: Any) -> None:
        now_s = self._env.now
        self._event("download_started", self._told.download)
        self._wait(now_s)

    def _wait(self, now_s: float) -> None:
        self._phase, wait_s, self._amount = self._rest.pop()
        self._since_s = now_s
        self._env.timeout(wait_s).callbacks.append(self._ended)

    def _ended(self, _: Any) -> None:
        if not self.is_alive:
            return
        now_s = self._env.now
        self._spend(now_s)
        if self._amount != LATENCY:
            self._complete(now_s)
        if self._rest:
            self._wait(now_s)
        else:
            self._end("aggregated")

    def _complete(self, now_s: float) -> None:
        """Note that a phase has done all that it had to, and what begins after it."""
        record, cost, phase = self._record, self._work.cost, self._phase
        if phase == "download":
            tracks, device_id = self._context.tracks, record.device_id
            record.download_bytes = cost.download_bytes
            free = tracks.free_memory.at(device_id, now_s)
            record.free_memory_bytes = int(free * tracks.memory_budget_bytes.item(device_id))
            self._event("training_started", self._told.training)
        elif phase == "train":
            record.flops = float(cost.flops)
            self._event("upload_started", self._told.upload)
        else:
            record.upload_bytes = cost.upload_bytes

    def _cut(self, _: Any) -> None:
        """Count what the stage under way has done so far, and end the plan as late."""
        if self.is_alive:
            now_s = self._env.now
            self._spend(now_s)
            self._count_part(now_s)
            self._event("late", NO_DETAILS)
            self._end("late")

    def _count_part(self, now_s: float) -> None:
        amount, phase, device = self._amount, self._phase, self._work.device
        if amount == LATENCY:
            return
        trace = {
            "download": device.link.downlink.steps,
            "train": device.speed,
            "upload": device.link.uplink.steps,
        }[phase]
        moved = min(trace.amount(now_s) - trace.amount(self._since_s), amount)
        record, cost = self._record, self._work.cost
        match phase:
            case "download":
                record.download_bytes = round(moved)
            case "train":
                record.flops = cost.flops * (moved / amount) if amount else float(cost.flops)
            case _:
                record.upload_bytes = round(moved)

    def _spend(self, now_s: float) -> None:
        elapsed_s, record, phase = now_s - self._since_s, self._record, self._phase
        if phase == "download":
            record.download_s += elapsed_s
        elif phase == "train":
            record.train_s += elapsed_s
        else:
            record.upload_s += elapsed_s

    def _end(self, outcome: Literal["aggregated", "late"]) -> None:
        self.is_alive = False
        cost = self._work.cost
        delivered_bytes = cost.download_bytes if self._phase != "download" else 0
        delivered_bytes += cost.upload_bytes if outcome == "aggregated" else 0
        self._record.outcome = outcome
        end_plan(self._context, self._work, delivered_bytes)
        self._inbox.put(self._work)

    def _event(self, name: str, details: Mapping[str, Any]) -> None:
        record = self._record
        self._context.log.event(Event(self._env.now, name, record.round, record.device_id, details))
