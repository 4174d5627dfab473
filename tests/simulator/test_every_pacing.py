"""Every strategy runs under every pacing, and each pacing keeps its promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from algorithms.pacing import FedAsync, FedBuff, OverSelection, Pacing, SemiSynchronous, Synchronous
from algorithms.registry import PACINGS, STRATEGIES
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategy import ServerState
from devices.vocabulary.plan import ClientUpdate, Factors
from devices.vocabulary.trainer import TrainingJob, TrainingResult
from devices.wire.wire import encode_update
from simulator.engine.federation import Federation
from simulator.engine.server import simulate
from simulator.engine.server_view import ServerView
from simulator.log.records import ClientRecord, RoundRecord
from tests.algorithms.static_fleet import spoil
from tests.kinds import WHOLE
from tests.simulator.arrivals import Arrivals
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, tiny_model
from tests.torture import some
from traces.availability import AvailabilityTrace

EXAMPLES: dict[str, Pacing] = {
    "synchronous": Synchronous(cohort=3),
    "over_selection": OverSelection(cohort=2, factor=1.5),
    "semi_synchronous": SemiSynchronous(cohort=3, period_s=0.5),
    "fedbuff": FedBuff(concurrency=3, size=2),
    "fedasync": FedAsync(concurrency=3),
}


def test_every_pacing_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(PACINGS)


def run(federation: Federation) -> Memory:
    log = Memory()
    simulate(federation, log)
    return log


class CheckedTrainer(DriftTrainer):
    """This trainer checks each plan, and what its device received for it, as it trains."""

    def __init__(self, federation: list[Federation]) -> None:
        super().__init__()
        self.federation = federation
        self.arrivals = Arrivals(tiny_model())
        self.uploaded_bytes: list[int] = []

    @cached_property
    def view(self) -> ServerView:
        return self.federation[0].new_view()

    def _result(self, job: TrainingJob) -> TrainingResult:
        view = self.view
        memory = view.cost(job.plan).memory
        assert memory.total <= view.memory_budget_bytes(job.plan.device_id)
        self.arrivals.check(job)
        result = super()._result(job)
        message = encode_update(
            result.adapter, job.broadcast.adapter, plan=job.plan, rng=np.random.default_rng(0)
        )
        self.uploaded_bytes.append(len(message))
        return result


@dataclass(frozen=True)
class Watched:
    """This strategy checks all that the strategy inside it merges."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def aggregate(
        self, state: ServerState[Any], updates: Sequence[ClientUpdate]
    ) -> ServerState[Any]:
        """Fail where a number that a device did not send reaches the result."""
        after: ServerState[Any] = self.inner.aggregate(state, updates)
        spoiled = [replace(u, adapter=spoil(u.adapter, u.plan)) for u in updates]
        assert self.inner.aggregate(state, spoiled).adapter.digest == after.adapter.digest
        return after


@pytest.mark.parametrize(("kind", "name"), some(itertools.product(STRATEGIES, EXAMPLES), 2))
def test_every_strategy_runs_under_every_pacing(kind: str, name: str) -> None:
    """Four unlike devices, one of which cannot hold a plan that takes no heed of memory."""
    budgets = {0: 10**9, 1: 10**9, 2: 10**9, 3: 60_000}
    fleet = [
        make_device(k, flops_per_s=1e8 * (k + 1), rate_bytes_per_s=3e4 * (4 - k), budget_bytes=b)
        for k, b in budgets.items()
    ]
    itself: list[Federation] = []
    trainer = CheckedTrainer(itself)
    strategy = Watched(STRATEGIES[kind](rank=4))
    itself.append(
        make_federation(fleet, strategy=strategy, pacing=EXAMPLES[name], trainer=trainer, rounds=6)
    )
    log = run(itself[0])
    assert kind in WHOLE or not log.named("oom")
    versions = [record.version for record in log.rounds]
    for before, record in itertools.pairwise(log.rounds):
        assert record.version == before.version + (record.num_aggregated > 0)
    assert versions[-1] >= 3
    times = [event.at_s for event in log.events]
    assert times == sorted(times)
    merged = [record for record in log.clients if record.outcome == "aggregated"]
    assert len(merged) == len(trainer.jobs)  # nothing is lost, and nothing merged twice
    for recorded, carried in (
        ([record.download_bytes for record in merged], trainer.arrivals.downloaded_bytes),
        ([record.upload_bytes for record in merged], trainer.uploaded_bytes),
    ):
        assert sorted(recorded) == sorted(carried)
    assert all(record.staleness >= 0 and record.waiting_s >= 0 for record in log.clients)
    accuracies = [record.score for record in log.rounds]
    is_tested = STRATEGIES[kind].has_global_model
    assert (np.isfinite if is_tested else np.isnan)(accuracies).all()


