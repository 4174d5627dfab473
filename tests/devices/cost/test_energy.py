from __future__ import annotations

from devices.cost.energy import RoundEnergy, round_energy
from tests.devices.cost.specs import DEVICE


def test_each_second_is_charged_at_the_watts_of_its_state() -> None:
    energy = round_energy(DEVICE, compute_s=3.0, radio_s=2.0, idle_s=10.0)
    assert energy == RoundEnergy(compute_j=30.0, radio_j=8.0, idle_j=20.0)
    assert sum(energy) == 58.0


def test_a_device_that_does_nothing_draws_nothing() -> None:
    assert sum(round_energy(DEVICE, compute_s=0, radio_s=0, idle_s=0)) == 0
