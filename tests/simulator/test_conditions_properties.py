"""Under random conditions and faults, one client agrees with an independent walk, and runs end."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from algorithms.pacing import FedAsync, FedBuff, OverSelection, SemiSynchronous, Synchronous
from devices.fleet.fleet import Device
from simulator.engine.clock import StalledError
from simulator.log.records import ClientRecord
from tests.simulator.met import faults, run
from tests.simulator.small import make_battery, make_device
from tests.torture import scaled
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace

CELL_S = 1 / 16
"""Everything in these worlds changes at multiples of this, which floats hold exactly."""
NUM_CELLS = 16
FLOPS_PER_S, RATE = 4e6, 1.1e4  # so slow that each phase takes some cells


def cells(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=NUM_CELLS, max_size=NUM_CELLS)


def ups(share_up: float) -> st.SearchStrategy[list[bool]]:
    return cells(st.integers(0, 9).map(lambda n: n < 10 * share_up))


@dataclass
class Met:
    """This holds what one device meets in each cell of time; what is not once repeats."""

    rate: list  # in multiples of RATE
    speed: list
    latency: list
    online: list
    free: list  # True where memory suffices
    crash: list  # does not repeat
    link: list  # does not repeat
    server: list  # does not repeat
    when_offline: str
    cut_transfers: str
    deadline_s: float


levels = st.sampled_from([0.0, 0.3, 0.7, 1.3])
worlds = st.builds(
    Met, cells(levels), cells(levels), cells(st.sampled_from([0.0, 0.01, 0.09])), ups(0.8),
    ups(0.9), ups(0.95), ups(0.9), ups(0.95), st.sampled_from(["abort", "resume", "restart"]),
    st.sampled_from(["resume", "restart", "drop"]), st.sampled_from([math.inf, 2.03, 7.01]),
)  # fmt: skip


def step_trace(values: list[float]) -> StepTrace:
    times = CELL_S * np.arange(NUM_CELLS)
    return StepTrace(times, np.array(values, dtype=float), CELL_S * NUM_CELLS)


def spans(up: list[bool], value: bool) -> list[tuple[float, float]]:
    """Return ``(start, length)`` of each stretch of cells with this value."""
    edges = [k for k in range(NUM_CELLS + 1) if k in (0, NUM_CELLS) or up[k] != up[k - 1]]
    pairs = pairwise(edges)
    return [(CELL_S * a, CELL_S * (b - a)) for a, b in pairs if up[a] == value]


def schedule(up: list[bool], **more: int) -> list[dict[str, float]]:
    return [{"at_s": at_s, "down_s": down_s, **more} for at_s, down_s in spans(up, False)]


def online(up: list[bool]) -> AvailabilityTrace:
    intervals = [(at_s, at_s + length_s) for at_s, length_s in spans(up, True)]
    return AvailabilityTrace.of(intervals, CELL_S * NUM_CELLS)


def simulated(met: Met, share: float) -> ClientRecord:
    """Return the engine's record of one device in this world, whose plan needs ``share`` of its
    memory."""
    rate = step_trace([RATE * one for one in met.rate])
    trace = BandwidthTrace(rate.time_s, rate.values, rate.period_s)
    device = make_device(
        0, flops_per_s=FLOPS_PER_S, speed=step_trace(met.speed), latency=step_trace(met.latency),
        availability=online(met.online),
        free_memory=step_trace([1.0 if free else share / 2 for free in met.free]),
    )  # fmt: skip
    object.__setattr__(device, "link", Link("cells", trace, trace))
    given_faults = faults(
        1, crash={"schedule": schedule(met.crash, device=0)}, cut_transfers=met.cut_transfers,
        link_loss={"schedule": schedule(met.link, device=0)},
        server_restarts=schedule(met.server),
    )  # fmt: skip
    pacing = Synchronous(cohort=1, deadline_s=met.deadline_s)
    log = run([device], rounds=1, faults=given_faults, when_offline=met.when_offline, pacing=pacing)
    return log.clients[0]


class EndError(Exception):
    """This error ends the work and says when and how."""


class Walk:
    """A walk takes the device cell by cell, by nothing but the rules as they are written."""

    def __init__(self, met: Met) -> None:
        self.met, self.at_s, self.carried = met, 0.0, {"download": 0.0, "upload": 0.0}

    def once(self, up: list[bool], cell: int) -> bool:
        return cell >= NUM_CELLS or up[cell]

    def live(self, down_bytes: float, train_s: float, up_bytes: float) -> None:
        self.transfer("download", down_bytes)
        if not self.met.free[self.cell() % NUM_CELLS]:
            raise EndError(self.at_s, "oom")
        self.advance(train_s, self.met.speed, needs_memory=True)
        self.transfer("upload", up_bytes)
        raise EndError(self.at_s, "aggregated")

    def transfer(self, name: str, size: float) -> None:
        latency_s = self.met.latency[self.cell() % NUM_CELLS]
        if latency_s:
            self.advance(latency_s, [1.0] * NUM_CELLS)
        self.advance(size, [RATE * one for one in self.met.rate], on_link=True, name=name)

    def cell(self) -> int:
        return math.floor(self.at_s / CELL_S)

    def advance(
        self,
        amount: float,
        pace: list[float],
        *,
        on_link: bool = False,
        needs_memory: bool = False,
        name: str | None = None,
    ) -> None:
        met, left, begun, moving = self.met, amount, False, False
        while True:
            cell = self.cell()
            now, end_s = cell % NUM_CELLS, (cell + 1) * CELL_S
            is_online, has_link = met.online[now], True
            if on_link:
                has_link = self.once(met.link, cell) and self.once(met.server, cell)
            there = is_online and self.once(met.crash, cell)
            if needs_memory and not met.free[now] and (moving or there):
                raise EndError(self.at_s, "oom")
            if not self.once(met.crash, cell):
                raise EndError(self.at_s, "crashed")
            if not is_online and met.when_offline == "abort":
                raise EndError(self.at_s, "offline")
            if begun and not has_link and met.cut_transfers == "drop":
                raise EndError(self.at_s, "lost")
            policies = [] if is_online else [met.when_offline]
            policies += [] if has_link else [met.cut_transfers]
            if policies:
                left = amount if begun and "restart" in policies else left
                self.at_s, moving = end_s, False
                continue
            begun = True
            possible = pace[now] * (end_s - self.at_s)
            if name:
                self.carried[name] += min(possible, left)
            if possible >= left:
                self.at_s += left / pace[now]
                return
            left -= possible
            self.at_s, moving = end_s, True
            # An outage of the server delays its deadline by less than this.
            if self.at_s > self.met.deadline_s + 10:
                raise EndError(self.at_s, "late")


def walked(met: Met, record: ClientRecord, train_s: float) -> tuple[float, str, Walk]:
    walk = Walk(met)
    try:
        walk.live(PLAN.download_bytes, train_s, PLAN.upload_bytes)
    except EndError as end:
        at_s, outcome = end.args
    cut_s = met.deadline_s
    if math.isfinite(cut_s):
        while not walk.once(met.server, math.floor(cut_s / CELL_S)):
            cut_s = (math.floor(cut_s / CELL_S) + 1) * CELL_S
    return (cut_s, "late", walk) if at_s > cut_s else (at_s, outcome, walk)


(PLAN,) = run([make_device(0, flops_per_s=FLOPS_PER_S, rate_bytes_per_s=RATE)], rounds=1).clients
SHARE = PLAN.peak_memory_bytes / 10**9


@pytest.mark.torture
@settings(max_examples=scaled(50, 600, least=150), deadline=None)
@given(worlds)
def test_client_ends_when_and_how_a_walk_through_its_world_says(met: Met) -> None:
    assume(met.online[0] and met.crash[0] and met.server[0] and met.link[0])
    assume(any(rate and up for rate, up in zip(met.rate, met.online, strict=True)))
    assume(any(pace and up for pace, up in zip(met.speed, met.online, strict=True)))
    # A phase that restarts after each absence may never end, so it needs a deadline.
    assume(met.when_offline != "restart" or math.isfinite(met.deadline_s))
    record = simulated(met, SHARE)
    at_s, outcome, walk = walked(met, record, PLAN.train_s)
    assert (record.outcome, record.finished_s) == (outcome, pytest.approx(at_s, abs=1e-7))
    spent_s = record.download_s + record.train_s + record.upload_s + record.offline_s
    assert record.finished_s == pytest.approx(record.started_s + spent_s, abs=1e-9)
    if outcome != "late":  # the walk does not stop at the deadline
        assert record.download_bytes == pytest.approx(walk.carried["download"], abs=1)
        assert record.upload_bytes == pytest.approx(walk.carried["upload"], abs=1)
    if outcome == "aggregated":
        useful = PLAN.download_bytes + PLAN.upload_bytes
        assert record.lost_bytes == record.download_bytes + record.upload_bytes - useful >= 0


pacings = st.sampled_from(
    [
        Synchronous(cohort=3), Synchronous(cohort=2, deadline_s=1.5), OverSelection(cohort=2),
        SemiSynchronous(cohort=2, period_s=1.0), FedBuff(concurrency=2, size=2),
        FedAsync(concurrency=3),
    ]
)  # fmt: skip


@st.composite
def devices(draw: st.DrawFn, device_id: int) -> Device:
    battery = make_battery(
        draw(st.sampled_from([3.0, 1e6])),
        charge_w=4.0,
        floor_share=0.0,
        charging=online(draw(ups(0.5))),
    )
    return make_device(
        device_id,
        flops_per_s=FLOPS_PER_S,
        rate_bytes_per_s=RATE,
        availability=online(draw(ups(0.8))),
        free_memory=step_trace([1.0 if up else SHARE / 2 for up in draw(ups(0.9))]),
        latency=StepTrace.constant(0.01),
        **({"battery": battery} if draw(st.booleans()) else {}),
    )


@pytest.mark.torture
@settings(max_examples=scaled(25, 300, least=60), deadline=None)
@given(st.data())
def test_every_plan_ends_once_and_what_was_delivered_is_merged(data: st.DataObject) -> None:
    fleet = [data.draw(devices(device_id)) for device_id in range(3)]
    chances = {
        "crash": {"per_hour": data.draw(st.sampled_from([0, 900])), "down_s": 0.5},
        "link_loss": {"per_hour": data.draw(st.sampled_from([0, 3600])), "down_s": 0.2},
        "leave": {"per_hour": data.draw(st.sampled_from([0, 100]))},
        "join": {"share": 0.3, "within_s": 2.0},
        "server_restarts": schedule(data.draw(ups(0.9))),
        "cut_transfers": data.draw(st.sampled_from(["resume", "restart", "drop"])),
    }
    log = None
    try:
        log = run(
            fleet, rounds=5, pacing=data.draw(pacings),
            faults=faults(3, data.draw(st.integers(0, 99)), **chances),
            when_offline=data.draw(st.sampled_from(["abort", "resume", "restart"])),
            when_out_of_memory=data.draw(st.sampled_from(["skip", "shrink", "drop"])),
        )  # fmt: skip
    except StalledError:
        return  # no device is left, which the error says
    dispatched = Counter(
        (e.at_s, device)
        for e in log.events
        if e.name in ("round_opened", "refilled")
        for device in e.details["cohort"]
    )
    sat_out = Counter((e.at_s, e.device) for e in log.named("sat_out"))
    ended = Counter((record.started_s, record.device_id) for record in log.clients)
    assert ended == dispatched - sat_out
    merged = Counter((e.round, d) for e in log.named("aggregated") for d in e.details["devices"])
    records = Counter()
    for record in log.clients:
        spent_s = record.download_s + record.train_s + record.upload_s + record.offline_s
        assert record.finished_s == pytest.approx(record.started_s + spent_s, abs=1e-9)
        assert 0 <= record.lost_bytes <= record.download_bytes + record.upload_bytes
        assert record.energy_j >= 0
        records[record.outcome] += 1
    received = Counter(e.device for e in log.named("update_received"))
    by_device = Counter(r.device_id for r in log.clients if r.outcome == "aggregated")
    assert records["aggregated"] == sum(merged.values())
    last = log.rounds[-1].round
    # These were delivered as the run ended, when no round could merge them any more.
    over = Counter(r.device_id for r in log.clients if r.outcome == "late" and r.round <= last)
    assert not by_device - received
    assert not received - by_device - over
    for number in range(1, last + 1):
        assert log.rounds[number].num_aggregated == sum(
            count for (of, _), count in merged.items() if of == number
        )