def test_buffered_throughput_is_concurrency_by_round_trip() -> None:
    """Four equal devices are always at work and are merged two at a time: a merge every half round
    trip."""
    federation = make_federation(
        [make_device(k) for k in range(4)], pacing=FedBuff(concurrency=4, size=2), rounds=9
    )
    log = run(federation)
    round_trip_s = log.clients[0].finished_s
    # 9 merges take 18 updates, of which 4 come in each round trip.
    assert log.rounds[-1].closed_s == pytest.approx(5 * round_trip_s)
    assert {record.staleness for record in log.clients} <= {0, 1, 2}


def test_over_selection_ends_with_the_fastest_and_cuts_the_rest() -> None:
    fleet = [make_device(k, flops_per_s=1e9 / (1 + k)) for k in range(4)]
    log = run(make_federation(fleet, pacing=OverSelection(cohort=3, factor=4 / 3), rounds=2))
    for record in log.rounds[1:]:
        assert (record.num_planned, record.num_aggregated, record.num_late) == (4, 3, 1)
    assert {record.device_id for record in log.clients if record.outcome == "late"} == {3}


def test_a_semi_synchronous_server_merges_on_the_beat_and_the_slow_work_on() -> None:
    fleet = [make_device(0), make_device(1, flops_per_s=2e6)]
    pacing = SemiSynchronous(cohort=2, period_s=1.0)
    log = run(make_federation(fleet, pacing=pacing, rounds=12, trainer=DriftTrainer()))
    assert [record.closed_s for record in log.rounds[1:]] == pytest.approx(np.arange(1.0, 13.0))
    slow = [record for record in log.clients if record.device_id == 1]
    assert slow
    for record in slow:
        assert record.outcome == "aggregated"
        closed_in = math.ceil(record.finished_s)  # the number of the round that merged it
        assert record.staleness == closed_in - record.round > 0


class GoesToItsNumber(DriftTrainer):
    """By this trainer every trained number of device k becomes k + 1, wherever it began."""

    def _result(self, job: TrainingJob) -> TrainingResult:
        old, goal = job.broadcast.adapter, np.float32(job.plan.device_id + 1)
        factors = {
            key: Factors(np.full_like(a, goal), np.full_like(b, goal))
            for key, (a, b) in old.factors.items()
        }
        return TrainingResult(replace(old, factors=factors), 0.0, 0.0)


