"""The server, as a SimPy process: hand out plans, wait for updates or the deadline, aggregate."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import simpy

from algorithms.lora import rebase
from algorithms.pacing import Pacing
from algorithms.selection import Selection
from algorithms.strategy import LinkRate, ServerState, Strategy
from devices import wire
from devices.fleet import Device
from devices.plan import Broadcast, ClientUpdate, DeviceId, TrainingPlan
from devices.trainer import Evaluation, Trainer, TrainingJob
from simulator.client import Assignment, run_client
from simulator.fleet_view import ServerView
from simulator.records import ClientRecord, Event, RoundRecord
from simulator.seeds import stream, stream_seed
from simulator.store import RunLog

NOT_EVALUATED = Evaluation(math.nan, math.nan)


@dataclass(frozen=True)
class Stop:
    """When a run ends: after this many rounds, or earlier at a clock time or an accuracy."""

    rounds: int
    simulated_s: float = math.inf
    accuracy: float = math.inf


@dataclass(frozen=True, eq=False)
class Federation:
    """Everything a simulation is made of."""

    seed: int
    fleet: Sequence[Device]
    view: ServerView
    strategy: Strategy[Any]
    pacing: Pacing
    selection: Selection
    trainer: Trainer
    evaluate_every: int
    stop: Stop


class Server:
    """Owns all that changes in a run: the state, who is in flight, and what has arrived."""

    def __init__(self, env: simpy.Environment, federation: Federation, log: RunLog) -> None:
        self._env, self._log = env, log
        self._fed = federation
        self._devices = {device.device_id: device for device in federation.fleet}
        strategy, view = federation.strategy, federation.view
        adapter = view.model.initial_adapter(
            strategy.rank, strategy.alpha, stream(federation.seed, "adapter")
        )
        self.state: ServerState[Any] = strategy.init(adapter)
        self._inbox = simpy.Store(env)
        self._in_flight: dict[DeviceId, simpy.Process] = {}
        self._arrived: list[Assignment] = []
        self._ended: list[ClientRecord] = []  # of this round, whatever the outcome
        self._resting: dict[
            DeviceId, ClientRecord
        ] = {}  # ended, and waiting for the round to close
        self._round = 1
        self._opened_s = 0.0
        self._handouts = 0
        self._num_cohort = self._num_planned = 0
        self.accuracy = math.nan  # as last evaluated
        self._is_over = False

    @property
    def num_rounds(self) -> int:
        """Rounds that have closed."""
        return self._round - 1

    @property
    def now_s(self) -> float:
        """The simulated clock."""
        return float(self._env.now)

    def serve(self) -> Generator[simpy.Event, Any, None]:
        """Run rounds until the stop condition holds."""
        self._log.round(self._initial_round())
        while not self._is_over:
            self._fill("round_opened")
            while not self._is_ready():
                yield from self._wait()
                if not self._is_ready():
                    self._fill("refilled")
            yield from self._close_round()

    def _is_last_round(self) -> bool:
        """Whether the run ends with the round that closes now, whatever its accuracy."""
        stop = self._fed.stop
        return self._round >= stop.rounds or self._env.now >= stop.simulated_s

    def _is_ready(self) -> bool:
        pacing, opened_s, now_s = self._fed.pacing, self._opened_s, self._env.now
        # The alarm rings at opened + deadline. The difference of that and opened may fall short of
        # the deadline by rounding, and then the alarm would ring for ever.
        is_due = now_s >= opened_s + pacing.deadline_s
        waited_s = pacing.deadline_s if is_due else now_s - opened_s
        return pacing.ready(len(self._in_flight), len(self._arrived), waited_s)

    def _event(self, name: str, details: Mapping[str, Any], device: DeviceId | None = None) -> None:
        self._log.event(Event(self._env.now, name, self._round, device, details))

    def _fill(self, event: str) -> None:
        """Hand plans to as many devices as the pacing has slots for."""
        slots = self._fed.pacing.slots(len(self._in_flight), len(self._arrived))
        if slots > 0:
            self._hand_out(slots, event)

    def _hand_out(self, slots: int, event: str) -> None:
        fed = self._fed
        self._handouts += 1
        idle = [device for device in fed.view.device_ids if device not in self._in_flight]
        cohort = fed.selection.pick(idle, slots, stream(fed.seed, "selection", self._handouts))
        plans = fed.strategy.plan(
            self.state, fed.view, cohort, stream(fed.seed, "strategy", self._handouts)
        )
        by_device = {plan.device_id: plan for plan in plans}
        assert len(by_device) == len(plans), "a device got two plans"
        assert set(by_device) <= set(cohort), "a plan is for a device outside the cohort"
        self._num_cohort += len(cohort)
        self._num_planned += len(plans)
        self._event(event, {"cohort": list(cohort), "version": self.state.version})
        # In order of device: at one instant SimPy resolves ties by creation.
        for device_id in sorted(cohort):
            if device_id in by_device:
                self._start(device_id, by_device[device_id])
            else:
                self._event("sat_out", {}, device_id)

    def _start(self, device_id: DeviceId, plan: TrainingPlan) -> None:
        fed, device = self._fed, self._devices[device_id]
        self._end_rest(device_id)
        cost = fed.view.cost(plan)
        work = Assignment(
            plan=plan,
            broadcast=fed.strategy.broadcast(self.state, plan),
            device=device,
            cost=cost,
            training_seed=stream_seed(fed.seed, "training", self._handouts, device_id),
            wire_seed=stream_seed(fed.seed, "wire", self._handouts, device_id),
            record=ClientRecord.open(
                plan, device, cost, round_number=self._round, now_s=self._env.now
            ),
        )
        self._in_flight[device_id] = self._env.process(
            run_client(self._env, work, self._inbox, self._log)
        )

    def _wait(self) -> Generator[simpy.Event, Any, None]:
        """Until somebody reports, or the deadline passes."""
        arrival = self._inbox.get()
        deadline_s = self._opened_s + self._fed.pacing.deadline_s
        if math.isinf(deadline_s):
            yield arrival
        else:
            yield arrival | self._env.timeout(deadline_s - self._env.now)
        if arrival.triggered:
            self._receive(cast(Assignment, arrival.value))
        else:
            arrival.cancel()  # else the stale request swallows the next arrival

    def _receive(self, work: Assignment) -> None:
        record = work.record
        del self._in_flight[record.device_id]
        self._ended.append(record)
        self._resting[record.device_id] = record
        if record.outcome != "aggregated":
            return
        self._event("update_received", {"bytes": record.upload_bytes}, record.device_id)
        self._arrived.append(work)
        self._fed.view.measured(
            record.device_id,
            LinkRate(
                record.download_bytes / record.download_s, record.upload_bytes / record.upload_s
            ),
        )

    def _close_round(self) -> Generator[simpy.Event, Any, None]:
        if self._fed.pacing.drops_late:
            yield from self._cut_late()
        updates = self._train(sorted(self._arrived, key=lambda work: work.plan.device_id))
        if updates:
            before = self.state.version
            self.state = self._fed.strategy.aggregate(self.state, updates)
            assert self.state.version == before + 1, "an aggregation makes one new version"
        devices = [update.plan.device_id for update in updates]
        self._event("aggregated", {"version": self.state.version, "devices": devices})
        evaluation = self._evaluate()
        self._is_over = self._is_last_round() or self.accuracy >= self._fed.stop.accuracy
        if self._is_over:
            yield from self._cut_rest()
        self._log.round(self._round_record(evaluation))
        self._round += 1
        self._opened_s = self._env.now
        self._arrived, self._ended = [], []
        self._num_cohort = self._num_planned = 0

    def _cut_late(self) -> Generator[simpy.Event, Any, None]:
        for _, process in sorted(self._in_flight.items()):
            if process.is_alive:  # else it reported at this very instant, and is in time
                process.interrupt("late")
        while self._in_flight:
            work = yield self._inbox.get()
            self._receive(work)

    def _cut_rest(self) -> Generator[simpy.Event, Any, None]:
        """What is still under way as the run ends is counted up to here, and merged nowhere."""
        merged = len(self._ended)
        yield from self._cut_late()
        for record in self._ended[merged:]:
            if record.outcome == "aggregated":  # it reported at this very instant
                record.outcome = "late"

    def _end_rest(self, device_id: DeviceId) -> None:
        """A device waits until it is asked again, or until the round closes."""
        if device_id in self._resting:
            profile = self._devices[device_id].profile
            self._resting.pop(device_id).close(profile, self._env.now)

    def _train(self, arrived: Sequence[Assignment]) -> list[ClientUpdate]:
        """Real gradients, in no simulated time, only for what will be aggregated."""
        jobs = [
            TrainingJob(work.plan, work.broadcast, work.device.examples, work.training_seed)
            for work in arrived
        ]
        updates = []
        for work, result in zip(arrived, self._fed.trainer.train(jobs), strict=True):
            work.record.train_loss = result.train_loss
            rng = np.random.default_rng(work.wire_seed)
            start = work.broadcast.adapter
            message = wire.encode_update(result.adapter, start, plan=work.plan, rng=rng)
            assert len(message) == work.cost.upload_bytes, "the clock charged another size"
            update = ClientUpdate(
                plan=work.plan,
                broadcast=work.broadcast,
                adapter=wire.decode_update(message, start, plan=work.plan),
                num_examples=len(work.device.examples),
                train_loss=result.train_loss,
                timing=work.timing,
            )
            updates.append(self._brought_up_to_date(update, work.record))
        return updates

    def _brought_up_to_date(self, update: ClientUpdate, record: ClientRecord) -> ClientUpdate:
        """The update as if it had started from the model as it is now."""
        record.staleness = self.state.version - update.broadcast.version
        share = self._fed.pacing.mixing(record.staleness)
        if record.staleness == 0 and share == 1.0:
            return update
        return rebase(update, Broadcast(self.state.version, self.state.adapter), share)

    def _evaluate(self) -> Evaluation:
        fed = self._fed
        if self._round % fed.evaluate_every and not self._is_last_round():
            return NOT_EVALUATED
        evaluation = fed.trainer.evaluate(self.state.adapter)
        self.accuracy = evaluation.accuracy
        self._event("evaluated", evaluation._asdict())
        return evaluation

    def _initial_round(self) -> RoundRecord:
        self._round = 0
        evaluation = self._evaluate()
        record = self._round_record(evaluation)
        self._round = 1
        return record

    def _round_record(self, evaluation: Evaluation) -> RoundRecord:
        ended, now_s = self._ended, self._env.now
        for device_id in sorted(self._resting):
            self._end_rest(device_id)
        for record in ended:
            self._log.client(record)
        merged = [record for record in ended if record.outcome == "aggregated"]
        examples = np.array([record.num_examples for record in merged], dtype=float)
        losses = np.array([record.train_loss for record in merged])
        return RoundRecord(
            round=self._round,
            version=self.state.version,
            opened_s=self._opened_s,
            closed_s=now_s,
            duration_s=now_s - self._opened_s,
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            train_loss=float(losses @ examples / examples.sum()) if merged else math.nan,
            num_cohort=self._num_cohort,
            num_planned=self._num_planned,
            num_sat_out=self._num_cohort - self._num_planned,
            num_aggregated=len(merged),
            num_oom=sum(record.outcome == "oom" for record in ended),
            num_late=sum(record.outcome == "late" for record in ended),
            waiting_s=float(np.mean([r.waiting_s for r in merged])) if merged else 0.0,
            download_bytes=sum(record.download_bytes for record in ended),
            upload_bytes=sum(record.upload_bytes for record in ended),
            flops=sum(record.flops for record in ended),
            energy_j=sum(record.energy_j for record in ended),
        )


def simulate(federation: Federation, log: RunLog) -> Server:
    """Run one federation to its end, and return the server as it stands then."""
    env = simpy.Environment()
    server = Server(env, federation, log)
    # Until the server is done, not to exhaustion: a stale deadline must not move the clock.
    env.run(until=env.process(server.serve()))
    return server
