"""Every selection runs under every pacing, and the server remembers what they need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from algorithms.pacing import FedBuff, Pacing, Synchronous
from algorithms.registry import SELECTIONS
from algorithms.selection import Roster, Uniform
from algorithms.selections.fedcs import FedCS
from algorithms.selections.power_of_choice import PowerOfChoice
from devices.vocabulary.trainer import TrainingJob, TrainingResult
from simulator.engine.seeds import stream
from simulator.engine.server import simulate
from simulator.log.checked import InvariantError
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation
from tests.simulator.test_every_pacing import EXAMPLES
from traces.availability import AvailabilityTrace


@pytest.mark.parametrize("pacing", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("trainer", [DriftTrainer, None], ids=["trained", "timing"])
def test_every_selection_runs_under_every_pacing(kind: str, pacing: Pacing, trainer: Any) -> None:
    fleet = [make_device(k, flops_per_s=1e8 * (k + 1)) for k in range(6)]
    log = Memory()
    federation = make_federation(
        fleet,
        pacing=pacing,
        selection=SELECTIONS[kind](),
        trainer=trainer and trainer(),
        rounds=8,
    )
    simulate(federation, log)
    assert log.rounds[-1].version >= 6
    most = max(pacing.slots(0, 0), 1)
    dispatched = [e for e in log.events if e.name in ("round_opened", "refilled")]
    assert dispatched
    for event in dispatched:
        cohort = event.details["cohort"]
        assert 0 < len(cohort) <= most
        assert cohort == sorted(set(cohort))
    # No two plans of a device overlap in time, since only idle devices are picked.
    for device in fleet:
        own = [r for r in log.clients if r.device_id == device.device_id]
        own.sort(key=lambda r: r.started_s)
        assert all(a.finished_s <= b.started_s for a, b in pairwise(own))


@dataclass
class Spy:
    """This selection is uniform and keeps a copy of what every roster said."""

    kind: str = "spy"
    seen: list[dict[str, Any]] = field(default_factory=list)

    def pick(self, idle: Any, slots: int, *, roster: Roster, rng: Any) -> tuple[int, ...]:
        arrays = {k: np.array(v) for k, v in vars(roster).items() if isinstance(v, np.ndarray)}
        rest = {"round": roster.round, "deadline_s": roster.deadline_s, "rank": roster.rank}
        cohort = Uniform().pick(idle, slots, roster=roster, rng=rng)
        self.seen.append({**arrays, **rest, "cohort": cohort})
        with pytest.raises(ValueError, match="read-only"):
            roster.loss[0] = 1.0
        return cohort


class LossTrainer(DriftTrainer):
    """This trainer's losses are 10 device + version, and 100 more for the squared ones."""

    def _result(self, job: TrainingJob) -> TrainingResult:
        loss = 10.0 * job.plan.device_id + job.broadcast.version
        return super()._result(job)._replace(train_loss=loss, squared_loss=100.0 + loss)


def test_the_roster_is_what_the_rounds_have_shown() -> None:
    spy, log = Spy(), Memory()
    fleet = [make_device(k, num_examples=8 * (k + 1), flops_per_s=1e8 * (k + 1)) for k in range(4)]
    pacing = Synchronous(cohort=2, deadline_s=50.0)
    simulate(
        make_federation(fleet, selection=spy, pacing=pacing, trainer=LossTrainer(), rounds=6), log
    )
    picked, last, trip = np.zeros(4), np.full(4, np.nan), np.full(4, np.nan)
    loss, squared, utility = np.full(4, np.nan), np.full(4, np.nan), []
    for number, seen in enumerate(spy.seen, start=1):
        assert (seen["round"], seen["deadline_s"], seen["rank"]) == (number, 50.0, 2)
        assert seen["num_examples"].tolist() == [8, 16, 24, 32]
        for name, wanted in {
            "times_picked": picked,
            "last_round": last,
            "trip_s": trip,
            "loss": loss,
            "squared_loss": squared,
        }.items():
            np.testing.assert_array_equal(seen[name], wanted)
        np.testing.assert_allclose(seen["utility"], utility)
        total = 0.0
        for record in (r for r in log.clients if r.round == number):
            device = record.device_id
            picked[device] += 1
            last[device] = number
            trip[device] = record.finished_s - record.started_s
            loss[device] = record.train_loss
            squared[device] = 100 + record.train_loss
            total += 8 * (device + 1) * math.sqrt(squared[device])
        utility.append(total)
    assert len(spy.seen) == 6


def test_a_late_device_is_known_to_take_at_least_as_long_as_the_server_waited() -> None:
    spy, log = Spy(), Memory()
    fleet = [make_device(0), make_device(1, flops_per_s=1e5)]
    simulate(
        make_federation(fleet, selection=spy, pacing=Synchronous(2, deadline_s=2.0), rounds=3), log
    )
    assert {r.device_id for r in log.clients if r.outcome == "late"} == {1}
    assert spy.seen[-1]["trip_s"][1] == pytest.approx(2.0)
    assert spy.seen[-1]["trip_s"][0] < 2.0