def test_fedasync_follows_its_equation_through_a_whole_run() -> None:
    """B starts at 0, and each update that arrives moves it to (1 - a) B + a (k + 1)."""
    fleet = [make_device(0), make_device(1, rate_bytes_per_s=2.2e4)]
    pacing = FedAsync(concurrency=2, mixing_rate=0.5, exponent=1.0)
    log = Memory()
    federation = make_federation(fleet, pacing=pacing, trainer=GoesToItsNumber(), rounds=20)
    server = simulate(federation, log)
    staleness = [(r.device_id, r.staleness) for r in log.clients if r.outcome == "aggregated"]
    assert max(stale for _, stale in staleness) >= 3
    expected = 0.0
    for device_id, stale in staleness:
        share = 0.5 / (1 + stale)
        expected = (1 - share) * expected + share * (device_id + 1)
    for _, b in server.state.adapter.factors.values():
        np.testing.assert_allclose(b, expected, rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_buffer_is_full_before_it_is_merged(num_devices: int, concurrency: int) -> None:
    """Also where one device at a time is at work, and nobody else is under way."""
    fleet = [make_device(k) for k in range(num_devices)]
    log = run(make_federation(fleet, pacing=FedBuff(concurrency, size=3), rounds=4))
    assert [record.num_aggregated for record in log.rounds[1:]] == [3] * 4


def test_a_buffer_waits_for_a_device_that_comes_back_and_not_for_one_that_never_does() -> None:
    """The only device leaves after its first update, for a while or for good."""
    (first,) = run(make_federation([make_device(0)], rounds=1)).clients
    gone_s = 1.5 * first.finished_s
    for back_s, merged, closed_s in ((gone_s + 50.0, 3, gone_s + 50.0), (math.inf, 1, gone_s)):
        spans = [(0.0, gone_s), *([(back_s, 1e6)] if math.isfinite(back_s) else [])]
        device = make_device(0, availability=AvailabilityTrace.of(spans, math.inf))
        log = run(make_federation([device], pacing=FedBuff(1, size=3), rounds=1))
        (closed,) = log.rounds[1:]
        assert closed.num_aggregated == merged
        assert closed.closed_s >= closed_s


@pytest.mark.parametrize(
    ("pacing", "shares"),
    [
        (Synchronous(1), [1.0, 1.0, 1.0]),
        (FedBuff(2, 1, server_rate=0.7, staleness_exponent=0.5), [0.7, 0.7 / 2**0.5, 0.7 / 3**0.5]),
        (FedAsync(2, 0.8, "constant"), [0.8, 0.8, 0.8]),
        (FedAsync(2, 0.8, "polynomial", exponent=1.0), [0.8, 0.4, 0.8 / 3]),
        (FedAsync(2, 0.8, "hinge", hinge_slope=10, hinge_after=1), [0.8, 0.8, 0.8 / 11]),
        (SemiSynchronous(2, 1.0, staleness_exponent=0.0), [1.0, 1.0, 1.0]),
    ],
)
def test_shares_fade_with_staleness_and_never_from_call_to_call(
    pacing: Pacing, shares: list[float]
) -> None:
    for _ in range(2):  # a share must not depend on earlier calls, as in some published code
        assert [pacing.mixing(staleness) for staleness in range(3)] == pytest.approx(shares)


@dataclass
class ByRound(Memory):
    """This log also keeps which plans ended in each round."""

    ended: list[list[ClientRecord]] = field(default_factory=list)

    def round(self, record: RoundRecord) -> None:
        before = sum(map(len, self.ended))
        self.ended.append(self.clients[before:])
        super().round(record)


@pytest.mark.parametrize("pacing", EXAMPLES.values(), ids=EXAMPLES)
def test_a_device_waits_from_its_end_to_its_next_plan_or_to_the_close_of_the_round(
    pacing: Pacing,
) -> None:
    """The waiting time W_r of docs/metrics.md is worked out anew from when plans began and
    ended."""
    fleet = [make_device(k, flops_per_s=1e9 / (1 + 3 * k)) for k in range(5)]
    log = ByRound()
    simulate(make_federation(fleet, pacing=pacing, rounds=10), log)
    starts = {k: sorted(r.started_s for r in log.clients if r.device_id == k) for k in range(5)}
    for closed, ended in zip(log.rounds, log.ended, strict=True):
        merged = [record for record in ended if record.outcome == "aggregated"]
        waits = []
        for record in merged:
            later = [at_s for at_s in starts[record.device_id] if at_s >= record.finished_s]
            waits.append(min([closed.closed_s, *later]) - record.finished_s)
            assert record.waiting_s == pytest.approx(waits[-1], abs=1e-12)
        assert closed.waiting_s == pytest.approx(np.mean(waits) if waits else 0.0, abs=1e-12)


def test_in_a_buffer_the_update_waits_and_the_device_does_not() -> None:
    """Two of two devices are always at work, and three updates make a round. Device 0 needs a
    second for a plan and device 1 needs 1.5 s: updates come at 1, 1.5 and 2 s. Device 0 is asked
    again at 1 s, device 1 at 1.5 s, and the last update comes as the round closes: nobody waits. In
    one synchronous round, device 0 waits half a second, and W is a quarter."""
    (free,) = run(make_federation([make_device(0)], rounds=1)).clients
    transfers = free.download_bytes + free.upload_bytes
    rates = [transfers / (seconds - free.train_s) for seconds in (1.0, 1.5)]
    fleet = [make_device(k, rate_bytes_per_s=rate) for k, rate in enumerate(rates)]
    buffered = run(make_federation(fleet, pacing=FedBuff(2, size=3), rounds=1))
    assert [r.finished_s for r in buffered.clients[:3]] == pytest.approx([1.0, 1.5, 2.0])
    assert [r.waiting_s for r in buffered.clients[:3]] == pytest.approx([0.0, 0.0, 0.0])
    assert buffered.rounds[1].waiting_s == pytest.approx(0.0)
    together = run(make_federation(fleet, pacing=Synchronous(2), rounds=1))
    assert [r.waiting_s for r in together.clients] == pytest.approx([0.5, 0.0])
    assert together.rounds[1].waiting_s == pytest.approx(0.25)


def test_a_device_that_is_not_asked_again_waits_until_its_update_is_merged() -> None:
    """In periods of 1.25 s the device is done after a second, and waits for the rest: a
    semi-synchronous cohort is filled only as updates are merged."""
    (free,) = run(make_federation([make_device(0)], rounds=1)).clients
    rate = (free.download_bytes + free.upload_bytes) / (1.0 - free.train_s)
    pacing = SemiSynchronous(cohort=1, period_s=1.25)
    log = run(make_federation([make_device(0, rate_bytes_per_s=rate)], pacing=pacing, rounds=3))
    assert [record.waiting_s for record in log.rounds[1:]] == pytest.approx([0.25] * 3)


def test_a_device_asked_again_before_the_round_ends_has_stopped_waiting() -> None:
    fleet = [make_device(k, flops_per_s=1e9 / (1 + 3 * k)) for k in range(2)]
    federation = make_federation(
        fleet, strategy=FedLoRA(rank=2), pacing=FedBuff(concurrency=2, size=3), rounds=4
    )
    log = run(federation)
    by_device: dict[int, float] = {0: 0.0, 1: 0.0}
    for record in sorted(log.clients, key=lambda record: record.started_s):
        # A device works on one plan at a time.
        assert record.started_s >= by_device[record.device_id] - 1e-9
        by_device[record.device_id] = record.finished_s + record.waiting_s


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: OverSelection(0), "cohort must be at least 1, got 0"),
        (lambda: OverSelection(2, 0.5), r"factor must be in \[1, 100\], got 0.5"),
        (lambda: SemiSynchronous(2, 0.0), "period_s must be above 0 and finite, got 0"),
        (lambda: SemiSynchronous(2, math.inf), "period_s must be above 0 and finite, got inf"),
        (lambda: FedBuff(0, 1), "concurrency must be at least 1, got 0"),
        (lambda: FedBuff(1, 0), "size must be at least 1, got 0"),
        (lambda: FedBuff(1, 1, server_rate=0), r"server_rate must be in \(0, 10\], got 0"),
        (lambda: FedBuff(1, 1, staleness_exponent=-1), "exponent must be in"),
        (lambda: FedAsync(0), "concurrency must be at least 1, got 0"),
        (lambda: FedAsync(1, 1.5), r"mixing_rate must be in \(0, 1\], got 1.5"),
        (lambda: FedAsync(1, decay="linear"), "decay must be one of constant, polynomial, hinge"),
        (lambda: FedAsync(1, hinge_slope=0), "hinge_slope must be above 0"),
    ],
)
def test_a_pacing_that_cannot_work_says_what_must_hold(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
