"""Runs a server in real time with the strategy, pacing and delivery of the simulation."""

from __future__ import annotations

import math
import multiprocessing
import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from algorithms.merging.staleness import up_to_date
from algorithms.strategy import LinkRate, ServerState
from benchmarks.emulation.messages import Report, Task, receive_message
from benchmarks.emulation.shaping import Bucket, Spent, WallClock, send
from devices.vocabulary.plan import Broadcast, ClientUpdate, DeviceId, TrainingPlan
from devices.vocabulary.trainer import TrainingResult
from devices.wire import wire
from simulator.engine.aggregation import merge
from simulator.engine.assignment import Assignment
from simulator.engine.delivery import received
from simulator.engine.federation import Federation
from simulator.engine.participation import Participation
from simulator.engine.seeds import stream
from simulator.log.records import ClientRecord, plan_fields


class Peer(NamedTuple):
    """A peer holds the server's ends of the connections to a client."""

    connection: socket.socket
    control: Connection


class Span(NamedTuple):
    """A span is the time of a round, from before it is planned to after it is merged."""

    opened_s: float
    closed_s: float


class Served(NamedTuple):
    """A served plan is one whose update came back."""

    plan: TrainingPlan
    record: ClientRecord
    report: Report


@dataclass
class Emulation:
    """An emulation holds the measurements that a real federation has made of itself."""

    served: list[Served] = field(default_factory=list)
    rounds: list[Span] = field(default_factory=list)
    adapter_sha256: str = ""


class _Reply(NamedTuple):
    work: Assignment
    message: bytes
    received_s: float
    report: Report


