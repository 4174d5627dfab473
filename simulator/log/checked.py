"""Checks what must hold in every run while it goes on; a broken rule stops the run.

The checks read what a run logs and nothing else, so that an event that is missing, doubled or out
of place is found here, however the engine came to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from devices.vocabulary.plan import Adapter, DeviceId
from simulator.log.block import Block
from simulator.log.cohort_timeline import CohortEvents, CohortTimeline
from simulator.log.records import NUM_UNMERGED, ClientRecord, ClientTable, Columns, Event
from traces.arrays import BoolArray, FloatArray, IntArray

TOLERANCE = 1e-9
"""Relative tolerance: seconds are sums of a few dozen doubles, each rounded to 1e-16."""

COMES_AND_GOES = ("joined", "left")
"""Events of a device that need no plan."""
CUT_SHORT = "an update that arrived must be merged or refused until the run ends"
TRAINED = ("training_started", "upload_started")
"""Phases that a plan reaches only where its memory sufficed."""
REPORTED = ("aggregated", "rejected")
"""Outcomes of a plan whose update arrived."""
PHASES_S = ("download_s", "train_s", "upload_s", "offline_s")
ENERGIES = ("energy_compute_j", "energy_radio_j", "energy_idle_j")
_CHECKED = (
    *PHASES_S, *ENERGIES, "device_id", "started_s", "finished_s", "waiting_s", "outcome", "flops",
    "staleness", "download_bytes", "upload_bytes", "lost_bytes", "peak_memory_bytes",
    "free_memory_bytes",
)  # fmt: skip


class InvariantError(Exception):
    """This error says that the simulator contradicts itself, and names the event that does."""


@dataclass(slots=True)
class _Work:
    """A work is the state of one plan, as far as the events of its device tell."""

    started_s: float
    phase: str = "dispatched"
    carried_bytes: int = 0  # bytes of the transfer that is under way
    delivered_bytes: int = 0
    is_received: bool = False


class _Closed(NamedTuple):
    """This record holds what later checks need of the last round that has closed."""

    round: int
    version: int
    opened_s: float
    closed_s: float


class CheckedLog:
    """A checked log checks what it is told, and stands last among the logs of a run.

    Every method raises InvariantError, once the other logs have what breaks a rule.
    """

    def __init__(self) -> None:
        self._last = Event(0.0, "start", 0)
        self._asked: set[DeviceId] = set()  # devices of cohorts that have not begun nor sat out
        self._works: dict[DeviceId, deque[_Work]] = {}  # works without a record yet, in order
        self._free_s: FloatArray = np.zeros(0)  # (N,): the end of each device's last plan
        self._merged: dict[int, list[DeviceId]] = {}  # round -> devices of its aggregation events
        self._timelines: dict[int, CohortTimeline] = {}  # round -> timeline without records yet
        self._closed: _Closed | None = None
        self._num_planned = self._num_begun = 0
        # True once an update that arrived was not merged, which may happen only as a run ends.
        self._is_cut = False

    def event(self, event: Event) -> None:
        """Check an event of the engine."""
        at_s, name, number, device_id, details = event
        if not self._last.at_s <= at_s < math.inf:
            self._broken(f"the clock must not go back, got {at_s!r} s", event)
        self._last = event
        if device_id is not None:
            if name not in COMES_AND_GOES:
                self._follow(self._work(event, device_id), name, details)
        elif name == "aggregated":
            self._merged.setdefault(number, []).extend(details["devices"])
        elif "cohort" in details:
            if self._is_cut:
                self._broken(CUT_SHORT)
            self._asked.update(details["cohort"])

    def _work(self, event: Event, device_id: DeviceId) -> _Work | None:
        """Return the work that an event is part of, which it may begin; None if it sits out."""
        name, works = event.name, self._works.get(device_id)
        if name == "download_started" and not (works and works[-1].phase == "shrunk"):
            if device_id not in self._asked:
                self._broken("a device must begin once for each time that it was asked")
            self._asked.remove(device_id)
            self._num_begun += 1
            if works is None:
                works = self._works[device_id] = deque()
            works.append(_Work(event.at_s))
        elif name == "sat_out":
            self._asked.discard(device_id)
            return None
        elif not works:
            self._broken("a device without a plan must do nothing")
        return works[-1]

    def _follow(self, work: _Work | None, name: str, details: Mapping[str, Any]) -> None:
        """Follow the phases of a plan, and count bytes as delivered when the next phase begins."""
        if work is None:
            return
        if name in ("training_started", "oom"):
            work.delivered_bytes += work.carried_bytes
            work.carried_bytes, work.phase = 0, name
        elif name in ("download_started", "upload_started"):
            work.carried_bytes, work.phase = details["bytes"], name
        elif name == "update_received":
            if work.is_received or work.phase != "upload_started":
                self._broken("an update must be sent once and arrive once")
            work.delivered_bytes += work.carried_bytes
            work.carried_bytes, work.is_received = 0, True
        elif name == "shrunk":
            work.phase = name

    def block(self, block: Block) -> None:
        """Check the events of rounds, then their plans, then that each round counts its own."""
        for piece in block.pieces:
            if isinstance(piece, Event):
                self.event(piece)
            else:
                self._cohort(piece)
        self._clients(block)
        self._rounds(block)

    def _cohort(self, events: CohortEvents) -> None:
        """Check the events of a round whose plans were worked out ahead, a plan a device."""
        timeline = events.timeline
        devices = set(timeline.devices.tolist())
        is_second = timeline.round in self._timelines or len(devices) != len(timeline.devices)
        if is_second or not devices <= self._asked:
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
        self._timelines[timeline.round] = timeline

    def _clients(self, block: Block) -> None:
        """Check the records of plans, those of a timeline each device once."""
        columns, begin = block.clients.columns, 0
        is_ahead = np.zeros(len(block.clients), dtype=np.bool_)
        for number, (_, end) in zip(block.rounds.columns["round"], block.ends, strict=True):
            if timeline := self._timelines.pop(int(number), None):
                devices = columns["device_id"][begin:end]
                is_ahead[begin:end] = np.isin(devices, timeline.devices)
                if sorted(devices[is_ahead[begin:end]].tolist()) != timeline.devices.tolist():
                    self._broken("a plan must begin before it ends, and end once")
            begin = end
        if is_ahead.any():
            self._check_table({name: values[is_ahead] for name, values in columns.items()})
        cut = self._one_by_one(block.clients, np.flatnonzero(~is_ahead))
        if len(cut) and len(block.ends) > 1 and cut[0] < block.ends[-2][1]:
            self._broken(CUT_SHORT, block.clients.record(int(cut[0])))
        self._is_cut |= len(cut) > 0
        for row in np.flatnonzero(~self._are_free(columns))[:1].tolist():
            record = block.clients.record(row)
            self._broken("a device must end one plan before it begins the next", record)

    def _are_free(self, columns: Columns) -> BoolArray:
        """Return (n,): whether each device has ended one plan before it began the next."""
        order = np.argsort(columns["device_id"], kind="stable")
        devices, ends_s = columns["device_id"][order], columns["finished_s"][order]
        num_missing = devices.max(initial=-1) + 1 - len(self._free_s)
        if num_missing > 0:
            self._free_s = np.concatenate([self._free_s, np.zeros(num_missing)])
        is_first = np.diff(devices, prepend=-1) != 0
        free_s = np.concatenate([[0.0], ends_s])[:-1]
        free_s[is_first] = self._free_s[devices[is_first]]
        self._free_s[devices] = ends_s  # of several plans of a device, the last one counts
        found = np.empty(len(order), dtype=np.bool_)
        found[order] = columns["started_s"][order] >= free_s
        return found

    def _one_by_one(self, table: ClientTable, rows: IntArray) -> IntArray:
        """Check the records of plans whose events were told, each against these.

        Return the rows whose update arrived and was neither merged nor refused.
        """
        works = []
        for k, device_id in enumerate(table.columns["device_id"][rows].tolist()):
            begun = self._works.get(device_id)
            if not begun:
                record = table.record(int(rows[k]))
                self._broken("a plan must begin before it ends, and end once", record)
            works.append(begun.popleft())
        columns = {name: table.columns[name][rows] for name in _CHECKED}
        for k in np.flatnonzero(~self._are_true(columns, works)).tolist():
            self._check_record(table.record(int(rows[k])), works[k])
        is_merged = np.isin(columns["outcome"], REPORTED)
        is_received = np.array([work.is_received for work in works], dtype=np.bool_)
        return rows[is_received & ~is_merged]

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

    def _are_true(self, columns: Columns, works: Sequence[_Work]) -> BoolArray:
        """Return (n,): which records pass all checks, as ``_check_record`` makes them."""
        started_s, finished_s = columns["started_s"], columns["finished_s"]
        phases_s = [columns[name] for name in PHASES_S]
        lasted_s = started_s + (((phases_s[0] + phases_s[1]) + phases_s[2]) + phases_s[3])
        sent = columns["download_bytes"] + columns["upload_bytes"] - columns["lost_bytes"]
        energy_j = sum(columns[name] for name in ENERGIES)
        have_trained = np.array([work.phase in TRAINED for work in works], dtype=np.bool_)
        are_received = np.array([work.is_received for work in works], dtype=np.bool_)
        does_fit = columns["peak_memory_bytes"] <= columns["free_memory_bytes"] + 1
        is_whole = are_received & (columns["train_s"] > 0) & (columns["flops"] > 0)
        is_whole &= columns["staleness"] >= 0
        found: BoolArray = (
            (np.minimum.reduce([*phases_s, columns["waiting_s"]]) >= 0)
            & (np.abs(lasted_s - finished_s) <= TOLERANCE * np.maximum(finished_s, 1.0))
            & (started_s == np.array([work.started_s for work in works], dtype=np.float64))
            & (sent == np.array([work.delivered_bytes for work in works], dtype=np.int64))
            & (does_fit | ~have_trained)
            & (columns["flops"] >= 0) & (energy_j >= 0) & (energy_j < math.inf)
            & (is_whole | ~np.isin(columns["outcome"], REPORTED))
        )  # fmt: skip
        return found

    def _check_record(self, record: ClientRecord, work: _Work) -> None:
        """Raise InvariantError with the rule that a record breaks."""
        self._check_times(record, work)
        if work.phase in TRAINED and record.peak_memory_bytes > record.free_memory_bytes + 1:
            self._broken(  # the comparison allows 1 byte, since free bytes are rounded down
                f"memory in use must be at most what is free, {record.free_memory_bytes} bytes, "
                f"got {record.peak_memory_bytes}",
                record,
            )
        self._check_bytes(record, work)
        if not (record.flops >= 0 and 0 <= record.energy_j < math.inf):
            self._broken("FLOPs and joules must be at least 0 and finite", record)
        if record.outcome in REPORTED:
            self._check_reported(record, work)

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

    def _rounds(self, block: Block) -> None:
        """Check the records of rounds that have closed, whose plans have been checked."""
        columns, outcomes, begin = block.rounds.columns, block.clients.columns["outcome"], 0
        devices, is_merged = block.clients.columns["device_id"], outcomes == "aggregated"
        num_ended = columns["num_aggregated"] + sum(columns[name] for name in NUM_UNMERGED)
        rounds = map(_Closed, *(columns[name].tolist() for name in _Closed._fields))
        for here, number, (_, end) in zip(rounds, num_ended.tolist(), block.ends, strict=True):
            before, self._closed = self._closed, here
            if before and not (
                before.closed_s <= here.opened_s <= here.closed_s  # a round may wait for a device
                and here.round == before.round + 1
                and here.version - before.version in (0, 1)
            ):
                self._broken(f"round {here.round} must follow on round {before.round}")
            recorded = devices[begin:end][is_merged[begin:end]].tolist()
            merged = self._merged.pop(here.round, [])
            if merged != recorded and sorted(merged) != sorted(recorded):
                self._broken(
                    f"each update must be merged once: merged {sorted(merged)}, recorded "
                    f"{sorted(recorded)} in round {here.round}"
                )
            if number != end - begin:
                self._broken(f"round {here.round} must count one outcome a plan, of {end - begin}")
            begin = end
        self._num_planned += int(columns["num_planned"].sum())

    def finish(self) -> None:
        """Check that the run has left nothing open."""
        left = sorted(device_id for device_id, works in self._works.items() if works)
        if left or self._timelines or self._asked or self._num_begun != self._num_planned:
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
