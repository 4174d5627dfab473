"""What devices meet moves the clock by exactly as much as it should."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from algorithms.pacing import FedBuff, Synchronous
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.fedquad import FedQuad
from devices.fleet.battery import BatteryReplay
from devices.fleet.fleet import Device
from simulator.config.faults import FaultsConfig
from simulator.config.problems import Problems
from simulator.config.schema import read_section
from simulator.engine.clock import StalledError
from simulator.engine.faults import draw_faults
from tests.simulator.met import away, faults, free_run, run, steps
from tests.simulator.small import make_battery, make_device
from traces.availability import AvailabilityTrace
from traces.steps import StepTrace


def test_latency_is_added_to_each_transfer() -> None:
    free = free_run()
    (late,) = run([make_device(0, latency=StepTrace.constant(0.25))], rounds=1).clients
    assert late.download_s == pytest.approx(free.download_s + 0.25)
    assert late.upload_s == pytest.approx(free.upload_s + 0.25)
    assert late.train_s == pytest.approx(free.train_s)
    assert (late.download_bytes, late.upload_bytes) == (free.download_bytes, free.upload_bytes)


def test_contention_slows_training_by_the_integral_of_its_share() -> None:
    free = free_run()
    # Half of the work is done at half the speed, the other half at a fifth.
    half_way_s = free.download_s + free.train_s
    speed = steps((half_way_s, 0.5), (1.0, 0.2))
    (slow,) = run([make_device(0, speed=speed)], rounds=1).clients
    assert slow.train_s == pytest.approx(free.train_s * (1 + 0.5 / 0.2))
    assert slow.flops == free.flops
    assert slow.energy_compute_j == pytest.approx(10.0 * slow.train_s)


def test_memory_that_others_hold_fails_the_plan_as_training_begins() -> None:
    free = free_run()
    share = 0.999 * free.peak_memory_bytes / 10**9
    log = run([make_device(0, free_memory=StepTrace.constant(share))], rounds=1)
    (record,) = log.clients
    assert record.outcome == "oom"
    assert record.train_s == 0
    assert record.free_memory_bytes == int(share * 10**9)
    assert log.named("oom")[0].details["budget_bytes"] == record.free_memory_bytes


def test_memory_that_is_taken_during_training_ends_it_there() -> None:
    free = free_run()
    share = free.peak_memory_bytes / 10**9
    taken_s = free.download_s + free.train_s / 4
    fleet = [make_device(0, free_memory=steps((taken_s, 1.0), (1.0, 0.9 * share)))]
    (record,) = run(fleet, rounds=1).clients
    assert record.outcome == "oom"
    assert record.train_s == pytest.approx(free.train_s / 4)
    assert record.flops == pytest.approx(free.flops / 4)
    assert record.upload_bytes == 0


def test_strategy_is_asked_for_a_smaller_plan_where_memory_runs_out() -> None:
    full = run([make_device(0)], rounds=1, strategy=FedLoRA(rank=2, depth="common")).clients[0]
    share = 0.999 * full.peak_memory_bytes / 10**9
    fleet = [make_device(0, free_memory=StepTrace.constant(share))]
    log = run(
        fleet, rounds=1, strategy=FedLoRA(rank=2, depth="common"), when_out_of_memory="shrink"
    )
    (record,) = log.clients
    assert record.outcome == "aggregated"
    assert record.num_shrinks == 1
    assert record.depth < full.depth
    assert record.peak_memory_bytes <= record.free_memory_bytes
    # The broadcast of the smaller plan is downloaded too.
    assert record.download_bytes == 2 * full.download_bytes
    assert log.rounds[-1].num_shrunk == 1
    assert len(log.named("shrunk")) == 1


@pytest.mark.parametrize("depth", ["all", "common"])  # "common" cannot plan for so little memory
def test_strategy_without_a_smaller_plan_gives_the_round_up(depth: str) -> None:
    fleet = [make_device(0, free_memory=StepTrace.constant(1e-6))]
    strategy = FedLoRA(rank=2, depth=depth)
    (record,) = run(fleet, rounds=1, when_out_of_memory="shrink", strategy=strategy).clients
    assert (record.outcome, record.num_shrinks) == ("oom", 0)


def test_device_dropped_for_memory_never_takes_part_again() -> None:
    fleet = [make_device(0, free_memory=StepTrace.constant(1e-6)), make_device(1)]
    log = run(fleet, rounds=3, when_out_of_memory="drop")
    assert [r.device_id for r in log.clients if r.outcome == "oom"] == [0]
    assert [r.device_id for r in log.clients if r.outcome == "aggregated"] == [1, 1, 1]


def test_work_on_a_device_that_goes_offline_is_lost() -> None:
    free = free_run()
    gone_s = free.download_s / 2
    log = run([make_device(0, availability=away(gone_s, 5.0))], rounds=2)
    first, second = log.clients
    assert (first.outcome, first.finished_s) == ("offline", gone_s)
    assert first.download_bytes == first.lost_bytes == pytest.approx(free.download_bytes / 2, abs=1)
    assert second.started_s == 5.0  # no device was present before
    assert second.outcome == "aggregated"
    assert log.rounds[1].num_offline == 1


@pytest.mark.parametrize("phase", ["download", "train", "upload"])
@pytest.mark.parametrize("policy", ["resume", "restart"])
def test_device_that_comes_back_goes_on_or_starts_the_phase_over(phase: str, policy: str) -> None:
    free = free_run()
    begun_s = {"download": 0.0, "train": free.download_s, "upload": free.download_s + free.train_s}
    length_s = getattr(free, f"{phase}_s")
    gone_s = begun_s[phase] + length_s / 4
    fleet = [make_device(0, availability=away(gone_s, gone_s + 3.0))]
    (record,) = run(fleet, rounds=1, when_offline=policy).clients
    assert record.outcome == "aggregated"
    assert record.offline_s == pytest.approx(3.0)
    repeated_s = length_s / 4 if policy == "restart" else 0.0
    assert getattr(record, f"{phase}_s") == pytest.approx(length_s + repeated_s)
    assert record.finished_s == pytest.approx(free.finished_s + 3.0 + repeated_s)
    lost = record.download_bytes + record.upload_bytes - free.download_bytes - free.upload_bytes
    assert record.lost_bytes == lost
    if phase == "train":
        assert record.flops == pytest.approx(free.flops * (1.25 if policy == "restart" else 1.0))
    elif policy == "restart":
        assert lost == pytest.approx(getattr(free, f"{phase}_bytes") / 4, abs=1)
    else:
        assert lost == 0


def test_only_devices_that_are_there_are_asked() -> None:
    fleet = [make_device(k, availability=away(0.001 * k + 1e-9, 1e5)) for k in range(3)]
    log = run([*fleet, make_device(3)], rounds=1, pacing=Synchronous(cohort=4))
    assert log.named("round_opened")[0].details["cohort"] == [0, 1, 2, 3]
    log = run([*fleet, make_device(3)], rounds=2, pacing=Synchronous(cohort=4))
    assert log.named("round_opened")[1].details["cohort"] == [3]


def test_buffered_pacing_asks_a_device_as_it_comes() -> None:
    late = AvailabilityTrace.of([(0.5, 1e6)], 1e6)
    fleet = [make_device(0, rate_bytes_per_s=1e4), make_device(1, availability=late)]
    log = run(fleet, rounds=1, pacing=FedBuff(concurrency=2, size=2))
    refilled = log.named("refilled")[0]
    assert (refilled.at_s, refilled.details["cohort"]) == (0.5, [1])


def test_run_says_why_it_cannot_go_on() -> None:
    gone = AvailabilityTrace.of([(0.0, 0.01)], math.inf)
    with pytest.raises(
        StalledError,
        match=r"^round 2: no device is present at 0.01 s, and none will come any more; let traces "
        r"loop, run fewer rounds, or lose fewer devices$",
    ):
        run([make_device(0, availability=gone)], rounds=5)


FULL = {"free_memory": StepTrace.constant(1e-6)}
SHORT = AvailabilityTrace.of([(0.0, 0.01)], 0.011)


@pytest.mark.parametrize(
    ("met", "says"),
    [
        ([FULL] * 3, r"\(301 oom\); give rounds a deadline, or leave devices more memory"),
        (
            [{"availability": SHORT.begun_at(0.003 * k)} for k in range(3)],
            r"\(301 offline\); give rounds a deadline, or keep devices there for longer",
        ),
    ],
)
def test_run_whose_devices_fail_for_ever_says_how_they_did(
    met: list[dict[str, Any]], says: str
) -> None:
    fleet = [make_device(k, rate_bytes_per_s=(3 + k) * 1e4, **met[k]) for k in range(3)]
    start = r"round 1: at most 100 plans for each of the 3 devices may fail in one round, got 301 "
    with pytest.raises(StalledError, match=start + says):
        run(fleet, rounds=1, pacing=FedBuff(concurrency=2, size=2))


def fleet_of_one_able(**met: Any) -> list[Device]:
    """Return two devices too small for any plan of FedQuad, and one that is not."""
    return [make_device(k, budget_bytes=1000) for k in range(2)] + [make_device(2, **met)]


def test_where_a_whole_cohort_sits_out_others_are_asked_in_the_same_round() -> None:
    few = {"strategy": FedQuad(rank=2), "pacing": Synchronous(cohort=1), "rounds": 9}
    log = run(fleet_of_one_able(), **few)
    assert [(r.round, r.device_id) for r in log.clients] == [(k, 2) for k in range(1, 10)]
    assert {e.device for e in log.named("sat_out")} == {0, 1}
    asked = [e.details["cohort"] for e in [*log.named("round_opened"), *log.named("refilled")]]
    # Nine plans began, and each device is asked at most once a round.
    assert sum(map(len, asked)) == len(log.named("sat_out")) + 9


def test_asking_others_moves_no_later_cohort() -> None:
    few = {"pacing": Synchronous(cohort=1), "rounds": 9}
    firsts = []
    for strategy in (FedQuad(rank=2), FedLoRA(rank=2)):
        log = run(fleet_of_one_able(), strategy=strategy, **few)
        firsts.append([e.details["cohort"] for e in log.named("round_opened")])
    assert firsts[0] == firsts[1]
    assert [0] in firsts[0]


@pytest.mark.parametrize("pacing", [Synchronous(cohort=3), FedBuff(concurrency=3, size=1)])
def test_where_all_that_are_there_sit_out_the_round_waits_for_one_who_can(
    pacing: Synchronous | FedBuff,
) -> None:
    late = AvailabilityTrace.of([(0.5, 1e6)], 1e6)
    log = run(fleet_of_one_able(availability=late), strategy=FedQuad(rank=2), pacing=pacing)
    assert [r.device_id for r in log.clients] == [2, 2]
    assert log.clients[0].started_s == 0.5
    assert len(log.named("sat_out")) == 4  # each of two devices once in each of two rounds


def test_where_all_sit_out_until_the_deadline_the_round_closes_then() -> None:
    late = AvailabilityTrace.of([(5.0, 1e6)], 1e6)
    log = run(
        fleet_of_one_able(availability=late),
        strategy=FedQuad(rank=2),
        pacing=Synchronous(cohort=3, deadline_s=2.0),
        rounds=3,
    )
    assert [record.closed_s for record in log.rounds[1:3]] == [2.0, 4.0]
    assert [r.started_s for r in log.clients] == [5.0]


def test_run_in_which_everybody_sits_out_for_ever_says_so_at_once() -> None:
    away = AvailabilityTrace.of([(0.0, 0.1)], 0.2)  # that devices come and go must not matter
    fleet = [make_device(k, budget_bytes=1000, availability=away) for k in range(2)]
    says = (
        r"at most 20 rounds in a row may close at one instant without a plan, got 21 at 0 s: every "
        r"device that is there sits out, and no other will come; leave devices more memory, or "
        r"keep those there that can hold a plan of this strategy$"
    )
    with pytest.raises(StalledError, match=says):
        run(fleet, strategy=FedQuad(rank=2), rounds=10**6)


def test_device_that_is_online_only_while_its_battery_is_flat_never_comes() -> None:
    """The search walks 10,000 turns, each once; starting again from the first at each turn, it
    hung."""
    plugged = AvailabilityTrace.of([(1.0, 2.0)], 3.0)
    battery = make_battery(0.1, charge_w=5.0, floor_share=0.1, charging=plugged)
    online = AvailabilityTrace.of([(0.5, 0.9)], 3.0)
    with pytest.raises(StalledError, match=r"no device is present at 0 s, and none will come"):
        run([make_device(0, battery=battery, availability=online)], rounds=1)


def test_link_that_ends_loses_the_update() -> None:
    free = free_run()
    device = make_device(0)
    rate = device.link.uplink.rate_at(0.0)
    uplink = type(device.link.uplink)(np.zeros(1), np.array([rate]), free.finished_s * 0.9).ended()
    log = run([replace(device, link=replace(device.link, uplink=uplink))], rounds=1)
    assert log.clients[0].outcome == "lost"
    assert log.rounds[-1].num_lost == 1


def test_crash_loses_the_work_and_the_device_comes_back() -> None:
    free = free_run()
    crash_s = free.download_s + free.train_s / 2
    crash = {"schedule": [{"device": 0, "at_s": crash_s, "down_s": 2.0}]}
    log = run([make_device(0)], rounds=2, faults=faults(1, crash=crash), when_offline="resume")
    first, second = log.clients
    assert (first.outcome, first.finished_s) == ("crashed", pytest.approx(crash_s))
    assert second.started_s == pytest.approx(crash_s + 2.0)
    assert log.rounds[1].num_crashed == 1
    assert len(log.named("update_received")) == 1


@pytest.mark.parametrize(("policy", "repeated"), [("resume", 0.0), ("restart", 0.5)])
def test_lost_link_delays_a_transfer_by_its_outage(policy: str, repeated: float) -> None:
    free = free_run()
    loss = {"schedule": [{"device": 0, "at_s": free.download_s / 2, "down_s": 1.5}]}
    given = faults(1, link_loss=loss, cut_transfers=policy)
    (record,) = run([make_device(0)], rounds=1, faults=given).clients
    assert record.download_s == pytest.approx(free.download_s * (1 + repeated) + 1.5)
    assert record.lost_bytes == pytest.approx(free.download_bytes * repeated, abs=1)
    assert record.outcome == "aggregated"


def test_transfer_may_be_given_up_with_its_link() -> None:
    free = free_run()
    at_s = free.finished_s - free.upload_s / 2
    loss = {"schedule": [{"device": 0, "at_s": at_s, "down_s": 1.5}]}
    log = run([make_device(0)], rounds=1, faults=faults(1, link_loss=loss, cut_transfers="drop"))
    assert log.clients[0].outcome == "lost"
    assert log.rounds[-1].num_aggregated == 0
    assert not log.named("update_received")


def test_late_joiner_is_not_asked_before_it_joins_nor_a_leaver_after() -> None:
    given = faults(
        3,
        join={"schedule": [{"device": 0, "at_s": 0.3}]},
        leave={"schedule": [{"device": 1, "at_s": 0.3}]},
    )
    log = run([make_device(k) for k in range(3)], rounds=6, faults=given)
    for opened in log.named("round_opened"):
        cohort = opened.details["cohort"]
        assert (0 in cohort) == (opened.at_s >= 0.3)
        assert (1 in cohort) == (opened.at_s < 0.3)
    assert len({tuple(e.details["cohort"]) for e in log.named("round_opened")}) > 1


def test_server_restart_cuts_transfers_and_keeps_what_was_delivered() -> None:
    fast, slow = make_device(0), make_device(1, rate_bytes_per_s=2e4)
    free = run([fast, slow], rounds=1)
    first, second = free.clients
    down_s = (first.finished_s + second.finished_s) / 2  # one has delivered, the other uploads
    given = faults(2, server_restarts=[{"at_s": down_s, "down_s": 10.0}])
    log = run([fast, slow], rounds=1, faults=given)
    assert log.rounds[-1].num_aggregated == 2
    assert log.rounds[-1].closed_s == pytest.approx(second.finished_s + 10.0)
    assert log.named("update_received")[0].at_s == first.finished_s


def test_battery_that_runs_out_in_training_loses_the_work_and_charges_again() -> None:
    free = free_run()
    plugged = AvailabilityTrace.of([(50.0, 1e6)], 1e6)
    joules = 2.0 * free.download_s + 10.0 * free.train_s / 2
    battery = make_battery(joules, charge_w=5.0, floor_share=0.0, charging=plugged)
    first, second = run([make_device(0, battery=battery)], rounds=2).clients
    assert first.outcome == "offline"
    assert first.train_s == pytest.approx(free.train_s / 2)
    assert second.started_s == pytest.approx(50.0 + joules / 2 / 5.0)
    charged = 0.5 + (5.0 - 2.0) * free.download_s / joules
    assert second.battery_share == pytest.approx(min(1.0, charged))


def test_recorded_battery_level_keeps_a_device_away_below_its_floor() -> None:
    level = steps((4.0, 0.1), (1.0, 0.9))
    (record,) = run([make_device(0, battery=BatteryReplay(level, 0.2))], rounds=1).clients
    assert (record.started_s, record.battery_share) == (4.0, 0.9)


def test_faults_by_chance_come_at_their_rate_and_follow_the_seed() -> None:
    drawn = faults(200, seed=3, crash={"per_hour": 2.0, "down_s": 60.0})
    hours = 50
    counts = [len(drawn.crashes(k).given_within(hours * 3600.0)) for k in range(200)]
    # A cycle lasts 1,800 s + 60 s; a renewal process counts hours / cycle with a variance below it.
    expected = hours * 3600 / 1860
    assert np.mean(counts) == pytest.approx(expected, abs=5 * math.sqrt(expected / 200))
    again = faults(200, seed=3, crash={"per_hour": 2.0, "down_s": 60.0})
    assert again.crashes(7).given_within(1e5) == drawn.crashes(7).given_within(1e5)
    other = faults(200, seed=4, crash={"per_hour": 2.0, "down_s": 60.0})
    assert other.crashes(7).given_within(1e5) != drawn.crashes(7).given_within(1e5)


def test_one_more_device_changes_no_others_faults() -> None:
    config = {
        "crash": {"per_hour": 1.0},
        "join": {"share": 0.5, "within_s": 100.0},
        "leave": {"per_hour": 1.0},
    }
    small, large = faults(5, **config), faults(6, **config)
    assert small.join_s.tolist() == large.join_s[:5].tolist()
    assert small.leave_s.tolist() == large.leave_s[:5].tolist()
    for k in range(5):
        assert small.crashes(k).given_within(1e5) == large.crashes(k).given_within(1e5)


def test_schedule_for_a_device_that_is_not_there_is_refused() -> None:
    problems = Problems()
    config = read_section(FaultsConfig, {"crash": {"schedule": [{"device": 7, "at_s": 1.0}]}})
    draw_faults(config, 5, seed=0, problems=problems)
    assert problems.found == [
        "faults.crash.schedule.0.device must be in [0, 4], the devices of the fleet, got 7"
    ]
