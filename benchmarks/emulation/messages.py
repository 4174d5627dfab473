"""Defines what passes between a real server and its clients.

Over TCP go the wire's own messages and nothing else, through the links. Over a pipe, in no time to
speak of, goes what the simulated clock charges nobody for: the plan, the seeds, and what a client
says of itself.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.emulation.shaping import receive
from devices.vocabulary.plan import DeviceId, TrainingPlan
from devices.wire.messages import HEADER
from simulator.config.schema import RunConfig


@dataclass(frozen=True, eq=False)
class Enrolment:
    """An enrolment says which device of which federation a client is from now on.

    Training takes ``slowdown`` times the seconds that the processor works on it; where that is None
    it takes what the cost model says, whatever the processor needed.
    """

    config: RunConfig
    device_id: DeviceId
    slowdown: float | None


@dataclass(frozen=True, eq=False)
class Task:
    """A task is a plan as it is dispatched; the broadcast comes over TCP."""

    plan: TrainingPlan
    training_seed: int
    wire_seed: int
    version: int
    origin_s: float  # instant 0 of the federation on the machine's clock


class Report(NamedTuple):
    """The report of a client on a task that it has trained."""

    downloaded_s: float  # instant of the federation's clock
    trained_s: float  # instant of the federation's clock
    compute_s: float  # processor time of the task
    waited_s: float  # wait for the processor
    overran_s: float  # time beyond what training should have taken
    train_loss: float
    squared_loss: float


def receive_message(connection: socket.socket) -> bytes:
    """Return the next message of the wire, whose header says how long it is."""
    header = receive(connection, HEADER.size)
    return header + receive(connection, HEADER.unpack(header)[2])