class Server:
    """A server runs the rounds of a federation whose devices are the peers."""

    def __init__(self, federation: Federation, peers: Sequence[Peer], uplink: Spent) -> None:
        self._fed, self._peers, self._uplink = federation, peers, uplink
        strategy, self._view = federation.strategy, federation.new_view()
        adapter = self._view.model.initial_adapter(
            strategy.rank, strategy.alpha, stream(federation.seed, "adapter")
        )
        num_devices = len(federation.world.fleet)
        self.state: ServerState[Any] = replace(strategy.init(adapter), num_devices=num_devices)
        self._participation = Participation(federation.world.fleet, self._view)
        self._downlink = multiprocessing.Value("d", 0.0)
        self._inbox: queue.Queue[_Reply | Exception] = queue.Queue()
        self._in_flight: dict[DeviceId, threading.Thread] = {}
        self._arrived: list[_Reply] = []
        self._num_draws = 0
        self.found = Emulation()
        # A strategy measures the model, if it does so, in this rehearsal before the clock starts.
        plans = strategy.plan(
            self.state, self._view, self._view.device_ids, stream(federation.seed, "rehearsal")
        )
        if not all(plan.terms.sends_head for plan in plans):
            raise ValueError(
                f"an emulation must be of a strategy whose devices send all that they train, got "
                f"{strategy.kind}: what stays on a device, its server here is not told"
            )

    def run(self, openings_s: Sequence[float] = ()) -> Emulation:
        """Serve all rounds; what is under way after the last is waited for, and left out.

        ``openings_s`` is where in the traces each round begins, as long as nobody is at work then;
        without it they go on.
        """
        self._set_clock(0.0)
        while len(self.found.rounds) < self._fed.rules.stop.rounds:
            if openings_s and not self._in_flight:
                self._set_clock(openings_s[len(self.found.rounds)])
            opened_s = self._clock.now_s()
            self._fill()
            while not self._is_ready(opened_s):
                self._receive()
                if not self._is_ready(opened_s):
                    self._fill()
            self._close(opened_s)
        for conversation in self._in_flight.values():
            conversation.join()
        self.found.adapter_sha256 = self.state.adapter.digest
        return self.found

    def _set_clock(self, now_s: float) -> None:
        self._clock = WallClock(time.monotonic() - now_s)
        self._downlink.value = self._uplink.value = -math.inf  # the links are idle

    @property
    def _round(self) -> int:
        return len(self.found.rounds) + 1

    def _is_ready(self, opened_s: float) -> bool:
        waited_s = self._clock.now_s() - opened_s
        return self._fed.pacing.ready(len(self._in_flight), len(self._arrived), waited_s)

    def _fill(self) -> None:
        fed = self._fed
        slots = fed.pacing.slots(len(self._in_flight), len(self._arrived))
        idle = np.setdiff1d(self._view.device_ids, list(self._in_flight))
        if slots <= 0 or not len(idle):
            return
        self._num_draws += 1
        roster = self._participation.roster(
            self._round, deadline_s=fed.pacing.deadline_s, rank=fed.strategy.rank
        )
        rng = stream(fed.seed, "selection", self._num_draws)
        cohort = fed.selection.pick(idle, slots, roster=roster, rng=rng)
        rng = stream(fed.seed, "strategy", self._num_draws)
        for plan in sorted(
            fed.strategy.plan(self.state, self._view, cohort, rng), key=lambda plan: plan.device_id
        ):
            self._start(plan)

    def _start(self, plan: TrainingPlan) -> None:
        fed, device_id = self._fed, plan.device_id
        device, cost = fed.world.fleet[device_id], self._view.cost(plan)
        now_s = self._clock.now_s()
        work = Assignment(
            plan=plan,
            broadcast=fed.strategy.broadcast(self.state, plan),
            fleet=fed.world.fleet,
            profile=device.profile,
            cost=cost,
            record=ClientRecord.open(
                device,
                num_examples=self._view.num_examples(device_id),
                planned=plan_fields(plan, cost),
                dispatched=(self._round, now_s),
            ),
            run_seed=fed.seed,
            num_draws=self._num_draws,
        )
        conversation = threading.Thread(target=self._converse, args=(work,), daemon=True)
        self._in_flight[device_id] = conversation
        conversation.start()

    def _converse(self, work: Assignment) -> None:
        """Converse with one client, from the plan to its update."""
        peer = self._peers[work.plan.device_id]
        try:
            seeds = work.training_seed, work.wire_seed
            task = Task(work.plan, *seeds, work.broadcast.version, self._clock.origin_s)
            peer.control.send(task)
            self._download(work, peer.connection)
            message = receive_message(peer.connection)
            received_s = self._clock.now_s()
            self._inbox.put(_Reply(work, message, received_s, peer.control.recv()))
        except Exception as error:  # raised again where the reply is awaited
            self._inbox.put(error)

    def _download(self, work: Assignment, connection: socket.socket) -> None:
        message = wire.encode_broadcast(work.broadcast, plan=work.plan)
        work.record.download_bytes = len(message)
        clock, device, server = self._clock, work.device, self._fed.world.shared_links.server
        clock.sleep_until(work.record.started_s + device.latency.at(work.record.started_s))
        own = multiprocessing.Value("d", clock.now_s())
        ways = [Bucket(device.link.downlink.steps, own)]
        if server:
            ways.append(Bucket(server.downlink.steps, self._downlink))
        send(connection, message, ways, clock=clock)

    def _receive(self) -> None:
        reply = self._inbox.get()
        if isinstance(reply, Exception):
            raise reply
        record, report = reply.work.record, reply.report
        record.download_s = report.downloaded_s - record.started_s
        record.train_s = report.trained_s - report.downloaded_s
        record.upload_s = reply.received_s - report.trained_s
        record.finished_s, record.upload_bytes = reply.received_s, len(reply.message)
        record.outcome = "aggregated"
        rates = record.download_bytes / record.download_s, record.upload_bytes / record.upload_s
        self._view.measured(record.device_id, LinkRate(*rates))
        del self._in_flight[record.device_id]
        self._arrived.append(reply)
        self.found.served.append(Served(reply.work.plan, record, report))

    def _close(self, opened_s: float) -> None:
        arrived = sorted(self._arrived, key=lambda reply: reply.work.plan.device_id)
        updates = [self._update(reply) for reply in arrived]
        self.state = merge(self._fed, self.state, updates, where=f"round {self._round}")
        self._arrived = []
        self.found.rounds.append(Span(opened_s, self._clock.now_s()))

    def _update(self, reply: _Reply) -> ClientUpdate:
        work, report = reply.work, reply.report
        told = TrainingResult(work.broadcast.adapter, report.train_loss, report.squared_loss)
        update = received(work, reply.message, told, max_norm=self._fed.rules.robustness.max_norm)
        current = Broadcast(self.state.version, self.state.adapter)
        return up_to_date(update, current, self._fed.pacing)
