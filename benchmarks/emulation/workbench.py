"""Keeps client processes on this machine, and runs federations with them."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.emulation.client import ClientContext, client_main
from benchmarks.emulation.messages import Enrolment
from benchmarks.emulation.server import Emulation, Peer, Server
from simulator.config.schema import RunConfig
from simulator.engine.server import simulate
from simulator.log.records import ClientRecord, Event, RoundRecord
from simulator.runs.run import federation_of
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world

HOST = "127.0.0.1"
START_S = 300.0
"""The seconds after which a client that has not connected counts as dead."""


@dataclass
class Simulation:
    """This log of a simulated run keeps what a real run measures too."""

    clients: list[ClientRecord] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)  # the first is of the initial model
    adapter_sha256: str = ""

    @property
    def openings_s(self) -> list[float]:
        """Return the instant at which each round begins."""
        return [record.opened_s for record in self.rounds[1:]]

    def event(self, event: Event) -> None:
        pass

    def client(self, record: ClientRecord) -> None:
        self.clients.append(record)

    def round(self, record: RoundRecord) -> None:
        self.rounds.append(record)


class Workbench:
    """A workbench keeps client processes, connected by TCP, from one federation to the next.

    Use as a context manager: it ends them.
    """

    def __init__(self, num_clients: int) -> None:
        self._num_clients = num_clients
        self._trainers = Trainers(1)
        self._stack = ExitStack()

    def __enter__(self) -> Workbench:
        context = multiprocessing.get_context("spawn")
        self._uplink = context.Value("d", 0.0)
        shared = ClientContext(context.Lock(), self._uplink)
        with ExitStack() as stack:
            listener = stack.enter_context(socket.create_server((HOST, 0)))
            listener.settimeout(START_S)
            processes = []
            for _ in range(self._num_clients):
                ours, theirs = context.Pipe()
                stack.callback(ours.close)
                process = context.Process(
                    target=client_main, args=(listener.getsockname(), theirs, shared), daemon=True
                )
                process.start()
                theirs.close()
                stack.callback(_end, process, ours)
                processes.append((process, ours))
            self._peers = _connected(listener, [ours for _, ours in processes])
            for peer in self._peers:
                stack.callback(peer.connection.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._trainers.__exit__()

    def emulate(
        self,
        config: RunConfig,
        slowdowns: Sequence[float | None],
        openings_s: Sequence[float] = (),
    ) -> Emulation:
        """Run the federation of a config in real time; ``slowdowns`` are as in an ``Enrolment``."""
        peers = self._peers[: len(slowdowns)]
        for device_id, (peer, slowdown) in enumerate(zip(peers, slowdowns, strict=True)):
            peer.control.send(Enrolment(config, device_id, slowdown))
        for peer in peers:
            assert peer.control.recv() == "enrolled"
        world = build_world(config, "an emulation")
        assert len(world.fleet) == len(slowdowns)
        federation = federation_of(config, world, self._trainers.get(config, world))
        return Server(federation, peers, self._uplink).run(openings_s)

    def simulate(self, config: RunConfig) -> Simulation:
        """Simulate the same federation."""
        world, log = build_world(config, "an emulation"), Simulation()
        federation = federation_of(config, world, self._trainers.get(config, world))
        log.adapter_sha256 = simulate(federation, log).state.adapter.digest
        return log


def _connected(listener: socket.socket, controls: Sequence[Connection]) -> list[Peer]:
    by_address = dict(_accepted(listener) for _ in controls)
    return [Peer(by_address[control.recv()], control) for control in controls]


def _accepted(listener: socket.socket) -> tuple[object, socket.socket]:
    connection, address = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return address, connection


def _end(process: BaseProcess, control: Connection) -> None:
    """Tell a client that it can go."""
    if process.is_alive():
        control.send(None)
    process.join()