def test_fedcs_leaves_out_who_would_miss_the_deadline_of_the_pacing() -> None:
    fleet = [make_device(k, flops_per_s=1e9 / 30**k) for k in range(4)]
    rounds = {}
    for selection in (Uniform(), FedCS()):
        log = Memory()
        pacing = Synchronous(cohort=4, deadline_s=2.0)
        simulate(make_federation(fleet, selection=selection, pacing=pacing, rounds=3), log)
        rounds[selection.kind] = log.rounds[1:]
    assert all(r.num_late > 0 and r.duration_s == 2.0 for r in rounds["uniform"])
    for fedcs, uniform in zip(rounds["fedcs"], rounds["uniform"], strict=True):
        assert fedcs.num_late == 0
        assert fedcs.num_aggregated == uniform.num_aggregated
        assert fedcs.duration_s < 2.0


def test_power_of_choice_spends_its_rounds_where_the_loss_is_large() -> None:
    """Losses grow with the device's number: once all are known, the largest two take every
    round."""
    log = Memory()
    fleet = [make_device(k) for k in range(5)]
    federation = make_federation(
        fleet,
        selection=PowerOfChoice(factor=5),
        pacing=Synchronous(cohort=2),
        trainer=LossTrainer(),
        rounds=9,
    )
    simulate(federation, log)
    cohorts = [e.details["cohort"] for e in log.named("round_opened")]
    assert {d for cohort in cohorts[:3] for d in cohort} == {0, 1, 2, 3, 4}
    assert cohorts[3:] == [[3, 4]] * 6


def test_a_device_that_comes_twice_into_one_buffer_counts_with_its_last_losses() -> None:
    spy, log = Spy(), Memory()
    fleet = [make_device(0), make_device(1, flops_per_s=1e6)]
    federation = make_federation(
        fleet,
        selection=spy,
        pacing=FedBuff(concurrency=2, size=3),
        trainer=LossTrainer(),
        rounds=2,
    )
    simulate(federation, log)
    first = [r for r in log.clients if r.round == 1 and r.device_id == 0]
    assert len(first) > 1
    assert spy.seen[-1]["loss"][0] == first[-1].train_loss


def test_cohorts_are_those_of_the_round_among_who_is_there_however_long_rounds_take() -> None:
    """Eight devices come and go, each on a calendar of its own, under rounds of two lengths: every
    cohort is the first three of the round's order that are there and free as it opens."""
    calendars = [AvailabilityTrace.of([(0.0, 3.0 + k), (5.0 + k, 20.0)], 20.0) for k in range(8)]
    opened = []
    for flops_per_s in (1e9, 1e7):
        fleet = [
            make_device(k, availability=calendar, flops_per_s=flops_per_s)
            for k, calendar in enumerate(calendars)
        ]
        log = Memory()
        federation = make_federation(
            fleet, pacing=Synchronous(cohort=3), rounds=12, when_offline="resume"
        )
        simulate(federation, log)
        events = log.named("round_opened")
        for event in events:
            order = np.argsort(stream(0, "selection", event.round).random(8)).tolist()
            there = [k for k in order if calendars[k].is_online(event.at_s)]
            assert event.details["cohort"] == sorted(there[:3])
        opened.append([(event.at_s, event.details["cohort"]) for event in events])
    quick, slow = opened
    assert [at_s for at_s, _ in quick] != [at_s for at_s, _ in slow]
    assert any(a != b for (_, a), (_, b) in zip(quick, slow, strict=True))
    assert any(a == b for (_, a), (_, b) in zip(quick, slow, strict=True))


@pytest.mark.parametrize("cohort", [[0, 0], [0, 1, 2], [9]])
def test_a_selection_that_names_no_cohort_is_refused(cohort: list[int]) -> None:
    class Careless(Uniform):
        def pick(self, *given: Any, **known: Any) -> Any:
            return cohort

    federation = make_federation(
        [make_device(k) for k in range(4)], selection=Careless(), pacing=Synchronous(cohort=2)
    )
    with pytest.raises(InvariantError, match="must pick at most 2 of the 4 idle devices"):
        simulate(federation, Memory())


def test_the_server_sorts_the_cohort() -> None:
    class Backwards(Uniform):
        def pick(self, *given: Any, **known: Any) -> Any:
            return super().pick(*given, **known)[::-1]

    logs = [Memory(), Memory()]
    for log, selection in zip(logs, (Uniform(), Backwards()), strict=True):
        fleet = [make_device(k) for k in range(4)]
        pacing = Synchronous(cohort=3)
        simulate(make_federation(fleet, selection=selection, pacing=pacing), log)
    first, second = ([repr(event) for event in log.events] for log in logs)
    assert first == second
