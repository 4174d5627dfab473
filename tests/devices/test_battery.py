"""Batteries drain, charge, run out and come back at the instants that arithmetic says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.fleet.battery import BatterySpec, DrainedBattery
from traces.availability import ALWAYS, AvailabilityTrace

NEVER = AvailabilityTrace.of([], 10.0)


def spec(charging: AvailabilityTrace = NEVER, **changed: float) -> BatterySpec:
    numbers = {
        "capacity_j": 100.0,
        "initial_share": 0.5,
        "charge_w": 5.0,
        "floor_share": 0.1,
        "resume_share": 0.3,
    } | changed
    return BatterySpec(**numbers, charging=charging)


def test_idle_device_runs_out_when_its_joules_are_gone() -> None:
    battery = DrainedBattery(spec(), idle_w=2.0)
    assert battery.span(0.0) == (True, 20.0)  # (0.5 - 0.1) 100 J / 2 W
    assert battery.span(20.0) == (False, math.inf)
    assert battery.share == 0.1


def test_work_drains_faster_and_rest_slower() -> None:
    battery = DrainedBattery(spec(), idle_w=1.0)
    battery.draw(10.0, 5.0)  # 45 J left
    assert battery.span(5.0) == (True, 5.0 + 35.0 / 10.0)
    battery.rest(6.0)  # 35 J left
    assert battery.span(6.0) == (True, 31.0)


def test_device_that_is_off_draws_nothing_and_comes_back_once_charged() -> None:
    battery = DrainedBattery(spec(AvailabilityTrace.of([(30.0, 40.0)], 100.0)), idle_w=2.0)
    assert battery.span(25.0) == (False, 34.0)  # 20 J at 5 W, from 30 s on
    assert battery.span(34.0)[0]
    assert battery.share == 0.3


def test_plugged_in_for_ever_never_runs_out_and_stops_at_its_capacity() -> None:
    battery = DrainedBattery(spec(ALWAYS), idle_w=2.0)
    assert battery.span(1e6) == (True, math.inf)
    assert battery.share == 1.0


def test_loop_that_gives_what_it_takes_never_runs_out() -> None:
    half = AvailabilityTrace.of([(0.0, 5.0)], 10.0)
    assert DrainedBattery(spec(half, charge_w=4.0), idle_w=2.0).span(0.0) == (True, math.inf)


def test_loop_that_takes_a_little_more_runs_out_in_the_end() -> None:
    half = AvailabilityTrace.of([(0.0, 5.0)], 10.0)
    on, until_s = DrainedBattery(spec(half, charge_w=3.8), idle_w=2.0).span(0.0)
    # A loop costs 1 J and swings by 9 - 10 J: 39 loops leave 11 J, and the 40th falls to 10.
    assert on
    assert until_s == pytest.approx(400.0)


powers = st.integers(0, 80).map(lambda n: n / 8)
spans = st.lists(st.tuples(st.integers(1, 40).map(lambda n: n / 8), powers), max_size=6)


@given(spans, powers, st.integers(0, 8).map(float), st.integers(1, 9))
def test_level_is_the_fine_step_integral_of_what_flows(
    work: list[tuple[float, float]], idle_w: float, charge_w: float, plugged_s: int
) -> None:
    charging = AvailabilityTrace.of([(0.0, float(plugged_s))], 10.0)
    battery = DrainedBattery(spec(charging, charge_w=charge_w), idle_w)
    level, on, now, power_w = 50.0, True, 0.0, idle_w
    step_s = 1 / 1024
    for length_s, next_w in work:
        for _ in range(round(length_s / step_s)):
            flow_w = charge_w * charging.is_online(now) - power_w * on
            level = min(max(level + flow_w * step_s, 0.0), 100.0)
            on = level > 10.0 if on else level >= 30.0
            now += step_s
        battery.draw(next_w, now)
        power_w = next_w
        # Each switch of the fine steps comes at most a step late, at most 18 W off.
        assert battery.share * 100 == pytest.approx(level, abs=0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"capacity_j": 0.0}, "capacity_j must be above 0 and finite, got 0"),
        ({"floor_share": 0.4}, "floor_share must be below resume_share, got 0.4 and 0.3"),
        ({"initial_share": 0.05}, "initial_share must be in .*, got 0.05 with a floor of 0.1"),
        ({"charge_w": -1.0}, "charge_w must be at least 0 and finite, got -1"),
    ],
)
def test_impossible_battery_is_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**changed)
