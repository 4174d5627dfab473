"""The event engine agrees with closed forms, and these tests check what it writes down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.pacing import FedAsync, FedBuff, Pacing, SemiSynchronous, Synchronous
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategy import FleetView, ServerState
from devices.vocabulary.plan import ClientUpdate, DeviceId, TermGrid, TrainingPlan
from simulator.config.schema import Stop
from simulator.engine.federation import Federation
from simulator.engine.server import simulate
from tests.simulator.small import (
    DriftTrainer,
    Memory,
    change,
    make_device,
    make_federation,
    tiny_model,
)
from traces.bandwidth import BandwidthTrace, Link


def plan_of(federation: Federation, device_id: int = 0) -> TrainingPlan:
    terms = TermGrid.top_blocks(tiny_model().grid_shape(2), 3)
    return TrainingPlan(device_id, terms, ("fp32",) * 3, (32,) * 3, 3, 4)


def run(federation: Federation) -> Memory:
    log = Memory()
    simulate(federation, log)
    return log


def test_equal_devices_on_constant_links_give_the_round_time_in_closed_form() -> None:
    federation = make_federation([make_device(k, rate_bytes_per_s=1e5) for k in range(4)], rounds=3)
    cost = federation.new_view().cost(plan_of(federation))
    round_s = cost.download_bytes / 1e5 + cost.train_s + cost.upload_bytes / 1e5
    log = run(federation)
    assert [r.duration_s for r in log.rounds[1:]] == pytest.approx([round_s] * 3)
    assert log.rounds[-1].closed_s == pytest.approx(3 * round_s)
    assert all(r.waiting_s == pytest.approx(0, abs=1e-9) for r in log.rounds)


def test_the_round_lasts_as_long_as_its_slowest_device_and_the_others_wait() -> None:
    fleet = [make_device(0), make_device(1, flops_per_s=1e8)]
    federation = make_federation(fleet, rounds=1)
    fast, slow = (federation.new_view().cost(plan_of(federation, k)) for k in range(2))
    log = run(federation)
    gap_s = slow.train_s - fast.train_s
    assert log.rounds[1].waiting_s == pytest.approx(gap_s / 2)
    assert log.clients[0].waiting_s == pytest.approx(gap_s)
    assert log.clients[0].energy_idle_j == pytest.approx(gap_s * 1.0)
    assert log.clients[0].energy_compute_j == pytest.approx(fast.train_s * 10.0)


def test_a_plan_over_the_budget_is_an_oom_event_and_trains_nothing() -> None:
    trainer = DriftTrainer()
    fleet = [make_device(0), make_device(1, budget_bytes=1000)]
    log = run(make_federation(fleet, trainer=trainer, rounds=2))
    assert [r.num_oom for r in log.rounds] == [0, 1, 1]
    assert {event.device for event in log.named("oom")} == {1}
    assert log.named("oom")[0].details["budget_bytes"] == 1000
    assert {job.plan.device_id for job in trainer.jobs} == {0}
    record = next(r for r in log.clients if r.device_id == 1)
    assert (record.outcome, record.train_s, record.upload_bytes, record.flops) == ("oom", 0, 0, 0)
    assert record.download_bytes > 0


def test_a_plan_that_just_fits_its_budget_is_no_oom() -> None:
    peak = (
        make_federation([make_device(0)])
        .new_view()
        .cost(plan_of(make_federation([make_device(0)])))
    )
    for budget, oom in ((peak.memory.total, 0), (peak.memory.total - 1, 1)):
        log = run(make_federation([make_device(0, budget_bytes=budget)], rounds=1))
        assert log.rounds[1].num_oom == oom


def test_a_round_without_any_update_closes_and_keeps_the_version() -> None:
    log = run(make_federation([make_device(0, budget_bytes=1000)], rounds=3))
    assert [r.version for r in log.rounds] == [0, 0, 0, 0]
    assert log.rounds[-1].num_aggregated == 0
    assert math.isnan(log.rounds[-1].train_loss)


def test_the_deadline_cuts_late_devices_and_counts_what_they_moved() -> None:
    fleet = [make_device(0), make_device(1, rate_bytes_per_s=1000.0)]
    federation = make_federation(fleet, rounds=1)
    on_time = run(federation).clients
    deadline_s = on_time[0].finished_s + 0.5
    trainer = DriftTrainer()
    federation = make_federation(
        fleet, rounds=1, trainer=trainer, pacing=Synchronous(cohort=2, deadline_s=deadline_s)
    )
    log = run(federation)
    assert log.rounds[1].closed_s == deadline_s
    assert (log.rounds[1].num_aggregated, log.rounds[1].num_late) == (1, 1)
    late = next(r for r in log.clients if r.device_id == 1)
    assert late.outcome == "late"
    assert late.download_bytes == int(1000.0 * deadline_s)
    assert late.upload_bytes == 0
    assert [job.plan.device_id for job in trainer.jobs] == [0]  # a cut device is not trained


def test_an_update_at_the_very_deadline_is_in_time() -> None:
    federation = make_federation([make_device(0)], rounds=1)
    finished_s = run(federation).clients[0].finished_s
    pacing = Synchronous(cohort=1, deadline_s=finished_s)
    log = run(make_federation([make_device(0)], rounds=1, pacing=pacing))
    assert log.rounds[1].num_aggregated == 1


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 3.0), st.integers(1, 40))
def test_any_deadline_is_met_to_the_instant(deadline_s: float, rounds: int) -> None:
    """Rounding of the clock must neither skip a deadline nor ring it for ever."""
    slow = make_device(0, rate_bytes_per_s=1.0)
    federation = make_federation([slow], rounds=rounds, pacing=Synchronous(1, deadline_s))
    log = run(federation)
    assert len(log.rounds) == rounds + 1
    assert log.rounds[-1].closed_s == pytest.approx(rounds * deadline_s)


def test_a_stale_deadline_does_not_move_the_clock() -> None:
    federation = make_federation([make_device(0)], rounds=1, pacing=Synchronous(1, 1e6))
    log = run(federation)
    assert log.rounds[1].closed_s == log.clients[0].finished_s < 1e6


def test_an_outage_delays_the_round_by_its_length() -> None:
    device = make_device(0)
    smooth = run(make_federation([device], rounds=1)).rounds[1].duration_s
    rate = np.array([1e5, 0.0, 1e5])
    trace = BandwidthTrace(np.array([0.0, 0.01, 7.01]), rate, 1e9)
    flaky = replace(device, link=Link("flaky", trace, device.link.uplink))
    assert run(make_federation([flaky], rounds=1)).rounds[1].duration_s == pytest.approx(smooth + 7)


def test_sums_of_a_round_are_those_of_its_clients() -> None:
    fleet = [make_device(k, flops_per_s=1e9 / (k + 1)) for k in range(3)]
    log = run(make_federation(fleet, trainer=DriftTrainer(), rounds=2))
    for record in log.rounds[1:]:
        clients = [c for c in log.clients if c.round == record.round]
        assert len(clients) == record.num_planned == 3
        for name in ("download_bytes", "upload_bytes", "flops", "energy_j"):
            assert getattr(record, name) == pytest.approx(sum(getattr(c, name) for c in clients))


def test_versions_rise_by_one_and_events_by_time() -> None:
    log = run(make_federation([make_device(k) for k in range(3)], rounds=4))
    assert [r.version for r in log.rounds] == [0, 1, 2, 3, 4]
    times = [event.at_s for event in log.events]
    assert times == sorted(times)
    assert all(
        c.started_s + c.download_s + c.train_s + c.upload_s == c.finished_s for c in log.clients
    )


def test_training_learns_through_the_wire() -> None:
    federation = make_federation(
        [make_device(k) for k in range(3)], trainer=DriftTrainer(), rounds=8
    )
    log = run(federation)
    assert log.rounds[0].score == pytest.approx(0.0)
    assert log.rounds[-1].score > 0.98


@pytest.mark.parametrize(
    ("stop", "rounds"),
    [(Stop(5), 5), (Stop(5, simulated_s=1e-9), 1), (Stop(50, target=0.7), 2)],
)
def test_a_run_stops_at_the_first_condition_that_holds(stop: Stop, rounds: int) -> None:
    federation = make_federation([make_device(0)], trainer=DriftTrainer())
    server = simulate(change(federation, stop=stop), Memory())
    assert server.num_rounds == rounds


def test_the_model_of_the_last_round_is_evaluated_whatever_ends_the_run() -> None:
    federation = make_federation([make_device(0)], trainer=DriftTrainer())
    round_s = run(federation).rounds[1].duration_s
    for stop in (Stop(3), Stop(50, simulated_s=2.5 * round_s)):
        log = Memory()
        federation = make_federation([make_device(0)], trainer=DriftTrainer())
        server = simulate(change(federation, stop=stop, evaluate_every=7), log)
        assert [not math.isnan(record.score) for record in log.rounds] == [
            True,
            False,
            False,
            True,
        ]
        assert server.evaluations.last_score == log.rounds[-1].score


@pytest.mark.parametrize("pacing", [FedBuff(3, 2), FedAsync(3), SemiSynchronous(3, 0.05)])
def test_what_is_under_way_as_the_run_ends_is_counted(pacing: Pacing) -> None:
    fleet = [make_device(k, flops_per_s=1e9 / (1 + k)) for k in range(3)]
    log = run(make_federation(fleet, pacing=pacing, trainer=DriftTrainer(), rounds=4))
    assert len(log.named("download_started")) == len(log.clients)
    assert sum(record.download_bytes for record in log.rounds) == sum(
        record.download_bytes for record in log.clients
    )
    assert log.rounds[-1].num_late == sum(record.outcome == "late" for record in log.clients) > 0


def test_the_server_knows_nothing_of_a_link_s_future() -> None:
    """Two links that were alike until time 0, and differ from then on."""
    period_s = 10_000.0
    known = []
    for ahead in (1e3, 1e6):
        rate = np.array([ahead, 5e4])
        trace = BandwidthTrace(np.array([0.0, 5000.0]), rate, period_s)
        device = replace(make_device(0), link=Link("x", trace, trace))
        known.append(make_federation([device]).new_view().link(0))
    assert known[0] == known[1]
    assert known[0].down_bytes_per_s == pytest.approx(5e4)


def test_a_link_that_has_long_been_down_is_known_as_slow_and_not_as_dead() -> None:
    trace = BandwidthTrace(np.array([0.0, 100.0]), np.array([1e6, 0.0]), 10_000.0)
    device = replace(make_device(0), link=Link("x", trace, trace))
    assert make_federation([device]).new_view().link(0).up_bytes_per_s == 1.0


def test_the_cohort_does_not_depend_on_the_strategy() -> None:
    fleet = [make_device(k) for k in range(12)]
    cohorts = []
    for strategy in (FedLoRA(rank=2), FedLoRA(rank=1, depth=1)):
        federation = make_federation(fleet, strategy=strategy, pacing=Synchronous(4), rounds=5)
        cohorts.append([e.details["cohort"] for e in run(federation).named("round_opened")])
    assert cohorts[0] == cohorts[1]
    assert len({tuple(cohort) for cohort in cohorts[0]}) > 1


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    fleet = [make_device(k) for k in range(4)]

    def digest(seed: int) -> str:
        federation = make_federation(fleet, trainer=DriftTrainer(), seed=seed)
        return simulate(federation, Memory()).state.adapter.digest

    assert digest(1) == digest(1) != digest(2)


@dataclass(frozen=True)
class Listening(FedLoRA):
    """This FedLoRA notes in which order it is given cohorts and updates."""

    cohorts: list[list[int]] = field(default_factory=list)
    merged: list[list[tuple[int, int]]] = field(default_factory=list)

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        self.cohorts.append(list(cohort))
        return super().plan(state, fleet, cohort, rng)

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        self.merged.append([(u.plan.device_id, u.broadcast.version) for u in updates])
        return super().aggregate(state, updates)


@pytest.mark.parametrize("pacing", [Synchronous(cohort=4), FedBuff(concurrency=4, size=4)])
def test_a_strategy_is_given_rising_cohorts_and_updates_in_order_of_device(pacing: Pacing) -> None:
    # The last device is the quickest, so updates do not arrive in order of device.
    fleet = [make_device(k, flops_per_s=1e8 * (1 + 3 * k)) for k in range(4)]
    strategy = Listening(rank=2)
    log = run(make_federation(fleet, strategy=strategy, pacing=pacing, rounds=3))
    arrivals = [event.device for event in log.named("update_received")]
    assert arrivals[:4] != sorted(arrivals[:4], key=str)
    assert strategy.cohorts[0] == [0, 1, 2, 3]
    assert all(cohort == sorted(cohort) for cohort in strategy.cohorts)
    assert len(strategy.merged) == 3
    assert all(updates and updates == sorted(updates) for updates in strategy.merged)
