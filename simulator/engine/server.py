"""Runs the server as a SimPy process: it dispatches plans, waits for updates, and aggregates."""

from __future__ import annotations

import gc
import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import simpy

from algorithms.strategy import LinkRate, ServerState
from devices.vocabulary.plan import ClientUpdate, DeviceId
from simulator.engine.aggregation import collect, merge
from simulator.engine.assignment import Assignment
from simulator.engine.clock import (
    Mailbox,
    VoidRounds,
    check_arrival,
    check_progress,
    note_faults,
    sleep_until,
)
from simulator.engine.device import DeviceContext, run_client, told_bytes
from simulator.engine.dispatch import Dispatcher
from simulator.engine.evaluations import Evaluations
from simulator.engine.federation import Federation
from simulator.engine.network import Network
from simulator.engine.participation import Participation
from simulator.engine.plan_timeline import PlanTimeline, stages_of
from simulator.engine.presence import Presence
from simulator.engine.seeds import stream
from simulator.engine.timelines import Timelines
from simulator.log.checked import CheckedLog
from simulator.log.cohort_records import updates_of
from simulator.log.cohort_timeline import CohortTimeline
from simulator.log.deferred import DeferredLog
from simulator.log.protocol import Log, Tee
from simulator.log.records import Ended, Event, RoundProgress
from traces.arrays import BoolArray

SELDOM = 50_000
"""The number of new objects after which Python looks for unused circles of them.

It holds for a run that trains nothing.
"""


