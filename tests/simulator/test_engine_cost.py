"""What the engine does for each plan, counted in calls: seconds differ from machine to machine."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest

from algorithms.pacing import FedAsync, FedBuff, Synchronous
from algorithms.strategies.fedquad import FedQuad
from algorithms.strategies.haflq import HAFLQ
from devices.datasets.partition import DividedShards
from devices.fleet.fleet import Assigned, Fleet
from devices.vocabulary.trainer import NullTrainer
from simulator.engine import server
from simulator.engine.network import SharedLinks
from simulator.engine.server import simulate
from tests.simulator.small import OneByOne, make_device, make_federation
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace

AHEAD_CALLS, TIMELINE_CALLS, PROCESS_CALLS = 36, 407, 525
"""Calls for each plan beyond those of a round, worked out ahead for a cohort, for one plan, and by
a process: at most a quarter above the 28.5, 326.0 and 430.5 that were counted."""
FEDQUAD_CALLS, HAFLQ_CALLS, FLOW_CALLS = 104, 328, 557
"""Likewise for a plan of the device's own by FedQuad and by HAFLQ, and for one whose transfers
share a link: at most a quarter above 83.5, 262.5 and 458.5."""
FEDBUFF_CALLS, FEDASYNC_CALLS = 465, 704
"""Likewise for a plan that FedBuff asks for alone, and for one that FedAsync merges alone: a
quarter above 372.1 and 563.2."""


class Nowhere:
    """This log accepts everything and keeps nothing."""

    def event(self, event: Any) -> None: ...

    def client(self, record: Any) -> None: ...

    def round(self, record: Any) -> None: ...

    def block(self, block: Any) -> None: ...


def fleet_of(count: int, **met: Any) -> Fleet:
    """Return equal devices as arrays; they meet nothing but what is given."""
    one = make_device(0, **met)
    nobody, zeros = np.zeros(count, dtype=np.int64), np.zeros(count)

    def assigned(trace: Any) -> Assigned[Any]:
        return Assigned([trace], nobody, zeros)

    return Fleet(
        profiles=[one.profile],
        profile_index=nobody,
        memory_budget_bytes=np.full(count, one.memory_budget_bytes),
        shards=DividedShards([one.examples] * count),
        link=assigned(one.link),
        latency=assigned(one.latency),
        speed=assigned(one.speed),
        speed_factor=np.ones(count),
        free_memory=assigned(one.free_memory),
        availability=assigned(one.availability),
        battery=assigned(one.battery),
        battery_share=np.ones(count),
    )


def num_calls(fleet: Fleet, trainer: Any, **changed: Any) -> int:
    """Return how many functions are called to simulate two rounds of a fleet, unless changed."""
    changed = {"pacing": Synchronous(len(fleet), deadline_s=1e6), "rounds": 2, **changed}
    federation = make_federation(fleet, trainer=trainer, **changed)
    calls = 0

    def count_call(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_call)
    try:
        simulate(federation, Nowhere())
    finally:
        sys.setprofile(before)
    return calls


def calls_each(trainer: Any, **changed: Any) -> list[float]:
    """Return the calls for each plan beyond those of a round, for up to 200 and 400 devices.

    ``changed`` gives the options of a federation, each by the number of its devices.
    """
    met = changed.pop("met", {})

    def calls_of(count: int) -> int:
        given = {name: made(count) for name, made in changed.items()}
        return num_calls(fleet_of(count, **met), trainer, **given)

    calls_of(10)  # imports and caches are not counted below
    calls = [calls_of(count) for count in (100, 200, 400)]
    return [(calls[1] - calls[0]) / 200, (calls[2] - calls[1]) / 400]  # two rounds


def shared(rate_bytes_per_s: float) -> SharedLinks:
    """Return a link of the server that all devices share."""
    trace = BandwidthTrace.constant(rate_bytes_per_s)
    return SharedLinks(server=Link("server", trace, trace))


BUSY = StepTrace(np.array([0.0, 0.1, 0.2]), np.array([1.0, 0.3, 0.7]), 0.3)
MET = {
    "latency": StepTrace.constant(0.05),
    "speed": BUSY,
    "availability": AvailabilityTrace.of([(0.0, 500.0)], 1000.0),
}


@pytest.mark.parametrize(
    ("trainer", "met", "most"),
    [
        (NullTrainer(3), {}, AHEAD_CALLS),
        (NullTrainer(3), MET, AHEAD_CALLS),
        (OneByOne(3), {}, TIMELINE_CALLS),
        (OneByOne(3), MET, TIMELINE_CALLS),
        (OneByOne(3), {}, PROCESS_CALLS),
    ],
)
def test_a_plan_costs_so_many_calls_and_no_more_in_a_larger_fleet(
    trainer: Any, met: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if most == PROCESS_CALLS:
        monkeypatch.setattr(server, "stages_of", lambda *_: None)
    each = calls_each(trainer, met=met)
    assert each[1] <= most
    assert each[1] <= 1.02 * each[0] + 0.5


@pytest.mark.parametrize(
    ("strategy", "most"),
    [(FedQuad(rank=4), FEDQUAD_CALLS), (HAFLQ(rank=8, term_budgets=(3,)), HAFLQ_CALLS)],
)
def test_a_plan_of_its_own_for_each_device_costs_so_many_calls(strategy: Any, most: int) -> None:
    each = calls_each(NullTrainer(3), strategy=lambda _: strategy)
    assert each[1] <= most
    assert each[1] <= 1.02 * each[0] + 0.5


def test_an_arrival_costs_so_many_calls_and_no_more_in_a_larger_fleet() -> None:
    def pacing(count: int) -> FedBuff:
        return FedBuff(concurrency=count // 2, size=count)

    each = calls_each(NullTrainer(3), met=MET, pacing=pacing)
    assert each[1] <= FEDBUFF_CALLS
    assert each[1] <= 1.02 * each[0] + 0.5


def test_an_update_that_is_merged_alone_costs_so_many_calls_and_no_more_in_a_larger_fleet() -> None:
    def pacing(count: int) -> FedAsync:
        return FedAsync(concurrency=count // 2)

    each = calls_each(NullTrainer(3), met=MET, pacing=pacing, rounds=lambda count: 2 * count)
    assert each[1] <= FEDASYNC_CALLS
    assert each[1] <= 1.02 * each[0] + 0.5


def test_python_looks_for_unused_circles_as_often_after_a_run_as_before_it() -> None:
    before, seen = gc.get_threshold(), []

    class Looking(Nowhere):
        def block(self, block: Any) -> None:
            seen.append(gc.get_threshold())

    simulate(make_federation(fleet_of(2), trainer=NullTrainer(3)), Looking())
    assert set(seen) == {(server.SELDOM, *before[1:])}
    assert gc.get_threshold() == before


def test_flows_that_share_a_link_cost_so_many_calls_and_no_more_with_more_flows() -> None:
    each = calls_each(NullTrainer(3), shared_links=lambda _: shared(1e6))
    assert each[1] <= FLOW_CALLS
    assert each[1] <= 1.02 * each[0] + 0.5
