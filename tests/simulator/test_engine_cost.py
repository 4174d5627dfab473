"""What the engine does for each plan, counted in calls: seconds differ from machine to machine."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from algorithms.pacing import Synchronous
from devices.datasets.partition import DividedShards
from devices.fleet.fleet import Assigned, Fleet
from devices.vocabulary.trainer import NullTrainer
from simulator.engine import server
from simulator.engine.server import simulate
from tests.simulator.small import OneByOne, make_device, make_federation
from traces.availability import AvailabilityTrace
from traces.steps import StepTrace

AHEAD_CALLS, TIMELINE_CALLS, PROCESS_CALLS = 40, 550, 635
"""Calls for each plan beyond those of a round, worked out ahead for a cohort, for one plan, and by
a process: a quarter above the 32, 439 and 508 that were counted."""


class Nowhere:
    """Takes in everything, and looks at nothing."""

    def event(self, event: Any) -> None: ...

    def client(self, record: Any) -> None: ...

    def round(self, record: Any) -> None: ...

    def cohort(self, events: Any) -> None: ...

    def client_table(self, table: Any) -> None: ...


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


def num_calls(fleet: Fleet, trainer: Any) -> int:
    """Return how many Python and C functions are called to simulate two rounds of a fleet."""
    pacing = Synchronous(len(fleet), deadline_s=1e6)
    federation = make_federation(fleet, trainer=trainer, rounds=2, pacing=pacing)
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
    num_calls(fleet_of(10, **met), trainer)  # what is imported or worked out only once
    calls = [num_calls(fleet_of(count, **met), trainer) for count in (100, 200, 400)]
    each = [(calls[1] - calls[0]) / 200, (calls[2] - calls[1]) / 400]  # two rounds
    assert each[1] <= most
    assert each[1] <= 1.02 * each[0] + 0.5
