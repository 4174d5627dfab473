"""Conditions that change at one instant, or on a device that waits, are neither missed nor
doubled."""

import math
from typing import Any

import numpy as np
import pytest

from algorithms.pacing import FedBuff, Synchronous
from algorithms.strategies.fedlora import FedLoRA
from devices.fleet.battery import BatteryReplay
from simulator.engine.clock import StalledError
from simulator.engine.network import SharedLinks
from tests.simulator.met import away, faults, free_run, run
from tests.simulator.small import make_battery, make_device
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace


@pytest.mark.parametrize("policy", ["resume", "restart"])
def test_crash_of_a_paused_device_loses_the_work_it_kept(policy: str) -> None:
    free = free_run()
    gone_s = free.download_s / 2
    crash = {"schedule": [{"device": 0, "at_s": gone_s + 1.0, "down_s": 0.5}]}
    log = run(
        [make_device(0, availability=away(gone_s, gone_s + 3.0))],
        rounds=2, faults=faults(1, crash=crash), when_offline=policy,
    )  # fmt: skip
    first, second = log.clients
    assert (first.outcome, first.finished_s) == ("crashed", gone_s + 1.0)
    assert first.offline_s == pytest.approx(1.0)
    assert first.lost_bytes == first.download_bytes > 0
    assert second.started_s == gone_s + 3.0
    assert not log.named("came_back")


def test_battery_that_runs_flat_while_paused_loses_the_work() -> None:
    free = free_run()
    gone_s = free.download_s / 2
    never = AvailabilityTrace.of([], math.inf)
    joules = 2.0 * gone_s + 1.0 * 5.0  # radio until it goes offline, then five idle seconds
    battery = make_battery(joules, charge_w=0.0, floor_share=0.0, charging=never)
    device = make_device(0, battery=battery, availability=away(gone_s, gone_s + 60.0))
    fleet = [device, make_device(1)]
    log = run(fleet, rounds=1, when_offline="resume")
    record = next(one for one in log.clients if one.device_id == 0)
    assert (record.outcome, record.finished_s) == ("offline", pytest.approx(gone_s + 5.0))


def test_crash_comes_before_going_offline_at_the_same_instant() -> None:
    free = free_run()
    gone_s = free.download_s / 2
    crash = {"schedule": [{"device": 0, "at_s": gone_s, "down_s": 0.5}]}
    fleet = [make_device(0, availability=away(gone_s, gone_s + 3.0))]
    (first, *_) = run(fleet, rounds=2, faults=faults(1, crash=crash), when_offline="resume").clients
    assert first.outcome == "crashed"


@pytest.mark.parametrize("when_offline", ["resume", "restart"])
@pytest.mark.parametrize("cut_transfers", ["resume", "restart", "drop"])
def test_link_lost_as_the_device_goes_offline_meets_both_policies(
    when_offline: str, cut_transfers: str
) -> None:
    free = free_run()
    gone_s = free.download_s / 2
    loss = {"schedule": [{"device": 0, "at_s": gone_s, "down_s": 1.0}]}
    log = run(
        [make_device(0, availability=away(gone_s, gone_s + 3.0))],
        rounds=1,
        faults=faults(1, link_loss=loss, cut_transfers=cut_transfers),
        when_offline=when_offline,
    )
    (record,) = log.clients
    if cut_transfers == "drop":
        assert (record.outcome, record.lost_bytes) == ("lost", record.download_bytes)
        return
    again_s = gone_s if "restart" in (when_offline, cut_transfers) else 0.0
    assert record.outcome == "aggregated"
    assert record.finished_s == pytest.approx(free.finished_s + 3.0 + again_s)


def test_phase_that_ends_as_the_device_goes_is_complete() -> None:
    free = free_run()
    gone_s = free.download_s  # exactly the end of the download
    log = run(
        [make_device(0, availability=away(gone_s, gone_s + 3.0))], rounds=1, when_offline="restart"
    )
    (record,) = log.clients
    assert (record.download_bytes, record.lost_bytes) == (free.download_bytes, 0)
    assert record.download_s == free.download_s
    assert record.finished_s == pytest.approx(free.finished_s + 3.0)
    (record,) = run([make_device(0, availability=away(free.finished_s, 5.0))], rounds=1).clients
    assert record.outcome == "aggregated"


