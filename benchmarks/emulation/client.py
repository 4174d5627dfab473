"""Runs a device as a process that receives a broadcast, trains, and uploads over its own link."""

from __future__ import annotations

import multiprocessing
import socket
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from benchmarks.emulation.messages import Enrolment, Report, Task, receive_message
from benchmarks.emulation.shaping import Bucket, Spent, WallClock, send
from devices.vocabulary.controls import Controls, elementwise, zeros_like
from devices.vocabulary.plan import WEIGHT_FORMATS, Broadcast, TermGrid, TrainingPlan
from devices.vocabulary.trainer import Trainer, TrainingJob, TrainingResult
from devices.wire import wire
from simulator.engine.seeds import stream
from simulator.workers.trainers import Trainers
from simulator.world.build import World, build_world


@dataclass(frozen=True, eq=False)
class ClientContext:
    """The client context holds the processor and the links that all clients share."""

    processor: AbstractContextManager[object]  # the lock that a client holds while it computes
    uplink: Spent  # the spent tokens of the server's uplink, where it is shared


def client_main(address: tuple[str, int], control: Connection, shared: ClientContext) -> None:
    """Serve tasks until told ``None``."""
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    control.send(connection.getsockname())
    client: _Client | None = None
    order: Enrolment | Task | None
    with Trainers(1) as trainers:
        while (order := control.recv()) is not None:
            if isinstance(order, Enrolment):
                client = _Client(order, trainers, shared)
                control.send("enrolled")
            else:
                assert client, "a client enrols before it works"
                client.serve(order, connection, control)


class _Worked(NamedTuple):
    message: bytes
    result: TrainingResult
    compute_s: float
    waited_s: float


class _Client:
    def __init__(self, enrolment: Enrolment, trainers: Trainers, shared: ClientContext) -> None:
        config = enrolment.config
        self._world, self._shared = build_world(config, "an emulation"), shared
        self._device = self._world.fleet[enrolment.device_id]
        self._slowdown = enrolment.slowdown
        self._trainer = trainers.get(config, self._world)
        rank, alpha = config.strategy.rank, config.strategy.alpha
        rng = stream(config.seed, "adapter")
        self._drawn = self._world.model.initial_adapter(rank, alpha, rng)
        self._own_control = zeros_like(self._drawn)
        assert config.training != "none", "what is emulated is trained"
        self._rate = config.training.learning_rate  # the schedule is constant
        with shared.processor:
            _warm_up(self._trainer, self._world, Broadcast(0, self._drawn))

    def serve(self, task: Task, connection: socket.socket, control: Connection) -> None:
        """Carry out a task, from the first byte of the broadcast to the last of the update."""
        clock = WallClock(task.origin_s)
        message = receive_message(connection)
        downloaded_s = clock.now_s()
        worked = self._work(task, message)
        train_s = self._train_s(task.plan, worked.compute_s)
        due_s = downloaded_s + self._device.speed.time_to(train_s, downloaded_s)
        overran_s = max(clock.now_s() - due_s, 0.0)
        clock.sleep_until(due_s)
        trained_s = clock.now_s()
        losses = worked.result.train_loss, worked.result.squared_loss
        spans = worked.compute_s, worked.waited_s, overran_s
        control.send(Report(downloaded_s, trained_s, *spans, *losses))
        self._upload(worked.message, connection, clock)

    def _work(self, task: Task, message: bytes) -> _Worked:
        """Decode, train and encode, while no other client uses the processor.

        The seconds are those that the processor gave this process, without those of other programs.
        """
        asked_s = time.monotonic()
        with self._shared.processor:
            waited_s, began_s = time.monotonic() - asked_s, time.process_time()
            received = wire.decode_broadcast(
                message, self._world.model, plan=task.plan, drawn=self._drawn
            )
            controls = received.control and Controls(received.control, self._own_control)
            start = Broadcast(task.version, received.adapter, controls=controls)
            job = TrainingJob(task.plan, start, self._device.examples, task.training_seed)
            result = self._trainer.train([job])[0]
            rng = np.random.default_rng(task.wire_seed)
            change = None
            if controls:
                moved = task.plan.local_steps * self._rate
                change = controls.change(start.adapter, result.adapter, moved)
            update = wire.encode_update(
                result.adapter, start.adapter, plan=task.plan, rng=rng, control_change=change
            )
            if controls:  # the own variate changes by what the server decodes
                told = wire.decode_control_change(update, start.adapter, plan=task.plan)
                self._own_control = elementwise(np.add, controls.own, told)
            return _Worked(update, result, time.process_time() - began_s, waited_s)

    def _train_s(self, plan: TrainingPlan, compute_s: float) -> float:
        """Return the seconds of the device at its full speed.

        The client sleeps through those that it has not computed, and its wait for the processor is
        part of that sleep.
        """
        if self._slowdown is not None:
            return self._slowdown * compute_s
        return self._world.cost_model.cost(plan, self._device.profile).train_s

    def _upload(self, message: bytes, connection: socket.socket, clock: WallClock) -> None:
        device, server = self._device, self._world.shared_links.server
        clock.sleep_until(clock.now_s() + device.latency.at(clock.now_s()))
        own = multiprocessing.Value("d", clock.now_s())
        ways = [Bucket(device.link.uplink.steps, own)]
        if server:
            ways.append(Bucket(server.uplink.steps, self._shared.uplink))
        send(connection, message, ways, clock=clock)


def _warm_up(trainer: Trainer, world: World, start: Broadcast) -> None:
    """Take one step with the weights in each format, as a device has them packed in its storage."""
    model = world.model
    for weight_format in WEIGHT_FORMATS:
        plan = TrainingPlan(
            device_id=0,
            terms=TermGrid.top_blocks(model.grid_shape(start.adapter.rank), 1),
            weight_formats=(weight_format,) * model.num_blocks,
            activation_bits=(32,) * model.num_blocks,
            local_steps=1,
            batch_size=1,
        )
        trainer.train([TrainingJob(plan, start, world.fleet[0].examples, 0)])
