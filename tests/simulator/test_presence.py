"""Devices whose presence is read off arrays are there exactly when each one by itself is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from devices.fleet.battery import BatterySpec
from devices.fleet.fleet import Fleet
from simulator.engine.faults import no_faults
from simulator.engine.presence import Presence
from tests.simulator.small import make_device
from traces.availability import AvailabilityTrace

DAYS = AvailabilityTrace.of([(0.0, 30.0), (45.0, 80.0)], 100.0)
PLUGGED = AvailabilityTrace.of([(20.0, 40.0)], 60.0)


def fleet(count: int) -> Fleet:
    """Return devices with a day of their own and a battery that lasts for 20 to 120 s of idling."""
    rng = np.random.default_rng(0)
    battery = BatterySpec(
        capacity_j=100.0,
        initial_share=1.0,
        charge_w=1.5,
        floor_share=0.1,
        resume_share=0.3,
        charging=PLUGGED,
    )
    return Fleet.of(
        [
            make_device(
                k,
                availability=DAYS.begun_at(float(rng.uniform(0, 100))),
                battery=replace(battery, initial_share=float(rng.uniform(0.2, 1.0))),
            )
            for k in range(count)
        ]
    )


@pytest.mark.parametrize("step_s", [4.7, 60.0])
def test_batteries_that_nobody_has_looked_at_leave_the_presence_that_each_one_has(
    step_s: float,
) -> None:
    devices = fleet(40)
    together = Presence(devices, no_faults(40))
    for at_s in np.arange(0.0, 400.0, step_s).tolist():
        there = together.present(at_s).copy()
        alone = Presence(devices, no_faults(40))
        assert there.tolist() == [alone.is_there(k, at_s) for k in range(40)]
        away = [alone.until_s(k, at_s) for k in np.flatnonzero(~there).tolist()]
        assert together.next_arrival_s(at_s) == pytest.approx(min(away, default=np.inf), abs=1e-6)
        # No device leaves before the instant that gone_s gives for it.
        for k in np.flatnonzero(there).tolist():
            assert together.gone_s(np.array([k]))[0] <= alone.until_s(k, at_s) + 1e-6


def test_a_device_that_is_never_asked_costs_no_object() -> None:
    devices = fleet(40)
    presence = Presence(devices, no_faults(40))
    there = presence.present(0.0)
    sure = there | (devices.charged_until_s > 100.0)
    assert not set(np.flatnonzero(sure).tolist()) & set(presence._supplies)
    presence.draw(int(np.flatnonzero(there)[0]), 5.0, 0.0)
    assert int(np.flatnonzero(there)[0]) in presence._supplies


def test_recorded_levels_are_never_guessed() -> None:
    devices = fleet(3)
    assert (devices.charged_until_s > 0).all()
    assert not devices.on_mains.any()
    assert Fleet.of([make_device(0)]).charged_until_s.tolist() == [np.inf]
