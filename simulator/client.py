"""One device's part of a round, as a SimPy process: download, train, upload."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import simpy

from devices.cost.model import Cost
from devices.fleet import Device
from devices.plan import Broadcast, Timing, TrainingPlan
from simulator.records import ClientRecord, Event
from simulator.store import RunLog
from traces.bandwidth import BandwidthTrace

NO_DETAILS: Mapping[str, Any] = {}


@dataclass(frozen=True, eq=False)
class Assignment:
    """A plan on its way: what the server remembers of it until its end."""

    plan: TrainingPlan
    broadcast: Broadcast
    device: Device
    cost: Cost
    training_seed: int
    wire_seed: int
    record: ClientRecord

    @property
    def timing(self) -> Timing:
        """The seconds that the server has measured."""
        return Timing(self.record.download_s, self.record.train_s, self.record.upload_s)


def run_client(
    env: simpy.Environment, work: Assignment, inbox: simpy.Store, log: RunLog
) -> Generator[simpy.Event, Any, None]:
    """Live through one plan, and tell the server how it ended.

    An interrupt means that the server has stopped waiting: what was under way is cut, and counted
    up to that instant.
    """
    record, link, cost = work.record, work.device.link, work.cost
    phase = _Phase(env, log, record)
    try:
        yield from phase.transfer("download", link.downlink, cost.download_bytes)
        if cost.memory.total > work.device.memory_budget_bytes:
            record.outcome = "oom"
            needed, budget = cost.memory.total, record.memory_budget_bytes
            phase.event("oom", {"needed_bytes": needed, "budget_bytes": budget})
        else:
            yield from phase.train(cost)
            yield from phase.transfer("upload", link.uplink, cost.upload_bytes)
            record.outcome = "aggregated"
    except simpy.Interrupt:
        record.outcome = "late"
        phase.event("late")
    record.finished_s = env.now
    inbox.put(work)


class _Phase:
    """Runs one phase, and keeps the record right when it is cut short."""

    def __init__(self, env: simpy.Environment, log: RunLog, record: ClientRecord) -> None:
        self.env, self.log, self.record = env, log, record

    def event(self, name: str, details: Mapping[str, Any] = NO_DETAILS) -> None:
        record = self.record
        self.log.event(Event(self.env.now, name, record.round, record.device_id, details))

    def transfer(
        self, direction: str, trace: BandwidthTrace, size_bytes: int
    ) -> Generator[simpy.Event, Any, None]:
        self.event(f"{direction}_started", {"bytes": size_bytes})
        started_s = self.env.now
        carried = size_bytes
        try:
            yield self.env.timeout(trace.transfer_s(size_bytes, started_s))
        except simpy.Interrupt:
            moved = trace.carried_bytes(self.env.now) - trace.carried_bytes(started_s)
            carried = min(size_bytes, int(moved))
            raise
        finally:
            setattr(self.record, f"{direction}_s", self.env.now - started_s)
            setattr(self.record, f"{direction}_bytes", carried)

    def train(self, cost: Cost) -> Generator[simpy.Event, Any, None]:
        self.event("training_started", {"flops": cost.flops})
        started_s = self.env.now
        try:
            yield self.env.timeout(cost.train_s)
        finally:
            self.record.train_s = self.env.now - started_s
            self.record.flops = cost.flops * self.record.train_s / cost.train_s