class Server:
    """The server owns all that changes in a run: its state, plans in flight, and what arrived."""

    def __init__(self, env: simpy.Environment, federation: Federation, log: DeferredLog) -> None:
        self._env, self._log = env, log
        self._fed, self._pacing = federation, federation.pacing
        world, rules = federation.world, federation.rules
        self._presence = Presence(world.fleet, world.faults)
        self._view = federation.new_view()
        self._participation = Participation(world.fleet, self._view)
        self._dispatcher = Dispatcher(federation, self._view, self._participation)
        self._devices = DeviceContext(
            env, log, self._presence, world, rules, Network(env), self._shrink
        )
        strategy = federation.strategy
        adapter = world.model.initial_adapter(
            strategy.rank, rules.alpha(strategy), stream(federation.seed, "adapter")
        )
        self.state: ServerState[Any] = replace(strategy.init(adapter), num_devices=len(world.fleet))
        self._timelines = Timelines(federation, self._view, self._presence)
        # The timeline has those plans of this round that nothing interrupts. The counts are of its
        # plans that are under way, and of those that have arrived.
        self._timeline: CohortTimeline | None = None
        self._num_ahead = self._num_ahead_arrived = 0
        self._inbox = Mailbox(env)
        self._in_flight: dict[DeviceId, simpy.Process | PlanTimeline] = {}
        self._has_no_plan = np.ones(len(world.fleet), dtype=np.bool_)  # (N,): not in ``_in_flight``
        self._arrived: list[Assignment] = []
        self._ended: list[Ended] = []  # the plans that ended in this round, whatever the outcome
        self._resting: dict[DeviceId, Assignment] = {}  # ended plans of devices that wait for work
        self._round, self._opened_s, self._due_s = 0, 0.0, math.inf
        self._num_cohort = self._num_planned = 0
        self._sat_out: set[DeviceId] = set()  # those passed over until somebody is at work
        self._void_rounds = VoidRounds()
        self.evaluations = Evaluations(federation, log)
        self._is_over = False

    @property
    def num_rounds(self) -> int:
        """Return the number of rounds that have closed."""
        return self._round - 1

    @property
    def now_s(self) -> float:
        """Return the instant that the simulated clock shows."""
        return float(self._env.now)

    def serve(self) -> Generator[simpy.Event, Any, None]:
        """Run rounds until the stop condition holds; round 0 is the initial model."""
        self._evaluate()
        self._log_round(self._round_end())
        self._round = 1
        while not self._is_over:
            yield from self._wait_for_devices()
            self._view.open_round(self._round)
            self._opened_s = self._env.now  # a deadline counts from when somebody can be asked
            self._due_s = self._opened_s + self._pacing.deadline_s
            self._fill("round_opened")
            while self._can_change() and not self._is_ready():
                yield from self._wait()
                if self._is_void() or not self._is_ready():
                    self._fill("refilled")
            yield from self._close_round()

    @property
    def _num_at_work(self) -> int:
        return len(self._in_flight) + self._num_ahead

    @property
    def _num_arrived(self) -> int:
        return len(self._arrived) + self._num_ahead_arrived

    def _wait_for_devices(self) -> Generator[simpy.Event, Any, None]:
        """Wait until the server is up, and a device is present or at work."""
        yield from self._wait_for_server()
        while not (self._num_at_work or _is_any(self._is_idle())):
            arrival_s = self._presence.next_arrival_s(self._env.now)
            check_arrival(self._round, self._env.now, arrival_s)
            yield from sleep_until(self._env, arrival_s)
            yield from self._wait_for_server()

    def _wait_for_server(self) -> Generator[simpy.Event, Any, None]:
        if (server := self._fed.world.faults.server).is_none:
            return
        is_up, until_s = server.span(self._env.now)
        if not is_up:
            yield from sleep_until(self._env, until_s)

    def _is_idle(self) -> BoolArray:
        """Return (N,) which devices are present and have nothing to do."""
        is_idle: BoolArray = self._presence.present(self._env.now) & self._has_no_plan
        if self._sat_out:
            is_idle[list(self._sat_out)] = False
        return is_idle

    def _next_arrival_s(self) -> float:
        return self._presence.next_arrival_s(self._env.now, but=self._sat_out)

    def _is_last_round(self) -> bool:
        """Return True where the run ends with this round, whatever its model is like."""
        stop = self._fed.rules.stop
        is_late = stop.simulated_s is not None and self._env.now >= stop.simulated_s
        return self._round >= stop.rounds or is_late

    def _is_void(self) -> bool:
        """Return True where no plan has begun in this round, and there is time left for one."""
        is_begun = self._num_planned or self._num_at_work or self._num_arrived
        return not is_begun and self._env.now < self._due_s

    def _is_ready(self) -> bool:
        if self._is_void() and math.isfinite(self._next_arrival_s()):
            return False  # everybody here sits out, and another will come
        # The alarm rings at opened + deadline. The difference of that and opened may fall short of
        # the deadline by rounding, and then the alarm would ring for ever.
        now_s, pacing = self._env.now, self._pacing
        waited_s = now_s - self._opened_s if now_s < self._due_s else pacing.deadline_s
        return pacing.ready(self._num_at_work, self._num_arrived, waited_s)

    def _can_change(self) -> bool:
        """Return True where a device, an arrival or the deadline can still change the round."""
        if self._num_at_work or math.isfinite(self._due_s):
            return True
        return self._slots() > 0 and math.isfinite(self._next_arrival_s())

    def note(self, name: str, details: Mapping[str, Any], device: DeviceId | None = None) -> None:
        """Log an event of this instant."""
        self._log.event(Event(self._env.now, name, self._round, device, details))

    def _fill(self, event: str) -> None:
        """Dispatch plans while the pacing has slots; where a whole cohort sits out, ask others."""
        while (slots := self._slots()) > 0 and _is_any(is_idle := self._is_idle()):
            passed_over = self._sat_out
            self._dispatch(is_idle, slots, event)
            if self._sat_out <= passed_over:  # somebody has begun, or nobody was asked
                return
            event = "refilled"

    def _slots(self) -> int:
        return self._pacing.slots(self._num_at_work, self._num_arrived)

    def _dispatch(self, is_idle: BoolArray, slots: int, event: str) -> None:
        counts = {"slots": slots, "num_passed_over": len(self._sat_out)}
        asked = self._dispatcher.ask(self.state, is_idle, round_number=self._round, **counts)
        cohort, plans = asked
        self._num_cohort += len(cohort)
        self._num_planned += len(plans)
        self.note(event, {"cohort": list(cohort), "version": self.state.version})
        now = self._round, self._env.now
        timeline = self._timelines.timeline(list(plans.values()), now, self._due_s)
        ahead = set(timeline.devices.tolist()) if timeline else set()
        # In order of device, since events of one instant happen in the order they were made in.
        for device_id in cohort:
            if device_id not in plans:
                self.note("sat_out", {}, device_id)
            elif device_id not in ahead:
                self._end_rest(device_id)
                work = self._dispatcher.assignment(self.state, plans[device_id], now)
                self._in_flight[device_id] = self._at_work(work)
                self._has_no_plan[device_id] = False
        if timeline:
            self._timeline, self._num_ahead = timeline, len(ahead)
            self._log.hold()
            self._env.process(self._report(timeline))
        is_begun = self._num_at_work or self._num_arrived
        self._sat_out = set() if is_begun else self._sat_out | set(cohort)

    def _at_work(self, work: Assignment) -> simpy.Process | PlanTimeline:
        """Let a device begin with its plan at this instant, once the server waits."""
        stages = stages_of(self._devices, work)
        if stages is None:
            work.record = self._dispatcher.record(work)
            return self._env.process(run_client(self._devices, work, self._inbox))
        timeline = PlanTimeline(self._devices, work, stages, self._inbox)
        timeline.begin()
        return timeline

    def _shrink(self, work: Assignment, free_bytes: int) -> Assignment | None:
        return self._dispatcher.smaller(self.state, work, free_bytes)

    def _report(self, timeline: CohortTimeline) -> Generator[simpy.Event, Any, None]:
        """Tell the server once all plans of a timeline that are not late have arrived."""
        # The clock goes on phase by phase, so that it rounds as it does for a single device.
        for wait_s in timeline.last_waits_s:
            yield self._env.timeout(wait_s)
        if timeline.last_waits_s:
            self._inbox.put(timeline)

    def _wait(self) -> Generator[simpy.Event, Any, None]:
        """Wait for a report, the deadline, or a device to come while a slot is free."""
        arrival = self._inbox.bell()
        alarm_s = self._due_s
        if self._slots() > 0:
            alarm_s = min(alarm_s, self._next_arrival_s())
        if math.isinf(alarm_s):
            yield arrival
        else:
            yield arrival | self._env.timeout(max(alarm_s - self._env.now, 0.0))
        if arrival.triggered:
            self._receive(self._inbox.take())
        yield from self._wait_for_server()

    def _receive(self, work: Assignment | CohortTimeline) -> None:
        if isinstance(work, CohortTimeline):
            self._receive_all(work)
            return
        record = work.record
        del self._in_flight[record.device_id]
        self._has_no_plan[record.device_id] = True
        self._ended.append(record)
        self._participation.ended(record)
        self._resting[record.device_id] = work
        if record.outcome != "aggregated":
            check_progress(self._round, self._ended, num_devices=len(self._fed.world.fleet))
            return
        self.note("update_received", told_bytes(record.upload_bytes), record.device_id)
        self._arrived.append(work)
        down, up = record.download_bytes, record.upload_bytes
        if down and up:
            rate = LinkRate(down / record.download_s, up / record.upload_s)
            self._view.measured(record.device_id, rate)

    def _receive_all(self, timeline: CohortTimeline) -> None:
        """Take note that the updates of a timeline that are not late have arrived."""
        rows = timeline.arrivals
        taken_s = timeline.finished_s[rows] - timeline.started_s
        self._participation.all_ended(timeline.devices[rows], taken_s)
        self._view.all_measured(timeline.link_rates())
        self._num_ahead, self._num_ahead_arrived = timeline.num_late, len(rows)

    def _close_round(self) -> Generator[simpy.Event, Any, None]:
        if self._pacing.drops_late:
            yield from self._cut_late()
        if self._timeline:
            self._log.release(self._timeline)
        updates = self._updates()
        self._participation.closed(updates)
        where = f"aggregation at {self._env.now!r} s in round {self._round}"
        self.state = merge(self._fed, self.state, updates, where=where)
        devices = [update.plan.device_id for update in updates]
        self.note("aggregated", {"version": self.state.version, "devices": devices})
        self._evaluate()
        self._is_over = self._is_last_round() or self.evaluations.has_reached_target
        if self._is_over:
            yield from self._cut_rest()
        self._log_round(progress := self._round_end())
        self._void_rounds.closed(progress)
        self._round += 1
        self._arrived, self._sat_out = [], set()
        self._num_cohort = self._num_planned = self._num_ahead_arrived = 0

    def _updates(self) -> list[ClientUpdate]:
        """Return the updates to merge, and log those that were refused."""
        updates, refused = collect(self._fed, self.state, self._arrived)
        for device_id, reason in refused:
            self.note("rejected", {"reason": reason}, device_id)
        if self._timeline:
            broadcast = partial(self._fed.strategy.broadcast, self.state)
            updates += updates_of(self._timeline, broadcast)
            updates.sort(key=lambda update: update.plan.device_id)
        return updates

    def _cut_late(self) -> Generator[simpy.Event, Any, None]:
        self._log.cut()
        if self._timeline and self._num_ahead:
            self._timeline = timeline = replace(self._timeline, cut_s=float(self._env.now))
            rows = timeline.late_rows
            taken_s = timeline.cut_s - timeline.started_s
            self._participation.all_late(timeline.devices[rows], taken_s)
            self._num_ahead = 0
        for _, process in sorted(self._in_flight.items()):
            if process.is_alive:  # one that has ended reported at this very instant, so in time
                process.interrupt("late")
        while self._in_flight:
            yield self._inbox.bell()
            self._receive(self._inbox.take())

    def _cut_rest(self) -> Generator[simpy.Event, Any, None]:
        """Cut all plans that are still under way as the run ends; none of them is merged."""
        merged = len(self._ended)
        yield from self._cut_late()
        for record in self._ended[merged:]:
            if record.outcome == "aggregated":  # it reported at this very instant
                record.outcome = "late"

    def _end_rest(self, device_id: DeviceId) -> None:
        """End the wait of a device that is asked again, or whose round closes."""
        if device_id in self._resting:
            work = self._resting.pop(device_id)
            work.record.close(work.profile, self._env.now)

    def _evaluate(self) -> None:
        if not self._fed.has_global_model:
            return
        if self._round % self._fed.rules.evaluate_every == 0 or self._is_last_round():
            self.evaluations.begin(self.state.adapter, self._env.now, self._round)

    def _round_end(self) -> RoundProgress:
        """Let the devices rest that have ended, and return what is known of the round."""
        for device_id in sorted(self._resting):
            self._end_rest(device_id)
        counted = self._opened_s, self._env.now, self._num_cohort, self._num_planned
        return RoundProgress(self._round, self.state.version, *counted)

    def _log_round(self, progress: RoundProgress) -> None:
        self.evaluations.close(progress, self._ended, self._timeline)
        self._ended, self._timeline = [], None


def _is_any(chosen: BoolArray) -> bool:
    """Return whether any is True: it stops at the first, in a quarter of the time of ``any()``."""
    return chosen.item(chosen.argmax())


def simulate(federation: Federation, *logs: Log) -> Server:
    """Run one federation to its end, and return the server as it stands then.

    ``logs`` are told of all that happens, as ``RunLog`` describes. Raises StalledError where it
    cannot go on, and InvariantError where it contradicts itself.
    """
    env = simpy.Environment()
    checked = CheckedLog()
    fleet, gathers = federation.world.fleet, federation.is_timing_only
    seldom = _collecting_seldom() if gathers else nullcontext()
    with seldom, DeferredLog(Tee((*logs, checked)), fleet, gathers=gathers) as deferred:
        server = Server(env, federation, deferred)
        env.process(note_faults(env, federation.world.faults, server.note))
        # The run ends with the server, not with the last event: a deadline that no longer counts
        # must not move the clock.
        env.run(until=env.process(server.serve()))
    checked.finish()
    return server


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Let Python look for objects that refer to one another in circles only now and then.

    A run that trains nothing keeps thousands of events and plans, and makes no such circles. By
    default Python looks after every 700 new objects, which takes a sixth of the run's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
