"""Checks what must hold in every run while it goes on; a broken rule stops the run.

The checks read what a run logs and nothing else, so that an event that is missing, doubled or out
of place is found here, however the engine came to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from devices.vocabulary.plan import Adapter, DeviceId
from simulator.log.cohort_timeline import CohortEvents, CohortTimeline
from simulator.log.records import (
    NUM_UNMERGED,
    ClientRecord,
    ClientTable,
    Columns,
    Event,
    Outcome,
    RoundRecord,
)

TOLERANCE = 1e-9
"""Relative tolerance: seconds are sums of a few dozen doubles, each rounded to 1e-16."""

COMES_AND_GOES = ("joined", "left")
"""Events of a device that need no plan."""
TRAINED = ("training_started", "upload_started")
"""Phases that a plan reaches only where its memory sufficed."""


class InvariantError(Exception):
    """The simulator contradicts itself; the message names the event that broke the rule."""


@dataclass(slots=True)
class _Work:
    """The work on one plan, as far as the events of its device tell."""

    started_s: float
    phase: str = "dispatched"
    carried_bytes: int = 0  # of the transfer under way
    delivered_bytes: int = 0
    is_received: bool = False


class CheckedLog:
    """A checked log checks what it is told, and stands last among the logs of a run.

    Every method raises InvariantError, once the other logs have what breaks a rule.
    """

    def __init__(self) -> None:
        self._last = Event(0.0, "start", 0)
        self._asked: set[DeviceId] = set()  # of the last cohorts: has not begun, nor sat out
        self._works: dict[DeviceId, deque[_Work]] = {}  # without a record yet, in order
        self._free_s: dict[DeviceId, float] = {}  # end of the device's last plan
        self._merged: list[DeviceId] = []  # this round, by the event
        self._recorded: list[tuple[DeviceId, Outcome]] = []  # this round
        self._timeline: CohortTimeline | None = None  # without its records yet
        self._closed: RoundRecord | None = None
        self._num_planned = self._num_begun = 0
        self._is_cut = False  # an update that arrived was not merged: only at the end of a run

    def event(self, event: Event) -> None:
        """Check an event of the engine."""
        if not self._last.at_s <= event.at_s < math.inf:
            self._broken(f"the clock must not go back, got {event.at_s!r} s", event)
        self._last = event
        if event.name == "aggregated":
            self._merged += event.details["devices"]
        elif event.device is not None and event.name not in COMES_AND_GOES:
            self._of_device(event, event.device)
        elif "cohort" in event.details:
            if self._is_cut:
                self._broken("an update that arrived must be merged or refused until the run ends")
            self._asked.update(event.details["cohort"])

    def _of_device(self, event: Event, device_id: DeviceId) -> None:
        name = event.name
        if name == "sat_out":
            self._asked.discard(device_id)
            return
        works = self._works.setdefault(device_id, deque())
        if name == "download_started" and not (works and works[-1].phase == "shrunk"):
            if device_id not in self._asked:
                self._broken("a device must begin once for each time that it was asked")
            self._asked.remove(device_id)
            self._num_begun += 1
            works.append(_Work(event.at_s))
        elif not works:
            self._broken("a device without a plan must do nothing")
        self._follow(works[-1], event)

    def _follow(self, work: _Work, event: Event) -> None:
        """Count the bytes delivered: a transfer has ended well where the next phase begins."""
        name = event.name
        if name in ("training_started", "oom"):
            work.delivered_bytes += work.carried_bytes
            work.carried_bytes, work.phase = 0, name
        elif name in ("download_started", "upload_started"):
            work.carried_bytes, work.phase = event.details["bytes"], name
        elif name == "update_received":
            if work.is_received or work.phase != "upload_started":
                self._broken("an update must be sent once and arrive once")
            work.delivered_bytes += work.carried_bytes
            work.carried_bytes, work.is_received = 0, True
        elif name == "shrunk":
            work.phase = name

    def client(self, record: ClientRecord) -> None:
        """Check the record of a plan that has ended."""
        works = self._works.get(record.device_id)
        if not works:
            self._broken("a plan must begin before it ends, and end once", record)
        work = works.popleft()
        self._check_times(record, work)
        if work.phase in TRAINED and record.peak_memory_bytes > record.free_memory_bytes + 1:
            self._broken(  # the free bytes are rounded down
                f"memory in use must be at most what is free, {record.free_memory_bytes} bytes, "
                f"got {record.peak_memory_bytes}",
                record,
            )
        self._check_bytes(record, work)
        if not (record.flops >= 0 and 0 <= record.energy_j < math.inf):
            self._broken("FLOPs and joules must be at least 0 and finite", record)
        if record.outcome in ("aggregated", "rejected"):
            self._check_reported(record, work)
        elif work.is_received:
            self._is_cut = True
        self._recorded.append((record.device_id, record.outcome))

    def cohort(self, events: CohortEvents) -> None:
        """Check the events of a round whose plans were worked out ahead, a plan a device."""
        timeline = events.timeline
        devices = set(timeline.devices.tolist())
        if self._timeline or len(devices) != len(timeline.devices) or not devices <= self._asked:
            self._broken("a device must begin once for each time that it was asked")
        phases_s = (timeline.download_s, timeline.train_s, timeline.upload_s)
        if not all(bool((phase_s[~timeline.is_late] > 0).all()) for phase_s in phases_s):
            self._broken("training and transfers must take time")
        if not self._last.at_s <= timeline.started_s < timeline.last_s < math.inf:
            self._broken(f"the clock must not go back, got {timeline.started_s!r} s")
        self._asked -= devices
        self._num_begun += len(devices)
        for place, event in events.others:
            if (
                place
                and event.at_s < timeline.happenings[0][min(place, len(timeline.happenings[0])) - 1]
            ):
                self._broken(f"the clock must not go back, got {event.at_s!r} s", event)
            self.event(event)
        if timeline.last_s > self._last.at_s:
            self._last = Event(timeline.last_s, "update_received", timeline.round)
        self._timeline = timeline

    def client_table(self, table: ClientTable) -> None:
        """Check the records of a round: each device of its timeline once, and its phases.

        The other records are checked one by one.
        """
        timeline, columns = self._timeline, table.columns
        if timeline is None:
            self._broken("a plan must begin before it ends, and end once")
        is_ahead = np.isin(columns["device_id"], timeline.devices)
        if sorted(columns["device_id"][is_ahead].tolist()) != timeline.devices.tolist():
            self._broken("a plan must begin before it ends, and end once")
        for row in np.flatnonzero(~is_ahead).tolist():
            self.client(table.record(row))
        self._check_table({name: values[is_ahead] for name, values in columns.items()})
        self._timeline = None

    def _check_table(self, columns: Columns) -> None:
        ends_s = sum(columns[name] for name in ("started_s", "download_s", "train_s", "upload_s"))
        if not np.allclose(ends_s, columns["finished_s"], rtol=TOLERANCE, atol=TOLERANCE):
            self._broken("plans must end at their start and what they took")
        if (columns["peak_memory_bytes"] > columns["free_memory_bytes"] + 1)[
            columns["train_s"] > 0
        ].any():
            self._broken("memory in use must be at most what is free")
        if not (columns["waiting_s"] >= 0).all():
            self._broken("no device may wait less than 0 s")
        is_merged = columns["outcome"] == "aggregated"
        if not (columns["flops"][is_merged] > 0).all():
            self._broken("training must take time and operations")
        if (columns["lost_bytes"] < 0).any() or columns["lost_bytes"][is_merged].any():
            self._broken("bytes sent must be bytes received and lost")
        devices = columns["device_id"].tolist()
        self._free_s.update(zip(devices, columns["finished_s"].tolist(), strict=True))
        self._recorded += zip(devices, columns["outcome"].tolist(), strict=True)

    def _check_times(self, record: ClientRecord, work: _Work) -> None:
        phases_s = (record.download_s, record.train_s, record.upload_s, record.offline_s)
        if min(phases_s) < 0 or record.waiting_s < 0:
            self._broken("no phase may last less than 0 s", record)
        ends_s = record.started_s + sum(phases_s)
        if not abs(ends_s - record.finished_s) <= TOLERANCE * max(record.finished_s, 1.0):
            self._broken(
                f"a plan must end at its start and what it took, {ends_s!r} s, "
                f"got {record.finished_s!r} s",
                record,
            )
        if record.started_s != work.started_s:
            self._broken(f"the record must start with its work, at {work.started_s!r} s", record)
        if record.started_s < self._free_s.get(record.device_id, 0.0):
            self._broken("a device must end one plan before it begins the next", record)
        self._free_s[record.device_id] = record.finished_s

    def _check_bytes(self, record: ClientRecord, work: _Work) -> None:
        sent = record.download_bytes + record.upload_bytes
        if sent != work.delivered_bytes + record.lost_bytes:
            self._broken(
                f"bytes sent must be bytes received and lost, {work.delivered_bytes} and "
                f"{record.lost_bytes}, got {sent}",
                record,
            )

    def _check_reported(self, record: ClientRecord, work: _Work) -> None:
        if not work.is_received:
            self._broken("an update must arrive before it is merged or refused", record)
        if not (record.train_s > 0 and record.flops > 0):
            self._broken("training must take time and operations", record)
        if record.staleness < 0:
            self._broken(f"staleness must be at least 0, got {record.staleness}", record)

    def round(self, record: RoundRecord) -> None:
        """Check the record of a round that has closed; its plans came before it."""
        before, ended = self._closed, self._recorded
        merged = [device_id for device_id, outcome in ended if outcome == "aggregated"]
        if sorted(merged) != sorted(self._merged):
            self._broken(
                f"each update must be merged once: merged {sorted(self._merged)}, recorded "
                f"{sorted(merged)} in round {record.round}"
            )
        num_unmerged = sum(getattr(record, name) for name in NUM_UNMERGED)
        if record.num_aggregated + num_unmerged != len(ended):
            self._broken(f"round {record.round} must count one outcome a plan, of {len(ended)}")
        if before and not (
            before.closed_s <= record.opened_s <= record.closed_s  # it may wait for a device
            and record.round == before.round + 1
            and record.version - before.version in (0, 1)
        ):
            self._broken(f"round {record.round} must follow on round {before.round}")
        self._num_planned += record.num_planned
        self._closed, self._merged, self._recorded = record, [], []

    def finish(self) -> None:
        """Check that the run has left nothing open."""
        left = sorted(device_id for device_id, works in self._works.items() if works)
        if left or self._timeline or self._asked or self._num_begun != self._num_planned:
            self._broken(
                f"every plan must have an outcome: {self._num_planned} planned, {self._num_begun} "
                f"begun, never begun on {sorted(self._asked)[:10]}, never ended on {left[:10]}"
            )

    def _broken(self, rule: str, at: Event | ClientRecord | None = None) -> NoReturn:
        raise InvariantError(f"{rule}; {_describe(at or self._last)}")


def check_adapter(adapter: Adapter, where: str) -> None:
    """Raise InvariantError where a number of the global model is not finite."""
    arrays: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = [
        *(values for factors in adapter.factors.values() for values in factors),
        *adapter.head.values(),
    ]
    if not all(np.isfinite(values).all() for values in arrays):
        raise InvariantError(f"the global adapter must be finite; {where}")


def _describe(at: Event | ClientRecord) -> str:
    if isinstance(at, Event):
        device = "" if at.device is None else f" on device {at.device}"
        return f"event {at.name}{device} at {at.at_s!r} s in round {at.round}"
    return f"plan of round {at.round} on device {at.device_id}, {at.outcome}"