@pytest.mark.parametrize("start_s", [0.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_going_offline_is_never_taken_for_a_lost_link(start_s: float, share: float) -> None:
    # These sums are rounded: a clock that is an ulp short of the cut still finds the device online.
    free = free_run()
    gone_s = start_s + 0.1 + share * free.download_s
    period_s = 1e10
    trace = AvailabilityTrace.of([(start_s + 0.1, gone_s), (gone_s + 3.3, period_s)], period_s)
    log = run(
        [make_device(0, availability=trace)],
        rounds=1, when_offline="resume", faults=faults(1, cut_transfers="drop"),
    )  # fmt: skip
    (record,) = log.clients
    assert record.outcome == "aggregated"
    assert not log.named("link_lost")
    assert record.lost_bytes == 0


def test_resumed_transfer_carries_its_bytes_once_however_often_it_is_cut() -> None:
    (free,) = run([make_device(0)], rounds=1).clients
    step_s = free.download_s / 7.3
    loss = [{"device": 0, "at_s": 0.7 * step_s + 2 * k * step_s, "down_s": step_s / 3}
            for k in range(6)]  # fmt: skip
    log = run([make_device(0)], rounds=1, faults=faults(1, link_loss={"schedule": loss}))
    (record,) = log.clients
    assert len(log.named("link_lost")) >= 3
    assert record.download_bytes == free.download_bytes
    assert record.lost_bytes == 0


def test_deadline_counts_from_when_somebody_could_be_asked() -> None:
    trace = AvailabilityTrace.of([(500.0, 1e6)], 1e6)
    pacing = Synchronous(cohort=1, deadline_s=60.0)
    log = run([make_device(0, availability=trace)], rounds=1, pacing=pacing)
    (record,) = log.clients
    assert record.outcome == "aggregated"
    assert log.rounds[-1].opened_s == record.started_s == 500.0


def test_device_dropped_for_memory_stays_away_with_its_battery() -> None:
    battery = make_battery(
        1e6, charge_w=0.0, floor_share=0.0, charging=AvailabilityTrace.of([], math.inf)
    )
    short = make_device(0, battery=battery, free_memory=StepTrace.constant(1e-6))
    log = run([short, make_device(1)], rounds=3, when_out_of_memory="drop")
    assert [r.device_id for r in log.clients if r.outcome == "oom"] == [0]


def test_conditions_that_never_hold_together_are_found_out() -> None:
    first_half = AvailabilityTrace.of([(0.0, 30.0)], 60.0)
    second = StepTrace(np.array([0.0, 30.0]), np.array([0.0, 1.0]), 60.0)
    device = make_device(0, availability=first_half, battery=BatteryReplay(second, 0.2))
    with pytest.raises(StalledError, match="no device is present at 0 s, and none will come"):
        run([device], rounds=1)


def test_battery_drains_at_the_radio_while_a_transfer_waits_for_its_link() -> None:
    free = free_run()
    at_s = free.download_s + free.train_s  # the link is lost as training ends
    loss = {"schedule": [{"device": 0, "at_s": at_s, "down_s": 10.0}]}
    spent_j = 2.0 * free.download_s + 10.0 * free.train_s + 2.0 * 10.0 + 2.0 * free.upload_s
    never = AvailabilityTrace.of([], math.inf)
    for joules, outcome in ((1.001 * spent_j, "aggregated"), (0.999 * spent_j, "offline")):
        battery = make_battery(joules, charge_w=0.0, floor_share=0.0, charging=never)
        fleet = [make_device(0, battery=battery)]
        (record,) = run(fleet, rounds=1, faults=faults(1, link_loss=loss)).clients
        assert record.outcome == outcome
    assert record.upload_s == pytest.approx(free.upload_s + 10.0, rel=0.01)


def test_idle_device_drains_its_battery_whether_or_not_it_is_asked() -> None:
    never = AvailabilityTrace.of([], math.inf)
    # The battery lasts five seconds at 1 W.
    battery = make_battery(5.0, charge_w=0.0, floor_share=0.0, charging=never)
    late = AvailabilityTrace.of([(4.0, 1e6)], 1e6)
    (first,) = run([make_device(0, battery=battery, availability=late)], rounds=1).clients
    assert first.battery_share < 0.2
    later = AvailabilityTrace.of([(6.0, 1e6)], 1e6)
    with pytest.raises(StalledError):
        run([make_device(0, battery=battery, availability=later)], rounds=1)


def test_server_down_over_the_deadline_closes_the_round_as_it_is_up_again() -> None:
    fast, slow = make_device(0), make_device(1, rate_bytes_per_s=2e4)
    first, second = run([fast, slow], rounds=1).clients
    down_s = (first.finished_s + second.finished_s) / 2
    given = faults(2, server_restarts=[{"at_s": down_s, "down_s": 10.0}])
    pacing = Synchronous(cohort=2, deadline_s=second.finished_s + 1.0)
    log = run([fast, slow], rounds=1, faults=given, pacing=pacing)
    assert {r.device_id: r.outcome for r in log.clients} == {0: "aggregated", 1: "late"}
    assert log.rounds[-1].closed_s == pytest.approx(down_s + 10.0)


def test_plan_that_is_shrunk_under_async_pacing_starts_from_the_newest_model() -> None:
    full = run([make_device(0)], rounds=1, strategy=FedLoRA(rank=2, depth="common")).clients[0]
    share = 0.999 * full.peak_memory_bytes / 10**9
    slow = make_device(0, rate_bytes_per_s=2e4, free_memory=StepTrace.constant(share))
    log = run(
        [slow, make_device(1)], rounds=8, strategy=FedLoRA(rank=2, depth="common"),
        pacing=FedBuff(concurrency=2, size=1), when_out_of_memory="shrink",
    )  # fmt: skip
    (shrunk,) = log.named("shrunk")[:1]
    record = next(r for r in log.clients if r.device_id == 0 and r.outcome == "aggregated")
    newer = [e for e in log.named("aggregated") if shrunk.at_s < e.at_s <= record.finished_s]
    # The last of these aggregations merged the record itself.
    assert record.staleness == len(newer) - 1


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("start_s", [1e9, 1e12, 2.0**52])
def test_work_too_short_for_the_clock_to_show_takes_one_step_of_it(
    start_s: float, is_shared: bool
) -> None:
    """A transfer takes less than a nanosecond, on a clock that moves in steps of 1e-7 s or more."""
    quick = {"flops_per_s": 1e18, "rate_bytes_per_s": 1e15}
    calendar = AvailabilityTrace.of([(start_s, 4 * start_s)], math.inf)
    trace = BandwidthTrace.constant(1e16)
    shared = SharedLinks(server=Link("server", trace, trace)) if is_shared else SharedLinks()
    fleet = [make_device(k, availability=calendar, **quick) for k in range(2)]
    log = run(fleet, rounds=3, shared_links=shared)
    assert len(log.clients) == 6
    step_s = math.ulp(start_s)
    for record in log.clients:
        assert record.outcome == "aggregated"
        assert (record.download_s, record.upload_s) == (step_s, step_s)
        assert record.train_s >= step_s


def test_joining_leaving_and_restarts_each_leave_a_record() -> None:
    given = faults(
        3,
        join={"schedule": [{"device": 0, "at_s": 0.3}]},
        leave={"schedule": [{"device": 1, "at_s": 0.4}]},
        server_restarts=[{"at_s": 0.1, "down_s": 0.1}],
    )
    log = run([make_device(k) for k in range(3)], rounds=6, faults=given)
    found = {(e.name, e.device): e.at_s for e in log.events}
    assert found["joined", 0] == 0.3
    assert found["left", 1] == 0.4
    assert found["server_restarted", None] == pytest.approx(0.2)


MIXED = [
    # when_offline, cut_transfers, device offline, link lost, seconds of the whole transfer of 4 s
    ("resume", "resume", (2, 3), (1, 5), 8.0),
    ("restart", "resume", (2, 3), (1, 5), 9.0),
    ("resume", "restart", (2, 3), (1, 5), 9.0),
    ("resume", "resume", (1, 5), (2, 3), 8.0),
    ("restart", "resume", (1, 5), (2, 3), 9.0),
    ("resume", "restart", (1, 5), (2, 3), 9.0),
    ("restart", "resume", (1, 2), (2, 3), 7.0),
    ("resume", "restart", (1, 2), (2, 3), 7.0),
    ("restart", "resume", (2, 3), (1, 2), 7.0),
    ("resume", "restart", (1, 3), (1, 2), 7.0),
    ("restart", "resume", (1, 2), (1, 3), 7.0),
]


@pytest.mark.parametrize(("when_offline", "cut_transfers", "away", "lost", "ends_s"), MIXED)
def test_each_outage_under_way_applies_its_own_policy(
    when_offline: Any,
    cut_transfers: str,
    away: tuple[int, int],
    lost: tuple[int, int],
    ends_s: float,
) -> None:
    """The policies apply as docs/conditions.md says, also where one outage begins within the
    other."""
    availability = AvailabilityTrace.of([(0.0, away[0]), (away[1], 100.0)], 100.0)
    down_bytes = run([make_device(0)], rounds=1).clients[0].download_bytes
    device = make_device(0, rate_bytes_per_s=down_bytes / 4, availability=availability)
    schedule = [{"device": 0, "at_s": lost[0], "down_s": lost[1] - lost[0]}]
    given = faults(1, cut_transfers=cut_transfers, link_loss={"schedule": schedule})
    log = run([device], rounds=1, faults=given, when_offline=when_offline)
    started = [event.at_s for event in log.events if event.name == "training_started"]
    assert started == [pytest.approx(ends_s)]


def test_a_link_lost_while_the_device_is_away_drops_its_transfer_at_once() -> None:
    availability = AvailabilityTrace.of([(0.0, 1.0), (5.0, 100.0)], 100.0)
    down_bytes = run([make_device(0)], rounds=1).clients[0].download_bytes
    device = make_device(0, rate_bytes_per_s=down_bytes / 4, availability=availability)
    schedule = [{"device": 0, "at_s": 2, "down_s": 1}]
    given = faults(1, cut_transfers="drop", link_loss={"schedule": schedule})
    (record,) = run([device], rounds=1, faults=given, when_offline="resume").clients
    assert (record.outcome, record.finished_s) == ("lost", pytest.approx(2.0))
